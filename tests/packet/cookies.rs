//! SYN cookies: what a SYN is answered, what the cookie becomes, and how the flow goes on whose server the client never
//! heard of its beginning.

use crate::{
    flows::{CLIENT_PORT, Flow, Method, VIP_PORT},
    frame::{self, ACK, Packet, RST, SYN, Transport},
    world::{Counted, DIRECTOR, GATEWAY, Seen, client, mac_of, vip},
};
use lb_agent::dataplane::{
    Action,
    tables::{Access, Cookies},
};
use lb_common::{
    cookie::{self, Carried},
    guard::Guard,
    service::OnUnknownFlow,
    verdict::Reason,
};
use std::{mem::offset_of, net::IpAddr, sync::atomic::Ordering::SeqCst};

const ISN: u32 = 0xffff_fff0;
const SERVER_ISN: u32 = 0x7000_0001;
const CLIENT_CLOCK: u32 = 5_000;
const SERVER_CLOCK: u32 = 0xffff_ff00;

/// What a frame holds, read byte by byte, its checksums looked at.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Segment {
    macs: ([u8; 6], [u8; 6]),
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Segment {
    fn of(frame: &[u8], v6: bool) -> Self {
        let ip = &frame[frame::ETHERNET..];
        let (source, destination, len): (IpAddr, IpAddr, usize) = if v6 {
            let address = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap().into();
            (address(8), address(24), usize::from(u16::from_be_bytes([ip[4], ip[5]])) + 40)
        } else {
            assert_eq!(frame::checksum(&ip[..20]), 0, "the header's checksum");
            let address = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap().into();
            (address(12), address(16), usize::from(u16::from_be_bytes([ip[2], ip[3]])))
        };
        assert_eq!(len, ip.len(), "the frame ends with its packet");
        let tcp = &ip[if v6 { 40 } else { 20 }..];
        let mut covered = frame::pseudo_header(source, destination, frame::TCP, tcp.len());
        covered.extend(tcp);
        assert_eq!(frame::checksum(&covered), 0, "TCP's checksum");
        let half = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        let header = usize::from(tcp[12] >> 4) * 4;
        Self {
            macs: (frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap()),
            source: (source, half(0)),
            destination: (destination, half(2)),
            sequence: word(4),
            acknowledged: word(8),
            flags: tcp[13],
            window: half(14),
            options: tcp[20..header].to_vec(),
            payload: tcp[header..].to_vec(),
        }
    }
}

fn stamps(value: u32, echo: u32) -> Vec<u8> {
    [vec![8, 10], value.to_be_bytes().to_vec(), echo.to_be_bytes().to_vec()].concat()
}

/// The options of a segment that has nothing but stamps.
fn only_stamps(value: u32, echo: u32) -> Vec<u8> {
    [vec![1, 1], stamps(value, echo)].concat()
}

/// What a client says in its SYN.
#[derive(Clone, Copy, Debug)]
struct Says {
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    stamps: bool,
}

const LINUX: Says = Says { mss: Some(1460), scale: Some(9), sack: true, stamps: true };
const ALL: [Says; 6] = [
    LINUX,
    Says { mss: None, scale: None, sack: false, stamps: false },
    Says { mss: Some(1380), scale: None, sack: false, stamps: false },
    Says { mss: Some(1220), scale: Some(7), sack: true, stamps: false },
    Says { mss: Some(9000), scale: None, sack: true, stamps: true },
    Says { mss: Some(100), scale: Some(14), sack: false, stamps: true },
];

impl Says {
    fn options(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(mss) = self.mss {
            bytes.extend([2, 4]);
            bytes.extend(mss.to_be_bytes());
        }
        if self.sack {
            bytes.extend([4, 2]);
        }
        if self.stamps {
            bytes.extend(stamps(CLIENT_CLOCK, 0));
        }
        if let Some(scale) = self.scale {
            bytes.extend([3, 3, scale]);
        }
        bytes.resize(bytes.len().next_multiple_of(4), 1);
        bytes
    }

    fn mss_index(self, v6: bool) -> u32 {
        cookie::mss_index(v6, self.mss.unwrap_or(0))
    }

