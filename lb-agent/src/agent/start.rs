//! From nothing to a running agent. The order matters: what can be wrong is found before anything is touched;
//! the data plane is taken over with its connections; and no slot table is written before the ways to real
//! servers had a moment to become known.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;

use super::lists::Lists;
use super::metrics::Metrics;
use super::vrrp::Vrrp;
use super::{Agent, RunOptions, SWEEP, Trouble, check_files, health, host};
use crate::apply::{Applier, way_of_record};
use crate::control::Request;
use crate::dataplane::{self, Dataplane, Interface, Packets, Sizes, Tables, XdpMode};
use crate::director::{Desired, Director, Drains, Event};
use crate::doctor;
use crate::events::{Events, SinkTasks};
use crate::manifest::{self, Objects, Report, Source};
use crate::model::{self, NextHop};
use crate::net::{self, Net};
use crate::state::StateDirectory;

/// Starts everything but the API.
pub async fn start(
    options: RunOptions,
    requests: mpsc::Sender<Request>,
) -> Result<(Agent, mpsc::UnboundedReceiver<net::Event>, health::Reports)> {
    let started = Instant::now();
    let running = director_of(&options.config)?;
    complain_of_host(&options, &running);
    let state = StateDirectory::open(&options.state_dir)?;
    let lock = state.lock()?;
    let (net, mut network) = Net::start().await?;
    let facts = net.host_facts().await?;
    let mut problems = BTreeMap::new();
    let files = files(&options, &state, &host::facts(&facts), &mut problems)?;
    let desired = restore(files, &state, &mut problems)?;

    let vrrp = Vrrp::start(&options.runtime_dir, &desired.joined())?;
    let dataplane = open(&options, &running, &facts.links)?;
    let tables = dataplane.tables()?;
    let mut director = Director::default();
    let (ways, gateways) = known_ways(&tables);
    director.recover(ways, gateways);
    director.handle(Event::Outputs(outputs(&dataplane)));
    director.handle(Event::Objects(desired.joined()));
    let (health, mut reports, problem) = health::Health::start(&state)?;
    if let Some(problem) = problem {
        tracing::error!("{problem}");
        problems.insert(Trouble::Health, vec![problem]);
    }

    let events = Events::open(&options.state_dir)?;
    let sinks = SinkTasks::start(events.clone());
    let applier = Applier::new(tables, net.clone(), dataplane.clock().hz());
    let sweeper = dataplane.sweeper(SWEEP)?;
    let metrics = Metrics::new(dataplane.counters()?, requests);
    let mut agent = Agent {
        counters: dataplane.counters()?,
        _sweeper: sweeper,
        _lock: lock,
        options,
        started,
        kernel: facts.kernel,
        dataplane,
        applier,
        net,
        state,
        director,
        health,
        real_paths: Default::default(),
        watched: Default::default(),
        desired,
        drains: Drains::default(),
        ebbs: Default::default(),
        lists: Default::default(),
        events,
        sinks,
        vrrp,
        metrics,
        arp_settled: None,
        running,
        links: facts.links,
        recovered: false,
        unfinished: false,
        problems,
        waiting: Vec::new(),
    };
    agent.restore_lists(Lists::of_texts(agent.state.load_lists()?));
    let read = agent.read_lists(&agent.director.objects().clone()).map_err(anyhow::Error::msg)?;
    agent.use_lists(read);
    agent.save_lists();
    agent.set_sinks();
    agent.set_vrrp();
    agent.give_words_to_vrrp();
    agent.restore_drains();
    let objects = agent.director.objects().clone();
    agent.set_checks(&objects);
    agent.learn(&mut network, &mut reports).await;
    agent.enforce().await;
    agent.track_vrrp();
    let services = agent.director.objects().services().count();
    tracing::info!("started in {:?}: {services} virtual services", started.elapsed());
    Ok((agent, network, reports))
}

/// What the host lacks, a line of the log each. What it cannot do without says so again when it is needed.
fn complain_of_host(options: &RunOptions, director: &model::Director) {
    let interfaces: Vec<String> =
        director.interfaces.iter().map(|interface| interface.name.clone()).collect();
    // VRRP alone needs no interface with the program.
    if interfaces.is_empty() {
        return;
    }
    match doctor::examine(&options.bpffs_dir, &interfaces) {
        Ok(report) => report.failures().for_each(|sentence| tracing::warn!("this host: {sentence}")),
        Err(error) => tracing::warn!("look at this host: {error:#}"),
    }
}

