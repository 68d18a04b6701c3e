//! Checks on the real path: a real server that has lost the VIP, or never unpacked a tunnel, is found though its own
//! address answers.

use std::net::IpAddr;

use lb_tests::{Agent, Namespace, Nginx, RealServer, Topology, wait};

use crate::load::Load;
use crate::site::{SOON, Service, director, nginx_everywhere, real_server, until_all_in};

const CHECK: &str = "healthCheck: {http: {}, path: real, interval: 200ms, timeout: 200ms, rise: 2, fall: 2}";

fn on_loopback(server: &Namespace, verb: &str, vip: IpAddr) {
    let (length, nodad) = if vip.is_ipv4() { (32, "") } else { (128, "nodad") };
    let nodad = if verb == "del" { "" } else { nodad };
    server.ip(&format!("address {verb} {vip}/{length} dev lo {nodad}"));
}

#[track_caller]
fn until_state(agent: &Agent, service: &str, address: IpAddr, state: &str) -> String {
    let mut last = serde_json::Value::Null;
    let came = wait::holds_within(SOON, || {
        last = real_server(agent, service, address);
        last["state"] == state
    });
    assert!(came, "{service}: {address} is not {state}: {last:#}\nthe agent wrote:\n{}", agent.log());
    last["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_server_without_the_vip_is_down_though_its_own_address_answers() {
    let topology = Topology::builder().servers(2).build();
    let _nginx: Vec<Nginx> = nginx_everywhere(&topology, &[80]);
    let host = topology.director();
    let services: Vec<Service> = [
        ("dr4", topology.vip_v4(0).into(), "dr"),
        ("dr6", topology.vip_v6(0).into(), "dr"),
        ("tun4", topology.vip_v4(1).into(), "tun"),
        ("tun6", topology.vip_v6(1).into(), "tun"),
    ]
    .map(|(name, vip, method)| Service::tcp(name, vip, 80, method).servers(&topology.servers).with(CHECK))
    .into();
    let vips: Vec<IpAddr> = services.iter().map(|service| service.vip).collect();
    let directors: [IpAddr; 2] = [host.v4().into(), host.v6().into()];
    let _ready: Vec<RealServer> =
        topology.servers.iter().map(|server| RealServer::up(&server.namespace, &vips, &directors)).collect();
    let agent = Agent::start(&host.namespace, &director(&["eth0"]));
    for service in &services {
        agent.apply(&service.yaml());
    }
    until_all_in(&agent);
    let loses = &topology.servers[0].namespace;
    for service in &services {
        let (lost, other) =
            (topology.servers[0].address(service.vip), topology.servers[1].address(service.vip));
        on_loopback(loses, "del", service.vip);
        let reason = until_state(&agent, &service.name, lost, "down");
        let hint = format!("(is {} on lo of {lost}", service.vip);
        assert!(reason.contains("no answer within 200 ms") && reason.contains(&hint), "{reason:?}");
        assert_eq!(real_server(&agent, &service.name, other)["state"], "in");
        on_loopback(loses, "add", service.vip);
        until_state(&agent, &service.name, lost, "in");
    }
    // The last check that goes there takes the pair along.
    let links = || host.namespace.output("ip", &["-o", "link"]);
    assert!(links().contains("lb-probe"));
    for service in &services {
        agent.cli(&["delete", "VirtualService", &service.name]).expect_success();
    }
    wait::until("the prober's veth pair is gone", SOON, || !links().contains("lb-probe"));
}

#[test]
fn an_agent_that_knows_nothing_of_its_checks_makes_them_before_it_touches_the_pool() {
    let topology = Topology::builder().servers(2).build();
    let _nginx: Vec<Nginx> = nginx_everywhere(&topology, &[80]);
    let host = topology.director();
    // Without a timeout of its own: on a busy machine a probe that is late would take a good server out.
    let web = Service::tcp("web", topology.vip_v4(0).into(), 80, "dr")
        .servers(&topology.servers)
        .with("healthCheck: {tcp: {}, path: real, interval: 2s, timeout: 2s}");
    topology.vip_on_servers(web.vip);
    let mut agent = Agent::start(&host.namespace, &director(&["eth0"]));
    agent.apply(&web.yaml());
    until_all_in(&agent);
    let load = Load::start(&topology.client().namespace, web.socket());
    let before = load.more(50);
    assert_eq!(load.since(before).len(), 2, "both answer: {:?}", load.since(before));

    // What it believed is lost; its tables are not. The checks need a way through these tables, and until they have
    // shown something the servers are down as far as the agent knows.
    let [(_, state), ..] = agent.environment();
    agent.kill9();
    std::fs::remove_file(state.join("health.json")).expect("states were saved");
    let restarted = load.more(1);
    agent.restart();
    until_all_in(&agent);
    load.more(50);
    let shares = load.since(restarted);
    assert!(!shares.contains_key("-"), "connections were refused or lost: {shares:?}\n{}", agent.log());
    assert_eq!(shares.len(), 2, "{shares:?}");
}
