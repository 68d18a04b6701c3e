//! VRRP instances and the groups in which they move together.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::Name;

/// One virtual router on one interface, in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VrrpInstance {
    pub name: Name,
    pub interface: String,
    pub vrid: Vrid,
    /// 1 to 255; 255 is the owner of the addresses.
    pub priority: u8,
    /// v2: whole seconds, 1 s to 255 s. v3: multiples of 10 ms, 10 ms to 40.95 s.
    pub interval: Duration,
    pub version: VrrpVersion,
    /// What is advertised: the virtual addresses, all of one family, at least one.
    pub addresses: Vec<VirtualAddress>,
    /// Taken and released with the others, but not advertised; of any family.
    pub excluded_addresses: Vec<VirtualAddress>,
    pub preempt: Preempt,
    /// Whether a master that is not the owner takes packets to the addresses as its own (RFC 9568 section 6.1,
    /// Accept_Mode). Virtual services are served either way.
    pub accept: bool,
    /// None: multicast. Never empty when given.
    pub unicast: Option<Unicast>,
    /// Where advertisements come from. None: the interface's primary address (IPv6: a link-local one).
    pub source_address: Option<IpAddr>,
    pub authentication: Authentication,
    /// The form of the IPv4 v3 checksum that is sent.
    pub checksum: VrrpChecksum,
    /// Only `checksum` is accepted; otherwise either form is.
    pub checksum_strict: bool,
    pub gratuitous: Gratuitous,
    pub vmac: Vmac,
    pub track: Track,
    pub notify: Notify,
    /// Exist while this director is master.
    pub routes: Vec<VirtualRoute>,
    pub rules: Vec<VirtualRule>,
    pub shutdown: VrrpShutdown,
}

impl VrrpInstance {
    /// Whether the advertised addresses, and so the advertisements, are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.addresses.first().is_some_and(|virtual_address| virtual_address.address.addr().is_ipv4())
    }

    /// Whether this director owns the addresses (priority 255).
    pub fn is_owner(&self) -> bool {
        self.priority == OWNER_PRIORITY
    }

    /// Every address that follows the instance, advertised or not.
    pub fn all_addresses(&self) -> impl Iterator<Item = &VirtualAddress> {
        self.addresses.iter().chain(&self.excluded_addresses)
    }

    /// Whether `address` follows the instance.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.all_addresses().any(|virtual_address| virtual_address.address.addr() == address)
    }
}

/// The identifier of a virtual router: 1 to 255 (RFC 9568 section 5.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vrid(u8);

impl Vrid {
    pub fn new(number: u8) -> Option<Vrid> {
        (number != 0).then_some(Vrid(number))
    }

    pub fn get(self) -> u8 {
        self.0
    }

    /// The virtual router's MAC address (RFC 9568 section 7.3).
    pub fn mac(self, ipv4: bool) -> [u8; 6] {
        [0x00, 0x00, 0x5e, 0x00, if ipv4 { 0x01 } else { 0x02 }, self.0]
    }
}

impl fmt::Display for Vrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VrrpVersion {
    /// RFC 3768: IPv4 only, whole seconds.
    V2,
    /// RFC 5798 and RFC 9568.
    V3,
}

impl VrrpVersion {
    pub fn number(self) -> u8 {
        match self {
            VrrpVersion::V2 => 2,
            VrrpVersion::V3 => 3,
        }
    }
}

/// What the checksum of a v3 advertisement over IPv4 covers. v2 has the message only, IPv6 the pseudo header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VrrpChecksum {
    /// As keepalived, FRR and Wireshark read RFC 5798.
    #[default]
    PseudoHeader,
    /// As RFC 9568 section 5.2.8 says, and Cisco and Juniper do.
    MessageOnly,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The address, and the prefix length with which it is put on the interface.
    pub address: IpNet,
    /// None: the instance's interface (with a VMAC: the VMAC's).
    pub interface: Option<String>,
}

/// Whether a backup takes over from a live master of lower priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preempt {
    Never,
    /// Only after the lower master was heard for this long; zero as RFC 9568 has it.
    After(Duration),
}

impl Default for Preempt {
    fn default() -> Preempt {
        Preempt::After(Duration::ZERO)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unicast {
    /// At least one, each once, of the instance's family.
    pub peers: Vec<IpAddr>,
    /// The least TTL or hop limit that an advertisement may arrive with. 255: from a neighbour only.
    pub min_ttl: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Authentication {
    #[default]
    None,
    /// v2's simple password (RFC 2338 section 5.3.6): up to 8 bytes in clear text. Protects from mistakes,
    /// not from people.
    Pass {
        password: String,
    },
    Hmac(HmacAuthentication),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HmacAuthentication {
    /// At least one, each id once.
    pub keys: Vec<HmacKey>,
    /// The id of the key that signs what is sent; among `keys`.
    pub active_key: u8,
    pub mode: HmacMode,
    /// How far a sender's clock may be from ours; None: clocks are not compared, only order counts.
    pub window: Option<Duration>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct HmacKey {
    pub id: u8,
    pub source: KeySource,
}

/// Secrets stay out of logs.
impl fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            KeySource::Inline(_) => "inline".to_owned(),
            KeySource::File(path) => path.display().to_string(),
        };
        write!(f, "HmacKey {{ id: {}, {source} }}", self.id)
    }
}

#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// 32 to 64 bytes.
    Inline(Vec<u8>),
    /// A file whose content is the key in hexadecimal digits; white space around it does not count.
    File(PathBuf),
}

/// How far a segment has come on its way to authentication; one step at a time on every director.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HmacMode {
    /// Sends plain advertisements; takes plain and signed ones.
    ReceiveOnly,
    /// Sends signed advertisements; takes plain and signed ones.
    Permissive,
    /// Sends and takes signed advertisements only.
    Enforce,
}

