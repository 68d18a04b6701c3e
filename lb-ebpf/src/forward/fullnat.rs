//! FULLNAT: both addresses are rewritten. The server talks to a local address and port of ours, the lease,
//! whose line names the flow: a reply needs no hash.

use super::{Target, fits, fits_mtu, may_serve};
use crate::{
    answer, atomic,
    connection::{Hit, Place},
    count,
    flow::{Step, place, write_twin},
    forward::nat,
    load,
    maps::{LEASES, NEXT_HOPS, POOL},
    nexthop::{self, Hop},
    packet::{Packet, Words, sum, unsum, words},
    shifted, tail,
};
use lb_common::{
    connection::Value,
    destination::{Destination, flags},
    lease::{Lease, PoolAddress, lease_index},
    maps::programs,
    state::{Direction, State},
    verdict::Reason,
};

/// A lease's line with its word, read once.
#[derive(Clone, Copy)]
pub struct Leased {
    pub record: *mut Lease,
    pub word: Value,
}

impl Leased {
    /// A live lease.
    #[inline(always)]
    pub fn of(index: u32, now: u16) -> Option<Self> {
        let record = LEASES.get_ptr_mut(index)?;
        let word = Value(atomic::load(word_of(record)));
        if (word.state() + 1) & 15 > 1 && !word.is_expired(now) { Some(Self { record, word }) } else { None }
    }

    #[inline(always)]
    pub fn owner(&self) -> u64 {
        // SAFETY: a map value.
        atomic::load(unsafe { &raw const (*self.record).owner })
    }

    /// Its word, to be replaced if nobody else did.
    #[inline(always)]
    pub fn hit(&self) -> Hit {
        Hit { word: word_of(self.record), value: self.word }
    }

    /// Whether the line is still the one whose word was read first: call after reading its fields.
    #[inline(always)]
    pub fn is_unchanged(&self) -> bool {
        Value(atomic::load(word_of(self.record))).payload() == self.word.payload()
    }
}

/// The word of a lease.
#[inline(always)]
pub fn word_of(record: *mut Lease) -> *mut u64 {
    // SAFETY: projection inside a map value.
    unsafe { &raw mut (*record).word }
}

/// A packet of a known flow to the server. `NoLease`: a flow whose lease was lost, or whose server was removed
/// and that can move, is a new one. `ATTENTIVE`: nobody asked yet whether the server wants attention.
#[inline(always)]
pub fn to_server<const V6: bool, const ATTENTIVE: bool>(
    packet: &Packet<V6>,
    hit: Hit,
    place: &Place,
    now: u16,
) -> Result<u32, Reason> {
    let index = hit.value.lease();
    let Some(lease) = Leased::of(index, now) else { return Err(Reason::NoLease) };
    if lease.owner() != place.identity {
        return Err(Reason::NoLease);
    }
    let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
    if ATTENTIVE && target.wants_attention() {
        if crate::flow::leaves(&hit, target.flags(), packet.udp) {
            return Err(Reason::NoLease);
        }
        if target.is_over_rate() {
            return Err(Reason::PacketsLimited);
        }
        if target.is_control(crate::flow::turned(packet.ports())) {
            return Err(tail::call_with(packet, programs::FTP));
        }
    }
    may_serve(Destination::vrrp_of(target.flags()))?;
    fits(packet, &target)?;
    let step = Step::of(packet, Direction::Input, now);
    if let Some(new) = step.next(hit.value, target.timeout(), target.service()) {
        if hit.replace(new) {
            let twin = lease.hit();
            let word = twin.value.with(new.state(), new.deadline());
            if twin.replace(word) {
                load::stepped(twin.value, word);
            }
        }
    }
    send(packet, &target, index)
}

/// Rewrites a client's packet to go from the lease to the server, and sends it.
#[inline(always)]
pub fn send<const V6: bool>(packet: &Packet<V6>, target: &Target, lease: u32) -> Result<u32, Reason> {
    let (hop, _) = target.hop()?;
    let pool = POOL.get_ptr(lease >> 16).ok_or(Reason::Internal)?;
    let (local, local_sum) = pool_address::<V6>(pool);
    let delta = unsum::<V6>(packet.source(), target.delta() as u64 + local_sum as u64);
    packet.set_source(local);
    packet.set_destination(target.address::<V6>());
    packet.decrement_ttl_with(delta);
    let ports = packet.ports();
    let new = nat::server_ports(ports, target) & 0xffff_0000 | (lease as u16).to_be() as u32;
    packet.set_ports(ports, new, delta);
    let action = nexthop::send::<V6>(packet.frame, packet.l3, hop)?;
    count::forwarded(target.index, packet.bytes, false);
    Ok(action)
}

