//! The steps from one layout to another. What is new is made in the order VRRP instances, pools, next hops, routes to clients,
//! services with their destinations before their slots, addresses, ports, and the addresses on interfaces last;
//! what goes leaves in the opposite order, after all that is new.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Layout, Role, ServiceLayout, Slots, Step};
use crate::model::health::Flows;
use crate::model::{Name, PortRange, Ports};

/// The steps that make `from` into `to`. None when they are equal.
pub fn diff(from: &Layout, to: &Layout) -> Vec<Step> {
    let mut steps = Vec::new();
    // Before anything is served: what follows an instance is not served by a backup.
    for (name, followers) in &to.vrrp {
        if from.vrrp.get(name) != Some(followers) {
            steps.push(Step::SetVrrp { name: name.clone(), followers: followers.clone() });
        }
    }
    let withdrawn = make_room(from, to, &mut steps);
    for (name, pool) in &to.pools {
        if from.pools.get(name) != Some(pool) {
            steps.push(Step::SetPool { name: name.clone(), pool: pool.clone() });
        }
    }
    // Before the next hops: a packet that was sent to a director that sends it back must be known there.
    if from.peers != to.peers {
        steps.push(Step::SetPeers { peers: to.peers.clone() });
    }
    for (key, hop) in &to.hops {
        if from.hops.get(key) != Some(hop) {
            steps.push(Step::SetHop { key: *key, hop: *hop });
        }
    }
    if let Some(routes) = &to.client_routes
        && from.client_routes.as_ref() != Some(routes)
    {
        steps.push(Step::SetClientRoutes { routes: routes.clone() });
    }
    let mut late = Vec::new();
    for (name, service) in &to.services {
        let before = from.services.get(name).filter(|before| before.key() == service.key());
        if before != Some(service) {
            let taken_over = |port: &PortRange| {
                // Those before this one in the order are set by now.
                to.services.range(..name.clone()).any(|(_, other)| {
                    other.key() == service.key()
                        && matches!(&other.ports, Ports::List(ports) if ports.contains(port))
                })
            };
            let before = before.map(|before| &**before);
            set_service(name, before, service, taken_over, &mut steps, &mut late);
        }
    }
    steps.append(&mut late);
    for (interface, address) in to.placed.difference(&from.placed) {
        steps.push(Step::Place { interface: interface.clone(), address: *address });
    }
    for (interface, address) in from.placed.difference(&to.placed) {
        if !withdrawn.contains(address) {
            steps.push(Step::Withdraw { interface: interface.clone(), address: *address });
        }
    }
    for (name, service) in &from.services {
        if !to.services.contains_key(name) {
            remove_service(name, service, &mut steps);
        }
    }
    for key in from.hops.keys().filter(|key| !to.hops.contains_key(key)) {
        steps.push(Step::RemoveHop { key: *key });
    }
    for name in from.pools.keys().filter(|name| !to.pools.contains_key(*name)) {
        steps.push(Step::RemovePool { name: name.clone() });
    }
    for name in from.vrrp.keys().filter(|name| !to.vrrp.contains_key(*name)) {
        steps.push(Step::RemoveVrrp { name: name.clone() });
    }
    steps
}

/// What must go first: a service that becomes another under its name, and port ranges that would overlap those
/// another service gets. A single port, or the very same range, changes hands in one write and need not.
/// Returns the addresses that were taken from their interfaces for it.
fn make_room(from: &Layout, to: &Layout, steps: &mut Vec<Step>) -> BTreeSet<IpAddr> {
    let mut withdrawn = BTreeSet::new();
    for (name, before) in &from.services {
        let after = to.services.get(name);
        if let Some(after) = after
            && before.key() != after.key()
        {
            let vip = before.service.vip;
            if withdrawn.insert(vip) {
                for (interface, address) in from.placed.difference(&to.placed) {
                    if *address == vip {
                        steps.push(Step::Withdraw { interface: interface.clone(), address: vip });
                    }
                }
            }
            remove_service(name, before, steps);
            continue;
        }
        let kept = kept_ports(&before.ports, after.map(|after| &after.ports));
        let in_the_way = |range: &PortRange| {
            to.services.iter().filter(|(other, service)| *other != name && before.key() == service.key()).any(
                |(_, service)| match &service.ports {
                    Ports::Any => false,
                    Ports::List(ranges) => {
                        ranges.iter().any(|r| r.single().is_none() && r.overlaps(*range) && r != range)
                    }
                },
            )
        };
        if let Ports::List(ranges) = &before.ports {
            let stays =
                |range: &&PortRange| range.single().is_some() || kept.contains(range) || !in_the_way(range);
            let left: Vec<PortRange> = ranges.iter().filter(stays).copied().collect();
            if left.len() < ranges.len() {
                steps.push(Step::SetPorts { service: name.clone(), ports: Ports::List(left) });
            }
        }
    }
    withdrawn
}

fn kept_ports(before: &Ports, after: Option<&Ports>) -> Vec<PortRange> {
    match (before, after) {
        (Ports::List(before), Some(Ports::List(after))) => {
            before.iter().filter(|range| after.contains(range)).copied().collect()
        }
        _ => Vec::new(),
    }
}

