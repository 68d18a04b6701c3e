//! One row per rule, and what no sequence of outcomes may lead to.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::state::tests::outcome;
use super::super::state::{Belief, Order, Outcome};
use super::*;
use crate::manifest::load_text;
use crate::model::health::Timing;

fn service(fields: &str, servers: &[&str]) -> VirtualService {
    let text = format!(
        "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec: {{address: 192.0.2.1, ports: [80], \
         protocol: tcp, forwarding: nat, scheduler: wrr, realServers: [{}]{fields}}}\n",
        servers.join(", ")
    );
    let objects = load_text("m.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
    objects.services().next().unwrap().0.clone()
}

/// Servers 10.0.0.1, 10.0.0.2, … with these weights.
fn weighing(fields: &str, weights: &[u16]) -> VirtualService {
    let server = |(i, weight): (usize, &u16)| format!("{{address: 10.0.0.{}, weight: {weight}}}", i + 1);
    let servers: Vec<String> = weights.iter().enumerate().map(server).collect();
    service(fields, &servers.iter().map(String::as_str).collect::<Vec<_>>())
}

const CHECK: &str = ", healthCheck: {tcp: {}, rise: 1, fall: 1}";

fn up(now: Instant) -> Machine {
    Machine::carried(Timing { rise: 1, fall: 1, ..Timing::default() }, true, now, Vec::new())
}

fn down(now: Instant) -> Machine {
    let mut machine = up(now);
    machine.take(now, outcome(false), now);
    machine
}

fn unknown(now: Instant) -> Machine {
    Machine::new(Timing::default(), false, now)
}

/// One machine per server, as a letter: `u`p, `d`own, `?` unknown; a capital letter is disabled by the operator.
fn machines(states: &str, now: Instant) -> Vec<(Machine, bool)> {
    let machine = |state: char| match state.to_ascii_lowercase() {
        'u' => up(now),
        'd' => down(now),
        _ => unknown(now),
    };
    states.chars().map(|state| (machine(state), state.is_ascii_uppercase())).collect()
}

fn known<'a>(service: &VirtualService, machines: &'a [(Machine, bool)]) -> Vec<Known<'a>> {
    let of = |(server, (machine, disabled)): (&crate::model::RealServer, &'a (Machine, bool))| Known {
        key: service.key_of(server),
        weight: server.weight,
        standby: server.health.standby,
        checks: vec![machine],
        disabled: *disabled,
        override_weight: None,
        probation: None,
    };
    service.real_servers.iter().zip(machines).map(of).collect()
}

fn judge(pool: &mut Pool, now: Instant, service: &VirtualService, states: &str) -> Judgement {
    pool.judge(now, service, &known(service, &machines(states, now)))
}

/// What each server is, one word each, and the sorry server where it stands in.
fn words(judgement: &Judgement) -> String {
    let mut words: Vec<String> =
        judgement.servers.iter().map(|server| format!("{:?}", server.standing).to_lowercase()).collect();
    if judgement.sorry {
        words.push("sorry".into());
    }
    words.join(" ")
}

#[test]
fn who_takes_new_connections() {
    let now = Instant::now();
    let sorry = ", sorryServer: {address: 10.0.0.99}";
    for (fields, states, expected) in [
        ("", "uu?", "in in waiting"),
        ("", "udU", "in failed disabled"),
        ("", "ddd", "failed failed failed"),
        (sorry, "udd", "in failed failed"),
        (sorry, "ddd", "failed failed failed sorry"),
        (sorry, "UUd", "disabled disabled failed sorry"),
        (sorry, "???", "waiting waiting waiting sorry"),
        (", quorum: 2, sorryServer: {address: 10.0.0.99}", "udd", "noquorum failed failed sorry"),
        (", quorum: 2", "udd", "in failed failed"),
        (", panicThreshold: 50%", "udd", "in panic panic"),
        (", panicThreshold: 50%", "uud", "in in failed"),
        (", panicThreshold: 50%", "uDd", "in disabled failed"),
        (", panicThreshold: 50%", "DUd", "disabled disabled panic"),
        (", panicThreshold: 30", "u??", "in waiting waiting"),
        (
            ", panicThreshold: 30, sorryServer: {address: 10.0.0.99}",
            "ddd",
            "noquorum noquorum noquorum sorry",
        ),
    ] {
        let service = weighing(&format!("{CHECK}{fields}"), &[1, 1, 1]);
        assert_eq!(words(&judge(&mut Pool::default(), now, &service, states)), expected, "{fields} {states}");
    }
}

