//! The recipe for the BPF objects: builds every program of the workspace `lb-ebpf` for the BPF target.
//!
//! `lb-ebpf` is a workspace of its own with a target directory of its own: compiler, target and profile differ
//! from the host's, and in one directory cargo would rebuild both again and again.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::toolchain::{self, Compiler, DEBIAN_RUSTC, Toolchain};

/// The objects of one build, by the name of the program in `lb-ebpf/Cargo.toml`.
#[derive(Debug)]
pub struct Objects {
    by_name: BTreeMap<String, PathBuf>,
}

impl Objects {
    /// The file of one object.
    ///
    /// # Errors
    /// When `lb-ebpf` has no such program.
    pub fn path(&self, name: &str) -> Result<&Path> {
        match self.by_name.get(name) {
            Some(path) => Ok(path),
            None => bail!("lb-ebpf builds no object {name:?}, only {:?}", self.by_name.keys()),
        }
    }

    /// Every object with its name, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.by_name.iter().map(|(name, path)| (name.as_str(), path.as_path()))
    }
}

/// Builds every object and leaves each in `out_dir` under its program's name (`lb`, ...). A file whose bytes
/// did not change is left alone.
///
/// # Errors
/// When the toolchain is not complete (it names `cargo xtask setup`), or the build fails.
pub fn build(out_dir: &Path) -> Result<Objects> {
    build_with(&[], out_dir)
}

/// [`build`] with features of `lb-ebpf` switched on. Tests use it to make variants that must fail; what the
/// variants share is compiled once.
///
/// # Errors
/// As [`build`].
pub fn build_with(features: &[&str], out_dir: &Path) -> Result<Objects> {
    build_from(&crate::root(), features, out_dir)
}

/// [`build_with`] from `lb-ebpf` and `lb-common` below another directory than the repository's.
///
/// # Errors
/// As [`build`].
pub fn build_from(root: &Path, features: &[&str], out_dir: &Path) -> Result<Objects> {
    let toolchain = toolchain::find()?;
    let work = crate::target_dir().join("ebpf");
    let staging = work.join("staging");
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;

    // Variants share names and staging directory: the lock covers the build and the copying. Cargo's own lock
    // ends with the build.
    let lock = File::create(work.join("lock")).context("make the lock of the eBPF build")?;
    lock.lock().context("wait for another eBPF build")?;
    if staging.exists() {
        fs::remove_dir_all(&staging).with_context(|| format!("empty {}", staging.display()))?;
    }

    let mut cargo = cargo(&toolchain, "build");
    cargo.current_dir(root.join("lb-ebpf"));
    cargo.args(["-Z", "unstable-options", "--artifact-dir"]).arg(&staging);
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    // A build script's stdout is for cargo; this cargo writes to stderr only.
    let status = cargo.stdout(Stdio::null()).status().context("start cargo for lb-ebpf")?;
    ensure!(status.success(), "building lb-ebpf failed ({status}); the compiler's messages are above");

    fs::create_dir_all(out_dir).with_context(|| format!("make {}", out_dir.display()))?;
    let mut by_name = BTreeMap::new();
    for entry in fs::read_dir(&staging).with_context(|| format!("read {}", staging.display()))? {
        let built = entry?.path();
        let name = built.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let object = out_dir.join(&name);
        copy_if_changed(&built, &object)?;
        by_name.insert(name, object);
    }
    ensure!(!by_name.is_empty(), "lb-ebpf built no object");
    Ok(Objects { by_name })
}

/// The files and directories that an object is made of, for a build script's `rerun-if-changed`. Target
/// directories are not among them.
pub fn sources() -> Vec<PathBuf> {
    let root = crate::root();
    [
        "lb-ebpf/src",
        "lb-ebpf/build.rs",
        "lb-ebpf/Cargo.toml",
        "lb-ebpf/Cargo.lock",
        "lb-common/src",
        "lb-common/Cargo.toml",
        "Cargo.toml",
    ]
    .into_iter()
    .map(|path| root.join(path))
    // Cargo runs a build script again every time when a path of its list is missing.
    .filter(|path| path.exists())
    .collect()
}

