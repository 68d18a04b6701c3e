//! Rows of paths that few packets take: what is answered or turned away under a flood, tunnels, fragments, errors about
//! flows, clients that are known by more than their flow. Flows are hot: it is the path that is measured.

use lb_common::{
    address::Address,
    cookie,
    destination::{Forwarding, flags},
    feed::{self, FRAME_FREE, Feed, kind},
    hash::ports_word,
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    service::{OnUnknownFlow, Pick},
    state::{ACK, FIN, SYN},
    verdict::Reason,
};
use std::net::IpAddr;

use crate::frames::{CLIENT_NETWORK, CLIENTS, Packet, VIP_PORT, feed, server, vip, with_last_bits, words_of};
use crate::rows::{MANY, Path, Row, SOME, family};
use crate::scene::{Extra, Plan};

/// Where the sources of tunnels lie that vary by flow.
pub const TUNNEL_SOURCES: (&str, &str) = ("10.200.0.0/16", "fd00:200::/64");
/// The server id of server 0 in a QUIC connection id, behind so many bytes.
pub const QUIC_ID: [u8; 4] = [1, 2, 3, 4];
pub const QUIC_OFFSET: u8 = 1;

/// All of them for one family: data planes, each with its rows.
pub fn scenes(v6: bool) -> Vec<(Plan, Vec<Row>)> {
    // The scene's number comes with the rows that are wanted.
    let row = |name: &str, feed, path| Row::new(format!("{name} {}", family(v6)), 0, feed, path);
    let hot = |packet| feed(packet, v6, 1, 0);
    let new = |packet| feed(packet, v6, MANY.into(), 0);
    let plan = |forwarding| Plan { flows: 1, connections: SOME, ..Plan::new(forwarding, v6) };
    let none = |forwarding, extra| Plan { extra, ..Plan::new(forwarding, v6) };
    let mut scenes = vec![
        (
            none(Forwarding::Nat, Extra::Cookies),
            vec![
                row("cookie sent nat", syn_with_options(v6), Path::Reason(Reason::CookieSent)),
                row("cookie back nat", cookie_back(v6), Path::Event(Reason::CookieValid)).fresh(),
            ],
        ),
        (
            none(Forwarding::FullNat, Extra::Cookies),
            vec![row("cookie back fullnat", cookie_back(v6), Path::Event(Reason::CookieValid)).fresh()],
        ),
        (
            none(Forwarding::Dr, Extra::NewFlows(1)),
            vec![row("no entry dr", new(Packet::ToVip(SYN)), Path::Event(Reason::FloodStateless))],
        ),
        (plan(Forwarding::Dr), direct(v6, row)),
        (
            none(Forwarding::Dr, Extra::Persistence),
            vec![row("persistent dr", new(Packet::ToVip(SYN)), Path::Event(Reason::FlowSticky)).fresh()],
        ),
        (
            Plan { protocol: protocol::UDP, ..none(Forwarding::Dr, Extra::Quic) },
            vec![row("quic id dr", datagram(v6, &quic()), Path::Event(Reason::FlowNew)).fresh()],
        ),
        (
            Plan { protocol: protocol::UDP, ..none(Forwarding::Dr, Extra::Sip) },
            vec![row("sip call dr", datagram(v6, SIP), Path::Event(Reason::FlowSticky)).fresh()],
        ),
    ];
    for (name, forwarding) in
        [("tun", Forwarding::Tun), ("nat", Forwarding::Nat), ("fullnat", Forwarding::FullNat)]
    {
        let error = row(&format!("icmp error {name}"), icmp_error(v6), Path::ToServer);
        scenes.push((plan(forwarding), vec![error]));
    }
    for (name, tunnel) in [
        ("tun gue", flags::GUE),
        ("tun gre", flags::GRE),
        ("tun gre spread", flags::GRE | flags::SPREAD),
        ("tun ipip spread", flags::SPREAD),
    ] {
        let plan = Plan { tunnel, ..plan(Forwarding::Tun) };
        scenes.push((plan, vec![row(name, hot(Packet::ToVip(ACK)), Path::ToServer)]));
    }
    let name = if v6 { "tun in v4" } else { "tun in v6" };
    let other = Plan { real_v6: !v6, ..plan(Forwarding::Tun) };
    scenes.push((other, vec![row(name, hot(Packet::ToVip(ACK)), Path::ToServer)]));
    // Cursors choose anew for each of these flows; a hash would not show more.
    for (plan, _) in &mut scenes {
        if plan.protocol == protocol::UDP || plan.extra == Extra::Persistence {
            (plan.pick, plan.on_unknown_flow) = (Pick::Cursor, OnUnknownFlow::Adopt);
        }
    }
    scenes
}

