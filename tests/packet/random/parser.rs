//! What must become of a frame, by a parser that has nothing of the data plane's: slices, bounds checks, and one
//! rule after another, as docs/datapath tells them.

use super::{
    frames::Tuple,
    world::{Flow, Known, MTU, World},
};
use lb_common::{
    destination::Forwarding as Method,
    header::{ethertype, protocol},
    service::OnUnknownFlow,
    state::{ACK, Direction, FIN, RST, SYN, State, URG, step},
    verdict::Reason,
};

use std::net::{Ipv4Addr, Ipv6Addr};

/// What becomes of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// To the kernel, byte for byte.
    Passes,
    Dropped(Reason),
    Answered(Reason),
    /// Sent on, to a server or to a client.
    Forwarded,
}

/// What becomes of the connection table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    Nothing,
    /// A flow of this service begins.
    Begins {
        service: usize,
    },
    /// The entry of this flow, and its twin's, gets this state.
    Steps {
        flow: usize,
        state: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    pub fate: Fate,
    pub effect: Effect,
    /// A service whose slot table was asked for a server.
    pub picks: Option<usize>,
}

impl Expected {
    const PASSES: Self = Self { fate: Fate::Passes, effect: Effect::Nothing, picks: None };

    fn dropped(reason: Reason) -> Self {
        Self { fate: Fate::Dropped(reason), ..Self::PASSES }
    }

    fn answered(reason: Reason) -> Self {
        Self { fate: Fate::Answered(reason), ..Self::PASSES }
    }
}

/// A TCP, UDP or SCTP packet that is not a fragment, by its IP header.
struct Packet<'a> {
    tuple: Tuple,
    /// The world has no service for it and no flow of it.
    sctp: bool,
    /// From the IP header to the end of the frame.
    ip: &'a [u8],
    /// Offset of the transport header in `ip`.
    transport: usize,
}

/// What must become of `frame`, all flows of the world being as they were made.
pub fn expected(world: &World, frame: &[u8]) -> Expected {
    let Some((kind, l3)) = behind_tags(frame) else { return Expected::PASSES };
    let Some((packet, whole)) = packet(kind, frame, l3) else { return Expected::PASSES };
    let (v6, tuple) = (packet.tuple.v6, packet.tuple);
    let to_vip = world.vips.contains(&(tuple.destination, v6));
    let to_pool = world.pools.contains(&(tuple.destination, v6));
    let from_server = world.nat_servers.contains(&(tuple.source, v6));
    if !to_vip && !to_pool && !from_server {
        return Expected::PASSES;
    }
    let known = if whole && !packet.sctp { world.known.get(&tuple) } else { None };
    if !to_vip && !to_pool {
        return match known {
            Some(Known::Reply(flow)) => reply(world, &packet, *flow),
            _ => Expected::PASSES,
        };
    }
    // A lease says itself who may use it.
    let of_lease = to_pool && whole;
    if let (true, false, Some(reason)) = (known.is_none(), of_lease, impossible_sender(&tuple)) {
        return Expected::dropped(reason);
    }
    if !whole {
        return Expected::dropped(Reason::BadTransport);
    }
    if to_pool {
        return to_local_address(world, &packet);
    }
    match known {
        Some(Known::Client(flow)) => of_known_flow(world, &packet, *flow),
        _ => of_no_flow(world, &packet),
    }
}

/// Why nobody can have sent a packet to one of our addresses (RFC 1122, section 3.2.1.3; RFC 4291, section 2.4).
fn impossible_sender(tuple: &Tuple) -> Option<Reason> {
    if tuple.source == tuple.destination {
        return Some(Reason::Land);
    }
    let nobody = if tuple.v6 {
        let source = Ipv6Addr::from(tuple.source);
        source.is_multicast() || source.is_unspecified() || source.is_loopback()
    } else {
        let source = Ipv4Addr::new(tuple.source[0], tuple.source[1], tuple.source[2], tuple.source[3]);
        let nets = source.octets()[0] == 0 || source.is_loopback();
        nets || source.is_multicast() || source.is_broadcast()
    };
    nobody.then_some(Reason::BadSource)
}

/// Whether a frame carries a fragment, or an IPv6 packet with the header of one.
pub fn is_fragment(frame: &[u8]) -> bool {
    let Some((kind, l3)) = behind_tags(frame) else { return false };
    let ip = &frame[l3..];
    if kind == ethertype::IPV4 {
        return ip.get(6..8).is_some_and(|word| u16::from_be_bytes([word[0], word[1]]) & 0x3fff != 0);
    }
    let (mut number, mut at) = (ip.get(6).copied().unwrap_or_default(), 40);
    while kind == ethertype::IPV6 && number != protocol::FRAGMENT {
        let Some(header) = ip.get(at..at + 8) else { return false };
        at += match number {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                (header[1] as usize + 1) * 8
            }
            protocol::AH => (header[1] as usize + 2) * 4,
            _ => return false,
        };
        number = header[0];
    }
    kind == ethertype::IPV6
}

