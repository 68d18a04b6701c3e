//! What keeps the tables usable under a flood: sources that no host has, and the rate of new flows.

use crate::{
    maps::{GUARD, PACE, config},
    packet::Words,
};
use lb_common::verdict::Reason;

/// A packet to one of our addresses whose source cannot be: the address that it is sent to (a land attack), or none
/// that a host has (RFC 1122, section 3.2.1.3; RFC 4291, section 2.4). Nobody could be answered there.
#[inline(always)]
pub fn check_source<const V6: bool>(from: Words, to: Words) -> Result<(), Reason> {
    if from[0] == to[0] && from[1] == to[1] {
        return Err(Reason::Land);
    }
    let bad = if V6 {
        let first = from[0] as u8;
        first == 0xff || (from[0] == 0 && (from[1] == 0 || from[1] == 1u64.to_be()))
    } else {
        let first = from[0] as u8;
        first == 0 || first == 127 || first & 0xf0 == 224 || from[0] == u32::MAX as u64
    };
    if bad { Err(Reason::BadSource) } else { Ok(()) }
}

/// One more new flow: whether this CPU has had more of them in this second than the agent allows.
#[inline(always)]
pub fn is_flooded() -> bool {
    let (Some(guard), Some(pace)) = (GUARD.get_ptr(0), PACE.get_ptr_mut(0)) else { return false };
    // SAFETY: reads one word.
    let now = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
    // SAFETY: a word of a map value; a per-CPU value, and XDP programs do not interrupt each other on a CPU.
    unsafe {
        let limit = core::ptr::read_volatile(&raw const (*guard).new_flows);
        (*pace).tick(now, config!(hz));
        (*pace).one_more_flow(limit)
    }
}
