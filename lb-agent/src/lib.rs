//! The lb agent as a library: the pure cores (objects, manifests, schedulers) and the edges around them.

pub mod control;
pub mod dataplane;
pub mod manifest;
pub mod model;
pub mod net;
pub mod real_server;
pub mod scheduler;