    /// What is left of it: only timestamps carry the rest.
    fn carried(self) -> Carried {
        if self.stamps {
            Carried { scale: self.scale.unwrap_or(cookie::NO_SCALE), sack: self.sack }
        } else {
            Carried { scale: cookie::NO_SCALE, sack: false }
        }
    }

    /// Options as we lay them out.
    fn laid_out(self, mss: u16, scale: Option<u8>, value: u32, echo: u32) -> Vec<u8> {
        let mut bytes = [vec![2, 4], mss.to_be_bytes().to_vec()].concat();
        if self.stamps {
            bytes.extend(if self.sack { [4, 2] } else { [1, 1] });
            bytes.extend(stamps(value, echo));
            match scale {
                Some(scale) => bytes.extend([1, 3, 3, scale]),
                None => bytes.extend([1; 4]),
            }
        }
        bytes
    }
}

/// A flow whose service answers SYNs with cookies.
fn flow(method: Method, v6: bool, when: Cookies) -> Flow {
    let flow = Flow::with(method, v6, false, |spec| spec.rules.cookies = when);
    let views = flow.world.views();
    for half in [0, 8] {
        views.guard.word(0, offset_of!(Guard, key) + half).store(0x0123_4567_89ab_cdef + half as u64, SeqCst);
    }
    flow
}

fn segment(flow: &Flow, flags: u8, sequence: u32, acknowledged: u32, options: Vec<u8>) -> Packet {
    flow.packet(flags).with(|p| {
        p.payload.clear();
        p.transport = Transport::Tcp {
            source: CLIENT_PORT,
            destination: VIP_PORT,
            sequence,
            acknowledged,
            flags,
            options,
        };
    })
}

/// The server's segment to whoever it believes its peer.
fn reply(flow: &Flow, to: (IpAddr, u16), flags: u8, numbers: (u32, u32), options: Vec<u8>) -> Packet {
    let from = (flow.real, flow.server_port());
    Packet::tcp(from, to, flags).with(|p| {
        p.from = mac_of(flow.real);
        p.payload.clear();
        p.transport = Transport::Tcp {
            source: from.1,
            destination: to.1,
            sequence: numbers.0,
            acknowledged: numbers.1,
            flags,
            options,
        };
    })
}

/// Sends a SYN; what it was answered.
fn offered(flow: &mut Flow, says: Says) -> Segment {
    let case = format!("{:?} v6={} {says:?}", flow.method, flow.v6);
    let syn = segment(flow, SYN, ISN, 0, says.options());
    let seen = flow.world.ends(&case, &syn, Reason::CookieSent);
    let answer = Segment::of(&seen.frame, flow.v6);
    assert!(flow.world.entries().is_empty(), "{case}: something was kept");
    assert_eq!(answer.macs, (GATEWAY, DIRECTOR), "{case}");
    assert_eq!(
        (answer.source, answer.destination),
        ((vip(flow.v6), VIP_PORT), (client(flow.v6, 7), CLIENT_PORT))
    );
    assert_eq!(
        (answer.flags, answer.acknowledged, answer.window),
        (SYN | ACK, ISN.wrapping_add(1), 0),
        "{case}"
    );
    answer
}

/// Our stamp in the SYN-ACK; 0 without.
fn stamp_of(answer: &Segment) -> u32 {
    match answer.options.get(8..12) {
        Some(stamp) => u32::from_be_bytes(stamp.try_into().unwrap()),
        None => 0,
    }
}

/// The client's packet that completes its handshake.
fn acknowledgement(flow: &Flow, says: Says, answer: &Segment) -> Packet {
    let options = if says.stamps { only_stamps(CLIENT_CLOCK + 9, stamp_of(answer)) } else { Vec::new() };
    segment(flow, ACK, ISN.wrapping_add(1), answer.sequence.wrapping_add(1), options)
}

/// Brings the cookie; the SYN that the server got.
fn begun(flow: &mut Flow, says: Says, answer: &Segment) -> Segment {
    let case = format!("{:?} v6={} {says:?}", flow.method, flow.v6);
    let seen = flow.world.send(&acknowledgement(flow, says, answer).bytes());
    assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
    assert_eq!(seen.events, [Reason::FlowNew, Reason::CookieValid], "{case}");
    syn_at_server(flow, &seen)
}

