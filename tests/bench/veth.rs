//! Packets per second on a real path: client, switch, director, switch, real server, all veth pairs. The real
//! agent forwards by each method, beside a bare program that swaps the MAC addresses and sends back.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{Xdp, xdp::XdpMode};
use lb_tests::{Agent, Host, Namespace, RealServer, Topology, topology, wait};
use serde::Serialize;
use serde_json::Value;

/// The first method's port, and the bare program's; the others follow.
const PORT: u16 = 8053;
pub const METHODS: [&str; 4] = ["dr", "tun", "nat", "fullnat"];
/// Flows of the sender, each a socket.
const FLOWS: usize = 4;
/// Datagrams of a system call.
const BATCH: usize = 64;
/// With this payload a frame has 60 bytes, the least of Ethernet.
const PAYLOAD: usize = 18;
const REPEATS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_secs(2);
/// More than the resolution of a neighbour takes on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// One method.
#[derive(Debug, Serialize)]
pub struct Throughput {
    pub method: &'static str,
    /// Packets per second, the least and the median and the most of the repetitions.
    pub least: f64,
    pub median: f64,
    pub most: f64,
    /// Median by the bare program's median.
    pub to_bare: f64,
}

/// All methods, the bare program first.
pub fn run(programs: &[u8], progress: impl Fn(&str)) -> Result<Vec<Throughput>> {
    let topology = Topology::builder().servers(1).servers_with_xdp().build();
    let (director, client, server) = (topology.director(), topology.client(), &topology.servers[0]);
    let vip = IpAddr::from(topology.vip_v4(0));
    topology::set_neighbour(&client.namespace, vip, director.mac());
    topology.vip_on_servers(vip);
    let _tunnel = RealServer::up(&server.namespace, &[vip], &[director.v4().into()]);
    // They take the datagrams so that no ICMP error goes back; nobody reads, so that no reader costs anything.
    let ports = PORT..PORT + METHODS.len() as u16;
    let sinks = server
        .namespace
        .run(|| ports.map(|port| UdpSocket::bind(("0.0.0.0", port))).collect::<std::io::Result<Vec<_>>>());
    let _sinks = sinks.context("open the real server's ports")?;

    progress("packets per second: bare program");
    let mut all = vec![{
        let _attached = attach_bare(&director.namespace, programs)?;
        let received = || received(director);
        summary("bare", measure(&client.namespace, SocketAddr::new(vip, PORT), director, &received)?)
    }];
    let agent = Agent::start(&director.namespace, CONFIG);
    agent.apply(&(pool(&topology) + &manifests(vip, server, "udp", PORT, |_| "rr")));
    until_up(&agent)?;
    for (port, method) in (PORT..).zip(METHODS) {
        progress(&format!("packets per second: {method}"));
        let forwarded = || forwarded(&agent, &format!("{method}-udp"));
        let rates = measure(&client.namespace, SocketAddr::new(vip, port), director, &forwarded)?;
        all.push(summary(method, rates));
    }
    let bare = all[0].median;
    all.iter_mut().for_each(|row| row.to_bare = row.median / bare);
    Ok(all)
}

/// Waits for every service to have its server.
pub fn until_up(agent: &Agent) -> Result<()> {
    let mut last = Value::Null;
    let up = wait::holds_within(SOON, || {
        last = services(agent);
        last.as_array().is_some_and(|services| services.iter().all(|service| service["state"] == "up"))
    });
    ensure!(up, "not every service is up: {last:#}");
    Ok(())
}

pub const CONFIG: &str = "apiVersion: lb/v1
kind: Director
metadata: {name: director-a}
spec:
  interfaces: [{name: eth0, xdp: native}]
  connections: {max: 65536}
  capacity: {services: 64, realServers: 256}
";

