//! `kind: VirtualService` as the operator writes it, and what can be wrong with one by itself.

use std::collections::HashMap;
use std::net::IpAddr;

use super::endpoints::{self, Where};
use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text};
use super::{application, health, scheduling, tunnel, word, word_of};
use crate::model::{
    Encapsulation, Forwarding, MssClamp, Name, OnUnknownFlow, PORT_RANGES_MAX, PORTS_MAX, PortRange, Ports,
    Protocol, RealServer, SERVICE_REAL_SERVERS_MAX, Scheduler, Timeouts, VirtualService,
};

/// The service, unless something it cannot be without is missing or wrong.
pub fn decode(name: Name, mut spec: Map<'_>, faults: &mut Faults) -> Option<VirtualService> {
    let Where { address, ports, protocol, others } = endpoints::decode(&mut spec, faults);
    // Of endpoints that speak different ones, fields of each may be given.
    let only = protocol.filter(|protocol| others.iter().all(|other| other.protocol == *protocol));
    let forwarding = spec.require("forwarding", faults).and_then(|field| field.one_of(&FORWARDING, faults));
    let encapsulation = spec.get("tunnel").and_then(|field| tunnel::decode(&field, faults));
    let scheduler = spec.require("scheduler", faults).and_then(|field| field.one_of(&SCHEDULERS, faults));
    let real_servers = match spec.get("realServers") {
        Some(field) => real_servers(&field, faults),
        None => Vec::new(),
    };

    let (scheduling, hash) = scheduling::decode(&mut spec, scheduler, only, faults);
    let local_addresses = spec.get("localAddresses").and_then(|field| field.name(faults));
    let on_unknown_flow = spec.get("onUnknownFlow").and_then(|field| field.one_of(&ON_UNKNOWN_FLOW, faults));
    let mss_clamp = spec.get("mssClamp").and_then(|field| mss_clamp(&field, only, faults));
    let application = application::decode(&mut spec, faults);
    let usual = application::timeouts(application);
    let timeouts = spec.get("timeouts").and_then(|field| timeouts(&field, only, usual, faults));
    let address_interface = spec.get("addressInterface").and_then(|field| field.interface_name(faults));
    let health = health::policy(&mut spec, faults);
    let local_addresses_path = spec.path_of("localAddresses");
    let has_local_addresses = spec.get("localAddresses").is_some();
    spec.finish(faults);

    let (protocol, forwarding, scheduler) = (protocol?, forwarding?, scheduler?);
    let mut service = VirtualService {
        name,
        address: address?,
        ports: ports?,
        protocol,
        forwarding,
        tunnel: encapsulation.unwrap_or_default(),
        scheduler,
        hash: hash.unwrap_or_default(),
        local_addresses,
        on_unknown_flow: match on_unknown_flow {
            // Nobody knows how its numbers are shifted.
            None if scheduling.proxy_protocol => OnUnknownFlow::Reset,
            other => other.unwrap_or(OnUnknownFlow::default_for(scheduler)),
        },
        mss_clamp: MssClamp::Off,
        timeouts: Box::new(timeouts.unwrap_or(usual)),
        address_interface,
        real_servers: real_servers.iter().map(|(_, server)| server.clone()).collect(),
        scheduling: Box::new(scheduling),
        endpoints: others,
        health,
        application,
    };
    let tunnels = service.uses(Forwarding::Tun);
    let protocol = if service.speaks(Protocol::Tcp) { Protocol::Tcp } else { protocol };
    service.mss_clamp = mss_clamp.unwrap_or(MssClamp::default_for(protocol, tunnels));

    let fullnat = service.uses(Forwarding::FullNat);
    if fullnat && !has_local_addresses {
        faults
            .add(local_addresses_path, "is required by fullnat")
            .help("name the LocalAddressPool whose addresses real servers see in place of the client's");
    } else if !fullnat && has_local_addresses {
        faults.add(local_addresses_path, "only fullnat uses local addresses").at_key(0);
    }
    for single in service.singles() {
        let mut found = Faults::default();
        check_real_servers(&single, &real_servers, &mut found);
        let new = found.0.into_iter().filter(|fault| !faults.0.contains(fault));
        let new: Vec<_> = new.collect();
        faults.0.extend(new);
    }
    scheduling::check(&service, &real_servers, faults);
    application::check(&service, &real_servers, faults);
    health::check(&service, &real_servers, faults);
    tunnel::check_service(&service, &real_servers, faults);
    Some(service)
}

