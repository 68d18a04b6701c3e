//! Directors that are real servers of one another. What another director forwarded by DR has its MAC as the source,
//! and goes to this one's kernel whatever this one's tables say: a packet is forwarded once.

use crate::{
    forward::nat,
    maps::PEERS,
    packet::{Frame, destination, load16, load32},
};
use lb_common::{filter::PeerKey, header::ETHERNET};

/// Whether another real server of the VIP sent this frame. Asked where the address filter says that it may be.
#[inline(always)]
pub fn sent<const V6: bool>(frame: &Frame, ip: *const u8) -> bool {
    let Some(ethernet) = frame.at(0, ETHERNET) else { return false };
    let mac = load32(ethernet, 6) as u64 | (load16(ethernet, 10) as u64) << 32;
    let to = destination::<V6>(ip);
    lb_sent_by_peer(mac, to[0], to[1], V6 as u32) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_sent_by_peer(mac: u64, first: u64, second: u64, v6: u32) -> u64 {
    let [a, b, c, d, e, f, ..] = mac.to_ne_bytes();
    let family = if v6 != 0 { 6 } else { 4 };
    let key = PeerKey { vip: nat::address([first, second]), mac: [a, b, c, d, e, f], family };
    PEERS.get_ptr(key).is_some() as u64
}
