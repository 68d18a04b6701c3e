//! An IPv4 or IPv6 address as the records hold it: 16 bytes in network order, IPv4 in the first four, the
//! rest zero. The family is told by a flag beside it, never by the bytes.

/// 16 bytes in network order; IPv4 in the first four.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Hash)]
#[repr(C, align(4))]
pub struct Address([u8; 16]);

impl Address {
    /// The address of four bytes in network order.
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let mut bytes = [0; 16];
        bytes[0] = octets[0];
        bytes[1] = octets[1];
        bytes[2] = octets[2];
        bytes[3] = octets[3];
        Self(bytes)
    }

    /// The address of sixteen bytes in network order.
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// The first four bytes, network order.
    pub const fn v4(&self) -> [u8; 4] {
        [self.0[0], self.0[1], self.0[2], self.0[3]]
    }

    /// All sixteen bytes, network order.
    pub const fn v6(&self) -> [u8; 16] {
        self.0
    }

    /// The four 32-bit words as they lie in memory (for IPv4 only the first is not zero). This is how the
    /// data plane reads and writes addresses: it never swaps bytes.
    pub const fn words(&self) -> [u32; 4] {
        let b = &self.0;
        [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ]
    }

    /// The two 64-bit words as they lie in memory: what hashes take. For IPv4 the first holds the address in
    /// its low half, the second is zero.
    pub const fn halves(&self) -> [u64; 2] {
        let w = self.words();
        [w[0] as u64 | (w[1] as u64) << 32, w[2] as u64 | (w[3] as u64) << 32]
    }

    /// The inverse of [`Address::words`].
    pub const fn from_words(words: [u32; 4]) -> Self {
        // SAFETY: both are sixteen bytes without padding. Byte by byte, the program would write sixteen times.
        Self(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl Address {
    /// The address as the standard library's type; `v6` says how to read the bytes.
    pub fn to_ip(&self, v6: bool) -> core::net::IpAddr {
        if v6 { core::net::IpAddr::from(self.v6()) } else { core::net::IpAddr::from(self.v4()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_are_the_same_address() {
        let a = Address::from_v6([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(Address::from_words(a.words()), a);
        assert_eq!(Address::from_v4([10, 0, 0, 1]).words()[1..], [0, 0, 0]);
    }

    #[test]
    fn an_address_survives_the_way_through_a_record() {
        for text in ["10.0.0.1", "255.255.255.255", "2001:db8::1", "::"] {
            let ip: core::net::IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).to_ip(ip.is_ipv6()), ip);
        }
    }
}
