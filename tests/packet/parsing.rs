//! What is ours and what is not, headers that are longer than usual, cut short or lying: a frame that is not
//! ours passes untouched, whatever it is.

use crate::{
    flows::{Flow, Method, VIP_PORT},
    frame::{
        ACK, AH, DESTINATION_OPTIONS, FIN, FRAGMENT, HOP_BY_HOP, ICMPV6, Packet, ROUTING, RST, SYN, TCP,
        framed,
    },
    world::{Counted, DIRECTOR, GATEWAY, World, client, server, vip},
};
use lb_agent::dataplane::{Action, Ports, tables::Role};
use lb_common::{address::Address, destination::Forwarding, verdict::Reason};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn stranger(v6: bool) -> IpAddr {
    if v6 { "2001:db8:bad::1".parse().unwrap() } else { "192.0.2.99".parse().unwrap() }
}

#[test]
fn what_is_not_ours_passes_untouched() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        let world = &mut flow.world;
        let (from, to) = (client(v6, 7), stranger(v6));
        for (case, packet) in [
            ("TCP", Packet::tcp((from, 1), (to, 80), SYN)),
            ("UDP", Packet::udp((from, 1), (to, 80))),
            ("ICMP", Packet::other(from, to, if v6 { ICMPV6 } else { 1 })),
            ("another protocol", Packet::other(from, to, 47)),
            ("from the VIP", Packet::tcp((vip(v6), 80), (to, 1), SYN | ACK)),
            ("to the server itself", Packet::tcp((from, 1), (flow.real, 8080), SYN)),
        ] {
            world.ends(case, &packet, Reason::NotOurs);
            world.ends(case, &packet.clone().with(|p| p.ttl = 1), Reason::NotOurs);
            world.ends(case, &packet.tagged(&[(0x8100, 5)]), Reason::NotOurs);
        }
    }
}

#[test]
fn what_is_not_ip_passes() {
    let mut world = World::new();
    for kind in [0x0806u16, 0x88cc, 0x0000, 0x05dc, 0x8847] {
        let mut frame = framed(DIRECTOR, GATEWAY, &[], &[0x45; 46]);
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        world.ends_frame(&format!("EtherType {kind:#06x}"), &frame, Reason::NotIp);
        let mut tagged = framed(DIRECTOR, GATEWAY, &[(0x8100, 5)], &[0x45; 46]);
        tagged[16..18].copy_from_slice(&kind.to_be_bytes());
        world.ends_frame(&format!("tagged EtherType {kind:#06x}"), &tagged, Reason::NotIp);
    }
}

#[test]
fn what_is_for_the_kernel_on_our_addresses_passes() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Dr, v6, false);
        let (world, from, to) = (&mut flow.world, client(v6, 7), vip(v6));
        let icmp = if v6 { ICMPV6 } else { 1 };
        for (case, packet, reason) in [
            ("ICMP", Packet::other(from, to, icmp), Reason::Icmp),
            ("GRE", Packet::other(from, to, 47), Reason::OtherProtocol),
            (
                "the other family's ICMP",
                Packet::other(from, to, if v6 { 1 } else { ICMPV6 }),
                Reason::OtherProtocol,
            ),
            ("a port without service", Packet::tcp((from, 1), (to, 81), SYN), Reason::NoService),
            ("a port without service, no SYN", Packet::tcp((from, 1), (to, 81), ACK), Reason::NoService),
            ("the service's port in UDP", Packet::udp((from, 1), (to, 80)), Reason::NoService),
        ] {
            world.ends(case, &packet, reason);
            world.ends(case, &packet.clone().tagged(&[(0x8100, 5)]), reason);
            world.ends(case, &packet.with(|p| p.ttl = 1), reason);
        }
    }
}

#[test]
fn a_packet_that_only_may_be_or_may_not_be_fragmented_is_whole() {
    let mut flow = Flow::new(Method::Dr, false, true);
    for reserved in [0x8000, 0x0000, 0x4000] {
        let packet = flow.first().with(|p| p.fragment = reserved);
        flow.forward(&packet);
    }
    // An atomic fragment (RFC 6946): the header of one, and nothing missing.
    let mut flow = Flow::new(Method::Dr, true, true);
    let fragment = (FRAGMENT, vec![0, 0, 0, 0, 0, 0, 7]);
    for extensions in [vec![fragment.clone()], vec![(HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0]), fragment]] {
        let packet = flow.first().with(|p| p.extensions = extensions.clone());
        flow.forward(&packet);
    }
}

