//! Looks at everything a real server needs; `report.rs` judges what is seen.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use lb_common::decapsulator::Outcome;

use crate::dataplane::decapsulator::{Contents, Decapsulator};
use crate::dataplane::toa_reader::ToaReader;
use crate::places::Places;

use super::cli::{CheckArgs, Method, Tunnel};
use super::netlink::{Link, Netlink};
use super::record::{self, Record};
use super::report::{self, Item, Report};
use super::setup::{default_interface, tunnels};
use super::sysctl::{self, SETTINGS};

/// Looks, and reports every item.
///
/// # Errors
/// Nothing to check, or a kernel that does not answer.
pub async fn check(args: &CheckArgs, places: &Places) -> Result<Report> {
    let netlink = Netlink::open()?;
    let recorded = record::load(&places.state_dir)?;
    let nothing = args.wanted.vip.is_empty() && args.wanted.toa_from.is_empty();
    if recorded.is_none() && nothing && args.wanted.method.is_none() {
        bail!(
            "nothing is set up here: no record at {}; name what to check (--vip, --method)",
            record::path(&places.state_dir).display()
        );
    }
    let record = Record::merge(recorded, &args.wanted, default_interface(&netlink).await?)?;
    let mut items = Vec::new();

    let Some(link) = netlink.link(&record.interface).await? else {
        let remedy = "name the interface towards the director with --interface";
        return Ok(Report::new(vec![Item::fail(format!("{}: no such interface", record.interface), remedy)]));
    };
    if !link.up {
        let remedy = format!("ip link set {} up", record.interface);
        items.push(Item::fail(format!("{}: is down", record.interface), remedy));
    }
    vips(&netlink, &record, &mut items).await?;
    if record.needs_arp_sysctls() {
        sysctls(&record.interface, &mut items)?;
    }
    if record.methods.contains(&Method::Tun) {
        match record.tunnel {
            Tunnel::Bpf => {
                let decapsulator = Decapsulator::new(&places.bpffs_dir, &record.interface);
                items.extend(match decapsulator.contents() {
                    Ok(contents) => unpacking(&record, &link, contents.as_ref()),
                    Err(error) => {
                        vec![Item::fail(
                            format!("{}: decapsulator: {error:#}", record.interface),
                            "lb-agent real-server down, then up",
                        )]
                    }
                });
            }
            Tunnel::Kernel => devices(&netlink, &record, &mut items).await?,
            Tunnel::None => {}
        }
        items.extend(report::foreign_tunnel(record.tunnel));
        items.extend(report::sizes(&record, &record.interface, link.mtu));
    }
    if record.methods.contains(&Method::Nat) {
        let families: &[bool] = match (has_family(&record, false), has_family(&record, true)) {
            (true, true) => &[false, true],
            (false, true) => &[true],
            _ => &[false],
        };
        for &v6 in families {
            let route = netlink.default_route(v6).await?;
            items.push(report::default_route(record.directors.iter().copied(), v6, route.as_ref()));
        }
    }
    match &record.toa {
        Some(toa) => {
            let reader = ToaReader::new(&places.bpffs_dir);
            let cgroup = toa.place()?;
            items.extend(match reader.contents(&cgroup) {
                Ok(contents) => report::toa(&toa.from, &cgroup, contents.as_ref()),
                Err(error) => {
                    vec![Item::fail(format!("TOA: {error:#}"), "lb-agent real-server down, then up")]
                }
            });
        }
        None if record.methods.contains(&Method::Fullnat) => items
            .push(Item::note("fullnat: nothing to set up; requests come from the director's pool addresses")),
        None => {}
    }
    Ok(Report::new(items))
}

fn has_family(record: &Record, v6: bool) -> bool {
    record.vips.iter().any(|vip| vip.is_ipv6() == v6)
        || record.directors.iter().any(|director| director.addr().is_ipv6() == v6)
}

async fn vips(netlink: &Netlink, record: &Record, items: &mut Vec<Item>) -> Result<()> {
    if record.vips_on_lo().next().is_none() {
        return Ok(());
    }
    let Some(lo) = netlink.link("lo").await? else { bail!("this network namespace has no lo") };
    items.push(if lo.up { Item::ok("lo: up") } else { Item::fail("lo: is down", "ip link set lo up") });
    let addresses = netlink.addresses().await?;
    let mut names = BTreeMap::new();
    for address in addresses.iter().filter(|address| record.vips.contains(&address.address)) {
        if let Some(name) = netlink.name(address.interface).await? {
            names.insert(address.interface, name);
        }
    }
    for vip in record.vips_on_lo() {
        items.push(report::vip(vip, lo.index, &addresses, |index| {
            names.get(&index).cloned().unwrap_or_else(|| format!("interface {index}"))
        }));
    }
    Ok(())
}

fn sysctls(interface: &str, items: &mut Vec<Item>) -> Result<()> {
    for setting in &SETTINGS {
        let of_interface = sysctl::read(interface, setting.name)?;
        let of_all = sysctl::read("all", setting.name)?;
        items.push(report::sysctl(setting, interface, of_interface, of_all));
    }
    Ok(())
}

