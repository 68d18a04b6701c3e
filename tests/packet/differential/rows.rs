//! The services of the differential test's world, of one family and protocol.

use super::*;
use lb_agent::dataplane::tables::{Access, Persistence, Quic, Tunnel};

/// A service.
pub struct Row {
    /// Which VIP of the family.
    pub vip: usize,
    pub ports: (u16, u16),
    pub method: Method,
    /// Its servers are of the other family.
    pub crosses: bool,
    /// 0 keeps the packet's.
    pub server_port: u16,
    pub on_unknown_flow: OnUnknownFlow,
    pub pick: Pick,
    pub mss: u16,
    pub rules: Rules,
    /// Of its servers: weights by their place, and thresholds.
    pub weights: [u32; SERVERS as usize],
    pub thresholds: (u32, u32),
    pub packets_per_second: u32,
    /// Of its servers by TUN.
    pub tunnel: Tunnel,
    /// The port of the service of this VIP and protocol that leads its group.
    pub leader: Option<u16>,
}

impl Row {
    fn new(vip: usize, ports: (u16, u16), method: Method) -> Self {
        Self {
            vip,
            ports,
            method,
            crosses: false,
            server_port: 0,
            on_unknown_flow: OnUnknownFlow::Reset,
            pick: Pick::Cursor,
            mss: 0,
            rules: Rules::default(),
            weights: [1; SERVERS as usize],
            thresholds: (0, 0),
            packets_per_second: 0,
            tunnel: Tunnel::default(),
            leader: None,
        }
    }

    /// Whether its list of servers may be walked.
    pub fn has_list(&self) -> bool {
        self.rules != Rules { no_server: self.rules.no_server, ..Rules::default() } || self.pick.walks()
    }
}