#[test]
fn ipv4_options_go_along() {
    for method in Method::ALL {
        for udp in [false, true] {
            let mut flow = Flow::new(method, false, udp);
            for words in 1..=10 {
                let packet = flow.first().with(|p| p.options = vec![1; words * 4]);
                flow.forward(&packet);
                if method.translates() {
                    flow.answer(&flow.reply(ACK).with(|p| p.options = vec![1; words * 4]));
                }
            }
        }
    }
}

#[test]
fn ipv6_extension_headers_go_along() {
    let padding = vec![0, 1, 4, 0, 0, 0, 0];
    let longer = [vec![1, 1, 12], vec![0; 12]].concat();
    let routing = vec![0, 4, 0, 0, 0, 0, 0];
    // The length of an AH is in words of four bytes, less two (RFC 4302, section 2.2).
    let ah = [vec![4, 0, 0], vec![9; 20]].concat();
    let cases: [Vec<(u8, Vec<u8>)>; 7] = [
        vec![(HOP_BY_HOP, padding.clone())],
        vec![(DESTINATION_OPTIONS, longer.clone())],
        vec![(ROUTING, routing.clone())],
        vec![(AH, ah.clone())],
        vec![
            (HOP_BY_HOP, longer.clone()),
            (ROUTING, routing.clone()),
            (AH, ah),
            (DESTINATION_OPTIONS, padding.clone()),
        ],
        vec![(DESTINATION_OPTIONS, padding.clone()); 6],
        vec![(DESTINATION_OPTIONS, [vec![60, 1, 255], vec![0; 484]].concat())],
    ];
    for method in Method::ALL {
        for udp in [false, true] {
            let mut flow = Flow::new(method, true, udp);
            for extensions in &cases {
                let packet = flow.first().with(|p| p.extensions = extensions.clone());
                flow.forward(&packet);
                if method.translates() {
                    flow.answer(&flow.reply(ACK).with(|p| p.extensions = extensions.clone()));
                }
            }
        }
    }
    let mut flow = Flow::new(Method::Dr, true, false);
    let seven = flow.first().with(|p| p.extensions = vec![(DESTINATION_OPTIONS, padding); 7]);
    flow.world.ends("seven headers", &seven, Reason::TooManyHeaders);
    let long = [vec![255, 1, 255], vec![0; 2044]].concat();
    let long = flow.first().with(|p| p.extensions = vec![(DESTINATION_OPTIONS, long)]);
    flow.world.ends("a header of 2 KiB", &long, Reason::TooManyHeaders);
}

/// The frames whose headers the cases below cut and falsify.
fn headers(flow: &Flow) -> Vec<(&'static str, Packet)> {
    let first = flow.first();
    let mut all = vec![("plain", first.clone()), ("tagged", first.clone().tagged(&[(0x8100, 9)]))];
    if flow.v6 {
        let extensions =
            vec![(HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0]), (AH, [vec![4, 0, 0], vec![9; 20]].concat())];
        all.push(("extended", first.with(|p| p.extensions = extensions)));
    } else {
        all.push(("with options", first.with(|p| p.options = vec![1; 8])));
    }
    all
}

#[test]
fn a_frame_cut_short_anywhere_is_counted_and_never_forwarded() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let mut flow = Flow::new(Method::Nat, v6, udp);
            for (kind, packet) in headers(&flow) {
                let frame = packet.bytes();
                let transport = packet.l4() + if udp { 8 } else { 20 };
                for length in 14..frame.len() {
                    let case = format!("{} {kind} cut to {length} of {}", flow.name(), frame.len());
                    let seen = flow.world.send(&frame[..length]);
                    let Counted::Reason(reason) = seen.counted else { panic!("{case}: {:?}", seen.counted) };
                    let expected = if length < packet.l4() {
                        // The IP header or an extension header is not there.
                        [Reason::BadHeader, Reason::BadTransport]
                    } else {
                        [Reason::BadTransport; 2]
                    };
                    assert!(expected.contains(&reason), "{case}: {reason:?}");
                    if length < packet.l3() + if v6 { 40 } else { 20 } {
                        assert_eq!(reason, Reason::BadHeader, "{case}");
                    }
                    if length >= transport {
                        assert_eq!(
                            reason,
                            Reason::BadTransport,
                            "{case}: the packet is longer than the frame"
                        );
                    }
                }
                assert!(flow.world.connections().is_empty(), "{}: no flow came of it", flow.name());
            }
        }
    }
}

