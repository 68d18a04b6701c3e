//! Between rtnetlink messages and our own records: the only file that knows the kernel's attributes. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use rtnetlink::packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};

use super::links::{Link, Vlan};
use super::resolver::{Hop, Neighbour, Reachability, Route, Target};
use crate::model::{ClientHop, ClientRoute};

/// `IFA_PROTO` (kernel 5.18) of the addresses that the agent adds: 'l'.
pub const ADDRESS_PROTOCOL: u8 = 0x6c;
/// `IFA_PROTO` of the addresses that follow a VRRP instance: 'v'. Apart from the others, because another thread
/// puts them on and takes them off.
pub const VRRP_ADDRESS_PROTOCOL: u8 = 0x76;

/// An address of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    pub ifindex: u32,
    /// The address with the length of its prefix; host bits are kept.
    pub address: IpNet,
    /// The agent added it (or an earlier run of it).
    pub ours: bool,
    /// It follows a VRRP instance; then it is ours.
    pub vrrp: bool,
}

/// Reads an interface; `None` for messages about bridge ports and the like, which reuse the message type.
pub fn link(message: &LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        vlan: None,
        controller: None,
    };
    let (mut below, mut below_elsewhere, mut tag) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => below_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vlan(data)) => tag = Some(vlan_tag(data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.vlan =
        tag.map(|(id, service_tag)| Vlan { id, service_tag, parent: below.filter(|_| !below_elsewhere) });
    Some(link)
}

fn vlan_tag(data: &[InfoVlan]) -> (u16, bool) {
    let (mut id, mut service_tag) = (0, false);
    for info in data {
        match info {
            InfoVlan::Id(value) => id = *value,
            InfoVlan::Protocol(protocol) => service_tag = *protocol == VlanProtocol::Ieee8021Ad,
            _ => {}
        }
    }
    (id, service_tag)
}

/// Reads an ARP or ND entry; `None` for bridge forwarding entries and proxies.
pub fn neighbour(message: &NeighbourMessage) -> Option<(Hop, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = match message.header.state {
        NeighbourState::Reachable => Reachability::Confirmed,
        NeighbourState::Permanent | NeighbourState::Noarp => Reachability::Static,
        NeighbourState::Stale => Reachability::Stale,
        NeighbourState::Delay | NeighbourState::Probe => Reachability::Probing,
        NeighbourState::Failed => Reachability::Failed,
        _ => Reachability::Unknown,
    };
    Some((Hop { ifindex: message.header.ifindex, address: address? }, Neighbour { state, mac }))
}

/// The request that makes the kernel resolve (or, `confirm`, ask again for) a neighbour. It keeps the entry's
/// hardware address, so packets of the host itself are not held up meanwhile.
pub fn probe(hop: Hop, confirm: bool) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(hop.address);
    message.header.ifindex = hop.ifindex;
    message.header.kind = RouteType::Unspec;
    if confirm {
        // A unicast solicitation now (RFC 4861 7.3.2, PROBE; the kernel treats ARP alike), where NTF_USE would
        // begin with five seconds of DELAY.
        message.header.state = NeighbourState::Probe;
    } else {
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
    }
    message.attributes.push(NeighbourAttribute::Destination(match hop.address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    message
}

/// The question which route the kernel takes to an address, policy rules included.
pub fn route_question(target: Target) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(target.address);
    message.header.destination_prefix_length = if target.address.is_ipv4() { 32 } else { 128 };
    message.attributes.push(RouteAttribute::Destination(target.address.into()));
    if let Some(index) = target.interface {
        message.attributes.push(RouteAttribute::Oif(index));
    }
    message
}

/// Reads the kernel's answer to [`route_question`].
///
/// # Errors
/// A sentence for the operator if the address is not one that frames can be sent to.
pub fn route_answer(target: Target, message: &RouteMessage) -> Result<Route, String> {
    let address = target.address;
    match message.header.kind {
        RouteType::Unicast => {}
        // Of a gateway it makes no sense.
        RouteType::Local if target.interface.is_none() => {
            return Ok(Route { ifindex: 0, gateway: None, source: None, mtu: None, local: true });
        }
        RouteType::Local | RouteType::Anycast => return Err(format!("{address} is an address of this host")),
        RouteType::Broadcast => return Err(format!("{address} is a broadcast address")),
        RouteType::Multicast => return Err(format!("{address} is a multicast address")),
        other => return Err(format!("the route to {address} is of type {other:?}")),
    }
    let mut route = Route { ifindex: 0, gateway: None, source: None, mtu: None, local: false };
    let (mut mtu, mut expires) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.ifindex = *index,
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::Via(via) => route.gateway = via_ip(via),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Metrics(metrics) => mtu = mtu_metric(metrics),
            RouteAttribute::CacheInfo(info) => expires = info.expires != 0,
            RouteAttribute::Encap(_) => {
                return Err(format!("the route to {address} encapsulates (lwtunnel)"));
            }
            _ => {}
        }
    }
    // A path MTU that the kernel learned goes away without an event: only what is configured is used.
    route.mtu = mtu.filter(|_| !expires);
    if route.ifindex == 0 {
        return Err(format!("the route to {address} names no interface"));
    }
    Ok(route)
}

