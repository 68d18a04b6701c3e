//! What health checks cost: the real agent, thousands of real servers behind one link, each probed every second, and
//! the CPU time, the memory and the descriptors that takes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_agent::control::health::{CheckState, HealthView};
use lb_agent::control::views::StatusView;
use lb_tests::xdp_pass::XdpPass;
use lb_tests::{Agent, Authority, Namespace, Nginx, wait};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

/// One row.
#[derive(Debug, Serialize)]
pub struct Probing {
    pub probe: &'static str,
    pub targets: usize,
    /// Probes begun in a second.
    pub probes_per_second: f64,
    /// CPU time of the agent, user and system, as a share of one core. Over veth pairs the kernel's part of both
    /// ends is in it.
    pub cpu_percent: f64,
    pub cpu_microseconds_per_probe: f64,
    /// Of the connections, smoothed by the agent.
    pub latency_median_milliseconds: f64,
    pub latency_p99_milliseconds: f64,
    /// By how much intervals were longer than asked for at the end; 1 is not at all.
    pub stretch: f64,
    /// Checks that fail at the end.
    pub failed: usize,
    /// Resident memory of the agent without mapped tables, before and after what was measured.
    pub memory_kibibytes: [u64; 2],
    /// The most that the agent had open at a time.
    pub descriptors: usize,
    /// Problems that `get status` told at the end.
    pub says: Vec<String>,
    /// What is not as it must be.
    pub wrong: Vec<String>,
}

struct Plan {
    name: &'static str,
    /// The check's probe and what goes with it, as a manifest has it.
    check: String,
    targets: usize,
    /// More than can be done: intervals must be stretched, and a few TCP checks beside them must not.
    too_much: bool,
}

/// Real servers of one service.
const OF_A_SERVICE: usize = 1000;
/// TCP checks beside too much else.
const BESIDE: usize = 100;
/// Until all have been probed and are in their phases, and the allocator has what it needs.
const WARM_UP: Duration = Duration::from_secs(8);
/// How long a state of everything is waited for.
const SOON: Duration = Duration::from_secs(120);
/// Memory that may be added: pages that another phase of the same work touches for the first time. A leak of 64
/// bytes a probe would be ten times as much in the time measured.
const MEMORY_NOISE_KIB: u64 = 1536;
/// Descriptors of the agent beside its probes'.
const OWN_DESCRIPTORS: usize = 256;

/// The rows one after another.
pub fn run(quick: bool, progress: impl Fn(&str)) -> Result<Vec<Probing>> {
    let measured = Duration::from_secs(if quick { 5 } else { 20 });
    let site = Site::new();
    site.plans()
        .into_iter()
        .map(|plan| {
            progress(&format!("probing {} targets: {}", plan.targets, plan.name));
            measure(&site, &plan, measured).with_context(|| format!("{} {}", plan.targets, plan.name))
        })
        .collect()
}

/// One wire, and at its other end a namespace that is all real servers.
struct Site {
    director: Namespace,
    _servers: Namespace,
    ca: std::path::PathBuf,
    _nginx: Nginx,
    _pass: XdpPass,
}

impl Site {
    fn new() -> Site {
        let (director, servers) = (Namespace::new("director"), Namespace::new("servers"));
        director.ip(&format!("link add eth0 type veth peer name eth0 netns {}", servers.name()));
        director.ip("address add 10.64.255.1/16 dev eth0\nlink set eth0 up");
        servers.ip(
            "link set eth0 address 02:00:00:00:00:02\naddress add 10.64.255.2/16 dev eth0\nlink set eth0 up\n\
             route add local 10.64.0.0/17 dev lo\nroute add local 203.0.113.0/24 dev lo",
        );
        servers.output("sysctl", &["-q", "-w", "net.core.somaxconn=16384"]);
        // All real servers are one host: what one has in TIME-WAIT would meet a probe of another from the same port.
        servers.output("sysctl", &["-q", "-w", "net.ipv4.tcp_max_tw_buckets=0"]);
        servers.output("ethtool", &["-K", "eth0", "tx", "off"]);
        // Queues before the rings of the wire: a burst of probes is to wait, not to be lost.
        for end in [&director, &servers] {
            end.output("tc", &["qdisc", "replace", "dev", "eth0", "root", "pfifo", "limit", "20000"]);
        }
        let pass = XdpPass::attach(&servers, "eth0");
        // All are neighbours; ten thousand that the kernel had to ask for would not fit its table.
        let neighbours = (0..10_000).fold(String::new(), |mut text, number| {
            let server = real_server(number);
            let _ = writeln!(text, "neighbour add {server} lladdr 02:00:00:00:00:02 nud permanent dev eth0");
            text
        });
        director.ip(&neighbours);
        let authority = Authority::new();
        let ca = authority.write(director.directory());
        let identity = authority.sign(servers.directory(), "web", &["web.example"], |_| {});
        let nginx = Nginx::start_with_tls(&servers, "web", &[80], &[(443, &identity)]);
        Site { director, _servers: servers, ca, _nginx: nginx, _pass: pass }
    }

