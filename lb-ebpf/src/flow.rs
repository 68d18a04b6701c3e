//! What a packet does to its flow's entry: the state step and the deadline, and for a pair (NAT, FULLNAT) the
//! same to its twin. An established flow writes only when its deadline has fallen behind.

use crate::{
    connection::{self, Hit, Place},
    load,
    maps::{SERVICES, keys},
    packet::{Packet, Protocol, Words, opaque},
    witness,
};
use lb_common::{
    connection::{FLAG_JUDGED, FLAG_SCTP, Kind, Value, slack},
    destination::flags,
    hash, sctp,
    service::Service,
    state::{self, Direction, State},
};

/// What a packet means to its flow.
#[derive(Clone, Copy)]
pub struct Step {
    pub direction: Direction,
    pub udp: bool,
    pub sctp: bool,
    /// TCP flags; 0 for UDP; the event for SCTP.
    pub flags: u8,
    pub now: u16,
}

impl Step {
    #[inline(always)]
    pub fn of<const V6: bool>(packet: &Packet<V6>, direction: Direction, now: u16) -> Self {
        let flags = if packet.sctp {
            packet.sctp_event()
        } else if packet.udp {
            0
        } else {
            packet.tcp_flags()
        };
        Self { direction, udp: packet.udp, sctp: packet.sctp, flags, now }
    }

    fn is_pair(&self) -> bool {
        !matches!(self.direction, Direction::InputOnly)
    }

    /// The value after this packet, or none when nothing need be written. `established` is the timeout of
    /// the service's established (TCP) or confirmed (UDP) flows, `service` where the others are found.
    #[inline(always)]
    pub fn next(&self, value: Value, established: u16, service: u32) -> Option<Value> {
        let state = value.state();
        if self.sctp {
            if state == State::Established as u8 && self.flags == sctp::event::DATA {
                return refreshed(value, state, established, self);
            }
            let new = lb_sctp_unsettled(value.0, service, self.pack());
            return if new == 0 { None } else { Some(Value(new)) };
        }
        let settled = if self.udp {
            state == State::Udp as u8
        } else {
            state == State::Established as u8 && self.flags & (state::SYN | state::FIN | state::RST) == 0
        };
        if settled {
            return refreshed(value, state, established, self);
        }
        let new = lb_unsettled(value.0, service, self.pack());
        if new == 0 { None } else { Some(Value(new)) }
    }

    /// All of it in one register: functions of BPF take five.
    #[inline(always)]
    fn pack(&self) -> u64 {
        self.now as u64 | (self.flags as u64) << 16 | (self.udp as u64) << 24 | (self.direction as u64) << 32
    }

    #[inline(always)]
    fn unpack(packed: u64) -> Self {
        let direction = match (packed >> 32) as u8 {
            0 => Direction::Input,
            1 => Direction::Output,
            _ => Direction::InputOnly,
        };
        Self {
            direction,
            udp: packed & 1 << 24 != 0,
            sctp: false,
            flags: (packed >> 16) as u8,
            now: packed as u16,
        }
    }
}

/// [`Step::next`] of a flow that is not settled, or of a packet that unsettles it: out of line, since it is
/// rare. 0 when nothing need be written.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_unsettled(value: u64, service: u32, packed: u64) -> u64 {
    let step = Step::unpack(packed);
    let value = Value(value);
    let state = value.state();
    let next = if step.udp {
        // DR and TUN see no reply: the second packet is the proof. NAT and FULLNAT wait for the reply.
        if matches!(step.direction, Direction::Input) { state } else { State::Udp as u8 }
    } else {
        state::step(step.direction, state, step.flags)
    };
    let judged = if step.udp { 0 } else { witness::answered(value, &step, next) };
    stepped(value, next, service, &step, judged)
}

/// As [`lb_unsettled`], for SCTP.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_sctp_unsettled(value: u64, service: u32, packed: u64) -> u64 {
    let step = Step::unpack(packed);
    let value = Value(value);
    let next = sctp::step(step.direction, value.state(), step.flags);
    stepped(value, next, service, &step, 0)
}

/// The word of a flow whose next state is `next`, with these flags more; 0 when nothing need be written.
#[inline(always)]
fn stepped(value: Value, next: u8, service: u32, step: &Step, judged: u64) -> u64 {
    let state = value.state();
    let timeout = timeout_of(service, next);
    if next == state {
        if next == State::Unconfirmed as u8 {
            // Nothing was proven, so the short deadline stays as it is.
            return 0;
        }
        return match refreshed(value, next, timeout, step) {
            Some(new) => new.with_flags(judged).0,
            None if judged != 0 => value.with_flags(judged).0,
            None => 0,
        };
    }
    let deadline = step.now.wrapping_add(timeout).wrapping_add(slack(timeout, step.is_pair()));
    value.with(next, deadline).with_flags(judged).0
}

#[inline(always)]
fn refreshed(value: Value, state: u8, timeout: u16, step: &Step) -> Option<Value> {
    let target = step.now.wrapping_add(timeout);
    if (target.wrapping_sub(value.deadline()) as i16) <= 0 {
        return None;
    }
    Some(value.with(state, target.wrapping_add(slack(timeout, step.is_pair()))))
}

