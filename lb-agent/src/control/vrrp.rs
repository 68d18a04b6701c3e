//! VRRP instances as the API shows them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One instance as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VrrpView {
    pub name: String,
    /// `initialize`, `backup`, `master` or `fault`.
    pub role: String,
    /// Why, as the last change said.
    pub reason: String,
    /// Since when, RFC 3339, and for how many seconds.
    pub since: String,
    pub for_seconds: u64,
    pub interface: String,
    pub vrid: u8,
    /// 2 or 3.
    pub version: u8,
    /// What advertisements carry, after weights.
    pub priority: u8,
    pub base_priority: u8,
    /// What is added to the base priority.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, i32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// Whether this director could serve what it would take over.
    pub ready: bool,
    /// It was handed over, and is not taken back from whoever has it.
    #[serde(default)]
    pub yielded: bool,
    /// What advertisements come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Who is master: None while that is not known. Our own address where it is this director.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_priority: Option<u8>,
    /// Milliseconds; the master's, which backups adopt in version 3.
    pub interval_ms: u64,
    pub configured_interval_ms: u64,
    /// `takes over` or `advertises`, and in how many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer: Option<TimerView>,
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerView>,
    /// In what peers differ from us.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mismatches: Vec<MismatchView>,
    /// By kind, those that counted something.
    pub counters: BTreeMap<String, u64>,
    /// What the data plane makes of it: `none` (there is no lease), `backup`, `master for 2.9 s`, `expired`.
    pub lease: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

impl VrrpView {
    /// What is not as it should be, a sentence each.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = self.problems.clone();
        complaints.extend(self.faults.iter().map(|fault| format!("fault: {fault}")));
        complaints.extend(self.mismatches.iter().map(|mismatch| {
            let refused = match (mismatch.refused, self.role.as_str()) {
                (true, "master") => "; its advertisements are refused, so both may be master",
                (true, _) => "; its advertisements are refused",
                (false, _) => "",
            };
            let MismatchView { peer, field, ours, theirs, .. } = mismatch;
            format!("peer {peer} differs in {field}: {theirs}, ours is {ours}{refused}")
        }));
        complaints
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimerView {
    pub what: String,
    pub in_ms: u64,
}

/// Another director of the virtual router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    pub address: IpAddr,
    /// Milliseconds since it was heard.
    pub heard_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
}

/// One thing in which a peer differs from us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MismatchView {
    pub peer: IpAddr,
    /// As the manifest calls it.
    pub field: String,
    pub ours: String,
    pub theirs: String,
    /// Its advertisements are refused for it, so both may be master.
    pub refused: bool,
}

/// All instances, and the thread that serves them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VrrpOverview {
    pub instances: Vec<VrrpView>,
    pub scheduling: SchedulingView,
}

/// How late the thread's timers fire.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulingView {
    pub real_time: bool,
    /// Why it has no real-time priority; empty where it has.
    #[serde(default)]
    pub reason: String,
    pub timers: u64,
    /// Microseconds: the last, the most of the last minutes, and the most since the start.
    pub last_lag_us: u64,
    pub recent_lag_us: u64,
    pub most_lag_us: u64,
    pub mean_lag_us: u64,
    /// Of all timers together.
    #[serde(default)]
    pub total_lag_us: u64,
    /// How many were how late.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lag_buckets: Vec<LagBucket>,
}

/// Timers that were later than the bucket before says, and at most so late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LagBucket {
    /// Microseconds; none: any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to_us: Option<u64>,
    pub timers: u64,
}

impl SchedulingView {
    /// What a host whose timers fire as late as lately means for an instance: others take over from a master that is
    /// late by two intervals and a skew, so one is the time to say so.
    pub fn complaint(&self, view: &VrrpView) -> Option<String> {
        let (late, interval) = (self.recent_lag_us, view.configured_interval_ms);
        (interval > 0 && late >= interval * 1000).then(|| {
            format!(
                "timers were up to {} ms late in the last minutes, and others take over from a master that is {} ms late: \
                 this host needs a longer advertisementInterval, or a kernel that preempts (preempt=full)",
                late / 1000,
                2 * interval
            )
        })
    }
}

/// What became of a handover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandoverView {
    pub instance: String,
    /// Who is master now.
    pub to: IpAddr,
    /// Milliseconds from our goodbye to the other's first advertisement. This director served until then.
    pub took_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_that_refuses_a_peer_is_told_that_it_may_not_be_the_only_one() {
        let mismatch = |refused| MismatchView {
            peer: "10.0.0.2".parse().unwrap(),
            field: "version".into(),
            ours: "3".into(),
            theirs: "2".into(),
            refused,
        };
        let view = |role: &str, refused| VrrpView {
            role: role.into(),
            mismatches: vec![mismatch(refused)],
            ..VrrpView::default()
        };
        let said = |role, refused| view(role, refused).complaints().concat();
        assert!(
            said("master", true).ends_with("are refused, so both may be master"),
            "{}",
            said("master", true)
        );
        assert!(said("backup", true).ends_with("are refused"));
        assert!(said("master", false).ends_with("ours is 3"));
    }

    #[test]
    fn timers_that_are_later_than_an_interval_are_complained_of() {
        let view = |configured_interval_ms| VrrpView { configured_interval_ms, ..VrrpView::default() };
        let late =
            SchedulingView { recent_lag_us: 34_200, most_lag_us: 500_000, ..SchedulingView::default() };
        let said = late.complaint(&view(30)).unwrap();
        assert!(said.contains("up to 34 ms late") && said.contains("60 ms late"), "{said}");
        assert_eq!(late.complaint(&view(100)), None, "what was long ago does not count");
    }
}
