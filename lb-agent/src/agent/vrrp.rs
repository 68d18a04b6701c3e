//! VRRP in the agent: the manifests' instances go to the driver, its reports become events, and the data plane learns
//! which addresses follow which instance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::{Agent, Trouble};
use crate::control::views::VrrpStatus;
use crate::control::vrrp::{
    HandoverView, LagBucket, MismatchView, PeerView, SchedulingView, TimerView, VrrpOverview, VrrpView,
};
use crate::control::{Refusal, Reply};
use crate::dataplane::{VrrpRole, VrrpRoles, VrrpStanding};
use crate::director::Standing as ServerStanding;
use crate::manifest::Objects;
use crate::model::{
    Authentication, Hook, KeySource, Kind, Name, Notify, Selection, Track, VirtualAddress, VrrpInstance,
};
use crate::vrrp::auth::Keyring;
use crate::vrrp::driver::{Command, Driver, Look, Report, Setup, Threads};
use crate::vrrp::events::Role;
use crate::vrrp::lag::BOUNDS;
use crate::vrrp::runner::{InstanceLook, Member};
use crate::vrrp::trackers::Trackers;
use crate::vrrp::tracking::Change;
use crate::vrrp::words::{Standing, Words};

/// The agent's side of VRRP.
pub(super) struct Vrrp {
    pub(super) driver: Driver,
    threads: Option<Threads>,
    pub(super) reports: mpsc::UnboundedReceiver<Report>,
    trackers: Trackers,
    /// What the data plane calls each instance.
    numbers: BTreeMap<Name, u8>,
    /// What was last said of services and the data plane, so that only changes are.
    said: BTreeMap<(Name, String), Change>,
    ready: bool,
    /// How everything stood when it was last asked for.
    seen: VrrpOverview,
}

impl Vrrp {
    /// Starts the threads and gives them the instances at once: an agent that was master must advertise again before
    /// the others' patience ends, and what follows (loading programs) takes longer.
    pub(super) fn start(runtime_dir: &std::path::Path, objects: &Objects) -> Result<Vrrp> {
        std::fs::create_dir_all(runtime_dir).with_context(|| format!("make {}", runtime_dir.display()))?;
        let (driver, reports, threads) =
            Driver::start(&runtime_dir.join(MEMORY)).context("start the VRRP thread")?;
        let trackers = Trackers::new(driver.clone());
        let mut vrrp = Vrrp {
            driver,
            threads: Some(threads),
            reports,
            trackers,
            numbers: BTreeMap::new(),
            said: BTreeMap::new(),
            ready: false,
            seen: VrrpOverview::default(),
        };
        let mut problems = Vec::new();
        vrrp.set(objects, &mut problems);
        Ok(vrrp)
    }

    fn set(&mut self, objects: &Objects, problems: &mut Vec<String>) {
        let instances: Vec<VrrpInstance> =
            objects.vrrp_instances().map(|(instance, _)| whole(objects, instance)).collect();
        let mut members = Vec::new();
        for instance in &instances {
            match keyring(&instance.authentication) {
                Ok(keyring) => members.push(Member {
                    instance: Arc::new(instance.clone()),
                    keyring,
                    number: self.numbers.get(&instance.name).copied(),
                }),
                // Without its keys it would neither be believed nor believe anybody: two masters.
                Err(error) => problems.push(format!("VrrpInstance/{}: {error:#}", instance.name)),
            }
        }
        let groups = objects.vrrp_sync_groups().map(|(group, _)| group.members.clone()).collect();
        self.driver.order(Command::Set(Setup { members, groups }));
        self.trackers.set(instances.iter().map(|instance| (&instance.name, &instance.track)));
        let names: BTreeSet<&Name> = instances.iter().map(|instance| &instance.name).collect();
        self.said.retain(|(name, _), _| names.contains(name));
    }

    /// Says a change once.
    fn track(&mut self, name: &Name, what: String, change: Change) {
        let key = (name.clone(), what);
        if self.said.get(&key) != Some(&change) {
            self.said.insert(key, change.clone());
            self.driver.order(Command::Track { name: name.clone(), change });
        }
    }
}

