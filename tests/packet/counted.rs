//! Schedulers that count flows, and the counts: exact whatever becomes of a flow.

use crate::{
    flows::{Flow, Method, matrix},
    frame::{ACK, FIN, Packet, RST, SYN, TCP},
    random::frames::Random,
    world::{Counted, World, client, server, vip},
};
use lb_agent::dataplane::{
    Ports,
    tables::{Rules, Standing},
};
use lb_agent::model::Scheduler;
use lb_agent::scheduler::reference::{self, Load};
use lb_common::{
    destination::Forwarding,
    service::{Pick, Service},
    verdict::Reason,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// A DR service with servers of these weights, in the order of their addition.
fn service(world: &mut World, v6: bool, pick: Pick, weights: &[u32], rules: Rules) -> Vec<u32> {
    let mut spec = world.spec("web", vip(v6), TCP, &[Ports::One(80)]);
    (spec.pick, spec.rules) = (pick, rules);
    world.service(&spec);
    let mut all = Vec::new();
    for (ordinal, weight) in (0..).zip(weights) {
        world.standing = Standing { weight: *weight, ordinal, ..world.standing };
        all.push(world.server(&spec, server(v6, 11 + ordinal as u8), 0, Forwarding::Dr));
    }
    world.servers("web", &all);
    all
}

/// IPVS's order: from the last added.
fn ipvs() -> Rules {
    Rules { last_first: true, ..Rules::default() }
}

fn syn(v6: bool, port: u16) -> Packet {
    Packet::tcp((client(v6, 7), port), (vip(v6), 80), SYN)
}

/// What a new flow is given, with the servers in these states: (active, inactive).
fn chosen(world: &mut World, v6: bool, all: &[u32], states: &[(u32, u32)], port: u16) -> usize {
    for (destination, (active, inactive)) in all.iter().zip(states) {
        world.set_counts(*destination, *active, *inactive);
    }
    let got = world.goes_to("new flow", &syn(v6, port));
    all.iter().position(|d| *d == got).expect("one of the servers")
}

#[test]
fn the_golden_vectors_of_ipvs() {
    const A: usize = 0;
    const B: usize = 1;
    const C: usize = 2;
    let loaded = [(3, 0), (5, 600), (11, 0)];
    let idle = [(0, 0); 2];
    for v6 in [false, true] {
        for (pick, weights, states, winner) in [
            (Pick::Lc, vec![1, 2, 4], loaded.to_vec(), A),
            (Pick::Wlc, vec![1, 2, 4], loaded.to_vec(), C),
            (Pick::Sed, vec![1, 2, 4], loaded.to_vec(), C),
            (Pick::Nq, vec![1, 2, 4], loaded.to_vec(), C),
            (Pick::Lc, vec![1, 1], idle.to_vec(), B),
            (Pick::Wlc, vec![1, 1], idle.to_vec(), B),
            (Pick::Sed, vec![1, 1], idle.to_vec(), B),
            (Pick::Nq, vec![1, 1], idle.to_vec(), B),
            (Pick::Fo, vec![1, 1], idle.to_vec(), B),
            (Pick::Fo, vec![3, 9, 9, 2], vec![(0, 0); 4], C),
            (Pick::Nq, vec![1, 9, 1], vec![(0, 5), (1, 0), (1, 0)], A),
            (Pick::Ovf, vec![2, 5, 4], vec![(0, 0), (5, 0), (4, 0)], B),
            (Pick::Ovf, vec![2, 5, 4], vec![(0, 0), (6, 0), (4, 9)], C),
            (Pick::Ovf, vec![2, 5, 4], vec![(2, 0), (6, 0), (5, 0)], A),
            (Pick::Wlc, vec![0, 1, 0], vec![(0, 0), (900, 0), (0, 0)], B),
        ] {
            let mut world = World::new();
            let all = service(&mut world, v6, pick, &weights, ipvs());
            let got = chosen(&mut world, v6, &all, &states, 40_000);
            assert_eq!(got, winner, "{pick:?} of {weights:?} with {states:?}");
        }
    }
}

#[test]
fn ovf_has_no_server_when_all_overflow() {
    let mut world = World::new();
    let all = service(&mut world, false, Pick::Ovf, &[2, 1], ipvs());
    world.set_counts(all[0], 3, 0);
    world.set_counts(all[1], 2, 0);
    world.ends("all above their weight", &syn(false, 1), Reason::NoServer);
}

#[test]
fn least_connections_fill_servers_by_their_weights() {
    for (v6, pick) in [(false, Pick::Wlc), (true, Pick::Wlc), (false, Pick::Sed), (false, Pick::Nq)] {
        let mut world = World::new();
        let all = service(&mut world, v6, pick, &[1, 2, 5], Rules::default());
        for port in 1..=80 {
            world.goes_to("flow", &syn(v6, port));
        }
        let counts: Vec<_> = all.iter().map(|d| world.counts(*d)).collect();
        assert_eq!(counts, [(10, 0), (20, 0), (50, 0)], "{pick:?}");
    }
}

#[test]
fn equal_servers_are_not_always_begun_with_the_same_one() {
    let mut world = World::new();
    let rules = Rules { rotate: true, ..Rules::default() };
    let all = service(&mut world, false, Pick::Lc, &[1; 5], rules);
    let got: Vec<_> = (1..=5).map(|port| chosen(&mut world, false, &all, &[(0, 0); 5], port)).collect();
    let mut sorted = got.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1, 2, 3, 4], "{got:?}");
}

