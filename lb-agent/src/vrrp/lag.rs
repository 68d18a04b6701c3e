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
    fn a_timer_that_is_early_is_not_late() {
        let now = Instant::now();
        let mut lag = Lag::new(now);
        lag.fired(now, now + Duration::from_secs(1));
        assert_eq!(lag.most, Duration::ZERO);
    }
}
