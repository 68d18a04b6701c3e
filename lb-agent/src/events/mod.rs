//! One ordered stream of what happened: a VRRP instance became master, a real server went down. Whoever sees a
//! transition calls [`Events::emit`]; it gets the next number, is written to the journal in the state directory, and
//! goes to hooks and webhooks in that order. A slow or failing consumer delays nobody else.

mod hooks;
mod journal;
mod sinks;
mod webhook;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use journal::Journal;
pub use sinks::SinkTasks;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Counts from 1 without gaps, over restarts of the agent.
    pub sequence: u64,
    /// When it happened, or the agent learned of it, RFC 3339.
    pub time: Timestamp,
    /// To whom it happened: `VrrpInstance/edge`, `RealServer/web/10.0.0.11`.
    pub subject: String,
    /// What it is now, one word: `master`, `backup`, `fault`, `up`, `down`.
    pub kind: String,
    /// Why, a sentence without a full stop.
    pub cause: String,
    /// Details by name: `priority`, `previous`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

impl Event {
    /// One line for a log.
    pub fn line(&self) -> String {
        format!("{} is {}: {}", self.subject, self.kind, self.cause)
    }
}

/// A handle on the stream, cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The last number given. Followers wait on it.
    latest: watch::Sender<u64>,
}

struct State {
    recent: VecDeque<Event>,
    /// The last number each consumer is done with, by its name.
    cursors: BTreeMap<String, u64>,
    next: u64,
    journal: Option<Journal>,
    /// Events that were dropped before a consumer saw them.
    lost: u64,
}

impl Events {
    /// A stream that is kept nowhere.
    pub fn in_memory() -> Events {
        Events::with(Vec::new(), BTreeMap::new(), None)
    }

    /// A stream that goes on where the journal in this directory ends.
    ///
    /// # Errors
    /// A journal that cannot be opened for writing. Lines that cannot be read are left out.
    pub fn open(state_dir: &Path) -> Result<Events> {
        let (journal, recent, cursors) = Journal::open(state_dir)?;
        Ok(Events::with(recent, cursors, Some(journal)))
    }

    fn with(recent: Vec<Event>, cursors: BTreeMap<String, u64>, journal: Option<Journal>) -> Events {
        let last = recent.last().map_or(0, |event| event.sequence);
        // A journal that was lost must not give numbers twice that consumers have seen.
        let last = cursors.values().copied().max().unwrap_or(0).max(last);
        let state = State { recent: recent.into(), cursors, next: last + 1, journal, lost: 0 };
        Events(Arc::new(Shared { state: Mutex::new(state), latest: watch::Sender::new(last) }))
    }

    /// Takes note of a transition and returns its number. Fit for any thread that may wait some microseconds (a
    /// line is written to the page cache); the VRRP thread reports by its channel instead.
    pub fn emit<'a>(
        &self,
        subject: impl Into<String>,
        kind: impl Into<String>,
        cause: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, String)>,
    ) -> u64 {
        self.emit_at(Timestamp::now(), subject, kind, cause, fields)
    }

    /// The same for what happened before the agent came to hear of it.
    pub fn emit_at<'a>(
        &self,
        time: Timestamp,
        subject: impl Into<String>,
        kind: impl Into<String>,
        cause: impl Into<String>,
        fields: impl IntoIterator<Item = (&'a str, String)>,
    ) -> u64 {
        let mut state = self.state();
        let event = Event {
            sequence: state.next,
            time,
            subject: subject.into(),
            kind: kind.into(),
            cause: cause.into(),
            fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        };
        tracing::info!("{}", event.line());
        let sequence = event.sequence;
        state.next += 1;
        state.recent.push_back(event);
        state.trim();
        let State { recent, journal, .. } = &mut *state;
        if let Some(journal) = journal
            && let Err(error) = journal.append(recent)
        {
            tracing::error!("the journal of events: {error:#}");
        }
        drop(state);
        self.0.latest.send_replace(sequence);
        sequence
    }

    /// At most `limit` events after number `after`, oldest first.
    pub fn after(&self, after: u64, limit: usize) -> Vec<Event> {
        let state = self.state();
        let first = state.recent.partition_point(|event| event.sequence <= after);
        state.recent.range(first..).take(limit).cloned().collect()
    }

    /// The last `limit` events, oldest first.
    pub fn last(&self, limit: usize) -> Vec<Event> {
        let state = self.state();
        let first = state.recent.len().saturating_sub(limit);
        state.recent.range(first..).cloned().collect()
    }

    /// The number of the last event; 0 before the first.
    pub fn latest(&self) -> u64 {
        *self.0.latest.borrow()
    }

    /// As [`Events::after`]; where there is none yet, waits for the next one, at most for `patience`.
    pub async fn wait_after(&self, after: u64, limit: usize, patience: Duration) -> Vec<Event> {
        let mut latest = self.0.latest.subscribe();
        // Whether it came or not, what is there is the answer.
        let _ = tokio::time::timeout(patience, latest.wait_for(|latest| *latest > after)).await;
        self.after(after, limit)
    }

    /// Events that went by before a consumer took them.
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    /// The next event for a consumer. One that was never here begins with what comes from now on.
    async fn next_for(&self, consumer: &str) -> Event {
        let mut latest = self.0.latest.subscribe();
        let cursor = {
            let mut state = self.state();
            let last = state.next - 1;
            *state.cursors.entry(consumer.to_owned()).or_insert(last)
        };
        loop {
            if let Some(event) = self.after(cursor, 1).pop() {
                return event;
            }
            if latest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A consumer is done with all events up to this one, also after a restart.
    fn done(&self, consumer: &str, sequence: u64) {
        let mut state = self.state();
        state.cursors.insert(consumer.to_owned(), sequence);
        state.trim();
        let State { cursors, journal, .. } = &mut *state;
        if let Some(journal) = journal
            && let Err(error) = journal.save_cursors(cursors)
        {
            tracing::error!("the journal of events: {error:#}");
        }
    }

    /// Consumers that are no more; what they have not seen need not be kept.
    fn keep_consumers(&self, keep: impl Fn(&str) -> bool) {
        self.state().cursors.retain(|consumer, _| keep(consumer));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half done by a panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets what is old and was taken by everybody; beyond [`MOST`] whatever is oldest.
    fn trim(&mut self) {
        let taken = self.cursors.values().copied().min().unwrap_or(u64::MAX);
        while self.recent.len() > RECENT {
            let front = self.recent.front().map_or(0, |event| event.sequence);
            if front > taken {
                if self.recent.len() <= MOST {
                    return;
                }
                self.lost += 1;
            }
            self.recent.pop_front();
        }
    }
}

/// Events that are kept for whoever asks.
const RECENT: usize = 1024;
/// Events that are kept for a consumer that does not take them: some 30 MB.
const MOST: usize = 65_536;

#[cfg(test)]
mod tests;
