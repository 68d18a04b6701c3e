//! `kind: VrrpInstance` and `kind: VrrpSyncGroup` as the operator writes them.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::pool::net_text;
use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text, unusable};
use super::vrrp_auth::{self, encode_authentication};
use super::vrrp_track::{self, command, encode_track};
use super::word;
use crate::model::{
    DEFAULT_PRIORITY, Gratuitous, Name, Notify, OWNER_PRIORITY, Preempt, TrackEffect, Unicast,
    VirtualAddress, VirtualRoute, VirtualRule, Vmac, Vrid, VrrpChecksum, VrrpInstance, VrrpShutdown,
    VrrpSyncGroup, VrrpVersion,
};
use crate::vrrp::timers::{granularity, intervals};

/// The instance, unless something it cannot be without is missing or wrong.
pub fn decode(name: Name, mut spec: Map<'_>, faults: &mut Faults) -> Option<VrrpInstance> {
    let interface = spec.require("interface", faults).and_then(|field| field.interface_name(faults));
    let vrid = spec.require("virtualRouterId", faults).and_then(|field| field.integer(1..=u8::MAX, faults));
    let priority = spec.get("priority").and_then(|field| field.integer(1..=u8::MAX, faults));
    let priority = priority.unwrap_or(DEFAULT_PRIORITY);
    let version = spec.get("version").and_then(|field| version(&field, faults)).unwrap_or(VrrpVersion::V3);
    let interval = spec.get("advertisementInterval").and_then(|field| interval(&field, version, faults));
    let addresses = match spec.require("addresses", faults) {
        Some(field) => advertised(&field, version, faults),
        None => Vec::new(),
    };
    let excluded = spec.get("excludedAddresses").map(|field| virtual_addresses(&field, &addresses, faults));
    let preempt = preempt(&mut spec, priority, faults);
    let accept = accept(&mut spec, priority, faults);
    let ipv4 = addresses.first().map(|first| first.address.addr().is_ipv4());
    let unicast = unicast(&mut spec, ipv4, faults);
    let source_address = spec.get("sourceAddress").and_then(|field| family_address(&field, ipv4, faults));
    let authentication =
        spec.get("authentication").and_then(|field| vrrp_auth::decode(&field, version, faults));
    let checksum = spec.get("checksum").and_then(|field| checksum(&field, version, ipv4, faults));
    let gratuitous = spec.get("gratuitous").and_then(|field| gratuitous(&field, faults));
    let vmac = spec.get("vmac").and_then(|field| vmac(&field, faults));
    let track = spec.get("track").and_then(|field| vrrp_track::decode(&field, faults));
    for (index, tracked) in track.iter().flat_map(|track| &track.interfaces).enumerate() {
        if Some(&tracked.name) == interface.as_ref() && tracked.effect != TrackEffect::Fault {
            let message = format!("`{}` is the instance's own interface", tracked.name);
            let fault = faults.add(format!("{}[{index}]", spec.path_of("track.interfaces")), message);
            fault.help("without it nothing can be advertised: it is always a fault when it is down");
        }
    }
    let notify = spec.get("notify").and_then(|field| notify(&field, faults));
    let routes = spec.get("routes").map(|field| routes(&field, faults));
    let rules = spec.get("rules").map(|field| rules(&field, faults));
    let shutdown = spec.get("shutdown").and_then(|field| field.one_of(&SHUTDOWN, faults));
    spec.finish(faults);
    let (checksum, checksum_strict) = checksum.unwrap_or_default();
    Some(VrrpInstance {
        name,
        interface: interface?,
        vrid: Vrid::new(vrid?)?,
        priority,
        interval: interval.unwrap_or(DEFAULT_INTERVAL),
        version,
        addresses,
        excluded_addresses: excluded.unwrap_or_default(),
        preempt,
        accept,
        unicast,
        source_address,
        authentication: authentication.unwrap_or_default(),
        checksum,
        checksum_strict,
        gratuitous: gratuitous.unwrap_or_default(),
        vmac: vmac.unwrap_or_default(),
        track: track.unwrap_or_default(),
        notify: notify.unwrap_or_default(),
        routes: routes.unwrap_or_default(),
        rules: rules.unwrap_or_default(),
        shutdown: shutdown.unwrap_or_default(),
    })
}

