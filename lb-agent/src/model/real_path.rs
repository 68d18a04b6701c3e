//! The networks in which probes on the real path begin: one for each family, that the host uses for nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The veth pair's near end; the far end's name begins with it.
pub const PROBER_LINK: &str = "lb-probe";

/// Half of a network is for targets, an address for each (VIP, real server); the other half begins with the
/// prober's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealPathNetworks {
    /// No longer than [`RealPathNetworks::V4_MAX`].
    pub v4: Ipv4Net,
    /// No longer than [`RealPathNetworks::V6_MAX`].
    pub v6: Ipv6Net,
}

impl RealPathNetworks {
    /// Two halves of [`lb_common::probe::TARGETS`] addresses.
    pub const V4_MAX: u8 = 17;
    pub const V6_MAX: u8 = 96;

    pub fn targets_v4(&self) -> Ipv4Net {
        Ipv4Net::new(self.v4.network(), TARGETS_V4).expect("a length")
    }

    pub fn targets_v6(&self) -> Ipv6Net {
        Ipv6Net::new(self.v6.network(), TARGETS_V6).expect("a length")
    }

    pub fn prober_v4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4.network()) + lb_common::probe::TARGETS + 1)
    }

    /// Of the far end.
    pub fn gateway_v4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.prober_v4()) + 1)
    }

    pub fn prober_v6(&self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.v6.network()) + 0x1_0001)
    }

    pub fn all(&self) -> [IpNet; 2] {
        [self.v4.into(), self.v6.into()]
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.all().iter().any(|net| net.contains(&address))
    }
}

/// Of the range for benchmarks (RFC 2544, C.2.2), which no network routes; and a unique local prefix (RFC 4193):
/// fd6c:6270:726f:6265, "lbprobe".
impl Default for RealPathNetworks {
    fn default() -> RealPathNetworks {
        RealPathNetworks {
            v4: Ipv4Net::new(Ipv4Addr::new(198, 18, 0, 0), 17).expect("a length"),
            v6: Ipv6Net::new(Ipv6Addr::new(0xfd6c, 0x6270, 0x726f, 0x6265, 0, 0, 0, 0), 64)
                .expect("a length"),
        }
    }
}

/// Room for [`lb_common::probe::TARGETS`].
const TARGETS_V4: u8 = 18;
const TARGETS_V6: u8 = 114;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_prober_have_addresses_of_their_own_whatever_the_network() {
        for (v4, v6) in [("198.18.0.0/17", "fd6c:6270:726f:6265::/64"), ("10.64.0.0/12", "fd00:1::/96")] {
            let networks = RealPathNetworks { v4: v4.parse().unwrap(), v6: v6.parse().unwrap() };
            assert_eq!(networks.targets_v4().hosts().count() + 2, lb_common::probe::TARGETS as usize);
            assert_eq!(128 - networks.targets_v6().prefix_len(), lb_common::probe::TARGETS.ilog2() as u8);
            for address in [networks.prober_v4(), networks.gateway_v4()] {
                assert!(networks.v4.contains(&address) && !networks.targets_v4().contains(&address));
            }
            assert!(networks.v6.contains(&networks.prober_v6()));
            assert!(!networks.targets_v6().contains(&networks.prober_v6()));
        }
        assert_eq!(RealPathNetworks::default().prober_v4().to_string(), "198.18.64.1");
    }
}
