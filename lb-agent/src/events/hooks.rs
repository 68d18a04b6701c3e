//! Runs hooks: one program after the other, each event's hooks in the order of the manifests, the next event's only
//! when they have ended. A program that takes too long is killed with everything it started.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::Event;
use crate::model::Hook;

/// Runs one hook for one event to its end.
///
/// # Errors
/// A program that cannot be started, fails or takes too long; with the last that it wrote.
pub async fn run(hook: &Hook, event: &Event) -> Result<()> {
    let program = hook.command.first().context("a hook has no command")?;
    let mut command = Command::new(program);
    command.args(&hook.command[1..]).envs(environment(event));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let group = child.id().map(|pid| Pid::from_raw(pid as i32));
    let mut stdin = child.stdin.take().context("a hook without standard input")?;
    let input = serde_json::to_vec(event)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        // Whoever does not read it closes the pipe.
        let _ = stdin.write_all(&input).await;
        drop(stdin);
        let (output, errors, status) = tokio::join!(tail(stdout), tail(stderr), child.wait());
        anyhow::Ok((status?, if errors.is_empty() { output } else { errors }))
    };
    let ended: Result<(ExitStatus, String), Duration> = match tokio::time::timeout(hook.timeout, work).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Err(hook.timeout),
    };
    match ended {
        Ok((status, _)) if status.success() => Ok(()),
        Ok((status, said)) if said.is_empty() => bail!("{program} ended with {status}"),
        Ok((status, said)) => bail!("{program} ended with {status}: {said}"),
        Err(timeout) => {
            if let Some(group) = group {
                // The child is not reaped yet, so the group is still its own.
                let _ = killpg(group, Signal::SIGKILL);
            }
            let _ = child.wait().await;
            bail!("{program} did not end within {timeout:?} and was killed")
        }
    }
}

/// What a hook sees of the event besides its standard input.
fn environment(event: &Event) -> Vec<(String, String)> {
    let (kind, name) = event.subject.split_once('/').unwrap_or(("", &event.subject));
    let mut variables = vec![
        ("LB_EVENT_SEQUENCE".into(), event.sequence.to_string()),
        ("LB_EVENT_TIME".into(), event.time.to_string()),
        ("LB_EVENT_SUBJECT".into(), event.subject.clone()),
        ("LB_EVENT_SUBJECT_KIND".into(), kind.to_owned()),
        ("LB_EVENT_SUBJECT_NAME".into(), name.to_owned()),
        ("LB_EVENT_KIND".into(), event.kind.clone()),
        ("LB_EVENT_CAUSE".into(), event.cause.clone()),
    ];
    for (field, value) in &event.fields {
        let field: String = field
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect();
        variables.push((format!("LB_EVENT_FIELD_{field}"), value.clone()));
    }
    variables
}

/// The last of what a program writes, in one line.
async fn tail(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..length]);
        let spare = kept.len().saturating_sub(TAIL);
        kept.drain(..spare);
    }
    String::from_utf8_lossy(&kept).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Bytes of a program's output that are kept for the message.
const TAIL: usize = 512;
