//! How much a real server has to do, and how much it may: its flows by kind, its weight and its thresholds. Half a
//! line, since walks over many servers read nothing else. Also the limit of packets per second.

use crate::{connection::Value, sctp, state::State};

/// Flows of a real server in a service or a service group.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(32))]
pub struct Load {
    /// \[atomic\] active flows (lower half) and inactive ones (upper half). Changed by additions only, so each half
    /// may be below zero for a moment: read them with [`Load::counts_of`].
    pub counts: u64,
    /// Effective weight; 0 takes no new flows.
    pub weight: u32,
    /// \[atomic\] 1: the upper threshold was reached and the lower one not since. Written by the data plane, and by
    /// the agent when thresholds change.
    pub overloaded: u32,
    /// Flows (active and inactive) from which on the server takes no new ones; 0 is no limit.
    pub upper: u32,
    /// Flows below which it takes new ones again; 0 is three quarters of `upper`.
    pub lower: u32,
    /// Spare; zero.
    pub reserved: u64,
}

/// One active flow, as an addend to [`Load::counts`].
pub const ACTIVE: u64 = 1;
/// One inactive flow.
pub const INACTIVE: u64 = 1 << 32;

/// What an entry's word counts as at its real server: [`ACTIVE`], [`INACTIVE`] or nothing. Only words of flows are
/// asked about: under FULLNAT the lease's, not the entry's. `udp_inactive` is IPVS's way.
#[inline(always)]
pub const fn counted(word: Value, udp_inactive: bool) -> u64 {
    let state = word.state();
    if state == 0 || state == State::Busy as u8 {
        return 0;
    }
    let active = if word.is_sctp() {
        sctp::State::ACTIVE
    } else {
        State::ACTIVE & !(if udp_inactive { 1 << State::Udp as u32 } else { 0 })
    };
    if active >> state & 1 != 0 { ACTIVE } else { INACTIVE }
}

impl Load {
    /// (active, inactive) of a counts word.
    #[inline(always)]
    pub const fn counts_of(word: u64) -> (u32, u32) {
        let active = word as u32 as i32;
        let inactive = (word.wrapping_sub(active as i64 as u64) >> 32) as u32 as i32;
        (if active < 0 { 0 } else { active as u32 }, if inactive < 0 { 0 } else { inactive as u32 })
    }

    /// IPVS's overhead: an active flow weighs 256 inactive ones.
    #[inline(always)]
    pub const fn overhead(word: u64) -> u64 {
        let (active, inactive) = Self::counts_of(word);
        ((active as u64) << 8) + inactive as u64
    }

    /// Whether a server with `total` flows is overloaded from now on, given what it was: IPVS's hysteresis. `added`
    /// says that a flow was bound, else one was unbound.
    #[inline(always)]
    pub const fn is_overloaded(was: bool, added: bool, total: u64, upper: u32, lower: u32) -> bool {
        if upper == 0 {
            return false;
        }
        if added {
            return was || total >= upper as u64;
        }
        let relieved = if lower != 0 { total < lower as u64 } else { total * 4 < upper as u64 * 3 };
        was && !relieved
    }
}

/// Packets per second of one destination.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Rate {
    /// \[atomic\] second (32 bits, upper half) | packets in it. Written by the data plane only.
    pub word: u64,
    /// Packets that may pass in a second.
    pub limit: u32,
    /// Spare; zero.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    use proptest::prelude::*;

    #[test]
    fn records_have_the_sizes_that_the_program_was_built_with() {
        assert_eq!((size_of::<Load>(), align_of::<Load>()), (32, 32));
        assert_eq!((offset_of!(Load, counts), offset_of!(Load, overloaded)), (0, 12));
        assert_eq!(size_of::<Rate>(), 16);
    }

    #[test]
    fn a_server_fills_at_its_upper_threshold_and_is_free_below_its_lower_one() {
        // (was, added, total, upper, lower, is)
        for (was, added, total, upper, lower, is) in [
            (false, true, 9, 10, 0, false),
            (false, true, 10, 10, 0, true),
            (true, false, 9, 10, 0, true),
            (true, false, 8, 10, 0, true),
            (true, false, 7, 10, 0, false),
            (true, false, 5, 10, 5, true),
            (true, false, 4, 10, 5, false),
            (true, true, 3, 10, 5, true),
            (false, false, 9, 10, 5, false),
            (true, false, 9, 0, 0, false),
            (false, true, 1000, 0, 0, false),
        ] {
            assert_eq!(Load::is_overloaded(was, added, total, upper, lower), is, "{was} {added} {total}");
        }
    }

    #[test]
    fn words_count_by_their_state() {
        use crate::connection::Kind;
        let of = |state| Value::flow(Kind::Flow, 1, 0, state, 0);
        assert_eq!((counted(Value::EMPTY, false), counted(Value::BUSY, false)), (0, 0));
        for number in 1..15 {
            let Some(state) = State::from_number(number) else { continue };
            let expected = if state.is_active() { ACTIVE } else { INACTIVE };
            assert_eq!(counted(of(state), false), expected, "{state:?}");
        }
        assert_eq!((counted(of(State::Udp), false), counted(of(State::Udp), true)), (ACTIVE, INACTIVE));
        assert_eq!(counted(of(State::Established), true), ACTIVE);
    }

    proptest! {
        #[test]
        fn counts_are_those_added_whatever_the_order(active in 0u32..1 << 30, inactive in 0u32..1 << 30) {
            let word = (active as u64).wrapping_mul(ACTIVE).wrapping_add(INACTIVE.wrapping_mul(inactive as u64));
            prop_assert_eq!(Load::counts_of(word), (active, inactive));
            // One flow too few of a kind for a moment: the other kind reads right.
            let below = INACTIVE.wrapping_mul(inactive as u64).wrapping_sub(ACTIVE);
            prop_assert_eq!(Load::counts_of(below), (0, inactive));
            prop_assert_eq!(below.wrapping_add(ACTIVE), INACTIVE.wrapping_mul(inactive as u64));
            let below = (active as u64).wrapping_sub(INACTIVE);
            prop_assert_eq!(Load::counts_of(below), (active, 0));
        }
    }
}
