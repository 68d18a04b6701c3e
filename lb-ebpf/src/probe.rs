//! Health probes on the real path (`lb_common::probe`). `sent` runs at the far end of the prober's veth pair;
//! `answered` is a tail for packets from a VIP that is probed, to an address that is not ours to serve.

use crate::{
    atomic, connection, count,
    forward::{Target, dr, tun},
    host,
    maps::{PROBE_PORTS, PROBE_TARGETS, keys},
    nexthop::{self, Hop},
    packet::{Frame, Packet, Words, destination, ip_len, load8, load16, opaque, source, sum, unsum, words},
    tail,
};
use aya_ebpf::bindings::xdp_action;
use lb_common::{
    destination::Forwarding,
    filter::role,
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    maps::programs,
    probe::{
        self, ABORTED, ANSWERED, CLOSING, DATAGRAM, FIRST_PORT, GROUPS, OPEN, OPENING, PORTS, TARGETS, TRIES,
        port,
    },
    state::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

/// A probe on its way out. What is no packet to a probe's address is left to the kernel, which drops it.
#[inline(always)]
pub fn sent(frame: Frame) -> u32 {
    let outcome = match frame.at(0, ETHERNET).map(|ethernet| u16::from_be(load16(ethernet, 12))) {
        Some(ethertype::IPV4) => towards_server::<false>(frame),
        Some(ethertype::IPV6) => towards_server::<true>(frame),
        _ => return xdp_action::XDP_PASS,
    };
    match outcome {
        Ok(action) => {
            count::event(Reason::ProbeSent);
            action
        }
        Err(Reason::NotOurs) => xdp_action::XDP_PASS,
        Err(_) => {
            count::event(Reason::ProbeLost);
            xdp_action::XDP_DROP
        }
    }
}

/// The packet of a frame whose headers are as a kernel's own socket makes them.
#[inline(always)]
fn packet<const V6: bool>(frame: Frame, l3: usize) -> Option<Packet<V6>> {
    let header = if V6 { IPV6 } else { IPV4 };
    let ip = frame.at_dynamic(l3, header)?;
    let next = load8(ip, if V6 { 6 } else { 9 });
    let whole = if V6 { load8(ip, 0) & 0xf0 == 0x60 } else { load8(ip, 0) == 0x45 };
    // Nor fragments.
    if !whole || !V6 && load16(ip, 6) & 0x3fff_u16.to_be() != 0 {
        return None;
    }
    if next != protocol::TCP && next != protocol::UDP {
        return None;
    }
    let udp = if next == protocol::UDP { opaque(1) } else { opaque(0) } != 0;
    // Twenty for both: a frame has sixty bytes and more, and the pair's is padded by nobody.
    let need = if udp { 8 } else { 20 };
    let l4 = l3 + header;
    let transport = frame.at_dynamic(l4, need)?;
    if ip_len::<V6>(ip) > frame.len() - l3 as u32 || ip_len::<V6>(ip) < (header + need) as u32 {
        return None;
    }
    Some(Packet { frame, l3, l4, ip, transport, udp, sctp: false, bytes: frame.len() })
}

#[inline(always)]
fn towards_server<const V6: bool>(frame: Frame) -> Result<u32, Reason> {
    let packet = packet::<V6>(frame, ETHERNET).ok_or(Reason::NotOurs)?;
    let to = packet.destination();
    let last = if V6 { (to[1] >> 32) as u32 } else { to[0] as u32 };
    let index = u32::from_be(last) & (TARGETS - 1);
    let record = PROBE_TARGETS.get_ptr(index).ok_or(Reason::Internal)?;
    // SAFETY: projections inside a map value; the word is read whole.
    let (word, probe, vip, from) = unsafe {
        (
            atomic::load(&raw const (*record).word),
            words::<V6>(&raw const (*record).probe),
            words::<V6>(&raw const (*record).vip),
            words::<V6>(&raw const (*record).source),
        )
    };
    if word & probe::VALID == 0 || (word & probe::V6 != 0) != V6 || probe != to {
        return Err(Reason::NotOurs);
    }
    let target = Target::of(probe::Target::destination_of(word)).ok_or(Reason::Internal)?;
    let ports = packet.ports();
    let who = port::word(index, ports as u16, packet.udp);
    let base = base_of(vip, (ports >> 16) as u16);
    let external = lb_probe_port(who, connection::now() as u32, lasts(&packet, DATAGRAM) as u32, base) as u16;
    if external == 0 {
        return Err(Reason::NoLocalPort);
    }
    let delta = unsum::<V6>(to, unsum::<V6>(packet.source(), 0));
    let delta = sum::<V6>(vip, sum::<V6>(from, delta));
    packet.set_source(from);
    packet.set_destination(vip);
    packet.decrement_ttl_with(delta);
    packet.set_ports(ports, ports & 0xffff_0000 | external.to_be() as u32, delta);
    match target.forwarding() {
        Forwarding::Tun => {
            let ports = ports & 0xffff_0000 | external.to_be() as u32;
            tun::encapsulate(&packet, &target, ports, Reason::ProbeSent as u32)
        }
        _ => dr::deliver(&packet, &target),
    }
}

/// For how many ticks this packet alone would keep the connection's port; `datagram` if it is one.
#[inline(always)]
fn lasts<const V6: bool>(packet: &Packet<V6>, datagram: u16) -> u16 {
    if packet.udp {
        return datagram;
    }
    let flags = packet.tcp_flags();
    if flags & RST != 0 {
        ABORTED
    } else if flags & FIN != 0 {
        CLOSING
    } else if flags & (SYN | ACK) == SYN {
        OPENING
    } else {
        OPEN
    }
}

/// Where the ports of a VIP's group begin; `port` is the VIP's, in memory order.
#[inline(always)]
fn base_of(vip: Words, port: u16) -> u32 {
    let hash = keys().first(vip[0] ^ vip[1].rotate_left(23) ^ (port as u64) << 41);
    ((hash >> 32) as u32 & (GROUPS - 1)) * PORTS
}

/// The port of this director's that a connection has, or gets; 0 when none was free. A global function: its loop
/// is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_probe_port(who: u64, now: u32, lasts: u32, base: u32) -> u64 {
    let now = now as u16;
    let start = ((keys().first(who & port::WHO) >> 32) * PORTS as u64) >> 32;
    for i in 0..TRIES as u64 {
        let at = nth(start, i);
        let Some(line) = PROBE_PORTS.get_ptr_mut(base + at as u32) else { return 0 };
        let word = atomic::load(line);
        if !port::is_free(word, now) && word & port::WHO == who & port::WHO {
            // Whoever loses this race has written the same connection's word.
            atomic::exchange(line, word, port::renewed(word, now, lasts as u16));
            return FIRST_PORT as u64 + at;
        }
    }
    // A walk of its own, so that nothing is carried from slot to slot, which the verifier would follow through all
    // of them.
    for i in 0..TRIES as u64 {
        let at = nth(start, i);
        let Some(line) = PROBE_PORTS.get_ptr_mut(base + at as u32) else { return 0 };
        let word = atomic::load(line);
        if port::is_free(word, now) && atomic::exchange(line, word, port::renewed(who, now, lasts as u16)) {
            return FIRST_PORT as u64 + at;
        }
    }
    0
}

