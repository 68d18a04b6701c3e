//! The sizes of the tables, and what each map must look like in the kernel.

use aya::maps::MapType;
use lb_common::{
    connection, destination, extension, filter, hash, lease, load, maps::pinned, scratch, service, verdict,
};

/// How many of each thing the tables can hold. Fixed when the tables are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Flows (a NAT flow needs two entries). The table has room for at least 8/7 of it.
    pub connections: u32,
    /// How many of them may be IPv6.
    pub connections_v6: u32,
    pub services: u32,
    /// Lists of port ranges, one for each (VIP, protocol) that has ranges.
    pub port_ranges: u32,
    /// (service, real server) bindings, those in quarantine included.
    pub destinations: u32,
    pub next_hops: u32,
    /// Slots of all schedulers together; a change needs old and new side by side.
    pub slots: u32,
    /// Local addresses for FULLNAT: 4 MiB each.
    pub pool_addresses: u32,
    /// Flows that may have an extension record: PROXY header, TOA.
    pub extensions: u32,
}

/// One flow in so many may have an extension record.
pub const EXTENDED_SHARE: u32 = 8;

impl Default for Sizes {
    fn default() -> Self {
        Self {
            connections: 1_000_000,
            connections_v6: 250_000,
            services: 4096,
            port_ranges: 1024,
            destinations: 16_384,
            next_hops: 4096,
            slots: 1 << 21,
            pool_addresses: 8,
            extensions: 1_000_000 / EXTENDED_SHARE,
        }
    }
}

impl Sizes {
    /// Sizes from what the operator states: flows, services, (service, real server) bindings and the addresses
    /// of all local pools.
    pub fn for_capacity(connections: u32, services: u32, real_servers: u32, pool_addresses: u32) -> Self {
        // A quarantined destination needs its index beside the one that takes its place.
        let destinations = (real_servers as u64 * 5 / 4 + 64).min(connection::MAX_DESTINATIONS as u64) as u32;
        Self {
            connections,
            connections_v6: connections / 4,
            services: services.saturating_add(64),
            port_ranges: (services / 4).saturating_add(64),
            destinations,
            next_hops: (real_servers / 4).clamp(1024, 1 << 20),
            slots: (real_servers as u64 * 64).clamp(1 << 20, 1 << 28) as u32,
            pool_addresses,
            extensions: (connections / EXTENDED_SHARE).max(1024),
        }
    }

