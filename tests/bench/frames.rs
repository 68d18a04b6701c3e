//! The frames that rounds begin with, as orders for the feeder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    address::Address,
    checksum,
    feed::{FRAME_FREE, FRAME_V4, FRAME_V6, Feed, flow, kind},
    hash::ports_word,
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    state,
};

/// The virtual service's port.
pub const VIP_PORT: u16 = 80;
/// The real servers' port where it is translated.
pub const SERVER_PORT: u16 = 8080;

/// The VIP.
pub fn vip(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0x10).into()
    } else {
        Ipv4Addr::new(203, 0, 113, 10).into()
    }
}

/// A real server's address; also its neighbour's.
pub fn server(v6: bool, number: u16) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 1 + number).into()
    } else {
        Ipv4Addr::from(0x0a00_0001 + number as u32).into()
    }
}

/// An address that varies by its last 32 bits.
pub fn with_last_bits(v6: bool, network: u16, last: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, (last >> 16) as u16, last as u16).into()
    } else {
        Ipv4Addr::from(last).into()
    }
}

/// The first client, its last 32 bits: flows have 65,536 clients.
pub const CLIENTS: u32 = 0x0a40_0000;
/// The first address that is nobody's, likewise.
pub const STRANGERS: u32 = 0x0a80_0000;
/// The first local address of the FULLNAT pool, likewise.
pub const LOCALS: u32 = 0xc612_0000;
/// The network part of clients and strangers over IPv6.
pub const CLIENT_NETWORK: u16 = 0xc;
/// Of local addresses.
pub const LOCAL_NETWORK: u16 = 0xd;

/// Length of TCP's header without options.
const TCP: usize = 20;

/// Length of an SCTP packet's one chunk; behind the common header it fits into the feeder's frames.
const SCTP_CHUNK: u16 = 14;

/// Which packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    /// TCP from a client to the VIP, with these flags.
    ToVip(u8),
    /// SCTP from a client to the VIP, with this type of first chunk. Its checksum is wrong: nobody on this path looks.
    ToVipSctp(u8),
    /// TCP from real server 0 to a client (NAT).
    Reply,
    /// TCP from real server 0 to a leased port of a local address (FULLNAT), from the list of flows.
    ReplyToLease,
    /// TCP from a client to an address that is nobody's.
    Stranger,
}

/// Orders for the feeder: these packets of `flows` flows (a power of two), the first being number `first`.
pub fn feed(packet: Packet, v6: bool, flows: u64, first: u64) -> Feed {
    let (source, destination, reply, base, flags) = match packet {
        Packet::ToVip(flags) | Packet::ToVipSctp(flags) => {
            (with_last_bits(v6, CLIENT_NETWORK, 0), vip(v6), false, CLIENTS, flags)
        }
        Packet::Reply => (server(v6, 0), with_last_bits(v6, CLIENT_NETWORK, 0), true, CLIENTS, state::ACK),
        Packet::ReplyToLease => (server(v6, 0), with_last_bits(v6, LOCAL_NETWORK, 0), true, 0, state::ACK),
        Packet::Stranger => (
            with_last_bits(v6, CLIENT_NETWORK, 1),
            with_last_bits(v6, CLIENT_NETWORK, 0),
            true,
            STRANGERS,
            state::ACK,
        ),
    };
    let fixed = match packet {
        Packet::ToVip(_) | Packet::ToVipSctp(_) => ports_word(0, VIP_PORT),
        Packet::Reply | Packet::ReplyToLease => ports_word(SERVER_PORT, 0),
        Packet::Stranger => ports_word(40_000, 0),
    };
    let sctp = matches!(packet, Packet::ToVipSctp(_));
    let frame = frame(source, destination, flags, sctp);
    let words = words_of(&frame);
    let header = if v6 { IPV6 } else { IPV4 };
    let sum = |bytes: &[u8]| !checksum::of_bytes(bytes) as u64;
    let addresses =
        if v6 { &frame[ETHERNET + 8..ETHERNET + IPV6] } else { &frame[ETHERNET + 12..ETHERNET + IPV4] };
    let transport = &frame[ETHERNET + header..];
    // Pseudo header: addresses, protocol, length (RFC 9293, section 3.1; RFC 8200, section 8.1).
    let segment = if flags & state::SYN != 0 { TCP } else { transport.len() };
    let pseudo = (protocol::TCP as u16).to_be() as u64 + (segment as u16).to_be() as u64;
    let mut kinds = if v6 { kind::V6 } else { 0 };
    kinds |= if reply { kind::REPLY } else { 0 };
    kinds |= if packet == Packet::ReplyToLease { kind::LISTED } else { 0 };
    Feed {
        words,
        position: 0,
        mask: flows - 1,
        first,
        base,
        fixed,
        sum_ip: if v6 { 0 } else { sum(&frame[ETHERNET..ETHERNET + IPV4]) as u32 },
        sum_transport: (sum(addresses) + sum(transport) + pseudo) as u32,
        kind: kinds,
        len: frame.len() as u32,
        ..Feed::default()
    }
}

/// A frame of whole words as the feeder has it.
pub fn words_of(frame: &[u8]) -> [u64; FRAME_FREE / 8] {
    let mut words = [0; FRAME_FREE / 8];
    for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}

/// A frame with the varying 32 bits of `source` or `destination`, the ports and the checksums zero. `what`: the flags of
/// TCP, the first chunk's type of SCTP.
fn frame(source: IpAddr, destination: IpAddr, what: u8, sctp: bool) -> Vec<u8> {
    let v6 = source.is_ipv6();
    let len = if v6 { FRAME_V6 } else { FRAME_V4 };
    let mut frame = vec![0; len];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    let (kind, header) = if v6 { (ethertype::IPV6, IPV6) } else { (ethertype::IPV4, IPV4) };
    frame[12..14].copy_from_slice(&kind.to_be_bytes());
    let ip = &mut frame[ETHERNET..];
    // What is behind a SYN's header is padding: data in it would be TCP Fast Open.
    let empty = !sctp && what & state::SYN != 0;
    let total = if empty { header + TCP } else { len - ETHERNET } as u16;
    let (from, to) = (Address::from(source), Address::from(destination));
    if v6 {
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&(total - IPV6 as u16).to_be_bytes());
        ip[6] = if sctp { protocol::SCTP } else { protocol::TCP };
        ip[7] = 64;
        ip[8..24].copy_from_slice(&from.v6());
        ip[24..40].copy_from_slice(&to.v6());
    } else {
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[6] = 0x40;
        ip[8] = 64;
        ip[9] = if sctp { protocol::SCTP } else { protocol::TCP };
        ip[12..16].copy_from_slice(&from.v4());
        ip[16..20].copy_from_slice(&to.v4());
    }
    let transport = &mut frame[ETHERNET + header..];
    if sctp {
        // Where TCP has its checksum lies a part of the chunk.
        transport[12] = what;
        transport[14..16].copy_from_slice(&SCTP_CHUNK.to_be_bytes());
    } else {
        transport[12] = 0x50;
        transport[13] = what;
        transport[14..16].copy_from_slice(&0x2000_u16.to_be_bytes());
    }
    frame
}

/// A flow's entry in the list: the address's last word and the ports word, as they stand in a reply.
pub fn listed(address: &Address, v6: bool, port: u16) -> u64 {
    let word = if v6 { address.words()[3] } else { address.words()[0] };
    word as u64 | (ports_word(SERVER_PORT, port) as u64) << 32
}

/// The client of flow 0.
pub fn first_client(v6: bool) -> IpAddr {
    with_last_bits(v6, CLIENT_NETWORK, flow(CLIENTS, 0).0)
}
