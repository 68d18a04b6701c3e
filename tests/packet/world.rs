//! A data plane for one case: loaded on no interface, filled through the tables, run frame by frame.
//! Each frame must end in exactly one counter; at the end of the case all counters must sum up to what was sent.

use crate::frame::{self, Mac, Packet};
use aya::{
    Pod,
    maps::{Array, DevMapHash, HashMap, Map, MapData, PerCpuArray, PerCpuValues, lpm_trie::LpmTrie},
};
use ipnet::IpNet;
use lb_agent::dataplane::{
    Action, Counters, Dataplane, OBJECT, Packets, Ports, Sizes, Tables, Views,
    dump::{self, Connection, FlowState},
    tables::{
        ClientVia, DestinationKey, DestinationSpec, NextHopKey, Role, Rules, ServiceSpec, Standing, Tunnel,
    },
};
use lb_common::{
    connection::{Kind, Value, WAYS},
    destination::{Forwarding, NextHop, Traffic, flags, overhead},
    extension::Extension,
    filter::{AddressKey, AddressRecord, PeerKey},
    guard::Pace,
    lease::PoolAddress,
    load::{Load, Rate},
    maps::{ClientNeighbour, own, pinned},
    scratch::{self, Limiter},
    sctp,
    service::{OnUnknownFlow, Pick, QuicKey, ServiceKey},
    state::{DEFAULT_TIMEOUTS, State},
    verdict::{Class, Reason},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::SeqCst},
};

/// The interface that frames come in by: BPF_PROG_TEST_RUN takes `lo`.
pub const INGRESS: u32 = 1;
/// Our MAC there.
pub const DIRECTOR: Mac = [2, 0, 0, 0, 0xd, 1];
/// The router that client frames come from.
pub const GATEWAY: Mac = [2, 0, 0, 0, 0xc, 1];
/// Of every path, bytes.
pub const MTU: u16 = 1500;

/// The MAC of a server, from the last octet of its address.
pub fn mac_of(server: IpAddr) -> Mac {
    let last = match server {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    [2, 0, 0, 0, 0x5, last]
}

/// Address `n` of the family that `v6` says, one network for each kind of host.
pub fn vip(v6: bool) -> IpAddr {
    if v6 { "2001:db8:9::10".parse().unwrap() } else { "203.0.113.10".parse().unwrap() }
}

pub fn server(v6: bool, n: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(10, 0, 0, n).into()
    }
}

pub fn client(v6: bool, n: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(198, 51, 100, n).into()
    }
}

/// Address of the pool.
pub fn local(v6: bool) -> IpAddr {
    if v6 { "2001:db8::200".parse().unwrap() } else { "10.0.0.200".parse().unwrap() }
}

/// Source of tunnel packets.
pub fn tunnel_source(v6: bool) -> IpAddr {
    if v6 { "2001:db8::1".parse().unwrap() } else { "10.0.0.1".parse().unwrap() }
}

/// Where a frame was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    Reason(Reason),
    /// Forwarded to a destination.
    In(u32),
    /// A destination's reply.
    Out(u32),
}

/// What became of a frame.
#[derive(Debug)]
pub struct Seen {
    pub action: Action,
    pub frame: Vec<u8>,
    pub counted: Counted,
    /// Events on its way, by name.
    pub events: Vec<Reason>,
}

#[derive(Clone, Default)]
struct Snapshot {
    reasons: Vec<(Reason, u64, u64)>,
    traffic: Vec<Traffic>,
    retired: Traffic,
}

pub struct World {
    pub plane: Arc<Dataplane>,
    pub tables: Tables,
    /// What servers are added with.
    pub standing: Standing,
    /// What servers of TUN are added with.
    pub tunnel: Tunnel,
    counters: Counters,
    sizes: Sizes,
    policies: u32,
    /// Counters when the case began: the data plane may have served another before.
    start: Snapshot,
    before: Snapshot,
    sent: u64,
    hz: u32,
    /// Names of the rows that were run, for [`CASES`].
    cases: BTreeSet<String>,
}

