//! FTP under NAT and FULLNAT: every form of command and reply on the control channel, what is rewritten in them, and the
//! data connections that they announce.

use crate::{
    flows::Method,
    frame::{ACK, Packet, SYN, Transport},
    world::{Counted, DIRECTOR, GATEWAY, Seen, World, client, local, mac_of, same_frame, server, vip},
};
use lb_agent::dataplane::{Ports, dump::FlowState, tables::ServiceSpec};
use lb_common::{service::Pick, state::State, verdict::Reason};
use std::net::{IpAddr, SocketAddr};

const CONTROL: u16 = 21;
const CLIENT_PORT: u16 = 40_000;
/// Of a data connection, at the server (passive) or at the client (active).
const DATA: u16 = 50_000;
const METHODS: [Method; 2] = [Method::Nat, Method::FullNat];

/// The addresses of the pool.
fn locals(v6: bool) -> [IpAddr; 2] {
    let next = |last: u8| last ^ 1;
    let other = match local(v6) {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, next(d)].into()
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[15] = next(octets[15]);
            octets.into()
        }
    };
    [local(v6), other]
}

/// Sequence number and acknowledgement.
type Numbers = (u32, u32);

fn numbered(packet: Packet, numbers: Numbers) -> Packet {
    packet.with(|p| {
        if let Transport::Tcp { sequence, acknowledged, .. } = &mut p.transport {
            (*sequence, *acknowledged) = numbers;
        }
    })
}

/// Where a command says that the client is, in the plainest way.
fn named(command: &str) -> (IpAddr, u16) {
    let command = command.trim_end();
    if let Some(numbers) = command.to_uppercase().strip_prefix("PORT ") {
        let n: Vec<u8> = numbers.split(',').map(|n| n.parse().expect("a number")).collect();
        assert_eq!(n.len(), 6, "{command}");
        return ([n[0], n[1], n[2], n[3]].into(), u16::from_be_bytes([n[4], n[5]]));
    }
    let parts: Vec<&str> = command.split('|').collect();
    assert_eq!(parts.len(), 5, "{command}");
    (parts[2].parse().expect("an address"), parts[3].parse().expect("a port"))
}

/// A service with an established control channel to one of its two servers.
struct Ftp {
    world: World,
    spec: ServiceSpec,
    method: Method,
    v6: bool,
    destinations: [u32; 2],
}

impl Ftp {
    fn new(method: Method, v6: bool) -> Self {
        Self::with(method, v6, |_| ())
    }

    fn with(method: Method, v6: bool, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        let mut world = World::new();
        let mut spec = world.spec("ftp", vip(v6), crate::frame::TCP, &[Ports::One(CONTROL)]);
        if method == Method::FullNat {
            spec.pool = Some(world.pool_of(&locals(v6), (1, 1)));
        }
        spec.rules.ftp = true;
        change(&mut spec);
        world.service(&spec);
        world.clients_behind(GATEWAY);
        let destinations = [11, 12].map(|n| world.server(&spec, server(v6, n), 0, method.forwarding()));
        world.slots("ftp", &destinations);
        world.servers("ftp", &destinations);
        let mut ftp = Self { world, spec, method, v6, destinations };
        ftp.open(CLIENT_PORT, 0);
        ftp
    }

    fn every() -> impl Iterator<Item = Ftp> {
        METHODS.into_iter().flat_map(|method| [false, true].map(|v6| Ftp::new(method, v6)))
    }

    fn name(&self) -> String {
        format!("{:?} v6={}", self.method, self.v6)
    }

    fn real(&self, n: usize) -> IpAddr {
        server(self.v6, 11 + n as u8)
    }

    fn peer(&self) -> IpAddr {
        client(self.v6, 7)
    }

    /// A client's segment to a port of the VIP.
    fn to_vip(&self, port: u16, to: u16, flags: u8) -> Packet {
        Packet::tcp((self.peer(), port), (vip(self.v6), to), flags)
    }

    /// Where server `n` sees the client's connection from `port` to the VIP's `to` come from.
    fn seen_by_server(&self, port: u16, to: u16) -> (IpAddr, u16) {
        if self.method == Method::Nat {
            return (self.peer(), port);
        }
        let flow = SocketAddr::new(self.peer(), port);
        let all = self.world.connections();
        let flow = all.iter().find(|c| c.client == flow && c.vip.port() == to).expect("a flow");
        let local = flow.local.expect("a lease");
        (local.ip(), local.port())
    }

    /// A segment of server `n` in the connection that a client opened from `port` to the VIP's `from`.
    fn server_says(&self, n: usize, from: u16, port: u16, flags: u8) -> Packet {
        let to = self.seen_by_server(port, from);
        Packet::tcp((self.real(n), from), to, flags).with(|p| p.from = mac_of(self.real(n)))
    }

