//! Persistence: a template in the connection table says which server a client (a prefix of its address, or a SIP
//! call) has in a service group. It ends at its deadline, whatever its flows do; it is void when its server is gone
//! or closed to new flows.

use crate::{
    atomic,
    connection::{self, Hit, Place},
    maps::{DESTINATIONS, LOADS, SERVICES, keys},
    tail,
};
use lb_common::{
    address::Address,
    connection::{FLAG_HASHED, Kind, Value},
    destination::{Destination, flags},
    hash::{prefix_v4, prefix_v6},
    scratch::Scratch,
    service::{ServerEntry, Service, features},
    state::State,
};

/// The client's prefix in a service, from the scratch record.
#[inline(always)]
fn prefix(scratch: &Scratch, service: *mut Service) -> [u64; 2] {
    let client = scratch.client.halves();
    // SAFETY: a map value.
    let (v4, v6) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).persist_v4),
            core::ptr::read_volatile(&raw const (*service).persist_v6),
        )
    };
    if scratch.family == 6 { prefix_v6(client, v6) } else { [prefix_v4(client[0] as u32, v4) as u64, 0] }
}

/// The identity of the client's template in a service.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_template_identity(index: u32) -> u64 {
    let (Some(scratch), Some(service)) = (tail::scratch(), SERVICES.get_ptr_mut(index)) else { return 0 };
    // SAFETY: a map value.
    let (group, features) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).leader),
            core::ptr::read_volatile(&raw const (*service).features),
        )
    };
    if features & features::SIP != 0 {
        return keys().template_of_call(scratch.call, group);
    }
    let prefix = prefix(scratch, service);
    if scratch.family == 6 {
        keys().template_v6(prefix, group)
    } else {
        keys().template_v4(prefix[0] as u32, group)
    }
}

#[inline(always)]
fn place(identity: u64, v6: bool) -> Place {
    if v6 { Place::of::<true>(identity) } else { Place::of::<false>(identity) }
}

/// The destination plus one that the client's template names, or 0. A template that is void is freed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_template(index: u32, now: u32) -> u64 {
    let v6 = match tail::scratch() {
        Some(scratch) => scratch.family == 6,
        None => return 0,
    };
    let place = place(lb_template_identity(index), v6);
    let Some(hit) = connection::find_rarely(&place, now as u16) else { return 0 };
    if !matches!(hit.value.kind(), Kind::Template) {
        return 0;
    }
    let chosen = lb_template_server(index, hit.value.destination());
    if chosen == 0 {
        hit.replace(Value::EMPTY);
        return 0;
    }
    confirm(&hit);
    chosen
}

/// A client that came again has proven that it is one: its template is not thrown out for others. Its deadline stays.
#[inline(always)]
fn confirm(hit: &Hit) {
    if hit.value.state() == State::Unconfirmed as u8 {
        hit.replace(hit.value.with(State::Established as u8, hit.value.deadline()));
    }
}

/// The binding at service `index` of the server that a template names as `named`, plus one; 0 when it may not take
/// the flow. At another endpoint of the group the server stands at the same place of the list.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_template_server(index: u32, named: u32) -> u64 {
    let (Some(record), Some(service)) = (DESTINATIONS.get_ptr(named), SERVICES.get_ptr(index)) else {
        return 0;
    };
    // SAFETY: map values, here and below.
    let (of, ordinal, leader) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*record).service),
            core::ptr::read_volatile(&raw const (*record).ordinal),
            core::ptr::read_volatile(&raw const (*service).leader),
        )
    };
    let mut own = named;
    if of != index {
        let Some(other) = SERVICES.get_ptr(of) else { return 0 };
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const (*other).leader) } != leader {
            return 0;
        }
        // SAFETY: as above.
        let (first, len) = Service::slots_of(atomic::load(unsafe { &raw const (*service).servers }));
        if ordinal as u32 >= len {
            return 0;
        }
        let entry = ServerEntry(crate::walk::entry(first + ordinal as u32));
        let Some(destination) = entry.destination() else { return 0 };
        own = destination;
    }
    let Some(record) = DESTINATIONS.get_ptr(own) else { return 0 };
    // SAFETY: as above.
    let (flags, load, features) = unsafe {
        (
            Destination::flags_of(atomic::load(&raw const (*record).word)),
            core::ptr::read_volatile(&raw const (*record).load),
            core::ptr::read_volatile(&raw const (*service).features),
        )
    };
    if flags & (flags::CLOSED | flags::VALID) != flags::VALID {
        return 0;
    }
    let Some(load) = LOADS.get_ptr(load) else { return 0 };
    // SAFETY: as above. Thresholds are not asked about: IPVS (ip_vs_check_template) does not either.
    let weight = unsafe { core::ptr::read_volatile(&raw const (*load).weight) };
    if weight == 0 && features & features::STICKY_QUIESCED == 0 {
        return 0;
    }
    own as u64 + 1
}

/// Writes the template of the client: `chosen` is its destination.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_keep(index: u32, now: u32, chosen: u32) -> u64 {
    let (Some(scratch), Some(service)) = (tail::scratch(), SERVICES.get_ptr_mut(index)) else { return 0 };
    let v6 = scratch.family == 6;
    // SAFETY: a map value.
    let (timeout, group, features) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).persist_timeout),
            core::ptr::read_volatile(&raw const (*service).leader),
            core::ptr::read_volatile(&raw const (*service).features),
        )
    };
    let place = place(lb_template_identity(index), v6);
    let deadline = (now as u16).wrapping_add(timeout);
    let word = Value::flow(Kind::Template, chosen, place.first, State::Unconfirmed, deadline);
    let word = if features & features::SIP != 0 { word.with_flags(FLAG_HASHED) } else { word };
    // The cold tuple of an IPv6 template; the flow's own is written into the scratch record again before use.
    let (client, ports) = (scratch.client, scratch.ports);
    let prefix = prefix(scratch, service);
    scratch.client = Address::from_words([
        prefix[0] as u32,
        (prefix[0] >> 32) as u32,
        prefix[1] as u32,
        (prefix[1] >> 32) as u32,
    ]);
    scratch.ports = group;
    // Without room there is no stickiness, but a flow all the same.
    connection::lb_insert(place.identity, word.0, now, v6 as u32);
    scratch.client = client;
    scratch.ports = ports;
    0
}
