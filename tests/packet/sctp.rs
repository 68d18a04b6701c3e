//! SCTP: associations by every method, checksums over changed ports, states by chunk and direction, ABORT as the reset.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT},
    frame::{ACK, Packet, SCTP, SYN, TCP, Transport, UDP, chunk},
    world::{Counted, DIRECTOR, GATEWAY, World, client, local, mac_of, same_frame, server, vip},
};
use lb_agent::dataplane::{
    Ports,
    dump::Protocol,
    tables::{OnNextPacket, Persistence, Rules, ServiceSpec, Standing},
};
use lb_common::{
    destination::Forwarding,
    sctp::{State, chunk as kind, event, step},
    service::{NoServer, OnUnknownFlow, Pick},
    state::Direction,
    verdict::Reason,
};

/// The verification tags that client and server chose.
const OF_CLIENT: u32 = 0x0c11_e277;
const OF_SERVER: u32 = 0x05e7_7e73;

/// A chunk of each type with a body as long as it has.
fn typical(kind_of: u8) -> Vec<u8> {
    let body: &[u8] = match kind_of {
        kind::DATA => b"0123456789abcdef odd!",
        kind::INIT => &[0x0c, 0x11, 0xe2, 0x77, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1],
        kind::INIT_ACK => {
            &[0x05, 0xe7, 0x7e, 0x73, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1, 0, 7, 0, 8, 1, 2, 3, 4]
        }
        kind::COOKIE_ECHO => b"cookie",
        kind::SHUTDOWN => &[0, 0, 0, 9],
        kind::ERROR => &[0, 1, 0, 8, 0, 5, 0, 0],
        _ => &[],
    };
    chunk(kind_of, 0, body)
}

fn flow(method: Method, v6: bool, change: impl FnOnce(&mut ServiceSpec)) -> Flow {
    Flow::of(method, v6, SCTP, change)
}

fn every_flow() -> impl Iterator<Item = Flow> {
    Method::ALL.into_iter().flat_map(|method| [false, true].map(|v6| flow(method, v6, |_| ())))
}

/// The client's packet of these chunks; an INIT has no tag yet.
fn of_client(flow: &Flow, chunks: &[Vec<u8>]) -> Packet {
    let tag = if chunks[0][0] == kind::INIT { 0 } else { OF_SERVER };
    Packet::sctp((client(flow.v6, 7), CLIENT_PORT), (vip(flow.v6), VIP_PORT), tag, chunks)
}

/// The client's packet of one chunk.
fn sent(flow: &Flow, kind: u8) -> Packet {
    of_client(flow, &[typical(kind)])
}

/// The server's packet (NAT, FULLNAT).
fn of_server(flow: &Flow, kind: u8) -> Packet {
    let to = match flow.method {
        Method::FullNat => (local(flow.v6), flow.lease()),
        _ => (client(flow.v6, 7), CLIENT_PORT),
    };
    let reply = Packet::sctp((flow.real, flow.server_port()), to, OF_CLIENT, &[typical(kind)]);
    reply.with(|p| p.from = mac_of(flow.real))
}

fn establish(flow: &mut Flow) {
    let case = flow.name();
    flow.forward(&sent(flow, kind::INIT));
    if flow.method.translates() {
        flow.answer(&of_server(flow, kind::INIT_ACK));
        flow.forward(&sent(flow, kind::COOKIE_ECHO));
        flow.answer(&of_server(flow, kind::COOKIE_ACK));
    } else {
        flow.forward(&sent(flow, kind::COOKIE_ECHO));
    }
    assert_eq!(flow.world.state(&case), State::Established, "{case}");
}

/// The answer to a packet: common header turned round, a tag and one chunk.
fn answer(to: &Packet, tag: u32, chunk_of: Vec<u8>) -> Vec<u8> {
    let (source, destination) = to.ports();
    Packet::sctp((to.destination, destination), (to.source, source), tag, &[chunk_of])
        .with(|p| {
            (p.to, p.from) = (GATEWAY, DIRECTOR);
            (p.tos, p.flow_label, p.id, p.ttl) = (0, 0, 0, 64);
        })
        .bytes()
}

