//! What the tasks and `lb-agent/build.rs` share: where things are, which compiler and linker make BPF
//! objects, and the one recipe that builds them. Depends on nothing of the agent, so that the agent's build
//! script can borrow it.

pub mod ebpf;
pub mod toolchain;

use std::env;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask/ lies in the repository").to_path_buf()
}

/// The host workspace's target directory: `CARGO_TARGET_DIR`, or `target/` in the root of the repository.
/// A relative `CARGO_TARGET_DIR` counts from that root, because a build script no longer knows where cargo
/// was called.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}
