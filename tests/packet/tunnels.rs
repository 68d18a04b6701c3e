//! Tunnels other than plain IPIP: every byte outside the client's packet, and what of it is the flow's own.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT, matrix},
    frame::{ACK, DONT_FRAGMENT, GRE, ICMPV6, Ipv4, Ipv6, Packet, SYN, UDP, checksum, framed},
    world::{
        Counted, DIRECTOR, GATEWAY, INGRESS, MTU, client, mac_of, same_frame, server, tunnel_source,
        varying_sources, vip,
    },
};
use lb_agent::dataplane::{
    Action, Probed, ProberPair,
    tables::{Role, Standing, Tunnel},
};
use lb_common::{destination::flags, verdict::Reason};
use std::{collections::BTreeSet, net::IpAddr, time::Instant};

const PORT: u16 = 6080;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Gue,
    Gre,
    GreWithKey,
    IpipFromMany,
}

const KINDS: [Kind; 4] = [Kind::Gue, Kind::Gre, Kind::GreWithKey, Kind::IpipFromMany];

impl Kind {
    fn tunnel(self) -> Tunnel {
        match self {
            Kind::Gue => Tunnel { flags: flags::GUE, port: PORT },
            Kind::Gre => Tunnel { flags: flags::GRE, port: 0 },
            Kind::GreWithKey => Tunnel { flags: flags::GRE | flags::SPREAD, port: 0 },
            Kind::IpipFromMany => Tunnel { flags: flags::SPREAD, port: 0 },
        }
    }

    /// Bytes between the outer IP header and the packet.
    fn between(self) -> usize {
        match self {
            Kind::Gue => 12,
            Kind::Gre => 4,
            Kind::GreWithKey => 8,
            Kind::IpipFromMany => 0,
        }
    }

    fn outer(self, real: IpAddr) -> usize {
        self.between() + if real.is_ipv6() { 40 } else { 20 }
    }
}

/// A flow by TUN in `kind`, outside and inside of these families.
fn flow(kind: Kind, method: Method, v6: bool, udp: bool) -> Flow {
    let mut flow = Flow::new(method, v6, udp);
    flow.world.tunnel = kind.tunnel();
    flow.stand(Standing::DEFAULT);
    flow
}

/// What of the outer headers is the flow's own, as it stands in an IP packet that was sent.
fn entropy(kind: Kind, outer: &[u8]) -> Vec<u8> {
    let v6 = outer[0] >> 4 == 6;
    let behind = if v6 { 40 } else { 20 };
    match kind {
        Kind::Gue => outer[behind..behind + 2].to_vec(),
        Kind::Gre => Vec::new(),
        Kind::GreWithKey => outer[behind + 4..behind + 8].to_vec(),
        Kind::IpipFromMany if v6 => outer[8..24].to_vec(),
        Kind::IpipFromMany => outer[12..16].to_vec(),
    }
}

/// The outer packet around `inside`, whose header says what `inner` says, with that entropy.
fn wrapped(kind: Kind, inner: &Packet, inside: &[u8], real: IpAddr, entropy: &[u8]) -> Vec<u8> {
    let inner_protocol = if inner.is_v6() { 41 } else { 4 };
    let ether_type: [u8; 2] = if inner.is_v6() { [0x86, 0xdd] } else { [0x08, 0x00] };
    let mut source = tunnel_source(real.is_ipv6());
    let (protocol, mut body) = match kind {
        Kind::Gue => {
            let port = u16::from_be_bytes([entropy[0], entropy[1]]);
            assert!(port >= 49_152, "a source port of GUE's: {port}");
            let mut body = entropy.to_vec();
            body.extend(PORT.to_be_bytes());
            body.extend((12 + inside.len() as u16).to_be_bytes());
            // No checksum; variant 0, no options; protocol; no flags.
            body.extend([0, 0, 0, inner_protocol, 0, 0]);
            (UDP, body)
        }
        Kind::Gre => (GRE, [&[0, 0], &ether_type[..]].concat()),
        Kind::GreWithKey => (GRE, [&[0x20, 0], &ether_type[..], entropy].concat()),
        Kind::IpipFromMany => {
            source = match entropy.len() {
                4 => <[u8; 4]>::try_from(entropy).unwrap().into(),
                _ => <[u8; 16]>::try_from(entropy).unwrap().into(),
            };
            assert!(varying_sources(real.is_ipv6()).contains(&source), "{source}");
            (inner_protocol, Vec::new())
        }
    };
    body.extend(inside);
    match (source, real) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let dont_fragment = if inner.is_v6() { DONT_FRAGMENT } else { inner.fragment & DONT_FRAGMENT };
            let (tos, id, ttl) = (inner.tos, inner.id, inner.ttl);
            Ipv4 { tos, id, fragment: dont_fragment, ttl, protocol, source, destination }.packet(&[], &body)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6 {
            class: inner.tos,
            flow_label: inner.flow_label,
            next: protocol,
            hop_limit: inner.ttl,
            source,
            destination,
        }
        .packet(&body),
        _ => panic!("a tunnel of two families"),
    }
}