impl Agent {
    /// The driver gets what the objects now say. Addresses follow their instances in the data plane first: a role
    /// that changes before would be nobody's.
    pub(super) fn set_vrrp(&mut self) {
        let objects = self.director.objects().clone();
        let mut problems = Vec::new();
        if !self.running.interfaces.is_empty() {
            let mut numbers = BTreeMap::new();
            for (instance, _) in objects.vrrp_instances() {
                let instance = whole(&objects, instance);
                let addresses: Vec<IpAddr> =
                    instance.all_addresses().map(|address| address.address.addr()).collect();
                match self.applier.set_vrrp(&instance.name, &addresses, instance.accept) {
                    Ok(number) => _ = numbers.insert(instance.name.clone(), number),
                    Err(error) => problems.push(format!("VrrpInstance/{}: {error:#}", instance.name)),
                }
            }
            self.vrrp.numbers = numbers;
            let tracked =
                |(instance, _): (&VrrpInstance, _)| effective_track(&objects, instance).data_plane.is_some();
            if objects.vrrp_instances().any(tracked)
                && let Err(error) = self.applier.install_self_probe()
            {
                problems.push(format!("self-probe of the data plane: {error:#}"));
            }
        }
        self.vrrp.set(&objects, &mut problems);
        self.trouble(Trouble::Vrrp, problems);
        self.track_vrrp();
    }

    /// The data plane is there: the driver may write its words. Without an interface there is no lease.
    pub(super) fn give_words_to_vrrp(&mut self) {
        if !self.running.interfaces.is_empty() {
            self.vrrp.driver.order(Command::Words(Box::new(DataplaneWords(self.dataplane.vrrp_roles()))));
        }
    }

    /// What only the agent knows of what is tracked, and whether this director could serve.
    pub(super) fn track_vrrp(&mut self) {
        let known = self.director.all_answered() && self.health.roster.all_known(|_| true);
        let ready = self.recovered && !self.unfinished && known;
        if ready && !self.vrrp.ready {
            self.vrrp.ready = true;
            self.vrrp.driver.order(Command::Ready(true));
        }
        let objects = self.director.objects().clone();
        let tracked = |instance: &VrrpInstance| effective_track(&objects, instance).data_plane.is_some();
        let forwarding = objects.vrrp_instances().any(|(instance, _)| tracked(instance)) && self.forwarding();
        for (instance, _) in objects.vrrp_instances() {
            let track = effective_track(&objects, instance);
            for tracked in &track.services {
                let what = format!("service {}", tracked.service);
                let up = self.usable_weight(&tracked.service) >= tracked.quorum;
                self.vrrp.track(&instance.name, what.clone(), Change::of(what, tracked.effect, up));
            }
            if let Some(effect) = track.data_plane {
                let what = "data plane".to_owned();
                self.vrrp.track(&instance.name, what.clone(), Change::of(what, effect, forwarding));
            }
        }
    }

    /// The weights of a service's real servers that take connections.
    fn usable_weight(&self, name: &Name) -> u32 {
        let services = self.director.objects().services();
        let found = services.map(|(found, _)| found).find(|found| found.name == *name);
        let Some(service) = found else { return 0 };
        // Both in the order of the manifest. A service without a judgement has no checks yet.
        let judgement = self.health.roster.judgement(name);
        let usable = service.real_servers.iter().enumerate().filter(|(nth, server)| {
            let healthy = judgement
                .and_then(|judgement| judgement.servers.get(*nth))
                .is_none_or(|verdict| verdict.standing.takes_new());
            let standing = self.director.standing(service, server);
            healthy && matches!(standing, ServerStanding::In { .. })
        });
        usable.map(|(_, server)| u32::from(server.weight)).sum()
    }

    /// The program is on every interface that it should be on, and forwards: by proof.
    fn forwarding(&self) -> bool {
        let attached = self.dataplane.attached();
        let wanted = &self.running.interfaces;
        !wanted.is_empty()
            && !self.problems.contains_key(&Trouble::Interfaces)
            && wanted.iter().all(|wanted| attached.iter().any(|attached| attached.name == wanted.name))
            && self
                .dataplane
                .prove_forwarding()
                .inspect_err(|why| tracing::warn!("data plane: {why}"))
                .is_ok()
    }

    /// Asks the driver how everything stands; it answers at once.
    pub(super) async fn look_at_vrrp(&mut self) {
        if self.director.objects().vrrp_instances().next().is_none() {
            self.vrrp.seen = VrrpOverview::default();
        } else if let Ok(Some(look)) = tokio::time::timeout(LOOK_WAIT, self.vrrp.driver.look()).await {
            self.vrrp.seen = overview(look);
        }
    }

