//! What the director does in these tests: a TCP and a UDP service by each forwarding method, of one address family.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_tests::nginx::Nginx;
use lb_tests::{RealServer, Topology, UdpServer};

/// A forwarding method on a VIP of its own.
pub struct Method {
    pub name: &'static str,
    vip: u8,
    translates_ports: bool,
}

pub const METHODS: [Method; 4] = [
    Method { name: "dr", vip: 0, translates_ports: false },
    Method { name: "tun", vip: 1, translates_ports: false },
    Method { name: "nat", vip: 2, translates_ports: true },
    Method { name: "fullnat", vip: 3, translates_ports: true },
];

const TCP: u16 = 80;
const UDP: u16 = 5000;
/// Where real servers listen behind a method that translates ports.
const REAL_TCP: u16 = 8080;
const REAL_UDP: u16 = 5001;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Method {
    /// Whether what the real servers answer passes the director.
    pub fn sees_replies(&self) -> bool {
        self.translates_ports
    }

    pub fn vip(&self, topology: &Topology, family: Family) -> IpAddr {
        match family {
            Family::V4 => topology.vip_v4(self.vip).into(),
            Family::V6 => topology.vip_v6(self.vip).into(),
        }
    }

    pub fn tcp(&self, topology: &Topology, family: Family) -> SocketAddr {
        SocketAddr::new(self.vip(topology, family), TCP)
    }

    pub fn udp(&self, topology: &Topology, family: Family) -> SocketAddr {
        SocketAddr::new(self.vip(topology, family), UDP)
    }
}

/// The weight of each real server in every service; `None` is one that is not in the manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weights(pub [Option<u16>; 3]);

/// What an `apply` chooses from. The first is where a test begins.
pub const WEIGHTS: [Weights; 5] = [
    Weights([Some(1), Some(1), Some(1)]),
    Weights([Some(1), Some(1), None]),
    Weights([Some(3), Some(1), Some(2)]),
    Weights([None, Some(2), Some(1)]),
    Weights([Some(1), Some(0), Some(1)]),
];

impl Weights {
    /// New connections that make whole rounds of the cyclic sequence.
    pub fn round(&self) -> usize {
        2 * self.0.iter().flatten().map(|weight| usize::from(*weight)).sum::<usize>()
    }

    /// How many of a round each server gets; those that get none are not named.
    pub fn shares(&self) -> BTreeMap<String, usize> {
        let weights = self.0.iter().enumerate().filter_map(|(n, weight)| Some((n, (*weight)?)));
        weights.filter(|(_, w)| *w > 0).map(|(n, w)| (format!("server{n}"), 2 * usize::from(w))).collect()
    }
}

/// The manifests of every method. Where a server leaves the TCP service it gets the weight 0 in the UDP service:
/// a UDP flow leaves a removed server at once, with answers on their way, and here every answer is counted.
pub fn manifests(topology: &Topology, family: Family, weights: Weights) -> String {
    let mut documents = vec![pool(topology, family)];
    for method in &METHODS {
        let weight_or_zero = weights.0.map(|weight| Some(weight.unwrap_or(0)));
        documents.push(service(topology, family, method, "tcp", weights.0));
        documents.push(service(topology, family, method, "udp", weight_or_zero));
    }
    documents.join("---\n")
}

fn service(
    topology: &Topology,
    family: Family,
    method: &Method,
    protocol: &str,
    weights: [Option<u16>; 3],
) -> String {
    let name = method.name;
    let vip = method.vip(topology, family);
    let (port, real_port) = if protocol == "tcp" { (TCP, REAL_TCP) } else { (UDP, REAL_UDP) };
    let real_port = if method.translates_ports { format!(", port: {real_port}") } else { String::new() };
    let mut more = String::new();
    if name == "fullnat" {
        more += "  localAddresses: pool\n";
    }
    // Left alone, large segments show whether the director says that they do not fit.
    if name == "tun" && protocol == "tcp" {
        more += "  mssClamp: false\n";
    }
    let servers = topology.servers.iter().zip(weights).filter_map(|(server, weight)| {
        let address = server.address(vip);
        Some(format!("    - {{address: \"{address}\"{real_port}, weight: {}}}\n", weight?))
    });
    format!(
        "apiVersion: lb/v1
kind: VirtualService
metadata: {{name: {name}-{protocol}}}
spec:
  address: \"{vip}\"
  addressInterface: eth0
  ports: [{port}]
  protocol: {protocol}
  forwarding: {name}
  scheduler: wrr
{more}  realServers:
{}",
        servers.collect::<String>()
    )
}

fn pool(topology: &Topology, family: Family) -> String {
    let address = match family {
        Family::V4 => IpAddr::from(topology.pool_v4(0)),
        Family::V6 => topology.pool_v6(0).into(),
    };
    format!(
        "apiVersion: lb/v1
kind: LocalAddressPool
metadata: {{name: pool}}
spec:
  addresses: [\"{address}\"]
  addressInterface: eth0
"
    )
}

/// What runs on the real servers.
pub struct Servers<'a> {
    pub nginx: Vec<Nginx>,
    pub udp: Vec<UdpServer>,
    _ready: Vec<RealServer<'a>>,
}

impl<'a> Servers<'a> {
    /// nginx, a UDP server and the real-server helper on each of them; their replies go through the director where
    /// the method wants it.
    #[track_caller]
    pub fn start(topology: &'a Topology, family: Family) -> Servers<'a> {
        topology.replies_through_director();
        let director = topology.director();
        let directors = [director.v4().into(), director.v6().into()];
        let vips: Vec<IpAddr> = METHODS[..2].iter().map(|method| method.vip(topology, family)).collect();
        let hosts = || topology.servers.iter().map(|server| &server.namespace);
        Servers {
            nginx: hosts().map(|host| Nginx::start(host, host.role(), &[TCP, REAL_TCP])).collect(),
            udp: hosts().map(|host| UdpServer::start(host, host.role(), &[UDP, REAL_UDP])).collect(),
            _ready: hosts().map(|host| RealServer::up(host, &vips, &directors)).collect(),
        }
    }
}
