//! CRC32c (RFC 9260, appendix A) without the bytes. The CRC is linear: the one of a packet of which a word changed
//! differs by the CRC, begun at zero, of that word's difference with zeros behind it. Zeros multiply by a power of x
//! modulo the polynomial, so a changed port costs two multiplications however long the packet is.
//!
//! Everything is in the reflected form that the wire has: the lowest bit is the highest power, and the checksum
//! field holds the CRC with its lowest byte first.

/// The polynomial 0x1EDC6F41, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x to the 0.
const ONE: u32 = 1 << 31;

/// The product modulo the polynomial. Without branches: a loop that the verifier walks once.
#[inline(always)]
const fn multiply(mut a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut power = 0;
    while power < 32 {
        product ^= a & 0u32.wrapping_sub(b >> (31 - power) & 1);
        a = times_x(a);
        power += 1;
    }
    product
}

#[inline(always)]
const fn times_x(a: u32) -> u32 {
    (a >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(a & 1))
}

/// x to the `8 * bytes * i`, by `i`.
const fn powers(bytes: u32) -> [u32; 256] {
    let mut step = ONE;
    let mut i = 0;
    while i < bytes * 8 {
        step = times_x(step);
        i += 1;
    }
    let mut all = [ONE; 256];
    let mut i = 1;
    while i < 256 {
        all[i] = multiply(all[i - 1], step);
        i += 1;
    }
    all
}

/// What up to 255 zero bytes multiply by.
static SHORT: [u32; 256] = powers(1);
/// What up to 255 times 256 zero bytes multiply by.
static LONG: [u32; 256] = powers(256);

/// What a difference of one word becomes in the CRC: `word` is the exclusive or of what was and what is, as four bytes
/// of the packet with the first one lowest; `len` how many bytes there are from its first to the packet's last,
/// below 65,536.
#[inline(always)]
pub fn effect(word: u32, len: u32) -> u32 {
    let short = multiply(word, SHORT[len as usize & 255]);
    multiply(short, LONG[len as usize >> 8 & 255])
}

/// The CRC of sixteen bytes, given as words with the first byte of each lowest.
#[inline(always)]
pub fn of_sixteen(words: [u32; 4]) -> u32 {
    let mut state = u32::MAX;
    let mut i = 0;
    while i < 4 {
        state = multiply(state ^ words[i], SHORT[4]);
        i += 1;
    }
    !state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crc32c::crc32c;
    use proptest::prelude::*;

    #[test]
    fn a_changed_word_gives_the_full_crc_at_every_length() {
        let mut packet: Vec<u8> = (0..65_535u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
        // Lengths from the end of one packet: its last `len` bytes are a packet too.
        let whole = packet.clone();
        for len in
            (4..2048).chain([2049, 4095, 4096, 4097, 9000, 9001, 32_767, 32_768, 65_279, 65_280, 65_535])
        {
            packet.truncate(0);
            packet.extend_from_slice(&whole[whole.len() - len..]);
            let before = crc32c(&packet);
            let old = u32::from_le_bytes(packet[..4].try_into().unwrap());
            let new = old ^ 0x1234_0000 ^ len as u32;
            packet[..4].copy_from_slice(&new.to_le_bytes());
            assert_eq!(before ^ effect(old ^ new, len as u32), crc32c(&packet), "{len} bytes");
        }
    }

    /// Every length that a packet can have, and every bit of a word: the effect of one more zero byte is one step of
    /// a CRC byte by byte.
    #[test]
    fn every_length_is_one_zero_byte_more_than_the_last() {
        let zero_byte = |mut state: u32| {
            for _ in 0..8 {
                state = (state >> 1) ^ if state & 1 != 0 { POLYNOMIAL } else { 0 };
            }
            state
        };
        let words = [1u32, 0x8000_0000, 0x0000_ffff, 0xffff_0000, 0xdead_beef];
        let mut states = words;
        for len in 0..65_536 {
            for (word, state) in words.iter().zip(&mut states) {
                assert_eq!(effect(*word, len), *state, "{word:#x} and {len} bytes");
                *state = zero_byte(*state);
            }
        }
        for bit in 0..32 {
            for len in [0, 1, 12, 255, 256, 1480, 65_535] {
                let sum = effect(0xffff_ffff ^ 1 << bit, len) ^ effect(1 << bit, len);
                assert_eq!(sum, effect(0xffff_ffff, len), "linear");
            }
        }
    }

    #[test]
    fn the_check_value_of_crc32c_stands() {
        // The crate that the others are compared with: "123456789" (RFC 3720, appendix B.4 has more).
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn any_word_anywhere_in_any_packet(mut bytes in proptest::collection::vec(any::<u8>(), 4..3000), new: [u8; 4], at: prop::sample::Index) {
            let at = at.index(bytes.len() - 3);
            let before = crc32c(&bytes);
            let old: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            bytes[at..at + 4].copy_from_slice(&new);
            let change = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
            prop_assert_eq!(before ^ effect(change, (bytes.len() - at) as u32), crc32c(&bytes));
        }

        #[test]
        fn sixteen_bytes_have_the_crc_of_their_bytes(words: [u32; 4]) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            prop_assert_eq!(of_sixteen(words), crc32c(&bytes));
        }
    }
}
