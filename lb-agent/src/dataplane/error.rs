//! What can go wrong at the edge to the data plane, in words for the operator.

use std::io;

/// An error of the data-plane edge. Its text names the object, the reason and, where there is one, the way
/// out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {reason}")]
    Os { what: String, reason: io::Error },
    /// A map could not be read or written.
    #[error("table {name}: {}", chain(reason))]
    Map { name: &'static str, reason: aya::maps::MapError },
    /// The kernel or aya refused the object.
    #[error("load the data plane: {}", chain(.0))]
    Load(Box<aya::EbpfError>),
    /// The verifier refused a program.
    #[error("load the program {name}: {}", chain(reason))]
    Program { name: &'static str, reason: Box<aya::programs::ProgramError> },
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
    #[error("attach XDP to {interface} in {mode} mode: {reason}; {hint}")]
    Attach { interface: String, mode: &'static str, reason: io::Error, hint: &'static str },
    /// A table has no room.
    #[error("no room for another {what}: all {limit} are in use; {hint}")]
    Full { what: &'static str, limit: u32, hint: &'static str },
    /// The caller asked for something that the tables cannot hold.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// The last system error, with what was tried.
    pub(crate) fn last_os(what: impl Into<String>) -> Self {
        Self::Os { what: what.into(), reason: io::Error::last_os_error() }
    }

    pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { what: what.into(), reason: source }
    }

    pub(crate) fn map(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { name, reason: source }
    }
}

/// An error with its causes: aya's own texts leave the kernel's errno to the cause. No cause is also given as
/// [`std::error::Error::source`], so that nobody prints it twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_table_and_errno_once() {
        let reason = aya::maps::MapError::SyscallError(aya::sys::SyscallError {
            call: "bpf_map_update_elem",
            io_error: io::Error::from_raw_os_error(libc::E2BIG),
        });
        let error = Error::Map { name: "ADDRESSES", reason };
        assert_eq!(
            error.to_string(),
            "table ADDRESSES: `bpf_map_update_elem` failed: Argument list too long (os error 7)"
        );
        assert!(std::error::Error::source(&error).is_none());
    }
}
