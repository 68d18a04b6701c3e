//! `cargo xtask build`: the agent as it is shipped.

use anyhow::Result;

use crate::process::{built, cargo, run as run_command, step};
use crate::setup;

pub fn run() -> Result<()> {
    setup::ensure(setup::TOOLCHAIN)?;
    step("building the agent (release profile) with its BPF objects");
    run_command(cargo().args(["build", "--release", "--package", "lb-agent"]))?;
    println!("{}", built("release", "lb-agent").display());
    Ok(())
}
