//! The PROXY header in front of a client's first bytes: on the ACK that completes the handshake and on whatever else
//! begins there, until the server has it.

use crate::{
    extended::{TRANSLATING, numbered, records},
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT},
    frame::{ACK, FIN, Packet, RST, SYN},
    world::{Counted, client, same_frame, vip},
};
use lb_common::{extension::Shift, verdict::Reason};
use std::net::IpAddr;

/// The client's first sequence number, across whose wrap the header lies, and the server's.
pub const FIRST: u32 = u32::MAX - 9;
pub const SERVER: u32 = 0x5555_0000;

/// A flow of a service with the header.
pub fn service(method: Method, v6: bool) -> Flow {
    Flow::with(method, v6, false, |spec| spec.rules.proxy = true)
}

/// HAProxy's proxy-protocol.txt, section 2.2, spelled out.
pub fn header(v6: bool) -> Vec<u8> {
    let mut bytes = vec![0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21];
    bytes.extend(if v6 { [0x21, 0, 36] } else { [0x11, 0, 12] });
    for address in [client(v6, 7), vip(v6)] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend(CLIENT_PORT.to_be_bytes());
    bytes.extend(VIP_PORT.to_be_bytes());
    bytes
}

/// Bytes of the header.
pub fn len(v6: bool) -> u32 {
    if v6 { 52 } else { 28 }
}

fn mss(n: u16) -> Vec<u8> {
    let mut options = vec![1, 1, 1, 2, 4];
    options.extend(n.to_be_bytes());
    options.extend([4, 2, 1, 1, 1]);
    options
}

/// SYN and its answer.
pub fn begin(flow: &mut Flow) {
    let syn = numbered(&flow.first(), FIRST, 0, &mss(1400));
    let seen = flow.world.send(&syn.bytes());
    assert_eq!(seen.counted, Counted::In(flow.destination));
    same_frame(&flow.name(), &seen.frame, &flow.towards_server(&syn));
    let reply = numbered(&flow.reply(SYN | ACK), SERVER, FIRST.wrapping_add(1), &mss(1400));
    let out = numbered(&reply, SERVER, FIRST.wrapping_add(1), &mss(1400 - len(flow.v6) as u16));
    let expected = flow.towards_client(&out);
    let seen = flow.world.forwards("SYN-ACK", &reply, Counted::Out(flow.destination), &expected);
    assert_eq!(seen.events, [Reason::MssClamped], "the client's segments leave room for the header");
}

/// A client's packet that many bytes behind its SYN.
pub fn packet(v6: bool, flags: u8, at: u32, payload: &[u8]) -> Packet {
    let packet = Packet::tcp((client(v6, 7), CLIENT_PORT), (vip(v6), VIP_PORT), flags)
        .with(|p| p.payload = payload.to_vec());
    let acknowledged = if flags & ACK != 0 { SERVER + 1 } else { 0 };
    numbered(&packet, FIRST.wrapping_add(1).wrapping_add(at), acknowledged, &[])
}

/// It goes with the header, at the number that it came with.
pub fn rides(flow: &mut Flow, packet: &Packet) {
    let out = packet.clone().with(|p| p.payload = [header(p.is_v6()), p.payload.clone()].concat());
    let seen = flow.world.send(&packet.bytes());
    assert_eq!(seen.counted, Counted::In(flow.destination), "{}", flow.name());
    same_frame(&flow.name(), &seen.frame, &flow.towards_server(&out));
    assert_eq!(seen.events, [Reason::HeaderSent], "{}", flow.name());
}

/// It goes without the header, behind it.
fn behind(flow: &mut Flow, packet: &Packet, at: u32) {
    let moved = FIRST.wrapping_add(1).wrapping_add(at).wrapping_add(len(flow.v6));
    let out = numbered(packet, moved, SERVER + 1, &[]);
    let seen = flow.world.send(&packet.bytes());
    assert_eq!(seen.counted, Counted::In(flow.destination), "{}", flow.name());
    same_frame(&flow.name(), &seen.frame, &flow.towards_server(&out));
    assert_eq!(seen.events, [], "{}", flow.name());
}