/// The sentence for an error number that the kernel answered [`route_question`] with.
pub fn route_refusal(target: Target, errno: i32) -> String {
    let address = target.address;
    match errno {
        libc::ENETUNREACH => format!("no route to {address}"),
        libc::EHOSTUNREACH => format!("the route to {address} is of type unreachable"),
        libc::EINVAL => format!("the route to {address} is of type blackhole"),
        libc::EACCES => format!("the route to {address} is of type prohibit"),
        libc::ENODEV => format!("no route to {address}: its interface is gone"),
        other => format!("no route to {address}: {}", std::io::Error::from_raw_os_error(other)),
    }
}

/// Reads a route of the main table together with its metric (lower wins); `None` for what clients are not
/// answered by: other tables, routes for one type of service, dead ones, link-local prefixes.
pub fn client_route(message: &RouteMessage) -> Option<(u32, ClientRoute)> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let (mut destination, mut gateway, mut ifindex, mut metric) = (None, None, 0, 0);
    let mut paths: &[RouteNextHop] = &[];
    let mut encapsulates = false;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(via) => gateway = via_ip(via),
            RouteAttribute::Oif(value) => ifindex = *value,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::MultiPath(value) => paths = value,
            RouteAttribute::Encap(_) => encapsulates = true,
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || header.tos != 0 {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let address = destination.unwrap_or(unspecified);
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast()) {
        return None;
    }
    let prefix = IpNet::new(address, header.destination_prefix_length).ok()?.trunc();
    let hop = |gateway: Option<IpAddr>, ifindex| match gateway {
        Some(address) => ClientHop::Gateway { address, ifindex },
        None => ClientHop::OnLink { ifindex },
    };
    let via = match header.kind {
        RouteType::Unicast if encapsulates => ClientHop::Unreachable,
        RouteType::Unicast if paths.is_empty() => {
            if header.flags.contains(RouteFlags::Dead) || ifindex == 0 {
                return None;
            }
            hop(gateway, ifindex)
        }
        RouteType::Unicast => {
            let alive = |path: &&RouteNextHop| !path.flags.contains(RouteNextHopFlags::Dead);
            let carried = |path: &&RouteNextHop| !path.flags.contains(RouteNextHopFlags::Linkdown);
            let path = (paths.iter().filter(alive).find(carried)).or_else(|| paths.iter().find(alive))?;
            let gateway = path.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(address) => ip(address),
                RouteAttribute::Via(via) => via_ip(via),
                _ => None,
            });
            hop(gateway, path.interface_index)
        }
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => ClientHop::Unreachable,
        _ => return None,
    };
    Some((metric, ClientRoute { prefix, via }))
}

/// Reads an address of this host.
pub fn host_address(message: &AddressMessage) -> Option<HostAddress> {
    let (mut address, mut local, mut protocol) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface IFA_ADDRESS is the other end's.
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Protocol(value) => protocol = u8::from(*value),
            _ => {}
        }
    }
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let vrrp = protocol == VRRP_ADDRESS_PROTOCOL;
    let ours = vrrp || protocol == ADDRESS_PROTOCOL;
    Some(HostAddress { ifindex: message.header.index, address, ours, vrrp })
}

