//! What a program hands to the tail it calls, the read-only configuration of a program version, and the
//! limiter of answers.

use crate::address::Address;

/// Written before a tail call or a call of a function of its own, read there: on the same CPU, in the same
/// packet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Scratch {
    /// Offset of the IP header in the frame: 14, 18 or 22.
    pub l3: u16,
    /// Offset of the TCP or UDP header; with [`FIRST_FRAGMENT`] of a packet of which more is to come. For an answer to
    /// somebody else than the frame's sender: the bytes from the IP header on that may be quoted.
    pub l4: u16,
    /// 4 or 6.
    pub family: u8,
    /// IP protocol of the transport header.
    pub protocol: u8,
    /// ICMP answer wanted: type in the low byte, code in the high (as the family has it).
    pub icmp: u16,
    /// MTU to report.
    pub mtu: u32,
    /// Reason to count when the limiter forbids an answer.
    pub limited: u32,
    /// Source of the answer: the VIP, two words in memory order.
    pub source: [u64; 2],
    /// Sender of the packet that begins a flow, for the flow's cold tuple or lease.
    pub client: Address,
    /// Ports of that packet, memory order.
    pub ports: u32,
    /// Next hop towards the client, as in [`crate::lease::Lease::hop`].
    pub hop: u32,
    /// The frame's sender, as in [`crate::lease::Lease`].
    pub client_destination: u64,
    pub client_source: u64,
    pub client_ifindex: u32,
    /// For the host's tail: the reason with which the frame goes to the kernel unless the VRRP role forbids it.
    pub reason: u32,
    /// Reason to count when an answer is given.
    pub answer: u32,
    /// The service of a new flow, whose server is being chosen.
    pub service: u32,
    /// The event that the flow begins with.
    pub event: u32,
    /// The server chosen: its destination plus one; 0 is none.
    pub chosen: u32,
    /// The reason when there is none.
    pub refused: u32,
    /// A destination plus one that cannot take the flow.
    pub avoid: u32,
    /// How often a server was chosen for this packet.
    pub choices: u32,
    /// The lease that the flow had before it began anew: its index plus one; 0 is none.
    pub before: u32,
    /// For the tail of ICMP: the destination's cell in the address filter.
    pub cell: u32,
    /// For an answer to somebody else than the frame's sender (`client_destination` and what follows it say how he is
    /// reached): the frame's length as it came. Else 0.
    pub bytes: u32,
    /// For the tail of tunnels: the destination.
    pub target: u32,
    /// For the tail of tunnels: the event to count when the packet went; 0 is none.
    pub after: u32,
    /// SIP: hash of the Call-ID; 0 is none.
    pub call: u64,
    /// Whether the acknowledgement of a server's SYN-ACK carries the client's address, `client` and `ports`.
    pub toa: u32,
    pub reserved: u32,
    /// Of the leases looked at, the one that is least worth keeping: cost (upper half) and index.
    pub victim: u64,
    /// Of the walk over a list of servers.
    pub walk: Walk,
    /// Of SYN cookies.
    pub cookie: Cookie,
    /// Of packets whose sequence numbers are shifted.
    pub room: Room,
}

/// Where headers and options are worked on that are not rewritten in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Room {
    /// TCP's options as they came, zeroes behind them.
    pub came: [u8; 40],
    /// The same, as they leave. Longer, so that an offset of six bits lies in it with what is read there.
    pub leaves: [u8; 72],
    /// Offset of the option, or of the edge, that comes next.
    pub at: u32,
    /// Edges of a selective acknowledgement that are left.
    pub edges: u32,
    /// How many bytes of options there are.
    pub end: u32,
    /// How edges are shifted back: the base beside [`Room::shift`].
    pub base: u32,
    /// The [`crate::extension::Shift`]'s word.
    pub shift: u64,
    /// Added to the timestamp.
    pub clock: u32,
    /// Added to the timestamp's echo.
    pub echo: u32,
    /// Taken off the MSS.
    pub mss_less: u32,
    /// For the tail of TCP option addresses: what becomes of the frame.
    pub action: u32,
    /// What is put into the packet.
    pub put: [u64; 8],
    /// The headers of a frame while it grows: 256 bytes, and as many more as a length may have that the verifier knows by
    /// its mask.
    pub headers: [u8; 320],
}

