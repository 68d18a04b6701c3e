//! What can be wrong between objects that are right by themselves, and between them and the host.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::diagnostic::{Diagnostic, Report};
use super::objects::{Entry, Objects};
use super::pool::net_text;
use super::{check_lease, check_vrrp, real_path, tunnel};
use crate::model::{
    Forwarding, Kind, LocalAddressPool, ObjectId, POOL_ADDRESSES_MAX, PORT_RANGES_MAX, PortRange, Ports,
    Protocol, VirtualService,
};

/// Checks a set of objects as a whole. Empty when it may be applied.
pub fn check(objects: &Objects) -> Report {
    check_beside(objects, &BTreeSet::new(), &Objects::default())
}

/// As [`check`], for objects that are to replace `running` ones: of two that exclude each other, the one that is
/// new is wrong.
pub fn check_change(running: &Objects, objects: &Objects) -> Report {
    check_beside(objects, &BTreeSet::new(), running)
}

/// As [`check`], where `broken` names objects that exist but could not be read, so that what refers to them is
/// not called wrong too.
pub(super) fn check_beside(objects: &Objects, broken: &BTreeSet<ObjectId>, running: &Objects) -> Report {
    let mut found = Vec::new();
    let mut services: Vec<(&VirtualService, &Entry)> = objects.services().collect();
    let new = |entry: &Entry| running.get(&entry.object.id()).is_none_or(|old| old.object != entry.object);
    services
        .sort_by_key(|(service, entry)| (new(entry), entry.file.clone(), entry.line(), service.name.clone()));

    one_director(objects, &mut found);
    no_interface(objects, &mut found);
    capacity(objects, &mut found);
    ports(&services, &mut found);
    address_interfaces(&services, &mut found);
    local_addresses(objects, &services, broken, &mut found);
    pool_addresses(objects, &services, &mut found);
    real_path::check(objects, &mut found);
    tunnel::check(objects, &mut found);
    check_vrrp::check(objects, broken, new, &mut found);
    sorted(found)
}

/// In the order in which a reader meets them.
pub(super) fn sorted(mut found: Vec<Diagnostic>) -> Report {
    found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    Report(found)
}

fn one_director(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let mut directors: Vec<&Entry> = objects.directors().map(|(_, entry)| entry).collect();
    directors.sort_by_key(|entry| (entry.file.clone(), entry.line()));
    for second in directors.iter().skip(1) {
        let help = format!("the first is `{}` in {}", directors[0].object.name(), directors[0].place());
        found.push(second.diagnostic("metadata.name", "a second Director", Some(help)));
    }
}

/// Without an interface a director serves VRRP alone.
fn no_interface(objects: &Objects, found: &mut Vec<Diagnostic>) {
    for (director, entry) in objects.directors() {
        if director.interfaces.is_empty() && objects.services().next().is_some() {
            let message = "has no interface; virtual services would see no packet";
            let help = "only a director with nothing but VRRP can do without".to_owned();
            found.push(entry.diagnostic("spec.interfaces", message, Some(help)));
        }
    }
}

fn capacity(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let services = objects.services().count();
    let real_servers: usize = objects.services().map(|(service, _)| service.real_servers.len()).sum();
    for (director, entry) in objects.directors() {
        for (field, what, have, room) in [
            ("services", "virtual services", services, director.capacity.services),
            ("realServers", "real servers", real_servers, director.capacity.real_servers),
        ] {
            if have > room as usize {
                let message = format!("{room} {what}, but the manifests have {have}");
                let help = "counted once per service they stand behind";
                let help = (field == "realServers").then(|| help.to_owned());
                found.push(entry.diagnostic(&format!("spec.capacity.{field}"), message, help));
            }
        }
    }
}

/// What listens on one address and protocol.
#[derive(Default)]
struct Listeners<'a> {
    any: Option<Owner<'a>>,
    single: HashMap<u16, Owner<'a>>,
    ranges: Vec<(PortRange, Owner<'a>)>,
}

type Owner<'a> = (&'a VirtualService, &'a Entry);

