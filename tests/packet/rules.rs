//! Persistence, limits, refusal, drain: what a new flow must meet beyond a scheduler, and how flows are given up.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, matrix},
    frame::{ACK, FIN, Packet, RST, SYN, TCP, UDP},
    world::{Counted, World, client, server, vip},
};
use lb_agent::dataplane::{
    Ports,
    tables::{
        Access, DestinationKey, DestinationSpec, OnNextPacket, Persistence, Rules, ServiceSpec, Standing,
    },
};
use lb_common::{
    connection::Kind,
    destination::Forwarding,
    service::{NoServer, Pick},
    state::State,
    verdict::Reason,
};

fn sticky(world: &World, prefix_v4: u8, prefix_v6: u8) -> Persistence {
    Persistence { timeout: world.ticks(300), prefix_v4, prefix_v6, despite_weight_zero: false, sip: false }
}

/// A service on a port with DR servers, all in its slots and in its list.
fn service(
    world: &mut World,
    name: &str,
    v6: bool,
    port: u16,
    n: u16,
    rules: Rules,
) -> (ServiceSpec, Vec<u32>) {
    let mut spec = world.spec(name, vip(v6), TCP, &[Ports::One(port)]);
    (spec.pick, spec.rules) = (Pick::Cursor, rules);
    world.service(&spec);
    let mut all = Vec::new();
    for ordinal in 0..n {
        world.standing.ordinal = ordinal;
        all.push(world.server(&spec, server(v6, 11 + ordinal as u8), 0, Forwarding::Dr));
    }
    world.slots(name, &all);
    world.servers(name, &all);
    (spec, all)
}

fn syn(v6: bool, n: u8, source: u16, port: u16) -> Packet {
    Packet::tcp((client(v6, n), source), (vip(v6), port), SYN)
}

/// Gives the server behind a destination another standing.
fn stand(world: &mut World, spec: &ServiceSpec, n: u8, standing: Standing) {
    let v6 = spec.vip.is_ipv6();
    let key = DestinationKey::new(&spec.name, server(v6, 11 + n), 0, Forwarding::Dr);
    let next_hop = world.hop(server(v6, 11 + n));
    let timeout = spec.timeouts[State::Established as usize];
    let spec = DestinationSpec {
        next_hop,
        mtu: 1500,
        timeout,
        vip_port: 0,
        local: false,
        tunnel: Default::default(),
        standing,
    };
    world.tables.ensure_destination(&key, &spec).expect("destination");
}

fn standing(n: u8) -> Standing {
    Standing { ordinal: n.into(), ..Standing::DEFAULT }
}

#[test]
fn a_client_keeps_its_server_for_the_time_of_its_template_and_no_longer() {
    for v6 in [false, true] {
        let mut world = World::new();
        let rules = Rules { persistence: Some(sticky(&world, 32, 128)), ..Rules::default() };
        let (_, all) = service(&mut world, "web", v6, 80, 5, rules);
        let first = world.goes_to("first", &syn(v6, 7, 1, 80));
        for source in 2..12 {
            let seen = world.send(&syn(v6, 7, source, 80).bytes());
            assert_eq!(
                (seen.counted, &seen.events[..]),
                (Counted::In(first), &[Reason::FlowNew, Reason::FlowSticky][..])
            );
        }
        let others: std::collections::BTreeSet<_> =
            (20..40).map(|n| world.goes_to("another client", &syn(v6, n, 1, 80))).collect();
        assert_eq!(others.len(), all.len(), "other clients go anywhere");
        // The deadline is that of the first flow, whatever came later.
        let template = |world: &World| {
            world
                .entries()
                .into_iter()
                .find(|e| e.kind() == Kind::Template && e.destination() == first)
                .unwrap()
        };
        let before = template(&world).deadline();
        let left = before.wrapping_sub(world.plane.clock().tick().unwrap());
        assert!(left <= world.ticks(300) && left + 10 >= world.ticks(300), "{left}");
        world.rewrite_entries(|e| if e.kind() == Kind::Template { e.with_deadline(before - 40) } else { e });
        world.goes_to("again", &syn(v6, 7, 50, 80));
        assert_eq!(template(&world).deadline(), before - 40, "not armed again");
        let over = world.plane.clock().tick().unwrap().wrapping_sub(1);
        world.rewrite_entries(|e| if e.kind() == Kind::Template { e.with_deadline(over) } else { e });
        let seen = world.send(&syn(v6, 7, 51, 80).bytes());
        assert_eq!(seen.events, [Reason::FlowNew], "its time is over: scheduled");
    }
}

