//! Pools of local addresses. A pool is a contiguous range of indices, since a service names it by first and
//! number; an address keeps its index as long as it is in the pool, since leases lie at it.

use super::{super::Error, Scan, Tables};
use lb_common::{
    address::Address,
    checksum,
    lease::{PoolAddress, port_share},
};
use std::{collections::BTreeMap, net::IpAddr, sync::atomic::Ordering::Relaxed, time::Instant};

#[derive(Clone, Debug)]
struct Place {
    record: PoolAddress,
    /// Set: leases nothing any more since then.
    retired: Option<Instant>,
    /// The pool; none: found in the table, not yet claimed.
    pool: Option<String>,
}

#[derive(Debug, Default)]
pub struct Pools {
    places: BTreeMap<u32, Place>,
    /// First index and number of each pool.
    pools: BTreeMap<String, (u32, u32)>,
    limit: u32,
}

impl Pools {
    pub fn new(limit: u32) -> Self {
        Self { limit, ..Self::default() }
    }

    pub fn recover(&mut self, index: u32, record: PoolAddress) {
        if record.family != 0 {
            self.places.insert(index, Place { record, retired: None, pool: None });
        }
    }

    fn room_for(&self, len: u32) -> Option<u32> {
        let mut first = 0;
        for used in self.places.keys() {
            if *used >= first + len {
                break;
            }
            first = used + 1;
        }
        (first + len <= self.limit).then_some(first)
    }

    /// The range of unclaimed places that holds all of those with one of these addresses.
    fn adoptable(&self, records: &[PoolAddress]) -> Option<(u32, u32)> {
        let unclaimed = |place: &Place| place.pool.is_none();
        let known = |place: &Place| records.iter().any(|r| same(r, &place.record));
        let mut found = self.places.iter().filter(|(_, p)| unclaimed(p) && known(p)).map(|(i, _)| *i);
        let first = found.next()?;
        let last = found.next_back().unwrap_or(first);
        let whole = (first..=last).all(|i| self.places.get(&i).is_some_and(unclaimed));
        whole.then_some((first, last - first + 1))
    }
}

fn same(a: &PoolAddress, b: &PoolAddress) -> bool {
    (a.address, a.family) == (b.address, b.family)
}

impl Tables {
    /// Makes a pool hold these addresses, of which this director leases share `index` of `of`; returns its first
    /// index and number for [`super::ServiceSpec::pool`]. An address that goes leases nothing more and keeps its
    /// index until its last lease ends. When the pool must grow and cannot where it is, it moves, and flows
    /// through its old place end.
    pub fn set_pool(
        &mut self,
        pool: &str,
        addresses: &[IpAddr],
        (index, of): (u32, u32),
    ) -> Result<(u16, u8), Error> {
        if of == 0 || index == 0 || index > of {
            return Err(Error::Refused(format!("pool {pool}: share {index} of {of} is no share")));
        }
        let records: Vec<_> =
            addresses.iter().map(|address| record(*address, index, of, self.instance_of(*address))).collect();
        let adopted = self.pools.pools.get(pool).copied().or_else(|| self.pools.adoptable(&records));
        let (mut first, mut len) = adopted.unwrap_or((0, 0));
        let mut missing = Vec::new();
        for record in &records {
            let at = (first..first + len).find(|i| same(&self.pools.places[i].record, record));
            match at {
                Some(at) => self.write_place(at, *record, None, pool)?,
                None => missing.push(*record),
            }
        }
        let now = Instant::now();
        for at in first..first + len {
            let place = self.pools.places[&at].clone();
            if !records.iter().any(|record| same(record, &place.record)) {
                let gone = PoolAddress { ports: 0, ..place.record };
                self.write_place(at, gone, place.retired.or(Some(now)), pool)?;
            }
        }
        let grown = len + missing.len() as u32;
        let stays = len > 0
            && (first + len..first + grown)
                .all(|at| at < self.pools.limit && !self.pools.places.contains_key(&at));
        if !stays && !missing.is_empty() {
            let elsewhere = self.allocate_places(records.len() as u32)?;
            self.retire_places(first, len, now)?;
            missing = records.clone();
            (first, len) = (elsewhere, 0);
        }
        for record in missing {
            self.write_place(first + len, record, None, pool)?;
            len += 1;
        }
        self.pools.pools.insert(pool.to_owned(), (first, len));
        self.set_pool_end();
        Ok((first as u16, len as u8))
    }