    /// A line for each instance.
    pub(super) fn vrrp_status(&self) -> Vec<VrrpStatus> {
        let line = |view: &VrrpView| VrrpStatus {
            name: view.name.clone(),
            role: view.role.clone(),
            reason: view.reason.clone(),
            for_seconds: view.for_seconds,
        };
        self.vrrp.seen.instances.iter().map(line).collect()
    }

    /// What is not as it should be: faults, peers that differ, and whatever makes a dead agent dangerous.
    pub(super) fn vrrp_problems(&self) -> Vec<String> {
        let VrrpOverview { instances, scheduling } = &self.vrrp.seen;
        let mut problems = Vec::new();
        for view in instances {
            let of_it = view.complaints().into_iter().chain(scheduling.complaint(view));
            problems.extend(of_it.map(|problem| format!("VrrpInstance/{}: {problem}", view.name)));
            let covered = self.running.interfaces.iter().any(|interface| interface.name == view.interface);
            if !self.running.interfaces.is_empty() && !covered && !self.lies_on_ours(&view.interface) {
                problems.push(format!(
                    "VrrpInstance/{}: {} is none of the Director's interfaces: a dead agent's kernel would answer there",
                    view.name, view.interface
                ));
            }
        }
        if !instances.is_empty() {
            if self.running.interfaces.is_empty() {
                problems.push(
                    "VRRP has no lease, for want of interfaces: an agent that dies keeps its addresses"
                        .into(),
                );
            }
            if !scheduling.real_time {
                problems.push(format!("VRRP runs without real-time priority: {}", scheduling.reason));
            }
        }
        problems
    }

    /// Whether an interface is a VLAN on one with the program.
    fn lies_on_ours(&self, name: &str) -> bool {
        let mut link = self.links.iter().find(|link| link.name == name);
        // A stack of VLANs is as deep as two; one that went in a circle would be no stack.
        for _ in 0..4 {
            let Some(parent) = link.and_then(|link| link.vlan).and_then(|vlan| vlan.parent) else {
                return false;
            };
            if self.dataplane.attached().iter().any(|attached| attached.ifindex == parent) {
                return true;
            }
            link = self.links.iter().find(|link| link.index == parent);
        }
        false
    }

    /// A report of the driver.
    pub(super) fn vrrp_report(&mut self, report: Report) {
        let Report { at, instance, kind, cause, fields } = report;
        let subject = format!("{}/{instance}", Kind::VrrpInstance);
        // An agent that starts is master long before it comes to tell of it.
        let at = jiff::Timestamp::try_from(at).unwrap_or_else(|_| jiff::Timestamp::now());
        self.events.emit_at(at, subject, kind, cause, fields);
    }

    /// Hooks of the instances and groups: the one for the role, then the one for every transition.
    pub(super) fn vrrp_hooks(&self) -> Vec<Hook> {
        let objects = self.director.objects();
        let mut hooks = Vec::new();
        for (instance, _) in objects.vrrp_instances() {
            let subjects = vec![format!("{}/{}", Kind::VrrpInstance, instance.name)];
            hooks.extend(notify_hooks(&instance.notify, &subjects));
            if let Some(group) = objects.vrrp_sync_group_of(&instance.name) {
                hooks.extend(notify_hooks(&group.notify, &subjects));
            }
        }
        hooks
    }

    pub(super) fn vrrp(&self, reply: Reply<VrrpOverview>) {
        let driver = self.vrrp.driver.clone();
        tokio::spawn(async move {
            let overview = driver.look().await.map(overview).unwrap_or_default();
            let _ = reply.send(overview);
        });
    }

    pub(super) fn hand_over(&self, name: Name, reply: Reply<Result<HandoverView, Refusal>>) {
        if !self.director.objects().vrrp_instances().any(|(instance, _)| instance.name == name) {
            let object = format!("{}/{name}", Kind::VrrpInstance);
            let _ = reply.send(Err(Refusal::Missing { object }));
            return;
        }
        let driver = self.vrrp.driver.clone();
        tokio::spawn(async move {
            let (asked, answer) = oneshot::channel();
            driver.order(Command::Handover { name: name.clone(), reply: asked });
            let failed = |cause| {
                Err(Refusal::Failed { step: format!("hand {}/{name} over", Kind::VrrpInstance), cause })
            };
            let _ = reply.send(match answer.await {
                Ok(Ok(handed)) => Ok(HandoverView {
                    instance: name.to_string(),
                    to: handed.to,
                    took_ms: handed.took.as_millis() as u64,
                }),
                Ok(Err(reason)) => failed(reason),
                Err(_) => failed("the VRRP thread has ended".to_owned()),
            });
        });
    }

