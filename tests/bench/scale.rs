//! What the agent does at its stated size: ten thousand services, fifty thousand real servers, half a million bindings;
//! a change of one weight in a service of a thousand; and what the tables take.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_agent::control::Outcome;
use lb_agent::control::client::Client;
use lb_agent::control::health::{Operation, ServerOrder};
use lb_agent::dataplane::Sizes;
use lb_agent::manifest::Source;
use lb_tests::{Agent, Topology, wait};
use serde::Serialize;
use serde_json::Value;

const SERVICES: usize = 10_000;
/// Different ones; each stands behind ten services.
const REAL_SERVERS: usize = 50_000;
const SERVERS_OF_A_SERVICE: usize = 50;
/// Services in one manifest file.
const IN_A_FILE: usize = 1000;
const SOON: Duration = Duration::from_secs(300);

/// All parts.
#[derive(Debug, Serialize)]
pub struct Scale {
    pub orders: Vec<Order>,
    pub weights: Vec<Weight>,
    pub memory: Vec<Memory>,
}

/// One order with all services there.
#[derive(Debug, Serialize)]
pub struct Order {
    pub name: &'static str,
    pub seconds: f64,
    /// Steps of the plan.
    pub steps: usize,
    /// Elements of BPF maps that the agent wrote.
    pub map_writes: u64,
    /// Resident memory of the agent afterwards, MiB.
    pub agent_mebibytes: u64,
}

/// One weight changed in a service of so many real servers.
#[derive(Debug, Serialize)]
pub struct Weight {
    pub scheduler: &'static str,
    pub servers: usize,
    /// By what: `lb-agent weigh`, or `apply` of the whole manifest.
    pub order: &'static str,
    /// From the order's first byte on the agent's socket to its answer, milliseconds.
    pub least: f64,
    pub median: f64,
    pub most: f64,
    /// Of the plan; `weigh` does not tell.
    pub steps: Option<usize>,
    pub map_writes: Option<u64>,
}

/// Memory of one kind of thing.
#[derive(Debug, Serialize)]
pub struct Memory {
    pub of: String,
    pub bytes: f64,
}

pub fn run(quick: bool, progress: impl Fn(&str)) -> Result<Scale> {
    progress("one weight of a thousand");
    let weights = weights(if quick { 3 } else { 11 })?;
    let orders = orders(&progress)?;
    Ok(Scale { orders, weights, memory: memory() })
}

fn config(services: usize, bindings: usize) -> String {
    format!(
        "apiVersion: lb/v1\nkind: Director\nmetadata: {{name: director-a}}\nspec:\n  interfaces: [{{name: eth0}}]\n  \
         connections: {{max: 65536}}\n  capacity: {{services: {services}, realServers: {bindings}}}\n"
    )
}

/// Real servers beyond a router, so that fifty thousand of them are one neighbour.
fn topology() -> Topology {
    let topology = Topology::builder().servers(1).clients(0).build();
    let gateway = topology.servers[0].v4();
    topology.director().namespace.ip(&format!("route add 10.64.0.0/10 via {gateway}"));
    topology
}

fn orders(progress: &impl Fn(&str)) -> Result<Vec<Order>> {
    let topology = topology();
    let mut agent = Agent::start(&topology.director().namespace, &config(16_384, 524_288));
    let directory = topology.director().namespace.directory().join("manifests-at-scale");
    std::fs::create_dir_all(&directory).context("make a directory")?;
    let path = directory.to_str().context("a temporary path is text")?.to_owned();
    let mut orders = Vec::new();
    for (name, edit) in [
        ("cold", Edit::None),
        ("unchanged", Edit::None),
        ("one weight", Edit::Weight),
        ("one server less", Edit::Removed),
        ("and back", Edit::None),
    ] {
        progress(&format!("{SERVICES} services, {} bindings: {name}", SERVICES * SERVERS_OF_A_SERVICE));
        for file in 0..SERVICES / IN_A_FILE {
            let text = manifests(file * IN_A_FILE..(file + 1) * IN_A_FILE, edit);
            std::fs::write(directory.join(format!("{file:03}.yaml")), text).context("write the manifests")?;
        }
        let start = Instant::now();
        let text = agent.cli(&["apply", "-f", &path, "-o", "json"]).expect_success();
        let seconds = start.elapsed().as_secs_f64();
        let outcome: Value = serde_json::from_str(&text).context("the agent writes JSON")?;
        let map_writes = outcome["mapWrites"].as_u64().context("no mapWrites in the outcome")?;
        let steps = outcome["steps"].as_array().context("no steps in the outcome")?.len();
        match name {
            "cold" => {}
            "unchanged" => {
                ensure!((steps, map_writes) == (0, 0), "{name}: {steps} steps, {map_writes} writes")
            }
            _ => ensure!((1..=4).contains(&steps), "{name}: {steps} steps: {}", outcome["steps"]),
        }
        // Ways are resolved after the order; what they let in is not the next order's work.
        ensure!(wait::holds_within(SOON, || all_up(&agent)), "not all services came up");
        let pid = agent.process().pid();
        orders.push(Order { name, seconds, steps, map_writes, agent_mebibytes: resident(pid)? >> 20 });
    }
    Ok(orders)
}

