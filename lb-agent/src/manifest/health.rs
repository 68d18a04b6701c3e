//! Health checks and who takes part, as the operator writes them: `healthCheck`, `healthChecks` and what follows
//! from their outcomes. `probe` reads what is sent and expected.

pub(super) mod probe;

use std::sync::Arc;
use std::time::Duration;

use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text};
use super::{service, tunnel, word, word_of};
use crate::model::health::{
    Check, FLAP_CHANGES_MAX, Flap, OnFailure, OnServerDown, Passive, Path, Policy, Probe, Quorum, Require,
    ServerPolicy, Start, Timing,
};
use crate::model::{Forwarding, Protocol, RealServer, Scheduler, VirtualService};

/// The policy of a service, from the fields of its spec.
pub fn policy(spec: &mut Map<'_>, faults: &mut Faults) -> Policy {
    let mut policy = Policy::default();
    let mut checked = false;
    if let Some(field) = spec.get("healthCheck") {
        policy.checks.extend(check_of(&field, faults).map(Arc::new));
        checked = true;
    }
    if let Some(field) = spec.get("healthChecks") {
        if checked {
            let fault = faults.add(field.path.as_str(), "stands beside `healthCheck`").at_key(0);
            fault.help("put all checks into the list");
        }
        checked = true;
        policy.listed = true;
        several(&field, &mut policy, faults);
    }
    if let Some(field) = spec.get("onFailure") {
        needs_a_check(&field, checked, faults);
        policy.on_failure = field.one_of(&ON_FAILURE, faults).unwrap_or(policy.on_failure);
    }
    if let Some(field) = spec.get("onServerDown") {
        needs_a_check(&field, checked, faults);
        if policy.on_failure == OnFailure::Quiesce {
            let fault = faults.add(field.path.as_str(), "has no effect beside onFailure: quiesce").at_key(0);
            fault.help("a quiesced server keeps its connections; leave `onServerDown` out");
        }
        policy.on_server_down = field.one_of(&ON_SERVER_DOWN, faults).unwrap_or(policy.on_server_down);
    }
    if let Some(field) = spec.get("quorum") {
        policy.quorum = quorum(&field, faults).unwrap_or_default();
    }
    policy.sorry_server =
        spec.get("sorryServer").and_then(|field| sorry_server(&field, faults)).map(Box::new);
    policy.slow_start = spec.get("slowStart").and_then(|field| field.duration(SLOW_START, faults));
    if let Some(field) = spec.get("panicThreshold") {
        needs_a_check(&field, checked, faults);
        policy.panic_threshold = percent(&field, 1..=99, faults);
    }
    if let Some(field) = spec.get("latencyWeight") {
        needs_a_check(&field, checked, faults);
        policy.latency_weight = percent(&field, 1..=90, faults);
    }
    policy.passive = spec.get("passiveDetection").and_then(|field| passive(&field, faults));
    policy
}

/// What a real server has of its own.
pub fn server_policy(map: &mut Map<'_>, faults: &mut Faults) -> ServerPolicy {
    let checks = map.get("healthCheck").map(|field| match field.raw {
        Raw::Text(text) if text == "none" => Vec::new(),
        _ => check_of(&field, faults).map(Arc::new).into_iter().collect(),
    });
    let standby = map.get("standby").and_then(|field| field.integer(0..=u8::MAX, faults));
    ServerPolicy { checks, standby: standby.unwrap_or(0) }
}

fn needs_a_check(field: &Field<'_>, checked: bool, faults: &mut Faults) {
    if !checked {
        let fault = faults.add(field.path.as_str(), "there is no health check").at_key(0);
        fault.help("it says what follows from one: add `healthCheck`");
    }
}