    /// Opens a control channel to server `n`, whose turn it must be.
    fn open(&mut self, port: u16, n: usize) {
        let name = self.name();
        for flags in [SYN, ACK] {
            let packet = self.to_vip(port, CONTROL, flags).with(|p| p.payload.clear());
            assert_eq!(self.world.goes_to(&name, &packet), self.destinations[n], "{name}");
            if flags == SYN {
                let reply = self.server_says(n, CONTROL, port, SYN | ACK);
                assert_eq!(self.world.send(&reply.bytes()).counted, Counted::Out(self.destinations[n]));
            }
        }
    }

    /// Server `n` says something on the control channel of `port`.
    fn reply(&mut self, n: usize, port: u16, text: &str) -> Seen {
        let packet = self.server_says(n, CONTROL, port, ACK).with(|p| p.payload = text.into());
        self.world.send(&packet.bytes())
    }

    /// The same, which passes; what the client reads.
    fn heard(&mut self, n: usize, text: &str) -> (String, Vec<Reason>) {
        let packet = self.server_says(n, CONTROL, CLIENT_PORT, ACK).with(|p| p.payload = text.into());
        let seen = self.world.send(&packet.bytes());
        let name = format!("{} {text:?}", self.name());
        assert_eq!(seen.counted, Counted::Out(self.destinations[n]), "{name}");
        // Everything but the payload is as in any reply; checksums are right over what is there now.
        let read = payload(&seen.frame, text.len());
        let out = packet.with(|p| {
            (p.to, p.from) = (GATEWAY, DIRECTOR);
            p.ttl -= 1;
            (p.source, p.destination) = (vip(self.v6), self.peer());
            p.set_ports((CONTROL, CLIENT_PORT));
            p.payload = read.clone();
        });
        same_frame(&name, &seen.frame, &out.bytes());
        (String::from_utf8(read).expect("text"), seen.events)
    }

    /// The client says something on its control channel; it must pass as it is.
    fn said(&mut self, text: &str) -> Vec<Reason> {
        let packet = self.to_vip(CLIENT_PORT, CONTROL, ACK).with(|p| p.payload = text.into());
        let seen = self.world.send(&packet.bytes());
        let name = format!("{} {text:?}", self.name());
        assert_eq!(seen.counted, Counted::In(self.destinations[0]), "{name}");
        let from = self.seen_by_server(CLIENT_PORT, CONTROL);
        let out = packet.with(|p| {
            (p.to, p.from) = (mac_of(self.real(0)), DIRECTOR);
            p.ttl -= 1;
            (p.source, p.destination) = (from.0, self.real(0));
            p.set_ports((from.1, CONTROL));
        });
        same_frame(&name, &seen.frame, &out.bytes());
        seen.events
    }

    /// The client says something that must not pass.
    fn refused(&mut self, text: &str) {
        let packet = self.to_vip(CLIENT_PORT, CONTROL, ACK).with(|p| p.payload = text.into());
        let name = format!("{} {text:?}", self.name());
        self.world.ends(&name, &packet, Reason::FtpRefused);
    }

    /// The reply to PASV of server `n`.
    fn passive(&self, n: usize, port: u16) -> String {
        match self.real(n) {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                format!("227 Entering Passive Mode ({a},{b},{c},{d},{},{}).\r\n", port >> 8, port & 255)
            }
            IpAddr::V6(_) => extended(port),
        }
    }

    /// What the client must read of [`Ftp::passive`].
    fn passive_at_vip(&self, port: u16) -> String {
        if self.v6 {
            return extended(port);
        }
        format!("227 Entering Passive Mo(203,0,113,10,{},{}).\r\n", port >> 8, port & 255)
    }

    /// The client's command for an active connection to a port of its own.
    fn active(&self, port: u16) -> [String; 2] {
        let extended = match self.peer() {
            IpAddr::V4(address) => format!("EPRT |1|{address}|{port}|\r\n"),
            IpAddr::V6(address) => format!("EPRT |2|{address}|{port}|\r\n"),
        };
        match self.peer() {
            IpAddr::V4(address) => {
                let numbers = address.to_string().replace('.', ",");
                [format!("PORT {numbers},{},{}\r\n", port >> 8, port & 255), extended]
            }
            IpAddr::V6(_) => [extended.to_lowercase(), extended],
        }
    }

    fn state_of(&self, port: u16, to: u16) -> Option<FlowState> {
        let flow = SocketAddr::new(self.peer(), port);
        let all = self.world.connections();
        all.iter().find(|c| c.client == flow && c.vip.port() == to).map(|c| c.state)
    }
}

fn extended(port: u16) -> String {
    format!("229 Entering Extended Passive Mode (|||{port}|).\r\n")
}

/// The last bytes of a frame.
fn payload(frame: &[u8], len: usize) -> Vec<u8> {
    frame[frame.len() - len..].to_vec()
}

