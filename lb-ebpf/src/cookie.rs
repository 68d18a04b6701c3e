//! SYN cookies (RFC 4987, section 3.6), for NAT and FULLNAT: a SYN is answered from here with a sequence number that
//! says all of it, and nothing is kept. Who acknowledges that number is there; his packet becomes the SYN to the server,
//! and a flow begins. What the server answers is made what the client expects ([`crate::shifted`]).
//!
//! The SYN-ACK has a window of 0, as that of netfilter's SYNPROXY: a client that speaks first waits for the window that
//! the server's SYN-ACK is turned into, so that nothing of it is lost. Where the server speaks first its SYN-ACK comes a
//! second time, and is acknowledged from here.

use crate::{
    answer, atomic, count,
    extension::{Claimed, Held, Shifts},
    forward::{Target, nat},
    limits,
    maps::{GUARD, PACE, SERVICES, config},
    nexthop,
    packet::{Frame, Packet, destination, load8, load16, load32, opaque, source, store16, store32, sum},
    tail, witness,
};
use aya_ebpf::helpers::generated::{
    bpf_jiffies64, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use lb_common::{
    checksum,
    cookie::{self, Carried, Checked, NO_SCALE, SCALE, SLICE, Tuple},
    extension::{Begun, duty, scaled},
    header::{ETHERNET, IPV4, IPV6, ethertype, protocol},
    maps::programs,
    scratch::{Cookie, cookie as task},
    service::{Service, features},
    state::{ACK, RST, SYN},
    toa,
    verdict::Reason,
    witness::answer as first_answer,
};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const TIMESTAMPS: u8 = 8;
/// Bytes that options can have.
const MOST: usize = 40;
/// DF, network order.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
/// What a server is told of a client's window that is not known: little, and known with the client's next packet.
const SOME_WINDOW: u16 = 1024;

#[inline(always)]
fn jiffies() -> u64 {
    // SAFETY: reads one word.
    unsafe { bpf_jiffies64() }
}

/// One more SYN that begins a flow of a service with these features: whether it is to be answered with a cookie.
#[inline(always)]
pub fn are_sent(features: u32) -> bool {
    features & features::COOKIES != 0 && lb_cookies_sent(features) != 0
}

/// [`are_sent`] of a service that may send them: looked at once, not on each of the ways that lead here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_cookies_sent(features: u32) -> u64 {
    let (Some(guard), Some(pace)) = (GUARD.get_ptr(0), PACE.get_ptr_mut(0)) else { return 0 };
    let now = jiffies();
    // SAFETY: a word of a map value; a per-CPU value, and XDP programs do not interrupt each other on a CPU.
    let beyond = unsafe {
        let above = core::ptr::read_volatile(&raw const (*guard).cookies_above);
        (*pace).tick(now, config!(hz));
        (*pace).one_more_syn(now, config!(hz), above)
    };
    (beyond || features & features::COOKIES_ALWAYS != 0) as u64
}

/// Whether a packet of no flow may bring a cookie: some were sent that are still good.
#[inline(always)]
fn are_expected(features: u32) -> bool {
    features & features::COOKIES != 0 && lb_cookies_expected(features) != 0
}

/// [`are_expected`] of a service that may send them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_cookies_expected(features: u32) -> u64 {
    if features & features::COOKIES_ALWAYS != 0 {
        return 1;
    }
    let Some(guard) = GUARD.get_ptr(0) else { return 0 };
    // SAFETY: a map value.
    let sent = atomic::load(unsafe { &raw const (*guard).sent });
    (sent != 0 && jiffies().wrapping_sub(sent) < 2 * SLICE * config!(hz) as u64) as u64
}

