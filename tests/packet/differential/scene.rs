//! The world of the differential test: every forwarding method in both families over a table that is too small, real
//! servers that several services share, pools with few ports; and what an agent does to it meanwhile.

#[path = "rows.rs"]
mod rows;

use crate::world::{map, packets};
use anyhow::{Context as _, Result, ensure};
use aya::maps::HashMap;
use lb_agent::dataplane::{
    Dataplane, Mapped, Packets, Ports, Sizes, Tables, Views,
    tables::{
        Access, ClientVia, DestinationKey, DestinationSpec, NextHopKey, Role as AddressRole, Rules,
        ServiceSpec, Standing,
    },
};
use lb_common::{
    address::Address,
    connection::Value,
    destination::{Destination, Forwarding as Method, NextHop, encapsulation, flags, tunnel_overhead},
    extension::Extension,
    filter::AddressKey,
    fragment,
    guard::Guard,
    hash::Secrets,
    load::{Load, Rate},
    maps::{ClientNeighbour, VRRP_FOREVER, VRRP_MASTER, own, pinned},
    scratch,
    service::{NoServer, OnUnknownFlow, Pick, ServerEntry, Service},
    state::{DEFAULT_TIMEOUTS, State},
};
use lb_model::{Config, Model, Moved, Own, Role, ServiceConfig, traffic::Random};
use rows::{Row, access_lists, rows};
use std::{collections::BTreeSet, mem::offset_of, net::IpAddr, sync::Arc, sync::atomic::Ordering::Relaxed};

const VIPS: [[&str; 2]; 2] = [["203.0.113.10", "203.0.113.11"], ["2001:db8:ff::10", "2001:db8:ff::11"]];
/// Of each family: the second follows a VRRP instance.
const FOLLOWING: usize = 1;
const POOLS: [[&str; 2]; 2] = [["10.0.0.200", "10.0.0.201"], ["2001:db8:1::200", "2001:db8:1::201"]];
/// One director of so many: 16 ports an address.
const SHARE: (u32, u32) = (3, 4032);
const SERVERS: u8 = 3;
/// Slots of a service: servers by their place, as wrr would lay them out.
const SLOTS: [usize; 6] = [0, 1, 0, 2, 0, 1];

/// A service and where its records lie.
struct Placed {
    index: u32,
    /// Its first slot.
    slots: u32,
    /// The first entry of its list of servers, if it has one.
    list: Option<u32>,
    destinations: Vec<u32>,
}

pub struct Scene {
    pub plane: Dataplane,
    pub views: Arc<Views>,
    tables: Tables,
    /// The records as they were made: what a change is undone to.
    destinations: Vec<Destination>,
    next_hops: Vec<NextHop>,
    /// As they were made.
    loads: Vec<Load>,
    services: Vec<Placed>,
    instance: u8,
    config: Config,
}

/// All words of a mapped table. The kernel writes them in test runs only, which the same thread makes: the slice must
/// not be held over one.
pub fn words<T: aya::Pod>(table: &Mapped<T>) -> &[u64] {
    let len = table.len() as usize * size_of::<T>() / 8;
    // SAFETY: a mapped table is one piece of memory of `len` words, which lives as long as `table`; see above.
    unsafe { std::slice::from_raw_parts(table.word(0, 0).as_ptr(), len) }
}

fn sizes() -> Sizes {
    Sizes {
        connections: 220,
        connections_v6: 110,
        services: 256,
        port_ranges: 16,
        destinations: 640,
        next_hops: 64,
        slots: 4096,
        pool_addresses: 4,
        extensions: 16,
    }
}

impl Scene {
    /// Loads the program with these policies, and with secrets of this seed.
    pub fn new(object: &[u8], seed: u64, policies: u32) -> Result<Self> {
        let mut random = Random(seed);
        loop {
            let secrets = Secrets::from_random(std::array::from_fn(|_| random.number()));
            let scene = Self::with(object, secrets, policies)?;
            // Local addresses that share a cell of the address filter with another of ours take another way, by chance.
            let all: Vec<IpAddr> =
                VIPS.iter().chain(&POOLS).flatten().map(|text| text.parse()).collect::<Result<_, _>>()?;
            let cell = |ip: &IpAddr| scene.views.cell_of(&Address::from(*ip), ip.is_ipv6());
            if all.iter().map(cell).collect::<BTreeSet<_>>().len() == all.len() {
                return Ok(scene);
            }
        }
    }

