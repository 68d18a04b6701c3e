//! The host's facts as manifests are checked against them.

use ipnet::IpNet;

use crate::manifest;
use crate::net;

/// Interfaces with the addresses by which the host is known. Not among them: addresses that the agent added,
/// and single ones (/32, /128) beside others, which operators add for VIPs and pools.
pub fn facts(facts: &net::HostFacts) -> manifest::HostFacts {
    let is_single = |address: &IpNet| address.prefix_len() == address.max_prefix_len();
    let interface = |link: &net::Link| {
        let on_it = facts.addresses.iter().filter(|address| address.ifindex == link.index && !address.ours);
        let all: Vec<IpNet> = on_it.map(|address| address.address).collect();
        let has_others = |single: &IpNet| {
            all.iter().any(|other| !is_single(other) && other.addr().is_ipv4() == single.addr().is_ipv4())
        };
        let own = all.iter().filter(|address| !is_single(address) || !has_others(address));
        let own: Vec<IpNet> = own.copied().collect();
        manifest::HostInterface {
            name: link.name.clone(),
            addresses: own.iter().map(IpNet::addr).collect(),
            networks: own,
            vlan_of: link.vlan.and_then(|vlan| {
                let below = facts.links.iter().find(|other| Some(other.index) == vlan.parent);
                below.map(|below| below.name.clone())
            }),
        }
    };
    manifest::HostFacts { interfaces: facts.links.iter().map(interface).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interfaces_own_addresses_are_those_with_a_subnet_or_the_only_ones() {
        let link = |index, name: &str| net::Link {
            index,
            name: name.into(),
            kind: None,
            mac: None,
            mtu: 1500,
            up: true,
            carrier: true,
            ethernet: true,
            vlan: None,
            controller: None,
        };
        let address = |ifindex, address: &str, ours| net::HostAddress {
            ifindex,
            address: address.parse().unwrap(),
            ours,
            vrrp: false,
        };
        let given = net::HostFacts {
            kernel: String::new(),
            links: vec![link(1, "eth0"), link(2, "eth1")],
            addresses: vec![
                address(1, "10.0.0.1/24", false),
                address(1, "10.0.0.200/32", false),
                address(1, "10.0.0.201/24", true),
                address(2, "192.0.2.1/32", false),
            ],
            ipv4_forwarding: false,
            ipv6_forwarding: false,
        };
        let found = facts(&given);
        let of = |n: usize| found.interfaces[n].addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec!["10.0.0.1".to_owned()], vec!["192.0.2.1".to_owned()]));
    }
}
