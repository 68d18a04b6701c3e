//! Many TCP connects at once, each costing a few system calls and no task: the check that there is most of.
//! One epoll for all of them; what has come about is collected in batches.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Protocol, SockAddr, Socket, Type};

use super::schedule::Ticket;
use crate::health::probe::connect;
use crate::health::probe::words::Failure;
use crate::model::health::Check;

/// Connects under way.
pub struct Connects {
    epoll: Epoll,
    /// By the ticket's slot: a check has at most one.
    flights: Vec<Option<Flight>>,
    /// One entry for each connect that has begun in the last while; one whose flight is over is skipped.
    deadlines: BinaryHeap<Reverse<(Instant, Ticket)>>,
}

struct Flight {
    ticket: Ticket,
    socket: Socket,
    deadline: Instant,
}

/// How a connect ended.
#[derive(Debug)]
pub enum Ended {
    /// Established, and closed by now. The time is the kernel's, from SYN to SYN-ACK.
    Connected(Duration),
    Refused(io::Error),
    TimedOut,
    /// It could not begin.
    Failed(Failure),
}

/// What wakes [`Connects::wait`] beside connects.
const WAKER: u64 = u64::MAX;

impl Connects {
    /// `waker` is a descriptor that becomes readable when somebody wants the waiting to end.
    pub fn new(waker: &impl AsFd) -> Result<Connects> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        epoll.add(waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKER)).context("add to an epoll")?;
        Ok(Connects { epoll, flights: Vec::new(), deadlines: BinaryHeap::new() })
    }

    /// Begins one connect. Its end comes from [`Connects::wait`] or [`Connects::expire`], unless it is known now.
    pub fn start(
        &mut self,
        ticket: Ticket,
        check: &Check,
        address: SocketAddr,
        now: Instant,
    ) -> Option<Ended> {
        let socket = match open(check, address) {
            Ok(socket) => socket,
            Err(failure) => return Some(Ended::Failed(failure)),
        };
        match socket.connect(&SockAddr::from(address)) {
            Ok(()) => return Some(Ended::Connected(round_trip(&socket))),
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) => return Some(Ended::Refused(error)),
        }
        if let Err(errno) = self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLOUT, ticket.to_word())) {
            return Some(Ended::Failed(Failure::io("add to an epoll", &errno.into())));
        }
        let slot = ticket.slot as usize;
        if self.flights.len() <= slot {
            self.flights.resize_with(slot + 1, || None);
        }
        let deadline = now + check.timing.timeout;
        self.flights[slot] = Some(Flight { ticket, socket, deadline });
        self.deadlines.push(Reverse((deadline, ticket)));
        None
    }

    /// Waits until something has come about or `timeout` is over, and says of each connect that has ended how.
    /// Returns whether the waker was readable.
    pub fn wait(&mut self, timeout: Duration, mut ended: impl FnMut(Ticket, Ended)) -> Result<bool> {
        let mut woken = false;
        // Up to the next millisecond: to wake before something is due would be to wake twice.
        let millis = timeout.as_micros().div_ceil(1000);
        let mut timeout = EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX);
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno).context("wait for connections"),
            };
            for event in &events[..count] {
                if event.data() == WAKER {
                    woken = true;
                    continue;
                }
                let ticket = Ticket::from_word(event.data());
                // Closing takes it out of the epoll as well: nobody else has the socket.
                if let Some(flight) = self.land(ticket) {
                    ended(ticket, flight.outcome(event.events()));
                }
            }
            if count < events.len() {
                return Ok(woken);
            }
            timeout = EpollTimeout::ZERO;
        }
    }

    /// Ends what has had its time. To be called after [`Connects::wait`], so that an answer that was there in
    /// time counts however late we come to read it.
    pub fn expire(&mut self, now: Instant, mut ended: impl FnMut(Ticket, Ended)) {
        while let Some(&Reverse((deadline, ticket))) = self.deadlines.peek() {
            if deadline > now && self.is_under_way(ticket, deadline) {
                return;
            }
            self.deadlines.pop();
            if self.is_under_way(ticket, deadline) && self.land(ticket).is_some() {
                ended(ticket, Ended::TimedOut);
            }
        }
    }

    /// Gives up a connect that nobody wants any more.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.land(ticket);
    }

    /// When the first of those under way has had its time.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        while let Some(&Reverse((deadline, ticket))) = self.deadlines.peek() {
            if self.is_under_way(ticket, deadline) {
                return Some(deadline);
            }
            self.deadlines.pop();
        }
        None
    }

    fn is_under_way(&self, ticket: Ticket, deadline: Instant) -> bool {
        let flight = self.flights.get(ticket.slot as usize).and_then(Option::as_ref);
        flight.is_some_and(|flight| flight.ticket == ticket && flight.deadline == deadline)
    }

    fn land(&mut self, ticket: Ticket) -> Option<Flight> {
        self.flights.get_mut(ticket.slot as usize)?.take_if(|flight| flight.ticket == ticket)
    }
}

impl Flight {
    fn outcome(&self, events: EpollFlags) -> Ended {
        if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            let error = match self.socket.take_error() {
                Ok(Some(error)) | Err(error) => error,
                // Closed by the server between its SYN-ACK and our look.
                Ok(None) => return Ended::Connected(round_trip(&self.socket)),
            };
            return Ended::Refused(error);
        }
        Ended::Connected(round_trip(&self.socket))
    }
}

fn open(check: &Check, address: SocketAddr) -> Result<Socket, Failure> {
    let socket = connect::socket(Type::STREAM, Protocol::TCP, check, address)?;
    // No ACK of its own after the SYN-ACK: the reset that follows at once says all, and the server's
    // application is not bothered (tcp_rcv_synsent_state_process, Linux 6.1).
    let _ = socket.set_tcp_quickack(false);
    socket.set_linger(Some(Duration::ZERO)).map_err(|error| Failure::io("set SO_LINGER", &error))?;
    Ok(socket)
}

/// From SYN to SYN-ACK, as the kernel has measured it: our own clock would count the batch as well.
fn round_trip(socket: &Socket) -> Duration {
    Duration::from_micros(tcp_info_rtt(socket).unwrap_or(0).into())
}

/// `tcpi_rtt` of the socket, µs.
fn tcp_info_rtt(socket: &Socket) -> io::Result<u32> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is what `info` has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before, integers throughout; the kernel has written a prefix of it.
    Ok(unsafe { info.assume_init() }.tcpi_rtt)
}
