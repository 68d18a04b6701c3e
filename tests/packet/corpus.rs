//! Tables of frames, a row a case: headers and what they lead to, checksums at the ends of their range, and IPVS's state
//! tables through the real program.

use crate::{
    flows::{Flow, Method},
    frame::{
        ACK, AH, DESTINATION_OPTIONS, ETHERNET, FIN, FRAGMENT, HOP_BY_HOP, ICMPV6, Packet, ROUTING, RST, SYN,
        Tag, Transport,
    },
    world::{Counted, client, vip},
};
use lb_common::{state::State, verdict::Reason};
use lb_model::{Direction, step};

/// (name, untagged offset from the IP header on, bytes put there, reason).
type Row = (&'static str, usize, &'static [u8], Reason);

/// A client's SYN with one field changed.
const IPV4: &[Row] = &[
    ("version 0", 0, &[0x05], Reason::BadHeader),
    ("version 6 behind IPv4's EtherType", 0, &[0x65], Reason::BadHeader),
    ("version 15", 0, &[0xf5], Reason::BadHeader),
    ("no header words", 0, &[0x40], Reason::BadHeader),
    ("four header words", 0, &[0x44], Reason::BadHeader),
    ("fifteen header words", 0, &[0x4f], Reason::BadTransport),
    ("length 0", 2, &[0, 0], Reason::BadTransport),
    ("length of its header alone", 2, &[0, 20], Reason::BadTransport),
    ("a byte less than a TCP header", 2, &[0, 39], Reason::BadTransport),
    ("a byte more than the frame", 2, &[0, 41], Reason::BadTransport),
    ("length 65535", 2, &[0xff, 0xff], Reason::BadTransport),
    ("the reserved flag, and an offset", 6, &[0x80, 1], Reason::FragmentUnknown),
    ("the last offset", 6, &[0x1f, 0xff], Reason::FragmentBad),
    ("more to come behind nothing", 6, &[0x3f, 0xff], Reason::FragmentBad),
    ("the first of more, no multiple of 8", 6, &[0x20, 0], Reason::FragmentBad),
    ("protocol 0", 9, &[0], Reason::OtherProtocol),
    ("IGMP", 9, &[2], Reason::OtherProtocol),
    ("IPIP", 9, &[4], Reason::OtherProtocol),
    ("IPv6 inside", 9, &[41], Reason::OtherProtocol),
    ("ESP", 9, &[50], Reason::OtherProtocol),
    ("AH", 9, &[51], Reason::OtherProtocol),
    ("the other family's ICMP", 9, &[58], Reason::OtherProtocol),
    ("UDP-Lite", 9, &[136], Reason::OtherProtocol),
    ("protocol 255", 9, &[255], Reason::OtherProtocol),
    ("port 0", 22, &[0, 0], Reason::NoService),
    ("the port before", 22, &[0, 79], Reason::NoService),
    ("the port's bytes turned", 22, &[80, 0], Reason::NoService),
    ("no data offset", 32, &[0], Reason::BadTransport),
    ("data offset 4", 32, &[0x40], Reason::BadTransport),
    ("data offset 6 of 20 bytes", 32, &[0x60], Reason::BadTransport),
    ("data offset 15", 32, &[0xf0], Reason::BadTransport),
    ("SYN and RST", 33, &[SYN | RST], Reason::BadFlags),
    ("SYN and FIN", 33, &[SYN | FIN], Reason::BadFlags),
    ("all flags", 33, &[0xff], Reason::BadFlags),
    ("no flag", 33, &[0], Reason::BadFlags),
    ("FIN alone", 33, &[FIN], Reason::BadFlags),
    ("RST", 33, &[RST], Reason::UnknownFlowDropped),
    ("RST and ACK", 33, &[RST | ACK], Reason::UnknownFlowDropped),
    ("FIN and RST", 33, &[FIN | RST], Reason::BadFlags),
    ("URG, PSH and FIN", 33, &[0x29], Reason::BadFlags),
    ("TTL 0", 8, &[0], Reason::TimeExceeded),
    ("TTL 1", 8, &[1], Reason::TimeExceeded),
];

