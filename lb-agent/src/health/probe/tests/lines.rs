//! SMTP and agent check, spoken line by line.

use std::io::Write as _;

use super::*;
use crate::health::{Order, Weighing};
use crate::model::health::{AgentCheck, Smtp, Tls};

/// A server that says the first line, and each of the others after a line of the client.
fn dialogue(lines: &'static [&'static str]) -> SocketAddr {
    server(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                let _ = reader.read_line(&mut String::new());
            }
            let _ = stream.write_all(line.as_bytes());
        }
    })
}

fn smtp(starttls: bool) -> Check {
    let starttls = starttls.then(|| Tls { insecure: true, ..Tls::default() });
    check(Probe::Smtp(Smtp { helo: Some("director.example".into()), starttls }))
}

#[tokio::test]
async fn smtp_is_spoken_to_its_end() {
    let well =
        dialogue(&["220 mail.example ESMTP\r\n", "250-mail.example\r\n250 SIZE 1000\r\n", "221 bye\r\n"]);
    passes(&run(&smtp(false), well).await, "220 mail.example ESMTP");
}

#[tokio::test]
async fn smtp_names_the_step_that_failed() {
    let rows: [(&'static [&'static str], bool, &str); 6] = [
        (&["554 go away\r\n"], false, "the banner: the server says \"554 go away\", expected 220"),
        (&["220 a\r\n", "502 what\r\n"], false, "EHLO: the server says \"502 what\", expected 250"),
        (&["220 a\r\n", "250-a\r\n"], false, "EHLO: the server closed the connection"),
        (&["220 a\r\n", "250 a\r\n", "500 no\r\n"], false, "QUIT: the server says \"500 no\", expected 221"),
        (&["220 a\r\n", "250 a\r\n"], true, "the server does not offer STARTTLS"),
        (
            &["220 a\r\n", "250 STARTTLS\r\n", "220 go\r\n250 injected\r\n"],
            true,
            "STARTTLS: the server talks on before the handshake",
        ),
    ];
    for (lines, starttls, words) in rows {
        fails(&run(&smtp(starttls), dialogue(lines)).await, words);
    }
}

#[tokio::test]
async fn a_reply_without_end_is_refused() {
    let endless = server(|mut stream| while stream.write_all(b"220-more\r\n").is_ok() {});
    fails(&run(&smtp(false), endless).await, "the banner: the reply has no end");
}

#[tokio::test]
async fn an_agent_sets_weight_and_order() {
    let agent = check(Probe::Agent(AgentCheck::default()));
    let outcome = run(&agent, dialogue(&["up ready 75%\n"])).await;
    passes(&outcome, "agent says \"up ready 75%\"");
    assert_eq!(outcome.weight, Some(Weighing::Percent(75)));
    assert_eq!(outcome.order, Some(Order::Ready));
    fails(&run(&agent, dialogue(&["down#disk full\n"])).await, "agent says \"down#disk full\"");
    // Without an end of line the close ends it.
    let outcome = run(&agent, server(|mut stream| drop(stream.write_all(b"drain")))).await;
    assert_eq!((outcome.passed, outcome.order), (true, Some(Order::Drain)));
    let endless = server(|mut stream| while stream.write_all(&[b'x'; 1000]).is_ok() {});
    assert!(!run(&agent, endless).await.passed);
}

#[tokio::test]
async fn an_agent_is_told_what_the_operator_wrote() {
    let echo = server(|mut stream| {
        let mut line = String::new();
        let _ = BufReader::new(stream.try_clone().unwrap()).read_line(&mut line);
        let _ = stream.write_all(if line == "web-1\n" { b"50%\n" } else { b"down\n" });
    });
    let agent = check(Probe::Agent(AgentCheck { send: Some("web-1\n".into()) }));
    assert_eq!(run(&agent, echo).await.weight, Some(Weighing::Percent(50)));
}