/// Where `cargo xtask test packet` wants to be told which cases were run: a line for each, "test: row".
const CASES: &str = "LB_PACKET_CASES";

/// Small tables: a case must not depend on room that it does not ask for.
pub fn sizes() -> Sizes {
    Sizes {
        connections: 2048,
        connections_v6: 512,
        services: 16,
        port_ranges: 16,
        destinations: 32,
        next_hops: 64,
        slots: 512,
        pool_addresses: 2,
        extensions: 64,
    }
}

/// Where the sources of tunnels lie that vary by flow.
pub fn varying_sources(v6: bool) -> IpNet {
    if v6 { "fd00:200::/64".parse().unwrap() } else { "10.200.0.0/16".parse().unwrap() }
}

/// What the data plane of the cases is loaded with.
pub fn packets() -> Packets {
    let (IpNet::V4(v4), IpNet::V6(v6)) = (varying_sources(false), varying_sources(true)) else {
        panic!("of the wrong family")
    };
    Packets { policies: 0, sources_v4: Some(v4), sources_v6: Some(v6) }
}

impl World {
    pub fn new() -> Self {
        Self::with_policies(0)
    }

    /// With these policies for rare packets.
    pub fn with_policies(policies: u32) -> Self {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle.iter().position(|(of, _)| *of == policies).map(|at| idle.swap_remove(at));
        drop(idle);
        match found {
            Some((_, plane)) => {
                empty(&plane);
                Self::around(plane, sizes(), policies)
            }
            None => Self::load(sizes(), policies),
        }
    }

    /// With tables of these sizes.
    pub fn of(sizes: Sizes) -> Self {
        Self::load(sizes, 0)
    }

    fn load(sizes: Sizes, policies: u32) -> Self {
        let packets = Packets { policies, ..packets() };
        let plane =
            Dataplane::open_for_test_as(OBJECT, &sizes, packets).expect("load the data plane (needs root)");
        Self::around(Arc::new(plane), sizes, policies)
    }

    fn around(plane: Arc<Dataplane>, sizes: Sizes, policies: u32) -> Self {
        let tables = plane.tables().expect("tables");
        let counters = plane.counters().expect("counters");
        let hz = plane.clock().hz();
        let mut world = Self {
            plane,
            tables,
            standing: Standing::DEFAULT,
            tunnel: Tunnel::default(),
            counters,
            sizes,
            policies,
            start: Snapshot::default(),
            before: Snapshot::default(),
            sent: 0,
            hz,
            cases: BTreeSet::new(),
        };
        world.before = world.snapshot();
        world.start = world.before.clone();
        world
    }

    pub fn views(&self) -> Arc<Views> {
        self.plane.views()
    }

    /// A handle of its own on a map of the data plane, to write what the tables do not.
    pub fn map(&self, name: &'static str) -> Map {
        map(&self.plane, name)
    }

    /// Ticks of a number of seconds.
    pub fn ticks(&self, seconds: u16) -> u16 {
        scratch::ticks(u64::from(seconds) * 1000, self.hz) as u16
    }

    /// A service with the defaults of the cases: rr, onUnknownFlow reset, IPVS's timeouts.
    pub fn spec(&self, name: &str, vip: IpAddr, protocol: u8, ports: &[Ports]) -> ServiceSpec {
        ServiceSpec {
            name: name.into(),
            vip,
            protocol,
            ports: ports.to_vec(),
            pick: Pick::Cursor,
            on_unknown_flow: OnUnknownFlow::Reset,
            mss: 0,
            timeouts: if protocol == frame::SCTP { sctp::DEFAULT_TIMEOUTS } else { DEFAULT_TIMEOUTS }
                .map(|seconds| self.ticks(seconds)),
            pool: None,
            rules: Rules::default(),
        }
    }

