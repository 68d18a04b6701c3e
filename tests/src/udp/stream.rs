//! A stream of numbered datagrams at a steady rate, and the account of every one of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};

use super::batch::{BATCH, Inbox, message};
use super::datagram::{NUMBERED, Tally, numbered, parse};
use super::{LOOK_UP, UdpServer, connect, prepare_thread};
use crate::namespace::{Namespace, next_number};

/// A stream is over when nothing has arrived for this long after its last datagram.
const QUIET: Duration = Duration::from_millis(300);

/// What to send.
#[derive(Clone, Debug)]
pub struct Stream {
    /// To whom.
    pub to: SocketAddr,
    /// Datagrams per second.
    pub rate: u64,
    /// From how many ports, in turn.
    pub flows: u16,
    /// Whether each datagram is to be answered.
    pub answers: bool,
}

/// A stream being sent; [`RunningStream::finish`] ends it and counts.
pub struct RunningStream {
    run: u64,
    started: Instant,
    stop: Arc<AtomicBool>,
    stop_receiving: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Tally>,
    answers: bool,
}

struct Sent {
    took: Duration,
    refused: u64,
}

/// What became of a stream. Numbers count from 0 in the order of sending.
#[derive(Debug)]
pub struct Report {
    /// How many datagrams were sent.
    pub sent: u64,
    /// How long that took.
    pub took: Duration,
    /// How many arrived at each server, duplicates included.
    pub per_server: BTreeMap<String, u64>,
    /// Numbers that arrived at no server.
    pub lost: Vec<u64>,
    /// Numbers that arrived more than once, at one server or at several.
    pub duplicated: Vec<u64>,
    /// Numbers that arrived and whose answer did not come back (empty if none were wanted).
    pub unanswered: Vec<u64>,
    /// Numbers whose answer came back more than once.
    pub answered_twice: Vec<u64>,
    /// Flows that arrived at more than one server.
    pub split_flows: Vec<u16>,
    /// How often a send met an ICMP error for an earlier datagram, such as port unreachable.
    pub refused: u64,
}

impl Report {
    /// Datagrams per second, on average.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64()
    }

    /// Panics unless every datagram arrived once, and was answered once if that was wanted.
    #[track_caller]
    pub fn assert_complete(&self) {
        for (numbers, fate) in [
            (&self.lost, "arrived nowhere"),
            (&self.duplicated, "arrived more than once"),
            (&self.unanswered, "arrived and had no answer back"),
            (&self.answered_twice, "had more than one answer"),
        ] {
            let first: Vec<_> = numbers.iter().take(10).collect();
            assert!(numbers.is_empty(), "{} of {} datagrams {fate}: {first:?} …", numbers.len(), self.sent);
        }
    }
}

impl Stream {
    /// Begins sending from `client`.
    #[track_caller]
    pub fn start(self, client: &Namespace) -> RunningStream {
        let answers = self.answers;
        let run = u64::from(std::process::id()) << 32 | u64::from(next_number());
        let sockets: Arc<Vec<UdpSocket>> = Arc::new(client.run(|| {
            (0..self.flows)
                .map(|_| {
                    connect(self.to).unwrap_or_else(|error| panic!("open a socket to {}: {error}", self.to))
                })
                .collect()
        }));
        let (stop, stop_receiving) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (sent, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let receiver = {
            let (sockets, stop, answered) = (sockets.clone(), stop_receiving.clone(), answered.clone());
            std::thread::spawn(move || receive_answers(&sockets, run, &stop, &answered))
        };
        let sender = {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::spawn(move || send(&self, &sockets, run, &stop, &sent))
        };
        let started = Instant::now();
        RunningStream { run, started, stop, stop_receiving, sent, answered, sender, receiver, answers }
    }

    /// Sends for `duration` and counts.
    #[track_caller]
    pub fn send_for(self, duration: Duration, client: &Namespace, servers: &[UdpServer]) -> Report {
        let running = self.start(client);
        std::thread::sleep(duration);
        running.finish(servers)
    }
}

impl RunningStream {
    /// How many datagrams have been sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many answers have come back so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// How long it has been running.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Stops sending, waits until nothing more arrives, and accounts for every datagram.
    #[track_caller]
    pub fn finish(self, servers: &[UdpServer]) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let Sent { took, refused } = self.sender.join().expect("the sender ends well");
        let arrived = || {
            let at_servers = servers.iter().map(|server| server.tally(self.run).total).sum::<u64>();
            at_servers + self.answered.load(Ordering::Relaxed)
        };
        let mut before = arrived();
        loop {
            std::thread::sleep(QUIET);
            let now = arrived();
            if now == before {
                break;
            }
            before = now;
        }
        self.stop_receiving.store(true, Ordering::Relaxed);
        let answers = self.receiver.join().expect("the receiver ends well");
        let sent = self.sent.load(Ordering::Relaxed);
        let tallies: Vec<_> =
            servers.iter().map(|server| (server.name.clone(), server.tally(self.run))).collect();
        let report = count(sent, &tallies, self.answers.then_some(&answers));
        Report { took, refused, ..report }
    }
}

