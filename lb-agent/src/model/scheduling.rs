//! Who gets a new flow of a virtual service, beyond the scheduler's name; who is refused; how a real server leaves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

/// Everything of a virtual service that is about new flows and their refusal. The default asks nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scheduling {
    /// IPVS's order of servers, its hash functions and tables, its count of UDP flows as inactive.
    pub ipvs_compatible: bool,
    /// sh, mh: a client whose server cannot take it gets another instead of a refusal.
    pub fallback: bool,
    pub hash_prefix: HashPrefix,
    pub persistence: Option<Persistence>,
    /// UDP under dr and tun: every packet is scheduled anew.
    pub one_packet: bool,
    pub quic: Option<Quic>,
    /// Of the whole service; the rest is refused.
    pub new_connections_per_second: Option<u32>,
    pub sources: Sources,
    pub when_no_server: WhenNoServer,
    pub drain: DrainPolicy,
    /// TCP under nat and fullnat: the server is told the client's address by PROXY protocol v2.
    pub proxy_protocol: bool,
    /// TCP under fullnat: the server is told the client's address by a TCP option (TOA).
    pub toa: bool,
    /// TCP under nat and fullnat: whether SYNs are answered with cookies.
    pub syn_cookies: SynCookies,
}

/// When a service answers SYNs with cookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SynCookies {
    /// Above the Director's rate.
    #[default]
    Auto,
    Always,
    Off,
}

/// How many leading bits of a client's address sh and mh hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashPrefix {
    pub v4: u8,
    pub v6: u8,
}

impl Default for HashPrefix {
    fn default() -> HashPrefix {
        HashPrefix { v4: 32, v6: 128 }
    }
}

impl HashPrefix {
    pub fn is_whole(self) -> bool {
        self == HashPrefix::default()
    }
}

/// A client keeps its real server for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistence {
    /// From the client's first connection on, whatever follows.
    pub timeout: Duration,
    /// Leading bits of an IPv4 client's address that make the client.
    pub prefix_v4: u8,
    /// Leading bits of an IPv6 client's address that make the client.
    pub prefix_v6: u8,
    pub engine: PersistenceEngine,
    /// New connections of the client go on to its server when that has weight 0.
    pub keep_when_quiesced: bool,
}

impl Persistence {
    /// IPVS's default (ipvsadm -p without a value).
    pub const TIMEOUT: Duration = Duration::from_secs(300);
}

/// By what clients are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PersistenceEngine {
    #[default]
    Address,
    /// The Call-ID of a SIP message over UDP (RFC 3261, 20.8).
    Sip,
}

/// Where a server id lies in a QUIC connection id (the plain layout of draft-ietf-quic-load-balancers, whose first
/// byte is not part of the id).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quic {
    /// Bytes of the connection id before the server id.
    pub server_id_offset: u8,
    /// Bytes of the server id: 1 to 8.
    pub server_id_length: u8,
}

/// What a real server puts into the connection ids that it gives out: 1 to 8 bytes, displayed in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(Vec<u8>);

impl ServerId {
    /// From pairs of hexadecimal digits.
    pub fn parse(text: &str) -> Option<ServerId> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
        let whole = digits.len().is_multiple_of(2) && (1..=8).contains(&(digits.len() / 2));
        whole.then(|| ServerId(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whose new connections are taken. The longest prefix that holds a client decides; who is in none is taken unless
/// there is a list of allowed ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    /// Sorted.
    pub allow: Vec<IpNet>,
    /// Sorted.
    pub deny: Vec<IpNet>,
    /// Files with more of them.
    pub allow_file: Option<PathBuf>,
    pub deny_file: Option<PathBuf>,
}

impl Sources {
    /// Whether everybody is taken.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.files().next().is_none()
    }

    /// Whether only those that are allowed are taken.
    pub fn has_allowed(&self) -> bool {
        !self.allow.is_empty() || self.allow_file.is_some()
    }

    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.allow_file.iter().chain(&self.deny_file)
    }

    /// With the prefixes of its files, as `list` knows them. What one list allows and another denies is denied.
    pub fn with_files<'a>(&self, list: impl Fn(&Path) -> Option<&'a [IpNet]>) -> Sources {
        let mut all = self.clone();
        let more = |own: &mut Vec<IpNet>, file: &Option<PathBuf>| {
            if let Some(nets) = file.as_deref().and_then(&list) {
                own.extend(nets);
                own.sort();
                own.dedup();
            }
        };
        more(&mut all.allow, &self.allow_file);
        more(&mut all.deny, &self.deny_file);
        if self.files().next().is_some() {
            let denied = &all.deny;
            all.allow.retain(|net| denied.binary_search(net).is_err());
        }
        all
    }

    /// Made ready to decide about many clients.
    pub fn admission(&self) -> Admission {
        Admission {
            allow: Prefixes::of(&self.allow),
            deny: Prefixes::of(&self.deny),
            strangers: !self.has_allowed(),
        }
    }
}

/// Whose connections are taken, as the data plane decides it.
#[derive(Debug, Clone)]
pub struct Admission {
    allow: Prefixes,
    deny: Prefixes,
    strangers: bool,
}

impl Admission {
    pub fn admits(&self, client: IpAddr) -> bool {
        match (self.allow.longest(client), self.deny.longest(client)) {
            (allowed, Some(denied)) => allowed.is_some_and(|allowed| allowed > denied),
            (Some(_), None) => true,
            (None, None) => self.strangers,
        }
    }
}

