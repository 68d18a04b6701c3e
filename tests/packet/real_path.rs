//! Health probes on the real path: what leaves the prober's pair is a packet to the VIP on its way to that real
//! server, and the server's reply comes back to the prober, whatever the director's role.

use crate::{
    flows::{Flow, Method},
    frame::{ACK, FIN, Mac, Packet, RST, SYN},
    world::{Counted, INGRESS, World, client, mac_of, server, vip},
};
use lb_agent::dataplane::{Action, Probed, ProberPair, RealPath, tables::Role};
use lb_common::{
    maps::{VRRP_FOREVER, VRRP_MASTER, own},
    probe::{ABORTED, CLOSING, FIRST_PORT, GROUPS, OPEN, OPENING, PORTS, port},
    verdict::Reason,
};
use std::net::IpAddr;

const NEAR: Mac = [2, 0, 0, 0, 0xe, 1];
const FAR: Mac = [2, 0, 0, 0, 0xe, 2];

fn pair() -> ProberPair {
    ProberPair {
        near: 900,
        // The interface of a test run: what is put there is sent back.
        far: INGRESS,
        near_mac: NEAR,
        far_mac: FAR,
        prober_v4: "198.18.64.1".parse().unwrap(),
        prober_v6: "fd00:9::1:1".parse().unwrap(),
        targets_v4: "198.18.0.0/18".parse().unwrap(),
        targets_v6: "fd00:9::/114".parse().unwrap(),
    }
}

fn prober(v6: bool) -> IpAddr {
    if v6 { pair().prober_v6.into() } else { pair().prober_v4.into() }
}

const PORT: u16 = 50_123;

/// A service whose real server is probed from this director's address .1.
struct Probe {
    flow: Flow,
    path: RealPath,
    address: IpAddr,
    ours: IpAddr,
}

impl Probe {
    fn new(method: Method, v6: bool, udp: bool) -> Self {
        Self::from(method, v6, udp, |_| server(v6, 1))
    }

    fn from(method: Method, v6: bool, udp: bool, ours: impl FnOnce(&World) -> IpAddr) -> Self {
        let mut flow = Flow::new(method, v6, udp);
        let ours = ours(&flow.world);
        let mut path = flow.world.plane.real_path_for_test(&pair()).expect("targets");
        flow.world.tables.bind_address("probes", Role::Probed, vip(v6)).expect("the role");
        let probed = Probed { vip: vip(v6), destination: flow.destination, source: ours };
        let address = path.ensure(&probed).expect("a target");
        Self { flow, path, address, ours }
    }

    /// The prober's packet from one of its ports.
    fn packet(&self, port: u16, flags: u8) -> Packet {
        let (from, to) = ((prober(self.flow.v6), port), (self.address, 80));
        let packet = if self.flow.udp { Packet::udp(from, to) } else { Packet::tcp(from, to, flags) };
        packet.with(|p| (p.from, p.to) = (NEAR, FAR))
    }

    /// Sends it; it must arrive at the server as one from this director to the VIP. Returns its port there.
    fn send(&mut self, packet: &Packet) -> u16 {
        let case = self.flow.name();
        let outcome = self.flow.world.plane.test_run_probe(&packet.bytes()).expect("BPF_PROG_TEST_RUN");
        self.flow.world.look_again();
        assert_eq!(outcome.action, Action::Tx, "{case}");
        let outer = match self.flow.method {
            Method::TunV4 => 20,
            Method::TunV6 => 40,
            _ => 0,
        };
        let at = packet.l4() + outer;
        let port = u16::from_be_bytes([outcome.frame[at], outcome.frame[at + 1]]);
        assert!(port >= FIRST_PORT, "{case}: {port}");
        let to_vip = packet.clone().with(|p| {
            (p.source, p.destination) = (self.ours, vip(self.flow.v6));
            p.ttl -= 1;
            p.set_ports((port, 80));
        });
        crate::world::same_frame(&case, &outcome.frame, &self.flow.towards_server(&to_vip));
        port
    }

    /// The server's reply to a port of ours.
    fn reply(&self, port: u16, flags: u8) -> Packet {
        let (from, to) = ((vip(self.flow.v6), 80), (self.ours, port));
        let reply = if self.flow.udp { Packet::udp(from, to) } else { Packet::tcp(from, to, flags) };
        reply.with(|p| p.from = mac_of(self.flow.real))
    }

    /// The reply must reach the prober at its port.
    fn arrives(&mut self, case: &str, reply: &Packet, port: u16) {
        let seen = self.flow.world.send(&reply.bytes());
        assert_eq!(seen.counted, Counted::Reason(Reason::ProbeReply), "{case}");
        let expected = reply.clone().with(|p| {
            p.tags.clear();
            (p.to, p.from) = (NEAR, FAR);
            (p.source, p.destination) = (self.address, prober(p.is_v6()));
            p.ttl -= 1;
            p.set_ports((80, port));
        });
        crate::world::same_frame(case, &seen.frame, &expected.bytes());
    }
}

