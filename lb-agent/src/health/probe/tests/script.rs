//! Scripts. Those that need root (another user) are in the netns tests.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::health::Weighing;
use crate::model::health::Script;

/// A script of these lines, and the directory that it goes with.
fn script(text: &str) -> (tempfile::TempDir, Script) {
    let directory = tempfile::tempdir().unwrap();
    let command = directory.path().join("check");
    // Written by another process: a descriptor of ours, open for writing, may be inherited by a child that a test
    // beside this one forks, and executing would fail with ETXTBSY.
    let mut shell = std::process::Command::new("/bin/sh");
    let written = shell.args(["-c", "printf '%s' \"$1\" >\"$2\"", "sh"]).arg(format!("#!/bin/sh\n{text}\n"));
    assert!(written.arg(&command).status().unwrap().success());
    std::fs::set_permissions(&command, PermissionsExt::from_mode(0o755)).unwrap();
    (directory, Script { command, arguments: Vec::new(), user: None, dynamic: false })
}

async fn outcome(script: Script) -> Outcome {
    run(&check(Probe::Script(script)), "127.0.0.1:0".parse().unwrap()).await
}

#[tokio::test]
async fn exit_codes_mean_what_they_mean_to_keepalived() {
    let rows: [(u8, bool, bool, Option<u16>); 8] = [
        (0, false, true, None),
        (1, false, false, None),
        (2, false, false, None),
        (255, false, false, None),
        (0, true, true, None),
        (1, true, false, None),
        (2, true, true, Some(0)),
        (255, true, true, Some(253)),
    ];
    for (code, dynamic, passed, weight) in rows {
        let (_directory, script) = script(&format!("exit {code}"));
        let outcome = outcome(Script { dynamic, ..script }).await;
        assert_eq!(outcome.passed, passed, "{code}, dynamic {dynamic}: {}", outcome.words);
        assert_eq!(outcome.weight, weight.map(Weighing::Absolute), "{code}, dynamic {dynamic}");
    }
}

#[tokio::test]
async fn a_script_has_arguments_the_address_and_little_else() {
    let (_directory, script) = script("echo \"$1 $LB_ADDRESS $HOME. $(pwd)\"; echo oops >&2; exit 1");
    let name = script.command.display().to_string();
    let outcome = outcome(Script { arguments: vec!["a b".into()], ..script }).await;
    fails(&outcome, &format!("{name}: exit code 1: \"a b 127.0.0.1 . / oops\""));
}

#[tokio::test]
async fn a_script_that_is_killed_or_missing_is_told_so() {
    let (_directory, killed) = script("kill -9 $$");
    let name = killed.command.display().to_string();
    fails(&outcome(killed).await, &format!("{name}: killed by SIGKILL"));
    let missing =
        Script { command: PathBuf::from("/nowhere/check"), arguments: vec![], user: None, dynamic: false };
    fails(&outcome(missing).await, "start /nowhere/check: no such file or directory");
    let (_directory, of_nobody) = script("exit 0");
    let outcome = outcome(Script { user: Some("no-such-user".into()), ..of_nobody }).await;
    fails(&outcome, "user no-such-user: not known on this system");
}

#[tokio::test]
async fn the_timeout_kills_all_that_the_script_started() {
    let (directory, script) = script("sleep 1000 & echo $! >$0.pid; echo begun; wait");
    let name = script.command.display().to_string();
    let mut check = check(Probe::Script(script));
    check.timing.timeout = Duration::from_secs(2);
    let outcome = run(&check, "127.0.0.1:0".parse().unwrap()).await;
    fails(&outcome, &format!("{name}: not done within 2 s, killed: \"begun\""));
    is_gone(&directory).await;
}

#[tokio::test]
async fn what_a_script_leaves_behind_is_killed_and_not_waited_for() {
    let (directory, script) = script("sleep 1000 & echo $! >$0.pid; echo well");
    let began = Instant::now();
    passes(&outcome(script).await, "exit code 0: \"well\"");
    assert!(began.elapsed() < Duration::from_secs(15), "the background process was waited for");
    is_gone(&directory).await;
}

/// The process whose number is in `check.pid` has ended (it may wait to be reaped).
async fn is_gone(directory: &tempfile::TempDir) {
    let pid = std::fs::read_to_string(directory.path().join("check.pid")).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    for _ in 0..500 {
        match std::fs::read_to_string(&stat) {
            Err(_) => return,
            Ok(stat) if stat.contains(") Z ") => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("process {pid} is still there");
}

#[tokio::test]
async fn endless_output_neither_blocks_nor_fills_memory() {
    let (_directory, script) = script("head -c 3000000 /dev/zero | tr '\\0' x; exit 0");
    passes(&outcome(script).await, &format!("exit code 0: \"{}…\"", "x".repeat(100)));
}
