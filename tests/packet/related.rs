//! ICMP errors that quote a packet of a flow: to whom they go, and what they look like there. Expected checksums are
//! computed in full over the translated packet before it is cut to a quote, the program's incrementally.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT, matrix, tunnelled},
    frame::{
        ACK, AH, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMPV6, Packet, ROUTING, SYN, Transport,
        checksum, framed,
    },
    world::{
        Counted, DIRECTOR, GATEWAY, Seen, client, local, mac_of, same_frame, server, tunnel_source, vip,
    },
};
use lb_common::{service::Pick, verdict::Reason};
use std::net::IpAddr;

/// A router on the clients' side.
pub fn router(v6: bool) -> IpAddr {
    client(v6, 254)
}

/// A router on the servers' side, which is no real server.
pub fn inner_router(v6: bool) -> IpAddr {
    server(v6, 253)
}

/// Type and code of what is said, and the word behind the checksum.
pub type Said = (u8, u8, u32);

fn errors(v6: bool) -> &'static [Said] {
    if v6 {
        &[(1, 0, 0), (1, 4, 0), (2, 0, 1280), (3, 0, 0), (4, 1, 40)]
    } else {
        &[(3, 1, 0), (3, 3, 0), (3, 4, 1280), (4, 0, 0), (11, 0, 0), (12, 0, 20 << 24)]
    }
}

/// An error about a packet, with `quoted` bytes of it behind its IP header and extensions.
pub fn error(from: IpAddr, to: IpAddr, said: Said, about: &Packet, quoted: usize) -> Packet {
    let v6 = about.is_v6();
    let ip = about.ip();
    let quoted = (about.l4() - about.l3() + quoted).min(ip.len());
    let mut body = vec![said.0, said.1, 0, 0];
    body.extend(said.2.to_be_bytes());
    body.extend(&ip[..quoted]);
    if !v6 {
        let sum = checksum(&body);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    Packet::other(from, to, if v6 { ICMPV6 } else { 1 }).with(|p| p.payload = body)
}

/// The packet that the VIP sent to the client, as it was quoted.
pub fn from_vip(flow: &Flow) -> Packet {
    let (from, to) = ((vip(flow.v6), VIP_PORT), (client(flow.v6, 7), CLIENT_PORT));
    if flow.udp { Packet::udp(from, to) } else { Packet::tcp(from, to, ACK) }
}

/// The same as the server sent it.
fn from_server(flow: &Flow, about: &Packet) -> Packet {
    about.clone().with(|p| {
        p.source = flow.real;
        let port = if flow.method == Method::FullNat {
            p.destination = local(flow.v6);
            flow.lease()
        } else {
            CLIENT_PORT
        };
        p.set_ports((flow.server_port(), port));
    })
}

/// What arrives at the server.
pub fn at_server(flow: &Flow, packet: &Packet, said: Said, about: &Packet, quoted: usize) -> Vec<u8> {
    let mut out = packet.clone();
    if flow.method.translates() {
        let sender = if flow.method == Method::FullNat { local(flow.v6) } else { packet.source };
        out.payload = error(sender, flow.real, said, &from_server(flow, about), quoted).payload;
        (out.source, out.destination) = (sender, flow.real);
    }
    out.tags.clear();
    out.padding = 0;
    (out.to, out.from) = (mac_of(flow.real), DIRECTOR);
    out.ttl -= 1;
    match flow.method {
        Method::TunV4 | Method::TunV6 => framed(out.to, out.from, &[], &tunnelled(&out, flow.real)),
        _ => out.with(|p| p.padding = packet.padding).bytes(),
    }
}

/// The packet of the client's that the server was sent, and as the client sent it.
fn towards(flow: &Flow) -> (Packet, Packet) {
    let sent = flow.packet(ACK);
    (as_sent(flow, &sent), sent)
}

/// A client's packet as the server was sent it.
pub fn as_sent(flow: &Flow, packet: &Packet) -> Packet {
    packet.clone().with(|p| {
        let mut ports = (CLIENT_PORT, flow.server_port());
        p.destination = flow.real;
        if flow.method == Method::FullNat {
            p.source = local(flow.v6);
            ports.0 = flow.lease();
        }
        p.set_ports(ports);
    })
}

/// The error goes there, like this.
#[track_caller]
pub fn goes(flow: &mut Flow, case: &str, packet: &Packet, counted: Counted, expected: &[u8]) -> Seen {
    let case = format!("{} {case}", flow.name());
    let seen = flow.world.send(&packet.bytes());
    assert_eq!(seen.counted, counted, "{case}");
    // What lies behind a short packet in its frame goes through a tunnel too: it is no part of the packet.
    same_frame(&case, &seen.frame[..expected.len().min(seen.frame.len())], expected);
    seen
}

#[test]
fn an_error_about_a_vips_packet_reaches_the_server_that_sent_it() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        flow.establish();
        let about = from_vip(&flow);
        for said in errors(v6) {
            for quoted in [8, 9, 16, 18, 19, 20, 24, 1000] {
                let packet = error(router(v6), vip(v6), *said, &about, quoted);
                let expected = at_server(&flow, &packet, *said, &about, quoted);
                let counted = Counted::In(flow.destination);
                let seen = goes(&mut flow, &format!("{said:?} {quoted}"), &packet, counted, &expected);
                assert_eq!(seen.events, [Reason::IcmpToServer]);
            }
        }
    }
}

