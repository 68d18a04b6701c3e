//! The real-server helper in a real namespace: tunnelled packets reach the service, whatever the families, and
//! everything it set up goes again. No director is needed: tunnelled packets come from raw sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use etherparse::PacketBuilder;
use lb_tests::{Host, RealServer, Topology, UdpServer};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const PORT: u16 = 5000;
/// Each question has a port of its own: a socket that was just closed may live on in a process being started.
static CLIENT_PORT: AtomicU16 = AtomicU16::new(40_000);

/// `sender` tunnels to `server` what the client would ask the VIP; the client says what it heard.
fn ask_through_tunnel(
    topology: &Topology,
    sender: &Host,
    server: IpAddr,
    vip: IpAddr,
    patience: Duration,
) -> io::Result<String> {
    let client = topology.client().address(vip);
    let port = CLIENT_PORT.fetch_add(1, Ordering::Relaxed);
    let socket = topology.client().namespace.run(|| UdpSocket::bind(SocketAddr::new(client, port)))?;
    // The answer comes from the VIP, or not to this socket.
    socket.connect(SocketAddr::new(vip, PORT))?;
    socket.set_read_timeout(Some(patience))?;

    let mut inner = Vec::new();
    match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => PacketBuilder::ipv4(client.octets(), vip.octets(), 64)
            .udp(port, PORT)
            .write(&mut inner, b"who")
            .unwrap(),
        (IpAddr::V6(client), IpAddr::V6(vip)) => PacketBuilder::ipv6(client.octets(), vip.octets(), 64)
            .udp(port, PORT)
            .write(&mut inner, b"who")
            .unwrap(),
        _ => unreachable!("the client's address is like the VIP"),
    }
    let protocol = if vip.is_ipv4() { 4 } else { 41 };
    sender.namespace.run(|| {
        let domain = if server.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        // The kernel writes the outer header.
        let raw = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
        raw.send_to(&inner, &SockAddr::from(SocketAddr::new(server, 0)))
    })?;

    let mut answer = [0; 256];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn tunnelled_packets_of_a_listed_director_reach_the_service_by_every_pair_of_families() {
    let topology = Topology::builder().servers(1).build();
    let (server, director) = (&topology.servers[0], topology.director());
    let vips: [IpAddr; 2] = [topology.vip_v4(0).into(), topology.vip_v6(0).into()];
    let udp = UdpServer::start(&server.namespace, "server-1", &[PORT]);
    let helper = RealServer::up(&server.namespace, &vips, &[director.v4().into(), director.v6().into()]);
    for outer in [IpAddr::from(server.v4()), server.v6().into()] {
        for vip in vips {
            let answer = ask_through_tunnel(&topology, director, outer, vip, Duration::from_secs(3));
            let answer = answer
                .unwrap_or_else(|error| panic!("to {vip} inside {outer}: {error}\n{}", helper.check().1));
            assert!(answer.contains(udp.name()), "to {vip} inside {outer}: {answer:?}");
        }
    }
    let (well, report) = helper.check();
    assert!(well, "{report}");
    for seen in ["ip4_in_ip4 1", "ip6_in_ip4 1", "ip4_in_ip6 1", "ip6_in_ip6 1"] {
        assert!(report.contains(seen), "{seen} is not in\n{report}");
    }
}

#[test]
fn tunnelled_packets_of_anyone_else_do_not_reach_the_service() {
    let topology = Topology::builder().servers(1).build();
    let server = &topology.servers[0];
    let vip = topology.vip_v4(0).into();
    let _udp = UdpServer::start(&server.namespace, "server-1", &[PORT]);
    let helper = RealServer::up(&server.namespace, &[vip], &[topology.director().v4().into()]);
    let stranger = topology.client();
    let answer = ask_through_tunnel(&topology, stranger, server.v4().into(), vip, Duration::from_millis(500));
    assert!(answer.is_err(), "a stranger's packet was unpacked: {answer:?}");
    let (_, report) = helper.check();
    assert!(report.contains("not_from_director 1"), "{report}");
}

#[test]
fn check_sees_what_is_damaged_up_repairs_it_and_down_leaves_the_host_as_it_was() {
    let topology = Topology::builder().servers(1).build();
    let server = &topology.servers[0].namespace;
    let vip = IpAddr::from(topology.vip_v4(0));
    let state = || {
        let sysctls = ["all", "eth0"].map(|interface| {
            ["arp_ignore", "arp_announce", "rp_filter"]
                .map(|name| server.output("cat", &[&format!("/proc/sys/net/ipv4/conf/{interface}/{name}")]))
        });
        (sysctls, server.output("ip", &["-brief", "address"]), server.output("ip", &["link", "show", "eth0"]))
    };
    server.sysctl("net.ipv4.conf.eth0.rp_filter=1");
    let before = state();

    let helper = RealServer::up(server, &[vip], &[topology.director().v4().into()]);
    assert!(helper.check().0, "{}", helper.check().1);
    server.ip(&format!("address del {vip}/32 dev lo"));
    server.sysctl("net.ipv4.conf.all.arp_ignore=0");
    server.sysctl("net.ipv4.conf.eth0.arp_ignore=0");
    let (well, report) = helper.check();
    assert!(!well, "damage was not seen:\n{report}");
    assert!(report.contains(&format!("FAIL  lo: {vip}/32 is missing")), "{report}");
    assert!(report.contains("FAIL  eth0: arp_ignore is 0"), "{report}");

    helper.up_again();
    assert!(helper.check().0, "{}", helper.check().1);
    helper.down();
    assert_eq!(state(), before);
}