/// The server acknowledges so many bytes of header and data; the client sees so many of its own.
pub fn acknowledges(flow: &mut Flow, bytes: u32, seen: u32) {
    let reply = numbered(&flow.reply(ACK), SERVER + 1, FIRST.wrapping_add(1).wrapping_add(bytes), &[]);
    let out = numbered(&reply, SERVER + 1, FIRST.wrapping_add(1).wrapping_add(seen), &[]);
    let expected = flow.towards_client(&out);
    flow.world.forwards("an acknowledgement", &reply, Counted::Out(flow.destination), &expected);
}

#[test]
fn the_header_rides_on_the_handshakes_ack_and_on_all_that_begins_there_until_the_server_has_it() {
    for (method, v6) in TRANSLATING {
        let mut flow = service(method, v6);
        begin(&mut flow);
        rides(&mut flow, &packet(v6, ACK, 0, b""));
        rides(&mut flow, &packet(v6, ACK, 0, b"odd"));
        rides(&mut flow, &packet(v6, ACK | FIN, 0, b"all of it"));
        behind(&mut flow, &packet(v6, ACK, 3, b"more"), 3);
        // Half of it: the rest is still to come.
        acknowledges(&mut flow, 1, 0);
        acknowledges(&mut flow, len(v6) - 1, 0);
        rides(&mut flow, &packet(v6, ACK, 0, b"odd"));
        acknowledges(&mut flow, len(v6), 0);
        behind(&mut flow, &packet(v6, ACK, 0, b"odd"), 0);
        behind(&mut flow, &packet(v6, ACK, 0, b""), 0);
        acknowledges(&mut flow, len(v6) + 3, 3);
        behind(&mut flow, &packet(v6, ACK, 3, b""), 3);
        // A question whether it is alive, one byte back.
        behind(&mut flow, &packet(v6, ACK, 0u32.wrapping_sub(1), b""), 0u32.wrapping_sub(1));
    }
}

#[test]
fn it_rides_on_frames_with_tags_options_and_padding() {
    for (method, v6) in TRANSLATING {
        let mut flow = service(method, v6);
        begin(&mut flow);
        let plain = packet(v6, ACK, 0, b"hello");
        rides(&mut flow, &plain.clone().tagged(&[(0x8100, 7)]));
        rides(&mut flow, &plain.clone().tagged(&[(0x88a8, 7), (0x8100, 8)]));
        rides(&mut flow, &plain.clone().with(|p| p.padding = 7));
        let options = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        rides(&mut flow, &numbered(&plain, FIRST.wrapping_add(1), SERVER + 1, &options));
        rides(&mut flow, &numbered(&plain, FIRST.wrapping_add(1), SERVER + 1, &[1; 40]));
        if v6 {
            rides(&mut flow, &plain.with(|p| p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])]));
        } else {
            rides(&mut flow, &plain.with(|p| p.options = vec![1; 40]));
        }
    }
}

#[test]
fn a_reset_carries_no_header_and_a_syn_with_data_is_refused() {
    for (method, v6) in TRANSLATING {
        let mut flow = service(method, v6);
        let fast = numbered(&flow.first(), FIRST, 0, &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]).payload(5);
        flow.world.ends(&flow.name(), &fast, Reason::FastOpenRefused);
        assert_eq!(flow.world.connections().len(), 0, "{}", flow.name());
        begin(&mut flow);
        flow.world.ends(&flow.name(), &fast, Reason::FastOpenRefused);
        let reset = packet(v6, RST, 0, b"");
        let seen = flow.world.send(&reset.bytes());
        assert_eq!(seen.counted, Counted::In(flow.destination));
        same_frame(&flow.name(), &seen.frame, &flow.towards_server(&reset));
    }
}

#[test]
fn a_segment_that_has_no_room_for_the_header_is_answered_with_the_size_that_has() {
    for (method, v6) in TRANSLATING {
        let mut flow = service(method, v6);
        begin(&mut flow);
        let headers: u32 = if v6 { 60 } else { 40 };
        let most = 1500 - headers - len(v6);
        rides(&mut flow, &packet(v6, ACK, 0, &vec![7; most as usize]));
        let larger = packet(v6, ACK, 0, &vec![7; most as usize + 1]);
        let seen = flow.world.ends(&flow.name(), &larger, Reason::PacketTooBig);
        let said = if v6 {
            u32::from_be_bytes(seen.frame[14 + 44..14 + 48].try_into().unwrap())
        } else {
            u16::from_be_bytes(seen.frame[14 + 26..14 + 28].try_into().unwrap()).into()
        };
        assert_eq!(said, 1500 - len(v6), "{}", flow.name());
        if !v6 {
            flow.world.ends(&flow.name(), &larger.clone().with(|p| p.fragment = 0), Reason::TooBig);
        }
        // Once the server has it, whole segments go.
        acknowledges(&mut flow, len(v6), 0);
        behind(&mut flow, &larger, 0);
    }
}

