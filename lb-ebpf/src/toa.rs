//! TOA, for FULLNAT: the client's address as a TCP option ([`lb_common::toa`]) on each of its segments after the SYN, until
//! the server has shown by a segment of its own that its connection is established. So whichever segment completes the
//! handshake there carries it. From then on nothing is left to do, and the flow's packets go the straight line.
//!
//! The option is put in by a tail of its own, when the packet is ready to leave: before the other options, since one that
//! is behind an end-of-options would not be read. A packet that has no room for it goes without.

use crate::{
    count,
    extension::{Claimed, Shifts},
    forward::{Target, nat},
    packet::{Frame, Packet, Words, ip_len, load8, load16, load32, opaque, store8, store16, store32, words},
    tail,
};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use lb_common::{
    checksum,
    extension::duty,
    header::{ETHERNET, IPV4, IPV6, ethertype},
    maps::programs,
    scratch::FIRST_FRAGMENT,
    state::{FIN, RST, SYN},
    toa,
    verdict::Reason,
};

/// What a frame's headers up to the fixed part of TCP's may have.
const HEADERS: u32 = 256;

/// A new flow's record.
#[inline(always)]
pub fn begin<const V6: bool>(packet: &Packet<V6>, claimed: &Claimed) {
    // SAFETY: the record is ours until it is published.
    unsafe {
        core::ptr::write_volatile(&raw mut (*claimed.record).client_first, packet.sequence());
        crate::atomic::store(&raw mut (*claimed.record).duties, duty::TOA);
    }
}

/// What the server's MSS is lowered by, so that the client's segments fit with the option.
#[inline(always)]
pub fn mss_less<const V6: bool>(shifts: &Shifts) -> u32 {
    if shifts.duties & duty::TOA != 0 { toa::len(V6) as u32 } else { 0 }
}

/// Whether the option rides on this client's segment. Remembers for the tail what is rewritten until then.
#[inline(always)]
pub fn rides<const V6: bool>(packet: &Packet<V6>, target: &Target, duties: u64) -> bool {
    if duties & duty::TOA == 0 || packet.tcp_flags() & (SYN | RST) != 0 {
        return false;
    }
    let Some(scratch) = tail::scratch() else { return false };
    // The lengths of a packet in fragments are those of all of them.
    if scratch.l4 & FIRST_FRAGMENT != 0 {
        count::event(Reason::ToaUnsent);
        return false;
    }
    remember::<V6>(packet.source(), packet.ports());
    scratch.mtu = target.mtu();
    true
}

/// Whose address is told: the client's, with its port in the low half of `ports`.
#[inline(always)]
pub fn remember<const V6: bool>(client: Words, ports: u32) {
    if let Some(scratch) = tail::scratch() {
        scratch.client = nat::address(client);
        scratch.ports = ports;
    }
}

/// Hands a packet that is ready to leave, with `between` bytes of IP header, to the tail. Returns only when it could not
/// be called: then the packet goes without.
#[inline(always)]
pub fn call<const V6: bool>(frame: &Frame, between: usize, action: u32) -> u32 {
    if let Some(scratch) = tail::scratch() {
        scratch.l4 = between as u16;
        scratch.family = if V6 { 6 } else { 4 };
        scratch.room.action = action;
        tail::call(frame, programs::TOA);
    }
    action
}

/// Whether a server's packet shows that its connection is established: whatever completed the handshake has reached it. An
/// ACK of the SYN alone does not: Linux sends such for what it refuses before (RFC 5961, section 4).
#[inline(always)]
pub fn is_proof<const V6: bool>(packet: &Packet<V6>, shifts: &Shifts) -> bool {
    let flags = packet.tcp_flags();
    let headers = (packet.l4 - packet.l3) as u32 + packet.tcp_header() as u32;
    shifts.duties & duty::TOA != 0
        && flags & (SYN | RST) == 0
        && (flags & FIN != 0
            || packet.ip_len() > headers
            || packet.acknowledged() != shifts.client_first.wrapping_add(1))
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let action = scratch.room.action;
    let put = if scratch.family == 6 { put::<true>(frame) } else { put::<false>(frame) };
    count::event(if put? { Reason::ToaSent } else { Reason::ToaUnsent });
    Ok(action)
}