/// Answers a SYN to a service (its index and record) with a cookie.
#[inline(always)]
pub fn answer<const V6: bool>(packet: &Packet<V6>, service: (u32, *mut Service), features: u32) -> Reason {
    let Some(scratch) = tail::scratch() else { return Reason::Internal };
    let (index, service) = service;
    scratch.service = index;
    // SAFETY: a map value.
    let clamp = unsafe { core::ptr::read_volatile(&raw const (*service).mss) };
    let most = if clamp == 0 { cookie::announced(V6) } else { clamp };
    let less = if features & features::PROXY != 0 {
        crate::proxy::bytes::<V6>() as u16
    } else if features & features::TOA != 0 {
        toa::len(V6) as u16
    } else {
        0
    };
    scratch.cookie.announced = most.saturating_sub(less) as u32;
    tail::call_cookie(packet, task::ANSWER)
}

/// A packet of no flow, neither SYN nor RST: goes on as its client's SYN if it brings a cookie of ours. None: it does
/// not.
#[inline(always)]
pub fn brought<const V6: bool>(packet: &Packet<V6>, features: u32) -> Option<Reason> {
    if packet.tcp_flags() & (ACK | RST | SYN) != ACK || !are_expected(features) {
        return None;
    }
    let (number, sequence) = (packet.acknowledged().wrapping_sub(1), packet.sequence().wrapping_sub(1));
    let scratch = tail::scratch()?;
    let (from, to) = (packet.source(), packet.destination());
    scratch.cookie.addresses = [from[0], from[1], to[0], to[1]];
    let found = lb_check_cookie(packet.ports(), sequence, number);
    if found < VALID {
        let event = if found == EXPIRED { Reason::CookieExpired } else { Reason::CookieInvalid };
        count::event(event);
        return None;
    }
    count::event(Reason::CookieValid);
    scratch.cookie.number = number;
    scratch.cookie.sequence = sequence;
    scratch.cookie.mss = (found - VALID) as u32 & 3;
    Some(tail::call_cookie(packet, task::BEGIN))
}

/// Whether the packet is a SYN that was made here, and the length of the frame as it came.
#[inline(always)]
pub fn made() -> Option<u32> {
    let made = lb_cookie_made();
    if made != 0 { Some(made as u32) } else { None }
}

/// [`made`]; 0 is none. One word for the verifier, which follows each way to it on through all that comes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_cookie_made() -> u64 {
    match tail::scratch() {
        Some(scratch) if scratch.cookie.task == task::MADE => scratch.cookie.bytes as u64,
        _ => 0,
    }
}

/// The sequence number, network order, of a RST to the client of such a SYN: he believes no other.
#[inline(always)]
pub fn reset_sequence() -> u32 {
    match tail::scratch() {
        Some(scratch) if scratch.cookie.task == task::MADE => scratch.cookie.number.wrapping_add(1).to_be(),
        _ => 0,
    }
}

/// What the record of a flow is filled with that begins with such a SYN.
#[inline(always)]
pub fn begin(claimed: &Claimed) {
    let Some(scratch) = tail::scratch() else { return };
    let this = &scratch.cookie;
    let begun = Begun {
        mss: this.mss as u8,
        scale: this.scale as u8,
        sack: this.sack != 0,
        stamps: this.stamps != 0,
        server_windows: 0,
        client_windows: 0,
    };
    let record = claimed.record;
    // SAFETY: the record is ours until it is published.
    unsafe {
        core::ptr::write_volatile(&raw mut (*record).client_first, this.sequence);
        let duties = atomic::load(&raw const (*record).duties);
        atomic::store(&raw mut (*record).duties, duties | duty::COOKIE | duty::WAITS | begun.duties());
        atomic::store(&raw mut (*record).note, this.number as u64 | (this.echo as u64) << 32);
    }
}

/// A client's packet, as it came, of a flow that began with a cookie. An error is what becomes of it; else it goes on.
#[inline(always)]
pub fn from_client<const V6: bool>(packet: &Packet<V6>, held: &Held, shifts: &Shifts) -> Result<(), Reason> {
    let begun = Begun::of(shifts.duties);
    if shifts.duties & duty::WAITS == 0 {
        return scale_window(packet, begun.client_windows);
    }
    // A RST ends what is there of it.
    if packet.tcp_flags() & (RST | SYN) != 0 {
        return Ok(());
    }
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    // SAFETY: a map value.
    let note = atomic::load(unsafe { &raw const (*held.record).note });
    scratch.cookie.number = note as u32;
    scratch.cookie.sequence = shifts.client_first;
    scratch.cookie.mss = begun.mss as u32;
    scratch.cookie.scale = begun.scale as u32;
    scratch.cookie.sack = begun.sack as u32;
    Err(tail::call_cookie(packet, task::AGAIN))
}