/// A list of ports and ranges, one of either, or `any`.
pub fn ports(field: &Field<'_>, faults: &mut Faults) -> Option<Ports> {
    let items = match field.raw {
        Raw::Text(text) if text == "any" => return Some(Ports::Any),
        Raw::Integer(_) | Raw::Text(_) => vec![field.clone()],
        _ => field.list("a list of ports and ranges like [80, 8000-8099], or any", PORTS_MAX, faults)?,
    };
    if items.is_empty() {
        faults.add(field.path.as_str(), "has no port").help("write `any` for every port");
        return None;
    }
    let mut ranges: Vec<PortRange> = Vec::new();
    let mut complete = true;
    for item in items {
        let Some(range) = port_range(&item, faults) else {
            complete = false;
            continue;
        };
        if let Some(other) = ranges.iter().find(|other| other.overlaps(range)) {
            let message = if *other == range {
                format!("{range} is listed twice")
            } else {
                format!("{range} overlaps {other}")
            };
            faults.add(item.path, message);
        }
        ranges.push(range);
    }
    if ranges.iter().filter(|range| range.single().is_none()).count() > PORT_RANGES_MAX {
        faults.add(field.path.as_str(), format!("has more than {PORT_RANGES_MAX} port ranges"));
    }
    ranges.sort();
    complete.then_some(Ports::List(ranges))
}

