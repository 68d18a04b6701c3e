//! What clients see of a flood: the real agent, connections by each method, and packets from nowhere at a stated rate or as
//! many as the machine can send.

mod clients;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::flood::{Aim, Flood, Kind};
use lb_tests::{Agent, RealServer, Topology, topology};
use serde::Serialize;

use crate::veth::{self, METHODS};
use clients::{Lasting, Seen, Server, connect_for, stay_on};

/// The first method's port; the others follow. TCP and UDP.
const PORT: u16 = 8001;
/// Packets a second of the floods that have a rate. Two cores send, forward and serve.
const RATE: u32 = 200_000;
/// Connections of each method that are there before any flood, and after all.
const LASTING: usize = 50;
/// The first client's last number: each row has an address of its own, so that no port comes again.
const FIRST_CLIENT: u8 = 101;
/// Between the first packet of a flood and the first connection that is measured.
const LEAD: Duration = Duration::from_millis(500);

/// What comes beside the clients.
const FLOODS: [(&str, Option<Kind>); 5] = [
    ("none", None),
    ("SYN", Some(Kind::Syn)),
    ("ACK", Some(Kind::Ack)),
    ("UDP", Some(Kind::Datagram)),
    ("malformed", Some(Kind::Malformed)),
];

/// One row.
#[derive(Debug, Serialize)]
pub struct Flooded {
    pub method: &'static str,
    pub flood: &'static str,
    /// Packets a second that were asked for; none: as many as the sender can.
    pub rate: Option<u32>,
    /// That were sent, a second.
    pub sent: f64,
    /// That the director's interface took in, a second, those of the clients included.
    pub received: f64,
    /// Connections a second that were made, asked, answered.
    pub connections: f64,
    pub median_milliseconds: f64,
    pub p99_milliseconds: f64,
    /// Connections that were not served within twenty seconds.
    pub failed: usize,
    /// Lasting connections that were lost, of [`LASTING`].
    pub lost: usize,
    /// Why.
    pub reasons: Vec<String>,
}

/// Every flood beside every method.
pub fn run(quick: bool, progress: impl Fn(&str)) -> Result<Vec<Flooded>> {
    let time = Duration::from_secs(if quick { 2 } else { 5 });
    let topology = Topology::builder().servers(1).clients(2).servers_with_xdp().build();
    topology.replies_through_director();
    let (director, client, server) = (topology.director(), topology.client(), &topology.servers[0]);
    let vip_v4 = topology.vip_v4(0);
    let vip = IpAddr::from(vip_v4);
    topology::set_neighbour(&client.namespace, vip, director.mac());
    topology.vip_on_servers(vip);
    client.namespace.sysctl("net.ipv4.ip_local_port_range=1024 65535");
    let _tunnel = RealServer::up(&server.namespace, &[vip], &[director.v4().into()]);
    let ports = PORT..PORT + METHODS.len() as u16;
    let _server = Server::start(&server.namespace, ports.clone())?;
    // Takes the flood's datagrams, so that no ICMP error goes back.
    let sinks = server
        .namespace
        .run(|| ports.map(|port| UdpSocket::bind(("0.0.0.0", port))).collect::<std::io::Result<Vec<_>>>());
    let _sinks = sinks.context("open the real server's ports")?;
    let agent = Agent::start(&director.namespace, veth::CONFIG);
    // Both ways to bear a flood of new flows: a hash service stops making entries, the others make room for each other.
    let scheduler = |method: &str| if method == "dr" { "sh" } else { "rr" };
    let services = |protocol| veth::manifests(vip, server, protocol, PORT, scheduler);
    agent.apply(&(veth::pool(&topology) + &services("tcp") + &services("udp")));
    veth::until_up(&agent)?;
    let mut rows = Vec::new();
    let mut address = FIRST_CLIENT;
    let mut new_address = || {
        let new = client.subnet.v4(address);
        client.namespace.ip(&format!("address add {new}/24 dev eth0"));
        address += 1;
        IpAddr::from(new)
    };
    for (port, method) in (PORT..).zip(METHODS) {
        let to = SocketAddr::new(vip, port);
        let site = Site { topology: &topology, target: (vip_v4, port), time };
        let mut lasting = Lasting::open(&client.namespace, new_address(), to, LASTING)
            .with_context(|| format!("{method}, before any flood"))?;
        for (flood, kind) in FLOODS {
            let rates: &[Option<u32>] = if kind.is_some() { &[Some(RATE), None] } else { &[None] };
            for rate in rates {
                progress(&format!("{method}: connections beside a flood: {flood}"));
                let row = site.measure(&mut lasting, new_address(), kind, *rate)?;
                rows.push(Flooded { method, flood, ..row });
            }
        }
    }
    Ok(rows)
}