#[test]
fn an_error_about_a_clients_packet_that_was_translated_reaches_the_client() {
    for method in [Method::Nat, Method::FullNat] {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut flow = Flow::new(method, v6, udp);
            flow.establish();
            let (about, original) = towards(&flow);
            for from in [flow.real, inner_router(v6)] {
                for said in errors(v6) {
                    for quoted in [8, 16, 18, 20, 1000] {
                        let mac = mac_of(from);
                        let packet = error(from, about.source, *said, &about, quoted).with(|p| p.from = mac);
                        let out = error(vip(v6), client(v6, 7), *said, &original, quoted).with(|p| {
                            (p.to, p.from) = (GATEWAY, DIRECTOR);
                            p.ttl -= 1;
                        });
                        let case = format!("from {from} {said:?} {quoted}");
                        let counted = Counted::Out(flow.destination);
                        let seen = goes(&mut flow, &case, &packet, counted, &out.bytes());
                        assert_eq!(seen.events, [Reason::IcmpToClient], "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn options_extension_headers_and_tags_are_walked_outside_and_inside() {
    let options: [&[u8]; 3] = [&[], &[1, 1, 1, 0], &[7, 39, 4, 1, 2, 3, 4, 5]];
    let extensions: [&[(u8, Vec<u8>)]; 6] = [
        &[],
        &[(HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0])],
        &[(DESTINATION_OPTIONS, [vec![1], vec![0; 14]].concat())],
        &[(HOP_BY_HOP, vec![0; 7]), (ROUTING, vec![0; 7]), (DESTINATION_OPTIONS, vec![0; 7])],
        // The first fragment of a packet: it has the ports.
        &[(FRAGMENT, vec![0, 0, 1, 0, 0, 0, 9])],
        &[(AH, [vec![2], vec![0; 14]].concat())],
    ];
    for method in Method::ALL {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut flow = Flow::new(method, v6, udp);
            flow.establish();
            let said = if v6 { (2, 0, 1300) } else { (3, 4, 1300) };
            for inside in 0..if v6 { extensions.len() } else { options.len() } {
                for tags in [&[][..], &[(0x8100, 0x0064)]] {
                    let mut about = from_vip(&flow);
                    if v6 {
                        about.extensions = extensions[inside].to_vec();
                    } else {
                        about.options = options[inside].to_vec();
                        about.options.resize(options[inside].len().div_ceil(4) * 4, 0);
                    }
                    let packet = error(router(v6), vip(v6), said, &about, 8).tagged(tags);
                    let expected = at_server(&flow, &packet, said, &about, 8);
                    let counted = Counted::In(flow.destination);
                    goes(&mut flow, &format!("inside {inside} {tags:?}"), &packet, counted, &expected);
                }
            }
            // Outside.
            let about = from_vip(&flow);
            let outside = error(router(v6), vip(v6), said, &about, 20).with(|p| {
                if v6 {
                    p.extensions = vec![(DESTINATION_OPTIONS, vec![0; 7])];
                } else {
                    p.options = vec![1, 1, 1, 0];
                }
            });
            let expected = at_server(&flow, &outside, said, &about, 20);
            let counted = Counted::In(flow.destination);
            goes(&mut flow, "outside", &outside, counted, &expected);
        }
    }
}

#[test]
fn a_quoted_datagram_without_checksum_stays_without() {
    for method in [Method::Nat, Method::FullNat, Method::Dr] {
        let mut flow = Flow::new(method, false, true);
        flow.establish();
        let about = from_vip(&flow).with(|p| {
            if let Transport::Udp { checksum, .. } = &mut p.transport {
                *checksum = false;
            }
        });
        let packet = error(router(false), vip(false), (3, 3, 0), &about, 8);
        let expected = at_server(&flow, &packet, (3, 3, 0), &about, 8);
        let counted = Counted::In(flow.destination);
        goes(&mut flow, "no checksum", &packet, counted, &expected);
    }
}

#[test]
fn padding_behind_a_short_error_is_not_taken_for_a_checksum() {
    let mut flow = Flow::new(Method::Nat, false, false);
    flow.establish();
    let about = from_vip(&flow);
    let packet = error(router(false), vip(false), (3, 1, 0), &about, 8).with(|p| p.padding = 30);
    let expected = at_server(&flow, &packet, (3, 1, 0), &about, 8);
    let counted = Counted::In(flow.destination);
    goes(&mut flow, "padding", &packet, counted, &expected);
}

#[test]
fn another_director_of_a_pair_knows_the_server_of_a_hash_service_without_the_flow() {
    for pick in [Pick::HashAddress, Pick::HashAddressPort, Pick::IpvsSh, Pick::IpvsMhPort] {
        for (method, v6, udp) in matrix() {
            let mut flow = Flow::with(method, v6, udp, |spec| spec.pick = pick);
            let others: Vec<_> = (12..20)
                .map(|n| {
                    let real = server(method.real_is_v6(v6), n);
                    flow.world.server(&flow.spec, real, flow.real_port, method.forwarding())
                })
                .collect();
            let slots: Vec<_> = others.iter().copied().chain([flow.destination]).cycle().take(251).collect();
            flow.world.slots("web", &slots);
            // Where the flow goes, by the director that has it.
            let Counted::In(chosen) = flow.world.send(&flow.first().bytes()).counted else { panic!() };
            flow.world.forget_all();
            let about = from_vip(&flow);
            let said = if v6 { (2, 0, 1300) } else { (3, 4, 1300) };
            let packet = error(router(v6), vip(v6), said, &about, 8);
            if method == Method::FullNat {
                // Which local port it has is known where the flow is.
                flow.world.ends(&flow.name(), &packet, Reason::IcmpNoFlow);
                continue;
            }
            if let Some(n) = others.iter().position(|other| *other == chosen) {
                (flow.real, flow.destination) = (server(method.real_is_v6(v6), 12 + n as u8), chosen);
            }
            let expected = at_server(&flow, &packet, said, &about, 8);
            goes(&mut flow, &format!("{pick:?}"), &packet, Counted::In(chosen), &expected);
            assert!(flow.world.connections().is_empty(), "an error makes no flow");
        }
    }
}

#[test]
fn an_error_that_quotes_no_flow_is_the_kernels() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::new(method, v6, udp);
        let said = if v6 { (1, 0, 0) } else { (3, 1, 0) };
        let about = from_vip(&flow);
        let packet = error(router(v6), vip(v6), said, &about, 20);
        flow.world.ends("no flow, rr", &packet, Reason::IcmpNoFlow);
        flow.establish();
        let other_port = about.clone().with(|p| p.set_ports((VIP_PORT, CLIENT_PORT + 1)));
        let to_other = about.clone().with(|p| p.destination = client(v6, 9));
        let from_other = about.clone().with(|p| p.source = vip(v6)).with(|p| p.set_ports((81, CLIENT_PORT)));
        for (case, about) in [("port", other_port), ("client", to_other), ("VIP's port", from_other)] {
            let packet = error(router(v6), vip(v6), said, &about, 20);
            flow.world.ends(&format!("{} another {case}", flow.name()), &packet, Reason::IcmpNoFlow);
        }
        // A packet that somebody else sent.
        let stranger = about.clone().with(|p| p.source = client(v6, 33));
        let packet = error(router(v6), vip(v6), said, &stranger, 20);
        flow.world.ends("not the VIP's packet", &packet, Reason::IcmpNoFlow);
        // Too short: the ports are cut.
        let packet = error(router(v6), vip(v6), said, &about, 7);
        flow.world.ends("seven bytes", &packet, Reason::IcmpNoFlow);
        let packet = error(router(v6), vip(v6), said, &about, 20).with(|p| p.payload.truncate(8));
        flow.world.ends("no quote", &packet, Reason::IcmpNoFlow);
        // A later fragment has no ports.
        let later = about.clone().with(|p| {
            if v6 {
                p.extensions = vec![(FRAGMENT, vec![0, 0, 9, 0, 0, 0, 9])];
            } else {
                p.fragment = 100;
            }
        });
        let packet = error(router(v6), vip(v6), said, &later, 20);
        flow.world.ends("later fragment", &packet, Reason::IcmpNoFlow);
        // No error.
        let echo = Packet::other(router(v6), vip(v6), if v6 { ICMPV6 } else { 1 });
        let echo = echo.with(|p| p.payload[0] = if v6 { 129 } else { 0 });
        flow.world.ends("echo reply", &echo, Reason::Icmp);
        let packet = error(router(v6), vip(v6), said, &about, 20).with(|p| p.ttl = 1);
        let seen = flow.world.ends("last hop", &packet, Reason::IcmpTtlExpired);
        assert!(seen.events.is_empty());
    }
}

#[test]
fn errors_that_are_nothing_to_us_pass() {
    for v6 in [false, true] {
        for method in Method::ALL {
            let mut flow = Flow::new(method, v6, false);
            flow.establish();
            let said = if v6 { (1, 0, 0) } else { (3, 1, 0) };
            let (here, there) = ((client(v6, 50), 1000), (client(v6, 60), 2000));
            let about = Packet::tcp(here, there, ACK);
            let packet = error(client(v6, 60), here.0, said, &about, 20);
            flow.world.ends("between strangers", &packet, Reason::NotOurs);
            // About a packet to a real server that no flow sent.
            if method.real_is_v6(v6) == v6 {
                let about = Packet::tcp((client(v6, 7), 7777), (flow.real, 8080), ACK);
                let packet = error(inner_router(v6), client(v6, 7), said, &about, 20);
                flow.world.ends("no flow", &packet, Reason::NotOurs);
            }
            let fragment = error(client(v6, 60), here.0, said, &about, 20);
            let fragment = if v6 {
                fragment.with(|p| p.extensions = vec![(FRAGMENT, vec![0, 0, 9, 0, 0, 0, 9])])
            } else {
                fragment.with(|p| p.fragment = 0x2000)
            };
            flow.world.ends("a fragment", &fragment, Reason::NotOurs);
        }
    }
}

#[test]
fn a_local_address_hears_only_of_its_own_flows() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::FullNat, v6, false);
        flow.establish();
        let said = if v6 { (1, 0, 0) } else { (3, 1, 0) };
        let (about, _) = towards(&flow);
        let ports = about.ports();
        let wrong = [
            ("lease", about.clone().with(|p| p.set_ports((ports.0 ^ 1, ports.1)))),
            ("server", about.clone().with(|p| p.destination = server(v6, 99))),
            ("server's port", about.clone().with(|p| p.set_ports((ports.0, ports.1 + 1)))),
            ("protocol", Packet::udp((about.source, ports.0), (about.destination, ports.1))),
        ];
        for (case, about) in wrong {
            let packet = error(inner_router(v6), local(v6), said, &about, 20);
            flow.world.ends(&format!("another {case}"), &packet, Reason::IcmpNoFlow);
        }
    }
}

