//! What the kernel's verifier says of the programs: it must have room left, whatever the secrets, which are constants
//! to it.

use crate::world::sizes;
use lb_agent::dataplane::{Dataplane, OBJECT};

/// Half of the kernel's limit (BPF_COMPLEXITY_LIMIT_INSNS).
const MOST: u32 = 500_000;
/// Of the kernels before 6.12, which forget more of what they have seen and look at it again.
const MOST_BEFORE_6_12: u32 = 850_000;

#[test]
fn every_program_is_verified_with_half_of_the_limit_left() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    let version: (u32, u32) = (numbers.next().expect("6"), numbers.next().expect("1"));
    let most = if version < (6, 12) { MOST_BEFORE_6_12 } else { MOST };
    for round in 0..3 {
        let plane = Dataplane::open_for_test(OBJECT, &sizes()).expect("load the data plane (needs root)");
        let verified = plane.verified().expect("what the verifier did");
        println!("round {round}: {verified:?}");
        for (name, instructions) in verified {
            assert!(instructions > 0 && instructions < most, "{name}: {instructions} instructions looked at");
        }
    }
}
