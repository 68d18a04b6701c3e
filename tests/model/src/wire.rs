//! What is in a frame.

/// A frame, as far as its bytes alone tell.
pub enum Frame {
    NotIp,
    /// With the offset of what is behind Ethernet's header.
    Arp(usize),
    /// Too short for the header that it announces.
    Cut,
    /// A third VLAN tag.
    TooManyTags,
    Ip(Ip),
}

/// An IP header of which the addresses could be read.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Offset in the frame.
    pub l3: usize,
    pub v6: bool,
    /// IPv4 in the first four bytes.
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// Length of the packet by its own word.
    pub length: usize,
    pub inner: Inner,
}

/// What the IP header leads to.
#[derive(Clone, Copy, Debug)]
pub enum Inner {
    /// Version or header length that cannot be believed, or an extension header beyond the frame.
    Bad,
    TooMany,
    /// None: its headers lead nowhere.
    Fragment(Option<Piece>),
    /// The family's own, with the offset of its header.
    Icmp(usize),
    Other(u8),
    Transport(Transport),
}

/// A fragment by its headers.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Offset in the frame of what it carries.
    pub l4: usize,
    /// Where that belongs in the packet, bytes.
    pub offset: usize,
    pub more: bool,
    /// As in the packet.
    pub id: u32,
    /// Of what the packet carries; of a later IPv6 fragment's what its fragment header says.
    pub protocol: u8,
}

/// How much of a packet a frame has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Whole,
    /// The first of its fragments.
    First,
    /// One without a transport header.
    Later,
}

/// TCP or UDP: where its header should be.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    pub udp: bool,
    /// Offset in the frame.
    pub l4: usize,
}

/// A TCP or UDP packet in its frame.
#[derive(Clone, Debug)]
pub struct Packet {
    pub frame: Vec<u8>,
    pub ip: Ip,
    pub transport: Transport,
    pub part: Part,
}

/// IPv6 extension headers that are walked, and how far into the frame.
const EXTENSION_HEADERS: usize = 6;
const EXTENSIONS_END: usize = 1024;

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Where the header behind Ethernet's and VLAN tags begins.
pub fn behind_tags(frame: &[u8]) -> Option<usize> {
    match read(frame) {
        Frame::Ip(ip) => Some(ip.l3),
        _ => None,
    }
}

pub fn read(frame: &[u8]) -> Frame {
    let mut l3 = 14;
    if frame.len() < l3 {
        return Frame::Cut;
    }
    let mut kind = word(frame, 12);
    for _ in 0..2 {
        if kind != 0x8100 && kind != 0x88a8 {
            break;
        }
        if frame.len() < l3 + 4 {
            return Frame::Cut;
        }
        kind = word(frame, l3 + 2);
        l3 += 4;
    }
    match kind {
        0x0800 => ipv4(frame, l3),
        0x86dd => ipv6(frame, l3),
        0x0806 => Frame::Arp(l3),
        0x8100 | 0x88a8 => Frame::TooManyTags,
        _ => Frame::NotIp,
    }
}

fn ipv4(frame: &[u8], l3: usize) -> Frame {
    let Some(header) = frame.get(l3..l3 + 20) else { return Frame::Cut };
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source[..4].copy_from_slice(&header[12..16]);
    destination[..4].copy_from_slice(&header[16..20]);
    let words = (header[0] & 15) as usize;
    let inner = if header[0] >> 4 != 4 || words < 5 {
        Inner::Bad
    } else if word(header, 6) & 0x3fff != 0 {
        let fragment = word(header, 6);
        Inner::Fragment(Some(Piece {
            l4: l3 + words * 4,
            offset: (fragment & 0x1fff) as usize * 8,
            more: fragment & 0x2000 != 0,
            id: word(header, 4) as u32,
            protocol: header[9],
        }))
    } else {
        number(header[9], 1, l3 + words * 4)
    };
    Frame::Ip(Ip { l3, v6: false, source, destination, length: word(header, 2) as usize, inner })
}

fn number(number: u8, icmp: u8, l4: usize) -> Inner {
    match number {
        6 => Inner::Transport(Transport { udp: false, l4 }),
        17 => Inner::Transport(Transport { udp: true, l4 }),
        n if n == icmp => Inner::Icmp(l4),
        n => Inner::Other(n),
    }
}

