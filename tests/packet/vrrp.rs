//! What a director does by its role: a backup leaves its VIPs to the master, a master whose lease has ended is
//! silent. Frames of the kernel's own are seen on their way out.

use crate::{
    flows::{Flow, Method, matrix},
    frame::{ACK, FRAGMENT, HOP_BY_HOP, ICMPV6, Packet, SYN, chunk},
    world::{Counted, DIRECTOR, World, client, local, server, vip},
};
use lb_agent::dataplane::{VrrpRole, VrrpStanding};
use lb_common::{
    maps::{VRRP_FOREVER, VRRP_MASTER, VRRP_UNTIL},
    verdict::Reason,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

fn flow(method: Method, v6: bool, udp: bool) -> Flow {
    let mut flow = Flow::new(method, v6, udp);
    // As the addresses of the pool do: a reply to one of them is a packet of the instance.
    let addresses = [vip(v6), local(v6)];
    follow(&mut flow.world, &addresses);
    flow
}

const INSTANCE: u8 = 2;

/// Makes addresses follow an instance that is not the first.
fn follow(world: &mut World, addresses: &[IpAddr]) {
    world.tables.set_vrrp("other", &["198.18.0.1".parse().unwrap()], true).unwrap();
    accept(world, addresses, true);
}

/// The instance with these addresses, with or without accept mode.
fn accept(world: &mut World, addresses: &[IpAddr], accept: bool) {
    assert_eq!(world.tables.set_vrrp("edge", addresses, accept).unwrap(), INSTANCE);
}

fn set_word(world: &World, word: u64) {
    world.plane.vrrp_roles().set_word(INSTANCE, word).unwrap();
}

fn set(flow: &mut Flow, word: u64) {
    set_word(&flow.world, word);
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
    flow.world.plane.vrrp_roles().set_word(INSTANCE - 1, 0).unwrap();
    flow.establish();
}

#[test]
fn a_role_set_by_the_handle_holds_until_its_time() {
    let mut flow = flow(Method::Dr, false, false);
    let roles = flow.world.plane.vrrp_roles();
    roles.set(INSTANCE, VrrpRole::Master { until: Instant::now() + Duration::from_secs(600) }).unwrap();
    flow.establish();
    assert!(matches!(roles.standing(INSTANCE).unwrap(), VrrpStanding::Master(Some(_))));
    roles.set(INSTANCE, VrrpRole::Master { until: Instant::now() }).unwrap();
    flow.world.ends("ended", &flow.packet(ACK), Reason::LeaseExpired);
    assert!(matches!(roles.standing(INSTANCE).unwrap(), VrrpStanding::Expired(_)));
    roles.set(INSTANCE, VrrpRole::Backup).unwrap();
    flow.world.ends("backup", &flow.packet(ACK), Reason::VrrpBackup);
    roles.set(INSTANCE, VrrpRole::MasterWithoutEnd).unwrap();
    flow.forward(&flow.packet(ACK));
}

/// What a word says of the director.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    Backup,
    Master,
    Expired,
    /// The addresses follow no instance.
    Free,
}

impl Is {
    const ALL: [Is; 4] = [Is::Backup, Is::Master, Is::Expired, Is::Free];

    /// A world in which the VIPs of both families, without a virtual service, follow an instance.
    fn world(self) -> World {
        let mut world = World::new();
        if self != Is::Free {
            follow(&mut world, &[vip(false), vip(true)]);
        }
        let now = world.plane.clock().jiffies().unwrap();
        set_word(
            &world,
            match self {
                Is::Backup | Is::Free => 0,
                Is::Master => VRRP_MASTER | (now + 1_000_000) & VRRP_UNTIL,
                Is::Expired => VRRP_MASTER | now & VRRP_UNTIL,
            },
        );
        world
    }

