//! Maglev hash as IPVS builds it (net/netfilter/ipvs/ip_vs_mh.c, Linux 6.1): turn by turn, a server of more weight
//! taking several slots in a turn. A slot whose server cannot take flows stays empty.

use lb_common::address::Address;
use lb_common::ipvs;

use super::{Candidate, NO_SERVER, SlotTable, gcd, shares_are_exact};

pub fn build(servers: &[Candidate]) -> SlotTable {
    let divisor = servers.iter().fold(0, |divisor, server| gcd(divisor, server.weight.into()));
    if divisor == 0 {
        return SlotTable { slots: Vec::new(), exact: true };
    }
    let heaviest = servers.iter().map(|server| u32::from(server.weight)).max().unwrap_or(0) / divisor;
    let shift = (u32::BITS - heaviest.leading_zeros()).saturating_sub(INDEX_BITS);
    let mut walks: Vec<Walk> = Vec::new();
    for (index, server) in servers.iter().enumerate().rev().filter(|(_, server)| server.weight > 0) {
        let [a, b, c, d] = Address::from(server.key.address).words().map(u64::from);
        let fold = ipvs::fold([a | b << 32, c | d << 32]);
        let hash = |key: usize| ipvs::mh(fold, server.key.port, 0, ipvs::MH_KEYS[key]);
        walks.push(Walk {
            server: index as u32,
            at: hash(0) % ipvs::MH_SLOTS,
            skip: hash(1) % (ipvs::MH_SLOTS - 1) + 1,
            turns: ((u32::from(server.weight) / divisor) >> shift).max(1),
        });
    }
    let mut slots = vec![NO_SERVER; ipvs::MH_SLOTS as usize];
    let mut left = slots.len();
    'filled: loop {
        for walk in &mut walks {
            for _ in 0..walk.turns {
                walk.take(&mut slots);
                left -= 1;
                if left == 0 {
                    break 'filled;
                }
            }
        }
    }
    let exact = shares_are_exact(servers, &slots);
    for slot in &mut slots {
        if !servers[*slot as usize].eligible() {
            *slot = NO_SERVER;
        }
    }
    if slots.iter().all(|slot| *slot == NO_SERVER) {
        slots.clear();
    }
    SlotTable { slots, exact }
}

struct Walk {
    server: u32,
    at: u32,
    skip: u32,
    turns: u32,
}

impl Walk {
    /// The next free slot of its permutation; there must be one.
    fn take(&mut self, slots: &mut [u32]) {
        while slots[self.at as usize] != NO_SERVER {
            self.at = (self.at + self.skip) % ipvs::MH_SLOTS;
        }
        slots[self.at as usize] = self.server;
    }
}

/// Half of CONFIG_IP_VS_MH_TAB_INDEX (12): weights keep this many of their highest bits.
const INDEX_BITS: u32 = 6;

#[cfg(test)]
mod tests {
    use super::super::tests::{letters, servers, share};
    use super::*;

    #[test]
    fn golden_places_of_ipvs() {
        let table = build(&servers(&[1, 1, 1]));
        assert_eq!([0, 1, 2].map(|server| share(&table, server)), [1364, 1364, 1365]);
        let letters = letters(&table);
        for (slot, server) in [(2891, "C"), (746, "B"), (924, "A")] {
            assert_eq!(&letters[slot..=slot], server, "slot {slot}");
        }
    }

    #[test]
    fn removing_a_server_moves_one_slot_of_the_others() {
        let (with, without) = (build(&servers(&[1, 1, 1])), build(&servers(&[1, 1])));
        let others = with.slots.iter().zip(&without.slots).filter(|(a, _)| **a != 2);
        assert_eq!(others.clone().count(), 2728);
        assert_eq!(others.filter(|(a, b)| a != b).count(), 1);
    }

    #[test]
    fn weights_are_cut_to_their_highest_six_bits() {
        // 127 >> 1 is 63, 1 >> 1 is 0 and becomes 1.
        let table = build(&servers(&[127, 1]));
        let share = share(&table, 1) as f64 / table.slots.len() as f64;
        assert!((share - 1.0 / 64.0).abs() < 0.001, "{share}");
    }

    #[test]
    fn who_cannot_take_flows_leaves_its_slots_empty_and_moves_nobody() {
        let mut servers = servers(&[1, 1, 1]);
        let before = build(&servers);
        servers[1].available = false;
        let after = build(&servers);
        for (before, after) in before.slots.iter().zip(&after.slots) {
            assert_eq!(*after, if *before == 1 { NO_SERVER } else { *before });
        }
    }
}
