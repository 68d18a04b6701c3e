//! HTTP/2 and gRPC against hyper's and tonic's servers.

use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tonic_health::ServingStatus;
use tonic_health::server::health_reporter;

use super::*;
use crate::model::health::Grpc;

async fn listen() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// tonic's health server; returns what sets its states.
async fn health_server() -> (tonic_health::server::HealthReporter, SocketAddr) {
    let (reporter, service) = health_reporter();
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    (reporter, address)
}

fn grpc(service: &str) -> Check {
    check(Probe::Grpc(Grpc { service: service.into(), ..Grpc::default() }))
}

#[tokio::test]
async fn a_service_passes_while_it_is_serving() {
    let (reporter, server) = health_server().await;
    passes(&run(&grpc(""), server).await, "SERVING");
    fails(&run(&grpc("shop.Cart"), server).await, "the server knows no service \"shop.Cart\"");
    reporter.set_service_status("shop.Cart", ServingStatus::Serving).await;
    passes(&run(&grpc("shop.Cart"), server).await, "SERVING");
    reporter.set_service_status("shop.Cart", ServingStatus::NotServing).await;
    fails(&run(&grpc("shop.Cart"), server).await, "the service is NOT_SERVING");
    reporter.set_service_status("shop.Cart", ServingStatus::Unknown).await;
    fails(&run(&grpc("shop.Cart"), server).await, "the service is UNKNOWN");
}

/// An HTTP/2 server that answers `status` and says the authority it was asked for.
async fn http2_server(status: u16) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(move |request: Request<Incoming>| async move {
                let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
                Response::builder().status(status).body(authority)
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(serving);
        }
    });
    address
}

#[tokio::test]
async fn http2_is_spoken_with_prior_knowledge() {
    let http = Http {
        version: HttpVersion::Http2,
        host: Some("web.example".into()),
        matches: Some("^web.example$".into()),
        ..Http::get("/healthz")
    };
    let probe = check(Probe::Http(http));
    passes(&run(&probe, http2_server(200).await).await, "status 200");
    fails(&run(&probe, http2_server(503).await).await, "status 503, expected 200-299");
}

#[tokio::test]
async fn a_server_of_http_1_speaks_neither_http_2_nor_grpc() {
    let old = || answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let http2 = check(Probe::Http(Http { version: HttpVersion::Http2, ..Http::get("/") }));
    assert!(!run(&http2, old()).await.passed);
    assert!(!run(&grpc(""), old()).await.passed);
    // And one that speaks HTTP/2 without the health service.
    let outcome = run(&grpc(""), http2_server(404).await).await;
    fails(&outcome, "the server answers status 404, and not in gRPC");
}
