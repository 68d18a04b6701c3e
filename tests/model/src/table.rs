//! The connection table and the leases, as docs/datapath.md has them: two buckets of four for each flow.

use crate::{Config, Model};
use lb_common::{
    address::Address,
    connection::{ColdTuple, Entry, Kind, Value, WAYS},
    hash,
    state::State,
    verdict::Reason,
};

/// Entries by slot, four to a bucket, and the tuples of IPv6 flows by the same numbers.
#[derive(Clone)]
pub struct Table {
    pub entries: Vec<Slot>,
    pub cold: Vec<ColdTuple>,
}

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Slot {
    pub identity: u64,
    pub value: Value,
}

const _: () = assert!(size_of::<Slot>() == size_of::<Entry>());

/// A lease of FULLNAT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    pub owner: u64,
    pub word: Value,
    pub client: [u8; 16],
    /// Client, VIP.
    pub ports: (u16, u16),
    /// The next hop towards the client; None: by `link`.
    pub hop: Option<u32>,
    pub link: crate::rewrite::Link,
}

/// The name of a flow in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub identity: u64,
    pub first: u64,
    buckets: [usize; 2],
}

impl Table {
    pub fn new(config: &Config) -> Self {
        let entries = WAYS << (64 - config.sizes.bucket_shift);
        let cold = WAYS << (64 - config.sizes.bucket_shift_v6);
        Self {
            entries: vec![Slot { identity: 0, value: Value::EMPTY }; entries],
            cold: vec![ColdTuple::default(); cold],
        }
    }

    /// The slot of a flow's live entry.
    pub fn find(&self, place: &Place, now: u16) -> Option<usize> {
        place.buckets.into_iter().flat_map(|bucket| bucket * WAYS..(bucket + 1) * WAYS).find(|slot| {
            let entry = self.entries[*slot];
            entry.identity == place.identity
                && !entry.value.is_empty()
                && !entry.value.is_expired(now)
                && entry.value.has_tag(place.first)
        })
    }

    /// How good a victim an entry is, the less the better; None: never.
    fn cost(&self, slot: usize, now: u16) -> Option<(u8, u16)> {
        cost(self.entries[slot].value, now)
    }

    /// The cheapest victim of a bucket, of equals the first.
    fn cheapest(&self, bucket: usize, now: u16) -> Option<((u8, u16), usize)> {
        let slots = bucket * WAYS..(bucket + 1) * WAYS;
        slots.filter_map(|slot| Some((self.cost(slot, now)?, slot))).min()
    }

    fn free(&self, bucket: usize, now: u16) -> usize {
        let slots = bucket * WAYS..(bucket + 1) * WAYS;
        slots.filter(|slot| matches!(self.cost(*slot, now), Some((0 | 1, _)))).count()
    }
}

/// How good a victim a word is, the less the better; None: never.
pub fn cost(value: Value, now: u16) -> Option<(u8, u16)> {
    if value.is_empty() {
        return Some((0, 0));
    }
    if value.is_expired(now) {
        return Some((1, 0));
    }
    let class = match State::from_number(value.state())? {
        State::Unconfirmed => 2,
        State::SynReceived | State::SynSent | State::SynAck => 3,
        State::Established | State::Udp => return None,
        _ => 4,
    };
    Some((class, value.deadline().wrapping_sub(now)))
}

impl Model {
    /// Where the flow from `source` to `destination` lies.
    pub(crate) fn place(
        &self,
        v6: bool,
        udp: bool,
        source: (&[u8; 16], u16),
        destination: (&[u8; 16], u16),
    ) -> Place {
        let secrets = &self.config.secrets;
        let (from, to) = (Address::from_v6(*source.0), Address::from_v6(*destination.0));
        let ports = hash::ports_word(source.1, destination.1);
        let identity = if v6 {
            secrets.identity_v6(secrets.sum_v6(to.halves()), from.halves(), ports, udp)
        } else {
            let tuple = hash::tuple_v4(from.words()[0], ports);
            secrets.identity_v4(secrets.key_v4(to.words()[0]), tuple, udp)
        };
        self.place_of(identity, v6)
    }

    /// Where an identity lies.
    pub(crate) fn place_of(&self, identity: u64, v6: bool) -> Place {
        let (secrets, sizes) = (&self.config.secrets, &self.config.sizes);
        let first = secrets.first(identity);
        let shift = if v6 { sizes.bucket_shift_v6 } else { sizes.bucket_shift };
        let buckets = [first, secrets.second(identity)].map(|product| (product >> shift) as usize);
        Place { identity, first, buckets }
    }

    pub(crate) fn find(&self, place: &Place) -> Option<usize> {
        self.table.find(place, self.now)
    }

    pub(crate) fn value(&self, slot: usize) -> Value {
        self.table.entries[slot].value
    }

    pub(crate) fn set(&mut self, slot: usize, value: Value) {
        let old = std::mem::replace(&mut self.table.entries[slot].value, value);
        self.recount_entry(old, value);
    }

    /// Of the entries only those of flows count; FULLNAT counts by its leases.
    fn recount_entry(&mut self, old: Value, new: Value) {
        let is_flow = |word: Value| !word.is_empty() && word.kind() == Kind::Flow;
        let counted = |word: Value| if is_flow(word) { word } else { Value::EMPTY };
        self.recount(counted(old), counted(new));
    }

    /// Writes a lease, or gives it back.
    pub(crate) fn set_lease(&mut self, index: u32, lease: Option<Lease>) {
        let word = |lease: Option<&Lease>| lease.map_or(Value::EMPTY, |lease| lease.word);
        let (old, new) = (word(self.leases.get(&index)), word(lease.as_ref()));
        match lease {
            Some(lease) => self.leases.insert(index, lease),
            None => self.leases.remove(&index),
        };
        self.recount(old, new);
    }

    /// The slot that a new entry takes: one of the first bucket, whose last free one is left to flows whose second
    /// bucket is fuller; or what is least worth keeping in either. None: there is nothing that may go.
    pub(crate) fn room(&self, place: &Place) -> Option<usize> {
        let (table, now, [first, second]) = (&self.table, self.now, place.buckets);
        let here = table.cheapest(first, now);
        let there = table.cheapest(second, now);
        let chosen = match table.free(first, now) {
            2.. => here,
            1 if table.free(second, now) > 1 => there,
            1 | 0 => match (here, there) {
                (Some(here), Some(there)) if there.0 < here.0 => Some(there),
                (None, there) => there,
                (here, _) => here,
            },
        };
        chosen.map(|(_, slot)| slot)
    }

    /// Puts an entry in. False: no room.
    pub(crate) fn insert(&mut self, place: &Place, value: Value, v6: bool, tuple: (&[u8; 16], u32)) -> bool {
        let Some(slot) = self.room(place) else { return false };
        let victim = self.value(slot);
        self.evicts(victim);
        self.recount_entry(victim, Value::EMPTY);
        self.recount_entry(Value::EMPTY, value);
        self.table.entries[slot] = Slot { identity: place.identity, value };
        if v6 {
            self.table.cold[slot] =
                ColdTuple { source: Address::from_v6(*tuple.0), ports: tuple.1, reserved: [0; 3] };
        }
        true
    }

    /// Counts what made room.
    pub(crate) fn evicts(&mut self, victim: Value) {
        match cost(victim, self.now) {
            Some((2, _)) => self.event(Reason::EvictedUnconfirmed),
            Some((3, _)) => self.event(Reason::EvictedHalfOpen),
            Some((4, _)) => self.event(Reason::EvictedClosing),
            _ => {}
        }
    }
}
