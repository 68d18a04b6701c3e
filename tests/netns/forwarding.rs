//! Every forwarding method with real nginx, real curl and UDP servers, by both address families.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_tests::topology::{Builder, Subnet};
use lb_tests::{Agent, Nginx, RealServer, Topology, UdpServer, http, udp};

use crate::site::{
    self, Service, TRANSLATED, TRANSLATED_UDP, assert_shares, documents, family, large_both_ways,
    nginx_everywhere, shares, tunnels_everywhere, udp_everywhere, until_all_in, vips,
};

/// Ports of the services, one per scheduler.
const RR: u16 = 80;
const WRR: u16 = 81;
const SH: u16 = 82;
const MH: u16 = 83;
const DNS: u16 = 53;

/// Real servers ready for one method: everything that has to run there.
struct Servers<'a> {
    nginx: Vec<Nginx>,
    _udp: Vec<UdpServer>,
    _tunnels: Vec<RealServer<'a>>,
}

/// Does at the real servers what a method asks of them.
fn prepare<'a>(topology: &'a Topology, methods: &[&str]) -> Servers<'a> {
    let any = |names: &[&str]| methods.iter().any(|method| names.contains(method));
    if any(&["dr"]) {
        vips(topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    }
    if any(&["nat"]) {
        topology.replies_through_director();
    }
    Servers {
        nginx: nginx_everywhere(topology, &[RR, WRR, SH, MH, 84, 85, TRANSLATED]),
        _udp: udp_everywhere(topology, &[DNS, TRANSLATED_UDP]),
        _tunnels: if any(&["tun"]) { tunnels_everywhere(topology, &vips(topology)) } else { Vec::new() },
    }
}

fn three_servers() -> Builder {
    Topology::builder().servers(3).servers_with_xdp()
}

/// One method from end to end: every scheduler, UDP, large transfers.
fn method(forwarding: &'static str) {
    let topology = three_servers().build();
    let servers = prepare(&topology, &[forwarding]);
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0, xdp: native"]));
    let service = |vip, port, scheduler| {
        Service::tcp(&format!("{scheduler}-{}", family(vip)), vip, port, forwarding)
            .scheduler(scheduler)
            .servers(&topology.servers)
    };
    let schedulers = [(RR, "rr"), (WRR, "wrr"), (SH, "sh"), (MH, "mh")];
    let [rr, wrr, sh, mh] =
        schedulers.map(|(port, name)| vips(&topology).map(|vip| service(vip, port, name)));
    let wrr = wrr.map(|service| service.weights(&[3, 2, 1]));
    let dns = vips(&topology).map(|vip| {
        Service::udp(&format!("dns-{}", family(vip)), vip, DNS, forwarding).servers(&topology.servers)
    });
    let all = [&rr, &wrr, &sh, &mh, &dns].into_iter().flatten();
    let pool = if forwarding == "fullnat" { site::pool(&topology, "eth0") } else { String::new() };
    agent.apply(&(pool + &documents(all)));
    until_all_in(&agent);

    for service in &rr {
        assert_shares(&shares(client, &service.url("/"), 60), &[20, 20, 20], &service.name);
        large_both_ways(client, service, &servers.nginx);
    }
    for service in &wrr {
        assert_shares(&shares(client, &service.url("/"), 60), &[30, 20, 10], &service.name);
    }
    for service in sh.iter().chain(&mh) {
        same_client_same_server(&topology, service);
    }
    for service in &dns {
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..30 {
            let answer = udp::ask(client, service.socket()).unwrap();
            *answers.entry(answer).or_default() += 1;
        }
        assert_shares(&answers, &[10, 10, 10], &service.name);
    }
}

