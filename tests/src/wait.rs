//! Waiting for something to become true, with a deadline and a sentence for the day it does not.

use std::time::{Duration, Instant};

/// How often a condition is looked at. Short against everything a test waits for.
const POLL: Duration = Duration::from_millis(10);

/// Polls `condition` until it holds; panics at the caller's line with `what` after `deadline`.
#[track_caller]
pub fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    if !holds_within(deadline, &mut condition) {
        panic!("waited {deadline:?} in vain until {what}");
    }
}

/// Polls `attempt` until it answers with a value; panics at the caller's line with `what` after `deadline`.
#[track_caller]
pub fn until_some<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    until(what, deadline, || {
        found = attempt();
        found.is_some()
    });
    found.expect("until returned, so the condition held")
}

/// Polls `condition`; says whether it came to hold before `deadline`. It is looked at once at least.
pub fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_to_hold_ends_the_wait_early() {
        let mut looks = 0;
        let start = Instant::now();
        until("three looks were taken", Duration::from_secs(60), || {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    #[should_panic(expected = "in vain until pigs fly")]
    fn a_condition_that_never_holds_panics_with_its_sentence() {
        until("pigs fly", Duration::from_millis(30), || false);
    }
}
