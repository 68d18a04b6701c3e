//! Since when the sweeper knows each flow. An entry has no birth time of its own, and the established path must not
//! write one; but the sweeper passes every entry once a second, and so can note when it first met it.

use lb_common::state::State;

/// When each slot's flow was first met, in seconds of the sweeper's own life.
#[derive(Debug)]
pub struct Ages {
    /// By slot: the second plus one in the low half, a mark of the flow's identity in the high half. The memory of
    /// slots that were never used is never touched.
    met: Vec<u64>,
}

/// How long a flow has been there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Age {
    pub seconds: u32,
    /// The sweeper met it on its first walk: it may be older.
    pub at_least: bool,
}

impl Ages {
    /// For a table with so many slots, no flow met yet.
    pub fn new(slots: usize) -> Self {
        Self { met: vec![0; slots] }
    }

    /// The second in which the flow of a slot was met first; `second` is now. A flow whose handshake is under way is
    /// met anew each time, so that ports which a client uses again do not inherit an age.
    pub fn meet(&mut self, slot: usize, identity: u64, state: u8, second: u32) -> u32 {
        let Some(met) = self.met.get_mut(slot) else { return second };
        let mark = mark(identity);
        let known = *met as u32 != 0 && *met >> 32 == mark && !is_half_open(state);
        if !known {
            *met = mark << 32 | u64::from(second.saturating_add(1));
        }
        (*met as u32) - 1
    }
}

/// 32 bits of an identity in which any two differ that are likely to follow each other in one slot.
fn mark(identity: u64) -> u64 {
    (identity ^ identity >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

fn is_half_open(state: u8) -> bool {
    matches!(State::from_number(state), Some(State::SynSent | State::SynReceived | State::SynAck))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u8 = State::Established as u8;

    #[test]
    fn a_flow_keeps_the_second_in_which_it_was_met() {
        let mut ages = Ages::new(2);
        assert_eq!(ages.meet(1, 7, ESTABLISHED, 0), 0);
        assert_eq!(ages.meet(1, 7, ESTABLISHED, 5), 0);
        assert_eq!(ages.meet(1, 7, State::FinWait as u8, 6), 0, "its state may change");
        assert_eq!(ages.meet(0, 7, ESTABLISHED, 6), 6, "another slot");
    }

    #[test]
    fn another_flow_in_the_slot_begins_anew() {
        let mut ages = Ages::new(1);
        ages.meet(0, 7, ESTABLISHED, 1);
        assert_eq!(ages.meet(0, 8, ESTABLISHED, 4), 4);
        assert_eq!(ages.meet(0, 7 << 32, ESTABLISHED, 5), 5);
    }

    #[test]
    fn ports_that_are_used_again_are_as_old_as_their_new_handshake() {
        let mut ages = Ages::new(1);
        assert_eq!(ages.meet(0, 7, ESTABLISHED, 1), 1);
        assert_eq!(ages.meet(0, 7, State::SynReceived as u8, 9), 9);
        assert_eq!(ages.meet(0, 7, State::SynReceived as u8, 10), 10);
        assert_eq!(ages.meet(0, 7, ESTABLISHED, 12), 10, "the handshake's last second is its first");
    }
}
