//! Destinations: one real server behind one service.

use super::{super::Error, Tables};
use crate::dataplane::indices::Indices;
use lb_common::{
    address::Address,
    checksum,
    destination::{Destination, Forwarding, flags},
    load::{Load, Rate},
    service::features,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::Ordering::{Relaxed, Release},
    time::Instant,
};

/// Which real server of which service, and how it is reached: a flow cannot change its forwarding method, so
/// another method is another destination.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DestinationKey {
    /// The service's name.
    pub service: String,
    pub address: IpAddr,
    /// Host order; 0 keeps the packet's.
    pub port: u16,
    /// [`Forwarding`] as its number.
    pub forwarding: u8,
}

impl DestinationKey {
    pub fn new(service: impl Into<String>, address: IpAddr, port: u16, forwarding: Forwarding) -> Self {
        Self { service: service.into(), address, port, forwarding: forwarding as u8 }
    }
}

/// What may change while flows go there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DestinationSpec {
    /// Index of the next hop; 0 is none yet: packets are dropped and counted.
    pub next_hop: u32,
    /// The largest IP packet that may be forwarded: the path's MTU, less what a tunnel adds.
    pub mtu: u16,
    /// Of an established (TCP) or confirmed (UDP) flow, in ticks.
    pub timeout: u16,
    /// The VIP's port, host order, when the real server's differs; else 0.
    pub vip_port: u16,
    /// What TUN puts it into; the default for other methods.
    pub tunnel: Tunnel,
    /// The real server is this director itself: without a next hop, packets go to its kernel. Only of DR and TUN.
    pub local: bool,
    /// What its server may be given, and what becomes of its flows.
    pub standing: Standing,
}

/// What a packet is put into by TUN. The default is plain IPIP.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// [`flags::GUE`] or [`flags::GRE`], and [`flags::SPREAD`].
    pub flags: u32,
    /// The port that GUE goes to, host order; 0 for others.
    pub port: u16,
}

/// What becomes of the flows of a destination with their next packet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum OnNextPacket {
    /// They go on.
    #[default]
    GoOn,
    /// TCP: the client is answered with RST; UDP: scheduled elsewhere. The server is dead.
    Reset,
    /// As [`OnNextPacket::Reset`], but the server is told first: the packet goes there as a RST.
    ResetAndTell,
    /// They are scheduled elsewhere, TCP too: the server that gets an established connection resets it.
    Move,
}

/// How a real server stands in its service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Effective weight; 0 takes no new flows. For counted schedulers and checks of slots; slot tables hold theirs.
    pub weight: u32,
    /// Flows from which on it takes no new ones; 0 is no limit.
    pub upper: u32,
    /// Flows below which it takes new ones again; 0 is three quarters of `upper`.
    pub lower: u32,
    /// No new flows, sticky clients included.
    pub draining: bool,
    pub on_next_packet: OnNextPacket,
    /// Packets that may pass in a second; 0 is no limit.
    pub packets_per_second: u32,
    /// The place in its service's list of servers ([`Tables::set_servers`]): the same in all endpoints of a group.
    pub ordinal: u16,
    /// Its first answers to new connections are counted.
    pub watched: bool,
}

impl Standing {
    /// Weight 1, no limits.
    pub const DEFAULT: Self = Self {
        weight: 1,
        upper: 0,
        lower: 0,
        draining: false,
        on_next_packet: OnNextPacket::GoOn,
        packets_per_second: 0,
        ordinal: 0,
        watched: false,
    };

    fn flags(&self) -> u32 {
        let reset = match self.on_next_packet {
            OnNextPacket::GoOn => 0,
            OnNextPacket::Reset => flags::RESET,
            OnNextPacket::ResetAndTell => flags::RESET | flags::RESET_TELLS_SERVER,
            OnNextPacket::Move => flags::MOVES,
        };
        let draining = if self.draining { flags::DRAINING } else { 0 };
        let watched = if self.watched { flags::WATCHED } else { 0 };
        reset | draining | watched | if self.packets_per_second != 0 { flags::RATED } else { 0 }
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self::DEFAULT
    }
}

