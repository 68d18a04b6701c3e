//! The tail for ICMP that arrives. An error that quotes a packet of a flow goes where the flow's packets go: one about
//! what a VIP sent to the flow's server, one about what a server was sent to the client, translated outside and
//! inside like them. Everything else is the kernel's.

use crate::{
    choose::{lb_is_usable, lb_slot},
    connection::{self, Hit},
    count, echo,
    flow::{self, turned},
    forward::{
        Target, dr,
        fullnat::{self, Leased},
        may_serve, nat, tun,
    },
    host,
    maps::POOL,
    new_flow, nexthop,
    packet::{Frame, Packet, Protocol, Words, destination, ip_len, load8, load16, opaque},
    quote::{Quote, Tuple, translate},
    renumber::{By, leave_room, renumber},
    shifted, tail, tunnel_mtu, witness,
};
use lb_common::{
    connection::Kind,
    destination::{Destination, Forwarding, flags},
    filter::{AddressRecord, role},
    header::{ICMP, IPV4, IPV6, icmp, icmpv6},
    lease::lease_index,
    maps::programs,
    sctp,
    service::{Pick, features},
    state::State,
    verdict::Reason,
};

/// Hands an ICMP packet to the tail. `reason` is why the kernel gets it when it is nothing to us.
#[inline(always)]
pub fn call<const V6: bool>(frame: &Frame, at: (usize, usize), cell: u16, reason: Reason) -> Reason {
    let Some(scratch) = tail::scratch() else { return Reason::Internal };
    scratch.l3 = at.0 as u16;
    scratch.l4 = at.1 as u16;
    scratch.family = if V6 { 6 } else { 4 };
    scratch.cell = cell as u32;
    scratch.reason = reason as u32;
    tail::call(frame, programs::RELATED)
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    if scratch.family == 6 { arrived::<true>(frame, l3, l4) } else { arrived::<false>(frame, l3, l4) }
}

#[inline(always)]
fn arrived<const V6: bool>(frame: Frame, l3: usize, l4: usize) -> Result<u32, Reason> {
    match error::<V6>(frame, l3, l4) {
        Err(Reason::Icmp) => {
            let scratch = tail::scratch().ok_or(Reason::Internal)?;
            let (cell, reason) = (scratch.cell as u16, scratch.reason);
            Err(host::unless_silent_number::<V6>(&frame, (l3, l4), cell, reason))
        }
        Err(Reason::IcmpNoFlow) => {
            let cell = tail::scratch().ok_or(Reason::Internal)?.cell as u16;
            Err(host::unless_silent_at::<V6>(&frame, (l3, l4), cell, Reason::IcmpNoFlow))
        }
        other => other,
    }
}

/// An ICMP error. [`Reason::Icmp`]: nothing to us.
#[inline(always)]
fn error<const V6: bool>(frame: Frame, l3: usize, l4: usize) -> Result<u32, Reason> {
    let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
    let mut l4 = l4;
    // The straight line gives a stranger's packet without having looked.
    let first = load8(ip, 0);
    if first & 0xf0 != if V6 { 0x60 } else { 0x40 } {
        return Err(Reason::Icmp);
    }
    if !V6 {
        if first & 0x0f < 5 || load16(ip, 6) & 0x3fff_u16.to_be() != 0 {
            return Err(Reason::Icmp);
        }
        l4 = opaque((l3 + (first & 0x0f) as usize * 4) as u64) as usize & 0x7ff;
    }
    let header = frame.at_dynamic(l4, ICMP).ok_or(Reason::Icmp)?;
    let say = Say { kind: load8(header, 0), code: load8(header, 1) };
    if !say.is_error::<V6>() {
        return echo::arrived::<V6>(&frame, l3, l4);
    }
    let len = ip_len::<V6>(ip);
    if len > frame.len() - l3 as u32 {
        return Err(Reason::Icmp);
    }
    let to = host::record_of::<V6>(destination::<V6>(ip));
    if to.roles & role::VIP != 0 {
        may_serve(to.vrrp)?;
    }
    let end = l3 + len as usize;
    match about_flow::<V6>(&frame, (l3, l4), (ip, header), end, to, say) {
        // A flow of NAT to a server that tunnels lead to as well has nothing to do with those.
        Err(Reason::Icmp) if to.roles & (role::VIP | role::POOL) == 0 && say.is_too_big::<V6>() => {
            Err(tunnel_mtu::heard::<V6>(&frame, (ip, l4), end).unwrap_or(Reason::Icmp))
        }
        other => other,
    }
}

