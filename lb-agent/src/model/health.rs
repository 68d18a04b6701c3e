//! What a health check asks, of whom and how often. Pure values; `manifest::health` makes them.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Forwarding, RealServer, VirtualService};

/// Who of a service's real servers takes new connections: its checks, and what follows from their outcomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Of every real server that has none of its own. None: a server is taken to be well.
    pub checks: Vec<Arc<Check>>,
    /// They are written as a list. Says only where they stand in the manifest.
    pub listed: bool,
    /// How many of a server's checks must pass.
    pub require: Require,
    pub on_failure: OnFailure,
    pub on_server_down: OnServerDown,
    pub quorum: Quorum,
    /// Takes all new connections while the quorum is lost.
    pub sorry_server: Option<Box<RealServer>>,
    /// How long the weight of a server that came back grows to its whole.
    pub slow_start: Option<Duration>,
    /// The share of the servers, in percent, that checks may take out. Where more fail, checks take out none.
    pub panic_threshold: Option<u8>,
    /// By how many percent of its weight at most a server's latency may raise or lower it.
    pub latency_weight: Option<u8>,
    /// Servers whose answers to new connections give reason for it are put on probation.
    pub passive: Option<Passive>,
}

/// When the answers to new connections that the data plane sees are reason to doubt a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passive {
    pub window: Duration,
    /// So many of the window's new connections failed, at least 1,
    pub failures: u32,
    /// and so many percent of them.
    pub share: u8,
    /// How long a first probation lasts at least; one that follows soon is twice as long.
    pub probation: Duration,
    /// The share of the servers, in percent, that may get nothing new for being on probation.
    pub max_share: u8,
}

impl Default for Passive {
    fn default() -> Passive {
        Passive {
            window: Duration::from_secs(10),
            failures: 5,
            share: 50,
            probation: Duration::from_secs(10),
            max_share: 50,
        }
    }
}

/// What a real server has in place of its service's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerPolicy {
    /// Empty: no check at all.
    pub checks: Option<Vec<Arc<Check>>>,
    /// 0 takes part always; the servers of a higher number only while those of all lower ones together do not
    /// reach the quorum.
    pub standby: u8,
}

/// How many checks of a server must pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Require {
    All,
    Any,
    /// Of servers with fewer checks, all.
    AtLeast(u16),
}

impl Require {
    /// Of `checks` checks, at least one.
    pub fn of(self, checks: usize) -> usize {
        match self {
            Require::All => checks,
            Require::Any => 1.min(checks),
            Require::AtLeast(least) => usize::from(least).min(checks),
        }
    }
}

/// What becomes of a server that fails its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It leaves: its UDP flows move at once, its TCP connections are treated as [`OnServerDown`] says.
    Remove,
    /// It keeps all it has and gets nothing new (keepalived's inhibit_on_failure).
    Quiesce,
}

/// What becomes of established TCP connections to a server that was removed by its checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnServerDown {
    /// They go on.
    Keep,
    /// They are reset at their next packet.
    Reset,
    /// Their next packet goes to another server, as a new connection's would; that server answers a connection that
    /// it does not know with a reset.
    Reschedule,
}

/// What becomes of the flows of a server that takes no new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flows {
    /// They go on, and clients that persistence sends there still get there.
    #[default]
    Stay,
    /// They go on, and persistence ends.
    Keep,
    /// TCP is reset at the next packet.
    Reset,
    /// The next packet is scheduled anew.
    Move,
}

/// The weight that must be alive. keepalived's words and rule: gained at `weight + hysteresis`, lost below
/// `weight - hysteresis`, and at 0 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// At least 1.
    pub weight: u32,
    /// Below `weight`.
    pub hysteresis: u32,
}

impl Default for Quorum {
    fn default() -> Quorum {
        Quorum { weight: 1, hysteresis: 0 }
    }
}

