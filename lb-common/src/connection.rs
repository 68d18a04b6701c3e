//! The connection table: one 64-byte bucket (a cache line) holds four entries of {identity, value}. The
//! value word says everything about a flow; it is only ever replaced whole, by compare-and-exchange, except
//! between a claim (BUSY) and its publication.
//!
//! ```text
//! bits  0..37  payload: destination 21 | tag 16            (DR, TUN, NAT; templates)
//!              payload: destination 21 | hop 8 | tag 8     (NAT reply: how the client is reached)
//!              payload: lease 24 | tag 13                  (FULLNAT)
//! bits 37..42  flags: extension record, dirty for sync, hashed, SCTP, judged
//! bits 42..58  deadline, in ticks: when the entry expires
//! bits 58..62  state
//! bits 62..64  kind
//! ```

use crate::{hash, sctp, state::State};

/// Entries in a bucket.
pub const WAYS: usize = 4;

/// One entry: 16 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct Entry {
    /// Which flow ([`hash::Secrets`]).
    pub identity: u64,
    /// What of it ([`Value`]); 0 is an empty slot.
    pub value: u64,
}

/// One cache line of the table.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Bucket {
    pub entries: [Entry; WAYS],
}

/// The tuple of an IPv6 flow, in a cold array with the same slot numbers. Written between claim and
/// publication; read by dump and sync only. 32 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ColdTuple {
    /// The client.
    pub source: crate::address::Address,
    /// Ports as in the packet, source first.
    pub ports: u32,
    /// Spare; zero.
    pub reserved: [u32; 3],
}

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Client to VIP by DR, TUN or NAT: the payload names a destination.
    Flow = 0,
    /// Client to VIP by FULLNAT: the payload names a lease.
    FullNat = 1,
    /// Real server to client (NAT): the payload names a destination and the hop to the client.
    NatReply = 2,
    /// A persistence template.
    Template = 3,
}

/// Set in a value word's flags: the flow has an extension record.
pub const FLAG_EXTENSION: u64 = 1;
/// Set in a value word's flags: changed since the last sync.
pub const FLAG_DIRTY: u64 = 1 << 1;
/// Set in a template's flags: its identity is a hash of a SIP Call-ID and no client can be read from it.
pub const FLAG_HASHED: u64 = 1 << 2;
/// Set in a flow's flags (and its lease's): the state is one of SCTP ([`sctp::State`]).
pub const FLAG_SCTP: u64 = 1 << 3;
/// Set in a flow's flags: how its server answered first was counted ([`crate::witness::Witness`]).
pub const FLAG_JUDGED: u64 = 1 << 4;

const DESTINATION_BITS: u32 = 21;
/// How many destinations a value word can name.
pub const MAX_DESTINATIONS: u32 = 1 << DESTINATION_BITS;
const LEASE_BITS: u32 = 24;
/// How many leases a value word can name.
pub const MAX_LEASES: u32 = 1 << LEASE_BITS;
const FLAGS_SHIFT: u32 = 37;
const DEADLINE_SHIFT: u32 = 42;
const STATE_SHIFT: u32 = 58;
const KIND_SHIFT: u32 = 62;
const PAYLOAD_MASK: u64 = (1 << FLAGS_SHIFT) - 1;
const DEADLINE_MASK: u64 = 0xffff << DEADLINE_SHIFT;

/// The hop of a NAT reply entry that means: the client is on a directly attached segment; ask the
/// `client_neighbours` map.
pub const HOP_ON_LINK: u8 = 255;

/// The value word of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Value(pub u64);

impl Value {
    /// An empty slot.
    pub const EMPTY: Value = Value(0);
    /// A slot that a CPU has claimed and is writing. Counts as a miss.
    pub const BUSY: Value = Value((State::Busy as u64) << STATE_SHIFT);

    /// A flow to a destination. `first` is [`hash::Secrets::first`] of its identity.
    #[inline(always)]
    pub const fn flow(kind: Kind, destination: u32, first: u64, state: State, deadline: u16) -> Self {
        let payload = (destination as u64 & (MAX_DESTINATIONS as u64 - 1)) << 16 | hash::tag(first) as u64;
        Self::new(kind, payload, state, deadline)
    }

    /// A NAT reply entry. `hop` is the index of the next hop to the client, or [`HOP_ON_LINK`].
    #[inline(always)]
    pub const fn nat_reply(destination: u32, hop: u8, first: u64, state: State, deadline: u16) -> Self {
        let payload = (destination as u64 & (MAX_DESTINATIONS as u64 - 1)) << 16
            | (hop as u64) << 8
            | (hash::tag(first) & 0xff) as u64;
        Self::new(Kind::NatReply, payload, state, deadline)
    }

