//! Two agents share a virtual router in front of the data plane.

use lb_tests::{Agent, Host, Nginx, Topology, agent, http, wait};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

use super::{TAKEOVER, answers, director, example, instance, kinds, owns, until_only, until_role};

/// A director of the pair in `deploy/examples`, with this laboratory's addresses and a priority.
fn of_example(topology: &Topology, pair: &str, priority: u8) -> String {
    let vip = topology.vip_v4(0).to_string();
    let servers: Vec<String> = topology.servers.iter().map(|server| server.v4().to_string()).collect();
    let mut text = example(
        &format!("{pair}/a.yaml"),
        &[("203.0.113.10", &vip), ("priority: 150", &format!("priority: {priority}"))],
    );
    for (n, server) in servers.iter().enumerate() {
        text = text.replace(&format!("10.0.0.{}", 11 + n), server);
    }
    text.replace("10.0.0.254", &topology.vip_v4(1).to_string())
}

#[track_caller]
fn until_served(topology: &Topology, by: &Host, port: u16, story: impl Fn() -> String) {
    let vip = IpAddr::from(topology.vip_v4(0));
    let url = http::url((vip, port).into(), "/");
    let mut last = String::new();
    let served = wait::holds_within(TAKEOVER, || {
        last = format!("{:?}", http::get(&topology.client().namespace, &url).map(|answer| answer.status));
        last == "Ok(200)" && answers(topology, vip) == Some(by.mac())
    });
    assert!(served, "{url} is not served by {} ({last})\n{}", by.namespace.role(), story());
}

/// The life of a pair with LVS-DR behind it: the master is killed, comes back, loses its cable, is
/// handed over, loses its priority.
#[test]
fn a_pair_of_directors_loses_its_master_in_every_way_and_serves_on() {
    let topology = Topology::builder().directors(2).servers(3).clients(1).build();
    let vip = IpAddr::from(topology.vip_v4(0));
    topology.vip_on_servers(vip);
    let _nginx: Vec<Nginx> = topology
        .servers
        .iter()
        .map(|server| Nginx::start(&server.namespace, server.namespace.role(), &[80]))
        .collect();
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let config = |priority| of_example(&topology, "lvs-dr-pair", priority);
    let mut first = Agent::start(&a.namespace, &config(150));
    until_role(&first, "edge", "master");
    let second = Agent::start(&b.namespace, &config(100));
    let story = || format!("second wrote:\n{}", second.log());
    until_role(&second, "edge", "backup");
    until_served(&topology, a, 80, story);

    // kill -9: the lease ends, the other takes over, and the dead one's kernel, which still has the address, does not
    // answer for it.
    first.kill9();
    until_role(&second, "edge", "master");
    until_served(&topology, b, 80, story);
    assert!(owns(a, vip), "nobody was there to take it away");
    for _ in 0..10 {
        topology.client().namespace.output("ip", &["neighbour", "flush", "to", &vip.to_string()]);
        until_served(&topology, b, 80, story);
    }

    // It comes back, and with its priority the VIP does.
    first.restart();
    until_role(&first, "edge", "master");
    until_role(&second, "edge", "backup");
    until_only(a, b, vip, story);
    until_served(&topology, a, 80, story);

    // Its cable is cut.
    topology.switch.ip("link set d1n1 down");
    until_role(&second, "edge", "master");
    until_served(&topology, b, 80, story);
    topology.switch.ip("link set d1n1 up");
    until_role(&first, "edge", "master");
    until_only(a, b, vip, || format!("first wrote:\n{}\n{}", first.log(), story()));

    // An operator moves it, without a gap and for good.
    let said = first.cli(&["vrrp", "handover", "edge", "-o", "json"]).expect_success();
    assert!(said.contains(&b.v4().to_string()), "{said}");
    until_only(b, a, vip, story);
    until_served(&topology, b, 80, story);

    // A priority below the other's hands over at once.
    let apply = |agent: &Agent, priority| {
        agent.configure(&config(priority));
        agent.write_manifest("touch.yaml", "# read again\n");
    };
    apply(&second, 60);
    until_role(&first, "edge", "master");
    until_only(a, b, vip, || format!("first wrote:\n{}\n{}", first.log(), story()));
    until_served(&topology, a, 80, story);

    // And a rehearsal, from where clients are: what became of connections that were open, and of new ones.
    let canary = SocketAddr::new(vip, 80).to_string();
    let drill = ["vrrp", "drill", "edge", "--canary", &canary, "--flows", "4", "-o", "json"];
    let mut command = agent::command(&topology.client().namespace, &drill);
    let output = command.envs(first.environment()).output().expect("start lb-agent");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("the drill's report");
    assert_eq!(report["handover"]["to"], b.v4().to_string(), "{report}");
    let number = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("no {name}: {report}"));
    let fates = ["survivors", "resets", "forgotten"].map(number);
    assert_eq!((number("flows"), fates.iter().sum()), (4, 4), "{report}");
    assert!(number("attempts") > 10 && number("failures") < number("attempts"), "{report}");
    until_only(b, a, vip, story);
}

