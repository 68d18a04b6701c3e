//! The transition table: every state and input, what is done in which order, and when the next timer is due.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::model::{Gratuitous, Preempt, TrackEffect, VirtualAddress, VrrpVersion};
use crate::vrrp::events::{Mismatch, Order, Why};
use crate::vrrp::tracking::Change;
use crate::vrrp::wire::{Difference, Field, Outgoing, Refusal, Refused};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const SECOND: Duration = ms(1000);
/// 3 × 1 s + 156/256 s, priority 100.
const DOWN: Duration = Duration::from_micros(3_609_375);
const SKEW: Duration = Duration::from_micros(609_375);

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn config(priority: u8) -> Config {
    Config {
        version: VrrpVersion::V3,
        priority,
        interval: SECOND,
        preempt: Preempt::default(),
        gratuitous: Gratuitous { count: 5, delay: ms(5000), repeat: 3, refresh: Some(ms(60_000)) },
        addresses: vec![VirtualAddress { address: "10.0.0.100/24".parse().unwrap(), interface: None }],
        grouped: false,
    }
}

/// An instance and its clock.
struct Case {
    start: Instant,
    now: Instant,
    instance: Instance,
}

impl Case {
    /// In Initialize, ready, with address 10.0.0.5.
    fn new(config: Config) -> Case {
        let start = Instant::now();
        let mut case = Case { start, now: start, instance: Instance::new(config) };
        assert_eq!(case.give(Input::PrimaryAddress(Some(ip(5)))), []);
        assert_eq!(case.give(Input::Ready(true)), []);
        case
    }

    fn backup(config: Config) -> Case {
        let mut case = Case::new(config);
        case.give(Input::Start { lease: None });
        assert_eq!(case.instance.role(), Role::Backup);
        case
    }

    fn master(config: Config) -> Case {
        let mut case = Case::backup(config);
        case.fire();
        assert_eq!(case.instance.role(), Role::Master);
        case
    }

    fn give(&mut self, input: Input) -> Vec<Action> {
        self.instance.handle(self.now, input)
    }

    fn wait(&mut self, time: Duration) -> &mut Case {
        self.now += time;
        self
    }

    /// Time goes by until the timer is due.
    fn fire(&mut self) -> Vec<Action> {
        self.now = self.instance.next_deadline().expect("a timer").max(self.now);
        self.give(Input::Timer)
    }

    fn due_in(&self) -> Duration {
        self.instance.next_deadline().expect("a timer").duration_since(self.now)
    }

    fn hear(&mut self, from: u8, priority: u8) -> Vec<Action> {
        self.hear_every(from, priority, SECOND)
    }

    fn hear_every(&mut self, from: u8, priority: u8, interval: Duration) -> Vec<Action> {
        self.give(Input::Advert(Heard { source: ip(from), priority, interval, differences: vec![] }))
    }

    fn track(&mut self, what: &str, effect: TrackEffect, up: bool) -> Vec<Action> {
        self.give(Input::Track(Change::of(what, effect, up)))
    }

    fn advert(&self, priority: u8) -> Action {
        Action::SendAdvert(Outgoing { priority, interval: self.instance.config().interval })
    }

    /// The lease that an advertisement sent now gives.
    fn lease(&self) -> Action {
        let interval = self.instance.config().interval;
        Action::SetLease { role: Role::Master, until: Some(self.now + interval * 3) }
    }
}

fn no_lease(role: Role) -> Action {
    Action::SetLease { role, until: None }
}

fn changed(from: Role, to: Role, why: Why) -> Action {
    Action::RoleChanged { from, to, why }
}

use Role::{Backup as B, Fault as F, Initialize as I, Master as M};

// Start and promotion.

#[test]
fn a_start_is_a_backup_that_clears_what_an_earlier_run_left() {
    let mut case = Case::new(config(100));
    assert_eq!(case.instance.next_deadline(), None);
    let actions = case.give(Input::Start { lease: None });
    assert_eq!(actions, [no_lease(B), Action::ReleaseAddresses, changed(I, B, Why::Started)]);
    assert_eq!(case.due_in(), DOWN);
    assert_eq!(case.give(Input::Start { lease: None }), [], "a second start is none");
}

