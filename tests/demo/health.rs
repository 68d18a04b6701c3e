//! The scene "a real server dies and comes back": a client keeps requesting while nginx is killed and started again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_tests::canary::Canary;
use lb_tests::{Agent, Host, Nginx, Topology, http, wait};

use crate::interrupt;

/// Plays it once; a line each for the summary.
pub fn play() -> Result<Vec<String>> {
    let style = anstyle::Style::new().bold();
    anstream::println!(
        "\n{style}A real server dies and comes back{style:#}  checks every 200 ms, rise 2, fall 3; a client keeps requesting"
    );
    let topology = Topology::builder().servers(3).build();
    topology.replies_through_director();
    let mut nginx: Vec<Nginx> = topology.servers.iter().map(start).collect();
    let agent = Agent::start(&topology.director().namespace, &manifest(&topology));
    interrupt::check()?;
    let victim = &topology.servers[1];
    until(&agent, victim, "in")?;
    let socket = SocketAddr::new(topology.vip_v4(0).into(), 80);
    let client = &topology.client().namespace;
    let shares = |when: &str| -> Result<String> {
        let outcomes = http::get_in_turn(client, &http::url(socket, "/"), 30).map_err(anyhow::Error::msg)?;
        let shares: Vec<String> =
            http::shares(&outcomes).iter().map(|(server, count)| format!("{server} {count}")).collect();
        Ok(format!("{when}: {}", shares.join(", ")))
    };
    let before = shares("before")?;
    let canary = Canary::start(client, socket);
    std::thread::sleep(Duration::from_millis(300));
    let killed = Instant::now();
    nginx[1].kill();
    until(&agent, victim, "down")?;
    let detected = killed.elapsed();
    let during = shares("while it is dead")?;
    ensure!(!during.contains("server1"), "a dead server answered: {during}");
    nginx[1] = start(victim);
    let started = Instant::now();
    until(&agent, victim, "in")?;
    let back = started.elapsed();
    std::thread::sleep(Duration::from_millis(300));
    let report = canary.stop();
    let after = shares("after")?;
    ensure!(after.contains("server1"), "it is not back: {after}");
    let lines = vec![
        format!(
            "real server dies: out of the pool {} ms after the kill, back {} ms after its start; {} of {} requests failed",
            detected.as_millis(),
            back.as_millis(),
            report.failed,
            report.requests
        ),
        format!("{before}; {during}; {after}"),
    ];
    for line in &lines {
        anstream::println!("  {line}");
    }
    anstream::println!("{}", agent.cli(&["events"]).expect_success().trim_end());
    Ok(lines)
}

fn start(server: &Host) -> Nginx {
    Nginx::start(&server.namespace, server.namespace.role(), &[80])
}

fn until(agent: &Agent, server: &Host, state: &str) -> Result<()> {
    let address = server.v4().to_string();
    let came = wait::holds_within(Duration::from_secs(20), || {
        let text = agent.cli(&["get", "real-servers", "-o", "json"]).expect_success();
        let servers: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
        servers.iter().any(|server| server["address"] == address.as_str() && server["state"] == state)
    });
    ensure!(came, "{address} did not become `{state}`");
    Ok(interrupt::check()?)
}

fn manifest(topology: &Topology) -> String {
    let vip = topology.vip_v4(0);
    let servers: String =
        topology.servers.iter().map(|server| format!("    - {{address: {}}}\n", server.v4())).collect();
    format!(
        "{}---
apiVersion: lb/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  address: {vip}
  addressInterface: eth0
  ports: [80]
  protocol: tcp
  forwarding: nat
  scheduler: rr
  healthCheck: {{http: {{}}, interval: 200ms, timeout: 200ms, rise: 2, fall: 3}}
  realServers:
{servers}",
        crate::scenes::DIRECTOR
    )
}
