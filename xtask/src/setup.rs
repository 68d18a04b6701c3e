//! `cargo xtask setup`: makes the machine ready, and tells every other command whether it is.
//!
//! Each [`Part`] can be looked for without changing anything. Only what is missing is installed, so a second
//! run does nothing. On Debian everything comes from apt, except bpf-linker, which cargo builds.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::ebpf::DEBIAN_CARGO_CLIPPY;
use xtask::toolchain::{self, BPF_LINKER_VERSION, Compiler, LLVM, find_program};

use crate::process::{as_root, cargo, output, run as run_command, step};

#[derive(clap::Args)]
pub struct Args {
    /// Only look: name what is missing and exit with 1
    #[arg(long)]
    check: bool,
}

/// Something that a machine has or lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    CCompiler,
    BpfCompiler,
    BpfLinker,
    BpfClippy,
    /// `name` is looked for, `package` is Debian's.
    Program {
        name: &'static str,
        package: &'static str,
        why: &'static str,
    },
    Bpffs,
}

/// What building needs.
pub const TOOLCHAIN: &[Part] = &[Part::CCompiler, Part::BpfCompiler, Part::BpfLinker];

/// What `cargo xtask lint` needs.
pub const LINT: &[Part] = &[Part::CCompiler, Part::BpfCompiler, Part::BpfLinker, Part::BpfClippy];

/// What `cargo xtask fuzz` needs.
pub const FUZZ: &[Part] = &[Part::CCompiler, program("c++", "g++", "builds libFuzzer")];

/// What demo and tests need.
pub const TESTS: &[Part] = &[
    Part::CCompiler,
    Part::BpfCompiler,
    Part::BpfLinker,
    program("nginx", "nginx-light", "the real servers of tests and demo"),
    program("curl", "curl", "the client of tests and demo"),
    program("ip", "iproute2", "makes network namespaces and their links"),
    program("bridge", "iproute2", "shows behind which port of the test switch a MAC address is"),
    program("nsenter", "util-linux", "enters a namespace without losing sight of bpffs"),
    program("ethtool", "ethtool", "sets the offloads of the test links"),
    program("sysctl", "procps", "sets ARP and routing of the namespaces"),
    program("ping", "iputils-ping", "proves that what is not ours passes"),
    program("keepalived", "keepalived", "the other director of VRRP tests"),
    program("mariadbd", "mariadb-server", "the databases that share an address in VRRP tests"),
    program("tcpdump", "tcpdump", "shows what went over a link"),
    program("bpftool", "bpftool", "shows what is loaded and pinned"),
    program("vsftpd", "vsftpd", "the FTP servers behind the director"),
    program("dnsmasq", "dnsmasq-base", "the DNS server that health checks probe"),
    program("aiosmtpd", "python3-aiosmtpd", "the SMTP server that health checks probe"),
    Part::Bpffs,
];

/// What `cargo xtask test kernels` needs.
pub const KERNELS: &[Part] = &[
    Part::CCompiler,
    Part::BpfCompiler,
    Part::BpfLinker,
    program("qemu-system-x86_64", "qemu-system-x86", "emulates a machine for another kernel"),
    program("busybox", "busybox-static", "the first program of such a machine"),
    program("depmod", "kmod", "lists the drivers of such a kernel"),
    program("script", "bsdutils", "gives such a machine a terminal"),
    program("virtualenv", "virtualenv", "holds virtme-ng, which boots it"),
    program("dpkg-deb", "dpkg", "unpacks kernels"),
    program("ip", "iproute2", "brings up interfaces and kernel tunnels"),
    program("sysctl", "procps", "sets what such tunnels need"),
    program("ethtool", "ethtool", "prepares interfaces for XDP"),
];

const fn program(name: &'static str, package: &'static str, why: &'static str) -> Part {
    Part::Program { name, package, why }
}

pub fn run(args: &Args) -> Result<()> {
    let mut parts = LINT.to_vec();
    parts.extend(TESTS.iter().filter(|part| !LINT.contains(part)));
    if args.check {
        let missing = missing(&parts);
        for part in &parts {
            match missing.iter().find(|(other, _)| other == part) {
                None => println!("ok       {}", part.what()),
                Some((_, sentence)) => println!("missing  {}: {sentence}", part.what()),
            }
        }
        if !missing.is_empty() {
            bail!("{} of {} parts are missing: run `cargo xtask setup`", missing.len(), parts.len());
        }
        return Ok(());
    }
    ensure(&parts)?;
    step("this machine is ready");
    Ok(())
}

