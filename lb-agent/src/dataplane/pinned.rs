//! A directory of pins on a BPF file system, of what a real server's programs hold: they outlive the command that set
//! them up.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData};
use aya::{Ebpf, Pod};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Makes `directory`, at or below the configured `bpffs`.
///
/// # Errors
/// No BPF file system there.
pub fn make(bpffs: &Path, directory: &Path) -> Result<()> {
    // The configured directory itself need not exist yet; some parent of it must be a BPF file system.
    let existing = bpffs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let kind = statfs(existing).with_context(|| format!("look at {}", existing.display()))?;
    if kind.filesystem_type() != BPF_FS_MAGIC {
        bail!(
            "{} is not on a BPF file system: mount one (`mount -t bpf bpf /sys/fs/bpf`; `ip netns exec` \
             hides it, `nsenter --net=…` does not) or name another with --bpffs-dir",
            bpffs.display()
        );
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("make {} (a BPF file system takes no names with dots)", directory.display()))
}

/// A map that is pinned under its name.
///
/// # Errors
/// It cannot be opened.
pub fn map(directory: &Path, name: &str, kind: fn(MapData) -> Map) -> Result<Map> {
    let path = directory.join(name);
    MapData::from_pin(&path).map(kind).with_context(|| format!("open {}", path.display()))
}

/// Removes these pins in this order, and then the directory. What is not there is no error.
///
/// # Errors
/// What cannot be removed.
pub fn remove<'a>(directory: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    for name in names {
        let path = directory.join(name);
        ignore_missing(fs::remove_file(&path)).with_context(|| format!("remove {}", path.display()))?;
    }
    ignore_missing(fs::remove_dir(directory)).with_context(|| format!("remove {}", directory.display()))
}

/// No error where nothing is there.
///
/// # Errors
/// All others.
pub fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a pair of prefix tables, of IPv4 and IPv6, hold exactly these; adds before it removes, so that what stays is
/// never missing. `what` they are, for an error.
///
/// # Errors
/// The object has no such tables, or the kernel refuses.
pub fn fill_prefixes(
    object: &mut Ebpf,
    [v4, v6]: [&str; 2],
    wanted: &BTreeSet<IpNet>,
    what: &str,
) -> Result<()> {
    let (mut of_v4, mut of_v6) = (Vec::new(), Vec::new());
    for prefix in wanted {
        match prefix {
            IpNet::V4(net) => of_v4.push((u32::from(net.prefix_len()), net.network().octets())),
            IpNet::V6(net) => of_v6.push((u32::from(net.prefix_len()), net.network().octets())),
        }
    }
    fill_trie(object, v4, &of_v4, what)?;
    fill_trie(object, v6, &of_v6, what)
}

fn fill_trie<const N: usize>(
    object: &mut Ebpf,
    name: &str,
    wanted: &[(u32, [u8; N])],
    what: &str,
) -> Result<()>
where
    [u8; N]: Pod,
{
    let mut trie = LpmTrie::<_, [u8; N], u32>::try_from(map_of(object, name)?)?;
    for &(length, data) in wanted {
        trie.insert(&Key::new(length, data), 1, 0).with_context(|| format!("write {what}"))?;
    }
    let held = trie.keys().collect::<Result<Vec<_>, _>>()?;
    for key in held.iter().filter(|key| !wanted.contains(&(key.prefix_len(), key.data()))) {
        trie.remove(key)?;
    }
    Ok(())
}

/// A map of an object that is being loaded.
///
/// # Errors
/// There is none of that name.
pub fn map_of<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Map> {
    object.map_mut(name).ok_or_else(|| anyhow!("the object has no map {name}"))
}

/// What a pinned pair of prefix tables holds.
///
/// # Errors
/// They cannot be opened or read.
pub fn prefixes(directory: &Path, [v4, v6]: [&str; 2]) -> Result<BTreeSet<IpNet>> {
    let mut prefixes = BTreeSet::new();
    for key in LpmTrie::<_, [u8; 4], u32>::try_from(map(directory, v4, Map::LpmTrie)?)?.keys() {
        let key = key?;
        prefixes.insert(IpNet::V4(Ipv4Net::new(key.data().into(), key.prefix_len() as u8)?));
    }
    for key in LpmTrie::<_, [u8; 16], u32>::try_from(map(directory, v6, Map::LpmTrie)?)?.keys() {
        let key = key?;
        prefixes.insert(IpNet::V6(Ipv6Net::new(key.data().into(), key.prefix_len() as u8)?));
    }
    Ok(prefixes)
}
