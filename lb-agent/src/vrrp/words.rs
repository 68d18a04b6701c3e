//! What the VRRP thread tells the data plane, and can ask it: one word for each instance.

use std::time::{Duration, Instant};

use super::events::Role;

/// The data plane's words, from the VRRP thread's side.
pub trait Words: Send {
    /// What this director may do for the addresses of instance `number` (1 to 255), and until when. Must not wait.
    ///
    /// # Errors
    /// A number that is none.
    fn set(&self, number: u8, role: Role, until: Option<Instant>) -> Result<(), String>;

    /// What the data plane makes of it now; None where it cannot say.
    fn standing(&self, number: u8) -> Option<Standing>;
}

/// What the data plane makes of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Backup,
    /// For so long; without an end where it has none.
    Master(Option<Duration>),
    /// A master whose lease ended so long ago.
    Expired(Duration),
}
