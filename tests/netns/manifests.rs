//! What an operator does with manifests, and what becomes of it: bad ones, files that come and go, restarts,
//! and orders that change a running service.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::http::{self, Download};
use lb_tests::{Agent, Namespace, Nginx, Topology, wait};
use serde_json::Value;

use crate::site::{
    SOON, Service, assert_shares, director, director_with, documents, get, nginx_everywhere, nobody_serves,
    pool, real_server, shares, until_all_in,
};

/// The service that runs while others are tried: NAT, so that the real servers need nothing.
fn web(topology: &Topology) -> Service {
    topology.replies_through_director();
    let mut web = Service::tcp("web", topology.vip_v4(0).into(), 80, "nat").servers(&topology.servers);
    web.servers.iter_mut().for_each(|server| server.1 = None);
    web
}

/// A service that is right in this topology, one field a line.
const GOOD: &str = "apiVersion: lb/v1
kind: VirtualService
metadata: {name: bad}
spec:
  address: 10.1.0.101
  ports: [80]
  protocol: tcp
  forwarding: dr
  scheduler: rr
  realServers:
    - {address: 10.1.0.11, weight: 1}
";

/// What is wrong, what is written otherwise (from, to), and what the refusal must say after the file's name.
type Mistake = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

const BAD: [Mistake; 10] = [
    (
        "a typo",
        &[("  scheduler:", "  schedular:")],
        &[":9:3: spec.schedular: unknown field", "did you mean `scheduler`?"],
    ),
    (
        "a weight of 70000",
        &[("weight: 1}", "weight: 70000}")],
        &[":11:36: spec.realServers[0].weight: 70000 is above 65535"],
    ),
    ("the VIP of another service", &[("10.1.0.101", "10.1.0.100")], &[":6:", "spec.ports", "web"]),
    (
        "a FULLNAT service without a pool",
        &[("forwarding: dr", "forwarding: fullnat")],
        &[":4:1: spec.localAddresses: is required by fullnat"],
    ),
    (
        "a FULLNAT service with a pool that is not there",
        &[("forwarding: dr", "forwarding: fullnat\n  localAddresses: pond")],
        &[":9:19: spec.localAddresses: ", "pond"],
    ),
    (
        "a pool address that is an interface's own",
        &[(
            GOOD,
            "apiVersion: lb/v1\nkind: LocalAddressPool\nmetadata: {name: pool}\nspec: {addresses: [10.1.0.1]}\n",
        )],
        &[":4:20: spec.addresses[0]: ", "10.1.0.1", "eth0"],
    ),
    (
        "a port under dr",
        &[("weight: 1}", "port: 8080}")],
        &[":11:28: spec.realServers[0].port: dr cannot change the port", "dr"],
    ),
    (
        "a real server of the wrong family for its method",
        &[("10.1.0.11,", "\"fd00:1::11\",")],
        &[":11:17: spec.realServers[0].address: ", "tun"],
    ),
    (
        "an interface that does not exist",
        &[("  scheduler:", "  addressInterface: eth9\n  scheduler:")],
        &[":9:21: spec.addressInterface: interface `eth9` does not exist", "this host has", "eth0"],
    ),
    ("no YAML at all", &[("ports: [80]", "ports: [80")], &["bad.yaml:7:11: did not find expected"]),
];

