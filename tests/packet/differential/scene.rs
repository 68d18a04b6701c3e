//! The world of the differential test: every forwarding method in both families over a table that is too small, real
//! servers that several services share, pools with few ports; and what an agent does to it meanwhile.

use crate::world::map;
use anyhow::{Context as _, Result};
use aya::maps::HashMap;
use lb_agent::dataplane::{
    Dataplane, Mapped, Ports, Sizes, Tables, Views,
    tables::{
        ClientVia, DestinationKey, DestinationSpec, NextHopKey, Role as AddressRole, Rules, ServiceSpec,
        Standing,
    },
};
use lb_common::{
    address::Address,
    destination::{Destination, Forwarding as Method, NextHop, flags, tunnel_overhead},
    filter::AddressKey,
    fragment,
    hash::Secrets,
    maps::{ClientNeighbour, VRRP_FOREVER, VRRP_MASTER, own, pinned},
    scratch,
    service::{NoServer, OnUnknownFlow, Pick, Service},
    state::{DEFAULT_TIMEOUTS, State},
};
use lb_model::{Config, Model, Own, Role, ServiceConfig, traffic::Random};
use std::{collections::BTreeSet, net::IpAddr, sync::Arc, sync::atomic::Ordering::Relaxed};

const VIPS: [[&str; 2]; 2] = [["203.0.113.10", "203.0.113.11"], ["2001:db8:ff::10", "2001:db8:ff::11"]];
/// Of each family: the second follows a VRRP instance.
const FOLLOWING: usize = 1;
const POOLS: [[&str; 2]; 2] = [["10.0.0.200", "10.0.0.201"], ["2001:db8:1::200", "2001:db8:1::201"]];
/// One director of so many: 16 ports an address.
const SHARE: (u32, u32) = (3, 4032);
const SERVERS: u8 = 3;
/// Slots of a service: servers by their place, as wrr would lay them out.
const SLOTS: [usize; 6] = [0, 1, 0, 2, 0, 1];

pub struct Scene {
    pub plane: Dataplane,
    pub views: Arc<Views>,
    tables: Tables,
    /// The records as they were made: what a change is undone to.
    destinations: Vec<Destination>,
    next_hops: Vec<NextHop>,
    /// (service, first slot, destinations of its servers).
    services: Vec<(u32, u32, Vec<u32>)>,
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
        services: 64,
        port_ranges: 16,
        destinations: 192,
        next_hops: 64,
        slots: 1024,
        pool_addresses: 4,
        extensions: 1,
    }
}

impl Scene {
    /// Loads the program, with secrets of this seed.
    pub fn new(object: &[u8], seed: u64) -> Result<Self> {
        let mut random = Random(seed);
        loop {
            let secrets = Secrets::from_random(std::array::from_fn(|_| random.number()));
            let scene = Self::with(object, secrets)?;
            // Local addresses that share a cell of the address filter with another of ours take another way, by chance.
            let all: Vec<IpAddr> =
                VIPS.iter().chain(&POOLS).flatten().map(|text| text.parse()).collect::<Result<_, _>>()?;
            let cell = |ip: &IpAddr| scene.views.cell_of(&Address::from(*ip), ip.is_ipv6());
            if all.iter().map(cell).collect::<BTreeSet<_>>().len() == all.len() {
                return Ok(scene);
            }
        }
    }

