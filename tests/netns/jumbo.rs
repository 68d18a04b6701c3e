//! Jumbo frames: an MTU of 9000 everywhere, frames that the kernel hands over in several buffers.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lb_tests::{Agent, Namespace, Topology, content, http};

use crate::fragments::Echo;
use crate::site::{
    self, Service, TRANSLATED, TRANSLATED_UDP, documents, family, tunnels_everywhere, until_all_in, vips,
};

const MTU: u32 = 9000;
/// In one frame, whatever tunnel it goes through.
const DATAGRAM: usize = 8000;
const BULK: usize = 50 << 20;

/// What a frame that may not be fragmented brings back; `None` where nothing comes in a second.
fn whole(client: &Namespace, server: SocketAddr) -> Option<usize> {
    client.run(|| {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(server).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        socket.send(&content::bytes(DATAGRAM)).ok()?;
        let mut buffer = vec![0; 65_535];
        let length = socket.recv(&mut buffer).ok()?;
        // The server's name is put before it.
        (buffer[8..length] == content::bytes(DATAGRAM)).then_some(length - 8)
    })
}

#[test]
fn frames_of_9000_bytes_carry_datagrams_and_bulk_transfers_by_every_method() {
    const METHODS: [&str; 4] = ["dr", "tun", "nat", "fullnat"];
    let topology = Topology::builder().servers(1).servers_with_xdp().mtu(MTU).build();
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    topology.replies_through_director();
    let _tunnels = tunnels_everywhere(&topology, &vips(&topology));
    let server = &topology.servers[0];
    let ports: Vec<u16> = (80..84).chain([TRANSLATED]).collect();
    let nginx = site::nginx_everywhere(&topology, &ports);
    nginx[0].offer(BULK);
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0, xdp: native"]));
    assert!(agent.log().contains("jumbo frames"), "{}", agent.log());
    let mut echoes: Vec<(SocketAddr, Echo)> = Vec::new();
    let mut services = Vec::new();
    for (n, method) in METHODS.into_iter().enumerate() {
        for vip in vips(&topology) {
            let name = format!("{method}-{}", family(vip));
            let tcp = Service::tcp(&name, vip, 80 + n as u16, method).servers([server]);
            let udp = Service::udp(&format!("{name}-udp"), vip, 53 + n as u16, method).servers([server]);
            let translated = ["nat", "fullnat"].contains(&method);
            let at: (IpAddr, u16) =
                if translated { (server.address(vip), TRANSLATED_UDP) } else { (vip, udp.port) };
            let at = SocketAddr::from(at);
            if !echoes.iter().any(|(other, _)| *other == at) {
                echoes.push((at, Echo::start(&server.namespace, at)));
            }
            services.push((tcp, udp));
        }
    }
    let all = services.iter().flat_map(|(tcp, udp)| [tcp, udp]);
    agent.apply(&(site::pool(&topology, "eth0") + &documents(all)));
    until_all_in(&agent);
    let client = &topology.client().namespace;
    for (tcp, udp) in &services {
        let echoed = (0..20).find_map(|_| whole(client, udp.socket()));
        assert_eq!(echoed, Some(DATAGRAM), "{}: {}", udp.name, agent.log());
        site::large_both_ways(client, tcp, &nginx);
        // Once a method is enough of this.
        if tcp.vip.is_ipv6() {
            continue;
        }
        let what = format!("{} ({})", tcp.name, tcp.socket());
        let down = http::get(client, &tcp.url(&format!("/bytes/{BULK}")));
        let down = down.unwrap_or_else(|error| panic!("{what}: 50 MiB down: {error}"));
        assert_eq!(down.body.len(), BULK, "{what}");
        content::check(0, &down.body).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    }
    // Had they been fragmented, this would have proved nothing.
    let counters = site::get(&agent, &["counters"]);
    let reasons = counters["reasons"].as_array().expect("reasons");
    let followed = reasons.iter().find(|reason| reason["name"] == "fragment_followed").expect("a reason");
    assert_eq!(followed["packets"], 0, "{counters:#}");
}
