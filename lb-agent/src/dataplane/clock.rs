//! The data plane's clock in user space. Deadlines are in ticks of jiffies, and the kernel tells nobody its
//! jiffies exactly: /proc/timer_list is for root of the initial namespaces only, the clocks count from another
//! zero. So a program of nine instructions asks the same helper that the data plane uses.

use super::{Error, bpf};
use lb_common::scratch::tick_shift;
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

/// Reads jiffies as the data plane does. A read is a system call of some microseconds: once a scan, not
/// once an entry.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    /// Jiffies in a second.
    hz: u32,
}

#[derive(Debug)]
enum Source {
    Kernel(OwnedFd),
    /// Stands still: for tests of what reads ticks.
    Fixed(u64),
}

impl Clock {
    /// Measures HZ and loads the program. Needs CAP_BPF and CAP_NET_ADMIN.
    pub fn new() -> Result<Self, Error> {
        let hz = measure_hz()?;
        let program = bpf::load_xdp(&PROGRAM, "lb_jiffies").map_err(Error::os("load the clock program"))?;
        let clock = Self { source: Source::Kernel(program), hz };
        clock.jiffies()?;
        Ok(clock)
    }

    /// A clock that stands at `jiffies`.
    pub fn fixed(jiffies: u64, hz: u32) -> Self {
        Self { source: Source::Fixed(jiffies), hz }
    }

    /// Jiffies in a second: the kernel's CONFIG_HZ.
    pub fn hz(&self) -> u32 {
        self.hz
    }

    /// Jiffies since their start, as `bpf_jiffies64` gives them.
    pub fn jiffies(&self) -> Result<u64, Error> {
        let program = match &self.source {
            Source::Kernel(program) => program,
            Source::Fixed(jiffies) => return Ok(*jiffies),
        };
        let mut frame = [0; 64];
        let result = bpf::run(program.as_fd(), &mut frame).map_err(Error::os("read the kernel's jiffies"))?;
        let jiffies = u64::from_ne_bytes([
            frame[0], frame[1], frame[2], frame[3], frame[4], frame[5], frame[6], frame[7],
        ]);
        if result != XDP_PASS as u32 || jiffies == 0 {
            let source = io::Error::other(format!("the clock program answered {result}, {jiffies}"));
            return Err(Error::Os { what: "read the kernel's jiffies".into(), reason: source });
        }
        Ok(jiffies)
    }

    /// Now, in the ticks of connection deadlines, modulo 2^16.
    pub fn tick(&self) -> Result<u16, Error> {
        Ok((self.jiffies()? >> tick_shift(self.hz)) as u16)
    }

    /// Milliseconds of a number of ticks.
    pub fn milliseconds(&self, ticks: u16) -> u64 {
        ((ticks as u64) << tick_shift(self.hz)) * 1000 / self.hz as u64
    }
}

const XDP_PASS: u64 = 2;

/// One instruction of `struct bpf_insn`: code 8, destination register 4, source 4, offset 16, immediate 32.
const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (destination as u64) << 8
        | (source as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// `*(u64 *)data = bpf_jiffies64(); return XDP_PASS`, with the bounds check that the verifier wants.
const PROGRAM: [u64; 10] = [
    instruction(0xbf, 6, 1, 0, 0),               // r6 = r1
    instruction(0x85, 0, 0, 0, 118),             // call bpf_jiffies64
    instruction(0x61, 2, 6, 0, 0),               // r2 = ctx->data
    instruction(0x61, 3, 6, 4, 0),               // r3 = ctx->data_end
    instruction(0xbf, 4, 2, 0, 0),               // r4 = r2
    instruction(0x07, 4, 0, 0, 8),               // r4 += 8
    instruction(0x2d, 4, 3, 1, 0),               // if r4 > r3 skip the store
    instruction(0x7b, 2, 0, 0, 0),               // *(u64 *)r2 = r0
    instruction(0xb7, 0, 0, 0, XDP_PASS as i32), // r0 = XDP_PASS
    instruction(0x95, 0, 0, 0, 0),               // exit
];

/// CLOCK_MONOTONIC_COARSE advances once a jiffy, and its resolution is a jiffy's length (posix_get_coarse_res,
/// kernel/time/posix-timers.c). USER_HZ, which sysconf tells, is 100 whatever the kernel's HZ.
fn measure_hz() -> Result<u32, Error> {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec that lives here.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut resolution) } != 0 {
        return Err(Error::last_os("read the kernel's HZ"));
    }
    hz_of(resolution.tv_nsec as u64).ok_or_else(|| Error::Os {
        what: "read the kernel's HZ".into(),
        reason: io::Error::other(format!("a jiffy of {} ns", resolution.tv_nsec)),
    })
}

/// HZ of a jiffy's length, between 10 and 10,000; else none.
fn hz_of(nanoseconds: u64) -> Option<u32> {
    let hz = (1_000_000_000 + nanoseconds / 2).checked_div(nanoseconds)?;
    (10..=10_000).contains(&hz).then_some(hz as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hz_is_read_from_a_rounded_jiffy() {
        for (nanoseconds, hz) in
            [(4_000_000, 250), (10_000_000, 100), (3_333_333, 300), (1_000_000, 1000), (976_562, 1024)]
        {
            assert_eq!(hz_of(nanoseconds), Some(hz));
        }
        assert_eq!((hz_of(1), hz_of(0)), (None, None), "a resolution of a nanosecond is no jiffy");
    }

    #[test]
    fn ticks_are_turned_into_milliseconds_of_their_length() {
        let clock = Clock::fixed(4096, 250);
        assert_eq!(clock.tick().unwrap(), (4096u64 >> tick_shift(250)) as u16);
        assert_eq!(clock.milliseconds(10), 10 * (1000 << tick_shift(250)) / 250);
    }
}
