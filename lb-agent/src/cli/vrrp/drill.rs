//! `vrrp drill`: a hand-over while connections from here run through the VIP, and what became of them. Run where
//! clients are.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::control::client::Client;
use crate::control::vrrp::HandoverView;

/// What became of a drill.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    handover: HandoverView,
    /// Connections open when it began: survivors, resets and forgotten ones together.
    flows: usize,
    /// Those that the server answered after the hand-over.
    survivors: usize,
    /// Those that were reset or closed.
    resets: usize,
    /// Those that nobody answers: their client would wait for ever.
    forgotten: usize,
    /// New connections tried, and those that failed.
    attempts: usize,
    failures: usize,
    /// The longest time without a new connection, milliseconds.
    gap_ms: u64,
}

impl Report {
    /// For the operator.
    pub fn lines(&self) -> String {
        let Report { flows, survivors, resets, forgotten, attempts, failures, gap_ms, .. } = self;
        format!(
            "{}open connections: {flows}, of which {survivors} survived, {resets} were reset or closed, {forgotten} \
             forgotten\nnew connections:  {attempts} tried, {failures} failed, {gap_ms} ms the longest time without \
             one\n",
            super::handover(&self.handover)
        )
    }
}

/// Holds canary connections, tries new ones, hands over meanwhile.
pub async fn run(client: &Client, name: &str, canaries: &[SocketAddr], flows: usize) -> Result<Report> {
    let mut held = Vec::new();
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    for canary in canaries {
        for _ in 0..flows {
            let connected = tokio::time::timeout(ATTEMPT, TcpStream::connect(canary)).await;
            let connected = connected.with_context(|| format!("{canary}: no answer within {ATTEMPT:?}"))?;
            let connected = connected.with_context(|| format!("connect to {canary}"))?;
            // A silent connection learns nothing of what became of it: the kernel asks for us.
            socket2::SockRef::from(&connected).set_tcp_keepalive(&keepalive)?;
            held.push(connected);
        }
    }
    let (stop, stopped) = watch::channel(false);
    let tries = tokio::spawn(attempts(canaries.to_vec(), stopped));
    let handover = client.hand_over(name).await;
    let fates = if handover.is_ok() { fates(&held).await } else { Vec::new() };
    stop.send_replace(true);
    let Attempts { attempts, failures, gap } = tries.await?;
    let count = |fate: Fate| fates.iter().filter(|other| **other == fate).count();
    Ok(Report {
        handover: handover?,
        flows: held.len(),
        survivors: count(Fate::Survived),
        resets: count(Fate::Reset),
        forgotten: count(Fate::Forgotten),
        attempts,
        failures,
        gap_ms: gap.as_millis() as u64,
    })
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Survived,
    Reset,
    /// Nothing was heard of it since; final when the wait is over.
    Forgotten,
}

/// Looks on until each connection's fate is known, or was not for [`AFTER`].
async fn fates(held: &[TcpStream]) -> Vec<Fate> {
    let handed = Instant::now();
    loop {
        let look = |stream: &TcpStream| fate(unread(stream), last_heard(stream), handed.elapsed());
        let fates: Vec<Fate> = held.iter().map(look).collect();
        let enough = handed.elapsed() >= LEAST && !fates.contains(&Fate::Forgotten);
        if enough || handed.elapsed() >= AFTER {
            return fates;
        }
        tokio::time::sleep(BETWEEN).await;
    }
}

/// `unread`: what a read says, without waiting. `heard`: how long ago the other end last acknowledged anything.
fn fate(unread: io::Result<usize>, heard: io::Result<Duration>, since: Duration) -> Fate {
    match (unread, heard) {
        // It ended, or failed: keepalives that nobody answers fail by a timeout, long after we have looked.
        (Ok(0), _) => Fate::Reset,
        (Err(error), _) if error.kind() != io::ErrorKind::WouldBlock => Fate::Reset,
        (_, Ok(heard)) if heard < since => Fate::Survived,
        _ => Fate::Forgotten,
    }
}

/// Peeks, so that a server that says something is asked again with the same result.
fn unread(stream: &TcpStream) -> io::Result<usize> {
    socket2::SockRef::from(stream).peek(&mut [std::mem::MaybeUninit::uninit()])
}

/// How long ago the other end last acknowledged anything, a keepalive too (`tcpi_last_ack_recv`, milliseconds).
fn last_heard(stream: &TcpStream) -> io::Result<Duration> {
    // SAFETY: a structure of numbers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into the structure, which lives during the call.
    let result = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

struct Attempts {
    attempts: usize,
    failures: usize,
    gap: Duration,
}

async fn attempts(canaries: Vec<SocketAddr>, stopped: watch::Receiver<bool>) -> Attempts {
    let (mut attempts, mut failures, mut gap) = (0, 0, Duration::ZERO);
    let mut last = Instant::now();
    while !*stopped.borrow() {
        for canary in &canaries {
            attempts += 1;
            match tokio::time::timeout(ATTEMPT, TcpStream::connect(canary)).await {
                Ok(Ok(_)) => {
                    gap = gap.max(last.elapsed());
                    last = Instant::now();
                }
                _ => failures += 1,
            }
        }
        tokio::time::sleep(BETWEEN).await;
    }
    // Also one that has not ended.
    Attempts { attempts, failures, gap: gap.max(last.elapsed()) }
}

/// One attempt to connect.
const ATTEMPT: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_millis(20);
/// How often an open canary asks whether its connection is whole: the least that TCP_KEEPIDLE knows.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// How long a drill looks on after the hand-over, at least for what new connections meet, ...
const LEAST: Duration = Duration::from_secs(2);
/// ... and at most for connections that nobody answers.
const AFTER: Duration = Duration::from_secs(6);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_survived_if_it_was_answered_after_the_hand_over() {
        let ms = Duration::from_millis;
        let quiet = || Err(io::ErrorKind::WouldBlock.into());
        assert_eq!(fate(quiet(), Ok(ms(300)), ms(1500)), Fate::Survived);
        assert_eq!(fate(quiet(), Ok(ms(2100)), ms(1500)), Fate::Forgotten, "the answer is older");
        assert_eq!(fate(Ok(1), Ok(ms(3)), ms(1500)), Fate::Survived, "the server said something");
        assert_eq!(fate(Ok(0), Ok(ms(3)), ms(1500)), Fate::Reset, "closed");
        assert_eq!(fate(Err(io::ErrorKind::ConnectionReset.into()), Ok(ms(3)), ms(1500)), Fate::Reset);
    }

    #[test]
    fn the_report_says_what_became_of_all() {
        let handover = HandoverView { instance: "edge".into(), to: [10, 0, 0, 2].into(), took_ms: 3 };
        let report = Report {
            handover,
            flows: 10,
            survivors: 7,
            resets: 2,
            forgotten: 1,
            attempts: 96,
            failures: 4,
            gap_ms: 31,
        };
        let expected = "\
edge: 10.0.0.2 is master, 3 ms after our goodbye; served here until then
open connections: 10, of which 7 survived, 2 were reset or closed, 1 forgotten
new connections:  96 tried, 4 failed, 31 ms the longest time without one
";
        assert_eq!(report.lines(), expected);
    }

    #[tokio::test]
    async fn a_living_connection_was_heard_lately() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert!(last_heard(&stream).unwrap() < Duration::from_secs(30));
        assert_eq!(unread(&stream).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(server);
        stream.readable().await.unwrap();
        assert_eq!(unread(&stream).unwrap(), 0);
    }
}
