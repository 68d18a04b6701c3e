//! Handing a frame to a tail program: what it needs to know goes through this CPU's scratch record.

use crate::{
    maps::{SCRATCH, TAILS},
    packet::{Frame, Packet},
};
use aya_ebpf::programs::XdpContext;
use lb_common::{scratch::Scratch, verdict::Reason};

/// Calls a tail program. Returns only when it could not be called.
#[inline(always)]
pub fn call(frame: &Frame, program: (&str, u32)) -> Reason {
    // SAFETY: nothing of this program's state is left that would need dropping.
    unsafe { TAILS.tail_call(&XdpContext::new(frame.ctx), program.1) };
    Reason::Internal
}

/// This CPU's scratch record.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: a per-CPU value; XDP programs do not interrupt each other on a CPU.
    SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// Hands a packet whose headers were found to a tail program.
#[inline(always)]
pub fn call_with<const V6: bool>(packet: &Packet<V6>, program: (&str, u32)) -> Reason {
    call_at(&packet.frame, packet.l3, packet.l4, V6, packet.udp, program)
}

/// As [`call_with`], before a transport header was checked.
#[inline(always)]
pub fn call_at(frame: &Frame, l3: usize, l4: usize, v6: bool, udp: bool, program: (&str, u32)) -> Reason {
    let Some(scratch) = scratch() else { return Reason::Internal };
    scratch.choices = 0;
    scratch.l3 = l3 as u16;
    scratch.l4 = l4 as u16;
    scratch.family = if v6 { 6 } else { 4 };
    scratch.protocol = if udp { lb_common::header::protocol::UDP } else { lb_common::header::protocol::TCP };
    call(frame, program)
}
