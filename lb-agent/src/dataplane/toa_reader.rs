//! Loads, pins, reads and removes the programs that read TOA on a real server. Links and maps are pinned, so that they
//! outlive the command that set them up.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Map, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, SockOps};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use lb_common::toa::reader::{Found, LAYOUT, maps, programs};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::pinned;

/// The programs' BPF object (ELF).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_TOA_READER_OBJECT"));

/// All programs, by the names that their links are pinned under.
const PROGRAMS: [&str; 3] = [programs::ESTABLISHED, programs::PEER_V4, programs::PEER_V6];
/// The tables of those who are believed.
const SOURCES: [&str; 2] = [maps::SOURCES4, maps::SOURCES6];

/// What the pinned reader holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    /// Prefixes whose option is believed.
    pub sources: BTreeSet<IpNet>,
    /// Connections since it was set up, summed over CPUs.
    pub found: Vec<(Found, u64)>,
    /// Programs that do not run in the cgroup asked about: their link is gone, or leads elsewhere.
    pub detached: Vec<&'static str>,
}

/// The reader of TOA of this host (one per directory of pins).
#[derive(Clone, Debug)]
pub struct ToaReader {
    bpffs: PathBuf,
    directory: PathBuf,
}

impl ToaReader {
    /// Names the place of its pins; touches nothing.
    pub fn new(bpffs: &Path) -> Self {
        Self { bpffs: bpffs.into(), directory: bpffs.join(format!("toa-v{LAYOUT}")) }
    }

    /// Whether one is pinned.
    pub fn is_pinned(&self) -> bool {
        PROGRAMS.iter().any(|name| self.link(name).exists())
    }

    /// Runs it in a cgroup and all below, for exactly these sources. One that is there already is replaced: the new one
    /// runs before the old one goes, and what is known of connections stays. False: it was there.
    ///
    /// # Errors
    /// No BPF file system at the pins' place, a path that is no cgroup of version 2, a kernel that refuses the programs.
    /// What a failed first attempt pinned is removed again.
    pub fn attach(&self, cgroup: &Path, sources: &BTreeSet<IpNet>) -> Result<bool> {
        let fresh = !self.is_pinned();
        pinned::make(&self.bpffs, &self.directory)?;
        let result = self.load_and_attach(cgroup, sources);
        if fresh && result.is_err() {
            // The first error says what is wrong; one about tidying up would hide it.
            let _ = self.remove_pins();
        }
        result.map(|()| fresh)
    }

    fn load_and_attach(&self, cgroup: &Path, sources: &BTreeSet<IpNet>) -> Result<()> {
        let place = open_cgroup(cgroup)?;
        let mut loader = EbpfLoader::new();
        for name in maps::ALL {
            loader.map_pin_path(name, self.directory.join(name));
        }
        let mut object = loader.load(OBJECT).context("load the maps of the reader of TOA")?;
        pinned::fill_prefixes(&mut object, SOURCES, sources, "the sources whose TOA is believed")?;
        for name in PROGRAMS {
            let link = attach(&mut object, name, &place)
                .with_context(|| format!("attach {name} to {}", cgroup.display()))?;
            // The old one goes when the new one runs.
            pinned::ignore_missing(fs::remove_file(self.link(name)))
                .context("remove the pin of an old link")?;
            link.pin(self.link(name)).with_context(|| format!("pin the link of {name}"))?;
        }
        Ok(())
    }

    /// What the pinned reader holds, and whether it runs in the cgroup; `None` where none is pinned.
    ///
    /// # Errors
    /// Pins that cannot be read, or that are of another kind than this version's.
    pub fn contents(&self, cgroup: &Path) -> Result<Option<Contents>> {
        if !self.is_pinned() {
            return Ok(None);
        }
        let sources = pinned::prefixes(&self.directory, SOURCES)?;
        let counts =
            PerCpuArray::<_, u64>::try_from(pinned::map(&self.directory, maps::FOUND, Map::PerCpuArray)?)?;
        let found = Found::ALL
            .iter()
            .map(|&found| Ok((found, counts.get(&(found as u32), 0)?.iter().sum())))
            .collect::<Result<_, aya::maps::MapError>>()?;
        let id = fs::metadata(cgroup).ok().map(|cgroup| cgroup.ino());
        let detached =
            PROGRAMS.into_iter().filter(|name| self.cgroup_of(name).ok().flatten() != id).collect();
        Ok(Some(Contents { sources, found, detached }))
    }