    /// Makes a service reachable.
    pub fn service(&mut self, spec: &ServiceSpec) -> u32 {
        let index = self.tables.ensure_service(spec).expect("service");
        self.tables.bind_address(&spec.name, Role::Vip, spec.vip).expect("VIP");
        self.tables.bind_ports(&spec.name, &spec.ports).expect("ports");
        index
    }

    /// The hop to a server on the ingress interface.
    pub fn hop(&mut self, server: IpAddr) -> u32 {
        self.hop_by(server, INGRESS, [0, 0], mac_of(server))
    }

    pub fn hop_by(&mut self, neighbour: IpAddr, ifindex: u32, vlans: [u16; 2], mac: Mac) -> u32 {
        let key = NextHopKey { neighbour, ifindex, vlans, for_clients: false };
        self.tables.set_next_hop(&key, &hop_record(mac, ifindex, vlans)).expect("next hop")
    }

    /// Adds a real server behind a service and returns its destination's index; slots are another call.
    pub fn server(&mut self, spec: &ServiceSpec, address: IpAddr, port: u16, forwarding: Forwarding) -> u32 {
        let next_hop = self.hop(address);
        self.server_by(spec, address, port, forwarding, next_hop, MTU)
    }

    pub fn server_by(
        &mut self,
        spec: &ServiceSpec,
        address: IpAddr,
        port: u16,
        forwarding: Forwarding,
        next_hop: u32,
        mtu: u16,
    ) -> u32 {
        let tunnel = if forwarding == Forwarding::Tun { self.tunnel } else { Tunnel::default() };
        let real_v6 = if address.is_ipv6() { flags::REAL_V6 } else { 0 };
        let overhead = overhead(forwarding as u32 | real_v6 | tunnel.flags);
        let vip_port = match spec.ports[..] {
            [Ports::One(vip_port)] if port != 0 && port != vip_port => vip_port,
            _ => 0,
        };
        let established = if spec.protocol == frame::UDP { State::Udp } else { State::Established };
        let destination = DestinationSpec {
            next_hop: if next_hop == HERE { 0 } else { next_hop },
            mtu: mtu - overhead,
            timeout: spec.timeouts[established as usize],
            vip_port,
            local: next_hop == HERE,
            tunnel,
            standing: self.standing,
        };
        let key = DestinationKey::new(&spec.name, address, port, forwarding);
        if forwarding == Forwarding::Nat {
            let owner = format!("{}/{address}", spec.name);
            self.tables.bind_address(&owner, Role::NatSource, address).expect("NAT source");
        }
        self.tables.ensure_destination(&key, &destination).expect("destination")
    }

    pub fn slots(&mut self, service: &str, destinations: &[u32]) {
        let slots: Vec<_> = destinations.iter().copied().map(Some).collect();
        self.tables.set_slots(service, &slots).expect("slots");
    }

    /// The list of servers that counted schedulers walk.
    pub fn servers(&mut self, service: &str, destinations: &[u32]) {
        let servers: Vec<_> = destinations.iter().copied().map(Some).collect();
        self.tables.set_servers(service, &servers).expect("servers");
    }

    /// (active, inactive) flows of a destination as the data plane counts them.
    pub fn counts(&self, destination: u32) -> (u32, u32) {
        let load = self.tables.load_of(destination).expect("a destination");
        Load::counts_of(self.views().counts(load).load(SeqCst))
    }

    /// Says that a destination has so many.
    pub fn set_counts(&self, destination: u32, active: u32, inactive: u32) {
        let load = self.tables.load_of(destination).expect("a destination");
        let word = u64::from(active) + u64::from(inactive) * lb_common::load::INACTIVE;
        self.views().counts(load).store(word, SeqCst);
    }

    /// A pool of one local address; what a service's `pool` wants.
    pub fn pool(&mut self, address: IpAddr, share: (u32, u32)) -> (u16, u8) {
        self.pool_of(&[address], share)
    }