fn ipv6(frame: &[u8], l3: usize) -> Frame {
    let Some(header) = frame.get(l3..l3 + 40) else { return Frame::Cut };
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    source.copy_from_slice(&header[8..24]);
    destination.copy_from_slice(&header[24..40]);
    let inner = if header[0] >> 4 != 6 { Inner::Bad } else { behind_extensions(frame, l3, header[6]) };
    Frame::Ip(Ip { l3, v6: true, source, destination, length: word(header, 4) as usize + 40, inner })
}

/// RFC 8200, section 4; AH's length is in words of four bytes, less two (RFC 4302, section 2.2).
fn behind_extensions(frame: &[u8], l3: usize, first: u8) -> Inner {
    let (mut next, mut at) = (first, l3 + 40);
    for _ in 0..EXTENSION_HEADERS {
        let unit = match next {
            0 | 43 | 60 => (8, 1),
            51 => (4, 2),
            44 => return Inner::Fragment(piece(frame, l3 + 40, first)),
            _ => return number(next, 58, at),
        };
        let Some(header) = frame.get(at..at + 8) else { return Inner::Bad };
        next = header[0];
        at += (header[1] as usize + unit.1) * unit.0;
        if at > EXTENSIONS_END {
            return Inner::TooMany;
        }
    }
    match next {
        6 | 17 | 58 => number(next, 58, at),
        _ => Inner::TooMany,
    }
}

/// An IPv6 fragment (RFC 8200, section 4.5). Only behind the first one's fragment header are there headers to read.
fn piece(frame: &[u8], behind_ip: usize, first: u8) -> Option<Piece> {
    let mut piece = Piece { l4: behind_ip, offset: 0, more: false, id: 0, protocol: first };
    for _ in 0..EXTENSION_HEADERS {
        let header = frame.get(piece.l4..piece.l4 + 8)?;
        let this = std::mem::replace(&mut piece.protocol, header[0]);
        piece.l4 += match this {
            0 | 43 | 60 => (header[1] as usize + 1) * 8,
            51 => (header[1] as usize + 2) * 4,
            44 => {
                piece.offset = (word(header, 2) & 0xfff8) as usize;
                piece.more = header[3] & 1 != 0;
                piece.id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                8
            }
            _ => {
                piece.protocol = this;
                return Some(piece);
            }
        };
        if this == 44 && piece.offset != 0 {
            return Some(piece);
        }
        if piece.l4 > EXTENSIONS_END {
            return None;
        }
    }
    Some(piece)
}

impl Packet {
    /// The fixed part of the transport header.
    fn need(&self) -> usize {
        if self.transport.udp { 8 } else { 20 }
    }

    /// Whether that part lies in the packet and the packet in the frame.
    pub fn is_whole(&self) -> bool {
        let (l3, l4) = (self.ip.l3, self.transport.l4);
        l4 + self.need() <= self.frame.len()
            && l3 + self.ip.length <= self.frame.len()
            && l4 + self.need() <= l3 + self.ip.length
    }

    /// Whether the length that the transport header gives itself lies in the packet.
    pub fn is_honest(&self) -> bool {
        let header = self.segment();
        let own = if self.transport.udp { word(header, 4) as usize } else { (header[12] >> 4) as usize * 4 };
        // Of a datagram in fragments the rest is still to come.
        let rest_follows = self.transport.udp && self.part == Part::First;
        own >= self.need() && (rest_follows || self.transport.l4 + own <= self.ip.l3 + self.ip.length)
    }

    /// From the transport header to the frame's end.
    pub fn segment(&self) -> &[u8] {
        &self.frame[self.transport.l4..]
    }

    /// TCP's flags; 0 for UDP.
    pub fn flags(&self) -> u8 {
        if self.transport.udp { 0 } else { self.segment()[13] }
    }

    /// (source, destination); of a fragment without ports none.
    pub fn ports(&self) -> (u16, u16) {
        if self.part == Part::Later {
            return (0, 0);
        }
        (word(self.segment(), 0), word(self.segment(), 2))
    }

