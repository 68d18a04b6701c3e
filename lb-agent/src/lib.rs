//! The agent of an lb director.

pub mod net;
//! The lb agent as a library: the pure cores (objects, manifests, schedulers) and the edges around them.

pub mod manifest;
pub mod model;
pub mod scheduler;
