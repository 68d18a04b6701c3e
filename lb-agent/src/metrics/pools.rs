//! Virtual services and their real servers.

use std::collections::BTreeMap;
use std::fmt;

use lb_common::destination::Traffic;

use super::families::{Families, Labels};
use super::{Facts, ServerFacts, ServiceFacts};

pub fn write(to: &mut Families<'_>, facts: &Facts) -> Result<(), fmt::Error> {
    let mut of_services = |name: &str, help: &str, value: fn(&ServiceFacts) -> u32| {
        to.gauges(
            name,
            help,
            facts.services.iter().map(|service| ([("service", service.name.as_str())], value(service))),
        )
    };
    of_services("service_real_servers", "Real servers in the manifest.", |service| service.servers)?;
    of_services("service_real_servers_in", "Real servers that take new connections.", |service| {
        service.servers_in
    })?;
    of_services("service_live_weight", "The weight that health checks leave alive.", |service| service.live)?;
    of_services("service_quorum", "The weight below which the quorum is lost.", |service| service.quorum)?;
    of_services("service_sorry", "1: the sorry server stands in.", |service| u32::from(service.sorry))?;

    let servers = || facts.servers.iter();
    let connections = |server: &ServerFacts| [("active", server.active), ("inactive", server.inactive)];
    to.gauges(
        "real_server_connections",
        "Connections at the last sweep, as IPVS counts them: established ones are active.",
        servers().flat_map(|server| {
            connections(server).map(|(activity, count)| (with(server, "activity", activity), count))
        }),
    )?;
    to.gauges(
        "real_server_persistent_clients",
        "Clients that keep this real server.",
        servers().map(|server| (labels(server), server.persistent)),
    )?;
    to.gauges(
        "real_server_weight",
        "The weight of the manifest.",
        servers().map(|server| (labels(server), u32::from(server.weight))),
    )?;
    to.gauges(
        "real_server_effective_weight",
        "The weight that counts, after checks, slow start and orders; 0 while it takes no new connections.",
        servers().map(|server| (labels(server), server.effective_weight)),
    )?;
    to.gauges(
        "real_server_in",
        "1: it takes new connections.",
        servers().map(|server| (labels(server), u32::from(server.takes_new))),
    )?;
    to.gauges(
        "real_server_state",
        "1 with the state that it has, as `get real-servers` says it.",
        servers().map(|server| (with(server, "state", server.state), 1_u32)),
    )
}

fn labels(server: &ServerFacts) -> Labels<'_, 2> {
    [("service", server.service.as_str()), ("real_server", server.server.as_str())]
}

fn with<'a>(server: &'a ServerFacts, name: &'static str, value: &'static str) -> Labels<'a, 3> {
    let [service, real_server] = labels(server);
    [service, real_server, (name, value)]
}

/// Each (service, real server) once: one that left and came back with another forwarding method is two destinations of
/// the data plane, and no sample may come twice. The first says how it stands; counts add up.
pub fn merge(servers: Vec<ServerFacts>) -> Vec<ServerFacts> {
    let mut places = BTreeMap::new();
    let mut merged: Vec<ServerFacts> = Vec::with_capacity(servers.len());
    for server in servers {
        let key = (server.service.clone(), server.server.clone());
        let Some(first) = places.get(&key).and_then(|at: &usize| merged.get_mut(*at)) else {
            places.insert(key, merged.len());
            merged.push(server);
            continue;
        };
        first.active += server.active;
        first.inactive += server.inactive;
        first.persistent += server.persistent;
        first.traffic = match (first.traffic, server.traffic) {
            (Some(one), Some(other)) => Some(Traffic {
                packets_in: one.packets_in + other.packets_in,
                bytes_in: one.bytes_in + other.bytes_in,
                packets_out: one.packets_out + other.packets_out,
                bytes_out: one.bytes_out + other.bytes_out,
            }),
            (one, other) => one.or(other),
        };
        first.destinations.extend(server.destinations);
    }
    merged
}
