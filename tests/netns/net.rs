//! The agent's netlink edge against the kernel: next hops, gateways, interfaces and addresses in two namespaces
//! joined by a veth pair. Needs root.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lb_agent::net::{
    AddOutcome, ClientHop, ClientRoute, Event, Net, NextHop, OwnAddress, RemoveOutcome, Resolution,
    interfaces, sysctl,
};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::mpsc::UnboundedReceiver;

const DIRECTOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
/// What an event tells is known at once, on a busy machine a little later; what only probing tells, after 20 s and more.
const BY_EVENT: Duration = Duration::from_secs(8);

/// A thread in a network namespace of its own, which goes away with it.
struct Namespace {
    jobs: Option<mpsc::Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
    id: i32,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, id) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are we root?)");
            ready.send(nix::unistd::gettid().as_raw()).expect("the test waits for its namespace");
            for job in queue {
                job();
            }
        });
        let id = id.recv().expect("the thread entered its namespace");
        let namespace = Self { jobs: Some(jobs), thread: Some(thread), id };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs a job in the namespace; its panic is the caller's.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = move || {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            done.send(caught).expect("the caller waits");
        };
        self.jobs.as_ref().expect("not dropped").send(Box::new(job)).expect("the thread lives");
        result.recv().expect("the job ended").unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn ip(&self, arguments: &str) {
        let arguments = arguments.to_owned();
        self.run(move || {
            let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("run ip");
            assert!(status.success(), "ip {arguments}");
        });
    }

    fn run_async<F: Future<Output = ()>>(&self, body: impl FnOnce() -> F + Send + 'static) {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(body());
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It ends with its queue; a panic in a job was passed on by `run`.
            let _ = thread.join();
        }
    }
}

/// Director (eth0: 10.0.0.1, fd00::1) and peer (p0: 10.0.0.12, 10.0.0.13, fd00::12) on one link.
fn lab() -> (Namespace, Namespace) {
    let (director, peer) = (Namespace::new(), Namespace::new());
    director.ip("link add eth0 address 02:00:00:00:00:01 type veth peer name p0 address 02:00:00:00:00:0a");
    director.ip(&format!("link set p0 netns {}", peer.id));
    for (namespace, interface, addresses) in [
        (&director, "eth0", &["10.0.0.1/24", "fd00::1/64"][..]),
        (&peer, "p0", &["10.0.0.12/24", "10.0.0.13/24", "fd00::12/64"][..]),
    ] {
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            namespace.ip(&format!("address add {address} dev {interface} {nodad}"));
        }
        namespace.ip(&format!("link set {interface} up"));
    }
    (director, peer)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|address| ip(address)).collect()
}

