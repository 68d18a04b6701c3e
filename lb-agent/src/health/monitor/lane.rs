//! Kinds of checks that have room of their own, so that a kind of which there is too much, or whose targets all hang,
//! holds back no other. Pure.

use crate::model::health::{Check, Grpc, Http, Probe, Smtp};

/// What a check costs, and whom it can delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// TCP connects: a few system calls of the thread that keeps the time.
    Connect,
    /// Conversations without cryptography.
    Clear,
    /// Those with it: a hundred times a connect's time.
    Tls,
    /// Scripts and files: processes, and calls that block.
    Local,
}

impl Lane {
    pub const ALL: [Lane; LANES] = [Lane::Connect, Lane::Clear, Lane::Tls, Lane::Local];

    pub fn of(check: &Check) -> Lane {
        match &check.probe {
            Probe::Tcp => Lane::Connect,
            Probe::Http(Http { tls: Some(_), .. })
            | Probe::Grpc(Grpc { tls: Some(_), .. })
            | Probe::Smtp(Smtp { starttls: Some(_), .. }) => Lane::Tls,
            Probe::Script(_) | Probe::File(_) => Lane::Local,
            _ => Lane::Clear,
        }
    }

    /// For metrics.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Connect => "connect",
            Lane::Clear => "clear",
            Lane::Tls => "tls",
            Lane::Local => "local",
        }
    }

    /// For the operator.
    pub fn words(self) -> &'static str {
        match self {
            Lane::Connect => "tcp checks",
            Lane::Clear => "checks without TLS",
            Lane::Tls => "checks with TLS",
            Lane::Local => "checks by script or file",
        }
    }
}

/// How many lanes there are.
pub const LANES: usize = 4;

/// How many probes of each lane may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rooms([u32; LANES]);

impl Rooms {
    /// Of so many descriptors, of which the rest of the agent needs some. A script takes three, all others one.
    pub fn of(descriptors: u64) -> Rooms {
        let all = descriptors.saturating_sub(RESERVED);
        Rooms(SHARES.map(|(eighths, each)| (all * eighths / 8 / each).clamp(LEAST, MOST) as u32))
    }

    /// Whether one probe more may begin beside `running` ones, `waiting` of which the runtime has not come to yet.
    /// One that begins though there is no time for it would fail by its timeout, and a good server would be taken
    /// out. It waits instead, and the intervals of its lane grow.
    pub fn admit(&self, lane: Lane, running: u32, waiting: usize) -> bool {
        running < self.0[lane as usize] && !is_behind(waiting)
    }
}

/// Whether so many probes that the runtime has not come to are more than it can do.
pub fn is_behind(waiting: usize) -> bool {
    waiting > WAITING_MAX
}

/// Of each lane, in the order of [`Lane::ALL`]: eighths of the descriptors, and how many a probe takes.
const SHARES: [(u64, u64); LANES] = [(3, 1), (2, 1), (2, 1), (1, 3)];
const RESERVED: u64 = 512;
const LEAST: u64 = 8;
const MOST: u64 = 20_000;
const WAITING_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::tests::{check, http};
    use super::*;
    use crate::model::health::{File, Tls};
    use std::time::Duration;

    #[test]
    fn a_lane_that_is_full_or_behind_leaves_the_others_their_room() {
        let rooms = Rooms::of(65_536);
        for full in Lane::ALL {
            let room = rooms.0[full as usize];
            assert!(rooms.admit(full, room - 1, WAITING_MAX), "{full:?}");
            assert!(!rooms.admit(full, room, 0), "{full:?} is full");
            assert!(!rooms.admit(full, 0, WAITING_MAX + 1), "{full:?} is behind");
            for other in Lane::ALL.into_iter().filter(|other| *other != full) {
                assert!(rooms.admit(other, 0, 0), "{other:?} beside {full:?}");
            }
        }
    }

    #[test]
    fn all_lanes_together_keep_within_the_descriptors() {
        for descriptors in [0, 1024, 4096, 20_000, 65_536, 1 << 20] {
            let Rooms(most) = Rooms::of(descriptors);
            let taken: u64 = most.iter().zip(SHARES).map(|(room, (_, each))| u64::from(*room) * each).sum();
            // The least room is given whatever the limit is.
            let allowed = descriptors.saturating_sub(RESERVED).max(SHARES.iter().map(|s| s.1 * LEAST).sum());
            assert!(taken <= allowed, "{taken} of {descriptors}");
        }
        assert_eq!(Rooms::of(65_536).0, [20_000, 16_256, 16_256, 2_709]);
    }

    #[test]
    fn cryptography_and_processes_are_apart_from_the_rest() {
        let lane = |probe| Lane::of(&check(probe, Duration::from_secs(1)));
        let secure = |tls: bool| tls.then(Tls::default);
        for tls in [false, true] {
            let expected = if tls { Lane::Tls } else { Lane::Clear };
            let Probe::Http(plain) = http() else { panic!("http() is a probe by http") };
            assert_eq!(lane(Probe::Http(Http { tls: secure(tls), ..plain })), expected);
            assert_eq!(lane(Probe::Grpc(Grpc { tls: secure(tls), ..Grpc::default() })), expected);
            assert_eq!(lane(Probe::Smtp(Smtp { helo: None, starttls: secure(tls) })), expected);
        }
        assert_eq!(lane(Probe::Tcp), Lane::Connect);
        assert_eq!(lane(Probe::Icmp(Default::default())), Lane::Clear);
        assert_eq!(lane(Probe::File(File { path: "/run/weight".into() })), Lane::Local);
    }
}
