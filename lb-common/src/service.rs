//! What the data plane knows of a virtual service, and how it finds one: only for new flows. The service
//! hash holds an index (elements of BPF hash maps are recycled under their readers); the record is an array
//! line.

use crate::address::Address;

/// Key of the service hash: (address, port, protocol, family). 20 bytes, no padding.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct ServiceKey {
    pub address: Address,
    /// Network order in memory; 0 asks for the VIP's port ranges.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
}

/// How many ranges one (VIP, protocol) may have.
pub const MAX_RANGES: usize = 16;

/// One range of ports of a VIP, host order, both ends included.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
    pub service: u32,
}

/// The ranges of one (VIP, protocol): sorted, not overlapping, a service of *any* port last. The service
/// hash's value under port 0 is an index of these. `first > last` ends the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct PortRanges {
    pub ranges: [PortRange; MAX_RANGES],
}

impl Default for PortRanges {
    fn default() -> Self {
        Self { ranges: [PortRange { first: 1, last: 0, service: 0 }; MAX_RANGES] }
    }
}

/// How a slot is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Pick {
    /// The next slot: rr, wrr.
    Cursor = 0,
    /// By a hash of the client's address: sh, mh.
    HashAddress = 1,
    /// By a hash of the client's address and port.
    HashAddressPort = 2,
}

/// What happens to a TCP packet without SYN that belongs to no flow, and after its timeout to any flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum OnUnknownFlow {
    Adopt = 0,
    Reset = 1,
    Pass = 2,
    Drop = 3,
}

/// A virtual service: one line.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Service {
    /// \[atomic\] first slot (32 bits) | number of slots (24) | generation (8).
    pub slots: u64,
    /// How many flows were placed: the cursor of rr and wrr. Written by the data plane only.
    pub cursor: u64,
    /// [`Pick`].
    pub pick: u8,
    /// [`OnUnknownFlow`].
    pub on_unknown_flow: u8,
    /// Bit 0: in use.
    pub flags: u8,
    /// Number of local addresses ([`crate::lease::PoolAddress`]) of a FULLNAT service.
    pub pool_len: u8,
    /// MSS written into SYNs above it, host order; 0 leaves them.
    pub mss: u16,
    /// Index of the first local address.
    pub pool_first: u16,
    /// Timeouts in ticks by state number.
    pub timeouts: [u16; 16],
    /// Which protocol and VRRP instance: for the reader of a dump.
    pub protocol: u8,
    pub vrrp: u8,
    /// Spare; zero.
    pub reserved: [u8; 6],
}

/// The service record is in use.
pub const SERVICE_VALID: u8 = 1;

impl Service {
    /// The slots word from its parts.
    pub const fn make_slots(first: u32, len: u32, generation: u8) -> u64 {
        first as u64 | (len as u64 & 0xff_ffff) << 32 | (generation as u64) << 56
    }

    /// (first slot, number of slots) of a slots word.
    #[inline(always)]
    pub const fn slots_of(word: u64) -> (u32, u32) {
        (word as u32, (word >> 32) as u32 & 0xff_ffff)
    }
}

/// Slots lie sixteen to a 64-byte array element: an ARRAY of `u32` would round each up to 8 bytes.
pub const SLOTS_PER_LINE: u32 = 16;

/// A line of slots. A slot is a destination's index plus one; 0 is no server.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct SlotLine {
    pub slots: [u32; SLOTS_PER_LINE as usize],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn records_have_the_sizes_that_the_program_was_built_with() {
        assert_eq!(size_of::<ServiceKey>(), 20);
        assert_eq!(size_of::<PortRange>(), 8);
        assert_eq!(size_of::<PortRanges>(), 128);
        assert_eq!((size_of::<Service>(), align_of::<Service>()), (64, 64));
        assert_eq!((offset_of!(Service, slots), offset_of!(Service, cursor)), (0, 8));
        assert_eq!(offset_of!(Service, timeouts), 24);
        assert_eq!(size_of::<SlotLine>(), 64);
    }

    #[test]
    fn a_slots_word_gives_back_its_parts() {
        let word = Service::make_slots(0xdead_beef, 65_537, 9);
        assert_eq!(Service::slots_of(word), (0xdead_beef, 65_537));
    }

    #[test]
    fn empty_ranges_hold_no_port() {
        for range in PortRanges::default().ranges {
            assert!(range.first > range.last);
        }
    }
}
