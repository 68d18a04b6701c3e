//! The connection table: find, insert, refresh, give back. Lock-free: a slot is claimed by exchanging its
//! value for BUSY, then identity and value are written; readers look at the identity again after the value
//! and check the value's tag. Deadline and state change by compare-and-exchange only: a plain store after
//! another CPU replaced the entry would give that flow our destination.

use crate::{
    atomic,
    maps::{COLD_TUPLES, CONNECTIONS, config},
};
use lb_common::{
    address::Address,
    connection::{Bucket, ColdTuple, Entry, Value, WAYS},
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
            return true;
        }
        #[cfg(not(feature = "mutant-plain-store"))]
        atomic::exchange(self.word, self.value.0, new.0)
    }
}

/// Looks an identity up: first bucket, then second. Expired means absent.
#[inline(always)]
pub fn find(place: &Place, now: u16) -> Option<Hit> {
    if let Some(bucket) = CONNECTIONS.get_ptr_mut(place.first_bucket()) {
        if let Some(hit) = scan(bucket, place, now) {
            return Some(hit);
        }
    }
    let bucket = CONNECTIONS.get_ptr_mut(place.second_bucket())?;
    scan(bucket, place, now)
}

#[inline(always)]
fn scan(bucket: *mut Bucket, place: &Place, now: u16) -> Option<Hit> {
    macro_rules! look {
        ($way:literal) => {
            let entry = entry(bucket, $way);
            if atomic::load(identity_of(entry)) == place.identity {
                let value = Value(atomic::load(value_of(entry)));
                if is_live(value, now) && guards_hold(entry, value, place) {
                    return Some(Hit { word: value_of(entry), value });
                }
            }
        };
    }
    look!(0);
    look!(1);
    look!(2);
    look!(3);
    None
}

/// Neither empty, nor being written, nor expired. States 0 and 15 are no entries.
#[inline(always)]
fn is_live(value: Value, now: u16) -> bool {
    (value.state() + 1) & 15 > 1 && !value.is_expired(now)
}

/// The value belongs to the identity: still the same identity after the value was read, and the tag fits
/// (which also catches a slot that was replaced twice in between).
#[inline(always)]
fn guards_hold(entry: *mut Entry, value: Value, place: &Place) -> bool {
    #[cfg(feature = "mutant-one-look")]
    {
        return true;
    }
    #[cfg(not(feature = "mutant-one-look"))]
    {
        value.has_tag(place.first) && atomic::load(identity_of(entry)) == place.identity
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
    /// Published. Under contention another entry of the same identity may win: then its value.
    Done,
    /// Another CPU took up the same flow at once; its entry stays, ours was withdrawn.
    Other(Value),
    /// Every entry in both buckets is established.
    Full,
}

/// How good a victim a value is: lower is better, `NEVER` is none. Empty and expired, then unconfirmed,
/// half-open, closing; within a class the one that expires first.
#[inline(always)]
fn cost(value: Value, now: u16) -> u32 {
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
    } else if state == State::SynReceived as u8 || state == State::SynSent as u8 || state == State::SynAck as u8 {
        HALF_OPEN
    } else if state == State::Established as u8 || state == State::Udp as u8 {
        return NEVER;
    } else {
        CLOSING
    };
    class + left
}

const NEVER: u32 = u32::MAX;
const UNCONFIRMED: u32 = 1 << 16;
const HALF_OPEN: u32 = 2 << 16;
const CLOSING: u32 = 3 << 16;

/// Puts an entry in: into a free slot of its first bucket if there is one (so that hits stay on one line),
/// then of its second, then in place of what is least worth keeping. `cold` is an IPv6 flow's tuple.
#[inline(always)]
pub fn insert<const V6: bool>(place: &Place, new: Value, now: u16, cold: Option<(Address, u32)>) -> Inserted {
    // Another CPU may take the chosen victim first: choose again, a bounded number of times.
    for _ in 0..3 {
        let mut best = NEVER;
        let mut best_slot = 0u32;
        let mut best_value = 0u64;
        for second in 0..2u32 {
            let index = if second == 0 { place.first_bucket() } else { place.second_bucket() };
            let Some(bucket) = CONNECTIONS.get_ptr_mut(index) else { return Inserted::Full };
            for way in 0..WAYS {
                let value = Value(atomic::load(value_of(entry(bucket, way))));
                let cost = cost(value, now);
                if cost < best {
                    best = cost;
                    best_slot = index * WAYS as u32 + way as u32;
                    best_value = value.0;
                }
            }
            if best <= 1 {
                break;
            }
        }
        if best == NEVER {
            return Inserted::Full;
        }
        let Some(bucket) = CONNECTIONS.get_ptr_mut(best_slot / WAYS as u32) else { return Inserted::Full };
        let entry = entry(bucket, (best_slot % WAYS as u32) as usize);
        if !atomic::exchange(value_of(entry), best_value, Value::BUSY.0) {
            continue;
        }
        if best >= UNCONFIRMED {
            crate::count::event(if best < HALF_OPEN {
                Reason::EvictedUnconfirmed
            } else if best < CLOSING {
                Reason::EvictedHalfOpen
            } else {
                Reason::EvictedClosing
            });
        }
        if V6 {
            if let (Some(tuple), Some((source, ports))) = (COLD_TUPLES.get_ptr_mut(best_slot), cold) {
                // SAFETY: the slot is ours (BUSY); readers of cold tuples check the value before and after.
                unsafe { *tuple = ColdTuple { source, ports, reserved: [0; 3] } };
            }
        }
        atomic::store(identity_of(entry), place.identity);
        atomic::store(value_of(entry), new.0);
        return withdraw_if_duplicate(place, best_slot, new, now);
    }
    Inserted::Full
}

/// Two CPUs may insert one identity at once, into different slots. Each looks again after publishing, so at
/// least one sees the other; the lower slot stays.
#[inline(always)]
fn withdraw_if_duplicate(place: &Place, slot: u32, new: Value, now: u16) -> Inserted {
    for second in 0..2u32 {
        let index = if second == 0 { place.first_bucket() } else { place.second_bucket() };
        let Some(bucket) = CONNECTIONS.get_ptr_mut(index) else { return Inserted::Done };
        for way in 0..WAYS {
            let other = index * WAYS as u32 + way as u32;
            let entry = entry(bucket, way);
            if other < slot && atomic::load(identity_of(entry)) == place.identity {
                let value = Value(atomic::load(value_of(entry)));
                if is_live(value, now) && guards_hold(entry, value, place) {
                    if let Some(mine) = CONNECTIONS.get_ptr_mut(slot / WAYS as u32) {
                        let mine = self::entry(mine, (slot % WAYS as u32) as usize);
                        atomic::exchange(value_of(mine), new.0, 0);
                    }
                    crate::count::event(Reason::DuplicateWithdrawn);
                    return Inserted::Other(value);
                }
            }
        }
    }
    Inserted::Done
}
