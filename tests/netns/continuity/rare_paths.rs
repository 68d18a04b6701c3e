//! What a client meets beside the plain path: ICMP errors and resets that the director sends itself.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{TcpHeader, TcpHeaderSlice};
use lb_tests::Host;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(2);
/// ICMP and ICMPv6: "time exceeded" (RFC 792, RFC 4443).
const TIME_EXCEEDED_V4: u8 = 11;
const TIME_EXCEEDED_V6: u8 = 3;

/// A packet whose TTL ends at the director is answered by ICMP time exceeded from the VIP that quotes it.
pub fn ttl_is_answered(client: &Host, vip: SocketAddr, tcp: bool) -> Result<(), String> {
    let exchange = || -> io::Result<()> {
        let (domain, icmp) = match vip {
            SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let listener = Socket::new(domain, Type::RAW, Some(icmp))?;
        let probe = Socket::new(domain, if tcp { Type::STREAM } else { Type::DGRAM }, None)?;
        if vip.is_ipv4() {
            probe.set_ttl_v4(1)?
        } else {
            probe.set_unicast_hops_v6(1)?
        }
        probe.set_nonblocking(true)?;
        match probe.connect(&vip.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let port = probe.local_addr()?.as_socket().expect("an IP socket").port();
        if !tcp {
            probe.send(b"who")?;
        }
        receive(&listener, |from, packet| {
            from == vip.ip() && quoted_port(vip.is_ipv4(), packet) == Some(port)
        })
    };
    let what = if tcp { "SYN" } else { "datagram" };
    client.namespace.run(exchange).map_err(|error| format!("TTL 1, {what} to {vip}: no ICMP error: {error}"))
}

/// The source port of the packet that an ICMP time exceeded quotes.
fn quoted_port(v4: bool, packet: &[u8]) -> Option<u16> {
    let header = |packet: &[u8]| Some(usize::from(packet.first()? & 15) * 4);
    // A raw socket shows the IP header in IPv4, and not in IPv6.
    let icmp = if v4 { packet.get(header(packet)?..)? } else { packet };
    if *icmp.first()? != if v4 { TIME_EXCEEDED_V4 } else { TIME_EXCEEDED_V6 } {
        return None;
    }
    let quoted = icmp.get(8..)?;
    let transport = quoted.get(if v4 { header(quoted)? } else { 40 }..)?;
    Some(u16::from_be_bytes(transport.get(..2)?.try_into().ok()?))
}

/// A segment of no connection is answered by a RST that carries its acknowledgement.
pub fn unknown_flow_is_reset(client: &Host, vip: SocketAddr, port: u16) -> Result<(), String> {
    const ACKNOWLEDGED: u32 = 0x1234_5678;
    let exchange = || -> io::Result<()> {
        let mut segment = TcpHeader::new(port, vip.port(), 1000, 512);
        segment.ack = true;
        segment.acknowledgment_number = ACKNOWLEDGED;
        let checksum = match (client.address(vip.ip()), vip.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                segment.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                segment.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[])
            }
            _ => unreachable!("the client's address is of the VIP's family"),
        };
        segment.checksum = checksum.expect("an empty segment is short enough");
        let raw = Socket::new(Domain::for_address(vip), Type::RAW, Some(Protocol::TCP))?;
        raw.send_to(&segment.to_bytes(), &SockAddr::from(SocketAddr::new(vip.ip(), 0)))?;
        receive(&raw, |from, packet| {
            let skip = if vip.is_ipv4() { usize::from(packet[0] & 15) * 4 } else { 0 };
            let Ok(answer) = TcpHeaderSlice::from_slice(packet.get(skip..).unwrap_or_default()) else {
                return false;
            };
            let ports = (answer.source_port(), answer.destination_port());
            let right = answer.rst() && answer.sequence_number() == ACKNOWLEDGED;
            from == vip.ip() && ports == (vip.port(), port) && right
        })
    };
    client.namespace.run(exchange).map_err(|error| format!("a stray segment to {vip}: no RST: {error}"))
}

/// Waits for a packet that is as `wanted`, by its sender and its bytes.
fn receive(socket: &Socket, wanted: impl Fn(IpAddr, &[u8]) -> bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        // SAFETY: the kernel has written the first `length` bytes.
        let packet = unsafe { buffer[..length].assume_init_ref() };
        let from = from.as_socket().map(|socket| socket.ip());
        if length > 0 && from.is_some_and(|from| wanted(from, packet)) {
            return Ok(());
        }
    }
}

/// The path MTU that a client has learned for an address, if it was told one.
pub fn learned_mtu(client: &Host, address: IpAddr) -> Option<u32> {
    let route = client.namespace.output("ip", &["route", "get", &address.to_string()]);
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.find_map(|word| word.parse().ok())
}
