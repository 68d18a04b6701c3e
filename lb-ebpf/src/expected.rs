//! The tail for SYNs that belong to no flow and no service: data connections of FTP that a control channel announced
//! (`ftp`, `active`). A client's goes back to the tail of new flows with its server chosen; a server's becomes a flow here.

use crate::{
    atomic,
    connection::{self, Hit, Inserted},
    count,
    flow::{self, turned},
    forward::{
        self, Target,
        fullnat::{self, Leased},
        may_serve, nat,
    },
    ftp::{TCP, packet_at},
    host, load,
    maps::LEASES,
    packet::{Frame, Packet, words},
    schedule, tail,
};
use lb_common::{
    connection::{Kind, Value, slack},
    destination::Destination,
    filter::role,
    lease::lease_index,
    maps::programs,
    state::{self, Direction, State},
    verdict::Reason,
};

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    if scratch.family == 6 { arrived::<true>(frame, l3, l4) } else { arrived::<false>(frame, l3, l4) }
}

#[inline(always)]
fn arrived<const V6: bool>(frame: Frame, l3: usize, l4: usize) -> Result<u32, Reason> {
    let Some(packet) = packet_at::<V6>(frame, l3, l4) else { return Err(Reason::ServerTraffic) };
    let now = connection::now();
    let to = host::record_of::<V6>(packet.destination());
    if to.roles & role::POOL != 0 {
        return to_local(&packet, to.pool as u32 & 0xff, now);
    }
    if to.roles & role::VIP != 0 {
        return match from_client(&packet, now) {
            Err(Reason::NoService) => Err(host::unless_refused(to.roles, Reason::NoService)),
            other => other,
        };
    }
    match from_server(&packet, now) {
        Err(Reason::ServerTraffic) => Err(host::unless_refused(to.roles, Reason::ServerTraffic)),
        other => other,
    }
}

/// A client's SYN to a port of the VIP that no service has; also its SYN-ACK that answers a server's SYN.
#[inline(always)]
fn from_client<const V6: bool>(packet: &Packet<V6>, now: u16) -> Result<u32, Reason> {
    let flags = packet.tcp_flags();
    let ports = packet.ports();
    // Port 0 is the announcement's own.
    if flags & (state::RST | state::FIN) != 0 || ports as u16 == 0 {
        return Err(Reason::NoService);
    }
    let place = flow::place::<V6>(packet.source(), packet.destination(), ports, TCP);
    // Looked up again below where it must be: kept over the other look-up, what a flow that is not there would have been
    // is nothing that the verifier lets be kept.
    if let Some(hit) = connection::find_rarely(&place, now) {
        if flags & state::ACK != 0 || !flow::starts_anew(hit.value.state(), Direction::Input, TCP) {
            return on(packet, hit, &place, now);
        }
    }
    if flags & state::ACK != 0 {
        return Err(Reason::NoService);
    }
    let announced = flow::place::<V6>(packet.source(), packet.destination(), ports & 0xffff_0000, TCP);
    let Some(hit) = connection::find_rarely(&announced, now) else {
        return match connection::find_rarely(&place, now) {
            Some(hit) => on(packet, hit, &place, now),
            None => Err(Reason::NoService),
        };
    };
    let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    heeded(&hit, &target, now);
    if let Some(old) = connection::find_rarely(&place, now) {
        forget(&old, now);
    }
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    scratch.client = nat::address(packet.source());
    scratch.ports = ports;
    scratch.service = target.service();
    scratch.event = Reason::FlowExpected as u32;
    scratch.chosen = target.index + 1;
    scratch.avoid = 0;
    scratch.before = 0;
    // No other server will do.
    scratch.choices = schedule::CHOICES;
    Err(tail::call(&packet.frame, programs::NEW))
}

/// A packet of a flow that is there.
#[inline(always)]
fn on<const V6: bool>(
    packet: &Packet<V6>,
    hit: Hit,
    place: &connection::Place,
    now: u16,
) -> Result<u32, Reason> {
    let kind = hit.value.kind() as u8;
    if kind == Kind::FullNat as u8 {
        return fullnat::to_server::<V6, false>(packet, hit, place, now);
    }
    if kind != Kind::Flow as u8 {
        return Err(Reason::NoService);
    }
    let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
    forward::to_server(packet, hit, place, target, now)
}

/// Frees a flow that is over, and its lease.
#[inline(always)]
fn forget(old: &Hit, now: u16) {
    let fullnat = matches!(old.value.kind(), Kind::FullNat);
    if load::end(old) && fullnat {
        if let Some(lease) = Leased::of(old.value.lease(), now) {
            if lease.hit().replace(Value::EMPTY) {
                load::lb_recount(lease.word.0, 0);
            }
        }
    }
}

/// An announcement has served: it stays for a SYN that is sent again, and makes room for another server's.
#[inline(always)]
fn heeded(hit: &Hit, target: &Target, now: u16) {
    let word = hit.value.with(State::Close as u8, deadline(target, State::Close, now));
    if hit.replace(word) && matches!(hit.value.kind(), Kind::Flow) {
        load::stepped(hit.value, word);
    }
}

#[inline(always)]
fn deadline(target: &Target, state: State, now: u16) -> u16 {
    let timeout = flow::timeout_of(target.service(), state as u8);
    now.wrapping_add(timeout).wrapping_add(slack(timeout, true))
}

