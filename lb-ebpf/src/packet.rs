//! The only pointer arithmetic on frames. A [`Frame`] is what the driver gave us; a [`Packet`] is an IP packet
//! in it whose headers were found to lie inside. Multi-byte fields are read and written as they lie in
//! memory.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    checksum, crc32c,
    header::protocol,
    sctp,
    state::{RST, SYN},
};

/// Two words of an address in memory order; IPv4 in the low half of the first.
pub type Words = [u64; 2];

#[inline(always)]
pub fn load8(p: *const u8, offset: usize) -> u8 {
    // SAFETY: callers hold a pointer whose range was checked against the frame's end; the verifier proves it.
    unsafe { *p.add(offset) }
}

#[inline(always)]
pub fn load16(p: *const u8, offset: usize) -> u16 {
    // SAFETY: as for `load8`; BPF loads need no alignment where packets are concerned.
    unsafe { *p.add(offset).cast::<u16>() }
}

#[inline(always)]
pub fn load32(p: *const u8, offset: usize) -> u32 {
    // SAFETY: as for `load16`.
    unsafe { *p.add(offset).cast::<u32>() }
}

#[inline(always)]
pub fn load64(p: *const u8, offset: usize) -> u64 {
    // SAFETY: as for `load16`.
    unsafe { *p.add(offset).cast::<u64>() }
}

#[inline(always)]
pub fn store8(p: *mut u8, offset: usize, value: u8) {
    // SAFETY: as for `load8`.
    unsafe { *p.add(offset) = value }
}

#[inline(always)]
pub fn store16(p: *mut u8, offset: usize, value: u16) {
    // SAFETY: as for `load16`.
    unsafe { *p.add(offset).cast::<u16>() = value }
}

#[inline(always)]
pub fn store32(p: *mut u8, offset: usize, value: u32) {
    // SAFETY: as for `load16`.
    unsafe { *p.add(offset).cast::<u32>() = value }
}

#[inline(always)]
pub fn store64(p: *mut u8, offset: usize, value: u64) {
    // SAFETY: as for `load16`.
    unsafe { *p.add(offset).cast::<u64>() = value }
}

/// The same number, unknown to the compiler, which then neither moves nor drops a check that the verifier
/// must see. The move is an instruction, since two line records at one offset are refused by kernels.
#[inline(always)]
pub fn opaque(mut number: u64) -> u64 {
    // SAFETY: a register is moved to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

/// The frame: where it begins and ends now. Stale after the head or tail moved.
#[derive(Clone, Copy)]
pub struct Frame {
    pub ctx: *mut xdp_md,
    data: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        // SAFETY: the context is the kernel's; these two words are rewritten to pointers by the verifier.
        unsafe { Self { ctx, data: (*ctx).data as usize, end: (*ctx).data_end as usize } }
    }

    /// Bytes in the frame.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        (self.end - self.data) as u32
    }

    /// A pointer to `len` bytes at a constant `offset`.
    #[inline(always)]
    pub fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if self.data + offset + len > self.end { None } else { Some((self.data + offset) as *mut u8) }
    }

    /// A pointer to `len` bytes at an `offset` known only at run time. The barrier keeps the compiler from
    /// testing one pointer and using another, which the verifier would not follow.
    #[inline(always)]
    pub fn at_dynamic(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let p = opaque((self.data + (offset & 0xfff)) as u64) as usize;
        if p + len > self.end { None } else { Some(p as *mut u8) }
    }

    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: as in `new`.
        unsafe { (*self.ctx).ingress_ifindex }
    }
}

/// The transport protocol of a packet. TCP when neither is set.
#[derive(Clone, Copy)]
pub struct Protocol {
    pub udp: bool,
    /// A constant in each program: SCTP has programs of its own, so that the others hold none of it.
    pub sctp: bool,
}

impl Protocol {
    /// IP's number.
    #[inline(always)]
    pub fn number(&self) -> u8 {
        if self.sctp {
            protocol::SCTP
        } else if self.udp {
            protocol::UDP
        } else {
            protocol::TCP
        }
    }
}

/// An IP packet with a transport header (SCTP: and its first chunk's), all inside the frame.
#[derive(Clone, Copy)]
pub struct Packet<const V6: bool> {
    pub frame: Frame,
    /// Offset of the IP header: 14, 18 or 22.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    pub ip: *mut u8,
    pub transport: *mut u8,
    pub udp: bool,
    /// As in [`Protocol`].
    pub sctp: bool,
    /// Frame length as it came, for counters.
    pub bytes: u32,
}

