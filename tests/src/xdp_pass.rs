//! A program of two instructions that returns XDP_PASS, attached to an interface.
//!
//! A veth frame sent by XDP_TX or a redirect arrives only if the receiving end has an XDP program too (or its
//! GRO on, but then nobody polls it, seen on 6.18). So each veth end that faces an XDP interface carries this
//! one. It speaks bpf(2) itself, so that the laboratory does not lean on the loader it is to test.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::namespace::Namespace;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// `r0 = XDP_PASS; exit`, each instruction as struct bpf_insn: opcode, registers, offset, immediate.
const PROGRAM: [u64; 2] = [0xb7 | 2 << 32, 0x95];

/// The attachment; it ends when this is dropped.
pub struct XdpPass {
    _link: OwnedFd,
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The head of `union bpf_attr` for BPF_LINK_CREATE (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Attach {
    program: u32,
    interface_index: u32,
    attach_type: u32,
    flags: u32,
}

impl XdpPass {
    /// Attaches to `interface` of `namespace` in native mode. Panics with the kernel's reason.
    #[track_caller]
    pub fn attach(namespace: &Namespace, interface: &str) -> XdpPass {
        XdpPass::attach_for(namespace, interface, false)
    }

    /// As [`XdpPass::attach`]; `jumbo`: for frames larger than a page, as an MTU above some 3,500 bytes needs.
    #[track_caller]
    pub fn attach_for(namespace: &Namespace, interface: &str, jumbo: bool) -> XdpPass {
        namespace
            .run(|| attach_here(interface, jumbo))
            .unwrap_or_else(|error| panic!("attach XDP_PASS to {interface} in {}: {error}", namespace.name()))
    }
}

/// Attaches to an interface of the calling thread's namespace.
fn attach_here(interface: &str, jumbo: bool) -> io::Result<XdpPass> {
    let name = CString::new(interface)?;
    // SAFETY: the name is a C string that lives through the call.
    let interface_index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if interface_index == 0 {
        return Err(io::Error::last_os_error());
    }
    let license = c"Dual MIT/GPL";
    let mut program_name = [0; 16];
    program_name[..8].copy_from_slice(b"lbt_pass");
    let load = Load {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: PROGRAM.len() as u32,
        instructions: PROGRAM.as_ptr() as u64,
        license: license.as_ptr() as u64,
        flags: if jumbo { BPF_F_XDP_HAS_FRAGS } else { 0 },
        name: program_name,
        ..Load::default()
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let attach = Attach {
        program: program.as_raw_fd() as u32,
        interface_index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    // The link holds the program, so the program's own handle may go.
    Ok(XdpPass { _link: bpf(BPF_LINK_CREATE, &attach)? })
}

/// Calls bpf(2) for a command that answers with a file descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is a prefix of union bpf_attr of the stated size, which the kernel fills up with
    // zeros, and the memory it points to lives in the caller through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const T, size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands answer with a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
