//! What of the checks outlives the agent. Pure: the state directory keeps the text.
//!
//! Monotonic time does not outlive a host; the text has seconds of UTC, and whoever reads or writes it says how the
//! two clocks stand.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::state::{CheckId, Machine, Transition, Weighing};
use crate::model::health::Timing;
use crate::model::{Name, ServerKey};

/// The states of checks by their identity, and the operator's orders.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    checks: BTreeMap<CheckId, Machine>,
    pub disabled: BTreeMap<(Name, ServerKey), Instant>,
    pub weights: BTreeMap<(Name, ServerKey), u16>,
}

/// One moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub monotonic: Instant,
    /// Since 1970 in UTC.
    pub utc: Duration,
}

impl Clocks {
    fn utc_of(&self, at: Instant) -> u64 {
        let utc = match at.checked_duration_since(self.monotonic) {
            Some(ahead) => self.utc + ahead,
            None => self.utc.saturating_sub(self.monotonic.duration_since(at)),
        };
        utc.as_millis() as u64
    }

    /// A time ahead of the clock (it was set back) is now.
    fn monotonic_of(&self, utc: u64) -> Instant {
        let ago = self.utc.saturating_sub(Duration::from_millis(utc));
        self.monotonic.checked_sub(ago).unwrap_or(self.monotonic)
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Text {
    checks: BTreeMap<String, CheckText>,
    disabled: Vec<DisabledText>,
    weights: Vec<WeightText>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CheckText {
    up: bool,
    /// Milliseconds of UTC.
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    percent: Option<u16>,
    #[serde(default)]
    draining: bool,
    #[serde(default)]
    history: Vec<(u64, bool, String)>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DisabledText {
    service: String,
    address: IpAddr,
    port: u16,
    since: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WeightText {
    service: String,
    address: IpAddr,
    port: u16,
    weight: u16,
}

impl Saved {
    pub(super) fn of(
        checks: impl Iterator<Item = (CheckId, Machine)>,
        disabled: BTreeMap<(Name, ServerKey), Instant>,
        weights: BTreeMap<(Name, ServerKey), u16>,
    ) -> Saved {
        Saved {
            checks: checks.filter(|(_, machine)| machine.belief().is_known()).collect(),
            disabled,
            weights,
        }
    }

    /// The state of a check, which may have got other thresholds meanwhile.
    pub(super) fn take(&mut self, id: &CheckId, timing: Timing) -> Option<Machine> {
        let machine = self.checks.remove(id)?;
        let carried = Machine::carried(
            timing,
            machine.belief().up(),
            machine.since(),
            machine.history().cloned().collect(),
        );
        Some(carried.weighing(machine.weight(), machine.is_draining()))
    }

    /// As JSON.
    pub fn write(&self, clocks: Clocks) -> String {
        let check = |machine: &Machine| CheckText {
            up: machine.belief().up(),
            since: clocks.utc_of(machine.since()),
            weight: match machine.weight() {
                Some(Weighing::Absolute(weight)) => Some(weight),
                _ => None,
            },
            percent: match machine.weight() {
                Some(Weighing::Percent(percent)) => Some(percent),
                _ => None,
            },
            draining: machine.is_draining(),
            history: machine
                .history()
                .map(|change| (clocks.utc_of(change.at), change.up, change.words.to_string()))
                .collect(),
        };
        let text = Text {
            checks: self.checks.iter().map(|(id, machine)| (id.to_string(), check(machine))).collect(),
            disabled: self
                .disabled
                .iter()
                .map(|((service, key), since)| DisabledText {
                    service: service.to_string(),
                    address: key.address,
                    port: key.port,
                    since: clocks.utc_of(*since),
                })
                .collect(),
            weights: self
                .weights
                .iter()
                .map(|((service, key), weight)| WeightText {
                    service: service.to_string(),
                    address: key.address,
                    port: key.port,
                    weight: *weight,
                })
                .collect(),
        };
        serde_json::to_string(&text).expect("plain data")
    }

    /// From what [`Saved::write`] wrote.
    ///
    /// # Errors
    /// Something else.
    pub fn read(text: &str, clocks: Clocks) -> Result<Saved, serde_json::Error> {
        let text: Text = serde_json::from_str(text)?;
        let machine = |check: &CheckText| {
            let history = check.history.iter().map(|(at, up, words)| Transition {
                at: clocks.monotonic_of(*at),
                up: *up,
                words: words.as_str().into(),
            });
            let weight = match (check.weight, check.percent) {
                (Some(weight), _) => Some(Weighing::Absolute(weight)),
                (None, percent) => percent.map(Weighing::Percent),
            };
            Machine::carried(Timing::default(), check.up, clocks.monotonic_of(check.since), history.collect())
                .weighing(weight, check.draining)
        };
        let of = |service: &str, address, port| Some((Name::new(service).ok()?, ServerKey { address, port }));
        Ok(Saved {
            checks: text
                .checks
                .iter()
                .filter_map(|(id, check)| Some((id.parse().ok()?, machine(check))))
                .collect(),
            disabled: text
                .disabled
                .iter()
                .filter_map(|d| Some((of(&d.service, d.address, d.port)?, clocks.monotonic_of(d.since))))
                .collect(),
            weights: text
                .weights
                .iter()
                .filter_map(|w| Some((of(&w.service, w.address, w.port)?, w.weight)))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{check, outcome};
    use super::*;
    use crate::model::health::{Probe, Target};

    #[test]
    fn what_was_believed_comes_back_with_its_times() {
        let now = Instant::now();
        let clocks = Clocks { monotonic: now, utc: Duration::from_secs(1_800_000_000) };
        let mut machine = Machine::new(Timing::default(), false, now);
        machine.take(now - Duration::from_secs(60), outcome(true), now);
        let machine = machine.weighing(Some(Weighing::Percent(75)), true);
        let id = CheckId::of(&Target::Direct { address: [10, 0, 0, 1].into(), port: 80 }, &check(Probe::Tcp));
        let of = (Name::new("web").unwrap(), ServerKey { address: [10, 0, 0, 1].into(), port: 0 });
        let saved = Saved::of(
            [(id, machine)].into_iter(),
            BTreeMap::from([(of.clone(), now - Duration::from_secs(5))]),
            BTreeMap::from([(of.clone(), 7)]),
        );
        // Another boot, an hour later.
        let later = Clocks { monotonic: now, utc: clocks.utc + Duration::from_secs(3600) };
        let mut back = Saved::read(&saved.write(clocks), later).unwrap();
        assert_eq!(back.weights[&of], 7);
        assert_eq!(now - back.disabled[&of], Duration::from_secs(3605));
        let machine = back.take(&id, Timing { fall: 1, ..Timing::default() }).unwrap();
        assert!(machine.belief().up() && machine.is_draining());
        assert_eq!(machine.weight(), Some(Weighing::Percent(75)));
        assert_eq!(now - machine.since(), Duration::from_secs(3660));
        let history: Vec<_> = machine.history().map(|change| (change.up, &*change.words)).collect();
        assert_eq!(history, [(true, "connected")]);
    }

    #[test]
    fn a_check_that_never_had_an_outcome_is_not_saved() {
        let now = Instant::now();
        let id = CheckId::of(&Target::Direct { address: [10, 0, 0, 1].into(), port: 80 }, &check(Probe::Tcp));
        let machine = Machine::new(Timing::default(), true, now);
        let mut saved = Saved::of([(id, machine)].into_iter(), BTreeMap::new(), BTreeMap::new());
        assert!(saved.take(&id, Timing::default()).is_none());
    }

    #[test]
    fn a_file_that_is_something_else_is_said_to_be() {
        let clocks = Clocks { monotonic: Instant::now(), utc: Duration::ZERO };
        assert!(Saved::read("no", clocks).is_err());
        assert!(Saved::read("{}", clocks).unwrap().checks.is_empty());
    }
}
