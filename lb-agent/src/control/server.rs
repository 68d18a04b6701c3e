//! The API's server: HTTP/1.1 and JSON on a Unix socket. It checks what arrives, asks the agent, and puts the
//! answer into words; it knows nothing about load balancing.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::health::ServerOrder;
use super::{
    BODY_MAX, CONNECTIONS_LIMIT, CONNECTIONS_LIMIT_MAX, ConnectionFilter, EVENTS_LIMIT, EVENTS_WAIT_MAX,
    ErrorBody, OrderBody, Refusal, Reply, Request,
};
use crate::manifest::{self, Source};
use crate::model::{DrainPolicy, Name, ObjectId};

/// Listens at `path` and passes what is asked on to `requests`. The socket's mode is 0660, so that root and
/// the group of the directory's owner may give orders. It goes when the task ends or is aborted.
///
/// # Errors
/// Another agent that answers there; a path that cannot be made a socket.
pub async fn serve(path: &Path, requests: mpsc::Sender<Request>) -> Result<JoinHandle<()>> {
    let listener = listen(path).await.with_context(|| format!("listen on {}", path.display()))?;
    let router = router(requests);
    Ok(tokio::spawn(async move {
        // The path goes with the future, whether it ends or is dropped.
        let (listener, _path) = listener;
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the control API ended: {error}");
        }
    }))
}

/// A socket at `path`, in place of one on which nobody answers.
async fn listen(path: &Path) -> Result<(UnixListener, SocketFile)> {
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another agent answers there"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            // Connecting to a file that is no socket is refused too.
            if !path.metadata()?.file_type().is_socket() {
                bail!("a file that is not a socket is in the way");
            }
            tracing::debug!("{}: left by an agent that is no more", path.display());
        }
        Err(error) => return Err(error.into()),
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    // Made beside the path and moved there once it listens: there is no moment at which somebody else may
    // connect, nor one at which a client finds a socket that does not answer.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&beside)?)?;
    let made = || -> io::Result<u64> {
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o660))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let inode = beside.metadata()?.ino();
        fs::rename(&beside, path)?;
        Ok(inode)
    };
    let inode = made().inspect_err(|_| _ = fs::remove_file(&beside))?;
    let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// Removes the socket's path when dropped, unless a later agent has put its own there.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.path.symlink_metadata().is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn router(requests: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/v1/apply", post(apply))
        .route("/v1/delete", post(delete))
        .route("/v1/services/{name}/drain", post(drain))
        .route("/v1/services/{name}/undrain", post(undrain))
        .route("/v1/objects", get(objects))
        .route("/v1/services", get(services))
        .route("/v1/real-servers", get(real_servers).post(operate))
        .route("/v1/health", get(health))
        .route("/v1/connections", get(connections))
        .route("/v1/persistence", get(persistence))
        .route("/v1/counters", get(counters))
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/metrics", get(metrics))
        .route("/v1/vrrp", get(vrrp))
        .route("/v1/vrrp/{name}/handover", post(handover))
        .fallback(|| async {
            Failure::new(StatusCode::NOT_FOUND, "there is no such path; the API's begin with /v1/")
        })
        .method_not_allowed_fallback(|| async {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "orders are POST, questions are GET")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(Agent(requests))
}

/// The way to the agent.
#[derive(Clone)]
struct Agent(mpsc::Sender<Request>);

impl Agent {
    /// Asks, and waits for the answer.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Failure> {
        let stopping = || Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping");
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OrderQuery {
    #[serde(default)]
    prune: bool,
    #[serde(default)]
    dry_run: bool,
}

async fn apply(
    State(agent): State<Agent>,
    query: Result<Query<OrderQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let Query(OrderQuery { prune, dry_run }) = query?;
    let order = order(&body?)?;
    if !order.ids.is_empty() {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "`ids` can only be deleted"));
    }
    let sources = order.sources;
    json(agent.ask(|reply| Request::Apply { sources, prune, dry_run, reply }).await??)
}

