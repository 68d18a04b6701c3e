//! Other programs: say what is done, run them, and turn a failure into a sentence.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use xtask::toolchain;

/// One line of progress.
pub fn step(what: impl AsRef<str>) {
    eprintln!("==> {}", what.as_ref());
}

/// A cargo command on the host workspace. It builds into [`xtask::target_dir`], so that the paths below hold
/// whatever the user's cargo configuration says, and knows nothing of the `cargo run` that started us.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command.current_dir(xtask::root()).env("CARGO_TARGET_DIR", xtask::target_dir());
    command
}

/// Runs a command to its end; its output goes where ours goes.
///
/// # Errors
/// When it cannot start or does not end with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    ensure!(status.success(), "`{line}` failed ({status})");
    Ok(())
}

/// What a command prints on stdout.
///
/// # Errors
/// When it cannot start or does not end with 0.
pub fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{line}`"))?;
    ensure!(
        output.status.success(),
        "`{line}` failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Becomes the other program. So Ctrl-C and SIGTERM reach it without a middleman, and its exit code is ours.
///
/// # Errors
/// Only when it cannot start; else it does not return.
pub fn become_program(command: &mut Command) -> Result<()> {
    let line = describe(command);
    Err(anyhow!(command.exec()).context(format!("start `{line}`")))
}

/// Where cargo leaves a program; `profile` is `debug` or `release`.
pub fn built(profile: &str, program: &str) -> PathBuf {
    xtask::target_dir().join(profile).join(program)
}

/// Builds the agent that tests and demo run, and returns its path.
///
/// # Errors
/// When it does not compile.
pub fn build_dev_agent() -> Result<PathBuf> {
    step("building the agent (dev profile) with its BPF objects");
    run(cargo().args(["build", "--package", "lb-agent"]))?;
    Ok(built("debug", "lb-agent"))
}

/// Whether we may make network namespaces and load programs.
///
/// # Errors
/// Says how to become root.
pub fn need_root(what: &str) -> Result<()> {
    ensure!(
        is_root()?,
        "{what} needs root (network namespaces, BPF): run it as root, e.g. `sudo -E env PATH=\"$PATH\" cargo xtask ...`"
    );
    Ok(())
}

/// Whether the effective user is root.
///
/// # Errors
/// When `id` is missing.
pub fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// A command that runs as root: itself, or through sudo.
///
/// # Errors
/// When we are not root and there is no sudo.
pub fn as_root(program: &str) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    let sudo =
        toolchain::find_program("sudo").context("this needs root and there is no sudo: run it as root")?;
    let mut command = Command::new(sudo);
    command.arg(program);
    Ok(command)
}

fn describe(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_owned();
    let words: Vec<_> =
        std::iter::once(name.as_os_str()).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}