#[test]
fn a_bad_manifest_is_refused_with_its_place_and_what_would_be_right_and_nothing_changes() {
    let topology = Topology::builder().servers(2).build();
    let _nginx = nginx_everywhere(&topology, &[80]);
    let host = &topology.director().namespace;
    let agent = Agent::start(host, &director(&["eth0"]));
    let web = web(&topology);
    agent.apply(&web.yaml());
    until_all_in(&agent);
    let file = host.directory().join("bad.yaml");
    let path = file.to_str().unwrap();

    std::fs::write(&file, GOOD).unwrap();
    let valid = agent.cli(&["validate", "-f", path]).expect_success();
    assert!(valid.contains("1 object, valid"), "{valid}");
    let objects = get(&agent, &["objects"]);

    for (what, edits, said) in BAD {
        let mut text = GOOD.to_owned();
        for (good, bad) in edits {
            assert!(text.contains(good), "{what}: {good:?} is not in the manifest");
            text = text.replace(good, bad);
        }
        std::fs::write(&file, &text).unwrap();
        for command in ["validate", "plan", "apply"] {
            // One file alone cannot know of the service that runs.
            if what.starts_with("the VIP") && command == "validate" {
                continue;
            }
            let answer = agent.cli(&[command, "-f", path]);
            assert_eq!(answer.status.code(), Some(1), "{command} with {what}: {answer:?}");
            let complaint = answer.expect_failure();
            let line = complaint.lines().find(|line| line.contains("bad.yaml:"));
            assert!(line.is_some(), "{command} with {what} names no file: {complaint}");
            for part in said {
                assert!(
                    complaint.contains(part),
                    "{command} with {what} does not say {part:?}:\n{complaint}"
                );
            }
        }
        assert_eq!(get(&agent, &["objects"]), objects, "{what} has changed the objects");
    }
    assert_shares(&shares(&topology.client().namespace, &web.url("/"), 4), &[2, 2], &web.name);

    // Wrong usage is another exit code.
    assert_eq!(agent.cli(&["apply"]).status.code(), Some(2));
    // What is not there cannot be deleted.
    let missing = agent.cli(&["delete", "VirtualService", "nobody"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stderr.contains("VirtualService/nobody does not exist"), "{}", missing.stderr);
}

#[test]
fn a_director_with_an_interface_that_is_not_there_is_refused_with_its_place() {
    let host = Namespace::new("director");
    let mut agent = Agent::prepare(&host, &director(&["eth9"]));
    agent.launch();
    wait::until("the agent ends", SOON, || agent.process().exit_status().is_some());
    let log = agent.log();
    assert!(
        log.contains("director.yaml:6:14: spec.interfaces[0].name: interface `eth9` does not exist"),
        "{log}"
    );
}

#[test]
fn xdp_that_the_driver_refuses_is_explained_when_native_and_replaced_by_generic_when_auto() {
    let topology = Topology::builder().build();
    let host = &topology.director().namespace;
    // A veth whose peer's frames do not fit into a page takes no program.
    host.ip(
        "link add jumbo mtu 9000 type veth peer name other mtu 9000\nlink set jumbo up\nlink set other up",
    );
    let mut agent = Agent::prepare(host, &director(&["eth0", "jumbo, xdp: native"]));
    agent.launch();
    wait::until("the agent ends", SOON, || agent.process().exit_status().is_some());
    let log = agent.log();
    assert!(log.contains("attach XDP to jumbo in native mode: "), "{log}");
    assert!(log.contains("MTU"), "the kernel's reason is not in\n{log}");

    agent.configure(&director(&["eth0", "jumbo, xdp: auto"]));
    agent.restart();
    let status = get(&agent, &["status"]);
    let interfaces = status["interfaces"].as_array().unwrap();
    let by_name = |name: &str| interfaces.iter().find(|interface| interface["name"] == name).unwrap();
    assert_eq!(by_name("eth0")["mode"], "native", "{status:#}");
    assert_eq!(by_name("jumbo")["mode"], "generic", "{status:#}");
    let reason = by_name("jumbo")["reason"].as_str().unwrap();
    assert!(reason.contains("MTU"), "{reason:?} is not the kernel's reason");
}

#[test]
fn files_of_the_manifests_directory_count_when_they_come_change_break_and_go() {
    let topology = Topology::builder().servers(2).build();
    let _nginx = nginx_everywhere(&topology, &[80, 81]);
    let client = &topology.client().namespace;
    let mut agent = Agent::prepare(&topology.director().namespace, &director(&["eth0"]));
    let web = web(&topology);
    agent.write_manifest("web.yaml", &web.yaml());
    agent.restart();
    until_all_in(&agent);
    assert_shares(&shares(client, &web.url("/"), 4), &[2, 2], "the file that was there at the start");
    let origin = |agent: &Agent, name: &str| {
        let services = get(agent, &["services"]);
        let found = services.as_array().unwrap().iter().find(|service| service["name"] == name).cloned();
        found.map(|service| service["origin"].clone())
    };
    let file = origin(&agent, "web").expect("web runs")["file"].as_str().unwrap().to_owned();
    assert!(file.ends_with("web.yaml"), "{file}");

    // Another file comes.
    let other = Service { name: "other".into(), port: 81, ..web.clone() };
    agent.write_manifest("other.yaml", &other.yaml());
    let came = wait::holds_within(SOON, || origin(&agent, "other").is_some());
    assert!(came, "the new file's service is not there; the agent wrote:\n{}", agent.log());
    until_all_in(&agent);
    assert_shares(&shares(client, &other.url("/"), 4), &[2, 2], &other.name);

    // It changes.
    agent.write_manifest("other.yaml", &other.clone().scheduler("wrr").weights(&[3, 1]).yaml());
    let weight = |agent: &Agent| real_server(agent, "other", other.servers[0].0)["weight"].clone();
    wait::until("the changed file's weight counts", SOON, || weight(&agent) == 3);
    assert_shares(&shares(client, &other.url("/"), 8), &[6, 2], &other.name);

    // What a file owns is not the API's to change.
    let owned = agent.cli_with_input(&["apply", "-f", "-"], &other.yaml());
    assert_eq!(owned.status.code(), Some(1));
    assert!(owned.stderr.contains("VirtualService/other belongs to the file"), "{}", owned.stderr);
    assert!(owned.stderr.contains("other.yaml"), "{}", owned.stderr);
    let owned = agent.cli(&["delete", "VirtualService", "other"]).expect_failure();
    assert!(
        owned.contains("VirtualService/other belongs to the file") && owned.contains("other.yaml"),
        "{owned}"
    );
    assert_eq!(weight(&agent), 3);

    // It breaks: the last good one goes on, and status says what is wrong; so it is after a restart.
    agent.write_manifest("other.yaml", &other.yaml().replace("scheduler: rr", "scheduler: rrr"));
    let complaint = |agent: &Agent| {
        let problems = get(agent, &["status"])["problems"].clone();
        let problems: Vec<String> = serde_json::from_value(problems).unwrap();
        problems.into_iter().find(|problem| problem.contains("other.yaml:9:14: spec.scheduler: "))
    };
    wait::until("status says what is wrong", SOON, || complaint(&agent).is_some());
    assert_shares(&shares(client, &other.url("/"), 8), &[6, 2], "the last good file counts");
    agent.kill9();
    agent.restart();
    until_all_in(&agent);
    assert!(complaint(&agent).is_some(), "{}", get(&agent, &["status"]));
    assert_shares(&shares(client, &other.url("/"), 8), &[6, 2], "and after a restart");

    // It is mended, then it goes.
    agent.write_manifest("other.yaml", &other.yaml());
    wait::until("nothing is wrong any more", SOON, || complaint(&agent).is_none() && weight(&agent) == 1);
    std::fs::remove_file(agent.manifests().join("other.yaml")).unwrap();
    wait::until("the service goes with its file", SOON, || origin(&agent, "other").is_none());
    nobody_serves(client, &other.url("/"));
    assert_shares(&shares(client, &web.url("/"), 4), &[2, 2], &web.name);
}

#[test]
fn objects_of_the_api_survive_a_kill_and_the_same_apply_writes_nothing() {
    let topology = Topology::builder().servers(2).build();
    let _nginx = nginx_everywhere(&topology, &[80, 8080]);
    let client = &topology.client().namespace;
    let mut agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let web = web(&topology);
    let api = Service::tcp("api", topology.vip_v6(0).into(), 80, "fullnat").servers(&topology.servers);
    let manifest = pool(&topology, "eth0") + &documents([&web, &api]);

    let plan = agent.cli_with_input(&["plan", "-f", "-"], &manifest).expect_success();
    for line in
        ["+ LocalAddressPool/pool", "+ VirtualService/api", "+ VirtualService/web", "would be: 3 added"]
    {
        assert!(plan.contains(line), "{line:?} is not in\n{plan}");
    }
    assert_eq!(get(&agent, &["services"]), Value::Array(Vec::new()), "a plan changes nothing");
    agent.apply(&manifest);
    until_all_in(&agent);
    let unchanged = |agent: &Agent| {
        let text = agent.cli_with_input(&["apply", "-f", "-", "-o", "json"], &manifest).expect_success();
        let outcome: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(outcome["mapWrites"], 0, "{outcome:#}");
        assert_eq!(outcome["plan"], Value::Array(Vec::new()), "{outcome:#}");
    };
    unchanged(&agent);
    let objects = get(&agent, &["objects"]);

    agent.kill9();
    for service in [&web, &api] {
        assert_shares(&shares(client, &service.url("/"), 4), &[2, 2], "without an agent");
    }
    agent.restart();
    assert_eq!(get(&agent, &["objects"]), objects);
    until_all_in(&agent);
    unchanged(&agent);
    for service in [&web, &api] {
        assert_shares(&shares(client, &service.url("/"), 4), &[2, 2], "after the restart");
    }

    // `--prune` removes what an earlier apply put in place and this one does not have.
    let pruned = agent.cli_with_input(&["apply", "-f", "-", "--prune"], &web.yaml()).expect_success();
    for line in ["- LocalAddressPool/pool", "- VirtualService/api", "2 removed"] {
        assert!(pruned.contains(line), "{line:?} is not in\n{pruned}");
    }
    agent.cli(&["delete", "VirtualService", "web"]).expect_success();
    agent.kill9();
    agent.restart();
    assert_eq!(get(&agent, &["services"]), Value::Array(Vec::new()), "what was deleted stays away");
}

#[test]
fn a_changed_weight_moves_new_flows_only() {
    let topology = Topology::builder().servers(2).build();
    let nginx = nginx_everywhere(&topology, &[80]);
    nginx.iter().for_each(|nginx| nginx.offer(3 << 20));
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let web = web(&topology).scheduler("wrr");
    agent.apply(&web.yaml());
    until_all_in(&agent);

    // Two downloads in a row: one from each server.
    let downloads: Vec<Download> = (0..2)
        .map(|_| {
            let download = Download::start(client, web.socket(), "/slow/1024k/3145728");
            wait::until("the download has begun", SOON, || download.progress() > 0);
            download
        })
        .collect();
    let plan =
        agent.cli_with_input(&["plan", "-f", "-"], &web.clone().weights(&[1, 0]).yaml()).expect_success();
    assert!(plan.contains("~ VirtualService/web  spec.realServers (live)"), "{plan}");
    agent.apply(&web.clone().weights(&[1, 0]).yaml());
    assert_eq!(real_server(&agent, "web", web.servers[1].0)["state"], "draining");
    assert_shares(&shares(client, &web.url("/"), 6), &[6], "nothing new for weight 0");
    agent.apply(&web.clone().weights(&[2, 1]).yaml());
    assert_shares(&shares(client, &web.url("/"), 6), &[4, 2], &web.name);
    // Removed altogether: what it has goes on.
    let mut one = web.clone();
    one.servers.pop();
    agent.apply(&one.yaml());
    assert_shares(&shares(client, &web.url("/"), 4), &[4], &web.name);
    assert!(downloads.iter().all(|download| download.progress() < 3 << 20), "the downloads were too short");
    let mut servers: Vec<String> = downloads
        .into_iter()
        .map(|download| download.finish().expect("an established download").server)
        .collect();
    servers.sort();
    assert_eq!(servers, ["server0", "server1"]);

    agent.cli(&["delete", "VirtualService", "web"]).expect_success();
    nobody_serves(client, &web.url("/"));
}

/// The addresses on an interface, as `ip` writes them, IPv4 and IPv6.
fn addresses(host: &Namespace, interface: &str) -> Vec<String> {
    let text = host.output("ip", &["-j", "address", "show", "dev", interface]);
    let links: Value = serde_json::from_str(&text).expect("ip writes JSON");
    let addresses = links[0]["addr_info"].as_array().expect("addresses are a list");
    addresses
        .iter()
        .map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]))
        .collect()
}

