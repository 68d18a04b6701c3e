//! Metrics of the running agent. What only the agent's task knows it writes down in a moment; the
//! rest (the data plane's counters, the text) is work for a thread of its own, so that no scrape delays a check, an
//! order or VRRP. Whoever asks again within [`FRESH`] gets the same text.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_common::destination::Traffic;
use lb_common::lease::PoolAddress;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::health_views::state_of;
use super::vrrp::overview;
use super::{Agent, Trouble};
use crate::apply::destination_key;
use crate::control::views::RealServerState;
use crate::control::{self, Reply, Request};
use crate::dataplane::{Counters, Scan};
use crate::director::{Standing, binding_of};
use crate::health::monitor::lane::Lane;
use crate::health::state::Belief;
use crate::metrics::{
    self, AgentFacts, CheckFacts, Facts, Frames, InterfaceFacts, LaneFacts, Probing, ServerFacts,
    ServiceFacts, TableFacts,
};
use crate::model::{Name, RealServer, ServerKey, VirtualService};

type Text = watch::Receiver<Option<Arc<str>>>;

/// What the agent keeps for metrics.
pub(super) struct Metrics {
    /// The data plane's counters again, for the thread that reads them.
    counters: Arc<Counters>,
    /// To the agent itself, for those who ask by TCP.
    requests: mpsc::Sender<Request>,
    listener: Option<(SocketAddr, JoinHandle<()>)>,
    /// The last text, or the one that is being made, and since when.
    last: Option<(Instant, Text)>,
    /// How often other objects were taken up.
    pub generation: u64,
    /// Outcomes of probes.
    pub passed: u64,
    pub failed: u64,
}

impl Metrics {
    pub fn new(counters: Counters, requests: mpsc::Sender<Request>) -> Metrics {
        Metrics {
            counters: Arc::new(counters),
            requests,
            listener: None,
            last: None,
            generation: 0,
            passed: 0,
            failed: 0,
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some((_, task)) = self.listener.take() {
            task.abort();
        }
    }
}

impl Agent {
    /// Listens where the Director says. An address that cannot be had is told, and tried again.
    pub(super) async fn follow_metrics(&mut self) {
        let wanted = self.director.objects().director().and_then(|director| director.metrics);
        let listens = self.metrics.listener.as_ref().filter(|(_, task)| !task.is_finished());
        if listens.map(|(address, _)| *address) == wanted {
            return;
        }
        if let Some((_, task)) = self.metrics.listener.take() {
            task.abort();
            // The address is free again when the task has ended.
            let _ = task.await;
        }
        let mut problems = Vec::new();
        if let Some(address) = wanted {
            match control::metrics::serve(address, self.metrics.requests.clone()).await {
                Ok(task) => self.metrics.listener = Some((address, task)),
                Err(error) => problems.push(format!("metrics: {error:#}")),
            }
        }
        self.trouble(Trouble::Metrics, problems);
    }

    pub(super) fn metrics(&mut self, reply: Reply<Arc<str>>) {
        let now = Instant::now();
        let usable = |at: Instant, text: &Text| match *text.borrow() {
            Some(_) => now.saturating_duration_since(at) < FRESH,
            // One at a time, unless it came to no end.
            None => text.has_changed().is_ok(),
        };
        let mut text = match &self.metrics.last {
            Some((at, text)) if usable(*at, text) => text.clone(),
            _ => {
                let text = self.gather();
                self.metrics.last = Some((now, text.clone()));
                text
            }
        };
        // Ends with the text; whoever asked may be gone.
        tokio::spawn(async move {
            if let Ok(text) = text.wait_for(Option::is_some).await
                && let Some(text) = text.clone()
            {
                let _ = reply.send(text);
            }
        });
    }

    fn gather(&self) -> Text {
        let mut facts = self.facts();
        let rest = Rest {
            counters: self.metrics.counters.clone(),
            scan: self.dataplane.board().latest(),
            pool: self.dataplane.pool().unwrap_or_default(),
        };
        let driver = self.director.objects().vrrp_instances().next().map(|_| self.vrrp.driver.clone());
        let (ready, text) = watch::channel(None);
        let net = self.net.clone();
        tokio::spawn(async move {
            match net.link_counters().await {
                Ok(counters) => {
                    for interface in &mut facts.agent.interfaces {
                        interface.frames = counters.get(&interface.name).copied();
                    }
                }
                Err(error) => tracing::warn!("metrics: {error:#}"),
            }
            if let Some(driver) = driver {
                facts.vrrp = driver.look().await.map(overview).unwrap_or_default();
            }
            let rendered = tokio::task::spawn_blocking(move || {
                rest.fill(&mut facts);
                metrics::render(facts)
            });
            match rendered.await {
                Ok(rendered) => drop(ready.send(Some(rendered.into()))),
                Err(error) => tracing::error!("metrics: {error}"),
            }
        });
        text
    }

