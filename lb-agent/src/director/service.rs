//! What one virtual service should look like in the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lb_common::sctp;
use lb_common::state::{DEFAULT_TIMEOUTS, State};

use super::{Director, health, rules};
use crate::model::health::{Check, Flows, Path};
use crate::model::{
    FlowHash, Forwarding, MssClamp, NextHop, Object, ObjectId, Protocol, RealServer, Scheduler, Timeouts,
    VirtualService,
};
use crate::plan::{
    Binding, Destination, HopKey, Lookup, Pool, Role, Service, ServiceLayout, Slots, Standing,
};
use crate::scheduler::{self, Candidate};

/// The layout of `service`, by what the director knows of the ways to its real servers.
pub fn layout(director: &Director, service: &VirtualService) -> ServiceLayout {
    let mut destinations = BTreeMap::new();
    let mut roles = BTreeSet::from([(Role::Vip, service.address)]);
    let mut candidates = scheduler::candidates(service);
    let mut servers = Vec::with_capacity(service.real_servers.len());
    let leaving = director.leaving_of(&service.name);
    // Of an endpoint it is that of its service.
    let judgement = director.health_of(&service.name);
    let health = health::verdicts(judgement, service);
    let sorry = service.health.sorry_server.as_deref().filter(|_| health.sorry);
    let walked = rules::walked(director, service, sorry);
    let ordinals = rules::ordinals(&walked);
    for ((server, verdict), candidate) in
        service.real_servers.iter().zip(&health.servers).zip(&mut candidates)
    {
        let binding = binding_of(service, server);
        let leaver = leaving.and_then(|leaving| leaving.get(&candidate.key));
        let cut_off = !director.reaches(service, server);
        candidate.available = verdict.takes_new && !cut_off && leaver.is_none();
        candidate.weight = verdict.weight;
        let ordinal = ordinals.get(&binding).copied().unwrap_or(0);
        let standing = Standing {
            watched: service.health.watches(server),
            ..rules::standing(director, server, candidate, cut_off, leaver, ordinal)
        };
        // The destination keeps its next hop when it leaves the slots: its flows go on.
        let destination = destination(director, service, server);
        destinations.insert(binding, Destination { standing, flows: verdict.flows, ..destination });
        if binding.forwarding == Forwarding::Nat {
            roles.insert((Role::NatSource, server.address));
        }
        let on_real_path = |check: &Arc<Check>| check.path_of(binding.forwarding) == Path::Real;
        if service.health.probation_checks_of(server).iter().any(on_real_path) {
            roles.insert((Role::Probed, service.address));
        }
        servers.push(binding);
    }
    for (key, leaver) in leaving.into_iter().flatten() {
        let binding = binding_of(service, &leaver.server);
        if destinations.contains_key(&binding) {
            continue;
        }
        let gone = Candidate { key: *key, weight: 0, available: false };
        let standing = rules::standing(director, &leaver.server, &gone, false, Some(leaver), 0);
        destinations
            .insert(binding, Destination { standing, ..destination(director, service, &leaver.server) });
        if binding.forwarding == Forwarding::Nat {
            roles.insert((Role::NatSource, leaver.server.address));
        }
    }
    if let Some(sorry) = &service.health.sorry_server {
        let binding = binding_of(service, sorry);
        let available = director.reaches(service, sorry);
        let candidate = Candidate { key: service.key_of(sorry), weight: 1, available };
        // Always there, so that what it was given goes on when it gives back.
        let standing = rules::standing(director, sorry, &candidate, !available, None, 0);
        destinations.insert(binding, Destination { standing, ..destination(director, service, sorry) });
        if binding.forwarding == Forwarding::Nat {
            roles.insert((Role::NatSource, sorry.address));
        }
        if health.sorry {
            servers = vec![binding];
            candidates = vec![candidate];
        }
    }
    if super::local::is_peered(&destinations) {
        roles.insert((Role::Peered, service.address));
    }
    let ipvs = service.scheduling.ipvs_compatible;
    let table = scheduler::build(
        &scheduler::Rules { scheduler: service.scheduler, ipvs, vip: service.address },
        &candidates,
    );
    let server_ids = service
        .real_servers
        .iter()
        .filter_map(|server| Some((server.limits.server_id.clone()?, binding_of(service, server))));
    ServiceLayout {
        service: Service {
            vip: service.address,
            protocol: service.protocol,
            lookup: lookup(service),
            on_unknown_flow: service.on_unknown_flow,
            mss: mss(service, destinations.values()),
            timeouts: timeouts(service.protocol, &service.timeouts),
            pool: pool(director, service),
            rules: rules::rules(director, service),
        },
        destinations,
        slots: Slots { servers: Arc::new(servers), slots: Arc::new(table.slots), exact: table.exact },
        servers: Arc::new(walked),
        server_ids: server_ids.collect(),
        ports: service.ports.clone(),
        roles,
    }
}

