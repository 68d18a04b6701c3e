//! The tail for packets without a flow, and for SYNs: is the address really ours, which service, which flow,
//! which server; then the entry, and the packet goes on its way.

use crate::{
    answer,
    connection::{self, Hit, Inserted, Place},
    cookie, count,
    extension::Claimed,
    flow::{self, Step},
    forward::{self, Target, dr, fullnat, nat, tun},
    guard, host, lease, load,
    maps::{ADDRESSES, CLIENT_NEIGHB, CLIENT_ROUTES4, CLIENT_ROUTES6, SERVICE_INDEX},
    mss, nexthop,
    packet::{Frame, Packet, Protocol, Words, ip_len, load8, load16, opaque},
    proxy, schedule, shifted, tail, toa, witness,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::{
    connection::{FLAG_EXTENSION, HOP_ON_LINK, Kind, Value, slack},
    destination::{Forwarding, flags},
    filter::{AddressKey, AddressRecord, role},
    header::{IPV4, IPV6, protocol},
    maps::{ClientNeighbour, ON_LINK, programs},
    scratch::FIRST_FRAGMENT,
    sctp,
    service::{NoServer, OnUnknownFlow, Pick, SERVICE_VALID, Service, ServiceKey, features},
    state::{self, Direction, State},
    verdict::Reason,
};

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    // A word that each branch makes anew, as in `ingress`: what is known of a byte is forgotten on the stack (6.1).
    let udp = if scratch.protocol == protocol::UDP { opaque(1) } else { opaque(0) } != 0;
    // Back from the choice of a server: everything before it was done.
    let chosen = scratch.choices != 0;
    let protocol = Protocol { udp, sctp: false };
    if scratch.family == 6 {
        arrived::<true>(frame, l3, l4, protocol, chosen)
    } else {
        arrived::<false>(frame, l3, l4, protocol, chosen)
    }
}

/// The path of SCTP's tail.
#[inline(always)]
pub fn handle_sctp(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    let chosen = scratch.choices != 0;
    let protocol = Protocol { udp: false, sctp: true };
    if scratch.family == 6 {
        arrived::<true>(frame, l3, l4, protocol, chosen)
    } else {
        arrived::<false>(frame, l3, l4, protocol, chosen)
    }
}

#[inline(always)]
fn exact<const V6: bool>(address: Words) -> Option<AddressRecord> {
    let key = AddressKey { address: nat::address(address), family: if V6 { 6 } else { 4 } };
    // SAFETY: the record is copied at once; at worst it is that of an address removed just now.
    ADDRESSES.get_ptr(key).map(|p| unsafe { *p })
}

#[inline(always)]
fn arrived<const V6: bool>(
    frame: Frame,
    l3: usize,
    l4: usize,
    protocol: Protocol,
    chosen: bool,
) -> Result<u32, Reason> {
    let Some(ip) = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }) else { return Err(Reason::Internal) };
    let mut to = AddressRecord { roles: role::VIP, pool: 0, vrrp: 0 };
    if !chosen {
        // The filter may have been wrong: from here on the address is known.
        to = exact::<V6>(crate::packet::destination::<V6>(ip)).unwrap_or_default();
        forward::may_serve(to.vrrp)?;
        if to.roles & (role::VIP | role::POOL) == 0 {
            let from = exact::<V6>(crate::packet::source::<V6>(ip)).unwrap_or_default();
            if from.roles & role::PROBED != 0 {
                return Err(crate::probe::call::<V6>(&frame, l3));
            }
            if from.roles & role::NAT_SOURCE != 0 && !protocol.udp && !protocol.sctp {
                return Err(tail::call_at(&frame, l3, l4, V6, false, programs::EXPECTED));
            }
            let reason =
                if from.roles & role::NAT_SOURCE != 0 { Reason::ServerTraffic } else { Reason::NotOurs };
            return Err(host::unless_refused(to.roles, reason));
        }
        guard::check_source::<V6>(crate::packet::source::<V6>(ip), crate::packet::destination::<V6>(ip))?;
    }
    let Protocol { udp, sctp } = protocol;
    let need = if sctp {
        sctp::HEADER + sctp::CHUNK
    } else if udp {
        8
    } else {
        20
    };
    let Some(transport) = frame.at_dynamic(l4, need) else { return Err(Reason::BadTransport) };
    let len = ip_len::<V6>(ip);
    let header = (l4 - l3) as u32;
    if len > frame.len() - l3 as u32 || len < header + need as u32 {
        return Err(Reason::BadTransport);
    }
    // The transport's own length must lie in the packet.
    let claimed = if sctp {
        sctp::HEADER as u32 + u16::from_be(load16(transport, sctp::HEADER + 2)) as u32
    } else if udp {
        u16::from_be(load16(transport, 4)) as u32
    } else {
        (load8(transport, 12) >> 4) as u32 * 4
    };
    // Of a datagram in fragments the rest is still to come.
    let whole = sctp || !udp || tail::scratch().is_some_and(|scratch| scratch.l4 & FIRST_FRAGMENT == 0);
    if claimed < need as u32 || (claimed > len - header && whole) {
        return Err(Reason::BadTransport);
    }
    let bytes = if udp || sctp { frame.len() } else { cookie::made().unwrap_or(frame.len()) };
    let bytes = opaque(bytes as u64) as u32;
    let packet = Packet::<V6> { frame, l3, l4, ip, transport, udp, sctp, bytes };
    let now = connection::now();
    if to.roles & role::POOL != 0 {
        return fullnat::to_client::<V6, false>(&packet, to.pool as u32, now);
    }
    to_vip(&packet, chosen, now)
}

