//! Programs of the benchmark. `feeder` runs first in each round: it puts the frame's start and its header
//! bytes back, writes the next flow into it, and hands it to the program under test. The others are floors:
//! what a program costs that does only the least of a job.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![feature(asm_experimental_arch)]
#![allow(internal_features)]

#[allow(dead_code)]
mod atomic;
#[allow(dead_code)]
mod packet;

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray, ProgramArray},
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    checksum,
    feed::{self, FRAME_FREE, FRAME_V4, FRAME_V6, Feed, kind},
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
};
use packet::{Frame, load8, load16, load32, store16, store32};

/// `BPF_F_MMAPABLE`.
const MMAP: usize = 1 << 10;

#[btf_map]
static FEED: Array<Feed, 1, MMAP> = Array::new();
/// Flows in the order of their visit: address word, ports word, memory order.
#[btf_map]
static FLOWS: Array<u64, 1, MMAP> = Array::new();
/// As many lines as the connection table has.
#[btf_map]
static LINES: Array<[u64; 8], 1, MMAP> = Array::new();
/// Lines of which `floor_lookup` reads one: where a packet goes.
#[btf_map]
static HOPS: Array<[u64; 8], 256> = Array::new();
/// What `floor_lookup` counts.
#[btf_map]
static COUNTS: PerCpuArray<[u64; 2], 256> = PerCpuArray::new();
/// Secrets of `floor_lookup`, unknown to the compiler.
#[unsafe(no_mangle)]
static KEYS: Global<[u64; 4]> =
    Global::new([0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xff51_afd7_ed55_8ccd]);
/// The program under test.
#[btf_map]
static NEXT: ProgramArray<1> = ProgramArray::new();

/// 64 less the binary logarithm of the number of lines.
#[unsafe(no_mangle)]
static LINE_SHIFT: Global<u32> = Global::new(63);

