//! The client's address as a TCP option: on each of its segments after the SYN, until the server has shown that its
//! connection is established; then the flow's packets go the straight line.

use crate::{
    extended::{numbered, records, write_record},
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT},
    frame::{ACK, FIN, Packet, RST, SYN, Transport},
    world::{Counted, client, same_frame, vip},
};
use lb_common::{
    connection::{FLAG_EXTENSION, Value},
    extension::duty,
    lease::Lease,
    state::State,
    verdict::Reason,
};
use std::{mem::offset_of, net::IpAddr, sync::atomic::Ordering::SeqCst};

const FIRST: u32 = u32::MAX - 1;
const SERVER: u32 = 0x5555_0000;
const STAMPS: [u8; 12] = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];

fn service(v6: bool) -> Flow {
    Flow::with(Method::FullNat, v6, false, |spec| spec.rules.toa = true)
}

/// As DPVS lays it out (`toa.h` of its kernel module): kind, length, port, address.
fn option(client: IpAddr, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    match client {
        IpAddr::V4(v4) => [vec![254, 8, high, low], v4.octets().to_vec()].concat(),
        IpAddr::V6(v6) => [vec![254, 20, high, low], v6.octets().to_vec()].concat(),
    }
}

fn mss(n: u16) -> Vec<u8> {
    [vec![2, 4], n.to_be_bytes().to_vec()].concat()
}

/// SYN and its answer.
fn begin(flow: &mut Flow) {
    let syn = numbered(&flow.first(), FIRST, 0, &mss(1460));
    let seen = flow.world.send(&syn.bytes());
    assert_eq!(seen.counted, Counted::In(flow.destination), "{}", flow.name());
    same_frame("the SYN goes as it is", &seen.frame, &flow.towards_server(&syn));
    answer(flow);
}

fn answer(flow: &mut Flow) {
    let reply = numbered(&flow.reply(SYN | ACK), SERVER, FIRST.wrapping_add(1), &mss(1460));
    let out = numbered(&reply, SERVER, FIRST.wrapping_add(1), &mss(if flow.v6 { 1440 } else { 1452 }));
    let expected = flow.towards_client(&out);
    let seen = flow.world.forwards("SYN-ACK", &reply, Counted::Out(flow.destination), &expected);
    assert_eq!(seen.events, [Reason::MssClamped], "the client's segments leave room for the option");
}

/// A client's packet that many bytes behind its SYN.
fn packet(v6: bool, flags: u8, at: u32, options: &[u8], payload: &[u8]) -> Packet {
    let packet = Packet::tcp((client(v6, 7), CLIENT_PORT), (vip(v6), VIP_PORT), flags)
        .with(|p| p.payload = payload.to_vec());
    let acknowledged = if flags & ACK != 0 { SERVER + 1 } else { 0 };
    numbered(&packet, FIRST.wrapping_add(1).wrapping_add(at), acknowledged, options)
}

/// The same with the option in front of its others.
fn with_option(packet: &Packet) -> Packet {
    packet.clone().with(|p| {
        let from = p.source;
        if let Transport::Tcp { source, options, .. } = &mut p.transport {
            *options = [option(from, *source), options.clone()].concat();
        }
    })
}

fn goes_as(flow: &mut Flow, packet: &Packet, out: &Packet, events: &[Reason]) {
    let case = flow.name();
    let seen = flow.world.send(&packet.bytes());
    assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
    same_frame(&case, &seen.frame, &flow.towards_server(out));
    assert_eq!(seen.events, events, "{case}");
}

fn rides(flow: &mut Flow, packet: &Packet) {
    goes_as(flow, packet, &with_option(packet), &[Reason::ToaSent]);
}

fn goes_without(flow: &mut Flow, packet: &Packet, events: &[Reason]) {
    goes_as(flow, packet, packet, events);
}

/// The server's segment that acknowledges so many of the client's bytes.
fn says(flow: &mut Flow, flags: u8, acknowledged: u32, payload: &[u8]) {
    let reply = flow.reply(flags).with(|p| p.payload = payload.to_vec());
    let reply = numbered(&reply, SERVER + 1, FIRST.wrapping_add(1).wrapping_add(acknowledged), &[]);
    let expected = flow.towards_client(&reply);
    let seen = flow.world.forwards("the server", &reply, Counted::Out(flow.destination), &expected);
    assert_eq!(seen.events, []);
}

