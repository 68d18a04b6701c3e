//! The program `lb-agent`: parses the command line and runs one command in a runtime made for it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use lb_agent::agent::{self, RunOptions};
use lb_agent::cli::{self, Cli, Command, terminal};
use tokio::runtime;

fn main() -> ExitCode {
    let Cli { places, command } = Cli::parse();
    let result = match command {
        Command::Run(args) => run(RunOptions {
            config: args.config,
            manifests: args.manifests,
            state_dir: places.state_dir,
            runtime_dir: places.runtime_dir,
            bpffs_dir: places.bpffs_dir,
            recreate_tables: args.recreate_tables,
        }),
        command => ask(Cli { places, command }),
    };
    result.unwrap_or_else(|error| {
        terminal::complain(&format!("error: {}\n", cli::causes(&error)));
        ExitCode::FAILURE
    })
}

/// The agent. Two workers: one for the network's events and the operator while the other writes tables.
fn run(options: RunOptions) -> Result<ExitCode> {
    terminal::log("info")?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("start the runtime")?.block_on(agent::run(options))?;
    Ok(ExitCode::SUCCESS)
}

/// Every other command.
fn ask(cli: Cli) -> Result<ExitCode> {
    terminal::log("warn")?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("start the runtime")?.block_on(cli::execute(cli)))
}
