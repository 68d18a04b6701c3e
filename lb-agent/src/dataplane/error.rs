//! What can go wrong at the edge to the data plane, in words for the operator.

use std::io;

/// An error of the data-plane edge. Its text names the object, the reason and, where there is one, the way
/// out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    Os { what: String, source: io::Error },
    /// A map could not be read or written.
    #[error("table {name}: {source}")]
    Map { name: &'static str, source: aya::maps::MapError },
    /// The kernel or aya refused the object.
    #[error("load the data plane: {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier refused a program.
    #[error("load the program {name}: {source}")]
    Program { name: &'static str, source: Box<aya::programs::ProgramError> },
    /// The object lacks a map or program.
    #[error("the data-plane object has no {0}: agent and object are of different versions")]
    Missing(&'static str),
    /// A pinned table is not as wanted.
    #[error(
        "the pinned table {path} is {pinned}, but {wanted} is wanted. Go back to the old size, or run \
         `lb-agent run --recreate-tables`, which makes new tables and forgets every connection"
    )]
    Size { path: String, pinned: String, wanted: String },
    /// XDP was refused.
    #[error("attach XDP to {interface} in {mode} mode: {source}; {hint}")]
    Attach { interface: String, mode: &'static str, source: io::Error, hint: &'static str },
    /// A table has no room.
    #[error("no room for another {what}: all {limit} are in use (spec.{field} of the Director)")]
    Full { what: &'static str, limit: u32, field: &'static str },
    /// The caller asked for something that the tables cannot hold.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// The last system error, with what was tried.
    pub(crate) fn last_os(what: impl Into<String>) -> Self {
        Self::Os { what: what.into(), source: io::Error::last_os_error() }
    }

    pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { what: what.into(), source }
    }

    pub(crate) fn map(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { name, source }
    }
}
