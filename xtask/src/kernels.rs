//! `cargo xtask test kernels`: the packet tests under the oldest kernel that we support and the one of the next
//! Debian, whatever kernel this machine runs, and under the latter what needs devices that not every kernel has.
//! virtme-ng boots each with this machine's files as its root, read-only, by plain emulation (10 to 20 times slower than
//! here, but it needs no virtualization).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{as_root, build_dev_agent, cargo, output, run as run_command, step};

/// Debian's packages of kernels, by series: the newest of each is taken.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// Under which the interop tests run too: with real tunnel devices.
const INTEROP: &str = "6.12";

/// Left out: they count packets by the ten million, which takes an emulated CPU hours.
const TOO_LONG: [&str; 2] = ["hammer", "random"];

/// Runs the tests under each kernel.
///
/// # Errors
/// Names the kernels under which a test failed, or what is missing to boot them.
pub fn run(filter: &[std::ffi::OsString]) -> Result<()> {
    let agent = build_dev_agent()?;
    let packet = program("packet")?;
    let interop = program("interop")?;
    let place = xtask::target_dir().join("kernels");
    fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let vng = virtme(&place)?;
    let mut failed = Vec::new();
    for series in SERIES {
        let kernel = Kernel::of_series(&place, series)?;
        let (named, tests) = if series == INTEROP {
            ("packet and interop tests", vec![packet.as_path(), interop.as_path()])
        } else {
            ("packet tests", vec![packet.as_path()])
        };
        step(format!("{named} under Linux {}", kernel.release));
        let began = Instant::now();
        let passed = kernel.boot(&vng, &agent, &tests, filter)?;
        let verdict = if passed { "passed" } else { "FAILED" };
        step(format!("Linux {}: {verdict} after {} s", kernel.release, began.elapsed().as_secs()));
        if !passed {
            failed.push(kernel.release);
        }
    }
    ensure!(failed.is_empty(), "tests failed under Linux {}", failed.join(" and "));
    Ok(())
}

/// Builds the test program of this name and returns where it is.
fn program(name: &str) -> Result<PathBuf> {
    step(format!("building the {name} tests"));
    let build = ["test", "--package", "lb-tests", "--test", name, "--no-run"];
    run_command(cargo().args(build))?;
    let built = cargo().args(build).stdin(Stdio::null()).output().context("start cargo")?;
    // "  Executable packet/main.rs (/path/to/packet-0123)", on standard error.
    let said = String::from_utf8_lossy(&built.stderr);
    let path = said.lines().find_map(|line| line.trim().strip_prefix("Executable")?.split_once('('));
    let (_, path) = path.with_context(|| format!("cargo did not say where the tests are:\n{said}"))?;
    let path = xtask::root().join(path.trim_end_matches(')'));
    path.canonicalize().with_context(|| format!("find the {name} tests"))
}

/// virtme-ng, in a Python environment of its own.
fn virtme(place: &Path) -> Result<PathBuf> {
    let environment = place.join("virtme-ng");
    let vng = environment.join("bin/vng");
    if !vng.exists() {
        step("installing virtme-ng");
        run_command(Command::new("virtualenv").arg("--quiet").arg(&environment))?;
        run_command(Command::new(environment.join("bin/pip")).args([
            "install",
            "--quiet",
            "virtme-ng==1.42",
        ]))?;
    }
    Ok(vng)
}

