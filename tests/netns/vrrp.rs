//! VRRP between real directors: agents and keepalived. What all these tests share: who owns the VIP, what an agent
//! says of its instance, and what went over the wire.

mod alone;
mod interop;
mod pair;
mod role;

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::{Agent, Host, Topology, wait};
use serde_json::Value;

use super::site::get;

/// More than any takeover takes, on a machine that is busy compiling.
pub const TAKEOVER: Duration = Duration::from_secs(30);

/// Whether this director's eth0 has the address.
pub fn owns(host: &Host, vip: IpAddr) -> bool {
    owns_on(host, "eth0", vip)
}

/// Whether the interface has the address.
pub fn owns_on(host: &Host, interface: &str, vip: IpAddr) -> bool {
    // An interface that does not exist has none.
    let command = &["-o", "address", "show", "to", &vip.to_string()];
    let shown = host.namespace.output("ip", command);
    shown.lines().any(|line| line.split_whitespace().nth(1) == Some(interface))
}

/// Waits until this director owns the address and the other does not.
#[track_caller]
pub fn until_only(owner: &Host, other: &Host, vip: IpAddr, story: impl Fn() -> String) {
    let one = wait::holds_within(TAKEOVER, || owns(owner, vip) && !owns(other, vip));
    assert!(
        one,
        "{vip} is not on {} alone ({} {}, {} {})\n{}",
        owner.namespace.role(),
        owner.namespace.role(),
        owns(owner, vip),
        other.namespace.role(),
        owns(other, vip),
        story()
    );
}

/// In steady state the owner stays, and is the only one, at every look for so long.
#[track_caller]
pub fn stays_only(owner: &Host, other: &Host, vip: IpAddr, time: Duration) {
    let end = std::time::Instant::now() + time;
    while std::time::Instant::now() < end {
        assert!(owns(owner, vip), "{} lost {vip}", owner.namespace.role());
        assert!(!owns(other, vip), "{vip} has a second owner, {}", other.namespace.role());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Who answers at the VIP, seen by the client: the MAC address in its neighbour table.
pub fn answers(topology: &Topology, vip: IpAddr) -> Option<[u8; 6]> {
    let shown = topology.client().namespace.output("ip", &["neighbour", "show", "to", &vip.to_string()]);
    let mac = shown.split_whitespace().skip_while(|word| *word != "lladdr").nth(1)?;
    let bytes: Vec<u8> = mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes.try_into().ok()
}

/// The agent's instance as `get vrrp NAME` shows it.
#[track_caller]
pub fn instance(agent: &Agent, name: &str) -> Value {
    get(agent, &["vrrp", name])["instances"][0].clone()
}

/// Waits until the agent has this role in the instance.
#[track_caller]
pub fn until_role(agent: &Agent, name: &str, role: &str) {
    let mut last = Value::Null;
    let has = wait::holds_within(TAKEOVER, || {
        last = instance(agent, name);
        last["role"] == role
    });
    assert!(has, "{name} is not {role}:\n{last:#}\nthe agent wrote:\n{}", agent.log());
}

/// The kinds of an instance's events, oldest first.
#[track_caller]
pub fn kinds(agent: &Agent, name: &str) -> Vec<String> {
    let text = agent.cli(&["events", "-o", "json"]).expect_success();
    let events: Value = serde_json::from_str(&text).expect("events are JSON");
    let subject = format!("VrrpInstance/{name}");
    let mine = events.as_array().into_iter().flatten().filter(|event| event["subject"] == subject.as_str());
    mine.map(|event| event["kind"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A Director with (or without) the program, and one instance. `spec`: further lines of the instance.
pub fn director(interfaces: &str, priority: u8, vip: &str, spec: &str) -> String {
    format!(
        "apiVersion: lb/v1
kind: Director
metadata: {{name: director}}
spec:
  interfaces: {interfaces}
  connections: {{max: 65536}}
  capacity: {{services: 64, realServers: 256}}
---
apiVersion: lb/v1
kind: VrrpInstance
metadata: {{name: edge}}
spec:
  interface: eth0
  virtualRouterId: 51
  priority: {priority}
  addresses: [{vip}]
{spec}"
    )
}

/// An example with this laboratory's addresses and paths in place of its own.
pub fn example(name: &str, replace: &[(&str, &str)]) -> String {
    let path = format!("{}/../deploy/examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    for (from, to) in replace {
        assert!(text.contains(from), "{path} does not say `{from}`");
        text = text.replace(from, to);
    }
    text
}

/// Two directors and a client on one switch.
pub fn two_directors() -> Topology {
    Topology::builder().directors(2).servers(0).clients(1).build()
}
