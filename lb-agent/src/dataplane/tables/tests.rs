//! The tables over ordinary memory: what an apply writes, what stays, what comes back after a restart.

use super::*;
use crate::dataplane::{Clock, Ports, Sizes, Sweeper};
use lb_common::{
    connection::{Kind, Value},
    destination::{Forwarding, NextHop, flags},
    filter::{CELLS_PER_LINE, PeerKey, cell, role},
    hash::Secrets,
    maps::ON_LINK,
    service::{OnUnknownFlow, Pick, ServerEntry},
    state::State,
};
use std::{
    collections,
    net::IpAddr,
    sync::{Mutex, atomic::Ordering::Relaxed},
};

/// A table that outlives the `Tables` that fill it, as the kernel's do.
#[derive(Clone)]
struct Shared<K, V>(Arc<Mutex<collections::HashMap<K, V>>>);

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Copy + Eq + std::hash::Hash + Send, V: Clone + Send> super::super::store::Store<K, V>
    for Shared<K, V>
{
    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }
    fn insert(&mut self, key: K, value: V) -> Result<(), Error> {
        self.0.lock().unwrap().insert(key, value);
        Ok(())
    }
    fn remove(&mut self, key: &K) -> Result<(), Error> {
        self.0.lock().unwrap().remove(key);
        Ok(())
    }
    fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        Ok(self.0.lock().unwrap().iter().map(|(k, v)| (*k, v.clone())).collect())
    }
}

/// A kernel of ordinary memory.
struct Kernel {
    views: Arc<Views>,
    board: Arc<Board>,
    service_index: Shared<ServiceKey, u32>,
    port_ranges: Shared<u32, PortRanges>,
    pool: Shared<u32, PoolAddress>,
    addresses: Shared<AddressKey, AddressRecord>,
    routes4: Shared<(u32, [u8; 4]), u32>,
    routes6: Shared<(u32, [u8; 16]), u32>,
    traffic: Shared<u32, Vec<Traffic>>,
    rates: Shared<u32, Rate>,
    acl4: Shared<(u32, [u8; 8]), u32>,
    acl6: Shared<(u32, [u8; 20]), u32>,
    quic_ids: Shared<QuicKey, u32>,
    peers: Shared<PeerKey, u32>,
    paths: Shared<AddressKey, u32>,
}

