//! The walk over a service's list of servers: the least loaded one by a scheduler's rule. A thousand servers are
//! looked at for one new flow, so what is done for each of them is one loop a rule, which only asks whether a server
//! may be better than the best so far. Few are: those are looked at again, by a function that every rule shares and
//! that decides. Between servers everything is in the scratch record: the verifier then sees the same state before
//! each of them.

use crate::{
    atomic,
    maps::{LOADS, SERVERS, SERVICES},
    packet::opaque,
    tail, twos,
};
use lb_common::{
    load::Load,
    scratch::Walk,
    service::{MAX_SERVERS, Pick, SERVERS_PER_LINE, ServerEntry, Service, features},
};

/// Rules of a walk beside those of [`Pick`]: is there a server with less than half the active flows of its weight?
pub const HALF_IDLE: u32 = 32;
/// The most loaded one.
pub const MOST_LOADED: u32 = 33;
/// twos: finds the servers drawn.
pub const DRAW: u32 = 34;
/// Only members of lblcr's set.
pub const MEMBERS: u32 = 1 << 8;
/// Equal servers are preferred from the end of the list.
pub const LAST_FIRST: u32 = 1 << 9;

const LC: u32 = Pick::Lc as u32;
const WLC: u32 = Pick::Wlc as u32;
const SED: u32 = Pick::Sed as u32;
const NQ: u32 = Pick::Nq as u32;
const FO: u32 = Pick::Fo as u32;
const OVF: u32 = Pick::Ovf as u32;

/// Lines of servers looked at in one call: so many passes of a loop the verifier makes.
const LINES: u32 = 4;
const CHUNK: u32 = LINES * SERVERS_PER_LINE;

/// More than any load: no table holds 2^32 flows, an active one of which weighs 2^8. Times a weight (16 bits) it is far
/// from the end of the word.
const WORST: u64 = 1 << 40;

/// Walks the whole list of a service by a rule. The best server's destination plus one; the scratch record's walk
/// holds the rest.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_walk(index: u32, rule: u32, avoid: u32) -> u64 {
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
    let last_first = features & features::LAST_FIRST != 0;
    let walk = &mut scratch.walk;
    walk.rule = rule | if last_first { LAST_FIRST } else { 0 };
    walk.avoid = avoid;
    walk.start = start;
    walk.ties_after = if last_first { -1 } else { i64::MAX };
    walk.load = WORST;
    walk.weight = 1;
    walk.chosen = 0;
    walk.seen = 0;
    walk.drawn = [0; 2];
    let line = first / SERVERS_PER_LINE;
    match rule {
        LC => chunks(line, len, lb_walk_lc),
        WLC => chunks(line, len, lb_walk_wlc),
        SED => chunks(line, len, lb_walk_sed),
        NQ => chunks(line, len, lb_walk_nq),
        FO => chunks(line, len, lb_walk_fo),
        OVF => chunks(line, len, lb_walk_ovf),
        HALF_IDLE => chunks(line, len, lb_walk_half_idle),
        _ => chunks(line, len, lb_walk_all),
    }
    scratch.walk.chosen as u64
}

/// Calls one of the functions below for every part of a list of `len` servers that begins in line `line`.
#[inline(always)]
fn chunks(line: u32, len: u32, part: extern "C" fn(u32, u32, u32) -> u64) {
    for chunk in 0..MAX_SERVERS / CHUNK {
        let at = chunk * CHUNK;
        if at >= len || part(line.wrapping_add(chunk * LINES), at, len) != 0 {
            break;
        }
    }
}

macro_rules! walks {
    ($($name:ident: $rule:expr),*) => { $(
        /// Walks up to [`LINES`] lines of a list of `len` servers by one rule, from line `line`, whose first server is
        /// number `at`. Not 0: the rest cannot be better.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(line: u32, at: u32, len: u32) -> u64 {
            part::<{ $rule }>(line, at, len)
        }
    )* };
}

walks!(
    lb_walk_lc: LC,
    lb_walk_wlc: WLC,
    lb_walk_sed: SED,
    lb_walk_nq: NQ,
    lb_walk_fo: FO,
    lb_walk_ovf: OVF,
    lb_walk_half_idle: HALF_IDLE,
    lb_walk_all: 0
);

#[inline(always)]
fn part<const RULE: u32>(line: u32, at: u32, len: u32) -> u64 {
    let Some(scratch) = tail::scratch() else { return 1 };
    let walk = &raw const scratch.walk;
    let mut at = at;
    for l in 0..LINES {
        if at >= len {
            break;
        }
        let line = line.wrapping_add(l);
        let Some(entries) = SERVERS.get_ptr(line) else { return 1 };
        for k in 0..SERVERS_PER_LINE {
            // SAFETY: a map value; `k` is below the array's length.
            let entry = unsafe { (&raw const (*entries).entries).cast::<u64>().add(k as usize) };
            if may_be_better::<RULE>(walk, entry, at.wrapping_add(k) as i64)
                && lb_consider(line * SERVERS_PER_LINE + k, at.wrapping_add(k)) != 0
            {
                return 1;
            }
        }
        at = opaque(at as u64 + SERVERS_PER_LINE as u64) as u32;
    }
    0
}

