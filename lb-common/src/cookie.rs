//! SYN cookies (RFC 4987, section 3.6): the initial sequence number of a SYN-ACK that says all that must be known of
//! the SYN, so that nothing is kept until the client has answered. Both directors of a pair may share the key: a cookie
//! that one has sent is good at the other.
//!
//! ```text
//! bits 30..32  the time slice's last bits
//!      28..30  which MSS
//!       0..28  SipHash-2-4 of addresses, ports, the client's sequence number, slice and MSS
//! ```
//!
//! What does not fit rides on the timestamp, which the client echoes (RFC 7323), in its lowest six bits, as Linux does it
//! (net/ipv4/syncookies.c, Linux 6.1). A client without timestamps gets neither window scale nor selective
//! acknowledgement.

/// Seconds of a time slice. A cookie is good in its own and in the next one; and in the one before, for a director
/// whose clock is behind.
pub const SLICE: u64 = 64;

/// The segment sizes that a cookie can name: those of nearly all clients (net/ipv4/syncookies.c,
/// net/ipv6/syncookies.c).
pub const MSS_V4: [u16; 4] = [536, 1300, 1440, 1460];
/// As [`MSS_V4`].
pub const MSS_V6: [u16; 4] = [1220, 1420, 1440, 8940];

/// What a client is told of the server's segments where the service does not say: what Ethernet carries.
pub const fn announced(v6: bool) -> u16 {
    if v6 { 1440 } else { 1460 }
}

/// The window scale that a client is told: windows of servers with another one are scaled for it.
pub const SCALE: u8 = 7;

/// What a cookie is bound to. Addresses and ports in memory order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// Source port first.
    pub ports: u32,
    /// The client's initial sequence number, host order.
    pub sequence: u32,
}

impl Tuple {
    #[inline(always)]
    fn hash(&self, key: [u64; 2], slice: u32, mss: u32) -> u32 {
        let words = [
            self.source[0],
            self.source[1],
            self.destination[0],
            self.destination[1],
            self.ports as u64 | (self.sequence as u64) << 32,
            slice as u64 | (mss as u64) << 32,
        ];
        siphash(key, words) as u32 & HASH
    }
}

const HASH: u32 = (1 << 28) - 1;

/// The cookie of a SYN in a slice. `mss` is from [`mss_index`].
#[inline(always)]
pub fn make(key: [u64; 2], tuple: &Tuple, slice: u32, mss: u32) -> u32 {
    let mss = mss & 3;
    (slice & 3) << 30 | mss << 28 | tuple.hash(key, slice, mss)
}

/// What a number is that a client acknowledges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checked {
    /// A cookie, and which MSS it names.
    Valid(u32),
    /// A cookie of too long ago.
    Expired,
    /// None of this key and tuple, or of very long ago.
    Invalid,
}

/// Looks at a cookie in the slice that is now.
#[inline(always)]
pub fn check(key: [u64; 2], tuple: &Tuple, now: u32, cookie: u32) -> Checked {
    // Two bits of the slice that it was made in: now, one before, two before, or one ahead.
    let age = now.wrapping_sub(cookie >> 30) & 3;
    let slice = if age == 3 { now.wrapping_add(1) } else { now.wrapping_sub(age) };
    let mss = cookie >> 28 & 3;
    if tuple.hash(key, slice, mss) != cookie & HASH {
        return Checked::Invalid;
    }
    if age == 2 { Checked::Expired } else { Checked::Valid(mss) }
}

/// Which entry of [`MSS_V4`] or [`MSS_V6`]: the largest that is not above what the client said, or the smallest.
#[inline(always)]
pub const fn mss_index(v6: bool, mss: u16) -> u32 {
    let table = if v6 { MSS_V6 } else { MSS_V4 };
    (mss >= table[1]) as u32 + (mss >= table[2]) as u32 + (mss >= table[3]) as u32
}

/// The MSS of an index.
#[inline(always)]
pub const fn mss_of(v6: bool, index: u32) -> u16 {
    // No table in memory: the data plane would need a relocation for it.
    match (v6, index & 3) {
        (false, 0) => MSS_V4[0],
        (false, 1) => MSS_V4[1],
        (false, 2) => MSS_V4[2],
        (false, _) => MSS_V4[3],
        (true, 0) => MSS_V6[0],
        (true, 1) => MSS_V6[1],
        (true, 2) => MSS_V6[2],
        (true, _) => MSS_V6[3],
    }
}

/// What the timestamp carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// The client's window scale; 15 is none.
    pub scale: u8,
    /// The client permits selective acknowledgements.
    pub sack: bool,
}

/// [`Carried::scale`] of a client without window scale.
pub const NO_SCALE: u8 = 15;
const CARRIED_BITS: u32 = 6;

impl Carried {
    /// A timestamp with it, not later than `now`.
    #[inline(always)]
    pub const fn stamp(self, now: u32) -> u32 {
        let bits = (self.scale as u32 & 15) | (self.sack as u32) << 4;
        let stamp = now & !((1 << CARRIED_BITS) - 1) | bits;
        if (stamp.wrapping_sub(now) as i32) > 0 { stamp.wrapping_sub(1 << CARRIED_BITS) } else { stamp }
    }

