//! What is remembered of a packet that comes in pieces: only its first fragment has ports, and the others follow it.

use crate::address::Address;

/// Which packet a fragment belongs to (RFC 791, section 3.2; RFC 8200, section 4.5). 40 bytes, no padding.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    /// As in the packet, memory order; 16 bits for IPv4.
    pub id: u32,
    /// IPv4: the protocol. IPv6: 0, for only the first fragment need tell it.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    pub reserved: u16,
}

/// What the first fragment said.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FirstFragment {
    /// When it came, in jiffies.
    pub since: u64,
    /// Ports as in the packet, source first.
    pub ports: u32,
    /// Where it ends: bytes of the packet's payload. What begins before that overlaps it.
    pub end: u16,
    /// IP protocol of the transport header.
    pub protocol: u8,
    pub reserved: u8,
}

/// How many packets in pieces are remembered; the ones unused for longest make room.
pub const FRAGMENTED_PACKETS: u32 = 16_384;
/// How long, in seconds: Linux gives a packet's pieces as long to come together (`ipfrag_time`).
pub const HOLDS: u64 = 30;
/// The largest payload that fragments can make (RFC 791, section 3.1).
pub const LARGEST: u32 = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_no_padding() {
        assert_eq!(size_of::<FragmentKey>(), 40);
        assert_eq!(size_of::<FirstFragment>(), 16);
    }
}
