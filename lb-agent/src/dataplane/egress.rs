//! The egress program on the interfaces: by a tcx link, pinned like the XDP link, where the kernel has them
//! (Linux 6.6); before that as a filter of the clsact qdisc, which stays without a pin, beside a pin of its program
//! that says so. Either way it outlives the agent, and the next agent gives it a new program in one step.
//!
//! ```text
//! <bpffs dir>/egress-<ifindex>-tcx       the link
//! <bpffs dir>/egress-<ifindex>-clsact    the filter's program
//! <bpffs dir>/egress-<ifindex>-made      a directory: the qdisc is of our making
//! ```

use super::{Attached, Dataplane, Error, Interface, bpf, pins};
use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use lb_common::maps::programs;
use std::{collections::BTreeMap, ffi::CStr, fs, io, os::fd::AsFd as _, path::Path};

/// How the egress program is on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EgressMode {
    /// A link of its own. Other tc programs run beside it.
    Tcx,
    /// A filter of the clsact qdisc, before those of lower priority.
    Clsact,
}

impl EgressMode {
    /// For the operator.
    pub fn name(self) -> &'static str {
        pins::Mode::name(self)
    }
}

impl pins::Mode for EgressMode {
    const WHAT: &'static str = "egress";
    const ALL: &'static [EgressMode] = &[EgressMode::Tcx, EgressMode::Clsact];

    fn name(self) -> &'static str {
        match self {
            EgressMode::Tcx => "tcx",
            EgressMode::Clsact => "clsact",
        }
    }
}

impl Dataplane {
    /// Puts the egress program on every interface that has the main program, or takes it off all of them, also
    /// where an earlier run put it. To be called when it is known whether any address follows a VRRP instance;
    /// again whenever that changes.
    pub fn set_egress(&mut self, wanted: bool) -> Result<(), Error> {
        if self.egress.is_some() == wanted && wanted {
            return Ok(());
        }
        let Some(dir) = self.dir.clone() else { return Ok(()) };
        if !wanted {
            self.egress = None;
            return detach_except(&dir, &[]);
        }
        self.egress = Some(BTreeMap::new());
        let interfaces: Vec<Interface> = self.attached().iter().map(Attached::interface).collect();
        let result = interfaces.iter().try_for_each(|interface| self.attach_egress(interface, false));
        if result.is_err() {
            // Tried again with the next call.
            self.egress = None;
        }
        result
    }

    /// Interfaces with a clsact qdisc that was made for the egress program, which is no longer on them. Whoever finds
    /// that nobody else uses it removes it, and says so ([`Dataplane::forget_qdisc`]).
    pub fn idle_qdiscs(&self) -> Result<Vec<u32>, Error> {
        let Some(dir) = &self.dir else { return Ok(Vec::new()) };
        let mut idle = made(dir)?;
        let used = pins::list::<EgressMode>(dir)?;
        idle.retain(|ifindex| {
            !used.iter().any(|pin| pin.ifindex == *ifindex && pin.mode == EgressMode::Clsact)
        });
        Ok(idle)
    }

    /// The qdisc of an interface is gone, or another's.
    pub fn forget_qdisc(&self, ifindex: u32) -> Result<(), Error> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = mark(dir, ifindex);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::os(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// How the egress program is on an interface, where it is.
    pub fn egress_on(&self, ifindex: u32) -> Option<EgressMode> {
        self.egress.as_ref()?.get(&ifindex).copied()
    }

    /// Puts the egress program on one interface. `clsact`: as on a kernel without tcx links.
    pub fn attach_egress(&mut self, interface: &Interface, clsact: bool) -> Result<(), Error> {
        let dir =
            self.dir.clone().ok_or_else(|| Error::Refused("a test's program is not attached".into()))?;
        let name = programs::EGRESS;
        let program = self.ebpf.program_mut(name).ok_or(Error::Missing(name))?;
        let program: &mut SchedClassifier =
            program.try_into().map_err(|e| Error::Program { name, reason: Box::new(e) })?;
        let mode = attach(&dir, program, interface, clsact)?;
        self.egress.get_or_insert_default().insert(interface.ifindex, mode);
        Ok(())
    }
}

/// The filter's place. Whatever else is there keeps its own.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x6c62);

type Pin = pins::Pin<EgressMode>;

/// Gives an interface the program: in the place of an older version, or anew. `clsact` leaves links alone, as on a
/// kernel that has none.
pub fn attach(
    dir: &Path,
    program: &mut SchedClassifier,
    interface: &Interface,
    clsact: bool,
) -> Result<EgressMode, Error> {
    for pin in pins::list::<EgressMode>(dir)?.into_iter().filter(|pin| pin.ifindex == interface.ifindex) {
        match pin.mode {
            EgressMode::Tcx => {
                let opened = bpf::open_pin(&pin.path);
                let link = opened.map_err(Error::os(format!("open {}", pin.path.display())))?;
                // An interface that went leaves a link without one.
                let on = bpf::link_interface(link.as_fd(), bpf::LINK_TYPE_TCX);
                if !clsact && on.is_ok_and(|on| on == interface.ifindex) {
                    let fd = fd_of(program)?;
                    bpf::update_link(link.as_fd(), fd)
                        .map_err(Error::os(format!("replace the egress program on {}", interface.name)))?;
                    return Ok(EgressMode::Tcx);
                }
                remove(&pin)?;
            }
            EgressMode::Clsact => {
                let former = SchedClassifierLink::attached(
                    &interface.name,
                    TcAttachType::Egress,
                    PRIORITY,
                    HANDLE,
                    None,
                )
                .map_err(Error::os(format!("look for interface {}", interface.name)))?;
                if let Ok(id) = program.attach_to_link(former) {
                    keep(program, id)?;
                    repin(program, &pin.path)?;
                    return Ok(EgressMode::Clsact);
                }
                // Somebody took the qdisc away, and the filter with it.
                remove(&pin)?;
            }
        }
    }
    attach_anew(dir, program, interface, clsact)
}

fn attach_anew(
    dir: &Path,
    program: &mut SchedClassifier,
    interface: &Interface,
    clsact: bool,
) -> Result<EgressMode, Error> {
    let what = || format!("attach the egress program to {}", interface.name);
    if !clsact {
        match bpf::create_link(fd_of(program)?, interface.ifindex, bpf::ATTACH_TYPE_TCX_EGRESS, 0) {
            Ok(link) => {
                let path = pins::path(dir, interface.ifindex, EgressMode::Tcx);
                bpf::pin(link.as_fd(), &path).map_err(Error::os(format!("pin {}", path.display())))?;
                return Ok(EgressMode::Tcx);
            }
            // Kernels before 6.6 know no such attachment.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(Error::os(what())(error)),
        }
    }
    match tc::qdisc_add_clsact(&interface.name) {
        Ok(()) => mark_made(dir, interface.ifindex)?,
        Err(error) if there_already(&error) => {}
        Err(error) => return Err(Error::os(what())(io::Error::other(error))),
    }
    // One of an agent whose pins are gone.
    let _ = tc::qdisc_detach_program(&interface.name, TcAttachType::Egress, programs::EGRESS);
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = program
        .attach_with_options(&interface.name, TcAttachType::Egress, TcAttachOptions::Netlink(options))
        .map_err(|error| Error::os(what())(io::Error::other(error)))?;
    keep(program, id)?;
    repin(program, &pins::path(dir, interface.ifindex, EgressMode::Clsact))?;
    Ok(EgressMode::Clsact)
}

/// aya takes a filter away with its handle on it; this one stays.
fn keep(program: &mut SchedClassifier, id: tc::SchedClassifierLinkId) -> Result<(), Error> {
    let link = program.take_link(id).map_err(failed)?;
    std::mem::forget(link);
    Ok(())
}

fn repin(program: &SchedClassifier, path: &Path) -> Result<(), Error> {
    if path.exists() {
        fs::remove_file(path).map_err(Error::os(format!("remove {}", path.display())))?;
    }
    bpf::pin(fd_of(program)?, path).map_err(Error::os(format!("pin {}", path.display())))
}

fn fd_of(program: &SchedClassifier) -> Result<std::os::fd::BorrowedFd<'_>, Error> {
    Ok(program.fd().map_err(failed)?.as_fd())
}

