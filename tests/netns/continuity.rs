//! Continuity: the agent may be killed, restarted and replaced by another version at any moment, also in the middle
//! of an `apply`, and no packet and no connection is lost; and while there is no agent, everything works.

mod dice;
mod events;
mod newcomers;
mod rare_paths;
mod services;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_tests::http::{self, Download};
use lb_tests::nginx::LARGE;
use lb_tests::udp::{RunningStream, Stream};
use lb_tests::{Agent, Namespace, Topology, content, wait};

use dice::Dice;
use events::Events;
use newcomers::Newcomers;
use services::{Family, METHODS, Method, Servers, WEIGHTS, manifests};

/// Datagrams per second; at least 50,000 must come out of it.
const RATE: u64 = 52_000;
/// Downloads are read at this many bytes per second, so that one of `LENGTH` bytes outlasts the events.
const PACE: u64 = 400_000;
const LENGTH: usize = 96 << 20;
/// A machine with more to do than it has CPUs may keep a reader waiting; a connection that was lost is silent for good.
const UNINTERRUPTED: Duration = Duration::from_secs(5);

/// The director's document; `shutdown` is what SIGTERM does.
fn director(shutdown: &str) -> String {
    format!(
        "apiVersion: lb/v1
kind: Director
metadata: {{name: director-a}}
spec:
  interfaces: [{{name: eth0, xdp: native}}]
  connections: {{max: 65536}}
  capacity: {{services: 64, realServers: 256}}
  shutdown: {{traffic: {shutdown}, wait: 1s}}
"
    )
}

fn topology() -> Topology {
    Topology::builder().servers(3).servers_with_xdp().clients(2).build()
}

#[test]
fn nothing_is_lost_over_twenty_kills_and_twenty_upgrades_by_each_method() {
    nothing_is_lost_over_kills_and_upgrades(Family::V4, 20);
}

#[test]
fn nothing_is_lost_over_kills_and_upgrades_under_ipv6() {
    nothing_is_lost_over_kills_and_upgrades(Family::V6, 4);
}

/// `count` kills and as many upgrades for each forwarding method, half of each inside an `apply`.
fn nothing_is_lost_over_kills_and_upgrades(family: Family, count: usize) {
    nothing_is_lost(family, |events, newcomers| {
        for event in events.shuffled(count) {
            events.happen(event, newcomers);
        }
    });
}

#[test]
fn nothing_is_lost_over_a_thousand_applies() {
    nothing_is_lost(Family::V4, |events, newcomers| {
        for _ in 0..334 {
            events.apply_another();
        }
        let _nobody_else = newcomers.hold();
        events.assert_as_applied();
    });
}

/// Does something again and again, under streams of numbered datagrams, downloads that last throughout, and new
/// connections to every service; panics if any of them lost anything. Then kills the agent for good, and everything
/// must work all the same.
fn nothing_is_lost(family: Family, mut during: impl FnMut(&mut Events, &Newcomers)) {
    let _alone = crate::alone_with_streams();
    let topology = topology();
    let servers = Servers::start(&topology, family);
    for nginx in &servers.nginx {
        nginx.offer(LENGTH);
    }
    let agent = Agent::start(&topology.director().namespace, &director("keep"));
    let mut events = Events::begin(agent, &topology, family, Dice::new());
    let client = &topology.client().namespace;
    let services =
        METHODS.iter().map(|method| (method.tcp(&topology, family), method.udp(&topology, family)));
    let newcomers = Newcomers::start(client, services.collect());
    // Replies of DR and TUN do not pass the director, and without them there is room for two streams at a time.
    for methods in [&METHODS[..2], &METHODS[2..3], &METHODS[3..]] {
        let start = |method| Load::start(method, &topology, family);
        let loads: Vec<Load> = methods.iter().map(start).collect();
        let start = Instant::now();
        during(&mut events, &newcomers);
        println!("{:.1?}; {}", start.elapsed(), events.summary());
        for load in loads {
            load.finish(&topology, &servers, &events);
        }
    }
    newcomers.finish();
    let mut agent = events.end();
    works_without_an_agent(&mut agent, &topology, &servers, family);
}

/// A stream of numbered datagrams and a download by one forwarding method.
struct Load {
    what: String,
    stream: RunningStream,
    download: Download,
}

