//! Random sequences of objects and events: after every step of every plan the tables are whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::{Done, Layout, Role, Step, Via, diff};
use crate::director::{Director, Event};
use crate::manifest;
use crate::model::{ClientHop, ClientRoute, Forwarding, NextHop, Ports, Protocol, Resolution};

/// What one object set, or one event, is made of.
#[derive(Debug, Clone)]
enum Change {
    Objects(Vec<Option<Shape>>),
    Resolved { server: u8, mac: u8, gateway: bool },
    Failed { server: u8 },
    Routes { gateways: u8 },
    Gateway { number: u8, mac: u8 },
}

/// A service, by its choices.
#[derive(Debug, Clone)]
struct Shape {
    vip: u8,
    udp: bool,
    ports: u8,
    method: u8,
    scheduler: u8,
    servers: Vec<(u8, u8)>,
    placed: bool,
    pool: u8,
}

const PORTS: [&str; 6] = ["[80]", "[81]", "[80, 81]", "[\"8000-8099\"]", "[\"8050-8060\", 80]", "any"];
const METHODS: [&str; 4] = ["dr", "tun", "nat", "fullnat"];
const SCHEDULERS: [&str; 4] = ["rr", "wrr", "sh", "mh"];

fn shape() -> impl Strategy<Value = Shape> {
    let servers = proptest::collection::btree_map(1u8..6, 0u8..4, 0..4);
    (0u8..2, any::<bool>(), 0u8..6, 0u8..4, 0u8..4, servers, any::<bool>(), 0u8..2).prop_map(
        |(vip, udp, ports, method, scheduler, servers, placed, pool)| Shape {
            vip,
            udp,
            ports,
            method,
            scheduler,
            servers: servers.into_iter().collect(),
            placed,
            pool,
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => proptest::collection::vec(proptest::option::weighted(0.7, shape()), 3).prop_map(Change::Objects),
        3 => (1u8..6, 1u8..4, any::<bool>())
            .prop_map(|(server, mac, gateway)| Change::Resolved { server, mac, gateway }),
        1 => (1u8..6).prop_map(|server| Change::Failed { server }),
        1 => (0u8..3).prop_map(|gateways| Change::Routes { gateways }),
        1 => (1u8..3, 1u8..4).prop_map(|(number, mac)| Change::Gateway { number, mac }),
    ]
}

fn yaml(shapes: &[Option<Shape>]) -> String {
    let mut text = String::new();
    for pool in 0..2 {
        let used = |shape: &Shape| shape.method == 3 && shape.pool == pool;
        if shapes.iter().flatten().any(used) {
            text += &format!(
                "---\napiVersion: lb/v1\nkind: LocalAddressPool\nmetadata: {{name: pool-{pool}}}\n\
                 spec: {{addresses: [10.9.{pool}.0/31], addressInterface: eth0}}\n"
            );
        }
    }
    for (number, shape) in shapes.iter().enumerate() {
        let Some(shape) = shape else { continue };
        let servers: Vec<String> = shape
            .servers
            .iter()
            .map(|(server, weight)| format!("{{address: 10.0.0.{server}, weight: {weight}}}"))
            .collect();
        let method = METHODS[usize::from(shape.method)];
        let mut more = String::new();
        if method == "fullnat" {
            more += &format!(", localAddresses: pool-{}", shape.pool);
        }
        if shape.placed {
            more += ", addressInterface: eth0";
        }
        text += &format!(
            "---\napiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: service-{number}}}\nspec: {{address: \
             192.0.2.{}, ports: {}, protocol: {}, forwarding: {method}, scheduler: {}{more}, realServers: [{}]}}\n",
            shape.vip + 1,
            PORTS[usize::from(shape.ports)],
            if shape.udp { "udp" } else { "tcp" },
            SCHEDULERS[usize::from(shape.scheduler)],
            servers.join(", "),
        );
    }
    text
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn way(neighbour: IpAddr, mac: u8) -> NextHop {
    NextHop {
        ifindex: 2,
        destination_mac: [2, 0, 0, 0, 0, mac],
        source_mac: [2, 0, 0, 0, 0, 0xd],
        vlans: [0, 0],
        mtu: 1500,
        source: Some(address("10.0.0.254")),
        neighbour,
    }
}

/// Feeds a change to the director. False when the objects do not go together.
fn feed(director: &mut Director, change: &Change) -> bool {
    let event = match change {
        Change::Objects(shapes) => match manifest::load_text("test.yaml", &yaml(shapes)) {
            Ok(objects) => Event::Objects(objects),
            Err(_) => return false,
        },
        Change::Resolved { server, mac, gateway } => {
            let server = address(&format!("10.0.0.{server}"));
            let neighbour = if *gateway { address("10.0.0.253") } else { server };
            Event::Resolution { address: server, resolution: Resolution::Resolved(way(neighbour, *mac)) }
        }
        Change::Failed { server } => Event::Resolution {
            address: address(&format!("10.0.0.{server}")),
            resolution: Resolution::Failed { reason: "no answer".into() },
        },
        Change::Routes { gateways } => Event::ClientRoutes(
            (0..=*gateways)
                .map(|number| ClientRoute {
                    prefix: format!("198.51.{number}.0/24").parse().unwrap(),
                    via: match number {
                        0 => ClientHop::OnLink { ifindex: 2 },
                        _ => {
                            ClientHop::Gateway { address: address(&format!("10.0.0.25{number}")), ifindex: 2 }
                        }
                    },
                })
                .collect(),
        ),
        Change::Gateway { number, mac } => {
            let gateway = address(&format!("10.0.0.25{number}"));
            let resolution = Resolution::Resolved(way(gateway, *mac));
            Event::Gateway { address: gateway, ifindex: 2, resolution }
        }
    };
    director.handle(event);
    true
}

/// What must hold at any moment at which packets may come. `staying` are addresses that are on an interface before
/// and after: while a service becomes another one (its protocol changes), nothing serves its address for a moment.
fn whole(layout: &Layout, staying: &BTreeSet<(String, IpAddr)>) -> Result<(), String> {
    for (name, service) in &layout.services {
        for named in service.slots.named() {
            let Some(destination) = service.destinations.get(&named) else {
                return Err(format!("{name}: a slot names {named}, which is not there"));
            };
            if destination.hop.is_none() {
                return Err(format!("{name}: a slot names {named}, which has no next hop"));
            }
            if named.forwarding == Forwarding::Nat
                && !service.roles.contains(&(Role::NatSource, named.address))
            {
                return Err(format!("{name}: replies of {named} would not be known"));
            }
        }
        for (binding, destination) in &service.destinations {
            if let Some(hop) = destination.hop
                && !layout.hops.contains_key(&hop)
            {
                return Err(format!("{name}: {binding} names next hop {hop}, which is not there"));
            }
        }
        if let Some((pool, _)) = &service.service.pool
            && !layout.pools.contains_key(pool)
        {
            return Err(format!("{name}: names pool {pool}, which is not there"));
        }
    }
    for via in layout.client_routes.iter().flat_map(BTreeMap::values) {
        if let Via::Hop(hop) = via
            && !layout.hops.contains_key(hop)
        {
            return Err(format!("a route names next hop {hop}, which is not there"));
        }
    }
    for (interface, address) in layout.placed.difference(staying) {
        let vip = (Role::Vip, *address);
        let of_service = layout.services.values().any(|service| service.roles.contains(&vip));
        let of_pool = layout.pools.values().any(|pool| pool.addresses.contains(address));
        if !of_service && !of_pool {
            return Err(format!("{address} is on {interface}, but nothing is there to serve it"));
        }
    }
    Ok(())
}

type Owner = (IpAddr, Protocol, u16);

/// Who has each single port.
fn ports(layout: &Layout) -> BTreeMap<Owner, String> {
    let mut owners = BTreeMap::new();
    for (name, service) in &layout.services {
        let Ports::List(ranges) = &service.ports else { continue };
        for port in ranges.iter().filter_map(|range| range.single()) {
            owners.insert((service.service.vip, service.service.protocol, port), name.to_string());
        }
    }
    owners
}

/// Whether some service has a port, by itself or within a range.
fn has(layout: &Layout, port: &Owner) -> bool {
    let within = |ports: &Ports| match ports {
        Ports::Any => true,
        Ports::List(ranges) => ranges.iter().any(|range| (range.first..=range.last).contains(&port.2)),
    };
    layout.services.values().any(|service| service.key() == (port.0, port.1) && within(&service.ports))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_prefix_of_a_plan_leaves_anything_that_names_what_is_not_there(
        changes in proptest::collection::vec(change(), 1..12),
    ) {
        let mut director = Director::default();
        director.handle(Event::Outputs([(2, "eth0".to_owned())].into()));
        let mut done = Done::default();
        for change in &changes {
            if !feed(&mut director, change) {
                continue;
            }
            let wanted = director.layout().clone();
            let steps = diff(&done, &wanted);
            // A port that stays with services that stay is never without one.
            let kept: Vec<Owner> = ports(&done)
                .into_iter()
                .filter(|(port, owner)| {
                    let after = wanted.services.iter().find(|(name, _)| name.as_str() == owner);
                    let same = after.is_none_or(|(_, after)| after.key() == (port.0, port.1));
                    same && has(&wanted, port)
                })
                .map(|(port, _)| port)
                .collect();
            let staying = done.placed.intersection(&wanted.placed).cloned().collect();
            for (number, step) in steps.iter().enumerate() {
                done.done(step);
                if let Err(broken) = whole(&done, &staying) {
                    prop_assert!(false, "after step {number} of {steps:#?}: {broken}");
                }
                for port in &kept {
                    prop_assert!(has(&done, port), "{port:?} is lost after step {number} of {steps:#?}");
                }
            }
            prop_assert_eq!(&*done, &wanted);
            prop_assert_eq!(diff(&wanted, &wanted), Vec::<Step>::new());
        }
    }

    #[test]
    fn a_plan_that_broke_off_is_finished_or_undone_by_the_next(
        changes in proptest::collection::vec(change(), 2..8),
        broken_off in proptest::collection::vec(0usize..30, 8),
    ) {
        let mut director = Director::default();
        director.handle(Event::Outputs([(2, "eth0".to_owned())].into()));
        let mut done = Done::default();
        // An address may be without a service for longer here: the plan that moved it broke off.
        for (change, broken_off) in changes.iter().zip(broken_off) {
            feed(&mut director, change);
            for step in diff(&done, director.layout()).iter().take(broken_off) {
                done.done(step);
                prop_assert_eq!(whole(&done, &done.placed), Ok(()));
            }
        }
        let wanted = director.layout().clone();
        for step in &diff(&done, &wanted) {
            done.done(step);
            prop_assert_eq!(whole(&done, &done.placed), Ok(()));
        }
        prop_assert_eq!(&*done, &wanted);
    }
}

#[test]
fn a_step_is_a_line_for_the_operator() {
    let mut director = Director::default();
    director.handle(Event::Outputs([(2, "eth0".to_owned())].into()));
    let shape = Shape {
        vip: 0,
        udp: false,
        ports: 0,
        method: 2,
        scheduler: 0,
        servers: vec![(1, 1)],
        placed: true,
        pool: 0,
    };
    assert!(feed(&mut director, &Change::Objects(vec![Some(shape)])));
    feed(&mut director, &Change::Routes { gateways: 0 });
    feed(&mut director, &Change::Resolved { server: 1, mac: 7, gateway: false });
    let steps: Vec<String> =
        diff(&Layout::default(), director.layout()).iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        [
            "next hop 10.0.0.1 on interface 2: 02:00:00:00:00:07",
            "routes to clients: 1",
            "service service-0: set 192.0.2.1",
            "service service-0: real server 10.0.0.1 (nat) by next hop 10.0.0.1 on interface 2, MTU 1500, weight 1",
            "service service-0: take packets from 10.0.0.1",
            "service service-0: 1 slots of 1 real servers",
            "service service-0: take packets to 192.0.2.1",
            "service service-0: ports 80",
            "address 192.0.2.1: put on eth0",
        ]
    );
}

#[test]
fn addresses_follow_their_vrrp_instance_before_anything_is_served_and_until_nothing_is() {
    let name = |text| crate::model::Name::new(text).unwrap();
    let address: IpAddr = "203.0.113.10".parse().unwrap();
    let share = crate::model::Share::default();
    let mut layout = Layout::default();
    let followers = super::Followers { addresses: BTreeSet::from([address]), accept: true };
    layout.vrrp.insert(name("edge"), followers);
    layout.pools.insert(name("p"), super::Pool { addresses: vec![address], share });
    layout.placed.insert(("eth0".into(), address));
    let lines = |from: &Layout, to: &Layout| diff(from, to).iter().map(Step::to_string).collect::<Vec<_>>();
    let up = lines(&Layout::default(), &layout);
    assert_eq!(up[0], "VRRP instance edge: 203.0.113.10");
    assert_eq!(lines(&layout, &Layout::default()).last().unwrap(), "VRRP instance edge: remove");
    let mut refuses = layout.clone();
    refuses.vrrp.get_mut(&name("edge")).unwrap().accept = false;
    assert_eq!(lines(&layout, &refuses), ["VRRP instance edge: 203.0.113.10, for services alone"]);
    assert_eq!(lines(&layout, &layout), [""; 0]);
    let mut done = Done::default();
    diff(&Layout::default(), &layout).iter().for_each(|step| done.done(step));
    assert_eq!(*done, layout);
}