/// The local address of FULLNAT.
pub fn pool(topology: &Topology) -> String {
    format!(
        "apiVersion: lb/v1
kind: LocalAddressPool
metadata: {{name: pool}}
spec: {{addresses: [\"{}\"], addressInterface: eth0}}
",
        topology.pool_v4(0)
    )
}

/// A service of each method, from `port` on, with the scheduler that `scheduler` says.
pub fn manifests(
    vip: IpAddr,
    server: &Host,
    protocol: &str,
    port: u16,
    scheduler: impl Fn(&str) -> &'static str,
) -> String {
    let mut text = String::new();
    for (port, method) in (port..).zip(METHODS) {
        let pool = if method == "fullnat" { "localAddresses: pool, " } else { "" };
        text += &format!(
            "---
apiVersion: lb/v1
kind: VirtualService
metadata: {{name: {method}-{protocol}}}
spec:
  {{address: {vip}, ports: [{port}], protocol: {protocol}, forwarding: {method}, scheduler: {}, {pool}
   addressInterface: eth0, realServers: [{{address: {}, weight: 1}}]}}
",
            scheduler(method),
            server.v4()
        );
    }
    text
}

/// Attaches `floor_swap` of the benchmark's object natively; it goes when the returned object is dropped.
fn attach_bare(director: &Namespace, programs: &[u8]) -> Result<aya::Ebpf> {
    let mut ebpf = aya::EbpfLoader::new()
        .map_max_entries("LINES", 2)
        .map_max_entries("FLOWS", 1)
        .load(programs)
        .context("load the benchmark's object")?;
    let program: &mut Xdp = ebpf.program_mut("floor_swap").context("no floor_swap")?.try_into()?;
    program.load().context("load floor_swap")?;
    director.run(|| program.attach("eth0", XdpMode::Driver)).context("attach floor_swap")?;
    Ok(ebpf)
}

/// Repetitions of packets per second by `count`, while the client sends as fast as it can. What `count` says must
/// be what eth0 received, but for a tenth that the time between two readings may explain.
fn measure(
    client: &Namespace,
    to: SocketAddr,
    director: &Host,
    count: &dyn Fn() -> Result<u64>,
) -> Result<Vec<f64>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| client.run(|| send(to, &stop)));
        let rates = (|| {
            let mut rates = Vec::new();
            for _ in 0..REPEATS {
                std::thread::sleep(WARM_UP);
                let (first, outer, start) = (count()?, received(director)?, Instant::now());
                std::thread::sleep(MEASURED);
                let (last, outer_last, time) = (count()?, received(director)?, start.elapsed());
                let (counted, came_in) = (last - first, outer_last - outer);
                ensure!(
                    counted as f64 >= came_in as f64 * 0.9 && counted > 10_000,
                    "{counted} packets took the path of {came_in} that came in"
                );
                rates.push(counted as f64 / time.as_secs_f64());
            }
            Ok(rates)
        })();
        stop.store(true, Relaxed);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("send datagrams")?;
        rates
    })
}

/// Sends until told to stop, the flows in turn.
fn send(to: SocketAddr, stop: &AtomicBool) -> std::io::Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..FLOWS {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        sockets.push(socket);
    }
    let mut payload = [0u8; PAYLOAD];
    let mut piece = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: PAYLOAD };
    // SAFETY: mmsghdr is numbers and pointers, for which zeros are a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut piece;
    message.msg_hdr.msg_iovlen = 1;
    let mut messages = [message; BATCH];
    while !stop.load(Relaxed) {
        for socket in &sockets {
            // SAFETY: every message points to `piece` and `payload`, which outlive the call and are only read.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
            if sent < 0 {
                let error = std::io::Error::last_os_error();
                // A full queue on the way is what is wanted here.
                if error.raw_os_error() != Some(libc::ENOBUFS) {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Frames that the director's eth0 has received, XDP's included.
pub fn received(director: &Host) -> Result<u64> {
    let text = director.namespace.output("ip", &["-s", "-j", "link", "show", "dev", "eth0"]);
    let links: Value = serde_json::from_str(&text).context("ip writes JSON")?;
    links[0]["stats64"]["rx"]["packets"].as_u64().context("no number of packets in what ip writes")
}

/// Packets that a service has sent to its real servers.
fn forwarded(agent: &Agent, service: &str) -> Result<u64> {
    let services = services(agent);
    let view = services.as_array().and_then(|all| all.iter().find(|view| view["name"] == service));
    view.and_then(|view| view["traffic"]["packetsIn"].as_u64())
        .with_context(|| format!("no count of {service}"))
}

fn services(agent: &Agent) -> Value {
    let text = agent.cli(&["get", "services", "-o", "json"]).expect_success();
    serde_json::from_str(&text).expect("the agent writes JSON")
}

fn summary(method: &'static str, mut rates: Vec<f64>) -> Throughput {
    rates.sort_by(f64::total_cmp);
    Throughput {
        method,
        least: rates[0],
        median: rates[rates.len() / 2],
        most: rates[rates.len() - 1],
        to_bare: 1.0,
    }
}

/// The rows as a table.
pub fn print(rows: &[Throughput]) {
    println!("{:<20} {:>9} {:>9} {:>9}  to bare", "packets per second", "least", "median", "most");
    for row in rows {
        println!(
            "{:<20} {:>9.0} {:>9.0} {:>9.0}  {:>7.2}",
            row.method, row.least, row.median, row.most, row.to_bare
        );
    }
}