impl Default for Room {
    fn default() -> Self {
        // SAFETY: integers and arrays of such.
        unsafe { core::mem::zeroed() }
    }
}

/// In [`Scratch::l4`]: the packet is the first fragment of one, which may say that it is longer than what is here.
pub const FIRST_FRAGMENT: u16 = 1 << 15;

/// What a walk over a list of servers found so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Walk {
    /// The rule: what is asked of the servers.
    pub rule: u32,
    /// Destination plus one that is passed over.
    pub avoid: u32,
    /// Which of equal servers is preferred: the first from here on.
    pub start: u32,
    /// The best server: its destination plus one; 0 is none.
    pub chosen: u32,
    /// Its load as a fraction: numerator.
    pub load: u64,
    /// And denominator.
    pub weight: u64,
    /// Servers of a higher number than this are preferred to it when they are as good. -1 is all, `i64::MAX` is none.
    pub ties_after: i64,
    /// Its entry in the packed lists.
    pub entry: u32,
    /// How many servers came into question.
    pub seen: u32,
    /// twos: what is left of the two draws.
    pub draws: [u64; 2],
    /// twos: the servers drawn, as destinations plus one.
    pub drawn: [u32; 2],
    /// twos: their overheads.
    pub drawn_load: [u64; 2],
    /// twos: their weights.
    pub drawn_weight: [u64; 2],
}

/// A SYN that is answered with a cookie, or a packet that brings one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Cookie {
    /// [`cookie`].
    pub task: u32,
    /// The frame's length as it came.
    pub bytes: u32,
    /// The cookie: our sequence number towards the client, host order, as are all here.
    pub number: u32,
    /// The client's initial sequence number.
    pub sequence: u32,
    /// What the client said of its segments; 0 is nothing.
    pub mss: u32,
    /// The client's window scale; [`crate::cookie::NO_SCALE`] is none.
    pub scale: u32,
    /// Whether the client permits selective acknowledgements.
    pub sack: u32,
    /// Whether it uses timestamps: its own, and the echo of ours.
    pub stamps: u32,
    pub stamp: u32,
    pub echo: u32,
    /// The MSS that the client is told.
    pub announced: u32,
    /// Offset of the option that comes next, and where they end.
    pub at: u32,
    pub end: u32,
    /// Both addresses of the packet, source first.
    pub addresses: [u64; 4],
    /// TCP's options. Longer than they can be, so that an offset of six bits lies in it with what is read there.
    pub options: [u8; 80],
}

impl Default for Cookie {
    fn default() -> Self {
        Self {
            task: 0,
            bytes: 0,
            number: 0,
            sequence: 0,
            mss: 0,
            scale: 0,
            sack: 0,
            stamps: 0,
            stamp: 0,
            echo: 0,
            announced: 0,
            at: 0,
            end: 0,
            addresses: [0; 4],
            options: [0; 80],
        }
    }
}

/// Values of [`Cookie::task`].
pub mod cookie {
    /// Nothing: the packet is as it came.
    pub const NONE: u32 = 0;
    /// A SYN is to be answered.
    pub const ANSWER: u32 = 1;
    /// A client's first packet has brought a cookie, and is to become its SYN.
    pub const BEGIN: u32 = 2;
    /// The packet is a SYN that was made from a cookie.
    pub const MADE: u32 = 3;
    /// A client's packet before its server has answered: it is to become the SYN once more.
    pub const AGAIN: u32 = 4;
    /// A server's SYN-ACK is to be acknowledged.
    pub const ACKNOWLEDGE: u32 = 5;
}