/// The rows of a DR service with one flow.
fn direct(v6: bool, row: impl Fn(&str, Feed, Path) -> Row) -> Vec<Row> {
    let to_vip = |flags| feed(Packet::ToVip(flags), v6, 1, 0);
    let first = fragment(v6, true);
    let length_at = if v6 { ETHERNET + 4 } else { ETHERNET + 2 };
    let source_at = ETHERNET + if v6 { 8 } else { 12 };
    let [.., last] = Address::from(vip(v6)).words();
    let vip_bits = if v6 { u32::from_be(last) } else { u32::from_be(Address::from(vip(v6)).words()[0]) };
    let mut land = Feed { base: vip_bits, ..to_vip(SYN) };
    let mut bad_source = Feed { base: 0x7f00_0001, ..to_vip(SYN) };
    if v6 {
        let IpAddr::V6(address) = vip(true) else { unreachable!("the VIP of this family") };
        patch(&mut land, source_at, &address.octets()[..12]);
        patch(&mut bad_source, source_at, &[0xff]);
    }
    let mut bad_length = to_vip(SYN);
    patch(&mut bad_length, length_at, &1000u16.to_be_bytes());
    let drop = Path::Reason;
    vec![
        row("land", land, drop(Reason::Land)),
        row("bad source", bad_source, drop(Reason::BadSource)),
        // A SYN of another flow than the one that is there.
        row("bad flags", Feed { first: 1, ..to_vip(SYN | FIN) }, drop(Reason::BadFlags)),
        row("bad length", bad_length, drop(Reason::BadTransport)),
        row("tagged dr", tagged(v6), Path::ToServer),
        row("more headers dr", more_headers(v6), Path::ToServer),
        row("first fragment dr", first, Path::ToServer),
        Row { before: Some(first), ..row("later fragment dr", fragment(v6, false), Path::ToServer) },
        row("icmp error dr", icmp_error(v6), Path::ToServer),
        row("echo", echo(v6), Path::Reason(Reason::Icmp)),
    ]
}

fn patch(feed: &mut Feed, at: usize, bytes: &[u8]) {
    for (at, byte) in (at..).zip(bytes) {
        let mut word = feed.words[at / 8].to_ne_bytes();
        word[at % 8] = *byte;
        feed.words[at / 8] = u64::from_ne_bytes(word);
    }
}

fn client(v6: bool, last: u32) -> IpAddr {
    with_last_bits(v6, CLIENT_NETWORK, last)
}

/// An IP packet in a frame, its IPv4 header with its checksum. `before`: what stands between the addresses and `payload`
/// (IPv4 options, IPv6 extension headers), whose first type is `next`.
fn packet(from: IpAddr, to: IpAddr, next: u8, before: &[u8], payload: &[u8]) -> Vec<u8> {
    let v6 = from.is_ipv6();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if v6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be_bytes());
    frame.extend(ip(from, to, next, before, payload));
    frame
}

