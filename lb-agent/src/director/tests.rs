//! Objects and events in, layouts out.

use super::*;
use crate::manifest::{Objects, load_text, parse};
use crate::model::{Kind, Scheduler};
use crate::plan::{Binding, Role, ServiceLayout};

const ETH0: u32 = 2;

pub fn objects(text: &str) -> Objects {
    load_text("test.yaml", text).unwrap_or_else(|report| panic!("{report}"))
}

pub fn service(more: &str, servers: &[&str]) -> String {
    format!(
        "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec: {{address: 192.0.2.1, ports: [80], \
         protocol: tcp, {more}, realServers: [{}]}}\n",
        servers.join(", ")
    )
}

pub fn director(text: &str) -> Director {
    let mut director = Director::default();
    director.handle(Event::Outputs([(ETH0, "eth0".to_owned())].into()));
    director.handle(Event::Objects(objects(text)));
    director
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn way(neighbour: &str) -> NextHop {
    NextHop {
        ifindex: ETH0,
        destination_mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 0xd],
        vlans: [0, 0],
        mtu: 1500,
        source: Some(ip("10.0.0.254")),
        neighbour: ip(neighbour),
    }
}

pub fn resolved(director: &mut Director, address: &str, way: NextHop) {
    director.handle(Event::Resolution { address: ip(address), resolution: Resolution::Resolved(way) });
}

pub fn web(director: &mut Director) -> ServiceLayout {
    let layout = director.layout();
    ServiceLayout::clone(layout.services.values().next().expect("a service"))
}

fn in_slots(layout: &ServiceLayout) -> Vec<String> {
    layout.slots.named().iter().map(|binding| binding.address.to_string()).collect()
}

fn only(layout: &ServiceLayout) -> (Binding, crate::plan::Destination) {
    layout.destinations.iter().map(|(binding, destination)| (*binding, *destination)).next().unwrap()
}

fn standing(director: &Director, address: &str) -> Standing {
    director.standing_of(ip(address), Forwarding::Dr)
}

const TWO: [&str; 2] = ["{address: 10.0.0.1}", "{address: 10.0.0.2}"];

#[test]
fn a_real_server_joins_when_its_next_hop_is_known_and_stays_when_the_neighbour_falls_silent() {
    let mut director = director(&service("forwarding: dr, scheduler: rr", &TWO));
    assert_eq!(in_slots(&web(&mut director)), [""; 0]);
    let resolving = |reason: &str| Standing::Resolving { reason: reason.into() };
    assert_eq!(standing(&director, "10.0.0.1"), resolving("resolving next hop"));

    let failed = |reason: &str| Resolution::Failed { reason: reason.into() };
    director.handle(Event::Resolution { address: ip("10.0.0.2"), resolution: failed("no ARP answer") });
    assert_eq!(standing(&director, "10.0.0.2"), resolving("resolving next hop: no ARP answer"));

    resolved(&mut director, "10.0.0.1", way("10.0.0.1"));
    assert_eq!(in_slots(&web(&mut director)), ["10.0.0.1"]);
    assert_eq!(standing(&director, "10.0.0.1"), Standing::In { reason: String::new() });

    for resolution in [Resolution::Pending, failed("no ARP answer")] {
        director.handle(Event::Resolution { address: ip("10.0.0.1"), resolution });
        assert_eq!(in_slots(&web(&mut director)), ["10.0.0.1"]);
    }
    assert_eq!(standing(&director, "10.0.0.1"), Standing::In { reason: "no ARP answer".into() });
}

#[test]
fn a_restart_keeps_the_servers_that_the_tables_know_until_something_newer_is_known() {
    let mut director = Director::default();
    director.recover([(ip("10.0.0.1"), way("10.0.0.1"))], []);
    director.handle(Event::Outputs([(ETH0, "eth0".to_owned())].into()));
    director.handle(Event::Objects(objects(&service("forwarding: nat, scheduler: rr", &TWO))));
    director.handle(Event::Resolution { address: ip("10.0.0.1"), resolution: Resolution::Pending });
    assert_eq!(in_slots(&web(&mut director)), ["10.0.0.1"]);
    resolved(&mut director, "10.0.0.1", way("10.0.0.253"));
    let (_, destination) = only(&web(&mut director));
    assert_eq!(destination.hop.unwrap().neighbour, ip("10.0.0.253"));
}