    pub fn hops_left(&self) -> u8 {
        self.frame[self.ip.l3 + if self.ip.v6 { 7 } else { 8 }]
    }

    /// Whether routers may fragment it: IPv4 without DF.
    pub fn may_fragment(&self) -> bool {
        !self.ip.v6 && self.frame[self.ip.l3 + 6] & 0x40 == 0
    }
}

/// The packet that an ICMP error quotes, as far as its ports.
pub struct Quote {
    /// Offsets of its headers in the frame.
    pub l3: usize,
    pub l4: usize,
    pub udp: bool,
    pub sctp: bool,
    pub source: ([u8; 16], u16),
    pub destination: ([u8; 16], u16),
}

/// What is quoted at `l3` of a frame whose packet ends at `end`: a packet of TCP, UDP or SCTP, or its first fragment, with
/// at least eight bytes behind its IP header (RFC 792).
pub fn quote(frame: &[u8], v6: bool, l3: usize, end: usize) -> Option<Quote> {
    let frame = &frame[..end];
    let (source, destination) = addresses(frame, v6, l3)?;
    let (l4, number) = if v6 {
        if frame[l3] >> 4 != 6 {
            return None;
        }
        quoted_transport(frame, l3)?
    } else {
        let words = (frame[l3] & 15) as usize;
        if frame[l3] >> 4 != 4 || words < 5 || word(frame, l3 + 6) & 0x1fff != 0 {
            return None;
        }
        (l3 + words * 4, frame[l3 + 9])
    };
    frame.get(l4..l4 + 8).filter(|_| [6, 17, 132].contains(&number))?;
    Some(Quote {
        l3,
        l4,
        udp: number == 17,
        sctp: number == 132,
        source: (source, word(frame, l4)),
        destination: (destination, word(frame, l4 + 2)),
    })
}

fn quoted_transport(frame: &[u8], l3: usize) -> Option<(usize, u8)> {
    let (mut next, mut at) = (frame[l3 + 6], l3 + 40);
    for _ in 0..EXTENSION_HEADERS {
        if [6, 17, 132].contains(&next) {
            return Some((at, next));
        }
        let header = frame.get(at..at + 8)?;
        at += match next {
            0 | 43 | 60 => (header[1] as usize + 1) * 8,
            51 => (header[1] as usize + 2) * 4,
            44 if word(header, 2) & 0xfff8 == 0 => 8,
            _ => return None,
        };
        next = header[0];
        if at > EXTENSIONS_END {
            return None;
        }
    }
    Some((at, next))
}

/// Source and destination of the IP header at `l3`, if it is there.
fn addresses(frame: &[u8], v6: bool, l3: usize) -> Option<([u8; 16], [u8; 16])> {
    let header = frame.get(l3..l3 + if v6 { 40 } else { 20 })?;
    let (mut source, mut destination) = ([0; 16], [0; 16]);
    if v6 {
        source.copy_from_slice(&header[8..24]);
        destination.copy_from_slice(&header[24..40]);
    } else {
        source[..4].copy_from_slice(&header[12..16]);
        destination[..4].copy_from_slice(&header[16..20]);
    }
    Some((source, destination))
}

/// A tunnel packet that is quoted.
pub struct Tunnel {
    pub source: [u8; 16],
    pub destination: [u8; 16],
    /// Of the whole, by its own word.
    pub length: usize,
    /// The packet inside, where it is quoted and the header before it is one of ours: its offset in the frame, whether
    /// it is IPv6, and the bytes between it and the outer IP header.
    pub inner: Option<(usize, bool, usize)>,
}

