//! Health checks at work: outcomes of the monitor in, judgements to the director, transitions to the stream of
//! events, states to disk.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio::sync::mpsc;

use super::{Agent, Trouble};
use crate::director::Event;
use crate::events::Events;
use crate::health::monitor::Monitor;
use crate::health::saved::{Clocks, Saved};
use crate::health::{Judged, Report, Roster, Standing};
use crate::manifest::Objects;
use crate::state::StateDirectory;

/// What the agent keeps for health checks.
pub struct Health {
    pub roster: Roster,
    pub monitor: Monitor,
    /// Something is to be saved.
    changed: bool,
    saved: Option<Instant>,
    /// When an apply that brought checks ends its wait for their first outcomes.
    pub settles: Option<Instant>,
}

impl Health {
    /// Starts the monitor, with what an earlier run left. States that cannot be read are as if there were none.
    ///
    /// # Errors
    /// The kernel refuses threads or descriptors.
    pub fn start(state: &StateDirectory) -> Result<(Health, Reports, Option<String>)> {
        let (monitor, reports) = Monitor::start()?;
        let read = state.load_health().and_then(|text| {
            Ok(text.map(|text| Saved::read(&text, clocks())).transpose()?.unwrap_or_default())
        });
        let (saved, problem) = match read {
            Ok(saved) => (saved, None),
            Err(error) => (Saved::default(), Some(format!("states of health checks: {error:#}"))),
        };
        let roster = Roster::new(saved);
        Ok((
            Health { roster, monitor, changed: false, saved: None, settles: None },
            Reports(reports),
            problem,
        ))
    }

    /// Whether an answer to an order should wait for first outcomes.
    pub fn settled(&self, now: Instant) -> bool {
        self.settles.is_none_or(|until| until <= now) || self.roster.all_known(|_| true)
    }
}

/// Outcomes on their way from the monitor.
pub struct Reports(mpsc::Receiver<Vec<Report>>);

impl Reports {
    /// The next batch, all that have come with it included. None when the monitor has ended.
    pub async fn next(&mut self) -> Option<Vec<Report>> {
        let mut all = self.0.recv().await?;
        while let Ok(more) = self.0.try_recv() {
            all.extend(more);
        }
        Some(all)
    }
}

impl Agent {
    /// The checks of these objects, and what is judged by what is known of them already. To be called beside every
    /// `Event::Objects`.
    pub(super) fn set_checks(&mut self, objects: &Objects) {
        let now = Instant::now();
        let health = &mut self.health;
        if health.roster.set(now, objects.services().map(|(service, _)| service)) {
            health.changed = true;
            health.settles = Some(now + SETTLE);
            self.health.monitor.set(self.probed());
        }
        self.judge(now);
    }

    /// Takes up outcomes; most change nothing. True when the tables must follow.
    pub(super) fn take_reports(&mut self, reports: Vec<Report>) -> bool {
        let now = Instant::now();
        let mut matters = false;
        for report in reports {
            let id = report.id;
            let results = &mut self.metrics;
            *(if report.outcome.passed { &mut results.passed } else { &mut results.failed }) += 1;
            let Some(taken) = self.health.roster.take(report) else { continue };
            if let Some(pace) = taken.change.pace {
                self.health.monitor.pace(id, pace);
            }
            matters |= taken.change.matters;
        }
        if !matters {
            return false;
        }
        self.health.changed = true;
        // An agent that is killed a moment later should not have forgotten it.
        if self.health.saved.is_none_or(|saved| now.saturating_duration_since(saved) >= SAVE) {
            self.save_health();
        }
        self.judge(now)
    }

    /// Judges what may have changed. True when the tables must follow.
    pub(super) fn judge(&mut self, now: Instant) -> bool {
        let judged = self.health.roster.judge(now);
        self.run_errands();
        if judged.is_empty() {
            return false;
        }
        for judged in &judged {
            tell(&self.events, judged);
        }
        self.director.handle(Event::Judged(judged));
        true
    }

    /// When something is judged by time alone.
    pub(super) fn health_deadline(&self) -> Option<Instant> {
        self.health.roster.next_deadline()
    }

    /// Writes states to disk if they changed. A failure is said once and tried again.
    pub(super) fn save_health(&mut self) {
        if !std::mem::take(&mut self.health.changed) {
            return;
        }
        self.health.saved = Some(Instant::now());
        let text = self.health.roster.save().write(clocks());
        let problems = match self.state.save_health(&text) {
            Ok(()) => Vec::new(),
            Err(error) => {
                self.health.changed = true;
                vec![format!("states of health checks are not saved: {error:#}")]
            }
        };
        self.trouble(Trouble::Health, problems);
    }

    /// An operator's order changed what the roster holds.
    pub(super) fn health_ordered(&mut self) {
        self.health.changed = true;
    }
}

/// One event per server and service whose standing is another.
fn tell(events: &Events, judged: &Judged) {
    let Judged { service, before, judgement } = judged;
    for server in &judgement.servers {
        let old = before.servers.iter().find(|old| old.key == server.key);
        let subject = || format!("RealServer/{service}/{}", server.key);
        match old {
            // Nothing was known of it, or an earlier run has told.
            None => {}
            Some(old) if old.standing == server.standing && old.weight == server.weight => {}
            Some(old) if old.standing == server.standing => {
                let weight = |weight: u32| format!("{}", f64::from(weight) / 1000.0);
                let cause = match server.reason.as_str() {
                    "" => "its whole weight".to_owned(),
                    reason => reason.to_owned(),
                };
                let fields = [("previous", weight(old.weight)), ("weight", weight(server.weight))];
                events.emit(subject(), "weight", cause, fields);
            }
            Some(old) => {
                let cause = match (server.standing, server.reason.as_str()) {
                    (Standing::In, "") => "passes its checks".to_owned(),
                    (_, reason) => reason.to_owned(),
                };
                let previous = [("previous", word(old.standing).to_owned())];
                events.emit(subject(), word(server.standing), cause, previous);
            }
        }
    }
    // Before the first judgement there was nothing to lose.
    if before.quorum != judgement.quorum && (!before.servers.is_empty() || judgement.sorry) {
        let kind = if judgement.quorum { "quorum-up" } else { "quorum-down" };
        let instead = if judgement.sorry { "; the sorry server stands in" } else { "" };
        let cause =
            format!("a weight of {} is alive, the quorum is {}{instead}", judgement.live, judgement.needed);
        events.emit(format!("VirtualService/{service}"), kind, cause, []);
    }
}

/// The kind of an event that says how a server stands now.
pub fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::In => "up",
        Standing::Panic => "panic",
        Standing::Waiting => "waiting",
        Standing::Failed => "down",
        Standing::Probation => "probation",
        Standing::Draining => "draining",
        Standing::Disabled => "disabled",
        Standing::Standby => "standby",
        Standing::NoQuorum => "no-quorum",
        Standing::Weightless => "weightless",
    }
}

/// Both clocks at this moment.
pub fn clocks() -> Clocks {
    let utc = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clocks { monotonic: Instant::now(), utc }
}

/// Transitions that come faster are saved with the next tick.
const SAVE: Duration = Duration::from_millis(250);
/// How long the answer to an apply that brought new checks waits for their first outcomes.
const SETTLE: Duration = Duration::from_secs(3);
