//! The real agent in a director's namespace, with directories of its own, and its command line.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::namespace::{Namespace, next_number};
use crate::process::Process;
use crate::{sweep, wait};

/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Held while looking whether bpffs is mounted; left behind, empty, for the next run.
const MOUNT_LOCK: &str = "/run/lbt.lock";
/// Loading and verifying the data plane may take a while on a busy machine.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(15);

/// The agent's binary: `LB_AGENT`, or the one that cargo built beside this test. Panics when it is not there.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LB_AGENT") {
        return PathBuf::from(path);
    }
    // A test program is in target/PROFILE/deps, a demo in target/PROFILE.
    let here = std::env::current_exe().expect("know our own path");
    let beside = here.ancestors().skip(1).take(2).map(|directory| directory.join("lb-agent"));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/lb-agent");
    beside.chain([workspace]).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no lb-agent beside {}: build it (`cargo xtask build`) or set LB_AGENT", here.display())
    })
}

/// A command of the agent's binary in any namespace, such as `real-server up` at a real server.
#[track_caller]
pub fn command(namespace: &Namespace, arguments: &[&str]) -> Command {
    let mut command = namespace.command(binary());
    command.args(arguments);
    command
}

/// What a command of the CLI wrote, and how it ended.
#[derive(Debug)]
pub struct CliOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl CliOutput {
    /// Its standard output; panics with its standard error if it failed.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert!(
            self.status.success(),
            "lb-agent ended with {}:\n{}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self.stdout
    }

    /// Its standard error; panics with its standard output if it did not fail.
    #[track_caller]
    pub fn expect_failure(self) -> String {
        assert!(!self.status.success(), "lb-agent should have failed and wrote:\n{}", self.stdout);
        self.stderr
    }
}

/// A pin directory that goes with everything pinned in it.
pub struct PinDirectory(PathBuf);

impl PinDirectory {
    /// A fresh name under bpffs, which is mounted if nobody has; the directory itself is the agent's to make.
    #[track_caller]
    pub fn new() -> PinDirectory {
        sweep::once();
        mount_bpffs();
        let name = format!("{}{}-{}", sweep::PREFIX, std::process::id(), next_number());
        PinDirectory(Path::new(BPFFS).join(name))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for PinDirectory {
    fn default() -> PinDirectory {
        PinDirectory::new()
    }
}

impl Drop for PinDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An agent and everything it keeps on disk and in bpffs. Dropping it kills the agent and unpins all.
pub struct Agent<'a> {
    namespace: &'a Namespace,
    // Before the pins, so that nobody pins anew what is being removed.
    process: Option<Process>,
    pins: PinDirectory,
    directory: PathBuf,
    binary: PathBuf,
}

impl<'a> Agent<'a> {
    /// Starts an agent with this configuration (a Director document, others may follow) and returns when it
    /// answers. Panics with what it wrote if it does not.
    #[track_caller]
    pub fn start(namespace: &'a Namespace, config: &str) -> Agent<'a> {
        let mut agent = Agent::prepare(namespace, config);
        agent.restart();
        agent
    }

    /// Everything an agent needs to start, without starting it: to put manifests into its directory first.
    #[track_caller]
    pub fn prepare(namespace: &'a Namespace, config: &str) -> Agent<'a> {
        let directory = namespace.directory().join(format!("agent-{}", next_number()));
        for part in ["manifests", "state", "run"] {
            std::fs::create_dir_all(directory.join(part)).expect("make the agent's directories");
        }
        let pins = PinDirectory::new();
        let agent = Agent { namespace, process: None, pins, directory, binary: binary() };
        agent.configure(config);
        agent
    }

    /// Replaces the configuration file; the agent reads it at its next start.
    pub fn configure(&self, config: &str) {
        std::fs::write(self.config_file(), config).expect("write the agent's configuration");
    }

    /// Starts and commands use this binary from now on, as after the installation of another version.
    pub fn use_binary(&mut self, binary: &Path) {
        self.binary = binary.to_owned();
    }

    /// Writes a file of the manifests directory, all at once as an editor would: a new file renamed into place.
    pub fn write_manifest(&self, file: &str, text: &str) {
        let beside = self.directory.join(file);
        std::fs::write(&beside, text).expect("write a manifest");
        std::fs::rename(beside, self.manifests().join(file)).expect("move a manifest into place");
    }

    /// Starts the process again (or for the first time) and returns when it answers.
    #[track_caller]
    pub fn restart(&mut self) {
        self.launch();
        self.wait_until_ready();
    }

    /// Starts the process and returns at once, whatever becomes of it.
    #[track_caller]
    pub fn launch(&mut self) {
        self.process = None;
        let mut command = self.command(&["run"]);
        command.arg("--config").arg(self.config_file());
        command.arg("--manifests").arg(self.manifests());
        command.arg("--state-dir").arg(self.directory.join("state"));
        command.arg("--runtime-dir").arg(self.directory.join("run"));
        command.arg("--bpffs-dir").arg(self.pins.path());
        let log = self.directory.join("agent.log");
        self.process = Some(Process::spawn("lb-agent", command, &log));
    }

    /// Returns when the agent answers; panics with what it wrote if it ends or stays silent.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let ready = wait::holds_within(START, || {
            self.process().assert_running();
            // A look at the socket costs nothing; the command would compete with the agent's start.
            UnixStream::connect(self.socket()).is_ok() && self.cli(&["get", "services"]).status.success()
        });
        if !ready {
            let last = self.cli(&["get", "services"]).stderr;
            panic!("lb-agent does not answer after {START:?}: {last}\nit wrote:\n{}", self.log());
        }
    }