/// Installs what is missing of `parts`; silent and fast when nothing is.
///
/// # Errors
/// Names what is still missing afterwards.
pub fn ensure(parts: &[Part]) -> Result<()> {
    let missing_before = missing(parts);
    if missing_before.is_empty() {
        return Ok(());
    }
    step("setting up this machine");
    for (part, sentence) in &missing_before {
        step(format!("needed: {} ({sentence})", part.what()));
    }
    let wanted: Vec<Part> = missing_before.into_iter().map(|(part, _)| part).collect();
    if find_program("apt-get").is_some() {
        install_packages(&wanted)?;
    }
    if wanted.contains(&Part::BpfCompiler) && toolchain::compiler().is_err() {
        add_rust_src();
    }
    if wanted.contains(&Part::BpfLinker) {
        build_linker()?;
    }
    if wanted.contains(&Part::Bpffs) {
        step(format!("mounting bpffs at {BPFFS}"));
        run_command(as_root("mount")?.args(["-t", "bpf", "bpf", BPFFS]))?;
    }
    let still: Vec<String> =
        missing(parts).iter().map(|(part, sentence)| format!("{} ({sentence})", part.what())).collect();
    if !still.is_empty() {
        bail!("set-up knows no way to get, on this system: {}", still.join("; "));
    }
    Ok(())
}

impl Part {
    /// What it is and what it is for.
    fn what(self) -> String {
        match self {
            Part::CCompiler => "cc: links programs of the host".into(),
            Part::BpfCompiler => {
                format!("a Rust compiler on LLVM {LLVM} with its source: `core` is built for the BPF target")
            }
            Part::BpfLinker => format!("bpf-linker {BPF_LINKER_VERSION} on LLVM {LLVM}: links BPF objects"),
            Part::BpfClippy => "the clippy of that compiler: lints the BPF programs".into(),
            Part::Program { name, why, .. } => format!("{name}: {why}"),
            Part::Bpffs => format!("bpffs at {BPFFS}: programs and maps are pinned there"),
        }
    }

    /// Why it counts as missing, if it does.
    fn missing(self) -> Option<String> {
        match self {
            Part::CCompiler => find_program("cc").is_none().then(|| "no cc on PATH".into()),
            Part::BpfCompiler => toolchain::compiler().err(),
            Part::BpfLinker => toolchain::linker().err(),
            Part::BpfClippy => match toolchain::compiler() {
                Ok(Compiler::Rustup) => {
                    find_program("cargo-clippy").is_none().then(|| "no cargo-clippy".into())
                }
                _ => (!Path::new(DEBIAN_CARGO_CLIPPY).exists()).then(|| format!("no {DEBIAN_CARGO_CLIPPY}")),
            },
            Part::Program { name, .. } => find_program(name).is_none().then(|| format!("no {name} on PATH")),
            Part::Bpffs => match fs::read_to_string("/proc/self/mountinfo") {
                Ok(mounts) => (!is_bpffs(&mounts)).then(|| "not mounted".into()),
                Err(error) => Some(format!("/proc/self/mountinfo: {error}")),
            },
        }
    }

    fn packages(self) -> Vec<String> {
        match self {
            Part::CCompiler => vec!["gcc".into(), "libc6-dev".into()],
            Part::BpfCompiler => vec!["rustc-web".into(), "rust-web-src".into()],
            Part::BpfLinker => vec![format!("llvm-{LLVM}-dev")],
            Part::BpfClippy => vec!["rust-web-clippy".into()],
            Part::Program { package, .. } => vec![package.into()],
            Part::Bpffs => vec![],
        }
    }
}

fn missing(parts: &[Part]) -> Vec<(Part, String)> {
    parts.iter().filter_map(|&part| Some((part, part.missing()?))).collect()
}