/// The same without a frame.
fn ip(from: IpAddr, to: IpAddr, next: u8, before: &[u8], payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (Address::from(from), Address::from(to));
    let len = (before.len() + payload.len()) as u16;
    let mut packet = if from.is_ipv6() {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(len.to_be_bytes());
        header.extend([next, 64]);
        header.extend(source.v6());
        header.extend(destination.v6());
        header
    } else {
        let words = (IPV4 + before.len()) / 4;
        let mut header = vec![0x40 | words as u8, 0];
        header.extend((len + IPV4 as u16).to_be_bytes());
        header.extend([0, 1, 0x40, 0, 64, next, 0, 0]);
        header.extend(source.v4());
        header.extend(destination.v4());
        header
    };
    packet.extend(before);
    if !from.is_ipv6() {
        sum_header(&mut packet);
    }
    packet.extend(payload);
    packet
}

/// Writes an IPv4 header's checksum.
fn sum_header(header: &mut [u8]) {
    let len = usize::from(header[0] & 0xf) * 4;
    header[10..12].fill(0);
    let sum = lb_common::checksum::of_bytes(&header[..len]);
    header[10..12].copy_from_slice(&sum.to_ne_bytes());
}

/// A TCP header, its ports and its checksum zero.
fn tcp(flags: u8, options: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 12];
    header.extend([((20 + options.len()) / 4 * 16) as u8, flags]);
    header.extend(0x2000u16.to_be_bytes());
    header.extend([0; 4]);
    header.extend(options);
    header
}

/// Where something varies in a frame of which the rest is written: addresses, ports and sums in it are zero, or are
/// those of flow 0.
struct Varies {
    address: usize,
    ports: usize,
    /// Where an IPv4 header begins that has the address.
    header: usize,
    /// Where the transport's sum stands, and from where on it is taken.
    sum: Option<(usize, usize)>,
    kinds: u32,
}

/// The orders for such a frame of a client's flows.
fn free(mut frame: Vec<u8>, flows: u64, varies: &Varies) -> Feed {
    assert!(frame.len() <= FRAME_FREE, "a frame of {} bytes", frame.len());
    let v6 = frame[12..14] == ethertype::IPV6.to_be_bytes();
    frame[varies.address..varies.address + 4].fill(0);
    let sum = |bytes: &[u8]| u64::from(!lb_common::checksum::of_bytes(bytes));
    let mut sum_ip = 0;
    if varies.header != 0 {
        frame[varies.header + 10..varies.header + 12].fill(0);
        let len = usize::from(frame[varies.header] & 0xf) * 4;
        sum_ip = sum(&frame[varies.header..varies.header + len]) as u32;
    }
    let mut sum_transport = 0;
    if let Some((_, from)) = varies.sum {
        sum_transport = sum(&frame[from..]);
        if varies.kinds & kind::QUOTED == 0 || v6 {
            // Pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1). ICMP over IPv4 has none.
            let (addresses, next) = if v6 {
                (ETHERNET + 8..ETHERNET + IPV6, frame[ETHERNET + 6])
            } else {
                (ETHERNET + 12..ETHERNET + IPV4, frame[ETHERNET + 9])
            };
            sum_transport += sum(&frame[addresses]) + u64::from(u16::from(next).to_be());
            sum_transport += u64::from(((frame.len() - from) as u16).to_be());
        }
    }
    frame.resize(frame.len().next_multiple_of(8), 0);
    let reply = varies.kinds & kind::REPLY != 0;
    Feed {
        words: words_of(&frame),
        mask: flows - 1,
        base: CLIENTS,
        fixed: if reply { ports_word(VIP_PORT, 0) } else { ports_word(0, VIP_PORT) },
        sum_ip,
        sum_transport: sum_transport as u32,
        kind: kind::FREE | varies.kinds | if v6 { kind::V6 } else { 0 },
        len: frame.len() as u32,
        at_address: varies.address as u16,
        at_ports: varies.ports as u16,
        at_sum_ip: if varies.header == 0 { 0 } else { varies.header as u16 + 10 },
        at_sum: varies.sum.map_or(0, |(at, _)| at as u16),
        ..Feed::default()
    }
}

