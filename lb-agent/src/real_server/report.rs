//! What `real-server check` finds: the items, how they are printed, and the rules that judge what was seen.
//! Pure; `check.rs` does the looking.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::Serialize;

use crate::dataplane::toa_reader;

use super::cli::{Method, Tunnel};
use super::netlink::{DefaultRoute, HostAddress, host_prefix};
use super::record::Record;
use super::sysctl::{Rule, Setting, key};

/// How an item stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    Ok,
    Fail,
    /// Something to know; neither right nor wrong.
    Note,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Item {
    pub standing: Standing,
    /// What was looked at, then what was found.
    pub text: String,
    /// The way out of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Item {
    pub fn ok(text: impl Into<String>) -> Self {
        Self { standing: Standing::Ok, text: text.into(), remedy: None }
    }

    pub fn note(text: impl Into<String>) -> Self {
        Self { standing: Standing::Note, text: text.into(), remedy: None }
    }

    pub fn fail(text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { standing: Standing::Fail, text: text.into(), remedy: Some(remedy.into()) }
    }
}

/// Everything that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// No item failed.
    pub ok: bool,
    pub items: Vec<Item>,
}

impl Report {
    pub fn new(items: Vec<Item>) -> Self {
        Self { ok: items.iter().all(|item| item.standing != Standing::Fail), items }
    }

    /// What failed, with the way out.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        let failed = self.items.iter().filter(|item| item.standing == Standing::Fail);
        failed.map(|Item { text, remedy, .. }| match remedy {
            Some(remedy) => format!("{text}: {remedy}"),
            None => text.clone(),
        })
    }

    /// One line per item.
    pub fn lines(&self) -> String {
        let mut lines = String::new();
        for Item { standing, text, remedy } in &self.items {
            lines += match standing {
                Standing::Ok => "ok    ",
                Standing::Fail => "FAIL  ",
                Standing::Note => "note  ",
            };
            lines += text;
            if let Some(remedy) = remedy {
                lines += ": ";
                lines += remedy;
            }
            lines.push('\n');
        }
        lines
    }
}

/// A VIP must be on lo as a host address, and on no other interface, which would answer ARP for it.
/// `names` tells interfaces by index.
pub fn vip(vip: IpAddr, lo: u32, addresses: &[HostAddress], names: impl Fn(u32) -> String) -> Item {
    let prefix = host_prefix(vip);
    if let Some(other) = addresses.iter().find(|found| found.address == vip && found.interface != lo) {
        let name = names(other.interface);
        return Item::fail(
            format!("{name}: has the VIP {vip}/{}", other.prefix),
            format!(
                "only lo may have it, or this host answers ARP for it: ip address del {vip}/{} dev {name}",
                other.prefix
            ),
        );
    }
    match addresses.iter().find(|found| found.address == vip) {
        None => Item::fail(
            format!("lo: {vip}/{prefix} is missing"),
            format!("lb-agent real-server up --vip {vip}"),
        ),
        Some(found) if found.prefix != prefix => Item::fail(
            format!("lo: {vip}/{} makes its whole prefix local", found.prefix),
            format!("ip address del {vip}/{} dev lo, then lb-agent real-server up --vip {vip}", found.prefix),
        ),
        Some(_) => Item::ok(format!("lo: {vip}/{prefix}")),
    }
}

/// A setting is judged by the value that counts: the larger of the interface's and that of `all`.
pub fn sysctl(setting: &Setting, interface: &str, of_interface: u32, of_all: u32) -> Item {
    let name = setting.name;
    let text = format!(
        "{interface}: {name} is {} (interface {of_interface}, all {of_all})",
        of_interface.max(of_all)
    );
    match setting.rule.next(of_interface.max(of_all)) {
        None => Item::ok(text),
        Some(value) => {
            let mut command = format!("sysctl -w {}={value}", key(interface, name));
            if setting.rule == Rule::NotStrict && of_all == 1 {
                command += &format!(" {}={value}", key("all", name));
            }
            Item::fail(text, format!("{}: {command}", setting.why))
        }
    }
}