/// (address, protocol, port) belongs to one service. An exact port may lie in another's range, and both in
/// another's `any`: the narrower wins.
fn ports(services: &[Owner<'_>], found: &mut Vec<Diagnostic>) {
    let mut all: HashMap<(IpAddr, Protocol), Listeners<'_>> = HashMap::new();
    for (service, entry, endpoint) in services.iter().flat_map(|&(service, entry)| {
        service.all_endpoints().enumerate().map(move |(index, endpoint)| {
            let path = match service.is_single() {
                true => "spec.ports".to_owned(),
                false => format!("spec.endpoints[{index}].ports"),
            };
            (service, (entry, path), endpoint)
        })
    }) {
        let (entry, path) = entry;
        let listeners = all.entry((endpoint.address, endpoint.protocol)).or_default();
        let mut wrong = |message: String, help: Option<String>| {
            found.push(entry.diagnostic(&path, message, help));
        };
        let address = endpoint.address;
        let owner = |other: Owner<'_>| format!("VirtualService `{}`", other.0.name);
        let place = |other: Owner<'_>| Some(format!("it is defined in {}", other.1.place()));
        let ranges = match &endpoint.ports {
            Ports::List(ranges) => ranges.as_slice(),
            Ports::Any => {
                match listeners.any {
                    Some(first) => {
                        wrong(
                            format!("`any` of {address} already belongs to {}", owner(first)),
                            place(first),
                        );
                    }
                    None => listeners.any = Some((service, entry)),
                }
                continue;
            }
        };
        for &range in ranges {
            if let Some(port) = range.single() {
                match listeners.single.get(&port) {
                    Some(&first) => {
                        wrong(
                            format!("port {port} of {address} already belongs to {}", owner(first)),
                            place(first),
                        );
                    }
                    None => _ = listeners.single.insert(port, (service, entry)),
                }
                continue;
            }
            let overlapping = listeners.ranges.iter().find(|(other, _)| other.overlaps(range));
            if let Some(&(other, first)) = overlapping {
                wrong(format!("{range} of {address} overlaps {other} of {}", owner(first)), place(first));
                continue;
            }
            if listeners.ranges.len() < PORT_RANGES_MAX {
                listeners.ranges.push((range, (service, entry)));
            } else {
                wrong(
                    format!("{address} has more than {PORT_RANGES_MAX} port ranges, all services together"),
                    None,
                );
            }
        }
    }
}

/// A VIP is on one interface.
fn address_interfaces(services: &[Owner<'_>], found: &mut Vec<Diagnostic>) {
    let mut on: HashMap<IpAddr, (&str, Owner<'_>)> = HashMap::new();
    for &(service, entry) in services {
        let Some(interface) = service.address_interface.as_deref() else { continue };
        for address in service.addresses() {
            let &mut (first, (other, place)) = on.entry(address).or_insert((interface, (service, entry)));
            if first != interface {
                let message = format!("{address} is put on `{first}` by VirtualService `{}`", other.name);
                let help = Some(format!("which is defined in {}", place.place()));
                found.push(entry.diagnostic("spec.addressInterface", message, help));
            }
        }
    }
}

/// The pool of a FULLNAT service exists and has addresses that its packets can carry.
fn local_addresses(
    objects: &Objects,
    services: &[Owner<'_>],
    broken: &BTreeSet<ObjectId>,
    found: &mut Vec<Diagnostic>,
) {
    for &(service, entry) in services {
        let Some(name) = &service.local_addresses else { continue };
        if !service.uses(Forwarding::FullNat) {
            continue;
        }
        let pool = objects.pools().find(|(pool, _)| pool.name == *name);
        let id = ObjectId { kind: Kind::LocalAddressPool, name: name.clone() };
        match pool {
            None if broken.contains(&id) => {}
            None => {
                let names = objects.pools().map(|(pool, _)| pool.name.as_str());
                let help = match super::reader::nearest(name, names) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "define it in a document of its own".to_owned(),
                };
                let message = format!("there is no LocalAddressPool `{name}`");
                found.push(entry.diagnostic("spec.localAddresses", message, Some(help)));
            }
            Some((pool, place)) if service.addresses().any(|address| !pool.covers_family_of(address)) => {
                let lacking = service.addresses().find(|address| !pool.covers_family_of(*address));
                let family = if lacking.is_some_and(|address| address.is_ipv4()) { "IPv4" } else { "IPv6" };
                let message = format!("LocalAddressPool `{name}` has no {family} address");
                let help = Some(format!("it is defined in {}", place.place()));
                found.push(entry.diagnostic("spec.localAddresses", message, help));
            }
            Some(_) => {}
        }
    }
}

/// A pool's address is used for nothing else, and there are not too many of them.
fn pool_addresses(objects: &Objects, services: &[Owner<'_>], found: &mut Vec<Diagnostic>) {
    let mut pools: Vec<(&LocalAddressPool, &Entry)> = objects.pools().collect();
    pools.sort_by_key(|(pool, entry)| (entry.file.clone(), entry.line(), pool.name.clone()));

    let mut taken: HashMap<IpAddr, String> = HashMap::new();
    for (service, entry) in services {
        let vip = format!("the address of VirtualService `{}` ({})", service.name, entry.place());
        for address in service.addresses() {
            taken.entry(address).or_insert(vip.clone());
        }
        for server in &service.real_servers {
            taken.entry(server.address).or_insert_with(|| {
                format!("a real server of VirtualService `{}` ({})", service.name, entry.place())
            });
        }
    }
    let mut total = 0;
    for (pool, entry) in pools {
        for (index, net) in pool.addresses.iter().enumerate() {
            let path = format!("spec.addresses[{index}]");
            let single = LocalAddressPool { addresses: vec![*net], ..pool.clone() };
            for address in single.addresses() {
                if let Some(owner) = taken.get(&address) {
                    let what = if net.prefix_len() == net.max_prefix_len() {
                        format!("{address} is {owner}")
                    } else {
                        format!("{address} of {} is {owner}", net_text(net))
                    };
                    let help = Some("a pool's address is used for nothing else".to_owned());
                    found.push(entry.diagnostic(&path, what, help));
                    break;
                }
            }
            let owner = format!("in LocalAddressPool `{}` ({})", pool.name, entry.place());
            for address in single.addresses() {
                taken.entry(address).or_insert_with(|| owner.clone());
            }
        }
        let before = total;
        total += pool.addresses().count();
        if total > POOL_ADDRESSES_MAX && before <= POOL_ADDRESSES_MAX {
            let message = format!("all pools together have {total} addresses, above {POOL_ADDRESSES_MAX}");
            found.push(entry.diagnostic("spec.addresses", message, None));
        }
    }
}

/// What the host has, as far as manifests name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub interfaces: Vec<HostInterface>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    pub name: String,
    /// The interface's own addresses: those by which the host is known. Neither addresses that the agent put
    /// there (they carry its IFA_PROTO) nor ones the operator added for a pool belong here.
    pub addresses: Vec<IpAddr>,
    /// The networks that these addresses are in, each with the host's own address.
    pub networks: Vec<IpNet>,
    /// For a VLAN device, the name of the one below it.
    pub vlan_of: Option<String>,
}

/// Checks a set of objects against the host it is meant for.
pub fn check_against_host(objects: &Objects, host: &HostFacts) -> Report {
    let mut found = Vec::new();
    let names = || host.interfaces.iter().map(|interface| interface.name.as_str());
    let mut interface = |entry: &Entry, path: &str, name: &str| {
        if !names().any(|known| known == name) {
            let known: Vec<&str> = names().collect();
            let help = format!("this host has {}", known.join(", "));
            found.push(entry.diagnostic(path, format!("interface `{name}` does not exist"), Some(help)));
        }
    };
    for (director, entry) in objects.directors() {
        for (index, named) in director.interfaces.iter().enumerate() {
            interface(entry, &format!("spec.interfaces[{index}].name"), &named.name);
        }
    }
    for (service, entry) in objects.services() {
        if let Some(name) = &service.address_interface {
            interface(entry, "spec.addressInterface", name);
        }
        for (place, check) in service.health.places() {
            if let Some(name) = &check.interface {
                interface(entry, &format!("{place}.interface"), name);
            }
        }
    }
    for (pool, entry) in objects.pools() {
        if let Some(name) = &pool.address_interface {
            interface(entry, "spec.addressInterface", name);
        }
    }
    for (pool, entry) in objects.pools() {
        for owner in &host.interfaces {
            for own in &owner.addresses {
                let Some(index) = pool.addresses.iter().position(|net| net.contains(own)) else { continue };
                let message = format!("{own} is an address of interface `{}` itself", owner.name);
                let help =
                    Some("a pool's address is used for nothing else; take one that nobody has".to_owned());
                found.push(entry.diagnostic(&format!("spec.addresses[{index}]"), message, help));
            }
        }
    }
    check_vrrp::check_against_host(objects, host, &mut found);
    check_lease::check_against_host(objects, host, &mut found);
    real_path::check_against_host(objects, host, &mut found);
    sorted(found)
}