/// The timeout of (service, state), ticks.
#[inline(always)]
pub fn timeout_of(service: u32, state: u8) -> u16 {
    match SERVICES.get_ptr(service) {
        // SAFETY: a map value; the index is below 16, the length of the array.
        Some(record) => unsafe {
            let timeouts = (&raw const (*record).timeouts).cast::<u16>();
            core::ptr::read_volatile(timeouts.add((opaque(state as u64) & 15) as usize))
        },
        None => 1,
    }
}

/// The record of a service.
#[inline(always)]
pub fn service(index: u32) -> Option<*mut Service> {
    SERVICES.get_ptr_mut(index)
}

/// The place of the flow from `source` to `destination` with `ports` (source port first).
#[inline(always)]
pub fn place<const V6: bool>(source: Words, destination: Words, ports: u32, protocol: Protocol) -> Place {
    let start = if V6 { keys().sum_v6(destination) } else { keys().key_v4(destination[0] as u32) };
    place_at::<V6>(start, source, ports, protocol)
}

/// [`place`] of a destination address whose key (IPv4) or sum (IPv6) is known.
#[inline(always)]
pub fn place_at<const V6: bool>(start: u64, source: Words, ports: u32, protocol: Protocol) -> Place {
    let keys = keys();
    let tuple = hash::tuple_v4(source[0] as u32, ports);
    let identity = match (V6, protocol.sctp) {
        (true, true) => keys.identity_v6_sctp(start, source, ports),
        (true, false) => keys.identity_v6(start, source, ports, protocol.udp),
        (false, true) => keys.identity_v4_sctp(start, tuple),
        (false, false) => keys.identity_v4(start, tuple, protocol.udp),
    };
    Place::of::<V6>(identity)
}

/// Ports of the other direction.
#[inline(always)]
pub fn turned(ports: u32) -> u32 {
    ports.rotate_left(16)
}

/// Gives the twin of a pair the state and deadline of the entry just written. `partner` is what the twin must
/// name, its destination (NAT) or lease (FULLNAT): the client may have taken its ports again for a flow to another
/// server, to which late packets of the old one mean nothing. Out of line: once a quarter of the timeout, and at
/// changes of state.
#[inline(always)]
pub fn write_twin<const V6: bool>(twin: &Place, new: Value, now: u16, partner: u32) {
    lb_write_twin(twin.identity, V6 as u32, new.0, now as u32, partner);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_write_twin(identity: u64, v6: u32, new: u64, now: u32, partner: u32) -> u64 {
    let new = Value(new);
    let place = if v6 != 0 { Place::of::<true>(identity) } else { Place::of::<false>(identity) };
    if let Some(twin) = connection::find_rarely(&place, now as u16) {
        let named = if matches!(twin.value.kind(), Kind::FullNat) {
            twin.value.lease()
        } else {
            twin.value.destination()
        };
        if named == partner {
            let word = twin.value.with(new.state(), new.deadline()).with_flags(new.flags() & FLAG_JUDGED);
            // A FULLNAT flow was counted by its lease.
            if twin.replace(word) && matches!(twin.value.kind(), Kind::Flow) {
                load::stepped(twin.value, word);
            }
        }
    }
    0
}

/// Whether a packet of a known flow is for the tail of new ones, given the flags of its server: the server was removed
/// and the flow can move, it was given up, or all its flows move.
#[inline(always)]
pub fn leaves(hit: &Hit, flags: u32, udp: bool) -> bool {
    flags & (flags::RESET | flags::MOVES) != 0 || (flags & flags::REMOVED != 0 && moves(hit, udp))
}

/// Whether a packet that is no SYN or INIT leaves its flow's server when that is removed: UDP, and what was taken up
/// without its beginning. Of a connection that is being set up only the SYN or INIT moves: whoever sends the next packet
/// has heard this server's answer, and no other knows of it.
#[inline(always)]
pub fn moves(hit: &Hit, udp: bool) -> bool {
    udp || hit.value.state() == State::Unconfirmed as u8
}

/// Whether the client of this entry may be setting a connection up still, so that its SYN or INIT, sent again, must
/// find the server that may have answered the first one.
#[inline(always)]
pub fn is_beginning(state: u8, protocol: Protocol) -> bool {
    if protocol.sctp { sctp::is_half_open(state) } else { state == State::SynReceived as u8 }
}

/// Whether the flow is over, or was never one.
#[inline(always)]
pub fn is_closed(state: u8, protocol: Protocol) -> bool {
    let closed = if protocol.sctp { sctp::State::Closed as u8 } else { State::Close as u8 };
    state == closed || is_beginning(state, protocol)
}

/// Whether a SYN or INIT on an entry in this state begins another connection.
#[inline(always)]
pub fn starts_anew(state: u8, direction: Direction, protocol: Protocol) -> bool {
    if protocol.sctp { sctp::init_starts_anew(state) } else { state::syn_starts_anew(state, direction) }
}

/// What the word of a flow of this protocol says of its states.
#[inline(always)]
pub fn marked(word: Value, protocol: Protocol) -> Value {
    if protocol.sctp { word.with_flags(FLAG_SCTP) } else { word }
}
