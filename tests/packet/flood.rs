//! Floods from sources that do not exist: established flows stay where they are, and clients that come meanwhile are
//! served.

use crate::{
    flows::{Method, REAL_PORT, VIP_PORT},
    frame::{self, ACK, Packet, SYN, TCP, UDP},
    world::{Counted, GATEWAY, Seen, World, client, local, mac_of, server, sizes, vip},
};
use lb_agent::dataplane::{Ports, tables::ServiceSpec};
use lb_common::{
    address::Address,
    connection::{Value, WAYS},
    guard::Guard,
    hash::{Secrets, ports_word, tuple_v4},
    service::{OnUnknownFlow, Pick},
    state::State,
    verdict::Reason,
};
use lb_model::traffic::Random;
use std::{
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::Ordering::SeqCst,
};

/// An address that nobody has.
fn nowhere(v6: bool, random: &mut Random) -> IpAddr {
    let n = random.number();
    if v6 {
        Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(n)).into()
    } else {
        Ipv4Addr::from(0x2e00_0000 | (n as u32 & 0xff_ffff)).into()
    }
}

/// What comes from nowhere.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Syn,
    Ack,
    Datagram,
}

/// A service with two servers, and room for few flows.
struct Site {
    world: World,
    method: Method,
    v6: bool,
    udp: bool,
}

impl Site {
    fn new(method: Method, v6: bool, udp: bool, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        let mut world = World::new();
        let mut spec = world.spec("web", vip(v6), if udp { UDP } else { TCP }, &[Ports::One(VIP_PORT)]);
        if method == Method::FullNat {
            // 1024 ports.
            spec.pool = Some(world.pool(local(v6), (1, 63)));
        }
        change(&mut spec);
        world.service(&spec);
        world.clients_behind(GATEWAY);
        let port = if method.translates() { REAL_PORT } else { 0 };
        let servers: Vec<u32> = [11, 12]
            .map(|n| world.server(&spec, server(method.real_is_v6(v6), n), port, method.forwarding()))
            .to_vec();
        world.slots("web", &servers);
        Self { world, method, v6, udp }
    }

    fn packet(&self, from: IpAddr, port: u16, flags: u8) -> Packet {
        let (from, to) = ((from, port), (vip(self.v6), VIP_PORT));
        if self.udp { Packet::udp(from, to) } else { Packet::tcp(from, to, flags) }
    }

    /// A flow from its first packet to its settled state; where it went.
    fn begin(&mut self, port: u16) -> u32 {
        let from = client(self.v6, 7);
        let case = format!("{:?} v6={} udp={} port {port}", self.method, self.v6, self.udp);
        let seen = self.world.send(&self.packet(from, port, SYN).bytes());
        let Counted::In(first) = seen.counted else { panic!("{case}: {:?}", seen.counted) };
        if self.method.translates() {
            let reply = self.reply(&seen);
            let out = self.world.send(&reply.bytes());
            assert_eq!(out.counted, Counted::Out(first), "{case}: the server's answer");
        }
        let second = self.world.goes_to(&case, &self.packet(from, port, ACK));
        assert_eq!(first, second, "{case}: its second packet");
        first
    }

    /// What the server answers to the packet that it was sent.
    fn reply(&self, seen: &Seen) -> Packet {
        let ip = &seen.frame[frame::ETHERNET..];
        let (addresses, l4) = if self.v6 { (&ip[8..40], 40) } else { (&ip[12..20], 20) };
        let half = addresses.len() / 2;
        let address = |bytes: &[u8]| -> IpAddr {
            match <[u8; 4]>::try_from(bytes) {
                Ok(v4) => Ipv4Addr::from(v4).into(),
                Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("an address")).into(),
            }
        };
        let port = |at: usize| u16::from_be_bytes([ip[l4 + at], ip[l4 + at + 1]]);
        let (to, from) = ((address(&addresses[..half]), port(0)), (address(&addresses[half..]), port(2)));
        let reply = if self.udp { Packet::udp(from, to) } else { Packet::tcp(from, to, SYN | ACK) };
        reply.with(|p| p.from = mac_of(from.0))
    }

    /// So many packets, each from another source.
    fn flood(&mut self, kind: Kind, random: &mut Random, packets: u64) {
        let flags = if kind == Kind::Syn { SYN } else { ACK };
        for _ in 0..packets {
            let (from, port) = (nowhere(self.v6, random), random.number() as u16 | 1);
            self.world.plane.test_run(&self.packet(from, port, flags).bytes()).expect("BPF_PROG_TEST_RUN");
        }
        self.world.sent_apart(packets);
        self.world.look_again();
    }
}