const IPV6: &[Row] = &[
    ("version 0", 0, &[0x00], Reason::BadHeader),
    ("version 4 behind IPv6's EtherType", 0, &[0x40], Reason::BadHeader),
    ("version 7", 0, &[0x70], Reason::BadHeader),
    ("length 0", 4, &[0, 0], Reason::BadTransport),
    ("a byte less than a TCP header", 4, &[0, 19], Reason::BadTransport),
    ("a byte more than the frame", 4, &[0, 21], Reason::BadTransport),
    ("length 65535", 4, &[0xff, 0xff], Reason::BadTransport),
    ("no next header", 6, &[59], Reason::OtherProtocol),
    ("ICMP of IPv4", 6, &[1], Reason::OtherProtocol),
    ("IPIP", 6, &[4], Reason::OtherProtocol),
    ("IPv6 inside", 6, &[41], Reason::OtherProtocol),
    ("ESP", 6, &[50], Reason::OtherProtocol),
    ("mobility", 6, &[135], Reason::OtherProtocol),
    ("protocol 255", 6, &[255], Reason::OtherProtocol),
    ("hop limit 0", 7, &[0], Reason::TimeExceeded),
    ("hop limit 1", 7, &[1], Reason::TimeExceeded),
    ("port 0", 42, &[0, 0], Reason::NoService),
    ("the port's bytes turned", 42, &[80, 0], Reason::NoService),
    ("no data offset", 52, &[0], Reason::BadTransport),
    ("data offset 6 of 20 bytes", 52, &[0x60], Reason::BadTransport),
    ("SYN and RST", 53, &[SYN | RST], Reason::BadFlags),
    ("SYN and FIN", 53, &[SYN | FIN], Reason::BadFlags),
    ("no flag", 53, &[0], Reason::BadFlags),
    ("FIN alone", 53, &[FIN], Reason::BadFlags),
    ("RST and ACK", 53, &[RST | ACK], Reason::UnknownFlowDropped),
];

const UDP: &[Row] = &[
    ("UDP length 0", 24, &[0, 0], Reason::BadTransport),
    ("UDP length 7", 24, &[0, 7], Reason::BadTransport),
    ("a byte more than the packet", 24, &[0, 18], Reason::BadTransport),
    ("UDP length 65535", 24, &[0xff, 0xff], Reason::BadTransport),
    ("a byte less than a UDP header", 2, &[0, 27], Reason::BadTransport),
];

/// None, one, and two.
const TAGS: [&[Tag]; 3] = [&[], &[(0x8100, 0x0064)], &[(0x88a8, 0x2064), (0x8100, 0x6007)]];

#[test]
fn a_header_with_one_field_changed_ends_as_that_field_says() {
    for method in [Method::Dr, Method::Nat, Method::FullNat, Method::TunV4] {
        for (v6, udp, rows) in [(false, false, IPV4), (true, false, IPV6), (false, true, UDP)] {
            let mut flow = Flow::new(method, v6, udp);
            for tags in TAGS {
                let packet = flow.packet(SYN).tagged(tags);
                let l3 = ETHERNET + tags.len() * 4;
                for (name, at, bytes, reason) in rows {
                    let mut frame = packet.bytes();
                    frame[l3 + at..l3 + at + bytes.len()].copy_from_slice(bytes);
                    let case = format!("{} {} tags: {name}", flow.name(), tags.len());
                    flow.world.ends_frame(&case, &frame, *reason);
                }
            }
            assert!(flow.world.entries().is_empty(), "{} made a flow", flow.name());
        }
    }
}

/// An extension header of so many bytes, those behind its next-header byte.
fn extension(number: u8, len: usize) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; len - 1];
    bytes[0] = if number == AH { len / 4 - 2 } else { len / 8 - 1 } as u8;
    (number, bytes)
}

