//! Names of the maps, programs and read-only values of the data-plane object, and the version of the pinned
//! layout. Kernel names have at most 15 bytes.

/// The layout version in the pin path. Raise it with any change of a record, a key or a map's kind.
pub const LAYOUT: u32 = 2;

/// Pinned maps: their contents outlive the agent and a program version.
pub mod pinned {
    /// ARRAY, mmapable, of [`crate::connection::Bucket`].
    pub const CONNECTIONS: &str = "CONNECTIONS";
    /// ARRAY, mmapable, of [`crate::connection::ColdTuple`], by slot number.
    pub const COLD_TUPLES: &str = "COLD_TUPLES";
    /// ARRAY, mmapable, of [`crate::destination::Destination`].
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// ARRAY, mmapable, of [`crate::destination::NextHop`]; 0 is never used.
    pub const NEXT_HOPS: &str = "NEXT_HOPS";
    /// PERCPU_ARRAY of [`crate::destination::Traffic`], by destination.
    pub const TRAFFIC: &str = "TRAFFIC";
    /// HASH of [`crate::service::ServiceKey`] to a service's (or, under port 0, a range list's) index.
    pub const SERVICE_INDEX: &str = "SERVICE_INDEX";
    /// ARRAY, mmapable, of [`crate::service::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// ARRAY of [`crate::service::PortRanges`].
    pub const PORT_RANGES: &str = "PORT_RANGES";
    /// ARRAY, mmapable, of [`crate::service::SlotLine`].
    pub const SLOTS: &str = "SLOTS";
    /// ARRAY, mmapable, of [`crate::service::ServerLine`].
    pub const SERVERS: &str = "SERVERS";
    /// ARRAY, mmapable, of [`crate::load::Load`].
    pub const LOADS: &str = "LOADS";
    /// ARRAY of [`crate::load::Rate`], by destination.
    pub const RATES: &str = "RATES";
    /// LPM_TRIE: access lists of IPv4 sources ([`crate::service::acl_key_v4`]) to
    /// [`crate::service::ACL_ALLOW`] or [`crate::service::ACL_DENY`].
    pub const ACL4: &str = "ACL4";
    /// LPM_TRIE: the same for IPv6.
    pub const ACL6: &str = "ACL6";
    /// HASH of [`crate::service::QuicKey`] to a destination's index.
    pub const QUIC_IDS: &str = "QUIC_IDS";
    /// ARRAY, mmapable, of [`crate::lease::Lease`].
    pub const LEASES: &str = "LEASES";
    /// ARRAY of [`crate::lease::PoolAddress`].
    pub const POOL: &str = "POOL";
    /// ARRAY, mmapable, of [`crate::filter::FilterLine`].
    pub const FILTER: &str = "FILTER";
    /// HASH of [`crate::filter::AddressKey`] to [`crate::filter::AddressRecord`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// LPM_TRIE: IPv4 prefix to the index of the next hop towards clients in it, or [`super::ON_LINK`].
    pub const CLIENT_ROUTES4: &str = "CLIENT_ROUTES4";
    /// LPM_TRIE: the same for IPv6.
    pub const CLIENT_ROUTES6: &str = "CLIENT_ROUTES6";
    /// LRU_HASH of [`crate::filter::AddressKey`] to [`super::ClientNeighbour`].
    pub const CLIENT_NEIGHBOURS: &str = "CLIENT_NEIGHB";
    /// ARRAY of [`super::VrrpWord`], by VRRP instance; 0 is unused.
    pub const VRRP: &str = "VRRP";
    /// ARRAY, mmapable, of [`crate::extension::Extension`].
    pub const EXTENSIONS: &str = "EXTENSIONS";
    /// PERCPU_ARRAY of [`crate::verdict::Count`], by reason.
    pub const REASONS: &str = "REASONS";
    /// ARRAY of one [`crate::hash::Secrets`].
    pub const SECRETS: &str = "SECRETS";
    /// HASH of [`crate::filter::PeerKey`]: the other real servers by DR of VIPs that this director is one of too.
    pub const PEERS: &str = "PEERS";
    /// DEVMAP_HASH by interface index.
    pub const OUTPUTS: &str = "OUTPUTS";

    /// All of them.
    pub const ALL: &[&str] = &[
        CONNECTIONS,
        COLD_TUPLES,
        DESTINATIONS,
        NEXT_HOPS,
        TRAFFIC,
        SERVICE_INDEX,
        SERVICES,
        PORT_RANGES,
        SLOTS,
        SERVERS,
        LOADS,
        RATES,
        ACL4,
        ACL6,
        QUIC_IDS,
        LEASES,
        POOL,
        FILTER,
        ADDRESSES,
        CLIENT_ROUTES4,
        CLIENT_ROUTES6,
        CLIENT_NEIGHBOURS,
        VRRP,
        EXTENSIONS,
        REASONS,
        SECRETS,
        PEERS,
        OUTPUTS,
    ];
}