impl Load {
    /// Starts both and returns when both flow.
    #[track_caller]
    fn start(method: &Method, topology: &Topology, family: Family) -> Load {
        let client = &topology.client().namespace;
        let answers = method.sees_replies();
        let stream =
            Stream { to: method.udp(topology, family), rate: RATE, flows: 16, answers }.start(client);
        let tcp = method.tcp(topology, family);
        let download = Download::start_paced(client, tcp, &format!("/bytes/{LENGTH}"), PACE);
        let what = format!("{} {family:?}", method.name);
        wait::until(&format!("{what}: stream and download flow"), Duration::from_secs(5), || {
            stream.sent() > 1000 && (!answers || stream.answered() > 1000) && download.progress() > 0
        });
        Load { what, stream, download }
    }

    /// Ends both; panics unless nothing was lost.
    #[track_caller]
    fn finish(self, topology: &Topology, servers: &Servers, events: &Events) {
        let Load { what, stream, download } = self;
        assert!(download.progress() < LENGTH as u64, "{what}: the download ended before the last event");
        let report = stream.finish(&servers.udp);
        let (sent, lost, unanswered) = (report.sent, report.lost.len(), report.unanswered.len());
        println!("{what}: {sent} datagrams, {:.0}/s, {lost} lost, {unanswered} unanswered", report.rate());
        if lost + unanswered > 0 {
            println!("{}{}", drops(topology), events.counters());
        }
        report.assert_complete();
        assert_eq!(report.split_flows, [0u16; 0], "{what}: flows changed their server");
        assert!(report.rate() >= 50_000.0, "{what}: only {:.0} datagrams per second", report.rate());
        let whole = download.finish().unwrap_or_else(|error| panic!("{what}: download: {error}"));
        assert_eq!(whole.length, LENGTH as u64);
        assert!(whole.longest_silence < UNINTERRUPTED, "{what}: {whole:?}");
    }
}

#[test]
fn what_is_new_and_what_is_rare_works_long_after_a_kill() {
    for family in [Family::V4, Family::V6] {
        let topology = topology();
        let servers = Servers::start(&topology, family);
        let mut agent = Agent::start(&topology.director().namespace, &director("keep"));
        agent.apply(&manifests(&topology, family, WEIGHTS[0]));
        works_without_an_agent(&mut agent, &topology, &servers, family);
    }
}

/// Kills the agent for good and does everything that a client may do.
#[track_caller]
fn works_without_an_agent(agent: &mut Agent, topology: &Topology, servers: &Servers, family: Family) {
    agent.kill9();
    let gone = Path::new("/proc").join(agent.process().pid().to_string());
    assert!(!gone.exists(), "the agent was killed and {} is there", gone.display());
    // Long enough for the kernel to take back what only the agent held, such as an unpinned array of programs.
    std::thread::sleep(Duration::from_secs(2));
    let client = topology.client();
    for method in &METHODS {
        let (tcp, udp) = (method.tcp(topology, family), method.udp(topology, family));
        let fresh = || (newcomers::fetch(tcp), newcomers::ask(udp));
        for _ in 0..6 {
            let answers = client.namespace.run(fresh);
            assert!(answers.0.is_ok() && answers.1.is_ok(), "{}: {answers:?}", method.name);
        }
        rare_paths::ttl_is_answered(client, tcp, true).unwrap();
        rare_paths::ttl_is_answered(client, udp, false).unwrap();
        rare_paths::unknown_flow_is_reset(client, tcp, 999).unwrap();
        upload(method, topology, servers, family);
    }
    agent.restart();
    // The kernel of the director would have answered a stray segment, too: the counters tell who did.
    let counters = agent.cli(&["get", "counters", "-o", "json"]).expect_success();
    for reason in ["unknown_flow_reset", "time_exceeded", "packet_too_big"] {
        assert!(packets(&counters, reason) > 0, "no {reason} was counted: {counters}");
    }
    assert_eq!(packets(&counters, "internal"), 0, "{counters}");
}

/// How many frames ended with a reason, by what `get counters -o json` wrote.
fn packets(counters: &str, reason: &str) -> u64 {
    let view: serde_json::Value = serde_json::from_str(counters).expect("the agent writes JSON");
    let reasons = view["reasons"].as_array().expect("counters have reasons");
    let found = reasons.iter().find(|row| row["name"] == reason);
    found.and_then(|row| row["packets"].as_u64()).unwrap_or_else(|| panic!("no {reason} in {counters}"))
}