impl Kernel {
    fn new() -> Self {
        let sizes = Sizes {
            connections: 14,
            connections_v6: 0,
            services: 4,
            port_ranges: 4,
            destinations: 8,
            next_hops: 16,
            slots: 64,
            pool_addresses: 4,
            extensions: 1,
        };
        let views = Views::in_memory(
            &sizes,
            Secrets::from_random(std::array::from_fn(|i| {
                (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
            })),
            sizes.config(250, 1),
        )
        .unwrap();
        Self {
            views: Arc::new(views),
            board: Arc::default(),
            service_index: Shared::default(),
            port_ranges: Shared::default(),
            pool: Shared::default(),
            addresses: Shared::default(),
            routes4: Shared::default(),
            routes6: Shared::default(),
            traffic: Shared::default(),
            rates: Shared::default(),
            acl4: Shared::default(),
            acl6: Shared::default(),
            quic_ids: Shared::default(),
            peers: Shared::default(),
            paths: Shared::default(),
        }
    }

    /// What an agent finds when it starts. Time stands still for its grace periods.
    fn tables(&self) -> Tables {
        let stores = Stores {
            service_index: Box::new(self.service_index.clone()),
            port_ranges: Box::new(self.port_ranges.clone()),
            pool: Box::new(self.pool.clone()),
            addresses: Box::new(self.addresses.clone()),
            routes4: Box::new(self.routes4.clone()),
            routes6: Box::new(self.routes6.clone()),
            traffic: Box::new(self.traffic.clone()),
            rates: Box::new(self.rates.clone()),
            acl4: Box::new(self.acl4.clone()),
            acl6: Box::new(self.acl6.clone()),
            quic_ids: Box::new(self.quic_ids.clone()),
            peers: Box::new(self.peers.clone()),
            paths: Box::new(self.paths.clone()),
            port_range_lists: 4,
        };
        let mut tables = Tables::recover(self.views.clone(), self.board.clone(), stores).unwrap();
        tables.grace = Duration::ZERO;
        tables
    }

    /// A walk of the real sweeper.
    fn sweep(&self) {
        let clock = Arc::new(Clock::fixed(0, 250));
        let hour = Duration::from_secs(3600);
        let _sweeper = Sweeper::spawn(self.views.clone(), clock, self.board.clone(), hour).unwrap();
        self.board.sweep_now(Duration::from_secs(10)).expect("a walk");
    }

    fn service_at(&self, vip: &str, port: u16) -> Option<u32> {
        self.service_index.0.lock().unwrap().get(&bindings::key(ip(vip), 6, port)).copied()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn spec(name: &str, ports: &[Ports]) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        vip: ip("203.0.113.10"),
        protocol: 6,
        ports: ports.to_vec(),
        pick: Pick::Cursor,
        on_unknown_flow: OnUnknownFlow::Reset,
        mss: 0,
        timeouts: [9; 16],
        pool: None,
        rules: Rules::default(),
    }
}

fn real(service: &str, address: &str) -> DestinationKey {
    DestinationKey::new(service, ip(address), 0, Forwarding::Dr)
}

const PATH: DestinationSpec = DestinationSpec {
    next_hop: 3,
    mtu: 1500,
    timeout: 1800,
    vip_port: 0,
    local: false,
    tunnel: Tunnel { flags: 0, port: 0 },
    standing: Standing::DEFAULT,
};

fn hop(neighbour: &str, for_clients: bool) -> NextHopKey {
    NextHopKey { neighbour: ip(neighbour), ifindex: 2, vlans: [0, 0], for_clients }
}

fn hop_record(last: u8) -> NextHop {
    NextHop {
        destination: NextHop::pack([2, 0, 0, 0, 0, last], 0),
        source: NextHop::pack([2, 0, 0, 0, 0, 1], 0),
        ifindex: 2,
        mtu: 1500,
        ..NextHop::default()
    }
}

/// A whole configuration; what an apply does.
fn apply(tables: &mut Tables) -> Vec<u32> {
    let gateway = tables.set_next_hop(&hop("192.0.2.1", true), &hop_record(1)).unwrap();
    let next_hop = tables.set_next_hop(&hop("10.0.0.11", false), &hop_record(11)).unwrap();
    let routes = [
        ("0.0.0.0/0".parse().unwrap(), ClientVia::NextHop(gateway)),
        ("2001:db8::/32".parse().unwrap(), ClientVia::OnLink),
    ];
    tables.set_client_routes(&routes).unwrap();
    let pool = tables.set_pool("pool-a", &[ip("10.0.0.200"), ip("10.0.0.201")], (1, 2)).unwrap();
    let index = tables.pool_index("pool-a", ip("10.0.0.201")).unwrap();
    tables.bind_address("pool-a", Role::Pool(index), ip("10.0.0.201")).unwrap();
    let mut indices = vec![gateway, next_hop, pool.0 as u32];
    for (name, ports) in [
        ("web", vec![Ports::One(80), Ports::One(443)]),
        ("ftp", vec![Ports::Range(8000, 8099)]),
        ("rest", vec![Ports::Any]),
    ] {
        tables.bind_address(name, Role::Vip, ip("203.0.113.10")).unwrap();
        let service = tables.ensure_service(&spec(name, &ports)).unwrap();
        let a = tables.ensure_destination(&real(name, "10.0.0.11"), &DestinationSpec { next_hop, ..PATH });
        let b = tables.ensure_destination(&real(name, "10.0.0.12"), &PATH);
        let (a, b) = (a.unwrap(), b.unwrap());
        tables.set_slots(name, &[Some(a), Some(b), None]).unwrap();
        tables.bind_ports(name, &ports).unwrap();
        indices.extend([service, a, b]);
    }
    assert_eq!(tables.set_vrrp("edge", &[ip("203.0.113.10")], true).unwrap(), 1);
    indices
}

#[test]
fn an_unchanged_apply_writes_nothing() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let first = apply(&mut tables);
    let writes = tables.writes();
    assert!(writes > 30, "{writes}");
    assert_eq!(apply(&mut tables), first);
    assert_eq!(tables.writes(), writes);
}

#[test]
fn a_restarted_agent_finds_every_index_again_and_writes_nothing() {
    let kernel = Kernel::new();
    let first = apply(&mut kernel.tables());
    let mut tables = kernel.tables();
    assert_eq!(apply(&mut tables), first);
    tables.finish_recovery().unwrap();
    assert_eq!(tables.writes(), 0);
}

#[test]
fn what_nobody_claims_after_a_restart_goes() {
    let kernel = Kernel::new();
    apply(&mut kernel.tables());
    let mut tables = kernel.tables();
    tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    tables.ensure_destination(&real("web", "10.0.0.12"), &PATH).unwrap();
    tables.bind_address("web", Role::Vip, ip("203.0.113.10")).unwrap();
    tables.bind_ports("web", &[Ports::One(80)]).unwrap();
    tables.finish_recovery().unwrap();
    assert_eq!(kernel.service_index.0.lock().unwrap().len(), 1, "443, the range and any went");
    assert_eq!(tables.destinations_of("web").len(), 1);
    assert_eq!(kernel.addresses.0.lock().unwrap().len(), 1, "the VIP, which has an owner");
    for _ in 0..2 {
        kernel.sweep();
        tables.maintain().unwrap();
    }
    let live = (0..8).filter(|i| kernel.views.destinations.word(*i, 0).load(Relaxed) != 0).count();
    assert_eq!(live, 1);
    let valid = (0..4).filter(|i| kernel.views.services.get(*i).flags != 0).count();
    assert_eq!(valid, 1);
    assert!(kernel.pool.0.lock().unwrap().values().all(|place| place.family == 0));
}