#[inline(always)]
pub fn pool_address<const V6: bool>(pool: *const PoolAddress) -> (Words, u32) {
    // SAFETY: a map value.
    unsafe { (words::<V6>(&raw const (*pool).address), core::ptr::read_volatile(&raw const (*pool).sum)) }
}

/// Whether the pool index is really this address.
#[inline(always)]
pub fn is_pool_address<const V6: bool>(index: u32, address: Words) -> bool {
    let Some(pool) = POOL.get_ptr(index) else { return false };
    // SAFETY: a map value.
    let family = unsafe { core::ptr::read_volatile(&raw const (*pool).family) };
    let (own, _) = pool_address::<V6>(pool);
    family == (if V6 { 6 } else { 4 }) && own[0] == address[0] && own[1] == address[1]
}

/// A packet to a pool address. `SHIFTED`: one of an extended flow whose numbers are the client's already, or need not
/// be; or of a control channel that was read.
#[inline(always)]
pub fn to_client<const V6: bool, const SHIFTED: bool>(
    packet: &Packet<V6>,
    pool: u32,
    now: u16,
) -> Result<u32, Reason> {
    let ports = packet.ports();
    let index = lease_index(pool, u16::from_be((ports >> 16) as u16));
    let Some(lease) = Leased::of(index, now) else { return Err(Reason::NoLease) };
    // A datagram to the port of such a flow is none of it.
    if !SHIFTED && !packet.udp && !packet.sctp && shifted::is_extended(lease.word) {
        return Err(shifted::call(packet, pool + 1));
    }
    let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    // SAFETY: a map value.
    let (client, client_ports, hop) = unsafe {
        (
            words::<V6>(&raw const (*lease.record).client),
            core::ptr::read_volatile(&raw const (*lease.record).ports),
            core::ptr::read_volatile(&raw const (*lease.record).hop),
        )
    };
    let (hop, mtu) = client_hop(lease.record, hop)?;
    // Everything of the line was read: had it been leased anew meanwhile, its word would tell.
    if !lease.is_unchanged() {
        return Err(Reason::NoLease);
    }
    let (server, source) = (target.address::<V6>(), packet.source());
    let expected = nat::server_ports(client_ports, &target) >> 16;
    let own = if packet.sctp { flags::SCTP } else { (packet.udp as u32) * flags::UDP };
    let same = target.flags() & (flags::UDP | flags::SCTP) == own;
    if server[0] != source[0] || server[1] != source[1] || ports & 0xffff != expected || !same {
        // A port that was announced to the server (FTP), whose own nobody knows yet.
        let announced = lease.word.state() == State::Listen as u8 && !packet.udp && !packet.sctp;
        return Err(if announced {
            tail::call_with(packet, programs::EXPECTED)
        } else {
            Reason::WrongServer
        });
    }
    fits_mtu(packet, mtu, &target)?;
    if target.flags() & flags::REPLY_ATTENTION != 0 && !packet.udp {
        if target.flags() & flags::RESET != 0 {
            return Err(answer::reset(packet, Reason::FlowReset));
        }
        if !SHIFTED && target.is_control(ports) {
            return Err(tail::call_with(packet, programs::FTP));
        }
    }
    let step = Step::of(packet, Direction::Output, now);
    if let Some(new) = step.next(lease.word, target.timeout(), target.service()) {
        if lease.hit().replace(new) {
            load::stepped(lease.word, new);
            let flow = place::<V6>(client, target.vip::<V6>(), client_ports, packet.protocol());
            write_twin::<V6>(&flow, new, now, index);
        }
    }
    let vip = target.vip::<V6>();
    let delta = unsum::<V6>(packet.destination(), nat::back(target.delta()));
    let delta = sum::<V6>(client, delta);
    packet.set_source(vip);
    packet.set_destination(client);
    packet.decrement_ttl_with(delta);
    packet.set_ports(ports, crate::flow::turned(client_ports), delta);
    let action = nexthop::send::<V6>(packet.frame, packet.l3, hop)?;
    count::forwarded(target.index, packet.bytes, true);
    Ok(action)
}

/// How the client of a lease is reached, with the MTU.
#[inline(always)]
pub fn client_hop(record: *mut Lease, index: u32) -> Result<(Hop, u32), Reason> {
    if index == 0 {
        // SAFETY: a map value.
        let hop = unsafe {
            Hop {
                destination: atomic::load(&raw const (*record).client_destination),
                source: atomic::load(&raw const (*record).client_source),
                ifindex: core::ptr::read_volatile(&raw const (*record).client_ifindex),
            }
        };
        return if hop.ifindex == 0 { Err(Reason::NoClientHop) } else { Ok((hop, 0xffff)) };
    }
    let record = NEXT_HOPS.get_ptr(index).ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    let mtu = unsafe { core::ptr::read_volatile(&raw const (*record).mtu) };
    Ok((Hop::of(record).ok_or(Reason::NoClientHop)?, mtu))
}
