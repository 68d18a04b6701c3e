//! Randomness that can be repeated.

use std::time::Duration;

/// splitmix64.
pub struct Dice(u64);

impl Dice {
    /// Seeded by `LB_SEED` or by the clock; says with what, so that a failure can be tried again.
    pub fn new() -> Dice {
        let seed = std::env::var("LB_SEED").ok().map(|seed| seed.parse().expect("LB_SEED is a number"));
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("the clock is past 1970").as_nanos() as u64
        });
        println!("LB_SEED={seed}");
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Sleeps for a random part of `longest`.
    pub fn sleep(&mut self, longest: Duration) {
        let share = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        std::thread::sleep(longest.mul_f64(share));
    }

    /// Puts the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
