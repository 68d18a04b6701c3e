//! Sets a real server up and undoes it. The record is written before the first change, so that whatever was
//! done when a step fails, `down` finds it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};

use crate::dataplane::decapsulator::{Attached, Decapsulator, Unpacked};
use crate::dataplane::toa_reader::ToaReader;
use crate::places::Places;

use super::cli::{DownArgs, Method, Tunnel, UpArgs};
use super::netlink::{HostAddress, Link, Netlink, TunnelKind, host_prefix};
use super::record::{self, Record, Toa};
use super::report;
use super::sysctl::{self, Change, SETTINGS};

/// Sets up what is missing. When the first `up` fails, what it had done is undone again; a later one leaves what
/// worked, and `up` or `down` goes on from there.
///
/// # Errors
/// The step that failed.
pub async fn up(args: &UpArgs, places: &Places) -> Result<()> {
    let netlink = Netlink::open()?;
    let before = record::load(&places.state_dir)?;
    let first = before.is_none();
    let mut record = Record::merge(before, &args.wanted, default_interface(&netlink).await?)?;
    if netlink.link(&record.interface).await?.is_none() {
        bail!("{}: no such interface; name the one towards the director with --interface", record.interface);
    }

    let changes = if record.needs_arp_sysctls() {
        sysctl::changes(&["all", &record.interface], sysctl::read)?
    } else {
        Vec::new()
    };
    sysctl::remember(&mut record.sysctls, &changes);
    record.devices.extend(tunnels(&record).into_iter().map(|(name, ..)| name));
    record::save(&places.state_dir, &record)?;

    let result = perform(&netlink, places, &record, &changes).await;
    if result.is_err() && first {
        println!("a step failed; undoing those before it:");
        remove_vips(&netlink, &record.vips).await?;
        undo(&netlink, places, &record).await?;
    }
    result
}

async fn perform(netlink: &Netlink, places: &Places, record: &Record, changes: &[Change]) -> Result<()> {
    // ARP first: not for a moment may this host answer for a VIP.
    for change in changes {
        sysctl::write(&change.interface, &change.name, change.after)?;
        println!("{}: {} -> {}", change.key(), change.before, change.after);
    }
    match record.tunnel {
        Tunnel::Bpf => attach(&Decapsulator::new(&places.bpffs_dir, &record.interface), record)?,
        Tunnel::Kernel => make_devices(netlink, record).await?,
        Tunnel::None => {}
    }
    if let Some(toa) = &record.toa {
        read_toa(&ToaReader::new(&places.bpffs_dir), toa)?;
    }
    add_vips(netlink, record).await?;
    if record.methods.contains(&Method::Nat) {
        for v6 in [false, true] {
            if record.directors.iter().any(|director| director.addr().is_ipv6() == v6) {
                let route = netlink.default_route(v6).await?;
                let item = report::default_route(record.directors.iter().copied(), v6, route.as_ref());
                if let Some(remedy) = item.remedy {
                    bail!("{}: {remedy}", item.text);
                }
            }
        }
    }
    Ok(())
}

/// Undoes what the record says; with VIPs named, only these while others remain.
///
/// # Errors
/// Nothing recorded, or the step that failed; the record stays until everything is undone.
pub async fn down(args: &DownArgs, places: &Places) -> Result<()> {
    let netlink = Netlink::open()?;
    let Some(mut record) = record::load(&places.state_dir)? else {
        if args.vip.is_empty() {
            println!("nothing to undo: no record at {}", record::path(&places.state_dir).display());
            return Ok(());
        }
        // The record is lost: the mark on the address still tells ours from others'.
        return remove_vips(&netlink, &args.vip.iter().copied().collect()).await;
    };
    if let Some(stranger) = args.vip.iter().find(|vip| !record.vips.contains(vip)) {
        bail!("{stranger} was not set up here");
    }
    let remaining: BTreeSet<IpAddr> =
        record.vips.iter().copied().filter(|vip| !args.vip.is_empty() && !args.vip.contains(vip)).collect();
    let leaving: BTreeSet<IpAddr> = record.vips.difference(&remaining).copied().collect();
    remove_vips(&netlink, &leaving).await?;

    if remaining.is_empty() {
        return undo(&netlink, places, &record).await;
    }
    record.vips = remaining;
    match record.tunnel {
        Tunnel::Bpf => attach(&Decapsulator::new(&places.bpffs_dir, &record.interface), &record)?,
        Tunnel::Kernel => make_devices(&netlink, &record).await?,
        Tunnel::None => {}
    }
    record::save(&places.state_dir, &record)
}