    /// What the agent's task knows.
    fn facts(&self) -> Facts {
        let objects = self.director.objects();
        let mut facts = Facts { agent: self.agent_facts(), probing: self.probing(), ..Facts::default() };
        for (service, _) in objects.services() {
            let first = facts.servers.len();
            facts
                .servers
                .extend(service.real_servers.iter().map(|server| self.server_facts(service, server)));
            let judgement = self.health.roster.judgement(&service.name);
            let with_weight = |server: &&ServerFacts| server.takes_new && server.weight > 0;
            facts.services.push(ServiceFacts {
                name: service.name.to_string(),
                servers: service.real_servers.len() as u32,
                servers_in: facts.servers[first..].iter().filter(with_weight).count() as u32,
                live: judgement.map_or(0, |judgement| judgement.live),
                quorum: service.health.quorum.weight,
                sorry: judgement.is_some_and(|judgement| judgement.sorry),
            });
            if let Some(sorry) = service.health.sorry_server.as_deref() {
                let mut server = self.server_facts(service, sorry);
                if server.takes_new && !judgement.is_some_and(|judgement| judgement.sorry) {
                    server =
                        ServerFacts { takes_new: false, state: RealServerState::Standby.word(), ..server };
                }
                server.effective_weight = f64::from(u8::from(server.takes_new));
                facts.servers.push(server);
            }
            facts.servers.extend(self.gone(service));
            facts
                .checks
                .extend(service.real_servers.iter().flat_map(|server| self.check_facts(service, server)));
        }
        facts.servers = metrics::merge(facts.servers);
        facts
    }

    fn agent_facts(&self) -> AgentFacts {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let problems = self.problems.values().map(Vec::len).sum::<usize>();
        AgentFacts {
            version: env!("CARGO_PKG_VERSION").into(),
            director: self.running.name.to_string(),
            kernel: self.kernel.clone(),
            started: since_1970.saturating_sub(self.started.elapsed()).as_secs_f64(),
            generation: self.metrics.generation,
            unfinished: self.unfinished,
            problems: problems + self.health.monitor.load().late().count(),
            events: self.events.latest(),
            interfaces: self
                .interface_views(&BTreeMap::new())
                .into_iter()
                .map(|view| InterfaceFacts { name: view.name, mode: view.mode, ..InterfaceFacts::default() })
                .collect(),
        }
    }

    fn probing(&self) -> Probing {
        let load = self.health.monitor.load();
        Probing {
            lanes: Lane::ALL
                .into_iter()
                .zip(&load.lanes)
                .map(|(lane, load)| LaneFacts {
                    kind: lane.name(),
                    checks: load.checks,
                    running: load.running,
                    stretch: load.stretch,
                })
                .collect(),
            begun: load.probes,
            passed: self.metrics.passed,
            failed: self.metrics.failed,
        }
    }

    fn server_facts(&self, service: &VirtualService, server: &RealServer) -> ServerFacts {
        let binding = binding_of(service, server);
        let verdict = self.verdict(service, server);
        let state = match self.director.standing(service, server) {
            Standing::Resolving { .. } => RealServerState::Resolving,
            Standing::Out { .. } => RealServerState::Out,
            Standing::In { .. } if self.drains.get(&service.name, service.key_of(server)).is_some() => {
                RealServerState::Draining
            }
            Standing::In { .. } => match verdict {
                Some(verdict) if !verdict.standing.takes_new() => state_of(verdict.standing),
                _ if server.weight == 0 => RealServerState::Draining,
                _ => RealServerState::In,
            },
        };
        let takes_new = state == RealServerState::In;
        let effective =
            verdict.map_or(f64::from(server.weight), |verdict| f64::from(verdict.weight) / 1000.0);
        let tables = self.applier.tables();
        let destination = |name: &Name| tables.destination(&destination_key(name, &binding));
        ServerFacts {
            service: service.name.to_string(),
            server: service.key_of(server).to_string(),
            weight: server.weight,
            effective_weight: if takes_new { effective } else { 0.0 },
            state: state.word(),
            takes_new,
            destinations: service.table_names().iter().filter_map(destination).collect(),
            ..ServerFacts::default()
        }
    }

