//! Maglev hash, weighted (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4): every server has its own permutation of the slots. In the paper a server's turn ends
//! with the next slot of it that is still free; here a turn is one *step* along it, taken or not, and a server stops
//! when it has its share. So whoever comes to a slot first in its own permutation has it, with or without a third,
//! and one server more or less moves about half as many slots of others as in the paper.
//!
//! Services of more than 150 servers have another table, [`mh_large`].
//!
//! The table is a function of the servers' addresses, ports and weights alone: the hash has fixed keys, and
//! ties are broken by the server's key.

use std::collections::BTreeMap;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::{Candidate, SlotTable, mh_large, shares_are_exact, stand_in};
use crate::model::ServerKey;

pub fn build(servers: &[Candidate]) -> SlotTable {
    if servers.len() > EXACT_SERVERS {
        return mh_large::build(servers);
    }
    let mut population: Vec<usize> = (0..servers.len()).filter(|&index| servers[index].weight > 0).collect();
    if population.is_empty() {
        return SlotTable { slots: Vec::new(), exact: true };
    }
    population.sort_by_key(|&index| servers[index].key);
    let size = table_size(servers.len());
    let weights: Vec<u64> = population.iter().map(|&index| u64::from(servers[index].weight)).collect();
    let heaviest = weights.iter().copied().max().unwrap_or(1);
    let mut walks: Vec<Walk> = population
        .iter()
        .zip(quotas(&weights, size))
        .map(|(&index, quota)| Walk::new(&servers[index].key, index as u32, quota, size))
        .collect();
    let mut calendar = Calendar::new(&weights, heaviest);
    let mut slots = vec![FREE; size as usize];
    let mut free = Free::all(size);
    // Step by step while slots are easily found; what is left is cheaper to sort.
    while free.count * walks.len() * 8 > size as usize && calendar.turn() {
        let mut done = false;
        for &order in &calendar.turn {
            let walk = &mut walks[order as usize];
            if free.take(walk.at) {
                slots[walk.at as usize] = walk.server;
                walk.quota -= 1;
                done |= walk.quota == 0;
            }
            walk.at += walk.skip;
            walk.at -= if walk.at >= size { size } else { 0 };
        }
        if done {
            calendar.forget(|order| walks[order as usize].quota == 0);
        }
    }
    finish(&mut walks, &weights, &mut slots, heaviest, size);
    let exact = shares_are_exact(servers, &slots);
    stand_in(servers, &mut slots);
    SlotTable { slots, exact }
}

/// How many slots each gets: its share of them rounded, at least one. Who is first in the order is rounded up first.
fn quotas(weights: &[u64], size: u32) -> Vec<u32> {
    let total: u64 = weights.iter().sum();
    let size = u64::from(size);
    let mut quotas: Vec<u64> = weights.iter().map(|weight| (weight * size / total).max(1)).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(weights[i] * size % total), i));
    let mut given: u64 = quotas.iter().sum();
    for &i in order.iter().cycle() {
        if given >= size {
            break;
        }
        quotas[i] += 1;
        given += 1;
    }
    // Those lifted to one slot took it from somebody: from the richest, one each.
    while given > size {
        let (richest, _) = quotas.iter().enumerate().rev().max_by_key(|(_, quota)| **quota).expect("weights");
        quotas[richest] -= 1;
        given -= 1;
    }
    quotas.into_iter().map(|quota| quota as u32).collect()
}

/// A server's way through its permutation of the slots: `start`, `start + skip`, … modulo the table's size, which
/// is prime, so that every slot is met once.
struct Walk {
    server: u32,
    at: u32,
    skip: u32,
    /// Slots it may still take.
    quota: u32,
    start: u32,
}

impl Walk {
    fn new(key: &ServerKey, server: u32, quota: u32, size: u32) -> Walk {
        let bytes = key_bytes(key);
        let start = SipHasher13::new_with_keys(OFFSET_KEY.0, OFFSET_KEY.1).hash(&bytes) % u64::from(size);
        let skip = SipHasher13::new_with_keys(SKIP_KEY.0, SKIP_KEY.1).hash(&bytes) % u64::from(size - 1) + 1;
        let start = start as u32;
        Walk { server, at: start, skip: skip as u32, quota, start }
    }
}

/// When whose step comes.
struct Calendar {
    now: u64,
    paces: Vec<Pace>,
    /// Whose turn it is, in order.
    turn: Vec<u32>,
    /// The same as a bit each: so they come in order however many paces meet.
    bits: Vec<u64>,
}

/// Walks of one weight: their steps come at the same times, [`due`].
struct Pace {
    due: u64,
    /// What `due` has lost by rounding, in parts of the weight.
    rest: u64,
    weight: u64,
    /// What a step adds to `due`, and what is lost by it.
    step: (u64, u64),
    /// Those that have not got their share yet, in order.
    walks: Vec<u32>,
}