/// A server's packet, as it came, of a flow that began with a cookie. An error is what becomes of it; else it goes on
/// by these shifts.
#[inline(always)]
pub fn from_server<const V6: bool>(
    packet: &Packet<V6>,
    held: &Held,
    shifts: Shifts,
    target: &Target,
) -> Result<Shifts, Reason> {
    let flags = packet.tcp_flags();
    let begun = Begun::of(shifts.duties);
    let waits = shifts.duties & duty::WAITS != 0;
    if flags & (SYN | ACK) == SYN | ACK && !waits {
        if let Some(scratch) = tail::scratch() {
            scratch.toa = (shifts.duties & duty::TOA != 0) as u32;
            scratch.mtu = target.mtu();
        }
        return Err(tail::call_cookie(packet, task::ACKNOWLEDGE));
    }
    if !waits {
        scale_window(packet, begun.server_windows)?;
        return Ok(shifts);
    }
    // SAFETY: a map value.
    let note = atomic::load(unsafe { &raw const (*held.record).note });
    let (number, stamp) = (note as u32, (note >> 32) as u32);
    if flags & RST != 0 {
        let server_base = number.wrapping_add(1).wrapping_sub(packet.sequence());
        return Ok(Shifts { server_base, ..shifts });
    }
    if flags & (SYN | ACK) != SYN | ACK {
        // Of a connection of before on these ports. The client would have answered it so, and begun anew.
        return Err(answer::reset(packet, Reason::FlowReset));
    }
    witness::lb_witness(target.index, first_answer::ANSWERED);
    let opened = open(packet, held, shifts, (number, stamp))?;
    become_window(packet, begun)?;
    Ok(opened)
}

/// The server's numbers are known now.
#[inline(always)]
fn open<const V6: bool>(
    packet: &Packet<V6>,
    held: &Held,
    shifts: Shifts,
    (number, stamp): (u32, u32),
) -> Result<Shifts, Reason> {
    read_options(&packet.frame, packet.l4, packet.transport)?;
    let this = &tail::scratch().ok_or(Reason::Internal)?.cookie;
    let mut begun = Begun::of(shifts.duties);
    let clock = if begun.stamps && this.stamps != 0 { stamp.wrapping_sub(this.stamp) } else { 0 };
    if begun.scale != NO_SCALE {
        if this.scale == NO_SCALE as u32 {
            begun.client_windows = begun.scale as i8;
            begun.server_windows = -(SCALE as i8);
        } else {
            begun.server_windows = this.scale as i8 - SCALE as i8;
        }
    }
    let server_base = number.wrapping_sub(packet.sequence());
    let duties = shifts.duties & 0xffff_ffff & !duty::WAITS | begun.duties();
    let record = held.record;
    // SAFETY: a map value; each word is written whole, and the one that is asked first last.
    unsafe {
        let bases = shifts.client_base as u64 | (server_base as u64) << 32;
        atomic::store((&raw mut (*record).client_base).cast(), bases);
        let clocks = clock as u64 | (shifts.client_first as u64) << 32;
        atomic::store((&raw mut (*record).clock).cast(), clocks);
        atomic::store(&raw mut (*record).duties, duties);
    }
    Ok(Shifts { server_base, clock, duties, ..shifts })
}