/// An error about a packet of a flow. As [`error`].
#[inline(always)]
fn about_flow<const V6: bool>(
    frame: &Frame,
    (l3, l4): (usize, usize),
    (ip, header): (*mut u8, *mut u8),
    end: usize,
    to: AddressRecord,
    say: Say,
) -> Result<u32, Reason> {
    let Some(quote) = Quote::of::<V6>(frame, l4, end) else {
        return Err(unless_ours(to.roles));
    };
    let packet = Packet::<V6> {
        frame: *frame,
        l3,
        l4,
        ip,
        transport: header,
        udp: quote.udp,
        sctp: false,
        bytes: frame.len(),
    };
    let to_address = packet.destination();
    // Who sent the quoted packet is told of it.
    if to_address[0] != quote.source[0] || to_address[1] != quote.source[1] {
        return Err(unless_ours(to.roles));
    }
    if to.roles & role::POOL != 0 {
        return from_leased(&packet, &quote, to.pool as u32, say);
    }
    if to.roles & role::VIP != 0 {
        return to_server(&packet, &quote);
    }
    from_nat(&packet, &quote, say)
}

/// Why the kernel gets an error that quotes no flow.
#[inline(always)]
fn unless_ours(roles: u16) -> Reason {
    if roles & (role::VIP | role::POOL) != 0 { Reason::IcmpNoFlow } else { Reason::Icmp }
}

/// What an ICMP message says.
#[derive(Clone, Copy)]
struct Say {
    kind: u8,
    code: u8,
}

impl Say {
    /// Whether it quotes a packet.
    #[inline(always)]
    fn is_error<const V6: bool>(self) -> bool {
        if V6 {
            (icmpv6::UNREACHABLE..=icmpv6::PARAMETER_PROBLEM).contains(&self.kind)
        } else {
            self.kind == icmp::UNREACHABLE
                || self.kind == icmp::SOURCE_QUENCH
                || self.kind == icmp::TIME_EXCEEDED
                || self.kind == icmp::PARAMETER_PROBLEM
        }
    }

    #[inline(always)]
    fn is_too_big<const V6: bool>(self) -> bool {
        if V6 {
            self.kind == icmpv6::PACKET_TOO_BIG
        } else {
            self.kind == icmp::UNREACHABLE && self.code == icmp::FRAGMENTATION_NEEDED
        }
    }

    /// Whether it says that nobody is there, and not only that a packet was too large.
    #[inline(always)]
    fn is_unreachable<const V6: bool>(self) -> bool {
        if V6 {
            self.kind == icmpv6::UNREACHABLE
        } else {
            self.kind == icmp::UNREACHABLE && self.code != icmp::FRAGMENTATION_NEEDED
        }
    }
}

