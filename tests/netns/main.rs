//! Whole-system tests: real programs in network namespaces. They need root and clean up after themselves.

mod continuity;
mod cookies;
mod counters;
mod forwarding;
mod fragments;
mod ftp;
mod health;
mod lab;
mod lease;
mod load;
mod local;
mod manifests;
mod metrics;
mod neighbours;
mod net;
mod nics;
mod path_mtu;
mod probes;
mod proxy;
mod quic;
mod real_path;
mod real_server;
mod scheduling;
mod site;
mod toa;
mod tunnels;
mod vrrp;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by a test whose streams of datagrams are to lose nothing and keep their rate: all streams share a CPU.
fn alone_with_streams() -> MutexGuard<'static, ()> {
    static STREAMS: Mutex<()> = Mutex::new(());
    // A test that failed while it held this has said so.
    STREAMS.lock().unwrap_or_else(PoisonError::into_inner)
}
