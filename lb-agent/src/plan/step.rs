//! One thing to do, and the line that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Binding, Destination, Followers, Hop, HopKey, NextPacket, Pool, Role, Service, Slots, Via};
use crate::model::health::Flows;
use crate::model::{Forwarding, Name, Ports, ServerId};

/// A step of a plan. Displayed as a line for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Exactly these addresses follow a VRRP instance.
    SetVrrp {
        name: Name,
        followers: Followers,
    },
    /// Its addresses follow none any more.
    RemoveVrrp {
        name: Name,
    },
    SetPool {
        name: Name,
        pool: Pool,
    },
    RemovePool {
        name: Name,
    },
    SetHop {
        key: HopKey,
        hop: Hop,
    },
    RemoveHop {
        key: HopKey,
    },
    /// All of them: (VIP, MAC).
    SetPeers {
        peers: BTreeSet<(IpAddr, [u8; 6])>,
    },
    /// All of them.
    SetClientRoutes {
        routes: BTreeMap<IpNet, Via>,
    },
    /// `ports` bind nothing: by them a service is known again after a restart.
    SetService {
        name: Name,
        service: Box<Service>,
        ports: Ports,
    },
    /// With all that is left of its ports, slots and destinations.
    RemoveService {
        name: Name,
    },
    SetDestination {
        service: Name,
        binding: Binding,
        destination: Destination,
    },
    RemoveDestination {
        service: Name,
        binding: Binding,
    },
    SetSlots {
        service: Name,
        slots: Slots,
    },
    /// The list of servers that are walked.
    SetServers {
        service: Name,
        servers: Arc<Vec<Option<Binding>>>,
    },
    /// By which id in a QUIC connection id a server is known.
    SetServerIds {
        service: Name,
        ids: Vec<(ServerId, Binding)>,
    },
    SetPorts {
        service: Name,
        ports: Ports,
    },
    BindAddress {
        service: Name,
        role: Role,
        address: IpAddr,
    },
    UnbindAddress {
        service: Name,
        role: Role,
        address: IpAddr,
    },
    /// Put an address on an interface and announce it.
    Place {
        interface: String,
        address: IpAddr,
    },
    Withdraw {
        interface: String,
        address: IpAddr,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SetVrrp { name, followers } => {
                write!(f, "VRRP instance {name}: ")?;
                list(f, followers.addresses.iter())?;
                f.write_str(if followers.accept { "" } else { ", for services alone" })
            }
            Step::RemoveVrrp { name } => write!(f, "VRRP instance {name}: remove"),
            Step::SetPool { name, pool } => {
                write!(f, "pool {name}: ")?;
                list(f, pool.addresses.iter())?;
                write!(f, " (share {} of {})", pool.share.index, pool.share.of)
            }
            Step::RemovePool { name } => write!(f, "pool {name}: remove"),
            Step::SetHop { key, hop } => write!(f, "next hop {key}: {}", Mac(hop.destination_mac)),
            Step::RemoveHop { key } => write!(f, "next hop {key}: remove"),
            Step::SetPeers { peers } => write!(f, "directors that are real servers too: {}", peers.len()),
            Step::SetClientRoutes { routes } => write!(f, "routes to clients: {}", routes.len()),
            Step::SetService { name, service, .. } => write!(f, "service {name}: set {}", service.vip),
            Step::RemoveService { name } => write!(f, "service {name}: remove"),
            Step::SetDestination { service, binding, destination } => {
                write!(f, "service {service}: real server {binding}")?;
                match destination.hop {
                    Some(key) => write!(f, " by next hop {key}, MTU {}", destination.mtu),
                    None => write!(f, ", next hop not known yet"),
                }?;
                let standing = &destination.standing;
                write!(f, ", weight {}", standing.weight)?;
                match destination.flows {
                    Flows::Stay => {}
                    Flows::Keep => return f.write_str(", takes no new clients"),
                    Flows::Reset => return f.write_str(", connections are reset"),
                    Flows::Move => return f.write_str(", flows move"),
                }
                f.write_str(match (standing.draining, standing.next_packet) {
                    (_, NextPacket::Reset | NextPacket::ResetBothEnds) => ", connections are reset",
                    (true, NextPacket::GoesOn) => ", no new connections",
                    (false, NextPacket::GoesOn) => "",
                })
            }
            Step::RemoveDestination { service, binding } => {
                write!(f, "service {service}: remove real server {binding}")
            }
            Step::SetSlots { service, slots } => {
                let (slots, servers) = (slots.slots.len(), slots.named().len());
                write!(f, "service {service}: {slots} slots of {servers} real servers")
            }
            Step::SetServers { service, servers } => {
                let there = servers.iter().flatten().count();
                write!(f, "service {service}: {there} real servers to choose from")
            }
            Step::SetServerIds { service, ids } => {
                write!(f, "service {service}: {} server ids", ids.len())
            }
            Step::SetPorts { service, ports } => match ports {
                Ports::List(ranges) if ranges.is_empty() => write!(f, "service {service}: no ports"),
                ports => write!(f, "service {service}: ports {ports}"),
            },
            Step::BindAddress { service, role, address } => {
                write!(f, "service {service}: take packets {role} {address}")
            }
            Step::UnbindAddress { service, role, address } => {
                write!(f, "service {service}: leave packets {role} {address}")
            }
            Step::Place { interface, address } => write!(f, "address {address}: put on {interface}"),
            Step::Withdraw { interface, address } => write!(f, "address {address}: take from {interface}"),
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = T>) -> fmt::Result {
    for (index, item) in items.enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{item}")?;
    }
    Ok(())
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Vip => "to",
            Role::NatSource => "from",
            Role::Probed => "probes of",
            Role::Peered => "forwarded to",
        })
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, 0) => write!(f, "{address}")?,
            (IpAddr::V4(address), port) => write!(f, "{address}:{port}")?,
            (IpAddr::V6(address), port) => write!(f, "[{address}]:{port}")?,
        }
        f.write_str(match self.forwarding {
            Forwarding::Dr => " (dr)",
            Forwarding::Tun => " (tun)",
            Forwarding::Nat => " (nat)",
            Forwarding::FullNat => " (fullnat)",
        })
    }
}

impl fmt::Display for HopKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on interface {}", self.neighbour, self.ifindex)?;
        for vlan in self.vlans.iter().filter(|vlan| **vlan != 0) {
            write!(f, " vlan {}", vlan & 0xfff)?;
        }
        if self.for_clients { f.write_str(" (to clients)") } else { Ok(()) }
    }
}

/// A hardware address as one writes it.
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
