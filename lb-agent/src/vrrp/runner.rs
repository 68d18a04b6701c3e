//! One instance on this host: its election, its sockets, what it counts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::auth::Keyring;
use super::driver::Report;
use super::events::{Action, Config, Input, Mismatch, Role, Why};
use super::group;
use super::hands::{Belongings, Job, vmac_of};
use super::instance::{Backup, Instance, State};
use super::memory::{Memory, Place};
use super::socket::{Received, Sockets, Way, group as multicast_group};
use super::tracking::Change;
use super::wire::{Outgoing, Rules, Wire};
use super::words::{Standing, Words};
use crate::model::{Name, Vrid, VrrpInstance, VrrpShutdown};
use crate::net::virtual_router::HostView;

/// An instance as it is wanted.
#[derive(Debug, Clone)]
pub struct Member {
    pub instance: Arc<VrrpInstance>,
    /// The secrets of one that authenticates by HMAC, read by whoever may wait for a disk.
    pub keyring: Option<Keyring>,
    /// What the data plane calls it; None: there is no data plane.
    pub number: Option<u8>,
}

impl Member {
    pub fn belongings(&self) -> Arc<Belongings> {
        Arc::new(Belongings::of(&self.instance))
    }
}

/// A handover that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    pub to: IpAddr,
    /// From our goodbye to the other's first advertisement.
    pub took: Duration,
}

/// What has to be passed on.
pub enum Performed {
    Done,
    Job(Job),
    Report(Report),
}

/// How an instance stands.
#[derive(Debug, Clone)]
pub struct InstanceLook {
    pub instance: Arc<VrrpInstance>,
    pub role: Role,
    /// Why, as its last change said.
    pub why: String,
    pub since: SystemTime,
    pub priority: u8,
    /// Weights that make the difference to the configured priority.
    pub weights: Vec<(String, i32)>,
    pub faults: Vec<String>,
    pub ready: bool,
    pub yielded: bool,
    pub address: Option<IpAddr>,
    /// Who is master, and its priority, where it is another.
    pub master: Option<(IpAddr, u8)>,
    /// How long until the timer that counts fires, and what then happens.
    pub timer: Option<(&'static str, Duration)>,
    /// The master's interval as adopted, or what we announce.
    pub interval: Duration,
    pub peers: Vec<(IpAddr, Duration, Option<u8>)>,
    pub mismatches: Vec<Mismatch>,
    pub counters: BTreeMap<&'static str, u64>,
    pub problems: Vec<String>,
    /// What the data plane makes of it.
    pub lease: Option<Standing>,
}

pub struct Runner {
    member: Member,
    belongings: Arc<Belongings>,
    instance: Instance,
    wire: Wire,
    sockets: Option<Sockets>,
    started: bool,
    /// Until when an earlier run was master.
    inherited: Option<Instant>,
    place: Option<Place>,
    role: (Role, Option<Instant>),
    why: String,
    since: SystemTime,
    counters: BTreeMap<&'static str, u64>,
    problems: Vec<String>,
    socket_problem: Option<String>,
    handover: Option<(Instant, oneshot::Sender<Result<Handed, String>>)>,
}

impl Runner {
    pub fn new(member: Member, grouped: bool, inherited: Option<Instant>, place: Option<Place>) -> Runner {
        Runner {
            belongings: member.belongings(),
            instance: Instance::new(Config::of(&member.instance, grouped)),
            wire: Wire::new(Rules::of(&member.instance, member.keyring.clone())),
            sockets: None,
            started: false,
            inherited,
            place,
            role: (Role::Initialize, None),
            why: "waits for its interface".into(),
            since: SystemTime::now(),
            counters: BTreeMap::new(),
            problems: Vec::new(),
            socket_problem: None,
            handover: None,
            member,
        }
    }

    pub fn name(&self) -> &Name {
        &self.member.instance.name
    }

    /// Whether it would still be the same virtual router on the same wire.
    pub fn can_become(&self, member: &Member) -> bool {
        let identity = |instance: &VrrpInstance| {
            let interface = instance.interface.clone();
            (interface, instance.vrid, instance.is_ipv4(), instance.vmac.clone(), instance.unicast.is_some())
        };
        identity(&self.member.instance) == identity(&member.instance)
    }