async fn delete(
    State(agent): State<Agent>,
    query: Result<Query<OrderQuery>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let Query(OrderQuery { prune, dry_run }) = query?;
    if prune {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "`prune` belongs to apply"));
    }
    let order = order(&body?)?;
    let parsed = manifest::parse(&order.sources);
    if !parsed.report.0.is_empty() {
        return Err(Refusal::from(parsed.report).into());
    }
    let mut ids = order.ids;
    ids.extend(parsed.objects.iter().map(|(id, _)| id.clone()));
    if ids.is_empty() {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "nothing named that could be deleted"));
    }
    json(agent.ask(|reply| Request::Delete { ids, dry_run, reply }).await??)
}

struct Order {
    sources: Vec<Source>,
    ids: Vec<ObjectId>,
}

/// A body is JSON with `sources` or `ids`, or else a manifest itself (in JSON too, which is YAML).
fn order(body: &[u8]) -> Result<Order, Failure> {
    let bad = |message: String| Failure::new(StatusCode::BAD_REQUEST, message);
    let text = std::str::from_utf8(body).map_err(|_| bad("the body is not UTF-8".into()))?;
    let wrapped = text.trim_start().starts_with('{')
        && serde_json::from_str::<serde_json::Value>(text)
            .is_ok_and(|value| value.get("sources").is_some() || value.get("ids").is_some());
    if !wrapped {
        let source = Source { file: BODY_NAME.to_owned(), text: text.to_owned() };
        return Ok(Order { sources: vec![source], ids: Vec::new() });
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let body: OrderBody =
        serde_path_to_error::deserialize(&mut reader).map_err(|error| bad(format!("the body: {error}")))?;
    let sources = body.sources.into_iter().map(|source| Source { file: source.file, text: source.text });
    let ids = body.ids.iter().map(|text| object_id(text).map_err(bad));
    Ok(Order { sources: sources.collect(), ids: ids.collect::<Result<_, _>>()? })
}

/// Reads `VirtualService/web`.
fn object_id(text: &str) -> Result<ObjectId, String> {
    let wrong = || format!("`{}` is no object: `VirtualService/web` would be", text.escape_debug());
    let (kind, name) = text.split_once('/').ok_or_else(wrong)?;
    let kind = kind.parse().map_err(|()| wrong())?;
    let name = Name::new(name).map_err(|reason| format!("`{}`: {reason}", text.escape_debug()))?;
    Ok(ObjectId { kind, name })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DrainQuery {
    real_server: String,
    /// Seconds.
    deadline: Option<u64>,
}

async fn drain(
    State(agent): State<Agent>,
    axum::extract::Path(service): axum::extract::Path<String>,
    query: Result<Query<DrainQuery>, QueryRejection>,
) -> Answer {
    let Query(DrainQuery { real_server, deadline }) = query?;
    let deadline = deadline.map(|seconds| Duration::from_secs(seconds).min(DrainPolicy::MAX));
    json(agent.ask(|reply| Request::Drain { service, real_server, deadline, reply }).await??)
}

async fn undrain(
    State(agent): State<Agent>,
    axum::extract::Path(service): axum::extract::Path<String>,
    query: Result<Query<DrainQuery>, QueryRejection>,
) -> Answer {
    let Query(DrainQuery { real_server, deadline }) = query?;
    if deadline.is_some() {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "`deadline` belongs to drain"));
    }
    json(agent.ask(|reply| Request::Undrain { service, real_server, reply }).await??)
}

async fn objects(State(agent): State<Agent>) -> Answer {
    json(agent.ask(|reply| Request::Objects { reply }).await?)
}

