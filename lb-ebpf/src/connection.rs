//! The connection table: find, insert, refresh, give back. Lock-free: a slot is claimed by exchanging its
//! value for BUSY, then identity and value are written; readers look at the identity again after the value
//! and check the value's tag. Deadline and state change by compare-and-exchange only: a plain store after
//! another CPU replaced the entry would give that flow our destination.

use crate::{
    atomic,
    load::lb_recount,
    maps::{COLD_TUPLES, CONNECTIONS, config},
    packet::opaque,
};
use lb_common::{
    address::Address,
    connection::{Bucket, ColdTuple, Entry, Kind, Value, WAYS},
    state::State,
    verdict::Reason,
};

/// Now, in ticks.
#[inline(always)]
pub fn now() -> u16 {
    // SAFETY: reads one word; inlined to a load by the verifier.
    let jiffies = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
    (jiffies >> config!(tick_shift)) as u16
}

/// Where an identity may lie.
#[derive(Clone, Copy)]
pub struct Place {
    pub identity: u64,
    /// [`lb_common::hash::Secrets::first`] of it.
    pub first: u64,
    shift: u32,
}

impl Place {
    #[inline(always)]
    pub fn of<const V6: bool>(identity: u64) -> Self {
        let first = crate::maps::keys().first(identity);
        Self { identity, first, shift: if V6 { config!(bucket_shift_v6) } else { config!(bucket_shift) } }
    }

    #[inline(always)]
    fn first_bucket(&self) -> u32 {
        (self.first >> self.shift) as u32
    }

    #[inline(always)]
    fn second_bucket(&self) -> u32 {
        (crate::maps::keys().second(self.identity) >> self.shift) as u32
    }
}

/// A live entry: where its value word is, and what it was when read.
#[derive(Clone, Copy)]
pub struct Hit {
    pub word: *mut u64,
    pub value: Value,
}

impl Hit {
    /// Replaces the value if nobody else did. A refresh that loses changes nothing.
    #[inline(always)]
    pub fn replace(&self, new: Value) -> bool {
        #[cfg(feature = "mutant-plain-store")]
        {
            atomic::store(self.word, new.0);
            true
        }
        #[cfg(not(feature = "mutant-plain-store"))]
        atomic::exchange(self.word, self.value.0, new.0)
    }
}

/// Looks an identity up: first bucket, then second. Expired means absent.
#[inline(always)]
pub fn find(place: &Place, now: u16) -> Option<Hit> {
    let stale = match scan(CONNECTIONS.get_ptr_mut(place.first_bucket())?, place, now) {
        Scanned::Hit(hit) => return Some(hit),
        Scanned::Stale => true,
        Scanned::Nothing => false,
    };
    // Out of line: most flows lie in their first bucket, and there once.
    let mut slot = if stale { lb_find_in(place.identity, place.first_bucket(), now as u32) } else { 0 };
    if slot == 0 {
        slot = lb_find_in(place.identity, place.second_bucket(), now as u32);
    }
    hit_at(slot, place, now)
}

/// As [`find`], out of line altogether: for rare paths.
#[inline(always)]
pub fn find_rarely(place: &Place, now: u16) -> Option<Hit> {
    let mut slot = lb_find_in(place.identity, place.first_bucket(), now as u32);
    if slot == 0 {
        slot = lb_find_in(place.identity, place.second_bucket(), now as u32);
    }
    hit_at(slot, place, now)
}

/// The entry in a slot that was found; it may have been replaced since.
#[inline(always)]
fn hit_at(slot: u64, place: &Place, now: u16) -> Option<Hit> {
    if slot == 0 {
        return None;
    }
    let slot = slot as u32 - 1;
    let entry = entry(CONNECTIONS.get_ptr_mut(slot / WAYS as u32)?, (slot % WAYS as u32) as usize);
    let value = Value(atomic::load(value_of(entry)));
    let same = atomic::load(identity_of(entry)) == place.identity;
    (same && is_live(value, now) && guards_hold(identity_of(entry), value, place))
        .then_some(Hit { word: value_of(entry), value })
}

