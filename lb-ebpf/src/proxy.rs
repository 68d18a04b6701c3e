//! The PROXY protocol, version 2 (HAProxy's `proxy-protocol.txt`, section 2.2): who the client is, in front of its
//! first bytes. The header rides on every client segment that begins at the first byte, beginning with the ACK that
//! completes the handshake, until the server has acknowledged it: whichever of them is lost, the next one carries it.

use crate::{
    count,
    extension::{Claimed, Shifts},
    packet::{Frame, Packet, load16, load32, opaque, store8, store16, store32, store64},
    tail,
};
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use lb_common::{
    checksum,
    extension::{Shift, duty},
    header::{IPV4, IPV6},
    scratch::FIRST_FRAGMENT,
    verdict::Reason,
};

/// What it begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
/// Address family and TCP: IPv4, IPv6.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// What a frame's headers, TCP's included, may have.
const HEADERS: u32 = 256;

/// Bytes of the header.
#[inline(always)]
pub const fn bytes<const V6: bool>() -> u32 {
    if V6 { 52 } else { 28 }
}

/// A new flow's record: the header comes before the byte behind its SYN.
#[inline(always)]
pub fn begin<const V6: bool>(packet: &Packet<V6>, claimed: &Claimed) {
    let first = packet.sequence();
    let shift = Shift { position: first.wrapping_add(1), before: 0, after: bytes::<V6>() as i16 };
    // SAFETY: the record is ours until it is published.
    unsafe {
        core::ptr::write_volatile(&raw mut (*claimed.record).client_first, first);
        crate::atomic::store(&raw mut (*claimed.record).client, shift.word());
        crate::atomic::store(&raw mut (*claimed.record).duties, duty::PROXY);
    }
}

/// Whether the header rides on a client's segment that begins here.
#[inline(always)]
pub fn rides(shifts: &Shifts, sequence: u32) -> bool {
    shifts.duties & duty::PROXY != 0
        && shifts.client.is_open()
        && sequence == shifts.client_first.wrapping_add(1)
}

/// What the server's MSS is lowered by, so that the client's segments fit with the header.
#[inline(always)]
pub fn mss_less<const V6: bool>(shifts: &Shifts) -> u32 {
    if shifts.duties & duty::PROXY != 0 { bytes::<V6>() } else { 0 }
}

/// Puts the header in front of the payload. The frame grows at its beginning.
#[inline(always)]
// The comparisons stand as the verifier is to see them.
#[allow(clippy::manual_range_contains)]
pub fn put<const V6: bool>(packet: &Packet<V6>) -> Result<Packet<V6>, Reason> {
    let more = bytes::<V6>();
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    // The lengths of a packet in fragments are those of all of them.
    let pieces = scratch.l4 & FIRST_FRAGMENT != 0;
    let headers = opaque((packet.l4 + packet.tcp_header()) as u64) as u32 & 0x7ff;
    if pieces || headers > HEADERS || headers < 54 {
        return Err(Reason::NoRoomForHeader);
    }
    // Linux 6.1 keeps a copy of the length on the stack that knows nothing of this comparison: a sum that is no less than
    // 54 and no more than the room by itself.
    let headers = (opaque((headers - 54) as u64) as u32 & 0xff) + 54;
    let room = &raw mut scratch.room;
    // SAFETY: a per-CPU value.
    let put = unsafe { (&raw mut (*room).put).cast::<u8>() };
    write(packet, put);
    // Lengths, and what they and the header do to the checksums.
    let mut delta = (more as u16).to_be() as u64;
    for word in 0..bytes::<V6>() as usize / 4 {
        delta = checksum::add(delta, load32(put, word * 4));
    }
    store16(packet.transport, 16, checksum::update(load16(packet.transport, 16), delta));
    if V6 {
        store16(packet.ip, 4, (u16::from_be(load16(packet.ip, 4)) + more as u16).to_be());
    } else {
        store16(packet.ip, 2, (u16::from_be(load16(packet.ip, 2)) + more as u16).to_be());
        let delta = (more as u16).to_be() as u64;
        store16(packet.ip, 10, checksum::update(load16(packet.ip, 10), delta));
    }
    let ctx = packet.frame.ctx;
    // SAFETY: as above; the length is at most that of the field.
    unsafe {
        let aside = (&raw mut (*room).headers).cast();
        if bpf_xdp_load_bytes(ctx, 0, aside, headers) != 0 {
            return Err(Reason::Internal);
        }
        if bpf_xdp_adjust_head(ctx, -(more as i32)) != 0 {
            return Err(Reason::NoRoomInFrame);
        }
        if bpf_xdp_store_bytes(ctx, 0, aside, headers) != 0
            || bpf_xdp_store_bytes(ctx, headers, put.cast(), more) != 0
        {
            return Err(Reason::Internal);
        }
    }
    count::event(Reason::HeaderSent);
    let frame = Frame::new(ctx);
    let ip = frame.at_dynamic(packet.l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
    let transport = frame.at_dynamic(packet.l4, 20).ok_or(Reason::Internal)?;
    Ok(Packet { frame, ip, transport, ..*packet })
}

/// Writes the header: both ends of the connection as the client has them.
#[inline(always)]
fn write<const V6: bool>(packet: &Packet<V6>, put: *mut u8) {
    for (at, byte) in SIGNATURE.iter().enumerate() {
        store8(put, at, *byte);
    }
    store8(put, 12, VERSION_AND_COMMAND);
    store8(put, 13, if V6 { TCP6 } else { TCP4 });
    store16(put, 14, (bytes::<V6>() as u16 - 16).to_be());
    let (client, vip) = (packet.source(), packet.destination());
    if V6 {
        store64(put, 16, client[0]);
        store64(put, 24, client[1]);
        store64(put, 32, vip[0]);
        store64(put, 40, vip[1]);
        store32(put, 48, packet.ports());
    } else {
        store32(put, 16, client[0] as u32);
        store32(put, 20, vip[0] as u32);
        store32(put, 24, packet.ports());
    }
}
