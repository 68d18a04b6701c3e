//! Real servers that leave: by the operator's order, or because the manifest has them no more. Pure: the agent says
//! what time it is and who has flows left.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::service::binding_of;
use crate::manifest::{FORWARDING, Objects, word_of};
use crate::model::{Encapsulation, Name, OnDeadline, RealServer, ServerKey, ServerLimits, VirtualService};

/// Whoever leaves, by service.
pub type Leaving = BTreeMap<Name, BTreeMap<ServerKey, Leaver>>;

/// One that leaves, at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaver {
    pub server: RealServer,
    /// The deadline has passed and what is left is to be reset.
    pub reset: bool,
}

/// All drains. Times are seconds since 1970, so that they mean the same after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drains(BTreeMap<(Name, ServerKey), Drain>);

/// One drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// As the manifest had it.
    pub server: RealServer,
    pub since: u64,
    pub deadline: Option<u64>,
    pub on_deadline: OnDeadline,
    /// The manifest has it no more: it is gone for good when its last connection is.
    pub removed: bool,
}

impl Drains {
    /// Begins a drain by order, or gives a running one another deadline.
    pub fn begin(&mut self, service: &VirtualService, server: &RealServer, now: u64, deadline: Option<u64>) {
        let key = (service.name.clone(), service.key_of(server));
        let since = self.0.get(&key).map_or(now, |drain| drain.since);
        let on_deadline = service.scheduling.drain.on_deadline;
        let (server, removed) = (server.clone(), false);
        self.0.insert(key, Drain { server, since, deadline, on_deadline, removed });
    }

    /// Ends a drain: the server takes new connections again. False when there is none by order.
    pub fn end(&mut self, service: &Name, key: ServerKey) -> bool {
        let key = (service.clone(), key);
        self.0.get(&key).is_some_and(|drain| !drain.removed) && self.0.remove(&key).is_some()
    }

    pub fn get(&self, service: &Name, key: ServerKey) -> Option<&Drain> {
        self.0.get(&(service.clone(), key))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, ServerKey, &Drain)> {
        self.0.iter().map(|((service, key), drain)| (service, *key, drain))
    }

    /// Those of one service whom the manifest has no more.
    pub fn removed_of<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = &'a Drain> {
        self.0.iter().filter(move |((of, _), drain)| of == service && drain.removed).map(|(_, drain)| drain)
    }

    /// Takes note of new objects: servers that went begin to leave by their service's policy, those that came back
    /// stay, and who left by order is forgotten with its service.
    pub fn follow(&mut self, before: &Objects, after: &Objects, now: u64) {
        let after: BTreeMap<&Name, &VirtualService> =
            after.services().map(|(service, _)| (&service.name, service)).collect();
        for (old, _) in before.services() {
            let Some(new) = after.get(&old.name) else { continue };
            let Some(deadline) = new.scheduling.drain.deadline else { continue };
            // With another address or protocol, it is another service.
            if (old.address, old.protocol) != (new.address, new.protocol)
                || old.real_servers == new.real_servers
            {
                continue;
            }
            let stay: BTreeSet<_> = new.real_servers.iter().map(|server| binding_of(new, server)).collect();
            for server in &old.real_servers {
                if stay.contains(&binding_of(old, server)) {
                    continue;
                }
                let key = (old.name.clone(), old.key_of(server));
                let deadline = Some(now + deadline.as_secs());
                let on_deadline = new.scheduling.drain.on_deadline;
                let drain =
                    Drain { server: server.clone(), since: now, deadline, on_deadline, removed: true };
                // One that was told to leave earlier keeps its deadline.
                self.0.entry(key).or_insert(drain).removed = true;
            }
        }
        self.0.retain(|(name, key), drain| {
            let Some(service) = after.get(name) else { return false };
            let listed = service.real_servers.iter().any(|server| service.key_of(server) == *key);
            // By order and no longer listed: `removed` was set above if the service has a policy.
            listed != drain.removed
        });
    }

    /// Forgets servers that the manifest has no more and that have no connection left.
    pub fn forget_idle(&mut self, idle: impl Fn(&Name, ServerKey, &Drain) -> bool) {
        self.0.retain(|(service, key), drain| !drain.removed || !idle(service, *key, drain));
    }

    /// Whoever leaves now.
    pub fn leaving(&self, now: u64) -> Leaving {
        let mut leaving = Leaving::new();
        for ((service, key), drain) in &self.0 {
            let reset = drain.on_deadline == OnDeadline::Reset && drain.deadline.is_some_and(|at| at <= now);
            let leaver = Leaver { server: drain.server.clone(), reset };
            leaving.entry(service.clone()).or_default().insert(*key, leaver);
        }
        leaving
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For the state directory.
    pub fn save(&self) -> Vec<SavedDrain> {
        let saved = |((service, key), drain): (&(Name, ServerKey), &Drain)| SavedDrain {
            service: service.to_string(),
            address: drain.server.address,
            port: drain.server.port,
            key_port: key.port,
            forwarding: drain.server.forwarding.map(|method| word_of(&FORWARDING, method).to_owned()),
            tunnel: drain.server.tunnel,
            since: drain.since,
            deadline: drain.deadline,
            reset: drain.on_deadline == OnDeadline::Reset,
            removed: drain.removed,
        };
        self.0.iter().map(saved).collect()
    }

    /// From the state directory. What cannot be read any more is left out.
    pub fn load(saved: &[SavedDrain]) -> Drains {
        let drain = |saved: &SavedDrain| {
            let forwarding = match &saved.forwarding {
                Some(word) => Some(FORWARDING.iter().find(|(name, _)| name == word)?.1),
                None => None,
            };
            let (address, port) = (saved.address, saved.port);
            let server = RealServer {
                address,
                port,
                weight: 1,
                forwarding,
                tunnel: saved.tunnel,
                limits: ServerLimits::default(),
                health: Default::default(),
            };
            let on_deadline = if saved.reset { OnDeadline::Reset } else { OnDeadline::Keep };
            let (since, deadline, removed) = (saved.since, saved.deadline, saved.removed);
            let key = ServerKey { address, port: saved.key_port };
            Some((
                (Name::new(&saved.service).ok()?, key),
                Drain { server, since, deadline, on_deadline, removed },
            ))
        };
        Drains(saved.iter().filter_map(drain).collect())
    }
}