/// What is behind at most two VLAN tags: its Ethernet type and offset.
fn behind_tags(frame: &[u8]) -> Option<(u16, usize)> {
    for l3 in [14, 18, 22] {
        let kind = frame.get(l3 - 2..l3)?;
        let kind = u16::from_be_bytes([kind[0], kind[1]]);
        if kind != ethertype::VLAN && kind != ethertype::QINQ {
            return Some((kind, l3));
        }
    }
    None
}

/// The packet, and whether its ports and flags lie in the packet and in the frame. None: not TCP, UDP or SCTP, a
/// fragment, or an IP header that cannot be believed.
fn packet(kind: u16, frame: &[u8], l3: usize) -> Option<(Packet<'_>, bool)> {
    let ip = &frame[l3..];
    let (v6, number, transport, length) = match kind {
        ethertype::IPV4 => {
            let header = ip.get(..20)?;
            let words = (header[0] & 0x0f) as usize;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
            if header[0] >> 4 != 4 || words < 5 || fragment {
                return None;
            }
            (false, header[9], words * 4, u16::from_be_bytes([header[2], header[3]]) as usize)
        }
        ethertype::IPV6 => {
            let header = ip.get(..40)?;
            if header[0] >> 4 != 6 {
                return None;
            }
            let (number, transport) = behind_extensions(ip, header[6], 1024 - l3)?;
            (true, number, transport, u16::from_be_bytes([header[4], header[5]]) as usize + 40)
        }
        _ => return None,
    };
    let (udp, sctp, least) = match number {
        protocol::TCP => (false, false, 20),
        protocol::UDP => (true, false, 8),
        protocol::SCTP => (false, true, 16),
        _ => return None,
    };
    let end = transport + least;
    let whole = end <= ip.len() && end <= length && length <= ip.len();
    let mut tuple =
        Tuple { v6, udp, source: [0; 16], destination: [0; 16], source_port: 0, destination_port: 0 };
    if v6 {
        tuple.source.copy_from_slice(&ip[8..24]);
        tuple.destination.copy_from_slice(&ip[24..40]);
    } else {
        tuple.source[..4].copy_from_slice(&ip[12..16]);
        tuple.destination[..4].copy_from_slice(&ip[16..20]);
    }
    if whole {
        tuple.source_port = u16::from_be_bytes([ip[transport], ip[transport + 1]]);
        tuple.destination_port = u16::from_be_bytes([ip[transport + 2], ip[transport + 3]]);
    }
    Some((Packet { tuple, sctp, ip, transport }, whole))
}

/// Protocol and offset of what is behind at most six extension headers, which end at `limit` at most.
fn behind_extensions(ip: &[u8], first: u8, limit: usize) -> Option<(u8, usize)> {
    let (mut number, mut at) = (first, 40);
    for walked in 0..=6 {
        if matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP) {
            return Some((number, at));
        }
        if walked == 6 {
            return None;
        }
        let header = ip.get(at..at + 8)?;
        at += match number {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                (header[1] as usize + 1) * 8
            }
            protocol::AH => (header[1] as usize + 2) * 4,
            _ => return None,
        };
        if at > limit {
            return None;
        }
        number = header[0];
    }
    None
}

impl Packet<'_> {
    fn flags(&self) -> u8 {
        if self.tuple.udp { 0 } else { self.ip[self.transport + 13] }
    }

    fn is_syn(&self) -> bool {
        self.flags() & SYN != 0
    }

    fn length(&self) -> usize {
        if self.tuple.v6 {
            u16::from_be_bytes([self.ip[4], self.ip[5]]) as usize + 40
        } else {
            u16::from_be_bytes([self.ip[2], self.ip[3]]) as usize
        }
    }

    fn hops(&self) -> u8 {
        self.ip[if self.tuple.v6 { 7 } else { 8 }]
    }

    fn may_fragment(&self) -> bool {
        !self.tuple.v6 && self.ip[6] & 0x40 == 0
    }

    /// Whether the transport header's own length lies in the packet.
    fn has_honest_transport(&self) -> bool {
        let rest = self.length() - self.transport;
        let (own, least) = if self.sctp {
            // Header and first chunk.
            let at = self.transport + 14;
            (12 + u16::from_be_bytes([self.ip[at], self.ip[at + 1]]) as usize, 16)
        } else if self.tuple.udp {
            (u16::from_be_bytes([self.ip[self.transport + 4], self.ip[self.transport + 5]]) as usize, 8)
        } else {
            ((self.ip[self.transport + 12] >> 4) as usize * 4, 20)
        };
        own >= least && own <= rest
    }

    /// What stands in the way of forwarding it.
    fn obstacle(&self, mtu: usize) -> Option<Expected> {
        if self.length() > mtu {
            return Some(if self.may_fragment() {
                Expected::dropped(Reason::TooBig)
            } else {
                Expected::answered(Reason::PacketTooBig)
            });
        }
        (self.hops() <= 1).then(|| Expected::answered(Reason::TimeExceeded))
    }
}

