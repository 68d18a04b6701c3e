//! Round robin: every server that may take flows once, in the order of the manifest, or in IPVS's, which is the
//! reverse (`__ip_vs_update_dest` adds at the head of the list, net/netfilter/ipvs/ip_vs_ctl.c, Linux 6.1).
//! Weights other than 0 do not matter.

use super::{Candidate, SlotTable};

pub fn build(servers: &[Candidate], ipvs: bool) -> SlotTable {
    let eligible = servers.iter().enumerate().filter(|(_, server)| server.eligible());
    let mut slots: Vec<u32> = eligible.map(|(index, _)| index as u32).collect();
    if ipvs {
        slots.reverse();
    }
    SlotTable { slots, exact: true }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{letters, servers};
    use super::*;

    #[test]
    fn visits_servers_in_the_order_of_the_manifest_or_in_that_of_ipvs() {
        for (weights, ours, ipvs) in
            [(&[1, 1, 1][..], "ABC", "CBA"), (&[5, 1, 9], "ABC", "CBA"), (&[1, 0, 1], "AC", "CA")]
        {
            assert_eq!(letters(&build(&servers(weights), false)), ours, "{weights:?}");
            assert_eq!(letters(&build(&servers(weights), true)), ipvs, "{weights:?}");
        }
    }

    #[test]
    fn who_is_not_available_is_left_out() {
        let mut servers = servers(&[1, 1, 1]);
        servers[1].available = false;
        assert_eq!(letters(&build(&servers, false)), "AC");
    }
}
