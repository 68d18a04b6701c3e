//! Maglev hash for services of more real servers than [`mh`](super::mh)'s exact tables are for
//! (docs/decisions/0007-large-maglev-tables.md). Pure.
//!
//! Each server walks the slots in an order of its own, in steps whose time is their number over the server's weight,
//! until all have made [`STEPS`] steps a slot together. Who comes to a slot first has it; the few to which nobody came go
//! by a second, small table of the same kind, in which servers weigh what they lack. So a slot's server depends on
//! no other slot, but for the weights of the second table: a server more or less moves few slots of others. The
//! price is that shares are not exact to a slot, but by some square root of their slots.
//!
//! The table is built in one pass over regions that fit into a core's own cache, whatever the weights.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::mh::{OFFSET_KEY, SKIP_KEY, key_bytes};
use super::{Candidate, SlotTable, shares_are_exact, stand_in};

pub fn build(servers: &[Candidate]) -> SlotTable {
    let mut population: Vec<u32> =
        (0..servers.len() as u32).filter(|&index| servers[index as usize].weight > 0).collect();
    if population.is_empty() {
        return SlotTable { slots: Vec::new(), exact: true };
    }
    population.sort_by_key(|&index| servers[index as usize].key);
    let entrants: Vec<Entrant> =
        population.iter().map(|&index| Entrant::new(&servers[index as usize])).collect();
    let mut slots = settle(&entrants, Size::of(servers.len()));
    slots.iter_mut().for_each(|slot| *slot = population[*slot as usize]);
    let exact = shares_are_exact(servers, &slots);
    stand_in(servers, &mut slots);
    SlotTable { slots, exact }
}

/// A server of a weight above 0. Its place in the order of keys decides ties.
struct Entrant {
    weight: u64,
    /// Where its walks through the first and the second table begin.
    seeds: [u64; 2],
    /// Which way its parts of a slot are rounded: below 2^16.
    rounding: u64,
}

impl Entrant {
    fn new(server: &Candidate) -> Entrant {
        let bytes = key_bytes(&server.key);
        let seed = |key: (u64, u64)| {
            let mut hasher = SipHasher13::new_with_keys(key.0, key.1);
            hasher.write(&bytes);
            hasher.finish()
        };
        let seeds = [seed(OFFSET_KEY), seed(SKIP_KEY)];
        Entrant { weight: u64::from(server.weight), seeds, rounding: mixed(seeds[0] ^ seeds[1]) >> 48 }
    }
}

/// Per slot the entrant that has it.
fn settle(entrants: &[Entrant], Size { regions, amends }: Size) -> Vec<u32> {
    let size = u64::from(regions) * u64::from(REGION);
    let total: u64 = entrants.iter().map(|entrant| entrant.weight).sum();
    // In slots of 2^16 parts, as are all shares here.
    let fair: Vec<u64> = entrants.iter().map(|entrant| ((entrant.weight * size) << 16) / total).collect();

    let walker = |(entrant, fair): (&Entrant, &u64)| Walker {
        seed: entrant.seeds[0],
        pace: entrant.weight,
        steps: ((fair * STEPS + entrant.rounding) >> 16).clamp(1, size) as u32,
    };
    let walkers: Vec<Walker> = entrants.iter().zip(&fair).map(walker).collect();
    let mut first = race(&walkers, regions, 27);
    let mut held = count(&first, entrants.len());
    give_back(&mut first, &mut held, entrants, &fair);
    grant_one_each(&mut first, &mut held, &walkers);

    // What they lack, in slots of 2^8 parts.
    let left = size - held.iter().sum::<u64>();
    let lacks = |(&fair, &held): (&u64, &u64)| {
        let part = (u128::from(fair) * u128::from(left) / u128::from(size)) as i64;
        lacks(fair as i64, (held << 16) as i64, part, amends) >> 8
    };
    let lacking: Vec<u64> = fair.iter().zip(&held).map(lacks).collect();
    let lack: u64 = lacking.iter().sum();
    let cells = (regions / 8).max(1);
    let cell_count = u64::from(cells) * u64::from(REGION);
    let walker = |(entrant, &lacks): (&Entrant, &u64)| Walker {
        seed: entrant.seeds[1],
        pace: lacks,
        // 128 bits: 2^30 parts by 2^19 cells by the steps.
        steps: (u128::from(lacks) * u128::from(cell_count * STEPS) / u128::from(lack.max(1)))
            .min(cell_count.into()) as u32,
    };
    // Less than a slot altogether would make times too long for their bits.
    let walkers: Vec<Walker> = entrants.iter().zip(&lacking).filter(|_| lack >= 1 << 8).map(walker).collect();
    let second = race(&walkers, cells, 34);

    let at = |(slot, &key): (u64, &u64)| match key {
        FREE => by_cell(slot, &first, &second),
        key => entrant_of(key),
    };
    (0..).zip(&first).map(at).collect()
}

