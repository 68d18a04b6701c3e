//! Datagrams larger than the path, both ways, through real stacks: each arrives whole, at one server.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_tests::{Agent, Namespace, Topology, wait};

use crate::site::{self, Service, TRANSLATED_UDP, documents, family, tunnels_everywhere, until_all_in, vips};

/// More than two pieces at 1500 bytes.
const SIZE: usize = 4000;
const DNS: u16 = 53;

/// Sends back what it is sent, from the address that was asked, with its own name before it. Ends when dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(namespace: &Namespace, at: SocketAddr) -> Echo {
        let socket = namespace.run(|| UdpSocket::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"));
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let (name, told) = (format!("{:8}", namespace.role()), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while !told.load(Ordering::Relaxed) {
                // Back from here now and then to look at `told`.
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                let _ = socket.send_to(&[name.as_bytes(), &buffer[..length]].concat(), peer);
            }
        });
        Echo { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..SIZE).map(|i| ((i * 31 + seed * 7) % 251) as u8).collect()
}

/// A datagram and its echo; `None` where none comes in a second.
fn echo(client: &Namespace, server: SocketAddr, seed: usize) -> Option<(String, Vec<u8>)> {
    client.run(|| {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(server).expect("connect");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        // A path that was found to be narrower makes one send fail (EMSGSIZE of an earlier one).
        socket.send(&pattern(seed)).ok()?;
        let mut buffer = vec![0; 65_535];
        let length = socket.recv(&mut buffer).ok()?;
        let name = String::from_utf8_lossy(&buffer[..8]).trim().to_owned();
        Some((name, buffer[8..length].to_vec()))
    })
}

#[test]
fn a_datagram_of_4_kb_arrives_whole_at_one_server_and_its_answer_comes_back() {
    const METHODS: [&str; 4] = ["dr", "nat", "fullnat", "tun"];
    let topology = Topology::builder().servers(2).servers_with_xdp().build();
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    topology.replies_through_director();
    let _tunnels = tunnels_everywhere(&topology, &vips(&topology));
    let services: Vec<Service> = METHODS
        .iter()
        .enumerate()
        // The pieces of an IPv4 datagram have no DF: in a tunnel they would be cut again, which the data plane leaves.
        .flat_map(|(n, method)| {
            let vips = vips(&topology).into_iter().filter(|vip| *method != "tun" || vip.is_ipv6());
            vips.map(|vip| {
                Service::udp(&format!("{method}-{}", family(vip)), vip, DNS + n as u16, method)
                    .servers(&topology.servers)
            })
            .collect::<Vec<_>>()
        })
        .collect();
    let mut echoes: Vec<(SocketAddr, &str, Echo)> = Vec::new();
    for server in &topology.servers {
        for service in &services {
            let translated = ["nat", "fullnat"].contains(&service.forwarding);
            let (address, port) = if translated {
                (server.address(service.vip), TRANSLATED_UDP)
            } else {
                (service.vip, service.port)
            };
            let (at, role) = (SocketAddr::new(address, port), server.namespace.role());
            if !echoes.iter().any(|(other, whose, _)| (*other, *whose) == (at, role)) {
                echoes.push((at, role, Echo::start(&server.namespace, at)));
            }
        }
    }
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);
    let client = &topology.client().namespace;
    for service in &services {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..4 {
            // The first may be answered with packet too big (tunnels), and a busy machine may lose one.
            let found = (0..20).find_map(|_| echo(client, service.socket(), seed));
            let (name, data) =
                found.unwrap_or_else(|| panic!("{}: no answer\n{}", service.name, agent.log()));
            assert_eq!(data, pattern(seed), "{}: {} bytes came back", service.name, data.len());
            seen.insert(name);
        }
        assert_eq!(
            seen.len(),
            2,
            "{}: both servers take turns, with whole datagrams: {seen:?}",
            service.name
        );
    }
    let counters = site::get(&agent, &["counters"]);
    let reasons = counters["reasons"].as_array().expect("reasons");
    let followed = reasons.iter().find(|reason| reason["name"] == "fragment_followed").expect("a reason");
    assert!(followed["packets"].as_u64() > Some(0), "no fragment passed, so this proved nothing");
}

