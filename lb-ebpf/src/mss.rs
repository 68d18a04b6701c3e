//! Lowers the MSS option of a SYN (RFC 9293, section 3.7.1), so that what the other side sends fits.

use crate::{
    count,
    packet::{Packet, load8, load16, store16},
};
use lb_common::{checksum, verdict::Reason};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
/// Options of a TCP header: at most 40 bytes, so at most as many options.
const MAX_OPTIONS: usize = 20;

/// Writes `most` (host order) over a larger MSS.
#[inline(always)]
pub fn clamp<const V6: bool>(packet: &Packet<V6>, most: u16) {
    let end = packet.l4 + (load8(packet.transport, 12) >> 4) as usize * 4;
    let mut offset = packet.l4 + 20;
    for _ in 0..MAX_OPTIONS {
        if offset + 4 > end {
            return;
        }
        let Some(option) = packet.frame.at_dynamic(offset, 4) else { return };
        match load8(option, 0) {
            END => return,
            NOP => offset += 1,
            MSS => {
                let old = load16(option, 2);
                if load8(option, 1) == 4 && u16::from_be(old) > most {
                    let new = most.to_be();
                    store16(option, 2, new);
                    // An option may begin at an odd byte of the segment: then its bytes lie crosswise.
                    let (old, new) = if (offset - packet.l4) & 1 == 0 {
                        (old, new)
                    } else {
                        (old.swap_bytes(), new.swap_bytes())
                    };
                    let delta = checksum::sub(checksum::add(0, new as u32), old as u32);
                    store16(packet.transport, 16, checksum::update(load16(packet.transport, 16), delta));
                    count::event(Reason::MssClamped);
                }
                return;
            }
            _ => {
                let len = load8(option, 1) as usize;
                if len < 2 {
                    return;
                }
                offset += len;
            }
        }
    }
}
