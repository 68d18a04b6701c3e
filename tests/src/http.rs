//! HTTP from a client's namespace: real curl, and a slow reader that checks every byte as it comes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::content;
use crate::namespace::Namespace;

/// No request of the laboratory takes longer, in seconds.
const GIVE_UP: &str = "20";

/// What curl got.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The header X-Server: which nginx answered.
    pub server: String,
    /// The body.
    pub body: Vec<u8>,
    /// From before the connection to the last byte.
    pub time: Duration,
}

/// A URL for an address of either family, with `path` beginning with a slash.
pub fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

/// Fetches a page. The error is curl's own sentence.
pub fn get(client: &Namespace, url: &str) -> Result<Response, String> {
    one(client, &[url], b"")
}

/// PUTs `body` to `url`. The error is curl's own sentence.
pub fn upload(client: &Namespace, url: &str, body: &[u8]) -> Result<Response, String> {
    // No `Expect: 100-continue`: it would add a second of waiting to servers that do not answer it.
    one(client, &["-H", "Expect:", "-T", "-", url], body)
}

/// Fetches a page `count` times, one after another, each over a connection of its own.
pub fn get_in_turn(client: &Namespace, url: &str, count: usize) -> Result<Vec<Outcome>, String> {
    many(client, url, count, 1, &[])
}

/// The same from one address of the client.
pub fn get_in_turn_from(
    client: &Namespace,
    source: IpAddr,
    url: &str,
    count: usize,
) -> Result<Vec<Outcome>, String> {
    many(client, url, count, 1, &["--interface", &source.to_string()])
}

/// Fetches a page `count` times, up to 16 at once, each over a connection of its own; in order of completion.
pub fn get_in_parallel(client: &Namespace, url: &str, count: usize) -> Result<Vec<Outcome>, String> {
    many(client, url, count, 16, &[])
}

/// One of many requests, whose body was thrown away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The HTTP status.
    pub status: u16,
    /// The header X-Server: which nginx answered.
    pub server: String,
    /// The client's port.
    pub port: u16,
    /// From before the connection to the last byte.
    pub time: Duration,
}

/// How many of the requests each server answered.
pub fn shares(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for outcome in outcomes {
        *shares.entry(outcome.server.clone()).or_default() += 1;
    }
    shares
}

fn one(client: &Namespace, arguments: &[&str], input: &[u8]) -> Result<Response, String> {
    let mut command = client.command("curl");
    command.args(["-g", "-sS", "--noproxy", "*", "--max-time", GIVE_UP]);
    // Body on standard output, our line last on standard error.
    command.args(["-w", "%{stderr}%{http_code} %{time_total} %header{x-server}\n"]).args(arguments);
    let (body, errors) = curl(command, input)?;
    let outcome = errors.lines().last().and_then(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.parse().ok()?, seconds(words.next()?)?, words.next()?.to_owned()))
    });
    let Some((status, time, server)) = outcome else { return Err(format!("curl wrote: {errors}")) };
    Ok(Response { status, server, body, time })
}

fn many(
    client: &Namespace,
    url: &str,
    count: usize,
    at_once: usize,
    options: &[&str],
) -> Result<Vec<Outcome>, String> {
    let mut command = client.command("curl");
    command.args(options);
    command.args(["-sS", "-g", "--noproxy", "*", "--max-time", GIVE_UP, "-H", "Connection: close"]);
    // The first failure is the answer; waiting for the others would only take longer.
    command.arg("--fail-early");
    command.args(["-w", "%{http_code} %{local_port} %{time_total} %header{x-server}\n"]);
    if at_once > 1 {
        command.args(["--parallel", "--parallel-immediate", "--parallel-max", &at_once.to_string()]);
    }
    command.args(["-K", "-"]);
    let requests = format!("url = \"{url}\"\noutput = \"/dev/null\"\n").repeat(count);
    let (lines, _) = curl(command, requests.as_bytes())?;
    let lines = String::from_utf8_lossy(&lines);
    let outcomes: Option<Vec<Outcome>> = lines
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            Some(Outcome {
                status: words.next()?.parse().ok()?,
                port: words.next()?.parse().ok()?,
                time: seconds(words.next()?)?,
                server: words.next()?.to_owned(),
            })
        })
        .collect();
    match outcomes {
        Some(outcomes) if outcomes.len() == count => Ok(outcomes),
        _ => Err(format!("curl should have finished {count} requests and wrote: {lines}")),
    }
}

/// Runs curl to its end: what it wrote to standard output and standard error, or why it failed.
fn curl(mut command: std::process::Command, input: &[u8]) -> Result<(Vec<u8>, String), String> {
    use std::process::Stdio;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("start curl: {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let output = std::thread::scope(|scope| {
        // Beside reading, or both sides could wait for each other with full pipes.
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        child.wait_with_output()
    });
    let output = output.map_err(|error| format!("wait for curl: {error}"))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("curl ended with {}: {}", output.status, errors.trim()));
    }
    Ok((output.stdout, errors))
}

