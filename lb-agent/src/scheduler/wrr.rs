//! Weighted round robin, in IPVS's cyclic sequence (net/netfilter/ipvs/ip_vs_wrr.c, Linux 6.1).
//!
//! IPVS walks the servers again and again at a falling level, taking those whose weight is at least the
//! level, and starts anew at the top when the level reaches 0. A service that was filled server by server
//! begins at the lowest level; from there the sequence repeats after Σ weight / gcd picks, which is our table.
//! IPVS's list is the reverse of the order of addition; ours is that of the manifest.

use super::{Candidate, SlotTable, turns};

pub fn build(servers: &[Candidate], ipvs: bool) -> SlotTable {
    let (turns, exact) = turns(servers, Candidate::eligible);
    let highest = turns.iter().map(|&(_, weight)| weight).max().unwrap_or(0);
    let total: u64 = turns.iter().map(|&(_, weight)| u64::from(weight)).sum();
    let mut slots = Vec::with_capacity(total as usize);
    // Who is too light for a level is gone for all higher ones.
    let mut taking_part = turns;
    if ipvs {
        taking_part.reverse();
    }
    let mut levels: Vec<Vec<u32>> = Vec::with_capacity(highest as usize);
    for level in 1..=highest {
        taking_part.retain(|&(_, weight)| weight >= level);
        levels.push(taking_part.iter().map(|&(index, _)| index as u32).collect());
    }
    slots.extend(levels.first().into_iter().flatten());
    slots.extend(levels.iter().skip(1).rev().flatten());
    SlotTable { slots, exact }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{letters, servers, share};
    use super::*;

    #[test]
    fn golden_sequences_of_ipvs() {
        for (weights, sequence) in [
            (&[4, 3, 2][..], "CBAABACBA"),
            (&[5, 1, 1], "CBAAAAA"),
            (&[4, 2], "BAA"),
            (&[1, 2, 3], "CBACCB"),
            (&[1, 1, 1], "CBA"),
            (&[7], "A"),
            (&[2, 0, 4], "CAC"),
        ] {
            let table = build(&servers(weights), true);
            assert_eq!(letters(&table), sequence, "{weights:?}");
            assert!(table.exact);
        }
    }

    #[test]
    fn our_sequence_visits_in_the_order_of_the_manifest() {
        assert_eq!(letters(&build(&servers(&[4, 3, 2]), false)), "ABCAABABC");
        assert_eq!(letters(&build(&servers(&[5, 1, 1]), false)), "ABCAAAA");
    }

    #[test]
    fn sums_up_to_4096_are_exact_and_larger_ones_are_scaled() {
        let exact = build(&servers(&[4095, 1]), false);
        assert!(exact.exact);
        assert_eq!((exact.slots.len(), share(&exact, 1)), (4096, 1));

        let scaled = build(&servers(&[4096, 1]), false);
        assert!(!scaled.exact);
        assert!(scaled.slots.len() <= 4097, "{}", scaled.slots.len());

        let same = build(&servers(&[65535, 65535]), false);
        assert!(same.exact, "what weights have in common costs no slots");
        assert_eq!(same.slots.len(), 2);

        let lopsided = build(&servers(&[65535, 1, 1]), false);
        assert!(!lopsided.exact);
        assert_eq!((share(&lopsided, 1), share(&lopsided, 2)), (1, 1));
    }

    /// IPVS as the kernel has it: state kept between picks, recomputed at every change of the service.
    #[derive(Default)]
    struct Ipvs {
        /// (server, weight), head of the list first.
        list: Vec<(u32, i64)>,
        cursor: Option<usize>,
        cw: i64,
        mw: i64,
        di: i64,
    }

    impl Ipvs {
        fn add(&mut self, server: u32, weight: i64) {
            self.list.insert(0, (server, weight));
            let gcd = |mut a: i64, mut b: i64| {
                while b != 0 {
                    (a, b) = (b, a % b);
                }
                a
            };
            self.di = self.list.iter().filter(|d| d.1 > 0).fold(0, |g, d| gcd(g, d.1)).max(1);
            self.mw = self.list.iter().map(|d| d.1).max().unwrap_or(0) - (self.di - 1);
            self.cursor = None;
            if self.cw > self.mw || self.cw == 0 {
                self.cw = self.mw;
            } else if self.di > 1 {
                self.cw = (self.cw / self.di) * self.di + 1;
            }
        }

        fn pick(&mut self) -> u32 {
            loop {
                let next = self.cursor.map_or(0, |cursor| cursor + 1);
                for at in next..self.list.len() {
                    if self.list[at].1 >= self.cw {
                        self.cursor = Some(at);
                        return self.list[at].0;
                    }
                }
                self.cursor = None;
                self.cw -= self.di;
                if self.cw <= 0 {
                    self.cw = self.mw;
                }
            }
        }
    }

    proptest! {
        /// The phase depends on the history of the service in IPVS; the cycle does not.
        #[test]
        fn the_cycle_is_that_of_a_simulated_ipvs(weights in prop::collection::vec(1u16..60, 1..8)) {
            let mut ipvs = Ipvs::default();
            for (server, &weight) in weights.iter().enumerate() {
                ipvs.add(server as u32, i64::from(weight));
            }
            let table = build(&servers(&weights), true);
            let period = table.slots.len();
            let picks: Vec<u32> = (0..3 * period).map(|_| ipvs.pick()).collect();
            let settled = &picks[period..];
            let fits = (0..period).any(|phase| {
                settled.iter().enumerate().all(|(i, &pick)| pick == table.slots[(i + phase) % period])
            });
            prop_assert!(fits, "ipvs {picks:?}, table {:?}", table.slots);
        }
    }
}
