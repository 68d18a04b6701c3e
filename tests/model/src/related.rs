//! ICMP: docs/datapath.md, "ICMP errors" and "Path MTU of tunnels"; what of it the kernel gets, neighbour discovery
//! included, and ARP, by "The VRRP role".

use crate::Role;
use crate::{
    Counted, Ends, Fate, Model, answer, drops, passes,
    rewrite::{Link, updated},
    shifted::is_extended,
    wire::{Ip, Packet, Part, Quote, Transport, quote, quoted_tunnel, read_quoted},
};
use lb_common::{
    connection::{Kind, Value},
    destination::{Destination, Forwarding, flags},
    scratch::policy,
    state::State,
    verdict::Reason,
};

/// An ICMP message that arrived.
struct Message {
    packet: Packet,
    kind: u8,
    code: u8,
    /// Offset of its header.
    l4: usize,
    /// Where the packet ends in its frame.
    end: usize,
}

/// A tuple: addresses and ports.
type Way = (([u8; 16], u16), ([u8; 16], u16));

/// The least MTU that is believed of a tunnel's path, IPv4 and IPv6, and what a router means that says none.
const LEAST: [usize; 2] = [552, 1280];
const UNSAID: usize = 576;

impl Model {
    /// An ICMP packet; `otherwise` is why the kernel gets what is nothing to us.
    pub(crate) fn icmp(&mut self, frame: &[u8], ip: Ip, l4: usize, otherwise: Reason) -> Ends<Fate> {
        let Some(header) = frame.get(l4..l4 + 8) else {
            return self.icmp_to_kernel(frame, &ip, l4, otherwise);
        };
        let (kind, code) = (header[0], header[1]);
        let is_error = if ip.v6 { (1..=4).contains(&kind) } else { [3, 4, 11, 12].contains(&kind) };
        let end = ip.l3 + ip.length;
        if !is_error && let Some(fate) = self.echo(frame, &ip, l4)? {
            return Ok(fate);
        }
        if !is_error || end > frame.len() {
            return self.icmp_to_kernel(frame, &ip, l4, otherwise);
        }
        let own = self.config.own(&ip.destination, ip.v6);
        if let Some(own) = own {
            self.may_serve(own.vrrp)?;
        }
        let transport = Transport { udp: false, l4 };
        let packet = Packet { frame: frame.to_vec(), ip: ip.clone(), transport, part: Part::Later };
        let message = Message { packet, kind, code, l4, end };
        let nothing = if own.is_some() { Reason::IcmpNoFlow } else { otherwise };
        // Who sent the quoted packet is told of it.
        let quoted = quote(frame, ip.v6, l4 + 8, end).filter(|quote| quote.source.0 == ip.destination);
        let fate = match (quoted, own) {
            (None, _) => None,
            (Some(quote), None) => self.about_nat(&message, &quote)?,
            (Some(quote), Some(own)) => match own.pool {
                Some(pool) => self.about_lease(&message, &quote, pool)?,
                None => self.about_vips_packet(&message, &quote)?,
            },
        };
        match fate {
            Some(fate) => Ok(fate),
            None if own.is_none()
                && message.is_too_big()
                && let Some(fate) = self.tunnel_too_narrow(&message) =>
            {
                Ok(fate)
            }
            None => self.icmp_to_kernel(frame, &ip, l4, nothing),
        }
    }

    /// An echo request to a VIP that is not the kernel's: docs/datapath.md, "Echo".
    fn echo(&self, frame: &[u8], ip: &Ip, l4: usize) -> Ends<Option<Fate>> {
        let (header, request, reply) = if ip.v6 { (40, 128, 129) } else { (20, 8, 0) };
        let plain = l4 == ip.l3 + header && ip.length >= header + 8 && ip.l3 + ip.length <= frame.len();
        let policies = policy::ECHO_ANSWER | policy::ECHO_DROP;
        let own = self.config.own(&ip.destination, ip.v6).filter(|own| own.pool.is_none());
        let Some(own) =
            own.filter(|_| self.config.has_policy(policies) && plain && frame[l4..l4 + 2] == [request, 0])
        else {
            return Ok(None);
        };
        self.may_serve(own.vrrp)?;
        let first = ip.source[0];
        let is_host = if ip.v6 {
            first != 0xff && ip.source[..8] != [0; 8]
        } else {
            first != 0 && first != 127 && first < 224
        };
        if !is_host || self.config.has_policy(policy::ECHO_DROP) {
            return drops(Reason::EchoDropped);
        }
        let mut out = frame[ip.l3..].to_vec();
        let (of, at, ttl) = if ip.v6 { (16, 8, 7) } else { (4, 12, 8) };
        out[at..at + of].copy_from_slice(&ip.destination[..of]);
        out[at + of..at + 2 * of].copy_from_slice(&ip.source[..of]);
        out[ttl] = 64;
        out[header] = reply;
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let before = &frame[ip.l3..];
        if !ip.v6 {
            let new = updated(word(before, 10), &before[8..10], &out[8..10]);
            out[10..12].copy_from_slice(&new.to_be_bytes());
        }
        let new = updated(word(before, header + 2), &before[header..header + 2], &out[header..header + 2]);
        out[header + 2..header + 4].copy_from_slice(&new.to_be_bytes());
        let link = Link::back(frame, ip.l3);
        Ok(Some(Fate::Answer(Reason::EchoAnswered, link.frame(ip.v6, &out))))
    }

