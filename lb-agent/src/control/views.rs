//! What the agent answers, as plain data: the API sends it as JSON (field names in camel case), the CLI prints
//! it. Packets and bytes count from the moment the pinned counters were made, over restarts of the agent.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An object and who answers for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectView {
    /// Every field written out; applying it again changes nothing.
    pub manifest: serde_json::Value,
    pub origin: Origin,
}

/// Where an object came from. In JSON `"api"` or `{"file": "web.yaml"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// `apply`; kept in the state directory.
    Api,
    /// This file of the manifests directory, or the configuration file.
    File(String),
}

/// Packets and bytes. *In* is what went from clients to real servers, *out* the replies that passed here (NAT
/// and FULLNAT only). Bytes are those of frames as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficView {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

/// A virtual service as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    pub name: String,
    pub address: IpAddr,
    /// `80,443`, `8000-8099` or `any`.
    pub ports: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// `rr`, `wrr`, `sh` or `mh`.
    pub scheduler: String,
    /// Of real servers that do not say otherwise: `dr`, `tun`, `nat` or `fullnat`.
    pub forwarding: String,
    pub state: ServiceState,
    /// Why it is not up, or what is worth knowing; empty otherwise.
    #[serde(default)]
    pub reason: String,
    /// Real servers that take new connections.
    pub servers_in: u32,
    /// Real servers in the manifest.
    pub servers: u32,
    /// Flows by IPVS's measure: established ones, and all the others.
    pub active: u64,
    pub inactive: u64,
    pub traffic: TrafficView,
    /// Slots in the scheduler's table; 0 when there is no server in.
    pub slots: u32,
    /// The weight that health checks leave alive, and what must be for the quorum.
    #[serde(default)]
    pub live: u32,
    #[serde(default)]
    pub quorum: u32,
    /// The quorum is lost and the sorry server stands in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sorry: bool,
    /// The table gives every server exactly its weight's share. False where weights had to be scaled.
    pub exact: bool,
    /// Where the agent puts the VIP; None where someone else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_interface: Option<String>,
    /// The endpoints beyond the first, which share its real servers, persistence and limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointView>,
    pub origin: Origin,
}

/// Where else a service listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    pub address: IpAddr,
    /// `80,443`, `8000-8099` or `any`.
    pub ports: String,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// How a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServiceState {
    /// Takes new connections with every real server that has a weight.
    Up,
    /// Takes new connections with some of them.
    Partial,
    /// Refuses new connections: no real server is in.
    Down,
}

/// A real server behind one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RealServerView {
    pub service: String,
    pub address: IpAddr,
    /// None where the packet's own port is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub weight: u16,
    /// What counts at the moment, after checks, slow start and the operator; 0 while it takes no new connections.
    #[serde(default)]
    pub effective_weight: f64,
    /// The service's sorry server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sorry: bool,
    /// Since when health checks and orders have it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// `dr`, `tun`, `nat` or `fullnat`.
    pub forwarding: String,
    pub state: RealServerState,
    /// Why it is not in, or not as its manifest says; empty otherwise.
    #[serde(default)]
    pub reason: String,
    /// `02:00:00:00:00:0b on eth0` or `10.0.0.1 (02:00:00:00:00:01) on eth0 vlan 100`; empty while unknown.
    #[serde(default)]
    pub next_hop: String,
    /// Bytes of an IP packet that fit on the way there, encapsulation already taken off; 0 while unknown.
    #[serde(default)]
    pub mtu: u32,
    /// Flows by IPVS's measure: established ones, and all the others.
    pub active: u64,
    pub inactive: u64,
    pub traffic: TrafficView,
    #[serde(flatten)]
    pub limits: LimitsView,
    /// It leaves: by order, or since the manifest has it no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainView>,
}

/// What a real server may be given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitsView {
    /// Connections at which it takes no new ones; 0 is no limit.
    #[serde(default)]
    pub connections_max: u32,
    /// Connections below which it does again; 0 where there is no limit.
    #[serde(default)]
    pub connections_resume: u32,
    /// It was at its limit and has not come below the other since.
    #[serde(default)]
    pub overloaded: bool,
    /// Persistent clients that it has.
    #[serde(default)]
    pub persistent: u64,
    /// 0 is no limit.
    #[serde(default)]
    pub packets_per_second: u32,
}

/// How far a drain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainView {
    /// Seconds since it began.
    pub since: u64,
    /// Seconds until its deadline, 0 when that has passed; None: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_in: Option<u64>,
    /// What becomes of the rest then: `reset` or `keep`.
    pub on_deadline: String,
    /// Connections that are left.
    pub remaining: u64,
    /// How long the oldest of them has been there, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u64>,
    /// The oldest may be older: it was there before the agent began to look.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oldest_at_least: bool,
    /// Seconds until none is expected to be left; None: nothing can be said yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta: Option<u64>,
    /// They are reset with their next packet.
    #[serde(default)]
    pub resetting: bool,
}

