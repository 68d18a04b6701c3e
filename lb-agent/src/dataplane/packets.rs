//! What a program version is loaded with besides sizes: policies for rare packets, and sources of tunnels.

use ipnet::{Ipv4Net, Ipv6Net};
use lb_common::{address::Address, scratch::Config};

/// Read-only for a program version: other values are another load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// Bits of [`lb_common::scratch::policy`].
    pub policies: u32,
    /// Where the outer source addresses of tunnels lie that vary by flow.
    pub sources_v4: Option<Ipv4Net>,
    pub sources_v6: Option<Ipv6Net>,
}

impl Packets {
    /// The configuration with these.
    pub fn into(self, config: Config) -> Config {
        let mut config = Config { policies: self.policies, ..config };
        if let Some(net) = self.sources_v4 {
            config.sources_v4 = Address::from_v4(net.network().octets()).words()[0];
            config.varies_v4 = Address::from_v4(net.hostmask().octets()).words()[0];
        }
        if let Some(net) = self.sources_v6 {
            config.sources_v6 = Address::from_v6(net.network().octets()).halves();
            config.varies_v6 = Address::from_v6(net.hostmask().octets()).halves();
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_given_as_they_stand_in_a_packet() {
        let packets = Packets {
            policies: 5,
            sources_v4: Some("10.200.0.0/16".parse().unwrap()),
            sources_v6: Some("fd00:200::/64".parse().unwrap()),
        };
        let config = packets.into(Config::default());
        assert_eq!(config.policies, 5);
        assert_eq!(config.sources_v4.to_ne_bytes(), [10, 200, 0, 0]);
        assert_eq!(config.varies_v4.to_ne_bytes(), [0, 0, 255, 255]);
        assert_eq!(config.sources_v6[0].to_ne_bytes(), [0xfd, 0, 2, 0, 0, 0, 0, 0]);
        assert_eq!(config.varies_v6, [0, u64::MAX]);
    }
}