/// Whatever time a process takes to start here: before a planned restart the master announces an interval that covers
/// it, and the killed one is of a pair whose interval does.
#[test]
fn a_master_that_is_restarted_stays_master_and_the_backup_never_promotes() {
    let topology = Topology::builder().directors(2).servers(1).clients(1).build();
    let vip = IpAddr::from(topology.vip_v4(0));
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let config = |priority, interval| {
        let more = format!("  advertisementInterval: {interval}\n");
        director("[{name: eth0}]", priority, &format!("{vip}/24"), &more)
    };
    let mut first = Agent::start(&a.namespace, &config(150, "1s"));
    until_role(&first, "edge", "master");
    let second = Agent::start(&b.namespace, &config(100, "1s"));
    until_role(&second, "edge", "backup");
    let interval = || instance(&second, "edge")["intervalMs"].as_u64().unwrap_or(0);
    let heard = || instance(&second, "edge")["counters"]["received"].as_u64().unwrap_or(0);
    wait::until("the backup heard the master", TAKEOVER, || heard() > 0);
    for planned in [true, false] {
        if planned {
            assert!(first.sigterm().success());
            assert!(interval() >= 5000, "the backup waits for {} ms an advertisement", interval());
        } else {
            // The backup adopts what it hears, and is then as patient as the slowest machine needs.
            first.configure(&config(150, "10s"));
            first.write_manifest("touch.yaml", "# read again\n");
            wait::until("the longer interval is adopted", TAKEOVER, || interval() == 10_000);
            first.kill9();
        }
        assert!(owns(a, vip), "the address goes with the agent (planned: {planned})");
        let before = heard();
        first.restart();
        until_role(&first, "edge", "master");
        assert!(owns(a, vip) && !owns(b, vip), "planned: {planned}");
        wait::until("advertisements go on", TAKEOVER, || heard() > before);
        let roles = kinds(&second, "edge");
        assert!(
            !roles.contains(&"master".to_owned()),
            "planned: {planned}: {roles:?}\nfirst wrote:\n{}\nsecond wrote:\n{}",
            first.log(),
            second.log()
        );
    }
    let resumed = first.log().matches("it was master before the restart").count();
    assert_eq!(resumed, 2, "{}", first.log());
}

/// LVS-NAT: the real servers' gateway moves together with the VIP, so replies pass whoever is master.
#[test]
fn a_nat_pair_moves_the_gateway_of_its_real_servers_with_the_vip() {
    let topology = Topology::builder().directors(2).servers(3).clients(1).build();
    let gateway = topology.vip_v4(1);
    for server in &topology.servers {
        // The client is in the servers' own subnet: replies must not take the short way.
        server.namespace.output("ip", &["rule", "add", "from", &server.v4().to_string(), "lookup", "100"]);
        server.namespace.ip(&format!("route replace default via {gateway} table 100"));
    }
    let _nginx: Vec<Nginx> = topology
        .servers
        .iter()
        .map(|server| Nginx::start(&server.namespace, server.namespace.role(), &[8080]))
        .collect();
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let mut first = Agent::start(&a.namespace, &of_example(&topology, "lvs-nat-pair", 150));
    until_role(&first, "edge", "master");
    let second = Agent::start(&b.namespace, &of_example(&topology, "lvs-nat-pair", 100));
    until_role(&second, "edge", "backup");
    let story = || format!("second wrote:\n{}", second.log());
    until_served(&topology, a, 80, story);
    assert!(owns(a, gateway.into()) && !owns(b, gateway.into()));
    first.kill9();
    until_role(&second, "edge", "master");
    assert!(owns(b, gateway.into()));
    until_served(&topology, b, 80, story);
}
