//! Packets that do not fit, or whose hops are used up: what the sender is told, and how often. The MSS of SYNs.

use crate::{
    flows::{Flow, Method, matrix},
    frame::{ACK, DONT_FRAGMENT, Ipv4, Ipv6, Packet, Tag, Transport, checksum, framed, pseudo_header},
    world::{DIRECTOR, GATEWAY, MTU, mac_of, same_frame, vip},
};
use aya::maps::{PerCpuArray, PerCpuValues};
use lb_common::{maps::own, scratch::Limiter, verdict::Reason};
use std::net::IpAddr;

/// An ICMP error about a packet, from the VIP: type, code, the word behind the checksum (RFC 792, RFC 1191,
/// RFC 4443). The quote is the packet's beginning.
fn icmp(about: &Packet, kind: u8, code: u8, word: u32, back: (&[Tag], [u8; 6])) -> Vec<u8> {
    let ip = about.ip();
    let mut body = vec![kind, code, 0, 0];
    body.extend(word.to_be_bytes());
    body.extend(&ip[..ip.len().min(128) & !1]);
    let vip = vip(about.is_v6());
    let packet = match (vip, about.source) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let sum = checksum(&body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            Ipv4 { tos: 0, id: 0, fragment: 0, ttl: 64, protocol: 1, source, destination }.packet(&[], &body)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut covered = pseudo_header(vip, about.source, 58, body.len());
            covered.extend(&body);
            let sum = checksum(&covered);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            Ipv6 { class: 0, flow_label: 0, next: 58, hop_limit: 64, source, destination }.packet(&body)
        }
        _ => unreachable!(),
    };
    framed(back.1, DIRECTOR, back.0, &packet)
}

pub fn too_big(about: &Packet, mtu: u16, back: (&[Tag], [u8; 6])) -> Vec<u8> {
    if about.is_v6() { icmp(about, 2, 0, mtu.into(), back) } else { icmp(about, 3, 4, mtu.into(), back) }
}

fn time_exceeded(about: &Packet, back: (&[Tag], [u8; 6])) -> Vec<u8> {
    if about.is_v6() { icmp(about, 3, 0, 0, back) } else { icmp(about, 11, 0, 0, back) }
}

/// A packet of `flow` whose IP length is `len`.
fn of_length(flow: &Flow, len: u16) -> Packet {
    let packet = flow.packet(ACK);
    let headers = packet.l4() - 14 + if flow.udp { 8 } else { 20 };
    packet.payload(usize::from(len) - headers)
}

#[test]
fn the_sender_learns_the_mtu_of_the_servers_path() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        let mtu = match method {
            Method::TunV4 => MTU - 20,
            Method::TunV6 => MTU - 40,
            _ => MTU,
        };
        let back: (&[Tag], _) = (&[], GATEWAY);
        let unknown = of_length(&flow, mtu + 1);
        if udp {
            // A new flow's first packet.
            let seen = flow.world.ends(&flow.name(), &unknown, Reason::PacketTooBig);
            same_frame(&flow.name(), &seen.frame, &too_big(&unknown, mtu, back));
        }
        flow.establish();
        flow.forward(&of_length(&flow, mtu));
        for len in [mtu + 1, mtu + 2, 1900] {
            let packet = of_length(&flow, len);
            let case = format!("{} {len} bytes", flow.name());
            let seen = flow.world.ends(&case, &packet, Reason::PacketTooBig);
            same_frame(&case, &seen.frame, &too_big(&packet, mtu, back));
            if !v6 {
                let fragmentable = packet.with(|p| p.fragment = 0);
                flow.world.ends(&format!("{case}, DF not set"), &fragmentable, Reason::TooBig);
            }
        }
        let tags: &[Tag] = &[(0x8100, 0x0064)];
        let packet = of_length(&flow, mtu + 1).tagged(tags);
        let seen = flow.world.ends("tagged", &packet, Reason::PacketTooBig);
        same_frame("tagged", &seen.frame, &too_big(&packet, mtu, (tags, GATEWAY)));
    }
}

