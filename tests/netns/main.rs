//! Whole-system tests: real programs in network namespaces. They need root and clean up after themselves.

mod continuity;
mod forwarding;
mod lab;
mod net;
mod real_server;
mod site;
