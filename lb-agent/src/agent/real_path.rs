//! Probes on the real path: keeps the prober's veth pair, and for each (VIP, real server) that is probed the address
//! in it to which the monitor connects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::destination as record;

use super::{Agent, Trouble};
use crate::dataplane::{Mode, Probed, ProberPair, RealPath};
use crate::health::Assignment;
use crate::health::monitor::Ways;
use crate::model::Forwarding;
use crate::model::RealPathNetworks;
use crate::model::health::Target;
use crate::net::HostAddress;
use crate::net::prober::ProberLinks;

/// What the agent keeps for them.
#[derive(Default)]
pub struct RealPaths {
    open: Option<Open>,
    /// What an earlier run may have left is gone.
    swept: bool,
    /// What the monitor was told.
    ways: Ways,
}

struct Open {
    path: RealPath,
    without_v6: Option<String>,
}

/// What tells the destinations on the real path apart.
type Key = (IpAddr, IpAddr, Forwarding);

impl Agent {
    /// What the monitor is to probe: checks on the real path once the way there is known. Until then their servers
    /// have no next hop, or no record in the tables, and get no traffic either.
    pub(super) fn probed(&self) -> Vec<Assignment> {
        let mut assignments = self.health.roster.assignments();
        assignments.retain(|assignment| self.is_probed(&assignment.target));
        assignments
    }

    /// Whether the way that a check goes is known.
    pub(super) fn is_probed(&self, target: &Target) -> bool {
        match target {
            Target::Direct { .. } => true,
            Target::Real { .. } => self.real_paths.ways.contains_key(target),
        }
    }

    /// Follows objects, tables and ways: to be called when a plan was run.
    pub(super) async fn follow_real_path(&mut self) {
        let targets: BTreeSet<Target> = self
            .health
            .roster
            .assignments()
            .into_iter()
            .map(|assignment| assignment.target)
            .filter(|target| matches!(target, Target::Real { .. }))
            .collect();
        let mut problems = Vec::new();
        let ways = if targets.is_empty() { self.close_real_path().await } else { self.ways(&targets).await };
        let ways = ways.unwrap_or_else(|error| {
            problems.push(format!("checks on the real path: {error:#}"));
            targets.iter().map(|target| (*target, Err(format!("no real path: {error:#}")))).collect()
        });
        self.trouble(Trouble::RealPath, problems);
        if ways != self.real_paths.ways {
            self.real_paths.ways = ways.clone();
            self.health.monitor.set_ways(ways);
            self.health.monitor.set(self.probed());
        }
    }

    /// Takes the pair away, whoever made it.
    pub(super) async fn close_real_path(&mut self) -> anyhow::Result<Ways> {
        let was_open = self.real_paths.open.take().is_some();
        if was_open || !self.real_paths.swept {
            self.net.remove_prober_links().await?;
            self.real_paths.swept = true;
        }
        Ok(Ways::new())
    }

    async fn ways(&mut self, targets: &BTreeSet<Target>) -> anyhow::Result<Ways> {
        if self.real_paths.open.is_none() {
            let links = self.net.make_prober_links(&self.running.real_path).await?;
            let generic = self.dataplane.attached().iter().any(|attached| attached.mode == Mode::Generic);
            let path = self.dataplane.real_path(&pair(&links, &self.running.real_path), generic)?;
            self.real_paths.open = Some(Open { path, without_v6: links.without_v6 });
            self.real_paths.swept = true;
        }
        let destinations = self.destinations();
        let addresses = self.net.addresses().await?;
        let mut ways = Ways::new();
        let mut kept = BTreeSet::new();
        for target in targets {
            let Target::Real { vip, server, method, .. } = *target else { continue };
            let Some(&destination) = destinations.get(&(vip, server, method)) else { continue };
            let Some(source) = self.source(vip, server, &addresses) else { continue };
            let Some(open) = &mut self.real_paths.open else { continue };
            let way = match (&open.without_v6, source) {
                (_, Err(words)) => Err(format!("connect to {target}: {words}")),
                (Some(why), _) if vip.is_ipv6() => Err(format!("connect to {target}: {why}")),
                (_, Ok(source)) => {
                    kept.insert((vip, destination));
                    let ensured = open.path.ensure(&Probed { vip, destination, source });
                    ensured.map_err(|error| format!("connect to {target}: {error}"))
                }
            };
            ways.insert(*target, way);
        }
        if let Some(open) = &mut self.real_paths.open {
            open.path.retain(|vip, destination| kept.contains(&(vip, destination)));
        }
        Ok(ways)
    }

    /// The indices of destinations, by what a target names: those of the tables, which know them before the first
    /// plan of a restarted agent has said whose they are. Several services may have the same; any of them leads to the
    /// server.
    fn destinations(&self) -> BTreeMap<Key, u32> {
        let mut destinations = BTreeMap::new();
        for (vip, server, method, index) in self.applier.tables().at_vips() {
            let method = match method {
                record::Forwarding::Tun => Forwarding::Tun,
                _ => Forwarding::Dr,
            };
            destinations.entry((vip, server, method)).or_insert(index);
        }
        destinations
    }

    /// The address of this director that the server answers to. None as long as no way to the server is known.
    fn source(
        &self,
        vip: IpAddr,
        server: IpAddr,
        addresses: &[HostAddress],
    ) -> Option<Result<IpAddr, String>> {
        let way = self.director.way(server)?;
        if let Some(source) = way.source.filter(|source| source.is_ipv4() == vip.is_ipv4()) {
            return Some(Ok(source));
        }
        // A tunnel of the other family: any address of the VIP's by which answers come in where the program is.
        let outputs = self.dataplane.attached();
        let usable = |found: &&HostAddress| {
            let address = found.address.addr();
            let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let has_program = outputs.iter().any(|output| output.ifindex == found.ifindex);
            address.is_ipv4() == vip.is_ipv4() && has_program && !link_local && !found.ours
        };
        let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
        let none = || format!("this director has no {family} address on an interface with the program");
        Some(addresses.iter().find(usable).map(|found| found.address.addr()).ok_or_else(none))
    }
}

fn pair(links: &ProberLinks, networks: &RealPathNetworks) -> ProberPair {
    ProberPair {
        near: links.near,
        far: links.far,
        near_mac: links.near_mac,
        far_mac: links.far_mac,
        prober_v4: networks.prober_v4(),
        prober_v6: networks.prober_v6(),
        targets_v4: networks.targets_v4(),
        targets_v6: networks.targets_v6(),
    }
}
