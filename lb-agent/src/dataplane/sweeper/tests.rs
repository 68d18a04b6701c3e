//! The walk over tables in ordinary memory.

use super::*;
use crate::dataplane::Sizes;
use lb_common::state::State;
use lb_common::{hash::Secrets, lease::lease_index};

fn views() -> Views {
    let sizes = Sizes {
        connections: 14,
        connections_v6: 0,
        destinations: 128,
        next_hops: 64,
        pool_addresses: 2,
        ..Sizes::default()
    };
    Views::in_memory(&sizes, Secrets::from_random([3; 11]), sizes.config(250, 1)).unwrap()
}

fn ages() -> Ages {
    Ages::new(16)
}

fn put(views: &Views, slot: u32, value: Value) {
    views.value(slot / 4, slot % 4).store(value.0, Relaxed);
}

#[test]
fn expired_entries_are_freed_and_live_ones_counted() {
    let views = views();
    let now = 1000;
    put(&views, 0, Value::flow(Kind::Flow, 5, 0, State::Established, now + 1));
    put(&views, 1, Value::flow(Kind::Flow, 5, 0, State::TimeWait, now + 9));
    put(&views, 2, Value::flow(Kind::Flow, 6, 0, State::Established, now));
    put(&views, 3, Value::flow(Kind::Flow, 0, 0, State::Udp, now - 1));
    put(&views, 4, Value::BUSY);
    let mut scan = Scan::empty(&views);
    scan.walk(&views, now, 0, &mut ages());
    assert_eq!((scan.entries, scan.expired, scan.capacity), (2, 2, 16));
    assert_eq!((scan.count(5).active, scan.count(5).inactive), (1, 1));
    assert_eq!(scan.count(5).states[State::TimeWait as usize], 1);
    assert_eq!(scan.count(6), Count::default());
    assert!(scan.saw_destination(5) && !scan.saw_destination(6) && !scan.saw_destination(0));
    assert_eq!(views.value(0, 2).load(Relaxed), 0, "the expired slot is empty");
    assert_eq!(views.value(1, 0).load(Relaxed), Value::BUSY.0, "a slot being written is left alone");
    scan.walk(&views, now, 0, &mut ages());
    assert_eq!((scan.entries, scan.expired), (2, 0), "counts do not add up over walks");
}

#[test]
fn a_nat_reply_names_its_destination_and_hop_but_is_not_counted() {
    let views = views();
    put(&views, 0, Value::nat_reply(7, 9, 0, State::Established, 10));
    let mut scan = Scan::empty(&views);
    scan.walk(&views, 0, 0, &mut ages());
    assert!(scan.saw_destination(7) && scan.saw_hop(9) && !scan.saw_hop(8));
    assert_eq!((scan.count(7), scan.entries), (Count::default(), 1));
}

#[test]
fn a_fullnat_flow_is_counted_at_the_destination_of_its_lease() {
    let views = views();
    let lease = lease_index(1, 40_000);
    put(&views, 0, Value::full_nat(lease, 0, State::Established, 10));
    put(&views, 1, Value::full_nat(lease_index(0, 1), 0, State::Established, 10));
    views.leases.word(lease, 8).store(Value::flow(Kind::FullNat, 12, 0, State::Established, 10).0, Relaxed);
    views.leases.half(lease, HOP).store(33, Relaxed);
    let old = lease_index(0, 2000);
    views.leases.word(old, 8).store(Value::flow(Kind::FullNat, 13, 0, State::Established, 0).0, Relaxed);
    let mut scan = Scan::empty(&views);
    scan.walk(&views, 5, 0, &mut ages());
    assert_eq!((scan.count(12).active, scan.without_lease), (1, 1));
    assert!(scan.saw_destination(12) && scan.saw_hop(33));
    assert!(!scan.saw_destination(13), "its lease expired");
    assert_eq!((scan.leases.as_slice(), scan.expired_leases), ([0, 1].as_slice(), 1));
    assert_eq!(views.lease_word(old), Value::EMPTY);
}

fn destination(views: &Views, index: u32, load: u32, flags: u32) {
    let record = Destination {
        word: Destination::make_word(0, 1500, flags | flags::VALID),
        load,
        ..Destination::default()
    };
    views.destinations.update(index, &record, 0);
}

fn counts(views: &Views, load: u32) -> (u32, u32) {
    Load::counts_of(views.counts(load).load(Relaxed))
}

#[test]
fn an_expired_flow_is_taken_off_its_servers_count_and_relieves_it() {
    let views = views();
    destination(&views, 5, 3, flags::COUNTED);
    destination(&views, 6, 6, 0);
    views.loads.update(
        3,
        &Load { counts: 2 + (1 << 32), weight: 1, overloaded: 1, upper: 3, lower: 2, reserved: 0 },
        0,
    );
    put(&views, 0, Value::flow(Kind::Flow, 5, 0, State::Established, 9));
    put(&views, 1, Value::flow(Kind::Flow, 5, 0, State::Established, 3));
    put(&views, 2, Value::flow(Kind::Flow, 5, 0, State::TimeWait, 4));
    put(&views, 3, Value::flow(Kind::Flow, 6, 0, State::Established, 2));
    let overloaded = || views.loads.half(3, offset_of!(Load, overloaded)).load(Relaxed);
    let mut scan = Scan::empty(&views);
    scan.walk(&views, 3, 0, &mut ages());
    assert_eq!((counts(&views, 3), overloaded()), ((1, 1), 1), "two of at most three, two is not below two");
    scan.walk(&views, 4, 0, &mut ages());
    assert_eq!((counts(&views, 3), overloaded()), ((1, 0), 0));
    scan.walk(&views, 9, 0, &mut ages());
    assert_eq!(counts(&views, 3), (0, 0));
    assert_eq!(counts(&views, 6), (0, 0), "a server that is not counted goes below nothing");
    assert_eq!(scan.healed, 0);
}