fn syn_at_server(flow: &Flow, seen: &Seen) -> Segment {
    let syn = Segment::of(&seen.frame, flow.v6);
    assert_eq!((syn.flags, syn.sequence, syn.acknowledged), (SYN, ISN, 0), "{}", flow.name());
    assert_eq!(syn.destination, (flow.real, flow.server_port()), "{}", flow.name());
    syn
}

/// The server's SYN-ACK; what the client gets.
fn answered(flow: &mut Flow, syn: &Segment, options: Vec<u8>) -> Segment {
    let packet = reply(flow, syn.source, SYN | ACK, (SERVER_ISN, ISN.wrapping_add(1)), options);
    let seen = flow.world.send(&packet.bytes());
    assert_eq!(seen.counted, Counted::Out(flow.destination), "{}", flow.name());
    Segment::of(&seen.frame, flow.v6)
}

fn translating() -> Vec<(Method, bool)> {
    [Method::Nat, Method::FullNat].into_iter().flat_map(|m| [(m, false), (m, true)]).collect()
}

#[test]
fn a_syn_is_answered_with_a_cookie_and_nothing_is_kept() {
    for (method, v6) in translating() {
        let mut flow = flow(method, v6, Cookies::Always);
        for says in ALL {
            let answer = offered(&mut flow, says);
            assert_eq!(answer.sequence >> 28 & 3, says.mss_index(v6), "{says:?}: the MSS in the cookie");
            let stamp = stamp_of(&answer);
            let scale = says.scale.map(|_| cookie::SCALE);
            let expected = says.laid_out(cookie::announced(v6), scale, stamp, CLIENT_CLOCK);
            assert_eq!(answer.options, expected, "{says:?}");
            if says.stamps {
                assert_eq!(Carried::of(stamp), says.carried(), "{says:?}");
            }
        }
        let other = segment(&flow, SYN, ISN.wrapping_add(1), 0, LINUX.options());
        let seen = flow.world.ends("another SYN", &other, Reason::CookieSent);
        let (one, other) = (offered(&mut flow, LINUX).sequence, Segment::of(&seen.frame, v6).sequence);
        assert_ne!(one & 0xfff_ffff, other & 0xfff_ffff, "one cookie for two SYNs");
    }
}

#[test]
fn a_tagged_syn_is_answered_with_its_tag_and_other_headers_are_left_out() {
    for (method, v6) in translating() {
        let mut flow = flow(method, v6, Cookies::Always);
        let plain = offered(&mut flow, LINUX);
        let syn = segment(&flow, SYN, ISN, 0, LINUX.options());
        let tagged = syn.clone().tagged(&[(0x8100, 5)]);
        let seen = flow.world.ends("tagged", &tagged, Reason::CookieSent);
        assert_eq!(seen.frame[12..16], [0x81, 0, 0, 5], "the tag comes back");
        let mut untagged = seen.frame.clone();
        untagged.drain(12..16);
        assert_eq!(Segment::of(&untagged, v6).acknowledged, plain.acknowledged);
        let long = if v6 {
            syn.with(|p| p.extensions = vec![(frame::DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0])])
        } else {
            syn.with(|p| p.options = vec![1; 8])
        };
        let seen = flow.world.ends("more headers", &long, Reason::CookieSent);
        assert_eq!(Segment::of(&seen.frame, v6).options.len(), 20);
    }
}