/// The feeder.
#[xdp]
pub fn feeder(ctx: XdpContext) -> u32 {
    let Some(feed) = FEED.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // A full barrier at both ends of the feeder's part: a wide core would do half of the program under test
    // beside it, and what is measured would be less than the program's own. The second also keeps the program
    // from reading, in other sizes, what still lies in the store buffer.
    // SAFETY: a map value, here and below; the benchmark's thread writes it between runs only.
    atomic::fetch_add(unsafe { &raw mut (*feed).rounds }, 1);
    // SAFETY: as above.
    let (len, kind) = unsafe { ((*feed).len, (*feed).kind) };
    // Opaque: the compiler would add to a pointer what the verifier wants added to a number.
    let moved = packet::opaque(Frame::new(ctx.ctx).len() as u64) as i32 - len as i32;
    // Always, so that programs that do not move the start pay for it as well and the difference is the
    // program's own.
    // SAFETY: the kernel's helpers; pointers are taken anew below.
    let failed = unsafe {
        if kind & kind::RESIZED != 0 {
            bpf_xdp_adjust_tail(ctx.ctx, -moved)
        } else {
            bpf_xdp_adjust_head(ctx.ctx, moved)
        }
    };
    if failed != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let Some((address, ports, acknowledged)) = next_flow(feed, kind) else { return xdp_action::XDP_ABORTED };
    let frame = Frame::new(ctx.ctx);
    let written = if kind & kind::FREE != 0 {
        write_free(&frame, feed, address, ports, acknowledged)
    } else {
        write_fixed(&frame, feed, kind, address, ports)
    };
    if !written {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: a map value.
    atomic::fetch_add(unsafe { &raw mut (*feed).rounds }, 1);
    // SAFETY: nothing is left that would need dropping.
    unsafe { NEXT.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// A frame of one of the four usual forms.
#[inline(always)]
fn write_fixed(frame: &Frame, feed: *mut Feed, kind: u32, address: u32, ports: u32) -> bool {
    match kind & (kind::V6 | kind::REPLY) {
        0 => write::<false, false>(frame, feed, address, ports),
        kind::V6 => write::<true, false>(frame, feed, address, ports),
        kind::REPLY => write::<false, true>(frame, feed, address, ports),
        _ => write::<true, true>(frame, feed, address, ports),
    }
}

/// Address and ports of the next flow, and the number that it acknowledges where the list has one, memory order.
#[inline(always)]
fn next_flow(feed: *mut Feed, kind: u32) -> Option<(u32, u32, u32)> {
    // SAFETY: a map value.
    unsafe {
        let position = (*feed).position;
        let number = (position & (*feed).mask).wrapping_add((*feed).first);
        if kind & kind::LISTED != 0 {
            (*feed).position = position.wrapping_add(1);
            let flow = core::ptr::read_volatile(FLOWS.get_ptr(number as u32)?);
            if kind & kind::COOKIE != 0 {
                let (address, port) = feed::flow_of_cookie((*feed).base, flow);
                return Some((address.to_be(), port.to_be() as u32 | (*feed).fixed, (flow >> 32) as u32));
            }
            return Some((flow as u32, (flow >> 32) as u32, 0));
        }
        (*feed).position = feed::next(position);
        let (address, port) = feed::flow((*feed).base, number);
        let port = (port.to_be() as u32) << if kind & kind::REPLY != 0 { 16 } else { 0 };
        Some((address.to_be(), port | (*feed).fixed, 0))
    }
}

#[inline(always)]
fn write<const V6: bool, const REPLY: bool>(
    frame: &Frame,
    feed: *mut Feed,
    address: u32,
    ports: u32,
) -> bool {
    let len = if V6 { FRAME_V6 } else { FRAME_V4 };
    let Some(start) = frame.at(0, len) else { return false };
    // SAFETY: a map value, and a frame of at least `len` bytes, a multiple of eight.
    let (sum_ip, sum_transport) = unsafe {
        for i in 0..len / 8 {
            packet::store64(start, i * 8, (*feed).words[i]);
        }
        ((*feed).sum_ip as u64, (*feed).sum_transport as u64)
    };
    let transport = if V6 { ETHERNET + IPV6 } else { ETHERNET + IPV4 };
    let at = match (V6, REPLY) {
        (false, false) => ETHERNET + 12,
        (false, true) => ETHERNET + 16,
        (true, false) => ETHERNET + 20,
        (true, true) => ETHERNET + 36,
    };
    store32(start, at, address);
    store32(start, transport, ports);
    if !V6 {
        store16(start, ETHERNET + 10, !checksum::fold(sum_ip + address as u64));
    }
    store16(start, transport + 16, !checksum::fold(sum_transport + address as u64 + ports as u64));
    true
}

/// A frame of any form, by the record.
#[inline(always)]
fn write_free(frame: &Frame, feed: *mut Feed, address: u32, ports: u32, acknowledged: u32) -> bool {
    // SAFETY: a map value.
    let feed = unsafe { &*feed };
    for i in 0..FRAME_FREE / 8 {
        if i * 8 < feed.len as usize {
            let Some(place) = frame.at(i * 8, 8) else { return false };
            packet::store64(place, 0, feed.words[i]);
        }
    }
    let place = |at: u16, len: usize| frame.at_dynamic(at as usize & 0x7f, len);
    let (Some(to), Some(to_ports)) = (place(feed.at_address, 4), place(feed.at_ports, 4)) else {
        return false;
    };
    if feed.at_address != 0 {
        store32(to, 0, address);
    }
    let mut sum = feed.sum_transport as u64 + acknowledged as u64;
    if feed.kind & kind::QUOTED == 0 {
        sum += address as u64;
    }
    if feed.at_ports != 0 {
        store32(to_ports, 0, ports);
        sum += ports as u64;
    }
    if feed.kind & kind::COOKIE != 0 {
        let Some(to) = place(feed.at_ports + 8, 4) else { return false };
        store32(to, 0, acknowledged);
    }
    if feed.at_sum_ip != 0 {
        let Some(to) = place(feed.at_sum_ip, 2) else { return false };
        store16(to, 0, !checksum::fold(feed.sum_ip as u64 + address as u64));
    }
    if feed.at_sum != 0 {
        let Some(to) = place(feed.at_sum, 2) else { return false };
        store16(to, 0, !checksum::fold(sum));
    }
    true
}

/// Does nothing: what the feeder and the run itself cost.
#[xdp]
pub fn floor_tx(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The headers of an IPv4 TCP or UDP packet without options.
#[inline(always)]
fn parse(frame: &Frame) -> Option<*mut u8> {
    let start = frame.at(0, ETHERNET + IPV4 + 20)?;
    if load16(start, 12) != ethertype::IPV4.to_be() || load8(start, ETHERNET) != 0x45 {
        return None;
    }
    let next = load8(start, ETHERNET + 9);
    if next == protocol::TCP || next == protocol::UDP { Some(start) } else { None }
}

/// Exchanges the addresses of the Ethernet header.
#[inline(always)]
fn swap(start: *mut u8) {
    let (to, to_end) = (load32(start, 0), load16(start, 4));
    let (from, from_end) = (load32(start, 6), load16(start, 10));
    store32(start, 0, from);
    store16(start, 4, from_end);
    store32(start, 6, to);
    store16(start, 10, to_end);
}

/// Parses and swaps the MAC addresses.
#[xdp]
pub fn floor_swap(ctx: XdpContext) -> u32 {
    match parse(&Frame::new(ctx.ctx)) {
        Some(start) => {
            swap(start);
            xdp_action::XDP_TX
        }
        None => xdp_action::XDP_PASS,
    }
}

/// Parses and pushes an IPIP header.
#[xdp]
pub fn floor_ipip(ctx: XdpContext) -> u32 {
    let Some(start) = parse(&Frame::new(ctx.ctx)) else { return xdp_action::XDP_PASS };
    let len = u16::from_be(load16(start, ETHERNET + 2)) + IPV4 as u16;
    // SAFETY: the kernel's helper; pointers are taken anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4 as i32)) } != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let Some(start) = Frame::new(ctx.ctx).at(0, ETHERNET + IPV4) else { return xdp_action::XDP_ABORTED };
    const MAC: u32 = 0x0200_0000_u32.to_be();
    store32(start, 0, MAC);
    store16(start, 4, 1);
    store32(start, 6, MAC);
    store16(start, 10, 2);
    store16(start, 12, ethertype::IPV4.to_be());
    const FROM: u32 = 0x0a00_0001_u32.to_be();
    const TO: u32 = 0x0a00_0002_u32.to_be();
    const FIRST: u16 = 0x4500_u16.to_be();
    const TTL: u16 = (64 << 8 | protocol::IPIP as u16).to_be();
    const SUM: u64 = FIRST as u64 + TTL as u64 + FROM as u64 + TO as u64;
    store16(start, ETHERNET, FIRST);
    store16(start, ETHERNET + 2, len.to_be());
    store32(start, ETHERNET + 4, 0);
    store16(start, ETHERNET + 8, TTL);
    store16(start, ETHERNET + 10, !checksum::fold(SUM + len.to_be() as u64));
    store32(start, ETHERNET + 12, FROM);
    store32(start, ETHERNET + 16, TO);
    xdp_action::XDP_TX
}

/// Parses, reads one random line of an array as large as the connection table, and swaps the MAC addresses.
#[xdp]
pub fn floor_line(ctx: XdpContext) -> u32 {
    let Some(start) = parse(&Frame::new(ctx.ctx)) else { return xdp_action::XDP_PASS };
    let flow = load32(start, ETHERNET + 12) as u64 | (load32(start, ETHERNET + IPV4) as u64) << 32;
    // Twice, as for the connection table: once would leave rows of flows in few lines.
    let line = flow.wrapping_mul(feed::MULTIPLIER);
    let line = (line ^ (line >> 32)).wrapping_mul(feed::MULTIPLIER) >> LINE_SHIFT.load();
    let Some(line) = LINES.get_ptr(line as u32) else { return xdp_action::XDP_ABORTED };
    // SAFETY: a map value.
    let word = unsafe { core::ptr::read_volatile((line as *const u64).add((flow & 7) as usize)) };
    if word != 0 {
        return xdp_action::XDP_DROP;
    }
    swap(start);
    xdp_action::XDP_TX
}

/// What every balancer with state and keyed hashes must do, and no more: parses; hashes the tuple twice, for its key and
/// for its bucket; looks for it in one line of an array as large as the connection table; reads the line of where it goes;
/// takes the TTL down; counts; writes the MAC addresses. No helper is called.
#[xdp]
pub fn floor_lookup(ctx: XdpContext) -> u32 {
    let Some(start) = parse(&Frame::new(ctx.ctx)) else { return xdp_action::XDP_PASS };
    let keys = KEYS.load();
    let mix = |word: u64, key: u64, next: u64| {
        let x = word.wrapping_mul(key);
        (x ^ (x >> 32)).wrapping_mul(next)
    };
    let to = load32(start, ETHERNET + 16) as u64;
    let tuple = load32(start, ETHERNET + 12) as u64 | (load32(start, ETHERNET + IPV4) as u64) << 32;
    let identity = tuple ^ mix(to, keys[0], keys[1]);
    let Some(line) = LINES.get_ptr((mix(identity, keys[2], keys[3]) >> LINE_SHIFT.load()) as u32) else {
        return xdp_action::XDP_ABORTED;
    };
    let mut found = 0u64;
    for way in 0..4 {
        // SAFETY: a map value, and its even words.
        let word = unsafe { core::ptr::read_volatile((line as *const u64).add(way * 2)) };
        // The array is empty: what is found is the same in each way.
        if word == identity {
            return xdp_action::XDP_DROP;
        }
        found |= word;
    }
    let index = found as u32 & 0xff;
    let (Some(hop), Some(count)) = (HOPS.get_ptr(index), COUNTS.get_ptr_mut(index)) else {
        return xdp_action::XDP_ABORTED;
    };
    if load8(start, ETHERNET + 8) <= 1 {
        return xdp_action::XDP_DROP;
    }
    packet::store8(start, ETHERNET + 8, load8(start, ETHERNET + 8) - 1);
    store16(start, ETHERNET + 10, checksum::after_ttl_decrement(load16(start, ETHERNET + 10)));
    // SAFETY: map values, the second of this CPU.
    unsafe {
        let (destination, source) = (
            core::ptr::read_volatile(hop as *const u64),
            core::ptr::read_volatile((hop as *const u64).add(1)),
        );
        store32(start, 0, destination as u32);
        store16(start, 4, (destination >> 32) as u16);
        store32(start, 6, source as u32);
        store16(start, 10, (source >> 32) as u16);
        (*count)[0] += 1;
        (*count)[1] += Frame::new(ctx.ctx).len() as u64;
    }
    xdp_action::XDP_TX
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