/// A SYN-ACK becomes the segment that opens the window: what the client knows of it is taken out.
#[inline(always)]
fn become_window<const V6: bool>(packet: &Packet<V6>, begun: Begun) -> Result<(), Reason> {
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    let len = scratch.cookie.end as usize;
    let room = (&raw mut scratch.cookie.options).cast::<u8>();
    let mut delta = 0;
    for word in 0..MOST / 4 {
        delta = checksum::sub(delta, load32(room, word * 4));
    }
    let stamps = scratch.cookie.stamps != 0;
    for word in 0..MOST / 4 {
        let new = match word {
            0 if stamps => u32::from_ne_bytes([NOP, NOP, TIMESTAMPS, 10]),
            1 if stamps => scratch.cookie.stamp.to_be(),
            2 if stamps => scratch.cookie.echo.to_be(),
            _ => u32::from_ne_bytes([NOP; 4]),
        };
        let new = if word * 4 < len { new } else { 0 };
        store32(room, word * 4, new);
        delta = checksum::add(delta, new);
    }
    let transport = packet.transport;
    let (old, sequence) = (load32(transport, 4), packet.sequence().wrapping_add(1).to_be());
    delta = checksum::sub(checksum::add(delta, sequence), old);
    let scale = if begun.scale == NO_SCALE { 0 } else { -(SCALE as i8) };
    let old = load32(transport, 12);
    let [offset, flags, ..] = old.to_ne_bytes();
    let window = scaled(u16::from_be(load16(transport, 14)), scale).to_be_bytes();
    let word = u32::from_ne_bytes([offset, flags & !SYN, window[0], window[1]]);
    delta = checksum::sub(checksum::add(delta, word), old);
    let delta = opaque(delta);
    store32(transport, 4, sequence);
    store32(transport, 12, word);
    store16(transport, 16, checksum::update(load16(transport, 16), delta));
    let len = opaque(len as u64) as u32 & 0x3f;
    if len == 0 || len > MOST as u32 {
        return Ok(());
    }
    // Linux 6.1 keeps a copy on the stack that knows nothing of this comparison.
    let len = (opaque((len - 1) as u64) as u32 & 0x3f) + 1;
    // SAFETY: a per-CPU value; the length is at most the field's.
    if unsafe { bpf_xdp_store_bytes(packet.frame.ctx, packet.l4 as u32 + 20, room.cast(), len) } != 0 {
        return Err(Reason::Internal);
    }
    Ok(())
}

/// A window as its reader scales it.
#[inline(always)]
fn scale_window<const V6: bool>(packet: &Packet<V6>, by: i8) -> Result<(), Reason> {
    if by == 0 || packet.tcp_flags() & SYN != 0 {
        return Ok(());
    }
    let transport = packet.transport;
    let old = load16(transport, 14);
    let new = scaled(u16::from_be(old), by).to_be();
    store16(transport, 14, new);
    let delta = checksum::sub(checksum::add(0, new as u32), old as u32);
    store16(transport, 16, checksum::update(load16(transport, 16), delta));
    Ok(())
}

/// The tail's path.
#[inline(always)]
pub fn handle(frame: Frame) -> Result<u32, Reason> {
    let Some(scratch) = tail::scratch() else { return Err(Reason::Internal) };
    let (l3, l4) = (scratch.l3 as usize & 0x1f, scratch.l4 as usize & 0x7ff);
    if scratch.family == 6 { arrived::<true>(frame, l3, l4) } else { arrived::<false>(frame, l3, l4) }
}

/// The packet before it is rewritten. Numbers are in network order.
#[derive(Clone, Copy)]
struct Came {
    l3: usize,
    l4: usize,
    ports: u32,
    sequence: u32,
    acknowledged: u32,
    window: u16,
}

