//! Which addresses follow which VRRP instance. An instance has a number for as long as it has addresses: the
//! index of its word. After a restart it is known again by its addresses, so that a role that the data plane
//! holds stays that of the same instance.

use super::{super::Error, Tables, addresses::Role};
use lb_common::{destination::flags, maps::VRRP_INSTANCES};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::Ordering::{Relaxed, Release},
};

/// The instances by name.
#[derive(Debug, Default)]
pub struct Instances(BTreeMap<String, u8>);

/// The VRRP instance's part of a destination's word.
const BITS: u64 = 0xff << (32 + flags::VRRP_SHIFT);

impl Tables {
    /// Makes these addresses, and no others, follow a VRRP instance; returns its number for
    /// [`crate::dataplane::VrrpRoles`]. An address follows one instance: it leaves any other. Whatever virtual
    /// services and pools have these addresses, now or later, follows it with them; so does an address that has
    /// none. A new instance is backup until its role is set. `accept`: its master's kernel gets what no virtual service
    /// takes (RFC 9568, section 6.1, Accept_Mode); otherwise only neighbour discovery.
    pub fn set_vrrp(&mut self, name: &str, addresses: &[IpAddr], accept: bool) -> Result<u8, Error> {
        let instance = match self.vrrp.0.get(name).copied().or_else(|| self.adoptable_instance(addresses)) {
            Some(instance) => instance,
            None => self.new_instance(name)?,
        };
        self.vrrp.0.insert(name.to_owned(), instance);
        for address in addresses {
            self.claim_address(name, *address, instance, accept)?;
            self.follow(*address, instance)?;
        }
        for (_, address) in self.addresses_of(name).into_iter().filter(|(role, _)| *role == Role::Vrrp) {
            if !addresses.contains(&address) {
                self.leave(name, address)?;
            }
        }
        Ok(instance)
    }

    /// The instance is no more: its addresses are served without condition, where a service has them.
    pub fn remove_vrrp(&mut self, name: &str) -> Result<(), Error> {
        for (_, address) in self.addresses_of(name).into_iter().filter(|(role, _)| *role == Role::Vrrp) {
            self.leave(name, address)?;
        }
        if let Some(instance) = self.vrrp.0.remove(name) {
            self.forget_word(instance);
        }
        Ok(())
    }

    /// The number of an instance.
    pub fn vrrp_instance(&self, name: &str) -> Option<u8> {
        self.vrrp.0.get(name).copied()
    }

    /// The instance that the tables' records name and no name claims yet, which has most of these addresses.
    fn adoptable_instance(&self, addresses: &[IpAddr]) -> Option<u8> {
        let mut votes = BTreeMap::<u8, usize>::new();
        for address in addresses {
            let instance = self.instance_of(*address);
            if instance != 0 && !self.vrrp.0.values().any(|claimed| *claimed == instance) {
                *votes.entry(instance).or_default() += 1;
            }
        }
        votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(instance, _)| instance)
    }

    fn new_instance(&mut self, name: &str) -> Result<u8, Error> {
        let named: BTreeSet<u8> = self.vrrp.0.values().copied().chain(self.instances_in_records()).collect();
        let free = (1..=u8::MAX).find(|n| !named.contains(n));
        let limit = VRRP_INSTANCES - 1;
        let hint = "a director has room for no more";
        let instance = free.ok_or(Error::Full { what: "VRRP instance", limit, hint })?;
        tracing::debug!("VRRP instance {name} has number {instance}");
        self.forget_word(instance);
        Ok(instance)
    }

    /// The word of nobody says backup.
    fn forget_word(&mut self, instance: u8) {
        let word = self.views.vrrp.word(instance.into(), 0);
        if word.swap(0, Release) != 0 {
            self.writes += 1;
        }
    }

    /// An address leaves its instance, unless another has it by now.
    fn leave(&mut self, name: &str, address: IpAddr) -> Result<(), Error> {
        if self.disclaim_address(name, address)? {
            self.follow(address, 0)?;
        }
        Ok(())
    }

    /// After the first complete apply: instances that nobody named are no more.
    pub(super) fn forget_unclaimed_instances(&mut self) -> Result<(), Error> {
        for (_, address) in self.unclaimed_addresses().into_iter().filter(|(role, _)| *role == Role::Vrrp) {
            self.leave(super::addresses::NOBODY, address)?;
        }
        for instance in 1..VRRP_INSTANCES as u16 {
            if !self.vrrp.0.values().any(|named| u16::from(*named) == instance) {
                self.forget_word(instance as u8);
            }
        }
        Ok(())
    }

    /// Lets the services and local addresses of an address follow an instance.
    fn follow(&mut self, address: IpAddr, instance: u8) -> Result<(), Error> {
        let services = self.services.by_index.iter_mut().filter(|(_, state)| state.vip == Some(address));
        let services: Vec<u32> = services.map(|(index, _)| *index).collect();
        for service in services {
            let mut record = self.views.services.get(service);
            record.vrrp = instance;
            self.writes += self.views.services.update(service, &record, super::services::SKIP) as u64;
            for index in self.destinations.indices_of_service(service) {
                let word = self.views.destinations.word(index, 0);
                let old = word.load(Relaxed);
                let new = old & !BITS | u64::from(instance) << (32 + flags::VRRP_SHIFT);
                if old != new {
                    word.store(new, Release);
                    self.writes += 1;
                }
            }
        }
        self.follow_places(address, instance)
    }
}
