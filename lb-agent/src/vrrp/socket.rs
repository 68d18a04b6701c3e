//! The sockets of one instance: raw IP, protocol 112. One receives, with the IP header's facts that the receive
//! checks need (source, destination, TTL); one sends, from the instance's source address out of one interface.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockFilter, Socket, Type};

use super::advert::{Context, MULTICAST_V4, MULTICAST_V6, PROTOCOL, TOS, TTL, from_ipv4};
use crate::model::Vrid;

/// Where an instance speaks and listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The interface that advertisements come in by.
    pub receive: u32,
    /// The interface that they leave by: the same, or the virtual router's own (VMAC).
    pub send: u32,
    /// The address that they come from. IPv6: a link-local one, unless unicast.
    pub source: IpAddr,
    pub vrid: Vrid,
    pub multicast: bool,
}

/// Both sockets.
#[derive(Debug)]
pub struct Sockets {
    way: Way,
    receive: Socket,
    send: Socket,
    buffer: Vec<u8>,
}

/// What one look at the receiving socket brought.
#[derive(Debug)]
pub enum Received<'a> {
    Nothing,
    Message {
        message: &'a [u8],
        context: Context,
    },
    /// Not even an IP packet that carries VRRP.
    Unreadable,
}

impl Sockets {
    /// Opens both.
    ///
    /// # Errors
    /// The kernel's refusal: no CAP_NET_RAW, an interface that is gone, an address that is not this host's.
    pub fn open(way: Way) -> io::Result<Sockets> {
        let receive = receiver(&way)?;
        let send = sender(&way)?;
        Ok(Sockets { way, receive, send, buffer: vec![0; PACKET_MAX] })
    }

    pub fn way(&self) -> &Way {
        &self.way
    }

    /// To poll for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }

    /// The group that advertisements go to, where they are not sent to single peers.
    pub fn group(&self) -> IpAddr {
        group(self.way.source.is_ipv4())
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The kernel's refusal: interface down, no route to a peer.
    pub fn send(&self, message: &[u8], to: IpAddr) -> io::Result<()> {
        let to: SockAddr = match to {
            IpAddr::V4(_) => SocketAddr::new(to, 0).into(),
            // The scope matters to link-local addresses only.
            IpAddr::V6(v6) => SocketAddrV6::new(v6, 0, 0, self.way.send).into(),
        };
        match self.send.send_to(message, &to) {
            Ok(length) if length == message.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) => Err(error),
        }
    }

    /// The next message for this virtual router's identifier, without waiting.
    ///
    /// # Errors
    /// A socket that can no longer be read (its interface is gone).
    pub fn receive(&mut self) -> io::Result<Received<'_>> {
        let received = if self.way.source.is_ipv4() { self.receive_v4() } else { return self.receive_v6() };
        match received {
            Ok(length) => Ok(match from_ipv4(&self.buffer[..length]) {
                Ok((context, message)) => Received::Message { message, context },
                Err(_) => Received::Unreadable,
            }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }

    fn receive_v4(&mut self) -> io::Result<usize> {
        // SAFETY: MaybeUninit<u8> has u8's layout, and socket2 promises to write no uninitialised bytes into it.
        let buffer = unsafe { &mut *(self.buffer.as_mut_slice() as *mut [u8] as *mut [MaybeUninit<u8>]) };
        self.receive.recv(buffer)
    }

    /// The kernel keeps the IPv6 header to itself; what it said comes as control messages.
    fn receive_v6(&mut self) -> io::Result<Received<'_>> {
        let mut control = cmsg_space!(libc::in6_pktinfo, libc::c_int);
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let fd = self.receive.as_raw_fd();
        let got = match recvmsg::<SockaddrIn6>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT) {
            Ok(got) => got,
            Err(nix::errno::Errno::EAGAIN) => return Ok(Received::Nothing),
            Err(error) => return Err(error.into()),
        };
        let (mut destination, mut ttl) = (None, None);
        for message in got.cmsgs()? {
            match message {
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(info.ipi6_addr.s6_addr.into())
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => ttl = u8::try_from(limit).ok(),
                _ => {}
            }
        }
        let source = got.address.map(|address| address.ip());
        let length = got.bytes;
        let (Some(source), Some(destination), Some(ttl)) = (source, destination, ttl) else {
            return Ok(Received::Unreadable);
        };
        let context = Context { source: source.into(), destination: IpAddr::V6(destination), ttl };
        Ok(Received::Message { message: &self.buffer[..length], context })
    }
}

