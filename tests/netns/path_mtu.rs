//! Path-MTU discovery through routers that lie: the interfaces have 1500 bytes, the route behind them has less, so that
//! only ICMP tells.

use std::net::IpAddr;

use lb_tests::topology::{Subnet, router_interface};
use lb_tests::{Agent, Host, Namespace, Topology};

use crate::site::{
    self, Service, TRANSLATED, documents, family, large_both_ways, nginx_everywhere, tunnels_everywhere,
    until_all_in, vips,
};

/// What the narrow route lets through.
const NARROW: u16 = 1400;

/// Narrows the router's way into a subnet. The metric is locked: a router forwards by its interface's MTU else.
fn narrow(topology: &Topology, subnet: Subnet) {
    let router = topology.router.as_ref().expect("a router");
    let interface = router_interface(subnet);
    for (family, prefix) in [("-4", format!("{}/24", subnet.v4(0))), ("-6", format!("{}/64", subnet.v6(0)))] {
        let more = if family == "-4" { "scope link" } else { "metric 256" };
        let change = format!("route replace {prefix} dev {interface} proto kernel {more} mtu lock {NARROW}");
        let mut arguments = vec![family];
        arguments.extend(change.split(' '));
        router.output("ip", &arguments);
    }
}

/// Forgets what a host has learned of paths, so that one service does not teach the next.
fn forget_paths(host: &Namespace) {
    for family in ["-4", "-6"] {
        host.output("ip", &[family, "route", "flush", "cache"]);
    }
}

fn counter(agent: &Agent, name: &str) -> u64 {
    let counters = site::get(agent, &["counters"]);
    let reasons = counters["reasons"].as_array().expect("reasons");
    let reason = reasons.iter().find(|reason| reason["name"] == name);
    reason.unwrap_or_else(|| panic!("no {name} in {counters:#}"))["packets"].as_u64().expect("a number")
}

/// By each method; nat and fullnat also with SYN cookies, whose flows have other sequence numbers on either side: a host
/// believes an error about its own alone. Those go to the last real server, which none of the others has taught a path.
fn services(topology: &Topology, methods: &[&'static str]) -> Vec<Service> {
    let mut services = Vec::new();
    let (first, last) = (&topology.servers[0], topology.servers.last().expect("a server"));
    for (index, forwarding) in methods.iter().enumerate() {
        for vip in vips(topology) {
            let name = format!("{forwarding}-{}", family(vip));
            let at = |name: &str, port: u16, server: &Host| {
                Service::tcp(name, vip, port + index as u16, forwarding)
                    .with("mssClamp: false")
                    .addresses([server.address(vip)])
            };
            services.push(at(&name, 80, first));
            if ["nat", "fullnat"].contains(forwarding) {
                services.push(at(&format!("{name}-cookies"), 90, last).with("synCookies: always"));
            }
        }
    }
    services
}

#[test]
fn a_server_learns_of_a_narrow_path_to_the_client_by_every_method() {
    const METHODS: [&str; 4] = ["dr", "tun", "nat", "fullnat"];
    let topology = Topology::builder().servers(2).far_clients(1).clients(0).servers_with_xdp().build();
    narrow(&topology, Subnet::FarClients);
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    topology.replies_through_director();
    let nginx = nginx_everywhere(&topology, &[80, 81, TRANSLATED]);
    let _tunnels = tunnels_everywhere(&topology, &vips(&topology));
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let services = services(&topology, &METHODS);
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);
    for service in &services {
        topology.servers.iter().for_each(|server| forget_paths(&server.namespace));
        let before = counter(&agent, "icmp_to_server");
        large_both_ways(&topology.client().namespace, service, &nginx);
        let told = counter(&agent, "icmp_to_server");
        assert!(told > before, "{}: no error reached the server, so this proved nothing", service.name);
    }
}

#[test]
fn a_client_learns_of_a_narrow_path_to_the_server_by_every_method_that_reaches_it() {
    const METHODS: [&str; 3] = ["tun", "nat", "fullnat"];
    let topology =
        Topology::builder().servers(0).far_servers(1).clients(1).far_clients(1).servers_with_xdp().build();
    narrow(&topology, Subnet::FarServers);
    topology.replies_through_director();
    // What the router itself says to clients goes by the director, as NAT asks of the servers' side.
    let router = topology.router.as_ref().expect("a router");
    for family in ["-4", "-6"] {
        for client in &topology.clients {
            let like: IpAddr = if family == "-4" { client.v4().into() } else { client.v6().into() };
            let to = client.address(like).to_string();
            router.output("ip", &[family, "rule", "add", "iif", "lo", "to", &to, "lookup", "100"]);
        }
    }
    let nginx = nginx_everywhere(&topology, &[80, TRANSLATED]);
    let _tunnels = tunnels_everywhere(&topology, &vips(&topology));
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let services = services(&topology, &METHODS);
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);
    for service in &services {
        let reason = if service.forwarding == "tun" { "packet_too_big" } else { "icmp_to_client" };
        for client in &topology.clients {
            let what = format!("{} from {}", service.name, client.namespace.role());
            forget_paths(&client.namespace);
            let before = counter(&agent, reason) + counter(&agent, "tunnel_mtu_told");
            large_both_ways(&client.namespace, service, &nginx);
            let told = counter(&agent, reason) + counter(&agent, "tunnel_mtu_told");
            assert!(told > before, "{what}: nobody was told, so this proved nothing");
            let route = client.namespace.output("ip", &["route", "get", &service.vip.to_string()]);
            let outer = match service.forwarding {
                "tun" if service.vip.is_ipv4() => 20,
                "tun" => 40,
                _ => 0,
            };
            assert!(route.contains(&format!("mtu {}", NARROW - outer)), "{what}: {route}");
        }
    }
    assert!(counter(&agent, "tunnel_mtu") + counter(&agent, "tunnel_mtu_told") > 0);
}
