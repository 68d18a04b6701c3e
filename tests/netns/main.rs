//! Whole-system tests: real programs in network namespaces. They need root and clean up after themselves.

mod forwarding;
mod lab;
mod real_server;
mod site;