/// The group of a family.
pub fn group(ipv4: bool) -> IpAddr {
    if ipv4 { MULTICAST_V4.into() } else { MULTICAST_V6.into() }
}

fn receiver(way: &Way) -> io::Result<Socket> {
    let socket = raw(way.source)?;
    socket.attach_filter(&only(way.vrid, way.source.is_ipv4()))?;
    match way.source {
        IpAddr::V4(_) => {
            socket.bind_device_by_index_v4(NonZeroU32::new(way.receive))?;
            socket.set_multicast_all_v4(false)?;
            if way.multicast {
                socket.join_multicast_v4_n(&MULTICAST_V4, &InterfaceIndexOrAddress::Index(way.receive))?;
            }
        }
        IpAddr::V6(_) => {
            socket.bind_device_by_index_v6(NonZeroU32::new(way.receive))?;
            socket.set_multicast_all_v6(false)?;
            socket.set_recv_hoplimit_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            if way.multicast {
                socket.join_multicast_v6(&MULTICAST_V6, way.receive)?;
            }
        }
    }
    Ok(socket)
}

fn sender(way: &Way) -> io::Result<Socket> {
    let socket = raw(way.source)?;
    // It only sends; without this the kernel would queue what others send to our address.
    socket.attach_filter(&[SockFilter::new(BPF_RET, 0, 0, 0)])?;
    match way.source {
        IpAddr::V4(_) => {
            socket.bind_device_by_index_v4(NonZeroU32::new(way.send))?;
            socket.set_multicast_loop_v4(false)?;
            socket.set_multicast_ttl_v4(TTL.into())?;
            socket.set_ttl_v4(TTL.into())?;
            socket.set_tos_v4(TOS.into())?;
        }
        IpAddr::V6(_) => {
            socket.bind_device_by_index_v6(NonZeroU32::new(way.send))?;
            socket.set_multicast_loop_v6(false)?;
            socket.set_multicast_hops_v6(TTL.into())?;
            socket.set_unicast_hops_v6(TTL.into())?;
            socket.set_multicast_if_v6(way.send)?;
            socket.set_tclass_v6(TOS.into())?;
        }
    }
    // Advertisements go before everything else that leaves by this interface (SO_PRIORITY, TC_PRIO_CONTROL).
    setsockopt(&socket, sockopt::Priority, &CONTROL)?;
    let source: SockAddr = match way.source {
        IpAddr::V4(_) => SocketAddr::new(way.source, 0).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, 0, 0, way.send).into(),
    };
    socket.bind(&source)?;
    Ok(socket)
}

fn raw(of: IpAddr) -> io::Result<Socket> {
    let domain = if of.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Only messages with this identifier reach the socket. Raw IPv4 sockets see the IP header, whose length the
/// `msh` load takes; raw IPv6 sockets see the message alone (kernel 6.1, `rawv6_rcv_skb`).
fn only(vrid: Vrid, ipv4: bool) -> Vec<SockFilter> {
    let vrid = u32::from(vrid.get());
    let load = match ipv4 {
        true => vec![SockFilter::new(BPF_LDX_MSH, 0, 0, 0), SockFilter::new(BPF_LDB_IND, 0, 0, 1)],
        false => vec![SockFilter::new(BPF_LDB_ABS, 0, 0, 1)],
    };
    let decide = [
        SockFilter::new(BPF_JEQ, 0, 1, vrid),
        SockFilter::new(BPF_RET, 0, 0, u32::MAX),
        SockFilter::new(BPF_RET, 0, 0, 0),
    ];
    load.into_iter().chain(decide).collect()
}

/// Larger than any advertisement: one that is longer is read up to here and refused for its length.
const PACKET_MAX: usize = 65_536;
const CONTROL: libc::c_int = 7;
// linux/bpf_common.h.
const BPF_LDX_MSH: u16 = 0xb1;
const BPF_LDB_IND: u16 = 0x50;
const BPF_LDB_ABS: u16 = 0x30;
const BPF_JEQ: u16 = 0x15;
const BPF_RET: u16 = 0x06;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_lets_one_identifier_pass() {
        let vrid = Vrid::new(51).unwrap();
        // Interpreted by hand: what the kernel will do with these five or four instructions.
        assert_eq!((only(vrid, true).len(), only(vrid, false).len()), (5, 4));
    }
}
