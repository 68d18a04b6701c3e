//! Every forwarding method, both families, both protocols: the first packet, those after it, the reply, and
//! the states in between.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT, matrix, tunnelled},
    frame::{ACK, FIN, Packet, RST, SYN, Tag, Transport, framed},
    world::{Counted, DIRECTOR, INGRESS, MTU, client, mac_of, same_frame, vip},
};
use lb_agent::dataplane::{Action, dump::Protocol};
use lb_common::{destination::OTHER_TAG, maps::pinned, state::State, verdict::Reason};
use std::net::SocketAddr;

#[test]
fn every_method_forwards_a_flow_and_its_replies_to_the_byte() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        let case = flow.name();
        let seen = flow.forward(&flow.first());
        assert_eq!(seen.events, [Reason::FlowNew], "{case}");
        if method.translates() {
            flow.answer(&flow.reply(SYN | ACK));
        }
        let seen = flow.forward(&flow.packet(ACK));
        assert_eq!(seen.events, [], "{case}: the second packet is of a known flow");
        // Payloads of odd and even length, one that sums to nothing and one that sums to all.
        for payload in [vec![], vec![7], vec![0; 64], vec![0xff; 65]] {
            flow.forward(&flow.packet(ACK).with(|p| p.payload = payload.clone()));
            if method.translates() {
                flow.answer(&flow.reply(ACK).with(|p| p.payload = payload));
            }
        }
        let connection = flow.world.connection(&case);
        assert_eq!(connection.client, SocketAddr::new(client(v6, 7), CLIENT_PORT), "{case}");
        assert_eq!(connection.vip, SocketAddr::new(vip(v6), VIP_PORT), "{case}");
        assert_eq!(connection.real_server, SocketAddr::new(flow.real, flow.server_port()), "{case}");
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        assert_eq!((connection.protocol, connection.forwarding), (protocol, method.forwarding()), "{case}");
    }
}

#[test]
fn a_real_server_on_the_vips_port_keeps_it() {
    for method in [Method::Nat, Method::FullNat] {
        for v6 in [false, true] {
            let mut flow = Flow::new(method, v6, false);
            let kept = flow.world.server(&flow.spec, flow.real, 0, method.forwarding());
            flow.world.slots("web", &[kept]);
            (flow.destination, flow.real_port) = (kept, 0);
            flow.establish();
            flow.answer(&flow.reply(ACK));
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without() {
    for method in Method::ALL {
        let mut flow = Flow::new(method, false, true);
        let bare = |packet: Packet| {
            packet.with(|p| {
                let (source, destination) = p.ports();
                p.transport = Transport::Udp { source, destination, checksum: false };
            })
        };
        flow.forward(&bare(flow.first()));
        if method.translates() {
            flow.answer(&bare(flow.reply(0)));
        }
    }
}

/// A payload for which the translated datagram's sum is zero: it must be sent as 0xffff (RFC 768), since zero
/// says that there is none.
#[test]
fn a_udp_checksum_that_comes_to_zero_is_sent_as_all_ones() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, true);
        // With an empty word in its place the sum lacks exactly that word.
        let bare = flow.first().payload(2).with(|p| p.payload.fill(0));
        let out = flow.towards_server(&bare);
        let at = bare.l4() + 6;
        let packet = bare.clone().with(|p| p.payload = out[at..at + 2].to_vec());
        let out = flow.towards_server(&packet);
        assert_eq!(out[at..at + 2], [0xff, 0xff], "the case is not the one it means");
        flow.forward(&packet);
    }
}

/// The steps of a flow: (from the client?, TCP flags, state after it).
type Steps = &'static [(bool, u8, State)];

