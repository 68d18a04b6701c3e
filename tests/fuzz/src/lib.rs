//! The pure modules under fuzz, from the agent's own files.

#[path = "../../../lb-agent/src/model/mod.rs"]
pub mod model;
pub mod vrrp;
