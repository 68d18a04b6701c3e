//! The director: owner of what should be. It knows the objects and what the network says of the ways to real
//! servers and clients, and turns them into the [`Layout`] that tables and host should have. Pure.

pub mod drain;
pub mod ebb;
mod health;
mod local;
mod origins;
mod rules;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::health::{Judged, Judgement};
use crate::manifest::Objects;
use crate::model::{
    ClientHop, ClientRoute, Forwarding, Name, NextHop, Object, ObjectId, RealServer, Resolution, ServerKey,
    VirtualService,
};
use crate::plan::{Followers, Hop, HopKey, Layout, Pool, Via};

pub use drain::{Drain, Drains, Leaver, Leaving};
pub use ebb::Ebb;
pub use origins::{Desired, Origin, Refused};
pub use service::{binding_of, mtu};

/// What happened in the world.
#[derive(Debug, Clone)]
pub enum Event {
    /// These are the objects now.
    Objects(Objects),
    /// The way to a real server.
    Resolution { address: IpAddr, resolution: Resolution },
    /// The way to the gateway of a route to clients.
    Gateway { address: IpAddr, ifindex: u32, resolution: Resolution },
    /// All routes to clients.
    ClientRoutes(Vec<ClientRoute>),
    /// The interfaces that frames can leave by: those with the program.
    Outputs(BTreeMap<u32, String>),
    /// The real servers that leave, all of them.
    Leaving(Leaving),
    /// The prefixes of all files that sources name.
    Lists(PrefixLists),
    /// Who of these services' real servers takes new connections.
    Judged(Vec<Judged>),
}

/// Prefixes by the file that lists them, sorted.
pub type PrefixLists = BTreeMap<PathBuf, Arc<Vec<IpNet>>>;

/// Desired state and what is known of the network.
#[derive(Debug, Clone, Default)]
pub struct Director {
    objects: Objects,
    resolutions: BTreeMap<IpAddr, Resolution>,
    /// The last way that was good. It stays when a neighbour falls silent: health checks take servers out, and
    /// until they do packets are better sent where they arrived before.
    ways: BTreeMap<IpAddr, NextHop>,
    gateways: BTreeMap<(IpAddr, u32), NextHop>,
    client_routes: Option<Vec<ClientRoute>>,
    outputs: BTreeMap<u32, String>,
    leaving: Leaving,
    lists: PrefixLists,
    health: BTreeMap<Name, Arc<Judgement>>,
    local: local::Local,
    /// Services by their real servers' addresses, and the other way round.
    users: BTreeMap<IpAddr, BTreeSet<Name>>,
    uses: BTreeMap<Name, BTreeSet<IpAddr>>,
    layout: Layout,
    /// Services whose layout is out of date.
    stale: BTreeSet<Name>,
}

/// How a real server stands, as far as the director decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It has slots, if it has a weight. The reason says what is wrong all the same, or is empty.
    In { reason: String },
    /// The way to it was never known: the question is under way, or failed.
    Resolving { reason: String },
    /// The way to it is known and cannot be used.
    Out { reason: String },
}