    /// A pool of several addresses, for flows from here on.
    pub fn pool_of(&mut self, addresses: &[IpAddr], share: (u32, u32)) -> (u16, u8) {
        let pool = self.tables.set_pool("pool", addresses, share).expect("pool");
        for (n, address) in addresses.iter().enumerate() {
            let role = Role::Pool(pool.0 + n as u16);
            self.tables.bind_address(&format!("pool-{n}"), role, *address).expect("pool address");
        }
        pool
    }

    /// Clients of both families are behind a router with this MAC.
    pub fn clients_behind(&mut self, mac: Mac) {
        let mut routes = Vec::new();
        for (router, prefix) in [("10.0.0.254", "0.0.0.0/0"), ("2001:db8::254", "::/0")] {
            let neighbour = router.parse().unwrap();
            let key = NextHopKey { neighbour, ifindex: INGRESS, vlans: [0, 0], for_clients: true };
            let index = self.tables.set_next_hop(&key, &hop_record(mac, INGRESS, [0, 0])).expect("next hop");
            routes.push((prefix.parse::<IpNet>().unwrap(), ClientVia::NextHop(index)));
        }
        self.tables.set_client_routes(&routes).expect("client routes");
    }

    fn case(&mut self, name: &str) {
        self.cases.insert(name.to_owned());
    }

    /// Says which cases there were.
    fn tell_cases(&self) {
        let Some(path) = std::env::var_os(CASES) else { return };
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let names = self.cases.iter().map(|case| format!("{test}: {}\n", case.replace('\n', " ")));
        let lines: String = std::iter::once(format!("{test}\n")).chain(names).collect();
        let mut file = std::fs::File::options().append(true).create(true).open(path).expect(CASES);
        file.write_all(lines.as_bytes()).expect(CASES);
    }

    /// Runs one frame through. It must end in exactly one counter, with its length, and the action must fit that.
    pub fn send(&mut self, frame: &[u8]) -> Seen {
        let outcome = self.plane.test_run(frame).expect("BPF_PROG_TEST_RUN");
        self.sent += 1;
        let after = self.snapshot();
        let (mut counted, mut events) = (Vec::new(), Vec::new());
        for (old, new) in self.before.reasons.iter().zip(&after.reasons) {
            let reason = new.0;
            for _ in old.1..new.1 {
                match reason.class() {
                    Class::Event | Class::Withheld => events.push(reason),
                    _ => counted.push((Counted::Reason(reason), new.2 - old.2)),
                }
            }
        }
        for (index, (old, new)) in (0..).zip(self.before.traffic.iter().zip(&after.traffic)) {
            for _ in old.packets_in..new.packets_in {
                counted.push((Counted::In(index), new.bytes_in - old.bytes_in));
            }
            for _ in old.packets_out..new.packets_out {
                counted.push((Counted::Out(index), new.bytes_out - old.bytes_out));
            }
        }
        self.before = after;
        let [(counted, bytes)] = counted[..] else {
            panic!("a frame must be counted once; it was counted as {counted:?} ({:?})", outcome.action);
        };
        assert_eq!(bytes, frame.len() as u64, "{counted:?}: bytes are those of the frame as it came");
        match counted {
            Counted::Reason(reason) if reason.class() == Class::Pass => {
                assert_eq!(outcome.action, Action::Pass, "{reason:?}");
                assert_eq!(outcome.frame, frame, "{reason:?}: a frame for the kernel was touched");
            }
            Counted::Reason(reason) if reason.class() == Class::Drop => {
                assert_eq!(outcome.action, Action::Drop, "{reason:?}");
            }
            Counted::Reason(reason) if reason.class() == Class::Divert => {
                assert!(matches!(outcome.action, Action::Tx | Action::Redirect), "{reason:?}");
            }
            Counted::Reason(reason) => {
                assert_eq!(outcome.action, Action::Tx, "{reason:?}: an answer goes back")
            }
            Counted::In(_) if events.contains(&Reason::TunnelFragmented) => {
                assert_eq!(outcome.action, Action::Pass, "the kernel is to fragment it");
            }
            // A real server that is the director itself.
            Counted::In(_) if outcome.action == Action::Pass => {
                assert_eq!(outcome.frame, frame, "a frame for the kernel was touched");
            }
            Counted::In(_) | Counted::Out(_) => {
                assert!(matches!(outcome.action, Action::Tx | Action::Redirect), "{:?}", outcome.action);
            }
        }
        Seen { action: outcome.action, frame: outcome.frame, counted, events }
    }

