//! Leasing a local port for a FULLNAT flow: a bounded number of probes from a place that depends on the flow
//! and the CPU, each one compare-and-exchange. No free lists, no locks; an expired lease is free. A flow that begins
//! anew on its ports gets the port that it has just given back, if nobody was faster: another client's SYN there
//! would meet the TIME_WAIT of a real server, which answers a SYN with older timestamps by an ACK (RFC 9293, section
//! 3.6.1; RFC 6191), and the client would have to send its SYN again. Where all that were tried are taken, the one that
//! is least worth keeping makes room, in the order of the connection table: a flood of SYNs would else hold every port.

use crate::{
    atomic,
    connection::{self, Place},
    forward::fullnat::word_of,
    load::lb_recount,
    maps::{LEASES, POOL},
};
use lb_common::{
    connection::Value,
    lease::{PROBES, lease_index, of_lease_index},
};

/// Takes a free (local address, port) and fills its line with the client of the scratch record. Returns its
/// index.
#[inline(always)]
pub fn take<const V6: bool>(service: u32, place: &Place, word: Value, now: u16) -> Option<u32> {
    take_of::<V6>(service, place, word, now, 0)
}

/// As [`take`], of one local address.
#[inline(always)]
pub fn take_at<const V6: bool>(
    service: u32,
    place: &Place,
    word: Value,
    now: u16,
    address: u32,
) -> Option<u32> {
    take_of::<V6>(service, place, word, now, address + 1)
}

/// `only`: the number of the only local address plus one, or 0.
#[inline(always)]
fn take_of<const V6: bool>(service: u32, place: &Place, word: Value, now: u16, only: u32) -> Option<u32> {
    crate::tail::scratch()?.cell = only;
    let family = if V6 { 6 } else { 4 };
    let index = lb_take_lease(service, place.identity, word.0, now as u32, family);
    if index == 0 { None } else { Some(index as u32 - 1) }
}

/// [`take_of`], as a global function: its loop is verified once. The scratch record's `cell` names the only address. The
/// index plus one, or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_take_lease(service: u32, identity: u64, word: u64, now: u32, family: u32) -> u64 {
    let now = now as u16;
    let Some(client) = crate::tail::scratch() else { return 0 };
    let Some(service) = crate::flow::service(service) else { return 0 };
    // SAFETY: a map value.
    let (first, len) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).pool_first) as u32,
            core::ptr::read_volatile(&raw const (*service).pool_len) as u32,
        )
    };
    if len == 0 {
        return 0;
    }
    // SAFETY: takes no arguments.
    let cpu = unsafe { aya_ebpf::helpers::generated::bpf_get_smp_processor_id() };
    // The upper half: flows of one client differ in their identities' upper bits only, which a product carries
    // upwards, so the lower half would begin them all at a few places.
    let mut probe = (crate::maps::keys().first(identity) >> 32) as u32 ^ cpu.wrapping_mul(0x9e37_79b1);
    let before = client.before;
    client.victim = u64::MAX;
    for n in 0..PROBES + 1 {
        let (mut address, mut port) = of_lease_index(before.wrapping_sub(1));
        if n == 0 {
            if before == 0 || address.wrapping_sub(first) >= len {
                continue;
            }
        } else {
            probe = probe.wrapping_mul(0x2c1b_3c6d).wrapping_add(0x297a_2d39);
            address = first + (probe >> 24) % len;
            // Read here: on the stack there is no room for it under lb_new (Linux 6.1).
            // SAFETY: a field of a map value.
            let only = unsafe { core::ptr::read_volatile(&raw const client.cell) };
            if only != 0 {
                address = only - 1;
            }
        }
        let Some(pool) = POOL.get_ptr(address & 0xff) else { continue };
        // SAFETY: a map value.
        let (low, ports, of) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*pool).first_port),
                core::ptr::read_volatile(&raw const (*pool).ports),
                core::ptr::read_volatile(&raw const (*pool).family),
            )
        };
        if ports == 0 || of as u32 != family {
            continue;
        }
        if n != 0 {
            port = low.wrapping_add((((probe & 0xff_ffff) as u64 * ports as u64) >> 24) as u16);
        } else if port.wrapping_sub(low) >= ports {
            continue;
        }
        let index = lease_index(address & 0xff, port);
        let Some(line) = LEASES.get_ptr_mut(index) else { continue };
        let old = Value(atomic::load(word_of(line)));
        let cost = connection::cost(old, now);
        if cost > FREE {
            let this = (cost as u64) << 32 | index as u64;
            if this < client.victim {
                client.victim = this;
            }
            continue;
        }
        if lb_claim_lease(index, old.0, identity, word) != 0 {
            return index as u64 + 1;
        }
    }
    let (cost, index) = ((client.victim >> 32) as u32, client.victim as u32);
    // Without room for the flow itself nobody need go.
    if cost == connection::NEVER || connection::lb_is_full(identity, now as u32, family) != 0 {
        return 0;
    }
    let Some(line) = LEASES.get_ptr_mut(index) else { return 0 };
    let old = atomic::load(word_of(line));
    // Established meanwhile, it is no victim any more.
    if connection::cost(Value(old), now) > cost || lb_claim_lease(index, old, identity, word) == 0 {
        return 0;
    }
    connection::evicted(cost);
    index as u64 + 1
}

/// The highest cost of a lease that nobody holds: empty or expired.
const FREE: u32 = 1;

/// Takes a lease whose word is `old`, unless another CPU was faster (0), and fills its line.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_claim_lease(index: u32, old: u64, identity: u64, word: u64) -> u64 {
    let (Some(client), Some(line)) = (crate::tail::scratch(), LEASES.get_ptr_mut(index)) else { return 0 };
    if !atomic::exchange(word_of(line), old, Value::BUSY.0) {
        return 0;
    }
    if old != 0 {
        lb_recount(old, 0);
    }
    // SAFETY: the line is ours (BUSY); readers look at the word again after reading the rest.
    unsafe {
        atomic::store(&raw mut (*line).owner, identity);
        core::ptr::write_volatile(&raw mut (*line).client, client.client);
        core::ptr::write_volatile(&raw mut (*line).ports, client.ports);
        core::ptr::write_volatile(&raw mut (*line).hop, client.hop);
        atomic::store(&raw mut (*line).client_destination, client.client_destination);
        atomic::store(&raw mut (*line).client_source, client.client_source);
        core::ptr::write_volatile(&raw mut (*line).client_ifindex, client.client_ifindex);
        core::ptr::write_volatile(&raw mut (*line).extension, 0);
    }
    atomic::store(word_of(line), word);
    lb_recount(0, word);
    1
}

/// Gives a lease back that no entry names.
#[inline(always)]
pub fn give_back(index: u32, word: Value) {
    if let Some(line) = LEASES.get_ptr_mut(index) {
        if atomic::exchange(word_of(line), word.0, 0) {
            lb_recount(word.0, 0);
        }
    }
}