fn matrix() -> Vec<(Method, bool, bool)> {
    let methods = [Method::Dr, Method::TunV4, Method::TunV6].into_iter();
    methods.flat_map(|m| [(m, false, false), (m, false, true), (m, true, false), (m, true, true)]).collect()
}

#[test]
fn a_probe_goes_to_the_vip_on_its_server_and_the_reply_comes_back() {
    for (method, v6, udp) in matrix() {
        let mut probe = Probe::new(method, v6, udp);
        let case = probe.flow.name();
        let port = probe.send(&probe.packet(PORT, SYN));
        probe.arrives(&case, &probe.reply(port, SYN | ACK), PORT);
        let tagged = probe.reply(port, ACK).tagged(&[(0x8100, 5)]);
        probe.arrives(&format!("{case}: tagged"), &tagged, PORT);
        assert_eq!(probe.send(&probe.packet(PORT, ACK)), port, "{case}: one connection, one port");
        let other = probe.send(&probe.packet(PORT + 1, SYN));
        assert_ne!(other, port, "{case}");
        probe.arrives(&format!("{case}: another"), &probe.reply(other, RST), PORT + 1);
        assert_eq!(probe.flow.world.connections().len(), 0, "{case}: a probe is no flow of the service");
    }
}

#[test]
fn the_directors_role_is_nothing_to_a_probe() {
    for v6 in [false, true] {
        let mut probe = Probe::new(Method::Dr, v6, false);
        let instance = probe.flow.world.tables.set_vrrp("edge", &[vip(v6)], true).unwrap();
        let now = probe.flow.world.plane.clock().jiffies().unwrap();
        for word in [0, VRRP_FOREVER, VRRP_MASTER | now & !VRRP_MASTER] {
            probe.flow.world.plane.vrrp_roles().set_word(instance, word).unwrap();
            let port = probe.send(&probe.packet(PORT, SYN));
            probe.arrives(&format!("v6={v6} {word:x}"), &probe.reply(port, SYN | ACK), PORT);
        }
    }
}

#[test]
fn what_a_probed_vip_sends_to_an_instances_address_goes_by_the_role_there() {
    for v6 in [false, true] {
        let mut probe = Probe::new(Method::Dr, v6, false);
        let port = probe.send(&probe.packet(PORT, SYN));
        let to = server(v6, 9);
        let packet = probe.reply(port, ACK).with(|p| p.destination = to);
        let now = probe.flow.world.plane.clock().jiffies().unwrap();
        for (accept, word, reason) in [
            (true, VRRP_FOREVER, Reason::NotOurs),
            (false, VRRP_FOREVER, Reason::NotAccepted),
            (false, 0, Reason::VrrpBackup),
            (true, VRRP_MASTER | now & !VRRP_MASTER, Reason::LeaseExpired),
        ] {
            let instance = probe.flow.world.tables.set_vrrp("edge", &[to], accept).unwrap();
            probe.flow.world.plane.vrrp_roles().set_word(instance, word).unwrap();
            probe.flow.world.ends(&format!("v6={v6} accept={accept} {word:x}"), &packet, reason);
        }
    }
}

#[test]
fn what_a_vip_sends_to_nobodys_probe_is_the_kernels() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut probe = Probe::new(Method::Dr, v6, udp);
        let port = probe.send(&probe.packet(PORT, SYN));
        let next = if port == 65_535 { port - 1 } else { port + 1 };
        let to_other_host = probe.reply(port, ACK).with(|p| p.destination = server(v6, 9));
        let from_other = probe.reply(port, ACK).with(|p| p.source = client(v6, 9));
        let swapped = {
            let (from, to) = ((vip(v6), 80), (probe.ours, port));
            if udp { Packet::tcp(from, to, ACK) } else { Packet::udp(from, to) }
        };
        let (low, unused) = (probe.reply(22, ACK), probe.reply(next, ACK));
        for (what, packet) in [
            ("a port that no probe has", &unused),
            ("a port of the host's", &low),
            ("to another address", &to_other_host),
            ("from another address", &from_other),
            ("of the other protocol", &swapped),
        ] {
            probe.flow.world.ends(&format!("v6={v6} udp={udp}: {what}"), packet, Reason::NotOurs);
        }
        if !v6 {
            let fragment = probe.reply(port, ACK).with(|p| p.fragment = 0x2000);
            probe.flow.world.ends("a fragment", &fragment, Reason::NotOurs);
        }
        // Forgotten by the agent, then the role itself.
        let reply = probe.reply(port, ACK);
        probe.path.retain(|_, _| false);
        probe.flow.world.ends("a target that is no more", &reply, Reason::NotOurs);
        probe.flow.world.tables.unbind_address("probes", Role::Probed, vip(v6)).unwrap();
        probe.flow.world.ends("a VIP that is not probed", &reply, Reason::NotOurs);
    }
}

