//! FTP's control channel under NAT and FULLNAT: commands and replies that say where a data connection will be are read,
//! rewritten where they name an address that the other side must not see, and the connection is expected from then
//! on (`expected`). A tail: of a service whose record asks for it, and there only what goes to or comes from its port.
//!
//! What is expected is an entry of the connection table in state LISTEN whose unknown port is 0, which no flow has:
//! from the client to a port of the VIP (passive), or the reply of a real server to a port of the client (active, NAT).
//! Active under FULLNAT it is a lease in that state (`active`).

use crate::{
    connection::{self, Inserted},
    count,
    flow::{self, turned},
    forward::{self, Target, fullnat, fullnat::Leased, may_serve, nat},
    host, load,
    maps::DIALOG,
    packet::{Frame, Packet, Protocol, Words, ip_len, load8, load16, opaque, store16, words},
    shifted, tail,
};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use lb_common::{
    address::Address,
    checksum,
    connection::{Kind, Value, slack},
    destination::{Destination, Forwarding},
    filter::role,
    ftp::{Dialog, FIRST_DATA_PORT, Line, Reader, SEGMENT, Speaker, rewrite_passive},
    header::{IPV4, IPV6},
    lease::lease_index,
    maps::programs,
    state::State,
    verdict::Reason,
};

/// TCP.
pub const TCP: Protocol = Protocol { udp: false, sctp: false };

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    if scratch.family == 6 { heard::<true>(frame, l3, l4) } else { heard::<false>(frame, l3, l4) }
}

/// The TCP packet at these offsets. Whoever called the tail has seen its headers.
#[inline(always)]
pub fn packet_at<const V6: bool>(frame: Frame, l3: usize, l4: usize) -> Option<Packet<V6>> {
    let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 })?;
    let transport = frame.at_dynamic(l4, 20)?;
    let len = ip_len::<V6>(ip);
    // Opaque, or the compiler would take the offset from a pointer, in 32 bits.
    let bytes = opaque(frame.len() as u64) as u32;
    if len > bytes - l3 as u32 || len < (l4 - l3 + 20) as u32 {
        return None;
    }
    Some(Packet { frame, l3, l4, ip, transport, udp: false, sctp: false, bytes })
}

#[inline(always)]
fn heard<const V6: bool>(frame: Frame, l3: usize, l4: usize) -> Result<u32, Reason> {
    let packet = packet_at::<V6>(frame, l3, l4).ok_or(Reason::Internal)?;
    let now = connection::now();
    let to = host::record_of::<V6>(packet.destination());
    if to.roles & role::POOL != 0 {
        let pool = to.pool as u32 & 0xff;
        let index = lease_index(pool, u16::from_be((packet.ports() >> 16) as u16));
        let lease = Leased::of(index, now).ok_or(Reason::NoLease)?;
        let target = Target::of(lease.word.destination()).ok_or(Reason::Internal)?;
        // SAFETY: a map value.
        let client = words::<V6>(unsafe { &raw const (*lease.record).client });
        may_serve(Destination::vrrp_of(target.flags()))?;
        of_server(&packet, &target, client, now)?;
        if shifted::is_extended(lease.word) {
            return Err(shifted::call_read(&frame, pool + 1, 0));
        }
        let packet = packet_at::<V6>(Frame::new(frame.ctx), l3, l4).ok_or(Reason::Internal)?;
        return fullnat::to_client::<V6, true>(&packet, pool, now);
    }
    let place = flow::place::<V6>(packet.source(), packet.destination(), packet.ports(), TCP);
    let hit = connection::find_rarely(&place, now).ok_or(Reason::Internal)?;
    let kind = hit.value.kind() as u8;
    let destination = if kind == Kind::FullNat as u8 {
        Leased::of(hit.value.lease(), now).ok_or(Reason::NoLease)?.word.destination()
    } else {
        hit.value.destination()
    };
    // One way for the verifier, whatever names it.
    let target = Target::of(opaque(destination as u64) as u32).ok_or(Reason::Internal)?;
    may_serve(Destination::vrrp_of(target.flags()))?;
    if kind == Kind::NatReply as u8 {
        of_server(&packet, &target, packet.destination(), now)?;
        if shifted::is_extended(hit.value) {
            return Err(shifted::call_read(&frame, 0, 0));
        }
        let packet = packet_at::<V6>(Frame::new(frame.ctx), l3, l4).ok_or(Reason::Internal)?;
        return nat::to_client(&packet, hit, target, now);
    }
    if of_client(&packet, &target, now)? {
        return Err(tail::call(&frame, programs::FTP_ACTIVE));
    }
    if shifted::is_extended(hit.value) {
        return Err(shifted::call_read(&frame, 0, 0));
    }
    let packet = packet_at::<V6>(Frame::new(frame.ctx), l3, l4).ok_or(Reason::Internal)?;
    forward::to_server(&packet, hit, &place, target, now)
}