fn version(field: &Field<'_>, faults: &mut Faults) -> Option<VrrpVersion> {
    match field.integer(2..=3u8, faults)? {
        2 => Some(VrrpVersion::V2),
        _ => Some(VrrpVersion::V3),
    }
}

fn interval(field: &Field<'_>, version: VrrpVersion, faults: &mut Faults) -> Option<Duration> {
    let mut own = Faults::default();
    let interval = field.duration(intervals(version), &mut own);
    if let Some(fault) = own.0.first_mut()
        && version == VrrpVersion::V2
    {
        fault.help("version 2 counts whole seconds, 1s to 255s; version 3 goes down to 10ms");
    }
    faults.0.extend(own.0);
    let step = granularity(version);
    let interval = interval?;
    if !interval.as_nanos().is_multiple_of(step.as_nanos()) {
        let message = format!("{} is not a multiple of {}", duration_text(interval), duration_text(step));
        faults.add(field.path.as_str(), message);
        return None;
    }
    Some(interval)
}

/// The advertised addresses: of one family, and as many as fit a packet.
fn advertised(field: &Field<'_>, version: VrrpVersion, faults: &mut Faults) -> Vec<VirtualAddress> {
    let addresses = virtual_addresses(field, &[], faults);
    if matches!(field.raw, Raw::List(items) if items.is_empty()) {
        faults.add(field.path.as_str(), "has no address");
    }
    let Some(first) = addresses.first().map(|first| first.address.addr()) else { return addresses };
    for (index, other) in addresses.iter().enumerate() {
        let (other, path) = (other.address.addr(), format!("{}[{index}]", field.path));
        if other.is_ipv4() != first.is_ipv4() {
            let message = format!("{other} is not of the family of {first}");
            let help = "an instance advertises one family; put the other's in excludedAddresses, or into a \
                        second VrrpInstance";
            faults.add(path, message).help(help);
        } else if version == VrrpVersion::V2 && other.is_ipv6() {
            faults.add(path, format!("version 2 is for IPv4 only, and {other} is IPv6")).help("version: 3");
        }
    }
    if first.is_ipv6() && addresses.len() > ADDRESSES_MAX_V6 {
        let message = format!("{} IPv6 addresses are above {ADDRESSES_MAX_V6}", addresses.len());
        faults.add(field.path.as_str(), message).help("more do not fit a packet; use excludedAddresses");
    }
    addresses
}

fn virtual_addresses(
    field: &Field<'_>,
    others: &[VirtualAddress],
    faults: &mut Faults,
) -> Vec<VirtualAddress> {
    let what = "a list of addresses like [203.0.113.10/24]";
    let Some(items) = field.list(what, ADDRESSES_MAX, faults) else { return Vec::new() };
    let mut addresses: Vec<VirtualAddress> = Vec::new();
    for item in items {
        let (address, interface) = match item.raw {
            Raw::Map(_) => {
                let Some(mut map) = item.map("an address", faults) else { continue };
                let address = map.require("address", faults).and_then(|field| host_net(&field, faults));
                let interface = map.get("interface").and_then(|field| field.interface_name(faults));
                map.finish(faults);
                (address, interface)
            }
            _ => (host_net(&item, faults), None),
        };
        let Some(address) = address else { continue };
        let twice = |other: &VirtualAddress| other.address.addr() == address.addr();
        if addresses.iter().chain(others).any(twice) {
            faults.add(item.path, format!("{} is listed twice", address.addr()));
            continue;
        }
        addresses.push(VirtualAddress { address, interface });
    }
    addresses
}

/// `203.0.113.10/24`: an address and the length of its prefix; without one, a single address.
fn host_net(field: &Field<'_>, faults: &mut Faults) -> Option<IpNet> {
    let what = "an address like 203.0.113.10/24";
    let text = field.text(what, faults)?;
    let Ok(net) = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) else {
        field.expected(what, faults);
        return None;
    };
    if let Some(reason) = unusable_virtual(net.addr()) {
        faults.add(field.path.as_str(), format!("{} is {reason}", net.addr()));
        return None;
    }
    let single = net.prefix_len() >= net.max_prefix_len() - 1 || net.addr().is_ipv6();
    if !single && (net.addr() == net.network() || net.addr() == net.broadcast()) {
        let which = if net.addr() == net.network() { "network" } else { "broadcast" };
        let message = format!("{} is the {which} address of {}", net.addr(), net.trunc());
        faults.add(field.path.as_str(), message);
        return None;
    }
    Some(net)
}

