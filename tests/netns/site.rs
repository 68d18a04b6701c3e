//! What the whole-system tests share: manifests from a few words, servers of every kind, and what `get` says.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use lb_tests::nginx::LARGE;
use lb_tests::{Agent, Host, Namespace, Nginx, RealServer, Topology, UdpServer, content, http, wait};
use serde_json::Value;

/// The real servers' TCP port behind NAT and FULLNAT, so that the port is translated as well.
pub const TRANSLATED: u16 = 8080;
/// The same for UDP.
pub const TRANSLATED_UDP: u16 = 8053;
/// More than any of the things waited for here takes, even on a machine that is busy compiling.
pub const SOON: Duration = Duration::from_secs(10);

/// A Director with these interfaces, each with its XDP mode (`"eth0"` or `"eth0, xdp: native"`).
pub fn director(interfaces: &[&str]) -> String {
    director_with(interfaces, "")
}

/// The same with further lines of `spec`.
pub fn director_with(interfaces: &[&str], spec: &str) -> String {
    let interfaces: String = interfaces.iter().map(|name| format!("    - {{name: {name}}}\n")).collect();
    format!(
        "apiVersion: lb/v1
kind: Director
metadata: {{name: director-a}}
spec:
  interfaces:
{interfaces}  connections: {{max: 65536}}
  capacity: {{services: 64, realServers: 256}}
{spec}"
    )
}

/// A VirtualService to be written as YAML.
#[derive(Clone)]
pub struct Service {
    pub name: String,
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: &'static str,
    pub forwarding: &'static str,
    pub scheduler: &'static str,
    /// Address, port where it is translated, weight.
    pub servers: Vec<(IpAddr, Option<u16>, u16)>,
    /// Further lines of `spec`.
    pub more: String,
}

impl Service {
    /// TCP, rr, one real server address after the other, VIP on eth0; under fullnat the pool is `pool`.
    pub fn tcp(name: &str, vip: IpAddr, port: u16, forwarding: &'static str) -> Service {
        Service {
            name: name.to_owned(),
            vip,
            port,
            protocol: "tcp",
            forwarding,
            scheduler: "rr",
            servers: Vec::new(),
            more: "  addressInterface: eth0\n".to_owned(),
        }
    }

    /// The same for UDP.
    pub fn udp(name: &str, vip: IpAddr, port: u16, forwarding: &'static str) -> Service {
        Service { protocol: "udp", ..Service::tcp(name, vip, port, forwarding) }
    }

    pub fn scheduler(mut self, scheduler: &'static str) -> Service {
        self.scheduler = scheduler;
        self
    }

    /// Adds real servers of weight 1 by their addresses of the VIP's family, port translated where that works.
    pub fn servers<'a>(self, servers: impl IntoIterator<Item = &'a Host>) -> Service {
        let vip = self.vip;
        self.addresses(servers.into_iter().map(|server| server.address(vip)))
    }

    /// Adds real servers of weight 1.
    pub fn addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Service {
        let translated = if self.protocol == "tcp" { TRANSLATED } else { TRANSLATED_UDP };
        let port = matches!(self.forwarding, "nat" | "fullnat").then_some(translated);
        self.servers.extend(addresses.into_iter().map(|address| (address, port, 1)));
        self
    }

    /// Gives the real servers these weights, in their order.
    pub fn weights(mut self, weights: &[u16]) -> Service {
        assert_eq!(self.servers.len(), weights.len(), "a weight for each real server");
        for (server, weight) in self.servers.iter_mut().zip(weights) {
            server.2 = *weight;
        }
        self
    }

    /// Adds a line to `spec`.
    pub fn with(mut self, line: &str) -> Service {
        self.more += &format!("  {line}\n");
        self
    }

    /// Where clients send.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.vip, self.port)
    }

    /// A URL of this service.
    pub fn url(&self, path: &str) -> String {
        http::url(self.socket(), path)
    }

    /// The manifest.
    pub fn yaml(&self) -> String {
        let Service { name, vip, port, protocol, forwarding, scheduler, more, .. } = self;
        let pool = if *forwarding == "fullnat" { "  localAddresses: pool\n" } else { "" };
        let servers: String = self
            .servers
            .iter()
            .map(|(address, port, weight)| {
                let port = port.map(|port| format!(", port: {port}")).unwrap_or_default();
                format!("    - {{address: \"{address}\"{port}, weight: {weight}}}\n")
            })
            .collect();
        format!(
            "apiVersion: lb/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  address: \"{vip}\"
  ports: [{port}]
  protocol: {protocol}
  forwarding: {forwarding}
  scheduler: {scheduler}
{pool}{more}  realServers:
{servers}"
        )
    }
}

