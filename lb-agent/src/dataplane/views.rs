//! The tables that live in the agent's memory, shared by the thread that applies, the sweeper and the readers.

use super::{Error, Mapped, Sizes};
use lb_common::{
    address::Address,
    connection::{Bucket, ColdTuple, Value},
    destination::{Destination, NextHop},
    filter::FilterLine,
    guard::Guard,
    hash::Secrets,
    lease::Lease,
    load::Load,
    maps::{VRRP_INSTANCES, VrrpWord},
    scratch::Config,
    service::{SERVERS_PER_LINE, SLOTS_PER_LINE, ServerLine, Service, SlotLine},
    witness::Witness,
};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The mapped tables, and the numbers that say how to read them.
#[derive(Debug)]
pub struct Views {
    pub connections: Mapped<Bucket>,
    pub cold_tuples: Mapped<ColdTuple>,
    pub destinations: Mapped<Destination>,
    pub next_hops: Mapped<NextHop>,
    pub services: Mapped<Service>,
    pub slots: Mapped<SlotLine>,
    pub servers: Mapped<ServerLine>,
    pub loads: Mapped<Load>,
    pub leases: Mapped<Lease>,
    pub filter: Mapped<FilterLine>,
    /// Roles by VRRP instance.
    pub vrrp: Mapped<VrrpWord>,
    /// How real servers answered new connections, by destination; of this program version.
    pub witnesses: Mapped<Witness>,
    /// Limits under a flood, of this program version.
    pub guard: Mapped<Guard>,
    pub secrets: Secrets,
    pub config: Config,
    /// Leases of pool addresses from this index on were never used: the sweeper need not look.
    pub pool_end: AtomicU32,
}

impl Views {
    /// Empty tables in ordinary memory: for tests without a kernel.
    pub fn in_memory(sizes: &Sizes, secrets: Secrets, config: Config) -> Result<Self, Error> {
        Ok(Self {
            connections: Mapped::in_memory(sizes.buckets())?,
            cold_tuples: Mapped::in_memory(sizes.buckets_v6() * lb_common::connection::WAYS as u32)?,
            destinations: Mapped::in_memory(sizes.destinations)?,
            next_hops: Mapped::in_memory(sizes.next_hops)?,
            services: Mapped::in_memory(sizes.services)?,
            slots: Mapped::in_memory(sizes.slots.div_ceil(SLOTS_PER_LINE))?,
            servers: Mapped::in_memory(sizes.server_lines())?,
            loads: Mapped::in_memory(sizes.destinations)?,
            leases: Mapped::in_memory(sizes.leases())?,
            vrrp: Mapped::in_memory(VRRP_INSTANCES)?,
            witnesses: Mapped::in_memory(sizes.destinations)?,
            guard: Mapped::in_memory(1)?,
            filter: Mapped::in_memory((1 << sizes.cell_bits()) / lb_common::filter::CELLS_PER_LINE)?,
            secrets,
            config,
            pool_end: AtomicU32::new(sizes.pool_addresses),
        })
    }

    /// The value word of a connection entry.
    pub fn value(&self, bucket: u32, way: u32) -> &AtomicU64 {
        self.connections.word(bucket, way as usize * 16 + 8)
    }

    /// The identity word of a connection entry.
    pub fn identity(&self, bucket: u32, way: u32) -> &AtomicU64 {
        self.connections.word(bucket, way as usize * 16)
    }

    /// The word of a lease; an empty one for an index that no table has.
    pub fn lease_word(&self, lease: u32) -> Value {
        if lease < self.leases.len() { Value(self.leases.word(lease, 8).load(Relaxed)) } else { Value::EMPTY }
    }

    /// One slot of the packed slot table.
    pub fn slot(&self, slot: u32) -> &AtomicU32 {
        self.slots.half(slot / SLOTS_PER_LINE, (slot % SLOTS_PER_LINE) as usize * 4)
    }

    /// One entry of the packed lists of servers.
    pub fn server(&self, entry: u32) -> &AtomicU64 {
        self.servers.word(entry / SERVERS_PER_LINE, (entry % SERVERS_PER_LINE) as usize * 8)
    }

    /// The counts word of a load ([`Load::counts_of`]).
    pub fn counts(&self, load: u32) -> &AtomicU64 {
        self.loads.word(load, 0)
    }

    /// The address filter's cell of an address.
    pub fn cell_of(&self, address: &Address, v6: bool) -> u32 {
        let key = if v6 {
            self.secrets.key_of_sum_v6(self.secrets.sum_v6(address.halves()))
        } else {
            self.secrets.key_v4(address.words()[0])
        };
        (key >> self.config.cell_shift) as u32
    }
}
