//! The API's client, one connection per request: for the CLI, and for tests.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::health::{HealthView, ServerOrder};
use super::views::{
    ConnectionsView, CountersView, ObjectView, PersistenceView, RealServerView, ServiceView, StatusView,
};
use super::vrrp::{HandoverView, VrrpOverview};
use super::{ConnectionFilter, ErrorBody, OrderBody, Outcome, Refusal, SourceBody, socket_path};
use crate::events::Event;
use crate::manifest::Source;
use crate::model::ObjectId;

/// A way to the agent of one runtime directory.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no agent answers on {}: is `lb-agent run` running? (--runtime-dir or LB_RUNTIME_DIR says where)", .0.display())]
    NoAgent(PathBuf),
    #[error("connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// An order that was not carried out.
    #[error("{0}")]
    Refused(Refusal),
    /// Anything else that is no success.
    #[error("the agent answered {status}: {message}")]
    Status { status: StatusCode, message: String },
    #[error("the agent ended the conversation: {0}")]
    Transport(#[from] hyper::Error),
    #[error("the agent did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the agent's answer cannot be read (is it of another version?): {0}")]
    Unreadable(#[from] serde_json::Error),
}

impl Client {
    /// Nothing is connected yet.
    pub fn new(runtime_dir: &Path) -> Client {
        Client { socket: socket_path(runtime_dir) }
    }

    /// Puts objects in place; with `dry_run` only says what that would change.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; or no answer.
    pub async fn apply(&self, sources: &[Source], prune: bool, dry_run: bool) -> Result<Outcome, Error> {
        let body = OrderBody { sources: sources.iter().map(source_body).collect(), ids: Vec::new() };
        self.order(&format!("/v1/apply?prune={prune}&dryRun={dry_run}"), &body).await
    }

    /// Clients that keep their real servers, at most `limit`.
    ///
    /// # Errors
    /// No answer.
    pub async fn persistence(
        &self,
        limit: usize,
        service: Option<&str>,
    ) -> Result<Vec<PersistenceView>, Error> {
        let service = service.map(|service| format!("&service={service}")).unwrap_or_default();
        self.get(&format!("/v1/persistence?limit={limit}{service}")).await
    }

    /// Gives a real server no new connections, and the others until a deadline.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; or no answer.
    pub async fn drain(
        &self,
        service: &str,
        real_server: &str,
        deadline: Option<Duration>,
    ) -> Result<Vec<RealServerView>, Error> {
        let mut path = drain_path(service, "drain", real_server);
        if let Some(deadline) = deadline {
            path += &format!("&deadline={}", deadline.as_secs());
        }
        self.request(Method::POST, &path, Bytes::new()).await
    }

    /// Gives it new connections again.
    ///
    /// # Errors
    /// As for [`Client::drain`].
    pub async fn undrain(&self, service: &str, real_server: &str) -> Result<Vec<RealServerView>, Error> {
        let path = drain_path(service, "undrain", real_server);
        self.request(Method::POST, &path, Bytes::new()).await
    }

    /// Removes objects, named or described by manifests.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; or no answer.
    pub async fn delete(
        &self,
        ids: &[ObjectId],
        sources: &[Source],
        dry_run: bool,
    ) -> Result<Outcome, Error> {
        let body = OrderBody {
            sources: sources.iter().map(source_body).collect(),
            ids: ids.iter().map(ObjectId::to_string).collect(),
        };
        self.order(&format!("/v1/delete?dryRun={dry_run}"), &body).await
    }

    /// Every object with its origin.
    ///
    /// # Errors
    /// No answer.
    pub async fn objects(&self) -> Result<Vec<ObjectView>, Error> {
        self.get("/v1/objects").await
    }

    /// Every virtual service.
    ///
    /// # Errors
    /// No answer.
    pub async fn services(&self) -> Result<Vec<ServiceView>, Error> {
        self.get("/v1/services").await
    }

    /// Real servers of one service or of all.
    ///
    /// # Errors
    /// No answer.
    pub async fn real_servers(&self, service: Option<&str>) -> Result<Vec<RealServerView>, Error> {
        self.get(&format!("/v1/real-servers{}", query(&[("service", service.map(str::to_owned))]))).await
    }

    /// At most `limit` live flows that pass the filter.
    ///
    /// # Errors
    /// A service in the filter that does not exist; or no answer.
    pub async fn connections(
        &self,
        limit: usize,
        filter: &ConnectionFilter,
    ) -> Result<ConnectionsView, Error> {
        let query = query(&[
            ("limit", Some(limit.to_string())),
            ("service", filter.service.clone()),
            ("client", filter.client.map(|address| address.to_string())),
            ("realServer", filter.real_server.map(|address| address.to_string())),
            ("state", filter.state.clone()),
        ]);
        self.get(&format!("/v1/connections{query}")).await
    }

    /// Frames by reason.
    ///
    /// # Errors
    /// Counters that cannot be read; or no answer.
    pub async fn counters(&self) -> Result<CountersView, Error> {
        self.get("/v1/counters").await
    }

    /// Every health check, of one service or of all.
    ///
    /// # Errors
    /// No answer.
    pub async fn health(&self, service: Option<&str>) -> Result<Vec<HealthView>, Error> {
        self.get(&format!("/v1/health{}", query(&[("service", service.map(str::to_owned))]))).await
    }

    /// Does something with one real server; the answer is a sentence.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason; or no answer.
    pub async fn operate(&self, order: &ServerOrder) -> Result<String, Error> {
        self.request(Method::POST, "/v1/real-servers", serde_json::to_vec(order)?.into()).await
    }

    /// The agent itself.
    ///
    /// # Errors
    /// No answer.
    pub async fn status(&self) -> Result<StatusView, Error> {
        self.get("/v1/status").await
    }

    /// Events after a number, or the last ones; where there is none yet, what comes within `wait`.
    ///
    /// # Errors
    /// No answer.
    pub async fn events(
        &self,
        after: Option<u64>,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<Event>, Error> {
        let query = query(&[
            ("after", after.map(|after| after.to_string())),
            ("limit", Some(limit.to_string())),
            ("wait", Some(wait.as_millis().to_string())),
        ]);
        self.get(&format!("/v1/events{query}")).await
    }

    /// Every VRRP instance.
    ///
    /// # Errors
    /// No answer.
    pub async fn vrrp(&self) -> Result<VrrpOverview, Error> {
        self.get("/v1/vrrp").await
    }

    /// Lets another director be master of an instance, and waits until one is.
    ///
    /// # Errors
    /// [`Error::Refused`] where nobody takes over or this director is not master; or no answer.
    pub async fn hand_over(&self, name: &str) -> Result<HandoverView, Error> {
        self.request(Method::POST, &format!("/v1/vrrp/{name}/handover"), Bytes::new()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let request = self.request(Method::GET, path, Bytes::new());
        tokio::time::timeout(PATIENCE, request).await.map_err(|_| Error::Silent(PATIENCE))?
    }

    /// An order takes as long as it takes: giving up would leave open whether it was carried out.
    async fn order(&self, path: &str, body: &impl Serialize) -> Result<Outcome, Error> {
        self.request(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, Error> {
        let (status, body) = self.exchange(method, path, body).await?;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody { refusal: Some(refusal), .. }) => Error::Refused(refusal),
            Ok(ErrorBody { error, .. }) => Error::Status { status, message: error },
            Err(_) => Error::Status { status, message: String::from_utf8_lossy(&body).into_owned() },
        })
    }

    /// One request and the whole answer, whatever its status.
    pub(super) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NoAgent(self.socket.clone()),
            _ => Error::Connect { path: self.socket.clone(), source },
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            // HTTP/1.1 requires one (RFC 9112, 3.2); there is no name to put into it.
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("paths are made of escaped parts");
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        Ok((status, body))
    }
}

fn source_body(source: &Source) -> SourceBody {
    SourceBody { file: source.file.clone(), text: source.text.clone() }
}

/// `?a=b&c=d` of those that have a value, escaped (RFC 3986, 2.1).
fn query(pairs: &[(&str, Option<String>)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs {
        let Some(value) = value else { continue };
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    query.push(byte.into())
                }
                _ => query.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    query
}

/// How long an answer to a question may take: a dump of a large table on a busy machine takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// `10.0.0.11:80` and `[fd00::11]:80` have only characters that a query may have (RFC 3986, 3.4), but for the
/// brackets.
fn drain_path(service: &str, verb: &str, real_server: &str) -> String {
    let escape = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | ':' | '-' => c.to_string(),
        c => c.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect(),
    };
    let real_server: String = real_server.chars().map(escape).collect();
    format!("/v1/services/{service}/{verb}?realServer={real_server}")
}
