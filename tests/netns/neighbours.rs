//! Real servers that change their hardware address, and real servers that are not there yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_tests::link::{format_mac, set_mac};
use lb_tests::topology::Subnet;
use lb_tests::udp::Stream;
use lb_tests::{Agent, Topology, UdpServer, udp, wait};

use crate::site::{
    SOON, Service, assert_shares, director, documents, family, nginx_everywhere, real_server, shares,
    udp_everywhere, until_all_in, vips,
};

/// A change is followed within a second on a quiet machine; a busy one gets more.
const FOLLOWED: Duration = Duration::from_secs(8);

/// Every next hop is asked again after 20 to 30 seconds.
const SILENT: Duration = Duration::from_secs(45);

#[test]
fn a_real_server_that_announces_a_new_hardware_address_is_followed_at_once() {
    let topology = Topology::builder().servers(2).build();
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    let servers = udp_everywhere(&topology, &[53]);
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let services = vips(&topology)
        .map(|vip| Service::udp(&format!("dns-{}", family(vip)), vip, 53, "dr").servers(&topology.servers));
    agent.apply(&documents(&services));
    until_all_in(&agent);

    // It says so itself when its address changes, as a virtual machine does that has moved.
    let moved = &topology.servers[0];
    moved.namespace.sysctl("net.ipv4.conf.eth0.arp_notify=1");
    moved.namespace.sysctl("net.ipv6.conf.eth0.ndisc_notify=1");
    for (number, service) in services.iter().enumerate() {
        let stream = Stream { to: service.socket(), rate: 200, flows: 2, answers: true };
        let stream = stream.start(client);
        wait::until("answers come back", SOON, || stream.answered() >= 20);
        let mac = [2, 0, 0, 0, 9, number as u8];
        let changed = Instant::now();
        set_mac(&moved.namespace, "eth0", mac);
        let address = moved.address(service.vip);
        let hop = format!("{} on eth0", format_mac(mac));
        let mut shown = real_server(&agent, &service.name, address);
        let used = wait::holds_within(SOON, || {
            shown = real_server(&agent, &service.name, address);
            shown["nextHop"] == hop.as_str()
        });
        let took = changed.elapsed();
        assert!(used, "{hop} is not used: {shown}\nthe agent wrote:\n{}", agent.log());
        assert!(took < FOLLOWED, "{}: the new address was used after {took:?} only", service.name);

        // From now on nothing is lost, and each flow is where it was.
        let mark = stream.answered();
        wait::until("answers go on", SOON, || stream.answered() >= mark + 100);
        let report = stream.finish(&servers);
        assert_eq!(report.split_flows, [0u16; 0], "{}: a flow moved to another server", service.name);
        let last = report.sent - 50;
        let lost: Vec<_> = report.lost.iter().filter(|number| **number >= last).collect();
        assert!(lost.is_empty(), "{}: {lost:?} of {} still lost", service.name, report.sent);
        assert_eq!(report.per_server.values().filter(|count| **count > 0).count(), 2, "{report:?}");
    }
}

#[test]
fn a_real_server_that_changes_its_hardware_address_in_silence_is_found_again() {
    let topology = Topology::builder().servers(1).build();
    let vip = topology.vip_v4(0).into();
    topology.vip_on_servers(vip);
    let _udp = udp_everywhere(&topology, &[53]);
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let service = Service::udp("dns", vip, 53, "dr").servers(&topology.servers);
    agent.apply(&service.yaml());
    until_all_in(&agent);
    set_mac(&topology.servers[0].namespace, "eth0", [2, 0, 0, 0, 9, 9]);
    let address = topology.servers[0].v4().into();
    wait::until("its new hardware address is used", SILENT, || {
        real_server(&agent, "dns", address)["nextHop"] == "02:00:00:00:09:09 on eth0"
    });
    assert_eq!(udp::ask(&topology.client().namespace, service.socket()).unwrap(), "server0");
}

#[test]
fn a_real_server_that_is_not_there_is_explained_and_joins_when_it_appears() {
    let topology = Topology::builder().servers(2).build();
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    let _nginx = nginx_everywhere(&topology, &[80]);
    let client = &topology.client().namespace;
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let late = |vip: IpAddr| match vip {
        IpAddr::V4(_) => IpAddr::from(Subnet::Front.v4(19)),
        IpAddr::V6(_) => Subnet::Front.v6(19).into(),
    };
    let services = vips(&topology).map(|vip| {
        let service = Service::tcp(&format!("web-{}", family(vip)), vip, 80, "dr");
        service.servers(&topology.servers[..1]).addresses([late(vip)])
    });
    agent.apply(&documents(&services));
    for service in &services {
        let address = late(service.vip);
        wait::until("the reason is known", SOON, || {
            let shown = real_server(&agent, &service.name, address);
            let reason = shown["reason"].as_str().unwrap().to_owned();
            shown["state"] != "in" && reason.contains(&address.to_string()) && reason.contains("eth0")
        });
        let table = agent.cli(&["get", "real-servers", &service.name]).expect_success();
        assert!(table.contains(&address.to_string()) && table.contains("no "), "{table}");
        assert_shares(&shares(client, &service.url("/"), 4), &[4], &service.name);
    }
    for service in &services {
        let address = late(service.vip);
        let length = if address.is_ipv4() { 24 } else { 64 };
        topology.servers[1].namespace.ip(&format!("address add {address}/{length} dev eth0 nodad"));
        wait::until("it has joined", 2 * SOON, || {
            real_server(&agent, &service.name, address)["state"] == "in"
        });
        assert_shares(&shares(client, &service.url("/"), 4), &[2, 2], &service.name);
    }
}

#[test]
fn a_service_whose_only_server_comes_after_the_agent_begins_to_serve_by_itself() {
    let topology = Topology::builder().servers(1).build();
    let server = &topology.servers[0].namespace;
    let vip = topology.vip_v4(0).into();
    topology.vip_on_servers(vip);
    server.ip("link set eth0 down");
    let _udp = UdpServer::start(server, "late", &[53]);
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let service = Service::udp("dns", vip, 53, "dr").servers(&topology.servers);
    agent.apply(&service.yaml());
    let described = agent.cli(&["get", "services"]).expect_success();
    assert!(described.contains("0/1"), "{described}");
    server.ip("link set eth0 up");
    until_all_in(&agent);
    let answers: BTreeMap<String, usize> =
        [(udp::ask(&topology.client().namespace, service.socket()).unwrap(), 1)].into();
    assert_eq!(answers, BTreeMap::from([("late".to_owned(), 1)]));
}
