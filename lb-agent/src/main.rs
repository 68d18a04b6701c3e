//! The program `lb-agent`: parses the command line and runs one command in a runtime made for it.

use std::process::ExitCode;

use clap::Parser;
use lb_agent::cli::{self, Cli, terminal};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            terminal::complain(&format!("error: {}\n", cli::causes(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    terminal::log("warn")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(cli::execute(cli)))
}