    fn plans(&self) -> [Plan; 8] {
        let tcp = |path: &str| format!("tcp: {{}}, path: {path}");
        let http = |path: &str| format!("http: {{host: web.example}}, path: {path}");
        let https =
            || format!("https: {{host: web.example, ca: {}}}, port: 443, path: direct", self.ca.display());
        let plan = |name, targets, check| Plan { name, targets, check, too_much: false };
        [
            plan("tcp", 10_000, tcp("direct")),
            plan("tcp, real path", 10_000, tcp("real")),
            plan("tcp", 1_000, tcp("direct")),
            plan("tcp, real path", 1_000, tcp("real")),
            plan("http", 1_000, http("direct")),
            plan("http, real path", 1_000, http("real")),
            plan("https", 500, https()),
            Plan { too_much: true, ..plan("https", 10_000, https()) },
        ]
    }
}

fn real_server(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a40_0001 + number as u32)
}

const CONFIG: &str = "apiVersion: lb/v1\nkind: Director\nmetadata: {name: director-a}\nspec:\n  interfaces: [{name: \
                      eth0}]\n  connections: {max: 65536}\n  capacity: {services: 64, realServers: 16384}\n";

fn service(name: &str, vip: usize, check: &str, servers: std::ops::Range<usize>) -> String {
    let mut text = format!(
        "---\napiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  address: 203.0.113.{vip}\n  \
         ports: [80]\n  protocol: tcp\n  forwarding: dr\n  scheduler: rr\n  healthCheck: {{{check}, interval: 1s, \
         timeout: 1s}}\n  realServers:\n"
    );
    for number in servers {
        let _ = writeln!(text, "  - {{address: {}}}", real_server(number));
    }
    text
}