    fn of<T>(self, backup: T, expired: T, serving: T) -> T {
        match self {
            Is::Backup => backup,
            Is::Expired => expired,
            Is::Master | Is::Free => serving,
        }
    }
}

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// An ARP frame (RFC 826), with tags.
fn arp(operation: u16, sender: IpAddr, target: IpAddr, tags: &[(u16, u16)]) -> Vec<u8> {
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (sender, target) else { panic!("ARP is IPv4's") };
    let mut frame = vec![0xff; 6];
    frame.extend(DIRECTOR);
    for (kind, tci) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(DIRECTOR);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    // Padded to the least length of a frame.
    frame.resize(frame.len().max(60), 0);
    frame
}

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A message of neighbour discovery (RFC 4861, sections 4.3 and 4.4) with a link-layer address.
fn discovery(kind: u8, from: IpAddr, to: IpAddr, about: IpAddr) -> Packet {
    let IpAddr::V6(target) = about else { panic!("neighbour discovery is IPv6's") };
    let mut packet = Packet::other(from, to, ICMPV6);
    packet.ttl = 255;
    packet.payload = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    packet.payload.extend(target.octets());
    packet.payload.extend([if kind == SOLICITATION { 1 } else { 2 }, 1]);
    packet.payload.extend(DIRECTOR);
    packet
}

/// Where solicitations of an address go (RFC 4291, section 2.7.1).
fn group(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { panic!("IPv6 only") };
    let [.., a, b] = v6.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a & 0xff, b).into()
}

fn all_nodes() -> IpAddr {
    "ff02::1".parse().unwrap()
}

#[test]
fn arp_for_an_address_is_answered_by_its_master_only() {
    let (vip, host, nobody) = (vip(false), server(false, 1), Ipv4Addr::UNSPECIFIED.into());
    for is in Is::ALL {
        let mut world = is.world();
        let silent = is.of(Reason::ArpBackup, Reason::ArpExpired, Reason::NotIp);
        for (what, frame, reason) in [
            ("request", arp(REQUEST, host, vip, &[]), silent),
            ("probe (RFC 5227)", arp(REQUEST, nobody, vip, &[]), silent),
            ("reply to it", arp(REPLY, host, vip, &[]), silent),
            ("tagged request", arp(REQUEST, host, vip, &[(0x8100, 5)]), silent),
            ("request with two tags", arp(REQUEST, host, vip, &[(0x88a8, 5), (0x8100, 6)]), silent),
            ("announcement", arp(REQUEST, vip, vip, &[]), Reason::NotIp),
            ("announcement by reply", arp(REPLY, vip, vip, &[]), Reason::NotIp),
            ("the master's reply to us", arp(REPLY, vip, host, &[]), Reason::NotIp),
            ("request for another", arp(REQUEST, vip, host, &[]), Reason::NotIp),
            ("cut short", arp(REQUEST, host, vip, &[])[..41].to_vec(), Reason::NotIp),
        ] {
            world.ends_frame(&format!("{is:?}: {what}"), &frame, reason);
        }
        // Of another hardware, or not for IPv4.
        for at in 14..20 {
            let mut odd = arp(REQUEST, host, vip, &[]);
            odd[at] ^= 0x40;
            world.ends_frame(&format!("{is:?}: byte {at}"), &odd, Reason::NotIp);
        }
    }
}

#[test]
fn neighbour_discovery_for_an_address_is_answered_by_its_master_only() {
    let (vip, host, other) = (vip(true), server(true, 1), server(true, 0x10));
    let lookalike = "2001:db8:77::10".parse().unwrap();
    assert_eq!(group(vip), group(lookalike));
    for is in Is::ALL {
        let mut world = is.world();
        let silent = is.of(Reason::NdBackup, Reason::NdExpired, Reason::NotOurs);
        let passed = is.of(Reason::NotOurs, Reason::NotOurs, Reason::NotOurs);
        for (what, packet, reason) in [
            ("solicitation", discovery(SOLICITATION, host, group(vip), vip), silent),
            ("of one with the same group", discovery(SOLICITATION, host, group(vip), lookalike), passed),
            ("to all", discovery(ADVERTISEMENT, host, all_nodes(), vip), passed),
            ("of another", discovery(SOLICITATION, host, group(other), other), passed),
            ("the master's answer to us", discovery(ADVERTISEMENT, vip, host, vip), passed),
            (
                "detection of duplicates",
                discovery(SOLICITATION, Ipv6Addr::UNSPECIFIED.into(), group(vip), vip),
                silent,
            ),
        ] {
            world.ends(&format!("{is:?}: {what}"), &packet, reason);
            let tagged = packet.tagged(&[(0x8100, 5)]);
            world.ends(&format!("{is:?}: {what}, tagged"), &tagged, reason);
        }
        // To the address itself: without an instance it is nobody's here.
        for kind in [SOLICITATION, ADVERTISEMENT] {
            world.ends(&format!("{is:?}: {kind} to it"), &discovery(kind, host, vip, vip), silent);
        }
        let mut behind = discovery(SOLICITATION, host, vip, vip);
        behind.extensions = vec![(HOP_BY_HOP, vec![0, 1, 4, 0, 0, 0, 0])];
        world.ends(
            &format!("{is:?}: behind an extension header"),
            &behind,
            is.of(Reason::VrrpBackup, Reason::LeaseExpired, Reason::NotOurs),
        );
    }
}

