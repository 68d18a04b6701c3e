//! Extension records: find, claim, refresh, give back. A record belongs to a flow by the identity of the client's
//! packets, and lies in one of two sets of four. Lock-free as the connection table is: its word is exchanged for BUSY,
//! the fields are written, the word is published; readers look at owner and word again after the fields.
//! Nothing takes them off a list: a record whose deadline has passed is free, and a full set gives up what the
//! connection table would give up first.

use crate::{
    atomic,
    connection::{NEVER, Place, cost, is_live},
    maps::{EXTENSIONS, config, keys},
    packet::opaque,
};
use lb_common::{
    connection::{Kind, Value},
    extension::{Extension, Shift, WAYS},
    state::State,
};

/// A flow's record and its word, read once.
#[derive(Clone, Copy)]
pub struct Held {
    pub record: *mut Extension,
    pub word: Value,
}

/// How the numbers of both directions are shifted, as read at once.
#[derive(Clone, Copy)]
pub struct Shifts {
    pub client: Shift,
    pub client_base: u32,
    pub server: Shift,
    pub server_base: u32,
    pub clock: u32,
    pub client_first: u32,
    pub duties: u64,
}

impl Held {
    /// The record of the flow with this identity (of the client's packets).
    #[inline(always)]
    pub fn of(identity: u64, now: u16) -> Option<Self> {
        let index = lb_find_extension(identity, now as u32);
        if index == 0 {
            return None;
        }
        let record = EXTENSIONS.get_ptr_mut(index as u32 - 1)?;
        let held = Self { record, word: Value(atomic::load(word_of(record))) };
        if is_live(held.word, now) { Some(held) } else { None }
    }

    /// What it says. None when it became another flow's meanwhile.
    #[inline(always)]
    pub fn shifts(&self, identity: u64) -> Option<Shifts> {
        let record = self.record;
        // SAFETY: a map value; each word is read whole.
        let shifts = unsafe {
            Shifts {
                client: Shift::from_word(atomic::load(&raw const (*record).client)),
                server: Shift::from_word(atomic::load(&raw const (*record).server)),
                client_base: core::ptr::read_volatile(&raw const (*record).client_base),
                server_base: core::ptr::read_volatile(&raw const (*record).server_base),
                clock: core::ptr::read_volatile(&raw const (*record).clock),
                client_first: core::ptr::read_volatile(&raw const (*record).client_first),
                duties: atomic::load(&raw const (*record).duties),
            }
        };
        // SAFETY: as above.
        let same = atomic::load(unsafe { &raw const (*record).owner }) == identity
            && Value(atomic::load(word_of(record))).payload() == self.word.payload();
        if same { Some(shifts) } else { None }
    }

    /// The server acknowledged a number as it counts.
    #[inline(always)]
    pub fn heard_by_server(&self, shifts: &Shifts, number: u32) {
        if shifts.client.is_open() {
            let new = shifts.client.acknowledged(shifts.client_base, number);
            // SAFETY: projection inside a map value.
            atomic::exchange(unsafe { &raw mut (*self.record).client }, shifts.client.word(), new.word());
        }
    }

    /// The client acknowledged a number as it counts.
    #[inline(always)]
    pub fn heard_by_client(&self, shifts: &Shifts, number: u32) {
        if shifts.server.is_open() {
            let new = shifts.server.acknowledged(shifts.server_base, number);
            // SAFETY: as above.
            atomic::exchange(unsafe { &raw mut (*self.record).server }, shifts.server.word(), new.word());
        }
    }

    /// Gives it state and deadline of its flow's word, which a packet may have changed.
    #[inline(always)]
    pub fn follow(&self, flow: Value) {
        let new = self.word.with(flow.state(), flow.deadline());
        if new.0 != self.word.0 && !flow.is_empty() && !flow.is_busy() {
            atomic::exchange(word_of(self.record), self.word.0, new.0);
        }
    }
}

impl Held {
    /// What is still to be done.
    #[inline(always)]
    pub fn duties(&self) -> u64 {
        // SAFETY: a map value.
        atomic::load(unsafe { &raw const (*self.record).duties })
    }

    /// A duty is done.
    #[inline(always)]
    pub fn discharge(&self, duty: u64) {
        let old = self.duties();
        // SAFETY: projection inside a map value.
        atomic::exchange(unsafe { &raw mut (*self.record).duties }, old, old & !duty);
    }

    /// Whether nothing is shifted, and nothing is left to be done.
    #[inline(always)]
    pub fn is_done(&self) -> bool {
        let record = self.record;
        // SAFETY: a map value; both bases are one word, as are the clock and a number that says nothing by itself.
        let words = unsafe {
            atomic::load(&raw const (*record).client)
                | atomic::load(&raw const (*record).server)
                | atomic::load((&raw const (*record).client_base).cast())
                | core::ptr::read_volatile(&raw const (*record).clock) as u64
        };
        words | self.duties() == 0
    }