type Key = (u32, IpAddr, u16, u8);

/// The flags that come from the service's rules.
const RULES_FLAGS: u32 = flags::COUNTED | flags::UDP_INACTIVE | flags::FTP;

#[derive(Debug)]
struct State {
    index: u32,
    removed: bool,
    claimed: bool,
    /// Index of its load: its own, or that of the binding of another endpoint that came first.
    load: u32,
    ordinal: u16,
    /// The largest packet by its interface and its tunnel's header; 0: not known since the start.
    mtu: u16,
    /// Its limit of packets as written; None: not looked at, and the destination has had none since the start.
    rate: Option<u32>,
}

/// The destinations in use and in quarantine.
#[derive(Debug)]
pub struct Destinations {
    pub indices: Indices,
    by_key: BTreeMap<Key, State>,
    by_index: BTreeMap<u32, Key>,
}

impl Destinations {
    pub fn new(len: u32) -> Self {
        Self { indices: Tables::indices(len), by_key: BTreeMap::new(), by_index: BTreeMap::new() }
    }

    /// Takes over a record found in the table.
    pub fn recover(&mut self, index: u32, record: &Destination, now: Instant) {
        let flags = Destination::flags_of(record.word);
        if flags & flags::VALID == 0 {
            return;
        }
        let method = Destination::forwarding_of(flags);
        // TUN keeps the packet's, and the record has GUE's there.
        let port = if method == Forwarding::Tun { 0 } else { Destination::port_of(record.word) };
        let key = (
            record.service,
            record.address.to_ip(flags & flags::REAL_V6 != 0),
            u16::from_be(port),
            method as u8,
        );
        self.indices.claim(index);
        // Two of one key can only be when its removal was not written to the end: one of them is enough.
        let removed = flags & flags::REMOVED != 0 || self.by_key.contains_key(&key);
        if removed {
            self.indices.retire(index, now);
        }
        self.by_index.insert(index, key);
        self.by_key.entry(key).or_insert(State {
            index,
            removed,
            claimed: false,
            load: record.load,
            ordinal: record.ordinal,
            mtu: 0,
            rate: None,
        });
    }

    pub fn forget(&mut self, index: u32) {
        if let Some(key) = self.by_index.remove(&index)
            && self.by_key.get(&key).is_some_and(|state| state.index == index)
        {
            self.by_key.remove(&key);
        }
    }

    /// Whether any destination, quarantined ones included, is of the service.
    pub fn has_service(&self, service: u32) -> bool {
        let first = (service, IpAddr::from([0; 4]), 0, 0);
        self.by_key.range(first..).next().is_some_and(|(key, _)| key.0 == service)
    }

    fn of_service(&self, service: u32) -> Vec<Key> {
        let first = (service, IpAddr::from([0; 4]), 0, 0);
        self.by_key.range(first..).take_while(|(key, _)| key.0 == service).map(|(key, _)| *key).collect()
    }

    /// The indices of a service's destinations, those in quarantine included.
    pub fn indices_of_service(&self, service: u32) -> Vec<u32> {
        self.of_service(service).iter().map(|key| self.by_key[key].index).collect()
    }

    /// Loads that belong to another destination than their index says.
    pub fn shared_loads(&self) -> BTreeSet<u32> {
        self.by_key.values().filter(|state| state.load != state.index).map(|state| state.load).collect()
    }

    /// The load of the same real server at another endpoint of its group, if there is one.
    fn load_in_group(&self, endpoints: &[u32], key: Key, ordinal: u16) -> Option<u32> {
        endpoints.iter().filter(|service| **service != key.0).find_map(|service| {
            let from = (*service, key.1, 0, 0);
            let to = (*service, key.1, u16::MAX, u8::MAX);
            let mut same = self.by_key.range(from..=to).map(|(_, state)| state);
            same.find(|state| !state.removed && state.ordinal == ordinal).map(|state| state.load)
        })
    }

    /// The load of a destination.
    pub fn load(&self, index: u32) -> Option<u32> {
        Some(self.by_key.get(self.by_index.get(&index)?)?.load)
    }

