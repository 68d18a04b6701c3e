//! SYN cookies with real clients and servers: every connection by them, and a flood of SYNs beside.

use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use lb_tests::flood::{Aim, Kind};
use lb_tests::{Agent, Flood, Topology, http, wait};

use crate::site::{
    self, Service, TRANSLATED, assert_shares, documents, family, large_both_ways, nginx_everywhere, shares,
    until_all_in, vips,
};

/// Packets counted under a reason.
fn counted(agent: &Agent, name: &str) -> u64 {
    let counters = site::get(agent, &["counters"]);
    let reasons = counters["reasons"].as_array().unwrap();
    let reason = reasons.iter().find(|reason| reason["name"] == name);
    reason.unwrap_or_else(|| panic!("no {name} in {counters:#}"))["packets"].as_u64().unwrap()
}

#[test]
fn cookies_carry_connections_by_nat_and_fullnat_and_a_flood_of_syns_keeps_nobody_out() {
    let topology = Topology::builder().servers(2).servers_with_xdp().build();
    topology.replies_through_director();
    let nginx = nginx_everywhere(&topology, &[80, 81, TRANSLATED]);
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0, xdp: native"]));
    let services: Vec<Service> = [(80, "nat"), (81, "fullnat")]
        .into_iter()
        .flat_map(|(port, forwarding)| {
            vips(&topology).map(|vip| {
                Service::tcp(&format!("{forwarding}-{}", family(vip)), vip, port, forwarding)
                    .servers(&topology.servers)
                    .with("synCookies: always")
            })
        })
        .collect();
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);
    for service in &services {
        let before = counted(&agent, "cookie_valid");
        assert_shares(&shares(client, &service.url("/"), 6), &[3, 3], &service.name);
        large_both_ways(client, service, &nginx);
        let valid = counted(&agent, "cookie_valid") - before;
        assert!(valid >= 8, "{}: {valid} connections began with a cookie", service.name);
    }

    let flood = Flood::default();
    let mac = topology.director().mac();
    std::thread::scope(|scope| {
        let targets: Vec<SocketAddrV4> = services
            .iter()
            .filter_map(|service| match service.socket() {
                SocketAddr::V4(v4) => Some(v4),
                SocketAddr::V6(_) => None,
            })
            .collect();
        for target in targets {
            let flood = &flood;
            let aim = Aim { mac, to: target };
            scope.spawn(move || flood.send(client, Kind::Syn, aim, Some(64_000), || ()));
        }
        // A panic must end the flood, or the scope never ends.
        let _end = StopAtEnd(&flood);
        let began = counted(&agent, "cookie_sent");
        let flooded =
            wait::holds_within(Duration::from_secs(30), || counted(&agent, "cookie_sent") > began + 2000);
        assert!(flooded, "{} SYNs were sent, and not answered", flood.sent());
        for service in &services {
            let outcomes = http::get_in_turn(client, &service.url("/"), 10).unwrap();
            let served = outcomes.iter().filter(|outcome| outcome.status == 200).count();
            assert_eq!(served, 10, "{}: {outcomes:?}", service.name);
        }
    });
    // Nothing was kept of the flood: what is there are the connections of clients that exist.
    let connections = site::get(&agent, &["connections"]).to_string();
    assert!(!connections.contains("\"46."), "a source of the flood has a connection: {connections}");
}

struct StopAtEnd<'a>(&'a Flood);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
