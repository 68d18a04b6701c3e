//! What of a service's scheduling reaches the layout.

use super::tests::{director, ip, objects, resolved, service, way, web};
use super::*;
use crate::plan::{NextPacket, ServiceLayout, Step, diff};

const THREE: [&str; 3] = ["{address: 10.0.0.1, weight: 5}", "{address: 10.0.0.2}", "{address: 10.0.0.3}"];

fn running(more: &str, servers: &[&str]) -> Director {
    let mut director = director(&service(more, servers));
    for last in 1..=5 {
        let address = format!("10.0.0.{last}");
        resolved(&mut director, &address, way(&address));
    }
    director
}

/// (last number of the address, ordinal, weight) of each place of the list of servers; a hole is (0, 0, 0).
fn list(layout: &ServiceLayout) -> Vec<(u8, u16, u32)> {
    let place = |binding: &Option<crate::plan::Binding>| {
        let Some(binding) = binding else { return (0, 0, 0) };
        let IpAddr::V4(address) = binding.address else { return (0, 0, 0) };
        let standing = layout.destinations[binding].standing;
        (address.octets()[3], standing.ordinal, standing.weight)
    };
    layout.servers.iter().map(place).collect()
}

#[test]
fn only_services_that_may_walk_have_a_list_of_servers() {
    for (more, walks) in [
        ("scheduler: rr", false),
        ("scheduler: wrr", false),
        ("scheduler: mh", false),
        ("scheduler: dh", false),
        ("scheduler: wlc", true),
        ("scheduler: fo", true),
        ("scheduler: mh, schedulerFlags: [fallback]", true),
        ("scheduler: rr, persistence: {}", true),
    ] {
        let layout = web(&mut running(&format!("forwarding: dr, {more}"), &THREE));
        assert_eq!(!layout.servers.is_empty(), walks, "{more}");
        assert_eq!(layout.slots.slots.is_empty(), more.contains("wlc") || more.contains("fo"), "{more}");
    }
}

#[test]
fn a_weight_of_a_counting_scheduler_is_one_destination_and_nothing_else() {
    let mut director = running("forwarding: dr, scheduler: wlc", &THREE);
    let before = director.layout().clone();
    assert_eq!(list(&web(&mut director)), [(1, 0, 5), (2, 1, 1), (3, 2, 1)]);
    let changed = [THREE[0], "{address: 10.0.0.2, weight: 9}", THREE[2]];
    director.handle(Event::Objects(objects(&service("forwarding: dr, scheduler: wlc", &changed))));
    let steps = diff(&before, director.layout());
    assert!(matches!(&steps[..], [Step::SetDestination { .. }]), "{steps:?}");
    assert_eq!(list(&web(&mut director)), [(1, 0, 5), (2, 1, 9), (3, 2, 1)]);
}

#[test]
fn servers_keep_their_places_when_others_come_and_go() {
    let spec = "forwarding: dr, scheduler: wlc";
    let mut director = running(spec, &THREE);
    director.layout();
    let mut change = |servers: &[&str]| {
        director.handle(Event::Objects(objects(&service(spec, servers))));
        list(&web(&mut director)).iter().map(|(last, ordinal, _)| (*last, *ordinal)).collect::<Vec<_>>()
    };
    assert_eq!(change(&[THREE[1], THREE[2]]), [(0, 0), (2, 1), (3, 2)]);
    let four = "{address: 10.0.0.4}";
    assert_eq!(change(&[THREE[1], THREE[2], four]), [(4, 0), (2, 1), (3, 2)]);
    assert_eq!(change(&[four, "{address: 10.0.0.5}", THREE[1], THREE[2]]), [(4, 0), (2, 1), (3, 2), (5, 3)]);
    assert_eq!(change(&[four, THREE[1]]), [(4, 0), (2, 1)]);
}