#[test]
fn a_removed_destination_keeps_its_index_while_a_flow_names_it() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    let index = tables.ensure_destination(&real("web", "10.0.0.11"), &PATH).unwrap();
    kernel.traffic.0.lock().unwrap().insert(index, vec![Traffic { packets_in: 5, ..Traffic::default() }; 2]);
    let entry = kernel.views.value(1, 2);
    entry.store(Value::flow(Kind::Flow, index, 0, State::Established, 100).0, Relaxed);
    assert!(tables.remove_destination(&real("web", "10.0.0.11")).unwrap());
    assert!(!tables.remove_destination(&real("web", "10.0.0.11")).unwrap());
    let flags_of = |index| Destination::flags_of(kernel.views.destinations.word(index, 0).load(Relaxed));
    assert_eq!(flags_of(index) & (flags::REMOVED | flags::VALID), flags::REMOVED | flags::VALID);
    kernel.sweep();
    tables.maintain().unwrap();
    let other = tables.ensure_destination(&real("web", "10.0.0.12"), &PATH).unwrap();
    assert_ne!(other, index, "a flow still goes there");
    assert_eq!(tables.ensure_destination(&real("web", "10.0.0.11"), &PATH).unwrap(), index, "its old index");
    assert_eq!(flags_of(index) & flags::REMOVED, 0);
    tables.remove_destination(&real("web", "10.0.0.11")).unwrap();
    tables.maintain().unwrap();
    assert_ne!(flags_of(index), 0, "the last walk began before the removal");
    entry.store(0, Relaxed);
    kernel.sweep();
    tables.maintain().unwrap();
    assert_eq!(flags_of(index), 0, "nothing names it any more");
    let traffic = kernel.traffic.0.lock().unwrap();
    let retired: u64 = traffic[&8].iter().map(|cpu| cpu.packets_in).sum();
    assert_eq!((retired, traffic[&index][0]), (10, Traffic::default()));
}

#[test]
fn without_quarantine_an_index_is_given_out_again_at_once() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    tables.disable_quarantine();
    tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    let index = tables.ensure_destination(&real("web", "10.0.0.11"), &PATH).unwrap();
    tables.remove_destination(&real("web", "10.0.0.11")).unwrap();
    tables.maintain().unwrap();
    assert_eq!(tables.ensure_destination(&real("web", "10.0.0.12"), &PATH).unwrap(), index);
}

#[test]
fn a_full_table_says_which_and_how_many() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    for i in 0..8 {
        tables.ensure_destination(&real("web", &format!("10.0.0.{i}")), &PATH).unwrap();
    }
    let error = tables.ensure_destination(&real("web", "10.0.1.1"), &PATH).unwrap_err().to_string();
    assert!(error.contains("real server") && error.contains("all 8"), "{error}");
}

#[test]
fn slots_are_switched_by_one_word_to_a_range_of_their_own() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let service = tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    let word = || kernel.views.services.word(service, 0).load(Relaxed);
    let content = |word| {
        let (first, len) = Service::slots_of(word);
        (first..first + len).map(|i| kernel.views.slot(i).load(Relaxed)).collect::<Vec<_>>()
    };
    tables.set_slots("web", &[Some(0), Some(1), None]).unwrap();
    let old = word();
    assert_eq!(content(old), [1, 2, 0]);
    tables.set_slots("web", &[Some(1)]).unwrap();
    assert_eq!((content(word()), content(old)), (vec![2], vec![1, 2, 0]), "a reader of the old word is safe");
    assert_eq!(tables.slots_of("web"), Some((1, 2)));
    let writes = tables.writes();
    tables.set_slots("web", &[Some(1)]).unwrap();
    assert_eq!(tables.writes(), writes);
    // 64 slots: this fits only if the old ranges come back.
    for i in 0..20 {
        tables.set_slots("web", &vec![Some(i); 30]).unwrap();
    }
    assert!(tables.set_slots("web", &vec![Some(1); 65]).unwrap_err().to_string().contains("slot table"));
    tables.set_slots("web", &[]).unwrap();
    assert_eq!(tables.slots_of("web").unwrap().0, 0);
}

#[test]
fn a_port_changes_hands_without_a_moment_of_nobody() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let a = tables.ensure_service(&spec("a", &[Ports::One(80)])).unwrap();
    let b = tables.ensure_service(&spec("b", &[Ports::One(81)])).unwrap();
    tables.bind_ports("a", &[Ports::One(80)]).unwrap();
    assert_eq!(kernel.service_at("203.0.113.10", 80), Some(a));
    let writes = tables.writes();
    tables.bind_ports("b", &[Ports::One(80)]).unwrap();
    assert_eq!(tables.writes(), writes + 1);
    tables.bind_ports("a", &[]).unwrap();
    assert_eq!(kernel.service_at("203.0.113.10", 80), Some(b), "the former owner takes nothing with it");
    assert_eq!(tables.writes(), writes + 1);
    assert!(tables.bind_ports("a", &[Ports::One(0)]).is_err());
}

