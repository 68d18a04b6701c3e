//! What health checks cost: thousands of targets behind one link, probed by the agent's own monitor, and the CPU
//! time that takes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_agent::health::monitor::Monitor;
use lb_agent::health::{Assignment, CheckId, Report};
use lb_agent::model::health::{Check, Http, HttpVersion, Path, Probe, StatusRange, Target, Timing, Tls};
use lb_tests::{Authority, Namespace, Nginx};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

/// One row.
#[derive(Debug, Serialize)]
pub struct Probing {
    pub probe: &'static str,
    pub targets: u32,
    pub interval_seconds: f64,
    /// Probes that ended in a second.
    pub probes_per_second: f64,
    /// CPU time of the prober, user and system, as a share of one core. Over veth pairs the kernel's part of both
    /// ends is in it.
    pub cpu_percent: f64,
    pub cpu_microseconds_per_probe: f64,
    /// Of the connections.
    pub latency_median_milliseconds: f64,
    pub latency_p99_milliseconds: f64,
    /// By how much intervals were longer than asked for at the end; 1 is not at all.
    pub stretch: f64,
    pub failed: usize,
    /// Resident memory that was added between the first and the last report, KiB.
    pub memory_growth_kib: i64,
}

struct Plan {
    name: &'static str,
    probe: Probe,
    port: u16,
    targets: u32,
}

const INTERVAL: Duration = Duration::from_secs(1);
/// Until all have been probed and are in their phases.
const WARM_UP: Duration = Duration::from_secs(4);
const MEASURED: Duration = Duration::from_secs(10);
/// Every address of it is at the server.
const TARGETS: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);

/// The rows one after another.
pub fn run(progress: impl Fn(&str)) -> Result<Vec<Probing>> {
    let (director, servers) = (Namespace::new("director"), Namespace::new("servers"));
    director.ip(&format!("link add eth0 type veth peer name eth0 netns {}", servers.name()));
    director
        .ip("addr add 192.168.64.1/24 dev eth0\nlink set eth0 up\nroute add 10.64.0.0/16 via 192.168.64.2");
    servers.ip("addr add 192.168.64.2/24 dev eth0\nlink set eth0 up\nroute add local 10.64.0.0/16 dev lo");
    servers.output("sysctl", &["-q", "-w", "net.core.somaxconn=16384"]);
    let authority = Authority::new();
    let ca = authority.write(director.directory());
    let identity = authority.sign(servers.directory(), "web", &["web.example"], |_| {});
    let _nginx = Nginx::start_with_tls(&servers, "web", &[80], &[(443, &identity)]);
    let http = Http {
        version: HttpVersion::Http11,
        method: "GET".into(),
        path: "/".into(),
        host: Some("web.example".into()),
        headers: Vec::new(),
        body: None,
        statuses: vec![StatusRange { first: 200, last: 299 }],
        matches: None,
        digest: None,
        tls: None,
    };
    let tls = Tls { ca: Some(ca), ..Tls::default() };
    let https = Http { tls: Some(tls), ..http.clone() };
    let plans = [
        Plan { name: "tcp", probe: Probe::Tcp, port: 80, targets: 10_000 },
        Plan { name: "tcp", probe: Probe::Tcp, port: 80, targets: 1_000 },
        Plan { name: "http", probe: Probe::Http(http), port: 80, targets: 2_000 },
        Plan { name: "https", probe: Probe::Http(https.clone()), port: 443, targets: 500 },
        Plan { name: "https", probe: Probe::Http(https), port: 443, targets: 10_000 },
    ];
    plans
        .into_iter()
        .map(|plan| {
            progress(&format!("probing {} targets by {}", plan.targets, plan.name));
            director.run(|| measure(&plan)).with_context(|| format!("{} {}", plan.targets, plan.name))
        })
        .collect()
}

/// Runs on a thread inside the director's namespace; the monitor's threads are inside as well.
fn measure(plan: &Plan) -> Result<Probing> {
    let (monitor, mut reports) = Monitor::start()?;
    let timing =
        Timing { interval: INTERVAL, fast_interval: INTERVAL, timeout: INTERVAL, ..Timing::default() };
    let check = Arc::new(Check {
        probe: plan.probe.clone(),
        address: None,
        port: None,
        source: None,
        interface: None,
        mark: None,
        path: Some(Path::Direct),
        timing,
    });
    let assignment = |number: u32| {
        let address = IpAddr::V4(Ipv4Addr::from(u32::from(TARGETS) + number));
        let target = Target::Direct { address, port: plan.port };
        Assignment { id: CheckId::of(&target, &check), target, check: check.clone() }
    };
    monitor.set((0..plan.targets).map(assignment).collect());
    take(&mut reports, WARM_UP, |_| {});
    let (cpu_before, memory_before) = (cpu()?, memory()?);
    let (mut latencies, mut failures, mut ended) = (Vec::new(), BTreeMap::<Arc<str>, usize>::new(), 0u64);
    let began = Instant::now();
    take(&mut reports, MEASURED, |report| {
        ended += 1;
        match report.outcome.latency {
            Some(latency) => latencies.push(latency),
            None => *failures.entry(report.outcome.words.clone()).or_default() += 1,
        }
    });
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu()? - cpu_before);
    let memory_growth_kib = memory()? - memory_before;
    ensure!(!latencies.is_empty(), "no probe passed: {:?}", failures.keys().next());
    latencies.sort_unstable();
    let quantile =
        |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    Ok(Probing {
        probe: plan.name,
        targets: plan.targets,
        interval_seconds: INTERVAL.as_secs_f64(),
        probes_per_second: ended as f64 / seconds,
        cpu_percent: used / seconds * 100.0,
        cpu_microseconds_per_probe: used / ended as f64 * 1e6,
        latency_median_milliseconds: quantile(0.5),
        latency_p99_milliseconds: quantile(0.99),
        stretch: monitor.load().stretch(),
        failed: failures.values().sum(),
        memory_growth_kib,
    })
}

/// Takes reports for so long.
fn take(
    reports: &mut tokio::sync::mpsc::Receiver<Vec<Report>>,
    time: Duration,
    mut each: impl FnMut(&Report),
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime without descriptors starts").block_on(async {
        let end = tokio::time::Instant::now() + time;
        while let Ok(Some(batch)) = tokio::time::timeout_at(end, reports.recv()).await {
            batch.iter().for_each(&mut each);
        }
    });
}

/// CPU time of this process so far, seconds. nginx is another process.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("ask for the CPU time")?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Resident memory of this process, KiB.
fn memory() -> Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")
}

/// The rows as a table.
pub fn print(rows: &[Probing]) {
    println!(
        "{:<8} {:>7} {:>9} {:>6} {:>9} {:>9} {:>9} {:>8} {:>6}",
        "checks", "targets", "probes/s", "CPU %", "us/probe", "median ms", "p99 ms", "stretch", "failed"
    );
    for row in rows {
        println!(
            "{:<8} {:>7} {:>9.0} {:>6.1} {:>9.1} {:>9.2} {:>9.2} {:>8.2} {:>6}",
            row.probe,
            row.targets,
            row.probes_per_second,
            row.cpu_percent,
            row.cpu_microseconds_per_probe,
            row.latency_median_milliseconds,
            row.latency_p99_milliseconds,
            row.stretch,
            row.failed
        );
    }
}
