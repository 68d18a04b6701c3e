//! Where a flow lives: keyed hashes of addresses and tuples. The secrets are made once per director (pinned,
//! so that a new program version can read the old table) and copied into the program's read-only data.
//!
//! IPv4: the identity is `tuple ^ key(destination address, protocol)`, a bijection of (client, client port,
//! destination port) for one destination address and protocol, so a match is exact and the agent can read
//! the tuple back. Between different destination addresses a false match has chance 2^-64.
//! IPv6: a keyed 64-bit NH sum (the construction of UMAC, RFC 4418 section 5.2.2); the tuple is kept in a cold array.
//! Buckets: two multiplications by secret odd numbers with a fold between them.

/// The secrets of one director. All are random; those named odd are made odd.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Secrets {
    /// Added to an IPv4 address before it is multiplied.
    pub address_offset: u64,
    /// Odd. First multiplication of an address.
    pub address: u64,
    /// Odd. Second multiplication of an address.
    pub spread: u64,
    /// Folded into the key of UDP flows, so that TCP and UDP of one VIP do not meet.
    pub udp: u64,
    /// Odd. Places an identity in its buckets: first multiplication.
    pub bucket: u64,
    /// Odd. Second multiplication.
    pub second_bucket: u64,
    /// Keys of the NH sum over an IPv6 tuple: destination (2), source (2), ports.
    pub nh: [u64; 5],
}

impl Secrets {
    /// Secrets from 11 random numbers.
    pub const fn from_random(random: [u64; 11]) -> Self {
        Self {
            address_offset: random[0],
            address: random[1] | 1,
            spread: random[2] | 1,
            udp: random[3],
            bucket: random[4] | 1,
            second_bucket: random[5] | 1,
            nh: [random[6], random[7], random[8], random[9], random[10]],
        }
    }

    /// The key of an IPv4 address (memory order). Its top bits index the address filter; xored with a tuple
    /// it gives an identity.
    #[inline(always)]
    pub const fn key_v4(&self, address: u32) -> u64 {
        let x = (address as u64).wrapping_add(self.address_offset).wrapping_mul(self.address);
        (x ^ (x >> 32)).wrapping_mul(self.spread)
    }

    /// The NH sum of an IPv6 destination address (two words, memory order): the start of an identity.
    #[inline(always)]
    pub const fn sum_v6(&self, address: [u64; 2]) -> u64 {
        nh(address[0], self.nh[0]).wrapping_add(nh(address[1], self.nh[1]))
    }

    /// The key of an IPv6 address for the address filter, from its NH sum.
    #[inline(always)]
    pub const fn key_of_sum_v6(&self, sum: u64) -> u64 {
        (sum ^ (sum >> 32)).wrapping_mul(self.spread)
    }

    /// Identity of an IPv4 flow. `tuple` is from [`tuple_v4`], `key` the destination address's.
    #[inline(always)]
    pub const fn identity_v4(&self, key: u64, tuple: u64, udp: bool) -> u64 {
        tuple ^ key ^ if udp { self.udp } else { 0 }
    }

    /// Identity of an IPv6 flow. `sum` is the destination address's, `source` two words in memory order,
    /// `ports` as in the packet.
    #[inline(always)]
    pub const fn identity_v6(&self, sum: u64, source: [u64; 2], ports: u32, udp: bool) -> u64 {
        // Protocol and ports in one word; any constant apart for UDP will do, NH sees the difference.
        let last = ports as u64 | if udp { 1 << 32 } else { 0 };
        sum.wrapping_add(nh(source[0], self.nh[2]))
            .wrapping_add(nh(source[1], self.nh[3]))
            .wrapping_add(nh(last, self.nh[4]))
            ^ self.udp
    }

    /// What tells the SCTP flows of an address from its TCP and UDP flows.
    #[inline(always)]
    const fn sctp_key(&self) -> u64 {
        self.udp.rotate_left(41)
    }

    /// [`Secrets::identity_v4`] of an SCTP flow.
    #[inline(always)]
    pub const fn identity_v4_sctp(&self, key: u64, tuple: u64) -> u64 {
        tuple ^ key ^ self.sctp_key()
    }

    /// [`Secrets::identity_v6`] of an SCTP flow.
    #[inline(always)]
    pub const fn identity_v6_sctp(&self, sum: u64, source: [u64; 2], ports: u32) -> u64 {
        self.identity_v6(sum, source, ports, false) ^ self.sctp_key()
    }