/// The slot of an identity in a bucket plus one, or 0. A function of its own for the verifier (a global
/// function, Linux 5.6), which looks at it once whoever calls.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_find_in(identity: u64, bucket: u32, now: u32) -> u64 {
    let place = Place { identity, first: crate::maps::keys().first(identity), shift: 0 };
    let Some(line) = CONNECTIONS.get_ptr_mut(bucket) else { return 0 };
    for way in 0..WAYS {
        let entry = entry(line, way);
        if atomic::load(identity_of(entry)) == place.identity {
            let value = Value(atomic::load(value_of(entry)));
            if is_live(value, now as u16) && guards_hold(identity_of(entry), value, &place) {
                return (bucket as u64 * WAYS as u64) + way as u64 + 1;
            }
        }
    }
    0
}

enum Scanned {
    Hit(Hit),
    /// The identity stands there, with a value that is no flow: an expired or swept entry, behind which the flow
    /// may stand once more.
    Stale,
    Nothing,
}

/// Without branches on the way: which of them it is, is chance, and a branch on it would be mispredicted when the
/// line has come at last.
#[inline(always)]
fn scan(bucket: *mut Bucket, place: &Place, now: u16) -> Scanned {
    let differs = |way: usize| {
        let d = atomic::load(identity_of(entry(bucket, way))) ^ place.identity;
        (d | d.wrapping_neg()) >> 63
    };
    let (d0, d1, d2, d3) = (differs(0), differs(1), differs(2), differs(3));
    // Four, if none.
    let way = opaque(d0 + (d0 & d1) + (d0 & d1 & d2) + (d0 & d1 & d2 & d3));
    if way > 3 {
        return Scanned::Nothing;
    }
    let entry = entry(bucket, way as usize);
    let value = Value(atomic::load(value_of(entry)));
    if is_live(value, now) && guards_hold(identity_of(entry), value, place) {
        Scanned::Hit(Hit { word: value_of(entry), value })
    } else {
        Scanned::Stale
    }
}

/// Neither empty, nor being written, nor expired. States 0 and 15 are no entries.
#[inline(always)]
pub fn is_live(value: Value, now: u16) -> bool {
    (value.state() + 1) & 15 > 1 && !value.is_expired(now)
}

/// The value belongs to the identity: still the same identity after the value was read, and the tag fits
/// (which also catches a slot that was replaced twice in between).
#[inline(always)]
fn guards_hold(identity: *mut u64, value: Value, place: &Place) -> bool {
    #[cfg(feature = "mutant-one-look")]
    {
        let _ = (identity, value, place);
        true
    }
    #[cfg(not(feature = "mutant-one-look"))]
    {
        value.has_tag(place.first) && atomic::load(identity) == place.identity
    }
}

#[inline(always)]
fn entry(bucket: *mut Bucket, way: usize) -> *mut Entry {
    // SAFETY: `way` is below WAYS, the bucket a map value of that size.
    unsafe { (&raw mut (*bucket).entries).cast::<Entry>().add(way) }
}

#[inline(always)]
fn identity_of(entry: *mut Entry) -> *mut u64 {
    // SAFETY: projection inside a map value.
    unsafe { &raw mut (*entry).identity }
}

#[inline(always)]
fn value_of(entry: *mut Entry) -> *mut u64 {
    // SAFETY: projection inside a map value.
    unsafe { &raw mut (*entry).value }
}

/// What became of an insertion.
pub enum Inserted {
    /// Published.
    Done,
    /// Another CPU took up the same flow at once; its entry stays, ours was withdrawn.
    Other(Value),
    /// Every entry in both buckets is established.
    Full,
}

impl Inserted {
    // As one register; neither number is a value of an entry.
    const DONE: u64 = 0;
    const FULL: u64 = u64::MAX;
}

