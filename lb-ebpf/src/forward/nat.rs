//! NAT: towards the server the destination is rewritten, towards the client the source. A flow is two
//! entries: the client's, and the reply's, which also says how the client is reached.

use super::{Target, fits_mtu, may_serve};
use crate::{
    answer,
    connection::Hit,
    count,
    flow::{Step, place, turned, write_twin},
    load,
    maps::{CLIENT_NEIGHB, NEXT_HOPS},
    nexthop::{self, Hop},
    packet::{Packet, Words},
};
use lb_common::{
    address::Address,
    checksum,
    connection::HOP_ON_LINK,
    destination::{Destination, flags},
    filter::AddressKey,
    state::Direction,
    verdict::Reason,
};

/// The step of a client's packet, and the twin's.
#[inline(always)]
pub fn touch<const V6: bool>(packet: &Packet<V6>, hit: Hit, target: &Target, now: u16) {
    let step = Step::of(packet, Direction::Input, now);
    if let Some(new) = step.next(hit.value, target.timeout(), target.service()) {
        if hit.replace(new) {
            load::stepped(hit.value, new);
            let ports = reply_ports(packet.ports(), target);
            let reply = place::<V6>(target.address::<V6>(), packet.source(), ports, packet.protocol());
            write_twin::<V6>(&reply, new, now, target.index);
        }
    }
}

/// Ports of the reply to a client's packet with `ports`.
#[inline(always)]
pub fn reply_ports(ports: u32, target: &Target) -> u32 {
    turned(server_ports(ports, target))
}

/// Ports of a client's packet as the server sees it.
#[inline(always)]
pub fn server_ports(ports: u32, target: &Target) -> u32 {
    if target.port() == 0 { ports } else { ports & 0xffff | (target.port() as u32) << 16 }
}

#[inline(always)]
pub fn send<const V6: bool>(packet: &Packet<V6>, target: &Target) -> Result<u32, Reason> {
    let (hop, _) = target.hop()?;
    let delta = target.delta() as u64;
    packet.set_destination(target.address::<V6>());
    packet.decrement_ttl_with(delta);
    let ports = packet.ports();
    packet.set_ports(ports, server_ports(ports, target), delta);
    let action = nexthop::send::<V6>(packet.frame, packet.l3, hop)?;
    count::forwarded(target.index, packet.bytes, false);
    Ok(action)
}

/// A reply of a known flow.
#[inline(always)]
pub fn to_client<const V6: bool>(
    packet: &Packet<V6>,
    hit: Hit,
    target: Target,
    now: u16,
) -> Result<u32, Reason> {
    may_serve(Destination::vrrp_of(target.flags()))?;
    if target.flags() & flags::RESET != 0 && !packet.udp {
        return Err(answer::reset(packet, Reason::FlowReset));
    }
    let (hop, mtu) = client_hop::<V6>(hit.value.hop(), packet.destination())?;
    fits_mtu(packet, mtu, &target)?;
    let ports = packet.ports();
    let client_ports =
        if target.vip_port() == 0 { ports } else { ports & 0xffff_0000 | target.vip_port() as u32 };
    let step = Step::of(packet, Direction::Output, now);
    if let Some(new) = step.next(hit.value, target.timeout(), target.service()) {
        if hit.replace(new) {
            let flow = place::<V6>(
                packet.destination(),
                target.vip::<V6>(),
                turned(client_ports),
                packet.protocol(),
            );
            write_twin::<V6>(&flow, new, now, target.index);
        }
    }
    let delta = back(target.delta());
    packet.set_source(target.vip::<V6>());
    packet.decrement_ttl_with(delta);
    packet.set_ports(ports, client_ports, delta);
    let action = nexthop::send::<V6>(packet.frame, packet.l3, hop)?;
    count::forwarded(target.index, packet.bytes, true);
    Ok(action)
}

/// How a client is reached: the gateway of its route, or as it was last seen on its segment. With the MTU.
#[inline(always)]
pub fn client_hop<const V6: bool>(hop: u8, client: Words) -> Result<(Hop, u32), Reason> {
    if hop == HOP_ON_LINK {
        let key = AddressKey { address: address(client), family: if V6 { 6 } else { 4 } };
        let neighbour = CLIENT_NEIGHB.get_ptr(key).ok_or(Reason::NoClientHop)?;
        // SAFETY: an element of a hash map, at worst recycled for another client on this segment while we read it.
        let hop = unsafe {
            Hop {
                destination: (*neighbour).destination,
                source: (*neighbour).source,
                ifindex: (*neighbour).ifindex,
            }
        };
        return Ok((hop, 0xffff));
    }
    let record = NEXT_HOPS.get_ptr(hop as u32).ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    let mtu = unsafe { core::ptr::read_volatile(&raw const (*record).mtu) };
    Ok((Hop::of(record).ok_or(Reason::NoClientHop)?, mtu))
}

/// The address of words.
#[inline(always)]
pub fn address(words: Words) -> Address {
    Address::from_words([words[0] as u32, (words[0] >> 32) as u32, words[1] as u32, (words[1] >> 32) as u32])
}

/// The one's complement difference as a sum's piece, for the way back.
#[inline(always)]
pub fn back(delta: u32) -> u64 {
    checksum::add(0, (!delta as u16) as u32)
}
