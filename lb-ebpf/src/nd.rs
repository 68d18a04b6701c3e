//! Neighbour discovery (RFC 4861) by the VRRP role of the address asked for: the IPv6 half of `arp`.

use crate::{
    arp,
    packet::{Frame, load8, load64},
};
use lb_common::{
    header::{nd, protocol},
    verdict::Reason,
};

/// Where solicitations and advertisements have the address they are about, in the ICMPv6 message.
pub const TARGET: usize = 8;

/// The ICMPv6 type of a packet of neighbour discovery.
#[inline(always)]
pub fn kind(frame: &Frame, ip: *const u8, l4: usize, reason: Reason) -> Option<u8> {
    // Behind extension headers only where they were walked to ICMPv6.
    if load8(ip, 6) != protocol::ICMPV6 && reason as u32 != Reason::Icmp as u32 {
        return None;
    }
    let kind = load8(frame.at_dynamic(l4, 8)?, 0);
    if (nd::ROUTER_SOLICITATION..=nd::REDIRECT).contains(&kind) { Some(kind) } else { None }
}

/// A solicitation of an address for which this host must not speak. Advertisements pass unless they are sent to
/// the address: they tell this host who has it.
#[inline(always)]
pub fn received(frame: &Frame, l4: usize, kind: u8) -> Option<Reason> {
    if kind != nd::NEIGHBOUR_SOLICITATION {
        return None;
    }
    let message = frame.at_dynamic(l4, TARGET + 16)?;
    match arp::role_of::<true>([load64(message, TARGET), load64(message, TARGET + 8)]) {
        Err(Reason::VrrpBackup) => Some(Reason::NdBackup),
        Err(Reason::LeaseExpired) => Some(Reason::NdExpired),
        _ => None,
    }
}
