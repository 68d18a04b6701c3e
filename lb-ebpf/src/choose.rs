//! The choice of a server for services that ask for more than a slot: limits, persistence, counted schedulers, checks
//! of the slot's server. Functions of their own, which the verifier looks at once; what they need to know of
//! the packet is in the scratch record.

use crate::{
    atomic, connection,
    limits::{self, lb_new_flow_fits},
    maps::{DESTINATIONS, LOADS, SERVICES, SLOTS},
    packet::{Frame, opaque},
    persistence::{lb_keep, lb_template},
    quic, sip, tail,
    twos::lb_twos,
    walk::{HALF_IDLE, MEMBERS, MOST_LOADED, lb_mark, lb_walk},
};
use aya_ebpf::bindings::xdp_md;
use lb_common::{
    destination::{Destination, flags},
    hash,
    header::protocol,
    ipvs,
    load::Load,
    maps::programs,
    scratch::Scratch,
    service::{Pick, SLOTS_PER_LINE, Service, features},
    verdict::Reason,
};

/// The tail's path: from the tail of new flows and back to it. It holds no pointers into the frame meanwhile.
#[inline(always)]
pub fn handle(ctx: *mut xdp_md) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    scratch.choices = scratch.choices.wrapping_add(1);
    scratch.chosen = 0;
    match choose(ctx, scratch, connection::now()) {
        Ok(chosen) => scratch.chosen = chosen,
        Err(reason) => scratch.refused = reason as u32,
    }
    let back = if scratch.protocol == protocol::SCTP { programs::SCTP_NEW } else { programs::NEW };
    Err(tail::call(&Frame::new(ctx), back))
}

/// The server of a new flow: its destination plus one. Limits and persistence are asked at the first try only, not
/// when the first server could not take the flow.
#[inline(always)]
fn choose(ctx: *mut xdp_md, scratch: &mut Scratch, now: u16) -> Result<u32, Reason> {
    let (index, avoid, now) = (scratch.service, scratch.avoid, now as u32);
    let service = SERVICES.get_ptr(index).ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    let (features, leader, limit) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).features),
            core::ptr::read_volatile(&raw const (*service).leader),
            core::ptr::read_volatile(&raw const (*service).new_per_second),
        )
    };
    if avoid == 0 {
        if limits::refuses(service) {
            return Err(Reason::AccessDenied);
        }
        if features & features::RATE != 0 && lb_new_flow_fits(leader, limit) == 0 {
            return Err(Reason::NewFlowsLimited);
        }
        let payload = (scratch.l4 as usize & 0x7ff) + 8;
        if features & features::QUIC != 0 {
            let named = quic::server(&Frame::new(ctx), payload, index);
            if named != 0 && lb_is_open(named) != 0 {
                return Ok(named);
            }
        }
        if features & features::SIP != 0 {
            scratch.call = sip::call(&Frame::new(ctx), payload, &mut scratch.walk.draws);
            if scratch.call == 0 {
                return Err(Reason::NoCallId);
            }
        }
        if features & features::PERSISTENT != 0 {
            let kept = lb_template(index, now) as u32;
            if kept != 0 {
                crate::count::event(Reason::FlowSticky);
                return Ok(kept);
            }
        }
    }
    let chosen = lb_pick(index, avoid) as u32;
    if chosen == 0 {
        return Err(Reason::NoServer);
    }
    if features & features::PERSISTENT != 0 && avoid == 0 {
        lb_keep(index, now, chosen - 1);
    }
    Ok(chosen)
}

/// Whether a destination (plus one) may be given flows that belong to it: it is in use and not closed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_is_open(chosen: u32) -> u64 {
    let Some(record) = DESTINATIONS.get_ptr(chosen.wrapping_sub(1)) else { return 0 };
    // SAFETY: a map value.
    let flags = Destination::flags_of(atomic::load(unsafe { &raw const (*record).word }));
    (flags & (flags::CLOSED | flags::VALID) == flags::VALID) as u64
}