#[test]
fn the_server_learns_the_mtu_of_the_clients_path() {
    for method in [Method::Nat, Method::FullNat] {
        for v6 in [false, true] {
            for udp in [false, true] {
                let mut flow = Flow::new(method, v6, udp);
                flow.establish();
                let reply = flow.reply(ACK);
                let headers = reply.l4() - 14 + if udp { 8 } else { 20 };
                let exact = reply.payload(usize::from(MTU) - headers);
                flow.answer(&exact);
                let large = exact.payload(usize::from(MTU) - headers + 1);
                let seen = flow.world.ends(&flow.name(), &large, Reason::PacketTooBig);
                let back: (&[Tag], _) = (&[], mac_of(flow.real));
                same_frame(&flow.name(), &seen.frame, &too_big(&large, MTU, back));
            }
        }
    }
}

#[test]
fn the_last_hop_is_answered_and_never_passed_to_the_kernel() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        let back: (&[Tag], _) = (&[], GATEWAY);
        for ttl in [0, 1] {
            let packet = flow.first().with(|p| p.ttl = ttl);
            let case = format!("{} TTL {ttl}", flow.name());
            let seen = flow.world.ends(&case, &packet, Reason::TimeExceeded);
            same_frame(&case, &seen.frame, &time_exceeded(&packet, back));
        }
        assert!(flow.world.connections().is_empty(), "{}: no flow came of it", flow.name());
        flow.establish();
        let packet = flow.packet(ACK).with(|p| p.ttl = 1);
        let seen = flow.world.ends(&flow.name(), &packet, Reason::TimeExceeded);
        same_frame(&flow.name(), &seen.frame, &time_exceeded(&packet, back));
        flow.forward(&flow.packet(ACK).with(|p| p.ttl = 2));
        if method.translates() {
            let reply = flow.reply(ACK).with(|p| p.ttl = 1);
            let seen = flow.world.ends(&flow.name(), &reply, Reason::TimeExceeded);
            same_frame(&flow.name(), &seen.frame, &time_exceeded(&reply, (&[], mac_of(flow.real))));
        }
    }
}

#[test]
fn a_long_packet_is_quoted_in_part_and_a_short_one_whole() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Dr, v6, true);
        for payload in [0, 1, 2, 50, 99, 100, 101, 200, 1400] {
            let packet = flow.first().payload(payload).with(|p| p.ttl = 1);
            let case = format!("v6={v6} payload of {payload}");
            let seen = flow.world.ends(&case, &packet, Reason::TimeExceeded);
            same_frame(&case, &seen.frame, &time_exceeded(&packet, (&[], GATEWAY)));
            let padded = packet.clone().with(|p| p.padding = 11);
            let seen = flow.world.ends(&case, &padded, Reason::TimeExceeded);
            same_frame(&case, &seen.frame, &time_exceeded(&packet, (&[], GATEWAY)));
        }
    }
}

/// Sets what this and every CPU may still answer in the running second; `waited` lets the second be over.
fn answers_left(flow: &Flow, left: u64, waited: bool) {
    let mut limiter: PerCpuArray<_, Limiter> = flow.world.map(own::LIMITER).try_into().expect("LIMITER");
    let now = flow.world.plane.clock().jiffies().expect("jiffies");
    let since = if waited { now - u64::from(flow.world.plane.clock().hz()) } else { now };
    let cpus = aya::util::nr_cpus().expect("CPUs");
    let values = PerCpuValues::try_from(vec![Limiter { since, left }; cpus]).expect("one a CPU");
    limiter.set(0, values, 0).expect("LIMITER");
}

#[test]
fn answers_are_limited_and_what_is_not_said_is_counted() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Dr, v6, false);
        let cases = [
            (flow.packet(ACK), Reason::UnknownFlowReset, Reason::ResetLimited),
            (flow.first().with(|p| p.ttl = 1), Reason::TimeExceeded, Reason::TtlExpired),
            (flow.first().payload(1500), Reason::PacketTooBig, Reason::TooBigLimited),
        ];
        for (packet, answered, limited) in cases {
            answers_left(&flow, 2, false);
            flow.world.ends("one of two", &packet, answered);
            flow.world.ends("two of two", &packet, answered);
            flow.world.ends("used up", &packet, limited);
            answers_left(&flow, 0, true);
            flow.world.ends("the next second", &packet, answered);
        }
    }
}

