//! The tail for tunnels other than plain IPIP: GUE (draft-ietf-intarea-gue-09), GRE (RFC 2784, RFC 2890), and IPIP whose
//! source varies. Something outside is the flow's own, so that a receiver's queues and the paths between share the
//! load: GUE's source port (section 5.11 there; RFC 8085, section 3.1.1), GRE's key, or the source address. The outer
//! IP header is made as for IPIP.

use crate::{
    count,
    forward::{
        Target,
        tun::{self, Inner},
    },
    maps::{self, config, config_ref, keys},
    nexthop::{self, Hop},
    packet::{Frame, Packet, Words, opaque, store16, store32, words},
    tail,
};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use lb_common::{
    destination::{NextHop, encapsulation, flags},
    header::{ETHERNET, IPV4, IPV6, ethertype, gre, gue, protocol},
    maps::programs,
    verdict::Reason,
};

/// For callers that count nothing but the packet.
pub const NO_EVENT: u32 = 0;
/// In [`lb_common::scratch::Scratch::after`]: the packet goes to the kernel.
const BY_KERNEL: u32 = 1 << 31;

/// Hands a packet that fits and may live on to the tail. Returns only when that could not be called.
#[inline(always)]
pub fn call<const V6: bool>(packet: &Packet<V6>, target: &Target, ports: u32, event: u32) -> Reason {
    let Some(scratch) = tail::scratch() else { return Reason::Internal };
    scratch.l3 = packet.l3 as u16;
    scratch.family = if V6 { 6 } else { 4 };
    scratch.target = target.index;
    scratch.ports = ports;
    scratch.after = event | if target.flags() & flags::BY_KERNEL != 0 { BY_KERNEL } else { 0 };
    tail::call(&packet.frame, programs::TUNNEL)
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let l3 = scratch.l3 as usize & 0x1f;
    let (index, event) = (scratch.target, scratch.after & !BY_KERNEL);
    let by_kernel = scratch.after & BY_KERNEL != 0;
    let bytes = frame.len();
    let sent = if scratch.family == 6 {
        wrap::<true>(frame, l3, (index, false), scratch.ports)
    } else {
        wrap::<false>(frame, l3, (index, by_kernel), scratch.ports)
    };
    // A probe is no packet of the service's.
    if event == Reason::ProbeSent as u32 {
        count::event(if sent.is_ok() { Reason::ProbeSent } else { Reason::ProbeLost });
        return Ok(sent.unwrap_or(aya_ebpf::bindings::xdp_action::XDP_DROP));
    }
    let action = sent?;
    count::forwarded(index, bytes, false);
    if by_kernel {
        count::event(Reason::TunnelFragmented);
    }
    if event != NO_EVENT {
        count::event_number(event);
    }
    Ok(action)
}

#[inline(always)]
fn wrap<const V6: bool>(
    frame: Frame,
    l3: usize,
    (index, by_kernel): (u32, bool),
    ports: u32,
) -> Result<u32, Reason> {
    let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
    let bytes = frame.len();
    let packet = Packet::<V6> { frame, l3, l4: l3, ip, transport: ip, udp: false, sctp: false, bytes };
    let target = Target::of(index).ok_or(Reason::Internal)?;
    let (mut hop, record) = target.hop()?;
    if by_kernel {
        // A destination that another CPU chose meanwhile may lie behind IPv6.
        if target.flags() & flags::REAL_V6 != 0 {
            return Err(Reason::TooBig);
        }
        hop = nexthop::here(&frame, l3).ok_or(Reason::Internal)?;
    }
    packet.decrement_ttl();
    let entropy = entropy(packet.source(), packet.destination(), ports);
    let inner = Inner::of(&packet);
    if target.flags() & flags::REAL_V6 != 0 {
        around_v6(frame, l3, &target, inner, (hop, record), entropy)
    } else {
        around_v4(frame, l3, &target, inner, (hop, record), entropy, by_kernel)
    }
}

/// A number of the flow's own. Keyed, so that nobody can choose flows that meet at one queue.
#[inline(always)]
fn entropy(source: Words, destination: Words, ports: u32) -> u32 {
    let mixed = source[0]
        ^ source[1].rotate_left(29)
        ^ destination[0].rotate_left(13)
        ^ destination[1].rotate_left(47);
    (keys().first(mixed ^ (ports as u64) << 32) >> 32) as u32
}