/// Reads a segment, if it carries anything. A line that is whole is left in this CPU's dialog.
#[inline(always)]
fn listen<const V6: bool>(packet: &Packet<V6>, speaker: Speaker) -> Option<&'static mut Dialog> {
    let header = (load8(packet.transport, 12) >> 4) as u32 * 4;
    let len = payload_len(packet);
    if header < 20 || len == 0 {
        return None;
    }
    let dialog = dialog()?;
    for word in 0..SEGMENT / 8 {
        // SAFETY: inside the field, which a word's address divides. Volatile, or it would become a call.
        unsafe { core::ptr::write_volatile((&raw mut dialog.came).cast::<u64>().add(word), 0) };
    }
    dialog.reader = Reader::new(speaker);
    let len = if len > SEGMENT as u32 { SEGMENT as u32 } else { len };
    // One to SEGMENT: that a number is not 0 does not tell Linux 6.1 that it is 1 at least.
    let len = (opaque(len as u64 - 1) & (SEGMENT as u64 - 1)) + 1;
    let offset = packet.l4 as u32 + header;
    // SAFETY: `came` has SEGMENT bytes, and `len` is no more; the kernel checks the frame's (Linux 5.18).
    let read =
        unsafe { bpf_xdp_load_bytes(packet.frame.ctx, offset, (&raw mut dialog.came).cast(), len as u32) };
    if read != 0 {
        return None;
    }
    dialog.len = len as u32;
    lb_ftp_read(len as u32);
    let reader = &dialog.reader;
    if reader.is_cut() {
        count::event(Reason::FtpCut);
    } else if reader.is_wrong() {
        count::event(Reason::FtpGarbled);
    }
    if reader.is_whole() { Some(dialog) } else { None }
}

/// Bytes behind the TCP header.
#[inline(always)]
fn payload_len<const V6: bool>(packet: &Packet<V6>) -> u32 {
    let header = (load8(packet.transport, 12) >> 4) as u32 * 4;
    packet.ip_len().saturating_sub((packet.l4 - packet.l3) as u32 + header)
}

/// This CPU's dialog.
#[inline(always)]
pub fn dialog() -> Option<&'static mut Dialog> {
    // SAFETY: a per-CPU value; XDP programs do not interrupt each other on a CPU.
    DIALOG.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// Reads so many bytes of the segment. Its loop carries its counter and nothing else: what was read is in the map.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_ftp_read(len: u32) -> u64 {
    let Some(dialog) = dialog() else { return 0 };
    // Through the map: a bound that is the lesser of two would be compared for equality alone, which Linux 6.1 takes
    // for a loop without end.
    dialog.draft.at = len;
    for at in 0..SEGMENT as u32 {
        if lb_ftp_step(at) != 0 {
            break;
        }
    }
    0
}

/// Reads one byte; 1 when further ones change nothing.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_ftp_step(at: u32) -> u64 {
    let Some(dialog) = dialog() else { return 1 };
    if at >= dialog.draft.at {
        return 1;
    }
    let byte = dialog.came[at as usize & (SEGMENT - 1)];
    dialog.reader.step(byte, at);
    dialog.reader.is_over() as u64
}

/// A reply of the server's: a passive data connection is expected, and 227 told with the VIP's address.
#[inline(always)]
fn of_server<const V6: bool>(
    packet: &Packet<V6>,
    target: &Target,
    client: Words,
    now: u16,
) -> Result<(), Reason> {
    let Some(dialog) = listen(packet, Speaker::Server) else { return Ok(()) };
    let reader = &dialog.reader;
    let port = reader.port as u16;
    let vip = target.vip::<V6>();
    let mut rewrite = false;
    if reader.line == Line::Passive as u32 {
        if V6 {
            // It cannot say where (RFC 2428, section 3).
            count::event(Reason::FtpGarbled);
            return Ok(());
        }
        let named = reader.address().halves()[0];
        rewrite = named == target.address::<V6>()[0];
        if !rewrite && named != vip[0] {
            count::event(Reason::FtpElsewhere);
            return Ok(());
        }
    }
    if port < FIRST_DATA_PORT {
        return Err(Reason::FtpRefused);
    }
    expect::<V6>(target, client, port, now)?;
    count::event(Reason::FtpAnnounced);
    if !rewrite || named_alike(vip, target.address::<V6>()) {
        return Ok(());
    }
    dialog.draft.bytes = dialog.came;
    if lb_ftp_passive(vip[0] as u32) == 0 {
        return Err(Reason::FtpNoRoom);
    }
    write_back(packet, dialog)
}

#[inline(always)]
fn named_alike(a: Words, b: Words) -> bool {
    a[0] == b[0] && a[1] == b[1]
}

/// [`rewrite_passive`] of this CPU's dialog, as a global function: verified once. 0 when there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_ftp_passive(vip: u32) -> u64 {
    let Some(dialog) = dialog() else { return 0 };
    rewrite_passive(&dialog.reader, &mut dialog.draft, vip.to_ne_bytes()) as u64
}