/// Sends a client's packet, checks its frame and returns what of it is the flow's own.
fn forward(kind: Kind, flow: &mut Flow, packet: &Packet) -> Vec<u8> {
    let case = format!("{kind:?} {}", flow.name());
    let seen = flow.world.send(&packet.bytes());
    assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
    assert_eq!(seen.action, Action::Tx, "{case}");
    let own = entropy(kind, &seen.frame[14..]);
    let inner = packet.clone().with(|p| p.ttl -= 1);
    let outer = wrapped(kind, &inner, &inner.ip(), flow.real, &own);
    same_frame(&case, &seen.frame, &framed(mac_of(flow.real), DIRECTOR, &[], &outer));
    own
}

/// TUN in all pairs of families, by all kinds of tunnels.
fn every() -> impl Iterator<Item = (Kind, Method, bool, bool)> {
    let tun = |(method, _, _): &(Method, bool, bool)| matches!(method, Method::TunV4 | Method::TunV6);
    let pairs: Vec<_> = matrix().into_iter().filter(tun).collect();
    KINDS
        .into_iter()
        .flat_map(move |kind| pairs.clone().into_iter().map(move |(method, v6, udp)| (kind, method, v6, udp)))
}

#[test]
fn every_tunnel_wraps_both_families_in_both_and_keeps_what_is_the_flows_own() {
    for (kind, method, v6, udp) in every() {
        let mut flow = flow(kind, method, v6, udp);
        let first = flow.first();
        let own = forward(kind, &mut flow, &first);
        for (tos, fragment) in [(0, 0), (0x2b, DONT_FRAGMENT), (0xff, 0)] {
            let packet = flow.packet(ACK).with(|p| {
                p.tos = tos;
                p.fragment = if v6 { 0 } else { fragment };
            });
            assert_eq!(forward(kind, &mut flow, &packet), own, "{kind:?} {}: one flow", flow.name());
        }
        let others: BTreeSet<Vec<u8>> = (1..33)
            .map(|n| {
                let packet = flow.packet_from(client(v6, n), CLIENT_PORT + u16::from(n), SYN);
                forward(kind, &mut flow, &packet)
            })
            .collect();
        match kind {
            Kind::Gre => assert_eq!(others.len(), 1),
            // 32 flows among 16,384 ports or more.
            _ => assert!(others.len() > 24, "{kind:?}: {} of 32 flows differ", others.len()),
        }
        assert_eq!(flow.world.connections().len(), 33, "one entry a flow");
    }
}

#[test]
fn tags_and_options_are_no_hindrance() {
    for (kind, method, v6, udp) in every() {
        let mut flow = flow(kind, method, v6, udp);
        for (vlans, wanted) in [([0, 0], &[][..]), ([100, 0], &[(0x8100, 100)][..])] {
            let hop = flow.world.hop_by(flow.real, INGRESS, vlans, mac_of(flow.real));
            flow.world.tables.set_destination_path(flow.destination, hop, 1400);
            for tags in [&[][..], &[(0x8100, 5)][..], &[(0x88a8, 6), (0x8100, 5)][..]] {
                let packet = flow.first().tagged(tags).with(|p| {
                    if !v6 {
                        p.options = vec![1, 1, 1, 0];
                    }
                });
                let seen = flow.world.send(&packet.bytes());
                let case = format!("{kind:?} {} in {tags:x?} out {wanted:x?}", flow.name());
                assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
                let inner = packet.clone().with(|p| {
                    p.ttl -= 1;
                    p.tags.clear();
                });
                let own = entropy(kind, &seen.frame[14 + 4 * wanted.len()..]);
                let outer = wrapped(kind, &inner, &inner.ip(), flow.real, &own);
                same_frame(&case, &seen.frame, &framed(mac_of(flow.real), DIRECTOR, wanted, &outer));
            }
        }
    }
}

#[test]
fn the_largest_packet_fills_the_path_exactly() {
    for (kind, method, v6, udp) in every() {
        let mut flow = flow(kind, method, v6, udp);
        let first = flow.first();
        let header = first.clone().payload(0).ip().len();
        let room = usize::from(MTU) - kind.outer(flow.real) - header;
        forward(kind, &mut flow, &first.clone().payload(room));
        let case = format!("{kind:?} {}: one byte more", flow.name());
        flow.world.ends(&case, &first.payload(room + 1), Reason::PacketTooBig);
    }
}

