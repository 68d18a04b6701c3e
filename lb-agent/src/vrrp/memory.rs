//! What the agent leaves to its successor: for each instance the role, and until when it holds. A file in the
//! runtime directory, mapped into memory, so that the VRRP thread writes it with every advertisement without a
//! system call, and so that what a killed agent wrote last is there.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::time::{ClockId, clock_gettime};

/// The mapped file.
pub struct Memory {
    map: NonNull<AtomicU64>,
}

// SAFETY: the mapping is shared memory of atomics; which thread uses it does not matter.
unsafe impl Send for Memory {}

/// One instance's place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(usize);

impl Memory {
    /// Opens the file, made if it is not there.
    ///
    /// # Errors
    /// A file that cannot be made or mapped.
    pub fn open(path: &Path) -> Result<Memory> {
        let what = || format!("map {}", path.display());
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(what)?;
        file.set_len(SIZE as u64).with_context(what)?;
        let size = NonZeroUsize::new(SIZE).expect("not zero");
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping of a file of that length; nobody shortens it.
        let map = unsafe { mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, &file, 0) };
        let memory = Memory { map: map.with_context(what)?.cast() };
        if memory.word(0).swap(MAGIC, Ordering::AcqRel) != MAGIC {
            (1..WORDS).for_each(|at| memory.word(at).store(0, Ordering::Release));
        }
        Ok(memory)
    }

    /// Until when the last run was master of the instance; None: it was not, or that is over.
    pub fn lease(&self, instance: &str) -> Option<Instant> {
        let place = self.find(instance)?;
        let until = Duration::from_nanos(self.word(place.0 + NAME_WORDS).load(Ordering::Acquire));
        let left = until.checked_sub(monotonic().ok()?)?;
        // Longer than any lease: a clock that began anew, at a reboot that kept the file.
        (left < LONGEST).then(|| Instant::now() + left)
    }

    /// The place of an instance; None: there is no room for more.
    pub fn place(&self, instance: &str) -> Option<Place> {
        if let Some(place) = self.find(instance) {
            return Some(place);
        }
        let free = Self::places().find(|place| self.word(place.0).load(Ordering::Acquire) == 0)?;
        self.word(free.0 + NAME_WORDS).store(0, Ordering::Release);
        for (at, word) in name(instance).into_iter().enumerate() {
            self.word(free.0 + at).store(word, Ordering::Release);
        }
        Some(free)
    }

    /// This director is master until then; None: it is not.
    pub fn remember(&self, place: Place, until: Option<Instant>) {
        let until =
            until.and_then(|until| Some(monotonic().ok()? + until.saturating_duration_since(Instant::now())));
        let nanoseconds = until.map_or(0, |until| until.as_nanos() as u64);
        self.word(place.0 + NAME_WORDS).store(nanoseconds, Ordering::Release);
    }

    /// Instances that are no more have no place.
    pub fn forget_others(&self, keep: impl Fn(&str) -> bool) {
        for place in Self::places() {
            let bytes: Vec<u8> = (0..NAME_WORDS)
                .flat_map(|at| self.word(place.0 + at).load(Ordering::Acquire).to_ne_bytes())
                .take_while(|byte| *byte != 0)
                .collect();
            if !bytes.is_empty() && !std::str::from_utf8(&bytes).is_ok_and(&keep) {
                (0..=NAME_WORDS).for_each(|at| self.word(place.0 + at).store(0, Ordering::Release));
            }
        }
    }

    fn find(&self, instance: &str) -> Option<Place> {
        let name = name(instance);
        Self::places().find(|place| {
            name.iter().enumerate().all(|(at, word)| self.word(place.0 + at).load(Ordering::Acquire) == *word)
        })
    }

    fn places() -> impl Iterator<Item = Place> {
        (0..PLACES).map(|nth| Place(1 + nth * (NAME_WORDS + 1)))
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < WORDS);
        // SAFETY: within the mapping, which is aligned to a page and lives as long as `self`.
        unsafe { self.map.add(at).as_ref() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`, which nobody uses any more.
        let _ = unsafe { munmap(self.map.cast(), SIZE) };
    }
}

/// A name's bytes, and zeros: names have at most 63.
fn name(instance: &str) -> [u64; NAME_WORDS] {
    let mut bytes = [0; NAME_WORDS * 8];
    bytes.iter_mut().zip(instance.bytes().take(63)).for_each(|(to, from)| *to = from);
    let mut words = [0; NAME_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
    }
    words
}

/// Goes on over restarts of the agent, begins anew with the kernel; `Instant` is the same clock.
fn monotonic() -> io::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?))
}

/// A file of this layout: "lbvrrp" and a version.
const MAGIC: u64 = 0x6c62_7672_7270_0001;
const NAME_WORDS: usize = 8;
const PLACES: usize = 255;
const WORDS: usize = 1 + PLACES * (NAME_WORDS + 1);
const SIZE: usize = WORDS * 8;
/// Three times the longest interval of version 2.
const LONGEST: Duration = Duration::from_secs(3 * 255);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_finds_what_was_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vrrp");
        let long = "a".repeat(63);
        let until = Instant::now() + Duration::from_secs(3);
        {
            let memory = Memory::open(&path).unwrap();
            assert_eq!(memory.lease("edge"), None);
            for name in ["edge", long.as_str()] {
                memory.remember(memory.place(name).unwrap(), Some(until));
            }
            memory.remember(memory.place("other").unwrap(), None);
        }
        let memory = Memory::open(&path).unwrap();
        for name in ["edge", &long] {
            let lease = memory.lease(name).unwrap();
            let error = lease.max(until) - lease.min(until);
            assert!(error < Duration::from_millis(100), "{name}: {error:?}");
        }
        assert_eq!((memory.lease("other"), memory.lease("edg")), (None, None));
        memory.forget_others(|name| name == "other");
        assert_eq!(memory.lease("edge"), None);
        memory.remember(memory.place("edge").unwrap(), Some(Instant::now() - Duration::from_secs(1)));
        assert_eq!(memory.lease("edge"), None, "it is over");
    }

    #[test]
    fn another_file_is_read_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vrrp");
        std::fs::write(&path, [0xff; 100_000]).unwrap();
        let memory = Memory::open(&path).unwrap();
        assert_eq!(memory.lease("edge"), None);
        assert!(memory.place("edge").is_some());
    }

    #[test]
    fn there_is_room_for_every_identifier_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::open(&directory.path().join("vrrp")).unwrap();
        for n in 0..255 {
            assert!(memory.place(&format!("i{n}")).is_some());
        }
        assert!(memory.place("one-more").is_none());
        assert!(memory.place("i7").is_some());
    }
}
