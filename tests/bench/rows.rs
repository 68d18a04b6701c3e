//! What is measured: floors, and every path of the data plane; each with what it is held against.

use lb_common::{
    destination::Forwarding,
    feed::Feed,
    sctp::chunk,
    service::{OnUnknownFlow, Pick},
    state::{ACK, SYN},
    verdict::Reason,
};

use crate::frames::{Packet, feed};
use crate::scene::{Plan, SERVERS};

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
    /// What is above a first row, as a multiple of `floor_line`.
    LineAbove(String),
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
    pub goal: Option<Goal>,
}

impl Row {
    /// Rows of the same feed cost the feeder the same.
    pub fn same_feed(&self, other: &Row) -> bool {
        (self.feed.kind, self.feed.mask) == (other.feed.kind, other.feed.mask)
    }
}

/// Flows of the rows that do not fit the caches.
pub const MANY: u32 = 1 << 20;
const SOME: u32 = 1 << 16;
/// Flows that tables are sized for; a NAT flow takes two entries.
pub const CONNECTIONS: u32 = 1_000_000;

/// All rows, and the scenes that they play in. Only rows whose name contains one of `only`, if there are any;
/// floors are always there.
pub fn all(only: &[String]) -> (Vec<Row>, Vec<Plan>) {
    let mut rows = vec![floor("floor_swap", 1), floor("floor_ipip", 1), floor("floor_line", MANY)];
    let mut plans = Vec::new();
    for v6 in [false, true] {
        for (name, forwarding) in [
            ("dr", Forwarding::Dr),
            ("tun", Forwarding::Tun),
            ("nat", Forwarding::Nat),
            ("fullnat", Forwarding::FullNat),
        ] {
            let plan = Plan {
                forwarding,
                v6,
                sctp: false,
                pick: Pick::HashAddress,
                on_unknown_flow: OnUnknownFlow::Drop,
                servers: SERVERS,
                flows: MANY,
                connections: CONNECTIONS,
                proxy: false,
            };
            let scene = Program::Scene(plans.len());
            let mut of_scene = Vec::new();
            for (way, packet, path) in ways(forwarding) {
                for (count, flows) in [("hot", 1), ("64k", SOME), ("1M", MANY)] {
                    of_scene.push(Row {
                        name: format!("{name}{way} {} {count}", family(v6)),
                        program: scene.clone(),
                        feed: feed(packet, v6, flows as u64, 0),
                        path,
                        fresh: false,
                        goal: goal(name, way, forwarding, v6, count),
                    });
                }
            }
            if let Forwarding::Dr = forwarding {
                for (count, flows) in [("hot", 1), ("64k", SOME)] {
                    of_scene.push(Row {
                        name: format!("not ours {} {count}", family(v6)),
                        program: scene.clone(),
                        feed: feed(Packet::Stranger, v6, flows as u64, 0),
                        path: Path::Reason(Reason::NotOurs),
                        fresh: false,
                        goal: against(Against::Row("floor_swap".into()), 6.0, None),
                    });
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
            let plan = Plan {
                forwarding,
                v6,
                sctp: false,
                pick,
                on_unknown_flow: OnUnknownFlow::Adopt,
                servers: SERVERS,
                flows: 0,
                connections: CONNECTIONS,
                proxy: false,
            };
            let event = if flags == SYN { Reason::FlowNew } else { Reason::FlowAdopted };
            let row = Row {
                name: format!("{name} {}", family(v6)),
                program: Program::Scene(plans.len()),
                feed: feed(Packet::ToVip(flags), v6, MANY as u64, 0),
                path: Path::Event(event),
                fresh: true,
                goal: (forwarding as u32 == Forwarding::Tun as u32)
                    .then(|| against(Against::Row("floor_line".into()), 3.5, None))
                    .flatten(),
            };
            add(&mut rows, &mut plans, plan, vec![row], only);
        }
        over_sctp(&mut rows, &mut plans, v6, only);
    }
    for v6 in [false, true] {
        for (name, forwarding) in [("nat", Forwarding::Nat), ("fullnat", Forwarding::FullNat)] {
            shifted(&mut rows, &mut plans, name, forwarding, v6, only);
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
    let plan = |forwarding, flows| Plan {
        forwarding,
        v6,
        sctp: true,
        pick: Pick::HashAddress,
        on_unknown_flow: OnUnknownFlow::Drop,
        servers: SERVERS,
        flows,
        connections: CONNECTIONS,
        proxy: false,
    };
    for (name, forwarding) in [("dr", Forwarding::Dr), ("tun", Forwarding::Tun)] {
        let scene = Program::Scene(plans.len());
        let row = |(count, flows)| Row {
            name: format!("sctp {name} {} {count}", family(v6)),
            program: scene.clone(),
            feed: feed(Packet::ToVipSctp(chunk::DATA), v6, u64::from(flows), 0),
            path: Path::ToServer,
            fresh: false,
            goal: None,
        };
        let of_scene = [("hot", 1), ("64k", SOME), ("1M", MANY)].map(row).into();
        add(rows, plans, plan(forwarding, MANY), of_scene, only);
    }
    let row = Row {
        name: format!("new sctp tun sh {}", family(v6)),
        program: Program::Scene(plans.len()),
        feed: feed(Packet::ToVipSctp(chunk::INIT), v6, MANY as u64, 0),
        path: Path::Event(Reason::FlowNew),
        fresh: true,
        goal: None,
    };
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
    let plan = Plan {
        forwarding,
        v6,
        sctp: false,
        pick: Pick::HashAddress,
        on_unknown_flow: OnUnknownFlow::Drop,
        servers: SERVERS,
        flows: SOME,
        connections: CONNECTIONS,
        proxy: true,
    };
    let mut of_scene = Vec::new();
    for (way, packet, path) in ways(forwarding) {
        for (count, flows) in [("hot", 1), ("64k", SOME)] {
            of_scene.push(Row {
                name: format!("shifted {name}{way} {} {count}", family(v6)),
                program: Program::Scene(plans.len()),
                feed: feed(packet, v6, flows as u64, 0),
                path,
                fresh: false,
                goal: None,
            });
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
    let plan = Plan {
        forwarding: Forwarding::Dr,
        v6: false,
        sctp: false,
        pick,
        on_unknown_flow: OnUnknownFlow::Drop,
        servers,
        flows: 0,
        connections: CONNECTIONS,
        proxy: false,
    };
    let row = Row {
        name: format!("sched {name} x{servers}"),
        program: Program::Scene(plans.len()),
        feed: feed(Packet::ToVip(SYN), false, MANY as u64, 0),
        path: Path::Event(Reason::FlowNew),
        fresh: true,
        goal: None,
    };
    add(rows, plans, plan, vec![row], only);
}

fn add(rows: &mut Vec<Row>, plans: &mut Vec<Plan>, mut plan: Plan, of_scene: Vec<Row>, only: &[String]) {
    let wanted: Vec<_> = of_scene
        .into_iter()
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
        goal: None,
    }
}

fn family(v6: bool) -> &'static str {
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

fn against(against: Against, must: f64, aim: Option<f64>) -> Option<Goal> {
    Some(Goal { against, must, aim })
}

fn goal(name: &str, way: &str, forwarding: Forwarding, v6: bool, count: &str) -> Option<Goal> {
    match (v6, count) {
        (false, "hot") => {
            let (must, aim) = match forwarding {
                Forwarding::Dr => (1.6, 1.1),
                Forwarding::Tun => (2.6, 1.8),
                Forwarding::Nat => (2.2, 1.7),
                Forwarding::FullNat => (2.8, 2.0),
            };
            against(Against::Row("floor_ipip".into()), must, Some(aim))
        }
        (true, _) => against(Against::Row(format!("{name}{way} v4 {count}")), 1.6, Some(1.3)),
        (false, "1M") if name == "tun" => against(Against::LineAbove("tun v4 hot".into()), 1.8, Some(1.4)),
        _ => None,
    }
}
