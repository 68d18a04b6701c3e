//! The data plane that random frames meet: every forwarding method in both families, each with flows that live;
//! and the image of its tables, to compare with and to go back to.

use super::{
    frames::{Random, Shape, Targets, Tuple, write},
    parser::{Effect, Expected},
};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap as BpfHashMap, lpm_trie::LpmTrie};
use lb_agent::dataplane::{
    Action, Dataplane, Mapped, Ports, Sizes, Tables, Views,
    tables::{ClientVia, DestinationKey, DestinationSpec, NextHopKey, Role, Rules, ServiceSpec, Standing},
};
use lb_common::{
    address::Address,
    connection::{Kind, Value},
    destination::{Forwarding as Method, NextHop, tunnel_overhead},
    filter::{AddressKey, AddressRecord},
    lease::PoolAddress,
    maps::{ClientNeighbour, pinned},
    service::{OnUnknownFlow, Pick, PortRanges, ServiceKey},
    state::{ACK, SYN},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// A virtual service and its only real server.
pub struct Service {
    pub v6: bool,
    pub udp: bool,
    pub first_port: u16,
    pub last_port: u16,
    pub method: Method,
    pub on_unknown_flow: OnUnknownFlow,
    pub mtu: usize,
    pub has_server: bool,
    pick: Pick,
    index: u32,
    destination: u32,
    server: [u8; 16],
    /// Where the real server listens; 0 is the service's port.
    server_port: u16,
}

/// A flow that lives in the image.
pub struct Flow {
    pub service: usize,
    /// Its state's number.
    pub state: u8,
    /// Entries, its twin's (NAT) behind it: word numbers of their values in the connection table.
    entries: Vec<usize>,
}

/// Which way a known packet goes; the flow's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    Client(usize),
    Reply(usize),
}

pub struct World {
    pub plane: Dataplane,
    views: Arc<Views>,
    _tables: Tables,
    pub services: Vec<Service>,
    pub flows: Vec<Flow>,
    pub known: HashMap<Tuple, Known>,
    pub vips: HashSet<([u8; 16], bool)>,
    pub pools: HashSet<([u8; 16], bool)>,
    pub nat_servers: HashSet<([u8; 16], bool)>,
    /// By local address and port: the flow that holds it.
    pub leased: HashMap<([u8; 16], u16), usize>,
    image: Image,
    fixed: BTreeMap<&'static str, Vec<String>>,
    /// How often each service was asked for a server, by `Service::index`.
    cursors: BTreeMap<u32, u64>,
    /// Clients of NAT flows that began.
    nat_clients: HashSet<([u8; 16], bool)>,
}

/// Copies of the tables that lie in memory.
struct Image {
    connections: Vec<u64>,
    cold_tuples: Vec<u64>,
    leases: Vec<u64>,
    others: Vec<(&'static str, Vec<u64>)>,
}

/// All words of a mapped table. The kernel writes them in test runs only, which the same thread makes: the slice
/// must not be held over one.
fn words<T: aya::Pod>(table: &Mapped<T>) -> &[u64] {
    let len = table.len() as usize * size_of::<T>() / 8;
    // SAFETY: a mapped table is one piece of memory of `len` words, which lives as long as `table`; see above.
    unsafe { std::slice::from_raw_parts(table.word(0, 0).as_ptr(), len) }
}

/// Writes words back.
fn restore<T: aya::Pod>(table: &Mapped<T>, image: &[u64]) {
    assert_eq!(words(table).len(), image.len());
    // SAFETY: as for `words`; nobody else writes now.
    unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), table.word(0, 0).as_ptr(), image.len()) };
}

/// Of every path, towards servers and clients alike.
pub const MTU: usize = 1500;
/// Words that are compared at once.
const PIECE: usize = 64;
const VIP4: &str = "203.0.113.10";
const VIP6: &str = "2001:db8:ff::10";
const POOL4: &str = "10.0.0.200";
const POOL6: &str = "2001:db8:1::200";
/// Long: nothing expires, and no packet but one that steps a flow writes.
const TIMEOUT: u16 = 25_000;

fn octets(text: &str) -> Result<([u8; 16], bool)> {
    let address: IpAddr = text.parse().with_context(|| text.to_owned())?;
    Ok((Address::from(address).v6(), address.is_ipv6()))
}

