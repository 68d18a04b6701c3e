//! FULLNAT's local ports: a lease is one line of an array indexed by (local address, port), so a reply finds
//! its flow without a hash.

use crate::address::Address;

/// One (local address, port). Claimed by compare-and-exchange on `word`, which has the layout of a
/// connection entry's value (kind FULLNAT, destination and tag in its payload as for a flow).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Lease {
    /// Identity of the client's flow.
    pub owner: u64,
    /// \[atomic\] state, deadline, destination and the owner's tag ([`crate::connection::Value::flow`]).
    pub word: u64,
    /// The client.
    pub client: Address,
    /// Ports of the client's packets: client, VIP; memory order.
    pub ports: u32,
    /// Index of the next hop towards the client; 0 says that the client is on a directly attached segment
    /// and `client_destination`, `client_source` and `client_ifindex` hold.
    pub hop: u32,
    /// As [`crate::destination::NextHop::destination`].
    pub client_destination: u64,
    /// As [`crate::destination::NextHop::source`].
    pub client_source: u64,
    /// Interface of the client's segment.
    pub client_ifindex: u32,
    /// Index of the extension record; 0 is none.
    pub extension: u32,
}

/// A local address of a pool, and the share of its ports that this director may lease.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PoolAddress {
    pub address: Address,
    /// First port, host order.
    pub first_port: u16,
    /// How many ports; 0 leases nothing.
    pub ports: u16,
    /// One's complement sum of the address, for checksums.
    pub sum: u32,
    /// 4 or 6; 0 is an unused index.
    pub family: u8,
    /// VRRP instance; 0 is none.
    pub vrrp: u8,
    pub reserved: [u8; 6],
}

/// How many local addresses there can be: eight bits of a lease's index.
pub const MAX_POOL_ADDRESSES: u32 = 255;
/// How many ports are tried before a new flow is refused.
pub const PROBES: u32 = 16;
/// The first port that is ever leased.
pub const FIRST_PORT: u16 = 1024;

/// The index of a lease.
#[inline(always)]
pub const fn lease_index(pool_address: u32, port: u16) -> u32 {
    pool_address << 16 | port as u32
}

/// The pool address and the port of a lease.
#[inline(always)]
pub const fn of_lease_index(index: u32) -> (u32, u16) {
    (index >> 16, index as u16)
}

/// The ports that director `index` (1 to `of`) of `of` may lease: equal contiguous parts of 1024 to 65535.
/// Returns (first, count).
pub const fn port_share(index: u32, of: u32) -> (u16, u16) {
    let all = 65_536 - FIRST_PORT as u32;
    let count = all / of;
    ((FIRST_PORT as u32 + count * (index - 1)) as u16, count as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn a_lease_is_one_line_with_an_aligned_word() {
        assert_eq!((size_of::<Lease>(), align_of::<Lease>()), (64, 64));
        assert_eq!(offset_of!(Lease, word), 8);
        assert_eq!(size_of::<PoolAddress>(), 32);
        assert_eq!(of_lease_index(lease_index(254, 65_535)), (254, 65_535));
    }

    #[test]
    fn shares_do_not_overlap_and_stay_above_the_reserved_ports() {
        for of in 1..=4 {
            let mut next = FIRST_PORT as u32;
            for index in 1..=of {
                let (first, count) = port_share(index, of);
                assert_eq!(first as u32, next);
                next = first as u32 + count as u32;
            }
            assert!(next <= 65_536 && next > 65_536 - of);
        }
    }
}
