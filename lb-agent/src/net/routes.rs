//! Routes towards clients: the main table reduced to one hop per prefix, for replies that do not pass the kernel.
//! Pure.

use ipnet::IpNet;
use std::collections::BTreeMap;

use crate::model::{ClientHop, ClientRoute};

/// Keeps the route with the lowest metric of each prefix, in the order of prefixes; of equals, the first.
pub fn client_routes(routes: impl IntoIterator<Item = (u32, ClientRoute)>) -> Vec<ClientRoute> {
    let mut best: BTreeMap<IpNet, (u32, ClientHop)> = BTreeMap::new();
    for (metric, route) in routes {
        let kept = best.entry(route.prefix).or_insert((metric, route.via));
        if metric < kept.0 {
            *kept = (metric, route.via);
        }
    }
    best.into_iter().map(|(prefix, (_, via))| ClientRoute { prefix, via }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::messages;
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::route::{
        RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteType,
    };
    use std::net::IpAddr;

    fn message(prefix: &str, kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let prefix: IpNet = prefix.parse().unwrap();
        let mut message = RouteMessage::default();
        message.header.address_family =
            if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = prefix.prefix_len();
        message.header.table = 254;
        message.header.kind = kind;
        message.attributes = attributes;
        if prefix.prefix_len() != 0 {
            message.attributes.push(RouteAttribute::Destination(prefix.addr().into()));
        }
        message
    }

    fn gateway(address: &str) -> RouteAttribute {
        RouteAttribute::Gateway(address.parse::<IpAddr>().unwrap().into())
    }

    fn path(ifindex: u32, flags: RouteNextHopFlags, address: &str) -> RouteNextHop {
        let mut path = RouteNextHop::default();
        path.interface_index = ifindex;
        path.flags = flags;
        path.attributes = vec![gateway(address)];
        path
    }

    fn via(address: &str, ifindex: u32) -> ClientHop {
        ClientHop::Gateway { address: address.parse().unwrap(), ifindex }
    }

    #[test]
    fn a_route_of_the_main_table_becomes_one_hop() {
        use RouteAttribute::{MultiPath, Oif, Table};
        use RouteType::{BlackHole, Local, Throw, Unicast};
        let none = RouteNextHopFlags::empty();
        let rows = [
            ("0.0.0.0/0", Unicast, vec![gateway("10.0.0.1"), Oif(2)], Some(via("10.0.0.1", 2))),
            ("::/0", Unicast, vec![gateway("fe80::1"), Oif(2)], Some(via("fe80::1", 2))),
            ("10.0.0.0/24", Unicast, vec![Oif(2)], Some(ClientHop::OnLink { ifindex: 2 })),
            ("10.9.0.0/16", BlackHole, vec![], Some(ClientHop::Unreachable)),
            ("10.8.0.0/16", Throw, vec![], None),
            ("10.0.0.7/32", Local, vec![Oif(1)], None),
            ("10.0.0.0/24", Unicast, vec![Oif(2), Table(100)], None),
            ("fe80::/64", Unicast, vec![Oif(2)], None),
            (
                "10.1.0.0/16",
                Unicast,
                vec![MultiPath(vec![
                    path(2, RouteNextHopFlags::Dead, "10.0.0.1"),
                    path(3, RouteNextHopFlags::Linkdown, "10.0.0.2"),
                    path(4, none, "10.0.0.3"),
                ])],
                Some(via("10.0.0.3", 4)),
            ),
            (
                "10.1.0.0/16",
                Unicast,
                vec![MultiPath(vec![path(3, RouteNextHopFlags::Linkdown, "10.0.0.2")])],
                Some(via("10.0.0.2", 3)),
            ),
        ];
        for (prefix, kind, attributes, expected) in rows {
            let message = message(prefix, kind, attributes);
            let expected = expected.map(|via| ClientRoute { prefix: prefix.parse().unwrap(), via });
            assert_eq!(messages::client_route(&message).map(|(_, route)| route), expected, "{message:?}");
        }
    }

    #[test]
    fn a_dead_route_does_not_hide_a_shorter_prefix() {
        let mut dead = message("10.0.0.0/24", RouteType::Unicast, vec![RouteAttribute::Oif(2)]);
        dead.header.flags = RouteFlags::Dead;
        assert_eq!(messages::client_route(&dead), None);
    }

    #[test]
    fn the_lowest_metric_wins_and_the_first_of_equals() {
        let route = |metric, ifindex| {
            (
                metric,
                ClientRoute { prefix: "10.0.0.0/8".parse().unwrap(), via: ClientHop::OnLink { ifindex } },
            )
        };
        let kept = client_routes([route(100, 2), route(50, 3), route(50, 4), route(200, 5)]);
        assert_eq!(kept, [route(50, 3).1]);
    }
}
