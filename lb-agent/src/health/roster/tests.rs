use std::time::Duration;

use super::super::saved::Clocks;
use super::super::state::tests::outcome;
use super::*;
use crate::health::Standing;
use crate::manifest::{Objects, load_text};
use crate::model::health::Target;

fn objects(services: &[(&str, &str)]) -> Objects {
    let document = |(name, fields): &(&str, &str)| {
        let port = 80 + name.bytes().map(u16::from).sum::<u16>();
        format!(
            "---\napiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{address: 192.0.2.1, \
             ports: [{port}], protocol: tcp, forwarding: dr, scheduler: rr{fields}}}\n"
        )
    };
    let text: String = services.iter().map(document).collect();
    load_text("m.yaml", &text).unwrap_or_else(|report| panic!("{report}"))
}

const TWO: &str = ", realServers: [{address: 10.0.0.1}, {address: 10.0.0.2}]";
const CHECKED: &str = ", healthCheck: {tcp: {}, port: 8080, rise: 1, fall: 2}, \
                       realServers: [{address: 10.0.0.1}, {address: 10.0.0.2}]";

fn set(roster: &mut Roster, now: Instant, objects: &Objects) -> bool {
    let other = roster.set(now, objects.services().map(|(service, _)| service));
    roster.judge(now);
    other
}

fn say(roster: &mut Roster, now: Instant, id: CheckId, passed: bool) {
    roster.take(Report { id, outcome: outcome(passed), at: now, next: now });
    roster.judge(now);
}

/// The check of the first real server, however it is gone to.
fn of_first(roster: &Roster) -> CheckId {
    let server = |target: Target| match target {
        Target::Direct { address, .. } => address,
        Target::Real { server, .. } => server,
    };
    let address: std::net::IpAddr = "10.0.0.1".parse().unwrap();
    let assignments = roster.assignments();
    assignments.iter().find(|check| server(check.target) == address).expect("it has a check").id
}

fn standings(roster: &Roster, service: &str) -> Vec<Standing> {
    let judgement = roster.judgement(&Name::new(service).unwrap()).expect("a service");
    judgement.servers.iter().map(|server| server.standing).collect()
}

#[test]
fn services_that_name_the_same_target_and_parameters_share_one_probe() {
    let now = Instant::now();
    let mut roster = Roster::default();
    assert!(set(&mut roster, now, &objects(&[("a", CHECKED), ("b", CHECKED)])));
    assert_eq!(roster.assignments().len(), 2);
    let id = of_first(&roster);
    say(&mut roster, now, id, true);
    for service in ["a", "b"] {
        assert_eq!(standings(&roster, service), [Standing::In, Standing::Waiting]);
    }
    assert!(!set(&mut roster, now, &objects(&[("b", CHECKED)])), "b still needs them");
    assert!(set(&mut roster, now, &objects(&[("b", TWO)])));
    assert!(roster.assignments().is_empty());
    assert!(roster.take(Report { id, outcome: outcome(true), at: now, next: now }).is_none(), "too late");
}

#[test]
fn the_start_waits_for_checks_that_can_be_made() {
    const BOTH: &str = ", healthChecks: {checks: [tcp, icmp]}, realServers: [{address: 10.0.0.1}]";
    let (mut roster, now) = (Roster::default(), Instant::now());
    set(&mut roster, now, &objects(&[("web", BOTH)]));
    let of = |real: bool| {
        let ids: Vec<CheckId> = roster
            .assignments()
            .iter()
            .filter(|assignment| matches!(assignment.target, Target::Real { .. }) == real)
            .map(|assignment| assignment.id)
            .collect();
        assert!(
            !ids.is_empty(),
            "dr servers are connected to on the real path, and pinged on their own address"
        );
        ids
    };
    let (real, direct) = (of(true), of(false));
    // No way leads to the VIP on a server as long as the tables do not know the server.
    let with_a_way = |target: &Target| matches!(target, Target::Direct { .. });
    assert!(!roster.all_known(with_a_way) && !roster.all_known(|_| true));
    direct.iter().for_each(|id| say(&mut roster, now, *id, true));
    assert!(roster.all_known(with_a_way), "nobody waits for what cannot be made");
    assert!(!roster.all_known(|_| true), "where a way is known there is something to wait for");
    real.iter().for_each(|id| say(&mut roster, now, *id, false));
    assert!(roster.all_known(|_| true));
}