/// What a real server is called in the tables.
pub fn binding_of(service: &VirtualService, server: &RealServer) -> Binding {
    let port = translated_port(service, server).unwrap_or(0);
    Binding { address: server.address, port, forwarding: service.forwarding_of(server) }
}

/// The real server's port where it is another than the service's.
fn translated_port(service: &VirtualService, server: &RealServer) -> Option<u16> {
    server
        .port
        .filter(|_| service.forwarding_of(server).translates())
        .filter(|port| service.ports.single() != Some(*port))
}

/// The largest IP packet that may be forwarded by `way`.
pub fn mtu(service: &VirtualService, server: &RealServer, way: &NextHop) -> u16 {
    let tunnel = service.encapsulation_of(server);
    let overhead = tunnel.overhead(service.forwarding_of(server), server.address.is_ipv6());
    u16::try_from(way.mtu.saturating_sub(overhead.into())).unwrap_or(u16::MAX)
}

fn destination(director: &Director, service: &VirtualService, server: &RealServer) -> Destination {
    let way = director.open_way(server.address);
    let local = director.is_local(server.address) && !service.forwarding_of(server).translates();
    let translated = translated_port(service, server);
    Destination {
        hop: way.map(|way| HopKey::of(way, false)),
        local,
        // The kernel takes whatever has come.
        mtu: if local { u16::MAX } else { way.map_or(0, |way| mtu(service, server, way)) },
        tunnel: service.encapsulation_of(server),
        timeout: match service.protocol {
            Protocol::Tcp | Protocol::Sctp => service.timeouts.established,
            Protocol::Udp => service.timeouts.udp,
        },
        vip_port: translated.and(service.ports.single()).unwrap_or(0),
        standing: Standing::default(),
        flows: Flows::Stay,
    }
}

fn lookup(service: &VirtualService) -> Lookup {
    let port = service.hash == FlowHash::AddressPort;
    match (service.scheduler, service.scheduling.ipvs_compatible) {
        (Scheduler::Rr | Scheduler::Wrr, _) => Lookup::Cursor,
        (Scheduler::Sh, true) => Lookup::IpvsSh { port },
        (Scheduler::Mh, true) => Lookup::IpvsMh { port },
        (Scheduler::Sh | Scheduler::Mh, false) if port => Lookup::HashAddressPort,
        (Scheduler::Sh | Scheduler::Mh, false) => Lookup::HashAddress,
        (Scheduler::Dh, _) => Lookup::HashDestination,
        (counts, _) => Lookup::Walk(counts),
    }
}