impl Quorum {
    /// Whether it holds at this sum of live weights; `before` is whether it did, None at the beginning.
    pub fn holds(self, live: u32, before: Option<bool>) -> bool {
        let needed = match before {
            Some(true) => self.weight.saturating_sub(self.hysteresis).max(1),
            Some(false) => self.weight.saturating_add(self.hysteresis),
            None => self.weight,
        };
        live >= needed
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            checks: Vec::new(),
            listed: false,
            require: Require::All,
            on_failure: OnFailure::Remove,
            on_server_down: OnServerDown::Keep,
            quorum: Quorum::default(),
            sorry_server: None,
            slow_start: None,
            panic_threshold: None,
            latency_weight: None,
            passive: None,
        }
    }
}

impl Policy {
    /// The checks of a server.
    pub fn checks_of<'a>(&'a self, server: &'a RealServer) -> &'a [Arc<Check>] {
        server.health.checks.as_deref().unwrap_or(&self.checks)
    }

    /// Whether the answers of a server to new connections are watched. One that is to have no check at all is not.
    pub fn watches(&self, server: &RealServer) -> bool {
        self.passive.is_some() && server.health.checks.as_ref().is_none_or(|checks| !checks.is_empty())
    }

    /// What probes a server that is on probation: its checks, or where it has none that it can be connected to.
    pub fn probation_checks_of(&self, server: &RealServer) -> Vec<Arc<Check>> {
        match self.checks_of(server) {
            [] if self.watches(server) => vec![Arc::new(Check::of_probation())],
            checks => checks.to_vec(),
        }
    }

    /// The service's own checks, each with its place in the manifest.
    pub fn places(&self) -> impl Iterator<Item = (String, &Check)> {
        let place = |index| match self.listed {
            true => format!("spec.healthChecks.checks[{index}]"),
            false => "spec.healthCheck".to_owned(),
        };
        self.checks.iter().enumerate().map(move |(index, check)| (place(index), &**check))
    }
}

/// One health check of a real server. Two services that name the same target and write the same check share
/// one probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Check {
    pub probe: Probe,
    /// Probed in place of the real server's address.
    pub address: Option<IpAddr>,
    /// Probed in place of the real server's port, or of the service's where the packet's own is kept. A probe
    /// that [`Probe::uses_port`] on a service without a single port always has one.
    pub port: Option<u16>,
    /// Source address of the probe.
    pub source: Option<IpAddr>,
    /// Interface by which the probe leaves (SO_BINDTODEVICE).
    pub interface: Option<String>,
    /// Mark of the probe's packets (SO_MARK).
    pub mark: Option<u32>,
    /// None: the default, which [`Check::target`] resolves.
    pub path: Option<Path>,
    /// Whether the first bytes of its TCP connection are a PROXY header that says nothing of a client. None: the default,
    /// which [`Check::settled`] resolves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_header: Option<bool>,
    pub timing: Timing,
}

/// When a check is made, and how many outcomes it takes to believe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Timing {
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// In place of `interval` while outcomes contradict the state that is believed, and before the first
    /// state is known. At most `interval`.
    pub fast_interval: Duration,
    /// A probe that takes longer has failed. At most `interval`.
    pub timeout: Duration,
    /// Successes in a row that bring a server back. At least 1.
    pub rise: u16,
    /// Failures in a row that take a server out. At least 1.
    pub fall: u16,
    /// What is believed before anything is known.
    pub start: Start,
    /// A server that changes too often is held down.
    pub flap: Option<Flap>,
}

/// What is believed of a server before its first outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Start {
    /// Down, until the first success; `rise` counts from the first failure on.
    Down,
    /// Up, until `fall` failures.
    Up,
}

/// Flap damping: after `changes` transitions within `window` the server stays down until it has passed every
/// probe for `hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Flap {
    /// At least 2.
    pub changes: u16,
    pub window: Duration,
    pub hold: Duration,
}

/// The most changes that flap damping may count: as many as are remembered.
pub const FLAP_CHANGES_MAX: u16 = 10;

