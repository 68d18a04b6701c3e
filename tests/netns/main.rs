//! Whole-system tests: real programs in network namespaces. They need root and clean up after themselves.

mod continuity;
mod counters;
mod forwarding;
mod lab;
mod manifests;
mod neighbours;
mod net;
mod real_server;
mod site;