#[test]
fn an_association_lives_and_ends_by_every_method() {
    for mut flow in every_flow() {
        let case = flow.name();
        let both = flow.method.translates();
        let seen = flow.forward(&sent(&flow, kind::INIT));
        assert_eq!(seen.events, [Reason::FlowNew], "{case}");
        let connection = flow.world.connection(&case);
        assert_eq!((connection.protocol, connection.forwarding), (Protocol::Sctp, flow.method.forwarding()));
        assert_eq!(connection.state, State::Init1, "{case}");
        assert_eq!((connection.client.ip(), connection.client.port()), (client(flow.v6, 7), CLIENT_PORT));
        assert!(connection.expires_in.as_secs() <= 5, "{case}: {:?}", connection.expires_in);
        let steps = [
            (false, kind::INIT, Some(State::Init), Some(State::Init)),
            (true, kind::INIT_ACK, Some(State::CookieSent), None),
            (false, kind::COOKIE_ECHO, Some(State::CookieReplied), Some(State::Established)),
            (true, kind::COOKIE_ACK, Some(State::Established), None),
            (false, kind::DATA, Some(State::Established), Some(State::Established)),
            (true, kind::SACK, Some(State::Established), None),
            (false, kind::HEARTBEAT, Some(State::Established), Some(State::Established)),
            (false, kind::SHUTDOWN, Some(State::ShutdownReceived), Some(State::ShutdownReceived)),
            (true, kind::SHUTDOWN_ACK, Some(State::ShutdownAckSent), None),
            (false, kind::SHUTDOWN_COMPLETE, Some(State::Closed), Some(State::Closed)),
        ];
        for (of_the_server, kind_of, with_replies, without) in steps {
            let case = format!("{case} chunk {kind_of}");
            if of_the_server {
                if !both {
                    continue;
                }
                flow.answer(&of_server(&flow, kind_of));
            } else {
                flow.forward(&sent(&flow, kind_of));
            }
            let expected = if both { with_replies } else { without }.unwrap();
            assert_eq!(flow.world.state(&case), expected, "{case}");
            // Both entries of a pair step together.
            let states: Vec<_> = flow.world.entries().iter().map(|e| (e.state(), e.is_sctp())).collect();
            assert!(states.iter().all(|s| *s == (expected as u8, true)), "{case}: {states:?}");
        }
        // An INIT on the closed association begins another.
        let seen = flow.forward(&sent(&flow, kind::INIT));
        assert_eq!(seen.events, [Reason::FlowReplaced], "{case}");
        assert_eq!(flow.world.state(&case), State::Init1, "{case}");
    }
}

/// The builder of frames computes the CRC over all bytes, the program from the ports' difference and the length.
#[test]
fn the_checksum_is_right_at_every_length() {
    for method in [Method::Nat, Method::FullNat] {
        for v6 in [false, true] {
            let mut flow = flow(method, v6, |_| ());
            establish(&mut flow);
            for len in (0..300).chain([511, 512, 1000, 1001, 1200, 1400]) {
                let body: Vec<u8> = (0..len).map(|i: usize| (i * 7 + len) as u8).collect();
                let data = chunk(kind::DATA, 3, &body);
                flow.forward(&of_client(&flow, std::slice::from_ref(&data)));
                let mut reply = of_server(&flow, kind::DATA);
                reply.payload = [data, typical(kind::SACK)].concat();
                flow.answer(&reply);
            }
            // Padding of the frame is no part of the packet.
            let short = sent(&flow, kind::SACK);
            let padded = short.clone().with(|p| p.padding = 10);
            let seen = flow.world.send(&padded.bytes());
            let expected = flow.towards_server(&short);
            assert_eq!(seen.frame[..expected.len()], expected[..], "{} padded", flow.name());
        }
    }
}

#[test]
fn ports_that_stay_leave_the_checksum_alone() {
    for v6 in [false, true] {
        let mut world = World::new();
        let spec = world.spec("web", vip(v6), SCTP, &[Ports::One(VIP_PORT)]);
        world.service(&spec);
        world.clients_behind(GATEWAY);
        let destination = world.server(&spec, server(v6, 11), 0, Forwarding::Nat);
        world.slots("web", &[destination]);
        // A checksum that is not the right one stays as wrong as it is: the ends must see it.
        let packet = Packet::sctp((client(v6, 7), 5000), (vip(v6), VIP_PORT), 0, &[typical(kind::INIT)]);
        let mut bytes = packet.bytes();
        let at = packet.l4() + 8;
        bytes[at] ^= 0xff;
        let seen = world.send(&bytes);
        assert_eq!(seen.counted, Counted::In(destination));
        assert_eq!(seen.frame[at..at + 4], bytes[at..at + 4]);
    }
}

