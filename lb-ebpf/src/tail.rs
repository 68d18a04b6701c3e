//! Handing a frame to a tail program: what it needs to know goes through this CPU's scratch record.

use crate::{
    maps::{SCRATCH, TAILS},
    packet::{Frame, Packet},
};
use aya_ebpf::programs::XdpContext;
use lb_common::{
    header::protocol,
    maps::programs,
    scratch::{Scratch, cookie},
    verdict::Reason,
};

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
    if packet.sctp {
        return call_sctp(&packet.frame, packet.l3, packet.l4, V6, program);
    }
    call_at(&packet.frame, packet.l3, packet.l4, V6, packet.udp, program)
}

/// Hands a packet whose flow must be looked for to the tail of new flows.
#[inline(always)]
pub fn call_new<const V6: bool>(packet: &Packet<V6>) -> Reason {
    call_with(packet, if packet.sctp { programs::SCTP_NEW } else { programs::NEW })
}

/// Hands a packet to the tail of SYN cookies, with what is to be done of [`cookie`].
#[inline(always)]
pub fn call_cookie<const V6: bool>(packet: &Packet<V6>, task: u32) -> Reason {
    let Some(scratch) = scratch() else { return Reason::Internal };
    scratch.choices = 0;
    scratch.l3 = packet.l3 as u16;
    scratch.l4 = packet.l4 as u16;
    scratch.family = if V6 { 6 } else { 4 };
    scratch.protocol = protocol::TCP;
    scratch.cookie.task = task;
    scratch.cookie.bytes = packet.bytes;
    call(&packet.frame, programs::COOKIE)
}

/// As [`call_with`], before a transport header was checked.
#[inline(always)]
pub fn call_at(frame: &Frame, l3: usize, l4: usize, v6: bool, udp: bool, program: (&str, u32)) -> Reason {
    call_as(frame, l3, l4, v6, if udp { protocol::UDP } else { protocol::TCP }, program)
}

/// As [`call_at`], for SCTP.
#[inline(always)]
pub fn call_sctp(frame: &Frame, l3: usize, l4: usize, v6: bool, program: (&str, u32)) -> Reason {
    call_as(frame, l3, l4, v6, protocol::SCTP, program)
}

#[inline(always)]
fn call_as(frame: &Frame, l3: usize, l4: usize, v6: bool, protocol: u8, program: (&str, u32)) -> Reason {
    let Some(scratch) = scratch() else { return Reason::Internal };
    scratch.choices = 0;
    if program.1 == programs::NEW.1 {
        scratch.cookie.task = cookie::NONE;
    }
    scratch.l3 = l3 as u16;
    scratch.l4 = l4 as u16;
    scratch.family = if v6 { 6 } else { 4 };
    scratch.protocol = protocol;
    call(frame, program)
}
