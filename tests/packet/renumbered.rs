//! ICMP errors that quote a flow whose sequence numbers are shifted: who sent the quoted packet must know its numbers,
//! or does not believe them.

use crate::{
    extended::{
        CLIENT, CLIENT_BASE, CLIENT_BEGAN, FAR, SERVER, SERVER_BASE, SERVER_BEGAN, TRANSLATING, numbered,
        shifted,
    },
    flows::Flow,
    frame::{ACK, Packet},
    proxy,
    related::{Said, as_sent, at_server, error, from_vip, goes, inner_router, router},
    world::{Counted, DIRECTOR, GATEWAY, client, mac_of, vip},
};

/// Behind the quoted IP header: ports and sequence number, what is acknowledged without its flag and with it, the
/// checksum, all.
const QUOTED: [usize; 7] = [8, 12, 13, 14, 18, 20, 1000];

fn too_big(v6: bool, mtu: u32) -> Said {
    if v6 { (2, 0, mtu) } else { (3, 4, mtu) }
}

/// An acknowledgement is told from other bytes by its flag.
fn is_acknowledged(quoted: usize) -> bool {
    quoted >= 14
}

#[test]
fn a_server_gets_its_own_numbers_back() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        // Where bytes are taken out, a number just behind the position may be one from before it too.
        for far in FAR.into_iter().filter(|far| *far != 1) {
            for quoted in QUOTED {
                let sent = SERVER_BEGAN.wrapping_add(far as u32);
                let heard = CLIENT_BEGAN.wrapping_add(700);
                let seen = numbered(&from_vip(&flow), SERVER.forth(SERVER_BASE, sent), heard, &[]);
                let acknowledged =
                    if is_acknowledged(quoted) { CLIENT.forth(CLIENT_BASE, heard) } else { heard };
                let own = numbered(&seen, sent, acknowledged, &[]);
                let said = too_big(v6, 1300);
                let packet = error(router(v6), vip(v6), said, &seen, quoted);
                let expected = at_server(&flow, &packet, said, &own, quoted);
                let counted = Counted::In(flow.destination);
                goes(&mut flow, &format!("{far} {quoted}"), &packet, counted, &expected);
            }
        }
    }
}

/// The error about a client's packet that arrives at who seemed to have sent it.
fn about(flow: &Flow, packet: &Packet, said: Said, quoted: usize) -> Packet {
    let from = inner_router(flow.v6);
    error(from, packet.source, said, packet, quoted).with(|p| p.from = mac_of(from))
}

/// What the client gets of it.
fn at_client(v6: bool, packet: &Packet, said: Said, quoted: usize) -> Vec<u8> {
    let out = error(vip(v6), client(v6, 7), said, packet, quoted);
    out.with(|p| (p.to, p.from, p.ttl) = (GATEWAY, DIRECTOR, p.ttl - 1)).bytes()
}

#[test]
fn a_client_gets_its_own_numbers_back() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        for far in FAR {
            for quoted in QUOTED {
                let sent = CLIENT_BEGAN.wrapping_add(far as u32);
                let heard = SERVER_BEGAN.wrapping_add(700);
                let seen =
                    numbered(&as_sent(&flow, &flow.packet(ACK)), CLIENT.forth(CLIENT_BASE, sent), heard, &[]);
                let acknowledged =
                    if is_acknowledged(quoted) { SERVER.forth(SERVER_BASE, heard) } else { heard };
                let own = numbered(&flow.packet(ACK), sent, acknowledged, &[]);
                let said = too_big(v6, 1300);
                let packet = about(&flow, &seen, said, quoted);
                let expected = at_client(v6, &own, said, quoted);
                let counted = Counted::Out(flow.destination);
                goes(&mut flow, &format!("{far} {quoted}"), &packet, counted, &expected);
            }
        }
    }
}

#[test]
fn a_flow_without_its_record_is_quoted_as_it_was() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        for (index, record) in crate::extended::records(&flow) {
            crate::extended::write_record(
                &flow,
                index,
                lb_common::extension::Extension { owner: !record.owner, ..record },
            );
        }
        let said = too_big(v6, 1300);
        let packet = about(&flow, &as_sent(&flow, &flow.packet(ACK)), said, 20);
        let expected = at_client(v6, &flow.packet(ACK), said, 20);
        let counted = Counted::Out(flow.destination);
        goes(&mut flow, "to the client", &packet, counted, &expected);
    }
}

#[test]
fn a_client_is_told_to_leave_room_for_the_header_as_long_as_that_rides() {
    for (method, v6) in TRANSLATING {
        let mut flow = proxy::service(method, v6);
        proxy::begin(&mut flow);
        let first = proxy::packet(v6, ACK, 0, b"as much as fits");
        proxy::rides(&mut flow, &first);
        let header = proxy::header(v6);
        let riding = first.clone().with(|p| p.payload = [header.clone(), p.payload.clone()].concat());
        let more = proxy::packet(v6, ACK, 15, b"more");
        let number = |at: u32| proxy::FIRST.wrapping_add(1).wrapping_add(at);
        let acknowledged = proxy::SERVER + 1;
        let behind = numbered(&more, number(15 + proxy::len(v6)), acknowledged, &[]);
        let other = if v6 { (1, 0, 0) } else { (3, 1, 1300) };
        let mut cases = vec![
            ("the header rides", &riding, &riding, too_big(v6, 1300), 1300 - proxy::len(v6)),
            ("behind it", &behind, &more, too_big(v6, 1300), 1300),
            ("another error", &riding, &riding, other, other.2),
        ];
        if !v6 {
            cases.push(("a router of before RFC 1191", &riding, &riding, too_big(v6, 0), 0));
        }
        for (case, seen, own, said, mtu) in cases {
            for quoted in [8, 18, 1000] {
                let packet = about(&flow, &as_sent(&flow, seen), said, quoted);
                let expected = at_client(v6, own, (said.0, said.1, mtu), quoted);
                let counted = Counted::Out(flow.destination);
                goes(&mut flow, &format!("{case} {quoted}"), &packet, counted, &expected);
            }
        }
        // The server has it: the segment goes without when it is sent again.
        proxy::acknowledges(&mut flow, proxy::len(v6), 0);
        let settled = numbered(&first, number(proxy::len(v6)), acknowledged, &[]);
        let packet = about(&flow, &as_sent(&flow, &settled), too_big(v6, 1300), 20);
        let expected = at_client(v6, &first, too_big(v6, 1300), 20);
        let counted = Counted::Out(flow.destination);
        goes(&mut flow, "settled", &packet, counted, &expected);
    }
}
