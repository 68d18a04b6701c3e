//! Packets in pieces: docs/datapath.md, "Fragments". The first piece has the ports, the others follow it.

use crate::{
    Counted, Ends, Fate, Model, Oracle, Own, answer, drops, passes,
    rewrite::{Edit, Link, behind_ethernet},
    wire::{Ip, Packet, Part, Piece, Transport},
};
use lb_common::{
    connection::Kind,
    destination::{Destination, Forwarding, flags},
    scratch::policy,
    verdict::Reason,
};
use std::collections::HashMap;

/// First fragments by (IPv6, source, destination, identification, protocol (IPv4)).
pub type Firsts = HashMap<(bool, [u8; 16], [u8; 16], u32, u8), First>;

/// What a first fragment said.
#[derive(Clone, Copy)]
pub struct First {
    ports: (u16, u16),
    udp: bool,
    /// Bytes of the packet's payload that it carried.
    end: usize,
}

/// The longest packet that there can be (RFC 791, section 3.1).
const LONGEST: usize = 65_535;

impl Model {
    pub(crate) fn fragment(&mut self, frame: &[u8], ip: Ip, piece: Piece, oracle: &dyn Oracle) -> Ends<Fate> {
        let own = self.config.own(&ip.destination, ip.v6);
        match own {
            Some(own) => self.may_serve(own.vrrp)?,
            None if self.config.is_nat_server(&ip.source, ip.v6) => {}
            None => return passes(Reason::Fragment),
        }
        let before = piece.l4 - ip.l3;
        if ip.l3 + ip.length > frame.len() || ip.length <= before {
            return passes(Reason::Fragment);
        }
        let carried = ip.length - before;
        let is_first = piece.offset == 0;
        if is_first && piece.protocol != 6 && piece.protocol != 17 {
            return passes(Reason::Fragment);
        }
        if piece.more && !carried.is_multiple_of(8) || piece.offset + carried + before > LONGEST {
            return drops(Reason::FragmentBad);
        }
        let protocol = if ip.v6 { 0 } else { piece.protocol };
        let key = (ip.v6, ip.source, ip.destination, piece.id, protocol);
        if is_first {
            let udp = piece.protocol == 17;
            if carried < if udp { 8 } else { 20 } {
                return self.unless_policy(policy::TINY_PASS, Reason::FragmentTiny);
            }
            // Alone it is no fragment (RFC 6946).
            let part = if piece.more { Part::First } else { Part::Whole };
            let packet =
                Packet { frame: frame.to_vec(), ip, transport: Transport { udp, l4: piece.l4 }, part };
            if piece.more {
                self.pieces.insert(key, First { ports: packet.ports(), udp, end: carried });
            }
            return self.with_ports(packet, oracle);
        }
        let Some(first) = self.pieces.get(&key).copied() else {
            // Whose first one was the kernel's is the kernel's; extension headers hide what the packet is.
            let ports = [6, 17].contains(&piece.protocol);
            let hidden = ip.v6 && [0, 43, 44, 51, 60].contains(&piece.protocol);
            return match own {
                Some(_) if ports || hidden => {
                    self.unless_policy(policy::UNKNOWN_PASS, Reason::FragmentUnknown)
                }
                _ => passes(Reason::Fragment),
            };
        };
        if piece.offset < first.end && !self.config.has_policy(policy::OVERLAP_FORWARD) {
            return drops(Reason::FragmentOverlap);
        }
        let transport = Transport { udp: first.udp, l4: piece.l4 };
        let packet = Packet { frame: frame.to_vec(), ip, transport, part: Part::Later };
        let fate = match own {
            Some(Own { pool: Some(pool), .. }) => self.later_at_local_address(&packet, first, pool),
            _ => self.later_of_flow(&packet, first),
        }?;
        if matches!(fate, Fate::Forward(..) | Fate::Kernel(..)) {
            self.event(Reason::FragmentFollowed);
        }
        Ok(fate)
    }

    /// The kernel's where the policy says so, else dropped.
    fn unless_policy<T>(&self, passes_by: u32, reason: Reason) -> Ends<T> {
        if self.config.has_policy(passes_by) { passes(Reason::Fragment) } else { drops(reason) }
    }

    /// A later fragment to where its flow's packets go.
    fn later_of_flow(&mut self, packet: &Packet, first: First) -> Ends<Fate> {
        let ip = &packet.ip;
        let (source, destination) = ((&ip.source, first.ports.0), (&ip.destination, first.ports.1));
        let place = self.place(ip.v6, first.udp, source, destination);
        let service = self.config.service_of(&ip.destination, ip.v6, first.udp, first.ports.1);
        let mut lease = None;
        let found = match self.find(&place).map(|slot| self.value(slot)) {
            Some(value) if value.kind() == Kind::NatReply => {
                let target = self.config.destinations[value.destination() as usize];
                self.may_serve(Destination::vrrp_of(Destination::flags_of(target.word)) as u8)?;
                let (link, mtu) = self.nat_client(value, ip.v6, &ip.destination)?;
                return self.to_client(packet, (value.destination(), ip.destination), link, mtu);
            }
            Some(value) if value.kind() == Kind::FullNat => {
                let leased = self.lease_of(value, place.identity);
                lease = leased.map(|_| value.lease());
                leased.map(|leased| leased.word.destination())
            }
            Some(value) => Some(value.destination()),
            None => service.and_then(|service| self.by_hash(service, &ip.source, first.ports.0)),
        };
        let Some(destination) = found else {
            // The kernel was given the first one of no service's.
            return match service {
                None => passes(Reason::Fragment),
                Some(_) => self.unless_policy(policy::UNKNOWN_PASS, Reason::FragmentUnknown),
            };
        };
        self.fits_its_way(packet, destination)?;
        if self.method(destination) == Forwarding::FullNat && lease.is_none() {
            return drops(Reason::FragmentUnknown);
        }
        self.flow_ports = Some(first.ports);
        self.send_to_server(packet, destination, lease)
    }

    fn later_at_local_address(&mut self, packet: &Packet, first: First, pool: u32) -> Ends<Fate> {
        let index = pool << 16 | first.ports.1 as u32;
        let Some(lease) = self.leases.get(&index).copied() else { return drops(Reason::NoLease) };
        if lease.word.is_empty() || lease.word.is_expired(self.now) {
            return drops(Reason::NoLease);
        }
        let destination = lease.word.destination();
        let target = self.config.destinations[destination as usize];
        let (link, mtu) = self.leased_client(&lease)?;
        let server = (target.address.v6(), Self::server_port(&target, lease.ports.1));
        let is_udp = self.flags(destination) & flags::UDP != 0;
        if (packet.ip.source, first.ports.0, first.udp) != (server.0, server.1, is_udp) {
            return drops(Reason::WrongServer);
        }
        self.to_client(packet, (destination, lease.client), link, mtu)
    }

    fn to_client(
        &self,
        packet: &Packet,
        (destination, client): (u32, [u8; 16]),
        link: Link,
        mtu: usize,
    ) -> Ends<Fate> {
        let vip = self.config.destinations[destination as usize].vip.v6();
        answer::fits(packet, mtu, &vip)?;
        let out = Edit::new(packet).less_ttl().source(&vip, 0).destination(&client, 0).done();
        Ok(Fate::Forward(Counted::Out(destination), link.frame(packet.ip.v6, behind_ethernet(&out))))
    }
}
