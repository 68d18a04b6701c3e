//! What a service asks of its new flows, and how its real servers stand, as the tables should have it.

use std::sync::Arc;

use crate::model::{Application, Name, Persistence, Quic, Sources, SynCookies, WhenNoServer};

/// What a new flow of a service meets beyond a slot. The default: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// The table service whose cursor, limits and persistence this endpoint of a service shares.
    pub leader: Option<Name>,
    /// Flows are counted at the real servers, for thresholds; counting schedulers count in any case.
    pub counted: bool,
    /// The server of a slot is looked at before it is taken.
    pub checked: bool,
    pub persistence: Option<Persistence>,
    /// Shared, since there may be thousands.
    pub sources: Arc<Sources>,
    /// 0 is no limit.
    pub new_per_second: u32,
    pub when_no_server: WhenNoServer,
    pub fallback: bool,
    pub one_packet: bool,
    pub quic: Option<Quic>,
    /// IPVS's order and its count of UDP flows as inactive.
    pub ipvs: bool,
    /// Leading bits of a client that are hashed, IPv4 and IPv6; None is all.
    pub hash_prefix: Option<(u8, u8)>,
    /// What is read inside its connections.
    pub application: Option<Application>,
    /// The client's address goes to the server by PROXY protocol v2.
    pub proxy_protocol: bool,
    /// And by a TCP option.
    pub toa: bool,
    /// SYNs may be answered with cookies; None: never.
    pub syn_cookies: Option<SynCookies>,
}

/// How a real server stands behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// As it counts now: 0 for one that cannot take new flows.
    pub weight: u32,
    /// Flows at which it takes no new ones; 0 is no limit.
    pub upper: u32,
    /// Flows below which it does again; 0 is three quarters of `upper`.
    pub lower: u32,
    /// No new flow, sticky clients included.
    pub draining: bool,
    pub next_packet: NextPacket,
    /// 0 is no limit.
    pub packets_per_second: u32,
    /// Its place in the list of servers: the same at every endpoint.
    pub ordinal: u16,
    /// Its answers to new connections are counted.
    pub watched: bool,
}

/// What becomes of a flow with its next packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NextPacket {
    #[default]
    GoesOn,
    /// A TCP flow is reset, a UDP flow goes elsewhere; the server cannot be told.
    Reset,
    /// As [`NextPacket::Reset`], and the server is told.
    ResetBothEnds,
}
