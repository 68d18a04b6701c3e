//! The election for one virtual router: RFC 9568 section 6.4, with keepalived's state for faults, and with what
//! an honest master needs beside it. Pure: give it `now` and an input, it returns what to do; when
//! [`Instance::next_deadline`] has come, give it [`Input::Timer`].

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::events::{Action, Config, Input, Role};
use super::group::Member;
use super::peers::Peers;
use super::tracking::Tracking;
use super::wire::Heard;

mod transitions;

/// One virtual router, as this director takes part in it.
#[derive(Debug, Clone)]
pub struct Instance {
    config: Config,
    state: State,
    tracking: Tracking,
    peers: Peers,
    /// What our advertisements come from; decides between equals.
    address: Option<IpAddr>,
    ready: bool,
    /// It was handed over, and is not taken back from whoever has it.
    yielded: bool,
}

/// Where the instance stands, with the timers that run there and no others.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Initialize,
    Fault,
    Backup(Backup),
    Master(Master),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// Take over then, if nothing is heard.
    pub down_at: Instant,
    /// What that would be for.
    pub why: TakeOver,
    /// Take over from a live master then (preempt delay).
    pub preempt_at: Option<Instant>,
    /// Who was last heard as master.
    pub master: Option<Heard>,
    /// The master's interval, or our own while none is known.
    pub interval: Duration,
    /// When something was last heard, or listening began.
    pub since: Instant,
    /// A timer that ran late listens once more before it decides.
    pub listened_again: bool,
    /// In a sync group: it would be master, were the others.
    pub wants_master: bool,
}

/// Why a backup's timer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeOver {
    Silence,
    MasterLeft(IpAddr),
    Preempt,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Master {
    pub next_advert: Instant,
    pub last_sent: Instant,
    /// The interval that was last announced: others' patience depends on it.
    pub announced: Duration,
    pub next_burst: Option<Instant>,
    pub next_refresh: Option<Instant>,
    /// When addresses were last announced.
    pub last_burst: Option<Instant>,
    pub leaving: Option<Leaving>,
}

/// A master that said it stops, and serves until another does.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaving {
    pub since: Instant,
    /// If nobody took over by then, it stays, or goes all the same.
    pub until: Instant,
    /// The lease is renewed then: no advertisement does it meanwhile.
    pub renew: Instant,
    pub go_all_the_same: bool,
}

impl Instance {
    /// In Initialize, not ready, without an address.
    pub fn new(config: Config) -> Instance {
        Instance {
            config,
            state: State::Initialize,
            tracking: Tracking::default(),
            peers: Peers::default(),
            address: None,
            ready: false,
            yielded: false,
        }
    }

    /// What to do about `input`, in order.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        let mut actions = self.peers.expire(now, self.config.interval);
        let more = match input {
            Input::Start { lease } => self.start(now, lease),
            Input::Stop => self.stop(),
            Input::Suspend { pause } => self.suspend(now, pause),
            Input::Advert(heard) => self.advert(now, heard),
            Input::Refused(refused) => {
                let mut actions = vec![Action::Count(refused.why.name())];
                actions.extend(self.peers.refused(now, &refused));
                actions
            }
            Input::Timer => self.timer(now),
            Input::Track(change) => self.track(now, change),
            Input::Ready(ready) => self.set_ready(now, ready),
            Input::Configure(config) => self.configure(now, config),
            Input::Handover => self.hand_over(now, false),
            Input::Group(order) => self.order(now, order),
            Input::PrimaryAddress(address) => self.primary_address(now, address),
        };
        actions.extend(more);
        actions
    }

    /// When [`Input::Timer`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let expiry = self.peers.next_expiry(self.config.interval);
        let timers = match &self.state {
            State::Initialize | State::Fault => [None; 4],
            State::Backup(backup) => [Some(backup.down_at), backup.preempt_at, None, None],
            State::Master(Master { leaving: Some(leaving), .. }) => {
                [Some(leaving.until), Some(leaving.renew), None, None]
            }
            State::Master(master) => [Some(master.next_advert), master.next_burst, master.next_refresh, None],
        };
        timers.into_iter().chain([expiry]).flatten().min()
    }

    pub fn role(&self) -> Role {
        match self.state {
            State::Initialize => Role::Initialize,
            State::Fault => Role::Fault,
            State::Backup(_) => Role::Backup,
            State::Master(_) => Role::Master,
        }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn tracking(&self) -> &Tracking {
        &self.tracking
    }

    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether it was handed over and is left where it went.
    pub fn has_yielded(&self) -> bool {
        self.yielded
    }

    /// The priority after what is tracked: what advertisements carry.
    pub fn priority(&self) -> u8 {
        self.tracking.priority(self.config.priority)
    }

    /// What its sync group has to know.
    pub fn member(&self) -> Member {
        Member {
            role: self.role(),
            wants_master: matches!(&self.state, State::Backup(backup) if backup.wants_master),
            leaving: matches!(self.state, State::Master(Master { leaving: Some(_), .. })),
            fault: self.tracking.faults().any(|fault| fault != GROUP_FAULT),
        }
    }
}

/// The sync group's fault among an instance's own.
const GROUP_FAULT: &str = "sync group";
/// The fault of having no address to send from.
const ADDRESS_FAULT: &str = "no address on the interface to send from";

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