fn several(field: &Field<'_>, policy: &mut Policy, faults: &mut Faults) {
    let Some(mut map) = field.map("a map like {require: any, checks: [...]}", faults) else { return };
    let require = map.get("require");
    if let Some(list) = map.require("checks", faults)
        && let Some(items) = list.list("a list of health checks", CHECKS_MAX, faults)
    {
        if items.is_empty() {
            faults.add(list.path.as_str(), "has no check");
        }
        policy.checks.extend(items.iter().filter_map(|item| check_of(item, faults)).map(Arc::new));
        if let Some(require) = require {
            policy.require = self::require(&require, items.len(), faults).unwrap_or(Require::All);
        }
    }
    map.finish(faults);
}

fn require(field: &Field<'_>, checks: usize, faults: &mut Faults) -> Option<Require> {
    match field.raw {
        Raw::Text(text) if text == "all" => Some(Require::All),
        Raw::Text(text) if text == "any" => Some(Require::Any),
        Raw::Integer(_) => {
            let least = field.integer(1..=CHECKS_MAX as u16, faults)?;
            if usize::from(least) > checks {
                faults.add(field.path.as_str(), format!("{least} of {checks} checks can never pass"));
                return None;
            }
            Some(Require::AtLeast(least))
        }
        _ => {
            field.expected("all, any or a number of checks", faults);
            None
        }
    }
}

/// A check: a word for a probe without parameters, or a map.
fn check_of(field: &Field<'_>, faults: &mut Faults) -> Option<Check> {
    if let Raw::Text(text) = field.raw {
        let probe = probe::by_word(text);
        if probe.is_none() {
            field
                .expected("a health check", faults)
                .help("like `tcp`, or {http: {path: /healthz}, interval: 2s}");
        }
        return probe.map(|probe| Check::new(probe, Timing::default()));
    }
    let mut map = field.map("a health check like {http: {path: /healthz}, interval: 2s}", faults)?;
    let probe = probe::decode(&mut map, &field.path, faults);
    let address = map.get("address").and_then(|field| field.unicast(faults));
    let port = map.get("port").and_then(|field| field.integer(1..=u16::MAX, faults));
    let source = map.get("source").and_then(|field| field.unicast(faults));
    let interface = map.get("interface").and_then(|field| field.interface_name(faults));
    let mark = map.get("mark").and_then(|field| field.integer(1..=u32::MAX, faults));
    let path = map.get("path").and_then(|field| field.one_of(&PATHS, faults));
    let proxy_header = map.get("proxyProtocol").and_then(|field| field.one_of(&PROXY_HEADERS, faults));
    let timing = timing(&mut map, faults);
    map.finish(faults);
    Some(Check { address, port, source, interface, mark, path, proxy_header, ..Check::new(probe?, timing) })
}

fn timing(map: &mut Map<'_>, faults: &mut Faults) -> Timing {
    let default = Timing::default();
    let range = Timing::INTERVAL_RANGE;
    let interval = map.get("interval").and_then(|field| field.duration(range.clone(), faults));
    let interval = interval.unwrap_or(default.interval);
    let mut at_most_the_interval = |key: &'static str, faults: &mut Faults| {
        let field = map.get(key)?;
        let duration = field.duration(range.clone(), faults)?;
        if duration > interval {
            let message =
                format!("{} is above the interval of {}", duration_text(duration), duration_text(interval));
            faults.add(field.path.as_str(), message);
        }
        Some(duration)
    };
    let fast_interval = at_most_the_interval("fastInterval", faults).unwrap_or(interval);
    let timeout = at_most_the_interval("timeout", faults).unwrap_or(interval.min(TIMEOUT));
    let mut count = |key, default| {
        let field = map.get(key);
        field.and_then(|field| field.integer(1..=Timing::COUNT_MAX, faults)).unwrap_or(default)
    };
    let (rise, fall) = (count("rise", default.rise), count("fall", default.fall));
    let start = map.get("start").and_then(|field| field.one_of(&STARTS, faults)).unwrap_or(default.start);
    let flap = map.get("flapDamping").and_then(|field| flap(&field, faults));
    Timing { interval, fast_interval, timeout, rise, fall, start, flap }
}

