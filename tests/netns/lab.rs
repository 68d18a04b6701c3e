//! The laboratory proves itself without lb: what fails here is not the director's fault.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use lb_tests::http::{self, Download};
use lb_tests::nginx::LARGE;
use lb_tests::topology::{Subnet, set_neighbour};
use lb_tests::udp::{self, Stream};
use lb_tests::xdp_pass::XdpPass;
use lb_tests::{Host, Namespace, Nginx, Topology, UdpServer, content, link, sweep, wait};

/// Starts an nginx on port 80 of every real server, named like the server.
fn nginx_everywhere(topology: &Topology) -> Vec<Nginx> {
    topology.servers.iter().map(|server| start_nginx(server, &[80])).collect()
}

fn start_nginx(server: &Host, ports: &[u16]) -> Nginx {
    Nginx::start(&server.namespace, server.namespace.role(), ports)
}

/// The host's addresses of both families with a port.
fn sockets(host: &Host, port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(host.v4().into(), port), SocketAddr::new(host.v6().into(), port)]
}

#[test]
fn curl_reaches_each_nginx_through_the_switch_by_both_families() {
    let topology = Topology::builder().servers(3).build();
    let nginx = nginx_everywhere(&topology);
    let client = &topology.client().namespace;
    for (server, nginx) in topology.servers.iter().zip(&nginx) {
        for socket in sockets(server, 80) {
            let page = http::get(client, &http::url(socket, "/")).unwrap();
            assert_eq!((page.status, page.server.as_str()), (200, nginx.name()), "{socket}");
            assert_eq!(page.body, format!("{}\n", nginx.name()).into_bytes());
        }
        wait::until("both requests are in the log", Duration::from_secs(5), || nginx.requests().len() == 2);
    }
}

#[test]
fn eight_mebibytes_survive_both_ways() {
    let topology = Topology::builder().servers(1).build();
    let nginx = start_nginx(&topology.servers[0], &[80]);
    let client = &topology.client().namespace;
    let expected = content::bytes(LARGE);
    for (number, socket) in sockets(&topology.servers[0], 80).into_iter().enumerate() {
        let down = http::get(client, &http::url(socket, &format!("/bytes/{LARGE}"))).unwrap();
        content::check(0, &down.body).unwrap();
        assert_eq!(content::sha256(&down.body), content::sha256(&expected), "{socket}");
        let name = number.to_string();
        let up = http::upload(client, &http::url(socket, &format!("/uploads/{name}")), &expected).unwrap();
        assert!((200..300).contains(&up.status), "upload to {socket} was answered with {}", up.status);
        let kept = nginx.uploaded(&name).expect("the upload arrived at the only server");
        assert_eq!(content::sha256(&kept), content::sha256(&expected), "{socket}");
    }
}

#[test]
fn many_requests_use_a_connection_each_and_are_all_told() {
    let topology = Topology::builder().servers(1).build();
    let _nginx = start_nginx(&topology.servers[0], &[80, 8080]);
    let client = &topology.client().namespace;
    for socket in sockets(&topology.servers[0], 8080) {
        let in_turn = http::get_in_turn(client, &http::url(socket, "/"), 50).unwrap();
        let in_parallel = http::get_in_parallel(client, &http::url(socket, "/"), 200).unwrap();
        for (outcomes, count) in [(in_turn, 50), (in_parallel, 200)] {
            assert_eq!(http::shares(&outcomes), BTreeMap::from([("server0".to_owned(), count)]));
            assert!(outcomes.iter().all(|outcome| outcome.status == 200));
            let ports: std::collections::BTreeSet<u16> =
                outcomes.iter().map(|outcome| outcome.port).collect();
            assert_eq!(ports.len(), count, "each request has a port of its own");
        }
    }
}

#[test]
fn a_request_that_nobody_answers_is_an_error_in_curls_words() {
    let topology = Topology::builder().servers(1).build();
    let error = http::get(&topology.client().namespace, "http://10.1.0.11:81/").unwrap_err();
    assert!(error.contains("Connection refused") || error.contains("Failed to connect"), "{error}");
}