/// Every event in every state and direction, through the program: its table is the one that the unit tests of
/// `lb_common::sctp` compare with IPVS's.
#[test]
fn every_state_steps_by_every_chunk_in_every_direction() {
    let chunks = [
        (kind::DATA, event::DATA),
        (kind::INIT, event::INIT),
        (kind::INIT_ACK, event::INIT_ACK),
        (kind::COOKIE_ECHO, event::COOKIE_ECHO),
        (kind::COOKIE_ACK, event::COOKIE_ACK),
        (kind::SHUTDOWN, event::SHUTDOWN),
        (kind::SHUTDOWN_ACK, event::SHUTDOWN_ACK),
        (kind::SHUTDOWN_COMPLETE, event::SHUTDOWN_COMPLETE),
        (kind::ERROR, event::ERROR),
        (kind::ABORT, event::ABORT),
        (200, event::DATA),
    ];
    for (method, direction) in [
        (Method::Dr, Direction::InputOnly),
        (Method::Nat, Direction::Input),
        (Method::Nat, Direction::Output),
        (Method::FullNat, Direction::Input),
        (Method::FullNat, Direction::Output),
    ] {
        let mut flow = flow(method, false, |_| ());
        establish(&mut flow);
        let lease = (method == Method::FullNat).then(|| flow.lease());
        for state in State::ALL {
            for (kind_of, event) in chunks {
                let case = format!("{method:?} {direction:?} {} chunk {kind_of}", state.name());
                flow.world.rewrite_entries(|value| value.with(state as u8, value.deadline()));
                if let Some(port) = lease {
                    let views = flow.world.views();
                    let word = views.leases.word(lb_common::lease::lease_index(0, port), 8);
                    let old = lb_common::connection::Value(word.load(std::sync::atomic::Ordering::SeqCst));
                    let new = old.with(state as u8, old.deadline());
                    word.store(new.0, std::sync::atomic::Ordering::SeqCst);
                }
                let anew = kind_of == kind::INIT && state == State::Closed && direction != Direction::Output;
                if direction == Direction::Output {
                    flow.answer(&of_server(&flow, kind_of));
                } else if anew {
                    // Begins another association; under FULLNAT with a lease of its own.
                    continue;
                } else {
                    flow.forward(&sent(&flow, kind_of));
                }
                let expected = State::from_number(step(direction, state as u8, event)).unwrap();
                assert_eq!(flow.world.state(&case), expected, "{case}");
            }
        }
    }
}

#[test]
fn an_abort_behind_a_cookie_ends_the_association() {
    for method in Method::ALL {
        for first in [kind::COOKIE_ECHO, kind::COOKIE_ACK] {
            let mut flow = flow(method, false, |_| ());
            establish(&mut flow);
            let case = format!("{} chunk {first}", flow.name());
            flow.forward(&of_client(&flow, &[typical(first), typical(kind::DATA)]));
            assert_eq!(flow.world.state(&case), State::Established, "{case}");
            flow.forward(&of_client(&flow, &[typical(first), typical(kind::ABORT)]));
            assert_eq!(flow.world.state(&case), State::Closed, "{case}");
        }
        // Behind any other it is not looked for, as in IPVS.
        let mut flow = flow(method, false, |_| ());
        establish(&mut flow);
        flow.forward(&of_client(&flow, &[typical(kind::SACK), typical(kind::ABORT)]));
        assert_eq!(flow.world.state("sack"), State::Established);
    }
}

