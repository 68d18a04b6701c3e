//! What the real server's set-up asks of and does to interfaces, addresses and routes.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{Handle, LinkIp6Tnl, LinkIpIp, LinkSit, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

/// IFA_PROTO of the addresses that lb adds (kernel 5.18): the mark by which it knows them again.
const ADDRESS_PROTOCOL: u8 = 0x6c;

/// A connection to the kernel's rtnetlink, in the network namespace of the thread that opened it.
pub struct Netlink {
    handle: Handle,
    /// Moves messages between socket and handle; stopped when this is dropped.
    task: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub index: u32,
    pub up: bool,
    pub mtu: u32,
    /// The XDP program on it: the kernel's number, and whether it runs as generic XDP.
    pub xdp: Option<(u32, bool)>,
}

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostAddress {
    pub interface: u32,
    pub address: IpAddr,
    pub prefix: u8,
    /// Added by lb.
    pub ours: bool,
}

/// The default route of one family: where it leads, several of both under multipath.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DefaultRoute {
    pub gateways: Vec<IpAddr>,
    pub interfaces: Vec<u32>,
}

/// A kernel device that unpacks what one director sends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TunnelKind {
    /// IPv4 in IPv4.
    Ipip,
    /// IPv6 in IPv4.
    Sit,
    /// Either in IPv6.
    Ip6Tnl,
}

impl TunnelKind {
    /// The kernel module and the device kind have this name.
    pub fn name(self) -> &'static str {
        match self {
            TunnelKind::Ipip => "ipip",
            TunnelKind::Sit => "sit",
            TunnelKind::Ip6Tnl => "ip6tnl",
        }
    }
}