/// One server's way through a table.
struct Walker {
    seed: u64,
    /// Steps in a unit of time.
    pace: u64,
    steps: u32,
}

/// Per slot the first arrival: its time and, in the last [`ORDER_BITS`] bits, whose it was; or [`FREE`]. Steps go
/// round the regions, and in each along a cycle through all its slots. `scale`: bits of the time that a step takes at pace 1.
fn race(walkers: &[Walker], regions: u32, scale: u32) -> Vec<u64> {
    let mut slots = vec![FREE; (regions * REGION) as usize];
    for (region, slots) in (0..u64::from(regions)).zip(slots.chunks_exact_mut(REGION as usize)) {
        for (order, walker) in (0u64..).zip(walkers).filter(|(_, walker)| walker.steps > 0) {
            // Which of its steps are here: one in each round, the first of them by its own order of regions.
            let begin = region.wrapping_add(walker.seed) % u64::from(regions);
            let steps = u64::from(walker.steps).saturating_sub(begin).div_ceil(regions.into());
            let mut key = (((begin << scale) / walker.pace) << ORDER_BITS) | order;
            let step = ((u64::from(regions) << scale) / walker.pace) << ORDER_BITS;
            let hash = mixed(walker.seed ^ (region + 1).wrapping_mul(GOLDEN));
            let mut at = (((hash & 0xffff_ffff) * u64::from(REGION)) >> 32) as u32;
            let skip = (((hash >> 32) * u64::from(REGION - 1)) >> 32) as u32 + 1;
            for _ in 0..steps.min(REGION.into()) {
                let slot = &mut slots[at as usize];
                *slot = key.min(*slot);
                key += step;
                at += skip;
                at -= if at >= REGION { REGION } else { 0 };
            }
        }
    }
    slots
}

/// Who has more than a share and two of its roots gives the last it came to back: a server of a large part of all
/// weights, which meets less competition than others, for it does not compete with itself.
fn give_back(slots: &mut [u64], held: &mut [u64], entrants: &[Entrant], fair: &[u64]) {
    let most: Vec<u64> = entrants
        .iter()
        .zip(fair)
        .map(|(entrant, fair)| ((fair + (2 * root(*fair)) + entrant.rounding) >> 16).max(1))
        .collect();
    let over = |order: usize| held[order] > most[order];
    if !(0..entrants.len()).any(over) {
        return;
    }
    let mut last: Vec<Vec<(u64, u32)>> = vec![Vec::new(); entrants.len()];
    for (slot, &key) in (0..).zip(&*slots).filter(|(_, key)| **key != FREE) {
        if over(entrant_of(key) as usize) {
            last[entrant_of(key) as usize].push((key, slot));
        }
    }
    for ((held, most), mut mine) in held.iter_mut().zip(&most).zip(last).filter(|(_, mine)| !mine.is_empty())
    {
        let keep = *most as usize;
        mine.select_nth_unstable(keep);
        mine[keep..].iter().for_each(|(_, slot)| slots[*slot as usize] = FREE);
        *held = *most;
    }
}

/// Who has none gets the first on its way that is free or whose owner has others.
fn grant_one_each(slots: &mut [u64], held: &mut [u64], walkers: &[Walker]) {
    for (order, walker) in walkers.iter().enumerate() {
        if held[order] > 0 {
            continue;
        }
        let size = slots.len() as u64;
        let way = (1..).map(|ask: u64| (mixed(walker.seed ^ ask.wrapping_mul(GOLDEN)) % size) as usize);
        let mut spare = way.filter(|&slot| slots[slot] == FREE || held[entrant_of(slots[slot]) as usize] > 1);
        // There are more slots than servers, so one is found.
        let slot = spare.next().expect("a way without an end");
        if slots[slot] != FREE {
            held[entrant_of(slots[slot]) as usize] -= 1;
        }
        slots[slot] = order as u64;
        held[order] = 1;
    }
}