/// A virtual address may be link-local: the instance has an interface.
fn unusable_virtual(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => None,
        _ => unusable(address),
    }
}

/// An address on the segment, of the family of the advertised ones.
fn family_address(field: &Field<'_>, ipv4: Option<bool>, faults: &mut Faults) -> Option<IpAddr> {
    let text = field.text("an IP address", faults)?;
    let Ok(address) = text.parse::<IpAddr>() else {
        field.expected("an IP address", faults);
        return None;
    };
    if let Some(reason) = unusable_virtual(address) {
        faults.add(field.path.as_str(), format!("{address} is {reason}"));
        return None;
    }
    if ipv4.is_some_and(|ipv4| ipv4 != address.is_ipv4()) {
        faults
            .add(field.path.as_str(), format!("{address} is not of the family of the instance's addresses"));
        return None;
    }
    Some(address)
}

fn preempt(spec: &mut Map<'_>, priority: u8, faults: &mut Faults) -> Preempt {
    let preempt = spec.get("preempt");
    let path = spec.path_of("preempt");
    let preempt = preempt.and_then(|field| field.boolean(faults)).unwrap_or(true);
    let delay = spec.get("preemptDelay").and_then(|field| {
        if !preempt {
            faults.add(field.path.as_str(), "only an instance that preempts has a delay").at_key(0);
            return None;
        }
        field.duration(PREEMPT_DELAY, faults)
    });
    if !preempt && priority == OWNER_PRIORITY {
        let help = "the owner of the addresses takes them back at once (RFC 9568 section 6.1)";
        faults.add(path, "priority 255 always preempts").help(help);
    }
    if preempt { Preempt::After(delay.unwrap_or_default()) } else { Preempt::Never }
}

fn accept(spec: &mut Map<'_>, priority: u8, faults: &mut Faults) -> bool {
    let accept = spec.get("accept").and_then(|field| field.boolean(faults)).unwrap_or(true);
    if !accept && priority == OWNER_PRIORITY {
        let help = "they are the owner's own addresses (RFC 9568 section 6.1)";
        faults.add(spec.path_of("accept"), "priority 255 always accepts").help(help);
    }
    accept
}

fn unicast(spec: &mut Map<'_>, ipv4: Option<bool>, faults: &mut Faults) -> Option<Unicast> {
    let min_ttl = spec.get("unicastMinTtl");
    let min_ttl_path = spec.path_of("unicastMinTtl");
    let given = min_ttl.is_some();
    let min_ttl = min_ttl.and_then(|field| field.integer(1..=u8::MAX, faults));
    let Some(field) = spec.get("unicastPeers") else {
        if given {
            faults
                .add(min_ttl_path, "only unicast peers have a least TTL")
                .at_key(0)
                .help("multicast must have 255");
        }
        return None;
    };
    let mut peers = Vec::new();
    for item in field.list("a list of addresses like [10.0.0.2]", PEERS_MAX, faults)? {
        let Some(peer) = family_address(&item, ipv4, faults) else { continue };
        if peers.contains(&peer) {
            faults.add(item.path, format!("{peer} is listed twice"));
            continue;
        }
        peers.push(peer);
    }
    if matches!(field.raw, Raw::List(items) if items.is_empty()) {
        let help = "name the other directors, or leave unicastPeers out for multicast";
        faults.add(field.path, "has no peer; nobody would hear this director").help(help);
    }
    Some(Unicast { peers, min_ttl: min_ttl.unwrap_or(u8::MAX) })
}

fn checksum(
    field: &Field<'_>,
    version: VrrpVersion,
    ipv4: Option<bool>,
    faults: &mut Faults,
) -> Option<(VrrpChecksum, bool)> {
    let mut map = field.map("a map like {form: pseudo-header, strict: false}", faults)?;
    let form = map.get("form").and_then(|form| form.one_of(&CHECKSUMS, faults));
    let strict = map.get("strict").and_then(|strict| strict.boolean(faults));
    map.finish(faults);
    if version == VrrpVersion::V2 || ipv4 == Some(false) {
        let fault = faults.add(field.path.as_str(), "only version 3 over IPv4 has two forms of checksum");
        fault.at_key(0);
    }
    Some((form.unwrap_or_default(), strict.unwrap_or(false)))
}

