//! The tail for fragments. The first one has the ports: it goes its way like any packet, and its ports are remembered.
//! The others are given them, find the flow by them and go where its packets go; of their own they have no transport
//! header, so only IP's is rewritten.

use crate::{
    answer, connection, count, flow,
    forward::{
        Target, by_kernel, dr,
        fullnat::{self, Leased},
        may_serve, nat, tun,
    },
    host, ingress,
    maps::{FRAGMENTS, POOL, config},
    new_flow,
    nexthop::{self, Hop},
    packet::{
        Frame, Packet, Words, destination, ip_len, load8, load16, load32, opaque, source, sum, unsum, words,
    },
    related, tail,
};
use lb_common::{
    connection::Kind,
    destination::{Destination, Forwarding, flags},
    filter::role,
    fragment::{FirstFragment, FragmentKey, HOLDS, LARGEST},
    header::{IPV4, IPV6, protocol},
    lease::lease_index,
    maps::programs,
    scratch::{FIRST_FRAGMENT, policy},
    verdict::Reason,
};

/// Hands a fragment to the tail.
#[inline(always)]
pub fn call<const V6: bool>(frame: &Frame, l3: usize, cell: u16) -> Reason {
    let Some(scratch) = tail::scratch() else { return Reason::Internal };
    scratch.l3 = l3 as u16;
    scratch.family = if V6 { 6 } else { 4 };
    scratch.cell = cell as u32;
    tail::call(frame, programs::FRAGMENT)
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let l3 = scratch.l3 as usize & 0x1f;
    if scratch.family == 6 { arrived::<true>(frame, l3) } else { arrived::<false>(frame, l3) }
}

#[inline(always)]
fn arrived<const V6: bool>(frame: Frame, l3: usize) -> Result<u32, Reason> {
    match follow::<V6>(frame, l3) {
        Err(Reason::Fragment) => {
            let cell = tail::scratch().ok_or(Reason::Internal)?.cell as u16;
            Err(host::unless_silent::<V6>(&frame, l3, cell, Reason::Fragment))
        }
        other => other,
    }
}

/// A fragment by its headers.
#[derive(Clone, Copy)]
struct Piece {
    /// Offset in the frame of what it carries.
    l4: usize,
    /// Where that belongs in the packet, bytes.
    offset: u32,
    more: bool,
    id: u32,
    /// Of what it carries; of a later IPv6 fragment's what its fragment header says.
    protocol: u8,
}

impl Piece {
    #[inline(always)]
    fn of<const V6: bool>(frame: &Frame, ip: *const u8, l3: usize) -> Option<Self> {
        if V6 {
            return Self::of_v6(frame, ip, l3);
        }
        let word = u16::from_be(load16(ip, 6));
        Some(Self {
            l4: l3 + (load8(ip, 0) & 0x0f) as usize * 4,
            offset: (word & 0x1fff) as u32 * 8,
            more: word & 0x2000 != 0,
            id: load16(ip, 4) as u32,
            protocol: load8(ip, 9),
        })
    }

    #[inline(always)]
    fn of_v6(frame: &Frame, ip: *const u8, l3: usize) -> Option<Self> {
        let mut piece = Self { l4: l3 + IPV6, offset: 0, more: false, id: 0, protocol: load8(ip, 6) };
        for _ in 0..EXTENSION_HEADERS {
            let p = frame.at_dynamic(piece.l4, 8)?;
            let len = match piece.protocol {
                protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    (load8(p, 1) as usize + 1) * 8
                }
                protocol::AH => (load8(p, 1) as usize + 2) * 4,
                protocol::FRAGMENT => {
                    let word = u16::from_be(load16(p, 2));
                    piece.offset = (word & 0xfff8) as u32;
                    piece.more = word & 1 != 0;
                    piece.id = load32(p, 4);
                    8
                }
                _ => return Some(piece),
            };
            let later = piece.protocol == protocol::FRAGMENT && piece.offset != 0;
            piece.protocol = load8(p, 0);
            piece.l4 += len;
            if later {
                return Some(piece);
            }
            if piece.l4 > 1024 {
                return None;
            }
        }
        Some(piece)
    }
}

/// How many extension headers of a fragment are walked.
const EXTENSION_HEADERS: usize = 6;