impl Agent {
    /// Waits until the ways to all real servers are known or known to be bad, and every check has had an outcome or
    /// had one in an earlier run, for [`FIRST_WAIT`] and [`FIRST_CHECKS`] at most. Until then the tables have what the
    /// earlier run left: a new agent does not empty a pool that it knows nothing of. Checks on the real path begin as
    /// soon as the ways are known, where the tables have their servers from an earlier run. Where they do not, nobody
    /// waits for them: they can only be made when the first plan has run, and there is no pool to empty.
    async fn learn(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<net::Event>,
        reports: &mut health::Reports,
    ) {
        self.net.watch(self.director.watched());
        let now = tokio::time::Instant::now();
        let (ways, checks) = (now + FIRST_WAIT, now + FIRST_CHECKS);
        let mut followed = false;
        loop {
            let ways_known = self.director.all_answered();
            if ways_known && !std::mem::replace(&mut followed, ways_known) {
                self.follow_real_path().await;
            }
            let checks_known = self.health.roster.all_known(|target| self.is_probed(target));
            let deadline = match (ways_known, checks_known) {
                (true, true) => return,
                (false, true) => ways,
                (_, false) => checks,
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.note(event),
                    None => return,
                },
                batch = reports.next() => match batch {
                    Some(batch) => _ = self.take_reports(batch),
                    None => return,
                },
                () = tokio::time::sleep_until(deadline) => return,
            }
        }
    }
}

/// The Director of the configuration file.
fn director_of(config: &Path) -> Result<model::Director> {
    let sources = manifest::read_path(config)?;
    let parsed = manifest::parse(&sources);
    if !parsed.report.0.is_empty() {
        return Err(wrong(&parsed.report, &sources));
    }
    match parsed.objects.director() {
        Some(director) => Ok(director.clone()),
        None => bail!("{}: no Director in it; see `deploy/examples/director.yaml`", config.display()),
    }
}

/// The texts of the configuration file and the manifests directory.
pub fn sources(options: &RunOptions) -> Result<Vec<Source>, manifest::ReadError> {
    let mut sources = manifest::read_path(&options.config)?;
    if let Some(directory) = &options.manifests {
        sources.extend(manifest::read_path(directory)?);
    }
    Ok(sources)
}

/// The objects of the files. Where the directory's manifests are wrong, those of the last time they were right:
/// a host that was rebooted with a bad manifest is better off with the services of yesterday than with none.
fn files(
    options: &RunOptions,
    state: &StateDirectory,
    host: &manifest::HostFacts,
    problems: &mut BTreeMap<Trouble, Vec<String>>,
) -> Result<Objects> {
    let sources = sources(options)?;
    let report = match check_files(&sources, host) {
        Ok(objects) => {
            state.save_files(&sources)?;
            return Ok(objects);
        }
        Err(report) => report,
    };
    let Some(last) = state.load_files()? else { return Err(wrong(&report, &sources)) };
    // The configuration file is right by itself, and newer.
    let config = manifest::read_path(&options.config)?;
    let name = options.config.display().to_string();
    let last: Vec<Source> =
        config.into_iter().chain(last.into_iter().filter(|source| source.file != name)).collect();
    let Ok(objects) = check_files(&last, host) else { return Err(wrong(&report, &sources)) };
    tracing::error!("the manifests are wrong, those of the last time they were right are used:\n{report}");
    let said = report.0.iter().map(ToString::to_string).collect();
    problems.insert(Trouble::Files, said);
    Ok(objects)
}

/// Reads and checks manifests as a whole, against this host.
pub fn check_files(sources: &[Source], host: &manifest::HostFacts) -> Result<Objects, Report> {
    let objects = manifest::load(sources)?;
    let report = check_here(&objects, host);
    if report.0.is_empty() { Ok(objects) } else { Err(report) }
}

/// Checks objects against this host and this agent's tables.
pub fn check_here(objects: &Objects, host: &manifest::HostFacts) -> Report {
    let mut report = manifest::check_against_host(objects, host);
    report.0.extend(check_files::check(objects));
    let mut addresses = 0;
    for (pool, entry) in objects.pools() {
        addresses += pool.addresses().count();
        if addresses > POOL_ADDRESSES as usize {
            let message = format!(
                "all pools together have {addresses} addresses; the tables have room for {POOL_ADDRESSES}"
            );
            report.0.push(entry.diagnostic("spec.addresses", message, None));
            break;
        }
    }
    report
}

fn wrong(report: &Report, sources: &[Source]) -> anyhow::Error {
    // The lines `file:line:col: …` first, for whoever reads them by machine; then the pictures.
    anyhow::anyhow!("{report}\n\n{}", report.render(sources, false).trim_end())
}

/// The API's objects beside the files'.
fn restore(
    files: Objects,
    state: &StateDirectory,
    problems: &mut BTreeMap<Trouble, Vec<String>>,
) -> Result<Desired> {
    let stored = state.load_objects()?;
    let (desired, left) = Desired::restore(files, stored.objects);
    let mut said: Vec<String> = stored.report.0.iter().map(ToString::to_string).collect();
    for (entry, report) in &left {
        said.push(format!("{} does not fit any more and is left out: {report}", entry.object.id()));
    }
    if !left.is_empty() {
        state.save_rejected(&left)?;
    }
    for problem in &said {
        tracing::error!("{problem}");
    }
    if !said.is_empty() {
        problems.insert(Trouble::Stored, said);
    }
    Ok(desired)
}

