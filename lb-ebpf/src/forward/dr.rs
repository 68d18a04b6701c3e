//! DR: the packet stays as it is but for its TTL; the frame goes to the real server's MAC.

use super::Target;
use crate::{count, nexthop, packet::Packet};
use aya_ebpf::bindings::xdp_action;
use lb_common::verdict::Reason;

#[inline(always)]
pub fn send<const V6: bool>(packet: &Packet<V6>, target: &Target) -> Result<u32, Reason> {
    let action = deliver(packet, target)?;
    count::forwarded(target.index, packet.bytes, false);
    Ok(action)
}

/// As [`send`], not counted.
#[inline(always)]
pub fn deliver<const V6: bool>(packet: &Packet<V6>, target: &Target) -> Result<u32, Reason> {
    let hop = match target.hop() {
        Ok((hop, _)) => hop,
        // This director is the real server.
        Err(_) if target.is_local() => return Ok(xdp_action::XDP_PASS),
        Err(reason) => return Err(reason),
    };
    packet.decrement_ttl();
    nexthop::send::<V6>(packet.frame, packet.l3, hop)
}
