//! SMTP (RFC 5321): banner, EHLO, where asked for STARTTLS (RFC 3207) and EHLO again, QUIT.

use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};

use super::tls::{Roots, Tls};
use super::words::{Failure, quote};
use super::{Attempt, Success, connect};
use crate::model::health::Smtp;

#[derive(Debug)]
pub struct Prober {
    helo: Option<String>,
    tls: Option<Tls>,
}

/// A reply: its code, and the text of its lines.
#[derive(Debug, Default)]
struct Reply {
    code: u16,
    lines: Vec<String>,
}

impl Prober {
    pub fn new(smtp: &Smtp, roots: &Roots) -> Result<Prober, Failure> {
        let tls = smtp.starttls.as_ref().map(|tls| Tls::new(tls, None, None, roots)).transpose()?;
        Ok(Prober { helo: smtp.helo.clone(), tls })
    }

    pub fn is_stale(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::is_stale)
    }

    pub async fn run(&self, attempt: &Attempt<'_>) -> Result<Success, Failure> {
        let (stream, took) = connect::tcp(attempt).await?;
        let helo = match (&self.helo, stream.local_addr()) {
            (Some(helo), _) => helo.clone(),
            (None, Ok(own)) if own.is_ipv6() => format!("[IPv6:{}]", own.ip()),
            (None, Ok(own)) => format!("[{}]", own.ip()),
            (None, Err(error)) => return Err(Failure::io("look up the source address", &error)),
        };
        let mut stream = BufReader::new(stream);
        let banner = expect(attempt, &mut stream, "the banner", 220).await?;
        let offers = ask(attempt, &mut stream, &format!("EHLO {helo}"), 250).await?;
        let words = format!("{} {}", banner.code, banner.lines.first().map_or("", String::as_str));
        let Some(tls) = &self.tls else {
            ask(attempt, &mut stream, "QUIT", 221).await?;
            return Ok(Success::new(words.trim_end(), took));
        };
        if !offers.lines.iter().any(|line| line.eq_ignore_ascii_case("STARTTLS")) {
            return Err(Failure::new("the server does not offer STARTTLS"));
        }
        ask(attempt, &mut stream, "STARTTLS", 220).await?;
        // What came with the reply was not protected and is not believed (RFC 3207, 4.2).
        if !stream.buffer().is_empty() {
            return Err(Failure::new("STARTTLS: the server talks on before the handshake"));
        }
        let stream = tls.handshake(attempt, stream.into_inner()).await?;
        let mut stream = BufReader::new(stream);
        ask(attempt, &mut stream, &format!("EHLO {helo}"), 250).await?;
        ask(attempt, &mut stream, "QUIT", 221).await?;
        Ok(Success::new(format!("{words} (STARTTLS)"), took))
    }
}

/// Says a command and reads its reply.
async fn ask<S>(
    attempt: &Attempt<'_>,
    stream: &mut BufReader<S>,
    command: &str,
    code: u16,
) -> Result<Reply, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let verb = command.split(' ').next().unwrap_or(command);
    let line = format!("{command}\r\n");
    let said = async {
        stream.write_all(line.as_bytes()).await?;
        stream.flush().await
    };
    attempt.within(verb, said).await?.map_err(|error| Failure::io(verb, &error))?;
    expect(attempt, stream, verb, code).await
}

/// Reads a reply (RFC 5321, 4.2): lines of three digits, and a hyphen after them if more follow.
async fn expect<S>(
    attempt: &Attempt<'_>,
    stream: &mut BufReader<S>,
    doing: &str,
    code: u16,
) -> Result<Reply, Failure>
where
    S: AsyncRead + Unpin,
{
    let mut reply = Reply::default();
    for _ in 0..LINES_MAX {
        let mut line = Vec::new();
        let mut rest = (&mut *stream).take(LINE_MAX);
        let read = attempt.within(doing, rest.read_until(b'\n', &mut line)).await?;
        read.map_err(|error| Failure::io(doing, &error))?;
        if line.is_empty() {
            return Err(Failure::new(format!("{doing}: the server closed the connection")));
        }
        let not_smtp =
            || Failure::new(format!("{doing}: the server says {}, which is not SMTP", quote(&line)));
        let (found, more, text) = parse(&line).ok_or_else(not_smtp)?;
        if found != code {
            return Err(Failure::new(format!("{doing}: the server says {}, expected {code}", quote(&line))));
        }
        reply.code = found;
        reply.lines.push(text.to_owned());
        if !more {
            return Ok(reply);
        }
    }
    Err(Failure::new(format!("{doing}: the reply has no end")))
}

/// Code, whether another line follows, and text of one line.
fn parse(line: &[u8]) -> Option<(u16, bool, &str)> {
    let line = str::from_utf8(line.strip_suffix(b"\n")?).ok()?.trim_end_matches('\r');
    let (digits, rest) = line.split_at_checked(3)?;
    let code = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()?;
    match rest.as_bytes().first() {
        None | Some(b' ') => Some((code, false, rest.trim())),
        Some(b'-') => Some((code, true, rest[1..].trim())),
        Some(_) => None,
    }
}

/// RFC 5321, 4.5.3.1.5 allows 512 bytes; servers that say more are known.
const LINE_MAX: u64 = 2048;
const LINES_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_code_and_says_whether_more_follows() {
        assert_eq!(parse(b"220 mail.example ESMTP\r\n"), Some((220, false, "mail.example ESMTP")));
        assert_eq!(parse(b"250-SIZE 1000\r\n"), Some((250, true, "SIZE 1000")));
        assert_eq!(parse(b"250\n"), Some((250, false, "")));
        for bad in [&b"25"[..], b"2x0 a\n", b"250_a\n", b"250 a", b"\n", b"+25 a\n", b"250\xff\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
