//! ICMP echo to a VIP, where policy wants it answered from here or dropped (RFC 792, RFC 4443, section 4.2): part of the
//! tail for ICMP that arrives. Only a master answers, as for everything else at the VIP.

use crate::{
    answer, count,
    forward::may_serve,
    host,
    maps::config,
    nexthop,
    packet::{Frame, destination, load16, load32, load64, source, store8, store16, store32, store64},
};
use lb_common::{
    checksum,
    filter::role,
    header::{ICMP, IPV4, IPV6, icmp, icmpv6},
    scratch::policy,
    verdict::Reason,
};

/// TTL and hop limit of the answer.
const TTL: u8 = 64;

/// An ICMP message of a whole packet. [`Reason::Icmp`]: the kernel's.
#[inline(always)]
pub fn arrived<const V6: bool>(frame: &Frame, l3: usize, l4: usize) -> Result<u32, Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    let request = if V6 { icmpv6::ECHO_REQUEST } else { icmp::ECHO_REQUEST };
    let policies = config!(policies);
    // What has options or extension headers is for a stack that knows what they ask.
    if policies & (policy::ECHO_ANSWER | policy::ECHO_DROP) == 0 || l4 != l3 + header {
        return Err(Reason::Icmp);
    }
    let ip = frame.at_dynamic(l3, header + ICMP).ok_or(Reason::Icmp)?;
    let kind = u16::from_ne_bytes([request, 0]);
    let len = crate::packet::ip_len::<V6>(ip);
    if load16(ip, header) != kind || len > frame.len() - l3 as u32 || len < (header + ICMP) as u32 {
        return Err(Reason::Icmp);
    }
    let to = host::record_of::<V6>(destination::<V6>(ip));
    if to.roles & role::VIP == 0 {
        return Err(Reason::Icmp);
    }
    may_serve(to.vrrp)?;
    // An answer to a source that is no host's would go to nobody, or to many (RFC 1122, section 3.2.2).
    if !is_host::<V6>(source::<V6>(ip)[0]) || policies & policy::ECHO_DROP != 0 {
        return Err(Reason::EchoDropped);
    }
    if !answer::allowed() {
        return Err(Reason::EchoLimited);
    }
    let back = nexthop::back(frame, l3).ok_or(Reason::Internal)?;
    turn::<V6>(ip);
    let reply = u16::from_ne_bytes([if V6 { icmpv6::ECHO_REPLY } else { icmp::ECHO_REPLY }, 0]);
    store16(ip, header, reply);
    // The pseudo-header of ICMPv6 has the same addresses still.
    let delta = reply as u64 + (!kind) as u64;
    store16(ip, header + 2, checksum::update(load16(ip, header + 2), delta));
    let bytes = frame.len();
    let action = nexthop::send::<V6>(*frame, l3, back)?;
    count::reason(Reason::EchoAnswered, bytes);
    Ok(action)
}

/// Whether an address, by its first word, may be one host's: no multicast, nothing of 0/8 and 127/8, not unspecified.
#[inline(always)]
fn is_host<const V6: bool>(first: u64) -> bool {
    let byte = first as u8;
    if V6 { byte != 0xff && first != 0 } else { byte != 0 && byte != 127 && byte < 224 }
}

/// Sender and receiver change places, and hops are counted anew.
#[inline(always)]
fn turn<const V6: bool>(ip: *mut u8) {
    if V6 {
        for at in [8, 16] {
            let (from, to) = (load64(ip, at), load64(ip, at + 16));
            store64(ip, at, to);
            store64(ip, at + 16, from);
        }
        store8(ip, 7, TTL);
        return;
    }
    let (from, to) = (load32(ip, 12), load32(ip, 16));
    store32(ip, 12, to);
    store32(ip, 16, from);
    let old = load16(ip, 8);
    store8(ip, 8, TTL);
    let delta = load16(ip, 8) as u64 + (!old) as u64;
    store16(ip, 10, checksum::update(load16(ip, 10), delta));
}