fn gratuitous(field: &Field<'_>, faults: &mut Faults) -> Option<Gratuitous> {
    let mut map = field.map("a map like {count: 5, delay: 5s, repeat: 5, refresh: 1m}", faults)?;
    let default = Gratuitous::default();
    let count = map.get("count").and_then(|field| field.integer(1..=BURST_MAX, faults));
    let delay = map.get("delay").and_then(|field| field.duration(GRATUITOUS_DELAY, faults));
    let repeat = map.get("repeat").and_then(|field| field.integer(1..=BURST_MAX, faults));
    let refresh = map.get("refresh").and_then(|field| match field.raw {
        Raw::Text(text) if text == "off" => Some(None),
        _ => field.duration(GRATUITOUS_REFRESH, faults).map(Some),
    });
    map.finish(faults);
    Some(Gratuitous {
        count: count.unwrap_or(default.count),
        delay: delay.unwrap_or(default.delay),
        repeat: repeat.unwrap_or(default.repeat),
        refresh: refresh.unwrap_or(default.refresh),
    })
}

/// `true`, `false`, or `{interface: vrrp51}`.
fn vmac(field: &Field<'_>, faults: &mut Faults) -> Option<Vmac> {
    match field.raw {
        Raw::Bool(true) => Some(Vmac::On { interface: None }),
        Raw::Bool(false) => Some(Vmac::Off),
        Raw::Map(_) => {
            let mut map = field.map("a map like {interface: vrrp51}", faults)?;
            let interface = map.require("interface", faults).and_then(|field| field.interface_name(faults));
            map.finish(faults);
            Some(Vmac::On { interface: Some(interface?) })
        }
        _ => {
            field.expected("true, false or a map like {interface: vrrp51}", faults);
            None
        }
    }
}

fn notify(field: &Field<'_>, faults: &mut Faults) -> Option<Notify> {
    let mut map = field.map("a map like {master: [/usr/local/bin/on-master]}", faults)?;
    let notify = Notify {
        master: map.get("master").and_then(|field| command(&field, faults)),
        backup: map.get("backup").and_then(|field| command(&field, faults)),
        fault: map.get("fault").and_then(|field| command(&field, faults)),
        command: map.get("command").and_then(|field| command(&field, faults)),
        timeout: map
            .get("timeout")
            .and_then(|field| field.duration(NOTIFY_TIMEOUT, faults))
            .unwrap_or(Notify::default().timeout),
    };
    map.finish(faults);
    Some(notify)
}

fn routes(field: &Field<'_>, faults: &mut Faults) -> Vec<VirtualRoute> {
    let Some(items) = field.list("a list of routes", ROUTES_MAX, faults) else { return Vec::new() };
    let mut routes = Vec::new();
    for item in items {
        let Some(mut map) = item.map("a route like {to: 0.0.0.0/0, via: 10.0.0.1}", faults) else { continue };
        let destination = map.require("to", faults).and_then(|field| field.prefix(PREFIX, faults));
        let via = map.get("via").and_then(|field| family_address(&field, None, faults));
        let interface = map.get("interface").and_then(|field| field.interface_name(faults));
        let source = map.get("source").and_then(|field| family_address(&field, None, faults));
        let table = map.get("table").and_then(|field| field.integer(1..=u32::MAX, faults));
        let metric = map.get("metric").and_then(|field| field.integer(0..=u32::MAX, faults));
        map.finish(faults);
        let Some(destination) = destination else { continue };
        for (key, address) in [("via", via), ("source", source)] {
            if address.is_some_and(|address| address.is_ipv4() != destination.addr().is_ipv4()) {
                let message = format!("is not of the family of {destination}");
                faults.add(format!("{}.{key}", item.path), message);
            }
        }
        routes.push(VirtualRoute { destination, via, interface, source, table, metric });
    }
    routes
}