/// Waits for a resolution of `address` that `wanted` accepts, and returns it with the time it took.
async fn resolution(
    events: &mut UnboundedReceiver<Event>,
    address: &str,
    what: &str,
    wanted: impl Fn(&Resolution) -> bool,
) -> (Resolution, Duration) {
    let (start, mut seen) = (Instant::now(), vec![]);
    let search = async {
        loop {
            match events.recv().await.expect("the watcher lives") {
                Event::Resolution { address: of, resolution } if of == ip(address) => {
                    if wanted(&resolution) {
                        return resolution;
                    }
                    seen.push(resolution);
                }
                _ => {}
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(15), search).await {
        Ok(found) => (found, start.elapsed()),
        Err(_) => panic!("{address}: no {what} within 15 s, only {seen:?}"),
    }
}

async fn resolved(events: &mut UnboundedReceiver<Event>, address: &str, mac: [u8; 6]) -> (NextHop, Duration) {
    let with_mac = |r: &Resolution| matches!(r, Resolution::Resolved(hop) if hop.destination_mac == mac);
    match resolution(events, address, &format!("hop to {mac:02x?}"), with_mac).await {
        (Resolution::Resolved(hop), took) => (hop, took),
        (other, _) => panic!("{other:?}"),
    }
}

async fn failed(events: &mut UnboundedReceiver<Event>, address: &str, reason: &str) {
    let wanted = Resolution::Failed { reason: reason.into() };
    resolution(events, address, reason, |r| *r == wanted).await;
}

fn run_ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("run ip");
    assert!(status.success(), "ip {arguments}");
}

#[test]
fn an_address_on_the_link_resolves_in_both_families_and_others_say_why_not() {
    let (director, _peer) = lab();
    director.run_async(|| async {
        let (net, mut events) = Net::start().await.unwrap();
        net.watch(addresses(&["10.0.0.12"]));
        let (pending, _) = resolution(&mut events, "10.0.0.12", "report", |_| true).await;
        assert_eq!(pending, Resolution::Pending);
        let (hop, _) = resolved(&mut events, "10.0.0.12", PEER_MAC).await;
        let eth0 = net.links().await.unwrap().into_iter().find(|link| link.name == "eth0").unwrap();
        let expected = NextHop {
            ifindex: eth0.index,
            destination_mac: PEER_MAC,
            source_mac: DIRECTOR_MAC,
            vlans: [0, 0],
            mtu: 1500,
            source: Some(ip("10.0.0.1")),
            neighbour: ip("10.0.0.12"),
        };
        assert_eq!(hop, expected);
        net.watch(addresses(&["10.0.0.12", "fd00::12"]));
        let (hop, _) = resolved(&mut events, "fd00::12", PEER_MAC).await;
        assert_eq!((hop.source, hop.neighbour), (Some(ip("fd00::1")), ip("fd00::12")));
        for (address, reason) in [
            ("10.0.0.99", "no ARP answer from 10.0.0.99 on eth0"),
            ("fd00::99", "no neighbour advertisement from fd00::99 on eth0"),
            ("10.9.9.9", "no route to 10.9.9.9"),
            ("2001:db8::9", "no route to 2001:db8::9"),
            ("10.0.0.255", "10.0.0.255 is a broadcast address"),
        ] {
            net.watch(addresses(&[address]));
            failed(&mut events, address, reason).await;
        }
        for address in ["10.0.0.1", "fd00::1"] {
            net.watch(addresses(&[address]));
            resolution(&mut events, address, "own address", |r| *r == Resolution::Local).await;
        }
    });
}

#[test]
fn an_announced_hardware_address_is_reported_within_a_second() {
    for address in ["10.0.0.12", "fd00::12"] {
        let (director, peer) = lab();
        director.run_async(move || async move {
            let (net, mut events) = Net::start().await.unwrap();
            net.watch(addresses(&[address]));
            resolved(&mut events, address, PEER_MAC).await;
            peer.ip("link set p0 address 02:00:00:00:00:0b");
            let start = Instant::now();
            peer.run_async(move || async move {
                let (net, _events) = Net::start().await.unwrap();
                net.announce("p0", ip(address)).await.unwrap();
            });
            resolved(&mut events, address, OTHER_MAC).await;
            assert!(start.elapsed() < BY_EVENT, "{address}: {:?}", start.elapsed());
        });
    }
}

#[test]
fn events_that_the_kernel_had_no_room_for_are_made_up_for() {
    let (director, _peer) = lab();
    director.run_async(|| async {
        let (net, mut events) = Net::start().await.unwrap();
        net.watch(addresses(&["10.0.0.12"]));
        resolved(&mut events, "10.0.0.12", PEER_MAC).await;
        // This runtime has one thread: while it is in here nobody reads events, and the buffer fills up long
        // before the last line.
        let mut lines = String::new();
        for n in 0..40_000 {
            let (high, low) = (n / 200, n % 200);
            lines +=
                &format!("neigh replace 10.1.{high}.{low} lladdr 02:00:00:00:00:0c dev eth0 nud permanent\n");
        }
        lines += "link set eth0 mtu 1280\n";
        let batch = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(batch.path(), lines).unwrap();
        run_ip(&format!("-batch {}", batch.path().display()));
        let smaller = |r: &Resolution| matches!(r, Resolution::Resolved(hop) if hop.mtu == 1280);
        resolution(&mut events, "10.0.0.12", "smaller MTU", smaller).await;
    });
}

#[test]
fn a_silent_change_of_the_hardware_address_is_found_by_probing() {
    let (director, peer) = lab();
    director.run_async(move || async move {
        // Entries become stale after half a second to one and a half, instead of up to 45 s.
        sysctl::write("net/ipv4/neigh/eth0/base_reachable_time_ms", "1000").unwrap();
        let (net, mut events) = Net::start().await.unwrap();
        net.watch(addresses(&["10.0.0.12"]));
        resolved(&mut events, "10.0.0.12", PEER_MAC).await;
        peer.ip("link set p0 address 02:00:00:00:00:0b");
        failed(&mut events, "10.0.0.12", "no ARP answer from 10.0.0.12 on eth0").await;
        resolved(&mut events, "10.0.0.12", OTHER_MAC).await;
    });
}

#[test]
fn the_next_hop_follows_routes_rules_and_interfaces() {
    let (director, _peer) = lab();
    director.run_async(|| async {
        let (net, mut events) = Net::start().await.unwrap();
        run_ip("route add 192.0.2.0/24 via 10.0.0.12 mtu 1400");
        net.watch(addresses(&["192.0.2.7"]));
        let (hop, _) = resolved(&mut events, "192.0.2.7", PEER_MAC).await;
        assert_eq!((hop.neighbour, hop.mtu), (ip("10.0.0.12"), 1400));

        run_ip("route replace 192.0.2.0/24 via 10.0.0.13");
        let (hop, took) = resolved(&mut events, "192.0.2.7", PEER_MAC).await;
        assert_eq!((hop.neighbour, hop.mtu), (ip("10.0.0.13"), 1500));
        assert!(took < BY_EVENT, "{took:?}");

        run_ip("route add 192.0.2.0/24 via 10.0.0.12 table 100");
        run_ip("rule add to 192.0.2.7 table 100");
        let (hop, took) = resolved(&mut events, "192.0.2.7", PEER_MAC).await;
        assert_eq!(hop.neighbour, ip("10.0.0.12"));
        assert!(took < BY_EVENT, "{took:?}");

        run_ip("link set eth0 mtu 1300");
        let (hop, _) = resolved(&mut events, "192.0.2.7", PEER_MAC).await;
        assert_eq!(hop.mtu, 1300);

        run_ip("link set eth0 down");
        failed(&mut events, "192.0.2.7", "eth0 is down").await;
        // Its routes went with it, without an event of their own.
        failed(&mut events, "192.0.2.7", "no route to 192.0.2.7").await;
        run_ip("link set eth0 up");
        run_ip("route add 192.0.2.0/24 via 10.0.0.12 table 100");
        resolved(&mut events, "192.0.2.7", PEER_MAC).await;
        run_ip("route add blackhole 192.0.2.7 table 100");
        failed(&mut events, "192.0.2.7", "the route to 192.0.2.7 is of type blackhole").await;
    });
}

#[test]
fn routes_to_clients_come_with_their_gateways() {
    let (director, _peer) = lab();
    director.ip("route add default via 10.0.0.12");
    director.ip("-6 route add 2001:db8::/32 via fd00::12");
    director.ip("route add unreachable 198.51.100.0/24");
    director.run_async(|| async {
        let (net, mut events) = Net::start().await.unwrap();
        let eth0 = net.links().await.unwrap().into_iter().find(|link| link.name == "eth0").unwrap().index;
        let route = |prefix: &str, via| ClientRoute { prefix: prefix.parse().unwrap(), via };
        let gateway = |address| ClientHop::Gateway { address: ip(address), ifindex: eth0 };
        let (mut routes, mut hops) = (None, BTreeSet::new());
        let search = async {
            while hops.len() < 2 {
                match events.recv().await.unwrap() {
                    Event::ClientRoutes(all) => routes = Some(all),
                    Event::Gateway { address, ifindex, resolution: Resolution::Resolved(hop) } => {
                        assert_eq!((ifindex, hop.destination_mac), (eth0, PEER_MAC));
                        hops.insert(address);
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), search).await.expect("both gateways within 10 s");
        assert_eq!(hops, addresses(&["10.0.0.12", "fd00::12"]));
        let expected = [
            route("0.0.0.0/0", gateway("10.0.0.12")),
            route("10.0.0.0/24", ClientHop::OnLink { ifindex: eth0 }),
            route("198.51.100.0/24", ClientHop::Unreachable),
            route("2001:db8::/32", gateway("fd00::12")),
            route("fd00::/64", ClientHop::OnLink { ifindex: eth0 }),
        ];
        assert_eq!(routes.unwrap(), expected);
    });
}

#[test]
fn only_addresses_of_ours_are_taken_away() {
    let (director, _peer) = lab();
    director.run_async(|| async {
        let (net, _events) = Net::start().await.unwrap();
        for vip in ["203.0.113.10/32", "2001:db8::10/128"] {
            let vip: ipnet::IpNet = vip.parse().unwrap();
            let own = OwnAddress { interface: "eth0".into(), address: vip };
            assert_eq!(net.add_address("eth0", vip).await.unwrap(), AddOutcome::Added);
            let again = net.add_address("eth0", vip).await.unwrap();
            assert_eq!(again, AddOutcome::AlreadyThere { ours: true });
            assert_eq!(net.list_own_addresses().await.unwrap(), [own]);
            assert_eq!(net.remove_address("eth0", vip.addr()).await.unwrap(), RemoveOutcome::Removed);
            assert_eq!(net.remove_address("eth0", vip.addr()).await.unwrap(), RemoveOutcome::NotThere);
        }
        let theirs = net.add_address("eth0", "10.0.0.1/32".parse().unwrap()).await.unwrap();
        assert_eq!(theirs, AddOutcome::AlreadyThere { ours: false });
        assert_eq!(net.remove_address("eth0", ip("10.0.0.1")).await.unwrap(), RemoveOutcome::NotOurs);
        assert!(net.addresses().await.unwrap().iter().any(|a| a.address.addr() == ip("10.0.0.1")));
        let error = net.add_address("eth9", "203.0.113.10/32".parse().unwrap()).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "add 203.0.113.10/32 to eth9: interface eth9 does not exist");
        let facts = net.host_facts().await.unwrap();
        assert!(facts.links.iter().any(|link| link.kind.as_deref() == Some("veth") && link.name == "eth0"));
        assert_eq!(facts.ipv4_forwarding, sysctl::read("net/ipv4/ip_forward").unwrap() == "1");
    });
}

#[test]
fn lists_that_are_asked_for_at_once_are_all_answered() {
    let (director, _peer) = lab();
    director.run_async(|| async {
        // Too many for one answer of the kernel's: there is time to ask in between.
        let line = |n| format!("address add 10.2.{}.{}/32 dev eth0\n", n / 200, n % 200);
        let batch = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(batch.path(), (0..1000).map(line).collect::<String>()).unwrap();
        run_ip(&format!("-batch {}", batch.path().display()));
        let (net, _events) = Net::start().await.unwrap();
        let mut askers = tokio::task::JoinSet::new();
        for n in 0..100 {
            let net = net.clone();
            askers.spawn(async move {
                let asked = if n % 2 == 0 { net.addresses().await.err() } else { net.links().await.err() };
                asked.map(|error| format!("{error:#}"))
            });
        }
        let refused: Vec<String> = askers.join_all().await.into_iter().flatten().collect();
        assert!(refused.is_empty(), "{} of 100: {}", refused.len(), refused[0]);
    });
}

#[test]
fn the_driver_of_an_interface_is_named() {
    let (director, _peer) = lab();
    director.run(|| {
        let facts = interfaces::xdp_facts("eth0").unwrap();
        assert_eq!(facts.driver.as_deref(), Some("veth"));
        assert_eq!(facts.lro, Some(false));
        assert_eq!(facts.receive_queues, Some(1));
        let listed = interfaces::list().unwrap();
        let eth0 = listed.iter().find(|interface| interface.name == "eth0").unwrap();
        assert_eq!(eth0.mac.as_deref(), Some("02:00:00:00:00:01"));
        assert!(eth0.addresses.contains(&"10.0.0.1/24".parse().unwrap()), "{eth0:?}");
    });
}