    /// A packet that a VIP sent to a client: the server that sent it hears of it.
    fn about_vips_packet(&mut self, message: &Message, quote: &Quote) -> Ends<Option<Fate>> {
        let packet = &message.packet;
        let (vip, client) = (quote.source, quote.destination);
        let place = self.place(packet.ip.v6, quote.udp, (&client.0, client.1), (&vip.0, vip.1));
        let mut lease = None;
        let known = self.find(&place).map(|slot| self.value(slot));
        let found = match known {
            _ if quote.sctp => None,
            Some(value) => match value.kind() {
                Kind::Flow => Some(value.destination()),
                Kind::FullNat => {
                    let leased = self.lease_of(value, place.identity);
                    lease = leased.map(|_| value.lease());
                    leased.map(|leased| leased.word.destination())
                }
                _ => None,
            },
            // Another director of the pair may have the flow: the slots of a hash service name its server.
            None => self
                .config
                .service_of(&vip.0, packet.ip.v6, quote.udp, vip.1)
                .and_then(|service| self.by_hash(service, &client.0, client.1)),
        };
        let Some(destination) = found else { return Ok(None) };
        if packet.hops_left() <= 1 {
            return drops(Reason::IcmpTtlExpired);
        }
        let target = self.config.destinations[destination as usize];
        let server = (target.address.v6(), Self::server_port(&target, vip.1));
        let (sender, local) = match self.method(destination) {
            Forwarding::Dr => (None, client),
            Forwarding::Tun => {
                if packet.ip.length > Destination::mtu_of(target.word) as usize {
                    return drops(Reason::TooBig);
                }
                (None, client)
            }
            Forwarding::Nat => (Some(packet.ip.source), client),
            Forwarding::FullNat => {
                let Some(lease) = lease else { return Ok(None) };
                let local = self.config.pool[(lease >> 16) as usize].address.v6();
                (Some(local), (local, lease as u16))
            }
        };
        let fate = match sender {
            None => self.send_to_server(packet, destination, None)?,
            Some(sender) => {
                let hop = self.config.next_hops.get(target.next_hop as usize).copied();
                let Some(hop) = hop.filter(|hop| hop.ifindex != 0) else { return drops(Reason::NoNextHop) };
                let extended = !quote.udp && known.is_some_and(is_extended);
                let ends = (quote.l4, message.end);
                let numbers =
                    if extended { self.renumbered(packet, ends, &place, true, None) } else { Vec::new() };
                let out = translated(message, quote, (server, local), (sender, server.0), &numbers);
                Fate::Forward(Counted::In(destination), Link::of(&hop).frame(packet.ip.v6, &out))
            }
        };
        self.event(Reason::IcmpToServer);
        Ok(Some(fate))
    }

    /// A packet that NAT sent to a server: the client hears of it.
    fn about_nat(&mut self, message: &Message, quote: &Quote) -> Ends<Option<Fate>> {
        let v6 = message.packet.ip.v6;
        let (client, server) = (quote.source, quote.destination);
        let reply = self.place(v6, quote.udp, (&server.0, server.1), (&client.0, client.1));
        let Some(slot) = self.find(&reply).filter(|_| !quote.sctp) else { return Ok(None) };
        let value = self.value(slot);
        if value.kind() != Kind::NatReply {
            return Ok(None);
        }
        let destination = value.destination();
        let target = self.config.destinations[destination as usize];
        self.may_serve(Destination::vrrp_of(Destination::flags_of(target.word)) as u8)?;
        let (link, _) = self.nat_client(value, v6, &client.0)?;
        let vip_port = match u16::from_be(target.vip_port) {
            0 => server.1,
            port => port,
        };
        let inner = (client, (target.vip.v6(), vip_port));
        self.tell_client(message, quote, inner, (destination, link, value)).map(Some)
    }

