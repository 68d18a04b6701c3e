//! Which service a port leads to, and which server a flow gets.

use crate::{
    flows::{CLIENT_PORT, Flow, Method},
    frame::{ACK, Packet, SYN, TCP, UDP},
    world::{World, client, server, vip},
};
use lb_agent::dataplane::{Ports, tables::DestinationKey};
use lb_common::{
    destination::Forwarding,
    hash::{slot_hash, slot_of_hash},
    service::Pick,
    state::State,
    verdict::Reason,
};
use std::collections::BTreeSet;

/// A DR service with `n` servers; their destinations.
fn servers(world: &mut World, v6: bool, pick: Pick, n: u8) -> Vec<u32> {
    let mut spec = world.spec("web", vip(v6), TCP, &[Ports::One(80)]);
    spec.pick = pick;
    world.service(&spec);
    (0..n).map(|i| world.server(&spec, server(v6, 11 + i), 0, Forwarding::Dr)).collect()
}

fn syn(v6: bool, n: u8, port: u16) -> Packet {
    Packet::tcp((client(v6, n), port), (vip(v6), 80), SYN)
}

#[test]
fn rr_and_wrr_give_new_flows_the_slots_in_their_order() {
    for v6 in [false, true] {
        let mut world = World::new();
        let d = servers(&mut world, v6, Pick::Cursor, 3);
        for (name, slots) in [
            ("rr", vec![d[0], d[1], d[2]]),
            ("wrr 5:1:1", vec![d[0], d[0], d[0], d[1], d[0], d[2], d[0]]),
            ("one", vec![d[2]]),
        ] {
            world.slots("web", &slots);
            let mut got = Vec::new();
            for port in 0..3 * slots.len() as u16 {
                let packet = syn(v6, 7, 20_000 + port + 100 * slots.len() as u16);
                got.push(world.goes_to(name, &packet));
                // The flow stays where it is, and moves nothing on.
                let later =
                    packet.with(|p| *p = Packet::tcp((p.source, p.ports().0), (p.destination, 80), ACK));
                assert_eq!(world.goes_to(name, &later), *got.last().unwrap(), "{name}");
            }
            // The cursor goes on from where it was: any rotation is right.
            let cycle: Vec<u32> = slots.iter().cycle().take(got.len() + slots.len()).copied().collect();
            assert!(
                (0..slots.len()).any(|at| cycle[at..at + got.len()] == got),
                "{name}: {got:?}, slots {slots:?}"
            );
        }
    }
}

#[test]
fn a_hash_service_sends_a_client_to_the_slot_of_its_address_whatever_the_port() {
    for v6 in [false, true] {
        let mut world = World::new();
        let d = servers(&mut world, v6, Pick::HashAddress, 5);
        world.slots("web", &d);
        let mut used = BTreeSet::new();
        for n in 1..60 {
            let source = lb_common::address::Address::from(client(v6, n)).halves();
            let expected = d[slot_of_hash(slot_hash(source, 0), 5) as usize];
            used.insert(expected);
            for port in [1, 1024, 40_000] {
                assert_eq!(world.goes_to("sh", &syn(v6, n, port)), expected, "client {n} port {port}");
            }
        }
        assert_eq!(used.len(), 5, "59 clients reach every server");
    }
}

#[test]
fn a_hash_over_address_and_port_spreads_one_client_over_the_servers() {
    for v6 in [false, true] {
        let mut world = World::new();
        let d = servers(&mut world, v6, Pick::HashAddressPort, 5);
        world.slots("web", &d);
        let mut used = BTreeSet::new();
        for port in 1000..1060u16 {
            let source = lb_common::address::Address::from(client(v6, 7)).halves();
            let expected = d[slot_of_hash(slot_hash(source, port.to_be()), 5) as usize];
            used.insert(expected);
            assert_eq!(world.goes_to("sh with port", &syn(v6, 7, port)), expected, "port {port}");
        }
        assert_eq!(used.len(), 5, "60 flows of a client reach every server");
    }
}

