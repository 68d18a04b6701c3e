//! What a director's own condition does to its priority. Pure: whoever watches interfaces, scripts, processes,
//! files and services says what is up and what is down; here it becomes faults and an effective priority.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{OWNER_PRIORITY, TrackEffect};

/// The tracked things of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tracking {
    faults: BTreeSet<String>,
    weights: BTreeMap<String, i32>,
}

/// A tracked thing changed. It is named as an operator would: `interface eth1`, `script nginx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Fault {
        what: String,
        present: bool,
    },
    /// Added to the priority from now on, in place of what the same thing added before.
    Weight {
        what: String,
        delta: i32,
    },
    /// It is no longer tracked.
    Gone {
        what: String,
    },
}

impl Change {
    /// What follows from a thing being up or down.
    pub fn of(what: impl Into<String>, effect: TrackEffect, up: bool) -> Change {
        let what = what.into();
        match effect {
            TrackEffect::Fault => Change::Fault { what, present: !up },
            // A negative weight counts while the thing is down, a positive one while it is up, so that
            // "everything is up" is the higher priority either way.
            TrackEffect::Weight(weight) if up == (weight > 0) => {
                Change::Weight { what, delta: weight.into() }
            }
            TrackEffect::Weight(_) => Change::Weight { what, delta: 0 },
        }
    }
}

impl Tracking {
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Fault { what, present: true } => {
                self.weights.remove(&what);
                self.faults.insert(what);
            }
            Change::Fault { what, present: false } | Change::Gone { what } => {
                self.weights.remove(&what);
                self.faults.remove(&what);
            }
            Change::Weight { what, delta } => {
                self.faults.remove(&what);
                self.weights.insert(what, delta);
            }
        }
    }

    /// What is down and must not be, in the order of names.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        self.faults.iter().map(String::as_str)
    }

    pub fn in_fault(&self) -> bool {
        !self.faults.is_empty()
    }

    /// What is added to the priority, thing by thing.
    pub fn weights(&self) -> impl Iterator<Item = (&str, i32)> {
        self.weights.iter().map(|(what, delta)| (what.as_str(), *delta))
    }

    /// The priority after all weights: 1 to 254, since 0 and 255 have meanings of their own. An owner's stays:
    /// the addresses are its own whatever else fails.
    pub fn priority(&self, configured: u8) -> u8 {
        if configured == OWNER_PRIORITY {
            return OWNER_PRIORITY;
        }
        let sum = self.weights.values().fold(i32::from(configured), |sum, delta| sum.saturating_add(*delta));
        sum.clamp(1, 254) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracking(changes: &[(&str, TrackEffect, bool)]) -> Tracking {
        let mut tracking = Tracking::default();
        for (what, effect, up) in changes {
            tracking.apply(Change::of(*what, *effect, *up));
        }
        tracking
    }

    #[test]
    fn weights_count_up_or_down_and_stay_between_1_and_254() {
        use TrackEffect::Weight;
        for (changes, configured, priority) in [
            (&[][..], 100, 100),
            (&[("a", Weight(-20), true)], 100, 100),
            (&[("a", Weight(-20), false)], 100, 80),
            (&[("a", Weight(20), true)], 100, 120),
            (&[("a", Weight(20), false)], 100, 100),
            (&[("a", Weight(-20), false), ("b", Weight(-30), false)], 100, 50),
            (&[("a", Weight(-20), false), ("a", Weight(-20), true)], 100, 100),
            (&[("a", Weight(-253), false)], 100, 1),
            (&[("a", Weight(253), true)], 100, 254),
            // The sum is clamped, not its parts.
            (&[("a", Weight(-253), false), ("b", Weight(253), true)], 100, 100),
            (&[("a", Weight(-253), false)], 255, 255),
        ] {
            assert_eq!(tracking(changes).priority(configured), priority, "{changes:?}");
        }
    }

    #[test]
    fn a_fault_lasts_until_everything_is_up_again() {
        use TrackEffect::Fault;
        let mut tracking = tracking(&[("a", Fault, false), ("b", Fault, false)]);
        assert_eq!(tracking.faults().collect::<Vec<_>>(), ["a", "b"]);
        tracking.apply(Change::of("a", Fault, true));
        assert!(tracking.in_fault());
        tracking.apply(Change::Gone { what: "b".into() });
        assert!(!tracking.in_fault());
    }

    #[test]
    fn a_thing_whose_effect_changes_counts_once() {
        let mut tracking = tracking(&[("a", TrackEffect::Fault, false)]);
        tracking.apply(Change::of("a", TrackEffect::Weight(-10), false));
        assert!(!tracking.in_fault());
        assert_eq!(tracking.priority(100), 90);
        tracking.apply(Change::of("a", TrackEffect::Fault, false));
        assert!(tracking.in_fault());
        assert_eq!(tracking.priority(100), 100);
    }
}
