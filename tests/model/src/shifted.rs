//! Flows whose sequence numbers are shifted: docs/datapath.md, "Shifted sequence numbers" and "PROXY protocol".

use crate::{
    Ends, Model, answer, drops,
    rewrite::Edit,
    table::{Place, cost},
    wire::{Packet, Part},
};
use lb_common::{
    connection::{FLAG_EXTENSION, Kind, Value},
    extension::{WAYS, duty},
    service::features,
    state::{ACK, RST, SYN, State},
    verdict::Reason,
};

/// How the numbers of one direction are shifted: those up to the position by one number, those beyond by another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    pub position: u32,
    pub before: i64,
    pub after: i64,
}

/// A record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extension {
    pub owner: u64,
    pub word: Value,
    pub client: Moved,
    pub server: Moved,
    /// The client's first number.
    pub first: u32,
    pub duties: u64,
}

impl Extension {
    /// Whether a header goes before what begins at this number of the client's: until the server has it.
    pub(crate) fn rides(&self, sequence: u32) -> bool {
        let is_open = self.client.before != self.client.after;
        self.duties & duty::PROXY != 0 && is_open && sequence == self.first.wrapping_add(1)
    }
}

impl Default for Extension {
    fn default() -> Self {
        let none = Moved::default();
        Self { owner: 0, word: Value::EMPTY, client: none, server: none, first: 0, duties: 0 }
    }
}

/// Whether a number is behind another (RFC 9293, section 3.4). Of two that are half the circle apart each is.
fn is_behind(number: u32, other: u32) -> bool {
    (1..=1 << 31).contains(&number.wrapping_sub(other))
}

fn moved(number: u32, by: i64) -> u32 {
    number.wrapping_add(by as u32)
}

impl Moved {
    /// A number as the other end counts.
    pub fn forth(self, number: u32) -> u32 {
        moved(number, if is_behind(number, self.position) { self.after } else { self.before })
    }

    /// A number that the other end names. What was put in is nobody's: the position.
    pub fn back(self, number: u32) -> u32 {
        let (early, late) = (moved(number, -self.before), moved(number, -self.after));
        if !is_behind(early, self.position) {
            early
        } else if is_behind(late, self.position) {
            late
        } else {
            self.position
        }
    }

    /// The other end has acknowledged a number: beyond what was put in, everything is shifted alike.
    fn acknowledged(self, number: u32) -> Self {
        let has_all = !is_behind(moved(self.position, self.after), number);
        if has_all { Self { before: self.after, ..self } } else { self }
    }
}

/// The PROXY header's length.
fn header_len(v6: bool) -> usize {
    if v6 { 52 } else { 28 }
}

/// haproxy's proxy-protocol.txt, section 2.2: who the client is, in front of its first byte.
fn header(packet: &Packet) -> Vec<u8> {
    let v6 = packet.ip.v6;
    let of = if v6 { 16 } else { 4 };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x21, if v6 { 0x21 } else { 0x11 }]);
    header.extend((header_len(v6) as u16 - 16).to_be_bytes());
    header.extend([&packet.ip.source[..of], &packet.ip.destination[..of]].concat());
    header.extend(&packet.segment()[..4]);
    header
}

pub(crate) fn is_extended(value: Value) -> bool {
    value.flags() & FLAG_EXTENSION != 0
}