    fn with(object: &[u8], secrets: Secrets) -> Result<Self> {
        let plane = Dataplane::open_for_test_with(object, &sizes(), secrets)?;
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
            services: Vec::new(),
            instance: 0,
            config,
        };
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
        this.config.pool = this.plane.pool()?;
        this.set_role(Role::Master);
        Ok(this)
    }

    fn add_services(&mut self, tables: &mut Tables, v6: bool, udp: bool, pool: (u16, u8)) -> Result<()> {
        use OnUnknownFlow::{Adopt, Drop, Pass, Reset};
        let (adopt, reset, drop, pass) = (Adopt, Reset, Drop, Pass);
        let one = |port| (port, port);
        // VIP, ports, method, its servers are of the other family, their port, policies, pick, MSS.
        let rows = [
            (0, one(80), Method::Dr, false, 0, adopt, Pick::HashAddress, 1400),
            (0, one(81), Method::Nat, false, 0, reset, Pick::Cursor, 0),
            (0, one(82), Method::FullNat, false, 0, drop, Pick::Cursor, 1360),
            (0, one(83), Method::Tun, false, 0, pass, Pick::HashAddressPort, 1420),
            (0, one(84), Method::Tun, true, 0, adopt, Pick::Cursor, 0),
            (0, one(85), Method::Nat, false, 8080, adopt, Pick::HashAddress, 1400),
            (0, one(86), Method::FullNat, false, 8087, adopt, Pick::HashAddress, 0),
            // The same servers and port as above: replies meet.
            (0, one(87), Method::Nat, false, 8080, reset, Pick::Cursor, 0),
            (0, (8000, 8010), Method::Dr, false, 0, reset, Pick::Cursor, 0),
            (1, one(80), Method::Dr, false, 0, reset, Pick::Cursor, 0),
            (1, (7000, 7003), Method::Nat, false, 0, adopt, Pick::HashAddressPort, 1000),
            (1, (0, 65535), Method::Tun, false, 0, reset, Pick::HashAddress, 0),
        ];
        for (number, row) in (0u8..).zip(rows) {
            let (vip, (first, last), method, crosses, server_port, on_unknown_flow, pick, mss) = row;
            let name =
                format!("{vip}-{first}-{}-{}", if udp { "udp" } else { "tcp" }, if v6 { 6 } else { 4 });
            let ports = match (first, last) {
                (0, 65535) => Ports::Any,
                (first, last) if first == last => Ports::One(first),
                (first, last) => Ports::Range(first, last),
            };
            let vip: IpAddr = VIPS[v6 as usize][vip].parse()?;
            let ticks = |seconds: u16| scratch::ticks(u64::from(seconds) * 1000, self.views.config.hz) as u16;
            let spec = ServiceSpec {
                name: name.clone(),
                vip,
                protocol: if udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP } as u8,
                ports: vec![ports],
                pick,
                on_unknown_flow,
                mss,
                timeouts: DEFAULT_TIMEOUTS.map(ticks),
                pool: (method == Method::FullNat).then_some(pool),
                rules: Rules {
                    no_server: [NoServer::Drop, NoServer::Reset, NoServer::Unreachable][number as usize % 3],
                    ..Rules::default()
                },
            };
            let index = tables.ensure_service(&spec)?;
            let mut destinations = Vec::new();
            for n in 0..SERVERS {
                let server = match v6 != crosses {
                    true => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, n as u16 + 1]),
                    false => IpAddr::from([10, 0, 0, n + 1]),
                };
                let next_hop = hop(tables, &server.to_string(), false, [[0, 0], [0, 0], [9, 0]][n as usize])?;
                let overhead = if method == Method::Tun { tunnel_overhead(server.is_ipv6()) } else { 0 };
                let key = DestinationKey::new(&name, server, server_port, method);
                let destination = tables.ensure_destination(
                    &key,
                    &DestinationSpec {
                        next_hop,
                        mtu: 1500 - overhead,
                        timeout: spec.timeouts[if udp { State::Udp } else { State::Established } as usize],
                        vip_port: if server_port == 0 { 0 } else { first },
                        tunnel: Default::default(),
                        standing: Standing::DEFAULT,
                    },
                )?;
                destinations.push(destination);
                if method == Method::Tun {
                    tables.bind_address(&name, AddressRole::Tunnel, server)?;
                    self.config.add_tunnel_server(Address::from(server), server.is_ipv6());
                }
                if method == Method::Nat {
                    tables.bind_address(&name, AddressRole::NatSource, server)?;
                    self.config.add_nat_server(Address::from(server), server.is_ipv6());
                }
            }
            let slots: Vec<_> = SLOTS.iter().map(|n| Some(destinations[*n])).collect();
            tables.set_slots(&name, &slots)?;
            tables.bind_ports(&name, &[ports])?;
            tables.bind_address(&name, AddressRole::Vip, vip)?;
            let of = (Address::from(vip), v6, udp, first, last, index as usize);
            self.config.ports.push(of);
            let (at, _) = Service::slots_of(self.views.services.word(index, 0).load(Relaxed));
            self.services.push((index, at, destinations));
        }
        Ok(())
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
        for service in 0..self.services.len() {
            self.set_slots(service, &SLOTS);
        }
        self.set_role(Role::Master);
        let mut model = Model::new(self.config.clone());
        self.look(&mut model);
        for (index, ..) in &self.services {
            model.cursors[*index as usize] = self.views.services.word(*index, 8).load(Relaxed);
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
                (record.flags != 0).then_some(ServiceConfig { record, slots })
            })
            .collect();
        model.cursors.resize(config.services.len(), 0);
        config.roles.clone_from(&self.config.roles);
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
        let (index, first, destinations) = &self.services[service];
        for (at, server) in (*first..).zip(servers) {
            self.views.slot(at).store(destinations[*server] + 1, Relaxed);
        }
        let first = if servers.is_empty() { 0 } else { *first };
        let word = Service::make_slots(first, servers.len() as u32, 0);
        self.views.services.word(*index, 0).store(word, Relaxed);
    }

    /// Something that an agent does between two packets.
    pub fn change(&mut self, random: &mut Random, model: &mut Model) {
        match random.below(16) {
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
                let destination = self.any_destination(random);
                let mtu = random.of(&[1500, 1460, 1280, 600]);
                self.write_word(destination, |word| word & !(0xffff << 16) | mtu << 16);
            }
            // Nobody is left, or all are back.
            3 => {
                let service = random.below(self.services.len());
                let servers: &[usize] = if random.one_in(3) { &[] } else { &SLOTS };
                self.set_slots_of_open(service, servers);
            }
            4..=7 => {
                let (service, n) = (random.below(self.services.len()), random.below(SERVERS as usize));
                let destination = self.services[service].2[n];
                self.write_word(destination, |word| {
                    word & !((flags::CLOSED | flags::RESET_TELLS_SERVER) as u64) << 32
                });
                let closed = random.of(&[
                    flags::DRAINING,
                    flags::REMOVED,
                    flags::RESET,
                    flags::RESET | flags::RESET_TELLS_SERVER,
                    flags::RESET | flags::DRAINING,
                ]);
                let word = self.destinations[destination as usize].word;
                let mtu = self.views.destinations.get(destination).word & 0xffff << 16;
                let word = word & !(0xffff << 16) | mtu | (closed as u64) << 32;
                self.views.destinations.word(destination, 0).store(word, Relaxed);
                self.set_slots_of_open(service, &SLOTS);
            }
            // A server is back.
            _ => {
                let (service, n) = (random.below(self.services.len()), random.below(SERVERS as usize));
                let destination = self.services[service].2[n];
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
            let word = self.views.destinations.get(self.services[service].2[*n]).word;
            Destination::flags_of(word) & flags::CLOSED == 0
        };
        let open: Vec<usize> = servers.iter().copied().filter(is_open).collect();
        self.set_slots(service, &open);
    }

    fn any_destination(&self, random: &mut Random) -> u32 {
        let service = random.below(self.services.len());
        self.services[service].2[random.below(SERVERS as usize)]
    }

    fn write_word(&self, destination: u32, change: impl Fn(u64) -> u64) {
        let word = self.views.destinations.word(destination, 0);
        word.store(change(word.load(Relaxed)), Relaxed);
    }

    /// Cursors of all services, by their index.
    pub fn cursors(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.services
            .iter()
            .map(|(index, ..)| (*index as usize, self.views.services.word(*index, 8).load(Relaxed)))
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
