//! What a new flow must meet before a server is chosen: access list, new flows per second. And the limit of packets
//! per second of a destination.

use crate::{
    atomic,
    maps::{ACL4, ACL6, RATES, SERVICES, config},
    tail,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::service::{ACL_ALLOW, ACL_DENY, ACL_LIST_BITS, Service, acl_key_v4, acl_key_v6, features};

/// Whether a service's access list, if it has one, refuses the client of the scratch record.
#[inline(always)]
pub fn refuses(service: *const Service) -> bool {
    // SAFETY: a map value.
    let (features, list) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*service).features),
            core::ptr::read_volatile(&raw const (*service).acl),
        )
    };
    if features & features::ACL == 0 {
        return false;
    }
    let access = lb_access(list as u32) as u32;
    access == ACL_DENY || (access != ACL_ALLOW && features & features::ACL_REFUSES_OTHERS != 0)
}

/// What the access list says of the client of the scratch record; 0: nothing.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_access(list: u32) -> u64 {
    let Some(scratch) = tail::scratch() else { return 0 };
    let found = if scratch.family == 6 {
        ACL6.get(&Key::new(ACL_LIST_BITS + 128, acl_key_v6(list as u16, scratch.client.v6())))
    } else {
        ACL4.get(&Key::new(ACL_LIST_BITS + 32, acl_key_v4(list as u16, scratch.client.v4())))
    };
    found.map_or(0, |access| *access as u64)
}

/// Whether one more fits into this second. `word` is second and number; several CPUs may overdo it by one each.
#[inline(always)]
fn fits(word: *mut u64, limit: u32) -> bool {
    // SAFETY: reads one word.
    let jiffies = unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() };
    let hz = config!(hz) as u64;
    let second = jiffies.checked_div(hz).unwrap_or(jiffies) & 0xffff_ffff;
    let old = atomic::load(word);
    if old >> 32 != second {
        // Who loses counts into the second that another CPU began.
        if atomic::exchange(word, old, second << 32 | 1) {
            return limit != 0;
        }
    }
    (atomic::fetch_add(word, 1) as u32) < limit
}

/// Whether a service (its group's leader) may take one more flow in this second.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_new_flow_fits(leader: u32, limit: u32) -> u64 {
    match SERVICES.get_ptr_mut(leader) {
        // SAFETY: a map value.
        Some(service) => fits(unsafe { &raw mut (*service).limit }, limit) as u64,
        None => 0,
    }
}

/// Whether a destination may be sent one more packet in this second.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_packet_fits(destination: u32) -> u64 {
    let Some(rate) = RATES.get_ptr_mut(destination) else { return 1 };
    // SAFETY: a map value.
    let limit = unsafe { core::ptr::read_volatile(&raw const (*rate).limit) };
    // SAFETY: as above.
    (limit == 0 || fits(unsafe { &raw mut (*rate).word }, limit)) as u64
}
