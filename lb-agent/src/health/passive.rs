//! Whether the answers to new connections that the data plane saw are reason to doubt a real server, and for how
//! long. Pure: what was counted goes in, with the time; a probation comes out, which probes end.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::model::health::Passive;

/// New connections of one real server by what came first. Each counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub answered: u64,
    /// With RST.
    pub refused: u64,
    /// The client had to repeat its SYN.
    pub silent: u64,
    /// With an ICMP error.
    pub unreachable: u64,
}

impl Tally {
    pub fn failed(self) -> u64 {
        self.refused + self.silent + self.unreachable
    }

    pub fn all(self) -> u64 {
        self.answered + self.failed()
    }

    fn with(self, of: fn(u64, u64) -> u64, other: Tally) -> Tally {
        Tally {
            answered: of(self.answered, other.answered),
            refused: of(self.refused, other.refused),
            silent: of(self.silent, other.silent),
            unreachable: of(self.unreachable, other.unreachable),
        }
    }

    #[must_use]
    pub fn plus(self, other: Tally) -> Tally {
        self.with(u64::wrapping_add, other)
    }

    /// What came since an earlier reading of the same counters.
    #[must_use]
    pub fn since(self, earlier: Tally) -> Tally {
        self.with(u64::wrapping_sub, earlier)
    }
}

/// `7 refused, 2 unanswered of 12 new connections`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            [(self.refused, "refused"), (self.silent, "unanswered"), (self.unreachable, "unreachable")]
                .into_iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, word)| format!("{count} {word}"))
                .collect();
        let failed = if parts.is_empty() { "all answered".to_owned() } else { parts.join(", ") };
        match self.all() {
            0 => f.write_str("no new connections"),
            all => write!(f, "{failed} of {all} new connections"),
        }
    }
}

/// Where the evidence comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// From the server: its answers pass the director. Enough to give it nothing new.
    Answers,
    /// From clients alone, of whom some may lie. Enough to probe the server.
    Clients,
}

/// A server in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probation {
    pub since: Instant,
    /// It does not end before.
    pub until: Instant,
    /// It gets no new connections.
    pub out: bool,
    /// What led to it.
    pub tally: Tally,
    pub window: Duration,
}

/// What the probes since a probation began have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// Not all have had an outcome.
    NotYet,
    Passed,
    /// At least one fails.
    Failed,
}

/// One watched server.
#[derive(Debug, Clone, Default)]
pub struct Watcher {
    /// What came within the window, by when.
    samples: VecDeque<(Instant, Tally)>,
    probation: Option<Probation>,
    /// Probations that came soon after one another.
    relapses: u32,
    ended: Option<Instant>,
}

impl Watcher {
    /// Takes up what was counted since the last time. True when a probation begins. `may_be_out`: enough others are
    /// left.
    pub fn take(
        &mut self,
        now: Instant,
        new: Tally,
        rules: &Passive,
        evidence: Evidence,
        may_be_out: bool,
    ) -> bool {
        self.forget(now, rules.window);
        if self.probation.is_some() || new == Tally::default() {
            return false;
        }
        match self.samples.back_mut() {
            Some((at, tally)) if now.saturating_duration_since(*at) < rules.window / GRAINS => {
                *tally = tally.plus(new);
            }
            _ => self.samples.push_back((now, new)),
        }
        let tally = self.tally(now, rules.window);
        let enough = tally.failed() >= u64::from(rules.failures);
        if !enough || tally.failed() * 100 < u64::from(rules.share) * tally.all() {
            return false;
        }
        let length = self.length(now, rules.probation);
        self.samples.clear();
        self.probation = Some(Probation {
            since: now,
            until: now + length,
            out: evidence == Evidence::Answers && may_be_out,
            tally,
            window: rules.window,
        });
        true
    }

