//! What a plan's steps are run against: services, destinations, slots, addresses by what they are, not by
//! their indices. Every call compares with what the tables hold, so an unchanged apply writes nothing
//! ([`Tables::writes`] tells), and costs what changed.
//!
//! Whatever packets may still name when it is removed keeps its index for a while: `maintain` gives it out
//! again after a grace period and, for destinations, hops and local addresses, a walk of the sweeper that began
//! after that and saw none.
//!
//! After a restart the agent knows no indices. No file of it is believed, it may be older than the tables: they
//! are found again by what the records say (`recover`). Names are not in the records; a service is recognised by
//! VIP, protocol and ports, a next hop by its neighbour and interface, a pool by its addresses. What nobody
//! claims until `finish_recovery` is removed.

mod addresses;
mod bindings;
mod destinations;
mod hops;
mod paths;
mod pools;
mod recover;
mod routes;
mod rules;
mod servers;
mod services;
#[cfg(test)]
mod tests;
mod vrrp;

pub use addresses::Role;
pub use destinations::{DestinationKey, DestinationSpec, OnNextPacket, Standing, Tunnel};
pub use hops::NextHopKey;
pub use paths::PathChange;
pub use routes::ClientVia;
pub use rules::{Access, Cookies, Persistence, Quic, Rules};
pub use services::ServiceSpec;

use super::{
    Error, Views,
    counters::add,
    indices::Indices,
    ranges::Ranges,
    store::{BoxStore, Kernel, Memory},
    sweeper::{Board, Scan},
};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, lpm_trie::LpmTrie};
use lb_common::{
    destination::{Destination, Traffic},
    filter::{AddressKey, AddressRecord, PeerKey},
    lease::PoolAddress,
    load::{Load, Rate},
    maps::{own, pinned},
    service::{PortRanges, QuicKey, Service, ServiceKey},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a packet may go on with what it read before a change: far longer than any does.
const GRACE: Duration = Duration::from_secs(1);

const MORE_SERVICES: &str = "raise spec.capacity.services of the Director and restart";
const MORE_REAL_SERVERS: &str = "raise spec.capacity.realServers of the Director and restart";
const MORE_LOCAL_ADDRESSES: &str = "their table is sized for the pools that are known when the agent starts";

/// The tables that are reached by system call.
pub struct Stores {
    pub(super) service_index: BoxStore<ServiceKey, u32>,
    pub(super) port_ranges: BoxStore<u32, PortRanges>,
    pub(super) pool: BoxStore<u32, PoolAddress>,
    pub(super) addresses: BoxStore<AddressKey, AddressRecord>,
    pub(super) routes4: BoxStore<(u32, [u8; 4]), u32>,
    pub(super) routes6: BoxStore<(u32, [u8; 16]), u32>,
    pub(super) rates: BoxStore<u32, Rate>,
    pub(super) acl4: BoxStore<(u32, [u8; 8]), u32>,
    pub(super) acl6: BoxStore<(u32, [u8; 20]), u32>,
    pub(super) quic_ids: BoxStore<QuicKey, u32>,
    pub(super) peers: BoxStore<PeerKey, u32>,
    pub(super) paths: BoxStore<AddressKey, u32>,
    pub(super) traffic: BoxStore<u32, Vec<Traffic>>,
    pub(super) port_range_lists: u32,
}

impl Stores {
    pub(super) fn of<'a>(map: impl Fn(&'static str) -> Result<&'a Map, Error>) -> Result<Self, Error> {
        use pinned::*;
        let ranges = super::store::data_of(map(PORT_RANGES)?).ok_or(Error::Missing(PORT_RANGES))?;
        let lists = ranges.info().map_err(Error::map(PORT_RANGES))?.max_entries();
        Ok(Self {
            service_index: Box::new(Kernel::<HashMap<MapData, ServiceKey, u32>>::of(
                SERVICE_INDEX,
                map(SERVICE_INDEX)?,
            )?),
            port_ranges: Box::new(Kernel::<Array<MapData, PortRanges>>::of(PORT_RANGES, map(PORT_RANGES)?)?),
            pool: Box::new(Kernel::<Array<MapData, PoolAddress>>::of(POOL, map(POOL)?)?),
            addresses: Box::new(Kernel::<HashMap<MapData, AddressKey, AddressRecord>>::of(
                ADDRESSES,
                map(ADDRESSES)?,
            )?),
            routes4: Box::new(Kernel::<LpmTrie<MapData, [u8; 4], u32>>::of(
                CLIENT_ROUTES4,
                map(CLIENT_ROUTES4)?,
            )?),
            routes6: Box::new(Kernel::<LpmTrie<MapData, [u8; 16], u32>>::of(
                CLIENT_ROUTES6,
                map(CLIENT_ROUTES6)?,
            )?),
            rates: Box::new(Kernel::<Array<MapData, Rate>>::of(RATES, map(RATES)?)?),
            acl4: Box::new(Kernel::<LpmTrie<MapData, [u8; 8], u32>>::of(ACL4, map(ACL4)?)?),
            acl6: Box::new(Kernel::<LpmTrie<MapData, [u8; 20], u32>>::of(ACL6, map(ACL6)?)?),
            paths: Box::new(Kernel::<HashMap<MapData, AddressKey, u32>>::of(own::PATHS, map(own::PATHS)?)?),
            quic_ids: Box::new(Kernel::<HashMap<MapData, QuicKey, u32>>::of(QUIC_IDS, map(QUIC_IDS)?)?),
            peers: Box::new(Kernel::<HashMap<MapData, PeerKey, u32>>::of(PEERS, map(PEERS)?)?),
            traffic: Box::new(Kernel::<PerCpuArray<MapData, Traffic>>::of(TRAFFIC, map(TRAFFIC)?)?),
            port_range_lists: lists,
        })
    }

    /// Empty tables of this process: for tests without a kernel.
    pub fn in_memory(port_range_lists: u32) -> Self {
        Self {
            service_index: Box::new(Memory::default()),
            port_ranges: Box::new(Memory::default()),
            pool: Box::new(Memory::default()),
            addresses: Box::new(Memory::default()),
            routes4: Box::new(Memory::default()),
            routes6: Box::new(Memory::default()),
            rates: Box::new(Memory::default()),
            acl4: Box::new(Memory::default()),
            acl6: Box::new(Memory::default()),
            paths: Box::new(Memory::default()),
            quic_ids: Box::new(Memory::default()),
            peers: Box::new(Memory::default()),
            traffic: Box::new(Memory::default()),
            port_range_lists,
        }
    }
}