/// The slot that is looked at `i` steps after the first.
#[inline(always)]
fn nth(start: u64, i: u64) -> u64 {
    let at = start + i;
    opaque(if at < PORTS as u64 { at } else { at - PORTS as u64 })
}

/// Hands a packet from a VIP that is probed to the tail.
#[inline(always)]
pub fn call<const V6: bool>(frame: &Frame, l3: usize) -> Reason {
    let Some(scratch) = tail::scratch() else { return Reason::Internal };
    scratch.l3 = l3 as u16;
    scratch.family = if V6 { 6 } else { 4 };
    tail::call(frame, programs::PROBE)
}

/// The tail's path.
#[inline(always)]
pub fn answered(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let l3 = scratch.l3 as usize & 0x1f;
    if scratch.family == 6 { towards_prober::<true>(frame, l3) } else { towards_prober::<false>(frame, l3) }
}

#[inline(always)]
fn towards_prober<const V6: bool>(frame: Frame, l3: usize) -> Result<u32, Reason> {
    let Some(ip) = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }) else { return Err(Reason::Internal) };
    let (from, to) = (source::<V6>(ip), destination::<V6>(ip));
    // The cell may be another address's.
    if host::record_of::<V6>(from).roles & role::PROBED == 0 {
        return Err(others::<V6>(&frame, l3, to));
    }
    let Some(packet) = packet::<V6>(frame, l3) else { return Err(others::<V6>(&frame, l3, to)) };
    let ports = packet.ports();
    let external = u16::from_be((ports >> 16) as u16).wrapping_sub(FIRST_PORT);
    if external as u32 >= PORTS {
        return Err(others::<V6>(&frame, l3, to));
    }
    let base = base_of(from, ports as u16);
    let Some(line) = PROBE_PORTS.get_ptr_mut(base + external as u32) else {
        return Err(others::<V6>(&frame, l3, to));
    };
    let word = atomic::load(line);
    let now = connection::now();
    if port::is_free(word, now) || port::is_udp(word) != packet.udp {
        return Err(others::<V6>(&frame, l3, to));
    }
    let record = PROBE_TARGETS.get_ptr(port::target(word)).ok_or(Reason::Internal)?;
    // SAFETY: projections inside a map value; words are read whole.
    let (valid, vip, local, probe, prober, hop) = unsafe {
        (
            atomic::load(&raw const (*record).word),
            words::<V6>(&raw const (*record).vip),
            words::<V6>(&raw const (*record).source),
            words::<V6>(&raw const (*record).probe),
            words::<V6>(&raw const (*record).prober),
            Hop {
                destination: atomic::load(&raw const (*record).prober_mac),
                source: atomic::load(&raw const (*record).far_mac),
                ifindex: core::ptr::read_volatile(&raw const (*record).ifindex),
            },
        )
    };
    if valid & probe::VALID == 0 || (valid & probe::V6 != 0) != V6 || vip != from || local != to {
        return Err(others::<V6>(&frame, l3, to));
    }
    atomic::exchange(line, word, port::renewed(word, now, lasts(&packet, ANSWERED)));
    let delta = unsum::<V6>(to, unsum::<V6>(from, 0));
    let delta = sum::<V6>(probe, sum::<V6>(prober, delta));
    packet.set_source(probe);
    packet.set_destination(prober);
    packet.decrement_ttl_with(delta);
    packet.set_ports(ports, ports & 0xffff | (port::prober(word) as u32) << 16, delta);
    let bytes = packet.bytes;
    let action = nexthop::send::<V6>(frame, l3, hop)?;
    count::reason(Reason::ProbeReply, bytes);
    Ok(action)
}

/// A packet from a VIP that no probe waits for: the kernel's, as any that is not ours.
#[inline(always)]
fn others<const V6: bool>(frame: &Frame, l3: usize, to: Words) -> Reason {
    host::unless_others::<V6>(frame, l3, to, Reason::NotOurs)
}
