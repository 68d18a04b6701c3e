//! The tail for TCP packets of flows with an extension record: sequence numbers, acknowledgements, selective ones and
//! timestamps are shifted between what the two ends count, what still rides on the client's first segments is put
//! in, and the packet goes its flow's way. Everything that may end the packet otherwise is asked before it is touched.

use crate::{
    answer,
    connection::{self, Hit, Place},
    cookie,
    extension::Held,
    flow::{self, turned},
    forward::{self, Target, fits_mtu, fullnat, may_serve, nat},
    options::{self, Change},
    packet::{Frame, Packet, ip_len, load16, load32, opaque, store16, store32, words},
    proxy, tail, toa,
};
use lb_common::{
    checksum,
    connection::{FLAG_EXTENSION, Kind, Value},
    destination::{Destination, flags},
    extension::duty,
    header::{IPV4, IPV6},
    lease::lease_index,
    maps::programs,
    state::{ACK, RST, SYN},
    verdict::Reason,
};

/// In the scratch record's `cell`, beside the number of the pool address plus one that the packet is to: whoever calls
/// has seen to what the server wants looked at.
const ATTENDED: u32 = 1 << 31;
/// In the same place: the packet is of a control channel of FTP, and was read.
const READ: u32 = 1 << 30;

/// Whether a flow's packets go this way.
#[inline(always)]
pub fn is_extended(value: lb_common::connection::Value) -> bool {
    value.flags() & FLAG_EXTENSION != 0
}

/// Hands a packet of an extended flow to the tail. `pool` is the number of the pool address that it is to, plus one.
#[inline(always)]
pub fn call<const V6: bool>(packet: &Packet<V6>, pool: u32) -> Reason {
    if let Some(scratch) = tail::scratch() {
        scratch.cell = pool;
    }
    tail::call_with(packet, programs::SHIFTED)
}

/// As [`call`], from where the server's wants were attended to.
#[inline(always)]
pub fn call_attended<const V6: bool>(packet: &Packet<V6>) -> Reason {
    call(packet, ATTENDED)
}

/// As [`call`], from where the packet of a control channel was read, whose headers the scratch record knows still. `longer`:
/// by how many bytes it became so, -128 to 127; counted is what came.
#[inline(always)]
pub fn call_read(frame: &Frame, pool: u32, longer: i32) -> Reason {
    if let Some(scratch) = tail::scratch() {
        scratch.cell = pool | (longer as u8 as u32) << 16 | ATTENDED | READ;
    }
    tail::call(frame, programs::SHIFTED)
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    let cell = scratch.cell;
    scratch.toa = 0;
    if scratch.family == 6 {
        arrived::<true>(frame, l3, l4, cell)
    } else {
        arrived::<false>(frame, l3, l4, cell)
    }
}

#[inline(always)]
fn arrived<const V6: bool>(frame: Frame, l3: usize, l4: usize, cell: u32) -> Result<u32, Reason> {
    let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
    let transport = frame.at_dynamic(l4, 20).ok_or(Reason::BadTransport)?;
    let bytes = frame.len().wrapping_sub((cell >> 16) as i8 as u32);
    let packet = Packet::<V6> { frame, l3, l4, ip, transport, udp: false, sctp: false, bytes };
    let len = ip_len::<V6>(ip);
    let header = packet.tcp_header() as u32;
    if len > frame.len() - l3 as u32 || header < 20 || len < (l4 - l3) as u32 + header {
        return Err(Reason::BadTransport);
    }
    let now = connection::now();
    let pool = cell & 0xffff;
    if pool != 0 {
        return from_leased(&packet, pool - 1, cell, now);
    }
    let place = flow::place::<V6>(packet.source(), packet.destination(), packet.ports(), packet.protocol());
    // It was there when the packet was handed over.
    let Some(hit) = connection::find_rarely(&place, now) else { return Err(tail::call_new(&packet)) };
    match hit.value.kind() {
        Kind::NatReply => from_server(&packet, hit, cell, now),
        Kind::FullNat => to_leased(&packet, hit, &place, cell, now),
        _ => to_server(&packet, hit, &place, cell, now),
    }
}

/// NAT, towards the server.
#[inline(always)]
fn to_server<const V6: bool>(
    packet: &Packet<V6>,
    hit: Hit,
    place: &Place,
    cell: u32,
    now: u16,
) -> Result<u32, Reason> {
    let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
    attend(packet, &hit, &target, cell)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    let held = Held::of(place.identity, now);
    let packet = from_client(packet, &target, held, place.identity)?;
    let action = forward::to_server(&packet, hit, place, target, now)?;
    follow(held, hit);
    Ok(action)
}

