//! Frames as the cases write them: fields in, bytes out, every checksum computed in full over the finished
//! bytes. Nothing here is shared with the data plane.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

pub const HOP_BY_HOP: u8 = 0;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const GRE: u8 = 47;
pub const AH: u8 = 51;
pub const ICMPV6: u8 = 58;
pub const DESTINATION_OPTIONS: u8 = 60;
pub const SCTP: u8 = 132;

pub const ETHERNET: usize = 14;

/// Of a tag: the EtherType before it, and its TCI.
pub type Tag = (u16, u16);

/// An Ethernet frame with an IP packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    pub to: Mac,
    pub from: Mac,
    /// Outermost first.
    pub tags: Vec<Tag>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv6 only.
    pub flow_label: u32,
    /// IPv4 only.
    pub id: u16,
    /// IPv4 only: flags and offset.
    pub fragment: u16,
    pub ttl: u8,
    /// IPv4 only: options, whole words.
    pub options: Vec<u8>,
    /// IPv6 only: extension headers, (number, bytes after the next-header byte).
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// Ethernet padding behind the packet.
    pub padding: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transport {
    Tcp {
        source: u16,
        destination: u16,
        sequence: u32,
        acknowledged: u32,
        flags: u8,
        /// Whole words.
        options: Vec<u8>,
    },
    Udp {
        source: u16,
        destination: u16,
        /// False: sent without a checksum (0).
        checksum: bool,
    },
    /// The payload are its chunks.
    Sctp { source: u16, destination: u16, tag: u32 },
    /// Anything else: the payload follows the IP header.
    Other { protocol: u8 },
}

pub const DONT_FRAGMENT: u16 = 0x4000;

