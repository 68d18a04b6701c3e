//! Makes the frames of the differential test: conversations of clients with services, replies of servers, ports that are
//! used again, strangers, and all of it with bytes turned. Everything comes from one seed and from what became of
//! the frames before.

use crate::{Config, Counted, Fate, wire, wire::sum};
use lb_common::{
    destination::{Destination, Forwarding},
    state::{ACK, FIN, PSH, RST, SYN},
};

/// SplitMix64: every seed is a good one.
#[derive(Clone, Copy)]
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (((self.number() >> 32) * n as u64) >> 32) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// Where a packet goes from and to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    pub v6: bool,
    pub udp: bool,
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub ports: (u16, u16),
}

/// How a packet is written.
#[derive(Clone, Debug)]
struct Shape {
    flags: u8,
    ttl: u8,
    class: u8,
    payload: usize,
    tags: Vec<u16>,
    /// IPv4 options, in words.
    options: usize,
    /// IPv6 extension headers, by number.
    extensions: Vec<u8>,
    dont_fragment: bool,
    mss: Option<u16>,
    /// NOPs before the MSS option.
    nops: usize,
    /// Edges of selective acknowledgements, and timestamps.
    sack: Vec<u32>,
    stamps: Option<(u32, u32)>,
    /// Sequence number and acknowledgement.
    numbers: (u32, u32),
    no_checksum: bool,
    protocol: Option<u8>,
    seed: u64,
    cut: Option<Cut>,
    /// An ICMP message in place of a transport header.
    message: Option<Vec<u8>>,
}

/// The piece that a fragment carries of what is behind the IP header.
#[derive(Clone, Copy, Debug)]
struct Cut {
    offset: usize,
    len: usize,
    more: bool,
}

const DIRECTOR: [u8; 6] = [2, 0, 0, 0, 0xd, 1];

fn write(tuple: &Tuple, shape: &Shape) -> Vec<u8> {
    let number = match (&shape.message, tuple.udp) {
        (Some(_), _) => [1, 58][tuple.v6 as usize],
        (None, udp) => shape.protocol.unwrap_or(if udp { 17 } else { 6 }),
    };
    let mut frame = DIRECTOR.to_vec();
    frame.extend([2, 0, 0, 0, 0xc, shape.seed as u8 & 3]);
    for (n, tag) in shape.tags.iter().enumerate() {
        frame.extend(if n == 0 && shape.tags.len() > 1 { [0x88, 0xa8] } else { [0x81, 0x00] });
        frame.extend(tag.to_be_bytes());
    }
    let mut transport = match &shape.message {
        Some(message) => icmp(tuple, message),
        None => transport(tuple, shape, number),
    };
    let mut fragment = if shape.dont_fragment { 0x4000 } else { 0 };
    let cut = shape.cut.unwrap_or(Cut { offset: 0, len: transport.len(), more: false });
    if shape.cut.is_some() {
        let (offset, end) = (cut.offset.min(transport.len()), (cut.offset + cut.len).min(transport.len()));
        transport = transport[offset..end].to_vec();
        fragment |= (cut.offset / 8) as u16 | if cut.more { 0x2000 } else { 0 };
    }
    let random = (shape.seed >> 16) as u16;
    if tuple.v6 {
        let headers = extension_headers(&shape.extensions, number, cut, random);
        frame.extend([0x86, 0xdd, 0x60 | shape.class >> 4, shape.class << 4 | (random & 15) as u8]);
        frame.extend(random.to_be_bytes());
        frame.extend(((headers.len() + transport.len()) as u16).to_be_bytes());
        frame.extend([shape.extensions.first().copied().unwrap_or(number), shape.ttl]);
        frame.extend(tuple.source);
        frame.extend(tuple.destination);
        frame.extend(headers);
    } else {
        let len = 20 + shape.options * 4;
        let mut header = vec![0x40 | (len / 4) as u8, shape.class];
        header.extend(((len + transport.len()) as u16).to_be_bytes());
        header.extend(random.to_be_bytes());
        header.extend(u16::to_be_bytes(fragment));
        header.extend([shape.ttl, number, 0, 0]);
        header.extend(&tuple.source[..4]);
        header.extend(&tuple.destination[..4]);
        header.extend(std::iter::repeat_n(1, shape.options * 4));
        let checksum = !sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend([0x08, 0x00]);
        frame.extend(header);
    }
    frame.extend(transport);
    frame
}

