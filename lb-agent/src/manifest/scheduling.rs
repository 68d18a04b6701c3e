//! The fields of a virtual service that are about who gets a new flow, who is refused, and how a server leaves.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::health::probe::absolute;
use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text};
use super::service::SCHEDULERS;
use super::{word, word_of};
use crate::model::{
    DrainPolicy, FlowHash, Forwarding, HashPrefix, OnDeadline, OnUnknownFlow, Persistence, PersistenceEngine,
    Protocol, Quic, RealServer, SOURCES_MAX, Scheduler, Scheduling, ServerId, ServerLimits, Sources,
    SynCookies, Thresholds, Timeouts, VirtualService, WALKED_SERVERS_MAX, WhenNoServer,
};

/// The fields, and what `schedulerFlags` and `hash` say of the hash.
pub fn decode(
    spec: &mut Map<'_>,
    scheduler: Option<Scheduler>,
    protocol: Option<Protocol>,
    faults: &mut Faults,
) -> (Scheduling, Option<FlowHash>) {
    let mut scheduling = Scheduling {
        ipvs_compatible: spec.get("ipvsCompatible").and_then(|field| field.boolean(faults)).unwrap_or(false),
        ..Scheduling::default()
    };
    let flags = spec.get("schedulerFlags").map(|field| flags(&field, scheduler, faults)).unwrap_or_default();
    scheduling.fallback = flags.contains(&Flag::Fallback);
    let mut hash = flags.contains(&Flag::Port).then_some(FlowHash::AddressPort);
    if let Some(field) = spec.get("hash") {
        if scheduler.is_some_and(|scheduler| !scheduler.hashes()) {
            faults.add(field.path.as_str(), "only sh and mh hash").at_key(0);
        }
        let (on, prefix) = hash_of(&field, faults);
        scheduling.hash_prefix = prefix;
        hash = hash.or(on);
        if scheduling.ipvs_compatible && !prefix.is_whole() {
            faults.add(field.path, "ipvsCompatible hashes whole addresses");
        }
    }
    let ipvs = scheduling.ipvs_compatible;
    scheduling.persistence =
        spec.get("persistence").and_then(|field| persistence(&field, ipvs, protocol, faults));
    scheduling.one_packet = spec.get("onePacket").and_then(|field| field.boolean(faults)).unwrap_or(false);
    scheduling.quic = spec.get("quic").and_then(|field| quic(&field, protocol, faults));
    scheduling.new_connections_per_second = spec.get("limits").and_then(|field| {
        let mut map = field.map("a map like {newConnectionsPerSecond: 1000}", faults)?;
        let rate = map.get("newConnectionsPerSecond").and_then(|field| field.integer(1..=RATE_MAX, faults));
        map.finish(faults);
        rate
    });
    if let Some(field) = spec.get("sources") {
        scheduling.sources = sources(&field, faults).unwrap_or_default();
    }
    let when_no_server = spec.get("whenNoServer").and_then(|field| field.one_of(&WHEN_NO_SERVER, faults));
    let default = if ipvs { WhenNoServer::Unreachable } else { WhenNoServer::default() };
    scheduling.when_no_server = when_no_server.unwrap_or(default);
    scheduling.drain = spec.get("drain").and_then(|field| drain(&field, faults)).unwrap_or_default();
    let proxy = spec.get("proxyProtocol").and_then(|field| field.one_of(&PROXY_PROTOCOL, faults));
    scheduling.proxy_protocol = proxy.is_some();
    scheduling.toa = spec.get("toa").and_then(|field| field.boolean(faults)).unwrap_or(false);
    let cookies = spec.get("synCookies").and_then(|field| field.one_of(&SYN_COOKIES, faults));
    scheduling.syn_cookies = cookies.unwrap_or_default();
    (scheduling, hash)
}

/// What of a single real server is about scheduling.
pub fn decode_server(map: &mut Map<'_>, faults: &mut Faults) -> ServerLimits {
    let connections = map.get("connections").and_then(|field| thresholds(&field, faults));
    let packets = map.get("packetsPerSecond").and_then(|field| field.integer(1..=RATE_MAX, faults));
    let server_id = map.get("serverId").and_then(|field| {
        let what = "a server id of 1 to 8 bytes in hexadecimal, like \"0a1b\"";
        let id = field.text(what, faults).map(ServerId::parse)?;
        if id.is_none() {
            field.expected(what, faults);
        }
        id
    });
    ServerLimits { connections, packets_per_second: packets, server_id }
}

