//! UDP servers that say who they are, and streams of numbered datagrams of which every single one is
//! accounted for: where it arrived, how often, and whether its answer came back.
//!
//! A numbered datagram is 19 bytes, integers big-endian: run (8), number (8), flow (2), answer wanted (1).
//! Its answer repeats the 19 bytes and appends the server's name. Anything shorter is a question who is there
//! and is answered with the name alone.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::{Namespace, next_number};

/// Length of a numbered datagram, in bytes.
const NUMBERED: usize = 19;
/// How many datagrams one system call moves. Well below the 256 frames a veth queue holds for XDP, so that
/// the laboratory's own queues do not overflow.
const BATCH: usize = 32;
/// How often a receiving thread looks whether it is to end.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Room for about 40,000 small datagrams: receivers may be off the CPU for most of a second at 50,000 a second.
const RECEIVE_BUFFER: usize = 32 << 20;
/// A stream is over when nothing has arrived for this long after its last datagram.
const QUIET: Duration = Duration::from_millis(300);

/// A server on some UDP ports of a namespace, both families, every address. It answers from the address that
/// was asked, as DR requires. It ends when this is dropped.
pub struct UdpServer {
    name: String,
    stop: Arc<AtomicBool>,
    received: Arc<Mutex<HashMap<u64, Tally>>>,
    threads: Vec<JoinHandle<()>>,
}

/// What arrived of one run at one place.
#[derive(Clone, Default)]
struct Tally {
    /// How often each number came.
    times: Vec<u8>,
    /// How many datagrams of each flow came.
    flows: BTreeMap<u16, u64>,
    total: u64,
}

impl Tally {
    fn record(&mut self, number: u64, flow: u16) {
        let index = number as usize;
        if self.times.len() <= index {
            self.times.resize((index + 1).next_power_of_two(), 0);
        }
        self.times[index] = self.times[index].saturating_add(1);
        *self.flows.entry(flow).or_default() += 1;
        self.total += 1;
    }

    fn times(&self, number: u64) -> u32 {
        self.times.get(number as usize).copied().unwrap_or(0).into()
    }
}

impl UdpServer {
    /// Starts it; it receives when this returns. Panics when a port is taken.
    #[track_caller]
    pub fn start(namespace: &Namespace, name: &str, ports: &[u16]) -> UdpServer {
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(Mutex::new(HashMap::new()));
        let wildcards = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = ports.iter().flat_map(|port| wildcards.map(|any| SocketAddr::new(any, *port)));
        let threads = addresses.map(|address| {
            let socket = namespace
                .run(|| listen(address))
                .unwrap_or_else(|error| panic!("listen on {address} in {}: {error}", namespace.name()));
            let (name, stop, received) = (name.to_owned(), stop.clone(), received.clone());
            std::thread::spawn(move || serve(&socket, &name, &stop, &received))
        });
        let threads = threads.collect();
        UdpServer { name: name.to_owned(), stop, received, threads }
    }

    /// The name it answers with.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn tally(&self, run: u64) -> Tally {
        self.received.lock().expect("no server thread panics").get(&run).cloned().unwrap_or_default()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Asks who is there, from a port of its own; the answer must come from the address that was asked.
pub fn ask(client: &Namespace, server: SocketAddr) -> Result<String, String> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let exchange = || -> io::Result<String> {
        let socket = connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"who")?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    client.run(exchange).map_err(|error| format!("ask {server} who it is: {error}"))
}

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
    hurry();
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
    hurry();
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

/// Receives, records and answers until told to stop.
fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool, received: &Mutex<HashMap<u64, Tally>>) {
    hurry();
    let mut inbox = Inbox::new();
    while !stop.load(Ordering::Relaxed) {
        // The socket has a timeout, so that this comes back to look at `stop`.
        let Ok(count) = inbox.receive(socket, libc::MSG_WAITFORONE) else { continue };
        let mut answers = 0;
        {
            let mut received = received.lock().expect("no server thread panics");
            for index in 0..count {
                let head = match parse(inbox.datagram(index)) {
                    Some((run, number, flow, wanted)) => {
                        received.entry(run).or_default().record(number, flow);
                        if !wanted {
                            continue;
                        }
                        NUMBERED
                    }
                    None => 0,
                };
                inbox.prepare_answer(index, answers, head, name);
                answers += 1;
            }
        }
        inbox.send_answers(socket, answers);
    }
}

/// Room for a batch of datagrams with the address each came from and the address it came to.
struct Inbox {
    datagrams: Vec<[u8; 256]>,
    lengths: [usize; BATCH],
    senders: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    answers: [Answer; BATCH],
}

/// Room for one IP_PKTINFO or IPV6_PKTINFO message; aligned as `cmsghdr` needs it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    bytes: [u8; 64],
    length: usize,
}

/// Which datagram is to be answered, and how many bytes of its room are the answer.
#[derive(Clone, Copy, Default)]
struct Answer {
    index: usize,
    length: usize,
}

impl Inbox {
    fn new() -> Inbox {
        // SAFETY: sockaddr_storage is plain bytes, for which zeros are a value.
        let nobody: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        Inbox {
            datagrams: vec![[0; 256]; BATCH],
            lengths: [0; BATCH],
            senders: vec![nobody; BATCH],
            controls: vec![Control { bytes: [0; 64], length: 0 }; BATCH],
            answers: [Answer::default(); BATCH],
        }
    }

    fn datagram(&self, index: usize) -> &[u8] {
        &self.datagrams[index][..self.lengths[index]]
    }

