//! What is believed of one check: outcomes in, transitions out. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::hash::Hasher;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::model::health::{Check, FLAP_CHANGES_MAX, Flap, Start, Target, Timing};

/// The identity of a probe: its target and its parameters. All services that name the same share one. The same
/// over restarts of the agent and on every director.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(u128);

impl CheckId {
    pub fn of(target: &Target, check: &Check) -> CheckId {
        // Of the written form: derived hashes may change with the compiler.
        let written = serde_json::to_string(&(target, check)).expect("plain data");
        let mut hasher = SipHasher13::new_with_keys(0x6c62_2f68_6561_6c74, 0x6863_6865_636b_6964);
        hasher.write(written.as_bytes());
        CheckId(hasher.finish128().as_u128())
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for CheckId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<CheckId, ParseIntError> {
        u128::from_str_radix(text, 16).map(CheckId)
    }
}

impl fmt::Debug for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What the monitor is to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub id: CheckId,
    pub target: Target,
    pub check: Arc<Check>,
}

/// What one probe has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub passed: bool,
    /// For the operator: `connect to 10.0.0.12:80: connection refused`, `status 200 in 3 ms`.
    pub words: Arc<str>,
    /// How long the connection took, or where there is none the whole probe. None where nothing answered.
    pub latency: Option<Duration>,
    /// From a dynamic script, a file or an agent; None leaves what was said before.
    pub weight: Option<Weighing>,
    /// From an agent; None leaves what was said before.
    pub order: Option<Order>,
}

/// The weight that a probe gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighing {
    Absolute(u16),
    /// Of the configured weight.
    Percent(u16),
}

/// What a server's agent asks for beside being up (a success) or down (a failure).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// No new connections; what is established goes on.
    Drain,
    /// The opposite. `up` and `ready` say so.
    Ready,
}

/// An outcome on its way from the monitor.
#[derive(Debug, Clone)]
pub struct Report {
    pub id: CheckId,
    pub outcome: Outcome,
    /// When the outcome was known.
    pub at: Instant,
    /// When the next probe begins, as long as the pace stays.
    pub next: Instant,
}

/// Which of its intervals a check has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// [`crate::model::health::Timing::interval`].
    Normal,
    /// [`crate::model::health::Timing::fast_interval`].
    Fast,
}

/// What is believed of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// No outcome yet. `up`: the server was in the pool before this check was asked for, and stays until it fails.
    Unknown {
        up: bool,
    },
    Up,
    Down,
}

impl Belief {
    /// Whether the server may have new connections, as far as this check is concerned.
    pub fn up(self) -> bool {
        matches!(self, Belief::Up | Belief::Unknown { up: true })
    }

    pub fn is_known(self) -> bool {
        !matches!(self, Belief::Unknown { .. })
    }
}

/// A change of what was believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub at: Instant,
    pub up: bool,
    /// The outcome that made it.
    pub words: Arc<str>,
}

/// What an outcome has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// The belief, the weight or the order: whoever depends on this check must look again.
    pub matters: bool,
    /// The belief itself: up or down now.
    pub transition: Option<bool>,
    /// The monitor must be told.
    pub pace: Option<Pace>,
}

/// The state of one check.
#[derive(Debug, Clone)]
pub struct Machine {
    timing: Timing,
    belief: Belief,
    since: Instant,
    /// In a row; one of the two is 0.
    passed: u32,
    failed: u32,
    /// When the row began.
    row_since: Instant,
    /// Held down for changing too often.
    held: bool,
    pace: Pace,
    last: Option<(Instant, Outcome)>,
    next: Option<Instant>,
    /// Smoothed over some outcomes.
    latency: Option<Duration>,
    weight: Option<Weighing>,
    draining: bool,
    history: VecDeque<Transition>,
}

impl Machine {
    /// Before the first outcome. `in_the_pool`: the server has new connections at this moment.
    pub fn new(timing: Timing, in_the_pool: bool, now: Instant) -> Machine {
        Machine {
            timing,
            belief: Belief::Unknown { up: in_the_pool || timing.start == Start::Up },
            since: now,
            passed: 0,
            failed: 0,
            row_since: now,
            held: false,
            pace: Pace::Fast,
            last: None,
            next: None,
            latency: None,
            weight: None,
            draining: false,
            history: VecDeque::new(),
        }
    }

