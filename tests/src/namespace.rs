//! A named network namespace that goes when its guard goes, entered by a thread or by a child process.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use crate::process::{Process, die_with_parent};
use crate::sweep;

/// Where `ip netns` keeps its names, so that an operator can look around with `ip netns exec`.
pub(crate) const NAMES: &str = "/run/netns";

/// Numbers everything of this process that needs a name of its own on the host.
pub(crate) fn next_number() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// A network namespace `lbt-PID-NUMBER-ROLE` with a temporary directory of the same life. Its loopback is up.
pub struct Namespace {
    name: String,
    role: String,
    handle: File,
    directory: PathBuf,
}

impl Namespace {
    /// Makes the namespace; `role` says what plays in it ("director", "server1").
    #[track_caller]
    pub fn new(role: &str) -> Namespace {
        sweep::once();
        let name = format!("{}{}-{}-{role}", sweep::PREFIX, std::process::id(), next_number());
        run(Command::new("ip").args(["netns", "add", &name]), "");
        let path = Path::new(NAMES).join(&name);
        let handle = File::open(&path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
        let directory = std::env::temp_dir().join(&name);
        let namespace = Namespace { name, role: role.to_owned(), handle, directory };
        std::fs::create_dir_all(&namespace.directory)
            .unwrap_or_else(|error| panic!("make {}: {error}", namespace.directory.display()));
        // Duplicate address detection holds an IPv6 address back for a second or two, and every address here
        // is known to be unique. Reverse path filters would refuse what DR is about: replies from elsewhere.
        for setting in [
            "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.default.accept_ra=0",
            // A redirect would teach a shortcut that the test did not draw.
            "net.ipv4.conf.all.accept_redirects=0",
            "net.ipv4.conf.default.accept_redirects=0",
            "net.ipv6.conf.all.accept_redirects=0",
            "net.ipv6.conf.default.accept_redirects=0",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
        ] {
            namespace.sysctl(setting);
        }
        namespace.ip("link set lo up");
        namespace
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// To enter it by `setns`, on a thread that outlives a call of [`Namespace::run`].
    pub fn handle(&self) -> File {
        self.handle.try_clone().expect("duplicate a namespace handle")
    }

    /// What plays in it.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// A directory for the files of what runs here; removed with the namespace.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs `work` on a thread of its own inside the namespace and hands its panic on to the caller.
    ///
    /// `setns` moves one thread only: sockets that `work` opens stay in the namespace wherever they are used
    /// later; threads that `work` starts are inside as well.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET)
                    .unwrap_or_else(|error| panic!("enter namespace {}: {error}", self.name));
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run in the namespace and die with the calling thread. Unlike under
    /// `ip netns exec`, /sys stays as it is, and with it everything pinned in bpffs.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        die_with_parent(&mut command);
        let handle = self.handle.try_clone().expect("duplicate a namespace handle");
        // SAFETY: between fork and exec only setns is called, a bare system call.
        unsafe {
            command.pre_exec(move || match libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        command
    }

    /// Starts a command made by [`Namespace::command`] and keeps it running; `name` names it and its log.
    #[track_caller]
    pub fn spawn(&self, name: &str, command: Command) -> Process {
        Process::spawn(name, command, &self.directory.join(format!("{name}.log")))
    }

    /// Runs `ip` with these words; lines are run one by one. Panics with what `ip` said if one fails.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        run(self.command("ip").args(["-batch", "-"]), lines);
    }

    /// Runs a program to its end and returns what it wrote; panics if it fails.
    #[track_caller]
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        run(self.command(program).args(arguments), "")
    }

    /// Sets a network sysctl here, written as `net.ipv4.ip_forward=1`.
    #[track_caller]
    pub fn sysctl(&self, setting: &str) {
        let (key, value) = setting.split_once('=').unwrap_or_else(|| panic!("{setting} is not KEY=VALUE"));
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        // /proc/sys/net shows the namespace of the thread that opens it.
        let written = self.run(|| std::fs::write(&path, value));
        written.unwrap_or_else(|error| panic!("set {setting} in {}: {error}", self.name));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Takes the name away; the namespace and its interfaces go with the last process and handle inside.
pub(crate) fn remove(name: &str) {
    let path = Path::new(NAMES).join(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(&path);
}

/// Runs a command to its end with `input`, returns its standard output, panics with its errors if it fails.
#[track_caller]
pub(crate) fn run(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let described = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {described}: {error}"));
    // Fits the pipe, so the child may start reading whenever it likes; one that reads nothing closes it.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("wait for {described}: {error}"));
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("{described} failed with {}: {}\ninput: {input}", output.status, errors.trim());
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}
