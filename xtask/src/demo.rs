//! `cargo xtask demo`: builds agent and demo, then becomes the demo.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::process::{become_program, build_dev_agent, built, cargo, need_root, run as run_command, step};
use crate::setup;

#[derive(clap::Args)]
pub struct Args {
    /// Arguments of the demo, e.g. --keep
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<()> {
    need_root("the demo")?;
    setup::ensure(setup::TESTS)?;
    let agent = build_dev_agent()?;
    step("building the demo");
    run_command(cargo().args(["build", "--package", "lb-tests", "--bin", "demo"]))?;
    step("starting the demo");
    become_program(Command::new(built("debug", "demo")).args(&args.args).env("LB_AGENT", agent))
}