/// A segment of a client to the VIP, behind so many bytes of other headers.
fn segment(v6: bool, flows: u64, next: u8, before: &[u8], tcp: &[u8], kinds: u32) -> Feed {
    let frame = packet(client(v6, CLIENTS), vip(v6), next, before, tcp);
    let transport = ETHERNET + if v6 { IPV6 } else { IPV4 } + before.len();
    free(
        frame,
        flows,
        &Varies {
            address: if v6 { ETHERNET + 20 } else { ETHERNET + 12 },
            ports: transport,
            header: if v6 { 0 } else { ETHERNET },
            sum: Some((transport + 16, transport)),
            kinds,
        },
    )
}

/// A SYN as Linux sends it: MSS, selective acknowledgements, timestamps, window scale.
fn syn_with_options(v6: bool) -> Feed {
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0x10, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    segment(v6, SOME.into(), protocol::TCP, &[], &tcp(SYN, &options), kind::RESIZED)
}

/// What the client says first whose SYN was answered with a cookie: its timestamp brings back what the cookie cannot hold.
fn cookie_back(v6: bool) -> Feed {
    let carried = cookie::Carried { scale: 7, sack: true }.stamp(0x4000);
    let mut options = vec![1, 1, 8, 10, 0, 0, 0x10, 2];
    options.extend(carried.to_be_bytes());
    let kinds = kind::RESIZED | kind::LISTED | kind::COOKIE;
    segment(v6, SOME.into(), protocol::TCP, &[], &tcp(ACK, &options), kinds)
}

/// The entry of the list for a client that brings a cookie, made in slice 0. Its SYN had the number before 0.
pub fn cookie(key: [u64; 2], v6: bool, number: u32) -> u64 {
    let (last, port) = feed::flow(CLIENTS, number.into());
    let tuple = cookie::Tuple {
        source: Address::from(client(v6, last)).halves(),
        destination: Address::from(vip(v6)).halves(),
        ports: ports_word(port, VIP_PORT),
        sequence: u32::MAX,
    };
    let made = cookie::make(key, &tuple, 0, cookie::mss_index(v6, 1460));
    u64::from(number & 0xffff) | u64::from(port) << 16 | u64::from(made.wrapping_add(1).to_be()) << 32
}

/// A datagram of a client to the VIP, of new flows, without a checksum, at which nobody looks.
fn datagram(v6: bool, payload: &[u8]) -> Feed {
    let mut udp = vec![0; 4];
    udp.extend((payload.len() as u16 + 8).to_be_bytes());
    udp.extend([0; 2]);
    udp.extend(payload);
    let feed = segment(v6, MANY.into(), protocol::UDP, &[], &udp, 0);
    Feed { at_sum: 0, ..feed }
}

/// A packet with a short header (RFC 9000, section 17.3) whose connection id names server 0.
fn quic() -> Vec<u8> {
    let mut packet = vec![0x40];
    packet.resize(1 + usize::from(QUIC_OFFSET), 0);
    packet.extend(QUIC_ID);
    packet.resize(32, 0x5a);
    packet
}

/// The first lines of a call.
const SIP: &[u8] = b"OPTIONS sip:a SIP/2.0\r\nCall-ID: a84b4c76e66710\r\n\r\n";

fn tagged(v6: bool) -> Feed {
    let mut frame = packet(client(v6, CLIENTS), vip(v6), protocol::TCP, &[], &tcp(ACK, &[]));
    frame.splice(12..12, [0x81, 0, 0, 5]);
    // Written as a frame without a tag, with the tag in front of its type.
    let plain = segment(v6, 1, protocol::TCP, &[], &tcp(ACK, &[]), 0);
    frame.resize(frame.len().next_multiple_of(8), 0);
    Feed {
        words: words_of(&frame),
        len: frame.len() as u32,
        at_address: plain.at_address + 4,
        at_ports: plain.at_ports + 4,
        at_sum_ip: if v6 { 0 } else { plain.at_sum_ip + 4 },
        at_sum: plain.at_sum + 4,
        ..plain
    }
}