/// Twelve addresses of one client: each always finds the server that it found first, and not all the same.
fn same_client_same_server(topology: &Topology, service: &Service) {
    let client = topology.client();
    let mut found = BTreeSet::new();
    for number in 60..72 {
        let source: IpAddr = match service.vip {
            IpAddr::V4(_) => client.subnet.v4(number).into(),
            IpAddr::V6(_) => client.subnet.v6(number).into(),
        };
        let length = if source.is_ipv4() { 24 } else { 64 };
        client.namespace.ip(&format!("address replace {source}/{length} dev eth0 nodad"));
        let outcomes = http::get_in_turn_from(&client.namespace, source, &service.url("/"), 4).unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.status == 200), "{}: {outcomes:?}", service.name);
        let shares = http::shares(&outcomes);
        assert_eq!(shares.len(), 1, "{}: {source} was served by {shares:?}", service.name);
        found.extend(shares.into_keys());
    }
    assert!(found.len() > 1, "{}: twelve clients were all served by {found:?}", service.name);
}

#[test]
fn dr_serves_every_request_by_the_schedulers_share_and_carries_large_transfers() {
    method("dr");
}

#[test]
fn tun_serves_every_request_by_the_schedulers_share_and_carries_large_transfers() {
    method("tun");
}

#[test]
fn nat_serves_every_request_by_the_schedulers_share_and_carries_large_transfers() {
    method("nat");
}

#[test]
fn fullnat_serves_every_request_by_the_schedulers_share_and_carries_large_transfers() {
    method("fullnat");
}

/// A service per method and family, on ports of their own, each real server behind each.
fn every_method(topology: &Topology, methods: &[&'static str]) -> Vec<Service> {
    let services = methods.iter().enumerate().flat_map(|(index, forwarding)| {
        vips(topology).map(|vip| {
            Service::tcp(&format!("{forwarding}-{}", family(vip)), vip, RR + index as u16, forwarding)
                .servers(&topology.servers)
        })
    });
    services.collect()
}

#[test]
fn clients_on_one_interface_and_servers_on_the_other_by_every_method() {
    const METHODS: [&str; 4] = ["dr", "tun", "nat", "fullnat"];
    let topology = three_servers().two_armed().far_clients(1).build();
    let servers = prepare(&topology, &METHODS);
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0", "eth1"]));
    let services = every_method(&topology, &METHODS);
    agent.apply(&(site::pool(&topology, "eth1") + &documents(&services)));
    until_all_in(&agent);
    for service in &services {
        // The second client is behind the router: what NAT and FULLNAT send back goes by the gateway.
        for client in &topology.clients {
            let shares = shares(&client.namespace, &service.url("/"), 6);
            assert_shares(&shares, &[2, 2, 2], &format!("{} from {}", service.name, client.namespace.role()));
            large_both_ways(&client.namespace, service, &servers.nginx);
        }
    }
}

#[test]
fn a_one_armed_director_answers_clients_behind_a_router_and_uses_servers_behind_it() {
    const METHODS: [&str; 3] = ["tun", "nat", "fullnat"];
    let topology =
        Topology::builder().servers(1).far_servers(1).far_clients(1).clients(1).servers_with_xdp().build();
    let servers = prepare(&topology, &METHODS);
    assert_eq!(topology.servers[1].subnet, Subnet::FarServers);
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let services = every_method(&topology, &METHODS);
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);
    for service in &services {
        for client in &topology.clients {
            let shares = shares(&client.namespace, &service.url("/"), 4);
            assert_shares(&shares, &[2, 2], &format!("{} from {}", service.name, client.namespace.role()));
            large_both_ways(&client.namespace, service, &servers.nginx);
        }
    }
}

#[test]
fn dr_to_a_server_behind_a_router_is_explained_and_the_near_one_serves() {
    let topology = Topology::builder().servers(1).far_servers(1).build();
    let _servers = prepare(&topology, &["dr"]);
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let services = every_method(&topology, &["dr"]);
    agent.apply(&documents(&services));
    for service in &services {
        let far = topology.servers[1].address(service.vip);
        let shown = site::real_server(&agent, &service.name, far);
        assert_eq!(shown["state"], "out", "{shown}");
        let reason = shown["reason"].as_str().unwrap();
        assert!(reason.contains("router") || reason.contains("gateway"), "{reason:?} does not say why");
        assert_shares(&shares(&topology.client().namespace, &service.url("/"), 4), &[4], &service.name);
    }
}

