//! What the data plane knows of a virtual service, and how it finds one: only for new flows. The service
//! hash holds an index (elements of BPF hash maps are recycled under their readers); the record is an array
//! line.

use crate::address::Address;

/// Key of the service hash: (address, port, protocol, family). 20 bytes, no padding.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct ServiceKey {
    pub address: Address,
    /// Network order in memory; 0 asks for the VIP's port ranges.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
}

/// How many ranges one (VIP, protocol) may have.
pub const MAX_RANGES: usize = 16;

/// One range of ports of a VIP, host order, both ends included.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
    pub service: u32,
}

/// The ranges of one (VIP, protocol): sorted, not overlapping, a service of *any* port last. The service
/// hash's value under port 0 is an index of these. `first > last` ends the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct PortRanges {
    pub ranges: [PortRange; MAX_RANGES],
}

impl Default for PortRanges {
    fn default() -> Self {
        Self { ranges: [PortRange { first: 1, last: 0, service: 0 }; MAX_RANGES] }
    }
}

/// How a slot is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Pick {
    /// The next slot: rr, wrr.
    Cursor = 0,
    /// By a hash of the client's address: sh, mh.
    HashAddress = 1,
    /// By a hash of the client's address and port.
    HashAddressPort = 2,
    /// By the VIP: dh. A service has one VIP, so its table has one slot that counts, the first.
    HashDestination = 3,
    /// Least connections: active and a 256th of the inactive ones.
    Lc = 4,
    /// The same over the weight.
    Wlc = 5,
    /// Shortest expected delay: active plus one over the weight.
    Sed = 6,
    /// Never queue: an idle server, else as [`Pick::Sed`].
    Nq = 7,
    /// The highest weight: weighted failover.
    Fo = 8,
    /// The highest weight among those with no more active flows than their weight: overflow.
    Ovf = 9,
    /// The better one, by weighted overhead, of two drawn at random by weight: power of two choices. Drawn from the
    /// slots; where that finds nobody, by a walk.
    Twos = 10,
    /// The server that the VIP went to before, unless it is overloaded: locality-based least connection.
    Lblc = 11,
    /// The same with a set of servers.
    Lblcr = 12,
    /// As [`Pick::HashAddress`] by IPVS's sh ([`crate::ipvs`]).
    IpvsSh = 13,
    /// By IPVS's sh with the port.
    IpvsShPort = 14,
    /// By IPVS's mh.
    IpvsMh = 15,
    /// By IPVS's mh with the port.
    IpvsMhPort = 16,
}

impl Pick {
    /// Whether the choice depends on how many flows the servers have: such a service walks its list of servers.
    pub const fn is_counted(self) -> bool {
        matches!(
            self,
            Pick::Lc | Pick::Wlc | Pick::Sed | Pick::Nq | Pick::Ovf | Pick::Twos | Pick::Lblc | Pick::Lblcr
        )
    }

    /// Whether the list of servers may be walked: slots alone do not decide.
    pub const fn walks(self) -> bool {
        self.is_counted() || matches!(self, Pick::Fo)
    }

    /// Whether the same client is always given the same slot, so that any director places its flows alike.
    pub const fn is_hash(self) -> bool {
        !self.walks() && !matches!(self, Pick::Cursor)
    }
}

/// What happens to a TCP packet without SYN that belongs to no flow, and after its timeout to any flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OnUnknownFlow {
    Adopt = 0,
    Reset = 1,
    Pass = 2,
    Drop = 3,
}

/// What a client is told when a service has no server to offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum NoServer {
    /// Nothing.
    #[default]
    Drop = 0,
    /// TCP: RST. SCTP: ABORT. UDP: as [`NoServer::Unreachable`].
    Reset = 1,
    /// ICMP port unreachable.
    Unreachable = 2,
}

