//! Real connections under the schedulers that count them, persistence, thresholds, refusal and drain.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use lb_tests::http::{self, Download};
use lb_tests::nginx::LARGE;
use lb_tests::udp::{self, UdpServer};
use lb_tests::{Agent, Namespace, Topology, wait};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::site::{SOON, director, get, nginx_everywhere, real_server, shares, until_all_in};

const DRAIN_PATIENCE: Duration = Duration::from_secs(20);

/// A TCP service with these lines of `spec`, and a real server per line of `servers` (with `{n}` for its address).
fn service(topology: &Topology, forwarding: &str, spec: &str, servers: &[&str]) -> String {
    let server = |(host, more): (&lb_tests::Host, &&str)| format!("    - {{address: {}{more}}}\n", host.v4());
    let servers: String = topology.servers.iter().zip(servers).map(server).collect();
    let spec: String = spec.lines().map(|line| format!("  {}\n", line.trim())).collect();
    let place = match spec.contains("endpoints:") {
        true => String::new(),
        false => format!("  address: {}\n  ports: [80]\n  protocol: tcp\n", topology.vip_v4(0)),
    };
    format!(
        "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n{place}  forwarding: {forwarding}\n\
         {spec}  addressInterface: eth0\n  realServers:\n{servers}"
    )
}

/// Connections that are open and say nothing.
fn open(client: &Namespace, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    client.run(|| {
        let connect =
            |_| TcpStream::connect_timeout(&to, SOON).unwrap_or_else(|error| panic!("{to}: {error}"));
        (0..count).map(connect).collect()
    })
}

/// Active and inactive connections of each real server, in the order of the manifest.
fn counts(agent: &Agent) -> Vec<(u64, u64)> {
    let servers = get(agent, &["real-servers", "web"]);
    let number = |server: &Value, what: &str| server[what].as_u64().expect("a number");
    let all = servers.as_array().expect("a list").iter();
    all.map(|server| (number(server, "active"), number(server, "inactive"))).collect()
}

#[track_caller]
fn until_counts(agent: &Agent, what: &str, wanted: impl Fn(&[(u64, u64)]) -> bool) {
    let mut last = Vec::new();
    let reached = wait::holds_within(DRAIN_PATIENCE, || {
        last = counts(agent);
        wanted(&last)
    });
    assert!(reached, "{what}: {last:?}\n{:#}", get(agent, &["counters"]));
}

#[test]
fn wlc_follows_open_connections_thresholds_hold_and_a_full_service_refuses() {
    let topology = Topology::builder().servers(3).build();
    let _nginx = nginx_everywhere(&topology, &[80]);
    topology.replies_through_director();
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let timeouts =
        "scheduler: wlc\ntimeouts: {finWait: 1s, timeWait: 1s, close: 1s, lastAck: 1s, closeWait: 1s}";
    agent.apply(&service(&topology, "nat", timeouts, &[", weight: 1", ", weight: 2", ", weight: 3"]));
    until_all_in(&agent);
    let vip = SocketAddr::new(topology.vip_v4(0).into(), 80);

    let held = open(client, vip, 30);
    // A connection is counted when its SYN comes, so each choice sees the one before: shares are exact.
    until_counts(&agent, "thirty open connections by weight", |counts| {
        counts.iter().map(|(active, _)| *active).eq([5, 10, 15])
    });
    drop(held);
    until_counts(&agent, "nothing is left when all are closed", |counts| {
        counts.iter().all(|count| *count == (0, 0))
    });

    // Two connections each at the first two, nobody else takes any: the fifth is refused, by a RST.
    let limit = ", connections: {max: 2, resume: 1}";
    agent.apply(&service(&topology, "nat", timeouts, &[limit, limit, ", weight: 0"]));
    let held = open(client, vip, 4);
    until_counts(&agent, "two each", |counts| counts.iter().map(|(active, _)| *active).eq([2, 2, 0]));
    let error = http::get(client, &http::url(vip, "/")).unwrap_err();
    assert!(error.contains("Connection refused") || error.contains("Failed to connect"), "{error}");
    let full = real_server(&agent, "web", topology.servers[0].v4().into());
    assert_eq!(
        (&full["overloaded"], &full["connectionsMax"]),
        (&Value::Bool(true), &Value::from(2)),
        "{full}"
    );
    drop(held);
    until_counts(&agent, "closed again", |counts| counts.iter().all(|count| *count == (0, 0)));
    let answered = wait::holds_within(SOON, || http::get(client, &http::url(vip, "/")).is_ok());
    assert!(answered, "a server below its lower threshold takes connections again");
}