/// Under NAT replies must pass the director, which puts the VIP back: the default route leads to one.
pub fn default_route(directors: impl Iterator<Item = IpNet>, v6: bool, route: Option<&DefaultRoute>) -> Item {
    let directors: Vec<IpNet> = directors.filter(|director| director.addr().is_ipv6() == v6).collect();
    let family = if v6 { "-6 " } else { "" };
    let list = |gateways: &[IpAddr]| gateways.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let name = directors.first().map_or("DIRECTOR".into(), |director| director.addr().to_string());
    let remedy = format!(
        "replies must pass the director, or clients drop them: ip {family}route replace default via {name} (or the \
         same for the clients' prefixes only)"
    );
    match route {
        None => Item::fail("default route: there is none", remedy),
        Some(route) if route.gateways.is_empty() => {
            Item::fail("default route: leads to an interface without a gateway", remedy)
        }
        Some(route) => {
            let text = format!("default route: via {}", list(&route.gateways));
            let all = |gateway: &IpAddr| directors.iter().any(|director| director.contains(gateway));
            if directors.is_empty() {
                Item::note(format!("{text}; name the directors (--from) to have it checked"))
            } else if route.gateways.iter().all(all) {
                Item::ok(text)
            } else {
                Item::fail(text, remedy)
            }
        }
    }
}

/// What tunnelling costs in packet size: bytes of the largest outer header that a director may use.
pub fn overhead(record: &Record) -> u32 {
    let outer = if record.directors.iter().any(|director| director.addr().is_ipv6()) { 40 } else { 20 };
    outer + if record.gue_ports.is_empty() { 0 } else { 12 }
}

/// What the operator should know of packet sizes under TUN on an interface of this MTU.
pub fn sizes(record: &Record, interface: &str, mtu: u32) -> Vec<Item> {
    if !record.methods.contains(&Method::Tun) {
        return Vec::new();
    }
    let overhead = overhead(record);
    let inner = mtu.saturating_sub(overhead);
    let (mss4, mss6) = (inner.saturating_sub(40), inner.saturating_sub(60));
    vec![
        Item::note(format!(
            "{interface}: MTU {mtu}: a tunnelled packet carries {overhead} bytes more, so clients' packets of up to \
             {inner} bytes fit; the director answers larger ones with fragmentation needed or packet too big; {} \
             on director and real servers carries all of 1500",
            1500 + overhead
        )),
        Item::note(format!(
            "MSS: where such answers are filtered on the way to clients, announce less: `ip route change default … \
             advmss {mss4}` (IPv6: {mss6}) here, or clamp the MSS at the director"
        )),
    ]
}

/// The reader of TOA: in the cgroup, and for the right sources.
pub fn toa(from: &BTreeSet<IpNet>, cgroup: &Path, contents: Option<&toa_reader::Contents>) -> Vec<Item> {
    let again = "lb-agent real-server up";
    let Some(contents) = contents else {
        return vec![Item::fail("TOA: nothing is pinned that reads it", again)];
    };
    let mut items = Vec::new();
    if contents.detached.is_empty() {
        items.push(Item::ok(format!("TOA: read for programs in {}", cgroup.display())));
    } else {
        let missing = contents.detached.join(", ");
        items.push(Item::fail(format!("TOA: {missing} not attached to {}", cgroup.display()), again));
    }
    let missing = from.difference(&contents.sources);
    items.extend(missing.map(|source| Item::fail(format!("TOA: not believed from {source}"), again)));
    let seen: Vec<String> = contents
        .found
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(found, count)| format!("{} {count}", found.name()))
        .collect();
    items.push(Item::note(if seen.is_empty() {
        "TOA: no connection has come yet".to_owned()
    } else {
        format!("TOA: connections: {}", seen.join(", "))
    }));
    items
}