#[test]
fn tcp_udp_and_sctp_of_one_address_and_port_are_three_services_and_three_flows() {
    for v6 in [false, true] {
        let mut world = World::new();
        let mut all = Vec::new();
        for (n, protocol) in [TCP, UDP, SCTP].into_iter().enumerate() {
            let spec = world.spec(&format!("s{protocol}"), vip(v6), protocol, &[Ports::One(VIP_PORT)]);
            world.service(&spec);
            let destination = world.server(&spec, server(v6, 11 + n as u8), 0, Forwarding::Dr);
            world.slots(&spec.name, &[destination]);
            all.push(destination);
        }
        let (from, to) = ((client(v6, 7), CLIENT_PORT), (vip(v6), VIP_PORT));
        let init = Packet::sctp(from, to, 0, &[typical(kind::INIT)]);
        let packets = [Packet::tcp(from, to, SYN), Packet::udp(from, to), init];
        for _ in 0..2 {
            for (packet, destination) in packets.iter().zip(&all) {
                assert_eq!(world.goes_to("its own", packet), *destination);
            }
        }
        assert_eq!(world.connections().len(), 3);
        let other = Packet::sctp(from, (vip(v6), 81), 0, &[typical(kind::INIT)]);
        world.ends("another port", &other, Reason::NoService);
    }
}

#[test]
fn a_lease_is_of_one_protocol() {
    for v6 in [false, true] {
        let mut flow = flow(Method::FullNat, v6, |_| ());
        establish(&mut flow);
        let (from, to) = ((flow.real, flow.server_port()), (local(v6), flow.lease()));
        let tcp = Packet::tcp(from, to, ACK);
        flow.world.ends("TCP to the lease of SCTP", &tcp, Reason::WrongServer);
        let udp = Packet::udp(from, to);
        flow.world.ends("UDP to the lease of SCTP", &udp, Reason::WrongServer);
        let free = Packet::sctp(from, (local(v6), flow.lease() ^ 1), 1, &[typical(kind::DATA)]);
        flow.world.ends("a port that nobody holds", &free, Reason::NoLease);
        let mut flow = Flow::new(Method::FullNat, v6, false);
        flow.establish();
        let (from, to) = ((flow.real, flow.server_port()), (local(v6), flow.lease()));
        let sctp = Packet::sctp(from, to, 1, &[typical(kind::DATA)]);
        flow.world.ends("SCTP to the lease of TCP", &sctp, Reason::WrongServer);
    }
}

#[test]
fn headers_that_are_short_or_lie_are_dropped() {
    for v6 in [false, true] {
        let mut flow = flow(Method::Nat, v6, |_| ());
        for (case, payload) in [
            ("no chunk", vec![]),
            ("half a chunk's header", vec![1, 0]),
            ("a chunk of no length", vec![1, 0, 0, 0, 0, 0, 0, 1]),
            ("a chunk shorter than its header", vec![1, 0, 0, 3, 0, 0, 0, 1]),
            ("a chunk longer than the packet", vec![1, 0, 0, 9, 0, 0, 0, 1]),
        ] {
            let packet = sent(&flow, kind::INIT).with(|p| p.payload = payload);
            flow.world.ends(case, &packet, Reason::BadTransport);
        }
        let bare = Packet::other(client(v6, 7), vip(v6), SCTP).with(|p| p.payload = vec![0x9c, 0x40, 0, 80]);
        flow.world.ends("ports alone", &bare, Reason::BadTransport);
        assert!(flow.world.connections().is_empty());
    }
}

#[test]
fn tags_options_and_extension_headers_are_walked() {
    for method in Method::ALL {
        let mut four = flow(method, false, |_| ());
        let options = |p: Packet| p.with(|p| p.options = vec![1, 1, 1, 0]);
        four.forward(&options(sent(&four, kind::INIT)).tagged(&[(0x8100, 9)]));
        four.forward(&options(sent(&four, kind::COOKIE_ECHO)));
        let mut six = flow(method, true, |_| ());
        let extended = |p: Packet| p.with(|p| p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])]);
        six.forward(&extended(sent(&six, kind::INIT)).tagged(&[(0x88a8, 7), (0x8100, 9)]));
        six.forward(&extended(sent(&six, kind::COOKIE_ECHO)));
    }
}

