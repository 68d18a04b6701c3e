//! A client that keeps asking: one short HTTP request after the other, and what became of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::namespace::Namespace;

/// Requests that go on until they are stopped.
pub struct Canary {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Report>,
}

/// What became of them.
#[derive(Debug, Clone)]
pub struct Report {
    pub requests: usize,
    pub failed: usize,
    /// The longest time from one answer to the next.
    pub gap: Duration,
}

impl Canary {
    /// Asks `server` for `/` from this namespace, each time by a new connection.
    pub fn start(client: &Namespace, server: SocketAddr) -> Canary {
        let handle = client.handle();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            setns(&handle, CloneFlags::CLONE_NEWNET).expect("enter the client's namespace");
            let mut report = Report { requests: 0, failed: 0, gap: Duration::ZERO };
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                report.requests += 1;
                match ask(server) {
                    true => {
                        report.gap = report.gap.max(last.elapsed());
                        last = Instant::now();
                    }
                    false => report.failed += 1,
                }
                std::thread::sleep(PAUSE);
            }
            report.gap = report.gap.max(last.elapsed());
            report
        });
        Canary { stop, thread }
    }

    /// Ends them.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the canary does not panic")
    }
}

fn ask(server: SocketAddr) -> bool {
    let attempt = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer.ends_with(b"200"))
    };
    attempt().unwrap_or(false)
}

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(2);
/// A lost SYN would be sent again after a second; a new request is sooner.
const PATIENCE: Duration = Duration::from_millis(40);