fn flap(field: &Field<'_>, faults: &mut Faults) -> Option<Flap> {
    let mut map = field.map("a map like {changes: 5, window: 1m, hold: 1m}", faults)?;
    let changes = map.require("changes", faults).and_then(|f| f.integer(2..=FLAP_CHANGES_MAX, faults));
    let window = map.require("window", faults).and_then(|f| f.duration(Timing::INTERVAL_RANGE, faults));
    let hold = map.require("hold", faults).and_then(|f| f.duration(Timing::INTERVAL_RANGE, faults));
    map.finish(faults);
    Some(Flap { changes: changes?, window: window?, hold: hold? })
}

/// A weight, or a map with a hysteresis.
fn quorum(field: &Field<'_>, faults: &mut Faults) -> Option<Quorum> {
    if matches!(field.raw, Raw::Integer(_)) {
        return field.integer(1..=u32::MAX, faults).map(|weight| Quorum { weight, hysteresis: 0 });
    }
    let mut map = field.map("a weight, or a map like {weight: 3, hysteresis: 1}", faults)?;
    let weight = map.require("weight", faults).and_then(|field| field.integer(1..=u32::MAX, faults));
    let hysteresis = map.get("hysteresis");
    let given = hysteresis.as_ref().and_then(|field| field.integer(0..=u32::MAX, faults)).unwrap_or(0);
    map.finish(faults);
    let weight = weight?;
    if let Some(field) = hysteresis.filter(|_| given >= weight) {
        faults.add(field.path.as_str(), format!("{given} is not below the quorum of {weight}"));
        return None;
    }
    Some(Quorum { weight, hysteresis: given })
}

fn passive(field: &Field<'_>, faults: &mut Faults) -> Option<Passive> {
    let mut map = field.map("a map like {window: 10s, failures: 5, share: 50%}", faults)?;
    let default = Passive::default();
    let window = map.get("window").and_then(|field| field.duration(WINDOW, faults));
    let failures = map.get("failures").and_then(|field| field.integer(1..=1_000_000u32, faults));
    let share = map.get("share").and_then(|field| percent(&field, 1..=100, faults));
    let probation = map.get("probation").and_then(|field| field.duration(PROBATION, faults));
    let max_share = map.get("maxShare").and_then(|field| percent(&field, 1..=99, faults));
    map.finish(faults);
    Some(Passive {
        window: window.unwrap_or(default.window),
        failures: failures.unwrap_or(default.failures),
        share: share.unwrap_or(default.share),
        probation: probation.unwrap_or(default.probation),
        max_share: max_share.unwrap_or(default.max_share),
    })
}

fn sorry_server(field: &Field<'_>, faults: &mut Faults) -> Option<RealServer> {
    let mut map = field.map("a server like {address: 10.0.0.99}", faults)?;
    let address = map.require("address", faults).and_then(|field| field.unicast(faults));
    let port = map.get("port").and_then(|field| field.integer(1..=u16::MAX, faults));
    let forwarding = map.get("forwarding").and_then(|field| field.one_of(&service::FORWARDING, faults));
    let tunnel = map.get("tunnel").and_then(|field| tunnel::decode(&field, faults));
    map.finish(faults);
    Some(RealServer {
        address: address?,
        port,
        weight: 1,
        forwarding,
        tunnel,
        limits: Default::default(),
        health: ServerPolicy::default(),
    })
}

/// `50` or `50%`.
fn percent(field: &Field<'_>, range: std::ops::RangeInclusive<u8>, faults: &mut Faults) -> Option<u8> {
    let Raw::Text(text) = field.raw else { return field.integer(range, faults) };
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
    match number {
        Some(number) if range.contains(&number) => Some(number),
        Some(number) => {
            let message = format!("{number}% is not within {}% and {}%", range.start(), range.end());
            faults.add(field.path.as_str(), message);
            None
        }
        None => {
            field.expected("a share like 50%", faults);
            None
        }
    }
}

