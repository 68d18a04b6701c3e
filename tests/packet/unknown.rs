//! TCP packets without a flow, by the service's onUnknownFlow; resets; SYNs on flows that are there already.

use crate::{
    flows::{Flow, Method, matrix},
    frame::{ACK, FIN, Packet, RST, SYN, Tag, Transport},
    world::{Counted, DIRECTOR, GATEWAY, same_frame, server, vip},
};
use lb_agent::dataplane::dump::FlowState;
use lb_common::{
    service::OnUnknownFlow,
    state::{State, URG},
    verdict::Reason,
};

fn flow(method: Method, v6: bool, policy: OnUnknownFlow) -> Flow {
    Flow::with(method, v6, false, |spec| spec.on_unknown_flow = policy)
}

/// The reset that answers a packet (RFC 9293, section 3.5.2).
fn reset(to: &Packet, tags: &[Tag]) -> Vec<u8> {
    let Transport::Tcp { source, destination, sequence, acknowledged, flags, .. } = to.transport.clone()
    else {
        panic!("a reset of what is not TCP");
    };
    let len = to.payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let (sequence, acknowledged, flags) =
        if flags & ACK != 0 { (acknowledged, 0, RST) } else { (0, sequence.wrapping_add(len), RST | ACK) };
    let mut reset = Packet::tcp((to.destination, destination), (to.source, source), RST);
    reset.transport = Transport::Tcp {
        source: destination,
        destination: source,
        sequence,
        acknowledged,
        flags,
        options: vec![],
    };
    reset
        .with(|p| {
            (p.to, p.from) = (GATEWAY, DIRECTOR);
            (p.tos, p.flow_label, p.id, p.ttl) = (0, 0, 0, 64);
        })
        .tagged(tags)
        .bytes()
}

#[test]
fn adopt_takes_the_flow_up_as_unconfirmed() {
    for (method, v6, udp) in matrix() {
        if udp {
            continue;
        }
        for flags in [ACK, ACK | FIN, ACK | URG] {
            let mut flow = flow(method, v6, OnUnknownFlow::Adopt);
            let case = format!("{} flags {flags:#x}", flow.name());
            let seen = flow.forward(&flow.packet(flags));
            assert_eq!(seen.events, [Reason::FlowAdopted], "{case}");
            assert_eq!(flow.world.state(&case), State::Unconfirmed, "{case}");
        }
        let mut flow = flow(method, v6, OnUnknownFlow::Adopt);
        let case = flow.name();
        flow.forward(&flow.packet(ACK));
        if method.translates() {
            flow.answer(&flow.reply(ACK));
        }
        flow.forward(&flow.packet(ACK));
        assert_eq!(flow.world.state(&case), State::Established, "{case}: proven");
    }
}

#[test]
fn drop_and_pass_do_that() {
    for v6 in [false, true] {
        for (policy, reason) in [
            (OnUnknownFlow::Drop, Reason::UnknownFlowDropped),
            (OnUnknownFlow::Pass, Reason::UnknownFlowPassed),
        ] {
            let mut flow = flow(Method::Dr, v6, policy);
            for flags in [ACK, ACK | FIN, RST, RST | ACK, ACK | URG] {
                let packet = flow.packet(flags);
                flow.world.ends(&format!("{policy:?} flags {flags:#x}"), &packet, reason);
            }
            assert!(flow.world.connections().is_empty());
            // A SYN is no unknown flow.
            flow.forward(&flow.first());
        }
    }
}

#[test]
fn a_reset_has_the_sequence_that_the_packet_asks_for() {
    for v6 in [false, true] {
        for method in Method::ALL {
            let mut flow = flow(method, v6, OnUnknownFlow::Reset);
            let with = |flags, payload, options: usize| {
                flow.packet(flags).payload(payload).with(|p| {
                    if let Transport::Tcp { options: bytes, .. } = &mut p.transport {
                        *bytes = vec![1; options];
                    }
                })
            };
            let never = [("no flag", with(0, 0, 0)), ("data", with(0, 33, 40)), ("FIN", with(FIN, 7, 4))];
            let cases = [
                ("ACK", with(ACK, 0, 0)),
                ("data", with(ACK, 301, 0)),
                ("data behind options", with(ACK, 300, 12)),
                ("FIN", with(ACK | FIN, 5, 0)),
            ];
            for (case, packet) in cases {
                let case = format!("{method:?} v6={v6}: {case}");
                let seen = flow.world.ends(&case, &packet, Reason::UnknownFlowReset);
                same_frame(&case, &seen.frame, &reset(&packet, &[]));
                let padded = packet.clone().with(|p| p.padding = 6);
                let seen = flow.world.ends(&case, &padded, Reason::UnknownFlowReset);
                same_frame(&format!("{case}, padded"), &seen.frame, &reset(&packet, &[]));
            }
            // What no stack sends is not answered.
            for (case, packet) in never {
                flow.world.ends(&format!("{method:?} v6={v6}: {case}"), &packet, Reason::BadFlags);
            }
            assert!(flow.world.connections().is_empty(), "{method:?}: no flow came of it");
        }
    }
}

