//! Makes frames: valid ones of every kind, the same mutated, and plain random bytes. Everything comes from one
//! seed.

use lb_common::header::{ethertype, protocol};
pub use lb_model::traffic::Random;

/// A TCP or UDP packet. Addresses have 16 bytes; IPv4 is in the first four.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    pub v6: bool,
    pub udp: bool,
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub source_port: u16,
    pub destination_port: u16,
}

impl Tuple {
    pub fn turned(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }
}

/// How a packet of a tuple is written.
#[derive(Clone)]
pub struct Shape {
    pub flags: u8,
    pub ttl: u8,
    pub payload: usize,
    pub tags: usize,
    /// IPv4 options, in words.
    pub options: usize,
    /// IPv6 extension headers, by number.
    pub extensions: Vec<u8>,
    pub dont_fragment: bool,
    /// Another IP protocol than the tuple's.
    pub protocol: Option<u8>,
}

impl Shape {
    pub fn plain(flags: u8) -> Self {
        Self {
            flags,
            ttl: 64,
            payload: 0,
            tags: 0,
            options: 0,
            extensions: Vec::new(),
            dont_fragment: true,
            protocol: None,
        }
    }
}

/// Writes a frame. Checksums are left 0: nothing of the data plane's choices depends on them.
pub fn write(tuple: &Tuple, shape: &Shape) -> Vec<u8> {
    let transport = transport(tuple, shape);
    let number = shape.protocol.unwrap_or(if tuple.udp { protocol::UDP } else { protocol::TCP });
    let mut frame = vec![2, 0, 0, 0, 0, 0xfe, 2, 0, 0, 0, 0, 0xfd];
    for tag in 0..shape.tags {
        let kind = if tag == 0 && shape.tags > 1 { ethertype::QINQ } else { ethertype::VLAN };
        frame.extend(kind.to_be_bytes());
        frame.extend([0, 100 + tag as u8]);
    }
    if tuple.v6 {
        frame.extend(ethertype::IPV6.to_be_bytes());
        let headers = extension_headers(&shape.extensions, number);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((headers.len() + transport.len()) as u16).to_be_bytes());
        frame.extend([shape.extensions.first().copied().unwrap_or(number), shape.ttl]);
        frame.extend(tuple.source);
        frame.extend(tuple.destination);
        frame.extend(headers);
    } else {
        frame.extend(ethertype::IPV4.to_be_bytes());
        let header = 20 + shape.options * 4;
        frame.extend([0x40 | (header / 4) as u8, 0]);
        frame.extend(((header + transport.len()) as u16).to_be_bytes());
        frame.extend([0, 0, if shape.dont_fragment { 0x40 } else { 0 }, 0, shape.ttl, number, 0, 0]);
        frame.extend(&tuple.source[..4]);
        frame.extend(&tuple.destination[..4]);
        frame.extend(std::iter::repeat_n(1, shape.options * 4));
    }
    frame.extend(transport);
    frame
}

const PAYLOAD: [u8; 4096] = [0x5a; 4096];

fn transport(tuple: &Tuple, shape: &Shape) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + shape.payload);
    bytes.extend(tuple.source_port.to_be_bytes());
    bytes.extend(tuple.destination_port.to_be_bytes());
    if tuple.udp {
        bytes.extend(((8 + shape.payload) as u16).to_be_bytes());
        bytes.extend([0, 0]);
    } else {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, shape.flags, 0xff, 0xff, 0, 0, 0, 0]);
        if shape.flags & lb_common::state::SYN != 0 {
            bytes[12] = 0x60;
            bytes.extend([2, 4, 5, 0xb4]);
        }
    }
    bytes.extend_from_slice(&PAYLOAD[..shape.payload]);
    bytes
}