#[test]
fn tun_carries_either_family_inside_the_other() {
    let topology = three_servers().build();
    let servers = prepare(&topology, &["tun"]);
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0, xdp: native"]));
    let [v4, v6] = vips(&topology);
    let across = [
        Service::tcp("v4-in-v6", v4, RR, "tun")
            .addresses(topology.servers.iter().map(|server| server.v6().into())),
        Service::tcp("v6-in-v4", v6, RR, "tun")
            .addresses(topology.servers.iter().map(|server| server.v4().into())),
    ];
    agent.apply(&documents(&across));
    until_all_in(&agent);
    for service in &across {
        assert_shares(&shares(client, &service.url("/"), 30), &[10, 10, 10], &service.name);
        large_both_ways(client, service, &servers.nginx);
    }
}

#[test]
fn a_client_that_sends_too_much_for_the_tunnel_is_told_by_icmp_and_its_upload_arrives() {
    let topology = three_servers().servers(1).build();
    let all = [0, 1].map(|n| [IpAddr::from(topology.vip_v4(n)), topology.vip_v6(n).into()]).concat();
    let nginx = nginx_everywhere(&topology, &[RR]);
    let _tunnels = tunnels_everywhere(&topology, &all);
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let server = &topology.servers[0];
    let ends: [IpAddr; 4] = [server.v4().into(), server.v6().into(), server.v6().into(), server.v4().into()];
    // Without the clamp the client begins with segments of a whole MTU. Each VIP has a path of its own in the
    // client's mind, so one case does not teach the next.
    let service = |(vip, end): (&IpAddr, IpAddr)| {
        let name = format!("{}-in-{}", family(*vip), family(end));
        Service::tcp(&name, *vip, RR, "tun").addresses([end]).with("mssClamp: false")
    };
    let services: Vec<Service> = all.iter().zip(ends).map(service).collect();
    agent.apply(&documents(&services));
    until_all_in(&agent);
    let told = |agent: &Agent| {
        let counters = site::get(agent, &["counters"]);
        let reasons = counters["reasons"].as_array().unwrap();
        let told = reasons.iter().find(|reason| reason["name"] == "packet_too_big");
        told.unwrap_or_else(|| panic!("no such reason in {counters:#}"))["packets"].as_u64().unwrap()
    };
    for service in &services {
        let before = told(&agent);
        large_both_ways(client, service, &nginx);
        assert!(told(&agent) > before, "{}: nobody was told, so this proved nothing", service.name);
        let route = client.output("ip", &["route", "get", &service.vip.to_string()]);
        let outer = if service.servers[0].0.is_ipv4() { 20 } else { 40 };
        assert!(route.contains(&format!("mtu {}", 1500 - outer)), "{}: {route}", service.name);
    }
}

#[test]
fn an_exact_port_beats_a_range_and_a_range_beats_any() {
    let topology = three_servers().build();
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    let _nginx = nginx_everywhere(&topology, &[7000, 8000, 8001, 8002]);
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    for vip in vips(&topology) {
        // One real server each, so that the answer tells which service took the request.
        let services = [("range", "8000-8002"), ("exact", "8001"), ("any", "any")];
        let manifest: Vec<String> = services
            .iter()
            .zip(&topology.servers)
            .map(|((name, ports), server)| {
                let service =
                    Service::tcp(&format!("{name}-{}", family(vip)), vip, 1, "dr").servers([server]);
                let ports = if *ports == "any" { "ports: any".into() } else { format!("ports: [{ports}]") };
                service.yaml().replace("ports: [1]", &ports)
            })
            .collect();
        agent.apply(&manifest.join("---\n"));
        until_all_in(&agent);
        for (port, server) in [(8000, "server0"), (8001, "server1"), (8002, "server0"), (7000, "server2")] {
            let url = http::url(SocketAddr::new(vip, port), "/");
            assert_eq!(http::get(client, &url).unwrap().server, server, "{url}");
        }
    }
}