#[test]
fn weight_0_means_no_slot_and_a_destination_all_the_same() {
    let mut director =
        director(&service("forwarding: dr, scheduler: wrr", &["{address: 10.0.0.1, weight: 0}", TWO[1]]));
    resolved(&mut director, "10.0.0.1", way("10.0.0.1"));
    resolved(&mut director, "10.0.0.2", way("10.0.0.2"));
    let layout = web(&mut director);
    assert_eq!(in_slots(&layout), ["10.0.0.2"]);
    assert_eq!(layout.destinations.len(), 2);
}

#[test]
fn a_server_behind_a_router_is_out_under_dr_and_in_under_tun() {
    for (forwarding, slots) in [("dr", &[""; 0][..]), ("tun", &["10.0.0.1"])] {
        let mut director = director(&service(&format!("forwarding: {forwarding}, scheduler: rr"), &TWO));
        resolved(&mut director, "10.0.0.1", way("10.0.0.253"));
        assert_eq!(in_slots(&web(&mut director)), slots, "{forwarding}");
        let out = director.standing_of(ip("10.0.0.1"), Forwarding::Dr);
        assert!(matches!(out, Standing::Out { reason } if reason.contains("behind 10.0.0.253")));
        let tun = director.standing_of(ip("10.0.0.1"), Forwarding::Tun);
        assert_eq!(tun, Standing::In { reason: String::new() });
    }
}

#[test]
fn a_server_behind_an_interface_without_the_program_is_out() {
    let mut director = director(&service("forwarding: dr, scheduler: rr", &TWO));
    resolved(&mut director, "10.0.0.1", NextHop { ifindex: 9, ..way("10.0.0.1") });
    assert_eq!(in_slots(&web(&mut director)), [""; 0]);
    assert!(
        matches!(standing(&director, "10.0.0.1"), Standing::Out { reason } if reason.contains("interface 9"))
    );
}

#[test]
fn mtu_and_mss_are_what_is_left_after_encapsulation() {
    let v6 = ["{address: \"fd00::1\"}"];
    for (spec, servers, way_mtu, mtu, mss) in [
        ("forwarding: tun, scheduler: rr", &TWO[..1], 1500, 1480, 1440),
        ("forwarding: tun, scheduler: rr", &v6[..], 1500, 1460, 1420),
        ("forwarding: tun, scheduler: rr, mssClamp: 1200", &TWO[..1], 1500, 1480, 1200),
        ("forwarding: dr, scheduler: rr", &TWO[..1], 1500, 1500, 0),
        ("forwarding: dr, scheduler: rr, mssClamp: true", &TWO[..1], 9000, 9000, 8960),
        // Loopback and tunnels have more than an IP packet can hold.
        ("forwarding: nat, scheduler: rr", &TWO[..1], 1 << 20, 65_535, 0),
    ] {
        let mut director = director(&service(spec, servers));
        let address = director.watched().first().unwrap().to_string();
        resolved(&mut director, &address, NextHop { mtu: way_mtu, ..way(&address) });
        let layout = web(&mut director);
        assert_eq!((only(&layout).1.mtu, layout.service.mss), (mtu, mss), "{spec} {way_mtu}");
    }
}

#[test]
fn a_port_is_translated_only_where_it_differs() {
    for (servers, port, vip_port) in [
        (["{address: 10.0.0.1, port: 8080}"], 8080, 80),
        (["{address: 10.0.0.1, port: 80}"], 0, 0),
        (["{address: 10.0.0.1}"], 0, 0),
    ] {
        let layout = web(&mut director(&service("forwarding: nat, scheduler: rr", &servers)));
        let (binding, destination) = only(&layout);
        assert_eq!((binding.port, destination.vip_port), (port, vip_port), "{servers:?}");
    }
}

#[test]
fn replies_are_looked_for_only_from_servers_reached_by_nat() {
    let servers = ["{address: 10.0.0.1}", "{address: 10.0.0.2, forwarding: dr}"];
    let layout = web(&mut director(&service("forwarding: nat, scheduler: rr", &servers)));
    assert_eq!(
        layout.roles.into_iter().collect::<Vec<_>>(),
        [(Role::Vip, ip("192.0.2.1")), (Role::NatSource, ip("10.0.0.1"))]
    );
}