#[test]
fn a_cookie_becomes_the_clients_syn_and_the_flow_goes_on_shifted() {
    for (method, v6) in translating() {
        for says in ALL {
            let mut flow = flow(method, v6, Cookies::Always);
            let case = format!("{method:?} v6={v6} {says:?}");
            let answer = offered(&mut flow, says);
            let stamp = stamp_of(&answer);
            let syn = begun(&mut flow, says, &answer);
            let carried = says.carried();
            let scale = Some(carried.scale).filter(|scale| *scale != cookie::NO_SCALE);
            let mss = cookie::mss_of(v6, says.mss_index(v6));
            let expected = Says { sack: carried.sack, ..says }.laid_out(mss, scale, CLIENT_CLOCK + 9, 0);
            assert_eq!(syn.options, expected, "{case}: options of the SYN");
            let window = u32::from(0xfaf0u16) << scale.unwrap_or(0);
            assert_eq!(
                u32::from(syn.window),
                window.min(0xffff),
                "{case}: the window of a SYN is not scaled"
            );
            // The server answers, with a scale of 9.
            let mut options = vec![2, 4, 0x05, 0xb4];
            if says.stamps {
                options.extend([4, 2]);
                options.extend(stamps(SERVER_CLOCK, CLIENT_CLOCK + 9));
                options.extend([1, 3, 3, 9]);
            }
            let opened = answered(&mut flow, &syn, options.clone());
            assert_eq!(opened.flags, ACK, "{case}");
            let next = answer.sequence.wrapping_add(1);
            assert_eq!((opened.sequence, opened.acknowledged), (next, ISN.wrapping_add(1)), "{case}");
            assert_eq!(opened.window, if scale.is_some() { 0xfaf0 >> 7 } else { 0xfaf0 }, "{case}");
            assert_eq!(opened.options.len(), options.len());
            if says.stamps {
                assert_eq!(opened.options[..12], only_stamps(stamp, CLIENT_CLOCK + 9), "{case}: its stamps");
            }
            // Data both ways.
            let mine = if says.stamps { only_stamps(CLIENT_CLOCK + 20, stamp + 3) } else { Vec::new() };
            let data = segment(&flow, ACK, ISN.wrapping_add(1), next, mine).payload(100);
            let seen = flow.world.send(&data.bytes());
            assert_eq!(seen.counted, Counted::In(flow.destination), "{case}");
            let at_server = Segment::of(&seen.frame, v6);
            let numbers = (ISN.wrapping_add(1), SERVER_ISN.wrapping_add(1));
            assert_eq!((at_server.sequence, at_server.acknowledged), numbers, "{case}");
            if says.stamps {
                let expected = only_stamps(CLIENT_CLOCK + 20, SERVER_CLOCK.wrapping_add(3));
                assert_eq!(at_server.options, expected, "{case}: stamps at the server");
            }
            let theirs = if says.stamps {
                only_stamps(SERVER_CLOCK.wrapping_add(40), CLIENT_CLOCK + 20)
            } else {
                Vec::new()
            };
            let numbers = (SERVER_ISN.wrapping_add(1), ISN.wrapping_add(101));
            let data = reply(&flow, syn.source, ACK, numbers, theirs).payload(300);
            let seen = flow.world.send(&data.bytes());
            assert_eq!(seen.counted, Counted::Out(flow.destination), "{case}");
            let at_client = Segment::of(&seen.frame, v6);
            assert_eq!((at_client.sequence, at_client.acknowledged), (next, ISN.wrapping_add(101)), "{case}");
            assert_eq!(at_client.payload.len(), 300);
            let window = u32::from(0xfaf0u16) << if scale.is_some() { 9 - 7 } else { 0 };
            assert_eq!(
                u32::from(at_client.window),
                window.min(0xffff),
                "{case}: windows are scaled for the client"
            );
            if says.stamps {
                assert_eq!(
                    at_client.options,
                    only_stamps(stamp.wrapping_add(40), CLIENT_CLOCK + 20),
                    "{case}"
                );
            }
        }
    }
}

#[test]
fn what_comes_before_the_server_has_answered_is_its_syn_again() {
    for (method, v6) in translating() {
        let mut flow = flow(method, v6, Cookies::Always);
        let answer = offered(&mut flow, LINUX);
        let first = begun(&mut flow, LINUX, &answer);
        let early = acknowledgement(&flow, LINUX, &answer).payload(200);
        for packet in [acknowledgement(&flow, LINUX, &answer), early] {
            let seen = flow.world.send(&packet.bytes());
            assert_eq!(seen.counted, Counted::In(flow.destination));
            assert_eq!(syn_at_server(&flow, &seen), first, "{}", flow.name());
        }
        assert_eq!(flow.world.connections().len(), 1);
    }
}

