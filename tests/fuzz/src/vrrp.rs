//! Of VRRP, what reads bytes.

#[path = "../../../lb-agent/src/vrrp/advert.rs"]
pub mod advert;
#[path = "../../../lb-agent/src/vrrp/auth.rs"]
pub mod auth;
#[path = "../../../lb-agent/src/vrrp/wire.rs"]
pub mod wire;
