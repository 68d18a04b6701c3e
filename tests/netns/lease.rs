//! The dead-man lease: an agent sets its role, puts its programs on the interface and is gone, as after kill -9;
//! its kernel still has the address. What its neighbour sees of it, before the lease ends and after.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use lb_agent::dataplane::{
    Dataplane, EgressMode, Interface, OBJECT, Options, Sizes, VrrpRole, VrrpStanding, XdpMode,
};
use lb_agent::net::{Net, announce};
use lb_common::verdict::Reason;
use lb_tests::agent::PinDirectory;
use lb_tests::{Namespace, wait};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x100);
const MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
/// The other director, which is master by now.
const OTHER_MAC: &str = "02:00:00:00:09:99";
const PATIENCE: Duration = Duration::from_secs(30);

/// A director with the VIPs on eth0, and its neighbour.
struct Pair {
    director: Namespace,
    neighbour: Namespace,
    pins: PinDirectory,
}

impl Pair {
    fn new() -> Pair {
        let (director, neighbour) = (Namespace::new("director"), Namespace::new("neighbour"));
        director.ip(&format!(
            "link add eth0 address 02:00:00:00:09:01 type veth peer name p0 netns {} address 02:00:00:00:09:02\n\
             link set eth0 up\n\
             addr add 10.9.0.1/24 dev eth0\n\
             addr add fd00:9::1/64 dev eth0\n\
             addr add {VIP}/32 dev eth0\n\
             addr add {VIP6}/128 dev eth0",
            neighbour.name()
        ));
        neighbour.ip("link set p0 up\naddr add 10.9.0.2/24 dev p0\naddr add fd00:9::2/64 dev p0");
        // An announcement is heeded whenever it comes, not only a second after the last.
        neighbour.sysctl("net.ipv4.neigh.p0.locktime=0");
        Pair { director, neighbour, pins: PinDirectory::new() }
    }

    /// What an agent does when it starts, and after `work` it is gone.
    fn agent<T: Send>(&self, work: impl FnOnce(&mut Dataplane, &Interface, u8) -> T + Send) -> T {
        self.director.run(|| {
            let ifindex = nix::net::if_::if_nametoindex("eth0").expect("eth0");
            let interface =
                Interface { name: "eth0".into(), ifindex, mode: XdpMode::Auto, members: Vec::new() };
            let sizes = Sizes { connections: 1000, connections_v6: 100, slots: 1024, ..Sizes::default() };
            let options = Options {
                bpffs_dir: self.pins.path().to_owned(),
                interfaces: vec![interface.clone()],
                sizes,
                object: OBJECT,
                answers_per_second: 1000,
                packets: Default::default(),
                recreate: false,
            };
            let mut dataplane = Dataplane::open(&options).expect("open the data plane");
            let mut tables = dataplane.tables().expect("tables");
            let instance = tables.set_vrrp("edge", &[VIP.into(), VIP6.into()], true).expect("an instance");
            work(&mut dataplane, &interface, instance)
        })
    }

    /// Whether the neighbour finds the address anew and its echo.
    fn answers(&self, address: IpAddr) -> bool {
        self.neighbour.ip("neigh flush all");
        let mut ping = self.neighbour.command("ping");
        ping.args(["-c", "1", "-W", "1", &address.to_string()]);
        ping.output().expect("run ping").status.success()
    }

    /// What the neighbour's kernel knows of the address.
    fn neighbour_entry(&self, address: IpAddr) -> String {
        self.neighbour.output("ip", &["neigh", "show", &address.to_string(), "dev", "p0"])
    }

    /// The director announces both VIPs; the neighbour's entries before were the other director's. Whether it
    /// was heeded, by address.
    fn announces(&self) -> [bool; 2] {
        for vip in [IpAddr::from(VIP), VIP6.into()] {
            self.neighbour.ip(&format!("neigh replace {vip} lladdr {OTHER_MAC} dev p0 nud reachable"));
        }
        self.director.run(|| {
            let ifindex = nix::net::if_::if_nametoindex("eth0").expect("eth0");
            for frame in [
                &announce::gratuitous_arp(MAC, VIP)[..],
                &announce::unsolicited_advertisement(MAC, VIP6, false),
            ] {
                match announce::send(ifindex, frame) {
                    // What the kernel tells a sender whose frame tc has dropped.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    sent => sent.expect("send an announcement"),
                }
            }
        });
        // What was sent before this echo was received before it.
        assert!(self.answers_quietly("10.9.0.1"));
        [IpAddr::from(VIP), VIP6.into()].map(|vip| !self.neighbour_entry(vip).contains(OTHER_MAC))
    }

    fn answers_quietly(&self, address: &str) -> bool {
        let mut ping = self.neighbour.command("ping");
        ping.args(["-c", "1", "-W", "5", address]);
        ping.output().expect("run ping").status.success()
    }
}

fn count(dataplane: &Dataplane, reason: Reason) -> u64 {
    let all = dataplane.counters().and_then(|counters| counters.reasons()).expect("counters");
    all.into_iter().find(|(other, _)| *other == reason).map_or(0, |(_, count)| count.packets)
}

