//! Loads, pins, reads and removes the real server's decapsulator. Its link and maps are pinned in a directory
//! per interface, so that it outlives the command that set it up.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{HashMap, Map, MapError, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use ipnet::IpNet;
use lb_common::decapsulator::{LAYOUT, Outcome, PROGRAM, maps};
use lb_common::filter::AddressKey;

use super::pinned;

/// The decapsulator's BPF object (ELF).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_REAL_SERVER_OBJECT"));

/// The link's name beside the maps.
const LINK: &str = "link";
/// The tables of whose packets are unpacked.
const DIRECTORS: [&str; 2] = [maps::DIRECTORS4, maps::DIRECTORS6];

/// How [`Decapsulator::attach`] found and left the interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attached {
    /// Newly, as native XDP.
    Native,
    /// Newly, as generic XDP: the driver refused native.
    Generic,
    /// It was there: the program was replaced through its link, counters went on.
    Replaced,
}

/// What the pinned decapsulator holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents {
    /// The kernel's number of the program that the pinned link runs.
    pub program: u32,
    /// Prefixes that tunnelled packets are accepted from.
    pub directors: BTreeSet<IpNet>,
    /// Inner destinations that are unpacked.
    pub vips: BTreeSet<IpAddr>,
    /// UDP ports at which GUE is unpacked.
    pub gue_ports: BTreeSet<u16>,
    /// Frames by outcome since it was set up, summed over CPUs.
    pub outcomes: Vec<(Outcome, u64)>,
}

/// What is unpacked.
#[derive(Clone, Copy, Debug)]
pub struct Unpacked<'a> {
    /// Inner destinations.
    pub vips: &'a BTreeSet<IpAddr>,
    /// Outer sources.
    pub directors: &'a BTreeSet<IpNet>,
    /// UDP ports at which GUE is unpacked. IPIP and GRE are always.
    pub gue_ports: &'a BTreeSet<u16>,
}

/// The decapsulator of one interface.
#[derive(Clone, Debug)]
pub struct Decapsulator {
    bpffs: PathBuf,
    directory: PathBuf,
    interface: String,
}

impl Decapsulator {
    /// Names the place of its pins; touches nothing.
    pub fn new(bpffs: &Path, interface: &str) -> Self {
        // A BPF file system refuses names with a dot, and VLAN interfaces have one (eth0.100).
        let name = interface.replace('%', "%25").replace('.', "%2e");
        let directory = bpffs.join(format!("real-server-v{LAYOUT}")).join(name);
        Self { bpffs: bpffs.into(), directory, interface: interface.into() }
    }

    /// Where its link and maps are pinned.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs the decapsulator on the interface for exactly these. One that is already there
    /// is replaced in one step by this version and keeps its counters.
    ///
    /// # Errors
    /// No BPF file system at the pins' place, an interface that does not exist or has another XDP program, a
    /// kernel that refuses the program. What a failed first attempt pinned is removed again.
    pub fn attach(&self, unpacked: Unpacked<'_>) -> Result<Attached> {
        let fresh = !self.is_pinned();
        pinned::make(&self.bpffs, &self.directory)?;
        let result = self.load_and_attach(unpacked);
        if fresh && result.is_err() {
            // The first error says what is wrong; one about tidying up would hide it.
            let _ = self.remove_pins();
        }
        result
    }

    /// What the pinned decapsulator holds, or `None` where none is pinned.
    ///
    /// # Errors
    /// Pins that cannot be read, or that are of another kind than this version's.
    pub fn contents(&self) -> Result<Option<Contents>> {
        if !self.is_pinned() {
            return Ok(None);
        }
        let link = FdLink::from(self.pinned_link()?);
        let program = link.info().context("read the decapsulator's link")?.program_id();
        let directors = pinned::prefixes(&self.directory, DIRECTORS)?;
        let mut vips = BTreeSet::new();
        for key in
            HashMap::<_, AddressKey, u32>::try_from(pinned::map(&self.directory, maps::VIPS, Map::HashMap)?)?
                .keys()
        {
            let key = key?;
            vips.insert(key.address.to_ip(key.family == 6));
        }
        let ports = HashMap::<_, [u8; 2], u32>::try_from(pinned::map(
            &self.directory,
            maps::GUE_PORTS,
            Map::HashMap,
        )?)?;
        let gue_ports = ports.keys().map(|key| key.map(u16::from_be_bytes)).collect::<Result<_, _>>()?;
        let counters = pinned::map(&self.directory, maps::OUTCOMES, Map::PerCpuArray)?;
        let counters = PerCpuArray::<_, u64>::try_from(counters)?;
        let outcomes = Outcome::ALL
            .iter()
            .map(|&outcome| Ok((outcome, counters.get(&(outcome as u32), 0)?.iter().sum())))
            .collect::<Result<_, MapError>>()?;
        Ok(Some(Contents { program, directors, vips, gue_ports, outcomes }))
    }