impl Timing {
    pub const INTERVAL: Duration = Duration::from_secs(2);
    pub const INTERVAL_RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_millis(50)..=Duration::from_secs(24 * 3600);
    pub const RISE: u16 = 2;
    pub const FALL: u16 = 3;
    pub const COUNT_MAX: u16 = 1000;
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            interval: Timing::INTERVAL,
            fast_interval: Timing::INTERVAL,
            timeout: Timing::INTERVAL,
            rise: Timing::RISE,
            fall: Timing::FALL,
            start: Start::Down,
            flap: None,
        }
    }
}

/// What is sent, and which answer is a success.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Probe {
    /// A connection is established, and closed at once.
    Tcp,
    Http(Http),
    /// grpc.health.v1.Health/Check answers SERVING.
    Grpc(Grpc),
    /// Banner 220, EHLO 250, where asked for STARTTLS with a handshake, QUIT.
    Smtp(Smtp),
    /// The answer's code is NOERROR.
    Dns(Dns),
    Udp(Udp),
    /// ICMP or ICMPv6 echo, whichever the target's family asks for.
    Icmp(Icmp),
    Script(Script),
    File(File),
    /// A line as HAProxy's agent-check: `up`, `down`, `drain`, `ready`, `75%`.
    Agent(AgentCheck),
}

/// HTTP, and HTTPS where `tls` is given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Http {
    pub version: HttpVersion,
    /// A token (RFC 9110, 9.1).
    pub method: String,
    /// In origin form, with its query: begins with `/`, no space.
    pub path: String,
    /// The Host header or :authority; None: the target's address and port. Also the TLS server name where
    /// [`Tls::server_name`] is not given.
    pub host: Option<String>,
    /// Further request headers: names are tokens, values visible ASCII, space and tab.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Option<String>,
    /// Sorted and disjoint; never empty.
    pub statuses: Vec<StatusRange>,
    /// A pattern of the `regex` crate that compiles, searched in the first [`Http::BODY_MAX`] bytes.
    pub matches: Option<String>,
    /// Digest of the whole body, which may then not be longer than [`Http::BODY_MAX`].
    pub digest: Option<Digest>,
    pub tls: Option<Tls>,
}

impl Http {
    /// How much of a body is read, bytes.
    pub const BODY_MAX: usize = 1 << 20;

