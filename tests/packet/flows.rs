//! One service with one real server by one forwarding method: the packets of its flow, and what they must look
//! like on the other side.

use crate::{
    frame::{self, ACK, Ipv4, Ipv6, Packet, SYN, TCP, UDP, framed},
    world::{Counted, DIRECTOR, GATEWAY, World, client, local, mac_of, server, tunnel_source, vip},
};
use lb_agent::dataplane::{Ports, tables::ServiceSpec};
use lb_common::destination::Forwarding;
use std::net::IpAddr;

/// A forwarding method, and for tunnels the family outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Dr,
    TunV4,
    TunV6,
    Nat,
    FullNat,
}

impl Method {
    pub const ALL: [Method; 5] = [Method::Dr, Method::TunV4, Method::TunV6, Method::Nat, Method::FullNat];

    pub fn forwarding(self) -> Forwarding {
        match self {
            Method::Dr => Forwarding::Dr,
            Method::TunV4 | Method::TunV6 => Forwarding::Tun,
            Method::Nat => Forwarding::Nat,
            Method::FullNat => Forwarding::FullNat,
        }
    }

    pub fn translates(self) -> bool {
        matches!(self, Method::Nat | Method::FullNat)
    }

    pub fn real_is_v6(self, v6: bool) -> bool {
        match self {
            Method::TunV4 => false,
            Method::TunV6 => true,
            _ => v6,
        }
    }
}

/// Every method with both families and both protocols.
pub fn matrix() -> Vec<(Method, bool, bool)> {
    let mut all = Vec::new();
    for method in Method::ALL {
        for v6 in [false, true] {
            for udp in [false, true] {
                all.push((method, v6, udp));
            }
        }
    }
    all
}

pub const CLIENT_PORT: u16 = 40_000;
pub const VIP_PORT: u16 = 80;
pub const REAL_PORT: u16 = 8080;

pub struct Flow {
    pub world: World,
    pub spec: ServiceSpec,
    pub method: Method,
    pub v6: bool,
    pub udp: bool,
    pub real: IpAddr,
    /// 0 keeps the VIP's.
    pub real_port: u16,
    pub destination: u32,
}

impl Flow {
    /// Clients behind [`GATEWAY`]; NAT and FULLNAT to another port.
    pub fn new(method: Method, v6: bool, udp: bool) -> Self {
        Self::with(method, v6, udp, |_| ())
    }

    pub fn with(method: Method, v6: bool, udp: bool, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        Self::of(method, v6, if udp { UDP } else { TCP }, change)
    }

    /// Of any protocol; the packets it makes itself are TCP's or UDP's.
    pub fn of(method: Method, v6: bool, protocol: u8, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        Self::placed(World::new(), method, v6, protocol, change)
    }

    /// As [`Flow::of`], by this data plane.
    pub fn placed(
        mut world: World,
        method: Method,
        v6: bool,
        protocol: u8,
        change: impl FnOnce(&mut ServiceSpec),
    ) -> Self {
        let udp = protocol == UDP;
        let mut spec = world.spec("web", vip(v6), protocol, &[Ports::One(VIP_PORT)]);
        if method == Method::FullNat {
            spec.pool = Some(world.pool(local(v6), (1, 1)));
        }
        change(&mut spec);
        world.service(&spec);
        world.clients_behind(GATEWAY);
        let real = server(method.real_is_v6(v6), 11);
        let real_port = if method.translates() { REAL_PORT } else { 0 };
        let destination = world.server(&spec, real, real_port, method.forwarding());
        world.slots("web", &[destination]);
        Self { world, spec, method, v6, udp, real, real_port, destination }
    }

    pub fn name(&self) -> String {
        format!("{:?} v6={} udp={}", self.method, self.v6, self.udp)
    }

    /// A client's packet; flags are TCP's.
    pub fn packet(&self, flags: u8) -> Packet {
        self.packet_from(client(self.v6, 7), CLIENT_PORT, flags)
    }

    pub fn packet_from(&self, address: IpAddr, port: u16, flags: u8) -> Packet {
        let (from, to) = ((address, port), (vip(self.v6), VIP_PORT));
        if self.udp { Packet::udp(from, to) } else { Packet::tcp(from, to, flags) }
    }

    /// Gives its server another standing.
    pub fn stand(&mut self, standing: lb_agent::dataplane::tables::Standing) {
        self.world.standing = standing;
        self.world.server(&self.spec, self.real, self.real_port, self.method.forwarding());
    }

