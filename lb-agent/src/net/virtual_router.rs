//! What a virtual router puts on the host while this director is its master: addresses, routes, rules, and its own
//! interface with the virtual MAC address. Everything carries a protocol number of ours, and what does not is never
//! touched.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::MacVlanMode;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{LinkMacVlan, LinkUnspec, MulticastGroup, RouteMessageBuilder};

use super::messages::{self, VRRP_ADDRESS_PROTOCOL};
use super::requests::Requests;
use super::{HostAddress, Link, Net, sysctl, watcher};
use crate::model::{VirtualRoute, VirtualRule};

/// Interfaces and addresses at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostView {
    /// In the order of their indices.
    pub links: Vec<Link>,
    /// In the kernel's order, in which an interface's primary address comes first.
    pub addresses: Vec<HostAddress>,
}

impl HostView {
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The address that VRRP speaks from: the first on the interface that is the host's own (IPv6: link-local).
    pub fn primary(&self, ifindex: u32, ipv4: bool) -> Option<IpAddr> {
        let on_it = self.addresses.iter().filter(|address| address.ifindex == ifindex && !address.ours);
        on_it.map(|address| address.address.addr()).find(|address| match address {
            IpAddr::V4(_) => ipv4,
            IpAddr::V6(v6) => !ipv4 && v6.is_unicast_link_local(),
        })
    }

    /// Whether an address is there, and whether a virtual router of ours put it there.
    pub fn holds(&self, ifindex: u32, address: IpAddr) -> Option<bool> {
        let mut there =
            self.addresses.iter().filter(|there| there.ifindex == ifindex && there.address.addr() == address);
        there.clone().next()?;
        Some(there.any(|there| there.vrrp))
    }
}

/// Hears that something about interfaces or addresses changed, not what.
pub struct Changes {
    events: BoxStream<'static, ()>,
}

impl Changes {
    /// Subscribes. Needs a tokio runtime.
    ///
    /// # Errors
    /// A socket that cannot be opened.
    pub fn subscribe() -> Result<Changes> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, events) =
            rtnetlink::new_multicast_connection(&groups).context("subscribe to changes of addresses")?;
        tokio::spawn(connection);
        // The handle keeps the connection open.
        let events = events.map(move |_| _ = &handle).boxed();
        Ok(Changes { events })
    }

    /// The next change; None: the subscription has ended.
    pub async fn next(&mut self) -> Option<()> {
        self.events.next().await
    }
}

impl Net {
    /// A handle for requests alone; nothing is watched. Needs a tokio runtime.
    ///
    /// # Errors
    /// A socket that cannot be opened.
    pub fn for_requests() -> Result<Net> {
        let watched = tokio::sync::mpsc::unbounded_channel().0;
        Ok(Net { handle: Requests::open()?, watched, last: Arc::default() })
    }

    /// Interfaces and addresses now.
    ///
    /// # Errors
    /// The kernel's refusal to list them.
    pub async fn host_view(&self) -> Result<HostView> {
        let mut links = watcher::read_links(&self.handle).await?;
        links.sort_by_key(|link| link.index);
        Ok(HostView { links, addresses: self.addresses().await? })
    }

