//! Virtual services and the real servers behind them.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::{Application, Encapsulation, Endpoint, Name, Scheduling, ServerLimits, health};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualService {
    pub name: Name,
    /// The VIP: unicast, neither unspecified nor loopback nor link-local.
    pub address: IpAddr,
    pub ports: Ports,
    pub protocol: Protocol,
    /// How packets reach a real server that does not say otherwise.
    pub forwarding: Forwarding,
    /// How packets to its real servers of TUN are wrapped.
    pub tunnel: Encapsulation,
    pub scheduler: Scheduler,
    /// What sh and mh hash; meaningless for the others, which leave it at the default.
    pub hash: FlowHash,
    /// The [`super::LocalAddressPool`] of a service that forwards by FULLNAT.
    pub local_addresses: Option<Name>,
    pub on_unknown_flow: OnUnknownFlow,
    pub mss_clamp: MssClamp,
    pub timeouts: Box<Timeouts>,
    /// The interface on which the agent puts the VIP (as /32 or /128). None: someone else does.
    pub address_interface: Option<String>,
    /// In the order of the manifest, which is the order of addition for rr and wrr. May be empty: the service
    /// then refuses connections.
    pub real_servers: Vec<RealServer>,
    pub scheduling: Box<Scheduling>,
    /// Where else clients reach it; most services have none. Each with an (address, protocol) of its own.
    pub endpoints: Vec<Endpoint>,
    /// Its health checks and who takes part.
    pub health: health::Policy,
    /// What is read inside its connections.
    pub application: Option<Application>,
}

impl VirtualService {
    /// The method by which `server` is reached.
    pub fn forwarding_of(&self, server: &RealServer) -> Forwarding {
        server.forwarding.unwrap_or(self.forwarding)
    }

    /// How packets to `server` are wrapped; plain IPIP where nothing is.
    pub fn encapsulation_of(&self, server: &RealServer) -> Encapsulation {
        match self.forwarding_of(server) {
            Forwarding::Tun => server.tunnel.unwrap_or(self.tunnel),
            _ => Encapsulation::default(),
        }
    }

    /// The port at which `server` is reached, or None where the packet's own port is kept because the
    /// service has several.
    pub fn port_of(&self, server: &RealServer) -> Option<u16> {
        server.port.or_else(|| self.ports.single())
    }

    /// What tells `server` from the other servers of this service.
    pub fn key_of(&self, server: &RealServer) -> ServerKey {
        ServerKey { address: server.address, port: self.port_of(server).unwrap_or(0) }
    }

    /// Whether any real server, or the service itself, uses `method`.
    pub fn uses(&self, method: Forwarding) -> bool {
        let sorry = self.health.sorry_server.as_deref();
        self.forwarding == method
            || self.real_servers.iter().chain(sorry).any(|s| self.forwarding_of(s) == method)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealServer {
    pub address: IpAddr,
    /// Only under nat and fullnat, and only where the service has exactly one port.
    pub port: Option<u16>,
    /// 0 takes no new connections.
    pub weight: u16,
    /// Overrides the service's.
    pub forwarding: Option<Forwarding>,
    /// Overrides the service's.
    pub tunnel: Option<Encapsulation>,
    pub limits: ServerLimits,
    pub health: health::ServerPolicy,
}

/// A real server within a service. Ordered by family, address and port: the order that two directors agree
/// on whatever the order in their manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey {
    pub address: IpAddr,
    /// 0 where the packet's own port is kept.
    pub port: u16,
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (address, 0) => write!(f, "{address}"),
            (IpAddr::V4(address), port) => write!(f, "{address}:{port}"),
            (IpAddr::V6(address), port) => write!(f, "[{address}]:{port}"),
        }
    }
}

/// The ports of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// Every port to which no other service of the same address and protocol listens.
    Any,
    /// Sorted, disjoint, at least one.
    List(Vec<PortRange>),
}

impl Ports {
    /// The port of a service that has exactly one.
    pub fn single(&self) -> Option<u16> {
        match self {
            Ports::List(ranges) => match ranges[..] {
                [range] => range.single(),
                _ => None,
            },
            Ports::Any => None,
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ports::Any => f.write_str("any"),
            Ports::List(ranges) => {
                for (index, range) in ranges.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "," };
                    write!(f, "{separator}{range}")?;
                }
                Ok(())
            }
        }
    }
}

/// Ports `first` to `last`, both included; 0 is never among them. A single port is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn single(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    pub fn overlaps(self, other: PortRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => write!(f, "{port}"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Forwarding {
    /// Direct routing: a new destination MAC, the packet otherwise unchanged.
    Dr,
    /// The packet inside another to the real server.
    Tun,
    /// The destination rewritten, and the source of replies, which come back through the director.
    Nat,
    /// Source and destination rewritten both ways.
    FullNat,
}

impl Forwarding {
    /// Whether the method can change the port.
    pub fn translates(self) -> bool {
        matches!(self, Forwarding::Nat | Forwarding::FullNat)
    }
}

/// Who gets a new flow; docs/scheduling.md has their rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheduler {
    /// Round robin.
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Weighted failover: the highest weight.
    Fo,
    /// Weighted overflow: the highest weight that is not full.
    Ovf,
    /// Power of two choices.
    Twos,
    /// Source hash.
    Sh,
    /// Destination hash.
    Dh,
    /// Maglev hash.
    Mh,
    /// Locality-based least connections.
    Lblc,
    /// The same, with replication.
    Lblcr,
}

