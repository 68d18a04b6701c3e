//! What the director does under a flood.

use std::ops::RangeInclusive;
use std::path::PathBuf;

/// Limits of one CPU, for all services together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flood {
    /// New flows a second above which hash services of dr and tun make no entries. Within [`Flood::RATE`]; none: no
    /// limit.
    pub new_flows: Option<u32>,
    pub syn_cookies: SynCookiesAbove,
}

/// When services whose `synCookies` is `auto` answer SYNs with cookies, and with which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynCookiesAbove {
    /// SYNs a second. Within [`Flood::RATE`]; none: never.
    pub above: Option<u32>,
    /// A file whose bytes are the secret, shared by a pair of directors. None: the director's own.
    pub secret_file: Option<PathBuf>,
}

impl Flood {
    /// Range of rates.
    pub const RATE: RangeInclusive<u32> = 1..=1_000_000_000;
    /// The fewest and the most bytes of a secret.
    pub const SECRET: RangeInclusive<usize> = 16..=4096;
}

impl Default for Flood {
    fn default() -> Flood {
        let syn_cookies = SynCookiesAbove { above: Some(20_000), secret_file: None };
        Flood { new_flows: Some(100_000), syn_cookies }
    }
}