/// IPIP, GRE, or UDP that may be GUE as far as it is quoted.
pub fn quoted_tunnel(frame: &[u8], v6: bool, l3: usize, end: usize) -> Option<Tunnel> {
    let frame = &frame[..end];
    let (source, destination) = addresses(frame, v6, l3)?;
    let (first, number) = (frame[l3], frame[l3 + if v6 { 6 } else { 9 }]);
    if first >> 4 != if v6 { 6 } else { 4 } || !v6 && first & 15 < 5 {
        return None;
    }
    let (length, header) = if v6 {
        (word(frame, l3 + 4) as usize + 40, 40)
    } else {
        (word(frame, l3 + 2) as usize, (first & 15) as usize * 4)
    };
    let at = l3 + header;
    let inner = match number {
        4 | 41 => Some((at, number == 41, 0)),
        // Our source ports are 49152 and above.
        17 => {
            if word(frame.get(at..at + 8)?, 0) < 0xc000 {
                return None;
            }
            match frame.get(at + 8..at + 12) {
                Some([0, family @ (4 | 41), 0, 0]) => Some((at + 12, *family == 41, 12)),
                Some(_) => return None,
                None => None,
            }
        }
        47 => frame.get(at..at + 12).and_then(|gre| {
            let between = match word(gre, 0) {
                0 => 4,
                0x2000 => 8,
                _ => return None,
            };
            match word(gre, 2) {
                0x0800 => Some((at + between, false, between)),
                0x86dd => Some((at + between, true, between)),
                _ => None,
            }
        }),
        _ => return None,
    };
    Some(Tunnel { source, destination, length, inner })
}

/// A packet that is quoted so far that its sender knows it, and that may not be fragmented.
pub fn read_quoted(frame: &[u8], v6: bool, l3: usize) -> Option<Ip> {
    let header = if v6 { 40 } else { 20 };
    let (source, destination) = addresses(frame, v6, l3)?;
    // Of a later fragment nobody knows the port.
    let asks = v6 || word(frame, l3 + 6) & 0x5fff == 0x4000;
    if frame.len() < l3 + header + 8 || frame[l3] >> 4 != if v6 { 6 } else { 4 } || !asks {
        return None;
    }
    let length = word(frame, l3 + if v6 { 4 } else { 2 }) as usize + if v6 { 40 } else { 0 };
    Some(Ip { l3, v6, source, destination, length, inner: Inner::Bad })
}

/// The one's complement sum of bytes (RFC 1071), to be complemented.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u32;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether every checksum of a frame that is no tunnel holds; of what is not TCP or UDP in IP, nothing is said.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let Frame::Ip(ip) = read(frame) else { return true };
    let header = ip.l3..ip.l3 + (frame[ip.l3] & 15) as usize * 4;
    let believed = !matches!(ip.inner, Inner::Bad);
    if !ip.v6 && believed && frame.get(header).is_some_and(|header| sum(header) != 0xffff) {
        return false;
    }
    if let Inner::Icmp(l4) = ip.inner {
        let Some(message) = frame.get(l4..ip.l3 + ip.length) else { return false };
        let mut all = Vec::new();
        if ip.v6 {
            all.extend(&frame[ip.l3 + 8..ip.l3 + 40]);
            all.extend((message.len() as u32).to_be_bytes());
            all.extend([0, 0, 0, 58]);
        }
        all.extend(message);
        return sum(&all) == 0xffff;
    }
    let Inner::Transport(transport) = ip.inner else { return true };
    let packet = Packet { frame: frame.to_vec(), ip, transport, part: Part::Whole };
    if !packet.is_whole() {
        return false;
    }
    let (l3, l4, end) = (packet.ip.l3, transport.l4, packet.ip.l3 + packet.ip.length);
    let segment = &frame[l4..end];
    if transport.udp && word(segment, 6) == 0 {
        // None; over IPv6 only tunnels may do without (RFC 8200, section 8.1; RFC 6935): GUE's is asked about inside.
        let inside = |kind: [u8; 2]| checksums_hold(&[&[0; 12], &kind[..], &segment[12..]].concat());
        return !packet.ip.v6
            || match segment.get(8..12) {
                Some([0, 4, 0, 0]) => inside([0x08, 0x00]),
                Some([0, 41, 0, 0]) => inside([0x86, 0xdd]),
                _ => false,
            };
    }
    let (pseudo, number) = if packet.ip.v6 {
        (&frame[l3 + 8..l3 + 40], if transport.udp { 17u8 } else { 6 })
    } else {
        (&frame[l3 + 12..l3 + 20], if transport.udp { 17 } else { 6 })
    };
    let mut all = pseudo.to_vec();
    all.extend((segment.len() as u32).to_be_bytes());
    all.extend([0, 0, 0, number]);
    all.extend(segment);
    sum(&all) == 0xffff
}
