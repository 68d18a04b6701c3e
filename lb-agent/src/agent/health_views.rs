//! What is shown of health checks, and what an operator orders about real servers.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use super::Agent;
use crate::control::Refusal;
use crate::control::health::{CheckState, HealthView, Operation, ServerOrder, TransitionView};
use crate::control::views::{ChecksStatus, RealServerState};
use crate::health::roster::CheckOf;
use crate::health::state::Belief;
use crate::health::{ServerVerdict, Standing, Weighing};
use crate::model::{Kind, Name, RealServer, ServerKey, VirtualService};

impl Agent {
    /// Every check of one service or of all.
    pub(super) fn health_views(&self, name: Option<&str>) -> Vec<HealthView> {
        let now = Now::take();
        let mut views = Vec::new();
        for (service, _) in self.director.objects().services() {
            if name.is_some_and(|name| name != service.name.as_str()) {
                continue;
            }
            for server in &service.real_servers {
                let checks = self.health.roster.checks_of(service, server);
                views.extend(checks.iter().map(|check| view(&now, service, server, check)));
                views.extend(self.passive_view(&now, service, server));
            }
        }
        views
    }

    /// What is seen of a server's answers to new connections, beside its checks.
    fn passive_view(&self, now: &Now, service: &VirtualService, server: &RealServer) -> Option<HealthView> {
        let rules = service.health.passive?;
        let watcher = self.health.roster.watcher_of(service, server)?;
        let key = service.key_of(server);
        let probation = watcher.probation();
        let tally = probation.map_or_else(|| watcher.tally(now.monotonic, rules.window), |doubt| doubt.tally);
        let since = probation.map(|doubt| doubt.since).or(watcher.ended()).unwrap_or(self.started);
        Some(HealthView {
            service: service.name.to_string(),
            address: key.address,
            port: Some(key.port).filter(|port| *port != 0),
            check: "passive".into(),
            target: "answers to new connections".into(),
            state: if probation.is_some() { CheckState::Probation } else { CheckState::Up },
            since: now.utc_of(since),
            last: format!("{tally} within {} s", rules.window.as_secs()),
            last_at: None,
            passed: 0,
            failed: 0,
            rise: 0,
            fall: 0,
            latency: None,
            next_in: None,
            weight: None,
            draining: false,
            shared_by: 1,
            history: Vec::new(),
        })
    }

    /// How many checks there are, and whether all can be made in time.
    pub(super) fn checks_status(&self) -> ChecksStatus {
        let load = self.health.monitor.load();
        let running = load.lanes.iter().map(|lane| lane.running).sum();
        ChecksStatus { count: load.checks(), running, probes: load.probes, stretch: load.stretch() }
    }

    /// The last verdict on a real server.
    pub(super) fn verdict(&self, service: &VirtualService, server: &RealServer) -> Option<&ServerVerdict> {
        let key = service.key_of(server);
        let judgement = self.health.roster.judgement(&service.name)?;
        judgement.servers.iter().find(|verdict| verdict.key == key)
    }

    /// Carries out an order about one real server; answers with a sentence.
    pub(super) async fn operate(&mut self, order: &ServerOrder) -> Result<String, Refusal> {
        let (service, key) = self.find_ordered(order)?;
        let now = Instant::now();
        let roster = &mut self.health.roster;
        let done = match order.order {
            Operation::Disable => {
                roster.disable(now, &service, key, true);
                "is disabled: no new connections, whatever its checks say".to_owned()
            }
            Operation::Enable => {
                roster.disable(now, &service, key, false);
                "is enabled".to_owned()
            }
            Operation::Weight(weight) => {
                roster.reweigh(&service, key, Some(weight));
                format!("has weight {weight} until another order")
            }
            Operation::ResetWeight => {
                roster.reweigh(&service, key, None);
                "has the weight of its manifest".to_owned()
            }
        };
        self.health_ordered();
        self.judge(now);
        self.save_health();
        let failed = |failed: crate::apply::Failed| Refusal::Failed {
            step: failed.step,
            cause: format!("{:#}", failed.error),
        };
        self.run_plan().await.map_err(failed)?;
        Ok(format!("real server {key} of {service} {done}"))
    }

