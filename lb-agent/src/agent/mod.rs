//! The running agent: the one place where the edges meet. One task owns the director and the tables; everything
//! that happens comes to it as a message, and nothing it does takes long.

mod arp;
pub(crate) mod check_files;
mod deny;
mod drain;
mod events;
mod flood;
mod forwarding;
mod health;
mod health_views;
pub(crate) mod host;
pub(crate) mod lists;
mod metrics;
mod orders;
mod passive;
mod persistence_views;
mod real_path;
mod start;
mod views;
mod vrrp;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::apply::{Applier, Failed};
use crate::control::{self, Outcome, Refusal, Request};
use crate::dataplane::{Counters, Dataplane, Sweeper};
use crate::director::{Desired, Director, Drains, Event};
use crate::events::{Events, SinkTasks};
use crate::model::{self, LinkCounters, OnShutdown};
use crate::net::{self, Net};
use crate::plan;
use crate::state::{Lock, StateDirectory};
use crate::watch::Watch;

/// What `lb-agent run` was told.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The file with the Director.
    pub config: PathBuf,
    /// A directory of manifests that are authoritative for what they hold.
    pub manifests: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub bpffs_dir: PathBuf,
    /// Where the Director asks for tables of other sizes, make new ones and forget every connection.
    pub recreate_tables: bool,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting: a configuration that is wrong, an interface that is missing, a kernel that
/// refuses the program.
pub async fn run(options: RunOptions) -> Result<()> {
    let (requests, mut inbox) = mpsc::channel(REQUESTS);
    let (mut agent, mut events, mut reports) = start::start(options, requests.clone()).await?;
    let socket = control::socket_path(&agent.options.runtime_dir);
    let server = control::server::serve(&socket, requests).await?;
    let result = agent.serve(&mut events, &mut reports, &mut inbox).await;
    server.abort();
    let _ = server.await;
    result?;
    agent.shut_down().await
}

/// Everything the task owns.
struct Agent {
    options: RunOptions,
    started: Instant,
    kernel: String,
    dataplane: Dataplane,
    counters: Counters,
    /// Held for its thread, which ends with it.
    _sweeper: Sweeper,
    /// Held, so that no other agent uses the same state.
    _lock: Lock,
    applier: Applier,
    net: Net,
    state: StateDirectory,
    director: Director,
    health: health::Health,
    real_paths: real_path::RealPaths,
    watched: passive::Watched,
    desired: Desired,
    drains: Drains,
    ebbs: drain::Ebbs,
    lists: lists::Lists,
    events: Events,
    sinks: SinkTasks,
    vrrp: vrrp::Vrrp,
    metrics: metrics::Metrics,
    /// Whether the kernel's ARP settings are those for VRRP; not looked at yet.
    arp_settled: Option<bool>,
    /// The Director that the program was loaded for.
    running: model::Director,
    links: Vec<net::Link>,
    /// The tables hold nothing any more that this run did not ask for.
    recovered: bool,
    /// The last plan did not come to its end: it is tried again each second.
    unfinished: bool,
    /// What is not as it should be, by where it comes from.
    problems: BTreeMap<Trouble, Vec<String>>,
    /// Answers that wait for the ways to new real servers.
    waiting: Vec<Waiting>,
}

/// Where a problem comes from; a new one replaces the old one from the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Files,
    Lists,
    Stored,
    Tables,
    Interfaces,
    Forwarding,
    Health,
    RealPath,
    Host,
    Vrrp,
    Flood,
    Metrics,
}

struct Waiting {
    until: Instant,
    outcome: Outcome,
    reply: oneshot::Sender<Result<Outcome, Refusal>>,
}

