//! Runs the steps of a plan against the tables and the host, and says which one failed. Every step can be run
//! again: the tables compare before they write.

mod rules;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use lb_common::address::Address;
use lb_common::destination as record;
use lb_common::scratch;
use lb_common::service as service_record;

use crate::dataplane::tables::{
    ClientVia, DestinationKey, DestinationSpec, NextHopKey, PathChange, Role as TableRole, ServiceSpec,
    Tunnel,
};
use crate::dataplane::{Ports as TablePorts, Tables, self_probe};
use crate::model::{Forwarding, Name, NextHop, OnUnknownFlow, Ports, Protocol};
use crate::net::{AddOutcome, Net};
use crate::plan::{Binding, Destination, Done, Hop, HopKey, Layout, Pool, Role, Service, Slots, Step, Via};

/// The edges a plan is run against, and what was done so far.
pub struct Applier {
    tables: Tables,
    net: Net,
    /// Jiffies in a second.
    hz: u32,
    done: Done,
    /// First index and number of addresses of each pool, by family: a flow is leased an address of its own.
    pools: BTreeMap<(Name, bool), (u16, u8)>,
    /// Announcements to repeat: one frame may be lost.
    announce: Vec<(Instant, String, IpAddr)>,
}

/// A step that failed; those before it were done.
#[derive(Debug)]
pub struct Failed {
    /// The step as a line.
    pub step: String,
    pub error: anyhow::Error,
}

impl Applier {
    pub fn new(tables: Tables, net: Net, hz: u32) -> Applier {
        Applier { tables, net, hz, done: Done::default(), pools: BTreeMap::new(), announce: Vec::new() }
    }

    /// What was done so far.
    pub fn done(&self) -> &Layout {
        &self.done
    }

    /// The tables, for readers.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Runs the steps that lead to `wanted`.
    ///
    /// # Errors
    /// The first step that failed. Those after it were not tried.
    pub async fn run(&mut self, steps: &[Step], wanted: &Layout) -> Result<(), Failed> {
        for step in steps {
            if let Err(error) = self.step(step).await {
                return Err(Failed { step: step.to_string(), error });
            }
            self.done.done(step);
        }
        // Equal by now; what is shared with the wanted layout costs nothing to compare next time.
        self.done = wanted.clone().into();
        Ok(())
    }

    /// Removes what an earlier run left in the tables and on interfaces and nobody wants any more. To be called
    /// once, after the first plan was run to its end.
    ///
    /// # Errors
    /// A table that cannot be written, an address that cannot be removed.
    pub async fn finish_recovery(&mut self) -> Result<()> {
        // Flows to servers that were removed before the restart still have replies.
        for address in self.tables.real_servers(record::Forwarding::Nat) {
            self.tables.bind_address(DRAINING, TableRole::NatSource, address)?;
        }
        self.tables.finish_recovery()?;
        for own in self.net.list_own_addresses().await? {
            let place = (own.interface, own.address.addr());
            // Those of a VRRP instance are its master's: a restart is no change of role.
            let of_vrrp = self.done.vrrp.values().any(|followers| followers.addresses.contains(&place.1));
            if !of_vrrp && !self.done.placed.contains(&place) {
                tracing::info!("{} on {} is nobody's any more: removed", place.1, place.0);
                self.net.remove_address(&place.0, place.1).await?;
            }
        }
        Ok(())
    }

    /// Frees what nothing can name any more and repeats announcements. To be called about once a second.
    ///
    /// # Errors
    /// A table that cannot be written.
    pub async fn maintain(&mut self) -> Result<()> {
        self.tables.maintain()?;
        for change in self.tables.follow_paths(Instant::now())? {
            let PathChange { address, mtu } = change;
            match mtu {
                Some(mtu) => {
                    tracing::info!("real server {address}: its tunnel's path lets {mtu} bytes through")
                }
                None => tracing::info!("real server {address}: its tunnel's whole MTU is tried again"),
            }
        }
        let draining = self.tables.addresses_of(DRAINING);
        if !draining.is_empty() {
            let in_use = self.tables.real_servers(record::Forwarding::Nat);
            for (role, address) in draining.into_iter().filter(|(_, address)| !in_use.contains(address)) {
                self.tables.unbind_address(DRAINING, role, address)?;
            }
        }
        let now = Instant::now();
        let (due, later) = self.announce.drain(..).partition(|(when, _, _)| *when <= now);
        self.announce = later;
        let due: Vec<(Instant, String, IpAddr)> = due;
        for (_, interface, address) in due {
            if self.done.placed.contains(&(interface.clone(), address)) {
                self.announce(&interface, address).await;
            }
        }
        Ok(())
    }