/// What to say where lb does not unpack.
pub fn foreign_tunnel(tunnel: Tunnel) -> Option<Item> {
    (tunnel == Tunnel::None).then(|| {
        Item::note("tunnel: packets must be unpacked by other means (--tunnel bpf sets up lb's own program)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real_server::sysctl::SETTINGS;

    const VIP: &str = "203.0.113.10";

    fn address(interface: u32, prefix: u8) -> HostAddress {
        HostAddress { interface, address: VIP.parse().unwrap(), prefix, ours: true }
    }

    #[test]
    fn a_vip_belongs_on_lo_alone_and_as_a_host_address() {
        let judge = |addresses: &[HostAddress]| vip(VIP.parse().unwrap(), 1, addresses, |_| "eth0".into());
        assert_eq!(judge(&[address(1, 32)]), Item::ok("lo: 203.0.113.10/32"));
        for (addresses, says) in [
            (vec![], "is missing"),
            (vec![address(1, 24)], "whole prefix"),
            (vec![address(1, 32), address(2, 24)], "eth0: has the VIP"),
        ] {
            let item = judge(&addresses);
            assert_eq!(item.standing, Standing::Fail);
            assert!(item.text.contains(says), "{item:?} does not say {says:?}");
        }
    }

    #[test]
    fn the_larger_of_interface_and_all_counts() {
        let [ignore, _, filter] = &SETTINGS;
        assert_eq!(sysctl(ignore, "eth0", 0, 1).standing, Standing::Ok);
        assert_eq!(sysctl(filter, "eth0", 1, 2).standing, Standing::Ok);
        let item = sysctl(filter, "eth0", 0, 1);
        assert_eq!(item.standing, Standing::Fail);
        assert!(item.remedy.unwrap().contains("net.ipv4.conf.all.rp_filter=0"));
    }

    #[test]
    fn replies_must_leave_by_a_director() {
        let route = |gateways: &[&str]| DefaultRoute {
            gateways: gateways.iter().map(|gateway| gateway.parse().unwrap()).collect(),
            interfaces: vec![2],
        };
        let judge = |route: Option<DefaultRoute>, from: &[&str]| {
            default_route(from.iter().map(|from| from.parse().unwrap()), false, route.as_ref()).standing
        };
        assert_eq!(judge(Some(route(&["10.0.0.1"])), &["10.0.0.1/32"]), Standing::Ok);
        assert_eq!(judge(Some(route(&["10.0.0.1", "10.0.0.9"])), &["10.0.0.1/32"]), Standing::Fail);
        assert_eq!(judge(Some(route(&[])), &["10.0.0.1/32"]), Standing::Fail);
        assert_eq!(judge(None, &["10.0.0.1/32"]), Standing::Fail);
        assert_eq!(judge(Some(route(&["10.0.0.1"])), &[]), Standing::Note);
    }

    #[test]
    fn a_reader_that_is_absent_elsewhere_or_for_others_fails() {
        use lb_common::toa::reader::Found;
        let from: BTreeSet<IpNet> = ["10.0.0.208/28".parse().unwrap()].into();
        let well = toa_reader::Contents {
            sources: from.clone(),
            found: vec![(Found::Told, 5), (Found::Untold, 0), (Found::Stranger, 2)],
            detached: Vec::new(),
        };
        let place = Path::new("/sys/fs/cgroup");
        let items = toa(&from, place, Some(&well));
        assert!(Report::new(items.clone()).ok);
        assert_eq!(items[1].text, "TOA: connections: told 5, not_believed 2");
        let gone = toa_reader::Contents { detached: vec!["toa_peer4"], ..well.clone() };
        let others = toa_reader::Contents { sources: BTreeSet::new(), ..well };
        for contents in [None, Some(&gone), Some(&others)] {
            assert!(!Report::new(toa(&from, place, contents)).ok, "{contents:?}");
        }
    }

    #[test]
    fn one_failure_fails_the_report_and_every_item_is_one_line() {
        let good = Report::new(vec![Item::ok("lo: up"), Item::note("MTU 1500")]);
        assert!(good.ok);
        let bad = Report::new(vec![Item::ok("lo: up"), Item::fail("lo: x is missing", "add it")]);
        assert!(!bad.ok);
        assert_eq!(bad.lines(), "ok    lo: up\nFAIL  lo: x is missing: add it\n");
        let json = serde_json::to_value(&bad).unwrap();
        assert_eq!(json["items"][1]["standing"], "fail");
        assert_eq!(json["items"][0].get("remedy"), None);
    }
}