/// The service of a packet to a VIP.
#[inline(always)]
fn service_of<const V6: bool>(packet: &Packet<V6>) -> Option<(u32, *mut Service)> {
    service_at::<V6>(packet.destination(), (packet.ports() >> 16) as u16, packet.protocol())
}

/// The service at a VIP's port (as in a packet).
#[inline(always)]
pub fn service_at<const V6: bool>(vip: Words, port: u16, transport: Protocol) -> Option<(u32, *mut Service)> {
    let mut key = ServiceKey {
        address: nat::address(vip),
        port,
        protocol: transport.number(),
        family: if V6 { 6 } else { 4 },
    };
    // The entry of port 0 is a list of ranges: a packet to that port must not take it for a service.
    let exact = if port == 0 { None } else { SERVICE_INDEX.get_ptr(key) };
    let index = match exact {
        // SAFETY: one word, read whole.
        Some(index) => unsafe { core::ptr::read_volatile(index) },
        None => {
            key.port = 0;
            let list = SERVICE_INDEX.get_ptr(key)?;
            // SAFETY: as above.
            schedule::in_ranges(unsafe { core::ptr::read_volatile(list) }, u16::from_be(port))?
        }
    };
    let record = flow::service(index)?;
    // SAFETY: a map value.
    if unsafe { core::ptr::read_volatile(&raw const (*record).flags) } & SERVICE_VALID == 0 {
        return None;
    }
    Some((index, record))
}

#[inline(always)]
fn to_vip<const V6: bool>(packet: &Packet<V6>, chosen: bool, now: u16) -> Result<u32, Reason> {
    let place = flow::place::<V6>(packet.source(), packet.destination(), packet.ports(), packet.protocol());
    let (index, event) = if chosen {
        let scratch = tail::scratch().ok_or(Reason::Internal)?;
        (scratch.service, scratch.event)
    } else {
        match begin(packet, &place, now)? {
            Begun::Sent(action) => return Ok(action),
            Begun::Anew(index, event) => (index, event as u32),
        }
    };
    // One way for the verifier.
    let (index, event) = (opaque(index as u64) as u32, opaque(event as u64) as u32);
    let service = flow::service(index).ok_or(Reason::Internal)?;
    place_flow(packet, &place, (index, service), event, now)
}

enum Begun {
    Sent(u32),
    /// A flow of this service begins with this event.
    Anew(u32, Reason),
}