#[test]
fn a_passive_reply_names_the_vip_and_the_data_connection_finds_its_server() {
    for mut ftp in Ftp::every() {
        let name = ftp.name();
        let (read, events) = ftp.heard(0, &ftp.passive(0, DATA));
        assert_eq!(read, ftp.passive_at_vip(DATA), "{name}");
        assert_eq!(events, [Reason::FtpAnnounced], "{name}");
        assert_eq!(ftp.state_of(0, DATA), Some(State::Listen.into_flow()), "{name}: to be seen");
        // The scheduler's turn would be the other server's.
        let syn = ftp.to_vip(41_000, DATA, SYN);
        let seen = ftp.world.send(&syn.bytes());
        assert_eq!(seen.counted, Counted::In(ftp.destinations[0]), "{name}");
        assert_eq!(seen.events, [Reason::FlowExpected], "{name}");
        let from = ftp.seen_by_server(41_000, DATA);
        let out = syn.clone().with(|p| {
            (p.to, p.from) = (mac_of(ftp.real(0)), DIRECTOR);
            p.ttl -= 1;
            (p.source, p.destination) = (from.0, ftp.real(0));
            p.set_ports((from.1, DATA));
        });
        same_frame(&name, &seen.frame, &out.bytes());
        // Sent again it is no new flow.
        let seen = ftp.world.send(&syn.bytes());
        assert_eq!((seen.counted, &seen.events[..]), (Counted::In(ftp.destinations[0]), &[][..]), "{name}");
        same_frame(&name, &seen.frame, &out.bytes());
        let answer = ftp.server_says(0, DATA, 41_000, SYN | ACK);
        let seen = ftp.world.send(&answer.bytes());
        assert_eq!(seen.counted, Counted::Out(ftp.destinations[0]), "{name}");
        let back = answer.with(|p| {
            (p.to, p.from) = (GATEWAY, DIRECTOR);
            p.ttl -= 1;
            (p.source, p.destination) = (vip(ftp.v6), ftp.peer());
            p.set_ports((DATA, 41_000));
        });
        same_frame(&name, &seen.frame, &back.bytes());
        let ack = ftp.to_vip(41_000, DATA, ACK).with(|p| p.payload = b"227 none of ours\r\n".into());
        let seen = ftp.world.send(&ack.bytes());
        assert_eq!((seen.counted, &seen.events[..]), (Counted::In(ftp.destinations[0]), &[][..]), "{name}");
        assert_eq!(ftp.state_of(41_000, DATA), Some(State::Established.into_flow()), "{name}");
    }
}

#[test]
fn nobody_else_and_no_other_port_is_expected() {
    for mut ftp in Ftp::every() {
        let name = ftp.name();
        ftp.heard(0, &ftp.passive(0, DATA));
        let others = [
            ftp.to_vip(41_000, DATA + 1, SYN),
            ftp.to_vip(41_000, DATA, SYN).with(|p| p.source = client(ftp.v6, 8)),
            ftp.to_vip(41_000, DATA, SYN | ACK),
            ftp.to_vip(41_000, DATA, ACK),
            ftp.to_vip(0, DATA, SYN),
        ];
        for (n, other) in others.into_iter().enumerate() {
            let seen = ftp.world.send(&other.bytes());
            let passed = seen.counted == Counted::Reason(Reason::NoService);
            assert!(passed, "{name}, {n}: {:?}", seen.counted);
        }
        // Over, it is as if it had not been.
        ftp.world.expire_all();
        let late = ftp.to_vip(41_000, DATA, SYN);
        ftp.world.ends(&name, &late, Reason::NoService);
    }
}

#[test]
fn a_client_that_begins_anew_on_the_ports_of_a_data_connection_that_is_over_is_served() {
    for mut ftp in Ftp::every() {
        let name = ftp.name();
        for round in 0..2 {
            ftp.heard(0, &ftp.passive(0, DATA));
            let syn = ftp.to_vip(41_000, DATA, SYN);
            let seen = ftp.world.send(&syn.bytes());
            assert_eq!(seen.counted, Counted::In(ftp.destinations[0]), "{name}, {round}");
            assert_eq!(seen.events, [Reason::FlowExpected], "{name}, {round}");
            let reset = ftp.server_says(0, DATA, 41_000, crate::frame::RST | ACK);
            assert_eq!(ftp.world.send(&reset.bytes()).counted, Counted::Out(ftp.destinations[0]), "{name}");
            assert_eq!(ftp.state_of(41_000, DATA), Some(State::Close.into_flow()), "{name}");
        }
    }
}

