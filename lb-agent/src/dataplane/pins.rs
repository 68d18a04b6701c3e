//! What is pinned for an interface: the pin's name says it all, `<what>-<ifindex>-<mode>`. bpffs refuses dots, so an
//! interface's own name cannot be used.

use super::Error;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// How something is on an interface, as a pin's name says it.
pub trait Mode: Copy + 'static {
    /// What such pins hold: the first word of their names.
    const WHAT: &'static str;
    const ALL: &'static [Self];
    fn name(self) -> &'static str;
}

pub struct Pin<M> {
    pub path: PathBuf,
    pub ifindex: u32,
    pub mode: M,
}

/// The pins of a directory. Files of other names are none of ours.
pub fn list<M: Mode>(dir: &Path) -> Result<Vec<Pin<M>>, Error> {
    let mut pins = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::os(format!("read {}", dir.display())))? {
        let entry = entry.map_err(Error::os(format!("read {}", dir.display())))?;
        if let Some((ifindex, mode)) = entry.file_name().to_str().and_then(parse) {
            pins.push(Pin { path: entry.path(), ifindex, mode });
        }
    }
    Ok(pins)
}

/// Where it is pinned.
pub fn path<M: Mode>(dir: &Path, ifindex: u32, mode: M) -> PathBuf {
    dir.join(format!("{}-{ifindex}-{}", M::WHAT, mode.name()))
}

fn parse<M: Mode>(name: &str) -> Option<(u32, M)> {
    let (ifindex, mode) = name.strip_prefix(M::WHAT)?.strip_prefix('-')?.split_once('-')?;
    let mode = M::ALL.iter().find(|other| other.name() == mode)?;
    Some((ifindex.parse().ok()?, *mode))
}

#[cfg(test)]
mod tests {
    use super::super::{EgressMode, Mode as XdpMode};
    use super::*;

    #[test]
    fn a_name_says_what_is_pinned_where_and_how() {
        assert_eq!(parse("link-7-native"), Some((7, XdpMode::Native)));
        assert_eq!(parse("link-12-generic"), Some((12, XdpMode::Generic)));
        assert_eq!(parse("egress-7-tcx"), Some((7, EgressMode::Tcx)));
        assert_eq!(parse("egress-12-clsact"), Some((12, EgressMode::Clsact)));
        assert_eq!(path(Path::new("/b"), 12, EgressMode::Clsact), Path::new("/b/egress-12-clsact"));
        for other in ["TAILS-1", "link-7", "link-x-native", "link-7-offload", "v1-1", "link-7-tcx"] {
            assert_eq!(parse::<XdpMode>(other), None, "{other}");
        }
        for other in ["link-7-native", "egress-7", "egress-x-tcx", "egress-7-xdp", "TAILS-1"] {
            assert_eq!(parse::<EgressMode>(other), None, "{other}");
        }
    }
}