#[test]
fn chains_of_extension_headers_are_walked_as_far_as_is_said() {
    let (hop, routing, options, auth) = (
        extension(HOP_BY_HOP, 8),
        extension(ROUTING, 24),
        extension(DESTINATION_OPTIONS, 16),
        extension(AH, 12),
    );
    let atomic = (FRAGMENT, vec![0, 0, 0, 0, 0, 0, 9]);
    let long = extension(DESTINATION_OPTIONS, 480);
    let of = |n: usize| vec![options.clone(); n];
    let good = [
        ("hop by hop", vec![hop.clone()]),
        ("routing", vec![routing.clone()]),
        ("options", vec![options.clone()]),
        ("authentication", vec![auth.clone()]),
        ("a longer authentication", vec![extension(AH, 24)]),
        ("an atomic fragment", vec![atomic.clone()]),
        (
            "in the order of RFC 8200",
            vec![hop.clone(), options.clone(), routing.clone(), auth.clone(), options.clone()],
        ),
        ("behind an atomic fragment", vec![hop.clone(), atomic.clone(), options.clone()]),
        ("six", of(6)),
        ("two that are long", vec![long.clone(), long.clone()]),
    ];
    for method in Method::ALL {
        for udp in [false, true] {
            let mut flow = Flow::new(method, true, udp);
            for (name, extensions) in &good {
                for tags in TAGS {
                    let packet = flow.packet(SYN).tagged(tags).with(|p| p.extensions.clone_from(extensions));
                    let case = format!("{} {} tags: {name}", flow.name(), tags.len());
                    let seen = flow.world.send(&packet.bytes());
                    assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
                    let expected = flow.towards_server(&packet);
                    flow.world.forwards(&case, &packet, Counted::In(flow.destination), &expected);
                }
            }
        }
    }
    let bad = [
        ("seven", of(7), Reason::TooManyHeaders),
        ("too far", vec![long.clone(), long.clone(), long], Reason::TooManyHeaders),
        ("a later fragment", vec![(FRAGMENT, vec![0, 0, 8, 0, 0, 0, 9])], Reason::FragmentUnknown),
        ("a second hop by hop", vec![hop.clone(), hop], Reason::NotIp),
    ];
    let mut flow = Flow::new(Method::Dr, true, false);
    for (name, extensions, reason) in bad {
        let packet = flow.packet(SYN).with(|p| p.extensions = extensions);
        if reason == Reason::NotIp {
            // Its place is the receiver's matter (RFC 8200, section 4.1).
            assert_eq!(flow.world.goes_to(name, &packet), flow.destination);
        } else {
            flow.world.ends(name, &packet, reason);
        }
    }
    // What a chain leads to.
    for (name, protocol, reason) in [
        ("nothing", 59, Reason::OtherProtocol),
        ("ESP", 50, Reason::OtherProtocol),
        ("ICMPv6", ICMPV6, Reason::Icmp),
        ("IPv4's ICMP", 1, Reason::OtherProtocol),
    ] {
        for extensions in [vec![routing.clone()], vec![auth.clone(), options.clone()]] {
            let packet = Packet::other(client(true, 7), vip(true), protocol).with(|p| {
                // No echo: an echo reply is nobody's.
                p.payload[0] = 129;
                p.extensions = extensions.clone();
            });
            flow.world.ends(&format!("{} headers to {name}", extensions.len()), &packet, reason);
        }
    }
    // A header that says that it is longer than the frame.
    let mut frame = flow.packet(SYN).with(|p| p.extensions = vec![routing]).bytes();
    frame[ETHERNET + 41] = 100;
    frame[ETHERNET + 40] = ROUTING;
    flow.world.ends_frame("beyond the frame", &frame, Reason::BadHeader);
}

