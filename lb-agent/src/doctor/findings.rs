//! What is wrong with a host that is to be a director, and the way out. Pure.

use crate::net::interfaces::XdpFacts;
use crate::real_server::report::Item;

/// What was seen of a host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// As `uname -r` and `uname -v` print them.
    pub release: String,
    pub version: String,
    pub bpffs_dir: String,
    /// The directory lies on a BPF file system.
    pub bpffs: bool,
    /// `sched/preempt` of debugfs: `none voluntary (full)`; None where it cannot be read, or there is no choice.
    pub preemption: Option<String>,
    /// `net.core.bpf_jit_enable`; None where it cannot be read, as in a container.
    pub jit: Option<i64>,
    /// Bits by capability number.
    pub capabilities: u64,
    /// `kernel.sched_rt_runtime_us`.
    pub real_time_share: Option<i64>,
    pub cpus: u32,
    pub interfaces: Vec<Nic>,
    /// The names of all interfaces there are.
    pub others: Vec<String>,
}

/// An interface that the program is to be on.
#[derive(Debug, Clone, Default)]
pub struct Nic {
    pub name: String,
    pub exists: bool,
    /// None: not known.
    pub up: Option<bool>,
    pub mtu: Option<u32>,
    pub facts: XdpFacts,
}

/// Everything that was looked at, the host first.
pub fn findings(host: &Host) -> Vec<Item> {
    let mut items = vec![kernel(&host.release), preemption(host), bpffs(host)];
    items.extend(jit(host.jit));
    items.extend(capabilities(host.capabilities));
    items.extend(real_time(host.real_time_share));
    items.extend(host.interfaces.iter().flat_map(|nic| interface(nic, host)));
    items
}

fn kernel(release: &str) -> Item {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        return Item::note(format!("Linux {release}: not a version that says whether it is 6.1 or later"));
    };
    match (major, minor) {
        (..6, _) | (6, 0) => Item::fail(
            format!("Linux {release} is too old"),
            "the programs are made for, and tested from, 6.1 on: install a newer kernel",
        ),
        (6, 1..6) => Item::note(format!(
            "Linux {release} has no tcx links (6.6): with VRRP the egress program is a filter of a clsact qdisc"
        )),
        _ => Item::ok(format!("Linux {release}")),
    }
}

/// How late timers may be is a matter of VRRP's intervals.
fn preemption(host: &Host) -> Item {
    let chosen = host.preemption.as_deref().and_then(|modes| modes.split_once('(')?.1.split_once(')'));
    match (chosen, host.version.contains("PREEMPT_DYNAMIC"), host.version.contains("PREEMPT")) {
        (Some(("full" | "lazy", _)), ..) | (None, false, true) => Item::ok("the kernel preempts itself"),
        (None, true, _) => Item::ok("the kernel can preempt itself, if it was started with preempt=full"),
        (Some(_), ..) => Item::note(format!("{LATE}: preempt=full on its command line")),
        (None, false, false) => Item::note(LATE),
    }
}

const LATE: &str = "the kernel does not preempt itself, so that VRRP intervals below 100ms may meet timers that are too late";

fn bpffs(host: &Host) -> Item {
    let dir = &host.bpffs_dir;
    match host.bpffs {
        true => Item::ok(format!("{dir}: on a BPF file system")),
        false => Item::fail(
            format!("{dir} is not on a BPF file system"),
            "mount -t bpf bpf /sys/fs/bpf, or --bpffs-dir names another place",
        ),
    }
}

fn jit(value: Option<i64>) -> Option<Item> {
    Some(match value? {
        0 => Item::fail(
            "net.core.bpf_jit_enable is 0, so that programs are interpreted, many times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        1 => Item::ok("net.core.bpf_jit_enable is 1"),
        other => Item::note(format!("net.core.bpf_jit_enable is {other}, for debugging: 1 is for use")),
    })
}

fn capabilities(bits: u64) -> Vec<Item> {
    let has = |number: u32| bits & 1 << number != 0;
    // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON too (capabilities(7)).
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(number, _, by_admin)| !(has(*number) || *by_admin && has(SYS_ADMIN)))
        .map(|(_, name, _)| *name)
        .collect();
    let mut items = match missing.as_slice() {
        [] => vec![Item::ok("may load programs and set up the network")],
        missing => vec![Item::fail(
            format!("{} missing", missing.join(", ")),
            "run as root, or with AmbientCapabilities= in the unit",
        )],
    };
    if !has(SYS_NICE) {
        items.push(Item::fail(
            "CAP_SYS_NICE missing, so that VRRP has no real-time priority and a busy host delays it",
            "run as root, or with AmbientCapabilities= in the unit",
        ));
    }
    items
}

