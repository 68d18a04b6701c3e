//! Maglev hash, weighted (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4): every server has its own permutation of the slots and takes, turn by turn, the
//! next slot of it that is still free. Taking one server away moves its own slots and few others.
//!
//! The table is a function of the servers' addresses, ports and weights alone: the hash has fixed keys, and
//! ties are broken by the server's key.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::{Candidate, SlotTable};
use crate::model::ServerKey;

pub fn build(servers: &[Candidate]) -> SlotTable {
    let mut eligible: Vec<usize> = (0..servers.len()).filter(|&index| servers[index].weight > 0).collect();
    if eligible.is_empty() {
        return SlotTable { slots: Vec::new(), exact: true };
    }
    eligible.sort_by_key(|&index| servers[index].key);
    let size = table_size(servers.len());

    let mut walks: Vec<Walk> = eligible.iter().map(|&index| Walk::new(&servers[index].key, size)).collect();
    let mut slots = vec![FREE; size as usize];
    // A server's turn number k comes at time k / weight, so that in any stretch of time it has had turns in
    // proportion to its weight, whatever the weights of the others are. All begin at time 0: even the least
    // weight gets a slot.
    let mut turns: BinaryHeap<Reverse<(u64, usize, u64)>> =
        (0..walks.len()).map(|server| Reverse((0, server, 0))).collect();
    for _ in 0..size {
        let Some(Reverse((_, server, turn))) = turns.pop() else { break };
        let slot = walks[server].next_free(&slots);
        slots[slot] = eligible[server] as u32;
        let weight = u64::from(servers[eligible[server]].weight);
        turns.push(Reverse((((turn + 1) << 32) / weight, server, turn + 1)));
    }
    let exact = shares_are_exact(servers, &slots);
    SlotTable { slots, exact }
}

/// A server's way through its permutation of the slots: `at`, `at + skip`, … modulo the table's size, which
/// is prime, so that every slot is met once.
struct Walk {
    at: u32,
    skip: u32,
    size: u32,
}

impl Walk {
    fn new(key: &ServerKey, size: u32) -> Walk {
        let bytes = key_bytes(key);
        let at = SipHasher13::new_with_keys(OFFSET_KEY.0, OFFSET_KEY.1).hash(&bytes) % u64::from(size);
        let skip = SipHasher13::new_with_keys(SKIP_KEY.0, SKIP_KEY.1).hash(&bytes) % u64::from(size - 1) + 1;
        Walk { at: at as u32, skip: skip as u32, size }
    }

    /// The next free slot; there must be one.
    fn next_free(&mut self, slots: &[u32]) -> usize {
        loop {
            let slot = self.at as usize;
            self.at = (self.at + self.skip) % self.size;
            if slots[slot] == FREE {
                return slot;
            }
        }
    }
}

/// Address (an IPv4 one as the IPv4-mapped IPv6 address, RFC 4291 section 2.5.5.2) and port, network order.
fn key_bytes(key: &ServerKey) -> [u8; 18] {
    let address = match key.address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&key.port.to_be_bytes());
    bytes
}

