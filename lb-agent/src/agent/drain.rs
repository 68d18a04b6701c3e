//! Draining: the orders, the clock behind them, and the file that outlives the agent.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Agent, Trouble};
use crate::apply::destination_key;
use crate::cli::units::duration;
use crate::control::Refusal;
use crate::control::views::{DrainView, RealServerView};
use crate::director::{Drain, Event, binding_of};
use crate::manifest::Objects;
use crate::model::{Name, OnDeadline, RealServer, ServerKey, VirtualService};

impl Agent {
    /// `drain`: no new flows for a real server, and an end for the others.
    pub(super) async fn drain(
        &mut self,
        service: &str,
        server: &str,
        deadline: Option<Duration>,
    ) -> Result<Vec<RealServerView>, Refusal> {
        let (service, server) = self.find(service, server)?;
        let now = now();
        let deadline = deadline.or(service.scheduling.drain.deadline);
        self.drains.begin(&service, &server, now, deadline.map(|deadline| now + deadline.as_secs()));
        tracing::info!("{} {}: drains", service.name, service.key_of(&server));
        self.drained(&service, &server).await
    }

    /// `undrain`: it takes new flows again.
    pub(super) async fn undrain(
        &mut self,
        service: &str,
        server: &str,
    ) -> Result<Vec<RealServerView>, Refusal> {
        let (service, server) = self.find(service, server)?;
        let key = service.key_of(&server);
        if self.drains.end(&service.name, key) {
            tracing::info!("{} {key}: drains no longer", service.name);
        }
        self.drained(&service, &server).await
    }

    /// What an order made of a server.
    async fn drained(
        &mut self,
        service: &VirtualService,
        server: &RealServer,
    ) -> Result<Vec<RealServerView>, Refusal> {
        self.save_drains()?;
        self.director.handle(Event::Leaving(self.drains.leaving(now())));
        self.run_plan()
            .await
            .map_err(|failed| Refusal::Failed { step: failed.step, cause: format!("{:#}", failed.error) })?;
        let key = service.key_of(server);
        let mut views = self.real_servers(Some(&service.name));
        views.retain(|view| (view.address, view.port.unwrap_or(0)) == (key.address, key.port));
        Ok(views)
    }

    /// The drains of an earlier run, for the first plan.
    pub(super) fn restore_drains(&mut self) {
        match self.state.load_drains() {
            Ok(drains) => {
                self.drains = drains;
                // What changed while nobody ran is not known; what is there no more is.
                let objects = self.director.objects().clone();
                self.drains.follow(&objects, &objects, now());
                self.director.handle(Event::Leaving(self.drains.leaving(now())));
            }
            Err(error) => self.trouble(Trouble::Stored, vec![format!("{error:#}")]),
        }
    }

    /// Servers that new objects do not have any more begin to leave. To be called before the objects count.
    pub(super) fn follow_drains(&mut self, before: &Objects, after: &Objects) {
        let was = self.drains.clone();
        self.drains.follow(before, after, now());
        if self.drains != was {
            self.director.handle(Event::Leaving(self.drains.leaving(now())));
            if let Err(refusal) = self.save_drains() {
                self.trouble(Trouble::Stored, vec![refusal.to_string()]);
            }
        }
    }

    /// Deadlines pass and the last connections end. Returns whether something has to be done.
    pub(super) fn tick_drains(&mut self) -> bool {
        if self.drains.is_empty() {
            return false;
        }
        let (was, now) = (self.drains.clone(), now());
        let scan = self.dataplane.board().latest();
        let (tables, objects) = (self.applier.tables(), self.director.objects());
        let idle = |name: &Name, drain: &Drain| {
            // A flow that began in the last moment is in the next scan.
            let Some(scan) = scan.as_ref().filter(|_| now >= drain.since + SETTLED.as_secs()) else {
                return false;
            };
            let service =
                objects.services().map(|(service, _)| service).find(|service| service.name == *name);
            let names = service.map(VirtualService::table_names).unwrap_or_default();
            let Some(service) = service else { return true };
            let binding = binding_of(service, &drain.server);
            names.iter().all(|name| {
                let index = tables.destination(&destination_key(name, &binding));
                index.is_none_or(|index| {
                    let count = scan.count(index);
                    count.active + count.inactive == 0
                })
            })
        };
        self.drains.forget_idle(idle);
        if self.drains != was
            && let Err(refusal) = self.save_drains()
        {
            self.trouble(Trouble::Stored, vec![refusal.to_string()]);
        }
        self.director.set_leaving(self.drains.leaving(now))
    }

    /// How far a drain is.
    pub(super) fn drain_view(&self, service: &Name, key: ServerKey, remaining: u64) -> Option<DrainView> {
        let drain = self.drains.get(service, key)?;
        Some(drain_view(drain, remaining, self.director.resets(service, key)))
    }

    fn save_drains(&self) -> Result<(), Refusal> {
        let failed = |error| Refusal::Failed { step: "save the drains".into(), cause: format!("{error:#}") };
        self.state.save_drains(&self.drains).map_err(failed)
    }

    /// A real server by the words of an order: `10.0.0.11`, or `10.0.0.11:8080` where that is not enough.
    fn find(&self, service: &str, server: &str) -> Result<(VirtualService, RealServer), Refusal> {
        let mut services = self.director.objects().services().map(|(service, _)| service);
        let missing = |object: String| Refusal::Missing { object };
        let service = services
            .find(|known| known.name.as_str() == service)
            .ok_or_else(|| missing(format!("VirtualService/{service}")))?;
        let said = |known: &&RealServer| {
            let key = service.key_of(known);
            known.address.to_string() == server || key.to_string() == server
        };
        let found: Vec<&RealServer> = service.real_servers.iter().filter(said).collect();
        match found[..] {
            [found] => Ok((service.clone(), found.clone())),
            [] => Err(missing(format!("real server {server} of VirtualService/{}", service.name))),
            [..] => {
                let keys: Vec<String> = found.iter().map(|found| service.key_of(found).to_string()).collect();
                let cause = format!("{server} may be any of {}: say which", keys.join(", "));
                Err(Refusal::Failed { step: "find the real server".into(), cause })
            }
        }
    }
}

/// A drain in the words of the API.
pub(super) fn drain_view(drain: &Drain, remaining: u64, resetting: bool) -> DrainView {
    let now = now();
    DrainView {
        since: now.saturating_sub(drain.since),
        deadline_in: drain.deadline.map(|deadline| deadline.saturating_sub(now)),
        on_deadline: match drain.on_deadline {
            OnDeadline::Reset => "reset",
            OnDeadline::Keep => "keep",
        }
        .into(),
        remaining,
        resetting,
    }
}

/// What a drain waits for.
pub(super) fn drain_reason(drain: Option<&DrainView>) -> String {
    let Some(drain) = drain else { return String::new() };
    let connections = match drain.remaining {
        1 => "1 connection is left".to_owned(),
        left => format!("{left} connections are left"),
    };
    match (drain.deadline_in, drain.on_deadline.as_str()) {
        (None, _) => format!("drains: {connections}, until they end"),
        (Some(0), "reset") => format!("drains: the deadline has passed, {connections} to be reset"),
        (Some(0), _) => format!("drains: the deadline has passed, {connections}"),
        (Some(seconds), "reset") => format!("drains: {connections}, to be reset in {}", duration(seconds)),
        (Some(seconds), _) => format!("drains: {connections}, for {} at least", duration(seconds)),
    }
}

/// Seconds since 1970: a deadline means the same after a restart.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long a sweep may take to see the flows that there were when a drain began.
const SETTLED: Duration = Duration::from_secs(5);
