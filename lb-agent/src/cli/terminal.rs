//! Where output goes: standard output and standard error, their colours, and the log.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::exit;

use anstream::{AutoStream, ColorChoice};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Writes to standard output; colours stay only where somebody sees them. Ends the process when nobody reads
/// any more (`lb-agent get connections | head`).
pub fn print(text: &str) {
    let mut out = anstream::stdout().lock();
    finish(out.write_all(text.as_bytes()).and_then(|()| out.flush()), "standard output");
}

/// Writes to standard error.
pub fn complain(text: &str) {
    let mut out = anstream::stderr().lock();
    // There is nowhere left to say that this failed.
    let _ = out.write_all(text.as_bytes());
}

fn finish(result: io::Result<()>, what: &str) {
    match result {
        Ok(()) => {}
        // What a shell expects of a filter whose reader went away: 128 + SIGPIPE.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(128 + libc::SIGPIPE),
        Err(error) => {
            complain(&format!("error: write to {what}: {error}\n"));
            exit(1);
        }
    }
}

pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether colours are wanted on standard output (a terminal; NO_COLOR and CLICOLOR_FORCE are obeyed).
pub fn colour_on_stdout() -> bool {
    AutoStream::choice(&io::stdout()) != ColorChoice::Never
}

/// The same for standard error.
pub fn colour_on_stderr() -> bool {
    AutoStream::choice(&io::stderr()) != ColorChoice::Never
}

/// Indented JSON and a line's end.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data with text keys") + "\n"
}

/// One YAML document.
pub fn yaml(value: &impl Serialize) -> String {
    serde_yaml::to_string(value).expect("plain data with text keys")
}

/// Lets a closed pipe end the process, for a command that prints without asking whether it worked.
pub fn end_with_the_pipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default disposition runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Logs to standard error what `LB_LOG` lets through (`debug`, `lb_agent::net=trace`, …), or `default`.
///
/// # Errors
/// An `LB_LOG` that is no filter.
pub fn log(default: &str) -> anyhow::Result<()> {
    let filter = std::env::var("LB_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|error| anyhow::anyhow!("LB_LOG={filter}: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour_on_stderr())
        .with_target(false)
        .init();
    Ok(())
}