/// FULLNAT, towards the server.
#[inline(always)]
fn to_leased<const V6: bool>(
    packet: &Packet<V6>,
    hit: Hit,
    place: &Place,
    cell: u32,
    now: u16,
) -> Result<u32, Reason> {
    let lease = match fullnat::Leased::of(hit.value.lease(), now) {
        Some(lease) if lease.owner() == place.identity => lease,
        _ => return Err(tail::call_new(packet)),
    };
    let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
    attend(packet, &hit, &target, cell)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    let held = Held::of(place.identity, now);
    let packet = from_client(packet, &target, held, place.identity)?;
    let rides = toa::rides(&packet, &target, held.map_or(0, |held| held.duties()));
    let action = fullnat::to_server::<V6, false>(&packet, hit, place, now)?;
    settle(held, Some(hit), lease.hit(), now);
    if rides {
        return Ok(toa::call::<V6>(&packet.frame, packet.l4 - packet.l3, action));
    }
    Ok(action)
}

/// What the straight line asks before it forwards ([`crate::ingress::known`]).
#[inline(always)]
fn attend<const V6: bool>(packet: &Packet<V6>, hit: &Hit, target: &Target, cell: u32) -> Result<(), Reason> {
    if cell & ATTENDED == 0 && target.wants_attention() {
        if flow::leaves(hit, target.flags(), packet.udp) {
            return Err(tail::call_new(packet));
        }
        if target.is_over_rate() {
            return Err(Reason::PacketsLimited);
        }
    }
    unread(packet, target, turned(packet.ports()), cell)
}

/// What a control channel of FTP carries is read before its numbers are shifted: a command may be shifted by what is put
/// into it. `ports` are the packet's, the server's first.
#[inline(always)]
fn unread<const V6: bool>(packet: &Packet<V6>, target: &Target, ports: u32, cell: u32) -> Result<(), Reason> {
    if cell & READ == 0 && target.is_control(ports) {
        return Err(tail::call(&packet.frame, programs::FTP));
    }
    Ok(())
}

/// NAT, towards the client.
#[inline(always)]
fn from_server<const V6: bool>(packet: &Packet<V6>, hit: Hit, cell: u32, now: u16) -> Result<u32, Reason> {
    let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    unread(packet, &target, packet.ports(), cell)?;
    if target.flags() & flags::RESET != 0 {
        return nat::to_client(packet, hit, target, now);
    }
    let (_, mtu) = nat::client_hop::<V6>(hit.value.hop(), packet.destination())?;
    fits_mtu(packet, mtu, &target)?;
    let ports = packet.ports();
    let port = target.vip_port();
    let client_ports = turned(if port == 0 { ports } else { ports & 0xffff_0000 | port as u32 });
    let flow = flow::place::<V6>(packet.destination(), target.vip::<V6>(), client_ports, packet.protocol());
    let held = Held::of(flow.identity, now);
    towards_client(packet, &target, held, flow.identity)?;
    let action = nat::to_client(packet, hit, target, now)?;
    follow(held, hit);
    Ok(action)
}

/// FULLNAT, towards the client.
#[inline(always)]
fn from_leased<const V6: bool>(packet: &Packet<V6>, pool: u32, cell: u32, now: u16) -> Result<u32, Reason> {
    let index = lease_index(pool, u16::from_be((packet.ports() >> 16) as u16));
    let lease = fullnat::Leased::of(index, now).ok_or(Reason::NoLease)?;
    let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    let (server, source) = (target.address::<V6>(), packet.source());
    // SAFETY: a map value.
    let client_ports = unsafe { core::ptr::read_volatile(&raw const (*lease.record).ports) };
    // Of a stranger nothing is believed: what it acknowledges least of all.
    let stranger = server[0] != source[0]
        || server[1] != source[1]
        || packet.ports() & 0xffff != nat::server_ports(client_ports, &target) >> 16;
    if !is_extended(lease.word) || stranger || target.flags() & flags::RESET != 0 {
        return fullnat::to_client::<V6, true>(packet, pool, now);
    }
    unread(packet, &target, packet.ports(), cell)?;
    // SAFETY: a map value.
    let hop = unsafe { core::ptr::read_volatile(&raw const (*lease.record).hop) };
    let (_, mtu) = fullnat::client_hop(lease.record, hop)?;
    fits_mtu(packet, mtu, &target)?;
    let owner = lease.owner();
    let held = Held::of(owner, now);
    let proof = match held.and_then(|held| held.shifts(owner)) {
        Some(shifts) => toa::is_proof(packet, &shifts),
        None => false,
    };
    if packet.tcp_flags() & SYN != 0 {
        // Should the acknowledgement come from here, it says whose it is.
        // SAFETY: a map value; read whole, as its word is the same still (`to_client`).
        let (client, ports) = unsafe {
            (
                words::<V6>(&raw const (*lease.record).client),
                core::ptr::read_volatile(&raw const (*lease.record).ports),
            )
        };
        toa::remember::<V6>(client, ports);
    }
    towards_client(packet, &target, held, owner)?;
    let action = fullnat::to_client::<V6, true>(packet, pool, now)?;
    if proof {
        if let Some(held) = held {
            held.discharge(duty::TOA);
        }
    }
    let entry = connection::find_rarely(&Place::of::<V6>(owner), now);
    settle(held, entry, lease.hit(), now);
    Ok(action)
}

