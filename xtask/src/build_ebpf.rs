//! `cargo xtask build-ebpf`: the BPF objects alone, for looking at them.

use std::path::PathBuf;

use anyhow::Result;

use crate::process::step;
use crate::setup;

#[derive(clap::Args)]
pub struct Args {
    /// Features of lb-ebpf to switch on (test variants)
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
    /// Where the objects go [default: target/ebpf/objects]
    #[arg(long)]
    out_dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    setup::ensure(setup::TOOLCHAIN)?;
    step("building the BPF objects");
    let out_dir = args.out_dir.clone().unwrap_or_else(|| xtask::target_dir().join("ebpf/objects"));
    let features: Vec<&str> = args.features.iter().map(String::as_str).collect();
    for (_, path) in xtask::ebpf::build_with(&features, &out_dir)?.iter() {
        println!("{}", path.display());
    }
    Ok(())
}
