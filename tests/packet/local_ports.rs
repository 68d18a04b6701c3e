//! FULLNAT's search for a local port: bounded, and yet it finds one as long as there are many.

use anyhow::{Context as _, Result};
use lb_agent::dataplane::{
    Action, Dataplane, OBJECT, Ports, Sizes, Tables,
    tables::{DestinationKey, DestinationSpec, NextHopKey, Role, Rules, ServiceSpec, Standing},
};
use lb_common::{
    destination::{Forwarding, NextHop},
    lease::port_share,
    service::{OnUnknownFlow, Pick},
    state::{ACK, FIN, SYN},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

#[test]
fn consecutive_ports_of_one_client_find_a_local_port_each() -> Result<()> {
    let (plane, _tables) = full_nat()?;
    let mut local = BTreeSet::new();
    // A sixteenth of all local ports are taken in the end; a search looks at sixteen.
    for port in 30_000..34_000 {
        let out = plane.test_run(&frame(port, SYN))?;
        assert_eq!(out.action, Action::Tx, "the flow from port {port} found no local port");
        local.insert([out.frame[34], out.frame[35]]);
    }
    assert_eq!(local.len(), 4000, "two flows have one local port");
    Ok(())
}

#[test]
fn a_client_that_begins_anew_on_one_port_holds_one_local_port() -> Result<()> {
    let (plane, _tables) = full_nat()?;
    for round in 0..200 {
        for flags in [SYN, FIN | ACK] {
            let out = plane.test_run(&frame(40_000, flags))?;
            assert_eq!(out.action, Action::Tx, "round {round}, flags {flags:#x}: not forwarded");
        }
    }
    let views = plane.views();
    let held = (0..views.leases.len()).filter(|lease| !views.lease_word(*lease).is_empty()).count();
    assert_eq!(held, 1, "local ports of connections that are over are still held");
    Ok(())
}

/// What a real server's TIME_WAIT knows of a local port must be of the client that comes back to it.
#[test]
fn a_client_that_begins_anew_on_a_port_keeps_its_local_port_on_every_cpu() -> Result<()> {
    let (plane, _tables) = full_nat()?;
    let cpus = sched_getaffinity(Pid::from_raw(0))?;
    let allowed: Vec<usize> = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap_or(false)).collect();
    let mut local = BTreeMap::new();
    // Some of the ports that a search would find first are taken when a flow comes first, and free when it returns.
    for round in 0..4 {
        let mut cpu = CpuSet::new();
        cpu.set(allowed[round % allowed.len()])?;
        sched_setaffinity(Pid::from_raw(0), &cpu)?;
        for n in 0..3000 {
            let port = 30_000 + n * [1, 7, 11, 13][round] % 3000;
            let out = plane.test_run(&frame(port, SYN))?;
            assert_eq!(
                out.action,
                Action::Tx,
                "round {round}: the flow from port {port} found no local port"
            );
            let leased = [out.frame[34], out.frame[35]];
            assert_eq!(*local.entry(port).or_insert(leased), leased, "round {round}: port {port}");
            plane.test_run(&frame(port, FIN | ACK))?;
        }
    }
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    Ok(())
}

/// On every CPU in turn, in the middle of three directors' shares. What a server sends to a local port goes to the client
/// whose flow it is, and to nobody else. `LB_FLOWS=1000000` makes it a million.
#[test]
fn flows_from_every_cpu_do_not_mix_and_stay_in_the_share_of_their_director() -> Result<()> {
    let flows: u32 = std::env::var("LB_FLOWS").map_or(Ok(30_000), |flows| flows.parse())?;
    // A third of the ports of each, of which two fifths are taken in the end.
    let locals = (0..flows.div_ceil(7_500)).map(|n| [10, 0, 1 + (n >> 8) as u8, n as u8].into());
    let locals: Vec<IpAddr> = locals.collect();
    let (plane, _tables) = full_nat_of(&locals, (2, 3), 2 * flows)?;
    let (first, ports) = port_share(2, 3);
    let cpus = sched_getaffinity(Pid::from_raw(0))?;
    let allowed: Vec<usize> = (0..CpuSet::count()).filter(|cpu| cpus.is_set(*cpu).unwrap_or(false)).collect();
    // Four clients or more have each port.
    let clients = 4 + flows / 40_000;
    let of = |flow: u32, flags| {
        let mut frame = frame(20_000 + (flow / clients) as u16, flags);
        frame[29] = (flow % clients) as u8;
        frame
    };
    let mut leased = BTreeMap::new();
    for flow in 0..flows {
        if flow % 1000 == 0 {
            let mut cpu = CpuSet::new();
            cpu.set(allowed[(flow / 1000) as usize % allowed.len()])?;
            sched_setaffinity(Pid::from_raw(0), &cpu)?;
        }
        let out = plane.test_run(&of(flow, SYN))?;
        assert_eq!(out.action, Action::Tx, "flow {flow} found no local port");
        let local = [out.frame[28], out.frame[29], out.frame[34], out.frame[35]];
        let port = u16::from_be_bytes([local[2], local[3]]);
        assert!(port.wrapping_sub(first) < ports, "port {port} is another director's");
        let other = leased.insert(local, flow);
        assert_eq!(other, None, "flow {flow} has the same local port");
        assert_eq!(plane.test_run(&reply(local, SYN | ACK))?.action, Action::Tx, "flow {flow}");
        assert_eq!(plane.test_run(&of(flow, ACK))?.action, Action::Tx, "flow {flow}");
    }
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    for (local, flow) in leased {
        let out = plane.test_run(&reply(local, ACK))?;
        let wanted = of(flow, ACK);
        assert_eq!(out.action, Action::Tx, "flow {flow}: the reply has no flow");
        assert_eq!(out.frame[26..30], VIP, "flow {flow}");
        assert_eq!(out.frame[30..34], wanted[26..30], "flow {flow}: another client's address");
        assert_eq!(out.frame[36..38], wanted[34..36], "flow {flow}: another client's port");
    }
    Ok(())
}

