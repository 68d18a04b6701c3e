//! What the operator sees: the director's objects and standings with the sweeper's counts and the data plane's
//! counters.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::destination::{Forwarding as RecordForwarding, Traffic};
use tokio::sync::oneshot;

use super::drain::drain_reason;
use super::{Agent, health_views};
use crate::apply::destination_key;
use crate::control::views::{
    ConnectionView, ConnectionsView, CountersView, EndpointView, FramesView, InterfaceView, LimitsView,
    ObjectView, Origin, RealServerState, RealServerView, ReasonView, ServiceState, ServiceView, StatusView,
    TrafficView,
};
use crate::control::{ConnectionFilter, Refusal};
use crate::dataplane::dump::{self, Connection, Protocol as Transport};
use crate::dataplane::{Error, Scan};
use crate::director::{self, Drain, Standing, binding_of, mtu};
use crate::manifest::{self, FORWARDING, PROTOCOLS, SCHEDULERS, word_of};
use crate::model::{
    Endpoint, Forwarding, Kind, LinkCounters, LinkTraffic, NextHop, ObjectId, RealServer, VirtualService,
    field_effect,
};
use crate::plan::{Binding, Mac};

impl Agent {
    pub(super) fn objects(&self) -> Vec<ObjectView> {
        let view = |(id, entry): (&ObjectId, &manifest::Entry)| ObjectView {
            manifest: manifest::to_manifest(&entry.object),
            origin: self.origin(id),
        };
        self.director.objects().iter().map(view).collect()
    }

    pub(super) fn services(&self) -> Vec<ServiceView> {
        let counts = Counts::now(self);
        self.director.objects().services().map(|(service, _)| self.service(service, &counts)).collect()
    }

    pub(super) fn real_servers(&self, name: Option<&str>) -> Vec<RealServerView> {
        let counts = Counts::now(self);
        let services = self.director.objects().services().map(|(service, _)| service);
        let mut views = Vec::new();
        for service in services.filter(|service| name.is_none_or(|name| service.name.as_str() == name)) {
            views
                .extend(service.real_servers.iter().map(|server| self.real_server(service, server, &counts)));
            let sorry = service.health.sorry_server.as_deref();
            views.extend(sorry.map(|server| self.sorry_server(service, server, &counts)));
            views.extend(self.removed_servers(service, &counts));
        }
        views
    }

    pub(super) fn counters(&self) -> Result<CountersView, Refusal> {
        let failed =
            |error: Error| Refusal::Failed { step: "read the counters".into(), cause: error.to_string() };
        let mut forwarded = Traffic::default();
        for traffic in self.counters.destinations().map_err(failed)?.values() {
            add(&mut forwarded, traffic);
        }
        let reasons = self.counters.reasons().map_err(failed)?;
        let reason = |(reason, count): (lb_common::verdict::Reason, lb_common::verdict::Count)| ReasonView {
            name: reason.name().into(),
            class: crate::metrics::class_name(reason.class()).into(),
            packets: count.packets,
            bytes: count.bytes,
            text: reason.text().into(),
        };
        Ok(CountersView {
            reasons: reasons.into_iter().map(reason).collect(),
            forwarded: traffic_view(&forwarded),
            retired: traffic_view(&self.counters.retired().map_err(failed)?),
        })
    }

    pub(super) fn status(&self, links: &BTreeMap<String, LinkCounters>) -> StatusView {
        let counts = Counts::now(self);
        let services = self.services();
        let director = self.director.objects().director();
        let restart_needed = director.map_or(Vec::new(), |director| {
            let (old, new) = (self.running.clone(), director.clone());
            let (old, new) = (crate::model::Object::Director(old), crate::model::Object::Director(new));
            let mut fields = manifest::changed_fields(&old, &new);
            fields.retain(|field| field_effect(Kind::Director, field) == crate::model::Effect::Restart);
            fields
        });
        let flows = counts.all();
        StatusView {
            director: director.map_or(String::new(), |director| director.name.to_string()),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs(),
            kernel: self.kernel.clone(),
            interfaces: self.interface_views(links),
            services: services.len() as u32,
            real_servers: services.iter().map(|service| service.servers).sum(),
            real_servers_in: services.iter().map(|service| service.servers_in).sum(),
            active: flows.0,
            inactive: flows.1,
            vrrp: self.vrrp_status(),
            connections_max: self.running.connections_max,
            checks: self.checks_status(),
            restart_needed,
            problems: self
                .problems
                .values()
                .flatten()
                .cloned()
                .chain(self.vrrp_problems())
                .chain(self.health.monitor.load().late())
                .collect(),
        }
    }