#[test]
fn a_paced_download_is_checked_as_it_comes_and_a_killed_server_shows() {
    const LENGTH: usize = 3 << 20;
    let topology = Topology::builder().servers(1).build();
    let mut nginx = start_nginx(&topology.servers[0], &[80]);
    nginx.offer(LENGTH);
    let [socket, _] = sockets(&topology.servers[0], 80);
    let client = &topology.client().namespace;
    let whole = Download::start(client, socket, &format!("/slow/2048k/{LENGTH}")).finish().unwrap();
    assert_eq!((whole.length, whole.server.as_str()), (LENGTH as u64, "server0"));
    assert!(whole.longest_silence < Duration::from_secs(3), "{whole:?}");
    let cut = Download::start(client, socket, &format!("/slow/256k/{LENGTH}"));
    wait::until("the download has begun", Duration::from_secs(5), || cut.progress() > 0);
    nginx.kill();
    let error = cut.finish().unwrap_err();
    assert!(error.contains(&format!("of {LENGTH} bytes")), "{error}");
}

#[test]
fn fifty_thousand_datagrams_a_second_arrive_once_and_are_answered_once() {
    let _alone = crate::alone_with_streams();
    let topology = Topology::builder().servers(1).build();
    let server = &topology.servers[0];
    let servers = [UdpServer::start(&server.namespace, "server0", &[5000])];
    let client = &topology.client().namespace;
    for to in sockets(server, 5000) {
        assert_eq!(udp::ask(client, to).unwrap(), "server0");
        for answers in [false, true] {
            let stream = Stream { to, rate: 52_000, flows: 16, answers };
            let report = stream.send_for(Duration::from_secs(1), client, &servers);
            report.assert_complete();
            assert_eq!(report.per_server["server0"], report.sent);
            assert!(report.rate() >= 50_000.0, "{to}: only {:.0} datagrams per second", report.rate());
        }
    }
}

#[test]
fn no_datagram_is_lost_in_the_queues_before_an_xdp_program() {
    let _alone = crate::alone_with_streams();
    let topology = Topology::builder().servers(1).servers_with_xdp().build();
    let server = &topology.servers[0];
    let _at_the_server = XdpPass::attach(&server.namespace, "eth0");
    let servers = [UdpServer::start(&server.namespace, "server0", &[5000])];
    let [to, _] = sockets(server, 5000);
    let stream = Stream { to, rate: 52_000, flows: 16, answers: true };
    let report = stream.send_for(Duration::from_secs(1), &topology.client().namespace, &servers);
    report.assert_complete();
    assert!(report.rate() >= 50_000.0, "only {:.0} datagrams per second", report.rate());
}

#[test]
fn datagrams_lost_by_the_network_are_counted_to_the_last() {
    let topology = Topology::builder().servers(2).build();
    let client = &topology.client().namespace;
    let servers: Vec<UdpServer> = topology
        .servers
        .iter()
        .map(|server| UdpServer::start(&server.namespace, server.namespace.role(), &[5000]))
        .collect();
    let to = SocketAddr::new(topology.vip_v4(0).into(), 5000);
    topology.vip_on_servers(to.ip());
    set_neighbour(client, to.ip(), topology.servers[0].mac());
    let running = Stream { to, rate: 5_000, flows: 1, answers: true }.start(client);
    wait::until("answers come", Duration::from_secs(5), || running.answered() > 100);
    // A server that is gone for a moment, and then a sender that turns to the other one.
    topology.switch.ip("link set s11n1 down");
    let before = running.sent();
    wait::until("datagrams are lost", Duration::from_secs(5), || running.sent() > before + 500);
    set_neighbour(client, to.ip(), topology.servers[1].mac());
    let answered = running.answered();
    wait::until("the other answers", Duration::from_secs(5), || running.answered() > answered + 100);
    let report = running.finish(&servers);
    assert!(report.lost.len() > 400, "{} lost", report.lost.len());
    let arrived: u64 = report.per_server.values().sum();
    assert_eq!(arrived + report.lost.len() as u64, report.sent, "each one arrived or was lost");
    assert!(report.per_server.values().all(|count| *count > 0), "{:?}", report.per_server);
    assert_eq!(report.split_flows, [0]);
}