    /// A packet that FULLNAT sent to a server from a local address.
    fn about_lease(&mut self, message: &Message, quote: &Quote, pool: u32) -> Ends<Option<Fate>> {
        let Some(lease) = self.leases.get(&(pool << 16 | quote.source.1 as u32)).copied() else {
            return Ok(None);
        };
        if lease.word.is_empty() || lease.word.is_expired(self.now) {
            return Ok(None);
        }
        let destination = lease.word.destination();
        let target = self.config.destinations[destination as usize];
        let stands = Destination::flags_of(target.word);
        self.may_serve(Destination::vrrp_of(stands) as u8)?;
        let (link, _) = self.leased_client(&lease)?;
        let server = (target.address.v6(), Self::server_port(&target, lease.ports.1));
        if quote.destination != server || quote.udp != (stands & flags::UDP != 0) || quote.sctp {
            return Ok(None);
        }
        let inner = ((lease.client, lease.ports.0), (target.vip.v6(), lease.ports.1));
        self.tell_client(message, quote, inner, (destination, link, lease.word)).map(Some)
    }

    fn tell_client(
        &mut self,
        message: &Message,
        quote: &Quote,
        inner: Way,
        (destination, link, value): (u32, Link, Value),
    ) -> Ends<Fate> {
        if message.packet.hops_left() <= 1 {
            return drops(Reason::IcmpTtlExpired);
        }
        let ((client, port), (vip, vip_port)) = inner;
        let numbers = if is_extended(value) && !quote.udp {
            let place = self.place(message.packet.ip.v6, false, (&client, port), (&vip, vip_port));
            let mtu_at = message.is_too_big().then_some(message.l4 + 6);
            self.renumbered(&message.packet, (quote.l4, message.end), &place, false, mtu_at)
        } else {
            Vec::new()
        };
        let out = translated(message, quote, inner, (vip, client), &numbers);
        self.event(Reason::IcmpToClient);
        let begins = [State::SynReceived, State::SynSent, State::Unconfirmed].map(|state| state as u8);
        if message.is_unreachable() && begins.contains(&value.state()) {
            self.event(Reason::ServerUnreachable);
        }
        Ok(Fate::Forward(Counted::Out(destination), link.frame(message.packet.ip.v6, &out)))
    }

    /// A router's word about a tunnel packet of ours. None: it is none.
    fn tunnel_too_narrow(&mut self, message: &Message) -> Option<Fate> {
        let (packet, frame) = (&message.packet, &message.packet.frame);
        let v6 = packet.ip.v6;
        let tunnel = quoted_tunnel(frame, v6, message.l4 + 8, message.end)?;
        if tunnel.source != packet.ip.destination || !self.config.is_tunnel_server(&tunnel.destination, v6) {
            return None;
        }
        let word = &frame[message.l4 + 4..message.l4 + 8];
        let said = match (v6, u32::from_be_bytes([word[0], word[1], word[2], word[3]])) {
            (true, said) => said as usize,
            (false, said) => match said as u16 {
                0 => UNSAID,
                said => said as usize,
            },
        };
        if said >= tunnel.length {
            return None;
        }
        let mtu = said.max(LEAST[v6 as usize]);
        self.paths.insert((v6, tunnel.destination), mtu as u32);
        let told = tunnel.inner.and_then(|(at, inner_v6, between)| {
            let outer = if v6 { 40 } else { 20 } + between;
            self.tell_of_tunnel(message, at, inner_v6, mtu - outer)
        });
        Some(told.unwrap_or(Fate::Pass(Reason::TunnelMtu)))
    }

    /// The client whose packet lies at `inner` in the frame is told, where that can be.
    fn tell_of_tunnel(&self, message: &Message, inner: usize, v6: bool, mtu: usize) -> Option<Fate> {
        let ip = read_quoted(&message.packet.frame[..message.end], v6, inner)?;
        let vip = self.config.own(&ip.destination, v6).filter(|own| own.pool.is_none())?;
        self.may_serve(vip.vrrp).ok()?;
        let link = match self.config.client_route(&ip.source, v6) {
            Some(hop) if hop != 0 => {
                Link::of(self.config.next_hops.get(hop as usize).filter(|hop| hop.ifindex != 0)?)
            }
            _ => *self.neighbours.get(&(v6, ip.source))?,
        };
        let frame = [&[0; 14], &message.packet.frame[inner..message.end]].concat();
        let ip = Ip { l3: 14, ..ip };
        let transport = Transport { udp: false, l4: 0 };
        let packet = Packet { frame, ip, transport, part: Part::Whole };
        Some(answer::narrow_tunnel(&packet, mtu, link))
    }

