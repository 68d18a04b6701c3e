//! What the data plane knows of a destination (one real server behind one virtual service) and of a next
//! hop. Each is one 64-byte line. Whatever changes while packets use a record is one aligned `u64`.

use crate::address::Address;

/// The forwarding method, two bits of a destination's flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Forwarding {
    Dr = 0,
    Tun = 1,
    Nat = 2,
    FullNat = 3,
}

/// Flags of a [`Destination`] (bits 32 to 63 of its word).
pub mod flags {
    /// The forwarding method's two bits.
    pub const FORWARDING: u32 = 3;
    /// The real server's address is IPv6.
    pub const REAL_V6: u32 = 1 << 2;
    /// The VIP is IPv6.
    pub const VIP_V6: u32 = 1 << 3;
    /// The service is UDP.
    pub const UDP: u32 = 1 << 4;
    /// The real server was removed: its index is in quarantine. Established TCP flows go on; UDP flows and
    /// new ones are scheduled elsewhere.
    pub const REMOVED: u32 = 1 << 5;
    /// The record is in use.
    pub const VALID: u32 = 1 << 6;
    /// The real server takes no new flows, and persistence to it is over. Established flows go on.
    pub const DRAINING: u32 = 1 << 7;
    /// Flows that go there end with their next packet: TCP is reset, UDP is scheduled elsewhere.
    pub const RESET: u32 = 1 << 8;
    /// With [`RESET`]: the server is alive and is told first, by a packet of the client that is turned into a RST.
    pub const RESET_TELLS_SERVER: u32 = 1 << 9;
    /// Packets per second are limited ([`crate::load::Rate`]).
    pub const RATED: u32 = 1 << 10;
    /// Flows are counted at the server's [`crate::load::Load`].
    pub const COUNTED: u32 = 1 << 11;
    /// With [`COUNTED`]: UDP flows count as inactive.
    pub const UDP_INACTIVE: u32 = 1 << 12;
    /// The service is SCTP.
    pub const SCTP: u32 = 1 << 13;
    /// Flows that go there are scheduled elsewhere with their next packet, TCP too: the server that gets it answers
    /// an established connection that it does not know with RST.
    pub const MOVES: u32 = 1 << 14;
    /// First answers to new connections are counted ([`crate::witness::Witness`]).
    pub const WATCHED: u32 = 1 << 15;
    /// The service is FTP, and its control channel ([`super::Destination::control_port`]) is read.
    pub const FTP: u32 = 1 << 27;
    /// What an established packet must look at, in one test.
    pub const ATTENTION: u32 = REMOVED | RESET | RATED | MOVES | FTP;
    /// What an established reply must look at, in one test.
    pub const REPLY_ATTENTION: u32 = RESET | FTP;
    /// What a new flow may not go to.
    pub const CLOSED: u32 = REMOVED | RESET | DRAINING | MOVES;
    /// Bits 16 to 23: the VRRP instance that the VIP follows; 0 is none.
    pub const VRRP_SHIFT: u32 = 16;
    /// TUN by GUE over UDP, to the port in the word.
    pub const GUE: u32 = 1 << 24;
    /// TUN by GRE.
    pub const GRE: u32 = 1 << 25;
    /// TUN: something of the outer header varies by flow: the key of GRE, else the source address.
    pub const SPREAD: u32 = 1 << 26;
    /// TUN: the packet at hand goes to the kernel in its tunnel. In no record: the program sets it in its copy.
    pub const BY_KERNEL: u32 = 1 << 27;
    /// TUN by anything but plain IPIP straight to the wire: a tail wraps the packet.
    pub const WRAPPED: u32 = GUE | GRE | SPREAD | BY_KERNEL;
    /// The real server is this director itself: packets go to its kernel as they came. Of DR and TUN alone.
    pub const LOCAL: u32 = 1 << 28;
}