/// What can be wrong between the checks and the rest of the service.
pub fn check(service: &VirtualService, servers: &[(String, RealServer)], faults: &mut Faults) {
    let policy = &service.health;
    for (path, check) in policy.places() {
        let users: Vec<&RealServer> =
            servers.iter().map(|(_, s)| s).filter(|server| server.health.checks.is_none()).collect();
        check_check(service, &path, check, &users, faults);
    }
    for (path, server) in servers {
        for check in server.health.checks.iter().flatten() {
            check_check(service, &format!("{path}.healthCheck"), check, &[server], faults);
        }
    }
    let total: u64 = servers.iter().map(|(_, server)| u64::from(server.weight)).sum();
    let needed = u64::from(policy.quorum.weight) + u64::from(policy.quorum.hysteresis);
    if needed > 1 && needed > total {
        let fault = faults
            .add("spec.quorum", format!("{needed} can never be reached: all weights together are {total}"));
        fault.help("the quorum is a sum of weights, and is gained at weight + hysteresis");
    }
    if service.protocol == Protocol::Udp && policy.on_server_down != OnServerDown::Keep {
        let fault = faults.add("spec.onServerDown", "udp flows always move at once").at_key(0);
        fault.help("leave `onServerDown` out");
    }
    if service.protocol == Protocol::Sctp && policy.on_server_down == OnServerDown::Reschedule {
        let fault = faults.add("spec.onServerDown", "no other server can take an sctp association over");
        fault.help("`reset` ends it at its next packet");
    }
    if policy.passive.is_some() {
        check_passive(service, servers, faults);
    }
    if service.scheduler == Scheduler::Rr {
        for (field, given) in
            [("slowStart", policy.slow_start.is_some()), ("latencyWeight", policy.latency_weight.is_some())]
        {
            if given {
                faults.add(format!("spec.{field}"), "rr knows no weights").at_key(0).help("wrr does");
            }
        }
    }
    if let Some(sorry) = &policy.sorry_server {
        let as_server = ("spec.sorryServer".to_owned(), RealServer::clone(sorry));
        service::check_real_servers(service, &[as_server], faults);
    }
    if let Some(sorry) = &policy.sorry_server
        && servers.iter().any(|(_, server)| service.key_of(server) == service.key_of(sorry))
    {
        let message = format!("{} is a real server of this service", service.key_of(sorry));
        faults.add("spec.sorryServer.address", message);
    }
}

fn check_passive(service: &VirtualService, servers: &[(String, RealServer)], faults: &mut Faults) {
    const FIELD: &str = "spec.passiveDetection";
    if service.protocol != Protocol::Tcp {
        let fault = faults.add(FIELD, "watches TCP handshakes, and the service has none").at_key(0);
        fault.help("leave `passiveDetection` out");
        return;
    }
    let unknown = |(_, server): &&(String, RealServer)| {
        service.health.checks_of(server).is_empty()
            && service.health.watches(server)
            && service.port_of(server).is_none()
    };
    if servers.iter().any(|server| unknown(&server)) {
        let message =
            format!("has no port to probe a server on: the service has the ports {}", service.ports);
        faults.add(FIELD, message).at_key(0).help("add a `healthCheck` that names one");
    }
}

