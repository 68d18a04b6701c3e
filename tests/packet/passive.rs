//! Passive detection: what is counted of real servers' first answers to new connections.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, matrix},
    frame::{ACK, FIN, Packet, RST, SYN},
    related::error,
    world::{Counted, local, mac_of},
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

#[test]
fn a_connection_that_is_answered_with_an_icmp_error_is_unreachable_once() {
    for (method, v6) in tcp().filter(|(method, _)| method.translates()) {
        let mut flow = watched(method, v6, false);
        let case = flow.name();
        to_server(&mut flow, SYN);
        let sent = as_the_server_gets_it(&flow, SYN);
        let (host, too_big) = if v6 { ((1, 3, 0), (2, 0, 1280)) } else { ((3, 1, 0), (3, 4, 1280)) };
        for (said, unreachable) in [(too_big, 0), (host, 1), (host, 1)] {
            let error = error(flow.real, sent.source, said, &sent, 20).with(|p| p.from = mac_of(flow.real));
            let seen = flow.world.send(&error.bytes());
            assert_eq!(seen.counted, Counted::Out(flow.destination), "{case} {said:?}");
            assert_eq!(counted(&flow), (0, 0, 0, unreachable), "{case} {said:?}");
        }
        // The client tries on: it was counted.
        to_server(&mut flow, SYN);
        assert_eq!(counted(&flow), (0, 0, 0, 1), "{case}");
    }
}

/// A client's packet behind NAT or FULLNAT.
fn as_the_server_gets_it(flow: &Flow, flags: u8) -> Packet {
    flow.packet(flags).with(|p| {
        let mut ports = (CLIENT_PORT, flow.server_port());
        p.destination = flow.real;
        if flow.method == Method::FullNat {
            p.source = local(flow.v6);
            ports.0 = flow.lease();
        }
        p.set_ports(ports);
    })
}
