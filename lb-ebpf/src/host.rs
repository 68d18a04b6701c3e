//! What the kernel would get although it is to an address of a VRRP instance: ARP, neighbour discovery, ICMP,
//! fragments, ports of no service. A backup leaves the address to its master, so ARP and neighbour discovery for
//! it are dropped and the rest passes; when the lease has ended, all of it is dropped. A tail: rare, and the
//! straight line knows by the filter's cell when to call it.

use crate::{
    arp, forward,
    maps::ADDRESSES,
    nd,
    packet::{Frame, Words, destination, opaque},
    tail,
};
use lb_common::{
    address::Address,
    filter::{AddressKey, AddressRecord, cell, role},
    header::{IPV4, IPV6},
    maps::programs,
    verdict::Reason,
};

/// In the scratch record's family: an ARP frame.
const ARP: u8 = 0;

/// Hands an ARP frame to the tail.
#[inline(always)]
pub fn call_arp(frame: &Frame, l3: usize) -> Reason {
    call(frame, (l3, 0), ARP, Reason::NotIp)
}

/// The reason of a packet that the kernel is to get, or the tail if its destination follows a VRRP instance.
#[inline(always)]
pub fn unless_silent<const V6: bool>(frame: &Frame, l3: usize, cell: u16, reason: Reason) -> Reason {
    unless_silent_at::<V6>(frame, (l3, l3 + if V6 { IPV6 } else { IPV4 }), cell, reason)
}

/// As [`unless_silent`], with the place of the header behind IP's.
#[inline(always)]
pub fn unless_silent_at<const V6: bool>(
    frame: &Frame,
    at: (usize, usize),
    cell: u16,
    reason: Reason,
) -> Reason {
    if cell & cell::VRRP == 0 {
        return reason;
    }
    call(frame, at, if V6 { 6 } else { 4 }, reason)
}

/// The reason of a packet that the kernel is to get, unless its destination has these roles and its instance is
/// without accept mode.
#[inline(always)]
pub fn unless_refused(roles: u16, reason: Reason) -> Reason {
    if roles & role::REFUSES != 0 { Reason::NotAccepted } else { reason }
}

/// As [`unless_silent`], where the cell was not asked: by the tail, if the destination follows an instance.
#[inline(always)]
pub fn unless_others<const V6: bool>(frame: &Frame, l3: usize, to: Words, reason: Reason) -> Reason {
    if record_of::<V6>(to).vrrp == 0 {
        return reason;
    }
    unless_silent::<V6>(frame, l3, cell::VRRP, reason)
}

/// As [`unless_silent_at`], with the reason's number: one of [`reason_of`].
#[inline(always)]
pub fn unless_silent_number<const V6: bool>(
    frame: &Frame,
    at: (usize, usize),
    cell: u16,
    reason: u32,
) -> Reason {
    unless_silent_at::<V6>(frame, at, cell, reason_of(reason))
}

#[inline(always)]
fn call(frame: &Frame, at: (usize, usize), family: u8, reason: Reason) -> Reason {
    let Some(scratch) = tail::scratch() else { return Reason::Internal };
    scratch.l3 = at.0 as u16;
    scratch.l4 = at.1 as u16;
    scratch.family = family;
    scratch.reason = reason as u32;
    tail::call(frame, programs::HOST)
}

/// What the exact table says of an address.
#[inline(always)]
pub fn record_of<const V6: bool>(address: Words) -> AddressRecord {
    let words = [address[0] as u32, (address[0] >> 32) as u32, address[1] as u32, (address[1] >> 32) as u32];
    let key = AddressKey { address: Address::from_words(words), family: if V6 { 6 } else { 4 } };
    // SAFETY: the record is copied at once; at worst it is that of an address removed just now.
    ADDRESSES.get_ptr(key).map(|p| unsafe { *p }).unwrap_or_default()
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    let reason = reason_of(scratch.reason);
    Err(match scratch.family {
        ARP => arp::received(&frame, l3),
        6 => packet::<true>(&frame, l3, l4, reason),
        _ => packet::<false>(&frame, l3, l4, reason),
    })
}

/// The reasons that come here; numbers of a map are not an enum's.
#[inline(always)]
fn reason_of(number: u32) -> Reason {
    for reason in [
        Reason::BadHeader,
        Reason::TooManyHeaders,
        Reason::Fragment,
        Reason::Icmp,
        Reason::IcmpNoFlow,
        Reason::OtherProtocol,
        Reason::NotOurs,
    ] {
        if number == reason as u32 {
            return reason;
        }
    }
    Reason::Internal
}

#[inline(always)]
fn packet<const V6: bool>(frame: &Frame, l3: usize, l4: usize, reason: Reason) -> Reason {
    let Some(ip) = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }) else { return Reason::Internal };
    // 0: no neighbour discovery. A word that each branch makes: an option's would be read where there is none.
    let kind = match if V6 { nd::kind(frame, ip, l4, reason) } else { None } {
        Some(kind) => opaque(kind as u64),
        None => opaque(0),
    };
    let record = record_of::<V6>(destination::<V6>(ip));
    if kind != 0 {
        if let Some(reason) = nd::received(frame, l4, kind as u8) {
            return reason;
        }
    }
    match forward::may_serve(record.vrrp) {
        // Never dropped for want of accept mode, or nobody would find the address (RFC 9568, section 6.1).
        Ok(()) if kind != 0 => reason,
        Ok(()) => unless_refused(record.roles, reason),
        Err(Reason::VrrpBackup) if kind != 0 => Reason::NdBackup,
        Err(Reason::LeaseExpired) if kind != 0 => Reason::NdExpired,
        Err(silent) => silent,
    }
}
