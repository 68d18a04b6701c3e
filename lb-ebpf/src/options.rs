//! TCP options of a packet whose numbers are shifted: edges of selective acknowledgements (RFC 2018), timestamps
//! (RFC 7323), and the MSS of a SYN whose receiver must leave room. They are worked on in the scratch record, where
//! offsets need no packet pointers, and written back whole.

use crate::{
    count,
    packet::{Packet, load8, load16, load32, opaque, store16, store32},
    tail,
};
use aya_ebpf::helpers::generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use lb_common::{checksum, extension::Shift, scratch::Room, verdict::Reason};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;
/// How every segment of an established connection begins its options when nothing is lost: padding and timestamps
/// (RFC 7323, appendix A).
const USUAL: u32 = u32::from_ne_bytes([NOP, NOP, TIMESTAMPS, 10]);
/// Bytes that options can have.
const MOST: usize = 40;

/// What is changed in a packet's options.
#[derive(Clone, Copy)]
pub struct Change {
    /// How edges are shifted back, with its base.
    pub edges: Shift,
    pub base: u32,
    /// Added to the timestamp.
    pub clock: u32,
    /// Added to the timestamp's echo.
    pub echo: u32,
    /// Taken off the MSS.
    pub mss_less: u32,
}

/// Changes the options of a packet, and its checksum with them.
#[inline(always)]
pub fn change<const V6: bool>(packet: &Packet<V6>, change: Change) -> Result<(), Reason> {
    let len = packet.tcp_header() - 20;
    if len == 0 {
        return Ok(());
    }
    let at = packet.l4 + 20;
    let first = packet.frame.at_dynamic(at, 4).ok_or(Reason::BadTransport)?;
    if load32(first, 0) == USUAL && len == 12 && change.clock | change.echo == 0 {
        return Ok(());
    }
    let room = &raw mut tail::scratch().ok_or(Reason::Internal)?.room;
    // SAFETY: a per-CPU value; the lengths are bounded by the record's fields.
    unsafe {
        (*room).came = [0; MOST];
        let len = opaque(len as u64) as u32 & 0x3f;
        if len < 4 || len > MOST as u32 {
            return Err(Reason::BadTransport);
        }
        // Linux 6.1 keeps a copy on the stack that knows nothing of this comparison.
        let len = (opaque((len - 4) as u64) as u32 & 0x3c) + 4;
        if bpf_xdp_load_bytes(packet.frame.ctx, at as u32, (&raw mut (*room).came).cast(), len) != 0 {
            return Err(Reason::BadTransport);
        }
        for word in 0..MOST / 4 {
            let word = word * 4;
            store32((&raw mut (*room).leaves).cast(), word, load32((&raw const (*room).came).cast(), word));
        }
        (*room).at = 0;
        (*room).edges = 0;
        (*room).end = len;
        (*room).base = change.base;
        (*room).shift = change.edges.word();
        (*room).clock = change.clock;
        (*room).echo = change.echo;
        (*room).mss_less = change.mss_less;
        if lb_change_options(0) == 0 {
            return Ok(());
        }
        if bpf_xdp_store_bytes(packet.frame.ctx, at as u32, (&raw mut (*room).leaves).cast(), len) != 0 {
            return Err(Reason::Internal);
        }
        let mut delta = 0;
        for word in 0..MOST / 4 {
            let new = load32((&raw const (*room).leaves).cast(), word * 4);
            let old = load32((&raw const (*room).came).cast(), word * 4);
            delta = checksum::sub(checksum::add(delta, new), old);
        }
        let transport = packet.transport;
        store16(transport, 16, checksum::update(load16(transport, 16), delta));
    }
    Ok(())
}

/// Walks the options in the scratch record. 1 when any was changed. A global function: its loop is verified once, and
/// carries nothing but what lies in the record.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_change_options(_nothing: u32) -> u64 {
    let Some(scratch) = tail::scratch() else { return 0 };
    let room: *mut Room = &raw mut scratch.room;
    let options = room.cast::<u8>().wrapping_add(core::mem::offset_of!(Room, leaves));
    // SAFETY: fields of a per-CPU value; an offset is below 64, and what is read there ends before 72.
    unsafe {
        let mut changed = 0;
        for _ in 0..MOST {
            let at = core::ptr::read_volatile(&raw const (*room).at) & 0x3f;
            let end = core::ptr::read_volatile(&raw const (*room).end);
            let edges = core::ptr::read_volatile(&raw const (*room).edges);
            if at >= end {
                break;
            }
            let option = options.wrapping_add(at as usize);
            if edges != 0 {
                if at + 4 > end {
                    break;
                }
                let shift = Shift::from_word(core::ptr::read_volatile(&raw const (*room).shift));
                let base = core::ptr::read_volatile(&raw const (*room).base);
                store32(option, 0, shift.back(base, u32::from_be(load32(option, 0))).to_be());
                core::ptr::write_volatile(&raw mut (*room).edges, edges - 1);
                core::ptr::write_volatile(&raw mut (*room).at, at + 4);
                changed = 1;
                continue;
            }
            let kind = load8(option, 0);
            if kind == END {
                break;
            }
            if kind == NOP {
                core::ptr::write_volatile(&raw mut (*room).at, at + 1);
                continue;
            }
            let len = load8(option, 1) as u32;
            if len < 2 || at + len > end {
                break;
            }
            if kind == SACK {
                core::ptr::write_volatile(&raw mut (*room).edges, (len - 2) / 4);
                core::ptr::write_volatile(&raw mut (*room).at, at + 2);
                continue;
            }
            if kind == TIMESTAMPS && len == 10 {
                let clock = core::ptr::read_volatile(&raw const (*room).clock);
                let echo = core::ptr::read_volatile(&raw const (*room).echo);
                if clock | echo != 0 {
                    store32(option, 2, u32::from_be(load32(option, 2)).wrapping_add(clock).to_be());
                    store32(option, 6, u32::from_be(load32(option, 6)).wrapping_add(echo).to_be());
                    changed = 1;
                }
            } else if kind == MSS && len == 4 {
                let less = core::ptr::read_volatile(&raw const (*room).mss_less) as u16;
                let mss = u16::from_be(load16(option, 2));
                if less != 0 && mss > less {
                    store16(option, 2, (mss - less).to_be());
                    count::event(Reason::MssClamped);
                    changed = 1;
                }
            }
            core::ptr::write_volatile(&raw mut (*room).at, at + len);
        }
        changed
    }
}