    /// Runs a command of the CLI against this agent.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> CliOutput {
        self.cli_with_input(arguments, "")
    }

    /// Runs a command of the CLI with `input` on its standard input, as for `apply -f -`.
    #[track_caller]
    pub fn cli_with_input(&self, arguments: &[&str], input: &str) -> CliOutput {
        use std::io::Write;
        use std::process::Stdio;
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("start {}: {error}", self.binary.display()));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                let _ = stdin.write_all(input.as_bytes());
            });
            child.wait_with_output().expect("wait for a child of ours")
        });
        CliOutput {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `apply -f -` with this manifest; panics with the agent's answer if it is refused.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.cli_with_input(&["apply", "-f", "-"], manifest).expect_success()
    }

    /// Kills the process (SIGKILL) and reaps it; what is pinned goes on.
    pub fn kill9(&mut self) {
        self.process().kill();
    }

    /// Asks the process to end and waits for it.
    #[track_caller]
    pub fn sigterm(&mut self) -> ExitStatus {
        self.process().end_with(Signal::SIGTERM, STOP)
    }

    /// The running (or ended) process; panics before the first start.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent was started")
    }

    /// All that its processes have written, one after another.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }

    /// Where it pins.
    pub fn pins(&self) -> &Path {
        self.pins.path()
    }

    /// Its manifests directory.
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// Its socket, for a client of the API.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("run").join("agent.sock")
    }

    /// What an operator sets to talk to this agent by hand.
    pub fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("LB_STATE_DIR", self.directory.join("state")),
            ("LB_RUNTIME_DIR", self.directory.join("run")),
            ("LB_BPFFS_DIR", self.pins.path().to_owned()),
        ]
    }

    fn config_file(&self) -> PathBuf {
        self.directory.join("director.yaml")
    }

    /// A command of the CLI against this agent, to be started by the caller.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(&self.binary);
        command.args(arguments).envs(self.environment());
        command
    }
}

/// Mounts bpffs where everyone expects it, unless it is there. Under a lock, because a second mount on top
/// would hide what another run has just pinned.
#[track_caller]
fn mount_bpffs() {
    let lock = File::create(MOUNT_LOCK).unwrap_or_else(|error| panic!("open {MOUNT_LOCK}: {error}"));
    lock.lock().unwrap_or_else(|error| panic!("lock {MOUNT_LOCK}: {error}"));
    if statfs(BPFFS).is_ok_and(|status| status.filesystem_type() == BPF_FS_MAGIC) {
        return;
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|error| panic!("mount bpffs on {BPFFS}: {error}"));
}