/// Everything but the addresses, the last change first, and then the record.
async fn undo(netlink: &Netlink, places: &Places, record: &Record) -> Result<()> {
    if Decapsulator::new(&places.bpffs_dir, &record.interface).detach()? {
        println!("{}: decapsulator removed", record.interface);
    }
    if record.toa.is_some() && ToaReader::new(&places.bpffs_dir).detach()? {
        println!("TOA: read no longer");
    }
    for name in &record.devices {
        if let Some(link) = netlink.link(name).await? {
            netlink.delete_link(link.index).await.with_context(|| name.clone())?;
            println!("{name}: removed");
        }
    }
    for change in record.sysctls.iter().rev() {
        restore(change)?;
    }
    record::forget(&places.state_dir)
}

/// The interface of the default route, IPv4's first.
pub async fn default_interface(netlink: &Netlink) -> Result<Option<String>> {
    for v6 in [false, true] {
        if let Some(route) = netlink.default_route(v6).await?
            && let Some(&index) = route.interfaces.first()
        {
            return netlink.name(index).await;
        }
    }
    Ok(None)
}

/// The kernel devices that the record asks for: one per director and kind of packet. Names hold what tells
/// them apart and fit the kernel's 15 bytes.
pub fn tunnels(record: &Record) -> Vec<(String, TunnelKind, IpAddr)> {
    let mut tunnels = Vec::new();
    if record.tunnel != Tunnel::Kernel {
        return tunnels;
    }
    for director in &record.directors {
        let remote = director.addr();
        let kinds: &[(bool, TunnelKind)] = match remote {
            IpAddr::V4(_) => &[
                (record.vips.iter().any(IpAddr::is_ipv4), TunnelKind::Ipip),
                (record.vips.iter().any(IpAddr::is_ipv6), TunnelKind::Sit),
            ],
            IpAddr::V6(_) => &[(true, TunnelKind::Ip6Tnl)],
        };
        for &(_, kind) in kinds.iter().filter(|(wanted, _)| *wanted) {
            tunnels.push((device_name(kind, remote), kind, remote));
        }
    }
    tunnels
}

/// `ipip0a000001`: the kind and the remote's 32 bits; of an IPv6 remote a 32-bit digest (FNV-1a).
fn device_name(kind: TunnelKind, remote: IpAddr) -> String {
    let bits = match remote {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address
            .octets()
            .iter()
            .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)),
    };
    format!("{}{bits:08x}", kind.name())
}

fn attach(decapsulator: &Decapsulator, record: &Record) -> Result<()> {
    let before = decapsulator.contents().ok().flatten();
    let interface = &record.interface;
    let Record { vips, directors, gue_ports, .. } = record;
    let attached = decapsulator.attach(Unpacked { vips, directors, gue_ports })?;
    match attached {
        Attached::Native => println!("{interface}: decapsulator attached as native XDP"),
        Attached::Generic => {
            println!("{interface}: decapsulator attached as generic XDP: the driver refuses native");
        }
        Attached::Replaced => {}
    }
    let (vips, directors, ports) =
        before.map(|before| (before.vips, before.directors, before.gue_ports)).unwrap_or_default();
    for port in record.gue_ports.difference(&ports) {
        println!("decapsulator: unpacks GUE at port {port}");
    }
    for vip in record.vips.difference(&vips) {
        println!("decapsulator: unpacks for {vip}");
    }
    for vip in vips.difference(&record.vips) {
        println!("decapsulator: unpacks no longer for {vip}");
    }
    for director in record.directors.difference(&directors) {
        println!("decapsulator: accepts from {director}");
    }
    for director in directors.difference(&record.directors) {
        println!("decapsulator: accepts no longer from {director}");
    }
    Ok(())
}

fn read_toa(reader: &ToaReader, toa: &Toa) -> Result<()> {
    let cgroup = toa.place()?;
    let before = reader.contents(&cgroup).ok().flatten().map(|before| before.sources).unwrap_or_default();
    if reader.attach(&cgroup, &toa.from)? {
        println!("TOA: read for programs in {}", cgroup.display());
    }
    for source in toa.from.difference(&before) {
        println!("TOA: believed from {source}");
    }
    for source in before.difference(&toa.from) {
        println!("TOA: believed no longer from {source}");
    }
    Ok(())
}

