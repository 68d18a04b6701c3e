//! The addresses that are ours in some way: the exact table and the filter's cells.

use super::{super::Error, Tables};
use crate::dataplane::cells;
use lb_common::{
    address::Address,
    filter::{AddressKey, AddressRecord, CELLS_PER_LINE, PeerKey, cell, role},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::Ordering::{Relaxed, Release},
};

/// What an address is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// The address of a service.
    Vip,
    /// A real server whose replies pass us (NAT).
    NatSource,
    /// A local address of FULLNAT, with its index in the pool.
    Pool(u16),
    /// An address of a VRRP instance, which alone gives it ([`Tables::set_vrrp`]).
    Vrrp,
    /// A VIP whose real servers are probed on the real path: what comes from it may be a reply.
    Probed,
    /// A VIP that this director is a real server of, beside others: [`Tables::set_peers`].
    Peered,
    /// A real server that tunnels lead to: errors about packets to it may be about them.
    Tunnel,
}

impl Role {
    fn bit(self) -> u16 {
        match self {
            Role::Vip => role::VIP,
            Role::NatSource => role::NAT_SOURCE,
            Role::Pool(_) => role::POOL,
            Role::Vrrp => role::VRRP,
            Role::Probed => role::PROBED,
            Role::Peered => role::PEERED,
            Role::Tunnel => role::TUNNEL,
        }
    }
}

/// Found in the tables after a restart: nobody's until somebody binds it.
pub(super) const NOBODY: &str = "";

#[derive(Debug, Default)]
pub struct State {
    owners: BTreeSet<(Role, String)>,
    /// The VRRP instance that it follows; 0 is none.
    vrrp: u8,
    /// That instance is without accept mode.
    refuses: bool,
    /// As written.
    record: AddressRecord,
}

#[derive(Debug, Default)]
pub struct Addresses {
    by_address: BTreeMap<IpAddr, State>,
    by_cell: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// IPv6 addresses of VRRP instances by the cell of their solicited-node address.
    solicited: BTreeMap<u32, BTreeSet<IpAddr>>,
}

pub fn key(address: IpAddr) -> AddressKey {
    AddressKey { address: Address::from(address), family: if address.is_ipv6() { 6 } else { 4 } }
}

impl Tables {
    /// Says that an address has a role for `owner` (a service's or a pool's name). It keeps the role until the
    /// last owner gives it up.
    pub fn bind_address(&mut self, owner: &str, role: Role, address: IpAddr) -> Result<(), Error> {
        let state = self.addresses.by_address.entry(address).or_default();
        // An owner's earlier index in the pool, and what the restart left, give way.
        state.owners.retain(|(other, who)| other.bit() != role.bit() || (who != owner && who != NOBODY));
        state.owners.insert((role, owner.to_owned()));
        let record = record_of(state);
        self.write_address(address, record)
    }

    /// Gives a role up. The address goes when nobody has a role for it any more.
    pub fn unbind_address(&mut self, owner: &str, role: Role, address: IpAddr) -> Result<(), Error> {
        let Some(state) = self.addresses.by_address.get_mut(&address) else { return Ok(()) };
        state.owners.retain(|(other, who)| other.bit() != role.bit() || who != owner);
        let record = record_of(state);
        self.write_address(address, record)
    }

    /// The owners of an address in a role.
    pub fn address_owners(&self, role: Role, address: IpAddr) -> Vec<&str> {
        let state = self.addresses.by_address.get(&address);
        let owners = state.into_iter().flat_map(|state| &state.owners);
        owners.filter(|(other, _)| other.bit() == role.bit()).map(|(_, who)| who.as_str()).collect()
    }

    /// What an owner has bound.
    pub fn addresses_of(&self, owner: &str) -> Vec<(Role, IpAddr)> {
        let all = self.addresses.by_address.iter();
        all.flat_map(|(address, state)| state.owners.iter().map(|(role, who)| (*role, *address, who)))
            .filter(|(_, _, who)| *who == owner)
            .map(|(role, address, _)| (role, address))
            .collect()
    }

    /// Makes an address one of a VRRP instance, and of no other. `accept`: see [`Tables::set_vrrp`].
    pub(super) fn claim_address(
        &mut self,
        name: &str,
        address: IpAddr,
        instance: u8,
        accept: bool,
    ) -> Result<(), Error> {
        let state = self.addresses.by_address.entry(address).or_default();
        state.owners.retain(|(role, _)| *role != Role::Vrrp);
        state.owners.insert((Role::Vrrp, name.to_owned()));
        (state.vrrp, state.refuses) = (instance, !accept);
        let record = record_of(state);
        self.write_address(address, record)
    }

    /// The reverse. False when the address is not the instance's.
    pub(super) fn disclaim_address(&mut self, name: &str, address: IpAddr) -> Result<bool, Error> {
        let Some(state) = self.addresses.by_address.get_mut(&address) else { return Ok(false) };
        if !state.owners.remove(&(Role::Vrrp, name.to_owned())) {
            return Ok(false);
        }
        (state.vrrp, state.refuses) = (0, false);
        let record = record_of(state);
        self.write_address(address, record)?;
        Ok(true)
    }

    /// The VRRP instance that an address follows; 0 is none.
    pub(super) fn instance_of(&self, address: IpAddr) -> u8 {
        self.addresses.by_address.get(&address).map_or(0, |state| state.vrrp)
    }

