//! The way of one packet, top to bottom: Ethernet, address filter, IP, transport, connection table; then the
//! forwarding of its flow, or the tail for new flows. `HOT` is the straight line for untagged frames without
//! IPv4 options or IPv6 extension headers, whose offsets are constants; the slow tail walks the rest.

use crate::{
    connection, flow,
    forward::{self, Target, fullnat, nat},
    fragment, host,
    maps::{FILTER, config, keys},
    packet::{Frame, Packet, Words, destination, ip_len, load8, load16, opaque, source},
    peer, probe, related, shifted, tail,
};
use lb_common::{
    connection::Kind,
    filter::{CELLS_PER_LINE, cell},
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    maps::programs,
    verdict::Reason,
};

/// The entry point's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(ethernet) = frame.at(0, ETHERNET) else { return Err(Reason::BadHeader) };
    match u16::from_be(load16(ethernet, 12)) {
        ethertype::IPV4 => ip::<false, true>(frame, ETHERNET),
        ethertype::IPV6 => ip::<true, true>(frame, ETHERNET),
        ethertype::VLAN | ethertype::QINQ => Err(tail::call(&frame, programs::SLOW)),
        ethertype::ARP => Err(host::call_arp(&frame, ETHERNET)),
        _ => Err(Reason::NotIp),
    }
}

/// The slow tail's path: tags, options, extension headers.
#[inline(always)]
pub fn handle_slow(frame: Frame) -> Result<u32, Reason> {
    let mut l3 = ETHERNET;
    let Some(ethernet) = frame.at(0, ETHERNET) else { return Err(Reason::BadHeader) };
    let mut kind = u16::from_be(load16(ethernet, 12));
    for _ in 0..2 {
        if kind != ethertype::VLAN && kind != ethertype::QINQ {
            break;
        }
        let Some(tag) = frame.at_dynamic(l3, 4) else { return Err(Reason::BadHeader) };
        kind = u16::from_be(load16(tag, 2));
        l3 += 4;
    }
    // One way for the verifier, whatever the number of tags.
    let l3 = opaque(l3 as u64) as usize & 0x1f;
    match kind {
        ethertype::IPV4 => ip::<false, false>(frame, l3),
        ethertype::IPV6 => ip::<true, false>(frame, l3),
        ethertype::VLAN | ethertype::QINQ => Err(Reason::TooManyHeaders),
        ethertype::ARP => Err(host::call_arp(&frame, l3)),
        _ => Err(Reason::NotIp),
    }
}

/// The cell of an address's key.
#[inline(always)]
pub fn filter_cell(key: u64) -> u16 {
    let index = (key >> config!(cell_shift)) as u32;
    match FILTER.get_ptr(index / CELLS_PER_LINE) {
        // SAFETY: a map value; the index is below CELLS_PER_LINE.
        Some(line) => unsafe {
            let cells = (&raw const (*line).cells).cast::<u16>();
            core::ptr::read_volatile(cells.add((index % CELLS_PER_LINE) as usize))
        },
        None => 0,
    }
}

/// The key of an address for the filter, and where its identity starts.
#[inline(always)]
pub fn key_of<const V6: bool>(address: Words) -> (u64, u64) {
    if V6 {
        let sum = keys().sum_v6(address);
        (keys().key_of_sum_v6(sum), sum)
    } else {
        let key = keys().key_v4(address[0] as u32);
        (key, key)
    }
}

#[inline(always)]
fn ip<const V6: bool, const HOT: bool>(frame: Frame, l3: usize) -> Result<u32, Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    let Some(ip) = at::<HOT>(&frame, l3, header) else { return Err(Reason::BadHeader) };
    let (key, start) = key_of::<V6>(destination::<V6>(ip));
    let cell = filter_cell(key);
    if cell & !(cell::NAT_SOURCE | cell::VRRP | cell::PROBED | cell::PEERED) == 0 {
        let (key, _) = key_of::<V6>(source::<V6>(ip));
        let from = filter_cell(key);
        if from & cell::NAT_SOURCE == 0 {
            if from & cell::PROBED != 0 {
                return Err(probe::call::<V6>(&frame, l3));
            }
            // A router's error about a packet that NAT or a tunnel of ours sent.
            if load8(ip, if V6 { 6 } else { 9 }) == icmp::<V6>() {
                return Err(related::call::<V6>(&frame, (l3, l3 + header), cell, Reason::NotOurs));
            }
            return Err(host::unless_silent::<V6>(&frame, l3, cell, Reason::NotOurs));
        }
    }
    if cell & cell::PEERED != 0 && peer::sent::<V6>(&frame, ip) {
        return Err(Reason::FromDirector);
    }
    let (l4, next) = match transport::<V6, HOT>(&frame, l3, ip) {
        Ok(Some(found)) => found,
        Ok(None) => return Err(tail::call(&frame, programs::SLOW)),
        Err(Reason::Fragment) => return Err(fragment::call::<V6>(&frame, l3, cell)),
        Err(reason) => return Err(host::unless_silent::<V6>(&frame, l3, cell, reason)),
    };
    // One way for the verifier, whatever headers were walked.
    let l4 = if HOT { l4 } else { opaque(l4 as u64) as usize & 0x7ff };
    // A word that each branch makes anew: Linux 6.1 forgets what it knew of a byte that was put on the stack, and
    // with it that a packet whose eight bytes were looked at is none of TCP.
    let (udp, need) = if next == protocol::UDP {
        (opaque(1), 8)
    } else if next == protocol::TCP {
        (opaque(0), 20)
    } else if next == protocol::SCTP {
        return Err(tail::call_sctp(&frame, l3, l4, V6, programs::SCTP));
    } else {
        if next == icmp::<V6>() {
            return Err(related::call::<V6>(&frame, (l3, l4), cell, Reason::Icmp));
        }
        return Err(host::unless_silent_at::<V6>(&frame, (l3, l4), cell, Reason::OtherProtocol));
    };
    let udp = udp != 0;
    let len = ip_len::<V6>(ip);
    let Some(header) = at::<HOT>(&frame, l4, need) else {
        return Err(tail::call_at(&frame, l3, l4, V6, udp, programs::NEW));
    };
    if len > frame.len() - l3 as u32 || len < (l4 - l3 + need) as u32 {
        return Err(tail::call_at(&frame, l3, l4, V6, udp, programs::NEW));
    }
    let packet = Packet::<V6> { frame, l3, l4, ip, transport: header, udp, sctp: false, bytes: frame.len() };
    known(&packet, start, cell)
}

