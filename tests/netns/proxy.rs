//! The PROXY header to servers that wait for it: nginx, whose clients speak first, and MariaDB, which speaks first. Also
//! where the segments that carry it are lost.

use std::net::IpAddr;

use lb_tests::mariadb::{self, MariaDb};
use lb_tests::{Agent, Namespace, Nginx, Topology, http, wait};

use crate::site::{self, Service, TRANSLATED, documents, family, large_both_ways, until_all_in, vips};

/// As long as a connection may take that has to send its first segments several times.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Which arriving TCP segments a server loses, in the words of classic BPF.
#[derive(Clone, Copy)]
pub enum Lost {
    /// Those whose payload begins like a PROXY header.
    WithHeader,
    /// Those of the header alone: the ACK that completes the handshake.
    HeaderAlone,
    /// That ACK where it carries the client's address as an option.
    AckWithToa,
}

/// Segments lost at a server's eth0 until this is dropped.
pub struct Loss<'a> {
    server: &'a Namespace,
}

impl Loss<'_> {
    pub fn of(server: &Namespace, lost: Lost, like: IpAddr) -> Loss<'_> {
        let v4 = like.is_ipv4();
        // IPv4 without options, IPv6 without extension headers; a bare ACK has timestamps.
        let program = match lost {
            // A = data offset in bytes; X = A; A = the word behind the headers.
            Lost::WithHeader => {
                let (offset, payload) = if v4 { (46, 34) } else { (66, 54) };
                format!(
                    "8,48 0 0 {offset},84 0 0 240,116 0 0 2,7 0 0 0,64 0 0 {payload},21 0 1 218762506,6 0 0 2,\
                     6 0 0 4294967295"
                )
            }
            Lost::HeaderAlone => {
                let (at, length) = if v4 { (16, 20 + 32 + 28) } else { (18, 32 + 52) };
                format!("4,40 0 0 {at},21 0 1 {length},6 0 0 2,6 0 0 4294967295")
            }
            Lost::AckWithToa => {
                // The length is that of a SYN too (IPv4); the flags are ACK's.
                let (at, length, flags) = if v4 { (16, 20 + 32 + 8, 47) } else { (18, 32 + 20, 67) };
                format!("6,40 0 0 {at},21 0 3 {length},48 0 0 {flags},21 0 1 16,6 0 0 2,6 0 0 4294967295")
            }
        };
        server.output("tc", &["qdisc", "add", "dev", "eth0", "clsact"]);
        let mut arguments: Vec<&str> =
            "filter add dev eth0 ingress prio 1 bpf da bytecode".split(' ').collect();
        arguments.push(&program);
        server.output("tc", &arguments);
        Loss { server }
    }

    /// How many were lost so far.
    pub fn count(&self) -> u64 {
        let text = self.server.output("tc", &["-s", "-j", "qdisc", "show", "dev", "eth0"]);
        let all: serde_json::Value = serde_json::from_str(&text).expect("tc writes JSON");
        let ours = all.as_array().expect("a list").iter().find(|qdisc| qdisc["kind"] == "clsact");
        ours.expect("the clsact")["drops"].as_u64().expect("a number")
    }

    #[track_caller]
    fn until(&self, count: u64) {
        wait::until(&format!("{count} segments were lost"), PATIENCE, || self.count() >= count);
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        let _ = self.server.command("tc").args(["qdisc", "del", "dev", "eth0", "clsact"]).output();
    }
}

fn services(topology: &Topology) -> Vec<Service> {
    let services = [(80, "nat"), (81, "fullnat")].into_iter().flat_map(|(port, forwarding)| {
        vips(topology).map(|vip| {
            Service::tcp(&format!("{forwarding}-{}", family(vip)), vip, port, forwarding)
                .with("proxyProtocol: v2")
                .addresses([topology.servers[0].address(vip)])
        })
    });
    services.collect()
}