#[test]
fn a_walk_finds_the_least_loaded_of_many_servers_wherever_it_stands() {
    let mut sizes = crate::world::sizes();
    (sizes.destinations, sizes.next_hops) = (4096, 64);
    let mut world = World::of(sizes);
    let mut spec = world.spec("web", vip(false), TCP, &[Ports::One(80)]);
    spec.pick = Pick::Lc;
    world.service(&spec);
    let next_hop = world.hop(server(false, 11));
    let mut all = Vec::new();
    for n in 0..1000u32 {
        let address = std::net::Ipv4Addr::from_bits(0x0a01_0000 + n).into();
        world.standing.ordinal = n as u16;
        all.push(world.server_by(&spec, address, 0, Forwarding::Dr, next_hop, 1500));
    }
    world.servers("web", &all);
    let mut port = 1;
    for best in [0, 7, 8, 255, 256, 511, 512, 767, 998, 999] {
        for destination in &all {
            world.set_counts(*destination, 9, 0);
        }
        world.set_counts(all[best], 8, 0);
        assert_eq!(world.goes_to("the least", &syn(false, port)), all[best], "number {best}");
        port += 1;
    }
    // Holes are passed over.
    let mut holes: Vec<_> = all.iter().copied().map(Some).collect();
    (0..999).for_each(|n| holes[n] = None);
    world.tables.set_servers("web", &holes).unwrap();
    assert_eq!(world.goes_to("the only one", &syn(false, port)), all[999]);
}