/// Accounts for the numbers 0 to `sent`, given what arrived at each server and as answers, if wanted.
fn count(sent: u64, servers: &[(String, Tally)], answers: Option<&Tally>) -> Report {
    let arrivals = |number: u64| servers.iter().map(|(_, tally)| tally.times(number)).sum::<u32>();
    let answered = |number: u64| answers.map_or(1, |tally| tally.times(number));
    let all = |wanted: &dyn Fn(u64) -> bool| (0..sent).filter(|number| wanted(*number)).collect::<Vec<u64>>();
    let mut servers_of_flow: BTreeMap<u16, usize> = BTreeMap::new();
    for flow in servers.iter().flat_map(|(_, tally)| tally.flows.keys()) {
        *servers_of_flow.entry(*flow).or_default() += 1;
    }
    Report {
        sent,
        took: Duration::ZERO,
        refused: 0,
        per_server: servers.iter().map(|(name, tally)| (name.clone(), tally.total)).collect(),
        lost: all(&|number| arrivals(number) == 0),
        duplicated: all(&|number| arrivals(number) > 1),
        unanswered: all(&|number| arrivals(number) > 0 && answered(number) == 0),
        answered_twice: all(&|number| answered(number) > 1),
        split_flows: servers_of_flow.iter().filter(|(_, count)| **count > 1).map(|(flow, _)| *flow).collect(),
    }
}

/// Sends numbered datagrams at the stream's rate until told to stop.
fn send(stream: &Stream, sockets: &[UdpSocket], run: u64, stop: &AtomicBool, counter: &AtomicU64) -> Sent {
    prepare_thread();
    let mut datagrams = [[0u8; NUMBERED]; BATCH];
    let (mut sent, mut refused, started) = (0u64, 0u64, Instant::now());
    for socket in (0..sockets.len()).cycle() {
        let due = loop {
            if stop.load(Ordering::Relaxed) {
                return Sent { took: started.elapsed(), refused };
            }
            let due = ((started.elapsed().as_secs_f64() * stream.rate as f64) as u64).saturating_sub(sent);
            if due > 0 {
                break due;
            }
            std::thread::sleep(Duration::from_micros(300));
        };
        let batch = due.min(BATCH as u64) as usize;
        for (number, datagram) in (sent..).zip(&mut datagrams[..batch]) {
            *datagram = numbered(run, number, socket as u16, stream.answers);
        }
        let mut pieces = datagrams
            .each_mut()
            .map(|datagram| libc::iovec { iov_base: datagram.as_mut_ptr().cast(), iov_len: NUMBERED });
        let mut messages = pieces.each_mut().map(|piece| message(piece, None));
        let mut done = 0;
        while done < batch && !stop.load(Ordering::Relaxed) {
            // SAFETY: each message points to one piece and each piece to one datagram, all alive here; the
            // range `done..batch` is inside the arrays.
            let count = unsafe {
                let first = messages.as_mut_ptr().add(done);
                libc::sendmmsg(sockets[socket].as_raw_fd(), first, (batch - done) as u32, 0)
            };
            match count {
                0.. => done += count as usize,
                // The kernel reports an ICMP error for an earlier datagram once; this one was not sent yet.
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => refused += 1,
            }
        }
        sent += done as u64;
        counter.store(sent, Ordering::Relaxed);
    }
    unreachable!("a stream has at least one flow")
}

/// Takes in answers on all sockets until told to stop.
fn receive_answers(sockets: &[UdpSocket], run: u64, stop: &AtomicBool, counter: &AtomicU64) -> Tally {
    prepare_thread();
    let mut tally = Tally::default();
    let mut inbox = Inbox::new();
    while !stop.load(Ordering::Relaxed) {
        let mut polled: Vec<PollFd> =
            sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut polled, LOOK_UP.as_millis() as u16).is_err() {
            continue;
        }
        for (socket, polled) in sockets.iter().zip(polled) {
            if !polled.any().unwrap_or(false) {
                continue;
            }
            let count = inbox.receive(socket, libc::MSG_DONTWAIT).unwrap_or(0);
            for datagram in (0..count).map(|index| inbox.datagram(index)) {
                if let Some((of_run, number, flow, _)) = parse(datagram)
                    && of_run == run
                {
                    tally.record(number, flow);
                }
            }
        }
        counter.store(tally.total, Ordering::Relaxed);
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(datagrams: &[(u64, u16)]) -> Tally {
        let mut tally = Tally::default();
        for (number, flow) in datagrams {
            tally.record(*number, *flow);
        }
        tally
    }

    #[test]
    fn every_number_is_accounted_for_once() {
        let a = tally(&[(0, 0), (1, 1), (4, 0), (4, 0)]);
        let b = tally(&[(1, 1), (2, 2)]);
        let answers = tally(&[(0, 0), (1, 1), (1, 1), (4, 0)]);
        let report = count(6, &[("a".into(), a), ("b".into(), b)], Some(&answers));
        assert_eq!(report.lost, [3, 5]);
        assert_eq!(report.duplicated, [1, 4], "twice at one server, once at each of two");
        assert_eq!(report.unanswered, [2], "a lost one cannot be answered");
        assert_eq!(report.answered_twice, [1]);
        assert_eq!(report.split_flows, [1]);
        assert_eq!(report.per_server, BTreeMap::from([("a".into(), 4), ("b".into(), 2)]));
    }

    #[test]
    fn without_wanted_answers_none_is_missing() {
        let report = count(1, &[("a".into(), tally(&[(0, 0)]))], None);
        assert_eq!(report.unanswered, [0u64; 0]);
    }
}