/// A (virtual service, real server) binding.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Destination {
    /// \[atomic\] real server's port (16 bits, network order in memory; 0 keeps the packet's; for TUN, which keeps
    /// it always, GUE's port) | largest IP packet that may be forwarded, after encapsulation fits the path (16)
    /// | [`flags`] (32).
    pub word: u64,
    /// Index of the [`NextHop`].
    pub next_hop: u32,
    /// Index of the service.
    pub service: u32,
    /// The real server.
    pub address: Address,
    /// The VIP.
    pub vip: Address,
    /// Timeout of an established (TCP) or confirmed (UDP) flow, in ticks: what a refresh needs.
    pub timeout: u16,
    /// The VIP's port, network order in memory, when the real server's port differs; else 0.
    pub vip_port: u16,
    /// `address - vip` as one's complement difference ([`crate::checksum::difference`]).
    pub delta: u32,
    /// Index of the [`crate::load::Load`]: bindings of one real server in one service group share it.
    pub load: u32,
    /// The place in its service's list of servers.
    pub ordinal: u16,
    /// With [`flags::FTP`]: the VIP's port, which is the real server's too, of the control channel; network order in
    /// memory. Data connections go to other ports of the same destination. Else 0.
    pub control_port: u16,
}

impl Destination {
    /// The word from its parts. `port` in host order.
    pub const fn make_word(port: u16, mtu: u16, flags: u32) -> u64 {
        port.to_be() as u64 | (mtu as u64) << 16 | (flags as u64) << 32
    }

    /// The real server's port as it stands in a packet (memory order).
    #[inline(always)]
    pub const fn port_of(word: u64) -> u16 {
        word as u16
    }

    /// The largest IP packet that may be forwarded, bytes.
    #[inline(always)]
    pub const fn mtu_of(word: u64) -> u16 {
        (word >> 16) as u16
    }

    /// A word with another MTU.
    pub const fn with_mtu(word: u64, mtu: u16) -> u64 {
        word & !0xffff_0000 | (mtu as u64) << 16
    }

    /// The flags.
    #[inline(always)]
    pub const fn flags_of(word: u64) -> u32 {
        (word >> 32) as u32
    }

    /// The forwarding method of flags.
    #[inline(always)]
    pub const fn forwarding_of(flags: u32) -> Forwarding {
        match flags & flags::FORWARDING {
            0 => Forwarding::Dr,
            1 => Forwarding::Tun,
            2 => Forwarding::Nat,
            _ => Forwarding::FullNat,
        }
    }

    /// The VRRP instance of flags; 0 is none.
    #[inline(always)]
    pub const fn vrrp_of(flags: u32) -> u32 {
        (flags >> flags::VRRP_SHIFT) & 0xff
    }
}

/// How a frame gets to a neighbour. Many destinations may share one, so that a gateway's new MAC is one
/// write.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct NextHop {
    /// \[atomic\] the neighbour's MAC (6 bytes in memory order) | outer VLAN TCI (network order; 0 is none).
    pub destination: u64,
    /// \[atomic\] our MAC on the output interface | inner VLAN TCI.
    pub source: u64,
    /// The output interface; 0 is an unresolved hop.
    pub ifindex: u32,
    /// The path's MTU, bytes.
    pub mtu: u32,
    /// Source of tunnel packets, IPv4, memory order; 0 is none.
    pub source_v4: u32,
    /// Whose hop it is, for an agent that finds the record after its restart: 4 or 6, plus
    /// [`HOP_FOR_CLIENTS`].
    pub family: u32,
    /// Source of tunnel packets, IPv6; all zero is none.
    pub source_v6: Address,
    /// The neighbour, as `family` says.
    pub neighbour: Address,
}

/// In the TCI of a hop's outer tag, bit 12 (DEI, which is never set by us): its EtherType is the rarer one, 802.1ad of a
/// single tag, 802.1Q of the outer one of two.
pub const OTHER_TAG: u16 = 1 << 12;