fn transport(tuple: &Tuple, shape: &Shape, number: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40 + shape.payload);
    bytes.extend(tuple.ports.0.to_be_bytes());
    bytes.extend(tuple.ports.1.to_be_bytes());
    let at = if tuple.udp {
        bytes.extend(((8 + shape.payload) as u16).to_be_bytes());
        bytes.extend([0, 0]);
        6
    } else {
        let mut options = vec![1; shape.nops];
        if let Some(mss) = shape.mss {
            options.extend([2, 4]);
            options.extend(mss.to_be_bytes());
        }
        if let Some((stamp, echo)) = shape.stamps {
            options.extend([8, 10]);
            options.extend([stamp.to_be_bytes(), echo.to_be_bytes()].concat());
        }
        if !shape.sack.is_empty() {
            options.extend([5, 2 + shape.sack.len() as u8 * 4]);
            options.extend(shape.sack.iter().flat_map(|edge| edge.to_be_bytes()));
        }
        options.resize(options.len().next_multiple_of(4), 0);
        bytes.extend(shape.numbers.0.to_be_bytes());
        bytes.extend(shape.numbers.1.to_be_bytes());
        bytes.extend([(5 + options.len() as u8 / 4) << 4, shape.flags, 0x20, shape.seed as u8, 0, 0, 0, 0]);
        bytes.extend(options);
        16
    };
    let byte = (shape.seed >> 40) as u8;
    bytes.extend(std::iter::repeat_n(byte, shape.payload));
    if !(shape.no_checksum && tuple.udp) {
        let of = if tuple.v6 { 16 } else { 4 };
        let mut all = [&tuple.source[..of], &tuple.destination[..of]].concat();
        all.extend((bytes.len() as u32).to_be_bytes());
        all.extend([0, 0, 0, number]);
        all.extend(&bytes);
        let checksum = match !sum(&all) {
            0 if tuple.udp => 0xffff,
            checksum => checksum,
        };
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

/// An ICMP message with its checksum.
fn icmp(tuple: &Tuple, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let mut all = Vec::new();
    if tuple.v6 {
        all.extend([tuple.source, tuple.destination].concat());
        all.extend((message.len() as u32).to_be_bytes());
        all.extend([0, 0, 0, 58]);
    }
    all.extend(&message);
    let checksum = !sum(&all);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// Each of eight bytes but AH, which has twelve.
fn extension_headers(numbers: &[u8], last: u8, cut: Cut, id: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, number) in numbers.iter().enumerate() {
        let next = numbers.get(i + 1).copied().unwrap_or(last);
        match *number {
            51 => bytes.extend([next, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            44 => {
                bytes.extend([next, 0]);
                bytes.extend((cut.offset as u16 & 0xfff8 | cut.more as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(id.to_be_bytes());
            }
            _ => bytes.extend([next, 0, 0, 0, 0, 0, 0, 0]),
        }
    }
    bytes
}

/// A client's end of a conversation, and what its server would answer to.
#[derive(Clone, Copy)]
struct Conversation {
    tuple: Tuple,
    reply: Option<Tuple>,
    /// The first sequence numbers of both ends.
    first: (u32, u32),
}

/// How many conversations are gone on with.
const CONVERSATIONS: usize = 96;

/// The maker of frames.
#[derive(Clone)]
pub struct Traffic {
    random: Random,
    /// Rows of [`Config::ports`] that most of the traffic is for: a few, that much may happen there.
    favourites: Vec<usize>,
    conversations: Vec<Conversation>,
    /// The conversation of the frame before, and whether a reply of it is asked for.
    last: Option<usize>,
    /// Fragments whose first one was sent.
    pieces: Vec<(Tuple, Shape)>,
    /// The beginnings of packets that were sent on, from their IP header on: what routers may complain of.
    sent: Vec<(bool, Vec<u8>)>,
}

/// How many packets that were sent on are kept, and how much of each.
const SENT: usize = 48;
const KEPT: usize = 220;

/// How many services most of the traffic is for.
const FAVOURITES: usize = 12;

/// How many fragments wait.
const PIECES: usize = 24;

impl Traffic {
    pub fn new(seed: u64, config: &Config) -> Self {
        let mut random = Random(seed);
        let favourites = (0..FAVOURITES).map(|_| random.below(config.ports.len())).collect();
        Self {
            random,
            favourites,
            conversations: Vec::new(),
            last: None,
            pieces: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// The dice, for what else is by chance.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// The services that most of the traffic is for.
    pub fn favourites(&self, config: &Config) -> Vec<usize> {
        self.favourites.iter().map(|row| config.ports[*row].5).collect()
    }

    /// The next frame.
    pub fn next(&mut self, config: &Config) -> Vec<u8> {
        self.last = None;
        if !self.pieces.is_empty() && self.random.one_in(12) {
            let at = self.random.below(self.pieces.len());
            let (tuple, shape) = self.pieces[at].clone();
            // Some come twice.
            if !self.random.one_in(4) {
                self.pieces.swap_remove(at);
            }
            return self.finish(write(&tuple, &shape));
        }
        if self.random.one_in(16) {
            let frame = match self.random.below(16) {
                0 => self.arp(config),
                1 => self.discovery(config),
                _ => self.error(config),
            };
            return self.finish(frame);
        }
        let mut part_of = None;
        let tuple = match self.random.below(64) {
            0 => self.stranger(config),
            1 => self.at_local_address(config),
            2..=13 => {
                let tuple = self.beginner(config);
                part_of = self.last.map(|n| (n, false));
                tuple
            }
            _ if self.conversations.is_empty() => self.beginner(config),
            choice => {
                let at = self.random.below(self.conversations.len());
                let conversation = self.conversations[at];
                match conversation.reply {
                    Some(reply) if choice < 38 => {
                        part_of = Some((at, true));
                        reply
                    }
                    _ => {
                        part_of = Some((at, false));
                        self.last = Some(at);
                        conversation.tuple
                    }
                }
            }
        };
        let mut shape = self.shape(&tuple);
        if let Some((n, is_reply)) = part_of {
            self.number(&mut shape, n, is_reply);
        }
        if self.random.one_in(20) {
            self.cut(&tuple, &mut shape);
        }
        self.finish(write(&tuple, &shape))
    }

    /// Numbers that the two ends of a conversation might use: near its beginning, where something is put in, or behind.
    fn number(&mut self, shape: &mut Shape, conversation: usize, is_reply: bool) {
        let (client, server) = self.conversations[conversation].first;
        let random = &mut self.random;
        if random.one_in(16) {
            return;
        }
        let near =
            |random: &mut Random| random.of(&[0, 1, 1, 1, 1, 2, 27, 28, 29, 30, 52, 53, 54, 1000, 3 << 29]);
        let (from, to) = if is_reply { (server, client) } else { (client, server) };
        let sequence = match shape.flags & SYN != 0 && !random.one_in(16) {
            true => 0,
            false => near(random),
        };
        shape.numbers = (from.wrapping_add(sequence), to.wrapping_add(near(random)));
        if random.one_in(6) && shape.flags & SYN == 0 {
            shape.sack = (0..2 + 2 * random.below(2)).map(|_| to.wrapping_add(near(random))).collect();
        }
    }

    /// A router's word about a packet that was sent on, or about one that a VIP sent to its client past us.
    fn error(&mut self, config: &Config) -> Vec<u8> {
        let (v6, about) = if self.sent.is_empty() || self.random.one_in(3) {
            let beginner = self.beginner(config);
            self.last = None;
            let of = match self.conversations.len() {
                0 => beginner,
                n => self.conversations[self.random.below(n)].tuple,
            };
            let (source, destination) = (of.destination, of.source);
            let back = Tuple { source, destination, ports: (of.ports.1, of.ports.0), ..of };
            let shape = Shape { tags: Vec::new(), ..self.shape(&back) };
            (of.v6, write(&back, &shape).split_off(14))
        } else {
            let at = self.random.below(self.sent.len());
            self.sent[at].clone()
        };
        let random = &mut self.random;
        let header = if v6 { 40 } else { 20 };
        let quoted = match random.below(8) {
            0 => header + random.below(24),
            1 => random.below(header + 8),
            2 => header * 2 + 8,
            3 => header + 8,
            4 => header + 28 + random.below(8),
            _ => about.len(),
        };
        let (kinds, codes): (&[u8], &[u8]) = match v6 {
            true => (&[1, 1, 2, 2, 2, 3, 4, 128, 129, 0], &[0, 0, 1, 4]),
            false => (&[3, 3, 3, 3, 3, 11, 12, 4, 8, 0, 5], &[0, 1, 3, 4, 4, 4]),
        };
        let mut message = vec![random.of(kinds), random.of(codes), 0, 0];
        message.extend(random.of(&[0u32, 68, 552, 600, 1280, 1300, 1400, 1499, 70_000]).to_be_bytes());
        message.extend(&about[..quoted.min(about.len())]);
        let (mut source, mut destination) = ([0; 16], [0; 16]);
        let own = if v6 { 8..24 } else { 12..16 };
        destination[..own.len()].copy_from_slice(&about[own]);
        if random.one_in(12) {
            destination = config.destinations[random.below(config.destinations.len())].vip.v6();
        }
        let n = random.below(6) as u8;
        match (v6, random.one_in(2)) {
            (true, true) => source = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, n],
            (true, false) => source = [0x20, 1, 0xd, 0xb8, 0, 0xc, 0, 0, 0, 0, 0, 0, 0, 0, 0, n],
            (false, true) => source[..4].copy_from_slice(&[10, 0, 0, n]),
            (false, false) => source[..4].copy_from_slice(&[198, 51, 100, n]),
        }
        let tuple = Tuple { v6, udp: false, source, destination, ports: (0, 0) };
        let shape = self.shape(&tuple);
        write(&tuple, &Shape { message: Some(message), ..shape })
    }

    /// One of our addresses of a family, or a client's.
    fn anybody(&mut self, config: &Config, v6: bool) -> [u8; 16] {
        let of_family: Vec<_> = config.ports.iter().filter(|row| row.1 == v6).collect();
        match self.random.below(3) {
            0 => self.client(v6).0,
            _ => of_family[self.random.below(of_family.len())].0.v6(),
        }
    }

    /// Neighbour discovery (RFC 4861).
    fn discovery(&mut self, config: &Config) -> Vec<u8> {
        let (target, source) = (self.anybody(config, true), self.anybody(config, true));
        let random = &mut self.random;
        let mut message = vec![random.of(&[135, 135, 135, 136, 133, 134, 137]), 0, 0, 0, 0, 0, 0, 0];
        message.extend(target);
        message.truncate(if random.one_in(8) { 8 + random.below(16) } else { 24 });
        let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
        group[13..].copy_from_slice(&target[13..]);
        let all = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let destination = random.of(&[group, group, target, all]);
        let tuple = Tuple { v6: true, udp: false, source, destination, ports: (0, 0) };
        let shape = self.shape(&tuple);
        write(&tuple, &Shape { message: Some(message), ..shape })
    }

    /// ARP (RFC 826).
    fn arp(&mut self, config: &Config) -> Vec<u8> {
        let (sender, target) = (self.anybody(config, false), self.anybody(config, false));
        let random = &mut self.random;
        let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0xc, 1]].concat();
        for _ in 0..random.of(&[0, 0, 0, 1, 2, 3]) {
            frame.extend([0x81, 0x00, 0, 7]);
        }
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, random.of(&[1, 1, 1, 2, 9])]);
        frame.extend([2, 0, 0, 0, 0xc, 1]);
        frame.extend(&sender[..4]);
        frame.extend([0; 6]);
        frame.extend(&target[..4]);
        frame.truncate(if random.one_in(12) { frame.len() - random.below(12) } else { frame.len() });
        frame
    }

    /// Makes the first fragment of a packet, or another; the rest waits.
    fn cut(&mut self, tuple: &Tuple, shape: &mut Shape) {
        let random = &mut self.random;
        shape.payload = random.of(&[24, 64, 200, 1600, 2400]);
        shape.dont_fragment = random.one_in(8);
        let total = shape.payload + if tuple.udp { 8 } else { 20 };
        let size = match random.below(8) {
            0 => 8 + random.below(24),
            1 => total,
            2 => 16,
            _ => (40 + random.below(total)).next_multiple_of(8),
        };
        if tuple.v6 {
            let last = shape.extensions.len();
            let at = if random.one_in(8) { random.below(last + 1) } else { last };
            shape.extensions.insert(at, 44);
        }
        let mut start = 0;
        let mut pieces = Vec::new();
        while start < total {
            let mut cut = Cut { offset: start, len: size, more: start + size < total };
            match random.below(24) {
                0 => cut.offset = random.number() as usize & 0xfff8,
                1 => cut.offset = cut.offset.saturating_sub(8),
                2 => cut.more = !cut.more,
                _ => {}
            }
            let mut shape = Shape { cut: Some(cut), ..shape.clone() };
            if random.one_in(16) {
                shape.ttl = random.of(&[0, 1, 2, 64]);
            }
            pieces.push(shape);
            start += size;
        }
        let begins = if random.one_in(12) { random.below(pieces.len()) } else { 0 };
        *shape = pieces.remove(begins);
        self.pieces.extend(pieces.into_iter().take(4).map(|shape| (*tuple, shape)));
        if self.pieces.len() > PIECES {
            self.pieces.drain(..self.pieces.len() - PIECES);
        }
    }

    /// A frame as it is sent: bytes may have turned.
    fn finish(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        if self.random.one_in(24) {
            for _ in 0..=self.random.below(2) {
                self.turn_bytes(&mut frame);
            }
        }
        frame.truncate(3000);
        while frame.len() < 14 {
            frame.push(self.random.number() as u8);
        }
        frame
    }

    /// What became of the frame: a server that was sent something may answer.
    pub fn became(&mut self, config: &Config, fate: &Fate) {
        if let Fate::Forward(_, out) = fate
            && let wire::Frame::Ip(ip) = wire::read(out)
        {
            if self.sent.len() == SENT {
                self.sent.swap_remove(self.random.below(SENT));
            }
            self.sent.push((ip.v6, out[ip.l3..out.len().min(ip.l3 + KEPT)].to_vec()));
        }
        let (Some(at), Fate::Forward(Counted::In(destination), out)) = (self.last, fate) else { return };
        let target = &config.destinations[*destination as usize];
        let method = Destination::forwarding_of(Destination::flags_of(target.word));
        if !matches!(method, Forwarding::Nat | Forwarding::FullNat) {
            return;
        }
        if let wire::Frame::Ip(ip) = wire::read(out)
            && let wire::Inner::Transport(transport) = ip.inner
        {
            let (v6, source, destination) = (ip.v6, ip.source, ip.destination);
            let packet = wire::Packet { frame: out.clone(), ip, transport, part: wire::Part::Whole };
            if packet.is_whole() {
                let (from, to) = packet.ports();
                let reply = Tuple {
                    v6,
                    udp: transport.udp,
                    source: destination,
                    destination: source,
                    ports: (to, from),
                };
                self.conversations[at].reply = Some(reply);
            }
        }
    }

    /// A client of a family: few of them with few ports, so that they meet again.
    fn client(&mut self, v6: bool) -> ([u8; 16], u16) {
        let mut address = [0; 16];
        // The first two are behind a router, the others on an attached segment.
        let n = self.random.below(6) as u8;
        if v6 {
            address[..6].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, if n < 3 { 0xc } else { 0xe }]);
            address[15] = n;
        } else {
            address[..4].copy_from_slice(&[198, if n < 3 { 51 } else { 52 }, 100, n]);
        }
        let port = match self.random.below(8) {
            0 => self.random.number() as u16,
            1 | 2 => 40_000 + self.random.below(256) as u16,
            _ => 40_000 + self.random.below(12) as u16,
        };
        (address, port)
    }

    fn beginner(&mut self, config: &Config) -> Tuple {
        let row = match self.random.one_in(8) {
            true => self.random.below(config.ports.len()),
            false => self.favourites[self.random.below(self.favourites.len())],
        };
        let (vip, v6, udp, first, last, _) = config.ports[row];
        let (source, port) = self.client(v6);
        let to = if self.random.one_in(64) {
            self.random.number() as u16
        } else {
            first + self.random.below((last - first) as usize % 64 + 1) as u16
        };
        let tuple = Tuple { v6, udp, source, destination: vip.v6(), ports: (port, to) };
        let first = self.random.number();
        // Some wrap soon.
        let client = if self.random.one_in(4) { u32::MAX - (first as u32 & 31) } else { first as u32 };
        let conversation = Conversation { tuple, reply: None, first: (client, (first >> 32) as u32) };
        let known = self.conversations.iter().position(|c| c.tuple == tuple);
        let at = match known {
            Some(at) => at,
            None if self.conversations.len() < CONVERSATIONS => {
                self.conversations.push(conversation);
                self.conversations.len() - 1
            }
            None => {
                let at = self.random.below(CONVERSATIONS);
                self.conversations[at] = conversation;
                at
            }
        };
        self.last = Some(at);
        tuple
    }

    /// Neither from a client nor to us, or from a server to anybody.
    fn stranger(&mut self, config: &Config) -> Tuple {
        let mut tuple = self.beginner(config);
        self.last = None;
        let random = self.random.number().to_ne_bytes();
        tuple.destination[..4].copy_from_slice(&random[..4]);
        if self.random.one_in(2) {
            let target = config.destinations[self.random.below(config.destinations.len().min(24))];
            tuple.source = target.address.v6();
        }
        tuple
    }

    fn at_local_address(&mut self, config: &Config) -> Tuple {
        let mut tuple = self.beginner(config);
        self.last = None;
        let pool = config.pool[self.random.below(config.pool.len())];
        if pool.family == if tuple.v6 { 6 } else { 4 } {
            tuple.destination = pool.address.v6();
            tuple.ports.1 = pool.first_port.wrapping_add(self.random.below(pool.ports as usize + 2) as u16);
        }
        tuple
    }

    fn shape(&mut self, tuple: &Tuple) -> Shape {
        const FLAGS: [u8; 16] = [
            SYN,
            SYN,
            SYN,
            SYN,
            ACK,
            ACK,
            ACK,
            PSH | ACK,
            PSH | ACK,
            FIN | ACK,
            FIN | ACK,
            FIN,
            RST,
            RST | ACK,
            SYN | ACK,
            0,
        ];
        let random = &mut self.random;
        let flags = if random.one_in(48) { random.number() as u8 } else { random.of(&FLAGS) };
        let mut shape = Shape {
            flags,
            ttl: if random.one_in(32) { random.of(&[0, 1, 2, 255]) } else { 64 },
            class: if random.one_in(8) { random.number() as u8 } else { 0 },
            payload: match random.below(32) {
                // Few clients have data in a SYN (RFC 7413).
                1.. if flags & SYN != 0 && !random.one_in(4) => 0,
                0 => 1380 + random.below(140),
                1 => 1380 + random.below(1200),
                _ => random.below(40),
            },
            tags: Vec::new(),
            options: 0,
            extensions: Vec::new(),
            dont_fragment: !random.one_in(3),
            mss: (flags & SYN != 0 && !random.one_in(4)).then(|| random.of(&[1460, 1440, 1220, 536, 8960])),
            nops: if random.one_in(4) { random.below(4) } else { 0 },
            no_checksum: random.one_in(8),
            protocol: None,
            sack: Vec::new(),
            stamps: random.one_in(8).then(|| (random.number() as u32, random.number() as u32)),
            numbers: (random.number() as u32, random.number() as u32),
            seed: random.number(),
            cut: None,
            message: None,
        };
        if random.one_in(16) {
            let tags = if random.one_in(8) { 3 } else { 1 + random.below(2) };
            shape.tags = (0..tags).map(|_| random.number() as u16).collect();
        }
        if !tuple.v6 && random.one_in(12) {
            shape.options = 1 + random.below(10);
        }
        if tuple.v6 && random.one_in(12) {
            let count = if random.one_in(4) { 1 + random.below(7) } else { 1 + random.below(3) };
            shape.extensions = (0..count).map(|_| random.of(&[0, 43, 60, 51, 60])).collect();
        }
        if random.one_in(128) {
            shape.protocol = Some(random.of(&[47, 4, 41, 50, 2]));
        }
        shape
    }

    fn turn_bytes(&mut self, frame: &mut Vec<u8>) {
        let random = &mut self.random;
        let len = frame.len();
        match random.below(9) {
            0..=2 => frame[random.below(len.min(90))] ^= 1 << random.below(8),
            3 => frame[random.below(len.min(90))] = random.of(&[0, 1, 0x7f, 0x80, 0xff]),
            4 => frame.truncate(14 + random.below(len - 13)),
            5 => frame.truncate(14 + random.below(len.min(94) - 13)),
            // Padding, as Ethernet's own.
            6 => frame.extend(std::iter::repeat_n(0, random.below(40))),
            // Lengths that lie.
            7 => {
                let at = random.of(&[14, 16, 17, 18, 19, 38, 39, 46, 58, 59, 66]);
                if at < len {
                    frame[at] = random.number() as u8;
                }
            }
            _ => frame[random.below(len)] = random.number() as u8,
        }
    }
}