    /// The first packet of a flow.
    pub fn first(&self) -> Packet {
        self.packet(SYN)
    }

    pub fn server_port(&self) -> u16 {
        if self.real_port == 0 { VIP_PORT } else { self.real_port }
    }

    /// Our port towards the server (FULLNAT), as the dump shows it.
    pub fn lease(&self) -> u16 {
        let connection = self.world.connection("lease");
        let address = connection.local.expect("a lease");
        assert_eq!(address.ip(), local(self.v6));
        address.port()
    }

    /// The server's reply (NAT, FULLNAT).
    pub fn reply(&self, flags: u8) -> Packet {
        let from = (self.real, self.server_port());
        let to = match self.method {
            Method::FullNat => (local(self.v6), self.lease()),
            _ => (client(self.v6, 7), CLIENT_PORT),
        };
        let reply = if self.udp { Packet::udp(from, to) } else { Packet::tcp(from, to, flags) };
        reply.with(|p| p.from = mac_of(self.real))
    }

    /// The IP packet that goes to the server, in its frame.
    pub fn towards_server(&self, packet: &Packet) -> Vec<u8> {
        let mut out = packet.clone();
        out.tags.clear();
        (out.to, out.from) = (mac_of(self.real), DIRECTOR);
        out.ttl -= 1;
        match self.method {
            Method::Dr => {}
            Method::TunV4 | Method::TunV6 => {
                let outer = tunnelled(&out, self.real);
                return framed(out.to, out.from, &[], &outer);
            }
            Method::Nat => {
                out.destination = self.real;
                out.set_ports((packet.ports().0, self.server_port()));
            }
            Method::FullNat => {
                (out.source, out.destination) = (local(self.v6), self.real);
                out.set_ports((self.lease(), self.server_port()));
            }
        }
        out.bytes()
    }

    /// The IP packet that goes to the client, in its frame.
    pub fn towards_client(&self, reply: &Packet) -> Vec<u8> {
        let mut out = reply.clone();
        out.tags.clear();
        (out.to, out.from) = (GATEWAY, DIRECTOR);
        out.ttl -= 1;
        (out.source, out.destination) = (vip(self.v6), client(self.v6, 7));
        out.set_ports((VIP_PORT, CLIENT_PORT));
        out.bytes()
    }

    /// Sends a client's packet and checks its frame out.
    pub fn forward(&mut self, packet: &Packet) -> crate::world::Seen {
        let seen = self.world.send(&packet.bytes());
        assert_eq!(seen.counted, Counted::In(self.destination), "{}", self.name());
        // After the run: only then is the lease known.
        crate::world::same_frame(&self.name(), &seen.frame, &self.towards_server(packet));
        seen
    }

    /// Sends a server's reply and checks its frame out.
    pub fn answer(&mut self, reply: &Packet) {
        let expected = self.towards_client(reply);
        let name = format!("{} reply", self.name());
        self.world.forwards(&name, reply, Counted::Out(self.destination), &expected);
    }

    /// Brings a flow to its settled state: established, or confirmed.
    pub fn establish(&mut self) {
        self.forward(&self.first());
        if self.method.translates() {
            self.answer(&self.reply(SYN | ACK));
        }
        self.forward(&self.packet(ACK));
    }
}

/// The packet inside another to a real server, as RFC 2003, RFC 2473 and RFC 4213 have it; type of service with
/// ECN, TTL and DF are those of the packet inside.
pub fn tunnelled(inner: &Packet, real: IpAddr) -> Vec<u8> {
    let protocol = if inner.is_v6() { 41 } else { 4 };
    match (tunnel_source(real.is_ipv6()), real) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ipv4 {
            tos: inner.tos,
            id: inner.id,
            fragment: if inner.is_v6() {
                frame::DONT_FRAGMENT
            } else {
                inner.fragment & frame::DONT_FRAGMENT
            },
            ttl: inner.ttl,
            protocol,
            source,
            destination,
        }
        .packet(&[], &inner.ip()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6 {
            class: inner.tos,
            flow_label: inner.flow_label,
            next: protocol,
            hop_limit: inner.ttl,
            source,
            destination,
        }
        .packet(&inner.ip()),
        _ => panic!("a tunnel of two families"),
    }
}
