//! Packets in fragments: they arrive whole at one server, by every method, and what makes no packet does not.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT, matrix, tunnelled},
    frame::{
        self, DESTINATION_OPTIONS, DONT_FRAGMENT, FRAGMENT, HOP_BY_HOP, ICMPV6, Ipv4, Ipv6, Packet, SYN,
        framed,
    },
    world::{Counted, DIRECTOR, GATEWAY, client, local, mac_of, same_frame, server, vip},
};
use lb_common::{service::Pick, verdict::Reason};
use std::net::IpAddr;

/// The pieces of a packet, each with so many bytes of what its IP header carries (the last with the rest), as frames.
/// Extension headers before the fragment header go along with each.
fn pieces(packet: &Packet, size: usize) -> Vec<Vec<u8>> {
    let mut ends: Vec<usize> =
        (1..).map(|n| n * size).take_while(|end| *end < carried(packet).len()).collect();
    ends.push(carried(packet).len());
    let starts = [0].into_iter().chain(ends.clone());
    starts.zip(ends).map(|(start, end)| piece(packet, start..end, end < carried(packet).len())).collect()
}

/// What a packet's IP header carries, its transport's checksum in full.
fn carried(packet: &Packet) -> Vec<u8> {
    packet.ip()[packet.l4() - packet.l3()..].to_vec()
}

fn piece(packet: &Packet, range: std::ops::Range<usize>, more: bool) -> Vec<u8> {
    let body = &carried(packet)[range.clone()];
    let protocol = if packet.ports() == (0, 0) {
        if packet.is_v6() { ICMPV6 } else { 1 }
    } else {
        match packet.transport {
            frame::Transport::Udp { .. } => frame::UDP,
            _ => frame::TCP,
        }
    };
    let offset = (range.start / 8) as u16;
    let ip = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ipv4 {
            tos: packet.tos,
            id: packet.id,
            fragment: offset | if more { 0x2000 } else { 0 } | packet.fragment & DONT_FRAGMENT,
            ttl: packet.ttl,
            protocol,
            source,
            destination,
        }
        .packet(&packet.options, body),
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut whole = Vec::new();
            let numbers: Vec<u8> =
                packet.extensions.iter().map(|(number, _)| *number).chain([FRAGMENT]).collect();
            for (i, (_, bytes)) in packet.extensions.iter().enumerate() {
                whole.push(numbers[i + 1]);
                whole.extend(bytes);
            }
            whole.extend([protocol, 0]);
            whole.extend((offset << 3 | u16::from(more)).to_be_bytes());
            whole.extend([0, 0, packet.id.to_be_bytes()[0], packet.id.to_be_bytes()[1]]);
            whole.extend(body);
            let (class, flow_label, next) = (packet.tos, packet.flow_label, numbers[0]);
            Ipv6 { class, flow_label, next, hop_limit: packet.ttl, source, destination }.packet(&whole)
        }
        _ => unreachable!(),
    };
    framed(packet.to, packet.from, &packet.tags, &ip)
}

/// A packet of 4 kB.
fn large(packet: Packet) -> Packet {
    packet.payload(4000).with(|p| {
        p.id = 0x4711;
        p.fragment = 0;
    })
}