    /// The events of a run that was not this one's.
    pub fn events_since(&mut self) -> Vec<Reason> {
        let after = self.snapshot();
        let pairs = self.before.reasons.iter().zip(&after.reasons);
        let events = pairs.flat_map(|(old, new)| (old.1..new.1).map(|_| new.0)).collect();
        self.before = after;
        events
    }

    /// The frame ends with a reason.
    pub fn ends(&mut self, case: &str, packet: &Packet, reason: Reason) -> Seen {
        self.ends_frame(case, &packet.bytes(), reason)
    }

    pub fn ends_frame(&mut self, case: &str, frame: &[u8], reason: Reason) -> Seen {
        self.case(case);
        let seen = self.send(frame);
        assert_eq!(seen.counted, Counted::Reason(reason), "{case}");
        seen
    }

    /// Gives the egress program a frame of the host's own: it leaves, or is withheld and counted.
    pub fn leaves(&mut self, case: &str, frame: &[u8], withheld: Option<Reason>) {
        self.case(case);
        let leaves = self.plane.test_run_egress(frame).expect("BPF_PROG_TEST_RUN");
        let after = self.snapshot();
        let pairs = self.before.reasons.iter().zip(&after.reasons);
        let grown: Vec<_> =
            pairs.filter(|(old, new)| new.1 > old.1).map(|(old, new)| (new.0, new.2 - old.2)).collect();
        self.before = after;
        assert_eq!(leaves, withheld.is_none(), "{case}");
        assert_eq!(
            grown,
            withheld.map(|reason| (reason, frame.len() as u64)).into_iter().collect::<Vec<_>>(),
            "{case}"
        );
        assert!(withheld.is_none_or(|reason| reason.class() == Class::Withheld), "{case}");
    }

    /// The frame goes out of the ingress interface, byte for byte as expected.
    pub fn forwards(&mut self, case: &str, packet: &Packet, counted: Counted, expected: &[u8]) -> Seen {
        self.case(case);
        let seen = self.send(&packet.bytes());
        assert_eq!(seen.counted, counted, "{case}");
        assert_eq!(seen.action, Action::Tx, "{case}");
        same_frame(case, &seen.frame, expected);
        seen
    }

    /// The destination that a frame went to.
    pub fn goes_to(&mut self, case: &str, packet: &Packet) -> u32 {
        self.case(case);
        match self.send(&packet.bytes()).counted {
            Counted::In(destination) => destination,
            other => panic!("{case}: {other:?}"),
        }
    }

    /// The live flows.
    pub fn connections(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        let pool = self.plane.pool().expect("pool");
        dump::connections(&self.views(), &self.plane.clock(), &pool, |connection| {
            all.push(connection);
            true
        })
        .expect("dump");
        all
    }

    /// The only live flow.
    pub fn connection(&self, case: &str) -> Connection {
        let all = self.connections();
        assert_eq!(all.len(), 1, "{case}: {all:#?}");
        all.into_iter().next().unwrap()
    }

    /// The state of the only live flow.
    pub fn state(&self, case: &str) -> FlowState {
        self.connection(case).state
    }

    /// Value words of all entries that are not empty, replies of NAT included.
    pub fn entries(&self) -> Vec<Value> {
        let views = self.views();
        let words = (0..views.connections.len()).flat_map(|b| (0..WAYS as u32).map(move |way| (b, way)));
        words.map(|(b, way)| Value(views.value(b, way).load(SeqCst))).filter(|v| !v.is_empty()).collect()
    }