    /// The error's text when a size cannot be had.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            ("connections", self.connections, 1, 1 << 30),
            ("connections (IPv6)", self.connections_v6, 0, self.connections),
            ("services", self.services, 1, 1 << 20),
            ("port range lists", self.port_ranges, 1, 1 << 20),
            ("destinations", self.destinations, 1, connection::MAX_DESTINATIONS),
            ("next hops", self.next_hops, 4, 1 << 20),
            ("slots", self.slots, service::SLOTS_PER_LINE, 1 << 30),
            ("pool addresses", self.pool_addresses, 0, lease::MAX_POOL_ADDRESSES),
            ("extension records", self.extensions, 1, 1 << 24),
        ];
        for (what, size, min, max) in bounds {
            if size < min || size > max {
                return Err(format!("{what}: {size} is not between {min} and {max}"));
            }
        }
        Ok(())
    }

    /// Buckets of the connection table: a power of two.
    pub fn buckets(&self) -> u32 {
        buckets_for(self.connections)
    }

    /// Of those, the buckets in which IPv6 flows may lie.
    pub fn buckets_v6(&self) -> u32 {
        buckets_for(self.connections_v6).min(self.buckets())
    }

    /// Records of flows whose sequence numbers are shifted: a power of two.
    pub fn extension_records(&self) -> u32 {
        self.extensions.next_power_of_two().max(extension::FEWEST)
    }

    /// Bits of an address filter's index.
    pub fn cell_bits(&self) -> u32 {
        filter::cell_bits(self.addresses())
    }

    /// Lines of the packed lists of servers: room for every binding in an old and in a new list, and for the gaps
    /// between them.
    pub fn server_lines(&self) -> u32 {
        (self.destinations.saturating_mul(3) / service::SERVERS_PER_LINE).saturating_add(self.services).max(8)
    }

    fn addresses(&self) -> u32 {
        self.services.saturating_add(self.destinations).saturating_add(self.pool_addresses)
    }

    /// Entries of the array of leases.
    pub fn leases(&self) -> u32 {
        (self.pool_addresses << 16).max(1)
    }

    /// The read-only configuration that goes with these sizes.
    pub fn config(&self, hz: u32, answers_per_second: u32) -> scratch::Config {
        scratch::Config {
            bucket_shift: 64 - self.buckets().ilog2(),
            bucket_shift_v6: 64 - self.buckets_v6().ilog2(),
            cell_shift: 64 - self.cell_bits(),
            tick_shift: scratch::tick_shift(hz),
            answers_per_second,
            hz,
            log: 0,
            extension_shift: 64 - (self.extension_records() / extension::WAYS).ilog2(),
            ..scratch::Config::default()
        }
    }

    /// What each pinned map must look like.
    pub fn specs(&self) -> Vec<Spec> {
        use MapType::{Array, DevMapHash, Hash, LpmTrie, LruHash, PerCpuArray};
        let array = |name, value, entries| Spec { name, kind: Array, key: 4, value, entries };
        let addresses = self.addresses().clamp(1024, 1 << 22);
        vec![
            array(pinned::CONNECTIONS, size_of::<connection::Bucket>(), self.buckets()),
            array(
                pinned::COLD_TUPLES,
                size_of::<connection::ColdTuple>(),
                self.buckets_v6() * connection::WAYS as u32,
            ),
            array(pinned::DESTINATIONS, size_of::<destination::Destination>(), self.destinations),
            array(pinned::NEXT_HOPS, size_of::<destination::NextHop>(), self.next_hops),
            // One more than there are destinations: the last holds what removed ones had counted.
            Spec {
                name: pinned::TRAFFIC,
                kind: PerCpuArray,
                key: 4,
                value: size_of::<destination::Traffic>(),
                entries: self.destinations + 1,
            },
            Spec {
                name: pinned::SERVICE_INDEX,
                kind: Hash,
                key: size_of::<service::ServiceKey>(),
                value: 4,
                entries: self.services.saturating_mul(8).clamp(1024, 1 << 22),
            },
            array(pinned::SERVICES, size_of::<service::Service>(), self.services),
            array(pinned::PORT_RANGES, size_of::<service::PortRanges>(), self.port_ranges),
            array(
                pinned::SLOTS,
                size_of::<service::SlotLine>(),
                self.slots.div_ceil(service::SLOTS_PER_LINE),
            ),
            array(pinned::SERVERS, size_of::<service::ServerLine>(), self.server_lines()),
            array(pinned::LOADS, size_of::<load::Load>(), self.destinations),
            array(pinned::RATES, size_of::<load::Rate>(), self.destinations),
            Spec { name: pinned::ACL4, kind: LpmTrie, key: 12, value: 4, entries: ACCESS_PREFIXES },
            Spec { name: pinned::ACL6, kind: LpmTrie, key: 24, value: 4, entries: ACCESS_PREFIXES },
            Spec {
                name: pinned::QUIC_IDS,
                kind: Hash,
                key: size_of::<service::QuicKey>(),
                value: 4,
                entries: self.destinations.clamp(1024, 1 << 16),
            },
            Spec {
                name: pinned::PEERS,
                kind: Hash,
                key: size_of::<filter::PeerKey>(),
                value: 4,
                entries: filter::MAX_PEERS,
            },
            array(pinned::LEASES, size_of::<lease::Lease>(), self.leases()),
            array(pinned::POOL, size_of::<lease::PoolAddress>(), self.pool_addresses.max(1)),
            array(
                pinned::FILTER,
                size_of::<filter::FilterLine>(),
                (1 << self.cell_bits()) / filter::CELLS_PER_LINE,
            ),
            Spec {
                name: pinned::ADDRESSES,
                kind: Hash,
                key: size_of::<filter::AddressKey>(),
                value: size_of::<filter::AddressRecord>(),
                entries: addresses,
            },
            Spec { name: pinned::CLIENT_ROUTES4, kind: LpmTrie, key: 8, value: 4, entries: CLIENT_ROUTES },
            Spec { name: pinned::CLIENT_ROUTES6, kind: LpmTrie, key: 20, value: 4, entries: CLIENT_ROUTES },
            Spec {
                name: pinned::CLIENT_NEIGHBOURS,
                kind: LruHash,
                key: size_of::<filter::AddressKey>(),
                value: size_of::<lb_common::maps::ClientNeighbour>(),
                entries: CLIENT_NEIGHBOURS,
            },
            array(pinned::VRRP, 8, lb_common::maps::VRRP_INSTANCES),
            array(pinned::EXTENSIONS, size_of::<extension::Extension>(), self.extension_records()),
            Spec {
                name: pinned::REASONS,
                kind: PerCpuArray,
                key: 4,
                value: size_of::<verdict::Count>(),
                entries: verdict::REASONS,
            },
            array(pinned::SECRETS, size_of::<hash::Secrets>(), 1),
            Spec { name: pinned::OUTPUTS, kind: DevMapHash, key: 4, value: 8, entries: OUTPUTS },
        ]
    }
}