const VIP: [u8; 4] = [203, 0, 113, 10];

/// What the server sends to a local address (its last two bytes) and port.
fn reply(local: [u8; 4], flags: u8) -> Vec<u8> {
    let mut frame = frame(80, flags);
    frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
    frame[30..34].copy_from_slice(&[10, 0, local[0], local[1]]);
    frame[36..38].copy_from_slice(&local[2..]);
    frame
}

/// The program with one FULLNAT service of one real server and one local address.
fn full_nat() -> Result<(Dataplane, Tables)> {
    full_nat_of(&["10.0.0.200".parse()?], (1, 1), 16_384)
}

/// The same with these local addresses and a share of their ports.
fn full_nat_of(locals: &[IpAddr], share: (u32, u32), connections: u32) -> Result<(Dataplane, Tables)> {
    let sizes = Sizes {
        connections,
        connections_v6: 0,
        services: 4,
        port_ranges: 1,
        destinations: 4,
        next_hops: 8,
        slots: 64,
        pool_addresses: locals.len() as u32,
        extensions: 1,
    };
    let plane = Dataplane::open_for_test(OBJECT, &sizes)?;
    let mut tables = plane.tables()?;
    let pool = tables.set_pool("local", locals, share)?;
    for local in locals {
        let index = tables.pool_index("local", *local).context("the pool lacks its address")?;
        tables.bind_address("local", Role::Pool(index), *local)?;
    }
    tables.ensure_service(&ServiceSpec {
        name: "web".into(),
        vip: VIP.into(),
        protocol: libc::IPPROTO_TCP as u8,
        ports: vec![Ports::One(80)],
        pick: Pick::Cursor,
        on_unknown_flow: OnUnknownFlow::Reset,
        mss: 0,
        timeouts: [1000; 16],
        pool: Some(pool),
        rules: Rules::default(),
    })?;
    let server = "10.0.0.1".parse()?;
    // Frames of a test run come in by the loopback interface.
    let key = NextHopKey { neighbour: server, ifindex: 1, vlans: [0, 0], for_clients: false };
    let hop = NextHop { destination: NextHop::pack([2, 0, 0, 0, 0, 1], 0), ifindex: 1, ..NextHop::default() };
    let next_hop = tables.set_next_hop(&key, &hop)?;
    let spec = DestinationSpec {
        next_hop,
        mtu: 1500,
        timeout: 1000,
        vip_port: 0,
        local: false,
        tunnel: Default::default(),
        standing: Standing::DEFAULT,
    };
    let destination =
        tables.ensure_destination(&DestinationKey::new("web", server, 0, Forwarding::FullNat), &spec)?;
    tables.set_slots("web", &[Some(destination)])?;
    tables.bind_ports("web", &[Ports::One(80)])?;
    tables.bind_address("web", Role::Vip, VIP.into())?;
    Ok((plane, tables))
}

/// A TCP packet of one client to the VIP's port 80.
fn frame(port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[12] = 0x08;
    (frame[14], frame[17], frame[22], frame[23]) = (0x45, 40, 64, 6);
    frame[26..30].copy_from_slice(&[198, 51, 100, 7]);
    frame[30..34].copy_from_slice(&VIP);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..38].copy_from_slice(&80u16.to_be_bytes());
    (frame[46], frame[47]) = (0x50, flags);
    frame
}
