//! What is measured: floors, and every path of the data plane; each with what it is held against.

use lb_common::{
    destination::Forwarding,
    feed::Feed,
    header::protocol,
    sctp::chunk,
    service::{OnUnknownFlow, Pick},
    state::{ACK, SYN},
    verdict::Reason,
};

use crate::frames::{Packet, feed};
use crate::rare;
use crate::scene::{Extra, Plan};

/// What a row's program is.
#[derive(Clone, Debug)]
pub enum Program {
    /// One of the benchmark's own.
    Floor(&'static str),
    /// The data plane of this scene.
    Scene(usize),
}

/// The path that every packet must have taken, by the data plane's own counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// None: the program has no counters; it must answer XDP_TX.
    Tx,
    ToServer,
    ToClient,
    Reason(Reason),
    /// To a server, after this event.
    Event(Reason),
}

/// What a row is held against. Every number is net of `floor_tx`.
#[derive(Clone, Debug)]
pub enum Against {
    /// A multiple of another row.
    Row(String),
    /// A multiple of what two rows cost together.
    Sum([&'static str; 2]),
    /// What is above a first row, as a multiple of `floor_line`.
    LineAbove(String),
    /// Nanoseconds, on any machine.
    Nanoseconds,
}

/// A bound, and how it is met.
#[derive(Clone, Debug)]
pub struct Goal {
    pub against: Against,
    pub must: f64,
    pub aim: Option<f64>,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub program: Program,
    pub feed: Feed,
    pub path: Path,
    /// Flows never seen: the table is emptied before each round, and each round has its own.
    pub fresh: bool,
    pub goals: Vec<Goal>,
    /// Run before each round: what the row's packets need to be known.
    pub before: Option<Feed>,
}

impl Row {
    /// A row of flows that are there, without a goal.
    pub fn new(name: String, scene: usize, feed: Feed, path: Path) -> Self {
        let program = Program::Scene(scene);
        Self { name, program, feed, path, fresh: false, goals: Vec::new(), before: None }
    }

    /// The same of flows never seen.
    pub fn fresh(self) -> Self {
        Self { fresh: true, ..self }
    }

    /// The same with goals.
    fn held(self, goals: Vec<Goal>) -> Self {
        Self { goals, ..self }
    }

    /// Rows of the same feed cost the feeder the same.
    pub fn same_feed(&self, other: &Row) -> bool {
        let shape = |feed: &Feed| {
            (feed.kind, feed.mask, feed.len, [feed.at_address, feed.at_ports, feed.at_sum_ip, feed.at_sum])
        };
        shape(&self.feed) == shape(&other.feed)
    }
}

/// Flows of the rows that do not fit the caches.
pub const MANY: u32 = 1 << 20;
pub const SOME: u32 = 1 << 16;
/// Flows that tables are sized for; a NAT flow takes two entries.
pub const CONNECTIONS: u32 = 1_000_000;

/// All rows, and the scenes that they play in. Only rows whose name contains one of `only`, if there are any;
/// floors are always there.
pub fn all(only: &[String]) -> (Vec<Row>, Vec<Plan>) {
    let mut rows = vec![
        floor("floor_swap", 1),
        floor("floor_ipip", 1),
        floor("floor_lookup", 1),
        floor("floor_line", MANY),
    ];
    let mut plans = Vec::new();
    for v6 in [false, true] {
        for (name, forwarding) in [
            ("dr", Forwarding::Dr),
            ("tun", Forwarding::Tun),
            ("nat", Forwarding::Nat),
            ("fullnat", Forwarding::FullNat),
        ] {
            let plan = Plan { flows: MANY, ..Plan::new(forwarding, v6) };
            let mut of_scene = Vec::new();
            for (way, packet, path) in ways(forwarding) {
                for (count, flows) in [("hot", 1), ("64k", SOME), ("1M", MANY)] {
                    let row_name = format!("{name}{way} {} {count}", family(v6));
                    let row = Row::new(row_name, plans.len(), feed(packet, v6, flows as u64, 0), path);
                    of_scene.push(row.held(goals(name, way, forwarding, v6, count)));
                }
            }
            if let Forwarding::Dr = forwarding {
                for (count, flows) in [("hot", 1), ("64k", SOME)] {
                    let row_name = format!("not ours {} {count}", family(v6));
                    let feed = feed(Packet::Stranger, v6, flows as u64, 0);
                    let row = Row::new(row_name, plans.len(), feed, Path::Reason(Reason::NotOurs));
                    of_scene.push(row.held(vec![
                        against(Against::Row("floor_swap".into()), 6.0, None),
                        against(Against::Nanoseconds, 20.0, Some(13.0)),
                    ]));
                }
            }
            add(&mut rows, &mut plans, plan, of_scene, only);
        }
        for (name, forwarding, pick, flags) in [
            ("new tun sh", Forwarding::Tun, Pick::HashAddress, SYN),
            ("new tun rr", Forwarding::Tun, Pick::Cursor, SYN),
            ("new nat sh", Forwarding::Nat, Pick::HashAddress, SYN),
            ("new fullnat sh", Forwarding::FullNat, Pick::HashAddress, SYN),
            ("adopted dr sh", Forwarding::Dr, Pick::HashAddress, ACK),
        ] {
            let plan = Plan { pick, on_unknown_flow: OnUnknownFlow::Adopt, ..Plan::new(forwarding, v6) };
            let event = if flags == SYN { Reason::FlowNew } else { Reason::FlowAdopted };
            let feed = feed(Packet::ToVip(flags), v6, MANY as u64, 0);
            let row = Row::new(format!("{name} {}", family(v6)), plans.len(), feed, Path::Event(event));
            let held = if let Forwarding::Tun = forwarding {
                vec![
                    against(Against::Row("floor_line".into()), 3.5, None),
                    against(Against::Nanoseconds, 340.0, Some(210.0)),
                ]
            } else {
                Vec::new()
            };
            let row = row.fresh().held(held);
            add(&mut rows, &mut plans, plan, vec![row], only);
        }
        over_sctp(&mut rows, &mut plans, v6, only);
    }
    for v6 in [false, true] {
        for (name, forwarding) in [("nat", Forwarding::Nat), ("fullnat", Forwarding::FullNat)] {
            shifted(&mut rows, &mut plans, name, forwarding, v6, only);
        }
        for (plan, of_scene) in rare::scenes(v6) {
            add(&mut rows, &mut plans, plan, of_scene, only);
        }
    }
    for (name, pick) in [
        ("rr", Pick::Cursor),
        ("wrr", Pick::Cursor),
        ("sh", Pick::HashAddress),
        ("mh", Pick::HashAddress),
        ("dh", Pick::HashDestination),
        ("ipvs-sh", Pick::IpvsSh),
        ("ipvs-mh", Pick::IpvsMh),
        ("lc", Pick::Lc),
        ("wlc", Pick::Wlc),
        ("sed", Pick::Sed),
        ("nq", Pick::Nq),
        ("fo", Pick::Fo),
        ("ovf", Pick::Ovf),
        ("twos", Pick::Twos),
        ("lblc", Pick::Lblc),
        ("lblcr", Pick::Lblcr),
    ] {
        for servers in [16, 128, 1000] {
            scheduled(&mut rows, &mut plans, name, pick, servers, only);
        }
    }
    (rows, plans)
}

/// SCTP has programs of its own: a tail call more on each path.
fn over_sctp(rows: &mut Vec<Row>, plans: &mut Vec<Plan>, v6: bool, only: &[String]) {
    let plan = |forwarding, flows| Plan { protocol: protocol::SCTP, flows, ..Plan::new(forwarding, v6) };
    for (name, forwarding) in [("dr", Forwarding::Dr), ("tun", Forwarding::Tun)] {
        let row = |(count, flows)| {
            let feed = feed(Packet::ToVipSctp(chunk::DATA), v6, u64::from(flows), 0);
            let name = format!("sctp {name} {} {count}", family(v6));
            Row::new(name, plans.len(), feed, Path::ToServer)
        };
        let of_scene = [("hot", 1), ("64k", SOME), ("1M", MANY)].map(row).into();
        add(rows, plans, plan(forwarding, MANY), of_scene, only);
    }
    let feed = feed(Packet::ToVipSctp(chunk::INIT), v6, MANY as u64, 0);
    let name = format!("new sctp tun sh {}", family(v6));
    let row = Row::new(name, plans.len(), feed, Path::Event(Reason::FlowNew)).fresh();
    add(rows, plans, plan(Forwarding::Tun, 0), vec![row], only);
}

/// Packets of flows whose sequence numbers are shifted, each way: the price of a PROXY header after it was sent.
fn shifted(
    rows: &mut Vec<Row>,
    plans: &mut Vec<Plan>,
    name: &str,
    forwarding: Forwarding,
    v6: bool,
    only: &[String],
) {
    let plan = Plan { flows: SOME, extra: Extra::Proxy, ..Plan::new(forwarding, v6) };
    let mut of_scene = Vec::new();
    for (way, packet, path) in ways(forwarding) {
        for (count, flows) in [("hot", 1), ("64k", SOME)] {
            let name = format!("shifted {name}{way} {} {count}", family(v6));
            of_scene.push(Row::new(name, plans.len(), feed(packet, v6, flows as u64, 0), path));
        }
    }
    add(rows, plans, plan, of_scene, only);
}

/// New flows of a DR service by a scheduler over so many real servers.
fn scheduled(
    rows: &mut Vec<Row>,
    plans: &mut Vec<Plan>,
    name: &str,
    pick: Pick,
    servers: u16,
    only: &[String],
) {
    let plan = Plan { pick, servers, ..Plan::new(Forwarding::Dr, false) };
    let feed = feed(Packet::ToVip(SYN), false, MANY as u64, 0);
    let name = format!("sched {name} x{servers}");
    let row = Row::new(name, plans.len(), feed, Path::Event(Reason::FlowNew)).fresh();
    add(rows, plans, plan, vec![row], only);
}

fn add(rows: &mut Vec<Row>, plans: &mut Vec<Plan>, mut plan: Plan, of_scene: Vec<Row>, only: &[String]) {
    let program = Program::Scene(plans.len());
    let wanted: Vec<_> = of_scene
        .into_iter()
        .map(|row| Row { program: program.clone(), ..row })
        .filter(|row| only.is_empty() || only.iter().any(|part| row.name.contains(part.as_str())))
        .collect();
    if let Some(most) = wanted.iter().map(|row| row.feed.mask as u32 + 1).max() {
        // No more flows than are visited.
        plan.flows = plan.flows.min(most);
        plans.push(plan);
        rows.extend(wanted);
    }
}

fn floor(name: &'static str, flows: u32) -> Row {
    Row {
        name: name.into(),
        program: Program::Floor(name),
        feed: feed(Packet::ToVip(ACK), false, flows as u64, 0),
        path: Path::Tx,
        fresh: false,
        goals: Vec::new(),
        before: None,
    }
}

pub fn family(v6: bool) -> &'static str {
    if v6 { "v6" } else { "v4" }
}

/// The directions in which packets of a flow pass.
fn ways(forwarding: Forwarding) -> Vec<(&'static str, Packet, Path)> {
    let to_server = Packet::ToVip(ACK);
    match forwarding {
        Forwarding::Dr | Forwarding::Tun => vec![("", to_server, Path::ToServer)],
        Forwarding::Nat => {
            vec![(" fwd", to_server, Path::ToServer), (" reply", Packet::Reply, Path::ToClient)]
        }
        Forwarding::FullNat => {
            vec![(" fwd", to_server, Path::ToServer), (" reply", Packet::ReplyToLease, Path::ToClient)]
        }
    }
}

fn against(against: Against, must: f64, aim: Option<f64>) -> Goal {
    Goal { against, must, aim }
}

/// What a row of known flows is held against. `docs/decisions/0011-floors-of-a-lookup.md` says why hot ones have three.
fn goals(name: &str, way: &str, forwarding: Forwarding, v6: bool, count: &str) -> Vec<Goal> {
    let lookup = || Against::Row("floor_lookup".into());
    match (v6, count) {
        (false, "hot") => {
            let (of_ipip, of_lookup, nanoseconds) = match forwarding {
                Forwarding::Dr => ((1.6, 1.1), (lookup(), 1.6, 1.1), (24.0, 16.0)),
                Forwarding::Tun => {
                    ((2.6, 1.8), (Against::Sum(["floor_lookup", "floor_ipip"]), 1.6, 1.1), (39.0, 27.0))
                }
                Forwarding::Nat => ((2.2, 1.7), (lookup(), 2.2, 1.7), (33.0, 25.0)),
                Forwarding::FullNat => ((2.8, 2.0), (lookup(), 2.8, 2.0), (42.0, 30.0)),
            };
            vec![
                against(of_lookup.0, of_lookup.1, Some(of_lookup.2)),
                against(Against::Nanoseconds, nanoseconds.0, Some(nanoseconds.1)),
                against(Against::Row("floor_ipip".into()), of_ipip.0, Some(of_ipip.1)),
            ]
        }
        (true, _) => vec![against(Against::Row(format!("{name}{way} v4 {count}")), 1.6, Some(1.3))],
        (false, "1M") if name == "tun" => {
            vec![against(Against::LineAbove("tun v4 hot".into()), 1.8, Some(1.4))]
        }
        _ => Vec::new(),
    }
}
