//! Routes and rules that carry a virtual router's number and that nobody wants any more: of instances that were removed,
//! or given others, while the agent was not there to see it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::Net;
use super::messages::VRRP_ADDRESS_PROTOCOL;
use crate::model::{VirtualRoute, VirtualRule};

impl Net {
    /// Removes every route of a virtual router that is none of these (with the index of its interface, where it names
    /// one), in all tables. Returns where they went to.
    ///
    /// # Errors
    /// The kernel's refusal to list or to remove.
    pub async fn remove_left_routes(&self, wanted: &[(VirtualRoute, Option<u32>)]) -> Result<Vec<IpNet>> {
        let _turn = self.handle.turn_to_list().await;
        let mut left = Vec::new();
        let questions = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for question in questions {
            let routes: Vec<RouteMessage> =
                self.handle.route().get(question).execute().try_collect().await.context("list the routes")?;
            left.extend(routes.into_iter().filter(|route| {
                is_ours(route.header.protocol) && !wanted.iter().any(|wanted| is_this_route(route, wanted))
            }));
        }
        let mut removed = Vec::new();
        for route in left {
            let destination = destination(&route);
            self.handle
                .route()
                .del(identity(route))
                .execute()
                .await
                .with_context(|| format!("remove the route to {destination}"))?;
            removed.push(destination);
        }
        Ok(removed)
    }

    /// Removes every routing rule of a virtual router that is none of these. Returns how many.
    ///
    /// # Errors
    /// The kernel's refusal to list or to remove.
    pub async fn remove_left_rules(&self, wanted: &[VirtualRule]) -> Result<usize> {
        let _turn = self.handle.turn_to_list().await;
        let mut removed = 0;
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules: Vec<RuleMessage> = self
                .handle
                .rule()
                .get(version)
                .execute()
                .try_collect()
                .await
                .context("list the routing rules")?;
            for rule in rules {
                let ours = rule.attributes.iter().any(
                    |attribute| matches!(attribute, RuleAttribute::Protocol(protocol) if is_ours(*protocol)),
                );
                if ours && !wanted.iter().any(|wanted| is_this_rule(&rule, wanted)) {
                    self.handle.rule().del(rule).execute().await.context("remove a routing rule")?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

fn is_ours(protocol: RouteProtocol) -> bool {
    u8::from(protocol) == VRRP_ADDRESS_PROTOCOL
}

fn destination(route: &RouteMessage) -> IpNet {
    let found = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let any: IpAddr = match route.header.address_family {
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv4Addr::UNSPECIFIED.into(),
    };
    // A length that does not fit would be the kernel's mistake; the address alone is as good for a message.
    let address = found.unwrap_or(any);
    IpNet::new(address, route.header.destination_prefix_length).unwrap_or(address.into())
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// Whether a route of the kernel is the one that a manifest has. What it leaves open the kernel has filled in.
fn is_this_route(route: &RouteMessage, (wanted, ifindex): &(VirtualRoute, Option<u32>)) -> bool {
    let (mut via, mut oif, mut metric, mut table) = (None, None, 0, u32::from(route.header.table));
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(value) => table = *value,
            _ => {}
        }
    }
    destination(route) == wanted.destination.trunc()
        && via == wanted.via
        && table == wanted.table.unwrap_or(MAIN)
        && wanted.metric.is_none_or(|wanted| wanted == metric)
        && ifindex.is_none_or(|wanted| oif == Some(wanted))
}

/// What the kernel needs to find a route that is to go.
fn identity(mut route: RouteMessage) -> RouteMessage {
    route.header.flags = RouteFlags::empty();
    route.attributes.retain(|attribute| {
        use RouteAttribute::{Destination, Gateway, Oif, Priority, Table};
        matches!(attribute, Destination(_) | Gateway(_) | Oif(_) | Priority(_) | Table(_))
    });
    route
}

fn is_this_rule(rule: &RuleMessage, wanted: &VirtualRule) -> bool {
    let (mut from, mut to, mut priority, mut table) = (None, None, 0, u32::from(rule.header.table));
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Source(address) => from = IpNet::new(*address, rule.header.src_len).ok(),
            RuleAttribute::Destination(address) => to = IpNet::new(*address, rule.header.dst_len).ok(),
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            _ => {}
        }
    }
    let net = |wanted: Option<IpNet>| wanted.map(|net| net.trunc());
    from == net(wanted.from)
        && to == net(wanted.to)
        && table == wanted.table
        && wanted.priority.is_none_or(|wanted| wanted == priority)
}

/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::virtual_router::{route_message, rule_message};

