//! The decapsulator of a TUN real server: takes the outer headers (IPIP, GUE, GRE) off packets that a listed director
//! tunnelled to one of this server's VIPs and hands them to the kernel; everything else passes untouched. With it no
//! kernel tunnel device is needed.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    address::Address,
    decapsulator::Outcome,
    filter::AddressKey,
    header::{ETHERNET, IPV4, IPV6, ethertype, gre, gue, protocol},
};

/// Length of a VLAN tag.
const TAG: usize = 4;

#[btf_map]
static DIRECTORS4: LpmTrie<[u8; 4], u32, 1024> = LpmTrie::new();

#[btf_map]
static DIRECTORS6: LpmTrie<[u8; 16], u32, 1024> = LpmTrie::new();

#[btf_map]
static VIPS: HashMap<AddressKey, u32, 4096> = HashMap::new();

#[btf_map]
static GUE_PORTS: HashMap<[u8; 2], u32, 64> = HashMap::new();

#[btf_map]
static OUTCOMES: PerCpuArray<u64, { Outcome::ALL.len() }> = PerCpuArray::new();

/// `frags`: drivers with a large MTU refuse native programs that cannot do without one linear buffer; only
/// headers are touched here, and they lie in the first.
#[xdp(frags)]
pub fn real_server(ctx: XdpContext) -> u32 {
    let (outcome, action) = match inspect(&ctx) {
        Ok(tunnelled) => match strip(&ctx, &tunnelled) {
            Ok(()) => (tunnelled.outcome, xdp_action::XDP_PASS),
            Err(action) => (Outcome::Malformed, action),
        },
        Err(outcome) => (outcome, xdp_action::XDP_PASS),
    };
    if let Some(count) = OUTCOMES.get_ptr_mut(outcome as u32) {
        // SAFETY: this CPU's own slot, and XDP programs do not nest on a CPU.
        unsafe { *count += 1 };
    }
    action
}

/// A frame whose outer header is to be taken off.
struct Tunnelled {
    /// Ethernet header with its tags: 14, 18 or 22 bytes.
    link: usize,
    /// Outer IP header with its options, and GUE's or GRE's: 20 to 76 bytes.
    outer: usize,
    /// EtherType of the inner packet, host order.
    inner: u16,
    outcome: Outcome,
}

/// What is known after the outer header.
struct Outer {
    length: usize,
    /// Bytes behind the outer header, as that header says; the frame has at least as many.
    payload: usize,
    /// IPIP, IPV6, UDP or GRE.
    protocol: u8,
    v6: bool,
}

/// Whether an IP protocol may carry tunnelled packets.
#[inline(always)]
fn may_tunnel(number: u8) -> bool {
    number == protocol::IPIP || number == protocol::IPV6 || number == protocol::UDP || number == protocol::GRE
}

#[inline(always)]
fn inspect(ctx: &XdpContext) -> Result<Tunnelled, Outcome> {
    let (link, kind) = link_header(ctx)?;
    // SAFETY: the context is the one the kernel called us with.
    let frame = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as usize;
    let available = frame.wrapping_sub(link);
    let outer = match kind {
        ethertype::IPV4 => outer_ipv4(ctx, link, available)?,
        ethertype::IPV6 => outer_ipv6(ctx, link, available)?,
        _ => return Err(Outcome::NotTunnelled),
    };
    let at = link + outer.length;
    let (between, inner_is_v6, outcome) = match (outer.protocol, outer.v6) {
        (protocol::UDP, _) => {
            let (length, v6) = between_gue(ctx, at, outer.payload)?;
            (length, v6, Outcome::Gue)
        }
        (protocol::GRE, _) => {
            let (length, v6) = between_gre(ctx, at, outer.payload)?;
            (length, v6, Outcome::Gre)
        }
        (protocol::IPIP, false) => (0, false, Outcome::Ip4InIp4),
        (protocol::IPIP, true) => (0, false, Outcome::Ip4InIp6),
        (_, false) => (0, true, Outcome::Ip6InIp4),
        (_, true) => (0, true, Outcome::Ip6InIp6),
    };
    let (at, payload) = (at + between, outer.payload - between);
    let (vip, inner) = if inner_is_v6 {
        (inner_ipv6(ctx, at, payload)?, ethertype::IPV6)
    } else {
        (inner_ipv4(ctx, at, payload)?, ethertype::IPV4)
    };
    // Only the presence of the key counts, so a recycled element does no harm.
    if VIPS.get_ptr(vip).is_none() {
        return Err(Outcome::NotAVip);
    }
    Ok(Tunnelled { link, outer: outer.length + between, inner, outcome })
}

