//! `cargo xtask fuzz`: coverage-guided fuzzing with libFuzzer on the stable toolchain.
//!
//! `cargo fuzz` asks for nightly because it builds with AddressSanitizer (`-Z sanitizer`). What libFuzzer itself
//! needs are the coverage counters that LLVM's pass puts in, and `-C passes` and `-C llvm-args` are stable. The
//! targets are safe Rust with overflow checks on, so a sanitizer would have little to find.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, run as run_command, step};
use crate::setup;

#[derive(clap::Args)]
pub struct Args {
    /// The target [default: all, one after the other]
    target: Option<String>,
    /// How long to look, per target
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u64,
    /// Arguments for libFuzzer: -jobs=2, a file that once made it fail, ...
    #[arg(last = true)]
    args: Vec<String>,
}

/// The programs of `tests/fuzz/targets`.
const TARGETS: [&str; 1] = ["vrrp"];

/// What LLVM's coverage pass must put in for libFuzzer (the flags of cargo-fuzz 0.13, less the sanitizer).
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares \
                     --cfg fuzzing -Cdebug-assertions -Coverflow-checks";

pub fn run(args: &Args) -> Result<()> {
    let targets = match args.target.as_deref() {
        None => TARGETS.to_vec(),
        Some(name) => match TARGETS.iter().find(|target| **target == name) {
            Some(target) => vec![*target],
            None => bail!("there is no fuzz target `{name}`; there are {}", TARGETS.join(", ")),
        },
    };
    setup::ensure(setup::FUZZ)?;
    // Named, so that the flags are not for build scripts.
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    step("building the fuzz targets with coverage counters");
    let built = xtask::target_dir().join("fuzz");
    run_command(
        cargo()
            .args([
                "build",
                "--release",
                "--bins",
                "--manifest-path",
                "tests/fuzz/Cargo.toml",
                "--target",
                &host,
            ])
            .env("CARGO_TARGET_DIR", &built)
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.split_whitespace().collect::<Vec<_>>().join("\u{1f}")),
    )?;
    for target in targets {
        let corpus = built.join("corpus").join(target);
        let found = built.join("found").join(target);
        for directory in [&corpus, &found] {
            fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        step(format!("fuzzing {target} for {} s; the corpus is kept in {}", args.seconds, corpus.display()));
        run_command(
            Command::new(built.join(&host).join("release").join(target))
                .arg(&corpus)
                .arg(xtask::root().join("tests/fuzz/seeds").join(target))
                .arg(format!("-max_total_time={}", args.seconds))
                .arg(format!("-artifact_prefix={}/", found.display()))
                .args(["-print_final_stats=1", "-timeout=5"])
                .args(&args.args),
        )
        .with_context(|| format!("{target} failed; what made it fail is in {}", found.display()))?;
    }
    Ok(())
}