    /// Receives up to a batch; waits for the first as the socket and `flags` say.
    fn receive(&mut self, socket: &UdpSocket, flags: i32) -> io::Result<usize> {
        let mut pieces = self.pieces(128);
        let mut messages: Vec<libc::mmsghdr> = (0..BATCH)
            .map(|index| {
                let control = &mut self.controls[index];
                control.length = control.bytes.len();
                message(&mut pieces[index], Some((&mut self.senders[index], control)))
            })
            .collect();
        // SAFETY: every message points into `pieces` and `self`, which outlive the call, with true lengths.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for (index, message) in messages[..count as usize].iter().enumerate() {
            self.lengths[index] = message.msg_len as usize;
            self.controls[index].length = message.msg_hdr.msg_controllen;
        }
        Ok(count as usize)
    }

    /// Turns datagram `index` into the `nth` answer: its first `head` bytes and the name, sent from the
    /// address it came to. The interface is left open, for an answer may leave by another one.
    fn prepare_answer(&mut self, index: usize, nth: usize, head: usize, name: &str) {
        let name = &name.as_bytes()[..name.len().min(128)];
        self.datagrams[index][head..head + name.len()].copy_from_slice(name);
        self.answers[nth] = Answer { index, length: head + name.len() };
        let control = &mut self.controls[index];
        if control.length < size_of::<libc::cmsghdr>() {
            return;
        }
        // SAFETY: the kernel wrote one whole control message into the aligned buffer, and pktinfo structs are
        // plain numbers that may be read and written in place.
        unsafe {
            let header = control.bytes.as_mut_ptr().cast::<libc::cmsghdr>();
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    (*data.cast::<libc::in_pktinfo>()).ipi_ifindex = 0;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    (*data.cast::<libc::in6_pktinfo>()).ipi6_ifindex = 0;
                }
                _ => control.length = 0,
            }
        }
    }

    /// Sends the first `count` prepared answers. One that cannot be sent is dropped, as a server would.
    fn send_answers(&mut self, socket: &UdpSocket, count: usize) {
        let lengths = self.answers;
        let mut pieces = self.pieces(0);
        let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(count);
        for Answer { index, length } in lengths[..count].iter().copied() {
            pieces[index].iov_len = length;
            let control = &mut self.controls[index];
            messages.push(message(&mut pieces[index], Some((&mut self.senders[index], control))));
        }
        let mut done = 0;
        while done < count {
            // SAFETY: as in `receive`; the range `done..count` is inside the messages.
            let sent = unsafe {
                let first = messages.as_mut_ptr().add(done);
                libc::sendmmsg(socket.as_raw_fd(), first, (count - done) as u32, 0)
            };
            done += if sent > 0 { sent as usize } else { 1 };
        }
    }

    /// One piece for each datagram's room, all of the same length.
    fn pieces(&mut self, length: usize) -> Vec<libc::iovec> {
        let rooms = self.datagrams.iter_mut();
        rooms.map(|room| libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: length }).collect()
    }
}

/// A message of one piece, with an address and control data unless the socket is connected.
fn message(
    piece: &mut libc::iovec,
    remote: Option<(&mut libc::sockaddr_storage, &mut Control)>,
) -> libc::mmsghdr {
    // SAFETY: mmsghdr is numbers and pointers, for which zeros are a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = piece;
    message.msg_hdr.msg_iovlen = 1;
    if let Some((address, control)) = remote {
        message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        message.msg_hdr.msg_namelen = match i32::from(address.ss_family) {
            libc::AF_INET => size_of::<libc::sockaddr_in>() as u32,
            libc::AF_INET6 => size_of::<libc::sockaddr_in6>() as u32,
            _ => size_of::<libc::sockaddr_storage>() as u32,
        };
        message.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = control.length;
    }
    message
}

fn numbered(run: u64, number: u64, flow: u16, answer: bool) -> [u8; NUMBERED] {
    let mut datagram = [0; NUMBERED];
    datagram[..8].copy_from_slice(&run.to_be_bytes());
    datagram[8..16].copy_from_slice(&number.to_be_bytes());
    datagram[16..18].copy_from_slice(&flow.to_be_bytes());
    datagram[18] = answer.into();
    datagram
}

/// Run, number, flow and whether an answer is wanted; `None` for anything that is not a numbered datagram.
fn parse(datagram: &[u8]) -> Option<(u64, u64, u16, bool)> {
    let (head, _) = datagram.split_first_chunk::<NUMBERED>()?;
    let word = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    // Numbers index a table: one that no stream of ours can reach is not ours.
    (word(8) < 1 << 32).then(|| (word(0), word(8), u16::from_be_bytes([head[16], head[17]]), head[18] != 0))
}

/// Puts the calling thread before the ordinary work of the machine: a stream is to keep its rate beside a
/// compiler. Without the right to do so the rate is as it comes.
fn hurry() {
    const NICE: i32 = -15;
    // SAFETY: no memory is involved; 0 means the calling thread (Linux, setpriority(2), NOTES).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// A server's socket: tells to which address each datagram came, and wakes now and then.
fn listen(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    let (level, option) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
        }
    };
    set_option(&socket, level, option, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER as i32)?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A client's socket: hears answers from the address it sends to and from nobody else.
fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER as i32)?;
    socket.connect(&server.into())?;
    Ok(socket.into())
}

fn set_option(socket: &Socket, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of(value)` bytes from a live i32.
    let result = unsafe {
        let pointer = std::ptr::from_ref(&value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, option, pointer, size_of::<i32>() as u32)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

    #[test]
    fn a_datagram_reads_back_as_written_and_a_short_one_is_a_question() {
        let datagram = numbered(7, 8, 9, true);
        assert_eq!(parse(&datagram), Some((7, 8, 9, true)));
        assert_eq!(parse(&datagram[..NUMBERED - 1]), None);
        assert_eq!(parse(&numbered(7, 1 << 32, 9, true)), None);
    }
}