/// Length of UDP's and GUE's headers at a port that is unpacked, and whether IPv6 follows. GUE of variant 0 with
/// nothing optional, as a director sends it; what else comes to the port is somebody else's.
#[inline(always)]
fn between_gue(ctx: &XdpContext, at: usize, payload: usize) -> Result<(usize, bool), Outcome> {
    let header: [u8; gue::LENGTH] = read(ctx, at).ok_or(Outcome::NotTunnelled)?;
    if GUE_PORTS.get_ptr([header[2], header[3]]).is_none() {
        return Err(Outcome::NotTunnelled);
    }
    if payload < gue::LENGTH || u16::from_be_bytes([header[4], header[5]]) as usize != payload {
        return Err(Outcome::Malformed);
    }
    if header[8] != 0 || header[10] != 0 || header[11] != 0 {
        return Err(Outcome::NotTunnelled);
    }
    match header[9] {
        protocol::IPIP => Ok((gue::LENGTH, false)),
        protocol::IPV6 => Ok((gue::LENGTH, true)),
        _ => Err(Outcome::NotTunnelled),
    }
}

/// Length of GRE's header with what is optional, and whether IPv6 follows. The checksum is not looked at: the packet
/// inside has its own.
#[inline(always)]
fn between_gre(ctx: &XdpContext, at: usize, payload: usize) -> Result<(usize, bool), Outcome> {
    let header: [u8; 4] = read(ctx, at).ok_or(Outcome::Malformed)?;
    let bits = u16::from_be_bytes([header[0], header[1]]);
    if bits & gre::REFUSED != 0 {
        return Err(Outcome::NotTunnelled);
    }
    let mut length = 4;
    for optional in [gre::CHECKSUM, gre::KEY, gre::SEQUENCE] {
        length += if bits & optional != 0 { 4 } else { 0 };
    }
    if length > payload {
        return Err(Outcome::Malformed);
    }
    match u16::from_be_bytes([header[2], header[3]]) {
        ethertype::IPV4 => Ok((length, false)),
        ethertype::IPV6 => Ok((length, true)),
        _ => Err(Outcome::NotTunnelled),
    }
}

/// Length of the Ethernet header with up to two VLAN tags, and the EtherType behind them in host order.
#[inline(always)]
fn link_header(ctx: &XdpContext) -> Result<(usize, u16), Outcome> {
    let mut link = ETHERNET;
    let mut kind = read_u16(ctx, link - 2).ok_or(Outcome::NotTunnelled)?;
    for _ in 0..2 {
        if kind != ethertype::VLAN && kind != ethertype::QINQ {
            break;
        }
        link += TAG;
        kind = read_u16(ctx, link - 2).ok_or(Outcome::NotTunnelled)?;
    }
    Ok((link, kind))
}

#[inline(always)]
fn outer_ipv4(ctx: &XdpContext, at: usize, available: usize) -> Result<Outer, Outcome> {
    let header: [u8; IPV4] = read(ctx, at).ok_or(Outcome::Malformed)?;
    let protocol = header[9];
    if !may_tunnel(protocol) {
        return Err(Outcome::NotTunnelled);
    }
    let length = (header[0] & 0x0f) as usize * 4;
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    // Most of UDP is no tunnel: only what comes from a director to a port of GUE's is looked at.
    let source = [header[12], header[13], header[14], header[15]];
    if protocol == protocol::UDP && DIRECTORS4.get(&Key::new(32, source)).is_none() {
        return Err(Outcome::NotTunnelled);
    }
    if header[0] >> 4 != 4 || length < IPV4 || total < length || total > available {
        return Err(Outcome::Malformed);
    }
    // More fragments, or an offset: only the whole packet has an inner header where we look for it.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(if protocol == protocol::UDP { Outcome::NotTunnelled } else { Outcome::Fragment });
    }
    if DIRECTORS4.get(&Key::new(32, source)).is_none() {
        return Err(Outcome::NotFromDirector);
    }
    Ok(Outer { length, payload: total - length, protocol, v6: false })
}