#[test]
fn two_servers_cannot_announce_one_port_to_a_client_at_once() {
    for mut ftp in Ftp::every() {
        let name = ftp.name();
        ftp.open(CLIENT_PORT + 1, 1);
        ftp.heard(0, &ftp.passive(0, DATA));
        let (text, port) = (ftp.passive(1, DATA), CLIENT_PORT + 1);
        let seen = ftp.reply(1, port, &text);
        assert_eq!(seen.counted, Counted::Reason(Reason::FtpPortBusy), "{name}");
        // The first one's connection begins, and the reply that is sent again passes.
        let syn = ftp.to_vip(41_000, DATA, SYN);
        assert_eq!(ftp.world.goes_to(&name, &syn), ftp.destinations[0], "{name}");
        let seen = ftp.reply(1, port, &text);
        assert_eq!(seen.counted, Counted::Out(ftp.destinations[1]), "{name}");
        let syn = ftp.to_vip(41_001, DATA, SYN);
        assert_eq!(ftp.world.goes_to(&name, &syn), ftp.destinations[1], "{name}");
    }
}

#[test]
fn replies_that_are_not_understood_pass_as_they_are() {
    for mut ftp in Ftp::every() {
        let elsewhere = if ftp.v6 { Reason::FtpGarbled } else { Reason::FtpElsewhere };
        for (text, events) in [
            ("220 (vsFTPd 3.0.3)\r\n", &[][..]),
            ("227-Entering Passive Mode (10,0,0,11,195,80).\r\n", &[]),
            ("227 Entering Passive Mode (10,0,0,11,195", &[Reason::FtpCut]),
            ("229 Entering Extended Passive Mode (|||50000|)", &[Reason::FtpCut]),
            ("227 Entering Passive Mode (10,0,0,11,195).\r\n", &[Reason::FtpGarbled]),
            ("229 Entering Extended Passive Mode (||50000|)\r\n", &[Reason::FtpGarbled]),
            ("227 Entering Passive Mode (192,0,2,1,195,80).\r\n", &[elsewhere]),
            ("\u{0}\u{1}\u{17}\u{3}\u{3}\r\n\u{0}", &[]),
        ] {
            let (read, seen) = ftp.heard(0, text);
            assert_eq!((read.as_str(), &seen[..]), (text, events), "{}", ftp.name());
        }
        let long = format!("{}\r\n", "x".repeat(1200));
        assert_eq!(ftp.heard(0, &long), (long.clone(), vec![]), "{}", ftp.name());
        let syn = ftp.to_vip(41_000, DATA, SYN);
        ftp.world.ends("nothing was announced", &syn, Reason::NoService);
    }
}

#[test]
fn a_reply_keeps_its_length_whatever_the_vip() {
    for method in METHODS {
        let mut ftp = Ftp::new(method, false);
        for (text, read) in [
            ("227 =10,0,0,11,195,80\r\n", None),
            ("227 passive (10,0,0,11,195,80) here\r\n", Some("227 passi(203,0,113,10,195,80) here\r\n")),
            ("227 (203,0,113,10,195,80)\r\n", Some("227 (203,0,113,10,195,80)\r\n")),
            (
                "226 Done.\r\n227 Passive Mode 10,0,0,11,195,80 and more\r\n",
                Some("226 Done.\r\n227 Passive M 203,0,113,10,195,80 and more\r\n"),
            ),
        ] {
            match read {
                Some(read) => assert_eq!(ftp.heard(0, text), (read.into(), vec![Reason::FtpAnnounced])),
                None => {
                    let seen = ftp.reply(0, CLIENT_PORT, text);
                    assert_eq!(seen.counted, Counted::Reason(Reason::FtpNoRoom), "{text:?}");
                }
            }
        }
    }
}

#[test]
fn ports_of_services_are_not_announced() {
    for mut ftp in Ftp::every() {
        let text = ftp.passive(0, 1023);
        assert_eq!(ftp.reply(0, CLIENT_PORT, &text).counted, Counted::Reason(Reason::FtpRefused));
    }
}