/// With room for the tunnel's header on the servers' side even IPv4's pieces, which have no DF, arrive whole.
#[test]
fn a_datagram_of_4_kb_arrives_whole_through_every_tunnel_where_its_path_has_room() {
    const TUNNELS: [&str; 3] = ["{type: ipip}", "{type: gue, port: 6080}", "{type: gre, spread: true}"];
    let topology = Topology::builder().servers(1).servers_with_xdp().mtu(1600).build();
    let client = &topology.client().namespace;
    // What the client sends has room for a header; what comes back by the direct way may fill the cables.
    vips(&topology).iter().for_each(|vip| client.ip(&format!("route add {vip} dev eth0 mtu 1500")));
    let _tunnels: Vec<_> = tunnels_everywhere(&topology, &vips(&topology))
        .into_iter()
        .map(|helper| helper.with_gue(6080))
        .collect();
    let server = &topology.servers[0];
    let mut services = Vec::new();
    let mut echoes = Vec::new();
    for (n, tunnel) in TUNNELS.into_iter().enumerate() {
        for vip in vips(&topology) {
            let port = DNS + n as u16;
            let service = Service::udp(&format!("t{n}-{}", family(vip)), vip, port, "tun").servers([server]);
            services.push(service.with(&format!("tunnel: {tunnel}")));
            echoes.push(Echo::start(&server.namespace, SocketAddr::new(vip, port)));
        }
    }
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    agent.apply(&documents(&services));
    until_all_in(&agent);
    for service in &services {
        // A busy machine may lose one.
        let found = (0..20).find_map(|seed| echo(client, service.socket(), seed).map(|found| (seed, found)));
        let (seed, (_, data)) =
            found.unwrap_or_else(|| panic!("{}: no answer\n{}", service.name, agent.log()));
        assert_eq!(data, pattern(seed), "{}", service.name);
    }
}

/// What the kernel puts together of packets of one protocol, for as long as one wants.
fn reassembled(namespace: &Namespace, protocol: i32) -> socket2::Socket {
    namespace.run(|| {
        let socket = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::from(protocol)),
        )
        .expect("a raw socket");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        socket
    })
}

/// The director's kernel cuts what is outside; the server's puts it together before anybody unpacks it. Kernel tunnels are
/// not everywhere, so a raw socket stands for one.
#[test]
fn what_does_not_fit_its_tunnel_is_cut_by_the_kernel_and_arrives_whole() {
    const IPIP: i32 = 4;
    let topology = Topology::builder().servers(1).build();
    let (director, server) = (&topology.director().namespace, &topology.servers[0]);
    let [vip, _] = vips(&topology);
    let service = Service::udp("tun", vip, DNS, "tun").servers([server]);
    let manifest = site::director_with(&["eth0"], "  packets: {tooBigForTunnel: fragment}\n");
    for setting in ["forwarding", "accept_local"] {
        director.output("sysctl", &["-w", &format!("net.ipv4.conf.eth0.{setting}=0")]);
    }
    let agent = Agent::start(director, &manifest);
    agent.apply(&documents([&service]));
    until_all_in(&agent);
    let status = || site::get(&agent, &["status"])["problems"].to_string();
    wait::until("the agent names what is missing", Duration::from_secs(30), || {
        let said = status();
        said.contains("net/ipv4/conf/eth0/forwarding=1 net/ipv4/conf/eth0/accept_local=1")
    });
    for setting in ["forwarding", "accept_local"] {
        director.output("sysctl", &["-w", &format!("net.ipv4.conf.eth0.{setting}=1")]);
    }
    wait::until("the agent is content", Duration::from_secs(30), || !status().contains("accept_local"));

    let mut socket = reassembled(&server.namespace, IPIP);
    let client = topology.client();
    let sender = client.namespace.run(|| {
        let sender = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        sender.connect(service.socket()).expect("connect");
        sender
    });
    let (from, to) = match (IpAddr::from(client.v4()), vip) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (from.octets(), to.octets()),
        _ => panic!("of IPv4"),
    };
    let mut whole = Vec::new();
    for seed in 0..30 {
        let mut pieces: Vec<(usize, Vec<u8>)> = Vec::new();
        // As a resolver's datagram: it may be cut on its way.
        let _ = sender.send(&pattern(seed));
        let mut buffer = vec![0; 65_535];
        // Both headers are twenty bytes long.
        while let Ok(length) = socket.read(&mut buffer) {
            let inner = &buffer[20..length];
            assert_eq!(
                (&inner[12..16], &inner[16..20]),
                (&from[..], &to[..]),
                "the client's packet is inside"
            );
            assert_eq!(usize::from(u16::from_be_bytes([inner[2], inner[3]])), inner.len(), "and whole");
            let offset = usize::from(u16::from_be_bytes([inner[6], inner[7]]) & 0x1fff) * 8;
            pieces.push((offset, inner[20..].to_vec()));
            if pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() >= SIZE + 8 {
                break;
            }
        }
        pieces.sort();
        whole = pieces.into_iter().flat_map(|(_, bytes)| bytes).collect();
        if whole.get(8..) == Some(&pattern(seed)[..]) {
            break;
        }
    }
    assert_eq!(whole.len(), SIZE + 8, "the datagram arrived in the tunnel, whole\n{}", agent.log());
    let counters = site::get(&agent, &["counters"]);
    let reasons = counters["reasons"].as_array().expect("reasons");
    let cut = reasons.iter().find(|reason| reason["name"] == "tunnel_fragmented").expect("a reason");
    assert!(cut["packets"].as_u64() > Some(0), "nothing went by the kernel, so this proved nothing");
}
