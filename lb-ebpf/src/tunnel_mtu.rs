//! A router says that a tunnel packet of ours was too big for it. The path's MTU goes to the agent, which lowers the
//! real server's destinations; where the quote reaches the client's packet, the client is told at once, with room left
//! for the tunnel's header. RFC 1191 and RFC 8201 at the tunnel's entry (RFC 2003, section 5.1; RFC 2473, section 7.1).

use crate::{
    answer,
    forward::{may_serve, nat},
    host,
    maps::{CLIENT_NEIGHB, NEXT_HOPS, PATHS},
    new_flow,
    nexthop::Hop,
    packet::{Frame, Words, destination, load8, load16, load32, opaque, source},
    tail,
};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use lb_common::{
    destination::tunnel_overhead,
    filter::{AddressKey, role},
    header::{ETHERNET, ICMP, IPV4, IPV6, ethertype, gre, gue, icmp, icmpv6, protocol},
    maps::{ON_LINK, programs},
    verdict::Reason,
};

/// The least MTU that is believed: as Linux has it for IPv4 (`ip_rt_min_pmtu`), by RFC 8200, section 5, for IPv6.
const LEAST_V4: u32 = 552;
const LEAST_V6: u32 = 1280;
/// What a router means that does not say it (before RFC 1191).
const UNSAID: u32 = 576;

/// A *too big* that arrived at an address that is no VIP: `at` is its IP header and the offset of its ICMP header, `end`
/// where it ends. None: it is about no tunnel of ours.
#[inline(always)]
pub fn heard<const V6: bool>(frame: &Frame, at: (*mut u8, usize), end: usize) -> Option<Reason> {
    let (error, l4) = at;
    let outer = l4 + ICMP;
    let header = if V6 { IPV6 } else { IPV4 };
    // Padding is no quote.
    if outer + header > end {
        return None;
    }
    let ip = frame.at_dynamic(outer, header)?;
    let first = load8(ip, 0);
    if V6 && first & 0xf0 != 0x60 || !V6 && (first & 0xf0 != 0x40 || first & 0x0f < 5) {
        return None;
    }
    let inside = load8(ip, if V6 { 6 } else { 9 });
    if inside != protocol::IPIP
        && inside != protocol::IPV6
        && inside != protocol::UDP
        && inside != protocol::GRE
    {
        return None;
    }
    let (to, from) = (destination::<V6>(error), source::<V6>(ip));
    let server = destination::<V6>(ip);
    if to[0] != from[0] || to[1] != from[1] || host::record_of::<V6>(server).roles & role::TUNNEL == 0 {
        return None;
    }
    let inner = outer + if V6 { IPV6 } else { (first & 0x0f) as usize * 4 };
    // One way for the verifier, whatever the options.
    let inner = opaque(inner as u64) as usize & 0xff;
    if inside == protocol::UDP && !may_be_gue(frame, inner, end) {
        return None;
    }
    let header = frame.at_dynamic(l4, ICMP)?;
    let said = if V6 { u32::from_be(load32(header, 4)) } else { u16::from_be(load16(header, 6)) as u32 };
    let len = u16::from_be(load16(ip, if V6 { 4 } else { 2 })) as u32 + if V6 { IPV6 as u32 } else { 0 };
    let said = if said == 0 && !V6 { UNSAID } else { said };
    // What fitted is no reason to say so.
    if said >= len {
        return None;
    }
    let least = if V6 { LEAST_V6 } else { LEAST_V4 };
    let mtu = if said < least { least } else { said };
    let key = AddressKey { address: nat::address(server), family: if V6 { 6 } else { 4 } };
    if PATHS.insert(key, mtu, 0).is_err() {
        return Some(Reason::TunnelMtu);
    }
    let Some((between, family)) = between(frame, inner, end, inside) else { return Some(Reason::TunnelMtu) };
    let inner = opaque((inner + between) as u64) as usize & 0x1ff;
    let mtu = mtu - tunnel_overhead(V6) as u32 - between as u32;
    let told = if family == protocol::IPV6 {
        tell::<true>(frame, inner, end, mtu)
    } else {
        tell::<false>(frame, inner, end, mtu)
    };
    Some(told.unwrap_or(Reason::TunnelMtu))
}

