//! Passive detection: what is counted of real servers' first answers to new connections.

use crate::{
    flows::{Flow, Method, matrix},
    frame::{ACK, FIN, RST, SYN},
};
use lb_agent::dataplane::tables::Standing;
use lb_common::witness::answer;
use std::sync::atomic::Ordering::Relaxed;

const KINDS: [u32; 4] = [answer::ANSWERED, answer::REFUSED, answer::SILENT, answer::UNREACHABLE];

fn new(method: Method, v6: bool, udp: bool, watched: bool) -> Flow {
    let mut flow = Flow::new(method, v6, udp);
    flow.stand(Standing { watched, ..Standing::DEFAULT });
    // The index may have been another case's.
    let views = flow.world.views();
    KINDS.iter().for_each(|kind| views.witnesses.word(flow.destination, *kind as usize).store(0, Relaxed));
    flow
}

fn watched(method: Method, v6: bool, udp: bool) -> Flow {
    new(method, v6, udp, true)
}

/// (answered, refused, silent, unreachable).
fn counted(flow: &Flow) -> (u64, u64, u64, u64) {
    let views = flow.world.views();
    let [answered, refused, silent, unreachable] =
        KINDS.map(|kind| views.witnesses.word(flow.destination, kind as usize).load(Relaxed));
    (answered, refused, silent, unreachable)
}

fn to_server(flow: &mut Flow, flags: u8) {
    let (case, packet) = (flow.name(), flow.packet(flags));
    assert_eq!(flow.world.goes_to(&case, &packet), flow.destination, "{case}");
}

fn from_server(flow: &mut Flow, flags: u8) {
    let packet = flow.reply(flags);
    flow.world.send(&packet.bytes());
}

fn tcp() -> impl Iterator<Item = (Method, bool)> {
    matrix().into_iter().filter(|(_, _, udp)| !udp).map(|(method, v6, _)| (method, v6))
}

#[test]
fn a_connection_that_the_server_takes_counts_once() {
    for (method, v6) in tcp() {
        let mut flow = watched(method, v6, false);
        let case = flow.name();
        to_server(&mut flow, SYN);
        assert_eq!(counted(&flow), (0, 0, 0, 0), "{case}: nothing is known yet");
        if method.translates() {
            for _ in 0..2 {
                from_server(&mut flow, SYN | ACK);
                assert_eq!(counted(&flow), (1, 0, 0, 0), "{case}: the SYN-ACK");
            }
            // The client has not got it.
            to_server(&mut flow, SYN);
        }
        to_server(&mut flow, ACK);
        assert_eq!(counted(&flow), (1, 0, 0, 0), "{case}");
        to_server(&mut flow, FIN | ACK);
        if method.translates() {
            from_server(&mut flow, RST);
        }
        assert_eq!(counted(&flow), (1, 0, 0, 0), "{case}: how it ends does not matter");
    }
}

#[test]
fn a_connection_that_the_server_resets_at_once_is_refused() {
    for (method, v6) in tcp().filter(|(method, _)| method.translates()) {
        let mut flow = watched(method, v6, false);
        let case = flow.name();
        for n in 1..3 {
            to_server(&mut flow, SYN);
            from_server(&mut flow, RST | ACK);
            from_server(&mut flow, RST);
            assert_eq!(counted(&flow), (0, n, 0, 0), "{case}: a SYN on the same ports is another connection");
        }
        // After its SYN-ACK a RST is something else.
        to_server(&mut flow, SYN);
        from_server(&mut flow, SYN | ACK);
        from_server(&mut flow, RST | ACK);
        assert_eq!(counted(&flow), (1, 2, 0, 0), "{case}");
    }
}

#[test]
fn a_connection_whose_syn_is_repeated_is_silent_and_may_be_answered_yet() {
    for (method, v6) in tcp() {
        let mut flow = watched(method, v6, false);
        let case = flow.name();
        for _ in 0..3 {
            to_server(&mut flow, SYN);
        }
        assert_eq!(counted(&flow), (0, 0, 1, 0), "{case}");
        if method.translates() {
            from_server(&mut flow, SYN | ACK);
        }
        to_server(&mut flow, ACK);
        assert_eq!(counted(&flow), (1, 0, 1, 0), "{case}");
    }
}

#[test]
fn nothing_is_counted_of_other_servers_and_of_udp() {
    for (method, v6, udp) in matrix() {
        let mut flow = new(method, v6, udp, udp);
        let case = flow.name();
        for _ in 0..2 {
            to_server(&mut flow, SYN);
        }
        if method.translates() {
            from_server(&mut flow, if udp { 0 } else { RST });
        }
        assert_eq!(counted(&flow), (0, 0, 0, 0), "{case}");
    }
}
