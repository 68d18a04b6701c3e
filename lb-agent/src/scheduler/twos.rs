//! Power of two choices: a slot for each turn of each weight. Both servers of a new flow are drawn there, so that a
//! draw by weight is one look however many servers there are.

use super::{Candidate, SlotTable, turns};

pub fn build(servers: &[Candidate]) -> SlotTable {
    let (turns, exact) = turns(servers, Candidate::eligible);
    let slots = turns.iter().flat_map(|&(index, weight)| (0..weight).map(move |_| index as u32)).collect();
    SlotTable { slots, exact }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{letters, servers};
    use super::*;

    #[test]
    fn each_server_has_the_slots_of_its_weight() {
        for (weights, slots) in
            [(&[1, 1, 1][..], "ABC"), (&[2, 1, 0, 3], "AABDDD"), (&[20, 10], "AAB"), (&[0, 0], "")]
        {
            let table = build(&servers(weights));
            assert_eq!(letters(&table), slots, "{weights:?}");
            assert!(table.exact);
        }
    }

    #[test]
    fn who_cannot_take_flows_has_none() {
        let mut servers = servers(&[2, 1, 1]);
        servers[0].available = false;
        assert_eq!(letters(&build(&servers)), "BC");
    }
}
