//! Internet checksum arithmetic (RFC 1071), incremental updates (RFC 1624). Sums are taken over 16-bit words
//! as they lie in memory: one's complement addition does not care for byte order (RFC 1071, section 2(B)),
//! so nothing is swapped. A running sum is a `u64` that is folded once at the end.

/// Adds a 32-bit piece of a packet or record to a running sum.
#[inline(always)]
pub const fn add(sum: u64, piece: u32) -> u64 {
    sum + piece as u64
}

/// Takes a 32-bit piece away: adding its one's complement (RFC 1624, equation 3).
#[inline(always)]
pub const fn sub(sum: u64, piece: u32) -> u64 {
    sum + (!piece) as u64
}

/// Folds a running sum to 16 bits. Holds for sums below 2^48, that is for more than 65,000 pieces.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum after the data under it changed by `delta` (built with [`add`] of what came and [`sub`] of
/// what went): `~(~old + delta)` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(old: u16, delta: u64) -> u16 {
    !fold(delta + (!old) as u64)
}

/// As [`update`] for UDP: 0 means "no checksum" over IPv4 and stays; a result of 0 is sent as 0xffff
/// (RFC 768).
#[inline(always)]
pub const fn update_udp(old: u16, delta: u64) -> u16 {
    if old == 0 {
        return 0;
    }
    let new = update(old, delta);
    if new == 0 { 0xffff } else { new }
}

/// The IPv4 header checksum after the TTL went down by one: the byte is the high one of its word, so 0x0100
/// in network order is added (RFC 1141).
#[inline(always)]
pub const fn after_ttl_decrement(old: u16) -> u16 {
    let sum = old as u32 + u16::from_be(0x0100) as u32;
    (sum + (sum >= 0xffff) as u32) as u16
}

/// The sum of an address, for a [`crate::destination::Destination`]'s precomputed difference.
pub const fn sum_words(words: [u32; 4]) -> u64 {
    words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64
}

/// `to - from` as a piece that can be given to [`add`]; its complement goes to [`sub`].
pub const fn difference(from: [u32; 4], to: [u32; 4]) -> u32 {
    let mut sum = sum_words(to);
    let mut i = 0;
    while i < 4 {
        sum = sub(sum, from[i]);
        i += 1;
    }
    fold(sum) as u32
}

/// The full checksum over bytes, for the host (tests, frames built by the agent).
pub fn of_bytes(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    let mut chunks = bytes.chunks_exact(2);
    for pair in &mut chunks {
        sum += u16::from_ne_bytes([pair[0], pair[1]]) as u64;
    }
    if let [last] = chunks.remainder() {
        sum += u16::from_ne_bytes([*last, 0]) as u64;
    }
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(!of_bytes(&bytes), u16::from_be(0xddf2));
    }

    proptest! {
        #[test]
        fn an_update_equals_a_full_sum(mut bytes in proptest::collection::vec(any::<u8>(), 40), new in any::<[u8; 4]>(), at in 0usize..9) {
            bytes[38] = 0; bytes[39] = 0;
            let old_checksum = of_bytes(&bytes);
            let at = at * 4;
            let old = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[at..at + 4].copy_from_slice(&new);
            let delta = sub(add(0, u32::from_ne_bytes(new)), old);
            let updated = update(old_checksum, delta);
            let full = of_bytes(&bytes);
            // 0x0000 and 0xffff are the same number in one's complement.
            prop_assert!(updated == full || (updated ^ full) == 0xffff);
        }

        #[test]
        fn a_ttl_step_equals_a_full_sum(ttl in 1u8..=255, rest in any::<[u8; 18]>()) {
            let mut header = [0u8; 20];
            header[..8].copy_from_slice(&rest[..8]);
            header[8] = ttl;
            header[12..20].copy_from_slice(&rest[8..16]);
            let old = of_bytes(&header);
            header[8] -= 1;
            let full = of_bytes(&header);
            let stepped = after_ttl_decrement(old);
            prop_assert!(stepped == full || (stepped ^ full) == 0xffff);
        }

        #[test]
        fn a_difference_moves_a_sum_from_one_address_to_the_other(from in any::<[u32; 4]>(), to in any::<[u32; 4]>(), old in any::<u16>()) {
            let mut delta = 0;
            for w in to { delta = add(delta, w); }
            for w in from { delta = sub(delta, w); }
            let a = update(old, delta);
            let b = update(old, add(0, difference(from, to)));
            prop_assert!(a == b || (a ^ b) == 0xffff);
            // The way back undoes it.
            let back = update(b, (!difference(from, to) as u16) as u64);
            prop_assert!(back == old || (back ^ old) == 0xffff);
        }
    }
}