    /// Goes on from what was believed before a restart.
    pub fn carried(timing: Timing, up: bool, since: Instant, history: Vec<Transition>) -> Machine {
        let belief = if up { Belief::Up } else { Belief::Down };
        Machine { belief, history: history.into(), ..Machine::new(timing, up, since) }
    }

    /// With the weight and the order of before a restart.
    #[must_use]
    pub fn weighing(self, weight: Option<Weighing>, draining: bool) -> Machine {
        Machine { weight, draining, ..self }
    }

    /// Takes up an outcome. `next` is when the monitor means to probe again.
    pub fn take(&mut self, at: Instant, outcome: Outcome, next: Instant) -> Change {
        if (self.passed == 0 && self.failed == 0) || (self.failed > 0) == outcome.passed {
            self.row_since = at;
        }
        if outcome.passed {
            (self.passed, self.failed) = (self.passed.saturating_add(1), 0);
        } else {
            (self.passed, self.failed) = (0, self.failed.saturating_add(1));
        }
        let transition = self.decide(at, outcome.passed);
        if let Some(up) = transition {
            self.belief = if up { Belief::Up } else { Belief::Down };
            self.since = at;
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(Transition { at, up, words: Arc::clone(&outcome.words) });
        }
        let orders = self.follow(&outcome);
        if let Some(latency) = outcome.latency.filter(|_| outcome.passed) {
            self.latency = Some(match self.latency {
                None => latency,
                Some(smooth) => (smooth * (SMOOTHING - 1) + latency) / SMOOTHING,
            });
        }
        self.last = Some((at, outcome));
        self.next = Some(next);
        let pace = self.wanted_pace();
        let changed = std::mem::replace(&mut self.pace, pace) != pace;
        Change { matters: transition.is_some() || orders, transition, pace: changed.then_some(pace) }
    }

    /// Whether this outcome, already counted, changes the belief.
    fn decide(&mut self, at: Instant, passed: bool) -> Option<bool> {
        let (rise, fall) = (u32::from(self.timing.rise), u32::from(self.timing.fall));
        match (self.belief, passed) {
            (Belief::Unknown { .. }, true) => Some(true),
            (Belief::Unknown { up: false }, false) => Some(false),
            (Belief::Unknown { up: true } | Belief::Up, false) => (self.failed >= fall).then_some(false),
            (Belief::Down, true) if self.passed >= rise => {
                self.held = self.timing.flap.is_some_and(|flap| self.flaps(&flap, at));
                (!self.held).then_some(true)
            }
            (Belief::Up, true) | (Belief::Down, _) => None,
        }
    }

    /// It changed too often and has not passed for long enough since.
    fn flaps(&self, flap: &Flap, at: Instant) -> bool {
        // Counted back from the last change: those it is held for do not age while it is held.
        let last = self.history.back().map_or(at, |last| last.at);
        let near = |change: &&Transition| last.saturating_duration_since(change.at) <= flap.window;
        let changes = self.history.iter().filter(near).count();
        changes >= usize::from(flap.changes) && at.saturating_duration_since(self.row_since) < flap.hold
    }

    fn follow(&mut self, outcome: &Outcome) -> bool {
        let before = (self.weight, self.draining);
        self.weight = outcome.weight.or(self.weight);
        match outcome.order {
            Some(Order::Drain) => self.draining = true,
            Some(Order::Ready) => self.draining = false,
            None => {}
        }
        before != (self.weight, self.draining)
    }

    fn wanted_pace(&self) -> Pace {
        let changing = match self.belief {
            Belief::Unknown { .. } => true,
            Belief::Up => self.failed > 0,
            Belief::Down => self.passed > 0 && !self.held,
        };
        if changing { Pace::Fast } else { Pace::Normal }
    }