#[test]
fn a_strangers_frame_cut_short_anywhere_passes() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        for (kind, packet) in headers(&flow) {
            let packet = packet.with(|p| p.destination = stranger(v6));
            let frame = packet.bytes();
            for length in 14..frame.len() {
                let seen = flow.world.send(&frame[..length]);
                assert_eq!(seen.action, Action::Pass, "{kind} cut to {length}");
            }
        }
    }
}

/// A lie about a header of the packet to the VIP: where, relative to IP or transport header, and what.
enum At {
    Ip(usize),
    Transport(usize),
}

#[test]
fn a_length_that_lies_is_not_believed() {
    use At::{Ip, Transport};
    // UDP: 8 of header, 9 of payload.
    let udp: [(&str, At, Vec<u8>); 4] = [
        ("UDP length below its header", Transport(4), vec![0, 7]),
        ("UDP length 0", Transport(4), vec![0, 0]),
        ("UDP length beyond the packet", Transport(4), vec![0, 18]),
        ("UDP length far beyond", Transport(4), vec![0xff, 0xff]),
    ];
    let tcp: [(&str, At, Vec<u8>); 3] = [
        ("TCP data offset 0", Transport(12), vec![0x00]),
        ("TCP data offset 4", Transport(12), vec![0x40]),
        ("TCP data offset beyond the packet", Transport(12), vec![0x60]),
    ];
    for v6 in [false, true] {
        for is_udp in [false, true] {
            let mut flow = Flow::new(Method::Nat, v6, is_udp);
            let short = if v6 { vec![0, 7] } else { vec![0, 27] };
            let at = if v6 { 4 } else { 2 };
            let mut lies = vec![
                ("IP length beyond the frame", Ip(at), vec![0x05, 0xdc]),
                ("IP length without room for a transport header", Ip(at), short),
                ("IP length 0", Ip(at), vec![0, 0]),
                ("IP length of all ones", Ip(at), vec![0xff, 0xff]),
            ];
            for (case, at, bytes) in if is_udp { &udp[..] } else { &tcp[..] } {
                let at = match at {
                    Ip(at) => Ip(*at),
                    Transport(at) => Transport(*at),
                };
                lies.push((case, at, bytes.clone()));
            }
            for (case, at, bytes) in lies {
                for (kind, packet) in headers(&flow) {
                    let packet = packet.with(|p| p.padding = 0);
                    let mut frame = packet.bytes();
                    let at = match at {
                        Ip(at) => packet.l3() + at,
                        Transport(at) => packet.l4() + at,
                    };
                    frame[at..at + bytes.len()].copy_from_slice(&bytes);
                    flow.world.ends_frame(
                        &format!("{} {kind}: {case}", flow.name()),
                        &frame,
                        Reason::BadTransport,
                    );
                }
            }
            assert!(flow.world.connections().is_empty(), "{}: no flow came of it", flow.name());
        }
    }
}

#[test]
fn an_ip_header_that_lies_of_itself_passes() {
    let mut flow = Flow::new(Method::Nat, false, false);
    for first in [0x00, 0x40, 0x41, 0x44, 0x65, 0x35, 0xf5] {
        let mut frame = flow.first().bytes();
        frame[14] = first;
        flow.world.ends_frame(&format!("first byte {first:#04x}"), &frame, Reason::BadHeader);
    }
    let mut flow = Flow::new(Method::Nat, true, false);
    for first in [0x00, 0x45, 0x50, 0x70, 0xf0] {
        let mut frame = flow.first().bytes();
        frame[14] = first;
        flow.world.ends_frame(&format!("first byte {first:#04x}"), &frame, Reason::BadHeader);
    }
}

/// An IPv4 header length that reaches into or beyond the transport header moves what is taken for ports.
#[test]
fn an_ipv4_header_length_that_lies_is_never_forwarded() {
    let mut flow = Flow::new(Method::Nat, false, false);
    for words in 6..=15 {
        let mut frame = flow.first().bytes();
        frame[14] = 0x40 | words;
        let seen = flow.world.send(&frame);
        assert!(matches!(seen.counted, Counted::Reason(_)), "{words} words: {:?}", seen.counted);
    }
}

