//! Noting how real servers answer SYNs, for the agent's passive detection. Only destinations that are watched, and
//! only where a handshake changes its state: packets of established flows never come here.

use crate::{
    atomic,
    connection::Hit,
    flow::Step,
    forward::Target,
    maps::{DESTINATIONS, WITNESSES},
};
use lb_common::{
    connection::{FLAG_JUDGED, Value},
    destination::{Destination, flags},
    state::{self, Direction, State},
    witness::answer,
};

/// A packet that moves a flow from `value`'s state to `next`: counts it if it is the server's first answer. Returns
/// the flags that the flow's word gets. Under FULLNAT the word is the lease's.
#[inline(always)]
pub fn answered(value: Value, step: &Step, next: u8) -> u64 {
    if value.state() != State::SynReceived as u8 {
        return 0;
    }
    let kind = match step.direction {
        Direction::Output if value.flags() & FLAG_JUDGED != 0 => return 0,
        Direction::Output if step.flags & state::RST != 0 => answer::REFUSED,
        Direction::Output if step.flags & state::SYN != 0 => answer::ANSWERED,
        // Replies do not pass: the client's acknowledgement says that there was one.
        Direction::InputOnly if next == State::Established as u8 => answer::ANSWERED,
        _ => return 0,
    };
    if lb_witness(value.destination(), kind) != 0 { FLAG_JUDGED } else { 0 }
}

/// A SYN that is sent again before anything came from the server: counts once a flow. Returns the hit to go on with.
#[inline(always)]
pub fn repeated(hit: Hit, target: &Target) -> Hit {
    if target.flags() & flags::WATCHED == 0
        || hit.value.state() != State::SynReceived as u8
        || hit.value.flags() & FLAG_JUDGED != 0
    {
        return hit;
    }
    let marked = hit.value.with_flags(FLAG_JUDGED);
    if !hit.replace(marked) {
        return hit;
    }
    lb_witness(target.index, answer::SILENT);
    Hit { value: marked, ..hit }
}

/// An ICMP error that says that the server of a flow cannot be reached. Returns the flow's new word if this is the
/// first answer of a TCP server.
#[inline(always)]
pub fn unreachable(hit: &Hit, target: &Target) -> Option<Value> {
    if target.flags() & flags::WATCHED == 0
        || hit.value.state() != State::SynReceived as u8
        || hit.value.flags() & FLAG_JUDGED != 0
    {
        return None;
    }
    let marked = hit.value.with_flags(FLAG_JUDGED);
    if !hit.replace(marked) {
        return None;
    }
    lb_witness(target.index, answer::UNREACHABLE);
    Some(marked)
}

/// Counts an answer of a watched destination. 0 when it is not watched.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_witness(destination: u32, kind: u32) -> u64 {
    let Some(record) = DESTINATIONS.get_ptr(destination) else { return 0 };
    // SAFETY: a map value, here and below.
    let flags = Destination::flags_of(atomic::load(unsafe { &raw const (*record).word }));
    if flags & flags::WATCHED == 0 {
        return 0;
    }
    let Some(witness) = WITNESSES.get_ptr_mut(destination) else { return 0 };
    // SAFETY: as above; each branch adds to one of its words.
    let word = unsafe {
        match kind {
            answer::ANSWERED => &raw mut (*witness).answered,
            answer::REFUSED => &raw mut (*witness).refused,
            answer::SILENT => &raw mut (*witness).silent,
            _ => &raw mut (*witness).unreachable,
        }
    };
    atomic::fetch_add(word, 1);
    1
}
