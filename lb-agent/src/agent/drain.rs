//! Draining: the orders, the clock behind them, and the file that outlives the agent.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Agent, Trouble};
use crate::apply::destination_key;
use crate::cli::units::duration;
use crate::control::Refusal;
use crate::control::views::{DrainView, RealServerView};
use crate::dataplane::Scan;
use crate::dataplane::ages::Age;
use crate::director::{Drain, Ebb, Event, binding_of};
use crate::manifest::Objects;
use crate::model::{Kind, Name, Object, ObjectId, OnDeadline, RealServer, ServerKey, VirtualService};
use crate::plan::Binding;

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
            self.ebbs.clear();
            return false;
        }
        let (was, now) = (self.drains.clone(), now());
        let left = self.left_of_drains();
        self.ebbs.retain(|whose, _| left.contains_key(whose));
        for (whose, left) in &left {
            self.ebbs.entry(whose.clone()).or_default().note(now, left.connections);
        }
        let looked = self.dataplane.board().latest().is_some();
        self.drains.forget_idle(|name, key, drain| {
            // A flow that began in the last moment is in the next scan.
            let settled = looked && now >= drain.since + SETTLED.as_secs();
            settled && left.get(&(name.clone(), key)).is_none_or(|left| left.connections == 0)
        });
        if self.drains != was
            && let Err(refusal) = self.save_drains()
        {
            self.trouble(Trouble::Stored, vec![refusal.to_string()]);
        }
        self.director.set_leaving(self.drains.leaving(now))
    }

    /// What each server that drains has left; none of those whose service is no more.
    fn left_of_drains(&self) -> BTreeMap<(Name, ServerKey), Left> {
        let (scan, objects) = (self.dataplane.board().latest(), self.director.objects());
        let mut all = BTreeMap::new();
        for (name, key, drain) in self.drains.iter() {
            let id = ObjectId { kind: Kind::VirtualService, name: name.clone() };
            if let Some(Object::VirtualService(service)) = objects.get(&id).map(|entry| &*entry.object) {
                let left = self.left(service, &binding_of(service, &drain.server), scan.as_deref());
                all.insert((name.clone(), key), left);
            }
        }
        all
    }

    /// The flows of a server at all endpoints of a service, by the last scan.
    pub(super) fn left(&self, service: &VirtualService, binding: &Binding, scan: Option<&Scan>) -> Left {
        let mut left = Left::default();
        let Some(scan) = scan else { return left };
        let clock = self.dataplane.clock();
        for name in service.table_names() {
            let Some(index) = self.applier.tables().destination(&destination_key(&name, binding)) else {
                continue;
            };
            let count = scan.count(index);
            left.connections += u64::from(count.active) + u64::from(count.inactive);
            left.oldest = left.oldest.max(scan.oldest(index));
            left.silent_in = left.silent_in.max(clock.milliseconds(scan.silent_in(index)).div_ceil(1000));
        }
        left
    }

    /// How far a drain is.
    pub(super) fn drain_view(&self, service: &Name, key: ServerKey, left: Left) -> Option<DrainView> {
        let drain = self.drains.get(service, key)?;
        let ebb = self.ebbs.get(&(service.clone(), key));
        let now = now();
        let ending = ebb.and_then(|ebb| ebb.empty_in(now, left.connections));
        Some(view(drain, left, now, ending, self.director.resets(service, key)))
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

/// What a server has left.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Left {
    connections: u64,
    oldest: Option<Age>,
    /// Seconds until the last of them expires if no packet comes.
    silent_in: u64,
}

/// How servers that drain have emptied so far.
pub(super) type Ebbs = BTreeMap<(Name, ServerKey), Ebb>;

/// A drain in the words of the API. `ending` is when connections that end as they did are all gone.
fn view(drain: &Drain, left: Left, now: u64, ending: Option<u64>, resetting: bool) -> DrainView {
    let since = now.saturating_sub(drain.since);
    let deadline_in = drain.deadline.map(|deadline| deadline.saturating_sub(now));
    let resets = drain.on_deadline == OnDeadline::Reset;
    let eta = match (left.connections, deadline_in.filter(|_| resets)) {
        (0, _) => Some(0),
        // A packet ends it, or its timeout does.
        _ if resetting => Some(left.silent_in),
        (_, Some(deadline)) => Some(ending.map_or(deadline, |ending| ending.min(deadline))),
        (_, None) => ending,
    };
    // Nothing began after the drain did; an agent that was restarted has not seen the beginning.
    let oldest = left.oldest.map(|age| u64::from(age.seconds));
    let oldest_at_least = left.oldest.is_some_and(|age| age.at_least || u64::from(age.seconds) < since);
    DrainView {
        since,
        deadline_in,
        on_deadline: if resets { "reset" } else { "keep" }.into(),
        remaining: left.connections,
        oldest: oldest.map(|oldest| oldest.max(since)),
        oldest_at_least,
        eta,
        resetting,
    }
}