    /// One line for `systemctl status`.
    pub(super) fn status_line(&self) -> String {
        let services = self.director.objects().services().count();
        let problems: usize = self.problems.values().map(Vec::len).sum();
        match problems {
            0 => format!("{services} virtual services"),
            _ => format!("{services} virtual services, {problems} problems: see `lb-agent get status`"),
        }
    }

    /// Walks the table on a thread of its own: it may have millions of entries.
    pub(super) fn connections(
        &self,
        limit: usize,
        filter: ConnectionFilter,
        reply: oneshot::Sender<Result<ConnectionsView, Refusal>>,
    ) {
        if let Some(name) = &filter.service
            && self.applier.tables().service(name).is_none()
        {
            let _ = reply.send(Err(Refusal::Missing { object: format!("{}/{name}", Kind::VirtualService) }));
            return;
        }
        let failed =
            |error: Error| Refusal::Failed { step: "read the connections".into(), cause: error.to_string() };
        let pool = match self.dataplane.pool() {
            Ok(pool) => pool,
            Err(error) => {
                let _ = reply.send(Err(failed(error)));
                return;
            }
        };
        let tables = self.applier.tables();
        let names: BTreeMap<u32, String> = tables
            .service_names()
            .filter_map(|name| Some((tables.service(name)?, name.to_owned())))
            .collect();
        let (views, clock) = (self.dataplane.views(), self.dataplane.clock());
        // Ends by itself; nobody waits for it but the receiver of the reply.
        tokio::task::spawn_blocking(move || {
            let mut found = ConnectionsView::default();
            let result = dump::connections(&views, &clock, &pool, |connection| {
                let service = names.get(&connection.service).cloned().unwrap_or_default();
                let view = connection_view(connection, service);
                if !passes(&view, &filter) {
                    return true;
                }
                found.truncated = found.connections.len() >= limit;
                if !found.truncated {
                    found.connections.push(view);
                }
                !found.truncated
            });
            let _ = reply.send(result.map(|()| found).map_err(failed));
        });
    }

    fn service(&self, service: &VirtualService, counts: &Counts<'_>) -> ServiceView {
        let mut servers_in = 0;
        let mut reasons = Vec::new();
        for server in service.real_servers.iter().filter(|server| server.weight > 0) {
            match self.director.standing(service, server) {
                Standing::In { .. } => match self.verdict(service, server) {
                    Some(verdict) if !verdict.standing.takes_new() => {
                        reasons.push(format!("{}: {}", server.address, verdict.reason));
                    }
                    _ => servers_in += 1,
                },
                Standing::Resolving { reason } | Standing::Out { reason } => {
                    reasons.push(format!("{}: {reason}", server.address));
                }
            }
        }
        let with_weight = service.real_servers.iter().filter(|server| server.weight > 0).count();
        let judgement = self.health.roster.judgement(&service.name);
        let state = match servers_in {
            0 => ServiceState::Down,
            n if n < with_weight => ServiceState::Partial,
            _ => ServiceState::Up,
        };
        let reason = match (&reasons[..], with_weight) {
            ([], 0) if service.real_servers.is_empty() => "no real servers".into(),
            ([], 0) => "every real server has weight 0".into(),
            ([], _) => String::new(),
            ([first], _) => first.clone(),
            ([first, rest @ ..], _) => format!("{first} (and {} more)", rest.len()),
        };
        let slots = self.applier.done().services.get(&service.name).map(|layout| &layout.slots);
        let (mut active, mut inactive, mut traffic) = (0, 0, Traffic::default());
        let names = service.table_names();
        let tables = self.applier.tables();
        for (_, index) in names.iter().flat_map(|name| tables.destinations_of(name)) {
            let (a, i, t) = counts.of(index);
            (active, inactive) = (active + a, inactive + i);
            add(&mut traffic, &t);
        }
        ServiceView {
            name: service.name.to_string(),
            address: service.address,
            ports: service.ports.to_string(),
            protocol: word_of(&PROTOCOLS, service.protocol).into(),
            scheduler: word_of(&SCHEDULERS, service.scheduler).into(),
            forwarding: word_of(&FORWARDING, service.forwarding).into(),
            state,
            reason,
            servers_in: servers_in as u32,
            servers: service.real_servers.len() as u32,
            active,
            inactive,
            traffic: traffic_view(&traffic),
            slots: slots.map_or(0, |slots| slots.slots.len() as u32),
            live: judgement.map_or(0, |judgement| judgement.live),
            quorum: service.health.quorum.weight,
            sorry: judgement.is_some_and(|judgement| judgement.sorry),
            exact: slots.is_none_or(|slots| slots.exact),
            address_interface: service.address_interface.clone(),
            endpoints: service.endpoints.iter().map(endpoint_view).collect(),
            origin: self.origin(&ObjectId { kind: Kind::VirtualService, name: service.name.clone() }),
        }
    }