    /// (index, MTU by its interface) of every binding of a real server.
    pub fn mtus_of(&self, address: IpAddr) -> Vec<(u32, u16)> {
        let bindings = self.by_key.iter().filter(|(key, state)| key.1 == address && state.mtu != 0);
        bindings.map(|(_, state)| (state.index, state.mtu)).collect()
    }

    pub fn indices_in_use(&self) -> impl Iterator<Item = u32> {
        self.by_index.keys().copied()
    }

    pub fn unclaimed(&self) -> Vec<(u32, IpAddr, u16, u8)> {
        self.by_key.iter().filter(|(_, s)| !s.claimed && !s.removed).map(|(key, _)| *key).collect()
    }
}

impl Tables {
    /// Makes a destination what is asked and returns its index. One that was removed and still waits in
    /// quarantine gets its old index back, and with it its flows. The service must be there.
    pub fn ensure_destination(&mut self, key: &DestinationKey, spec: &DestinationSpec) -> Result<u32, Error> {
        let service = self.service_of(&key.service)?;
        let inner = (service, key.address, key.port, key.forwarding);
        let mut spec = *spec;
        let index = match self.destinations.by_key.get_mut(&inner) {
            Some(state) => {
                if !std::mem::replace(&mut state.claimed, true) && spec.next_hop == 0 && !spec.local {
                    // An agent that just started does not know the way yet; the table still does.
                    spec.next_hop = self.views.destinations.get(state.index).next_hop;
                }
                state.ordinal = spec.standing.ordinal;
                state.mtu = spec.mtu;
                if std::mem::take(&mut state.removed) {
                    self.destinations.indices.revive(state.index);
                }
                state.index
            }
            None => self.allocate_destination(inner, &spec)?,
        };
        self.set_load(index, &spec.standing)?;
        if key.forwarding == Forwarding::Tun as u8 {
            self.bind_tunnel(key.address)?;
        }
        let mut record = self.destination_record(key, service, &spec);
        let mtu = self.paths.inner_mtu(key.address, Destination::flags_of(record.word), spec.mtu);
        record.word = Destination::with_mtu(record.word, mtu);
        self.writes += self.views.destinations.update(index, &record, 0) as u64;
        Ok(index)
    }

    /// Weight, thresholds and the limit of packets. A threshold that grew or went relieves the server at once.
    fn set_load(&mut self, index: u32, standing: &Standing) -> Result<(), Error> {
        let load = self.destinations.load(index).unwrap_or(index);
        let views = &self.views;
        let record = views.loads.get(load);
        let (active, inactive) = Load::counts_of(record.counts);
        let total = active as u64 + inactive as u64;
        let relieved =
            standing.upper == 0 || (standing.upper > record.upper && total < standing.upper as u64);
        for (offset, old, new) in [
            (std::mem::offset_of!(Load, weight), record.weight, standing.weight),
            (std::mem::offset_of!(Load, upper), record.upper, standing.upper),
            (std::mem::offset_of!(Load, lower), record.lower, standing.lower),
            (
                std::mem::offset_of!(Load, overloaded),
                record.overloaded,
                if relieved { 0 } else { record.overloaded },
            ),
        ] {
            if old != new {
                views.loads.half(load, offset).store(new, Release);
                self.writes += 1;
            }
        }
        let limit = standing.packets_per_second;
        let Some(key) = self.destinations.by_index.get(&index) else { return Ok(()) };
        let Some(state) = self.destinations.by_key.get_mut(key) else { return Ok(()) };
        // Nobody reads the element of a destination without a limit, whatever an earlier owner of the index left there: for
        // half a million of them the question alone would take a second.
        if limit == 0 && state.rate.is_none() {
            return Ok(());
        }
        let known = match state.rate {
            Some(known) => known,
            None => self.stores.rates.get(&index)?.unwrap_or_default().limit,
        };
        if known != limit {
            self.stores.rates.insert(index, Rate { limit, ..Rate::default() })?;
            self.writes += 1;
        }
        state.rate = Some(limit);
        Ok(())
    }