#[derive(Clone, Copy, PartialEq)]
enum Edit {
    None,
    /// Of one real server of the first service.
    Weight,
    /// The last real server of the first service.
    Removed,
}

fn manifests(services: std::ops::Range<usize>, edit: Edit) -> String {
    let mut text = String::new();
    for number in services {
        let (high, low) = (number / 250, number % 250 + 1);
        let _ = write!(
            text,
            "---\napiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: service-{number}}}\nspec:\n  address: \
             10.100.{high}.{low}\n  ports: [80]\n  protocol: tcp\n  forwarding: tun\n  scheduler: wrr\n  realServers:\n"
        );
        for index in 0..SERVERS_OF_A_SERVICE {
            let server = real_server((number * SERVERS_OF_A_SERVICE + index) % REAL_SERVERS);
            match (number, index, edit) {
                (0, 0, Edit::Weight) => _ = writeln!(text, "  - {{address: {server}, weight: 2}}"),
                (0, 49, Edit::Removed) => {}
                _ => _ = writeln!(text, "  - {{address: {server}}}"),
            }
        }
    }
    text
}

fn real_server(number: usize) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0a40_0001 + number as u32)
}

fn all_up(agent: &Agent) -> bool {
    let text = agent.cli(&["get", "services", "-o", "json"]).expect_success();
    let services: Value = serde_json::from_str(&text).expect("the agent writes JSON");
    let mut all = services.as_array().into_iter().flatten();
    all.all(|service| service["state"] == "up")
}

/// Bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS is a number")?;
    Ok(kib << 10)
}

