//! What a new flow of a service must meet, and how its server is chosen; access lists and QUIC server ids.

use super::{
    super::{Error, store::BoxStore},
    ServiceSpec, Tables,
};
use ipnet::IpNet;
use lb_common::service::{
    ACL_ALLOW, ACL_DENY, ACL_LIST_BITS, NoServer, QuicKey, Service, acl_key_v4, acl_key_v6, features,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Clients keep their server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Persistence {
    /// From the first flow on, whatever follows, in ticks.
    pub timeout: u16,
    /// Bits of an IPv4 client that count.
    pub prefix_v4: u8,
    /// Bits of an IPv6 client that count.
    pub prefix_v6: u8,
    /// New flows go on to a server of weight 0.
    pub despite_weight_zero: bool,
    /// By the SIP Call-ID (UDP), not by the client.
    pub sip: bool,
}

/// Where the server id lies in a QUIC connection id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quic {
    /// Bytes before it in the connection id.
    pub offset: u8,
    /// Its bytes, 1 to 8.
    pub len: u8,
}

/// What an access list says of a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Allow,
    Deny,
}

/// What a service asks of its new flows beyond a slot table. The default asks nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// The service whose cursor, limits and persistence this one shares; it must be there. None: its own.
    pub leader: Option<String>,
    /// Flows are counted at the real servers. Counted schedulers count in any case.
    pub counted: bool,
    /// A slot's server is looked at before it is taken: its weight, its thresholds, whether it drains.
    pub checked: bool,
    pub persistence: Option<Persistence>,
    /// Number of the access list ([`Tables::set_access_list`]), and what it says of sources that it does not name.
    pub access: Option<(u16, Access)>,
    /// New flows a second; 0 is no limit.
    pub new_per_second: u32,
    pub no_server: NoServer,
    /// A hash service whose slot's server cannot be used takes another.
    pub fallback: bool,
    /// UDP under DR and TUN: every packet is scheduled.
    pub one_packet: bool,
    pub quic: Option<Quic>,
    /// Of equally good servers the last of the list is taken.
    pub last_first: bool,
    /// Of equally good servers not always the same one is taken.
    pub rotate: bool,
    /// Hash services hash so many bits of the source: IPv4, IPv6.
    pub hash_prefix: Option<(u8, u8)>,
    /// UDP flows count as inactive.
    pub udp_inactive: bool,
    /// The control channel of FTP is read; real servers have the service's one port, by NAT or FULLNAT.
    pub ftp: bool,
    /// TCP under NAT and FULLNAT: the PROXY header goes before the client's first bytes.
    pub proxy: bool,
    /// TCP under FULLNAT: the client's address goes to the server as a TCP option.
    pub toa: bool,
    /// TCP under NAT and FULLNAT: when SYNs are answered with cookies.
    pub cookies: Cookies,
}

/// When SYNs of a service are answered with cookies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Cookies {
    #[default]
    Never,
    /// Above [`lb_common::guard::Guard::cookies_above`].
    Above,
    Always,
}

/// The features of a service.
pub fn features_of(spec: &ServiceSpec) -> u32 {
    let rules = &spec.rules;
    let ipvs_hash = matches!(
        spec.pick,
        lb_common::service::Pick::IpvsSh
            | lb_common::service::Pick::IpvsShPort
            | lb_common::service::Pick::IpvsMh
            | lb_common::service::Pick::IpvsMhPort
    );
    let persistence = rules.persistence.as_ref();
    let tcp = spec.protocol == lb_common::header::protocol::TCP;
    let mut all = 0;
    for (set, feature) in [
        (spec.pick.walks() || ipvs_hash || rules.checked || rules.fallback, features::CHOOSE),
        (persistence.is_some(), features::PERSISTENT),
        (persistence.is_some_and(|p| p.sip), features::SIP),
        (persistence.is_some_and(|p| p.despite_weight_zero), features::STICKY_QUIESCED),
        (rules.access.is_some(), features::ACL),
        (matches!(rules.access, Some((_, Access::Deny))), features::ACL_REFUSES_OTHERS),
        (rules.new_per_second != 0, features::RATE),
        (rules.fallback, features::FALLBACK),
        (rules.one_packet, features::ONE_PACKET),
        (rules.quic.is_some(), features::QUIC),
        (rules.last_first, features::LAST_FIRST),
        (rules.rotate, features::ROTATE),
        (rules.hash_prefix.is_some(), features::HASH_PREFIX),
        (rules.udp_inactive, features::UDP_INACTIVE),
        (rules.ftp, features::FTP),
        (rules.proxy, features::PROXY),
        (tcp && rules.toa, features::TOA),
        (tcp && rules.cookies != Cookies::Never, features::COOKIES),
        (tcp && rules.cookies == Cookies::Always, features::COOKIES_ALWAYS),
        (rules.counted || spec.pick.is_counted(), features::COUNTED),
    ] {
        all |= if set { feature } else { 0 };
    }
    all
}