#[test]
fn clients_of_a_prefix_share_a_server() {
    for v6 in [false, true] {
        let mut world = World::new();
        let rules = Rules { persistence: Some(sticky(&world, 28, 124)), ..Rules::default() };
        service(&mut world, "web", v6, 80, 5, rules);
        let first = world.goes_to("first", &syn(v6, 0x40, 1, 80));
        for n in 0x41..0x50 {
            assert_eq!(world.goes_to("the same prefix", &syn(v6, n, 1, 80)), first, "{n}");
        }
        let seen = world.send(&syn(v6, 0x50, 1, 80).bytes());
        assert_eq!(seen.events, [Reason::FlowNew], "the next prefix has a template of its own");
    }
}

#[test]
fn endpoints_of_a_group_send_a_client_to_the_same_server() {
    for v6 in [false, true] {
        let mut world = World::new();
        let persistence = Some(sticky(&world, 32, 128));
        let rules = Rules { persistence, ..Rules::default() };
        let (_, web) = service(&mut world, "web", v6, 80, 5, rules.clone());
        let led = Rules { leader: Some("web".into()), ..rules.clone() };
        let (_, tls) = service(&mut world, "tls", v6, 443, 5, led);
        let (_, other) = service(&mut world, "other", v6, 8080, 5, rules);
        // So that the third service is elsewhere in its cycle.
        world.goes_to("a service of its own", &syn(v6, 99, 1, 8080));
        for n in 1..30 {
            let (one, two) = if n % 2 == 0 { (80, 443) } else { (443, 80) };
            let a = world.goes_to("one endpoint", &syn(v6, n, 1, one));
            let b = world.goes_to("the other", &syn(v6, n, 2, two));
            let (a, b) = if n % 2 == 0 { (a, b) } else { (b, a) };
            assert_eq!(web.iter().position(|d| *d == a), tls.iter().position(|d| *d == b), "client {n}");
        }
        let same = (1..30).filter(|n| {
            let a = world.goes_to("the group", &syn(v6, *n, 3, 80));
            let b = world.goes_to("a service of its own", &syn(v6, *n, 3, 8080));
            web.iter().position(|d| *d == a) == other.iter().position(|d| *d == b)
        });
        assert!(same.count() < 29, "the third service has templates of its own");
    }
}

#[test]
fn a_template_to_a_server_that_takes_no_flows_is_void() {
    for (case, standing_of) in [
        ("weight 0", Standing { weight: 0, ..standing(0) }),
        ("draining", Standing { draining: true, ..standing(0) }),
        ("given up", Standing { on_next_packet: OnNextPacket::Reset, ..standing(0) }),
    ] {
        for quiesced in [false, true] {
            let mut world = World::new();
            let mut persistence = sticky(&world, 32, 128);
            persistence.despite_weight_zero = quiesced;
            let rules = Rules { persistence: Some(persistence), checked: true, ..Rules::default() };
            let (spec, all) = service(&mut world, "web", false, 80, 2, rules);
            while world.goes_to("a client of the first server", &syn(false, 7, 1, 80)) != all[0] {
                world.forget_all();
            }
            stand(&mut world, &spec, 0, standing_of);
            world.forget_flows();
            let got = world.goes_to(case, &syn(false, 7, 2, 80));
            let stays = quiesced && case == "weight 0";
            assert_eq!(got, all[if stays { 0 } else { 1 }], "{case}, quiesced clients stay: {quiesced}");
            assert_eq!(world.goes_to(case, &syn(false, 7, 3, 80)), got, "{case}: and there it stays");
        }
    }
}

