//! Connections of probes: with the source address, interface and mark that the check asks for, and closed so
//! that nothing stays behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::Instant;

use super::Attempt;
use super::words::{Failure, brief};
use crate::model::Forwarding;
use crate::model::health::{Check, Target};

/// A TCP connection, and how long it took.
pub async fn tcp(attempt: &Attempt<'_>) -> Result<(TcpStream, Duration), Failure> {
    let doing = format!("connect to {}", attempt.target);
    let socket = socket(Type::STREAM, Protocol::TCP, attempt.check, attempt.address)?;
    // A reset in place of a FIN: ten thousand checks a second would leave 600,000 sockets in TIME-WAIT here.
    socket.set_linger(Some(Duration::ZERO)).map_err(|error| Failure::io("set SO_LINGER", &error))?;
    let _ = socket.set_tcp_nodelay(true);
    let began = Instant::now();
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(attempt.address);
    let connected = tokio::time::timeout_at(attempt.deadline, connecting).await;
    let connected = connected.map_err(|_| silent(&doing, attempt.target, attempt.check))?;
    let mut stream = connected.map_err(|error| Failure::io(&doing, &error))?;
    let took = began.elapsed();
    if attempt.check.proxy_header == Some(true) {
        let sent = attempt.within("send a PROXY header", stream.write_all(&LOCAL)).await?;
        sent.map_err(|error| Failure::io("send a PROXY header", &error))?;
    }
    Ok((stream, took))
}

/// The header of PROXY protocol version 2 of a connection that nobody else made: signature, version 2 with the command
/// LOCAL, no addresses (HAProxy's `proxy-protocol.txt`, section 2.2). It names no client, so that the server takes the
/// connection's own addresses.
const LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// A UDP socket that hears the target alone, and of its ICMP errors.
pub fn udp(attempt: &Attempt<'_>) -> Result<UdpSocket, Failure> {
    let socket = socket(Type::DGRAM, Protocol::UDP, attempt.check, attempt.address)?;
    let connected =
        socket.connect(&SockAddr::from(attempt.address)).and_then(|()| UdpSocket::from_std(socket.into()));
    connected.map_err(|error| Failure::io(format!("send to {}", attempt.target), &error))
}

/// Nothing came within the timeout. With what the operator looks at first where the target is the VIP on a real
/// server: the server answers nothing for an address that it does not have.
pub fn silent(doing: &str, target: &Target, check: &Check) -> Failure {
    let time = brief(check.timing.timeout);
    Failure::new(format!("{doing}: no answer within {time}{}", hint(target)))
}

fn hint(target: &Target) -> String {
    match target {
        Target::Direct { .. } => String::new(),
        Target::Real { vip, server, method: Forwarding::Tun, .. } => {
            format!(" (is {vip} on lo of {server}, and does it decapsulate?)")
        }
        Target::Real { vip, server, .. } => format!(" (is {vip} on lo of {server}?)"),
    }
}

/// A nonblocking socket that is bound as the check asks.
pub fn socket(kind: Type, protocol: Protocol, check: &Check, to: SocketAddr) -> Result<Socket, Failure> {
    let socket = Socket::new_raw(Domain::for_address(to), kind.nonblocking().cloexec(), Some(protocol))
        .map_err(|error| Failure::io("open a socket", &error))?;
    bind(&socket, check, to.ip())?;
    Ok(socket)
}

fn bind(socket: &Socket, check: &Check, to: IpAddr) -> Result<(), Failure> {
    if let Some(mark) = check.mark {
        socket.set_mark(mark).map_err(|error| Failure::io(format!("set mark {mark}"), &error))?;
    }
    if let Some(interface) = &check.interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(|error| Failure::io(format!("bind to interface {interface}"), &error))?;
    }
    match check.source {
        Some(source) if source.is_ipv4() == to.is_ipv4() => socket
            .bind(&SockAddr::from(SocketAddr::new(source, 0)))
            .map_err(|error| Failure::io(format!("bind to source address {source}"), &error)),
        Some(source) => {
            Err(Failure::new(format!("source address {source} and target {to} are of different families")))
        }
        None => Ok(()),
    }
}

/// The unspecified address of a family.
pub fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
