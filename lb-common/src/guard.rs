//! What keeps the tables usable under a flood: limits that the agent sets, and what each CPU counts against them.

/// The agent's limits: one record, each word written by itself while packets read it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Guard {
    /// New flows a second and CPU above which hash services of DR and TUN make no entries; 0 is no limit.
    pub new_flows: u32,
    /// SYNs a second and CPU above which services whose [`crate::service::Cookies`] say `Auto` answer with SYN
    /// cookies; 0 is never.
    pub cookies_above: u32,
    /// Spare; zero.
    pub reserved: [u64; 7],
}

/// What one CPU counted in this second.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Pace {
    /// Jiffies at which the second began.
    pub since: u64,
    /// Flows that were placed in it, or would have been.
    pub new_flows: u32,
    /// SYNs in it that began a flow of a service that can answer with cookies.
    pub syns: u32,
}

impl Pace {
    /// Takes notice of the time: every second begins at nothing.
    #[inline(always)]
    pub fn tick(&mut self, now: u64, hz: u32) {
        if now.wrapping_sub(self.since) >= hz as u64 {
            *self = Self { since: now, ..Self::default() };
        }
    }

    /// One more flow. Whether it is beyond the limit.
    #[inline(always)]
    pub fn one_more_flow(&mut self, limit: u32) -> bool {
        self.new_flows = self.new_flows.saturating_add(1);
        limit != 0 && self.new_flows > limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn records_have_the_sizes_that_the_program_was_built_with() {
        assert_eq!((size_of::<Guard>(), size_of::<Pace>()), (64, 16));
    }

    #[test]
    fn a_second_has_so_many_flows_and_the_next_one_as_many_again() {
        let mut pace = Pace::default();
        for second in 1..4u64 {
            pace.tick(second * 250, 250);
            let beyond: Vec<bool> = (0..5).map(|_| pace.one_more_flow(3)).collect();
            assert_eq!(beyond, [false, false, false, true, true], "second {second}");
            pace.tick(second * 250 + 249, 250);
            assert!(pace.one_more_flow(3), "the second is not over");
        }
        assert!(!Pace { new_flows: u32::MAX, ..Pace::default() }.one_more_flow(0), "0 is no limit");
    }
}
