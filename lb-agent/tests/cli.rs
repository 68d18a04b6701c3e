//! The program as a shell sees it: exit codes, what goes to which output, pipes. Where a command needs an agent,
//! the API's real server answers for a stand-in, so that no privilege is needed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lb_agent::control::{self, Change, Effect, Outcome, Refusal, Request, Verb, views};
use lb_agent::manifest;

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

/// The API's server in `directory`, with `answer` behind it, for as long as the value lives.
fn agent(directory: &Path, answer: impl Fn(Request) + Send + 'static) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (sender, mut requests) = tokio::sync::mpsc::channel(1);
    runtime.block_on(control::server::serve(&control::socket_path(directory), sender)).unwrap();
    runtime.spawn(async move {
        while let Some(request) = requests.recv().await {
            answer(request);
        }
    });
    runtime
}

#[test]
fn apply_sends_what_it_reads_and_prints_what_was_done() {
    let directory = tempfile::tempdir().unwrap();
    let _agent = agent(directory.path(), |request| {
        let Request::Apply { sources, prune: false, dry_run: false, reply } = request else {
            panic!("{request:?}")
        };
        assert_eq!((sources[0].file.as_str(), sources[0].text.as_str()), ("<stdin>", WEB));
        let add = Change {
            verb: Verb::Add,
            object: "VirtualService/web".into(),
            fields: vec![],
            effect: Effect::Live,
        };
        let steps = vec!["write slots".into()];
        reply
            .send(Ok(Outcome { plan: vec![add], steps, map_writes: 7, applied: true, warnings: vec![] }))
            .unwrap();
    });
    let mut child = command(directory.path(), &["apply", "-v", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(WEB.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "+ VirtualService/web\n    write slots\ndone: 1 added, 0 changed, 0 removed; 7 map writes\n"
    );
    assert!(output.status.success());
}

#[test]
fn an_order_that_is_refused_ends_with_1_and_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let _agent = agent(directory.path(), |request| {
        let Request::Delete { ids, reply, .. } = request else { panic!("{request:?}") };
        let owned = Refusal::Owned { object: ids[0].to_string(), file: "/etc/lb/web.yaml".into() };
        reply.send(Err(owned)).unwrap();
    });
    let (code, out, err) = run(directory.path(), &["delete", "service", "web"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("error: VirtualService/web belongs to the file /etc/lb/web.yaml: "), "{err}");
}

#[test]
fn objects_as_yaml_are_manifests_again() {
    let directory = tempfile::tempdir().unwrap();
    let objects = manifest::load_text("web.yaml", WEB).unwrap();
    let views: Vec<views::ObjectView> = objects
        .iter()
        .map(|(_, entry)| views::ObjectView {
            manifest: manifest::to_manifest(&entry.object),
            origin: views::Origin::File("web.yaml".into()),
        })
        .collect();
    let _agent = agent(directory.path(), move |request| {
        let Request::Objects { reply } = request else { panic!("{request:?}") };
        reply.send(views.clone()).unwrap();
    });
    let (code, yaml, _) = run(directory.path(), &["get", "objects", "-o", "yaml"]);
    assert_eq!(code, 0);
    let again = manifest::load_text("again.yaml", &yaml).unwrap();
    assert!(objects.iter().map(|(_, entry)| &entry.object).eq(again.iter().map(|(_, entry)| &entry.object)));
    assert!(yaml.contains("web.yaml"), "the origin is a comment: {yaml}");
}
