//! What only NAT and FULLNAT have: replies that pass us, the way back to the client, local ports.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, REAL_PORT, VIP_PORT},
    frame::{ACK, FIN, Mac, Packet, RST, SYN, TCP, Tag, Transport, framed},
    world::{
        Counted, DIRECTOR, GATEWAY, INGRESS, client, hop_record, local, mac_of, same_frame, server, vip,
    },
};
use lb_agent::dataplane::{
    Ports,
    dump::FlowState,
    tables::{ClientVia, NextHopKey},
};
use lb_common::{
    connection::Value, destination::Forwarding, lease::port_share, state::State, verdict::Reason,
};
use std::{collections::BTreeSet, net::IpAddr, sync::atomic::Ordering::SeqCst};

const TRANSLATING: [Method; 2] = [Method::Nat, Method::FullNat];

/// The client itself, on a segment of ours.
const CLIENT: Mac = [2, 0, 0, 0, 0xcc, 7];

#[test]
fn a_client_on_a_segment_of_ours_is_answered_where_its_frame_came_from() {
    let cases: [(&[Tag], &[Tag]); 3] = [
        (&[], &[]),
        (&[(0x8100, 0x6064)], &[(0x8100, 0x0064)]),
        (&[(0x88a8, 0x2065), (0x8100, 0xe066)], &[(0x88a8, 0x0065), (0x8100, 0x0066)]),
    ];
    for method in TRANSLATING {
        for v6 in [false, true] {
            // Without a route, too, the sender of the frame is as good as any.
            for routed in [true, false] {
                let mut flow = Flow::new(method, v6, false);
                let on_link =
                    [("198.51.100.0/24", ClientVia::OnLink), ("2001:db8:7::/64", ClientVia::OnLink)];
                let routes: Vec<_> =
                    on_link.into_iter().map(|(net, via)| (net.parse().unwrap(), via)).collect();
                flow.world.tables.set_client_routes(if routed { &routes } else { &[] }).unwrap();
                for (tags, back) in cases {
                    flow.world.forget_all();
                    let case = format!("{} routed={routed} {tags:x?}", flow.name());
                    let packet = flow.first().tagged(tags).with(|p| p.from = CLIENT);
                    let seen = flow.world.send(&packet.bytes());
                    assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
                    let reply = flow.reply(SYN | ACK);
                    let seen = flow.world.send(&reply.bytes());
                    assert_eq!(seen.counted, Counted::Out(flow.destination), "{case}");
                    let ip = flow.towards_client(&reply).split_off(14);
                    same_frame(&case, &seen.frame, &framed(CLIENT, DIRECTOR, back, &ip));
                }
            }
        }
    }
}

#[test]
fn a_clients_gateway_is_the_longest_prefixs_and_its_mac_may_change() {
    for method in TRANSLATING {
        for v6 in [false, true] {
            let mut flow = Flow::new(method, v6, false);
            let (near, far): (IpAddr, IpAddr) = (server(v6, 253), server(v6, 254));
            let mut index = |neighbour, mac| {
                let key = NextHopKey { neighbour, ifindex: INGRESS, vlans: [0, 0], for_clients: true };
                flow.world.tables.set_next_hop(&key, &hop_record(mac, INGRESS, [0, 0])).unwrap()
            };
            let (near_index, far_index) = (index(near, [2, 0, 0, 0, 1, 1]), index(far, [2, 0, 0, 0, 2, 2]));
            let prefix = |v4: &str, v6_prefix: &str| if v6 { v6_prefix } else { v4 }.parse().unwrap();
            let routes = [
                (prefix("0.0.0.0/0", "::/0"), ClientVia::NextHop(far_index)),
                (prefix("198.51.100.0/24", "2001:db8:7::/64"), ClientVia::NextHop(near_index)),
            ];
            flow.world.tables.set_client_routes(&routes).unwrap();
            flow.forward(&flow.first());
            let case = flow.name();
            let reply = flow.reply(SYN | ACK);
            let ip = flow.towards_client(&reply).split_off(14);
            for mac in [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 9, 9]] {
                let key = NextHopKey { neighbour: near, ifindex: INGRESS, vlans: [0, 0], for_clients: true };
                flow.world.tables.set_next_hop(&key, &hop_record(mac, INGRESS, [0, 0])).unwrap();
                let expected = framed(mac, DIRECTOR, &[], &ip);
                flow.world.forwards(&case, &reply, Counted::Out(flow.destination), &expected);
            }
            let key = NextHopKey { neighbour: near, ifindex: INGRESS, vlans: [0, 0], for_clients: true };
            flow.world.tables.set_next_hop(&key, &hop_record([0; 6], 0, [0, 0])).unwrap();
            flow.world.ends("its gateway is not resolved", &reply, Reason::NoClientHop);
        }
    }
}