/// How good a victim a value is: lower is better, `NEVER` is none. Empty and expired, then unconfirmed,
/// half-open, closing; within a class the one that expires first.
#[inline(always)]
pub fn cost(value: Value, now: u16) -> u32 {
    if value.is_empty() {
        return 0;
    }
    if value.is_busy() {
        return NEVER;
    }
    if value.is_expired(now) {
        return 1;
    }
    let left = value.deadline().wrapping_sub(now) as u32;
    let state = value.state();
    let class = if state == State::Unconfirmed as u8 {
        UNCONFIRMED
    } else if value.is_half_open() {
        HALF_OPEN
    } else if value.is_settled() {
        return NEVER;
    } else {
        CLOSING
    };
    class + left
}

/// The cheapest victim of a bucket: cost in the upper half, slot in the lower. A global function, like the
/// others here that are called from several places: the verifier looks at each once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_cheapest(index: u32, now: u32) -> u64 {
    let Some(bucket) = CONNECTIONS.get_ptr_mut(index) else { return u64::MAX };
    let mut least = u64::MAX;
    for way in 0..WAYS {
        let value = Value(atomic::load(value_of(entry(bucket, way))));
        let slot = index * WAYS as u32 + way as u32;
        let this = opaque((cost(value, now as u16) as u64) << 32 | slot as u64);
        least = opaque(if this < least { this } else { least });
    }
    least
}

/// How many slots of a bucket hold no live flow.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_free_slots(index: u32, now: u32) -> u64 {
    let Some(bucket) = CONNECTIONS.get_ptr_mut(index) else { return 0 };
    let mut free = 0;
    for way in 0..WAYS {
        let value = Value(atomic::load(value_of(entry(bucket, way))));
        free += (value.is_empty() || (!value.is_busy() && value.is_expired(now as u16))) as u64;
    }
    opaque(free)
}

/// Whether nothing in both buckets of an identity may make room. `family` is 4 or 6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_is_full(identity: u64, now: u32, family: u32) -> u64 {
    let place = if family == 6 { Place::of::<true>(identity) } else { Place::of::<false>(identity) };
    let first = (lb_cheapest(place.first_bucket(), now) >> 32) as u32;
    let second = (lb_cheapest(place.second_bucket(), now) >> 32) as u32;
    (first == NEVER && second == NEVER) as u64
}

/// The cost of what is not given up.
pub const NEVER: u32 = u32::MAX;
const UNCONFIRMED: u32 = 1 << 16;
const HALF_OPEN: u32 = 2 << 16;
const CLOSING: u32 = 3 << 16;

/// Counts what made room, by its cost.
#[inline(always)]
pub fn evicted(cost: u32) {
    if cost >= UNCONFIRMED {
        crate::count::event(if cost < HALF_OPEN {
            Reason::EvictedUnconfirmed
        } else if cost < CLOSING {
            Reason::EvictedHalfOpen
        } else {
            Reason::EvictedClosing
        });
    }
}

/// Puts an entry in: into a free slot of its first bucket (so that hits stay on one line), or of its second where
/// the first has one left and the second more, then in place of what is least worth keeping. `source` and `ports` are an IPv6 flow's
/// cold tuple.
#[inline(always)]
pub fn insert<const V6: bool>(
    place: &Place,
    new: Value,
    now: u16,
    source: Address,
    ports: u32,
    counted: bool,
) -> Inserted {
    if V6 {
        if let Some(scratch) = crate::tail::scratch() {
            scratch.client = source;
            scratch.ports = ports;
        }
    }
    let how = V6 as u32 | if counted { COUNTED } else { 0 };
    match lb_insert(place.identity, new.0, now as u32, how) {
        Inserted::DONE => Inserted::Done,
        Inserted::FULL => Inserted::Full,
        other => Inserted::Other(Value(other)),
    }
}

/// To [`lb_insert`], beside 1 for IPv6: the flow's server is counted.
const COUNTED: u32 = 2;

