//! What the network says of the ways to real servers and clients. Values only: `net` reports them, the director
//! decides by them.

use std::net::IpAddr;

use ipnet::IpNet;

/// What the data plane needs to send a frame towards one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Interface that carries XDP: for a VLAN device, the parent at the bottom.
    pub ifindex: u32,
    pub destination_mac: [u8; 6],
    pub source_mac: [u8; 6],
    /// VLAN identifiers to push (priority 0), outermost first; 0 = none. The outer one with
    /// [`OTHER_TAG`](lb_common::destination::OTHER_TAG) where its EtherType is the rarer one.
    pub vlans: [u16; 2],
    /// Bytes of an IP packet that fit: the route's MTU metric or the interface's MTU, whichever is less.
    pub mtu: u32,
    /// The source address that the kernel would prefer.
    pub source: Option<IpAddr>,
    /// Who is sent to: the gateway, or the address itself.
    pub neighbour: IpAddr,
}

/// What is known about the way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Nothing yet; a question is under way.
    Pending,
    Resolved(NextHop),
    /// The address is one of this host's.
    Local,
    /// A sentence for the operator ("no ARP answer from 10.0.0.12 on eth0"). It is tried again by itself.
    Failed {
        reason: String,
    },
}

/// Where replies to the clients of one prefix go. The longest matching prefix wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRoute {
    pub prefix: IpNet,
    pub via: ClientHop,
}

/// The first hop towards a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientHop {
    /// A router; resolved as `Event::Gateway`. The interface is part of it: fe80::1 may be on each of them.
    Gateway { address: IpAddr, ifindex: u32 },
    /// The client itself, on this interface.
    OnLink { ifindex: u32 },
    /// A blackhole, unreachable or prohibit route (or one that the kernel encapsulates): no reply leaves by XDP.
    Unreachable,
}

/// Frames of an interface since it was made, by the kernel's count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    pub received: LinkTraffic,
    pub sent: LinkTraffic,
}

/// Frames of an interface in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkTraffic {
    pub packets: u64,
    pub bytes: u64,
    /// Lost for want of room.
    pub dropped: u64,
    /// Broken, or not sent for another reason.
    pub errors: u64,
}
