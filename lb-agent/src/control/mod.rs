//! The control API: what an operator may ask of a running agent, and the answers. The agent is asked by
//! [`Request`]s on a channel.

mod request;
pub mod views;

pub use request::{Change, ConnectionFilter, Effect, Outcome, Refusal, Reply, Request, Verb};