#[test]
fn standbys_take_part_as_far_as_the_quorum_needs_them() {
    let now = Instant::now();
    let servers = [
        "{address: 10.0.0.1}",
        "{address: 10.0.0.2}",
        "{address: 10.0.0.3, standby: 1}",
        "{address: 10.0.0.4, standby: 7}",
    ];
    for (fields, states, expected) in [
        ("", "uuuu", "in in standby standby"),
        ("", "uduu", "in failed standby standby"),
        ("", "dduu", "failed failed in standby"),
        ("", "DUuu", "disabled disabled in standby"),
        ("", "dddu", "failed failed failed in"),
        (", quorum: 2", "uduu", "in failed in standby"),
        (", quorum: 2", "uddu", "in failed failed in"),
        (", quorum: 3", "uuuu", "in in in standby"),
    ] {
        let service = service(&format!("{CHECK}{fields}"), &servers);
        assert_eq!(words(&judge(&mut Pool::default(), now, &service, states)), expected, "{fields} {states}");
    }
}

#[test]
fn the_quorum_is_gained_above_and_lost_below_its_hysteresis() {
    let now = Instant::now();
    let fields = ", quorum: {weight: 3, hysteresis: 1}, sorryServer: {address: 10.0.0.99}";
    let service = weighing(&format!("{CHECK}{fields}"), &[1, 1, 1, 1]);
    let mut pool = Pool::default();
    for (states, holds) in [
        ("uuud", true), // at the beginning the quorum itself counts
        ("uudd", true),
        ("uddd", false),
        ("uuud", false),
        ("uuuu", true),
    ] {
        let judgement = judge(&mut pool, now, &service, states);
        assert_eq!((judgement.quorum, judgement.sorry), (holds, !holds), "{states}");
    }
}

#[test]
fn flows_of_a_failed_server_are_treated_as_the_policy_says() {
    let now = Instant::now();
    for (fields, states, expected) in [
        ("", "d", Flows::Keep),
        (", onServerDown: keep", "d", Flows::Keep),
        (", onServerDown: reset", "d", Flows::Reset),
        (", onServerDown: reschedule", "d", Flows::Move),
        (", onFailure: quiesce", "d", Flows::Stay),
        (", onServerDown: reset", "u", Flows::Stay),
        (", onServerDown: reset", "U", Flows::Keep),
        (", onServerDown: reset", "?", Flows::Stay),
    ] {
        let service = weighing(&format!("{CHECK}{fields}"), &[1]);
        assert_eq!(judge(&mut Pool::default(), now, &service, states).servers[0].flows, expected, "{fields}");
    }
    let mut udp = weighing(CHECK, &[1]);
    udp.protocol = Protocol::Udp;
    assert_eq!(judge(&mut Pool::default(), now, &udp, "d").servers[0].flows, Flows::Move);
}

#[test]
fn of_several_checks_as_many_must_pass_as_are_required() {
    let now = Instant::now();
    for (require, states, expected) in [
        ("all", "uuu", Standing::In),
        ("all", "uu?", Standing::Waiting),
        ("all", "ud?", Standing::Failed),
        ("any", "ddu", Standing::In),
        ("any", "dd?", Standing::Waiting),
        ("any", "ddd", Standing::Failed),
        ("2", "uud", Standing::In),
        ("2", "ud?", Standing::Waiting),
        ("2", "udd", Standing::Failed),
    ] {
        let checks =
            format!(", healthChecks: {{require: {require}, checks: [tcp, icmp, {{tcp: {{}}, port: 81}}]}}");
        let service = weighing(&checks, &[1]);
        let machines = machines(states, now);
        let mut one = known(&service, &machines);
        one[0].checks = machines.iter().map(|(machine, _)| machine).collect();
        let judgement = Pool::default().judge(now, &service, &one);
        assert_eq!(judgement.servers[0].standing, expected, "{require} {states}");
    }
}