/// What can be wrong between these fields and the rest of the service.
pub fn check(service: &VirtualService, servers: &[(String, RealServer)], faults: &mut Faults) {
    let scheduling = &service.scheduling;
    if scheduling.one_packet {
        let mut wrong = |message: String| _ = faults.add("spec.onePacket", message).at_key(0);
        if service.speaks(Protocol::Tcp) || service.speaks(Protocol::Sctp) {
            wrong("only udp can be scheduled packet by packet".into());
        }
        let translated = [Forwarding::Nat, Forwarding::FullNat].into_iter().find(|m| service.uses(*m));
        if let Some(method) = translated {
            let method = word_of(&super::FORWARDING, method);
            wrong(format!(
                "{method} needs a connection to translate the replies, and one-packet scheduling keeps none"
            ));
        }
    }
    if scheduling.syn_cookies == SynCookies::Always {
        let mut wrong = |message: String| _ = faults.add("spec.synCookies", message).at_key(0);
        if !service.speaks(Protocol::Tcp) {
            wrong("only tcp has SYNs".into());
        }
        if let Some(method) = [Forwarding::Dr, Forwarding::Tun].into_iter().find(|m| service.uses(*m)) {
            let method = word_of(&super::FORWARDING, method);
            wrong(format!(
                "with {method} the server answers the client itself, by other sequence numbers than the cookie's: \
                 only nat and fullnat can answer SYNs with cookies"
            ));
        }
    }
    if scheduling.proxy_protocol {
        if service.on_unknown_flow == OnUnknownFlow::Adopt {
            let message = "a connection that began with a PROXY header cannot be adopted: how its sequence numbers \
                           are shifted is not known";
            faults.add("spec.onUnknownFlow", message).help("leave it out, or write reset or drop");
        }
        let mut wrong = |message: String| _ = faults.add("spec.proxyProtocol", message).at_key(0);
        if service.speaks(Protocol::Udp) || service.speaks(Protocol::Sctp) {
            wrong("only tcp has a stream that a header can stand before".into());
        }
        if let Some(method) = [Forwarding::Dr, Forwarding::Tun].into_iter().find(|m| service.uses(*m)) {
            let method = word_of(&super::FORWARDING, method);
            wrong(format!(
                "{method} leaves the stream as it is, since replies do not pass, and the server sees the client's \
                 address by itself: only nat and fullnat can put a header before it"
            ));
        }
    }
    if scheduling.toa {
        let mut wrong = |message: String| _ = faults.add("spec.toa", message).at_key(0);
        if !service.speaks(Protocol::Tcp) {
            wrong("only tcp has options".into());
        }
        let seen = [Forwarding::Dr, Forwarding::Tun, Forwarding::Nat].into_iter().find(|m| service.uses(*m));
        if let Some(method) = seen {
            let method = word_of(&super::FORWARDING, method);
            wrong(format!(
                "with {method} the server sees the client's address by itself: only fullnat hides it"
            ));
        }
        if scheduling.proxy_protocol {
            wrong("proxyProtocol tells the server the same: one of the two is enough".into());
        }
    }
    let walks = service.scheduler.counts() || scheduling.persistence.is_some() || scheduling.fallback;
    let limited = servers.iter().any(|(_, server)| server.limits.connections.is_some());
    if (walks || limited) && servers.len() > WALKED_SERVERS_MAX {
        let scheduler = word_of(&SCHEDULERS, service.scheduler);
        let what = if service.scheduler.counts() { scheduler } else { "a look at every real server" };
        let message = format!("{} real servers: {what} takes at most {WALKED_SERVERS_MAX}", servers.len());
        faults.add("spec.realServers", message);
    }
    check_server_ids(scheduling.quic, servers, faults);
}