#[test]
fn silence_makes_a_master_and_the_advertisement_comes_first() {
    let mut case = Case::backup(config(100));
    let actions = case.fire();
    assert_eq!(case.now - case.start, DOWN);
    assert_eq!(
        actions,
        [
            case.advert(100),
            case.lease(),
            Action::TakeAddresses,
            Action::Announce { count: 5 },
            changed(B, M, Why::Silence(DOWN)),
        ]
    );
    assert_eq!(case.due_in(), SECOND);
}

#[test]
fn an_owner_does_not_wait() {
    let mut case = Case::new(config(255));
    let actions = case.give(Input::Start { lease: None });
    assert_eq!(actions.first(), Some(&case.advert(255)));
    assert_eq!(actions.last(), Some(&changed(I, M, Why::Owner)));
}

#[test]
fn a_restart_within_the_lease_goes_on_and_tells_nobody() {
    let mut case = Case::new(config(100));
    let until = case.now + ms(1);
    let actions = case.give(Input::Start { lease: Some(until) });
    let advert = case.advert(100);
    assert_eq!(actions, [advert, case.lease(), Action::TakeAddresses, changed(I, M, Why::Resumed)]);
    // One that came too late starts like any other.
    let mut late = Case::new(config(100));
    let until = late.now;
    late.give(Input::Start { lease: Some(until) });
    assert_eq!(late.instance.role(), B);
}

#[test]
fn nothing_starts_without_an_address_to_send_from() {
    let mut case = Case::new(config(255));
    case.give(Input::PrimaryAddress(None));
    let actions = case.give(Input::Start { lease: Some(case.now + SECOND) });
    assert_eq!(actions[..2], [no_lease(F), Action::ReleaseAddresses]);
    assert_eq!(case.instance.role(), F);
    assert_eq!(case.give(Input::PrimaryAddress(Some(ip(5)))).last(), Some(&changed(F, M, Why::Owner)));
}

// Backup.

#[test]
fn a_backup_listens_to_whoever_ranks_as_high() {
    for (priority, resets) in [(101, true), (100, true), (99, false)] {
        let mut case = Case::backup(config(100));
        case.wait(SECOND);
        assert_eq!(case.hear(9, priority), []);
        let left = if resets { DOWN } else { DOWN - SECOND };
        assert_eq!(case.due_in(), left, "priority {priority}");
    }
}

#[test]
fn a_backup_that_does_not_preempt_listens_to_any_master() {
    for (preempt, ready) in [(Preempt::Never, true), (Preempt::default(), false)] {
        let mut case = Case::new(Config { preempt, ..config(100) });
        case.give(Input::Ready(ready));
        case.give(Input::Start { lease: None });
        case.wait(SECOND).hear(9, 1);
        // Not ready: one interval more, so that whoever is goes first.
        assert_eq!(case.due_in(), if ready { DOWN } else { DOWN + SECOND });
    }
}

#[test]
fn a_goodbye_leaves_a_backup_its_skew() {
    let mut case = Case::backup(config(100));
    case.hear(9, 200);
    case.wait(ms(300));
    assert_eq!(case.hear(9, 0), []);
    assert_eq!(case.due_in(), SKEW);
    let actions = case.fire();
    assert_eq!(actions.last(), Some(&changed(B, M, Why::MasterLeft(ip(9)))));
}

#[test]
fn version_3_adopts_the_masters_interval_and_version_2_does_not() {
    for (version, interval, down, skew) in [
        (VrrpVersion::V3, ms(3000), ms(3000) * 3 + ms(3000) * 156 / 256, ms(3000) * 156 / 256),
        (VrrpVersion::V3, ms(100), ms(100) * 3 + ms(100) * 156 / 256, ms(100) * 156 / 256),
        (VrrpVersion::V2, SECOND, DOWN, SKEW),
    ] {
        let mut case = Case::backup(Config { version, ..config(100) });
        case.hear_every(9, 200, interval);
        assert_eq!(case.due_in(), down, "{version:?}");
        case.hear_every(9, 0, interval);
        assert_eq!(case.due_in(), skew, "{version:?}");
        case.fire();
        assert_eq!(case.due_in(), SECOND, "as master it has its own interval");
    }
}

#[test]
fn a_joiner_of_higher_priority_waits_as_the_rfc_has_it() {
    let mut case = Case::backup(config(150));
    for _ in 0..3 {
        case.wait(SECOND).hear(9, 100);
    }
    let actions = case.fire();
    assert_eq!(case.now - case.start, ms(3000) + SECOND * 106 / 256);
    assert_eq!(actions.last(), Some(&changed(B, M, Why::Preempted { master: ip(9), priority: 100 })));
}

