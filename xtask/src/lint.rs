//! `cargo xtask lint`: formatting, clippy and licences.

use anyhow::{Context, Result};
use xtask::toolchain::{self, find_program};

use crate::process::{cargo, run as run_command, step};
use crate::setup;

pub fn run() -> Result<()> {
    setup::ensure(setup::LINT)?;
    step("formatting");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(cargo().args(["fmt", "--check", "--manifest-path", "lb-ebpf/Cargo.toml"]))?;
    run_command(cargo().args(["fmt", "--check", "--manifest-path", "tests/fuzz/Cargo.toml"]))?;
    step("clippy, host workspace");
    run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    // Not together with the host's crates: one call unifies their features, and lb-ebpf's panic handler then
    // collides with std's.
    step("clippy, BPF programs");
    let toolchain = toolchain::find()?;
    run_command(xtask::ebpf::cargo(&toolchain, "clippy").args(["--", "-D", "warnings"]))
        .context("lb-ebpf")?;
    if find_program("cargo-deny").is_some() {
        step("licences, bans and sources of the dependencies");
        for manifest in ["./Cargo.toml", "./lb-ebpf/Cargo.toml"] {
            run_command(
                cargo()
                    .args(["deny", "--manifest-path", manifest, "check"])
                    .args(["licenses", "bans", "sources"]),
            )?;
        }
    } else {
        step(
            "NOT checked: licences of the dependencies (`cargo install --locked cargo-deny` brings the program)",
        );
    }
    step("no findings");
    Ok(())
}
