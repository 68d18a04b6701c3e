//! Reads TOA on a real server, without a kernel module: where a connection is made the option of the segment that completes
//! its handshake is kept with the socket, and who asks for the peer's address (`getpeername`, and `accept`, which asks the
//! same way: `__sys_accept4` calls `inet_getname` with a peer of 2) is told the client's.
//!
//! Nothing has to be set on a listener, so those that were there before are served as well:
//! `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB` comes without any flag, with the segment at hand (Linux 5.10,
//! `bpf_skops_established`). `bpf_load_hdr_opt` does not find it: for kind 254 it wants an identifier (RFC 6994), where
//! this option has the port. So the header is walked here.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, bpf_sock_addr, bpf_sock_ops,
    },
    btf_maps::{LpmTrie, PerCpuArray, SkStorage, lpm_trie::Key},
    helpers::generated::bpf_sk_storage_get,
    macros::{btf_map, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use lb_common::toa::{
    self,
    reader::{Client, Found},
};

#[btf_map]
static SOURCES4: LpmTrie<[u8; 4], u32, 1024> = LpmTrie::new();

#[btf_map]
static SOURCES6: LpmTrie<[u8; 16], u32, 1024> = LpmTrie::new();

#[btf_map]
static CLIENTS: SkStorage<Client> = SkStorage::new();

#[btf_map]
static FOUND: PerCpuArray<u64, { Found::ALL.len() }> = PerCpuArray::new();

const AF_INET: u32 = 2;
/// The third word of an IPv4 address as IPv6 maps it.
const MAPPED: u32 = 0xffff_u32.to_be();
/// Bytes of a TCP header without options.
const HEADER: usize = 20;
const END: u8 = 0;
const NOP: u8 = 1;
/// Go on, or permit: what the kernel wants to hear from all three.
const ON: u32 = 1;

/// One word of a context: each is looked at by itself, since the verifier takes no wider accesses.
macro_rules! word {
    ($context:expr, $($field:tt)+) => {
        // SAFETY: a field of the kernel's context.
        unsafe { core::ptr::read_volatile(&raw const (*$context).$($field)+) }
    };
}

/// A connection is made, among other things that happen to sockets.
#[sock_ops]
pub fn toa_established(ctx: SockOpsContext) -> u32 {
    if word!(ctx.ops, op) == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        let believed = is_believed(ctx.ops);
        let found = match (option(ctx.ops), believed) {
            (Some(client), true) => keep(ctx.ops, &client),
            (Some(_), false) => Some(Found::Stranger),
            (None, true) => Some(Found::Untold),
            (None, false) => None,
        };
        if let Some(found) = found {
            count(found);
        }
    }
    ON
}

#[cgroup_sock_addr(getpeername4)]
pub fn toa_peer4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context's socket; the storage is the socket's own.
    let client = unsafe { CLIENTS.get_ptr_mut(&ctx) };
    if !client.is_null() {
        let to: *mut bpf_sock_addr = ctx.sock_addr;
        // SAFETY: as above; fields of the kernel's context, each written by itself.
        unsafe {
            if (*client).family == 4 {
                core::ptr::write_volatile(&raw mut (*to).user_ip4, (*client).address[3]);
                core::ptr::write_volatile(&raw mut (*to).user_port, (*client).port);
            }
        }
    }
    ON as i32
}

#[cgroup_sock_addr(getpeername6)]
pub fn toa_peer6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as in `toa_peer4`.
    let client = unsafe { CLIENTS.get_ptr_mut(&ctx) };
    if !client.is_null() {
        let to: *mut bpf_sock_addr = ctx.sock_addr;
        // SAFETY: as in `toa_peer4`.
        unsafe {
            core::ptr::write_volatile(&raw mut (*to).user_ip6[0], (*client).address[0]);
            core::ptr::write_volatile(&raw mut (*to).user_ip6[1], (*client).address[1]);
            core::ptr::write_volatile(&raw mut (*to).user_ip6[2], (*client).address[2]);
            core::ptr::write_volatile(&raw mut (*to).user_ip6[3], (*client).address[3]);
            core::ptr::write_volatile(&raw mut (*to).user_port, (*client).port);
        }
    }
    ON as i32
}