    /// Leaves every instance as its `shutdown` says; `release`: as the Director's says, with all addresses.
    pub(super) async fn stop_vrrp(&mut self, release: bool) {
        let (reply, stopped) = oneshot::channel();
        self.vrrp.driver.order(Command::Stop { release, reply });
        if tokio::time::timeout(STOP_WAIT, stopped).await.is_err() {
            tracing::error!("the VRRP thread did not stop within {STOP_WAIT:?}");
            return;
        }
        while let Ok(report) = self.vrrp.reports.try_recv() {
            self.vrrp_report(report);
        }
        if let Some(threads) = self.vrrp.threads.take() {
            // The driver's end ends the hands; neither waits for anything then.
            let joined = tokio::task::spawn_blocking(move || threads.join());
            let _ = tokio::time::timeout(STOP_WAIT, joined).await;
        }
    }
}

/// The instance with all that follows it: its group's tracked things, and pools that name it.
fn whole(objects: &Objects, instance: &VrrpInstance) -> VrrpInstance {
    let mut whole = instance.clone();
    whole.track = effective_track(objects, instance);
    for (pool, _) in objects.pools().filter(|(pool, _)| pool.vrrp.as_ref() == Some(&instance.name)) {
        let interface = pool.address_interface.clone();
        for address in pool.addresses().filter(|address| !instance.has_address(*address)) {
            let address = VirtualAddress { address: IpNet::from(address), interface: interface.clone() };
            whole.excluded_addresses.push(address);
        }
    }
    whole
}

/// What is tracked for an instance: its own things, its group's, and where the group shares weights the members'.
fn effective_track(objects: &Objects, instance: &VrrpInstance) -> Track {
    let mut track = instance.track.clone();
    let Some(group) = objects.vrrp_sync_group_of(&instance.name) else { return track };
    let mut join = |other: &Track| {
        fn add<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
            let new: Vec<T> = from.iter().filter(|item| !to.contains(item)).cloned().collect();
            to.extend(new);
        }
        add(&mut track.interfaces, &other.interfaces);
        add(&mut track.scripts, &other.scripts);
        add(&mut track.processes, &other.processes);
        add(&mut track.files, &other.files);
        add(&mut track.services, &other.services);
        track.data_plane = track.data_plane.or(other.data_plane);
    };
    join(&group.track);
    if group.shared_weights {
        let others = objects.vrrp_instances().map(|(other, _)| other);
        others.filter(|other| group.members.contains(&other.name)).for_each(|other| join(&other.track));
    }
    track
}

fn notify_hooks(notify: &Notify, subjects: &[String]) -> Vec<Hook> {
    let roles = [("master", &notify.master), ("backup", &notify.backup), ("fault", &notify.fault)];
    let hook = |kinds: &[&str], command: &Vec<String>| Hook {
        command: command.clone(),
        on: Selection { subjects: subjects.to_vec(), kinds: kinds.iter().map(ToString::to_string).collect() },
        timeout: notify.timeout,
    };
    let single = roles.iter().filter_map(|(kind, command)| Some(hook(&[kind], command.as_ref()?)));
    let every =
        notify.command.as_ref().map(|command| hook(&["master", "backup", "fault", "initialize"], command));
    single.chain(every).collect()
}

/// The secrets of an instance, read from where they are.
fn keyring(authentication: &Authentication) -> Result<Option<Keyring>> {
    let Authentication::Hmac(hmac) = authentication else { return Ok(None) };
    let mut keys = Vec::new();
    for key in &hmac.keys {
        let bytes = match &key.source {
            KeySource::Inline(bytes) => bytes.clone(),
            KeySource::File(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("read key {} from {}", key.id, path.display()))?;
                crate::manifest::parse_key(&text)
                    .map_err(anyhow::Error::msg)
                    .with_context(|| format!("key {} in {}", key.id, path.display()))?
            }
        };
        keys.push((key.id, bytes));
    }
    Ok(Some(Keyring { keys, active: hmac.active_key, mode: hmac.mode, window: hmac.window }))
}