fn has_xdp(host: &Namespace, interface: &str) -> bool {
    host.output("ip", &["-d", "link", "show", "dev", interface]).contains("prog/xdp")
}

fn pings(client: &Namespace, address: IpAddr) -> bool {
    let address = address.to_string();
    client.command("ping").args(["-c", "1", "-W", "2", &address]).output().unwrap().status.success()
}

#[test]
fn the_agent_places_a_vip_and_takes_away_its_own_addresses_only() {
    let topology = Topology::builder().servers(2).build();
    let _nginx = nginx_everywhere(&topology, &[80]);
    let (host, client) = (&topology.director().namespace, &topology.client().namespace);
    // The director's own service on every address it has, as sshd would be.
    let own = Nginx::start(host, "own", &[22]);
    let [first, second] = [topology.vip_v4(0), topology.vip_v4(1)].map(IpAddr::from);
    let sixth = IpAddr::from(topology.vip_v6(0));
    let foreign = format!("{second}/32");
    host.ip(&format!("address add {foreign} dev eth0"));
    let before = addresses(host, "eth0");

    let mut agent = Agent::start(host, &director_with(&["eth0"], "  shutdown: {traffic: keep}\n"));
    let web = web(&topology);
    let also = Service { name: "also".into(), vip: second, ..web.clone() };
    let mut six = Service::tcp("six", sixth, 80, "nat").servers(&topology.servers);
    six.servers.iter_mut().for_each(|server| server.1 = None);
    agent.apply(&documents([&web, &also, &six]));
    until_all_in(&agent);
    for service in [&web, &also, &six] {
        assert_shares(&shares(client, &service.url("/"), 4), &[2, 2], &service.name);
        assert!(pings(client, service.vip), "the kernel answers no ping to {}", service.vip);
        let ssh = Service { port: 22, ..service.clone() };
        assert_eq!(http::get(client, &ssh.url("/")).unwrap().server, own.name(), "{}", service.vip);
    }
    let placed = addresses(host, "eth0");
    for vip in [format!("{first}/32"), format!("{sixth}/128"), foreign.clone()] {
        assert!(placed.contains(&vip), "{vip} is not in {placed:?}");
    }

    // SIGTERM with `keep`: addresses and traffic stay, and the next agent takes both over.
    assert!(agent.sigterm().success(), "{}", agent.log());
    assert_eq!(addresses(host, "eth0"), placed);
    assert!(has_xdp(host, "eth0"));
    assert_shares(&shares(client, &web.url("/"), 4), &[2, 2], "after SIGTERM");
    agent.restart();
    assert_eq!(addresses(host, "eth0"), placed);

    // Deleted: what the agent placed goes, what somebody else placed stays.
    agent.cli(&["delete", "VirtualService", "web"]).expect_success();
    agent.cli(&["delete", "VirtualService", "also"]).expect_success();
    let left = addresses(host, "eth0");
    assert!(!left.contains(&format!("{first}/32")), "{left:?}");
    assert!(left.contains(&foreign), "{left:?}");

    // SIGTERM with `release`: addresses away, then the program.
    agent.configure(&director_with(&["eth0"], "  shutdown: {traffic: release, wait: 200ms}\n"));
    agent.restart();
    until_all_in(&agent);
    assert!(addresses(host, "eth0").contains(&format!("{sixth}/128")));
    assert!(agent.sigterm().success(), "{}", agent.log());
    assert_eq!(addresses(host, "eth0"), before);
    assert!(!has_xdp(host, "eth0"));

    // And back again.
    agent.restart();
    until_all_in(&agent);
    let back = wait::holds_within(Duration::from_secs(5), || http::get(client, &six.url("/")).is_ok());
    assert!(back, "{}", agent.log());
}
