//! Schedulers as tables: which real server each slot of a service's slot table names. Pure. The data plane walks
//! the table of rr and wrr with a cursor, and indexes that of sh, dh and mh with a hash; it knows nothing of
//! weights there. twos draws at random from its table. The others that count connections have none: the data plane
//! walks the servers, by the rules that [`reference`] states. One file per scheduler.

mod dh;
mod mh;
mod mh_ipvs;
mod mh_large;
pub mod reference;
mod rr;
mod sh;
mod twos;
mod wrr;

use std::net::IpAddr;

use lb_common::hash;

use crate::model::{Scheduler, ServerKey, VirtualService};

/// A real server that may be given slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Distinct within one call of [`build`].
    pub key: ServerKey,
    /// 0 gets no slot.
    pub weight: u16,
    /// Whether it can take flows now. In the tables of hashes one that cannot keeps its place: others stand in for
    /// it, and nobody else's clients move when it goes or comes back.
    pub available: bool,
}

impl Candidate {
    /// Whether it may take a new flow.
    pub fn eligible(&self) -> bool {
        self.weight > 0 && self.available
    }
}

/// The candidates of a service as its manifest has them, in the same order.
pub fn candidates(service: &VirtualService) -> Vec<Candidate> {
    let candidate =
        |server| Candidate { key: service.key_of(server), weight: server.weight, available: true };
    service.real_servers.iter().map(candidate).collect()
}

/// What the data plane schedules from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotTable {
    /// Per slot an index into the candidates, or [`NO_SERVER`]. Empty when nobody may take flows: the service
    /// refuses.
    pub slots: Vec<u32>,
    /// Whether each server's share of the slots is exactly its share of the weights.
    pub exact: bool,
}

/// A slot whose flows are refused, or find another by the fallback flag: IPVS's tables have them.
pub const NO_SERVER: u32 = u32::MAX;

/// How a table is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub scheduler: Scheduler,
    /// In IPVS's order, and for hashes the very table that IPVS would have.
    pub ipvs: bool,
    /// What dh hashes.
    pub vip: IpAddr,
}

/// Builds the slot table of a service; an empty one for schedulers that look at the counts of all servers.
///
/// For rr and wrr the order of `servers` is the order in which they were added, and decides the sequence. For our
/// sh, dh and mh it does not matter: the table names the same servers in the same slots on every director that has
/// the same servers and weights, and unless a server is not available somewhere the same in all. For mh, servers of
/// weight 0 still count for the size of the table.
pub fn build(rules: &Rules, servers: &[Candidate]) -> SlotTable {
    match (rules.scheduler, rules.ipvs) {
        (Scheduler::Rr, ipvs) => rr::build(servers, ipvs),
        (Scheduler::Wrr, ipvs) => wrr::build(servers, ipvs),
        (Scheduler::Sh, false) => sh::build(servers),
        (Scheduler::Sh, true) => sh::build_ipvs(servers),
        (Scheduler::Dh, false) => dh::build(servers, rules.vip),
        (Scheduler::Dh, true) => dh::build_ipvs(servers, rules.vip),
        (Scheduler::Mh, false) => mh::build(servers),
        (Scheduler::Mh, true) => mh_ipvs::build(servers),
        (Scheduler::Twos, _) => twos::build(servers),
        (counted, _) => {
            debug_assert!(counted.counts());
            SlotTable { slots: Vec::new(), exact: true }
        }
    }
}

/// The order in which servers are walked, as indices into them: that of the manifest, or IPVS's, in which the last
/// added comes first.
pub fn walk(ipvs: bool, servers: usize) -> Vec<u32> {
    let forward = 0..servers as u32;
    if ipvs { forward.rev().collect() } else { forward.collect() }
}

/// Gives the slots of servers that cannot take flows to others: each asks at random places of the table, the same
/// ones always, until somebody there can. So others stand in by their shares; who stood in goes on when somebody
/// else fails; and all is as before when everybody is back.
fn stand_in(servers: &[Candidate], slots: &mut Vec<u32>) {
    if servers.iter().all(|server| server.available || server.weight == 0) {
        return;
    }
    if !servers.iter().any(Candidate::eligible) {
        slots.clear();
        return;
    }
    let full = slots.clone();
    let len = full.len() as u32;
    let able = |slot: u32| servers[full[slot as usize] as usize].eligible();
    for (at, slot) in slots.iter_mut().enumerate().filter(|(at, _)| !able(*at as u32)) {
        let place = |ask: u16| hash::slot_of_hash(hash::slot_hash([at as u64, 0], ask), len);
        // Where hardly anybody is left, the next who is.
        let found = (1..=ASKS).map(place).find(|place| able(*place));
        let found = found.or_else(|| (0..len).map(|n| (place(ASKS) + n) % len).find(|place| able(*place)));
        *slot = full[found.unwrap_or(at as u32) as usize];
    }
}