    /// The instances that some address follows.
    pub(super) fn instances_in_records(&self) -> impl Iterator<Item = u8> {
        self.addresses.by_address.values().map(|state| state.vrrp).filter(|instance| *instance != 0)
    }

    /// What the restart found and nobody has claimed.
    pub(super) fn unclaimed_addresses(&self) -> Vec<(Role, IpAddr)> {
        self.addresses_of(NOBODY)
    }

    fn write_address(&mut self, address: IpAddr, record: AddressRecord) -> Result<(), Error> {
        let Some(state) = self.addresses.by_address.get_mut(&address) else { return Ok(()) };
        if state.record == record {
            return Ok(());
        }
        let cell = self.views.cell_of(&Address::from(address), address.is_ipv6());
        state.record = record;
        if record.roles != 0 {
            // The exact answer first, then the cells that make packets ask for it.
            self.stores.addresses.insert(key(address), record)?;
            self.addresses.by_cell.entry(cell).or_default().insert(address);
            self.write_cell(cell);
            self.write_solicited(address, record.vrrp != 0);
        } else {
            self.addresses.by_address.remove(&address);
            if let Some(addresses) = self.addresses.by_cell.get_mut(&cell) {
                addresses.remove(&address);
            }
            self.write_solicited(address, false);
            self.write_cell(cell);
            self.stores.addresses.remove(&key(address))?;
        }
        self.writes += 1;
        Ok(())
    }

    /// Neighbour solicitations of an address go to its solicited-node address.
    fn write_solicited(&mut self, address: IpAddr, follows: bool) {
        let Some(group) = solicited_node(address) else { return };
        let cell = self.views.cell_of(&Address::from(group), true);
        let changed = if follows {
            self.addresses.solicited.entry(cell).or_default().insert(address)
        } else {
            self.addresses.solicited.get_mut(&cell).is_some_and(|addresses| addresses.remove(&address))
        };
        if changed {
            self.write_cell(cell);
        }
    }

    fn write_cell(&mut self, cell: u32) {
        let addresses = self.addresses.by_cell.get(&cell).into_iter().flatten();
        let mut value = cells::join(addresses.map(|address| &self.addresses.by_address[address].record));
        if self.addresses.solicited.get(&cell).is_some_and(|addresses| !addresses.is_empty()) {
            value |= cell::VRRP;
        }
        let at = self.views.filter.quarter(cell / CELLS_PER_LINE, (cell % CELLS_PER_LINE) as usize * 2);
        if at.load(Relaxed) != value {
            at.store(value, Release);
            self.writes += 1;
        }
    }

    pub(super) fn recover_addresses(&mut self) -> Result<(), Error> {
        for (key, record) in self.stores.addresses.entries()? {
            let address = key.address.to_ip(key.family == 6);
            let roles = [
                Role::Vip,
                Role::NatSource,
                Role::Pool(record.pool),
                Role::Vrrp,
                Role::Probed,
                Role::Peered,
                Role::Tunnel,
            ];
            let held = roles.into_iter().filter(|role| record.roles & role.bit() != 0);
            let owners = held.map(|role| (role, NOBODY.to_owned())).collect();
            let vrrp = record.vrrp as u8;
            let refuses = record.roles & role::REFUSES != 0;
            self.addresses.by_address.insert(address, State { owners, vrrp, refuses, record });
            let cell = self.views.cell_of(&key.address, key.family == 6);
            self.addresses.by_cell.entry(cell).or_default().insert(address);
            self.write_solicited(address, vrrp != 0);
        }
        // A kill between the writes of an address and its cell leaves a cell that says too much or too little.
        for cell in 0..self.views.filter.len() * CELLS_PER_LINE {
            self.write_cell(cell);
        }
        Ok(())
    }

    pub(super) fn remove_nobodys_addresses(&mut self) -> Result<(), Error> {
        for (role, address) in self.addresses_of(NOBODY) {
            self.unbind_address(NOBODY, role, address)?;
        }
        Ok(())
    }
}

impl Tables {
    /// Makes these the other real servers, (VIP, MAC), whose frames are for this host's kernel, and no others.
    pub fn set_peers(&mut self, peers: &BTreeSet<(IpAddr, [u8; 6])>) -> Result<(), Error> {
        let wanted: BTreeSet<PeerKey> = peers.iter().map(|(vip, mac)| peer_key(*vip, *mac)).collect();
        let mut there = BTreeSet::new();
        for (key, _) in self.stores.peers.entries()? {
            if wanted.contains(&key) {
                there.insert(key);
            } else {
                self.stores.peers.remove(&key)?;
                self.writes += 1;
            }
        }
        for key in wanted.difference(&there) {
            self.stores.peers.insert(*key, 1)?;
            self.writes += 1;
        }
        Ok(())
    }
}

fn peer_key(vip: IpAddr, mac: [u8; 6]) -> PeerKey {
    PeerKey { vip: Address::from(vip), mac, family: if vip.is_ipv6() { 6 } else { 4 } }
}

/// The multicast address to which an IPv6 address's solicitations go (RFC 4291, section 2.7.1).
fn solicited_node(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let [.., a, b, c] = v6.octets();
    Some(IpAddr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]))
}

fn record_of(state: &State) -> AddressRecord {
    let mut record = AddressRecord::default();
    for (role, _) in &state.owners {
        record.roles |= role.bit();
        if let Role::Pool(index) = role {
            record.pool = *index;
        }
    }
    if record.roles != 0 {
        record.vrrp = state.vrrp.into();
        record.roles |= if state.refuses { role::REFUSES } else { 0 };
    }
    record
}
