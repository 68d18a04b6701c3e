//! Health probes on the real path. The prober connects to an address of its own for each (VIP, real server), in a
//! veth pair; the program at the pair's far end makes the packet one to the VIP and sends it to that server by its
//! forwarding method. The server's reply, from the VIP to an address of this director, is turned back and put into
//! the pair before the kernel sees it.

use crate::address::Address;

/// Records of [`Target`]: the low bits of a probe's address are its index.
pub const TARGETS: u32 = 1 << 14;
/// Ports of this director's addresses that probes leave from, above Linux's ephemeral ones (32768 to 60999).
pub const FIRST_PORT: u16 = 61_000;
/// How many.
pub const PORTS: u32 = 4_536;
/// A port may be used towards many VIPs at a time: VIPs and their ports fall into so many groups, each with all ports of
/// its own.
pub const GROUPS: u32 = 64;
/// How many ports are tried.
pub const TRIES: u32 = 16;
/// For how many ticks a port is a connection's after its last packet: longer than the pauses of a TCP that
/// retransmits for half a minute.
pub const OPEN: u16 = 60;
/// The same after the prober's SYN. One that is repeated later may leave from another port; and servers that do not
/// answer must not take the ports of those that do.
pub const OPENING: u16 = 4;
/// The same after a packet with FIN, and after all that follow it, for the last ACK of a close is as any other:
/// others that need a port wait for less.
pub const CLOSING: u16 = 3;
/// The same after one with RST: what is still under way is lost.
pub const ABORTED: u16 = 2;
/// The same after the prober's datagram: there is no end to be seen.
pub const DATAGRAM: u16 = 20;
/// The same after a server's: the prober has what it asked for.
pub const ANSWERED: u16 = 4;

/// One (VIP, real server) that is probed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Target {
    /// \[atomic\] index of the destination | [`VALID`] | [`V6`]. Written last, cleared first.
    pub word: u64,
    /// Where replies are put: the MACs of the pair's near end and of its far end, as
    /// [`crate::destination::NextHop`] has them.
    pub prober_mac: u64,
    pub far_mac: u64,
    /// The pair's far end.
    pub ifindex: u32,
    pub reserved: u32,
    /// What the prober connects to.
    pub probe: Address,
    /// Its own address in the pair.
    pub prober: Address,
    pub vip: Address,
    /// The address of this director that the server sees and answers to.
    pub source: Address,
    pub spare: [u64; 4],
}

/// In a target's word: it is in use.
pub const VALID: u64 = 1 << 63;
/// In a target's word: VIP and the addresses of the prober are IPv6.
pub const V6: u64 = 1 << 62;

impl Target {
    /// The index of the destination.
    #[inline(always)]
    pub const fn destination_of(word: u64) -> u32 {
        word as u32
    }
}

/// Who has a port, one `u64`: prober's port (16 bits, memory order) | deadline in ticks (16) | target (24) | UDP (1)
/// | ending (1) | in use (1).
pub mod port {
    use super::{ABORTED, CLOSING, OPEN};

    /// In use.
    pub const USED: u64 = 1 << 63;
    /// A FIN or RST of it passed.
    pub const ENDING: u64 = 1 << 57;
    /// What is compared: all but the deadline and how far the connection is.
    pub const WHO: u64 = !(0xffff << 16 | ENDING);

    /// The word of a connection without its deadline.
    #[inline(always)]
    pub const fn word(target: u32, prober_port: u16, udp: bool) -> u64 {
        USED | prober_port as u64 | (target as u64 & 0xff_ffff) << 32 | (udp as u64) << 56
    }

    /// With a deadline.
    #[inline(always)]
    pub const fn until(word: u64, deadline: u16) -> u64 {
        word & WHO | (deadline as u64) << 16
    }

    /// After one more packet at `now`, which alone would keep the port for `lasts` ticks, one of the constants above.
    #[inline(always)]
    pub const fn renewed(word: u64, now: u16, lasts: u16) -> u64 {
        let ending = lasts == CLOSING || lasts == ABORTED || (word & ENDING != 0 && lasts == OPEN);
        let lasts = if ending && lasts == OPEN { CLOSING } else { lasts };
        until(word, now.wrapping_add(lasts)) | if ending { ENDING } else { 0 }
    }

    /// The prober's port, memory order.
    #[inline(always)]
    pub const fn prober(word: u64) -> u16 {
        word as u16
    }

    /// The target's index.
    #[inline(always)]
    pub const fn target(word: u64) -> u32 {
        (word >> 32) as u32 & 0xff_ffff
    }

    /// Whether it is a UDP port's.
    #[inline(always)]
    pub const fn is_udp(word: u64) -> bool {
        word >> 56 & 1 != 0
    }

    /// Nobody's, or not any more.
    #[inline(always)]
    pub const fn is_free(word: u64, now: u16) -> bool {
        word & USED == 0 || (now.wrapping_sub((word >> 16) as u16) as i16) >= 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn a_target_is_two_lines_whose_word_comes_first() {
        assert_eq!(size_of::<Target>(), 128);
        assert_eq!(offset_of!(Target, word), 0);
        assert_eq!((offset_of!(Target, probe), offset_of!(Target, spare)), (32, 96));
    }

    #[test]
    fn ports_end_with_the_last_one() {
        assert_eq!(FIRST_PORT as u32 + PORTS, 65_536);
    }

    #[test]
    fn a_connection_that_ends_keeps_its_port_no_longer_for_what_follows() {
        let left = |word: u64, now: u16| ((word >> 16) as u16).wrapping_sub(now);
        let mut word = port::word(7, 0xbeef, false);
        // FIN of one side, its ACK, FIN of the other, its ACK; then the same port again.
        for (lasts, expected) in [
            (OPENING, OPENING),
            (OPEN, OPEN),
            (OPEN, OPEN),
            (CLOSING, CLOSING),
            (OPEN, CLOSING),
            (CLOSING, CLOSING),
            (OPEN, CLOSING),
            (ABORTED, ABORTED),
            (OPEN, CLOSING),
            (OPENING, OPENING),
            (OPEN, OPEN),
        ] {
            for now in [0, 0x7fff, 0xfffe] {
                let next = port::renewed(word, now, lasts);
                assert_eq!(left(next, now), expected, "{lasts} after {word:#x}");
                assert_eq!(next & port::WHO, word & port::WHO);
            }
            word = port::renewed(word, 5, lasts);
        }
        let datagram = port::word(7, 0xbeef, true);
        assert_eq!(left(port::renewed(datagram, 9, DATAGRAM), 9), DATAGRAM);
        assert_eq!(left(port::renewed(port::renewed(datagram, 9, DATAGRAM), 9, ANSWERED), 9), ANSWERED);
    }

    #[test]
    fn a_ports_word_gives_back_its_parts_whatever_its_deadline() {
        for deadline in [0, 1, 0x7fff, 0xffff] {
            let word = port::until(port::word(0x3fff, 0xbeef, true), deadline);
            assert_eq!((port::target(word), port::prober(word), port::is_udp(word)), (0x3fff, 0xbeef, true));
            assert_eq!(word & port::WHO, port::word(0x3fff, 0xbeef, true));
            assert!(port::is_free(word, deadline) && !port::is_free(word, deadline.wrapping_sub(1)));
        }
        assert!(port::is_free(0, 9));
    }
}