/// Where a row is measured.
struct Site<'a> {
    topology: &'a Topology,
    target: (Ipv4Addr, u16),
    time: Duration,
}

impl Site<'_> {
    fn measure(
        &self,
        lasting: &mut Lasting,
        from: IpAddr,
        kind: Option<Kind>,
        rate: Option<u32>,
    ) -> Result<Flooded> {
        let (director, client) = (self.topology.director(), self.topology.client());
        let attacker = &self.topology.clients[1];
        let to = SocketAddrV4::new(self.target.0, self.target.1);
        let (flood, stop) = (Flood::default(), AtomicBool::new(false));
        let lost_before = lasting.lost.len();
        let (seen, sent, received, seconds) = std::thread::scope(|scope| -> Result<(Seen, u64, u64, f64)> {
            let _end = StopAtEnd(&flood, &stop);
            if let Some(kind) = kind {
                let (flood, aim) = (&flood, Aim { mac: director.mac(), to });
                scope.spawn(move || flood.send(&attacker.namespace, kind, aim, rate, || stay_on(1)));
            }
            let (lasts, stop) = (&mut *lasting, &stop);
            scope.spawn(move || lasts.last_until(stop));
            std::thread::sleep(LEAD);
            let (sent, received, began) = (flood.sent(), veth::received(director)?, Instant::now());
            let seen = connect_for(&client.namespace, from, to.into(), self.time);
            let seconds = began.elapsed().as_secs_f64();
            Ok((seen, flood.sent() - sent, veth::received(director)? - received, seconds))
        })?;
        ensure!(kind.is_none() || sent > 0, "the flood sent nothing");
        let lost = lasting.lost.split_off(lost_before);
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Flooded {
            method: "",
            flood: "",
            rate,
            sent: sent as f64 / seconds,
            received: received as f64 / seconds,
            connections: seen.latencies.len() as f64 / seconds,
            median_milliseconds: milliseconds(seen.quantile(0.5)),
            p99_milliseconds: milliseconds(seen.quantile(0.99)),
            failed: seen.failures.len(),
            lost: lost.len(),
            reasons: seen.failures.into_iter().chain(lost).collect(),
        })
    }
}

/// Whatever happens, the flood ends, and the lasting connections are left in peace.
struct StopAtEnd<'a>(&'a Flood, &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
        self.1.store(true, Relaxed);
    }
}

/// The rows as a table.
pub fn print(rows: &[Flooded]) {
    println!(
        "{:<8}{:<10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>7}{:>5}",
        "flood", "", "sent/s", "got/s", "conn/s", "median", "p99 ms", "failed", "lost"
    );
    for row in rows {
        println!(
            "{:<8}{:<10}{:>9.0}{:>9.0}{:>9.0}{:>9.2}{:>9.2}{:>7}{:>5}",
            row.method,
            match (row.flood, row.rate) {
                ("malformed", Some(_)) => "malformed".into(),
                ("malformed", None) => "malf. max".into(),
                ("none", _) => "none".into(),
                (flood, Some(_)) => flood.to_owned(),
                (flood, None) => format!("{flood} max"),
            },
            row.sent,
            row.received,
            row.connections,
            row.median_milliseconds,
            row.p99_milliseconds,
            row.failed,
            row.lost
        );
    }
}

/// Fails where a client was not served, or a connection was lost.
pub fn judge(rows: &[Flooded]) -> Result<()> {
    let wrong: Vec<String> = rows
        .iter()
        .filter(|row| row.failed + row.lost > 0 || row.connections == 0.0)
        .map(|row| {
            let (method, flood, reasons) = (row.method, row.flood, &row.reasons);
            format!("{method} beside {flood}: {} failed, {} lost: {reasons:?}", row.failed, row.lost)
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { bail!("clients suffered: {}", wrong.join("; ")) }
}