/// Read-only configuration of a program version.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Config {
    /// `64 - log2(buckets)`: a bucket is the top bits of a product.
    pub bucket_shift: u32,
    /// The same for IPv6 flows, which may only lie in slots that have a cold tuple.
    pub bucket_shift_v6: u32,
    /// `64 - log2(cells)` of the address filter.
    pub cell_shift: u32,
    /// Jiffies are shifted right by this to give a tick.
    pub tick_shift: u32,
    /// Answers (ICMP errors, resets) per second and CPU.
    pub answers_per_second: u32,
    /// Jiffies in a second.
    pub hz: u32,
    /// 1 lets slow-path messages go to the log.
    pub log: u32,
    /// What becomes of rare packets: bits of [`policy`].
    pub policies: u32,
    /// Sources of tunnels whose outer address varies by flow, IPv4, memory order: the prefix, and the bits that vary.
    pub sources_v4: u32,
    pub varies_v4: u32,
    /// The same for IPv6.
    pub sources_v6: [u64; 2],
    pub varies_v6: [u64; 2],
    /// `64 - log2(sets)` of the extension records.
    pub extension_shift: u32,
    pub reserved: u32,
}

/// Bits of [`Config::policies`]; none set is the default.
pub mod policy {
    /// An echo request to a VIP is answered.
    pub const ECHO_ANSWER: u32 = 1;
    /// An echo request to a VIP is dropped.
    pub const ECHO_DROP: u32 = 1 << 1;
    /// A packet without DF that does not fit its tunnel goes to the kernel in it, which fragments.
    pub const TUNNEL_FRAGMENT: u32 = 1 << 2;
    /// A later fragment before its first one is the kernel's.
    pub const UNKNOWN_PASS: u32 = 1 << 3;
    /// A first fragment without a whole transport header is the kernel's.
    pub const TINY_PASS: u32 = 1 << 4;
    /// A later fragment that begins inside the first goes where that went.
    pub const OVERLAP_FORWARD: u32 = 1 << 5;
}

/// A token bucket of one CPU: answers that may still be given in this second.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Limiter {
    /// Jiffies at which `left` was filled.
    pub since: u64,
    pub left: u64,
}

/// The shift that makes ticks of about half a second from a measured HZ (jiffies per second).
pub const fn tick_shift(hz: u32) -> u32 {
    let mut shift = 0;
    while (1u32 << (shift + 1)) <= hz {
        shift += 1;
    }
    // 2^shift <= hz < 2^(shift+1): of the two powers around hz/2 take the one not below it by much.
    if shift == 0 {
        0
    } else if (1u32 << shift) * 4 < hz * 3 {
        shift
    } else {
        shift - 1
    }
}

/// Ticks of a timeout, rounded up.
pub const fn ticks(milliseconds: u64, hz: u32) -> u64 {
    let per_second = hz as u64;
    (milliseconds * per_second).div_ceil(1000 << tick_shift(hz))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_program() {
        assert_eq!(
            core::mem::size_of::<Scratch>(),
            152 + core::mem::size_of::<Walk>()
                + core::mem::size_of::<Cookie>()
                + core::mem::size_of::<Room>()
        );
        assert_eq!(core::mem::size_of::<Cookie>(), 168);
        assert_eq!(core::mem::size_of::<Room>(), 112 + 40 + 64 + 320);
        assert_eq!(core::mem::size_of::<Walk>(), 104);
        assert_eq!(core::mem::size_of::<Config>(), 80);
    }

    #[test]
    fn a_tick_is_about_half_a_second_at_every_hz() {
        for hz in [100u32, 250, 300, 1000, 1024] {
            let ms = (1000u64 << tick_shift(hz)) / hz as u64;
            assert!((320..=860).contains(&ms), "HZ {hz}: {ms} ms");
        }
    }

    #[test]
    fn two_hours_fit_the_deadline_at_every_hz() {
        for hz in [100u32, 250, 300, 1000] {
            assert!(ticks(7_200_000, hz) <= crate::connection::MAX_TIMEOUT_TICKS as u64, "HZ {hz}");
            assert!(ticks(1, hz) == 1);
        }
    }
}