#[test]
fn a_check_that_is_added_takes_no_server_out_until_it_fails() {
    let now = Instant::now();
    let mut roster = Roster::default();
    set(&mut roster, now, &objects(&[("a", TWO)]));
    assert_eq!(standings(&roster, "a"), [Standing::In, Standing::In]);
    set(&mut roster, now, &objects(&[("a", CHECKED)]));
    assert_eq!(standings(&roster, "a"), [Standing::In, Standing::In]);
    let id = of_first(&roster);
    say(&mut roster, now, id, false);
    assert_eq!(standings(&roster, "a"), [Standing::In, Standing::In]);
    say(&mut roster, now, id, false);
    assert_eq!(standings(&roster, "a"), [Standing::Failed, Standing::In]);
    // A server that is new waits all the same, and one that failed does not come back by another check.
    let other = CHECKED.replace("fall: 2", "fall: 3").replace("10.0.0.2}", "10.0.0.2}, {address: 10.0.0.3}");
    set(&mut roster, now, &objects(&[("a", &other)]));
    assert_eq!(standings(&roster, "a"), [Standing::Waiting, Standing::In, Standing::Waiting]);
}

#[test]
fn a_restart_goes_on_from_what_was_believed() {
    let now = Instant::now();
    let mut roster = Roster::default();
    set(&mut roster, now, &objects(&[("a", CHECKED)]));
    for id in roster.assignments().iter().map(|a| a.id).collect::<Vec<_>>() {
        say(&mut roster, now, id, true);
    }
    let (web, key) = (Name::new("a").unwrap(), ServerKey { address: [10, 0, 0, 2].into(), port: 0 });
    let key = ServerKey { port: 80 + u16::from(b'a'), ..key };
    assert!(roster.disable(now, &web, key, true));
    roster.judge(now);
    assert_eq!(standings(&roster, "a"), [Standing::In, Standing::Disabled]);

    let clocks = Clocks { monotonic: now, utc: Duration::from_secs(1_800_000_000) };
    let mut again = Roster::new(Saved::read(&roster.save().write(clocks), clocks).unwrap());
    set(&mut again, now, &objects(&[("a", CHECKED)]));
    assert_eq!(standings(&again, "a"), [Standing::In, Standing::Disabled]);
    assert!(again.all_known(|_| true));
    assert!(again.disable(now, &web, key, false));
    assert_eq!(again.judge(now).len(), 1);
    assert_eq!(standings(&again, "a"), [Standing::In, Standing::In]);
}

#[test]
fn the_operators_orders_hold_whatever_the_checks_say_and_end_with_the_server() {
    let now = Instant::now();
    let mut roster = Roster::default();
    set(&mut roster, now, &objects(&[("a", CHECKED)]));
    let (web, port) = (Name::new("a").unwrap(), 80 + u16::from(b'a'));
    let key = ServerKey { address: [10, 0, 0, 1].into(), port };
    assert!(!roster.disable(now, &web, ServerKey { port: 1, ..key }, true), "no such server");
    assert!(roster.disable(now, &web, key, true));
    for passed in [true, false, false, true, true] {
        for id in roster.assignments().iter().map(|a| a.id).collect::<Vec<_>>() {
            say(&mut roster, now, id, passed);
        }
        assert_eq!(standings(&roster, "a")[0], Standing::Disabled);
    }
    assert!(roster.reweigh(&web, key, Some(7)));
    set(&mut roster, now, &objects(&[("a", &CHECKED.replace("{address: 10.0.0.1}, ", ""))]));
    assert_eq!(roster.orders_for(&web, key), (None, None));
}

#[test]
fn a_judgement_is_told_once() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let services = objects(&[("a", CHECKED), ("b", TWO)]);
    roster.set(now, services.services().map(|(service, _)| service));
    assert_eq!(roster.judge(now).len(), 2);
    assert!(roster.judge(now).is_empty());
    let id = of_first(&roster);
    roster.take(Report { id, outcome: outcome(true), at: now, next: now });
    let judged = roster.judge(now);
    assert_eq!(judged.iter().map(|judged| judged.service.as_str()).collect::<Vec<_>>(), ["a"]);
    roster.take(Report { id, outcome: outcome(true), at: now, next: now });
    assert!(roster.judge(now).is_empty());
}

fn tally(answered: u64, refused: u64, silent: u64) -> Tally {
    Tally { answered, refused, silent, unreachable: 0 }
}

/// Service `a` with a watched server 10.0.0.1, and what else `fields` says.
fn watched(fields: &str) -> (Objects, Name, ServerKey) {
    let objects = objects(&[("a", fields)]);
    let service = objects.services().next().unwrap().0.clone();
    let key = service.key_of(&service.real_servers[0]);
    (objects, service.name, key)
}

const PASSIVE: &str = ", passiveDetection: {window: 10s, failures: 5, probation: 10s}, \
                       realServers: [{address: 10.0.0.1, forwarding: nat}, {address: 10.0.0.2, forwarding: nat}]";