#[test]
fn a_real_server_with_the_vip_on_its_loopback_serves_dr_and_hides_from_arp() {
    let topology = Topology::builder().servers(2).build();
    let _nginx = nginx_everywhere(&topology);
    let client = &topology.client().namespace;
    for vip in [IpAddr::from(topology.vip_v4(0)), topology.vip_v6(0).into()] {
        topology.vip_on_servers(vip);
        let url = http::url(SocketAddr::new(vip, 80), "/");
        let hidden = client.command("curl").args(["-sg", "--connect-timeout", "1", &url]).status().unwrap();
        assert!(!hidden.success(), "a real server answered for {vip}");
        for server in &topology.servers {
            set_neighbour(client, vip, server.mac());
            assert_eq!(http::get(client, &url).unwrap().server, server.namespace.role(), "{vip}");
        }
        let servers =
            topology.servers.iter().map(|server| UdpServer::start(&server.namespace, "who", &[5000]));
        let servers: Vec<UdpServer> = servers.collect();
        assert_eq!(servers.len(), 2);
        // The client hears only what comes from the VIP.
        assert_eq!(udp::ask(client, SocketAddr::new(vip, 5000)).unwrap(), "who");
    }
}

#[test]
fn clients_and_servers_behind_the_router_reach_each_other() {
    let topology = Topology::builder().servers(1).far_servers(1).clients(1).far_clients(1).build();
    let _nginx = nginx_everywhere(&topology);
    for client in &topology.clients {
        for server in &topology.servers {
            for socket in sockets(server, 80) {
                let page = http::get(&client.namespace, &http::url(socket, "/")).unwrap();
                assert_eq!(page.server, server.namespace.role(), "{} to {socket}", client.namespace.role());
            }
        }
    }
}

#[test]
fn a_two_armed_director_can_route_and_sees_all_replies_that_are_sent_through_it() {
    let topology = Topology::builder().servers(1).far_servers(1).two_armed().build();
    let _nginx = nginx_everywhere(&topology);
    let director = &topology.director().namespace;
    let client = topology.client();
    topology.replies_through_director();
    director.sysctl("net.ipv4.ip_forward=1");
    director.sysctl("net.ipv6.conf.all.forwarding=1");
    for server in &topology.servers {
        for socket in sockets(server, 80) {
            let family = if socket.is_ipv4() { "-4" } else { "-6" };
            let via = topology.director().address(socket.ip()).to_string();
            let to = socket.ip().to_string();
            client.namespace.output("ip", &[family, "route", "replace", &to, "via", &via]);
            let received = || counter(director, "eth1", "rx_packets");
            let before = received();
            let page = http::get(&client.namespace, &http::url(socket, "/")).unwrap();
            assert_eq!(page.server, server.namespace.role());
            assert!(received() >= before + 4, "the reply from {socket} did not pass the director's eth1");
        }
    }
}

fn counter(namespace: &Namespace, interface: &str, name: &str) -> u64 {
    // ip enters by itself, so that /sys need not show the namespace's interfaces.
    let text = namespace.output("ip", &["-s", "-j", "link", "show", "dev", interface]);
    let links: serde_json::Value = serde_json::from_str(&text).expect("ip writes JSON");
    let (direction, name) = name.split_once('_').expect("rx_ or tx_");
    links[0]["stats64"][direction][name].as_u64().unwrap_or_else(|| panic!("no {direction} {name} in {text}"))
}

#[test]
fn ports_that_face_xdp_carry_a_program_and_fill_in_checksums() {
    let topology = Topology::builder().servers(1).servers_with_xdp().two_armed().mtu(1400).build();
    for port in ["d1n1", "d1n2", "s11n2"] {
        let link = topology.switch.output("ip", &["-d", "link", "show", "dev", port]);
        assert!(link.contains(" xdp ") && link.contains("lbt_pass"), "{port} has no XDP program: {link}");
        assert!(link.contains("mtu 1400"), "{link}");
        let features = topology.switch.output("ethtool", &["-k", port]);
        assert!(features.contains("tx-checksumming: off"), "{port}: {features}");
    }
    let client = topology.switch.output("ip", &["-d", "link", "show", "dev", "c51n1"]);
    assert!(!client.contains("lbt_pass"), "{client}");
}

#[test]
fn mac_and_mtu_of_an_interface_can_be_changed_while_it_runs() {
    let topology = Topology::builder().servers(1).build();
    let server = &topology.servers[0];
    let _nginx = start_nginx(server, &[80]);
    link::set_mac(&server.namespace, "eth0", [2, 0, 0, 0, 9, 9]);
    link::set_mtu(&server.namespace, "eth0", 1300);
    let page = http::get(&topology.client().namespace, &http::url(sockets(server, 80)[0], "/")).unwrap();
    assert_eq!(page.status, 200);
    let neighbours = topology.client().namespace.output("ip", &["neighbour"]);
    assert!(neighbours.contains("02:00:00:00:09:09"), "{neighbours}");
    assert!(server.namespace.output("ip", &["link", "show", "eth0"]).contains("mtu 1300"));
    assert_eq!(Subnet::Front.mac(11), server.mac());
}

