//! gRPC health checking (grpc.health.v1): passes if the service is SERVING.

use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::http::{beside, of_hyper};
use super::tls::{Roots, Tls, authority};
use super::words::{Failure, quote};
use super::{Attempt, Success, connect};
use crate::model::health::Grpc;

#[derive(Debug)]
pub struct Prober {
    grpc: Grpc,
    tls: Option<Tls>,
}

impl Prober {
    pub fn new(grpc: &Grpc, roots: &Roots) -> Result<Prober, Failure> {
        let tls = |tls| Tls::new(tls, grpc.host.as_deref(), Some("h2"), roots);
        Ok(Prober { grpc: grpc.clone(), tls: grpc.tls.as_ref().map(tls).transpose()? })
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
                self.exchange(attempt, stream, took).await
            }
        }
    }

    async fn exchange<S>(&self, attempt: &Attempt<'_>, stream: S, took: Duration) -> Result<Success, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (address, port) = (attempt.target.address(), attempt.target.port());
        let (scheme, default) = if self.tls.is_some() { ("https", 443) } else { ("http", 80) };
        let authority = authority(self.grpc.host.as_deref(), address, port, default);
        let origin = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
        let origin = origin.map_err(|error| Failure::new(format!("the request cannot be sent: {error}")))?;
        let doing = format!("ask {} for its health", attempt.target);
        let shake = handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = attempt
            .within(&doing, shake)
            .await?
            .map_err(|error| Failure::new(format!("{doing}: {}", of_hyper(&error))))?;
        let mut client =
            HealthClient::with_origin(Sender(sender), origin).max_decoding_message_size(ANSWER_MAX);
        let question = HealthCheckRequest { service: self.grpc.service.clone() };
        let answer = beside(connection, attempt.within(&doing, client.check(question))).await?;
        let status = answer.map_err(|status| self.refused(&doing, &status))?.into_inner().status;
        match ServingStatus::try_from(status) {
            Ok(ServingStatus::Serving) => Ok(Success::new("SERVING", took)),
            Ok(status) => Err(Failure::new(format!("the service is {}", status.as_str_name()))),
            Err(_) => Err(Failure::new(format!("the service is in state {status}, which has no name"))),
        }
    }

    fn refused(&self, doing: &str, status: &Status) -> Failure {
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
        while let Some(error) = cause {
            match error.downcast_ref::<Trouble>() {
                Some(Trouble::Connection(error)) => {
                    return Failure::new(format!("{doing}: {}", of_hyper(error)));
                }
                Some(Trouble::NotGrpc(_)) => return Failure::new(error.to_string()),
                None => cause = error.source(),
            }
        }
        match status.code() {
            Code::Unimplemented => Failure::new("the server has no health service (grpc.health.v1)"),
            Code::NotFound => {
                Failure::new(format!("the server knows no service {}", quote(self.grpc.service.as_bytes())))
            }
            code => Failure::new(format!("{doing}: {code:?} {}", quote(status.message().as_bytes()))),
        }
    }
}

/// hyper's end of one connection, as tonic calls it.
#[derive(Debug)]
struct Sender(SendRequest<Body>);

/// What keeps an answer from being one of gRPC.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Connection(hyper::Error),
    /// tonic would take the page of a web server for messages.
    #[error("the server answers status {0}, and not in gRPC")]
    NotGrpc(u16),
}

impl Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = Trouble;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Incoming>, Trouble>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        self.0.poll_ready(context).map_err(Trouble::Connection)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.send_request(request);
        Box::pin(async move {
            let answer = answer.await.map_err(Trouble::Connection)?;
            let kind = answer.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes());
            match kind.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
                true => Ok(answer),
                false => Err(Trouble::NotGrpc(answer.status().as_u16())),
            }
        })
    }
}

/// An answer is two bytes.
const ANSWER_MAX: usize = 4096;
