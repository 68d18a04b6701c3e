//! Power of two choices (net/netfilter/ipvs/ip_vs_twos.c): two servers are drawn by weight, the less loaded one is
//! taken. The slots of such a service name each server as often as its weight says, so a draw is a look at a slot;
//! drawing again where the server cannot be used leaves the others their shares. Only where that does not end soon,
//! and for what IPVS does otherwise, weights are added up.

use crate::{
    atomic,
    choose::lb_is_usable,
    maps::{DESTINATIONS, LOADS, SERVERS, SERVICES, SLOTS},
    tail,
    walk::{self, lb_walk},
};
use lb_common::{
    load::Load,
    scratch::Walk,
    service::{MAX_SERVERS, SERVERS_PER_LINE, SLOTS_PER_LINE, ServerEntry, Service, features},
};

/// How many slots are looked at for one draw.
const TRIES: u32 = 32;

/// The server of a new flow: a destination plus one, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_twos(index: u32, avoid: u32) -> u64 {
    let Some(service) = SERVICES.get_ptr(index) else { return 0 };
    // SAFETY: a map value.
    let features = unsafe { core::ptr::read_volatile(&raw const (*service).features) };
    let as_ipvs = features & features::LAST_FIRST != 0;
    if !as_ipvs && lb_draw(index, avoid, 0) != 0 && lb_draw(index, avoid, 1) != 0 {
        return better();
    }
    let total = lb_total(index, avoid);
    if total == 0 {
        return 0;
    }
    // 1 to the total. IPVS draws from 0 on, which favours the first server that it visits: the last here.
    let first = random_below(total.wrapping_add(as_ipvs as u64)) + 1;
    let second = random_below(total.wrapping_add(as_ipvs as u64)) + 1;
    if as_ipvs && first <= total && second <= total {
        // Both draws are fair ones.
        if lb_draw(index, avoid, 0) != 0 && lb_draw(index, avoid, 1) != 0 {
            return better();
        }
    }
    let Some(scratch) = tail::scratch() else { return 0 };
    scratch.walk.draws[0] = if first > total { total } else { first };
    scratch.walk.draws[1] = if second > total { total } else { second };
    lb_walk(index, walk::DRAW, avoid);
    better()
}

#[inline(always)]
fn random_below(n: u64) -> u64 {
    // SAFETY: takes no arguments.
    let random = unsafe { aya_ebpf::helpers::generated::bpf_get_prandom_u32() } as u64;
    random.wrapping_mul(n) >> 32
}

/// The better one of the two drawn.
#[inline(always)]
fn better() -> u64 {
    let Some(scratch) = tail::scratch() else { return 0 };
    let walk = &scratch.walk;
    let (one, other) = (walk.drawn[0], walk.drawn[1]);
    let second_is_better = walk.drawn_weight[1].wrapping_mul(walk.drawn_load[0])
        > walk.drawn_weight[0].wrapping_mul(walk.drawn_load[1]);
    // Weights that changed between the walks may leave a draw without a server.
    (if one == 0 || (other != 0 && second_is_better) { other } else { one }) as u64
}

/// Draws one of the two from the slots. 0: it could not be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_draw(index: u32, avoid: u32, which: u32) -> u64 {
    for _ in 0..TRIES {
        let chosen = lb_random_slot(index) as u32;
        if chosen != avoid && lb_is_usable(chosen) != 0 && lb_drawn(chosen, which) != 0 {
            return 1;
        }
    }
    0
}

/// What a random slot of a service names: a destination plus one, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_random_slot(index: u32) -> u64 {
    let Some(service) = SERVICES.get_ptr(index) else { return 0 };
    // SAFETY: a map value.
    let (first, len) = Service::slots_of(atomic::load(unsafe { &raw const (*service).slots }));
    let slot = first.wrapping_add(random_below(len as u64) as u32);
    let Some(line) = SLOTS.get_ptr(slot / SLOTS_PER_LINE) else { return 0 };
    if len == 0 {
        return 0;
    }
    // SAFETY: as above; the index is below SLOTS_PER_LINE.
    unsafe {
        let slots = (&raw const (*line).slots).cast::<u32>();
        core::ptr::read_volatile(slots.add((slot % SLOTS_PER_LINE) as usize)) as u64
    }
}

/// Notes a server (plus one) as drawn, with its load. 0: there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_drawn(chosen: u32, which: u32) -> u64 {
    let (Some(scratch), Some(record)) = (tail::scratch(), DESTINATIONS.get_ptr(chosen.wrapping_sub(1)))
    else {
        return 0;
    };
    // SAFETY: map values.
    let load = unsafe { core::ptr::read_volatile(&raw const (*record).load) };
    let Some(load) = LOADS.get_ptr(load) else { return 0 };
    let which = (which & 1) as usize;
    scratch.walk.drawn[which] = chosen;
    // SAFETY: as above.
    unsafe {
        scratch.walk.drawn_load[which] = Load::overhead(atomic::load(&raw const (*load).counts));
        scratch.walk.drawn_weight[which] = core::ptr::read_volatile(&raw const (*load).weight) as u64;
    }
    1
}

/// Lines of servers looked at in one call of [`lb_sum`].
const LINES: u32 = 8;
const CHUNK: u32 = LINES * SERVERS_PER_LINE;

/// The sum of the weights of a service's usable servers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_total(index: u32, avoid: u32) -> u64 {
    let Some(service) = SERVICES.get_ptr(index) else { return 0 };
    // SAFETY: a map value.
    let (first, len) = Service::slots_of(atomic::load(unsafe { &raw const (*service).servers }));
    let mut total = 0u64;
    for chunk in 0..MAX_SERVERS / CHUNK {
        let at = chunk * CHUNK;
        if at >= len {
            break;
        }
        let line = (first / SERVERS_PER_LINE).wrapping_add(chunk * LINES);
        total = total.wrapping_add(lb_sum(line, len - at, avoid));
    }
    total
}

/// [`lb_total`] of `len` servers from line `line` on, or as many as [`LINES`] hold. A last line ends in holes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_sum(line: u32, len: u32, avoid: u32) -> u64 {
    let mut total = 0u64;
    for l in 0..LINES {
        if l * SERVERS_PER_LINE >= len {
            break;
        }
        let Some(entries) = SERVERS.get_ptr(line.wrapping_add(l)) else { break };
        for k in 0..SERVERS_PER_LINE {
            // SAFETY: a map value; `k` is below the array's length.
            let entry = unsafe { (&raw const (*entries).entries).cast::<u64>().add(k as usize) };
            let entry = ServerEntry(atomic::load(entry));
            let Some(record) = LOADS.get_ptr(entry.load()) else { continue };
            // SAFETY: a map value.
            let (weight, overloaded) = unsafe {
                (
                    core::ptr::read_volatile(&raw const (*record).weight) as u64,
                    core::ptr::read_volatile(&raw const (*record).overloaded),
                )
            };
            let chosen = entry.0 as u32;
            if chosen != 0 && chosen != avoid && overloaded == 0 {
                total = total.wrapping_add(weight);
            }
        }
    }
    total
}

/// A server of the walk that follows the draws: takes its weight off what is left of them; where nothing is left, it is
/// drawn.
#[inline(always)]
pub fn draw(walk: &mut Walk, chosen: u32, overhead: u64, weight: u64) {
    for i in 0..2 {
        if walk.drawn[i] == 0 {
            if walk.draws[i] <= weight {
                walk.drawn[i] = chosen;
                walk.drawn_load[i] = overhead;
                walk.drawn_weight[i] = weight;
            } else {
                walk.draws[i] -= weight;
            }
        }
    }
}
