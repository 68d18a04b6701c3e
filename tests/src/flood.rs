//! Packets from sources that do not exist, out of a namespace, as many a second as is asked for, until somebody says
//! stop. IPv4.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lb_common::checksum;
use lb_common::header::{ETHERNET, IPV4, protocol};
use lb_common::state::{ACK, FIN, SYN};

use crate::Namespace;

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// TCP with SYN.
    Syn,
    /// TCP with ACK, of no connection.
    Ack,
    /// UDP.
    Datagram,
    /// In turn: land, flags that nobody sends, a source that no host has, a length that lies, a fragment that is too
    /// small for its header.
    Malformed,
}

/// Where to.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    /// The station on the link of eth0.
    pub mac: [u8; 6],
    /// The destination inside.
    pub to: SocketAddrV4,
}

/// Counts what is sent, and ends it.
#[derive(Default)]
pub struct Flood {
    sent: AtomicU64,
    stop: AtomicBool,
}

/// Frames of a system call.
const BURST: usize = 64;
/// The least of Ethernet, without the checksum that the card makes.
const FRAME: usize = 60;
/// The first address of those that do not exist; 24 bits vary.
const NOWHERE: u32 = 0x2e00_0000;

impl Flood {
    /// How many packets went out.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// [`Flood::send`] returns soon.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Sends in the calling thread's time, by eth0 of the namespace: `rate` packets a second at most, without one as fast as
    /// it goes. A source is never seen twice in the first sixteen million. `begin` runs first, in the thread that sends.
    pub fn send(
        &self,
        namespace: &Namespace,
        kind: Kind,
        aim: Aim,
        rate: Option<u32>,
        begin: impl FnOnce() + Send,
    ) {
        let from = namespace.output("cat", &["/sys/class/net/eth0/address"]);
        let from: Vec<u8> =
            from.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC address")).collect();
        let mut template = [0; FRAME];
        template[..6].copy_from_slice(&aim.mac);
        template[6..12].copy_from_slice(&from);
        namespace.run(|| {
            begin();
            let socket = packet_socket();
            let began = Instant::now();
            let mut n = 0u32;
            while !self.stop.load(Relaxed) {
                let mut frames = [template; BURST];
                for frame in &mut frames {
                    n = n.wrapping_add(1);
                    write(frame, kind, n, aim.to);
                }
                self.sent.fetch_add(burst(&socket, &mut frames), Relaxed);
                let Some(rate) = rate else { continue };
                let due = Duration::from_secs_f64(f64::from(n) / f64::from(rate));
                // What the machine did not let it send it does not make up for.
                match due.checked_sub(began.elapsed()) {
                    Some(early) => std::thread::sleep(early),
                    None => n = (began.elapsed().as_secs_f64() * f64::from(rate)) as u32,
                }
            }
        });
    }
}

/// A socket that sends whole frames by eth0 and receives none.
fn packet_socket() -> OwnedFd {
    let check = |result: i32, what: &str| {
        assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
        result
    };
    // SAFETY: system calls on a new descriptor that nobody else owns, with structs that live here.
    unsafe {
        let socket =
            check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0), "a packet socket");
        let socket = OwnedFd::from_raw_fd(socket);
        let on = 1i32;
        let (level, option) = (libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS);
        let len = size_of::<i32>() as u32;
        check(
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), len),
            "bypass queues",
        );
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = nix::net::if_::if_nametoindex("eth0").expect("eth0") as i32;
        let len = size_of::<libc::sockaddr_ll>() as u32;
        check(
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len),
            "bind a packet socket to eth0",
        );
        socket
    }
}

/// Sends frames; how many went. A full queue loses some of many.
fn burst(socket: &OwnedFd, frames: &mut [[u8; FRAME]; BURST]) -> u64 {
    let mut pieces =
        frames.each_mut().map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: FRAME });
    let mut messages = pieces.each_mut().map(|piece| {
        // SAFETY: mmsghdr is numbers and pointers, for which zeros are a value.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (piece, 1);
        message
    });
    // SAFETY: every message points to a piece and a frame that outlive the call.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BURST as u32, 0) };
    u64::try_from(sent).unwrap_or(0)
}

/// What a packet is made of.
struct Made {
    source: Ipv4Addr,
    protocol: u8,
    flags: u8,
    /// Behind the IP header.
    payload: usize,
    /// What the IP header says in addition.
    lie: u16,
    /// The IP header's flags and offset of fragments.
    fragment: u16,
}

