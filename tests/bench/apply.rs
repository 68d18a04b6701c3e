//! How long `lb-agent apply` takes with ten thousand virtual services: cold, unchanged, and with one weight
//! changed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{Agent, Topology, wait};
use serde::Serialize;
use serde_json::Value;

const SERVICES: usize = 10_000;
/// Real servers of each service.
const SERVERS: u8 = 3;
/// The services are up when all neighbours are resolved.
const SOON: Duration = Duration::from_secs(60);

const CONFIG: &str = "apiVersion: lb/v1
kind: Director
metadata: {name: director-a}
spec:
  interfaces: [{name: eth0}]
  connections: {max: 65536}
  capacity: {services: 16384, realServers: 65536}
";

/// One order.
#[derive(Debug, Serialize)]
pub struct Order {
    pub name: &'static str,
    pub services: usize,
    /// Wall time of the command, start to end.
    pub seconds: f64,
    /// Elements of BPF maps that the agent wrote.
    pub map_writes: u64,
}

/// The orders one after another.
pub fn run(progress: impl Fn(&str)) -> Result<Vec<Order>> {
    let topology = Topology::builder().servers(SERVERS).clients(0).build();
    let agent = Agent::start(&topology.director().namespace, CONFIG);
    let file = topology.director().namespace.directory().join("services.yaml");
    let mut orders = Vec::new();
    for (name, weight) in [("cold", 1), ("unchanged", 1), ("one weight", 2)] {
        progress(&format!("applying {SERVICES} services: {name}"));
        std::fs::write(&file, manifests(&topology, weight)).context("write the manifests")?;
        let path = file.to_str().context("a temporary path is text")?;
        let start = Instant::now();
        let text = agent.cli(&["apply", "-f", path, "-o", "json"]).expect_success();
        let seconds = start.elapsed().as_secs_f64();
        let outcome: Value = serde_json::from_str(&text).context("the agent writes JSON")?;
        let map_writes = outcome["mapWrites"].as_u64().context("no mapWrites in the outcome")?;
        let changes = outcome["plan"].as_array().context("no plan in the outcome")?.len();
        let wanted = match name {
            "cold" => SERVICES,
            "unchanged" => 0,
            _ => 1,
        };
        ensure!(changes == wanted, "{name}: {changes} objects changed, not {wanted}");
        ensure!((map_writes == 0) == (wanted == 0), "{name}: {map_writes} elements were written");
        orders.push(Order { name, services: SERVICES, seconds, map_writes });
        // Neighbours are resolved after the order; what they let in is not the next order's work.
        ensure!(wait::holds_within(SOON, || all_up(&agent)), "not all services came up");
    }
    Ok(orders)
}

/// All services in one file; `weight` is that of one real server of the first, the others have 1.
fn manifests(topology: &Topology, weight: u16) -> String {
    let mut text = String::new();
    for number in 0..SERVICES {
        let (high, low) = (number / 250, number % 250 + 1);
        let _ = write!(
            text,
            "---
apiVersion: lb/v1
kind: VirtualService
metadata: {{name: service-{number}}}
spec:
  address: 10.100.{high}.{low}
  ports: [80]
  protocol: tcp
  forwarding: dr
  scheduler: wrr
  realServers:
"
        );
        for (index, server) in topology.servers.iter().enumerate() {
            let weight = if number == 0 && index == 0 { weight } else { 1 };
            let _ = writeln!(text, "    - {{address: {}, weight: {weight}}}", server.v4());
        }
    }
    text
}

fn all_up(agent: &Agent) -> bool {
    let text = agent.cli(&["get", "services", "-o", "json"]).expect_success();
    let services: Value = serde_json::from_str(&text).expect("the agent writes JSON");
    services.as_array().is_some_and(|services| {
        services.len() == SERVICES && services.iter().all(|service| service["state"] == "up")
    })
}

/// The rows as a table.
pub fn print(orders: &[Order]) {
    println!("{:<20} {:>9} {:>9} {:>11}", "apply", "services", "seconds", "map writes");
    for order in orders {
        println!("{:<20} {:>9} {:>9.2} {:>11}", order.name, order.services, order.seconds, order.map_writes);
    }
}
