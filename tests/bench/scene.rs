//! A data plane with one virtual service and the flows that a row visits. Flows are made by the program under
//! test itself, from packets.

use std::mem::offset_of;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, Result, ensure};
use lb_agent::dataplane::{
    Counters, Dataplane, Mapped, Packets, Ports, Sizes, Views,
    tables::{
        ClientVia, Cookies, DestinationKey, DestinationSpec, NextHopKey, Persistence, Quic, Role, Rules,
        ServiceSpec, Standing, Tables, Tunnel,
    },
};
use lb_common::{
    address::Address,
    connection::{Value, WAYS},
    destination::{Forwarding, NextHop, flags, overhead},
    extension::Extension,
    feed::Feed,
    guard::Guard,
    hash::tuple_of_identity_v4,
    header::protocol,
    maps::pinned,
    scratch::ticks,
    sctp,
    service::{OnUnknownFlow, Pick},
    state::{ACK, DEFAULT_TIMEOUTS, SYN, State},
    verdict::Reason,
};

use crate::frames::{
    self, LOCAL_NETWORK, LOCALS, Packet, SERVER_PORT, VIP_PORT, feed, server, vip, with_last_bits,
};
use crate::kernel::{Meter, set_tail};
use crate::rare;
use crate::rows::{CONNECTIONS, MANY, SOME};

/// What BPF_PROG_TEST_RUN says frames came in by: the loopback of this namespace. A next hop there is XDP_TX.
const IFINDEX: u32 = 1;
/// Real servers of a DR or TUN service. NAT and FULLNAT have one, so that the source of replies is constant.
pub const SERVERS: u16 = 64;
/// Weight of each: more than the flows that any run leaves there.
const WEIGHT: u32 = 1 << 20;
/// Local addresses of FULLNAT: two million ports, so that a million flows find one in few probes.
const LOCAL_ADDRESSES: u32 = 32;

/// The feeder, its maps, and the floors.
pub struct Feeder {
    ebpf: aya::Ebpf,
    pub feed: Mapped<Feed>,
    list: Mapped<u64>,
    listed: u32,
    pub meter: Meter,
}

impl Feeder {
    /// Loads the programs. `lines` is the number of buckets of the connection table; `list` has room for so many
    /// flows.
    pub fn load(object: &[u8], lines: u32, list: u32) -> Result<Self> {
        let shift = 64 - lines.ilog2();
        let mut ebpf = aya::EbpfLoader::new()
            .map_max_entries("LINES", lines)
            .map_max_entries("FLOWS", list.max(1))
            .override_global("LINE_SHIFT", &shift, true)
            .load(object)
            .context("load the benchmark's programs")?;
        for (name, program) in ebpf.programs_mut() {
            let program: &mut aya::programs::Xdp = program.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let feed = Mapped::of_map("FEED", map_fd(&ebpf, "FEED")?, 1)?;
        let list = Mapped::of_map("FLOWS", map_fd(&ebpf, "FLOWS")?, list.max(1))?;
        Ok(Self { ebpf, feed, list, listed: 0, meter: Meter::new() })
    }

    /// One of its programs.
    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        let program: &aya::programs::Xdp = program.try_into()?;
        Ok(program.fd()?.as_fd())
    }

    /// Makes a program the one under test.
    pub fn test(&self, program: BorrowedFd<'_>) -> Result<()> {
        set_tail(map_fd(&self.ebpf, "NEXT")?, program).context("hand the program under test to the feeder")
    }

    /// Feeds so many frames to the program under test.
    pub fn run(&self, feed: &Feed, rounds: u32) -> Result<crate::kernel::Cost> {
        self.feed.update(0, feed, 0);
        self.go_on(rounds)
    }

    /// As [`Feeder::run`], with the flows after those of the last run.
    pub fn go_on(&self, rounds: u32) -> Result<crate::kernel::Cost> {
        let len = self.feed.get(0).len as usize;
        self.meter.run(self.program("feeder")?, len, rounds).context("run the program under test")
    }

    /// Adds flows to the list. Returns the index of the first.
    fn list(&mut self, flows: &[u64]) -> Result<u64> {
        let first = self.listed;
        ensure!(first as usize + flows.len() <= self.list.len() as usize, "the list of flows is full");
        for (index, flow) in (first..).zip(flows) {
            self.list.word(index, 0).store(*flow, Relaxed);
        }
        self.listed += flows.len() as u32;
        Ok(first as u64)
    }
}