#[test]
fn a_new_mac_changes_the_next_hop_and_no_service() {
    let mut director = director(&service("forwarding: dr, scheduler: rr", &TWO));
    resolved(&mut director, "10.0.0.1", way("10.0.0.253"));
    resolved(&mut director, "10.0.0.2", way("10.0.0.253"));
    let before = director.layout().clone();
    for address in ["10.0.0.1", "10.0.0.2"] {
        resolved(
            &mut director,
            address,
            NextHop { destination_mac: [2, 0, 0, 0, 0, 9], ..way("10.0.0.253") },
        );
    }
    let steps = crate::plan::diff(&before, director.layout());
    assert_eq!(steps.len(), 1, "{steps:?}");
    assert!(steps[0].to_string().ends_with("02:00:00:00:00:09"), "{}", steps[0]);
}

#[test]
fn routes_to_clients_are_kept_for_services_whose_replies_pass_here() {
    let routes = vec![
        ClientRoute { prefix: "10.1.0.0/24".parse().unwrap(), via: ClientHop::OnLink { ifindex: ETH0 } },
        ClientRoute {
            prefix: "0.0.0.0/0".parse().unwrap(),
            via: ClientHop::Gateway { address: ip("10.0.0.253"), ifindex: ETH0 },
        },
        ClientRoute { prefix: "10.2.0.0/24".parse().unwrap(), via: ClientHop::Unreachable },
    ];
    let prefixes = |director: &mut Director| {
        let routes = director.layout().client_routes.clone();
        routes.map(|routes| routes.keys().map(ToString::to_string).collect::<Vec<_>>())
    };
    let mut dr = director(&service("forwarding: dr, scheduler: rr", &TWO));
    dr.handle(Event::ClientRoutes(routes.clone()));
    assert_eq!(prefixes(&mut dr), Some(vec![]));

    let mut nat = director(&service("forwarding: nat, scheduler: rr", &TWO));
    assert_eq!(prefixes(&mut nat), None, "nothing is known, so what is in the tables stays");
    nat.handle(Event::ClientRoutes(routes));
    assert_eq!(prefixes(&mut nat), Some(vec!["10.1.0.0/24".into()]));
    let resolution = Resolution::Resolved(way("10.0.0.253"));
    nat.handle(Event::Gateway { address: ip("10.0.0.253"), ifindex: ETH0, resolution });
    assert_eq!(prefixes(&mut nat), Some(vec!["0.0.0.0/0".into(), "10.1.0.0/24".into()]));
    assert_eq!(nat.layout().hops.keys().filter(|key| key.for_clients).count(), 1);
}

#[test]
fn a_maglev_table_keeps_its_size_while_a_server_is_not_known_yet() {
    let servers: Vec<String> = (1..=60).map(|n| format!("{{address: 10.0.0.{n}}}")).collect();
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let mut director = director(&service("forwarding: dr, scheduler: mh", &servers));
    for n in 1..60 {
        resolved(&mut director, &format!("10.0.0.{n}"), way(&format!("10.0.0.{n}")));
    }
    let before = web(&mut director).slots.slots.len();
    resolved(&mut director, "10.0.0.60", way("10.0.0.60"));
    assert_eq!(web(&mut director).slots.slots.len(), before);
    assert!(Scheduler::Mh.hashes());
}

fn id(name: &str) -> ObjectId {
    ObjectId { kind: Kind::VirtualService, name: Name::new(name).unwrap() }
}

fn named(name: &str, vip: &str) -> String {
    service("forwarding: dr, scheduler: rr", &TWO)
        .replace("name: web", &format!("name: {name}"))
        .replace("192.0.2.1", vip)
}

#[test]
fn an_object_of_a_file_is_not_the_apis_to_change() {
    let desired = Desired { files: objects(&named("web", "192.0.2.1")), api: Objects::default() };
    let refused = Refused::Owned { object: id("web"), file: "test.yaml".into() };
    assert_eq!(desired.apply(objects(&named("web", "192.0.2.9")), false).unwrap_err(), refused);
    assert_eq!(desired.delete(&[id("web")]).unwrap_err(), refused);
    assert_eq!(desired.delete(&[id("other")]).unwrap_err(), Refused::Missing(id("other")));
}

#[test]
fn prune_takes_the_apis_objects_and_leaves_the_files() {
    let desired = Desired { files: objects(&named("web", "192.0.2.1")), api: Objects::default() };
    let desired = desired.apply(objects(&named("a", "192.0.2.2")), false).unwrap();
    let desired = desired.apply(objects(&named("b", "192.0.2.3")), false).unwrap();
    assert_eq!(desired.joined().len(), 3);
    let pruned = desired.apply(objects(&named("b", "192.0.2.3")), true).unwrap().joined();
    assert!(pruned.contains(&id("web")) && pruned.contains(&id("b")) && !pruned.contains(&id("a")));
}

