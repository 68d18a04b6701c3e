//! The edge to the data plane: the only place that knows aya, BPF objects and their pins. `load` makes the
//! tables and switches the program, `tables` is what a plan's steps are run against, `sweeper` frees expired
//! flows and counts the live ones, `dump` and `counters` read for the operator.

pub mod ages;
mod attach;
mod bpf;
mod cells;
pub mod clock;
pub mod counters;
pub mod decapsulator;
pub mod dump;
mod egress;
mod error;
mod indices;
pub mod layout;
mod load;
mod mapped;
mod packets;
mod pinned;
mod pins;
mod ports;
mod ranges;
mod real_path;
pub mod self_probe;
mod store;
pub mod sweeper;
pub mod tables;
mod test_run;
pub mod toa_reader;
mod views;
mod vrrp;

pub use attach::{Attached, Interface, Mode, XdpMode};
pub use clock::Clock;
pub use counters::Counters;
pub use egress::EgressMode;
pub use error::Error;
pub use layout::{EXTENDED_SHARE, Sizes};
pub use load::{Dataplane, Options};
pub use mapped::Mapped;
pub use packets::Packets;
pub use ports::Ports;
pub use real_path::{Probed, ProberPair, RealPath};
pub use sweeper::{Scan, Sweeper};
pub use tables::Tables;
pub use test_run::{Action, Outcome};
pub use views::Views;
pub use vrrp::{VrrpRole, VrrpRoles, VrrpStanding};

/// The data plane's programs, as built with this agent (ELF).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_EBPF_OBJECT"));