#[test]
fn an_active_connection_is_announced_by_every_command_and_comes_from_the_vip() {
    for v6 in [false, true] {
        let mut ftp = Ftp::new(Method::Nat, v6);
        let name = ftp.name();
        for (n, command) in ftp.active(DATA).into_iter().enumerate() {
            // Port 20 is the custom, and nobody must.
            for from in [20 + n as u16, 33_000 + n as u16] {
                assert_eq!(ftp.said(&command), [Reason::FtpAnnounced], "{name} {command:?}");
                let syn = Packet::tcp((ftp.real(0), from), (ftp.peer(), DATA), SYN);
                let syn = syn.with(|p| p.from = mac_of(ftp.real(0)));
                let out = syn.clone().with(|p| {
                    (p.to, p.from) = (GATEWAY, DIRECTOR);
                    p.ttl -= 1;
                    p.source = vip(v6);
                });
                for events in [&[Reason::FlowExpected][..], &[]] {
                    let seen = ftp.world.send(&syn.bytes());
                    assert_eq!(seen.counted, Counted::Out(ftp.destinations[0]), "{name} from {from}");
                    assert_eq!(seen.events, events, "{name} from {from}");
                    same_frame(&name, &seen.frame, &out.bytes());
                }
                for flags in [SYN | ACK, SYN | ACK, ACK] {
                    let answer = ftp.to_vip(DATA, from, flags);
                    let seen = ftp.world.send(&answer.bytes());
                    assert_eq!(seen.counted, Counted::In(ftp.destinations[0]), "{name}");
                    let out = answer.with(|p| {
                        (p.to, p.from) = (mac_of(ftp.real(0)), DIRECTOR);
                        p.ttl -= 1;
                        p.destination = ftp.real(0);
                    });
                    same_frame(&name, &seen.frame, &out.bytes());
                }
                assert_eq!(ftp.state_of(DATA, from), Some(State::Established.into_flow()), "{name}");
            }
        }
    }
}

#[test]
fn a_server_reaches_the_announced_port_and_no_other() {
    for v6 in [false, true] {
        let mut ftp = Ftp::new(Method::Nat, v6);
        let [command, _] = ftp.active(DATA);
        ftp.said(&command);
        let to = |n: usize, port: u16, flags: u8| {
            let from = server(v6, 11 + n as u8);
            Packet::tcp((from, 20), (client(v6, 7), port), flags).with(|p| p.from = mac_of(from))
        };
        for (case, packet) in [
            ("another server", to(1, DATA, SYN)),
            ("another port", to(0, DATA + 1, SYN)),
            ("no SYN", to(0, DATA, ACK)),
            ("a SYN-ACK", to(0, DATA, SYN | ACK)),
        ] {
            ftp.world.ends(case, &packet, Reason::ServerTraffic);
        }
        ftp.world.expire_all();
        ftp.world.ends("too late", &to(0, DATA, SYN), Reason::ServerTraffic);
    }
}

#[test]
fn a_bounce_is_refused() {
    for mut ftp in Ftp::every() {
        for text in [
            "PORT 198,51,100,8,195,80\r\n",
            "PORT 10,0,0,11,195,80\r\n",
            "EPRT |1|198.51.100.8|50000|\r\n",
            "EPRT |2|2001:db8:7::8|50000|\r\n",
            "EPRT |2|::1|50000|\r\n",
        ] {
            ftp.refused(text);
        }
        for command in ftp.active(1023) {
            ftp.refused(&command);
        }
        let victim = Packet::tcp((ftp.real(0), 20), (client(ftp.v6, 8), DATA), SYN);
        let victim = victim.with(|p| p.from = mac_of(ftp.real(0)));
        if ftp.method == Method::Nat {
            ftp.world.ends("the victim", &victim, Reason::ServerTraffic);
        }
    }
}

/// FULLNAT: what a command becomes, and what comes of it.
impl Ftp {
    fn fullnat() -> impl Iterator<Item = Ftp> {
        [false, true].into_iter().map(|v6| Ftp::new(Method::FullNat, v6))
    }

    /// The client says something with these numbers; what the server reads, whose numbers must be those.
    fn passes(&mut self, text: &str, numbers: Numbers, becomes: Numbers) -> (String, Vec<Reason>) {
        let packet = self.to_vip(CLIENT_PORT, CONTROL, ACK).with(|p| p.payload = text.into());
        let packet = numbered(packet, numbers);
        let seen = self.world.send(&packet.bytes());
        let name = format!("{} {text:?}", self.name());
        assert_eq!(seen.counted, Counted::In(self.destinations[0]), "{name}");
        let read = seen.frame[packet.l4() + 20..].to_vec();
        let from = self.seen_by_server(CLIENT_PORT, CONTROL);
        let out = numbered(packet, becomes).with(|p| {
            (p.to, p.from) = (mac_of(self.real(0)), DIRECTOR);
            p.ttl -= 1;
            (p.source, p.destination) = (from.0, self.real(0));
            p.set_ports((from.1, CONTROL));
            p.payload = read.clone();
        });
        same_frame(&name, &seen.frame, &out.bytes());
        (String::from_utf8(read).expect("text"), seen.events)
    }

    /// The server says something with these numbers; what the client reads, whose numbers must be those.
    fn answers(&mut self, text: &str, numbers: Numbers, becomes: Numbers) -> (String, Vec<Reason>) {
        let packet = self.server_says(0, CONTROL, CLIENT_PORT, ACK).with(|p| p.payload = text.into());
        let packet = numbered(packet, numbers);
        let seen = self.world.send(&packet.bytes());
        let name = format!("{} {text:?}", self.name());
        assert_eq!(seen.counted, Counted::Out(self.destinations[0]), "{name}");
        let read = payload(&seen.frame, text.len());
        let out = numbered(packet, becomes).with(|p| {
            (p.to, p.from) = (GATEWAY, DIRECTOR);
            p.ttl -= 1;
            (p.source, p.destination) = (vip(self.v6), self.peer());
            p.set_ports((CONTROL, CLIENT_PORT));
            p.payload = read.clone();
        });
        same_frame(&name, &seen.frame, &out.bytes());
        (String::from_utf8(read).expect("text"), seen.events)
    }

