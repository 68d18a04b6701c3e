//! Directors that are real servers themselves.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::topology::{set_neighbour, vip_on_loopback};
use lb_tests::{Agent, Nginx, Topology, http, wait};

use crate::site::{self, Service, assert_shares, documents, family, until_all_in, vips};

const DR: u16 = 80;
const TUN: u16 = 81;
/// Of other real servers alone.
const ELSEWHERE: u16 = 82;
const NAT: u16 = 83;

#[test]
fn a_director_that_is_a_real_server_serves_its_share_and_is_served_by_itself() {
    let topology = Topology::builder().servers(1).servers_with_xdp().build();
    let director = topology.director();
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    let here = Nginx::start(&director.namespace, "director", &[DR, TUN]);
    let there =
        Nginx::start(&topology.servers[0].namespace, "server0", &[DR, TUN, ELSEWHERE, site::TRANSLATED]);
    let _tunnels = site::tunnels_everywhere(&topology, &vips(&topology));
    let agent = Agent::start(&director.namespace, &site::director(&["eth0, xdp: native"]));
    let both = [director, &topology.servers[0]];
    let services = vips(&topology).map(|vip| {
        let of =
            |what: &str, port, method| Service::tcp(&format!("{what}-{}", family(vip)), vip, port, method);
        [
            of("dr", DR, "dr").servers(both),
            of("tun", TUN, "tun").servers(both),
            of("elsewhere", ELSEWHERE, "dr").servers([&topology.servers[0]]),
            of("nat", NAT, "nat").servers(both),
        ]
    });
    agent.apply(&documents(services.iter().flatten()));
    let client = &topology.client().namespace;
    for [dr, tun, elsewhere, nat] in &services {
        for service in [dr, tun] {
            wait::until(&format!("{}: both are in", service.name), site::SOON, || {
                let shown =
                    both.map(|host| site::real_server(&agent, &service.name, host.address(service.vip)));
                shown.iter().all(|server| server["state"] == "in") && shown[0]["nextHop"] == "this host"
            });
            let shares = site::shares(client, &service.url("/"), 20);
            let near = |name: &str| shares.get(name).is_some_and(|count| count.abs_diff(10) <= 1);
            assert!(near("director") && near("server0"), "{}: {shares:?}", service.name);
            // What the director itself sends there stays there.
            let own = site::shares(&director.namespace, &service.url("/"), 4);
            assert_eq!(own, [("director".to_owned(), 4)].into(), "{} from the director", service.name);
        }
        let client_of_itself = http::get(&director.namespace, &elsewhere.url("/"));
        let refused = client_of_itself.expect_err("nobody listens there on the director");
        assert!(refused.contains("refused") || refused.contains("Failed to connect"), "{refused}");
        assert_shares(&site::shares(client, &elsewhere.url("/"), 4), &[4], &elsewhere.name);
        // Nothing would translate what the director answers.
        let shown = site::real_server(&agent, &nat.name, director.address(nat.vip));
        assert_eq!(shown["state"], "out", "{shown}");
        assert!(shown["reason"].as_str().is_some_and(|why| why.contains("forwarding: dr")), "{shown}");
    }
    drop((here, there));
}

/// How many frames ended with a reason.
fn counted(agent: &Agent, reason: &str) -> u64 {
    let counters = site::get(agent, &["counters"]);
    let reasons = counters["reasons"].as_array().expect("reasons");
    let found = reasons.iter().find(|found| found["name"] == reason);
    found.unwrap_or_else(|| panic!("no {reason} in {counters:#}"))["packets"].as_u64().expect("a number")
}

#[test]
fn directors_that_are_real_servers_of_one_another_forward_a_packet_once() {
    let topology = Topology::builder().directors(2).servers(0).build();
    let names = ["director0", "director1"];
    let _nginx: Vec<Nginx> = topology
        .directors
        .iter()
        .zip(names)
        .map(|(host, name)| {
            vips(&topology).into_iter().for_each(|vip| vip_on_loopback(&host.namespace, vip));
            Nginx::start(&host.namespace, name, &[DR])
        })
        .collect();
    let agents: Vec<Agent> = topology
        .directors
        .iter()
        .map(|host| Agent::start(&host.namespace, &site::director(&["eth0, xdp: native"])))
        .collect();
    let services = vips(&topology).map(|vip| Service {
        more: String::new(),
        ..Service::tcp(&format!("web-{}", family(vip)), vip, DR, "dr").servers(&topology.directors)
    });
    for agent in &agents {
        agent.apply(&documents(&services));
    }
    agents.iter().for_each(until_all_in);
    let client = &topology.client().namespace;
    for service in &services {
        // The client's packets come to one director, and then to the other.
        for (host, other) in [(0, 1), (1, 0)] {
            set_neighbour(client, service.vip, topology.directors[host].mac());
            let before = counted(&agents[other], "from_director");
            let shares = site::shares(client, &service.url("/"), 20);
            for name in names {
                let count = shares.get(name).copied().unwrap_or(0);
                assert!(count.abs_diff(10) <= 2, "{} by {}: {shares:?}", service.name, names[host]);
            }
            assert!(counted(&agents[other], "from_director") >= before + 10 * 3, "by {}", names[host]);
        }
    }
    for agent in &agents {
        assert_eq!(
            counted(agent, "time_exceeded") + counted(agent, "ttl_expired"),
            0,
            "a packet went in circles"
        );
    }
}

#[test]
fn a_director_without_the_vip_is_no_real_server_of_it() {
    let topology = Topology::builder().servers(1).build();
    let director = topology.director();
    let agent = Agent::start(&director.namespace, &site::director(&["eth0"]));
    let vip: IpAddr = topology.vip_v4(0).into();
    let service = Service {
        more: String::new(),
        ..Service::tcp("web", vip, DR, "dr").servers([director, &topology.servers[0]])
    };
    agent.apply(&service.yaml());
    let shown = || site::real_server(&agent, "web", director.v4().into());
    wait::until("it is out", Duration::from_secs(20), || shown()["state"] == "out");
    let why = shown()["reason"].as_str().expect("a reason").to_owned();
    assert!(why.contains("addressInterface") && why.contains(&vip.to_string()), "{why}");
    director.namespace.ip(&format!("address add {vip}/32 dev lo"));
    wait::until("it is in", Duration::from_secs(20), || shown()["state"] == "in");
    assert_eq!(SocketAddr::new(vip, DR), service.socket());
}
