//! Finding again, from the records alone, what the tables hold.

use super::{
    super::{Error, Views, ports},
    Board, GRACE, NextHopKey, Stores, Tables, addresses, bindings, destinations, hops, paths, pools, rules,
    servers, services, vrrp,
};
use crate::dataplane::{ports::Ports, ranges::Ranges};
use lb_common::{
    destination::{Destination, Forwarding, NextHop, flags},
    service::{SERVICE_VALID, SLOTS_PER_LINE, Service},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

impl Tables {
    /// The tables as they are, with nothing claimed yet. Empty tables are the simplest case.
    pub fn recover(views: Arc<Views>, board: Arc<Board>, stores: Stores) -> Result<Self, Error> {
        let mut this = Self {
            board,
            writes: 0,
            grace: GRACE,
            quarantine: true,
            services: services::Services::new(views.services.len()),
            destinations: destinations::Destinations::new(views.destinations.len()),
            hops: hops::Hops::new(views.next_hops.len()),
            slots: Ranges::new(views.slots.len() * SLOTS_PER_LINE),
            servers: servers::Servers::new(views.servers.len()),
            access: rules::AccessLists::default(),
            quic: BTreeMap::new(),
            paths: paths::Paths::default(),
            old_slots: Vec::new(),
            bindings: bindings::Bindings::new(stores.port_range_lists),
            addresses: addresses::Addresses::default(),
            pools: pools::Pools::new(views.leases.len() >> 16),
            routes: BTreeMap::new(),
            vrrp: vrrp::Instances::default(),
            stores,
            views,
        };
        let now = Instant::now();
        this.recover_services();
        for (index, state) in &this.services.by_index {
            if state.leader != *index {
                this.services.led.entry(state.leader).or_default().insert(*index);
            }
        }
        this.recover_bindings()?;
        for (index, state) in &this.services.by_index {
            if let Some(vip) = state.vip {
                this.services.unclaimed.entry((vip, state.protocol)).or_default().push(*index);
            }
        }
        this.recover_destinations(now)?;
        this.recover_hops(now);
        this.recover_addresses()?;
        this.recover_routes()?;
        this.recover_access()?;
        this.quic = this.stores.quic_ids.entries()?.into_iter().collect();
        for (index, record) in this.stores.pool.entries()? {
            this.pools.recover(index, record);
        }
        this.views.pool_end.store(0, Relaxed);
        this.set_pool_end();
        // What recovery repaired is no part of what the agent asks for.
        this.writes = 0;
        Ok(this)
    }

    fn recover_services(&mut self) {
        for index in 0..self.views.services.len() {
            let record = self.views.services.get(index);
            if record.flags & SERVICE_VALID == 0 {
                continue;
            }
            self.services.indices.claim(index);
            let (first, len) = Service::slots_of(record.slots);
            if len > 0 {
                self.slots.claim(first, len);
            }
            self.servers.claim(record.servers);
            let state = services::State {
                name: None,
                vip: None,
                protocol: record.protocol,
                removed: false,
                rules: rules::recovered(&record),
                leader: record.leader,
                ports: BTreeSet::new(),
                control_port: 0,
            };
            self.services.by_index.insert(index, state);
        }
    }

    fn recover_bindings(&mut self) -> Result<(), Error> {
        for (key, value) in self.stores.service_index.entries()? {
            let (vip, protocol, port) = bindings::of_key(&key);
            if port != 0 {
                self.bindings.exact.insert((vip, protocol, port), value);
                if let Some(state) = self.services.by_index.get_mut(&value) {
                    state.vip = Some(vip);
                    state.ports.insert(Ports::One(port));
                }
                continue;
            }
            self.bindings.lists.claim(value);
            let list = ports::list(&self.stores.port_ranges.get(&value)?.unwrap_or_default());
            for range in &list {
                if let Some(state) = self.services.by_index.get_mut(&range.service) {
                    state.vip = Some(vip);
                    state.ports.insert(match (range.first, range.last) {
                        (0, u16::MAX) => Ports::Any,
                        (first, last) => Ports::Range(first, last),
                    });
                }
            }
            self.bindings.ranges.insert((vip, protocol), (value, list));
        }
        Ok(())
    }

    fn recover_destinations(&mut self, now: Instant) -> Result<(), Error> {
        let is_removed = |word| {
            Destination::flags_of(word) & (flags::VALID | flags::REMOVED) == flags::VALID | flags::REMOVED
        };
        // Those in use first, so that none of them is taken for a leftover of a removed one.
        for removed in [false, true] {
            for index in 0..self.views.destinations.len() {
                if is_removed(self.views.destinations.word(index, 0).load(Relaxed)) == removed {
                    self.destinations.recover(index, &self.views.destinations.get(index), now);
                }
            }
        }
        // A service that nothing leads to was being removed: it goes when its destinations do.
        let dying: Vec<u32> =
            self.services.by_index.iter().filter(|(_, s)| s.ports.is_empty()).map(|(i, _)| *i).collect();
        for index in dying {
            self.set_slots_of(index, &[])?;
            self.set_servers_of(index, &[])?;
            self.retire_destinations_of(index);
            if let Some(state) = self.services.by_index.get_mut(&index) {
                state.removed = true;
            }
            self.services.indices.retire(index, now);
        }
        Ok(())
    }

    fn recover_hops(&mut self, now: Instant) {
        let named: BTreeSet<u32> =
            self.destinations.indices_in_use().map(|i| self.views.destinations.get(i).next_hop).collect();
        for index in 1..self.views.next_hops.len() {
            let record = self.views.next_hops.get(index);
            if !self.hops.recover(index, &record) && (record != Default::default() || named.contains(&index))
            {
                self.hops.quarantine(index, now);
            }
        }
    }

    /// The real servers of the tables that are in use and have a next hop, each with its hop.
    pub fn ways_to_servers(&self) -> Vec<(IpAddr, NextHopKey, NextHop)> {
        let records = self.destinations.indices_in_use().map(|index| self.views.destinations.get(index));
        let in_use = records.filter(|record| {
            let flags = Destination::flags_of(record.word);
            flags & (flags::VALID | flags::REMOVED) == flags::VALID && record.next_hop != 0
        });
        in_use
            .filter_map(|record| {
                let v6 = Destination::flags_of(record.word) & flags::REAL_V6 != 0;
                let key = self.hops.key(record.next_hop)?;
                Some((record.address.to_ip(v6), key, self.views.next_hops.get(record.next_hop)))
            })
            .collect()
    }

    /// The DR and TUN destinations in use, as (VIP, real server, method, index): also those of an earlier run, whose
    /// services have no name yet.
    pub fn at_vips(&self) -> Vec<(IpAddr, IpAddr, Forwarding, u32)> {
        let of = |index: u32| {
            let record = self.views.destinations.get(index);
            let flags = Destination::flags_of(record.word);
            let method = Destination::forwarding_of(flags);
            let in_use = flags & (flags::VALID | flags::REMOVED) == flags::VALID;
            (in_use && matches!(method, Forwarding::Dr | Forwarding::Tun)).then(|| {
                let vip = record.vip.to_ip(flags & flags::VIP_V6 != 0);
                (vip, record.address.to_ip(flags & flags::REAL_V6 != 0), method, index)
            })
        };
        self.destinations.indices_in_use().filter_map(of).collect()
    }

    /// The hops towards clients.
    pub fn ways_to_clients(&self) -> Vec<(NextHopKey, NextHop)> {
        let hops = self.next_hops().filter(|(key, _)| key.for_clients);
        hops.map(|(key, index)| (*key, self.views.next_hops.get(index))).collect()
    }

    /// After the first complete apply: removes what was found and claimed by nobody.
    pub fn finish_recovery(&mut self) -> Result<(), Error> {
        let services: Vec<u32> = self
            .services
            .by_index
            .iter()
            .filter(|(_, state)| state.name.is_none() && !state.removed)
            .map(|(index, _)| *index)
            .collect();
        for index in services {
            self.remove_service_at(index)?;
        }
        for key in self.destinations.unclaimed() {
            self.retire_destination(key);
        }
        for key in self.hops.unclaimed() {
            self.remove_next_hop(&key);
        }
        self.forget_unclaimed_instances()?;
        self.forget_lost_access_lists()?;
        self.remove_nobodys_addresses()?;
        self.retire_unclaimed_places()
    }
}