    /// Takes the decapsulator off the interface and removes its pins. False where none was pinned.
    ///
    /// # Errors
    /// Pins that cannot be removed.
    pub fn detach(&self) -> Result<bool> {
        let was = self.is_pinned();
        self.remove_pins()?;
        Ok(was)
    }

    fn is_pinned(&self) -> bool {
        self.directory.join(LINK).exists()
    }

    fn load_and_attach(&self, unpacked: Unpacked<'_>) -> Result<Attached> {
        let mut loader = EbpfLoader::new();
        for name in maps::ALL {
            loader.map_pin_path(name, self.directory.join(name));
        }
        let mut object = loader.load(OBJECT).context("load the decapsulator's maps")?;
        fill(&mut object, unpacked)?;
        let program: &mut Xdp = object
            .program_mut(PROGRAM)
            .ok_or_else(|| anyhow!("the object has no program {PROGRAM}"))?
            .try_into()?;
        program.load().context("load the decapsulator")?;
        if self.is_pinned() {
            let link = XdpLink::try_from(FdLink::from(self.pinned_link()?)).context("use the pinned link")?;
            if program.attach_to_link(link).is_ok() {
                return Ok(Attached::Replaced);
            }
            // The interface it was made for is gone (the link outlives it), or one of the same name took over.
            fs::remove_file(self.directory.join(LINK)).context("remove the pin of a dead link")?;
        }
        let (link, attached) = match program.attach(&self.interface, XdpMode::Driver) {
            Ok(link) => (link, Attached::Native),
            Err(error) if is_busy(&error) => bail!(
                "{} already has another XDP program: a director's? Then let the kernel unpack \
                 (--tunnel kernel), or take it off (`ip link set dev {0} xdp off` where it was attached so)",
                self.interface
            ),
            Err(native) => match program.attach(&self.interface, XdpMode::Skb) {
                Ok(link) => (link, Attached::Generic),
                Err(generic) => {
                    let native = anyhow!(native);
                    return Err(anyhow!(generic).context(format!(
                        "attach the decapsulator to {}: native XDP: {native:#}; generic XDP",
                        self.interface
                    )));
                }
            },
        };
        let link: FdLink =
            program.take_link(link)?.try_into().context("the kernel gave no link that can be pinned")?;
        link.pin(self.directory.join(LINK)).context("pin the decapsulator's link")?;
        Ok(attached)
    }

    fn pinned_link(&self) -> Result<PinnedLink> {
        let path = self.directory.join(LINK);
        PinnedLink::from_pin(&path).with_context(|| format!("open {}", path.display()))
    }

    fn remove_pins(&self) -> Result<()> {
        // The link first: once it is gone no frame asks a map.
        pinned::remove(&self.directory, [LINK].into_iter().chain(maps::ALL))?;
        if let Some(parent) = self.directory.parent() {
            // Stays where another interface has one.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Makes the maps hold exactly these; adds before it removes, so that what stays is never missing.
fn fill(object: &mut Ebpf, unpacked: Unpacked<'_>) -> Result<()> {
    let Unpacked { vips, directors, gue_ports } = unpacked;
    pinned::fill_prefixes(object, DIRECTORS, directors, "the decapsulator's directors")?;
    let wanted: Vec<_> = vips
        .iter()
        .map(|&vip| AddressKey { address: vip.into(), family: if vip.is_ipv6() { 6 } else { 4 } })
        .collect();
    fill_set(object, maps::VIPS, &wanted)?;
    let ports: Vec<[u8; 2]> = gue_ports.iter().map(|port| port.to_be_bytes()).collect();
    fill_set(object, maps::GUE_PORTS, &ports)
}

fn fill_set<K: aya::Pod + PartialEq>(object: &mut Ebpf, name: &str, wanted: &[K]) -> Result<()> {
    let mut map = HashMap::<_, K, u32>::try_from(pinned::map_of(object, name)?)?;
    for key in wanted {
        map.insert(key, 1, 0).with_context(|| format!("write the decapsulator's {name}"))?;
    }
    let held = map.keys().collect::<Result<Vec<_>, _>>()?;
    for key in held.iter().filter(|key| !wanted.contains(key)) {
        map.remove(key)?;
    }
    Ok(())
}

fn is_busy(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_of_a_vlan_interface_have_a_name_without_dots() {
        let of = |interface| Decapsulator::new(Path::new("/sys/fs/bpf/lb"), interface).directory().to_owned();
        assert_eq!(of("eth0.100"), Path::new("/sys/fs/bpf/lb/real-server-v2/eth0%2e100"));
        assert_ne!(of("eth0.100"), of("eth0%2e100"));
    }
}