fn seconds(word: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(word.parse().ok()?).ok()
}

/// A download in progress over one TCP connection, every byte checked against [`content`] when it arrives.
pub struct Download {
    thread: JoinHandle<Result<DownloadReport, String>>,
    progress: Arc<AtomicU64>,
    pace: Arc<Pace>,
}

/// How fast a download is read: the server can send no faster than that.
struct Pace {
    /// Bytes per second.
    rate: u64,
    lifted: AtomicBool,
}

impl Pace {
    /// Waits until byte `length` may be read, `elapsed` after the beginning.
    fn wait(&self, length: u64, start: Instant) {
        while !self.lifted.load(Ordering::Relaxed)
            && length as f64 > start.elapsed().as_secs_f64() * self.rate as f64
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A download that came to its end with every byte right.
#[derive(Debug)]
pub struct DownloadReport {
    /// The header X-Server: which nginx answered.
    pub server: String,
    /// How many bytes of the body arrived.
    pub length: u64,
    /// The longest time without a byte.
    pub longest_silence: Duration,
}

impl Download {
    /// Starts `GET path` from `client`. A silence of ten seconds ends it with an error.
    pub fn start(client: &Namespace, server: SocketAddr, path: &str) -> Download {
        Download::start_paced(client, server, path, u64::MAX)
    }

    /// The same, read at `rate` bytes per second until [`Download::finish`]: it lasts as long as the caller likes,
    /// and bytes are always on their way.
    pub fn start_paced(client: &Namespace, server: SocketAddr, path: &str, rate: u64) -> Download {
        let progress = Arc::new(AtomicU64::new(0));
        let pace = Arc::new(Pace { rate, lifted: AtomicBool::new(rate == u64::MAX) });
        let (path, counter, reading) = (path.to_owned(), progress.clone(), pace.clone());
        // The thread is started by one inside the namespace and so is inside, too.
        let thread =
            client.run(move || std::thread::spawn(move || download(server, &path, &counter, &reading)));
        Download { thread, progress, pace }
    }

    /// How many bytes of the body have arrived and were right.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Reads the rest as fast as it comes and waits for the end. The error names the wrong offset, or what cut the connection and where.
    pub fn finish(self) -> Result<DownloadReport, String> {
        self.pace.lifted.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A connection; where reading is slow, with little room for what was not read yet.
fn connect(server: SocketAddr, patience: Duration, slow: bool) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if slow {
        socket.set_recv_buffer_size(1 << 16)?;
    }
    socket.connect_timeout(&server.into(), patience)?;
    Ok(socket.into())
}

fn download(
    server: SocketAddr,
    path: &str,
    progress: &AtomicU64,
    pace: &Pace,
) -> Result<DownloadReport, String> {
    const SILENCE: Duration = Duration::from_secs(10);
    let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let paced = !pace.lifted.load(Ordering::Relaxed);
    let mut stream = connect(server, SILENCE, paced).map_err(|error| failed("connect", error))?;
    stream.set_read_timeout(Some(SILENCE)).map_err(|error| failed("set a timeout", error))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
        .map_err(|error| failed("send the request", error))?;
    let mut reader = BufReader::with_capacity(if paced { 1 << 13 } else { 1 << 16 }, stream);
    let mut read_line = || {
        let mut line = String::new();
        reader.read_line(&mut line).map_err(|error| failed("read the header", error))?;
        Ok::<String, String>(line.trim_end().to_owned())
    };
    let status = read_line()?;
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(format!("GET {path} was answered with {status:?}"));
    }
    let (mut name, mut announced) = (String::new(), 0);
    loop {
        let line = read_line()?;
        match line.split_once(": ") {
            Some(("X-Server", value)) => name = value.to_owned(),
            Some(("Content-Length", value)) => {
                announced = value.parse().map_err(|_| format!("Content-Length is {value}"))?;
            }
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    let mut buffer = vec![0; reader.capacity()];
    let start = Instant::now();
    let (mut length, mut longest_silence, mut last) = (0, Duration::ZERO, Instant::now());
    loop {
        pace.wait(length, start);
        let count = reader
            .read(&mut buffer)
            .map_err(|error| format!("after {length} of {announced} bytes: {error}"))?;
        longest_silence = longest_silence.max(last.elapsed());
        last = Instant::now();
        if count == 0 {
            break;
        }
        content::check(length, &buffer[..count])?;
        length += count as u64;
        progress.store(length, Ordering::Relaxed);
    }
    if length != announced {
        return Err(format!("the connection ended after {length} of {announced} bytes"));
    }
    Ok(DownloadReport { server: name, length, longest_silence })
}