/// Gratuitous ARP and unsolicited neighbour advertisements of a master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gratuitous {
    /// How many per address in one burst, 1 to 100.
    pub count: u8,
    /// From promotion to the second burst; zero: no second burst.
    pub delay: Duration,
    /// How many in the second burst, and in the one that answers another master.
    pub repeat: u8,
    /// From burst to burst (of one) while master; None: no refresh.
    pub refresh: Option<Duration>,
}

impl Default for Gratuitous {
    fn default() -> Gratuitous {
        Gratuitous {
            count: 5,
            delay: Duration::from_secs(5),
            repeat: 5,
            refresh: Some(Duration::from_secs(60)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Vmac {
    #[default]
    Off,
    /// A macvlan with the virtual router's MAC address; None: named by [`Vmac::interface_name`].
    On { interface: Option<String> },
}

impl Vmac {
    /// What the macvlan is called: as the manifest says, or `vrrp51` (`vrrp6.51` for IPv6); None without one.
    pub fn interface_name(&self, vrid: Vrid, ipv4: bool) -> Option<String> {
        match self {
            Vmac::Off => None,
            Vmac::On { interface: Some(name) } => Some(name.clone()),
            Vmac::On { interface: None } if ipv4 => Some(format!("vrrp{vrid}")),
            Vmac::On { interface: None } => Some(format!("vrrp6.{vrid}")),
        }
    }
}

/// What decides, beside the protocol, whether this director may be master.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Track {
    pub interfaces: Vec<TrackInterface>,
    pub scripts: Vec<TrackScript>,
    pub processes: Vec<TrackProcess>,
    pub files: Vec<TrackFile>,
    pub services: Vec<TrackService>,
    /// The director's own program: attached and forwarding.
    pub data_plane: Option<TrackEffect>,
}

/// What a tracked thing that is down does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrackEffect {
    /// The instance is in fault.
    #[default]
    Fault,
    /// Negative: added to the priority while the thing is down. Positive: added while it is up. Not 0; -253
    /// to 253.
    Weight(i16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackInterface {
    pub name: String,
    pub effect: TrackEffect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackScript {
    pub name: Name,
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
    /// Runs as this user; None: as the agent.
    pub user: Option<String>,
    pub effect: TrackEffect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackProcess {
    /// As in /proc/PID/comm: at most 15 bytes.
    pub name: String,
    /// Up while at least so many run.
    pub quorum: u32,
    /// How long it may be missing before it counts as down.
    pub delay: Duration,
    pub effect: TrackEffect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackFile {
    pub path: PathBuf,
    pub effect: TrackFileEffect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrackFileEffect {
    /// Down while the file is absent or its number is not 0.
    Fault,
    /// The number in the file, times this, is added to the priority; a file that is absent counts as 0.
    Weight(i16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackService {
    pub service: Name,
    /// Up while the weights of its usable real servers come to at least so much.
    pub quorum: u32,
    pub effect: TrackEffect,
}

/// Commands run at transitions, one after the other in the order of the transitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// Program and arguments; no shell.
    pub master: Option<Vec<String>>,
    pub backup: Option<Vec<String>>,
    pub fault: Option<Vec<String>>,
    /// At every transition, after the one for the role.
    pub command: Option<Vec<String>>,
    pub timeout: Duration,
}

impl Default for Notify {
    fn default() -> Notify {
        Notify { master: None, backup: None, fault: None, command: None, timeout: Duration::from_secs(30) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualRoute {
    pub destination: IpNet,
    pub via: Option<IpAddr>,
    /// None: the instance's, where `via` is not given either.
    pub interface: Option<String>,
    pub source: Option<IpAddr>,
    pub table: Option<u32>,
    pub metric: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualRule {
    pub from: Option<IpNet>,
    pub to: Option<IpNet>,
    pub priority: Option<u32>,
    pub table: u32,
}

/// What stopping the agent does to an instance that is master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VrrpShutdown {
    /// The peer is asked to take over (priority 0), and the addresses go.
    Release,
    /// The addresses stay and the lease runs on, for an agent that is back within it.
    #[default]
    Keep,
}

/// Instances that are master together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VrrpSyncGroup {
    pub name: Name,
    /// VrrpInstances, at least two, each once, each in one group.
    pub members: Vec<Name>,
    /// Weights of the members' tracked things count for all members.
    pub shared_weights: bool,
    /// Tracked for all members.
    pub track: Track,
    pub notify: Notify,
}

/// The priority of the director that owns the addresses (RFC 9568 section 5.2.4).
pub const OWNER_PRIORITY: u8 = 255;
/// keepalived's and the RFC's default.
pub const DEFAULT_PRIORITY: u8 = 100;