/// What a piece of a client's packet looks like on its way to the server.
fn at_server(flow: &Flow, packet: &Packet, range: std::ops::Range<usize>, more: bool) -> Vec<u8> {
    let mut out = packet.clone();
    out.tags.clear();
    (out.to, out.from) = (mac_of(flow.real), DIRECTOR);
    out.ttl -= 1;
    if flow.method.translates() {
        out.destination = flow.real;
        let mut ports = (packet.ports().0, flow.server_port());
        if flow.method == Method::FullNat {
            out.source = local(flow.v6);
            ports.0 = flow.lease();
        }
        out.set_ports(ports);
    }
    let frame = piece(&out, range, more);
    match flow.method {
        Method::TunV4 | Method::TunV6 => {
            let inner = frame[14..].to_vec();
            // The outer header by the inner one's fields, around the piece in place of the packet.
            let around = tunnelled(
                &out.clone().with(|p| {
                    p.payload.clear();
                    // IPv6 has none of its own.
                    p.id = if flow.v6 { 0 } else { p.id };
                }),
                flow.real,
            );
            let header = if flow.real.is_ipv6() { 40 } else { 20 };
            let mut outer = around[..header].to_vec();
            if flow.real.is_ipv6() {
                outer[4..6].copy_from_slice(&(inner.len() as u16).to_be_bytes());
            } else {
                outer[2..4].copy_from_slice(&((inner.len() + 20) as u16).to_be_bytes());
                outer[10..12].fill(0);
                let sum = frame::checksum(&outer);
                outer[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            outer.extend(inner);
            framed(out.to, out.from, &[], &outer)
        }
        _ => frame,
    }
}

const SIZE: usize = 1400;

#[test]
fn a_datagram_of_4_kb_arrives_whole_at_one_server_by_every_method() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        // A second server: without the flow the pieces would take turns.
        let other = server(method.real_is_v6(v6), 12);
        let other = flow.world.server(&flow.spec, other, flow.real_port, method.forwarding());
        flow.world.slots("web", &[flow.destination, other]);
        for tags in [&[][..], &[(0x8100, 0x0064)]] {
            let packet = large(flow.packet(SYN)).tagged(tags);
            let frames = pieces(&packet, SIZE);
            let total = carried(&packet).len();
            assert_eq!(frames.len(), 3);
            for (n, frame) in frames.iter().enumerate() {
                let case = format!("{} piece {n} {tags:?}", flow.name());
                let seen = flow.world.send(frame);
                assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
                let range = n * SIZE..((n + 1) * SIZE).min(total);
                same_frame(&case, &seen.frame, &at_server(&flow, &packet, range, n < 2));
                assert_eq!(
                    seen.events.contains(&Reason::FragmentFollowed),
                    n > 0,
                    "{case}: {:?}",
                    seen.events
                );
            }
            // In another order of the later ones, and twice.
            for n in [0, 2, 1, 1] {
                assert_eq!(flow.world.send(&frames[n]).counted, Counted::In(flow.destination));
            }
        }
    }
}

#[test]
fn a_reply_of_4_kb_arrives_whole_at_the_client() {
    for method in [Method::Nat, Method::FullNat] {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut flow = Flow::new(method, v6, udp);
            flow.establish();
            let reply = large(flow.reply(frame::ACK));
            let out = reply.clone().with(|p| {
                (p.to, p.from) = (GATEWAY, DIRECTOR);
                (p.source, p.destination) = (vip(v6), client(v6, 7));
                p.ttl -= 1;
                p.set_ports((VIP_PORT, CLIENT_PORT));
            });
            for (n, (frame, expected)) in pieces(&reply, SIZE).iter().zip(pieces(&out, SIZE)).enumerate() {
                let case = format!("{} piece {n}", flow.name());
                let seen = flow.world.send(frame);
                assert_eq!(seen.counted, Counted::Out(flow.destination), "{case}");
                same_frame(&case, &seen.frame, &expected);
            }
        }
    }
}

#[test]
fn ipv4_options_and_ipv6_extension_headers_go_along() {
    for method in [Method::Dr, Method::Nat, Method::FullNat] {
        for v6 in [false, true] {
            let mut flow = Flow::new(method, v6, true);
            let packet = large(flow.first()).with(|p| {
                if v6 {
                    p.extensions =
                        vec![(HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0]), (DESTINATION_OPTIONS, vec![0; 7])];
                } else {
                    p.options = vec![1; 8];
                }
            });
            for (n, frame) in pieces(&packet, 1200).iter().enumerate() {
                let case = format!("{method:?} v6={v6} piece {n}");
                let seen = flow.world.send(frame);
                assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
                let end = ((n + 1) * 1200).min(carried(&packet).len());
                same_frame(&case, &seen.frame, &at_server(&flow, &packet, n * 1200..end, n < 3));
            }
        }
    }
}