#[test]
fn walks_choose_what_the_rules_of_ipvs_say() {
    let mut sizes = crate::world::sizes();
    (sizes.destinations, sizes.services) = (4096, 64);
    let mut world = World::of(sizes);
    let mut random = Random(7);
    let mut below = move |n: u32| random.below(n as usize) as u32;
    let picks = [
        (Pick::Lc, Scheduler::Lc),
        (Pick::Wlc, Scheduler::Wlc),
        (Pick::Sed, Scheduler::Sed),
        (Pick::Nq, Scheduler::Nq),
        (Pick::Fo, Scheduler::Fo),
        (Pick::Ovf, Scheduler::Ovf),
    ];
    let orders = || [Rules::default(), ipvs(), Rules { rotate: true, ..Rules::default() }];
    let next_hop = world.hop(server(false, 11));
    let mut vip_port = 1000;
    for ((pick, scheduler), rules) in picks.into_iter().flat_map(|pick| orders().map(|rules| (pick, rules))) {
        for servers in [3, 8, 41] {
            vip_port += 1;
            let name = format!("web-{vip_port}");
            let mut spec = world.spec(&name, vip(false), TCP, &[Ports::One(vip_port)]);
            let (rotates, last_first) = (rules.rotate, rules.last_first);
            (spec.pick, spec.rules) = (pick, rules.clone());
            let service = world.service(&spec);
            let weights: Vec<u32> = (0..servers).map(|_| below(5) * below(3)).collect();
            let mut all = Vec::new();
            for (ordinal, weight) in weights.iter().enumerate() {
                world.standing = Standing { weight: *weight, ordinal: ordinal as u16, ..Standing::DEFAULT };
                let address = server(false, 11 + ordinal as u8);
                all.push(world.server_by(&spec, address, 0, Forwarding::Dr, next_hop, 1500));
            }
            world.servers(&name, &all);
            for port in 1..=60 {
                // Counts near each other, so that many are equal. One may be below zero for a moment.
                let most = 1 + below(20);
                let mut loads = Vec::new();
                for (destination, weight) in all.iter().zip(&weights) {
                    let mut count = |n| {
                        let count = i64::from(below(n));
                        if count == 0 && port % 7 == 0 { -1 } else { count }
                    };
                    let (active, inactive) = (count(most), count(3));
                    let word = active.wrapping_add(inactive << 32) as u64;
                    let load = world.tables.load_of(*destination).expect("a destination");
                    world.views().counts(load).store(word, Ordering::SeqCst);
                    let (active, inactive) = (active.max(0) as u32, inactive.max(0) as u32);
                    loads.push(Load { weight: *weight, active, inactive, overloaded: false });
                }
                let views = world.views();
                let cursor = views.services.word(service, std::mem::offset_of!(Service, cursor));
                let first = if rotates { cursor.load(Ordering::SeqCst) as usize % servers } else { 0 };
                let mut order: Vec<_> = (0..servers).map(|n| (first + n) % servers).collect();
                if last_first {
                    order.reverse();
                }
                let walked: Vec<Load> = order.iter().map(|n| loads[*n]).collect();
                let expected = reference::pick(scheduler, &walked, [0; 2]).map(|n| all[order[n]]);
                let case = format!("{pick:?}, walked as {order:?}: {loads:?}");
                let packet = Packet::tcp((client(false, 7), port), (vip(false), vip_port), SYN);
                match expected {
                    Some(expected) => assert_eq!(world.goes_to("flow", &packet), expected, "{case}"),
                    None => drop(world.ends(&case, &packet, Reason::NoServer)),
                }
            }
            world.forget_all();
        }
    }
}

/// How often each server gets a flow, all having these counts.
fn shares(world: &mut World, all: &[u32], states: &[(u32, u32)], flows: u16) -> Vec<u32> {
    let mut shares = vec![0; all.len()];
    for port in 1..=flows {
        shares[chosen(world, false, all, states, port)] += 1;
        world.forget_all();
    }
    shares
}

#[test]
fn two_choices_draw_by_weight_and_take_the_less_loaded_one() {
    // From the slots, and from the list where there are none.
    for slots in [&[0, 1, 2, 2][..], &[]] {
        let mut world = World::new();
        let all = service(&mut world, false, Pick::Twos, &[1, 1, 2], Rules::default());
        let named: Vec<u32> = slots.iter().map(|n| all[*n]).collect();
        world.slots("web", &named);
        // Equal loads: the first draw decides, so shares are those of the weights.
        let got = shares(&mut world, &all, &[(0, 0); 3], 800);
        assert!((120..290).contains(&got[0]) && (300..510).contains(&got[2]), "{slots:?}: {got:?}");
        // One is far more loaded: it is taken only when drawn twice, and that is rare.
        let got = shares(&mut world, &all, &[(0, 0), (0, 0), (500, 0)], 400);
        assert!((40..180).contains(&got[2]), "{slots:?}: a quarter expected: {got:?}");
        // As IPVS draws, from 0 on: the last added has more.
        let mut world = World::new();
        let all = service(&mut world, false, Pick::Twos, &[1, 1], ipvs());
        let named: Vec<u32> = slots.iter().take(2).map(|n| all[*n]).collect();
        world.slots("web", &named);
        let got = shares(&mut world, &all, &[(0, 0); 2], 600);
        assert!((340..460).contains(&got[1]), "{slots:?}: two of three expected: {got:?}");
    }
}

#[test]
fn two_choices_pass_over_who_cannot_take_a_flow() {
    let mut world = World::new();
    world.standing = Standing { upper: 1, ..Standing::DEFAULT };
    let all = service(&mut world, false, Pick::Twos, &[1; 20], Rules::default());
    world.slots("web", &all);
    let mut taken: Vec<u32> = (1..=20).map(|port| world.goes_to("room", &syn(false, port))).collect();
    taken.sort_unstable();
    assert_eq!(taken, all, "each is full after one flow, the last one found among twenty");
    world.ends("all full", &syn(false, 41), Reason::NoServer);
}

