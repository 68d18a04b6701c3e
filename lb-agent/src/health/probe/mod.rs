//! The probes: each asks one real server one question and says in words what came of it. One file a kind.

mod agent;
pub mod connect;
mod dns;
mod file;
mod grpc;
mod http;
mod icmp;
mod script;
mod smtp;
pub mod tls;
mod udp;
pub mod words;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Order, Outcome, Weighing};
use crate::model::health::{Check, Probe, Target};
use tls::Roots;
use words::{Failure, brief};

/// A probe with everything prepared that need not be done again each time: pattern compiled, certificates of
/// authorities read.
#[derive(Debug)]
pub struct Prober {
    check: Arc<Check>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp,
    Http(Box<http::Prober>),
    Grpc(grpc::Prober),
    Smtp(smtp::Prober),
    Dns(dns::Prober),
    Udp(udp::Prober),
    Icmp,
    Script(script::Prober),
    File,
    Agent,
    /// It could not be prepared: every probe fails with this. Preparing is tried again each time.
    Unprepared(Failure),
}

/// One attempt: whom it asks, and until when.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    pub check: &'a Check,
    pub address: SocketAddr,
    /// As failures name it: the address, or the VIP on a real server.
    pub target: &'a Target,
    pub deadline: Instant,
}

/// What a probe found that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Success {
    /// `status 200`. The time is added where it is shown.
    pub words: String,
    pub latency: Duration,
    pub weight: Option<Weighing>,
    pub order: Option<Order>,
}

impl Success {
    pub fn new(words: impl Into<String>, latency: Duration) -> Success {
        Success { words: words.into(), latency, weight: None, order: None }
    }
}

impl From<Result<Success, Failure>> for Outcome {
    fn from(result: Result<Success, Failure>) -> Outcome {
        match result {
            Ok(success) => Outcome {
                passed: true,
                words: success.words.into(),
                latency: Some(success.latency),
                weight: success.weight,
                order: success.order,
            },
            Err(failure) => Outcome {
                passed: false,
                words: failure.to_string().into(),
                latency: None,
                weight: None,
                order: failure.order(),
            },
        }
    }
}

impl Prober {
    /// Prepares the probe of `check`. Reads the files that it names.
    pub fn new(check: Arc<Check>, roots: &Roots) -> Prober {
        let kind = Kind::prepare(&check.probe, roots).unwrap_or_else(Kind::Unprepared);
        Prober { check, kind }
    }

    pub fn check(&self) -> &Check {
        &self.check
    }

    /// Whether it has to be made anew before its next run: a file that it read could not be read, or changed.
    pub fn is_stale(&self) -> bool {
        match &self.kind {
            Kind::Unprepared(_) => true,
            Kind::Http(http) => http.is_stale(),
            Kind::Grpc(grpc) => grpc.is_stale(),
            Kind::Smtp(smtp) => smtp.is_stale(),
            _ => false,
        }
    }

    /// Asks once. Ends by the check's timeout, whatever the server does.
    pub async fn run(&self, address: SocketAddr, target: &Target) -> Outcome {
        let deadline = Instant::now() + self.check.timing.timeout;
        let attempt = Attempt { check: &self.check, address, target, deadline };
        let result = match (&self.kind, &self.check.probe) {
            (Kind::Unprepared(failure), _) => Err(failure.clone()),
            (Kind::Http(http), _) => http.run(&attempt).await,
            (Kind::Grpc(grpc), _) => grpc.run(&attempt).await,
            (Kind::Smtp(smtp), _) => smtp.run(&attempt).await,
            (Kind::Dns(dns), _) => dns.run(&attempt).await,
            (Kind::Udp(udp), _) => udp.run(&attempt).await,
            (Kind::Script(script), _) => script.run(&attempt).await,
            (_, Probe::Icmp(icmp)) => icmp::run(icmp, &attempt).await,
            (_, Probe::File(file)) => file::run(file, &attempt).await,
            (_, Probe::Agent(agent)) => agent::run(agent, &attempt).await,
            _ => connect::tcp(&attempt).await.map(|(_, took)| Success::new(CONNECTED, took)),
        };
        result.into()
    }
}

impl Kind {
    fn prepare(probe: &Probe, roots: &Roots) -> Result<Kind, Failure> {
        Ok(match probe {
            Probe::Tcp => Kind::Tcp,
            Probe::Http(http) => Kind::Http(Box::new(http::Prober::new(http, roots)?)),
            Probe::Grpc(grpc) => Kind::Grpc(grpc::Prober::new(grpc, roots)?),
            Probe::Smtp(smtp) => Kind::Smtp(smtp::Prober::new(smtp, roots)?),
            Probe::Dns(dns) => Kind::Dns(dns::Prober::new(dns)?),
            Probe::Udp(udp) => Kind::Udp(udp::Prober::new(udp)?),
            Probe::Icmp(_) => Kind::Icmp,
            Probe::Script(script) => Kind::Script(script::Prober::new(script)?),
            Probe::File(_) => Kind::File,
            Probe::Agent(_) => Kind::Agent,
        })
    }
}

impl Attempt<'_> {
    /// Waits for `work` as long as the attempt has time; `doing` says in the failure what did not come about.
    pub async fn within<T>(&self, doing: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::time::timeout_at(self.deadline, work).await.map_err(|_| self.too_late(doing))
    }

    pub fn too_late(&self, doing: &str) -> Failure {
        Failure::new(format!("{doing}: no answer within {}", brief(self.check.timing.timeout)))
    }
}

/// What a connection that was made is told as.
pub const CONNECTED: &str = "connected";

#[cfg(test)]
mod tests;
