//! A connection table of sixteen slots: who makes room for whom, and what becomes of flows for which there is
//! none.

use crate::{
    flows::VIP_PORT,
    frame::{ACK, Packet, SYN, TCP},
    world::{Counted, GATEWAY, World, client, local, server, sizes, vip},
};
use lb_agent::dataplane::{Ports, Sizes, Views, tables::ServiceSpec};
use lb_common::{
    connection::{Kind, Value, WAYS},
    destination::Forwarding,
    hash::{slot_hash, slot_of_hash},
    service::Pick,
    state::State,
    verdict::Reason,
};
use std::{net::IpAddr, sync::atomic::Ordering::SeqCst};

const BUCKETS: u32 = 4;
const SLOTS: usize = BUCKETS as usize * WAYS;

fn tiny() -> World {
    let sizes = Sizes { connections: 14, connections_v6: 14, ..sizes() };
    assert_eq!((sizes.buckets(), sizes.buckets_v6()), (BUCKETS, BUCKETS));
    World::of(sizes)
}

/// A service with three servers; their destinations.
fn service(world: &mut World, v6: bool, pick: Pick, forwarding: Forwarding) -> (ServiceSpec, Vec<u32>) {
    let mut spec = world.spec("web", vip(v6), TCP, &[Ports::One(VIP_PORT)]);
    spec.pick = pick;
    if forwarding == Forwarding::FullNat {
        spec.pool = Some(world.pool(local(v6), (1, 1)));
    }
    world.service(&spec);
    world.clients_behind(GATEWAY);
    let destinations: Vec<u32> =
        (0..3).map(|n| world.server(&spec, server(v6, 11 + n), 0, forwarding)).collect();
    world.slots("web", &destinations);
    (spec, destinations)
}

fn packet(v6: bool, port: u16, flags: u8) -> Packet {
    Packet::tcp((client(v6, 7), port), (vip(v6), VIP_PORT), flags)
}

/// Fills every slot with flows.
fn fill(world: &mut World, v6: bool) {
    for port in 1..1000 {
        world.goes_to("fill", &packet(v6, port, SYN));
        if world.entries().len() == SLOTS {
            return;
        }
    }
    panic!("1000 flows do not fill {SLOTS} slots");
}

/// Gives every slot the state and ticks left that `of` says of its number.
fn dress(world: &World, mut of: impl FnMut(u32) -> (State, i16)) {
    let now = world.plane.clock().tick().unwrap();
    let views = world.views();
    for slot in 0..SLOTS as u32 {
        let word = views.value(slot / WAYS as u32, slot % WAYS as u32);
        let (state, left) = of(slot);
        let value = Value(word.load(SeqCst));
        word.store(value.with(state as u8, now.wrapping_add(left as u16)).0, SeqCst);
    }
}

fn identities(views: &Views) -> Vec<u64> {
    (0..SLOTS as u32)
        .map(|slot| views.identity(slot / WAYS as u32, slot % WAYS as u32).load(SeqCst))
        .collect()
}

/// The slots of both buckets of an identity.
fn candidates(views: &Views, identity: u64) -> Vec<u32> {
    let first = views.secrets.first(identity) >> views.config.bucket_shift;
    let second = views.secrets.second(identity) >> views.config.bucket_shift;
    [first, second]
        .into_iter()
        .flat_map(|b| (0..WAYS as u32).map(move |way| b as u32 * WAYS as u32 + way))
        .collect()
}

