//! What this director may do for the addresses of each VRRP instance: one word an instance, which the data plane
//! reads with every packet. A master's word ends by itself, so that a director whose agent is dead or stalled
//! falls silent before another may take over.

use super::{Clock, Error, Views};
use lb_common::maps::{VRRP_FOREVER, VRRP_INSTANCES, VRRP_MASTER, VRRP_UNTIL, VrrpWord};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// The role of this director in a VRRP instance, as the data plane is to see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VrrpRole {
    /// Packets to its addresses go to the kernel; ARP and neighbour discovery for them are dropped.
    Backup,
    /// Its addresses are served until then. After it they are silent: ARP, neighbour discovery and packets for
    /// them are dropped, whatever the kernel would do with them.
    Master { until: Instant },
    /// Its addresses are served, whatever becomes of the agent.
    MasterWithoutEnd,
}

/// What the data plane makes of a word now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VrrpStanding {
    Backup,
    /// For so long; without an end where it has none.
    Master(Option<Duration>),
    /// A master whose lease ended so long ago.
    Expired(Duration),
}

/// A handle on the words, for any thread: setting one is a read of the kernel's clock and one atomic store.
#[derive(Clone, Debug)]
pub struct VrrpRoles {
    views: Arc<Views>,
    clock: Arc<Clock>,
}

impl VrrpRoles {
    pub(super) fn new(views: Arc<Views>, clock: Arc<Clock>) -> Self {
        Self { views, clock }
    }

    /// Sets the role in an instance ([`super::Tables::set_vrrp`] gave it its number, 1 to 255). Packets see it at
    /// once. On promotion: before the addresses are announced, or the announcement is dropped. On demotion:
    /// before anything else.
    pub fn set(&self, instance: u8, role: VrrpRole) -> Result<(), Error> {
        let jiffies = self.clock.jiffies()?;
        self.set_word(instance, word(role, Instant::now(), jiffies, self.clock.hz()))
    }

    /// Sets a word as it is ([`lb_common::maps::VrrpWord`]).
    pub fn set_word(&self, instance: u8, word: VrrpWord) -> Result<(), Error> {
        if instance == 0 {
            return Err(Error::Refused(format!(
                "VRRP instance 0 is not between 1 and {}",
                VRRP_INSTANCES - 1
            )));
        }
        self.views.vrrp.word(instance.into(), 0).store(word, Ordering::Release);
        Ok(())
    }

    /// What the data plane makes of an instance's word now.
    pub fn standing(&self, instance: u8) -> Result<VrrpStanding, Error> {
        let word = self.views.vrrp.word(instance.into(), 0).load(Ordering::Acquire);
        Ok(standing(word, self.clock.jiffies()?, self.clock.hz()))
    }
}

/// The word of a role. Its end is never later than asked, and earlier by less than two jiffies: what counts is
/// that nobody else can be master before it.
fn word(role: VrrpRole, now: Instant, jiffies: u64, hz: u32) -> VrrpWord {
    match role {
        VrrpRole::Backup => 0,
        VrrpRole::MasterWithoutEnd => VRRP_FOREVER,
        VrrpRole::Master { until } => {
            let left = until.saturating_duration_since(now).as_nanos() * u128::from(hz) / 1_000_000_000;
            VRRP_MASTER | jiffies.wrapping_add(left as u64) & VRRP_UNTIL
        }
    }
}

fn standing(word: VrrpWord, jiffies: u64, hz: u32) -> VrrpStanding {
    if word & VRRP_MASTER == 0 {
        return VrrpStanding::Backup;
    }
    if word == VRRP_FOREVER {
        return VrrpStanding::Master(None);
    }
    // As `forward::may_serve` of the data plane has it: modulo 2^63.
    let past = (jiffies.wrapping_sub(word) << 1) as i64 >> 1;
    let time = Duration::from_nanos(past.unsigned_abs() * (1_000_000_000 / u64::from(hz)));
    if past >= 0 { VrrpStanding::Expired(time) } else { VrrpStanding::Master(Some(time)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u32 = 250;

    #[test]
    fn a_lease_ends_at_its_time_or_a_jiffy_before_never_after() {
        let now = Instant::now();
        for (milliseconds, jiffies) in [(0, 0), (3, 0), (4, 1), (30, 7), (3000, 750), (3003, 750)] {
            let until = now + Duration::from_millis(milliseconds);
            let word = word(VrrpRole::Master { until }, now, 1000, HZ);
            assert_eq!(word, VRRP_MASTER | (1000 + jiffies), "{milliseconds} ms");
        }
        let past = word(VrrpRole::Master { until: now }, now + Duration::from_secs(1), 1000, HZ);
        assert_eq!(standing(past, 1000, HZ), VrrpStanding::Expired(Duration::ZERO), "no time left is none");
    }

    #[test]
    fn a_word_says_what_it_was_made_of() {
        let now = Instant::now();
        let until = now + Duration::from_secs(3);
        // Jiffies start near the end of 32 bits at boot and may pass any bit.
        for jiffies in [0, 4_294_892_296, VRRP_UNTIL - 100, u64::MAX - 100] {
            let word = word(VrrpRole::Master { until }, now, jiffies, HZ);
            let at = |later: u64| standing(word, jiffies.wrapping_add(later), HZ);
            assert_eq!(at(0), VrrpStanding::Master(Some(Duration::from_secs(3))), "{jiffies}");
            assert_eq!(at(749), VrrpStanding::Master(Some(Duration::from_millis(4))), "{jiffies}");
            assert_eq!(at(750), VrrpStanding::Expired(Duration::ZERO), "{jiffies}");
            assert_eq!(at(1000), VrrpStanding::Expired(Duration::from_secs(1)), "{jiffies}");
        }
        assert_eq!(standing(word(VrrpRole::Backup, now, 5, HZ), 9, HZ), VrrpStanding::Backup);
        let without_end = word(VrrpRole::MasterWithoutEnd, now, 5, HZ);
        assert_eq!(standing(without_end, 9, HZ), VrrpStanding::Master(None));
    }

    #[test]
    fn instance_0_is_no_instance() {
        use super::super::Sizes;
        let sizes = Sizes { connections: 14, connections_v6: 0, ..Sizes::default() };
        let views = Views::in_memory(&sizes, Default::default(), sizes.config(HZ, 1)).unwrap();
        let roles = VrrpRoles::new(Arc::new(views), Arc::new(Clock::fixed(1000, HZ)));
        assert!(roles.set(0, VrrpRole::Backup).is_err());
        assert_eq!(roles.standing(7).unwrap(), VrrpStanding::Backup, "nobody wrote it yet");
        roles.set(255, VrrpRole::MasterWithoutEnd).unwrap();
        assert_eq!(roles.standing(255).unwrap(), VrrpStanding::Master(None));
    }
}