/// With four bytes of IPv4 options, or an IPv6 header of destination options.
fn more_headers(v6: bool) -> Feed {
    if v6 {
        let before = [protocol::TCP, 0, 1, 4, 0, 0, 0, 0];
        segment(true, 1, protocol::DESTINATION_OPTIONS, &before, &tcp(ACK, &[]), 0)
    } else {
        segment(false, 1, protocol::TCP, &[1; 4], &tcp(ACK, &[]), 0)
    }
}

/// A packet's first 24 bytes behind its IP header, or the 24 after them.
fn fragment(v6: bool, first: bool) -> Feed {
    let mut payload = tcp(ACK, &[]);
    payload.extend([0; 4]);
    let offset: u16 = if first { 0 } else { 3 };
    let feed = if v6 {
        let place = (offset << 3 | u16::from(first)).to_be_bytes();
        let before = [protocol::TCP, 0, place[0], place[1], 0, 0, 0, 9];
        segment(true, 1, protocol::FRAGMENT, &before, &payload, 0)
    } else {
        let mut feed = segment(false, 1, protocol::TCP, &[], &payload, 0);
        let place = if first { 0x2000 } else { offset };
        // In place of *don't fragment*, which the header's sum has in it.
        patch(&mut feed, ETHERNET + 6, &place.to_be_bytes());
        feed.sum_ip = u32::from(lb_common::checksum::fold(
            lb_common::checksum::sub(feed.sum_ip.into(), 0x4000u16.to_be().into()) + u64::from(place.to_be()),
        ));
        feed
    };
    if first { feed } else { Feed { at_ports: 0, at_sum: 0, ..feed } }
}

/// A router's word that a packet from the VIP to the client was too big. The quote ends eight bytes behind its IP header.
fn icmp_error(v6: bool) -> Feed {
    let router = server(v6, 222);
    let mut quoted = ip(vip(v6), client(v6, CLIENTS), protocol::TCP, &[], &[0; 8]);
    if !v6 {
        // The quoted packet was whole: its header's sum and its addresses make up for each other.
        quoted[2..4].copy_from_slice(&1500u16.to_be_bytes());
    }
    let mut icmp = if v6 { vec![2, 0, 0, 0, 0, 0, 5, 0x14] } else { vec![3, 4, 0, 0, 0, 0, 5, 0x14] };
    let header = if v6 { IPV6 } else { IPV4 };
    let at = ETHERNET + header;
    icmp.extend(quoted);
    let next = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
    let frame = packet(router, vip(v6), next, &[], &icmp);
    let mut feed = free(
        frame,
        1,
        &Varies {
            address: at + 8 + if v6 { 36 } else { 16 },
            ports: at + 8 + header,
            header: if v6 { 0 } else { at + 8 },
            sum: Some((at + 2, at)),
            kinds: kind::REPLY | if v6 { 0 } else { kind::QUOTED },
        },
    );
    if !v6 {
        // A header and its sum add up to nothing; here the header was added without sum and address.
        let whole = lb_common::checksum::sub(feed.sum_transport.into(), feed.sum_ip);
        feed.sum_transport = u32::from(lb_common::checksum::fold(whole));
    }
    feed
}

/// An echo request to the VIP.
fn echo(v6: bool) -> Feed {
    let (kind_of, next) = if v6 { (128, protocol::ICMPV6) } else { (8, protocol::ICMP) };
    let frame = packet(client(v6, CLIENTS), vip(v6), next, &[], &[kind_of, 0, 0, 0, 0, 1, 0, 1, 7, 7, 7, 7]);
    free(
        frame,
        1,
        &Varies {
            address: if v6 { ETHERNET + 20 } else { ETHERNET + 12 },
            ports: 0,
            header: if v6 { 0 } else { ETHERNET },
            sum: None,
            kinds: 0,
        },
    )
}