    fn with(object: &[u8], secrets: Secrets, policies: u32) -> Result<Self> {
        let packets = Packets { policies, ..packets() };
        let plane = Dataplane::open_for_test_with(object, &sizes(), packets, secrets)?;
        let views = plane.views();
        let mut tables = plane.tables()?;
        let mut config = Config::new(views.secrets, views.config);
        let mut pools = Vec::new();
        for (name, addresses) in ["four", "six"].into_iter().zip(POOLS) {
            let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse()).collect::<Result<_, _>>()?;
            let pool = tables.set_pool(name, &addresses, SHARE)?;
            for (at, address) in (pool.0..).zip(&addresses) {
                tables.bind_address(name, AddressRole::Pool(at), *address)?;
                let own = Own { pool: Some(at.into()), vrrp: 0 };
                config.add_own(Address::from(*address), address.is_ipv6(), own);
            }
            pools.push(pool);
        }
        let mut this = Self {
            tables: plane.tables()?,
            views,
            plane,
            destinations: Vec::new(),
            next_hops: Vec::new(),
            loads: Vec::new(),
            services: Vec::new(),
            instance: 0,
            config,
        };
        for (list, of) in access_lists() {
            let parse = |(prefix, access): &(&str, Access)| Ok((prefix.parse()?, *access));
            let prefixes: Vec<(ipnet::IpNet, Access)> = of.iter().map(parse).collect::<Result<_>>()?;
            tables.set_access_list(list, &prefixes)?;
            this.config.access.extend(prefixes.into_iter().map(|(net, access)| {
                let of = net.network();
                (list, Address::from(of), of.is_ipv6(), net.prefix_len(), access == Access::Allow)
            }));
        }
        for v6 in [false, true] {
            for udp in [false, true] {
                this.add_services(&mut tables, v6, udp, pools[v6 as usize])?;
            }
        }
        let following: Vec<IpAddr> = VIPS.iter().map(|of| of[FOLLOWING].parse()).collect::<Result<_, _>>()?;
        this.instance = tables.set_vrrp("edge", &following, true)?;
        for (v6, of) in [false, true].into_iter().zip(VIPS) {
            for (n, vip) in of.iter().enumerate() {
                let vip: IpAddr = vip.parse()?;
                let vrrp = if n == FOLLOWING { this.instance } else { 0 };
                this.config.add_own(Address::from(vip), v6, Own { pool: None, vrrp });
            }
        }
        let to4 = hop(&mut tables, "10.0.0.254", true, [0, 0])?;
        let to6 = hop(&mut tables, "2001:db8:1::254", true, [7, 0])?;
        // The rest of the clients are on an attached segment.
        for (prefix, to) in [("198.51.100.0/24", to4), ("2001:db8:c::/48", to6)] {
            let net: ipnet::IpNet = prefix.parse()?;
            let of = (Address::from(net.addr()), net.addr().is_ipv6(), net.prefix_len(), to);
            this.config.client_routes.push(of);
        }
        tables.set_client_routes(&[
            ("198.51.100.0/24".parse()?, ClientVia::NextHop(to4)),
            ("2001:db8:c::/48".parse()?, ClientVia::NextHop(to6)),
        ])?;
        this.tables = tables;
        this.destinations =
            (0..this.views.destinations.len()).map(|i| this.views.destinations.get(i)).collect();
        this.next_hops = (0..this.views.next_hops.len()).map(|i| this.views.next_hops.get(i)).collect();
        this.loads = (0..this.views.loads.len()).map(|i| this.views.loads.get(i)).collect();
        this.config.loads.clone_from(&this.loads);
        this.config.pool = this.plane.pool()?;
        this.set_role(Role::Master);
        Ok(this)
    }

    fn add_services(&mut self, tables: &mut Tables, v6: bool, udp: bool, pool: (u16, u8)) -> Result<()> {
        let hz = self.views.config.hz;
        let ticks = |seconds: u16| scratch::ticks(u64::from(seconds) * 1000, hz) as u16;
        let named = |vip: usize, port: u16| {
            format!("{vip}-{port}-{}-{}", if udp { "udp" } else { "tcp" }, if v6 { 6 } else { 4 })
        };
        for row in rows(udp, ticks) {
            let (first, last) = row.ports;
            let name = named(row.vip, first);
            let ports = match (first, last) {
                (0, 65535) => Ports::Any,
                (first, last) if first == last => Ports::One(first),
                (first, last) => Ports::Range(first, last),
            };
            let vip: IpAddr = VIPS[v6 as usize][row.vip].parse()?;
            let leader = row.leader.map(|port| named(row.vip, port));
            let spec = ServiceSpec {
                name: name.clone(),
                vip,
                protocol: if udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP } as u8,
                ports: vec![ports],
                pick: row.pick,
                on_unknown_flow: row.on_unknown_flow,
                mss: row.mss,
                timeouts: DEFAULT_TIMEOUTS.map(ticks),
                pool: (row.method == Method::FullNat).then_some(pool),
                rules: Rules { leader, ..row.rules.clone() },
            };
            let index = tables.ensure_service(&spec)?;
            let destinations = self.add_servers(tables, &spec, (&row, v6))?;
            let slots: Vec<_> = SLOTS.iter().map(|n| Some(destinations[*n])).collect();
            tables.set_slots(&name, &slots)?;
            if row.has_list() {
                let list: Vec<_> = destinations.iter().copied().map(Some).collect();
                tables.set_servers(&name, &list)?;
            }
            if let Some(quic) = row.rules.quic {
                // What datagrams begin with is a row of one byte.
                let id = |byte: u8| (vec![byte; quic.len.into()], destinations[(byte % SERVERS) as usize]);
                let ids: Vec<_> = (0..192).map(id).collect();
                tables.set_quic_ids(&name, &ids)?;
                self.config.quic.extend(ids.into_iter().map(|(id, to)| ((index as usize, id), to)));
            }
            tables.bind_ports(&name, &[ports])?;
            tables.bind_address(&name, AddressRole::Vip, vip)?;
            let of = (Address::from(vip), v6, udp, first, last, index as usize);
            self.config.ports.push(of);
            let (slots, _) = Service::slots_of(self.views.services.word(index, 0).load(Relaxed));
            let (list, len) = Service::slots_of(
                self.views.services.word(index, offset_of!(Service, servers)).load(Relaxed),
            );
            self.services.push(Placed { index, slots, list: (len > 0).then_some(list), destinations });
        }
        Ok(())
    }

    /// The servers of a service: their destinations.
    fn add_servers(
        &mut self,
        tables: &mut Tables,
        of: &ServiceSpec,
        (row, v6): (&Row, bool),
    ) -> Result<Vec<u32>> {
        let name = of.name.as_str();
        let udp = i32::from(of.protocol) == libc::IPPROTO_UDP;
        let mut destinations = Vec::new();
        for n in 0..SERVERS {
            let server = match v6 != row.crosses {
                true => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, n as u16 + 1]),
                false => IpAddr::from([10, 0, 0, n + 1]),
            };
            let next_hop = hop(tables, &server.to_string(), false, [[0, 0], [0, 0], [9, 0]][n as usize])?;
            let overhead = match row.method {
                Method::Tun => tunnel_overhead(server.is_ipv6()) + encapsulation(row.tunnel.flags),
                _ => 0,
            };
            let key = DestinationKey::new(name, server, row.server_port, row.method);
            let destination = tables.ensure_destination(
                &key,
                &DestinationSpec {
                    next_hop,
                    mtu: 1500 - overhead,
                    timeout: of.timeouts[if udp { State::Udp } else { State::Established } as usize],
                    vip_port: if row.server_port == 0 { 0 } else { row.ports.0 },
                    local: false,
                    tunnel: row.tunnel,
                    standing: Standing {
                        weight: row.weights[n as usize],
                        upper: row.thresholds.0,
                        lower: row.thresholds.1,
                        packets_per_second: row.packets_per_second,
                        ordinal: n.into(),
                        ..Standing::DEFAULT
                    },
                },
            )?;
            destinations.push(destination);
            if row.packets_per_second != 0 {
                self.config.rates.insert(destination, row.packets_per_second);
            }
            if row.method == Method::Tun {
                tables.bind_address(name, AddressRole::Tunnel, server)?;
                self.config.add_tunnel_server(Address::from(server), server.is_ipv6());
            }
            if row.method == Method::Nat {
                tables.bind_address(name, AddressRole::NatSource, server)?;
                self.config.add_nat_server(Address::from(server), server.is_ipv6());
            }
        }
        Ok(destinations)
    }

    /// Everything as at the beginning: an empty table, all servers in, master. A model that knows it.
    pub fn begin(&mut self) -> Result<Model> {
        self.forget_the_rest()?;
        for bucket in 0..self.views.connections.len() {
            for word in (0..64).step_by(8) {
                self.views.connections.word(bucket, word).store(0, Relaxed);
            }
        }
        for slot in 0..self.views.cold_tuples.len() {
            for word in (0..32).step_by(8) {
                self.views.cold_tuples.word(slot, word).store(0, Relaxed);
            }
        }
        for lease in self.ports() {
            self.views.leases.word(lease, 8).store(0, Relaxed);
        }
        for (index, record) in (0..).zip(&self.destinations) {
            self.views.destinations.update(index, record, 0);
        }
        for (index, record) in (0..).zip(&self.next_hops) {
            self.views.next_hops.update(index, record, 0);
        }
        let mut extensions = self.extensions_map()?;
        for at in 0..extensions.len() {
            extensions.set(at, Extension::default(), 0)?;
        }
        for (index, record) in (0..).zip(&self.loads) {
            self.views.loads.update(index, record, 0);
        }
        let rates: aya::maps::Array<_, Rate> = map(&self.plane, pinned::RATES).try_into()?;
        let mut rates = rates;
        for (destination, limit) in &self.config.rates {
            rates.set(*destination, Rate { limit: *limit, ..Rate::default() }, 0)?;
        }
        for service in 0..self.services.len() {
            let index = self.services[service].index;
            for offset in [offset_of!(Service, limit), offset_of!(Service, cached)] {
                self.views.services.word(index, offset).store(0, Relaxed);
            }
            self.set_slots(service, &SLOTS);
            self.set_list(service, |_| true);
        }
        self.set_role(Role::Master);
        self.limit_new_flows(0);
        let mut model = Model::new(self.config.clone());
        self.look(&mut model);
        for of in &self.services {
            model.cursors[of.index as usize] = self.views.services.word(of.index, 8).load(Relaxed);
        }
        Ok(model)
    }

    /// First fragments, by the sizes of `FragmentKey` and `FirstFragment`.
    fn fragments(&self) -> Result<HashMap<aya::maps::MapData, [u8; 40], [u8; 16]>> {
        Ok(map(&self.plane, own::FRAGMENTS).try_into()?)
    }

    fn paths_map(&self) -> Result<HashMap<aya::maps::MapData, AddressKey, u32>> {
        Ok(map(&self.plane, own::PATHS).try_into()?)
    }

    /// What was said of tunnels' paths.
    pub fn paths(&self) -> Result<std::collections::HashMap<(bool, [u8; 16]), u32>> {
        let entries = self.paths_map()?.iter().collect::<Result<Vec<_>, _>>()?;
        Ok(entries.into_iter().map(|(key, mtu)| ((key.family == 6, key.address.v6()), mtu)).collect())
    }

    /// Of what only lives in hash tables nothing is left.
    fn forget_the_rest(&self) -> Result<()> {
        let mut paths = self.paths_map()?;
        for key in paths.keys().collect::<Result<Vec<_>, _>>()? {
            paths.remove(&key)?;
        }
        let mut neighbours: HashMap<_, AddressKey, ClientNeighbour> =
            map(&self.plane, pinned::CLIENT_NEIGHBOURS).try_into()?;
        for key in neighbours.keys().collect::<Result<Vec<_>, _>>()? {
            neighbours.remove(&key)?;
        }
        self.forget_fragments()
    }

    fn forget_fragments(&self) -> Result<()> {
        let mut map = self.fragments()?;
        for key in map.keys().collect::<Result<Vec<_>, _>>()? {
            map.remove(&key)?;
        }
        Ok(())
    }

    /// All first fragments came just too long ago: their time is moved back, which is the first word of the record.
    pub fn age_fragments(&self) -> Result<()> {
        let mut map = self.fragments()?;
        let before = fragment::HOLDS * u64::from(self.views.config.hz) + 1;
        for key in map.keys().collect::<Result<Vec<_>, _>>()? {
            let mut first = map.get(&key, 0)?;
            let since = u64::from_ne_bytes(std::array::from_fn(|i| first[i]));
            first[..8].copy_from_slice(&since.saturating_sub(before).to_ne_bytes());
            map.insert(key, first, 0)?;
        }
        Ok(())
    }

    /// The leases that a flow may take.
    pub fn ports(&self) -> Vec<u32> {
        let shares = (0u32..).zip(&self.config.pool).flat_map(|(at, pool)| {
            let first = at << 16 | u32::from(pool.first_port);
            first..first + u32::from(pool.ports)
        });
        shares.collect()
    }

    /// What the model knows of the records is what the tables hold.
    fn look(&self, model: &mut Model) {
        let config = &mut model.config;
        config.destinations =
            (0..self.views.destinations.len()).map(|i| self.views.destinations.get(i)).collect();
        config.next_hops = (0..self.views.next_hops.len()).map(|i| self.views.next_hops.get(i)).collect();
        config.services = (0..self.views.services.len())
            .map(|index| {
                let record = self.views.services.get(index);
                let (first, len) = Service::slots_of(record.slots);
                let slots = (first..first + len).map(|at| self.views.slot(at).load(Relaxed)).collect();
                let (first, len) = Service::slots_of(record.servers);
                let entry = |at| ServerEntry(self.views.server(at).load(Relaxed)).destination();
                let servers = (first..first + len).map(entry).collect();
                (record.flags != 0).then_some(ServiceConfig { record, slots, servers })
            })
            .collect();
        config.loads = (0..self.views.loads.len()).map(|i| self.views.loads.get(i)).collect();
        model.cursors.resize(config.services.len(), 0);
        model.cached.resize(config.services.len(), 0);
        config.roles.clone_from(&self.config.roles);
        config.flood = self.config.flood;
    }

    /// New flows a second on a CPU; 0 is no limit.
    fn limit_new_flows(&mut self, limit: u32) {
        self.views.guard.half(0, offset_of!(Guard, new_flows)).store(limit, Relaxed);
        self.config.flood = limit != 0;
    }

    fn set_role(&mut self, role: Role) {
        let word = match role {
            Role::Master => VRRP_FOREVER,
            Role::Backup => 0,
            Role::LeaseEnded => VRRP_MASTER | 1,
        };
        self.views.vrrp.word(self.instance.into(), 0).store(word, Relaxed);
        self.config.roles.insert(self.instance, role);
    }

    /// Writes the slots of a service: its servers by their place.
    fn set_slots(&self, service: usize, servers: &[usize]) {
        let of = &self.services[service];
        for (at, server) in (of.slots..).zip(servers) {
            self.views.slot(at).store(of.destinations[*server] + 1, Relaxed);
        }
        let first = if servers.is_empty() { 0 } else { of.slots };
        let word = Service::make_slots(first, servers.len() as u32, 0);
        self.views.services.word(of.index, 0).store(word, Relaxed);
    }

    /// Writes the list of servers of a service, if it has one: who is not in it leaves a hole.
    fn set_list(&self, service: usize, is_in: impl Fn(usize) -> bool) {
        let of = &self.services[service];
        for (at, n) in of.list.into_iter().flat_map(|first| first..).zip(0..of.destinations.len()) {
            let destination = of.destinations[n];
            let load = self.views.destinations.get(destination).load;
            let entry = if is_in(n) { ServerEntry::new(destination, load) } else { ServerEntry::HOLE };
            self.views.server(at).store(entry.0, Relaxed);
        }
    }

    /// Something that an agent does between two packets.
    pub fn change(&mut self, random: &mut Random, favourites: &[usize], model: &mut Model) {
        let favourites: Vec<usize> = (0..self.services.len())
            .filter(|n| favourites.contains(&(self.services[*n].index as usize)))
            .collect();
        match random.below(17) {
            16 => {
                let limit = random.of(&[0, 0, 0, 0, 0, 0, 1, 30]);
                self.limit_new_flows(limit);
            }
            0 => {
                let role = random.of(&[Role::Backup, Role::LeaseEnded]);
                self.set_role(if random.one_in(6) { role } else { Role::Master });
            }
            1 => {
                let index = random.below(self.next_hops.len()) as u32;
                let mut hop = self.next_hops[index as usize];
                match random.below(4) {
                    0 => hop.ifindex = 0,
                    1 => hop.destination ^= 0xff,
                    2 => hop.mtu = 1300,
                    _ => {}
                }
                self.views.next_hops.update(index, &hop, 0);
            }
            2 => {
                let destination = self.any_destination(random, &favourites);
                let mtu = random.of(&[1500, 1460, 1280, 600]);
                self.write_word(destination, |word| word & !(0xffff << 16) | mtu << 16);
            }
            // Nobody is left, or all are back.
            3 => {
                let service = random.of(&favourites);
                let servers: &[usize] = if random.one_in(3) { &[] } else { &SLOTS };
                self.set_slots_of_open(service, servers);
            }
            4..=7 => {
                let (service, n) = (random.of(&favourites), random.below(SERVERS as usize));
                let destination = self.services[service].destinations[n];
                self.write_word(destination, |word| {
                    word & !((flags::CLOSED | flags::RESET_TELLS_SERVER) as u64) << 32
                });
                let closed = random.of(&[
                    flags::DRAINING,
                    flags::REMOVED,
                    flags::RESET,
                    flags::RESET | flags::RESET_TELLS_SERVER,
                    flags::RESET | flags::DRAINING,
                    flags::MOVES,
                ]);
                let word = self.destinations[destination as usize].word;
                let mtu = self.views.destinations.get(destination).word & 0xffff << 16;
                let word = word & !(0xffff << 16) | mtu | (closed as u64) << 32;
                self.views.destinations.word(destination, 0).store(word, Relaxed);
                self.set_slots_of_open(service, &SLOTS);
            }
            // Another weight; slots name who has one.
            8 | 9 => {
                let listed: Vec<&Placed> = self.services.iter().filter(|of| of.list.is_some()).collect();
                let favourite = &self.services[random.of(&favourites)];
                let of =
                    if favourite.list.is_some() { favourite } else { listed[random.below(listed.len())] };
                let load = self.views.destinations.get(of.destinations[random.below(SERVERS as usize)]).load;
                let weight = random.of(&[0, 1, 2, 3]);
                self.views.loads.half(load, offset_of!(Load, weight)).store(weight, Relaxed);
            }
            // A server is back.
            _ => {
                let (service, n) = (random.of(&favourites), random.below(SERVERS as usize));
                let destination = self.services[service].destinations[n];
                let word = self.destinations[destination as usize].word;
                self.views.destinations.word(destination, 0).store(word, Relaxed);
                self.set_slots_of_open(service, &SLOTS);
            }
        }
        self.look(model);
    }

    /// No slot names a server that is closed.
    fn set_slots_of_open(&self, service: usize, servers: &[usize]) {
        let is_open = |n: &usize| {
            let word = self.views.destinations.get(self.services[service].destinations[*n]).word;
            Destination::flags_of(word) & flags::CLOSED == 0
        };
        self.set_list(service, |n| servers.contains(&n) && is_open(&n));
        let open: Vec<usize> = servers.iter().copied().filter(is_open).collect();
        self.set_slots(service, &open);
    }

    fn extensions_map(&self) -> Result<aya::maps::Array<aya::maps::MapData, Extension>> {
        Ok(map(&self.plane, pinned::EXTENSIONS).try_into()?)
    }

    /// Records of shifted flows are those of the model.
    pub fn same_extensions(&self, model: &Model) -> Result<()> {
        let map = self.extensions_map()?;
        for (at, wanted) in (0..).zip(&model.extensions) {
            let is = map.get(&at, 0)?;
            let moved = |word: u64| {
                let (before, after) = ((word >> 32) as i16, (word >> 48) as i16);
                Moved { position: word as u32, before: before.into(), after: after.into() }
            };
            let same = is.word == wanted.word.0
                && (is.word == 0
                    || is.owner == wanted.owner
                        && moved(is.client) == wanted.client
                        && moved(is.server) == wanted.server
                        && is.client_first == wanted.first
                        && is.duties == wanted.duties);
            ensure!(same, "extension {at} is {is:?} instead of {wanted:?}");
        }
        Ok(())
    }

    /// Gives every record of a shifted flow another word.
    pub fn rewrite_extensions(&self, with: impl Fn(Value) -> Value) -> Result<()> {
        let mut map = self.extensions_map()?;
        for at in 0..map.len() {
            let mut record = map.get(&at, 0)?;
            if record.word != 0 {
                record.word = with(Value(record.word)).0;
                map.set(at, record, 0)?;
            }
        }
        Ok(())
    }

    /// As the sweeper writes counts after it has freed what was over.
    pub fn write_counts(&self, model: &Model) {
        for (index, load) in (0..).zip(&model.loads) {
            let counts = u64::from(load.active) | u64::from(load.inactive) << 32;
            self.views.counts(index).store(counts, Relaxed);
            let overloaded = self.views.loads.half(index, offset_of!(Load, overloaded));
            overloaded.store(load.overloaded.into(), Relaxed);
        }
    }

    /// A count of flows that is another than the model's.
    pub fn wrong_count(&self, model: &Model) -> Option<String> {
        // Four words each: counts, weight and whether it is overloaded, two of no matter here.
        let records = words(&self.views.loads).chunks(4);
        let mut all = records.zip(&model.loads).enumerate();
        all.find_map(|(index, (record, load))| {
            let (active, inactive, overloaded) =
                (record[0] as u32, (record[0] >> 32) as u32, record[1] >> 32 != 0);
            let same = (active, inactive, overloaded) == (load.active, load.inactive, load.overloaded);
            (!same).then(|| format!("load {index} is {active} {inactive} {overloaded} instead of {load:?}"))
        })
    }

    /// What else services remember, by their index: new flows in a second, and lblc's server.
    pub fn remembered(&self) -> impl Iterator<Item = (usize, u64, u64)> + '_ {
        self.services.iter().map(|of| {
            let word = |offset| self.views.services.word(of.index, offset).load(Relaxed);
            (of.index as usize, word(offset_of!(Service, limit)), word(offset_of!(Service, cached)))
        })
    }

    /// The word of a destination's packets per second.
    pub fn rate(&self, destination: u32) -> Result<u64> {
        let rates: aya::maps::Array<_, Rate> = map(&self.plane, pinned::RATES).try_into()?;
        Ok(rates.get(&destination, 0)?.word)
    }

    fn any_destination(&self, random: &mut Random, services: &[usize]) -> u32 {
        let service = random.of(services);
        self.services[service].destinations[random.below(SERVERS as usize)]
    }

    fn write_word(&self, destination: u32, change: impl Fn(u64) -> u64) {
        let word = self.views.destinations.word(destination, 0);
        word.store(change(word.load(Relaxed)), Relaxed);
    }

    /// Cursors of all services, by their index.
    pub fn cursors(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.services
            .iter()
            .map(|of| (of.index as usize, self.views.services.word(of.index, 8).load(Relaxed)))
    }

    /// A service's name, for what is said of it.
    pub fn name_of(&self, service: usize) -> String {
        self.tables.service_name(service as u32).unwrap_or("?").to_owned()
    }
}

/// A resolved next hop by the interface that test runs come in by.
fn hop(tables: &mut Tables, neighbour: &str, for_clients: bool, vlans: [u16; 2]) -> Result<u32> {
    let address: IpAddr = neighbour.parse().with_context(|| neighbour.to_owned())?;
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    let key = NextHopKey { neighbour: address, ifindex: 1, vlans, for_clients };
    let record = NextHop {
        destination: NextHop::pack([2, 0, 0, 0, 5, last], vlans[0]),
        source: NextHop::pack([2, 0, 0, 0, 0xd, 1], vlans[1]),
        ifindex: 1,
        mtu: 1500,
        source_v4: u32::from_ne_bytes([10, 0, 0, 99]),
        source_v6: Address::from(IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xff])),
        ..NextHop::default()
    };
    Ok(tables.set_next_hop(&key, &record)?)
}