fn rules(field: &Field<'_>, faults: &mut Faults) -> Vec<VirtualRule> {
    let Some(items) = field.list("a list of rules", ROUTES_MAX, faults) else { return Vec::new() };
    let mut rules = Vec::new();
    for item in items {
        let Some(mut map) = item.map("a rule like {from: 203.0.113.10, table: 100}", faults) else {
            continue;
        };
        let from = map.get("from").and_then(|field| field.prefix(PREFIX, faults));
        let to = map.get("to").and_then(|field| field.prefix(PREFIX, faults));
        let priority = map.get("priority").and_then(|field| field.integer(1..=32_765u32, faults));
        let table = map.require("table", faults).and_then(|field| field.integer(1..=u32::MAX, faults));
        map.finish(faults);
        if let (Some(from), Some(to)) = (from, to)
            && from.addr().is_ipv4() != to.addr().is_ipv4()
        {
            faults.add(format!("{}.to", item.path), format!("is not of the family of {from}"));
        }
        if from.is_none() && to.is_none() {
            faults.add(item.path.as_str(), "has neither `from` nor `to`: it would catch every packet");
        }
        let Some(table) = table else { continue };
        rules.push(VirtualRule { from, to, priority, table });
    }
    rules
}

/// The group, unless it has no members that could be read.
pub fn decode_group(name: Name, mut spec: Map<'_>, faults: &mut Faults) -> Option<VrrpSyncGroup> {
    let members = spec.require("members", faults).and_then(|field| {
        let mut members: Vec<Name> = Vec::new();
        for item in field.list("a list of VrrpInstances", MEMBERS_MAX, faults)? {
            let Some(member) = item.name(faults) else { continue };
            if members.contains(&member) {
                faults.add(item.path, format!("`{member}` is listed twice"));
                continue;
            }
            members.push(member);
        }
        if matches!(field.raw, Raw::List(items) if items.len() < 2) {
            faults.add(field.path, "a group has at least two members");
        }
        Some(members)
    });
    let shared_weights = spec.get("sharedWeights").and_then(|field| field.boolean(faults));
    let track = spec.get("track").and_then(|field| vrrp_track::decode(&field, faults));
    let notify = spec.get("notify").and_then(|field| notify(&field, faults));
    spec.finish(faults);
    Some(VrrpSyncGroup {
        name,
        members: members?,
        shared_weights: shared_weights.unwrap_or(false),
        track: track.unwrap_or_default(),
        notify: notify.unwrap_or_default(),
    })
}

pub fn encode(instance: &VrrpInstance) -> Raw {
    let duration = |duration: Duration| Some(Raw::Text(duration_text(duration)));
    let (preempt, delay) = match instance.preempt {
        Preempt::Never => (false, None),
        Preempt::After(delay) => (true, duration(delay)),
    };
    let two_forms = instance.version == VrrpVersion::V3 && instance.is_ipv4();
    let checksum = Raw::map([
        ("form", Some(word(&CHECKSUMS, instance.checksum))),
        ("strict", Some(Raw::Bool(instance.checksum_strict))),
    ]);
    let gratuitous = instance.gratuitous;
    let gratuitous = Raw::map([
        ("count", Some(Raw::integer(gratuitous.count))),
        ("delay", duration(gratuitous.delay)),
        ("repeat", Some(Raw::integer(gratuitous.repeat))),
        ("refresh", gratuitous.refresh.map_or(Some(Raw::text("off")), duration)),
    ]);
    let vmac = match &instance.vmac {
        Vmac::Off => Raw::Bool(false),
        Vmac::On { interface: None } => Raw::Bool(true),
        Vmac::On { interface: Some(interface) } => Raw::map([("interface", Some(Raw::text(interface)))]),
    };
    let peers = |unicast: &Unicast| Raw::List(unicast.peers.iter().map(Raw::text).collect());
    Raw::map([
        ("interface", Some(Raw::text(&instance.interface))),
        ("virtualRouterId", Some(Raw::integer(instance.vrid.get()))),
        ("priority", Some(Raw::integer(instance.priority))),
        ("advertisementInterval", duration(instance.interval)),
        ("version", Some(Raw::integer(instance.version.number()))),
        ("addresses", Some(encode_addresses(&instance.addresses))),
        ("excludedAddresses", Some(encode_addresses(&instance.excluded_addresses))),
        ("preempt", Some(Raw::Bool(preempt))),
        ("preemptDelay", delay),
        ("accept", Some(Raw::Bool(instance.accept))),
        ("unicastPeers", instance.unicast.as_ref().map(peers)),
        ("unicastMinTtl", instance.unicast.as_ref().map(|unicast| Raw::integer(unicast.min_ttl))),
        ("sourceAddress", instance.source_address.map(Raw::text)),
        ("authentication", Some(encode_authentication(&instance.authentication))),
        ("checksum", two_forms.then_some(checksum)),
        ("gratuitous", Some(gratuitous)),
        ("vmac", Some(vmac)),
        ("track", Some(encode_track(&instance.track))),
        ("notify", Some(encode_notify(&instance.notify))),
        ("routes", Some(Raw::List(instance.routes.iter().map(encode_route).collect()))),
        ("rules", Some(Raw::List(instance.rules.iter().map(encode_rule).collect()))),
        ("shutdown", Some(word(&SHUTDOWN, instance.shutdown))),
    ])
}

