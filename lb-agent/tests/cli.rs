//! The program as a shell sees it: exit codes, what goes to which output, pipes. No agent is running here, and
//! no privilege is needed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const WEB: &str = "\
apiVersion: lb/v1
kind: VirtualService
metadata: {name: web}
spec:
  address: 203.0.113.10
  ports: [80]
  protocol: tcp
  forwarding: dr
  scheduler: wrr
  realServers:
    - {address: 10.0.0.11, weight: 100}
";

/// The program with a runtime directory in which nobody answers.
fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    command.args(arguments).current_dir(directory).env("LB_RUNTIME_DIR", directory);
    for variable in ["LB_STATE_DIR", "LB_BPFFS_DIR", "LB_LOG", "NO_COLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    command
}

fn run(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(directory, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("ended by itself"), text(stdout), text(stderr))
}

#[test]
fn validate_says_which_files_are_right() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("web.yaml"), WEB).unwrap();
    let found = run(directory.path(), &["validate", "-f", "web.yaml"]);
    assert_eq!(found, (0, "web.yaml: 1 object, valid\n".into(), String::new()));
    let (code, json, _) = run(directory.path(), &["validate", "-f", ".", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, json), (0, serde_json::json!([{"file": "./web.yaml", "objects": 1}])));
}

#[test]
fn validate_names_the_place_of_a_mistake_and_ends_with_1() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("web.yaml"), WEB.replace("100", "70000")).unwrap();
    let (code, out, err) = run(directory.path(), &["validate", "-f", "web.yaml"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, "web.yaml:11:36: spec.realServers[0].weight: 70000 is above 65535\n");
}

#[test]
fn validate_knows_the_interfaces_of_this_host() {
    let directory = tempfile::tempdir().unwrap();
    let manifest = WEB.to_owned() + "  addressInterface: no-such-if\n";
    std::fs::write(directory.path().join("web.yaml"), &manifest).unwrap();
    let (code, _, err) = run(directory.path(), &["validate", "-f", "web.yaml"]);
    assert_eq!(code, 1);
    assert!(
        err.starts_with("web.yaml:12:21: spec.addressInterface: interface `no-such-if` does not exist"),
        "{err}"
    );
    std::fs::write(directory.path().join("web.yaml"), manifest.replace("no-such-if", "lo")).unwrap();
    assert_eq!(run(directory.path(), &["validate", "-f", "web.yaml"]).0, 0);
}

#[test]
fn without_an_agent_a_command_ends_with_1_and_says_what_to_look_at() {
    let directory = tempfile::tempdir().unwrap();
    let (code, out, err) = run(directory.path(), &["get", "services"]);
    assert_eq!((code, out.as_str()), (1, ""));
    let socket = directory.path().join("agent.sock");
    assert!(err.starts_with(&format!("error: no agent answers on {}: ", socket.display())), "{err}");
    assert_eq!(err.lines().count(), 1, "no backtrace: {err}");
    let (_, _, err) = run(directory.path(), &["get", "services", "-o", "json"]);
    let err: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert!(err["error"].as_str().unwrap().contains("agent.sock"), "{err}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [["get", "service", "Not A Name"].as_slice(), &["aply"], &["apply"]] {
        let (code, out, err) = run(directory.path(), arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains("error: "), "{err}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let directory = tempfile::tempdir().unwrap();
    for index in 0..3000 {
        // More lines than a pipe holds (64 KiB).
        std::fs::write(directory.path().join(format!("empty-{index:040}.yaml")), "").unwrap();
    }
    let mut child = command(directory.path(), &["validate", "-f", "."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.ends_with(": 0 objects, valid\n"), "{first}");
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(128 + libc::SIGPIPE));
}

#[test]
fn every_shell_gets_its_completions() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(directory.path(), &["completions", shell]);
        assert!(code == 0 && script.contains("real-servers"), "{shell}");
    }
}