#[test]
fn flags_that_no_stack_sends_are_dropped() {
    for method in Method::ALL {
        let mut flow = Flow::new(method, false, false);
        let (psh, urg) = (0x08, 0x20);
        for flags in [
            SYN | FIN,
            SYN | RST,
            SYN | RST | FIN,
            SYN | FIN | ACK,
            SYN | RST | ACK,
            0x3f,
            0,
            psh,
            FIN,
            urg,
            FIN | psh | urg,
            RST | FIN,
            RST | FIN | ACK,
            RST | urg,
            SYN | ACK | urg,
        ] {
            let packet = flow.packet(flags);
            flow.world.ends(&format!("{method:?} flags {flags:#04x}, no flow"), &packet, Reason::BadFlags);
        }
        assert!(flow.world.connections().is_empty());
        flow.establish();
        for flags in [SYN | FIN, SYN | RST] {
            let packet = flow.packet(flags);
            flow.world.ends(&format!("{method:?} flags {flags:#04x}, a flow"), &packet, Reason::BadFlags);
        }
    }
}

#[test]
fn sources_that_no_host_has_are_dropped() {
    let v4 = ["0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.255.255", "255.255.255.255"];
    let v6 = ["::", "::1", "ff02::1", "ff0e::9"];
    let good = ["223.255.255.255", "240.0.0.1", "126.0.0.1", "fe80::1", "1::1", "::2", "::1:0:0:0:1"];
    for method in Method::ALL {
        for udp in [false, true] {
            for source in v4.iter().chain(&v6).chain(&good).map(|text| text.parse::<IpAddr>().unwrap()) {
                let mut flow = Flow::new(method, source.is_ipv6(), udp);
                let case = format!("{} from {source}", flow.name());
                let packet = flow.packet_from(source, 5000, SYN);
                if good.contains(&source.to_string().as_str()) {
                    flow.world.goes_to(&case, &packet);
                } else {
                    flow.world.ends(&case, &packet, Reason::BadSource);
                    assert!(flow.world.entries().is_empty(), "{case}");
                }
            }
        }
    }
}

#[test]
fn a_packet_from_the_address_that_it_is_sent_to_is_dropped() {
    for method in Method::ALL {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut flow = Flow::new(method, v6, udp);
            for port in [VIP_PORT, 5000] {
                for flags in [SYN, ACK] {
                    let packet = flow.packet_from(vip(v6), port, flags);
                    flow.world.ends(&flow.name(), &packet, Reason::Land);
                    let tagged = packet.tagged(&[(0x8100, 5)]);
                    flow.world.ends(&flow.name(), &tagged, Reason::Land);
                }
            }
            assert!(flow.world.entries().is_empty(), "{}", flow.name());
        }
    }
}

/// Another address in the VIP's cell of the filter, found by trying.
fn shares_a_cell(world: &World, v6: bool, with: IpAddr) -> IpAddr {
    let views = world.views();
    let cell = views.cell_of(&Address::from(with), v6);
    (1u32..)
        .map(|n| -> IpAddr {
            if v6 {
                Ipv6Addr::from((0x2001_0db8_ffff_u128 << 80) | u128::from(n)).into()
            } else {
                Ipv4Addr::from(0x2d00_0000 + n).into()
            }
        })
        .find(|address| views.cell_of(&Address::from(*address), v6) == cell)
        .expect("4096 cells")
}

