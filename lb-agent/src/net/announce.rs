//! Gratuitous ARP and unsolicited neighbour advertisements: "this address is here now", sent as Ethernet frames
//! through a packet socket because the kernel may already answer for the address, or not yet.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv6Type, IpNumber, Ipv6Header,
};

/// A gratuitous ARP as keepalived sends it: a request (operation 1) with the address as sender and target, and
/// all ones as the target's hardware address (RFC 5227 3 calls it an announcement; requests are heeded by more
/// stacks than replies).
pub fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> [u8; 42] {
    let ethernet = Ethernet2Header { source: mac, destination: [0xff; 6], ether_type: EtherType::ARP };
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: address.octets(),
        target_mac: [0xff; 6],
        target_ipv4: address.octets(),
    };
    let mut frame = [0; 42];
    frame[..14].copy_from_slice(&ethernet.to_bytes());
    frame[14..].copy_from_slice(&arp.to_bytes());
    frame
}

/// An unsolicited neighbour advertisement to all nodes: override set, with the target link-layer address option
/// (RFC 4861 4.4 and 7.2.6). `router`: this host forwards IPv6; without the flag hosts would drop it from their
/// router lists.
pub fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr, router: bool) -> [u8; 86] {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let ethernet = Ethernet2Header {
        source: mac,
        destination: [0x33, 0x33, 0, 0, 0, 1], // RFC 2464 7
        ether_type: EtherType::IPV6,
    };
    let ip = Ipv6Header {
        payload_length: 32,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: 255, // anything else is dropped by the receiver (RFC 4861 7.1.2)
        source: address.octets(),
        destination: all_nodes.octets(),
        ..Ipv6Header::default()
    };
    let mut body = [0; 24];
    body[..16].copy_from_slice(&address.octets());
    body[16..18].copy_from_slice(&[2, 1]); // target link-layer address, 8 bytes
    body[18..].copy_from_slice(&mac);
    let kind = Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
        router,
        solicited: false,
        r#override: true,
    });
    let icmp = kind
        .to_header(ip.source, ip.destination, &body)
        .expect("the checksum of a message of 32 bytes can be computed");
    let mut frame = [0; 86];
    frame[..14].copy_from_slice(&ethernet.to_bytes());
    frame[14..54].copy_from_slice(&ip.to_bytes());
    frame[54..62].copy_from_slice(&icmp.to_bytes());
    frame[62..].copy_from_slice(&body);
    frame
}

/// Sends one frame, Ethernet header included, out of an interface of the calling thread's network namespace.
///
/// # Errors
/// The kernel's refusal: no `CAP_NET_RAW`, interface down (`ENETDOWN`) or gone (`ENXIO`).
pub fn send(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // Protocol 0: the socket only sends and is handed no frames.
    // SAFETY: socket takes no pointers; a non-negative result is a descriptor that nobody else owns.
    let socket = unsafe {
        match libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    // SAFETY: all zero bytes are a sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex as i32;
    // SAFETY: both pointers are valid for the lengths given with them during the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    match sent {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0xca, 0x8c, 0xec, 0x24, 0x5a, 0xcd];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_gratuitous_arp_is_a_request_from_and_for_the_address() {
        let golden = [
            "ffffffffffff", // to everybody
            "ca8cec245acd",
            "0806",
            "0001080006040001", // Ethernet, IPv4, request
            "ca8cec245acd",
            "0a4d0064",
            "ffffffffffff",
            "0a4d0064",
        ];
        assert_eq!(hex(&gratuitous_arp(MAC, Ipv4Addr::new(10, 77, 0, 100))), golden.concat());
    }

    #[test]
    fn an_unsolicited_advertisement_overrides_and_names_the_hardware_address() {
        for (router, flags, checksum) in [(false, "20000000", "e6c0"), (true, "a0000000", "66c0")] {
            let golden = [
                "333300000001",
                "ca8cec245acd",
                "86dd",
                "60000000",
                "00203aff", // 32 bytes of ICMPv6, hop limit 255
                "20010db8007700000000000000000100",
                "ff020000000000000000000000000001",
                "8800",
                checksum,
                flags,
                "20010db8007700000000000000000100",
                "0201ca8cec245acd",
            ];
            let frame = unsolicited_advertisement(MAC, "2001:db8:77::100".parse().unwrap(), router);
            assert_eq!(hex(&frame), golden.concat(), "router: {router}");
        }
    }
}
