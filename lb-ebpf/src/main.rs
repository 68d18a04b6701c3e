//! The lb data plane. `lb` is attached to an interface; the others are its tails. A path ends in an action or
//! in a reason; here, and only here, a reason becomes an action and is counted.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![feature(asm_experimental_arch)]
#![allow(internal_features)]

mod abort;
mod active;
mod answer;
mod arp;
mod atomic;
mod choose;
mod connection;
mod cookie;
mod count;
mod echo;
mod egress;
mod expected;
mod extension;
mod flow;
mod forward;
mod fragment;
mod ftp;
mod guard;
mod host;
mod icmp;
mod ingress;
mod lease;
mod limits;
mod load;
mod maps;
mod mss;
mod nd;
mod new_flow;
mod nexthop;
mod options;
mod packet;
mod peer;
mod persistence;
mod probe;
mod proxy;
mod quic;
mod quote;
mod related;
mod renumber;
mod reset;
mod schedule;
mod sctp;
mod shifted;
mod sip;
mod tail;
mod toa;
mod tunnel;
mod tunnel_mtu;
mod twos;
mod walk;
mod witness;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::verdict::{Class, Reason};
use packet::Frame;

/// Turns an outcome into an action. Forwarded frames were counted at their destination, answers where they
/// were built; everything else is counted here.
#[inline(always)]
fn finish(frame: Frame, outcome: Result<u32, Reason>) -> u32 {
    finish_of(frame.len(), outcome)
}

/// As [`finish`], of a frame that came with so many bytes.
#[inline(always)]
fn finish_of(bytes: u32, outcome: Result<u32, Reason>) -> u32 {
    match outcome {
        Ok(action) => action,
        Err(reason) => {
            count::reason(reason, bytes);
            match reason.class() {
                Class::Pass => xdp_action::XDP_PASS,
                _ => xdp_action::XDP_DROP,
            }
        }
    }
}

/// The entry point.
#[xdp]
#[inline(always)]
pub fn lb(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, ingress::handle(frame))
}

/// Frames with VLAN tags, IPv4 options or IPv6 extension headers.
#[xdp]
#[inline(always)]
pub fn lb_slow(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, ingress::handle_slow(frame))
}

/// New flows.
#[xdp]
#[inline(always)]
pub fn lb_new(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    let outcome = new_flow::handle(frame);
    // A packet that brought a cookie came with another length than the SYN that was made of it.
    let bytes = if outcome.is_ok() { 0 } else { cookie::made().unwrap_or(frame.len()) };
    finish_of(bytes, outcome)
}

/// TCP packets of flows with an extension record.
#[xdp]
#[inline(always)]
pub fn lb_shifted(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, shifted::handle(frame))
}

/// SCTP packets.
#[xdp]
#[inline(always)]
pub fn lb_sctp(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, sctp::handle(frame))
}

/// As `lb_new`, for SCTP.
#[xdp]
#[inline(always)]
pub fn lb_sctp_new(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, new_flow::handle_sctp(frame))
}

/// ABORTs.
#[xdp]
#[inline(always)]
pub fn lb_abort(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, abort::handle(frame))
}

/// The choice of a server.
#[xdp]
#[inline(always)]
pub fn lb_choose(ctx: XdpContext) -> u32 {
    let outcome = choose::handle(ctx.ctx);
    finish(Frame::new(ctx.ctx), outcome)
}

/// Answers with ICMP errors.
#[xdp]
#[inline(always)]
pub fn lb_icmp(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, icmp::handle(frame))
}

/// ICMP that arrives.
#[xdp]
#[inline(always)]
pub fn lb_related(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, related::handle(frame))
}

/// Fragments.
#[xdp]
#[inline(always)]
pub fn lb_fragment(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, fragment::handle(frame))
}

/// Packets of control channels of FTP.
#[xdp]
#[inline(always)]
pub fn lb_ftp(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, ftp::handle(frame))
}

/// Commands for active data connections under FULLNAT.
#[xdp]
#[inline(always)]
pub fn lb_ftp_active(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, active::handle(frame))
}

/// SYNs that no service takes.
#[xdp]
#[inline(always)]
pub fn lb_expected(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, expected::handle(frame))
}

/// SYN cookies.
#[xdp]
#[inline(always)]
pub fn lb_cookie(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, cookie::handle(frame))
}

/// Packets that the client's address is put into.
#[xdp]
#[inline(always)]
pub fn lb_toa(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, toa::handle(frame))
}

/// Tunnels other than plain IPIP.
#[xdp]
#[inline(always)]
pub fn lb_tunnel(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, tunnel::handle(frame))
}

/// Resets.
#[xdp]
#[inline(always)]
pub fn lb_reset(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, reset::handle(frame))
}

/// Frames that the kernel would get, where the VRRP role may say otherwise.
#[xdp]
#[inline(always)]
pub fn lb_host(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, host::handle(frame))
}

/// Packets from a VIP that is probed on the real path.
#[xdp]
#[inline(always)]
pub fn lb_probed(ctx: XdpContext) -> u32 {
    let frame = Frame::new(ctx.ctx);
    finish(frame, probe::answered(frame))
}

/// The entry point at the far end of the prober's veth pair.
#[xdp]
#[inline(always)]
pub fn lb_probe(ctx: XdpContext) -> u32 {
    probe::sent(Frame::new(ctx.ctx))
}

/// What the host itself sends (tc, egress).
#[classifier]
#[inline(always)]
pub fn lb_egress(ctx: TcContext) -> i32 {
    egress::handle(&ctx)
}

/// "Dual MIT/GPL": some helpers are only lent to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