fn install_packages(parts: &[Part]) -> Result<()> {
    let packages: BTreeSet<String> =
        parts.iter().flat_map(|part| part.packages()).filter(|package| !is_installed(package)).collect();
    if packages.is_empty() {
        return Ok(());
    }
    step("reading the package lists (apt-get update)");
    run_command(
        as_root("apt-get")?.args(["-q", "-o", "DPkg::Lock::Timeout=300", "update"]).stdin(Stdio::null()),
    )?;
    // A system that lacks one of them (its name is Debian 12's) hears of it at the end, with the reason.
    let (known, unknown): (Vec<String>, Vec<String>) = packages.into_iter().partition(|name| apt_knows(name));
    if !unknown.is_empty() {
        step(format!("apt has no package {}", unknown.join(", ")));
    }
    if known.is_empty() {
        return Ok(());
    }
    step(format!("installing packages: {}", known.join(" ")));
    run_command(as_root("sh")?.args(["-c", INSTALL, "sh"]).args(&known).stdin(Stdio::null()))
}

/// Installs its arguments. Some of them bring a daemon: it must not start, since the tests start their own in
/// namespaces. Whatever happens, a policy that this script wrote goes away with it.
const INSTALL: &str = r#"set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
"#;

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    output(query.args(["-W", "-f", "${db:Status-Status}", package])).is_ok_and(|status| status == "installed")
}

fn apt_knows(package: &str) -> bool {
    output(Command::new("apt-cache").args(["policy", package]))
        .is_ok_and(|policy| policy.contains("Candidate:") && !policy.contains("Candidate: (none)"))
}

/// Where Debian's compiler is not to be had. A failure is told here; whether the source is there now, the
/// look at the end decides.
fn add_rust_src() {
    step("adding the compiler's source to rustup's toolchain (rustup component add rust-src)");
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src"]).current_dir(xtask::root()).stdin(Stdio::null());
    if let Err(error) = run_command(&mut rustup) {
        step(format!("{error:#}"));
    }
}

fn build_linker() -> Result<()> {
    let prefix = llvm_prefix().with_context(|| {
        format!(
            "LLVM {LLVM} with its headers is missing, which bpf-linker is built on: install it (Debian 12: \
             llvm-{LLVM}-dev) and name its directory in LLVM_PREFIX"
        )
    })?;
    step(format!("building bpf-linker {BPF_LINKER_VERSION} on {} (one to two minutes)", prefix.display()));
    let llvm = format!("llvm-{LLVM}");
    // --force: a linker that is there but does not start, or is another version, is in the way.
    run_command(
        cargo()
            .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--force"])
            .args(["--no-default-features", "--features", &llvm])
            .env("LLVM_PREFIX", prefix)
            // In a directory of its own, which cargo removes: nothing of the linker belongs in ours.
            .env_remove("CARGO_TARGET_DIR")
            .stdin(Stdio::null()),
    )
}

fn llvm_prefix() -> Option<PathBuf> {
    if let Some(prefix) = env::var_os("LLVM_PREFIX") {
        return Some(prefix.into());
    }
    // Debian, Fedora, Alpine.
    [format!("/usr/lib/llvm-{LLVM}"), format!("/usr/lib64/llvm{LLVM}"), format!("/usr/lib/llvm{LLVM}")]
        .into_iter()
        .map(PathBuf::from)
        .find(|prefix| prefix.join("include/llvm-c").is_dir())
}

/// Whether a mountinfo (proc_pid_mountinfo(5)) has a bpffs at [`BPFFS`].
fn is_bpffs(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let point = line.split(' ').nth(4);
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        point == Some(BPFFS) && kind == Some("bpf")
    })
}

const BPFFS: &str = "/sys/fs/bpf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_file_system_at_its_place_counts_as_bpffs() {
        let rows = [
            ("36 25 0:32 / /sys/fs/bpf rw,nosuid shared:10 - bpf bpf rw,mode=700", true),
            ("36 25 0:32 / /sys/fs/bpf rw - tmpfs tmpfs rw", false),
            ("36 25 0:32 / /run/bpf rw - bpf bpf rw", false),
            ("25 1 0:22 / /sys rw - sysfs sysfs rw", false),
        ];
        for (line, want) in rows {
            assert_eq!(is_bpffs(line), want, "{line}");
        }
    }

    #[test]
    fn every_part_that_apt_can_bring_names_a_package() {
        for part in LINT.iter().chain(TESTS) {
            assert_eq!(part.packages().is_empty(), *part == Part::Bpffs, "{part:?}");
        }
    }
}
