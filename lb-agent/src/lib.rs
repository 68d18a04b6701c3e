//! The agent of an lb director.

pub mod net;
