//! Clients that are there, and the server that answers them: connections one after another, and connections that last.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_tests::Namespace;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Connections that one address makes at a time.
const WORKERS: usize = 4;
/// How long a connection is waited for: four times the first repetition of a lost SYN would allow.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is asked, and answered.
const MESSAGE: [u8; 64] = [7; 64];
/// How often a lasting connection says something.
const NOW_AND_THEN: Duration = Duration::from_millis(300);

/// Keeps this thread on a core, where there are two at least: the flood has the other one.
pub fn stay_on(core: usize) {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
        let mut set = CpuSet::new();
        // A core that this process may not use: then wherever the kernel likes.
        let _ = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    }
}

/// Answers with what it is told, on these ports, until it is dropped.
pub struct Server {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(namespace: &Namespace, ports: std::ops::Range<u16>) -> Result<Self> {
        let listen = |port: u16| -> io::Result<std::net::TcpListener> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        };
        let listeners = namespace.run(|| ports.map(listen).collect::<io::Result<Vec<_>>>());
        let listeners = listeners.context("listen at the real server")?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            stay_on(0);
            runtime.block_on(async {
                for listener in listeners {
                    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                    tokio::spawn(accept(listener));
                }
                let _ = stopped.await;
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let mut bytes = [0; MESSAGE.len()];
            while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                if stream.write_all(&bytes[..n]).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// What clients saw.
#[derive(Default, Debug)]
pub struct Seen {
    /// From before the connection to the answer, sorted.
    pub latencies: Vec<Duration>,
    /// Why connections were not served.
    pub failures: Vec<String>,
}

impl Seen {
    /// The latency below which this share of the connections lies.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}

/// Connects, asks and goes, again and again for `time`, from an address that nobody used before: no connection meets
/// the remains of another one.
pub fn connect_for(namespace: &Namespace, from: IpAddr, to: SocketAddr, time: Duration) -> Seen {
    let mut seen = Seen::default();
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| {
                    namespace.run(|| {
                        stay_on(0);
                        let mut outcomes = Vec::new();
                        while Instant::now() < end {
                            let began = Instant::now();
                            outcomes.push(ask(from, to).map(|()| began.elapsed()));
                        }
                        outcomes
                    })
                })
            })
            .collect();
        for worker in workers {
            for outcome in worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                match outcome {
                    Ok(latency) => seen.latencies.push(latency),
                    Err(error) => seen.failures.push(error.to_string()),
                }
            }
        }
    });
    seen.latencies.sort_unstable();
    seen
}

fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    // The port is chosen by destination when it connects, not now.
    // SAFETY: an option of four bytes of a live socket.
    unsafe {
        let on = 1i32;
        let option = (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
        libc::setsockopt(fd, option.0, option.1, (&raw const on).cast(), size_of::<i32>() as u32);
    }
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn ask(from: IpAddr, to: SocketAddr) -> io::Result<()> {
    exchange(&mut connect(from, to)?, &MESSAGE)
}

fn exchange(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    stream.write_all(message)?;
    let mut answer = [0; MESSAGE.len()];
    stream.read_exact(&mut answer[..message.len()])
}

/// Connections that last, and say something now and then.
pub struct Lasting {
    streams: Vec<TcpStream>,
    /// Why some were lost.
    pub lost: Vec<String>,
}

impl Lasting {
    pub fn open(namespace: &Namespace, from: IpAddr, to: SocketAddr, wanted: usize) -> Result<Self> {
        let streams =
            namespace.run(|| (0..wanted).map(|_| connect(from, to)).collect::<io::Result<Vec<_>>>());
        let mut this = Self { streams: streams.context("open lasting connections")?, lost: Vec::new() };
        // Each is established at the director, also where its first data are the cookie's proof.
        this.say_something();
        anyhow::ensure!(
            this.lost.is_empty(),
            "connections were lost before there was a flood: {:?}",
            this.lost
        );
        Ok(this)
    }

    /// A byte and its answer over each; those that fail are lost.
    fn say_something(&mut self) {
        let lost = &mut self.lost;
        self.streams.retain_mut(|stream| match exchange(stream, &MESSAGE[..1]) {
            Ok(()) => true,
            Err(error) => {
                lost.push(error.to_string());
                false
            }
        });
    }

    /// Says something now and then until told to stop, and once more.
    pub fn last_until(&mut self, stop: &AtomicBool) {
        stay_on(0);
        while !stop.load(Relaxed) {
            self.say_something();
            std::thread::sleep(NOW_AND_THEN);
        }
        self.say_something();
    }
}
