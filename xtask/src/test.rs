//! `cargo xtask test`: the three tiers. A tier that cannot run fails and says why.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::process::{build_dev_agent, cargo, need_root, run as run_command, step};
use crate::{kernels, setup};

#[derive(clap::Args)]
pub struct Args {
    /// The tier to run [default: all, in this order]
    tier: Option<Tier>,
    /// Arguments of the test programs: a name to filter by, --nocapture, ...
    #[arg(last = true)]
    args: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Pure logic: no root, no kernel
    Unit,
    /// The loaded data plane, frame by frame, with BPF_PROG_TEST_RUN (needs root)
    Packet,
    /// Agents and real programs in network namespaces (needs root)
    Netns,
    /// The packet tests under Linux 6.1 and 6.12, emulated (needs root, Debian, and half an hour; not part of "all")
    Kernels,
}

impl Args {
    /// Every tier, every test.
    pub fn all() -> Self {
        Args { tier: None, args: Vec::new() }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let tiers = match args.tier {
        Some(tier) => vec![tier],
        None => vec![Tier::Unit, Tier::Packet, Tier::Netns],
    };
    // Before the first build, not after it.
    if tiers.iter().any(|&tier| tier != Tier::Unit) {
        need_root("every tier but unit")?;
    }
    setup::ensure(match tiers[..] {
        [Tier::Unit] => setup::TOOLCHAIN,
        [Tier::Kernels] => setup::KERNELS,
        _ => setup::TESTS,
    })?;
    for tier in tiers {
        match tier {
            Tier::Unit => unit(&args.args).context("tier unit")?,
            Tier::Packet => packet(&args.args).context("tier packet")?,
            Tier::Netns => program("netns", &args.args, &[]).context("tier netns")?,
            Tier::Kernels => kernels::run(&args.args).context("tier kernels")?,
        }
    }
    step("passed");
    Ok(())
}

fn unit(args: &[OsString]) -> Result<()> {
    step("unit tests");
    run_command(cargo().arg("test").arg("--").args(args))?;
    step("unit tests of the test helpers");
    run_command(cargo().args(["test", "--package", "lb-tests", "--lib", "--"]).args(args))
}

/// Rows of tables that the whole packet tier has at least.
const CASES: usize = 2000;

/// The packet tests, and how many cases they are: the rows of their tables by name, and each test itself.
fn packet(args: &[OsString]) -> Result<()> {
    let list = xtask::target_dir().join("packet-cases.txt");
    fs::write(&list, "").with_context(|| format!("empty {}", list.display()))?;
    program("packet", args, &[("LB_PACKET_CASES", list.as_os_str())])?;
    let lines = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let cases: BTreeSet<&str> = lines.lines().collect();
    fs::write(&list, cases.iter().fold(String::new(), |all, case| all + case + "\n"))
        .with_context(|| format!("write {}", list.display()))?;
    step(format!("{} packet cases, listed in {}", cases.len(), list.display()));
    ensure!(!args.is_empty() || cases.len() >= CASES, "that are fewer than {CASES}: a table was lost");
    Ok(())
}

fn program(name: &str, args: &[OsString], variables: &[(&str, &OsStr)]) -> Result<()> {
    let agent = build_dev_agent()?;
    step(format!("{name} tests"));
    run_command(
        cargo()
            .args(["test", "--package", "lb-tests", "--test", name, "--"])
            .args(args)
            .env("LB_AGENT", agent)
            .envs(variables.iter().copied()),
    )
}