/// The request that adds or removes an address of ours. IPv6 addresses are usable at once: duplicate address
/// detection would keep a VIP from answering for a second after every take-over.
pub fn own_address(ifindex: u32, address: IpNet, protocol: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(protocol)));
    if address.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        // Deprecated from the start (RFC 4862 5.5.4): it answers, but the kernel never takes it as the source
        // of what the director itself sends, tunnels and neighbour solicitations included.
        let mut lifetimes = CacheInfo::default();
        (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn via_ip(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteVia::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn mtu_metric(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu != 0 => Some(*mtu),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;
    use rtnetlink::packet_route::route::{RouteCacheInfo, RouteLwTunnelEncap, RouteMplsIpTunnel};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_vlan_device_names_its_tag_and_the_device_below() {
        let attributes = |protocol| {
            vec![
                LinkAttribute::IfName("eth0.100".into()),
                LinkAttribute::Mtu(1496),
                LinkAttribute::Address(vec![2, 0, 0, 0, 0, 3]),
                LinkAttribute::Link(2),
                LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Vlan),
                    LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(100), InfoVlan::Protocol(protocol)])),
                ]),
            ]
        };
        let mut message = LinkMessage::default();
        message.header.index = 3;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = attributes(VlanProtocol::Ieee8021Q);
        let expected = Link {
            index: 3,
            name: "eth0.100".into(),
            kind: Some("vlan".into()),
            mac: Some([2, 0, 0, 0, 0, 3]),
            mtu: 1496,
            up: true,
            carrier: true,
            ethernet: true,
            vlan: Some(Vlan { id: 100, service_tag: false, parent: Some(2) }),
            controller: None,
        };
        assert_eq!(link(&message), Some(expected));
        message.attributes = attributes(VlanProtocol::Ieee8021Ad);
        message.attributes.push(LinkAttribute::LinkNetNsId(1));
        let far = Vlan { id: 100, service_tag: true, parent: None };
        assert_eq!(link(&message).unwrap().vlan, Some(far));
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(link(&message), None);
    }

    #[test]
    fn the_peer_of_a_veth_is_not_a_device_below() {
        let mut message = LinkMessage::default();
        message.attributes =
            vec![LinkAttribute::Link(7), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)])];
        assert_eq!(link(&message).unwrap().vlan, None);
    }

    #[test]
    fn the_answer_about_a_route_is_a_way_or_a_reason() {
        use RouteAttribute::{CacheInfo, Encap, Gateway, Metrics, Oif, PrefSource, Via};
        let target = Target { address: ip("10.0.0.12"), interface: None };
        let plain = Route { ifindex: 2, gateway: None, source: None, mtu: None, local: false };
        let source = || PrefSource(ip("10.0.0.1").into());
        let mtu = |value| Metrics(vec![RouteMetric::Advmss(1000), RouteMetric::Mtu(value)]);
        // struct rta_cacheinfo: the third word is the time left.
        let words = [0, 0, 600, 0, 0, 0, 0, 0].map(u32::to_ne_bytes);
        let learned = RouteCacheInfo::parse(words.as_flattened()).unwrap();
        let mpls = RouteLwTunnelEncap::Mpls(RouteMplsIpTunnel::Ttl(64));
        let rows = [
            (RouteType::Unicast, vec![Oif(2)], Ok(plain.clone())),
            (
                RouteType::Unicast,
                vec![Oif(2), source(), Gateway(ip("10.0.0.254").into()), mtu(1400)],
                Ok(Route {
                    gateway: Some(ip("10.0.0.254")),
                    source: Some(ip("10.0.0.1")),
                    mtu: Some(1400),
                    ..plain.clone()
                }),
            ),
            (
                RouteType::Unicast,
                vec![Oif(2), Via(RouteVia::Inet6("fe80::1".parse().unwrap()))],
                Ok(Route { gateway: Some(ip("fe80::1")), ..plain.clone() }),
            ),
            (RouteType::Unicast, vec![Oif(2), mtu(1280), CacheInfo(learned)], Ok(plain.clone())),
            (RouteType::Unicast, vec![], Err("the route to 10.0.0.12 names no interface")),
            (
                RouteType::Unicast,
                vec![Oif(2), Encap(vec![mpls])],
                Err("the route to 10.0.0.12 encapsulates (lwtunnel)"),
            ),
            (RouteType::Local, vec![Oif(1)], Ok(Route { ifindex: 0, local: true, ..plain.clone() })),
            (RouteType::Anycast, vec![Oif(1)], Err("10.0.0.12 is an address of this host")),
            (RouteType::Broadcast, vec![Oif(2)], Err("10.0.0.12 is a broadcast address")),
            (RouteType::Multicast, vec![Oif(2)], Err("10.0.0.12 is a multicast address")),
        ];
        for (kind, attributes, expected) in rows {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = attributes;
            assert_eq!(route_answer(target, &message), expected.map_err(String::from), "{message:?}");
        }
    }

    #[test]
    fn an_address_is_ours_by_its_protocol_only() {
        let message = own_address(2, "203.0.113.10/32".parse().unwrap(), ADDRESS_PROTOCOL);
        let there = host_address(&message).unwrap();
        assert_eq!(
            (there.ifindex, there.address.to_string(), there.ours),
            (2, "203.0.113.10/32".into(), true)
        );
        let mut theirs = message;
        for protocol in [None, Some(AddressProtocol::Loopback), Some(AddressProtocol::Other(0x6d))] {
            theirs.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Protocol(_)));
            theirs.attributes.extend(protocol.map(AddressAttribute::Protocol));
            assert!(!host_address(&theirs).unwrap().ours, "{protocol:?}");
        }
    }

    #[test]
    fn on_a_point_to_point_interface_the_local_address_is_ours() {
        let mut message = AddressMessage::default();
        message.header.prefix_len = 32;
        message.attributes =
            vec![AddressAttribute::Address(ip("10.0.0.2")), AddressAttribute::Local(ip("10.0.0.1"))];
        assert_eq!(host_address(&message).unwrap().address.to_string(), "10.0.0.1/32");
    }
}
