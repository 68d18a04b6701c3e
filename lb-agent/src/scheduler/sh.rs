//! Source hash: each server as often as its weight says, turn by turn, as IPVS fills its buckets
//! (`ip_vs_sh_reassign`, net/netfilter/ipvs/ip_vs_sh.c, Linux 6.1). Shares are exact where IPVS's 256 buckets
//! only approach them; in exchange a server more or less moves most clients. Who minds takes mh.

use super::{Candidate, SlotTable, turns};

pub fn build(servers: &[Candidate]) -> SlotTable {
    let (mut turns, exact) = turns(servers);
    turns.sort_by_key(|&(index, _)| servers[index].key);
    let slots = turns.iter().flat_map(|&(index, weight)| (0..weight).map(move |_| index as u32)).collect();
    SlotTable { slots, exact }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{letters, servers};
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
}
