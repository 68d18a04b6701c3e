//! What the model is told of the world: the records that the agent writes, and what its address tables say.

use lb_common::{
    address::Address,
    destination::{Destination, NextHop},
    hash::Secrets,
    lease::PoolAddress,
    load::Load,
    scratch,
    service::Service,
};
use std::collections::{HashMap, HashSet};

/// One of our addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// The index of a pool address; else it is a VIP.
    pub pool: Option<u32>,
    /// The VRRP instance that it follows; 0 is none.
    pub vrrp: u8,
}

/// This director's role in a VRRP instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Master,
    Backup,
    LeaseEnded,
}

/// A service with what its record does not hold.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    pub record: Service,
    /// Destinations plus one by slot; 0 is none.
    pub slots: Vec<u32>,
    /// Destinations of its list of servers by their place; None is a hole.
    pub servers: Vec<Option<u32>>,
}

/// Everything that packets only read.
#[derive(Clone)]
pub struct Config {
    pub secrets: Secrets,
    pub sizes: scratch::Config,
    /// By the service's index.
    pub services: Vec<Option<ServiceConfig>>,
    /// (VIP, is IPv6, is UDP, first port, last port, service), exact ports before ranges.
    pub ports: Vec<(Address, bool, bool, u16, u16, usize)>,
    pub destinations: Vec<Destination>,
    pub next_hops: Vec<NextHop>,
    pub pool: Vec<PoolAddress>,
    /// Weights and thresholds of real servers; what stands there of their flows is not looked at.
    pub loads: Vec<Load>,
    /// Packets a second by destination, where there is a limit.
    pub rates: HashMap<u32, u32>,
    /// Access lists: (list, prefix, is IPv6, bits, allows).
    pub access: Vec<(u16, Address, bool, u8, bool)>,
    /// Destinations by service and QUIC server id.
    pub quic: HashMap<(usize, Vec<u8>), u32>,
    /// Prefixes of clients (address, bits) with the index of their next hop; longest first.
    pub client_routes: Vec<(Address, bool, u8, u32)>,
    /// Whether new flows a second are limited on a CPU.
    pub flood: bool,
    /// By VRRP instance.
    pub roles: HashMap<u8, Role>,
    own: HashMap<(Address, bool), Own>,
    own_cells: HashSet<u32>,
    nat_servers: HashSet<(Address, bool)>,
    nat_cells: HashSet<u32>,
    tunnel_servers: HashSet<(Address, bool)>,
    following_cells: HashSet<u32>,
}

impl Config {
    /// Knows no address yet.
    pub fn new(secrets: Secrets, sizes: scratch::Config) -> Self {
        Self {
            secrets,
            sizes,
            services: Vec::new(),
            ports: Vec::new(),
            destinations: Vec::new(),
            next_hops: Vec::new(),
            pool: Vec::new(),
            loads: Vec::new(),
            rates: HashMap::new(),
            access: Vec::new(),
            quic: HashMap::new(),
            client_routes: Vec::new(),
            flood: false,
            roles: HashMap::new(),
            own: HashMap::new(),
            own_cells: HashSet::new(),
            nat_servers: HashSet::new(),
            nat_cells: HashSet::new(),
            tunnel_servers: HashSet::new(),
            following_cells: HashSet::new(),
        }
    }

    /// A VIP or a pool address.
    pub fn add_own(&mut self, address: Address, v6: bool, own: Own) {
        self.own_cells.insert(self.cell(&address, v6));
        if v6 && own.vrrp != 0 {
            // Its solicited-node address (RFC 4291, section 2.7.1).
            let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
            group[13..].copy_from_slice(&address.v6()[13..]);
            for address in [Address::from_v6(group), address] {
                self.following_cells.insert(self.cell(&address, true));
            }
        }
        self.own.insert((address, v6), own);
    }

    /// A NAT real server, whose packets are looked at.
    pub fn add_nat_server(&mut self, address: Address, v6: bool) {
        self.nat_cells.insert(self.cell(&address, v6));
        self.nat_servers.insert((address, v6));
    }

