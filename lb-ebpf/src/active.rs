//! Active FTP under FULLNAT: the real server cannot reach the client, so the command that names the client's port is
//! made to name a local address and a leased port, where the server's connection is expected (`expected`). A tail
//! behind `ftp`, which has read the command. The command may become longer or shorter: what follows it is shifted
//! from then on by the extension record of the control channel (`shifted`), which it gets with its first command.
//!
//! A command that is sent again is rewritten alike, or the server would hear another stream: the record remembers the
//! last one's place and the port that it named.

use crate::{
    atomic,
    connection::{self, Hit, Place},
    count,
    extension::{Claimed, Held},
    flow,
    forward::{self, Target, fullnat::Leased, nat},
    ftp::{TCP, deadline, dialog, packet_at},
    lease, load,
    maps::POOL,
    packet::{Frame, Packet, Words, load16, opaque, store16, words},
    shifted, tail,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use lb_common::{
    checksum,
    connection::{FLAG_EXTENSION, Kind, Value},
    extension::{Announced, Shift, duty, is_after},
    ftp::{Dialog, SEGMENT, rewrite_active},
    lease::of_lease_index,
    scratch::FIRST_FRAGMENT,
    state::State,
    verdict::Reason,
};

/// What a frame's headers, TCP's included, may have.
const HEADERS: u32 = 256;

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    // The checksum of a packet in fragments is over all of them.
    if scratch.l4 & FIRST_FRAGMENT != 0 {
        return Err(Reason::FtpNoRoom);
    }
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    if scratch.family == 6 { asked::<true>(frame, l3, l4) } else { asked::<false>(frame, l3, l4) }
}

#[inline(always)]
fn asked<const V6: bool>(frame: Frame, l3: usize, l4: usize) -> Result<u32, Reason> {
    let packet = packet_at::<V6>(frame, l3, l4).ok_or(Reason::Internal)?;
    let now = connection::now();
    let place = flow::place::<V6>(packet.source(), packet.destination(), packet.ports(), TCP);
    let hit = connection::find_rarely(&place, now).ok_or(Reason::Internal)?;
    if hit.value.kind() as u8 != Kind::FullNat as u8 {
        return Err(Reason::Internal);
    }
    let control = Leased::of(hit.value.lease(), now).ok_or(Reason::NoLease)?;
    if control.owner() != place.identity {
        return Err(Reason::NoLease);
    }
    let target = Target::of(control.word.destination()).ok_or(Reason::Internal)?;
    // Asked again with its new length: but who is answered gets what he sent.
    forward::fits(&packet, &target)?;
    let sequence = packet.sequence();
    let extended = shifted::is_extended(hit.value);
    // Words that each branch makes anew: what one of them knows of its record is nothing for the other.
    let (lease, shift, duties) = if extended {
        let Some(held) = Held::of(place.identity, now) else {
            return Err(shifted::call_read(&frame, 0, 0));
        };
        let shifts = held.shifts(place.identity).ok_or(Reason::FtpEarly)?;
        let last = last_of(&held, shifts.duties);
        let again = shifts.duties & duty::FTP != 0 && !is_after(sequence, last.position);
        let lease = if again {
            last.lease
        } else {
            // Two places at which numbers change cannot be told apart: the first must be done with.
            if shifts.client.is_open() {
                return Err(Reason::FtpEarly);
            }
            if shifts.duties & duty::FTP != 0 {
                give_up(last.lease, &target, packet.source(), now);
            }
            announce(&packet, &target, &hit, &control, now)?
        };
        (opaque(lease as u64), opaque(shifts.client.word()), opaque(shifts.duties))
    } else {
        (opaque(announce(&packet, &target, &hit, &control, now)? as u64), opaque(0), opaque(0))
    };
    let (lease, shift) = (lease as u32, Shift::from_word(shift));
    let dialog = dialog().ok_or(Reason::Internal)?;
    let (pool, port) = of_lease_index(lease);
    let local = POOL.get_ptr(pool).ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    dialog.local = nat::address(words::<V6>(unsafe { &raw const (*local).address }));
    dialog.local_port = port as u32;
    let len = lb_ftp_rewrite(dialog.len) as u32;
    if len == 0 {
        return Err(Reason::FtpNoRoom);
    }
    let by = len.wrapping_sub(dialog.len) as i32;
    let new = shift.then(sequence, by as i16).ok_or(Reason::FtpNoRoom)?;
    let note = Announced { position: sequence, lease };
    if extended {
        let held = Held::of(place.identity, now).ok_or(Reason::FtpEarly)?;
        remember(&held, shift, new, duties, note)?;
    } else {
        extend(&place, &hit, &control, new, note, now)?;
    }
    replace(&packet, dialog, len, by)?;
    Err(shifted::call_read(&frame, 0, by))
}