#[test]
fn tcp_states_follow_what_the_director_sees_of_both_ends() {
    let one_way: [Steps; 4] = [
        &[
            (true, SYN, State::SynReceived),
            (true, ACK, State::Established),
            (true, ACK | FIN, State::FinWait),
            (true, ACK, State::FinWait),
        ],
        &[(true, SYN, State::SynReceived), (true, RST, State::SynReceived)],
        &[(true, SYN, State::SynReceived), (true, ACK, State::Established), (true, RST | ACK, State::Close)],
        &[(true, SYN, State::SynReceived), (true, FIN, State::TimeWait)],
    ];
    let both_ways: [Steps; 4] = [
        &[
            (true, SYN, State::SynReceived),
            (false, SYN | ACK, State::SynReceived),
            (true, ACK, State::Established),
            (false, ACK, State::Established),
            (true, ACK | FIN, State::CloseWait),
            (false, ACK | FIN, State::TimeWait),
            (true, ACK, State::TimeWait),
        ],
        &[
            (true, SYN, State::SynReceived),
            (true, ACK, State::Established),
            (false, ACK | FIN, State::FinWait),
            (true, ACK | FIN, State::TimeWait),
        ],
        &[(true, SYN, State::SynReceived), (false, RST | ACK, State::Close)],
        &[(true, SYN, State::SynReceived), (true, ACK, State::Established), (false, RST, State::Close)],
    ];
    for (method, v6, udp) in matrix() {
        if udp {
            continue;
        }
        let mut flow = Flow::new(method, v6, false);
        for steps in if method.translates() { &both_ways } else { &one_way } {
            flow.world.forget_all();
            for (number, (from_client, flags, state)) in steps.iter().enumerate() {
                let case = format!("{} step {number} of {steps:?}", flow.name());
                if *from_client {
                    flow.forward(&flow.packet(*flags));
                } else {
                    flow.answer(&flow.reply(*flags));
                }
                assert_eq!(flow.world.state(&case), *state, "{case}");
                // The twin of a pair has the same state and ends at the same time.
                let entries = flow.world.entries();
                assert!(entries.iter().all(|e| e.state() == *state as u8), "{case}: {entries:?}");
                assert!(entries.iter().all(|e| e.deadline() == entries[0].deadline()), "{case}: {entries:?}");
                assert_eq!(entries.len(), if method == Method::Nat { 2 } else { 1 }, "{case}");
            }
        }
    }
}

#[test]
fn a_udp_flow_is_confirmed_by_a_second_packet_or_where_replies_pass_by_a_reply() {
    for (method, v6, udp) in matrix() {
        if !udp {
            continue;
        }
        let mut flow = Flow::new(method, v6, true);
        let case = flow.name();
        flow.forward(&flow.first());
        assert_eq!(flow.world.state(&case), State::Unconfirmed, "{case}: one packet");
        let short = flow.world.connection(&case).expires_in;
        flow.forward(&flow.first());
        if method.translates() {
            assert_eq!(flow.world.state(&case), State::Unconfirmed, "{case}: two packets and no reply");
            flow.answer(&flow.reply(0));
        }
        assert_eq!(flow.world.state(&case), State::Udp, "{case}");
        assert!(flow.world.connection(&case).expires_in > short * 10, "{case}: now it lives long");
        flow.forward(&flow.first());
        assert_eq!(flow.world.state(&case), State::Udp, "{case}");
    }
}

/// This thread gets a network namespace of its own with another interface.
fn another_interface() -> u32 {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
    let status = std::process::Command::new("ip")
        .args(["link", "add", "out0", "type", "veth", "peer", "name", "out1"])
        .status()
        .expect("ip(8)");
    assert!(status.success(), "ip link add: {status}");
    nix::net::if_::if_nametoindex("out0").expect("the interface just made")
}

#[test]
fn a_next_hop_on_another_interface_is_a_redirect() {
    let other = another_interface();
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        let case = flow.name();
        let hop = flow.world.hop_by(flow.real, other, [0, 0], mac_of(flow.real));
        assert!(flow.world.tables.set_destination_path(flow.destination, hop, MTU), "{case}");
        // An interface without our program is none to send out of.
        let first = flow.first();
        flow.world.ends(&format!("{case}: not in OUTPUTS"), &first, Reason::NoNextHop);
        output(&flow, other);
        let seen = flow.forward(&first);
        assert_eq!(seen.action, Action::Redirect, "{case}");
        let seen = flow.forward(&flow.packet(ACK));
        assert_eq!(seen.action, Action::Redirect, "{case}");
        if method.translates() {
            flow.answer(&flow.reply(ACK));
        }
    }
}

/// Lists an interface as one that frames may leave by, as an attachment does.
fn output(flow: &Flow, ifindex: u32) {
    let mut outputs: aya::maps::DevMapHash<_> = flow.world.map(pinned::OUTPUTS).try_into().expect("OUTPUTS");
    outputs.insert(ifindex, ifindex, None, 0).expect("an output");
}

