//! Directors with several interfaces, which come and go while they run.

use std::time::Duration;

use lb_tests::link::Plug;
use lb_tests::topology::{PREFIX_V4, PREFIX_V6, Subnet};
use lb_tests::{Agent, Topology, http, wait};
use serde_json::Value;

use crate::site::{self, Service, documents, family, nginx_everywhere, until_all_in, vips};

/// More than the backoff of probes that nobody answered.
const PATIENCE: Duration = Duration::from_secs(30);
const NAT: u16 = 81;
const FULLNAT: u16 = 82;

fn interface(agent: &Agent, name: &str) -> Value {
    let status = site::get(agent, &["status"]);
    let all = status["interfaces"].as_array().expect("interfaces");
    all.iter()
        .find(|found| found["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {status:#}"))
        .clone()
}

fn packets(agent: &Agent, name: &str, direction: &str) -> u64 {
    interface(agent, name)[direction]["packets"].as_u64().expect("a number")
}

#[test]
fn an_interface_is_added_goes_down_comes_up_and_is_made_anew_while_traffic_flows_by_the_other() {
    let topology = Topology::builder().servers(2).two_armed().build();
    let director = &topology.director().namespace;
    // Its addresses stay when it goes down, as those of IPv4 do.
    director.sysctl("net.ipv6.conf.eth1.keep_addr_on_down=1");
    topology.replies_through_director();
    let _nginx = nginx_everywhere(&topology, &[site::TRANSLATED]);
    let client = &topology.client().namespace;
    let mut agent = Agent::start(director, &site::director(&["eth0, xdp: native"]));
    let services: Vec<Service> = vips(&topology)
        .into_iter()
        .flat_map(|vip| {
            [("nat", NAT), ("fullnat", FULLNAT)].map(|(method, port)| {
                Service::tcp(&format!("{method}-{}", family(vip)), vip, port, method)
                    .servers(&topology.servers)
            })
        })
        .collect();
    agent.apply(&(site::pool(&topology, "eth1") + &documents(&services)));
    let all = |agent: &Agent, state: &str| {
        let servers = site::get(agent, &["real-servers"]);
        let servers = servers.as_array().expect("a list");
        servers.iter().all(|server| server["state"] == state)
    };
    wait::until("servers behind an interface that is none of the Director's are out", PATIENCE, || {
        all(&agent, "out")
    });
    let shown = site::real_server(&agent, "nat-v4", topology.servers[0].v4().into());
    assert!(shown["reason"].as_str().is_some_and(|why| why.contains("none of the Director's")), "{shown}");

    // Added: in the configuration, at the next start.
    agent.configure(&site::director(&["eth0, xdp: native", "eth1, xdp: native"]));
    agent.restart();
    until_all_in(&agent);
    let serves = |agent: &Agent, when: &str| {
        for service in &services {
            let page = http::get(client, &service.url("/"));
            let page =
                page.unwrap_or_else(|error| panic!("{when}: {}: {error}\n{}", service.name, agent.log()));
            assert_eq!(page.status, 200, "{when}: {}", service.name);
        }
    };
    let before = [("eth0", "received"), ("eth0", "sent"), ("eth1", "received"), ("eth1", "sent")]
        .map(|(name, direction)| (name, direction, packets(&agent, name, direction)));
    serves(&agent, "both are there");
    for (name, direction, before) in before {
        // Four connections, each of four frames at least, both ways by both.
        let now = packets(&agent, name, direction);
        assert!(now >= before + 16, "{name} {direction}: {before}, then {now}");
    }

    // Down: said, and found again when it comes up.
    director.ip("link set eth1 down");
    let why = |agent: &Agent| {
        let shown = site::real_server(agent, "nat-v4", topology.servers[0].v4().into());
        shown["reason"].as_str().unwrap_or_default().to_owned()
    };
    wait::until("that eth1 is down is said", PATIENCE, || {
        let why = why(&agent);
        why.contains("eth1 is down") || why.contains("no route")
    });
    director.ip("link set eth1 up");
    wait::until("nothing is said any more", PATIENCE, || why(&agent).is_empty());
    until_all_in(&agent);
    serves(&agent, "eth1 came up again");

    // Removed, and made anew under its name with another number.
    director.ip("link del eth1");
    wait::until("that it is gone is said", PATIENCE, || {
        site::get(&agent, &["status"])["problems"].to_string().contains("eth1")
    });
    let plug = Plug {
        switch: &topology.switch,
        bridge: "br2",
        port: "d1n2",
        host: director,
        interface: "eth1",
        mac: Subnet::Back.mac(1),
        addresses: &[(Subnet::Back.v4(1).into(), PREFIX_V4), (Subnet::Back.v6(1).into(), PREFIX_V6)],
        mtu: 1500,
    };
    plug.connect();
    let _pass = plug.prepare_for_xdp();
    wait::until("it has the program again", PATIENCE, || interface(&agent, "eth1")["mode"] == "native");
    wait::until("nothing is said any more", PATIENCE, || {
        site::get(&agent, &["status"])["problems"].as_array().is_some_and(Vec::is_empty)
            && why(&agent).is_empty()
    });
    until_all_in(&agent);
    serves(&agent, "eth1 was made anew");
}