    /// The kernel gets it, unless it asks for an address whose master is another.
    pub(crate) fn icmp_to_kernel(&self, frame: &[u8], ip: &Ip, l4: usize, reason: Reason) -> Ends<Fate> {
        let instance = self.config.own(&ip.destination, ip.v6).map_or(0, |own| own.vrrp);
        let is_discovery = ip.v6
            && self.config.may_follow(&ip.destination)
            && frame.get(l4..l4 + 8).is_some_and(|header| (133..=137).contains(&header[0]));
        if !is_discovery {
            self.may_serve(instance)?;
            return passes(reason);
        }
        let asked = frame.get(l4 + 8..l4 + 24).filter(|_| frame[l4] == 135);
        let asked = asked.and_then(|target| self.config.own(target.try_into().ok()?, true));
        for instance in [asked.map_or(0, |own| own.vrrp), instance] {
            match self.config.role(instance) {
                Role::Master => {}
                Role::Backup => return drops(Reason::NdBackup),
                Role::LeaseEnded => return drops(Reason::NdExpired),
            }
        }
        passes(reason)
    }

    /// ARP: only who may speak for an address hears what is for it; announcements are for everybody.
    pub(crate) fn arp(&self, frame: &[u8], l3: usize) -> Ends<Fate> {
        let Some(packet) = frame.get(l3..l3 + 28) else { return passes(Reason::NotIp) };
        let (sender, target) = (&packet[14..18], &packet[24..28]);
        if packet[..7] != [0, 1, 8, 0, 6, 4, 0] || sender == target {
            return passes(Reason::NotIp);
        }
        let mut address = [0; 16];
        address[..4].copy_from_slice(target);
        match self.config.role(self.config.own(&address, false).map_or(0, |own| own.vrrp)) {
            Role::Master => passes(Reason::NotIp),
            Role::Backup => drops(Reason::ArpBackup),
            Role::LeaseEnded => drops(Reason::ArpExpired),
        }
    }
}

impl Message {
    fn is_too_big(&self) -> bool {
        if self.packet.ip.v6 { self.kind == 2 } else { (self.kind, self.code) == (3, 4) }
    }

    fn is_unreachable(&self) -> bool {
        if self.packet.ip.v6 { self.kind == 1 } else { self.kind == 3 && self.code != 4 }
    }
}

/// The error as it goes on, from its IP header on: the quoted packet with another tuple and other numbers, the error
/// itself with other addresses and a hop less, and every checksum that is there.
fn translated(
    message: &Message,
    quote: &Quote,
    inner: Way,
    outer: ([u8; 16], [u8; 16]),
    numbers: &[(usize, Vec<u8>)],
) -> Vec<u8> {
    let v6 = message.packet.ip.v6;
    let (of, first, second) = if v6 { (16, 8, 24) } else { (4, 12, 16) };
    let before = &message.packet.frame;
    let mut frame = before.clone();
    let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let put =
        |frame: &mut Vec<u8>, at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
    for (l3, (source, destination)) in [(quote.l3, (inner.0.0, inner.1.0)), (message.packet.ip.l3, outer)] {
        put(&mut frame, l3 + first, &source[..of]);
        put(&mut frame, l3 + second, &destination[..of]);
    }
    let l3 = message.packet.ip.l3;
    frame[l3 + if v6 { 7 } else { 8 }] -= 1;
    put(&mut frame, quote.l4, &inner.0.1.to_be_bytes());
    put(&mut frame, quote.l4 + 2, &inner.1.1.to_be_bytes());
    numbers.iter().for_each(|(at, bytes)| put(&mut frame, *at, bytes));
    if !v6 {
        for l3 in [quote.l3, l3] {
            let new = updated(word(before, l3 + 10), &before[l3..l3 + 20], &frame[l3..l3 + 20]);
            put(&mut frame, l3 + 10, &new.to_be_bytes());
        }
    }
    let at = quote.l4 + if quote.udp { 6 } else { 16 };
    if !quote.sctp && at + 2 <= message.end {
        let covered = |frame: &[u8]| {
            let addresses = &frame[quote.l3 + first..quote.l3 + first + 2 * of];
            // Of TCP the numbers too.
            [addresses, &frame[quote.l4..quote.l4 + if quote.udp { 4 } else { 12 }]].concat()
        };
        let new = match (
            quote.udp,
            word(before, at),
            updated(word(before, at), &covered(before), &covered(&frame)),
        ) {
            (true, 0, _) => 0,
            (true, _, 0) => 0xffff,
            (.., new) => new,
        };
        put(&mut frame, at, &new.to_be_bytes());
    }
    let covered = |frame: &[u8]| {
        let addresses = if v6 { &frame[l3 + 8..l3 + 40] } else { &[][..] };
        [addresses, &frame[message.l4..message.end]].concat()
    };
    let new = updated(word(before, message.l4 + 2), &covered(before), &covered(&frame));
    put(&mut frame, message.l4 + 2, &new.to_be_bytes());
    frame.split_off(l3)
}