/// A cargo command on `lb-ebpf` for the BPF target: `build`, or `clippy` for the lints.
pub fn cargo(toolchain: &Toolchain, subcommand: &str) -> Command {
    // Cargo names itself to what it runs: the same cargo, without asking rustup's proxy again.
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = match (subcommand, toolchain.compiler) {
        // Lints come from the compiler's own clippy: another version's cannot read this one's `core`.
        ("clippy", Compiler::Debian) => {
            let mut command = Command::new(DEBIAN_CARGO_CLIPPY);
            command.env("CARGO", &program);
            command
        }
        _ => Command::new(&program),
    };
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_another_build) {
            command.env_remove(name);
        }
    }
    if toolchain.compiler == Compiler::Debian {
        command.env("RUSTC", DEBIAN_RUSTC);
    }
    command
        .arg(subcommand)
        .current_dir(crate::root().join("lb-ebpf"))
        .args(["--locked", "--release", "--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(crate::target_dir().join("ebpf/cargo"))
        // `-Z` on a compiler that is not a nightly.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags())
        .env("PATH", toolchain::path_with(&toolchain.linker))
        .stdin(Stdio::null());
    command
}

/// Debian's package rust-web-clippy.
pub const DEBIAN_CARGO_CLIPPY: &str = "/usr/bin/cargo-clippy";

const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// Cargo's separator is the unit separator, so that a flag may hold spaces.
fn rustflags() -> String {
    [
        // The kernel's architecture, for the layout of its registers in aya-ebpf.
        format!("--cfg=bpf_target_arch={:?}", env::consts::ARCH),
        // v3 brings 32-bit instructions and atomic compare-and-exchange (Linux 5.12).
        "-Ctarget-cpu=v3".into(),
        // BTF is made from debug information; aya needs it for the maps and the verifier prints its lines.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ]
    .join("\x1f")
}

/// Whether a variable steers the build that called us (a build script's, `cargo run`'s or `cargo test`'s) and
/// would disturb this one. What tells cargo how to reach its registry, to show progress and to share the
/// processors stays.
fn is_of_another_build(name: &str) -> bool {
    const KEPT: [&str; 9] = [
        "CARGO_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_BUILD_JOBS",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_TERM_",
        "CARGO_REGISTRY_",
        "CARGO_REGISTRIES_",
        "CARGO_SOURCE_",
    ];
    const FOREIGN: [&str; 14] = [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTC_BOOTSTRAP",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "CLIPPY_ARGS",
        // The compiler is the one that rust-toolchain.toml names, or Debian's with Debian's libraries.
        "RUSTUP_TOOLCHAIN",
        "LD_LIBRARY_PATH",
        "OUT_DIR",
        "TARGET",
        "HOST",
    ];
    if name.starts_with("CARGO_") {
        !KEPT.iter().any(|kept| name.starts_with(kept))
    } else {
        FOREIGN.contains(&name)
    }
}

/// Copies, never links: the linker may write the next object over the old file.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // By rename, so that nobody who reads the old object sees half of the new one.
    let new = to.with_extension(format!("new-{}", std::process::id()));
    fs::write(&new, bytes).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, to).with_context(|| format!("write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_of_the_calling_build_does_not_reach_the_ebpf_build() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_CFG_TARGET_ARCH",
            "CARGO_MANIFEST_DIR",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_of_another_build(name), "{name} would reach the eBPF build");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS", "PATH", "HOME", "RUSTUP_HOME"] {
            assert!(!is_of_another_build(name), "{name} is needed by the eBPF build");
        }
    }

    #[test]
    fn an_unchanged_object_is_left_alone_and_a_changed_one_is_replaced() {
        use std::os::unix::fs::MetadataExt;
        let dir = env::temp_dir().join(format!("lb-xtask-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (from, to) = (dir.join("from"), dir.join("to"));
        // The time stamp is too coarse to tell; a replaced file has another inode.
        let inode = || fs::metadata(&to).unwrap().ino();

        fs::write(&from, b"one").unwrap();
        copy_if_changed(&from, &to).unwrap();
        let first = inode();
        copy_if_changed(&from, &to).unwrap();
        assert_eq!(inode(), first, "the same bytes were written again");

        fs::write(&from, b"two").unwrap();
        copy_if_changed(&from, &to).unwrap();
        assert_ne!(inode(), first, "the old file was written over");
        assert_eq!(fs::read(&to).unwrap(), b"two");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_sources_are_files_of_the_repository() {
        let sources = sources();
        assert!(sources.contains(&crate::root().join("lb-ebpf/Cargo.toml")), "{sources:?}");
        assert!(sources.iter().all(|path| !path.ends_with("target")), "{sources:?}");
    }
}
