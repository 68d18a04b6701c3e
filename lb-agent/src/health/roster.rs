//! All checks and all pools: which probes must be made, and what their outcomes mean for which services. Pure; the
//! agent carries outcomes in and judgements out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::passive::{Evidence, Probed, Tally, Watcher};
use super::pool::{Judgement, Known, Pool};
use super::saved::Saved;
use super::state::{Assignment, Change, CheckId, Machine, Pace, Report};
use crate::manifest::Objects;
use crate::model::health::Target;
use crate::model::{Name, RealServer, ServerKey, VirtualService};

/// Who is in which pool.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    checks: BTreeMap<CheckId, Checked>,
    services: BTreeMap<Name, Ward>,
    /// Taken out by the operator, and since when.
    disabled: BTreeMap<(Name, ServerKey), Instant>,
    /// Weights that the operator gave while running.
    weights: BTreeMap<(Name, ServerKey), u16>,
    /// Of an earlier run, not asked for yet.
    saved: Saved,
    stale: BTreeSet<Name>,
    errands: Errands,
}

/// What the monitor is to be told, for servers that came on probation or that it ended for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Errands {
    /// Another set of checks.
    pub set: bool,
    pub paces: Vec<(CheckId, Pace)>,
    /// To be made at once.
    pub now: Vec<CheckId>,
}

#[derive(Debug, Clone)]
struct Checked {
    assignment: Assignment,
    machine: Machine,
    users: BTreeSet<Name>,
}

/// A service under the roster's care.
#[derive(Debug, Clone)]
struct Ward {
    service: Arc<VirtualService>,
    /// Per server its checks.
    checks: Vec<Vec<CheckId>>,
    pool: Pool,
    judgement: Arc<Judgement>,
    /// Per server what was seen of its answers to new connections.
    watchers: BTreeMap<ServerKey, Watcher>,
}

impl Ward {
    fn is_doubtful(&self) -> bool {
        self.watchers.values().any(|watcher| watcher.probation().is_some())
    }

    /// Whether one server more may get nothing new for being on probation.
    fn may_put_out(&self) -> bool {
        let Some(rules) = &self.service.health.passive else { return false };
        let is_out = |watcher: &&Watcher| watcher.probation().is_some_and(|probation| probation.out);
        let out = self.watchers.values().filter(is_out).count();
        (out + 1) * 100 <= usize::from(rules.max_share) * self.service.real_servers.len()
    }
}

/// A check of a server, for those who look.
#[derive(Debug, Clone, Copy)]
pub struct CheckOf<'a> {
    pub assignment: &'a Assignment,
    pub machine: &'a Machine,
    /// How many services share the probe.
    pub services: usize,
}

/// What happened to a check, for the log and for events.
#[derive(Debug, Clone)]
pub struct Taken<'a> {
    pub change: Change,
    pub assignment: &'a Assignment,
    pub machine: &'a Machine,
    pub users: &'a BTreeSet<Name>,
}

impl Roster {
    /// Goes on from what an earlier run has left.
    pub fn new(saved: Saved) -> Roster {
        Roster {
            disabled: saved.disabled.clone(),
            weights: saved.weights.clone(),
            saved,
            ..Roster::default()
        }
    }