/// The last command, if there was one.
#[inline(always)]
fn last_of(held: &Held, duties: u64) -> Announced {
    if duties & duty::FTP == 0 {
        return Announced::default();
    }
    // SAFETY: projection inside a map value.
    Announced::of(atomic::load(unsafe { &raw const (*held.record).note }))
}

/// Leases a port for the data connection, at the local address of the control channel: the server wants the address of
/// whom it talks to.
#[inline(always)]
fn announce<const V6: bool>(
    packet: &Packet<V6>,
    target: &Target,
    hit: &Hit,
    control: &Leased,
    now: u16,
) -> Result<u32, Reason> {
    let (Some(scratch), Some(dialog)) = (tail::scratch(), dialog()) else { return Err(Reason::Internal) };
    let ports = (dialog.reader.port as u16).to_be() as u32;
    scratch.client = nat::address(packet.source());
    scratch.ports = ports;
    scratch.before = 0;
    // SAFETY: a map value.
    unsafe {
        scratch.hop = core::ptr::read_volatile(&raw const (*control.record).hop);
        scratch.client_destination = atomic::load(&raw const (*control.record).client_destination);
        scratch.client_source = atomic::load(&raw const (*control.record).client_source);
        scratch.client_ifindex = core::ptr::read_volatile(&raw const (*control.record).client_ifindex);
    }
    if !control.is_unchanged() {
        return Err(Reason::NoLease);
    }
    let place = flow::place::<V6>(packet.source(), packet.destination(), ports, TCP);
    let word = Value::flow(Kind::FullNat, target.index, place.first, State::Listen, deadline(target, now));
    let (pool, _) = of_lease_index(hit.value.lease());
    let lease = lease::take_at::<V6>(target.service(), &place, word, now, pool).ok_or(Reason::NoLocalPort)?;
    count::event(Reason::FtpAnnounced);
    Ok(lease)
}

/// A lease that the server was told of before and has not come to: it will come to the new one.
#[inline(always)]
fn give_up(lease: u32, target: &Target, client: Words, now: u16) {
    let Some(old) = Leased::of(lease, now) else { return };
    // SAFETY: a map value.
    let of = words::<true>(unsafe { &raw const (*old.record).client });
    let own = of[0] == client[0] && of[1] == client[1] && old.word.destination() == target.index;
    if own && old.word.state() == State::Listen as u8 && old.hit().replace(Value::EMPTY) {
        load::lb_recount(old.word.0, 0);
    }
}

/// The record of a control channel gets its first command, and the channel its record.
#[inline(always)]
fn extend(
    place: &Place,
    hit: &Hit,
    control: &Leased,
    shift: Shift,
    note: Announced,
    now: u16,
) -> Result<(), Reason> {
    let until = hit.value.deadline();
    let claimed = Claimed::for_flow(place, State::Established, until, now).ok_or(Reason::NoExtension)?;
    // SAFETY: the record is ours until it is published.
    unsafe {
        atomic::store(&raw mut (*claimed.record).client, shift.word());
        atomic::store(&raw mut (*claimed.record).note, note.word());
        atomic::store(&raw mut (*claimed.record).duties, duty::FTP);
    }
    claimed.publish();
    // The client's entry comes last: with its flag all is there. Whoever loses, has the command sent again.
    let leased = control.hit().replace(control.word.with_flags(FLAG_EXTENSION));
    if leased && hit.replace(hit.value.with_flags(FLAG_EXTENSION)) { Ok(()) } else { Err(Reason::FtpEarly) }
}

/// A further command.
#[inline(always)]
fn remember(held: &Held, old: Shift, new: Shift, duties: u64, note: Announced) -> Result<(), Reason> {
    let record = held.record;
    // SAFETY: projections inside a map value.
    unsafe {
        if !atomic::exchange(&raw mut (*record).client, old.word(), new.word()) {
            return Err(Reason::FtpEarly);
        }
        atomic::store(&raw mut (*record).note, note.word());
        if duties & duty::FTP == 0 && !atomic::exchange(&raw mut (*record).duties, duties, duties | duty::FTP)
        {
            return Err(Reason::FtpEarly);
        }
    }
    Ok(())
}

