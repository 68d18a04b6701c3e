//! Health checks, and how the monitor fares with them.

use std::collections::BTreeSet;
use std::fmt;

use prometheus_client::registry::Unit;

use super::families::{Families, Labels};
use super::{CheckFacts, Probing};

pub fn write(to: &mut Families<'_>, probing: &Probing, checks: &[CheckFacts]) -> Result<(), fmt::Error> {
    let lanes = || probing.lanes.iter().map(|lane| ([("kind", lane.kind)], lane));
    to.gauges(
        "checks",
        "Health checks, each once however many services share it, by the kind of which each has room of its own.",
        lanes().map(|(labels, lane)| (labels, lane.checks)),
    )?;
    to.gauges("checks_running", "Probes under way.", lanes().map(|(labels, lane)| (labels, lane.running)))?;
    to.gauges(
        "check_stretch",
        "By how much all intervals are longer than asked for, since not everything can be probed in time; 1 is well.",
        lanes().map(|(labels, lane)| (labels, lane.stretch)),
    )?;
    to.counter("check_probes", "Probes begun.", probing.begun)?;
    let results = [([("result", "passed")], probing.passed), ([("result", "failed")], probing.failed)];
    to.counters("check_results", "Outcomes of probes.", None, results)?;
    // Two checks of a server that differ in their times only are alike by their labels: the first is told.
    let mut told = BTreeSet::new();
    let checks: Vec<&CheckFacts> = checks.iter().filter(|check| told.insert(labels(check))).collect();
    to.gauges(
        "check_up",
        "1: the check passes, as believed after `rise` and `fall`; none before its first outcome.",
        checks.iter().filter_map(|check| Some((labels(check), u32::from(check.up?)))),
    )?;
    to.gauges_in(
        "check_latency",
        "How long the check's connections took, smoothed.",
        Some(&Unit::Seconds),
        checks.iter().filter_map(|check| Some((labels(check), check.latency?))),
    )
}

fn labels(check: &CheckFacts) -> Labels<'_, 4> {
    let CheckFacts { service, server, check, target, .. } = check;
    [("service", service.as_str()), ("real_server", server), ("check", check), ("target", target)]
}