#[test]
fn a_server_that_refuses_new_connections_is_out_until_it_can_be_connected_to_and_its_time_is_over() {
    let now = Instant::now();
    let after = |seconds| now + Duration::from_secs(seconds);
    let mut roster = Roster::default();
    let (objects, service, key) = watched(PASSIVE);
    set(&mut roster, now, &objects);
    assert!(!roster.witness(now, &service, key, tally(1, 4, 0)));
    roster.judge(now);
    assert_eq!((standings(&roster, "a"), roster.errands()), (vec![Standing::In; 2], Errands::default()));

    assert!(roster.witness(after(1), &service, key, tally(0, 1, 0)));
    roster.judge(after(1));
    assert_eq!(standings(&roster, "a"), [Standing::Probation, Standing::In]);
    let verdict = &roster.judgement(&service).unwrap().servers[0];
    assert_eq!(verdict.reason, "on probation: 5 refused of 6 new connections within 10 s");
    assert_eq!((verdict.weight, verdict.flows), (0, crate::model::health::Flows::Keep));
    let [probe] = &roster.assignments()[..] else { panic!("one probe") };
    let id = probe.id;
    assert_eq!(probe.target.to_string(), format!("10.0.0.1:{}", key.port));
    let errands = Errands { set: true, paces: vec![(id, Pace::Fast)], now: vec![id] };
    assert_eq!(roster.errands(), errands);

    // Whatever is applied meanwhile changes nothing of it.
    let (wider, ..) = watched(&PASSIVE.replace("failures: 5", "failures: 6"));
    set(&mut roster, after(2), &wider);
    assert_eq!(standings(&roster, "a"), [Standing::Probation, Standing::In]);
    say(&mut roster, after(3), id, false);
    assert_eq!(standings(&roster, "a"), [Standing::Failed, Standing::In]);
    assert_eq!(roster.judgement(&service).unwrap().servers[0].reason, "connection refused");
    say(&mut roster, after(5), id, true);
    assert_eq!(standings(&roster, "a"), [Standing::Probation, Standing::In], "not before its time");
    roster.judge(after(11));
    assert_eq!(standings(&roster, "a"), [Standing::In; 2]);
    let errands = roster.errands();
    assert!(errands.set && errands.now.is_empty() && roster.assignments().is_empty());
}

#[test]
fn no_more_than_their_share_are_out_and_the_others_are_probed() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let (objects, service, first) = watched(PASSIVE);
    set(&mut roster, now, &objects);
    let (_, server) = (objects.services().next().unwrap().0, "10.0.0.2".parse().unwrap());
    let second = ServerKey { address: server, ..first };
    for key in [first, second] {
        assert!(roster.witness(now, &service, key, tally(0, 5, 0)));
    }
    roster.judge(now);
    assert_eq!(standings(&roster, "a"), [Standing::Probation, Standing::In]);
    let reason = &roster.judgement(&service).unwrap().servers[1].reason;
    assert_eq!(reason, "in doubt, it is probed: 5 refused of 5 new connections within 10 s");
    assert_eq!(roster.assignments().len(), 2);
}

#[test]
fn clients_alone_put_no_server_out_but_one_failed_check_does_then() {
    let now = Instant::now();
    let after = |seconds| now + Duration::from_secs(seconds);
    let mut roster = Roster::default();
    let (objects, service, key) = watched(
        ", passiveDetection: {}, healthCheck: {tcp: {}, rise: 2, fall: 3}, \
         realServers: [{address: 10.0.0.1}, {address: 10.0.0.2}]",
    );
    set(&mut roster, now, &objects);
    let id = of_first(&roster);
    for check in roster.assignments() {
        say(&mut roster, now, check.id, true);
    }
    assert_eq!(standings(&roster, "a"), [Standing::In; 2]);
    assert!(roster.witness(after(1), &service, key, tally(0, 0, 5)));
    roster.judge(after(1));
    assert_eq!(standings(&roster, "a"), [Standing::In; 2]);
    let errands = roster.errands();
    assert_eq!((errands.set, errands.now), (false, vec![id]), "its own check is made at once");
    say(&mut roster, after(2), id, false);
    assert_eq!(standings(&roster, "a"), [Standing::Probation, Standing::In]);
    say(&mut roster, after(3), id, false);
    say(&mut roster, after(4), id, false);
    assert_eq!(standings(&roster, "a"), [Standing::Failed, Standing::In], "by fall, as ever");
    say(&mut roster, after(12), id, true);
    say(&mut roster, after(13), id, true);
    assert_eq!(standings(&roster, "a"), [Standing::In; 2]);
    assert_eq!(roster.errands().paces, [(id, Pace::Fast)], "it ended while the check was rising");
}

#[test]
fn a_server_that_is_to_have_no_check_is_not_watched() {
    let now = Instant::now();
    let mut roster = Roster::default();
    let (objects, service, key) = watched(
        ", passiveDetection: {}, realServers: [{address: 10.0.0.1, healthCheck: none}, {address: 10.0.0.2}]",
    );
    set(&mut roster, now, &objects);
    assert!(!roster.witness(now, &service, key, tally(0, 50, 0)));
    roster.judge(now);
    assert_eq!(standings(&roster, "a"), [Standing::In; 2]);
}
