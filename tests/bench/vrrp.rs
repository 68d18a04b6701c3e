//! What VRRP's times are on the wire: a third host listens to the advertisements of two agents, of which one is
//! killed, or asked to hand over, and to a pair whose cores are all busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_agent::model::{Vrid, VrrpVersion};
use lb_agent::vrrp::socket::{Received, Sockets, Way};
use lb_agent::vrrp::timers;
use lb_tests::{Agent, Topology, wait};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use serde::Serialize;

/// One kind of takeover.
#[derive(Serialize)]
pub struct Takeover {
    what: String,
    runs: usize,
    /// What the protocol says, in milliseconds.
    expected: f64,
    least: f64,
    median: f64,
    most: f64,
}

/// All of it.
#[derive(Serialize)]
pub struct Times {
    takeovers: Vec<Takeover>,
    /// With advertisements every 30 ms and every core busy: so many seconds, and how often the backup took over.
    busy_seconds: u64,
    false_takeovers: usize,
    /// The most that a timer of the master and of the backup was late meanwhile, in milliseconds.
    lag_of_master: f64,
    lag_of_backup: f64,
}

/// An advertisement as the third host heard it.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    /// The sender's last number.
    from: u8,
    priority: u8,
}

const A: u8 = 1;
const B: u8 = 2;
const BACKUP_PRIORITY: u8 = 100;
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the agents are asked how late their timers were: they remember a minute at least.
const LOOK: Duration = Duration::from_secs(50);

pub fn run(quick: bool, busy: Duration, progress: impl Fn(&str)) -> Result<Times> {
    let mut takeovers = Vec::new();
    for (milliseconds, runs) in [(1000, 3), (100, 10), (30, 10)] {
        let runs = if quick { 2 } else { runs };
        let interval = Duration::from_millis(milliseconds);
        let topology = two_directors();
        let mut pair = Pair::start(&topology, interval)?;
        let mut silences = Vec::new();
        let mut goodbyes = Vec::new();
        for run in 0..runs {
            progress(&format!("VRRP at {milliseconds} ms: run {} of {runs}", run + 1));
            pair.until_master(A)?;
            goodbyes.push(pair.hand_over()?);
            pair.until_master(A)?;
            silences.push(pair.kill()?);
        }
        let skew = timers::skew(VrrpVersion::V3, BACKUP_PRIORITY, interval);
        let down = timers::master_down(VrrpVersion::V3, BACKUP_PRIORITY, interval);
        takeovers.push(takeover(format!("killed master, {milliseconds} ms"), down, silences));
        takeovers.push(takeover(format!("priority 0, {milliseconds} ms"), skew, goodbyes));
    }
    let topology = two_directors();
    let pair = Pair::start(&topology, Duration::from_millis(30))?;
    pair.until_master(A)?;
    let stop = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let spin = |stop: Arc<AtomicBool>| move || while !stop.load(Ordering::Relaxed) {};
    let spinners: Vec<_> = (0..2 * cores).map(|_| std::thread::spawn(spin(stop.clone()))).collect();
    let began = pair.heard().len();
    let end = Instant::now() + busy;
    let (mut lag_of_master, mut lag_of_backup) = (0f64, 0f64);
    let mut next_look = Instant::now() + LOOK;
    while Instant::now() < end {
        // What the agents call recent does not reach back to the beginning of a long run.
        if Instant::now() >= next_look {
            lag_of_master = lag_of_master.max(lag(&pair.first)?);
            lag_of_backup = lag_of_backup.max(lag(&pair.second)?);
            next_look += LOOK;
        }
        progress(&format!("VRRP at 30 ms, every core busy: {} s left", (end - Instant::now()).as_secs()));
        std::thread::sleep(Duration::from_secs(1).min(end.saturating_duration_since(Instant::now())));
    }
    lag_of_master = lag_of_master.max(lag(&pair.first)?);
    lag_of_backup = lag_of_backup.max(lag(&pair.second)?);
    stop.store(true, Ordering::Relaxed);
    spinners.into_iter().for_each(|spinner| drop(spinner.join()));
    let heard = pair.heard();
    let false_takeovers =
        heard[began..].windows(2).filter(|two| two[0].from == A && two[1].from == B).count();
    Ok(Times { takeovers, busy_seconds: busy.as_secs(), false_takeovers, lag_of_master, lag_of_backup })
}

pub fn print(times: &Times) {
    println!("VRRP on the wire, milliseconds      runs  expected     least    median      most");
    for row in &times.takeovers {
        let Takeover { what, runs, expected, least, median, most } = row;
        println!("  {what:<32}{runs:>6}{expected:>10.1}{least:>10.1}{median:>10.1}{most:>10.1}");
    }
    let Times { busy_seconds, false_takeovers, lag_of_master, lag_of_backup, .. } = times;
    println!(
        "  30 ms, every core busy for {busy_seconds} s: {false_takeovers} false takeovers, timers at most {lag_of_master:.1} ms \
         (master) and {lag_of_backup:.1} ms (backup) late"
    );
}

