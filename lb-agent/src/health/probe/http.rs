//! HTTP and HTTPS: one request on a connection of its own, by hyper's low-level client. The body is read only
//! where the check looks at it, and never beyond [`Http::BODY_MAX`].

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use md5::Md5;
use regex::bytes::Regex;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};

use super::tls::{Roots, Tls, authority};
use super::words::{Failure, of_error, quote};
use super::{Attempt, Success, connect};
use crate::model::health::{Digest, Http, HttpVersion};

#[derive(Debug)]
pub struct Prober {
    http: Http,
    method: Method,
    headers: Vec<(HeaderName, HeaderValue)>,
    matches: Option<Regex>,
    tls: Option<Tls>,
}

impl Prober {
    pub fn new(http: &Http, roots: &Roots) -> Result<Prober, Failure> {
        let wrong = |what: &str| Failure::new(format!("{what} cannot be sent"));
        let method = Method::from_bytes(http.method.as_bytes()).map_err(|_| wrong("the method"))?;
        let header = |(name, value): &(String, String)| {
            let wrong = || wrong(&format!("header {name}"));
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            Ok((parsed, HeaderValue::from_str(value).map_err(|_| wrong())?))
        };
        let headers = http.headers.iter().map(header).collect::<Result<Vec<_>, Failure>>()?;
        let matches = http.matches.as_deref().map(Regex::new).transpose();
        let matches = matches.map_err(|error| Failure::new(format!("the pattern: {error}")))?;
        let alpn = match http.version {
            HttpVersion::Http10 => None,
            HttpVersion::Http11 => Some("http/1.1"),
            HttpVersion::Http2 => Some("h2"),
        };
        let tls = |tls| Tls::new(tls, http.host.as_deref(), alpn, roots);
        let tls = http.tls.as_ref().map(tls).transpose()?;
        Ok(Prober { http: http.clone(), method, headers, matches, tls })
    }