fn open(options: &RunOptions, director: &model::Director, links: &[net::Link]) -> Result<Dataplane> {
    let interfaces: Result<Vec<Interface>, String> = interfaces(director, links).into_iter().collect();
    let dataplane = Dataplane::open(&dataplane::Options {
        // Tables of another size, for nobody's connections: they must not be in the way of a later start.
        bpffs_dir: match director.interfaces.is_empty() {
            true => options.bpffs_dir.join("vrrp-alone"),
            false => options.bpffs_dir.clone(),
        },
        interfaces: interfaces.map_err(anyhow::Error::msg)?,
        sizes: sizes(director),
        object: dataplane::OBJECT,
        answers_per_second: ANSWERS_PER_SECOND,
        packets: packets(director),
        recreate: options.recreate_tables,
    })
    .context("start the data plane")?;
    for attached in dataplane.attached() {
        let how = if attached.replaced { "taken over" } else { "attached" };
        tracing::info!("interface {}: XDP {how} in {} mode", attached.name, attached.mode.name());
        if let Some(refused) = &attached.refused {
            tracing::warn!("interface {}: {refused}", attached.name);
        }
    }
    Ok(dataplane)
}

/// What the program is loaded with.
fn packets(director: &model::Director) -> Packets {
    let model::TunnelSources { v4, v6 } = director.tunnel_sources;
    Packets { policies: director.packets.bits(), sources_v4: v4, sources_v6: v6 }
}

/// The Director's interfaces as they are now; the sentence of an error names one that is missing.
pub fn interfaces(director: &model::Director, links: &[net::Link]) -> Vec<Result<Interface, String>> {
    let interface = |wanted: &model::Interface| {
        let link = links.iter().find(|link| link.name == wanted.name);
        let link = link.ok_or_else(|| format!("interface {} does not exist", wanted.name))?;
        let above = link.controller.and_then(|index| links.iter().find(|above| above.index == index));
        if let Some(bond) = above.filter(|above| above.is_bond()) {
            return Err(format!(
                "interface {} belongs to the bond {}, whose program runs on all of its cards: list {} instead",
                wanted.name, bond.name, bond.name
            ));
        }
        let members = links.iter().filter(|member| link.is_bond() && member.controller == Some(link.index));
        let mode = match wanted.xdp {
            model::XdpMode::Auto => XdpMode::Auto,
            model::XdpMode::Native => XdpMode::Native,
            model::XdpMode::Generic => XdpMode::Generic,
        };
        let members = members.map(|member| member.index).collect();
        Ok(Interface { name: wanted.name.clone(), ifindex: link.index, mode, members })
    };
    director.interfaces.iter().map(interface).collect()
}

/// The interfaces that frames can leave by.
pub fn outputs(dataplane: &Dataplane) -> BTreeMap<u32, String> {
    dataplane.attached().iter().map(|attached| (attached.ifindex, attached.name.clone())).collect()
}

/// The tables' sizes for a Director.
pub fn sizes(director: &model::Director) -> Sizes {
    if director.interfaces.is_empty() {
        // Nothing will ever be in them.
        return Sizes {
            connections: 16,
            connections_v6: 4,
            services: 1,
            port_ranges: 16,
            destinations: 64,
            next_hops: 64,
            slots: 4096,
            pool_addresses: 1,
            ..Sizes::default()
        };
    }
    let real_servers = director.capacity.real_servers;
    Sizes {
        connections: director.connections_max,
        connections_v6: director.connections_max / 4,
        // One is the self-probe's.
        services: director.capacity.services.saturating_add(1),
        port_ranges: director.capacity.services.max(1024),
        // Removed ones keep their index until their last flow has ended.
        destinations: real_servers
            .saturating_add(real_servers / 4)
            .saturating_add(64)
            .min(lb_common::connection::MAX_DESTINATIONS),
        // On a flat network every real server is a neighbour of its own.
        next_hops: real_servers.saturating_add(512).min(1 << 20),
        slots: real_servers.saturating_mul(32).max(1 << 21),
        pool_addresses: POOL_ADDRESSES,
        extensions: (director.connections_max / dataplane::EXTENDED_SHARE).max(1024),
    }
}

type Ways = Vec<(IpAddr, NextHop)>;
type Gateways = Vec<((IpAddr, u32), NextHop)>;

/// The ways that the tables' records still know.
fn known_ways(tables: &Tables) -> (Ways, Gateways) {
    let servers = tables.ways_to_servers().into_iter();
    let clients = tables.ways_to_clients().into_iter();
    let ways = servers.map(|(address, key, hop)| (address, way_of_record(&key, &hop, address.is_ipv6())));
    let gateways = clients
        .map(|(key, hop)| ((key.neighbour, key.ifindex), way_of_record(&key, &hop, key.neighbour.is_ipv6())));
    (ways.collect(), gateways.collect())
}

/// How long the first slot tables wait for the ways to real servers.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// How long the start waits for the first outcomes of checks: one probe at the default interval, and its answer.
const FIRST_CHECKS: Duration = Duration::from_secs(3);
/// ICMP errors and resets that a CPU sends in a second.
const ANSWERS_PER_SECOND: u32 = 1000;
/// Local addresses for FULLNAT: 4 MiB of leases each.
pub const POOL_ADDRESSES: u32 = 16;