    /// What a timestamp carries that came back.
    #[inline(always)]
    pub const fn of(stamp: u32) -> Self {
        Self { scale: stamp as u8 & 15, sack: stamp & 1 << 4 != 0 }
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) of whole words, as of their bytes in little-endian order.
#[inline(always)]
pub fn siphash<const N: usize>(key: [u64; 2], words: [u64; N]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        absorb(&mut v, word);
    }
    absorb(&mut v, ((N as u64 * 8) & 0xff) << 56);
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::hash::Hasher as _;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn tuple(n: u64) -> Tuple {
        Tuple { source: [n, 7], destination: [9, n >> 8], ports: n as u32 | 1, sequence: 0x1111_2222 }
    }

    #[test]
    fn the_hash_is_the_one_of_its_authors() {
        // vectors_sip64 of the reference implementation, after 8 and 16 bytes 00 01 02 …
        assert_eq!(
            siphash(KEY, [0x0706_0504_0302_0100]).to_le_bytes(),
            [0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93]
        );
        assert_eq!(siphash(KEY, KEY).to_le_bytes(), [0xdb, 0x9b, 0xc2, 0x57, 0x7f, 0xcc, 0x2a, 0x3f]);
    }

    #[test]
    fn a_cookie_is_good_for_one_to_two_slices_and_one_ahead() {
        for now in [0u32, 1, 2, 3, 4, 77, u32::MAX - 1, u32::MAX] {
            for mss in 0..4 {
                let cookie = make(KEY, &tuple(5), now, mss);
                for (later, expected) in [
                    (0, Checked::Valid(mss)),
                    (1, Checked::Valid(mss)),
                    (u32::MAX, Checked::Valid(mss)),
                    (2, Checked::Expired),
                    (3, Checked::Invalid),
                    (4, Checked::Invalid),
                    (1000, Checked::Invalid),
                ] {
                    assert_eq!(
                        check(KEY, &tuple(5), now.wrapping_add(later), cookie),
                        expected,
                        "{now} + {later}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_cookie_is_bound_to_everything() {
        let cookie = make(KEY, &tuple(5), 9, 3);
        let mut others = Vec::new();
        for i in 0..2 {
            let mut one = tuple(5);
            one.source[i] ^= 1;
            others.push(one);
            let mut one = tuple(5);
            one.destination[i] ^= 1 << 40;
            others.push(one);
        }
        others.push(Tuple { ports: tuple(5).ports ^ 1 << 16, ..tuple(5) });
        others.push(Tuple { ports: tuple(5).ports ^ 2, ..tuple(5) });
        others.push(Tuple { sequence: tuple(5).sequence ^ 1, ..tuple(5) });
        for other in others {
            assert_eq!(check(KEY, &other, 9, cookie), Checked::Invalid, "{other:?}");
        }
        assert_eq!(check([KEY[0] ^ 1, KEY[1]], &tuple(5), 9, cookie), Checked::Invalid);
        assert_eq!(check([KEY[0], KEY[1] ^ 1], &tuple(5), 9, cookie), Checked::Invalid);
        assert_eq!(check(KEY, &tuple(5), 9, cookie ^ 1 << 28), Checked::Invalid, "another MSS");
    }

    #[test]
    fn guessing_takes_a_hundred_million_tries() {
        // A million numbers, of which one in 2^28 / 0.75 is good.
        let good = (0..1_000_000u32)
            .filter(|n| matches!(check(KEY, &tuple(6), 3, n.wrapping_mul(0x9e37_79b1)), Checked::Valid(_)))
            .count();
        assert!(good <= 1, "{good} of a million");
    }

    #[test]
    fn the_mss_is_the_largest_that_the_client_takes() {
        for (v6, table) in [(false, MSS_V4), (true, MSS_V6)] {
            for said in [1u16, 535, 536, 1219, 1220, 1299, 1300, 1420, 1439, 1440, 1459, 1460, 8940, 65_535] {
                let expected = table.into_iter().filter(|mss| *mss <= said).max().unwrap_or(table[0]);
                assert_eq!(mss_of(v6, mss_index(v6, said)), expected, "v6={v6}: {said}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_hash_is_that_of_the_standard_library(k0: u64, k1: u64, words: [u64; 6]) {
            #[allow(deprecated)]
            let mut hasher = std::hash::SipHasher::new_with_keys(k0, k1);
            for word in words {
                hasher.write(&word.to_le_bytes());
            }
            prop_assert_eq!(siphash([k0, k1], words), hasher.finish());
        }

        #[test]
        fn what_a_stamp_carries_comes_back_and_no_stamp_is_ahead(now: u32, scale in 0u8..16, sack: bool) {
            let carried = Carried { scale, sack };
            let stamp = carried.stamp(now);
            prop_assert_eq!(Carried::of(stamp), carried);
            let behind = now.wrapping_sub(stamp);
            prop_assert!(behind < 128, "{} behind", behind);
        }
    }
}