impl<const V6: bool> Packet<V6> {
    #[inline(always)]
    pub fn source(&self) -> Words {
        source::<V6>(self.ip)
    }

    #[inline(always)]
    pub fn destination(&self) -> Words {
        destination::<V6>(self.ip)
    }

    /// Length of the IP packet by its own word, host order.
    #[inline(always)]
    pub fn ip_len(&self) -> u32 {
        ip_len::<V6>(self.ip)
    }

    /// Source and destination port as one word.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        load32(self.transport, 0)
    }

    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        Protocol { udp: self.udp, sctp: self.sctp }
    }

    /// Whether it begins a connection: a TCP packet with SYN, an SCTP packet with INIT.
    #[inline(always)]
    pub fn begins(&self) -> bool {
        if self.sctp {
            load8(self.transport, sctp::HEADER) == sctp::chunk::INIT
        } else {
            !self.udp && self.tcp_flags() & SYN != 0
        }
    }

    /// Whether it ends a connection at once: TCP's RST, SCTP's ABORT. Never answered.
    #[inline(always)]
    pub fn resets(&self) -> bool {
        if self.sctp {
            self.sctp_event() == sctp::event::ABORT
        } else {
            !self.udp && self.tcp_flags() & RST != 0
        }
    }

    /// What an SCTP packet means to its flow ([`sctp::event`]), read as IPVS does: the first chunk, and behind a
    /// COOKIE ECHO or COOKIE ACK an ABORT.
    #[inline(always)]
    pub fn sctp_event(&self) -> u8 {
        let event = sctp::event_of(load8(self.transport, sctp::HEADER));
        if event == sctp::event::COOKIE_ECHO || event == sctp::event::COOKIE_ACK {
            let len = (u16::from_be(load16(self.transport, sctp::HEADER + 2)) as u32 + 3) & !3;
            let second = (self.l4 - self.l3) as u32 + sctp::HEADER as u32 + len;
            // Offsets of a frame are looked at up to 4095.
            if len >= sctp::CHUNK as u32 && len < 2000 && second + sctp::CHUNK as u32 <= self.ip_len() {
                if let Some(chunk) = self.frame.at_dynamic(self.l3 + second as usize, 1) {
                    if load8(chunk, 0) == sctp::chunk::ABORT {
                        return sctp::event::ABORT;
                    }
                }
            }
        }
        event
    }

    /// Replaces a word of an SCTP packet, `at` bytes into it, and corrects the checksum by the difference.
    #[inline(always)]
    fn set_sctp_word(&self, at: usize, new: u32) {
        let old = load32(self.transport, at);
        if old == new {
            return;
        }
        store32(self.transport, at, new);
        let len = self.ip_len().wrapping_sub((self.l4 - self.l3) as u32 + at as u32);
        let effect = lb_crc32c_effect(old ^ new, len) as u32;
        store32(self.transport, 8, load32(self.transport, 8) ^ effect);
    }

    /// TCP flags. Only for TCP.
    #[inline(always)]
    pub fn tcp_flags(&self) -> u8 {
        load8(self.transport, 13)
    }

    /// Length of the TCP header with its options. Only for TCP, as what follows.
    #[inline(always)]
    pub fn tcp_header(&self) -> usize {
        (load8(self.transport, 12) >> 4) as usize * 4
    }

    /// Sequence number, host order.
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        u32::from_be(load32(self.transport, 4))
    }

    /// Acknowledgement number, host order.
    #[inline(always)]
    pub fn acknowledged(&self) -> u32 {
        u32::from_be(load32(self.transport, 8))
    }

    /// Whether routers may fragment it: IPv4 without DF.
    #[inline(always)]
    pub fn may_fragment(&self) -> bool {
        !V6 && load8(self.ip, 6) & 0x40 == 0
    }

    /// TTL or hop limit.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        load8(self.ip, if V6 { 7 } else { 8 })
    }

    /// Lowers TTL or hop limit by one, and the header checksum with it.
    #[inline(always)]
    pub fn decrement_ttl(&self) {
        if V6 {
            store8(self.ip, 7, load8(self.ip, 7).wrapping_sub(1));
        } else {
            store8(self.ip, 8, load8(self.ip, 8).wrapping_sub(1));
            store16(self.ip, 10, checksum::after_ttl_decrement(load16(self.ip, 10)));
        }
    }

    /// As [`Packet::decrement_ttl`], for a header whose addresses changed by `delta` too.
    #[inline(always)]
    pub fn decrement_ttl_with(&self, delta: u64) {
        if V6 {
            self.decrement_ttl();
        } else {
            store8(self.ip, 8, load8(self.ip, 8).wrapping_sub(1));
            let delta = checksum::sub(delta, u16::from_be(0x0100) as u32);
            // A piece of 32 bits was complemented: its upper half is all ones, which is a zero.
            store16(self.ip, 10, checksum::update(load16(self.ip, 10), delta));
        }
    }

    /// Makes a TCP segment a RST with the sequence that it has, payload and all (RFC 9293, section 3.10.7.4; RFC 1122,
    /// section 4.2.2.12).
    #[inline(always)]
    pub fn make_reset(&self) {
        // Offset, flags, window: that of a RST is 0.
        let old = load32(self.transport, 12);
        let new = u32::from_ne_bytes([old as u8 & 0xf0, lb_common::state::RST, 0, 0]);
        store32(self.transport, 12, new);
        let delta = checksum::sub(checksum::add(0, new), old);
        store16(self.transport, 16, checksum::update(load16(self.transport, 16), delta));
    }

    /// Makes an SCTP packet an ABORT: its first chunk becomes one, and what stands behind an ABORT is not read
    /// (RFC 9260, section 3.3.7). The verification tag is the client's and right.
    #[inline(always)]
    pub fn make_abort(&self) {
        let chunk = u32::from_ne_bytes([sctp::chunk::ABORT, 0, 0, sctp::CHUNK as u8]);
        self.set_sctp_word(sctp::HEADER, chunk);
    }

    #[inline(always)]
    pub fn set_source(&self, address: Words) {
        if V6 {
            store64(self.ip, 8, address[0]);
            store64(self.ip, 16, address[1]);
        } else {
            store32(self.ip, 12, address[0] as u32);
        }
    }

    #[inline(always)]
    pub fn set_destination(&self, address: Words) {
        if V6 {
            store64(self.ip, 24, address[0]);
            store64(self.ip, 32, address[1]);
        } else {
            store32(self.ip, 16, address[0] as u32);
        }
    }

    /// Writes the ports and updates the transport checksum by `delta`, to which the ports are added here.
    #[inline(always)]
    pub fn set_ports(&self, old: u32, new: u32, delta: u64) {
        if self.sctp {
            // Its checksum covers no addresses.
            return self.set_sctp_word(0, new);
        }
        store32(self.transport, 0, new);
        let delta = checksum::sub(checksum::add(delta, new), old);
        if self.udp {
            store16(self.transport, 6, checksum::update_udp(load16(self.transport, 6), delta));
        } else {
            store16(self.transport, 16, checksum::update(load16(self.transport, 16), delta));
        }
    }
}

