//! The tail that answers a TCP packet with RST (RFC 9293, section 3.5.2): the frame is turned into it.

use crate::{
    answer, cookie, count, nexthop,
    packet::{Frame, destination, ip_len, load8, load32, source, store16, store32, sum},
    tail,
};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use lb_common::{
    checksum,
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    state::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

const TCP: usize = 20;
/// DF, network order.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    if !answer::allowed() {
        return Err(Reason::ResetLimited);
    }
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    let answer = scratch.answer;
    if scratch.family == 6 {
        build::<true>(frame, l3, l4, answer)
    } else {
        build::<false>(frame, l3, l4, answer)
    }
}

#[inline(always)]
fn build<const V6: bool>(frame: Frame, l3: usize, l4: usize, answer: u32) -> Result<u32, Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    let ip = frame.at_dynamic(l3, header).ok_or(Reason::Internal)?;
    let (from, to, len) = (destination::<V6>(ip), source::<V6>(ip), ip_len::<V6>(ip));
    let tcp = frame.at_dynamic(l4, TCP).ok_or(Reason::Internal)?;
    let (ports, sequence, acknowledged) = (load32(tcp, 0), load32(tcp, 4), load32(tcp, 8));
    let (offset, flags) = (load8(tcp, 12), load8(tcp, 13));
    let back = nexthop::back(&frame, l3).ok_or(Reason::Internal)?;
    let bytes = frame.len();
    // An ACK names the sequence it expects; to anything else the reset acknowledges what came.
    let (sequence, acknowledged, flags) = if flags & ACK != 0 {
        (acknowledged, 0, RST)
    } else {
        let payload = len.wrapping_sub((l4 - l3) as u32).wrapping_sub((offset >> 4) as u32 * 4);
        let payload = payload + (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
        // Only the tail of new flows resets a SYN.
        let expected = if flags & SYN != 0 { cookie::reset_sequence() } else { 0 };
        (expected, u32::from_be(sequence).wrapping_add(payload).to_be(), RST | ACK)
    };
    let cut = (l3 + header + TCP) as i32 - bytes as i32;
    // SAFETY: the kernel's helper; pointers are taken anew below.
    if cut > 0 || unsafe { bpf_xdp_adjust_tail(frame.ctx, cut) } != 0 {
        return Err(Reason::Internal);
    }
    if l3 != ETHERNET {
        // SAFETY: as above; tags come back with the addresses.
        if unsafe { bpf_xdp_adjust_head(frame.ctx, l3 as i32 - ETHERNET as i32) } != 0 {
            return Err(Reason::NoRoomInFrame);
        }
    }
    let frame = Frame::new(frame.ctx);
    let new = frame.at(0, ETHERNET + header + TCP).ok_or(Reason::Internal)?;
    store16(new, 12, if V6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be());
    answer::write_ip::<V6>(new, from, to, protocol::TCP, TCP, DONT_FRAGMENT);
    let at = ETHERNET + header;
    let word = u32::from_ne_bytes([0x50, flags, 0, 0]);
    store32(new, at, ports.rotate_left(16));
    store32(new, at + 4, sequence);
    store32(new, at + 8, acknowledged);
    store32(new, at + 12, word);
    store32(new, at + 16, 0);
    let mut total = checksum::add(checksum::add(ports as u64, sequence), acknowledged);
    total = checksum::add(total, word);
    total = sum::<V6>(from, sum::<V6>(to, total));
    total += (TCP as u16).to_be() as u64 + (protocol::TCP as u16).to_be() as u64;
    store16(new, at + 16, !checksum::fold(total));
    let action = nexthop::send::<V6>(frame, ETHERNET, back)?;
    count::number(answer, bytes);
    Ok(action)
}