#[test]
fn a_preempt_delay_begins_with_the_first_lower_advertisement() {
    let mut case = Case::backup(Config { preempt: Preempt::After(ms(10_000)), ..config(150) });
    case.wait(SECOND).hear(9, 100);
    for _ in 0..9 {
        case.wait(SECOND).hear(9, 100);
        assert_eq!(case.give(Input::Timer), []);
        assert_eq!(case.instance.role(), B);
    }
    assert_eq!(case.due_in(), SECOND);
    let actions = case.fire();
    assert_eq!(actions.last(), Some(&changed(B, M, Why::Preempted { master: ip(9), priority: 100 })));

    // A master that ranks higher in between ends the waiting, and silence never waits for the delay.
    let mut case = Case::backup(Config { preempt: Preempt::After(ms(2000)), ..config(150) });
    case.hear(9, 100);
    case.wait(SECOND).hear(8, 200);
    assert_eq!(case.due_in(), ms(3000) + SECOND * 106 / 256);
}

#[test]
fn a_master_that_lowers_its_priority_is_relieved_after_our_skew() {
    let mut case = Case::backup(config(100));
    case.hear(9, 200);
    case.wait(SECOND).hear(9, 50);
    assert_eq!(case.due_in(), SKEW);
    // Another's lower advertisement means nothing of the kind.
    let mut case = Case::backup(config(100));
    case.hear(9, 200);
    case.wait(SECOND).hear(8, 50);
    assert_eq!(case.due_in(), DOWN - SECOND);
}

#[test]
fn our_own_rise_is_a_reason_to_take_over_soon() {
    let rise = |case: &mut Case, what: &str| match what {
        "apply" => case.give(Input::Configure(config(150))),
        "weight" => case.track("script x", TrackEffect::Weight(50), true),
        "ready" => case.give(Input::Ready(true)),
        "preempt" => case.give(Input::Configure(config(100))),
        _ => unreachable!(),
    };
    for (what, before, master, ready, soon) in [
        ("apply", config(100), 120, true, SECOND * 106 / 256),
        ("weight", config(100), 120, true, SECOND * 106 / 256),
        ("ready", config(100), 90, false, SKEW),
        ("preempt", Config { preempt: Preempt::Never, ..config(100) }, 90, true, SKEW),
    ] {
        let mut case = Case::new(before);
        case.give(Input::Ready(ready));
        case.give(Input::Start { lease: None });
        case.hear(9, master);
        assert!(case.due_in() > ms(3000), "{what}");
        assert_eq!(rise(&mut case, what), [], "{what}");
        assert_eq!(case.due_in(), soon, "{what}");
    }
}

#[test]
fn a_backup_whose_timer_is_late_listens_once_more() {
    let mut case = Case::backup(config(100));
    case.hear(9, 200);
    case.wait(DOWN + ms(501));
    assert_eq!(case.give(Input::Timer), [Action::Count("late_timer")]);
    assert_eq!(case.due_in(), SECOND + SKEW);
    // The master is there.
    let mut there = Case { start: case.start, now: case.now, instance: case.instance.clone() };
    there.wait(ms(500)).hear(9, 200);
    assert_eq!(there.due_in(), DOWN);
    // Or it is not.
    assert_eq!(case.fire().last(), Some(&changed(B, M, Why::Silence(case.now - case.start))));
    // A little late is not late.
    let mut case = Case::backup(config(100));
    case.wait(DOWN + ms(500));
    case.give(Input::Timer);
    assert_eq!(case.instance.role(), M);
}

// Master.

