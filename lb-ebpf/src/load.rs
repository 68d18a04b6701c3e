//! Counting flows at their real servers: whoever exchanges a flow's word adds the difference, so each change is
//! counted once. A refresh that keeps the state counts nothing, and only servers of services that ask for it
//! are counted. FULLNAT flows are counted by the words of their leases.

use crate::{
    atomic,
    connection::Hit,
    maps::{DESTINATIONS, LOADS},
};
use lb_common::{
    connection::{Kind, Value},
    destination::{Destination, flags},
    load::{Load, counted},
};

/// After a flow's word (`old` to `new`) was exchanged.
#[inline(always)]
pub fn stepped(old: Value, new: Value) {
    if old.state() != new.state() {
        lb_recount(old.0, new.0);
    }
}

/// Gives an entry back. False when it changed meanwhile.
#[inline(always)]
pub fn end(hit: &Hit) -> bool {
    let ended = hit.replace(Value::EMPTY);
    if ended && matches!(hit.value.kind(), Kind::Flow) {
        lb_recount(hit.value.0, 0);
    }
    ended
}

/// Adds what changed between two words of one flow; one of them may be empty. Out of line: new flows, changes of
/// state, ends.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_recount(old: u64, new: u64) -> u64 {
    let (old, new) = (Value(old), Value(new));
    let named = if new.is_empty() { old } else { new };
    let Some(destination) = DESTINATIONS.get_ptr(named.destination()) else { return 0 };
    // SAFETY: a map value, here and below.
    let flags = Destination::flags_of(atomic::load(unsafe { &raw const (*destination).word }));
    if flags & flags::COUNTED == 0 {
        return 0;
    }
    let udp_inactive = flags & flags::UDP_INACTIVE != 0;
    let (was, is) = (counted(old, udp_inactive), counted(new, udp_inactive));
    let delta = is.wrapping_sub(was);
    if delta == 0 {
        return 0;
    }
    // SAFETY: as above.
    let index = unsafe { core::ptr::read_volatile(&raw const (*destination).load) };
    let Some(load) = LOADS.get_ptr_mut(index) else { return 0 };
    // SAFETY: as above.
    let (counts, overloaded, upper, lower) = unsafe {
        (
            &raw mut (*load).counts,
            &raw mut (*load).overloaded,
            core::ptr::read_volatile(&raw const (*load).upper),
            core::ptr::read_volatile(&raw const (*load).lower),
        )
    };
    let after = atomic::fetch_add(counts, delta).wrapping_add(delta);
    if upper != 0 && (was == 0 || is == 0) {
        let (active, inactive) = Load::counts_of(after);
        // SAFETY: as above. A plain store: two CPUs that bind and unbind at once are put right by the sweeper.
        unsafe {
            let before = core::ptr::read_volatile(overloaded);
            let total = active as u64 + inactive as u64;
            let now = Load::is_overloaded(before != 0, is != 0, total, upper, lower) as u32;
            if now != before {
                core::ptr::write_volatile(overloaded, now);
            }
        }
    }
    0
}
