//! The control API: what an operator may ask of a running agent, and the answers. The agent is asked by
//! [`Request`]s on a channel; `server` makes them from HTTP/JSON on a Unix socket, where `client` sends it.

pub mod client;
pub mod health;
pub mod metrics;
mod request;
pub mod server;
pub mod views;
pub mod vrrp;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use request::{Change, ConnectionFilter, Effect, Outcome, Refusal, Reply, Request, Verb};

/// The agent's socket in a runtime directory.
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("agent.sock")
}

/// The body of every answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For people.
    pub error: String,
    /// For programs, where the agent refused an order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
}

/// The JSON body of `apply` and `delete`. `apply` needs `sources`; `delete` takes either.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderBody {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceBody>,
    /// `VirtualService/web`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
}

/// A manifest and the name under which diagnostics mention it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceBody {
    pub file: String,
    pub text: String,
}

/// The most connections that one answer holds.
pub const CONNECTIONS_LIMIT_MAX: usize = 1_000_000;
/// How many it holds unless asked for another number.
pub const CONNECTIONS_LIMIT: usize = 1000;
/// How many events one answer holds unless asked for another number.
pub const EVENTS_LIMIT: usize = 100;
/// How long a question for events may wait for one.
pub const EVENTS_WAIT_MAX: Duration = Duration::from_secs(30);
/// The largest body of a request, in bytes: two manifests of the largest size.
pub const BODY_MAX: usize = 32 << 20;

#[cfg(test)]
mod tests;