pub fn encode_group(group: &VrrpSyncGroup) -> Raw {
    Raw::map([
        ("members", Some(Raw::List(group.members.iter().map(Raw::text).collect()))),
        ("sharedWeights", Some(Raw::Bool(group.shared_weights))),
        ("track", Some(encode_track(&group.track))),
        ("notify", Some(encode_notify(&group.notify))),
    ])
}

fn encode_addresses(addresses: &[VirtualAddress]) -> Raw {
    let one = |address: &VirtualAddress| {
        let text = Raw::Text(net_text(&address.address));
        match &address.interface {
            None => text,
            Some(interface) => Raw::map([("address", Some(text)), ("interface", Some(Raw::text(interface)))]),
        }
    };
    Raw::List(addresses.iter().map(one).collect())
}

fn encode_notify(notify: &Notify) -> Raw {
    let command = |words: &Option<Vec<String>>| {
        words.as_ref().map(|words| Raw::List(words.iter().map(Raw::text).collect()))
    };
    Raw::map([
        ("master", command(&notify.master)),
        ("backup", command(&notify.backup)),
        ("fault", command(&notify.fault)),
        ("command", command(&notify.command)),
        ("timeout", Some(Raw::Text(duration_text(notify.timeout)))),
    ])
}

fn encode_route(route: &VirtualRoute) -> Raw {
    Raw::map([
        ("to", Some(Raw::Text(net_text(&route.destination)))),
        ("via", route.via.map(Raw::text)),
        ("interface", route.interface.as_ref().map(Raw::text)),
        ("source", route.source.map(Raw::text)),
        ("table", route.table.map(Raw::integer)),
        ("metric", route.metric.map(Raw::integer)),
    ])
}

fn encode_rule(rule: &VirtualRule) -> Raw {
    Raw::map([
        ("from", rule.from.as_ref().map(|net| Raw::Text(net_text(net)))),
        ("to", rule.to.as_ref().map(|net| Raw::Text(net_text(net)))),
        ("priority", rule.priority.map(Raw::integer)),
        ("table", Some(Raw::integer(rule.table))),
    ])
}

const PREFIX: &str = "a prefix like 10.0.0.0/8";
const CHECKSUMS: [(&str, VrrpChecksum); 2] =
    [("pseudo-header", VrrpChecksum::PseudoHeader), ("message-only", VrrpChecksum::MessageOnly)];
const SHUTDOWN: [(&str, VrrpShutdown); 2] =
    [("keep", VrrpShutdown::Keep), ("release", VrrpShutdown::Release)];
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// keepalived's range.
const PREEMPT_DELAY: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(1000);
const GRATUITOUS_DELAY: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(1000);
const GRATUITOUS_REFRESH: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
const NOTIFY_TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const BURST_MAX: u8 = 100;
/// The count in an advertisement has one byte.
const ADDRESSES_MAX: usize = 255;
/// (1500 − 40 of IPv6 − 8 of VRRP − 28 of a trailer) / 16.
const ADDRESSES_MAX_V6: usize = 89;
const PEERS_MAX: usize = 16;
const ROUTES_MAX: usize = 256;
const MEMBERS_MAX: usize = 255;
