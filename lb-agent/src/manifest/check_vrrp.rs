//! What can be wrong between VRRP instances, their groups and what they carry, and between them and the host.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::check::HostFacts;
use super::diagnostic::Diagnostic;
use super::objects::{Entry, Objects};
use super::reader::nearest;
use crate::model::{Kind, Name, ObjectId, Track, VirtualAddress, Vmac, VrrpInstance};

type Owner<'a> = (&'a VrrpInstance, &'a Entry);

/// The checks that need the other objects. `broken` names objects that exist but could not be read; `new` says
/// of which of two that exclude each other the complaint is.
pub fn check(
    objects: &Objects,
    broken: &BTreeSet<ObjectId>,
    new: impl Fn(&Entry) -> bool,
    found: &mut Vec<Diagnostic>,
) {
    let mut instances: Vec<Owner<'_>> = objects.vrrp_instances().collect();
    instances.sort_by_key(|(instance, entry)| {
        (new(entry), entry.file.clone(), entry.line(), instance.name.clone())
    });
    virtual_routers(&instances, found);
    virtual_addresses(&instances, found);
    services(objects, &instances, found);
    references(objects, broken, found);
    groups(objects, &new, found);
}

fn owner((instance, _): Owner<'_>) -> String {
    format!("VrrpInstance `{}`", instance.name)
}

fn place((_, entry): Owner<'_>) -> Option<String> {
    Some(format!("it is defined in {}", entry.place()))
}