#[test]
fn ranges_of_two_services_share_a_list_and_overlap_is_refused() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let a = tables.ensure_service(&spec("a", &[Ports::Range(8000, 8099)])).unwrap();
    let b = tables.ensure_service(&spec("b", &[Ports::Any])).unwrap();
    tables.bind_ports("b", &[Ports::Any]).unwrap();
    tables.bind_ports("a", &[Ports::Range(8000, 8099)]).unwrap();
    let list = kernel.service_at("203.0.113.10", 0).unwrap();
    let ranges = super::super::ports::list(&kernel.port_ranges.0.lock().unwrap()[&list]);
    assert_eq!(ranges.iter().map(|r| (r.first, r.service)).collect::<Vec<_>>(), [(8000, a), (0, b)]);
    tables.ensure_service(&spec("c", &[])).unwrap();
    assert!(tables.bind_ports("c", &[Ports::Range(8050, 8200)]).unwrap_err().to_string().contains("overlap"));
    tables.bind_ports("a", &[]).unwrap();
    tables.bind_ports("b", &[]).unwrap();
    assert_eq!(kernel.service_at("203.0.113.10", 0), None);
}

#[test]
fn another_vip_under_a_name_is_another_service() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let old = tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    tables.bind_ports("web", &[Ports::One(80)]).unwrap();
    let moved = ServiceSpec { vip: ip("203.0.113.11"), ..spec("web", &[Ports::One(80)]) };
    assert_ne!(tables.ensure_service(&moved).unwrap(), old);
    assert_eq!(kernel.service_at("203.0.113.10", 80), None);
}

#[test]
fn an_address_stays_ours_until_its_last_owner_goes() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let address = ip("203.0.113.10");
    let at = kernel.views.cell_of(&address.into(), false);
    let cell_now = || kernel.views.filter.quarter(at / CELLS_PER_LINE, (at % CELLS_PER_LINE) as usize * 2);
    let roles = || kernel.addresses.0.lock().unwrap().get(&addresses::key(address)).map(|r| r.roles);
    tables.bind_address("a", Role::Vip, address).unwrap();
    tables.bind_address("b", Role::Vip, address).unwrap();
    tables.bind_address("b", Role::Pool(1), address).unwrap();
    assert_eq!(cell_now().load(Relaxed), cell::VIP | 2 << cell::POOL_SHIFT);
    tables.unbind_address("a", Role::Vip, address).unwrap();
    tables.unbind_address("b", Role::Pool(1), address).unwrap();
    assert_eq!((cell_now().load(Relaxed), roles()), (cell::VIP, Some(role::VIP)));
    tables.unbind_address("b", Role::Vip, address).unwrap();
    assert_eq!((cell_now().load(Relaxed), roles()), (0, None));
}

#[test]
fn a_pool_keeps_the_indices_of_addresses_that_stay() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let (a, b, c) = (ip("10.0.0.200"), ip("10.0.0.201"), ip("10.0.0.202"));
    assert_eq!(tables.set_pool("p", &[a, b], (1, 1)).unwrap(), (0, 2));
    assert_eq!(tables.set_pool("p", &[b, c], (1, 1)).unwrap(), (0, 3), "a is kept for its leases");
    let ports = |i: u32| kernel.pool.0.lock().unwrap()[&i].ports;
    assert_eq!((ports(0), ports(1) > 0, ports(2) > 0), (0, true, true));
    assert_eq!((tables.pool_index("p", a), tables.pool_index("p", c)), (None, Some(2)));
    assert!(tables.set_pool("q", &[a, b], (1, 1)).unwrap_err().to_string().contains("local address"));
    tables.remove_pool("p").unwrap();
    kernel
        .views
        .leases
        .word(lb_common::lease::lease_index(1, 5000), 8)
        .store(Value::flow(Kind::FullNat, 0, 0, State::Established, 100).0, Relaxed);
    kernel.sweep();
    tables.maintain().unwrap();
    assert_eq!(tables.set_pool("q", &[a, b], (1, 1)).unwrap(), (2, 2), "1 still has a lease");
    assert!(tables.set_pool("r", &[a], (3, 2)).is_err());
}

#[test]
fn hops_to_clients_have_indices_of_eight_bits_and_a_mac_is_one_write() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let server = tables.set_next_hop(&hop("10.0.0.11", false), &hop_record(11)).unwrap();
    let client = tables.set_next_hop(&hop("10.0.0.11", true), &hop_record(11)).unwrap();
    assert_eq!((client, server), (1, 8));
    let writes = tables.writes();
    tables.set_next_hop(&hop("10.0.0.11", false), &hop_record(12)).unwrap();
    assert_eq!(tables.writes(), writes + 1);
    let error = tables.set_client_routes(&[("0.0.0.0/0".parse().unwrap(), ClientVia::NextHop(0))]);
    assert!(error.unwrap_err().to_string().contains("1 to 254"));
}