    /// The product whose top bits are the first bucket and whose bits 16 to 31 are the tag.
    ///
    /// Two multiplications with a fold between them: one alone is linear, and clients are rows of addresses and
    /// ports. With some secrets a million such flows fell
    /// into so few buckets of a table of two million slots that one in ten found no room.
    #[inline(always)]
    pub const fn first(&self, identity: u64) -> u64 {
        let x = identity.wrapping_mul(self.bucket);
        (x ^ (x >> 32)).wrapping_mul(self.second_bucket)
    }

    /// The product whose top bits are the second bucket.
    #[inline(always)]
    pub const fn second(&self, identity: u64) -> u64 {
        let first = self.first(identity);
        (first ^ (first >> 29)).wrapping_mul(self.bucket)
    }
}

impl Secrets {
    /// Folded into the identity of persistence templates, so that they do not meet flows.
    #[inline(always)]
    const fn template_key(&self) -> u64 {
        self.nh[0] ^ self.udp.rotate_left(17)
    }

    /// Identity of the template of an IPv4 client's prefix (memory order) in a group of services: a bijection.
    #[inline(always)]
    pub const fn template_v4(&self, prefix: u32, group: u32) -> u64 {
        tuple_v4(prefix, group) ^ self.template_key()
    }

    /// Identity of the template of an IPv6 client's prefix.
    #[inline(always)]
    pub const fn template_v6(&self, prefix: [u64; 2], group: u32) -> u64 {
        self.identity_v6(self.template_key(), prefix, group, true)
    }

    /// Identity of the template of a SIP call, by the hash of its Call-ID.
    #[inline(always)]
    pub const fn template_of_call(&self, call: u64, group: u32) -> u64 {
        let x = (call ^ self.template_key()).wrapping_add(group as u64).wrapping_mul(self.address);
        (x ^ (x >> 32)).wrapping_mul(self.spread)
    }

    /// The inverse of [`Secrets::template_v4`]: (prefix, group).
    pub const fn client_of_template_v4(&self, identity: u64) -> (u32, u32) {
        let tuple = identity ^ self.template_key();
        (tuple as u32, (tuple >> 32) as u32)
    }
}

/// An IPv4 address (memory order) cut to its first `bits`.
#[inline(always)]
pub const fn prefix_v4(address: u32, bits: u8) -> u32 {
    if bits == 0 || bits > 32 {
        return 0;
    }
    address & (u32::MAX << (32 - bits as u32)).to_be()
}

/// An IPv6 address (two words, memory order) cut to its first `bits`.
#[inline(always)]
pub const fn prefix_v6(address: [u64; 2], bits: u8) -> [u64; 2] {
    if bits > 64 {
        let low = if bits >= 128 { u64::MAX } else { u64::MAX << (128 - bits as u32) };
        [address[0], address[1] & low.to_be()]
    } else {
        let high = if bits == 0 { 0 } else { u64::MAX << (64 - bits as u32) };
        [address[0] & high.to_be(), 0]
    }
}

/// The tag of an identity, from [`Secrets::first`]: 16 bits that a value word carries so that it cannot be
/// taken for another flow's.
#[inline(always)]
pub const fn tag(first: u64) -> u16 {
    (first >> 16) as u16
}

#[inline(always)]
const fn nh(word: u64, key: u64) -> u64 {
    let x = word.wrapping_add(key);
    (x & 0xffff_ffff).wrapping_mul(x >> 32)
}

/// (source address, ports) of an IPv4 packet as one number. `ports` is the 32-bit word of the packet, source
/// port first, in memory order.
#[inline(always)]
pub const fn tuple_v4(source: u32, ports: u32) -> u64 {
    source as u64 | (ports as u64) << 32
}

/// The inverse of [`Secrets::identity_v4`] and [`tuple_v4`]: (source address, ports), memory order.
pub const fn tuple_of_identity_v4(secrets: &Secrets, identity: u64, key: u64, udp: bool) -> (u32, u32) {
    let tuple = secrets.identity_v4(key, identity, udp);
    (tuple as u32, (tuple >> 32) as u32)
}

/// The inverse of [`Secrets::identity_v4_sctp`] and [`tuple_v4`]: (source address, ports), memory order.
pub const fn tuple_of_sctp_identity_v4(secrets: &Secrets, identity: u64, key: u64) -> (u32, u32) {
    let tuple = secrets.identity_v4_sctp(key, identity);
    (tuple as u32, (tuple >> 32) as u32)
}