fn port_range(field: &Field<'_>, faults: &mut Faults) -> Option<PortRange> {
    let Raw::Text(text) = field.raw else {
        let port = field.integer(1..=u16::MAX, faults)?;
        return Some(PortRange { first: port, last: port });
    };
    let bounds = text.split_once('-').and_then(|(first, last)| {
        Some(PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
    });
    match bounds {
        Some(PortRange { first: 0, .. }) => {
            faults.add(field.path.as_str(), "port 0 does not exist").help("the first port is 1");
            None
        }
        Some(range) if range.first > range.last => {
            faults.add(field.path.as_str(), format!("{text} ends before it begins"));
            None
        }
        Some(range) => Some(range),
        None => {
            let fault = field.expected("a port or a range like 8000-8099", faults);
            match text.as_str() {
                "any" => _ = fault.help("`any` stands alone: ports: any"),
                _ if text.parse::<u16>().is_ok() => _ = fault.help("write it without quotes"),
                _ => {}
            }
            None
        }
    }
}

/// The real servers that could be read, each with its path.
fn real_servers(field: &Field<'_>, faults: &mut Faults) -> Vec<(String, RealServer)> {
    let Some(items) = field.list("a list of real servers", SERVICE_REAL_SERVERS_MAX, faults) else {
        return Vec::new();
    };
    items.into_iter().filter_map(|item| Some((item.path.clone(), real_server(&item, faults)?))).collect()
}

fn real_server(field: &Field<'_>, faults: &mut Faults) -> Option<RealServer> {
    let mut map = field.map("a real server like {address: 10.0.0.11}", faults)?;
    let address = map.require("address", faults).and_then(|field| field.unicast(faults));
    let port = map.get("port").map(|field| field.integer(1..=u16::MAX, faults));
    let weight = map.get("weight").and_then(|field| field.integer(0..=u16::MAX, faults));
    let forwarding = map.get("forwarding").and_then(|field| field.one_of(&FORWARDING, faults));
    let tunnel = map.get("tunnel").and_then(|field| tunnel::decode(&field, faults));
    let limits = scheduling::decode_server(&mut map, faults);
    let health = health::server_policy(&mut map, faults);
    map.finish(faults);
    Some(RealServer {
        address: address?,
        port: port.flatten(),
        weight: weight.unwrap_or(1),
        forwarding,
        tunnel,
        limits,
        health,
    })
}

pub fn check_real_servers(service: &VirtualService, servers: &[(String, RealServer)], faults: &mut Faults) {
    let mut seen = HashMap::new();
    for (path, server) in servers {
        let method = service.forwarding_of(server);
        let method_word = word_of(&FORWARDING, method);
        if server.address == service.address {
            let message = format!("{} is the address of the service itself", server.address);
            faults.add(format!("{path}.address"), message);
        }
        if server.address.is_ipv4() != service.address.is_ipv4() && method != Forwarding::Tun {
            let (server_family, family) = (family(server.address), family(service.address));
            let message = format!("{} is an {server_family} address behind an {family} one", server.address);
            let help = format!(
                "{method_word} keeps the family; tun forwards {family} packets to {server_family} servers"
            );
            faults.add(format!("{path}.address"), message).help(help);
        }
        if server.port.is_some() {
            let path = format!("{path}.port");
            if !method.translates() {
                let fault = faults.add(path, format!("{method_word} cannot change the port"));
                fault.at_key(0).help("leave `port` out, or forward by nat or fullnat");
            } else if service.ports.single().is_none() {
                let fault = faults.add(path, "the service does not have exactly one port");
                fault.at_key(0).help("leave `port` out: the packet's own port is kept");
            }
        }
        let key = service.key_of(server);
        if let Some(first) = seen.insert(key, path) {
            faults.add(path.as_str(), format!("real server {key} is listed twice, first as {first}"));
        }
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// `true`, `false`, or a number of bytes.
fn mss_clamp(field: &Field<'_>, protocol: Option<Protocol>, faults: &mut Faults) -> Option<MssClamp> {
    if protocol.is_some_and(|protocol| protocol != Protocol::Tcp) {
        faults.add(field.path.as_str(), "only tcp has segments").at_key(0);
        return None;
    }
    match field.raw {
        Raw::Bool(true) => Some(MssClamp::Auto),
        Raw::Bool(false) => Some(MssClamp::Off),
        Raw::Integer(_) => field.integer(MssClamp::RANGE, faults).map(MssClamp::To),
        _ => {
            field.expected("true, false or a number of bytes", faults);
            None
        }
    }
}

fn timeouts(
    field: &Field<'_>,
    protocol: Option<Protocol>,
    usual: Timeouts,
    faults: &mut Faults,
) -> Option<Timeouts> {
    let mut map = field.map("a map like {established: 15m}", faults)?;
    let mut timeouts = usual;
    for (key, of, slot) in timeout_fields(&mut timeouts) {
        let Some(field) = map.get(key) else { continue };
        if let Some(protocol) = protocol
            && !of.contains(&protocol)
        {
            let of: Vec<_> = of.iter().map(|of| word_of(&PROTOCOLS, *of)).collect();
            let message =
                format!("is of {}, the service is {}", of.join(" and "), word_of(&PROTOCOLS, protocol));
            faults.add(field.path.as_str(), message).at_key(0);
        } else if let Some(duration) = field.duration(Timeouts::MIN..=Timeouts::MAX, faults) {
            *slot = duration;
        }
    }
    map.finish(faults);
    Some(timeouts)
}

/// Every timeout: its key, the protocols that have it and its place.
fn timeout_fields(
    timeouts: &mut Timeouts,
) -> [(&'static str, &'static [Protocol], &mut std::time::Duration); 18] {
    const TCP: &[Protocol] = &[Protocol::Tcp];
    const SCTP: &[Protocol] = &[Protocol::Sctp];
    [
        ("established", &[Protocol::Tcp, Protocol::Sctp], &mut timeouts.established),
        ("synSent", TCP, &mut timeouts.syn_sent),
        ("synReceived", TCP, &mut timeouts.syn_received),
        ("finWait", TCP, &mut timeouts.fin_wait),
        ("timeWait", TCP, &mut timeouts.time_wait),
        ("close", TCP, &mut timeouts.close),
        ("closeWait", TCP, &mut timeouts.close_wait),
        ("lastAck", TCP, &mut timeouts.last_ack),
        ("listen", TCP, &mut timeouts.listen),
        ("synAck", TCP, &mut timeouts.syn_ack),
        ("udp", &[Protocol::Udp], &mut timeouts.udp),
        ("init1", SCTP, &mut timeouts.init1),
        ("init", SCTP, &mut timeouts.init),
        ("cookie", SCTP, &mut timeouts.cookie),
        ("shutdown", SCTP, &mut timeouts.shutdown),
        ("rejected", SCTP, &mut timeouts.rejected),
        ("closed", SCTP, &mut timeouts.closed),
        ("unconfirmed", &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp], &mut timeouts.unconfirmed),
    ]
}

pub fn encode(service: &VirtualService) -> Raw {
    let mss_clamp = match service.mss_clamp {
        MssClamp::Off => Raw::Bool(false),
        MssClamp::Auto => Raw::Bool(true),
        MssClamp::To(bytes) => Raw::integer(bytes),
    };
    let mut timeouts = *service.timeouts;
    let timeouts = timeout_fields(&mut timeouts)
        .into_iter()
        .filter(|(_, of, _)| of.iter().any(|of| service.speaks(*of)))
        .map(|(key, _, duration)| (key.to_owned(), Raw::Text(duration_text(*duration))))
        .collect();
    let tcp = service.speaks(Protocol::Tcp);
    let head = [
        ("forwarding", Some(word(&FORWARDING, service.forwarding))),
        ("tunnel", (service.tunnel != Encapsulation::default()).then(|| tunnel::encode(service.tunnel))),
        ("scheduler", Some(word(&SCHEDULERS, service.scheduler))),
    ];
    let rest = [
        ("application", service.application.map(|of| word(&application::APPLICATIONS, of))),
        ("localAddresses", service.local_addresses.as_ref().map(Raw::text)),
        ("onUnknownFlow", Some(word(&ON_UNKNOWN_FLOW, service.on_unknown_flow))),
        ("mssClamp", tcp.then_some(mss_clamp)),
        ("timeouts", Some(Raw::Map(timeouts))),
        ("addressInterface", service.address_interface.as_ref().map(Raw::text)),
        ("realServers", Some(Raw::List(service.real_servers.iter().map(encode_server).collect()))),
    ];
    let fields = endpoints::encode(service).into_iter().chain(head).chain(scheduling::encode(service));
    Raw::map(fields.chain(rest).chain(health::encode(&service.health)))
}

pub fn encode_ports(ports: &Ports) -> Raw {
    match ports {
        Ports::Any => Raw::text("any"),
        Ports::List(ranges) => Raw::List(ranges.iter().map(encode_range).collect()),
    }
}

fn encode_range(range: &PortRange) -> Raw {
    range.single().map_or_else(|| Raw::text(range), Raw::integer)
}

pub fn encode_server(server: &RealServer) -> Raw {
    let fields = [
        ("address", Some(Raw::text(server.address))),
        ("port", server.port.map(Raw::integer)),
        ("weight", Some(Raw::integer(server.weight))),
        ("forwarding", server.forwarding.map(|method| word(&FORWARDING, method))),
        ("tunnel", server.tunnel.map(tunnel::encode)),
    ];
    let fields = fields.into_iter().chain(scheduling::encode_server(&server.limits));
    Raw::map(fields.chain(health::encode_server(&server.health)))
}

pub const PROTOCOLS: [(&str, Protocol); 3] =
    [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
pub const FORWARDING: [(&str, Forwarding); 4] = [
    ("dr", Forwarding::Dr),
    ("tun", Forwarding::Tun),
    ("nat", Forwarding::Nat),
    ("fullnat", Forwarding::FullNat),
];
pub const SCHEDULERS: [(&str, Scheduler); 14] = [
    ("rr", Scheduler::Rr),
    ("wrr", Scheduler::Wrr),
    ("lc", Scheduler::Lc),
    ("wlc", Scheduler::Wlc),
    ("sed", Scheduler::Sed),
    ("nq", Scheduler::Nq),
    ("fo", Scheduler::Fo),
    ("ovf", Scheduler::Ovf),
    ("twos", Scheduler::Twos),
    ("sh", Scheduler::Sh),
    ("dh", Scheduler::Dh),
    ("mh", Scheduler::Mh),
    ("lblc", Scheduler::Lblc),
    ("lblcr", Scheduler::Lblcr),
];
const ON_UNKNOWN_FLOW: [(&str, OnUnknownFlow); 4] = [
    ("adopt", OnUnknownFlow::Adopt),
    ("reset", OnUnknownFlow::Reset),
    ("pass", OnUnknownFlow::Pass),
    ("drop", OnUnknownFlow::Drop),
];
