//! A small data centre: directors, real servers, clients, switches between them and, if wanted, a router.
//!
//! ```text
//!                       client (.51)        director (.1)      real server (.11)
//!                          │ eth0              │ eth0   │ eth1     │ eth0
//!   front 10.1.0.0/24 ─────┴───────────────────┴────────│──────────┴──── (one-armed)
//!   back  10.2.0.0/24 ──────────────────────────────────┴──────────┴──── (two-armed)
//!   router (.254): a leg in every subnet; clients and servers may also stand behind it,
//!   far clients in 10.3.0.0/24 and far servers in 10.4.0.0/24
//! ```
//!
//! Every subnet 10.N.0.0/24 is fd00:N::/64 as well, with the same last numbers. Addresses and MACs are the same
//! in every topology: nothing leaves its namespaces, so tests run side by side.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::{self, Plug, format_mac};
use crate::namespace::Namespace;
use crate::xdp_pass::XdpPass;

/// Prefix length of every IPv4 subnet.
pub const PREFIX_V4: u8 = 24;
/// Prefix length of every IPv6 subnet.
pub const PREFIX_V6: u8 = 64;

/// A subnet, by the number in its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subnet {
    /// Where the directors' eth0 and the VIPs are.
    Front = 1,
    /// Where the directors' eth1 and the real servers are, if the directors have two interfaces.
    Back = 2,
    /// Clients behind the router.
    FarClients = 3,
    /// Real servers behind the router.
    FarServers = 4,
}

impl Subnet {
    /// The IPv4 address with this last number.
    pub fn v4(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self as u8, 0, number)
    }

    /// The IPv6 address with this last number, written decimally so that .51 is ::51.
    pub fn v6(self, number: u8) -> Ipv6Addr {
        let digits = u16::from_str_radix(&number.to_string(), 16).expect("decimal digits are hex digits");
        Ipv6Addr::new(0xfd00, self as u16, 0, 0, 0, 0, 0, digits)
    }

    /// The MAC address of the host with this last number.
    pub fn mac(self, number: u8) -> [u8; 6] {
        [0x02, 0, 0, 0, self as u8, number]
    }

    fn bridge(self) -> String {
        format!("br{}", self as u8)
    }

    fn addresses(self, number: u8) -> [(IpAddr, u8); 2] {
        [(self.v4(number).into(), PREFIX_V4), (self.v6(number).into(), PREFIX_V6)]
    }
}

/// Last numbers of addresses, in every subnet.
const DIRECTOR: u8 = 1;
const SERVER: u8 = 11;
const CLIENT: u8 = 51;
const VIP: u8 = 100;
const POOL: u8 = 200;
const ROUTER: u8 = 254;

/// One machine of the topology. Its eth0 has the addresses of `subnet`.
pub struct Host {
    /// The namespace it is.
    pub namespace: Namespace,
    /// Where its eth0 is plugged in.
    pub subnet: Subnet,
    /// Its last number in that subnet.
    pub number: u8,
}

impl Host {
    /// Its IPv4 address on eth0.
    pub fn v4(&self) -> Ipv4Addr {
        self.subnet.v4(self.number)
    }

    /// Its IPv6 address on eth0.
    pub fn v6(&self) -> Ipv6Addr {
        self.subnet.v6(self.number)
    }

    /// Its address on eth0 of the family of `like`.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4().into() } else { self.v6().into() }
    }

    /// The MAC address of its eth0, as long as nobody changes it.
    pub fn mac(&self) -> [u8; 6] {
        self.subnet.mac(self.number)
    }
}

/// What to build; [`Topology::builder`] starts with one director, two real servers and one client on one
/// switch, MTU 1500.
pub struct Builder {
    directors: u8,
    servers: u8,
    clients: u8,
    far_servers: u8,
    far_clients: u8,
    two_armed: bool,
    router: bool,
    servers_with_xdp: bool,
    mtu: u32,
}

impl Builder {
    /// How many directors.
    pub fn directors(mut self, count: u8) -> Builder {
        self.directors = count;
        self
    }

    /// How many real servers in the directors' own subnet (Front, or Back when two-armed).
    pub fn servers(mut self, count: u8) -> Builder {
        self.servers = count;
        self
    }

    /// How many clients in the directors' subnet.
    pub fn clients(mut self, count: u8) -> Builder {
        self.clients = count;
        self
    }

    /// How many real servers behind the router; they follow the near ones in [`Topology::servers`].
    pub fn far_servers(mut self, count: u8) -> Builder {
        self.far_servers = count;
        self.router |= count > 0;
        self
    }

    /// How many clients behind the router; they follow the near ones in [`Topology::clients`].
    pub fn far_clients(mut self, count: u8) -> Builder {
        self.far_clients = count;
        self.router |= count > 0;
        self
    }