/// The `n`th packet of a kind, whole but for the Ethernet addresses.
fn write(frame: &mut [u8; FRAME], kind: Kind, n: u32, to: SocketAddrV4) {
    let mixed = n.wrapping_mul(0x9e37_79b1);
    let plain = Made {
        source: Ipv4Addr::from(NOWHERE | mixed & 0x00ff_ffff),
        protocol: protocol::TCP,
        flags: SYN,
        payload: 20,
        lie: 0,
        fragment: 0x4000,
    };
    let mut port = 1024 | (mixed >> 17) as u16;
    let made = match kind {
        Kind::Syn => plain,
        Kind::Ack => Made { flags: ACK, ..plain },
        Kind::Datagram => Made { protocol: protocol::UDP, payload: 26, ..plain },
        Kind::Malformed => match n % 5 {
            0 => {
                port = to.port();
                Made { source: *to.ip(), ..plain }
            }
            1 => Made { flags: SYN | FIN, ..plain },
            2 => Made { source: Ipv4Addr::from(0x7f00_0000 | mixed & 0x00ff_ffff), ..plain },
            3 => Made { lie: 1000, ..plain },
            _ => Made { payload: 8, fragment: 0x2000, ..plain },
        },
    };
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[ETHERNET..];
    ip.fill(0);
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((IPV4 + made.payload) as u16 + made.lie).to_be_bytes());
    ip[4..6].copy_from_slice(&(n as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&made.fragment.to_be_bytes());
    (ip[8], ip[9]) = (64, made.protocol);
    ip[12..16].copy_from_slice(&made.source.octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    let sum = checksum::of_bytes(&ip[..IPV4]);
    ip[10..12].copy_from_slice(&sum.to_ne_bytes());
    let addresses = checksum::add(0, u32::from_ne_bytes(made.source.octets()));
    let addresses = checksum::add(addresses, u32::from_ne_bytes(to.ip().octets()));
    let segment = &mut ip[IPV4..];
    segment[0..2].copy_from_slice(&port.to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    let at = if made.protocol == protocol::UDP {
        segment[4..6].copy_from_slice(&(made.payload as u16).to_be_bytes());
        6
    } else {
        segment[4..8].copy_from_slice(&mixed.to_be_bytes());
        (segment[12], segment[13]) = (0x50, made.flags);
        segment[14..16].copy_from_slice(&64_240u16.to_be_bytes());
        16
    };
    // Pseudo header (RFC 9293, section 3.1; RFC 768).
    let mut total = checksum::add(addresses, (made.payload as u16).to_be().into());
    total = checksum::add(total, u16::from(made.protocol).to_be().into());
    total = checksum::add(total, (!checksum::of_bytes(&segment[..made.payload])).into());
    segment[at..at + 2].copy_from_slice(&(!checksum::fold(total)).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    /// The `n`th frame of a kind.
    fn made(kind: Kind, n: u32) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        write(&mut frame, kind, n, SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 100), 80));
        frame
    }

    #[test]
    fn what_is_not_malformed_is_whole_and_comes_from_many() {
        let mut sources = std::collections::HashSet::new();
        for (kind, n) in
            [Kind::Syn, Kind::Ack, Kind::Datagram].into_iter().flat_map(|k| (1..200).map(move |n| (k, n)))
        {
            let frame = made(kind, n);
            let packet = SlicedPacket::from_ethernet(&frame).expect("a packet");
            let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("IPv4") };
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            sources.insert(header.source);
            match packet.transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!((tcp.syn(), tcp.ack()), (kind == Kind::Syn, kind == Kind::Ack));
                    assert_eq!(tcp.calc_checksum_ipv4(header.source, header.destination), Ok(tcp.checksum()));
                }
                Some(TransportSlice::Udp(udp)) => {
                    assert_eq!(kind, Kind::Datagram);
                    let whole = etherparse::UdpHeader::with_ipv4_checksum(
                        udp.source_port(),
                        udp.destination_port(),
                        &header,
                        udp.payload(),
                    );
                    assert_eq!(whole.map(|whole| whole.checksum).ok(), Some(udp.checksum()));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sources.len(), 199, "each of a kind has a source of its own, the same in each kind");
    }

    #[test]
    fn each_malformed_packet_is_so_in_its_own_way() {
        let ip = |n| made(Kind::Malformed, n)[ETHERNET..].to_vec();
        assert_eq!(ip(5)[12..16], ip(5)[16..20], "land");
        assert_eq!(ip(6)[IPV4 + 13], SYN | FIN);
        assert_eq!(ip(7)[12], 127);
        assert!(usize::from(u16::from_be_bytes([ip(8)[2], ip(8)[3]])) > FRAME);
        assert_eq!((ip(9)[6], ip(9)[3]), (0x20, 28), "a first fragment with eight bytes of TCP");
    }
}