impl Director {
    /// Ways of an earlier run, found in the tables: good until something newer is known.
    pub fn recover(
        &mut self,
        ways: impl IntoIterator<Item = (IpAddr, NextHop)>,
        gateways: impl IntoIterator<Item = ((IpAddr, u32), NextHop)>,
    ) {
        self.ways.extend(ways);
        self.gateways.extend(gateways);
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Objects(objects) => self.set_objects(objects),
            Event::Resolution { address, resolution } => self.set_resolution(address, resolution),
            Event::Gateway { address, ifindex, resolution } => {
                if let Resolution::Resolved(hop) = resolution {
                    self.gateways.insert((address, ifindex), hop);
                }
            }
            Event::ClientRoutes(routes) => {
                let used: BTreeSet<_> = routes.iter().filter_map(|route| gateway_of(&route.via)).collect();
                self.gateways.retain(|gateway, _| used.contains(gateway));
                self.client_routes = Some(routes);
            }
            Event::Judged(judged) => {
                for Judged { service, judgement, .. } in judged {
                    let before = self.health.insert(service.clone(), Arc::clone(&judgement));
                    if before.is_none_or(|before| before.effect() != judgement.effect()) {
                        self.stale.insert(service);
                    }
                }
            }
            Event::Outputs(outputs) => {
                if self.outputs != outputs {
                    self.outputs = outputs;
                    self.stale.extend(self.objects.services().map(|(service, _)| service.name.clone()));
                }
            }
            Event::Leaving(leaving) => _ = self.set_leaving(leaving),
            Event::Lists(lists) => {
                for (service, _) in self.objects.services() {
                    let mut files = service.scheduling.sources.files();
                    if files.any(|file| self.lists.get(file) != lists.get(file)) {
                        self.stale.insert(service.name.clone());
                    }
                }
                self.lists = lists;
            }
        }
    }

    /// The layout that should be, in whole. Costs what changed since the last call, and a walk over the next
    /// hops.
    pub fn layout(&mut self) -> &Layout {
        for name in std::mem::take(&mut self.stale) {
            let id = ObjectId { kind: crate::model::Kind::VirtualService, name: name.clone() };
            match self.objects.get(&id).map(|entry| &*entry.object) {
                Some(Object::VirtualService(service)) => {
                    let names = service.table_names();
                    let mut layouts = Vec::with_capacity(names.len());
                    for single in service.singles() {
                        let mut layout = service::layout(self, &single);
                        layout.service.rules.leader =
                            (single.name != service.name).then(|| service.name.clone());
                        layouts.push((single.name.clone(), Arc::new(layout)));
                    }
                    self.forget_endpoints(&name, &names);
                    self.layout.services.extend(layouts);
                }
                _ => {
                    self.forget_endpoints(&name, &[]);
                    self.health.remove(&name);
                }
            }
        }
        self.layout.vrrp = self.vrrp();
        self.layout.pools = self.pools();
        self.layout.placed = self.placed();
        self.layout.client_routes = self.routes();
        self.layout.hops = self.hops();
        self.layout.peers = local::peers(self);
        &self.layout
    }

    /// Takes the endpoints of a service that are not among `names` out of the layout.
    fn forget_endpoints(&mut self, service: &Name, names: &[Name]) {
        let endpoints = self.layout.services.range(service.clone()..);
        let endpoints =
            endpoints.map(|(name, _)| name).take_while(|name| name.as_str().starts_with(&**service));
        let gone: Vec<Name> = endpoints
            .filter(|name| name.of_service() == service.as_str() && !names.contains(name))
            .cloned()
            .collect();
        for name in gone {
            self.layout.services.remove(&name);
        }
    }

    /// The last judgement on the servers of a service, or of an endpoint of one.
    fn health_of(&self, name: &Name) -> Option<&Judgement> {
        self.health.get(name.of_service()).map(|judgement| &**judgement)
    }

    /// The real servers of a service, or of an endpoint of one, that leave.
    fn leaving_of(&self, name: &Name) -> Option<&BTreeMap<ServerKey, Leaver>> {
        self.leaving.get(name.of_service())
    }

    /// The addresses whose ways must be known.
    pub fn watched(&self) -> BTreeSet<IpAddr> {
        self.users.keys().copied().chain(local::asked(self)).collect()
    }

    /// Whether an answer, good or bad, has come for every address.
    pub fn all_answered(&self) -> bool {
        let answered = |address| !matches!(self.resolutions.get(address), None | Some(Resolution::Pending));
        self.client_routes.is_some() && self.users.keys().all(answered)
    }

    /// The objects that should be.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// How a real server stands in its service.
    pub fn standing(&self, service: &VirtualService, server: &RealServer) -> Standing {
        if self.is_local(server.address) {
            return match local::obstacle(self, service, server) {
                None => Standing::In { reason: String::new() },
                Some(reason) => Standing::Out { reason },
            };
        }
        self.standing_of(server.address, service.forwarding_of(server))
    }

    /// As [`Director::standing`], of a real server elsewhere.
    fn standing_of(&self, address: IpAddr, forwarding: Forwarding) -> Standing {
        let reason = match self.resolutions.get(&address) {
            Some(Resolution::Failed { reason }) => reason.clone(),
            _ => String::new(),
        };
        match self.ways.get(&address) {
            None if reason.is_empty() => Standing::Resolving { reason: "resolving next hop".into() },
            None => Standing::Resolving { reason: format!("resolving next hop: {reason}") },
            Some(way) => match self.obstacle(address, forwarding, way) {
                None => Standing::In { reason },
                Some(reason) => Standing::Out { reason },
            },
        }
    }

    /// Whether an address is a real server's.
    pub fn uses(&self, address: IpAddr) -> bool {
        self.users.contains_key(&address)
    }

    /// Whether an address is one of this host's.
    pub fn is_local(&self, address: IpAddr) -> bool {
        matches!(self.resolutions.get(&address), Some(Resolution::Local))
    }

    /// Whether new flows can be given to a real server.
    fn reaches(&self, service: &VirtualService, server: &RealServer) -> bool {
        if self.is_local(server.address) {
            return local::obstacle(self, service, server).is_none();
        }
        self.usable_way(server.address, service.forwarding_of(server)).is_some()
    }

    /// The way to a real server, the last good one.
    pub fn way(&self, address: IpAddr) -> Option<&NextHop> {
        self.ways.get(&address)
    }

    /// The name of an interface with the program.
    pub fn output(&self, ifindex: u32) -> Option<&str> {
        self.outputs.get(&ifindex).map(String::as_str)
    }

    /// The way to a real server by which packets can be sent with this forwarding method.
    fn usable_way(&self, address: IpAddr, forwarding: Forwarding) -> Option<&NextHop> {
        self.ways.get(&address).filter(|way| self.obstacle(address, forwarding, way).is_none())
    }

    /// The way to an address, if it leaves by an interface with the program.
    fn open_way(&self, address: IpAddr) -> Option<&NextHop> {
        self.ways.get(&address).filter(|way| self.leaves(way))
    }

    /// Why packets cannot be sent this way.
    fn obstacle(&self, address: IpAddr, forwarding: Forwarding, way: &NextHop) -> Option<String> {
        if !self.leaves(way) {
            let ifindex = way.ifindex;
            return Some(format!(
                "its packets leave by interface {ifindex}, which is none of the Director's"
            ));
        }
        // The packet keeps the VIP as its destination: a router would send it back to us.
        (forwarding == Forwarding::Dr && way.neighbour != address).then(|| {
            let gateway = way.neighbour;
            format!("dr reaches no real server behind a router, and it is behind {gateway}; tun would")
        })
    }

    fn leaves(&self, way: &NextHop) -> bool {
        self.outputs.contains_key(&way.ifindex)
    }

    fn set_objects(&mut self, objects: Objects) {
        let mut changed = BTreeSet::new();
        for (id, entry) in self.objects.iter() {
            if objects.get(id).is_none_or(|new| new.object != entry.object) {
                self.stale.extend(concerned(&self.objects, &entry.object));
                changed.extend(service_of(&entry.object));
            }
        }
        for (id, entry) in objects.iter() {
            if self.objects.get(id).is_none_or(|old| old.object != entry.object) {
                self.stale.extend(concerned(&objects, &entry.object));
                changed.extend(service_of(&entry.object));
            }
        }
        self.objects = objects;
        self.set_users(&changed);
    }

    /// Whether the connections of a server that leaves are reset.
    pub fn resets(&self, service: &Name, key: ServerKey) -> bool {
        self.leaving_of(service).and_then(|all| all.get(&key)).is_some_and(|leaver| leaver.reset)
    }

    /// Notes who leaves; returns whether that is new.
    pub fn set_leaving(&mut self, leaving: Leaving) -> bool {
        if self.leaving == leaving {
            return false;
        }
        let names = self.leaving.keys().chain(leaving.keys());
        let changed: BTreeSet<Name> =
            names.filter(|name| self.leaving.get(*name) != leaving.get(*name)).cloned().collect();
        self.stale.extend(changed.iter().cloned());
        self.leaving = leaving;
        self.set_users(&changed);
        true
    }

    /// Notes which ways these services use, now that they have changed.
    fn set_users(&mut self, changed: &BTreeSet<Name>) {
        for name in changed {
            let mut uses = BTreeSet::new();
            if let Some(service) = self.service(name) {
                let servers = service.real_servers.iter().chain(service.health.sorry_server.as_deref());
                uses.extend(servers.map(|server| server.address));
            }
            let leavers = self.leaving.get(name).into_iter().flat_map(BTreeMap::values);
            uses.extend(leavers.map(|leaver| leaver.server.address));
            let before = match uses.is_empty() {
                true => self.uses.remove(name).unwrap_or_default(),
                false => self.uses.insert(name.clone(), uses.clone()).unwrap_or_default(),
            };
            for address in uses.difference(&before) {
                self.users.entry(*address).or_default().insert(name.clone());
            }
            for address in before.difference(&uses) {
                let Some(users) = self.users.get_mut(address) else { continue };
                users.remove(name);
                if users.is_empty() {
                    self.users.remove(address);
                    self.ways.remove(address);
                    self.resolutions.remove(address);
                }
            }
        }
    }

    fn service(&self, name: &Name) -> Option<&VirtualService> {
        let id = ObjectId { kind: crate::model::Kind::VirtualService, name: name.clone() };
        match &*self.objects.get(&id)?.object {
            Object::VirtualService(service) => Some(service),
            _ => None,
        }
    }

    fn set_resolution(&mut self, address: IpAddr, resolution: Resolution) {
        local::note(self, address, &resolution);
        // A late answer to a question nobody asks any more.
        let Some(users) = self.users.get(&address) else { return };
        let was_local = self.is_local(address);
        if was_local != (resolution == Resolution::Local) {
            self.ways.remove(&address);
            self.stale.extend(users.iter().cloned());
        }
        if let Resolution::Resolved(way) = &resolution {
            let path = |way: &NextHop| (HopKey::of(way, false), way.mtu);
            let before = self.ways.insert(address, way.clone());
            // Another MAC is one write to the next hop, whoever uses it.
            if before.as_ref().map(path) != Some(path(way)) {
                self.stale.extend(users.iter().cloned());
            }
        }
        self.resolutions.insert(address, resolution);
    }

    /// The addresses of each VRRP instance, and those of the pools that follow it.
    fn vrrp(&self) -> BTreeMap<Name, Followers> {
        let mut instances: BTreeMap<Name, Followers> = BTreeMap::new();
        for (instance, _) in self.objects.vrrp_instances() {
            let addresses = instance.all_addresses().map(|each| each.address.addr()).collect();
            instances.insert(instance.name.clone(), Followers { addresses, accept: instance.accept });
        }
        for (pool, _) in self.objects.pools() {
            if let Some(instance) = pool.vrrp.as_ref().and_then(|name| instances.get_mut(name)) {
                instance.addresses.extend(pool.addresses());
            }
        }
        instances
    }

    fn pools(&self) -> BTreeMap<Name, Pool> {
        let pool = |pool: &crate::model::LocalAddressPool| Pool {
            addresses: pool.addresses().collect(),
            share: pool.share,
        };
        self.objects.pools().map(|(object, _)| (object.name.clone(), pool(object))).collect()
    }

    /// What the agent puts on interfaces whatever its role; what follows a VRRP instance is not among it.
    fn placed(&self) -> BTreeSet<(String, IpAddr)> {
        let mut placed = BTreeSet::new();
        for (service, _) in self.objects.services() {
            if let Some(interface) = &service.address_interface {
                placed.extend(service.addresses().map(|address| (interface.clone(), address)));
            }
        }
        for (pool, _) in self.objects.pools().filter(|(pool, _)| pool.vrrp.is_none()) {
            if let Some(interface) = &pool.address_interface {
                placed.extend(pool.addresses().map(|address| (interface.clone(), address)));
            }
        }
        placed
    }

    /// Routes are of use only to replies, which pass here under NAT and FULLNAT. A client without one is
    /// answered by the way its packets came, so a gateway that is not known yet is left out.
    fn routes(&self) -> Option<BTreeMap<ipnet::IpNet, Via>> {
        let translates =
            |service: &VirtualService| service.uses(Forwarding::Nat) || service.uses(Forwarding::FullNat);
        if !self.objects.services().any(|(service, _)| translates(service)) {
            return Some(BTreeMap::new());
        }
        let mut routes = BTreeMap::new();
        // Nothing is known yet: what is there stays.
        let Some(known) = &self.client_routes else { return self.layout.client_routes.clone() };
        for route in known {
            match route.via {
                ClientHop::OnLink { .. } => {
                    routes.insert(route.prefix, Via::OnLink);
                }
                ClientHop::Gateway { address, ifindex } => {
                    if let Some(way) = self.gateways.get(&(address, ifindex)).filter(|way| self.leaves(way)) {
                        routes.insert(route.prefix, Via::Hop(HopKey::of(way, true)));
                    }
                }
                ClientHop::Unreachable => {}
            }
        }
        Some(routes)
    }

    fn hops(&self) -> BTreeMap<HopKey, Hop> {
        let mut hops: BTreeMap<HopKey, Hop> = BTreeMap::new();
        let mut add = |way: &NextHop, for_clients| {
            let hop = hops.entry(HopKey::of(way, for_clients)).or_insert_with(|| Hop::of(way));
            hop.add_source(way.source);
        };
        for address in self.users.keys() {
            if let Some(way) = self.open_way(*address) {
                add(way, false);
            }
        }
        let used: BTreeSet<HopKey> =
            self.layout.client_routes.iter().flat_map(BTreeMap::values).filter_map(hop_of).collect();
        for way in self.gateways.values() {
            if used.contains(&HopKey::of(way, true)) {
                add(way, true);
            }
        }
        hops
    }
}