    /// Puts into the tables what [`Dataplane::prove_forwarding`] needs.
    ///
    /// # Errors
    /// A table that has no room.
    ///
    /// [`Dataplane::prove_forwarding`]: crate::dataplane::Dataplane::prove_forwarding
    pub fn install_self_probe(&mut self) -> Result<()> {
        Ok(self_probe::install(&mut self.tables)?)
    }

    /// Makes these addresses follow a VRRP instance in the tables, as the plan's step does, and returns its number
    /// there. At start the driver needs it before the first plan can be made.
    ///
    /// # Errors
    /// No room for another instance.
    pub fn set_vrrp(&mut self, name: &Name, addresses: &[IpAddr], accept: bool) -> Result<u8> {
        Ok(self.tables.set_vrrp(name, addresses, accept)?)
    }

    /// Takes every address away that the agent has put on an interface.
    ///
    /// # Errors
    /// The first refusal of the kernel; the others were tried as well.
    pub async fn withdraw_all(&mut self) -> Result<()> {
        let mut result = Ok(());
        for own in self.net.list_own_addresses().await? {
            if let Err(error) = self.net.remove_address(&own.interface, own.address.addr()).await {
                result = result.and(Err(error));
            }
        }
        self.done.forget_placed();
        result
    }

    /// An interface went, and its addresses with it: the next plan puts all of them where they belong, which does nothing
    /// to those that are there.
    pub fn place_again(&mut self) {
        self.done.forget_placed();
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::SetVrrp { name, followers } => {
                let addresses: Vec<IpAddr> = followers.addresses.iter().copied().collect();
                self.tables.set_vrrp(name, &addresses, followers.accept)?;
                Ok(())
            }
            Step::RemoveVrrp { name } => Ok(self.tables.remove_vrrp(name)?),
            Step::SetPool { name, pool } => self.set_pool(name, pool),
            Step::RemovePool { name } => self.remove_pool(name),
            Step::SetHop { key, hop } => {
                self.tables.set_next_hop(&hop_key(key), &hop_record(key, hop))?;
                Ok(())
            }
            Step::RemoveHop { key } => {
                self.tables.remove_next_hop(&hop_key(key));
                Ok(())
            }
            Step::SetPeers { peers } => Ok(self.tables.set_peers(peers)?),
            Step::SetClientRoutes { routes } => self.set_client_routes(routes),
            Step::SetService { name, service, ports } => self.set_service(name, service, ports),
            Step::RemoveService { name } => {
                self.forget_sources(name)?;
                self.tables.remove_service(name)?;
                Ok(())
            }
            Step::SetDestination { service, binding, destination } => {
                self.set_destination(service, binding, destination)
            }
            Step::RemoveDestination { service, binding } => {
                self.tables.remove_destination(&destination_key(service, binding))?;
                Ok(())
            }
            Step::SetSlots { service, slots } => self.set_slots(service, slots),
            Step::SetServers { service, servers } => self.set_servers(service, servers),
            Step::SetServerIds { service, ids } => self.set_server_ids(service, ids),
            Step::SetPorts { service, ports } => Ok(self.tables.bind_ports(service, &table_ports(ports))?),
            Step::BindAddress { service, role, address } => {
                Ok(self.tables.bind_address(service, table_role(*role), *address)?)
            }
            Step::UnbindAddress { service, role, address } => {
                if *role == Role::NatSource {
                    // Established flows go on, and their replies must be known as such: until the last is gone.
                    self.tables.bind_address(DRAINING, TableRole::NatSource, *address)?;
                }
                Ok(self.tables.unbind_address(service, table_role(*role), *address)?)
            }
            Step::Place { interface, address } => self.place(interface, *address).await,
            Step::Withdraw { interface, address } => {
                // An interface that is gone took its addresses along.
                if self.net.links().await?.iter().any(|link| link.name == *interface) {
                    self.net.remove_address(interface, *address).await?;
                }
                Ok(())
            }
        }
    }

    fn set_pool(&mut self, name: &Name, pool: &Pool) -> Result<()> {
        let share = (u32::from(pool.share.index), u32::from(pool.share.of));
        let owner = pool_owner(name);
        for v6 in [false, true] {
            let addresses: Vec<_> = pool.addresses.iter().copied().filter(|a| a.is_ipv6() == v6).collect();
            if addresses.is_empty() {
                if self.pools.remove(&(name.clone(), v6)).is_some() {
                    self.tables.remove_pool(&table_pool(name, v6))?;
                }
                continue;
            }
            let table_pool = table_pool(name, v6);
            let range = self.tables.set_pool(&table_pool, &addresses, share)?;
            self.pools.insert((name.clone(), v6), range);
            for address in addresses {
                let index =
                    self.tables.pool_index(&table_pool, address).context("a pool lacks its own address")?;
                self.tables.bind_address(&owner, TableRole::Pool(index), address)?;
            }
        }
        for (role, address) in self.tables.addresses_of(&owner) {
            if !pool.addresses.contains(&address) {
                self.tables.unbind_address(&owner, role, address)?;
            }
        }
        Ok(())
    }

    fn remove_pool(&mut self, name: &Name) -> Result<()> {
        let owner = pool_owner(name);
        for (role, address) in self.tables.addresses_of(&owner) {
            self.tables.unbind_address(&owner, role, address)?;
        }
        for v6 in [false, true] {
            if self.pools.remove(&(name.clone(), v6)).is_some() {
                self.tables.remove_pool(&table_pool(name, v6))?;
            }
        }
        Ok(())
    }

    fn set_client_routes(&mut self, routes: &BTreeMap<IpNet, Via>) -> Result<()> {
        let mut by_index = Vec::with_capacity(routes.len());
        for (prefix, via) in routes {
            let via = match via {
                Via::OnLink => ClientVia::OnLink,
                Via::Hop(key) => ClientVia::NextHop(self.hop_index(key)?),
            };
            by_index.push((*prefix, via));
        }
        Ok(self.tables.set_client_routes(&by_index)?)
    }

    fn set_service(&mut self, name: &Name, service: &Service, ports: &Ports) -> Result<()> {
        let pool = match &service.pool {
            Some((pool, _)) => {
                let range = self.pools.get(&(pool.clone(), service.vip.is_ipv6()));
                Some(*range.with_context(|| format!("pool {pool} is not in the tables"))?)
            }
            None => None,
        };
        let timeouts = service.timeouts.map(|timeout| self.ticks(timeout));
        let spec = |rules| ServiceSpec {
            name: name.to_string(),
            vip: service.vip,
            protocol: protocol_number(service.protocol),
            ports: table_ports(ports),
            pick: rules::pick(service.lookup),
            on_unknown_flow: match service.on_unknown_flow {
                OnUnknownFlow::Adopt => service_record::OnUnknownFlow::Adopt,
                OnUnknownFlow::Reset => service_record::OnUnknownFlow::Reset,
                OnUnknownFlow::Pass => service_record::OnUnknownFlow::Pass,
                OnUnknownFlow::Drop => service_record::OnUnknownFlow::Drop,
            },
            mss: service.mss,
            timeouts,
            pool,
            rules,
        };
        self.set_service_with_rules(name, service, spec)
    }

    fn set_destination(
        &mut self,
        service: &Name,
        binding: &Binding,
        destination: &Destination,
    ) -> Result<()> {
        let next_hop = match &destination.hop {
            Some(key) => self.hop_index(key)?,
            None => 0,
        };
        let spec = DestinationSpec {
            next_hop,
            mtu: destination.mtu,
            timeout: self.ticks(destination.timeout),
            vip_port: destination.vip_port,
            local: destination.local,
            tunnel: Tunnel { flags: destination.tunnel.flags(), port: destination.tunnel.port },
            standing: rules::standing(destination),
        };
        self.tables.ensure_destination(&destination_key(service, binding), &spec)?;
        Ok(())
    }

    fn set_slots(&mut self, service: &Name, slots: &Slots) -> Result<()> {
        let index = |binding: &Binding| self.tables.destination(&destination_key(service, binding));
        let indices: Vec<Option<u32>> = slots.servers.iter().map(index).collect();
        let mut named = vec![false; indices.len()];
        for slot in slots.slots.iter() {
            // A slot without a server has an index beyond them all.
            if let Some(named) = named.get_mut(*slot as usize) {
                *named = true;
            }
        }
        let mut missing = slots.servers.iter().zip(&indices).zip(named);
        if let Some(((binding, _), _)) = missing.find(|((_, index), named)| *named && index.is_none()) {
            bail!("real server {binding} is not in the tables");
        }
        let words: Vec<u32> = indices.iter().map(|index| index.map_or(0, |index| index + 1)).collect();
        let slot = |at: u32| words.get(slots.slots[at as usize] as usize).copied().unwrap_or(0);
        Ok(self.tables.set_slots_by(service, slots.slots.len() as u32, slot)?)
    }

    async fn place(&mut self, interface: &str, address: IpAddr) -> Result<()> {
        match self.net.add_address(interface, IpNet::from(address)).await? {
            AddOutcome::Added => {
                self.announce(interface, address).await;
                self.announce.push((Instant::now() + REPEAT, interface.to_owned(), address));
            }
            AddOutcome::AlreadyThere { ours: true } => {}
            AddOutcome::AlreadyThere { ours: false } => {
                tracing::warn!(
                    "{address} is on {interface} already, put there by someone else: it stays theirs"
                );
            }
        }
        Ok(())
    }

    /// An announcement that cannot be sent (the interface is down) costs its receivers time, no more.
    async fn announce(&self, interface: &str, address: IpAddr) {
        if let Err(error) = self.net.announce(interface, address).await {
            tracing::warn!("{error:#}");
        }
    }

    fn hop_index(&self, key: &HopKey) -> Result<u32> {
        self.tables.next_hop(&hop_key(key)).with_context(|| format!("next hop {key} is not in the tables"))
    }

    pub(crate) fn ticks(&self, timeout: Duration) -> u16 {
        let ticks = scratch::ticks(timeout.as_millis() as u64, self.hz);
        u16::try_from(ticks).unwrap_or(u16::MAX).min(lb_common::connection::MAX_TIMEOUT_TICKS)
    }
}

