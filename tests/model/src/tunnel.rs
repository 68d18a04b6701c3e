//! Packets inside others: docs/datapath.md, "Tunnels".

use crate::{
    Model,
    rewrite::{Link, behind_ethernet},
    wire::{Packet, Part, sum},
};
use lb_common::destination::{Destination, NextHop, flags};

/// Whose a tunnel's own number is: destination, addresses, ports.
pub type Flow = (u32, [u8; 16], [u8; 16], (u16, u16));

/// GUE's source ports (draft-ietf-intarea-gue-09, section 5.11).
const GUE_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

impl Model {
    /// The packet inside another (RFC 2003, RFC 2473, RFC 4213): TTL after it went down, type of service with its ECN bits,
    /// DF and flow label are those of the packet inside; IPv6 inside says DF.
    /// None: what the data plane chose for the flow is nothing that it may choose.
    pub(crate) fn tunnelled(
        &mut self,
        packet: &Packet,
        (index, target, hop): (u32, &Destination, &NextHop),
        link: &Link,
    ) -> Option<Vec<u8>> {
        let stands = Destination::flags_of(target.word);
        let (outer_v6, inner_v6) = (stands & flags::REAL_V6 != 0, packet.ip.v6);
        let inner = behind_ethernet(packet);
        let carried = if inner_v6 { 41 } else { 4 };
        let own = self.flows_own(packet, (index, stands), link)?;
        let mut source =
            if outer_v6 { hop.source_v6.v6().to_vec() } else { hop.source_v4.to_ne_bytes().to_vec() };
        let mut between = Vec::new();
        let mut protocol = carried;
        if stands & flags::GUE != 0 {
            protocol = 17;
            between.extend((own as u16).to_be_bytes());
            between.extend(Destination::port_of(target.word).to_ne_bytes());
            between.extend((packet.ip.length as u16 + 12).to_be_bytes());
            // No checksum; variant 0 without options; no flags.
            between.extend([0, 0, 0, carried, 0, 0]);
        } else if stands & flags::GRE != 0 {
            protocol = 47;
            let keyed = stands & flags::SPREAD != 0;
            between.extend([if keyed { 0x20 } else { 0 }, 0]);
            between.extend(if inner_v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
            if keyed {
                between.extend(own.to_be_bytes());
            }
        } else if stands & flags::SPREAD != 0 {
            source = self.spread_source(outer_v6)?;
        }
        let length = packet.ip.length + between.len();
        let class = if inner_v6 { inner[0] << 4 | inner[1] >> 4 } else { inner[1] };
        let mut outer = Vec::new();
        if outer_v6 {
            let label = if inner_v6 { [inner[1] & 15, inner[2], inner[3]] } else { [0; 3] };
            outer.extend([0x60 | class >> 4, class << 4 | label[0], label[1], label[2]]);
            outer.extend((length as u16).to_be_bytes());
            outer.extend([protocol, packet.hops_left()]);
            outer.extend(source);
            outer.extend(target.address.v6());
        } else {
            outer.extend([0x45, class]);
            outer.extend((length as u16 + 20).to_be_bytes());
            outer.extend(if inner_v6 { [0, 0] } else { [inner[4], inner[5]] });
            outer.extend([if inner_v6 { 0x40 } else { inner[6] & 0x40 }, 0]);
            outer.extend([packet.hops_left(), protocol, 0, 0]);
            outer.extend(source);
            outer.extend(target.address.v4());
            let checksum = !sum(&outer);
            outer[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        outer.extend(between);
        outer.extend(inner);
        Some(outer)
    }

    /// What is the flow's own, as the data plane chose it: any number of its range, and all packets of the flow have it.
    fn flows_own(&mut self, packet: &Packet, (index, stands): (u32, u32), link: &Link) -> Option<u32> {
        let tags = [link.outer, link.inner].iter().filter(|tag| **tag != 0).count();
        let l3 = 14 + tags * 4;
        let header = if stands & flags::REAL_V6 != 0 { 40 } else { 20 };
        let number = |at: usize, len: usize| {
            let bytes = self.sent.get(at..at + len)?;
            Some(bytes.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)))
        };
        let chosen = if stands & flags::GUE != 0 {
            number(l3 + header, 2).filter(|port| GUE_PORTS.contains(&(*port as u16)))?
        } else if stands & flags::GRE != 0 && stands & flags::SPREAD != 0 {
            number(l3 + header + 4, 4)?
        } else if stands & flags::GRE != 0 || stands & flags::SPREAD == 0 {
            return Some(0);
        } else {
            // The last four bytes of the source; those that do not vary are looked at apart.
            number(l3 + if header == 40 { 20 } else { 12 }, 4)?
        };
        // An error has the addresses of a router, and no ports.
        let ports = if packet.part == Part::Later { self.flow_ports } else { Some(packet.ports()) };
        let Some(ports) = ports else { return Some(chosen) };
        let flow = (index, packet.ip.source, packet.ip.destination, ports);
        let known = *self.entropy.entry(flow).or_insert(chosen);
        (known == chosen).then_some(chosen)
    }

    /// The outer source address that varies, where it is one of the Director's `tunnelSources`.
    fn spread_source(&self, v6: bool) -> Option<Vec<u8>> {
        let (sizes, sent) = (&self.config.sizes, &self.sent);
        let l3 = crate::wire::behind_tags(sent)?;
        if v6 {
            let source = sent.get(l3 + 8..l3 + 24)?;
            let (prefix, varies) = (words(sizes.sources_v6), words(sizes.varies_v6));
            let is_ours = |at: usize| source[at] & !varies[at] == prefix[at] & !varies[at];
            (0..16).all(is_ours).then(|| source.to_vec())
        } else {
            let source = sent.get(l3 + 12..l3 + 16)?;
            let (prefix, varies) = (sizes.sources_v4.to_ne_bytes(), sizes.varies_v4.to_ne_bytes());
            let is_ours = |at: usize| source[at] & !varies[at] == prefix[at] & !varies[at];
            (0..4).all(is_ours).then(|| source.to_vec())
        }
    }
}

fn words(of: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&of[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&of[1].to_ne_bytes());
    bytes
}