    /// The pace it wants of itself.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    pub fn belief(&self) -> Belief {
        self.belief
    }

    /// When it came to be believed.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Successes and failures in a row; one of them is 0.
    pub fn row(&self) -> (u32, u32) {
        (self.passed, self.failed)
    }

    /// Whether it passes its probes and is held down for changing too often.
    pub fn is_held(&self) -> bool {
        self.held && self.belief == Belief::Down && self.passed > 0
    }

    pub fn last(&self) -> Option<&(Instant, Outcome)> {
        self.last.as_ref()
    }

    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    pub fn latency(&self) -> Option<Duration> {
        self.latency
    }

    pub fn weight(&self) -> Option<Weighing> {
        self.weight
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// The last transitions, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Transition> {
        self.history.iter()
    }

    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Why it is down, or what is worth knowing, in words.
    pub fn words(&self) -> String {
        let Some((_, outcome)) = &self.last else { return "not checked yet".into() };
        match (self.belief, self.failed) {
            (Belief::Down, 0) if self.held => format!("changed too often, held down ({})", outcome.words),
            (Belief::Down, 0) => format!("{} ({} of {})", outcome.words, self.passed, self.timing.rise),
            (Belief::Up | Belief::Unknown { .. }, 1..) => {
                format!("{} ({} of {})", outcome.words, self.failed, self.timing.fall)
            }
            _ => outcome.words.to_string(),
        }
    }
}