fn failed(reason: ProgramError) -> Error {
    Error::Program { name: programs::EGRESS, reason: Box::new(reason) }
}

fn there_already(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

/// Takes the program off the interfaces that `keep` does not list. The qdisc stays ([`Dataplane::idle_qdiscs`]):
/// somebody else may use it by now.
pub fn detach_except(dir: &Path, keep: &[u32]) -> Result<(), Error> {
    pins::list::<EgressMode>(dir)?.iter().filter(|pin| !keep.contains(&pin.ifindex)).try_for_each(remove)
}

fn remove(pin: &Pin) -> Result<(), Error> {
    match pin.mode {
        EgressMode::Tcx => {
            let opened = bpf::open_pin(&pin.path);
            let link = opened.map_err(Error::os(format!("open {}", pin.path.display())))?;
            // ENOLINK: the interface is gone already.
            let _ = bpf::detach_link(link.as_fd());
        }
        EgressMode::Clsact => {
            if let Some(name) = interface_name(pin.ifindex) {
                // It is gone with its interface or its qdisc.
                let _ = tc::qdisc_detach_program(&name, TcAttachType::Egress, programs::EGRESS);
            }
        }
    }
    fs::remove_file(&pin.path).map_err(Error::os(format!("remove {}", pin.path.display())))
}

/// What says that the qdisc of an interface is of our making.
fn mark(dir: &Path, ifindex: u32) -> std::path::PathBuf {
    dir.join(format!("{}-{ifindex}-{MADE}", <EgressMode as pins::Mode>::WHAT))
}

fn mark_made(dir: &Path, ifindex: u32) -> Result<(), Error> {
    let path = mark(dir, ifindex);
    match fs::create_dir(&path) {
        // Left by an interface that went with its qdisc.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(Error::os(format!("make {}", path.display()))),
    }
}

/// The interfaces whose qdisc is of our making.
fn made(dir: &Path) -> Result<Vec<u32>, Error> {
    let mut made = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::os(format!("read {}", dir.display())))? {
        let entry = entry.map_err(Error::os(format!("read {}", dir.display())))?;
        made.extend(entry.file_name().to_str().and_then(marked));
    }
    Ok(made)
}

fn marked(name: &str) -> Option<u32> {
    let (ifindex, mark) =
        name.strip_prefix(<EgressMode as pins::Mode>::WHAT)?.strip_prefix('-')?.split_once('-')?;
    (mark == MADE).then(|| ifindex.parse().ok())?
}

const MADE: &str = "made";

fn interface_name(ifindex: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    CStr::from_bytes_until_nul(&name).ok()?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_whose_qdisc_it_is() {
        assert_eq!(marked("egress-12-made"), Some(12));
        assert_eq!(mark(Path::new("/b"), 12), Path::new("/b/egress-12-made"));
        for other in ["egress-12-clsact", "egress-x-made", "link-12-made", "egress-12-made-2"] {
            assert_eq!(marked(other), None, "{other}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_has_no_name() {
        assert_eq!(interface_name(1).as_deref(), Some("lo"));
        assert_eq!(interface_name(0), None);
    }
}
