//! What keeps the tables usable under a flood: limits that the agent sets, and what each CPU counts against them.

/// The agent's limits: one record, each word written by itself while packets read it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Guard {
    /// New flows a second and CPU above which hash services of DR and TUN make no entries; 0 is no limit.
    pub new_flows: u32,
    /// SYNs a second and CPU above which services with [`crate::service::features::COOKIES`] answer with SYN cookies; 0
    /// is never.
    pub cookies_above: u32,
    /// The key of SYN cookies.
    pub key: [u64; 2],
    /// Jiffies that had gone by when Unix time began, modulo 2^64: time slices of cookies are those of every director
    /// whose clock is right.
    pub epoch: u64,
    /// When a cookie was sent last, in jiffies; 0 is never. Written by the data plane only.
    pub sent: u64,
    /// Spare; zero.
    pub reserved: [u64; 3],
}

/// For how many seconds a CPU goes on with cookies after the last second that had too many SYNs.
pub const GOES_ON: u64 = 10;

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
    /// Jiffies until which SYNs are answered with cookies, whatever comes.
    pub until: u64,
}

impl Pace {
    /// Takes notice of the time: every second begins at nothing.
    #[inline(always)]
    pub fn tick(&mut self, now: u64, hz: u32) {
        if now.wrapping_sub(self.since) >= hz as u64 {
            *self = Self { since: now, new_flows: 0, syns: 0, until: self.until };
        }
    }

    /// One more SYN. Whether it is to be answered with a cookie.
    #[inline(always)]
    pub fn one_more_syn(&mut self, now: u64, hz: u32, limit: u32) -> bool {
        self.syns = self.syns.saturating_add(1);
        if limit == 0 {
            return false;
        }
        if self.syns > limit {
            self.until = now.wrapping_add(GOES_ON * hz as u64);
            return true;
        }
        (self.until.wrapping_sub(now) as i64) > 0 && self.until != 0
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
        assert_eq!((size_of::<Guard>(), size_of::<Pace>()), (64, 24));
    }

    #[test]
    fn cookies_begin_above_the_limit_and_go_on_for_a_while() {
        let (mut pace, hz) = (Pace::default(), 250u32);
        let mut syns = |second: u64, n: u32, limit: u32| {
            let now = 1000 + second * hz as u64;
            pace.tick(now, hz);
            (0..n).filter(|_| pace.one_more_syn(now, hz, limit)).count()
        };
        assert_eq!(syns(1, 3, 3), 0);
        assert_eq!(syns(2, 5, 3), 2, "the fourth is one too many");
        for later in 3..12 {
            assert_eq!(syns(later, 2, 3), 2, "second {later}");
        }
        assert_eq!(syns(12, 3, 3), 0, "ten seconds of peace");
        assert_eq!(syns(13, 1000, 0), 0, "0 is never");
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
