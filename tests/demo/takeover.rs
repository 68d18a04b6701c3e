//! The scene "the master director dies": two directors share a VIP by VRRP, a client keeps requesting, and the master
//! is killed, or loses its cable.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_tests::canary::Canary;
use lb_tests::{Agent, Host, Nginx, Topology, wait};

use crate::interrupt;

/// Plays it twice; a line each for the summary.
pub fn play() -> Result<Vec<String>> {
    let style = anstyle::Style::new().bold();
    anstream::println!(
        "\n{style}The master director dies{style:#}  two directors, one VIP by VRRP, advertisements every 100 ms; a client \
         keeps requesting"
    );
    let topology = Topology::builder().directors(2).servers(3).build();
    let vip = IpAddr::from(topology.vip_v4(0));
    topology.vip_on_servers(vip);
    let _nginx: Vec<Nginx> = topology
        .servers
        .iter()
        .map(|server| Nginx::start(&server.namespace, server.namespace.role(), &[80]))
        .collect();
    let [a, b] = &topology.directors[..] else { unreachable!("two directors were asked for") };
    interrupt::check()?;
    let mut first = Agent::start(&a.namespace, &director(&topology, 150));
    until_master(&first, "the first director")?;
    let second = Agent::start(&b.namespace, &director(&topology, 100));
    let mut lines = Vec::new();
    for (what, how) in [("kill -9 of its agent", How::Kill), ("its cable is cut", How::Cut)] {
        interrupt::check()?;
        let socket = SocketAddr::new(vip, 80);
        let before = owner(&topology, socket, [a, b])?;
        let canary = Canary::start(&topology.client().namespace, socket);
        std::thread::sleep(Duration::from_millis(500));
        match how {
            How::Kill => first.kill9(),
            How::Cut => topology.switch.ip("link set d1n1 down"),
        }
        until_master(&second, "the second director")?;
        std::thread::sleep(Duration::from_millis(700));
        let report = canary.stop();
        let after = owner(&topology, socket, [a, b])?;
        ensure!(before != after, "{what}: {before} answers before and after");
        let line = format!(
            "{what}: gap {} ms, {} of {} requests failed; {before} answered before, {after} after",
            report.gap.as_millis(),
            report.failed,
            report.requests
        );
        anstream::println!("  {line}");
        lines.push(format!("master dies, {line}"));
        match how {
            How::Kill => first.restart(),
            How::Cut => topology.switch.ip("link set d1n1 up"),
        }
        until_master(&first, "the first director, again")?;
    }
    Ok(lines)
}

#[derive(Clone, Copy)]
enum How {
    Kill,
    Cut,
}

fn director(topology: &Topology, priority: u8) -> String {
    let vip = topology.vip_v4(0);
    let servers: String =
        topology.servers.iter().map(|server| format!("    - {{address: {}}}\n", server.v4())).collect();
    format!(
        "{}---
apiVersion: lb/v1
kind: VrrpInstance
metadata: {{name: edge}}
spec:
  interface: eth0
  virtualRouterId: 51
  priority: {priority}
  advertisementInterval: 100ms
  addresses: [{vip}/24]
---
apiVersion: lb/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  address: {vip}
  ports: [80]
  protocol: tcp
  forwarding: dr
  scheduler: rr
  realServers:
{servers}",
        crate::scenes::DIRECTOR
    )
}

fn until_master(agent: &Agent, who: &str) -> Result<()> {
    let master = || agent.cli(&["get", "vrrp", "edge"]).stdout.contains(" master ");
    ensure!(
        wait::holds_within(Duration::from_secs(20), master),
        "{who} did not become master:\n{}",
        agent.log()
    );
    Ok(())
}

/// Whose MAC address the client sends to.
fn owner(topology: &Topology, vip: SocketAddr, directors: [&Host; 2]) -> Result<&'static str> {
    let client = &topology.client().namespace;
    let mut shown = String::new();
    let mut found = None;
    wait::holds_within(Duration::from_secs(10), || {
        let _ = lb_tests::http::get(client, &lb_tests::http::url(vip, "/"));
        shown = client.output("ip", &["neighbour", "show", "to", &vip.ip().to_string()]);
        found = directors.iter().position(|host| shown.contains(&lb_tests::link::format_mac(host.mac())));
        found.is_some()
    });
    match found {
        Some(0) => Ok("director-a"),
        Some(_) => Ok("director-b"),
        None => anyhow::bail!("nobody answers for the VIP: {shown}"),
    }
}
