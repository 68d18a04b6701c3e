//! Sends an event to a URL: `POST` with the event as JSON. Anything but 2xx is tried again.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Event;
use crate::model::{Url, Webhook};

/// One attempt.
///
/// # Errors
/// No connection, no answer in time, or an answer that is no 2xx.
pub async fn send(webhook: &Webhook, event: &Event) -> Result<()> {
    let body = serde_json::to_vec(event)?;
    let attempt = async {
        let Url { host, port, .. } = &webhook.url;
        let stream =
            TcpStream::connect((host.as_str(), *port)).await.with_context(|| format!("connect to {host}"))?;
        if webhook.url.tls {
            let name = ServerName::try_from(host.clone()).context("the name for TLS")?;
            let stream = TlsConnector::from(tls()?).connect(name, stream).await.context("TLS")?;
            post(stream, webhook, body).await
        } else {
            post(stream, webhook, body).await
        }
    };
    match tokio::time::timeout(webhook.timeout, attempt).await {
        Ok(result) => result,
        Err(_) => bail!("no answer within {:?}", webhook.timeout),
    }
}

async fn post(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    webhook: &Webhook,
    body: Vec<u8>,
) -> Result<()> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("begin HTTP")?;
    let connection = tokio::spawn(connection);
    let request = Request::post(&webhook.url.path)
        .header(HOST, webhook.url.authority())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("lb-agent/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))
        .context("the request")?;
    let answer = sender.send_request(request).await;
    let status = match answer {
        Ok(answer) => {
            let status = answer.status();
            // What it says is of no use; reading it lets the other side end in order.
            let _ = http_body_util::Limited::new(answer.into_body(), 65_536).collect().await;
            Ok(status)
        }
        Err(error) => Err(error),
    };
    connection.abort();
    let status = status.context("send the event")?;
    if !status.is_success() {
        bail!("it answered {status}");
    }
    Ok(())
}

/// Certificates are verified against the system's.
fn tls() -> Result<Arc<rustls::ClientConfig>> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}