/// The features of a record found in the tables.
pub fn recovered(record: &Service) -> u32 {
    record.features
}

/// The part of a service's record that the rules say.
pub fn record(rules: &Rules) -> Service {
    let (hash_v4, hash_v6) = rules.hash_prefix.unwrap_or((32, 128));
    let persistence = rules.persistence;
    Service {
        acl: rules.access.map_or(0, |(list, _)| list),
        new_per_second: rules.new_per_second,
        persist_timeout: persistence.map_or(0, |p| p.timeout),
        persist_v4: persistence.map_or(0, |p| p.prefix_v4),
        persist_v6: persistence.map_or(0, |p| p.prefix_v6),
        hash_v4,
        hash_v6,
        no_server: rules.no_server as u8,
        quic_offset: rules.quic.map_or(0, |q| q.offset),
        quic_len: rules.quic.map_or(0, |q| q.len),
        ..Service::default()
    }
}

type Key4 = (u32, [u8; 8]);
type Key6 = (u32, [u8; 20]);

/// The access lists in the tables.
#[derive(Debug, Default)]
pub struct AccessLists {
    /// The number of each service's own list, by the service's index, and the other way round.
    of_service: BTreeMap<u32, u16>,
    services: BTreeMap<u16, u32>,
    v4: BTreeMap<u16, BTreeMap<Key4, u32>>,
    v6: BTreeMap<u16, BTreeMap<Key6, u32>>,
}

impl Tables {
    /// Makes an access list (1 to 65,535) what is asked: prefixes, each allowed or denied; the longest that holds a
    /// source decides. Only what differs is written, what is new before what is gone. No rules remove the list.
    pub fn set_access_list(&mut self, list: u16, rules: &[(IpNet, Access)]) -> Result<(), Error> {
        if list == 0 {
            return Err(Error::Refused("access list 0 is none".into()));
        }
        let (mut v4, mut v6) = (BTreeMap::new(), BTreeMap::new());
        for (prefix, access) in rules {
            let value = match access {
                Access::Allow => ACL_ALLOW,
                Access::Deny => ACL_DENY,
            };
            let len = ACL_LIST_BITS + prefix.prefix_len() as u32;
            match prefix.network() {
                IpAddr::V4(address) => {
                    v4.insert((len, acl_key_v4(list, address.octets())), value);
                }
                IpAddr::V6(address) => {
                    v6.insert((len, acl_key_v6(list, address.octets())), value);
                }
            }
        }
        let old = self.access.v4.remove(&list).unwrap_or_default();
        self.writes += replace(&mut self.stores.acl4, &old, &v4)?;
        let old = self.access.v6.remove(&list).unwrap_or_default();
        self.writes += replace(&mut self.stores.acl6, &old, &v6)?;
        if !v4.is_empty() {
            self.access.v4.insert(list, v4);
        }
        if !v6.is_empty() {
            self.access.v6.insert(list, v6);
        }
        Ok(())
    }

    /// The number of a service's own access list; it gets one if it has none.
    pub fn access_list_of(&mut self, service: u32) -> Result<u16, Error> {
        if let Some(list) = self.access.of_service.get(&service) {
            return Ok(*list);
        }
        // Numbers are given in order, and again from 1 on when all were given once.
        let last = self.access.services.last_key_value().map_or(0, |(list, _)| *list);
        let after = last.checked_add(1);
        let free = after.or_else(|| (1..=u16::MAX).find(|list| !self.access.services.contains_key(list)));
        let list = free.ok_or_else(|| {
            Error::Refused(format!("{} services have access lists, and there are no more numbers", u16::MAX))
        })?;
        self.own_access_list(service, list);
        Ok(list)
    }

