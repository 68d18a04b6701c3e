//! Server and client against one another over a real socket, with a stand-in for the agent.

use std::os::unix::fs::PermissionsExt;

use hyper::Method;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::client::{Client, Error};
use super::views::*;
use super::*;
use crate::model::{Kind, Name, ObjectId};

/// An agent that answers by `answer`, and a client of it.
struct Rig {
    directory: tempfile::TempDir,
    server: JoinHandle<()>,
    client: Client,
}

impl Rig {
    async fn new(answer: impl Fn(Request) + Send + 'static) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut requests) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                answer(request);
            }
        });
        let server = server::serve(&socket_path(directory.path()), sender).await.unwrap();
        let client = Client::new(directory.path());
        Rig { directory, server, client }
    }

    async fn raw(&self, method: Method, path: &str, body: impl Into<Vec<u8>>) -> (u16, String) {
        let (status, body) = self.client.exchange(method, path, body.into().into()).await.unwrap();
        (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }
}

fn source(text: &str) -> crate::manifest::Source {
    crate::manifest::Source { file: "web.yaml".into(), text: text.into() }
}

fn web() -> ObjectId {
    ObjectId { kind: Kind::VirtualService, name: Name::new("web").unwrap() }
}

#[tokio::test]
async fn an_apply_arrives_whole_and_its_outcome_comes_back() {
    let outcome = Outcome {
        plan: vec![Change {
            verb: Verb::Change,
            object: "VirtualService/web".into(),
            fields: vec!["spec.scheduler".into()],
            effect: Effect::Live,
        }],
        steps: vec!["write slots 0..3".into()],
        map_writes: 4,
        applied: true,
        warnings: vec![],
    };
    let answer = outcome.clone();
    let rig = Rig::new(move |request| {
        let Request::Apply { sources, prune, dry_run, reply } = request else { panic!("{request:?}") };
        assert_eq!(sources, [source("a: ü\n")]);
        assert!(prune && !dry_run);
        reply.send(Ok(answer.clone())).unwrap();
    })
    .await;
    assert_eq!(rig.client.apply(&[source("a: ü\n")], true, false).await.unwrap(), outcome);
}

#[tokio::test]
async fn a_refusal_comes_back_as_it_was_with_a_status_of_its_own() {
    let diagnostics =
        crate::manifest::load_text("web.yaml", "apiVersion: lb/v1\nkind: Director\n").unwrap_err();
    for (refusal, status) in [
        (Refusal::Invalid { diagnostics }, 422),
        (Refusal::Owned { object: "VirtualService/web".into(), file: "/etc/lb/web.yaml".into() }, 409),
        (Refusal::Missing { object: "VirtualService/web".into() }, 404),
        (Refusal::Failed { step: "attach eth0".into(), cause: "no such device".into() }, 500),
    ] {
        let answer = refusal.clone();
        let rig = Rig::new(move |request| match request {
            Request::Apply { reply, .. } => reply.send(Err(answer.clone())).unwrap(),
            request => panic!("{request:?}"),
        })
        .await;
        let (got, body) = rig.raw(Method::POST, "/v1/apply", "a: b").await;
        assert_eq!(got, status, "{body}");
        let body: ErrorBody = serde_json::from_str(&body).unwrap();
        assert_eq!(body, ErrorBody { error: refusal.to_string(), refusal: Some(refusal.clone()) });
        let Err(Error::Refused(back)) = rig.client.apply(&[], false, false).await else {
            panic!("not refused")
        };
        assert_eq!(back, refusal);
    }
}

#[tokio::test]
async fn a_body_may_be_a_manifest_itself_in_yaml_or_json() {
    let rig = Rig::new(|request| {
        let Request::Apply { sources, reply, .. } = request else { panic!("{request:?}") };
        let warnings =
            sources.into_iter().map(|source| format!("{}: {}", source.file, source.text)).collect();
        reply.send(Ok(Outcome { warnings, ..Outcome::default() })).unwrap();
    })
    .await;
    for text in ["kind: Director\n", r#"{"kind": "Director"}"#] {
        let (status, body) = rig.raw(Method::POST, "/v1/apply", text).await;
        assert_eq!(status, 200, "{body}");
        let outcome: Outcome = serde_json::from_str(&body).unwrap();
        assert_eq!(outcome.warnings, [format!("<body>: {text}")]);
    }
}

#[tokio::test]
async fn objects_to_delete_are_named_or_described() {
    let rig = Rig::new(|request| {
        let Request::Delete { ids, dry_run: true, reply } = request else { panic!("{request:?}") };
        assert_eq!(ids, [web()]);
        reply.send(Ok(Outcome::default())).unwrap();
    })
    .await;
    rig.client.delete(&[web()], &[], true).await.unwrap();
    let manifest = "apiVersion: lb/v1
kind: VirtualService
metadata: {name: web}
spec: {address: 203.0.113.10, ports: [80], protocol: tcp, forwarding: dr, scheduler: rr}
";
    rig.client.delete(&[], &[source(manifest)], true).await.unwrap();
    let Err(Error::Refused(Refusal::Invalid { diagnostics })) =
        rig.client.delete(&[], &[source("kind: Unknown\n")], true).await
    else {
        panic!("a manifest that is wrong names nothing")
    };
    assert_eq!(diagnostics.0[0].file, "web.yaml");
}

