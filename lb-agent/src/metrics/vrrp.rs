//! VRRP: roles, advertisements, peers that differ, and how late timers are.

use std::fmt;

use prometheus_client::registry::Unit;

use super::families::Families;
use crate::control::vrrp::{MismatchView, SchedulingView, VrrpOverview, VrrpView};
use crate::vrrp::events::Role;

pub fn write(to: &mut Families<'_>, overview: &VrrpOverview) -> Result<(), fmt::Error> {
    let VrrpOverview { instances, scheduling } = overview;
    if instances.is_empty() {
        return Ok(());
    }
    to.gauges(
        "vrrp_role",
        "1 with the role that the instance has, 0 with the others.",
        instances.iter().flat_map(|view| {
            Role::ALL.map(|role| ([of(view), ("role", role.name())], u32::from(view.role == role.name())))
        }),
    )?;
    let mut gauges = |name: &str, help: &str, value: fn(&VrrpView) -> u32| {
        to.gauges(name, help, instances.iter().map(|view| ([of(view)], value(view))))
    };
    gauges("vrrp_priority", "What advertisements carry, after weights.", |view| view.priority.into())?;
    gauges("vrrp_base_priority", "The priority of the manifest.", |view| view.base_priority.into())?;
    gauges("vrrp_ready", "1: this director could serve what it would take over.", |view| view.ready.into())?;
    gauges("vrrp_faults", "Faults that keep the instance from taking part.", |view| {
        view.faults.len() as u32
    })?;
    to.gauges_in(
        "vrrp_interval",
        "The interval of advertisements: the master's, which backups adopt in version 3.",
        Some(&Unit::Seconds),
        instances.iter().map(|view| ([of(view)], view.interval_ms as f64 / 1000.0)),
    )?;
    write_counts(to, instances)?;
    write_peers(to, instances)?;
    write_lag(to, scheduling)
}

fn write_counts(to: &mut Families<'_>, instances: &[VrrpView]) -> Result<(), fmt::Error> {
    let count = |view: &VrrpView, kind: &str| view.counters.get(kind).copied().unwrap_or_default();
    to.counters(
        "vrrp_transitions",
        "Changes of the role, by the new one.",
        None,
        instances
            .iter()
            .flat_map(|view| TRANSITIONS.map(|(kind, role)| ([of(view), ("to", role)], count(view, kind)))),
    )?;
    for (name, help, kind) in SINGLE {
        let samples = instances.iter().map(|view| ([of(view)], count(view, kind)));
        to.counters(name, help, None, samples)?;
    }
    // Kinds that are not named elsewhere are those of refusals: a new one shows by itself.
    let of_class = |class: Class| {
        instances.iter().flat_map(move |view| {
            let kinds = view.counters.iter().filter(move |(kind, _)| class_of(kind) == class);
            kinds.map(|(kind, count)| ([of(view), ("kind", kind.as_str())], *count))
        })
    };
    to.counters(
        "vrrp_adverts_refused",
        "Advertisements that were dropped, by what is wrong with them.",
        None,
        of_class(Class::Refusal),
    )?;
    to.counters("vrrp_errors", "Messages that could not be sent or read.", None, of_class(Class::Error))?;
    to.counters(
        "vrrp_incidents",
        "What a healthy virtual router does not have: timers that were too late, second masters, peers that differ.",
        None,
        of_class(Class::Incident),
    )
}

fn write_peers(to: &mut Families<'_>, instances: &[VrrpView]) -> Result<(), fmt::Error> {
    let peers: Vec<(&VrrpView, String, f64)> = instances
        .iter()
        .flat_map(|view| {
            view.peers.iter().map(move |peer| (view, peer.address.to_string(), peer.heard_ms as f64 / 1000.0))
        })
        .collect();
    to.gauges_in(
        "vrrp_peer_heard",
        "How long ago another director was heard.",
        Some(&Unit::Seconds),
        peers.iter().map(|(view, peer, ago)| ([of(view), ("peer", peer.as_str())], *ago)),
    )?;
    let differing: Vec<(&VrrpView, &MismatchView, String)> = instances
        .iter()
        .flat_map(|view| view.mismatches.iter().map(move |other| (view, other, other.peer.to_string())))
        .collect();
    to.gauges(
        "vrrp_peer_mismatch",
        "1 while a peer differs from us in a field; its advertisements are taken all the same, or refused.",
        differing.iter().map(|(view, other, peer)| {
            let effect = if other.refused { "refused" } else { "taken" };
            ([of(view), ("peer", peer.as_str()), ("field", other.field.as_str()), ("adverts", effect)], 1_u32)
        }),
    )
}

fn write_lag(to: &mut Families<'_>, scheduling: &SchedulingView) -> Result<(), fmt::Error> {
    let seconds = |microseconds: u64| microseconds as f64 / 1e6;
    let buckets: Vec<(f64, u64)> = scheduling
        .lag_buckets
        .iter()
        .map(|bucket| (bucket.up_to_us.map_or(f64::INFINITY, seconds), bucket.timers))
        .collect();
    to.histogram(
        "vrrp_timer_lag",
        "How late timers of the VRRP thread fired.",
        seconds(scheduling.total_lag_us),
        &buckets,
    )?;
    to.seconds(
        "vrrp_timer_lag_recent",
        "The most of the last one to two minutes.",
        seconds(scheduling.recent_lag_us),
    )?;
    to.seconds("vrrp_timer_lag_most", "The most since the agent started.", seconds(scheduling.most_lag_us))?;
    to.gauge("vrrp_real_time", "1: the VRRP thread has real-time priority.", u32::from(scheduling.real_time))
}

fn of(view: &VrrpView) -> (&'static str, &str) {
    ("vrrp_instance", view.name.as_str())
}

/// What a kind of an instance's counters is told as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Has a family of its own.
    Named,
    Error,
    Incident,
    Refusal,
}

pub(super) fn class_of(kind: &str) -> Class {
    let single = SINGLE.iter().map(|(_, _, kind)| *kind);
    if single.chain(TRANSITIONS.map(|(kind, _)| kind)).any(|named| named == kind) {
        return Class::Named;
    }
    if ERRORS.contains(&kind) {
        return Class::Error;
    }
    if INCIDENTS.contains(&kind) { Class::Incident } else { Class::Refusal }
}

const TRANSITIONS: [(&str, &str); 4] = [
    ("became_master", "master"),
    ("became_backup", "backup"),
    ("became_fault", "fault"),
    ("stopped", "initialize"),
];
/// Name, meaning, kind.
const SINGLE: [(&str, &str, &str); 3] = [
    ("vrrp_adverts_sent", "Advertisements sent, to each unicast peer one.", "sent"),
    ("vrrp_adverts_received", "Advertisements taken.", "received"),
    ("vrrp_goodbyes_sent", "Advertisements of priority 0 sent.", "sent_priority_0"),
];
const ERRORS: [&str; 3] = ["send_failed", "receive_failed", "unreadable"];
const INCIDENTS: [&str; 6] =
    ["late_timer", "stalled", "mismatch", "own_address", "second_owner", "lower_priority_master"];