    fn own_access_list(&mut self, service: u32, list: u16) {
        self.access.of_service.insert(service, list);
        self.access.services.insert(list, service);
    }

    /// Removes a service's own access list, if it has one.
    pub fn forget_access_list(&mut self, service: u32) -> Result<(), Error> {
        let Some(list) = self.access.of_service.remove(&service) else { return Ok(()) };
        self.access.services.remove(&list);
        self.set_access_list(list, &[])
    }

    /// The access lists that are in the tables.
    pub fn access_lists(&self) -> BTreeSet<u16> {
        self.access.v4.keys().chain(self.access.v6.keys()).copied().collect()
    }

    /// Removes lists that belong to no service: an agent that was killed between two steps left them.
    pub(super) fn forget_lost_access_lists(&mut self) -> Result<(), Error> {
        let lost = self.access_lists().into_iter().filter(|list| !self.access.services.contains_key(list));
        for list in lost.collect::<Vec<_>>() {
            self.set_access_list(list, &[])?;
        }
        Ok(())
    }

    pub(super) fn recover_access(&mut self) -> Result<(), Error> {
        let owners: Vec<u32> = self.services.by_index.keys().copied().collect();
        for index in owners {
            let record = self.views.services.get(index);
            // An endpoint of a service has its leader's.
            if record.acl != 0 && record.leader == index {
                self.own_access_list(index, record.acl);
            }
        }
        let list = |bytes: &[u8]| u16::from_be_bytes([bytes[2], bytes[3]]);
        for (key, value) in self.stores.acl4.entries()? {
            self.access.v4.entry(list(&key.1)).or_default().insert(key, value);
        }
        for (key, value) in self.stores.acl6.entries()? {
            self.access.v6.entry(list(&key.1)).or_default().insert(key, value);
        }
        Ok(())
    }

    /// Gives a service the server ids of its real servers: (id, destination). Ids are 1 to 8 bytes long.
    pub fn set_quic_ids(&mut self, service: &str, ids: &[(Vec<u8>, u32)]) -> Result<(), Error> {
        let index = self.service_of(service)?;
        let mut wanted = BTreeMap::new();
        for (id, destination) in ids {
            if id.is_empty() || id.len() > 8 {
                return Err(Error::Refused(format!(
                    "a QUIC server id has 1 to 8 bytes, this one {}",
                    id.len()
                )));
            }
            let mut key = QuicKey { service: index, len: id.len() as u32, id: [0; 8] };
            key.id[..id.len()].copy_from_slice(id);
            wanted.insert(key, *destination);
        }
        let old = self.quic_ids_of(index);
        self.writes += replace(&mut self.stores.quic_ids, &old, &wanted)?;
        self.quic.retain(|key, _| key.service != index);
        self.quic.extend(wanted);
        Ok(())
    }

    fn quic_ids_of(&self, service: u32) -> BTreeMap<QuicKey, u32> {
        self.quic.iter().filter(|(key, _)| key.service == service).map(|(k, v)| (*k, *v)).collect()
    }

    pub(super) fn forget_quic_ids(&mut self, service: u32) -> Result<(), Error> {
        let old = self.quic_ids_of(service);
        self.writes += replace(&mut self.stores.quic_ids, &old, &BTreeMap::new())?;
        self.quic.retain(|key, _| key.service != service);
        Ok(())
    }
}

/// Makes a store hold `new` instead of `old`. Returns the number of writes.
fn replace<K: Copy + Ord, V: Copy + PartialEq>(
    store: &mut BoxStore<K, V>,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Result<u64, Error> {
    let mut writes = 0;
    for (key, value) in new.iter().filter(|(key, value)| old.get(key) != Some(value)) {
        store.insert(*key, *value)?;
        writes += 1;
    }
    for key in old.keys().filter(|key| !new.contains_key(key)) {
        store.remove(key)?;
        writes += 1;
    }
    Ok(writes)
}