    /// A first command, at sequence number 1000: where the server is told to go.
    fn asks(&mut self, command: &str) -> (IpAddr, u16) {
        let (read, events) = self.passes(command, (1000, 1), (1000, 1));
        assert_eq!(events, [Reason::FtpAnnounced], "{} {command:?}", self.name());
        named(&read)
    }

    /// A segment of server `n` from a port of its own to where it was told to go.
    fn comes(&self, n: usize, from: u16, to: (IpAddr, u16), flags: u8) -> Packet {
        Packet::tcp((self.real(n), from), to, flags).with(|p| p.from = mac_of(self.real(n)))
    }
}

#[test]
fn an_active_command_under_fullnat_names_a_local_port_where_the_server_is_taken_to_the_client() {
    for v6 in [false, true] {
        for n in 0..2 {
            let mut ftp = Ftp::new(Method::FullNat, v6);
            let command = &ftp.active(DATA)[n];
            let name = format!("{} {command:?}", ftp.name());
            let to = ftp.asks(command);
            let control = ftp.seen_by_server(CLIENT_PORT, CONTROL);
            assert_eq!(to.0, control.0, "{name}: whom the server talks to");
            assert!(to.1 != control.1 && to.1 >= 1024, "{name}: {to:?}");
            // Port 20 is the custom, and nobody must.
            let from = [20, 33_000][n];
            let syn = ftp.comes(0, from, to, SYN);
            let out = syn.clone().with(|p| {
                (p.to, p.from) = (GATEWAY, DIRECTOR);
                p.ttl -= 1;
                (p.source, p.destination) = (vip(v6), ftp.peer());
                p.set_ports((from, DATA));
            });
            for events in [&[Reason::FlowExpected][..], &[]] {
                let seen = ftp.world.send(&syn.bytes());
                assert_eq!(seen.counted, Counted::Out(ftp.destinations[0]), "{name}");
                assert_eq!(seen.events, events, "{name}");
                same_frame(&name, &seen.frame, &out.bytes());
            }
            for flags in [SYN | ACK, SYN | ACK, ACK] {
                let answer = ftp.to_vip(DATA, from, flags);
                let seen = ftp.world.send(&answer.bytes());
                assert_eq!(seen.counted, Counted::In(ftp.destinations[0]), "{name}");
                assert_eq!(seen.events, [], "{name}");
                let out = answer.with(|p| {
                    (p.to, p.from) = (mac_of(ftp.real(0)), DIRECTOR);
                    p.ttl -= 1;
                    (p.source, p.destination) = (to.0, ftp.real(0));
                    p.set_ports((to.1, from));
                });
                same_frame(&name, &seen.frame, &out.bytes());
            }
            assert_eq!(ftp.state_of(DATA, from), Some(State::Established.into_flow()), "{name}");
            // What it carries is not read.
            let data =
                ftp.comes(0, from, to, ACK).with(|p| p.payload = b"227 x (10,0,0,11,195,80)\r\n".into());
            let seen = ftp.world.send(&data.bytes());
            assert_eq!(
                (seen.counted, &seen.events[..]),
                (Counted::Out(ftp.destinations[0]), &[][..]),
                "{name}"
            );
        }
    }
}

