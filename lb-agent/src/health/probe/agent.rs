//! Agent check: a line that an agent on the real server says, with HAProxy's words (HAProxy 2.8 configuration
//! manual, 5.2, `agent-check`).

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::words::{Failure, quote};
use super::{Attempt, Success, connect};
use crate::health::{Order, Weighing};
use crate::model::health::AgentCheck;

pub async fn run(agent: &AgentCheck, attempt: &Attempt<'_>) -> Result<Success, Failure> {
    let (mut stream, took) = connect::tcp(attempt).await?;
    if let Some(send) = &agent.send {
        let sent = attempt.within("send to the agent", stream.write_all(send.as_bytes())).await?;
        sent.map_err(|error| Failure::io("send to the agent", &error))?;
    }
    let doing = "read the agent's line";
    let mut line = Vec::with_capacity(LINE_MAX);
    while !line.contains(&b'\n') && line.len() < LINE_MAX {
        let mut rest = (&mut stream).take((LINE_MAX - line.len()) as u64);
        match attempt.within(doing, rest.read_buf(&mut line)).await? {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(Failure::io(doing, &error)),
        }
    }
    let line = line.split(|&byte| byte == b'\n' || byte == b'\r').next().unwrap_or_default();
    let mut success = judge(line)?;
    success.latency = took;
    Ok(success)
}

/// What the line means. Words it does not know are for others (`maxconn:30`), as long as one is known.
fn judge(line: &[u8]) -> Result<Success, Failure> {
    let text = String::from_utf8_lossy(line);
    // What follows # is the reason of a failure.
    let words = text.split('#').next().unwrap_or_default();
    let (mut known, mut down) = (false, false);
    let mut success = Success::new(format!("agent says {}", quote(line)), Default::default());
    for word in words.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
        known = true;
        match word.to_ascii_lowercase().as_str() {
            "up" => {}
            "ready" => success.order = Some(Order::Ready),
            "drain" => success.order = Some(Order::Drain),
            "down" | "fail" | "failed" | "stopped" | "maint" => down = true,
            word => match word.strip_suffix('%').and_then(|share| share.parse().ok()) {
                Some(share) => success.weight = Some(Weighing::Percent(share)),
                None if word.starts_with("maxconn:") => {}
                None => return Err(Failure::new(format!("agent says {}, which means nothing", quote(line)))),
            },
        }
    }
    match (known, down) {
        (false, _) => Err(Failure::new("agent says nothing")),
        (true, false) => Ok(success),
        (true, true) => {
            let failure = Failure::new(success.words);
            Err(success.order.map_or(failure.clone(), |order| failure.with_order(order)))
        }
    }
}

/// HAProxy's agents send less.
const LINE_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn haproxys_words_mean_what_they_mean_there() {
        use Order::{Drain, Ready};
        let rows: [(&str, bool, Option<u16>, Option<Order>); 14] = [
            ("up", true, None, None),
            ("UP", true, None, None),
            ("ready", true, None, Some(Ready)),
            ("up ready", true, None, Some(Ready)),
            ("75%", true, Some(75), None),
            ("up 75%", true, Some(75), None),
            ("ready,up,120%", true, Some(120), Some(Ready)),
            ("drain", true, None, Some(Drain)),
            ("drain 10%", true, Some(10), Some(Drain)),
            ("maint", false, None, None),
            ("down", false, None, None),
            ("down#disk full", false, None, None),
            ("stopped # by ann", false, None, None),
            ("up maxconn:30", true, None, None),
        ];
        for (line, passed, share, order) in rows {
            match judge(line.as_bytes()) {
                Ok(success) => {
                    assert!(passed, "{line}");
                    assert_eq!(success.weight, share.map(Weighing::Percent), "{line}");
                    assert_eq!(success.order, order, "{line}");
                }
                Err(failure) => {
                    assert!(!passed, "{line}: {failure}");
                    assert_eq!(failure.order(), order, "{line}");
                }
            }
        }
    }

    #[test]
    fn a_line_that_means_nothing_is_a_failure_in_words() {
        let words = |line: &[u8]| judge(line).unwrap_err().to_string();
        assert_eq!(words(b""), "agent says nothing");
        assert_eq!(words(b"#"), "agent says nothing");
        assert_eq!(words(b"hello"), "agent says \"hello\", which means nothing");
        assert_eq!(words(b"99999%"), "agent says \"99999%\", which means nothing");
        assert_eq!(words(b"down#disk full"), "agent says \"down#disk full\"");
    }
}