async fn make_devices(netlink: &Netlink, record: &Record) -> Result<()> {
    let wanted = tunnels(record);
    for (name, kind, remote) in &wanted {
        match netlink.link(name).await? {
            None => {
                netlink.add_tunnel(name, *kind, *remote).await?;
                println!("{name}: added, {} from {remote}", kind.name());
            }
            Some(Link { up: false, index, .. }) => {
                netlink.set_up(index).await?;
                println!("{name}: set up");
            }
            Some(_) => {}
        }
        // The device goes away with `down`, and its settings with it.
        let rp_filter = &SETTINGS[2];
        let current = sysctl::read(name, rp_filter.name)?;
        if let Some(value) = rp_filter.rule.next(current) {
            sysctl::write(name, rp_filter.name, value)?;
            println!("{}: {current} -> {value}", sysctl::key(name, rp_filter.name));
        }
    }
    for name in record.devices.iter().filter(|name| !wanted.iter().any(|(wanted, ..)| wanted == *name)) {
        if let Some(link) = netlink.link(name).await? {
            netlink.delete_link(link.index).await.with_context(|| name.clone())?;
            println!("{name}: removed");
        }
    }
    Ok(())
}

async fn add_vips(netlink: &Netlink, record: &Record) -> Result<()> {
    if record.vips_on_lo().next().is_none() {
        return Ok(());
    }
    let lo = lo(netlink).await?;
    if !lo.up {
        netlink.set_up(lo.index).await?;
        println!("lo: set up");
    }
    let addresses = netlink.addresses().await?;
    for vip in record.vips_on_lo() {
        let prefix = host_prefix(vip);
        let there = |found: &HostAddress| {
            found.address == vip && found.interface == lo.index && found.prefix == prefix
        };
        if !addresses.iter().any(there) {
            netlink.add_vip(lo.index, vip).await?;
            println!("lo: added {vip}/{prefix}");
        }
    }
    Ok(())
}

async fn remove_vips(netlink: &Netlink, vips: &BTreeSet<IpAddr>) -> Result<()> {
    let lo = lo(netlink).await?;
    let addresses = netlink.addresses().await?;
    for vip in vips {
        if let Some(found) =
            addresses.iter().find(|found| found.address == *vip && found.interface == lo.index)
        {
            if found.ours {
                netlink.remove_vip(lo.index, *vip).await?;
                println!("lo: removed {vip}/{}", found.prefix);
            } else {
                println!("lo: left {vip}/{}: it was there before", found.prefix);
            }
        }
    }
    Ok(())
}

async fn lo(netlink: &Netlink) -> Result<Link> {
    netlink.link("lo").await?.context("this network namespace has no lo")
}

fn restore(change: &Change) -> Result<()> {
    let Ok(current) = sysctl::read(&change.interface, &change.name) else {
        println!("{}: its interface is gone", change.key());
        return Ok(());
    };
    match sysctl::restored(change, current) {
        Some(value) => {
            sysctl::write(&change.interface, &change.name, value)?;
            println!("{}: {current} -> {value}", change.key());
        }
        None if current != change.before => {
            println!("{}: left at {current}: someone has changed it since", change.key());
        }
        None => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real_server::cli::Wanted;

    #[test]
    fn a_kernel_tunnel_is_made_for_every_director_and_kind_of_packet() {
        let wanted = Wanted {
            vip: vec!["203.0.113.10".parse().unwrap(), "2001:db8::10".parse().unwrap()],
            interface: Some("eth0".into()),
            from: vec!["10.0.0.1/32".parse().unwrap(), "2001:db8:1::1/128".parse().unwrap()],
            gue_port: Vec::new(),
            toa_from: Vec::new(),
            cgroup: None,
            tunnel: Some(Tunnel::Kernel),
            method: None,
        };
        let tunnels = tunnels(&Record::merge(None, &wanted, None).unwrap());
        let kinds: Vec<_> = tunnels.iter().map(|(_, kind, _)| *kind).collect();
        assert_eq!(kinds, [TunnelKind::Ipip, TunnelKind::Sit, TunnelKind::Ip6Tnl]);
        assert_eq!(tunnels[0].0, "ipip0a000001");
        assert!(tunnels.iter().all(|(name, ..)| name.len() <= 15));
    }
}
