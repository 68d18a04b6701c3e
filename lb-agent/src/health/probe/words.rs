//! How outcomes are told: in the words an operator would use, without numbers of errors.

use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

use super::Order;

/// Why a probe did not pass: `connect to 10.0.0.12:80: connection refused`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    words: String,
    order: Option<Order>,
}

impl Failure {
    pub fn new(words: impl Into<String>) -> Failure {
        Failure { words: words.into(), order: None }
    }

    /// The failure of what was being done.
    pub fn io(doing: impl fmt::Display, error: &io::Error) -> Failure {
        Failure::new(format!("{doing}: {}", of_error(error)))
    }

    /// A server that calls itself down may ask for more.
    pub fn with_order(mut self, order: Order) -> Failure {
        self.order = Some(order);
        self
    }

    pub fn order(&self) -> Option<Order> {
        self.order
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// `connection refused`, where the standard library says `Connection refused (os error 111)`.
pub fn of_error(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => of_errno(Errno::from_raw(number)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
        None => error.to_string(),
    }
}

pub fn of_errno(errno: Errno) -> String {
    let words = errno.desc();
    let mut letters = words.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// `2 s`, `1.5 s`, `250 ms`.
pub fn brief(time: Duration) -> String {
    match time.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        millis if millis % 1000 == 0 => format!("{} s", millis / 1000),
        _ => format!("{} s", time.as_millis() as f64 / 1000.0),
    }
}

/// Bytes of a server or a program as they can stand in a message: one line, not long, nothing that a terminal
/// would take for a command.
pub fn quote(bytes: &[u8]) -> String {
    let cut = bytes.len() > QUOTED_MAX;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(QUOTED_MAX)]);
    let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut { format!("\"{text}…\"") } else { format!("\"{text}\"") }
}

const QUOTED_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_without_their_numbers() {
        let rows = [
            (Errno::ECONNREFUSED, "connection refused"),
            (Errno::EHOSTUNREACH, "no route to host"),
            (Errno::EADDRNOTAVAIL, "cannot assign requested address"),
        ];
        for (errno, words) in rows {
            assert_eq!(of_error(&io::Error::from_raw_os_error(errno as i32)), words);
        }
        let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(of_error(&closed), "the server closed the connection");
    }

    #[test]
    fn times_are_brief() {
        let rows = [(2000, "2 s"), (1500, "1.5 s"), (250, "250 ms"), (60_000, "60 s"), (0, "0 ms")];
        for (millis, words) in rows {
            assert_eq!(brief(Duration::from_millis(millis)), words);
        }
    }

    #[test]
    fn what_a_server_says_cannot_reach_the_terminal() {
        assert_eq!(quote(b"554 go away\r\n"), "\"554 go away\"");
        assert_eq!(quote(b"a\x1b[2Jb\xff"), "\"a [2Jb\u{fffd}\"");
        assert_eq!(quote(&[b'x'; 300]), format!("\"{}…\"", "x".repeat(100)));
    }
}