/// Whether the flow's words say that it has a record: entry and lease.
fn marks(flow: &Flow) -> Vec<bool> {
    let leases = flow.world.views();
    let words = (0..leases.leases.len())
        .map(|index| Value(leases.leases.word(index, offset_of!(Lease, word)).load(SeqCst)))
        .filter(|word| !word.is_empty());
    let mut entries = Vec::new();
    flow.world.rewrite_entries(|word| {
        entries.push(word);
        word
    });
    entries.into_iter().chain(words).map(|word| word.flags() & FLAG_EXTENSION != 0).collect()
}

#[test]
fn the_option_rides_until_the_server_is_established_and_then_the_flow_goes_the_straight_line() {
    for v6 in [false, true] {
        // What proves it: an answer to data, data of its own, its end.
        for (flags, acknowledged, payload) in [(ACK, 3, &b""[..]), (ACK, 0, b"hello"), (ACK | FIN, 0, b"")] {
            let mut flow = service(v6);
            begin(&mut flow);
            assert_eq!(marks(&flow), [true, true]);
            rides(&mut flow, &packet(v6, ACK, 0, &STAMPS, b""));
            rides(&mut flow, &packet(v6, ACK, 0, &[], b"odd"));
            rides(&mut flow, &packet(v6, ACK | FIN, 3, &STAMPS, b"all of it"));
            rides(&mut flow, &packet(v6, ACK, 0, &STAMPS, b"odd"));
            // It may say so much before it is established (RFC 5961, section 4).
            says(&mut flow, ACK, 0, b"");
            answer(&mut flow);
            rides(&mut flow, &packet(v6, ACK, 0, &STAMPS, b""));
            says(&mut flow, flags, acknowledged, payload);
            assert_eq!(marks(&flow), [false, false], "{}", flow.name());
            goes_without(&mut flow, &packet(v6, ACK, 3, &STAMPS, b"more"), &[]);
            says(&mut flow, ACK, 7, b"");
            goes_without(&mut flow, &packet(v6, ACK, 7, &[], b""), &[]);
            // The record is free in a moment, whatever the flow lives on.
            let clock = flow.world.plane.clock();
            let record = Value(records(&flow)[0].1.word);
            assert!(record.is_expired(clock.tick().unwrap().wrapping_add(6)), "{}", flow.name());
        }
    }
}

#[test]
fn it_rides_on_frames_with_tags_options_and_padding() {
    for v6 in [false, true] {
        let mut flow = service(v6);
        begin(&mut flow);
        let plain = packet(v6, ACK, 0, &[], b"hello");
        rides(&mut flow, &plain.clone().tagged(&[(0x8100, 7)]));
        rides(&mut flow, &plain.clone().tagged(&[(0x88a8, 7), (0x8100, 8)]));
        rides(&mut flow, &plain.clone().with(|p| p.padding = 7));
        // All the room that there is, and an end of options behind which nobody reads.
        let most = if v6 { 20 } else { 32 };
        let mut ended = STAMPS.to_vec();
        ended.resize(most, 0);
        rides(&mut flow, &packet(v6, ACK, 0, &ended, b"hello"));
        if v6 {
            rides(&mut flow, &plain.with(|p| p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])]));
        } else {
            rides(&mut flow, &plain.with(|p| p.options = vec![1; 40]));
        }
    }
}

#[test]
fn a_segment_without_room_goes_without_the_option() {
    for v6 in [false, true] {
        let mut flow = service(v6);
        begin(&mut flow);
        for options in [if v6 { 24 } else { 36 }, 40] {
            let full = packet(v6, ACK, 0, &vec![1; options], b"hello");
            goes_without(&mut flow, &full, &[Reason::ToaUnsent]);
        }
        let (headers, len) = if v6 { (60, 20) } else { (40, 8) };
        let most = 1500 - headers - len;
        rides(&mut flow, &packet(v6, ACK, 0, &[], &vec![7; most]));
        goes_without(&mut flow, &packet(v6, ACK, 0, &[], &vec![7; most + 1]), &[Reason::ToaUnsent]);
        goes_without(&mut flow, &packet(v6, ACK, 0, &[], &vec![7; most + len]), &[Reason::ToaUnsent]);
        let larger = packet(v6, ACK, 0, &[], &vec![7; most + len + 1]);
        flow.world.ends(&flow.name(), &larger, Reason::PacketTooBig);
        // Nothing of that was told: the next one tells it.
        rides(&mut flow, &packet(v6, ACK, 0, &[], b"hello"));
        if !v6 {
            let first = packet(v6, ACK, 0, &[], &[1; 44]).with(|p| p.fragment = 0x2000);
            goes_without(&mut flow, &first, &[Reason::ToaUnsent]);
        }
    }
}