/// A second service that ends at the same real server and port.
fn second_service(flow: &mut Flow, servers: &[u8]) -> Vec<u32> {
    let spec = flow.world.spec("other", vip(flow.v6), TCP, &[Ports::One(81)]);
    flow.world.service(&spec);
    let destinations: Vec<u32> = servers
        .iter()
        .map(|n| flow.world.server(&spec, server(flow.v6, *n), REAL_PORT, Forwarding::Nat))
        .collect();
    flow.world.slots("other", &destinations);
    destinations
}

#[test]
fn two_nat_flows_that_a_server_could_not_tell_apart_get_different_servers() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        let destinations = second_service(&mut flow, &[11, 12]);
        flow.establish();
        let packet = Packet::tcp((client(v6, 7), CLIENT_PORT), (vip(v6), 81), SYN);
        assert_eq!(flow.world.goes_to("the same client and port", &packet), destinations[1]);
        // Both flows are answered, each from its own VIP port.
        flow.answer(&flow_reply(&flow, 11));
        let reply = flow_reply(&flow, 12).with(|p| p.from = mac_of(server(v6, 12)));
        let seen = flow.world.send(&reply.bytes());
        assert_eq!(seen.counted, Counted::Out(destinations[1]));
        let mut expected = reply.clone().with(|p| {
            (p.to, p.from) = (GATEWAY, DIRECTOR);
            p.ttl -= 1;
            p.source = vip(v6);
        });
        expected.set_ports((81, CLIENT_PORT));
        same_frame("the other service's reply", &seen.frame, &expected.bytes());
    }
}

/// A reply of server `n` to the client of the cases, without asking the dump.
fn flow_reply(flow: &Flow, n: u8) -> Packet {
    let from = server(flow.v6, n);
    Packet::tcp((from, REAL_PORT), (client(flow.v6, 7), CLIENT_PORT), ACK).with(|p| p.from = mac_of(from))
}

#[test]
fn a_nat_flow_that_no_server_could_tell_from_another_is_refused() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        second_service(&mut flow, &[11]);
        flow.establish();
        let packet = Packet::tcp((client(v6, 7), CLIENT_PORT), (vip(v6), 81), SYN);
        flow.world.ends("the same client and port", &packet, Reason::ReplyConflict);
        assert_eq!(flow.world.entries().len(), 2, "nothing was left of it");
        let beside = Packet::tcp((client(v6, 7), CLIENT_PORT + 1), (vip(v6), 81), SYN);
        flow.world.goes_to("another port of the client", &beside);
        flow.world.expire_all();
        flow.world.goes_to("when the other flow is over", &packet);
    }
}

#[test]
fn a_nat_flow_that_is_over_gives_its_replies_to_the_next_one() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        let destinations = second_service(&mut flow, &[11, 12]);
        flow.establish();
        flow.forward(&flow.packet(RST));
        let packet = Packet::tcp((client(v6, 7), CLIENT_PORT), (vip(v6), 81), SYN);
        assert_eq!(flow.world.goes_to("the same client, port and server", &packet), destinations[0]);
        let seen = flow.world.send(&flow_reply(&flow, 11).bytes());
        assert_eq!(seen.counted, Counted::Out(destinations[0]), "the reply is the new flow's");
        // What comes late of the old flow does not touch it.
        flow.forward(&flow.packet(RST));
        let seen = flow.world.send(&flow_reply(&flow, 11).bytes());
        assert_eq!(seen.counted, Counted::Out(destinations[0]), "and stays it");
    }
}

#[test]
fn a_reply_that_belongs_to_no_flow_passes() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        flow.establish();
        let reply = flow.reply(ACK);
        for (case, packet) in [
            ("another client", reply.clone().with(|p| p.destination = client(v6, 8))),
            ("another client port", reply.clone().with(|p| p.set_ports((REAL_PORT, CLIENT_PORT + 1)))),
            ("another server port", reply.clone().with(|p| p.set_ports((REAL_PORT + 1, CLIENT_PORT)))),
            ("UDP", Packet::udp((flow.real, REAL_PORT), (client(v6, 7), CLIENT_PORT))),
        ] {
            flow.world.ends(case, &packet, Reason::ServerTraffic);
        }
        let stranger = reply.clone().with(|p| p.source = server(v6, 12));
        flow.world.ends("another server", &stranger, Reason::NotOurs);
        flow.answer(&reply);
    }
}