    /// Takes over another configuration; what the election has to know of it.
    pub fn configure(&mut self, member: Member, grouped: bool) -> Vec<Input> {
        self.wire.configure(Rules::of(&member.instance, member.keyring.clone()));
        self.belongings = member.belongings();
        let config = Config::of(&member.instance, grouped);
        let old = std::mem::replace(&mut self.member, member);
        let new = &self.member.instance;
        let tracked = |instance: &VrrpInstance, name: &str| {
            instance.interface == name || instance.track.interfaces.iter().any(|other| other.name == name)
        };
        let gone = old.instance.track.interfaces.iter().filter(|other| !tracked(new, &other.name));
        let mut inputs: Vec<Input> = gone
            .map(|other| Input::Track(Change::Gone { what: format!("interface {}", other.name) }))
            .collect();
        if config != *self.instance.config() {
            inputs.push(Input::Configure(config));
        }
        inputs
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.instance.next_deadline()
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.sockets.as_ref().map(Sockets::fd)
    }

    pub fn member(&self) -> group::Member {
        self.instance.member()
    }

    pub fn set_problems(&mut self, problems: Vec<String>) {
        self.problems = problems;
    }

    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        self.instance.handle(now, input)
    }

    /// Looks where the instance now is on the host; what follows for the election.
    pub fn place(&mut self, host: &HostView) -> Vec<Input> {
        let instance = self.member.instance.clone();
        let mut inputs = Vec::new();
        let mut fault = |what: String, present| inputs.push(Input::Track(Change::Fault { what, present }));
        let link = host.link(&instance.interface);
        let usable = link.is_some_and(|link| link.up && link.carrier);
        fault(format!("interface {}", instance.interface), !usable);
        let vmac = vmac_of(&instance);
        let sends = match &vmac {
            None => link,
            Some(vmac) => host.link(&vmac.interface).filter(|link| link.up),
        };
        if let Some(vmac) = &vmac {
            fault(format!("interface {}", vmac.interface), sends.is_none());
        }
        for tracked in &instance.track.interfaces {
            let up = host.link(&tracked.name).is_some_and(|link| link.up && link.carrier);
            inputs.push(Input::Track(Change::of(format!("interface {}", tracked.name), tracked.effect, up)));
        }
        let source = link.and_then(|link| {
            let own = || host.primary(link.index, instance.is_ipv4());
            instance.source_address.or_else(own)
        });
        let way = match (link, sends, source) {
            (Some(link), Some(sends), Some(source)) => Some(Way {
                receive: link.index,
                send: sends.index,
                source,
                vrid: instance.vrid,
                multicast: instance.unicast.is_none(),
            }),
            _ => None,
        };
        let same = self.sockets.as_ref().map(Sockets::way) == way.as_ref();
        if !same || self.socket_problem.is_some() {
            self.open(way);
        }
        let source = self.sockets.as_ref().map(|sockets| sockets.way().source);
        if source != self.instance.address() || !self.started {
            inputs.push(Input::PrimaryAddress(source));
        }
        if !self.started && link.is_some() {
            self.started = true;
            inputs.push(Input::Start { lease: self.inherited.take() });
        }
        inputs
    }

    fn open(&mut self, way: Option<Way>) {
        self.sockets = None;
        self.socket_problem = None;
        let Some(way) = way else { return };
        match Sockets::open(way) {
            Ok(sockets) => self.sockets = Some(sockets),
            Err(error) => {
                let problem = format!("sockets on {}: {error}", self.member.instance.interface);
                tracing::error!("VRRP instance {}: {problem}", self.name());
                self.socket_problem = Some(problem);
            }
        }
    }