/// Whether a destination (plus one) may be given a new flow: open, of some weight, not overloaded.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_is_usable(chosen: u32) -> u64 {
    if chosen == 0 || lb_is_open(chosen) == 0 {
        return 0;
    }
    let Some(record) = DESTINATIONS.get_ptr(chosen - 1) else { return 0 };
    // SAFETY: map values.
    let load = unsafe { core::ptr::read_volatile(&raw const (*record).load) };
    let Some(load) = LOADS.get_ptr(load) else { return 0 };
    // SAFETY: as above.
    let (weight, overloaded) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*load).weight),
            core::ptr::read_volatile(&raw const (*load).overloaded),
        )
    };
    (weight != 0 && overloaded == 0) as u64
}

/// How many slots are tried when the first one's server cannot be used.
const SLOT_TRIES: u32 = 64;

/// The scheduler: a destination plus one, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_pick(index: u32, avoid: u32) -> u64 {
    let Some(service) = SERVICES.get_ptr(index) else { return 0 };
    // SAFETY: a map value.
    let (pick, features) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).pick) as u32,
            core::ptr::read_volatile(&raw const (*service).features),
        )
    };
    if pick == Pick::Twos as u32 {
        return lb_twos(index, avoid);
    }
    if pick == Pick::Lblc as u32 || pick == Pick::Lblcr as u32 {
        return lb_locality(index, (pick == Pick::Lblcr as u32) as u32, avoid);
    }
    if pick >= Pick::Lc as u32 && pick <= Pick::Ovf as u32 {
        return lb_walk(index, pick, avoid);
    }
    let cursor = pick == Pick::Cursor as u32;
    if !cursor && features & features::FALLBACK == 0 {
        let chosen = lb_slot(index, 0, 0) as u32;
        return if chosen != avoid && lb_is_usable(chosen) != 0 { chosen as u64 } else { 0 };
    }
    let mut first = 0;
    for n in 0..SLOT_TRIES {
        let answer = lb_slot(index, n, first);
        if n == 0 {
            first = (answer >> 32) as u32;
        }
        let chosen = answer as u32;
        if chosen != avoid && lb_is_usable(chosen) != 0 {
            return chosen as u64;
        }
        first = opaque(first as u64) as u32;
    }
    lb_walk(index, Pick::Wlc as u32, avoid)
}

/// The slot of try `n`: its destination plus one in the lower half, its place in the table in the upper.
/// `first` is the place of the first try.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_slot(index: u32, n: u32, first: u32) -> u64 {
    let (Some(scratch), Some(service)) = (tail::scratch(), SERVICES.get_ptr(index)) else { return 0 };
    // SAFETY: map values, here and below.
    let (word, pick, features, leader, v4, v6) = unsafe {
        (
            atomic::load(&raw const (*service).slots),
            core::ptr::read_volatile(&raw const (*service).pick) as u32,
            core::ptr::read_volatile(&raw const (*service).features),
            core::ptr::read_volatile(&raw const (*service).leader),
            core::ptr::read_volatile(&raw const (*service).hash_v4),
            core::ptr::read_volatile(&raw const (*service).hash_v6),
        )
    };
    let (start, len) = Service::slots_of(word);
    if len == 0 {
        return 0;
    }
    let mut client = scratch.client.halves();
    if features & features::HASH_PREFIX != 0 {
        client = if scratch.family == 6 {
            hash::prefix_v6(client, v6)
        } else {
            [hash::prefix_v4(client[0] as u32, v4) as u64, 0]
        };
    }
    // SAFETY: as above.
    let port = scratch.ports as u16;
    let at = if pick == Pick::IpvsSh as u32 || pick == Pick::IpvsShPort as u32 {
        let port = if pick == Pick::IpvsShPort as u32 { u16::from_be(port) } else { 0 };
        let offset = if n == 0 { 0 } else { ipvs::sh_fallback_offset(first, n - 1) };
        ipvs::sh(ipvs::fold(client), port, offset)
    } else if pick == Pick::IpvsMh as u32 || pick == Pick::IpvsMhPort as u32 {
        let port = if pick == Pick::IpvsMhPort as u32 { u16::from_be(port) } else { 0 };
        let offset = if n == 0 { 0 } else { ipvs::mh_fallback_offset(first, n - 1) };
        ipvs::mh_slot(ipvs::fold(client), port, offset)
    } else if n != 0 {
        first.wrapping_add(n)
    } else if pick == Pick::Cursor as u32 {
        match SERVICES.get_ptr_mut(leader) {
            // SAFETY: as above.
            Some(leader) => (atomic::fetch_add(unsafe { &raw mut (*leader).cursor }, 1) % len as u64) as u32,
            None => 0,
        }
    } else if pick == Pick::HashDestination as u32 {
        0
    } else {
        let port = if pick == Pick::HashAddressPort as u32 { port } else { 0 };
        hash::slot_of_hash(hash::slot_hash(client, port), len)
    };
    let at = at % len;
    let slot = start.wrapping_add(at);
    let Some(line) = SLOTS.get_ptr(slot / SLOTS_PER_LINE) else { return 0 };
    // SAFETY: as above; the index is below SLOTS_PER_LINE.
    let value = unsafe {
        let slots = (&raw const (*line).slots).cast::<u32>();
        core::ptr::read_volatile(slots.add((slot % SLOTS_PER_LINE) as usize))
    };
    value as u64 | (at as u64) << 32
}