    /// A GET that expects 200 to 299.
    pub fn get(path: &str) -> Http {
        Http {
            version: HttpVersion::Http11,
            method: "GET".into(),
            path: path.into(),
            host: None,
            headers: Vec::new(),
            body: None,
            statuses: vec![StatusRange { first: 200, last: 299 }],
            matches: None,
            digest: None,
            tls: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum HttpVersion {
    Http10,
    Http11,
    /// By ALPN under TLS, else with prior knowledge (RFC 9113, 3.3).
    Http2,
}

/// Statuses `first` to `last`, both included, within 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}

impl StatusRange {
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Of a response's body.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Digest {
    /// keepalived's `genhash`.
    Md5([u8; 16]),
    Sha256([u8; 32]),
}

/// How a server proves who it is. The certificate is verified unless `insecure`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Tls {
    /// Sent as SNI and looked for in the certificate; None: the check's host, else the target's address (which
    /// is looked for, and not sent: RFC 6066, 3).
    pub server_name: Option<String>,
    /// PEM file of the authorities that may have signed; None: the system's.
    pub ca: Option<PathBuf>,
    /// Take any certificate.
    pub insecure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Grpc {
    /// Empty asks for the server as a whole.
    pub service: String,
    /// The :authority; None: the target's address and port.
    pub host: Option<String>,
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Smtp {
    /// What EHLO says; None: the source address as a literal (RFC 5321, 4.1.3).
    pub helo: Option<String>,
    /// STARTTLS (RFC 3207), by the certificate rules given.
    pub starttls: Option<Tls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Dns {
    /// A domain name; `.` is the root.
    pub name: String,
    pub record: DnsType,
    pub transport: DnsTransport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum DnsType {
    A,
    Aaaa,
    Cname,
    Mx,
    Ns,
    Ptr,
    Soa,
    Srv,
    Txt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum DnsTransport {
    Udp,
    Tcp,
}

/// A datagram. Without `reply` silence is a success, an ICMP error a failure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Udp {
    pub payload: Vec<u8>,
    pub reply: Option<Reply>,
}

/// What a datagram in answer must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Reply {
    /// Anything.
    Any,
    /// Begins with these bytes, where the mask of the same length has ones.
    Prefix { bytes: Vec<u8>, mask: Vec<u8> },
    /// Matches this pattern of the `regex` crate.
    Matches(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Icmp {
    /// Bytes of data in the echo.
    pub size: u16,
}

/// A program in a process group of its own, that finds the target's address in LB_ADDRESS and the service's port,
/// where it has one, in its arguments as the operator wrote them. Exit code 0 is success, 1 failure; 2 to 255
/// success with weight code - 2 where `dynamic` (keepalived's misc_dynamic), else failure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Script {
    /// An absolute path: executable, and writable by nobody but its owner.
    pub command: PathBuf,
    pub arguments: Vec<String>,
    /// None: the agent's own.
    pub user: Option<String>,
    pub dynamic: bool,
}

/// A file on the director whose content is a weight (0 to 65535, or `75%` of the configured one). A file that
/// cannot be read or holds something else is a failure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct File {
    pub path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct AgentCheck {
    /// Sent after the connection is there.
    pub send: Option<String>,
}

/// How a probe gets to the real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Path {
    /// To the VIP on that real server, by the service's forwarding method. For dr and tun.
    Real,
    /// To the real server's own address, by the director's routes.
    Direct,
}

/// Where a probe goes. With the [`Check`] it is the probe's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Target {
    /// `port` is 0 where the probe uses none.
    Direct { address: IpAddr, port: u16 },
    /// To `vip`:`port` on the real server at `server`, by `method` (dr or tun).
    Real { vip: IpAddr, port: u16, server: IpAddr, method: Forwarding },
}

impl Target {
    /// What a socket connects to: the VIP on the real path.
    pub fn address(self) -> IpAddr {
        match self {
            Target::Direct { address, .. } => address,
            Target::Real { vip, .. } => vip,
        }
    }

    pub fn port(self) -> u16 {
        match self {
            Target::Direct { port, .. } | Target::Real { port, .. } => port,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address(), self.port()) {
            (address, 0) => write!(f, "{address}")?,
            (IpAddr::V4(address), port) => write!(f, "{address}:{port}")?,
            (IpAddr::V6(address), port) => write!(f, "[{address}]:{port}")?,
        }
        match self {
            Target::Direct { .. } => Ok(()),
            Target::Real { server, .. } => write!(f, " on {server}"),
        }
    }
}

impl Check {
    /// One that goes where it goes by default.
    pub fn new(probe: Probe, timing: Timing) -> Check {
        Check {
            probe,
            address: None,
            port: None,
            source: None,
            interface: None,
            mark: None,
            path: None,
            proxy_header: None,
            timing,
        }
    }

    /// One that goes to the real server's own address.
    pub fn direct(probe: Probe, timing: Timing) -> Check {
        Check { path: Some(Path::Direct), ..Check::new(probe, timing) }
    }

    /// Whether a server on probation that has no check can be connected to.
    pub fn of_probation() -> Check {
        Check::new(Probe::Tcp, Timing { rise: 1, fall: 1, ..Timing::default() })
    }

    /// This check as it is made of `server`. A server whose clients come with a PROXY header waits for one of whoever
    /// connects to that port, as nginx's `listen … proxy_protocol` does. A connection that says nothing needs none.
    pub fn settled(self: &Arc<Check>, service: &VirtualService, server: &RealServer) -> Arc<Check> {
        let own_port = self.port.is_none_or(|port| service.port_of(server) == Some(port));
        let waited_for = service.scheduling.proxy_protocol && own_port && self.address.is_none();
        if self.proxy_header.is_some() || !waited_for || !self.probe.may_send_header() {
            return Arc::clone(self);
        }
        Arc::new(Check { proxy_header: Some(true), ..Check::clone(self) })
    }

    /// Where this check of `server` goes.
    pub fn target(&self, service: &VirtualService, server: &RealServer) -> Target {
        let port = match self.probe.uses_port() {
            true => self.port.or_else(|| service.port_of(server)).unwrap_or(0),
            false => 0,
        };
        let method = service.forwarding_of(server);
        match self.path_of(method) {
            Path::Real => Target::Real { vip: service.address, port, server: server.address, method },
            Path::Direct => Target::Direct { address: self.address.unwrap_or(server.address), port },
        }
    }

    /// The path of this check to a server that is reached by `method`.
    pub fn path_of(&self, method: Forwarding) -> Path {
        let possible = !method.translates() && self.may_use_the_real_path();
        match self.path {
            _ if !possible => Path::Direct,
            Some(path) => path,
            None if REAL_PATH_IS_DEFAULT => Path::Real,
            None => Path::Direct,
        }
    }

    /// Whether anything of the check says that it goes elsewhere than the service's packets.
    pub fn may_use_the_real_path(&self) -> bool {
        let own_way = self.address.is_some()
            || self.source.is_some()
            || self.interface.is_some()
            || self.mark.is_some();
        self.probe.uses_port() && !own_way
    }
}

/// Whether a check that does not say goes through the real path where it can.
const REAL_PATH_IS_DEFAULT: bool = true;

impl Probe {
    /// Whether it goes to a TCP or UDP port, as opposed to echo, script and file.
    pub fn uses_port(&self) -> bool {
        !matches!(self, Probe::Icmp(_) | Probe::Script(_) | Probe::File(_))
    }

    /// Whether a PROXY header can stand before what it says: a bare connection says nothing, and an agent is another
    /// program than the service.
    pub fn may_send_header(&self) -> bool {
        self.uses_port() && !self.speaks_udp() && !matches!(self, Probe::Tcp | Probe::Agent(_))
    }

    /// Whether it goes to a UDP port, as opposed to a TCP one.
    pub fn speaks_udp(&self) -> bool {
        match self {
            Probe::Udp(_) => true,
            Probe::Dns(dns) => dns.transport == DnsTransport::Udp,
            _ => false,
        }
    }

    /// The key of a manifest under which it stands.
    pub fn word(&self) -> &'static str {
        match self {
            Probe::Tcp => "tcp",
            Probe::Http(Http { tls: None, .. }) => "http",
            Probe::Http(_) => "https",
            Probe::Grpc(_) => "grpc",
            Probe::Smtp(_) => "smtp",
            Probe::Dns(_) => "dns",
            Probe::Udp(_) => "udp",
            Probe::Icmp(_) => "icmp",
            Probe::Script(_) => "script",
            Probe::File(_) => "file",
            Probe::Agent(_) => "agent",
        }
    }
}

/// What is probed, in a few words: `http GET /healthz`.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Probe::Http(http) => write!(f, " {} {}", http.method, http.path),
            Probe::Grpc(grpc) if !grpc.service.is_empty() => write!(f, " {}", grpc.service),
            Probe::Dns(dns) => write!(f, " {} {}", dns.record, dns.name),
            Probe::Script(script) => write!(f, " {}", script.command.display()),
            Probe::File(file) => write!(f, " {}", file.path.display()),
            _ => Ok(()),
        }
    }
}

impl DnsType {
    pub const ALL: [(&'static str, DnsType); 9] = [
        ("A", DnsType::A),
        ("AAAA", DnsType::Aaaa),
        ("CNAME", DnsType::Cname),
        ("MX", DnsType::Mx),
        ("NS", DnsType::Ns),
        ("PTR", DnsType::Ptr),
        ("SOA", DnsType::Soa),
        ("SRV", DnsType::Srv),
        ("TXT", DnsType::Txt),
    ];
}

impl fmt::Display for DnsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = DnsType::ALL.iter().find(|(_, record)| record == self).map_or("", |(word, _)| word);
        f.pad(word)
    }
}