    /// Writes again what a service's rules put into the flags of its destinations.
    pub(super) fn refresh_flags_of(&mut self, service: u32) {
        let rules = self.rules_flags(service);
        for key in self.destinations.of_service(service) {
            let Some(state) = self.destinations.by_key.get(&key) else { continue };
            let mut record = self.views.destinations.get(state.index);
            let flags = Destination::flags_of(record.word) & !RULES_FLAGS | rules;
            record.word = record.word as u32 as u64 | (flags as u64) << 32;
            record.control_port = self.control_port(service).to_be();
            self.writes += self.views.destinations.update(state.index, &record, 0) as u64;
        }
    }

    /// The port of a service's control channels, host order; 0 where none is read.
    fn control_port(&self, service: u32) -> u16 {
        self.services.by_index.get(&service).map_or(0, |state| state.control_port)
    }

    fn rules_flags(&self, service: u32) -> u32 {
        let rules = self.services.by_index.get(&service).map_or(0, |state| state.rules);
        let counted = if rules & features::COUNTED != 0 { flags::COUNTED } else { 0 };
        let ftp = if rules & features::FTP != 0 { flags::FTP } else { 0 };
        counted | ftp | if rules & features::UDP_INACTIVE != 0 { flags::UDP_INACTIVE } else { 0 }
    }

    fn allocate_destination(&mut self, key: Key, spec: &DestinationSpec) -> Result<u32, Error> {
        let mut index = self.destinations.indices.allocate();
        if index.is_none() {
            self.maintain()?;
            index = self.destinations.indices.allocate();
        }
        let limit = self.views.destinations.len();
        let index =
            index.ok_or(Error::Full { what: "real server", limit, hint: super::MORE_REAL_SERVERS })?;
        let (ordinal, mtu) = (spec.standing.ordinal, spec.mtu);
        let endpoints = self.services.endpoints(key.0);
        let load = self.destinations.load_in_group(&endpoints, key, ordinal).unwrap_or(index);
        self.destinations
            .by_key
            .insert(key, State { index, removed: false, claimed: true, load, ordinal, mtu, rate: None });
        self.destinations.by_index.insert(index, key);
        Ok(index)
    }

    fn destination_record(&self, key: &DestinationKey, service: u32, spec: &DestinationSpec) -> Destination {
        let state = &self.services.by_index[&service];
        let (address, vip) = (Address::from(key.address), state.vip.map(Address::from).unwrap_or_default());
        let instance = state.vip.map_or(0, |vip| self.instance_of(vip));
        let same_family = state.vip.is_some_and(|vip| vip.is_ipv6() == key.address.is_ipv6());
        let mut flags = key.forwarding as u32 & flags::FORWARDING | flags::VALID;
        for (set, flag) in [
            (key.address.is_ipv6(), flags::REAL_V6),
            (state.vip.is_some_and(|vip| vip.is_ipv6()), flags::VIP_V6),
            (state.protocol == libc::IPPROTO_UDP as u8, flags::UDP),
            (state.protocol == libc::IPPROTO_SCTP as u8, flags::SCTP),
            (spec.local, flags::LOCAL),
        ] {
            flags |= if set { flag } else { 0 };
        }
        flags |= spec.standing.flags() | self.rules_flags(service);
        let mut port = key.port;
        if key.forwarding == Forwarding::Tun as u8 && !spec.local {
            flags |= spec.tunnel.flags & (flags::GUE | flags::GRE | flags::SPREAD);
            port = spec.tunnel.port;
        }
        let inner = (service, key.address, key.port, key.forwarding);
        Destination {
            word: Destination::make_word(port, spec.mtu, flags | u32::from(instance) << flags::VRRP_SHIFT),
            next_hop: spec.next_hop,
            service,
            address,
            vip,
            timeout: spec.timeout,
            vip_port: spec.vip_port.to_be(),
            delta: if same_family { checksum::difference(vip.words(), address.words()) } else { 0 },
            load: self.destinations.by_key.get(&inner).map_or(0, |state| state.load),
            ordinal: spec.standing.ordinal,
            control_port: self.control_port(service).to_be(),
        }
    }