#[test]
fn a_weight_given_by_a_probe_or_the_operator_takes_the_place_of_the_manifests() {
    let now = Instant::now();
    let service = weighing(CHECK, &[10]);
    for (given, by_operator, weight) in [
        (None, None, 10_000),
        (Some(Weighing::Absolute(3)), None, 3_000),
        (Some(Weighing::Percent(75)), None, 7_000),
        (Some(Weighing::Percent(1)), None, 1_000),
        (Some(Weighing::Percent(0)), None, 0),
        (Some(Weighing::Absolute(3)), Some(20), 20_000),
        (None, Some(0), 0),
    ] {
        let machines = [(up(now).weighing(given, false), false)];
        let mut known = known(&service, &machines);
        known[0].override_weight = by_operator;
        let judgement = Pool::default().judge(now, &service, &known);
        assert_eq!(judgement.servers[0].weight, weight, "{given:?} {by_operator:?}");
        assert_eq!(judgement.servers[0].standing.takes_new(), weight > 0);
    }
    let machines = [(up(now).weighing(None, true), false)];
    assert_eq!(words(&Pool::default().judge(now, &service, &known(&service, &machines))), "draining");
}

#[test]
fn a_server_that_comes_back_gains_its_weight_over_the_slow_start() {
    let now = Instant::now();
    let service = weighing(&format!("{CHECK}, slowStart: 10s"), &[10, 10]);
    let mut pool = Pool::default();
    let at = |seconds: u64| now + Duration::from_secs(seconds);
    assert_eq!(judge(&mut pool, at(0), &service, "uu").weights(), [10, 10], "not at the start");
    judge(&mut pool, at(1), &service, "ud");
    for (seconds, weight, again) in
        [(10, 1, Some(11)), (11, 1, Some(12)), (12, 2, Some(13)), (19, 9, Some(20)), (20, 10, None)]
    {
        let judgement = judge(&mut pool, at(seconds), &service, "uu");
        assert_eq!(judgement.weights(), [10, weight], "after {seconds} s");
        assert_eq!(judgement.again, again.map(at), "after {seconds} s");
    }
    let light = weighing(&format!("{CHECK}, slowStart: 10s"), &[1, 1]);
    let mut pool = Pool::default();
    judge(&mut pool, at(0), &light, "ud");
    let weights = judge(&mut pool, at(1), &light, "uu").weights();
    assert_eq!(weights, [1000, 100], "a weight of 1 has tenths as well");
}

#[test]
fn weights_stay_the_manifests_where_there_are_no_fractions_and_fit_where_there_are() {
    assert_eq!(scaled(&[65_535_000, 1000, 0]), [65_535, 1, 0]);
    assert_eq!(scaled(&[65_535_000, 100]), [65_535, 1]);
    assert_eq!(scaled(&[1500, 1000]), [1500, 1000]);
}

#[test]
fn a_slow_server_gets_less_within_its_bound_and_not_for_a_trifle() {
    let now = Instant::now();
    let service = weighing(&format!("{CHECK}, latencyWeight: 50%"), &[10, 10, 10]);
    let mut pool = Pool::default();
    let mut weights = |seconds: u64, ms: [u64; 3]| {
        let at = now + Duration::from_secs(seconds);
        let machine = |ms: &u64| {
            let mut machine = up(now);
            machine.take(at, Outcome { latency: Some(Duration::from_millis(*ms)), ..outcome(true) }, at);
            (machine, false)
        };
        let machines: Vec<(Machine, bool)> = ms.iter().map(machine).collect();
        pool.judge(at, &service, &known(&service, &machines));
        pool.judge(at, &service, &known(&service, &machines))
            .servers
            .iter()
            .map(|s| s.weight)
            .collect::<Vec<_>>()
    };
    assert_eq!(weights(0, [10, 10, 10]), [10_000, 10_000, 10_000]);
    assert_eq!(weights(1, [10, 10, 100]), [10_000, 10_000, 5_000], "no further than the bound");
    assert_eq!(weights(2, [10, 10, 10]), [10_000, 10_000, 5_000], "rests");
    assert_eq!(weights(12, [10, 10, 10]), [10_000, 10_000, 10_000]);
    assert_eq!(weights(30, [10, 10, 11]), [10_000, 10_000, 10_000], "a trifle");
    assert_eq!(weights(31, [1, 10, 10]), [15_000, 10_000, 10_000]);
}