#[test]
fn a_server_that_leaves_has_no_weight_and_at_its_deadline_its_flows_are_reset() {
    let spec = "forwarding: dr, scheduler: wlc";
    let mut director = running(spec, &THREE);
    let text = service(spec, &THREE);
    let (manifest, _) = (objects(&text), ());
    let web_service = manifest.services().next().unwrap().0;
    let mut drains = Drains::default();
    drains.begin(web_service, &web_service.real_servers[0], 1000, Some(1600));
    let standing = |director: &mut Director| {
        let layout = web(director);
        let (_, first) = layout.destinations.iter().next().unwrap();
        first.standing
    };
    assert!(director.set_leaving(drains.leaving(1000)));
    let drained = standing(&mut director);
    assert!(drained.weight == 0 && drained.draining && drained.next_packet == NextPacket::GoesOn);
    assert!(!director.set_leaving(drains.leaving(1599)), "nothing is new");
    assert!(director.set_leaving(drains.leaving(1600)));
    assert_eq!(standing(&mut director).next_packet, NextPacket::ResetBothEnds);
    drains.end(&web_service.name, web_service.key_of(&web_service.real_servers[0]));
    director.set_leaving(drains.leaving(1601));
    let back = standing(&mut director);
    assert!(back.weight == 5 && !back.draining && back.next_packet == NextPacket::GoesOn);
}

#[test]
fn a_server_taken_from_the_manifest_stays_in_the_tables_while_it_drains() {
    let spec = "forwarding: dr, scheduler: rr, drain: {deadline: 10m}";
    let mut director = running(spec, &THREE);
    let (before, after) = (objects(&service(spec, &THREE)), objects(&service(spec, &THREE[1..])));
    let mut drains = Drains::default();
    drains.follow(&before, &after, 1000);
    director.set_leaving(drains.leaving(1000));
    director.handle(Event::Objects(after));
    let layout = web(&mut director);
    assert_eq!((layout.destinations.len(), layout.slots.named().len()), (3, 2));
    let gone = layout.destinations.iter().find(|(binding, _)| binding.address == ip("10.0.0.1")).unwrap().1;
    assert!(gone.standing.draining && gone.hop.is_some(), "{gone:?}");
    assert!(director.watched().contains(&ip("10.0.0.1")), "its MAC may change while it drains");
    drains.forget_idle(|_, _, _| true);
    director.set_leaving(drains.leaving(1001));
    assert_eq!(web(&mut director).destinations.len(), 2);
}

#[test]
fn endpoints_are_table_services_with_one_leader() {
    let text = "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  endpoints: [{address: 192.0.2.1, \
                ports: [80], protocol: tcp}, {address: 192.0.2.1, ports: [80], protocol: udp}]\n  forwarding: dr\n  \
                scheduler: wlc\n  persistence: {}\n  realServers: [{address: 10.0.0.1}, {address: 10.0.0.2}]\n";
    let mut director = director(text);
    for address in ["10.0.0.1", "10.0.0.2"] {
        resolved(&mut director, address, way(address));
    }
    let layout = director.layout().clone();
    let names: Vec<&str> = layout.services.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["web", "web/udp-192.0.2.1"]);
    let leaders: Vec<Option<&str>> =
        layout.services.values().map(|layout| layout.service.rules.leader.as_deref()).collect();
    assert_eq!(leaders, [None, Some("web")]);
    let lists: Vec<_> = layout.services.values().map(|layout| list(layout)).collect();
    assert_eq!(lists[0], lists[1], "a server has one place at all endpoints");
    // The leader is set before those that name it.
    let set: Vec<String> = diff(&Layout::default(), &layout)
        .into_iter()
        .filter_map(|step| match step {
            Step::SetService { name, .. } => Some(name.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(set, names);
    // An endpoint that goes takes its table service along.
    let single = service("forwarding: dr, scheduler: wlc", &["{address: 10.0.0.1}"]);
    director.handle(Event::Objects(objects(&single)));
    let left: Vec<String> = director.layout().services.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["web"]);
}

#[test]
fn thresholds_are_counted_and_checked_and_limits_reach_the_tables() {
    let servers = [
        "{address: 10.0.0.1, connections: {max: 10, resume: 4}, packetsPerSecond: 7}",
        "{address: 10.0.0.2}",
    ];
    let spec = "forwarding: dr, scheduler: rr, limits: {newConnectionsPerSecond: 9}, whenNoServer: drop";
    let layout = web(&mut running(spec, &servers));
    let rules = &layout.service.rules;
    assert!(rules.counted && rules.checked && rules.new_per_second == 9);
    let standing = layout.destinations.values().next().unwrap().standing;
    assert_eq!((standing.upper, standing.lower, standing.packets_per_second), (10, 4, 7));
    let plain = web(&mut running("forwarding: dr, scheduler: rr", &["{address: 10.0.0.1}"]));
    assert!(!plain.service.rules.counted && !plain.service.rules.checked);
}
