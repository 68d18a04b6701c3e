//! The system calls of the benchmark: a program's run with its time, the tail of the feeder, a program's size,
//! hardware counters.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

const MAP_UPDATE_ELEM: u32 = 2;
const PROG_TEST_RUN: u32 = 10;

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is a live `repr(C)` struct of integers that begins as `union bpf_attr` does for this
    // command (include/uapi/linux/bpf.h); pointers in it are of buffers that the callers below keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts a program into slot 0 of a prog array.
pub fn set_tail(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let (key, value) = (0u32, program.as_raw_fd() as u32);
    let mut attr = Update {
        map: array.as_raw_fd() as u32,
        pad: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    bpf(MAP_UPDATE_ELEM, &mut attr)
}

/// What some rounds cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Time that this thread had a CPU.
    pub time: Duration,
    /// Of this thread; none where the machine has no hardware counters.
    pub cycles: Option<u64>,
    pub instructions: Option<u64>,
    /// What the program returned at last.
    pub action: u32,
}

/// Reads the clocks and counters of this thread.
pub struct Meter {
    cycles: Option<OwnedFd>,
    instructions: Option<OwnedFd>,
}

impl Meter {
    /// Opens what counters the machine has for this thread.
    pub fn new() -> Self {
        Self { cycles: open_counter(0), instructions: open_counter(1) }
    }

    /// Whether there are hardware counters.
    pub fn has_counters(&self) -> bool {
        self.cycles.is_some()
    }

    /// Runs a program `rounds` times on a frame of `len` bytes.
    pub fn run(&self, program: BorrowedFd<'_>, len: usize, rounds: u32) -> io::Result<Cost> {
        #[repr(C)]
        #[derive(Default)]
        struct TestRun {
            program: u32,
            result: u32,
            size_in: u32,
            size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            context_size_in: u32,
            context_size_out: u32,
            context_in: u64,
            context_out: u64,
        }
        let frame = [0u8; 128];
        let mut attr = TestRun {
            program: program.as_raw_fd() as u32,
            size_in: len.min(frame.len()) as u32,
            data_in: frame.as_ptr() as u64,
            repeat: rounds,
            ..TestRun::default()
        };
        let before = self.read()?;
        bpf(PROG_TEST_RUN, &mut attr)?;
        let after = self.read()?;
        let difference = |a: Option<u64>, b: Option<u64>| Some(b?.wrapping_sub(a?));
        Ok(Cost {
            time: after.0 - before.0,
            cycles: difference(before.1, after.1),
            instructions: difference(before.2, after.2),
            action: attr.result,
        })
    }

    /// How fast the core runs now, from a chain of shifts and exclusive ors, each of which takes a cycle and
    /// waits for the one before (Marsaglia's xorshift, which no compiler shortens).
    pub fn gigahertz(&self) -> io::Result<f64> {
        const TURNS: u64 = 2_000_000;
        let before = self.read()?.0;
        let mut x = std::hint::black_box(1u64);
        for _ in 0..TURNS {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        std::hint::black_box(x);
        Ok((TURNS * 6) as f64 / (self.read()?.0 - before).as_nanos() as f64)
    }

    fn read(&self) -> io::Result<(Duration, Option<u64>, Option<u64>)> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one timespec that lives here.
        if unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let counters =
            (self.cycles.as_ref().and_then(read_counter), self.instructions.as_ref().and_then(read_counter));
        Ok((Duration::new(time.tv_sec as u64, time.tv_nsec as u32), counters.0, counters.1))
    }
}

/// A hardware event of this thread: 0 cycles, 1 instructions. None where the machine has none, or
/// `kernel.perf_event_paranoid` forbids it.
fn open_counter(event: u64) -> Option<OwnedFd> {
    /// `struct perf_event_attr`, version 0 (include/uapi/linux/perf_event.h): type hardware, no sampling.
    #[repr(C)]
    struct Attr {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 6],
    }
    let mut attr = Attr { kind: 0, size: size_of::<Attr>() as u32, config: event, rest: [0; 6] };
    // SAFETY: a live struct of the size it says; this thread, any CPU, no group.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw mut attr, 0, -1, -1, 0) };
    // SAFETY: a new descriptor that nobody else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn read_counter(counter: &OwnedFd) -> Option<u64> {
    let mut value = 0u64;
    // SAFETY: eight bytes into a live u64.
    let n = unsafe { libc::read(counter.as_raw_fd(), (&raw mut value).cast(), 8) };
    (n == 8).then_some(value)
}
