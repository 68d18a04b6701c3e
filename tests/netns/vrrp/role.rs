//! What goes with the role, beside addresses: the virtual router's own MAC address, routes, rules, and whether the
//! master's kernel takes packets to its addresses.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::{Agent, Host, Nginx, Topology, http, wait};
use serde_json::Value;

use super::{TAKEOVER, answers, director, owns, owns_on, two_directors, until_role};

/// The virtual router's MAC address (RFC 9568, section 7.3): 51 is its identifier.
const VMAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];

/// The port of the switch behind which a MAC address was last seen.
fn port_of(topology: &Topology, mac: &str) -> Option<String> {
    let table = topology.switch.output("bridge", &["fdb", "show", "br", "br1"]);
    let learned = table.lines().find(|line| line.starts_with(mac) && !line.contains("permanent"))?;
    learned.split_whitespace().skip_while(|word| *word != "dev").nth(1).map(str::to_owned)
}

fn pings(topology: &Topology, vip: IpAddr) -> bool {
    let mut ping = topology.client().namespace.command("ping");
    ping.args(["-c", "1", "-W", "1", &vip.to_string()]);
    ping.output().expect("run ping").status.success()
}

/// Waits until the client, which asks anew, finds the VIP at the virtual router's MAC, behind this director's port.
#[track_caller]
fn until_answers(topology: &Topology, by: &Host, vip: IpAddr, story: impl Fn() -> String) {
    let port = format!("d{}n1", by.number);
    let mut seen = (None, None);
    let found = wait::holds_within(TAKEOVER, || {
        topology.client().namespace.ip("neigh flush all");
        let answered = pings(topology, vip);
        seen = (answers(topology, vip), port_of(topology, "00:00:5e:00:01:33"));
        answered && seen == (Some(VMAC), Some(port.clone()))
    });
    assert!(found, "{vip} is not answered through {port}: {seen:?}\n{}", story());
}

/// How many frames the interface has sent.
fn sent(host: &Host, interface: &str) -> u64 {
    let shown = host.namespace.output("ip", &["-s", "-j", "link", "show", "dev", interface]);
    let shown: Value = serde_json::from_str(&shown).expect("ip writes JSON");
    shown[0]["stats64"]["tx"]["packets"].as_u64().expect("a count of packets")
}

#[test]
fn the_virtual_mac_address_answers_at_the_master_and_moves_with_the_role() {
    let topology = two_directors();
    let vip = IpAddr::from(topology.vip_v4(0));
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let config = |priority, vmac| {
        director("[{name: eth0}]", priority, &format!("{vip}/24"), &format!("  vmac: {vmac}\n"))
    };
    let mut first = Agent::start(&a.namespace, &config(150, "true"));
    until_role(&first, "edge", "master");
    let second = Agent::start(&b.namespace, &config(100, "true"));
    until_role(&second, "edge", "backup");
    let story = || format!("second wrote:\n{}", second.log());
    until_answers(&topology, a, vip, story);
    assert!(owns_on(a, "vrrp51", vip) && !owns(a, vip), "the VIP is on the virtual router's own interface");
    assert!(!owns_on(b, "vrrp51", vip));
    // A backup that said anything from the shared MAC address would draw the master's packets to itself.
    assert_eq!(sent(b, "vrrp51"), 0, "the backup spoke from the virtual MAC address");

    // What the client knows stays true when another is master: it is the switch that has to learn.
    first.kill9();
    until_role(&second, "edge", "master");
    let found =
        wait::holds_within(TAKEOVER, || pings(&topology, vip) && answers(&topology, vip) == Some(VMAC));
    assert!(found, "{}", story());
    // The dead one's kernel still has the address, and is silent: nobody asking anew is answered by it.
    assert!(owns_on(a, "vrrp51", vip));
    for _ in 0..5 {
        until_answers(&topology, b, vip, story);
    }

    first.restart();
    until_role(&first, "edge", "master");
    until_role(&second, "edge", "backup");
    until_answers(&topology, a, vip, story);
    assert!(!owns_on(b, "vrrp51", vip));

    // Without it the interface goes, and the VIP is where it would have been.
    first.configure(&config(150, "false"));
    first.write_manifest("touch.yaml", "# read again\n");
    wait::until("the VIP is on eth0", TAKEOVER, || owns(a, vip));
    let gone = wait::holds_within(TAKEOVER, || !a.namespace.output("ip", &["link"]).contains("vrrp51"));
    assert!(gone, "the virtual router's interface stays:\n{}", first.log());
}