#[test]
fn everything_goes_when_a_test_panics() {
    let mut left = Vec::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let topology = Topology::builder().servers(1).build();
        let sleeper = {
            let mut command = topology.director().namespace.command("sleep");
            command.arg("1000");
            topology.director().namespace.spawn("sleep", command)
        };
        let server = &topology.servers[0];
        let _nginx = start_nginx(server, &[80]);
        left.push(format!("/proc/{}", sleeper.pid()));
        for namespace in [&topology.switch, &server.namespace, &topology.client().namespace] {
            left.push(format!("/run/netns/{}", namespace.name()));
            left.push(namespace.directory().display().to_string());
        }
        assert!(left.iter().all(|path| Path::new(path).exists()), "{left:?}");
        panic!("as a failing test would");
    }));
    assert!(outcome.is_err());
    assert_eq!(left.len(), 7);
    for path in &left {
        assert!(!Path::new(path).exists(), "{path} is still there");
    }
}

#[test]
fn what_a_killed_run_left_is_swept_by_the_next() {
    const ORDER: &str = "LBT_LEAVE_TRACES_IN";
    if let Some(traces) = std::env::var_os(ORDER) {
        leave_traces(Path::new(&traces));
    }
    let namespace = Namespace::new("sweeper");
    let traces = namespace.directory().join("traces");
    let mut command = namespace.command(std::env::current_exe().unwrap());
    command.args(["--exact", "lab::what_a_killed_run_left_is_swept_by_the_next"]).env(ORDER, &traces);
    let mut killed = namespace.spawn("killed", command);
    wait::until("the other run has set up", Duration::from_secs(20), || {
        killed.assert_running();
        traces.exists()
    });
    killed.kill();
    let traces = std::fs::read_to_string(traces).unwrap();
    let [name, direct, indirect] = traces.split(' ').collect::<Vec<_>>()[..] else { panic!("{traces}") };
    let [direct, indirect] = [direct, indirect].map(|pid| format!("/proc/{pid}"));
    wait::until("its own child has died with it", Duration::from_secs(5), || !Path::new(&direct).exists());
    sweep::dead_runs();
    wait::until("its child's child is killed", Duration::from_secs(5), || !Path::new(&indirect).exists());
    let left = [Path::new("/run/netns").join(name), std::env::temp_dir().join(name)];
    assert!(left.iter().all(|path| !path.exists()), "{left:?} was not swept");
    assert!(Path::new("/run/netns").join(namespace.name()).exists(), "a living run's namespace was swept");
}

/// The part of the run that is to be killed: a namespace, a child in it and that child's child.
fn leave_traces(file: &Path) -> ! {
    let namespace = Namespace::new("killed");
    let mut command = namespace.command("sh");
    command.args(["-c", "sleep 1000 & echo $!; wait"]);
    let child = namespace.spawn("sh", command);
    let grandchild = wait::until_some("the shell tells its child's pid", Duration::from_secs(5), || {
        child.output().trim().parse::<u32>().ok()
    });
    let beside = file.with_extension("new");
    std::fs::write(&beside, format!("{} {} {grandchild}", namespace.name(), child.pid())).unwrap();
    std::fs::rename(beside, file).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn a_panic_inside_a_namespace_reaches_the_caller() {
    let namespace = Namespace::new("panic");
    let outcome = catch_unwind(AssertUnwindSafe(|| namespace.run(|| panic!("from inside"))));
    assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"from inside"));
}

#[test]
fn programs_in_a_namespace_see_its_interfaces_and_the_hosts_sys() {
    let namespace = Namespace::new("alone");
    let links = namespace.output("ip", &["-o", "link"]);
    assert_eq!(links.lines().filter(|line| !line.contains(": lo:")).count(), 0, "{links}");
    let where_am_i = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_ne!(namespace.run(where_am_i), where_am_i(), "only the closure's own thread moves");
    let mount = |text: String| text.lines().find(|line| line.contains(" /sys ")).map(str::to_owned);
    let here = mount(std::fs::read_to_string("/proc/self/mountinfo").unwrap());
    assert_eq!(mount(namespace.output("cat", &["/proc/self/mountinfo"])), here, "/sys was mounted anew");
}
