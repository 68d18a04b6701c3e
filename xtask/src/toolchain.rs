//! Finds what makes a BPF object: a compiler with its own source (`core` is built for the BPF target) and a
//! bpf-linker, both on the same LLVM, because the linker reads the compiler's bitcode.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// The LLVM of Debian's rustc-web 1.96, of rustup's 1.95 and of the bpf-linker that `cargo xtask setup` builds.
pub const LLVM: u32 = 22;

/// The compiler of Debian's package rustc-web; `/usr/bin` is not where rustup puts its own.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The version of bpf-linker that `cargo xtask setup` builds.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// A compiler and a linker that fit each other.
#[derive(Debug)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

/// A compiler that has its own source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiler {
    /// [`DEBIAN_RUSTC`] with package rust-web-src.
    Debian,
    /// The rustup toolchain of `rust-toolchain.toml` with component rust-src.
    Rustup,
}

/// Finds both parts.
///
/// # Errors
/// Names every part that is missing, and `cargo xtask setup` as the way out.
pub fn find() -> Result<Toolchain> {
    match (compiler(), linker()) {
        (Ok(compiler), Ok(linker)) => Ok(Toolchain { compiler, linker }),
        (compiler, linker) => {
            let missing: Vec<String> = [compiler.err(), linker.err()].into_iter().flatten().collect();
            bail!("the eBPF toolchain is not complete ({}): run `cargo xtask setup`", missing.join("; "))
        }
    }
}

/// Finds the compiler: Debian's first, since it and its source come from one package version.
///
/// # Errors
/// Says what is missing.
pub fn compiler() -> Result<Compiler, String> {
    let debian = usable(Path::new(DEBIAN_RUSTC));
    if debian.is_ok() {
        return Ok(Compiler::Debian);
    }
    usable(Path::new("rustc")).map(|()| Compiler::Rustup).map_err(|rustup| {
        let debian = debian.unwrap_err();
        format!("no compiler for BPF: {debian}, {rustup}")
    })
}

/// Finds bpf-linker on PATH or where `cargo install` puts it.
///
/// # Errors
/// Says that it is missing, does not start, or was built on another LLVM.
pub fn linker() -> Result<PathBuf, String> {
    let Some(path) = find_program("bpf-linker") else {
        return Err("bpf-linker is not installed".into());
    };
    let wanted = format!("bpf-linker {BPF_LINKER_VERSION}");
    match output(Command::new(&path).arg("--version")) {
        None => return Err(format!("{} does not start", path.display())),
        Some(version) if version.trim() != wanted => {
            return Err(format!("{} is {:?}, not {wanted}", path.display(), version.trim()));
        }
        Some(_) => {}
    }
    // A linker that LLVM is built into names no libLLVM; such a one is taken at its word.
    let libraries = output(Command::new("ldd").arg(&path)).unwrap_or_default();
    match shared_llvm(&libraries) {
        Some(major) if major != LLVM => {
            Err(format!("{} uses LLVM {major}, the compiler LLVM {LLVM}", path.display()))
        }
        _ => Ok(path),
    }
}

/// The full path of a program: on PATH, in the system's sbin directories (which a user's PATH may lack), or
/// in cargo's bin directory.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .chain(cargo_home().map(|home| home.join("bin")))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// Where `cargo install` puts programs, without `bin`.
pub fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
}

/// PATH with the linker's directory in front, for a cargo that has to find it.
pub fn path_with(linker: &Path) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = linker.parent().map(Path::to_path_buf).into_iter().chain(env::split_paths(&path));
    env::join_paths(dirs).unwrap_or(path)
}

fn usable(rustc: &Path) -> Result<(), String> {
    let mut command = Command::new(rustc);
    // The pinned toolchain of the repository, whatever toolchain the caller runs under.
    command.current_dir(crate::root()).env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
    let name = if rustc.is_absolute() { rustc.display().to_string() } else { "rustup's rustc".into() };
    let Some(version) = output(command.arg("-vV")) else {
        return Err(format!("{name} is not there"));
    };
    match llvm_of(&version) {
        Some(LLVM) => {}
        Some(other) => return Err(format!("{name} uses LLVM {other} instead of {LLVM}")),
        None => return Err(format!("{name} does not name its LLVM")),
    }
    let mut command = Command::new(rustc);
    command.current_dir(crate::root()).env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
    let sysroot = output(command.args(["--print", "sysroot"])).unwrap_or_default();
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if core.is_file() { Ok(()) } else { Err(format!("{name} lacks its own source")) }
}

/// The LLVM major that `rustc -vV` prints.
fn llvm_of(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

/// The LLVM major of the libLLVM that `ldd` lists.
fn shared_llvm(libraries: &str) -> Option<u32> {
    let (_, rest) = libraries.split_once("libLLVM")?;
    let rest = rest.trim_start_matches("-").trim_start_matches(".so.");
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_version() {
        let rows = [
            ("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n", Some(22)),
            ("rustc 1.63.0\nLLVM version: 14.0.6\n", Some(14)),
            ("rustc 1.96.0\n", None),
        ];
        for (text, want) in rows {
            assert_eq!(llvm_of(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_llvm_of_a_linker_is_read_from_its_shared_libraries() {
        let rows = [
            ("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n", Some(22)),
            ("\tlibLLVM-15.so.1 => /lib/libLLVM-15.so.1 (0x7f)\n", Some(15)),
            ("\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n", None),
        ];
        for (text, want) in rows {
            assert_eq!(shared_llvm(text), want, "{text:?}");
        }
    }
}
