//! The director: what this node attaches to, and how large its tables are.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Flood, Hook, Name, PacketPolicy, RealPathNetworks, TunnelSources, Webhook};

/// This node. There is one per agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Director {
    pub name: Name,
    /// Where the program is attached, each name once. None: VRRP alone.
    pub interfaces: Vec<Interface>,
    /// How many connections the connection table is made for. Within [`CONNECTIONS_MAX`].
    pub connections_max: u32,
    pub capacity: Capacity,
    pub shutdown: Shutdown,
    pub real_path: RealPathNetworks,
    pub tunnel_sources: TunnelSources,
    pub packets: PacketPolicy,
    pub flood: Flood,
    /// Programs that are run for events, in this order.
    pub hooks: Vec<Hook>,
    /// URLs that events are sent to, each once.
    pub webhooks: Vec<Webhook>,
    /// Where metrics are given to whoever asks. None: on the control socket only.
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub xdp: XdpMode,
}

/// How the program is attached to an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// In the driver, or generic where the driver cannot; which of the two is reported.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's network core, behind the driver.
    Generic,
}

/// Sizes of tables that are made once, when the agent starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Virtual services. Within [`SERVICES_MAX`].
    pub services: u32,
    /// Real servers, counted once per service they stand behind. Within [`REAL_SERVERS_MAX`].
    pub real_servers: u32,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity { services: 16_384, real_servers: 65_536 }
    }
}

/// What SIGTERM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    pub traffic: OnShutdown,
    /// How long the program goes on forwarding after the addresses have been taken away. At most 10 minutes.
    pub wait: Duration,
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown { traffic: OnShutdown::Keep, wait: Duration::from_secs(5) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnShutdown {
    /// The program stays attached and traffic flows on; the next start takes over.
    #[default]
    Keep,
    /// Take the addresses away, wait, detach.
    Release,
}

impl Director {
    pub const DEFAULT_CONNECTIONS_MAX: u32 = 1_000_000;
}

/// Range of `connections.max`.
pub const CONNECTIONS_MAX: RangeInclusive<u32> = 16..=64 << 20;
/// Range of `capacity.services`.
pub const SERVICES_MAX: RangeInclusive<u32> = 1..=262_144;
/// Range of `capacity.realServers`: a connection names its destination with 21 bits, and 0 names none.
pub const REAL_SERVERS_MAX: RangeInclusive<u32> = 1..=(1 << 21) - 1;
/// The most interfaces.
pub const INTERFACES_MAX: usize = 64;