/// Client prefixes per family.
const CLIENT_ROUTES: u32 = 16_384;
/// Prefixes of all access lists, per family.
pub const ACCESS_PREFIXES: u32 = 1 << 18;
/// Directly attached clients that are remembered.
const CLIENT_NEIGHBOURS: u32 = 65_536;
/// Interfaces that frames may leave by.
const OUTPUTS: u32 = 256;

fn buckets_for(connections: u32) -> u32 {
    let entries = (connections as u64 * 8).div_ceil(7);
    let buckets = entries.div_ceil(connection::WAYS as u64).next_power_of_two();
    // Two at least: a shift by 64 places nothing.
    buckets.clamp(2, 1 << 28) as u32
}

/// What a map must look like.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub kind: MapType,
    pub key: usize,
    pub value: usize,
    pub entries: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pinned_map_has_a_size() {
        let specs = Sizes::default().specs();
        let mut names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), pinned::ALL.len());
        names.retain(|name| pinned::ALL.contains(name));
        assert_eq!(names.len(), pinned::ALL.len());
    }

    #[test]
    fn a_million_connections_take_no_more_than_64_bytes_each() {
        let sizes = Sizes { connections: 1_000_000, ..Sizes::default() };
        assert!(sizes.buckets() as u64 * 4 >= 1_000_000 * 8 / 7);
        assert!(sizes.buckets() as u64 * 64 <= 64 * 1_000_000);
    }

    #[test]
    fn every_capacity_that_a_manifest_may_state_gives_sizes_that_can_be_had() {
        use crate::model::{CONNECTIONS_MAX, REAL_SERVERS_MAX, SERVICES_MAX};
        for (connections, services, real_servers, pool) in [
            (*CONNECTIONS_MAX.start(), *SERVICES_MAX.start(), *REAL_SERVERS_MAX.start(), 0),
            (*CONNECTIONS_MAX.end(), *SERVICES_MAX.end(), *REAL_SERVERS_MAX.end(), 255),
        ] {
            let sizes = Sizes::for_capacity(connections, services, real_servers, pool);
            assert_eq!(sizes.check(), Ok(()), "{sizes:?}");
            assert!(sizes.destinations >= real_servers && sizes.services >= services);
        }
    }

    #[test]
    fn the_smallest_tables_still_have_bits_to_index_by() {
        let sizes = Sizes { connections: 14, connections_v6: 0, ..Sizes::default() };
        assert_eq!((sizes.buckets(), sizes.buckets_v6()), (4, 2));
        let config = sizes.config(250, 100);
        assert_eq!((config.bucket_shift, config.bucket_shift_v6), (62, 63));
        assert_eq!(sizes.check(), Ok(()));
        assert!(Sizes { pool_addresses: 256, ..sizes }.check().unwrap_err().contains("pool addresses"));
    }
}
