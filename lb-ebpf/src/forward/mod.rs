//! Forwarding an established packet, one file per method. Each checks size and TTL, lets the packet step its
//! flow, rewrites, and sends.

pub mod dr;
pub mod fullnat;
pub mod nat;
pub mod tun;

use crate::{
    answer,
    connection::{Hit, Place},
    flow::Step,
    limits, load,
    maps::{DESTINATIONS, NEXT_HOPS, VRRP, config},
    nexthop::Hop,
    packet::{Packet, Words, words},
};
use lb_common::{
    destination::{Destination, Forwarding, flags},
    maps::{VRRP_FOREVER, VRRP_MASTER},
    scratch::policy,
    state::Direction,
    verdict::Reason,
};

/// A destination's record and its word, read once.
#[derive(Clone, Copy)]
pub struct Target {
    pub index: u32,
    pub record: *const Destination,
    pub word: u64,
}

impl Target {
    #[inline(always)]
    pub fn of(index: u32) -> Option<Self> {
        let record = DESTINATIONS.get_ptr(index)?;
        // SAFETY: a map value.
        let word = crate::atomic::load(unsafe { &raw const (*record).word });
        Some(Self { index, record, word })
    }

    /// With what [`fits`] found of the packet at hand.
    #[inline(always)]
    pub fn with(self, more: u64) -> Self {
        Self { word: self.word | more, ..self }
    }

    #[inline(always)]
    pub fn flags(&self) -> u32 {
        Destination::flags_of(self.word)
    }

    #[inline(always)]
    pub fn forwarding(&self) -> Forwarding {
        Destination::forwarding_of(self.flags())
    }

    /// Whether anything must be looked at before a packet may go on to an established flow's server.
    #[inline(always)]
    pub fn wants_attention(&self) -> bool {
        self.flags() & flags::ATTENTION != 0
    }

    /// Whether the server may not be given packets any faster.
    #[inline(always)]
    pub fn is_over_rate(&self) -> bool {
        self.flags() & flags::RATED != 0 && limits::lb_packet_fits(self.index) == 0
    }

    /// Whether the real server is this director.
    #[inline(always)]
    pub fn is_local(&self) -> bool {
        self.flags() & flags::LOCAL != 0
    }

    /// Whether a packet with these ports, the server's first, is of a control channel that is read.
    #[inline(always)]
    pub fn is_control(&self, ports: u32) -> bool {
        // SAFETY: a map value.
        self.flags() & flags::FTP != 0
            && unsafe { core::ptr::read_volatile(&raw const (*self.record).control_port) } == ports as u16
    }

    /// Whether flows are counted at the server.
    #[inline(always)]
    pub fn is_counted(&self) -> bool {
        self.flags() & flags::COUNTED != 0
    }

    #[inline(always)]
    pub fn mtu(&self) -> u32 {
        Destination::mtu_of(self.word) as u32
    }

    /// The real server's port as in a packet, or 0.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        Destination::port_of(self.word)
    }

    #[inline(always)]
    pub fn vip<const V6: bool>(&self) -> Words {
        // SAFETY: projection inside a map value.
        words::<V6>(unsafe { &raw const (*self.record).vip })
    }

    #[inline(always)]
    pub fn address<const V6: bool>(&self) -> Words {
        // SAFETY: projection inside a map value.
        words::<V6>(unsafe { &raw const (*self.record).address })
    }

    #[inline(always)]
    pub fn delta(&self) -> u32 {
        // SAFETY: a map value.
        unsafe { core::ptr::read_volatile(&raw const (*self.record).delta) }
    }

    #[inline(always)]
    pub fn timeout(&self) -> u16 {
        // SAFETY: a map value.
        unsafe { core::ptr::read_volatile(&raw const (*self.record).timeout) }
    }

    #[inline(always)]
    pub fn service(&self) -> u32 {
        // SAFETY: a map value.
        unsafe { core::ptr::read_volatile(&raw const (*self.record).service) }
    }

    #[inline(always)]
    pub fn vip_port(&self) -> u16 {
        // SAFETY: a map value.
        unsafe { core::ptr::read_volatile(&raw const (*self.record).vip_port) }
    }

    /// The next hop towards the real server.
    #[inline(always)]
    pub fn hop(&self) -> Result<(Hop, *const lb_common::destination::NextHop), Reason> {
        // SAFETY: a map value.
        let index = unsafe { core::ptr::read_volatile(&raw const (*self.record).next_hop) };
        let record = NEXT_HOPS.get_ptr(index).ok_or(Reason::Internal)?;
        Ok((Hop::of(record).ok_or(Reason::NoNextHop)?, record))
    }
}