impl Agent {
    /// Answers and follows until a signal says stop.
    async fn serve(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<net::Event>,
        reports: &mut health::Reports,
        inbox: &mut mpsc::Receiver<Request>,
    ) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
        let mut hang_up = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watched = self.lists.paths();
        let mut watch = Watch::start(self.options.manifests.as_deref(), &watched)?;
        // What changed between reading the directory and watching it.
        if watch.is_some() {
            self.reload().await;
        }
        self.follow_metrics().await;
        self.tell(&[NotifyState::Ready]);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hang_up.recv() => {
                    self.tell_reloading();
                    self.reload().await;
                    self.tell(&[NotifyState::Ready]);
                }
                changed = changed(&mut watch) => {
                    if let Err(error) = changed {
                        tracing::error!("{error:#}: changes of files are seen at SIGHUP only");
                        watch = None;
                    } else {
                        // First: what changes while the files are read is seen as well.
                        watch = self.watch_again(watch);
                        self.reload().await;
                    }
                }
                Some(request) = inbox.recv() => self.answer(request).await,
                event = events.recv() => match event {
                    Some(event) => self.network(event, events).await,
                    None => anyhow::bail!("the watch on the network has ended"),
                },
                batch = reports.next() => match batch {
                    Some(batch) => {
                        if self.take_reports(batch) {
                            self.enforce().await;
                        }
                    }
                    None => anyhow::bail!("the health monitor has ended"),
                },
                () = until(self.health_deadline()) => {
                    if self.judge(Instant::now()) {
                        self.enforce().await;
                    }
                }
                Some(report) = self.vrrp.reports.recv() => self.vrrp_report(report),
                _ = tick.tick() => self.tick().await,
                () = until(self.waiting.iter().map(|waiting| waiting.until).min()) => {}
            }
            self.answer_waiting();
            // Other lists than before: what changed since they were read is read now.
            if self.lists.paths() != watched {
                watched = self.lists.paths();
                watch = self.watch_again(watch);
                self.reload().await;
            }
        }
    }

    /// A directory that was replaced is another directory.
    fn watch_again(&mut self, watch: Option<Watch>) -> Option<Watch> {
        match Watch::start(self.options.manifests.as_deref(), &self.lists.paths()) {
            Ok(new) => new,
            Err(error) => {
                tracing::warn!("{error:#}");
                watch
            }
        }
    }

    async fn answer(&mut self, request: Request) {
        // Whoever asked may be gone.
        match request {
            Request::Apply { sources, prune, dry_run, reply } => {
                let result = self.apply(&sources, prune, dry_run).await;
                self.reply_when_resolved(result, reply);
            }
            Request::Delete { ids, dry_run, reply } => {
                let result = self.delete(&ids, dry_run).await;
                let _ = reply.send(result);
            }
            Request::Drain { service, real_server, deadline, reply } => {
                let result = self.drain(&service, &real_server, deadline).await;
                let _ = reply.send(result);
            }
            Request::Undrain { service, real_server, reply } => {
                let result = self.undrain(&service, &real_server).await;
                let _ = reply.send(result);
            }
            Request::Objects { reply } => drop(reply.send(self.objects())),
            Request::Services { reply } => drop(reply.send(self.services())),
            Request::RealServers { service, reply } => {
                drop(reply.send(self.real_servers(service.as_deref())))
            }
            Request::Connections { limit, filter, reply } => self.connections(limit, filter, reply),
            Request::Persistence { limit, service, reply } => self.persistence(limit, service, reply),
            Request::Counters { reply } => drop(reply.send(self.counters())),
            Request::Health { service, reply } => drop(reply.send(self.health_views(service.as_deref()))),
            Request::Operate { order, reply } => {
                let result = self.operate(&order).await;
                let _ = reply.send(result);
            }
            Request::Status { reply } => {
                self.look_at_vrrp().await;
                let links = self.link_counters().await;
                let _ = reply.send(self.status(&links));
            }
            Request::Metrics { reply } => self.metrics(reply),
            Request::Vrrp { reply } => self.vrrp(reply),
            Request::Handover { name, reply } => self.hand_over(name, reply),
            Request::Events { after, limit, wait, reply } => self.events(after, limit, wait, reply),
        }
    }

    /// An operator who applies and then tries expects it to work: the answer waits a moment for the ways to new
    /// real servers. Nothing else does.
    fn reply_when_resolved(
        &mut self,
        result: Result<Outcome, Refusal>,
        reply: oneshot::Sender<Result<Outcome, Refusal>>,
    ) {
        match result {
            Ok(outcome) if outcome.applied && !self.settled() => {
                let now = Instant::now();
                let until = self.health.settles.map_or(now, |settles| settles.max(now)).max(now + APPLY_WAIT);
                self.waiting.push(Waiting { until, outcome, reply });
            }
            result => drop(reply.send(result)),
        }
    }

    /// Whether the ways to all real servers, and the first outcomes of new checks, are known.
    fn settled(&self) -> bool {
        self.director.all_answered() && self.health.settled(Instant::now())
    }

    fn answer_waiting(&mut self) {
        // Called after every event, and with fifty thousand real servers it takes a while to see that all are known.
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        let answered = self.settled();
        let (due, later) = self.waiting.drain(..).partition(|waiting| answered || waiting.until <= now);
        self.waiting = later;
        let due: Vec<Waiting> = due;
        for Waiting { outcome, reply, .. } in due {
            let _ = reply.send(Ok(outcome));
        }
    }

    /// Takes up one event and all that have come with it, then acts once.
    async fn network(&mut self, event: net::Event, more: &mut mpsc::UnboundedReceiver<net::Event>) {
        self.note(event);
        while let Ok(event) = more.try_recv() {
            self.note(event);
        }
        self.enforce().await;
        self.track_vrrp();
    }

    fn note(&mut self, event: net::Event) {
        match event {
            net::Event::Resolution { address, resolution } => {
                match &resolution {
                    // A VIP of which is asked whether it is this host's.
                    _ if !self.director.uses(address) => {}
                    model::Resolution::Failed { reason } => tracing::warn!("real server {address}: {reason}"),
                    model::Resolution::Resolved(way) => {
                        let mac = plan::Mac(way.destination_mac);
                        tracing::info!("real server {address}: by {mac} ({})", way.neighbour);
                    }
                    model::Resolution::Local => tracing::info!("{address}: an address of this host"),
                    model::Resolution::Pending => {}
                }
                self.director.handle(Event::Resolution { address, resolution });
            }
            net::Event::Gateway { address, ifindex, resolution } => {
                self.director.handle(Event::Gateway { address, ifindex, resolution });
            }
            net::Event::ClientRoutes(routes) => self.director.handle(Event::ClientRoutes(routes)),
            net::Event::Links(links) => {
                self.links = links;
                self.attach_again();
            }
        }
    }

    /// An interface that was made anew under its name gets the program again.
    fn attach_again(&mut self) {
        let mut problems = Vec::new();
        for wanted in start::interfaces(&self.running, &self.links) {
            let wanted = match wanted {
                Ok(wanted) => wanted,
                Err(missing) => {
                    problems.push(missing);
                    continue;
                }
            };
            if self.dataplane.attached().iter().any(|attached| attached.ifindex == wanted.ifindex) {
                // A bond may have got another card.
                problems.extend(self.dataplane.set_members(&wanted).err().map(|error| error.to_string()));
                continue;
            }
            match self.dataplane.attach(&wanted) {
                Ok(attached) => {
                    tracing::info!(
                        "interface {}: made anew, XDP in {} mode",
                        wanted.name,
                        attached.mode.name()
                    );
                    self.applier.place_again();
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        self.trouble(Trouble::Interfaces, problems);
        self.director.handle(Event::Outputs(start::outputs(&self.dataplane)));
    }

    /// Makes tables and host what the director wants. A failure is kept for `status` and tried again.
    async fn enforce(&mut self) {
        match self.run_plan().await {
            Ok(_) => self.trouble(Trouble::Tables, Vec::new()),
            Err(Failed { step, error }) => self.trouble(Trouble::Tables, vec![format!("{step}: {error:#}")]),
        }
        self.track_vrrp();
    }

    /// Runs what leads from what was done to what is wanted; returns the steps.
    async fn run_plan(&mut self) -> Result<Vec<plan::Step>, Failed> {
        self.net.watch(self.director.watched());
        self.guard();
        let wanted = self.director.layout();
        let steps = plan::diff(self.applier.done(), wanted);
        let denied = deny::newly_denied(&steps, self.applier.done());
        let kept = deny::newly_kept(&steps, self.applier.done());
        // What the kernel sends from an address must be seen before the address can be a backup's.
        let vrrp = !wanted.vrrp.is_empty();
        let egress = self.dataplane.set_egress(vrrp);
        let result = if steps.is_empty() { Ok(()) } else { self.applier.run(&steps, wanted).await };
        if !steps.is_empty() {
            self.watched.forget_places();
        }
        self.unfinished = result.is_err();
        result?;
        self.end_denied(denied);
        self.shorten_persistence(kept);
        egress.map_err(|error| Failed { step: "attach the egress program".into(), error: error.into() })?;
        if !vrrp {
            self.remove_idle_qdiscs().await;
        }
        // Without an interface there is no lease that another interface's answers would break.
        let leased = vrrp && !self.running.interfaces.is_empty();
        self.settle_arp(leased)
            .map_err(|error| Failed { step: "set which interface answers ARP".into(), error })?;
        if !self.recovered {
            self.applier
                .finish_recovery()
                .await
                .map_err(|error| Failed { step: "remove what an earlier run left".into(), error })?;
            self.recovered = true;
        }
        self.follow_real_path().await;
        Ok(steps)
    }

    /// Qdiscs that were made for the egress program and that nobody uses go with it. One that somebody else put a filter
    /// on meanwhile stays, and is looked at again with the next plan.
    async fn remove_idle_qdiscs(&self) {
        let idle = self.dataplane.idle_qdiscs().unwrap_or_else(|error| {
            tracing::warn!("{error}");
            Vec::new()
        });
        for ifindex in idle {
            match self.net.remove_idle_clsact(ifindex).await {
                Ok(true) => {
                    if let Err(error) = self.dataplane.forget_qdisc(ifindex) {
                        tracing::warn!("{error}");
                    }
                }
                Ok(false) => {}
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
    }

    async fn tick(&mut self) {
        if self.tick_drains() || self.unfinished || !self.recovered {
            self.enforce().await;
        }
        self.save_health();
        // Servers that answer new connections badly, and weights that follow latencies.
        self.witness();
        if self.judge(Instant::now()) {
            self.enforce().await;
        }
        self.check_forwarding();
        if let Err(error) = self.applier.maintain().await {
            self.trouble(Trouble::Host, vec![format!("{error:#}")]);
        }
        self.track_vrrp();
        self.follow_metrics().await;
        let status = self.status_line();
        self.tell(&[NotifyState::Status(&status)]);
    }

    /// Replaces what was said of one place; says it once in the log.
    fn trouble(&mut self, place: Trouble, problems: Vec<String>) {
        let before = self.problems.remove(&place).unwrap_or_default();
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::error!("{problem}");
        }
        if !problems.is_empty() {
            self.problems.insert(place, problems);
        }
    }

    /// What interfaces received and sent; nothing where the kernel does not say.
    async fn link_counters(&self) -> BTreeMap<String, LinkCounters> {
        self.net.link_counters().await.unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            BTreeMap::new()
        })
    }

    fn tell(&self, state: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(state) {
            tracing::debug!(%error, "systemd does not listen");
        }
    }

    fn tell_reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no monotonic time for systemd"),
        }
    }

    /// What the Director's `shutdown` says.
    async fn shut_down(mut self) -> Result<()> {
        self.tell(&[NotifyState::Stopping]);
        self.save_health();
        if let Err(error) = self.close_real_path().await {
            tracing::warn!("{error:#}");
        }
        let shutdown =
            self.director.objects().director().map_or(self.running.shutdown, |director| director.shutdown);
        self.stop_vrrp(shutdown.traffic == OnShutdown::Release).await;
        match shutdown.traffic {
            OnShutdown::Keep => tracing::info!("stopped; traffic flows on"),
            OnShutdown::Release => {
                let withdrawn = self.applier.withdraw_all().await;
                tracing::info!("addresses taken away; {:?} until the program goes", shutdown.wait);
                tokio::time::sleep(shutdown.wait).await;
                self.dataplane.detach_all()?;
                self.remove_idle_qdiscs().await;
                self.settle_arp(false)?;
                withdrawn?;
                tracing::info!("stopped; the program is detached");
            }
        }
        Ok(())
    }
}

async fn changed(watch: &mut Option<Watch>) -> Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Requests that wait for the agent; whoever sends more waits. Each is answered in milliseconds.
const REQUESTS: usize = 64;
/// How often what was removed is looked after.
const TICK: Duration = Duration::from_secs(1);
/// How long the answer to `apply` waits for the ways to new real servers: an ARP exchange takes less than a
/// millisecond, and its repetition comes after a second.
const APPLY_WAIT: Duration = Duration::from_millis(500);
/// How often the sweeper walks the table.
const SWEEP: Duration = Duration::from_secs(1);
