//! Choosing a server: the service's slot table, read at its cursor or at a hash of the client.

use crate::{
    atomic,
    maps::{PORT_RANGES, SLOTS},
    packet::Packet,
};
use lb_common::{
    hash,
    service::{MAX_RANGES, Pick, SLOTS_PER_LINE, Service},
};

/// A choice in a service's slot table.
#[derive(Clone, Copy)]
pub struct Choice {
    first: u32,
    len: u32,
    at: u32,
}

impl Choice {
    /// The destination in this slot.
    #[inline(always)]
    pub fn destination(&self) -> Option<u32> {
        let slot = self.first.wrapping_add(self.at);
        let line = SLOTS.get_ptr(slot / SLOTS_PER_LINE)?;
        // SAFETY: a map value; the index is below SLOTS_PER_LINE.
        let value = unsafe {
            let slots = (&raw const (*line).slots).cast::<u32>();
            core::ptr::read_volatile(slots.add((slot % SLOTS_PER_LINE) as usize))
        };
        value.checked_sub(1)
    }

    /// Another slot, for a flow that its server cannot take. The stride is odd and large, so that neighbours
    /// in a weighted cycle, which are often the same server, are left behind.
    #[inline(always)]
    pub fn next(self) -> Self {
        Self { at: (self.at + 1) % if self.len == 0 { 1 } else { self.len }, ..self }
    }
}

/// The slot for a new flow; none when the service has no slots.
#[inline(always)]
pub fn pick<const V6: bool>(packet: &Packet<V6>, service: *mut Service) -> Option<Choice> {
    // SAFETY: a map value; the slots word is read once, so first and length belong together.
    let (word, pick) = unsafe {
        (atomic::load(&raw const (*service).slots), core::ptr::read_volatile(&raw const (*service).pick))
    };
    let (first, len) = Service::slots_of(word);
    if len == 0 {
        return None;
    }
    let at = if pick == Pick::Cursor as u8 {
        // SAFETY: a map value.
        (atomic::fetch_add(unsafe { &raw mut (*service).cursor }, 1) % len as u64) as u32
    } else {
        let port = if pick == Pick::HashAddressPort as u8 { packet.ports() as u16 } else { 0 };
        hash::slot_of_hash(hash::slot_hash(packet.source(), port), len)
    };
    Some(Choice { first, len, at })
}

/// The service of a port in a VIP's range list.
#[inline(always)]
pub fn in_ranges(list: u32, port: u16) -> Option<u32> {
    let list = PORT_RANGES.get_ptr(list)?;
    for i in 0..MAX_RANGES {
        // SAFETY: a map value; `i` is below MAX_RANGES.
        let range = unsafe { core::ptr::read_volatile(&raw const (*list).ranges[i]) };
        if range.first <= port && port <= range.last {
            return Some(range.service);
        }
        if range.first > range.last {
            break;
        }
    }
    None
}