#[test]
fn a_packet_of_no_association_is_treated_as_the_service_says() {
    for method in Method::ALL {
        for v6 in [false, true] {
            let with = |policy| flow(method, v6, |spec: &mut ServiceSpec| spec.on_unknown_flow = policy);
            for (policy, reason) in [
                (OnUnknownFlow::Pass, Reason::UnknownFlowPassed),
                (OnUnknownFlow::Drop, Reason::UnknownFlowDropped),
            ] {
                let mut flow = with(policy);
                for kind_of in [kind::DATA, kind::COOKIE_ECHO, kind::ABORT, kind::SHUTDOWN_ACK] {
                    let packet = sent(&flow, kind_of);
                    flow.world.ends(&format!("{policy:?} chunk {kind_of}"), &packet, reason);
                }
                assert!(flow.world.connections().is_empty());
            }
            let mut flow = with(OnUnknownFlow::Adopt);
            let case = flow.name();
            let abort = sent(&flow, kind::ABORT);
            flow.world.ends(&case, &abort, Reason::UnknownFlowDropped);
            let seen = flow.forward(&sent(&flow, kind::DATA));
            assert_eq!(seen.events, [Reason::FlowAdopted], "{case}");
            assert_eq!(flow.world.state(&case), State::Unconfirmed, "{case}");
            flow.forward(&sent(&flow, kind::DATA));
            assert_eq!(flow.world.state(&case), State::Established, "{case}");
        }
    }
}

/// RFC 9260, section 8.4.
#[test]
fn a_packet_of_no_association_is_answered_by_the_rules_of_the_protocol() {
    for v6 in [false, true] {
        let mut flow = flow(Method::Dr, v6, |spec| spec.on_unknown_flow = OnUnknownFlow::Reset);
        for kind_of in
            [kind::DATA, kind::SACK, kind::COOKIE_ECHO, kind::INIT_ACK, kind::SHUTDOWN, kind::ERROR, 200]
        {
            let case = format!("chunk {kind_of} v6={v6}");
            let packet =
                sent(&flow, kind_of).tagged(if kind_of == kind::SACK { &[(0x8100, 5)] } else { &[] });
            let seen = flow.world.ends(&case, &packet, Reason::UnknownFlowReset);
            // The sender's own tag comes back, and the T bit says so.
            let mut expected = answer(&packet, OF_SERVER, chunk(kind::ABORT, 1, &[]));
            if kind_of == kind::SACK {
                expected.splice(12..12, [0x81, 0x00, 0, 5]);
            }
            same_frame(&case, &seen.frame, &expected);
        }
        let packet = sent(&flow, kind::SHUTDOWN_ACK);
        let seen = flow.world.ends("SHUTDOWN ACK", &packet, Reason::UnknownFlowReset);
        same_frame(
            "SHUTDOWN ACK",
            &seen.frame,
            &answer(&packet, OF_SERVER, chunk(kind::SHUTDOWN_COMPLETE, 1, &[])),
        );
        let stale = chunk(kind::ERROR, 0, &[0, 3, 0, 8, 0, 0, 0, 9]);
        for chunks in [
            vec![typical(kind::ABORT)],
            vec![typical(kind::SHUTDOWN_COMPLETE)],
            vec![typical(kind::COOKIE_ACK), typical(kind::DATA)],
            vec![stale],
            vec![typical(kind::ERROR), typical(kind::ABORT)],
            vec![typical(kind::COOKIE_ECHO), typical(kind::ABORT)],
            vec![typical(kind::SACK), typical(kind::DATA), typical(kind::COOKIE_ACK)],
        ] {
            let packet = of_client(&flow, &chunks);
            flow.world.ends(&format!("silence to {chunks:?}"), &packet, Reason::UnknownFlowDropped);
        }
        // A length that lies ends the walk.
        let lying = of_client(&flow, &[typical(kind::SACK), vec![kind::SACK, 0, 0, 0]]);
        flow.world.ends("a second chunk of no length", &lying, Reason::UnknownFlowReset);
        assert!(flow.world.connections().is_empty());
    }
}