    /// The number of the cgroup that a program runs in, which is that of its directory's inode. The kernel ends a link with its
    /// cgroup, and says 0 then. Read where the kernel shows it of any open link: aya has no word for it.
    fn cgroup_of(&self, program: &str) -> Result<Option<u64>> {
        if !self.link(program).exists() {
            return Ok(None);
        }
        let link = FdLink::from(PinnedLink::from_pin(self.link(program))?);
        let number = u64::from(link.info()?.id());
        for open in fs::read_dir("/proc/self/fdinfo")? {
            // Others of this process close theirs meanwhile.
            let Ok(text) = fs::read_to_string(open?.path()) else { continue };
            if field(&text, "link_id:") == Some(number) {
                return Ok(field(&text, "cgroup_id:").filter(|id| *id != 0));
            }
        }
        bail!("the kernel does not show the open link {number}")
    }

    /// Takes it off the cgroup and removes its pins. False where none was pinned.
    ///
    /// # Errors
    /// Pins that cannot be removed.
    pub fn detach(&self) -> Result<bool> {
        let was = self.is_pinned();
        self.remove_pins()?;
        Ok(was)
    }

    fn link(&self, program: &str) -> PathBuf {
        self.directory.join(link_name(program))
    }

    fn remove_pins(&self) -> Result<()> {
        let links = PROGRAMS.map(link_name);
        pinned::remove(&self.directory, links.iter().map(String::as_str).chain(maps::ALL))
    }
}

fn link_name(program: &str) -> String {
    format!("link_{program}")
}

/// The root of the cgroups of version 2, as the mounts of this process say (`/proc/self/mountinfo`).
///
/// # Errors
/// None is mounted.
pub fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    cgroup2_in(&mounts).ok_or_else(|| {
        anyhow!(
            "no cgroups of version 2 are mounted: `mount -t cgroup2 none /sys/fs/cgroup`, or name one with --cgroup"
        )
    })
}

/// Where a mountinfo has cgroups of version 2: the fifth field, of a line whose file system, behind ` - `, is `cgroup2`
/// (proc(5)).
fn cgroup2_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        (system.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4))?.map(PathBuf::from)
    })
}

/// A number in a link's fdinfo.
fn field(fdinfo: &str, name: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

fn open_cgroup(path: &Path) -> Result<File> {
    let file = File::open(path).with_context(|| format!("open the cgroup {}", path.display()))?;
    let kind = statfs(path).with_context(|| format!("look at {}", path.display()))?;
    if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        bail!("{} is no cgroup of version 2: name one with --cgroup", path.display());
    }
    Ok(file)
}

/// Attaches one of the programs. Links of cgroups always run beside others (`BPF_F_ALLOW_MULTI` is the kernel's own choice).
fn attach(object: &mut Ebpf, name: &str, cgroup: &File) -> Result<FdLink> {
    let program = object.program_mut(name).ok_or_else(|| anyhow!("the object has no program {name}"))?;
    let mode = CgroupAttachMode::default();
    let link = if name == programs::ESTABLISHED {
        let program: &mut SockOps = program.try_into()?;
        program.load()?;
        let id = program.attach(cgroup, mode)?;
        program.take_link(id)?.try_into()
    } else {
        let program: &mut CgroupSockAddr = program.try_into()?;
        program.load()?;
        let id = program.attach(cgroup, mode)?;
        program.take_link(id)?.try_into()
    };
    link.context("the kernel gave no link that can be pinned")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_cgroups_of_version_2_is_found() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu\n\
                      42 30 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let plain = "24 22 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(cgroup2_in(plain), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_in("24 22 0:22 / /cgroup2 rw - tmpfs cgroup2 rw\n"), None);
    }

    #[test]
    fn a_links_fdinfo_names_its_cgroup() {
        let text = "pos:\t0\nflags:\t02000002\nlink_type:\tcgroup\nlink_id:\t9\nprog_id:\t77\ncgroup_id:\t4711\nattach_type:\t3\n";
        assert_eq!((field(text, "link_id:"), field(text, "cgroup_id:")), (Some(9), Some(4711)));
        assert_eq!(field("pos:\t0\n", "link_id:"), None);
    }
}