/// An error about a packet that a VIP sent to a client: to the server that sent it.
#[inline(always)]
fn to_server<const V6: bool>(packet: &Packet<V6>, quote: &Quote) -> Result<u32, Reason> {
    let now = connection::now();
    // As the client's packets have them.
    let ports = turned(quote.ports);
    let place = flow::place::<V6>(quote.destination, quote.source, ports, quote.protocol());
    let (mut lease, mut extended) = (0, 0);
    let found = match connection::find_rarely(&place, now) {
        Some(hit) => match hit.value.kind() {
            Kind::Flow => {
                extended = shifted::is_extended(hit.value) as u32;
                Some(hit.value.destination())
            }
            Kind::FullNat => match Leased::of(hit.value.lease(), now) {
                Some(leased) if leased.owner() == place.identity => {
                    lease = hit.value.lease();
                    extended = shifted::is_extended(hit.value) as u32;
                    Some(leased.word.destination())
                }
                _ => None,
            },
            _ => None,
        },
        None => by_slot::<V6>((quote.source, quote.destination), ports, quote.protocol()),
    };
    // One way for the verifier, however it was found.
    let lease = opaque(lease as u64) as u32;
    let extended = opaque(extended as u64) as u32;
    let index = opaque(found.ok_or(Reason::IcmpNoFlow)? as u64) as u32;
    let target = Target::of(index).ok_or(Reason::Internal)?;
    if target.flags() & flags::VALID == 0 {
        return Err(Reason::IcmpNoFlow);
    }
    if packet.ttl() <= 1 {
        return Err(Reason::IcmpTtlExpired);
    }
    let action = match target.forwarding() {
        Forwarding::Dr => dr::deliver(packet, &target)?,
        Forwarding::Tun => {
            if packet.ip_len() > target.mtu() {
                return Err(Reason::TooBig);
            }
            tun::encapsulate(packet, &target, ports, Reason::IcmpToServer as u32)?
        }
        method => {
            let server = target.address::<V6>();
            let mut sender = packet.source();
            let mut client = quote.destination;
            let mut ports = nat::server_ports(ports, &target);
            if let Forwarding::FullNat = method {
                if lease == 0 {
                    return Err(Reason::IcmpNoFlow);
                }
                // The server talks to the local address, so it must hear of it from there.
                let pool = POOL.get_ptr(lease >> 16).ok_or(Reason::Internal)?;
                client = fullnat::pool_address::<V6>(pool).0;
                sender = client;
                ports = ports & 0xffff_0000 | (lease as u16).to_be() as u32;
            }
            if extended != 0 {
                renumber(packet, quote, place.identity, now, By::Server).ok_or(Reason::Internal)?;
            }
            let (hop, _) = target.hop()?;
            let inner = Tuple { source: server, destination: client, ports: turned(ports) };
            translate(packet, quote, inner, (sender, server)).ok_or(Reason::Internal)?;
            nexthop::send::<V6>(packet.frame, packet.l3, hop)?
        }
    };
    count::forwarded(target.index, packet.bytes, false);
    count::event(Reason::IcmpToServer);
    Ok(action)
}

/// How many slots are tried for a server that may be used, as for a new flow of a service with `fallback`.
const SLOT_TRIES: u32 = 8;

/// The server that the flow has at whichever director knows it: the slot table of a hash service gives the same
/// answer everywhere. Persistence may have sent it elsewhere.
#[inline(always)]
pub fn by_slot<const V6: bool>((vip, client): (Words, Words), ports: u32, protocol: Protocol) -> Option<u32> {
    let (index, service) = new_flow::service_at::<V6>(vip, (ports >> 16) as u16, protocol)?;
    // SAFETY: a map value.
    let (pick, rules) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).pick) as u32,
            core::ptr::read_volatile(&raw const (*service).features),
        )
    };
    let is_hash = pick == Pick::HashAddress as u32
        || pick == Pick::HashAddressPort as u32
        || pick == Pick::HashDestination as u32
        || pick >= Pick::IpvsSh as u32;
    if !is_hash || rules & features::PERSISTENT != 0 {
        return None;
    }
    let scratch = tail::scratch()?;
    scratch.client = nat::address(client);
    scratch.ports = ports;
    let tries = if rules & features::FALLBACK != 0 { SLOT_TRIES } else { 1 };
    let mut first = 0;
    for n in 0..SLOT_TRIES {
        if n >= tries {
            break;
        }
        let answer = lb_slot(index, n, first);
        if n == 0 {
            first = (answer >> 32) as u32;
        }
        let chosen = answer as u32;
        if chosen != 0 && (rules & features::CHOOSE == 0 || lb_is_usable(chosen) != 0) {
            return Some(chosen - 1);
        }
        first = opaque(first as u64) as u32;
    }
    None
}

/// An error about a packet that NAT sent to a server, on its way to the client.
#[inline(always)]
fn from_nat<const V6: bool>(packet: &Packet<V6>, quote: &Quote, say: Say) -> Result<u32, Reason> {
    let now = connection::now();
    // The entry of the flow's replies.
    let ports = turned(quote.ports);
    let place = flow::place::<V6>(quote.destination, quote.source, ports, quote.protocol());
    let hit = connection::find_rarely(&place, now).ok_or(Reason::Icmp)?;
    if !matches!(hit.value.kind(), Kind::NatReply) {
        return Err(Reason::Icmp);
    }
    let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    let (hop, _) = nat::client_hop::<V6>(hit.value.hop(), quote.source)?;
    let port = target.vip_port();
    let ports = if port == 0 { quote.ports } else { quote.ports & 0xffff | (port as u32) << 16 };
    to_client(packet, quote, &target, (quote.source, ports, hop), (say, hit, target.index))
}

