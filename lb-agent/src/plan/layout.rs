//! What the tables and the host hold, by what things are and not by their indices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{Rules, Standing, Step};
use crate::model::health::Flows;
use crate::model::{
    Encapsulation, Forwarding, Name, NextHop, OnUnknownFlow, Ports, Protocol, Scheduler, ServerId, Share,
};

/// Everything the agent is answerable for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// The addresses that follow each VRRP instance: VIPs with and without services, pools' addresses.
    pub vrrp: BTreeMap<Name, Followers>,
    pub pools: BTreeMap<Name, Pool>,
    pub hops: BTreeMap<HopKey, Hop>,
    /// None: nothing is known of the routes yet, and those in the tables stay.
    pub client_routes: Option<BTreeMap<IpNet, Via>>,
    /// (VIP, MAC): real servers of services that this director is a real server of too. What they send to the VIP was
    /// forwarded once, and is the kernel's.
    pub peers: BTreeSet<(IpAddr, [u8; 6])>,
    /// Shared, so that what did not change is seen to be the same without a look inside.
    pub services: BTreeMap<Name, Arc<ServiceLayout>>,
    /// (interface, address): what the agent itself puts on interfaces.
    pub placed: BTreeSet<(String, IpAddr)>,
}

/// What follows a VRRP instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followers {
    pub addresses: BTreeSet<IpAddr>,
    /// Whether the master's kernel gets packets to them that no virtual service takes.
    pub accept: bool,
}

/// The local addresses of FULLNAT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub addresses: Vec<IpAddr>,
    pub share: Share,
}

/// Whose way a next hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopKey {
    pub neighbour: IpAddr,
    pub ifindex: u32,
    /// VLAN identifiers, outermost first; 0 is none.
    pub vlans: [u16; 2],
    /// Towards clients.
    pub for_clients: bool,
}

impl HopKey {
    /// The key of a way.
    pub fn of(hop: &NextHop, for_clients: bool) -> HopKey {
        HopKey { neighbour: hop.neighbour, ifindex: hop.ifindex, vlans: hop.vlans, for_clients }
    }
}

/// What is known of the way to a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    /// Bytes of an IP packet that fit.
    pub mtu: u32,
    /// Sources of tunnel packets.
    pub source_v4: Option<Ipv4Addr>,
    pub source_v6: Option<Ipv6Addr>,
}

impl Hop {
    /// What a way says of its neighbour.
    pub fn of(way: &NextHop) -> Hop {
        let mut hop = Hop {
            destination_mac: way.destination_mac,
            source_mac: way.source_mac,
            mtu: way.mtu,
            source_v4: None,
            source_v6: None,
        };
        hop.add_source(way.source);
        hop
    }

    /// Ways to several addresses can lead over one neighbour; the first source of each family counts.
    pub fn add_source(&mut self, source: Option<IpAddr>) {
        match source {
            Some(IpAddr::V4(source)) => self.source_v4 = self.source_v4.or(Some(source)),
            Some(IpAddr::V6(source)) => self.source_v6 = self.source_v6.or(Some(source)),
            None => {}
        }
    }
}

/// How clients of a prefix are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    OnLink,
    Hop(HopKey),
}

/// A service and all that hangs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceLayout {
    pub service: Service,
    pub destinations: BTreeMap<Binding, Destination>,
    pub slots: Slots,
    /// The servers that are walked, by ordinal; a hole is a server that has gone. Empty where nobody walks.
    pub servers: Arc<Vec<Option<Binding>>>,
    /// QUIC server ids.
    pub server_ids: Vec<(ServerId, Binding)>,
    /// The ports that lead there.
    pub ports: Ports,
    /// VIP, and real servers whose replies pass here.
    pub roles: BTreeSet<(Role, IpAddr)>,
}

/// The record of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub vip: IpAddr,
    pub protocol: Protocol,
    pub lookup: Lookup,
    pub on_unknown_flow: OnUnknownFlow,
    /// Written into SYNs that announce more; 0 leaves them.
    pub mss: u16,
    /// By state number (`lb_common::state::State`).
    pub timeouts: [Duration; 16],
    /// With the pool as it is, so that a changed pool is a changed service: the record names indices of it.
    pub pool: Option<(Name, Pool)>,
    pub rules: Rules,
}

/// How a slot is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// One after the other.
    Cursor,
    /// By a hash of the client's address.
    HashAddress,
    /// By a hash of the client's address and port.
    HashAddressPort,
    /// The one slot of a virtual address.
    HashDestination,
    /// As IPVS's sh hashes, with the port or without.
    IpvsSh { port: bool },
    /// As IPVS's mh hashes.
    IpvsMh { port: bool },
    /// No slot: the servers are walked, by the rule of a scheduler that counts connections.
    Walk(Scheduler),
}

/// A real server behind a service. Another forwarding method is another binding: a flow cannot change its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding {
    pub address: IpAddr,
    /// 0 keeps the packet's.
    pub port: u16,
    pub forwarding: Forwarding,
}