/// As [`follow`], of a flow by FULLNAT, which may need no record any more: then its packets go the straight line.
#[inline(always)]
fn settle(held: Option<Held>, entry: Option<Hit>, lease: Hit, now: u16) {
    let Some(held) = held else { return };
    if held.is_done() {
        let entry = entry.is_none_or(unmarked);
        if unmarked(lease) && entry {
            return held.release(now);
        }
    }
    held.follow(Value(crate::atomic::load(lease.word)));
}

/// Takes the mark of an extended flow off a word that names the same still. Whether it has none.
#[inline(always)]
fn unmarked(hit: Hit) -> bool {
    let value = Value(crate::atomic::load(hit.word));
    if value.payload() != hit.value.payload() || !is_extended(value) {
        return true;
    }
    crate::atomic::exchange(hit.word, value.0, value.without_flags(FLAG_EXTENSION).0)
}

/// The record lives as long as its flow.
#[inline(always)]
fn follow(held: Option<Held>, hit: Hit) {
    if let Some(held) = held {
        held.follow(lb_common::connection::Value(crate::atomic::load(hit.word)));
    }
}

/// A client's packet as the server counts, with what rides on it. The packet may lie elsewhere in its frame
/// afterwards.
#[inline(always)]
fn from_client<const V6: bool>(
    packet: &Packet<V6>,
    target: &Target,
    held: Option<Held>,
    identity: u64,
) -> Result<Packet<V6>, Reason> {
    let (Some(held), Some(shifts)) = (held, held.and_then(|held| held.shifts(identity))) else {
        return Err(lost(packet));
    };
    if shifts.duties & duty::COOKIE != 0 {
        cookie::from_client(packet, &held, &shifts)?;
    }
    let (flags, sequence, acknowledged) = (packet.tcp_flags(), packet.sequence(), packet.acknowledged());
    let rides = proxy::rides(&shifts, sequence) && flags & (SYN | RST) == 0;
    let more = if rides { proxy::bytes::<V6>() } else { 0 };
    fits_mtu(packet, target.mtu().saturating_sub(more), target)?;
    shift(
        packet,
        shifts.client.forth(shifts.client_base, sequence),
        shifts.server.back(shifts.server_base, acknowledged),
    );
    if flags & ACK != 0 {
        held.heard_by_client(&shifts, acknowledged);
    }
    let (edges, base, echo) = (shifts.server, shifts.server_base, shifts.clock.wrapping_neg());
    options::change(packet, Change { edges, base, clock: 0, echo, mss_less: 0 })?;
    if rides { proxy::put(packet) } else { Ok(*packet) }
}

/// A server's packet as the client counts.
#[inline(always)]
fn towards_client<const V6: bool>(
    packet: &Packet<V6>,
    target: &Target,
    held: Option<Held>,
    identity: u64,
) -> Result<(), Reason> {
    let (Some(held), Some(shifts)) = (held, held.and_then(|held| held.shifts(identity))) else {
        return Err(lost(packet));
    };
    let shifts = if shifts.duties & duty::COOKIE != 0 {
        cookie::from_server(packet, &held, shifts, target)?
    } else {
        shifts
    };
    let flags = packet.tcp_flags();
    let acknowledged = packet.acknowledged();
    shift(
        packet,
        shifts.server.forth(shifts.server_base, packet.sequence()),
        shifts.client.back(shifts.client_base, acknowledged),
    );
    let mss_less =
        if flags & SYN != 0 { proxy::mss_less::<V6>(&shifts) + toa::mss_less::<V6>(&shifts) } else { 0 };
    let (edges, base) = (shifts.client, shifts.client_base);
    options::change(packet, Change { edges, base, clock: shifts.clock, echo: 0, mss_less })?;
    if flags & ACK != 0 {
        held.heard_by_server(&shifts, acknowledged);
    }
    Ok(())
}

/// A flow whose record is gone: nobody can say any more how its numbers are shifted.
#[inline(always)]
fn lost<const V6: bool>(packet: &Packet<V6>) -> Reason {
    // A RST is never answered.
    if packet.resets() { Reason::UnknownFlowDropped } else { answer::reset(packet, Reason::ExtensionLost) }
}

/// Writes sequence number and, with ACK, acknowledgement, and what that does to the checksum.
#[inline(always)]
fn shift<const V6: bool>(packet: &Packet<V6>, sequence: u32, acknowledged: u32) {
    let transport = packet.transport;
    let (old, new) = (load32(transport, 4), sequence.to_be());
    let mut delta = checksum::sub(checksum::add(0, new), old);
    store32(transport, 4, new);
    if packet.tcp_flags() & ACK != 0 {
        let (old, new) = (load32(transport, 8), acknowledged.to_be());
        delta = checksum::sub(checksum::add(delta, new), old);
        store32(transport, 8, new);
    }
    // One number, whichever way it came to be.
    let delta = opaque(delta);
    store16(transport, 16, checksum::update(load16(transport, 16), delta));
}
