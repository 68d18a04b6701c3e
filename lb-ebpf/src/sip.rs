//! SIP: the hash of a message's Call-ID (RFC 3261, section 20.8; `i` is its short form, section 7.3.3), which
//! tells the calls of one client apart and joins those of many.

use crate::{
    atomic,
    packet::{Frame, load8, opaque},
};

/// Bytes of a message that are looked through: some eight branches each, of which the verifier remembers 8192
/// (BPF_COMPLEXITY_LIMIT_JMP_SEQ).
const MOST: usize = 896;
const CALL_ID: u64 = u64::from_be_bytes(*b"call-id:");
const SHORT: u64 = u32::from_be_bytes(*b"\0\ni:") as u64;
const NEW_LINE: u64 = b'\n' as u64;
/// FNV-1a, 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x100_0000_01b3;

/// The hash of the Call-ID of the message that begins at `payload`; 0 when it has none. White space around the colon
/// is passed over. `draft` is memory of a map: in registers the verifier would keep count of each bit that every
/// byte before may have had, and look at each combination.
#[inline(always)]
pub fn call(frame: &Frame, payload: usize, draft: &mut [u64; 2]) -> u64 {
    // The last eight bytes in lower case; and the hash so far, 0 before the header was found.
    let [last, hash] = draft;
    atomic::store(last, 0);
    atomic::store(hash, 0);
    for i in 0..MOST {
        let Some(byte) = frame.at_dynamic(payload + i, 1) else { return 0 };
        let byte = opaque(load8(byte, 0) as u64);
        if byte == b' ' as u64 || byte == b'\t' as u64 {
            continue;
        }
        let so_far = atomic::load(hash);
        if so_far != 0 {
            if byte == b'\r' as u64 || byte == NEW_LINE {
                // Never 0, and nothing where the header is empty.
                return if so_far == OFFSET { 0 } else { so_far | 1 };
            }
            atomic::store(hash, (so_far ^ byte).wrapping_mul(PRIME));
            continue;
        }
        if byte == b'\r' as u64 {
            continue;
        }
        let before = atomic::load(last);
        // An empty line ends the headers.
        if byte == NEW_LINE && before & 0xff == NEW_LINE {
            return 0;
        }
        // Letters in lower case: what is changed beside them is in neither name.
        let now = before << 8 | byte | (byte & 0x40) >> 1;
        atomic::store(last, now);
        if (now == CALL_ID && before >> 56 == NEW_LINE) || now & 0xff_ffff == SHORT {
            atomic::store(hash, OFFSET);
        }
    }
    0
}