#[test]
fn a_client_keeps_its_server_over_ports_and_endpoints_until_the_time_is_over() {
    let topology = Topology::builder().servers(3).build();
    let _nginx = nginx_everywhere(&topology, &[80, 81]);
    let vips: Vec<IpAddr> = [0, 1].map(|n| IpAddr::from(topology.vip_v4(n))).into();
    vips.iter().for_each(|vip| topology.vip_on_servers(*vip));
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let group = |timeout: &str| {
        let spec = format!(
            "endpoints: [{{address: {}, ports: [80, 81], protocol: tcp}}, {{address: {}, ports: [80], protocol: tcp}}]\n\
             scheduler: rr\npersistence: {{timeout: {timeout}}}",
            vips[0], vips[1]
        );
        service(&topology, "dr", &spec, &["", "", ""])
    };
    let urls = [(0, 80), (0, 81), (1, 80)]
        .map(|(vip, port): (usize, u16)| http::url(SocketAddr::new(vips[vip], port), "/"));
    // From its first connection on, whatever follows: with a second, a client that never rests meets several servers.
    agent.apply(&group("1s"));
    until_all_in(&agent);
    let mut met = std::collections::BTreeSet::new();
    let several = wait::holds_within(SOON, || {
        met.extend(shares(client, &urls[1], 1).into_keys());
        met.len() > 1
    });
    assert!(several, "only {met:?} answered, long after a second");

    agent.apply(&group("1h"));
    wait::until("the last second is over", SOON, || {
        get(&agent, &["persistence"]) == Value::Array(Vec::new())
    });
    let mut answered: BTreeMap<String, usize> = BTreeMap::new();
    for url in urls.iter().cycle().take(12) {
        for (server, count) in shares(client, url, 1) {
            *answered.entry(server).or_default() += count;
        }
    }
    assert_eq!(answered.len(), 1, "one client, one server: {answered:?}");
    let persistent = get(&agent, &["persistence"]);
    let entries = persistent.as_array().expect("a list");
    assert_eq!(entries.len(), 1, "{persistent:#}");
    assert_eq!(entries[0]["client"], format!("{}/32", topology.client().v4()), "{persistent:#}");
}

#[test]
fn a_drained_server_finishes_what_it_has_until_the_deadline_and_denied_clients_end() {
    let topology = Topology::builder().servers(2).build();
    let _nginx = nginx_everywhere(&topology, &[80]);
    topology.vip_on_servers(topology.vip_v4(0).into());
    let client = &topology.client().namespace;
    let mut agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let manifest = |more: &str| {
        let spec = format!("scheduler: rr\npersistence: {{timeout: 1h}}\n{more}");
        service(&topology, "dr", &spec, &["", ""])
    };
    agent.apply(&manifest(""));
    until_all_in(&agent);
    let vip = SocketAddr::new(topology.vip_v4(0).into(), 80);
    let path = format!("/bytes/{LARGE}");
    let slow = || {
        let download = Download::start_paced(client, vip, &path, 64 << 10);
        wait::until("the download has begun", SOON, || download.progress() > 0);
        download
    };

    let first = slow();
    let sticky = shares(client, &http::url(vip, "/"), 1).into_keys().next().unwrap();
    let index = topology.servers.iter().position(|server| server.namespace.role() == sticky).unwrap();
    let address = topology.servers[index].v4().to_string();

    agent.cli(&["drain", "web", &address, "--deadline", "1h"]).expect_success();
    let others = shares(client, &http::url(vip, "/"), 4);
    assert!(!others.contains_key(&sticky), "a sticky client still got to {sticky}: {others:?}");
    // The drain is not forgotten by a restart, nor the connection.
    agent.kill9();
    agent.restart();
    until_counts(&agent, "the old connection goes on", |counts| counts[index].0 >= 1);
    let shown = real_server(&agent, "web", address.parse().unwrap());
    assert_eq!(shown["state"], "draining", "{shown}");
    assert!(shown["drain"]["deadlineIn"].as_u64().is_some_and(|seconds| seconds > 3000), "{shown}");
    // The new agent has not seen the connection begin, but it began before the drain.
    let drain = &shown["drain"];
    assert!(drain["remaining"].as_u64() >= Some(1) && drain["oldestAtLeast"] == true, "{shown}");
    assert!(drain["oldest"].as_u64() >= drain["since"].as_u64(), "{shown}");
    assert!(drain["eta"].as_u64().is_some_and(|eta| (1..=3600).contains(&eta)), "{shown}");
    first.finish().expect("a drained server finishes what it has");

    // Another one, at a server that gets a deadline.
    agent.cli(&["undrain", "web", &address]).expect_success();
    let second = slow();
    let established = get(&agent, &["connections", "web", "--state", "established"]);
    let server = &established["connections"][0]["realServer"];
    let server: SocketAddr = server.as_str().and_then(|text| text.parse().ok()).expect("a connection");
    let address = server.ip().to_string();
    agent.cli(&["drain", "web", &address, "--deadline", "1s"]).expect_success();
    wait::until("the deadline passes", SOON, || {
        real_server(&agent, "web", server.ip())["drain"]["resetting"] == true
    });
    let error = second.finish().unwrap_err();
    assert!(error.contains("reset") || error.contains("Connection"), "{error}");
    agent.cli(&["undrain", "web", &address]).expect_success();

    // A client that is denied, by a list in a file, is refused, and what it has ends.
    let list = topology.director().namespace.directory().join("deny.txt");
    let write = |text: &str| std::fs::write(&list, text).expect("write the list");
    write("# nobody here\n192.0.2.0/24\n");
    agent.apply(&manifest(&format!("sources: {{denyFile: {}}}", list.display())));
    let third = slow();
    let denied = format!("{}/32 # this one\n", topology.client().v4());
    write(&denied);
    let url = http::url(vip, "/");
    let connects = || client.run(|| TcpStream::connect_timeout(&vip, Duration::from_secs(1)).is_ok());
    wait::until("new connections are refused", SOON, || !connects());
    wait::until("the denied connection is gone", SOON, || {
        let established = get(&agent, &["connections", "web", "--state", "established"]);
        established["connections"].as_array().is_some_and(Vec::is_empty)
    });
    let error = third.finish().unwrap_err();
    assert!(error.contains(&format!("of {LARGE} bytes")), "{error}");
    assert!(counter(&agent, "access_denied") > 0);

    // A list that is wrong is told with its place, and the last good one counts.
    write("192.0.2.0/24\n  no prefix\n");
    let place = format!("{}:2:3: ", list.display());
    wait::until("the mistake is told", SOON, || {
        get(&agent, &["status"])["problems"].to_string().contains(&place)
    });
    assert!(!connects(), "the list that was right denies the client");
    write("192.0.2.0/24\n");
    wait::until("the client is admitted again", SOON, || http::get(client, &url).is_ok());
    assert_eq!(get(&agent, &["status"])["problems"], Value::Array(Vec::new()));
}

