//! Answers given from XDP: ICMP errors and resets. They run in tails; here is what a caller asks for, and the
//! limiter that all share.

use crate::{
    maps::{LIMITER, config},
    packet::{Packet, Words, store8, store16, store32, store64},
    tail,
};
use lb_common::{
    checksum,
    header::{ETHERNET, IPV4},
    maps::programs,
    verdict::Reason,
};

/// ICMP type and code as the scratch record holds them.
pub const fn icmp(kind: u8, code: u8) -> u16 {
    kind as u16 | (code as u16) << 8
}

/// The sender shall learn that only `mtu` bytes fit: ICMP fragmentation needed (RFC 1191) or packet too big
/// (RFC 4443). Returns only when the tail could not be called.
#[inline(always)]
pub fn too_big<const V6: bool>(packet: &Packet<V6>, mtu: u32, source: Words) -> Reason {
    let icmp = if V6 { icmp(2, 0) } else { icmp(3, 4) };
    ask(packet, icmp, mtu, source, Reason::PacketTooBig, Reason::TooBigLimited)
}

/// The sender shall learn that the packet's hops are used up (RFC 792, RFC 4443).
#[inline(always)]
pub fn time_exceeded<const V6: bool>(packet: &Packet<V6>, source: Words) -> Reason {
    let icmp = if V6 { icmp(3, 0) } else { icmp(11, 0) };
    ask(packet, icmp, 0, source, Reason::TimeExceeded, Reason::TtlExpired)
}

/// The sender shall learn that nobody serves this (RFC 792, RFC 4443: port unreachable).
#[inline(always)]
pub fn unreachable<const V6: bool>(packet: &Packet<V6>, source: Words) -> Reason {
    ask(
        packet,
        if V6 { icmp(1, 4) } else { icmp(3, 3) },
        0,
        source,
        Reason::NoServerUnreachable,
        Reason::NoServer,
    )
}

/// The sender is answered with RST (SCTP: ABORT), counted as `reason`.
#[inline(always)]
pub fn reset<const V6: bool>(packet: &Packet<V6>, reason: Reason) -> Reason {
    if let Some(scratch) = tail::scratch() {
        scratch.answer = reason as u32;
    }
    tail::call_with(packet, if packet.sctp { programs::ABORT } else { programs::RESET })
}

#[inline(always)]
fn ask<const V6: bool>(
    packet: &Packet<V6>,
    icmp: u16,
    mtu: u32,
    source: Words,
    answer: Reason,
    limited: Reason,
) -> Reason {
    if let Some(scratch) = tail::scratch() {
        scratch.icmp = icmp;
        scratch.mtu = mtu;
        scratch.answer = answer as u32;
        scratch.limited = limited as u32;
        scratch.source = source;
        scratch.bytes = 0;
    }
    tail::call_with(packet, programs::ICMP)
}

/// TTL and hop limit of answers.
const TTL: u8 = 64;

/// Writes the IP header of an answer behind an untagged Ethernet header at `new`. `fragment` is IPv4's word of
/// flags and offset, network order; `payload` the bytes behind the header.
#[inline(always)]
pub fn write_ip<const V6: bool>(
    new: *mut u8,
    from: Words,
    to: Words,
    next: u8,
    payload: usize,
    fragment: u16,
) {
    if V6 {
        store32(new, ETHERNET, (6u32 << 28).to_be());
        store16(new, ETHERNET + 4, (payload as u16).to_be());
        store8(new, ETHERNET + 6, next);
        store8(new, ETHERNET + 7, TTL);
        store64(new, ETHERNET + 8, from[0]);
        store64(new, ETHERNET + 16, from[1]);
        store64(new, ETHERNET + 24, to[0]);
        store64(new, ETHERNET + 32, to[1]);
        return;
    }
    let first = 0x4500_u16.to_be();
    let len = ((IPV4 + payload) as u16).to_be();
    let ttl = u16::from_ne_bytes([TTL, next]);
    let mut sum = first as u64 + len as u64 + fragment as u64 + ttl as u64;
    sum = checksum::add(checksum::add(sum, from[0] as u32), to[0] as u32);
    store16(new, ETHERNET, first);
    store16(new, ETHERNET + 2, len);
    store16(new, ETHERNET + 4, 0);
    store16(new, ETHERNET + 6, fragment);
    store16(new, ETHERNET + 8, ttl);
    store16(new, ETHERNET + 10, !checksum::fold(sum));
    store32(new, ETHERNET + 12, from[0] as u32);
    store32(new, ETHERNET + 16, to[0] as u32);
}

/// Whether this CPU may give one more answer in this second.
#[inline(always)]
pub fn allowed() -> bool {
    let Some(limiter) = LIMITER.get_ptr_mut(0) else { return false };
    // SAFETY: reads one word.
    let now = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
    // SAFETY: a per-CPU value; XDP programs do not interrupt each other on a CPU.
    unsafe {
        if now.wrapping_sub((*limiter).since) >= config!(hz) as u64 {
            (*limiter).since = now;
            (*limiter).left = config!(answers_per_second) as u64;
        }
        if (*limiter).left == 0 {
            return false;
        }
        (*limiter).left -= 1;
    }
    true
}