#[test]
fn a_draining_server_gets_no_new_flow_and_keeps_its_old_ones() {
    let mut world = World::new();
    let rules = Rules { checked: true, ..Rules::default() };
    let (spec, all) = service(&mut world, "web", false, 80, 2, rules);
    let mut packets = Vec::new();
    for source in 1..20 {
        let packet = syn(false, 7, source, 80);
        if world.goes_to("before", &packet) == all[0] {
            packets.push(source);
        }
    }
    stand(&mut world, &spec, 0, Standing { draining: true, ..standing(0) });
    for source in &packets {
        let again = syn(false, 7, *source, 80);
        assert_eq!(world.goes_to("a SYN sent again", &again), all[0]);
        let ack = Packet::tcp((client(false, 7), *source), (vip(false), 80), ACK);
        assert_eq!(world.goes_to("its flow", &ack), all[0]);
        let seen = world.send(&again.bytes());
        assert_eq!(
            (seen.counted, seen.events),
            (Counted::In(all[1]), vec![Reason::FlowMoved]),
            "a new connection"
        );
    }
    for source in 100..120 {
        assert_eq!(world.goes_to("new", &syn(false, 7, source, 80)), all[1]);
    }
}

#[test]
fn flows_of_a_server_that_was_given_up_are_reset_with_their_next_packet() {
    for (method, v6, udp) in matrix() {
        if udp {
            continue;
        }
        for tell in [false, true] {
            let mut flow = Flow::with(method, v6, false, |spec| spec.rules.checked = true);
            let case = format!("{} tell={tell}", flow.name());
            flow.establish();
            let reply = method.translates().then(|| flow.reply(ACK));
            let on_next_packet = if tell { OnNextPacket::ResetAndTell } else { OnNextPacket::Reset };
            flow.stand(Standing { on_next_packet, ..Standing::DEFAULT });
            let packet = flow.packet(ACK).payload(10);
            if tell {
                // The server is told by the packet itself, as a RST with its sequence.
                let told = flow.packet(RST).payload(10);
                let seen = flow.world.send(&packet.bytes());
                assert_eq!(
                    (seen.counted, &seen.events[..]),
                    (Counted::In(flow.destination), &[Reason::ServerTold][..]),
                    "{case}"
                );
                crate::world::same_frame(
                    &case,
                    &seen.frame,
                    &flow.towards_server(&told.with(|p| p.like(&packet))),
                );
                assert_eq!(flow.world.state(&case), State::Close, "{case}");
            }
            flow.world.ends(&case, &packet, Reason::FlowReset);
            let fin = flow.packet(FIN | ACK);
            flow.world.ends(&case, &fin, Reason::FlowReset);
            if let Some(reply) = reply {
                flow.world.ends(&format!("{case} reply"), &reply, Reason::FlowReset);
            }
            // A new connection on the same ports finds no server here.
            let syn = flow.packet(SYN);
            flow.world.ends(&case, &syn, Reason::NoServer);
        }
    }
}

#[test]
fn flows_that_move_go_to_another_server_with_their_next_packet_and_stay_there() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        let case = flow.name();
        flow.establish();
        let reply = method.translates().then(|| flow.reply(if udp { 0 } else { ACK }));
        let half_open = flow.packet_from(client(v6, 8), CLIENT_PORT, SYN);
        flow.world.goes_to(&case, &half_open);
        let other = flow.world.server(
            &flow.spec,
            server(method.real_is_v6(v6), 12),
            flow.real_port,
            method.forwarding(),
        );
        flow.world.slots("web", &[other]);
        flow.stand(Standing { on_next_packet: OnNextPacket::Move, draining: true, ..Standing::DEFAULT });
        if let Some(reply) = reply {
            let seen = flow.world.send(&reply.bytes());
            assert_eq!(
                seen.counted,
                Counted::Out(flow.destination),
                "{case}: what it still says is passed on"
            );
        }
        for (packet, name) in [(flow.packet(ACK), "established"), (half_open, "half-open")] {
            let seen = flow.world.send(&packet.bytes());
            assert_eq!(seen.counted, Counted::In(other), "{case}: {name}");
            assert_eq!(seen.events, [Reason::FlowMoved], "{case}: {name}");
            let seen = flow.world.send(&packet.bytes());
            assert_eq!(
                (seen.counted, &seen.events[..]),
                (Counted::In(other), &[][..]),
                "{case}: {name} stays"
            );
        }
    }
}

