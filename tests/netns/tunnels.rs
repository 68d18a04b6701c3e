//! TUN by GUE and GRE through real stacks: the helper unpacks, nginx answers, in all pairs of families.

use std::net::IpAddr;

use lb_tests::{Agent, Topology};

use crate::site::{
    self, Service, documents, family, large_both_ways, nginx_everywhere, tunnels_everywhere, until_all_in,
    vips,
};

const GUE_PORT: u16 = 6080;
/// Each kind of tunnel has a port of the VIP.
const KINDS: [(u16, &str); 3] = [
    (80, "tunnel: {type: gue, port: 6080}"),
    (81, "tunnel: {type: gre}"),
    (82, "tunnel: {type: gre, spread: true}"),
];

#[test]
fn gue_and_gre_carry_everything_in_all_pairs_of_families_and_probes_take_them() {
    let topology = Topology::builder().servers(2).servers_with_xdp().build();
    let nginx = nginx_everywhere(&topology, &KINDS.map(|(port, _)| port));
    let vips = vips(&topology);
    let helpers: Vec<_> =
        tunnels_everywhere(&topology, &vips).into_iter().map(|helper| helper.with_gue(GUE_PORT)).collect();
    let mut services = Vec::new();
    for (port, tunnel) in KINDS {
        for (n, vip) in vips.into_iter().enumerate() {
            // The first real server is of the VIP's family, the second of the other.
            let (own, other) = (&topology.servers[0], &topology.servers[1]);
            let addresses = [own.address(vip), other.address(vips[1 - n])];
            let name = format!("t{port}-{}", family(vip));
            let service = Service::tcp(&name, vip, port, "tun").addresses(addresses);
            // By the real path, so that a tunnel that is not unpacked keeps its server out.
            services.push(service.with(tunnel).with("healthCheck: {tcp: {}, interval: 500ms}"));
        }
    }
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    agent.apply(&documents(&services));
    until_all_in(&agent);
    let client = &topology.client().namespace;
    for service in &services {
        site::assert_shares(&site::shares(client, &service.url("/"), 20), &[10, 10], &service.name);
        large_both_ways(client, service, &nginx);
    }
    for helper in &helpers {
        let (content, said) = helper.check();
        assert!(content, "{said}");
        for outcome in ["gue ", "gre "] {
            assert!(said.contains(outcome), "nothing came by {outcome}, so this proved nothing:\n{said}");
        }
        assert!(!said.contains("ip4_in_ip4"), "no service uses plain IPIP:\n{said}");
    }
    let view = site::get(&agent, &["real-servers"]);
    let mtus: Vec<(u16, IpAddr, u64)> = view
        .as_array()
        .expect("a list")
        .iter()
        .map(|server| {
            let port = server["service"].as_str().and_then(|name| name[1..3].parse().ok()).expect("a name");
            let address = server["address"].as_str().and_then(|text| text.parse().ok()).expect("an address");
            (port, address, server["mtu"].as_u64().expect("an MTU"))
        })
        .collect();
    for (port, address, mtu) in mtus {
        let between = match port {
            80 => 12,
            81 => 4,
            _ => 8,
        };
        let outer = if address.is_ipv6() { 40 } else { 20 };
        assert_eq!(mtu, 1500 - outer - between, "{port} {address}");
    }
}