/// How a real server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RealServerState {
    /// Takes new connections.
    In,
    /// Takes none: its next hop cannot be reached.
    Out,
    /// Takes none: it fails its health checks.
    Down,
    /// Takes none yet: nothing is known of its health.
    Checking,
    /// In doubt for how it answers new connections: gets no more until it has passed a check.
    Probation,
    /// Takes none: the operator has disabled it.
    Disabled,
    /// Takes none, and would: it is not needed, or the sorry server stands in.
    Standby,
    /// Takes none yet: its next hop is being asked for.
    Resolving,
    /// Takes none by its weight of 0; those it has go on.
    Draining,
    /// No longer in the manifest; the connections it has go on.
    Removed,
}

impl RealServerState {
    pub fn word(self) -> &'static str {
        match self {
            RealServerState::In => "in",
            RealServerState::Out => "out",
            RealServerState::Down => "down",
            RealServerState::Checking => "checking",
            RealServerState::Probation => "probation",
            RealServerState::Disabled => "disabled",
            RealServerState::Standby => "standby",
            RealServerState::Resolving => "resolving",
            RealServerState::Draining => "draining",
            RealServerState::Removed => "removed",
        }
    }
}

/// Live flows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionsView {
    pub connections: Vec<ConnectionView>,
    /// There are more that pass the filter than were asked for.
    pub truncated: bool,
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionView {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The virtual service's name; empty when it is no more.
    pub service: String,
    pub client: SocketAddr,
    pub virtual_address: SocketAddr,
    pub real_server: SocketAddr,
    /// FULLNAT: our address and port towards the real server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// `dr`, `tun`, `nat` or `fullnat`.
    pub forwarding: String,
    /// As `ipvsadm -Lc` names it.
    pub state: String,
    /// Seconds until the entry expires unless another packet comes.
    pub expires_in: u64,
}

/// A client that keeps its real server for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistenceView {
    /// The virtual service's name; empty when it is no more.
    pub service: String,
    /// `198.51.100.7/32` or a network; empty for a SIP call, of which only a hash is kept.
    pub client: String,
    pub real_server: IpAddr,
    /// Seconds until it ends, whatever comes.
    pub expires_in: u64,
}

/// Every frame that came in: received = Σ `reasons` that are no events + `forwarded` + `retired` (packets in
/// and out).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CountersView {
    /// In the order of their numbers, those that count 0 included.
    pub reasons: Vec<ReasonView>,
    /// By real servers that are there.
    pub forwarded: TrafficView,
    /// By real servers that are no more.
    pub retired: TrafficView,
}

/// Frames that ended with one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonView {
    /// `not_ours`.
    pub name: String,
    /// `pass`, `drop`, `answer` or `event`.
    pub class: String,
    pub packets: u64,
    pub bytes: u64,
    /// One sentence.
    pub text: String,
}

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// The Director's name.
    pub director: String,
    /// The agent's version.
    pub version: String,
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime: u64,
    /// As `uname -r` prints it.
    pub kernel: String,
    pub interfaces: Vec<InterfaceView>,
    pub services: u32,
    pub real_servers: u32,
    pub real_servers_in: u32,
    /// Flows by IPVS's measure: established ones, and all the others.
    pub active: u64,
    pub inactive: u64,
    /// VRRP instances, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vrrp: Vec<VrrpStatus>,
    /// For how many connections the table is made.
    pub connections_max: u32,
    #[serde(default)]
    pub checks: ChecksStatus,
    /// Fields of the Director that differ from what runs until the agent is started again.
    #[serde(default)]
    pub restart_needed: Vec<String>,
    /// Sentences for the operator about what is not as it should be.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// The health checks together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChecksStatus {
    /// Each counted once however many services share it.
    pub count: u32,
    /// Probes under way.
    pub running: u32,
    /// Probes begun since the agent started.
    pub probes: u64,
    /// By how much intervals are longer than asked for, of the kind of check for which there is least time; 1 when
    /// all is well.
    pub stretch: f64,
}

impl Default for ChecksStatus {
    fn default() -> ChecksStatus {
        ChecksStatus { count: 0, running: 0, probes: 0, stretch: 1.0 }
    }
}

/// An interface with the program on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceView {
    pub name: String,
    /// `native`, `generic`, or `none` when the program is not attached.
    pub mode: String,
    /// Why the program is not attached, or not in the way wanted; empty otherwise.
    #[serde(default)]
    pub reason: String,
    /// By the kernel's count; what the program forwarded is among it.
    #[serde(default)]
    pub received: FramesView,
    #[serde(default)]
    pub sent: FramesView,
}

/// Frames of an interface in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FramesView {
    pub packets: u64,
    pub bytes: u64,
    pub dropped: u64,
    pub errors: u64,
}

/// A VRRP instance in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VrrpStatus {
    pub name: String,
    /// `initialize`, `backup`, `master` or `fault`.
    pub role: String,
    /// Why, and since how many seconds.
    pub reason: String,
    pub for_seconds: u64,
}