#[inline(always)]
fn outer_ipv6(ctx: &XdpContext, at: usize, available: usize) -> Result<Outer, Outcome> {
    let header: [u8; IPV6] = read(ctx, at).ok_or(Outcome::Malformed)?;
    let mut protocol = header[6];
    let mut length = IPV6;
    // Senders after RFC 2473 (section 4.1.1) may put the tunnel encapsulation limit before the inner packet;
    // it fills the smallest options header. Longer ones are nothing a tunnel puts there.
    if protocol == protocol::DESTINATION_OPTIONS {
        let options: [u8; 2] = read(ctx, at + IPV6).ok_or(Outcome::Malformed)?;
        if options[1] != 0 {
            return Err(Outcome::NotTunnelled);
        }
        protocol = options[0];
        length += 8;
    }
    if protocol == protocol::FRAGMENT {
        let inner: [u8; 1] = read(ctx, at + length).ok_or(Outcome::Malformed)?;
        let tunnelled = may_tunnel(inner[0]) && inner[0] != protocol::UDP;
        return Err(if tunnelled { Outcome::Fragment } else { Outcome::NotTunnelled });
    }
    if !may_tunnel(protocol) {
        return Err(Outcome::NotTunnelled);
    }
    let mut source = [0; 16];
    source.copy_from_slice(&header[8..24]);
    if protocol == protocol::UDP && DIRECTORS6.get(&Key::new(128, source)).is_none() {
        return Err(Outcome::NotTunnelled);
    }
    let total = IPV6 + u16::from_be_bytes([header[4], header[5]]) as usize;
    if header[0] >> 4 != 6 || total < length || total > available {
        return Err(Outcome::Malformed);
    }
    if DIRECTORS6.get(&Key::new(128, source)).is_none() {
        return Err(Outcome::NotFromDirector);
    }
    Ok(Outer { length, payload: total - length, protocol, v6: true })
}

/// The inner packet's destination, if its header says nothing that cannot be.
#[inline(always)]
fn inner_ipv4(ctx: &XdpContext, at: usize, payload: usize) -> Result<AddressKey, Outcome> {
    let header: [u8; IPV4] = read(ctx, at).ok_or(Outcome::Malformed)?;
    let length = (header[0] & 0x0f) as usize * 4;
    let total = u16::from_be_bytes([header[2], header[3]]) as usize;
    if header[0] >> 4 != 4 || length < IPV4 || total < length || total > payload {
        return Err(Outcome::Malformed);
    }
    let vip = [header[16], header[17], header[18], header[19]];
    Ok(AddressKey { address: Address::from_v4(vip), family: 4 })
}

#[inline(always)]
fn inner_ipv6(ctx: &XdpContext, at: usize, payload: usize) -> Result<AddressKey, Outcome> {
    let header: [u8; IPV6] = read(ctx, at).ok_or(Outcome::Malformed)?;
    let total = IPV6 + u16::from_be_bytes([header[4], header[5]]) as usize;
    if header[0] >> 4 != 6 || total > payload {
        return Err(Outcome::Malformed);
    }
    let mut vip = [0; 16];
    vip.copy_from_slice(&header[24..40]);
    Ok(AddressKey { address: Address::from_v6(vip), family: 6 })
}

/// Takes the outer header out from between the Ethernet header and the inner packet. An error is the action
/// for the frame.
#[inline(always)]
fn strip(ctx: &XdpContext, tunnelled: &Tunnelled) -> Result<(), u32> {
    // One copy per length of the Ethernet header: lengths known to the compiler need no loop.
    match tunnelled.link {
        ETHERNET => strip_behind::<ETHERNET>(ctx, tunnelled),
        18 => strip_behind::<18>(ctx, tunnelled),
        _ => strip_behind::<22>(ctx, tunnelled),
    }
}

#[inline(always)]
fn strip_behind<const LINK: usize>(ctx: &XdpContext, tunnelled: &Tunnelled) -> Result<(), u32> {
    let mut link: [u8; LINK] = read(ctx, 0).ok_or(xdp_action::XDP_PASS)?;
    let kind = tunnelled.inner.to_be_bytes();
    link[LINK - 2] = kind[0];
    link[LINK - 1] = kind[1];
    // SAFETY: the context is the one the kernel called us with; no pointer into the frame is held over this.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, tunnelled.outer as i32) } != 0 {
        return Err(xdp_action::XDP_PASS);
    }
    let start = ctx.data();
    if start + LINK > ctx.data_end() {
        // The verifier asks; `inspect` saw an inner header behind this. The frame is no longer whole.
        return Err(xdp_action::XDP_ABORTED);
    }
    // SAFETY: bounds checked above; the type has no alignment.
    unsafe { (start as *mut [u8; LINK]).write_unaligned(link) };
    Ok(())
}

#[inline(always)]
fn read_u16(ctx: &XdpContext, at: usize) -> Option<u16> {
    read(ctx, at).map(u16::from_be_bytes)
}

/// `N` bytes of the frame at an offset, if they lie in its linear part.
#[inline(always)]
fn read<const N: usize>(ctx: &XdpContext, at: usize) -> Option<[u8; N]> {
    let start = ctx.data() + at;
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: bounds checked above; bytes have no alignment and any value.
    Some(unsafe { (start as *const [u8; N]).read_unaligned() })
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