#[test]
fn leases_lie_in_this_directors_share_of_the_ports() {
    for v6 in [false, true] {
        for share in [(1, 1), (1, 2), (2, 2), (3, 4)] {
            let mut flow = Flow::new(Method::FullNat, v6, false);
            flow.world.pool(local(v6), share);
            let (first, count) = port_share(share.0, share.1);
            let count = u32::from(count);
            for port in 0..150 {
                let packet = flow.packet_from(client(v6, 7), 30_000 + port, SYN);
                flow.world.goes_to("FULLNAT", &packet);
            }
            let leases: BTreeSet<u16> =
                flow.world.connections().iter().map(|c| c.local.expect("a lease").port()).collect();
            assert_eq!(leases.len(), 150, "each flow has a port of its own");
            for port in leases {
                let offset = u32::from(port).checked_sub(first.into()).expect("not below the share");
                assert!(offset < count, "port {port} is outside {first}+{count} of share {share:?}");
            }
        }
    }
}

#[test]
fn clients_with_the_same_port_do_not_mix_behind_fullnat() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let mut flow = Flow::new(Method::FullNat, v6, udp);
            let clients: Vec<IpAddr> = (1..=20).map(|n| client(v6, n)).collect();
            for address in &clients {
                let packet = flow.packet_from(*address, CLIENT_PORT, SYN);
                flow.world.goes_to("FULLNAT", &packet);
            }
            let connections = flow.world.connections();
            assert_eq!(connections.len(), clients.len());
            for connection in connections {
                let lease = connection.local.unwrap().port();
                let (from, to) = ((flow.real, REAL_PORT), (local(v6), lease));
                let reply = if udp { Packet::udp(from, to) } else { Packet::tcp(from, to, ACK) };
                let reply = reply.with(|p| p.from = mac_of(flow.real));
                let mut expected = reply.clone().with(|p| {
                    (p.to, p.from) = (GATEWAY, DIRECTOR);
                    p.ttl -= 1;
                    (p.source, p.destination) = (vip(v6), connection.client.ip());
                });
                expected.set_ports((VIP_PORT, CLIENT_PORT));
                flow.world.forwards("reply", &reply, Counted::Out(flow.destination), &expected.bytes());
            }
        }
    }
}

#[test]
fn only_the_flows_own_server_reaches_a_lease() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::FullNat, v6, false);
        flow.establish();
        let reply = flow.reply(ACK);
        let lease = reply.ports().1;
        for (case, packet) in [
            ("another server", reply.clone().with(|p| p.source = server(v6, 12))),
            ("another port of the server", reply.clone().with(|p| p.set_ports((REAL_PORT + 1, lease)))),
            ("a client", Packet::tcp((client(v6, 7), CLIENT_PORT), (local(v6), lease), SYN)),
            ("UDP", Packet::udp((flow.real, REAL_PORT), (local(v6), lease))),
        ] {
            flow.world.ends(case, &packet, Reason::WrongServer);
        }
        let beside = reply.clone().with(|p| p.set_ports((REAL_PORT, lease.wrapping_add(1).max(1024))));
        flow.world.ends("a port that nobody leased", &beside, Reason::NoLease);
        flow.answer(&reply);
        for (case, packet, reason) in [
            ("ICMP", Packet::other(flow.real, local(v6), if v6 { 58 } else { 1 }), Reason::Icmp),
            ("GRE", Packet::other(flow.real, local(v6), 47), Reason::OtherProtocol),
        ] {
            flow.world.ends(case, &packet, reason);
        }
        flow.world.expire_all();
        flow.world.ends("when the flow is over", &reply, Reason::NoLease);
    }
}

#[test]
fn without_a_free_local_port_a_new_flow_is_refused() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::FullNat, v6, false);
        flow.establish();
        let views = flow.world.views();
        // Every port is another flow's.
        let taken = Value(views.leases.word(u32::from(flow.lease()), 8).load(SeqCst));
        for lease in 0..1 << 16 {
            views.leases.word(lease, 8).store(taken.0, SeqCst);
        }
        let packet = flow.packet_from(client(v6, 8), CLIENT_PORT, SYN);
        flow.world.ends("every port is leased", &packet, Reason::NoLocalPort);
        assert_eq!(flow.world.entries().len(), 1, "nothing was left of it");
        flow.forward(&flow.packet(ACK));
        // One is over: expired is free. Sixteen probes find it now and then.
        for lease in (0..1 << 16).filter(|lease| lease % 4 == 0 && *lease != u32::from(flow.lease())) {
            let past = flow.world.plane.clock().tick().unwrap().wrapping_sub(1);
            views.leases.word(lease, 8).store(taken.with(taken.state(), past).0, SeqCst);
        }
        let found = (1000..1020)
            .filter(|port| {
                let packet = flow.packet_from(client(v6, 8), *port, SYN);
                matches!(flow.world.send(&packet.bytes()).counted, Counted::In(_))
            })
            .count();
        assert!(found >= 15, "only {found} of 20 flows found one of the free quarter of ports");
        let mut flow = Flow::with(Method::FullNat, v6, false, |spec| spec.pool = None);
        let packet = flow.first();
        flow.world.ends("no pool", &packet, Reason::NoLocalPort);
    }
}