#[test]
fn an_exact_port_beats_a_range_and_a_range_beats_any() {
    for v6 in [false, true] {
        let mut world = World::new();
        let mut destinations = Vec::new();
        for (n, (name, protocol, ports)) in [
            ("exact", TCP, vec![Ports::One(80), Ports::One(8050)]),
            ("range", TCP, vec![Ports::Range(8000, 8099), Ports::Range(9000, 9000)]),
            ("any", TCP, vec![Ports::Any]),
            ("udp", UDP, vec![Ports::Range(8000, 8099)]),
        ]
        .into_iter()
        .enumerate()
        {
            let spec = world.spec(name, vip(v6), protocol, &ports);
            world.service(&spec);
            let destination = world.server(&spec, server(v6, 11 + n as u8), 0, Forwarding::Dr);
            world.slots(name, &[destination]);
            destinations.push(destination);
        }
        for (port, service) in [
            (80, 0),
            (8050, 0),
            (8000, 1),
            (8049, 1),
            (8051, 1),
            (8099, 1),
            (9000, 1),
            (7999, 2),
            (8100, 2),
            (8999, 2),
            (9001, 2),
            (1, 2),
            (65_535, 2),
        ] {
            let packet = Packet::tcp((client(v6, 7), 40_000), (vip(v6), port), SYN);
            assert_eq!(world.goes_to("TCP", &packet), destinations[service], "port {port}");
        }
        let from = (client(v6, 7), 40_000);
        let packet = Packet::udp(from, (vip(v6), 8000));
        assert_eq!(world.goes_to("UDP", &packet), destinations[3], "the protocols have ranges of their own");
        world.ends("UDP beside its range", &Packet::udp(from, (vip(v6), 80)), Reason::NoService);
        // Without the service of any port the others stay.
        world.tables.unbind("any").unwrap();
        let beside = Packet::tcp((client(v6, 7), 40_001), (vip(v6), 7999), SYN);
        world.ends("TCP beside every range", &beside, Reason::NoService);
        let inside = Packet::tcp((client(v6, 7), 40_001), (vip(v6), 8001), SYN);
        assert_eq!(world.goes_to("TCP in the range", &inside), destinations[1]);
    }
}

#[test]
fn services_of_one_address_in_both_protocols_have_flows_of_their_own() {
    for v6 in [false, true] {
        let mut world = World::new();
        let mut destinations = Vec::new();
        for (n, protocol) in [TCP, UDP].into_iter().enumerate() {
            let name = if protocol == TCP { "tcp" } else { "udp" };
            let spec = world.spec(name, vip(v6), protocol, &[Ports::One(53)]);
            world.service(&spec);
            let destination = world.server(&spec, server(v6, 11 + n as u8), 0, Forwarding::Dr);
            world.slots(name, &[destination]);
            destinations.push(destination);
        }
        let (from, to) = ((client(v6, 7), 40_000), (vip(v6), 53));
        assert_eq!(world.goes_to("TCP", &Packet::tcp(from, to, SYN)), destinations[0]);
        assert_eq!(world.goes_to("UDP", &Packet::udp(from, to)), destinations[1]);
        assert_eq!(world.goes_to("TCP", &Packet::tcp(from, to, ACK)), destinations[0]);
        assert_eq!(world.goes_to("UDP", &Packet::udp(from, to)), destinations[1]);
        assert_eq!(world.connections().len(), 2);
    }
}

#[test]
fn without_a_server_new_flows_are_dropped() {
    for v6 in [false, true] {
        for pick in [Pick::Cursor, Pick::HashAddress, Pick::HashAddressPort] {
            let mut world = World::new();
            let d = servers(&mut world, v6, pick, 1);
            world.ends("no slots yet", &syn(v6, 7, 1), Reason::NoServer);
            world.tables.set_slots("web", &[None]).unwrap();
            world.ends("an empty slot", &syn(v6, 7, 1), Reason::NoServer);
            world.slots("web", &d);
            world.goes_to("a server", &syn(v6, 7, 1));
            world.tables.set_slots("web", &[]).unwrap();
            world.ends("no slots any more", &syn(v6, 7, 2), Reason::NoServer);
            world.goes_to("the flow that is there goes on", &syn(v6, 7, 1));
        }
    }
}

#[test]
fn an_unresolved_next_hop_drops_and_counts() {
    for method in Method::ALL {
        for v6 in [false, true] {
            let mut flow = Flow::new(method, v6, false);
            flow.establish();
            let hop = flow.world.hop_by(server(method.real_is_v6(v6), 99), 0, [0, 0], [0; 6]);
            for (case, hop) in [("not resolved", hop), ("none", 0)] {
                flow.world.tables.set_destination_path(flow.destination, hop, 1400);
                let (known, new) = (flow.packet(ACK), flow.packet_from(client(v6, 8), 1, SYN));
                flow.world.ends(&format!("{method:?} {case}: a flow"), &known, Reason::NoNextHop);
                flow.world.ends(&format!("{method:?} {case}: a new flow"), &new, Reason::NoNextHop);
            }
        }
    }
}

