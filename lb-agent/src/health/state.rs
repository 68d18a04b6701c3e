//! What is believed of one check: outcomes in, transitions out. Pure.

use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::model::health::{Check, Target};

/// The identity of a probe: its target and its parameters. All services that name the same share one. The same
/// over restarts of the agent and on every director.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(u128);

impl CheckId {
    pub fn of(target: &Target, check: &Check) -> CheckId {
        // Of the written form: derived hashes may change with the compiler.
        let written = serde_json::to_string(&(target, check)).expect("plain data");
        let mut hasher = SipHasher13::new_with_keys(0x6c62_2f68_6561_6c74, 0x6863_6865_636b_6964);
        hasher.write(written.as_bytes());
        CheckId(hasher.finish128().as_u128())
    }
}

impl fmt::Display for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for CheckId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What the monitor is to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub id: CheckId,
    pub target: Target,
    pub check: Arc<Check>,
}

/// What one probe has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub passed: bool,
    /// For the operator: `connect to 10.0.0.12:80: connection refused`, `status 200 in 3 ms`.
    pub words: Arc<str>,
    /// How long the connection took, or where there is none the whole probe. None where nothing answered.
    pub latency: Option<Duration>,
    /// From a dynamic script, a file or an agent; None leaves what was said before.
    pub weight: Option<Weighing>,
    /// From an agent; None leaves what was said before.
    pub order: Option<Order>,
}

/// The weight that a probe gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighing {
    Absolute(u16),
    /// Of the configured weight.
    Percent(u16),
}

/// What a server's agent asks for beside being up (a success) or down (a failure).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// No new connections; what is established goes on.
    Drain,
    /// The opposite. `up` and `ready` say so.
    Ready,
}

/// An outcome on its way from the monitor.
#[derive(Debug, Clone)]
pub struct Report {
    pub id: CheckId,
    pub outcome: Outcome,
    /// When the outcome was known.
    pub at: Instant,
    /// When the next probe begins, as long as the pace stays.
    pub next: Instant,
}

/// Which of its intervals a check has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// [`crate::model::health::Timing::interval`].
    Normal,
    /// [`crate::model::health::Timing::fast_interval`].
    Fast,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::health::{Path, Probe, Timing};

    fn check(probe: Probe) -> Check {
        Check {
            probe,
            address: None,
            port: None,
            source: None,
            interface: None,
            mark: None,
            path: Some(Path::Direct),
            timing: Timing::default(),
        }
    }

    #[test]
    fn the_identity_is_of_target_and_parameters_and_lasts() {
        let target = |port| Target::Direct { address: "10.0.0.12".parse().unwrap(), port };
        let id = CheckId::of(&target(80), &check(Probe::Tcp));
        assert_eq!(id, CheckId::of(&target(80), &check(Probe::Tcp)));
        assert_ne!(id, CheckId::of(&target(81), &check(Probe::Tcp)));
        assert_ne!(id, CheckId::of(&target(80), &check(Probe::Icmp(Default::default()))));
    }
}