fn number(packet: &Packet, at: usize) -> u32 {
    let bytes = &packet.segment()[at..at + 4];
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl Model {
    /// The sets of a flow's record: (first of each).
    fn sets(&self, place: &Place) -> [usize; 2] {
        let (secrets, shift) = (&self.config.secrets, self.config.sizes.extension_shift);
        [place.first, secrets.second(place.identity)]
            .map(|product| (product >> shift) as usize * WAYS as usize)
    }

    pub(crate) fn extension_of(&self, place: &Place) -> Option<usize> {
        let all = self.sets(place).into_iter().flat_map(|first| first..first + WAYS as usize);
        all.into_iter().find(|at| {
            let record = &self.extensions[*at];
            let live = !record.word.is_empty() && !record.word.is_expired(self.now);
            record.owner == place.identity && live && record.word.has_tag(place.first)
        })
    }

    /// A new flow's record, where its service asks for one: the flags of its words.
    pub(crate) fn extend(
        &mut self,
        packet: &Packet,
        place: &Place,
        service: usize,
        (state, deadline): (State, u16),
    ) -> Ends<u64> {
        if packet.flags() & SYN == 0 || self.record(service).features & features::PROXY == 0 {
            return Ok(0);
        }
        let Some(at) = self.room_for_extension(place) else { return drops(Reason::NoExtension) };
        let first = number(packet, 4);
        let added = header_len(packet.ip.v6) as i64;
        self.extensions[at] = Extension {
            owner: place.identity,
            word: Value::flow(Kind::Flow, 0, place.first, state, deadline),
            client: Moved { position: first.wrapping_add(1), before: 0, after: added },
            server: Moved::default(),
            first,
            duties: duty::PROXY,
        };
        self.shifted = true;
        Ok(FLAG_EXTENSION)
    }

    /// Its own, or what is least worth keeping in its first set, unless that lives and the second has a lesser one.
    fn room_for_extension(&self, place: &Place) -> Option<usize> {
        if let Some(own) = self.extension_of(place) {
            return Some(own);
        }
        let cheapest = |first: usize| {
            let slots = first..first + WAYS as usize;
            slots.filter_map(|at| Some((cost(self.extensions[at].word, self.now)?, at))).min()
        };
        let [here, there] = self.sets(place).map(cheapest);
        let found = match (here, there) {
            (Some(here), Some(there)) if here.0.0 > 1 && there.0 < here.0 => there,
            (Some(here), _) => here,
            (None, there) => there?,
        };
        Some(found.1)
    }

    /// A packet of an extended flow is looked at closer than others.
    pub(crate) fn is_sound(&self, packet: &Packet) -> Ends<()> {
        if packet.is_honest() { Ok(()) } else { drops(Reason::BadTransport) }
    }

    /// Nobody can say any more how the numbers are shifted.
    fn lost<T>(&self, packet: &Packet) -> Ends<T> {
        // A RST is never answered.
        if packet.flags() & RST != 0 {
            return drops(Reason::UnknownFlowDropped);
        }
        Err(answer::reset(packet, Reason::ExtensionLost).into())
    }

    /// A client's packet that fits its way, as the server counts, with the header where it rides. With the record.
    pub(crate) fn as_the_server_counts(
        &mut self,
        packet: &Packet,
        place: &Place,
        (mtu, vip): (usize, [u8; 16]),
    ) -> Ends<(Packet, usize)> {
        let Some(at) = self.extension_of(place) else { return self.lost(packet) };
        let record = self.extensions[at];
        let sequence = number(packet, 4);
        let rides = record.rides(sequence) && packet.flags() & (SYN | RST) == 0;
        let more = if rides { header_len(packet.ip.v6) } else { 0 };
        answer::fits(packet, mtu.saturating_sub(more), &vip)?;
        let mut out = Edit::new(packet).transport(4, &record.client.forth(sequence).to_be_bytes());
        if packet.flags() & ACK != 0 {
            let acknowledged = number(packet, 8);
            out = out.transport(8, &record.server.back(acknowledged).to_be_bytes());
        }
        let out = out.done();
        if !rides {
            return Ok((out, at));
        }
        // The lengths of a packet in fragments are those of all of them.
        let headers = packet.transport.l4 + (packet.segment()[12] >> 4) as usize * 4;
        if packet.part != Part::Whole || headers > 256 {
            return drops(Reason::NoRoomForHeader);
        }
        self.event(Reason::HeaderSent);
        Ok((with(&out, headers, &header(packet)), at))
    }

    /// A server's packet as the client counts. With the record.
    pub(crate) fn as_the_client_counts(&mut self, packet: &Packet, place: &Place) -> Ends<(Packet, usize)> {
        let Some(at) = self.extension_of(place) else { return self.lost(packet) };
        let record = self.extensions[at];
        let (flags, acknowledged) = (packet.flags(), number(packet, 8));
        let mut out = Edit::new(packet).transport(4, &record.server.forth(number(packet, 4)).to_be_bytes());
        if flags & ACK != 0 {
            out = out.transport(8, &record.client.back(acknowledged).to_be_bytes());
            self.extensions[at].client = record.client.acknowledged(acknowledged);
        }
        let less =
            if flags & SYN != 0 && record.duties & duty::PROXY != 0 { header_len(packet.ip.v6) } else { 0 };
        for (at, bytes) in self.shifted_options(packet, record.client, less as u16) {
            out = out.transport(at, &bytes);
        }
        self.shifted = true;
        Ok((out.done(), at))
    }

    /// The options that change, by their place behind the segment's beginning: edges of selective acknowledgements, and
    /// the MSS, by what must be left free.
    fn shifted_options(&mut self, packet: &Packet, edges: Moved, less: u16) -> Vec<(usize, Vec<u8>)> {
        let (segment, mut at, mut all) = (packet.segment(), 20, Vec::new());
        let end = (segment[12] >> 4) as usize * 4;
        while at < end && segment[at] != 0 {
            if segment[at] == 1 {
                at += 1;
                continue;
            }
            let len = segment.get(at + 1).copied().unwrap_or(0) as usize;
            if len < 2 || at + len > end {
                break;
            }
            match (segment[at], len) {
                (5, _) => {
                    let whole = (len - 2) / 4;
                    for edge in 0..whole {
                        let place = at + 2 + edge * 4;
                        all.push((place, edges.back(number(packet, place)).to_be_bytes().to_vec()));
                    }
                    // What is behind the last whole edge is read as options, of a length that no stack writes.
                    at += 2 + whole * 4;
                    continue;
                }
                (2, 4) => {
                    let mss = u16::from_be_bytes([segment[at + 2], segment[at + 3]]);
                    if less != 0 && mss > less {
                        self.event(Reason::MssClamped);
                        all.push((at + 2, (mss - less).to_be_bytes().to_vec()));
                    }
                }
                _ => {}
            }
            at += len;
        }
        all
    }

    /// What an error about a packet of an extended flow quotes, as who sent it counts: bytes by their place in the frame.
    /// `quoted` is where the quoted segment begins and the error ends, `mtu_at` where an MTU stands that a router said.
    pub(crate) fn renumbered(
        &self,
        packet: &Packet,
        (l4, end): (usize, usize),
        place: &Place,
        by_server: bool,
        mtu_at: Option<usize>,
    ) -> Vec<(usize, Vec<u8>)> {
        let Some(at) = self.extension_of(place) else { return Vec::new() };
        let record = self.extensions[at];
        let frame = &packet.frame;
        let word = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let (sender, other) =
            if by_server { (record.server, record.client) } else { (record.client, record.server) };
        let sequence = sender.back(word(l4 + 4));
        let mut changes = vec![(l4 + 4, sequence.to_be_bytes().to_vec())];
        if l4 + 14 <= end && frame[l4 + 13] & ACK != 0 {
            changes.push((l4 + 8, other.forth(word(l4 + 8)).to_be_bytes().to_vec()));
        }
        // The header rides again when the client sends that segment anew.
        if let Some(at) = mtu_at
            && record.rides(sequence)
            && !by_server
        {
            let (mtu, less) =
                (u16::from_be_bytes([frame[at], frame[at + 1]]), header_len(packet.ip.v6) as u16);
            if mtu > 2 * less {
                changes.push((at, (mtu - less).to_be_bytes().to_vec()));
            }
        }
        changes
    }

    /// A record lives as long as its flow.
    pub(crate) fn follow(&mut self, at: usize, flow: Value) {
        if !flow.is_empty() {
            let word = self.extensions[at].word;
            self.extensions[at].word = word.with(flow.state(), flow.deadline());
            self.shifted = true;
        }
    }
}

/// A packet with bytes more at an offset of its frame, behind its headers: lengths and checksums follow.
fn with(packet: &Packet, at: usize, more: &[u8]) -> Packet {
    let mut edit = Edit::new(packet);
    edit.put_in(at, more);
    edit.done()
}