/// The transport checksum of a frame without options and tags.
fn transport_checksum(frame: &[u8], v6: bool, udp: bool) -> u16 {
    let at = ETHERNET + if v6 { 40 } else { 20 } + if udp { 6 } else { 16 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// The word that, added to what sums up to `have`, makes it `want` (one's complement).
fn missing(have: u16, want: u16) -> u16 {
    let sum = u32::from(have) + u32::from(!want);
    (sum % 0xffff) as u16
}

#[test]
fn checksums_at_the_ends_of_their_range_are_updated_like_any() {
    for method in [Method::Nat, Method::FullNat, Method::Dr, Method::TunV6] {
        for v6 in [false, true] {
            for udp in [false, true] {
                let mut flow = Flow::new(method, v6, udp);
                flow.establish();
                let packet = flow.packet(ACK).with(|p| p.payload = vec![0; 8]);
                for wanted in [0x0000, 0x0001, 0x7fff, 0x8000, 0xfffe, 0xffff] {
                    // On the way in, and on the way out.
                    for out in [false, true] {
                        let now = if out { flow.towards_server(&packet) } else { packet.bytes() };
                        if out && matches!(method, Method::TunV6) {
                            continue;
                        }
                        let word = missing(transport_checksum(&now, v6, udp), wanted);
                        let packet =
                            packet.clone().with(|p| p.payload[..2].copy_from_slice(&word.to_be_bytes()));
                        let way = if out { flow.towards_server(&packet) } else { packet.bytes() };
                        let got = transport_checksum(&way, v6, udp);
                        // 0 and 0xffff are the same sum; UDP sends the latter (RFC 768).
                        assert_eq!(got % 0xffff, wanted % 0xffff, "the table's own arithmetic");
                        let case = format!("{} {wanted:#06x}, out {out}", flow.name());
                        let expected = flow.towards_server(&packet);
                        flow.world.forwards(&case, &packet, Counted::In(flow.destination), &expected);
                        if method.translates() {
                            let reply = flow
                                .reply(ACK)
                                .with(|p| p.payload = [&word.to_be_bytes()[..], &[0; 6]].concat());
                            let expected = flow.towards_client(&reply);
                            let case = format!("{case}, reply");
                            flow.world.forwards(&case, &reply, Counted::Out(flow.destination), &expected);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn an_ipv4_header_checksum_at_the_ends_of_its_range_is_updated_like_any() {
    for method in Method::ALL {
        let mut flow = Flow::new(method, false, true);
        flow.establish();
        for wanted in [0x0000, 0x0001, 0x00ff, 0x0100, 0x0101, 0xfeff, 0xff00, 0xfffe] {
            for out in [false, true] {
                if out && matches!(method, Method::TunV4 | Method::TunV6) {
                    continue;
                }
                let packet = flow.packet(ACK).with(|p| p.id = 0);
                let header = |frame: &[u8]| u16::from_be_bytes([frame[24], frame[25]]);
                let now = if out { flow.towards_server(&packet) } else { packet.bytes() };
                let packet = packet.with(|p| p.id = missing(header(&now), wanted));
                let way = if out { flow.towards_server(&packet) } else { packet.bytes() };
                assert_eq!(header(&way) % 0xffff, wanted % 0xffff, "the table's own arithmetic");
                let expected = flow.towards_server(&packet);
                let case = format!("{} {wanted:#06x}, out {out}", flow.name());
                flow.world.forwards(&case, &packet, Counted::In(flow.destination), &expected);
            }
        }
    }
}

/// States that a packet may find, and flags that it may have.
const STATES: [State; 10] = [
    State::Established,
    State::SynSent,
    State::SynReceived,
    State::FinWait,
    State::TimeWait,
    State::Close,
    State::CloseWait,
    State::LastAck,
    State::Listen,
    State::SynAck,
];
const FLAGS: [(&str, u8); 7] = [
    ("SYN", SYN),
    ("SYN ACK", SYN | ACK),
    ("FIN", FIN),
    ("FIN ACK", FIN | ACK),
    ("ACK", ACK),
    ("RST", RST),
    ("no flag", 0),
];

#[test]
fn each_state_and_flag_and_direction_leads_where_ipvs_has_it() {
    for (method, v6) in [
        (Method::Dr, false),
        (Method::TunV6, true),
        (Method::Nat, false),
        (Method::Nat, true),
        (Method::FullNat, false),
    ] {
        let mut flow = Flow::new(method, v6, false);
        flow.establish();
        let entries = flow.world.entries();
        let replies: &[bool] = if method.translates() { &[false, true] } else { &[false] };
        for state in STATES {
            for (name, flags) in FLAGS {
                for reply in replies {
                    // What a SYN of the client's begins anew is another test's.
                    let closing =
                        matches!(state, State::TimeWait | State::Close | State::LastAck | State::FinWait);
                    if flags & SYN != 0 && !reply && closing {
                        continue;
                    }
                    set_state(&flow, &entries, state);
                    let packet = if *reply { flow.reply(flags) } else { flow.packet(flags) };
                    let direction = match (reply, method.translates()) {
                        (true, _) => Direction::Output,
                        (false, true) => Direction::Input,
                        (false, false) => Direction::InputOnly,
                    };
                    let wanted = step(direction, state as u8, flags);
                    let way = if *reply { "reply" } else { "packet" };
                    let case = format!("{} {state:?}, {way} with {name}", flow.name());
                    if *reply {
                        let expected = flow.towards_client(&packet);
                        flow.world.forwards(&case, &packet, Counted::Out(flow.destination), &expected);
                    } else {
                        let expected = flow.towards_server(&packet);
                        flow.world.forwards(&case, &packet, Counted::In(flow.destination), &expected);
                    }
                    for entry in flow.world.entries() {
                        let now = State::from_number(entry.state());
                        assert_eq!(Some(entry.state()), Some(wanted), "{case}: {now:?}");
                    }
                }
            }
        }
    }
}

/// The flow as it was, in a state.
fn set_state(flow: &Flow, entries: &[lb_common::connection::Value], state: State) {
    let views = flow.world.views();
    let mut left = entries.iter();
    flow.world.rewrite_entries(|_| {
        let value = left.next().copied().expect("as many entries as before");
        value.with(state as u8, value.deadline())
    });
    for lease in 0..views.leases.len() {
        let word = views.leases.word(lease, 8);
        let value = lb_common::connection::Value(word.load(std::sync::atomic::Ordering::SeqCst));
        if !value.is_empty() {
            let value = value.with(state as u8, value.deadline());
            word.store(value.0, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

#[test]
fn a_udp_packet_without_checksum_stays_without_whatever_its_bytes() {
    for method in [Method::Nat, Method::FullNat] {
        let mut flow = Flow::new(method, false, true);
        flow.establish();
        for payload in [&[][..], &[0], &[0xff, 0xff], &[0, 0, 0], &[0xff; 9]] {
            let without = |p: &mut Packet| {
                p.payload = payload.to_vec();
                if let Transport::Udp { checksum, .. } = &mut p.transport {
                    *checksum = false;
                }
            };
            let packet = flow.packet(ACK).with(without);
            let expected = flow.towards_server(&packet);
            let case = format!("{} {payload:?}", flow.name());
            flow.world.forwards(&case, &packet, Counted::In(flow.destination), &expected);
            let reply = flow.reply(ACK).with(without);
            let expected = flow.towards_client(&reply);
            let case = format!("{case} reply");
            flow.world.forwards(&case, &reply, Counted::Out(flow.destination), &expected);
        }
    }
}
