//! The contract of the real server's decapsulator (`real-server` in `lb-ebpf`): names of its program and maps
//! and what can become of a frame. It shares nothing with the director's data plane.

/// The version in the pin path. Raise it with any change of a map's key, value or kind.
pub const LAYOUT: u32 = 2;

/// The program's name in the object.
pub const PROGRAM: &str = "real_server";

/// Names of the maps, all pinned.
pub mod maps {
    /// LPM_TRIE: IPv4 prefixes that tunnelled packets are accepted from (key data: 4 bytes, network order).
    pub const DIRECTORS4: &str = "DIRECTORS4";
    /// LPM_TRIE: the same for IPv6 (key data: 16 bytes, network order).
    pub const DIRECTORS6: &str = "DIRECTORS6";
    /// HASH of [`crate::filter::AddressKey`]: the inner destinations that are unpacked.
    pub const VIPS: &str = "VIPS";
    /// HASH: UDP ports at which GUE is unpacked (key: 2 bytes, network order).
    pub const GUE_PORTS: &str = "GUE_PORTS";
    /// PERCPU_ARRAY of `u64`, by [`super::Outcome`].
    pub const OUTCOMES: &str = "OUTCOMES";
    /// All of them.
    pub const ALL: [&str; 5] = [DIRECTORS4, DIRECTORS6, VIPS, GUE_PORTS, OUTCOMES];
}

macro_rules! outcomes {
    ($($number:literal $variant:ident $name:literal $text:literal;)*) => {
        /// What became of a frame. Every frame has exactly one; all of them go on to the kernel.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Outcome { $(#[doc = $text] $variant = $number,)* }

        impl Outcome {
            /// All outcomes, in the order of their numbers.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$variant,)*];

            /// The name in output.
            pub const fn name(self) -> &'static str { match self { $(Outcome::$variant => $name,)* } }

            /// One sentence for the operator.
            pub const fn text(self) -> &'static str { match self { $(Outcome::$variant => $text,)* } }
        }
    };
}

outcomes! {
    0 NotTunnelled "not_tunnelled" "no tunnelled packet: passed untouched";
    1 Ip4InIp4 "ip4_in_ip4" "IPv4 unpacked from IPv4 (IPIP)";
    2 Ip6InIp4 "ip6_in_ip4" "IPv6 unpacked from IPv4 (6in4)";
    3 Ip4InIp6 "ip4_in_ip6" "IPv4 unpacked from IPv6 (4in6)";
    4 Ip6InIp6 "ip6_in_ip6" "IPv6 unpacked from IPv6 (6in6)";
    5 NotFromDirector "not_from_director" "tunnelled, but not by a listed director: passed untouched";
    6 NotAVip "not_a_vip" "tunnelled by a director, but to no VIP of this server: passed untouched";
    7 Malformed "malformed" "a header cut short or lying about its length: passed untouched";
    8 Fragment "fragment" "a fragment of a tunnelled packet: passed untouched";
    9 Gue "gue" "unpacked from GUE";
    10 Gre "gre" "unpacked from GRE";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_numbered_in_order_and_names_differ() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
            assert!(Outcome::ALL[..index].iter().all(|o| o.name() != outcome.name()));
        }
    }

    #[test]
    fn map_names_fit_the_kernels_15_bytes() {
        assert!(maps::ALL.iter().all(|name| name.len() <= 15));
    }
}
