//! What an ICMP error quotes: the beginning of the packet that it is about. Eight bytes behind the quoted IP header
//! must be there (RFC 792); of TCP that is no checksum.

use crate::packet::{
    Frame, Packet, Protocol, Words, destination, load8, load16, load32, opaque, source, store16, store32,
    sum, unsum,
};
use lb_common::{
    checksum,
    header::{ICMP, IPV4, IPV6, protocol},
};

/// The quoted packet.
#[derive(Clone, Copy)]
pub struct Quote {
    /// Offset of its IP header in the frame.
    pub l3: usize,
    /// Offset of its transport header.
    pub l4: usize,
    /// Where the error ends: what lies behind is padding.
    pub end: usize,
    pub udp: bool,
    pub sctp: bool,
    pub source: Words,
    pub destination: Words,
    /// Source and destination port.
    pub ports: u32,
}

/// How many extension headers of a quoted packet are walked.
const EXTENSION_HEADERS: usize = 6;

impl Quote {
    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        Protocol { udp: self.udp, sctp: self.sctp }
    }

    /// The quote of an error whose ICMP header lies at `l4`; none when it does not reach the ports of a TCP,
    /// UDP or SCTP packet.
    #[inline(always)]
    pub fn of<const V6: bool>(frame: &Frame, l4: usize, end: usize) -> Option<Self> {
        let l3 = l4 + ICMP;
        let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 })?;
        let (at, next) = if V6 { transport_v6(frame, ip, l3)? } else { transport_v4(ip, l3)? };
        // A word that each branch makes anew, as in `ingress`.
        let (udp, sctp) = if next == protocol::UDP {
            (opaque(1), opaque(0))
        } else if next == protocol::TCP {
            (opaque(0), opaque(0))
        } else if next == protocol::SCTP {
            (opaque(0), opaque(1))
        } else {
            return None;
        };
        // One way for the verifier, whatever headers were walked.
        let at = opaque(at as u64) as usize & 0x7ff;
        if at + 8 > end {
            return None;
        }
        let ports = load32(frame.at_dynamic(at, 8)?, 0);
        Some(Self {
            l3,
            l4: at,
            end,
            udp: udp != 0,
            sctp: sctp != 0,
            source: source::<V6>(ip),
            destination: destination::<V6>(ip),
            ports,
        })
    }
}

#[inline(always)]
fn transport_v4(ip: *const u8, l3: usize) -> Option<(usize, u8)> {
    let first = load8(ip, 0);
    // Only the first fragment of a packet has ports.
    if first & 0xf0 != 0x40 || first & 0x0f < 5 || load16(ip, 6) & 0x1fff_u16.to_be() != 0 {
        return None;
    }
    Some((l3 + (first & 0x0f) as usize * 4, load8(ip, 9)))
}

#[inline(always)]
fn transport_v6(frame: &Frame, ip: *const u8, l3: usize) -> Option<(usize, u8)> {
    if load8(ip, 0) & 0xf0 != 0x60 {
        return None;
    }
    let mut next = load8(ip, 6);
    let mut at = l3 + IPV6;
    for _ in 0..EXTENSION_HEADERS {
        if has_ports(next) {
            return Some((at, next));
        }
        let p = frame.at_dynamic(at, 8)?;
        let words = match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                (load8(p, 1) as usize + 1) * 2
            }
            protocol::AH => load8(p, 1) as usize + 2,
            // The first fragment has the ports.
            protocol::FRAGMENT if load16(p, 2) & 0xfff8_u16.to_be() == 0 => 2,
            _ => return None,
        };
        next = load8(p, 0);
        at += words * 4;
        if at > 1024 {
            return None;
        }
    }
    if has_ports(next) { Some((at, next)) } else { None }
}

#[inline(always)]
fn has_ports(next: u8) -> bool {
    next == protocol::TCP || next == protocol::UDP || next == protocol::SCTP
}

/// Addresses and ports that a packet is given.
#[derive(Clone, Copy)]
pub struct Tuple {
    pub source: Words,
    pub destination: Words,
    pub ports: u32,
}

/// Gives the quoted packet another tuple, and the error (`packet`) other addresses, with every checksum that is
/// there: the quote's header and transport, ICMP's, the outer header's, whose TTL goes down by one. None when the
/// frame is shorter than its quote was.
#[inline(always)]
pub fn translate<const V6: bool>(
    packet: &Packet<V6>,
    quote: &Quote,
    inner: Tuple,
    outer: (Words, Words),
) -> Option<()> {
    let frame = &packet.frame;
    // The quoted addresses.
    let ip = frame.at_dynamic(quote.l3, if V6 { IPV6 } else { IPV4 })?;
    let quoted = Packet::<V6> { ip, l3: quote.l3, l4: quote.l4, udp: quote.udp, sctp: quote.sctp, ..*packet };
    let addresses = moved::<V6>((quote.source, quote.destination), (inner.source, inner.destination));
    quoted.set_source(inner.source);
    quoted.set_destination(inner.destination);
    let mut total = addresses;
    if !V6 {
        total += replace16(ip, 10, checksum::update(load16(ip, 10), addresses));
    }
    // The quoted ports, and the checksum that covers them. SCTP's is left: it covers more than a quote has, and who
    // gets the error looks at ports and verification tag (RFC 9260, section 10).
    let transport = frame.at_dynamic(quote.l4, 8)?;
    store32(transport, 0, inner.ports);
    let ports = checksum::sub(checksum::add(0, inner.ports), quote.ports);
    total += ports;
    let delta = addresses + ports;
    if quote.udp {
        total += replace16(transport, 6, checksum::update_udp(load16(transport, 6), delta));
    } else if !quote.sctp && quote.l4 + 18 <= quote.end {
        let transport = frame.at_dynamic(quote.l4, 18)?;
        total += replace16(transport, 16, checksum::update(load16(transport, 16), delta));
    }
    // The error itself.
    let delta = moved::<V6>((packet.source(), packet.destination()), outer);
    packet.set_source(outer.0);
    packet.set_destination(outer.1);
    packet.decrement_ttl_with(delta);
    let icmp = frame.at_dynamic(packet.l4, ICMP)?;
    // ICMPv6's checksum covers the addresses (RFC 4443, section 2.3).
    let total = if V6 { total + delta } else { total };
    store16(icmp, 2, checksum::update(load16(icmp, 2), total));
    Some(())
}

/// What a change of two addresses does to a sum.
#[inline(always)]
fn moved<const V6: bool>(old: (Words, Words), new: (Words, Words)) -> u64 {
    let sum = sum::<V6>(new.0, sum::<V6>(new.1, 0));
    unsum::<V6>(old.0, unsum::<V6>(old.1, sum))
}

/// Writes a word and returns what that does to a sum over it.
#[inline(always)]
fn replace16(p: *mut u8, at: usize, new: u16) -> u64 {
    let old = load16(p, at);
    store16(p, at, new);
    new as u64 + (!old) as u64
}