/// The last request was the client's, as nginx learned from the header.
#[track_caller]
pub fn assert_last_was(nginx: &Nginx, client: IpAddr, what: &str) {
    let wanted = format!("{client}:");
    let mut last = Vec::new();
    let known = wait::holds_within(PATIENCE, || {
        last = nginx.requests();
        last.last().is_some_and(|line| line.starts_with(&wanted))
    });
    assert!(known, "{what}: the last request was not {client}'s: {last:?}");
}

#[test]
fn nginx_behind_nat_and_fullnat_learns_who_the_client_is_even_if_the_header_is_lost() {
    let topology = Topology::builder().servers(1).build();
    topology.replies_through_director();
    let server = &topology.servers[0].namespace;
    let nginx = [Nginx::start_behind_proxy(server, "server0", &[TRANSLATED])];
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let services = services(&topology);
    // A listener that waits for a header answers probes that have one.
    let checked: Vec<Service> = services
        .iter()
        .map(|service| service.clone().with("healthCheck: {http: {path: /healthz}, interval: 500ms}"))
        .collect();
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&checked)));
    until_all_in(&agent);
    let probes = nginx[0].requests();
    assert!(probes.iter().any(|line| line.ends_with(" 200 GET /healthz")), "{probes:?}");
    // What follows loses segments with a header, and counts on the log's last line.
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);
    let client = topology.client();
    for service in &services {
        let (name, url) = (&service.name, service.url("/"));
        large_both_ways(&client.namespace, service, &nginx);
        assert_last_was(&nginx[0], client.address(service.vip), name);

        let get = || http::get(&client.namespace, &url).map(|response| response.status);
        let loss = Loss::of(server, Lost::HeaderAlone, service.vip);
        assert_eq!(get(), Ok(200), "{name}: the ACK of the handshake is lost each time");
        assert!(loss.count() > 0, "{name}: nothing was lost, so this proved nothing");
        drop(loss);

        let loss = Loss::of(server, Lost::WithHeader, service.vip);
        std::thread::scope(|scope| {
            let answer = scope.spawn(get);
            // That ACK, the first data, and the first data again.
            loss.until(3);
            drop(loss);
            assert_eq!(answer.join().expect("curl"), Ok(200), "{name}: the first segments are lost");
        });
        assert_last_was(&nginx[0], client.address(service.vip), name);
    }
}

#[test]
fn mariadb_which_speaks_first_learns_who_the_client_is_even_if_the_header_is_lost() {
    let topology = Topology::builder().servers(1).build();
    topology.replies_through_director();
    let server = &topology.servers[0];
    let installed = server.namespace.directory().join("installed");
    mariadb::install(&installed);
    let pool = topology.pool_v4(0);
    let client = topology.client();
    let networks = format!("--proxy-protocol-networks={pool},{}", client.v4());
    let database = MariaDb::start_with(&server.namespace, &installed, 1, &[networks]);
    database.query("CREATE USER app IDENTIFIED BY 'app'; GRANT PROCESS ON *.* TO app");
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let services = ["nat", "fullnat"].map(|forwarding| {
        let vip = IpAddr::from(topology.vip_v4(if forwarding == "nat" { 0 } else { 1 }));
        let mut service = Service::tcp(forwarding, vip, 3306, forwarding).with("proxyProtocol: v2");
        service.servers.push((server.v4().into(), None, 1));
        service
    });
    agent.apply(&(site::pool(&topology, "eth0") + &documents(&services)));
    until_all_in(&agent);
    let who = "SELECT host FROM information_schema.processlist WHERE id = CONNECTION_ID()";
    for service in &services {
        let ask = || mariadb::query_within(&client.namespace, service.vip, who, 30);
        let is_client = |answer: Result<String, String>| {
            let found = answer.as_ref().is_ok_and(|host| host.starts_with(&format!("{}:", client.v4())));
            assert!(found, "{}: the client is {answer:?}", service.name);
        };
        is_client(ask());
        let loss = Loss::of(&server.namespace, Lost::WithHeader, service.vip);
        std::thread::scope(|scope| {
            let answer = scope.spawn(ask);
            loss.until(1);
            drop(loss);
            is_client(answer.join().expect("mariadb"));
        });
    }
}
