//! What the director does under a flood.

use std::ops::RangeInclusive;

/// Limits of one CPU, for all services together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flood {
    /// New flows a second above which hash services of dr and tun make no entries. Within [`Flood::RATE`]; none: no
    /// limit.
    pub new_flows: Option<u32>,
}

impl Flood {
    /// Range of rates.
    pub const RATE: RangeInclusive<u32> = 1..=1_000_000_000;
}

impl Default for Flood {
    fn default() -> Flood {
        Flood { new_flows: Some(100_000) }
    }
}
