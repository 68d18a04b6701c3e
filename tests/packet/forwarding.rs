//! Every forwarding method, both families, both protocols: the first packet, those after it, the reply, and
//! the states in between.

use crate::{
    frame::{ACK, Packet, SYN, TCP},
    world::{Counted, World, client, server, to_server, vip},
};
use lb_agent::dataplane::Ports;
use lb_common::{destination::Forwarding, state::State, verdict::Reason};

#[test]
fn dr_changes_the_macs_and_the_ttl_and_nothing_else() {
    for v6 in [false, true] {
        let mut world = World::new();
        let spec = world.spec("web", vip(v6), TCP, &[Ports::One(80)]);
        world.service(&spec);
        let real = server(v6, 11);
        let destination = world.server(&spec, real, 0, Forwarding::Dr);
        world.slots("web", &[destination]);
        let syn = Packet::tcp((client(v6, 7), 40_000), (vip(v6), 80), SYN);
        let seen = world.forwards("SYN", &syn, Counted::In(destination), &to_server(&syn, real).bytes());
        assert_eq!(seen.events, [Reason::FlowNew]);
        assert_eq!(world.state("after the SYN"), State::SynReceived);
        let ack = Packet::tcp((client(v6, 7), 40_000), (vip(v6), 80), ACK);
        let seen = world.forwards("ACK", &ack, Counted::In(destination), &to_server(&ack, real).bytes());
        assert_eq!(seen.events, []);
        assert_eq!(world.state("after the ACK"), State::Established);
    }
}