#[test]
fn lblc_stays_with_its_server_until_that_is_overloaded_and_another_half_idle() {
    let mut world = World::new();
    let all = service(&mut world, false, Pick::Lblc, &[4, 4], Rules::default());
    let mut go = |states: &[(u32, u32)], port| chosen(&mut world, false, &all, states, port);
    assert_eq!(go(&[(3, 0), (1, 0)], 1), 1, "wlc at first");
    assert_eq!(go(&[(0, 0), (4, 0)], 2), 1, "not above its weight");
    assert_eq!(go(&[(2, 0), (5, 0)], 3), 1, "above, but nobody is half idle");
    assert_eq!(go(&[(1, 0), (5, 0)], 4), 0, "above, and another is half idle");
    assert_eq!(go(&[(1, 0), (0, 0)], 5), 0, "the new one is remembered");
}

#[test]
fn lblcr_adds_a_server_to_its_set_when_the_best_of_it_is_overloaded() {
    let mut world = World::new();
    let all = service(&mut world, false, Pick::Lblcr, &[4, 4, 4], Rules::default());
    let mut go = |states: &[(u32, u32)], port| chosen(&mut world, false, &all, states, port);
    assert_eq!(go(&[(2, 0), (1, 0), (2, 0)], 1), 1, "wlc at first");
    assert_eq!(go(&[(0, 0), (4, 0), (0, 0)], 2), 1, "the set has one server");
    assert_eq!(go(&[(1, 0), (5, 0), (2, 0)], 3), 0, "overloaded: another joins");
    assert_eq!(go(&[(4, 0), (3, 0), (0, 0)], 4), 1, "the better of the two");
    assert_eq!(go(&[(3, 0), (4, 0), (0, 0)], 5), 0, "the better of the two");
}

#[test]
fn a_server_at_its_upper_threshold_gets_nothing_until_it_is_below_its_lower_one() {
    for pick in [Pick::Wlc, Pick::Cursor] {
        let mut world = World::new();
        world.standing = Standing { upper: 4, lower: 2, ..Standing::DEFAULT };
        let rules = Rules { counted: true, checked: true, ..Rules::default() };
        let all = service(&mut world, false, pick, &[1, 1], rules);
        world.slots("web", &all);
        for port in 1..=8 {
            world.goes_to("room", &syn(false, port));
        }
        assert_eq!(all.iter().map(|d| world.counts(*d)).collect::<Vec<_>>(), [(4, 0), (4, 0)], "{pick:?}");
        world.ends("both full", &syn(false, 9), Reason::NoServer);
        // Flows end: at two the server is still full, at one it is not.
        let mine: Vec<_> =
            world.connections().into_iter().filter(|c| c.destination == all[0]).map(|c| c.client).collect();
        for (n, client) in mine.iter().take(3).enumerate() {
            world.ends("still full", &syn(false, 20 + n as u16), Reason::NoServer);
            world.end_flow_of(*client);
        }
        assert_eq!(world.counts(all[0]), (1, 0));
        assert_eq!(world.goes_to("free again", &syn(false, 30)), all[0]);
    }
}

#[test]
fn a_hash_service_refuses_what_its_server_cannot_take_unless_it_falls_back() {
    for (v6, pick) in [
        (false, Pick::HashAddress),
        (true, Pick::HashAddressPort),
        (false, Pick::IpvsSh),
        (true, Pick::IpvsMhPort),
        (false, Pick::HashDestination),
    ] {
        for fallback in [false, true] {
            let mut world = World::new();
            world.standing = Standing { upper: 1, ..Standing::DEFAULT };
            let rules = Rules { counted: true, checked: true, fallback, ..Rules::default() };
            let all = service(&mut world, v6, pick, &[1, 1, 1], rules);
            world.slots("web", &all);
            let first = world.goes_to("its own", &syn(v6, 5));
            // The same source port: another address would hash elsewhere.
            let again = Packet::tcp((client(v6, 7), 5), (vip(v6), 80), SYN);
            let again = again.with(|p| p.set_ports((5, 80)));
            world.forget_all();
            if fallback {
                let second = world.goes_to("another", &again);
                assert_ne!(second, first, "{pick:?}");
            } else {
                world.ends("its own is full", &again, Reason::NoServer);
            }
        }
    }
}

