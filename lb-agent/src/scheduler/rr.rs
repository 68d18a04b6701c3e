//! Round robin: every server once, in IPVS's order, which is the reverse of the order of addition
//! (`__ip_vs_update_dest` adds at the head of the list, net/netfilter/ipvs/ip_vs_ctl.c, Linux 6.1).
//! Weights other than 0 do not matter.

use super::{Candidate, SlotTable};

pub fn build(servers: &[Candidate]) -> SlotTable {
    let eligible = servers.iter().enumerate().rev().filter(|(_, server)| server.weight > 0);
    SlotTable { slots: eligible.map(|(index, _)| index as u32).collect(), exact: true }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{letters, servers};
    use super::*;

    #[test]
    fn visits_servers_in_reverse_order_of_addition() {
        assert_eq!(letters(&build(&servers(&[1, 1, 1]))), "CBA");
        assert_eq!(letters(&build(&servers(&[5, 1, 9]))), "CBA");
        assert_eq!(letters(&build(&servers(&[1, 0, 1]))), "CA");
    }
}