#[test]
fn packets_to_an_address_without_a_service_are_the_kernels_until_the_lease_ends() {
    for (is, v6) in Is::ALL.into_iter().flat_map(|is| [(is, false), (is, true)]) {
        let mut world = is.world();
        let (from, to) = ((client(v6, 7), 40_000), (vip(v6), 80));
        let icmp = Packet::other(from.0, to.0, if v6 { ICMPV6 } else { 1 }).with(|p| p.payload[0] = 128);
        let fragment = Packet::udp(from, to).with(|p| {
            p.fragment = 0x2000;
            p.payload = vec![0; 16];
            if v6 {
                p.extensions = vec![(FRAGMENT, vec![0, 0, 1, 0, 0, 0, 1])];
            }
        });
        let reason = is.of(Reason::VrrpBackup, Reason::LeaseExpired, Reason::NotOurs);
        for (what, packet) in [
            ("SYN", Packet::tcp(from, to, SYN)),
            ("ACK", Packet::tcp(from, to, ACK)),
            ("UDP", Packet::udp(from, to)),
            ("ICMP", icmp),
            ("fragment", fragment),
            ("DCCP", Packet::other(from.0, to.0, 33)),
        ] {
            world.ends(&format!("{is:?} v6={v6}: {what}"), &packet, reason);
            let tagged = packet.tagged(&[(0x8100, 5)]);
            world.ends(&format!("{is:?} v6={v6}: {what}, tagged"), &tagged, reason);
        }
        let elsewhere = Packet::tcp(from, (server(v6, 9), 80), SYN);
        world.ends(&format!("{is:?} v6={v6}: elsewhere"), &elsewhere, Reason::NotOurs);
    }
}

#[test]
fn what_no_service_takes_is_silent_with_the_services_when_the_lease_ends() {
    for v6 in [false, true] {
        let mut flow = flow(Method::Dr, v6, false);
        let now = flow.world.plane.clock().jiffies().unwrap();
        let to = |port| Packet::tcp((client(v6, 7), 40_000), (vip(v6), port), SYN);
        let icmp =
            Packet::other(client(v6, 7), vip(v6), if v6 { ICMPV6 } else { 1 }).with(|p| p.payload[0] = 128);
        let dccp = Packet::other(client(v6, 7), vip(v6), 33);
        let fragment = Packet::udp((client(v6, 7), 1), (vip(v6), 80)).with(|p| {
            p.fragment = 0x2000;
            p.payload = vec![0; 16];
            if v6 {
                p.extensions = vec![(FRAGMENT, vec![0, 0, 1, 0, 0, 0, 1])];
            }
        });
        for (word, reasons) in [
            (VRRP_FOREVER, [Reason::NoService, Reason::Icmp, Reason::OtherProtocol, Reason::NoService]),
            (0, [Reason::VrrpBackup; 4]),
            (VRRP_MASTER | now & VRRP_UNTIL, [Reason::LeaseExpired; 4]),
        ] {
            set(&mut flow, word);
            for (packet, reason) in [&to(81), &icmp, &dccp, &fragment].into_iter().zip(reasons) {
                flow.world.ends(&format!("v6={v6} {word:x}"), packet, reason);
            }
            // Also with the address of a real server that answers through us as their source.
            let address = server(v6, 11);
            flow.world
                .tables
                .bind_address("nat", lb_agent::dataplane::tables::Role::NatSource, address)
                .unwrap();
            let from_server = Packet::tcp((address, 80), (vip(v6), 81), SYN);
            flow.world.ends(&format!("v6={v6} {word:x} from a server"), &from_server, reasons[0]);
        }
    }
}

