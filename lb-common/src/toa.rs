//! TOA: the client's address as a TCP option, laid out as by Alibaba's LVS and DPVS, whose kernel modules for real servers
//! read it too: kind 254, length 8 or 20, port, address; all in network order.
//!
//! It rides on segments without SYN only. Kind 254 is everybody's for experiments (RFC 6994), and Linux takes it for a Fast
//! Open cookie where a SYN has it and its port happens to be 63881 (`net/ipv4/tcp_input.c`, `TCPOPT_FASTOPEN_MAGIC`); who
//! reads the address looks where the connection is made, at the handshake's last segment.

/// The option's kind.
pub const KIND: u8 = 254;
/// Its length with an IPv4 address, and with an IPv6 address. Multiples of four: no padding is needed.
pub const LEN_V4: u8 = 8;
pub const LEN_V6: u8 = 20;
/// Bytes that a TCP header may have.
pub const HEADER_MAX: u32 = 60;

/// The program that reads the option on a real server (`toa-reader` in `lb-ebpf`): names of its programs and maps, and what
/// it found. It shares nothing with the director's data plane.
pub mod reader {
    /// The version in the pin path. Raise it with any change of a map's key, value or kind.
    pub const LAYOUT: u32 = 1;

    /// Names of the programs in the object.
    pub mod programs {
        /// sock_ops: reads the option where a connection is made.
        pub const ESTABLISHED: &str = "toa_established";
        /// cgroup/getpeername4 and cgroup/getpeername6: tell who asks for the peer's address.
        pub const PEER_V4: &str = "toa_peer4";
        pub const PEER_V6: &str = "toa_peer6";
    }

    /// Names of the maps, all pinned.
    pub mod maps {
        /// LPM_TRIE: IPv4 prefixes whose option is believed (key data: 4 bytes, network order).
        pub const SOURCES4: &str = "SOURCES4";
        /// LPM_TRIE: the same for IPv6 (key data: 16 bytes, network order).
        pub const SOURCES6: &str = "SOURCES6";
        /// SK_STORAGE of [`super::Client`].
        pub const CLIENTS: &str = "CLIENTS";
        /// PERCPU_ARRAY of `u64`, by [`super::Found`].
        pub const FOUND: &str = "FOUND";
        /// All of them.
        pub const ALL: [&str; 4] = [SOURCES4, SOURCES6, CLIENTS, FOUND];
    }

    /// Who is at the other end of a connection.
    #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
    #[repr(C)]
    pub struct Client {
        /// In memory order; an IPv4 address as IPv6 maps it (`::ffff:…`).
        pub address: [u32; 4],
        /// As in a packet.
        pub port: u32,
        /// 4 or 6.
        pub family: u32,
    }

    /// What was found where a connection was made.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    #[repr(u32)]
    pub enum Found {
        /// The client's address, from a source that is believed.
        Told = 0,
        /// A source that is believed told nothing.
        Untold = 1,
        /// The option from somebody else: not believed.
        Stranger = 2,
    }

    impl Found {
        /// All of them, in the order of their numbers.
        pub const ALL: [Found; 3] = [Found::Told, Found::Untold, Found::Stranger];

        /// The name in output.
        pub const fn name(self) -> &'static str {
            match self {
                Found::Told => "told",
                Found::Untold => "untold",
                Found::Stranger => "not_believed",
            }
        }
    }
}

/// Its length.
#[inline(always)]
pub const fn len(v6: bool) -> u8 {
    if v6 { LEN_V6 } else { LEN_V4 }
}

/// Its first word: kind, length, and the client's port, which stands in the low half of `ports` as in a packet.
#[inline(always)]
pub const fn first_word(v6: bool, ports: u32) -> u32 {
    KIND as u32 | (len(v6) as u32) << 8 | ports << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernels_15_bytes_and_numbers_their_array() {
        use reader::{Found, maps, programs};
        let programs = [programs::ESTABLISHED, programs::PEER_V4, programs::PEER_V6];
        assert!(maps::ALL.iter().chain(&programs).all(|name| name.len() <= 15));
        assert!(Found::ALL.iter().enumerate().all(|(index, found)| *found as usize == index));
        assert_eq!(core::mem::size_of::<reader::Client>(), 24);
    }

    #[test]
    fn the_first_word_is_kind_length_and_port_as_they_lie_in_a_packet() {
        // Source port 51000, destination port 80.
        let ports = u32::from_ne_bytes([0xc7, 0x38, 0, 80]);
        assert_eq!(first_word(false, ports).to_ne_bytes(), [254, 8, 0xc7, 0x38]);
        assert_eq!(first_word(true, ports).to_ne_bytes(), [254, 20, 0xc7, 0x38]);
        assert!(LEN_V4.is_multiple_of(4) && LEN_V6.is_multiple_of(4));
    }
}
