//! XDP links: attached once, pinned, and from then on only ever given a new program.

use super::{Error, bpf, pins};
use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

/// How the operator wants XDP on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// Native where the driver can, else generic.
    Auto,
    Native,
    Generic,
}

/// How XDP is on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's receive path: works everywhere, several times slower.
    Generic,
}

impl Mode {
    /// As the operator reads it.
    pub fn name(self) -> &'static str {
        pins::Mode::name(self)
    }

    fn suits(self, wanted: XdpMode) -> bool {
        match wanted {
            XdpMode::Auto => true,
            XdpMode::Native => self == Mode::Native,
            XdpMode::Generic => self == Mode::Generic,
        }
    }
}

impl pins::Mode for Mode {
    const WHAT: &'static str = "link";
    const ALL: &'static [Mode] = &[Mode::Native, Mode::Generic];

    fn name(self) -> &'static str {
        match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        }
    }
}

/// An interface that is to have the program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    pub name: String,
    pub ifindex: u32,
    pub mode: XdpMode,
    /// Of a bond, the interfaces in it. Frames come in by them, and leave by the bond.
    pub members: Vec<u32>,
}

/// An interface that has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    pub name: String,
    pub ifindex: u32,
    pub mode: Mode,
    /// A link was there and got the new program without a gap.
    pub replaced: bool,
    /// Why it is not native, where native was tried first.
    pub refused: Option<String>,
}

impl Attached {
    /// As it was asked for.
    pub fn interface(&self) -> Interface {
        let mode = match self.mode {
            Mode::Native => XdpMode::Native,
            Mode::Generic => XdpMode::Generic,
        };
        Interface { name: self.name.clone(), ifindex: self.ifindex, mode, members: Vec::new() }
    }
}

type Pin = pins::Pin<Mode>;

/// Gives an interface the program: through its pinned link, without losing a frame, or by a new link.
pub fn attach(dir: &Path, program: BorrowedFd<'_>, interface: &Interface) -> Result<Attached, Error> {
    for pin in pins::list::<Mode>(dir)?.into_iter().filter(|pin| pin.ifindex == interface.ifindex) {
        let link = bpf::open_pin(&pin.path).map_err(Error::os(format!("open {}", pin.path.display())))?;
        // An interface that went leaves a link without one; its number may since be another's.
        let alive = bpf::link_interface(link.as_fd(), bpf::LINK_TYPE_XDP)
            .map_err(Error::os(format!("look at {}", pin.path.display())))?
            == interface.ifindex;
        if alive && pin.mode.suits(interface.mode) {
            bpf::update_link(link.as_fd(), program)
                .map_err(Error::os(format!("replace the program on {}", interface.name)))?;
            return Ok(Attached {
                name: interface.name.clone(),
                ifindex: interface.ifindex,
                mode: pin.mode,
                replaced: true,
                refused: None,
            });
        }
        remove(&pin, link.as_fd())?;
    }
    attach_anew(dir, program, interface)
}

fn attach_anew(dir: &Path, program: BorrowedFd<'_>, interface: &Interface) -> Result<Attached, Error> {
    let create = |mode: Mode| {
        let flags = if mode == Mode::Native { bpf::XDP_NATIVE } else { bpf::XDP_GENERIC };
        let created = bpf::create_xdp_link(program, interface.ifindex, flags);
        created.map_err(|reason| absent_or(interface.ifindex, reason)).map_err(|reason| Error::Attach {
            interface: interface.name.clone(),
            mode: mode.name(),
            hint: hint(&reason, mode),
            reason,
        })
    };
    let (link, mode, refused) = match interface.mode {
        XdpMode::Native => (create(Mode::Native)?, Mode::Native, None),
        XdpMode::Generic => (create(Mode::Generic)?, Mode::Generic, None),
        XdpMode::Auto => match create(Mode::Native) {
            Ok(link) => (link, Mode::Native, None),
            // Another's program stands there in either mode.
            Err(error @ Error::Attach { .. }) if is_busy(&error) => return Err(error),
            Err(native) => (create(Mode::Generic)?, Mode::Generic, Some(native.to_string())),
        },
    };
    let path = pins::path(dir, interface.ifindex, mode);
    bpf::pin(link.as_fd(), &path).map_err(Error::os(format!("pin {}", path.display())))?;
    Ok(Attached { name: interface.name.clone(), ifindex: interface.ifindex, mode, replaced: false, refused })
}

/// For an interface that is not there the kernel says EINVAL, as for many other things.
fn absent_or(ifindex: u32, reason: io::Error) -> io::Error {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() { io::Error::from_raw_os_error(libc::ENODEV) } else { reason }
}

fn is_busy(error: &Error) -> bool {
    let Error::Attach { reason, .. } = error else { return false };
    matches!(reason.raw_os_error(), Some(libc::EBUSY | libc::EEXIST | libc::ENODEV | libc::EPERM))
}

/// What to try. The kernel's own words (its extended ack) do not come with a link's errno.
fn hint(error: &io::Error, mode: Mode) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is there: see `ip link show`, remove it by `ip link set dev … xdp off`"
        }
        Some(libc::ENODEV) => "there is no such interface in this network namespace",
        Some(libc::EPERM | libc::EACCES) => "the agent needs CAP_NET_ADMIN and CAP_BPF",
        Some(libc::ERANGE | libc::EMSGSIZE) => {
            "the MTU is too large for XDP in this driver: lower it (`ip link set dev … mtu 1500`)"
        }
        Some(libc::EOPNOTSUPP | libc::EINVAL) if mode == Mode::Native => {
            "the driver refuses native XDP: often LRO (`ethtool -K … lro off`), too large an MTU, too few queues \
             (`ethtool -L …`), or a bond's mode (active-backup, balance-rr, balance-xor and 802.3ad do); \
             `xdp: generic` works with any driver, slower"
        }
        _ => "see `dmesg` for the driver's reason",
    }
}

fn remove(pin: &Pin, link: BorrowedFd<'_>) -> Result<(), Error> {
    // ENOLINK and its like: the interface is gone already.
    let _ = bpf::detach_link(link);
    fs::remove_file(&pin.path).map_err(Error::os(format!("remove {}", pin.path.display())))
}

/// Detaches from every interface whose link is pinned here and which `keep` does not list.
pub fn detach_except(dir: &Path, keep: &[u32]) -> Result<(), Error> {
    for pin in pins::list::<Mode>(dir)?.into_iter().filter(|pin| !keep.contains(&pin.ifindex)) {
        let link = bpf::open_pin(&pin.path).map_err(Error::os(format!("open {}", pin.path.display())))?;
        remove(&pin, link.as_fd())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_keeps_what_is_there_and_a_stated_mode_does_not() {
        assert!(Mode::Generic.suits(XdpMode::Auto) && Mode::Native.suits(XdpMode::Auto));
        assert!(!Mode::Generic.suits(XdpMode::Native) && !Mode::Native.suits(XdpMode::Generic));
    }

    #[test]
    fn a_refusal_says_what_to_try() {
        let of = |errno| hint(&io::Error::from_raw_os_error(errno), Mode::Native);
        assert!(of(libc::ERANGE).contains("MTU"));
        assert!(of(libc::EBUSY).contains("xdp off"));
        assert!(of(libc::EOPNOTSUPP).contains("lro off"));
    }
}
