//! The endpoints of a service: where clients reach it. Several of them share one scheduler's state and one
//! persistence, which is what IPVS's firewall-mark services are used for.

use std::borrow::Cow;
use std::net::IpAddr;

use super::{Name, Ports, Protocol, VirtualService};

/// An address, ports and a protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ports: Ports,
    pub protocol: Protocol,
}

impl VirtualService {
    /// Whether the service has one endpoint.
    pub fn is_single(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The service once per endpoint, as if that were its only one. The first, the leader, has the service's name.
    pub fn singles(&self) -> Vec<Cow<'_, VirtualService>> {
        if self.is_single() {
            return vec![Cow::Borrowed(self)];
        }
        let leader = VirtualService { endpoints: Vec::new(), ..self.clone() };
        let other = |endpoint: &Endpoint| {
            let Endpoint { address, ports, protocol } = endpoint.clone();
            let name = self.name.of_endpoint(&endpoint.to_string());
            Cow::Owned(VirtualService { name, address, ports, protocol, ..leader.clone() })
        };
        let others: Vec<_> = self.endpoints.iter().map(other).collect();
        std::iter::once(Cow::Owned(leader.clone())).chain(others).collect()
    }

    /// The names of its endpoints in the tables.
    pub fn table_names(&self) -> Vec<Name> {
        let others = self.endpoints.iter().map(|endpoint| self.name.of_endpoint(&endpoint.to_string()));
        std::iter::once(self.name.clone()).chain(others).collect()
    }

    /// Every address on which it listens.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.address).chain(self.endpoints.iter().map(|endpoint| endpoint.address))
    }

    /// All endpoints, the first one first.
    pub fn all_endpoints(&self) -> impl Iterator<Item = Endpoint> {
        let first = Endpoint { address: self.address, ports: self.ports.clone(), protocol: self.protocol };
        std::iter::once(first).chain(self.endpoints.iter().cloned())
    }

    /// Whether any endpoint has this protocol.
    pub fn speaks(&self, protocol: Protocol) -> bool {
        self.protocol == protocol || self.endpoints.iter().any(|endpoint| endpoint.protocol == protocol)
    }
}

/// `tcp-203.0.113.10`: an address and a protocol are one endpoint.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "{protocol}-{}", self.address)
    }
}

/// The most endpoints of one service.
pub const ENDPOINTS_MAX: usize = 64;