/// Added to [`NextHop::family`] of a hop towards clients.
pub const HOP_FOR_CLIENTS: u32 = 1 << 8;

impl NextHop {
    /// A MAC and a TCI (host order) as one word.
    pub const fn pack(mac: [u8; 6], tci: u16) -> u64 {
        let t = tci.to_be_bytes();
        u64::from_ne_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], t[0], t[1]])
    }

    /// The MAC of a word.
    pub const fn mac(word: u64) -> [u8; 6] {
        let b = word.to_ne_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// The TCI of a word, host order.
    pub const fn tci(word: u64) -> u16 {
        let b = word.to_ne_bytes();
        u16::from_be_bytes([b[6], b[7]])
    }
}

/// Bytes that an IPIP tunnel puts before the inner packet.
pub const fn tunnel_overhead(real_v6: bool) -> u16 {
    if real_v6 { 40 } else { 20 }
}

/// Bytes that a destination of these flags puts between the outer IP header and the inner packet: GUE's with UDP's
/// (draft-ietf-intarea-gue-09, section 3), GRE's with a key where it varies (RFC 2784, RFC 2890).
#[inline(always)]
pub const fn encapsulation(flags: u32) -> u16 {
    if flags & flags::GUE != 0 {
        12
    } else if flags & flags::GRE != 0 {
        if flags & flags::SPREAD != 0 { 8 } else { 4 }
    } else {
        0
    }
}

/// Bytes that forwarding by these flags puts before a packet.
pub const fn overhead(flags: u32) -> u16 {
    match Destination::forwarding_of(flags) {
        Forwarding::Tun => tunnel_overhead(flags & flags::REAL_V6 != 0) + encapsulation(flags),
        _ => 0,
    }
}

/// Packets and bytes of one destination on one CPU. Bytes count the frame as it came.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Traffic {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn records_are_single_lines_and_their_atomic_words_are_aligned() {
        assert_eq!((size_of::<Destination>(), align_of::<Destination>()), (64, 64));
        assert_eq!(offset_of!(Destination, word), 0);
        assert_eq!(offset_of!(Destination, next_hop), 8);
        assert_eq!((size_of::<NextHop>(), align_of::<NextHop>()), (64, 64));
        assert_eq!((offset_of!(NextHop, destination), offset_of!(NextHop, source)), (0, 8));
        assert_eq!(size_of::<Traffic>(), 32);
    }

    #[test]
    fn a_word_gives_back_port_mtu_and_flags() {
        let w = Destination::make_word(
            8080,
            1480,
            Forwarding::Tun as u32 | flags::VALID | 7 << flags::VRRP_SHIFT,
        );
        assert_eq!(Destination::port_of(w).to_ne_bytes(), 8080u16.to_be_bytes());
        assert_eq!(Destination::mtu_of(w), 1480);
        assert_eq!(Destination::forwarding_of(Destination::flags_of(w)), Forwarding::Tun);
        assert_eq!(Destination::vrrp_of(Destination::flags_of(w)), 7);
    }

    #[test]
    fn every_tunnel_has_its_length() {
        let tun = Forwarding::Tun as u32;
        for (flags, bytes) in [
            (0, 20),
            (flags::SPREAD, 20),
            (flags::GUE, 32),
            (flags::GRE, 24),
            (flags::GRE | flags::SPREAD, 28),
        ] {
            assert_eq!(overhead(tun | flags), bytes);
            assert_eq!(overhead(tun | flags | flags::REAL_V6), bytes + 20);
            assert_eq!(overhead(Forwarding::Nat as u32), 0);
        }
    }

    #[test]
    fn a_mac_and_a_tag_share_a_word() {
        let w = NextHop::pack([2, 0, 0, 0, 0, 9], 100);
        assert_eq!((NextHop::mac(w), NextHop::tci(w)), ([2, 0, 0, 0, 0, 9], 100));
        assert_eq!(w.to_ne_bytes(), [2, 0, 0, 0, 0, 9, 0, 100]);
    }
}