#[test]
fn a_fragment_cannot_take_the_header() {
    for method in [Method::Nat, Method::FullNat] {
        let mut flow = service(method, false);
        begin(&mut flow);
        let first = packet(false, ACK, 0, &[1; 44]).with(|p| p.fragment = 0x2000);
        flow.world.ends(&flow.name(), &first, Reason::NoRoomForHeader);
    }
}

#[test]
fn a_syn_sent_again_changes_nothing_and_one_that_begins_anew_gets_a_header_of_its_own() {
    for (method, v6) in TRANSLATING {
        let mut flow = service(method, v6);
        begin(&mut flow);
        begin(&mut flow);
        assert_eq!(records(&flow).len(), 1, "{}", flow.name());
        rides(&mut flow, &packet(v6, ACK, 0, b"x"));
        acknowledges(&mut flow, len(v6) + 1, 1);
        flow.world.send(
            &numbered(&flow.reply(FIN | ACK), SERVER + 1, FIRST.wrapping_add(2).wrapping_add(len(v6)), &[])
                .bytes(),
        );
        flow.world.send(&packet(v6, FIN | ACK, 1, b"").bytes());
        begin(&mut flow);
        let records = records(&flow);
        assert_eq!(records.len(), 1, "{}: its record was taken again", flow.name());
        let shift = Shift::from_word(records[0].1.client);
        assert_eq!(shift, Shift { position: FIRST.wrapping_add(1), before: 0, after: len(v6) as i16 });
        rides(&mut flow, &packet(v6, ACK, 0, b"x"));
    }
}

#[test]
fn without_room_for_a_record_a_new_flow_is_refused() {
    for (method, v6) in TRANSLATING {
        let mut flow = service(method, v6);
        let case = flow.name();
        let mut refused = 0;
        // Sixty-four records; flows that are established keep theirs.
        for port in 0..200 {
            let from = |flags| flow.packet_from(client(v6, 7), 20_000 + port, flags);
            let (syn, ack) = (
                numbered(&from(SYN), FIRST, 0, &[]),
                numbered(&from(ACK), FIRST.wrapping_add(1), SERVER + 1, &[]),
            );
            match flow.world.send(&syn.bytes()).counted {
                Counted::In(_) => {
                    flow.world.rewrite_entries(|e| {
                        e.with(lb_common::state::State::Established as u8, e.deadline())
                    });
                    assert!(matches!(flow.world.send(&ack.bytes()).counted, Counted::In(_)), "{case} {port}");
                }
                other => {
                    assert_eq!(other, Counted::Reason(Reason::NoExtension), "{case} {port}");
                    refused += 1;
                }
            }
        }
        assert_eq!((refused, records(&flow).len()), (136, 64), "{case}");
    }
}

#[test]
fn a_lease_of_a_flow_with_a_header_lets_nobody_else_pass_either() {
    for v6 in [false, true] {
        let mut flow = service(Method::FullNat, v6);
        begin(&mut flow);
        rides(&mut flow, &packet(v6, ACK, 0, b"x"));
        let before = records(&flow);
        // Believed, it would end the header's way to the server.
        let reply = numbered(&flow.reply(ACK), SERVER + 1, FIRST.wrapping_add(2).wrapping_add(len(v6)), &[]);
        let (port, lease) = reply.ports();
        for (case, packet) in [
            ("another port of the server", reply.clone().with(|p| p.set_ports((port + 1, lease)))),
            ("a datagram", Packet::udp((flow.real, port), (reply.destination, lease))),
            (
                "a datagram as long as a segment",
                Packet::udp((flow.real, port), (reply.destination, lease))
                    .with(|p| p.payload = vec![0x50; 40]),
            ),
        ] {
            flow.world.ends(case, &packet, Reason::WrongServer);
        }
        assert_eq!(records(&flow), before, "{}", flow.name());
    }
}