/// Whether a packet to a VIP begins a flow.
#[inline(always)]
fn begin<const V6: bool>(packet: &Packet<V6>, place: &Place, now: u16) -> Result<Begun, Reason> {
    let Some((index, service)) = service_of(packet) else {
        if !packet.sctp && packet.begins() {
            return Err(tail::call_with(packet, programs::EXPECTED));
        }
        // Asked again: kept over the search for a service, it would be one more thing for the verifier to follow.
        let to = exact::<V6>(packet.destination()).unwrap_or_default();
        return Err(host::unless_refused(to.roles, Reason::NoService));
    };
    let flags = if packet.udp || packet.sctp { 0 } else { packet.tcp_flags() };
    let syn = if packet.sctp { packet.begins() } else { flags & state::SYN != 0 };
    if !packet.udp && !packet.sctp && !state::is_possible(flags) {
        return Err(Reason::BadFlags);
    }
    if !packet.sctp && syn {
        // SAFETY: a map value.
        let features = unsafe { core::ptr::read_volatile(&raw const (*service).features) };
        let before_data = (packet.l4 - packet.l3) as u32 + packet.tcp_header() as u32;
        if features & features::PROXY != 0 && packet.ip_len() > before_data {
            return Err(Reason::FastOpenRefused);
        }
        // SAFETY: a map value.
        let mss = unsafe { core::ptr::read_volatile(&raw const (*service).mss) };
        if mss != 0 {
            mss::clamp(packet, mss);
        }
    }
    if let Some(scratch) = tail::scratch() {
        scratch.before = 0;
    }
    let mut event = Reason::FlowNew;
    if let Some(hit) = connection::find_rarely(place, now) {
        match take_up(packet, hit, place, syn, now)? {
            Resumed::Sent(action) => return Ok(Begun::Sent(action)),
            Resumed::Anew(why) => event = why,
        }
    } else if !packet.udp && !syn {
        if !packet.sctp
            && let Some(reason) = cookie::brought(packet, features_of(service))
        {
            return Err(reason);
        }
        // SAFETY: a map value.
        let policy = unsafe { core::ptr::read_volatile(&raw const (*service).on_unknown_flow) };
        if policy == OnUnknownFlow::Pass as u8 {
            return Err(Reason::UnknownFlowPassed);
        }
        // A RST or ABORT is never answered (RFC 9293, section 3.5.2; RFC 9260, section 8.4), and opens nothing.
        if policy == OnUnknownFlow::Drop as u8
            || if packet.sctp { packet.resets() } else { flags & state::RST != 0 }
        {
            return Err(Reason::UnknownFlowDropped);
        }
        if policy == OnUnknownFlow::Reset as u8 {
            return Err(answer::reset(packet, Reason::UnknownFlowReset));
        }
        event = Reason::FlowAdopted;
    }
    if !packet.sctp && syn && cookie::made().is_none() && cookie::are_sent(features_of(service)) {
        // No client begins so.
        if flags & state::ACK != 0 {
            return Err(Reason::UnknownFlowDropped);
        }
        return Err(cookie::answer(packet, (index, service), features_of(service)));
    }
    Ok(Begun::Anew(index, event))
}

/// The features of a service.
#[inline(always)]
fn features_of(service: *mut Service) -> u32 {
    // SAFETY: a map value.
    unsafe { core::ptr::read_volatile(&raw const (*service).features) }
}

enum Resumed {
    Sent(u32),
    Anew(Reason),
}

