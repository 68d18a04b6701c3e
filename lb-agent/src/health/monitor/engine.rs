//! The monitor's thread: commands in, probes out, outcomes to the agent.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use super::connects::{Connects, Ended};
use super::lane::{Lane, Rooms, is_behind};
use super::ports::Crowds;
use super::schedule::{Schedule, Ticket};
use super::{LaneLoad, Load, Shared, Ways};
use crate::health::probe::connect::silent;
use crate::health::probe::words::Failure;
use crate::health::probe::{CONNECTED, Prober, tls::Roots};
use crate::health::{Assignment, CheckId, Outcome, Pace, Report};
use crate::model::health::{Probe, Target};

/// What the agent, or a probe that has ended, tells the thread.
pub enum Command {
    Set(Vec<Assignment>),
    Ways(Ways),
    Pace(CheckId, Pace),
    ProbeNow(CheckId),
    Ended(Ticket, Outcome, Option<Arc<Prober>>),
    Stop,
}

pub struct Engine {
    shared: Arc<Shared>,
    reports: mpsc::Sender<Vec<Report>>,
    /// Known and not yet taken by the agent.
    pending: Vec<Report>,
    schedule: Schedule,
    connects: Connects,
    /// Where all probes run that are not plain connects.
    runtime: tokio::runtime::Runtime,
    roots: Arc<Roots>,
    tickets: HashMap<CheckId, Ticket>,
    /// By the ticket's slot.
    checks: Vec<Option<Checked>>,
    /// Where targets on the real path are connected to.
    ways: Ways,
    /// Probes that may be under way at a time.
    rooms: Rooms,
    /// VIPs that have too few ports for their checks on the real path.
    crowds: Crowds,
    probes: u64,
    connected: Arc<str>,
}

struct Checked {
    assignment: Assignment,
    pace: Pace,
    /// By how much its intervals are longer for want of ports.
    stretch: f64,
    /// None until the first run, and for plain connects, which need no preparation.
    prober: Option<Arc<Prober>>,
}

