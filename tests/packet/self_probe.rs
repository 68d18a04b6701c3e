//! The proof that the data plane forwards.

use crate::world::World;
use lb_agent::dataplane::self_probe;
use lb_common::{maps::pinned, service::ServiceKey};

#[test]
fn a_self_probe_holds_as_long_as_the_program_forwards() {
    let mut world = World::new();
    let refused = world.plane.prove_program().unwrap_err();
    assert!(refused.contains("does not forward"), "without its service: {refused}");
    self_probe::install(&mut world.tables).unwrap();
    let writes = world.tables.writes();
    for _ in 0..3 {
        self_probe::install(&mut world.tables).unwrap();
        world.plane.prove_program().unwrap();
    }
    assert_eq!(world.tables.writes(), writes, "what is there is not written again");
    world.expire_all();
    world.plane.prove_program().unwrap();
    // What a table that lost a record looks like.
    let mut index: aya::maps::HashMap<_, ServiceKey, u32> =
        world.map(pinned::SERVICE_INDEX).try_into().unwrap();
    let keys: Vec<ServiceKey> = index.keys().collect::<Result<_, _>>().unwrap();
    keys.iter().for_each(|key| index.remove(key).unwrap());
    world.forget_all();
    assert!(world.plane.prove_program().is_err());
    world.plane.prove_forwarding().expect_err("a test's plane is on no interface");
    world.sent_apart(6);
}
