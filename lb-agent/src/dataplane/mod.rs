//! The edge to the kernel through aya: loads programs, reads and writes maps.

pub mod decapsulator;