fn check_check(
    service: &VirtualService,
    path: &str,
    check: &Check,
    users: &[&RealServer],
    faults: &mut Faults,
) {
    let word = check.probe.word();
    let own_ports = |server: &&&RealServer| service.port_of(server).is_none();
    if check.probe.uses_port() && check.port.is_none() {
        let udp = service.protocol == Protocol::Udp;
        let answers = if check.probe.speaks_udp() { "udp" } else { "tcp" };
        if matches!(check.probe, Probe::Agent(_)) {
            let fault = faults.add(format!("{path}.port"), "is required: the agent has a port of its own");
            fault.help("like `port: 9999`");
        } else if service.protocol == Protocol::Sctp {
            let message =
                format!("is required: the service is sctp, and {word} needs a port that answers {answers}");
            let fault = faults.add(format!("{path}.port"), message);
            fault.help("like `port: 8080`; icmp, script and file need none");
        } else if udp && !check.probe.speaks_udp() {
            let fault = faults.add(
                format!("{path}.port"),
                format!("is required: the service is udp, and {word} needs a port that answers tcp"),
            );
            fault.help("like `port: 8080`");
        } else if !udp && check.probe.speaks_udp() {
            let fault = faults.add(
                format!("{path}.port"),
                format!("is required: the service is tcp, and {word} needs a port that answers udp"),
            );
            fault.help("like `port: 53`");
        } else if users.iter().any(|server| own_ports(&server)) {
            let fault = faults.add(
                format!("{path}.port"),
                format!("is required: the service has the ports {}", service.ports),
            );
            fault.help("name the one to probe");
        }
    } else if !check.probe.uses_port() && check.port.is_some() {
        faults.add(format!("{path}.port"), format!("{word} uses no port")).at_key(0);
    }
    if matches!(check.probe, Probe::Script(_) | Probe::File(_)) {
        for (field, given) in [
            ("source", check.source.is_some()),
            ("interface", check.interface.is_some()),
            ("mark", check.mark.is_some()),
        ] {
            if given {
                faults.add(format!("{path}.{field}"), format!("{word} sends nothing by itself")).at_key(0);
            }
        }
    }
    if check.proxy_header.is_some() && !check.probe.may_send_header() {
        let place = format!("{path}.proxyProtocol");
        faults
            .add(place, format!("{word} says nothing to the service that a header could stand before"))
            .at_key(0);
    }
    if check.path == Some(Path::Real) {
        let place = format!("{path}.path");
        if !check.probe.uses_port() {
            faults.add(place, format!("{word} does not go to the VIP")).help("path: direct");
        } else if !check.may_use_the_real_path() {
            let fault =
                faults.add(place, "the real path leaves no choice of address, source, interface and mark");
            fault.help("leave them out, or write path: direct");
        } else if !users.is_empty() && users.iter().all(|server| service.forwarding_of(server).translates()) {
            let method = word_of(&service::FORWARDING, service.forwarding_of(users[0]));
            faults.add(place, format!("{method} servers do not have the VIP")).help("path: direct");
        }
    }
    let wrong_family = |server: &&RealServer| {
        check
            .source
            .is_some_and(|source| check.target(service, server).address().is_ipv4() != source.is_ipv4())
    };
    if let Some(server) = users.iter().copied().find(|server| wrong_family(server)) {
        let target = check.target(service, server).address();
        let source = check.source.map(|source| source.to_string()).unwrap_or_default();
        faults
            .add(format!("{path}.source"), format!("{source} cannot send to {target}: the families differ"));
    }
}

/// The fields of a policy, none where it is the default.
pub fn encode(policy: &Policy) -> Vec<(&'static str, Option<Raw>)> {
    let default = Policy::default();
    let list = || {
        let require = match policy.require {
            Require::All => Raw::text("all"),
            Require::Any => Raw::text("any"),
            Require::AtLeast(least) => Raw::integer(least),
        };
        let checks = policy.checks.iter().map(|check| encode_check(check)).collect();
        Raw::map([("require", Some(require)), ("checks", Some(Raw::List(checks)))])
    };
    let quorum = Raw::map([
        ("weight", Some(Raw::integer(policy.quorum.weight))),
        ("hysteresis", Some(Raw::integer(policy.quorum.hysteresis))),
    ]);
    let one = policy.checks.first().filter(|_| !policy.listed);
    let checked = !policy.checks.is_empty();
    let removes = checked && policy.on_failure == OnFailure::Remove;
    vec![
        ("healthCheck", one.map(|check| encode_check(check))),
        ("healthChecks", (policy.listed && checked).then(list)),
        ("onFailure", checked.then(|| word(&ON_FAILURE, policy.on_failure))),
        ("onServerDown", removes.then(|| word(&ON_SERVER_DOWN, policy.on_server_down))),
        ("quorum", (policy.quorum != default.quorum).then_some(quorum)),
        ("sorryServer", policy.sorry_server.as_deref().map(encode_sorry)),
        ("slowStart", policy.slow_start.map(|time| Raw::Text(duration_text(time)))),
        ("panicThreshold", policy.panic_threshold.map(Raw::integer)),
        ("latencyWeight", policy.latency_weight.map(Raw::integer)),
        ("passiveDetection", policy.passive.as_ref().map(encode_passive)),
    ]
}

