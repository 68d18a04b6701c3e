//! The agent of an lb director.

pub mod dataplane;
pub mod net;