    /// A FULLNAT flow.
    #[inline(always)]
    pub const fn full_nat(lease: u32, first: u64, state: State, deadline: u16) -> Self {
        let payload = (lease as u64 & (MAX_LEASES as u64 - 1)) << 13 | (hash::tag(first) & 0x1fff) as u64;
        Self::new(Kind::FullNat, payload, state, deadline)
    }

    #[inline(always)]
    const fn new(kind: Kind, payload: u64, state: State, deadline: u16) -> Self {
        Self(
            (kind as u64) << KIND_SHIFT
                | (state as u64) << STATE_SHIFT
                | (deadline as u64) << DEADLINE_SHIFT
                | payload,
        )
    }

    /// What the entry is.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        match self.0 >> KIND_SHIFT {
            0 => Kind::Flow,
            1 => Kind::FullNat,
            2 => Kind::NatReply,
            _ => Kind::Template,
        }
    }

    /// The state's number ([`State`]); 0 is no entry.
    #[inline(always)]
    pub const fn state(self) -> u8 {
        (self.0 >> STATE_SHIFT) as u8 & 15
    }

    /// When the entry expires, in ticks modulo 2^16.
    #[inline(always)]
    pub const fn deadline(self) -> u16 {
        (self.0 >> DEADLINE_SHIFT) as u16
    }

    /// The flags ([`FLAG_EXTENSION`] and its like).
    #[inline(always)]
    pub const fn flags(self) -> u64 {
        (self.0 >> FLAGS_SHIFT) & 31
    }

    /// The same entry without these flags.
    #[inline(always)]
    pub const fn without_flags(self, flags: u64) -> Self {
        Self(self.0 & !(flags << FLAGS_SHIFT))
    }

    /// The destination's index (kinds other than FULLNAT).
    #[inline(always)]
    pub const fn destination(self) -> u32 {
        (self.0 >> 16) as u32 & (MAX_DESTINATIONS - 1)
    }

    /// The hop to the client (NAT reply).
    #[inline(always)]
    pub const fn hop(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The lease's index (FULLNAT).
    #[inline(always)]
    pub const fn lease(self) -> u32 {
        (self.0 >> 13) as u32 & (MAX_LEASES - 1)
    }

    /// Whether the slot is free: never used, or given back.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a CPU is writing the slot.
    #[inline(always)]
    pub const fn is_busy(self) -> bool {
        self.state() == State::Busy as u8
    }

    /// Whether the entry's time is over. Ticks wrap at 2^16; deadlines lie at most 32,000 ahead.
    #[inline(always)]
    pub const fn is_expired(self, now: u16) -> bool {
        (now.wrapping_sub(self.deadline()) as i16) >= 0
    }

    /// Whether this word can belong to the identity whose [`hash::Secrets::first`] is `first`: closes the
    /// race in which a slot is replaced twice between a reader's two looks at the identity.
    #[inline(always)]
    pub const fn has_tag(self, first: u64) -> bool {
        let mask = match self.kind() {
            Kind::Flow | Kind::Template => 0xffff,
            Kind::FullNat => 0x1fff,
            Kind::NatReply => 0xff,
        };
        (self.0 ^ hash::tag(first) as u64) & mask == 0
    }

    /// The same entry with another state and deadline.
    #[inline(always)]
    pub const fn with(self, state: u8, deadline: u16) -> Self {
        Self(
            self.0 & !(DEADLINE_MASK | 15 << STATE_SHIFT)
                | (deadline as u64) << DEADLINE_SHIFT
                | (state as u64 & 15) << STATE_SHIFT,
        )
    }

    /// The same entry with another deadline.
    #[inline(always)]
    pub const fn with_deadline(self, deadline: u16) -> Self {
        Self(self.0 & !DEADLINE_MASK | (deadline as u64) << DEADLINE_SHIFT)
    }

    /// The same entry with another hop to the client (NAT reply).
    #[inline(always)]
    pub const fn with_hop(self, hop: u8) -> Self {
        Self(self.0 & !0xff00 | (hop as u64) << 8)
    }

    /// The same entry with these flags set.
    #[inline(always)]
    pub const fn with_flags(self, flags: u64) -> Self {
        Self(self.0 | (flags & 31) << FLAGS_SHIFT)
    }

    /// Whether the state is one of SCTP.
    #[inline(always)]
    pub const fn is_sctp(self) -> bool {
        self.0 >> FLAGS_SHIFT & FLAG_SCTP != 0
    }

    /// Whether both ends have agreed (UDP: a reply or a second packet was seen): nothing unproven takes its place.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        let settled =
            1 << State::Established as u32 | if self.is_sctp() { 0 } else { 1 << State::Udp as u32 };
        (settled as u32) >> self.state() & 1 != 0
    }

    /// Whether a connection is being set up.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        let half_open: u32 = if self.is_sctp() {
            sctp::State::HALF_OPEN
        } else {
            1 << State::SynReceived as u32 | 1 << State::SynSent as u32 | 1 << State::SynAck as u32
        };
        half_open >> self.state() & 1 != 0
    }

    /// The payload bits: what a word is about, without when.
    #[inline(always)]
    pub const fn payload(self) -> u64 {
        self.0 & PAYLOAD_MASK
    }
}