/// What SYNs may announce at most: what the narrowest way carries without the headers of IP and TCP (20 or 40
/// bytes, and 20; options are not counted, RFC 6691). 0 leaves them as they are.
fn mss<'a>(service: &VirtualService, destinations: impl Iterator<Item = &'a Destination>) -> u16 {
    if service.protocol != Protocol::Tcp {
        return 0;
    }
    match service.mss_clamp {
        MssClamp::Off => 0,
        MssClamp::To(mss) => mss,
        MssClamp::Auto => {
            let headers = if service.address.is_ipv6() { 60 } else { 40 };
            let mtus = destinations.filter(|destination| destination.hop.is_some()).map(|d| d.mtu);
            mtus.min().map_or(0, |mtu| mtu.saturating_sub(headers))
        }
    }
}

/// By state number: what the manifest says, else IPVS's.
fn timeouts(protocol: Protocol, timeouts: &Timeouts) -> [Duration; 16] {
    if protocol == Protocol::Sctp {
        return sctp_timeouts(timeouts);
    }
    let mut all = DEFAULT_TIMEOUTS.map(|seconds| Duration::from_secs(seconds.into()));
    for (state, timeout) in [
        (State::Established, timeouts.established),
        (State::SynSent, timeouts.syn_sent),
        (State::SynReceived, timeouts.syn_received),
        (State::FinWait, timeouts.fin_wait),
        (State::TimeWait, timeouts.time_wait),
        (State::Close, timeouts.close),
        (State::CloseWait, timeouts.close_wait),
        (State::LastAck, timeouts.last_ack),
        (State::Listen, timeouts.listen),
        (State::SynAck, timeouts.syn_ack),
        (State::Udp, timeouts.udp),
        (State::Unconfirmed, timeouts.unconfirmed),
    ] {
        all[state as usize] = timeout;
    }
    all
}

/// As [`timeouts`], by the numbers of SCTP's states.
fn sctp_timeouts(timeouts: &Timeouts) -> [Duration; 16] {
    use sctp::State;
    let mut all = sctp::DEFAULT_TIMEOUTS.map(|seconds| Duration::from_secs(seconds.into()));
    for state in State::ALL {
        all[state as usize] = match state {
            State::Established => timeouts.established,
            State::Init1 => timeouts.init1,
            State::Init => timeouts.init,
            State::CookieSent
            | State::CookieReplied
            | State::CookieWait
            | State::Cookie
            | State::CookieEchoed => timeouts.cookie,
            State::ShutdownSent | State::ShutdownReceived | State::ShutdownAckSent => timeouts.shutdown,
            State::Unconfirmed => timeouts.unconfirmed,
            State::Rejected => timeouts.rejected,
            State::Closed => timeouts.closed,
        };
    }
    all
}

fn pool(director: &Director, service: &VirtualService) -> Option<(crate::model::Name, Pool)> {
    let name = service.local_addresses.clone()?;
    let id = ObjectId { kind: crate::model::Kind::LocalAddressPool, name: name.clone() };
    match &*director.objects.get(&id)?.object {
        Object::LocalAddressPool(pool) => {
            Some((name, Pool { addresses: pool.addresses().collect(), share: pool.share }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sctp_service_has_the_timeouts_of_ipvs_in_the_places_of_its_states() {
        let all = timeouts(Protocol::Sctp, &Timeouts::default());
        for state in sctp::State::ALL {
            let expected = match state {
                // IPVS has no such state.
                sctp::State::Unconfirmed => 30,
                other => sctp::DEFAULT_TIMEOUTS[other as usize],
            };
            assert_eq!(all[state as usize], Duration::from_secs(expected.into()), "{}", state.name());
        }
        let own = Timeouts { shutdown: Duration::from_secs(7), ..Timeouts::default() };
        let of = |state: sctp::State| timeouts(Protocol::Sctp, &own)[state as usize].as_secs();
        assert_eq!((of(sctp::State::ShutdownReceived), of(sctp::State::Closed)), (7, 61));
        let tcp = timeouts(Protocol::Tcp, &own);
        assert_eq!(tcp[State::TimeWait as usize], Timeouts::default().time_wait);
    }
}
