//! Who of one service's real servers takes new connections, with which weight, and why not. Pure: what is
//! believed of the checks goes in, a [`Judgement`] comes out.

use std::time::{Duration, Instant};

use super::passive::Probation;
use super::state::{Machine, Weighing};
use crate::model::health::{Flows, OnFailure, OnServerDown, Policy, Quorum, Require};
use crate::model::{Protocol, ServerKey, VirtualService};

/// One service's servers, and what must be remembered of them between two judgements.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    members: Vec<Member>,
    quorum: Option<bool>,
}

#[derive(Debug, Clone)]
struct Member {
    key: ServerKey,
    standing: Option<Standing>,
    since: Instant,
    /// Checks or the operator had taken it out.
    was_out: bool,
    /// When it began to come back.
    ramp: Option<Instant>,
    /// What its latency makes of its weight, in thousandths, and since when.
    latency: Option<(u32, Instant)>,
}

/// What is known of one server at this moment.
pub struct Known<'a> {
    pub key: ServerKey,
    pub weight: u16,
    pub standby: u8,
    /// One per check.
    pub checks: Vec<&'a Machine>,
    /// The operator has taken it out.
    pub disabled: bool,
    /// The weight the operator gave it while running.
    pub override_weight: Option<u16>,
    /// It is in doubt for how it answers new connections.
    pub probation: Option<&'a Probation>,
}

/// How a server stands. All but [`Standing::In`] take no new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    In,
    /// Fails its checks, and is in because too many do.
    Panic,
    /// Nothing is known of it yet.
    Waiting,
    Failed,
    /// Passes its checks, and new connections show that something is wrong.
    Probation,
    /// Its agent asks for no more connections.
    Draining,
    /// The operator has taken it out.
    Disabled,
    /// Well, and not needed.
    Standby,
    /// Well, but too few are: the sorry server stands in.
    NoQuorum,
    /// A probe, or the operator, gives it weight 0. A weight of 0 in the manifest is the scheduler's matter.
    Weightless,
}

impl Standing {
    pub fn takes_new(self) -> bool {
        matches!(self, Standing::In | Standing::Panic)
    }
}

/// The verdict on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerVerdict {
    pub key: ServerKey,
    pub standing: Standing,
    /// Since when it stands so.
    pub since: Instant,
    /// Effective weight in thousandths; 0 unless it takes new connections.
    pub weight: u32,
    /// Its place in the table, in thousandths: that of a server which is out is the one it has when it is in.
    pub place: u32,
    pub flows: Flows,
    /// Why it is out, or is not quite what its manifest says; empty otherwise.
    pub reason: String,
}

/// The verdict on a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// In the order of the manifest.
    pub servers: Vec<ServerVerdict>,
    /// The sorry server takes all new connections.
    pub sorry: bool,
    /// Whether the quorum holds.
    pub quorum: bool,
    /// The weight that is alive.
    pub live: u32,
    /// The quorum's weight.
    pub needed: u32,
    /// When time alone changes it again.
    pub again: Option<Instant>,
}

impl Judgement {
    /// What slot tables and destinations depend on: without words and times.
    pub fn effect(&self) -> (bool, Vec<(bool, u32, Flows)>) {
        let of = |server: &ServerVerdict| (server.standing.takes_new(), server.place, server.flows);
        (self.sorry, self.servers.iter().map(of).collect())
    }

    /// Weights for the scheduler, in the order of the servers: also of those that are out, whose places in a hash
    /// table others fill.
    pub fn weights(&self) -> Vec<u16> {
        scaled(&self.servers.iter().map(|server| server.place).collect::<Vec<_>>())
    }
}

/// A server's checks taken together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    Passing,
    Waiting,
    Failing,
}

impl Pool {
    /// Whether the server took new connections at the last judgement.
    pub fn took_new(&self, key: &ServerKey) -> bool {
        let member = self.members.iter().find(|member| member.key == *key);
        member.and_then(|member| member.standing).is_some_and(Standing::takes_new)
    }