#[test]
fn a_fullnat_flow_whose_lease_was_lost_gets_another() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::FullNat, v6, false);
        flow.establish();
        let lost = flow.lease();
        flow.world.views().leases.word(lost.into(), 8).store(0, SeqCst);
        let packet = flow.packet(ACK);
        let seen = flow.forward(&packet);
        assert_eq!(seen.events, [Reason::FlowReplaced]);
        flow.answer(&flow.reply(ACK));
        // Another flow's by now: its owner is asked, not only whether it is taken.
        let lease = flow.lease();
        let line = flow.world.views();
        let owner = line.leases.word(lease.into(), 0);
        owner.store(owner.load(SeqCst) ^ 1, SeqCst);
        let seen = flow.world.send(&packet.bytes());
        assert_eq!(seen.counted, Counted::In(flow.destination));
        assert_eq!(seen.events, [Reason::FlowReplaced]);
        assert_ne!(flow.lease(), lease);
    }
}

/// The client took its port again for a new connection, which another server got. What the old server still
/// sends goes to the client (NAT), whose stack knows what is old, or ends here (FULLNAT), and changes nothing of
/// the new flow.
#[test]
fn a_late_packet_of_the_old_server_does_not_touch_the_flow_that_took_its_ports() {
    for method in TRANSLATING {
        for v6 in [false, true] {
            let mut flow = Flow::new(method, v6, false);
            let case = flow.name();
            flow.establish();
            let late = [flow.reply(RST | ACK), flow.reply(FIN | ACK)];
            let old = flow.destination;
            flow.answer(&flow.reply(FIN | ACK));
            flow.forward(&flow.packet(FIN | ACK));
            assert_eq!(flow.world.state(&case), State::TimeWait, "{case}");
            let new = flow.world.server(&flow.spec, server(v6, 12), REAL_PORT, method.forwarding());
            flow.world.slots("web", &[new]);
            assert_eq!(flow.world.goes_to(&case, &flow.packet(SYN)), new, "{case}");
            (flow.destination, flow.real) = (new, server(v6, 12));
            flow.answer(&flow.reply(SYN | ACK));
            flow.forward(&flow.packet(ACK));
            // A while later: the old pair's deadline would be written again.
            flow.world.end_all_in(20);
            let before = flow.world.connection(&case);
            for packet in late {
                if matches!(method, Method::FullNat) {
                    // Its lease was given back when the flow began anew, and taken again by it: the search for
                    // a port begins at the same place.
                    flow.world.ends(&case, &packet, Reason::WrongServer);
                } else {
                    let expected = flow.towards_client(&packet);
                    flow.world.forwards(&case, &packet, Counted::Out(old), &expected);
                }
                let after = flow.world.connection(&case);
                assert_eq!(
                    (after.state, after.destination),
                    (FlowState::Common(State::Established), new),
                    "{case}"
                );
                assert!(before.expires_in.abs_diff(after.expires_in).as_secs() < 5, "{case}");
            }
        }
    }
}

#[test]
fn a_pair_is_refreshed_and_ends_together() {
    for method in TRANSLATING {
        let mut flow = Flow::new(method, false, false);
        flow.establish();
        flow.world.end_all_in(8);
        let reply = flow.reply(ACK);
        // The reply alone keeps both alive.
        flow.answer(&reply);
        let timeout = flow.spec.timeouts[State::Established as usize];
        let now = flow.world.plane.clock().tick().unwrap();
        let mut pair: Vec<Value> = flow.world.entries();
        if method == Method::FullNat {
            pair.push(flow.world.views().lease_word(u32::from(reply.ports().1)));
        }
        assert_eq!(pair.len(), 2, "{method:?}");
        assert!(
            pair.iter().all(|word| word.deadline().wrapping_sub(now) >= timeout - 1),
            "{method:?}: {pair:?}"
        );
        assert_eq!(pair[0].deadline(), pair[1].deadline(), "{method:?}");
    }
}

#[test]
fn tcp_urgent_and_options_are_left_alone_by_translation() {
    for method in TRANSLATING {
        for v6 in [false, true] {
            let mut flow = Flow::new(method, v6, false);
            let packet = flow.first().with(|p| {
                if let Transport::Tcp { options, .. } = &mut p.transport {
                    *options = vec![2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
                }
            });
            flow.forward(&packet);
        }
    }
}