#[test]
fn a_reset_of_a_flow_that_would_move_goes_to_its_server() {
    for (method, v6, udp) in matrix() {
        if udp {
            continue;
        }
        let mut flow = Flow::new(method, v6, false);
        let case = flow.name();
        flow.establish();
        flow.world.slots("web", &[]);
        flow.stand(Standing { on_next_packet: OnNextPacket::Move, draining: true, ..Standing::DEFAULT });
        assert_eq!(flow.world.goes_to(&case, &flow.packet(RST | ACK)), flow.destination, "{case}");
        assert_eq!(flow.world.state(&case), State::Close, "{case}");
        // Without a server there is nowhere to go.
        flow.world.ends(&case, &flow.packet(ACK), Reason::NoServer);
    }
}

#[test]
fn udp_flows_of_a_server_that_was_given_up_move() {
    let mut world = World::new();
    let mut spec = world.spec("dns", vip(false), UDP, &[Ports::One(53)]);
    spec.rules.checked = true;
    world.service(&spec);
    let all: Vec<_> = (0..2).map(|n| world.server(&spec, server(false, 11 + n), 0, Forwarding::Dr)).collect();
    world.slots("dns", &all);
    let packet = |source| Packet::udp((client(false, 7), source), (vip(false), 53));
    for source in 1..10 {
        for _ in 0..2 {
            world.goes_to("before", &packet(source));
        }
    }
    stand(&mut world, &spec, 0, Standing { on_next_packet: OnNextPacket::Reset, ..standing(0) });
    for source in 1..10 {
        assert_eq!(world.goes_to("after", &packet(source)), all[1]);
    }
}

#[test]
fn a_service_without_a_server_answers_as_it_was_told() {
    for v6 in [false, true] {
        for udp in [false, true] {
            for (policy, tcp_reason, udp_reason) in [
                (NoServer::Drop, Reason::NoServer, Reason::NoServer),
                (NoServer::Reset, Reason::NoServerReset, Reason::NoServerUnreachable),
                (NoServer::Unreachable, Reason::NoServerUnreachable, Reason::NoServerUnreachable),
            ] {
                for checked in [false, true] {
                    let change = |spec: &mut ServiceSpec| {
                        (spec.rules.no_server, spec.rules.checked) = (policy, checked);
                    };
                    let mut flow = Flow::with(Method::Dr, v6, udp, change);
                    flow.world.slots("web", &[]);
                    let reason = if udp { udp_reason } else { tcp_reason };
                    let first = flow.first();
                    let seen = flow.world.ends(&format!("{policy:?} udp={udp} v6={v6}"), &first, reason);
                    if reason == Reason::NoServerReset {
                        // The RST acknowledges the SYN: flags are the frame's last but seven bytes.
                        let flags = seen.frame[seen.frame.len() - 7];
                        assert_eq!(flags, RST | ACK, "v6={v6}");
                    } else if reason == Reason::NoServerUnreachable {
                        let icmp = 14 + if v6 { 40 } else { 20 };
                        let expected = if v6 { [1, 4] } else { [3, 3] };
                        assert_eq!(seen.frame[icmp..icmp + 2], expected, "v6={v6}");
                    }
                }
            }
        }
    }
}