#[test]
fn a_server_that_refuses_the_first_packet_is_noticed() {
    for method in [Method::Nat, Method::FullNat] {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut flow = Flow::new(method, v6, udp);
            flow.forward(&flow.packet(SYN));
            let (about, _) = towards(&flow);
            let refused = if v6 { (1, 4, 0) } else { (3, 3, 0) };
            let too_big = if v6 { (2, 0, 1280) } else { (3, 4, 1280) };
            let sent = |said| error(flow.real, about.source, said, &about, 20);
            let (refused, too_big) = (sent(refused), sent(too_big));
            let seen = flow.world.send(&refused.bytes());
            assert_eq!(seen.events, [Reason::IcmpToClient, Reason::ServerUnreachable]);
            let seen = flow.world.send(&too_big.bytes());
            assert_eq!(seen.events, [Reason::IcmpToClient], "only too big");
            flow.answer(&flow.reply(SYN | ACK));
            flow.forward(&flow.packet(ACK));
            let seen = flow.world.send(&refused.bytes());
            assert_eq!(seen.events, [Reason::IcmpToClient], "the flow stands");
        }
    }
}

/// A router's word about a tunnel packet of ours that carries `inner`: `quoted` bytes of it behind the outer header.
fn about_tunnel(flow: &Flow, inner: &Packet, mtu: u32, quoted: usize) -> Packet {
    let v6 = flow.real.is_ipv6();
    let outer = tunnelled(inner, flow.real);
    let header = if v6 { 40 } else { 20 };
    let mut body = if v6 { vec![2, 0, 0, 0] } else { vec![3, 4, 0, 0] };
    body.extend(mtu.to_be_bytes());
    body.extend(&outer[..(header + quoted).min(outer.len())]);
    if !v6 {
        let sum = checksum(&body);
        body[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let from = server(v6, 253);
    Packet::other(from, tunnel_source(v6), if v6 { ICMPV6 } else { 1 }).with(|p| {
        p.payload = body;
        p.from = mac_of(from);
    })
}

#[test]
fn a_router_that_cuts_a_tunnel_lowers_its_destination_and_the_client_is_told() {
    for method in [Method::TunV4, Method::TunV6] {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut flow = Flow::new(method, v6, udp);
            flow.establish();
            let sent = flow.packet(ACK).payload(1400);
            let (mtu, header) = if method == Method::TunV4 { (1400, 20) } else { (1380, 40) };
            let at_router = sent.clone().with(|p| p.ttl -= 1);
            let inner_header = if v6 { 40 } else { 20 };
            for (quoted, told) in
                [(8, false), (inner_header + 7, false), (inner_header + 8, true), (500, true)]
            {
                let case = format!("{} {quoted} bytes quoted", flow.name());
                let heard = about_tunnel(&flow, &at_router, mtu, quoted);
                if !told {
                    flow.world.ends(&case, &heard, Reason::TunnelMtu);
                    continue;
                }
                let seen = flow.world.ends(&case, &heard, Reason::TunnelMtuTold);
                let said = (if v6 { 2 } else { 3 }, if v6 { 0 } else { 4 }, mtu - header);
                let body = quoted.min(128) - inner_header;
                let expected = error(vip(v6), client(v6, 7), said, &at_router, body).with(|p| {
                    (p.to, p.from, p.tos, p.ttl) = (GATEWAY, DIRECTOR, 0, 64);
                    (p.id, p.fragment, p.flow_label) = (0, 0, 0);
                });
                same_frame(&case, &seen.frame, &expected.bytes());
            }
            // The agent looks: from now on the client's next packet is answered here.
            flow.forward(&sent);
            let now = std::time::Instant::now();
            let changes = flow.world.tables.follow_paths(now).unwrap();
            assert_eq!((changes.len(), changes[0].address, changes[0].mtu), (1, flow.real, Some(mtu as u16)));
            flow.world.ends(&flow.name(), &sent, Reason::PacketTooBig);
            let l4 = sent.l4() - sent.l3() + if udp { 8 } else { 20 };
            flow.forward(&sent.clone().payload((mtu - header) as usize - l4));
            // An unchanged apply leaves it; ten minutes later a larger one is tried.
            flow.world.server(&flow.spec, flow.real, 0, method.forwarding());
            flow.world.ends("applied again", &sent, Reason::PacketTooBig);
            let later = now + std::time::Duration::from_secs(601);
            assert_eq!(flow.world.tables.follow_paths(later).unwrap().len(), 1);
            flow.forward(&sent);
        }
    }
}

#[test]
fn a_word_about_a_tunnel_that_is_none_of_ours_changes_nothing() {
    for method in [Method::TunV4, Method::TunV6] {
        let v6 = method == Method::TunV6;
        let mut flow = Flow::new(method, v6, false);
        flow.establish();
        let sent = flow.packet(ACK).payload(1400);
        let good = about_tunnel(&flow, &sent, 1400, 500);
        let least = if v6 { 1280 } else { 552 };
        let elsewhere = Flow { real: server(v6, 77), ..Flow::new(method, v6, false) };
        let cases = [
            ("a server of nobody's", about_tunnel(&elsewhere, &sent, 1400, 500)),
            ("it fitted", about_tunnel(&flow, &sent, 1500, 500)),
            ("not to who sent it", good.clone().with(|p| p.destination = server(v6, 2))),
            (
                "unreachable",
                good.clone().with(|p| p.payload[0..2].copy_from_slice(&[if v6 { 1 } else { 3 }, 0])),
            ),
            ("cut", good.clone().with(|p| p.payload.truncate(20))),
        ];
        for (case, packet) in cases {
            flow.world.ends(&format!("{method:?} {case}"), &packet, Reason::NotOurs);
        }
        assert!(flow.world.tables.follow_paths(std::time::Instant::now()).unwrap().is_empty());
        // Nobody's path is that narrow: who says so may want to make us send crumbs.
        let crumbs = about_tunnel(&flow, &sent, 100, 8);
        flow.world.ends("crumbs", &crumbs, Reason::TunnelMtu);
        let changes = flow.world.tables.follow_paths(std::time::Instant::now()).unwrap();
        assert_eq!(changes[0].mtu, Some(least));
    }
}

#[test]
fn padding_behind_a_word_about_a_tunnel_is_not_quoted_and_is_no_quote() {
    for method in [Method::TunV4, Method::TunV6] {
        for v6 in [false, true] {
            let mut flow = Flow::new(method, v6, true);
            flow.establish();
            let sent = flow.first().payload(1400).with(|p| p.ttl -= 1);
            let (mtu, header) = if method == Method::TunV4 { (1400, 20) } else { (1380, 40) };
            let inner = if v6 { 40 } else { 20 };
            let heard = about_tunnel(&flow, &sent, mtu, inner + 12).with(|p| p.padding = 40);
            let seen = flow.world.ends(&flow.name(), &heard, Reason::TunnelMtuTold);
            let said = (if v6 { 2 } else { 3 }, if v6 { 0 } else { 4 }, mtu - header);
            let expected = error(vip(v6), client(v6, 7), said, &sent, 12).with(|p| {
                (p.to, p.from, p.tos, p.ttl) = (GATEWAY, DIRECTOR, 0, 64);
                (p.id, p.fragment, p.flow_label) = (0, 0, 0);
            });
            same_frame(&flow.name(), &seen.frame, &expected.bytes());
        }
        // Too short for the header that it quotes, which lies behind it.
        let mut flow = Flow::new(method, false, true);
        flow.establish();
        let sent = flow.first().payload(1400);
        let mut frame = about_tunnel(&flow, &sent, 1370, 100).bytes();
        let (at, len) = if method == Method::TunV4 { (16, 20 + 8 + 19) } else { (18, 8 + 39) };
        frame[at..at + 2].copy_from_slice(&u16::to_be_bytes(len));
        flow.world.ends_frame("behind the end", &frame, Reason::NotOurs);
    }
}

#[test]
fn an_error_with_another_version_in_its_header_is_no_error() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, false);
        flow.establish();
        let (about, _) = towards(&flow);
        let said = if v6 { (1, 0, 0) } else { (3, 1, 0) };
        let mut frame = error(inner_router(v6), about.source, said, &about, 20).bytes();
        assert_eq!(flow.world.send(&frame).counted, Counted::Out(flow.destination));
        frame[14] ^= 0x20;
        flow.world.ends_frame("a version of nobody's", &frame, Reason::NotOurs);
    }
}

