//! Services and their slots.

use super::{super::Error, Rules, Tables, rules};
use crate::dataplane::{indices::Indices, ports::Ports};
use lb_common::service::{OnUnknownFlow, Pick, SERVICE_VALID, Service, features};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::IpAddr,
    sync::atomic::Ordering::{Relaxed, Release},
    time::Instant,
};

/// What a service is. Its ports serve to recognise it after a restart; `bind_ports` makes it reachable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSpec {
    pub name: String,
    pub vip: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    pub ports: Vec<Ports>,
    pub pick: Pick,
    pub on_unknown_flow: OnUnknownFlow,
    /// MSS written into SYNs above it; 0 leaves them.
    pub mss: u16,
    /// In ticks, by state number.
    pub timeouts: [u16; 16],
    /// FULLNAT: what [`Tables::set_pool`] returned.
    pub pool: Option<(u16, u8)>,
    /// What else a new flow must meet, and how its server is chosen.
    pub rules: Rules,
}

#[derive(Debug)]
pub struct State {
    /// None: found in the tables and not yet claimed, or removed.
    pub name: Option<String>,
    /// None: found in the tables with no port bound.
    pub vip: Option<IpAddr>,
    pub protocol: u8,
    pub removed: bool,
    /// [`features`] as written.
    pub rules: u32,
    /// Index of the service that leads its group.
    pub leader: u32,
    /// The ports bound to it.
    pub ports: BTreeSet<Ports>,
    /// The port whose connections are read (FTP), host order; 0 is none.
    pub control_port: u16,
}

/// The services in use, and the removed ones that flows still read timeouts of.
#[derive(Debug)]
pub struct Services {
    pub indices: Indices,
    pub names: BTreeMap<String, u32>,
    pub by_index: BTreeMap<u32, State>,
    /// Services that an earlier run left, by virtual address and protocol: some may have been claimed since.
    pub unclaimed: BTreeMap<(IpAddr, u8), Vec<u32>>,
    /// The services that another one leads, by the leader.
    pub led: BTreeMap<u32, BTreeSet<u32>>,
}

/// Slots, cursor, servers, limit and cache are not written with the rest of the record.
pub(super) const SKIP: u64 = 0b11 | 0b111 << 8;

impl Services {
    pub fn new(len: u32) -> Self {
        Self {
            indices: Tables::indices(len),
            names: BTreeMap::new(),
            by_index: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
            led: BTreeMap::new(),
        }
    }

    /// The services of the group of a service, if it is not alone.
    pub fn endpoints(&self, service: u32) -> Vec<u32> {
        let leader = self.by_index.get(&service).map_or(service, |state| state.leader);
        let Some(led) = self.led.get(&leader) else { return Vec::new() };
        led.iter().copied().chain([leader]).collect()
    }

    /// Puts a service into the group of its leader and takes it out of any other.
    fn follow(&mut self, service: u32, leader: u32) {
        let Some(state) = self.by_index.get_mut(&service) else { return };
        let before = std::mem::replace(&mut state.leader, leader);
        if before != leader
            && let Some(led) = self.led.get_mut(&before)
        {
            led.remove(&service);
            if led.is_empty() {
                self.led.remove(&before);
            }
        }
        if leader != service {
            self.led.entry(leader).or_default().insert(service);
        }
    }

    /// The service of the tables that has most of these ports and no name yet.
    fn adoptable(&self, spec: &ServiceSpec) -> Option<u32> {
        let ports: BTreeSet<_> = spec.ports.iter().copied().collect();
        let there = self.unclaimed.get(&(spec.vip, spec.protocol)).into_iter().flatten();
        let candidates = there
            .filter_map(|index| Some((index, self.by_index.get(index)?)))
            .filter(|(_, state)| state.name.is_none() && !state.removed);
        let common = candidates.map(|(index, state)| (state.ports.intersection(&ports).count(), *index));
        common.filter(|(common, _)| *common > 0).max_by_key(|(common, _)| *common).map(|(_, index)| index)
    }
}