/// `late` are steps to be done when all services are set; `taken_over` says of a port that another service has it
/// already.
fn set_service(
    name: &Name,
    before: Option<&ServiceLayout>,
    after: &ServiceLayout,
    taken_over: impl Fn(&PortRange) -> bool,
    steps: &mut Vec<Step>,
    late: &mut Vec<Step>,
) {
    if before.is_none_or(|before| before.service != after.service) {
        let (name, service) = (name.clone(), Box::new(after.service.clone()));
        let ports = after.ports.clone();
        steps.push(Step::SetService { name, service, ports });
    }
    // A server whose flows end gets no more of them first.
    let mut closed = Vec::new();
    for (binding, destination) in &after.destinations {
        let old = before.and_then(|before| before.destinations.get(binding));
        if old != Some(destination) {
            let (binding, destination) = (*binding, *destination);
            // Nor may a slot name one whose next hop was forgotten meanwhile.
            let closes = old.is_some_and(|old| {
                (old.flows == Flows::Stay && destination.flows != Flows::Stay)
                    || (old.hop.is_some() && destination.hop.is_none())
            });
            let step = Step::SetDestination { service: name.clone(), binding, destination };
            if closes { closed.push(step) } else { steps.push(step) }
        }
    }
    // Replies must be known as such before the first packet goes to the server that sends them.
    bind(name, before, after, Role::NatSource, steps);
    bind(name, before, after, Role::Probed, steps);
    bind(name, before, after, Role::Peered, steps);
    if before.map_or(&Vec::new(), |before| &before.servers) != &*after.servers {
        steps.push(Step::SetServers { service: name.clone(), servers: after.servers.clone() });
    }
    if before.map_or(&Vec::new(), |before| &before.server_ids) != &after.server_ids {
        steps.push(Step::SetServerIds { service: name.clone(), ids: after.server_ids.clone() });
    }
    if before.is_none_or(|before| before.slots != after.slots) {
        steps.push(Step::SetSlots { service: name.clone(), slots: after.slots.clone() });
    }
    steps.append(&mut closed);
    bind(name, before, after, Role::Vip, steps);
    if before.is_none_or(|before| before.ports != after.ports) {
        set_ports(name, before.map(|before| &before.ports), &after.ports, taken_over, steps, late);
    }
    let Some(before) = before else { return };
    for binding in before.destinations.keys().filter(|binding| !after.destinations.contains_key(binding)) {
        steps.push(Step::RemoveDestination { service: name.clone(), binding: *binding });
    }
    for (role, address) in before.roles.difference(&after.roles) {
        steps.push(Step::UnbindAddress { service: name.clone(), role: *role, address: *address });
    }
}

/// A single port that the service gives up stays until all services are set: another may take it over, in one
/// write.
fn set_ports(
    name: &Name,
    before: Option<&Ports>,
    after: &Ports,
    taken_over: impl Fn(&PortRange) -> bool,
    steps: &mut Vec<Step>,
    late: &mut Vec<Step>,
) {
    let set = |ports: Ports| Step::SetPorts { service: name.clone(), ports };
    if let (Some(Ports::List(before)), Ports::List(after)) = (before, after) {
        let lost = before.iter().filter(|range| range.single().is_some());
        let lost = lost.filter(|range| !after.contains(range) && !taken_over(range));
        let mut both: Vec<PortRange> = after.iter().chain(lost).copied().collect();
        if both.len() > after.len() {
            both.sort();
            if both.iter().any(|range| !before.contains(range)) || before.len() > both.len() {
                steps.push(set(Ports::List(both)));
            }
            late.push(set(Ports::List(after.clone())));
            return;
        }
    }
    steps.push(set(after.clone()));
}

fn bind(
    name: &Name,
    before: Option<&ServiceLayout>,
    after: &ServiceLayout,
    role: Role,
    steps: &mut Vec<Step>,
) {
    for (_, address) in after.roles.iter().filter(|(other, _)| *other == role) {
        if !before.is_some_and(|before| before.roles.contains(&(role, *address))) {
            steps.push(Step::BindAddress { service: name.clone(), role, address: *address });
        }
    }
}

/// New flows end first, then what they would lean on goes.
fn remove_service(name: &Name, service: &ServiceLayout, steps: &mut Vec<Step>) {
    let none = Ports::List(Vec::new());
    if service.ports != none {
        steps.push(Step::SetPorts { service: name.clone(), ports: none });
    }
    let unbind = |role: Role, steps: &mut Vec<Step>| {
        for (_, address) in service.roles.iter().filter(|(other, _)| *other == role) {
            steps.push(Step::UnbindAddress { service: name.clone(), role, address: *address });
        }
    };
    unbind(Role::Vip, steps);
    if !service.slots.slots.is_empty() {
        steps.push(Step::SetSlots { service: name.clone(), slots: Slots::default() });
    }
    unbind(Role::NatSource, steps);
    unbind(Role::Probed, steps);
    unbind(Role::Peered, steps);
    steps.push(Step::RemoveService { name: name.clone() });
}
