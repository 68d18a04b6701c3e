//! Choosing a server: the service's slot table, read at its cursor or at a hash of the client.

use crate::{
    atomic,
    forward::nat,
    maps::{PORT_RANGES, SLOTS},
    packet::Packet,
    tail,
};
use lb_common::{
    hash,
    maps::programs,
    service::{MAX_RANGES, Pick, SLOTS_PER_LINE, Service, features},
    verdict::Reason,
};

/// A choice in a service's slot table.
#[derive(Clone, Copy)]
pub struct Choice {
    first: u32,
    len: u32,
    at: u32,
    /// Of a service with rules: the destination that was chosen, plus one.
    chosen: u32,
}

impl Choice {
    /// Whether it was chosen by the rules of the service, not read from its slots.
    #[inline(always)]
    pub fn is_by_rules(&self) -> bool {
        self.chosen != 0
    }

    /// The destination in this slot.
    #[inline(always)]
    pub fn destination(&self) -> Option<u32> {
        if self.chosen != 0 {
            return Some(self.chosen - 1);
        }
        let slot = self.first.wrapping_add(self.at);
        let line = SLOTS.get_ptr(slot / SLOTS_PER_LINE)?;
        // SAFETY: a map value; the index is below SLOTS_PER_LINE.
        let value = unsafe {
            let slots = (&raw const (*line).slots).cast::<u32>();
            core::ptr::read_volatile(slots.add((slot % SLOTS_PER_LINE) as usize))
        };
        value.checked_sub(1)
    }

    /// Another slot, for a flow that its server cannot take.
    #[inline(always)]
    pub fn next(self) -> Self {
        Self { at: (self.at + 1) % if self.len == 0 { 1 } else { self.len }, ..self }
    }
}

/// How many servers are chosen for a NAT flow whose reply would be another flow's.
pub const CHOICES: u32 = 4;

/// The server for a new flow, or why there is none. A service with rules has it chosen by a tail, which comes back
/// here.
#[inline(always)]
pub fn pick<const V6: bool>(
    packet: &Packet<V6>,
    service: (u32, *mut Service),
    features: u32,
    event: u32,
) -> Result<Choice, Reason> {
    // The server of an expected flow is known, whatever the rules.
    if features & features::RARE == 0 && event != Reason::FlowExpected as u32 {
        return slot(packet, service.1).ok_or(Reason::NoServer);
    }
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    if scratch.choices == 0 {
        return Err(choose(packet, service.0, event, 0));
    }
    let chosen = scratch.chosen;
    if chosen != 0 { Ok(Choice { first: 0, len: 0, at: 0, chosen }) } else { Err(reason_of(scratch.refused)) }
}

/// Another server than this choice's, of a service with rules, for a flow that its server cannot take. Does not come
/// back unless there is none.
#[inline(always)]
pub fn again<const V6: bool>(packet: &Packet<V6>, service: u32, event: u32, choice: Choice) -> Reason {
    match tail::scratch() {
        Some(scratch) if scratch.choices < CHOICES => choose(packet, service, event, choice.chosen),
        Some(_) => Reason::ReplyConflict,
        None => Reason::Internal,
    }
}

#[inline(always)]
fn choose<const V6: bool>(packet: &Packet<V6>, service: u32, event: u32, avoid: u32) -> Reason {
    let Some(scratch) = tail::scratch() else { return Reason::Internal };
    scratch.client = nat::address(packet.source());
    scratch.ports = packet.ports();
    scratch.service = service;
    scratch.event = event;
    scratch.avoid = avoid;
    tail::call(&packet.frame, programs::CHOOSE)
}

/// The reasons for which no server is chosen.
#[inline(always)]
fn reason_of(number: u32) -> Reason {
    if number == Reason::AccessDenied as u32 {
        Reason::AccessDenied
    } else if number == Reason::NewFlowsLimited as u32 {
        Reason::NewFlowsLimited
    } else if number == Reason::NoCallId as u32 {
        Reason::NoCallId
    } else if number == Reason::NoServer as u32 {
        Reason::NoServer
    } else {
        Reason::Internal
    }
}

/// The slot for a new flow; none when the service has no slots.
#[inline(always)]
fn slot<const V6: bool>(packet: &Packet<V6>, service: *mut Service) -> Option<Choice> {
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
    Some(Choice { first, len, at, chosen: 0 })
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