#[test]
fn a_hop_is_free_when_neither_destination_nor_route_nor_flow_names_it() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let key = hop("192.0.2.1", true);
    let index = tables.set_next_hop(&key, &hop_record(1)).unwrap();
    tables.set_client_routes(&[("0.0.0.0/0".parse().unwrap(), ClientVia::NextHop(index))]).unwrap();
    kernel.views.value(0, 0).store(Value::nat_reply(0, 1, 0, State::Established, 9).0, Relaxed);
    tables.remove_next_hop(&key);
    let record = || kernel.views.next_hops.get(index);
    for named in ["route", "flow"] {
        kernel.sweep();
        tables.maintain().unwrap();
        assert_ne!(record(), NextHop::default(), "still named by a {named}");
        tables.set_client_routes(&[]).unwrap();
    }
    kernel.views.value(0, 0).store(0, Relaxed);
    kernel.sweep();
    tables.maintain().unwrap();
    assert_eq!(record(), NextHop::default());
}

#[test]
fn client_routes_are_replaced_as_a_whole() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let net = |text: &str| text.parse().unwrap();
    tables
        .set_client_routes(&[(net("10.1.2.3/8"), ClientVia::OnLink), (net("::/0"), ClientVia::NextHop(1))])
        .unwrap();
    assert_eq!(kernel.routes4.0.lock().unwrap().get(&(8, [10, 0, 0, 0])), Some(&ON_LINK));
    tables.set_client_routes(&[(net("::/0"), ClientVia::NextHop(2))]).unwrap();
    assert!(kernel.routes4.0.lock().unwrap().is_empty());
    assert_eq!(kernel.routes6.0.lock().unwrap().get(&(0, [0; 16])), Some(&2));
}

#[test]
fn a_restarted_agent_that_knows_no_neighbour_yet_breaks_no_path() {
    let kernel = Kernel::new();
    apply(&mut kernel.tables());
    let mut tables = kernel.tables();
    let unresolved = NextHop::default();
    let index = tables.set_next_hop(&hop("10.0.0.11", false), &unresolved).unwrap();
    assert_eq!(kernel.views.next_hops.get(index).ifindex, 2, "the table knew better");
    tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    let no_way = DestinationSpec { next_hop: 0, ..PATH };
    let destination = tables.ensure_destination(&real("web", "10.0.0.11"), &no_way).unwrap();
    assert_eq!(kernel.views.destinations.get(destination).next_hop, index);
    tables.set_next_hop(&hop("10.0.0.11", false), &unresolved).unwrap();
    assert_eq!(kernel.views.next_hops.get(index).ifindex, 0, "said twice, it is meant");
}

fn counted(name: &str, leader: Option<&str>) -> ServiceSpec {
    let rules = Rules { leader: leader.map(String::from), ..Rules::default() };
    ServiceSpec {
        pick: Pick::Wlc,
        rules,
        ..spec(name, &[Ports::One(if leader.is_some() { 443 } else { 80 })])
    }
}

fn standing(ordinal: u16) -> DestinationSpec {
    DestinationSpec { standing: Standing { weight: 7, ordinal, ..Standing::DEFAULT }, ..PATH }
}

#[test]
fn a_list_of_servers_is_switched_by_one_word_and_its_members_stay() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let service = tables.ensure_service(&counted("web", None)).unwrap();
    let a = tables.ensure_destination(&real("web", "10.0.0.11"), &standing(0)).unwrap();
    let b = tables.ensure_destination(&real("web", "10.0.0.12"), &standing(1)).unwrap();
    let content = || {
        let (first, len) = Service::slots_of(kernel.views.services.get(service).servers);
        (first..first + len).map(|at| kernel.views.server(at).load(Relaxed)).collect::<Vec<_>>()
    };
    tables.set_servers("web", &[Some(a), None]).unwrap();
    assert_eq!(content(), [ServerEntry::new(a, a).0, 0]);
    let (first, _) = Service::slots_of(kernel.views.services.get(service).servers);
    kernel.views.server(first).fetch_or(ServerEntry::MEMBER, Relaxed);
    let writes = tables.writes();
    tables.set_servers("web", &[Some(a), None]).unwrap();
    assert_eq!(tables.writes(), writes, "the mark of a member is no difference");
    tables.set_servers("web", &[Some(a), Some(b)]).unwrap();
    assert_eq!(content(), [ServerEntry::new(a, a).0 | ServerEntry::MEMBER, ServerEntry::new(b, b).0]);
    for _ in 0..20 {
        tables.set_servers("web", &[Some(b)]).unwrap();
        tables.set_servers("web", &[Some(a)]).unwrap();
    }
    assert_eq!(content(), [ServerEntry::new(a, a).0]);
}