#[test]
fn access_lists_are_asked_for_new_flows_only_and_the_longest_prefix_decides() {
    for v6 in [false, true] {
        let net = |n: &str| n.parse().unwrap();
        let rules: Vec<_> = if v6 {
            vec![(net("2001:db8:7::/48"), Access::Deny), (net("2001:db8:7::8/125"), Access::Allow)]
        } else {
            vec![(net("198.51.100.0/24"), Access::Deny), (net("198.51.100.8/29"), Access::Allow)]
        };
        for others in [Access::Allow, Access::Deny] {
            let mut world = World::new();
            let access = Some((9, others));
            let (_, all) = service(&mut world, "web", v6, 80, 1, Rules { access, ..Rules::default() });
            world.goes_to_if("before the list", &syn(v6, 7, 1, 80), others == Access::Allow);
            world.tables.set_access_list(9, &rules).unwrap();
            world
                .tables
                .set_access_list(10, &[(net("0.0.0.0/0"), Access::Allow), (net("::/0"), Access::Allow)])
                .unwrap();
            world.ends("denied", &syn(v6, 7, 2, 80), Reason::AccessDenied);
            world.ends("denied", &syn(v6, 16, 2, 80), Reason::AccessDenied);
            assert_eq!(world.goes_to("allowed within it", &syn(v6, 8, 2, 80)), all[0]);
            assert_eq!(world.goes_to("allowed within it", &syn(v6, 15, 2, 80)), all[0]);
            if others == Access::Allow {
                let ack = Packet::tcp((client(v6, 7), 1), (vip(v6), 80), ACK);
                assert_eq!(world.goes_to("a flow from before", &ack), all[0]);
            }
            let stranger = if v6 { "2001:db8:99::1" } else { "203.0.113.77" };
            let packet = Packet::tcp((stranger.parse().unwrap(), 1), (vip(v6), 80), SYN);
            world.goes_to_if("not named", &packet, others == Access::Allow);
        }
    }
}

#[test]
fn new_flows_of_a_second_are_limited_and_known_ones_are_not() {
    let mut world = World::new();
    let rules = Rules { new_per_second: 10, ..Rules::default() };
    service(&mut world, "web", false, 80, 2, rules);
    // The second may end meanwhile: then as many once more.
    let mut outcomes = Vec::new();
    for source in 1..=60 {
        outcomes.push(world.send(&syn(false, 7, source, 80).bytes()).counted);
    }
    let went = outcomes.iter().filter(|c| matches!(c, Counted::In(_))).count();
    assert!((10..=30).contains(&went), "{went} of 60");
    assert!(outcomes.contains(&Counted::Reason(Reason::NewFlowsLimited)));
    let ack = Packet::tcp((client(false, 7), 1), (vip(false), 80), ACK);
    for _ in 0..60 {
        world.goes_to("a known flow", &ack);
    }
}

#[test]
fn packets_of_a_second_are_limited_at_a_destination_that_says_so() {
    for method in Method::ALL {
        let mut flow = Flow::new(method, false, false);
        flow.establish();
        flow.stand(Standing { packets_per_second: 10, ..Standing::DEFAULT });
        let packet = flow.packet(ACK);
        let mut went = 0;
        for _ in 0..60 {
            match flow.world.send(&packet.bytes()).counted {
                Counted::In(_) => went += 1,
                other => assert_eq!(other, Counted::Reason(Reason::PacketsLimited), "{method:?}"),
            }
        }
        assert!((10..=30).contains(&went), "{method:?}: {went} of 60");
    }
}

#[test]
fn one_packet_scheduling_remembers_nothing() {
    for (method, v6) in
        [(Method::Dr, false), (Method::Dr, true), (Method::TunV4, false), (Method::TunV6, true)]
    {
        let mut flow = Flow::with(method, v6, true, |spec| spec.rules.one_packet = true);
        for _ in 0..3 {
            let seen = flow.forward(&flow.first());
            assert_eq!(seen.events, [Reason::OnePacket]);
        }
        assert!(flow.world.entries().is_empty(), "{}", flow.name());
    }
}

/// A datagram with this payload.
fn datagram(source: (u8, u16), port: u16, payload: &[u8]) -> Packet {
    Packet::udp((client(false, source.0), source.1), (vip(false), port))
        .with(|p| p.payload = payload.to_vec())
}

