//! What the benchmark tells its feeder program: the frame that each round begins with, and how the next
//! flow is found. Not part of the data plane.

/// Bytes of a frame that the feeder writes back: 64 (IPv4) or 80 (IPv6).
pub const FRAME_V4: usize = 64;
/// As [`FRAME_V4`], for IPv6.
pub const FRAME_V6: usize = 80;
/// The most bytes of a frame of [`kind::FREE`]; such frames are multiples of eight.
pub const FRAME_FREE: usize = 128;

/// Bits of [`Feed::kind`].
pub mod kind {
    /// The frame is IPv6.
    pub const V6: u32 = 1;
    /// The flow's address and port stand in the destination's place, as in a reply.
    pub const REPLY: u32 = 2;
    /// Address and ports come from the list of flows, in its order, not from the flow's number.
    pub const LISTED: u32 = 4;
    /// The frame is of any form: what varies stands where the record says.
    pub const FREE: u32 = 8;
    /// With FREE: the program under test changes the frame's end, not its start.
    pub const RESIZED: u32 = 16;
    /// With FREE: the varying address is part of something that has a checksum of its own, which the transport's sum covers as
    /// well: together they do not vary.
    pub const QUOTED: u32 = 32;
    /// With FREE and LISTED: a flow of the list has the number that it acknowledges above [`super::flow_of_cookie`].
    pub const COOKIE: u32 = 64;
}

/// Address (last 32 bits) and port, host order, of a flow of a list of cookies.
#[inline(always)]
pub const fn flow_of_cookie(base: u32, entry: u64) -> (u32, u16) {
    (base.wrapping_add(entry as u32 & 0xffff), (entry >> 16) as u16)
}

/// The feeder's orders and its place in the sequence of flows.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Feed {
    /// The frame with the flow's address, ports and both checksums zero.
    pub words: [u64; FRAME_FREE / 8],
    /// Place in the sequence: the state of a linear congruential generator modulo 2^64, whose low bits have
    /// full period by themselves; of a list, the index.
    pub position: u64,
    /// Number of flows less one; a power of two less one.
    pub mask: u64,
    /// Added to a flow's number.
    pub first: u64,
    /// Address of flow 0 (its last 32 bits, host order). The low 16 bits of a flow's number are added.
    pub base: u32,
    /// The port that all flows share, at its place in the ports word, memory order.
    pub fixed: u32,
    /// Sum of the IPv4 header as far as it does not vary.
    pub sum_ip: u32,
    /// Sum of pseudo header, transport header and payload as far as they do not vary.
    pub sum_transport: u32,
    /// [`kind`].
    pub kind: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// Word of the barrier: counts rounds.
    pub rounds: u64,
    /// Of [`kind::FREE`], offsets in the frame; 0 is nowhere. Of the varying address,
    pub at_address: u16,
    /// of the ports,
    pub at_ports: u16,
    /// of an IPv4 header's checksum over the address,
    pub at_sum_ip: u16,
    /// of the transport's checksum.
    pub at_sum: u16,
}

/// Multiplier of the sequence: one more than a multiple of four, so that with an odd increment every power of
/// two as modulus has full period (Hull and Dobell, 1962).
pub const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
/// Increment of the sequence.
pub const INCREMENT: u64 = 1_442_695_040_888_963_407;
/// The port of flows 0 to 65,535; later ones count up from it.
pub const FIRST_PORT: u32 = 1024;

/// The place after `position`.
#[inline(always)]
pub const fn next(position: u64) -> u64 {
    position.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT)
}

/// Address (last 32 bits) and port of a flow, host order.
#[inline(always)]
pub const fn flow(base: u32, number: u64) -> (u32, u16) {
    (base.wrapping_add(number as u32 & 0xffff), (FIRST_PORT + (number >> 16) as u32) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_whole_lines() {
        assert_eq!((size_of::<Feed>(), align_of::<Feed>()), (192, 64));
    }

    #[test]
    fn every_flow_is_visited_once_in_a_period() {
        for bits in [0, 1, 10, 16] {
            let mask = (1u64 << bits) - 1;
            let mut seen = vec![false; 1 << bits];
            let mut position = 0;
            for _ in 0..=mask {
                let number = (position & mask) as usize;
                assert!(!std::mem::replace(&mut seen[number], true), "flow {number} of {mask} twice");
                position = next(position);
            }
        }
    }

    #[test]
    fn numbers_beyond_the_addresses_change_the_port() {
        assert_eq!(flow(0x0a40_0000, 0), (0x0a40_0000, 1024));
        assert_eq!(flow(0x0a40_0000, 0x2_0003), (0x0a40_0003, 1026));
    }
}