    /// Gives directors a second interface, eth1, and puts the real servers there. A router joins both sides:
    /// DR and TUN replies need a way past the director.
    pub fn two_armed(mut self) -> Builder {
        self.two_armed = true;
        self.router = true;
        self
    }

    /// Prepares the real servers' ports for an XDP program at the servers, such as a TUN decapsulator.
    pub fn servers_with_xdp(mut self) -> Builder {
        self.servers_with_xdp = true;
        self
    }

    /// MTU of every cable, in bytes.
    pub fn mtu(mut self, mtu: u32) -> Builder {
        self.mtu = mtu;
        self
    }

    /// Builds it. Panics with the command that failed.
    #[track_caller]
    pub fn build(self) -> Topology {
        Topology::build(self)
    }
}

/// The machines, cabled and addressed. Everything goes when it is dropped.
pub struct Topology {
    // Fields are dropped in order: first the programs on the switch's ports, the switch last.
    _xdp_pass: Vec<XdpPass>,
    /// The directors.
    pub directors: Vec<Host>,
    /// The real servers, near ones first.
    pub servers: Vec<Host>,
    /// The clients, near ones first.
    pub clients: Vec<Host>,
    /// The router, if there is one.
    pub router: Option<Namespace>,
    /// The namespace of the bridges.
    pub switch: Namespace,
    two_armed: bool,
    mtu: u32,
}

impl Topology {
    /// One director, two real servers and one client, until told otherwise.
    pub fn builder() -> Builder {
        Builder {
            directors: 1,
            servers: 2,
            clients: 1,
            far_servers: 0,
            far_clients: 0,
            two_armed: false,
            router: false,
            servers_with_xdp: false,
            mtu: 1500,
        }
    }

    /// The first director, for the many tests that have one.
    pub fn director(&self) -> &Host {
        &self.directors[0]
    }

    /// The first client.
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }

    /// The subnet of the near real servers.
    pub fn server_side(&self) -> Subnet {
        if self.two_armed { Subnet::Back } else { Subnet::Front }
    }

    /// The `n`th IPv4 virtual address; nobody has it until an agent or a test puts it somewhere.
    pub fn vip_v4(&self, n: u8) -> Ipv4Addr {
        Subnet::Front.v4(VIP + n)
    }

    /// The `n`th IPv6 virtual address.
    pub fn vip_v6(&self, n: u8) -> Ipv6Addr {
        Subnet::Front.v6(VIP + n)
    }

    /// The `n`th local address for FULLNAT, on the real servers' side, IPv4.
    pub fn pool_v4(&self, n: u8) -> Ipv4Addr {
        self.server_side().v4(POOL + n)
    }

    /// The `n`th local address for FULLNAT, on the real servers' side, IPv6.
    pub fn pool_v6(&self, n: u8) -> Ipv6Addr {
        self.server_side().v6(POOL + n)
    }

    /// Puts a VIP on the loopback of every real server, silent to ARP: what DR and TUN ask of a real server.
    #[track_caller]
    pub fn vip_on_servers(&self, vip: IpAddr) {
        for server in &self.servers {
            vip_on_loopback(&server.namespace, vip);
        }
    }

    /// Sends what the real servers say under their own addresses through the first director: what NAT asks of
    /// the network. Replies under a VIP (DR, TUN) keep their direct way, so that all methods work side by side.
    #[track_caller]
    pub fn replies_through_director(&self) {
        let side = self.server_side();
        let director = [side.v4(DIRECTOR).into(), side.v6(DIRECTOR).into()];
        for server in self.servers.iter().filter(|server| server.subnet != Subnet::FarServers) {
            for via in director {
                route_by_source(&server.namespace, &server.address(via).to_string(), via);
            }
        }
        // Far servers send everything to the router; there their replies turn to the director.
        if let Some(router) = &self.router
            && self.servers.iter().any(|server| server.subnet == Subnet::FarServers)
        {
            let [v4, v6] = director;
            route_by_source(router, &format!("{}/{PREFIX_V4}", Subnet::FarServers.v4(0)), v4);
            route_by_source(router, &format!("{}/{PREFIX_V6}", Subnet::FarServers.v6(0)), v6);
        }
    }

    fn build(plan: Builder) -> Topology {
        let mut topology = Topology {
            _xdp_pass: Vec::new(),
            directors: Vec::new(),
            servers: Vec::new(),
            clients: Vec::new(),
            router: plan.router.then(|| Namespace::new("router")),
            switch: Namespace::new("switch"),
            two_armed: plan.two_armed,
            mtu: plan.mtu,
        };
        let near = topology.server_side();
        let subnets = [
            Some(Subnet::Front),
            plan.two_armed.then_some(Subnet::Back),
            (plan.far_clients > 0).then_some(Subnet::FarClients),
            (plan.far_servers > 0).then_some(Subnet::FarServers),
        ];
        for subnet in subnets.into_iter().flatten() {
            link::bridge(&topology.switch, &subnet.bridge(), plan.mtu);
            if let Some(router) = &topology.router {
                topology.plug(router, &router_interface(subnet), "r", subnet, ROUTER, false);
            }
        }
        if let Some(router) = &topology.router {
            router.sysctl("net.ipv4.ip_forward=1");
            router.sysctl("net.ipv6.conf.all.forwarding=1");
            // A redirect would teach hosts a shortcut that the test did not draw.
            router.sysctl("net.ipv4.conf.all.send_redirects=0");
            router.sysctl("net.ipv4.conf.default.send_redirects=0");
        }
        for n in 0..plan.directors {
            let host = topology.host(&format!("director{n}"), Subnet::Front, DIRECTOR + n, true);
            if plan.two_armed {
                let number = host.number;
                let pass = topology.plug(&host.namespace, "eth1", "d", Subnet::Back, number, true);
                topology._xdp_pass.extend(pass);
            }
            topology.directors.push(host);
        }
        for n in 0..plan.servers + plan.far_servers {
            let subnet = if n < plan.servers { near } else { Subnet::FarServers };
            let host = topology.host(&format!("server{n}"), subnet, SERVER + n, plan.servers_with_xdp);
            topology.servers.push(host);
        }
        for n in 0..plan.clients + plan.far_clients {
            let subnet = if n < plan.clients { Subnet::Front } else { Subnet::FarClients };
            let host = topology.host(&format!("client{n}"), subnet, CLIENT + n, false);
            topology.clients.push(host);
        }
        topology
    }

    /// Makes a machine, plugs its eth0 in, and points its default route at the router if there is one.
    fn host(&mut self, role: &str, subnet: Subnet, number: u8, xdp: bool) -> Host {
        let namespace = Namespace::new(role);
        let pass = self.plug(&namespace, "eth0", &role[..1], subnet, number, xdp);
        self._xdp_pass.extend(pass);
        if self.router.is_some() {
            let (v4, v6) = (subnet.v4(ROUTER), subnet.v6(ROUTER));
            namespace.ip(&format!("route add default via {v4}\nroute add default via {v6}\n"));
        }
        Host { namespace, subnet, number }
    }

    fn plug(
        &self,
        host: &Namespace,
        interface: &str,
        kind: &str,
        subnet: Subnet,
        number: u8,
        xdp: bool,
    ) -> Option<XdpPass> {
        let plug = Plug {
            switch: &self.switch,
            bridge: &subnet.bridge(),
            port: &format!("{kind}{number}n{}", subnet as u8),
            host,
            interface,
            mac: subnet.mac(number),
            addresses: &subnet.addresses(number),
            mtu: self.mtu,
        };
        plug.connect();
        xdp.then(|| plug.prepare_for_xdp())
    }
}