/// Seconds after which lblcr takes the most loaded server out of a set that did not change: IPVS's
/// `lblcr_expiration`.
const SET_EXPIRATION: u64 = 24 * 3600;

/// lblc and lblcr (`sets`): the server, or the best of the set of servers, that the VIP went to before, unless it has
/// more active flows than its weight while another one is half idle (ip_vs_lblc.c, ip_vs_lblcr.c).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_locality(index: u32, sets: u32, avoid: u32) -> u64 {
    let Some(service) = SERVICES.get_ptr_mut(index) else { return 0 };
    // SAFETY: map values, here and below.
    let cached = unsafe { &raw mut (*service).cached };
    let known = atomic::load(cached);
    // SAFETY: reads one word.
    let jiffies = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
    let hz = crate::maps::config!(hz) as u64;
    let seconds = jiffies.checked_div(hz).unwrap_or(jiffies) & 0xffff_ffff;
    let mut chosen = known as u32;
    if sets != 0 {
        chosen = lb_walk(index, Pick::Wlc as u32 | MEMBERS, avoid) as u32;
        let size = tail::scratch().map_or(0, |scratch| scratch.walk.seen);
        if size > 1 && seconds.wrapping_sub(known >> 32) & 0xffff_ffff > SET_EXPIRATION {
            lb_walk(index, MOST_LOADED | MEMBERS, 0);
            lb_mark(0);
            atomic::store(cached, seconds << 32);
        }
    }
    if chosen != avoid && lb_is_usable(chosen) != 0 {
        if lb_is_busy(chosen) == 0 || lb_walk(index, HALF_IDLE, avoid) == 0 {
            return chosen as u64;
        }
    }
    let chosen = lb_walk(index, Pick::Wlc as u32, avoid);
    if chosen != 0 {
        if sets != 0 {
            lb_mark(1);
            atomic::store(cached, seconds << 32);
        } else {
            atomic::store(cached, chosen);
        }
    }
    chosen
}

/// Whether a destination (plus one) has more active flows than its weight.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_is_busy(chosen: u32) -> u64 {
    let Some(record) = DESTINATIONS.get_ptr(chosen.wrapping_sub(1)) else { return 0 };
    // SAFETY: map values.
    let load = unsafe { core::ptr::read_volatile(&raw const (*record).load) };
    let Some(load) = LOADS.get_ptr(load) else { return 0 };
    // SAFETY: as above.
    let (counts, weight) = unsafe {
        (atomic::load(&raw const (*load).counts), core::ptr::read_volatile(&raw const (*load).weight))
    };
    (Load::counts_of(counts).0 > weight) as u64
}