/// An error about a packet that FULLNAT sent to a server from a local address of ours.
#[inline(always)]
fn from_leased<const V6: bool>(
    packet: &Packet<V6>,
    quote: &Quote,
    pool: u32,
    say: Say,
) -> Result<u32, Reason> {
    let now = connection::now();
    let index = lease_index(pool & 0xff, u16::from_be(quote.ports as u16));
    let lease = Leased::of(index, now).ok_or(Reason::IcmpNoFlow)?;
    let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    // SAFETY: a map value.
    let (client, ports, hop) = unsafe {
        (
            crate::packet::words::<V6>(&raw const (*lease.record).client),
            core::ptr::read_volatile(&raw const (*lease.record).ports),
            core::ptr::read_volatile(&raw const (*lease.record).hop),
        )
    };
    let (hop, _) = fullnat::client_hop(lease.record, hop)?;
    if !lease.is_unchanged() {
        return Err(Reason::IcmpNoFlow);
    }
    let server = target.address::<V6>();
    let expected = nat::server_ports(ports, &target) >> 16;
    if server[0] != quote.destination[0]
        || server[1] != quote.destination[1]
        || quote.ports >> 16 != expected
        || quote.udp != (target.flags() & flags::UDP != 0)
        || quote.sctp != (target.flags() & flags::SCTP != 0)
    {
        return Err(Reason::IcmpNoFlow);
    }
    to_client(packet, quote, &target, (client, ports, hop), (say, lease.hit(), index))
}

/// Sends an error about a packet of the client's to it, from the VIP: whoever said it, the client asked the VIP, and
/// the addresses behind it are nobody's business (and often nobody's route).
#[inline(always)]
fn to_client<const V6: bool>(
    packet: &Packet<V6>,
    quote: &Quote,
    target: &Target,
    (client, ports, hop): (Words, u32, nexthop::Hop),
    (say, hit, partner): (Say, Hit, u32),
) -> Result<u32, Reason> {
    if packet.ttl() <= 1 {
        return Err(Reason::IcmpTtlExpired);
    }
    let vip = target.vip::<V6>();
    if shifted::is_extended(hit.value) {
        let now = connection::now();
        let identity = flow::place::<V6>(client, vip, ports, quote.protocol()).identity;
        renumber(packet, quote, identity, now, By::Client).ok_or(Reason::Internal)?;
        if say.is_too_big::<V6>() {
            leave_room(packet, quote, identity, now).ok_or(Reason::Internal)?;
        }
    }
    let inner = Tuple { source: client, destination: vip, ports };
    translate(packet, quote, inner, (vip, client)).ok_or(Reason::Internal)?;
    let action = nexthop::send::<V6>(packet.frame, packet.l3, hop)?;
    count::forwarded(target.index, packet.bytes, true);
    count::event(Reason::IcmpToClient);
    if say.is_unreachable::<V6>() && is_half_open(hit.value.state(), quote.sctp) {
        count::event(Reason::ServerUnreachable);
        // What passive detection counts at the server, once a flow.
        if let Some(new) = witness::unreachable(&hit, target) {
            let flow = flow::place::<V6>(client, vip, ports, Protocol { udp: false, sctp: false });
            flow::write_twin::<V6>(&flow, new, connection::now(), partner);
        }
    }
    Ok(action)
}

/// Whether the server has not answered yet.
#[inline(always)]
fn is_half_open(state: u8, sctp: bool) -> bool {
    let begun: u32 = if sctp {
        1 << sctp::State::Init1 as u32 | 1 << sctp::State::Init as u32
    } else {
        1 << State::SynReceived as u32 | 1 << State::SynSent as u32
    };
    (begun | 1 << State::Unconfirmed as u32) >> (state & 15) & 1 != 0
}
