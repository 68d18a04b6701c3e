//! What the schedulers that count connections choose: IPVS's rules (net/netfilter/ipvs/ip_vs_{lc,wlc,sed,nq,fo,
//! ovf,twos,lblc,lblcr}.c, Linux 6.1) as plain functions over the servers in the order in which they are walked.
//! The data plane does the same over its own counters and is tested against these.

use crate::model::Scheduler;

/// A server as a scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// 0 takes no flow.
    pub weight: u32,
    pub active: u32,
    pub inactive: u32,
    /// At its upper threshold, and not below its lower one since.
    pub overloaded: bool,
}

impl Load {
    fn eligible(&self) -> bool {
        self.weight > 0 && !self.overloaded
    }

    /// `ip_vs_dest_conn_overhead`: an active connection weighs as much as 256 inactive ones.
    fn overhead(&self) -> u64 {
        (u64::from(self.active) << 8) + u64::from(self.inactive)
    }

    /// sed's: what the delay would be with one connection more.
    fn expected_delay(&self) -> u64 {
        u64::from(self.active) + 1
    }
}

/// The server for a new flow, as an index into `loads`. `random` is for twos alone. None: nobody can take it, or
/// the scheduler does not count connections.
pub fn pick(scheduler: Scheduler, loads: &[Load], random: [u64; 2]) -> Option<usize> {
    let walked = || loads.iter().enumerate().filter(|(_, load)| load.eligible());
    match scheduler {
        Scheduler::Lc => least(loads, |load| (load.overhead(), 1)),
        Scheduler::Wlc | Scheduler::Lblc | Scheduler::Lblcr => {
            least(loads, |load| (load.overhead(), load.weight))
        }
        Scheduler::Sed => least(loads, |load| (load.expected_delay(), load.weight)),
        Scheduler::Nq => walked()
            .find(|(_, load)| load.active == 0)
            .map(|(index, _)| index)
            .or_else(|| pick(Scheduler::Sed, loads, random)),
        Scheduler::Fo => heaviest(walked()),
        Scheduler::Ovf => heaviest(walked().filter(|(_, load)| load.active <= load.weight)),
        Scheduler::Twos => two_choices(loads, random),
        Scheduler::Rr | Scheduler::Wrr | Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => None,
    }
}

/// lblc: the server that this virtual address had before, while it is not overloaded in lblc's own sense; else the
/// least loaded, which the address then has.
pub fn locality(loads: &[Load], cached: Option<usize>) -> Option<usize> {
    cached
        .filter(|&index| loads.get(index).is_some_and(|load| load.weight > 0 && !crowded(loads, load)))
        .or_else(|| pick(Scheduler::Wlc, loads, [0; 2]))
}

/// lblcr: the least loaded of the servers that this virtual address has, and, where that one is overloaded in lblc's
/// sense, the least loaded of all, which joins them. Returns the choice and whether it joins.
pub fn replicated_locality(loads: &[Load], set: &[usize]) -> Option<(usize, bool)> {
    let members: Vec<Load> =
        (0..loads.len()).map(|i| if set.contains(&i) { loads[i] } else { Load::default() }).collect();
    let inside = pick(Scheduler::Wlc, &members, [0; 2]);
    match inside.filter(|&index| !crowded(loads, &loads[index])) {
        Some(index) => Some((index, false)),
        None => pick(Scheduler::Wlc, loads, [0; 2]).map(|index| (index, !set.contains(&index))),
    }
}

/// `is_overloaded` of lblc and lblcr: more active connections than its weight, while somebody has fewer than half of
/// theirs.
fn crowded(loads: &[Load], load: &Load) -> bool {
    load.active > load.weight && loads.iter().any(|other| u64::from(other.active) * 2 < other.weight.into())
}

/// The least `cost / weight`; the first of equals, which a product of both sides compares without rounding.
fn least(loads: &[Load], of: impl Fn(&Load) -> (u64, u32)) -> Option<usize> {
    let mut best: Option<(usize, u64, u64)> = None;
    for (index, load) in loads.iter().enumerate().filter(|(_, load)| load.eligible()) {
        let (cost, weight) = of(load);
        let weight = u64::from(weight);
        if best.is_none_or(|(_, least, its)| least * weight > cost * its) {
            best = Some((index, cost, weight));
        }
    }
    best.map(|(index, _, _)| index)
}

/// The highest weight; the first of equals.
fn heaviest<'a>(walked: impl Iterator<Item = (usize, &'a Load)>) -> Option<usize> {
    let best = walked.fold(None, |best: Option<(usize, u32)>, (index, load)| match best {
        Some((_, weight)) if weight >= load.weight => best,
        _ => Some((index, load.weight)),
    });
    best.map(|(index, _)| index)
}

/// Two servers drawn by weight, of which the less loaded is taken. A draw is in `0..=total`, the end included, as in
/// `ip_vs_twos_schedule`.
fn two_choices(loads: &[Load], random: [u64; 2]) -> Option<usize> {
    let total: u64 = loads.iter().filter(|load| load.eligible()).map(|load| u64::from(load.weight)).sum();
    let drawn = |random: u64| {
        let mut rest = (random % (total + 1)) as i64;
        loads.iter().enumerate().filter(|(_, load)| load.eligible()).find_map(|(index, load)| {
            rest -= i64::from(load.weight);
            (rest <= 0).then_some(index)
        })
    };
    let (first, second) = (drawn(random[0])?, drawn(random[1])?);
    let cost = |index: usize, other: usize| u64::from(loads[other].weight) * loads[index].overhead();
    Some(if cost(first, second) > cost(second, first) { second } else { first })
}

#[cfg(test)]
mod tests {
    use Scheduler::{Fo, Lc, Nq, Ovf, Sed, Twos, Wlc};