impl Packet {
    fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        Self {
            to: crate::world::DIRECTOR,
            from: crate::world::GATEWAY,
            tags: Vec::new(),
            source,
            destination,
            tos: 0x28,
            flow_label: if source.is_ipv6() { 0x5_4321 } else { 0 },
            id: if source.is_ipv4() { 0x1234 } else { 0 },
            fragment: if source.is_ipv4() { DONT_FRAGMENT } else { 0 },
            ttl: 63,
            options: Vec::new(),
            extensions: Vec::new(),
            transport,
            payload: Vec::new(),
            padding: 0,
        }
    }

    /// A TCP packet with a payload when it has ACK and neither SYN, FIN nor RST.
    pub fn tcp(source: (IpAddr, u16), destination: (IpAddr, u16), flags: u8) -> Self {
        let transport = Transport::Tcp {
            source: source.1,
            destination: destination.1,
            sequence: 0x1111_2222,
            acknowledged: if flags & ACK != 0 { 0x3333_4444 } else { 0 },
            flags,
            options: Vec::new(),
        };
        let mut packet = Self::new(source.0, destination.0, transport);
        if flags == ACK {
            packet.payload = b"GET / HTTP/1.1\r\n\r\n!".to_vec();
        }
        packet
    }

    pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        let transport = Transport::Udp { source: source.1, destination: destination.1, checksum: true };
        let mut packet = Self::new(source.0, destination.0, transport);
        // An odd length: the last byte of a checksum is padded.
        packet.payload = b"question!".to_vec();
        packet
    }

    /// An SCTP packet of chunks as [`chunk`] makes them.
    pub fn sctp(source: (IpAddr, u16), destination: (IpAddr, u16), tag: u32, chunks: &[Vec<u8>]) -> Self {
        let transport = Transport::Sctp { source: source.1, destination: destination.1, tag };
        Self::new(source.0, destination.0, transport).with(|p| p.payload = chunks.concat())
    }

    pub fn other(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        let mut packet = Self::new(source, destination, Transport::Other { protocol });
        packet.payload = vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        packet
    }

    /// With the sequence and acknowledgement numbers of another.
    pub fn like(&mut self, other: &Self) {
        let Transport::Tcp { sequence, acknowledged, .. } = other.transport else { return };
        if let Transport::Tcp { sequence: s, acknowledged: a, .. } = &mut self.transport {
            (*s, *a) = (sequence, acknowledged);
        }
    }

    pub fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub fn payload(self, len: usize) -> Self {
        self.with(|p| p.payload = (0..len).map(|i| i as u8).collect())
    }

    pub fn tagged(self, tags: &[Tag]) -> Self {
        self.with(|p| p.tags = tags.to_vec())
    }

    pub fn ports(&self) -> (u16, u16) {
        match self.transport {
            Transport::Tcp { source, destination, .. }
            | Transport::Udp { source, destination, .. }
            | Transport::Sctp { source, destination, .. } => (source, destination),
            Transport::Other { .. } => (0, 0),
        }
    }

    pub fn set_ports(&mut self, new: (u16, u16)) {
        match &mut self.transport {
            Transport::Tcp { source, destination, .. }
            | Transport::Udp { source, destination, .. }
            | Transport::Sctp { source, destination, .. } => (*source, *destination) = new,
            Transport::Other { .. } => {}
        }
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Udp { .. } => UDP,
            Transport::Sctp { .. } => SCTP,
            Transport::Other { protocol } => protocol,
        }
    }

    /// Offset of the IP header in the frame.
    pub fn l3(&self) -> usize {
        ETHERNET + 4 * self.tags.len()
    }

    /// Offset of the transport header in the frame.
    pub fn l4(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len() + 1).sum();
        self.l3() + if self.is_v6() { 40 + extensions } else { 20 + self.options.len() }
    }

    fn segment(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let checksum_at = match &self.transport {
            Transport::Tcp { source, destination, sequence, acknowledged, flags, options } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledged.to_be_bytes());
                bytes.extend([((20 + options.len()) as u8 / 4) << 4, *flags]);
                bytes.extend(if *flags & RST != 0 { [0, 0] } else { [0xfa, 0xf0] });
                bytes.extend([0; 4]);
                bytes.extend(options);
                Some(16)
            }
            Transport::Udp { source, destination, checksum } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0; 2]);
                checksum.then_some(6)
            }
            Transport::Sctp { source, destination, tag } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0; 4]);
                None
            }
            Transport::Other { protocol } => (*protocol == ICMPV6).then_some(2),
        };
        bytes.extend(&self.payload);
        if let Transport::Sctp { .. } = self.transport {
            let crc = crc32c::crc32c(&bytes);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        if let Some(at) = checksum_at {
            bytes[at..at + 2].fill(0);
            let mut covered = pseudo_header(self.source, self.destination, self.protocol(), bytes.len());
            covered.extend(&bytes);
            let sum = match checksum(&covered) {
                0 if self.protocol() == UDP => 0xffff,
                sum => sum,
            };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The IP packet.
    pub fn ip(&self) -> Vec<u8> {
        let segment = self.segment();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4 {
                    tos: self.tos,
                    id: self.id,
                    fragment: self.fragment,
                    ttl: self.ttl,
                    protocol: self.protocol(),
                    source,
                    destination,
                };
                header.packet(&self.options, &segment)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut body = Vec::new();
                let numbers: Vec<u8> =
                    self.extensions.iter().map(|(number, _)| *number).chain([self.protocol()]).collect();
                for (i, (_, bytes)) in self.extensions.iter().enumerate() {
                    body.push(numbers[i + 1]);
                    body.extend(bytes);
                }
                body.extend(segment);
                let header = Ipv6 {
                    class: self.tos,
                    flow_label: self.flow_label,
                    next: numbers[0],
                    hop_limit: self.ttl,
                    source,
                    destination,
                };
                header.packet(&body)
            }
            _ => panic!("a packet of two families"),
        }
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = framed(self.to, self.from, &self.tags, &self.ip());
        frame.resize(frame.len() + self.padding, 0);
        frame
    }
}

