//! Metrics in OpenMetrics text. Pure: [`Facts`] of one moment in, text out; the agent gathers them
//! (`agent/metrics.rs`), `control` carries the text away.

mod agent;
mod families;
mod health;
mod pools;
mod traffic;
mod vrrp;

use std::net::IpAddr;

use lb_common::destination::Traffic;
use lb_common::verdict::{Count, Reason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use crate::control::vrrp::VrrpOverview;
use crate::model::LinkCounters;
use families::Families;
pub use pools::merge;
pub use traffic::class_name;

/// All that is told, of one moment.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub agent: AgentFacts,
    /// None where the data plane's counters could not be read: what is not known is not told as 0.
    pub frames: Option<Frames>,
    /// None before the sweeper's first walk.
    pub table: Option<TableFacts>,
    pub services: Vec<ServiceFacts>,
    /// Each (service, real server) once: [`merge`].
    pub servers: Vec<ServerFacts>,
    pub checks: Vec<CheckFacts>,
    pub probing: Probing,
    pub vrrp: VrrpOverview,
}

/// The agent itself.
#[derive(Debug, Clone, Default)]
pub struct AgentFacts {
    pub version: String,
    pub director: String,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// When the agent started: seconds since 1970.
    pub started: f64,
    /// How often this run has taken up other objects.
    pub generation: u64,
    /// The last plan did not come to its end.
    pub unfinished: bool,
    /// How many sentences `get status` has about what is not as it should be.
    pub problems: usize,
    /// The number of the last event.
    pub events: u64,
    pub interfaces: Vec<InterfaceFacts>,
}

/// An interface of the Director.
#[derive(Debug, Clone, Default)]
pub struct InterfaceFacts {
    pub name: String,
    /// How the program is attached: `native`, `generic` or `none`.
    pub mode: String,
    /// None: there is no such interface now.
    pub frames: Option<LinkCounters>,
}

/// What the data plane counted, over all CPUs.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    pub reasons: Vec<(Reason, Count)>,
    /// Forwarded by real servers that are no more.
    pub retired: Traffic,
}

/// The connection table at the sweeper's last walk.
#[derive(Debug, Clone, Default)]
pub struct TableFacts {
    pub sweeps: u64,
    /// Seconds: how long the walk took, and since when it is over.
    pub took: f64,
    pub age: f64,
    /// Replies and persistence templates included.
    pub entries: u64,
    pub capacity: u64,
    /// Freed by that walk.
    pub expired: u64,
    /// Persistent clients.
    pub templates: u64,
    /// Ports leased, by the pool's address.
    pub leases: Vec<(IpAddr, u64)>,
}

#[derive(Debug, Clone, Default)]
pub struct ServiceFacts {
    pub name: String,
    pub servers: u32,
    /// That take new connections.
    pub servers_in: u32,
    /// The weight that health checks leave alive, and what must be for the quorum.
    pub live: u32,
    pub quorum: u32,
    pub sorry: bool,
}

/// A real server behind one service, at all its endpoints.
#[derive(Debug, Clone, Default)]
pub struct ServerFacts {
    pub service: String,
    /// `10.0.0.11` or `10.0.0.11:8080`.
    pub server: String,
    pub weight: u16,
    pub effective_weight: f64,
    /// As `get real-servers` says it.
    pub state: &'static str,
    pub takes_new: bool,
    /// Its places in the tables of the data plane.
    pub destinations: Vec<u32>,
    pub active: u64,
    pub inactive: u64,
    pub persistent: u64,
    /// None where it could not be read.
    pub traffic: Option<Traffic>,
}

/// A health check of a real server.
#[derive(Debug, Clone, Default)]
pub struct CheckFacts {
    pub service: String,
    pub server: String,
    /// `http GET /healthz`.
    pub check: String,
    pub target: String,
    /// None before the first outcome.
    pub up: Option<bool>,
    /// Seconds, smoothed.
    pub latency: Option<f64>,
}

/// How the health monitor fares.
#[derive(Debug, Clone, Default)]
pub struct Probing {
    pub lanes: Vec<LaneFacts>,
    /// Probes begun.
    pub begun: u64,
    pub passed: u64,
    pub failed: u64,
}

/// Checks of one kind.
#[derive(Debug, Clone, Default)]
pub struct LaneFacts {
    pub kind: &'static str,
    pub checks: u32,
    /// Probes under way.
    pub running: u32,
    pub stretch: f64,
}

/// What HTTP says of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of these facts.
pub fn render(facts: Facts) -> String {
    let mut registry = Registry::with_prefix("lb");
    registry.register_collector(Box::new(Told(facts)));
    let mut text = String::new();
    // Writing to a String cannot fail, and nothing else can.
    text::encode(&mut text, &registry).expect("facts can be written");
    text
}

#[derive(Debug)]
struct Told(Facts);

impl Collector for Told {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Told(facts) = self;
        let mut to = Families::new(encoder);
        agent::write(&mut to, &facts.agent)?;
        traffic::write(&mut to, facts)?;
        pools::write(&mut to, facts)?;
        health::write(&mut to, &facts.probing, &facts.checks)?;
        vrrp::write(&mut to, &facts.vrrp)
    }
}

#[cfg(test)]
mod tests;
