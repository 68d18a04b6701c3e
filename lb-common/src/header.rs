//! Numbers of the wire: offsets and constants that program, agent and tests share.

/// EtherTypes, host order.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers and IPv6 next headers.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const NONE: u8 = 59;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
}

/// ICMP types (RFC 792).
pub mod icmp {
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const ECHO_REPLY: u8 = 0;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Code of [`UNREACHABLE`]: fragmentation needed and DF set (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// ICMPv6 types (RFC 4443).
pub mod icmpv6 {
    pub const UNREACHABLE: u8 = 1;
    pub const PACKET_TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO_REQUEST: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
}

/// Length of the header of an ICMP error: behind it is the quote.
pub const ICMP: usize = 8;

/// ICMPv6 types of neighbour discovery (RFC 4861, section 4).
pub mod nd {
    pub const ROUTER_SOLICITATION: u8 = 133;
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub const REDIRECT: u8 = 137;
}

/// Where an ARP packet for IPv4 over Ethernet (RFC 826) has its fields.
pub mod arp {
    /// Hardware type, protocol type and both lengths, as they begin every such packet.
    pub const IPV4_OVER_ETHERNET: [u8; 6] = [0, 1, 8, 0, 6, 4];
    /// Sender's protocol address.
    pub const SENDER: usize = 14;
    /// Target's protocol address.
    pub const TARGET: usize = 24;
    /// Length of the packet.
    pub const LENGTH: usize = 28;
}

/// GUE (draft-ietf-intarea-gue-09): behind UDP's header, variant 0 with nothing optional.
pub mod gue {
    /// UDP's header and GUE's.
    pub const LENGTH: usize = 12;
    /// The source port is one of these (section 5.11): a flow's own, so that receivers spread by it.
    pub const FIRST_SOURCE_PORT: u16 = 49_152;
}

/// GRE (RFC 2784, RFC 2890).
pub mod gre {
    /// Bits of its first word, host order.
    pub const CHECKSUM: u16 = 0x8000;
    pub const KEY: u16 = 0x2000;
    pub const SEQUENCE: u16 = 0x1000;
    /// What must be zero for us: routing, strict source route, recursion, version.
    pub const REFUSED: u16 = 0x4fff;
}

/// Length of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Length of the IPv6 header.
pub const IPV6: usize = 40;