/// A packet whose flow is known after all: a SYN sent again, a race, or one that must begin anew.
#[inline(always)]
fn take_up<const V6: bool>(
    packet: &Packet<V6>,
    hit: Hit,
    place: &Place,
    syn: bool,
    now: u16,
) -> Result<Resumed, Reason> {
    if let Kind::NatReply = hit.value.kind() {
        // A real server's packet to an address that is a VIP too.
        if !packet.sctp && shifted::is_extended(hit.value) {
            return Err(shifted::call(packet, 0));
        }
        let target = Target::of(hit.value.destination()).ok_or(Reason::Internal)?;
        return nat::to_client(packet, hit, target, now).map(Resumed::Sent);
    }
    let fullnat = matches!(hit.value.kind(), Kind::FullNat);
    let mut leased = None;
    let destination = if fullnat {
        match fullnat::Leased::of(hit.value.lease(), now) {
            Some(lease) if lease.owner() == place.identity => {
                leased = Some(lease);
                lease.word.destination()
            }
            _ => return Ok(give_back(hit, None, Reason::FlowReplaced)),
        }
    } else {
        hit.value.destination()
    };
    let target = Target::of(destination).ok_or(Reason::Internal)?;
    let flags = target.flags();
    if flags & flags::CLOSED != 0 {
        let state = hit.value.state();
        let moves = if flags & flags::RESET != 0 {
            syn || packet.udp
        } else if flags & flags::MOVES != 0 {
            // A RST opens nothing: it ends the flow where it is.
            !packet.resets()
        } else if flags & flags::REMOVED != 0 {
            syn || flow::moves(&hit, packet.udp)
        } else {
            syn && !flow::is_beginning(state, packet.protocol())
        };
        if moves {
            return Ok(give_back(hit, leased, Reason::FlowMoved));
        }
        // A RST or ABORT ends the flow by itself.
        if flags & flags::RESET != 0 && !packet.udp && !packet.resets() {
            if flow::is_closed(state, packet.protocol()) || flags & flags::RESET_TELLS_SERVER == 0 {
                return Err(answer::reset(packet, Reason::FlowReset));
            }
            if packet.sctp {
                packet.make_abort();
            } else {
                packet.make_reset();
            }
            count::event(Reason::ServerTold);
        }
    }
    let direction = match target.forwarding() {
        Forwarding::Dr | Forwarding::Tun => Direction::InputOnly,
        Forwarding::Nat | Forwarding::FullNat => Direction::Input,
    };
    if syn && flow::starts_anew(hit.value.state(), direction, packet.protocol()) {
        return Ok(give_back(hit, leased, Reason::FlowReplaced));
    }
    if !packet.sctp && !syn && shifted::is_extended(hit.value) {
        return Err(shifted::call_attended(packet));
    }
    let hit = if syn && !packet.sctp { witness::repeated(hit, &target) } else { hit };
    forward::to_server(packet, hit, place, target, now).map(Resumed::Sent)
}

/// Frees the entry, so that the flow can be placed anew, and its lease: a client that begins anew on one port
/// again and again would else hold every port that its flow can find, until their time is over.
#[inline(always)]
fn give_back(hit: Hit, leased: Option<fullnat::Leased>, why: Reason) -> Resumed {
    if load::end(&hit)
        && let Some(lease) = leased
        && lease.hit().replace(Value::EMPTY)
    {
        load::lb_recount(lease.word.0, 0);
        if let Some(scratch) = tail::scratch() {
            scratch.before = hit.value.lease() + 1;
        }
    }
    Resumed::Anew(why)
}

/// What a word with SCTP's flag takes for INIT1: of this number.
const INIT1: State = match State::from_number(sctp::State::Init1 as u8) {
    Some(state) => state,
    None => panic!(),
};

/// State and deadline of a new entry.
#[inline(always)]
fn beginning<const V6: bool>(
    packet: &Packet<V6>,
    service: u32,
    event: u32,
    direction: Direction,
    now: u16,
) -> (State, u16) {
    let state = if packet.udp || event == Reason::FlowAdopted as u32 {
        State::Unconfirmed
    } else {
        // A packet that is neither has SYN: the entry begins as SYN_RECV, or ESTABLISHED for a flow that moved.
        let step = Step::of(packet, direction, now);
        if packet.sctp {
            INIT1
        } else if state::step(direction, 0, step.flags) == State::SynReceived as u8 {
            State::SynReceived
        } else {
            State::Unconfirmed
        }
    };
    let timeout = flow::timeout_of(service, state as u8);
    (state, now.wrapping_add(timeout).wrapping_add(slack(timeout, false)))
}

/// How many servers a NAT flow tries whose reply would be another flow's.
const NAT_TRIES: u32 = 4;