#[test]
fn endpoints_of_a_group_share_the_load_of_a_server() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    tables.ensure_service(&counted("web", None)).unwrap();
    let error = tables.ensure_service(&counted("tls", Some("nobody"))).unwrap_err().to_string();
    assert!(error.contains("nobody"), "{error}");
    tables.ensure_service(&counted("tls", Some("web"))).unwrap();
    let a = tables.ensure_destination(&real("web", "10.0.0.11"), &standing(0)).unwrap();
    let b = tables.ensure_destination(&real("tls", "10.0.0.11"), &standing(0)).unwrap();
    let c = tables.ensure_destination(&real("tls", "10.0.0.12"), &standing(1)).unwrap();
    assert_eq!([a, b, c].map(|d| tables.load_of(d)), [Some(a), Some(a), Some(c)]);
    let record = kernel.views.destinations.get(b);
    assert_eq!((record.load, record.ordinal), (a, 0));
    assert_ne!(Destination::flags_of(record.word) & flags::COUNTED, 0);
    assert_eq!(kernel.views.loads.get(a).weight, 7);
    // The first binding goes: its index stays while the other uses its load.
    tables.remove_destination(&real("web", "10.0.0.11")).unwrap();
    kernel.sweep();
    tables.maintain().unwrap();
    assert_ne!(kernel.views.destinations.word(a, 0).load(Relaxed), 0);
    tables.remove_destination(&real("tls", "10.0.0.11")).unwrap();
    for _ in 0..2 {
        kernel.sweep();
        tables.maintain().unwrap();
    }
    assert_eq!(kernel.views.destinations.word(a, 0).load(Relaxed), 0);
    assert_eq!(kernel.views.loads.get(a).weight, 0);
}

#[test]
fn a_service_that_begins_to_count_tells_its_destinations() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    let index = tables.ensure_destination(&real("web", "10.0.0.11"), &standing(0)).unwrap();
    let has =
        |flag| Destination::flags_of(kernel.views.destinations.word(index, 0).load(Relaxed)) & flag != 0;
    assert!(!has(flags::COUNTED));
    let rules = Rules { udp_inactive: true, ..Rules::default() };
    tables.ensure_service(&ServiceSpec { rules, ..counted("web", None) }).unwrap();
    assert!(has(flags::COUNTED) && has(flags::UDP_INACTIVE));
}

#[test]
fn a_raised_threshold_relieves_a_server_and_a_lower_one_does_not() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    tables.ensure_service(&counted("web", None)).unwrap();
    let set = |tables: &mut Tables, upper| {
        let standing = Standing { upper, draining: true, packets_per_second: 5, ..Standing::DEFAULT };
        tables.ensure_destination(&real("web", "10.0.0.11"), &DestinationSpec { standing, ..PATH }).unwrap()
    };
    let index = set(&mut tables, 10);
    kernel.views.counts(index).store(10 * lb_common::load::ACTIVE, Relaxed);
    let overloaded = kernel.views.loads.half(index, std::mem::offset_of!(Load, overloaded));
    overloaded.store(1, Relaxed);
    for (upper, is) in [(5, 1), (10, 1), (11, 0)] {
        set(&mut tables, upper);
        assert_eq!(overloaded.load(Relaxed), is, "{upper}");
    }
    overloaded.store(1, Relaxed);
    set(&mut tables, 0);
    assert_eq!(overloaded.load(Relaxed), 0);
    let word = kernel.views.destinations.word(index, 0).load(Relaxed);
    assert_ne!(Destination::flags_of(word) & flags::DRAINING, 0);
    assert_ne!(Destination::flags_of(word) & flags::RATED, 0);
    assert_eq!(kernel.rates.0.lock().unwrap()[&index].limit, 5);
    let writes = tables.writes();
    set(&mut tables, 0);
    assert_eq!(tables.writes(), writes);
}

#[test]
fn access_lists_and_quic_ids_are_replaced_by_what_differs() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let net = |text: &str| text.parse().unwrap();
    let rules = [(net("10.0.0.0/8"), Access::Deny), (net("2001:db8::/32"), Access::Allow)];
    tables.set_access_list(3, &rules).unwrap();
    tables.set_access_list(4, &rules[..1]).unwrap();
    assert!(tables.set_access_list(0, &rules).is_err());
    let v4 = || kernel.acl4.0.lock().unwrap().clone();
    assert_eq!(v4().get(&(40, [0, 0, 0, 3, 10, 0, 0, 0])), Some(&2));
    assert_eq!(kernel.acl6.0.lock().unwrap().len(), 1);
    tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
    tables.set_quic_ids("web", &[(vec![1, 2], 5), (vec![1, 2, 0], 6)]).unwrap();
    assert!(tables.set_quic_ids("web", &[(vec![0; 9], 5)]).is_err());
    assert_eq!(kernel.quic_ids.0.lock().unwrap().len(), 2, "an id that ends in zero is another");
    // Another agent finds them, and writes nothing for the same.
    let mut tables = kernel.tables();
    tables.set_access_list(3, &rules).unwrap();
    assert_eq!(tables.writes(), 0);
    tables.set_access_list(3, &[]).unwrap();
    assert_eq!((v4().len(), tables.access_lists()), (1, [4].into()));
}

