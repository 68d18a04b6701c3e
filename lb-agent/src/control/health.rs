//! Health checks in the API: what is shown of them, and what an operator may order.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One check of one real server behind one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthView {
    pub service: String,
    /// The real server.
    pub address: IpAddr,
    /// None where the packet's own port is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `http GET /healthz`.
    pub check: String,
    /// Where the probe goes: `10.0.0.11:80`, or `203.0.113.10:80 on 10.0.0.11` on the real path.
    pub target: String,
    pub state: CheckState,
    pub since: Timestamp,
    /// The last outcome, with how far it is from a change: `connection refused (2 of 3)`.
    pub last: String,
    /// When the last outcome came; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
    /// Successes and failures in a row, and how many it takes; 0 where that is not what counts.
    pub passed: u32,
    pub failed: u32,
    pub rise: u16,
    pub fall: u16,
    /// Milliseconds, smoothed; none where nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// Milliseconds until the next probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_in: Option<u64>,
    /// The weight that the probe gives: `7`, or `75%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// The server's agent asks for no new connections.
    #[serde(default)]
    pub draining: bool,
    /// How many services share the probe.
    pub shared_by: u32,
    /// The last transitions, oldest first.
    #[serde(default)]
    pub history: Vec<TransitionView>,
}

/// What is believed of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckState {
    Up,
    Down,
    /// Passes, and is held down for changing too often.
    Held,
    /// No outcome yet.
    Unknown,
    /// New connections show that something is wrong; its checks decide.
    Probation,
}

impl CheckState {
    pub fn word(self) -> &'static str {
        match self {
            CheckState::Up => "up",
            CheckState::Down => "down",
            CheckState::Held => "held",
            CheckState::Unknown => "unknown",
            CheckState::Probation => "probation",
        }
    }
}

/// One change of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransitionView {
    pub at: Timestamp,
    /// `up` or `down`.
    pub state: CheckState,
    /// The outcome that made it.
    pub cause: String,
}

/// An order for one real server of a service. The body of `POST /v1/real-servers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerOrder {
    pub service: String,
    pub address: IpAddr,
    /// Only where the address is behind the service with several ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    pub order: Operation,
}

/// What is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Operation {
    /// No new connections, whatever checks say. In JSON `"disable"`.
    Disable,
    /// The opposite.
    Enable,
    /// Another weight than the manifest's, until the next order. `{"weight": 7}`
    Weight(u16),
    /// The manifest's weight again. `"resetWeight"`
    ResetWeight,
}
