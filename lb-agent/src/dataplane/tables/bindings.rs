//! Which ports of a VIP lead to which service: exact entries, and one list of ranges for each (VIP, protocol).

use super::{super::Error, Tables};
use crate::dataplane::{
    indices::Indices,
    ports::{self, Ports},
};
use lb_common::{
    address::Address,
    service::{PortRange, ServiceKey},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

#[derive(Debug)]
pub struct Bindings {
    pub exact: BTreeMap<(IpAddr, u8, u16), u32>,
    /// (index of the list, ranges) by VIP and protocol.
    pub ranges: BTreeMap<(IpAddr, u8), (u32, Vec<PortRange>)>,
    pub lists: Indices,
}

impl Bindings {
    pub fn new(lists: u32) -> Self {
        Self { exact: BTreeMap::new(), ranges: BTreeMap::new(), lists: Tables::indices(lists) }
    }
}

/// The key of the kernel's table. `port` in host order; 0 asks for the ranges.
pub fn key(vip: IpAddr, protocol: u8, port: u16) -> ServiceKey {
    let family = if vip.is_ipv6() { 6 } else { 4 };
    ServiceKey { address: Address::from(vip), port: port.to_be(), protocol, family }
}

/// The inverse of [`key`].
pub fn of_key(key: &ServiceKey) -> (IpAddr, u8, u16) {
    (key.address.to_ip(key.family == 6), key.protocol, u16::from_be(key.port))
}

impl Tables {
    /// Makes these ports of its VIP lead to the service, and no others. A port that another service has changes
    /// hands in one write. New ports come before old ones go.
    pub fn bind_ports(&mut self, service: &str, ports: &[Ports]) -> Result<(), Error> {
        let index = self.service_of(service)?;
        self.bind_ports_of(index, ports)
    }

    /// Takes all its ports from a service: no new flow gets there.
    pub fn unbind(&mut self, service: &str) -> Result<(), Error> {
        self.bind_ports(service, &[])
    }

    pub(super) fn bind_ports_of(&mut self, index: u32, wanted: &[Ports]) -> Result<(), Error> {
        let state = &self.services.by_index[&index];
        let (Some(vip), protocol) = (state.vip, state.protocol) else { return Ok(()) };
        let wanted: BTreeSet<Ports> = wanted.iter().copied().collect();
        for port in &wanted {
            if let Ports::One(port) = *port {
                if port == 0 {
                    return Err(Error::Refused("port 0 cannot be bound".into()));
                }
                self.bind_one(index, vip, protocol, port)?;
            }
        }
        self.bind_ranges(index, vip, protocol, &wanted)?;
        let had =
            self.services.by_index.get_mut(&index).map(|state| std::mem::replace(&mut state.ports, wanted));
        let wanted = &self.services.by_index[&index].ports;
        for port in had.unwrap_or_default().difference(&wanted.clone()) {
            if let Ports::One(port) = *port
                && self.bindings.exact.get(&(vip, protocol, port)) == Some(&index)
            {
                self.stores.service_index.remove(&key(vip, protocol, port))?;
                self.bindings.exact.remove(&(vip, protocol, port));
                self.writes += 1;
            }
        }
        Ok(())
    }

    fn bind_one(&mut self, index: u32, vip: IpAddr, protocol: u8, port: u16) -> Result<(), Error> {
        let before = self.bindings.exact.get(&(vip, protocol, port)).copied();
        if before == Some(index) {
            return Ok(());
        }
        self.stores.service_index.insert(key(vip, protocol, port), index)?;
        self.writes += 1;
        self.bindings.exact.insert((vip, protocol, port), index);
        if let Some(other) = before.and_then(|other| self.services.by_index.get_mut(&other)) {
            other.ports.remove(&Ports::One(port));
        }
        Ok(())
    }

    fn bind_ranges(
        &mut self,
        index: u32,
        vip: IpAddr,
        protocol: u8,
        wanted: &BTreeSet<Ports>,
    ) -> Result<(), Error> {
        let (old_index, old) = match self.bindings.ranges.get(&(vip, protocol)) {
            Some((list, ranges)) => (Some(*list), ranges.clone()),
            None => (None, Vec::new()),
        };
        let own: Vec<PortRange> = wanted
            .iter()
            .filter_map(|ports| ports.as_range())
            .map(|(first, last)| PortRange { first, last, service: index })
            .collect();
        let taken = |r: &PortRange| own.iter().any(|o| (o.first, o.last) == (r.first, r.last));
        let mut list: Vec<PortRange> =
            old.iter().filter(|r| r.service != index && !taken(r)).copied().collect();
        for other in old.iter().filter(|r| r.service != index && taken(r)) {
            let range = if (other.first, other.last) == (0, u16::MAX) {
                Ports::Any
            } else {
                Ports::Range(other.first, other.last)
            };
            if let Some(state) = self.services.by_index.get_mut(&other.service) {
                state.ports.remove(&range);
            }
        }
        list.extend(&own);
        let record = ports::record(&list).map_err(Error::Refused)?;
        let list = ports::list(&record);
        if list == old {
            return Ok(());
        }
        if list.is_empty() {
            self.stores.service_index.remove(&key(vip, protocol, 0))?;
            self.writes += 1;
            self.bindings.ranges.remove(&(vip, protocol));
        } else {
            // A list of its own, then one word of the hash: a reader sees the old ranges or the new.
            let at = self.allocate_list()?;
            self.stores.port_ranges.insert(at, record)?;
            self.stores.service_index.insert(key(vip, protocol, 0), at)?;
            self.writes += 2;
            self.bindings.ranges.insert((vip, protocol), (at, list));
        }
        if let Some(old) = old_index {
            self.bindings.lists.retire(old, Instant::now());
        }
        Ok(())
    }

    fn allocate_list(&mut self) -> Result<u32, Error> {
        let mut index = self.bindings.lists.allocate();
        if index.is_none() {
            std::thread::sleep(self.grace);
            self.release_bindings(Instant::now());
            index = self.bindings.lists.allocate();
        }
        let limit = self.stores.port_range_lists;
        index.ok_or(Error::Full { what: "list of port ranges", limit, hint: super::MORE_SERVICES })
    }

    pub(super) fn release_bindings(&mut self, now: Instant) {
        let grace = self.grace;
        self.bindings.lists.release(|_, since| now >= since + grace);
    }
}