async fn devices(netlink: &Netlink, record: &Record, items: &mut Vec<Item>) -> Result<()> {
    let rp_filter = &SETTINGS[2];
    for (name, kind, remote) in tunnels(record) {
        match netlink.link(&name).await? {
            Some(link) if link.up => {
                items.push(Item::ok(format!("{name}: {} from {remote}", kind.name())));
                let (of_device, of_all) =
                    (sysctl::read(&name, rp_filter.name)?, sysctl::read("all", rp_filter.name)?);
                items.push(report::sysctl(rp_filter, &name, of_device, of_all));
            }
            Some(_) => items.push(Item::fail(format!("{name}: is down"), format!("ip link set {name} up"))),
            None => items.push(Item::fail(
                format!("{name}: no {} device from {remote}", kind.name()),
                "lb-agent real-server up",
            )),
        }
    }
    Ok(())
}

/// The decapsulator: on the interface, and for the right addresses.
fn unpacking(record: &Record, link: &Link, contents: Option<&Contents>) -> Vec<Item> {
    let interface = &record.interface;
    let again = "lb-agent real-server up";
    let Some(contents) = contents else {
        return vec![Item::fail(format!("{interface}: no decapsulator is pinned"), again)];
    };
    let mut items = vec![match link.xdp {
        Some((program, true)) if program == contents.program => Item::ok(format!(
            "{interface}: decapsulator attached as generic XDP (the driver refuses native; slower, nothing else)"
        )),
        Some((program, false)) if program == contents.program => {
            Item::ok(format!("{interface}: decapsulator attached as native XDP"))
        }
        Some((program, _)) => Item::fail(
            format!("{interface}: runs XDP program {program}, not the decapsulator ({})", contents.program),
            "take that program off, or let the kernel unpack: lb-agent real-server down, up --tunnel kernel",
        ),
        None => Item::fail(format!("{interface}: the decapsulator is pinned but not attached"), again),
    }];
    let missing = |text: String| Item::fail(text, again);
    items.extend(
        record
            .vips
            .iter()
            .filter(|vip| !contents.vips.contains(vip))
            .map(|vip| missing(format!("decapsulator: does not unpack for {vip}"))),
    );
    items.extend(
        record
            .directors
            .iter()
            .filter(|director| !contents.directors.contains(director))
            .map(|director| missing(format!("decapsulator: does not accept from {director}"))),
    );
    items.extend(
        record
            .gue_ports
            .iter()
            .filter(|port| !contents.gue_ports.contains(port))
            .map(|port| missing(format!("decapsulator: does not unpack GUE at port {port}"))),
    );
    let seen: Vec<String> = contents
        .outcomes
        .iter()
        .filter(|(outcome, count)| *count > 0 && *outcome != Outcome::NotTunnelled)
        .map(|(outcome, count)| format!("{} {count}", outcome.name()))
        .collect();
    items.push(Item::note(if seen.is_empty() {
        "decapsulator: no tunnelled packet has come yet".to_owned()
    } else {
        format!("decapsulator: {}", seen.join(", "))
    }));
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real_server::cli::Wanted;
    use crate::real_server::report::Standing;

    fn record() -> Record {
        let wanted = Wanted {
            vip: vec!["203.0.113.10".parse().unwrap()],
            interface: Some("eth0".into()),
            from: vec!["10.0.0.1/32".parse().unwrap()],
            gue_port: vec![6080],
            toa_from: Vec::new(),
            cgroup: None,
            tunnel: None,
            method: Some(Method::Tun),
        };
        Record::merge(None, &wanted, None).unwrap()
    }

    fn contents(record: &Record) -> Contents {
        Contents {
            program: 7,
            directors: record.directors.clone(),
            vips: record.vips.clone(),
            gue_ports: record.gue_ports.clone(),
            outcomes: vec![(Outcome::NotTunnelled, 9), (Outcome::Ip4InIp4, 5), (Outcome::NotFromDirector, 2)],
        }
    }

    fn link(xdp: Option<(u32, bool)>) -> Link {
        Link { index: 2, up: true, mtu: 1500, xdp }
    }

    #[test]
    fn a_decapsulator_in_its_place_is_ok_and_tells_what_it_saw() {
        let record = record();
        let items = unpacking(&record, &link(Some((7, false))), Some(&contents(&record)));
        assert!(Report::new(items.clone()).ok, "{items:?}");
        assert_eq!(items[1].text, "decapsulator: ip4_in_ip4 5, not_from_director 2");
    }

    #[test]
    fn a_decapsulator_that_is_absent_elsewhere_or_for_others_fails() {
        let record = record();
        let mut empty = contents(&record);
        empty.vips.clear();
        empty.directors.clear();
        empty.gue_ports.clear();
        for (xdp, contents, failures) in [
            (None, None, 1),
            (None, Some(contents(&record)), 1),
            (Some((8, false)), Some(contents(&record)), 1),
            (Some((7, true)), Some(empty), 3),
        ] {
            let items = unpacking(&record, &link(xdp), contents.as_ref());
            let failed = items.iter().filter(|item| item.standing == Standing::Fail).count();
            assert_eq!(failed, failures, "{items:?}");
        }
    }
}
