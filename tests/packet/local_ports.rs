//! FULLNAT's search for a local port: bounded, and yet it finds one as long as there are many.

use anyhow::Result;
use lb_agent::dataplane::{
    Action, Dataplane, OBJECT, Ports, Sizes, Tables,
    tables::{DestinationKey, DestinationSpec, NextHopKey, Role, Rules, ServiceSpec, Standing},
};
use lb_common::{
    destination::{Forwarding, NextHop},
    service::{OnUnknownFlow, Pick},
    state::{ACK, FIN, SYN},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::collections::{BTreeMap, BTreeSet};

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

const VIP: [u8; 4] = [203, 0, 113, 10];

/// The program with one FULLNAT service of one real server and one local address.
fn full_nat() -> Result<(Dataplane, Tables)> {
    let sizes = Sizes {
        connections: 16_384,
        connections_v6: 0,
        services: 4,
        port_ranges: 1,
        destinations: 4,
        next_hops: 8,
        slots: 64,
        pool_addresses: 1,
        extensions: 1,
    };
    let plane = Dataplane::open_for_test(OBJECT, &sizes)?;
    let mut tables = plane.tables()?;
    let local = "10.0.0.200".parse()?;
    let pool = tables.set_pool("local", &[local], (1, 1))?;
    tables.bind_address("local", Role::Pool(pool.0), local)?;
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