    /// Judges every server of the service. `known` has them in the order of the manifest.
    pub fn judge(&mut self, now: Instant, service: &VirtualService, known: &[Known<'_>]) -> Judgement {
        let policy = &service.health;
        self.follow(now, known);
        let checked: Vec<Checked> = known.iter().map(|known| checked(policy.require, known)).collect();
        let panic = panics(policy, known, &checked);

        let base: Vec<u32> = known.iter().map(base_weight).collect();
        let well: Vec<bool> = known.iter().zip(&checked).map(|(k, c)| well(k, *c)).collect();
        let live = sum(&base, &well);
        let quorum = policy.quorum.holds(live, self.quorum);
        self.quorum = Some(quorum);
        let sorry = !quorum && policy.sorry_server.is_some();

        let open: Vec<bool> = (0..known.len())
            .map(|i| well[i] || panic && checked[i] == Checked::Failing && !known[i].disabled)
            .collect();
        let highest_standby = needed_standby(policy.quorum, known, &base, &open);
        let mut again = None;
        let mut servers = Vec::with_capacity(known.len());
        for (i, known) in known.iter().enumerate() {
            let standing = if known.disabled {
                Standing::Disabled
            } else if !open[i] && checked[i] == Checked::Passing {
                Standing::Probation
            } else if !open[i] {
                out_standing(checked[i])
            } else if is_draining(known) {
                Standing::Draining
            } else if sorry {
                Standing::NoQuorum
            } else if known.standby > highest_standby {
                Standing::Standby
            } else if base[i] == 0 && known.weight > 0 {
                Standing::Weightless
            } else if !well[i] {
                Standing::Panic
            } else {
                Standing::In
            };
            let factor = self.factor(i, now, policy, known, standing, &mut again);
            let member = &mut self.members[i];
            if member.standing != Some(standing) {
                (member.standing, member.since) = (Some(standing), now);
            }
            let takes_new = standing.takes_new();
            let weight = if takes_new { (base[i] * factor).max(u32::from(base[i] > 0)) } else { 0 };
            servers.push(ServerVerdict {
                key: known.key,
                standing,
                since: member.since,
                weight,
                place: if takes_new { weight } else { u32::from(known.weight) * 1000 },
                flows: flows(service, standing),
                reason: reason(policy, known, standing, factor, live),
            });
        }
        self.damp_latency(now, policy, known, &servers);
        Judgement { servers, sorry, quorum, live, needed: policy.quorum.weight, again }
    }

    /// Members are those of `known`, each with what is remembered of it.
    fn follow(&mut self, now: Instant, known: &[Known<'_>]) {
        if self.members.iter().map(|member| member.key).eq(known.iter().map(|known| known.key)) {
            return;
        }
        let mut before = std::mem::take(&mut self.members);
        self.members = known
            .iter()
            .map(|known| match before.iter().position(|member| member.key == known.key) {
                Some(at) => before.swap_remove(at),
                None => Member {
                    key: known.key,
                    standing: None,
                    since: now,
                    was_out: false,
                    ramp: None,
                    latency: None,
                },
            })
            .collect();
    }

    /// What slow start and latency make of a weight, in thousandths.
    fn factor(
        &mut self,
        index: usize,
        now: Instant,
        policy: &Policy,
        known: &Known<'_>,
        standing: Standing,
        again: &mut Option<Instant>,
    ) -> u32 {
        let member = &mut self.members[index];
        match standing {
            Standing::Failed | Standing::Probation | Standing::Disabled | Standing::Panic => {
                (member.was_out, member.ramp) = (true, None);
            }
            Standing::In if std::mem::take(&mut member.was_out) => {
                member.ramp = policy.slow_start.map(|_| now);
            }
            _ => {}
        }
        let mut factor = 1000;
        if let (Some(begin), Some(whole), Standing::In) = (member.ramp, policy.slow_start, standing) {
            let step = ramp_step(now.saturating_duration_since(begin), whole);
            if step < RAMP_STEPS {
                factor = factor * step.max(1) / RAMP_STEPS;
                let next = begin + whole * (step + 1) / RAMP_STEPS;
                *again = Some(again.map_or(next, |again| again.min(next)));
            } else {
                member.ramp = None;
            }
        }
        if policy.latency_weight.is_some() && !known.checks.is_empty() {
            factor = factor * member.latency.map_or(1000, |(factor, _)| factor) / 1000;
        }
        factor
    }

    /// Moves what latencies make of weights, for the next judgement: not for a difference that may be chance, nor
    /// more often than connections can follow.
    fn damp_latency(
        &mut self,
        now: Instant,
        policy: &Policy,
        known: &[Known<'_>],
        servers: &[ServerVerdict],
    ) {
        let Some(bound) = policy.latency_weight.map(|percent| u32::from(percent) * 10) else { return };
        let of = |i: usize| -> Option<Duration> {
            let takes_new = servers[i].standing.takes_new();
            known[i].checks.iter().filter_map(|check| check.latency()).max().filter(|_| takes_new)
        };
        let mut latencies: Vec<Duration> = (0..known.len()).filter_map(of).collect();
        latencies.sort_unstable();
        let Some(median) = latencies.get(latencies.len() / 2).map(Duration::as_nanos) else { return };
        for (i, member) in self.members.iter_mut().enumerate() {
            let Some(latency) = of(i).map(|latency| latency.as_nanos().max(1)) else { continue };
            let target = u32::try_from(median * 1000 / latency).unwrap_or(u32::MAX);
            let target = target.clamp(1000 - bound.min(1000), 1000 + bound);
            let (current, moved) = member.latency.unwrap_or((1000, now - LATENCY_REST.min(LATENCY_REST)));
            let rested = member.latency.is_none() || now.saturating_duration_since(moved) >= LATENCY_REST;
            if rested && current.abs_diff(target) >= LATENCY_STEP {
                member.latency = Some((target, now));
            }
        }
    }
}

/// A weight per server for the slot table: the thousandths where anybody has a fraction, else the weights
/// themselves, so that a table without fractions is the manifest's.
fn scaled(thousandths: &[u32]) -> Vec<u16> {
    let most = thousandths.iter().copied().max().unwrap_or(0);
    let fits = u32::from(u16::MAX);
    let divisor = match thousandths.iter().all(|weight| weight % 1000 == 0) {
        true => 1000,
        false => most.div_ceil(fits).max(1),
    };
    // Who has a weight keeps one.
    let scale = |weight: &u32| (weight / divisor).max(u32::from(*weight > 0)).min(fits) as u16;
    thousandths.iter().map(scale).collect()
}

fn checked(require: Require, known: &Known<'_>) -> Checked {
    let needed = require.of(known.checks.len());
    let count = |of: fn(&Machine) -> bool| known.checks.iter().filter(|check| of(check)).count();
    let passing = count(|check| check.belief().up());
    let waiting = count(|check| check.belief() == super::state::Belief::Unknown { up: false });
    match passing {
        passing if passing >= needed => Checked::Passing,
        passing if passing + waiting >= needed => Checked::Waiting,
        _ => Checked::Failing,
    }
}

/// Whether checks would take out a larger share of the servers than they may. Those that the operator took out
/// are not counted.
fn panics(policy: &Policy, known: &[Known<'_>], checked: &[Checked]) -> bool {
    let Some(percent) = policy.panic_threshold else { return false };
    let judged = known.iter().zip(checked).filter(|(known, _)| !known.disabled);
    let (all, failing) = judged.fold((0u64, 0u64), |(all, failing), (_, checked)| {
        (all + 1, failing + u64::from(*checked == Checked::Failing))
    });
    failing * 100 > u64::from(percent) * all
}

fn well(known: &Known<'_>, checked: Checked) -> bool {
    checked == Checked::Passing && !known.disabled && !known.probation.is_some_and(|probation| probation.out)
}

fn is_draining(known: &Known<'_>) -> bool {
    known.checks.iter().any(|check| check.is_draining())
}

/// The configured weight, or what the operator or a probe has put in its place. Of several probes the least.
fn base_weight(known: &Known<'_>) -> u32 {
    if is_draining(known) {
        return 0;
    }
    let configured = u32::from(known.override_weight.unwrap_or(known.weight));
    // What the operator took to 0 stays there.
    if configured == 0 || known.override_weight.is_some() {
        return configured;
    }
    let given = known.checks.iter().filter_map(|check| check.weight()).map(|weight| match weight {
        Weighing::Absolute(weight) => u32::from(weight),
        Weighing::Percent(0) => 0,
        Weighing::Percent(percent) => (configured * u32::from(percent) / 100).max(1),
    });
    given.min().map_or(configured, |weight| weight.min(u32::from(u16::MAX)))
}

fn sum(weights: &[u32], of: &[bool]) -> u32 {
    weights.iter().zip(of).filter(|(_, counts)| **counts).map(|(weight, _)| *weight).sum()
}

/// The highest standby number that takes part: as many as it takes to reach the quorum.
fn needed_standby(quorum: Quorum, known: &[Known<'_>], base: &[u32], open: &[bool]) -> u8 {
    let mut numbers: Vec<u8> = known.iter().map(|known| known.standby).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let reached = |number: &u8| {
        let counts: Vec<bool> =
            known.iter().zip(open).map(|(k, open)| *open && k.standby <= *number).collect();
        sum(base, &counts) >= quorum.weight
    };
    numbers.iter().copied().find(reached).or(numbers.last().copied()).unwrap_or(0)
}

fn out_standing(checked: Checked) -> Standing {
    match checked {
        Checked::Waiting => Standing::Waiting,
        _ => Standing::Failed,
    }
}

fn flows(service: &VirtualService, standing: Standing) -> Flows {
    let policy = &service.health;
    match (standing, policy.on_failure) {
        (Standing::Failed, OnFailure::Remove) if service.protocol == Protocol::Udp => Flows::Move,
        (Standing::Failed, OnFailure::Remove) => match policy.on_server_down {
            OnServerDown::Keep => Flows::Keep,
            OnServerDown::Reset => Flows::Reset,
            OnServerDown::Reschedule => Flows::Move,
        },
        (Standing::Probation | Standing::Disabled | Standing::Draining, _) => Flows::Keep,
        _ => Flows::Stay,
    }
}

fn reason(policy: &Policy, known: &Known<'_>, standing: Standing, factor: u32, live: u32) -> String {
    let failing = || {
        let failing: Vec<&&Machine> = known.checks.iter().filter(|check| !check.belief().up()).collect();
        match failing[..] {
            [] => String::new(),
            [check] => check.words(),
            [check, ..] => format!("{} (and {} more)", check.words(), failing.len() - 1),
        }
    };
    let doubt = || match known.probation {
        Some(Probation { tally, window, .. }) => format!("{tally} within {} s", window.as_secs()),
        None => String::new(),
    };
    match standing {
        Standing::In if known.probation.is_some() => format!("in doubt, it is probed: {}", doubt()),
        Standing::In if factor != 1000 => format!("at {} % of its weight", factor.div_ceil(10)),
        Standing::In => String::new(),
        Standing::Panic => format!("in, because too many fail: {}", failing()),
        Standing::Waiting => "waits for its first check".into(),
        Standing::Failed => failing(),
        Standing::Probation => format!("on probation: {}", doubt()),
        Standing::Draining => "its agent asks for no new connections".into(),
        Standing::Disabled => "disabled by the operator".into(),
        Standing::Standby => format!("standby {}, not needed", known.standby),
        Standing::NoQuorum => {
            format!(
                "a weight of {live} is alive, {} is the quorum: the sorry server stands in",
                policy.quorum.weight
            )
        }
        Standing::Weightless => match known.override_weight {
            Some(_) => "weight 0 by the operator".into(),
            None => "weight 0 by its check".into(),
        },
    }
}

/// The step of a linear ramp after `elapsed` of `whole`.
fn ramp_step(elapsed: Duration, whole: Duration) -> u32 {
    let steps = elapsed.as_nanos() * u128::from(RAMP_STEPS) / whole.as_nanos().max(1);
    u32::try_from(steps).unwrap_or(u32::MAX).min(RAMP_STEPS)
}

/// Slow start rebuilds the slot table so many times.
const RAMP_STEPS: u32 = 10;
/// A weight follows a latency that makes a difference of so many thousandths,
const LATENCY_STEP: u32 = 100;
/// and then rests for so long.
const LATENCY_REST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