/// How many transitions are remembered.
const HISTORY: usize = FLAP_CHANGES_MAX as usize;
/// A latency counts for one part in so many.
const SMOOTHING: u32 = 8;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::health::{Probe, Timing};

    pub fn check(probe: Probe) -> Check {
        Check::direct(probe, Timing::default())
    }

    pub fn outcome(passed: bool) -> Outcome {
        let words = if passed { "connected" } else { "connection refused" };
        Outcome { passed, words: words.into(), latency: None, weight: None, order: None }
    }

    fn timing(rise: u16, fall: u16) -> Timing {
        Timing { rise, fall, ..Timing::default() }
    }

    /// Feeds `+` and `-` a second apart; the answer says for each what changed: `U`, `D` or `.`.
    fn run(machine: &mut Machine, start: Instant, outcomes: &str) -> String {
        let step = |(index, passed): (usize, char)| {
            let at = start + Duration::from_secs(index as u64);
            match machine.take(at, outcome(passed == '+'), at).transition {
                Some(true) => 'U',
                Some(false) => 'D',
                None => '.',
            }
        };
        outcomes.chars().enumerate().map(step).collect()
    }

    #[test]
    fn the_identity_is_of_target_and_parameters_and_lasts() {
        let target = |port| Target::Direct { address: "10.0.0.12".parse().unwrap(), port };
        let id = CheckId::of(&target(80), &check(Probe::Tcp));
        assert_eq!(id, CheckId::of(&target(80), &check(Probe::Tcp)));
        assert_ne!(id, CheckId::of(&target(81), &check(Probe::Tcp)));
        assert_ne!(id, CheckId::of(&target(80), &check(Probe::Icmp(Default::default()))));
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn it_takes_rise_successes_and_fall_failures() {
        let now = Instant::now();
        for (start, rise, fall, outcomes, changes) in [
            (Belief::Unknown { up: false }, 2, 3, "+---++", "U..D.U"),
            (Belief::Unknown { up: false }, 2, 3, "-++", "D.U"),
            (Belief::Unknown { up: true }, 2, 3, "---", "..D"),
            (Belief::Unknown { up: true }, 2, 3, "--+---", "..U..D"),
            (Belief::Up, 2, 3, "--+--+---", "........D"),
            (Belief::Up, 1, 1, "-+-+", "DUDU"),
            (Belief::Down, 3, 1, "++-+++-", ".....UD"),
            (Belief::Down, 2, 1, "----", "...."),
        ] {
            let mut machine = match start {
                Belief::Unknown { up } => Machine::new(timing(rise, fall), up, now),
                belief => Machine::carried(timing(rise, fall), belief.up(), now, Vec::new()),
            };
            assert_eq!(run(&mut machine, now, outcomes), changes, "{start:?} {outcomes}");
        }
    }

    #[test]
    fn it_is_probed_faster_while_changing() {
        let now = Instant::now();
        let mut machine = Machine::new(timing(2, 2), false, now);
        let paces: Vec<Option<Pace>> =
            "++-+--+-++".chars().map(|c| machine.take(now, outcome(c == '+'), now).pace).collect();
        let (fast, normal) = (Some(Pace::Fast), Some(Pace::Normal));
        assert_eq!(paces, [normal, None, fast, normal, fast, normal, fast, normal, fast, normal]);
    }

    #[test]
    fn one_that_changes_too_often_is_held_down_until_it_has_passed_for_long_enough() {
        let now = Instant::now();
        let flap = Flap { changes: 4, window: Duration::from_secs(60), hold: Duration::from_secs(5) };
        let mut machine = Machine::new(Timing { flap: Some(flap), ..timing(1, 1) }, false, now);
        assert_eq!(
            run(&mut machine, now, "+-+-++++-++++++"),
            "UDUD..........U",
            "a failure begins the hold anew"
        );
        let calm = now + Duration::from_secs(1000);
        assert_eq!(run(&mut machine, calm, "-+"), "DU", "what is long ago does not count");
    }

    #[test]
    fn weight_and_order_last_until_another_is_given() {
        let now = Instant::now();
        let mut machine = Machine::new(timing(1, 1), false, now);
        let mut say = |weight, order| {
            machine.take(now, Outcome { weight, order, ..outcome(true) }, now);
            (machine.weight(), machine.is_draining())
        };
        let percent = Some(Weighing::Percent(75));
        assert_eq!(say(percent, None), (percent, false));
        assert_eq!(say(None, Some(Order::Drain)), (percent, true));
        assert_eq!(say(None, None), (percent, true));
        assert_eq!(
            say(Some(Weighing::Absolute(3)), Some(Order::Ready)),
            (Some(Weighing::Absolute(3)), false)
        );
    }

    #[test]
    fn words_say_how_far_it_is() {
        let now = Instant::now();
        let mut machine = Machine::carried(timing(2, 3), true, now, Vec::new());
        assert_eq!(machine.words(), "not checked yet");
        let mut says = |passed| {
            machine.take(now, outcome(passed), now);
            machine.words()
        };
        assert_eq!(says(true), "connected");
        assert_eq!(says(false), "connection refused (1 of 3)");
        says(false);
        assert_eq!(says(false), "connection refused");
        assert_eq!(says(true), "connected (1 of 2)");
    }

    #[test]
    fn latency_is_smoothed_and_failures_do_not_count() {
        let now = Instant::now();
        let mut machine = Machine::new(timing(1, 1), false, now);
        for (passed, ms, smooth) in [(true, 8, 8), (true, 16, 9), (false, 500, 9)] {
            let latency = Some(Duration::from_millis(ms));
            machine.take(now, Outcome { latency, ..outcome(passed) }, now);
            assert_eq!(machine.latency(), Some(Duration::from_millis(smooth)));
        }
    }

    proptest! {
        /// Once something is known, a transition is always the end of exactly `rise` successes or `fall`
        /// failures in a row since the last transition or opposite outcome, and never comes later.
        #[test]
        fn a_transition_needs_exactly_rise_or_fall_outcomes(
            rise in 1u16..5, fall in 1u16..5, up in any::<bool>(),
            outcomes in prop::collection::vec(any::<bool>(), 1..200),
        ) {
            let now = Instant::now();
            let mut machine = Machine::carried(timing(rise, fall), up, now, Vec::new());
            let (mut believed, mut row) = (up, 0);
            for passed in outcomes {
                row = if passed == believed { 0 } else { row + 1 };
                let needed = if believed { fall } else { rise };
                let expected = (row == needed).then_some(passed);
                if expected.is_some() {
                    (believed, row) = (passed, 0);
                }
                prop_assert_eq!(machine.take(now, outcome(passed), now).transition, expected);
                prop_assert_eq!(machine.belief(), if believed { Belief::Up } else { Belief::Down });
                prop_assert!(machine.history().count() <= HISTORY);
            }
        }
    }
}
