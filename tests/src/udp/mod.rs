//! UDP servers that say who they are, and streams of numbered datagrams of which every single one is
//! accounted for: where it arrived, how often, and whether its answer came back.

mod batch;
mod datagram;
mod stream;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;
use batch::Inbox;
use datagram::{NUMBERED, Tally, parse};
pub use stream::{Report, RunningStream, Stream};

/// How often a receiving thread looks whether it is to end.
const LOOK_UP: Duration = Duration::from_millis(50);
/// Room for about 160,000 small datagrams: receivers may be off the CPU for seconds at 50,000 a second.
const RECEIVE_BUFFER: usize = 128 << 20;

/// A server on some UDP ports of a namespace, both families, every address. It answers from the address that
/// was asked, as DR requires. It ends when this is dropped.
pub struct UdpServer {
    name: String,
    stop: Arc<AtomicBool>,
    received: Arc<Mutex<HashMap<u64, Tally>>>,
    threads: Vec<JoinHandle<()>>,
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

/// Receives, records and answers until told to stop.
fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool, received: &Mutex<HashMap<u64, Tally>>) {
    prepare_thread();
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

/// Prepares the calling thread for a stream: a little before the ordinary work of the machine, so that it keeps its
/// rate beside a compiler, and on one CPU with all other streaming threads. A frame that crosses a veth pair is
/// taken up on the CPU that sent it; with senders on several, a ring of 256 frames waits for a CPU that may not look
/// before its next tick, and overflows. Without the right to any of this the rate is as it comes.
fn prepare_thread() {
    const NICE: i32 = -5;
    // SAFETY: no memory is involved; 0 means the calling thread (Linux, setpriority(2), NOTES).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    let myself = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(myself) else { return };
    if let Some(last) = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)) {
        let mut one = CpuSet::new();
        let _ = one.set(last).and_then(|()| sched_setaffinity(myself, &one));
    }
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
