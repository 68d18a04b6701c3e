//! Jumbo frames: larger than a page, so that the kernel hands them over in several buffers (`xdp.frags`). Pointers reach
//! the first; lengths, counters and what is cut off are of the whole.

use crate::{
    flows::{Flow, Method, matrix},
    frame::{ACK, SYN, TCP, UDP},
    size::too_big,
    world::{Counted, DIRECTOR, GATEWAY, INGRESS, World, hop_record, mac_of, same_frame},
};
use lb_agent::dataplane::tables::NextHopKey;
use lb_common::{
    destination::{Forwarding, NextHop},
    verdict::Reason,
};
use std::net::IpAddr;

const MTU: u16 = 9000;

/// A flow of which both ways take 9000 bytes.
fn jumbo(method: Method, v6: bool, udp: bool) -> Flow {
    let mut flow = Flow::placed(World::jumbo(), method, v6, if udp { UDP } else { TCP }, |_| ());
    let hop = flow.world.hop(flow.real);
    let overhead = if method.forwarding() == Forwarding::Tun { 40 } else { 0 };
    flow.world.tables.set_destination_path(flow.destination, hop, MTU - overhead);
    for router in ["10.0.0.254", "2001:db8::254"] {
        let neighbour: IpAddr = router.parse().unwrap();
        let key = NextHopKey { neighbour, ifindex: INGRESS, vlans: [0, 0], for_clients: true };
        let record = NextHop { mtu: MTU.into(), ..hop_record(GATEWAY, INGRESS, [0, 0]) };
        flow.world.tables.set_next_hop(&key, &record).expect("next hop");
    }
    flow
}

#[test]
fn frames_of_several_buffers_go_both_ways_by_every_method() {
    for (method, v6, udp) in matrix() {
        let mut flow = jumbo(method, v6, udp);
        flow.establish();
        // Below, around and above what the first buffer holds.
        for len in [1400, 3400, 3600, 4096, 8000, 8900] {
            flow.forward(&flow.packet(ACK).payload(len));
            if method.translates() {
                flow.answer(&flow.reply(ACK).payload(len));
            }
        }
        // A datagram may be the first of its flow.
        if udp {
            flow.world.forget_flows();
            flow.forward(&flow.packet(0).payload(8000));
        }
    }
}

#[test]
fn tags_come_and_go_before_frames_of_several_buffers() {
    for method in [Method::Dr, Method::TunV4, Method::Nat] {
        let mut flow = jumbo(method, false, true);
        let hop = flow.world.hop_by(flow.real, INGRESS, [0x64, 0], mac_of(flow.real));
        flow.world.tables.set_destination_path(flow.destination, hop, MTU - 40);
        let packet = flow.packet(0).payload(8000).tagged(&[(0x88a8, 7), (0x8100, 8)]);
        let seen = flow.world.send(&packet.bytes());
        assert_eq!(seen.counted, Counted::In(flow.destination), "{method:?}");
        let mut expected = flow.towards_server(&packet);
        let ip = expected.split_off(14);
        same_frame(
            "tags",
            &seen.frame,
            &crate::frame::framed(mac_of(flow.real), DIRECTOR, &[(0x8100, 0x64)], &ip),
        );
    }
}

#[test]
fn answers_are_cut_from_frames_of_several_buffers() {
    for v6 in [false, true] {
        let mut flow = jumbo(Method::Dr, v6, false);
        flow.establish();
        let hop = flow.world.hop(flow.real);
        flow.world.tables.set_destination_path(flow.destination, hop, 5000);
        let packet = flow
            .packet(ACK)
            .payload(8000)
            .with(|p| p.fragment = if v6 { 0 } else { crate::frame::DONT_FRAGMENT });
        let seen = flow.world.ends("too big", &packet, Reason::PacketTooBig);
        same_frame("too big", &seen.frame, &too_big(&packet, 5000, (&[], GATEWAY)));
        // A flow that nobody knows is answered with RST: all of the segment goes.
        flow.world.forget_flows();
        let seen = flow.world.ends("unknown", &flow.packet(ACK).payload(8000), Reason::UnknownFlowReset);
        assert_eq!(seen.frame.len(), if v6 { 74 } else { 54 });
    }
}

#[test]
fn a_length_that_lies_is_seen_in_frames_of_several_buffers() {
    for v6 in [false, true] {
        let mut flow = jumbo(Method::Dr, v6, false);
        flow.forward(&flow.packet(SYN));
        let mut bytes = flow.packet(ACK).payload(8000).bytes();
        bytes.truncate(7000);
        flow.world.ends_frame("cut short", &bytes, Reason::BadTransport);
        // What is behind the packet stays behind it.
        let mut bytes = flow.packet(ACK).payload(6000).bytes();
        bytes.extend([0; 1000]);
        assert_eq!(flow.world.send(&bytes).frame.len(), bytes.len());
    }
}