    fn real_server(
        &self,
        service: &VirtualService,
        server: &RealServer,
        counts: &Counts<'_>,
    ) -> RealServerView {
        let binding = binding_of(service, server);
        let (active, inactive, traffic, limits) = self.counted(service, &binding, counts);
        let left = self.left(service, &binding, counts.scan.as_deref());
        let drain = self.drain_view(&service.name, service.key_of(server), left);
        let (state, reason) = match self.director.standing(service, server) {
            Standing::Resolving { reason } => (RealServerState::Resolving, reason),
            Standing::Out { reason } => (RealServerState::Out, reason),
            Standing::In { .. } if drain.is_some() => {
                (RealServerState::Draining, drain_reason(drain.as_ref()))
            }
            Standing::In { reason } => match self.verdict(service, server) {
                Some(verdict) if !verdict.standing.takes_new() => {
                    (health_views::state_of(verdict.standing), verdict.reason.clone())
                }
                _ if server.weight == 0 => (RealServerState::Draining, reason),
                Some(verdict) if reason.is_empty() => (RealServerState::In, verdict.reason.clone()),
                _ => (RealServerState::In, reason),
            },
        };
        let verdict = self.verdict(service, server);
        let takes_new = state == RealServerState::In;
        let effective =
            verdict.map_or(f64::from(server.weight), |verdict| f64::from(verdict.weight) / 1000.0);
        let way = self.director.way(server.address);
        RealServerView {
            service: service.name.to_string(),
            address: server.address,
            port: service.port_of(server),
            weight: server.weight,
            effective_weight: if takes_new { effective } else { 0.0 },
            sorry: false,
            since: verdict.map(|verdict| health_views::Now::take().utc_of(verdict.since)),
            forwarding: word_of(&FORWARDING, binding.forwarding).into(),
            state,
            reason,
            next_hop: match self.director.is_local(server.address) {
                true => "this host".into(),
                false => way.map_or(String::new(), |way| self.next_hop_text(server, way)),
            },
            mtu: way.map_or(0, |way| u32::from(mtu(service, server, way))),
            active,
            inactive,
            traffic: traffic_view(&traffic),
            limits,
            drain,
        }
    }

    fn sorry_server(
        &self,
        service: &VirtualService,
        server: &RealServer,
        counts: &Counts<'_>,
    ) -> RealServerView {
        let mut view = self.real_server(service, server, counts);
        view.sorry = true;
        let stands_in = self.health.roster.judgement(&service.name).is_some_and(|judgement| judgement.sorry);
        if view.state == RealServerState::In {
            (view.state, view.reason) = match stands_in {
                true => (RealServerState::In, "sorry server, stands in".into()),
                false => (RealServerState::Standby, "sorry server, not needed".into()),
            };
        }
        view.effective_weight = f64::from(u8::from(view.state == RealServerState::In));
        view
    }