/// The number of the family's ICMP.
#[inline(always)]
const fn icmp<const V6: bool>() -> u8 {
    if V6 { protocol::ICMPV6 } else { protocol::ICMP }
}

#[inline(always)]
fn at<const HOT: bool>(frame: &Frame, offset: usize, len: usize) -> Option<*mut u8> {
    if HOT { frame.at(offset, len) } else { frame.at_dynamic(offset, len) }
}

/// Offset and protocol of the transport header. None: not for the straight line.
#[inline(always)]
fn transport<const V6: bool, const HOT: bool>(
    frame: &Frame,
    l3: usize,
    ip: *mut u8,
) -> Result<Option<(usize, u8)>, Reason> {
    if V6 {
        let next = load8(ip, 6);
        if load8(ip, 0) & 0xf0 != 0x60 {
            return Err(Reason::BadHeader);
        }
        if next == protocol::TCP
            || next == protocol::UDP
            || next == protocol::ICMPV6
            || next == protocol::SCTP
        {
            return Ok(Some((l3 + IPV6, next)));
        }
        if HOT {
            return Ok(None);
        }
        return extension_headers(frame, l3, next).map(Some);
    }
    let first = load8(ip, 0);
    if HOT && first != 0x45 {
        return Ok(None);
    }
    if first & 0xf0 != 0x40 || first & 0x0f < 5 {
        return Err(Reason::BadHeader);
    }
    // More fragments, or an offset.
    if load16(ip, 6) & 0x3fff_u16.to_be() != 0 {
        return Err(Reason::Fragment);
    }
    let length = if HOT { IPV4 } else { ((first & 0x0f) as usize) * 4 };
    Ok(Some((l3 + length, load8(ip, 9))))
}

/// How many IPv6 extension headers are walked.
const EXTENSION_HEADERS: usize = 6;

/// Walks IPv6 extension headers (RFC 8200, section 4) to the transport header.
#[inline(always)]
fn extension_headers(frame: &Frame, l3: usize, first: u8) -> Result<(usize, u8), Reason> {
    let mut next = first;
    let mut offset = l3 + IPV6;
    for _ in 0..EXTENSION_HEADERS {
        match next {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                let Some(p) = frame.at_dynamic(offset, 8) else { return Err(Reason::BadHeader) };
                next = load8(p, 0);
                offset += (load8(p, 1) as usize + 1) * 8;
            }
            protocol::AH => {
                let Some(p) = frame.at_dynamic(offset, 8) else { return Err(Reason::BadHeader) };
                next = load8(p, 0);
                offset += (load8(p, 1) as usize + 2) * 4;
            }
            protocol::FRAGMENT => return Err(Reason::Fragment),
            _ => return Ok((offset, next)),
        }
        if offset > 1024 {
            return Err(Reason::TooManyHeaders);
        }
    }
    match next {
        protocol::TCP | protocol::UDP | protocol::ICMPV6 | protocol::SCTP => Ok((offset, next)),
        _ => Err(Reason::TooManyHeaders),
    }
}

/// A packet that may be ours: to the flow that it belongs to, or to the tail for new ones.
#[inline(always)]
pub fn known<const V6: bool>(packet: &Packet<V6>, start: u64, cell: u16) -> Result<u32, Reason> {
    let now = connection::now();
    let pool = (cell >> cell::POOL_SHIFT) as u32;
    if pool != 0
        && pool != cell::POOL_AMBIGUOUS as u32
        && fullnat::is_pool_address::<V6>(pool - 1, packet.destination())
    {
        return fullnat::to_client::<V6, false>(packet, pool - 1, now);
    }
    let ports = packet.ports();
    let place = flow::place_at::<V6>(start, packet.source(), ports, packet.protocol());
    let Some(hit) = connection::find(&place, now) else {
        return Err(tail::call_new(packet));
    };
    let kind = hit.value.kind();
    if shifted::is_extended(hit.value) && !packet.udp {
        let begins = !matches!(kind, Kind::NatReply) && packet.begins();
        return Err(if begins { tail::call_new(packet) } else { shifted::call(packet, 0) });
    }
    if let Kind::NatReply = kind {
        let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
        if target.is_control(ports) {
            return Err(tail::call_with(packet, programs::FTP));
        }
        return nat::to_client(packet, hit, target, now);
    }
    if packet.begins() {
        return Err(tail::call_new(packet));
    }
    if let Kind::FullNat = kind {
        return match fullnat::to_server::<V6, true>(packet, hit, &place, now) {
            Err(Reason::NoLease) => Err(tail::call_new(packet)),
            other => other,
        };
    }
    let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
    if target.wants_attention() {
        if flow::leaves(&hit, target.flags(), packet.udp) {
            return Err(tail::call_new(packet));
        }
        if target.is_over_rate() {
            return Err(Reason::PacketsLimited);
        }
        if target.is_control(flow::turned(ports)) {
            return Err(tail::call_with(packet, programs::FTP));
        }
    }
    forward::to_server(packet, hit, &place, target, now)
}