    pub fn is_stale(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::is_stale)
    }

    pub async fn run(&self, attempt: &Attempt<'_>) -> Result<Success, Failure> {
        let (stream, took) = connect::tcp(attempt).await?;
        match &self.tls {
            None => self.exchange(attempt, stream, took).await,
            Some(tls) => {
                let stream = tls.handshake(attempt, stream).await?;
                if self.http.version == HttpVersion::Http2
                    && stream.get_ref().1.alpn_protocol() != Some(b"h2")
                {
                    return Err(Failure::new("the server does not speak HTTP/2 (ALPN h2)"));
                }
                self.exchange(attempt, stream, took).await
            }
        }
    }

    async fn exchange<S>(&self, attempt: &Attempt<'_>, stream: S, took: Duration) -> Result<Success, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = self.request(attempt)?;
        let doing = format!("{} {}", self.http.method, self.http.path);
        let wrong = |error: hyper::Error| Failure::new(format!("{doing}: {}", of_hyper(&error)));
        let io = TokioIo::new(stream);
        if self.http.version == HttpVersion::Http2 {
            let shake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
            let (mut sender, connection) = attempt.within(&doing, shake).await?.map_err(wrong)?;
            let exchange = async {
                let response = attempt.within(&doing, sender.send_request(request)).await?;
                self.judge(attempt, response.map_err(wrong)?, took).await
            };
            beside(connection, exchange).await
        } else {
            let mut builder = hyper::client::conn::http1::Builder::new();
            let shake = builder.max_buf_size(HEADERS_MAX).handshake(io);
            let (mut sender, connection) = attempt.within(&doing, shake).await?.map_err(wrong)?;
            let exchange = async {
                let response = attempt.within(&doing, sender.send_request(request)).await?;
                self.judge(attempt, response.map_err(wrong)?, took).await
            };
            beside(connection, exchange).await
        }
    }

    fn request(&self, attempt: &Attempt<'_>) -> Result<Request<Full<Bytes>>, Failure> {
        let (address, port) = (attempt.target.address(), attempt.target.port());
        let (scheme, default) = if self.tls.is_some() { ("https", 443) } else { ("http", 80) };
        let authority = authority(self.http.host.as_deref(), address, port, default);
        let wrong = |error: hyper::http::Error| Failure::new(format!("the request cannot be sent: {error}"));
        let path = self.http.path.as_str();
        let uri = match self.http.version {
            HttpVersion::Http2 => Uri::builder()
                .scheme(scheme)
                .authority(authority.as_str())
                .path_and_query(path)
                .build()
                .map_err(wrong)?,
            HttpVersion::Http10 | HttpVersion::Http11 => {
                Uri::builder().path_and_query(path).build().map_err(wrong)?
            }
        };
        let body = Full::new(Bytes::from(self.http.body.clone().unwrap_or_default()));
        let mut request =
            Request::builder().method(self.method.clone()).uri(uri).body(body).map_err(wrong)?;
        let first = |name, value| (name, HeaderValue::from_static(value));
        let headers = request.headers_mut();
        headers.extend([first(USER_AGENT, AGENT)]);
        if self.http.version != HttpVersion::Http2 {
            let host = HeaderValue::from_str(&authority).map_err(|error| wrong(error.into()))?;
            headers.extend([(HOST, host), first(CONNECTION, "close")]);
        }
        for (name, _) in &self.headers {
            headers.remove(name);
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        *request.version_mut() = match self.http.version {
            HttpVersion::Http10 => Version::HTTP_10,
            HttpVersion::Http11 => Version::HTTP_11,
            HttpVersion::Http2 => Version::HTTP_2,
        };
        Ok(request)
    }

    async fn judge(
        &self,
        attempt: &Attempt<'_>,
        response: Response<Incoming>,
        took: Duration,
    ) -> Result<Success, Failure> {
        let status = response.status().as_u16();
        if !self.http.statuses.iter().any(|range| range.contains(status)) {
            let wanted: Vec<String> = self.http.statuses.iter().map(ToString::to_string).collect();
            return Err(Failure::new(format!("status {status}, expected {}", wanted.join(", "))));
        }
        if self.matches.is_some() || self.http.digest.is_some() {
            let body = self.body(attempt, response.into_body()).await?;
            self.judge_body(&body)?;
        }
        Ok(Success::new(format!("status {status}"), took))
    }

    async fn body(&self, attempt: &Attempt<'_>, mut body: Incoming) -> Result<Vec<u8>, Failure> {
        let mut read = Vec::new();
        while let Some(frame) = attempt.within("read the body", body.frame()).await? {
            let frame =
                frame.map_err(|error| Failure::new(format!("read the body: {}", of_hyper(&error))))?;
            let Ok(data) = frame.into_data() else { continue };
            let room = Http::BODY_MAX - read.len();
            if data.len() > room {
                if self.http.digest.is_some() {
                    let max = Http::BODY_MAX >> 20;
                    return Err(Failure::new(format!(
                        "the body is longer than {max} MiB, too long for a digest"
                    )));
                }
                read.extend_from_slice(&data[..room]);
                break;
            }
            read.extend_from_slice(&data);
        }
        Ok(read)
    }

    fn judge_body(&self, body: &[u8]) -> Result<(), Failure> {
        if let (Some(regex), Some(pattern)) = (&self.matches, &self.http.matches)
            && !regex.is_match(body)
        {
            return Err(Failure::new(format!("the body, {}, does not match {pattern}", quote(body))));
        }
        let differs = |found: &[u8], wanted: &[u8]| {
            let words = format!("the body's digest is {}, expected {}", hex(found), hex(wanted));
            if found == wanted { Ok(()) } else { Err(Failure::new(words)) }
        };
        match &self.http.digest {
            Some(Digest::Md5(wanted)) => differs(&Md5::digest(body), wanted),
            Some(Digest::Sha256(wanted)) => differs(&Sha256::digest(body), wanted),
            None => Ok(()),
        }
    }
}

/// Drives the connection until the exchange is over.
pub async fn beside<T>(connection: impl Future, exchange: impl Future<Output = T>) -> T {
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // The server has closed it; what it had sent before is still to be read.
        _ = &mut connection => exchange.await,
    }
}

/// What went wrong, from the innermost cause.
pub fn of_hyper(error: &hyper::Error) -> String {
    if error.is_parse() {
        return "the answer is not HTTP".into();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return "the server closed the connection before it answered".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.downcast_ref::<std::io::Error>().map_or_else(|| cause.to_string(), of_error)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const AGENT: &str = concat!("lb-agent/", env!("CARGO_PKG_VERSION"));
/// Of a response; one whose headers are longer is refused.
const HEADERS_MAX: usize = 64 << 10;