#[test]
fn a_flood_that_would_fill_the_table_costs_no_established_flow() {
    let mut random = Random(20_261_122);
    for method in Method::ALL {
        for (v6, kind) in [(false, Kind::Syn), (false, Kind::Ack), (false, Kind::Datagram), (true, Kind::Syn)]
        {
            let mut site = Site::new(method, v6, kind == Kind::Datagram, |spec| {
                spec.on_unknown_flow = OnUnknownFlow::Adopt;
            });
            let case = format!("{method:?} v6={v6} {kind:?}");
            let before: Vec<(u16, u32)> = (1000..1100).map(|port| (port, site.begin(port))).collect();
            // Ten times what there is room for, in the table and among the local ports.
            let slots = u64::from(site.world.views().connections.len()) * 4;
            for round in 0..40u16 {
                site.flood(kind, &mut random, slots / 4);
                // Who comes meanwhile is served.
                site.begin(2000 + round);
            }
            let reasons = site.world.reasons();
            let evicted = if kind == Kind::Syn { "evicted_half_open" } else { "evicted_unconfirmed" };
            assert!(reasons.contains_key(evicted), "{case}: the table was never full: {reasons:?}");
            for (port, server) in before {
                let packet = site.packet(client(v6, 7), port, ACK);
                let seen = site.world.send(&packet.bytes());
                assert_eq!(seen.counted, Counted::In(server), "{case}: the flow of port {port}");
                assert_eq!(seen.events, [], "{case}: the flow of port {port} was lost and taken up again");
            }
        }
    }
}

#[test]
fn half_open_flows_make_room_among_the_local_ports_and_established_ones_do_not() {
    for v6 in [false, true] {
        let mut site = Site::new(Method::FullNat, v6, false, |_| ());
        let mut random = Random(7);
        site.begin(1000);
        let views = site.world.views();
        let held = |state: State| {
            let live = |lease: &u32| Value(views.leases.word(*lease, 8).load(SeqCst)).state() == state as u8;
            (0..1u32 << 16).filter(live).count()
        };
        site.flood(Kind::Syn, &mut random, 8000);
        assert_eq!(held(State::Established), 1);
        assert!(held(State::SynReceived) > 900, "the flood holds {} of 1024", held(State::SynReceived));
        for port in 2000..2300 {
            site.begin(port);
        }
        assert_eq!(held(State::Established), 301);
        // All established: nobody is given up.
        for lease in 0..1u32 << 16 {
            let word = views.leases.word(lease, 8);
            let value = Value(word.load(SeqCst));
            if !value.is_empty() {
                word.store(value.with(State::Established as u8, value.deadline()).0, SeqCst);
            }
        }
        let all = held(State::Established);
        site.flood(Kind::Syn, &mut random, 3000);
        assert!(held(State::Established) >= all, "an established flow's port was given away");
    }
}

#[test]
fn above_the_rate_of_new_flows_hash_services_make_no_entries() {
    for method in [Method::Dr, Method::TunV4, Method::TunV6] {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            for pick in [Pick::HashAddress, Pick::HashAddressPort, Pick::Cursor] {
                let mut site = Site::new(method, v6, udp, |spec| {
                    (spec.pick, spec.on_unknown_flow) = (pick, OnUnknownFlow::Adopt);
                });
                let case = format!("{method:?} v6={v6} udp={udp} {pick:?}");
                let guard = site.world.views();
                guard.guard.half(0, offset_of!(Guard, new_flows)).store(5, SeqCst);
                let known = site.begin(999);
                let (mut placed, mut stateless) = (1, 0);
                // Five of each second may be placed; how many seconds this takes is the machine's affair.
                for port in 1000..1040 {
                    let mut went = Vec::new();
                    for flags in [SYN, ACK, ACK] {
                        let seen = site.world.send(&site.packet(client(v6, 7), port, flags).bytes());
                        let Counted::In(server) = seen.counted else { panic!("{case}: {:?}", seen.counted) };
                        went.push(server);
                        for event in seen.events {
                            match event {
                                Reason::FloodStateless => stateless += 1,
                                Reason::FlowNew | Reason::FlowAdopted => placed += 1,
                                other => panic!("{case}: {other:?}"),
                            }
                        }
                    }
                    assert!(went.iter().all(|server| *server == went[0]), "{case}: {went:?}");
                }
                assert_eq!(site.world.entries().len(), placed, "{case}: entries");
                if pick == Pick::Cursor {
                    assert_eq!((placed, stateless), (41, 0), "{case}: its slots give no answer twice");
                } else {
                    assert!(stateless > 0, "{case}: 40 flows were placed where 5 a second may");
                }
                let seen = site.world.send(&site.packet(client(v6, 7), 999, ACK).bytes());
                assert_eq!(
                    (seen.counted, seen.events),
                    (Counted::In(known), vec![]),
                    "{case}: it has an entry"
                );
            }
        }
    }
}

