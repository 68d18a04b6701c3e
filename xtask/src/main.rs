//! The project's tasks, `cargo xtask COMMAND`. Every command does the set-up it needs and says what it does.

mod bench;
mod build;
mod build_ebpf;
mod ci;
mod demo;
mod differential;
mod fuzz;
mod kernels;
mod lint;
mod process;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The tasks of lb",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make this machine ready: compiler and linker for BPF, programs for the tests, bpffs
    Setup(setup::Args),
    /// Build the BPF objects into target/ebpf/
    BuildEbpf(build_ebpf::Args),
    /// Build the release agent, target/release/lb-agent, with the BPF objects inside
    Build,
    /// Run the demo: directors, real servers and a client in network namespaces (needs root)
    Demo(demo::Args),
    /// Run the tests: every tier, or one
    Test(test::Args),
    /// Fuzz what reads bytes from the network, with libFuzzer
    Fuzz(fuzz::Args),
    /// Run the data plane beside its reference model for long, or seed bugs that must be found (needs root)
    Differential(differential::Args),
    /// Check formatting, clippy for host and BPF target, licences
    Lint,
    /// Measure the data plane, orders and health checks (needs root)
    Bench(bench::Args),
    /// What a merge needs: lint, every test, and nothing left behind
    Ci,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The chain of causes in one line; a backtrace would tell of xtask, not of what went wrong.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Build => build::run(),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Differential(args) => differential::run(&args),
        Command::Lint => lint::run(),
        Command::Bench(args) => bench::run(&args),
        Command::Ci => ci::run(),
    }
}