/// An IPv4 header without options' length and checksum.
pub struct Ipv4 {
    pub tos: u8,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
}

impl Ipv4 {
    pub fn packet(&self, options: &[u8], body: &[u8]) -> Vec<u8> {
        let header = 20 + options.len();
        let mut bytes = vec![0x40 | (header / 4) as u8, self.tos];
        bytes.extend(((header + body.len()) as u16).to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(body);
        bytes
    }
}

/// An IPv6 header without its length.
pub struct Ipv6 {
    pub class: u8,
    pub flow_label: u32,
    pub next: u8,
    pub hop_limit: u8,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
}

impl Ipv6 {
    pub fn packet(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes = (6 << 28 | u32::from(self.class) << 20 | self.flow_label).to_be_bytes().to_vec();
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend([self.next, self.hop_limit]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(body);
        bytes
    }
}

/// An SCTP chunk (RFC 9260, section 3.2), filled up to whole words.
pub fn chunk(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, flags];
    bytes.extend((4 + body.len() as u16).to_be_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An Ethernet frame around an IP packet.
pub fn framed(to: Mac, from: Mac, tags: &[Tag], ip: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(if ip[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(ip);
    frame
}

/// What stands before a segment in the sum of its checksum (RFC 9293, section 3.1; RFC 8200, section 8.1).
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend([0, protocol]);
            bytes.extend((len as u16).to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend((len as u32).to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
        }
        _ => panic!("a packet of two families"),
    }
    bytes
}

/// The Internet checksum (RFC 1071), as a number.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// etherparse, which knows nothing of the above, finds the same checksums in frames of every kind.
#[test]
fn the_frames_of_the_cases_are_well_formed() {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let pairs: [(IpAddr, IpAddr); 2] = [
        ("198.51.100.7".parse().unwrap(), "203.0.113.10".parse().unwrap()),
        ("2001:db8:7::7".parse().unwrap(), "2001:db8:9::10".parse().unwrap()),
    ];
    for (source, destination) in pairs {
        for packet in [
            Packet::tcp((source, 40_000), (destination, 80), SYN),
            Packet::tcp((source, 40_000), (destination, 80), ACK),
            Packet::udp((source, 40_000), (destination, 53)),
            Packet::udp((source, 40_000), (destination, 53)).tagged(&[(0x88a8, 7), (0x8100, 8)]),
        ] {
            let bytes = packet.bytes();
            let sliced = SlicedPacket::from_ethernet(&bytes).expect("a frame");
            match sliced.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header().to_header();
                    assert_eq!(header.header_checksum, header.calc_header_checksum());
                }
                Some(NetSlice::Ipv6(ip)) => assert_eq!(ip.header().hop_limit(), packet.ttl),
                other => panic!("{other:?}"),
            }
            let (found, expected) = match (sliced.transport, source, destination) {
                (Some(TransportSlice::Tcp(tcp)), IpAddr::V4(s), IpAddr::V4(d)) => (
                    tcp.checksum(),
                    tcp.to_header().calc_checksum_ipv4_raw(s.octets(), d.octets(), tcp.payload()),
                ),
                (Some(TransportSlice::Tcp(tcp)), IpAddr::V6(s), IpAddr::V6(d)) => (
                    tcp.checksum(),
                    tcp.to_header().calc_checksum_ipv6_raw(s.octets(), d.octets(), tcp.payload()),
                ),
                (Some(TransportSlice::Udp(udp)), IpAddr::V4(s), IpAddr::V4(d)) => (
                    udp.checksum(),
                    udp.to_header().calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload()),
                ),
                (Some(TransportSlice::Udp(udp)), IpAddr::V6(s), IpAddr::V6(d)) => (
                    udp.checksum(),
                    udp.to_header().calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload()),
                ),
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected.expect("a length that fits"));
        }
    }
}