    /// Of one that comes soon after the last it is twice as long.
    fn length(&mut self, now: Instant, first: Duration) -> Duration {
        let soon = |ended: Instant| now.saturating_duration_since(ended) < first * FORGIVEN_AFTER;
        self.relapses = match self.ended {
            Some(ended) if soon(ended) => (self.relapses + 1).min(RELAPSES_MAX),
            _ => 0,
        };
        first * 2u32.pow(self.relapses)
    }

    /// Takes up what probes have shown. True when the probation has ended or has put the server out.
    pub fn probed(&mut self, now: Instant, probed: Probed, may_be_out: bool) -> bool {
        let Some(probation) = &mut self.probation else { return false };
        match probed {
            Probed::Failed if !probation.out && may_be_out => {
                probation.out = true;
                true
            }
            Probed::Passed if now >= probation.until => {
                self.probation = None;
                self.ended = Some(now);
                true
            }
            Probed::NotYet | Probed::Passed | Probed::Failed => false,
        }
    }

    pub fn probation(&self) -> Option<&Probation> {
        self.probation.as_ref()
    }

    /// When the last probation ended.
    pub fn ended(&self) -> Option<Instant> {
        self.ended
    }

    /// What came within the window that ends now.
    pub fn tally(&self, now: Instant, window: Duration) -> Tally {
        let near = self.samples.iter().filter(|(at, _)| now.saturating_duration_since(*at) < window);
        near.fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally))
    }

    fn forget(&mut self, now: Instant, window: Duration) {
        let is_old = |sample: &(Instant, Tally)| now.saturating_duration_since(sample.0) >= window;
        while self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
    }
}

