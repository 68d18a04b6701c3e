//! How late the VRRP thread's timer fires: the measure of whether this machine can keep its promises. Pure.

use std::time::{Duration, Instant};

/// What was measured.
#[derive(Debug, Clone)]
pub struct Lag {
    /// Timers that fired.
    pub timers: u64,
    /// Their lateness together.
    pub total: Duration,
    pub last: Duration,
    /// Since the start.
    pub most: Duration,
    /// How many fired as late as each of [`BOUNDS`] at most, and not as the one before; the last one has the rest.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// In this window of [`WINDOW`] and in the one before.
    windows: [Duration; 2],
    window_began: Instant,
}

impl Lag {
    pub fn new(now: Instant) -> Lag {
        Lag {
            timers: 0,
            total: Duration::ZERO,
            last: Duration::ZERO,
            most: Duration::ZERO,
            buckets: [0; BOUNDS.len() + 1],
            windows: [Duration::ZERO; 2],
            window_began: now,
        }
    }

    /// A timer that was due at `due` fired at `now`.
    pub fn fired(&mut self, now: Instant, due: Instant) {
        let late = now.saturating_duration_since(due);
        self.turn(now);
        self.timers += 1;
        self.total += late;
        self.last = late;
        self.most = self.most.max(late);
        self.buckets[BOUNDS.partition_point(|bound| *bound < late)] += 1;
        self.windows[0] = self.windows[0].max(late);
    }

    /// The most of the last one to two minutes.
    pub fn recent(&mut self, now: Instant) -> Duration {
        self.turn(now);
        self.windows[0].max(self.windows[1])
    }

    fn turn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.window_began);
        if passed < WINDOW {
            return;
        }
        self.windows = [Duration::ZERO, if passed < 2 * WINDOW { self.windows[0] } else { Duration::ZERO }];
        self.window_began = now;
    }
}

/// Where lateness begins to matter: an interval, or three, of what an instance may have.
pub const BOUNDS: [Duration; 11] = [
    Duration::from_micros(100),
    Duration::from_micros(300),
    Duration::from_millis(1),
    Duration::from_millis(3),
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(60),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
const WINDOW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_the_last_minutes_is_forgotten_and_that_of_all_time_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let late = |lag: &mut Lag, seconds, milliseconds| {
            lag.fired(at(seconds) + Duration::from_millis(milliseconds), at(seconds));
        };
        let mut lag = Lag::new(start);
        late(&mut lag, 1, 30);
        late(&mut lag, 2, 5);
        assert_eq!((lag.recent(at(3)), lag.last), (Duration::from_millis(30), Duration::from_millis(5)));
        assert_eq!(lag.recent(at(70)), Duration::from_millis(30));
        late(&mut lag, 100, 7);
        assert_eq!(lag.recent(at(131)), Duration::from_millis(7));
        assert_eq!(lag.recent(at(1000)), Duration::ZERO);
        assert_eq!((lag.most, lag.timers), (Duration::from_millis(30), 3));
        assert_eq!(lag.total, Duration::from_millis(42));
    }

    #[test]
    fn every_timer_is_in_one_bucket_the_bound_belonging_to_the_lower_one() {
        let now = Instant::now();
        let mut lag = Lag::new(now);
        for late in [0, 99, 100, 101, 30_000, 30_001, 3_000_000, 3_000_001] {
            lag.fired(now + Duration::from_micros(late), now);
        }
        assert_eq!(lag.buckets, [3, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]);
        assert_eq!(lag.buckets.iter().sum::<u64>(), lag.timers);
    }

    #[test]
    fn a_timer_that_is_early_is_not_late() {
        let now = Instant::now();
        let mut lag = Lag::new(now);
        lag.fired(now, now + Duration::from_secs(1));
        assert_eq!(lag.most, Duration::ZERO);
    }
}
