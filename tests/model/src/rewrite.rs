//! Making the frame that goes on: addresses, ports, TTL, Ethernet. Checksums are updated word by word with
//! equation 3 of RFC 1624, over everything that a checksum covers and that could have changed.

use crate::wire::{Packet, Part};
use lb_common::destination::{NextHop, OTHER_TAG};

/// How a frame reaches a neighbour: MACs and VLAN tags, 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Link {
    pub to: [u8; 6],
    pub from: [u8; 6],
    pub outer: u16,
    pub inner: u16,
}

impl Link {
    pub fn of(hop: &NextHop) -> Self {
        Self {
            to: NextHop::mac(hop.destination),
            from: NextHop::mac(hop.source),
            outer: NextHop::tci(hop.destination),
            inner: NextHop::tci(hop.source),
        }
    }

    /// Back to the sender of a frame; of its tags only the VLAN's number.
    pub fn back(frame: &[u8], l3: usize) -> Self {
        let mac = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).unwrap_or_default();
        let vlan =
            |at: usize| if at < l3 { u16::from_be_bytes([frame[at], frame[at + 1]]) & 0xfff } else { 0 };
        let (outer, inner) = (vlan(14), vlan(18));
        let usual = if l3 > 18 { [0x88, 0xa8] } else { [0x81, 0x00] };
        let other = if outer != 0 && frame[12..14] != usual { OTHER_TAG } else { 0 };
        Self { to: mac(6), from: mac(0), outer: outer | other, inner }
    }

    /// The frame of an IP packet.
    pub fn frame(&self, v6: bool, ip: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ip.len() + 22);
        frame.extend(self.to);
        frame.extend(self.from);
        let other = self.outer & OTHER_TAG != 0;
        let kind = |service: bool| if service { [0x88, 0xa8] } else { [0x81, 0x00] };
        match (self.outer & !OTHER_TAG, self.inner) {
            (0, 0) => {}
            (0, tag) | (tag, 0) => {
                frame.extend(kind(other));
                frame.extend(tag.to_be_bytes());
            }
            (outer, inner) => {
                frame.extend(kind(!other));
                frame.extend(outer.to_be_bytes());
                frame.extend([0x81, 0x00]);
                frame.extend(inner.to_be_bytes());
            }
        }
        frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        frame.extend(ip);
        frame
    }
}

/// A checksum after the bytes that it covers became others (RFC 1624, equation 3).
pub fn updated(old: u16, before: &[u8], after: &[u8]) -> u16 {
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], *bytes.get(at + 1).unwrap_or(&0)]);
    let add = |a: u16, b: u16| {
        let (sum, carry) = a.overflowing_add(b);
        sum + carry as u16
    };
    let mut sum = !old;
    for at in (0..before.len()).step_by(2) {
        let (old, new) = (word(before, at), word(after, at));
        if old != new {
            sum = add(add(sum, !old), new);
        }
    }
    !sum
}

/// A packet being changed; checksums follow at the end.
pub struct Edit {
    packet: Packet,
    before: Packet,
}

impl Edit {
    pub fn new(packet: &Packet) -> Self {
        Self { packet: packet.clone(), before: packet.clone() }
    }

    pub fn less_ttl(mut self) -> Self {
        let at = self.packet.ip.l3 + if self.packet.ip.v6 { 7 } else { 8 };
        self.packet.frame[at] = self.packet.frame[at].wrapping_sub(1);
        self
    }

    pub fn source(self, address: &[u8; 16], port: u16) -> Self {
        let at = if self.packet.ip.v6 { 8 } else { 12 };
        self.end(at, address, 0, port)
    }

    pub fn destination(self, address: &[u8; 16], port: u16) -> Self {
        let at = if self.packet.ip.v6 { 24 } else { 16 };
        self.end(at, address, 2, port)
    }

    fn end(mut self, ip_at: usize, address: &[u8; 16], port_at: usize, port: u16) -> Self {
        let bytes = if self.packet.ip.v6 { 16 } else { 4 };
        let (l3, l4) = (self.packet.ip.l3, self.packet.transport.l4);
        self.packet.frame[l3 + ip_at..l3 + ip_at + bytes].copy_from_slice(&address[..bytes]);
        if self.packet.part == Part::Later {
            return self;
        }
        self.packet.frame[l4 + port_at..l4 + port_at + 2].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// Bytes of the transport header, from the offset `at`.
    pub fn transport(mut self, at: usize, bytes: &[u8]) -> Self {
        let at = self.packet.transport.l4 + at;
        self.packet.frame[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Bytes more at an offset of the frame, of a length that is even. They cover nothing that stood there.
    pub fn put_in(&mut self, at: usize, more: &[u8]) {
        let (l3, l4, v6) = (self.packet.ip.l3, self.packet.transport.l4, self.packet.ip.v6);
        let length_at = l3 + if v6 { 4 } else { 2 };
        let length = self.packet.ip.length - if v6 { 40 } else { 0 };
        let frame = &mut self.packet.frame;
        frame[length_at..length_at + 2].copy_from_slice(&((length + more.len()) as u16).to_be_bytes());
        self.packet.ip.length += more.len();
        if !v6 {
            let (before, after) = (&self.before.frame[l3..l3 + 20], &frame[l3..l3 + 20]);
            let new = updated(u16::from_be_bytes([before[10], before[11]]), before, after);
            frame[l3 + 10..l3 + 12].copy_from_slice(&new.to_be_bytes());
        }
        // The checksum covers what is put in, and the length.
        let old = u16::from_be_bytes([frame[l4 + 16], frame[l4 + 17]]);
        let before = vec![0; more.len() + 2];
        let new = updated(old, &before, &[more, &(more.len() as u16).to_be_bytes()].concat());
        frame[l4 + 16..l4 + 18].copy_from_slice(&new.to_be_bytes());
        frame.splice(at..at, more.iter().copied());
        self.before = self.packet.clone();
    }

    /// With its checksums.
    pub fn done(mut self) -> Packet {
        let (l3, l4) = (self.packet.ip.l3, self.packet.transport.l4);
        let addresses = if self.packet.ip.v6 { l3 + 8..l3 + 40 } else { l3 + 12..l3 + 20 };
        if !self.packet.ip.v6 {
            let (before, after) = (&self.before.frame[l3..l3 + 20], &self.packet.frame[l3..l3 + 20]);
            let old = u16::from_be_bytes([before[10], before[11]]);
            let new = updated(old, before, after);
            self.packet.frame[l3 + 10..l3 + 12].copy_from_slice(&new.to_be_bytes());
        }
        if self.packet.part == Part::Later {
            return self.packet;
        }
        let at = l4 + if self.packet.transport.udp { 6 } else { 16 };
        let old = u16::from_be_bytes([self.packet.frame[at], self.packet.frame[at + 1]]);
        let covered = |frame: &[u8]| {
            let mut all = frame[addresses.clone()].to_vec();
            let end = frame.len().min(l4 + 60);
            all.extend(&frame[l4..end]);
            all
        };
        let new = updated(old, &covered(&self.before.frame), &covered(&self.packet.frame));
        let new = match (self.packet.transport.udp, old, new) {
            // No checksum stays none, and one of 0 is sent as all ones (RFC 768).
            (true, 0, _) => 0,
            (true, _, 0) => 0xffff,
            _ => new,
        };
        self.packet.frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
        self.packet
    }
}

/// From the IP header to the frame's end.
pub fn behind_ethernet(packet: &Packet) -> &[u8] {
    &packet.frame[packet.ip.l3..]
}
