//! `cargo xtask bench`: builds the benchmark (release profile), then becomes it.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::process::{become_program, built, cargo, need_root, run as run_command, step};
use crate::setup;

#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Measure only these parts: rows whose name contains it, or veth, apply,
    /// scale, checks, flood, vrrp
    #[arg(value_name = "PART")]
    parts: Vec<String>,
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
    for part in &args.parts {
        bench.args(["--only", part]);
    }
    become_program(bench.args(&args.args))
}