#[inline(always)]
fn arrived<const V6: bool>(frame: Frame, l3: usize, l4: usize) -> Result<u32, Reason> {
    let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
    let tcp = frame.at_dynamic(l4, 20).ok_or(Reason::Internal)?;
    let scratch = tail::scratch().ok_or(Reason::Internal)?;
    let (from, to) = (source::<V6>(ip), destination::<V6>(ip));
    scratch.cookie.addresses = [from[0], from[1], to[0], to[1]];
    let came = Came {
        l3,
        l4,
        ports: load32(tcp, 0),
        sequence: load32(tcp, 4),
        acknowledged: load32(tcp, 8),
        window: load16(tcp, 14),
    };
    let (mss, scale, sack) = (scratch.cookie.mss, scratch.cookie.scale, scratch.cookie.sack);
    read_options(&frame, l4, tcp)?;
    let this = &mut scratch.cookie;
    match this.task {
        task::ANSWER => {
            if lb_cookie_refused(scratch.service) != 0 {
                return Err(Reason::AccessDenied);
            }
            return offer::<V6>(frame, came, this);
        }
        task::ACKNOWLEDGE => return acknowledge::<V6>(frame, came, this),
        task::BEGIN => {
            let carried = if this.stamps != 0 {
                Carried::of(this.echo)
            } else {
                Carried { scale: NO_SCALE, sack: false }
            };
            (this.mss, this.scale, this.sack) = (mss, carried.scale as u32, carried.sack as u32);
        }
        _ => (this.mss, this.scale, this.sack) = (mss, scale, sack),
    }
    if this.stamps != 0 { make::<V6, 40>(frame, came) } else { make::<V6, 24>(frame, came) }
}

/// Whether a service's access list refuses the source of the packet whose addresses are in the scratch record: it gets no
/// cookie, and so no answer, as when its flow would have been refused.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_cookie_refused(service: u32) -> u64 {
    let (Some(scratch), Some(service)) = (tail::scratch(), SERVICES.get_ptr(service)) else { return 0 };
    let [first, second, ..] = scratch.cookie.addresses;
    scratch.client = nat::address([first, second]);
    limits::refuses(service) as u64
}

/// The SYN-ACK with the cookie.
#[inline(always)]
fn offer<const V6: bool>(frame: Frame, came: Came, this: &mut Cookie) -> Result<u32, Reason> {
    let said = if this.mss == 0 { cookie::mss_of(V6, 0) } else { this.mss as u16 };
    let sequence = u32::from_be(came.sequence);
    let number = lb_make_cookie(came.ports, sequence, cookie::mss_index(V6, said)) as u32;
    let now = jiffies();
    if let Some(guard) = GUARD.get_ptr_mut(0) {
        // SAFETY: a map value. Once a second is enough: the word is shared.
        let sent = unsafe { &raw mut (*guard).sent };
        if now.wrapping_sub(atomic::load(sent)) >= config!(hz) as u64 {
            atomic::store(sent, now);
        }
    }
    let carried = Carried { scale: this.scale as u8, sack: this.sack != 0 };
    // Back to the client: our stamp, and the echo of his.
    (this.echo, this.stamp) = (this.stamp, carried.stamp(now as u32));
    let reply = Reply {
        sequence: number.to_be(),
        acknowledged: sequence.wrapping_add(1).to_be(),
        flags: SYN | ACK,
        window: 0,
        reason: Reason::CookieSent,
    };
    if this.stamps != 0 { turn::<V6, 40>(frame, came, reply) } else { turn::<V6, 24>(frame, came, reply) }
}

/// The acknowledgement of a server's SYN-ACK.
#[inline(always)]
fn acknowledge<const V6: bool>(frame: Frame, came: Came, this: &mut Cookie) -> Result<u32, Reason> {
    (this.echo, this.stamp) = (this.stamp, this.echo);
    let reply = Reply {
        sequence: came.acknowledged,
        acknowledged: u32::from_be(came.sequence).wrapping_add(1).to_be(),
        flags: ACK,
        window: SOME_WINDOW.to_be(),
        reason: Reason::CookieAcknowledged,
    };
    let action = if this.stamps != 0 {
        turn::<V6, 32>(frame, came, reply)?
    } else {
        turn::<V6, 20>(frame, came, reply)?
    };
    if tail::scratch().is_some_and(|scratch| scratch.toa != 0) {
        // It completes the handshake.
        return Ok(crate::toa::call::<V6>(&Frame::new(frame.ctx), if V6 { IPV6 } else { IPV4 }, action));
    }
    Ok(action)
}

/// What is answered, as it stands in a segment.
#[derive(Clone, Copy)]
struct Reply {
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    reason: Reason,
}

