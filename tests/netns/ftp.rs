//! FTP with real vsftpd and curl: passive and active, by the old commands and the extended ones, several files over one
//! control connection, down and up.

use std::net::IpAddr;

use lb_tests::{Agent, Namespace, Topology, Vsftpd, content};

use crate::site::{self, Service, documents, family, tunnels_everywhere, until_all_in, vips};

const FILES: [(&str, usize); 2] = [("large", 3 << 20), ("small", 1000)];

/// What curl is told, and what the server must have heard.
struct Way {
    arguments: &'static [&'static str],
    command: &'static str,
}

/// The address in the reply counts: curl would take the control connection's else.
const PASSIVE: [Way; 2] = [
    Way { arguments: &[], command: "EPSV" },
    Way { arguments: &["--disable-epsv", "--no-ftp-skip-pasv-ip"], command: "PASV" },
];
const ACTIVE: [Way; 2] = [
    Way { arguments: &["--ftp-port", "-"], command: "EPRT" },
    Way { arguments: &["--ftp-port", "-", "--disable-eprt"], command: "PORT" },
];

fn ways(vip: IpAddr, active: bool) -> impl Iterator<Item = &'static Way> {
    let all: Vec<&Way> =
        if active { PASSIVE.iter().chain(&ACTIVE).collect() } else { PASSIVE.iter().collect() };
    // The old commands cannot name an IPv6 address.
    all.into_iter().filter(move |way| vip.is_ipv4() || way.command.starts_with('E'))
}

fn vsftpd_everywhere(topology: &Topology) -> Vec<Vsftpd> {
    let start = |server: &lb_tests::Host| {
        let vsftpd = Vsftpd::start(&server.namespace, server.namespace.role(), "");
        for (name, length) in FILES {
            vsftpd.offer(name, &content::bytes(length));
        }
        vsftpd.offer("who", server.namespace.role().as_bytes());
        vsftpd
    };
    topology.servers.iter().map(start).collect()
}

fn service(topology: &Topology, vip: IpAddr, forwarding: &'static str) -> Service {
    let mut service = Service::tcp(&format!("ftp-{forwarding}-{}", family(vip)), vip, 21, forwarding);
    service.servers = topology.servers.iter().map(|server| (server.address(vip), None, 1)).collect();
    service
}

/// Runs curl; returns what it wrote about the control connection.
#[track_caller]
fn curl(client: &Namespace, what: &str, arguments: &[&str]) -> String {
    let mut command = client.command("curl");
    command.args(["-sS", "-v", "-g", "--max-time", "40", "--connect-timeout", "20"]).args(arguments);
    let output = command.output().expect("curl starts");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: curl ended with {}:\n{told}", output.status);
    told
}

/// Several files down and up, each way over one control connection.
#[track_caller]
fn both_ways(client: &Namespace, service: &Service, way: &Way, vsftpd: &[Vsftpd]) {
    let what = format!("{} by {}", service.name, way.command);
    let base = format!("ftp://{}/pub", service.socket());
    let directory = client.directory();
    let mut arguments = way.arguments.to_vec();
    let names = FILES.map(|(name, _)| name).into_iter().chain(["who"]);
    let pairs: Vec<(String, String)> =
        names.map(|name| (directory.join(name).display().to_string(), format!("{base}/{name}"))).collect();
    for (file, url) in &pairs {
        arguments.extend(["-o", file, url]);
    }
    let told = curl(client, &what, &arguments);
    assert_eq!(told.matches("> USER").count(), 1, "{what}: one control connection\n{told}");
    assert_eq!(told.matches(&format!("> {}", way.command)).count(), pairs.len(), "{what}:\n{told}");
    for (name, length) in FILES {
        let got = std::fs::read(directory.join(name)).expect("a file that curl wrote");
        assert_eq!(content::sha256(&got), content::sha256(&content::bytes(length)), "{what}: {name}");
    }
    let who = std::fs::read_to_string(directory.join("who")).expect("a file that curl wrote");
    assert!(told.contains(&format!("220 {who}")), "{what}: control and data are of one server\n{told}");
    if way.command == "PASV" {
        let named = format!("({},", service.vip.to_string().replace('.', ","));
        assert_eq!(told.matches(&named).count(), pairs.len(), "{what}: replies name the VIP\n{told}");
    }

    let sent: Vec<(String, Vec<u8>)> = ["up0", "up1"]
        .map(|name| {
            let name = format!("{}-{}-{name}", service.name, way.command);
            let bytes = content::bytes(2 << 20 | name.len());
            std::fs::write(directory.join(&name), &bytes).expect("write a file to upload");
            (name, bytes)
        })
        .into();
    let files: Vec<String> =
        sent.iter().map(|(name, _)| directory.join(name).display().to_string()).collect();
    let url = format!("{base}/");
    let mut arguments = way.arguments.to_vec();
    for file in &files {
        arguments.extend(["-T", file, &url]);
    }
    let told = curl(client, &what, &arguments);
    assert_eq!(told.matches("> USER").count(), 1, "{what}: one control connection\n{told}");
    for (name, bytes) in &sent {
        let kept = vsftpd.iter().find_map(|vsftpd| vsftpd.uploaded(name));
        let kept = kept.unwrap_or_else(|| panic!("{what}: nobody has {name}\n{told}"));
        assert_eq!(content::sha256(&kept), content::sha256(bytes), "{what}: {name}");
    }
}