impl Scheduler {
    /// Whether the same flow gets the same server from the table alone, without its connection being known.
    pub fn hashes(self) -> bool {
        matches!(self, Scheduler::Sh | Scheduler::Mh)
    }

    /// Whether it has no slot table: the data plane walks the servers.
    pub fn counts(self) -> bool {
        !matches!(self, Scheduler::Rr | Scheduler::Wrr | Scheduler::Sh | Scheduler::Dh | Scheduler::Mh)
    }
}

/// What of a new flow sh and mh hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlowHash {
    /// The client's address: all connections of a client go to one real server.
    #[default]
    Address,
    /// The client's address and port.
    AddressPort,
}

/// What happens to a packet that begins no connection and belongs to none known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnknownFlow {
    /// Schedule it as if it began one.
    Adopt,
    /// Answer a TCP segment with a RST, an SCTP packet with an ABORT.
    Reset,
    /// Leave it to the director's own network stack.
    Pass,
    Drop,
}

impl OnUnknownFlow {
    /// A hash scheduler finds the flow's server again, so the flow may live on; any other would send it to
    /// a server that does not know it.
    pub fn default_for(scheduler: Scheduler) -> OnUnknownFlow {
        if scheduler.hashes() { OnUnknownFlow::Adopt } else { OnUnknownFlow::Reset }
    }
}

/// Whether the maximum segment size that a client announces in its SYN is lowered (RFC 9293, 3.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MssClamp {
    Off,
    /// To what the path to the real server carries after encapsulation.
    Auto,
    /// To this many bytes. Within [`MssClamp::RANGE`].
    To(u16),
}

impl MssClamp {
    /// The least segment every IPv4 host accepts (RFC 9293, 3.7.1) up to what fits the largest IPv4 packet.
    pub const RANGE: std::ops::RangeInclusive<u16> = 536..=65_495;

    /// Off, except for a TCP service that tunnels: encapsulation makes the packet longer, and the ICMP error
    /// that says so is often filtered on its way to the server of the connection.
    pub fn default_for(protocol: Protocol, tunnels: bool) -> MssClamp {
        if protocol == Protocol::Tcp && tunnels { MssClamp::Auto } else { MssClamp::Off }
    }
}

/// How long a connection is kept after its last packet, by state. The defaults are those of IPVS
/// (net/netfilter/ipvs/ip_vs_proto_tcp.c, _udp.c and _sctp.c, Linux 6.1), which has no `unconfirmed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and SCTP, both ends have agreed.
    pub established: Duration,
    /// TCP, after the real server's SYN without one of the client.
    pub syn_sent: Duration,
    /// TCP, after the client's SYN.
    pub syn_received: Duration,
    /// TCP, one end has sent FIN.
    pub fin_wait: Duration,
    /// TCP, both ends have sent FIN.
    pub time_wait: Duration,
    /// TCP, after a RST.
    pub close: Duration,
    /// TCP, the client has sent FIN and the real server has not.
    pub close_wait: Duration,
    /// TCP, the end that was closed last has sent FIN.
    pub last_ack: Duration,
    /// TCP, a connection that began anew on the ports of another.
    pub listen: Duration,
    /// TCP, the real server has answered the client's SYN.
    pub syn_ack: Duration,
    /// UDP, once confirmed.
    pub udp: Duration,
    /// SCTP, after the client's first INIT.
    pub init1: Duration,
    /// SCTP, after the client's INIT was sent again.
    pub init: Duration,
    /// SCTP, from INIT ACK to COOKIE ACK, whoever began.
    pub cookie: Duration,
    /// SCTP, from SHUTDOWN to SHUTDOWN COMPLETE.
    pub shutdown: Duration,
    /// SCTP, the server answered an INIT with ABORT.
    pub rejected: Duration,
    /// SCTP, after SHUTDOWN COMPLETE or ABORT.
    pub closed: Duration,
    /// A flow not yet shown to be alive: an adopted TCP or SCTP flow; UDP before its second packet, or under nat and
    /// fullnat before its first reply.
    pub unconfirmed: Duration,
}

impl Timeouts {
    pub const MIN: Duration = Duration::from_secs(1);
    pub const MAX: Duration = Duration::from_secs(2 * 3600);
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            established: Duration::from_secs(900),
            syn_sent: Duration::from_secs(120),
            syn_received: Duration::from_secs(60),
            fin_wait: Duration::from_secs(120),
            time_wait: Duration::from_secs(120),
            close: Duration::from_secs(10),
            close_wait: Duration::from_secs(60),
            last_ack: Duration::from_secs(30),
            listen: Duration::from_secs(120),
            syn_ack: Duration::from_secs(120),
            udp: Duration::from_secs(300),
            init1: Duration::from_secs(4),
            init: Duration::from_secs(61),
            cookie: Duration::from_secs(61),
            shutdown: Duration::from_secs(61),
            rejected: Duration::from_secs(4),
            closed: Duration::from_secs(61),
            unconfirmed: Duration::from_secs(30),
        }
    }
}

/// The most real servers behind one service: at least four slots each in the largest Maglev table.
pub const SERVICE_REAL_SERVERS_MAX: usize = 16_380;
/// The most ports and ranges of one service.
pub const PORTS_MAX: usize = 1024;
/// The most port ranges (single ports and `any` not counted) on one address and protocol: the data plane
/// looks through that many.
pub const PORT_RANGES_MAX: usize = 16;