/// 8 MiB from a client that has not been here before. Through a tunnel its full-sized packets do not fit, which it
/// must be told.
#[track_caller]
fn upload(method: &Method, topology: &Topology, servers: &Servers, family: Family) {
    let client = &topology.clients[1];
    let vip = method.vip(topology, family);
    client.namespace.ip("route flush cache");
    assert_eq!(rare_paths::learned_mtu(client, vip), None);
    let name = format!("{}-{family:?}", method.name);
    let url = http::url(method.tcp(topology, family), &format!("/uploads/{name}"));
    let body = content::bytes(LARGE);
    let answer = http::upload(&client.namespace, &url, &body)
        .unwrap_or_else(|error| panic!("upload by {}: {error}", method.name));
    assert!((200..300).contains(&answer.status), "{}: {answer:?}", method.name);
    let kept = servers.nginx.iter().find_map(|nginx| nginx.uploaded(&name));
    content::check(0, &kept.expect("the upload is at one of the servers")).unwrap();
    // An IPv4 header more is 20 bytes, an IPv6 header 40.
    let tunnel = Some(if family == Family::V4 { 1480 } else { 1460 });
    let learned = rare_paths::learned_mtu(client, vip);
    assert_eq!(learned, if method.name == "tun" { tunnel } else { None }, "{}", method.name);
}

#[test]
fn sigterm_leaves_everything_or_takes_everything_away_as_the_director_says() {
    let family = Family::V4;
    let topology = topology();
    let _servers = Servers::start(&topology, family);
    let host = &topology.director().namespace;
    let mut agent = Agent::start(host, &director("keep"));
    agent.apply(&manifests(&topology, family, WEIGHTS[0]));
    let vips: Vec<IpAddr> = METHODS.iter().map(|method| method.vip(&topology, family)).collect();
    let pool = topology.pool_v4(0).into();
    let addresses: Vec<IpAddr> = vips.iter().copied().chain([pool]).collect();

    assert!(agent.sigterm().success(), "{}", agent.log());
    assert!(events::attached(host).is_some(), "kept, and the program is gone");
    assert!(agent.pins().read_dir().unwrap().count() > 0, "kept, and the pins are gone");
    assert_eq!(addresses_of(host, &addresses), addresses);
    for method in &METHODS {
        let tcp = method.tcp(&topology, family);
        topology.client().namespace.run(|| newcomers::fetch(tcp)).unwrap();
    }

    agent.configure(&director("release"));
    agent.restart();
    agent.process().signal(nix::sys::signal::Signal::SIGTERM);
    wait::until("the addresses are gone", Duration::from_secs(5), || {
        addresses_of(host, &addresses).is_empty()
    });
    assert!(events::attached(host).is_some(), "the program went before the wait was over");
    let status =
        wait::until_some("the agent ended", Duration::from_secs(10), || agent.process().exit_status());
    assert!(status.success(), "{status}: {}", agent.log());
    assert_eq!(events::attached(host), None, "released, and a program is there");
    let left: Vec<_> = agent.pins().read_dir().into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "released, and pinned are {left:?}");
}

/// Those of the addresses that are on an interface.
fn addresses_of(host: &Namespace, wanted: &[IpAddr]) -> Vec<IpAddr> {
    let listed = host.output("ip", &["-o", "address"]);
    let is_there = |address: &&IpAddr| listed.contains(&format!(" {address}/"));
    wanted.iter().filter(is_there).copied().collect()
}

/// What interfaces and sockets have dropped: tells a loss of the laboratory from one of the director's.
fn drops(topology: &Topology) -> String {
    let hosts = topology.directors.iter().chain(&topology.servers).chain(&topology.clients);
    let mut lines = String::new();
    for namespace in hosts.map(|host| &host.namespace).chain([&topology.switch]) {
        let links = namespace.output("ip", &["-s", "-j", "link"]);
        let links: serde_json::Value = serde_json::from_str(&links).expect("ip writes JSON");
        for link in links.as_array().into_iter().flatten() {
            let [rx, tx] = ["rx", "tx"].map(|way| link["stats64"][way]["dropped"].as_u64().unwrap_or(0));
            let (host, name) = (namespace.role(), link["ifname"].as_str().unwrap_or_default());
            if rx + tx > 0 {
                lines += &format!("{host} {name}: rx {rx} tx {tx} dropped\n");
            }
            if link["link_type"] == "ether" && !name.starts_with("br") {
                let counters = namespace.output("ethtool", &["-S", name]);
                let bad = |line: &&str| line.contains("drop") || line.contains("err");
                let some = |line: &&str| !line.ends_with(": 0");
                for line in counters.lines().map(str::trim).filter(bad).filter(some) {
                    lines += &format!("{host} {name}: {line}\n");
                }
            }
        }
        let sockets =
            namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default());
        if let Some(udp) = sockets.lines().filter(|line| line.starts_with("Udp: ")).nth(1) {
            lines += &format!("{} {udp}\n", namespace.role());
        }
    }
    // Second column: frames for which a CPU's backlog had no room, in all namespaces.
    lines + &std::fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default()
}
