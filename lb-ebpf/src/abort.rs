//! The tail that answers an SCTP packet with ABORT: the frame is turned into it. By the rules for packets that belong to
//! no association (RFC 9260, section 8.4), which also fit one whose server was given up: the verification tag comes
//! back with the T bit, but to an INIT its own initiate tag goes.

use crate::{
    answer, count, nexthop,
    packet::{Frame, destination, ip_len, load8, load16, load32, opaque, source, store16, store32},
    tail,
};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use lb_common::{
    crc32c,
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    sctp::{CHUNK, HEADER, T_BIT, chunk},
    verdict::Reason,
};

/// Common header and one chunk.
const ANSWER: usize = HEADER + CHUNK;
/// How many chunks are looked at for one that forbids an answer.
const CHUNKS: usize = 8;
/// The cause in an ERROR chunk: a stale cookie (RFC 9260, section 3.3.10.3).
const STALE_COOKIE: u16 = 3;
/// DF, network order.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    let answer = scratch.answer;
    if scratch.family == 6 {
        build::<true>(frame, l3, l4, answer)
    } else {
        build::<false>(frame, l3, l4, answer)
    }
}

/// The reason of a packet that gets no answer.
#[inline(always)]
fn silent(answer: u32) -> Reason {
    if answer == Reason::NoServerReset as u32 { Reason::NoServer } else { Reason::UnknownFlowDropped }
}

#[inline(always)]
fn build<const V6: bool>(frame: Frame, l3: usize, l4: usize, answer: u32) -> Result<u32, Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    let ip = frame.at_dynamic(l3, header).ok_or(Reason::Internal)?;
    let (from, to, len) = (destination::<V6>(ip), source::<V6>(ip), ip_len::<V6>(ip));
    let end = l3 + len as usize;
    let sctp = frame.at_dynamic(l4, ANSWER).ok_or(Reason::Internal)?;
    let (ports, tag, first) = (load32(sctp, 0), load32(sctp, 4), load8(sctp, HEADER));
    if is_silenced(&frame, l4 + HEADER, end) {
        return Err(silent(answer));
    }
    let (tag, kind, flags) = if first == chunk::INIT {
        let initiate = frame.at_dynamic(l4 + ANSWER, 4).ok_or(Reason::BadTransport)?;
        let tag = load32(initiate, 0);
        // Not allowed (section 3.3.2), and no tag to answer with.
        if tag == 0 {
            return Err(silent(answer));
        }
        (tag, chunk::ABORT, 0)
    } else if first == chunk::SHUTDOWN_ACK {
        (tag, chunk::SHUTDOWN_COMPLETE, T_BIT)
    } else {
        (tag, chunk::ABORT, T_BIT)
    };
    if !answer::allowed() {
        return Err(Reason::ResetLimited);
    }
    let back = nexthop::back(&frame, l3).ok_or(Reason::Internal)?;
    let bytes = frame.len();
    let cut = (l3 + header + ANSWER) as i32 - bytes as i32;
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
    let new = frame.at(0, ETHERNET + header + ANSWER).ok_or(Reason::Internal)?;
    store16(new, 12, if V6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be());
    answer::write_ip::<V6>(new, from, to, protocol::SCTP, ANSWER, DONT_FRAGMENT);
    let at = ETHERNET + header;
    let word = u32::from_ne_bytes([kind, flags, 0, CHUNK as u8]);
    let ports = ports.rotate_left(16);
    store32(new, at, ports);
    store32(new, at + 4, tag);
    store32(new, at + 8, crc32c::of_sixteen([ports, tag, 0, word]));
    store32(new, at + 12, word);
    let action = nexthop::send::<V6>(frame, ETHERNET, back)?;
    count::number(answer, bytes);
    Ok(action)
}

/// Whether a packet has a chunk to which silence is the answer: ABORT, SHUTDOWN COMPLETE, COOKIE ACK, or an ERROR that
/// says the cookie was stale (section 8.4, points 2, 6 and 7).
#[inline(always)]
fn is_silenced(frame: &Frame, first: usize, end: usize) -> bool {
    let mut offset = first;
    for _ in 0..CHUNKS {
        // One way for the verifier, whatever the lengths were; and what lies further is not looked at.
        offset = opaque(offset as u64) as usize;
        if offset + CHUNK > end || offset > 2048 {
            return false;
        }
        let Some(header) = frame.at_dynamic(offset, CHUNK) else { return false };
        let kind = load8(header, 0);
        let len = u16::from_be(load16(header, 2)) as usize;
        if kind == chunk::ABORT || kind == chunk::SHUTDOWN_COMPLETE || kind == chunk::COOKIE_ACK {
            return true;
        }
        if kind == chunk::ERROR {
            if let Some(cause) = frame.at_dynamic(offset + CHUNK, 2) {
                if load16(cause, 0) == STALE_COOKIE.to_be() {
                    return true;
                }
            }
        }
        if len < CHUNK {
            return false;
        }
        offset += (len + 3) & !3;
    }
    false
}
