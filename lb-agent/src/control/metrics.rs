//! Metrics over TCP, for who scrapes them: `GET /metrics`, and nothing else. The control socket has the same path.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::Request;
use crate::metrics::CONTENT_TYPE;

/// Listens at `address` until the task is aborted.
///
/// # Errors
/// An address that is not the host's, or that somebody else listens at.
pub async fn serve(address: SocketAddr, requests: mpsc::Sender<Request>) -> Result<JoinHandle<()>> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen at {address}"))?;
    let router = Router::new()
        .route("/metrics", get(scrape))
        .fallback(|| async { (StatusCode::NOT_FOUND, "metrics are at /metrics\n") })
        .with_state(requests);
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("metrics at {address} ended: {error}");
        }
    }))
}

async fn scrape(State(requests): State<mpsc::Sender<Request>>) -> Response {
    answer(ask(&requests).await)
}

/// The text; None: the agent is stopping.
pub async fn ask(requests: &mpsc::Sender<Request>) -> Option<Arc<str>> {
    let (reply, answer) = oneshot::channel();
    requests.send(Request::Metrics { reply }).await.ok()?;
    answer.await.ok()
}

/// The text with what HTTP says of it.
pub fn answer(text: Option<Arc<str>>) -> Response {
    match text {
        // As it is: the text is shared with whoever asks in the same second.
        Some(text) => {
            let body = axum::body::Body::from(axum::body::Bytes::from_owner(Shared(text)));
            ([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n").into_response(),
    }
}

struct Shared(Arc<str>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