/// Turns the frame into an answer whose TCP header has `LEN` bytes, and sends it back.
#[inline(always)]
fn turn<const V6: bool, const LEN: usize>(frame: Frame, came: Came, reply: Reply) -> Result<u32, Reason> {
    let header = if V6 { IPV6 } else { IPV4 };
    let back = nexthop::back(&frame, came.l3).ok_or(Reason::Internal)?;
    let bytes = frame.len();
    let cut = (came.l3 + header + LEN) as i32 - bytes as i32;
    // SAFETY: the kernel's helper; pointers are taken anew below.
    if unsafe { bpf_xdp_adjust_tail(frame.ctx, cut) } != 0 {
        return Err(Reason::NoRoomInFrame);
    }
    if came.l3 != ETHERNET {
        // SAFETY: as above; tags come back with the addresses.
        if unsafe { bpf_xdp_adjust_head(frame.ctx, came.l3 as i32 - ETHERNET as i32) } != 0 {
            return Err(Reason::NoRoomInFrame);
        }
    }
    let this = &tail::scratch().ok_or(Reason::Internal)?.cookie;
    let [s0, s1, d0, d1] = this.addresses;
    let (from, to) = ([d0, d1], [s0, s1]);
    let frame = Frame::new(frame.ctx);
    let new = frame.at(0, ETHERNET + header + LEN).ok_or(Reason::Internal)?;
    store16(new, 12, if V6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be());
    answer::write_ip::<V6>(new, from, to, protocol::TCP, LEN, DONT_FRAGMENT);
    let at = ETHERNET + header;
    let [w0, w1] = reply.window.to_ne_bytes();
    let words = [came.ports.rotate_left(16), reply.sequence, reply.acknowledged];
    let word = u32::from_ne_bytes([(LEN as u8 / 4) << 4, reply.flags, w0, w1]);
    let mut total = (LEN as u16).to_be() as u64 + (protocol::TCP as u16).to_be() as u64;
    total = sum::<V6>(from, sum::<V6>(to, total));
    for (i, word) in words.into_iter().enumerate() {
        store32(new, at + i * 4, word);
        total = checksum::add(total, word);
    }
    store32(new, at + 12, word);
    store32(new, at + 16, 0);
    total = checksum::add(total, word);
    let scale = if this.scale == NO_SCALE as u32 { None } else { Some(SCALE) };
    let options = options::<LEN>(this.announced as u16, scale, this);
    // The index is a constant in each turn of the unrolled loop, which the verifier sees.
    #[allow(clippy::needless_range_loop)]
    for i in 0..(LEN - 20) / 4 {
        store32(new, at + 20 + i * 4, options[i]);
        total = checksum::add(total, options[i]);
    }
    store16(new, at + 16, !checksum::fold(total));
    let action = nexthop::send::<V6>(frame, ETHERNET, back)?;
    count::reason(reply.reason, bytes);
    Ok(action)
}

/// The words of the options of a header of `LEN` bytes, laid out as Linux does: of a SYN the MSS, then whether selective
/// acknowledgements are permitted, timestamps and window scale; of an ACK timestamps.
#[inline(always)]
fn options<const LEN: usize>(mss: u16, scale: Option<u8>, this: &Cookie) -> [u32; 5] {
    let [m0, m1] = mss.to_be_bytes();
    let first = if this.sack != 0 { [SACK_PERMITTED, 2] } else { [NOP, NOP] };
    let last = match scale {
        Some(scale) => [NOP, WINDOW_SCALE, 3, scale],
        None => [NOP; 4],
    };
    let stamps = [this.stamp.to_be(), this.echo.to_be()];
    if LEN == 32 {
        return [u32::from_ne_bytes([NOP, NOP, TIMESTAMPS, 10]), stamps[0], stamps[1], 0, 0];
    }
    [
        u32::from_ne_bytes([MSS, 4, m0, m1]),
        u32::from_ne_bytes([first[0], first[1], TIMESTAMPS, 10]),
        stamps[0],
        stamps[1],
        u32::from_ne_bytes(last),
    ]
}

