//! What the host itself sends, seen by tc on its way out: ARP and neighbour discovery that would tell the
//! neighbours that an address is here, though this director is not the master of its VRRP instance, or its lease
//! has ended. The kernel goes on answering when the agent is dead; this keeps it from being heard. Frames that
//! the data plane forwards do not come here.

use crate::{arp, count};
use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use lb_common::{
    header::{ETHERNET, IPV6, arp as header, ethertype, nd, protocol},
    verdict::Reason,
};

/// The tc action: dropped, or whatever the next program says.
#[inline(always)]
pub fn handle(skb: &TcContext) -> i32 {
    match outcome(skb) {
        Some(reason) => {
            count::reason(reason, skb.len());
            TC_ACT_SHOT
        }
        None => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn outcome(skb: &TcContext) -> Option<Reason> {
    let mut l3 = ETHERNET;
    let mut kind = u16::from_be(skb.load::<u16>(l3 - 2).ok()?);
    // Tags that the driver does not insert lie in the frame already.
    for _ in 0..2 {
        if kind != ethertype::VLAN && kind != ethertype::QINQ {
            break;
        }
        l3 += 4;
        kind = u16::from_be(skb.load::<u16>(l3 - 2).ok()?);
    }
    match kind {
        ethertype::ARP => arp(skb, l3),
        ethertype::IPV6 => discovery(skb, l3),
        _ => None,
    }
}

/// Any ARP packet of the address teaches its receivers where it is: replies, requests, announcements.
#[inline(always)]
fn arp(skb: &TcContext, l3: usize) -> Option<Reason> {
    let first: [u8; 6] = skb.load(l3).ok()?;
    if first != header::IPV4_OVER_ETHERNET {
        return None;
    }
    let sender: u32 = skb.load(l3 + header::SENDER).ok()?;
    match arp::role_of::<false>([sender as u64, 0]) {
        Err(Reason::VrrpBackup) => Some(Reason::ArpUnsentBackup),
        Err(Reason::LeaseExpired) => Some(Reason::ArpUnsentExpired),
        _ => None,
    }
}

/// Advertisements of the address, and whatever is sent from it with a link-layer address inside (RFC 4861,
/// section 7.2.3: a solicitation's sender is noted too).
#[inline(always)]
fn discovery(skb: &TcContext, l3: usize) -> Option<Reason> {
    if skb.load::<u8>(l3 + 6).ok()? != protocol::ICMPV6 {
        return None;
    }
    let kind: u8 = skb.load(l3 + IPV6).ok()?;
    if !(nd::ROUTER_SOLICITATION..=nd::REDIRECT).contains(&kind) {
        return None;
    }
    let about = if kind == nd::NEIGHBOUR_ADVERTISEMENT { l3 + IPV6 + crate::nd::TARGET } else { l3 + 8 };
    let address: [u64; 2] = skb.load(about).ok()?;
    match arp::role_of::<true>(address) {
        Err(Reason::VrrpBackup) => Some(Reason::NdUnsentBackup),
        Err(Reason::LeaseExpired) => Some(Reason::NdUnsentExpired),
        _ => None,
    }
}