fn map_fd<'a>(ebpf: &'a aya::Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    match ebpf.map(name) {
        Some(aya::maps::Map::Array(data) | aya::maps::Map::ProgramArray(data)) => Ok(data.fd().as_fd()),
        _ => anyhow::bail!("no map {name}"),
    }
}

/// What is to be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    pub forwarding: Forwarding,
    pub v6: bool,
    /// The family of the real servers: another one than the VIP's only under TUN.
    pub real_v6: bool,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    pub pick: Pick,
    pub on_unknown_flow: OnUnknownFlow,
    /// Real servers of a DR or TUN service.
    pub servers: u16,
    /// Flows to make; a power of two, or 0.
    pub flows: u32,
    /// Flows that the table is sized for.
    pub connections: u32,
    /// Flags of [`Tunnel`].
    pub tunnel: u32,
    pub extra: Extra,
}

/// What else a service has, or its director.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extra {
    Nothing,
    /// Flows begin with a PROXY header: their sequence numbers are shifted.
    Proxy,
    /// Every SYN is answered with a cookie.
    Cookies,
    /// New flows a second above which none has an entry.
    NewFlows(u32),
    Persistence,
    /// Persistence by Call-ID.
    Sip,
    /// The id [`rare::QUIC_ID`] is server 0's.
    Quic,
}

/// The port that GUE goes to.
const GUE_PORT: u16 = 6080;

impl Plan {
    /// TCP, sh, as many real servers as usual, tables for [`CONNECTIONS`], no flows yet.
    pub fn new(forwarding: Forwarding, v6: bool) -> Self {
        Self {
            forwarding,
            v6,
            real_v6: v6,
            protocol: protocol::TCP,
            pick: Pick::HashAddress,
            on_unknown_flow: OnUnknownFlow::Drop,
            servers: SERVERS,
            flows: 0,
            connections: CONNECTIONS,
            tunnel: 0,
            extra: Extra::Nothing,
        }
    }

    /// Entries that it has in the feeder's list.
    pub fn listed(&self) -> u32 {
        if self.extra == Extra::Cookies {
            SOME
        } else if self.flows > 0 && self.sizes().pool_addresses > 0 {
            MANY
        } else {
            0
        }
    }

    /// Whether it is one of the methods with flows and nothing more.
    pub fn is_usual(&self) -> bool {
        let usual = Self { flows: self.flows, ..Self::new(self.forwarding, self.v6) };
        self.flows > 0 && *self == usual
    }

    fn sctp(&self) -> bool {
        self.protocol == protocol::SCTP
    }

    /// Entries that a flow takes.
    fn entries(&self) -> u32 {
        if let Forwarding::Nat = self.forwarding { 2 } else { 1 }
    }

    /// The sizes of its tables.
    pub fn sizes(&self) -> Sizes {
        let entries = self.connections * self.entries();
        Sizes {
            connections: entries,
            connections_v6: if self.v6 { entries } else { 0 },
            pool_addresses: if let Forwarding::FullNat = self.forwarding { LOCAL_ADDRESSES } else { 0 },
            ..Sizes::default()
        }
    }

    /// Bytes per flow that the table was sized for: entries, cold tuples and leases, empty ones included.
    pub fn bytes_per_flow(&self) -> f64 {
        let sizes = self.sizes();
        let mut bytes = sizes.buckets() as u64 * 64;
        if self.v6 {
            bytes += sizes.buckets_v6() as u64 * WAYS as u64 * 32;
        }
        bytes += (sizes.pool_addresses as u64 * 65_536) * 64;
        bytes as f64 / self.connections as f64
    }
}

/// A data plane with its flows.
pub struct Scene {
    pub plan: Plan,
    pub plane: Dataplane,
    views: Arc<Views>,
    counters: Counters,
    records: Mapped<Extension>,
    /// First index of its flows in the feeder's list.
    pub list: u64,
    /// Flows that found no room.
    pub refused: u64,
    _tables: Tables,
}

