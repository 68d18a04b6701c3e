//! The address filter: an array of cells indexed by the top bits of an address's key. It answers, without a
//! hash lookup, whether an address can be ours at all; a false positive only costs time.

/// What a cell says. A cell serves every address whose key has its bits, so flags are joined.
pub mod cell {
    /// Some VIP hashes here.
    pub const VIP: u16 = 1;
    /// Some NAT real server hashes here (asked of source addresses).
    pub const NAT_SOURCE: u16 = 2;
    /// Some address that follows a VRRP instance hashes here, or the solicited-node address (RFC 4291, section
    /// 2.7.1) of one: what the kernel would get is looked at by the instance's role first.
    pub const VRRP: u16 = 4;
    /// Some VIP that is probed on the real path hashes here (asked of source addresses).
    pub const PROBED: u16 = 8;
    /// Some VIP hashes here that this director serves as a real server too, beside others: what another director sent
    /// here is for the kernel.
    pub const PEERED: u16 = 16;
    /// Bits 8 to 15: a pool address hashes here: its index plus one, or [`POOL_AMBIGUOUS`].
    pub const POOL_SHIFT: u32 = 8;
    /// More than one pool address hashes here: ask the exact map.
    pub const POOL_AMBIGUOUS: u16 = 255;
}

/// Cells of 16 bits in one array line.
pub const CELLS_PER_LINE: u32 = 32;

/// A line of cells.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct FilterLine {
    pub cells: [u16; CELLS_PER_LINE as usize],
}

/// What the exact map says of an address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct AddressRecord {
    /// Bits of [`role`].
    pub roles: u16,
    /// The pool address's index.
    pub pool: u16,
    /// The VRRP instance that the address follows; 0 is none.
    pub vrrp: u32,
}

/// Roles of an [`AddressRecord`].
pub mod role {
    pub const VIP: u16 = 1;
    pub const NAT_SOURCE: u16 = 2;
    pub const POOL: u16 = 4;
    /// An instance's address, whether or not a virtual service has it.
    pub const VRRP: u16 = 8;
    /// A VIP whose real servers are probed on the real path.
    pub const PROBED: u16 = 16;
    /// A VIP of which this director is a real server by DR, beside others ([`crate::maps::pinned::PEERS`]).
    pub const PEERED: u16 = 128;
    /// A real server that tunnels lead to. It has no bit in the filter's cells: only ICMP errors are asked about it.
    pub const TUNNEL: u16 = 64;
    /// Of an instance without accept mode: the kernel gets no packet to it (RFC 9568, section 6.1, Accept_Mode).
    pub const REFUSES: u16 = 32;
}

/// Key of the exact map: 20 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Hash)]
#[repr(C)]
pub struct AddressKey {
    pub address: crate::address::Address,
    /// 4 or 6.
    pub family: u32,
}

/// A real server of a VIP by DR, as its frames show it: 24 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(C)]
pub struct PeerKey {
    /// The VIP.
    pub vip: crate::address::Address,
    pub mac: [u8; 6],
    /// Of the VIP: 4 or 6.
    pub family: u16,
}

/// How many [`PeerKey`]s there may be.
pub const MAX_PEERS: u32 = 8192;

/// Cells for a number of addresses: at least eight each, so that a stranger's packet is asked about further
/// in one case of eight at full load; 2^12 to 2^20.
pub const fn cell_bits(addresses: u32) -> u32 {
    let want = addresses as u64 * 8;
    let mut bits = 12;
    while bits < 20 && (1u64 << bits) < want {
        bits += 1;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_program() {
        assert_eq!(size_of::<FilterLine>(), 64);
        assert_eq!(size_of::<AddressRecord>(), 8);
        assert_eq!(size_of::<AddressKey>(), 20);
        assert_eq!(size_of::<PeerKey>(), 24);
    }

    #[test]
    fn cells_grow_with_addresses_within_bounds() {
        assert_eq!(cell_bits(1), 12);
        assert_eq!(cell_bits(513), 13);
        assert_eq!(cell_bits(1_000_000), 20);
    }
}
