//! A file on the director whose content is a weight.

use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::words::{Failure, quote};
use super::{Attempt, Success};
use crate::health::Weighing;
use crate::model::health::File;

pub async fn run(file: &File, attempt: &Attempt<'_>) -> Result<Success, Failure> {
    let began = Instant::now();
    let name = file.path.display();
    let mut content = Vec::new();
    let read = async {
        // What is no plain file, a pipe, must not hold a thread.
        let mut options = tokio::fs::OpenOptions::new();
        let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(&file.path).await?;
        opened.take(CONTENT_MAX + 1).read_to_end(&mut content).await
    };
    let doing = format!("read {name}");
    // A file of a server that is gone hangs, and the thread with it; the outcome is known in time all the same.
    attempt.within(&doing, read).await?.map_err(|error| Failure::io(doing, &error))?;
    let wrong = || {
        let words = format!("{name} holds {}, which is no weight (0 to 65535, or 75%)", quote(&content));
        Failure::new(words)
    };
    let (words, weight) = judge(&content).ok_or_else(wrong)?;
    let success = Success::new(words, began.elapsed());
    Ok(Success { weight: Some(weight), ..success })
}

fn judge(content: &[u8]) -> Option<(String, Weighing)> {
    let text = str::from_utf8(content).ok().filter(|text| text.len() as u64 <= CONTENT_MAX)?.trim();
    let weight = match text.strip_suffix('%') {
        Some(share) => Weighing::Percent(share.trim_end().parse().ok()?),
        None => Weighing::Absolute(text.parse().ok()?),
    };
    Some((format!("weight {text}"), weight))
}

/// Longer than any weight.
const CONTENT_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::health::{Probe, Target};

    #[test]
    fn a_file_holds_a_weight_or_a_share_of_it() {
        let rows = [
            ("100\n", Some(Weighing::Absolute(100))),
            ("0", Some(Weighing::Absolute(0))),
            (" 75% \n", Some(Weighing::Percent(75))),
            ("65536", None),
            ("-1", None),
            ("", None),
            ("hello", None),
            ("1 2", None),
        ];
        for (content, weight) in rows {
            assert_eq!(judge(content.as_bytes()).map(|(_, weight)| weight), weight, "{content:?}");
        }
    }

    async fn read(file: &File) -> Result<Success, Failure> {
        let check = super::super::tests::check(Probe::File(file.clone()));
        let target = Target::Direct { address: Ipv4Addr::LOCALHOST.into(), port: 0 };
        let deadline = Instant::now() + check.timing.timeout;
        run(
            file,
            &Attempt { check: &check, address: (Ipv4Addr::LOCALHOST, 0).into(), target: &target, deadline },
        )
        .await
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = File { path: directory.path().join("weight") };
        let name = file.path.display().to_string();
        let words = read(&file).await.unwrap_err().to_string();
        assert_eq!(words, format!("read {name}: no such file or directory"));
        std::fs::write(&file.path, "x".repeat(1000)).unwrap();
        let words = read(&file).await.unwrap_err().to_string();
        assert!(words.ends_with("which is no weight (0 to 65535, or 75%)"), "{words}");
        std::fs::write(&file.path, "42\n").unwrap();
        assert_eq!(read(&file).await.unwrap().weight, Some(Weighing::Absolute(42)));
    }
}