/// The options of a SYN.
fn syn(flow: &Flow, options: &[u8]) -> Packet {
    flow.first().with(|p| {
        if let Transport::Tcp { options: bytes, .. } = &mut p.transport {
            *bytes = options.to_vec();
            bytes.resize(options.len().div_ceil(4) * 4, 0);
        }
    })
}

#[test]
fn the_mss_of_a_syn_is_lowered_wherever_it_stands() {
    let most: u16 = 1380;
    let [high, low] = most.to_be_bytes();
    let lowered: [(&str, &[u8], &[u8]); 7] = [
        ("first", &[2, 4, 5, 180], &[2, 4, high, low]),
        ("one above", &[2, 4, 5, 101], &[2, 4, high, low]),
        ("largest", &[2, 4, 255, 255], &[2, 4, high, low]),
        ("behind a NOP: an odd offset", &[1, 2, 4, 5, 180, 0], &[1, 2, 4, high, low, 0]),
        ("behind SACK permitted", &[4, 2, 2, 4, 5, 180], &[4, 2, 2, 4, high, low]),
        ("behind window scale: odd", &[3, 3, 7, 2, 4, 5, 180], &[3, 3, 7, 2, 4, high, low]),
        (
            "last of forty bytes",
            &[
                8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8,
                4, 2, 4, 2, 4, 2, 2, 4, 5, 180,
            ],
            &[
                8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8,
                4, 2, 4, 2, 4, 2, 2, 4, high, low,
            ],
        ),
    ];
    let kept: [(&str, &[u8]); 9] = [
        ("no options", &[]),
        ("equal", &[2, 4, high, low]),
        ("below", &[2, 4, 5, 0]),
        ("zero", &[2, 4, 0, 0]),
        ("no MSS", &[4, 2, 3, 3, 7]),
        ("behind the end", &[0, 2, 4, 5, 180]),
        ("of another length", &[2, 3, 180, 1]),
        ("behind an option of length 0", &[9, 0, 2, 4, 5, 180]),
        ("behind an option that reaches beyond the header", &[9, 40, 2, 4, 5, 180]),
    ];
    for (method, v6) in [
        (Method::Dr, false),
        (Method::Dr, true),
        (Method::Nat, false),
        (Method::FullNat, true),
        (Method::TunV4, false),
    ] {
        let mut flow = Flow::with(method, v6, false, |spec| spec.mss = most);
        for (case, options, expected) in lowered {
            flow.world.forget_all();
            let (packet, lowered) = (syn(&flow, options), syn(&flow, expected));
            let seen = flow.world.send(&packet.bytes());
            assert_eq!(seen.events, [Reason::FlowNew, Reason::MssClamped], "{case}");
            same_frame(&format!("{method:?} {case}"), &seen.frame, &flow.towards_server(&lowered));
        }
        for (case, options) in kept {
            flow.world.forget_all();
            let packet = syn(&flow, options);
            let seen = flow.world.send(&packet.bytes());
            assert_eq!(seen.events, [Reason::FlowNew], "{case}");
            same_frame(&format!("{method:?} {case}"), &seen.frame, &flow.towards_server(&packet));
        }
    }
}

#[test]
fn without_a_clamp_the_mss_stays() {
    let mut flow = Flow::new(Method::Dr, false, false);
    let packet = syn(&flow, &[2, 4, 255, 255]);
    flow.forward(&packet);
}

#[test]
fn a_packet_that_routers_may_fragment_and_that_fits_is_forwarded() {
    let mut flow = Flow::new(Method::Nat, false, true);
    for fragment in [0, DONT_FRAGMENT] {
        let packet = of_length(&flow, MTU).with(|p| p.fragment = fragment);
        flow.forward(&packet);
    }
}