/// Of arriving frames: no tag, one, two (802.1Q and 802.1ad outside); the priority bits are the sender's.
const TAGS: [&[Tag]; 4] =
    [&[], &[(0x8100, 0x2064)], &[(0x88a8, 0x0065), (0x8100, 0x0066)], &[(0x8100, 0x0065), (0x8100, 0x0066)]];

#[test]
fn tags_are_pushed_swapped_and_popped_as_the_next_hop_wants() {
    let hops: [([u16; 2], &[Tag]); 5] = [
        ([0, 0], &[]),
        ([0x6064, 0], &[(0x8100, 0x6064)]),
        ([0x00c8, 0x012c], &[(0x88a8, 0x00c8), (0x8100, 0x012c)]),
        // The rarer EtherTypes: 802.1ad alone, 802.1Q twice.
        ([OTHER_TAG | 0x0064, 0], &[(0x88a8, 0x0064)]),
        ([OTHER_TAG | 0x00c8, 0x012c], &[(0x8100, 0x00c8), (0x8100, 0x012c)]),
    ];
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        for (vlans, wanted) in hops {
            let hop = flow.world.hop_by(flow.real, INGRESS, vlans, mac_of(flow.real));
            let mtu =
                if method.forwarding() == lb_common::destination::Forwarding::Tun { MTU - 40 } else { MTU };
            flow.world.tables.set_destination_path(flow.destination, hop, mtu);
            for tags in TAGS {
                let case = format!("{} in {tags:x?} out {wanted:x?}", flow.name());
                let packet = flow.first().tagged(tags);
                let seen = flow.world.send(&packet.bytes());
                assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
                let mut expected = flow.towards_server(&packet);
                let ip = expected.split_off(14);
                same_frame(&case, &seen.frame, &framed(mac_of(flow.real), DIRECTOR, wanted, &ip));
                if method.translates() {
                    flow.answer(&flow.reply(ACK).tagged(tags));
                }
            }
        }
    }
}

#[test]
fn three_tags_are_too_many() {
    let mut flow = Flow::new(Method::Dr, false, false);
    let packet = flow.first().tagged(&[(0x88a8, 1), (0x8100, 2), (0x8100, 3)]);
    flow.world.ends("three tags", &packet, Reason::TooManyHeaders);
}

#[test]
fn ethernet_padding_stays_behind_the_packet() {
    for method in Method::ALL {
        let mut flow = Flow::new(method, false, true);
        let packet = flow.first().with(|p| p.padding = 9);
        let seen = flow.world.send(&packet.bytes());
        let mut expected = flow.towards_server(&packet.clone().with(|p| p.padding = 0));
        expected.resize(expected.len() + 9, 0);
        same_frame(&flow.name(), &seen.frame, &expected);
    }
}

#[test]
fn ecn_and_the_type_of_service_are_copied_into_the_tunnel() {
    for (method, v6) in
        [(Method::TunV4, false), (Method::TunV4, true), (Method::TunV6, false), (Method::TunV6, true)]
    {
        let mut flow = Flow::new(method, v6, false);
        for tos in [0, 1, 2, 3, 0xb8, 0xff] {
            for fragment in [0, crate::frame::DONT_FRAGMENT] {
                let packet = flow.first().with(|p| {
                    p.tos = tos;
                    p.fragment = if v6 { 0 } else { fragment };
                });
                flow.forward(&packet);
            }
        }
    }
}

#[test]
fn a_tunnels_mtu_leaves_room_for_its_header() {
    // Guards the helper of these cases itself: the largest packet that is forwarded fills the path exactly.
    for (method, overhead) in [(Method::TunV4, 20), (Method::TunV6, 40)] {
        let mut flow = Flow::new(method, false, true);
        let room = usize::from(MTU) - overhead - 28;
        let packet = flow.first().payload(room);
        let seen = flow.forward(&packet);
        assert_eq!(seen.frame.len(), 14 + usize::from(MTU));
        assert_eq!(tunnelled(&packet, flow.real).len(), usize::from(MTU));
        flow.world.ends("one byte more", &packet.payload(room + 1), Reason::PacketTooBig);
    }
}
