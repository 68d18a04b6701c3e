//! ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4), on a raw socket that hears the target alone.

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, Ipv4Slice};
use socket2::{Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::words::Failure;
use super::{Attempt, Success, connect};
use crate::model::health::Icmp;

pub async fn run(icmp: &Icmp, attempt: &Attempt<'_>) -> Result<Success, Failure> {
    let doing = format!("ping {}", attempt.address.ip());
    let wrong = |error: io::Error| Failure::io(&doing, &error);
    let protocol = if attempt.address.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let socket = connect::socket(Type::RAW, protocol, attempt.check, attempt.address)?;
    if attempt.address.is_ipv4() {
        hear_replies_only(&socket).map_err(wrong)?;
    }
    socket.connect(&SockAddr::from(attempt.address)).map_err(wrong)?;
    let echo = next_echo();
    let request = request(attempt.address.ip(), echo, icmp.size);
    // SAFETY: the descriptor is owned by the AsyncFd from here on and closed after it is deregistered.
    let socket = unsafe { AsyncFd::register(OwnedFd::from(socket)) }.map_err(|error| wrong(error.into()))?;
    let began = Instant::now();
    send(&socket, &request).map_err(wrong)?;
    let mut packet = vec![0; usize::from(icmp.size) + HEADERS_MAX];
    loop {
        let received = attempt.within(&doing, receive(&socket, &mut packet)).await?;
        let length = received.map_err(wrong)?;
        if answers(attempt.address.ip(), &packet[..length], echo, &request[8..]) {
            return Ok(Success::new("answered", began.elapsed()));
        }
    }
}

/// Identifier and number of one echo. No two under way have the same.
fn next_echo() -> IcmpEchoHeader {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let word = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id() << 16);
    IcmpEchoHeader { id: (word >> 16) as u16, seq: word as u16 }
}

fn request(to: IpAddr, echo: IcmpEchoHeader, size: u16) -> Vec<u8> {
    let data: Vec<u8> = (0..size).map(|index| index as u8).collect();
    let mut bytes = match to {
        IpAddr::V4(_) => {
            Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &data).to_bytes().to_vec()
        }
        // The kernel fills in the checksum, which covers the source address (RFC 3542, 3.1).
        IpAddr::V6(_) => [&[128, 0, 0, 0][..], &echo.to_bytes()].concat(),
    };
    bytes.extend_from_slice(&data);
    bytes
}

/// Whether `packet` is the reply to this echo, with the same data. An IPv4 raw socket gives the IP header too.
fn answers(from: IpAddr, packet: &[u8], echo: IcmpEchoHeader, data: &[u8]) -> bool {
    match from {
        IpAddr::V4(_) => {
            let Ok(packet) = Ipv4Slice::from_slice(packet) else { return false };
            let Ok(reply) = Icmpv4Slice::from_slice(packet.payload().payload) else { return false };
            matches!(reply.icmp_type(), Icmpv4Type::EchoReply(found) if found == echo)
                && reply.payload() == data
        }
        IpAddr::V6(_) => {
            let Ok(reply) = Icmpv6Slice::from_slice(packet) else { return false };
            matches!(reply.icmp_type(), Icmpv6Type::EchoReply(found) if found == echo)
                && reply.payload() == data
        }
    }
}

/// Of ICMP, only what answers an echo: our own requests to an address of this host would come here as well, and
/// the errors about the target reach a connected socket without (raw(7), ICMP_FILTER).
fn hear_replies_only(socket: &Socket) -> io::Result<()> {
    const ICMP_FILTER: libc::c_int = 1;
    let blocked: u32 = !1;
    // SAFETY: the option's value is one u32 that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_RAW,
            ICMP_FILTER,
            (&raw const blocked).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn send(socket: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<()> {
    socket2::SockRef::from(&socket.get_ref().as_fd()).send(bytes).map(drop)
}

async fn receive(socket: &AsyncFd<OwnedFd>, packet: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = socket.readable().await?;
        let read = ready.try_io(|socket| {
            // SAFETY: MaybeUninit<u8> has the layout of u8, and recv writes only initialized bytes to it.
            let buffer = unsafe { &mut *(&raw mut *packet as *mut [MaybeUninit<u8>]) };
            socket2::SockRef::from(&socket.get_ref().as_fd()).recv(buffer)
        });
        if let Ok(result) = read {
            return result;
        }
    }
}

/// The longest IPv4 header and the ICMP header.
const HEADERS_MAX: usize = 68;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reply_with_our_number_and_data_answers() {
        let echo = IcmpEchoHeader { id: 7, seq: 9 };
        let from: IpAddr = "2001:db8::1".parse().unwrap();
        let sent = request(from, echo, 4);
        assert_eq!(sent, [128, 0, 0, 0, 0, 7, 0, 9, 0, 1, 2, 3]);
        let mut reply = sent.clone();
        reply[0] = 129;
        assert!(answers(from, &reply, echo, &sent[8..]));
        assert!(!answers(from, &sent, echo, &sent[8..]), "a request is no reply");
        assert!(!answers(from, &reply, IcmpEchoHeader { id: 7, seq: 8 }, &sent[8..]));
        assert!(!answers(from, &reply[..11], echo, &sent[8..]), "data cut off");
        for length in 0..8 {
            assert!(!answers(from, &reply[..length], echo, &[]));
        }
    }

    #[test]
    fn an_ipv4_request_has_a_checksum() {
        let sent = request("10.0.0.1".parse().unwrap(), IcmpEchoHeader { id: 1, seq: 2 }, 3);
        let sum: u32 =
            sent.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