fn real_time(share: Option<i64>) -> Option<Item> {
    // -1 is no limit.
    (share? == 0).then(|| {
        Item::fail(
            "kernel.sched_rt_runtime_us is 0, so that nothing has real-time priority, VRRP included",
            "sysctl -w kernel.sched_rt_runtime_us=950000",
        )
    })
}

fn interface(nic: &Nic, host: &Host) -> Vec<Item> {
    let Nic { name, exists, up, mtu, facts } = nic;
    if !exists {
        let others = match host.others.is_empty() {
            true => "it has none".to_owned(),
            false => format!("it has {}", host.others.join(", ")),
        };
        return vec![Item::fail(format!("{name} is no interface of this host"), others)];
    }
    let driver = facts.driver.as_deref().unwrap_or("unknown");
    let queues = facts.receive_queues.filter(|queues| *queues > 0);
    let of_queues = queues.map_or(String::new(), |queues| format!(", {}", receive(queues)));
    let mut items = vec![Item::ok(format!("{name}: driver {driver}{of_queues}"))];
    if *up == Some(false) {
        items.push(Item::fail(format!("{name} is down"), format!("ip link set {name} up")));
    }
    if facts.lro == Some(true) {
        items.push(Item::fail(
            format!("{name} joins frames (LRO), with which most drivers refuse XDP"),
            format!("ethtool -K {name} lro off"),
        ));
    }
    // A pair of virtual interfaces has no card that could strip tags.
    if facts.rx_vlan_offload == Some(true) && facts.driver.as_deref() != Some("veth") {
        items.push(Item::note(format!(
            "{name} takes VLAN tags out of frames before XDP sees them: with VLANs, ethtool -K {name} rxvlan off"
        )));
    }
    if let Some(mtu) = mtu.filter(|mtu| *mtu > PAGE_MTU) {
        items.push(Item::note(format!(
            "{name} has MTU {mtu}: drivers without XDP fragments attach natively up to about {PAGE_MTU} only, else `xdp: auto` \
             is generic"
        )));
    }
    if let Some(queues) = queues.filter(|queues| *queues < host.cpus) {
        items.push(Item::note(format!(
            "{name} has {} for {} CPUs, of which the others do nothing: ethtool -L {name} combined {}",
            receive(queues),
            host.cpus,
            host.cpus
        )));
    }
    items
}

fn receive(queues: u32) -> String {
    format!("{queues} receive queue{}", if queues == 1 { "" } else { "s" })
}