/// Access lists by their number: 1 is of who may not come, 2 of who may.
pub fn access_lists() -> [(u16, Vec<(&'static str, Access)>); 2] {
    use Access::{Allow, Deny};
    [
        (
            1,
            vec![
                ("198.51.100.0/31", Deny),
                ("198.51.100.1/32", Allow),
                ("198.52.0.0/16", Deny),
                ("198.52.100.4/30", Allow),
                ("2001:db8:c::/127", Deny),
                ("2001:db8:c::1/128", Allow),
                ("2001:db8:e::4/128", Deny),
            ],
        ),
        (
            2,
            vec![
                ("0.0.0.0/0", Allow),
                ("198.51.100.2/32", Deny),
                ("2001:db8::/32", Allow),
                ("2001:db8:e::3/128", Deny),
            ],
        ),
    ]
}

/// All of one family and protocol. `ticks` makes ticks of seconds.
pub fn rows(udp: bool, ticks: impl Fn(u16) -> u16) -> Vec<Row> {
    use OnUnknownFlow::{Adopt, Drop, Pass, Reset};
    let one = |port| (port, port);
    let plain = [
        (0, one(80), Method::Dr, false, 0, Adopt, Pick::HashAddress, 1400),
        (0, one(81), Method::Nat, false, 0, Reset, Pick::Cursor, 0),
        (0, one(82), Method::FullNat, false, 0, Drop, Pick::Cursor, 1360),
        (0, one(83), Method::Tun, false, 0, Pass, Pick::HashAddressPort, 1420),
        (0, one(84), Method::Tun, true, 0, Adopt, Pick::Cursor, 0),
        (0, one(85), Method::Nat, false, 8080, Adopt, Pick::HashAddress, 1400),
        (0, one(86), Method::FullNat, false, 8087, Adopt, Pick::HashAddress, 0),
        // The same servers and port as above: replies meet.
        (0, one(87), Method::Nat, false, 8080, Reset, Pick::Cursor, 0),
        (0, (8000, 8010), Method::Dr, false, 0, Reset, Pick::Cursor, 0),
        (1, one(80), Method::Dr, false, 0, Reset, Pick::Cursor, 0),
        (1, (7000, 7003), Method::Nat, false, 0, Adopt, Pick::HashAddressPort, 1000),
        (1, (0, 65535), Method::Tun, false, 0, Reset, Pick::HashAddress, 0),
    ];
    let plain = plain.map(|(vip, ports, method, crosses, server_port, on_unknown_flow, pick, mss)| Row {
        crosses,
        server_port,
        on_unknown_flow,
        pick,
        mss,
        ..Row::new(vip, ports, method)
    });
    let (rules, counted) = (Rules::default(), || Rules { counted: true, checked: true, ..Rules::default() });
    let sticky = |bits: (u8, u8), despite_weight_zero| {
        Some(Persistence {
            timeout: ticks(120),
            prefix_v4: bits.0,
            prefix_v6: bits.1,
            despite_weight_zero,
            sip: false,
        })
    };
    let ruled = [
        Row {
            rules: Rules { access: Some((1, Access::Allow)), ..counted() },
            thresholds: (3, 0),
            ..Row::new(0, one(90), Method::Dr)
        },
        Row {
            rules: Rules { access: Some((2, Access::Deny)), rotate: true, ..rules.clone() },
            pick: Pick::Wlc,
            weights: [2, 1, 3],
            ..Row::new(0, one(91), Method::Nat)
        },
        Row {
            rules: Rules { rotate: true, udp_inactive: true, ..rules.clone() },
            pick: Pick::Lc,
            thresholds: (4, 2),
            ..Row::new(0, one(92), Method::FullNat)
        },
        Row { pick: Pick::Sed, weights: [1, 2, 2], ..Row::new(0, one(93), Method::Tun) },
        Row {
            rules: Rules { rotate: true, ..rules.clone() },
            pick: Pick::Nq,
            on_unknown_flow: Adopt,
            weights: [3, 1, 1],
            ..Row::new(0, one(94), Method::Dr)
        },
        Row {
            rules: Rules { counted: true, ..rules.clone() },
            pick: Pick::Fo,
            weights: [1, 5, 5],
            thresholds: (5, 1),
            ..Row::new(0, one(95), Method::Nat)
        },
        Row {
            rules: Rules { last_first: true, ..rules.clone() },
            pick: Pick::Ovf,
            weights: [2, 2, 1],
            ..Row::new(0, one(96), Method::Dr)
        },
        Row { pick: Pick::Lblc, weights: [1, 2, 3], ..Row::new(0, one(97), Method::Tun) },
        Row {
            rules: Rules { persistence: sticky((32, 128), false), ..rules.clone() },
            on_unknown_flow: Adopt,
            ..Row::new(0, one(98), Method::Dr)
        },
        Row {
            rules: Rules { persistence: sticky((32, 128), false), ..rules.clone() },
            leader: Some(98),
            ..Row::new(0, one(99), Method::Nat)
        },
        Row {
            rules: Rules { persistence: sticky((31, 127), true), rotate: true, ..rules.clone() },
            pick: Pick::Wlc,
            server_port: 8080,
            weights: [1, 1, 2],
            ..Row::new(0, one(100), Method::Nat)
        },
        Row {
            rules: Rules { persistence: sticky((30, 126), false), ..rules.clone() },
            pick: Pick::HashAddress,
            on_unknown_flow: Adopt,
            ..Row::new(1, one(101), Method::FullNat)
        },
        Row {
            rules: Rules { hash_prefix: Some((31, 127)), fallback: true, ..counted() },
            pick: Pick::HashAddress,
            on_unknown_flow: Adopt,
            thresholds: (4, 0),
            ..Row::new(0, one(102), Method::Dr)
        },
        Row {
            rules: Rules { hash_prefix: Some((31, 127)), ..rules.clone() },
            pick: Pick::HashAddressPort,
            ..Row::new(0, one(103), Method::Nat)
        },
        Row {
            pick: Pick::HashDestination,
            on_unknown_flow: Adopt,
            rules: counted(),
            ..Row::new(1, one(104), Method::Tun)
        },
        Row {
            rules: Rules { one_packet: udp, new_per_second: if udp { 0 } else { 20 }, ..rules.clone() },
            pick: Pick::HashAddressPort,
            ..Row::new(0, one(105), Method::Tun)
        },
        Row {
            rules: Rules {
                quic: udp.then_some(Quic { offset: 1, len: 2 }),
                checked: true,
                new_per_second: if udp { 0 } else { 10 },
                ..rules.clone()
            },
            ..Row::new(0, one(106), Method::Dr)
        },
        Row { packets_per_second: 40, on_unknown_flow: Adopt, ..Row::new(0, one(107), Method::FullNat) },
        Row {
            packets_per_second: 60,
            pick: Pick::HashAddress,
            on_unknown_flow: Adopt,
            ..Row::new(1, one(108), Method::Nat)
        },
    ];
    let kinds = [
        (flags::GUE, 6080, false, Pick::HashAddress),
        (flags::GRE, 0, false, Pick::Cursor),
        (flags::GRE | flags::SPREAD, 0, true, Pick::HashAddressPort),
        (flags::SPREAD, 0, false, Pick::HashAddress),
        (flags::GUE, 6081, true, Pick::Cursor),
        (flags::SPREAD, 0, true, Pick::Cursor),
    ];
    let tunnels = (110..).zip(kinds).map(|(port, (flags, at, crosses, pick))| Row {
        tunnel: Tunnel { flags, port: at },
        crosses,
        pick,
        on_unknown_flow: Adopt,
        ..Row::new(0, one(port), Method::Tun)
    });
    let proxies = [
        (Method::Nat, 120, Pick::Cursor, 0),
        (Method::FullNat, 121, Pick::HashAddress, 8088),
        (Method::Nat, 122, Pick::Wlc, 8080),
    ];
    // With UDP they are as any.
    let proxies = proxies.map(|(method, port, pick, server_port)| Row {
        rules: Rules { proxy: !udp, ..rules.clone() },
        pick,
        server_port,
        mss: if port == 121 { 1400 } else { 0 },
        ..Row::new(0, one(port), method)
    });
    let no_server = [NoServer::Drop, NoServer::Reset, NoServer::Unreachable];
    let numbered = plain.into_iter().chain(ruled).chain(tunnels).chain(proxies).enumerate();
    numbered
        .map(|(n, row)| Row { rules: Rules { no_server: no_server[n % 3], ..row.rules.clone() }, ..row })
        .collect()
}