#[inline(always)]
fn around_v4(
    frame: Frame,
    l3: usize,
    target: &Target,
    mut inner: Inner,
    (hop, record): (Hop, *const NextHop),
    entropy: u32,
    by_kernel: bool,
) -> Result<u32, Reason> {
    // SAFETY: projection inside a map value.
    let mut source = unsafe { core::ptr::read_volatile(&raw const (*record).source_v4) };
    if target.flags() & (flags::GUE | flags::GRE | flags::SPREAD) == flags::SPREAD {
        source = config!(sources_v4) | entropy.to_be() & config!(varies_v4);
    }
    let frame = make_room(frame, l3, IPV4, target.flags(), ethertype::IPV4)?;
    let ip = frame.at(ETHERNET, IPV4 + gue::LENGTH).ok_or(Reason::Internal)?;
    between(ip, IPV4, target, &mut inner, entropy);
    tun::outer_v4(ip, &inner, source, target.address::<false>()[0] as u32);
    if by_kernel {
        return nexthop::pass::<false>(frame, ETHERNET, hop);
    }
    nexthop::send::<false>(frame, ETHERNET, hop)
}

#[inline(always)]
fn around_v6(
    frame: Frame,
    l3: usize,
    target: &Target,
    mut inner: Inner,
    (hop, record): (Hop, *const NextHop),
    entropy: u32,
) -> Result<u32, Reason> {
    // SAFETY: projection inside a map value.
    let mut source = words::<true>(unsafe { &raw const (*record).source_v6 });
    if target.flags() & (flags::GUE | flags::GRE | flags::SPREAD) == flags::SPREAD {
        let prefix = maps::read_words(&raw const config_ref().sources_v6);
        let varies = maps::read_words(&raw const config_ref().varies_v6);
        let own = (entropy as u64) << 32 | entropy as u64;
        source = [prefix[0] | own & varies[0], prefix[1] | own & varies[1]];
    }
    let frame = make_room(frame, l3, IPV6, target.flags(), ethertype::IPV6)?;
    let ip = frame.at(ETHERNET, IPV6 + gue::LENGTH).ok_or(Reason::Internal)?;
    between(ip, IPV6, target, &mut inner, entropy);
    tun::outer_v6(ip, &inner, source, target.address::<true>());
    nexthop::send::<true>(frame, ETHERNET, hop)
}

/// Room for an untagged Ethernet header and the outer headers before the packet at `l3`.
#[inline(always)]
fn make_room(frame: Frame, l3: usize, header: usize, flags: u32, kind: u16) -> Result<Frame, Reason> {
    let between = opaque(encapsulation(flags) as u64) as i32;
    // SAFETY: the kernel's helper; pointers are taken anew below.
    if unsafe { bpf_xdp_adjust_head(frame.ctx, l3 as i32 - (ETHERNET + header) as i32 - between) } != 0 {
        return Err(Reason::NoRoomInFrame);
    }
    let frame = Frame::new(frame.ctx);
    store16(frame.at(0, ETHERNET).ok_or(Reason::Internal)?, 12, kind.to_be());
    Ok(frame)
}

/// Writes what stands between the outer IP header and the packet, and what the outer header says of it. The packet has
/// twenty bytes at least, so the longest of these headers lies in the frame whatever the tunnel.
#[inline(always)]
fn between(ip: *mut u8, at: usize, target: &Target, inner: &mut Inner, entropy: u32) {
    let flags = target.flags();
    let packet = inner.protocol;
    if flags & flags::GUE != 0 {
        inner.len += gue::LENGTH as u32;
        inner.protocol = protocol::UDP;
        let port = gue::FIRST_SOURCE_PORT | entropy as u16 & (gue::FIRST_SOURCE_PORT ^ 0xffff);
        store16(ip, at, port.to_be());
        store16(ip, at + 2, target.port());
        store16(ip, at + 4, (inner.len as u16).to_be());
        // None: allowed over IPv6 too, for tunnels (RFC 6935, RFC 6936), and the packet inside has its own.
        store16(ip, at + 6, 0);
        store32(ip, at + 8, u32::from_ne_bytes([0, packet, 0, 0]));
    } else if flags & flags::GRE != 0 {
        let kind = if packet == protocol::IPV6 { ethertype::IPV6 } else { ethertype::IPV4 };
        let keyed = flags & flags::SPREAD != 0;
        inner.len += encapsulation(flags) as u32;
        inner.protocol = protocol::GRE;
        store16(ip, at, if keyed { gre::KEY } else { 0 }.to_be());
        store16(ip, at + 2, kind.to_be());
        if keyed {
            store32(ip, at + 4, entropy.to_be());
        }
    }
}