/// The share of buckets that chosen flows are to meet in: one in so many.
const SHARE: u32 = 16;

/// So many clients whose flows' buckets are both among the first of a table, by these secrets.
fn chosen(
    secrets: &Secrets,
    v6: bool,
    buckets: u32,
    wanted: usize,
    random: &mut Random,
) -> Vec<(IpAddr, u16)> {
    let vip_words = Address::from(vip(v6)).halves();
    let shift = 64 - buckets.ilog2();
    let mut found = Vec::new();
    while found.len() < wanted {
        let (from, port) = (nowhere(v6, random), random.number() as u16 | 1);
        let (source, ports) = (Address::from(from).halves(), ports_word(port, VIP_PORT));
        let identity = if v6 {
            secrets.identity_v6(secrets.sum_v6(vip_words), source, ports, false)
        } else {
            let key = secrets.key_v4(vip_words[0] as u32);
            secrets.identity_v4(key, tuple_v4(source[0] as u32, ports), false)
        };
        if [secrets.first(identity), secrets.second(identity)]
            .iter()
            .all(|product| product >> shift < u64::from(buckets / SHARE))
        {
            found.push((from, port));
        }
    }
    found
}

/// An attacker knows how flows are placed, but not by which secrets. With secrets of his own he finds flows that would all
/// meet in a sixteenth of the table: in the real one they spread and displace nobody. With the real ones, which he cannot
/// have, they do meet there, and push out each other, but no flow that is established.
#[test]
fn flows_chosen_to_collide_spread_by_the_directors_own_secrets() {
    for v6 in [false, true] {
        for stolen in [false, true] {
            let mut random = Random(20_261_123);
            let mut site = Site::new(Method::Dr, v6, false, |_| ());
            let case = format!("v6={v6} stolen={stolen}");
            let views = site.world.views();
            let buckets = if v6 { sizes().buckets_v6() } else { sizes().buckets() };
            let guessed = Secrets::from_random(std::array::from_fn(|_| random.number()));
            let secrets = if stolen { &views.secrets } else { &guessed };
            let before: Vec<(u16, u32)> = (1000..1020).map(|port| (port, site.begin(port))).collect();
            // A quarter of the table, four times what finds room where they would meet.
            let room = (buckets / SHARE) as usize * WAYS;
            for (from, port) in chosen(secrets, v6, buckets, 4 * room, &mut random) {
                site.world.plane.test_run(&site.packet(from, port, SYN).bytes()).expect("BPF_PROG_TEST_RUN");
            }
            site.world.sent_apart(4 * room as u64);
            site.world.look_again();
            let reasons = site.world.reasons();
            let evicted = reasons.get("evicted_half_open").copied().unwrap_or(0) as usize;
            let live = site.world.entries().len() - before.len();
            if stolen {
                assert!(live <= room && evicted >= 3 * room, "{case}: {live} in {room}; {reasons:?}");
            } else {
                assert_eq!((live, evicted), (4 * room, 0), "{case}: {reasons:?}");
            }
            for (port, server) in before {
                let seen = site.world.send(&site.packet(client(v6, 7), port, ACK).bytes());
                assert_eq!((seen.counted, seen.events), (Counted::In(server), vec![]), "{case}: port {port}");
            }
        }
    }
}