    /// These are the services now. Returns true when the monitor must be told another set of checks.
    pub fn set<'a>(&mut self, now: Instant, services: impl Iterator<Item = &'a VirtualService>) -> bool {
        let mut gone: BTreeSet<Name> = self.services.keys().cloned().collect();
        let mut changed = Vec::new();
        for service in services {
            gone.remove(&service.name);
            if self.services.get(&service.name).is_none_or(|ward| *ward.service != *service) {
                changed.push(service);
            }
        }
        // First all that is new, so that a check that moves to another service stays the same one.
        let mut left: Vec<(Name, BTreeSet<CheckId>)> = Vec::new();
        let mut other = false;
        for service in changed {
            let before = self.services.remove(&service.name);
            let (ward, new) = self.admit(now, service, before.as_ref());
            other |= new;
            let now_used: BTreeSet<CheckId> = ward.checks.iter().flatten().copied().collect();
            let used: BTreeSet<CheckId> =
                before.iter().flat_map(|ward| ward.checks.iter().flatten()).copied().collect();
            left.push((service.name.clone(), used.difference(&now_used).copied().collect()));
            self.services.insert(service.name.clone(), ward);
            self.stale.insert(service.name.clone());
        }
        for name in gone {
            if let Some(ward) = self.services.remove(&name) {
                left.push((name.clone(), ward.checks.into_iter().flatten().collect()));
            }
            self.stale.remove(&name);
            self.disabled.retain(|(service, _), _| *service != name);
            self.weights.retain(|(service, _), _| *service != name);
        }
        for (name, checks) in left {
            for id in checks {
                if let Some(check) = self.checks.get_mut(&id)
                    && check.users.remove(&name)
                    && check.users.is_empty()
                {
                    self.checks.remove(&id);
                    other = true;
                }
            }
        }
        other
    }

    fn admit(&mut self, now: Instant, service: &VirtualService, before: Option<&Ward>) -> (Ward, bool) {
        let mut new = false;
        let mut watchers = BTreeMap::new();
        let mut checks = Vec::with_capacity(service.real_servers.len());
        for server in &service.real_servers {
            let took_new = before.is_some_and(|ward| ward.pool.took_new(&service.key_of(server)));
            let mut of_server = Vec::new();
            let key = service.key_of(server);
            let watcher = before.and_then(|ward| ward.watchers.get(&key)).cloned();
            let watcher = watcher.filter(|_| service.health.watches(server));
            let asked = match watcher.as_ref().and_then(Watcher::probation) {
                Some(_) => service.health.probation_checks_of(server),
                None => service.health.checks_of(server).to_vec(),
            };
            watchers.extend(watcher.map(|watcher| (key, watcher)));
            for check in &asked {
                let (check, target) = (&check.settled(service, server), check.target(service, server));
                let id = CheckId::of(&target, check);
                let saved = &mut self.saved;
                let checked = self.checks.entry(id).or_insert_with(|| {
                    new = true;
                    let machine = saved.take(&id, check.timing);
                    Checked {
                        assignment: Assignment { id, target, check: Arc::clone(check) },
                        machine: machine.unwrap_or_else(|| Machine::new(check.timing, took_new, now)),
                        users: BTreeSet::new(),
                    }
                });
                checked.users.insert(service.name.clone());
                if !of_server.contains(&id) {
                    of_server.push(id);
                }
            }
            checks.push(of_server);
        }
        let keys: BTreeSet<ServerKey> =
            service.real_servers.iter().map(|server| service.key_of(server)).collect();
        let stays = |(name, key): &(Name, ServerKey)| *name != service.name || keys.contains(key);
        self.disabled.retain(|of, _| stays(of));
        self.weights.retain(|of, _| stays(of));
        let ward = Ward {
            service: Arc::new(service.clone()),
            checks,
            pool: before.map(|ward| ward.pool.clone()).unwrap_or_default(),
            judgement: before.map(|ward| Arc::clone(&ward.judgement)).unwrap_or_default(),
            watchers,
        };
        (ward, new)
    }

    /// Everything the monitor should probe.
    pub fn assignments(&self) -> Vec<Assignment> {
        self.checks.values().map(|check| check.assignment.clone()).collect()
    }

    /// Takes up an outcome. None where nobody asks for that check any more.
    pub fn take(&mut self, report: Report) -> Option<Taken<'_>> {
        let check = self.checks.get_mut(&report.id)?;
        let mut change = check.machine.take(report.at, report.outcome, report.next);
        // One outcome is enough for a server in doubt.
        let doubtful = |user: &Name| self.services.get(user).is_some_and(Ward::is_doubtful);
        change.matters |= check.users.iter().any(doubtful);
        if change.matters {
            self.stale.extend(check.users.iter().cloned());
        }
        let Checked { assignment, machine, users } = check;
        Some(Taken { change, assignment, machine, users })
    }

    /// Takes up what came of new connections to a server since the last time. True when that puts it on probation:
    /// its checks are made at once then, and faster.
    pub fn witness(&mut self, now: Instant, service: &Name, key: ServerKey, new: Tally) -> bool {
        let Some(ward) = self.services.get_mut(service) else { return false };
        let of = Arc::clone(&ward.service);
        let Some(rules) = &of.health.passive else { return false };
        let at = of.real_servers.iter().position(|server| of.key_of(server) == key);
        let Some(at) = at.filter(|at| of.health.watches(&of.real_servers[*at])) else { return false };
        let server = &of.real_servers[at];
        let evidence = match of.forwarding_of(server).translates() {
            true => Evidence::Answers,
            false => Evidence::Clients,
        };
        let may_be_out = ward.may_put_out();
        let watcher = ward.watchers.entry(key).or_default();
        if !watcher.take(now, new, rules, evidence, may_be_out) {
            return false;
        }
        if ward.checks[at].is_empty() {
            for check in of.health.probation_checks_of(server) {
                let (check, target) = (check.settled(&of, server), check.target(&of, server));
                let id = CheckId::of(&target, &check);
                let assignment = Assignment { id, target, check: Arc::clone(&check) };
                let checked = self.checks.entry(id).or_insert_with(|| Checked {
                    assignment,
                    machine: Machine::new(check.timing, true, now),
                    users: BTreeSet::new(),
                });
                checked.users.insert(service.clone());
                ward.checks[at].push(id);
                self.errands.set = true;
            }
        }
        self.errands.paces.extend(ward.checks[at].iter().map(|id| (*id, Pace::Fast)));
        self.errands.now.extend(&ward.checks[at]);
        self.stale.insert(service.clone());
        true
    }

    /// Tells the watchers of a service what the probes of servers on probation have shown.
    fn follow_probations(&mut self, now: Instant, name: &Name) {
        let Some(ward) = self.services.get_mut(name) else { return };
        let of = Arc::clone(&ward.service);
        for (at, server) in of.real_servers.iter().enumerate() {
            let may_be_out = ward.may_put_out();
            let Some(watcher) = ward.watchers.get_mut(&of.key_of(server)) else { continue };
            let Some(since) = watcher.probation().map(|probation| probation.since) else { continue };
            let since_then = |id: &CheckId| {
                let (at, outcome) = self.checks.get(id)?.machine.last()?;
                (*at > since).then_some(outcome.passed)
            };
            let outcomes: Vec<Option<bool>> = ward.checks[at].iter().map(since_then).collect();
            let needed = of.health.require.of(outcomes.len());
            let count = |of| outcomes.iter().filter(|outcome| **outcome == Some(of)).count();
            let probed = match (count(true), count(false)) {
                (passed, _) if passed >= needed => Probed::Passed,
                (_, failed) if outcomes.len() - failed < needed => Probed::Failed,
                _ => Probed::NotYet,
            };
            if !watcher.probed(now, probed, may_be_out) || watcher.probation().is_some() {
                continue;
            }
            self.errands.paces.extend(ward.checks[at].iter().filter_map(|id| {
                let pace = self.checks.get(id)?.machine.pace();
                Some((*id, pace))
            }));
            if of.health.checks_of(server).is_empty() {
                for id in std::mem::take(&mut ward.checks[at]) {
                    if let Some(check) = self.checks.get_mut(&id)
                        && check.users.remove(name)
                        && check.users.is_empty()
                    {
                        self.checks.remove(&id);
                        self.errands.set = true;
                    }
                }
            }
        }
    }

    /// What the monitor is to be told, once.
    pub fn errands(&mut self) -> Errands {
        std::mem::take(&mut self.errands)
    }

    /// What was seen of a server's answers to new connections; None where it is not watched.
    pub fn watcher_of(&self, service: &VirtualService, server: &RealServer) -> Option<Watcher> {
        let ward = self.services.get(&service.name)?;
        let watcher = ward.watchers.get(&service.key_of(server)).cloned();
        service.health.watches(server).then(|| watcher.unwrap_or_default())
    }

    /// Takes a server out, or back. False where there is no such server.
    pub fn disable(&mut self, now: Instant, service: &Name, key: ServerKey, disabled: bool) -> bool {
        if !self.has(service, &key) {
            return false;
        }
        let of = (service.clone(), key);
        if disabled {
            self.disabled.entry(of).or_insert(now);
        } else {
            self.disabled.remove(&of);
        }
        self.stale.insert(service.clone());
        true
    }

    /// Gives a server another weight than its manifest, or the manifest's again. False where there is no such
    /// server.
    pub fn reweigh(&mut self, service: &Name, key: ServerKey, weight: Option<u16>) -> bool {
        if !self.has(service, &key) {
            return false;
        }
        match weight {
            Some(weight) => self.weights.insert((service.clone(), key), weight),
            None => self.weights.remove(&(service.clone(), key)),
        };
        self.stale.insert(service.clone());
        true
    }

    fn has(&self, service: &Name, key: &ServerKey) -> bool {
        self.services.get(service).is_some_and(|ward| {
            ward.service.real_servers.iter().any(|server| ward.service.key_of(server) == *key)
        })
    }

    /// Judges the services of which something changed, or whose time has come; returns those whose judgement is
    /// another now, each with the one before.
    pub fn judge(&mut self, now: Instant) -> Vec<Judged> {
        let due = |ward: &Ward| {
            let weighs = ward.service.health.latency_weight.is_some();
            weighs || ward.is_doubtful() || ward.judgement.again.is_some_and(|again| again <= now)
        };
        let due = self.services.iter().filter(|(_, ward)| due(ward)).map(|(name, _)| name.clone());
        let names: BTreeSet<Name> = std::mem::take(&mut self.stale).into_iter().chain(due).collect();
        let mut judged = Vec::new();
        for name in names {
            self.follow_probations(now, &name);
            let Some(ward) = self.services.get_mut(&name) else { continue };
            let service = Arc::clone(&ward.service);
            let known: Vec<Known<'_>> = service
                .real_servers
                .iter()
                .zip(&ward.checks)
                .map(|(server, ids)| {
                    let of = (name.clone(), service.key_of(server));
                    Known {
                        key: of.1,
                        weight: server.weight,
                        standby: server.health.standby,
                        checks: ids.iter().filter_map(|id| Some(&self.checks.get(id)?.machine)).collect(),
                        disabled: self.disabled.contains_key(&of),
                        override_weight: self.weights.get(&of).copied(),
                        probation: ward.watchers.get(&of.1).and_then(Watcher::probation),
                    }
                })
                .collect();
            let judgement = Arc::new(ward.pool.judge(now, &service, &known));
            let before = std::mem::replace(&mut ward.judgement, Arc::clone(&judgement));
            if before != judgement {
                judged.push(Judged { service: name, before, judgement });
            }
        }
        judged
    }

    /// What the judgements would be with these services.
    pub fn would_judge(&self, now: Instant, objects: &Objects) -> Vec<Judged> {
        let mut roster = self.clone();
        roster.set(now, objects.services().map(|(service, _)| service));
        roster.judge(now)
    }

    /// When [`Roster::judge`] has something to do although nothing happened.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.services.values().filter_map(|ward| ward.judgement.again).min()
    }

    /// The last judgement on a service.
    pub fn judgement(&self, service: &Name) -> Option<&Judgement> {
        self.services.get(service).map(|ward| &*ward.judgement)
    }

    /// The checks of a real server.
    pub fn checks_of(&self, service: &VirtualService, server: &RealServer) -> Vec<CheckOf<'_>> {
        let Some(ward) = self.services.get(&service.name) else { return Vec::new() };
        let key = service.key_of(server);
        let mut servers = ward.service.real_servers.iter().zip(&ward.checks);
        let ids = servers.find(|(server, _)| ward.service.key_of(server) == key).map(|(_, ids)| ids);
        let of = |id: &CheckId| {
            let check = self.checks.get(id)?;
            let Checked { assignment, machine, users } = check;
            Some(CheckOf { assignment, machine, services: users.len() })
        };
        ids.into_iter().flatten().filter_map(of).collect()
    }

    /// Whether every check of a target that is `probed` has had its first outcome.
    pub fn all_known(&self, probed: impl Fn(&Target) -> bool) -> bool {
        let known = |check: &Checked| check.machine.last().is_some() || check.machine.belief().is_known();
        self.checks.values().all(|check| known(check) || !probed(&check.assignment.target))
    }

    /// The weight that the operator gave, and since when the server is disabled.
    pub fn orders_for(&self, service: &Name, key: ServerKey) -> (Option<u16>, Option<Instant>) {
        let of = (service.clone(), key);
        (self.weights.get(&of).copied(), self.disabled.get(&of).copied())
    }

    /// What a later run should know.
    pub fn save(&self) -> Saved {
        let machines = self.checks.iter().map(|(id, check)| (*id, check.machine.clone()));
        Saved::of(machines, self.disabled.clone(), self.weights.clone())
    }
}

/// A new judgement on a service.
#[derive(Debug, Clone)]
pub struct Judged {
    pub service: Name,
    pub before: Arc<Judgement>,
    pub judgement: Arc<Judgement>,
}

#[cfg(test)]
mod tests;