#[test]
fn what_no_longer_fits_beside_the_files_is_left_out_and_the_rest_stays() {
    let mut stored = String::new();
    for n in 1..=9 {
        stored += &format!("---\n{}", named(&format!("s{n}"), &format!("192.0.2.{n}")));
    }
    let stored = parse(&[crate::manifest::Source { file: "objects.yaml".into(), text: stored }]).objects;
    // Its address and port are those of s4, and s7 is now in the file.
    let files = objects(&format!("{}---\n{}", named("web", "192.0.2.4"), named("s7", "192.0.2.70")));
    let (desired, left) = Desired::restore(files, stored);
    let left: Vec<String> = left.iter().map(|(entry, _)| entry.object.name().to_string()).collect();
    assert_eq!(left, ["s4", "s7"]);
    assert_eq!(desired.api.len(), 7);
    assert!(crate::manifest::check(&desired.joined()).0.is_empty());
}

#[test]
fn a_files_object_takes_the_place_of_the_apis() {
    let desired = Desired { files: Objects::default(), api: objects(&named("web", "192.0.2.1")) };
    let (next, taken) = desired.with_files(objects(&named("web", "192.0.2.8")));
    assert_eq!((taken, next.api.len()), (vec![id("web")], 0));
    assert_eq!(next.origin(&id("web")), Origin::File("test.yaml".into()));
}

/// What the roster makes of these states of the servers, in their order: passes or fails.
fn judged(director: &mut Director, states: &[bool]) {
    use crate::health::{Outcome, Report, Roster};
    let now = std::time::Instant::now();
    let mut roster = Roster::default();
    roster.set(now, director.objects().services().map(|(service, _)| service));
    let service = director.objects().services().next().expect("a service").0.clone();
    for (server, passed) in service.real_servers.iter().zip(states) {
        let id = roster.checks_of(&service, server)[0].assignment.id;
        let outcome =
            Outcome { passed: *passed, words: "said".into(), latency: None, weight: None, order: None };
        roster.take(Report { id, outcome, at: now, next: now }).expect("it is asked for");
    }
    let judged = roster.judge(now);
    director.handle(Event::Judged(judged));
}

const CHECKED: &str = "healthCheck: {tcp: {}, rise: 1, fall: 1}";

#[test]
fn a_server_that_fails_leaves_the_slots_and_one_table_and_one_destination_change() {
    let more = format!("forwarding: dr, scheduler: rr, {CHECKED}, onServerDown: reset");
    let mut director = director(&service(&more, &TWO));
    for address in ["10.0.0.1", "10.0.0.2"] {
        resolved(&mut director, address, way(address));
    }
    assert_eq!(in_slots(&web(&mut director)), [""; 0], "nobody is in before the first check");
    judged(&mut director, &[true, true]);
    assert_eq!(in_slots(&web(&mut director)), ["10.0.0.1", "10.0.0.2"]);
    let before = director.layout().clone();

    judged(&mut director, &[true, false]);
    assert_eq!(in_slots(&web(&mut director)), ["10.0.0.1"]);
    let steps = crate::plan::diff(&before, director.layout());
    let said: Vec<String> = steps.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert_eq!(said[0], "service web: 1 slots of 1 real servers", "new flows go elsewhere first");
    assert!(said[1].contains("10.0.0.2 (dr)") && said[1].ends_with("connections are reset"), "{said:?}");

    // The same judgement again costs nothing.
    let before = director.layout().clone();
    judged(&mut director, &[true, false]);
    assert!(crate::plan::diff(&before, director.layout()).is_empty());
}

#[test]
fn the_sorry_server_has_all_slots_while_the_quorum_is_lost() {
    let more =
        format!("forwarding: nat, scheduler: mh, {CHECKED}, quorum: 2, sorryServer: {{address: 10.0.0.9}}");
    let mut director = director(&service(&more, &TWO));
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.9"] {
        resolved(&mut director, address, way(address));
    }
    judged(&mut director, &[true, true]);
    let well = web(&mut director);
    assert_eq!(in_slots(&well), ["10.0.0.1", "10.0.0.2"]);
    assert!(well.destinations.keys().any(|binding| binding.address == ip("10.0.0.9")), "it is ready");
    assert!(well.roles.contains(&(Role::NatSource, ip("10.0.0.9"))));
    judged(&mut director, &[true, false]);
    assert_eq!(in_slots(&web(&mut director)), ["10.0.0.9"]);
    judged(&mut director, &[true, true]);
    assert_eq!(web(&mut director), well, "everything is as it was");
}

