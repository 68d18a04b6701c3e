//! What the agent says about traffic: counters that add up to what came in, connections that are shown and
//! freed, and the segment size that a SYN is given.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_tests::http::{self, Download};
use lb_tests::{Agent, Namespace, Topology, udp, wait};
use serde_json::Value;

use crate::site::{
    SOON, Service, director, documents, get, nginx_everywhere, nobody_serves, pool, shares,
    tunnels_everywhere, udp_everywhere, until_all_in, vips,
};

/// Frames that the interface says it has received, XDP's included.
fn received(host: &Namespace, interface: &str) -> u64 {
    let text = host.output("ip", &["-s", "-j", "link", "show", "dev", interface]);
    let links: Value = serde_json::from_str(&text).expect("ip writes JSON");
    links[0]["stats64"]["rx"]["packets"].as_u64().expect("a number of packets")
}

/// What the data plane counted: frames by reason, and `forwarded` for those that went to or from a server.
fn counted(agent: &Agent) -> BTreeMap<String, u64> {
    let counters = get(agent, &["counters"]);
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number in {counters:#}"));
    let mut counted = BTreeMap::new();
    for reason in counters["reasons"].as_array().expect("reasons are a list") {
        // An event happens besides what the frame is counted for.
        if reason["class"] != "event" {
            counted.insert(reason["name"].as_str().unwrap().to_owned(), number(&reason["packets"]));
        }
    }
    let traffic = |part: &str| number(&counters[part]["packetsIn"]) + number(&counters[part]["packetsOut"]);
    counted.insert("forwarded".into(), traffic("forwarded") + traffic("retired"));
    counted
}

/// Both at a moment when nothing came in between.
fn at_rest(host: &Namespace, agent: &Agent) -> (u64, BTreeMap<String, u64>) {
    wait::until_some("the interface is quiet for a moment", SOON, || {
        let before = received(host, "eth0");
        let counted = counted(agent);
        (received(host, "eth0") == before).then_some((before, counted))
    })
}

#[test]
fn every_frame_that_came_in_is_counted_once() {
    let topology = Topology::builder().servers(2).servers_with_xdp().build();
    let _nginx = nginx_everywhere(&topology, &[80, 81, 82, 83, 8080]);
    let _udp = udp_everywhere(&topology, &[53, 8053]);
    let _tunnels = tunnels_everywhere(&topology, &vips(&topology));
    topology.replies_through_director();
    let (host, client) = (&topology.director().namespace, &topology.client().namespace);
    let agent = Agent::start(host, &director(&["eth0, xdp: native"]));
    let mut services = Vec::new();
    for vip in vips(&topology) {
        let family = crate::site::family(vip);
        services.extend([("dr", 80), ("tun", 81), ("nat", 82), ("fullnat", 83)].map(|(forwarding, port)| {
            Service::tcp(&format!("{forwarding}-{family}"), vip, port, forwarding).servers(&topology.servers)
        }));
        services.push(Service::udp(&format!("dns-{family}"), vip, 53, "fullnat").servers(&topology.servers));
    }
    agent.apply(&(pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);

    let (first, before) = at_rest(host, &agent);
    for service in &services {
        if service.protocol == "tcp" {
            shares(client, &service.url("/"), 10);
        } else {
            for _ in 0..10 {
                udp::ask(client, service.socket()).unwrap();
            }
        }
    }
    // Nobody's port on a VIP, a ping to it, and a ping to the director itself.
    for vip in vips(&topology) {
        nobody_serves(client, &http::url(SocketAddr::new(vip, 999), "/"));
        for address in [vip, topology.director().address(vip)] {
            let address = address.to_string();
            assert!(
                client
                    .command("ping")
                    .args(["-c", "3", "-i", "0.05", &address])
                    .output()
                    .unwrap()
                    .status
                    .success()
            );
        }
    }
    // A removed server's frames stay counted.
    agent.cli(&["delete", "VirtualService", "dns-v4"]).expect_success();
    let (last, after) = at_rest(host, &agent);
    let difference: BTreeMap<&str, u64> = after
        .iter()
        .map(|(name, count)| (name.as_str(), count - before.get(name).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let sum: u64 = difference.values().sum();
    assert_eq!(last - first, sum, "received on eth0, and the sum of {difference:?}");
    assert!(sum > 500, "so little came in that it proves nothing: {difference:?}");
    assert!(difference["forwarded"] > 400, "{difference:?}");

    let shown = get(&agent, &["services"]);
    for service in &services {
        if service.name == "dns-v4" {
            continue;
        }
        let view =
            shown.as_array().unwrap().iter().find(|view| view["name"] == service.name.as_str()).unwrap();
        let (inward, outward) = (&view["traffic"]["packetsIn"], &view["traffic"]["packetsOut"]);
        assert!(inward.as_u64().unwrap() >= 10, "{view:#}");
        let returns = matches!(service.forwarding, "nat" | "fullnat");
        assert_eq!(outward.as_u64().unwrap() >= 10, returns, "{view:#}");
        assert_eq!((&view["serversIn"], &view["servers"]), (&Value::from(2), &Value::from(2)), "{view:#}");
    }
}

#[test]
fn connections_are_shown_while_they_live_and_freed_when_they_expire() {
    let topology = Topology::builder().servers(1).build();
    let nginx = nginx_everywhere(&topology, &[80, 81, 82, 8080]);
    nginx.iter().for_each(|nginx| nginx.offer(1 << 20));
    let _udp = udp_everywhere(&topology, &[53, 8053]);
    vips(&topology).into_iter().for_each(|vip| topology.vip_on_servers(vip));
    topology.replies_through_director();
    let client = topology.client();
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let timeouts =
        "timeouts: {established: 3s, synReceived: 1s, finWait: 1s, timeWait: 1s, close: 1s, unconfirmed: 1s}";
    let services = vips(&topology).map(|vip| {
        let family = crate::site::family(vip);
        [("dr", 80), ("nat", 81), ("fullnat", 82)].map(|(forwarding, port)| {
            let service = Service::tcp(&format!("{forwarding}-{family}"), vip, port, forwarding);
            service.servers(&topology.servers).with(timeouts)
        })
    });
    let services: Vec<Service> = services.into_iter().flatten().collect();
    let dns = Service::udp("dns", topology.vip_v4(0).into(), 53, "fullnat")
        .servers(&topology.servers)
        .with("timeouts: {udp: 1s, unconfirmed: 1s}");
    agent.apply(&(pool(&topology, "eth0") + &documents(services.iter().chain([&dns]))));
    until_all_in(&agent);
    let connections = |words: &[&str]| -> Vec<Value> {
        let words: Vec<&str> = ["connections"].iter().chain(words).copied().collect();
        let view = get(&agent, &words);
        view["connections"].as_array().unwrap_or_else(|| panic!("connections are a list: {view}")).clone()
    };

    let downloads: Vec<Download> = services
        .iter()
        .map(|service| Download::start(&client.namespace, service.socket(), "/slow/200k/1048576"))
        .collect();
    for (service, download) in services.iter().zip(&downloads) {
        wait::until("the download has begun", SOON, || download.progress() > 0);
        let shown = connections(&[&service.name]);
        let [flow] = &shown[..] else { panic!("{} has one flow, not {shown:#?}", service.name) };
        let (address, port, _) = service.servers[0];
        let real_server = SocketAddr::new(address, port.unwrap_or(service.port));
        let from: SocketAddr = flow["client"].as_str().unwrap().parse().unwrap();
        assert_eq!(from.ip(), client.address(service.vip), "{flow:#}");
        for (field, wanted) in [
            ("protocol", "tcp".to_owned()),
            ("service", service.name.clone()),
            ("virtualAddress", service.socket().to_string()),
            ("realServer", real_server.to_string()),
            ("forwarding", service.forwarding.to_owned()),
            ("state", "ESTABLISHED".to_owned()),
        ] {
            assert_eq!(flow[field], wanted.as_str(), "{field} of {flow:#}");
        }
        assert_eq!(flow["local"].is_string(), service.forwarding == "fullnat", "{flow:#}");
    }
    udp::ask(&client.namespace, dns.socket()).unwrap();
    assert_eq!(connections(&["dns"]).len(), 1);
    let table = agent.cli(&["get", "connections"]).expect_success();
    assert!(table.contains("ESTABLISHED") && table.contains(&services[0].socket().to_string()), "{table}");
    let active = |state: &str| {
        let services = get(&agent, &["services"]);
        services.as_array().unwrap().iter().map(|service| service[state].as_u64().unwrap()).sum::<u64>()
    };
    let mut last = 0;
    let all = wait::holds_within(SOON, || {
        last = active("active");
        last == downloads.len() as u64
    });
    assert!(all, "{last} of {} downloads are counted as active", downloads.len());
    for download in downloads {
        download.finish().expect("a slow download");
    }
    wait::until("every flow is freed", 2 * SOON, || connections(&[]).is_empty());
    wait::until("the counts follow", SOON, || active("active") + active("inactive") == 0);
}

/// The segment size that a SYN for this service has when it reaches the real server, by tcpdump there.
#[track_caller]
fn mss_at_server(topology: &Topology, service: &Service) -> u16 {
    let server = &topology.servers[0].namespace;
    let mut tcpdump = server.command("tcpdump");
    let inside = service.servers[0].1.unwrap_or(service.port);
    tcpdump.args(["-n", "-l", "-i", "eth0", &format!("tcp and dst port {inside}")]);
    let mut tcpdump = server.spawn(&format!("tcpdump-{}", service.name), tcpdump);
    wait::until("tcpdump listens", SOON, || tcpdump.output().contains("listening on"));
    shares(&topology.client().namespace, &service.url("/"), 1);
    let seen = wait::until_some("tcpdump has seen a SYN", SOON, || {
        let text = tcpdump.output();
        let (_, after) = text.lines().find(|line| line.contains("Flags [S]"))?.split_once("mss ")?;
        after.split([',', ']']).next()?.parse().ok()
    });
    tcpdump.kill();
    seen
}

#[test]
fn a_syn_carries_a_segment_size_that_fits_the_way_to_the_server() {
    let topology = Topology::builder().servers(1).servers_with_xdp().build();
    let _nginx = nginx_everywhere(&topology, &[80, 81, 82, 8080]);
    let _tunnels = tunnels_everywhere(&topology, &vips(&topology));
    topology.replies_through_director();
    let agent = Agent::start(&topology.director().namespace, &director(&["eth0"]));
    let [v4, v6]: [IpAddr; 2] = vips(&topology);
    let service =
        |name, vip, port, forwarding| Service::tcp(name, vip, port, forwarding).servers(&topology.servers);
    // 1500 less the outer header, less the inner IP and TCP headers of 20 or 40 and 20.
    let cases = [
        (service("tun-v4", v4, 80, "tun"), 1500 - 20 - 40),
        (service("tun-v6", v6, 80, "tun"), 1500 - 40 - 60),
        (service("off", v4, 81, "tun").with("mssClamp: false"), 1460),
        (service("number", v4, 82, "nat").with("mssClamp: 1000"), 1000),
        (service("higher", v6, 82, "nat").with("mssClamp: 9000"), 1440),
    ];
    agent.apply(&documents(cases.iter().map(|(service, _)| service)));
    until_all_in(&agent);
    for (service, wanted) in &cases {
        assert_eq!(mss_at_server(&topology, service), *wanted, "{}", service.name);
    }
}
