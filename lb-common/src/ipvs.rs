//! The hashes of IPVS (Linux 6.1, net/netfilter/ipvs/ip_vs_{sh,dh,mh}.c), for services that must place a client
//! where a director with LVS would. They have no secret and clients can aim at one server; ours is
//! [`crate::hash::slot_hash`].
//!
//! A client's address is folded to 32 bits in host order and the port (0 unless asked for) is added. `offset`
//! is 0 at first; who falls back tries on with other offsets ([`sh_fallback_offset`], [`mh_fallback_offset`]).

/// Buckets of sh and dh: CONFIG_IP_VS_SH_TAB_BITS and CONFIG_IP_VS_DH_TAB_BITS are 8.
pub const SH_SLOTS: u32 = 1 << SH_BITS;
const SH_BITS: u32 = 8;
/// Slots of mh: CONFIG_IP_VS_MH_TAB_INDEX is 12.
pub const MH_SLOTS: u32 = 4093;
/// `hash1` and `hash2` of `ip_vs_mh_state`: the first looks up and gives a server's offset, the second its skip.
pub const MH_KEYS: [u64; 2] = [2_654_435_761, 2_654_446_892];

/// What is hashed of an address: two words in memory order as records hold them (an IPv4 address is the low
/// half of the first). The four 32-bit words of an IPv6 address are xored. Host order.
#[inline(always)]
pub const fn fold(address: [u64; 2]) -> u32 {
    let x = address[0] ^ address[1];
    u32::from_be(x as u32 ^ (x >> 32) as u32)
}

/// The bucket of sh. `port` in host order; 0 without `port`.
#[inline(always)]
pub const fn sh(fold: u32, port: u16, offset: u32) -> u32 {
    offset.wrapping_add(hash_32(fold.wrapping_add(port as u32))) & (SH_SLOTS - 1)
}

/// The bucket of dh, of the destination's address.
#[inline(always)]
pub const fn dh(fold: u32) -> u32 {
    sh(fold, 0, 0)
}

/// What mh hashes to, before it is taken modulo the table's size. `key` is one of [`MH_KEYS`].
#[inline(always)]
pub const fn mh(fold: u32, port: u16, offset: u32, key: u64) -> u32 {
    siphash13(offset.wrapping_add(fold).wrapping_add(port as u32), key)
}

/// The slot of mh.
#[inline(always)]
pub const fn mh_slot(fold: u32, port: u16, offset: u32) -> u32 {
    mh(fold, port, offset, MH_KEYS[0]) % MH_SLOTS
}

/// The offset of try `n` (from 0) of a sh whose first bucket, `first`, has no server to offer.
#[inline(always)]
pub const fn sh_fallback_offset(first: u32, n: u32) -> u32 {
    n.wrapping_add(first) % SH_SLOTS
}

/// As [`sh_fallback_offset`], for mh.
#[inline(always)]
pub const fn mh_fallback_offset(first: u32, n: u32) -> u32 {
    n.wrapping_add(first) % MH_SLOTS
}

/// `hash_32` of include/linux/hash.h, for 8 bits.
#[inline(always)]
const fn hash_32(value: u32) -> u32 {
    value.wrapping_mul(0x61c8_8647) >> (32 - SH_BITS)
}

/// `hsiphash` of four bytes with both key words equal: SipHash-1-3 cut to 32 bits on 64-bit hosts (lib/siphash.c).
#[inline(always)]
const fn siphash13(value: u32, key: u64) -> u32 {
    let v = [
        key ^ 0x736f_6d65_7073_6575,
        key ^ 0x646f_7261_6e64_6f6d,
        key ^ 0x6c79_6765_6e65_7261,
        key ^ 0x7465_6462_7974_6573,
    ];
    let block = value as u64 | 4 << 56;
    let v = round([v[0], v[1], v[2], v[3] ^ block]);
    let v = round([v[0] ^ block, v[1], v[2] ^ 0xff, v[3]]);
    let v = round(round(v));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

#[inline(always)]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn of(text: &str) -> u32 {
        let [a, b, c, d] = Address::from(text.parse::<std::net::IpAddr>().unwrap()).words().map(u64::from);
        fold([a | b << 32, c | d << 32])
    }

    #[test]
    fn sh_puts_clients_into_the_buckets_of_ipvs() {
        for (client, port, bucket) in [
            ("192.0.2.1", 0, 50),
            ("192.0.2.2", 0, 148),
            ("198.51.100.7", 0, 171),
            ("198.51.100.7", 40_000, 79),
            ("2001:db8::1", 0, 63),
        ] {
            assert_eq!(sh(of(client), port, 0), bucket, "{client} port {port}");
        }
    }

    #[test]
    fn mh_puts_clients_into_the_slots_of_ipvs() {
        for (client, slot) in [("192.0.2.1", 2891), ("192.0.2.2", 746), ("198.51.100.7", 924)] {
            assert_eq!(mh_slot(of(client), 0, 0), slot, "{client}");
        }
        for (server, offset, skip) in
            [("10.0.0.1", 3167, 700), ("10.0.0.2", 1231, 3544), ("10.0.0.3", 1631, 3453)]
        {
            assert_eq!(mh(of(server), 80, 0, MH_KEYS[0]) % MH_SLOTS, offset, "{server}");
            assert_eq!(mh(of(server), 80, 0, MH_KEYS[1]) % (MH_SLOTS - 1) + 1, skip, "{server}");
        }
    }

    #[test]
    fn falling_back_begins_beside_the_first_bucket_and_meets_all() {
        let fold = of("192.0.2.1");
        let first = sh(fold, 0, 0);
        let mut met: Vec<u32> = (0..SH_SLOTS).map(|n| sh(fold, 0, sh_fallback_offset(first, n))).collect();
        assert_eq!(met[0], (2 * first) % SH_SLOTS, "the first bucket is its own first offset");
        met.sort_unstable();
        assert_eq!(met, (0..SH_SLOTS).collect::<Vec<_>>());
    }
}