#[test]
fn an_access_list_has_a_number_of_its_own_that_outlives_the_agent() {
    let kernel = Kernel::new();
    let deny = [("10.0.0.0/8".parse().unwrap(), Access::Deny)];
    let v4 = || kernel.acl4.0.lock().unwrap().len();
    let mut tables = kernel.tables();
    let limit = |tables: &mut Tables, name: &str, port| {
        let plain = spec(name, &[Ports::One(port)]);
        let found = tables.find_service(&plain);
        let index = found.unwrap_or_else(|| tables.ensure_service(&plain).unwrap());
        let list = tables.access_list_of(index).unwrap();
        tables.set_access_list(list, &deny).unwrap();
        let rules = Rules { access: Some((list, Access::Allow)), ..plain.rules.clone() };
        tables.ensure_service(&ServiceSpec { rules, ..plain }).unwrap();
        tables.bind_ports(name, &[Ports::One(port)]).unwrap();
        list
    };
    tables.ensure_service(&spec("open", &[Ports::One(1)])).unwrap();
    let (a, b) = (limit(&mut tables, "a", 80), limit(&mut tables, "b", 81));
    assert_eq!((a, b, v4()), (1, 2, 2), "whatever the index of the service");
    let mut tables = kernel.tables();
    assert_eq!((limit(&mut tables, "b", 81), limit(&mut tables, "a", 80), tables.writes()), (b, a, 0));
    tables.remove_service("a").unwrap();
    assert_eq!(v4(), 1, "gone with its service");
    // What no service has is gone once the recovery is over.
    tables.set_access_list(9, &deny).unwrap();
    let mut tables = kernel.tables();
    limit(&mut tables, "b", 81);
    tables.finish_recovery().unwrap();
    assert_eq!(tables.access_lists(), [b].into());
    assert_eq!(limit(&mut tables, "c", 82), 3);
}

#[test]
fn the_handles_can_go_to_other_threads() {
    fn sends<T: Send>() {}
    fn shares<T: Send + Sync>() {}
    sends::<Tables>();
    sends::<crate::dataplane::Dataplane>();
    shares::<crate::dataplane::Counters>();
    shares::<Views>();
    shares::<Board>();
}

/// (instance of the address's record, of the web service's destination, of the filter's cell).
fn instances(kernel: &Kernel, address: &str, destination: u32) -> (u32, u32, bool) {
    let record = kernel.addresses.0.lock().unwrap().get(&addresses::key(ip(address))).copied();
    let word = kernel.views.destinations.word(destination, 0).load(Relaxed);
    let at = kernel.views.cell_of(&ip(address).into(), ip(address).is_ipv6());
    let value = kernel.views.filter.quarter(at / CELLS_PER_LINE, (at % CELLS_PER_LINE) as usize * 2);
    let in_cell = value.load(Relaxed) & cell::VRRP != 0;
    (record.unwrap_or_default().vrrp, Destination::vrrp_of(Destination::flags_of(word)), in_cell)
}

#[test]
fn what_has_an_address_of_an_instance_follows_it_whichever_came_first() {
    let vip = "203.0.113.10";
    for services_first in [false, true] {
        let kernel = Kernel::new();
        let mut tables = kernel.tables();
        let follow = |tables: &mut Tables| {
            assert_eq!(tables.set_vrrp("other", &[ip("203.0.113.99")], true).unwrap(), 1);
            assert_eq!(tables.set_vrrp("edge", &[ip(vip), ip("10.0.0.200")], true).unwrap(), 2);
        };
        if !services_first {
            follow(&mut tables);
        }
        tables.ensure_service(&spec("web", &[Ports::One(80)])).unwrap();
        tables.bind_address("web", Role::Vip, ip(vip)).unwrap();
        let index = tables.ensure_destination(&real("web", "10.0.0.11"), &PATH).unwrap();
        tables.set_pool("p", &[ip("10.0.0.200")], (1, 1)).unwrap();
        if services_first {
            assert_eq!(instances(&kernel, vip, index), (0, 0, false));
            follow(&mut tables);
        }
        assert_eq!(instances(&kernel, vip, index), (2, 2, true));
        assert_eq!(kernel.pool.0.lock().unwrap()[&0].vrrp, 2);
        // From one instance to another, and to none.
        tables.set_vrrp("other", &[ip(vip)], true).unwrap();
        tables.set_vrrp("edge", &[ip("10.0.0.200")], true).unwrap();
        assert_eq!(instances(&kernel, vip, index), (1, 1, true));
        assert_eq!(instances(&kernel, "203.0.113.99", index), (0, 1, false), "an address that it left");
        kernel.views.vrrp.word(1, 0).store(u64::MAX, Relaxed);
        tables.remove_vrrp("other").unwrap();
        assert_eq!(instances(&kernel, vip, index), (0, 0, false));
        assert_eq!(kernel.views.vrrp.word(1, 0).load(Relaxed), 0, "the next one with this number is backup");
        let roles = kernel.addresses.0.lock().unwrap()[&addresses::key(ip(vip))].roles;
        assert_eq!(roles, role::VIP, "a virtual service's address, as before");
    }
}