#[test]
fn a_stranger_in_a_vips_filter_cell_passes_even_malformed() {
    for v6 in [false, true] {
        for udp in [false, true] {
            let mut flow = Flow::new(Method::Nat, v6, udp);
            let alike = shares_a_cell(&flow.world, v6, vip(v6));
            let world = &mut flow.world;
            let to = |flags| {
                let (from, to) = ((client(v6, 7), 40_000), (alike, VIP_PORT));
                if udp { Packet::udp(from, to) } else { Packet::tcp(from, to, flags) }
            };
            world.ends("first", &to(SYN), Reason::NotOurs);
            world.ends("later", &to(ACK), Reason::NotOurs);
            world.ends("bad flags", &to(SYN | FIN), Reason::NotOurs);
            world.ends("last hop", &to(SYN).with(|p| p.ttl = 1), Reason::NotOurs);
            world.ends("tagged", &to(SYN).tagged(&[(0x8100, 5)]), Reason::NotOurs);
            let whole = to(SYN);
            let frame = whole.bytes();
            for length in 14..frame.len() {
                let seen = world.send(&frame[..length]);
                assert_eq!(seen.action, Action::Pass, "cut to {length}");
                if length >= whole.l4() {
                    assert_eq!(seen.counted, Counted::Reason(Reason::NotOurs), "cut to {length}");
                }
            }
            let mut lying = frame.clone();
            let at = if udp { whole.l4() + 4 } else { whole.l4() + 12 };
            lying[at] = 0xf0;
            world.ends_frame("a transport header that lies", &lying, Reason::NotOurs);
        }
    }
}

#[test]
fn a_stranger_in_a_pool_addresss_or_servers_filter_cell_passes() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::FullNat, v6, false);
        let alike = shares_a_cell(&flow.world, v6, crate::world::local(v6));
        for flags in [SYN, ACK, RST] {
            let packet = Packet::tcp((flow.real, 8080), (alike, 2000), flags);
            flow.world.ends("to an address alike the pool's", &packet, Reason::NotOurs);
        }
        let mut flow = Flow::new(Method::Nat, v6, false);
        let alike = shares_a_cell(&flow.world, v6, flow.real);
        for flags in [SYN, ACK, RST] {
            let packet = Packet::tcp((alike, 8080), (client(v6, 7), 2000), flags);
            flow.world.ends("from an address alike the server's", &packet, Reason::NotOurs);
            let packet = Packet::tcp((flow.real, 8080), (client(v6, 7), 2000), flags);
            flow.world.ends("from the server, no flow", &packet, Reason::ServerTraffic);
        }
    }
}

#[test]
fn two_pool_addresses_in_one_cell_are_told_apart() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::FullNat, v6, false);
        // The second address makes the cell ambiguous: the exact table decides.
        let alike = shares_a_cell(&flow.world, v6, crate::world::local(v6));
        flow.world.tables.bind_address("other", Role::Pool(1), alike).expect("pool address");
        flow.establish();
        flow.answer(&flow.reply(ACK));
        let packet = Packet::tcp((flow.real, 8080), (alike, flow.lease()), ACK);
        flow.world.ends("the same port of the other address", &packet, Reason::NoLease);
    }
}

#[test]
fn a_vip_in_a_pool_addresss_or_servers_filter_cell_is_served() {
    for v6 in [false, true] {
        for method in [Method::Nat, Method::FullNat] {
            let mut flow = Flow::new(method, v6, false);
            flow.establish();
            for (n, with) in [(1, crate::world::local(v6)), (2, flow.real)] {
                let alike = shares_a_cell(&flow.world, v6, with);
                let spec = flow.world.spec(&format!("alike{n}"), alike, TCP, &[Ports::One(VIP_PORT)]);
                flow.world.service(&spec);
                let destination = flow.world.server(&spec, server(v6, 30 + n), 0, Forwarding::Dr);
                flow.world.slots(&spec.name, &[destination]);
                for flags in [SYN, ACK] {
                    let packet = Packet::tcp((client(v6, 7), 50_000), (alike, VIP_PORT), flags);
                    assert_eq!(flow.world.goes_to(&spec.name, &packet), destination);
                }
            }
            assert_eq!(flow.world.connections().len(), 3);
        }
    }
}

#[test]
fn a_servers_other_traffic_passes() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        let (real, other) = (flow.real, server(v6, 12));
        for (case, packet, reason) in [
            (
                "its own connection",
                Packet::tcp((real, 50_000), (stranger(v6), 443), SYN),
                Reason::ServerTraffic,
            ),
            ("UDP", Packet::udp((real, 50_000), (stranger(v6), 53)), Reason::ServerTraffic),
            ("ICMP", Packet::other(real, stranger(v6), if v6 { ICMPV6 } else { 1 }), Reason::Icmp),
            (
                "from one that is no server",
                Packet::tcp((other, 8080), (stranger(v6), 443), SYN),
                Reason::NotOurs,
            ),
        ] {
            flow.world.ends(case, &packet, reason);
        }
    }
}