fn encode_passive(passive: &Passive) -> Raw {
    let duration = |duration: Duration| Some(Raw::Text(duration_text(duration)));
    Raw::map([
        ("window", duration(passive.window)),
        ("failures", Some(Raw::integer(passive.failures))),
        ("share", Some(Raw::integer(passive.share))),
        ("probation", duration(passive.probation)),
        ("maxShare", Some(Raw::integer(passive.max_share))),
    ])
}

fn encode_sorry(server: &RealServer) -> Raw {
    let method = |method: Forwarding| word(&service::FORWARDING, method);
    Raw::map([
        ("address", Some(Raw::text(server.address))),
        ("port", server.port.map(Raw::integer)),
        ("forwarding", server.forwarding.map(method)),
        ("tunnel", server.tunnel.map(tunnel::encode)),
    ])
}

pub fn encode_server(policy: &ServerPolicy) -> [(&'static str, Option<Raw>); 2] {
    let check = policy.checks.as_ref().map(|checks| match checks.first() {
        Some(check) => encode_check(check),
        None => Raw::text("none"),
    });
    [("healthCheck", check), ("standby", (policy.standby > 0).then(|| Raw::integer(policy.standby)))]
}

fn encode_check(check: &Check) -> Raw {
    let timing = &check.timing;
    let duration = |duration: Duration| Some(Raw::Text(duration_text(duration)));
    let flap = timing.flap.map(|flap| {
        Raw::map([
            ("changes", Some(Raw::integer(flap.changes))),
            ("window", duration(flap.window)),
            ("hold", duration(flap.hold)),
        ])
    });
    Raw::map([
        (check.probe.word(), Some(probe::encode(&check.probe))),
        ("address", check.address.map(Raw::text)),
        ("port", check.port.map(Raw::integer)),
        ("source", check.source.map(Raw::text)),
        ("interface", check.interface.as_ref().map(Raw::text)),
        ("mark", check.mark.map(Raw::integer)),
        ("path", check.path.map(|path| word(&PATHS, path))),
        ("proxyProtocol", check.proxy_header.map(|sent| word(&PROXY_HEADERS, sent))),
        ("interval", duration(timing.interval)),
        ("fastInterval", duration(timing.fast_interval)),
        ("timeout", duration(timing.timeout)),
        ("rise", Some(Raw::integer(timing.rise))),
        ("fall", Some(Raw::integer(timing.fall))),
        ("start", Some(word(&STARTS, timing.start))),
        ("flapDamping", flap),
    ])
}

const ON_FAILURE: [(&str, OnFailure); 2] = [("remove", OnFailure::Remove), ("quiesce", OnFailure::Quiesce)];
pub const ON_SERVER_DOWN: [(&str, OnServerDown); 3] =
    [("keep", OnServerDown::Keep), ("reset", OnServerDown::Reset), ("reschedule", OnServerDown::Reschedule)];
const PATHS: [(&str, Path); 2] = [("real", Path::Real), ("direct", Path::Direct)];
/// Whether the header is sent.
const PROXY_HEADERS: [(&str, bool); 2] = [("v2", true), ("none", false)];
const STARTS: [(&str, Start); 2] = [("down", Start::Down), ("up", Start::Up)];
const SLOW_START: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const WINDOW: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(600);
const PROBATION: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// A timeout that is not given is the interval, and no longer than this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most checks of one real server.
const CHECKS_MAX: usize = 16;

#[cfg(test)]
mod tests;