impl Tables {
    /// Makes a service what is asked and returns its index. Another VIP or protocol under a name is another
    /// service: the old one is removed.
    pub fn ensure_service(&mut self, spec: &ServiceSpec) -> Result<u32, Error> {
        if let Some(index) = self.services.names.get(&spec.name) {
            let state = &self.services.by_index[index];
            if (state.vip, state.protocol) != (Some(spec.vip), spec.protocol) {
                self.remove_service(&spec.name)?;
            }
        }
        let index = match self.services.names.get(&spec.name) {
            Some(index) => *index,
            None => match self.services.adoptable(spec) {
                Some(index) => index,
                None => self.allocate_service(spec)?,
            },
        };
        self.services.names.insert(spec.name.clone(), index);
        if let Some(state) = self.services.by_index.get_mut(&index) {
            state.name = Some(spec.name.clone());
        }
        let leader = match &spec.rules.leader {
            Some(leader) if *leader != spec.name => self.service_of(leader)?,
            _ => index,
        };
        let features = rules::features_of(spec);
        self.services.follow(index, leader);
        let control_port = match spec.ports[..] {
            [Ports::One(port)] if spec.rules.ftp => port,
            _ => 0,
        };
        let state = self.services.by_index.get_mut(&index);
        let before = state.map(|state| {
            let port = std::mem::replace(&mut state.control_port, control_port);
            (std::mem::replace(&mut state.rules, features), port)
        });
        let (pool_first, pool_len) = spec.pool.unwrap_or_default();
        let record = Service {
            features,
            leader,
            pick: spec.pick as u8,
            on_unknown_flow: spec.on_unknown_flow as u8,
            flags: SERVICE_VALID,
            pool_len,
            mss: spec.mss,
            pool_first,
            timeouts: spec.timeouts,
            protocol: spec.protocol,
            vrrp: self.instance_of(spec.vip),
            ..rules::record(&spec.rules)
        };
        self.writes += self.views.services.update(index, &record, SKIP) as u64;
        const IN_FLAGS: u32 = features::COUNTED | features::UDP_INACTIVE | features::FTP;
        if before.is_some_and(|(rules, port)| (rules ^ features) & IN_FLAGS != 0 || port != control_port) {
            self.refresh_flags_of(index);
        }
        Ok(index)
    }

    fn allocate_service(&mut self, spec: &ServiceSpec) -> Result<u32, Error> {
        let mut index = self.services.indices.allocate();
        if index.is_none() {
            self.maintain()?;
            index = self.services.indices.allocate();
        }
        let limit = self.views.services.len();
        let index = index.ok_or(Error::Full { what: "service", limit, hint: super::MORE_SERVICES })?;
        let state = State {
            name: None,
            vip: Some(spec.vip),
            protocol: spec.protocol,
            removed: false,
            rules: 0,
            leader: index,
            ports: BTreeSet::new(),
            control_port: 0,
        };
        self.services.by_index.insert(index, state);
        // Many services, or many directors, should not all begin their rounds at one server.
        let start = if spec.rules.rotate { RandomState::new().build_hasher().finish() >> 32 } else { 0 };
        self.views.services.word(index, std::mem::offset_of!(Service, cursor)).store(start, Relaxed);
        Ok(index)
    }

    /// The index of a service.
    pub fn service(&self, name: &str) -> Option<u32> {
        self.services.names.get(name).copied()
    }

    /// The index that [`Tables::ensure_service`] would find for a service: one that an earlier run left is known by its
    /// address and ports.
    pub fn find_service(&self, spec: &ServiceSpec) -> Option<u32> {
        self.service(&spec.name).or_else(|| self.services.adoptable(spec))
    }

    /// The name of a service.
    pub fn service_name(&self, index: u32) -> Option<&str> {
        self.services.by_index.get(&index)?.name.as_deref()
    }

    /// The names of all services.
    pub fn service_names(&self) -> impl Iterator<Item = &str> {
        self.services.names.keys().map(String::as_str)
    }

    pub(super) fn service_of(&self, name: &str) -> Result<u32, Error> {
        self.service(name)
            .ok_or_else(|| Error::Refused(format!("the tables have no service {name}: make it first")))
    }