/// Bits of [`Service::features`]. All clear: a new flow reads the slot table and nothing else of this.
pub mod features {
    /// The list of servers is walked, or a slot must be checked: [`super::Pick::walks`], thresholds, a hash that is
    /// not the plain one, a flow that may not go to every server. Without it the slots alone decide.
    pub const CHOOSE: u32 = 1;
    /// Clients keep their server for a time.
    pub const PERSISTENT: u32 = 1 << 1;
    /// Source addresses are looked up in an access list.
    pub const ACL: u32 = 1 << 2;
    /// Sources that the access list does not name are refused.
    pub const ACL_REFUSES_OTHERS: u32 = 1 << 3;
    /// New flows per second are limited.
    pub const RATE: u32 = 1 << 4;
    /// A hash service whose slot's server cannot be used takes another.
    pub const FALLBACK: u32 = 1 << 5;
    /// UDP under DR and TUN: every packet is scheduled, no entry is made.
    pub const ONE_PACKET: u32 = 1 << 6;
    /// A QUIC packet of an unknown flow goes to the server whose id is in its connection id.
    pub const QUIC: u32 = 1 << 7;
    /// Persistence by the SIP Call-ID.
    pub const SIP: u32 = 1 << 8;
    /// Of servers that are equally good the last of the list is taken (IPVS walks from the last added).
    pub const LAST_FIRST: u32 = 1 << 9;
    /// Of servers that are equally good not always the same one is taken.
    pub const ROTATE: u32 = 1 << 10;
    /// Persistent clients go on to a server whose weight is 0 (IPVS without `expire_quiescent_template`).
    pub const STICKY_QUIESCED: u32 = 1 << 11;
    /// Hash services hash a prefix of the source.
    pub const HASH_PREFIX: u32 = 1 << 12;
    /// UDP flows count as inactive (IPVS).
    pub const UDP_INACTIVE: u32 = 1 << 13;
    /// Flows are counted at the servers of this service.
    pub const COUNTED: u32 = 1 << 14;
    /// The control channel of FTP is read.
    pub const FTP: u32 = 1 << 16;
    /// TCP under NAT and FULLNAT: SYNs may be answered with cookies.
    pub const COOKIES: u32 = 1 << 20;
    /// With [`COOKIES`]: every SYN is, whatever the rate.
    pub const COOKIES_ALWAYS: u32 = 1 << 21;
    /// TCP under NAT and FULLNAT: the PROXY header goes before the client's first bytes.
    pub const PROXY: u32 = 1 << 15;
    /// TCP under FULLNAT: the client's address goes to the server as a TCP option.
    pub const TOA: u32 = 1 << 17;
    /// What gives a new flow an extension record.
    pub const EXTENDED: u32 = PROXY | TOA;
    /// What sends a new flow to `lb_choose`.
    pub const RARE: u32 = CHOOSE | PERSISTENT | ACL | RATE | ONE_PACKET | QUIC | SIP | HASH_PREFIX;
}

/// A virtual service: two lines. What a plain service's new flow reads is in the first.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Service {
    /// \[atomic\] first slot (32 bits) | number of slots (24) | generation (8).
    pub slots: u64,
    /// How many flows were placed: the cursor of rr and wrr. Written by the data plane only.
    pub cursor: u64,
    /// [`Pick`].
    pub pick: u8,
    /// [`OnUnknownFlow`].
    pub on_unknown_flow: u8,
    /// Bit 0: in use.
    pub flags: u8,
    /// Number of local addresses ([`crate::lease::PoolAddress`]) of a FULLNAT service.
    pub pool_len: u8,
    /// MSS written into SYNs above it, host order; 0 leaves them.
    pub mss: u16,
    /// Index of the first local address.
    pub pool_first: u16,
    /// Timeouts in ticks by state number.
    pub timeouts: [u16; 16],
    /// Which protocol and VRRP instance: for the reader of a dump.
    pub protocol: u8,
    pub vrrp: u8,
    /// Number of the access list; 0 is none.
    pub acl: u16,
    /// [`features`].
    pub features: u32,
    /// \[atomic\] first entry of the list of servers (32 bits) | number of entries (24) | generation (8). An entry's
    /// place is the server's ordinal: endpoints of one group hold the bindings of a server at the same place.
    pub servers: u64,
    /// \[atomic\] second (32 bits) | new flows in it (32). Written by the data plane only, at the leader.
    pub limit: u64,
    /// \[atomic\] lblc: the server's entry in the list plus one (32 bits); lblcr: when its set changed, in seconds
    /// (32 bits, upper half). Written by the data plane only.
    pub cached: u64,
    /// Index of the service whose cursor, limit and persistence this one shares: itself when alone.
    pub leader: u32,
    /// New flows a second, with [`features::RATE`].
    pub new_per_second: u32,
    /// Persistence: how long, in ticks.
    pub persist_timeout: u16,
    /// Persistence: bits of an IPv4 client that count.
    pub persist_v4: u8,
    /// Persistence: bits of an IPv6 client that count.
    pub persist_v6: u8,
    /// Bits of an IPv4 source that hash schedulers use.
    pub hash_v4: u8,
    /// Bits of an IPv6 source that hash schedulers use.
    pub hash_v6: u8,
    /// [`NoServer`].
    pub no_server: u8,
    /// QUIC: where the server id begins in the connection id.
    pub quic_offset: u8,
    /// QUIC: bytes of the server id, 1 to 8.
    pub quic_len: u8,
    /// Spare; zero.
    pub reserved: [u8; 23],
}

/// The service record is in use.
pub const SERVICE_VALID: u8 = 1;

impl Service {
    /// The slots word from its parts.
    pub const fn make_slots(first: u32, len: u32, generation: u8) -> u64 {
        first as u64 | (len as u64 & 0xff_ffff) << 32 | (generation as u64) << 56
    }

    /// (first slot, number of slots) of a slots word.
    #[inline(always)]
    pub const fn slots_of(word: u64) -> (u32, u32) {
        (word as u32, (word >> 32) as u32 & 0xff_ffff)
    }
}

/// Slots lie sixteen to a 64-byte array element: an ARRAY of `u32` would round each up to 8 bytes.
pub const SLOTS_PER_LINE: u32 = 16;

/// A line of slots. A slot is a destination's index plus one; 0 is no server.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct SlotLine {
    pub slots: [u32; SLOTS_PER_LINE as usize],
}