/// Each of eight bytes but AH, which has twelve.
fn extension_headers(numbers: &[u8], last: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, number) in numbers.iter().enumerate() {
        let next = numbers.get(i + 1).copied().unwrap_or(last);
        match *number {
            protocol::AH => bytes.extend([next, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            _ => bytes.extend([next, 0, 0, 0, 0, 0, 0, 0]),
        }
    }
    bytes
}

/// What there is to hit: packets of flows that live, and what is known of addresses and ports.
pub struct Targets {
    /// Packets that flows are known for, both ways.
    pub known: Vec<Tuple>,
    /// (address, family) of VIPs and local addresses, and of NAT real servers.
    pub ours: Vec<([u8; 16], bool)>,
    pub servers: Vec<([u8; 16], bool)>,
    pub ports: Vec<u16>,
}

/// The next frame: 14 bytes at least, and no more than a test run takes.
pub fn next(random: &mut Random, targets: &Targets) -> Vec<u8> {
    let mut frame = match random.below(16) {
        0 => noise(random, targets),
        1 => write(&stranger(random, targets), &shape(random)),
        2..=6 => write(&beginner(random, targets), &shape(random)),
        _ => write(&random.of(&targets.known), &shape(random)),
    };
    if random.one_in(2) {
        for _ in 0..=random.below(3) {
            mutate(random, &mut frame);
        }
    }
    frame.truncate(3000);
    while frame.len() < 14 {
        frame.push(random.number() as u8);
    }
    frame
}

fn address(random: &mut Random) -> [u8; 16] {
    (random.number() as u128 | (random.number() as u128) << 64).to_ne_bytes()
}

fn of_family(mut address: [u8; 16], v6: bool) -> [u8; 16] {
    if !v6 {
        address[4..].fill(0);
    }
    address
}

/// A packet to one of our addresses that no flow is known for.
fn beginner(random: &mut Random, targets: &Targets) -> Tuple {
    let (destination, v6) = random.of(&targets.ours);
    Tuple {
        v6,
        udp: random.one_in(3),
        source: of_family(address(random), v6),
        destination,
        source_port: random.number() as u16,
        destination_port: if random.one_in(8) { random.number() as u16 } else { random.of(&targets.ports) },
    }
}

/// A packet that is not to us; of a real server now and then.
fn stranger(random: &mut Random, targets: &Targets) -> Tuple {
    let mut tuple = beginner(random, targets);
    tuple.destination = of_family(address(random), tuple.v6);
    if random.one_in(2) {
        (tuple.source, tuple.v6) = random.of(&targets.servers);
        tuple.destination = of_family(tuple.destination, tuple.v6);
    }
    tuple
}

fn shape(random: &mut Random) -> Shape {
    const FLAGS: [u8; 12] = [0x02, 0x02, 0x02, 0x10, 0x10, 0x18, 0x11, 0x04, 0x14, 0x12, 0x00, 0x03];
    let mut shape = Shape::plain(if random.one_in(16) { random.number() as u8 } else { random.of(&FLAGS) });
    if random.one_in(8) {
        shape.ttl = random.of(&[0, 1, 2, 255]);
    }
    shape.payload = match random.below(16) {
        0 => 1400 + random.below(120),
        1 => 1380 + random.below(1200),
        _ => random.below(64),
    };
    if random.one_in(4) {
        shape.tags = 1 + random.below(3);
    }
    if random.one_in(6) {
        shape.options = 1 + random.below(10);
    }
    if random.one_in(4) {
        const EXTENSIONS: [u8; 5] = [0, 43, 60, 51, 60];
        let count = 1 + random.below(7);
        shape.extensions = (0..count).map(|_| random.of(&EXTENSIONS)).collect();
        if random.one_in(8) {
            shape.extensions.push(protocol::FRAGMENT);
        }
    }
    shape.dont_fragment = !random.one_in(3);
    if random.one_in(16) {
        shape.protocol = Some(random.of(&[1, 58, 47, 4, 41, 132, 132, 59, 50, 2]));
    }
    shape
}

fn noise(random: &mut Random, targets: &Targets) -> Vec<u8> {
    let most = if random.one_in(8) { 1600 } else { 120 };
    let len = 14 + random.below(most);
    let mut frame: Vec<u8> = (0..len).map(|_| random.number() as u8).collect();
    // Random bytes get no further than the Ethernet type, so some are given more.
    let kind = random.of(&[0x0800u16, 0x86dd, 0x8100, 0x88a8, 0x0806, 0x1234]);
    frame[12..14].copy_from_slice(&kind.to_be_bytes());
    let (address, v6) = random.of(&targets.ours);
    let at = if v6 { 38 } else { 30 };
    let bytes = if v6 { 16 } else { 4 };
    if random.one_in(2) && frame.len() >= at + bytes {
        frame[14] = if v6 { 0x60 } else { 0x45 };
        frame[at..at + bytes].copy_from_slice(&address[..bytes]);
    }
    frame
}

fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    let len = frame.len();
    match random.below(12) {
        // Near the headers.
        0..=3 => {
            let at = random.below(len.min(80));
            frame[at] ^= 1 << random.below(8);
        }
        4 => {
            let at = random.below(len.min(80));
            frame[at] = random.of(&[0, 1, 0x7f, 0x80, 0xff]);
        }
        5 => frame.truncate(14 + random.below(len - 13)),
        6 => {
            let new = len.min(74);
            frame.truncate(14 + random.below(new - 13));
        }
        // Padding, as Ethernet's own.
        7 => frame.extend(std::iter::repeat_n(0, random.below(40))),
        // Lengths and offsets that lie, wherever they may be.
        8 => put(frame, random.of(&[16, 18, 20, 22, 24]), random.number() as u8 & 0x0f),
        9 => put(frame, random.of(&[17, 19, 21, 23, 25]), random.number() as u8),
        10 => put(frame, random.of(&[39, 38, 59, 58, 46, 66]), random.number() as u8),
        _ => {
            let at = random.below(len);
            frame[at] = random.number() as u8;
        }
    }
}

fn put(frame: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = frame.get_mut(at) {
        *byte = value;
    }
}
