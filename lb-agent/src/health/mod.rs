//! Health checks: which real servers may get new connections, and why not. `state` decides what is believed of
//! one check, `pool` what that means for one service, `roster` holds all of both; the monitor (an edge) makes the
//! probes and reports their outcomes.
//!
//! The monitor's interface, as the agent uses it:
//!
//! ```ignore
//! let (monitor, mut reports) = Monitor::start(…);      // reports: mpsc::Receiver<Report>
//! monitor.set(checks);                                 // Vec<Assignment>: all that should be probed from now on
//! monitor.pace(id, Pace::Fast);                        // which of the two intervals a check has
//! ```
//!
//! A check that is still among those of the next `set` goes on at its pace and at its place in time; a new one
//! starts at a random moment within its fast interval, at [`Pace::Fast`].

pub mod pool;
pub mod roster;
pub mod saved;
pub mod state;

pub use pool::{Judgement, ServerVerdict, Standing};
pub use roster::{Judged, Roster};
pub use state::{Assignment, CheckId, Order, Outcome, Pace, Report, Weighing};
