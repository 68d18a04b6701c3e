//! Clients that go on while something happens, and who answered them when.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_tests::{Namespace, wait};

use crate::site::SOON;

/// Clients that connect again and again, a connection each.
pub struct Load {
    stop: Arc<AtomicBool>,
    /// When it began, and who answered; `-` where nobody did.
    answers: Arc<Mutex<Vec<(Instant, String)>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(client: &Namespace, to: SocketAddr) -> Load {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<_>>>::default());
        let thread = |_| {
            let (stop, answers) = (stop.clone(), answers.clone());
            // The thread is started by one inside the namespace and so is inside, too.
            client.run(move || {
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let name = who(to).unwrap_or_else(|| "-".into());
                        answers.lock().expect("nobody panics with it").push((begun, name));
                        std::thread::sleep(Duration::from_millis(2));
                    }
                })
            })
        };
        let threads = (0..2).map(thread).collect();
        Load { stop, answers, threads }
    }

    /// Shares of the answers to connections that began after `from`.
    pub fn since(&self, from: Instant) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for (_, name) in self.answers.lock().expect("nobody panics").iter().filter(|(at, _)| *at >= from) {
            *shares.entry(name.clone()).or_default() += 1;
        }
        shares
    }

    /// When the last connection began that was answered so.
    pub fn last(&self, name: &str) -> Option<Instant> {
        let answers = self.answers.lock().expect("nobody panics");
        answers.iter().filter(|(_, who)| who == name).map(|(at, _)| *at).max()
    }

    /// Waits until so many connections have begun from now on.
    #[track_caller]
    pub fn more(&self, count: usize) -> Instant {
        let now = Instant::now();
        wait::until("clients go on", SOON, || self.since(now).values().sum::<usize>() >= count);
        now
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The body of `GET /`, which is the server's name.
fn who(to: SocketAddr) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().last().map(str::to_owned)
}
