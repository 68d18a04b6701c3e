//! Real servers that die and come back while clients go on: who gets new connections, when, and what becomes of the
//! connections that were there.

use std::time::{Duration, Instant, SystemTime};

use lb_agent::control::health::HealthView;
use lb_tests::http::Download;
use lb_tests::{Agent, Nginx, Topology, wait};
use serde_json::Value;

use crate::load::Load;
use crate::site::{SOON, Service, director, get, nginx_everywhere, nobody_serves, real_server, until_all_in};

/// interval, timeout and fall of the checks here.
const CHECK: &str = "healthCheck: {http: {}, interval: 200ms, timeout: 200ms, rise: 2, fall: 3}";
/// `fall` × interval + timeout.
const DETECTED: Duration = Duration::from_millis(3 * 200 + 200);

/// What a machine that is busy with other tests may add to a bound: threads wait for their turn.
const SCHEDULING: Duration = Duration::from_secs(2);
/// How long a state is waited for on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// NAT without a translated port: the real servers need nothing but a route back.
fn service(topology: &Topology, name: &str, port: u16) -> Service {
    let mut service = Service::tcp(name, topology.vip_v4(0).into(), port, "nat").servers(&topology.servers);
    service.servers.iter_mut().for_each(|server| server.1 = None);
    service
}

/// Waits until the real server is in this state; answers with what `get` says of it.
#[track_caller]
fn until_state(agent: &Agent, service: &str, address: std::net::IpAddr, state: &str) -> Value {
    let mut last = Value::Null;
    let came = wait::holds_within(PATIENCE, || {
        last = real_server(agent, service, address);
        last["state"] == state
    });
    assert!(came, "{address} is not {state}: {last:#}\nthe agent wrote:\n{}", agent.log());
    last
}

#[test]
fn a_server_that_dies_under_load_leaves_in_time_and_comes_back_and_a_restart_empties_nothing() {
    let topology = Topology::builder().servers(3).build();
    topology.replies_through_director();
    let mut nginx = nginx_everywhere(&topology, &[80]);
    let host = &topology.director().namespace;
    let mut agent = Agent::start(host, &director(&["eth0"]));
    let web = service(&topology, "web", 80).with(CHECK);
    agent.apply(&web.yaml());
    until_all_in(&agent);
    let died = topology.servers[1].address(web.vip);

    let load = Load::start(&topology.client().namespace, web.socket());
    let before = load.more(100);
    assert_eq!(load.since(before).len(), 3, "all three answer: {:?}", load.since(before));

    let (killed, killed_at) = (Instant::now(), SystemTime::now());
    nginx[1].kill();
    let down = until_state(&agent, "web", died, "down");
    let reason = down["reason"].as_str().unwrap();
    assert!(reason.contains("refused"), "{reason:?} does not say what happened");
    let after = load.more(100);
    let shares = load.since(after);
    assert_eq!(shares.keys().collect::<Vec<_>>(), ["server0", "server2"], "{shares:?}");
    // What the command line and a loaded machine add is waiting, not detection: the moment is in the history.
    let checks = get(&agent, &["health", "web"]);
    let check = checks.as_array().unwrap().iter().find(|check| check["state"] == "down").unwrap();
    assert_eq!((check["fall"].as_u64(), check["rise"].as_u64()), (Some(3), Some(2)), "{check:#}");
    assert!(check["failed"].as_u64() >= Some(3), "{check:#}");
    let since: HealthView = serde_json::from_value(check.clone()).unwrap();
    let epoch = killed_at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
    let detected = Duration::from_millis((since.since.as_millisecond() as u64).saturating_sub(epoch));
    assert!(detected <= DETECTED + SCHEDULING, "it was down only {detected:?} after the kill");
    let lost = load.last("-").map_or(Duration::ZERO, |last| last.saturating_duration_since(killed));
    assert!(
        lost <= detected + SCHEDULING,
        "it was down {detected:?} after the kill, and connections were lost until {lost:?}"
    );

    // The agent's end and start change nothing for anybody.
    agent.kill9();
    let dead = load.more(50);
    agent.restart();
    until_state(&agent, "web", died, "down");
    load.more(50);
    let shares = load.since(dead);
    assert_eq!(shares.keys().collect::<Vec<_>>(), ["server0", "server2"], "over a restart: {shares:?}");

    nginx[1] = Nginx::start(&topology.servers[1].namespace, "server1", &[80]);
    until_state(&agent, "web", died, "in");
    let back = load.more(100);
    let shares = load.since(back);
    assert_eq!(shares.len(), 3, "{shares:?}");
    assert!(!shares.contains_key("-"), "{shares:?}");

    // Once more with everything well: the pool is never empty.
    let restarted = Instant::now();
    agent.restart();
    load.more(50);
    assert!(!load.since(restarted).contains_key("-"), "{:?}", load.since(restarted));

    // What the operator takes out stays out although it passes; the story is in the events.
    let address = died.to_string();
    let said = agent.cli(&["disable", "web", &address]).expect_success();
    assert!(said.contains("is disabled"), "{said}");
    let disabled = load.more(60);
    assert_eq!(load.since(disabled).keys().collect::<Vec<_>>(), ["server0", "server2"]);
    let described = agent.cli(&["describe", "real-server", "web", &address]).expect_success();
    for part in ["disabled by the operator", "http GET /", "up for", "transitions:"] {
        assert!(described.contains(part), "{part:?} is not in\n{described}");
    }
    agent.cli(&["enable", "web", &address]).expect_success();
    let enabled = load.more(60);
    assert_eq!(load.since(enabled).len(), 3);
    let events = get_events(&agent, &format!("RealServer/web/{}:80", address));
    assert_eq!(events, ["up", "down", "up", "disabled", "up"]);
}