#[test]
fn packets_in_pieces_do_not_mix() {
    for v6 in [false, true] {
        let mut flow = Flow::with(Method::Dr, v6, true, |spec| spec.pick = Pick::HashAddress);
        let packet = large(flow.first());
        let frames = pieces(&packet, SIZE);
        flow.world.send(&frames[0]);
        let others = [
            ("another packet", packet.clone().with(|p| p.id += 1)),
            ("another client", packet.clone().with(|p| p.source = client(v6, 9))),
        ];
        for (case, other) in others {
            flow.world.ends_frame(case, &pieces(&other, SIZE)[1], Reason::FragmentUnknown);
        }
        if !v6 {
            let other = Packet::tcp((packet.source, 1), (packet.destination, 80), SYN);
            flow.world.ends_frame(
                "another protocol",
                &pieces(&large(other), SIZE)[1],
                Reason::FragmentUnknown,
            );
        }
        assert_eq!(flow.world.send(&frames[1]).counted, Counted::In(flow.destination));
        // The flow is gone (another director, a full table): the slot table still knows the server.
        flow.world.forget_all();
        assert_eq!(flow.world.send(&frames[2]).counted, Counted::In(flow.destination));
    }
}

#[test]
fn what_makes_no_packet_is_dropped() {
    for (method, v6) in
        [(Method::Dr, false), (Method::Nat, true), (Method::FullNat, false), (Method::TunV6, true)]
    {
        for udp in [false, true] {
            let mut flow = Flow::new(method, v6, udp);
            let name = flow.name();
            let packet = large(flow.packet(SYN));
            let world = &mut flow.world;
            world.ends_frame(&name, &piece(&packet, SIZE..2 * SIZE, true), Reason::FragmentUnknown);
            if !udp {
                world.ends_frame(&name, &piece(&packet, 0..16, true), Reason::FragmentTiny);
            }
            world.ends_frame(&name, &piece(&packet, 0..SIZE + 1, true), Reason::FragmentBad);
            assert!(matches!(world.send(&piece(&packet, 0..SIZE, true)).counted, Counted::In(_)), "{name}");
            for start in [8, 16, 24, SIZE - 8] {
                let case = format!("{name} from {start} on");
                world.ends_frame(&case, &piece(&packet, start..SIZE + 8, true), Reason::FragmentOverlap);
            }
            world.ends_frame(&name, &piece(&packet, SIZE..2 * SIZE + 4, true), Reason::FragmentBad);
            if v6 {
                // Its own offset word: the builder cannot make a packet that long.
                let mut frame = piece(&packet, SIZE..2 * SIZE, true);
                frame[56..58].copy_from_slice(&0xfff9u16.to_be_bytes());
                world.ends_frame(&name, &frame, Reason::FragmentBad);
            } else {
                let mut frame = piece(&packet, SIZE..2 * SIZE, true);
                frame[20..22].copy_from_slice(&0x3fffu16.to_be_bytes());
                frame[24..26].fill(0);
                let sum = frame::checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
                world.ends_frame(&name, &frame, Reason::FragmentBad);
            }
            let last = piece(&packet.clone().with(|p| p.ttl = 1), SIZE..2 * SIZE, true);
            world.ends_frame(&name, &last, Reason::IcmpTtlExpired);
        }
    }
}

#[test]
fn pieces_that_are_the_kernels_pass() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Dr, v6, true);
        let (from, to) = (client(v6, 7), vip(v6));
        let echo = large(Packet::other(from, to, if v6 { ICMPV6 } else { 1 }));
        for frame in pieces(&echo, SIZE) {
            flow.world.ends_frame("echo", &frame, Reason::Fragment);
        }
        let nobody = large(Packet::udp((from, 1), (to, 81)));
        let frames = pieces(&nobody, SIZE);
        flow.world.ends_frame("no service", &frames[0], Reason::NoService);
        for frame in &frames[1..] {
            flow.world.ends_frame("no service", frame, Reason::Fragment);
        }
        let stranger = large(Packet::udp((from, 1), (client(v6, 99), 80)));
        for frame in pieces(&stranger, SIZE) {
            flow.world.ends_frame("not ours", &frame, Reason::NotOurs);
        }
    }
}