/// Two virtual routers on one interface and of one family have two identifiers, and two VMACs two names.
fn virtual_routers(instances: &[Owner<'_>], found: &mut Vec<Diagnostic>) {
    let mut routers = HashMap::new();
    let mut vmacs = HashMap::new();
    for &this in instances {
        let (instance, entry) = this;
        let family = if instance.is_ipv4() { "IPv4" } else { "IPv6" };
        let key = (instance.interface.as_str(), instance.vrid, instance.is_ipv4());
        if let Some(&first) = routers.get(&key) {
            let message = format!(
                "{} on `{}` already belongs to {} ({family})",
                instance.vrid,
                instance.interface,
                owner(first)
            );
            found.push(entry.diagnostic("spec.virtualRouterId", message, place(first)));
        } else {
            routers.insert(key, this);
        }
        let Some(vmac) = instance.vmac.interface_name(instance.vrid, instance.is_ipv4()) else { continue };
        if let Some(&first) = vmacs.get(&vmac) {
            let message = format!("`{vmac}` is already the VMAC of {}", owner(first));
            let help = Some("give it a name of its own: vmac: {interface: NAME}".to_owned());
            found.push(entry.diagnostic("spec.vmac", message, help));
        } else {
            vmacs.insert(vmac, this);
        }
    }
}

/// An address follows one instance.
fn virtual_addresses(instances: &[Owner<'_>], found: &mut Vec<Diagnostic>) {
    let mut taken: HashMap<IpAddr, Owner<'_>> = HashMap::new();
    for &this in instances {
        let (instance, entry) = this;
        for (path, address) in paths(instance) {
            let address = address.address.addr();
            if link_local(address) {
                continue;
            }
            if let Some(&first) = taken.get(&address) {
                let message = format!("{address} already follows {}", owner(first));
                found.push(entry.diagnostic(&path, message, place(first)));
            } else {
                taken.insert(address, this);
            }
        }
    }
}

/// A link-local address may be on many interfaces.
fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn paths(instance: &VrrpInstance) -> impl Iterator<Item = (String, &VirtualAddress)> {
    let advertised = instance.addresses.iter().enumerate();
    let excluded = instance.excluded_addresses.iter().enumerate();
    let advertised = advertised.map(|(index, address)| (format!("spec.addresses[{index}]"), address));
    advertised.chain(excluded.map(|(index, address)| (format!("spec.excludedAddresses[{index}]"), address)))
}

/// An address that follows an instance is put on an interface by nobody else, and is in no pool.
fn services(objects: &Objects, instances: &[Owner<'_>], found: &mut Vec<Diagnostic>) {
    let follows: HashMap<IpAddr, Owner<'_>> = instances
        .iter()
        .flat_map(|&this| this.0.all_addresses().map(move |address| (address.address.addr(), this)))
        .collect();
    for (service, entry) in objects.services() {
        if service.address_interface.is_none() {
            continue;
        }
        if let Some(&instance) = follows.get(&service.address) {
            let message = format!("{} follows {}, which puts it there", service.address, owner(instance));
            let help = Some("leave addressInterface out".to_owned());
            found.push(entry.diagnostic("spec.addressInterface", message, help));
        }
    }
    for (pool, entry) in objects.pools() {
        for (index, net) in pool.addresses.iter().enumerate() {
            let Some((address, &instance)) = follows.iter().find(|(address, _)| net.contains(*address))
            else {
                continue;
            };
            let message = format!("{address} is an address of {}", owner(instance));
            let help = Some("a pool's address is used for nothing else".to_owned());
            found.push(entry.diagnostic(&format!("spec.addresses[{index}]"), message, help));
        }
    }
}

/// What is named exists.
fn references(objects: &Objects, broken: &BTreeSet<ObjectId>, found: &mut Vec<Diagnostic>) {
    let mut exists = |entry: &Entry, path: &str, kind: Kind, name: &Name| {
        let id = ObjectId { kind, name: name.clone() };
        if objects.contains(&id) || broken.contains(&id) {
            return;
        }
        let names = objects.of_kind(kind).map(|entry| entry.object.name().as_str());
        let help = match nearest(name, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "define it in a document of its own".to_owned(),
        };
        found.push(entry.diagnostic(path, format!("there is no {kind} `{name}`"), Some(help)));
    };
    for (pool, entry) in objects.pools() {
        if let Some(name) = &pool.vrrp {
            exists(entry, "spec.vrrp", Kind::VrrpInstance, name);
        }
    }
    let mut tracked = |entry: &Entry, track: &Track| {
        for (index, service) in track.services.iter().enumerate() {
            let path = format!("spec.track.services[{index}].service");
            exists(entry, &path, Kind::VirtualService, &service.service);
        }
    };
    for (instance, entry) in objects.vrrp_instances() {
        tracked(entry, &instance.track);
    }
    for (group, entry) in objects.vrrp_sync_groups() {
        tracked(entry, &group.track);
    }
    for (group, entry) in objects.vrrp_sync_groups() {
        for (index, member) in group.members.iter().enumerate() {
            exists(entry, &format!("spec.members[{index}]"), Kind::VrrpInstance, member);
        }
    }
}

/// An instance is in one group.
fn groups(objects: &Objects, new: impl Fn(&Entry) -> bool, found: &mut Vec<Diagnostic>) {
    let mut groups: Vec<_> = objects.vrrp_sync_groups().collect();
    groups.sort_by_key(|(group, entry)| (new(entry), entry.file.clone(), entry.line(), group.name.clone()));
    let mut of: HashMap<&Name, (&Name, &Entry)> = HashMap::new();
    for (group, entry) in groups {
        for (index, member) in group.members.iter().enumerate() {
            if let Some((first, place)) = of.get(member) {
                let message = format!("`{member}` is already in VrrpSyncGroup `{first}`");
                let help = Some(format!("which is defined in {}", place.place()));
                found.push(entry.diagnostic(&format!("spec.members[{index}]"), message, help));
            } else {
                of.insert(member, (&group.name, entry));
            }
        }
    }
}

/// The checks that need the host.
pub fn check_against_host(objects: &Objects, host: &HostFacts, found: &mut Vec<Diagnostic>) {
    let find = |name: &str| host.interfaces.iter().find(|interface| interface.name == name);
    let known = || host.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", ");
    for (instance, entry) in objects.vrrp_instances() {
        // An interface that the instance makes itself is not missed.
        let vmac = instance.vmac.interface_name(instance.vrid, instance.is_ipv4());
        let mut interface = |path: &str, name: &str| {
            if find(name).is_none() && vmac.as_deref() != Some(name) {
                let help = Some(format!("this host has {}", known()));
                found.push(entry.diagnostic(path, format!("interface `{name}` does not exist"), help));
            }
        };
        interface("spec.interface", &instance.interface);
        for (path, address) in paths(instance) {
            if let Some(name) = &address.interface {
                interface(&format!("{path}.interface"), name);
            }
        }
        for (index, tracked) in instance.track.interfaces.iter().enumerate() {
            interface(&format!("spec.track.interfaces[{index}]"), &tracked.name);
        }
        for (index, route) in instance.routes.iter().enumerate() {
            if let Some(name) = &route.interface {
                interface(&format!("spec.routes[{index}].interface"), name);
            }
        }
        addresses_against_host(instance, entry, host, found);
    }
    for (group, entry) in objects.vrrp_sync_groups() {
        for (index, tracked) in group.track.interfaces.iter().enumerate() {
            if find(&tracked.name).is_none() {
                let message = format!("interface `{}` does not exist", tracked.name);
                let help = Some(format!("this host has {}", known()));
                found.push(entry.diagnostic(&format!("spec.track.interfaces[{index}]"), message, help));
            }
        }
    }
}

/// A virtual address lies in a network of its interface, an address to send from is there, a peer is elsewhere.
/// An interface without addresses of the family is not judged: they may come later.
fn addresses_against_host(
    instance: &VrrpInstance,
    entry: &Entry,
    host: &HostFacts,
    found: &mut Vec<Diagnostic>,
) {
    let networks = |name: &str, ipv4: bool| -> Vec<String> {
        let interface = host.interfaces.iter().find(|interface| interface.name == name);
        let networks = interface.into_iter().flat_map(|interface| &interface.networks);
        networks.filter(|net| net.addr().is_ipv4() == ipv4).map(|net| net.trunc().to_string()).collect()
    };
    let contains = |name: &str, address: IpAddr| {
        let interface = host.interfaces.iter().find(|interface| interface.name == name);
        interface.is_some_and(|interface| interface.networks.iter().any(|net| net.contains(&address)))
    };
    for (index, virtual_address) in instance.addresses.iter().enumerate() {
        let address = virtual_address.address.addr();
        let interface = virtual_address.interface.as_deref().unwrap_or(&instance.interface);
        let there = networks(interface, address.is_ipv4());
        if there.is_empty() || contains(interface, address) || link_local(address) {
            continue;
        }
        let message = format!("{address} lies in no network of interface `{interface}`");
        let help = format!(
            "`{interface}` has {}; an address that need not be on the segment goes into excludedAddresses",
            there.join(", ")
        );
        found.push(entry.diagnostic(&format!("spec.addresses[{index}]"), message, Some(help)));
    }
    let own = |address: IpAddr| {
        host.interfaces.iter().find(|interface| interface.networks.iter().any(|net| net.addr() == address))
    };
    if let Some(source) = instance.source_address {
        let there = networks(&instance.interface, source.is_ipv4());
        if !there.is_empty() && own(source).is_none_or(|interface| interface.name != instance.interface) {
            let message = format!("{source} is no address of interface `{}`", instance.interface);
            found.push(entry.diagnostic("spec.sourceAddress", message, None));
        }
    }
    for (index, &peer) in instance.unicast.iter().flat_map(|unicast| &unicast.peers).enumerate() {
        if let Some(interface) = own(peer) {
            let message = format!("{peer} is an address of this host, on interface `{}`", interface.name);
            let help = Some("name the other directors' addresses".to_owned());
            found.push(entry.diagnostic(&format!("spec.unicastPeers[{index}]"), message, help));
        }
    }
    if matches!(&instance.vmac, Vmac::On { interface: Some(name) } if *name == instance.interface) {
        let message = format!("`{}` is the interface below it", instance.interface);
        found.push(entry.diagnostic("spec.vmac.interface", message, None));
    }
}