/// The kinds of the events of a subject, in their order.
fn get_events(agent: &Agent, subject: &str) -> Vec<String> {
    let text = agent.cli(&["events", "-o", "json"]).expect_success();
    let events: Vec<Value> = match serde_json::from_str(&text) {
        Ok(Value::Array(events)) => events,
        _ => text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect(),
    };
    let of = |event: &&Value| event["subject"] == subject;
    events.iter().filter(of).map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_sorry_server_takes_over_when_the_quorum_is_lost_and_gives_back() {
    let topology = Topology::builder().servers(3).build();
    topology.replies_through_director();
    let mut nginx = nginx_everywhere(&topology, &[80]);
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let mut web = service(&topology, "web", 80).with(CHECK).with("quorum: 2");
    // The third stands by with a method of its own.
    web.servers.truncate(2);
    let sorry = topology.servers[2].address(web.vip);
    topology.vip_on_servers(web.vip);
    web = web.with(&format!("sorryServer: {{address: {sorry}, forwarding: dr}}"));
    agent.apply(&web.yaml());
    let first = topology.servers[0].address(web.vip);
    until_state(&agent, "web", first, "in");
    until_state(&agent, "web", sorry, "standby");
    let load = Load::start(&topology.client().namespace, web.socket());
    let well = load.more(50);
    assert_eq!(load.since(well).keys().collect::<Vec<_>>(), ["server0", "server1"]);

    nginx[1].kill();
    until_state(&agent, "web", sorry, "in");
    let lost = load.more(50);
    assert_eq!(load.since(lost).keys().collect::<Vec<_>>(), ["server2"], "all that is new goes there");
    let service = &get(&agent, &["services", "web"])[0];
    assert_eq!(service["sorry"], true, "{service:#}");

    nginx[1] = Nginx::start(&topology.servers[1].namespace, "server1", &[80]);
    until_state(&agent, "web", sorry, "standby");
    let back = load.more(50);
    assert_eq!(load.since(back).keys().collect::<Vec<_>>(), ["server0", "server1"]);
    assert_eq!(get_events(&agent, "VirtualService/web"), ["quorum-up", "quorum-down", "quorum-up"]);
}

#[test]
fn connections_to_a_server_that_fails_go_on_or_are_reset_as_the_service_says() {
    const LENGTH: usize = 4 << 20;
    let topology = Topology::builder().servers(2).build();
    topology.replies_through_director();
    let nginx = nginx_everywhere(&topology, &[80, 81, 82, 83]);
    nginx[0].offer(LENGTH);
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    // The check is a file on the director, so that the server itself stays as it is.
    let weight = topology.director().namespace.directory().join("weight");
    std::fs::write(&weight, "1").unwrap();
    let check =
        format!("healthCheck: {{file: {{path: {}}}, interval: 100ms, rise: 1, fall: 2}}", weight.display());
    let other = topology.servers[1].address(topology.vip_v4(0).into());
    let mut services = [
        service(&topology, "keep", 80).with(&check),
        service(&topology, "reset", 81).with(&check).with("onServerDown: reset"),
        service(&topology, "quiesce", 82).with(&check).with("onFailure: quiesce"),
        service(&topology, "reschedule", 83)
            .with(&check)
            .with("onServerDown: reschedule")
            .with(&format!("sorryServer: {{address: {other}}}")),
    ];
    services.iter_mut().for_each(|service| service.servers.truncate(1));
    agent.apply(&crate::site::documents(&services));
    for service in &services {
        until_state(&agent, &service.name, topology.servers[0].address(service.vip), "in");
    }
    let client = &topology.client().namespace;
    let start = |service: &Service| {
        let path = format!("/slow/512k/{LENGTH}");
        Download::start_paced(client, service.socket(), &path, 256 << 10)
    };
    let downloads = services.each_ref().map(start);
    for download in &downloads {
        wait::until("the download is on its way", SOON, || download.progress() > 64 << 10);
    }
    std::fs::remove_file(&weight).unwrap();
    let address = topology.servers[0].address(services[0].vip);
    for service in &services {
        let down = until_state(&agent, &service.name, address, "down");
        assert!(down["reason"].as_str().unwrap().contains("weight"), "{down:#}");
        if service.name != "reschedule" {
            nobody_serves(client, &service.url("/"));
        }
    }
    let [keep, reset, quiesce, reschedule] = downloads;
    let progress = keep.progress();
    wait::until("the connection goes on", SOON, || keep.progress() > progress + (64 << 10));
    for (ends, how) in [(reset, "reset"), (reschedule, "taken to a server that does not know it")] {
        let error = ends.finish().expect_err(how);
        assert!(error.contains("reset"), "{how}: {error}");
    }
    let counters = get(&agent, &["counters"]);
    let moved = counters["reasons"].as_array().unwrap().iter().find(|reason| reason["name"] == "flow_moved");
    assert!(
        moved.is_some_and(|moved| moved["packets"].as_u64() >= Some(1)),
        "no connection moved: {counters:#}"
    );
    for goes_on in [keep, quiesce] {
        assert_eq!(goes_on.finish().expect("every byte comes").length, LENGTH as u64);
    }
}

#[test]
fn a_server_that_refuses_or_ignores_new_connections_is_found_without_a_health_check() {
    let topology = Topology::builder().servers(2).build();
    topology.replies_through_director();
    let mut nginx = nginx_everywhere(&topology, &[80]);
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let web = service(&topology, "web", 80)
        .with("passiveDetection: {window: 3s, failures: 2, share: 50%, probation: 3s}");
    agent.apply(&web.yaml());
    until_all_in(&agent);
    let load = Load::start(&topology.client().namespace, web.socket());
    let before = load.more(50);
    assert_eq!(load.since(before).len(), 2, "both answer: {:?}", load.since(before));
    let server = topology.servers[1].address(web.vip);
    let passive = || {
        let checks = get(&agent, &["health", "web"]);
        let mine = |check: &&Value| check["check"] == "passive" && check["address"] == server.to_string();
        checks.as_array().unwrap().iter().find(mine).cloned().unwrap_or_else(|| panic!("{checks:#}"))
    };
    assert_eq!(passive()["state"], "up", "{:#}", passive());

    // It refuses: new connections say so, and the probe that follows.
    nginx[1].kill();
    let down = until_state(&agent, "web", server, "down");
    assert!(down["reason"].as_str().unwrap().contains("connection refused"), "{down:#}");
    let said = passive();
    assert_eq!(said["state"], "probation", "{said:#}");
    assert!(said["last"].as_str().unwrap().contains("refused of"), "{said:#}");
    let after = load.more(50);
    assert_eq!(load.since(after).keys().collect::<Vec<_>>(), ["server0"]);
    nginx[1] = Nginx::start(&topology.servers[1].namespace, "server1", &[80]);
    until_state(&agent, "web", server, "in");
    let back = load.more(50);
    assert_eq!(load.since(back).len(), 2, "{:?}", load.since(back));
    let subject = format!("RealServer/web/{server}:80");
    // Between down and up it may be on probation again, until that has lasted long enough.
    let events = get_events(&agent, &subject);
    assert_eq!(events[..2], ["probation", "down"], "{events:?}");
    assert_eq!(events.last().map(String::as_str), Some("up"), "{events:?}");

    // It cannot answer clients, though the director's probes it can.
    topology.servers[1].namespace.ip("route replace blackhole default table 100");
    let silent = until_state(&agent, "web", server, "probation");
    let reason = silent["reason"].as_str().unwrap();
    assert!(reason.contains("unanswered of"), "{reason:?} does not say what was seen");
}