/// Prefixes by their lengths, the longest first: one look for each length that there is.
#[derive(Debug, Clone)]
struct Prefixes(BTreeMap<Reverse<u8>, HashSet<IpNet>>);

impl Prefixes {
    fn of(nets: &[IpNet]) -> Prefixes {
        let mut lengths: BTreeMap<Reverse<u8>, HashSet<IpNet>> = BTreeMap::new();
        for net in nets {
            lengths.entry(Reverse(net.prefix_len())).or_default().insert(*net);
        }
        Prefixes(lengths)
    }

    /// The length of the longest that holds an address.
    fn longest(&self, address: IpAddr) -> Option<u8> {
        let holds = |length: u8, nets: &HashSet<IpNet>| {
            IpNet::new(address, length).is_ok_and(|net| nets.contains(&net.trunc()))
        };
        self.0.iter().find(|(length, nets)| holds(length.0, nets)).map(|(length, _)| length.0)
    }
}

/// What a client is told when no real server can take its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenNoServer {
    /// TCP: RST; others: as unreachable.
    #[default]
    Reset,
    /// ICMP port unreachable, as IPVS.
    Unreachable,
    Drop,
}

/// How a real server that is taken out of the manifest leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainPolicy {
    /// How long its connections may go on. None: until they end by themselves.
    pub deadline: Option<Duration>,
    pub on_deadline: OnDeadline,
}

impl DrainPolicy {
    /// The longest deadline.
    pub const MAX: Duration = Duration::from_secs(30 * 24 * 3600);
}

/// What becomes of connections that are left at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDeadline {
    /// With its next packet a TCP connection is reset at both ends, and a UDP flow goes elsewhere.
    #[default]
    Reset,
    /// They go on.
    Keep,
}

/// What one real server of a service may be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerLimits {
    pub connections: Option<Thresholds>,
    pub packets_per_second: Option<u32>,
    /// With [`Scheduling::quic`].
    pub server_id: Option<ServerId>,
}

/// IPVS's upper and lower threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Connections, active and inactive, at which the server takes no new ones.
    pub max: u32,
    /// Below so many it takes new ones again. None: below three quarters of `max`.
    pub resume: Option<u32>,
}

/// The most prefixes of one list in a manifest.
pub const SOURCES_MAX: usize = 16_384;
/// The most prefixes of one file.
pub const LIST_FILE_MAX: usize = 131_072;
/// The most real servers that a scheduler that counts connections looks through.
pub const WALKED_SERVERS_MAX: usize = lb_common::service::MAX_SERVERS as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_id_is_one_to_eight_bytes_of_hexadecimal() {
        for (text, bytes) in [("0a", &[10][..]), ("00FF10", &[0, 255, 16])] {
            let id = ServerId::parse(text).unwrap();
            assert_eq!(id.bytes(), bytes);
            assert_eq!(id.to_string(), text.to_lowercase());
        }
        for text in ["", "a", "0g", "0x0a", "001122334455667788"] {
            assert_eq!(ServerId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_longest_prefix_decides_and_an_allow_list_keeps_strangers_out() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let of = |allow: &[&str], deny: &[&str]| Sources {
            allow: nets(allow),
            deny: nets(deny),
            ..Sources::default()
        };
        for (sources, client, admitted) in [
            (of(&[], &[]), "192.0.2.1", true),
            (of(&[], &["192.0.2.0/24"]), "192.0.2.1", false),
            (of(&[], &["192.0.2.0/24"]), "192.0.3.1", true),
            (of(&["192.0.2.0/24"], &[]), "192.0.3.1", false),
            (of(&["192.0.2.0/24"], &["192.0.2.1/32"]), "192.0.2.1", false),
            (of(&["192.0.2.1/32"], &["192.0.2.0/24"]), "192.0.2.1", true),
            (of(&["192.0.2.1/32"], &["192.0.2.0/24"]), "192.0.2.2", false),
            (of(&["2001:db8::/32"], &[]), "192.0.2.1", false),
        ] {
            assert_eq!(sources.admission().admits(client.parse().unwrap()), admitted, "{sources:?} {client}");
        }
    }

    #[test]
    fn files_add_to_the_lists_and_what_is_allowed_here_and_denied_there_is_denied() {
        let nets =
            |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let sources = Sources {
            allow: nets(&["192.0.2.0/24"]),
            deny: nets(&["192.0.2.7/32"]),
            allow_file: Some("/a".into()),
            deny_file: Some("/d".into()),
        };
        let (allowed, denied) =
            (nets(&["10.0.0.0/8", "192.0.2.0/24"]), nets(&["10.0.0.0/8", "192.0.2.8/32"]));
        let all = sources.with_files(|path| Some(if path == Path::new("/a") { &allowed } else { &denied }));
        assert_eq!(all.allow, nets(&["192.0.2.0/24"]));
        assert_eq!(all.deny, nets(&["10.0.0.0/8", "192.0.2.7/32", "192.0.2.8/32"]));
        let empty = Sources { allow_file: Some("/a".into()), ..Sources::default() }.with_files(|_| None);
        assert!(!empty.is_empty() && !empty.admission().admits("192.0.2.1".parse().unwrap()), "fails closed");
    }
}