    /// Flows, traffic and limits of a real server at all endpoints of a service.
    fn counted(
        &self,
        service: &VirtualService,
        binding: &Binding,
        counts: &Counts<'_>,
    ) -> (u64, u64, Traffic, LimitsView) {
        let (mut active, mut inactive, mut traffic) = (0, 0, Traffic::default());
        let mut limits = LimitsView::default();
        for name in service.table_names() {
            let Some(index) = self.applier.tables().destination(&destination_key(&name, binding)) else {
                continue;
            };
            let (a, i, t) = counts.of(index);
            (active, inactive) = (active + a, inactive + i);
            add(&mut traffic, &t);
            // One load for all endpoints.
            if let Some(load) = self.applier.tables().load(index) {
                limits.connections_max = load.upper;
                limits.connections_resume = match (load.upper, load.lower) {
                    (0, _) => 0,
                    (upper, 0) => (u64::from(upper) * 3 / 4) as u32,
                    (_, lower) => lower,
                };
                limits.overloaded = load.overloaded != 0;
            }
            limits.persistent += counts.persistent(index);
        }
        (active, inactive, traffic, limits)
    }

    /// Those that were taken out of a service and still have flows.
    fn removed_servers(&self, service: &VirtualService, counts: &Counts<'_>) -> Vec<RealServerView> {
        let removed = self.applier.tables().removed_destinations_of(&service.name).into_iter();
        let views = removed.map(|(key, index)| {
            let (active, inactive, traffic) = counts.of(index);
            let forwarding = [Forwarding::Dr, Forwarding::Tun, Forwarding::Nat, Forwarding::FullNat]
                [usize::from(key.forwarding & 3)];
            RealServerView {
                service: service.name.to_string(),
                address: key.address,
                port: Some(key.port).filter(|port| *port != 0).or(service.ports.single()),
                weight: 0,
                effective_weight: 0.0,
                sorry: false,
                since: None,
                forwarding: word_of(&FORWARDING, forwarding).into(),
                state: RealServerState::Removed,
                reason: "no longer in the manifest; its connections go on".into(),
                next_hop: String::new(),
                mtu: 0,
                active,
                inactive,
                traffic: traffic_view(&traffic),
                limits: LimitsView::default(),
                drain: None,
            }
        });
        let views = views.filter(|view| view.active + view.inactive > 0);
        views.chain(self.leaving_servers(service, counts)).collect()
    }

    /// Those that the manifest has no more and that drain by the service's policy.
    fn leaving_servers(&self, service: &VirtualService, counts: &Counts<'_>) -> Vec<RealServerView> {
        let view = |drain: &Drain| {
            let mut view = self.real_server(service, &drain.server, counts);
            view.weight = 0;
            view.state = RealServerState::Removed;
            view.reason = format!("no longer in the manifest; {}", drain_reason(view.drain.as_ref()));
            view
        };
        self.drains.removed_of(&service.name).map(view).collect()
    }

    fn next_hop_text(&self, server: &RealServer, way: &NextHop) -> String {
        let mac = Mac(way.destination_mac);
        let mut text = match way.neighbour == server.address {
            true => mac.to_string(),
            false => format!("{} ({mac})", way.neighbour),
        };
        match self.director.output(way.ifindex) {
            Some(name) => text.push_str(&format!(" on {name}")),
            None => text.push_str(&format!(" on interface {}", way.ifindex)),
        }
        for vlan in way.vlans.iter().filter(|vlan| **vlan != 0) {
            text.push_str(&format!(" vlan {}", vlan & 0xfff));
        }
        text
    }

    pub(super) fn interface_views(&self, counters: &BTreeMap<String, LinkCounters>) -> Vec<InterfaceView> {
        let attached = self.dataplane.attached();
        let frames = |name: &str| {
            let counted = counters.get(name).copied().unwrap_or_default();
            InterfaceView {
                name: String::new(),
                mode: String::new(),
                reason: String::new(),
                received: frames_view(counted.received),
                sent: frames_view(counted.sent),
            }
        };
        let view = |wanted: &crate::model::Interface| match attached
            .iter()
            .find(|attached| attached.name == wanted.name)
        {
            Some(attached) => InterfaceView {
                name: wanted.name.clone(),
                mode: attached.mode.name().into(),
                reason: attached.refused.clone().unwrap_or_default(),
                ..frames(&wanted.name)
            },
            None => InterfaceView {
                name: wanted.name.clone(),
                mode: "none".into(),
                reason: "not attached".into(),
                ..frames(&wanted.name)
            },
        };
        self.running.interfaces.iter().map(view).collect()
    }