#[test]
fn the_least_worth_keeping_makes_room() {
    use State::{CloseWait, Established, FinWait, SynReceived, SynSent, TimeWait, Udp, Unconfirmed};
    /// What lies in the ways of every bucket with the ticks left, the way that must go, and what is counted.
    type Round = (&'static str, [(State, i16); WAYS], u32, Option<Reason>);
    let long = 200;
    let rounds: [Round; 9] = [
        ("expired first", [(Unconfirmed, 1), (SynReceived, 1), (TimeWait, 1), (Established, -1)], 3, None),
        (
            "then unconfirmed",
            [(Established, 5), (SynReceived, 1), (Unconfirmed, long), (TimeWait, 1)],
            2,
            Some(Reason::EvictedUnconfirmed),
        ),
        (
            "then half-open",
            [(Established, 5), (TimeWait, 1), (Udp, 5), (SynReceived, long)],
            3,
            Some(Reason::EvictedHalfOpen),
        ),
        (
            "SYN_SENT is half-open",
            [(SynSent, long), (FinWait, 1), (Udp, 5), (Established, 5)],
            0,
            Some(Reason::EvictedHalfOpen),
        ),
        (
            "then closing",
            [(Established, 5), (Established, 5), (FinWait, long), (Udp, 5)],
            2,
            Some(Reason::EvictedClosing),
        ),
        (
            "TIME_WAIT is closing",
            [(TimeWait, long), (Established, 5), (Udp, 5), (Udp, 5)],
            0,
            Some(Reason::EvictedClosing),
        ),
        (
            "CLOSE_WAIT is closing",
            [(Udp, 5), (Established, 5), (Udp, 5), (CloseWait, 9)],
            3,
            Some(Reason::EvictedClosing),
        ),
        (
            "of a class the one that ends first",
            [(Unconfirmed, 20), (Unconfirmed, 10), (Unconfirmed, 30), (Unconfirmed, 40)],
            1,
            Some(Reason::EvictedUnconfirmed),
        ),
        (
            "of a class the one that ends first, half-open",
            [(SynReceived, 20), (SynReceived, 12), (SynReceived, 11), (SynReceived, 40)],
            2,
            Some(Reason::EvictedHalfOpen),
        ),
    ];
    for v6 in [false, true] {
        let mut world = tiny();
        service(&mut world, v6, Pick::Cursor, Forwarding::Dr);
        fill(&mut world, v6);
        let views = world.views();
        for (number, (case, ways, victim, event)) in (0..).zip(rounds) {
            dress(&world, |slot| ways[slot as usize % WAYS]);
            let before = identities(&views);
            let seen = world.send(&packet(v6, 2000 + number, SYN).bytes());
            assert!(matches!(seen.counted, Counted::In(_)), "{case}: {:?}", seen.counted);
            let events: Vec<Reason> = [Some(Reason::FlowNew), event].into_iter().flatten().collect();
            assert_eq!(seen.events, events, "{case}");
            let after = identities(&views);
            let changed: Vec<u32> =
                (0..SLOTS as u32).filter(|s| before[*s as usize] != after[*s as usize]).collect();
            let [slot] = changed[..] else { panic!("{case}: slots {changed:?} changed") };
            assert_eq!(slot % WAYS as u32, victim, "{case}: the wrong way of the bucket went");
            assert!(
                candidates(&views, after[slot as usize]).contains(&slot),
                "{case}: not one of its buckets"
            );
        }
    }
}

#[test]
fn the_victim_is_the_cheapest_of_both_buckets() {
    for v6 in [false, true] {
        let mut world = tiny();
        service(&mut world, v6, Pick::Cursor, Forwarding::Dr);
        fill(&mut world, v6);
        let views = world.views();
        for round in 0..40u16 {
            // Each slot ends at another time, in another order each round.
            let left = |slot: u32| 20 + ((slot * 7 + u32::from(round) * 5) % SLOTS as u32) as i16;
            dress(&world, |slot| (State::SynReceived, left(slot)));
            let before = identities(&views);
            world.goes_to("a new flow", &packet(v6, 2000 + round, SYN));
            let after = identities(&views);
            let slot = (0..SLOTS).find(|s| before[*s] != after[*s]).expect("a slot") as u32;
            let best = candidates(&views, after[slot as usize]).into_iter().min_by_key(|s| left(*s)).unwrap();
            assert_eq!(slot, best, "round {round}");
        }
    }
}

#[test]
fn nothing_evicts_an_established_flow() {
    for v6 in [false, true] {
        for state in [State::Established, State::Udp] {
            for (forwarding, pick) in [
                (Forwarding::Dr, Pick::Cursor),
                (Forwarding::Nat, Pick::Cursor),
                (Forwarding::Nat, Pick::HashAddress),
                (Forwarding::FullNat, Pick::Cursor),
                (Forwarding::FullNat, Pick::HashAddressPort),
            ] {
                let mut world = tiny();
                service(&mut world, v6, Pick::Cursor, Forwarding::Dr);
                fill(&mut world, v6);
                dress(&world, |_| (state, 100));
                let before = world.entries();
                replace_method(&mut world, v6, pick, forwarding);
                for port in 3000..3040 {
                    let case = format!("v6={v6} {forwarding:?} {pick:?}");
                    world.ends(&case, &packet(v6, port, SYN), Reason::TableFull);
                }
                assert_eq!(world.entries(), before, "{forwarding:?} {pick:?}");
                let views = world.views();
                let leased = (0..1u32 << 16).filter(|lease| !views.lease_word(*lease).is_empty()).count();
                assert_eq!(leased, 0, "{forwarding:?}: leases were given back");
            }
        }
    }
}

/// The VIP's service by another method and with another server; flows stay where they are.
fn replace_method(world: &mut World, v6: bool, pick: Pick, forwarding: Forwarding) {
    let mut spec = world.spec("web", vip(v6), TCP, &[Ports::One(VIP_PORT)]);
    spec.pick = pick;
    if forwarding == Forwarding::FullNat {
        spec.pool = Some(world.pool(local(v6), (1, 1)));
    }
    world.service(&spec);
    let destination = world.server(&spec, server(v6, 21), 0, forwarding);
    world.slots("web", &[destination]);
}

#[test]
fn hash_services_of_dr_and_tun_go_on_without_an_entry() {
    for v6 in [false, true] {
        for forwarding in [Forwarding::Dr, Forwarding::Tun] {
            for pick in [Pick::HashAddress, Pick::HashAddressPort] {
                let mut world = tiny();
                let (mut spec, d) = service(&mut world, v6, pick, forwarding);
                spec.on_unknown_flow = lb_common::service::OnUnknownFlow::Adopt;
                world.service(&spec);
                fill(&mut world, v6);
                dress(&world, |_| (State::Established, 100));
                let before = world.entries();
                for port in 3000..3020u16 {
                    let case = format!("v6={v6} {forwarding:?} {pick:?} port {port}");
                    let source = lb_common::address::Address::from(client(v6, 7)).halves();
                    let hashed = if pick == Pick::HashAddressPort { port.to_be() } else { 0 };
                    let expected = d[slot_of_hash(slot_hash(source, hashed), 3) as usize];
                    for flags in [SYN, ACK, ACK] {
                        let seen = world.send(&packet(v6, port, flags).bytes());
                        assert_eq!(seen.counted, Counted::In(expected), "{case}");
                        assert_eq!(seen.events, [Reason::Stateless], "{case}");
                    }
                }
                assert_eq!(world.entries(), before);
            }
        }
    }
}

/// A NAT flow is two entries or none: half of one would let the server's replies pass untranslated, or wait in
/// vain for a client.
#[test]
fn a_nat_flow_is_two_entries_or_none() {
    for v6 in [false, true] {
        let mut world = tiny();
        service(&mut world, v6, Pick::Cursor, Forwarding::Dr);
        fill(&mut world, v6);
        replace_method(&mut world, v6, Pick::Cursor, Forwarding::Nat);
        let views = world.views();
        let (mut refused, mut placed) = (0, 0);
        for port in 3000..3200 {
            // One slot is free.
            dress(&world, |slot| {
                if slot == u32::from(port) % SLOTS as u32 {
                    (State::Unconfirmed, -1)
                } else {
                    (State::Established, 100)
                }
            });
            let seen = world.send(&packet(v6, port, SYN).bytes());
            let new: Vec<Value> =
                world.entries().into_iter().filter(|e| e.state() == State::SynReceived as u8).collect();
            match seen.counted {
                Counted::Reason(Reason::TableFull) => {
                    refused += 1;
                    assert_eq!(new, [], "port {port}: refused, and half of it stayed");
                }
                other => {
                    placed += 1;
                    let mut kinds: Vec<u8> = new.iter().map(|e| e.kind() as u8).collect();
                    kinds.sort_unstable();
                    assert_eq!(kinds, [Kind::Flow as u8, Kind::NatReply as u8], "port {port}: {other:?}");
                }
            }
            // Whatever was freed is taken again.
            for slot in 0..SLOTS as u32 {
                let (bucket, way) = (slot / WAYS as u32, slot % WAYS as u32);
                if views.value(bucket, way).load(SeqCst) == 0 {
                    let identity = views.identity(bucket, way).load(SeqCst);
                    let first = views.secrets.first(identity);
                    views
                        .value(bucket, way)
                        .store(Value::flow(Kind::Flow, 0, first, State::Established, 0).0, SeqCst);
                }
            }
        }
        assert!(refused > 0, "one free slot never was too few ({placed} placed): the case tests nothing");
    }
}

/// Both its entries may want the place that is least worth keeping, and the first to get it must not make room for the
/// other.
#[test]
fn a_nat_flow_displaces_two_others_and_not_itself() {
    for v6 in [false, true] {
        let mut world = tiny();
        service(&mut world, v6, Pick::Cursor, Forwarding::Dr);
        fill(&mut world, v6);
        replace_method(&mut world, v6, Pick::Cursor, Forwarding::Nat);
        for port in 3000..3200 {
            dress(&world, |slot| (State::TimeWait, 100 + (slot as i16 + port as i16) % 7));
            let seen = world.send(&packet(v6, port, SYN).bytes());
            assert!(matches!(seen.counted, Counted::In(_)), "port {port}: {seen:?}");
            assert_eq!(seen.events, [Reason::FlowNew, Reason::EvictedClosing, Reason::EvictedClosing]);
            let mut new = world.entries();
            new.retain(|entry| entry.state() == State::SynReceived as u8);
            let mut kinds: Vec<u8> = new.iter().map(|entry| entry.kind() as u8).collect();
            kinds.sort_unstable();
            assert_eq!(kinds, [Kind::Flow as u8, Kind::NatReply as u8], "port {port}");
        }
    }
}

/// Two choices of four ways, the first preferred: on the average 4 of these 1,024 flows find both their buckets
/// full.
#[test]
fn half_a_table_fills_with_hardly_a_flow_displaced() {
    let mut world = World::of(Sizes { connections: 1792, ..sizes() });
    service(&mut world, false, Pick::Cursor, Forwarding::Dr);
    let mut displaced = 0;
    for n in 0..1024u16 {
        let address: IpAddr = [198, 51, 100, (n % 250) as u8].into();
        let packet = Packet::tcp((address, 1000 + n / 250), (vip(false), VIP_PORT), SYN);
        displaced += world.send(&packet.bytes()).events.len() - 1;
    }
    assert!(displaced <= 20, "{displaced} of 1024 flows took another's place in 2048 slots");
    assert_eq!(world.connections().len(), 1024 - displaced);
}

#[test]
fn counters_are_told_by_their_names() {
    let mut world = tiny();
    world.ends("ARP", &packet(false, 1, SYN), Reason::NotOurs);
    service(&mut world, false, Pick::Cursor, Forwarding::Dr);
    world.ends("no flow", &packet(false, 1, ACK), Reason::UnknownFlowReset);
    world.goes_to("a flow", &packet(false, 1, SYN));
    let expected = [("flow_new", 1), ("not_ours", 1), ("unknown_flow_reset", 1)];
    assert_eq!(world.reasons().into_iter().collect::<Vec<_>>(), expected);
}