impl Calendar {
    fn new(weights: &[u64], heaviest: u64) -> Calendar {
        let mut by_weight: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (order, &weight) in (0..).zip(weights) {
            by_weight.entry(weight).or_default().push(order);
        }
        let pace = |(weight, walks)| {
            let step = (heaviest / weight, heaviest % weight);
            Pace { due: 0, rest: 0, weight, step, walks }
        };
        let paces = by_weight.into_iter().map(pace).collect();
        Calendar { now: 0, paces, turn: Vec::new(), bits: vec![0; weights.len().div_ceil(64)] }
    }

    /// Goes to the next moment at which steps are due. False when there is none.
    fn turn(&mut self) -> bool {
        self.turn.clear();
        let (mut parties, mut next) = (0, u64::MAX);
        for pace in &mut self.paces {
            if pace.due == self.now {
                self.turn.extend(&pace.walks);
                parties += 1;
                pace.advance();
            }
            next = next.min(pace.due);
        }
        if parties > 1 {
            self.sort();
        }
        self.now = next;
        !self.turn.is_empty()
    }

    fn sort(&mut self) {
        self.turn.drain(..).for_each(|order| self.bits[order as usize / 64] |= 1 << (order % 64));
        for (at, word) in (0..).zip(&mut self.bits) {
            while *word != 0 {
                self.turn.push(at * 64 + word.trailing_zeros());
                *word &= *word - 1;
            }
        }
    }

    fn forget(&mut self, done: impl Fn(u32) -> bool) {
        self.paces.iter_mut().for_each(|pace| pace.walks.retain(|order| !done(*order)));
        self.paces.retain(|pace| !pace.walks.is_empty());
        self.now = self.paces.iter().map(|pace| pace.due).min().unwrap_or(u64::MAX);
    }
}

impl Pace {
    /// To the next step, without a division.
    fn advance(&mut self) {
        self.due += self.step.0;
        self.rest += self.step.1;
        if self.rest >= self.weight {
            self.rest -= self.weight;
            self.due += 1;
        }
    }
}

/// The slots that nobody has, a bit each: they fit into a core's own cache where the table does not.
struct Free {
    bits: Vec<u64>,
    count: usize,
}

impl Free {
    fn all(size: u32) -> Free {
        Free { bits: vec![u64::MAX; size.div_ceil(64) as usize], count: size as usize }
    }

    /// Takes a slot if it is free.
    fn take(&mut self, slot: u32) -> bool {
        let (word, bit) = (&mut self.bits[slot as usize / 64], 1 << (slot % 64));
        let free = *word & bit != 0;
        *word &= !bit;
        self.count -= usize::from(free);
        free
    }
}

/// When a walk's step comes: steps are taken in proportion to weights.
fn due(steps: u64, weight: u64, heaviest: u64) -> u64 {
    (steps * heaviest) / weight
}

/// The same order of events for the last slots, by the steps at which each server would come to each of them.
fn finish(walks: &mut [Walk], weights: &[u64], slots: &mut [u32], heaviest: u64, size: u32) {
    let free: Vec<u32> = (0..size).filter(|&slot| slots[slot as usize] == FREE).collect();
    let prime = u64::from(size);
    let mut events: Vec<(u64, u32, u32)> = Vec::with_capacity(free.len() * walks.len());
    for ((order, walk), &weight) in (0..).zip(&*walks).zip(weights).filter(|((_, walk), _)| walk.quota > 0) {
        let back = inverse(walk.skip.into(), prime);
        for &slot in &free {
            let steps = (u64::from(slot) + prime - u64::from(walk.start)) % prime * back % prime;
            events.push((due(steps, weight, heaviest), order, slot));
        }
    }
    events.sort_unstable();
    for (_, order, slot) in events {
        let walk = &mut walks[order as usize];
        if walk.quota > 0 && slots[slot as usize] == FREE {
            slots[slot as usize] = walk.server;
            walk.quota -= 1;
        }
    }
}

/// Modulo a prime (Fermat).
fn inverse(value: u64, prime: u64) -> u64 {
    let (mut result, mut base, mut exponent) = (1, value % prime, prime - 2);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * base % prime;
        }
        base = base * base % prime;
        exponent >>= 1;
    }
    result
}

/// Address (an IPv4 one as the IPv4-mapped IPv6 address, RFC 4291 section 2.5.5.2) and port, network order.
pub(super) fn key_bytes(key: &ServerKey) -> [u8; 18] {
    let address = match key.address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&key.port.to_be_bytes());
    bytes
}

/// The least size at which one server more or less moves at most half as many of the others' slots as its own
/// (measured; sixty slots each for 20 servers, 440 for 150). Few sizes, far apart: two tables of
/// different size have nothing in common, so the size should rarely change when a server is added.
fn table_size(servers: usize) -> u32 {
    SIZES.into_iter().find(|&(most, _)| servers <= most).map_or(SIZES[4].1, |(_, size)| size)
}