    /// Rewrites every entry's value word.
    pub fn rewrite_entries(&self, mut change: impl FnMut(Value) -> Value) {
        let views = self.views();
        for bucket in 0..views.connections.len() {
            for way in 0..WAYS as u32 {
                let word = views.value(bucket, way);
                let value = Value(word.load(SeqCst));
                if !value.is_empty() {
                    word.store(change(value).0, SeqCst);
                }
            }
        }
    }

    /// Lets the flow of a client end as the sweeper would: counted off.
    pub fn end_flow_of(&mut self, client: std::net::SocketAddr) {
        let now = self.plane.clock().tick().expect("tick");
        let views = self.views();
        for bucket in 0..views.connections.len() {
            for way in 0..WAYS as u32 {
                let value = Value(views.value(bucket, way).load(SeqCst));
                if value.is_empty() {
                    continue;
                }
                let identity = views.identity(bucket, way).load(SeqCst);
                let record = views.destinations.get(value.destination());
                let key = views.secrets.key_v4(record.vip.words()[0]);
                let (source, ports) =
                    lb_common::hash::tuple_of_identity_v4(&views.secrets, identity, key, false);
                let port = lb_common::hash::ports_of_word(ports).0;
                if std::net::SocketAddr::new(IpAddr::from(source.to_ne_bytes()), port) == client {
                    views.value(bucket, way).store(value.with(value.state(), now.wrapping_sub(1)).0, SeqCst);
                }
            }
        }
        let sweeper = self.plane.sweeper(std::time::Duration::from_secs(3600)).expect("sweeper");
        sweeper.board().sweep_now(std::time::Duration::from_secs(30)).expect("a walk");
    }

    /// The frame goes to a server, or is denied.
    pub fn goes_to_if(&mut self, case: &str, packet: &Packet, goes: bool) {
        self.case(case);
        let counted = self.send(&packet.bytes()).counted;
        if goes {
            assert!(matches!(counted, Counted::In(_)), "{case}: {counted:?}");
        } else {
            assert_eq!(counted, Counted::Reason(Reason::AccessDenied), "{case}");
        }
    }

    /// Frees every flow, but no template.
    pub fn forget_flows(&self) {
        self.rewrite_entries(|e| if e.kind() == Kind::Template { e } else { Value::EMPTY });
    }

    /// Frees every entry: the next case begins anew.
    pub fn forget_all(&self) {
        self.rewrite_entries(|_| Value::EMPTY);
    }

    /// Lets every flow end in so many ticks; below 0 it is over, without waiting for it.
    pub fn end_all_in(&self, ticks: i16) {
        let deadline = self.plane.clock().tick().expect("tick").wrapping_add(ticks as u16);
        self.rewrite_entries(|value| value.with(value.state(), deadline));
        let views = self.views();
        for lease in 0..views.leases.len() {
            let word = views.leases.word(lease, 8);
            let value = Value(word.load(SeqCst));
            if !value.is_empty() {
                word.store(value.with(value.state(), deadline).0, SeqCst);
            }
        }
    }

    /// The time of every flow is over.
    pub fn expire_all(&self) {
        self.end_all_in(-1);
    }

    fn snapshot(&self) -> Snapshot {
        let reasons = self.counters.reasons().expect("reasons");
        Snapshot {
            reasons: reasons
                .into_iter()
                .map(|(reason, count)| (reason, count.packets, count.bytes))
                .collect(),
            traffic: (0..self.sizes.destinations)
                .map(|index| self.counters.destination(index).expect("traffic"))
                .collect(),
            retired: self.counters.retired().expect("retired"),
        }
    }

    /// Counters moved behind the program's back (a destination was retired): the next frame's difference starts
    /// here.
    pub fn look_again(&mut self) {
        self.before = self.snapshot();
    }

    /// So many frames were sent by others than this case.
    pub fn sent_apart(&mut self, frames: u64) {
        self.sent += frames;
    }

