//! For the tests: hands `lb` the packets of many flows in turn, as fast as BPF_PROG_TEST_RUN repeats, and checks
//! where each went. A tail call does not return, so a packet is judged one round later: its next hop's MAC
//! address is left in the frame, the feeder finds it there and knows from its own record which flow that was.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray, ProgramArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};

/// Flows at most.
const FLOWS: u32 = 1024;

/// A flow: source address, ports (both as in the packet), class, spare. The MAC address of every server that
/// this flow may go to ends in its class plus one.
#[btf_map]
static HAMMER_FLOWS: Array<[u32; 4], { FLOWS as usize }> = Array::new();

/// Element 0: number of flows, how many of them (the first) are hot, mask of random bits that are all zero when a
/// packet is of the others, IP protocol, VIP as in the packet, spare; then TCP flags, one byte each: words
/// 8 to 11 for hot flows, 12 to 15 for the others.
#[btf_map]
static HAMMER_PLAN: Array<[u32; 16], 1> = Array::new();

/// Of each CPU: random state, flow of the packet in the frame plus one, packets that went right, wrong, nowhere;
/// then flow and class of the last wrong one.
#[btf_map]
static HAMMER_STATE: PerCpuArray<[u64; 8], 1> = PerCpuArray::new();

/// Element 0: the entry program of `lb`.
#[btf_map]
static HAMMER_TARGET: ProgramArray<1> = ProgramArray::new();

/// Ethernet, IPv4 and TCP headers. A UDP packet has as many bytes.
const FRAME: usize = 54;

#[xdp]
pub fn hammer(ctx: XdpContext) -> u32 {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + FRAME > end {
        return xdp_action::XDP_ABORTED;
    }
    let frame = data as *mut u8;
    let (Some(state), Some(plan)) = (HAMMER_STATE.get_ptr_mut(0), HAMMER_PLAN.get_ptr(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: map values; the state is this CPU's own, and XDP programs do not nest on a CPU.
    let (state, plan) = unsafe { (&mut *state, &*plan) };
    judge(frame, state);
    let random = next(&mut state[0]);
    let Some((index, flow, flags)) = choose(random, plan) else { return xdp_action::XDP_ABORTED };
    write(frame, flow, plan, flags);
    state[1] = index as u64 + 1;
    // SAFETY: nothing of this program's state is left that would need dropping.
    unsafe { HAMMER_TARGET.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Counts where the packet of the round before went.
#[inline(always)]
fn judge(frame: *const u8, state: &mut [u64; 8]) {
    let Some(index) = (state[1] as u32).checked_sub(1) else { return };
    let Some(flow) = HAMMER_FLOWS.get_ptr(index) else { return };
    // SAFETY: the last byte of the destination's MAC address, in the checked part of the frame; a map value.
    let (mac, class) = unsafe { (*frame.add(5) as u64, (*flow)[2] as u64) };
    if mac == class + 1 {
        state[2] += 1;
    } else if mac == 0 {
        state[4] += 1;
    } else {
        state[3] += 1;
        state[5] = index as u64;
        state[6] = mac - 1;
    }
}

/// A flow, its index, and the TCP flags of its next packet.
#[inline(always)]
fn choose(random: u64, plan: &[u32; 16]) -> Option<(u32, [u32; 4], u8)> {
    let (low, high) = (random as u32, (random >> 32) as u32);
    let is_hot = low & plan[2] != 0;
    let count = if is_hot { plan[1] } else { plan[0] };
    let index = ((high as u64 * count as u64) >> 32) as u32;
    // SAFETY: a map value.
    let flow = unsafe { *HAMMER_FLOWS.get_ptr(index)? };
    let at = (low >> 28) as usize;
    let flags = plan[if is_hot { 8 } else { 12 } + at / 4] >> (at % 4 * 8);
    Some((index, flow, flags as u8))
}

/// Puts back what forwarding changed and writes the flow's fields. Neither checksum is looked at
/// by the program.
#[inline(always)]
fn write(frame: *mut u8, flow: [u32; 4], plan: &[u32; 16], flags: u8) {
    const UDP: u32 = 17;
    // SAFETY: offsets below FRAME, which the caller checked.
    unsafe {
        frame.cast::<u32>().write_unaligned(0);
        frame.add(4).cast::<u16>().write_unaligned(0);
        frame.add(22).write(64);
        frame.add(23).write(plan[3] as u8);
        frame.add(26).cast::<u32>().write_unaligned(flow[0]);
        frame.add(30).cast::<u32>().write_unaligned(plan[4]);
        frame.add(34).cast::<u32>().write_unaligned(flow[1]);
        if plan[3] == UDP {
            frame.add(38).cast::<u16>().write_unaligned((FRAME as u16 - 34).to_be());
        } else {
            frame.add(46).write(0x50);
            frame.add(47).write(flags);
        }
    }
}

/// A full-period generator (SplitMix64).
#[inline(always)]
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