#[tokio::test]
async fn what_makes_no_sense_never_reaches_the_agent() {
    let rig = Rig::new(|request| panic!("{request:?}")).await;
    for (method, path, body, status, says) in [
        (Method::GET, "/v1/nothing", "", 404, "/v1/"),
        (Method::GET, "/v1/apply", "", 405, "POST"),
        (Method::POST, "/v1/apply?dryrun=true", "a: b", 400, "dryrun"),
        (Method::POST, "/v1/apply?dryRun=maybe", "a: b", 400, "`true` or `false`"),
        (Method::POST, "/v1/apply", r#"{"sources": 1}"#, 400, "sources"),
        (Method::POST, "/v1/apply", r#"{"ids": ["VirtualService/web"]}"#, 400, "ids"),
        (Method::POST, "/v1/delete", r#"{"ids": []}"#, 400, "nothing"),
        (Method::POST, "/v1/delete", r#"{"ids": ["Service/web"]}"#, 400, "Service/web"),
        (Method::POST, "/v1/delete", r#"{"ids": ["VirtualService/Web"]}"#, 400, "lower-case"),
        (Method::POST, "/v1/delete?prune=true", r#"{"ids": ["VirtualService/web"]}"#, 400, "prune"),
        (Method::GET, "/v1/connections?client=somebody", "", 400, "IP address"),
        (Method::GET, "/v1/connections?limit=-1", "", 400, "limit"),
    ] {
        let (got, answer) = rig.raw(method, path, body).await;
        assert_eq!(got, status, "{path}: {answer}");
        let answer: ErrorBody = serde_json::from_str(&answer).unwrap();
        assert!(answer.error.contains(says), "{path}: {}", answer.error);
    }
    let (status, answer) = rig.raw(Method::POST, "/v1/apply", vec![b'#'; BODY_MAX + 1]).await;
    assert_eq!((status, answer.contains("32 MiB")), (413, true), "{answer}");
    let (status, answer) = rig.raw(Method::POST, "/v1/apply", [0xff, 0xfe]).await;
    assert_eq!((status, answer.contains("UTF-8")), (400, true), "{answer}");
}

#[tokio::test]
async fn a_filter_arrives_as_it_was_sent() {
    let rig = Rig::new(|request| {
        let Request::Connections { limit: 7, filter, reply } = request else { panic!("{request:?}") };
        let back = ErrorBody { error: format!("{filter:?}"), refusal: None };
        reply.send(Err(Refusal::Missing { object: back.error })).unwrap();
    })
    .await;
    let filter = ConnectionFilter {
        service: Some("a b&c=%ü".into()),
        client: Some("2001:db8::1".parse().unwrap()),
        real_server: Some("10.0.0.11".parse().unwrap()),
        state: Some("SYN_RECV".into()),
    };
    let Err(Error::Refused(Refusal::Missing { object })) = rig.client.connections(7, &filter).await else {
        panic!("not refused")
    };
    assert_eq!(object, format!("{filter:?}"));
}

#[tokio::test]
async fn questions_get_their_answers() {
    let rig = Rig::new(|request| match request {
        Request::Status { reply } => {
            reply.send(StatusView { director: "a".into(), ..StatusView::default() }).unwrap();
        }
        Request::Counters { reply } => reply.send(Ok(CountersView::default())).unwrap(),
        Request::Services { reply } => reply.send(vec![]).unwrap(),
        Request::RealServers { service, reply } => {
            assert_eq!(service.as_deref(), Some("web"));
            reply.send(vec![]).unwrap();
        }
        Request::Objects { reply } => {
            let manifest = serde_json::json!({"kind": "Director"});
            reply.send(vec![ObjectView { manifest, origin: Origin::File("d.yaml".into()) }]).unwrap();
        }
        request => panic!("{request:?}"),
    })
    .await;
    assert_eq!(rig.client.status().await.unwrap().director, "a");
    assert_eq!(rig.client.counters().await.unwrap(), CountersView::default());
    assert_eq!(rig.client.services().await.unwrap(), []);
    assert_eq!(rig.client.real_servers(Some("web")).await.unwrap(), []);
    assert_eq!(rig.client.objects().await.unwrap()[0].origin, Origin::File("d.yaml".into()));
    let (_, body) = rig.raw(Method::GET, "/v1/objects", "").await;
    assert_eq!(body, r#"[{"manifest":{"kind":"Director"},"origin":{"file":"d.yaml"}}]"#);
}

#[tokio::test]
async fn an_agent_that_stops_says_so() {
    // Dropping the request drops its reply.
    let rig = Rig::new(drop).await;
    let error = rig.client.services().await.unwrap_err();
    assert_eq!(error.to_string(), "the agent answered 503 Service Unavailable: the agent is stopping");
}

#[tokio::test]
async fn without_an_agent_the_error_says_where_it_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let error = Client::new(directory.path()).services().await.unwrap_err().to_string();
    let socket = directory.path().join("agent.sock");
    assert!(error.starts_with(&format!("no agent answers on {}: ", socket.display())), "{error}");
    assert!(error.contains("LB_RUNTIME_DIR"), "{error}");
}

#[tokio::test]
async fn a_second_agent_is_refused_and_a_dead_ones_socket_is_replaced() {
    let rig = Rig::new(drop).await;
    let path = socket_path(rig.directory.path());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let (sender, _requests) = mpsc::channel(1);
    let error = server::serve(&path, sender.clone()).await.unwrap_err();
    assert_eq!(format!("{error:#}"), format!("listen on {}: another agent answers there", path.display()));

    rig.server.abort();
    assert!(rig.server.await.unwrap_err().is_cancelled());
    assert!(!path.exists(), "the socket goes with the server");

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "nobody listens on this one");
    let server = server::serve(&path, sender).await.unwrap();
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    let names: Vec<_> = rig.directory.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["agent.sock"]);
    server.abort();
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = socket_path(directory.path());
    std::fs::write(&path, "precious").unwrap();
    let (sender, _requests) = mpsc::channel(1);
    // Linux refuses to connect to a file that is no socket in the same words as to a dead one.
    let error = format!("{:#}", server::serve(&path, sender).await.unwrap_err());
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
