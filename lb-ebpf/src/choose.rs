//! The choice of a server for services that ask for more than a slot: limits, persistence, counted schedulers, checks
//! of the slot's server. Functions of their own, which the verifier looks at once; what they need to know of
//! the packet is in the scratch record.

use crate::{
    atomic, connection,
    limits::{lb_access, lb_new_flow_fits},
    maps::{DESTINATIONS, LOADS, SERVERS, SERVICES, SLOTS},
    packet::{Frame, opaque},
    persistence::{lb_keep, lb_template},
    quic, sip, tail,
};
use aya_ebpf::bindings::xdp_md;
use lb_common::{
    destination::{Destination, flags},
    hash, ipvs,
    load::Load,
    maps::programs,
    scratch::{Scratch, Walk},
    service::{
        ACL_ALLOW, ACL_DENY, MAX_SERVERS, Pick, SERVERS_PER_LINE, SLOTS_PER_LINE, ServerEntry, Service,
        features,
    },
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
    Err(tail::call(&Frame::new(ctx), programs::NEW))
}

/// The server of a new flow: its destination plus one. Limits and persistence are asked at the first try only, not
/// when the first server could not take the flow.
#[inline(always)]
fn choose(ctx: *mut xdp_md, scratch: &mut Scratch, now: u16) -> Result<u32, Reason> {
    let (index, avoid, now) = (scratch.service, scratch.avoid, now as u32);
    let service = SERVICES.get_ptr(index).ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    let (features, acl, leader, limit) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).features),
            core::ptr::read_volatile(&raw const (*service).acl),
            core::ptr::read_volatile(&raw const (*service).leader),
            core::ptr::read_volatile(&raw const (*service).new_per_second),
        )
    };
    if avoid == 0 {
        if features & features::ACL != 0 {
            let access = lb_access(acl as u32) as u32;
            let others = features & features::ACL_REFUSES_OTHERS != 0;
            if access == ACL_DENY || (access != ACL_ALLOW && others) {
                return Err(Reason::AccessDenied);
            }
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

/// An entry of the packed lists of servers.
#[inline(always)]
pub fn entry(at: u32) -> u64 {
    match word_at(at) {
        Some(word) => atomic::load(word),
        None => 0,
    }
}

#[inline(always)]
fn word_at(at: u32) -> Option<*mut u64> {
    let line = SERVERS.get_ptr_mut(at / SERVERS_PER_LINE)?;
    // SAFETY: a map value; the index is below SERVERS_PER_LINE.
    Some(unsafe { (&raw mut (*line).entries).cast::<u64>().add((at % SERVERS_PER_LINE) as usize) })
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

/// Rules of a walk beside those of [`Pick`]: is there a server with less than half the active flows of its weight?
const HALF_IDLE: u32 = 32;
/// The most loaded one.
const MOST_LOADED: u32 = 33;
/// Only members of lblcr's set.
const MEMBERS: u32 = 1 << 8;
/// Equal servers are preferred from the end of the list.
const LAST_FIRST: u32 = 1 << 9;
/// twos: adds the weights up.
const ADD_UP: u32 = 34;
/// twos: finds the servers drawn.
const DRAW: u32 = 35;

/// Servers looked at in one call of [`lb_walk_lines`].
const LINES: u32 = 32;
const CHUNK: u32 = LINES * SERVERS_PER_LINE;

/// Walks the whole list of a service by a rule. The best server's destination plus one; the scratch record's walk
/// holds the rest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_walk(index: u32, rule: u32, avoid: u32) -> u64 {
    let (Some(scratch), Some(service)) = (tail::scratch(), SERVICES.get_ptr(index)) else { return 0 };
    // SAFETY: map values, here and below.
    let (word, features, leader) = unsafe {
        (
            atomic::load(&raw const (*service).servers),
            core::ptr::read_volatile(&raw const (*service).features),
            core::ptr::read_volatile(&raw const (*service).leader),
        )
    };
    let (first, len) = Service::slots_of(word);
    if len == 0 || len > MAX_SERVERS {
        return 0;
    }
    let mut start = 0;
    if features & features::ROTATE != 0 {
        if let Some(leader) = SERVICES.get_ptr_mut(leader) {
            // SAFETY: as above.
            let cursor = atomic::fetch_add(unsafe { &raw mut (*leader).cursor }, 1);
            // Never 0, which the compiler does not see.
            start = cursor.checked_rem(len as u64).unwrap_or(0) as u32;
        }
    }
    let walk = &mut scratch.walk;
    walk.rule = rule | if features & features::LAST_FIRST != 0 { LAST_FIRST } else { 0 };
    walk.avoid = avoid;
    walk.start = start;
    walk.len = len;
    walk.chosen = 0;
    walk.seen = 0;
    walk.drawn = [0; 2];
    for chunk in 0..MAX_SERVERS / CHUNK {
        let at = chunk * CHUNK;
        if at >= len {
            break;
        }
        lb_walk_lines(first / SERVERS_PER_LINE + chunk * LINES, at, len);
    }
    scratch.walk.chosen as u64
}

/// Walks up to [`LINES`] lines of a list of `len` servers, from line `line`, whose first server is number `at`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_walk_lines(line: u32, at: u32, len: u32) -> u64 {
    let Some(scratch) = tail::scratch() else { return 0 };
    let mut at = at;
    for l in 0..LINES {
        if at >= len {
            break;
        }
        let Some(entries) = SERVERS.get_ptr(line.wrapping_add(l)) else { break };
        for k in 0..SERVERS_PER_LINE {
            // SAFETY: a map value; `k` is below the array's length.
            let entry =
                atomic::load(unsafe { (&raw const (*entries).entries).cast::<u64>().add(k as usize) });
            consider(&mut scratch.walk, ServerEntry(entry), at.wrapping_add(k));
        }
        at = opaque(at as u64 + SERVERS_PER_LINE as u64) as u32;
    }
    0
}

/// One server of a walk. The rule is read again for each: what the verifier learnt of it on the way of one server
/// would else make it walk the rest once for each rule.
#[inline(always)]
fn consider(walk: &mut Walk, entry: ServerEntry, at: u32) {
    // SAFETY: fields of a map value.
    let (rule, avoid, start, len) = unsafe {
        (
            core::ptr::read_volatile(&raw const walk.rule),
            core::ptr::read_volatile(&raw const walk.avoid),
            core::ptr::read_volatile(&raw const walk.start),
            core::ptr::read_volatile(&raw const walk.len),
        )
    };
    let chosen = entry.0 as u32;
    if chosen == 0 || chosen == avoid || (rule & MEMBERS != 0 && entry.0 & ServerEntry::MEMBER == 0) {
        return;
    }
    let Some(record) = LOADS.get_ptr(entry.load()) else { return };
    // SAFETY: a map value.
    let (counts, weight, overloaded) = unsafe {
        (
            atomic::load(&raw const (*record).counts),
            core::ptr::read_volatile(&raw const (*record).weight) as u64,
            core::ptr::read_volatile(&raw const (*record).overloaded),
        )
    };
    if weight == 0 || overloaded != 0 {
        return;
    }
    let (active, inactive) = Load::counts_of(counts);
    let active = active as u64;
    let overhead = (active << 8) + inactive as u64;
    let kind = rule & 0xff;
    if kind >= ADD_UP {
        return draw(walk, kind, chosen, overhead, weight);
    }
    let (load, per) = if kind == Pick::Wlc as u32 {
        (overhead, weight)
    } else if kind == Pick::Lc as u32 {
        (overhead, 1)
    } else if kind == Pick::Sed as u32 {
        (active + 1, weight)
    } else if kind == Pick::Nq as u32 {
        if active == 0 { (0, 1) } else { (active + 1, weight) }
    } else if kind == HALF_IDLE {
        if active * 2 >= weight {
            return;
        }
        (0, 1)
    } else if kind == MOST_LOADED {
        (weight, overhead)
    } else {
        // fo; ovf passes over those with more active flows than weight.
        if kind == Pick::Ovf as u32 && active > weight {
            return;
        }
        ((u32::MAX as u64) - weight, 1)
    };
    let rank = if rule & LAST_FIRST != 0 {
        len.wrapping_sub(at)
    } else {
        at.wrapping_sub(start).wrapping_add(if at < start { len } else { 0 })
    };
    walk.seen = walk.seen.wrapping_add(1);
    let (theirs, ours) = (walk.load.wrapping_mul(per), load.wrapping_mul(walk.weight));
    if walk.chosen == 0 || theirs > ours || (theirs == ours && rank < walk.rank) {
        walk.load = load;
        walk.weight = per;
        walk.rank = rank;
        walk.entry = at;
        walk.chosen = chosen;
    }
}

/// twos: adds weights up, or takes them off what is left of the draws; where nothing is left the server is drawn.
#[inline(always)]
fn draw(walk: &mut Walk, kind: u32, chosen: u32, overhead: u64, weight: u64) {
    if kind == ADD_UP {
        walk.load = if walk.chosen == 0 { weight } else { walk.load.wrapping_add(weight) };
        walk.chosen = 1;
        return;
    }
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

/// Power of two choices (net/netfilter/ipvs/ip_vs_twos.c): two servers are drawn by weight, the less loaded one is
/// taken.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_twos(index: u32, avoid: u32) -> u64 {
    if lb_walk(index, ADD_UP, avoid) == 0 {
        return 0;
    }
    let Some(scratch) = tail::scratch() else { return 0 };
    let total = scratch.walk.load;
    for i in 0..2 {
        // SAFETY: takes no arguments.
        let random = unsafe { aya_ebpf::helpers::generated::bpf_get_prandom_u32() } as u64;
        // 1 to the total. IPVS draws from 0 on, which favours the first server that it visits: the last here.
        let extra = (scratch.walk.rule & LAST_FIRST != 0) as u64;
        let drawn = (random.wrapping_mul(total.wrapping_add(extra)) >> 32) + 1;
        scratch.walk.draws[i] = if drawn > total { total } else { drawn };
    }
    lb_walk(index, DRAW, avoid);
    let walk = &scratch.walk;
    let (one, other) = (walk.drawn[0], walk.drawn[1]);
    let second_is_better = walk.drawn_weight[1].wrapping_mul(walk.drawn_load[0])
        > walk.drawn_weight[0].wrapping_mul(walk.drawn_load[1]);
    // Weights that changed between the walks may leave a draw without a server.
    (if one == 0 || (other != 0 && second_is_better) { other } else { one }) as u64
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
            lb_mark(index, 0);
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
            lb_mark(index, 1);
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

/// Puts the server that the last walk found into lblcr's set, or takes it out.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_mark(index: u32, member: u32) -> u64 {
    let (Some(scratch), Some(service)) = (tail::scratch(), SERVICES.get_ptr(index)) else { return 0 };
    if scratch.walk.chosen == 0 {
        return 0;
    }
    // SAFETY: a map value.
    let (first, _) = Service::slots_of(atomic::load(unsafe { &raw const (*service).servers }));
    let Some(word) = word_at(first.wrapping_add(scratch.walk.entry)) else { return 0 };
    let old = atomic::load(word);
    // The list may have been switched since: only the server itself is marked.
    if old as u32 == scratch.walk.chosen {
        let new = if member != 0 { old | ServerEntry::MEMBER } else { old & !ServerEntry::MEMBER };
        atomic::exchange(word, old, new);
    }
    0
}