/// Every server has an id of the stated length and no other has it.
fn check_server_ids(quic: Option<Quic>, servers: &[(String, RealServer)], faults: &mut Faults) {
    let mut seen: HashMap<&ServerId, &str> = HashMap::new();
    for (path, server) in servers {
        let at = format!("{path}.serverId");
        match (quic, &server.limits.server_id) {
            (None, Some(_)) => {
                let fault = faults.add(at, "the service reads no server ids").at_key(0);
                fault.help("say where they are: quic: {serverIdOffset: 1, serverIdLength: 4}");
            }
            (Some(_), None) => _ = faults.add(at, "is required by quic"),
            (Some(quic), Some(id)) if id.bytes().len() != usize::from(quic.server_id_length) => {
                let (has, wanted) = (id.bytes().len(), quic.server_id_length);
                faults.add(at, format!("{id} has {has} bytes, quic.serverIdLength is {wanted}"));
            }
            (Some(_), Some(id)) => {
                if let Some(first) = seen.insert(id, path) {
                    faults.add(at, format!("{id} is the server id of {first} too"));
                }
            }
            (None, None) => {}
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flag {
    Fallback,
    Port,
}

fn flags(field: &Field<'_>, scheduler: Option<Scheduler>, faults: &mut Faults) -> Vec<Flag> {
    let Some(items) = field.list("a list of flags like [fallback, port]", FLAGS.len(), faults) else {
        return Vec::new();
    };
    let mut flags = Vec::new();
    for item in items {
        let Some(flag) = item.one_of(&FLAGS, faults) else { continue };
        if let Some(scheduler) = scheduler.filter(|scheduler| !scheduler.hashes()) {
            let (scheduler, flag) = (word_of(&SCHEDULERS, scheduler), word_of(&FLAGS, flag));
            let fault = faults.add(item.path.as_str(), format!("{scheduler} has no flag `{flag}`"));
            fault.help("sh and mh have flags");
        }
        if flags.contains(&flag) {
            faults.add(item.path, format!("`{}` is listed twice", word_of(&FLAGS, flag)));
        }
        flags.push(flag);
    }
    flags
}

/// `address`, `address-port`, or a map of that and prefix lengths.
fn hash_of(field: &Field<'_>, faults: &mut Faults) -> (Option<FlowHash>, HashPrefix) {
    if !matches!(field.raw, Raw::Map(_)) {
        return (field.one_of(&HASHES, faults), HashPrefix::default());
    }
    let Some(mut map) = field.map("a map", faults) else { return (None, HashPrefix::default()) };
    let on = map.get("on").and_then(|field| field.one_of(&HASHES, faults));
    let (v4, v6) = prefixes(&mut map, ["prefix4", "prefix6"], faults);
    map.finish(faults);
    (on, HashPrefix { v4, v6 })
}

/// Lengths of a client's prefix, IPv4 and IPv6; whole addresses unless given.
fn prefixes(map: &mut Map<'_>, names: [&'static str; 2], faults: &mut Faults) -> (u8, u8) {
    let v4 = map.get(names[0]).and_then(|field| field.integer(1..=32u8, faults));
    let v6 = map.get(names[1]).and_then(|field| field.integer(1..=128u8, faults));
    (v4.unwrap_or(32), v6.unwrap_or(128))
}

fn persistence(
    field: &Field<'_>,
    ipvs: bool,
    protocol: Option<Protocol>,
    faults: &mut Faults,
) -> Option<Persistence> {
    let mut map = field.map("a map like {timeout: 5m}", faults)?;
    let timeout = map.get("timeout").map(|field| field.duration(Timeouts::MIN..=Timeouts::MAX, faults));
    let (prefix_v4, prefix_v6) = prefixes(&mut map, ["prefix", "prefix6"], faults);
    let engine = map.get("engine").and_then(|field| {
        let engine = field.one_of(&ENGINES, faults)?;
        if engine == PersistenceEngine::Sip && protocol.is_some_and(|protocol| protocol != Protocol::Udp) {
            faults.add(field.path, "sip is read from udp alone");
        }
        Some(engine)
    });
    let keep = map.get("keepWhenQuiesced").and_then(|field| field.boolean(faults));
    map.finish(faults);
    Some(Persistence {
        timeout: timeout.unwrap_or(Some(Persistence::TIMEOUT))?,
        prefix_v4,
        prefix_v6,
        engine: engine.unwrap_or_default(),
        keep_when_quiesced: keep.unwrap_or(ipvs),
    })
}

fn quic(field: &Field<'_>, protocol: Option<Protocol>, faults: &mut Faults) -> Option<Quic> {
    if protocol.is_some_and(|protocol| protocol != Protocol::Udp) {
        faults.add(field.path.as_str(), "only udp carries QUIC").at_key(0);
    }
    let mut map = field.map("a map like {serverIdOffset: 1, serverIdLength: 4}", faults)?;
    let offset = map.get("serverIdOffset").map(|field| field.integer(0..=OFFSET_MAX, faults));
    let length = map.require("serverIdLength", faults).and_then(|field| field.integer(1..=8u8, faults));
    map.finish(faults);
    let (offset, length) = (offset.unwrap_or(Some(1))?, length?);
    if offset + length > CONNECTION_ID_MAX {
        let message = format!("a server id of {length} bytes at {offset} is not inside a connection id");
        let fault = faults.add(field.path.as_str(), message);
        fault.help(format!("a connection id has at most {CONNECTION_ID_MAX} bytes (RFC 9000, 17.2)"));
        return None;
    }
    Some(Quic { server_id_offset: offset, server_id_length: length })
}

fn sources(field: &Field<'_>, faults: &mut Faults) -> Option<Sources> {
    let mut map = field.map("a map like {deny: [192.0.2.0/24]}", faults)?;
    let mut lists = ["allow", "deny"].map(|key| map.get(key).map(|field| nets(&field, faults)));
    let [allow_file, deny_file] =
        ["allowFile", "denyFile"].map(|key| map.get(key).and_then(|field| absolute(&field, faults)));
    map.finish(faults);
    let [allow, deny] = [lists[0].take().unwrap_or_default(), lists[1].take().unwrap_or_default()];
    for (index, net) in deny.iter().enumerate() {
        if allow.contains(net) {
            faults.add(format!("{}.deny[{index}]", field.path), format!("{net} is allowed too"));
        }
    }
    let sorted = |mut nets: Vec<IpNet>| {
        nets.sort();
        nets.dedup();
        nets
    };
    Some(Sources { allow: sorted(allow), deny: sorted(deny), allow_file, deny_file })
}

fn nets(field: &Field<'_>, faults: &mut Faults) -> Vec<IpNet> {
    let items = field.list("a list of prefixes like [192.0.2.0/24]", SOURCES_MAX, faults);
    let what = "an address or a prefix like 192.0.2.0/24";
    items.unwrap_or_default().iter().filter_map(|item| item.prefix(what, faults)).collect()
}

fn drain(field: &Field<'_>, faults: &mut Faults) -> Option<DrainPolicy> {
    let mut map = field.map("a map like {deadline: 10m}", faults)?;
    let deadline =
        map.get("deadline").and_then(|field| field.duration(Duration::ZERO..=DrainPolicy::MAX, faults));
    let on_deadline = map.get("onDeadline").and_then(|field| field.one_of(&ON_DEADLINE, faults));
    if on_deadline.is_some() && deadline.is_none() {
        faults.add(map.path_of("deadline"), "is required by onDeadline");
    }
    map.finish(faults);
    Some(DrainPolicy { deadline, on_deadline: on_deadline.unwrap_or_default() })
}

fn thresholds(field: &Field<'_>, faults: &mut Faults) -> Option<Thresholds> {
    let mut map = field.map("a map like {max: 1000, resume: 750}", faults)?;
    let max = map.require("max", faults).and_then(|field| field.integer(1..=CONNECTIONS_MAX, faults));
    let resume = map.get("resume");
    map.finish(faults);
    let max = max?;
    let resume = match resume {
        None => None,
        Some(field) => {
            let resume = field.integer(1..=CONNECTIONS_MAX, faults)?;
            if resume > max {
                faults.add(field.path, format!("{resume} is above max, which is {max}"));
            }
            Some(resume)
        }
    };
    Some(Thresholds { max, resume })
}

/// As [`decode`] reads them; what is at its default is left out unless it is always of use.
pub fn encode(service: &VirtualService) -> Vec<(&'static str, Option<Raw>)> {
    let scheduling = &service.scheduling;
    let prefix = scheduling.hash_prefix;
    let on = word(&HASHES, service.hash);
    let hash = match prefix.is_whole() {
        true => on,
        false => Raw::map([
            ("on", Some(on)),
            ("prefix4", Some(Raw::integer(prefix.v4))),
            ("prefix6", Some(Raw::integer(prefix.v6))),
        ]),
    };
    let flags = scheduling.fallback.then(|| Raw::List(vec![word(&FLAGS, Flag::Fallback)]));
    let persistence = scheduling.persistence.map(|persistence| {
        Raw::map([
            ("timeout", Some(Raw::Text(duration_text(persistence.timeout)))),
            ("prefix", Some(Raw::integer(persistence.prefix_v4))),
            ("prefix6", Some(Raw::integer(persistence.prefix_v6))),
            ("engine", Some(word(&ENGINES, persistence.engine))),
            ("keepWhenQuiesced", Some(Raw::Bool(persistence.keep_when_quiesced))),
        ])
    });
    let quic = scheduling.quic.map(|quic| {
        Raw::map([
            ("serverIdOffset", Some(Raw::integer(quic.server_id_offset))),
            ("serverIdLength", Some(Raw::integer(quic.server_id_length))),
        ])
    });
    let limits = scheduling
        .new_connections_per_second
        .map(|rate| Raw::map([("newConnectionsPerSecond", Some(Raw::integer(rate)))]));
    let nets = |nets: &[IpNet]| (!nets.is_empty()).then(|| Raw::List(nets.iter().map(Raw::text).collect()));
    let Sources { allow, deny, allow_file, deny_file } = &scheduling.sources;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| Raw::text(path.display()));
    let sources = (!scheduling.sources.is_empty()).then(|| {
        Raw::map([
            ("allow", nets(allow)),
            ("allowFile", path(allow_file)),
            ("deny", nets(deny)),
            ("denyFile", path(deny_file)),
        ])
    });
    let DrainPolicy { deadline, on_deadline } = scheduling.drain;
    let drain = deadline.map(|deadline| {
        Raw::map([
            ("deadline", Some(Raw::Text(duration_text(deadline)))),
            ("onDeadline", Some(word(&ON_DEADLINE, on_deadline))),
        ])
    });
    vec![
        ("schedulerFlags", flags),
        ("hash", service.scheduler.hashes().then_some(hash)),
        ("ipvsCompatible", Some(Raw::Bool(scheduling.ipvs_compatible))),
        ("persistence", persistence),
        ("onePacket", scheduling.one_packet.then_some(Raw::Bool(true))),
        ("quic", quic),
        ("limits", limits),
        ("sources", sources),
        ("whenNoServer", Some(word(&WHEN_NO_SERVER, scheduling.when_no_server))),
        ("drain", drain),
        (
            "synCookies",
            (scheduling.syn_cookies != SynCookies::default())
                .then(|| word(&SYN_COOKIES, scheduling.syn_cookies)),
        ),
        ("toa", scheduling.toa.then_some(Raw::Bool(true))),
        ("proxyProtocol", scheduling.proxy_protocol.then_some(word(&PROXY_PROTOCOL, ()))),
    ]
}

/// As [`decode_server`] reads them.
pub fn encode_server(limits: &ServerLimits) -> [(&'static str, Option<Raw>); 3] {
    let connections = limits.connections.map(|Thresholds { max, resume }| {
        Raw::map([("max", Some(Raw::integer(max))), ("resume", resume.map(Raw::integer))])
    });
    [
        ("connections", connections),
        ("packetsPerSecond", limits.packets_per_second.map(Raw::integer)),
        ("serverId", limits.server_id.as_ref().map(Raw::text)),
    ]
}

const FLAGS: [(&str, Flag); 2] = [("fallback", Flag::Fallback), ("port", Flag::Port)];
const SYN_COOKIES: [(&str, SynCookies); 3] =
    [("auto", SynCookies::Auto), ("always", SynCookies::Always), ("off", SynCookies::Off)];
const PROXY_PROTOCOL: [(&str, ()); 1] = [("v2", ())];
const HASHES: [(&str, FlowHash); 2] =
    [("address", FlowHash::Address), ("address-port", FlowHash::AddressPort)];
const ENGINES: [(&str, PersistenceEngine); 2] =
    [("address", PersistenceEngine::Address), ("sip", PersistenceEngine::Sip)];
pub const WHEN_NO_SERVER: [(&str, WhenNoServer); 3] = [
    ("reset", WhenNoServer::Reset),
    ("unreachable", WhenNoServer::Unreachable),
    ("drop", WhenNoServer::Drop),
];
const ON_DEADLINE: [(&str, OnDeadline); 2] = [("reset", OnDeadline::Reset), ("keep", OnDeadline::Keep)];
/// Per second.
const RATE_MAX: u32 = 1_000_000_000;
/// Connections of a threshold.
const CONNECTIONS_MAX: u32 = 67_108_864;
/// RFC 9000, 17.2.
const CONNECTION_ID_MAX: u8 = 20;
const OFFSET_MAX: u8 = CONNECTION_ID_MAX - 1;

#[cfg(test)]
#[path = "scheduling_tests.rs"]
pub mod tests;