/// The client's SYN, as it must have been, in place of his packet; its flow is looked for, or begins, as with any.
#[inline(always)]
fn make<const V6: bool, const LEN: usize>(frame: Frame, came: Came) -> Result<u32, Reason> {
    let Came { l3, l4, ports, window, .. } = came;
    let cut = (l4 + LEN) as i32 - frame.len() as i32;
    // SAFETY: the kernel's helper; pointers are taken anew below.
    if unsafe { bpf_xdp_adjust_tail(frame.ctx, cut) } != 0 {
        return Err(Reason::NoRoomInFrame);
    }
    let this = &mut tail::scratch().ok_or(Reason::Internal)?.cookie;
    let frame = Frame::new(frame.ctx);
    let ip = frame.at_dynamic(l3, if V6 { IPV6 } else { IPV4 }).ok_or(Reason::Internal)?;
    let len = (l4 - l3 + LEN) as u16;
    if V6 {
        store16(ip, 4, (len - IPV6 as u16).to_be());
    } else {
        let old = load16(ip, 2);
        store16(ip, 2, len.to_be());
        let delta = checksum::sub(checksum::add(0, len.to_be() as u32), old as u32);
        store16(ip, 10, checksum::update(load16(ip, 10), delta));
    }
    let mut total = (LEN as u16).to_be() as u64 + (protocol::TCP as u16).to_be() as u64;
    total = sum::<V6>(source::<V6>(ip), sum::<V6>(destination::<V6>(ip), total));
    let tcp = frame.at_dynamic(l4, LEN).ok_or(Reason::Internal)?;
    // The window of a SYN is not scaled (RFC 7323, section 2.2).
    let scale = if this.scale == NO_SCALE as u32 { 0 } else { this.scale as i8 };
    let [w0, w1] = scaled(u16::from_be(window), scale).to_be_bytes();
    let words = [ports, this.sequence.to_be(), 0, u32::from_ne_bytes([(LEN as u8 / 4) << 4, SYN, w0, w1]), 0];
    for (i, word) in words.into_iter().enumerate() {
        store32(tcp, i * 4, word);
        total = checksum::add(total, word);
    }
    // To the server the client's own stamp, and nothing that it echoes yet.
    let said = Cookie { echo: 0, ..*this };
    let scale = if this.scale == NO_SCALE as u32 { None } else { Some(this.scale as u8) };
    let options = options::<LEN>(cookie::mss_of(V6, this.mss), scale, &said);
    // The index is a constant in each turn of the unrolled loop, which the verifier sees.
    #[allow(clippy::needless_range_loop)]
    for i in 0..(LEN - 20) / 4 {
        store32(tcp, 20 + i * 4, options[i]);
        total = checksum::add(total, options[i]);
    }
    store16(tcp, 16, !checksum::fold(total));
    this.task = task::MADE;
    Err(tail::call(&frame, programs::NEW))
}

/// Reads TCP's options into the scratch record: what the SYN says, or the timestamps of any segment.
#[inline(always)]
fn read_options(frame: &Frame, l4: usize, tcp: *const u8) -> Result<(), Reason> {
    let this: *mut Cookie = &raw mut tail::scratch().ok_or(Reason::Internal)?.cookie;
    let len = (load8(tcp, 12) >> 4) as usize * 4;
    // SAFETY: a per-CPU value; the length is at most that of the field.
    unsafe {
        (*this).mss = 0;
        (*this).scale = NO_SCALE as u32;
        (*this).sack = 0;
        (*this).stamps = 0;
        (*this).stamp = 0;
        (*this).echo = 0;
        (*this).at = 0;
        let options = (&raw mut (*this).options).cast::<u8>();
        for word in 0..MOST / 4 {
            store32(options, word * 4, 0);
        }
        let len = opaque(len.wrapping_sub(20) as u64) as u32 & 0x3f;
        (*this).end = len;
        if len == 0 {
            return Ok(());
        }
        if len > MOST as u32 {
            return Err(Reason::BadTransport);
        }
        // As above: 6.1 has to see the bounds where the helper is called.
        let len = (opaque((len - 1) as u64) as u32 & 0x3f) + 1;
        if bpf_xdp_load_bytes(frame.ctx, l4 as u32 + 20, options.cast(), len) != 0 {
            return Err(Reason::BadTransport);
        }
        lb_read_options(len);
    }
    Ok(())
}