/// What a server should get of the slots that are left, of which `part` is its part: that, and `amends` eighths of
/// what luck withheld from it or gave it. Amends for all of it would move as many slots again whenever a server comes
/// or goes. For what is beyond luck they are made in full. All in slots of 2^16 parts.
fn lacks(fair: i64, held: i64, part: i64, amends: i64) -> u64 {
    let deviation = fair - held - part;
    let luck = root(fair as u64) as i64;
    let suffered = deviation.clamp(-luck, luck) * (8 - amends) / 8;
    (part + deviation - suffered).max(0) as u64
}

/// The root of a number of slots, both in slots of 2^16 parts.
fn root(slots: u64) -> u64 {
    (slots << 16).isqrt()
}

/// Whoever has the cell that a slot asks; the next ones while nobody has it.
fn by_cell(slot: u64, first: &[u64], second: &[u64]) -> u32 {
    let place = |ask: u64, of: &[u64]| {
        let hash = mixed(slot ^ ask.wrapping_mul(GOLDEN));
        entrant(of[(hash % of.len() as u64) as usize])
    };
    let asked = (1..=ASKS).find_map(|ask| place(ask, second));
    // Nobody lacks anything that is worth a cell: then as those who have slots.
    asked.or_else(|| (1..).find_map(|ask| place(ask, first))).expect("somebody has a slot")
}

fn count(slots: &[u64], entrants: usize) -> Vec<u64> {
    let mut held = vec![0; entrants];
    slots.iter().filter_map(|&key| entrant(key)).for_each(|order| held[order as usize] += 1);
    held
}

fn entrant(key: u64) -> Option<u32> {
    (key != FREE).then(|| entrant_of(key))
}

fn entrant_of(key: u64) -> u32 {
    (key & ((1 << ORDER_BITS) - 1)) as u32
}

/// Every bit of the result depends on every bit of the value (the last steps of SplitMix64: Steele, Lea, Flood, "Fast
/// splittable pseudorandom number generators", OOPSLA 2014).
fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// How large a table is, and how even.
#[derive(Clone, Copy)]
struct Size {
    regions: u32,
    /// Eighths of a server's bad luck that are made up for.
    amends: i64,
}

impl Size {
    /// Measured: so that a server that goes moves at most half as many slots of others as of its own. Few sizes, far
    /// apart, since two of them have nothing in common.
    fn of(servers: usize) -> Size {
        let (regions, amends) = match servers {
            ..=256 => (16, 4),
            257..=1024 => (32, 4),
            1025..=2048 => (64, 2),
            2049..=4096 => (128, 2),
            _ => (256, 1),
        };
        Size { regions, amends }
    }
}

/// Slots of a region: a prime, so that any skip leads through all of them. 128 KB of keys fit into a core's own
/// cache.
const REGION: u32 = 16_381;
/// How many steps are made for each slot: one in e^4, 55, is then left.
const STEPS: u64 = 4;
/// A service has at most 16,380 servers. Times take the other 50 bits: 2^22 steps by 2^27 in the
/// first table, 2^13 units by 2^34 in the second.
const ORDER_BITS: u32 = 14;
const FREE: u64 = u64::MAX;
/// 2^64 over the golden ratio, as in SplitMix64: numbers in a row become far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const ASKS: u64 = 64;

#[cfg(test)]
mod tests {
    use super::super::tests::servers;
    use super::*;

    /// Slots that each has, by index.
    fn shares(table: &SlotTable, servers: usize) -> Vec<usize> {
        let mut shares = vec![0; servers];
        table.slots.iter().for_each(|&slot| shares[slot as usize] += 1);
        shares
    }

    fn moved(before: &SlotTable, after: &SlotTable) -> f64 {
        before.slots.iter().zip(&after.slots).filter(|(a, b)| a != b).count() as f64
    }

    #[test]
    fn a_region_is_a_prime_and_a_table_fits_what_a_service_can_name() {
        assert!((2..).take_while(|d| d * d <= REGION).all(|d| !REGION.is_multiple_of(d)));
        for servers in [151, 300, 1024, 2000, 4096, crate::model::SERVICE_REAL_SERVERS_MAX] {
            let Size { regions, .. } = Size::of(servers);
            assert!(regions.is_power_of_two() && regions * REGION < 1 << 24, "{servers} servers");
            assert!(servers < 1 << ORDER_BITS, "{servers} servers");
        }
    }