#[test]
fn a_service_without_a_server_aborts_with_the_initiate_tag() {
    for v6 in [false, true] {
        for checked in [false, true] {
            for (policy, reason) in [
                (NoServer::Drop, Reason::NoServer),
                (NoServer::Reset, Reason::NoServerReset),
                (NoServer::Unreachable, Reason::NoServerUnreachable),
            ] {
                let mut flow = flow(Method::Dr, v6, |spec| {
                    (spec.rules.no_server, spec.rules.checked) = (policy, checked);
                });
                flow.world.slots("web", &[]);
                let case = format!("{policy:?} checked={checked} v6={v6}");
                let init = sent(&flow, kind::INIT);
                let seen = flow.world.ends(&case, &init, reason);
                if policy == NoServer::Reset {
                    // Not reflected: no T bit.
                    same_frame(&case, &seen.frame, &answer(&init, OF_CLIENT, chunk(kind::ABORT, 0, &[])));
                    let nameless = of_client(&flow, &[chunk(kind::INIT, 0, &[0; 16])]);
                    flow.world.ends("an initiate tag of 0", &nameless, Reason::NoServer);
                    let short = of_client(&flow, &[chunk(kind::INIT, 0, &[])]);
                    flow.world.ends("an INIT without its tag", &short, Reason::BadTransport);
                } else if policy == NoServer::Unreachable {
                    let icmp = 14 + if v6 { 40 } else { 20 };
                    assert_eq!(seen.frame[icmp..icmp + 2], if v6 { [1, 4] } else { [3, 3] }, "{case}");
                }
            }
        }
    }
}

#[test]
fn associations_of_a_server_that_was_given_up_are_aborted_with_their_next_packet() {
    for method in Method::ALL {
        for v6 in [false, true] {
            for tell in [false, true] {
                let mut flow = flow(method, v6, |spec| spec.rules.checked = true);
                let case = format!("{} tell={tell}", flow.name());
                establish(&mut flow);
                let reply = method.translates().then(|| of_server(&flow, kind::DATA));
                let on_next_packet = if tell { OnNextPacket::ResetAndTell } else { OnNextPacket::Reset };
                flow.stand(Standing { on_next_packet, ..Standing::DEFAULT });
                let packet = of_client(&flow, &[chunk(kind::DATA, 3, b"some words that nobody reads")]);
                if tell {
                    // The server is told by the packet itself, whose first chunk became an ABORT.
                    let told =
                        packet.clone().with(|p| p.payload[..4].copy_from_slice(&[kind::ABORT, 0, 0, 4]));
                    let seen = flow.world.send(&packet.bytes());
                    assert_eq!(
                        (seen.counted, &seen.events[..]),
                        (Counted::In(flow.destination), &[Reason::ServerTold][..]),
                        "{case}"
                    );
                    same_frame(&case, &seen.frame, &flow.towards_server(&told));
                    assert_eq!(flow.world.state(&case), State::Closed, "{case}");
                }
                let seen = flow.world.ends(&case, &packet, Reason::FlowReset);
                let expected = answer(&packet, OF_SERVER, chunk(kind::ABORT, 1, &[]));
                same_frame(&case, &seen.frame, &expected);
                if let Some(reply) = reply {
                    let seen = flow.world.ends(&format!("{case} reply"), &reply, Reason::FlowReset);
                    let expected = answer(&reply, OF_CLIENT, chunk(kind::ABORT, 1, &[]));
                    // Towards the server, where the reply came from.
                    assert_eq!(seen.frame[14..], expected[14..], "{case} reply");
                }
                let init = sent(&flow, kind::INIT);
                flow.world.ends(&case, &init, Reason::NoServer);
            }
        }
    }
}

#[test]
fn only_established_associations_are_active() {
    for method in Method::ALL {
        let mut flow = flow(method, false, |spec| {
            spec.pick = Pick::Wlc;
            spec.rules.counted = true;
        });
        let destination = flow.destination;
        flow.world.servers("web", &[destination]);
        // The flag that asks for counts came with the service; the server was there before its list.
        flow.stand(Standing::DEFAULT);
        let case = flow.name();
        flow.forward(&sent(&flow, kind::INIT));
        assert_eq!(flow.world.counts(destination), (0, 1), "{case}: INIT");
        if method.translates() {
            flow.answer(&of_server(&flow, kind::INIT_ACK));
            flow.forward(&sent(&flow, kind::COOKIE_ECHO));
            assert_eq!(flow.world.counts(destination), (0, 1), "{case}: not yet");
            flow.answer(&of_server(&flow, kind::COOKIE_ACK));
        } else {
            flow.forward(&sent(&flow, kind::COOKIE_ECHO));
        }
        assert_eq!(flow.world.counts(destination), (1, 0), "{case}: established");
        flow.forward(&sent(&flow, kind::SHUTDOWN));
        assert_eq!(flow.world.counts(destination), (0, 1), "{case}: shutdown");
    }
}