/// A drain as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedDrain {
    service: String,
    address: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    key_port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forwarding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tunnel: Option<Encapsulation>,
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<u64>,
    reset: bool,
    removed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::load_text;

    fn objects(drain: &str, servers: &[u8]) -> Objects {
        let servers: Vec<String> = servers.iter().map(|last| format!("{{address: 10.0.0.{last}}}")).collect();
        let text = format!(
            "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec: {{address: 203.0.113.10, ports: [80], \
             protocol: tcp, forwarding: dr, scheduler: rr, {drain} realServers: [{}]}}\n",
            servers.join(", ")
        );
        load_text("web.yaml", &text).unwrap()
    }

    fn service(objects: &Objects) -> &VirtualService {
        objects.services().next().unwrap().0
    }

    fn key(last: u8) -> ServerKey {
        ServerKey { address: IpAddr::from([10, 0, 0, last]), port: 80 }
    }

    fn who(drains: &Drains, now: u64) -> Vec<(u8, bool)> {
        let last = |key: &ServerKey| match key.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        let all = drains.leaving(now);
        all.values().flatten().map(|(key, leaver)| (last(key), leaver.reset)).collect()
    }

    const POLICY: &str = "drain: {deadline: 10m},";

    #[test]
    fn an_order_drains_until_its_deadline_and_then_resets() {
        let objects = objects("", &[1, 2]);
        let service = service(&objects);
        let mut drains = Drains::default();
        drains.begin(service, &service.real_servers[0], 1000, Some(1600));
        assert_eq!(who(&drains, 1599), [(1, false)]);
        assert_eq!(who(&drains, 1600), [(1, true)]);
        assert!(drains.end(&service.name, key(1)));
        assert!(!drains.end(&service.name, key(1)), "twice");
        assert!(drains.is_empty());
    }

    #[test]
    fn without_a_deadline_connections_go_on() {
        let objects = objects("", &[1]);
        let service = service(&objects);
        let mut drains = Drains::default();
        drains.begin(service, &service.real_servers[0], 1000, None);
        assert_eq!(who(&drains, u64::MAX), [(1, false)]);
    }

    #[test]
    fn a_server_taken_from_the_manifest_leaves_by_the_policy_until_it_is_idle() {
        let (before, after) = (objects(POLICY, &[1, 2]), objects(POLICY, &[2]));
        let mut drains = Drains::default();
        drains.follow(&before, &after, 1000);
        assert_eq!(who(&drains, 1001), [(1, false)]);
        assert_eq!(drains.removed_of(&service(&after).name).count(), 1);
        assert!(!drains.end(&service(&after).name, key(1)), "apply the manifest that has it");
        drains.forget_idle(|_, _, _| false);
        assert_eq!(who(&drains, 1600), [(1, true)]);
        drains.forget_idle(|_, _, drain| drain.since <= 1000);
        assert!(drains.is_empty());
    }

    #[test]
    fn who_comes_back_stays_and_without_a_policy_nobody_leaves_slowly() {
        let (both, one) = (objects(POLICY, &[1, 2]), objects(POLICY, &[2]));
        let mut drains = Drains::default();
        drains.follow(&both, &one, 1000);
        drains.follow(&one, &both, 1010);
        assert!(drains.is_empty());
        drains.follow(&objects("", &[1, 2]), &objects("", &[2]), 1000);
        assert!(drains.is_empty());
        drains.follow(&both, &Objects::default(), 1000);
        assert!(drains.is_empty());
    }

    #[test]
    fn who_was_told_to_leave_keeps_its_deadline_when_the_manifest_loses_it() {
        let (before, after) = (objects(POLICY, &[1, 2]), objects(POLICY, &[2]));
        let mut drains = Drains::default();
        let old = service(&before);
        drains.begin(old, &old.real_servers[0], 1000, Some(1100));
        drains.follow(&before, &after, 1050);
        assert_eq!((who(&drains, 1099), who(&drains, 1100)), (vec![(1, false)], vec![(1, true)]));
    }

    #[test]
    fn drains_come_back_from_the_disk() {
        let (before, after) = (objects(POLICY, &[1, 2, 3]), objects(POLICY, &[2, 3]));
        let mut drains = Drains::default();
        let new = service(&after);
        drains.begin(new, &new.real_servers[0], 900, None);
        drains.follow(&before, &after, 1000);
        let text = serde_json::to_string(&drains.save()).unwrap();
        let back = Drains::load(&serde_json::from_str::<Vec<SavedDrain>>(&text).unwrap());
        assert_eq!(back, drains);
    }
}