#[inline(always)]
fn place_flow<const V6: bool>(
    packet: &Packet<V6>,
    place: &Place,
    service: (u32, *mut Service),
    event: u32,
    now: u16,
) -> Result<u32, Reason> {
    // SAFETY: a map value.
    let features = unsafe { core::ptr::read_volatile(&raw const (*service.1).features) };
    let pick = match schedule::pick::<V6>(packet, service, features, event) {
        Ok(pick) => pick,
        Err(Reason::NoServer) => return Err(nobody(packet, service.1)),
        Err(reason) => return Err(reason),
    };
    let target = match target_of(pick) {
        Ok(target) => target,
        Err(Reason::NoServer) => return Err(nobody(packet, service.1)),
        Err(reason) => return Err(reason),
    };
    if features & features::ONE_PACKET != 0 {
        return one_packet(packet, &target);
    }
    match target.forwarding() {
        Forwarding::Dr | Forwarding::Tun => direct(packet, place, service, &target, event, now),
        Forwarding::FullNat => leased(packet, place, service, &target, event, now),
        Forwarding::Nat => translated(packet, place, service, pick, event, now),
    }
}

/// There is no server: what the client is told.
#[inline(always)]
fn nobody<const V6: bool>(packet: &Packet<V6>, service: *mut Service) -> Reason {
    // SAFETY: a map value.
    let policy = unsafe { core::ptr::read_volatile(&raw const (*service).no_server) };
    // A RST or ABORT is never answered.
    if policy == NoServer::Drop as u8 || packet.resets() {
        return Reason::NoServer;
    }
    if policy == NoServer::Reset as u8 && !packet.udp {
        return answer::reset(packet, Reason::NoServerReset);
    }
    answer::unreachable(packet, packet.destination())
}

/// One-packet scheduling: the packet goes, and nothing is remembered.
#[inline(always)]
fn one_packet<const V6: bool>(packet: &Packet<V6>, target: &Target) -> Result<u32, Reason> {
    let target = &target.with(forward::fits(packet, target)?);
    count::event(Reason::OnePacket);
    match target.forwarding() {
        Forwarding::Tun => tun::send(packet, target),
        Forwarding::Dr => dr::send(packet, target),
        // Replies could not be translated back: manifests that ask for it are refused.
        Forwarding::Nat | Forwarding::FullNat => Err(Reason::Internal),
    }
}

#[inline(always)]
fn target_of(pick: schedule::Choice) -> Result<Target, Reason> {
    Target::of(pick.destination().ok_or(Reason::NoServer)?).ok_or(Reason::Internal)
}

/// NAT: two entries. A server whose reply would be another live flow's is passed over for the next slot's.
#[inline(always)]
fn translated<const V6: bool>(
    packet: &Packet<V6>,
    place: &Place,
    service: (u32, *mut Service),
    mut pick: schedule::Choice,
    event: u32,
    now: u16,
) -> Result<u32, Reason> {
    let mut found = None;
    for _ in 0..NAT_TRIES {
        let target = target_of(pick)?;
        if !matches!(target.forwarding(), Forwarding::Nat) {
            break;
        }
        let reply = reply_place(packet, &target);
        match connection::find_rarely(&reply, now) {
            Some(other) if !gives_way(&other, &target, packet.protocol()) => {
                if pick.is_by_rules() {
                    return Err(schedule::again(packet, service.0, event, pick));
                }
                pick = pick.next();
            }
            Some(old) => {
                // Written anew below.
                old.replace(Value::EMPTY);
                found = Some(target.index);
                break;
            }
            None => {
                found = Some(target.index);
                break;
            }
        }
    }
    // One way for the verifier, whichever server it was.
    let index = opaque(found.ok_or(Reason::ReplyConflict)? as u64) as u32;
    let target = Target::of(index).ok_or(Reason::Internal)?;
    forward::fits(packet, &target)?;
    let (state, deadline) = beginning(packet, service.0, event, Direction::Input, now);
    let hop = client_hop(packet)?;
    let reply = reply_place(packet, &target);
    let flags = extend(packet, place, service.1, state, deadline, now)?;
    let replies = Value::nat_reply(target.index, hop, reply.first, state, deadline).with_flags(flags);
    let replies = flow::marked(replies, packet.protocol());
    // Established until the flow has its place: the two may share a bucket, and nobody's place is taken for less than
    // an established flow's.
    let held = replies.with(State::Established as u8, deadline);
    let (server, ports) = (nat::address(target.address::<V6>()), nat::reply_ports(packet.ports(), &target));
    if let Inserted::Full = connection::insert::<V6>(&reply, held, now, server, ports, false) {
        return Err(Reason::TableFull);
    }
    let word = Value::flow(Kind::Flow, target.index, place.first, state, deadline).with_flags(flags);
    let word = flow::marked(word, packet.protocol());
    let placed = !matches!(insert(packet, place, word, now, target.is_counted()), Inserted::Full);
    let held = connection::find_rarely(&reply, now);
    if let Some(hit) = held {
        // Another CPU may have placed the same flow and written its own.
        hit.replace(replies);
    }
    // Both or none.
    if !placed || held.is_none() {
        withdraw(place, now);
        withdraw(&reply, now);
        return Err(Reason::TableFull);
    }
    count::event_number(event);
    nat::send(packet, &target)
}