fn hop_of(via: &Via) -> Option<HopKey> {
    match via {
        Via::OnLink => None,
        Via::Hop(key) => Some(*key),
    }
}

fn gateway_of(via: &ClientHop) -> Option<(IpAddr, u32)> {
    match via {
        ClientHop::Gateway { address, ifindex } => Some((*address, *ifindex)),
        ClientHop::OnLink { .. } | ClientHop::Unreachable => None,
    }
}

/// The name of a service.
fn service_of(object: &Object) -> Option<Name> {
    match object {
        Object::VirtualService(service) => Some(service.name.clone()),
        _ => None,
    }
}

/// The services whose layout depends on an object.
fn concerned(objects: &Objects, object: &Object) -> Vec<Name> {
    match object {
        Object::Director(_) => Vec::new(),
        Object::VirtualService(service) => vec![service.name.clone()],
        Object::VrrpInstance(instance) => objects
            .services()
            .filter(|(service, _)| instance.has_address(service.address))
            .map(|(service, _)| service.name.clone())
            .collect(),
        Object::VrrpSyncGroup(_) => Vec::new(),
        Object::LocalAddressPool(pool) => objects
            .services()
            .filter(|(service, _)| service.local_addresses.as_ref() == Some(&pool.name))
            .map(|(service, _)| service.name.clone())
            .collect(),
    }
}

#[cfg(test)]
mod scheduling_tests;
#[cfg(test)]
mod tests;
