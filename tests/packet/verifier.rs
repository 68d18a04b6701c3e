//! What the kernel's verifier says of the programs: it must have room left, whatever the secrets, which are constants
//! to it.

use crate::world::sizes;
use lb_agent::dataplane::{Dataplane, OBJECT};

/// Half of the kernel's limit (BPF_COMPLEXITY_LIMIT_INSNS).
const MOST: u32 = 500_000;

#[test]
fn every_program_is_verified_with_half_of_the_limit_left() {
    for round in 0..3 {
        let plane = Dataplane::open_for_test(OBJECT, &sizes()).expect("load the data plane (needs root)");
        let verified = plane.verified().expect("what the verifier did");
        println!("round {round}: {verified:?}");
        for (name, instructions) in verified {
            assert!(instructions > 0 && instructions < MOST, "{name}: {instructions} instructions looked at");
        }
    }
}