/// Puts a draft of the same length in the segment's place.
#[inline(always)]
fn write_back<const V6: bool>(packet: &Packet<V6>, dialog: &mut Dialog) -> Result<(), Reason> {
    let header = (load8(packet.transport, 12) >> 4) as u32 * 4;
    // Nothing behind the line changed, so no more than the line need be written; the sums of the rest are the same.
    let len = (opaque((dialog.reader.end as u64).wrapping_sub(1)) & (SEGMENT as u64 - 1)) + 1;
    let (came, draft) = (&raw mut dialog.came, &raw mut dialog.draft.bytes);
    // SAFETY: both have SEGMENT bytes. A payload begins at an even distance from its TCP header, so its words are the
    // checksum's.
    let delta = unsafe { bpf_csum_diff(came.cast(), SEGMENT as u32, draft.cast(), SEGMENT as u32, 0) };
    if delta < 0 {
        return Err(Reason::Internal);
    }
    let checksum = load16(packet.transport, 16);
    store16(packet.transport, 16, checksum::update(checksum, delta as u32 as u64));
    let offset = packet.l4 as u32 + header;
    // SAFETY: `len` is no more than the draft has.
    let written = unsafe { bpf_xdp_store_bytes(packet.frame.ctx, offset, draft.cast(), len as u32) };
    if written != 0 { Err(Reason::Internal) } else { Ok(()) }
}

/// Expects a connection of the client's to a port of the VIP.
#[inline(always)]
fn expect<const V6: bool>(target: &Target, client: Words, port: u16, now: u16) -> Result<(), Reason> {
    let ports = (port.to_be() as u32) << 16;
    let place = flow::place::<V6>(client, target.vip::<V6>(), ports, TCP);
    let word = Value::flow(Kind::Flow, target.index, place.first, State::Listen, deadline(target, now));
    if let Some(hit) = connection::find_rarely(&place, now) {
        let own = matches!(hit.value.kind(), Kind::Flow) && hit.value.destination() == target.index;
        if own {
            if hit.replace(word) {
                load::stepped(hit.value, word);
            }
            return Ok(());
        }
        // Waits for another server still. The reply is sent again.
        if hit.value.state() == State::Listen as u8 {
            return Err(Reason::FtpPortBusy);
        }
        load::end(&hit);
    }
    let client = nat::address(client);
    match connection::insert::<V6>(&place, word, now, client, ports, target.is_counted()) {
        Inserted::Full => Err(Reason::TableFull),
        Inserted::Other(value) if value.destination() != target.index => Err(Reason::FtpPortBusy),
        _ => Ok(()),
    }
}

/// When an announcement is over: as long as a connection may take to be set up.
#[inline(always)]
pub fn deadline(target: &Target, now: u16) -> u16 {
    let timeout = flow::timeout_of(target.service(), State::SynReceived as u8);
    now.wrapping_add(timeout).wrapping_add(slack(timeout, false))
}

/// A command of the client's: an active data connection is expected. True when the command is to be rewritten first, by
/// the tail that does that (FULLNAT).
#[inline(always)]
fn of_client<const V6: bool>(packet: &Packet<V6>, target: &Target, now: u16) -> Result<bool, Reason> {
    let Some(dialog) = listen(packet, Speaker::Client) else { return Ok(false) };
    let reader = &dialog.reader;
    let client = packet.source();
    let family = if V6 { 6 } else { 4 };
    if reader.family != family || reader.address().halves() != client {
        return Err(Reason::FtpRefused);
    }
    let port = reader.port as u16;
    if port < FIRST_DATA_PORT {
        return Err(Reason::FtpRefused);
    }
    if let Forwarding::FullNat = target.forwarding() {
        // Its sum is taken over all of it.
        let whole = dialog.len == payload_len(packet);
        if !whole {
            count::event(Reason::FtpCut);
        }
        return Ok(whole);
    }
    // The reply entry of this channel says how the client is reached.
    let own = turned(nat::server_ports(packet.ports(), target));
    let own = flow::place::<V6>(target.address::<V6>(), client, own, TCP);
    let own = connection::find_rarely(&own, now).ok_or(Reason::NoClientHop)?;
    let ports = (port.to_be() as u32) << 16;
    let place = flow::place::<V6>(target.address::<V6>(), client, ports, TCP);
    let word =
        Value::nat_reply(target.index, own.value.hop(), place.first, State::Listen, deadline(target, now));
    match connection::find_rarely(&place, now) {
        // Announced again, or by another channel of the client's before: a port of the client's is one.
        Some(hit) => _ = hit.replace(word),
        None => {
            let server: Address = nat::address(target.address::<V6>());
            if let Inserted::Full = connection::insert::<V6>(&place, word, now, server, ports, false) {
                return Err(Reason::TableFull);
            }
        }
    }
    count::event(Reason::FtpAnnounced);
    Ok(false)
}