#[derive(Debug, Clone)]
enum Input {
    Outcome(usize, bool, Option<Order>),
    Disable(usize, bool),
    Wait(u64),
}

fn inputs(servers: usize) -> impl Strategy<Value = Input> {
    let order = prop_oneof![8 => Just(None), 1 => Just(Some(Order::Drain)), 1 => Just(Some(Order::Ready))];
    prop_oneof![
        6 => (0..servers, any::<bool>(), order).prop_map(|(i, passed, order)| Input::Outcome(i, passed, order)),
        1 => (0..servers, any::<bool>()).prop_map(|(i, disabled)| Input::Disable(i, disabled)),
        1 => (1u64..5000).prop_map(Input::Wait),
    ]
}

proptest! {
    /// Whatever happens: a server takes new connections exactly if it has a weight, and only if every rule lets it;
    /// the sorry server never works beside real ones; what the operator took out stays out.
    #[test]
    fn no_sequence_of_outcomes_leaves_a_server_both_in_and_out(
        fields in prop::sample::select(vec![
            "", ", panicThreshold: 50", ", quorum: 2, sorryServer: {address: 10.0.0.99}", ", slowStart: 3s",
            ", quorum: {weight: 2, hysteresis: 1}, panicThreshold: 30, sorryServer: {address: 10.0.0.99}",
            ", latencyWeight: 50, onServerDown: reset",
        ]),
        rise in 1u16..4, fall in 1u16..4,
        inputs in prop::collection::vec(inputs(4), 1..150),
    ) {
        let servers = ["{address: 10.0.0.1}", "{address: 10.0.0.2, weight: 5}",
                       "{address: 10.0.0.3, standby: 1}", "{address: 10.0.0.4, weight: 0}"];
        let service = Arc::new(service(&format!("{CHECK}{fields}"), &servers));
        let mut now = Instant::now();
        let timing = Timing { rise, fall, ..Timing::default() };
        let mut machines: Vec<(Machine, bool)> =
            (0..4).map(|_| (Machine::new(timing, false, now), false)).collect();
        let mut pool = Pool::default();
        for input in inputs {
            match input {
                Input::Outcome(i, passed, order) => {
                    machines[i].0.take(now, Outcome { order, ..outcome(passed) }, now);
                }
                Input::Disable(i, disabled) => machines[i].1 = disabled,
                Input::Wait(ms) => now += Duration::from_millis(ms),
            }
            let judgement = pool.judge(now, &service, &known(&service, &machines));
            let all_failing = machines.iter().all(|(m, _)| m.belief() != Belief::Up);
            for (server, ((machine, disabled), real)) in
                judgement.servers.iter().zip(machines.iter().zip(&service.real_servers))
            {
                let takes_new = server.standing.takes_new();
                prop_assert_eq!(server.weight > 0, takes_new && real.weight > 0);
                prop_assert_eq!(pool.took_new(&server.key), takes_new);
                prop_assert_eq!(server.standing == Standing::Disabled, *disabled);
                prop_assert!(!(takes_new && judgement.sorry));
                prop_assert!(!takes_new || !machine.is_draining());
                if server.standing == Standing::In {
                    prop_assert_eq!(machine.belief(), Belief::Up);
                }
                if machine.belief() == (Belief::Unknown { up: false }) {
                    prop_assert!(!takes_new);
                }
                prop_assert!(takes_new || server.flows != Flows::Stay || !server.reason.is_empty());
                prop_assert!(server.standing == Standing::Failed || !matches!(server.flows, Flows::Reset | Flows::Move));
            }
            prop_assert!(!all_failing || !judgement.quorum || judgement.live > 0);
            if let Some(again) = judgement.again {
                prop_assert!(again > now, "it would be judged for ever");
            }
        }
    }
}
