//! Makes the probes: each check when it is due, one probe for all that share it, and every outcome to the agent.
//! A thread of its own keeps the time and makes the plain TCP connects; another runs everything else in a
//! runtime of its own. So no check delays the agent, and none that hangs delays another.

mod connects;
mod engine;
pub mod lane;
pub mod ports;
mod schedule;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;

use crate::model::health::Target;

use super::{Assignment, CheckId, Pace, Report};
use engine::{Command, Engine};
use lane::{LANES, Lane};
use ports::Crowd;

/// The threads that probe. Dropping it ends them.
pub struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// For targets on the real path, the address in the prober's veth pair that stands for each.
pub type Ways = HashMap<Target, Result<IpAddr, String>>;

/// How the monitor fares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// In the order of [`Lane::ALL`].
    pub lanes: [LaneLoad; LANES],
    /// Probes begun since the start.
    pub probes: u64,
    /// The VIP that has too few ports for its checks on the real path, if one has.
    pub crowd: Option<Crowd>,
}

/// How the checks of one kind fare.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LaneLoad {
    /// Each counted once however many services share it.
    pub checks: u32,
    /// Probes under way.
    pub running: u32,
    /// By how much all intervals are longer than asked for, because not everything can be probed in time; 1 when
    /// all is well.
    pub stretch: f64,
}

impl Load {
    /// Of all kinds.
    pub fn checks(&self) -> u32 {
        self.lanes.iter().map(|lane| lane.checks).sum()
    }

    /// Of the kind, or the VIP, that fares worst.
    pub fn stretch(&self) -> f64 {
        let crowd = self.crowd.map(|crowd| crowd.stretch);
        self.lanes.iter().map(|lane| lane.stretch).chain(crowd).fold(1.0, f64::max)
    }

    /// A sentence for each kind of which there is more than can be done, and for the VIP that has too few ports.
    pub fn late(&self) -> impl Iterator<Item = String> {
        let late = Lane::ALL.into_iter().zip(&self.lanes).filter(|(_, load)| load.stretch > LATE);
        let late = late.map(|(lane, LaneLoad { checks, stretch, .. })| {
            let words = lane.words();
            format!("{checks} {words} are more than can be made in time: their intervals are {stretch:.1} times as long")
        });
        late.chain(self.crowd.map(|Crowd { group, checks, stretch }| {
            let vip = SocketAddr::new(group.vip, group.port);
            format!(
                "{checks} checks of {vip} on the real path are more than there are ports for: their intervals are \
                 {stretch:.1} times as long"
            )
        }))
    }
}

/// What the threads and the handle share.
struct Shared {
    commands: Mutex<Vec<Command>>,
    load: Mutex<Load>,
    waker: EventFd,
    /// Probes of each lane handed to the runtime that it has not come to yet: more than a few, and it has more than
    /// it can do.
    waiting: [AtomicUsize; LANES],
}

impl Monitor {
    /// Starts the threads, with nothing to probe yet. Reports come in batches, in the order in which the outcomes
    /// were known; while nobody takes them no new probe begins.
    ///
    /// # Errors
    /// The kernel refuses threads or descriptors.
    pub fn start() -> Result<(Monitor, mpsc::Receiver<Vec<Report>>)> {
        let waker =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("make an eventfd")?;
        let nothing = LaneLoad { checks: 0, running: 0, stretch: 1.0 };
        let load = Load { lanes: [nothing; LANES], probes: 0, crowd: None };
        let shared = Arc::new(Shared {
            commands: Mutex::default(),
            load: Mutex::new(load),
            waker,
            waiting: Default::default(),
        });
        let (sender, reports) = mpsc::channel(BATCHES);
        let of_thread = shared.clone();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("lb-health".into())
            .spawn(move || match Engine::new(of_thread, sender, descriptors()) {
                Ok(engine) => {
                    let _ = ready.send(Ok(()));
                    engine.run();
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .context("start the health monitor's thread")?;
        started.recv().context("the health monitor's thread has ended")??;
        Ok((Monitor { shared, thread: Some(thread) }, reports))
    }

    /// All that is probed from now on. What is among it already goes on at its pace and at its place in time.
    pub fn set(&self, assignments: Vec<Assignment>) {
        self.command(Command::Set(assignments));
    }

    /// Where targets on the real path are connected to from now on, or why they cannot be.
    pub fn set_ways(&self, ways: Ways) {
        self.command(Command::Ways(ways));
    }

    /// Which of its intervals a check has.
    pub fn pace(&self, id: CheckId, pace: Pace) {
        self.command(Command::Pace(id, pace));
    }

    /// Probes this check now, whenever it is due.
    pub fn probe_now(&self, id: CheckId) {
        self.command(Command::ProbeNow(id));
    }

    pub fn load(&self) -> Load {
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: Command) {
        self.shared.push(command);
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn push(&self, command: Command) {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        commands.push(command);
        if commands.len() == 1 {
            // It fails only where it is signalled already.
            let _ = self.waker.write(1);
        }
    }

    fn take(&self) -> Vec<Command> {
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.waker.read();
        std::mem::take(&mut *commands)
    }
}

/// How many descriptors this process may have, after asking for as many as it may ask for.
fn descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let wanted = hard.min(DESCRIPTORS);
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}

/// Intervals that are longer by so much are worth a sentence.
const LATE: f64 = 1.05;
/// Batches of reports that may wait for the agent: it takes them up within a moment, or is busy with a big plan.
const BATCHES: usize = 64;
/// Enough for twenty thousand probes under way at a time, three descriptors each.
const DESCRIPTORS: u64 = 65_536;

#[cfg(test)]
mod tests;
