//! A program running for a test: killed by its own pid when the guard goes, its output kept for failure
//! messages.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A child process and the file that takes its output. Dropping it sends SIGKILL and reaps it.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    exited: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, both outputs appended to the file `log`. Panics when the program cannot be started.
    #[track_caller]
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Process {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .unwrap_or_else(|error| panic!("open {}: {error}", log.display()))
        };
        // In a group of its own, so that Ctrl-C reaches us and we end the child in our order.
        command.process_group(0).stdin(Stdio::null()).stdout(open()).stderr(open());
        let child = spawn_on_lasting_thread(command).unwrap_or_else(|error| panic!("start {name}: {error}"));
        Process { name: name.to_owned(), child, log: log.to_owned(), exited: None }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything the program has written so far, both outputs in order of arrival.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How the program ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().expect("wait for a child of ours");
        }
        self.exited
    }

    /// Panics with the program's output if it is no longer running.
    #[track_caller]
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exit_status() {
            panic!("{} ended with {status}; it wrote:\n{}", self.name, self.output());
        }
    }

    /// Sends `signal` to this process alone. A process that has ended already is left in peace.
    pub fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none() {
            // Not reaped yet (we hold the child), so the pid cannot have become another process.
            let _ = kill(Pid::from_raw(self.pid() as i32), signal);
        }
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        if self.exited.is_none() {
            self.exited = Some(self.child.wait().expect("wait for a child of ours"));
        }
        self.exited.unwrap_or(ExitStatus::from_raw(0))
    }

    /// Sends `signal` and waits for the end; panics with the program's output if it does not come in time.
    #[track_caller]
    pub fn end_with(&mut self, signal: Signal, deadline: Duration) -> ExitStatus {
        self.signal(signal);
        if !wait::holds_within(deadline, || self.exit_status().is_some()) {
            panic!("{} did not end within {deadline:?} of {signal}; it wrote:\n{}", self.name, self.output());
        }
        self.exited.expect("it ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the kernel kill the child when we die, so that a killed test run leaves no servers behind.
///
/// The signal follows the death of the *thread* that spawned, hence `spawn_on_lasting_thread` for programs
/// that are to outlive their caller's thread.
pub(crate) fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid are called, both async-signal-safe, and the error
    // carries a bare errno without allocating.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died between fork and prctl; then nobody would ever tell us.
            if nix::unistd::getppid().as_raw() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// Spawns from one thread that lives as long as this process.
fn spawn_on_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        // Unbounded: each caller waits for its answer, so there are never more orders than threads.
        let (orders, inbox): (Sender<Order>, Receiver<Order>) = channel();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("start the spawner thread");
        orders
    });
    let (answer, result) = channel();
    spawner.send((command, answer)).expect("the spawner lives as long as the process");
    result.recv().expect("the spawner answers every order")
}