#[test]
fn an_instance_keeps_its_number_and_its_word_over_a_restart() {
    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    tables.set_vrrp("a", &[ip("203.0.113.1")], true).unwrap();
    tables.set_vrrp("b", &[ip("203.0.113.2"), ip("2001:db8::2")], true).unwrap();
    tables.set_vrrp("c", &[ip("203.0.113.3")], true).unwrap();
    for instance in 1..4 {
        kernel.views.vrrp.word(instance, 0).store(instance.into(), Relaxed);
    }
    // One is gone from the manifests, one is new, one has changed an address.
    let mut tables = kernel.tables();
    assert_eq!(
        tables.set_vrrp("new", &[ip("203.0.113.9")], true).unwrap(),
        4,
        "1 to 3 may still be somebody's"
    );
    assert_eq!(tables.set_vrrp("b", &[ip("203.0.113.22"), ip("2001:db8::2")], true).unwrap(), 2);
    assert_eq!(tables.set_vrrp("c", &[ip("203.0.113.3")], true).unwrap(), 3);
    tables.finish_recovery().unwrap();
    let words: Vec<u64> = (1..5).map(|i| kernel.views.vrrp.word(i, 0).load(Relaxed)).collect();
    assert_eq!(words, [0, 2, 3, 0]);
    let held: BTreeMap<IpAddr, u32> = kernel
        .addresses
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|(key, record)| (key.address.to_ip(key.family == 6), record.vrrp))
        .collect();
    let expected = [("203.0.113.9", 4), ("203.0.113.22", 2), ("2001:db8::2", 2), ("203.0.113.3", 3)]
        .map(|(a, n)| (ip(a), n));
    assert_eq!(held, expected.into());
}

#[test]
fn an_address_refuses_what_no_service_takes_for_as_long_as_its_instance_does() {
    let kernel = Kernel::new();
    let refuses = |address: &str| {
        let record = kernel.addresses.0.lock().unwrap().get(&addresses::key(ip(address))).copied();
        record.unwrap_or_default().roles & role::REFUSES != 0
    };
    let (vip, other) = ("203.0.113.10", "2001:db8::10");
    let mut tables = kernel.tables();
    tables.set_vrrp("edge", &[ip(vip), ip(other)], false).unwrap();
    assert!(refuses(vip) && refuses(other));
    tables.bind_address("web", Role::Vip, ip(vip)).unwrap();
    assert!(refuses(vip), "a service has it now");
    let mut tables = kernel.tables();
    tables.bind_address("web", Role::Vip, ip(vip)).unwrap();
    assert!(refuses(vip), "over a restart");
    tables.set_vrrp("edge", &[ip(vip)], false).unwrap();
    tables.finish_recovery().unwrap();
    assert!(refuses(vip) && !refuses(other));
    tables.set_vrrp("edge", &[ip(vip)], true).unwrap();
    assert!(!refuses(vip));
    tables.set_vrrp("edge", &[ip(vip)], false).unwrap();
    tables.remove_vrrp("edge").unwrap();
    assert!(!refuses(vip), "nobody's instance");
}

#[test]
fn solicitations_of_an_instances_address_come_to_its_solicited_node_cell() {
    let kernel = Kernel::new();
    let cell = |group: &str| {
        let at = kernel.views.cell_of(&ip(group).into(), true);
        kernel.views.filter.quarter(at / CELLS_PER_LINE, (at % CELLS_PER_LINE) as usize * 2).load(Relaxed)
    };
    // Both end alike, so they share a group.
    let (first, second, group) = ("2001:db8::1:2:3456", "2001:db8:9::2:3456", "ff02::1:ff02:3456");
    let mut tables = kernel.tables();
    tables.bind_address("web", Role::Vip, ip(first)).unwrap();
    assert_eq!(cell(group), 0, "without an instance solicitations are the kernel's");
    tables.set_vrrp("edge", &[ip(first), ip(second)], true).unwrap();
    assert_eq!(cell(group), cell::VRRP);
    let mut tables = kernel.tables();
    tables.set_vrrp("edge", &[ip(second)], true).unwrap();
    tables.finish_recovery().unwrap();
    assert_eq!(cell(group), cell::VRRP, "one of two is left");
    tables.remove_vrrp("edge").unwrap();
    assert_eq!(cell(group), 0);
}

#[test]
fn rounds_begin_at_a_random_place_where_asked_and_a_restart_does_not_begin_them_anew() {
    let cursor = |kernel: &Kernel, index: u32| kernel.views.services.get(index).cursor;
    let rotating = ServiceSpec { rules: Rules { rotate: true, ..Rules::default() }, ..spec("web", &[]) };
    let starts: std::collections::BTreeSet<u64> = (0..8)
        .map(|_| {
            let kernel = Kernel::new();
            let index = kernel.tables().ensure_service(&rotating).unwrap();
            cursor(&kernel, index)
        })
        .collect();
    assert!(starts.len() > 1, "{starts:?}");

    let kernel = Kernel::new();
    let mut tables = kernel.tables();
    let index = tables.ensure_service(&spec("web", &[])).unwrap();
    assert_eq!(cursor(&kernel, index), 0);
    tables.ensure_service(&rotating).unwrap();
    assert_eq!(cursor(&kernel, index), 0, "a service that is there goes on");
}