/// A kernel of Debian's, unpacked.
struct Kernel {
    /// As `uname -r` says it.
    release: String,
    image: PathBuf,
    place: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series that this machine's package sources know; downloaded once.
    fn of_series(place: &Path, series: &str) -> Result<Kernel> {
        let pattern = format!(r"^linux-image-{}\.[0-9.+~a-z-]*amd64$", series.replace('.', r"\."));
        let found = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
        let names = found.lines().filter_map(|line| line.split(' ').next());
        let flavours = ["-cloud-", "-rt-", "unsigned", "-dbg"];
        let newest = names
            .filter(|name| !flavours.iter().any(|flavour| name.contains(flavour)))
            .max_by_key(|name| numbers(name))
            .with_context(|| {
                format!("the package sources have no linux-image-{series}*: `apt-get update`?")
            })?;
        let release = newest.trim_start_matches("linux-image-").to_owned();
        let files = place.join(&release);
        let image = files.join("boot").join(format!("vmlinuz-{release}"));
        if !image.exists() {
            step(format!("downloading {newest}"));
            run_command(Command::new("apt-get").args(["download", newest]).current_dir(place))?;
            let package = fs::read_dir(place)?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(newest)))
                .with_context(|| format!("apt-get left no {newest}*.deb in {}", place.display()))?;
            run_command(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&files))?;
            fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
        }
        let kernel = Kernel { release, image, place: place.to_owned() };
        kernel.offer_modules(&files)?;
        Ok(kernel)
    }

    /// The boot looks for its drivers below /lib/modules and nowhere else.
    fn offer_modules(&self, files: &Path) -> Result<()> {
        let offered = Path::new("/lib/modules").join(&self.release);
        if offered.join("modules.dep").exists() {
            return Ok(());
        }
        run_command(as_root("mkdir")?.args(["-p", "/lib/modules"]))?;
        let unpacked = ["usr/lib/modules", "lib/modules"].map(|path| files.join(path).join(&self.release));
        let modules = unpacked.iter().find(|path| path.is_dir());
        let modules = modules.with_context(|| format!("no modules in {}", files.display()))?;
        run_command(as_root("ln")?.arg("-sfn").arg(modules).arg(&offered))?;
        run_command(as_root("depmod")?.arg(&self.release))
    }

    /// Whether the tests passed. What they print is kept beside the kernel.
    fn boot(&self, vng: &Path, agent: &Path, tests: &[&Path], filter: &[std::ffi::OsString]) -> Result<bool> {
        let mut words: Vec<String> = filter.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.extend(TOO_LONG.iter().flat_map(|name| ["--skip".to_owned(), (*name).to_owned()]));
        let script = self.place.join(format!("{}.sh", self.release));
        let programs: String = tests
            .iter()
            .map(|tests| format!("{} --test-threads 2 {} || failed=$?\n", tests.display(), words.join(" ")))
            .collect();
        let lines = format!(
            "mount -t bpf bpf /sys/fs/bpf\nip link set lo up\ncd {}\nexport LB_AGENT={} LB_DIFFERENTIAL_PACKETS=40000\nfailed=0\n{programs}echo \"{ENDED} $failed\"\n",
            xtask::root().join("tests").display(),
            agent.display(),
        );
        fs::write(&script, lines).with_context(|| format!("write {}", script.display()))?;
        // No /dev/kvm: what a machine offers there may not work, and then the boot hangs. `script` gives vng the
        // terminal that it insists on.
        let boot = format!(
            "{} --verbose --disable-kvm --disable-microvm -r {} --user root --cpus 2 --memory 4G --force-9p -- 'bash {}'",
            vng.display(),
            self.image.display(),
            script.display()
        );
        // vng calls programs that lie beside it.
        let beside = vng.parent().unwrap_or(vng).to_owned();
        let known = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(beside).chain(std::env::split_paths(&known)))
            .context("put virtme-ng on PATH")?;
        let mut script = Command::new("script");
        script.args(["-qec", &boot, "/dev/null"]).env("PATH", path).stdin(Stdio::null());
        let ended = script.output().context("start script")?;
        let said = String::from_utf8_lossy(&ended.stdout);
        let log = self.place.join(format!("{}.log", self.release));
        fs::write(&log, said.as_bytes()).with_context(|| format!("write {}", log.display()))?;
        for line in said.lines().filter(|line| line.contains("test result") || line.contains("FAILED")) {
            eprintln!("    {}", line.trim());
        }
        let Some(status) = said.lines().find_map(|line| line.trim().strip_prefix(ENDED)) else {
            bail!("Linux {} did not come to the end of the tests: see {}", self.release, log.display());
        };
        if status.trim() != "0" {
            eprintln!("    all of it: {}", log.display());
        }
        Ok(status.trim() == "0")
    }
}

/// Said after the tests, with their exit status.
const ENDED: &str = "lb-tests ended with";

/// The numbers of a package's name, to compare versions by.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_numbers() {
        let older = ["linux-image-6.1.0-9-amd64", "linux-image-6.12.9+deb12-amd64"];
        let newer = ["linux-image-6.1.0-56-amd64", "linux-image-6.12.117+deb12-amd64"];
        for (older, newer) in older.into_iter().zip(newer) {
            assert!(numbers(older) < numbers(newer), "{older} {newer}");
        }
    }
}
