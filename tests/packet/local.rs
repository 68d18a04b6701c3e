//! A director that is a real server itself, and directors that are real servers of one another: a packet is delivered,
//! or was forwarded once and is not forwarded again.

use crate::{
    flows::{Flow, Method},
    frame::{ACK, FIN, Mac, Packet, RST, SYN, framed},
    world::{Counted, DIRECTOR, HERE, World, client, mac_of, server, vip},
};
use lb_agent::dataplane::{Action, tables::Role};
use lb_common::verdict::Reason;
use std::collections::BTreeSet;

/// Methods whose packets may stay here.
const DELIVERED: [Method; 3] = [Method::Dr, Method::TunV4, Method::TunV6];

/// The flow's real server is the director itself.
fn here(method: Method, v6: bool, udp: bool) -> Flow {
    let mut flow = Flow::new(method, v6, udp);
    let (spec, real) = (flow.spec.clone(), flow.real);
    let same = flow.world.server_by(&spec, real, 0, method.forwarding(), HERE, u16::MAX);
    assert_eq!(same, flow.destination);
    flow
}

#[test]
fn what_the_director_serves_itself_goes_to_its_kernel_as_it_came_and_is_counted_at_the_server() {
    for method in DELIVERED {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut flow = here(method, v6, udp);
            let name = flow.name();
            for (case, flags, ttl) in [
                ("the first", SYN, 64),
                ("again", SYN, 64),
                ("established", ACK, 64),
                ("with its last hop", ACK, 1),
                ("the end", ACK | FIN, 64),
            ] {
                let packet =
                    flow.packet(flags).with(|p| p.ttl = ttl).payload(if flags & SYN != 0 { 0 } else { 1400 });
                let seen = flow.world.send(&packet.bytes());
                assert_eq!(
                    (seen.action, seen.counted),
                    (Action::Pass, Counted::In(flow.destination)),
                    "{name}: {case}"
                );
            }
            // In a VLAN, too.
            let seen = flow.world.send(&flow.packet(ACK).tagged(&[(0x8100, 100)]).bytes());
            assert_eq!(
                (seen.action, seen.counted),
                (Action::Pass, Counted::In(flow.destination)),
                "{name}: tagged"
            );
        }
    }
}

#[test]
fn other_servers_of_the_service_are_forwarded_to_beside_the_director_itself() {
    let mut flow = here(Method::Dr, false, false);
    let other = server(false, 12);
    let spec = flow.spec.clone();
    let there = flow.world.server(&spec, other, 0, Method::Dr.forwarding());
    flow.world.slots("web", &[flow.destination, there]);
    let seen: BTreeSet<_> = (1..=8)
        .map(|n| {
            let seen = flow.world.send(&flow.packet_from(client(false, n), 40_000, SYN).bytes());
            (seen.counted, seen.action == Action::Pass)
        })
        .map(|(counted, passed)| match counted {
            Counted::In(index) => (index, passed),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seen, [(flow.destination, true), (there, false)].into());
}

/// Two directors are real servers of one another; this one has flows of its own to the other, whose MAC is `PEER`.
fn peered(v6: bool, udp: bool) -> Flow {
    let mut flow = Flow::new(Method::Dr, v6, udp);
    peer(&mut flow.world, v6);
    flow
}

fn peer(world: &mut World, v6: bool) {
    world.tables.set_peers(&[(vip(v6), mac_of(server(v6, 11)))].into()).expect("peers");
    world.tables.bind_address("web", Role::Peered, vip(v6)).expect("the role");
}

/// The frame of a packet that this MAC sent.
fn from_mac(packet: &Packet, mac: Mac) -> Vec<u8> {
    let ip = packet.bytes().split_off(14);
    framed(DIRECTOR, mac, &[], &ip)
}

#[test]
fn what_another_director_forwarded_is_not_forwarded_again_whatever_it_is() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut flow = peered(v6, udp);
        let name = flow.name();
        let other = mac_of(server(v6, 11));
        for (case, flags) in [("new", SYN), ("unknown", ACK), ("reset", RST)] {
            let seen = flow.world.send(&from_mac(&flow.packet(flags), other));
            assert_eq!(seen.counted, Counted::Reason(Reason::FromDirector), "{name}: {case}");
        }
        // This director has the flow in its table, to that very director: it would go to and fro.
        let first = flow.packet_from(client(v6, 9), 40_001, SYN);
        assert_eq!(flow.world.send(&first.bytes()).counted, Counted::In(flow.destination), "{name}");
        for flags in [SYN, ACK, ACK | FIN, RST] {
            let packet = flow.packet_from(client(v6, 9), 40_001, flags);
            let seen = flow.world.send(&from_mac(&packet, other));
            assert_eq!(seen.counted, Counted::Reason(Reason::FromDirector), "{name}: {flags:x}");
        }
        // From a router it is a client's.
        let seen = flow.world.send(&flow.packet_from(client(v6, 9), 40_001, ACK).bytes());
        assert_eq!(seen.counted, Counted::In(flow.destination), "{name}");
        // As long as it is a real server.
        flow.world.tables.set_peers(&BTreeSet::new()).expect("none");
        let packet = flow.packet_from(client(v6, 9), 40_001, ACK);
        assert_eq!(
            flow.world.send(&from_mac(&packet, other)).counted,
            Counted::In(flow.destination),
            "{name}"
        );
    }
}

#[test]
fn a_real_server_of_one_vip_is_a_client_of_another() {
    let mut flow = Flow::new(Method::Dr, false, false);
    let mac = mac_of(server(false, 11));
    flow.world.tables.bind_address("web", Role::Peered, vip(false)).expect("the role");
    flow.world.tables.set_peers(&[("192.0.2.77".parse().unwrap(), mac)].into()).expect("peers");
    let seen = flow.world.send(&from_mac(&flow.packet(SYN), mac));
    assert_eq!(seen.counted, Counted::In(flow.destination));
}

#[test]
fn tags_fragments_and_errors_that_another_director_forwarded_stay_here_too() {
    for v6 in [false, true] {
        let mut flow = peered(v6, true);
        let other = mac_of(server(v6, 11));
        let packet = flow.packet(0);
        let ip = packet.bytes().split_off(14);
        let tagged = framed(DIRECTOR, other, &[(0x8100, 100)], &ip);
        assert_eq!(flow.world.send(&tagged).counted, Counted::Reason(Reason::FromDirector), "v6={v6}");
    }
    let mut flow = peered(false, true);
    let other = mac_of(server(false, 11));
    // More fragments, the last one, one in the middle.
    for fragment in [0x2000, 185, 0x2000 | 185] {
        let packet = flow.packet(0).payload(1480 - 8).with(|p| p.fragment = fragment);
        let seen = flow.world.send(&from_mac(&packet, other));
        assert_eq!(seen.counted, Counted::Reason(Reason::FromDirector), "{fragment:x}");
    }
}