/// Whether the packets of this connection come from where the option is believed.
#[inline(always)]
fn is_believed(ops: *mut bpf_sock_ops) -> bool {
    if word!(ops, family) == AF_INET {
        return is_source4(word!(ops, remote_ip4));
    }
    let address = [
        word!(ops, remote_ip6[0]),
        word!(ops, remote_ip6[1]),
        word!(ops, remote_ip6[2]),
        word!(ops, remote_ip6[3]),
    ];
    if address[0] | address[1] == 0 && address[2] == MAPPED {
        return is_source4(address[3]);
    }
    // SAFETY: the same bytes.
    let bytes: [u8; 16] = unsafe { core::mem::transmute(address) };
    SOURCES6.get(&Key::new(128, bytes)).is_some()
}

#[inline(always)]
fn is_source4(address: u32) -> bool {
    SOURCES4.get(&Key::new(32, address.to_ne_bytes())).is_some()
}

/// The option in the segment at hand.
#[inline(always)]
fn option(ops: *mut bpf_sock_ops) -> Option<Client> {
    // SAFETY: the kernel's context; these two are rewritten to pointers by the verifier.
    let (data, end) =
        unsafe { ((*ops).__bindgen_anon_3.skb_data as usize, (*ops).__bindgen_anon_4.skb_data_end as usize) };
    let mut at = HEADER;
    for _ in 0..toa::HEADER_MAX as usize - HEADER {
        // One way for the verifier, whatever was walked.
        at = opaque(at) & 0x3f;
        let option = opaque(data + at);
        if option + 1 > end {
            return None;
        }
        // SAFETY: each read lies before the end, which the verifier sees.
        let kind = unsafe { *(option as *const u8) };
        if kind == END {
            return None;
        }
        if kind == NOP {
            at += 1;
            continue;
        }
        if option + 2 > end {
            return None;
        }
        // SAFETY: as above.
        let len = unsafe { *((option + 1) as *const u8) };
        if kind == toa::KIND && len == toa::LEN_V4 {
            if option + toa::LEN_V4 as usize > end {
                return None;
            }
            // SAFETY: as above.
            let address = [0, 0, MAPPED, unsafe { word_at(option, 4) }];
            return Some(Client { address, port: unsafe { port_at(option) }, family: 4 });
        }
        if kind == toa::KIND && len == toa::LEN_V6 {
            if option + toa::LEN_V6 as usize > end {
                return None;
            }
            // SAFETY: as above.
            let address =
                unsafe { [word_at(option, 4), word_at(option, 8), word_at(option, 12), word_at(option, 16)] };
            // SAFETY: as above.
            return Some(Client { address, port: unsafe { port_at(option) }, family: 6 });
        }
        if len < 2 {
            return None;
        }
        at += len as usize;
    }
    None
}

/// # Safety
/// The bytes lie before the end.
#[inline(always)]
unsafe fn word_at(option: usize, at: usize) -> u32 {
    // SAFETY: the caller's.
    unsafe { core::ptr::read_unaligned((option + at) as *const u32) }
}

/// # Safety
/// As [`word_at`].
#[inline(always)]
unsafe fn port_at(option: usize) -> u32 {
    // SAFETY: the caller's.
    u32::from(unsafe { core::ptr::read_unaligned((option + 2) as *const u16) })
}

/// Keeps it with the socket, as long as that lives.
#[inline(always)]
fn keep(ops: *mut bpf_sock_ops, client: &Client) -> Option<Found> {
    // SAFETY: the kernel's context.
    let socket = unsafe { (*ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    let map = (&raw const CLIENTS).cast_mut().cast();
    // SAFETY: the map, a socket that is there, and a value of the map's kind.
    let kept = unsafe {
        bpf_sk_storage_get(
            map,
            socket.cast(),
            core::ptr::from_ref(client).cast_mut().cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    };
    // Without memory for it the connection is one whose client is not known.
    Some(if kept.is_null() { Found::Untold } else { Found::Told })
}

#[inline(always)]
fn count(found: Found) {
    if let Some(count) = FOUND.get_ptr_mut(found as u32) {
        // SAFETY: this CPU's own slot; a count that is lost to an interrupt is only a count.
        unsafe { *count += 1 };
    }
}

/// The same number, unknown to the compiler.
#[inline(always)]
fn opaque(mut number: usize) -> usize {
    // SAFETY: a register is moved to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

/// "Dual MIT/GPL": some helpers are only lent to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