/// The ports word of a packet, memory order, from host-order ports.
#[inline(always)]
pub const fn ports_word(source: u16, destination: u16) -> u32 {
    source.to_be() as u32 | (destination.to_be() as u32) << 16
}

/// Host-order (source, destination) ports of a ports word (little-endian machines; BPF objects are bpfel).
#[inline(always)]
pub const fn ports_of_word(word: u32) -> (u16, u16) {
    (u16::from_be(word as u16), u16::from_be((word >> 16) as u16))
}

/// The hash that places a flow in a slot table (sh, mh): the same on every director, so it has no secret.
/// `source` is the client's address in memory order, `port` its port word or 0. SplitMix64's finalizer.
#[inline(always)]
pub const fn slot_hash(source: [u64; 2], port: u16) -> u32 {
    let mut x = source[0] ^ source[1].wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((port as u64) << 48);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 32) as u32
}

/// Maps a hash to `0..len` without a division (multiply-high).
#[inline(always)]
pub const fn slot_of_hash(hash: u32, len: u32) -> u32 {
    ((hash as u64 * len as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secrets() -> Secrets {
        let mut x = 0x1234_5678_9abc_def0u64;
        let mut random = [0; 11];
        for r in &mut random {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *r = x ^ (x >> 29);
        }
        Secrets::from_random(random)
    }

    proptest! {
        #[test]
        fn a_tuple_is_read_back_from_its_identity(source: u32, ports: u32, vip: u32, udp: bool) {
            let s = secrets();
            let key = s.key_v4(vip);
            let identity = s.identity_v4(key, tuple_v4(source, ports), udp);
            prop_assert_eq!(tuple_of_identity_v4(&s, identity, key, udp), (source, ports));
            let identity = s.identity_v4_sctp(key, tuple_v4(source, ports));
            prop_assert_eq!(tuple_of_sctp_identity_v4(&s, identity, key), (source, ports));
        }
    }

    proptest! {
        #[test]
        fn a_templates_client_is_read_back(prefix: u32, group: u32) {
            let s = secrets();
            prop_assert_eq!(s.client_of_template_v4(s.template_v4(prefix, group)), (prefix, group));
        }
    }

    #[test]
    fn prefixes_are_cut_at_every_bit() {
        use crate::address::Address;
        use core::net::{Ipv4Addr, Ipv6Addr};
        let v4 = Address::from_v4([203, 0, 113, 255]).words()[0];
        for bits in 0..=32u8 {
            let mask = u32::MAX.checked_shl(32 - bits as u32).unwrap_or(0);
            let expected = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(203, 0, 113, 255)) & mask);
            assert_eq!(prefix_v4(v4, bits).to_ne_bytes(), expected.octets(), "/{bits}");
        }
        let all = Ipv6Addr::from_bits(u128::MAX);
        for bits in 0..=128u8 {
            let mask = u128::MAX.checked_shl(128 - bits as u32).unwrap_or(0);
            let expected = Address::from_v6(Ipv6Addr::from_bits(mask).octets()).halves();
            assert_eq!(prefix_v6(Address::from_v6(all.octets()).halves(), bits), expected, "/{bits}");
        }
    }

    #[test]
    fn identities_of_many_flows_of_every_protocol_do_not_meet() {
        let s = secrets();
        let mut seen = std::collections::HashSet::new();
        for vip in 0..4u32 {
            let (key, sum) = (s.key_v4(vip), s.sum_v6([0xfd, vip as u64]));
            for client in 0..62_500u32 {
                for udp in [false, true] {
                    let ports = ports_word(client as u16, 80);
                    assert!(seen.insert(s.identity_v4(key, tuple_v4(client, ports), udp)));
                    assert!(seen.insert(s.identity_v6(sum, [0xfd00, client as u64], ports, udp)));
                }
                let ports = ports_word(client as u16, 80);
                assert!(seen.insert(s.identity_v4_sctp(key, tuple_v4(client, ports))));
                assert!(seen.insert(s.identity_v6_sctp(sum, [0xfd00, client as u64], ports)));
            }
        }
        assert_eq!(seen.len(), 1_500_000);
    }

    #[test]
    fn buckets_of_sequential_flows_are_even() {
        let s = secrets();
        for which in 0..2 {
            let mut counts = [0u32; 256];
            for i in 0..65_536u32 {
                let identity = s.identity_v4(
                    s.key_v4(7),
                    tuple_v4(0x0a00_0001 + (i >> 8), ports_word(i as u16, 80)),
                    false,
                );
                let product = if which == 0 { s.first(identity) } else { s.second(identity) };
                counts[(product >> 56) as usize] += 1;
            }
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*min > 128 && *max < 512, "bucket {which}: {min}..{max}, 256 expected");
        }
    }

    #[test]
    fn rows_of_clients_and_ports_find_room_whatever_the_secrets() {
        // Half as many flows as slots, placed as the data plane does: first bucket, else second.
        const BITS: u32 = 12;
        for seed in 0..64u64 {
            let mut x = seed;
            let secrets = Secrets::from_random(std::array::from_fn(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd)
            }));
            let key = secrets.key_v4(0x0a71_00cb);
            let mut used = vec![0u8; 1 << BITS];
            let mut refused = 0;
            for flow in 0..2u32 << BITS {
                let client = (0x0a40_0000 + (flow & 0x1ff)).to_be();
                let ports = ports_word(1024 + (flow >> 9) as u16, 80);
                let identity = secrets.identity_v4(key, tuple_v4(client, ports), false);
                let buckets = [secrets.first(identity), secrets.second(identity)];
                let room = buckets.iter().map(|b| (b >> (64 - BITS)) as usize).find(|b| used[*b] < 4);
                match room {
                    Some(bucket) => used[bucket] += 1,
                    None => refused += 1,
                }
            }
            assert!(refused * 100 < 2 << BITS, "secrets {seed}: {refused} of {} flows refused", 2 << BITS);
        }
    }

    /// Flows of random clients that all lie in bucket 0 of a table of 2^`BITS`, by these secrets.
    fn colliding(secrets: &Secrets, bits: u32, wanted: usize) -> Vec<(u32, u32)> {
        let key = secrets.key_v4(0x0a71_00cb);
        let mut found = Vec::new();
        for n in 0..u32::MAX {
            let (client, ports) = (n.wrapping_mul(0x9e37_79b1), ports_word((n >> 3) as u16 | 1, 80));
            let identity = secrets.identity_v4(key, tuple_v4(client, ports), false);
            if secrets.first(identity) >> (64 - bits) == 0 {
                found.push((client, ports));
                if found.len() == wanted {
                    break;
                }
            }
        }
        found
    }

    #[test]
    fn flows_chosen_to_collide_do_so_only_for_whoever_knows_the_secrets() {
        const BITS: u32 = 12;
        let random = |seed: u64| {
            let mut x = seed;
            Secrets::from_random(std::array::from_fn(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd)
            }))
        };
        let known = random(1);
        let attack = colliding(&known, BITS, 1024);
        let first = |secrets: &Secrets, (client, ports): (u32, u32)| {
            let identity = secrets.identity_v4(secrets.key_v4(0x0a71_00cb), tuple_v4(client, ports), false);
            (secrets.first(identity), secrets.second(identity))
        };
        assert!(
            attack.iter().all(|flow| first(&known, *flow).0 >> (64 - BITS) == 0),
            "with them all collide"
        );
        for seed in 2..66 {
            let secrets = random(seed);
            let (mut used, mut fullest, mut refused) = (vec![0u8; 1 << BITS], 0, 0);
            for flow in &attack {
                let (first, second) = first(&secrets, *flow);
                match [first, second].map(|b| (b >> (64 - BITS)) as usize).into_iter().find(|b| used[*b] < 4)
                {
                    Some(bucket) => used[bucket] += 1,
                    None => refused += 1,
                }
                fullest = fullest.max(used[(first >> (64 - BITS)) as usize]);
            }
            // A quarter of a flow for each bucket: nobody finds both of its own full.
            assert_eq!(refused, 0, "secrets {seed}: the fullest bucket has {fullest}");
            let touched = used.iter().filter(|n| **n > 0).count();
            assert!(touched > 700, "secrets {seed}: 1024 flows lie in {touched} buckets");
        }
    }

    #[test]
    fn the_slot_hash_spreads_neighbouring_clients() {
        let mut counts = [0u32; 10];
        for client in 0..100_000u32 {
            let hash = slot_hash([(0x0a00_0000 + client).to_be() as u64, 0], 0);
            counts[slot_of_hash(hash, 10) as usize] += 1;
        }
        for count in counts {
            assert!((9_500..10_500).contains(&count), "{counts:?}");
        }
    }

    #[test]
    fn ports_survive_their_word() {
        assert_eq!(ports_of_word(ports_word(40_000, 80)), (40_000, 80));
        assert_eq!(ports_word(0x1234, 0x5678).to_ne_bytes(), [0x12, 0x34, 0x56, 0x78]);
    }
}