fn stepped(flow: &Flow, index: usize, packet: &Packet<'_>, direction: Direction) -> Expected {
    let state = if packet.tuple.udp {
        // The second packet of a client is proof where replies are not seen; else the reply is.
        if matches!(direction, Direction::Input) { flow.state } else { State::Udp as u8 }
    } else {
        step(direction, flow.state, packet.flags())
    };
    Expected { fate: Fate::Forwarded, effect: Effect::Steps { flow: index, state }, picks: None }
}

fn of_known_flow(world: &World, packet: &Packet<'_>, index: usize) -> Expected {
    let flow = &world.flows[index];
    let service = &world.services[flow.service];
    if packet.is_syn() {
        if !packet.has_honest_transport() {
            return Expected::dropped(Reason::BadTransport);
        }
        if !is_sent(packet.flags()) {
            return Expected::dropped(Reason::BadFlags);
        }
    }
    if let Some(obstacle) = packet.obstacle(service.mtu) {
        return obstacle;
    }
    let direction = match service.method {
        Method::Dr | Method::Tun => Direction::InputOnly,
        Method::Nat | Method::FullNat => Direction::Input,
    };
    stepped(flow, index, packet, direction)
}

/// Whether any stack sends a segment with these flags (RFC 9293): a connection begins with SYN and goes on with ACK, FIN
/// comes with ACK, RST comes alone or with ACK and is never urgent.
fn is_sent(flags: u8) -> bool {
    match flags & (FIN | SYN | RST | ACK) {
        SYN | ACK => true,
        RST => flags & URG == 0,
        both if both == RST | ACK || both == SYN | ACK => flags & URG == 0,
        both => both == FIN | ACK,
    }
}

fn of_no_flow(world: &World, packet: &Packet<'_>) -> Expected {
    if !packet.has_honest_transport() {
        return Expected::dropped(Reason::BadTransport);
    }
    if packet.sctp {
        return Expected::PASSES;
    }
    let Some(index) = world.service_of(&packet.tuple) else { return Expected::PASSES };
    let service = &world.services[index];
    let flags = packet.flags();
    if !packet.tuple.udp && !is_sent(flags) {
        return Expected::dropped(Reason::BadFlags);
    }
    if !packet.tuple.udp && !packet.is_syn() {
        match service.on_unknown_flow {
            OnUnknownFlow::Pass => return Expected::PASSES,
            OnUnknownFlow::Drop => return Expected::dropped(Reason::UnknownFlowDropped),
            _ if flags & RST != 0 => return Expected::dropped(Reason::UnknownFlowDropped),
            OnUnknownFlow::Reset => return Expected::answered(Reason::UnknownFlowReset),
            OnUnknownFlow::Adopt => {}
        }
    }
    if !service.has_server {
        return Expected::dropped(Reason::NoServer);
    }
    if let Some(obstacle) = packet.obstacle(service.mtu) {
        return Expected { picks: Some(index), ..obstacle };
    }
    let effect = Effect::Begins { service: index };
    Expected { fate: Fate::Forwarded, effect, picks: Some(index) }
}

/// A NAT reply.
fn reply(world: &World, packet: &Packet<'_>, index: usize) -> Expected {
    match packet.obstacle(MTU) {
        Some(obstacle) => obstacle,
        None => stepped(&world.flows[index], index, packet, Direction::Output),
    }
}

/// To a local address of FULLNAT.
fn to_local_address(world: &World, packet: &Packet<'_>) -> Expected {
    let tuple = packet.tuple;
    let Some(index) = world.leased.get(&(tuple.destination, tuple.destination_port)) else {
        return Expected::dropped(Reason::NoLease);
    };
    if packet.sctp || world.known.get(&tuple) != Some(&Known::Reply(*index)) {
        return Expected::dropped(Reason::WrongServer);
    }
    reply(world, packet, *index)
}

/// The sender of an IP packet.
pub fn client(frame: &[u8]) -> Option<([u8; 16], bool)> {
    let (kind, l3) = behind_tags(frame)?;
    let (packet, _) = packet(kind, frame, l3)?;
    Some((packet.tuple.source, packet.tuple.v6))
}
