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
    fn the_first_word_is_kind_length_and_port_as_they_lie_in_a_packet() {
        // Source port 51000, destination port 80.
        let ports = u32::from_ne_bytes([0xc7, 0x38, 0, 80]);
        assert_eq!(first_word(false, ports).to_ne_bytes(), [254, 8, 0xc7, 0x38]);
        assert_eq!(first_word(true, ports).to_ne_bytes(), [254, 20, 0xc7, 0x38]);
        assert!(LEN_V4.is_multiple_of(4) && LEN_V6.is_multiple_of(4));
    }
}
