//! Source hash: each server as often as its weight says, turn by turn, as IPVS fills its buckets
//! (`ip_vs_sh_reassign`, net/netfilter/ipvs/ip_vs_sh.c, Linux 6.1). Shares are exact where IPVS's 256 buckets
//! only approach them; in exchange a server more or less moves most clients. Who minds takes mh.

use lb_common::ipvs;

use super::{Candidate, NO_SERVER, SlotTable, shares_are_exact, stand_in, turns};

pub fn build(servers: &[Candidate]) -> SlotTable {
    let (mut turns, exact) = turns(servers, |server| server.weight > 0);
    turns.sort_by_key(|&(index, _)| servers[index].key);
    let mut slots: Vec<u32> =
        turns.iter().flat_map(|&(index, weight)| (0..weight).map(move |_| index as u32)).collect();
    stand_in(servers, &mut slots);
    SlotTable { slots, exact }
}

/// IPVS's buckets: a server of weight 0 still takes one each round, and who is not available leaves its own empty.
pub fn build_ipvs(servers: &[Candidate]) -> SlotTable {
    let in_turn = servers.iter().enumerate().rev();
    let round: Vec<u32> = in_turn
        .flat_map(|(index, server)| (0..server.weight.max(1)).map(move |_| index as u32))
        .take(ipvs::SH_SLOTS as usize)
        .collect();
    let mut slots: Vec<u32> = round.iter().copied().cycle().take(ipvs::SH_SLOTS as usize).collect();
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::address::Address;

    use super::super::tests::{letters, servers, share};
    use super::*;

    #[test]
    fn each_server_takes_its_weight_in_turn() {
        assert_eq!(letters(&build(&servers(&[1, 1, 1]))), "ABC");
        assert_eq!(letters(&build(&servers(&[2, 1, 0, 3]))), "AABDDD");
        assert_eq!(letters(&build(&servers(&[20, 10]))), "AAB");
    }

    #[test]
    fn the_order_of_the_manifest_does_not_matter() {
        let mut reversed = servers(&[2, 1, 3]);
        reversed.reverse();
        assert_eq!(letters(&build(&reversed)), "CCBAAA");
    }

    fn bucket(client: &str, port: u16) -> usize {
        let address = Address::from(client.parse::<IpAddr>().unwrap());
        let [a, b, c, d] = address.words().map(u64::from);
        ipvs::sh(ipvs::fold([a | b << 32, c | d << 32]), port, 0) as usize
    }

    #[test]
    fn golden_places_of_ipvs() {
        let table = letters(&build_ipvs(&servers(&[1, 1, 1])));
        for (client, port, server) in [
            ("192.0.2.1", 0, "A"),
            ("192.0.2.2", 0, "B"),
            ("198.51.100.7", 0, "C"),
            ("198.51.100.7", 40_000, "B"),
            ("2001:db8::1", 0, "C"),
        ] {
            let at = bucket(client, port);
            assert_eq!(&table[at..=at], server, "{client} port {port}");
        }
        let table = build_ipvs(&servers(&[2, 1]));
        assert!(letters(&table).starts_with("BAABAA"));
        assert_eq!(share(&table, 0), 170);
    }

    #[test]
    fn in_ipvs_a_server_of_weight_zero_keeps_a_bucket_in_which_nobody_answers() {
        let table = build_ipvs(&servers(&[1, 0]));
        assert_eq!(table.slots[..4], [NO_SERVER, 0, NO_SERVER, 0]);
        assert!(build_ipvs(&servers(&[0, 0])).slots.is_empty());
        assert!(build_ipvs(&[]).slots.is_empty());
    }
}