#[test]
fn a_datagram_of_nat_that_was_too_big_is_the_clients_though_tunnels_lead_to_the_same_server() {
    for v6 in [false, true] {
        let mut flow = Flow::new(Method::Nat, v6, true);
        // A port of those that GUE's packets come from.
        let port = 50_000;
        let first = flow.packet_from(client(v6, 7), port, SYN);
        flow.world.goes_to("NAT", &first);
        flow.world.tables.bind_address("web", lb_agent::dataplane::tables::Role::Tunnel, flow.real).unwrap();
        let about = Packet::udp((client(v6, 7), port), (flow.real, flow.server_port()));
        let said = if v6 { (2, 0, 1300) } else { (3, 4, 1300) };
        let long = about.clone().payload(1400);
        for quoted in [8, 20, 100] {
            let packet = error(inner_router(v6), client(v6, 7), said, &long, quoted);
            let seen = flow.world.send(&packet.bytes());
            assert_eq!(seen.counted, Counted::Out(flow.destination), "v6={v6} {quoted} bytes");
        }
        // Of no flow: what a client sent there itself.
        let own = long.clone().with(|p| p.set_ports((40_000, 53)));
        let packet = error(inner_router(v6), client(v6, 7), said, &own, 8);
        flow.world.ends("from another port than GUE's", &packet, Reason::NotOurs);
        let own = long.with(|p| p.set_ports((50_001, 53)));
        let packet = error(inner_router(v6), client(v6, 7), said, &own, 20);
        flow.world.ends("without GUE's header", &packet, Reason::NotOurs);
        assert!(flow.world.tables.follow_paths(std::time::Instant::now()).unwrap().is_empty());
    }
}