    use super::*;

    /// (weight, active, inactive) in the order of addition, as IPVS walks them: last added first.
    fn loads(of: &[(u32, u32, u32)]) -> Vec<Load> {
        let load = |&(weight, active, inactive)| Load { weight, active, inactive, overloaded: false };
        of.iter().rev().map(load).collect()
    }

    /// The letter of the choice, A having been added first.
    fn chosen(scheduler: Scheduler, loads: &[Load]) -> char {
        pick(scheduler, loads, [0; 2]).map_or('-', |index| letter(loads, index))
    }

    fn letter(loads: &[Load], index: usize) -> char {
        char::from(b'A' + (loads.len() - 1 - index) as u8)
    }

    #[test]
    fn golden_choices_of_ipvs() {
        let busy = loads(&[(1, 3, 0), (2, 5, 600), (4, 11, 0)]);
        let idle = loads(&[(1, 0, 0), (1, 0, 0)]);
        for (scheduler, of_busy, of_idle) in
            [(Lc, 'A', 'B'), (Wlc, 'C', 'B'), (Sed, 'C', 'B'), (Nq, 'C', 'B'), (Fo, 'C', 'B')]
        {
            assert_eq!(chosen(scheduler, &busy), of_busy, "{scheduler:?}");
            assert_eq!(chosen(scheduler, &idle), of_idle, "{scheduler:?}");
        }
    }

    #[test]
    fn nobody_is_asked_who_has_no_weight_or_is_overloaded() {
        let mut servers = loads(&[(1, 9, 9), (0, 0, 0), (5, 0, 0)]);
        servers[0].overloaded = true;
        for scheduler in [Lc, Wlc, Sed, Nq, Fo, Twos] {
            assert_eq!(chosen(scheduler, &servers), 'A', "{scheduler:?}");
        }
        assert_eq!(chosen(Ovf, &servers), '-', "nine are more than a weight of one");
        for scheduler in [Lc, Wlc, Sed, Nq, Fo, Ovf, Twos] {
            assert_eq!(chosen(scheduler, &loads(&[(0, 0, 0)])), '-', "{scheduler:?}");
            assert_eq!(chosen(scheduler, &[]), '-', "{scheduler:?}");
        }
    }

    #[test]
    fn never_queue_prefers_an_idle_server_even_a_light_one() {
        assert_eq!(chosen(Nq, &loads(&[(1, 0, 700), (100, 1, 0)])), 'A');
        assert_eq!(chosen(Sed, &loads(&[(1, 0, 700), (100, 1, 0)])), 'B');
    }

    #[test]
    fn overflow_goes_to_the_next_weight_when_a_server_has_more_than_its_own() {
        assert_eq!(chosen(Ovf, &loads(&[(3, 0, 0), (5, 5, 0)])), 'B', "five is not above five");
        assert_eq!(chosen(Ovf, &loads(&[(3, 0, 0), (5, 6, 0)])), 'A');
        assert_eq!(chosen(Ovf, &loads(&[(3, 4, 0), (5, 6, 0)])), '-');
    }

    #[test]
    fn of_two_draws_the_less_loaded_wins_and_of_equals_the_first() {
        // Walked B (weight 2) then A (weight 1): a draw of 0, 1 or 2 is B, of 3 is A.
        let servers = loads(&[(1, 1, 0), (2, 4, 0)]);
        let of = |random| pick(Twos, &servers, random).map(|index| letter(&servers, index));
        assert_eq!(of([0, 3]), Some('A'), "4/2 is more than 1/1");
        assert_eq!(of([0, 2]), Some('B'), "both draws are B");
        let equal = loads(&[(1, 2, 0), (2, 4, 0)]);
        assert_eq!(pick(Twos, &equal, [1, 3]).map(|index| letter(&equal, index)), Some('B'));
        assert_eq!(pick(Twos, &equal, [3, 1]).map(|index| letter(&equal, index)), Some('A'));
    }

    #[test]
    fn an_address_keeps_its_server_until_that_is_crowded_and_somebody_is_not() {
        let mut servers = loads(&[(4, 5, 0), (4, 9, 0)]);
        assert_eq!(locality(&servers, None), Some(1), "least loaded: A");
        assert_eq!(locality(&servers, Some(0)), Some(0), "crowded, but nobody is half idle");
        servers[1].active = 1;
        assert_eq!(locality(&servers, Some(0)), Some(1));
        servers[0].active = 4;
        assert_eq!(locality(&servers, Some(0)), Some(0), "not above its weight");
        servers[0].weight = 0;
        assert_eq!(locality(&servers, Some(0)), Some(1));
    }

    #[test]
    fn a_crowded_set_is_joined_by_the_least_loaded_of_all() {
        let servers = loads(&[(4, 1, 0), (4, 6, 0), (4, 9, 0)]);
        assert_eq!(replicated_locality(&servers, &[1]), Some((2, true)));
        assert_eq!(replicated_locality(&servers, &[1, 2]), Some((2, false)));
        assert_eq!(replicated_locality(&servers, &[]), Some((2, true)));
        let busy = loads(&[(4, 3, 0), (4, 6, 0)]);
        assert_eq!(replicated_locality(&busy, &[0]), Some((0, false)), "nobody is half idle");
    }

    #[test]
    fn numbers_at_their_ends_do_not_overflow() {
        let most = Load { weight: 65_535, active: u32::MAX, inactive: u32::MAX, overloaded: false };
        for scheduler in [Lc, Wlc, Sed, Nq, Fo, Twos] {
            assert!(pick(scheduler, &[most, most], [u64::MAX; 2]).is_some(), "{scheduler:?}");
        }
    }
}