/// The qdisc that was made for the program goes, unless somebody else has a filter on it by now.
fn leaves_no_idle_qdisc(director: &Namespace, dataplane: &Dataplane) {
    let shown = || director.output("tc", &["qdisc", "show", "dev", "eth0"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let idle = || dataplane.idle_qdiscs().expect("marks of qdiscs");
    let Some(ifindex) = idle().first().copied() else {
        assert!(!shown().contains("clsact"), "nobody made it: {}", shown());
        return;
    };
    runtime.block_on(async {
        let net = Net::for_requests().expect("a netlink socket");
        let filter = ["dev", "eth0", "ingress", "protocol", "ip", "prio", "7"];
        let u32 = ["u32", "match", "u32", "0", "0"];
        director.output("tc", &[&["filter", "add"][..], &filter, &u32].concat());
        assert!(!net.remove_idle_clsact(ifindex).await.expect("look for filters"));
        assert!(shown().contains("clsact"), "somebody else uses it: {}", shown());
        director.output("tc", &[&["filter", "del"][..], &filter].concat());
        assert!(net.remove_idle_clsact(ifindex).await.expect("remove the qdisc"));
        assert!(!shown().contains("clsact"), "{}", shown());
        assert!(net.remove_idle_clsact(ifindex).await.expect("there is none any more"));
    });
    dataplane.forget_qdisc(ifindex).expect("forget it");
    assert_eq!(idle(), [] as [u32; 0]);
}

#[test]
fn a_dead_agents_address_is_silent_when_its_lease_has_ended() {
    for clsact in [false, true] {
        let pair = Pair::new();
        let (vip, vip6) = (IpAddr::from(VIP), IpAddr::from(VIP6));
        // Before 6.6 there are no tcx links: clsact is what it is then anyway.
        let modes: &[EgressMode] =
            if clsact { &[EgressMode::Clsact] } else { &[EgressMode::Tcx, EgressMode::Clsact] };
        pair.agent(|dataplane, interface, instance| {
            dataplane.attach_egress(interface, clsact).expect("attach the egress program");
            assert!(modes.contains(&dataplane.egress_on(interface.ifindex).expect("a mode")));
            let roles = dataplane.vrrp_roles();
            roles.set(instance, VrrpRole::MasterWithoutEnd).expect("master");
        });
        assert!(pair.answers(vip) && pair.answers(vip6), "the agent is gone and the lease holds");
        assert_eq!(pair.announces(), [true, true]);

        let until = Instant::now() + Duration::from_secs(1);
        pair.agent(|dataplane, interface, instance| {
            assert_eq!(
                dataplane.vrrp_roles().standing(instance).expect("a word"),
                VrrpStanding::Master(None)
            );
            dataplane.attach_egress(interface, clsact).expect("replace the egress program");
            dataplane.vrrp_roles().set(instance, VrrpRole::Master { until }).expect("master for a second");
        });
        wait::until("the lease has ended", PATIENCE, || Instant::now() > until);
        for address in [vip, vip6] {
            assert!(!pair.answers(address), "{address}");
            let entry = pair.neighbour_entry(address);
            assert!(!entry.contains("lladdr"), "nobody answered for {address}: {entry}");
        }
        assert!(pair.answers("10.9.0.1".parse().unwrap()), "the director's own address is not silent");
        assert_eq!(pair.announces(), [false, false], "clsact: {clsact}");

        // The next agent knows the instance again, and whose turn it is.
        pair.agent(|dataplane, interface, instance| {
            let roles = dataplane.vrrp_roles();
            assert!(matches!(roles.standing(instance).expect("a word"), VrrpStanding::Expired(_)));
            for reason in
                [Reason::ArpExpired, Reason::NdExpired, Reason::ArpUnsentExpired, Reason::NdUnsentExpired]
            {
                assert!(count(dataplane, reason) > 0, "{}", reason.name());
            }
            dataplane.attach_egress(interface, clsact).expect("replace the egress program");
            roles.set(instance, VrrpRole::Backup).expect("backup");
        });
        assert!(!pair.answers(vip) && !pair.answers(vip6), "a backup");
        pair.agent(|dataplane, interface, instance| {
            assert!(count(dataplane, Reason::ArpBackup) > 0 && count(dataplane, Reason::NdBackup) > 0);
            dataplane.attach_egress(interface, clsact).expect("replace the egress program");
            dataplane.vrrp_roles().set(instance, VrrpRole::MasterWithoutEnd).expect("master");
        });
        assert!(pair.answers(vip) && pair.answers(vip6));

        pair.agent(|dataplane, _, _| {
            let mut tables = dataplane.tables().expect("tables");
            lb_agent::dataplane::self_probe::install(&mut tables).expect("the self-probe");
            assert_eq!(dataplane.prove_forwarding(), Ok(()));
            dataplane.detach_all().expect("detach");
            assert_eq!(dataplane.prove_forwarding().unwrap_err(), "the program is on no interface");
            leaves_no_idle_qdisc(&pair.director, dataplane);
        });
        let filters = pair.director.output("tc", &["filter", "show", "dev", "eth0", "egress"]);
        let link = pair.director.output("ip", &["link", "show", "dev", "eth0"]);
        assert!(!filters.contains("lb_egress") && !link.contains("xdp"), "{filters}{link}");
        assert_eq!(std::fs::read_dir(pair.pins.path()).expect("the pins' directory").count(), 0);

        pair.agent(|dataplane, _, _| {
            pair.director.ip("link del eth0");
            let mut why = String::new();
            wait::until("the loss of the interface is noticed", PATIENCE, || {
                why = dataplane.prove_forwarding().err().unwrap_or_default();
                !why.is_empty()
            });
            assert_eq!(why, "eth0 is gone, and its XDP program with it");
        });
    }
}