#[test]
fn a_server_of_a_maglev_table_that_fails_moves_no_other_servers_clients() {
    let servers =
        ["{address: 10.0.0.1}", "{address: 10.0.0.2}", "{address: 10.0.0.3}", "{address: 10.0.0.4}"];
    let mut director = director(&service(&format!("forwarding: dr, scheduler: mh, {CHECKED}"), &servers));
    for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"] {
        resolved(&mut director, address, way(address));
    }
    judged(&mut director, &[true; 4]);
    let before = web(&mut director).slots;
    judged(&mut director, &[true, false, true, true]);
    let after = web(&mut director).slots;
    assert_eq!(before.slots.len(), after.slots.len());
    let moved = before.slots.iter().zip(after.slots.iter()).filter(|(before, after)| before != after);
    assert!(moved.clone().all(|(before, _)| *before == 1), "only those of the one that failed");
    assert!(moved.count() > 0);
}

#[test]
fn a_real_server_that_is_this_host_is_in_by_dr_and_tun_and_out_where_answers_must_be_translated() {
    for (forwarding, slots) in [("dr", &["10.0.0.1"][..]), ("tun", &["10.0.0.1"]), ("nat", &[])] {
        let mut director = director(&service(&format!("forwarding: {forwarding}, scheduler: rr"), &TWO));
        director.handle(Event::Resolution { address: ip("10.0.0.1"), resolution: Resolution::Local });
        let layout = web(&mut director);
        assert_eq!(in_slots(&layout), slots, "{forwarding}");
        let local: Vec<bool> = layout.destinations.values().map(|destination| destination.local).collect();
        assert_eq!(local, [!slots.is_empty(), false], "{forwarding}");
        assert!(layout.destinations.values().all(|destination| destination.hop.is_none()), "{forwarding}");
    }
}

#[test]
fn whether_the_vip_is_here_is_asked_only_for_a_real_server_that_is_here() {
    let vip = ip("192.0.2.1");
    let mut director = director(&service("forwarding: dr, scheduler: rr", &TWO));
    assert!(!director.watched().contains(&vip));
    let note = |director: &mut Director, address: IpAddr, resolution| {
        director.handle(Event::Resolution { address, resolution });
    };
    note(&mut director, ip("10.0.0.1"), Resolution::Local);
    assert!(director.watched().contains(&vip));
    // Until an answer has come it is taken to be here.
    assert_eq!(in_slots(&web(&mut director)), ["10.0.0.1"]);
    note(&mut director, vip, Resolution::Failed { reason: "no route".into() });
    assert_eq!(in_slots(&web(&mut director)), [""; 0]);
    note(&mut director, vip, Resolution::Local);
    assert_eq!(in_slots(&web(&mut director)), ["10.0.0.1"]);
    // And when the address moves elsewhere it is a real server like any.
    note(&mut director, ip("10.0.0.1"), Resolution::Resolved(way("10.0.0.1")));
    let layout = web(&mut director);
    assert!(layout.destinations.values().all(|destination| !destination.local));
    assert_eq!(in_slots(&layout), ["10.0.0.1"]);
}

#[test]
fn other_real_servers_are_peers_where_this_host_is_one_by_dr() {
    let vip = ip("192.0.2.1");
    for (spec, servers, peers) in [
        ("forwarding: dr, scheduler: rr", &TWO[..], true),
        ("forwarding: tun, scheduler: rr", &TWO[..], false),
        ("forwarding: dr, scheduler: rr", &TWO[..1], false),
    ] {
        let mut director = director(&service(spec, servers));
        director.handle(Event::Resolution { address: ip("10.0.0.1"), resolution: Resolution::Local });
        resolved(&mut director, "10.0.0.2", way("10.0.0.2"));
        let layout = director.layout();
        let mac = way("10.0.0.2").destination_mac;
        let wanted = if peers { [(vip, mac)].into() } else { std::collections::BTreeSet::new() };
        assert_eq!(layout.peers, wanted, "{spec}");
        let steps = crate::plan::diff(&Default::default(), layout);
        let place = |wanted: &dyn Fn(&crate::plan::Step) -> bool| steps.iter().position(wanted);
        let told = place(&|step| matches!(step, crate::plan::Step::SetPeers { .. }));
        let sent = place(&|step| matches!(step, crate::plan::Step::SetHop { .. }));
        assert!(!peers || told < sent, "nothing may be sent to a peer that is not known as one: {steps:?}");
    }
}