/// [`Reason::Fragment`]: the kernel's.
#[inline(always)]
fn follow<const V6: bool>(frame: Frame, l3: usize) -> Result<u32, Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    let ip = frame.at_dynamic(l3, header).ok_or(Reason::Internal)?;
    let piece = Piece::of::<V6>(&frame, ip, l3).ok_or(Reason::Fragment)?;
    // One way for the verifier, whatever headers were walked.
    let l4 = opaque(piece.l4 as u64) as usize & 0x7ff;
    let (from, to) = (source::<V6>(ip), destination::<V6>(ip));
    let ours = host::record_of::<V6>(to);
    let served = ours.roles & (role::VIP | role::POOL) != 0;
    if served {
        may_serve(ours.vrrp)?;
    } else if host::record_of::<V6>(from).roles & role::NAT_SOURCE == 0 {
        return Err(Reason::Fragment);
    }
    let len = ip_len::<V6>(ip);
    let before = (l4 - l3) as u32;
    if len > frame.len() - l3 as u32 || len <= before {
        return Err(Reason::Fragment);
    }
    let carried = len - before;
    let key = FragmentKey {
        source: nat::address(from),
        destination: nat::address(to),
        id: piece.id,
        protocol: if V6 { 0 } else { piece.protocol },
        family: if V6 { 6 } else { 4 },
        reserved: 0,
    };
    if piece.offset == 0 && piece.protocol != protocol::UDP && piece.protocol != protocol::TCP {
        return Err(Reason::Fragment);
    }
    // Only the last may end anywhere, and none beyond what a packet can have.
    if (piece.more && carried & 7 != 0) || piece.offset + carried + before > LARGEST {
        return Err(Reason::FragmentBad);
    }
    // SAFETY: reads one word.
    let now = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
    if piece.offset == 0 {
        // A word that each branch makes anew, as in `ingress`.
        let udp = if piece.protocol == protocol::UDP { opaque(1) } else { opaque(0) } != 0;
        let need = if udp { 8 } else { 20 };
        // A header in pieces is how filters were once deceived (RFC 1858).
        if carried < need as u32 {
            return Err(by_policy(policy::TINY_PASS, Reason::FragmentTiny));
        }
        let transport = frame.at_dynamic(l4, need).ok_or(Reason::Fragment)?;
        let packet = Packet::<V6> {
            frame,
            l3,
            // An atomic fragment is whole (RFC 6946).
            l4: l4 | if piece.more { FIRST_FRAGMENT as usize } else { 0 },
            ip,
            transport,
            udp,
            sctp: false,
            bytes: frame.len(),
        };
        if piece.more {
            let first = FirstFragment {
                since: now,
                ports: packet.ports(),
                end: carried as u16,
                protocol: piece.protocol,
                reserved: 0,
            };
            // Without room the others find nothing, and are counted.
            let _ = FRAGMENTS.insert(key, first, 0);
        }
        let cell = tail::scratch().ok_or(Reason::Internal)?.cell as u16;
        let (_, start) = ingress::key_of::<V6>(to);
        return ingress::known(&packet, start, cell);
    }
    let first = match FRAGMENTS.get_ptr(key) {
        // SAFETY: copied at once; at worst it is that of a packet whose place was just taken.
        Some(first) => unsafe { *first },
        None => return Err(unknown::<V6>(&piece, served)),
    };
    if now.wrapping_sub(first.since) > HOLDS * config!(hz) as u64 {
        return Err(unknown::<V6>(&piece, served));
    }
    if piece.offset < first.end as u32 && config!(policies) & policy::OVERLAP_FORWARD == 0 {
        return Err(Reason::FragmentOverlap);
    }
    let transport = frame.at_dynamic(l4, 0).ok_or(Reason::Fragment)?;
    let udp = if first.protocol == protocol::UDP { opaque(1) } else { opaque(0) } != 0;
    let packet = Packet::<V6> { frame, l3, l4, ip, transport, udp, sctp: false, bytes: frame.len() };
    if ours.roles & role::POOL != 0 {
        return from_leased(&packet, ours.pool as u32, first.ports);
    }
    by_flow(&packet, first.ports)
}

/// Why a later fragment whose first has not come (or came too long ago) ends.
#[inline(always)]
fn unknown<const V6: bool>(piece: &Piece, served: bool) -> Reason {
    let transport = piece.protocol == protocol::TCP || piece.protocol == protocol::UDP;
    // Extension headers behind the fragment header hide what the packet is.
    if served && (transport || (V6 && is_extension(piece.protocol))) {
        by_policy(policy::UNKNOWN_PASS, Reason::FragmentUnknown)
    } else {
        Reason::Fragment
    }
}

#[inline(always)]
fn is_extension(number: u8) -> bool {
    number == protocol::HOP_BY_HOP
        || number == protocol::ROUTING
        || number == protocol::DESTINATION_OPTIONS
        || number == protocol::AH
        || number == protocol::FRAGMENT
}

/// The kernel's where the policy says so, else `reason`.
#[inline(always)]
fn by_policy(passes: u32, reason: Reason) -> Reason {
    if config!(policies) & passes != 0 { Reason::Fragment } else { reason }
}

/// Where a packet goes of which only IP's header can be rewritten.
#[derive(Clone, Copy)]
struct Way {
    source: Words,
    destination: Words,
    hop: Hop,
    target: u32,
    out: bool,
}