/// The least size that serves `servers` well, or the largest. 100 slots per server make shares accurate to
/// a hundredth. Beside its own slots, a server that goes away moves about 4 × servers² / size times as many
/// of the others' (measured): with a size of 8 × servers², half as many. Few sizes, far apart: two tables of
/// different size have nothing in common, so the size should rarely change when a server is added.
fn table_size(servers: usize) -> u32 {
    let wanted = servers.saturating_mul(100).max(servers.saturating_mul(servers).saturating_mul(8));
    SIZES.into_iter().find(|&size| size as usize >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
}

fn shares_are_exact(servers: &[Candidate], slots: &[u32]) -> bool {
    let mut shares = vec![0u64; servers.len()];
    for &slot in slots {
        shares[slot as usize] += 1;
    }
    let total: u64 = servers.iter().map(|server| u64::from(server.weight)).sum();
    let size = slots.len() as u64;
    servers.iter().zip(&shares).all(|(server, share)| share * total == u64::from(server.weight) * size)
}

/// Primes.
const SIZES: [u32; 5] = [251, 1021, 4093, 16381, 65521];
const FREE: u32 = u32::MAX;
/// Any two different pairs would do; they are those of IPVS (net/netfilter/ipvs/ip_vs_mh.c). Changing them
/// moves every client of every mh service.
const OFFSET_KEY: (u64, u64) = (2_654_435_761, 2_654_435_761);
const SKIP_KEY: (u64, u64) = (2_654_446_892, 2_654_446_892);

#[cfg(test)]
mod tests {
    use super::super::tests::{servers, share};
    use super::*;

    #[test]
    fn sizes_are_primes_that_grow_with_the_number_of_servers() {
        for size in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        for (count, size) in [
            (1, 251),
            (2, 251),
            (3, 1021),
            (10, 1021),
            (11, 4093),
            (22, 4093),
            (23, 16381),
            (45, 16381),
            (46, 65521),
            (16_380, 65521),
        ] {
            assert_eq!(table_size(count), size, "{count} servers");
        }
    }

    #[test]
    fn equal_weights_get_equal_shares() {
        for count in [2, 3, 7, 10, 100, 1000] {
            let table = build(&servers(&vec![5; count]));
            let shares: Vec<usize> = (0..count).map(|server| share(&table, server)).collect();
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} servers: {least} to {most} slots");
        }
    }

    #[test]
    fn weights_are_followed_to_a_slot_or_two() {
        let table = build(&servers(&[100, 50, 1, 0, 10]));
        let size = table.slots.len();
        for (server, weight) in [(0, 100), (1, 50), (2, 1), (3, 0), (4, 10)] {
            let fair = size as f64 * f64::from(weight) / 161.0;
            let got = share(&table, server) as f64;
            assert!((got - fair).abs() <= 2.0, "server {server}: {got}, fair {fair:.1}");
        }
    }

    #[test]
    fn a_server_that_goes_away_moves_little_else() {
        // Beyond 90 servers the largest table is too small for the rule: the price is stated, not hidden.
        for (count, limit) in [
            (2, 1.5),
            (3, 1.5),
            (5, 1.5),
            (10, 1.5),
            (20, 1.5),
            (40, 1.5),
            (80, 1.5),
            (150, 2.2),
            (1000, 8.0),
        ] {
            let all = servers(&vec![10; count]);
            let before = build(&all);
            for gone in [0, count / 2, count - 1] {
                let mut without = all.clone();
                without[gone].weight = 0;
                let after = build(&without);
                let moved = before.slots.iter().zip(&after.slots).filter(|(a, b)| a != b).count() as f64;
                let fair = before.slots.len() as f64 / count as f64;
                assert!(
                    moved <= limit * fair,
                    "{count} servers without {gone}: {moved} moved, fair {fair:.0}"
                );
            }
        }
    }

    #[test]
    fn changing_one_weight_moves_about_the_difference() {
        let all = servers(&[10; 10]);
        let mut heavier = all.clone();
        heavier[3].weight = 20;
        let (before, after) = (build(&all), build(&heavier));
        let moved = before.slots.iter().zip(&after.slots).filter(|(a, b)| a != b).count() as f64;
        let difference = before.slots.len() as f64 * (2.0 / 11.0 - 1.0 / 10.0);
        assert!(moved <= 2.0 * difference, "{moved} slots moved, {difference:.0} had to");
    }

    /// Two directors of different versions must agree: these values may only change knowingly.
    #[test]
    fn the_table_is_the_same_for_ever() {
        let mut servers = servers(&[1, 2, 3]);
        servers[2].key.address = "2001:db8::3".parse().unwrap();
        let table = build(&servers);
        let digest = table.slots.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &slot| {
            (hash ^ u64::from(slot)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        assert_eq!(table.slots.len(), 1021);
        assert_eq!(table.slots[..8], [1, 0, 2, 2, 1, 0, 2, 1]);
        assert_eq!(digest, 6_618_676_915_166_727_003);
    }
}
