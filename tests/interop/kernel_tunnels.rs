//! Kernel tunnels at the real server take what the director sends: IPIP, GRE and GUE in all pairs of families. The
//! commands are those of docs/real-server.md.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lb_tests::{Agent, Namespace, Topology, wait};

use crate::site::{self, Service, documents, family, vips};

/// For what an emulated machine that shares its CPUs does in a second elsewhere.
const PATIENCE: Duration = Duration::from_secs(120);
/// The verifier alone takes a minute there.
const START: Duration = Duration::from_secs(900);
/// Kind of tunnel, its port of the VIPs for real servers of IPv4 (one more: of IPv6), and the service's line.
const KINDS: [(&str, u16, &str); 3] = [
    ("ipip", 80, "tunnel: {type: ipip}"),
    ("gre", 90, "tunnel: {type: gre}"),
    ("gue", 100, "tunnel: {type: gue, port: 6080}"),
];

/// What an operator runs on a real server.
fn set_up(server: &Namespace, (d4, d6): (IpAddr, IpAddr), (s4, s6): (IpAddr, IpAddr)) {
    for command in [
        format!("ip link add ipip-a type ipip remote {d4}"),
        format!("ip link add sit-a type sit remote {d4}"),
        format!("ip link add ip6tnl-a type ip6tnl mode any remote {d6}"),
        format!("ip link add gre-a type gre remote {d4} local {s4}"),
        format!("ip link add gre6-a type ip6gre remote {d6} local {s6}"),
        "modprobe fou".to_owned(),
        "ip fou add port 6080 gue".to_owned(),
        "ip -6 fou add port 6080 gue".to_owned(),
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        server.output(words[0], &words[1..]);
    }
    for device in ["ipip-a", "sit-a", "ip6tnl-a", "gre-a", "gre6-a"] {
        server.output("ip", &["link", "set", device, "up"]);
        server.output("sysctl", &["-w", &format!("net.ipv4.conf.{device}.rp_filter=0")]);
    }
}

/// The device that is to unpack a kind of tunnel.
fn device(kind: &str, inner: IpAddr, outer: IpAddr) -> &'static str {
    match (kind, inner.is_ipv4(), outer.is_ipv4()) {
        ("gre", _, true) => "gre-a",
        ("gre", _, false) => "gre6-a",
        (_, _, false) => "ip6tnl-a",
        (_, true, true) => "ipip-a",
        (_, false, true) => "sit-a",
    }
}

/// Packets that a device has unpacked.
fn unpacked(server: &Namespace, device: &str) -> u64 {
    let said = server.output("ip", &["-json", "-statistics", "link", "show", "dev", device]);
    let links: serde_json::Value = serde_json::from_str(&said).expect("JSON of ip");
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap_or_else(|| panic!("no packets in {said}"))
}

/// Answers each connection with what was asked, and ends with the process.
fn listen(namespace: &Namespace, at: SocketAddr) {
    let listener = namespace.run(|| TcpListener::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut asked = [0; 64];
            let _ = stream.set_read_timeout(Some(PATIENCE));
            if let Ok(length) = stream.read(&mut asked) {
                let _ = stream.write_all(&asked[..length]);
            }
        }
    });
}

/// Whether a connection through the director carries a question and its answer.
fn is_answered(client: &Namespace, server: SocketAddr, question: &str) -> bool {
    client.run(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&server, PATIENCE / 4) else { return false };
        let _ = stream.set_read_timeout(Some(PATIENCE / 4));
        let mut answer = String::new();
        stream.write_all(question.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer == question
    })
}

#[test]
fn kernel_tunnels_unpack_every_kind_in_all_pairs_of_families() {
    let topology = Topology::builder().servers(1).build();
    let vips = vips(&topology);
    vips.iter().for_each(|vip| topology.vip_on_servers(*vip));
    let (director, server) = (topology.director(), &topology.servers[0]);
    let host = &server.namespace;
    let directors = (director.v4().into(), director.v6().into());
    set_up(host, directors, (server.v4().into(), server.v6().into()));

    let mut cases = Vec::new();
    for (kind, port, line) in KINDS {
        for (n, outer) in [IpAddr::from(server.v4()), server.v6().into()].into_iter().enumerate() {
            for vip in vips {
                let name = format!("{kind}-{}in{}", family(vip), family(outer));
                let service = Service::tcp(&name, vip, port + n as u16, "tun").addresses([outer]).with(line);
                listen(host, service.socket());
                cases.push((service, device(kind, vip, outer)));
            }
        }
    }
    let mut agent = Agent::prepare(&director.namespace, &site::director(&["eth0"]));
    agent.launch();
    wait::until("the agent answers", START, || agent.cli(&["get", "services"]).status.success());
    agent.apply(&documents(cases.iter().map(|(service, _)| service)));

    let client = &topology.client().namespace;
    let mut failed = Vec::new();
    for (service, device) in &cases {
        let before = unpacked(host, device);
        let answered = wait::holds_within(PATIENCE, || is_answered(client, service.socket(), &service.name));
        let through = unpacked(host, device) - before;
        println!("{}: answered: {answered}, {through} packets through {device}", service.name);
        // A handshake, a question, an end.
        if !answered || through < 3 {
            failed.push(format!("{} ({through} packets through {device})", service.name));
        }
    }
    assert!(failed.is_empty(), "{}\n{}", failed.join("\n"), agent.log());
    // Replies go by the server's own way: the director is sent none.
    let destinations = site::get(&agent, &["real-servers"]);
    for destination in destinations.as_array().expect("a list") {
        assert_eq!(destination["traffic"]["packetsOut"], 0, "{destination}");
    }
}
