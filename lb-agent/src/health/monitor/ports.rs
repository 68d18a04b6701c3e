//! How many probes a second one VIP and port has room for on the real path, where each probe leaves from a port of this
//! director's for as long as its connection lasts (`lb_common::probe`). Beyond it the intervals of that VIP's checks
//! grow, for a probe that finds no port would fail though its server is well. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::health::Assignment;
use crate::model::health::{Check, Target};

/// Checks that share ports: those of one VIP, port and transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    pub vip: IpAddr,
    pub port: u16,
    pub udp: bool,
}

/// A group that is asked for more than there is room for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crowd {
    pub group: Group,
    pub checks: u32,
    /// By how much their intervals are longer than asked for.
    pub stretch: f64,
}

/// The groups that are crowded.
#[derive(Debug, Default)]
pub struct Crowds(HashMap<Group, Crowd>);

impl Crowds {
    /// Of all that is probed.
    pub fn of(assignments: &[Assignment]) -> Crowds {
        let mut wanted: HashMap<Group, (u32, f64)> = HashMap::new();
        for Assignment { target, check, .. } in assignments {
            let Some(group) = Group::of(target, check) else { continue };
            let (checks, rate) = wanted.entry(group).or_default();
            *checks += 1;
            *rate += 1.0 / check.timing.interval.as_secs_f64().max(0.001);
        }
        let crowds = wanted.into_iter().filter_map(|(group, (checks, rate))| {
            let stretch = rate / group.room();
            (stretch > 1.01).then_some((group, Crowd { group, checks, stretch }))
        });
        Crowds(crowds.collect())
    }

    /// By how much the check's intervals are longer; 1 where there is room, and off the real path.
    pub fn stretch(&self, target: &Target, check: &Check) -> f64 {
        let crowd = Group::of(target, check).and_then(|group| self.0.get(&group));
        crowd.map_or(1.0, |crowd| crowd.stretch)
    }

    /// The one that is stretched most.
    pub fn worst(&self) -> Option<Crowd> {
        self.0.values().copied().max_by(|a, b| {
            // Equal ones by name, so that what is told does not change.
            a.stretch.total_cmp(&b.stretch).then_with(|| b.group.cmp(&a.group))
        })
    }
}

impl Group {
    fn of(target: &Target, check: &Check) -> Option<Group> {
        match *target {
            Target::Real { vip, port, .. } => Some(Group { vip, port, udp: check.probe.speaks_udp() }),
            Target::Direct { .. } => None,
        }
    }

    /// Probes a second: the ports over the longest that a server which does not answer keeps one, three seconds and more
    /// of TCP (a SYN and another one second later), ten of UDP.
    fn room(self) -> f64 {
        if self.udp { 400.0 } else { 1200.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::tests::check;
    use super::*;
    use crate::health::CheckId;
    use crate::model::Forwarding;
    use crate::model::health::Probe;

    fn assignment(vip: u8, server: u32, interval: Duration) -> Assignment {
        let target = Target::Real {
            vip: [203, 0, 113, vip].into(),
            port: 80,
            server: IpAddr::V4((0x0a40_0000 + server).into()),
            method: Forwarding::Dr,
        };
        let check = check(Probe::Tcp, interval);
        Assignment { id: CheckId::of(&target, &check), target, check: Arc::new(check) }
    }

    #[test]
    fn a_crowded_vip_is_stretched_and_no_other() {
        let second = Duration::from_secs(1);
        let mut all: Vec<Assignment> = (0..3000).map(|server| assignment(1, server, second)).collect();
        all.extend((0..1000).map(|server| assignment(2, server, second)));
        all.extend((0..4000).map(|server| assignment(3, server, 5 * second)));
        let direct = Target::Direct { address: [10, 64, 0, 1].into(), port: 80 };
        let crowds = Crowds::of(&all);
        let stretch = |at: usize| crowds.stretch(&all[at].target, &all[at].check);
        assert_eq!((stretch(0), stretch(3000), stretch(4000)), (2.5, 1.0, 1.0));
        assert_eq!(crowds.stretch(&direct, &all[0].check), 1.0);
        let worst = crowds.worst().unwrap();
        assert_eq!((worst.group.vip, worst.checks, worst.stretch), ([203, 0, 113, 1].into(), 3000, 2.5));
        assert_eq!(Crowds::of(&all[3000..]).worst(), None);
    }
}