/// The service alone in the tables; its weights change one at a time, back and forth.
fn weights(rounds: usize) -> Result<Vec<Weight>> {
    let topology = topology();
    let agent = Agent::start(&topology.director().namespace, &config(16, 1 << 19));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let [_, (_, runtime_dir), _] = agent.environment();
    let client = Client::new(&runtime_dir);
    let mut rows = Vec::new();
    for (scheduler, servers) in [("wrr", 1000), ("sh", 1000), ("wlc", 1000), ("mh", 300), ("mh", 1000)] {
        let apply = |weight: u16| -> Result<Option<Outcome>> {
            let text = one_service(scheduler, servers, weight);
            let source = Source { file: "scale.yaml".into(), text };
            Ok(Some(runtime.block_on(client.apply(&[source], true, false))?))
        };
        let operate = |order: Operation| -> Result<Option<Outcome>> {
            let address = real_server(servers / 2).into();
            let order = ServerOrder { service: "large".into(), address, port: None, order };
            runtime.block_on(client.operate(&order))?;
            Ok(None)
        };
        let weigh = |weight: u16| operate(Operation::Weight(weight));
        apply(10)?;
        ensure!(wait::holds_within(SOON, || all_up(&agent)), "the service of {scheduler} is not up");
        type Order<'a> = &'a dyn Fn(u16) -> Result<Option<Outcome>>;
        for (order, run) in [("apply", &apply as Order<'_>), ("weigh", &weigh)] {
            let (mut times, mut last) = (Vec::new(), None);
            for round in 0..rounds {
                let start = Instant::now();
                last = run(9 - (round % 2) as u16)?;
                times.push(start.elapsed().as_secs_f64() * 1000.0);
            }
            times.sort_by(f64::total_cmp);
            let steps = last.as_ref().map(|outcome| outcome.steps.len());
            ensure!(steps.is_none_or(|steps| (1..=2).contains(&steps)), "{scheduler}: {last:?}");
            rows.push(Weight {
                scheduler,
                servers,
                order,
                least: times[0],
                median: times[times.len() / 2],
                most: times[times.len() - 1],
                steps,
                map_writes: last.map(|outcome| outcome.map_writes),
            });
        }
        operate(Operation::ResetWeight)?;
    }
    Ok(rows)
}

fn one_service(scheduler: &str, servers: usize, weight: u16) -> String {
    let mut text = format!(
        "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: large}}\nspec:\n  address: 10.100.0.1\n  ports: [80]\n  \
         protocol: tcp\n  forwarding: tun\n  scheduler: {scheduler}\n  realServers:\n"
    );
    for index in 0..servers {
        let weight = if index == servers / 2 { weight } else { 10 };
        let _ = writeln!(text, "  - {{address: {}, weight: {weight}}}", real_server(index));
    }
    text
}

/// By the sizes with which the maps are made: the kernel takes them whole when the agent first starts.
fn memory() -> Vec<Memory> {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let sizes = Sizes { connections: 1_000_000, connections_v6: 0, ..Sizes::default() };
    let of = |sizes: &Sizes, names: &[&str]| -> f64 {
        let specs = sizes.specs();
        let bytes = |spec: &lb_agent::dataplane::layout::Spec| {
            let per_cpu = if format!("{:?}", spec.kind) == "PerCpuArray" { cpus } else { 1 };
            (spec.value.next_multiple_of(8) * spec.entries as usize * per_cpu) as f64
        };
        specs.iter().filter(|spec| names.contains(&spec.name)).map(bytes).sum()
    };
    let flows = 1e6;
    let v6 = Sizes { connections_v6: 1_000_000, ..sizes };
    let bindings = f64::from(sizes.destinations);
    let mut rows = vec![
        ("a live flow, IPv4, dr and tun: table, empty places included", of(&sizes, &["CONNECTIONS"]) / flows),
        (
            "a live flow, IPv6, as many as the table holds: and cold tuples",
            of(&v6, &["CONNECTIONS", "COLD_TUPLES"]) / flows,
        ),
        ("a FULLNAT flow more: a lease", 64.0),
        ("a flow with an extension record more", 64.0),
        (
            "a binding: destination, load, rate, list of servers",
            of(&sizes, &["DESTINATIONS", "LOADS", "RATES", "SERVERS"]) / bindings,
        ),
        ("a binding, by CPU: traffic", of(&sizes, &["TRAFFIC"]) / bindings / cpus as f64),
        ("a service: record", of(&sizes, &["SERVICES"]) / f64::from(sizes.services)),
        ("a CPU: reasons", of(&sizes, &["REASONS"]) / cpus as f64),
        ("a place of the table in the agent: since when its flow is known", 8.0),
    ];
    let slots = |scheduler, servers| slots_of(scheduler, servers) as f64 * 4.0;
    rows.push(("slots of 10,000 services of 20 real servers, mh", 10_000.0 * slots("mh", 20)));
    rows.push((
        "slots of 10,000 services of 20 real servers, wrr of weights 1 to 20",
        10_000.0 * slots("wrr", 20),
    ));
    rows.into_iter().map(|(of, bytes)| Memory { of: of.to_owned(), bytes }).collect()
}

fn slots_of(scheduler: &str, servers: u16) -> usize {
    use lb_agent::model::{Scheduler, ServerKey};
    use lb_agent::scheduler::{Candidate, Rules, build};
    let scheduler = if scheduler == "mh" { Scheduler::Mh } else { Scheduler::Wrr };
    let candidate = |number: u16| Candidate {
        key: ServerKey { address: real_server(number.into()).into(), port: 80 },
        weight: number + 1,
        available: true,
    };
    let candidates: Vec<Candidate> = (0..servers).map(candidate).collect();
    let rules = Rules { scheduler, ipvs: false, vip: real_server(0).into() };
    build(&rules, &candidates).slots.len()
}

/// The rows as tables.
pub fn print(scale: &Scale) {
    println!(
        "{:<16} {:>9} {:>9} {:>11} {:>10}",
        "apply at scale", "seconds", "steps", "map writes", "agent MiB"
    );
    for Order { name, seconds, steps, map_writes, agent_mebibytes } in &scale.orders {
        println!("{name:<16} {seconds:>9.2} {steps:>9} {map_writes:>11} {agent_mebibytes:>10}");
    }
    println!();
    println!(
        "{:<12} {:>8} {:>6} {:>9} {:>9} {:>9} {:>7} {:>11}",
        "one weight", "servers", "by", "least ms", "median", "most", "steps", "map writes"
    );
    for Weight { scheduler, servers, order, least, median, most, steps, map_writes } in &scale.weights {
        let steps = steps.map_or("-".to_owned(), |steps| steps.to_string());
        let writes = map_writes.map_or("-".to_owned(), |writes| writes.to_string());
        println!(
            "{scheduler:<12} {servers:>8} {order:>6} {least:>9.1} {median:>9.1} {most:>9.1} {steps:>7} {writes:>11}"
        );
    }
    println!();
    println!("{:<70} {:>12}", "memory", "bytes");
    for Memory { of, bytes } in &scale.memory {
        println!("{of:<70} {bytes:>12.1}");
    }
}
