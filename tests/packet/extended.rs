//! Flows with an extension record: their sequence numbers, acknowledgements, selective ones and timestamps are shifted
//! between what client and server count; the record lives as long as the flow.

use crate::{
    flows::{CLIENT_PORT, Flow, Method},
    frame::{ACK, FIN, Packet, RST, SYN, Transport},
    world::{Counted, client, same_frame},
};
use aya::maps::Array;
use lb_common::{
    connection::{FLAG_EXTENSION, Kind, Value, WAYS},
    extension::{self, Extension, Shift},
    maps::pinned,
    state::State,
    verdict::Reason,
};
use std::sync::atomic::Ordering::SeqCst;

pub const TRANSLATING: [(Method, bool); 4] =
    [(Method::Nat, false), (Method::Nat, true), (Method::FullNat, false), (Method::FullNat, true)];

/// Identity of the client's entry of the only flow.
pub fn identity(flow: &Flow) -> u64 {
    let views = flow.world.views();
    for bucket in 0..views.connections.len() {
        for way in 0..WAYS as u32 {
            let value = Value(views.value(bucket, way).load(SeqCst));
            if !value.is_empty() && value.kind() != Kind::NatReply {
                return views.identity(bucket, way).load(SeqCst);
            }
        }
    }
    panic!("no flow")
}

/// The records in use: index and record.
pub fn records(flow: &Flow) -> Vec<(u32, Extension)> {
    let map: Array<_, Extension> = flow.world.map(pinned::EXTENSIONS).try_into().expect("EXTENSIONS");
    let all = (0..map.len()).map(|i| (i, map.get(&i, 0).expect("a record")));
    all.filter(|(_, record)| record.word != 0).collect()
}

pub fn write_record(flow: &Flow, index: u32, record: Extension) {
    let mut map: Array<_, Extension> = flow.world.map(pinned::EXTENSIONS).try_into().expect("EXTENSIONS");
    map.set(index, record, 0).expect("a record");
}

/// Gives the only flow the extension flag and a record, in the last place of its second set.
fn extend(flow: &Flow, change: impl FnOnce(&mut Extension)) {
    flow.world.rewrite_entries(|value| value.with_flags(FLAG_EXTENSION));
    let views = flow.world.views();
    for lease in 0..views.leases.len() {
        let word = views.leases.word(lease, 8);
        let value = Value(word.load(SeqCst));
        if !value.is_empty() {
            word.store(value.with_flags(FLAG_EXTENSION).0, SeqCst);
        }
    }
    let owner = identity(flow);
    let first = views.secrets.first(owner);
    let deadline = flow.world.plane.clock().tick().unwrap().wrapping_add(flow.world.ticks(900));
    let word = Value::flow(Kind::Flow, 0, first, State::Established, deadline).0;
    let mut record = Extension { owner, word, ..Extension::default() };
    change(&mut record);
    let set = (views.secrets.second(owner) >> views.config.extension_shift) as u32;
    write_record(flow, set * extension::WAYS + extension::WAYS - 1, record);
}

/// A packet with other numbers; options as given, if any.
pub fn numbered(packet: &Packet, sequence: u32, acknowledged: u32, options: &[u8]) -> Packet {
    packet.clone().with(|p| {
        if let Transport::Tcp { sequence: s, acknowledged: a, options: o, .. } = &mut p.transport {
            (*s, *a) = (sequence, acknowledged);
            *o = options.to_vec();
        }
    })
}

/// Padding, timestamps, padding, three selective acknowledgements.
fn options(clock: u32, echo: u32, edges: [u32; 6]) -> Vec<u8> {
    let mut bytes = vec![1, 8, 10];
    bytes.extend(clock.to_be_bytes());
    bytes.extend(echo.to_be_bytes());
    // At an odd byte.
    bytes.extend([5, 26]);
    edges.iter().for_each(|edge| bytes.extend(edge.to_be_bytes()));
    bytes.resize(bytes.len().next_multiple_of(4), 1);
    bytes
}

pub const CLIENT_BEGAN: u32 = u32::MAX - 500;
pub const SERVER_BEGAN: u32 = 0x7fff_ff00;
pub const CLIENT_BASE: u32 = 0x0102_0304;
pub const SERVER_BASE: u32 = 0xf0e0_d0c0;
const CLOCK: u32 = 0xdead_0000;
pub const CLIENT: Shift = Shift { position: CLIENT_BEGAN, before: -3, after: 28 };
pub const SERVER: Shift = Shift { position: SERVER_BEGAN, before: 7, after: 4 };