#[test]
fn counts_that_drifted_are_put_right_by_the_second_walk_that_sees_the_same() {
    let views = views();
    destination(&views, 5, 5, flags::COUNTED);
    destination(&views, 6, 5, flags::COUNTED | flags::UDP_INACTIVE);
    put(&views, 0, Value::flow(Kind::Flow, 5, 0, State::Established, 9));
    put(&views, 1, Value::flow(Kind::Flow, 6, 0, State::Udp, 9));
    put(&views, 2, Value::flow(Kind::Template, 6, 0, State::Established, 9));
    views.counts(5).store(7, Relaxed);
    let mut scan = Scan::empty(&views);
    scan.walk(&views, 0, 0, &mut ages());
    assert_eq!((counts(&views, 5), scan.healed), ((7, 0), 0));
    assert_eq!(scan.templates[6], 1);
    // Another difference: somebody was counting.
    views.counts(5).store(6, Relaxed);
    scan.walk(&views, 0, 0, &mut ages());
    assert_eq!((counts(&views, 5), scan.healed), ((6, 0), 0));
    scan.walk(&views, 0, 0, &mut ages());
    assert_eq!((counts(&views, 5), scan.healed), ((1, 1), 1));
    scan.walk(&views, 0, 0, &mut ages());
    assert_eq!((counts(&views, 5), scan.healed), ((1, 1), 0));
}

#[test]
fn a_fullnat_flow_is_taken_off_when_its_lease_ends() {
    let views = views();
    destination(&views, 12, 12, flags::COUNTED);
    let lease = lease_index(1, 40_000);
    put(&views, 0, Value::full_nat(lease, 0, State::Established, 10));
    views.leases.word(lease, 8).store(Value::flow(Kind::FullNat, 12, 0, State::Established, 10).0, Relaxed);
    views.counts(12).store(1, Relaxed);
    let mut scan = Scan::empty(&views);
    scan.walk(&views, 5, 0, &mut ages());
    scan.walk(&views, 5, 0, &mut ages());
    assert_eq!((counts(&views, 12), scan.healed), ((1, 0), 0), "counted once, by its lease");
    scan.walk(&views, 10, 0, &mut ages());
    assert_eq!((counts(&views, 12), scan.expired, scan.expired_leases), ((0, 0), 1, 1));
}

#[test]
fn a_sweep_that_was_asked_for_began_after_the_question() {
    let views = Arc::new(views());
    let board = Arc::new(Board::default());
    let hour = Duration::from_secs(3600);
    let sweeper =
        Sweeper::spawn(views.clone(), Arc::new(Clock::fixed(4096, 250)), board.clone(), hour).unwrap();
    let first = board.sweep_now(Duration::from_secs(10)).expect("a walk without waiting an hour");
    let asked = Instant::now();
    let second = board.sweep_now(Duration::from_secs(10)).expect("and another");
    assert!(second.began >= asked && second.number > first.number);
    drop(sweeper);
    assert!(board.sweep_now(Duration::from_millis(20)).is_none(), "nobody walks any more");
}

#[test]
fn the_oldest_flow_of_a_destination_is_known_and_when_the_last_would_expire() {
    let views = views();
    let mut ages = ages();
    let identify = |slot: u32, identity: u64| views.identity(slot / 4, slot % 4).store(identity, Relaxed);
    let mut scan = Scan::empty(&views);
    let mut walk = |second| {
        scan.walk(&views, 100, second, &mut ages);
        (scan.oldest(5), scan.oldest(6), scan.silent_in(5))
    };
    identify(0, 1);
    put(&views, 0, Value::flow(Kind::Flow, 5, 0, State::Established, 110));
    let age = |seconds, at_least| Some(Age { seconds, at_least });
    assert_eq!(walk(0), (age(0, true), None, 10), "on the first walk nobody knows how old it is");
    identify(1, 2);
    put(&views, 1, Value::flow(Kind::Flow, 5, 0, State::Established, 130));
    assert_eq!(walk(7), (age(7, true), None, 30));
    put(&views, 0, Value::EMPTY);
    assert_eq!(walk(9), (age(2, false), None, 30), "the older one has gone");
    identify(1, 3);
    put(&views, 1, Value::flow(Kind::Flow, 6, 0, State::Udp, 101));
    assert_eq!(walk(10), (None, age(0, false), 0));
    // A template and a reply are no flows.
    put(&views, 1, Value::flow(Kind::Template, 6, 0, State::Unconfirmed, 200));
    put(&views, 2, Value::nat_reply(5, 1, 0, State::Established, 200));
    assert_eq!(walk(11), (None, None, 0));
    // A FULLNAT flow is found by its lease.
    let lease = lease_index(0, 40_000);
    views.leases.word(lease, 8).store(Value::flow(Kind::FullNat, 5, 0, State::Established, 120).0, Relaxed);
    identify(3, 4);
    put(&views, 3, Value::full_nat(lease, 0, State::Established, 120));
    assert_eq!(walk(12), (age(0, false), None, 20));
}