impl World {
    /// Loads the program and begins the flows.
    pub fn new(object: &[u8]) -> Result<Self> {
        loop {
            let world = Self::with_new_secrets(object)?;
            // Local addresses that share a cell of the address filter take another way, by chance.
            let cell =
                |(address, v6): &([u8; 16], bool)| world.views.cell_of(&Address::from_v6(*address), *v6);
            if world.pools.iter().map(cell).collect::<BTreeSet<_>>().len() == world.pools.len() {
                return Ok(world);
            }
        }
    }

    fn with_new_secrets(object: &[u8]) -> Result<Self> {
        let sizes = Sizes {
            // 512 entries: a bucket keeps at most two of the image, so that two more always find room.
            connections: 448,
            connections_v6: 448,
            services: 64,
            port_ranges: 16,
            destinations: 64,
            next_hops: 64,
            slots: 1024,
            pool_addresses: 2,
            extensions: 1,
        };
        let plane = Dataplane::open_for_test(object, &sizes)?;
        let views = plane.views();
        let mut tables = plane.tables()?;
        let mut pools = BTreeMap::new();
        for (name, address) in [("four", POOL4), ("six", POOL6)] {
            let address: IpAddr = address.parse()?;
            let at = tables.set_pool(name, &[address], (1, 1))?;
            tables.bind_address(name, Role::Pool(at.0), address)?;
            pools.insert(address.is_ipv6(), at);
        }
        let mut this = Self {
            vips: HashSet::from([octets(VIP4)?, octets(VIP6)?]),
            pools: HashSet::from([octets(POOL4)?, octets(POOL6)?]),
            nat_servers: HashSet::new(),
            services: Vec::new(),
            flows: Vec::new(),
            known: HashMap::new(),
            leased: HashMap::new(),
            fixed: BTreeMap::new(),
            cursors: BTreeMap::new(),
            nat_clients: HashSet::new(),
            image: Image {
                connections: Vec::new(),
                cold_tuples: Vec::new(),
                leases: Vec::new(),
                others: Vec::new(),
            },
            _tables: plane.tables()?,
            views,
            plane,
        };
        for v6 in [false, true] {
            for udp in [false, true] {
                this.add_services(&mut tables, v6, udp, pools[&v6])?;
            }
        }
        let to4 = hop(&mut tables, "10.0.0.1", true)?;
        let to6 = hop(&mut tables, "fe80::1", true)?;
        tables.set_client_routes(&[
            ("198.51.100.0/24".parse()?, ClientVia::NextHop(to4)),
            ("2001:db8:c::/48".parse()?, ClientVia::NextHop(to6)),
        ])?;
        this._tables = tables;
        this.begin_flows()?;
        this.fixed = this.dump()?;
        this.take_image();
        Ok(this)
    }