/// Whether [`lb_consider`] has to look at a server: never false for one that it would take. Counts are read as they
/// stand: where one is below zero for a moment this bound is lower than the load, so the server is looked at.
#[inline(always)]
fn may_be_better<const RULE: u32>(walk: *const Walk, entry: *const u64, at: i64) -> bool {
    if RULE == 0 {
        // SAFETY: a field of a map value.
        let rule = unsafe { core::ptr::read_volatile(&raw const (*walk).rule) };
        return rule & MEMBERS == 0 || atomic::load(entry) & ServerEntry::MEMBER != 0;
    }
    // The upper half alone: holes and the server to be avoided are rare.
    // SAFETY: the entry is a word of a map value.
    let load = unsafe { core::ptr::read_volatile(entry.cast::<u32>().add(1)) } & ServerEntry::LOAD;
    let Some(record) = LOADS.get_ptr(load) else { return false };
    // SAFETY: a map value.
    let (counts, weight) = unsafe {
        (
            atomic::load(&raw const (*record).counts) as i64,
            core::ptr::read_volatile(&raw const (*record).weight) as i64,
        )
    };
    let active = counts << 32 >> 32;
    if RULE == HALF_IDLE {
        return active * 2 < weight;
    }
    if RULE == OVF && active > weight {
        return false;
    }
    // SAFETY: fields of a map value.
    let (best, best_weight, ties_after) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*walk).load) as i64,
            core::ptr::read_volatile(&raw const (*walk).weight) as i64,
            core::ptr::read_volatile(&raw const (*walk).ties_after),
        )
    };
    // 1 where an equal one is better.
    let tie = ((ties_after - at) as u64 >> 63) as i64;
    let overhead = (counts >> 32) + (counts << 32 >> 24);
    let (theirs, ours) = match RULE {
        LC => (best, overhead),
        WLC => (best * weight, overhead * best_weight),
        SED => (best * weight, (active + 1) * best_weight),
        NQ => (best * weight, (active + (-active as u64 >> 63) as i64) * best_weight),
        _ => (best, u32::MAX as i64 - weight),
    };
    theirs + tie > ours
}

/// One server of a walk, entry `at` of the packed lists and number `number` of its own: taken, when it is better than
/// the best so far. Not 0: nobody after it can be better.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_consider(at: u32, number: u32) -> u64 {
    let Some(scratch) = tail::scratch() else { return 1 };
    let walk = &mut scratch.walk;
    let (rule, entry) = (walk.rule, ServerEntry(entry(at)));
    let chosen = entry.0 as u32;
    if chosen == 0 || chosen == walk.avoid {
        return 0;
    }
    let Some(record) = LOADS.get_ptr(entry.load()) else { return 0 };
    // SAFETY: a map value.
    let (counts, weight, overloaded) = unsafe {
        (
            atomic::load(&raw const (*record).counts),
            core::ptr::read_volatile(&raw const (*record).weight) as u64,
            core::ptr::read_volatile(&raw const (*record).overloaded),
        )
    };
    if weight == 0 || overloaded != 0 {
        return 0;
    }
    let (active, inactive) = Load::counts_of(counts);
    let active = active as u64;
    let overhead = (active << 8) + inactive as u64;
    let kind = rule & 0xff;
    let (load, per) = match kind {
        DRAW => {
            twos::draw(walk, chosen, overhead, weight);
            return 0;
        }
        LC => (overhead, 1),
        WLC => (overhead, weight),
        SED => (active + 1, weight),
        NQ if active != 0 => (active + 1, weight),
        NQ => (0, 1),
        HALF_IDLE if active * 2 >= weight => return 0,
        HALF_IDLE => (0, 1),
        MOST_LOADED => (weight, overhead),
        // fo; ovf passes over those with more active flows than weight.
        OVF if active > weight => return 0,
        _ => (u32::MAX as u64 - weight, 1),
    };
    walk.seen = walk.seen.wrapping_add(1);
    let tie = (walk.ties_after - number as i64) as u64 >> 63;
    let (theirs, ours) = (walk.load.wrapping_mul(per).wrapping_add(tie), load.wrapping_mul(walk.weight));
    if walk.chosen != 0 && theirs <= ours {
        return 0;
    }
    walk.load = load;
    walk.weight = per;
    walk.entry = at;
    walk.chosen = chosen;
    if rule & LAST_FIRST != 0 {
        return 0;
    }
    // Those from the start on come first, then those before it.
    let before = number < walk.start;
    walk.ties_after = if before { walk.start as i64 - 1 } else { i64::MAX };
    // Nothing is less than none, and who comes first of those with none is taken.
    (load == 0 && !before && rule & MEMBERS == 0) as u64
}

/// An entry of the packed lists of servers.
#[inline(always)]
pub fn entry(at: u32) -> u64 {
    match entry_at(at) {
        Some(word) => atomic::load(word),
        None => 0,
    }
}

#[inline(always)]
fn entry_at(at: u32) -> Option<*mut u64> {
    let line = SERVERS.get_ptr_mut(at / SERVERS_PER_LINE)?;
    // SAFETY: a map value; the index is below SERVERS_PER_LINE.
    Some(unsafe { (&raw mut (*line).entries).cast::<u64>().add((at % SERVERS_PER_LINE) as usize) })
}

/// Puts the server that the last walk found into lblcr's set, or takes it out.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_mark(member: u32) -> u64 {
    let Some(scratch) = tail::scratch() else { return 0 };
    if scratch.walk.chosen == 0 {
        return 0;
    }
    let Some(word) = entry_at(scratch.walk.entry) else { return 0 };
    let old = atomic::load(word);
    // The list may have been switched since: only the server itself is marked.
    if old as u32 == scratch.walk.chosen {
        let new = if member != 0 { old | ServerEntry::MEMBER } else { old & !ServerEntry::MEMBER };
        atomic::exchange(word, old, new);
    }
    0
}