    fn route(destination: &str, via: Option<&str>) -> VirtualRoute {
        VirtualRoute {
            destination: destination.parse().unwrap(),
            via: via.map(|via| via.parse().unwrap()),
            interface: None,
            source: None,
            table: None,
            metric: None,
        }
    }

    #[test]
    fn a_route_that_a_manifest_has_is_known_again_and_any_other_is_not() {
        for wanted in [
            route("198.51.100.7/24", Some("10.0.0.254")),
            route("0.0.0.0/0", Some("10.0.0.254")),
            VirtualRoute { table: Some(300), metric: Some(5), ..route("198.51.100.0/24", None) },
            route("2001:db8:1::/64", Some("2001:db8::1")),
            VirtualRoute { table: Some(70_000), ..route("::/0", Some("fe80::1")) },
        ] {
            let mut there = route_message(&wanted, Some(3)).unwrap();
            if wanted.metric.is_none() && wanted.destination.addr().is_ipv6() {
                // The kernel's default.
                there.attributes.push(RouteAttribute::Priority(1024));
            }
            for ifindex in [None, Some(3)] {
                assert!(is_this_route(&there, &(wanted.clone(), ifindex)), "{wanted:?} {ifindex:?}");
            }
            let other = |change: fn(&mut VirtualRoute)| {
                let mut other = wanted.clone();
                change(&mut other);
                (other, Some(3))
            };
            for other in [
                other(|route| route.destination = "203.0.113.0/24".parse().unwrap()),
                other(|route| route.via = Some("10.0.0.253".parse().unwrap())),
                other(|route| route.table = Some(301)),
                other(|route| route.metric = Some(6)),
                (wanted.clone(), Some(4)),
            ] {
                assert!(!is_this_route(&there, &other), "{other:?} is not {wanted:?}");
            }
        }
    }

    #[test]
    fn a_rule_that_a_manifest_has_is_known_again_and_any_other_is_not() {
        let net = |text: &str| Some(text.parse::<IpNet>().unwrap());
        for wanted in [
            VirtualRule { from: net("10.1.2.3/8"), to: None, priority: Some(100), table: 300 },
            VirtualRule { from: None, to: net("2001:db8::/32"), priority: None, table: 70_000 },
        ] {
            let mut there = rule_message(&wanted);
            if wanted.priority.is_none() {
                there.attributes.push(RuleAttribute::Priority(32765));
            }
            assert!(is_this_rule(&there, &wanted), "{wanted:?}");
            for other in [
                VirtualRule { from: net("10.0.0.0/9"), ..wanted.clone() },
                VirtualRule { to: net("10.0.0.0/8"), ..wanted.clone() },
                VirtualRule { priority: Some(7), ..wanted.clone() },
                VirtualRule { table: 301, ..wanted.clone() },
            ] {
                assert!(!is_this_rule(&there, &other), "{other:?} is not {wanted:?}");
            }
        }
    }

    #[test]
    fn what_is_asked_to_go_is_named_and_no_more() {
        let mut there = route_message(&route("198.51.100.0/24", Some("10.0.0.254")), Some(3)).unwrap();
        there.header.flags = RouteFlags::Linkdown;
        there.attributes.push(RouteAttribute::Uid(1));
        let identity = identity(there);
        assert_eq!(identity.header.flags, RouteFlags::empty());
        assert!(!identity.attributes.contains(&RouteAttribute::Uid(1)));
        assert_eq!(destination(&identity).to_string(), "198.51.100.0/24");
    }
}