fn measure(site: &Site, plan: &Plan, time: Duration) -> Result<Probing> {
    let mut agent = Agent::start(&site.director, CONFIG);
    let mut manifests = String::new();
    for (index, first) in (0..plan.targets).step_by(OF_A_SERVICE).enumerate() {
        let servers = first..(first + OF_A_SERVICE).min(plan.targets);
        manifests += &service(&format!("service-{index}"), index + 1, &plan.check, servers);
    }
    if plan.too_much {
        manifests += &service("beside", 100, "tcp: {}, path: direct", 0..BESIDE);
    }
    agent.apply(&manifests);
    let all = plan.targets + if plan.too_much { BESIDE } else { 0 };
    let mut status = status(&agent)?;
    ensure!(
        wait::holds_within(SOON, || {
            status = self::status(&agent).unwrap_or_default();
            status.real_servers_in as usize == all
        }) || plan.too_much,
        "{} of {all} are in: {:?}\n{}",
        status.real_servers_in,
        status.problems,
        agent.log()
    );
    std::thread::sleep(WARM_UP);
    // What it has been asked once it has memory for: a table of all checks as JSON is the largest answer.
    let beside_before = passed(&health(&agent, plan)?);
    let before = self::status(&agent)?;
    let pid = agent.process().pid();
    let (cpu_before, memory_before) = (cpu(pid)?, memory(pid)?);
    let (began, mut descriptors) = (Instant::now(), 0);
    while began.elapsed() < time {
        descriptors = descriptors.max(open_descriptors(pid)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu(pid)? - cpu_before);
    let memory_kibibytes = [memory_before, memory(pid)?];
    let after = self::status(&agent)?;
    let views = health(&agent, plan)?;
    let mut latencies: Vec<f64> = views.iter().filter_map(|view| view.latency).collect();
    latencies.sort_unstable_by(f64::total_cmp);
    let quantile =
        |share: f64| latencies.get(((latencies.len().max(1) - 1) as f64 * share) as usize).copied();
    let probes = (after.checks.probes - before.checks.probes) as f64;
    let mut row = Probing {
        probe: plan.name,
        targets: plan.targets,
        probes_per_second: probes / seconds,
        cpu_percent: used / seconds * 100.0,
        cpu_microseconds_per_probe: used / probes * 1e6,
        latency_median_milliseconds: quantile(0.5).context("no probe passed")?,
        latency_p99_milliseconds: quantile(0.99).context("no probe passed")?,
        stretch: after.checks.stretch,
        failed: views.iter().filter(|view| view.state == CheckState::Down || view.failed > 0).count(),
        memory_kibibytes,
        descriptors,
        says: after.problems,
        wrong: Vec::new(),
    };
    let beside = (passed(&views) - beside_before) / seconds;
    row.wrong = wrong(&row, plan, beside);
    Ok(row)
}

/// What is not as it must be. `beside`: TCP probes a second that passed beside the row's.
fn wrong(row: &Probing, plan: &Plan, beside: f64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |holds: bool, sentence: String| {
        if !holds {
            wrong.push(sentence);
        }
    };
    must(row.failed == 0, format!("{} checks of servers that are well fail", row.failed));
    let [before, after] = row.memory_kibibytes;
    must(after <= before + MEMORY_NOISE_KIB, format!("memory grew from {before} to {after} KiB"));
    let most = plan.targets + OWN_DESCRIPTORS;
    must(row.descriptors <= most, format!("{} descriptors were open, {most} are enough", row.descriptors));
    let says =
        row.says.iter().any(|problem| problem.contains("checks with TLS are more than can be made in time"));
    if plan.too_much {
        must(says, format!("status does not say that intervals are stretched: {:?}", row.says));
        let wanted = BESIDE as f64;
        must(beside >= 0.9 * wanted, format!("{beside:.0} of {wanted} TCP checks a second were made beside"));
    } else {
        must(row.says.is_empty(), format!("status says {:?}", row.says));
    }
    wrong
}

fn status(agent: &Agent<'_>) -> Result<StatusView> {
    let text = agent.cli(&["get", "status", "-o", "json"]).expect_success();
    serde_json::from_str(&text).context("the agent writes JSON")
}

fn health(agent: &Agent<'_>, plan: &Plan) -> Result<Vec<HealthView>> {
    let text = agent.cli(&["get", "health", "-o", "json"]).expect_success();
    let views: Vec<HealthView> = serde_json::from_str(&text).context("the agent writes JSON")?;
    ensure!(views.len() >= plan.targets, "{} checks are shown", views.len());
    Ok(views)
}

/// Successes in a row of the TCP checks that are made beside others.
fn passed(views: &[HealthView]) -> f64 {
    views.iter().filter(|view| view.service == "beside").map(|view| f64::from(view.passed)).sum()
}

/// CPU time of a process so far, user and system, seconds.
fn cpu(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The second field is a name in brackets that may hold anything; utime and stime are the 14th and 15th.
    let (_, fields) = text.rsplit_once(')').context("no name in it")?;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let hz = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(ticks as f64 / hz as f64)
}

/// Resident memory of a process, KiB, without what it has mapped: pages of the tables are the kernel's.
fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    line.trim().trim_end_matches(" kB").trim().parse().context("RssAnon is no number")
}

fn open_descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd")).context("list the agent's descriptors")?.count())
}

/// The rows as a table.
pub fn print(rows: &[Probing]) {
    println!(
        "{:<16} {:>7} {:>8} {:>6} {:>8} {:>8} {:>8} {:>7} {:>6} {:>14} {:>5}",
        "checks",
        "targets",
        "probes/s",
        "CPU %",
        "us/probe",
        "median",
        "p99 ms",
        "stretch",
        "failed",
        "memory MiB",
        "fds"
    );
    for row in rows {
        let [before, after] = row.memory_kibibytes.map(|kib| kib as f64 / 1024.0);
        println!(
            "{:<16} {:>7} {:>8.0} {:>6.1} {:>8.1} {:>8.2} {:>8.2} {:>7.2} {:>6} {:>14} {:>5}",
            row.probe,
            row.targets,
            row.probes_per_second,
            row.cpu_percent,
            row.cpu_microseconds_per_probe,
            row.latency_median_milliseconds,
            row.latency_p99_milliseconds,
            row.stretch,
            row.failed,
            format!("{before:.1} -> {after:.1}"),
            row.descriptors
        );
    }
    for row in rows {
        row.says
            .iter()
            .for_each(|sentence| println!("{} {}: status says: {sentence}", row.targets, row.probe));
    }
}

/// Fails where a row is not as it must be, after all were shown.
pub fn judge(rows: &[Probing]) -> Result<()> {
    let wrong: Vec<String> = rows
        .iter()
        .flat_map(|row| row.wrong.iter().map(move |wrong| format!("{} {}: {wrong}", row.targets, row.probe)))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}", wrong.join("\n"))
}