    /// The next message that has arrived, checked.
    pub fn receive(&mut self) -> Option<Input> {
        // An unreadable one is passed over; there may be more behind it.
        loop {
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            match self.sockets.as_mut()?.receive() {
                Ok(Received::Nothing) => return None,
                Ok(Received::Message { message, context }) => {
                    return Some(match self.wire.receive(message, &context, clock) {
                        Ok(heard) => {
                            self.count("received");
                            Input::Advert(heard)
                        }
                        Err(refused) => Input::Refused(refused),
                    });
                }
                Ok(Received::Unreadable) => self.count("unreadable"),
                Err(error) => {
                    tracing::debug!("VRRP instance {}: receive: {error}", self.name());
                    self.count("receive_failed");
                    return None;
                }
            }
        }
    }

    /// Does one thing, or says who has to.
    pub fn perform(&mut self, action: Action, words: Option<&dyn Words>, memory: &Memory) -> Performed {
        match action {
            Action::SendAdvert(outgoing) => self.send(outgoing),
            Action::TakeAddresses => return Performed::Job(Job::Take(self.belongings.clone())),
            Action::ReleaseAddresses => return Performed::Job(Job::Release(self.belongings.clone())),
            Action::Announce { count } => {
                return Performed::Job(Job::Announce { of: self.belongings.clone(), count });
            }
            Action::SetLease { role, until } => {
                self.role = (role, until);
                self.write_word(words);
                if let Some(place) = self.place {
                    let until = match role {
                        Role::Master => until.or_else(|| Some(Instant::now() + FOR_EVER)),
                        _ => None,
                    };
                    memory.remember(place, until);
                }
            }
            Action::RoleChanged { from, to, why } => return self.changed(from, to, why),
            Action::Stayed { after } => {
                if let Some((_, reply)) = self.handover.take() {
                    let seconds = after.as_secs_f64();
                    let _ = reply.send(Err(format!(
                        "nobody took over within {seconds:.1} s: this director stays master"
                    )));
                }
                return self.report("stayed", format!("nobody took over within {after:.1?}"), Vec::new());
            }
            Action::Mismatch(mismatch) => {
                self.count("mismatch");
                let Mismatch { peer, field, ours, theirs, refused } = mismatch;
                let effect = if refused { "its advertisements are refused" } else { "it is believed" };
                let cause = format!("{peer} has {field} {theirs}, ours is {ours}: {effect}");
                let fields = vec![("peer", peer.to_string()), ("field", field.to_string())];
                return self.report("mismatch", cause, fields);
            }
            Action::MismatchEnded { peer, field } => {
                let cause = format!("{peer} no longer differs in {field}");
                let fields = vec![("peer", peer.to_string()), ("field", field.to_string())];
                return self.report("mismatch-ended", cause, fields);
            }
            Action::Count(kind) => self.count(kind),
        }
        Performed::Done
    }

    /// The data plane is told what it may do for the addresses.
    pub fn write_word(&self, words: Option<&dyn Words>) {
        let (Some(words), Some(number)) = (words, self.member.number) else { return };
        // Before the election has begun, what the data plane was told last holds.
        if !self.started {
            return;
        }
        let (role, until) = self.role;
        if let Err(error) = words.set(number, role, until) {
            tracing::error!("VRRP instance {}: tell the data plane: {error}", self.name());
        }
    }

    fn send(&mut self, outgoing: Outgoing) {
        let Some(sockets) = &self.sockets else {
            self.count("send_failed");
            return;
        };
        let source = sockets.way().source;
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let destinations = match &self.member.instance.unicast {
            Some(unicast) => unicast.peers.clone(),
            None => vec![multicast_group(source.is_ipv4())],
        };
        let mut failed = 0;
        for to in &destinations {
            let message = self.wire.encode(outgoing, source, *to, clock);
            if let Err(error) = sockets.send(&message, *to) {
                tracing::debug!("VRRP instance {}: send to {to}: {error}", self.name());
                failed += 1;
            }
        }
        self.add("sent", destinations.len() as u64 - failed);
        if outgoing.priority == 0 {
            self.add("sent_priority_0", 1);
        }
        self.add("send_failed", failed);
    }