/// Walks the options in the scratch record. A global function: its loop is verified once, and carries nothing but what
/// lies in the record.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_read_options(end: u32) -> u64 {
    let Some(scratch) = tail::scratch() else { return 0 };
    let this: *mut Cookie = &raw mut scratch.cookie;
    let options = this.cast::<u8>().wrapping_add(core::mem::offset_of!(Cookie, options));
    // SAFETY: fields of a per-CPU value; an offset is below 64, and what is read there ends before 76.
    unsafe {
        for _ in 0..MOST {
            let at = core::ptr::read_volatile(&raw const (*this).at) & 0x3f;
            if at >= end {
                break;
            }
            let option = options.wrapping_add(at as usize);
            let kind = load8(option, 0);
            if kind == END {
                break;
            }
            if kind == NOP {
                core::ptr::write_volatile(&raw mut (*this).at, at + 1);
                continue;
            }
            let len = load8(option, 1) as u32;
            if len < 2 || at + len > end {
                break;
            }
            if kind == MSS && len == 4 {
                (*this).mss = u16::from_be(load16(option, 2)) as u32;
            } else if kind == WINDOW_SCALE && len == 3 {
                // RFC 7323, section 2.3.
                let scale = load8(option, 2) as u32;
                (*this).scale = if scale > 14 { 14 } else { scale };
            } else if kind == SACK_PERMITTED && len == 2 {
                (*this).sack = 1;
            } else if kind == TIMESTAMPS && len == 10 {
                (*this).stamps = 1;
                (*this).stamp = u32::from_be(load32(option, 2));
                (*this).echo = u32::from_be(load32(option, 6));
            }
            core::ptr::write_volatile(&raw mut (*this).at, at + len);
        }
    }
    0
}

/// The key, and the slice that is now.
#[inline(always)]
fn key_and_slice() -> Option<([u64; 2], u32)> {
    let guard = GUARD.get_ptr(0)?;
    // SAFETY: a map value.
    let (key, epoch) = unsafe {
        (
            [atomic::load(&raw const (*guard).key[0]), atomic::load(&raw const (*guard).key[1])],
            atomic::load(&raw const (*guard).epoch),
        )
    };
    let slice = SLICE * config!(hz) as u64;
    Some((key, jiffies().wrapping_sub(epoch).checked_div(slice).unwrap_or(0) as u32))
}

/// What a cookie of the packet whose addresses are in the scratch record is bound to.
#[inline(always)]
fn tuple(ports: u32, sequence: u32) -> Option<Tuple> {
    let [s0, s1, d0, d1] = tail::scratch()?.cookie.addresses;
    Some(Tuple { source: [s0, s1], destination: [d0, d1], ports, sequence })
}

/// [`cookie::make`], as a global function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_make_cookie(ports: u32, sequence: u32, mss: u32) -> u64 {
    let (Some((key, slice)), Some(tuple)) = (key_and_slice(), tuple(ports, sequence)) else { return 0 };
    cookie::make(key, &tuple, slice, mss) as u64
}

const EXPIRED: u64 = 1;
/// And what is above is the MSS.
const VALID: u64 = 2;

/// [`cookie::check`], as a global function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_check_cookie(ports: u32, sequence: u32, number: u32) -> u64 {
    let (Some((key, slice)), Some(tuple)) = (key_and_slice(), tuple(ports, sequence)) else { return 0 };
    match cookie::check(key, &tuple, slice, number) {
        Checked::Valid(mss) => VALID + (mss & 3) as u64,
        Checked::Expired => EXPIRED,
        Checked::Invalid => 0,
    }
}