/// NAT: a server's SYN to a port that its client announced.
#[inline(always)]
fn from_server<const V6: bool>(packet: &Packet<V6>, now: u16) -> Result<u32, Reason> {
    if packet.tcp_flags() & (state::SYN | state::ACK | state::RST | state::FIN) != state::SYN {
        return Err(Reason::ServerTraffic);
    }
    let ports = packet.ports();
    if ports as u16 == 0 {
        return Err(Reason::ServerTraffic);
    }
    let (server, client) = (packet.source(), packet.destination());
    let announced = flow::place::<V6>(server, client, ports & 0xffff_0000, TCP);
    let hit = connection::find_rarely(&announced, now).ok_or(Reason::ServerTraffic)?;
    if hit.value.kind() as u8 != Kind::NatReply as u8 {
        return Err(Reason::ServerTraffic);
    }
    let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    let own = flow::place::<V6>(client, target.vip::<V6>(), turned(ports), TCP);
    if let Some(other) = connection::find_rarely(&own, now) {
        if !state::syn_starts_anew(other.value.state(), Direction::Input) {
            return Err(Reason::ReplyConflict);
        }
        forget(&other, now);
    }
    let until = deadline(&target, State::SynSent, now);
    let reply = flow::place::<V6>(server, client, ports, TCP);
    let replies = Value::nat_reply(target.index, hit.value.hop(), reply.first, State::SynSent, until);
    let flow = Value::flow(Kind::Flow, target.index, own.first, State::SynSent, until);
    // Established until the flow has its place, as for any pair.
    let held = replies.with(State::Established as u8, until);
    if let Inserted::Full = connection::insert::<V6>(&reply, held, now, nat::address(server), ports, false) {
        return Err(Reason::TableFull);
    }
    let counted = target.is_counted();
    let placed = connection::insert::<V6>(&own, flow, now, nat::address(client), turned(ports), counted);
    let held = connection::find_rarely(&reply, now).ok_or(Reason::TableFull)?;
    if let Inserted::Full = placed {
        load::end(&held);
        return Err(Reason::TableFull);
    }
    held.replace(replies);
    heeded(&hit, &target, now);
    count::event(Reason::FlowExpected);
    let hit = Hit { word: held.word, value: replies };
    nat::to_client(packet, hit, target, now)
}

/// FULLNAT: a server's SYN to a local port that a command of its client was made to name.
#[inline(always)]
fn to_local<const V6: bool>(packet: &Packet<V6>, pool: u32, now: u16) -> Result<u32, Reason> {
    let ports = packet.ports();
    let begins = packet.tcp_flags() & (state::SYN | state::ACK | state::RST | state::FIN) == state::SYN;
    let index = lease_index(pool, u16::from_be((ports >> 16) as u16));
    let lease = Leased::of(index, now).ok_or(Reason::NoLease)?;
    let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    let (server, source) = (target.address::<V6>(), packet.source());
    let stranger = server[0] != source[0] || server[1] != source[1] || ports as u16 == 0;
    if !begins || stranger || lease.word.state() != State::Listen as u8 {
        return Err(Reason::WrongServer);
    }
    // SAFETY: a map value.
    let (client, announced) = unsafe {
        (
            words::<V6>(&raw const (*lease.record).client),
            core::ptr::read_volatile(&raw const (*lease.record).ports),
        )
    };
    if !lease.is_unchanged() {
        return Err(Reason::NoLease);
    }
    let client_ports = announced & 0xffff | ports << 16;
    let own = flow::place::<V6>(client, target.vip::<V6>(), client_ports, TCP);
    if let Some(other) = connection::find_rarely(&own, now) {
        if !state::syn_starts_anew(other.value.state(), Direction::Input) {
            return Err(Reason::ReplyConflict);
        }
        forget(&other, now);
    }
    let until = deadline(&target, State::SynSent, now);
    let word = Value::flow(Kind::FullNat, target.index, own.first, State::SynSent, until);
    let entry = Value::full_nat(index, own.first, State::SynSent, until);
    // An entry whose lease has another owner still is none.
    if let Inserted::Full =
        connection::insert::<V6>(&own, entry, now, nat::address(client), client_ports, false)
    {
        return Err(Reason::TableFull);
    }
    if lb_lease_begins(index, lease.word.0, word.0, own.identity, client_ports) == 0 {
        // Another CPU has seen the SYN too; or the command was taken back.
        if let Some(hit) = connection::find_rarely(&own, now) {
            hit.replace(Value::EMPTY);
        }
        return Err(Reason::NoLease);
    }
    count::event(Reason::FlowExpected);
    fullnat::to_client::<V6, true>(packet, pool, now)
}

/// An announced lease becomes a flow's; 0 when it is no longer the one whose word is `old`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_lease_begins(index: u32, old: u64, new: u64, identity: u64, ports: u32) -> u64 {
    let Some(line) = LEASES.get_ptr_mut(index) else { return 0 };
    if !atomic::exchange(fullnat::word_of(line), old, Value::BUSY.0) {
        return 0;
    }
    // SAFETY: the line is ours (BUSY); readers look at the word again after reading the rest.
    unsafe {
        atomic::store(&raw mut (*line).owner, identity);
        core::ptr::write_volatile(&raw mut (*line).ports, ports);
    }
    atomic::store(fullnat::word_of(line), new);
    load::lb_recount(old, new);
    1
}