#[test]
fn what_follows_a_command_that_became_longer_or_shorter_is_shifted_both_ways() {
    for mut ftp in Ftp::fullnat() {
        let name = ftp.name();
        // Numbers run over.
        let (mut client, mut server, mut by) = (0xffff_ffd0_u32, 7000_u32, 0_u32);
        for round in 0..6_u16 {
            let command = &ftp.active(DATA + round)[usize::from(round) % 2];
            let (before, after) = ((client, server), (client.wrapping_add(by), server));
            let (read, events) = ftp.passes(command, before, after);
            assert_eq!(events, [Reason::FtpAnnounced], "{name}, {round}");
            let to = named(&read);
            assert_eq!(
                (read.len() < command.len(), read.len() > command.len()),
                (!ftp.v6, ftp.v6),
                "{read:?}"
            );
            // Sent again it says the same.
            assert_eq!(ftp.passes(command, before, after), (read.clone(), vec![]), "{name}, {round}");
            // The next one waits until the server has it.
            let early = ftp.active(DATA + 100)[0].clone();
            let early = ftp.to_vip(CLIENT_PORT, CONTROL, ACK).with(|p| p.payload = early.into());
            let early = numbered(early, (client.wrapping_add(command.len() as u32), server));
            ftp.world.ends(&name, &early, Reason::FtpEarly);
            client = client.wrapping_add(command.len() as u32);
            by = by.wrapping_add(read.len() as u32).wrapping_sub(command.len() as u32);
            let reply = "200 PORT command successful. Consider using PASV.\r\n";
            let (heard, events) = ftp.answers(reply, (server, client.wrapping_add(by)), (server, client));
            assert_eq!((heard.as_str(), &events[..]), (reply, &[][..]), "{name}, {round}");
            server = server.wrapping_add(reply.len() as u32);
            // Between them: the server comes, and the client goes on.
            let syn = ftp.comes(0, 20, to, SYN);
            assert_eq!(
                ftp.world.send(&syn.bytes()).counted,
                Counted::Out(ftp.destinations[0]),
                "{name}, {round}"
            );
            let text = "RETR file\r\n";
            let (read, events) = ftp.passes(text, (client, server), (client.wrapping_add(by), server));
            assert_eq!((read.as_str(), &events[..]), (text, &[][..]), "{name}, {round}");
            client = client.wrapping_add(text.len() as u32);
            // A passive connection among them.
            let text = ftp.passive(0, DATA + round);
            let (heard, events) = ftp.answers(&text, (server, client.wrapping_add(by)), (server, client));
            assert_eq!(heard, ftp.passive_at_vip(DATA + round), "{name}, {round}");
            assert_eq!(events, [Reason::FtpAnnounced], "{name}, {round}");
            server = server.wrapping_add(text.len() as u32);
        }
    }
}

#[test]
fn nobody_but_the_server_of_the_channel_reaches_the_client_by_its_local_port() {
    for mut ftp in Ftp::fullnat() {
        let to = ftp.asks(&ftp.active(DATA)[0].clone());
        let udp = Packet::udp((ftp.real(0), 20), to).with(|p| p.from = mac_of(server(ftp.v6, 11)));
        for (case, packet, reason) in [
            ("another server", ftp.comes(1, 20, to, SYN), Reason::WrongServer),
            ("another port", ftp.comes(0, 20, (to.0, to.1 ^ 1), SYN), Reason::NoLease),
            ("no SYN", ftp.comes(0, 20, to, ACK), Reason::WrongServer),
            ("a SYN-ACK", ftp.comes(0, 20, to, SYN | ACK), Reason::WrongServer),
            ("another protocol", udp, Reason::WrongServer),
        ] {
            ftp.world.ends(case, &packet, reason);
        }
        let syn = ftp.comes(0, 20, to, SYN);
        assert_eq!(ftp.world.send(&syn.bytes()).counted, Counted::Out(ftp.destinations[0]));
        ftp.world.ends("from another port", &ftp.comes(0, 21_000, to, SYN), Reason::WrongServer);
    }
    for mut ftp in Ftp::fullnat() {
        let to = ftp.asks(&ftp.active(DATA)[1].clone());
        ftp.world.expire_all();
        ftp.world.ends("too late", &ftp.comes(0, 20, to, SYN), Reason::NoLease);
    }
}

#[test]
fn a_further_command_takes_the_last_one_back() {
    for mut ftp in Ftp::fullnat() {
        let [first, second] = [DATA, DATA + 1].map(|port| ftp.active(port)[1].clone());
        let to = ftp.asks(&first);
        let len = |text: &str| text.len() as u32;
        let (read, _) = ftp.passes(&first, (1000, 1), (1000, 1));
        ftp.answers("200 Yes.\r\n", (1, 1000 + len(&read)), (1, 1000 + len(&first)));
        let (read, events) = ftp.passes(&second, (1000 + len(&first), 11), (1000 + len(&read), 11));
        assert_eq!(events, [Reason::FtpAnnounced]);
        let now = named(&read);
        // The one that was given back may be taken again.
        if to != now {
            ftp.world.ends("the first", &ftp.comes(0, 20, to, SYN), Reason::NoLease);
        }
        let syn = ftp.comes(0, 20, now, SYN);
        assert_eq!(ftp.world.send(&syn.bytes()).counted, Counted::Out(ftp.destinations[0]));
    }
}

#[test]
fn an_active_command_that_cannot_be_rewritten_goes_on_or_ends_by_its_length() {
    let mut ftp = Ftp::new(Method::FullNat, true);
    let command = ftp.active(DATA)[1].clone();
    // More than is read goes on as it is.
    let long = format!("{command}{}\r\n", "x".repeat(300));
    assert_eq!(ftp.said(&long), [Reason::FtpCut]);
    // What would become longer than is written.
    let full = format!("{command}{}\r\n", "x".repeat(254 - command.len()));
    let packet = ftp.to_vip(CLIENT_PORT, CONTROL, ACK).with(|p| p.payload = full.into());
    ftp.world.ends("full", &packet, Reason::FtpNoRoom);
}

