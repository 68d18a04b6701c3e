//! The tail that answers with an ICMP error: the frame is cut to its quote, gets an ICMP and an IP header
//! before it, and goes back to its sender. The source is the VIP.

use crate::{
    answer,
    nexthop::{self, Hop},
    packet::{Frame, Words, ip_len, load16, opaque, source, store16, store32, sum},
    tail,
};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use lb_common::{
    checksum,
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    verdict::Reason,
};

const ICMP: usize = 8;
/// Bytes quoted at most: more than any transport's ports need, and few enough to sum.
const QUOTE: usize = 128;

/// What is said, copied from the scratch record before the frame changes.
#[derive(Clone, Copy)]
struct Say {
    kind: u8,
    code: u8,
    mtu: u32,
    source: Words,
    answer: u32,
    /// As [`lb_common::scratch::Scratch::bytes`], and the way to who is told.
    bytes: u32,
    /// As [`lb_common::scratch::Scratch::l4`].
    there: u16,
    elsewhere: Hop,
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    // An answer to somebody else was allowed by whoever asks for it.
    if scratch.bytes == 0 && !answer::allowed() {
        return Err(if scratch.limited == Reason::TtlExpired as u32 {
            Reason::TtlExpired
        } else if scratch.limited == Reason::NoServer as u32 {
            Reason::NoServer
        } else {
            Reason::TooBigLimited
        });
    }
    let l3 = scratch.l3 as usize & 0x1f;
    let say = Say {
        kind: scratch.icmp as u8,
        code: (scratch.icmp >> 8) as u8,
        mtu: scratch.mtu,
        source: scratch.source,
        answer: scratch.answer,
        bytes: scratch.bytes,
        there: scratch.l4,
        elsewhere: Hop {
            destination: scratch.client_destination,
            source: scratch.client_source,
            ifindex: scratch.client_ifindex,
        },
    };
    if scratch.family == 6 { build::<true>(frame, l3, say) } else { build::<false>(frame, l3, say) }
}

#[inline(always)]
fn build<const V6: bool>(frame: Frame, l3: usize, say: Say) -> Result<u32, Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    let ip = frame.at_dynamic(l3, header).ok_or(Reason::Internal)?;
    let to = source::<V6>(ip);
    let mut back = nexthop::back(&frame, l3).ok_or(Reason::Internal)?;
    let mut bytes = frame.len();
    let mut quote = core::cmp::min(ip_len::<V6>(ip) as usize, QUOTE);
    if say.bytes != 0 {
        // A packet that was quoted to us: there may be less of it than it says, and padding behind.
        (back, bytes) = (say.elsewhere, say.bytes);
        quote = core::cmp::min(quote, say.there as usize);
    }
    let quote = opaque(quote as u64) as usize & 0xfe;
    // Cut behind the quote, then make room for an untagged frame; tags come back with the addresses.
    let cut = (l3 + quote) as i32 - frame.len() as i32;
    // SAFETY: the kernel's helper; pointers are taken anew below.
    if cut > 0 || unsafe { bpf_xdp_adjust_tail(frame.ctx, cut) } != 0 {
        return Err(Reason::Internal);
    }
    let delta = l3 as i32 - (ETHERNET + header + ICMP) as i32;
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_head(frame.ctx, delta) } != 0 {
        return Err(Reason::NoRoomInFrame);
    }
    let frame = Frame::new(frame.ctx);
    let new = frame.at(0, ETHERNET + header + ICMP).ok_or(Reason::Internal)?;
    store16(new, 12, if V6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be());
    let next = if V6 { protocol::ICMPV6 } else { protocol::ICMP };
    answer::write_ip::<V6>(new, say.source, to, next, ICMP + quote, 0);
    write_icmp::<V6>(&frame, new, to, say, quote);
    let action = nexthop::send::<V6>(frame, ETHERNET, back)?;
    crate::count::number(say.answer, bytes);
    Ok(action)
}

#[inline(always)]
fn write_icmp<const V6: bool>(frame: &Frame, new: *mut u8, to: Words, say: Say, quote: usize) {
    let at = ETHERNET + if V6 { IPV6 } else { IPV4 };
    let kind = u16::from_ne_bytes([say.kind, say.code]);
    // IPv4 has the MTU in the lower half of the word (RFC 1191), IPv6 in all of it.
    let rest = say.mtu.to_be();
    store16(new, at, kind);
    store16(new, at + 2, 0);
    store32(new, at + 4, rest);
    let mut total = checksum::add(kind as u64, rest);
    if V6 {
        // The pseudo-header (RFC 8200, section 8.1).
        total = sum::<true>(to, sum::<true>(say.source, total));
        total += (((ICMP + quote) as u16).to_be() as u64) + ((protocol::ICMPV6 as u16).to_be() as u64);
    }
    let first = at + ICMP;
    for i in 0..QUOTE / 2 {
        if i * 2 >= quote {
            break;
        }
        let Some(word) = frame.at(first + i * 2, 2) else { break };
        total += load16(word, 0) as u64;
    }
    store16(new, at + 2, !checksum::fold(total));
}