/// Maps of one program version, made anew by each load.
pub mod own {
    /// PROG_ARRAY of the tail programs. Pinned beside the link: an unpinned one is emptied when its last
    /// user goes.
    pub const TAILS: &str = "TAILS";
    /// PERCPU_ARRAY of one [`crate::scratch::Scratch`].
    pub const SCRATCH: &str = "SCRATCH";
    /// PERCPU_ARRAY of one [`crate::scratch::Limiter`].
    pub const LIMITER: &str = "LIMITER";
    /// ARRAY, mmapable, of one [`crate::guard::Guard`].
    pub const GUARD: &str = "GUARD";
    /// PERCPU_ARRAY of one [`crate::guard::Pace`].
    pub const PACE: &str = "PACE";
    /// ARRAY, mmapable, of [`crate::probe::Target`].
    pub const PROBE_TARGETS: &str = "PROBE_TARGETS";
    /// LRU_HASH of [`crate::fragment::FragmentKey`] to [`crate::fragment::FirstFragment`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// LRU_HASH of [`crate::filter::AddressKey`] of a real server to the MTU that a router said the path of tunnels to
    /// it has (`u32`, bytes). Written by the data plane; the agent takes entries out and lowers destinations.
    pub const PATHS: &str = "PATHS";
    /// ARRAY of the words of [`crate::probe::port`].
    pub const PROBE_PORTS: &str = "PROBE_PORTS";
    /// PERCPU_ARRAY of one [`crate::ftp::Dialog`].
    pub const DIALOG: &str = "DIALOG";
    /// ARRAY, mmapable, of [`crate::witness::Witness`], by destination.
    pub const WITNESSES: &str = "WITNESSES";
}

/// Programs: (name in the object, slot in [`own::TAILS`]).
pub mod programs {
    /// The entry point.
    pub const MAIN: &str = "lb";
    /// Frames with VLAN tags, IPv4 options or IPv6 extension headers.
    pub const SLOW: (&str, u32) = ("lb_slow", 0);
    /// New flows, SYNs, packets of unknown flows.
    pub const NEW: (&str, u32) = ("lb_new", 1);
    /// Answers with ICMP errors.
    pub const ICMP: (&str, u32) = ("lb_icmp", 2);
    /// Answers with RST.
    pub const RESET: (&str, u32) = ("lb_reset", 3);
    /// Frames that the kernel would get, where the VRRP role may say otherwise: ARP, and packets to addresses
    /// that follow an instance.
    pub const HOST: (&str, u32) = ("lb_host", 4);
    /// The choice of a server for services with rules.
    pub const CHOOSE: (&str, u32) = ("lb_choose", 5);
    /// Replies to health probes on the real path.
    pub const PROBE: (&str, u32) = ("lb_probed", 7);
    /// ICMP that arrives: errors that quote a flow.
    pub const RELATED: (&str, u32) = ("lb_related", 8);
    /// Fragments.
    pub const FRAGMENT: (&str, u32) = ("lb_fragment", 9);
    /// Packets of control channels of FTP.
    pub const FTP: (&str, u32) = ("lb_ftp", 10);
    /// SYNs that no service takes: data connections that a control channel announced.
    pub const EXPECTED: (&str, u32) = ("lb_expected", 11);
    /// Commands for active data connections under FULLNAT.
    pub const FTP_ACTIVE: (&str, u32) = ("lb_ftp_active", 20);
    /// TCP packets of flows with an extension record.
    pub const SHIFTED: (&str, u32) = ("lb_shifted", 16);
    /// SCTP packets.
    pub const SCTP: (&str, u32) = ("lb_sctp", 12);
    /// As [`NEW`], for SCTP.
    pub const SCTP_NEW: (&str, u32) = ("lb_sctp_new", 13);
    /// Answers to SCTP packets with ABORT.
    pub const ABORT: (&str, u32) = ("lb_abort", 14);
    /// Tunnels other than plain IPIP.
    pub const TUNNEL: (&str, u32) = ("lb_tunnel", 15);
    /// SYN cookies.
    pub const COOKIE: (&str, u32) = ("lb_cookie", 24);
    /// Packets, rewritten already, that the client's address is put into as a TCP option.
    pub const TOA: (&str, u32) = ("lb_toa", 17);
    /// All tails.
    pub const TAILS: [(&str, u32); 19] = [
        SLOW, NEW, ICMP, RESET, HOST, CHOOSE, PROBE, RELATED, FRAGMENT, FTP, FTP_ACTIVE, EXPECTED, SCTP,
        SCTP_NEW, ABORT, TUNNEL, SHIFTED, COOKIE, TOA,
    ];
    /// The tc program on what the host itself sends.
    pub const EGRESS: &str = "lb_egress";
    /// The entry point at the far end of the prober's veth pair.
    pub const PROBE_SENT: &str = "lb_probe";
}

/// Names of the read-only values.
pub mod rodata {
    /// [`crate::scratch::Config`].
    pub const CONFIG: &str = "CONFIG";
    /// [`crate::hash::Secrets`].
    pub const KEYS: &str = "KEYS";
}

/// A client route whose clients are on a directly attached segment.
pub const ON_LINK: u32 = u32::MAX;

/// How a directly attached client was last seen: the frame's addresses, turned round.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ClientNeighbour {
    /// As [`crate::destination::NextHop::destination`].
    pub destination: u64,
    /// As [`crate::destination::NextHop::source`].
    pub source: u64,
    pub ifindex: u32,
    pub reserved: u32,
}

/// The role of this director in one VRRP instance, one `u64`: bit 63 master; bits 0 to 62 until when, in
/// jiffies modulo 2^63. The all-ones word is master without end.
pub type VrrpWord = u64;

/// The master bit of a [`VrrpWord`].
pub const VRRP_MASTER: u64 = 1 << 63;
/// Master without end: no lease is kept.
pub const VRRP_FOREVER: u64 = u64::MAX;
/// Bits of a [`VrrpWord`] that hold jiffies.
pub const VRRP_UNTIL: u64 = !VRRP_MASTER;
/// Words in the `VRRP` map.
pub const VRRP_INSTANCES: u32 = 256;
