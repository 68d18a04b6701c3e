//! ARP by the VRRP role of the address asked for. An answer given by a host that must not answer moves the VIP
//! to it, in every neighbour that hears it.

use crate::{
    forward, host,
    ingress::{filter_cell, key_of},
    packet::{Frame, Words, load8, load16, load32},
};
use lb_common::{filter::cell, header::arp, verdict::Reason};

/// What becomes of an ARP frame. Dropped is what is for the address: requests, which the kernel would answer,
/// and replies to it. Announcements of the address (sender and target are the same) pass: they only tell this
/// host who has it, and its own packets to the VIP must find the master.
#[inline(always)]
pub fn received(frame: &Frame, l3: usize) -> Reason {
    let Some(packet) = frame.at_dynamic(l3, arp::LENGTH) else { return Reason::NotIp };
    const FIRST: u32 = u32::from_ne_bytes([0, 1, 8, 0]);
    const LENGTHS: u16 = u16::from_ne_bytes([6, 4]);
    if load32(packet, 0) != FIRST || load16(packet, 4) != LENGTHS || load8(packet, 6) != 0 {
        return Reason::NotIp;
    }
    let (sender, target) = (load32(packet, arp::SENDER), load32(packet, arp::TARGET));
    if sender == target {
        return Reason::NotIp;
    }
    match role_of::<false>([target as u64, 0]) {
        Err(Reason::VrrpBackup) => Reason::ArpBackup,
        Err(Reason::LeaseExpired) => Reason::ArpExpired,
        Err(other) => other,
        Ok(()) => Reason::NotIp,
    }
}

/// Whether this host may speak for an address: always where it follows no VRRP instance.
#[inline(always)]
pub fn role_of<const V6: bool>(address: Words) -> Result<(), Reason> {
    let (key, _) = key_of::<V6>(address);
    if filter_cell(key) & cell::VRRP == 0 {
        return Ok(());
    }
    forward::may_serve(host::record_of::<V6>(address).vrrp)
}