#[test]
fn a_master_keeps_its_beat_announces_twice_and_refreshes() {
    let mut case = Case::master(config(100));
    let promoted = case.now;
    let mut adverts = Vec::new();
    let mut bursts = Vec::new();
    while case.now - promoted < ms(121_500) {
        let before = case.due_in();
        // Always three milliseconds late: lateness must not add up.
        case.wait(before + ms(3));
        for action in case.give(Input::Timer) {
            match action {
                Action::SendAdvert(Outgoing { priority: 100, .. }) => adverts.push(case.now - promoted),
                Action::SetLease { role: M, until } => assert_eq!(until, Some(case.now + ms(3000))),
                Action::Announce { count } => bursts.push((case.now - promoted, count)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(adverts.len(), 122);
    assert_eq!(adverts[120], ms(121_003));
    assert_eq!(bursts, [(ms(5003), 3), (ms(60_003), 1), (ms(120_003), 1)]);
}

#[test]
fn a_master_yields_to_the_higher_and_among_equals_to_the_higher_address() {
    for (from, priority, yields) in
        [(9, 101, true), (1, 101, true), (9, 100, true), (4, 100, false), (9, 99, false)]
    {
        let mut case = Case::master(config(100));
        case.wait(ms(300));
        let actions = case.hear(from, priority);
        if yields {
            let why = Why::Outranked { master: ip(from), priority };
            assert_eq!(
                actions,
                [case.advert(100), no_lease(B), Action::ReleaseAddresses, changed(M, B, why)],
                "the one advertisement lets the winner know that it has to announce itself again"
            );
            assert_eq!(case.due_in(), DOWN);
        } else {
            let count = Action::Count("lower_priority_master");
            assert_eq!(actions, [case.advert(100), case.lease(), count], "announced just now");
            assert_eq!(case.due_in(), ms(700), "and once more, a second after the last burst");
        }
    }
}

#[test]
fn equal_addresses_are_compared_as_numbers() {
    let mut case = Case::master(config(100));
    // 10.0.0.10 is above 10.0.0.5, though "10" < "5".
    case.hear(10, 100);
    assert_eq!(case.instance.role(), B);
}

#[test]
fn the_winner_of_a_split_brain_announces_itself_again() {
    let mut case = Case::master(config(100));
    case.wait(ms(2000));
    let actions = case.hear(9, 50);
    let expected = [
        case.advert(100),
        case.lease(),
        Action::Announce { count: 3 },
        Action::Count("lower_priority_master"),
    ];
    assert_eq!(actions, expected);
    // A second one at once is answered, but floods nobody: its announcement comes a second later.
    case.wait(ms(10));
    assert!(!case.hear(9, 50).contains(&Action::Announce { count: 3 }));
    let mut bursts = Vec::new();
    let heard = case.now;
    while case.now - heard < ms(1500) {
        if case.fire().contains(&Action::Announce { count: 3 }) {
            bursts.push(case.now - heard);
        }
    }
    assert_eq!(bursts, [ms(990)]);
}

#[test]
fn a_master_answers_a_goodbye() {
    let mut case = Case::master(config(100));
    case.wait(ms(2000));
    let actions = case.hear(9, 0);
    assert_eq!(actions, [case.advert(100), case.lease(), Action::Announce { count: 3 }]);
    assert_eq!(case.due_in(), SECOND);
}

#[test]
fn two_owners_are_counted_and_decided_by_address() {
    let mut case = Case::new(config(255));
    case.give(Input::Start { lease: None });
    assert!(case.hear(4, 255).contains(&Action::Count("second_owner")));
    assert_eq!(case.instance.role(), M);
    case.hear(9, 255);
    assert_eq!(case.instance.role(), B);
}

#[test]
fn what_we_hear_of_ourselves_is_counted_and_nothing_else() {
    let mut case = Case::master(config(100));
    assert_eq!(case.hear(5, 200), [Action::Count("own_address")]);
    assert_eq!(case.instance.role(), M);
}

#[test]
fn a_stalled_master_listens_before_it_speaks() {
    let mut case = Case::master(config(100));
    case.wait(ms(3000));
    let actions = case.give(Input::Timer);
    assert_eq!(
        actions,
        [
            no_lease(B),
            Action::ReleaseAddresses,
            changed(M, B, Why::Stalled(ms(3000))),
            Action::Count("stalled"),
        ]
    );
    assert_eq!(case.due_in(), SECOND + SKEW);
    // Nobody is there: it goes on.
    assert_eq!(case.fire().first(), Some(&case.advert(100)));
    // Somebody is, though of lower priority: what it says while we are stale is believed.
    let mut case = Case::master(config(100));
    case.wait(ms(3001));
    let actions = case.hear(9, 50);
    assert_eq!(actions.first(), Some(&no_lease(B)), "no advertisement of ours");
    assert_eq!(case.instance.role(), B);
    // One millisecond before its word ends it may speak.
    let mut case = Case::master(config(100));
    case.wait(ms(2999));
    assert_eq!(case.give(Input::Timer).first(), Some(&case.advert(100)));
}

// Faults and priorities.

#[test]
fn a_fault_says_goodbye_and_ends_as_backup() {
    let mut case = Case::master(config(100));
    let actions = case.track("interface eth1", TrackEffect::Fault, false);
    let why = Why::Fault("interface eth1".into());
    assert_eq!(actions, [case.advert(0), no_lease(F), Action::ReleaseAddresses, changed(M, F, why)]);
    assert_eq!(case.instance.next_deadline(), None);
    assert_eq!(case.hear(9, 100), [], "in fault nothing is decided");
    assert_eq!(case.track("script x", TrackEffect::Fault, false), [], "a second fault changes nothing");
    assert_eq!(case.track("interface eth1", TrackEffect::Fault, true), []);
    let actions = case.track("script x", TrackEffect::Fault, true);
    assert_eq!(actions, [no_lease(B), Action::ReleaseAddresses, changed(F, B, Why::Recovered)]);
    assert_eq!(case.due_in(), DOWN);
    // A backup in fault has nothing to say goodbye to.
    let actions = case.track("script x", TrackEffect::Fault, false);
    assert_eq!(actions[0], no_lease(F));
}

#[test]
fn a_lower_priority_is_said_at_once_and_hands_over_to_a_peer_that_ranks_higher() {
    // Nobody known: the new priority is said, whoever ranks higher takes over by itself.
    let mut case = Case::master(config(100));
    case.wait(ms(100));
    let actions = case.track("script x", TrackEffect::Weight(-50), false);
    assert_eq!(actions, [case.advert(50), case.lease()]);
    // A peer heard with 80 before.
    let mut case = Case::backup(config(100));
    case.hear(9, 80);
    case.fire();
    let actions = case.give(Input::Configure(config(90)));
    assert_eq!(actions, [case.advert(90), case.lease()], "80 is not above 90");
    let actions = case.give(Input::Configure(config(70)));
    assert_eq!(actions[..3], [case.advert(70), case.lease(), case.advert(0)]);
    assert_eq!(case.instance.role(), M, "it serves until the other does");
    let actions = case.hear(9, 80);
    let why = Why::HandedOver { to: ip(9) };
    assert_eq!(actions, [no_lease(B), Action::ReleaseAddresses, changed(M, B, why)]);
}

// Handing over, stopping, pausing.

#[test]
fn a_hand_over_serves_until_the_other_does_and_is_not_taken_back() {
    let mut case = Case::master(config(150));
    let actions = case.give(Input::Handover);
    assert_eq!(actions, [case.advert(0), case.lease()]);
    assert_eq!(case.give(Input::Handover), [], "asked twice");
    assert_eq!(case.fire(), [case.lease()], "nothing is sent meanwhile, but it serves on");
    case.wait(ms(610));
    assert_eq!(case.hear(9, 0), [], "a goodbye is no take-over");
    let actions = case.hear(9, 100);
    let why = Why::HandedOver { to: ip(9) };
    assert_eq!(actions, [no_lease(B), Action::ReleaseAddresses, changed(M, B, why)]);
    for _ in 0..10 {
        case.wait(SECOND).hear(9, 100);
        assert_eq!(case.due_in(), ms(3000) + SECOND * 106 / 256, "priority 150 does not preempt now");
    }
    assert!(case.instance.has_yielded());
    // When the other dies, it is.
    case.fire();
    assert_eq!(case.instance.role(), M);
    assert!(!case.instance.has_yielded());
}

#[test]
fn a_hand_over_that_nobody_takes_ends_where_it_began() {
    let mut case = Case::master(config(150));
    case.give(Input::Handover);
    case.fire();
    case.fire();
    let actions = case.fire();
    assert_eq!(actions, [case.advert(150), case.lease(), Action::Stayed { after: ms(2500) }]);
    assert_eq!(case.due_in(), SECOND);
    let mut case = Case::backup(config(150));
    assert_eq!(case.give(Input::Handover), [], "a backup has nothing to hand over");
}

#[test]
fn a_hand_over_during_which_the_master_stalls_ends_as_backup() {
    let mut case = Case::master(config(150));
    case.give(Input::Handover);
    case.wait(ms(3000));
    let actions = case.give(Input::Timer);
    assert_eq!(actions[2], changed(M, B, Why::Stalled(ms(3000))));
}

#[test]
fn a_new_priority_ends_what_was_yielded() {
    let mut case = Case::master(config(150));
    case.give(Input::Handover);
    case.hear(9, 100);
    case.give(Input::Configure(config(160)));
    assert_eq!(case.due_in(), SECOND * 96 / 256);
}

#[test]
fn a_stop_says_goodbye_and_lets_go() {
    for (role, mut case) in [(M, Case::master(config(100))), (B, Case::backup(config(100)))] {
        let goodbye = (role == M).then(|| case.advert(0));
        let mut expected: Vec<Action> = goodbye.into_iter().collect();
        expected.extend([no_lease(I), Action::ReleaseAddresses, changed(role, I, Why::Stopped)]);
        assert_eq!(case.give(Input::Stop), expected);
        assert_eq!(case.instance.next_deadline(), None);
        assert_eq!(case.give(Input::Stop), []);
        assert_eq!(case.give(Input::Timer), []);
    }
}

#[test]
fn a_pause_is_announced_and_changes_nothing_else() {
    let mut case = Case::master(Config { interval: ms(30), ..config(100) });
    let actions = case.give(Input::Suspend { pause: ms(3000) });
    let until = Some(case.now + ms(3000));
    let advert = Action::SendAdvert(Outgoing { priority: 100, interval: SECOND });
    let lease = Action::SetLease { role: M, until };
    assert_eq!(actions, [advert.clone(), advert.clone(), advert, lease], "lost once it is not lost");
    assert_eq!(case.instance.role(), I);
    // Version 2 cannot ask for patience; it speaks once more, so that its own lasts as long as it can.
    let mut case = Case::master(Config { version: VrrpVersion::V2, ..config(100) });
    let actions = case.give(Input::Suspend { pause: ms(10_000) });
    assert_eq!(actions, [case.advert(100), case.advert(100), case.advert(100), case.lease()]);
    // A backup just stops.
    let mut case = Case::backup(config(100));
    assert_eq!(case.give(Input::Suspend { pause: SECOND }).len(), 3);
}

// Configuration.

#[test]
fn a_new_interval_is_said_at_once() {
    let mut case = Case::master(config(100));
    case.wait(ms(500));
    let actions = case.give(Input::Configure(Config { interval: ms(100), ..config(100) }));
    assert_eq!(actions, [case.advert(100), case.lease()]);
    assert_eq!(case.due_in(), ms(100));
}

#[test]
fn new_addresses_are_taken_and_announced() {
    let mut case = Case::master(config(100));
    let actions = case.give(Input::Configure(Config { addresses: vec![], ..config(100) }));
    assert_eq!(actions, [Action::TakeAddresses, Action::Announce { count: 5 }]);
    assert_eq!(case.give(Input::Configure(Config { addresses: vec![], ..config(100) })), []);
    let mut case = Case::backup(config(100));
    assert_eq!(case.give(Input::Configure(Config { addresses: vec![], ..config(100) })), []);
}

#[test]
fn a_new_primary_address_is_shown() {
    let mut case = Case::master(config(100));
    let actions = case.give(Input::PrimaryAddress(Some(ip(6))));
    assert_eq!(actions, [case.advert(100), case.lease()]);
    let actions = case.give(Input::PrimaryAddress(None));
    assert_eq!(actions.last(), Some(&changed(M, F, Why::Fault(ADDRESS_FAULT.into()))));
}

// Sync groups.

#[test]
fn a_member_asks_before_it_is_master() {
    let mut case = Case::backup(Config { grouped: true, ..config(100) });
    assert_eq!(case.fire(), []);
    assert_eq!(case.instance.member(), Member { role: B, wants_master: true, ..Member::default() });
    assert_eq!(case.fire(), [], "and goes on wanting");
    assert!(case.instance.member().wants_master);
    case.hear(9, 200);
    assert!(!case.instance.member().wants_master, "a master is there again");
    case.fire();
    let actions = case.give(Input::Group(Order::Promote));
    assert_eq!(actions.last(), Some(&changed(B, M, Why::Group)));
    assert_eq!(case.give(Input::Group(Order::Promote)), []);
}

#[test]
fn a_member_whose_preempt_delay_is_over_goes_on_wanting() {
    let mut case = Case::backup(Config { grouped: true, preempt: Preempt::After(ms(2000)), ..config(150) });
    case.hear(9, 100);
    case.wait(SECOND).hear(9, 100);
    assert_eq!(case.fire(), []);
    assert!(case.instance.member().wants_master);
    case.hear(9, 100);
    assert!(case.instance.member().wants_master, "the lower master still speaks");
    case.hear(9, 200);
    assert!(!case.instance.member().wants_master, "a higher one is another matter");
}

#[test]
fn a_late_timer_listens_again_though_a_preempt_delay_is_over() {
    let mut case = Case::backup(Config { preempt: Preempt::After(ms(2000)), ..config(150) });
    case.hear(9, 100);
    case.wait(ms(60_000));
    assert_eq!(case.give(Input::Timer), [Action::Count("late_timer")]);
    assert!(case.due_in() > SECOND);
}

#[test]
fn a_member_goes_with_its_group() {
    let mut case = Case::master(config(100));
    let actions = case.give(Input::Group(Order::Demote));
    assert_eq!(actions[0], case.advert(0));
    assert_eq!(case.instance.role(), M, "until the other side has it");
    case.fire();
    case.fire();
    let actions = case.fire();
    assert_eq!(actions.last(), Some(&changed(M, B, Why::Group)), "or all the same");

    let mut case = Case::master(config(100));
    let actions = case.give(Input::Group(Order::Fault(true)));
    assert_eq!(actions.last(), Some(&changed(M, F, Why::Fault("sync group".into()))));
    assert!(!case.instance.member().fault, "not a fault of its own");
    case.give(Input::Group(Order::Fault(false)));
    assert_eq!(case.instance.role(), B);
}

// Peers that differ.

#[test]
fn a_mismatch_is_said_once_and_ends_when_it_does() {
    let difference =
        |theirs: &str| Difference { field: Field::Interval, ours: "1s".into(), theirs: theirs.into() };
    let mismatch = |theirs: &str, refused| {
        let (peer, field) = (ip(9), Field::Interval);
        Action::Mismatch(Mismatch { peer, field, ours: "1s".into(), theirs: theirs.into(), refused })
    };
    let heard =
        |differences| Input::Advert(Heard { source: ip(9), priority: 200, interval: SECOND, differences });
    let mut case = Case::backup(config(100));
    assert_eq!(case.give(heard(vec![difference("2s")])), [mismatch("2s", false)]);
    assert_eq!(case.give(heard(vec![difference("2s")])), []);
    assert_eq!(case.give(heard(vec![difference("3s")])), [mismatch("3s", false)]);
    let ended = Action::MismatchEnded { peer: ip(9), field: Field::Interval };
    assert_eq!(case.give(heard(vec![])), std::slice::from_ref(&ended));
    // Refused ones are counted every time.
    let difference = Some(difference("2s"));
    let refused = Input::Refused(Refused { source: ip(9), why: Refusal::Interval, difference });
    let count = Action::Count("other_interval");
    assert_eq!(case.give(refused.clone()), [count.clone(), mismatch("2s", true)]);
    assert_eq!(case.give(refused), [count]);
    assert_eq!(case.instance.peers().mismatches().count(), 1);
    // Who is silent for long is no mismatch any more; the timer sees to that.
    case.fire();
    let mut ends = Vec::new();
    for _ in 0..60 {
        ends.extend(case.fire().into_iter().filter(|action| *action == ended));
    }
    assert_eq!(ends, [ended]);
}

#[test]
fn inputs_that_mean_nothing_in_a_state_do_nothing_there() {
    for order in [Order::Promote, Order::HandOver, Order::Demote] {
        let mut case = Case::new(config(100));
        assert_eq!(case.give(Input::Group(order)), []);
        case.give(Input::Start { lease: None });
        case.track("x", TrackEffect::Fault, false);
        assert_eq!(case.give(Input::Group(order)), []);
    }
    for input in [
        Input::Timer,
        Input::Handover,
        Input::Ready(false),
        Input::Configure(config(101)),
        Input::Track(Change::of("x", TrackEffect::Fault, false)),
        Input::Suspend { pause: SECOND },
    ] {
        let mut case = Case::new(config(100));
        assert_eq!(case.give(input.clone()), [], "{input:?}");
        assert_eq!(case.hear(9, 200), []);
        assert_eq!(case.instance.role(), I);
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn configs() -> impl Strategy<Value = Config> {
        let preempt =
            prop_oneof![Just(Preempt::Never), (0u64..20_000).prop_map(|delay| Preempt::After(ms(delay))),];
        let gratuitous = (0u64..9_000, proptest::option::of(1u64..90)).prop_map(|(delay, refresh)| {
            Gratuitous { count: 5, delay: ms(delay), repeat: 1, refresh: refresh.map(Duration::from_secs) }
        });
        (any::<bool>(), 1u8..=255, 1u64..=255, preempt, gratuitous, any::<bool>()).prop_map(
            |(v2, priority, step, preempt, gratuitous, grouped)| Config {
                version: if v2 { VrrpVersion::V2 } else { VrrpVersion::V3 },
                interval: if v2 { Duration::from_secs(step) } else { ms(step * 10) },
                priority,
                preempt,
                gratuitous,
                grouped,
                ..config(100)
            },
        )
    }

    fn inputs() -> impl Strategy<Value = Input> {
        let heard = (1u8..9, any::<u8>(), 1u64..4095).prop_map(|(from, priority, centiseconds)| {
            let interval = ms(centiseconds * 10);
            Input::Advert(Heard { source: ip(from), priority, interval, differences: vec![] })
        });
        prop_oneof![
            4 => Just(Input::Timer),
            4 => heard,
            1 => Just(Input::Start { lease: None }),
            1 => Just(Input::Stop),
            1 => (0u64..200_000).prop_map(|pause| Input::Suspend { pause: ms(pause) }),
            1 => any::<bool>().prop_map(|up| Input::Track(Change::of("x", TrackEffect::Fault, up))),
            1 => any::<bool>().prop_map(|up| Input::Track(Change::of("y", TrackEffect::Weight(-60), up))),
            1 => any::<bool>().prop_map(Input::Ready),
            1 => configs().prop_map(Input::Configure),
            1 => Just(Input::Handover),
            1 => proptest::sample::select(vec![
                Order::Promote, Order::HandOver, Order::Demote, Order::Fault(true), Order::Fault(false),
            ]).prop_map(Input::Group),
            1 => proptest::option::of(1u8..9).prop_map(|last| Input::PrimaryAddress(last.map(ip))),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: roles change from what they were, only masters have addresses and
        /// a lease, a lease never ends later than a backup's patience with what was said, only what ranks as
        /// master speaks, and the timer never asks for itself at once.
        #[test]
        fn what_an_instance_does_hangs_together(
            config in configs(),
            script in proptest::collection::vec((inputs(), prop_oneof![Just(0u64), 0u64..5_000, 0u64..100_000]), 0..80),
        ) {
            let mut case = Case::new(config);
            let (mut role, mut holds, mut said) = (Role::Initialize, false, None);
            for (input, wait) in script {
                case.wait(ms(wait));
                let timer = input == Input::Timer;
                let before = case.instance.role();
                for action in case.give(input.clone()) {
                    match action {
                        Action::RoleChanged { from, to, .. } => {
                            prop_assert_eq!(from, role);
                            role = to;
                        }
                        Action::TakeAddresses => holds = true,
                        Action::ReleaseAddresses => holds = false,
                        Action::SendAdvert(outgoing) => {
                            let speaks = before == Role::Master || case.instance.role() == Role::Master;
                            prop_assert!(speaks, "{input:?} in {before}");
                            said = Some((case.now, outgoing.interval));
                        }
                        Action::SetLease { role: Role::Master, until } => {
                            let (at, interval) = said.expect("something was said first");
                            let renewed = matches!(
                                case.instance.state(),
                                State::Master(Master { leaving: Some(_), .. })
                            );
                            let from = if renewed { case.now } else { at };
                            let interval = if renewed { case.instance.config().interval } else { interval };
                            prop_assert!(until.is_some_and(|until| until <= from + interval * 3));
                        }
                        Action::SetLease { role, until } => prop_assert!(role != Role::Master && until.is_none()),
                        _ => {}
                    }
                }
                let now = case.instance.role();
                // A pause keeps what the master had, for the one who comes back.
                let paused = matches!(input, Input::Suspend { .. }) && before == Role::Master;
                if paused && now == Role::Initialize {
                    (role, holds) = (Role::Initialize, false);
                }
                prop_assert_eq!(role, now);
                prop_assert_eq!(holds, now == Role::Master);
                if timer && let Some(deadline) = case.instance.next_deadline() {
                    prop_assert!(deadline > case.now, "{:?} is due at once", case.instance.state());
                }
            }
        }
    }
}