/// A flow whose numbers are shifted both ways, by what stands above.
pub fn shifted(method: Method, v6: bool) -> Flow {
    let mut flow = Flow::new(method, v6, false);
    flow.establish();
    extend(&flow, |record| {
        (record.client, record.server) = (CLIENT.word(), SERVER.word());
        (record.client_base, record.server_base) = (CLIENT_BASE, SERVER_BASE);
        record.clock = CLOCK;
    });
    flow
}

/// What stands in the shifted numbers: before, at, just behind and far behind the position, across 2^32.
pub const FAR: [i32; 6] = [-100_000, -1, 0, 1, 700, 1_000_000];

#[test]
fn a_clients_numbers_are_shifted_towards_the_server_and_what_it_names_back() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        let case = flow.name();
        for far in FAR {
            let sequence = CLIENT_BEGAN.wrapping_add(far as u32);
            // The client names what it saw: the server's numbers, shifted. Never the end: the shift stays open.
            let sent = |n: u32| SERVER_BEGAN.wrapping_sub(10_000).wrapping_add(n);
            let seen = |n: u32| SERVER.forth(SERVER_BASE, sent(n));
            let edges = [100, 200, 1300, 1460, 3000, 4000];
            let packet = numbered(&flow.packet(ACK), sequence, seen(50), &options(77, 1000, edges.map(seen)));
            let out = numbered(
                &packet,
                sequence.wrapping_add(CLIENT_BASE).wrapping_add(if far > 0 { 28 } else { -3i32 as u32 }),
                sent(50),
                &options(77, 1000u32.wrapping_sub(CLOCK), edges.map(sent)),
            );
            let result = flow.world.send(&packet.bytes());
            assert_eq!(result.counted, Counted::In(flow.destination), "{case} {far}");
            same_frame(&format!("{case} {far}"), &result.frame, &flow.towards_server(&out));
        }
    }
}

#[test]
fn a_servers_numbers_are_shifted_towards_the_client_and_what_it_names_back() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        let case = flow.name();
        for far in FAR {
            let sequence = SERVER_BEGAN.wrapping_add(far as u32);
            let sent = |n: u32| CLIENT_BEGAN.wrapping_sub(10_000).wrapping_add(n);
            let seen = |n: u32| CLIENT.forth(CLIENT_BASE, sent(n));
            let edges = [100, 200, 1300, 1460, 3000, 4000];
            let reply = flow.reply(ACK);
            let reply = numbered(&reply, sequence, seen(50), &options(77, 1000, edges.map(seen)));
            let out = numbered(
                &reply,
                sequence.wrapping_add(SERVER_BASE).wrapping_add(if far > 0 { 4 } else { 7 }),
                sent(50),
                &options(77u32.wrapping_add(CLOCK), 1000, edges.map(sent)),
            );
            let expected = flow.towards_client(&out);
            flow.world.forwards(&format!("{case} {far}"), &reply, Counted::Out(flow.destination), &expected);
        }
    }
}

#[test]
fn packets_without_options_or_acknowledgement_and_odd_payloads_are_shifted_too() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        let forth = |n: u32| CLIENT.forth(CLIENT_BASE, n);
        for (flags, payload) in [(ACK, 0), (ACK, 1), (ACK | FIN, 333), (RST, 0)] {
            let mut packet = flow.packet(flags).payload(payload);
            packet = numbered(&packet, 5, if flags & ACK != 0 { SERVER_BASE + 7 } else { 0 }, &[]);
            let out = numbered(&packet, forth(5), 0, &[]);
            let seen = flow.world.send(&packet.bytes());
            assert_eq!(seen.counted, Counted::In(flow.destination));
            same_frame(&flow.name(), &seen.frame, &flow.towards_server(&out));
        }
    }
}

#[test]
fn once_what_was_put_in_is_acknowledged_everything_is_shifted_alike() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        let case = flow.name();
        // Of what became shorter the first byte must have arrived, of what became longer all that was put in.
        let end = |shift: Shift, base: u32| {
            let by = if shift.after > shift.before { shift.after } else { shift.before + 1 };
            shift.position.wrapping_add(base).wrapping_add(by as u32)
        };
        for (reply, short) in [(true, 1), (true, 0), (false, 1), (false, 0)] {
            let packet = if reply {
                numbered(&flow.reply(ACK), SERVER_BEGAN, end(CLIENT, CLIENT_BASE).wrapping_sub(short), &[])
            } else {
                numbered(&flow.packet(ACK), CLIENT_BEGAN, end(SERVER, SERVER_BASE).wrapping_sub(short), &[])
            };
            flow.world.send(&packet.bytes());
            let record = records(&flow)[0].1;
            let (word, shift) = if reply { (record.client, CLIENT) } else { (record.server, SERVER) };
            let before = if short == 0 { shift.after } else { shift.before };
            assert_eq!(Shift::from_word(word), Shift { before, ..shift }, "{case} reply={reply} {short}");
        }
        // Three GiB on, which would lie before the position.
        let far = CLIENT_BEGAN.wrapping_add(3 << 30);
        let packet = numbered(&flow.packet(ACK), far, 0, &[]);
        let seen = flow.world.send(&packet.bytes());
        let acknowledged = 0u32.wrapping_sub(SERVER_BASE).wrapping_sub(4);
        let out = numbered(&packet, far.wrapping_add(CLIENT_BASE).wrapping_add(28), acknowledged, &[]);
        same_frame(&case, &seen.frame, &flow.towards_server(&out));
    }
}

