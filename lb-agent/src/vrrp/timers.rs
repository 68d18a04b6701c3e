//! When things are due: the arithmetic of RFC 3768 and RFC 9568 section 6.1, in whole nanoseconds, so that no
//! skew is ever rounded to nothing.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::model::VrrpVersion;

/// How long a backup lets others of higher priority go first.
///
/// v3: (256 − priority) / 256 of the *master's* interval: that decides when its next advertisement is late
/// (RFC 9568 section 6.1). v2: (256 − priority) / 256 seconds, whatever the interval (RFC 3768 section 6.1).
pub fn skew(version: VrrpVersion, priority: u8, master_interval: Duration) -> Duration {
    let unit = match version {
        VrrpVersion::V2 => Duration::from_secs(1),
        VrrpVersion::V3 => master_interval,
    };
    unit * (256 - u32::from(priority)) / 256
}

/// How long a backup waits for an advertisement before it takes over.
pub fn master_down(version: VrrpVersion, priority: u8, master_interval: Duration) -> Duration {
    patience(master_interval) + skew(version, priority, master_interval)
}

/// The least that any backup waits, whatever its priority: a master that was silent for so long may have been
/// replaced, and what it said before counts no longer.
pub fn patience(master_interval: Duration) -> Duration {
    master_interval * ADVERTS_MISSED
}

/// The interval that backups have after hearing an advertisement that says `heard`: v3 adopts it, v2 has its
/// own, which is the same or the advertisement would have been refused.
pub fn adopt(version: VrrpVersion, own: Duration, heard: Duration) -> Duration {
    match version {
        VrrpVersion::V2 => own,
        VrrpVersion::V3 => heard,
    }
}

/// The interval to announce before a silence of `pause`, so that every backup that adopts it waits at least so
/// long; never shorter than `own`. None: v2 cannot adopt, or the longest interval is too short.
pub fn interval_for_pause(version: VrrpVersion, own: Duration, pause: Duration) -> Option<Duration> {
    if version == VrrpVersion::V2 {
        return None;
    }
    let needed = pause.div_ceil_to_centiseconds(ADVERTS_MISSED).max(own);
    INTERVALS_V3.contains(&needed).then_some(needed)
}

trait Centiseconds {
    /// A `parts`-th, rounded up to what v3 can say.
    fn div_ceil_to_centiseconds(self, parts: u32) -> Duration;
}

impl Centiseconds for Duration {
    fn div_ceil_to_centiseconds(self, parts: u32) -> Duration {
        let centiseconds = self.as_nanos().div_ceil(u128::from(parts) * 10_000_000);
        Duration::from_millis(u64::try_from(centiseconds).unwrap_or(u64::MAX / 10).saturating_mul(10))
    }
}

/// The intervals that a version can have.
pub fn intervals(version: VrrpVersion) -> RangeInclusive<Duration> {
    match version {
        VrrpVersion::V2 => INTERVALS_V2,
        VrrpVersion::V3 => INTERVALS_V3,
    }
}

/// What an interval must be a multiple of.
pub fn granularity(version: VrrpVersion) -> Duration {
    match version {
        VrrpVersion::V2 => Duration::from_secs(1),
        VrrpVersion::V3 => Duration::from_millis(10),
    }
}

/// How many advertisements may be missed.
const ADVERTS_MISSED: u32 = 3;
/// One byte of seconds.
const INTERVALS_V2: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(255);
/// Twelve bits of centiseconds.
const INTERVALS_V3: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(40_950);

#[cfg(test)]
mod tests {
    use super::*;
    use VrrpVersion::{V2, V3};

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_backup_waits_three_intervals_and_its_skew() {
        for (version, priority, interval, microseconds) in [
            (V3, 100, ms(1000), 3_609_375), // keepalived's default
            (V2, 100, ms(1000), 3_609_375),
            (V3, 200, ms(1000), 3_218_750),
            (V3, 100, ms(3000), 10_828_125),
            (V2, 100, ms(3000), 9_609_375), // v2's skew is of a second, not of the interval
            (V3, 254, ms(1000), 3_007_812),
            (V3, 255, ms(1000), 3_003_906),
            (V3, 1, ms(1000), 3_996_093),
            (V3, 100, ms(100), 360_937),
            (V3, 100, ms(10), 36_093),
            (V3, 254, ms(10), 30_078), // not rounded to 30 ms
        ] {
            let down = master_down(version, priority, interval);
            assert_eq!(down.as_micros(), microseconds, "{version:?} {priority} {interval:?}");
        }
    }

    #[test]
    fn no_skew_is_nothing_and_higher_priorities_go_first() {
        for version in [V2, V3] {
            for interval in [ms(10), ms(30), ms(1000), ms(40_950)] {
                for priority in 0..255 {
                    let (this, next) =
                        (skew(version, priority, interval), skew(version, priority + 1, interval));
                    assert!(this > next && !next.is_zero(), "{version:?} {priority} {interval:?}");
                }
            }
        }
    }

    #[test]
    fn only_v3_adopts() {
        assert_eq!(adopt(V3, ms(1000), ms(30)), ms(30));
        assert_eq!(adopt(V2, ms(1000), ms(1000)), ms(1000));
    }

    #[test]
    fn a_pause_is_announced_by_an_interval_whose_threefold_covers_it() {
        for (own, pause, interval) in [
            (ms(30), ms(3000), Some(ms(1000))),
            (ms(30), ms(3001), Some(ms(1010))),
            (ms(1000), ms(2000), Some(ms(1000))),
            (ms(10), Duration::ZERO, Some(ms(10))),
            (ms(10), ms(122_850), Some(ms(40_950))),
            (ms(10), ms(122_851), None),
            (ms(10), Duration::MAX, None),
        ] {
            assert_eq!(interval_for_pause(V3, own, pause), interval, "{own:?} {pause:?}");
        }
        assert_eq!(interval_for_pause(V2, ms(1000), ms(1)), None);
    }
}