impl Scene {
    /// Loads the data plane, fills its tables, makes the flows.
    pub fn build(object: &[u8], plan: Plan, feeder: &mut Feeder) -> Result<Self> {
        let sizes = plan.sizes();
        let (v4, v6) = rare::TUNNEL_SOURCES;
        let packets =
            Packets { sources_v4: Some(v4.parse()?), sources_v6: Some(v6.parse()?), ..Packets::default() };
        let plane = Dataplane::open_for_test_as(object, &sizes, packets)?;
        let mut tables = plane.tables()?;
        configure(&mut tables, &plan, plane.clock().hz())?;
        let views = plane.views();
        let counters = plane.counters()?;
        let records = match plane.map(pinned::EXTENSIONS)? {
            aya::maps::Map::Array(data) => {
                Mapped::of_map(pinned::EXTENSIONS, data.fd().as_fd(), sizes.extension_records())?
            }
            _ => anyhow::bail!("no map of extensions"),
        };
        let mut scene = Self { plan, plane, views, counters, records, list: 0, refused: 0, _tables: tables };
        if let Extra::NewFlows(limit) = plan.extra {
            scene.views.guard.half(0, offset_of!(Guard, new_flows)).store(limit, Relaxed);
        }
        if plan.extra == Extra::Cookies {
            scene.list = feeder.list(&vec![0; SOME as usize])?;
        }
        if plan.flows > 0 {
            scene.make_flows(feeder)?;
        }
        Ok(scene)
    }

    /// The flows' SYN and ACK, in turns, so that few are half-open at a time. A run with repetitions waits some
    /// twenty milliseconds for RCU (the kernel patches its XDP dispatcher), so turns are not short.
    fn make_flows(&mut self, feeder: &mut Feeder) -> Result<()> {
        const TURN: u32 = 1 << 15;
        feeder.test(self.plane.main_program()?)?;
        let packets = if self.plan.sctp() {
            // Replies are not seen under dr and tun: the cookie establishes.
            [sctp::chunk::INIT, sctp::chunk::COOKIE_ECHO].map(Packet::ToVipSctp)
        } else {
            [SYN, ACK].map(Packet::ToVip)
        };
        let [mut syn, mut ack] = packets.map(|packet| feed(packet, self.plan.v6, self.plan.flows as u64, 0));
        let mut left = self.plan.flows;
        while left > 0 {
            let turn = left.min(TURN);
            feeder.run(&syn, turn)?;
            syn.position = feeder.feed.get(0).position;
            feeder.run(&ack, turn)?;
            ack.position = syn.position;
            left -= turn;
        }
        let sums = self.sums()?;
        self.refused = self.plan.flows as u64 - sums.event(Reason::FlowNew).min(self.plan.flows as u64);
        let established = self.count(State::Established);
        ensure!(
            self.refused * 50 <= self.plan.flows as u64
                && established + self.refused * 2 >= self.plan.flows as u64,
            "of {} flows {} were refused, and {established} entries are established: {:?}",
            self.plan.flows,
            self.refused,
            sums.reasons,
        );
        if let Forwarding::FullNat = self.plan.forwarding {
            self.no_lease_is_shared()?;
            self.list = feeder.list(&self.leased(self.plan.flows as usize))?;
        }
        Ok(())
    }

    /// Every FULLNAT flow has a lease that names it and its client, and no other flow has that: no reply can go to
    /// anybody else.
    fn no_lease_is_shared(&self) -> Result<()> {
        let views = &self.views;
        let mut named = vec![false; views.leases.len() as usize];
        let vip = views.secrets.key_v4(Address::from(vip(false)).words()[0]);
        for bucket in 0..views.connections.len() {
            for way in 0..WAYS as u32 {
                let value = Value(views.value(bucket, way).load(Relaxed));
                if value.is_empty() {
                    continue;
                }
                let identity = views.identity(bucket, way).load(Relaxed);
                let lease = views.leases.get(value.lease());
                let first = !std::mem::replace(&mut named[value.lease() as usize], true);
                ensure!(first && lease.owner == identity, "lease {} is of two flows", value.lease());
                if !self.plan.v6 {
                    let (client, ports) = tuple_of_identity_v4(&views.secrets, identity, vip, false);
                    let same = lease.client.words()[0] == client && lease.ports == ports;
                    ensure!(same, "lease {} names another client", value.lease());
                }
            }
        }
        Ok(())
    }

    /// Entries in a state.
    fn count(&self, state: State) -> u64 {
        let mut n = 0;
        for bucket in 0..self.views.connections.len() {
            for way in 0..WAYS as u32 {
                n += (Value(self.views.value(bucket, way).load(Relaxed)).state() == state as u8) as u64;
            }
        }
        n
    }