#[test]
fn an_errors_way_and_a_fragments_is_that_of_their_flow() {
    for (kind, method, v6, udp) in every() {
        let mut flow = flow(kind, method, v6, udp);
        let first = flow.first();
        let own = forward(kind, &mut flow, &first);
        // A router's word about what the VIP sent to the client, with eight bytes behind the quoted header.
        let sent = {
            let (from, to) = ((vip(v6), VIP_PORT), (client(v6, 7), CLIENT_PORT));
            if udp { Packet::udp(from, to) } else { Packet::tcp(from, to, ACK) }
        };
        let quoted = if v6 { 48 } else { 28 };
        let mut body = if v6 { vec![1, 0, 0, 0] } else { vec![3, 1, 0, 0] };
        body.extend([0; 4]);
        body.extend(&sent.ip()[..quoted]);
        if !v6 {
            let sum = checksum(&body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let error =
            Packet::other(server(v6, 253), vip(v6), if v6 { ICMPV6 } else { 1 }).with(|p| p.payload = body);
        let case = format!("{kind:?} {}: error", flow.name());
        let seen = flow.world.send(&error.bytes());
        assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
        assert_eq!(seen.events, [Reason::IcmpToServer], "{case}");
        let inner = error.clone().with(|p| p.ttl -= 1);
        // Its own: the router sent it, and order among it and the flow's packets is nothing to anybody.
        let errors = entropy(kind, &seen.frame[14..]);
        let outer = wrapped(kind, &inner, &inner.ip(), flow.real, &errors);
        same_frame(&case, &seen.frame, &framed(mac_of(flow.real), DIRECTOR, &[], &outer));
        if v6 || !udp {
            continue;
        }
        // A datagram in two pieces: the second has no ports and goes where, and as, the first went.
        let whole = flow.packet(0).payload(600).with(|p| p.fragment = 0).ip();
        for (offset, carried, more) in [(0u16, &whole[20..420], true), (400, &whole[420..], false)] {
            let (IpAddr::V4(source), IpAddr::V4(destination)) = (client(v6, 7), vip(v6)) else { panic!() };
            let fragment = (offset / 8) | if more { 0x2000 } else { 0 };
            let piece = |ttl| {
                Ipv4 { tos: 0x28, id: 0x1234, fragment, ttl, protocol: UDP, source, destination }
                    .packet(&[], carried)
            };
            let seen = flow.world.send(&framed(DIRECTOR, GATEWAY, &[], &piece(63)));
            let case = format!("{kind:?} {}: piece at {offset}", flow.name());
            assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
            assert_eq!(seen.events.contains(&Reason::FragmentFollowed), offset != 0, "{case}");
            let header = flow.packet(0).with(|p| (p.ttl, p.fragment) = (62, 0));
            let outer = wrapped(kind, &header, &piece(62), flow.real, &own);
            same_frame(&case, &seen.frame, &framed(mac_of(flow.real), DIRECTOR, &[], &outer));
        }
    }
}

#[test]
fn a_router_that_cuts_a_tunnel_is_believed_and_the_client_told_what_is_left() {
    for (kind, method, v6, udp) in every() {
        let mut flow = flow(kind, method, v6, udp);
        let first = flow.first();
        forward(kind, &mut flow, &first);
        let big = flow.packet(ACK).payload(1380).with(|p| p.fragment |= if v6 { 0 } else { DONT_FRAGMENT });
        let own = forward(kind, &mut flow, &big);
        let at_router = big.clone().with(|p| p.ttl -= 1);
        let outer = wrapped(kind, &at_router, &at_router.ip(), flow.real, &own);
        let outside_v6 = flow.real.is_ipv6();
        let (mtu, header) = if outside_v6 { (1380u32, 40) } else { (1400, 20) };
        let from_many = match kind {
            Kind::IpipFromMany if outside_v6 => Some(<[u8; 16]>::try_from(&own[..]).unwrap().into()),
            Kind::IpipFromMany => Some(<[u8; 4]>::try_from(&own[..]).unwrap().into()),
            _ => None,
        };
        let heard = |quoted: usize| {
            let mut body = if outside_v6 { vec![2, 0, 0, 0] } else { vec![3, 4, 0, 0] };
            body.extend(mtu.to_be_bytes());
            body.extend(&outer[..(header + quoted).min(outer.len())]);
            let from = server(outside_v6, 253);
            let to = from_many.unwrap_or(tunnel_source(outside_v6));
            Packet::other(from, to, if outside_v6 { ICMPV6 } else { 1 }).with(|p| {
                p.payload = body;
                p.from = mac_of(from);
            })
        };
        let inner_header = if v6 { 40 } else { 20 };
        let case = format!("{kind:?} {}", flow.name());
        flow.world.ends(&format!("{case}: eight bytes"), &heard(8), Reason::TunnelMtu);
        let enough = kind.between() + inner_header + 8;
        if kind.between() + inner_header > 12 {
            flow.world.ends(&format!("{case}: one too few"), &heard(enough - 1), Reason::TunnelMtu);
        }
        let seen = flow.world.ends(&format!("{case}: enough"), &heard(enough), Reason::TunnelMtuTold);
        // What the client is told: behind Ethernet, IP and four bytes of ICMP.
        let at = 14 + inner_header + 4;
        let told = u32::from_be_bytes(seen.frame[at..at + 4].try_into().unwrap());
        assert_eq!(told as usize, mtu as usize - kind.outer(flow.real), "{case}");
        let changes = flow.world.tables.follow_paths(Instant::now()).unwrap();
        assert_eq!((changes.len(), changes[0].mtu), (1, Some(mtu as u16)), "{case}");
        let room = mtu as usize - kind.outer(flow.real) - big.clone().payload(0).ip().len();
        forward(kind, &mut flow, &big.clone().payload(room));
        flow.world.ends(&case, &big.payload(room + 1), Reason::PacketTooBig);
    }
}

#[test]
fn a_destinations_flows_live_through_another_tunnel() {
    for (method, v6) in [(Method::TunV4, false), (Method::TunV6, true)] {
        let mut flow = Flow::new(method, v6, false);
        flow.establish();
        for kind in KINDS {
            flow.world.tunnel = kind.tunnel();
            flow.stand(Standing::DEFAULT);
            let packet = flow.packet(ACK);
            forward(kind, &mut flow, &packet);
        }
        flow.world.tunnel = Tunnel::default();
        flow.stand(Standing::DEFAULT);
        flow.forward(&flow.packet(ACK));
        let connection = flow.world.connection("the one flow");
        assert_eq!(connection.real_server.port(), VIP_PORT, "GUE's port is not the server's");
    }
}

#[test]
fn a_probe_on_the_real_path_takes_its_tunnel() {
    let pair = ProberPair {
        near: 900,
        far: INGRESS,
        near_mac: [2, 0, 0, 0, 0xe, 1],
        far_mac: [2, 0, 0, 0, 0xe, 2],
        prober_v4: "198.18.64.1".parse().unwrap(),
        prober_v6: "fd00:9::1:1".parse().unwrap(),
        targets_v4: "198.18.0.0/18".parse().unwrap(),
        targets_v6: "fd00:9::/114".parse().unwrap(),
    };
    for (kind, method, v6, udp) in every() {
        let mut flow = flow(kind, method, v6, udp);
        let case = format!("{kind:?} {}", flow.name());
        let mut path = flow.world.plane.real_path_for_test(&pair).expect("targets");
        flow.world.tables.bind_address("probes", Role::Probed, vip(v6)).expect("the role");
        let source = server(v6, 1);
        let probed = Probed { vip: vip(v6), destination: flow.destination, source };
        let to = (path.ensure(&probed).expect("a target"), 80);
        let from: (IpAddr, u16) = (if v6 { pair.prober_v6.into() } else { pair.prober_v4.into() }, 50_123);
        let packet = if udp { Packet::udp(from, to) } else { Packet::tcp(from, to, SYN) };
        let outcome = flow.world.plane.test_run_probe(&packet.bytes()).expect("BPF_PROG_TEST_RUN");
        let events = flow.world.events_since();
        assert_eq!(outcome.action, Action::Tx, "{case}");
        assert_eq!(events, [Reason::ProbeSent], "{case}");
        let outer = &outcome.frame[14..];
        let l4 = kind.outer(flow.real) + if v6 { 40 } else { 20 };
        let port = u16::from_be_bytes([outer[l4], outer[l4 + 1]]);
        let inner = packet.clone().with(|p| {
            (p.source, p.destination) = (source, vip(v6));
            // One hop at the prober's pair, one at the tunnel.
            p.ttl -= 2;
            p.set_ports((port, 80));
        });
        let expected = wrapped(kind, &inner, &inner.ip(), flow.real, &entropy(kind, outer));
        same_frame(&case, &outcome.frame, &framed(mac_of(flow.real), DIRECTOR, &[], &expected));
        // Nobody to send to: the probe is lost, and no packet of the service's is counted.
        flow.world.tables.set_destination_path(flow.destination, 0, 1400);
        let outcome = flow.world.plane.test_run_probe(&packet.bytes()).expect("BPF_PROG_TEST_RUN");
        assert_eq!(
            (outcome.action, flow.world.events_since()),
            (Action::Drop, vec![Reason::ProbeLost]),
            "{case}"
        );
    }
}