    /// Nobody asks for it any more but who was on the way: it is free in a moment.
    #[inline(always)]
    pub fn release(&self, now: u16) {
        let new = self.word.with(self.word.state(), now.wrapping_add(GRACE));
        atomic::exchange(word_of(self.record), self.word.0, new.0);
    }
}

/// How long a record outlives its need, in ticks: longer than any packet is worked on.
const GRACE: u16 = 4;

/// A record that is being written: nobody reads it before [`Claimed::publish`].
pub struct Claimed {
    pub record: *mut Extension,
    word: Value,
}

impl Claimed {
    /// Claims a record for the flow at a place, as long as the flow's word lives. None: no room.
    #[inline(always)]
    pub fn for_flow(place: &Place, state: State, deadline: u16, now: u16) -> Option<Self> {
        let index = lb_claim_extension(place.identity, now as u32);
        if index == 0 {
            return None;
        }
        let record = EXTENSIONS.get_ptr_mut(index as u32 - 1)?;
        // SAFETY: the record is ours (BUSY).
        unsafe {
            atomic::store(&raw mut (*record).owner, place.identity);
            atomic::store(&raw mut (*record).client, 0);
            atomic::store(&raw mut (*record).server, 0);
            core::ptr::write_volatile(&raw mut (*record).client_base, 0);
            core::ptr::write_volatile(&raw mut (*record).server_base, 0);
            core::ptr::write_volatile(&raw mut (*record).clock, 0);
            core::ptr::write_volatile(&raw mut (*record).client_first, 0);
            atomic::store(&raw mut (*record).duties, 0);
            atomic::store(&raw mut (*record).note, 0);
        }
        Some(Self { record, word: Value::flow(Kind::Flow, 0, place.first, state, deadline) })
    }

    /// The flow's packets find it from here on.
    #[inline(always)]
    pub fn publish(self) {
        atomic::store(word_of(self.record), self.word.0);
    }
}

#[inline(always)]
fn word_of(record: *mut Extension) -> *mut u64 {
    // SAFETY: projection inside a map value.
    unsafe { &raw mut (*record).word }
}

/// The set that comes first, or second, to an identity.
#[inline(always)]
fn set_of(identity: u64, second: bool) -> u32 {
    let hash = if second { keys().second(identity) } else { keys().first(identity) };
    (hash >> config!(extension_shift)) as u32
}

/// The index of an identity's live record plus one, or 0. A global function: its loops are verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_find_extension(identity: u64, now: u32) -> u64 {
    let found = lb_extension_in(identity, set_of(identity, false), now);
    if found != 0 {
        return found;
    }
    lb_extension_in(identity, set_of(identity, true), now)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_extension_in(identity: u64, set: u32, now: u32) -> u64 {
    let tag = keys().first(identity);
    for way in 0..WAYS {
        let index = set * WAYS + way;
        let Some(record) = EXTENSIONS.get_ptr_mut(index) else { return 0 };
        // SAFETY: a map value.
        if atomic::load(unsafe { &raw const (*record).owner }) == identity {
            let word = Value(atomic::load(word_of(record)));
            if is_live(word, now as u16) && word.has_tag(tag) {
                return index as u64 + 1;
            }
        }
    }
    0
}

/// Makes a record BUSY for an identity: the one it has, else the cheapest of its two sets. Its index plus one, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_claim_extension(identity: u64, now: u32) -> u64 {
    // Another CPU may take the chosen one first: choose again, a bounded number of times.
    for _ in 0..3 {
        let own = lb_find_extension(identity, now);
        let mut least = lb_cheapest_extension(set_of(identity, false), now);
        if least >> 32 > 1 {
            let second = lb_cheapest_extension(set_of(identity, true), now);
            if second >> 32 < least >> 32 {
                least = second;
            }
        }
        // One way for the verifier, whichever it was.
        let least = opaque(least);
        if own == 0 && (least >> 32) as u32 == NEVER {
            return 0;
        }
        let index = opaque(if own != 0 { own - 1 } else { least & 0xffff_ffff }) as u32;
        let Some(record) = EXTENSIONS.get_ptr_mut(index) else { return 0 };
        let word = Value(atomic::load(word_of(record)));
        if own == 0 && cost(word, now as u16) as u64 > least >> 32 {
            continue;
        }
        if !word.is_busy() && atomic::exchange(word_of(record), word.0, Value::BUSY.0) {
            return index as u64 + 1;
        }
    }
    0
}

/// What it costs to take the cheapest record of a set (upper half), and its index.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_cheapest_extension(set: u32, now: u32) -> u64 {
    let mut least = (NEVER as u64) << 32;
    for way in 0..WAYS {
        let index = set * WAYS + way;
        let Some(record) = EXTENSIONS.get_ptr_mut(index) else { return (NEVER as u64) << 32 };
        let word = Value(atomic::load(word_of(record)));
        let this = opaque((cost(word, now as u16) as u64) << 32 | index as u64);
        least = opaque(if this < least { this } else { least });
    }
    least
}
