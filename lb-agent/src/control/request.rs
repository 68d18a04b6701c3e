//! What is asked of the agent. `control::server` makes these from HTTP requests; the agent takes them one by
//! one from a channel and answers each.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::health::{HealthView, ServerOrder};
use super::views::{
    ConnectionsView, CountersView, ObjectView, PersistenceView, RealServerView, ServiceView, StatusView,
};
use super::vrrp::{HandoverView, VrrpOverview};
use crate::events::Event;
use crate::manifest::{Report, Source};
use crate::model::{self, Name, ObjectId};

/// Where an answer goes. Whoever asked may be gone; then the answer is dropped.
pub type Reply<T> = oneshot::Sender<T>;

/// One question or order.
#[derive(Debug)]
pub enum Request {
    /// Put these manifests' objects in place (all of them or none).
    Apply {
        sources: Vec<Source>,
        /// Also remove the API's objects that are not among them. Objects of files stay.
        prune: bool,
        /// Answer what would be done, and do nothing.
        dry_run: bool,
        reply: Reply<Result<Outcome, Refusal>>,
    },
    /// Remove these objects (all of them or none).
    Delete {
        ids: Vec<ObjectId>,
        /// Answer what would be done, and do nothing.
        dry_run: bool,
        reply: Reply<Result<Outcome, Refusal>>,
    },
    /// Give a real server (`10.0.0.11`, or `10.0.0.11:8080`) no new connections, and the others until a deadline:
    /// this one, else the service's. The answer is how it stands then.
    Drain {
        service: String,
        real_server: String,
        deadline: Option<Duration>,
        reply: Reply<Result<Vec<RealServerView>, Refusal>>,
    },
    /// Give it new connections again.
    Undrain { service: String, real_server: String, reply: Reply<Result<Vec<RealServerView>, Refusal>> },
    /// Every object, in the order of kinds, then names.
    Objects { reply: Reply<Vec<ObjectView>> },
    /// Every virtual service, by name.
    Services { reply: Reply<Vec<ServiceView>> },
    /// Real servers by service, then in the order of the manifest; of one service or of all. A service that
    /// does not exist has none.
    RealServers { service: Option<String>, reply: Reply<Vec<RealServerView>> },
    /// Live flows that pass the filter, at most `limit` of them.
    Connections { limit: usize, filter: ConnectionFilter, reply: Reply<Result<ConnectionsView, Refusal>> },
    /// Clients that keep their real servers, of one service or of all, at most `limit` of them.
    Persistence { limit: usize, service: Option<String>, reply: Reply<Result<Vec<PersistenceView>, Refusal>> },
    /// Frames by reason and by what was forwarded.
    Counters { reply: Reply<Result<CountersView, Refusal>> },
    /// Events after a number (or the last ones), at most `limit`; where there is none yet, what comes within `wait`.
    Events { after: Option<u64>, limit: usize, wait: Duration, reply: Reply<Vec<Event>> },
    /// What is measured, as OpenMetrics text.
    Metrics { reply: Reply<Arc<str>> },
    /// Every health check, of one service or of all.
    Health { service: Option<String>, reply: Reply<Vec<HealthView>> },
    /// Do something with one real server; the answer is a sentence.
    Operate { order: ServerOrder, reply: Reply<Result<String, Refusal>> },
    /// VRRP instances, by name.
    Vrrp { reply: Reply<VrrpOverview> },
    /// Let another director be master of an instance; answered when one is, or when none was found.
    Handover { name: Name, reply: Reply<Result<HandoverView, Refusal>> },
    /// The agent itself.
    Status { reply: Reply<StatusView> },
}

/// Which connections are wanted; a field that is None lets all pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionFilter {
    /// The name of a virtual service.
    pub service: Option<String>,
    pub client: Option<IpAddr>,
    pub real_server: Option<IpAddr>,
    /// As `ipvsadm -Lc` names it: ESTABLISHED, SYN_RECV, …
    pub state: Option<String>,
}

/// What an order did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The objects that change; empty when everything is as wanted.
    pub plan: Vec<Change>,
    /// The steps of the data plane in their order, each a line to print.
    pub steps: Vec<String>,
    /// Elements of BPF maps that were written.
    pub map_writes: u64,
    /// False for a dry run.
    pub applied: bool,
    /// Sentences for the operator about what was accepted.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One object that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    pub verb: Verb,
    /// `VirtualService/web`.
    pub object: String,
    /// The paths of the fields that differ (`spec.realServers[1].weight`); empty unless the verb is `change`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<String>,
    pub effect: Effect,
}

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    Add,
    Change,
    Remove,
}

/// When a change counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// At once.
    Live,
    /// When the agent is started again.
    Restart,
}

impl From<model::Effect> for Effect {
    fn from(effect: model::Effect) -> Effect {
        match effect {
            model::Effect::Live => Effect::Live,
            model::Effect::Restart => Effect::Restart,
        }
    }
}

/// Why an order was not carried out. What runs stays as it was, except after `Failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "camelCase")]
pub enum Refusal {
    /// The manifests are wrong.
    Invalid { diagnostics: Report },
    /// The object belongs to a file of the manifests directory.
    Owned {
        /// `VirtualService/web`.
        object: String,
        file: String,
    },
    /// An object to delete, or a service named in a filter, is not there.
    Missing { object: String },
    /// A step failed; those before it were done.
    Failed {
        step: String,
        /// The error with its causes.
        cause: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Invalid { diagnostics } => diagnostics.fmt(f),
            Refusal::Owned { object, file } => {
                write!(f, "{object} belongs to the file {file}: edit that file, or remove the object from it")
            }
            Refusal::Missing { object } => write!(f, "{object} does not exist"),
            Refusal::Failed { step, cause } => write!(f, "{step}: {cause}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Report> for Refusal {
    fn from(diagnostics: Report) -> Refusal {
        Refusal::Invalid { diagnostics }
    }
}