    /// Those that the manifest has no more and that are not forgotten yet.
    fn gone(&self, service: &VirtualService) -> Vec<ServerFacts> {
        let removed = |mut server: ServerFacts| {
            (server.weight, server.takes_new, server.effective_weight) = (0, false, 0.0);
            server.state = RealServerState::Removed.word();
            server
        };
        let drains = self.drains.removed_of(&service.name);
        let mut gone: Vec<ServerFacts> =
            drains.map(|drain| removed(self.server_facts(service, &drain.server))).collect();
        for name in service.table_names() {
            let destinations = self.applier.tables().removed_destinations_of(&name).into_iter();
            gone.extend(destinations.map(|(key, index)| {
                let port = Some(key.port).filter(|port| *port != 0).or(service.ports.single());
                let key = ServerKey { address: key.address, port: port.unwrap_or(0) };
                removed(ServerFacts {
                    service: service.name.to_string(),
                    server: key.to_string(),
                    destinations: vec![index],
                    ..ServerFacts::default()
                })
            }));
        }
        gone
    }

    fn check_facts(&self, service: &VirtualService, server: &RealServer) -> Vec<CheckFacts> {
        let checks = self.health.roster.checks_of(service, server).into_iter();
        checks
            .map(|check| CheckFacts {
                service: service.name.to_string(),
                server: service.key_of(server).to_string(),
                check: check.assignment.check.probe.to_string(),
                target: check.assignment.target.to_string(),
                up: match check.machine.belief() {
                    Belief::Unknown { .. } => None,
                    belief => Some(belief.up()),
                },
                latency: check.machine.latency().map(|latency| latency.as_secs_f64()),
            })
            .collect()
    }
}

/// What is read apart from the agent's task.
struct Rest {
    counters: Arc<Counters>,
    scan: Option<Arc<Scan>>,
    pool: Vec<PoolAddress>,
}

impl Rest {
    fn fill(&self, facts: &mut Facts) {
        let frames = self
            .counters
            .reasons()
            .and_then(|reasons| Ok(Frames { reasons, retired: self.counters.retired()? }));
        match frames {
            Ok(frames) => facts.frames = Some(frames),
            Err(error) => tracing::warn!("metrics: read the counters: {error}"),
        }
        for server in &mut facts.servers {
            for index in &server.destinations {
                let count = self.scan.as_ref().map(|scan| scan.count(*index)).unwrap_or_default();
                server.active += u64::from(count.active);
                server.inactive += u64::from(count.inactive);
                let templates = self.scan.as_ref().and_then(|scan| scan.templates.get(*index as usize));
                server.persistent += u64::from(templates.copied().unwrap_or_default());
                if let Ok(more) = self.counters.destination(*index) {
                    let sum = server.traffic.get_or_insert_with(Traffic::default);
                    sum.packets_in += more.packets_in;
                    sum.bytes_in += more.bytes_in;
                    sum.packets_out += more.packets_out;
                    sum.bytes_out += more.bytes_out;
                }
            }
        }
        facts.table = self.scan.as_ref().map(|scan| self.table(scan));
    }

    fn table(&self, scan: &Scan) -> TableFacts {
        let in_use = |address: &PoolAddress| address.family != 0;
        let leases = self.pool.iter().zip(&scan.leases).filter(|(address, _)| in_use(address));
        TableFacts {
            sweeps: scan.number,
            took: scan.took.as_secs_f64(),
            age: scan.began.elapsed().saturating_sub(scan.took).as_secs_f64(),
            entries: scan.entries,
            capacity: scan.capacity,
            expired: scan.expired,
            templates: scan.templates.iter().map(|count| u64::from(*count)).sum(),
            leases: leases.map(|(address, ports)| (ip_of(address), u64::from(*ports))).collect(),
        }
    }
}

fn ip_of(address: &PoolAddress) -> IpAddr {
    address.address.to_ip(address.family == 6)
}

/// How long a text counts as new: a scraper asks every few seconds, and several may.
const FRESH: Duration = Duration::from_secs(1);