#[test]
fn every_scheduler_places_associations() {
    let picks = [
        Pick::Cursor,
        Pick::HashAddress,
        Pick::HashAddressPort,
        Pick::HashDestination,
        Pick::Lc,
        Pick::Wlc,
        Pick::Sed,
        Pick::Nq,
        Pick::Fo,
        Pick::Ovf,
        Pick::Twos,
        Pick::Lblc,
        Pick::Lblcr,
        Pick::IpvsSh,
        Pick::IpvsMh,
    ];
    for pick in picks {
        for (method, v6) in [(Forwarding::Dr, false), (Forwarding::Nat, true)] {
            let mut world = World::new();
            let mut spec = world.spec("web", vip(v6), SCTP, &[Ports::One(VIP_PORT)]);
            (spec.pick, spec.rules.counted) = (pick, pick.is_counted());
            world.service(&spec);
            world.clients_behind(GATEWAY);
            let mut all = Vec::new();
            for n in 0..3u8 {
                world.standing = Standing { ordinal: n.into(), weight: 100, ..Standing::DEFAULT };
                all.push(world.server(&spec, server(v6, 11 + n), 0, method));
            }
            world.slots("web", &all);
            world.servers("web", &all);
            let case = format!("{pick:?} {method:?}");
            for source in 1..20 {
                let packet = |kind_of| {
                    Packet::sctp((client(v6, 7), source), (vip(v6), VIP_PORT), 0, &[typical(kind_of)])
                };
                let to = world.goes_to(&case, &packet(kind::INIT));
                assert!(all.contains(&to), "{case}");
                assert_eq!(world.goes_to(&case, &packet(kind::COOKIE_ECHO)), to, "{case}: its flow");
            }
        }
    }
}

#[test]
fn a_client_keeps_its_server() {
    for v6 in [false, true] {
        let mut world = World::new();
        let timeout = world.ticks(300);
        let persistence = Some(Persistence {
            timeout,
            prefix_v4: 32,
            prefix_v6: 128,
            despite_weight_zero: false,
            sip: false,
        });
        let mut spec = world.spec("web", vip(v6), SCTP, &[Ports::One(VIP_PORT)]);
        spec.rules = Rules { persistence, ..Rules::default() };
        world.service(&spec);
        let all: Vec<_> = (0..5u8)
            .map(|n| {
                world.standing = Standing { ordinal: n.into(), ..Standing::DEFAULT };
                world.server(&spec, server(v6, 11 + n), 0, Forwarding::Dr)
            })
            .collect();
        world.slots("web", &all);
        world.servers("web", &all);
        let init =
            |source| Packet::sctp((client(v6, 7), source), (vip(v6), VIP_PORT), 0, &[typical(kind::INIT)]);
        let first = world.goes_to("first", &init(1));
        for source in 2..12 {
            assert_eq!(world.goes_to("again", &init(source)), first, "{source}");
        }
    }
}

#[test]
fn an_init_sent_again_finds_its_server_and_a_new_one_another_when_that_drains() {
    let mut world = World::new();
    let mut spec = world.spec("web", vip(false), SCTP, &[Ports::One(VIP_PORT)]);
    spec.rules.checked = true;
    world.service(&spec);
    let mut all = Vec::new();
    for n in 0..2u8 {
        world.standing = Standing { ordinal: n.into(), ..Standing::DEFAULT };
        all.push(world.server(&spec, server(false, 11 + n), 0, Forwarding::Dr));
    }
    world.slots("web", &all);
    world.servers("web", &all);
    let packet = |source, kind_of| {
        Packet::sctp((client(false, 7), source), (vip(false), VIP_PORT), 0, &[typical(kind_of)])
    };
    let of_first: Vec<u16> =
        (1..20).filter(|source| world.goes_to("before", &packet(*source, kind::INIT)) == all[0]).collect();
    assert!(!of_first.is_empty());
    world.standing = Standing { draining: true, ..Standing::DEFAULT };
    world.server(&spec, server(false, 11), 0, Forwarding::Dr);
    for source in of_first {
        assert_eq!(world.goes_to("INIT sent again", &packet(source, kind::INIT)), all[0]);
        assert_eq!(world.goes_to("its cookie", &packet(source, kind::COOKIE_ECHO)), all[0]);
        assert_eq!(world.goes_to("its data", &packet(source, kind::DATA)), all[0]);
        assert_eq!(world.goes_to("a new association", &packet(source, kind::INIT)), all[1]);
    }
}