fn takeover(what: String, expected: Duration, mut times: Vec<Duration>) -> Takeover {
    times.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    Takeover {
        what,
        runs: times.len(),
        expected: milliseconds(expected),
        least: milliseconds(times[0]),
        median: milliseconds(times[times.len() / 2]),
        most: milliseconds(times[times.len() - 1]),
    }
}

/// Two agents and what a third host heard of them.
struct Pair<'a> {
    first: Agent<'a>,
    second: Agent<'a>,
    heard: Arc<std::sync::Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
}

fn two_directors() -> Topology {
    Topology::builder().directors(2).servers(0).clients(1).build()
}

impl<'a> Pair<'a> {
    fn start(topology: &'a Topology, interval: Duration) -> Result<Pair<'a>> {
        let config = |priority: u8| {
            format!(
                "apiVersion: lb/v1\nkind: Director\nmetadata: {{name: d}}\nspec:\n  interfaces: [{{name: eth0}}]\n  connections: {{max: 65536}}\n---\n\
                 apiVersion: lb/v1\nkind: VrrpInstance\nmetadata: {{name: edge}}\nspec:\n  interface: eth0\n  virtualRouterId: 51\n  \
                 priority: {priority}\n  advertisementInterval: {}ms\n  addresses: [{}/24]\n",
                interval.as_millis(),
                topology.vip_v4(0)
            )
        };
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        listen(topology, heard.clone(), stop.clone())?;
        let first = Agent::start(&topology.directors[0].namespace, &config(150));
        let second = Agent::start(&topology.directors[1].namespace, &config(BACKUP_PRIORITY));
        Ok(Pair { first, second, heard, stop })
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("nobody panics with it").clone()
    }

    /// Until the first (or second) director alone speaks.
    fn until_master(&self, who: u8) -> Result<()> {
        let alone = || {
            let heard = self.heard();
            heard.len() >= 5
                && heard[heard.len() - 5..].iter().all(|heard| heard.from == who && heard.priority > 0)
        };
        ensure!(wait::holds_within(PATIENCE, alone), "director {who} does not become master");
        Ok(())
    }

    /// From the last advertisement of a killed master to the first of the other.
    fn kill(&mut self) -> Result<Duration> {
        self.first.kill9();
        self.until_master(B)?;
        let heard = self.heard();
        let at = heard.iter().rposition(|heard| heard.from == A).context("the first director spoke")?;
        let took = heard[at + 1].at - heard[at].at;
        self.first.restart();
        Ok(took)
    }

    /// From the goodbye to the first advertisement of the other; then the way back.
    fn hand_over(&mut self) -> Result<Duration> {
        self.first.cli(&["vrrp", "handover", "edge"]).expect_success();
        let heard = self.heard();
        let at = heard.iter().rposition(|heard| heard.from == A && heard.priority == 0);
        let goodbye = heard[at.context("a goodbye was heard")?];
        let next = heard.iter().find(|heard| heard.at > goodbye.at && heard.from == B);
        let took = next.context("the other was heard")?.at - goodbye.at;
        self.second.cli(&["vrrp", "handover", "edge"]).expect_success();
        Ok(took)
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The most that a timer was late lately, in milliseconds.
fn lag(agent: &Agent<'_>) -> Result<f64> {
    let text = agent.cli(&["get", "vrrp", "-o", "json"]).expect_success();
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let microseconds = value["scheduling"]["recentLagUs"].as_u64().context("a lag")?;
    Ok(microseconds as f64 / 1000.0)
}

/// Listens in the client's namespace, with the agent's own receiving socket.
fn listen(
    topology: &Topology,
    heard: Arc<std::sync::Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let client = topology.client();
    let (handle, source) = (client.namespace.handle(), client.v4());
    let (ready, began) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let open = || -> Result<Sockets> {
            setns(&handle, CloneFlags::CLONE_NEWNET)?;
            let index = nix::net::if_::if_nametoindex("eth0")?;
            let vrid = Vrid::new(51).context("51 is an identifier")?;
            let way = Way { receive: index, send: index, source: source.into(), vrid, multicast: true };
            Ok(Sockets::open(way)?)
        };
        let mut sockets = match open() {
            Ok(sockets) => sockets,
            Err(error) => return drop(ready.send(Err(error))),
        };
        // Heard at the time of hearing, also when every core is busy.
        let parameters = libc::sched_param { sched_priority: 45 };
        // SAFETY: the structure lives during the call; 0 is the calling thread.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
        let _ = ready.send(Ok(()));
        while !stop.load(Ordering::Relaxed) {
            let fd = sockets.fd();
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(100u8));
            while let Ok(Received::Message { message, context }) = sockets.receive() {
                let std::net::IpAddr::V4(from) = context.source else { continue };
                let entry = Heard { at: Instant::now(), from: from.octets()[3], priority: message[2] };
                heard.lock().expect("nobody panics with it").push(entry);
            }
        }
    });
    began.recv().context("the listener ended")?
}
