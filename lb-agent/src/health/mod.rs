//! Health checks: which real servers may get new connections, and why not. `state` decides what is believed of
//! one check, `pool` what that means for one service, `roster` holds all of both; the monitor (an edge) makes the
//! probes and reports their outcomes.
//!
//! The monitor's interface, as the agent uses it:
//!
//! ```text
//! let (monitor, mut reports) = Monitor::start()?;      // reports: mpsc::Receiver<Vec<Report>>, in batches
//! monitor.set(checks);                                 // Vec<Assignment>: all that should be probed from now on
//! monitor.pace(id, Pace::Fast);                        // which of the two intervals a check has
//! monitor.probe_now(id);                               // whenever it is due
//! monitor.load();                                      // how many checks, and by how much intervals are stretched
//! ```
//!
//! A check that is still among those of the next `set` goes on at its pace and at its place in time; a new one
//! starts at once (ten thousand new ones within a second) and then in a random phase, at [`Pace::Fast`].

pub mod monitor;
pub mod passive;
pub mod pool;
pub mod probe;
pub mod roster;
pub mod saved;
pub mod state;

pub use pool::{Judgement, ServerVerdict, Standing};
pub use roster::{Judged, Roster};
pub use state::{Assignment, CheckId, Order, Outcome, Pace, Report, Weighing};