    /// `wanted` leased flows for the feeder's list, in an order that no prefetcher knows. Where flows were
    /// refused, the first ones come twice.
    fn leased(&self, wanted: usize) -> Vec<u64> {
        let leases = &self.views.leases;
        let mut flows = Vec::with_capacity(wanted);
        for lease in 0..leases.len() {
            if Value(leases.word(lease, 8).load(Relaxed)).state() == State::Established as u8 {
                let local = with_last_bits(self.plan.v6, LOCAL_NETWORK, LOCALS + (lease >> 16));
                flows.push(frames::listed(&Address::from(local), self.plan.v6, lease as u16));
            }
        }
        // Fisher and Yates, by the feeder's own generator.
        let mut random = 1u64;
        for i in (1..flows.len()).rev() {
            random = lb_common::feed::next(random);
            flows.swap(i, ((random >> 32) as usize) % (i + 1));
        }
        let missing = wanted.saturating_sub(flows.len());
        flows.extend_from_within(..missing.min(flows.len()));
        flows
    }

    /// Puts the flows of clients that bring a cookie on the list; the cookies are of now.
    pub fn bake(&self, feeder: &Feeder) -> Result<()> {
        let guard = &self.views.guard;
        guard.word(0, offset_of!(Guard, epoch)).store(self.plane.clock().jiffies()?, Relaxed);
        let key = [0, 8].map(|half| guard.word(0, offset_of!(Guard, key) + half).load(Relaxed));
        for number in 0..SOME {
            let entry = rare::cookie(key, self.plan.v6, number);
            feeder.list.word(self.list as u32 + number, 0).store(entry, Relaxed);
        }
        Ok(())
    }

    /// Empties connection table, leases and extension records.
    pub fn wipe(&self) {
        for bucket in 0..self.views.connections.len() {
            for way in 0..WAYS as u32 {
                self.views.identity(bucket, way).store(0, Relaxed);
                self.views.value(bucket, way).store(0, Relaxed);
            }
        }
        for record in 0..self.records.len() {
            for word in 0..size_of::<Extension>() / 8 {
                self.records.word(record, word * 8).store(0, Relaxed);
            }
        }
        if self.plan.sizes().pool_addresses > 0 {
            for lease in 0..self.views.leases.len() {
                self.views.leases.word(lease, 8).store(0, Relaxed);
            }
        }
    }

    /// The counters, summed.
    pub fn sums(&self) -> Result<Sums> {
        let mut sums = Sums::default();
        for traffic in self.counters.destinations()?.values() {
            sums.packets_in += traffic.packets_in;
            sums.packets_out += traffic.packets_out;
        }
        let reasons = self.counters.reasons()?;
        sums.reasons =
            reasons.into_iter().filter(|(_, c)| c.packets > 0).map(|(r, c)| (r, c.packets)).collect();
        Ok(sums)
    }
}

/// Counters of a data plane.
#[derive(Clone, Default, Debug)]
pub struct Sums {
    /// Forwarded to real servers.
    pub packets_in: u64,
    /// Forwarded to clients.
    pub packets_out: u64,
    pub reasons: Vec<(Reason, u64)>,
}

impl Sums {
    /// How often a reason or event was counted.
    pub fn event(&self, reason: Reason) -> u64 {
        self.reasons.iter().find(|(r, _)| *r == reason).map_or(0, |(_, n)| *n)
    }
}

fn hop(last: u8, mtu: u32) -> NextHop {
    NextHop {
        destination: NextHop::pack([2, 0, 0, 1, 0, last], 0),
        source: NextHop::pack([2, 0, 0, 0, 0, 1], 0),
        ifindex: IFINDEX,
        mtu,
        source_v4: Address::from(server(false, 200)).words()[0],
        source_v6: Address::from(server(true, 200)),
        ..NextHop::default()
    }
}

/// What the service asks of its new flows.
fn rules(plan: &Plan, hz: u32) -> Rules {
    let persistence = |sip| Persistence {
        timeout: ticks(300_000, hz) as u16,
        prefix_v4: 32,
        prefix_v6: 128,
        despite_weight_zero: false,
        sip,
    };
    match plan.extra {
        Extra::Nothing | Extra::NewFlows(_) => Rules::default(),
        Extra::Proxy => Rules { proxy: true, ..Rules::default() },
        Extra::Cookies => Rules { cookies: Cookies::Always, ..Rules::default() },
        Extra::Persistence => Rules { persistence: Some(persistence(false)), ..Rules::default() },
        Extra::Sip => Rules { persistence: Some(persistence(true)), ..Rules::default() },
        Extra::Quic => {
            let quic = Quic { offset: rare::QUIC_OFFSET, len: rare::QUIC_ID.len() as u8 };
            Rules { quic: Some(quic), ..Rules::default() }
        }
    }
}