/// Documents of one file.
pub fn documents<'a>(services: impl IntoIterator<Item = &'a Service>) -> String {
    services.into_iter().map(Service::yaml).collect::<Vec<_>>().join("---\n")
}

/// A pool of one address of each family on the real servers' side.
pub fn pool(topology: &Topology, interface: &str) -> String {
    let (v4, v6) = (topology.pool_v4(0), topology.pool_v6(0));
    format!(
        "apiVersion: lb/v1
kind: LocalAddressPool
metadata: {{name: pool}}
spec:
  addresses: [\"{v4}\", \"{v6}\"]
  addressInterface: {interface}
---
"
    )
}

/// The first VIP of each family.
pub fn vips(topology: &Topology) -> [IpAddr; 2] {
    [topology.vip_v4(0).into(), topology.vip_v6(0).into()]
}

/// `v4` or `v6`.
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "v4" } else { "v6" }
}

/// nginx on these ports of every real server, named like its server.
pub fn nginx_everywhere(topology: &Topology, ports: &[u16]) -> Vec<Nginx> {
    let start = |server: &Host| Nginx::start(&server.namespace, server.namespace.role(), ports);
    topology.servers.iter().map(start).collect()
}

/// A UDP server on these ports of every real server, named like its server.
pub fn udp_everywhere(topology: &Topology, ports: &[u16]) -> Vec<UdpServer> {
    let start = |server: &Host| UdpServer::start(&server.namespace, server.namespace.role(), ports);
    topology.servers.iter().map(start).collect()
}

/// Makes every real server ready for TUN from the first director (either family, either interface).
pub fn tunnels_everywhere<'a>(topology: &'a Topology, vips: &[IpAddr]) -> Vec<RealServer<'a>> {
    let director = topology.director();
    let side = topology.server_side();
    let directors = [
        IpAddr::from(director.v4()),
        director.v6().into(),
        side.v4(director.number).into(),
        side.v6(director.number).into(),
    ];
    let directors = if side == director.subnet { &directors[..2] } else { &directors[..] };
    topology.servers.iter().map(|server| RealServer::up(&server.namespace, vips, directors)).collect()
}

/// That every server answered its share of many requests. A SYN that had to be sent again may take two turns of the
/// cursor, so one request, or one in twenty, may lie elsewhere, but never at a server that should have none; that the
/// sequence is exact is shown by the packet tier.
pub fn assert_shares(found: &BTreeMap<String, usize>, shares: &[usize], what: &str) {
    let wanted = expected(shares);
    let spare = (shares.iter().sum::<usize>() / 20).max(1);
    let near = |(server, share): (&String, &usize)| found.get(server).unwrap_or(&0).abs_diff(*share) <= spare;
    let known = found.keys().all(|server| wanted.contains_key(server));
    assert!(known && wanted.iter().all(near), "{what}: {found:?} instead of {wanted:?}");
}

/// Shares of servers by their roles, `server0` first.
pub fn expected(shares: &[usize]) -> BTreeMap<String, usize> {
    shares.iter().enumerate().map(|(index, share)| (format!("server{index}"), *share)).collect()
}

