//! A program of the operator: in a process group of its own, which is killed as a whole at the timeout and at its
//! end, so that nothing it started stays behind.

use std::ffi::CString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, User, getgrouplist, setgid, setgroups, setuid};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::Instant;

use super::words::{Failure, brief, of_errno, quote};
use super::{Attempt, Success};
use crate::health::Weighing;
use crate::model::health::Script;

#[derive(Debug)]
pub struct Prober {
    script: Script,
    identity: Option<Identity>,
}

/// Whom a script runs as.
#[derive(Debug, Clone)]
struct Identity {
    name: String,
    home: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

/// The group of a process that runs; killed when this goes, whatever happened.
struct Group(Pid);

impl Prober {
    pub fn new(script: &Script) -> Result<Prober, Failure> {
        let identity = script.user.as_deref().map(identity).transpose()?;
        Ok(Prober { script: script.clone(), identity })
    }

    pub async fn run(&self, attempt: &Attempt<'_>) -> Result<Success, Failure> {
        let name = self.script.command.display();
        let began = Instant::now();
        let mut child =
            self.command(attempt).spawn().map_err(|error| Failure::io(format!("start {name}"), &error))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let _group = pid.map(Group);
        let mut output = Vec::new();
        let ended = async {
            let mut pipe = child.stdout.take();
            let mut read = std::pin::pin!(async {
                match &mut pipe {
                    Some(pipe) => read(pipe, &mut output).await,
                    None => Ok(()),
                }
            });
            // A grandchild may hold the pipe for ever: the end of the program counts.
            let status = tokio::select! {
                status = child.wait() => status?,
                result = &mut read => {
                    result?;
                    return child.wait().await;
                }
            };
            // What it wrote last is there by now.
            let _ = tokio::time::timeout(LAST_WORDS, read).await;
            Ok::<ExitStatus, io::Error>(status)
        };
        let status = match tokio::time::timeout_at(attempt.deadline, ended).await {
            Ok(status) => status.map_err(|error| Failure::io(format!("wait for {name}"), &error))?,
            Err(_) => {
                let time = brief(attempt.check.timing.timeout);
                return Err(Failure::new(format!("{name}: not done within {time}, killed{}", said(&output))));
            }
        };
        let (words, weight) = judge(status, self.script.dynamic)
            .map_err(|words| Failure::new(format!("{name}: {words}{}", said(&output))))?;
        let success = Success::new(format!("{words}{}", said(&output)), began.elapsed());
        Ok(Success { weight, ..success })
    }

    fn command(&self, attempt: &Attempt<'_>) -> Command {
        let mut command = Command::new(&self.script.command);
        command
            .args(&self.script.arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LB_ADDRESS", attempt.target.address().to_string())
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if let Some(identity) = self.identity.clone() {
            command.env("USER", &identity.name).env("LOGNAME", &identity.name).env("HOME", &identity.home);
            // SAFETY: between fork and exec only bare system calls are made; nothing is allocated.
            unsafe {
                command.pre_exec(move || {
                    // In this order: who is no longer root can change neither groups nor group.
                    setgroups(&identity.groups)?;
                    setgid(identity.gid)?;
                    setuid(identity.uid)?;
                    Ok(())
                });
            }
        }
        // SAFETY: dup2 is a bare system call.
        unsafe {
            // Both outputs in order, in one pipe.
            command.pre_exec(|| match libc::dup2(1, 2) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // ESRCH: nobody is left in it. As long as anybody is, the number is not given out again (alloc_pid,
        // Linux 6.1: a struct pid lives as long as its users); after that not before all others have been.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

/// What an exit code means (keepalived's MISC_CHECK), or in words what went wrong.
fn judge(status: ExitStatus, dynamic: bool) -> Result<(String, Option<Weighing>), String> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(("exit code 0".into(), None)),
        (Some(code @ 2..=255), _) if dynamic => {
            let weight = (code - 2) as u16;
            Ok((format!("exit code {code}, weight {weight}"), Some(Weighing::Absolute(weight))))
        }
        (Some(code), _) => Err(format!("exit code {code}")),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => Err(format!("killed by {signal}")),
            Err(_) => Err(format!("killed by signal {signal}")),
        },
        (None, None) => Err(format!("ended with {status}")),
    }
}

/// Keeps the beginning and reads the rest away, so that a talkative program is not held up.
async fn read(pipe: &mut (impl tokio::io::AsyncRead + Unpin), output: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        let count = pipe.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        let room = OUTPUT_MAX - output.len();
        output.extend_from_slice(&chunk[..count.min(room)]);
    }
}

fn said(output: &[u8]) -> String {
    if output.trim_ascii().is_empty() { String::new() } else { format!(": {}", quote(output)) }
}

fn identity(name: &str) -> Result<Identity, Failure> {
    let wrong = |words: String| Failure::new(format!("user {name}: {words}"));
    let user = User::from_name(name).map_err(|errno| wrong(of_errno(errno)))?;
    let user = user.ok_or_else(|| wrong("not known on this system".into()))?;
    let c_name = CString::new(name).map_err(|_| wrong("not a name".into()))?;
    let groups = getgrouplist(&c_name, user.gid).map_err(|errno| wrong(of_errno(errno)))?;
    let home = user.dir.to_string_lossy().into_owned();
    Ok(Identity { name: name.to_owned(), home, uid: user.uid, gid: user.gid, groups })
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is kept of a program's output.
const OUTPUT_MAX: usize = 4096;
/// For the pipe to be read to its end once the program has ended.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_millis(50);