#[test]
fn a_server_that_is_not_heard_by_its_client_is_acknowledged() {
    for (method, v6) in translating() {
        let mut flow = flow(method, v6, Cookies::Always);
        let answer = offered(&mut flow, LINUX);
        let syn = begun(&mut flow, LINUX, &answer);
        let options =
            [vec![2, 4, 5, 0xb4, 4, 2], stamps(SERVER_CLOCK, CLIENT_CLOCK + 9), vec![1, 3, 3, 7]].concat();
        answered(&mut flow, &syn, options.clone());
        let packet = reply(&flow, syn.source, SYN | ACK, (SERVER_ISN, ISN.wrapping_add(1)), options);
        let seen = flow.world.ends("sent again", &packet, Reason::CookieAcknowledged);
        let back = Segment::of(&seen.frame, v6);
        assert_eq!(back.macs, (mac_of(flow.real), DIRECTOR));
        assert_eq!((back.source, back.destination), (syn.source, syn.destination));
        assert_eq!(back.flags, ACK);
        let numbers = (ISN.wrapping_add(1), SERVER_ISN.wrapping_add(1));
        assert_eq!((back.sequence, back.acknowledged), numbers);
        assert_eq!(back.options, only_stamps(CLIENT_CLOCK + 9, SERVER_CLOCK));
    }
}

#[test]
fn with_toa_the_server_learns_whose_cookie_it_was_whoever_acknowledges() {
    for (v6, says) in [(false, LINUX), (true, LINUX), (false, ALL[1]), (true, ALL[1])] {
        let less = if v6 { 20 } else { 8 };
        let told = |v6| match client(v6, 7) {
            IpAddr::V4(v4) => [vec![254, 8, 0x9c, 0x40], v4.octets().to_vec()].concat(),
            IpAddr::V6(v6) => [vec![254, 20, 0x9c, 0x40], v6.octets().to_vec()].concat(),
        };
        let mut flow = flow(Method::FullNat, v6, Cookies::Always);
        flow.spec.rules.toa = true;
        flow.world.service(&flow.spec.clone());
        let syn = segment(&flow, SYN, ISN, 0, says.options());
        let seen = flow.world.ends("a SYN", &syn, Reason::CookieSent);
        let answer = Segment::of(&seen.frame, v6);
        assert_eq!(answer.options[2..4], (cookie::announced(v6) - less).to_be_bytes());
        let syn = begun(&mut flow, says, &answer);
        assert!(!syn.options.starts_with(&[254]));
        let (mut options, mut mine) = (vec![2, 4, 5, 0xb4], Vec::new());
        if says.stamps {
            options =
                [options, vec![4, 2], stamps(SERVER_CLOCK, CLIENT_CLOCK + 9), vec![1, 3, 3, 7]].concat();
            mine = only_stamps(CLIENT_CLOCK + 9, SERVER_CLOCK);
        }
        answered(&mut flow, &syn, options.clone());
        let packet = reply(&flow, syn.source, SYN | ACK, (SERVER_ISN, ISN.wrapping_add(1)), options);
        let seen = flow.world.ends("sent again", &packet, Reason::CookieAcknowledged);
        assert_eq!(seen.events, [Reason::ToaSent]);
        let back = Segment::of(&seen.frame, v6);
        assert_eq!((back.source, back.destination, back.flags), (syn.source, syn.destination, ACK));
        assert_eq!(back.options, [told(v6), mine].concat());
        // And the client, when it speaks.
        let data = segment(&flow, ACK, ISN.wrapping_add(1), answer.sequence.wrapping_add(1), Vec::new());
        let seen = flow.world.send(&data.payload(9).bytes());
        assert_eq!((seen.counted, seen.events), (Counted::In(flow.destination), vec![Reason::ToaSent]));
        assert_eq!(Segment::of(&seen.frame, v6).options, told(v6));
    }
}