/// A window is kept in so many parts.
const GRAINS: u32 = 16;
/// A relapse is a probation that begins before so many times the first one's length have gone by.
const FORGIVEN_AFTER: u32 = 10;
/// No probation is longer than 2 to the power of this times the first one.
const RELAPSES_MAX: u32 = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Passive = Passive {
        window: Duration::from_secs(10),
        failures: 5,
        share: 50,
        probation: Duration::from_secs(10),
        max_share: 50,
    };

    fn tally(answered: u64, refused: u64, silent: u64) -> Tally {
        Tally { answered, refused, silent, unreachable: 0 }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_takes_enough_failures_and_a_large_enough_share_of_them_within_the_window() {
        type Case<'a> = (&'a str, &'a [(u64, Tally)], Option<usize>);
        // (second, what came), and at which of them a probation begins.
        let cases: [Case<'_>; 8] = [
            ("at once", &[(0, tally(0, 5, 0))], Some(0)),
            ("one too few", &[(0, tally(0, 4, 0))], None),
            ("one by one", &[(0, tally(0, 2, 0)), (4, tally(0, 2, 0)), (9, tally(0, 0, 1))], Some(2)),
            ("too slowly", &[(0, tally(0, 4, 0)), (10, tally(0, 1, 0))], None),
            ("most are answered", &[(0, tally(100, 50, 49))], None),
            ("exactly the share", &[(0, tally(5, 2, 3))], Some(0)),
            ("answered long ago", &[(0, tally(1000, 0, 0)), (10, tally(0, 5, 0))], Some(1)),
            ("not a packet", &[(0, tally(0, 0, 0)), (1, tally(0, 0, 0))], None),
        ];
        for (case, counted, begins) in cases {
            let (start, mut watcher) = (Instant::now(), Watcher::default());
            for (index, (at, new)) in counted.iter().enumerate() {
                let began = watcher.take(start + seconds(*at), *new, &RULES, Evidence::Answers, true);
                assert_eq!(began, begins == Some(index), "{case}: at {at} s");
            }
            assert_eq!(watcher.probation().is_some(), begins.is_some(), "{case}");
        }
    }

    #[test]
    fn a_server_is_out_by_its_own_answers_and_in_doubt_by_what_clients_show() {
        for (evidence, may_be_out, out) in [
            (Evidence::Answers, true, true),
            (Evidence::Answers, false, false),
            (Evidence::Clients, true, false),
        ] {
            let (now, mut watcher) = (Instant::now(), Watcher::default());
            assert!(watcher.take(now, tally(0, 0, 9), &RULES, evidence, may_be_out));
            assert_eq!(watcher.probation().unwrap().out, out, "{evidence:?} {may_be_out}");
            // One failed probe is enough now, unless too many are out.
            assert!(!watcher.probed(now, Probed::NotYet, may_be_out));
            watcher.probed(now, Probed::Failed, may_be_out);
            assert_eq!(watcher.probation().unwrap().out, may_be_out, "{evidence:?}");
        }
    }

    #[test]
    fn it_ends_with_a_passed_probe_and_not_before_its_time_and_a_relapse_lasts_twice_as_long() {
        let (mut now, mut watcher) = (Instant::now(), Watcher::default());
        for length in [10, 20, 40, 80, 160, 320, 320] {
            assert!(watcher.take(now, tally(0, 5, 0), &RULES, Evidence::Answers, true));
            assert!(
                !watcher.take(now, tally(0, 50, 0), &RULES, Evidence::Answers, true),
                "it is on probation"
            );
            let early = now + seconds(length) - Duration::from_millis(1);
            assert!(!watcher.probed(early, Probed::Passed, true), "{length} s");
            now += seconds(length);
            assert!(!watcher.probed(now, Probed::Failed, true) && !watcher.probed(now, Probed::NotYet, true));
            assert!(watcher.probed(now, Probed::Passed, true), "{length} s");
            assert_eq!((watcher.probation(), watcher.tally(now, RULES.window)), (None, Tally::default()));
            now += seconds(99);
        }
        now += seconds(1);
        assert!(watcher.take(now, tally(0, 5, 0), &RULES, Evidence::Answers, true));
        assert_eq!(watcher.probation().unwrap().until, now + seconds(10), "forgiven");
    }

    #[test]
    fn a_tally_is_told_in_words() {
        assert_eq!(tally(0, 0, 0).to_string(), "no new connections");
        assert_eq!(tally(3, 0, 0).to_string(), "all answered of 3 new connections");
        assert_eq!(tally(3, 7, 2).to_string(), "7 refused, 2 unanswered of 12 new connections");
        let unreachable = Tally { unreachable: 1, ..Tally::default() };
        assert_eq!(unreachable.to_string(), "1 unreachable of 1 new connections");
        let after_a_new_program = tally(2, 0, 0).since(tally(1, 0, 0));
        assert_eq!(after_a_new_program, tally(1, 0, 0));
    }

    proptest! {
        #[test]
        fn a_window_holds_what_came_within_it_and_little_memory(
            steps in prop::collection::vec((0u64..3000, 0u64..20, 0u64..3), 1..200),
        ) {
            let rules = Passive { failures: u32::MAX, ..RULES };
            let (mut now, mut watcher) = (Instant::now(), Watcher::default());
            let mut all: Vec<(Instant, Tally)> = Vec::new();
            for (after, answered, refused) in steps {
                now += Duration::from_millis(after);
                let new = tally(answered, refused, 0);
                watcher.take(now, new, &rules, Evidence::Answers, true);
                all.push((now, new));
                // A part of the window more or less.
                let grain = rules.window / GRAINS;
                let sum = |length: Duration| {
                    let near = all.iter().filter(|(at, _)| now.saturating_duration_since(*at) < length);
                    near.map(|(_, tally)| tally.all()).sum::<u64>()
                };
                let held = watcher.tally(now, rules.window).all();
                prop_assert!(held <= sum(rules.window) && held >= sum(rules.window - grain));
                prop_assert!(watcher.samples.len() <= GRAINS as usize + 1);
            }
        }

        #[test]
        fn a_server_whose_connections_are_answered_is_never_in_doubt(
            steps in prop::collection::vec((0u64..3000, 0u64..50), 1..100),
        ) {
            let (mut now, mut watcher) = (Instant::now(), Watcher::default());
            for (after, failed) in steps {
                now += Duration::from_millis(after);
                let new = tally(failed + 1, failed, 0);
                prop_assert!(!watcher.take(now, new, &RULES, Evidence::Answers, true));
            }
        }
    }
}