/// Sends packets with this source address or prefix to `via`, whatever their destination.
fn route_by_source(namespace: &Namespace, source: &str, via: IpAddr) {
    let family = if via.is_ipv4() { "-4" } else { "-6" };
    namespace.output("ip", &[family, "rule", "add", "from", source, "lookup", "100"]);
    namespace.ip(&format!("route replace default via {via} table 100"));
}

/// The router's interface in a subnet.
pub fn router_interface(subnet: Subnet) -> String {
    format!("eth{}", subnet as u8)
}

/// Puts a VIP on the loopback of a real server and keeps it silent about it: arp_ignore 1 answers ARP only for
/// addresses of the interface asked, arp_announce 2 never names the VIP as the asker. IPv6 needs neither:
/// neighbour discovery answers for addresses of the interface alone.
#[track_caller]
pub fn vip_on_loopback(server: &Namespace, vip: IpAddr) {
    for name in ["all", "default", "eth0"] {
        server.sysctl(&format!("net.ipv4.conf.{name}.arp_ignore=1"));
        server.sysctl(&format!("net.ipv4.conf.{name}.arp_announce=2"));
        server.sysctl(&format!("net.ipv4.conf.{name}.rp_filter=0"));
    }
    let (length, nodad) = if vip.is_ipv4() { (32, "") } else { (128, "nodad") };
    server.ip(&format!("address replace {vip}/{length} dev lo {nodad}"));
}

/// Tells `from` by hand that `address` lives at this MAC on its eth0.
#[track_caller]
pub fn set_neighbour(from: &Namespace, address: IpAddr, mac: [u8; 6]) {
    from.ip(&format!("neighbour replace {address} lladdr {} nud permanent dev eth0", format_mac(mac)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_share_their_last_number_as_it_is_written() {
        assert_eq!(Subnet::Front.v4(51).to_string(), "10.1.0.51");
        assert_eq!(Subnet::Front.v6(51).to_string(), "fd00:1::51");
        assert_eq!(Subnet::FarServers.v6(254).to_string(), "fd00:4::254");
        assert_eq!(Subnet::Back.mac(11), [2, 0, 0, 0, 2, 11]);
    }
}
