//! The few bpf(2) calls that aya does not offer, or offers only with a fallback we do not want: XDP links
//! (aya falls back to netlink, whose attachment cannot be pinned), pins of links, a link's interface, and a
//! program given as instructions. Layouts are those of `union bpf_attr`, include/uapi/linux/bpf.h.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_TEST_RUN: u32 = 10;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
/// Kinds of links.
pub const LINK_TYPE_XDP: u32 = 6;
pub const LINK_TYPE_TCX: u32 = 11;
/// What a host sends, seen by tc (Linux 6.6).
pub const ATTACH_TYPE_TCX_EGRESS: u32 = 47;

/// Flags of an XDP attachment.
pub const XDP_GENERIC: u32 = 1 << 1;
pub const XDP_NATIVE: u32 = 1 << 2;

/// One bpf(2) call. `attr` must be the part of `union bpf_attr` that `command` reads.
fn call<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live `repr(C)` struct of integers, its size is passed along, and the kernel treats
    // what lies beyond it as zero. Pointers inside it are made by the callers below from live buffers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn call_for_fd<T>(command: u32, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the commands that come here return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins an object (Linux 4.4). The directory must be on a bpffs; names with dots are refused by the kernel.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    call(OBJ_PIN, &mut Object { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 }).map(drop)
}

/// Opens a pinned object.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_of(path)?;
    call_for_fd(OBJ_GET, &mut Object { path: path.as_ptr() as u64, ..Object::default() })
}

#[repr(C)]
struct Link {
    program_or_link: u32,
    interface_or_program: u32,
    attach_type_or_flags: u32,
    flags_or_old_program: u32,
}

/// Attaches an XDP program to an interface of this network namespace by a link (Linux 5.9). The interface
/// keeps the program while the link has a descriptor or a pin.
pub fn create_xdp_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    create_link(program, ifindex, ATTACH_TYPE_XDP, flags)
}

/// Attaches a program to an interface of this network namespace by a link of another kind.
pub fn create_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = Link {
        program_or_link: program.as_raw_fd() as u32,
        interface_or_program: ifindex,
        attach_type_or_flags: attach_type,
        flags_or_old_program: flags,
    };
    call_for_fd(LINK_CREATE, &mut attr)
}

/// Replaces the program of a link: each frame sees the old one or the new one.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Link {
        program_or_link: link.as_raw_fd() as u32,
        interface_or_program: program.as_raw_fd() as u32,
        attach_type_or_flags: 0,
        flags_or_old_program: 0,
    };
    call(LINK_UPDATE, &mut attr).map(drop)
}

/// Takes the program off the interface, whoever else holds the link.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_DETACH, &mut (link.as_raw_fd() as u32)).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    ifindex: u32,
    rest: [u32; 27],
}

/// What the kernel says of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkFacts {
    /// The kernel's number of the program that it runs.
    pub program: u32,
    /// The interface; 0 when it is gone.
    pub ifindex: u32,
}

/// The facts of a link of one kind (`LINK_TYPE_…`).
pub fn link_facts(link: BorrowedFd<'_>, kind: u32) -> io::Result<LinkFacts> {
    let mut info = LinkInfo::default();
    info_of(link, &mut info)?;
    if info.kind != kind {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the pinned link is of another kind"));
    }
    Ok(LinkFacts { program: info.program, ifindex: info.ifindex })
}

/// The interface of a link; 0 when the interface is gone.
pub fn link_interface(link: BorrowedFd<'_>, kind: u32) -> io::Result<u32> {
    link_facts(link, kind).map(|facts| facts.ifindex)
}

fn info_of<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Info {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attr =
        Info { fd: object.as_raw_fd() as u32, len: size_of::<T>() as u32, info: info as *mut T as u64 };
    call(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct Program {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// Loads an XDP program from its instructions.
pub fn load_xdp(code: &[u64], name: &str) -> io::Result<OwnedFd> {
    let mut attr = Program {
        kind: PROG_TYPE_XDP,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        attach_type: ATTACH_TYPE_XDP,
        ..Program::default()
    };
    let len = name.len().min(15);
    attr.name[..len].copy_from_slice(&name.as_bytes()[..len]);
    call_for_fd(PROG_LOAD, &mut attr)
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}

/// Runs a program once on `frame` (at least 14 bytes), which it may change in place. Returns its result.
pub fn run(program: BorrowedFd<'_>, frame: &mut [u8]) -> io::Result<u32> {
    let mut attr = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        size_out: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: frame.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    call(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.result)
}
