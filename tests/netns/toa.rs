//! The client's address as a TCP option, to nginx that knows nothing of it: the real-server helper's BPF programs tell it
//! who its peer is. It was there before they were.

use std::net::IpAddr;

use lb_tests::{Agent, Cgroup, Nginx, RealServer, Topology, http, wait};

use crate::proxy::{Loss, Lost, PATIENCE, assert_last_was};
use crate::site::{self, Service, TRANSLATED, documents, family, large_both_ways, until_all_in, vips};

/// Where nginx listens with one socket for both families, as servers in Go and Java do.
const DUAL: u16 = 8090;

#[test]
fn nginx_behind_fullnat_learns_by_toa_who_the_client_is_if_the_helper_reads_it() {
    let topology = Topology::builder().servers(2).build();
    let (server, plain) = (&topology.servers[0], &topology.servers[1]);
    let pools: [IpAddr; 2] = [topology.pool_v4(0).into(), topology.pool_v6(0).into()];
    let client = topology.client();
    let cgroup = Cgroup::new();
    let nginx = [
        Nginx::start_in(&cgroup, &server.namespace, "server0", &[TRANSLATED], &[DUAL]),
        Nginx::start(&plain.namespace, "server1", &[TRANSLATED]),
    ];
    let agent = Agent::start(&topology.director().namespace, &site::director(&["eth0"]));
    let service = |name: &str, port, vip: IpAddr, host: &lb_tests::Host, at| {
        let mut service =
            Service::tcp(&format!("{name}-{}", family(vip)), vip, port, "fullnat").with("toa: true");
        service.servers.push((host.address(vip), Some(at), 1));
        service
    };
    let each = |name, port, host, at| vips(&topology).map(|vip| service(name, port, vip, host, at));
    let read = each("read", 80, server, TRANSLATED);
    let dual = each("dual", 81, server, DUAL);
    let unread = each("unread", 82, plain, TRANSLATED);
    let all: Vec<&Service> = read.iter().chain(&dual).chain(&unread).collect();
    agent.apply(&(site::pool(&topology, "eth0") + &documents(all)));
    until_all_in(&agent);

    let get = |service: &Service| {
        let answer = http::get(&client.namespace, &service.url("/")).map(|response| response.status);
        assert_eq!(answer, Ok(200), "{}", service.name);
    };
    let pool_of = |vip: IpAddr| if vip.is_ipv4() { pools[0] } else { pools[1] };
    // A server that is not prepared serves, and sees the pool.
    for service in read.iter().chain(&dual) {
        get(service);
        assert_last_was(&nginx[0], seen(service, pool_of(service.vip)), "nobody reads it yet");
    }
    for service in &unread {
        get(service);
        assert_last_was(&nginx[1], pool_of(service.vip), "nobody reads it");
    }

    // Somebody else's word counts for nothing.
    let elsewhere = ["192.0.2.1".parse().unwrap(), "2001:db8:ffff::1".parse().unwrap()];
    let helper = RealServer::reading_toa(&server.namespace, &elsewhere, cgroup.path());
    for service in &read {
        get(service);
        assert_last_was(&nginx[0], pool_of(service.vip), "from a stranger");
    }
    let (well, report) = helper.check();
    assert!(well && report.contains("not_believed"), "{report}");

    let helper = helper.toa_from(&pools);
    for service in read.iter().chain(&dual) {
        get(service);
        assert_last_was(&nginx[0], seen(service, client.address(service.vip)), &service.name);
    }
    for service in &read {
        large_both_ways(&client.namespace, service, &nginx[..1]);
        // The first data carries it too, should the ACK of the handshake be lost.
        let loss = Loss::of(&server.namespace, Lost::AckWithToa, service.vip);
        get(service);
        assert!(loss.count() > 0, "{}: nothing was lost, so this proved nothing", service.name);
        drop(loss);
        assert_last_was(&nginx[0], client.address(service.vip), &service.name);
    }
    let (well, report) = helper.check();
    assert!(well && report.contains("TOA: read for programs in") && report.contains("told"), "{report}");

    helper.down();
    get(&read[0]);
    let pool = pool_of(read[0].vip);
    wait::until("nobody reads it any more", PATIENCE, || {
        nginx[0].requests().last().is_some_and(|line| line.starts_with(&format!("{pool}:")))
    });
}

/// How nginx's log names an address that a connection of the service comes from: on a socket for both families as IPv6 maps
/// it.
fn seen(service: &Service, address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if service.port == 81 => v4.to_ipv6_mapped().into(),
        other => other,
    }
}