/// Puts the option in. False: there is no room, and nothing was changed. The frame grows at its beginning.
#[inline(always)]
// The comparisons stand as the verifier is to see them.
#[allow(clippy::manual_range_contains)]
fn put<const V6: bool>(frame: Frame) -> Result<bool, Reason> {
    let more = toa::len(V6) as u32;
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    let l3 = network(&frame).ok_or(Reason::Internal)?;
    let l4 = opaque((l3 + (scratch.l4 as usize & 0x7ff)) as u64) as usize & 0x7ff;
    let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
    let tcp = frame.at_dynamic(l4, 20).ok_or(Reason::Internal)?;
    let header = (load8(tcp, 12) >> 4) as u32 * 4;
    if header + more > toa::HEADER_MAX || ip_len::<V6>(ip) + more > scratch.mtu {
        return Ok(false);
    }
    let headers = opaque(l4 as u64 + 20) as u32;
    if headers > HEADERS || headers < 54 {
        return Ok(false);
    }
    // As in `proxy`: Linux 6.1 wants to see the bounds of what it calls a helper with.
    let headers = (opaque((headers - 54) as u64) as u32 & 0xff) + 54;
    let ctx = frame.ctx;
    let room = &raw mut scratch.room;
    // SAFETY: a per-CPU value; lengths are at most those of its fields.
    unsafe {
        let aside = (&raw mut (*room).headers).cast();
        let option = (&raw mut (*room).put).cast::<u8>();
        let client = words::<V6>(&raw const scratch.client);
        store32(option, 0, toa::first_word(V6, scratch.ports));
        for (at, word) in [client[0], client[0] >> 32, client[1], client[1] >> 32].into_iter().enumerate() {
            store32(option, 4 + at * 4, word as u32);
        }
        if bpf_xdp_load_bytes(ctx, 0, aside, headers) != 0 {
            return Err(Reason::Internal);
        }
        if bpf_xdp_adjust_head(ctx, -(more as i32)) != 0 {
            return Ok(false);
        }
        if bpf_xdp_store_bytes(ctx, 0, aside, headers) != 0
            || bpf_xdp_store_bytes(ctx, headers, option.cast(), more) != 0
        {
            return Err(Reason::Internal);
        }
        let frame = Frame::new(ctx);
        let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
        let tcp = frame.at_dynamic(l4, 20).ok_or(Reason::Internal)?;
        // What lengths and option do to the checksums.
        let longer = (more as u8 / 4) << 4;
        store8(tcp, 12, load8(tcp, 12).wrapping_add(longer));
        let length = (more as u16).to_be();
        let mut delta = length as u64 + longer as u64;
        for word in 0..more as usize / 4 {
            delta = checksum::add(delta, load32(option, word * 4));
        }
        store16(tcp, 16, checksum::update(load16(tcp, 16), delta));
        if V6 {
            store16(ip, 4, (u16::from_be(load16(ip, 4)) + more as u16).to_be());
        } else {
            store16(ip, 2, (u16::from_be(load16(ip, 2)) + more as u16).to_be());
            store16(ip, 10, checksum::update(load16(ip, 10), length as u64));
        }
    }
    Ok(true)
}

/// Where the IP header lies, behind the tags that the next hop has.
#[inline(always)]
fn network(frame: &Frame) -> Option<usize> {
    let ethernet = frame.at(0, ETHERNET + 4)?;
    let is_tag = |kind: u16| kind == ethertype::VLAN.to_be() || kind == ethertype::QINQ.to_be();
    let l3 = if !is_tag(load16(ethernet, 12)) {
        ETHERNET
    } else if !is_tag(load16(ethernet, 16)) {
        ETHERNET + 4
    } else {
        ETHERNET + 8
    };
    Some(opaque(l3 as u64) as usize & 0x1f)
}