/// The tables as the agent means them.
pub struct Tables {
    views: Arc<Views>,
    board: Arc<Board>,
    stores: Stores,
    writes: u64,
    grace: Duration,
    quarantine: bool,
    services: services::Services,
    destinations: destinations::Destinations,
    hops: hops::Hops,
    slots: Ranges,
    servers: servers::Servers,
    access: rules::AccessLists,
    quic: BTreeMap<QuicKey, u32>,
    paths: paths::Paths,
    /// Slot ranges that were replaced: (first, number, when).
    old_slots: Vec<(u32, u32, Instant)>,
    bindings: bindings::Bindings,
    addresses: addresses::Addresses,
    pools: pools::Pools,
    routes: BTreeMap<ipnet::IpNet, u32>,
    vrrp: vrrp::Instances,
}

impl Tables {
    /// Writes to tables so far: words of mapped records, and elements of the others.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Gives indices out again at once. It makes established flows go to wrong servers, which a test wants to
    /// see happen.
    pub fn disable_quarantine(&mut self) {
        self.quarantine = false;
        self.grace = Duration::ZERO;
    }

    /// Frees what nothing can name any more. To be called about once a second; calls that find a table full call
    /// it themselves.
    pub fn maintain(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let scan = self.board.latest();
        self.release_slots(now);
        self.release_servers(now);
        self.release_destinations(now, scan.as_deref())?;
        self.release_services(now);
        self.release_hops(now, scan.as_deref());
        self.release_bindings(now);
        self.release_pools(scan.as_deref())
    }

    /// Whether a thing that was removed at `since` and that `seen` asks the walk about is out of use.
    fn is_out_of_use(
        quarantine: bool,
        grace: Duration,
        since: Instant,
        scan: Option<&Scan>,
        seen: impl Fn(&Scan) -> bool,
    ) -> bool {
        !quarantine || scan.is_some_and(|scan| scan.began >= since + grace && !seen(scan))
    }

    fn release_slots(&mut self, now: Instant) {
        let (grace, slots) = (self.grace, &mut self.slots);
        self.old_slots.retain(|(first, len, since)| {
            let wait = now < *since + grace;
            if !wait {
                slots.release(*first, *len);
            }
            wait
        });
    }

    fn release_destinations(&mut self, _now: Instant, scan: Option<&Scan>) -> Result<(), Error> {
        let (quarantine, grace) = (self.quarantine, self.grace);
        // The load of a destination has its index. While bindings of other endpoints share it, it stays.
        let shared = if self.destinations.indices.has_quarantined() {
            self.destinations.shared_loads()
        } else {
            Default::default()
        };
        let freed = self.destinations.indices.release(|index, since| {
            !shared.contains(&index)
                && Self::is_out_of_use(quarantine, grace, since, scan, |scan| scan.saw_destination(index))
        });
        let any = !freed.is_empty();
        for index in freed {
            self.retire_traffic(index)?;
            self.writes += self.views.destinations.update(index, &Destination::default(), 0) as u64;
            self.writes += self.views.loads.update(index, &Load::default(), 0) as u64;
            self.destinations.forget(index);
        }
        if any { self.unbind_tunnels() } else { Ok(()) }
    }

    /// Moves a destination's traffic to the total of those that are no more, the element behind the last
    /// destination's. A kill between the two writes counts it twice.
    fn retire_traffic(&mut self, index: u32) -> Result<(), Error> {
        let store = &mut self.stores.traffic;
        let Some(mut cpus) = store.get(&index)? else { return Ok(()) };
        if cpus.iter().all(|cpu| *cpu == Traffic::default()) {
            return Ok(());
        }
        let last = self.views.destinations.len();
        let mut total = store.get(&last)?.unwrap_or_else(|| vec![Traffic::default(); cpus.len()]);
        for (sum, cpu) in total.iter_mut().zip(&cpus) {
            add(sum, cpu);
        }
        store.insert(last, total)?;
        cpus.fill(Traffic::default());
        store.insert(index, cpus)?;
        self.writes += 2;
        Ok(())
    }

    fn release_services(&mut self, now: Instant) {
        let (grace, destinations) = (self.grace, &self.destinations);
        // Its timeouts are read for flows of its destinations as long as there are any.
        let freed = self
            .services
            .indices
            .release(|index, since| now >= since + grace && !destinations.has_service(index));
        for index in freed {
            self.writes += self.views.services.update(index, &Service::default(), 0) as u64;
            self.services.by_index.remove(&index);
        }
    }

    /// Indices for which `view` has room, without a limit of their own.
    fn indices(len: u32) -> Indices {
        Indices::new(0, len)
    }
}
