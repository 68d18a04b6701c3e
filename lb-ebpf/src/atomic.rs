//! Atomic words in maps. `core::sync::atomic` does not work on this target (it has no atomic compare-and-swap
//! there); the compiler's intrinsics do, with `-C target-cpu=v3`.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Reads a word that others write: once, and whole.
#[inline(always)]
pub fn load(word: *const u64) -> u64 {
    // SAFETY: callers pass aligned words of map values, which outlive the program's run.
    unsafe { core::ptr::read_volatile(word) }
}

/// Writes a word that others read: once, and whole.
#[inline(always)]
pub fn store(word: *mut u64, new: u64) {
    // SAFETY: as for `load`.
    unsafe { core::ptr::write_volatile(word, new) }
}

/// Replaces `old` by `new`; false when the word held something else.
#[inline(always)]
pub fn exchange(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: as for `load`.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new).1 }
}

/// Adds and returns what was there.
#[inline(always)]
pub fn fetch_add(word: *mut u64, n: u64) -> u64 {
    // SAFETY: as for `load`.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, n) }
}