/// How many random places [`stand_in`] asks at.
const ASKS: u16 = 64;

fn shares_are_exact(servers: &[Candidate], slots: &[u32]) -> bool {
    let mut shares = vec![0u64; servers.len()];
    for &slot in slots {
        shares[slot as usize] += 1;
    }
    let total: u64 = servers.iter().map(|server| u64::from(server.weight)).sum();
    let size = slots.len() as u64;
    servers.iter().zip(&shares).all(|(server, share)| share * total == u64::from(server.weight) * size)
}

/// Servers that get slots: (index into the candidates, turns), turns being the weights divided by what they
/// have in common and, where they would still need more than [`slot_limit`] slots, scaled down to it, each
/// to at least 1. The flag says that nothing had to be scaled.
fn turns(servers: &[Candidate], take_part: impl Fn(&Candidate) -> bool) -> (Vec<(usize, u32)>, bool) {
    let mut turns: Vec<(usize, u32)> = servers
        .iter()
        .enumerate()
        .filter(|(_, server)| take_part(server))
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
        let candidate = |(index, &weight)| Candidate { key: key(index), weight, available: true };
        weights.iter().enumerate().map(candidate).collect()
    }

    /// The sequence as letters, the first server being A.
    pub fn letters(table: &SlotTable) -> String {
        table.slots.iter().map(|&slot| char::from(b'A' + slot as u8)).collect()
    }

    pub fn share(table: &SlotTable, server: usize) -> usize {
        table.slots.iter().filter(|&&slot| slot as usize == server).count()
    }

    const ALL: [Scheduler; 5] =
        [Scheduler::Rr, Scheduler::Wrr, Scheduler::Sh, Scheduler::Mh, Scheduler::Twos];

    fn build(scheduler: Scheduler, servers: &[Candidate]) -> SlotTable {
        let rules = Rules { scheduler, ipvs: false, vip: IpAddr::from([203, 0, 113, 1]) };
        super::build(&rules, servers)
    }

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
            for scheduler in [Scheduler::Wrr, Scheduler::Sh, Scheduler::Mh, Scheduler::Twos] {
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
    fn who_is_not_available_has_no_slot_whatever_the_scheduler() {
        for scheduler in ALL {
            for ipvs in [false, true] {
                let rules = Rules { scheduler, ipvs, vip: IpAddr::from([203, 0, 113, 1]) };
                let mut servers = servers(&[1, 2, 3]);
                servers[1].available = false;
                let table = super::build(&rules, &servers);
                for (server, has_slots) in [(0, true), (1, false), (2, true)] {
                    assert_eq!(share(&table, server) > 0, has_slots, "{scheduler:?} server {server}");
                }
                servers.iter_mut().for_each(|server| server.available = false);
                assert!(super::build(&rules, &servers).slots.is_empty(), "{scheduler:?}");
            }
        }
    }

    #[test]
    fn one_of_many_stands_in_for_all_the_others() {
        let mut servers = servers(&[1; 200]);
        servers.iter_mut().skip(1).for_each(|server| server.available = false);
        for scheduler in [Scheduler::Sh, Scheduler::Mh] {
            let table = build(scheduler, &servers);
            assert_eq!(share(&table, 0), table.slots.len(), "{scheduler:?}");
        }
    }

    #[test]
    fn servers_are_walked_in_the_order_of_the_manifest_or_in_that_of_ipvs() {
        assert_eq!((walk(false, 3), walk(true, 3)), (vec![0, 1, 2], vec![2, 1, 0]));
    }

    #[test]
    fn more_servers_than_4096_still_get_slots_each() {
        let weights: Vec<u16> = (0..5000).map(|i| 1 + i % 7).collect();
        for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Sh] {
            let table = build(scheduler, &servers(&weights));
            let mut seen = HashMap::<u32, usize>::new();
            for &slot in &table.slots {
                *seen.entry(slot).or_default() += 1;
            }
            assert_eq!(seen.len(), 5000, "{scheduler:?}");
        }
    }
}