#[test]
fn a_reply_is_found_where_the_filter_takes_our_address_for_another() {
    for v6 in [false, true] {
        // An address of ours in the cell of the VIP.
        let alike = |world: &World| {
            let (views, cell) = (world.views(), |a: IpAddr| world.views().cell_of(&a.into(), v6));
            let wanted = views.cell_of(&vip(v6).into(), v6);
            let candidate = |n: u32| -> IpAddr {
                let [_, a, b, c] = n.to_be_bytes();
                if v6 {
                    [0x2001, 0xdb8, 0xaa, 0, 0, 0, u16::from(a), u16::from_be_bytes([b, c])].into()
                } else {
                    [10, a, b, c].into()
                }
            };
            (1..1 << 24).map(candidate).find(|address| cell(*address) == wanted).expect("one of many")
        };
        let mut probe = Probe::from(Method::Dr, v6, false, alike);
        let port = probe.send(&probe.packet(PORT, SYN));
        probe.arrives(&format!("v6={v6}"), &probe.reply(port, SYN | ACK), PORT);
    }
}

#[test]
fn a_port_is_free_again_when_its_connection_is_over() {
    let mut probe = Probe::new(Method::Dr, false, false);
    let port = probe.send(&probe.packet(PORT, SYN));
    let mut ports: aya::maps::Array<_, u64> =
        probe.flow.world.map(own::PROBE_PORTS).try_into().expect("PROBE_PORTS");
    // The VIP's group is known by what was written.
    let used = |ports: &aya::maps::Array<_, u64>, at: &u32| ports.get(at, 0).is_ok_and(|word| word != 0);
    let at = (0..GROUPS).map(|group| group * PORTS + u32::from(port - FIRST_PORT));
    let at = at.clone().find(|at| used(&ports, at)).expect("a port of one group");
    let now = probe.flow.world.plane.clock().tick().unwrap();
    let left = |word: u64| ((word >> 16) as u16).wrapping_sub(now) as i16;
    let lasts = |probe: &mut Probe, ports: &aya::maps::Array<_, u64>, flags: u8, expected: u16| {
        assert_eq!(probe.send(&probe.packet(PORT, flags)), port, "it is the same connection");
        let left = left(ports.get(&at, 0).unwrap());
        // A tick may end meanwhile.
        let expected = expected as i16;
        assert!((expected - 2..=expected + 20).contains(&left), "{left} after {flags:#x}, not {expected}");
    };
    // A server that does not answer must not hold a port for long: the others need some, too.
    lasts(&mut probe, &ports, SYN, OPENING);
    lasts(&mut probe, &ports, ACK, OPEN);
    lasts(&mut probe, &ports, FIN | ACK, CLOSING);
    // Nor the ACKs of a close.
    probe.arrives("the server's last ACK", &probe.reply(port, ACK), PORT);
    assert!(left(ports.get(&at, 0).unwrap()) <= CLOSING as i16 + 20);
    lasts(&mut probe, &ports, ACK, CLOSING);
    lasts(&mut probe, &ports, RST, ABORTED);
    lasts(&mut probe, &ports, SYN, OPENING);
    lasts(&mut probe, &ports, ACK, OPEN);
    lasts(&mut probe, &ports, FIN | ACK, CLOSING);
    let word = ports.get(&at, 0).unwrap();
    ports.set(at, port::until(word, now.wrapping_sub(1)), 0).unwrap();
    probe.flow.world.ends("late", &probe.reply(port, ACK), Reason::NotOurs);
    let group = at / PORTS * PORTS..(at / PORTS + 1) * PORTS;
    // All of them in use: nothing goes out that could not come back.
    for at in group.clone() {
        ports.set(at, port::until(port::word(9, 9, false), now.wrapping_add(100)), 0).unwrap();
    }
    let packet = probe.packet(PORT, SYN).bytes();
    assert_eq!(probe.flow.world.plane.test_run_probe(&packet).unwrap().action, Action::Drop);
    for at in group.clone() {
        ports.set(at, 0, 0).unwrap();
    }
    probe.flow.world.look_again();
    probe.send(&probe.packet(PORT, SYN));
}

#[test]
fn what_is_no_probe_stays_in_the_pair() {
    let probe = Probe::new(Method::Dr, false, false);
    let plane = &probe.flow.world.plane;
    let elsewhere = probe.packet(PORT, SYN).with(|p| p.destination = "198.18.0.77".parse().unwrap());
    let unknown = probe.packet(PORT, SYN).with(|p| p.destination = "198.19.0.1".parse().unwrap());
    let icmp = Packet::other(prober(false), probe.address, 1);
    let fragment = probe.packet(PORT, SYN).with(|p| p.fragment = 0x2000);
    for packet in [&elsewhere, &unknown, &icmp, &fragment] {
        let outcome = plane.test_run_probe(&packet.bytes()).unwrap();
        assert_eq!((outcome.action, outcome.frame), (Action::Pass, packet.bytes()));
    }
}