    /// Gives a service the slots of its scheduler: destination indices, None for no server. The new table is
    /// written beside the old one and switched to by one word; packets see the one or the other.
    pub fn set_slots(&mut self, service: &str, slots: &[Option<u32>]) -> Result<(), Error> {
        let index = self.service_of(service)?;
        self.set_slots_of(index, slots)
    }

    /// As [`Tables::set_slots`], for tables of millions of slots: `slot` says destination plus one, or 0, for each of
    /// `len` slots.
    pub fn set_slots_by(&mut self, service: &str, len: u32, slot: impl Fn(u32) -> u32) -> Result<(), Error> {
        let index = self.service_of(service)?;
        self.set_slots_of_by(index, len, slot)
    }

    pub(super) fn set_slots_of(&mut self, index: u32, slots: &[Option<u32>]) -> Result<(), Error> {
        let slot = |at: u32| slots[at as usize].map_or(0, |destination| destination + 1);
        self.set_slots_of_by(index, slots.len() as u32, slot)
    }

    fn set_slots_of_by(&mut self, index: u32, new_len: u32, slot: impl Fn(u32) -> u32) -> Result<(), Error> {
        let word = self.views.services.word(index, 0).load(Relaxed);
        let (first, len) = Service::slots_of(word);
        let same = len == new_len && (0..len).all(|at| self.views.slot(first + at).load(Relaxed) == slot(at));
        if same {
            return Ok(());
        }
        let new_first = if new_len == 0 { 0 } else { self.allocate_slots(new_len)? };
        for at in 0..new_len {
            let (cell, value) = (self.views.slot(new_first + at), slot(at));
            if cell.load(Relaxed) != value {
                cell.store(value, Release);
                self.writes += 1;
            }
        }
        let generation = ((word >> 56) as u8).wrapping_add(1);
        let new = Service::make_slots(new_first, new_len, generation);
        self.views.services.word(index, 0).store(new, Release);
        self.writes += 1;
        if len > 0 {
            self.old_slots.push((first, len, Instant::now()));
        }
        Ok(())
    }

    fn allocate_slots(&mut self, len: u32) -> Result<u32, Error> {
        if len >= 1 << 24 {
            return Err(Error::Refused(format!("a table of {len} slots: at most {} fit", (1 << 24) - 1)));
        }
        if let Some(first) = self.slots.allocate(len) {
            return Ok(first);
        }
        // Ranges that were replaced a moment ago may be all that is missing.
        if let Some(since) = self.old_slots.iter().map(|(_, _, since)| *since).max() {
            std::thread::sleep((since + self.grace).saturating_duration_since(Instant::now()));
            self.release_slots(Instant::now());
        }
        let limit = self.views.slots.len() * lb_common::service::SLOTS_PER_LINE;
        self.slots.allocate(len).ok_or(Error::Full {
            what: "slot table",
            limit,
            hint: super::MORE_REAL_SERVERS,
        })
    }

    /// How many slots a service has, and how often they were switched (modulo 256).
    pub fn slots_of(&self, service: &str) -> Option<(u32, u8)> {
        let word = self.views.services.word(self.service(service)?, 0).load(Relaxed);
        Some((Service::slots_of(word).1, (word >> 56) as u8))
    }

    /// Removes a service: its ports first, then its slots and destinations. False when it is not there.
    pub fn remove_service(&mut self, name: &str) -> Result<bool, Error> {
        let Some(index) = self.service(name) else { return Ok(false) };
        self.remove_service_at(index)?;
        Ok(true)
    }

    pub(super) fn remove_service_at(&mut self, index: u32) -> Result<(), Error> {
        self.bind_ports_of(index, &[])?;
        self.services.follow(index, index);
        self.set_slots_of(index, &[])?;
        self.set_servers_of(index, &[])?;
        self.forget_quic_ids(index)?;
        self.forget_access_list(index)?;
        self.retire_destinations_of(index);
        let Some(state) = self.services.by_index.get_mut(&index).filter(|state| !state.removed) else {
            return Ok(());
        };
        state.removed = true;
        if let Some(name) = state.name.take() {
            self.services.names.remove(&name);
        }
        self.services.indices.retire(index, Instant::now());
        Ok(())
    }
}
