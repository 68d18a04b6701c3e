//! An array map in the agent's memory. The data plane reads and writes the same bytes at the same time, so
//! there are no references to records: words are loaded and stored atomically, one by one.

use super::Error;
use std::{
    marker::PhantomData,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
};

/// An mmapable array of `T`, or ordinary zeroed memory that looks like one. Indices beyond the end panic.
#[derive(Debug)]
pub struct Mapped<T> {
    base: NonNull<u8>,
    len: u32,
    bytes: usize,
    elements: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel anyway; every access is an atomic load or store of a word.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mapped<T> {}

impl<T: aya::Pod> Mapped<T> {
    /// Maps a BPF array of `len` elements, which must have BPF_F_MMAPABLE (Linux 5.5).
    pub fn of_map(name: &'static str, fd: BorrowedFd<'_>, len: u32) -> Result<Self, Error> {
        Self::map(len, libc::MAP_SHARED, fd.as_raw_fd()).map_err(|source| Error::Os {
            what: format!("map the table {name} into memory ({len} x {} bytes)", size_of::<T>()),
            reason: source,
        })
    }

    /// Zeroed memory of this process: for tests without a kernel's map.
    pub fn in_memory(len: u32) -> Result<Self, Error> {
        Self::map(len, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1).map_err(Error::os("map memory"))
    }

    fn map(len: u32, flags: i32, fd: i32) -> std::io::Result<Self> {
        // The kernel rounds elements up to 8 bytes and the array up to pages; all our records are whole words.
        const { assert!(size_of::<T>().is_multiple_of(8) && size_of::<T>() > 0) };
        let bytes = (len as usize * size_of::<T>()).next_multiple_of(page_size()).max(page_size());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(std::io::Error::last_os_error)?;
        Ok(Self { base, len, bytes, elements: PhantomData })
    }

    /// How many elements there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `size` aligned bytes inside an element.
    fn at(&self, index: u32, offset: usize, size: usize) -> *mut u8 {
        assert!(index < self.len, "element {index} of {}", self.len);
        assert!(offset.is_multiple_of(size) && offset + size <= size_of::<T>());
        // SAFETY: `index < len` and `offset + size <= size_of::<T>()`, so this stays inside the mapping, which
        // has `len * size_of::<T>()` bytes at least.
        unsafe { self.base.as_ptr().add(index as usize * size_of::<T>() + offset) }
    }

    /// The 64-bit word at a byte offset of an element.
    pub fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        // SAFETY: in bounds and aligned to 8 by `at` (elements are whole words, the mapping begins a page); it
        // lives as long as `self`; the kernel's side uses atomic instructions or plain aligned loads and stores
        // of this size, so the word never tears.
        unsafe { AtomicU64::from_ptr(self.at(index, offset, 8).cast()) }
    }

    /// The 32-bit number at a byte offset of an element.
    pub fn half(&self, index: u32, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `word`, aligned to 4.
        unsafe { AtomicU32::from_ptr(self.at(index, offset, 4).cast()) }
    }

    /// The 16-bit number at a byte offset of an element.
    pub fn quarter(&self, index: u32, offset: usize) -> &AtomicU16 {
        // SAFETY: as for `word`, aligned to 2.
        unsafe { AtomicU16::from_ptr(self.at(index, offset, 2).cast()) }
    }

    /// A copy of an element. Each word is whole; the words may be of different moments.
    pub fn get(&self, index: u32) -> T {
        let mut copy = MaybeUninit::<T>::uninit();
        for i in 0..size_of::<T>() / 8 {
            let word = self.word(index, i * 8).load(Relaxed);
            // SAFETY: `i * 8 + 8 <= size_of::<T>()`; `write_unaligned` needs no alignment of `copy`.
            unsafe { copy.as_mut_ptr().cast::<u64>().add(i).write_unaligned(word) };
        }
        // SAFETY: every byte was written, and `Pod` says that any bytes are a `T`.
        unsafe { copy.assume_init() }
    }

    /// Writes the words in which an element differs from `value`, those in `skip` (bit n is word n) left alone,
    /// the last word first and word 0 at the end, so that a word 0 that says "in use" is published with the rest
    /// in place. Each store is atomic; the element as a whole is not. Returns how many words were written.
    pub fn update(&self, index: u32, value: &T, skip: u64) -> u32 {
        let mut writes = 0;
        for i in (0..size_of::<T>() / 8).rev() {
            // SAFETY: `i * 8 + 8 <= size_of::<T>()`, and `Pod` records have no padding.
            let new = unsafe { (value as *const T).cast::<u64>().add(i).read_unaligned() };
            let word = self.word(index, i * 8);
            if skip & (1 << i) == 0 && word.load(Relaxed) != new {
                word.store(new, std::sync::atomic::Ordering::Release);
                writes += 1;
            }
        }
        writes
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `map` with this length, and no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn page_size() -> usize {
    // SAFETY: asks for a constant.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{address::Address, destination::Destination};

    #[test]
    fn an_update_writes_only_what_differs() {
        let mapped = Mapped::<Destination>::in_memory(3).unwrap();
        let mut d = Destination { word: 7, address: Address::from_v4([10, 0, 0, 1]), ..Default::default() };
        assert_eq!(mapped.update(2, &d, 0), 2, "the word and the word that holds 10.0.0.1");
        assert_eq!(mapped.update(2, &d, 0), 0, "nothing changed");
        assert_eq!(mapped.get(2), d);
        assert_eq!(mapped.get(1), Destination::default());
        d.word = 8;
        assert_eq!(mapped.update(2, &d, 1), 0, "word 0 is skipped");
        assert_eq!(mapped.update(2, &d, 0), 1);
    }

    #[test]
    #[should_panic(expected = "element 3 of 3")]
    fn an_element_beyond_the_end_is_not_read() {
        Mapped::<Destination>::in_memory(3).unwrap().get(3);
    }
}