impl Engine {
    pub fn new(shared: Arc<Shared>, reports: mpsc::Sender<Vec<Report>>, descriptors: u64) -> Result<Engine> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers())
            .thread_name("lb-probes")
            .max_blocking_threads(BLOCKING)
            .enable_all()
            .build()
            .context("start the runtime of the probes")?;
        let connects = Connects::new(&shared.waker)?;
        // Which phases the checks have does not matter, only that two directors differ.
        let seed = u64::from(std::process::id()) ^ Arc::as_ptr(&shared) as u64;
        Ok(Engine {
            shared,
            reports,
            pending: Vec::new(),
            schedule: Schedule::new(Instant::now(), seed),
            connects,
            runtime,
            roots: Arc::default(),
            tickets: HashMap::new(),
            checks: Vec::new(),
            ways: Ways::new(),
            rooms: Rooms::of(descriptors),
            crowds: Crowds::default(),
            probes: 0,
            connected: CONNECTED.into(),
        })
    }

    /// Until it is told to stop, or nobody listens any more.
    pub fn run(mut self) {
        loop {
            if let Err(error) = self.wait() {
                // The epoll is our own; the kernel refuses to wait on it only when something is badly wrong.
                tracing::error!("health checks have ended: {error:#}");
                break;
            }
            if !self.obey() || self.reports.is_closed() {
                break;
            }
            self.start_due();
            self.deliver();
            self.tell_load();
        }
        // Probes under way are dropped with it; scripts are killed by that.
        self.runtime.shutdown_timeout(STOP);
    }

    /// Sleeps until a command, a connect's end, a deadline or a due check; takes up ends and deadlines.
    fn wait(&mut self) -> Result<()> {
        let now = Instant::now();
        let open = Lane::ALL.map(|lane| self.has_room(lane).then_some(lane));
        let due = open.into_iter().flatten().filter_map(|lane| self.schedule.next_due(lane)).min();
        // Nothing wakes this thread when the runtime has come to what waited.
        let is_behind = Lane::ALL.into_iter().any(|lane| is_behind(self.waiting(lane)));
        let look = if is_behind { BATCH } else { LOOK };
        let next = [due, self.connects.next_deadline(), Some(now + look)].into_iter().flatten().min();
        let timeout = next.map_or(LOOK, |next| next.saturating_duration_since(now)).max(self.pause());
        let mut ended = Vec::new();
        self.connects.wait(timeout, |ticket, end| ended.push((ticket, end)))?;
        let now = Instant::now();
        self.connects.expire(now, |ticket, end| ended.push((ticket, end)));
        for (ticket, end) in ended {
            self.connect_ended(ticket, end, now);
        }
        Ok(())
    }

    /// Many checks are taken up in batches: each look costs something, and a few milliseconds mean nothing.
    fn pause(&self) -> Duration {
        if self.tickets.len() > MANY { BATCH } else { Duration::ZERO }
    }

    /// Says false for an end.
    fn obey(&mut self) -> bool {
        for command in self.shared.take() {
            let now = Instant::now();
            match command {
                Command::Set(assignments) => self.set(assignments, now),
                Command::Ways(ways) => self.ways = ways,
                Command::Pace(id, pace) => self.set_pace(id, pace, now),
                Command::ProbeNow(id) => {
                    if let Some(ticket) = self.tickets.get(&id) {
                        self.schedule.set_due(now, *ticket);
                    }
                }
                Command::Ended(ticket, outcome, prober) => {
                    if let Some(checked) = self.checked(ticket) {
                        checked.prober = prober;
                        self.conclude(ticket, outcome, now);
                    }
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn set(&mut self, assignments: Vec<Assignment>, now: Instant) {
        let mut before = std::mem::take(&mut self.tickets);
        self.crowds = Crowds::of(&assignments);
        for assignment in assignments {
            let MapEntry::Vacant(place) = self.tickets.entry(assignment.id) else { continue };
            let stretch = self.crowds.stretch(&assignment.target, &assignment.check);
            if let Some(ticket) = before.remove(&assignment.id) {
                place.insert(ticket);
                if let Some(checked) = self.checks.get_mut(ticket.slot as usize).and_then(Option::as_mut)
                    && checked.stretch != stretch
                {
                    checked.stretch = stretch;
                    self.schedule.set_interval(now, ticket, checked.interval());
                }
                continue;
            }
            let checked = Checked { assignment, pace: Pace::Fast, stretch, prober: None };
            let lane = Lane::of(&checked.assignment.check);
            let ticket = self.schedule.insert(now, lane, checked.interval());
            place.insert(ticket);
            let slot = ticket.slot as usize;
            if self.checks.len() <= slot {
                self.checks.resize_with(slot + 1, || None);
            }
            self.checks[slot] = Some(checked);
        }
        for ticket in before.into_values() {
            self.schedule.remove(ticket);
            self.connects.abandon(ticket);
            self.checks[ticket.slot as usize] = None;
        }
    }

    fn set_pace(&mut self, id: CheckId, pace: Pace, now: Instant) {
        let Some(&ticket) = self.tickets.get(&id) else { return };
        let Some(checked) = self.checked(ticket) else { return };
        checked.pace = pace;
        let interval = checked.interval();
        self.schedule.set_interval(now, ticket, interval);
    }

    fn has_room(&self, lane: Lane) -> bool {
        self.pending.len() <= self.tickets.len() + MANY
            && self.rooms.admit(lane, self.schedule.running(lane), self.waiting(lane))
    }

    /// Probes of the lane that the runtime has not come to yet.
    fn waiting(&self, lane: Lane) -> usize {
        self.shared.waiting[lane as usize].load(Ordering::Relaxed)
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for lane in Lane::ALL {
            let mut burst = BURST;
            while self.has_room(lane)
                && burst > 0
                && let Some(ticket) = self.schedule.take(now, lane)
            {
                burst -= 1;
                self.probes += 1;
                self.start(ticket, now);
            }
        }
        self.schedule.look(now);
    }

    fn start(&mut self, ticket: Ticket, now: Instant) {
        let Some(checked) = self.checks.get(ticket.slot as usize).and_then(Option::as_ref) else {
            return;
        };
        let target = checked.assignment.target;
        let address = match self.address(&target) {
            Ok(address) => address,
            Err(failure) => return self.conclude(ticket, Err(failure).into(), now),
        };
        if checked.assignment.check.probe == Probe::Tcp {
            let check = checked.assignment.check.clone();
            if let Some(end) = self.connects.start(ticket, &check, address, now) {
                self.connect_ended(ticket, end, Instant::now());
            }
            return;
        }
        let prober = checked.prober.clone().filter(|prober| !prober.is_stale());
        let (shared, roots) = (self.shared.clone(), self.roots.clone());
        let check = checked.assignment.check.clone();
        let lane = Lane::of(&check) as usize;
        shared.waiting[lane].fetch_add(1, Ordering::Relaxed);
        self.runtime.spawn(async move {
            shared.waiting[lane].fetch_sub(1, Ordering::Relaxed);
            let prober = prober.unwrap_or_else(|| Arc::new(Prober::new(check, &roots)));
            let outcome = prober.run(address, &target).await;
            shared.push(Command::Ended(ticket, outcome, Some(prober)));
        });
    }

    fn connect_ended(&mut self, ticket: Ticket, end: Ended, now: Instant) {
        let Some(checked) = self.checked(ticket) else { return };
        let Assignment { target, check, .. } = &checked.assignment;
        let doing = || format!("connect to {target}");
        let failure = match end {
            Ended::Connected(took) => {
                let words = self.connected.clone();
                let outcome = Outcome { passed: true, words, latency: Some(took), weight: None, order: None };
                return self.conclude(ticket, outcome, now);
            }
            Ended::Refused(error) => Failure::io(doing(), &error),
            Ended::TimedOut => silent(&doing(), target, check),
            Ended::Failed(failure) => failure,
        };
        self.conclude(ticket, Err(failure).into(), now);
    }

    /// The end of one probe: its report, and when the next one is.
    fn conclude(&mut self, ticket: Ticket, outcome: Outcome, at: Instant) {
        let Some(checked) = self.checked(ticket) else { return };
        let (id, interval) = (checked.assignment.id, checked.interval());
        if self.schedule.finish(at, ticket, interval) {
            let next = self.schedule.due(ticket).unwrap_or(at + interval);
            self.pending.push(Report { id, outcome, at, next });
        }
    }

    fn deliver(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // A full channel: they stay, and are told with the next.
        if let Ok(place) = self.reports.try_reserve() {
            place.send(std::mem::take(&mut self.pending));
        }
    }

    fn tell_load(&self) {
        let of = |lane| LaneLoad {
            checks: self.schedule.checks(lane),
            running: self.schedule.running(lane),
            stretch: self.schedule.stretch(lane),
        };
        let load = Load { lanes: Lane::ALL.map(of), probes: self.probes, crowd: self.crowds.worst() };
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner) = load;
    }

    /// What a socket of this target connects to.
    fn address(&self, target: &Target) -> Result<SocketAddr, Failure> {
        match *target {
            Target::Direct { address, port } => Ok(SocketAddr::new(address, port)),
            Target::Real { port, .. } => match self.ways.get(target) {
                Some(Ok(address)) => Ok(SocketAddr::new(*address, port)),
                Some(Err(words)) => Err(Failure::new(words.as_str())),
                None => Err(Failure::new(format!("connect to {target}: no way there is known"))),
            },
        }
    }

    fn checked(&mut self, ticket: Ticket) -> Option<&mut Checked> {
        self.schedule.knows(ticket).then(|| self.checks.get_mut(ticket.slot as usize)?.as_mut()).flatten()
    }
}

impl Checked {
    fn interval(&self) -> Duration {
        let timing = &self.assignment.check.timing;
        let asked = match self.pace {
            Pace::Normal => timing.interval,
            Pace::Fast => timing.fast_interval,
        };
        asked.mul_f64(self.stretch)
    }
}

/// Threads of the runtime: cryptography is all that takes their time, and most of the machine is the data plane's.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 4))
}

/// Without anything to do the thread looks up this often, for the load and for what could not be delivered.
const LOOK: Duration = Duration::from_millis(100);
/// More checks than these are taken up in batches of this length.
const MANY: usize = 500;
const BATCH: Duration = Duration::from_millis(4);
/// Probes of a lane begun between two looks at what has ended.
const BURST: usize = 256;
/// Threads for the blocking calls of probes, reading files: a file that hangs, on a server that is gone, holds one.
const BLOCKING: usize = 32;
/// What probes under way get at the end.
const STOP: Duration = Duration::from_secs(1);