#[test]
fn without_accept_mode_a_master_takes_nothing_but_neighbour_discovery() {
    for (is, v6) in Is::ALL.into_iter().flat_map(|is| [(is, false), (is, true)]) {
        let mut world = is.world();
        if is != Is::Free {
            accept(&mut world, &[vip(false), vip(true)], false);
        }
        let serving = if is == Is::Free { Reason::NotOurs } else { Reason::NotAccepted };
        let reason = is.of(Reason::VrrpBackup, Reason::LeaseExpired, serving);
        let (from, to) = ((client(v6, 7), 40_000), (vip(v6), 80));
        let icmp = Packet::other(from.0, to.0, if v6 { ICMPV6 } else { 1 }).with(|p| p.payload[0] = 128);
        let fragment = Packet::udp(from, to).with(|p| {
            p.fragment = 0x2000;
            p.payload = vec![0; 16];
            if v6 {
                p.extensions = vec![(FRAGMENT, vec![0, 0, 1, 0, 0, 0, 1])];
            }
        });
        for (what, packet) in [
            ("SYN", Packet::tcp(from, to, SYN)),
            ("UDP", Packet::udp(from, to)),
            ("echo", icmp),
            ("fragment", fragment),
            ("SCTP", Packet::other(from.0, to.0, 132)),
        ] {
            world.ends(&format!("{is:?} v6={v6}: {what}"), &packet, reason);
            let tagged = packet.tagged(&[(0x8100, 5)]);
            world.ends(&format!("{is:?} v6={v6}: {what}, tagged"), &tagged, reason);
        }
        let elsewhere = Packet::tcp(from, (server(v6, 9), 80), SYN);
        world.ends(&format!("{is:?} v6={v6}: elsewhere"), &elsewhere, Reason::NotOurs);
        if v6 {
            let silent = is.of(Reason::NdBackup, Reason::NdExpired, Reason::NotOurs);
            let host = server(true, 1);
            for (kind, to) in
                [(SOLICITATION, group(vip(true))), (SOLICITATION, vip(true)), (ADVERTISEMENT, vip(true))]
            {
                let packet = discovery(kind, host, to, vip(true));
                world.ends(&format!("{is:?}: {kind} to {to}"), &packet, silent);
            }
        } else {
            let silent = is.of(Reason::ArpBackup, Reason::ArpExpired, Reason::NotIp);
            world.ends_frame(
                &format!("{is:?}: ARP"),
                &arp(REQUEST, server(false, 1), vip(false), &[]),
                silent,
            );
        }
    }
}

#[test]
fn without_accept_mode_services_are_served_and_nothing_else_of_their_addresses() {
    for (method, v6, udp) in matrix() {
        let mut flow = flow(method, v6, udp);
        let case = flow.name();
        set(&mut flow, VRRP_FOREVER);
        accept(&mut flow.world, &[vip(v6), local(v6)], false);
        flow.establish();
        let packet = flow.packet(ACK);
        flow.forward(&packet);
        let from = (client(v6, 7), 40_000);
        let icmp = |to| Packet::other(from.0, to, if v6 { ICMPV6 } else { 1 }).with(|p| p.payload[0] = 128);
        let fragment = Packet::udp(from, (vip(v6), 81)).with(|p| {
            p.fragment = 0x2000;
            p.payload = vec![0; 16];
            if v6 {
                p.extensions = vec![(FRAGMENT, vec![0, 0, 1, 0, 0, 0, 1])];
            }
        });
        let mut refused = vec![
            ("another port", Packet::tcp(from, (vip(v6), 81), SYN)),
            ("another port's ACK", Packet::tcp(from, (vip(v6), 81), ACK)),
            ("another port, UDP", Packet::udp(from, (vip(v6), 81))),
            ("echo", icmp(vip(v6))),
            ("fragment", fragment),
            ("DCCP", Packet::other(from.0, vip(v6), 33)),
            ("another port, SCTP", Packet::sctp(from, (vip(v6), 81), 0, &[chunk(1, 0, &[0; 16])])),
        ];
        if method.translates() && method != Method::Nat {
            refused.push(("echo to the pool", icmp(local(v6))));
        }
        for (what, packet) in refused {
            flow.world.ends(&format!("{case}: {what}"), &packet, Reason::NotAccepted);
        }
        if v6 {
            let asked = discovery(SOLICITATION, server(true, 1), vip(true), vip(true));
            flow.world.ends(&format!("{case}: solicitation"), &asked, Reason::Icmp);
        }
        // A real server that answers through us has no more right to the kernel.
        let address = server(v6, 12);
        flow.world.tables.bind_address("nat", lb_agent::dataplane::tables::Role::NatSource, address).unwrap();
        let other = server(v6, 13);
        accept(&mut flow.world, &[vip(v6), local(v6), other], false);
        let from_server = Packet::tcp((address, 80), (other, 81), SYN);
        flow.world.ends(&format!("{case}: from a server"), &from_server, Reason::NotAccepted);
        accept(&mut flow.world, &[vip(v6), local(v6), other], true);
        flow.world.ends(&format!("{case}: accepted"), &from_server, Reason::ServerTraffic);
        flow.world.ends(&format!("{case}: accepted"), &Packet::udp(from, (vip(v6), 81)), Reason::NoService);
    }
}

