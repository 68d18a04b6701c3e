//! skeleton
pub mod dataplane;
pub mod real_server;