/// (servers, size), sizes being primes.
const SIZES: [(usize, u32); 5] = [(2, 251), (20, 1249), (40, 4093), (72, 16381), (EXACT_SERVERS, 65521)];
/// For services of more, exact shares and few moves together would need millions of slots: [`mh_large`].
const EXACT_SERVERS: usize = 150;
const FREE: u32 = u32::MAX;
/// Any two different pairs would do; they are those of IPVS (net/netfilter/ipvs/ip_vs_mh.c). Changing them
/// moves every client of every mh service.
pub(super) const OFFSET_KEY: (u64, u64) = (2_654_435_761, 2_654_435_761);
pub(super) const SKIP_KEY: (u64, u64) = (2_654_446_892, 2_654_446_892);

#[cfg(test)]
mod tests {
    use super::super::tests::{servers, share};
    use super::*;

    #[test]
    fn sizes_are_primes_that_grow_with_the_number_of_servers() {
        for (_, size) in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
            assert!(size < 1 << 24, "a service names its slots by 24 bits");
        }
        for (count, size) in [(1, 251), (3, 1249), (20, 1249), (21, 4093), (150, 65521)] {
            assert_eq!(table_size(count), size, "{count} servers");
        }
    }

    #[test]
    fn ten_thousand_services_of_twenty_servers_take_less_than_fifty_megabytes() {
        assert!(table_size(20) as usize * size_of::<u32>() * 10_000 <= 50_000_000);
    }

    #[test]
    fn equal_weights_get_equal_shares() {
        for count in [2, 3, 7, 10, 100] {
            let table = build(&servers(&vec![5; count]));
            let shares: Vec<usize> = (0..count).map(|server| share(&table, server)).collect();
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} servers: {least} to {most} slots");
        }
    }

    #[test]
    fn weights_are_followed_to_a_slot() {
        let table = build(&servers(&[100, 50, 1, 0, 10]));
        let size = table.slots.len();
        for (server, weight) in [(0, 100), (1, 50), (2, 1), (3, 0), (4, 10)] {
            let fair = size as f64 * f64::from(weight) / 161.0;
            let got = share(&table, server) as f64;
            assert!((got - fair).abs() <= 1.0, "server {server}: {got}, fair {fair:.1}");
        }
        let table = build(&servers(&[65535, 1, 1]));
        assert_eq!((share(&table, 0), share(&table, 1), share(&table, 2)), (1247, 1, 1));
    }

    fn moved(before: &SlotTable, after: &SlotTable) -> f64 {
        before.slots.iter().zip(&after.slots).filter(|(a, b)| a != b).count() as f64
    }

    #[test]
    fn a_server_that_is_taken_from_the_service_moves_little_else() {
        for count in [2, 3, 5, 10, 20, 40, 72, 110] {
            let all = servers(&vec![10; count]);
            let before = build(&all);
            let fair = before.slots.len() as f64 / count as f64;
            // Some servers, since a table is a draw: on average, and nobody far off.
            let (mut sum, some) = (0.0, if count > 50 { 4 } else { count.min(12) });
            for gone in (0..some).map(|n| n * count / some) {
                let mut without = all.clone();
                // It still counts for the size of the table, which a server less may change.
                without[gone].weight = 0;
                let now = moved(&before, &build(&without));
                assert!(now <= 1.75 * fair, "{count} servers without {gone}: {now} moved, fair {fair:.0}");
                sum += now;
            }
            let mean = sum / some as f64;
            assert!(mean <= 1.5 * fair, "{count} servers: {mean:.0} moved on average, fair {fair:.0}");
        }
    }

    #[test]
    fn a_server_that_fails_moves_its_own_slots_only_and_gets_them_back() {
        let all = servers(&[10, 20, 30, 40]);
        let before = build(&all);
        let mut failed = all.clone();
        failed[2].available = false;
        let during = build(&failed);
        assert_eq!(moved(&before, &during) as usize, share(&before, 2));
        assert_eq!(share(&during, 2), 0);
        // Those in its place take over by their weights, more or less.
        for (server, weight) in [(0, 10), (1, 20), (3, 40)] {
            let fair = during.slots.len() as f64 * f64::from(weight) / 70.0;
            let got = share(&during, server) as f64;
            assert!((got - fair).abs() < fair * 0.2, "server {server}: {got}, fair {fair:.0}");
        }
        // A second failure does not move those who found another place after the first.
        failed[0].available = false;
        let both = build(&failed);
        assert_eq!(moved(&during, &both) as usize, share(&during, 0));
    }

    #[test]
    fn changing_one_weight_moves_about_the_difference() {
        let all = servers(&[10; 10]);
        let mut heavier = all.clone();
        heavier[3].weight = 20;
        let (before, after) = (build(&all), build(&heavier));
        let difference = before.slots.len() as f64 * (2.0 / 11.0 - 1.0 / 10.0);
        let moved = moved(&before, &after);
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
        assert_eq!(table.slots.len(), 1249);
        assert_eq!(table.slots[..8], [2, 1, 1, 2, 2, 0, 1, 2]);
        assert_eq!(digest, 1_077_776_632_366_470_221);
    }
}
