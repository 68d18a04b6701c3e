//! Counting: every frame ends in exactly one reason or at its destination.

use crate::maps::{REASONS, TRAFFIC};
use lb_common::verdict::Reason;

/// Counts a reason.
#[inline(always)]
pub fn reason(reason: Reason, bytes: u32) {
    if let Some(count) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU value; only this CPU writes it, and XDP programs do not interrupt each other.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes as u64;
        }
    }
}

/// Counts the reason of a number.
#[inline(always)]
pub fn number(reason: u32, bytes: u32) {
    if let Some(count) = REASONS.get_ptr_mut(reason) {
        // SAFETY: as in `reason`.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes as u64;
        }
    }
}

/// Counts the event of a number.
#[inline(always)]
pub fn event_number(event: u32) {
    number(event, 0);
}

/// Counts something that happened on a frame's way.
#[inline(always)]
pub fn event(event: Reason) {
    reason(event, 0);
}

/// Counts a forwarded frame at its destination.
#[inline(always)]
pub fn forwarded(destination: u32, bytes: u32, out: bool) {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(destination) {
        // SAFETY: as in `reason`.
        unsafe {
            if out {
                (*traffic).packets_out += 1;
                (*traffic).bytes_out += bytes as u64;
            } else {
                (*traffic).packets_in += 1;
                (*traffic).bytes_in += bytes as u64;
            }
        }
    }
}