#[test]
fn a_reset_goes_back_through_the_vlan_it_came_from() {
    for v6 in [false, true] {
        let mut flow = flow(Method::Dr, v6, OnUnknownFlow::Reset);
        // Without the sender's priority bits, with the EtherTypes that came.
        let cases: [(&[Tag], &[Tag]); 4] = [
            (&[(0x88a8, 0x6064)], &[(0x88a8, 0x0064)]),
            (&[(0x8100, 0x2065), (0x8100, 0xe066)], &[(0x8100, 0x0065), (0x8100, 0x0066)]),
            (&[(0x8100, 0x6064)], &[(0x8100, 0x0064)]),
            (&[(0x88a8, 0x2065), (0x8100, 0xe066)], &[(0x88a8, 0x0065), (0x8100, 0x0066)]),
        ];
        for (tags, back) in cases {
            let packet = flow.packet(ACK).tagged(tags);
            let seen = flow.world.ends("tagged", &packet, Reason::UnknownFlowReset);
            same_frame("tagged", &seen.frame, &reset(&packet, back));
        }
        let options = if v6 {
            flow.packet(ACK).with(|p| p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])])
        } else {
            flow.packet(ACK).with(|p| p.options = vec![1; 12])
        };
        let seen = flow.world.ends("behind options", &options, Reason::UnknownFlowReset);
        let plain = options.with(|p| {
            p.options.clear();
            p.extensions.clear();
        });
        same_frame("behind options", &seen.frame, &reset(&plain, &[]));
    }
}

#[test]
fn a_rst_is_never_answered_and_never_opens_a_flow() {
    for v6 in [false, true] {
        for policy in [OnUnknownFlow::Adopt, OnUnknownFlow::Reset, OnUnknownFlow::Drop] {
            let mut flow = flow(Method::Dr, v6, policy);
            for flags in [RST, RST | ACK] {
                let packet = flow.packet(flags);
                flow.world.ends(&format!("{policy:?} {flags:#x}"), &packet, Reason::UnknownFlowDropped);
            }
            assert!(flow.world.connections().is_empty());
        }
    }
}

#[test]
fn a_syn_sent_again_keeps_its_server() {
    for (method, v6, udp) in matrix() {
        if udp {
            continue;
        }
        let mut flow = Flow::new(method, v6, false);
        let other = flow.world.server(&flow.spec, server(method.real_is_v6(v6), 12), 0, method.forwarding());
        let case = flow.name();
        flow.forward(&flow.first());
        flow.world.slots("web", &[other]);
        for _ in 0..3 {
            let seen = flow.forward(&flow.first());
            assert_eq!(seen.events, [], "{case}");
            assert_eq!(flow.world.state(&case), State::SynReceived, "{case}");
        }
        // On an established flow too: it may be an old one, delayed.
        flow.forward(&flow.packet(ACK));
        let seen = flow.forward(&flow.first());
        assert_eq!(seen.events, [], "{case}");
        assert_eq!(flow.world.state(&case), State::Established, "{case}");
    }
}

#[test]
fn a_syn_on_a_closing_flow_is_scheduled_anew_in_the_same_packet() {
    for (method, v6, udp) in matrix() {
        if udp {
            continue;
        }
        let mut ends: Vec<(State, &[u8])> =
            vec![(State::TimeWait, &[SYN, FIN | ACK]), (State::Close, &[SYN, ACK, RST])];
        if !method.translates() {
            ends.push((State::FinWait, &[SYN, ACK, FIN | ACK]));
        }
        for (state, packets) in ends {
            let mut flow = Flow::new(method, v6, false);
            let case = format!("{} {state:?}", flow.name());
            for flags in packets {
                flow.forward(&flow.packet(*flags));
            }
            assert_eq!(flow.world.state(&case), state, "{case}");
            let real = server(method.real_is_v6(v6), 12);
            let other = flow.world.server(&flow.spec, real, flow.real_port, method.forwarding());
            flow.world.slots("web", &[other]);
            let seen = flow.world.send(&flow.first().bytes());
            assert_eq!(seen.counted, Counted::In(other), "{case}");
            assert_eq!(seen.events, [Reason::FlowReplaced], "{case}");
            let connection = flow.world.connection(&case);
            assert_eq!(
                (connection.state, connection.destination),
                (FlowState::Common(State::SynReceived), other),
                "{case}"
            );
            (flow.destination, flow.real) = (other, real);
            same_frame(&case, &seen.frame, &flow.towards_server(&flow.first()));
            if method.translates() {
                flow.answer(&flow.reply(SYN | ACK));
            }
            assert_eq!(vip(v6), connection.vip.ip());
        }
    }
}

#[test]
fn a_syn_on_a_half_closed_flow_that_the_server_may_still_use_stays() {
    // The client closed, the server still sends: with replies in sight the director knows.
    for method in [Method::Nat, Method::FullNat] {
        let mut flow = Flow::new(method, false, false);
        flow.establish();
        flow.forward(&flow.packet(FIN | ACK));
        assert_eq!(flow.world.state("closed by the client"), State::CloseWait);
        let seen = flow.forward(&flow.first());
        assert_eq!(seen.events, []);
    }
}