/// A way as it is found in the tables.
pub fn way_of_record(key: &NextHopKey, hop: &record::NextHop, v6: bool) -> NextHop {
    let source_v4 = std::net::Ipv4Addr::from(hop.source_v4.to_ne_bytes());
    let source_v6 = hop.source_v6.to_ip(true);
    let source = if v6 { source_v6 } else { source_v4.into() };
    NextHop {
        ifindex: key.ifindex,
        destination_mac: record::NextHop::mac(hop.destination),
        source_mac: record::NextHop::mac(hop.source),
        vlans: key.vlans,
        mtu: hop.mtu,
        source: (!source.is_unspecified()).then_some(source),
        neighbour: key.neighbour,
    }
}

/// What a binding is called in the tables.
pub fn destination_key(service: &str, binding: &Binding) -> DestinationKey {
    let forwarding = match binding.forwarding {
        Forwarding::Dr => record::Forwarding::Dr,
        Forwarding::Tun => record::Forwarding::Tun,
        Forwarding::Nat => record::Forwarding::Nat,
        Forwarding::FullNat => record::Forwarding::FullNat,
    };
    DestinationKey::new(service, binding.address, binding.port, forwarding)
}

fn hop_key(key: &HopKey) -> NextHopKey {
    NextHopKey {
        neighbour: key.neighbour,
        ifindex: key.ifindex,
        vlans: key.vlans,
        for_clients: key.for_clients,
    }
}