    fn find_ordered(&self, order: &ServerOrder) -> Result<(Name, ServerKey), Refusal> {
        let services = self.director.objects().services().map(|(service, _)| service);
        let Some(service) = services.into_iter().find(|service| service.name.as_str() == order.service)
        else {
            return Err(Refusal::Missing { object: format!("{}/{}", Kind::VirtualService, order.service) });
        };
        let keys = service.real_servers.iter().map(|server| service.key_of(server));
        let fits =
            |key: &ServerKey| key.address == order.address && order.port.is_none_or(|port| port == key.port);
        let found: Vec<ServerKey> = keys.filter(fits).collect();
        match found[..] {
            [key] => Ok((service.name.clone(), key)),
            [] => {
                Err(Refusal::Missing { object: format!("real server {} of {}", order.address, service.name) })
            }
            _ => {
                let all: Vec<String> = found.iter().map(ToString::to_string).collect();
                let object = format!("exactly one of {} (say the port)", all.join(", "));
                Err(Refusal::Missing { object })
            }
        }
    }
}

/// How a standing is shown.
pub fn state_of(standing: Standing) -> RealServerState {
    match standing {
        Standing::In | Standing::Panic => RealServerState::In,
        Standing::Waiting => RealServerState::Checking,
        Standing::Failed => RealServerState::Down,
        Standing::Probation => RealServerState::Probation,
        Standing::Draining | Standing::Weightless => RealServerState::Draining,
        Standing::Disabled => RealServerState::Disabled,
        Standing::Standby | Standing::NoQuorum => RealServerState::Standby,
    }
}

/// Both clocks, to turn one into the other.
pub struct Now {
    monotonic: Instant,
    utc: Timestamp,
}

impl Now {
    pub fn take() -> Now {
        Now { monotonic: Instant::now(), utc: Timestamp::now() }
    }

    pub fn utc_of(&self, at: Instant) -> Timestamp {
        let ago = SignedDuration::try_from(self.monotonic.saturating_duration_since(at)).unwrap_or_default();
        self.utc.checked_sub(ago).unwrap_or(self.utc)
    }
}

fn view(now: &Now, service: &VirtualService, server: &RealServer, check: &CheckOf<'_>) -> HealthView {
    let CheckOf { assignment, machine, services } = check;
    let key = service.key_of(server);
    let (passed, failed) = machine.row();
    let transition = |up| if up { CheckState::Up } else { CheckState::Down };
    HealthView {
        service: service.name.to_string(),
        address: key.address,
        port: Some(key.port).filter(|port| *port != 0),
        check: assignment.check.probe.to_string(),
        target: assignment.target.to_string(),
        state: match machine.belief() {
            Belief::Up => CheckState::Up,
            Belief::Down if machine.is_held() => CheckState::Held,
            Belief::Down => CheckState::Down,
            Belief::Unknown { .. } => CheckState::Unknown,
        },
        since: now.utc_of(machine.since()),
        last: machine.words(),
        last_at: machine.last().map(|(at, _)| now.utc_of(*at)),
        passed,
        failed,
        rise: machine.timing().rise,
        fall: machine.timing().fall,
        // Of one that fails the last latency that was measured says nothing.
        latency: machine
            .latency()
            .filter(|_| failed == 0)
            .map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3),
        next_in: machine.next().map(|next| next.saturating_duration_since(now.monotonic).as_millis() as u64),
        weight: machine.weight().map(|weight| match weight {
            Weighing::Absolute(weight) => weight.to_string(),
            Weighing::Percent(percent) => format!("{percent}%"),
        }),
        draining: machine.is_draining(),
        shared_by: *services as u32,
        history: machine
            .history()
            .map(|change| TransitionView {
                at: now.utc_of(change.at),
                state: transition(change.up),
                cause: change.words.to_string(),
            })
            .collect(),
    }
}