/// Whether the reply of a new flow to this server may take the place of a live entry: it is the same flow's, from before,
/// or that of another flow of the client's port to the same server, by another VIP, which is over. The server itself
/// would let the new connection begin there.
#[inline(always)]
fn gives_way(old: &Hit, target: &Target, protocol: Protocol) -> bool {
    matches!(old.value.kind(), Kind::NatReply)
        && (old.value.destination() == target.index
            || flow::starts_anew(old.value.state(), Direction::Input, protocol))
}

/// Takes an entry out again.
#[inline(always)]
fn withdraw(place: &Place, now: u16) {
    if let Some(hit) = connection::find_rarely(place, now) {
        load::end(&hit);
    }
}

/// Where the reply of this packet's flow lies.
#[inline(always)]
fn reply_place<const V6: bool>(packet: &Packet<V6>, target: &Target) -> Place {
    let ports = nat::reply_ports(packet.ports(), target);
    flow::place::<V6>(target.address::<V6>(), packet.source(), ports, packet.protocol())
}

#[inline(always)]
fn insert<const V6: bool>(
    packet: &Packet<V6>,
    place: &Place,
    word: Value,
    now: u16,
    counted: bool,
) -> Inserted {
    connection::insert::<V6>(place, word, now, nat::address(packet.source()), packet.ports(), counted)
}

/// DR and TUN: one entry. When there is no room, a hash service goes on without: its slot table gives the
/// same answer to the next packet.
#[inline(always)]
fn direct<const V6: bool>(
    packet: &Packet<V6>,
    place: &Place,
    service: (u32, *mut Service),
    target: &Target,
    event: u32,
    now: u16,
) -> Result<u32, Reason> {
    let more = forward::fits(packet, target)?;
    // SAFETY: a map value.
    let (pick, features) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service.1).pick) as u32,
            core::ptr::read_volatile(&raw const (*service.1).features),
        )
    };
    let is_hash = pick == Pick::HashAddress as u32
        || pick == Pick::HashAddressPort as u32
        || pick == Pick::HashDestination as u32
        || pick >= Pick::IpvsSh as u32;
    // The slot table gives the same answer to every packet of the flow.
    let stateless = is_hash && features & features::PERSISTENT == 0;
    let mut target = *target;
    if guard::is_flooded() && stateless {
        count::event(Reason::FloodStateless);
    } else {
        let (state, deadline) = beginning(packet, service.0, event, Direction::InputOnly, now);
        let word = Value::flow(Kind::Flow, target.index, place.first, state, deadline);
        let word = flow::marked(word, packet.protocol());
        match insert(packet, place, word, now, target.is_counted()) {
            Inserted::Done => count::event_number(event),
            Inserted::Other(value) => {
                target = Target::of(value.destination()).ok_or(Reason::Internal)?;
            }
            Inserted::Full if stateless => count::event(Reason::Stateless),
            Inserted::Full => return Err(Reason::TableFull),
        }
    }
    if let Forwarding::Tun = target.forwarding() {
        tun::send(packet, &target.with(more))
    } else {
        dr::send(packet, &target)
    }
}