fn configure(tables: &mut Tables, plan: &Plan, hz: u32) -> Result<()> {
    const NAME: &str = "bench";
    let v6 = plan.v6;
    let translates = matches!(plan.forwarding, Forwarding::Nat | Forwarding::FullNat);
    let seconds = if plan.sctp() { sctp::DEFAULT_TIMEOUTS } else { DEFAULT_TIMEOUTS };
    let timeouts = seconds.map(|seconds| ticks(seconds as u64 * 1000, hz) as u16);
    let pool = if let Forwarding::FullNat = plan.forwarding {
        let addresses: Vec<_> =
            (0..LOCAL_ADDRESSES).map(|n| with_last_bits(v6, LOCAL_NETWORK, LOCALS + n)).collect();
        let pool = tables.set_pool(NAME, &addresses, (1, 1))?;
        for address in addresses {
            let index = tables.pool_index(NAME, address).context("the pool lacks its address")?;
            ensure!(
                with_last_bits(v6, LOCAL_NETWORK, LOCALS + index as u32) == address,
                "pool address {address} has index {index}"
            );
            tables.bind_address(NAME, Role::Pool(index), address)?;
        }
        Some(pool)
    } else {
        None
    };
    tables.bind_address(NAME, Role::Vip, vip(v6))?;
    tables.ensure_service(&ServiceSpec {
        name: NAME.into(),
        vip: vip(v6),
        protocol: plan.protocol,
        ports: vec![Ports::One(VIP_PORT)],
        pick: plan.pick,
        on_unknown_flow: plan.on_unknown_flow,
        mss: 0,
        timeouts,
        pool,
        rules: rules(plan, hz),
    })?;
    let mut slots = Vec::new();
    for number in 0..if translates { 1 } else { plan.servers } {
        let address = server(plan.real_v6, number);
        let key = NextHopKey { neighbour: address, ifindex: IFINDEX, vlans: [0; 2], for_clients: false };
        let next_hop = tables.set_next_hop(&key, &hop((number % 250) as u8 + 1, 1500))?;
        let outer = plan.tunnel | if plan.real_v6 { flags::REAL_V6 } else { 0 };
        let overhead =
            if let Forwarding::Tun = plan.forwarding { overhead(outer | Forwarding::Tun as u32) } else { 0 };
        let (port, vip_port) = if translates { (SERVER_PORT, VIP_PORT) } else { (0, 0) };
        let spec = DestinationSpec {
            next_hop,
            mtu: 1500 - overhead,
            timeout: timeouts[State::Established as usize],
            vip_port,
            local: false,
            tunnel: Tunnel {
                flags: plan.tunnel,
                port: if plan.tunnel & flags::GUE != 0 { GUE_PORT } else { 0 },
            },
            standing: Standing { weight: WEIGHT, ordinal: number, ..Standing::DEFAULT },
        };
        let key = DestinationKey::new(NAME, address, port, plan.forwarding);
        slots.push(Some(tables.ensure_destination(&key, &spec)?));
        if let Forwarding::Nat = plan.forwarding {
            tables.bind_address(NAME, Role::NatSource, address)?;
        }
    }
    tables.set_slots(NAME, &slots)?;
    if let (Extra::Quic, Some(Some(first))) = (plan.extra, slots.first()) {
        tables.set_quic_ids(NAME, &[(rare::QUIC_ID.to_vec(), *first)])?;
    }
    if plan.pick.walks() {
        tables.set_servers(NAME, &slots)?;
    }
    let gateway = NextHopKey {
        neighbour: frames::first_client(v6),
        ifindex: IFINDEX,
        vlans: [0; 2],
        for_clients: true,
    };
    let gateway = tables.set_next_hop(&gateway, &hop(250, 1500))?;
    let everywhere = if v6 { "::/0" } else { "0.0.0.0/0" };
    tables.set_client_routes(&[(everywhere.parse()?, ClientVia::NextHop(gateway))])?;
    tables.bind_ports(NAME, &[Ports::One(VIP_PORT)])?;
    Ok(())
}
