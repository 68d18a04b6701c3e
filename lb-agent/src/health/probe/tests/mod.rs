//! Probes against servers on loopback that are well, or ill in every way that was thought of.

mod http;
mod hung;
mod lines;
mod names;
mod rpc;
mod script;
mod tls;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::{Prober, tls::Roots};
use crate::health::Outcome;
use crate::model::health::{Check, Http, HttpVersion, Probe, StatusRange, Target, Timing};

/// A check with time for a loaded machine.
pub fn check(probe: Probe) -> Check {
    let timing = Timing { timeout: Duration::from_secs(20), ..Timing::default() };
    Check::direct(probe, timing)
}

/// One that is not to be waited for.
fn impatient(probe: Probe) -> Check {
    let timing = Timing { timeout: Duration::from_millis(300), ..Timing::default() };
    Check { timing, ..check(probe) }
}

async fn run(check: &Check, server: SocketAddr) -> Outcome {
    let target = Target::Direct { address: server.ip(), port: server.port() };
    Prober::new(Arc::new(check.clone()), &Roots::default()).run(server, &target).await
}

#[track_caller]
fn passes(outcome: &Outcome, words: &str) {
    assert_eq!((outcome.passed, &*outcome.words), (true, words));
    assert!(outcome.latency.is_some());
}

#[track_caller]
fn fails(outcome: &Outcome, words: &str) {
    assert_eq!((outcome.passed, &*outcome.words), (false, words));
}

/// A server on loopback that gives each connection to `serve`, on a thread of its own.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Reads a request's header and returns it.
fn header(stream: &TcpStream) -> String {
    let mut text = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while reader.read_line(&mut text).unwrap_or(0) > 2 {}
    text
}

/// Waits until the other side has closed.
fn drain(stream: &mut TcpStream) {
    let _ = std::io::copy(stream, &mut std::io::sink());
}

/// An HTTP server that answers every request with these bytes.
fn answering(response: impl Into<Vec<u8>>) -> SocketAddr {
    let response = response.into();
    server(move |mut stream| {
        header(&stream);
        let _ = stream.write_all(&response);
    })
}