/// What may change of a binding while flows use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// None: not known yet; no slot names it then.
    pub hop: Option<HopKey>,
    /// The real server is this director itself: it has no next hop.
    pub local: bool,
    /// Largest IP packet that may be forwarded, bytes, before encapsulation.
    pub mtu: u16,
    /// What it is put into; plain IPIP for methods that put it into nothing.
    pub tunnel: Encapsulation,
    /// Of an established (TCP) or confirmed (UDP) flow.
    pub timeout: Duration,
    /// The service's port where the real server's differs; else 0.
    pub vip_port: u16,
    pub standing: Standing,
    /// What becomes of the flows it has.
    pub flows: Flows,
}

/// The scheduler's table: an index into `servers` for each slot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slots {
    pub servers: Arc<Vec<Binding>>,
    pub slots: Arc<Vec<u32>>,
    /// Every server has exactly its weight's share.
    pub exact: bool,
}

/// A slot without a server.
pub const NO_SERVER: u32 = crate::scheduler::NO_SERVER;

impl Slots {
    /// The bindings that have a slot.
    pub fn named(&self) -> BTreeSet<Binding> {
        // There may be millions of slots: each is looked at once.
        let mut named = vec![false; self.servers.len()];
        for index in self.slots.iter().filter(|index| **index != NO_SERVER) {
            named[*index as usize] = true;
        }
        self.servers.iter().zip(named).filter_map(|(server, named)| named.then_some(*server)).collect()
    }
}

/// What an address is to the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A service's address.
    Vip,
    /// A real server whose replies pass here.
    NatSource,
    /// A VIP whose answers may be a health probe's, on the real path.
    Probed,
    /// A VIP that this director is a real server of, beside others.
    Peered,
}

impl Layout {
    /// Takes note that a step was done, but for what it took from other services.
    pub(super) fn done(&mut self, step: &Step) {
        match step {
            Step::SetVrrp { name, followers } => {
                self.vrrp.insert(name.clone(), followers.clone());
            }
            Step::RemoveVrrp { name } => {
                self.vrrp.remove(name);
            }
            Step::SetPool { name, pool } => {
                self.pools.insert(name.clone(), pool.clone());
            }
            Step::RemovePool { name } => {
                self.pools.remove(name);
            }
            Step::SetHop { key, hop } => {
                self.hops.insert(*key, *hop);
            }
            Step::RemoveHop { key } => {
                self.hops.remove(key);
            }
            Step::SetPeers { peers } => self.peers = peers.clone(),
            Step::SetClientRoutes { routes } => self.client_routes = Some(routes.clone()),
            Step::SetService { name, service, .. } => match self.services.get_mut(name) {
                Some(layout) => Arc::make_mut(layout).service = Service::clone(service),
                None => {
                    let layout = ServiceLayout {
                        service: Service::clone(service),
                        destinations: BTreeMap::new(),
                        slots: Slots::default(),
                        servers: Arc::default(),
                        server_ids: Vec::new(),
                        ports: Ports::List(Vec::new()),
                        roles: BTreeSet::new(),
                    };
                    self.services.insert(name.clone(), Arc::new(layout));
                }
            },
            Step::RemoveService { name } => {
                // The roles of its addresses are taken in steps of their own, before.
                self.services.remove(name);
            }
            Step::Withdraw { interface, address } => {
                self.placed.remove(&(interface.clone(), *address));
            }
            Step::Place { interface, address } => {
                self.placed.insert((interface.clone(), *address));
            }
            Step::SetDestination { service, .. }
            | Step::RemoveDestination { service, .. }
            | Step::SetSlots { service, .. }
            | Step::SetServers { service, .. }
            | Step::SetServerIds { service, .. }
            | Step::SetPorts { service, .. }
            | Step::BindAddress { service, .. }
            | Step::UnbindAddress { service, .. } => {
                if let Some(layout) = self.services.get_mut(service) {
                    Arc::make_mut(layout).done(step);
                }
            }
        }
    }
}

impl ServiceLayout {
    /// What flows belong to: a service with another VIP or protocol is another service.
    pub fn key(&self) -> (IpAddr, Protocol) {
        (self.service.vip, self.service.protocol)
    }

    fn done(&mut self, step: &Step) {
        match step {
            Step::SetDestination { binding, destination, .. } => {
                self.destinations.insert(*binding, *destination);
            }
            Step::RemoveDestination { binding, .. } => {
                self.destinations.remove(binding);
            }
            Step::SetSlots { slots, .. } => self.slots = slots.clone(),
            Step::SetServers { servers, .. } => self.servers = Arc::clone(servers),
            Step::SetServerIds { ids, .. } => self.server_ids = ids.clone(),
            Step::SetPorts { ports, .. } => self.ports = ports.clone(),
            Step::BindAddress { role, address, .. } => {
                self.roles.insert((*role, *address));
            }
            Step::UnbindAddress { role, address, .. } => {
                self.roles.remove(&(*role, *address));
            }
            _ => {}
        }
    }
}
