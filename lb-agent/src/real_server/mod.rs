//! `lb-agent real-server`: makes a host a real server, looks whether it is one, and undoes it.

mod check;
pub mod cli;
mod netlink;
pub mod record;
pub mod report;
mod setup;
pub mod sysctl;

use std::process::ExitCode;

use anyhow::Result;

pub use cli::RealServerArgs;
use cli::{Command, Output};

use crate::places::Places;

/// Runs one of the commands. Every change is printed as one line; nothing printed means nothing changed.
///
/// # Errors
/// Arguments that cannot go together, or the step that failed; what was done before it stays and is undone
/// by `down`. A failed check is no error but exit code 1.
pub async fn run(args: RealServerArgs, places: &Places) -> Result<ExitCode> {
    match args.command {
        Command::Up(args) => setup::up(&args, places).await.map(|()| ExitCode::SUCCESS),
        Command::Down(args) => setup::down(&args, places).await.map(|()| ExitCode::SUCCESS),
        Command::Check(args) => {
            let report = check::check(&args, places).await?;
            match args.output {
                Output::Table => print!("{}", report.lines()),
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            }
            Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
