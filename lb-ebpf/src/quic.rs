//! QUIC: a packet with a short header (RFC 9000, section 17.3) names its server by an id inside the connection id, in
//! plain (draft-ietf-quic-load-balancers, section 5.2), so that a client whose address changed finds it again.

use crate::{
    maps::{QUIC_IDS, SERVICES},
    packet::{Frame, load8, load64},
};
use lb_common::service::QuicKey;

/// Set in the first byte of a long header; those packets go by their tuple.
const LONG: u8 = 0x80;

/// The destination plus one that a datagram's connection id names, or 0. `payload` is where the datagram begins.
#[inline(always)]
pub fn server(frame: &Frame, payload: usize, service: u32) -> u32 {
    let Some(record) = SERVICES.get_ptr(service) else { return 0 };
    // SAFETY: a map value.
    let (offset, len) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*record).quic_offset) as usize,
            core::ptr::read_volatile(&raw const (*record).quic_len) as u32,
        )
    };
    let Some(first) = frame.at_dynamic(payload, 1) else { return 0 };
    if load8(first, 0) & LONG != 0 || len == 0 || len > 8 {
        return 0;
    }
    // Eight bytes are there even behind the shortest id: a packet has a tag of sixteen.
    let Some(id) = frame.at_dynamic(payload + 1 + (offset & 0x1f), 8) else { return 0 };
    let id = load64(id, 0) & (u64::MAX >> (64 - len * 8));
    let key = QuicKey { service, len, id: id.to_ne_bytes() };
    match QUIC_IDS.get_ptr(key) {
        // SAFETY: one word, read whole.
        Some(destination) => unsafe { core::ptr::read_volatile(destination) }.wrapping_add(1),
        None => 0,
    }
}