/// Whether this director may serve a VIP of the VRRP instance: always without one.
#[inline(always)]
pub fn may_serve(instance: u32) -> Result<(), Reason> {
    if instance == 0 {
        return Ok(());
    }
    let Some(word) = VRRP.get_ptr(instance & 0xff) else { return Err(Reason::Internal) };
    let word = crate::atomic::load(word);
    if word & VRRP_MASTER == 0 {
        return Err(Reason::VrrpBackup);
    }
    if word != VRRP_FOREVER {
        // SAFETY: reads one word.
        let jiffies = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
        // Modulo 2^63: ended when now is past until.
        if ((jiffies.wrapping_sub(word) << 1) as i64) >= 0 {
            return Err(Reason::LeaseExpired);
        }
    }
    Ok(())
}

/// A packet of a known flow from a client, by the method of its destination.
#[inline(always)]
pub fn to_server<const V6: bool>(
    packet: &Packet<V6>,
    hit: Hit,
    place: &Place,
    target: Target,
    now: u16,
) -> Result<u32, Reason> {
    may_serve(Destination::vrrp_of(target.flags()))?;
    match target.forwarding() {
        Forwarding::Dr => {
            fits(packet, &target)?;
            touch(packet, hit, &target, now);
            dr::send(packet, &target)
        }
        Forwarding::Tun => {
            let target = target.with(fits(packet, &target)?);
            touch(packet, hit, &target, now);
            tun::send(packet, &target)
        }
        Forwarding::Nat => {
            fits(packet, &target)?;
            nat::touch(packet, hit, &target, now);
            nat::send(packet, &target)
        }
        Forwarding::FullNat => fullnat::to_server::<V6, false>(packet, hit, place, now),
    }
}

/// The state step of a flow whose replies do not pass.
#[inline(always)]
pub fn touch<const V6: bool>(packet: &Packet<V6>, hit: Hit, target: &Target, now: u16) {
    let step = Step::of(packet, Direction::InputOnly, now);
    if let Some(new) = step.next(hit.value, target.timeout(), target.service()) {
        if hit.replace(new) {
            load::stepped(hit.value, new);
        }
    }
}

/// Size and TTL: both end in an answer to the sender, or in a drop with its reason; or else, by policy, in what a
/// destination's word has more for this packet ([`Target::with`]; 0 is the rule).
#[inline(always)]
pub fn fits<const V6: bool>(packet: &Packet<V6>, target: &Target) -> Result<u64, Reason> {
    fits_mtu(packet, target.mtu(), target)
}

/// As [`fits`], with the MTU of the packet's own way.
#[inline(always)]
pub fn fits_mtu<const V6: bool>(packet: &Packet<V6>, mtu: u32, target: &Target) -> Result<u64, Reason> {
    let mut more = 0;
    if packet.ip_len() > mtu {
        if !packet.may_fragment() {
            return Err(answer::too_big(packet, mtu, target.vip::<V6>()));
        }
        more = by_kernel::<V6>(target)?;
    }
    if packet.ttl() <= 1 && !target.is_local() {
        return Err(answer::time_exceeded(packet, target.vip::<V6>()));
    }
    Ok(more)
}

/// What becomes of a packet that is too big and may be fragmented: nothing, or it goes to the kernel in its tunnel, which
/// fragments what is outside. Over IPv6 it would not: a router never does (RFC 8200, section 5).
#[inline(always)]
pub fn by_kernel<const V6: bool>(target: &Target) -> Result<u64, Reason> {
    let tunnel = target.flags() & (flags::FORWARDING | flags::REAL_V6) == Forwarding::Tun as u32;
    if V6 || !tunnel || config!(policies) & policy::TUNNEL_FRAGMENT == 0 {
        return Err(Reason::TooBig);
    }
    Ok((flags::BY_KERNEL as u64) << 32)
}
