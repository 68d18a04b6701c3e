//! TUN: the packet goes inside another to the real server (RFC 2003, RFC 2473, RFC 4213; others in `tunnel.rs`). The outer header
//! has the inner TTL, type of service with its ECN bits (RFC 6040, normal mode) and DF.

use super::Target;
use crate::{
    count, nexthop,
    packet::{Frame, Packet, Words, load8, load16, load32, store8, store16, store32, store64, words},
    tunnel,
};
use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_xdp_adjust_head};
use lb_common::{
    checksum,
    destination::flags,
    header::{ETHERNET, IPV4, IPV6, protocol},
    verdict::Reason,
};

/// What the outer header takes from the inner one.
pub struct Inner {
    pub len: u32,
    ttl: u8,
    tos: u8,
    /// Flags and offset word of IPv4, network order: only DF.
    dont_fragment: u16,
    id: u16,
    pub protocol: u8,
    pub flow_label: u32,
}

impl Inner {
    #[inline(always)]
    pub fn of<const V6: bool>(packet: &Packet<V6>) -> Self {
        if V6 {
            let first = load32(packet.ip, 0);
            return Inner {
                len: packet.ip_len(),
                ttl: packet.ttl(),
                tos: (u32::from_be(first) >> 20) as u8,
                dont_fragment: u16::to_be(0x4000),
                id: 0,
                protocol: protocol::IPV6,
                flow_label: first & 0x000f_ffff_u32.to_be(),
            };
        }
        Inner {
            len: packet.ip_len(),
            ttl: packet.ttl(),
            tos: load8(packet.ip, 1),
            dont_fragment: load16(packet.ip, 6) & u16::to_be(0x4000),
            id: load16(packet.ip, 4),
            protocol: protocol::IPIP,
            flow_label: 0,
        }
    }
}

#[inline(always)]
pub fn send<const V6: bool>(packet: &Packet<V6>, target: &Target) -> Result<u32, Reason> {
    let action = encapsulate(packet, target, packet.ports(), tunnel::NO_EVENT)?;
    count::forwarded(target.index, packet.bytes, false);
    Ok(action)
}

/// As [`send`], not counted. `ports` are the flow's. A tunnel other than plain IPIP is the tail's, which counts the
/// packet and then `event`: what the caller counts itself when this returns.
#[inline(always)]
pub fn encapsulate<const V6: bool>(
    packet: &Packet<V6>,
    target: &Target,
    ports: u32,
    event: u32,
) -> Result<u32, Reason> {
    // Together, so that the common case tests them once.
    let in_v6 = if target.flags() & (flags::REAL_V6 | flags::WRAPPED) == 0 {
        false
    } else {
        if target.flags() & flags::WRAPPED != 0 {
            return Err(tunnel::call(packet, target, ports, event));
        }
        true
    };
    let (hop, record) = match target.hop() {
        Ok(found) => found,
        // This director is the real server.
        Err(_) if target.is_local() => return Ok(xdp_action::XDP_PASS),
        Err(reason) => return Err(reason),
    };
    packet.decrement_ttl();
    let inner = Inner::of(packet);
    if in_v6 {
        // SAFETY: projection inside a map value.
        let source = words::<true>(unsafe { &raw const (*record).source_v6 });
        let frame = make_room(packet, IPV6)?;
        let ip = frame.at(ETHERNET, IPV6).ok_or(Reason::Internal)?;
        outer_v6(ip, &inner, source, target.address::<true>());
        nexthop::send::<true>(frame, ETHERNET, hop)
    } else {
        // SAFETY: projection inside a map value.
        let source = unsafe { core::ptr::read_volatile(&raw const (*record).source_v4) };
        let frame = make_room(packet, IPV4)?;
        let ip = frame.at(ETHERNET, IPV4).ok_or(Reason::Internal)?;
        outer_v4(ip, &inner, source, target.address::<false>()[0] as u32);
        nexthop::send::<false>(frame, ETHERNET, hop)
    }
}

/// Moves the frame's head so that an untagged Ethernet header and the outer header end where the inner
/// packet begins. The Ethernet type is written here, the addresses by the next hop.
#[inline(always)]
fn make_room<const V6: bool>(packet: &Packet<V6>, header: usize) -> Result<Frame, Reason> {
    let delta = packet.l3 as i32 - (ETHERNET + header) as i32;
    // SAFETY: the kernel's helper; pointers are taken anew below.
    if unsafe { bpf_xdp_adjust_head(packet.frame.ctx, delta) } != 0 {
        return Err(Reason::NoRoomInFrame);
    }
    let frame = Frame::new(packet.frame.ctx);
    let ethernet = frame.at(0, ETHERNET).ok_or(Reason::Internal)?;
    let kind =
        if header == IPV6 { lb_common::header::ethertype::IPV6 } else { lb_common::header::ethertype::IPV4 };
    store16(ethernet, 12, kind.to_be());
    Ok(frame)
}

/// ECN at tunnel ingress (RFC 6040, section 4.1): the bits are copied.
#[inline(always)]
pub fn outer_v4(ip: *mut u8, inner: &Inner, source: u32, destination: u32) {
    let len = ((inner.len + IPV4 as u32) as u16).to_be();
    let first = u16::from_ne_bytes([0x45, inner.tos]);
    let ttl = u16::from_ne_bytes([inner.ttl, inner.protocol]);
    let mut sum = first as u64 + len as u64 + inner.id as u64 + inner.dont_fragment as u64 + ttl as u64;
    sum = checksum::add(checksum::add(sum, source), destination);
    store16(ip, 0, first);
    store16(ip, 2, len);
    store16(ip, 4, inner.id);
    store16(ip, 6, inner.dont_fragment);
    store16(ip, 8, ttl);
    store16(ip, 10, !checksum::fold(sum));
    store32(ip, 12, source);
    store32(ip, 16, destination);
}

#[inline(always)]
pub fn outer_v6(ip: *mut u8, inner: &Inner, source: Words, destination: Words) {
    store32(ip, 0, (6 << 28 | (inner.tos as u32) << 20).to_be() | inner.flow_label);
    store16(ip, 4, (inner.len as u16).to_be());
    store8(ip, 6, inner.protocol);
    store8(ip, 7, inner.ttl);
    store64(ip, 8, source[0]);
    store64(ip, 16, source[1]);
    store64(ip, 24, destination[0]);
    store64(ip, 32, destination[1]);
}
