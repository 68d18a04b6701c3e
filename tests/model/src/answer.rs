//! Answers to a packet's sender: ICMP errors and RST. TTL 64, from the address that the packet was for.

use crate::{
    Ends, Fate,
    rewrite::{Link, behind_ethernet},
    wire::{Packet, Part, sum},
};
use lb_common::{
    state::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

/// Bytes that an ICMP error quotes at most.
const QUOTE: usize = 128;

fn ip(
    v6: bool,
    from: &[u8; 16],
    to: &[u8; 16],
    (number, fragment): (u8, [u8; 2]),
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    if v6 {
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([number, 64]);
        bytes.extend(from);
        bytes.extend(to);
    } else {
        bytes.extend([0x45, 0]);
        bytes.extend((payload.len() as u16 + 20).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(fragment);
        bytes.extend([64, number, 0, 0]);
        bytes.extend(&from[..4]);
        bytes.extend(&to[..4]);
        let checksum = !sum(&bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn pseudo(v6: bool, from: &[u8; 16], to: &[u8; 16], number: u8, len: usize) -> Vec<u8> {
    let of = if v6 { 16 } else { 4 };
    let mut bytes = [&from[..of], &to[..of]].concat();
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, number]);
    bytes
}

/// An ICMP error about the packet, from `source`.
fn icmp(packet: &Packet, source: &[u8; 16], kind: [u8; 2], word: u32, reason: Reason) -> Fate {
    let link = Link::back(&packet.frame, packet.ip.l3);
    Fate::Answer(reason, icmp_frame(packet, source, kind, word, link))
}

fn icmp_frame(packet: &Packet, source: &[u8; 16], kind: [u8; 2], word: u32, link: Link) -> Vec<u8> {
    let v6 = packet.ip.v6;
    let there = behind_ethernet(packet);
    let quote = &there[..packet.ip.length.min(there.len()).min(QUOTE) & !1];
    let mut message = vec![kind[0], kind[1], 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(quote);
    let number = if v6 { 58 } else { 1 };
    let mut all = if v6 { pseudo(true, source, &packet.ip.source, 58, message.len()) } else { Vec::new() };
    all.extend(&message);
    message[2..4].copy_from_slice(&(!sum(&all)).to_be_bytes());
    link.frame(v6, &ip(v6, source, &packet.ip.source, (number, [0, 0]), &message))
}

/// What does not fit the way, and what has no hops left, ends here; `vip` speaks.
pub fn fits(packet: &Packet, mtu: usize, vip: &[u8; 16]) -> Ends<()> {
    if packet.ip.length > mtu {
        if packet.may_fragment() {
            return Err(Fate::Drop(Reason::TooBig).into());
        }
        let kind = if packet.ip.v6 { [2, 0] } else { [3, 4] };
        return Err(icmp(packet, vip, kind, mtu as u32, Reason::PacketTooBig).into());
    }
    if packet.hops_left() <= 1 {
        // Only of fragment zero a sender is told (RFC 792).
        if packet.part == Part::Later {
            return Err(Fate::Drop(Reason::IcmpTtlExpired).into());
        }
        let kind = if packet.ip.v6 { [3, 0] } else { [11, 0] };
        return Err(icmp(packet, vip, kind, 0, Reason::TimeExceeded).into());
    }
    Ok(())
}

/// A packet of the client's was too big for the tunnel that it went in: it is told so by `link`.
pub fn narrow_tunnel(packet: &Packet, mtu: usize, link: Link) -> Fate {
    let kind = if packet.ip.v6 { [2, 0] } else { [3, 4] };
    let vip = &packet.ip.destination;
    Fate::Answer(Reason::TunnelMtuTold, icmp_frame(packet, vip, kind, mtu as u32, link))
}

/// Nobody serves this.
pub fn unreachable(packet: &Packet) -> Fate {
    let kind = if packet.ip.v6 { [1, 4] } else { [3, 3] };
    icmp(packet, &packet.ip.destination, kind, 0, Reason::NoServerUnreachable)
}

/// RST in answer to the packet (RFC 9293, section 3.5.2): an ACK names the sequence that it expects; to anything else the
/// reset acknowledges what came.
pub fn reset(packet: &Packet, reason: Reason) -> Fate {
    let (v6, segment, flags) = (packet.ip.v6, packet.segment(), packet.flags());
    let number =
        |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let (sequence, acknowledged, says) = if flags & ACK != 0 {
        (number(8), 0, RST)
    } else {
        let header = (packet.transport.l4 - packet.ip.l3) as u32 + (segment[12] >> 4) as u32 * 4;
        let payload = (packet.ip.length as u32).wrapping_sub(header);
        let flags = (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
        (0, number(4).wrapping_add(payload).wrapping_add(flags), RST | ACK)
    };
    let (from, to) = (&packet.ip.destination, &packet.ip.source);
    let mut tcp = [&segment[2..4], &segment[..2]].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledged.to_be_bytes());
    tcp.extend([0x50, says, 0, 0, 0, 0, 0, 0]);
    let mut all = pseudo(v6, from, to, 6, tcp.len());
    all.extend(&tcp);
    tcp[16..18].copy_from_slice(&(!sum(&all)).to_be_bytes());
    let ip = ip(v6, from, to, (6, [0x40, 0]), &tcp);
    Fate::Answer(reason, Link::back(&packet.frame, packet.ip.l3).frame(v6, &ip))
}