    /// Frames of this case by reason.
    pub fn reasons(&self) -> BTreeMap<&'static str, u64> {
        let pairs = self.start.reasons.iter().zip(&self.before.reasons);
        pairs.map(|(old, new)| (new.0.name(), new.1 - old.1)).filter(|(_, n)| *n > 0).collect()
    }

    /// received = Σ reasons of frames not forwarded + Σ destination counters + retired counters.
    fn check_the_sum(&self) {
        let (start, end) = (self.start.sum(), self.snapshot().sum());
        assert_eq!(self.sent, end - start, "frames sent and frames counted: {:?}", self.reasons());
    }
}

impl Snapshot {
    fn sum(&self) -> u64 {
        let ends = self
            .reasons
            .iter()
            .filter(|(reason, ..)| !matches!(reason.class(), Class::Event | Class::Withheld));
        let forwarded = self.traffic.iter().chain([&self.retired]);
        ends.map(|(_, n, _)| n).sum::<u64>() + forwarded.map(|t| t.packets_in + t.packets_out).sum::<u64>()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.check_the_sum();
        self.tell_cases();
        if self.sizes == sizes() {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push((self.policies, self.plane.clone()));
        }
    }
}

/// Data planes of the usual sizes whose case is over, by their policies: loading one takes a third of a second,
/// mostly the verifier's, emptying one a hundredth. One that saw a case fail is not used again.
static IDLE: Mutex<Vec<(u32, Arc<Dataplane>)>> = Mutex::new(Vec::new());

/// Makes a data plane's tables as if just loaded; only its counters go on.
fn empty(plane: &Dataplane) {
    let views = plane.views();
    for bucket in 0..views.connections.len() {
        (0..WAYS as u32).for_each(|way| views.value(bucket, way).store(0, SeqCst));
    }
    for word in (0..128).step_by(8) {
        (0..views.services.len()).for_each(|i| views.services.word(i, word).store(0, SeqCst));
    }
    for word in (0..32).step_by(8) {
        (0..views.loads.len()).for_each(|i| views.loads.word(i, word).store(0, SeqCst));
    }
    for word in (0..64).step_by(8) {
        (0..views.servers.len()).for_each(|i| views.servers.word(i, word).store(0, SeqCst));
        (0..views.destinations.len()).for_each(|i| views.destinations.word(i, word).store(0, SeqCst));
        (0..views.next_hops.len()).for_each(|i| views.next_hops.word(i, word).store(0, SeqCst));
        (0..views.filter.len()).for_each(|i| views.filter.word(i, word).store(0, SeqCst));
    }
    (0..views.leases.len()).for_each(|i| views.leases.word(i, 8).store(0, SeqCst));
    (0..64).step_by(8).for_each(|word| views.guard.word(0, word).store(0, SeqCst));
    fill::<Extension>(map(plane, pinned::EXTENSIONS), Extension::default());
    empty_hash::<ServiceKey, u32>(map(plane, pinned::SERVICE_INDEX));
    empty_hash::<AddressKey, AddressRecord>(map(plane, pinned::ADDRESSES));
    empty_hash::<AddressKey, ClientNeighbour>(map(plane, pinned::CLIENT_NEIGHBOURS));
    empty_hash::<QuicKey, u32>(map(plane, pinned::QUIC_IDS));
    empty_hash::<PeerKey, u32>(map(plane, pinned::PEERS));
    empty_routes::<[u8; 8]>(map(plane, pinned::ACL4));
    empty_routes::<[u8; 20]>(map(plane, pinned::ACL6));
    fill::<Rate>(map(plane, pinned::RATES), Rate::default());
    empty_routes::<[u8; 4]>(map(plane, pinned::CLIENT_ROUTES4));
    empty_routes::<[u8; 16]>(map(plane, pinned::CLIENT_ROUTES6));
    let mut outputs: DevMapHash<_> = map(plane, pinned::OUTPUTS).try_into().expect("OUTPUTS");
    for key in outputs.keys().collect::<Result<Vec<u32>, _>>().expect("OUTPUTS") {
        outputs.remove(key).expect("OUTPUTS");
    }
    fill::<u64>(map(plane, pinned::VRRP), 0);
    fill::<u64>(map(plane, own::PROBE_PORTS), 0);
    // By the sizes of `FragmentKey` and `FirstFragment`.
    empty_hash::<[u8; 40], [u8; 16]>(map(plane, own::FRAGMENTS));
    empty_hash::<AddressKey, u32>(map(plane, own::PATHS));
    fill::<PoolAddress>(map(plane, pinned::POOL), PoolAddress::default());
    let mut limiter: PerCpuArray<_, Limiter> = map(plane, own::LIMITER).try_into().expect("LIMITER");
    let cpus = aya::util::nr_cpus().expect("CPUs");
    let mut pace: PerCpuArray<_, Pace> = map(plane, own::PACE).try_into().expect("PACE");
    pace.set(0, PerCpuValues::try_from(vec![Pace::default(); cpus]).expect("one a CPU"), 0).expect("PACE");
    let values = PerCpuValues::try_from(vec![Limiter::default(); cpus]).expect("one a CPU");
    limiter.set(0, values, 0).expect("LIMITER");
}

