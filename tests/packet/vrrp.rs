//! What a director does by its role: a backup leaves everything to the kernel, a master whose lease has ended
//! is silent.

use crate::{
    flows::{Flow, Method, matrix},
    frame::{ACK, SYN},
    world::client,
};
use lb_common::{
    maps::{VRRP_FOREVER, VRRP_MASTER},
    verdict::Reason,
};

const INSTANCE: u32 = 3;

fn flow(method: Method, v6: bool, udp: bool) -> Flow {
    Flow::with(method, v6, udp, |spec| spec.vrrp = INSTANCE as u8)
}

fn set(flow: &mut Flow, word: u64) {
    flow.world.tables.set_vrrp_word(INSTANCE, word).unwrap();
}

#[test]
fn a_backup_passes_everything_to_the_kernel_untouched() {
    for (method, v6, udp) in matrix() {
        let mut flow = flow(method, v6, udp);
        let case = flow.name();
        // The word of an instance that nobody wrote yet says backup.
        let first = flow.first();
        flow.world.ends(&case, &first, Reason::VrrpBackup);
        set(&mut flow, VRRP_FOREVER);
        flow.establish();
        let reply = method.translates().then(|| flow.reply(ACK));
        for word in [0, VRRP_MASTER - 1] {
            set(&mut flow, word);
            let known = flow.packet(ACK);
            let new = flow.packet_from(client(v6, 8), 1, SYN);
            for (what, packet) in [("known", &known), ("new", &new)] {
                flow.world.ends(&format!("{case}: {what}"), packet, Reason::VrrpBackup);
                let last_hop = packet.clone().with(|p| p.ttl = 1);
                flow.world.ends(&format!("{case}: {what}, last hop"), &last_hop, Reason::VrrpBackup);
                let tagged = packet.clone().tagged(&[(0x8100, 5)]);
                flow.world.ends(&format!("{case}: {what}, tagged"), &tagged, Reason::VrrpBackup);
            }
            if let Some(reply) = &reply {
                flow.world.ends(&format!("{case}: reply"), reply, Reason::VrrpBackup);
            }
        }
        set(&mut flow, VRRP_FOREVER);
        flow.forward(&flow.packet(ACK));
    }
}

#[test]
fn a_master_whose_lease_has_ended_is_silent() {
    for (method, v6, udp) in matrix() {
        let mut flow = flow(method, v6, udp);
        let case = flow.name();
        let now = flow.world.plane.clock().jiffies().unwrap();
        set(&mut flow, VRRP_MASTER | (now + 1_000_000));
        flow.establish();
        let reply = method.translates().then(|| flow.reply(ACK));
        for until in [now, now - 1, now - 1_000_000] {
            set(&mut flow, VRRP_MASTER | until & !VRRP_MASTER);
            let (known, new) = (flow.packet(ACK), flow.packet_from(client(v6, 8), 1, SYN));
            flow.world.ends(&case, &known, Reason::LeaseExpired);
            flow.world.ends(&case, &new, Reason::LeaseExpired);
            if let Some(reply) = &reply {
                flow.world.ends(&case, reply, Reason::LeaseExpired);
            }
        }
        let now = flow.world.plane.clock().jiffies().unwrap();
        set(&mut flow, VRRP_MASTER | (now + 1_000_000));
        flow.forward(&flow.packet(ACK));
    }
}

#[test]
fn instances_have_roles_of_their_own() {
    let mut flow = flow(Method::Dr, false, false);
    set(&mut flow, VRRP_FOREVER);
    flow.world.tables.set_vrrp_word(INSTANCE + 1, 0).unwrap();
    flow.establish();
}
