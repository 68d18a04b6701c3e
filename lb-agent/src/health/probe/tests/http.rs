//! HTTP in the clear.

use std::io::Write as _;
use std::sync::mpsc;

use md5::Md5;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::model::health::Digest;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n";

fn probe(http: Http) -> Check {
    check(Probe::Http(http))
}

#[tokio::test]
async fn a_status_passes_if_a_range_has_it() {
    let range = |first, last| StatusRange { first, last };
    let rows = [
        (200, vec![range(200, 299)], "status 200"),
        (404, vec![range(200, 299), range(404, 404)], "status 404"),
        (503, vec![range(200, 299)], "status 503, expected 200-299"),
        (302, vec![range(200, 200), range(204, 206)], "status 302, expected 200, 204-206"),
    ];
    for (status, statuses, words) in rows {
        let server = answering(format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n"));
        let outcome = run(&probe(Http { statuses, ..Http::get("/") }), server).await;
        assert_eq!(&*outcome.words, words);
        assert_eq!(outcome.passed, !words.contains("expected"));
    }
}

#[tokio::test]
async fn the_request_is_what_the_operator_wrote() {
    let (heard, hear) = mpsc::channel();
    let server = server(move |mut stream| {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\nping") {
            let mut byte = [0];
            std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
            request.push(byte[0]);
        }
        heard.send(String::from_utf8(request).unwrap()).unwrap();
        stream.write_all(OK.as_bytes()).unwrap();
    });
    let http = Http {
        version: HttpVersion::Http10,
        method: "POST".into(),
        host: Some("web.example".into()),
        headers: vec![("X-Probe".into(), "lb".into()), ("User-Agent".into(), "mine".into())],
        body: Some("ping".into()),
        ..Http::get("/health?full=1")
    };
    assert!(run(&probe(http), server).await.passed);
    let request = hear.recv().unwrap();
    let (header, _) = request.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<String> = header.lines().map(str::to_lowercase).collect();
    assert_eq!(lines.remove(0), "post /health?full=1 http/1.0");
    lines.sort();
    let wanted =
        ["connection: close", "content-length: 4", "host: web.example", "user-agent: mine", "x-probe: lb"];
    assert_eq!(lines, wanted);
}

#[tokio::test]
async fn the_host_is_the_target_where_none_is_given() {
    let (heard, hear) = mpsc::channel();
    let server = server(move |mut stream| {
        heard.send(header(&stream)).unwrap();
        stream.write_all(OK.as_bytes()).unwrap();
    });
    assert!(run(&probe(Http::get("/")), server).await.passed);
    let header = hear.recv().unwrap().to_lowercase();
    assert!(header.contains(&format!("host: {server}\r\n")), "{header}");
    assert!(header.starts_with("get / http/1.1\r\n"), "{header}");
}

#[tokio::test]
async fn the_body_is_held_against_pattern_and_digest() {
    let server = answering(OK);
    let with = |matches: Option<&str>, digest| {
        probe(Http { matches: matches.map(Into::into), digest, ..Http::get("/") })
    };
    let sha: [u8; 32] = Sha256::digest(b"hello\n").into();
    let md5: [u8; 16] = Md5::digest(b"hello\n").into();
    passes(&run(&with(Some("^hel+o$?"), None), server).await, "status 200");
    passes(&run(&with(None, Some(Digest::Sha256(sha))), server).await, "status 200");
    passes(&run(&with(Some("l"), Some(Digest::Md5(md5))), server).await, "status 200");
    let outcome = run(&with(Some("^goodbye"), None), server).await;
    fails(&outcome, "the body, \"hello\", does not match ^goodbye");
    let outcome = run(&with(None, Some(Digest::Md5([0; 16]))), server).await;
    // md5sum says so.
    let words =
        "the body's digest is b1946ac92492d2347c6235b4d2611184, expected 00000000000000000000000000000000";
    fails(&outcome, words);
}

#[tokio::test]
async fn an_endless_body_is_read_to_its_limit() {
    let endless = || {
        server(|mut stream| {
            header(&stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        })
    };
    let with = |matches: Option<&str>, digest| {
        probe(Http { matches: matches.map(Into::into), digest, ..Http::get("/") })
    };
    passes(&run(&with(None, None), endless()).await, "status 200");
    passes(&run(&with(Some("xxx"), None), endless()).await, "status 200");
    assert!(!run(&with(Some("y"), None), endless()).await.passed);
    let outcome = run(&with(None, Some(Digest::Md5([0; 16]))), endless()).await;
    fails(&outcome, "the body is longer than 1 MiB, too long for a digest");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_waited_for_until_the_timeout() {
    let stalls = server(|mut stream| {
        header(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        drain(&mut stream);
    });
    let http = Http { matches: Some("whole".into()), ..Http::get("/") };
    let outcome = run(&impatient(Probe::Http(http)), stalls).await;
    fails(&outcome, "read the body: no answer within 300 ms");
    passes(&run(&impatient(Probe::Http(Http::get("/"))), stalls).await, "status 200");
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let endless = server(|mut stream| {
        header(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"X-More: and more and more and more\r\n").is_ok() {}
    });
    let outcome = run(&probe(Http::get("/")), endless).await;
    fails(&outcome, "GET /: the answer is not HTTP");
}

#[tokio::test]
async fn a_slow_answer_in_time_passes() {
    let slow = server(|mut stream| {
        header(&stream);
        for byte in OK.as_bytes() {
            std::thread::sleep(Duration::from_millis(3));
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
        }
    });
    let http = Http { matches: Some("^hello\n$".into()), ..Http::get("/") };
    passes(&run(&probe(http), slow).await, "status 200");
}

#[tokio::test]
async fn a_proxy_header_that_names_nobody_stands_before_the_request() {
    for header_sent in [None, Some(false), Some(true)] {
        let (heard, hear) = mpsc::channel();
        let server = server(move |mut stream| {
            let mut first = [0; 28];
            std::io::Read::read_exact(&mut stream, &mut first).unwrap();
            heard.send(first).unwrap();
            header(&stream);
            let _ = stream.write_all(OK.as_bytes());
        });
        let check = Check { proxy_header: header_sent, ..probe(Http::get("/a-long-path-to-read")) };
        passes(&run(&check, server).await, "status 200");
        let first = hear.recv().unwrap();
        if header_sent == Some(true) {
            // HAProxy's proxy-protocol.txt, section 2.2: LOCAL, without an address.
            let local = [13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 10, 0x20, 0, 0, 0];
            assert_eq!((&first[..16], &first[16..]), (&local[..], &b"GET /a-long-"[..]));
        } else {
            assert_eq!(&first, b"GET /a-long-path-to-read HTT");
        }
    }
}