#[test]
fn a_server_that_refuses_is_believed_by_the_client() {
    for (method, v6) in translating() {
        let mut flow = flow(method, v6, Cookies::Always);
        let answer = offered(&mut flow, LINUX);
        let syn = begun(&mut flow, LINUX, &answer);
        let packet = reply(&flow, syn.source, RST | ACK, (0, ISN.wrapping_add(1)), Vec::new());
        let seen = flow.world.send(&packet.bytes());
        assert_eq!(seen.counted, Counted::Out(flow.destination));
        let reset = Segment::of(&seen.frame, v6);
        assert_eq!((reset.flags, reset.sequence), (RST | ACK, answer.sequence.wrapping_add(1)));
        // One that knows a connection of before on these ports is reset, as its client would have done.
        let mut flow = flow_again(method, v6);
        let answer = offered(&mut flow, LINUX);
        let syn = begun(&mut flow, LINUX, &answer);
        let packet = reply(&flow, syn.source, ACK, (77, 88), Vec::new());
        let seen = flow.world.ends("an old connection", &packet, Reason::FlowReset);
        assert_eq!(Segment::of(&seen.frame, v6).sequence, 88);
    }
}

fn flow_again(method: Method, v6: bool) -> Flow {
    flow(method, v6, Cookies::Always)
}

#[test]
fn no_server_is_told_by_a_reset_that_the_client_believes() {
    for (method, v6) in translating() {
        let mut flow = Flow::with(method, v6, false, |spec| {
            spec.rules.cookies = Cookies::Always;
            spec.rules.no_server = lb_common::service::NoServer::Reset;
        });
        let answer = offered(&mut flow, LINUX);
        flow.world.tables.set_slots("web", &[]).expect("slots");
        let packet = acknowledgement(&flow, LINUX, &answer);
        let outcome = flow.world.plane.test_run(&packet.bytes()).expect("BPF_PROG_TEST_RUN");
        assert_eq!(outcome.action, Action::Tx);
        flow.world.sent_apart(1);
        flow.world.look_again();
        assert_eq!(flow.world.reasons().get("no_server_reset"), Some(&1));
        let reset = Segment::of(&outcome.frame, v6);
        let numbers = (answer.sequence.wrapping_add(1), ISN.wrapping_add(1));
        assert_eq!((reset.sequence, reset.acknowledged), numbers);
    }
}

#[test]
fn a_wrong_or_old_cookie_begins_nothing() {
    for (method, v6) in translating() {
        for policy in [OnUnknownFlow::Reset, OnUnknownFlow::Drop] {
            let mut flow = flow(method, v6, Cookies::Always);
            flow.spec.on_unknown_flow = policy;
            flow.world.service(&flow.spec.clone());
            let reason = if policy == OnUnknownFlow::Reset {
                Reason::UnknownFlowReset
            } else {
                Reason::UnknownFlowDropped
            };
            let answer = offered(&mut flow, LINUX);
            let good = acknowledgement(&flow, LINUX, &answer);
            let with = |sequence: u32, acknowledged: u32| {
                segment(&flow, ACK, sequence, acknowledged, only_stamps(1, stamp_of(&answer)))
            };
            let (sequence, acknowledged) = (ISN.wrapping_add(1), answer.sequence.wrapping_add(1));
            let wrong = [
                ("another number", with(sequence, acknowledged ^ 0x40)),
                ("another MSS", with(sequence, acknowledged ^ 1 << 28)),
                ("another beginning", with(sequence.wrapping_add(1), acknowledged)),
                ("another port", good.clone().with(|p| p.set_ports((CLIENT_PORT + 1, VIP_PORT)))),
                ("another client", good.clone().with(|p| p.source = client(v6, 8))),
            ];
            for (case, packet) in wrong {
                let seen = flow.world.ends(case, &packet, reason);
                assert_eq!(seen.events, [Reason::CookieInvalid], "{case}");
            }
            // Two slices later.
            let views = flow.world.views();
            let epoch = views.guard.word(0, offset_of!(Guard, epoch));
            let slice = cookie::SLICE * u64::from(flow.world.plane.clock().hz());
            epoch.store(epoch.load(SeqCst).wrapping_sub(2 * slice), SeqCst);
            let seen = flow.world.ends("old", &good, reason);
            assert!(
                [[Reason::CookieExpired], [Reason::CookieInvalid]].contains(&[seen.events[0]]),
                "{:?}: a slice may have ended meanwhile",
                seen.events
            );
            assert!(flow.world.entries().is_empty());
            // One slice later it is good.
            epoch.store(epoch.load(SeqCst).wrapping_add(slice), SeqCst);
            let reset = good.clone().with(|p| {
                if let Transport::Tcp { flags, .. } = &mut p.transport {
                    *flags = RST | ACK;
                }
            });
            flow.world.ends("a RST begins nothing", &reset, Reason::UnknownFlowDropped);
            flow.world.goes_to("one slice later", &good);
        }
    }
}