#[inline(always)]
fn by_flow<const V6: bool>(packet: &Packet<V6>, ports: u32) -> Result<u32, Reason> {
    let now = connection::now();
    let place = flow::place::<V6>(packet.source(), packet.destination(), ports, packet.protocol());
    let mut lease = 0;
    let found = match connection::find_rarely(&place, now) {
        Some(hit) => match hit.value.kind() {
            Kind::Flow => Some(hit.value.destination()),
            Kind::NatReply => {
                let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
                may_serve(Destination::vrrp_of(target.flags()))?;
                let (hop, mtu) = nat::client_hop::<V6>(hit.value.hop(), packet.destination())?;
                fits(packet, mtu, &target)?;
                let destination = packet.destination();
                let way =
                    Way { source: target.vip::<V6>(), destination, hop, target: target.index, out: true };
                return send(packet, way);
            }
            Kind::FullNat => match Leased::of(hit.value.lease(), now) {
                Some(leased) if leased.owner() == place.identity => {
                    lease = hit.value.lease();
                    Some(leased.word.destination())
                }
                _ => None,
            },
            Kind::Template => None,
        },
        None => related::by_slot::<V6>((packet.destination(), packet.source()), ports, packet.protocol()),
    };
    let lease = opaque(lease as u64) as u32;
    let index = match found {
        Some(index) => opaque(index as u64) as u32,
        // The kernel was given the first one too.
        None if new_flow::service_at::<V6>(packet.destination(), (ports >> 16) as u16, packet.protocol())
            .is_none() =>
        {
            return Err(Reason::Fragment);
        }
        None => return Err(by_policy(policy::UNKNOWN_PASS, Reason::FragmentUnknown)),
    };
    let target = Target::of(index).ok_or(Reason::Internal)?;
    let target = target.with(fits(packet, target.mtu(), &target)?);
    let mut way = Way {
        source: packet.source(),
        destination: target.address::<V6>(),
        hop: Hop { destination: 0, source: 0, ifindex: 0 },
        target: index,
        out: false,
    };
    match target.forwarding() {
        Forwarding::Dr => return counted(dr::deliver(packet, &target)?, packet, way),
        Forwarding::Tun => {
            let event = Reason::FragmentFollowed as u32;
            return counted(tun::encapsulate(packet, &target, ports, event)?, packet, way);
        }
        Forwarding::Nat => {}
        Forwarding::FullNat => {
            if lease == 0 {
                return Err(Reason::FragmentUnknown);
            }
            let pool = POOL.get_ptr(lease >> 16).ok_or(Reason::Internal)?;
            way.source = fullnat::pool_address::<V6>(pool).0;
        }
    }
    way.hop = target.hop()?.0;
    send(packet, way)
}

/// To a local address of ours.
#[inline(always)]
fn from_leased<const V6: bool>(packet: &Packet<V6>, pool: u32, ports: u32) -> Result<u32, Reason> {
    let index = lease_index(pool & 0xff, u16::from_be((ports >> 16) as u16));
    let lease = Leased::of(index, connection::now()).ok_or(Reason::NoLease)?;
    let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    let (client, hop, client_ports) = unsafe {
        (
            words::<V6>(&raw const (*lease.record).client),
            core::ptr::read_volatile(&raw const (*lease.record).hop),
            core::ptr::read_volatile(&raw const (*lease.record).ports),
        )
    };
    let (hop, mtu) = fullnat::client_hop(lease.record, hop)?;
    if !lease.is_unchanged() {
        return Err(Reason::NoLease);
    }
    let (server, from) = (target.address::<V6>(), packet.source());
    // As the first one had to be, which may have been refused.
    let expected = nat::server_ports(client_ports, &target) >> 16;
    let same = packet.udp == (target.flags() & flags::UDP != 0) && target.flags() & flags::SCTP == 0;
    if server[0] != from[0] || server[1] != from[1] || ports & 0xffff != expected || !same {
        return Err(Reason::WrongServer);
    }
    fits(packet, mtu, &target)?;
    send(
        packet,
        Way { source: target.vip::<V6>(), destination: client, hop, target: target.index, out: true },
    )
}

/// Size and hops. Nobody is told of a later fragment's hops (RFC 792: only of fragment zero's).
#[inline(always)]
fn fits<const V6: bool>(packet: &Packet<V6>, mtu: u32, target: &Target) -> Result<u64, Reason> {
    let mut more = 0;
    if packet.ip_len() > mtu {
        if !packet.may_fragment() {
            return Err(answer::too_big(packet, mtu, target.vip::<V6>()));
        }
        more = by_kernel::<V6>(target)?;
    }
    if packet.ttl() <= 1 {
        return Err(Reason::IcmpTtlExpired);
    }
    Ok(more)
}

#[inline(always)]
fn send<const V6: bool>(packet: &Packet<V6>, way: Way) -> Result<u32, Reason> {
    let new = sum::<V6>(way.source, sum::<V6>(way.destination, 0));
    let delta = unsum::<V6>(packet.source(), unsum::<V6>(packet.destination(), new));
    packet.set_source(way.source);
    packet.set_destination(way.destination);
    packet.decrement_ttl_with(delta);
    counted(nexthop::send::<V6>(packet.frame, packet.l3, way.hop)?, packet, way)
}

#[inline(always)]
fn counted<const V6: bool>(action: u32, packet: &Packet<V6>, way: Way) -> Result<u32, Reason> {
    count::forwarded(way.target, packet.bytes, way.out);
    count::event(Reason::FragmentFollowed);
    Ok(action)
}