    fn add_services(&mut self, tables: &mut Tables, v6: bool, udp: bool, pool: (u16, u8)) -> Result<()> {
        use OnUnknownFlow::{Adopt, Drop, Pass, Reset};
        // First and last port, method, family of the real server is the other one, its port, policy, pick, is there.
        let rows = [
            (80, 80, Method::Dr, false, 0, Adopt, Pick::HashAddress, true),
            (81, 81, Method::Nat, false, 0, Reset, Pick::Cursor, true),
            (82, 82, Method::FullNat, false, 0, Drop, Pick::Cursor, true),
            (83, 83, Method::Tun, false, 0, Pass, Pick::HashAddressPort, true),
            (84, 84, Method::Tun, true, 0, Adopt, Pick::Cursor, true),
            (85, 85, Method::Nat, false, 8085, Adopt, Pick::HashAddress, true),
            (86, 86, Method::Dr, false, 0, Reset, Pick::Cursor, false),
            (87, 87, Method::FullNat, false, 8087, Adopt, Pick::HashAddress, true),
            (8000, 8010, Method::Dr, false, 0, Reset, Pick::Cursor, true),
        ];
        for (number, row) in (1u8..).zip(rows) {
            let (first_port, last_port, method, crosses, server_port, on_unknown_flow, pick, has_server) =
                row;
            let name = format!("{first_port}-{}-{}", if udp { "udp" } else { "tcp" }, if v6 { 6 } else { 4 });
            let ports = if first_port == last_port {
                Ports::One(first_port)
            } else {
                Ports::Range(first_port, last_port)
            };
            let vip: IpAddr = if v6 { VIP6 } else { VIP4 }.parse()?;
            let index = tables.ensure_service(&ServiceSpec {
                name: name.clone(),
                vip,
                protocol: if udp { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP } as u8,
                ports: vec![ports],
                pick,
                on_unknown_flow,
                mss: if first_port == 80 { 1400 } else { 0 },
                timeouts: [TIMEOUT; 16],
                pool: (method == Method::FullNat).then_some(pool),
                rules: Rules::default(),
            })?;
            let server = match v6 != crosses {
                true => IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, number as u16]),
                false => IpAddr::from([10, 0, 0, number]),
            };
            let next_hop = hop(tables, &server.to_string(), false)?;
            let overhead = if method == Method::Tun { tunnel_overhead(server.is_ipv6()) } else { 0 };
            let mtu = MTU as u16 - overhead;
            let key = DestinationKey::new(&name, server, server_port, method);
            let vip_port = if server_port == 0 { 0 } else { first_port };
            let spec = DestinationSpec {
                next_hop,
                mtu,
                timeout: TIMEOUT,
                vip_port,
                local: false,
                tunnel: Default::default(),
                standing: Standing::DEFAULT,
            };
            let destination = tables.ensure_destination(&key, &spec)?;
            let slots = if has_server { vec![Some(destination)] } else { Vec::new() };
            tables.set_slots(&name, &slots)?;
            tables.bind_ports(&name, &[ports])?;
            tables.bind_address(&name, Role::Vip, vip)?;
            if method == Method::Nat {
                tables.bind_address(&name, Role::NatSource, server)?;
                self.nat_servers.insert((Address::from(server).v6(), server.is_ipv6()));
            }
            self.services.push(Service {
                v6,
                udp,
                first_port,
                last_port,
                method,
                on_unknown_flow,
                mtu: mtu as usize,
                has_server,
                pick,
                index,
                destination,
                server: Address::from(server).v6(),
                server_port,
            });
        }
        Ok(())
    }

    /// The service that a packet is for.
    pub fn service_of(&self, packet: &Tuple) -> Option<usize> {
        self.services.iter().position(|service| {
            (service.v6, service.udp) == (packet.v6, packet.udp)
                && (service.first_port..=service.last_port).contains(&packet.destination_port)
        })
    }

    /// Of each service one flow that has proven nothing, and one that has.
    fn begin_flows(&mut self) -> Result<()> {
        let mut random = Random(7);
        for service in 0..self.services.len() {
            if self.services[service].has_server {
                for proven in [false, true] {
                    self.begin_flow(&mut random, service, proven)?;
                }
            }
        }
        Ok(())
    }

    fn begin_flow(&mut self, random: &mut Random, index: usize, proven: bool) -> Result<()> {
        let service = &self.services[index];
        let (v6, udp, method) = (service.v6, service.udp, service.method);
        // A tuple whose entries leave room for two more beside them.
        let (tuple, mut reply) = loop {
            let (source, _) = octets(if v6 { "2001:db8:c::7" } else { "198.51.100.7" })?;
            let (destination, _) = octets(if v6 { VIP6 } else { VIP4 })?;
            let tuple = Tuple {
                v6,
                udp,
                source,
                destination,
                source_port: 20_000 + random.below(40_000) as u16,
                destination_port: service.last_port,
            };
            let mut to_server = tuple;
            to_server.destination = service.server;
            if service.server_port != 0 {
                to_server.destination_port = service.server_port;
            }
            let reply = to_server.turned();
            let mut buckets = vec![self.bucket(&tuple)];
            if method == Method::Nat {
                buckets.push(self.bucket(&reply));
            }
            let crowded = |bucket: &usize| {
                let others = buckets.iter().filter(|other| *other == bucket).count();
                let entries = &words(&self.views.connections)[bucket * 8..bucket * 8 + 8];
                entries.iter().skip(1).step_by(2).filter(|value| **value != 0).count() + others > 2
            };
            if !buckets.iter().any(crowded) {
                break (tuple, reply);
            }
        };
        let before = words(&self.views.connections).to_vec();
        let out = self.run(&tuple, SYN)?;
        if method == Method::FullNat {
            let ip = if v6 { 40 } else { 20 };
            let local = if v6 { &out[22..38] } else { &out[26..30] };
            reply.destination = [0; 16];
            reply.destination[..local.len()].copy_from_slice(local);
            reply.destination_port = u16::from_be_bytes([out[14 + ip], out[14 + ip + 1]]);
        }
        let number = self.flows.len();
        let replies = matches!(method, Method::Nat | Method::FullNat);
        if proven {
            self.run(&tuple, ACK)?;
            if replies {
                self.run(&reply, ACK)?;
            }
        }
        let after = words(&self.views.connections);
        let mut entries: Vec<usize> =
            (0..after.len()).filter(|i| i % 2 == 1 && before[*i] != after[*i]).collect();
        // The twin last: it is the one that says so.
        entries.sort_by_key(|i| Value(after[*i]).kind() == Kind::NatReply);
        let wanted = if method == Method::Nat { 2 } else { 1 };
        ensure!(entries.len() == wanted, "{method:?}: {} entries of one flow", entries.len());
        let state = Value(after[entries[0]]).state();
        self.flows.push(Flow { service: index, state, entries });
        self.known.insert(tuple, Known::Client(number));
        if replies {
            self.known.insert(reply, Known::Reply(number));
        }
        if method == Method::FullNat {
            self.leased.insert((reply.destination, reply.destination_port), number);
        }
        Ok(())
    }

    fn run(&self, tuple: &Tuple, flags: u8) -> Result<Vec<u8>> {
        let out = self.plane.test_run(&write(tuple, &Shape::plain(flags)))?;
        ensure!(out.action == Action::Tx, "{tuple:?} was not forwarded: {:?}", out.action);
        Ok(out.frame)
    }

    fn bucket(&self, tuple: &Tuple) -> usize {
        let (secrets, config) = (&self.views.secrets, &self.views.config);
        let (to, from) = (Address::from_v6(tuple.destination), Address::from_v6(tuple.source));
        let ports = lb_common::hash::ports_word(tuple.source_port, tuple.destination_port);
        let (identity, shift) = if tuple.v6 {
            let sum = secrets.sum_v6(to.halves());
            (secrets.identity_v6(sum, from.halves(), ports, tuple.udp), config.bucket_shift_v6)
        } else {
            let key = secrets.key_v4(to.words()[0]);
            let of = lb_common::hash::tuple_v4(from.words()[0], ports);
            (secrets.identity_v4(key, of, tuple.udp), config.bucket_shift)
        };
        (secrets.first(identity) >> shift) as usize
    }

    /// What frames can be made to hit.
    pub fn targets(&self) -> Targets {
        let mut known: Vec<_> = self.known.keys().copied().collect();
        known.sort_by_key(|tuple| format!("{tuple:?}"));
        let sorted = |set: &HashSet<([u8; 16], bool)>| set.iter().copied().collect::<BTreeSet<_>>();
        let mut ours = Vec::new();
        // Packets to VIPs reach more than those to local addresses.
        for _ in 0..4 {
            ours.extend(sorted(&self.vips));
        }
        ours.extend(sorted(&self.pools));
        Targets {
            known,
            ours,
            servers: sorted(&self.nat_servers).into_iter().collect(),
            ports: vec![80, 81, 82, 83, 84, 85, 86, 87, 8000, 8005, 8010, 7999, 8011, 22],
        }
    }

    fn take_image(&mut self) {
        self.image = Image {
            connections: words(&self.views.connections).to_vec(),
            cold_tuples: words(&self.views.cold_tuples).to_vec(),
            leases: words(&self.views.leases).to_vec(),
            others: self.others().map(|(name, words)| (name, words.to_vec())).collect(),
        };
        for service in &self.services {
            self.cursors.insert(service.index, self.views.services.get(service.index).cursor);
        }
    }

    /// Tables that no frame may write, but for the cursors in the last.
    fn others(&self) -> impl Iterator<Item = (&'static str, &[u64])> {
        [
            (pinned::DESTINATIONS, words(&self.views.destinations)),
            (pinned::NEXT_HOPS, words(&self.views.next_hops)),
            (pinned::SLOTS, words(&self.views.slots)),
            (pinned::FILTER, words(&self.views.filter)),
            (pinned::SERVICES, words(&self.views.services)),
        ]
        .into_iter()
    }

    /// Whether the connection table changed as it had to; then it is again as it was.
    pub fn check_effect(&mut self, expected: &Expected, client: Option<([u8; 16], bool)>) -> Result<()> {
        if let Some(service) = expected.picks {
            let service = &self.services[service];
            if service.pick == Pick::Cursor
                && let Some(cursor) = self.cursors.get_mut(&service.index)
            {
                *cursor += 1;
            }
        }
        let now = words(&self.views.connections);
        if now == self.image.connections {
            return match expected.effect {
                Effect::Nothing => Ok(()),
                Effect::Begins { .. } => bail!("no flow was begun"),
                Effect::Steps { flow, state } if self.flows[flow].state != state => {
                    bail!("state {state} was not entered")
                }
                Effect::Steps { .. } => Ok(()),
            };
        }
        // By pieces first: a word at a time takes longer than all else.
        let changed: Vec<usize> = now
            .chunks(PIECE)
            .zip(self.image.connections.chunks(PIECE))
            .enumerate()
            .filter(|(_, (now, image))| now != image)
            .flat_map(|(piece, (now, image))| {
                let entries = (0..now.len() / 2).filter(|i| now[i * 2..i * 2 + 2] != image[i * 2..i * 2 + 2]);
                entries.map(|i| piece * PIECE + i * 2 + 1).collect::<Vec<_>>()
            })
            .collect();
        let words_of = |at: usize| (Value(self.image.connections[at]), Value(now[at]));
        match expected.effect {
            Effect::Nothing => bail!("{} entries changed, though none may", changed.len()),
            Effect::Begins { service } => {
                let service = &self.services[service];
                let wanted = if service.method == Method::Nat { 2 } else { 1 };
                ensure!(changed.len() == wanted, "{} entries changed, not {wanted}", changed.len());
                for at in &changed {
                    let (old, new) = words_of(*at);
                    ensure!(old.is_empty(), "an entry in use was written over: {old:?} by {new:?}");
                    let destination = match new.kind() {
                        Kind::FullNat => self.views.lease_word(new.lease()).destination(),
                        _ => new.destination(),
                    };
                    ensure!(destination == service.destination, "a flow to destination {destination}");
                }
                if service.method == Method::Nat
                    && let Some(client) = client
                {
                    self.nat_clients.insert(client);
                }
            }
            Effect::Steps { flow, state } => {
                let flow = &self.flows[flow];
                for at in &changed {
                    ensure!(flow.entries.contains(at), "another flow's entry changed: {:?}", words_of(*at));
                    let (old, new) = words_of(*at);
                    ensure!(
                        new.payload() == old.payload() && new.kind() == old.kind(),
                        "{old:?} became {new:?}"
                    );
                    ensure!(now[at - 1] == self.image.connections[at - 1], "an identity changed");
                    ensure!(new.state() == state, "state {} instead of {state}", new.state());
                }
                if flow.state != state {
                    ensure!(changed.len() == flow.entries.len(), "a pair changed in half");
                }
            }
        }
        self.go_back(&changed)
    }

    /// Leases follow their entries: what an entry may change, so may its lease.
    fn go_back(&mut self, changed: &[usize]) -> Result<()> {
        for at in changed {
            for value in [words(&self.views.connections)[*at], self.image.connections[*at]].map(Value) {
                if !value.is_empty() && value.kind() == Kind::FullNat {
                    let first = value.lease() as usize * 8;
                    for (i, word) in self.image.leases[first..first + 8].iter().enumerate() {
                        let lease = self.views.leases.word(value.lease(), i * 8);
                        lease.store(*word, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            }
        }
        restore(&self.views.connections, &self.image.connections);
        restore(&self.views.cold_tuples, &self.image.cold_tuples);
        Ok(())
    }

    /// Whether everything else that lies in memory is as it was.
    pub fn check_rest(&self) -> Result<()> {
        ensure!(words(&self.views.cold_tuples) == self.image.cold_tuples, "COLD_TUPLES changed");
        if words(&self.views.leases) != self.image.leases {
            let now = words(&self.views.leases);
            let at = (0..now.len()).find(|i| now[*i] != self.image.leases[*i]).unwrap_or_default();
            bail!("lease {:#x} changed, word {}", at / 8, at % 8);
        }
        for ((name, now), (_, image)) in self.others().zip(&self.image.others) {
            let is_cursor = |i: usize| name == pinned::SERVICES && i % 8 == 1;
            if let Some(at) = (0..now.len()).find(|i| now[*i] != image[*i] && !is_cursor(*i)) {
                bail!("{name} changed: element {}, word {}", at / 8, at % 8);
            }
        }
        for (index, wanted) in &self.cursors {
            let cursor = self.views.services.get(*index).cursor;
            ensure!(cursor == *wanted, "the cursor of service {index} is {cursor}, not {wanted}");
        }
        Ok(())
    }

    /// After a frame that was wrong: everything as at the beginning, to look at the next frames.
    pub fn reset(&mut self) {
        restore(&self.views.connections, &self.image.connections);
        restore(&self.views.cold_tuples, &self.image.cold_tuples);
        restore(&self.views.leases, &self.image.leases);
        for service in &self.services {
            self.cursors.insert(service.index, self.views.services.get(service.index).cursor);
        }
    }

    /// Whether the tables that are reached by system call are as they were, and of clients only those of NAT flows
    /// are remembered.
    pub fn check_system_tables(&self) -> Result<()> {
        for (name, now) in self.dump()? {
            ensure!(self.fixed[name] == now, "{name} changed:\n{:?}\n{:?}", self.fixed[name], now);
        }
        let name = pinned::CLIENT_NEIGHBOURS;
        let neighbours = BpfHashMap::<_, AddressKey, ClientNeighbour>::try_from(self.plane.map(name)?)?;
        for key in neighbours.keys() {
            let key = key?;
            let client = (key.address.v6(), key.family == 6);
            ensure!(self.nat_clients.contains(&client), "{name} has a client of no NAT flow: {key:?}");
        }
        Ok(())
    }

    fn dump(&self) -> Result<BTreeMap<&'static str, Vec<String>>> {
        let mut tables = BTreeMap::new();
        let map = |name| self.plane.map(name);
        macro_rules! hash {
            ($name:ident, $key:ty, $value:ty) => {
                let table = BpfHashMap::<_, $key, $value>::try_from(map(pinned::$name)?)?;
                let mut lines: Vec<String> =
                    table.iter().map(|entry| Ok(format!("{:?}", entry?))).collect::<Result<_>>()?;
                lines.sort();
                tables.insert(pinned::$name, lines);
            };
        }
        macro_rules! array {
            ($name:ident, $value:ty) => {
                let table = Array::<_, $value>::try_from(map(pinned::$name)?)?;
                let lines = table.iter().map(|entry| Ok(format!("{:?}", entry?))).collect::<Result<_>>()?;
                tables.insert(pinned::$name, lines);
            };
        }
        hash!(SERVICE_INDEX, ServiceKey, u32);
        hash!(ADDRESSES, AddressKey, AddressRecord);
        array!(PORT_RANGES, PortRanges);
        array!(POOL, PoolAddress);
        array!(VRRP, u64);
        array!(EXTENSIONS, [u64; 8]);
        array!(SECRETS, lb_common::hash::Secrets);
        let routes = LpmTrie::<_, [u8; 4], u32>::try_from(map(pinned::CLIENT_ROUTES4)?)?;
        let lines = routes.iter().map(|entry| {
            let (key, value) = entry?;
            Ok(format!("{:?}/{} {value}", key.data(), key.prefix_len()))
        });
        tables.insert(pinned::CLIENT_ROUTES4, lines.collect::<Result<_>>()?);
        let routes = LpmTrie::<_, [u8; 16], u32>::try_from(map(pinned::CLIENT_ROUTES6)?)?;
        let lines = routes.iter().map(|entry| {
            let (key, value) = entry?;
            Ok(format!("{:?}/{} {value}", key.data(), key.prefix_len()))
        });
        tables.insert(pinned::CLIENT_ROUTES6, lines.collect::<Result<_>>()?);
        Ok(tables)
    }
}

/// A resolved next hop by the interface that test runs come in by.
fn hop(tables: &mut Tables, neighbour: &str, for_clients: bool) -> Result<u32> {
    let key = NextHopKey { neighbour: neighbour.parse()?, ifindex: 1, vlans: [0, 0], for_clients };
    let record = NextHop {
        destination: NextHop::pack([2, 0, 0, 0, 0, 9], 0),
        source: NextHop::pack([2, 0, 0, 0, 0, 1], 0),
        ifindex: 1,
        mtu: MTU as u32,
        source_v4: u32::from_ne_bytes([10, 0, 0, 2]),
        source_v6: Address::from(IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xff])),
        ..NextHop::default()
    };
    Ok(tables.set_next_hop(&key, &record)?)
}