#[test]
fn another_transport_is_not_taken_for_sctp() {
    let flow = flow(Method::Nat, false, |_| ());
    assert!(matches!(sent(&flow, kind::INIT).transport, Transport::Sctp { .. }));
    let mut flow = flow;
    let dccp = Packet::other(client(false, 7), vip(false), 33);
    flow.world.ends("DCCP", &dccp, Reason::OtherProtocol);
}

/// An ICMP error (IPv4, fragmentation needed) that quotes the ports and the verification tag of a packet.
fn too_big(from: std::net::IpAddr, about: &Packet) -> Packet {
    let mut body = vec![3, 4, 0, 0, 0, 0, 0x05, 0x00];
    body.extend(&about.ip()[..28]);
    let sum = crate::frame::checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Packet::other(from, about.source, 1).with(|p| p.payload = body)
}

/// Path MTU discovery: errors that quote an association go where its packets go.
#[test]
fn an_icmp_error_finds_the_association_that_it_quotes() {
    for method in [Method::Dr, Method::Nat, Method::FullNat] {
        let mut flow = flow(method, false, |_| ());
        establish(&mut flow);
        let case = flow.name();
        let lease = if method == Method::FullNat { flow.lease() } else { 0 };
        // Of the VIP's packet to the client: to the server.
        let (from, to) = ((vip(false), VIP_PORT), (client(false, 7), CLIENT_PORT));
        let about = Packet::sctp(from, to, OF_CLIENT, &[typical(kind::DATA)]);
        let packet = too_big(client(false, 254), &about);
        let seen = flow.world.send(&packet.bytes());
        assert_eq!(
            (seen.counted, &seen.events[..]),
            (Counted::In(flow.destination), &[Reason::IcmpToServer][..])
        );
        let inner = &seen.frame[14 + 28..];
        let expected = match method {
            Method::Nat => (flow.real, (flow.server_port(), CLIENT_PORT)),
            Method::FullNat => (flow.real, (flow.server_port(), lease)),
            _ => (vip(false), (VIP_PORT, CLIENT_PORT)),
        };
        let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
        let source = std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&inner[12..16]).unwrap());
        assert_eq!((source.into(), (port(20), port(22))), expected, "{case}");
        assert_eq!(inner[24..28], OF_CLIENT.to_be_bytes(), "{case}: the tag is no matter of ours");
        assert_eq!(crate::frame::checksum(&seen.frame[34..]), 0, "{case}: ICMP's checksum");
        if !method.translates() {
            continue;
        }
        // Of our packet to the server: to the client.
        let from =
            if method == Method::FullNat { (local(false), lease) } else { (client(false, 7), CLIENT_PORT) };
        let about = Packet::sctp(from, (flow.real, flow.server_port()), OF_SERVER, &[typical(kind::DATA)]);
        let packet = too_big(flow.real, &about).with(|p| p.from = mac_of(flow.real));
        let seen = flow.world.send(&packet.bytes());
        assert_eq!(
            (seen.counted, &seen.events[..]),
            (Counted::Out(flow.destination), &[Reason::IcmpToClient][..])
        );
        let inner = &seen.frame[14 + 28..];
        let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
        assert_eq!((port(20), port(22)), (CLIENT_PORT, VIP_PORT), "{case}");
        assert_eq!(crate::frame::checksum(&seen.frame[34..]), 0, "{case}: ICMP's checksum");
        // The same ports of TCP are nobody's.
        let tcp = Packet::tcp((vip(false), VIP_PORT), (client(false, 7), CLIENT_PORT), ACK);
        let packet = too_big(client(false, 254), &tcp);
        flow.world.ends(&case, &packet, Reason::IcmpNoFlow);
    }
}