fn counter(agent: &Agent, name: &str) -> u64 {
    let counters = site::get(agent, &["counters"]);
    let reasons = counters["reasons"].as_array().expect("reasons");
    let reason = reasons.iter().find(|reason| reason["name"] == name);
    reason.unwrap_or_else(|| panic!("no {name} in {counters:#}"))["packets"].as_u64().expect("a number")
}

/// By a method that reads the control connection.
fn read(forwarding: &'static str) {
    let topology = Topology::builder().servers(2).build();
    if forwarding == "nat" {
        topology.replies_through_director();
    }
    let vsftpd = vsftpd_everywhere(&topology);
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let services = vips(&topology).map(|vip| service(&topology, vip, forwarding).with("application: ftp"));
    let pool = if forwarding == "fullnat" { site::pool(&topology, "eth0") } else { String::new() };
    agent.apply(&(pool + &documents(&services)));
    until_all_in(&agent);
    for service in &services {
        for way in ways(service.vip, true) {
            let before = counter(&agent, "flow_expected");
            both_ways(&topology.client().namespace, service, way, &vsftpd);
            let begun = counter(&agent, "flow_expected") - before;
            assert!(begun >= 5, "{}: {begun} data connections were expected", service.name);
        }
    }
    for reason in ["ftp_cut", "ftp_garbled", "ftp_elsewhere", "ftp_refused", "ftp_no_room", "extension_lost"]
    {
        assert_eq!(counter(&agent, reason), 0, "{reason}");
    }
}

#[test]
fn ftp_through_nat_passive_and_active() {
    read("nat");
}

#[test]
fn ftp_through_fullnat_passive_and_active() {
    read("fullnat");
}

#[test]
fn ftp_through_dr_and_tun_by_persistence_on_any_port() {
    let topology = Topology::builder().servers(2).servers_with_xdp().build();
    let others: [IpAddr; 2] = [topology.vip_v4(1).into(), topology.vip_v6(1).into()];
    let all: Vec<IpAddr> = vips(&topology).into_iter().chain(others).collect();
    all.iter().for_each(|vip| topology.vip_on_servers(*vip));
    let vsftpd = vsftpd_everywhere(&topology);
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let _tunnels = tunnels_everywhere(&topology, &all);
    let methods = ["dr", "dr", "tun", "tun"];
    let services: Vec<Service> = (all.iter().zip(methods))
        .map(|(vip, method)| service(&topology, *vip, method).with("persistence: {timeout: 5m}"))
        .collect();
    agent.apply(&documents(&services).replace("ports: [21]", "ports: any"));
    until_all_in(&agent);
    for service in &services {
        for way in ways(service.vip, true) {
            both_ways(&topology.client().namespace, service, way, &vsftpd);
        }
    }
}