#[test]
fn cookies_begin_above_the_rate_and_directors_of_one_key_take_each_others() {
    for (method, v6) in translating() {
        let mut one = flow(method, v6, Cookies::Above);
        let above = one.world.views();
        let never = one.packet(SYN);
        assert!(matches!(one.world.send(&never.bytes()).counted, Counted::In(_)), "0 is never");
        above.guard.half(0, offset_of!(Guard, cookies_above)).store(3, SeqCst);
        let (mut plain, mut cookies) = (0, 0);
        // Once a second has had too many it goes on for ten: only a wholly stalled machine spreads these over more.
        for port in 1000..1060 {
            let syn = one.packet_from(client(v6, 7), port, SYN);
            match one.world.send(&syn.bytes()).counted {
                Counted::In(_) => plain += 1,
                Counted::Reason(Reason::CookieSent) => cookies += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(plain >= 2 && cookies > 0, "{plain} without, {cookies} with a cookie");
        // A SYN-ACK is no client's beginning.
        let strange = one.packet_from(client(v6, 7), 2000, SYN | ACK);
        one.world.ends("SYN and ACK", &strange, Reason::UnknownFlowDropped);
        // Both before the cookie: it is good for a minute, and a data plane is loaded in that time on a slow machine.
        let mut always = flow(method, v6, Cookies::Always);
        let mut other = crate::cookies::flow(method, v6, Cookies::Always);
        let answer = offered(&mut always, LINUX);
        begun(&mut other, LINUX, &answer);
    }
}

#[test]
fn services_whose_replies_pass_elsewhere_send_no_cookies() {
    for method in [Method::Dr, Method::TunV4, Method::Nat, Method::FullNat] {
        let mut flow = Flow::new(method, false, false);
        flow.world.views().guard.half(0, offset_of!(Guard, cookies_above)).store(1, SeqCst);
        for port in 1000..1010 {
            let packet = flow.packet_from(client(false, 7), port, SYN);
            flow.world.goes_to("a SYN", &packet);
        }
    }
}

#[test]
fn who_is_refused_by_the_access_list_gets_no_cookie_and_one_from_before_begins_nothing() {
    for (method, v6) in translating() {
        for others in [Access::Allow, Access::Deny] {
            let mut flow = Flow::with(method, v6, false, |spec| {
                spec.rules.cookies = Cookies::Always;
                spec.rules.access = Some((9, others));
            });
            let [denied, allowed] = [7, 8].map(|n| ipnet::IpNet::from(client(v6, n)));
            let rules = |access| [(denied, access), (allowed, Access::Allow)];
            flow.world.tables.set_access_list(9, &rules(Access::Allow)).unwrap();
            let answer = offered(&mut flow, LINUX);
            flow.world.tables.set_access_list(9, &rules(Access::Deny)).unwrap();
            let case = format!("{} others={others:?}", flow.name());
            flow.world.ends(&case, &segment(&flow, SYN, ISN, 0, LINUX.options()), Reason::AccessDenied);
            let cookie = acknowledgement(&flow, LINUX, &answer);
            let seen = flow.world.ends(&case, &cookie, Reason::AccessDenied);
            assert_eq!(seen.events, [Reason::CookieValid], "{case}: the cookie was good");
            assert!(flow.world.entries().is_empty(), "{case}: something was kept");
            let syn = flow.packet_from(client(v6, 8), CLIENT_PORT, SYN);
            flow.world.ends(&case, &syn, Reason::CookieSent);
            let syn = flow.packet_from(client(v6, 9), CLIENT_PORT, SYN);
            let reason = if others == Access::Allow { Reason::CookieSent } else { Reason::AccessDenied };
            flow.world.ends(&case, &syn, reason);
        }
    }
}