/// Number (linux/capability.h), name, and whether CAP_SYS_ADMIN is as good.
const NEEDED: [(u32, &str, bool); 4] = [
    (39, "CAP_BPF", true),
    (38, "CAP_PERFMON", true),
    (12, "CAP_NET_ADMIN", false),
    (13, "CAP_NET_RAW", false),
];
const SYS_ADMIN: u32 = 21;
const SYS_NICE: u32 = 23;
/// What fits into a page of 4 KiB beside the room that drivers keep.
const PAGE_MTU: u32 = 3498;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real_server::report::Standing;

    fn good() -> Host {
        Host {
            release: "6.12.3+deb13-amd64".into(),
            version: "#1 SMP PREEMPT_DYNAMIC Debian".into(),
            preemption: Some("none voluntary (full) lazy \n".into()),
            bpffs_dir: "/sys/fs/bpf/lb".into(),
            bpffs: true,
            jit: Some(1),
            capabilities: u64::MAX,
            real_time_share: Some(950_000),
            cpus: 4,
            interfaces: vec![nic()],
            others: vec!["eth0".into(), "eth1".into()],
        }
    }

    fn nic() -> Nic {
        let facts = XdpFacts {
            driver: Some("ixgbe".into()),
            lro: Some(false),
            rx_vlan_offload: Some(false),
            receive_queues: Some(4),
        };
        Nic { name: "eth0".into(), exists: true, up: Some(true), mtu: Some(1500), facts }
    }

    #[test]
    fn a_host_that_lacks_nothing_is_told_so() {
        let items = findings(&good());
        assert!(items.iter().all(|item| item.standing == Standing::Ok), "{items:#?}");
        assert_eq!(items.last().unwrap().text, "eth0: driver ixgbe, 4 receive queues");
    }

    type Change = fn(&mut Host);

    /// Each thing that may be wrong, and what is said of it beside what is right.
    #[test]
    fn what_a_host_lacks_is_one_sentence_each_with_the_way_out() {
        let nic = |host: &mut Host, change: fn(&mut Nic)| host.interfaces.iter_mut().for_each(change);
        let cases: [(Change, Standing, &str, &str); 18] = [
            (
                |host| host.release = "5.15.0-91-generic".into(),
                Standing::Fail,
                "Linux 5.15.0-91-generic is too old",
                "newer",
            ),
            (|host| host.release = "6.0".into(), Standing::Fail, "too old", "6.1"),
            (|host| host.release = "6.1.0-13-amd64".into(), Standing::Note, "clsact", ""),
            (|host| host.release = "six".into(), Standing::Note, "six", ""),
            (|host| (host.version, host.preemption) = ("#1 SMP".into(), None), Standing::Note, "100ms", ""),
            (
                |host| host.preemption = Some("none (voluntary) full".into()),
                Standing::Note,
                "preempt=full",
                "",
            ),
            (|host| host.bpffs = false, Standing::Fail, "/sys/fs/bpf/lb is not", "mount -t bpf"),
            (|host| host.jit = Some(0), Standing::Fail, "interpreted", "bpf_jit_enable=1"),
            (|host| host.jit = Some(2), Standing::Note, "debugging", ""),
            (|host| host.capabilities = !(1 << 39 | 1 << 21), Standing::Fail, "CAP_BPF missing", "root"),
            (|host| host.capabilities = !(1 << 12), Standing::Fail, "CAP_NET_ADMIN missing", "root"),
            (|host| host.capabilities = !(1 << 23), Standing::Fail, "CAP_SYS_NICE missing", "root"),
            (|host| host.real_time_share = Some(0), Standing::Fail, "real-time", "950000"),
            (
                |host| host.interfaces[0].exists = false,
                Standing::Fail,
                "eth0 is no interface",
                "it has eth0, eth1",
            ),
            (
                |host| host.interfaces[0].up = Some(false),
                Standing::Fail,
                "eth0 is down",
                "ip link set eth0 up",
            ),
            (
                |host| host.interfaces[0].facts.lro = Some(true),
                Standing::Fail,
                "LRO",
                "ethtool -K eth0 lro off",
            ),
            (|host| host.interfaces[0].mtu = Some(9000), Standing::Note, "MTU 9000", ""),
            (|host| host.cpus = 8, Standing::Note, "4 receive queues for 8 CPUs", ""),
        ];
        for (change, standing, text, remedy) in cases {
            let mut host = good();
            change(&mut host);
            let items = findings(&host);
            let said: Vec<&Item> = items.iter().filter(|item| item.standing != Standing::Ok).collect();
            let [item] = said[..] else { panic!("{text}: {said:#?}") };
            assert_eq!(item.standing, standing, "{item:?}");
            assert!(item.text.contains(text), "{item:?}");
            assert!(item.remedy.as_deref().unwrap_or_default().contains(remedy), "{item:?}");
        }
        // A card that takes tags out is told; a veth says so too, and has none.
        for (driver, notes) in [("ixgbe", 1), ("veth", 0)] {
            let mut host = good();
            nic(&mut host, |nic| nic.facts.rx_vlan_offload = Some(true));
            host.interfaces[0].facts.driver = Some(driver.into());
            let count = findings(&host).iter().filter(|item| item.text.contains("rxvlan off")).count();
            assert_eq!(count, notes, "{driver}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_complained_of() {
        let mut host = good();
        (host.jit, host.real_time_share, host.preemption) = (None, None, None);
        host.interfaces = vec![Nic { name: "eth0".into(), exists: true, ..Nic::default() }];
        let items = findings(&host);
        assert!(items.iter().all(|item| item.standing == Standing::Ok), "{items:#?}");
    }

    #[test]
    fn cap_sys_admin_is_as_good_as_cap_bpf() {
        let mut host = good();
        host.capabilities = !(1 << 39 | 1 << 38);
        assert!(findings(&host).iter().all(|item| item.standing == Standing::Ok));
    }
}