#[test]
fn a_piece_that_does_not_fit_is_answered_or_dropped_like_a_packet() {
    for (method, v6) in [(Method::TunV4, false), (Method::TunV6, true), (Method::TunV6, false)] {
        let mut flow = Flow::new(method, v6, true);
        let packet = large(flow.first());
        assert!(matches!(flow.world.send(&piece(&packet, 0..SIZE, true)).counted, Counted::In(_)));
        let long = piece(&packet, SIZE..SIZE + 1480 - if v6 { 40 } else { 0 }, true);
        let reason = if v6 { Reason::PacketTooBig } else { Reason::TooBig };
        flow.world.ends_frame(&flow.name(), &long, reason);
    }
}

#[test]
fn a_packet_in_one_piece_is_no_fragment_whose_rest_may_come() {
    for method in [Method::Dr, Method::Nat, Method::FullNat] {
        let mut flow = Flow::new(method, true, true);
        let packet = flow.first().payload(24);
        let total = carried(&packet).len();
        let whole = piece(&packet, 0..total, false);
        assert_eq!(flow.world.send(&whole).counted, Counted::In(flow.destination), "{method:?}");
        // It says that it is longer than it is: nothing follows an atomic fragment.
        let new = piece(&packet.clone().with(|p| p.set_ports((CLIENT_PORT + 1, VIP_PORT))), 0..total, false);
        flow.world.ends_frame("lies", &with_udp_length(new.clone(), total + 8), Reason::BadTransport);
        assert_eq!(flow.world.send(&new).counted, Counted::In(flow.destination), "{method:?}");
    }
}

/// An IPv6 fragment whose datagram says another length.
fn with_udp_length(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame[14 + 40 + 8 + 4..][..2].copy_from_slice(&(len as u16).to_be_bytes());
    frame
}

#[test]
fn later_pieces_of_what_the_kernel_gets_are_the_kernels_over_ipv6_too() {
    let mut flow = Flow::new(Method::Dr, true, true);
    let packet = large(flow.first());
    for (name, next) in [("SCTP", frame::SCTP), ("ESP", 50), ("GRE", 47), ("ICMPv6", ICMPV6)] {
        for (n, mut frame) in pieces(&packet, SIZE).into_iter().enumerate() {
            frame[14 + 40] = next;
            flow.world.ends_frame(&format!("{name} piece {n}"), &frame, Reason::Fragment);
        }
    }
    // What an extension header hides may be a datagram of ours whose first piece was lost.
    for (name, next) in [("options", DESTINATION_OPTIONS), ("UDP", frame::UDP)] {
        let mut frame = piece(&packet, SIZE..2 * SIZE, true);
        frame[14 + 40] = next;
        flow.world.ends_frame(name, &frame, Reason::FragmentUnknown);
    }
}

#[test]
fn later_pieces_pass_through_a_lease_only_from_the_port_that_it_is_for() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let mut flow = Flow::new(Method::FullNat, v6, udp);
            flow.establish();
            let reply = large(flow.reply(frame::ACK));
            let port = reply.ports().1;
            let others = [
                ("another port", reply.clone().with(|p| p.set_ports((reply.ports().0 + 1, port)))),
                (
                    "another protocol",
                    large(if udp {
                        Packet::tcp((reply.source, reply.ports().0), (reply.destination, port), frame::ACK)
                    } else {
                        Packet::udp((reply.source, reply.ports().0), (reply.destination, port))
                    }),
                ),
            ];
            for (name, other) in others {
                let other = other.with(|p| p.id = 0x4712);
                for frame in pieces(&other, SIZE) {
                    flow.world.ends_frame(&format!("{} {name}", flow.name()), &frame, Reason::WrongServer);
                }
            }
            for frame in pieces(&reply, SIZE) {
                assert_eq!(flow.world.send(&frame).counted, Counted::Out(flow.destination));
            }
        }
    }
}