    /// A real server that tunnels lead to.
    pub fn add_tunnel_server(&mut self, address: Address, v6: bool) {
        self.tunnel_servers.insert((address, v6));
    }

    /// What the address filter's cell may be taken for is decided by these bits of a keyed hash.
    fn cell(&self, address: &Address, v6: bool) -> u32 {
        let key = if v6 {
            self.secrets.key_of_sum_v6(self.secrets.sum_v6(address.halves()))
        } else {
            self.secrets.key_v4(address.words()[0])
        };
        (key >> self.sizes.cell_shift) as u32
    }

    pub(crate) fn may_be_ours(&self, address: &[u8; 16], v6: bool) -> bool {
        self.own_cells.contains(&self.cell(&Address::from_v6(*address), v6))
    }

    pub(crate) fn may_be_server(&self, address: &[u8; 16], v6: bool) -> bool {
        self.nat_cells.contains(&self.cell(&Address::from_v6(*address), v6))
    }

    /// Whether an IPv6 address may be one that follows a VRRP instance, or who asks for such an address asks there.
    pub(crate) fn may_follow(&self, address: &[u8; 16]) -> bool {
        self.following_cells.contains(&self.cell(&Address::from_v6(*address), true))
    }

    pub(crate) fn is_tunnel_server(&self, address: &[u8; 16], v6: bool) -> bool {
        self.tunnel_servers.contains(&(Address::from_v6(*address), v6))
    }

    pub(crate) fn own(&self, address: &[u8; 16], v6: bool) -> Option<Own> {
        self.own.get(&(Address::from_v6(*address), v6)).copied()
    }

    pub(crate) fn is_nat_server(&self, address: &[u8; 16], v6: bool) -> bool {
        self.nat_servers.contains(&(Address::from_v6(*address), v6))
    }

    /// Without an instance every director serves.
    pub(crate) fn role(&self, instance: u8) -> Role {
        if instance == 0 { Role::Master } else { self.roles.get(&instance).copied().unwrap_or(Role::Backup) }
    }

    /// Exact beats range beats any; port 0 is of ranges only.
    pub(crate) fn service_of(&self, vip: &[u8; 16], v6: bool, udp: bool, port: u16) -> Option<usize> {
        let vip = Address::from_v6(*vip);
        let of_vip = self.ports.iter().filter(|row| (row.0, row.1, row.2) == (vip, v6, udp));
        let mut holding = of_vip.filter(|row| row.3 <= port && port <= row.4);
        let width = |row: &&(Address, bool, bool, u16, u16, usize)| row.4 - row.3;
        if port == 0 {
            return holding.filter(|row| row.3 < row.4).min_by_key(width).map(|row| row.5);
        }
        let first = holding.next()?;
        Some(std::iter::once(first).chain(holding).min_by_key(width)?.5)
    }

    /// Whether the Director's policies have one of these bits of [`scratch::policy`].
    pub(crate) fn has_policy(&self, bits: u32) -> bool {
        self.sizes.policies & bits != 0
    }

    /// Whether a service's VIP is an IPv6 address.
    pub(crate) fn is_v6(&self, service: usize) -> bool {
        self.ports.iter().any(|row| row.5 == service && row.1)
    }

    /// What an access list says of a source: the longest prefix that holds it decides. None: nothing.
    pub(crate) fn access_of(&self, list: u16, source: &[u8; 16], v6: bool) -> Option<bool> {
        let holds = |row: &&(u16, Address, bool, u8, bool)| {
            row.0 == list && row.2 == v6 && crate::rules::cut(source, v6, row.3) == row.1.v6()
        };
        self.access.iter().filter(holds).max_by_key(|row| row.3).map(|row| row.4)
    }

    /// The next hop towards a client; None: its segment is attached.
    pub(crate) fn client_route(&self, client: &[u8; 16], v6: bool) -> Option<u32> {
        let bits = |address: &[u8; 16], n: u8| u128::from_be_bytes(*address).checked_shr(128 - n as u32);
        let mut routes = self
            .client_routes
            .iter()
            .filter(|(prefix, of, len, _)| *of == v6 && bits(&prefix.v6(), *len) == bits(client, *len));
        routes.next().map(|(.., hop)| *hop)
    }
}