    fn changed(&mut self, from: Role, to: Role, why: Why) -> Performed {
        if let Some((began, reply)) = self.handover.take() {
            let _ = reply.send(match &why {
                Why::HandedOver { to } => Ok(Handed { to: *to, took: began.elapsed() }),
                other => Err(format!("it became {to} instead: {other}")),
            });
        }
        self.count(match to {
            Role::Master => "became_master",
            Role::Backup => "became_backup",
            Role::Fault => "became_fault",
            Role::Initialize => "stopped",
        });
        let same = from == to;
        self.why = why.to_string();
        self.since = SystemTime::now();
        let fields = vec![("previous", from.to_string()), ("priority", self.instance.priority().to_string())];
        match same {
            true => Performed::Done,
            false => self.report(to.name(), self.why.clone(), fields),
        }
    }

    fn report(&self, kind: &str, cause: String, fields: Vec<(&'static str, String)>) -> Performed {
        let (at, instance) = (SystemTime::now(), self.name().clone());
        Performed::Report(Report { at, instance, kind: kind.to_owned(), cause, fields })
    }

    /// False, and answered: this director is not master.
    pub fn begin_handover(&mut self, reply: oneshot::Sender<Result<Handed, String>>) -> bool {
        let role = self.instance.role();
        if role != Role::Master || self.handover.is_some() {
            let reason = match (role, self.instance.state()) {
                (Role::Master, _) => "is being handed over already".to_owned(),
                (_, State::Backup(Backup { master: Some(heard), .. })) => {
                    format!("is {role} here: {} is master, ask there", heard.source)
                }
                _ => format!("is not master here (it is {role})"),
            };
            let _ = reply.send(Err(format!("VRRP instance `{}` {reason}", self.name())));
            return false;
        }
        self.handover = Some((Instant::now(), reply));
        true
    }

    /// What the end of the agent means. An address is kept over a restart only where it ends by itself.
    pub fn stop_input(&self, has_lease: bool, pause: Duration) -> Input {
        match self.member.instance.shutdown {
            VrrpShutdown::Keep if has_lease && self.member.number.is_some() => Input::Suspend { pause },
            VrrpShutdown::Keep | VrrpShutdown::Release => Input::Stop,
        }
    }

    pub fn look(&self, now: Instant, words: Option<&dyn Words>) -> InstanceLook {
        let instance = &self.instance;
        let in_time = |at: Instant| at.saturating_duration_since(now);
        let (mut master, mut timer, mut interval) = (None, None, instance.config().interval);
        match instance.state() {
            State::Backup(backup) => {
                master = backup.master.as_ref().map(|heard| (heard.source, heard.priority));
                timer = Some(("takes over", in_time(backup.down_at)));
                interval = backup.interval;
            }
            State::Master(state) => {
                timer = Some(("advertises", in_time(state.next_advert)));
                interval = state.announced;
            }
            State::Initialize | State::Fault => {}
        }
        let lease = match (words, self.member.number) {
            (Some(words), Some(number)) => words.standing(number),
            _ => None,
        };
        InstanceLook {
            instance: self.member.instance.clone(),
            role: instance.role(),
            why: self.why.clone(),
            since: self.since,
            priority: instance.priority(),
            weights: instance.tracking().weights().map(|(what, delta)| (what.to_owned(), delta)).collect(),
            faults: instance.tracking().faults().map(str::to_owned).collect(),
            ready: instance.is_ready(),
            yielded: instance.has_yielded(),
            address: instance.address(),
            master,
            timer,
            interval,
            peers: instance
                .peers()
                .iter()
                .map(|(address, heard, priority)| (address, now.saturating_duration_since(heard), priority))
                .collect(),
            mismatches: instance.peers().mismatches().cloned().collect(),
            counters: self.counters.clone(),
            problems: self.problems.iter().chain(&self.socket_problem).cloned().collect(),
            lease,
        }
    }

    fn count(&mut self, kind: &'static str) {
        self.add(kind, 1);
    }

    fn add(&mut self, kind: &'static str, number: u64) {
        if number > 0 {
            *self.counters.entry(kind).or_default() += number;
        }
    }

    pub fn vrid(&self) -> Vrid {
        self.member.instance.vrid
    }
}

/// A lease without an end, as the file of leases can hold it.
const FOR_EVER: Duration = Duration::from_secs(600);