#[test]
fn syn_and_reset_go_as_they_are_and_a_flow_that_begins_anew_tells_again() {
    for v6 in [false, true] {
        let mut flow = service(v6);
        begin(&mut flow);
        begin(&mut flow);
        assert_eq!(records(&flow).len(), 1, "{}: sent again", flow.name());
        goes_without(&mut flow, &packet(v6, RST, 0, &[], b""), &[]);
        begin(&mut flow);
        rides(&mut flow, &packet(v6, ACK, 0, &[], b""));
        says(&mut flow, ACK | FIN, 0, b"");
        goes_without(&mut flow, &packet(v6, ACK | FIN, 0, &[], b""), &[]);
        begin(&mut flow);
        assert_eq!((records(&flow).len(), marks(&flow)), (1, vec![true, true]), "{}", flow.name());
        rides(&mut flow, &packet(v6, ACK, 0, &[], b""));
    }
}

#[test]
fn flows_side_by_side_tell_each_its_own_client() {
    for v6 in [false, true] {
        let mut flow = service(v6);
        let all: Vec<_> = (0..20u16).map(|n| (client(v6, 7 + n as u8 % 3), 20_000 + n)).collect();
        let from = |(address, port): (IpAddr, u16), flags| {
            let packet = Packet::tcp((address, port), (vip(v6), VIP_PORT), flags);
            numbered(&packet, FIRST.wrapping_add((flags & ACK != 0) as u32), SERVER + 1, &STAMPS)
        };
        for who in &all {
            assert_eq!(flow.world.send(&from(*who, SYN).bytes()).counted, Counted::In(flow.destination));
        }
        for who in all.iter().rev() {
            let seen = flow.world.send(&from(*who, ACK).bytes());
            assert_eq!(seen.events, [Reason::ToaSent]);
            let options = 14 + if v6 { 60 } else { 40 };
            let wanted = option(who.0, who.1);
            assert_eq!(seen.frame[options..options + wanted.len()], wanted, "{who:?}");
        }
    }
}

#[test]
fn without_room_for_a_record_a_flow_goes_on_without() {
    for v6 in [false, true] {
        let mut flow = service(v6);
        let mut untold = 0;
        // Sixty-four records; flows that are established and have told nothing yet keep theirs.
        for port in 0..200 {
            let from = |flags| flow.packet_from(client(v6, 7), 20_000 + port, flags);
            let (syn, ack) = (
                numbered(&from(SYN), FIRST, 0, &[]),
                numbered(&from(ACK), FIRST.wrapping_add(1), SERVER + 1, &[]),
            );
            let begun = flow.world.send(&syn.bytes());
            assert_eq!(begun.counted, Counted::In(flow.destination), "{} {port}", flow.name());
            let told = !begun.events.contains(&Reason::ToaUnsent);
            untold += usize::from(!told);
            flow.world.rewrite_entries(|e| e.with(State::Established as u8, e.deadline()));
            let seen = flow.world.send(&ack.bytes());
            assert_eq!(seen.counted, Counted::In(flow.destination));
            assert_eq!(seen.events, if told { vec![Reason::ToaSent] } else { vec![] });
        }
        assert_eq!((untold, records(&flow).len()), (136, 64), "{}", flow.name());
    }
}

#[test]
fn a_record_that_has_more_to_do_stays() {
    for v6 in [false, true] {
        let mut flow = service(v6);
        begin(&mut flow);
        let (index, mut record) = records(&flow)[0];
        record.duties |= duty::COOKIE;
        write_record(&flow, index, record);
        rides(&mut flow, &packet(v6, ACK, 0, &[], b""));
        says(&mut flow, ACK, 0, b"hello");
        assert_eq!((records(&flow)[0].1.duties, marks(&flow)), (duty::COOKIE, vec![true, true]));
        goes_without(&mut flow, &packet(v6, ACK, 0, &[], b"hello"), &[]);
    }
}
