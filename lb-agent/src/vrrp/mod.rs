//! VRRP. The pure half: bytes ([`advert`], [`auth`], [`wire`]), times ([`timers`]), what is tracked
//! ([`tracking`]), the election for one virtual router ([`instance`]) and what binds several ([`group`]).
//! They take values and `now`, and return values; the edges beside them do what they say.

pub mod advert;
pub mod auth;
pub mod driver;
pub mod events;
pub mod group;
pub mod hands;
pub mod instance;
pub mod lag;
pub mod memory;
pub mod peers;
pub mod runner;
pub mod socket;
pub mod timers;
pub mod trackers;
pub mod tracking;
pub mod wire;
pub mod words;
