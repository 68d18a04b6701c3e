//! The last step of a frame: MAC addresses, VLAN tags, output interface.

use crate::{
    maps::OUTPUTS,
    packet::{Frame, load16, load32, store16, store32},
};
use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_xdp_adjust_head,
};
use lb_common::{
    destination::{NextHop, OTHER_TAG},
    header::{ETHERNET, ethertype},
    verdict::Reason,
};

/// The words of a next hop that a frame needs, read once each.
#[derive(Clone, Copy)]
pub struct Hop {
    pub destination: u64,
    pub source: u64,
    pub ifindex: u32,
}

impl Hop {
    /// Reads a record; none when the hop is unresolved.
    #[inline(always)]
    pub fn of(record: *const NextHop) -> Option<Self> {
        // SAFETY: `record` is a map value; each word is read whole.
        let hop = unsafe {
            Self {
                destination: crate::atomic::load(&raw const (*record).destination),
                source: crate::atomic::load(&raw const (*record).source),
                ifindex: core::ptr::read_volatile(&raw const (*record).ifindex),
            }
        };
        if hop.ifindex == 0 { None } else { Some(hop) }
    }

    /// TCIs, network order: outer, inner.
    #[inline(always)]
    fn tags(&self) -> (u16, u16) {
        ((self.destination >> 48) as u16, (self.source >> 48) as u16)
    }
}

/// Writes the Ethernet header of the frame whose IP header lies at `l3`, with as many tags as the hop wants,
/// and sends it. `frame` must be fresh.
#[inline(always)]
pub fn send<const V6: bool>(frame: Frame, l3: usize, hop: Hop) -> Result<u32, Reason> {
    let (outer, inner) = hop.tags();
    if l3 == ETHERNET && (outer | inner) == 0 {
        let Some(ethernet) = frame.at(0, ETHERNET) else { return Err(Reason::Internal) };
        write_macs(ethernet, hop);
        return output(frame, hop.ifindex);
    }
    let l3_and_family = l3 as u32 | if V6 { V6_BIT } else { 0 };
    match retag(frame.ctx, l3_and_family, hop.destination, hop.source) {
        0 => output(Frame::new(frame.ctx), hop.ifindex),
        NO_ROOM => Err(Reason::NoRoomInFrame),
        _ => Err(Reason::Internal),
    }
}

/// As [`send`], to the kernel: `hop` is how the frame came ([`here`]).
#[inline(always)]
pub fn pass<const V6: bool>(frame: Frame, l3: usize, hop: Hop) -> Result<u32, Reason> {
    let l3_and_family = l3 as u32 | if V6 { V6_BIT } else { 0 };
    match retag(frame.ctx, l3_and_family, hop.destination, hop.source) {
        0 => Ok(xdp_action::XDP_PASS),
        NO_ROOM => Err(Reason::NoRoomInFrame),
        _ => Err(Reason::Internal),
    }
}

const V6_BIT: u32 = 1 << 16;
const NO_ROOM: u32 = 1;
const LOST: u32 = 2;

#[inline(always)]
fn write_macs(ethernet: *mut u8, hop: Hop) {
    store32(ethernet, 0, hop.destination as u32);
    store16(ethernet, 4, (hop.destination >> 32) as u16);
    store32(ethernet, 6, hop.source as u32);
    store16(ethernet, 10, (hop.source >> 32) as u16);
}

/// Pushes, swaps or pops tags: the header is written anew at its new length. Out of line: rare.
#[inline(never)]
fn retag(ctx: *mut xdp_md, l3_and_family: u32, destination: u64, source: u64) -> u32 {
    let hop = Hop { destination, source, ifindex: 0 };
    let (marked, inner) = hop.tags();
    let other = marked & OTHER_TAG.to_be() != 0;
    let outer = marked & !OTHER_TAG.to_be();
    let l3 = (l3_and_family & 0x1f) as usize;
    let tags = (outer != 0) as usize + (inner != 0) as usize;
    let want = ETHERNET + 4 * tags;
    if want != l3 {
        // SAFETY: the kernel's helper; pointers are taken anew below.
        if unsafe { bpf_xdp_adjust_head(ctx, l3 as i32 - want as i32) } != 0 {
            return NO_ROOM;
        }
    }
    let frame = Frame::new(ctx);
    let ip_type = if l3_and_family & V6_BIT != 0 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be();
    let Some(p) = frame.at(0, ETHERNET) else { return LOST };
    write_macs(p, hop);
    if tags == 0 {
        store16(p, 12, ip_type);
    } else if tags == 1 {
        let Some(p) = frame.at(0, ETHERNET + 4) else { return LOST };
        store16(p, 12, if other { ethertype::QINQ } else { ethertype::VLAN }.to_be());
        store16(p, 14, outer | inner);
        store16(p, 16, ip_type);
    } else {
        let Some(p) = frame.at(0, ETHERNET + 8) else { return LOST };
        store16(p, 12, if other { ethertype::VLAN } else { ethertype::QINQ }.to_be());
        store16(p, 14, outer);
        store16(p, 16, ethertype::VLAN.to_be());
        store16(p, 18, inner);
        store16(p, 20, ip_type);
    }
    0
}

/// Sends the frame out of an interface: the one it came in by, or another.
#[inline(always)]
pub fn output(frame: Frame, ifindex: u32) -> Result<u32, Reason> {
    if ifindex == frame.ingress_ifindex() {
        return Ok(xdp_action::XDP_TX);
    }
    OUTPUTS.redirect(ifindex, 0).map_err(|_| Reason::NoNextHop)
}

/// The frame's own addresses and tags, to be written again before another header.
#[inline(always)]
pub fn here(frame: &Frame, l3: usize) -> Option<Hop> {
    let Hop { destination, source, ifindex } = back(frame, l3)?;
    const MAC: u64 = 0xffff_ffff_ffff;
    Some(Hop {
        destination: source & MAC | destination & !MAC,
        source: destination & MAC | source & !MAC,
        ifindex,
    })
}

/// How the sender of this frame is reached: its addresses, turned round, with its tags.
#[inline(always)]
pub fn back(frame: &Frame, l3: usize) -> Option<Hop> {
    let p = frame.at(0, ETHERNET)?;
    let mut destination = load32(p, 6) as u64 | (load16(p, 10) as u64) << 32;
    let mut source = load32(p, 0) as u64 | (load16(p, 4) as u64) << 32;
    if l3 > ETHERNET {
        let p = frame.at(0, ETHERNET + 4)?;
        // Only the VLAN id: priority is the sender's.
        let id = load16(p, 14) & 0x0fff_u16.to_be();
        let usual = if l3 > ETHERNET + 4 { ethertype::QINQ } else { ethertype::VLAN };
        let other = if id != 0 && load16(p, 12) != usual.to_be() { OTHER_TAG.to_be() } else { 0 };
        destination |= ((id | other) as u64) << 48;
    }
    if l3 > ETHERNET + 4 {
        let p = frame.at(0, ETHERNET + 8)?;
        source |= ((load16(p, 18) & 0x0fff_u16.to_be()) as u64) << 48;
    }
    Some(Hop { destination, source, ifindex: frame.ingress_ifindex() })
}
