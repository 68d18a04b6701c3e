//! Builds the BPF objects with xtask's recipe and tells the agent where they are: `LB_EBPF_OBJECT` is the
//! data plane (`lb`), `LB_<PROGRAM>_OBJECT` any other program of `lb-ebpf` (`LB_REAL_SERVER_OBJECT`).

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        // One line: what is missing and what to do; a backtrace would bury it.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is set by cargo")?).join("ebpf");
    let objects = xtask::ebpf::build(&out_dir)?;
    // Whatever lb-ebpf builds, the agent cannot do without this one.
    objects.path("lb")?;
    for (name, path) in objects.iter() {
        println!("cargo:rustc-env={}={}", variable(name), path.display());
    }
    for path in xtask::ebpf::sources() {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    Ok(())
}

fn variable(object: &str) -> String {
    match object {
        "lb" => "LB_EBPF_OBJECT".into(),
        other => format!("LB_{}_OBJECT", other.to_uppercase().replace('-', "_")),
    }
}
