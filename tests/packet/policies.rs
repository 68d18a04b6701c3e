//! What policy makes of rare packets: echo to a VIP, fragments out of place, packets that no tunnel holds.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT, tunnelled},
    frame::{self, ACK, DONT_FRAGMENT, ICMPV6, Ipv4, Packet, UDP, checksum, framed},
    world::{Counted, DIRECTOR, GATEWAY, MTU, World, client, local, same_frame, server, vip},
};
use lb_agent::dataplane::{
    Action,
    tables::{Standing, Tunnel},
};
use lb_common::{
    destination::flags,
    maps::{VRRP_FOREVER, VRRP_MASTER, own},
    scratch::{Limiter, policy},
    verdict::Reason,
};
use std::net::IpAddr;

fn flow(policies: u32, method: Method, v6: bool, udp: bool) -> Flow {
    Flow::placed(World::with_policies(policies), method, v6, if udp { UDP } else { frame::TCP }, |_| ())
}

/// An ICMP message with this type and a payload; IPv6's checksum is the builder's.
fn icmp(from: IpAddr, to: IpAddr, kind: [u8; 2], payload: usize) -> Packet {
    let mut body = vec![kind[0], kind[1], 0, 0, 0x12, 0x34, 0, 7];
    body.extend((0..payload).map(|n| n as u8));
    if from.is_ipv4() {
        let sum = checksum(&body);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    Packet::other(from, to, if from.is_ipv6() { ICMPV6 } else { 1 }).with(|p| p.payload = body)
}

fn request(v6: bool, payload: usize) -> Packet {
    icmp(client(v6, 7), vip(v6), [if v6 { 128 } else { 8 }, 0], payload)
}

#[test]
fn an_echo_request_to_a_vip_is_answered_by_policy() {
    for v6 in [false, true] {
        let mut flow = flow(policy::ECHO_ANSWER, Method::Dr, v6, false);
        for tags in [&[][..], &[(0x8100, 5)][..], &[(0x88a8, 6), (0x8100, 5)][..]] {
            for payload in [0, 1, 56, 1400] {
                let case = format!("v6={v6} {tags:x?} {payload} bytes");
                let asked = request(v6, payload).tagged(tags);
                let seen = flow.world.ends(&case, &asked, Reason::EchoAnswered);
                let expected = icmp(vip(v6), client(v6, 7), [if v6 { 129 } else { 0 }, 0], payload)
                    .tagged(tags)
                    .with(|p| (p.to, p.from, p.ttl) = (GATEWAY, DIRECTOR, 64));
                same_frame(&case, &seen.frame, &expected.bytes());
            }
        }
        assert_eq!(flow.world.connections().len(), 0);
    }
}

#[test]
fn only_echo_to_a_vip_by_a_host_is_answered() {
    for v6 in [false, true] {
        let mut flow = flow(policy::ECHO_ANSWER, Method::FullNat, v6, false);
        let (kind, reply) = if v6 { (128, 129) } else { (8, 0) };
        let from = client(v6, 7);
        let multicast: IpAddr = if v6 { "ff02::1".parse().unwrap() } else { "224.0.0.1".parse().unwrap() };
        for (case, packet, reason) in [
            ("a reply", icmp(from, vip(v6), [reply, 0], 8), Reason::Icmp),
            ("another code", icmp(from, vip(v6), [kind, 1], 8), Reason::Icmp),
            ("a local address", icmp(from, local(v6), [kind, 0], 8), Reason::Icmp),
            ("another host", icmp(from, server(v6, 99), [kind, 0], 8), Reason::NotOurs),
            ("from a group", icmp(multicast, vip(v6), [kind, 0], 8), Reason::EchoDropped),
            ("cut short", request(v6, 0).with(|p| p.payload.truncate(7)), Reason::Icmp),
        ] {
            flow.world.ends(&format!("v6={v6} {case}"), &packet, reason);
        }
        if !v6 {
            let options = request(false, 8).with(|p| p.options = vec![7, 7, 4, 0, 0, 0, 0, 0]);
            flow.world.ends("record route", &options, Reason::Icmp);
            let piece = request(false, 8).with(|p| p.fragment = 0x2000);
            flow.world.ends("a fragment", &piece, Reason::Fragment);
        }
    }
}

#[test]
fn echo_is_dropped_or_left_to_the_kernel_by_policy() {
    for v6 in [false, true] {
        flow(policy::ECHO_DROP, Method::Dr, v6, false).world.ends(
            "drop",
            &request(v6, 8),
            Reason::EchoDropped,
        );
        flow(0, Method::Dr, v6, false).world.ends("pass", &request(v6, 8), Reason::Icmp);
    }
}

#[test]
fn only_a_master_answers_and_no_faster_than_it_may() {
    for v6 in [false, true] {
        let mut flow = flow(policy::ECHO_ANSWER, Method::Dr, v6, false);
        let instance = flow.world.tables.set_vrrp("edge", &[vip(v6)], true).unwrap();
        let now = flow.world.plane.clock().jiffies().unwrap();
        for (word, reason) in [
            (VRRP_FOREVER, Reason::EchoAnswered),
            (0, Reason::VrrpBackup),
            (VRRP_MASTER | now & !VRRP_MASTER, Reason::LeaseExpired),
        ] {
            flow.world.plane.vrrp_roles().set_word(instance, word).unwrap();
            flow.world.ends(&format!("v6={v6} {word:x}"), &request(v6, 8), reason);
        }
        flow.world.plane.vrrp_roles().set_word(instance, VRRP_FOREVER).unwrap();
        let mut limiter: aya::maps::PerCpuArray<_, Limiter> =
            flow.world.map(own::LIMITER).try_into().unwrap();
        let cpus = aya::util::nr_cpus().unwrap();
        let now = Limiter { since: flow.world.plane.clock().jiffies().unwrap(), left: 0 };
        limiter.set(0, vec![now; cpus].try_into().unwrap(), 0).unwrap();
        flow.world.ends(&format!("v6={v6} limited"), &request(v6, 8), Reason::EchoLimited);
    }
}

#[test]
fn what_does_not_fit_its_tunnel_goes_to_the_kernel_in_it() {
    let gue = (Tunnel { flags: flags::GUE, port: 6080 }, 12);
    let gre = (Tunnel { flags: flags::GRE, port: 0 }, 4);
    let ipip = (Tunnel::default(), 0);
    for (udp, (tunnel, between)) in [(false, ipip), (true, ipip), (true, gue), (false, gre)] {
        let mut flow = flow(policy::TUNNEL_FRAGMENT, Method::TunV4, false, udp);
        flow.world.tunnel = tunnel;
        flow.stand(Standing::DEFAULT);
        let header = flow.packet(ACK).payload(0).ip().len();
        // One byte more than fits; the flow is made by such a packet, and goes on with such.
        let room = usize::from(MTU) - 20 - between - header;
        for tags in [&[][..], &[(0x8100, 5)][..], &[(0x88a8, 6), (0x8100, 5)][..]] {
            for first in [true, false] {
                let packet = if udp || !first { flow.packet(ACK) } else { flow.first() };
                let packet = packet.payload(room + 1).tagged(tags).with(|p| p.fragment = 0);
                let case = format!("udp={udp} {tunnel:?} {tags:x?} first={first}");
                let seen = flow.world.send(&packet.bytes());
                assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
                assert_eq!(seen.action, Action::Pass, "{case}");
                assert!(seen.events.contains(&Reason::TunnelFragmented), "{case}: {:?}", seen.events);
                assert_eq!(flow.world.connections().len(), 1, "{case}");
                let inner = packet.clone().with(|p| {
                    p.tags.clear();
                    p.ttl -= 1;
                });
                let expected = tunnelled(&inner, flow.real);
                if between == 0 {
                    // As it came, but for what is between.
                    same_frame(&case, &seen.frame, &framed(DIRECTOR, GATEWAY, tags, &expected));
                } else {
                    let outer = &seen.frame[14 + 4 * tags.len()..];
                    assert_eq!(seen.frame[..12], packet.bytes()[..12], "{case}: both MACs");
                    assert_eq!(outer.len(), usize::from(MTU) + 1, "{case}");
                    assert_eq!(outer[6..8], [0, 0], "{case}: the outer packet may be fragmented");
                    assert_eq!(outer[12..20], expected[12..20], "{case}: addresses");
                    assert_eq!(outer[20 + between..], inner.ip(), "{case}");
                }
                let fits = packet.clone().payload(room);
                let seen = flow.world.send(&fits.bytes());
                let expected = (Action::Tx, Counted::In(flow.destination));
                assert_eq!((seen.action, seen.counted), expected, "{case}");
                let whole = packet.with(|p| p.fragment = DONT_FRAGMENT);
                flow.world.ends(&case, &whole, Reason::PacketTooBig);
            }
        }
    }
}

#[test]
fn nothing_else_goes_to_the_kernel_so() {
    for (policies, method) in [
        (0, Method::TunV4),
        (policy::TUNNEL_FRAGMENT, Method::TunV6),
        (policy::TUNNEL_FRAGMENT, Method::Dr),
        (policy::TUNNEL_FRAGMENT, Method::Nat),
        (policy::TUNNEL_FRAGMENT, Method::FullNat),
    ] {
        let mut flow = flow(policies, method, false, true);
        let packet = flow.packet(0).payload(1480).with(|p| p.fragment = 0);
        flow.world.ends(&format!("{policies} {method:?}"), &packet, Reason::TooBig);
    }
    let mut flow = flow(policy::TUNNEL_FRAGMENT, Method::TunV4, true, true);
    let packet = flow.packet(0).payload(1460);
    flow.world.ends("IPv6 inside", &packet, Reason::PacketTooBig);
    let mut last_hop = self::flow(policy::TUNNEL_FRAGMENT, Method::TunV4, false, true);
    let packet = last_hop.packet(0).payload(1472).with(|p| (p.fragment, p.ttl) = (0, 1));
    last_hop.world.ends("its last hop", &packet, Reason::TimeExceeded);
}

/// A piece of a datagram to the VIP.
fn piece(offset: u16, more: bool, bytes: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (client(false, 7), vip(false)) else { panic!() };
    let fragment = (offset / 8) | if more { 0x2000 } else { 0 };
    let ip = Ipv4 { tos: 0, id: 77, fragment, ttl: 63, protocol: UDP, source, destination };
    framed(DIRECTOR, GATEWAY, &[], &ip.packet(&[], bytes))
}

#[test]
fn fragments_that_do_not_come_as_they_should_are_dealt_with_by_policy() {
    let mut datagram = CLIENT_PORT.to_be_bytes().to_vec();
    datagram.extend(VIP_PORT.to_be_bytes());
    datagram.extend([0x0b, 0xb8, 0, 0]);
    datagram.resize(3000, 9);
    let bits = [policy::UNKNOWN_PASS, policy::TINY_PASS, policy::OVERLAP_FORWARD];
    for policies in [0].into_iter().chain(bits) {
        let mut flow = flow(policies, Method::Dr, false, true);
        let case = |what: &str| format!("policies {policies:x}: {what}");
        let or = |bit, passed, dropped| if policies & bit != 0 { passed } else { dropped };
        let late = piece(1400, true, &datagram[1400..2800]);
        let reason = or(policy::UNKNOWN_PASS, Reason::Fragment, Reason::FragmentUnknown);
        flow.world.ends_frame(&case("before its first"), &late, reason);
        let reason = or(policy::TINY_PASS, Reason::Fragment, Reason::FragmentTiny);
        // Whole eights, so TCP's header alone can be in pieces.
        let tcp = {
            let (IpAddr::V4(source), IpAddr::V4(destination)) = (client(false, 7), vip(false)) else {
                panic!()
            };
            let ip =
                Ipv4 { tos: 0, id: 78, fragment: 0x2000, ttl: 63, protocol: frame::TCP, source, destination };
            framed(DIRECTOR, GATEWAY, &[], &ip.packet(&[], &datagram[..16]))
        };
        flow.world.ends_frame(&case("half a header"), &tcp, reason);
        let first = flow.world.send(&piece(0, true, &datagram[..1400]));
        assert_eq!(first.counted, Counted::In(flow.destination), "{}", case("first"));
        let overlapping = piece(1392, true, &datagram[1392..2792]);
        if policies & policy::OVERLAP_FORWARD != 0 {
            let seen = flow.world.send(&overlapping);
            assert_eq!(seen.counted, Counted::In(flow.destination), "{}", case("overlapping"));
        } else {
            flow.world.ends_frame(&case("overlapping"), &overlapping, Reason::FragmentOverlap);
        }
        let seen = flow.world.send(&late);
        assert_eq!(seen.counted, Counted::In(flow.destination), "{}", case("after its first"));
        assert_eq!(seen.events, [Reason::FragmentFollowed]);
    }
}