impl Netlink {
    /// Opens the connection.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("open rtnetlink")?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// An interface by name; `None` where there is none.
    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        match found {
            Ok(message) => Ok(message.map(|message| link(&message))),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look up interface {name}")),
        }
    }

    /// An interface's name.
    pub async fn name(&self, index: u32) -> Result<Option<String>> {
        let message = self.handle.link().get().match_index(index).execute().try_next().await?;
        Ok(message.and_then(|message| {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        }))
    }

    /// Sets an interface up.
    pub async fn set_up(&self, index: u32) -> Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.context("set the interface up")
    }

    /// Every address of this host.
    pub async fn addresses(&self) -> Result<Vec<HostAddress>> {
        let mut addresses = Vec::new();
        let mut messages = self.handle.address().get().execute();
        while let Some(message) = messages.try_next().await.context("list addresses")? {
            addresses.extend(host_address(&message));
        }
        Ok(addresses)
    }

    /// Adds a VIP as /32 or /128, without duplicate address detection: that many hosts have it is the point.
    pub async fn add_vip(&self, lo: u32, vip: IpAddr) -> Result<()> {
        let mut request = self.handle.address().add(lo, vip, host_prefix(vip));
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ADDRESS_PROTOCOL)));
        if vip.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        match request.execute().await {
            Err(error) if errno(&error) == Some(libc::EACCES) && vip.is_ipv6() => {
                bail!("lo: add {vip}: IPv6 is off on lo (`sysctl -w net.ipv6.conf.lo.disable_ipv6=0`)")
            }
            result => result.with_context(|| format!("lo: add {vip}/{}", host_prefix(vip))),
        }
    }

    /// Removes a VIP.
    pub async fn remove_vip(&self, lo: u32, vip: IpAddr) -> Result<()> {
        let mut messages = self.handle.address().get().set_link_index_filter(lo).execute();
        while let Some(message) = messages.try_next().await.context("list addresses")? {
            if host_address(&message).is_some_and(|found| found.address == vip && found.ours) {
                let request = self.handle.address().del(message);
                return request.execute().await.with_context(|| format!("lo: remove {vip}"));
            }
        }
        Ok(())
    }

    /// The default route of the main table with the smallest metric.
    pub async fn default_route(&self, v6: bool) -> Result<Option<DefaultRoute>> {
        let mut query = RouteMessageBuilder::<IpAddr>::new().build();
        query.header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let mut messages = self.handle.route().get(query).execute();
        let mut best: Option<(u32, DefaultRoute)> = None;
        while let Some(message) = messages.try_next().await.context("list routes")? {
            let header = &message.header;
            if header.destination_prefix_length != 0
                || header.table != RouteHeader::RT_TABLE_MAIN
                || header.kind != RouteType::Unicast
            {
                continue;
            }
            let (metric, route) = default_route(&message);
            match &mut best {
                // IPv6 lists the next hops of one multipath route as routes of the same metric.
                Some((least, best)) if *least == metric => {
                    best.gateways.extend(route.gateways);
                    best.interfaces.extend(route.interfaces);
                }
                Some((least, _)) if *least < metric => {}
                _ => best = Some((metric, route)),
            }
        }
        Ok(best.map(|(_, route)| route))
    }

    /// Makes a tunnel device that accepts from one remote address.
    ///
    /// # Errors
    /// A kernel without this kind of device; a device with this remote that is already there.
    pub async fn add_tunnel(&self, name: &str, kind: TunnelKind, remote: IpAddr) -> Result<()> {
        let message = match (kind, remote) {
            (TunnelKind::Ipip, IpAddr::V4(remote)) => LinkIpIp::new(name).remote(remote).up().build(),
            (TunnelKind::Sit, IpAddr::V4(remote)) => LinkSit::new(name).remote(remote).up().build(),
            (TunnelKind::Ip6Tnl, IpAddr::V6(remote)) => {
                // Protocol 0: IPv4 and IPv6 inside.
                LinkIp6Tnl::new(name).remote(remote).protocol(IpProtocol::Hopopts).up().build()
            }
            _ => bail!("a {} device cannot have the remote {remote}", kind.name()),
        };
        match self.handle.link().add(message).execute().await {
            Ok(()) => Ok(()),
            Err(error) => match errno(&error) {
                Some(libc::EOPNOTSUPP) => bail!(
                    "this kernel has no {0} devices (`modprobe {0}` fails, or may not be done here): use \
                     --tunnel bpf, which needs none",
                    kind.name()
                ),
                Some(libc::EEXIST) => bail!(
                    "there is already a {} device for {remote} (`ip tunnel show`, `ip -6 tunnel show`): \
                     remove it, or leave the unpacking to it with --tunnel none",
                    kind.name()
                ),
                _ => Err(error).with_context(|| format!("add {} device {name} from {remote}", kind.name())),
            },
        }
    }

    /// Removes an interface.
    pub async fn delete_link(&self, index: u32) -> Result<()> {
        self.handle.link().del(index).execute().await.context("remove the interface")
    }
}

/// /32 or /128.
pub fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv6() { 128 } else { 32 }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        xdp: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(attributes) => {
                let generic = attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
                link.xdp = attributes.iter().find_map(|attribute| match attribute {
                    LinkXdp::ProgId(program) => Some((*program, generic)),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn host_address(message: &AddressMessage) -> Option<HostAddress> {
    let (mut local, mut address, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == ADDRESS_PROTOCOL,
            _ => {}
        }
    }
    let address = local.or(address)?;
    Some(HostAddress { interface: message.header.index, address, prefix: message.header.prefix_len, ours })
}

fn default_route(message: &RouteMessage) -> (u32, DefaultRoute) {
    let mut metric = 0;
    let mut route = DefaultRoute::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => route.interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => hops.iter().for_each(|hop| next_hop(hop, &mut route)),
            attribute => route.gateways.extend(gateway(attribute)),
        }
    }
    (metric, route)
}

fn next_hop(hop: &RouteNextHop, route: &mut DefaultRoute) {
    route.interfaces.push(hop.interface_index);
    route.gateways.extend(hop.attributes.iter().filter_map(gateway));
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(Ipv6Addr::into(*address)),
        _ => None,
    }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}
