//! The lb agent as a library: the pure cores (objects, manifests, schedulers) and the edges around them.

pub mod agent;
pub mod apply;
pub mod cli;
pub mod control;
pub mod dataplane;
pub mod director;
pub mod doctor;
pub mod events;
pub mod health;
pub mod manifest;
pub mod metrics;
pub mod model;
pub mod net;
pub mod places;
pub mod plan;
pub mod real_server;
pub mod scheduler;
pub mod state;
pub mod vrrp;
pub mod watch;