    /// Off by two roots of its slots at most, which are few parts in a hundred of a share of some hundred.
    #[test]
    fn each_weight_gets_its_share_but_for_luck() {
        let many: Vec<u16> = (0..1000).map(|n| 1 + n * 7 % 100).collect();
        let mut one_large = vec![1; 400];
        one_large[7] = 200;
        let mut some_huge = vec![1; 200];
        some_huge[..3].fill(65535);
        let mut some_off = vec![10; 300];
        some_off[..100].fill(0);
        for weights in [vec![1; 151], vec![7; 1000], many, one_large, some_huge, some_off, vec![1; 2000]] {
            let table = build(&servers(&weights));
            let total: u64 = weights.iter().copied().map(u64::from).sum();
            for (server, (&weight, got)) in weights.iter().zip(shares(&table, weights.len())).enumerate() {
                let fair = table.slots.len() as f64 * f64::from(weight) / total as f64;
                let off = (got as f64 - fair).abs();
                assert!(
                    off <= 1.0 + 2.2 * fair.sqrt(),
                    "server {server} of {}: {got}, fair {fair:.0}",
                    weights.len()
                );
                assert_eq!(got > 0, weight > 0, "server {server} of {}", weights.len());
            }
        }
    }

    #[test]
    fn a_server_that_is_taken_from_the_service_moves_at_most_half_as_many_of_the_others() {
        for count in [151, 300, 1000, 2048] {
            let all = servers(&vec![10; count]);
            let before = build(&all);
            let fair = before.slots.len() as f64 / count as f64;
            let mut sum = 0.0;
            for gone in (0..4).map(|n| n * count / 4) {
                let mut without = all.clone();
                without[gone].weight = 0;
                let now = moved(&before, &build(&without));
                assert!(now <= 1.75 * fair, "{count} servers without {gone}: {now} moved, fair {fair:.0}");
                sum += now;
            }
            assert!(
                sum / 4.0 <= 1.5 * fair,
                "{count} servers: {:.0} moved on average, fair {fair:.0}",
                sum / 4.0
            );
        }
    }

    #[test]
    fn changing_one_weight_moves_about_the_difference() {
        let all = servers(&vec![10; 1000]);
        let mut heavier = all.clone();
        heavier[3].weight = 20;
        let (before, after) = (build(&all), build(&heavier));
        let difference = before.slots.len() as f64 * (2.0 / 1001.0 - 1.0 / 1000.0);
        let moved = moved(&before, &after);
        assert!(moved <= 2.0 * difference, "{moved} slots moved, {difference:.0} had to");
    }

    #[test]
    fn a_server_that_fails_moves_its_own_slots_only() {
        let all = servers(&vec![3; 200]);
        let before = build(&all);
        let mut failed = all.clone();
        failed[42].available = false;
        let during = build(&failed);
        assert_eq!(moved(&before, &during) as usize, shares(&before, 200)[42]);
        assert_eq!(shares(&during, 200)[42], 0);
    }

    #[test]
    fn one_weight_alone_has_the_whole_table() {
        let mut weights = vec![0; 151];
        weights[17] = 5;
        let table = build(&servers(&weights));
        assert!(table.exact && table.slots.iter().all(|slot| *slot == 17));
        assert!(build(&servers(&[0; 151])).slots.is_empty());
    }

    #[test]
    fn the_order_of_servers_does_not_matter() {
        let all = servers(&(0..500).map(|n| n % 9).collect::<Vec<u16>>());
        let mut turned = all.clone();
        turned.rotate_left(123);
        turned.swap(5, 77);
        let named = |servers: &[Candidate]| -> Vec<_> {
            build(servers).slots.iter().map(|&slot| servers[slot as usize].key).collect()
        };
        assert!(named(&all) == named(&turned));
    }

    /// Two directors of different versions must agree: these values may only change knowingly.
    #[test]
    fn the_table_is_the_same_for_ever() {
        let table = build(&servers(&(0..200).map(|n| 1 + n % 5).collect::<Vec<u16>>()));
        let digest = table.slots.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &slot| {
            (hash ^ u64::from(slot)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        assert_eq!(table.slots.len(), 262_096);
        assert_eq!(table.slots[..6], [192, 4, 124, 94, 187, 131]);
        assert_eq!(digest, 10_170_558_204_490_921_530);
    }
}
