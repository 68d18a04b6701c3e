//! The tail for SCTP packets (RFC 9260): the way that `ingress` goes with TCP and UDP, in a program of its own, so
//! that those pay nothing for it.

use crate::{
    ingress::{filter_cell, key_of, known},
    packet::{Frame, Packet, destination, ip_len},
    tail,
};
use lb_common::{
    header::{IPV4, IPV6},
    maps::programs,
    sctp::{CHUNK, HEADER},
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
    let Some(ip) = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }) else { return Err(Reason::Internal) };
    let len = ip_len::<V6>(ip);
    let whole = len <= frame.len() - l3 as u32 && len >= (l4 - l3 + HEADER + CHUNK) as u32;
    let Some(transport) = frame.at_dynamic(l4, HEADER + CHUNK).filter(|_| whole) else {
        return Err(tail::call_sctp(&frame, l3, l4, V6, programs::SCTP_NEW));
    };
    let packet = Packet::<V6> { frame, l3, l4, ip, transport, udp: false, sctp: true, bytes: frame.len() };
    let (key, start) = key_of::<V6>(destination::<V6>(ip));
    known(&packet, start, filter_cell(key))
}
