//! Servers that do not answer as they should, under each kind of probe.

use std::io::Write as _;
use std::time::Instant;

use super::*;
use crate::model::health::{AgentCheck, Dns, DnsTransport, DnsType, Grpc, Reply, Smtp, Tls, Udp};

fn https() -> Probe {
    Probe::Http(Http { tls: Some(Tls { insecure: true, ..Tls::default() }), ..Http::get("/") })
}

fn dns(transport: DnsTransport) -> Probe {
    Probe::Dns(Dns { name: "web.example".into(), record: DnsType::A, transport })
}

fn http2() -> Probe {
    Probe::Http(Http { version: HttpVersion::Http2, ..Http::get("/") })
}

#[tokio::test]
async fn a_closed_port_refuses_every_probe_in_the_same_words() {
    let smtp = Probe::Smtp(Smtp { helo: None, starttls: None });
    let agent = Probe::Agent(AgentCheck::default());
    let grpc = Probe::Grpc(Grpc::default());
    for probe in
        [Probe::Tcp, Probe::Http(Http::get("/")), https(), http2(), grpc, smtp, agent, dns(DnsTransport::Tcp)]
    {
        let server = nobody();
        let outcome = run(&check(probe), server).await;
        fails(&outcome, &format!("connect to {server}: connection refused"));
    }
    let server = nobody();
    let outcome = run(&check(dns(DnsTransport::Udp)), server).await;
    fails(&outcome, "ask for A web.example: connection refused");
    let udp = Probe::Udp(Udp { payload: b"hello".to_vec(), reply: Some(Reply::Any) });
    fails(&run(&check(udp), server).await, &format!("ask {server}: connection refused"));
}

#[tokio::test]
async fn a_server_that_accepts_and_is_silent_fails_by_the_timeout() {
    let silent = server(|mut stream| drain(&mut stream));
    let rows = [
        (Probe::Http(Http::get("/healthz")), "GET /healthz".to_owned()),
        (http2(), "GET /".to_owned()),
        (https(), format!("TLS handshake with {silent}")),
        (Probe::Grpc(Grpc::default()), format!("ask {silent} for its health")),
        (Probe::Smtp(Smtp { helo: None, starttls: None }), "the banner".to_owned()),
        (Probe::Agent(AgentCheck::default()), "read the agent's line".to_owned()),
        (dns(DnsTransport::Tcp), "ask for A web.example".to_owned()),
    ];
    for (probe, doing) in rows {
        let began = Instant::now();
        let outcome = run(&impatient(probe), silent).await;
        fails(&outcome, &format!("{doing}: no answer within 300 ms"));
        assert!(began.elapsed() >= std::time::Duration::from_millis(300));
    }
    assert!(run(&check(Probe::Tcp), silent).await.passed, "a TCP check wants no more than the connection");
}

#[tokio::test]
async fn a_silent_udp_server_fails_where_an_answer_is_expected() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = silent.local_addr().unwrap();
    let udp = |reply| Probe::Udp(Udp { payload: b"hello".to_vec(), reply });
    let expecting = run(&impatient(udp(Some(Reply::Any))), server).await;
    fails(&expecting, &format!("ask {server}: no answer within 300 ms"));
    passes(&run(&impatient(udp(None)), server).await, "no error came back");
    let asked = run(&impatient(dns(DnsTransport::Udp)), server).await;
    fails(&asked, "ask for A web.example: no answer within 300 ms");
}

#[tokio::test]
async fn a_server_that_closes_early_is_told_as_such() {
    let early = server(|mut stream| {
        // Not before the client has spoken: an unread request would make the close a reset.
        let mut byte = [0];
        let _ = stream.set_read_timeout(Some(std::time::Duration::from_millis(200)));
        let _ = std::io::Read::read(&mut stream, &mut byte);
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    for probe in
        [Probe::Http(Http::get("/")), https(), Probe::Grpc(Grpc::default()), http2(), dns(DnsTransport::Tcp)]
    {
        let outcome = run(&check(probe), early).await;
        let closed = ["closed the connection", "connection reset by peer", "broken pipe"];
        assert!(
            !outcome.passed && closed.iter().any(|words| outcome.words.contains(words)),
            "{}",
            outcome.words
        );
    }
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let garbage = server(|mut stream| {
        let _ = stream.write_all(&b"\x80\x90garbage\0\xff\r\n".repeat(40));
        drain(&mut stream);
    });
    let smtp = Probe::Smtp(Smtp { helo: None, starttls: None });
    fails(&run(&check(Probe::Http(Http::get("/"))), garbage).await, "GET /: the answer is not HTTP");
    let outcome = run(&check(https()), garbage).await;
    fails(&outcome, &format!("TLS handshake with {garbage}: the answer is not TLS"));
    let outcome = run(&check(smtp), garbage).await;
    fails(&outcome, "the banner: the server says \"\u{fffd}\u{fffd}garbage \u{fffd}\", which is not SMTP");
    for probe in [http2(), Probe::Grpc(Grpc::default()), Probe::Agent(AgentCheck::default())] {
        let outcome = run(&check(probe), garbage).await;
        assert!(!outcome.passed, "{}", outcome.words);
    }
}

#[tokio::test]
async fn garbage_by_udp_is_no_answer() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((_, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(b"\xffgarbage", from);
        }
    });
    fails(&run(&check(dns(DnsTransport::Udp)), server).await, "ask for A web.example: the answer is not DNS");
    let udp = |reply| Probe::Udp(Udp { payload: b"hello".to_vec(), reply: Some(reply) });
    let prefix = |bytes: &[u8], mask: &[u8]| Reply::Prefix { bytes: bytes.into(), mask: mask.into() };
    let rows = [
        (Reply::Any, true),
        (prefix(b"\xffg", b"\xff\xff"), true),
        (prefix(b"\x0fG", b"\x0f\xdf"), true),
        (prefix(b"\xfeg", b"\xff\xff"), false),
        (prefix(b"\xffgarbage and more", &[0xff; 17]), false),
        (Reply::Matches("^.?garb".into()), false),
        (Reply::Matches("(?-u)^\\xffgarb".into()), true),
        (Reply::Matches("bage$".into()), true),
    ];
    for (reply, passed) in rows {
        let outcome = run(&check(udp(reply.clone())), server).await;
        assert_eq!(outcome.passed, passed, "{reply:?}: {}", outcome.words);
    }
}

#[tokio::test]
async fn the_source_must_be_ours_and_of_the_targets_family() {
    let silent = server(|mut stream| drain(&mut stream));
    let with = |source: &str| Check { source: Some(source.parse().unwrap()), ..check(Probe::Tcp) };
    assert!(run(&with("127.0.0.9"), silent).await.passed);
    let outcome = run(&with("192.0.2.1"), silent).await;
    fails(&outcome, "bind to source address 192.0.2.1: cannot assign requested address");
    let outcome = run(&with("::1"), silent).await;
    fails(&outcome, "source address ::1 and target 127.0.0.1 are of different families");
}
