//! The states of TCP flows: IPVS's tables as the specification prints them (net/netfilter/ipvs/ip_vs_proto_tcp.c,
//! Linux 6.1). Columns NO ES SS SR FW TW CL CW LA LI SA; flags by priority RST, SYN, FIN, ACK.

use lb_common::{
    connection::Value,
    service::Service,
    state::{ACK, FIN, RST, SYN, State, URG},
};

/// Which packets of a flow pass the director, and which way this one goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the client, and replies pass too (NAT, FULLNAT).
    Input,
    /// From the real server (NAT, FULLNAT).
    Output,
    /// From the client, and replies do not pass (DR, TUN).
    InputOnly,
}

const NAMES: [&str; 11] = ["NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA"];

fn row(direction: Direction, flags: u8) -> Option<&'static str> {
    use Direction::*;
    let which = if flags & RST != 0 {
        3
    } else if flags & SYN != 0 {
        0
    } else if flags & FIN != 0 {
        1
    } else if flags & ACK != 0 {
        2
    } else {
        return None;
    };
    Some(match (direction, which) {
        (Input, 0) => "SR ES ES SR SR SR SR SR SR SR SR",
        (Input, 1) => "CL CW SS TW TW TW CL CW LA LI TW",
        (Input, 2) => "ES ES SS ES FW TW CL CW CL LI ES",
        (Input, _) => "CL CL CL SR CL CL CL CL LA LI SR",
        (Output, 0) => "SS ES SS SR SS SS SS SS SS LI SR",
        (Output, 1) => "TW FW SS TW FW TW CL TW LA LI TW",
        (Output, 2) => "ES ES SS ES FW TW CL CW LA ES ES",
        (Output, _) => "CL CL SS CL CL TW CL CL CL CL CL",
        (InputOnly, 0) => "SR ES ES SR SR SR SR SR SR SR SR",
        (InputOnly, 1) => "CL FW SS TW FW TW CL CW LA LI TW",
        (InputOnly, 2) => "ES ES SS ES FW TW CL CW CL LI ES",
        (InputOnly, _) => "CL CL CL SR CL CL CL CL LA LI CL",
    })
}

/// The state after a TCP packet with these flags; 0 is a flow that begins. A flow that is not confirmed steps as one
/// that begins.
pub fn step(direction: Direction, state: u8, flags: u8) -> u8 {
    let column = if state == State::Unconfirmed as u8 { 0 } else { state };
    match row(direction, flags).and_then(|row| row.split(' ').nth(column as usize)) {
        Some(name) => NAMES.iter().position(|n| *n == name).map_or(state, |n| n as u8),
        None => state,
    }
}

/// Whether a TCP stack sends these flags: a connection is begun (SYN), gone on with (ACK) or broken off (RST), each by
/// itself but for what is acknowledged; FIN is acknowledged always, and URG points into what is sent.
pub fn is_sent(flags: u8) -> bool {
    let has = |flag: u8| flags & flag != 0;
    if has(SYN) {
        return !(has(RST) || has(FIN) || has(ACK) && has(URG));
    }
    if has(RST) {
        return !has(FIN) && !has(URG);
    }
    has(ACK)
}

/// Whether a SYN on an entry in this state begins another connection on the same ports.
pub fn syn_begins_anew(state: u8, direction: Direction) -> bool {
    match NAMES.get(state as usize) {
        Some(&"TW" | &"CL" | &"LA") => true,
        Some(&"FW") => direction == Direction::InputOnly,
        _ => false,
    }
}

/// A packet of a flow, and what its entry must become; None: as it is. `established` is what the destination's record
/// has as the timeout of settled flows.
pub fn next(
    value: Value,
    (direction, udp, flags): (Direction, bool, u8),
    (service, established): (&Service, u16),
    now: u16,
) -> Option<Value> {
    let old = value.state();
    let new = if udp {
        // A second packet proves a flow whose replies pass elsewhere; else the reply is the proof.
        if direction == Direction::Input { old } else { State::Udp as u8 }
    } else {
        step(direction, old, flags)
    };
    let pair = direction != Direction::InputOnly;
    let settled = old == new && (new == State::Udp as u8 || new == State::Established as u8);
    let timeout = if settled { established } else { service.timeouts[(new & 15) as usize] };
    let due = now.wrapping_add(timeout);
    // Late by 1/256, a pair by a quarter; never early.
    let late = if pair { timeout / 4 } else { timeout / 256 + 1 };
    let armed = value.with(new, due.wrapping_add(late));
    if new != old {
        return Some(armed);
    }
    if new == State::Unconfirmed as u8 {
        // Nothing was proven: the short deadline stays.
        return None;
    }
    let behind = due.wrapping_sub(value.deadline()) as i16 > 0;
    behind.then_some(armed)
}