#[test]
fn a_removed_server_keeps_its_established_tcp_flows_and_loses_the_others() {
    for v6 in [false, true] {
        for udp in [false, true] {
            for method in Method::ALL {
                let mut flow = Flow::new(method, v6, udp);
                let case = flow.name();
                flow.establish();
                let half_open = flow.packet_from(client(v6, 8), CLIENT_PORT, SYN);
                flow.world.goes_to(&case, &half_open);
                let answered = flow.packet_from(client(v6, 9), CLIENT_PORT, SYN);
                assert_eq!(flow.world.goes_to(&case, &answered), flow.destination, "{case}");
                let other = server(method.real_is_v6(v6), 12);
                let new = flow.world.server(&flow.spec, other, flow.real_port, method.forwarding());
                flow.world.slots("web", &[new]);
                let key = DestinationKey::new("web", flow.real, flow.real_port, method.forwarding());
                assert!(flow.world.tables.remove_destination(&key).unwrap());

                let seen = flow.world.send(&flow.packet(ACK).bytes());
                let expected = if udp { (new, vec![Reason::FlowMoved]) } else { (flow.destination, vec![]) };
                assert_eq!(
                    (seen.counted, seen.events),
                    (crate::world::Counted::In(expected.0), expected.1),
                    "{case}"
                );
                // The server's answer was on its way when it was removed: nobody else knows of the connection.
                if !udp {
                    let acknowledgement = flow.packet_from(client(v6, 9), CLIENT_PORT, ACK);
                    assert_eq!(
                        flow.world.goes_to(&case, &acknowledgement),
                        flow.destination,
                        "{case}: answered"
                    );
                }
                // A SYN that was not answered yet goes to a server that is there.
                let seen = flow.world.send(&half_open.bytes());
                assert_eq!(seen.counted, crate::world::Counted::In(new), "{case}: half-open");
                assert_eq!(seen.events, [Reason::FlowMoved], "{case}: half-open");
                assert_eq!(flow.world.goes_to(&case, &half_open), new, "{case}: and stays there");
                if !udp {
                    // Their SYNs begin anew, their other packets go on.
                    assert_eq!(flow.world.goes_to(&case, &flow.packet(ACK)), flow.destination, "{case}");
                    assert_eq!(flow.world.goes_to(&case, &flow.packet(SYN)), new, "{case}: a SYN");
                }
            }
        }
    }
}

#[test]
fn a_removed_servers_index_is_not_given_out_while_a_flow_names_it() {
    let mut flow = Flow::new(Method::Dr, false, false);
    flow.establish();
    let key = DestinationKey::new("web", flow.real, 0, Forwarding::Dr);
    flow.world.tables.remove_destination(&key).unwrap();
    let sweeper = flow.world.plane.sweeper(std::time::Duration::from_secs(3600)).expect("sweeper");
    // Past the grace period, so that only the flow holds the index.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    sweeper.board().sweep_now(std::time::Duration::from_secs(30)).expect("a walk");
    flow.world.tables.maintain().unwrap();
    let other = flow.world.server(&flow.spec, server(false, 12), 0, Forwarding::Dr);
    assert_ne!(other, flow.destination, "an index that a flow names was given to another server");
    let packet = flow.packet(ACK);
    assert_eq!(flow.world.goes_to("the old flow", &packet), flow.destination);
    // The server comes back: it has its index, and the flow with it.
    let again = flow.world.server(&flow.spec, flow.real, 0, Forwarding::Dr);
    assert_eq!(again, flow.destination);
    flow.forward(&packet);
    // It goes for good: when its last flow has ended the index is free, and its traffic is kept.
    flow.world.tables.remove_destination(&key).unwrap();
    flow.world.expire_all();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    sweeper.board().sweep_now(std::time::Duration::from_secs(30)).expect("a walk");
    flow.world.tables.maintain().unwrap();
    flow.world.look_again();
    let third = flow.world.server(&flow.spec, server(false, 13), 0, Forwarding::Dr);
    assert_eq!(third, flow.destination, "the index is free again");
}

#[test]
fn a_flow_whose_time_is_over_is_a_new_one_whether_or_not_it_was_swept() {
    for v6 in [false, true] {
        for method in Method::ALL {
            let mut flow = Flow::new(method, v6, false);
            let case = flow.name();
            flow.establish();
            flow.world.expire_all();
            assert!(flow.world.connections().is_empty(), "{case}: the dump does not show it");
            let late = flow.packet(ACK);
            flow.world.ends(&case, &late, Reason::UnknownFlowReset);
            let seen = flow.forward(&flow.packet(SYN));
            assert_eq!(seen.events, [Reason::FlowNew], "{case}");
            assert_eq!(flow.world.state(&case), State::SynReceived, "{case}");
        }
    }
}

/// The deadline is written again when it lags by more than its slack, not with every packet.
#[test]
fn an_established_flow_writes_only_when_its_deadline_lags() {
    for method in Method::ALL {
        let mut flow = Flow::new(method, false, false);
        let case = flow.name();
        flow.establish();
        let now = || flow.world.plane.clock().tick().unwrap();
        let timeout = flow.spec.timeouts[State::Established as usize];
        let fresh = flow.world.entries()[0];
        assert!(fresh.deadline().wrapping_sub(now()) >= timeout - 1, "{case}");
        // Nearly over: the next packet gives it its whole time again, and the twin as well.
        let soon = now().wrapping_add(10);
        flow.world.rewrite_entries(|value| value.with(value.state(), soon));
        let packet = flow.packet(ACK);
        flow.forward(&packet);
        for entry in flow.world.entries() {
            let left = entry.deadline().wrapping_sub(flow.world.plane.clock().tick().unwrap());
            assert!(left >= timeout - 1, "{case}: {left} ticks left of {timeout}");
        }
        let before = flow.world.entries();
        flow.forward(&packet);
        assert_eq!(flow.world.entries(), before, "{case}: the next packet writes nothing");
    }
}
