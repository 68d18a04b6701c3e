//! Schedulers that are a sequence of slots: which real server each slot of a service's slot table names.
//! Pure. The data plane walks the table of rr and wrr with a cursor, and indexes that of sh and mh with a
//! hash of the flow; it knows nothing of weights. One file per scheduler.

mod mh;
mod rr;
mod sh;
mod wrr;

use crate::model::{Scheduler, ServerKey, VirtualService};

/// A real server that may be given slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Distinct within one call of [`build`].
    pub key: ServerKey,
    /// 0 gets no slot.
    pub weight: u16,
}

/// The candidates of a service as its manifest has them, in the same order.
pub fn candidates(service: &VirtualService) -> Vec<Candidate> {
    let candidate = |server| Candidate { key: service.key_of(server), weight: server.weight };
    service.real_servers.iter().map(candidate).collect()
}

/// What the data plane schedules from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotTable {
    /// Per slot an index into the candidates. Empty when nobody has a weight: the service refuses.
    pub slots: Vec<u32>,
    /// Whether each server's share of the slots is exactly its share of the weights.
    pub exact: bool,
}

/// Builds the slot table of a service.
///
/// For rr and wrr the order of `servers` is the order in which they were added, and decides the sequence.
/// For sh and mh it does not matter: the table names the same servers in the same slots on every director
/// that has the same servers and weights. For mh, servers of weight 0 still count for the size of the table,
/// so that one that fails and comes back does not change it.
pub fn build(scheduler: Scheduler, servers: &[Candidate]) -> SlotTable {
    match scheduler {
        Scheduler::Rr => rr::build(servers),
        Scheduler::Wrr => wrr::build(servers),
        Scheduler::Sh => sh::build(servers),
        Scheduler::Mh => mh::build(servers),
    }
}

/// Servers that get slots: (index into the candidates, turns), turns being the weights divided by what they
/// have in common and, where they would still need more than [`slot_limit`] slots, scaled down to it, each
/// to at least 1. The flag says that nothing had to be scaled.
fn turns(servers: &[Candidate]) -> (Vec<(usize, u32)>, bool) {
    let mut turns: Vec<(usize, u32)> = servers
        .iter()
        .enumerate()
        .filter(|(_, server)| server.weight > 0)
        .map(|(index, server)| (index, u32::from(server.weight)))
        .collect();
    reduce(&mut turns);
    let total: u64 = turns.iter().map(|&(_, weight)| u64::from(weight)).sum();
    let limit = slot_limit(turns.len());
    if total <= limit {
        return (turns, true);
    }
    for (_, weight) in &mut turns {
        // Rounded to the nearest: a share is wrong by at most half a slot, unless the server would have none.
        *weight = (((u64::from(*weight) * limit * 2 + total) / (total * 2)) as u32).max(1);
    }
    reduce(&mut turns);
    (turns, false)
}

/// Divides by the greatest common divisor.
fn reduce(turns: &mut [(usize, u32)]) {
    let divisor = turns.iter().fold(0, |divisor, &(_, weight)| gcd(divisor, weight));
    for (_, weight) in turns {
        *weight /= divisor;
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// How many slots `servers` servers of different weights may take: 4,096, and four each where there are more
/// than 1,024 of them.
fn slot_limit(servers: usize) -> u64 {
    (servers as u64 * 4).max(4096)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    /// Servers 10.0.0.1:80, 10.0.0.2:80, … with these weights.
    pub fn servers(weights: &[u16]) -> Vec<Candidate> {
        let address = |index: usize| IpAddr::V4((0x0a00_0001 + index as u32).into());
        let key = |index| ServerKey { address: address(index), port: 80 };
        weights.iter().enumerate().map(|(index, &weight)| Candidate { key: key(index), weight }).collect()
    }

    /// The sequence as letters, the first server being A.
    pub fn letters(table: &SlotTable) -> String {
        table.slots.iter().map(|&slot| char::from(b'A' + slot as u8)).collect()
    }

    pub fn share(table: &SlotTable, server: usize) -> usize {
        table.slots.iter().filter(|&&slot| slot as usize == server).count()
    }

    const ALL: [Scheduler; 4] = [Scheduler::Rr, Scheduler::Wrr, Scheduler::Sh, Scheduler::Mh];

    #[test]
    fn nobody_with_a_weight_makes_an_empty_table() {
        for scheduler in ALL {
            for weights in [&[][..], &[0], &[0, 0, 0]] {
                assert!(build(scheduler, &servers(weights)).slots.is_empty(), "{scheduler:?} {weights:?}");
            }
        }
    }

    #[test]
    fn weight_zero_gets_no_slot_and_everybody_else_does() {
        for scheduler in ALL {
            let table = build(scheduler, &servers(&[1, 0, 65535, 7, 0]));
            for (server, has_slots) in [(0, true), (1, false), (2, true), (3, true), (4, false)] {
                assert_eq!(share(&table, server) > 0, has_slots, "{scheduler:?} server {server}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// An exact table gives each server weight/sum of the slots; a scaled one is off by at most a slot
        /// per server.
        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(0u16..=300, 1..40), scale in 1u16..200) {
            let weights: Vec<u16> = weights.iter().map(|w| w.saturating_mul(scale)).collect();
            let total: f64 = weights.iter().copied().map(f64::from).sum();
            for scheduler in [Scheduler::Wrr, Scheduler::Sh, Scheduler::Mh] {
                let table = build(scheduler, &servers(&weights));
                prop_assert_eq!(table.slots.is_empty(), total == 0.0);
                let len = table.slots.len() as f64;
                for (server, &weight) in weights.iter().enumerate() {
                    let fair = f64::from(weight) / total * len;
                    let got = share(&table, server) as f64;
                    if table.exact {
                        prop_assert!((got - fair).abs() < 1e-6, "{scheduler:?}: {got} of {len}, fair {fair}");
                    } else if weight > 0 {
                        // A scaled table may be reduced once more, so a slot weighs more in a short one.
                        let slack = 2.0 + weights.len() as f64 * len / 4096.0;
                        prop_assert!((got - fair).abs() <= slack, "{scheduler:?}: {got} of {len}, fair {fair}");
                    }
                }
            }
        }

        #[test]
        fn hash_tables_do_not_depend_on_the_order_of_servers(
            weights in prop::collection::vec(0u16..=20, 2..30), seed in any::<u64>()
        ) {
            let ordered = servers(&weights);
            let mut shuffled = ordered.clone();
            let mut state = seed;
            for i in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                shuffled.swap(i, (state >> 33) as usize % (i + 1));
            }
            for scheduler in [Scheduler::Sh, Scheduler::Mh] {
                let named = |servers: &[Candidate]| -> Vec<ServerKey> {
                    build(scheduler, servers).slots.iter().map(|&slot| servers[slot as usize].key).collect()
                };
                prop_assert!(named(&ordered) == named(&shuffled), "{:?}", scheduler);
            }
        }
    }

    #[test]
    fn more_servers_than_4096_still_get_slots_each() {
        let weights: Vec<u16> = (0..5000).map(|i| 1 + i % 7).collect();
        for scheduler in ALL {
            let table = build(scheduler, &servers(&weights));
            let mut seen = HashMap::<u32, usize>::new();
            for &slot in &table.slots {
                *seen.entry(slot).or_default() += 1;
            }
            assert_eq!(seen.len(), 5000, "{scheduler:?}");
        }
    }
}