/// [`insert`], as a global function: its loops are verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_insert(identity: u64, new: u64, now: u32, how: u32) -> u64 {
    let now = now as u16;
    let v6 = how & 1;
    let place = &(if v6 != 0 { Place::of::<true>(identity) } else { Place::of::<false>(identity) });
    // Another CPU may take the chosen victim first: choose again, a bounded number of times.
    for _ in 0..3 {
        let mut least = lb_cheapest(place.first_bucket(), now as u32);
        let room = lb_free_slots(place.first_bucket(), now as u32);
        if room <= 1 {
            // The last free slot is left to a flow whose second bucket is fuller: else a table would overflow here
            // and there long before it is full.
            let second = lb_cheapest(place.second_bucket(), now as u32);
            if second >> 32 < least >> 32
                || (room == 1 && lb_free_slots(place.second_bucket(), now as u32) > 1)
            {
                least = second;
            }
        }
        // One way for the verifier, whichever it was.
        let least = opaque(least);
        let (best, best_slot) = ((least >> 32) as u32, least as u32);
        if best == NEVER {
            return Inserted::FULL;
        }
        let Some(bucket) = CONNECTIONS.get_ptr_mut(best_slot / WAYS as u32) else { return Inserted::FULL };
        let entry = entry(bucket, (best_slot % WAYS as u32) as usize);
        let victim = Value(atomic::load(value_of(entry)));
        if cost(victim, now) > best || !atomic::exchange(value_of(entry), victim.0, Value::BUSY.0) {
            continue;
        }
        if !victim.is_empty() && matches!(victim.kind(), Kind::Flow) {
            lb_recount(victim.0, 0);
        }
        evicted(best);
        if v6 != 0 {
            if let (Some(tuple), Some(scratch)) = (COLD_TUPLES.get_ptr_mut(best_slot), crate::tail::scratch())
            {
                // SAFETY: the slot is ours (BUSY); readers of cold tuples check the value before and after.
                unsafe {
                    *tuple = ColdTuple { source: scratch.client, ports: scratch.ports, reserved: [0; 3] }
                };
            }
        }
        atomic::store(identity_of(entry), place.identity);
        atomic::store(value_of(entry), new);
        if how & COUNTED != 0 {
            lb_recount(0, new);
        }
        return lb_withdraw_if_duplicate(identity, new, best_slot, now as u32, v6);
    }
    Inserted::FULL
}

/// Two CPUs may insert one identity at once, into different slots. Each looks again after publishing, so at
/// least one sees the other; the lower slot stays.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_withdraw_if_duplicate(identity: u64, new: u64, slot: u32, now: u32, v6: u32) -> u64 {
    let place = if v6 != 0 { Place::of::<true>(identity) } else { Place::of::<false>(identity) };
    let mut other = lb_find_below(identity, place.first_bucket(), slot, now);
    if other == 0 {
        other = lb_find_below(identity, place.second_bucket(), slot, now);
    }
    if other == 0 {
        return Inserted::DONE;
    }
    if let Some(mine) = CONNECTIONS.get_ptr_mut(slot / WAYS as u32) {
        let word = value_of(entry(mine, (slot % WAYS as u32) as usize));
        if atomic::exchange(word, new, 0) && matches!(Value(new).kind(), Kind::Flow) {
            lb_recount(new, 0);
        }
    }
    crate::count::event(Reason::DuplicateWithdrawn);
    other
}

/// The value of an identity's live entry in a bucket, in a slot below `slot`; or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_find_below(identity: u64, bucket: u32, slot: u32, now: u32) -> u64 {
    let place = Place { identity, first: crate::maps::keys().first(identity), shift: 0 };
    let Some(line) = CONNECTIONS.get_ptr_mut(bucket) else { return 0 };
    for way in 0..WAYS {
        let entry = entry(line, way);
        if bucket * (WAYS as u32) + (way as u32) < slot && atomic::load(identity_of(entry)) == identity {
            let value = Value(atomic::load(value_of(entry)));
            if is_live(value, now as u16) && guards_hold(identity_of(entry), value, &place) {
                return value.0;
            }
        }
    }
    0
}
