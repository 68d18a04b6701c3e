//! Destination hash: the virtual address decides. A service's endpoint has one address, so its table is one slot.

use std::net::IpAddr;

use lb_common::address::Address;
use lb_common::{hash, ipvs};

use super::{Candidate, SlotTable, mh};

/// Ours takes the server that mh has in the address's slot: weights count, and a server more or less moves few
/// addresses.
pub fn build(servers: &[Candidate], vip: IpAddr) -> SlotTable {
    let table = mh::build(servers);
    let len = table.slots.len() as u32;
    let at = hash::slot_of_hash(hash::slot_hash(words(vip), 0), len);
    SlotTable { slots: table.slots.get(at as usize).copied().into_iter().collect(), exact: true }
}

/// IPVS fills 256 buckets one server after the other, whatever their weights (`ip_vs_dh_reassign`,
/// net/netfilter/ipvs/ip_vs_dh.c, Linux 6.1), and refuses where the bucket's server cannot take flows.
pub fn build_ipvs(servers: &[Candidate], vip: IpAddr) -> SlotTable {
    let bucket = ipvs::dh(ipvs::fold(words(vip))) as usize;
    let chosen = servers.len().checked_sub(1).map(|last| last - bucket % servers.len());
    let slots = chosen.filter(|index| servers[*index].eligible()).map(|index| index as u32);
    SlotTable { slots: slots.into_iter().collect(), exact: true }
}

fn words(address: IpAddr) -> [u64; 2] {
    let [a, b, c, d] = Address::from(address).words().map(u64::from);
    [a | b << 32, c | d << 32]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{letters, servers};
    use super::*;

    #[test]
    fn an_address_has_one_server_and_other_addresses_others() {
        let servers = servers(&[1, 1, 1]);
        let of = |last: u8| letters(&build(&servers, IpAddr::from([203, 0, 113, last])));
        let all: std::collections::BTreeSet<String> = (0..50).map(of).collect();
        assert_eq!(all, ["A", "B", "C"].map(String::from).into());
        assert_eq!(of(7), of(7));
    }

    #[test]
    fn ipvs_ignores_weights_and_refuses_in_the_bucket_of_a_server_that_is_out() {
        // Bucket 50 and bucket 148 (as for sh), of the list C B A.
        let vips = ["192.0.2.1", "192.0.2.2"].map(|vip| vip.parse().unwrap());
        let of = |weights: &[u16]| vips.map(|vip| letters(&build_ipvs(&servers(weights), vip)));
        assert_eq!(of(&[1, 1, 1]), ["A", "B"]);
        assert_eq!(of(&[1, 9, 1]), ["A", "B"]);
        assert_eq!(of(&[0, 1, 1]), ["", "B"]);
        assert_eq!(of(&[]), ["", ""]);
    }
}
