//! What TUN puts around a packet, in the words of ipvsadm: `--tun-type`, `--tun-port`.

use ipnet::{Ipv4Net, Ipv6Net};
use lb_common::destination::{self, flags};
use serde::{Deserialize, Serialize};

use super::Forwarding;

/// How packets to a real server of TUN are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Encapsulation {
    pub kind: TunnelType,
    /// The UDP port that GUE goes to; 0 for the others.
    pub port: u16,
    /// Something outside is the flow's own: the key of gre, the source address of ipip. For gue it is the source port,
    /// always, and this is false.
    pub spread: bool,
}

/// The protocol of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelType {
    /// IP in IP: RFC 2003, RFC 4213, RFC 2473.
    #[default]
    Ipip,
    /// Generic UDP Encapsulation, variant 0 (draft-ietf-intarea-gue-09).
    Gue,
    /// RFC 2784, with a key RFC 2890.
    Gre,
}

impl Encapsulation {
    /// As a destination's record has it.
    pub fn flags(self) -> u32 {
        let kind = match self.kind {
            TunnelType::Ipip => 0,
            TunnelType::Gue => flags::GUE,
            TunnelType::Gre => flags::GRE,
        };
        kind | if self.spread { flags::SPREAD } else { 0 }
    }

    /// Whether its outer source address is one of the Director's tunnel sources.
    pub fn varies_source(self) -> bool {
        self.kind == TunnelType::Ipip && self.spread
    }

    /// Bytes that forwarding by `method` to a server of this family puts before a packet.
    pub fn overhead(self, method: Forwarding, server_v6: bool) -> u16 {
        if method != Forwarding::Tun {
            return 0;
        }
        destination::tunnel_overhead(server_v6) + destination::encapsulation(self.flags())
    }
}

/// Networks whose addresses a director uses as varying sources of IPIP, one for each family at most. They are the
/// director's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunnelSources {
    pub v4: Option<Ipv4Net>,
    pub v6: Option<Ipv6Net>,
}

impl TunnelSources {
    /// Whether tunnels to servers of this family have one.
    pub fn covers(&self, v6: bool) -> bool {
        if v6 { self.v6.is_some() } else { self.v4.is_some() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnels_headers_are_counted_for_tun_alone() {
        let of = |kind, port, spread| Encapsulation { kind, port, spread };
        for (tunnel, bytes) in [
            (Encapsulation::default(), 20),
            (of(TunnelType::Ipip, 0, true), 20),
            (of(TunnelType::Gue, 6080, false), 32),
            (of(TunnelType::Gre, 0, false), 24),
            (of(TunnelType::Gre, 0, true), 28),
        ] {
            assert_eq!(tunnel.overhead(Forwarding::Tun, false), bytes);
            assert_eq!(tunnel.overhead(Forwarding::Tun, true), bytes + 20);
            assert_eq!(tunnel.overhead(Forwarding::Dr, false), 0);
        }
    }
}