    /// Puts a virtual router's address on an interface. False: it is there already.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn take(&self, ifindex: u32, address: IpNet) -> Result<bool> {
        let message = messages::own_address(ifindex, address, VRRP_ADDRESS_PROTOCOL);
        match self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => Ok(true),
            Err(libc::EEXIST) => Ok(false),
            Err(errno) => {
                Err(anyhow!(std::io::Error::from_raw_os_error(errno)).context(format!("add {address}")))
            }
        }
    }

    /// Takes a virtual router's address away. Whoever calls has looked whose it is ([`HostAddress::vrrp`]).
    ///
    /// # Errors
    /// The kernel's refusal. An address that is gone is none.
    pub async fn release(&self, address: &HostAddress) -> Result<()> {
        let message = messages::own_address(address.ifindex, address.address, VRRP_ADDRESS_PROTOCOL);
        match self.request(RouteNetlinkMessage::DelAddress(message), 0).await {
            Ok(()) | Err(libc::EADDRNOTAVAIL | libc::ENODEV) => Ok(()),
            Err(errno) => {
                let what = format!("remove {}", address.address);
                Err(anyhow!(std::io::Error::from_raw_os_error(errno)).context(what))
            }
        }
    }

    /// Adds a route, or replaces ours to the same destination. `kept`: one that is there is ours, and stays as it is,
    /// since without it packets would be lost until it is back.
    ///
    /// # Errors
    /// The kernel's refusal: no such gateway, a route of somebody else's in its place.
    pub async fn add_route(&self, route: &VirtualRoute, ifindex: Option<u32>, kept: bool) -> Result<()> {
        let message = route_message(route, ifindex)?;
        match self.handle.route().add(message).execute().await {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == Some(libc::EEXIST) && kept => Ok(()),
            Err(error) if errno(&error) == Some(libc::EEXIST) => {
                // Ours from an earlier run, or somebody else's, which stays; the kernel tells them apart by the
                // protocol when it is asked to remove ours.
                self.remove_route(route, ifindex).await?;
                self.handle.route().add(route_message(route, ifindex)?).execute().await.context("add a route")
            }
            Err(error) => Err(anyhow!(error).context(format!("add the route to {}", route.destination))),
        }
    }

    /// Removes a route of ours.
    ///
    /// # Errors
    /// The kernel's refusal. A route that is gone is none.
    pub async fn remove_route(&self, route: &VirtualRoute, ifindex: Option<u32>) -> Result<()> {
        match self.handle.route().del(route_message(route, ifindex)?).execute().await {
            Err(error)
                if !matches!(errno(&error), Some(libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)) =>
            {
                Err(anyhow!(error).context(format!("remove the route to {}", route.destination)))
            }
            _ => Ok(()),
        }
    }

    /// Adds a routing rule; one that is there is as good.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn add_rule(&self, rule: &VirtualRule) -> Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule);
        match request.execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                Err(anyhow!(error).context("add a routing rule"))
            }
            _ => Ok(()),
        }
    }

    /// Removes a routing rule of ours.
    ///
    /// # Errors
    /// The kernel's refusal. A rule that is gone is none.
    pub async fn remove_rule(&self, rule: &VirtualRule) -> Result<()> {
        match self.handle.rule().del(rule_message(rule)).execute().await {
            Err(error) if errno(&error) != Some(libc::ENOENT) => {
                Err(anyhow!(error).context("remove a routing rule"))
            }
            _ => Ok(()),
        }
    }

    /// Makes the virtual router's own interface: a macvlan with its MAC address, on which the kernel makes no
    /// address of its own. In VEPA mode: what comes from the same MAC address is the other director's, and goes on to
    /// the interface below, which listens for advertisements; in private mode the macvlan alone would get it
    /// (`macvlan_handle_frame`, Linux 6.1). Nor is anything looped back to this host's other virtual routers.
    ///
    /// # Errors
    /// The kernel's refusal; an interface of that name that is something else.
    pub async fn make_vmac(&self, name: &str, base: &Link, mac: [u8; 6], view: &HostView) -> Result<()> {
        let what = || format!("make the interface {name} with the virtual MAC address");
        match view.link(name) {
            Some(link) if link.kind.as_deref() != Some("macvlan") => {
                bail!("{name} is an interface already, and no macvlan: `vmac.interface` names another")
            }
            Some(link) if link.mac == Some(mac) && link.up => {}
            Some(link) if link.mac == Some(mac) => {
                let up = LinkUnspec::new_with_index(link.index).up().build();
                self.handle.link().change(up).execute().await.with_context(what)?;
            }
            Some(_) => bail!("{name} is an interface already, with another MAC address"),
            None => {
                let message =
                    LinkMacVlan::new(name, base.index, MacVlanMode::Vepa).address(mac.to_vec()).build();
                self.handle.link().add(message).execute().await.with_context(what)?;
            }
        }
        // As keepalived sets them: the base interface does not answer for the addresses of the one above, which
        // takes what its own host sends, whatever way back the routes would choose.
        let base = &base.name;
        for (path, value) in [
            (format!("net/ipv4/conf/{base}/arp_ignore"), "1"),
            (format!("net/ipv4/conf/{base}/arp_filter"), "1"),
            (format!("net/ipv4/conf/{name}/arp_filter"), "0"),
            (format!("net/ipv4/conf/{name}/accept_local"), "1"),
            (format!("net/ipv4/conf/{name}/rp_filter"), "0"),
            (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
            // No link-local address of the kernel's making: it would be the same on every director. Not in the request
            // that makes the interface, where newer kernels refuse it and older ones pass over it.
            (format!("net/ipv6/conf/{name}/addr_gen_mode"), "1"),
        ] {
            // A kernel without IPv6 has no such setting, and needs none.
            if path.starts_with("net/ipv4/") || std::path::Path::new("/proc/sys").join(&path).exists() {
                sysctl::write(&path, value)?;
            }
        }
        let view = self.host_view().await?;
        let link = view.link(name).with_context(what)?;
        if !link.up {
            let up = LinkUnspec::new_with_index(link.index).up().build();
            self.handle.link().change(up).execute().await.with_context(what)?;
        }
        Ok(())
    }

    /// Removes an interface that [`Net::make_vmac`] made.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_vmac(&self, name: &str, mac: [u8; 6], view: &HostView) -> Result<()> {
        match view.link(name) {
            Some(link) if link.kind.as_deref() == Some("macvlan") && link.mac == Some(mac) => {
                self.handle.link().del(link.index).execute().await.with_context(|| format!("remove {name}"))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn route_message(route: &VirtualRoute, ifindex: Option<u32>) -> Result<RouteMessage> {
    let destination = route.destination.trunc();
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.addr(), destination.prefix_len())?
        .protocol(RouteProtocol::Other(VRRP_ADDRESS_PROTOCOL));
    if let Some(via) = route.via {
        builder = builder.gateway(via)?;
    } else if destination.addr().is_ipv4() {
        // On the link itself (RT_SCOPE_LINK), or the kernel would refuse the source of a directly attached one.
        builder = builder.scope(rtnetlink::packet_route::route::RouteScope::Link);
    }
    if let Some(source) = route.source {
        builder = builder.pref_source(source)?;
    }
    if let Some(ifindex) = ifindex {
        builder = builder.output_interface(ifindex);
    }
    if let Some(table) = route.table {
        builder = builder.table_id(table);
    }
    if let Some(metric) = route.metric {
        builder = builder.priority(metric);
    }
    Ok(builder.build())
}

pub(super) fn rule_message(rule: &VirtualRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let ipv4 = rule.from.or(rule.to).is_none_or(|net| net.addr().is_ipv4());
    message.header.family = if ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.action = RuleAction::ToTable;
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(VRRP_ADDRESS_PROTOCOL)));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        message.attributes.push(RuleAttribute::Source(from.trunc().addr()));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(to.trunc().addr()));
    }
    if let Some(priority) = rule.priority {
        message.attributes.push(RuleAttribute::Priority(priority));
    }
    message
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ifindex: u32, address: &str, ours: bool, vrrp: bool) -> HostAddress {
        HostAddress { ifindex, address: address.parse().unwrap(), ours, vrrp }
    }

    #[test]
    fn vrrp_speaks_from_an_address_of_the_hosts_own() {
        let view = HostView {
            links: Vec::new(),
            addresses: vec![
                address(2, "203.0.113.10/24", true, true),
                address(2, "10.0.0.1/24", false, false),
                address(2, "10.0.0.9/24", false, false),
                address(2, "2001:db8::1/64", false, false),
                address(2, "fe80::1/64", false, false),
                address(3, "10.0.1.1/24", false, false),
            ],
        };
        let primary = |ifindex, ipv4| view.primary(ifindex, ipv4).map(|address| address.to_string());
        assert_eq!(primary(2, true).as_deref(), Some("10.0.0.1"));
        assert_eq!(primary(2, false).as_deref(), Some("fe80::1"));
        assert_eq!((primary(3, false), primary(4, true)), (None, None));
        let holds = |address: &str| view.holds(2, address.parse().unwrap());
        assert_eq!(
            (holds("203.0.113.10"), holds("10.0.0.1"), holds("10.0.0.7")),
            (Some(true), Some(false), None)
        );
    }

    #[test]
    fn routes_and_rules_carry_our_number() {
        let route = VirtualRoute {
            destination: "198.51.100.7/24".parse().unwrap(),
            via: Some("10.0.0.254".parse().unwrap()),
            interface: None,
            source: None,
            table: Some(300),
            metric: Some(5),
        };
        let message = route_message(&route, None).unwrap();
        assert_eq!(message.header.protocol, RouteProtocol::Other(0x76));
        assert_eq!(message.header.destination_prefix_length, 24);
        let rule = VirtualRule {
            from: Some("10.0.0.0/8".parse().unwrap()),
            to: None,
            priority: Some(100),
            table: 300,
        };
        let message = rule_message(&rule);
        assert_eq!(message.header.src_len, 8);
        assert!(message.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(0x76))));
    }
}
