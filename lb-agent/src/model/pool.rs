//! Local address pools: the addresses that FULLNAT puts in place of the client's.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Name;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddressPool {
    pub name: Name,
    /// As written, disjoint. Every address of a prefix belongs to the pool, its first and last too.
    pub addresses: Vec<IpNet>,
    /// Which part of every address's ports this director may lease.
    pub share: Share,
    /// The interface on which the agent puts the addresses, each with the full prefix length.
    pub address_interface: Option<String>,
    /// The [`super::VrrpInstance`] that the addresses follow, like a VIP.
    pub vrrp: Option<Name>,
}

impl LocalAddressPool {
    /// The pool's single addresses, in the order written. With every prefix checked to be small by
    /// `manifest`, there are at most [`POOL_ADDRESSES_MAX`].
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().flat_map(addresses_of)
    }

    /// Whether the pool has an address of the family of `address`.
    pub fn covers_family_of(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr().is_ipv4() == address.is_ipv4())
    }
}

/// Every address of a prefix, network and broadcast address included: a pool's address is never a
/// host's own, so nothing is reserved.
fn addresses_of(net: &IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match *net {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            Box::new((first..=last).map(|bits| IpAddr::V4(bits.into())))
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            Box::new((first..=last).map(|bits| IpAddr::V6(bits.into())))
        }
    }
}

/// Director `index` of `of`; both begin at 1. Directors that share a pool lease ports of different shares,
/// so that connections taken over from one another never collide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub index: u8,
    pub of: u8,
}

impl Share {
    /// The most directors that can share a pool.
    pub const MAX_OF: u8 = 16;
}

impl Default for Share {
    fn default() -> Share {
        Share { index: 1, of: 1 }
    }
}

/// The most addresses that all pools together may hold: a lease names its address with 8 bits, and 0 names
/// none.
pub const POOL_ADDRESSES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_means_every_address_in_it() {
        let pool = LocalAddressPool {
            name: Name::new("p").unwrap(),
            addresses: ["10.0.0.200/30", "10.0.1.1/32", "2001:db8::4/127"].map(|n| n.parse().unwrap()).into(),
            share: Share::default(),
            address_interface: None,
            vrrp: None,
        };
        let all: Vec<String> = pool.addresses().map(|address| address.to_string()).collect();
        assert_eq!(
            all,
            [
                "10.0.0.200",
                "10.0.0.201",
                "10.0.0.202",
                "10.0.0.203",
                "10.0.1.1",
                "2001:db8::4",
                "2001:db8::5"
            ]
        );
    }
}
