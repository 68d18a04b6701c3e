//! Datagrams larger than the path, both ways, through real stacks: each arrives whole, at one server.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_tests::{Agent, Namespace, Topology};

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