#[test]
fn bursts_above_a_limit_are_refused_and_the_service_goes_on() {
    let topology = Topology::builder().servers(1).build();
    let _nginx = nginx_everywhere(&topology, &[80]);
    let server = &topology.servers[0];
    let _udp = UdpServer::start(&server.namespace, "s1", &[53]);
    topology.vip_on_servers(topology.vip_v4(0).into());
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let web = service(&topology, "dr", "scheduler: rr\nlimits: {newConnectionsPerSecond: 3}", &[""]);
    let dns = service(&topology, "dr", "scheduler: rr", &[", packetsPerSecond: 10"])
        .replace("name: web", "name: dns")
        .replace("ports: [80]\n  protocol: tcp", "ports: [53]\n  protocol: udp");
    agent.apply(&format!("{web}---\n{dns}"));
    until_all_in(&agent);
    let vip = |port| SocketAddr::new(topology.vip_v4(0).into(), port);

    // Two hundred SYNs at once; one that is not taken is dropped, and comes again from its sender's timer.
    let mut before = open(client, vip(80), 1);
    let burst: Vec<Socket> = client.run(|| {
        let connect = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("a socket that does not wait");
            let _under_way = socket.connect(&vip(80).into());
            socket
        };
        (0..200).map(connect).collect()
    });
    wait::until("the limit is reached", SOON, || counter(&agent, "new_flows_limited") > 0);
    drop(burst);
    let connection = &mut before[0];
    connection.set_read_timeout(Some(SOON)).unwrap();
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("a connection that there was before goes on");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    wait::until("new ones are taken", SOON, || http::get(client, &http::url(vip(80), "/")).is_ok());

    client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        (0..500).for_each(|_| drop(socket.send_to(b"again", vip(53))));
    });
    wait::until("the server's limit is reached", SOON, || counter(&agent, "packets_limited") > 0);
    wait::until("the server is asked again", SOON, || udp::ask(client, vip(53)).is_ok());
}

/// Packets that ended with a reason.
fn counter(agent: &Agent, reason: &str) -> u64 {
    let counters = get(agent, &["counters"]);
    let mut all = counters["reasons"].as_array().expect("a list").iter();
    all.find(|count| count["name"] == reason).and_then(|count| count["packets"].as_u64()).unwrap_or(0)
}