#[test]
fn routes_rules_and_what_the_kernel_takes_follow_the_role() {
    let topology = two_directors();
    let vip = IpAddr::from(topology.vip_v4(0));
    let gateway = topology.client().v4();
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let config = |priority, accept| {
        let more = format!(
            "  accept: {accept}\n  routes:\n    - {{to: 198.51.100.0/24, via: {gateway}, table: 300}}\n    \
             - {{to: 192.0.2.0/25, metric: 7}}\n  rules: [{{from: {vip}, table: 300, priority: 1000}}]\n"
        );
        director("[{name: eth0}]", priority, &format!("{vip}/24"), &more)
    };
    // Somebody else's, which goes with nobody's role.
    for host in [a, b] {
        host.namespace.ip(&format!("route add 198.51.100.0/25 via {gateway} table 300"));
        host.namespace.output("ip", &["rule", "add", "from", "198.51.100.7", "lookup", "300", "pref", "999"]);
    }
    let has = |host: &Host| {
        let show = |arguments: &[&str]| host.namespace.output("ip", arguments);
        let (table, main, rules) =
            (show(&["route", "show", "table", "300"]), show(&["route"]), show(&["rule"]));
        assert!(table.contains("198.51.100.0/25 via"), "somebody else's route is gone: {table}");
        assert!(rules.contains("999:"), "somebody else's rule is gone: {rules}");
        [
            table.contains(&format!("198.51.100.0/24 via {gateway} dev eth0 proto 118")),
            main.contains("192.0.2.0/25 dev eth0 proto 118"),
            rules.contains(&format!("1000:\tfrom {vip} lookup 300")),
        ]
    };
    let until_at = |owner: &Host, other: &Host, story: &dyn Fn() -> String| {
        let there = wait::holds_within(TAKEOVER, || has(owner) == [true; 3] && has(other) == [false; 3]);
        assert!(there, "{:?} here, {:?} there\n{}", has(owner), has(other), story());
    };
    let _nginx = [a, b].map(|host| Nginx::start(&host.namespace, host.namespace.role(), &[80]));
    let url = http::url((vip, 80).into(), "/");
    let fetches = || http::get(&topology.client().namespace, &url).is_ok();

    let mut first = Agent::start(&a.namespace, &config(150, false));
    until_role(&first, "edge", "master");
    let mut second = Agent::start(&b.namespace, &config(100, false));
    until_role(&second, "edge", "backup");
    until_at(a, b, &|| first.log());

    // The address is found, and nothing of the master's own is reached there.
    assert!(!pings(&topology, vip));
    assert_eq!(answers(&topology, vip), Some(a.mac()), "ARP is answered");
    let get = topology.client().namespace.command("curl").args(["-sf", "--max-time", "1", &url]).output();
    assert!(!get.expect("run curl").status.success(), "nginx answered at the VIP");
    let counters = first.cli(&["get", "counters", "-o", "json"]).expect_success();
    assert!(counters.contains("not_accepted"), "{counters}");

    first.cli(&["vrrp", "handover", "edge"]).expect_success();
    until_role(&second, "edge", "master");
    until_at(b, a, &|| second.log());
    assert!(!pings(&topology, vip));

    // A dead agent's routes and rules stay, as its addresses do, until it is back and a backup.
    second.kill9();
    until_role(&first, "edge", "master");
    assert_eq!(has(a), [true; 3], "{}", first.log());
    assert_eq!(has(b), [true; 3], "nobody was there to take them away");
    second.restart();
    until_role(&second, "edge", "backup");
    until_at(a, b, &|| second.log());

    // A change of mind counts at once.
    first.configure(&config(150, true));
    first.write_manifest("touch.yaml", "# read again\n");
    wait::until("the master's kernel takes packets to the VIP", TAKEOVER, || pings(&topology, vip));
    wait::until("the master's nginx answers at the VIP", Duration::from_secs(30), fetches);
    until_at(a, b, &|| first.log());

    // An instance that is removed while nobody is there to see it leaves nothing behind, once somebody is.
    first.kill9();
    assert_eq!(has(a), [true; 3], "nobody was there to take them away");
    let whole = config(150, true);
    let (alone, _) = whole.split_once("---\n").expect("a Director, then the instance");
    first.configure(alone);
    first.restart();
    let gone = wait::holds_within(TAKEOVER, || has(a) == [false; 3]);
    assert!(gone, "{:?} is left\n{}", has(a), first.log());
    until_role(&second, "edge", "master");
    until_at(b, a, &|| second.log());
}