pub(super) fn overview(look: Look) -> VrrpOverview {
    let microseconds = |time: Duration| time.as_micros() as u64;
    let lag = &look.lag;
    let mean = lag.total.checked_div(lag.timers.try_into().unwrap_or(u32::MAX)).unwrap_or_default();
    let bounds = BOUNDS.iter().map(|bound| Some(microseconds(*bound))).chain([None]);
    let buckets = bounds.zip(lag.buckets);
    VrrpOverview {
        instances: look.instances.iter().map(view).collect(),
        scheduling: SchedulingView {
            real_time: look.not_real_time.is_none(),
            reason: look.not_real_time.clone().unwrap_or_default(),
            timers: lag.timers,
            last_lag_us: microseconds(lag.last),
            recent_lag_us: microseconds(look.recent_lag),
            most_lag_us: microseconds(lag.most),
            mean_lag_us: microseconds(mean),
            total_lag_us: microseconds(lag.total),
            lag_buckets: buckets.map(|(up_to_us, timers)| LagBucket { up_to_us, timers }).collect(),
        },
    }
}

fn view(look: &InstanceLook) -> VrrpView {
    let instance = &look.instance;
    let milliseconds = |time: Duration| time.as_millis() as u64;
    let since = jiff::Timestamp::try_from(look.since).unwrap_or_default();
    let (master, master_priority) = match (look.role, look.master) {
        (Role::Master, _) => (look.address, Some(look.priority)),
        (_, Some((address, priority))) => (Some(address), Some(priority)),
        (_, None) => (None, None),
    };
    VrrpView {
        name: instance.name.to_string(),
        role: look.role.name().into(),
        reason: look.why.clone(),
        since: since.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        for_seconds: SystemTime::now().duration_since(look.since).unwrap_or_default().as_secs(),
        interface: instance.interface.clone(),
        vrid: instance.vrid.get(),
        version: instance.version.number(),
        priority: look.priority,
        base_priority: instance.priority,
        weights: look.weights.iter().filter(|(_, delta)| *delta != 0).cloned().collect(),
        faults: look.faults.clone(),
        ready: look.ready,
        yielded: look.yielded,
        source: look.address,
        master,
        master_priority,
        interval_ms: milliseconds(look.interval),
        configured_interval_ms: milliseconds(instance.interval),
        timer: look.timer.map(|(what, left)| TimerView { what: what.into(), in_ms: milliseconds(left) }),
        addresses: instance.all_addresses().map(|address| address.address.to_string()).collect(),
        peers: look
            .peers
            .iter()
            .map(|(address, heard, priority)| PeerView {
                address: *address,
                heard_ms: milliseconds(*heard),
                priority: *priority,
            })
            .collect(),
        mismatches: look
            .mismatches
            .iter()
            .map(|mismatch| MismatchView {
                peer: mismatch.peer,
                field: mismatch.field.name().into(),
                ours: mismatch.ours.clone(),
                theirs: mismatch.theirs.clone(),
                refused: mismatch.refused,
            })
            .collect(),
        counters: look.counters.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        lease: match look.lease {
            None => "none".into(),
            Some(Standing::Backup) => "backup".into(),
            Some(Standing::Master(None)) => "master".into(),
            Some(Standing::Master(Some(left))) => format!("master for {:.1} s", left.as_secs_f64()),
            Some(Standing::Expired(ago)) => format!("expired {:.1} s ago", ago.as_secs_f64()),
        },
        problems: look.problems.clone(),
    }
}

/// The data plane's words, as the driver writes them.
struct DataplaneWords(VrrpRoles);

impl Words for DataplaneWords {
    fn set(&self, number: u8, role: Role, until: Option<Instant>) -> Result<(), String> {
        let role = match (role, until) {
            (Role::Master, Some(until)) => VrrpRole::Master { until },
            (Role::Master, None) => VrrpRole::MasterWithoutEnd,
            (Role::Initialize | Role::Backup | Role::Fault, _) => VrrpRole::Backup,
        };
        self.0.set(number, role).map_err(|error| error.to_string())
    }

    fn standing(&self, number: u8) -> Option<Standing> {
        Some(match self.0.standing(number).ok()? {
            VrrpStanding::Backup => Standing::Backup,
            VrrpStanding::Master(left) => Standing::Master(left),
            VrrpStanding::Expired(ago) => Standing::Expired(ago),
        })
    }
}

/// In the runtime directory.
const MEMORY: &str = "vrrp";
const LOOK_WAIT: Duration = Duration::from_millis(500);
const STOP_WAIT: Duration = Duration::from_secs(5);
