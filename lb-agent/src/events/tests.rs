use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::model::{Hook, Selection, Url, Webhook};

fn sequences(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}

#[tokio::test]
async fn events_are_numbered_in_order_and_followed() {
    let events = Events::in_memory();
    assert_eq!((events.latest(), events.last(10)), (0, vec![]));
    let follower = events.clone();
    let waiting = tokio::spawn(async move { follower.wait_after(0, 10, Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    events.emit(
        "VrrpInstance/edge",
        "master",
        "no advertisement for 3.6 s",
        [("priority", "100".to_owned())],
    );
    let seen = waiting.await.unwrap();
    assert_eq!((sequences(&seen), seen[0].fields["priority"].as_str()), (vec![1], "100"));
    events.emit("VrrpInstance/edge", "backup", "higher priority", []);
    assert_eq!(sequences(&events.after(1, 10)), [2]);
    assert_eq!(sequences(&events.last(1)), [2]);
    assert_eq!(events.wait_after(2, 10, Duration::from_millis(1)).await, []);
}

#[test]
fn numbers_go_on_over_restarts_and_a_half_written_line_is_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let events = Events::open(directory.path()).unwrap();
    for n in 0..3 {
        events.emit("a", "up", format!("cause {n}"), []);
    }
    drop(events);
    let path = directory.path().join("events.jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text += "{\"sequence\":4,\"ti";
    std::fs::write(&path, text).unwrap();
    let events = Events::open(directory.path()).unwrap();
    assert_eq!(sequences(&events.last(10)), [1, 2, 3]);
    assert_eq!(events.emit("a", "down", "again", []), 4);
    drop(events);
    assert_eq!(sequences(&Events::open(directory.path()).unwrap().last(10)), [1, 2, 3, 4]);
}

#[test]
fn the_journal_does_not_grow_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let events = Events::open(directory.path()).unwrap();
    for _ in 0..3 * RECENT + 2000 {
        events.emit("a", "up", "again", []);
    }
    let lines = std::fs::read_to_string(directory.path().join("events.jsonl")).unwrap().lines().count();
    assert!((RECENT..=3 * RECENT + 1024).contains(&lines), "{lines}");
    let last = events.latest();
    assert_eq!(Events::open(directory.path()).unwrap().latest(), last);
}

#[tokio::test]
async fn what_a_consumer_has_not_taken_is_kept_for_it() {
    let events = Events::in_memory();
    events.done("hooks", 0);
    for _ in 0..RECENT + 10 {
        events.emit("a", "up", "again", []);
    }
    assert_eq!(events.next_for("hooks").await.sequence, 1);
    events.done("hooks", 1);
    assert_eq!(events.next_for("hooks").await.sequence, 2);
    assert_eq!(events.lost(), 0);
    events.keep_consumers(|_| false);
    events.emit("a", "up", "again", []);
    assert_eq!(events.last(usize::MAX).len(), RECENT);
}

#[tokio::test]
async fn hooks_run_one_after_the_other_in_order_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("hook");
    let log = directory.path().join("log");
    // Writes when it begins and when it ends: two at once would be seen.
    let text = format!(
        "#!/bin/sh\necho begin $LB_EVENT_SEQUENCE $LB_EVENT_SUBJECT_NAME $LB_EVENT_KIND $1 >> {0}\nsleep 0.02\n\
         echo end $LB_EVENT_SEQUENCE >> {0}\n",
        log.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let hook = Hook {
        command: vec![script.display().to_string(), "word".into()],
        on: Selection { kinds: vec!["master".into()], ..Selection::default() },
        timeout: Duration::from_secs(30),
    };
    let lines = |count: usize| {
        let log = log.clone();
        async move {
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<String> = text.lines().map(str::to_owned).collect();
                if lines.len() >= count || Instant::now() > deadline {
                    return lines;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let events = Events::open(directory.path()).unwrap();
    let mut tasks = SinkTasks::start(events.clone());
    tasks.set(vec![hook.clone()], vec![]);
    // Until the runner stands at the beginning: what came before it is not its matter.
    while events.state().cursors.is_empty() {
        tokio::task::yield_now().await;
    }
    events.emit("VrrpInstance/edge", "master", "first", []);
    events.emit("VrrpInstance/edge", "backup", "not this one", []);
    events.emit("VrrpInstance/edge", "master", "third", []);
    assert_eq!(lines(4).await, ["begin 1 edge master word", "end 1", "begin 3 edge master word", "end 3"]);
    while events.state().cursors["hooks"] < 3 {
        tokio::task::yield_now().await;
    }
    drop(tasks);
    events.emit("VrrpInstance/edge", "master", "while nobody was there", []);
    drop(events);
    let events = Events::open(directory.path()).unwrap();
    let mut tasks = SinkTasks::start(events);
    tasks.set(vec![hook], vec![]);
    assert_eq!(lines(6).await[4..], ["begin 4 edge master word".to_owned(), "end 4".to_owned()]);
}

#[tokio::test]
async fn a_hook_that_takes_too_long_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let mark = directory.path().join("mark");
    let hook = Hook {
        command: ["/bin/sh", "-c", &format!("(sleep 2; touch {}) & sleep 60", mark.display())]
            .map(str::to_owned)
            .into(),
        on: Selection::default(),
        timeout: Duration::from_millis(300),
    };
    let events = Events::in_memory();
    events.emit("a", "up", "test", []);
    let began = Instant::now();
    let error = hooks::run(&hook, &events.last(1)[0]).await.unwrap_err().to_string();
    assert!(error.contains("did not end within 300ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!mark.exists(), "the hook's child lived on");
    let failing =
        Hook { command: ["/bin/sh", "-c", "echo no >&2; exit 3"].map(str::to_owned).into(), ..hook };
    let error = hooks::run(&failing, &events.last(1)[0]).await.unwrap_err().to_string();
    assert_eq!(error, "/bin/sh ended with exit status: 3: no");
}

#[tokio::test]
async fn a_webhook_is_tried_until_it_succeeds_and_keeps_the_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/lb", listener.local_addr().unwrap())).unwrap();
    let server = tokio::spawn(async move {
        let mut bodies = Vec::new();
        for answer in ["503 No", "200 OK", "204 No Content"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 2048];
            // The body is one JSON object and comes last.
            while !request.ends_with(b"}") {
                let length = stream.read(&mut buffer).await.unwrap();
                assert_ne!(length, 0, "{}", String::from_utf8_lossy(&request));
                request.extend_from_slice(&buffer[..length]);
            }
            let text = String::from_utf8(request).unwrap();
            assert!(text.starts_with("POST /lb HTTP/1.1\r\n"), "{text}");
            bodies.push(text.split_once("\r\n\r\n").unwrap().1.to_owned());
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        bodies
    });
    let events = Events::in_memory();
    let mut tasks = SinkTasks::start(events.clone());
    let webhook = Webhook { url, on: Selection::default(), timeout: Duration::from_secs(30) };
    tasks.set(vec![], vec![webhook]);
    while events.state().cursors.len() < 2 {
        tokio::task::yield_now().await;
    }
    events.emit("a", "down", "first", []);
    events.emit("a", "up", "second", []);
    let bodies = server.await.unwrap();
    let sent: Vec<Event> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    assert_eq!(sequences(&sent), [1, 1, 2]);
}
