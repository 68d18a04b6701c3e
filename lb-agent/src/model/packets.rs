//! What becomes of packets that are neither a flow's first nor its next: echo, fragments, what no tunnel holds.

use lb_common::scratch::policy;

/// Of one director; its program is loaded with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketPolicy {
    pub echo: Echo,
    pub too_big_for_tunnel: TooBigForTunnel,
    pub fragments: Fragments,
}

/// An ICMP echo request to a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Echo {
    /// Answered by the master's program, at the rate of its other answers.
    Answer,
    /// The kernel's, which answers if it has the VIP.
    #[default]
    Pass,
    Drop,
}

/// An IPv4 packet without DF that does not fit after encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TooBigForTunnel {
    #[default]
    Drop,
    /// To the kernel in its tunnel, which fragments the outer packet.
    Fragment,
}

/// Fragments that do not come as they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fragments {
    /// A later one before the first.
    pub out_of_order: LeaveTo,
    /// A first one without the whole transport header.
    pub tiny: LeaveTo,
    /// Whether a later one that begins inside the first goes where that went; else it is dropped.
    pub forward_overlapping: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeaveTo {
    #[default]
    Drop,
    /// The kernel's.
    Pass,
}

impl PacketPolicy {
    /// As the program is loaded with it.
    pub fn bits(self) -> u32 {
        let echo = match self.echo {
            Echo::Answer => policy::ECHO_ANSWER,
            Echo::Pass => 0,
            Echo::Drop => policy::ECHO_DROP,
        };
        [
            (self.too_big_for_tunnel == TooBigForTunnel::Fragment, policy::TUNNEL_FRAGMENT),
            (self.fragments.out_of_order == LeaveTo::Pass, policy::UNKNOWN_PASS),
            (self.fragments.tiny == LeaveTo::Pass, policy::TINY_PASS),
            (self.fragments.forward_overlapping, policy::OVERLAP_FORWARD),
        ]
        .into_iter()
        .fold(echo, |bits, (set, bit)| if set { bits | bit } else { bits })
    }
}