/// What a drain waits for.
pub(super) fn drain_reason(drain: Option<&DrainView>) -> String {
    let Some(drain) = drain else { return String::new() };
    let mut connections = match drain.remaining {
        1 => "1 connection is left".to_owned(),
        left => format!("{left} connections are left"),
    };
    if let Some(oldest) = drain.oldest {
        let word = if drain.oldest_at_least { "at least " } else { "" };
        connections += &match drain.remaining {
            1 => format!(" ({word}{} old)", duration(oldest)),
            _ => format!(" (the oldest {word}{} old)", duration(oldest)),
        };
    }
    let text = match (drain.deadline_in, drain.on_deadline.as_str()) {
        (None, _) => format!("drains: {connections}, until they end"),
        (Some(0), "reset") => format!("drains: the deadline has passed, {connections} to be reset"),
        (Some(0), _) => format!("drains: the deadline has passed, {connections}"),
        (Some(seconds), "reset") => format!("drains: {connections}, to be reset in {}", duration(seconds)),
        (Some(seconds), _) => format!("drains: {connections}, for {} at least", duration(seconds)),
    };
    match drain.eta.filter(|eta| *eta > 0 && Some(*eta) != drain.deadline_in) {
        Some(eta) if drain.resetting => format!("{text}, gone in {} at most", duration(eta)),
        Some(eta) => format!("{text}; likely gone in {}", duration(eta)),
        None => text,
    }
}

/// Seconds since 1970: a deadline means the same after a restart.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long a sweep may take to see the flows that there were when a drain began.
const SETTLED: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServerLimits;

    fn drain(deadline: Option<u64>, on_deadline: OnDeadline) -> Drain {
        let server = RealServer {
            address: "10.0.0.11".parse().unwrap(),
            port: None,
            weight: 1,
            forwarding: None,
            tunnel: None,
            limits: ServerLimits::default(),
            health: Default::default(),
        };
        Drain { server, since: 1000, deadline, on_deadline, removed: false }
    }

    fn left(connections: u64, seconds: u32, at_least: bool) -> Left {
        Left { connections, oldest: Some(Age { seconds, at_least }), silent_in: 900 }
    }

    #[test]
    fn the_eta_is_what_comes_first_and_unknown_where_nothing_bounds_it() {
        let (reset, keep) = (OnDeadline::Reset, OnDeadline::Keep);
        for (deadline, on_deadline, ending, resetting, eta) in [
            (Some(1600), reset, None, false, Some(500)),
            (Some(1600), reset, Some(60), false, Some(60)),
            (Some(1600), reset, Some(6000), false, Some(500)),
            (Some(1050), reset, Some(60), true, Some(900)),
            (Some(1600), keep, None, false, None),
            (Some(1600), keep, Some(6000), false, Some(6000)),
            (None, reset, None, false, None),
            (None, reset, Some(9), false, Some(9)),
        ] {
            let view = view(&drain(deadline, on_deadline), left(3, 5, false), 1100, ending, resetting);
            assert_eq!(view.eta, eta, "{deadline:?} {on_deadline:?} {ending:?} {resetting}");
        }
        let none = Left::default();
        let view = view(&drain(None, reset), none, 1100, None, false);
        assert_eq!((view.remaining, view.oldest, view.eta), (0, None, Some(0)));
    }

    #[test]
    fn a_connection_is_at_least_as_old_as_the_drain() {
        for (seconds, at_least, shown) in [
            (250, false, (250, false)),
            (250, true, (250, true)),
            (40, true, (100, true)),
            (40, false, (100, true)),
        ] {
            let view = view(&drain(None, OnDeadline::Reset), left(3, seconds, at_least), 1100, None, false);
            assert_eq!((view.oldest.unwrap(), view.oldest_at_least), shown, "{seconds} {at_least}");
        }
    }

    #[test]
    fn the_reason_says_how_many_how_old_and_until_when() {
        let said = |deadline, left, ending, resetting| {
            drain_reason(Some(&view(&drain(deadline, OnDeadline::Reset), left, 1100, ending, resetting)))
        };
        for (deadline, left, ending, resetting, text) in [
            (
                Some(1652),
                left(429, 7260, false),
                Some(120),
                false,
                "drains: 429 connections are left (the oldest 2h 1m old), to be reset in 9m 12s; likely gone in 2m 0s",
            ),
            (
                None,
                left(1, 300, true),
                None,
                false,
                "drains: 1 connection is left (at least 5m 0s old), until they end",
            ),
            (
                Some(1000),
                left(2, 300, false),
                None,
                true,
                "drains: the deadline has passed, 2 connections are left (the oldest 5m 0s old) to be reset, gone in 15m 0s at \
                 most",
            ),
        ] {
            assert_eq!(said(deadline, left, ending, resetting), text);
        }
    }
}