/// FULLNAT: a lease, then the entry that names it.
#[inline(always)]
fn leased<const V6: bool>(
    packet: &Packet<V6>,
    place: &Place,
    service: (u32, *mut Service),
    target: &Target,
    event: u32,
    now: u16,
) -> Result<u32, Reason> {
    forward::fits(packet, target)?;
    let (state, deadline) = beginning(packet, service.0, event, Direction::Input, now);
    let route = route_of::<V6>(packet.source());
    let back = nexthop::back(&packet.frame, packet.l3).ok_or(Reason::Internal)?;
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    scratch.client = nat::address(packet.source());
    scratch.ports = packet.ports();
    scratch.hop = if route == ON_LINK { 0 } else { route };
    scratch.client_destination = back.destination;
    scratch.client_source = back.source;
    scratch.client_ifindex = back.ifindex;
    let flags = extend(packet, place, service.1, state, deadline, now)?;
    let word = Value::flow(Kind::FullNat, target.index, place.first, state, deadline).with_flags(flags);
    let word = flow::marked(word, packet.protocol());
    let index = lease::take::<V6>(service.0, place, word, now).ok_or(Reason::NoLocalPort)?;
    let entry = Value::full_nat(index, place.first, state, deadline).with_flags(flags);
    let entry = flow::marked(entry, packet.protocol());
    if let Inserted::Full = insert(packet, place, entry, now, false) {
        lease::give_back(index, word);
        return Err(Reason::TableFull);
    }
    count::event_number(event);
    fullnat::send(packet, target, index)
}

/// Claims an extension record for a new flow whose packets need one, and fills it. The flags of its words.
#[inline(always)]
fn extend<const V6: bool>(
    packet: &Packet<V6>,
    place: &Place,
    service: *mut Service,
    state: State,
    deadline: u16,
    now: u16,
) -> Result<u64, Reason> {
    // SAFETY: a map value.
    let features = unsafe { core::ptr::read_volatile(&raw const (*service).features) };
    if packet.udp || packet.sctp || !packet.begins() {
        return Ok(0);
    }
    let made = cookie::made().is_some();
    if features & features::EXTENDED == 0 && !made {
        return Ok(0);
    }
    let Some(claimed) = Claimed::for_flow(place, state, deadline, now) else {
        // What a flow can do without is done without.
        if features & features::PROXY == 0 && !made {
            count::event(Reason::ToaUnsent);
            return Ok(0);
        }
        return Err(Reason::NoExtension);
    };
    if features & features::PROXY != 0 {
        proxy::begin(packet, &claimed);
    } else if features & features::TOA != 0 {
        toa::begin(packet, &claimed);
    }
    if made {
        cookie::begin(&claimed);
    }
    claimed.publish();
    Ok(FLAG_EXTENSION)
}

/// The next hop towards a client by the routes the agent keeps, or [`ON_LINK`]. Without a route the sender of
/// the frame is as good as any.
#[inline(always)]
pub fn route_of<const V6: bool>(client: Words) -> u32 {
    let address = nat::address(client);
    let found = if V6 {
        CLIENT_ROUTES6.get(&Key::new(128, address.v6()))
    } else {
        CLIENT_ROUTES4.get(&Key::new(32, address.v4()))
    };
    found.copied().unwrap_or(ON_LINK)
}

/// The hop of a NAT reply entry. A client on a directly attached segment (or behind more gateways than a hop can
/// number) is remembered as its frame shows it.
#[inline(always)]
fn client_hop<const V6: bool>(packet: &Packet<V6>) -> Result<u8, Reason> {
    let route = route_of::<V6>(packet.source());
    if route != 0 && route < HOP_ON_LINK as u32 {
        return Ok(route as u8);
    }
    let back = nexthop::back(&packet.frame, packet.l3).ok_or(Reason::Internal)?;
    let key = AddressKey { address: nat::address(packet.source()), family: if V6 { 6 } else { 4 } };
    let neighbour = ClientNeighbour {
        destination: back.destination,
        source: back.source,
        ifindex: back.ifindex,
        reserved: 0,
    };
    if let Some(known) = CLIENT_NEIGHB.get_ptr(key) {
        // SAFETY: an element of a hash map; only compared.
        let known = unsafe { *known };
        if known == neighbour {
            return Ok(HOP_ON_LINK);
        }
    }
    CLIENT_NEIGHB.insert(key, neighbour, 0).map_err(|_| Reason::NoClientHop)?;
    Ok(HOP_ON_LINK)
}