#[test]
fn the_record_lives_as_long_as_the_flow_and_another_flow_gets_its_place() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        let case = flow.name();
        // Each way refreshes it.
        for reply in [true, false] {
            flow.world.end_all_in(9);
            let (index, mut record) = records(&flow)[0];
            let soon = flow.world.plane.clock().tick().unwrap().wrapping_add(9);
            record.word = Value(record.word).with(State::Established as u8, soon).0;
            write_record(&flow, index, record);
            let packet = if reply { flow.reply(ACK) } else { flow.packet(ACK) };
            flow.world.send(&packet.bytes());
            let entry = flow.world.entries().into_iter().find(|e| e.kind() != Kind::NatReply).unwrap();
            let word = Value(records(&flow)[0].1.word);
            assert_eq!((word.deadline(), word.state()), (entry.deadline(), entry.state()), "{case} {reply}");
            assert_ne!(word.deadline(), soon, "{case}: not refreshed");
        }
        // Closed by both: it ends with the flow.
        flow.world.send(&flow.packet(FIN | ACK).bytes());
        flow.world.send(&flow.reply(FIN | ACK).bytes());
        let entry = flow.world.entries().into_iter().find(|e| e.kind() != Kind::NatReply).unwrap();
        let word = Value(records(&flow)[0].1.word);
        assert_eq!((word.deadline(), word.state()), (entry.deadline(), State::TimeWait as u8), "{case}");
    }
}

#[test]
fn a_flow_whose_record_is_lost_is_reset_and_a_reset_is_not_answered() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        let case = flow.name();
        let (index, record) = records(&flow)[0];
        // Another flow's by now; or its time is over.
        for lost in [
            Extension { owner: record.owner ^ 1, ..record },
            Extension { word: record.word ^ 1, ..record },
            Extension { word: Value(record.word).with_deadline(0).0, ..record },
        ] {
            let past = flow.world.plane.clock().tick().unwrap().wrapping_sub(1);
            let lost = if Value(lost.word).deadline() == 0 {
                Extension { word: Value(lost.word).with_deadline(past).0, ..lost }
            } else {
                lost
            };
            write_record(&flow, index, lost);
            flow.world.ends(&case, &flow.packet(ACK), Reason::ExtensionLost);
            let reply = flow.reply(ACK);
            flow.world.ends(&case, &reply, Reason::ExtensionLost);
            flow.world.ends(&case, &flow.packet(RST), Reason::UnknownFlowDropped);
        }
    }
}

#[test]
fn what_does_not_fit_or_has_no_hops_left_is_answered_as_it_came() {
    for (method, v6) in TRANSLATING {
        let mut flow = shifted(method, v6);
        let case = flow.name();
        for (packet, reason) in [
            (flow.packet(ACK).with(|p| p.ttl = 1), Reason::TimeExceeded),
            (flow.packet(ACK).payload(1500), Reason::PacketTooBig),
            (flow.reply(ACK).with(|p| p.ttl = 1), Reason::TimeExceeded),
            (flow.reply(ACK).payload(1500), Reason::PacketTooBig),
        ] {
            let sent = packet.bytes();
            let seen = flow.world.ends(&case, &packet, reason);
            // The quoted sequence number is the sender's own.
            let l4 = packet.l4();
            let sequence = &sent[l4 + 4..l4 + 8];
            let quoted = seen.frame.len().min(14 + if v6 { 40 + 8 + 40 } else { 20 + 8 + 20 } + 8) - 4;
            assert_eq!(&seen.frame[quoted..quoted + 4], sequence, "{case} {reason:?}");
        }
    }
}

#[test]
fn a_flow_without_the_flag_reads_no_record() {
    for (method, v6) in TRANSLATING {
        let mut flow = Flow::new(method, v6, false);
        flow.establish();
        assert_eq!(records(&flow), [], "{}", flow.name());
        let packet = flow.packet_from(client(v6, 7), CLIENT_PORT, SYN);
        flow.world.send(&packet.bytes());
        assert_eq!(records(&flow), [], "{}", flow.name());
    }
}
