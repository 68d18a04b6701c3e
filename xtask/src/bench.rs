//! `cargo xtask bench`: builds the benchmark (release profile), then becomes it.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::process::{become_program, built, cargo, need_root, run as run_command, step};
use crate::setup;

#[derive(clap::Args)]
pub struct Args {
    /// Only this part: a part of a row's name, `veth`, `apply` or `vrrp`
    part: Option<String>,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Further arguments of the benchmark
    #[arg(last = true)]
    args: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<()> {
    need_root("the benchmark")?;
    setup::ensure(setup::TOOLCHAIN)?;
    step("building the benchmark and the agent (release profile)");
    run_command(
        cargo()
            .args(["build", "--release", "--package", "lb-tests", "--package", "lb-agent"])
            .args(["--bin", "bench", "--bin", "lb-agent"]),
    )?;
    step("measuring");
    let mut bench = Command::new(built("release", "bench"));
    if args.json {
        bench.arg("--json");
    }
    if let Some(part) = &args.part {
        bench.arg("--only").arg(part);
    }
    become_program(bench.args(&args.args))
}