#[test]
fn nothing_leaves_that_would_bring_a_silent_address_here() {
    let host = server(false, 1);
    let (host6, other6) = (server(true, 1), server(true, 9));
    for is in Is::ALL {
        let mut world = is.world();
        let arp_reason = is.of(Some(Reason::ArpUnsentBackup), Some(Reason::ArpUnsentExpired), None);
        let nd_reason = is.of(Some(Reason::NdUnsentBackup), Some(Reason::NdUnsentExpired), None);
        let nd = |kind, from, to, about| discovery(kind, from, to, about).bytes();
        for (what, frame, reason) in [
            ("reply", arp(REPLY, vip(false), host, &[]), arp_reason),
            ("announcement", arp(REQUEST, vip(false), vip(false), &[]), arp_reason),
            ("request", arp(REQUEST, vip(false), host, &[]), arp_reason),
            ("tagged reply", arp(REPLY, vip(false), host, &[(0x8100, 5)]), arp_reason),
            ("reply with two tags", arp(REPLY, vip(false), host, &[(0x88a8, 5), (0x8100, 6)]), arp_reason),
            ("question about it", arp(REQUEST, host, vip(false), &[]), None),
            ("reply of our own", arp(REPLY, host, server(false, 2), &[]), None),
            ("advertisement", nd(ADVERTISEMENT, host6, all_nodes(), vip(true)), nd_reason),
            ("advertisement from it", nd(ADVERTISEMENT, vip(true), other6, vip(true)), nd_reason),
            ("solicitation from it", nd(SOLICITATION, vip(true), group(other6), other6), nd_reason),
            ("solicitation of it", nd(SOLICITATION, host6, group(vip(true)), vip(true)), None),
            ("our own advertisement", nd(ADVERTISEMENT, host6, other6, host6), None),
            (
                "a tagged advertisement",
                discovery(ADVERTISEMENT, host6, all_nodes(), vip(true)).tagged(&[(0x8100, 5)]).bytes(),
                nd_reason,
            ),
            ("TCP from it", Packet::tcp((vip(false), 80), (host, 1), ACK).bytes(), None),
            ("TCP from it, IPv6", Packet::tcp((vip(true), 80), (host6, 1), ACK).bytes(), None),
            (
                "echo from it",
                Packet::other(vip(true), host6, ICMPV6).with(|p| p.payload[0] = 129).bytes(),
                None,
            ),
        ] {
            world.leaves(&format!("{is:?}: {what}"), &frame, reason);
        }
    }
}

#[test]
fn a_master_with_a_service_speaks_for_it() {
    let mut flow = flow(Method::Dr, false, false);
    set(&mut flow, VRRP_FOREVER);
    let request = arp(REQUEST, server(false, 1), vip(false), &[]);
    flow.world.ends_frame("request", &request, Reason::NotIp);
    flow.world.leaves("announcement", &arp(REQUEST, vip(false), vip(false), &[]), None);
    set(&mut flow, 0);
    flow.world.ends_frame("request", &request, Reason::ArpBackup);
    flow.world.leaves(
        "announcement",
        &arp(REQUEST, vip(false), vip(false), &[]),
        Some(Reason::ArpUnsentBackup),
    );
    let pool = arp(REQUEST, server(false, 1), local(false), &[]);
    flow.world.ends_frame("a pool's address", &pool, Reason::ArpBackup);
    let destination = flow.destination;
    set(&mut flow, VRRP_FOREVER);
    assert_eq!(flow.world.send(&flow.first().bytes()).counted, Counted::In(destination));
}