    /// The index of an address of a pool that may be leased.
    pub fn pool_index(&self, pool: &str, address: IpAddr) -> Option<u16> {
        let (first, len) = *self.pools.pools.get(pool)?;
        let wanted = record(address, 1, 1, 0);
        let mut places = self.pools.places.range(first..first + len);
        places.find(|(_, p)| p.retired.is_none() && same(&p.record, &wanted)).map(|(i, _)| *i as u16)
    }

    /// Removes a pool; its indices are free when its last lease has ended.
    pub fn remove_pool(&mut self, pool: &str) -> Result<(), Error> {
        match self.pools.pools.remove(pool) {
            Some((first, len)) => self.retire_places(first, len, Instant::now()),
            None => Ok(()),
        }
    }

    fn retire_places(&mut self, first: u32, len: u32, now: Instant) -> Result<(), Error> {
        for at in first..first + len {
            let place = self.pools.places[&at].clone();
            let record = PoolAddress { ports: 0, ..place.record };
            // No pool's any more: free as soon as it is drained.
            self.write_place(at, record, place.retired.or(Some(now)), "")?;
        }
        Ok(())
    }

    fn allocate_places(&mut self, len: u32) -> Result<u32, Error> {
        if self.pools.room_for(len).is_none() {
            self.maintain()?;
        }
        let limit = self.pools.limit;
        let full = Error::Full { what: "local address", limit, hint: super::MORE_LOCAL_ADDRESSES };
        self.pools.room_for(len).ok_or(full)
    }

    fn write_place(
        &mut self,
        at: u32,
        record: PoolAddress,
        retired: Option<Instant>,
        pool: &str,
    ) -> Result<(), Error> {
        if self.pools.places.get(&at).is_none_or(|place| place.record != record) {
            self.stores.pool.insert(at, record)?;
            self.writes += 1;
        }
        self.pools.places.insert(at, Place { record, retired, pool: Some(pool.to_owned()) });
        Ok(())
    }

    pub(super) fn release_pools(&mut self, scan: Option<&Scan>) -> Result<(), Error> {
        let (quarantine, grace) = (self.quarantine, self.grace);
        let drained: Vec<u32> = self
            .pools
            .places
            .iter()
            .filter(|(index, place)| {
                let has_leases = |scan: &Scan| scan.leases.get(**index as usize).is_some_and(|n| *n > 0);
                // A hole inside a pool stays: the pool's range must be whole.
                place.pool.as_deref() == Some("")
                    && place
                        .retired
                        .is_some_and(|since| Self::is_out_of_use(quarantine, grace, since, scan, has_leases))
            })
            .map(|(index, _)| *index)
            .collect();
        for index in drained {
            self.stores.pool.insert(index, PoolAddress::default())?;
            self.writes += 1;
            self.pools.places.remove(&index);
        }
        self.set_pool_end();
        Ok(())
    }

    /// Lets a local address follow a VRRP instance.
    pub(super) fn follow_places(&mut self, address: IpAddr, instance: u8) -> Result<(), Error> {
        let wanted = record(address, 1, 1, instance);
        for (index, place) in self.pools.places.iter_mut() {
            if same(&wanted, &place.record) && place.record.vrrp != instance {
                place.record.vrrp = instance;
                self.stores.pool.insert(*index, place.record)?;
                self.writes += 1;
            }
        }
        Ok(())
    }

    pub(super) fn retire_unclaimed_places(&mut self) -> Result<(), Error> {
        let unclaimed: Vec<u32> =
            self.pools.places.iter().filter(|(_, place)| place.pool.is_none()).map(|(i, _)| *i).collect();
        unclaimed.into_iter().try_for_each(|index| self.retire_places(index, 1, Instant::now()))
    }

    pub(super) fn set_pool_end(&self) {
        let end = self.pools.places.keys().next_back().map_or(0, |last| last + 1);
        // Never lower: leases of a place just freed are gone, but looking costs little and missing one much.
        self.views.pool_end.fetch_max(end, Relaxed);
    }
}

fn record(address: IpAddr, index: u32, of: u32, vrrp: u8) -> PoolAddress {
    let (first_port, ports) = port_share(index, of);
    let address_record = Address::from(address);
    PoolAddress {
        address: address_record,
        first_port,
        ports,
        sum: checksum::difference([0; 4], address_record.words()),
        family: if address.is_ipv6() { 6 } else { 4 },
        vrrp,
        reserved: [0; 6],
    }
}
