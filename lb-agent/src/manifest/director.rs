//! `kind: Director` as the operator writes it.

use std::net::SocketAddr;
use std::time::Duration;

use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text};
use crate::model::{
    CONNECTIONS_MAX, Capacity, Director, INTERFACES_MAX, Interface, Name, OnShutdown, REAL_SERVERS_MAX,
    SERVICES_MAX, Shutdown, XdpMode,
};

pub fn decode(name: Name, mut spec: Map<'_>, faults: &mut Faults) -> Director {
    let interfaces = interfaces(&mut spec, faults);
    let connections_max = spec.get("connections").and_then(|field| {
        let mut map = field.map("a map like {max: 1000000}", faults)?;
        let max = map.get("max").and_then(|max| max.integer(CONNECTIONS_MAX, faults));
        map.finish(faults);
        max
    });
    let capacity = spec.get("capacity").and_then(|field| capacity(&field, faults));
    let shutdown = spec.get("shutdown").and_then(|field| shutdown(&field, faults));
    let real_path = spec.get("realPath").and_then(|field| super::real_path::decode(&field, faults));
    let packets = spec.get("packets").and_then(|field| super::packets::decode(&field, faults));
    let tunnel_sources = spec.get("tunnelSources").map(|field| super::tunnel::sources(&field, faults));
    let flood = spec.get("flood").and_then(|field| super::flood::decode(&field, faults));
    let events = spec.get("events").and_then(|field| super::events::decode(&field, faults));
    let metrics = spec.get("metrics").and_then(|field| metrics(&field, faults));
    let (hooks, webhooks) = events.unwrap_or_default();
    spec.finish(faults);
    Director {
        name,
        interfaces,
        connections_max: connections_max.unwrap_or(Director::DEFAULT_CONNECTIONS_MAX),
        capacity: capacity.unwrap_or_default(),
        shutdown: shutdown.unwrap_or_default(),
        real_path: real_path.unwrap_or_default(),
        packets: packets.unwrap_or_default(),
        tunnel_sources: tunnel_sources.unwrap_or_default(),
        flood: flood.unwrap_or_default(),
        hooks,
        webhooks,
        metrics,
    }
}

fn interfaces(spec: &mut Map<'_>, faults: &mut Faults) -> Vec<Interface> {
    let Some(field) = spec.require("interfaces", faults) else { return Vec::new() };
    let mut interfaces: Vec<Interface> = Vec::new();
    let Some(items) = field.list("a list of interfaces", INTERFACES_MAX, faults) else { return interfaces };
    for item in items {
        let Some(mut map) = item.map("an interface like {name: eth0}", faults) else { continue };
        let name = map.require("name", faults).and_then(|name| name.interface_name(faults));
        let xdp = map.get("xdp").and_then(|xdp| xdp.one_of(&XDP_MODES, faults)).unwrap_or_default();
        map.finish(faults);
        let Some(name) = name else { continue };
        if interfaces.iter().any(|other| other.name == name) {
            faults.add(format!("{}.name", item.path), format!("`{name}` is listed twice"));
        }
        interfaces.push(Interface { name, xdp });
    }
    interfaces
}

fn capacity(field: &Field<'_>, faults: &mut Faults) -> Option<Capacity> {
    let mut map = field.map("a map like {services: 16384, realServers: 65536}", faults)?;
    let default = Capacity::default();
    let services = map.get("services").and_then(|field| field.integer(SERVICES_MAX, faults));
    let real_servers = map.get("realServers").and_then(|field| field.integer(REAL_SERVERS_MAX, faults));
    map.finish(faults);
    Some(Capacity {
        services: services.unwrap_or(default.services),
        real_servers: real_servers.unwrap_or(default.real_servers),
    })
}

fn shutdown(field: &Field<'_>, faults: &mut Faults) -> Option<Shutdown> {
    let mut map = field.map("a map like {traffic: release, wait: 5s}", faults)?;
    let default = Shutdown::default();
    let traffic = map.get("traffic").and_then(|field| field.one_of(&ON_SHUTDOWN, faults));
    let wait = map.get("wait").and_then(|field| field.duration(WAIT, faults));
    map.finish(faults);
    Some(Shutdown { traffic: traffic.unwrap_or(default.traffic), wait: wait.unwrap_or(default.wait) })
}

fn metrics(field: &Field<'_>, faults: &mut Faults) -> Option<SocketAddr> {
    let mut map = field.map("a map like {listen: 127.0.0.1:9105}", faults)?;
    let listen = map.require("listen", faults);
    map.finish(faults);
    let listen = listen?;
    let what = "an address and a port like 127.0.0.1:9105 or [::1]:9105";
    let Ok(address) = listen.text(what, faults)?.parse::<SocketAddr>() else {
        listen.expected(what, faults);
        return None;
    };
    if address.port() == 0 {
        faults.add(listen.path.as_str(), "port 0 is no port that could be asked").help("9105 would be one");
        return None;
    }
    Some(address)
}

pub fn encode(director: &Director) -> Raw {
    let interface = |interface: &Interface| {
        Raw::map([
            ("name", Some(Raw::text(&interface.name))),
            ("xdp", Some(super::word(&XDP_MODES, interface.xdp))),
        ])
    };
    Raw::map([
        ("interfaces", Some(Raw::List(director.interfaces.iter().map(interface).collect()))),
        ("connections", Some(Raw::map([("max", Some(Raw::integer(director.connections_max)))]))),
        (
            "capacity",
            Some(Raw::map([
                ("services", Some(Raw::integer(director.capacity.services))),
                ("realServers", Some(Raw::integer(director.capacity.real_servers))),
            ])),
        ),
        (
            "shutdown",
            Some(Raw::map([
                ("traffic", Some(super::word(&ON_SHUTDOWN, director.shutdown.traffic))),
                ("wait", Some(Raw::Text(duration_text(director.shutdown.wait)))),
            ])),
        ),
        ("realPath", Some(super::real_path::encode(&director.real_path))),
        ("packets", Some(super::packets::encode(&director.packets))),
        ("tunnelSources", super::tunnel::encode_sources(&director.tunnel_sources)),
        ("flood", Some(super::flood::encode(&director.flood))),
        ("events", super::events::encode(&director.hooks, &director.webhooks)),
        ("metrics", director.metrics.map(|listen| Raw::map([("listen", Some(Raw::text(listen)))]))),
    ])
}

const XDP_MODES: [(&str, XdpMode); 3] =
    [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
const ON_SHUTDOWN: [(&str, OnShutdown); 2] = [("keep", OnShutdown::Keep), ("release", OnShutdown::Release)];
const WAIT: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