/// [`crc32c::effect`], as a global function: verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_crc32c_effect(word: u32, len: u32) -> u64 {
    crc32c::effect(word, len) as u64
}

#[inline(always)]
pub fn source<const V6: bool>(ip: *const u8) -> Words {
    if V6 { [load64(ip, 8), load64(ip, 16)] } else { [load32(ip, 12) as u64, 0] }
}

#[inline(always)]
pub fn destination<const V6: bool>(ip: *const u8) -> Words {
    if V6 { [load64(ip, 24), load64(ip, 32)] } else { [load32(ip, 16) as u64, 0] }
}

#[inline(always)]
pub fn ip_len<const V6: bool>(ip: *const u8) -> u32 {
    if V6 { u16::from_be(load16(ip, 4)) as u32 + 40 } else { u16::from_be(load16(ip, 2)) as u32 }
}

/// The sum of an address, for checksums.
#[inline(always)]
pub fn sum<const V6: bool>(words: Words, start: u64) -> u64 {
    if V6 {
        start + (words[0] & 0xffff_ffff) + (words[0] >> 32) + (words[1] & 0xffff_ffff) + (words[1] >> 32)
    } else {
        start + words[0]
    }
}

/// Takes an address away from a sum.
#[inline(always)]
pub fn unsum<const V6: bool>(words: Words, start: u64) -> u64 {
    if V6 { sum::<true>([!words[0], !words[1]], start) } else { start + (!words[0] & 0xffff_ffff) }
}

/// The words of an address in a record.
#[inline(always)]
pub fn words<const V6: bool>(address: *const lb_common::address::Address) -> Words {
    if V6 {
        [load64(address.cast(), 0), load64(address.cast(), 8)]
    } else {
        [load32(address.cast(), 0) as u64, 0]
    }
}