    /// Points a destination at another next hop or MTU, nothing else. False when it is not there.
    pub fn set_destination_path(&mut self, index: u32, next_hop: u32, mtu: u16) -> bool {
        let Some(key) = self.destinations.by_index.get(&index) else { return false };
        if let Some(state) = self.destinations.by_key.get_mut(key) {
            state.mtu = mtu;
        }
        let mut record = self.views.destinations.get(index);
        let mtu = self.paths.inner_mtu(key.1, Destination::flags_of(record.word), mtu);
        record.next_hop = next_hop;
        record.word = Destination::with_mtu(record.word, mtu);
        self.writes += self.views.destinations.update(index, &record, 0) as u64;
        true
    }

    /// Takes a real server out of a service. Established TCP flows go on; its slots must be gone already. False
    /// when it is not there.
    pub fn remove_destination(&mut self, key: &DestinationKey) -> Result<bool, Error> {
        let Some(service) = self.services.names.get(&key.service) else { return Ok(false) };
        Ok(self.retire_destination((*service, key.address, key.port, key.forwarding)))
    }

    pub(super) fn retire_destination(&mut self, key: (u32, IpAddr, u16, u8)) -> bool {
        let Some(state) = self.destinations.by_key.get_mut(&key).filter(|state| !state.removed) else {
            return false;
        };
        state.removed = true;
        let word = self.views.destinations.word(state.index, 0);
        word.store(word.load(Relaxed) | (flags::REMOVED as u64) << 32, Release);
        self.writes += 1;
        self.destinations.indices.retire(state.index, Instant::now());
        true
    }

    pub(super) fn retire_destinations_of(&mut self, service: u32) {
        for key in self.destinations.of_service(service) {
            self.retire_destination(key);
        }
    }

    /// The real servers of this forwarding method that some flow may still go to: those in use, and removed ones
    /// until their index is free.
    pub fn real_servers(&self, forwarding: Forwarding) -> BTreeSet<IpAddr> {
        let keys = self.destinations.by_index.values();
        keys.filter(|(_, _, _, method)| *method == forwarding as u8)
            .map(|(_, address, _, _)| *address)
            .collect()
    }

    /// The destinations of a service that were removed and may still have flows, with their indices.
    pub fn removed_destinations_of(&self, service: &str) -> Vec<(DestinationKey, u32)> {
        let Some(index) = self.services.names.get(service) else { return Vec::new() };
        let keys = self.destinations.of_service(*index).into_iter();
        keys.filter_map(|key| {
            let state = self.destinations.by_key.get(&key).filter(|state| state.removed)?;
            let (_, address, port, forwarding) = key;
            Some((DestinationKey { service: service.into(), address, port, forwarding }, state.index))
        })
        .collect()
    }

    /// The index of a destination that is in use.
    pub fn destination(&self, key: &DestinationKey) -> Option<u32> {
        let service = *self.services.names.get(&key.service)?;
        let state = self.destinations.by_key.get(&(service, key.address, key.port, key.forwarding))?;
        (!state.removed).then_some(state.index)
    }

    /// What an index stands for, removed destinations included; none for a service that has no name any more.
    pub fn destination_key(&self, index: u32) -> Option<DestinationKey> {
        let (service, address, port, forwarding) = *self.destinations.by_index.get(&index)?;
        let service = self.services.by_index.get(&service)?.name.clone()?;
        Some(DestinationKey { service, address, port, forwarding })
    }

    /// The destinations of a service that are in use, with their indices.
    pub fn destinations_of(&self, service: &str) -> Vec<(DestinationKey, u32)> {
        let Some(index) = self.services.names.get(service) else { return Vec::new() };
        let keys = self.destinations.of_service(*index).into_iter();
        keys.filter_map(|key| {
            let state = self.destinations.by_key.get(&key).filter(|state| !state.removed)?;
            let (_, address, port, forwarding) = key;
            Some((DestinationKey { service: service.into(), address, port, forwarding }, state.index))
        })
        .collect()
    }
}