#[test]
fn active_connections_under_fullnat_are_counted_at_their_server() {
    for v6 in [false, true] {
        let mut ftp = Ftp::with(Method::FullNat, v6, |spec| spec.pick = Pick::Lc);
        let to = ftp.asks(&ftp.active(DATA)[1].clone());
        assert_eq!(ftp.world.counts(ftp.destinations[0]), (1, 1), "announced");
        let syn = ftp.comes(0, 20, to, SYN);
        assert_eq!(ftp.world.send(&syn.bytes()).counted, Counted::Out(ftp.destinations[0]));
        assert_eq!(ftp.world.counts(ftp.destinations[0]), (2, 0), "begun");
    }
}

#[test]
fn commands_that_are_not_understood_pass_as_they_are() {
    for mut ftp in Ftp::every() {
        for (text, events) in [
            ("USER anonymous\r\n", &[][..]),
            ("PASV\r\n", &[]),
            ("EPSV\r\n", &[]),
            ("227 Entering Passive Mode (10,0,0,11,195,80).\r\n", &[]),
            ("PORT 198,51,100,7", &[Reason::FtpCut]),
            ("EPRT |1|198.51.100.7|5000", &[Reason::FtpCut]),
            ("PORT 198,51,100,7,1\r\n", &[Reason::FtpGarbled]),
            ("EPRT |3|198.51.100.7|50000|\r\n", &[Reason::FtpGarbled]),
        ] {
            assert_eq!(ftp.said(text), events, "{} {text:?}", ftp.name());
        }
    }
}

#[test]
fn a_service_that_does_not_ask_for_it_is_not_read() {
    for method in METHODS {
        let mut ftp = Ftp::with(method, false, |spec| spec.rules.ftp = false);
        let text = ftp.passive(0, DATA);
        assert_eq!(ftp.heard(0, &text), (text, vec![]));
        let foreign = "PORT 198,51,100,8,195,80\r\n";
        assert_eq!(ftp.said(foreign), []);
        // Asked for, it is, and established channels with it; and the other way round.
        for (asked, events) in [(true, &[Reason::FtpAnnounced][..]), (false, &[])] {
            ftp.spec.rules.ftp = asked;
            ftp.world.service(&ftp.spec.clone());
            let text = ftp.passive(0, DATA);
            assert_eq!(ftp.heard(0, &text).1, events);
        }
    }
}

#[test]
fn a_service_with_rules_has_its_data_connections_at_the_server_of_the_channel() {
    for method in METHODS {
        let mut ftp = Ftp::with(method, false, |spec| spec.rules.new_per_second = 1);
        ftp.heard(0, &ftp.passive(0, DATA));
        for port in 41_000..41_004 {
            // Neither counted nor refused by the limit of new connections.
            let syn = ftp.to_vip(port, DATA, SYN);
            assert_eq!(ftp.world.goes_to(&ftp.name(), &syn), ftp.destinations[0]);
        }
    }
}

#[test]
fn flows_of_a_counted_service_are_counted_while_they_are_expected_and_after() {
    for method in METHODS {
        let mut ftp = Ftp::with(method, false, |spec| spec.pick = Pick::Lc);
        assert_eq!(ftp.world.counts(ftp.destinations[0]), (1, 0));
        ftp.heard(0, &ftp.passive(0, DATA));
        assert_eq!(ftp.world.counts(ftp.destinations[0]), (1, 1), "{method:?}: announced");
        let syn = ftp.to_vip(41_000, DATA, SYN);
        assert_eq!(ftp.world.goes_to(&ftp.name(), &syn), ftp.destinations[0]);
        assert_eq!(ftp.world.counts(ftp.destinations[0]), (2, 1), "{method:?}: begun");
    }
}

trait IntoFlow {
    fn into_flow(self) -> FlowState;
}

impl IntoFlow for State {
    fn into_flow(self) -> FlowState {
        FlowState::Common(self)
    }
}

#[test]
fn a_segment_with_tcp_options_is_read_behind_them() {
    for mut ftp in Ftp::every() {
        let text = ftp.passive(0, DATA);
        let packet = ftp.server_says(0, CONTROL, CLIENT_PORT, ACK).with(|p| {
            p.payload = text.clone().into();
            if let Transport::Tcp { options, .. } = &mut p.transport {
                *options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
            }
        });
        let seen = ftp.world.send(&packet.bytes());
        assert_eq!(seen.events, [Reason::FtpAnnounced], "{}", ftp.name());
        let read = String::from_utf8(payload(&seen.frame, text.len())).unwrap();
        assert_eq!(read, ftp.passive_at_vip(DATA));
    }
}
