//! New connections all the time: one after another, by TCP and by UDP, each from a port of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_tests::Namespace;

/// A lost SYN is sent again after a second: what takes that long has lost one.
const PATIENCE: Duration = Duration::from_millis(950);
/// A lost datagram is not sent again, and one that is not lost may wait in a server's queue behind a stream.
const PATIENCE_UDP: Duration = Duration::from_secs(5);
/// Between two newcomers.
const PAUSE: Duration = Duration::from_millis(20);

/// A client that keeps coming anew until it is told to stop.
pub struct Newcomers {
    stop: Arc<AtomicBool>,
    /// Held by whoever makes connections.
    turn: Arc<Mutex<()>>,
    thread: JoinHandle<Vec<String>>,
}

impl Newcomers {
    /// Begins to visit these TCP and UDP services in turn.
    pub fn start(client: &Namespace, services: Vec<(SocketAddr, SocketAddr)>) -> Newcomers {
        let (stop, turn) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let thread = {
            let (stop, turn) = (stop.clone(), turn.clone());
            client.run(|| std::thread::spawn(move || visit(&services, &stop, &turn)))
        };
        Newcomers { stop, turn, thread }
    }

    /// Nobody comes as long as the guard is held.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("no visitor panics")
    }

    /// Ends, and panics unless every visit went well.
    #[track_caller]
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.join().expect("no visitor panics");
        assert!(failures.is_empty(), "{} new connections failed: {failures:#?}", failures.len());
    }
}

fn visit(services: &[(SocketAddr, SocketAddr)], stop: &AtomicBool, turn: &Mutex<()>) -> Vec<String> {
    let (mut failures, start) = (Vec::new(), Instant::now());
    for (tcp, udp) in services.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        {
            // The test failed while it held this: its own words are enough.
            let Ok(_turn) = turn.lock() else { break };
            let at = start.elapsed();
            failures.extend(fetch(*tcp).err().map(|error| format!("after {at:?}: {error}")));
            failures.extend(ask(*udp).err().map(|error| format!("after {at:?}: {error}")));
        }
        std::thread::sleep(PAUSE);
    }
    failures
}

/// `GET /` over a new connection from this thread's namespace: which server answered.
pub fn fetch(service: SocketAddr) -> Result<String, String> {
    let start = Instant::now();
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&service, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| format!("GET from {service}: {error}"))?;
    let took = start.elapsed();
    if took > PATIENCE {
        return Err(format!("GET from {service} took {took:?}"));
    }
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.trim_end().to_owned()),
        _ => Err(format!("GET from {service} was answered with {answer:?}")),
    }
}

/// A question from a port that no flow had before, from this thread's namespace: which server answered.
pub fn ask(service: SocketAddr) -> Result<String, String> {
    // Below the ports that the kernel gives out, so that none of these flows is met again by chance.
    static NEXT: AtomicU16 = AtomicU16::new(1024);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!((1024..32768).contains(&port), "more flows than ports");
    let exchange = || -> std::io::Result<String> {
        let any: IpAddr = if service.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, port))?;
        socket.connect(service)?;
        socket.set_read_timeout(Some(PATIENCE_UDP))?;
        socket.send(b"who")?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    exchange().map_err(|error| format!("ask {service} from port {port}: {error}"))
}
