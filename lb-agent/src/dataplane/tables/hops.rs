//! Next hops: one record for each neighbour and use, shared by all destinations behind it.

use super::{super::Error, Scan, Tables};
use crate::dataplane::indices::Indices;
use lb_common::{
    address::Address,
    connection::HOP_ON_LINK,
    destination::{HOP_FOR_CLIENTS, NextHop},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

/// Whose hop a record is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NextHopKey {
    pub neighbour: IpAddr,
    pub ifindex: u32,
    /// Outer and inner VLAN TCI, host order; 0 is none.
    pub vlans: [u16; 2],
    /// The way to clients: a NAT flow has 8 bits for its index, so these come from the lowest 254.
    pub for_clients: bool,
}

#[derive(Debug)]
struct Hop {
    index: u32,
    claimed: bool,
    removed: bool,
}

/// The hops in use and in quarantine.
#[derive(Debug)]
pub struct Hops {
    by_key: BTreeMap<NextHopKey, Hop>,
    by_index: BTreeMap<u32, NextHopKey>,
    to_clients: Indices,
    to_servers: Indices,
    first_to_servers: u32,
}

impl Hops {
    pub fn new(len: u32) -> Self {
        let clients = (HOP_ON_LINK as u32).min(len / 2);
        Self {
            by_key: BTreeMap::new(),
            by_index: BTreeMap::new(),
            to_clients: Indices::new(1, clients),
            to_servers: Indices::new(clients, len),
            first_to_servers: clients,
        }
    }

    fn indices(&mut self, for_clients: bool) -> &mut Indices {
        if for_clients { &mut self.to_clients } else { &mut self.to_servers }
    }

    /// Takes over a record found in the table. False when it says nothing of whose it is.
    pub fn recover(&mut self, index: u32, record: &NextHop) -> bool {
        let v6 = match record.family & 0xff {
            4 => false,
            6 => true,
            _ => return false,
        };
        let key = NextHopKey {
            neighbour: record.neighbour.to_ip(v6),
            ifindex: record.ifindex,
            vlans: [NextHop::tci(record.destination), NextHop::tci(record.source)],
            for_clients: record.family & HOP_FOR_CLIENTS != 0,
        };
        let in_its_part = (index < self.first_to_servers) == key.for_clients;
        if !in_its_part || record.ifindex == 0 || self.by_key.contains_key(&key) {
            return false;
        }
        self.indices(key.for_clients).claim(index);
        self.by_key.insert(key, Hop { index, claimed: false, removed: false });
        self.by_index.insert(index, key);
        true
    }

    /// Keeps an index out of use that the table names without saying whose it is.
    pub fn quarantine(&mut self, index: u32, now: Instant) {
        let indices = self.indices(index < self.first_to_servers);
        indices.claim(index);
        indices.retire(index, now);
    }

    /// Whose hop an index is.
    pub fn key(&self, index: u32) -> Option<NextHopKey> {
        self.by_index.get(&index).copied()
    }

    pub fn unclaimed(&self) -> Vec<NextHopKey> {
        self.by_key.iter().filter(|(_, hop)| !hop.claimed).map(|(key, _)| *key).collect()
    }
}

impl Tables {
    /// Makes a next hop what `record` says and returns its index. A change of MAC is one atomic word; a hop that
    /// is not resolved has interface 0, which the first call after a restart leaves as it was. `family` and `neighbour` of the record are filled from the key.
    pub fn set_next_hop(&mut self, key: &NextHopKey, record: &NextHop) -> Result<u32, Error> {
        let index = match self.hops.by_key.get_mut(key) {
            Some(hop) => {
                let was_claimed = std::mem::replace(&mut hop.claimed, true);
                let (index, was_removed) = (hop.index, std::mem::take(&mut hop.removed));
                if was_removed {
                    self.hops.indices(key.for_clients).revive(index);
                }
                // An agent that just started does not know its neighbours yet; the tables still do.
                if !was_claimed && record.ifindex == 0 {
                    return Ok(index);
                }
                index
            }
            None => self.allocate_hop(key)?,
        };
        let mut record = *record;
        record.family = if key.neighbour.is_ipv6() { 6 } else { 4 };
        if key.for_clients {
            record.family |= HOP_FOR_CLIENTS;
        }
        record.neighbour = Address::from(key.neighbour);
        self.writes += self.views.next_hops.update(index, &record, 0) as u64;
        Ok(index)
    }

    fn allocate_hop(&mut self, key: &NextHopKey) -> Result<u32, Error> {
        let mut index = self.hops.indices(key.for_clients).allocate();
        if index.is_none() {
            self.maintain()?;
            index = self.hops.indices(key.for_clients).allocate();
        }
        let limit = if key.for_clients {
            self.hops.first_to_servers - 1
        } else {
            self.views.next_hops.len() - self.hops.first_to_servers
        };
        let what = if key.for_clients { "next hop to clients" } else { "next hop" };
        let index = index.ok_or(Error::Full { what, limit, hint: super::MORE_REAL_SERVERS })?;
        self.hops.by_key.insert(*key, Hop { index, claimed: true, removed: false });
        self.hops.by_index.insert(index, *key);
        Ok(index)
    }

    /// The index of a hop in use.
    pub fn next_hop(&self, key: &NextHopKey) -> Option<u32> {
        self.hops.by_key.get(key).filter(|hop| !hop.removed).map(|hop| hop.index)
    }

    /// The hops in use.
    pub fn next_hops(&self) -> impl Iterator<Item = (&NextHopKey, u32)> {
        self.hops.by_key.iter().filter(|(_, hop)| !hop.removed).map(|(key, hop)| (key, hop.index))
    }

    /// Gives a hop up. Its record stays until no destination, client route or flow names it.
    pub fn remove_next_hop(&mut self, key: &NextHopKey) {
        if let Some(hop) = self.hops.by_key.get_mut(key).filter(|hop| !hop.removed) {
            hop.removed = true;
            let index = hop.index;
            self.hops.indices(key.for_clients).retire(index, Instant::now());
        }
    }

    pub(super) fn release_hops(&mut self, _now: Instant, scan: Option<&Scan>) {
        if !self.hops.to_clients.has_quarantined() && !self.hops.to_servers.has_quarantined() {
            return;
        }
        let mut named: BTreeSet<u32> = self.routes.values().copied().collect();
        named.extend(self.destinations.indices_in_use().map(|i| self.views.destinations.get(i).next_hop));
        let (quarantine, grace) = (self.quarantine, self.grace);
        let is_free = |index: u32, since| {
            !named.contains(&index)
                && Self::is_out_of_use(quarantine, grace, since, scan, |scan| scan.saw_hop(index))
        };
        let mut freed = self.hops.to_clients.release(is_free);
        freed.extend(self.hops.to_servers.release(is_free));
        for index in freed {
            self.writes += self.views.next_hops.update(index, &NextHop::default(), 0) as u64;
            if let Some(key) = self.hops.by_index.remove(&index) {
                self.hops.by_key.remove(&key);
            }
        }
    }
}