async fn services(State(agent): State<Agent>) -> Answer {
    json(agent.ask(|reply| Request::Services { reply }).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RealServersQuery {
    service: Option<String>,
}

async fn real_servers(
    State(agent): State<Agent>,
    query: Result<Query<RealServersQuery>, QueryRejection>,
) -> Answer {
    let Query(RealServersQuery { service }) = query?;
    json(agent.ask(|reply| Request::RealServers { service, reply }).await?)
}

async fn health(
    State(agent): State<Agent>,
    query: Result<Query<RealServersQuery>, QueryRejection>,
) -> Answer {
    let Query(RealServersQuery { service }) = query?;
    json(agent.ask(|reply| Request::Health { service, reply }).await?)
}

async fn operate(State(agent): State<Agent>, body: Result<Bytes, BytesRejection>) -> Answer {
    let body = body?;
    let mut reader = serde_json::Deserializer::from_slice(&body);
    let order: ServerOrder = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the body: {error}")))?;
    json(agent.ask(|reply| Request::Operate { order, reply }).await??)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConnectionsQuery {
    limit: Option<usize>,
    service: Option<String>,
    client: Option<std::net::IpAddr>,
    real_server: Option<std::net::IpAddr>,
    state: Option<String>,
}

async fn connections(
    State(agent): State<Agent>,
    query: Result<Query<ConnectionsQuery>, QueryRejection>,
) -> Answer {
    let Query(ConnectionsQuery { limit, service, client, real_server, state }) = query?;
    let limit = limit.unwrap_or(CONNECTIONS_LIMIT).min(CONNECTIONS_LIMIT_MAX);
    let filter = ConnectionFilter { service, client, real_server, state };
    json(agent.ask(|reply| Request::Connections { limit, filter, reply }).await??)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PersistenceQuery {
    limit: Option<usize>,
    service: Option<String>,
}

async fn persistence(
    State(agent): State<Agent>,
    query: Result<Query<PersistenceQuery>, QueryRejection>,
) -> Answer {
    let Query(PersistenceQuery { limit, service }) = query?;
    let limit = limit.unwrap_or(CONNECTIONS_LIMIT).min(CONNECTIONS_LIMIT_MAX);
    json(agent.ask(|reply| Request::Persistence { limit, service, reply }).await??)
}

async fn counters(State(agent): State<Agent>) -> Answer {
    json(agent.ask(|reply| Request::Counters { reply }).await??)
}

async fn status(State(agent): State<Agent>) -> Answer {
    json(agent.ask(|reply| Request::Status { reply }).await?)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EventsQuery {
    after: Option<u64>,
    limit: Option<usize>,
    /// Milliseconds.
    #[serde(default)]
    wait: u64,
}

async fn events(State(agent): State<Agent>, query: Result<Query<EventsQuery>, QueryRejection>) -> Answer {
    let Query(EventsQuery { after, limit, wait }) = query?;
    let limit = limit.unwrap_or(EVENTS_LIMIT);
    let wait = Duration::from_millis(wait).min(EVENTS_WAIT_MAX);
    json(agent.ask(|reply| Request::Events { after, limit, wait, reply }).await?)
}

async fn metrics(State(Agent(requests)): State<Agent>) -> Response {
    super::metrics::answer(super::metrics::ask(&requests).await)
}

async fn vrrp(State(agent): State<Agent>) -> Answer {
    json(agent.ask(|reply| Request::Vrrp { reply }).await?)
}

async fn handover(
    State(agent): State<Agent>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Answer {
    let name = Name::new(&name).map_err(|reason| Failure::new(StatusCode::BAD_REQUEST, reason))?;
    json(agent.ask(|reply| Request::Handover { name, reply }).await??)
}

type Answer = Result<Response, Failure>;

fn json(value: impl Serialize) -> Answer {
    Ok(Json(value).into_response())
}

/// What is sent when something is not done.
struct Failure {
    status: StatusCode,
    body: ErrorBody,
}

impl Failure {
    fn new(status: StatusCode, error: impl Into<String>) -> Failure {
        Failure { status, body: ErrorBody { error: error.into(), refusal: None } }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let status = match &refusal {
            Refusal::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Owned { .. } => StatusCode::CONFLICT,
            Refusal::Missing { .. } => StatusCode::NOT_FOUND,
            Refusal::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure { status, body: ErrorBody { error: refusal.to_string(), refusal: Some(refusal) } }
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Failure {
        Failure::new(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for Failure {
    fn from(rejection: BytesRejection) -> Failure {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let limit = format!("the body is larger than {} MiB", BODY_MAX >> 20);
                Failure::new(StatusCode::PAYLOAD_TOO_LARGE, limit)
            }
            status => Failure::new(status, rejection.body_text()),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

/// How diagnostics name a manifest that is the body itself.
const BODY_NAME: &str = "<body>";
/// Connections that wait to be accepted: more than operators and scrapers ever have at once.
const BACKLOG: i32 = 128;
