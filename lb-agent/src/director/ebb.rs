//! How fast a draining real server empties, and so when it will be empty. Pure.

use std::collections::VecDeque;

/// How many connections were left at some moments of the last minutes.
#[derive(Debug, Clone, Default)]
pub struct Ebb {
    /// (second, connections left), oldest first.
    samples: VecDeque<(u64, u64)>,
}

impl Ebb {
    /// Takes note of what is left at second `now`.
    pub fn note(&mut self, now: u64, left: u64) {
        if self.samples.back().is_none_or(|(at, _)| now >= at + STEP) {
            self.samples.push_back((now, left));
        }
        while self.samples.front().is_some_and(|(at, _)| at + WINDOW < now) && self.samples.len() > 1 {
            self.samples.pop_front();
        }
    }

    /// Seconds until less than half a connection is to be expected, if connections go on ending in the proportion in
    /// which they have ended within [`WINDOW`]. None: none has ended, or it is too early to tell.
    pub fn empty_in(&self, now: u64, left: u64) -> Option<u64> {
        if left == 0 {
            return Some(0);
        }
        let (at, before) = *self.samples.front()?;
        let elapsed = now.checked_sub(at).filter(|elapsed| *elapsed >= STEP)?;
        if before <= left {
            return None;
        }
        let (before, left) = (before as f64, left as f64);
        let per_second = (before / left).ln() / elapsed as f64;
        Some(((left * 2.0).ln() / per_second).ceil() as u64)
    }
}

/// Seconds that an estimate looks back.
pub const WINDOW: u64 = 300;
/// Seconds between two samples, and the least time an estimate needs.
const STEP: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn ebb(samples: &[(u64, u64)]) -> Ebb {
        let mut ebb = Ebb::default();
        samples.iter().for_each(|(at, left)| ebb.note(*at, *left));
        ebb
    }

    #[test]
    fn it_goes_on_as_it_went() {
        // Half of them end every ten seconds: 100, 50, 25, and from there 12, 6, 3, 2, 1, 1/2.
        let ebb = ebb(&[(0, 100), (10, 50)]);
        assert_eq!(ebb.empty_in(20, 25), Some(57));
        assert_eq!(ebb.empty_in(70, 1), Some(11), "the last one has a half-life like all the others");
        assert_eq!(ebb.empty_in(70, 0), Some(0));
    }

    #[test]
    fn without_an_end_there_is_no_estimate() {
        assert_eq!(Ebb::default().empty_in(10, 3), None);
        let early = ebb(&[(100, 5)]);
        assert_eq!(
            (early.empty_in(104, 2), early.empty_in(105, 5), early.empty_in(99, 2)),
            (None, None, None)
        );
        assert_eq!(early.empty_in(105, 7), None, "more than there were");
    }

    #[test]
    fn what_is_long_over_does_not_count() {
        let mut ebb = ebb(&[(0, 1000), (5, 10)]);
        for at in (10..=WINDOW + 10).step_by(5) {
            ebb.note(at, 10);
        }
        assert_eq!(ebb.empty_in(WINDOW + 10, 10), None, "nothing has ended for five minutes");
        ebb.note(WINDOW * 9, 10);
        assert_eq!(ebb.empty_in(WINDOW * 9 + 5, 5), Some(17), "a pause leaves the last sample alone");
    }
}