#[test]
fn clients_of_a_prefix_are_hashed_alike() {
    for v6 in [false, true] {
        let mut world = World::new();
        let rules = Rules { hash_prefix: Some((24, 64)), ..Rules::default() };
        let all = service(&mut world, v6, Pick::HashAddress, &[1; 7], rules);
        world.slots("web", &all);
        let from = |n: u8| Packet::tcp((client(v6, n), 40_000), (vip(v6), 80), SYN);
        let first = world.goes_to("one", &from(1));
        for n in 2..40 {
            assert_eq!(world.goes_to("of the same network", &from(n)), first);
        }
    }
}

#[test]
fn counts_follow_a_flow_from_its_beginning_to_its_end() {
    for (method, v6, udp) in matrix() {
        let mut flow = Flow::with(method, v6, udp, |spec| spec.rules.counted = true);
        let case = flow.name();
        let counts = |flow: &Flow| flow.world.counts(flow.destination);
        flow.forward(&flow.first());
        let begun = if udp { (0, 1) } else { (1, 0) };
        assert_eq!(counts(&flow), begun, "{case}: begun");
        flow.forward(&flow.first());
        let second = if udp && method.translates() { (0, 1) } else { (1, 0) };
        assert_eq!(counts(&flow), second, "{case}: the first packet sent again");
        if method.translates() {
            flow.answer(&flow.reply(SYN | ACK));
        }
        flow.forward(&flow.packet(ACK));
        assert_eq!(counts(&flow), (1, 0), "{case}: established");
        if !udp {
            flow.forward(&flow.packet(FIN | ACK));
            if method.translates() {
                flow.answer(&flow.reply(FIN | ACK));
            }
            assert_eq!(counts(&flow), (0, 1), "{case}: closing");
            flow.forward(&flow.packet(RST));
            assert_eq!(counts(&flow), (0, 1), "{case}: reset");
            let seen = flow.world.send(&flow.packet(SYN).bytes());
            assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
            assert_eq!(counts(&flow), (1, 0), "{case}: begun anew on its ports");
        }
        flow.world.expire_all();
        let sweeper = flow.world.plane.sweeper(std::time::Duration::from_secs(3600)).expect("sweeper");
        sweeper.board().sweep_now(std::time::Duration::from_secs(30)).expect("a walk");
        assert_eq!(counts(&flow), (0, 0), "{case}: swept");
    }
}

#[test]
fn an_expired_flow_whose_slot_is_taken_is_counted_off() {
    let mut sizes = crate::world::sizes();
    (sizes.connections, sizes.connections_v6) = (14, 14);
    let mut world = World::of(sizes);
    let all = service(&mut world, false, Pick::Wlc, &[1, 2], Rules::default());
    let mut port = 1;
    while world.entries().len() < 16 {
        world.goes_to("fill", &syn(false, port));
        port += 1;
    }
    for _ in 0..3 {
        world.expire_all();
        for _ in 0..40 {
            world.goes_to("in the place of an expired one", &syn(false, port));
            port += 1;
            let counted: u32 = all.iter().map(|d| world.counts(*d).0).sum();
            assert_eq!(counted, 16, "a word for every slot, expired or not");
        }
    }
}

#[test]
fn udp_flows_are_inactive_where_ipvs_is_followed() {
    for method in [Method::Dr, Method::Nat] {
        let change = |spec: &mut lb_agent::dataplane::tables::ServiceSpec| {
            spec.rules = Rules { counted: true, udp_inactive: true, ..Rules::default() };
        };
        let mut flow = Flow::with(method, false, true, change);
        flow.establish();
        assert_eq!(flow.world.counts(flow.destination), (0, 1), "{method:?}");
    }
}

#[test]
fn counts_of_a_full_table_are_those_of_its_flows() {
    let mut sizes = crate::world::sizes();
    (sizes.connections, sizes.connections_v6) = (14, 14);
    for v6 in [false, true] {
        let mut world = World::of(sizes);
        let all = service(&mut world, v6, Pick::Wlc, &[1, 2], Rules::default());
        for port in 1..400 {
            world.send(&syn(v6, port).bytes());
            let mut flows = BTreeMap::new();
            for connection in world.connections() {
                *flows.entry(connection.destination).or_insert(0) += 1;
            }
            for destination in &all {
                let count = flows.get(destination).copied().unwrap_or(0);
                assert_eq!(world.counts(*destination), (count, 0), "v6={v6} after {port} flows");
            }
        }
    }
}