fn empty_hash<K: Pod, V: Pod>(map: Map) {
    let mut map: HashMap<_, K, V> = map.try_into().expect("a hash map");
    for key in map.keys().collect::<Result<Vec<K>, _>>().expect("keys") {
        map.remove(&key).expect("remove");
    }
}

fn empty_routes<K: Pod>(map: Map) {
    let mut map: LpmTrie<_, K, u32> = map.try_into().expect("a prefix table");
    for key in map.keys().collect::<Result<Vec<_>, _>>().expect("keys") {
        map.remove(&key).expect("remove");
    }
}

fn fill<V: Pod>(map: Map, value: V) {
    let mut map: Array<_, V> = map.try_into().expect("an array");
    (0..map.len()).for_each(|i| map.set(i, value, 0).expect("set"));
}

/// A handle of its own on a map.
pub fn map(plane: &Dataplane, name: &'static str) -> Map {
    fn again(data: &MapData) -> MapData {
        let fd = data.fd().as_fd().try_clone_to_owned().expect("a descriptor");
        MapData::from_fd(fd).expect("a map")
    }
    match plane.map(name).expect("a map of this name") {
        Map::Array(data) => Map::Array(again(data)),
        Map::DevMapHash(data) => Map::DevMapHash(again(data)),
        Map::HashMap(data) => Map::HashMap(again(data)),
        Map::LpmTrie(data) => Map::LpmTrie(again(data)),
        Map::LruHashMap(data) => Map::LruHashMap(again(data)),
        Map::PerCpuArray(data) => Map::PerCpuArray(again(data)),
        _ => panic!("{name} is of a kind that the data plane did not have"),
    }
}

/// Instead of a next hop: the real server is the director itself.
pub const HERE: u32 = u32::MAX;

pub fn hop_record(mac: Mac, ifindex: u32, vlans: [u16; 2]) -> NextHop {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (tunnel_source(false), tunnel_source(true)) else {
        unreachable!()
    };
    NextHop {
        destination: NextHop::pack(mac, vlans[0]),
        source: NextHop::pack(DIRECTOR, vlans[1]),
        ifindex,
        mtu: MTU.into(),
        source_v4: u32::from_ne_bytes(v4.octets()),
        source_v6: lb_common::address::Address::from_v6(v6.octets()),
        ..NextHop::default()
    }
}

/// Says where two frames differ.
pub fn same_frame(case: &str, seen: &[u8], expected: &[u8]) {
    if seen == expected {
        return;
    }
    let at = seen.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(seen.len().min(expected.len()));
    panic!(
        "{case}: the frame out differs from byte {at} on ({} bytes, expected {})\n  out      {}\n  expected {}",
        seen.len(),
        expected.len(),
        hex(seen),
        hex(expected)
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