/// Entries of lists of servers lie eight to a 64-byte array element.
pub const SERVERS_PER_LINE: u32 = 8;

/// A line of the packed lists of servers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct ServerLine {
    /// \[atomic\] [`ServerEntry`].
    pub entries: [u64; SERVERS_PER_LINE as usize],
}

/// The most servers that a list can have: the walk over them is bounded.
pub const MAX_SERVERS: u32 = 4096;

/// One server of a list: destination plus one (bits 0 to 31; 0 is a hole), index of its [`crate::load::Load`] (bits
/// 32 to 55), and bit 63: it is in the set of lblcr, which the data plane writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct ServerEntry(pub u64);

impl ServerEntry {
    /// No server.
    pub const HOLE: ServerEntry = ServerEntry(0);
    /// In the set of lblcr.
    pub const MEMBER: u64 = 1 << 63;
    /// Bits of the upper half that are the index of its load.
    pub const LOAD: u32 = 0xff_ffff;

    /// An entry.
    #[inline(always)]
    pub const fn new(destination: u32, load: u32) -> Self {
        Self((destination as u64 + 1) | ((load & Self::LOAD) as u64) << 32)
    }

    /// The destination's index.
    #[inline(always)]
    pub const fn destination(self) -> Option<u32> {
        (self.0 as u32).checked_sub(1)
    }

    /// The index of its load.
    #[inline(always)]
    pub const fn load(self) -> u32 {
        (self.0 >> 32) as u32 & Self::LOAD
    }
}

/// Key of the map of QUIC server ids. 16 bytes, no padding.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(C)]
pub struct QuicKey {
    /// Index of the service.
    pub service: u32,
    /// Bytes of the id that count.
    pub len: u32,
    /// The id, zeros behind it.
    pub id: [u8; 8],
}

/// Key data of the access lists: the list's number (network order, all 32 bits count), then the address.
#[inline(always)]
pub const fn acl_key_v4(list: u16, address: [u8; 4]) -> [u8; 8] {
    let l = (list as u32).to_be_bytes();
    [l[0], l[1], l[2], l[3], address[0], address[1], address[2], address[3]]
}

/// As [`acl_key_v4`].
#[inline(always)]
pub const fn acl_key_v6(list: u16, a: [u8; 16]) -> [u8; 20] {
    let l = (list as u32).to_be_bytes();
    [
        l[0], l[1], l[2], l[3], a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11],
        a[12], a[13], a[14], a[15],
    ]
}

/// Bits of an access list's number, to be added to a prefix's length.
pub const ACL_LIST_BITS: u32 = 32;
/// What an access list says of a prefix.
pub const ACL_ALLOW: u32 = 1;
/// What an access list says of a prefix.
pub const ACL_DENY: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn records_have_the_sizes_that_the_program_was_built_with() {
        assert_eq!(size_of::<ServiceKey>(), 20);
        assert_eq!(size_of::<PortRange>(), 8);
        assert_eq!(size_of::<PortRanges>(), 128);
        assert_eq!((size_of::<Service>(), align_of::<Service>()), (128, 64));
        assert_eq!(offset_of!(Service, features), 60, "the last word of the first line");
        assert_eq!((offset_of!(Service, servers), offset_of!(Service, limit)), (64, 72));
        assert_eq!((offset_of!(Service, cached), offset_of!(Service, leader)), (80, 88));
        assert_eq!(size_of::<ServerLine>(), 64);
        assert_eq!(size_of::<QuicKey>(), 16);
        assert_eq!((offset_of!(Service, slots), offset_of!(Service, cursor)), (0, 8));
        assert_eq!(offset_of!(Service, timeouts), 24);
        assert_eq!(size_of::<SlotLine>(), 64);
    }

    #[test]
    fn a_slots_word_gives_back_its_parts() {
        let word = Service::make_slots(0xdead_beef, 65_537, 9);
        assert_eq!(Service::slots_of(word), (0xdead_beef, 65_537));
    }

    #[test]
    fn an_entry_of_a_list_gives_back_its_parts() {
        let entry = ServerEntry::new(0x1f_ffff, 0x1f_fffe);
        assert_eq!((entry.destination(), entry.load()), (Some(0x1f_ffff), 0x1f_fffe));
        let member = ServerEntry(entry.0 | ServerEntry::MEMBER);
        assert_eq!((member.destination(), member.load()), (entry.destination(), entry.load()));
        assert_eq!(ServerEntry::HOLE.destination(), None);
        assert_ne!(ServerEntry::new(0, 0), ServerEntry::HOLE);
    }

    #[test]
    fn an_access_lists_key_is_its_number_and_the_address() {
        assert_eq!(acl_key_v4(0x0102, [10, 0, 0, 1]), [0, 0, 1, 2, 10, 0, 0, 1]);
        assert_eq!(acl_key_v6(7, [9; 16])[..5], [0, 0, 0, 7, 9]);
    }

    #[test]
    fn empty_ranges_hold_no_port() {
        for range in PortRanges::default().ranges {
            assert!(range.first > range.last);
        }
    }
}