/// How much longer than its timeout an entry may live, so that not every packet writes: it is refreshed
/// when the deadline it should have has passed the one it has. Never early, late by 1/256 at most; a pair
/// (NAT, FULLNAT) by a quarter, since its refresh also writes the twin.
#[inline(always)]
pub const fn slack(timeout: u16, pair: bool) -> u16 {
    if pair { timeout >> 2 } else { (timeout >> 8) + 1 }
}

/// The longest timeout that ticks of 16 bits can hold with its slack.
pub const MAX_TIMEOUT_TICKS: u16 = 25_600;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Entry>(), 16);
        assert_eq!(size_of::<Bucket>(), 64);
        assert_eq!(align_of::<Bucket>(), 64);
        assert_eq!(size_of::<ColdTuple>(), 32);
        assert_eq!(core::mem::offset_of!(Entry, value), 8, "the value word is 8-byte aligned");
    }

    #[test]
    fn the_longest_timeout_and_its_slack_stay_below_half_the_wrap() {
        assert!(MAX_TIMEOUT_TICKS as u32 + (slack(MAX_TIMEOUT_TICKS, true) as u32) <= 32_000);
    }

    #[test]
    fn an_empty_word_is_no_entry_and_no_entry_is_empty() {
        assert!(Value::EMPTY.is_empty());
        assert!(!Value::BUSY.is_empty());
        assert!(!Value::flow(Kind::Flow, 0, 0, State::Established, 0).is_empty());
    }

    #[test]
    fn a_word_knows_whose_its_states_number_is() {
        let word = Value::flow(Kind::Flow, 7, 0, State::Established, 9);
        let of = |number: u8, flags: u64| word.with(number, 9).with_flags(flags);
        for number in 1..15 {
            let tcp = State::from_number(number);
            let half_open = matches!(tcp, Some(State::SynReceived | State::SynSent | State::SynAck));
            let settled = matches!(tcp, Some(State::Established | State::Udp));
            assert_eq!((of(number, 0).is_half_open(), of(number, 0).is_settled()), (half_open, settled));
            let sctp = of(number, FLAG_SCTP);
            assert_eq!((sctp.is_sctp(), sctp.state()), (true, number));
            assert_eq!(sctp.is_half_open(), sctp::is_half_open(number));
            assert_eq!(sctp.is_settled(), number == sctp::State::Established as u8);
            assert_eq!(sctp.with(3, 7).payload(), word.payload());
            assert!(sctp.with(3, 7).is_sctp(), "a step keeps the flag");
        }
    }

    proptest! {
        #[test]
        fn every_field_of_a_flow_is_read_back(destination in 0..MAX_DESTINATIONS, first: u64, deadline: u16) {
            let v = Value::flow(Kind::Flow, destination, first, State::SynReceived, deadline);
            prop_assert_eq!(v.kind(), Kind::Flow);
            prop_assert_eq!(v.destination(), destination);
            prop_assert_eq!(v.state(), State::SynReceived as u8);
            prop_assert_eq!(v.deadline(), deadline);
            prop_assert_eq!(v.flags(), 0);
            prop_assert!(v.has_tag(first));
            prop_assert!(!v.has_tag(first ^ 1 << 16));
            let w = v.with(State::FinWait as u8, deadline.wrapping_add(7));
            prop_assert_eq!((w.state(), w.deadline(), w.payload()), (State::FinWait as u8, deadline.wrapping_add(7), v.payload()));
        }

        #[test]
        fn a_lease_and_a_hop_are_read_back(lease in 0..MAX_LEASES, destination in 0..MAX_DESTINATIONS, hop: u8, first: u64) {
            let v = Value::full_nat(lease, first, State::Established, 9);
            prop_assert_eq!((v.kind(), v.lease(), v.has_tag(first)), (Kind::FullNat, lease, true));
            let v = Value::nat_reply(destination, hop, first, State::Established, 9);
            prop_assert_eq!((v.kind(), v.destination(), v.hop(), v.has_tag(first)), (Kind::NatReply, destination, hop, true));
            prop_assert_eq!(v.with_hop(3).destination(), destination);
        }

        #[test]
        fn an_entry_expires_at_its_deadline_and_not_before(now: u16, ahead in 1u16..32_000) {
            let v = Value::flow(Kind::Flow, 1, 0, State::Udp, now.wrapping_add(ahead));
            prop_assert!(!v.is_expired(now));
            prop_assert!(v.is_expired(now.wrapping_add(ahead)));
            prop_assert!(v.is_expired(now.wrapping_add(ahead).wrapping_add(700)));
        }
    }
}