/// Whether a quoted UDP header is one of our tunnels': a server that tunnels lead to has other datagrams too, of NAT, of
/// clients that ask it directly, of this host. Our source ports are the upper ones, and GUE's header follows.
#[inline(always)]
fn may_be_gue(frame: &Frame, at: usize, end: usize) -> bool {
    if at + UDP > end {
        return false;
    }
    let Some(header) = frame.at_dynamic(at, UDP) else { return false };
    if u16::from_be(load16(header, 0)) < gue::FIRST_SOURCE_PORT {
        return false;
    }
    if at + gue::LENGTH > end {
        return true;
    }
    let Some(header) = frame.at_dynamic(at, gue::LENGTH) else { return false };
    let family = load8(header, 9);
    load8(header, 8) == 0 && load16(header, 10) == 0 && (family == protocol::IPIP || family == protocol::IPV6)
}

const UDP: usize = 8;

/// What stands at `at`, between the outer IP header and the client's packet: its length, and the packet's family as a
/// protocol. None where that is not quoted, or no tunnel header of ours: the path is the server's all the same.
#[inline(always)]
fn between(frame: &Frame, at: usize, end: usize, inside: u8) -> Option<(usize, u8)> {
    if inside == protocol::IPIP || inside == protocol::IPV6 {
        return Some((0, inside));
    }
    if at + gue::LENGTH > end {
        return None;
    }
    let header = frame.at_dynamic(at, gue::LENGTH)?;
    if inside == protocol::UDP {
        let family = load8(header, 9);
        let ours = load8(header, 8) == 0 && load16(header, 10) == 0;
        return if ours { Some((gue::LENGTH, family)) } else { None };
    }
    let keyed = match u16::from_be(load16(header, 0)) {
        0 => false,
        gre::KEY => true,
        _ => return None,
    };
    let family = match u16::from_be(load16(header, 2)) {
        ethertype::IPV4 => protocol::IPIP,
        ethertype::IPV6 => protocol::IPV6,
        _ => return None,
    };
    Some((if keyed { 8 } else { 4 }, family))
}

/// Tells the client whose packet lies at `inner`. None where that cannot be: he learns it from his next packet, when the
/// agent has lowered the destination.
#[inline(always)]
fn tell<const V6: bool>(frame: &Frame, inner: usize, end: usize, mtu: u32) -> Option<Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    // Eight bytes of the transport: what the client knows its packet by (RFC 792).
    if inner + header + 8 > end {
        return None;
    }
    let ip = frame.at_dynamic(inner, header)?;
    if load8(ip, 0) >> 4 != if V6 { 6 } else { 4 } {
        return None;
    }
    // Only who forbade to fragment asks for this; a later fragment tells no port.
    if !V6 && (load16(ip, 6) & 0x4000_u16.to_be() == 0 || load16(ip, 6) & 0x1fff_u16.to_be() != 0) {
        return None;
    }
    let vip = destination::<V6>(ip);
    let record = host::record_of::<V6>(vip);
    if record.roles & role::VIP == 0 || may_serve(record.vrrp).is_err() {
        return None;
    }
    let hop = way_to::<V6>(source::<V6>(ip))?;
    if !answer::allowed() {
        return None;
    }
    let scratch = tail::scratch()?;
    scratch.icmp = if V6 {
        answer::icmp(icmpv6::PACKET_TOO_BIG, 0)
    } else {
        answer::icmp(icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED)
    };
    scratch.mtu = mtu;
    scratch.answer = Reason::TunnelMtuTold as u32;
    scratch.limited = Reason::TooBigLimited as u32;
    scratch.source = vip;
    scratch.client_destination = hop.destination;
    scratch.client_source = hop.source;
    scratch.client_ifindex = hop.ifindex;
    scratch.bytes = frame.len();
    scratch.l3 = ETHERNET as u16;
    scratch.l4 = (end - inner) as u16;
    scratch.family = if V6 { 6 } else { 4 };
    // The client's packet alone, as if it had just come.
    // SAFETY: the kernel's helper; the frame is not touched again here.
    if unsafe { bpf_xdp_adjust_head(frame.ctx, inner as i32 - ETHERNET as i32) } != 0 {
        return None;
    }
    Some(tail::call(&Frame::new(frame.ctx), programs::ICMP))
}

/// How a client is reached of whom no frame is at hand.
#[inline(always)]
fn way_to<const V6: bool>(client: Words) -> Option<Hop> {
    let route = new_flow::route_of::<V6>(client);
    if route != ON_LINK {
        return Hop::of(NEXT_HOPS.get_ptr(route)?);
    }
    let key = AddressKey { address: nat::address(client), family: if V6 { 6 } else { 4 } };
    let neighbour = CLIENT_NEIGHB.get_ptr(key)?;
    // SAFETY: an element of a hash map, at worst recycled for another client on this segment while we read it.
    Some(unsafe {
        Hop {
            destination: (*neighbour).destination,
            source: (*neighbour).source,
            ifindex: (*neighbour).ifindex,
        }
    })
}