    fn origin(&self, id: &ObjectId) -> Origin {
        match self.desired.origin(id) {
            director::Origin::File(file) => Origin::File(file),
            director::Origin::Api => Origin::Api,
        }
    }
}

/// Flows and traffic by destination index, of one moment.
struct Counts<'a> {
    scan: Option<Arc<Scan>>,
    agent: &'a Agent,
}

impl<'a> Counts<'a> {
    fn now(agent: &'a Agent) -> Counts<'a> {
        Counts { scan: agent.dataplane.board().latest(), agent }
    }

    /// Active and inactive flows, and what was forwarded.
    fn of(&self, destination: u32) -> (u64, u64, Traffic) {
        let count = self.scan.as_ref().map(|scan| scan.count(destination)).unwrap_or_default();
        // A counter that cannot be read is shown as 0; `get counters` says why.
        let traffic = self.agent.counters.destination(destination).unwrap_or_default();
        (count.active.into(), count.inactive.into(), traffic)
    }

    /// Clients that keep the server.
    fn persistent(&self, destination: u32) -> u64 {
        let templates = self.scan.as_ref().and_then(|scan| scan.templates.get(destination as usize));
        templates.copied().unwrap_or_default().into()
    }

    fn all(&self) -> (u64, u64) {
        let counts = self.scan.iter().flat_map(|scan| &scan.counts);
        counts.fold((0, 0), |(active, inactive), count| {
            (active + u64::from(count.active), inactive + u64::from(count.inactive))
        })
    }
}

fn endpoint_view(endpoint: &Endpoint) -> EndpointView {
    let Endpoint { address, ports, protocol } = endpoint;
    let protocol = word_of(&PROTOCOLS, *protocol).into();
    EndpointView { address: *address, ports: ports.to_string(), protocol }
}

fn connection_view(connection: Connection, service: String) -> ConnectionView {
    let forwarding = match connection.forwarding {
        RecordForwarding::Dr => Forwarding::Dr,
        RecordForwarding::Tun => Forwarding::Tun,
        RecordForwarding::Nat => Forwarding::Nat,
        RecordForwarding::FullNat => Forwarding::FullNat,
    };
    ConnectionView {
        protocol: match connection.protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        }
        .into(),
        service,
        client: connection.client,
        virtual_address: connection.vip,
        real_server: connection.real_server,
        local: connection.local,
        forwarding: word_of(&FORWARDING, forwarding).into(),
        state: connection.state.name().into(),
        expires_in: connection.expires_in.as_secs(),
    }
}

fn passes(view: &ConnectionView, filter: &ConnectionFilter) -> bool {
    filter.service.as_ref().is_none_or(|service| *service == view.service)
        && filter.client.is_none_or(|client| client == view.client.ip())
        && filter.real_server.is_none_or(|server| server == view.real_server.ip())
        && filter.state.as_ref().is_none_or(|state| state.eq_ignore_ascii_case(&view.state))
}

fn add(sum: &mut Traffic, more: &Traffic) {
    sum.packets_in += more.packets_in;
    sum.bytes_in += more.bytes_in;
    sum.packets_out += more.packets_out;
    sum.bytes_out += more.bytes_out;
}

fn traffic_view(traffic: &Traffic) -> TrafficView {
    TrafficView {
        packets_in: traffic.packets_in,
        bytes_in: traffic.bytes_in,
        packets_out: traffic.packets_out,
        bytes_out: traffic.bytes_out,
    }
}

fn frames_view(counted: LinkTraffic) -> FramesView {
    let LinkTraffic { packets, bytes, dropped, errors } = counted;
    FramesView { packets, bytes, dropped, errors }
}