/// Writes the dialog's segment of `len` bytes with the local address and port. The new length, or 0 when it is too
/// long.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_ftp_rewrite(len: u32) -> u64 {
    let Some(dialog) = dialog() else { return 0 };
    for word in 0..SEGMENT / 8 {
        // SAFETY: inside the field, which a word's address divides. Volatile, or it would become a call.
        unsafe { core::ptr::write_volatile((&raw mut dialog.draft.bytes).cast::<u64>().add(word), 0) };
    }
    dialog.draft.at = 0;
    for at in 0..SEGMENT as u32 {
        if lb_ftp_copy(at) != 0 {
            break;
        }
    }
    let written = dialog.draft.at;
    if len == 0 || written > SEGMENT as u32 { 0 } else { written as u64 }
}

/// Copies one byte of the segment, or writes what takes the place of several; 1 behind the last.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_ftp_copy(at: u32) -> u64 {
    let Some(dialog) = dialog() else { return 1 };
    if at >= dialog.len {
        return 1;
    }
    let Dialog { reader, came, draft, local, local_port, .. } = dialog;
    rewrite_active(reader, came, draft, at, *local, *local_port as u16);
    0
}

/// Puts the draft, `by` bytes longer than what came, into the packet's place. The frame grows or shrinks at its
/// beginning.
#[inline(always)]
// The comparisons stand as the verifier is to see them.
#[allow(clippy::manual_range_contains)]
fn replace<const V6: bool>(
    packet: &Packet<V6>,
    dialog: &mut Dialog,
    len: u32,
    by: i32,
) -> Result<(), Reason> {
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    let headers = opaque((packet.l4 + packet.tcp_header()) as u64) as u32 & 0x7ff;
    if headers > HEADERS || headers < 54 {
        return Err(Reason::FtpNoRoom);
    }
    // As for the PROXY header: bounds that Linux 6.1 keeps with a copy on the stack.
    let headers = (opaque((headers - 54) as u64) as u32 & 0xff) + 54;
    let len = (opaque((len as u64).wrapping_sub(1)) & (SEGMENT as u64 - 1)) + 1;
    let (came, draft) = (&raw mut dialog.came, &raw mut dialog.draft.bytes);
    // SAFETY: both have SEGMENT bytes, zeroes behind what is written. A payload begins at an even distance from its TCP
    // header, so its words are the checksum's.
    let delta = unsafe { bpf_csum_diff(came.cast(), SEGMENT as u32, draft.cast(), SEGMENT as u32, 0) };
    if delta < 0 {
        return Err(Reason::Internal);
    }
    let before = packet.ip_len() as u16;
    let after = before.wrapping_add(by as u16);
    // The length of the segment in the pseudo header, and that of the IP packet, grow alike.
    let longer = checksum::sub(checksum::add(0, after.to_be() as u32), before.to_be() as u32);
    let delta = checksum::add(longer, delta as u32);
    store16(packet.transport, 16, checksum::update(load16(packet.transport, 16), delta));
    if V6 {
        let length = u16::from_be(load16(packet.ip, 4)).wrapping_add(by as u16);
        store16(packet.ip, 4, length.to_be());
    } else {
        store16(packet.ip, 2, after.to_be());
        store16(packet.ip, 10, checksum::update(load16(packet.ip, 10), longer));
    }
    let ctx = packet.frame.ctx;
    // SAFETY: per-CPU values; no length is more than its field has.
    unsafe {
        let aside = (&raw mut scratch.room.headers).cast();
        if bpf_xdp_load_bytes(ctx, 0, aside, headers) != 0 {
            return Err(Reason::Internal);
        }
        if bpf_xdp_adjust_head(ctx, by.wrapping_neg()) != 0 {
            return Err(Reason::NoRoomInFrame);
        }
        if bpf_xdp_store_bytes(ctx, 0, aside, headers) != 0
            || bpf_xdp_store_bytes(ctx, headers, draft.cast(), len as u32) != 0
        {
            return Err(Reason::Internal);
        }
    }
    Ok(())
}