/// Fetches `url` `count` times, one after another; each is answered with 200. Returns who answered how often.
#[track_caller]
pub fn shares(client: &Namespace, url: &str, count: usize) -> BTreeMap<String, usize> {
    let outcomes = http::get_in_turn(client, url, count).unwrap_or_else(|error| panic!("{url}: {error}"));
    assert_eq!(outcomes.len(), count, "{url}");
    let bad = outcomes.iter().find(|outcome| outcome.status != 200);
    assert!(bad.is_none(), "{url} was answered with {bad:?}");
    http::shares(&outcomes)
}

/// 8 MiB down and up through a service, both compared by their sums with what was sent.
#[track_caller]
pub fn large_both_ways(client: &Namespace, service: &Service, nginx: &[Nginx]) {
    let what = format!("{} ({})", service.name, service.socket());
    static WANTED: LazyLock<(Vec<u8>, String)> = LazyLock::new(|| {
        let bytes = content::bytes(LARGE);
        let sum = content::sha256(&bytes);
        (bytes, sum)
    });
    let (wanted, sum) = &*WANTED;
    let down = http::get(client, &service.url(&format!("/bytes/{LARGE}")));
    let down = down.unwrap_or_else(|error| panic!("{what}: 8 MiB down: {error}"));
    if content::sha256(&down.body) != *sum {
        let first = content::check(0, &down.body);
        panic!("{what}: {} of {LARGE} bytes came down: {first:?}", down.body.len());
    }

    let name = format!("{}-{}", service.name, service.port);
    let up = http::upload(client, &service.url(&format!("/uploads/{name}")), wanted);
    let up = up.unwrap_or_else(|error| panic!("{what}: 8 MiB up: {error}"));
    assert!((200..300).contains(&up.status), "{what}: the upload was answered with {}", up.status);
    let at = nginx.iter().find(|nginx| nginx.name() == up.server).expect("one of ours answered");
    let kept = at.uploaded(&name).unwrap_or_else(|| panic!("{what}: {} has no upload", up.server));
    assert_eq!(content::sha256(&kept), *sum, "{what}: {} of {LARGE} bytes came up", kept.len());
}

/// Nobody serves this URL: the connection is refused, or nothing answers for a second.
#[track_caller]
pub fn nobody_serves(client: &Namespace, url: &str) {
    let output =
        client.command("curl").args(["-sS", "-g", "--max-time", "1", url]).output().expect("curl starts");
    assert!(!output.status.success(), "{url} was answered: {}", String::from_utf8_lossy(&output.stdout));
}

/// What `get WORDS -o json` says.
#[track_caller]
pub fn get(agent: &Agent, words: &[&str]) -> Value {
    let arguments: Vec<&str> = ["get"].iter().chain(words).chain(&["-o", "json"]).copied().collect();
    let text = agent.cli(&arguments).expect_success();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?} wrote no JSON: {error}\n{text}"))
}

/// The real server with this address, as `get real-servers SERVICE` shows it.
#[track_caller]
pub fn real_server(agent: &Agent, service: &str, address: IpAddr) -> Value {
    let all = get(agent, &["real-servers", service]);
    let servers = all.as_array().unwrap_or_else(|| panic!("real servers are a list: {all}"));
    let found = servers.iter().find(|server| server["address"] == address.to_string().as_str());
    found.unwrap_or_else(|| panic!("{address} is not in {all}")).clone()
}

/// Waits until every real server is `in`.
#[track_caller]
pub fn until_all_in(agent: &Agent) {
    let mut last = Value::Null;
    let all = wait::holds_within(SOON, || {
        last = get(agent, &["real-servers"]);
        last.as_array().is_some_and(|servers| servers.iter().all(|server| server["state"] == "in"))
    });
    assert!(all, "not every real server is in:\n{last:#}\nthe agent wrote:\n{}", agent.log());
}