fn hop_record(key: &HopKey, hop: &Hop) -> record::NextHop {
    record::NextHop {
        destination: record::NextHop::pack(hop.destination_mac, key.vlans[0]),
        source: record::NextHop::pack(hop.source_mac, key.vlans[1]),
        ifindex: key.ifindex,
        mtu: hop.mtu,
        source_v4: hop.source_v4.map_or(0, |source| u32::from_ne_bytes(source.octets())),
        source_v6: hop.source_v6.map_or(Address::default(), |source| Address::from_v6(source.octets())),
        ..record::NextHop::default()
    }
}

fn table_ports(ports: &Ports) -> Vec<TablePorts> {
    match ports {
        Ports::Any => vec![TablePorts::Any],
        Ports::List(ranges) => ranges
            .iter()
            .map(|range| match range.single() {
                Some(port) => TablePorts::One(port),
                None => TablePorts::Range(range.first, range.last),
            })
            .collect(),
    }
}

fn table_role(role: Role) -> TableRole {
    match role {
        Role::Vip => TableRole::Vip,
        Role::NatSource => TableRole::NatSource,
        Role::Probed => TableRole::Probed,
        Role::Peered => TableRole::Peered,
    }
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
        Protocol::Sctp => libc::IPPROTO_SCTP as u8,
    }
}

/// The name of one family of a pool in the tables.
fn table_pool(name: &Name, v6: bool) -> String {
    format!("{name}/{}", if v6 { "v6" } else { "v4" })
}

/// A pool and a service may share a name.
fn pool_owner(name: &Name) -> String {
    format!("pool/{name}")
}

/// Owner of the addresses of NAT real servers that were removed and still have flows.
const DRAINING: &str = "(draining)";
/// After an address was put on an interface, its announcement is repeated once.
const REPEAT: Duration = Duration::from_secs(1);