fn udp_service(world: &mut World, port: u16, rules: Rules) -> Vec<u32> {
    let mut spec = world.spec("udp", vip(false), UDP, &[Ports::One(port)]);
    spec.rules = rules;
    world.service(&spec);
    let all: Vec<_> = (0..5).map(|n| world.server(&spec, server(false, 11 + n), 0, Forwarding::Dr)).collect();
    world.slots("udp", &all);
    all
}

#[test]
fn a_quic_packet_of_no_flow_goes_to_the_server_in_its_connection_id() {
    for (offset, len) in [(0u8, 1u8), (1, 2), (1, 8), (12, 8), (3, 4)] {
        let mut world = World::new();
        let rules =
            Rules { quic: Some(lb_agent::dataplane::tables::Quic { offset, len }), ..Rules::default() };
        let all = udp_service(&mut world, 443, rules);
        let id = |n: usize| (0..len).map(|i| 0x10 + n as u8 * 16 + i).collect::<Vec<u8>>();
        let ids: Vec<_> = all.iter().enumerate().map(|(n, d)| (id(n), *d)).collect();
        world.tables.set_quic_ids("udp", &ids).unwrap();
        let short = |n: usize| {
            let mut bytes = vec![0x40];
            bytes.extend(vec![0xee; offset.into()]);
            bytes.extend(id(n));
            bytes.extend([0x77; 24]);
            bytes
        };
        for (n, destination) in all.iter().enumerate() {
            for source in [(7, 1000 + n as u16), (8, 50 + n as u16), (9, 1)] {
                world.forget_all();
                let packet = datagram(source, 443, &short(n));
                assert_eq!(world.goes_to("an address never seen", &packet), *destination);
                let other = datagram(source, 443, &short((n + 1) % 5));
                assert_eq!(world.goes_to("a known flow", &other), *destination);
            }
        }
        // A long header, an id of nobody, and too short a packet go by the scheduler: rr passes them round.
        let mut long = short(0);
        long[0] |= 0x80;
        let mut strange = short(0);
        strange[1 + usize::from(offset)] = 0xff;
        for (n, payload) in [long, strange, vec![0x40], vec![]].iter().enumerate() {
            let mut got = std::collections::BTreeSet::new();
            for source in 0..5 {
                let from = (20 + n as u8, 100 + source);
                got.insert(world.goes_to("by the scheduler", &datagram(from, 443, payload)));
            }
            assert_eq!(got.len(), 5, "case {n}");
        }
    }
}

#[test]
fn messages_of_a_sip_call_go_to_one_server_whoever_sends_them() {
    let mut world = World::new();
    let persistence = Some(Persistence { sip: true, ..sticky(&world, 32, 128) });
    let all = udp_service(&mut world, 5060, Rules { persistence, ..Rules::default() });
    let message = |header: &str| {
        format!(
            "INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP host;branch=z9\r\n{header}\r\nCSeq: 1 INVITE\r\n\r\n"
        )
    };
    let mut source = 1;
    let mut go = |world: &mut World, header: &str| {
        source += 1;
        world.goes_to(header, &datagram((7 + (source % 9) as u8, source), 5060, message(header).as_bytes()))
    };
    let first = go(&mut world, "Call-ID: abc123@host");
    for header in [
        "Call-ID: abc123@host",
        "call-id:abc123@host",
        "CALL-ID :\tabc123@host",
        "i: abc123@host",
        "I:abc123@host",
    ] {
        assert_eq!(go(&mut world, header), first, "{header}");
    }
    let others: std::collections::BTreeSet<_> =
        (0..20).map(|n| go(&mut world, &format!("Call-ID: other{n}"))).collect();
    assert_eq!(others.len(), all.len());
    let none = [
        message("X-Call-ID: abc123@host"),
        message("Subject: Call-ID: abc123@host"),
        message("Call-ID:"),
        "\r\n\r\n".into(),
        String::new(),
        message("\r\nCall-ID: in the body"),
    ];
    for (n, text) in (0..).zip(none) {
        world.ends(&text, &datagram((99, 2000 + n), 5060, text.as_bytes()), Reason::NoCallId);
    }
    assert_eq!(world.connections().len(), 26);
}
