//! The loaded program under two CPUs at once, with the agent's own sweeper and servers that come and go, on a
//! connection table of 16 entries: far too few for its flows, so entries are refreshed, stepped, given back,
//! evicted and freed all the time. Every packet's destination is checked by the feeder (lb-ebpf/src/hammer.rs).
//! Builds and settings that lack one guard must be caught by the same run.
//!
//! `LB_HAMMER_OPS` sets how many packets the whole program must survive, in all.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    maps::{Array, Map, PerCpuArray, PerCpuValues},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_agent::dataplane::{
    Dataplane, Ports, Sizes, Tables,
    tables::{DestinationKey, DestinationSpec, NextHopKey, Role, Rules, ServiceSpec, Standing},
};
use lb_common::{
    connection::{Kind, Value, WAYS},
    destination::{Forwarding, NextHop},
    hash::{self, ports_word, slot_hash, slot_of_hash, tag, tuple_v4},
    lease::Lease,
    load::{ACTIVE, Load, counted},
    service::{OnUnknownFlow, Pick},
    state::{ACK, FIN, RST, SYN},
    verdict::Reason,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What a change of the program may not take away. Two runs at once would share the processors, and a race
/// needs them whole.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn two_cpus_a_sweeper_and_changing_servers_send_no_packet_to_a_wrong_server() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let ops: u64 = match std::env::var("LB_HAMMER_OPS") {
        Ok(text) => text.parse().context("LB_HAMMER_OPS is a number of packets")?,
        Err(_) => 50_000_000,
    };
    let objects = Objects::build(&[])?;
    for (flows, servers, protocol, method, share) in [
        (Flows::Any, Servers::ComeAndGo, TCP, Forwarding::Dr, ops * 4 / 10),
        (Flows::EqualTags, Servers::Stay, TCP, Forwarding::Dr, ops * 2 / 10),
        (Flows::Any, Servers::ComeAndGo, UDP, Forwarding::Dr, ops * 2 / 10),
        (Flows::Any, Servers::ComeAndGo, TCP, Forwarding::Nat, ops / 10),
        (Flows::Any, Servers::ComeAndGo, TCP, Forwarding::FullNat, ops / 10),
    ] {
        let case = Case { flows, servers, protocol, method };
        let seen = hammer(&objects, case, share, Until::Done)?;
        println!("{case:?}: {seen:?}");
        assert!(seen.right + seen.wrong + seen.nowhere >= share);
        assert!(
            seen.wrong <= replaced_twice(flows, share),
            "{case:?}: packets went to a server that is not their flow's: {seen:?}"
        );
        // The run must have been what it is meant to be: known flows, new ones, one in the place of another.
        // A lease lives until its time is over, so most flows that begin anew find no port before the next tick.
        let most = if method == Forwarding::FullNat { share / 1000 } else { share / 4 };
        assert!(seen.right > most, "{case:?}: few packets were forwarded: {seen:?}");
        if method == Forwarding::FullNat {
            assert!(seen.new > share / 1000, "{case:?}: {seen:?}");
        } else if protocol == TCP {
            assert!(seen.new > share / 100 && seen.evicted > share / 100, "{case:?}: {seen:?}");
        } else {
            assert!(seen.new > 100, "{case:?}: {seen:?}");
        }
        if servers == Servers::ComeAndGo {
            assert!(seen.replaced >= CLASSES as u64, "{case:?}: few servers were replaced: {seen:?}");
        }
    }
    Ok(())
}

/// Nobody puts counts right meanwhile: each change of a flow must have been counted once, by whichever CPU made it.
#[test]
fn two_cpus_count_every_flow_once() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let objects = Objects::build(&[])?;
    for (protocol, method) in [
        (TCP, Forwarding::Dr),
        (UDP, Forwarding::Dr),
        (TCP, Forwarding::Nat),
        (UDP, Forwarding::Nat),
        (TCP, Forwarding::FullNat),
    ] {
        let case = Case { flows: Flows::Any, servers: Servers::StayCounted, protocol, method };
        let seen = hammer(&objects, case, 4_000_000, Until::Done)?;
        println!("{case:?}: {seen:?}");
        assert_eq!(seen.wrong, 0, "{case:?}: {seen:?}");
        // Of UDP, and of leases, a flow keeps its place until its time is over.
        let least = if protocol == TCP && method != Forwarding::FullNat { 1000 } else { 16 };
        assert!(seen.new >= least, "{case:?}: few flows began: {seen:?}");
    }
    Ok(())
}

#[test]
fn a_table_whose_readers_look_once_is_caught() -> Result<()> {
    caught(
        &["mutant-one-look"],
        Case { flows: Flows::Any, servers: Servers::Stay, protocol: TCP, method: Forwarding::Dr },
    )
}

#[test]
fn a_table_that_is_refreshed_by_plain_stores_is_caught() -> Result<()> {
    // The tag catches nearly all of a plain store's victims: here it cannot.
    caught(
        &["mutant-plain-store"],
        Case { flows: Flows::EqualTags, servers: Servers::Stay, protocol: TCP, method: Forwarding::Dr },
    )
}

#[test]
fn indices_without_quarantine_are_caught() -> Result<()> {
    caught(
        &[],
        Case { flows: Flows::Any, servers: Servers::ReuseIndices, protocol: TCP, method: Forwarding::Dr },
    )
}

fn caught(features: &[&str], case: Case) -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let objects = Objects::build(features)?;
    let seen = hammer(&objects, case, CAUGHT_WITHIN, Until::Wrong)?;
    println!("{features:?}: {seen:?}");
    let spare = replaced_twice(case.flows, seen.right);
    assert!(seen.wrong > spare, "{features:?} went unnoticed: {seen:?}");
    Ok(())
}

/// How many packets may go wrong. A reader that stands still between its two looks at an identity, while the slot is
/// given away and given back, is told by the tag alone, and where all tags are equal by nothing: seen once in some
/// 50 million packets on a busy machine. A fault shows a thousand times in half a million.
fn replaced_twice(flows: Flows, packets: u64) -> u64 {
    match flows {
        Flows::Any => 0,
        Flows::EqualTags => packets / 1_000_000,
    }
}

/// Packets in which a fault must show.
const CAUGHT_WITHIN: u64 = 400_000_000;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// Flows of the run, and how many of them have most packets. The table holds 16.
const FLOWS: usize = 1024;
const HOT: usize = 24;
/// A flow's slot, and for ever the class of the servers in it.
const CLASSES: usize = 8;
const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 254, 0, 1);
const PORT: u16 = 80;
/// Packets of one system call.
const REPEAT: u32 = 200_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flows {
    Any,
    /// Flows whose identities all have one tag: nothing tells their values apart but the identity beside them.
    EqualTags,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Servers {
    Stay,
    /// The same, with their flows counted, and the counts compared with the table in the end.
    StayCounted,
    /// Each is replaced by another of its class, again and again.
    ComeAndGo,
    /// The same, with indices given out again at once.
    ReuseIndices,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Done,
    Wrong,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    flows: Flows,
    servers: Servers,
    protocol: u8,
    method: Forwarding,
}

/// What became of the packets, and how much happened meanwhile.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    right: u64,
    wrong: u64,
    nowhere: u64,
    /// Flow and class of a server that a wrong packet went to.
    last_wrong: (u64, u64),
    new: u64,
    anew: u64,
    moved: u64,
    evicted: u64,
    stateless: u64,
    /// Servers that were replaced, and walks of the sweeper.
    replaced: u64,
    walks: u64,
    /// Of a packet, on one CPU.
    nanoseconds: u64,
}

struct Objects {
    lb: Vec<u8>,
    hammer: Vec<u8>,
}

impl Objects {
    fn build(features: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let built = xtask::ebpf::build_with(features, dir.path())?;
        Ok(Self { lb: std::fs::read(built.path("lb")?)?, hammer: std::fs::read(built.path("hammer")?)? })
    }
}

/// Runs `ops` packets in all on two CPUs.
fn hammer(objects: &Objects, case: Case, ops: u64, until: Until) -> Result<Seen> {
    let cpus = two_cpus()?;
    let sizes = Sizes {
        connections: 14,
        connections_v6: 0,
        services: 4,
        port_ranges: 1,
        destinations: 1024,
        next_hops: 32,
        slots: 1 << 16,
        pool_addresses: 1,
        extensions: 1,
    };
    let plane = Dataplane::open_for_test(&objects.lb, &sizes)?;
    ensure!(plane.views().connections.len() == 4, "the table is to have 16 entries");
    let mut pool = Pool::new(&plane, case)?;
    let flows = flows(&plane, case);
    let mut feeder = Ebpf::load(&objects.hammer).context("load the feeder")?;
    prepare(&mut feeder, &plane, &flows, case.protocol)?;
    let program: &Xdp = feeder.program("hammer").context("the feeder's program")?.try_into()?;

    // The sweeper would put counts right.
    let counted = case.servers == Servers::StayCounted;
    let sweeper =
        plane.sweeper(if counted { Duration::from_secs(3600) } else { Duration::from_millis(1) })?;
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let threads = cpus.map(|cpu| {
            let (done, stop) = (&done, &stop);
            scope.spawn(move || -> Result<()> {
                pin(cpu)?;
                let result = feed(program, done, stop, ops);
                stop.store(true, Relaxed);
                result
            })
        });
        let mut wrong = Ok(());
        while !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
            wrong = wrong.and_then(|()| pool.turn_over());
            if wrong.is_err() || until == Until::Wrong && read(&feeder)?.wrong > 0 {
                stop.store(true, Relaxed);
            }
        }
        for thread in threads {
            thread.join().expect("a hammering thread ends")?;
        }
        wrong
    })?;
    let elapsed = began.elapsed();
    let walks = sweeper.board().latest().map_or(0, |scan| scan.number);
    drop(sweeper);
    ensure!(walks > 0 || counted, "the sweeper did not walk");
    if counted {
        pool.check_counts(&plane)?;
    }

    let mut seen = read(&feeder)?;
    for (reason, count) in plane.counters()?.reasons()? {
        let field = match reason {
            Reason::FlowNew | Reason::FlowAdopted => &mut seen.new,
            Reason::FlowReplaced => &mut seen.anew,
            Reason::FlowMoved => &mut seen.moved,
            Reason::EvictedUnconfirmed | Reason::EvictedHalfOpen | Reason::EvictedClosing => {
                &mut seen.evicted
            }
            Reason::Stateless => &mut seen.stateless,
            Reason::Internal => {
                ensure!(count.packets == 0, "the program found its tables wrong: {count:?}");
                continue;
            }
            _ => continue,
        };
        *field += count.packets;
    }
    (seen.replaced, seen.walks) = (pool.replaced, walks);
    seen.nanoseconds = (elapsed.as_nanos() * 2 / done.load(Relaxed).max(1) as u128) as u64;
    Ok(seen)
}

/// The first two CPUs that this process may use.
fn two_cpus() -> Result<[usize; 2]> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    match (cpus.next(), cpus.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => anyhow::bail!("races need two CPUs, and this process may use one only"),
    }
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on CPU {cpu}"))
}

/// Packets from one CPU. The frame goes from call to call, since it holds what became of the last packet.
fn feed(program: &Xdp, done: &AtomicU64, stop: &AtomicBool, ops: u64) -> Result<()> {
    let mut frame = frame();
    let mut out = frame.clone();
    while !stop.load(Relaxed) && done.load(Relaxed) < ops {
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: Some(&mut out),
            repeat: REPEAT,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options)?;
        ensure!(result.return_value != 0, "the feeder could not hand a packet on");
        ensure!(result.data_size_out as usize == frame.len(), "the length of a frame changed");
        frame.copy_from_slice(&out);
        done.fetch_add(REPEAT as u64, Relaxed);
    }
    Ok(())
}

/// Ethernet, IPv4 and room for a TCP header; the feeder fills in the rest.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[12] = 0x08;
    (frame[14], frame[17], frame[22]) = (0x45, 40, 64);
    frame
}

/// Fills the feeder's tables.
fn prepare(feeder: &mut Ebpf, plane: &Dataplane, flows: &[[u32; 4]], protocol: u8) -> Result<()> {
    let mut table = Array::<_, [u32; 4]>::try_from(feeder.map_mut("HAMMER_FLOWS").context("HAMMER_FLOWS")?)?;
    for (index, flow) in (0..).zip(flows) {
        table.set(index, flow, 0)?;
    }
    let flags = |mix: [u8; 16]| -> [u32; 4] {
        std::array::from_fn(|i| {
            u32::from_ne_bytes([mix[4 * i], mix[4 * i + 1], mix[4 * i + 2], mix[4 * i + 3]])
        })
    };
    const FINISH: u8 = FIN | ACK;
    // A hot flow goes round its states: half open, established, closing, and begun anew. The others never get
    // established: such an entry stays until its time is over, and sixteen of them are a full table.
    let hot =
        flags([SYN, SYN, SYN, SYN, SYN, SYN, ACK, ACK, ACK, ACK, FINISH, FINISH, FINISH, FINISH, RST, RST]);
    let cold =
        flags([SYN, SYN, SYN, SYN, SYN, SYN, SYN, SYN, SYN, SYN, SYN, SYN, FINISH, FINISH, FINISH, RST]);
    let mut plan = [0; 16];
    // One packet of eight is another flow's; of UDP, whose flows are settled by their second packet, one of 64.
    let others = if protocol == UDP { 63 } else { 7 };
    plan[..5].copy_from_slice(&[
        FLOWS as u32,
        HOT as u32,
        others,
        protocol as u32,
        u32::from_ne_bytes(VIP.octets()),
    ]);
    plan[8..12].copy_from_slice(&hot);
    plan[12..].copy_from_slice(&cold);
    Array::<_, [u32; 16]>::try_from(feeder.map_mut("HAMMER_PLAN").context("HAMMER_PLAN")?)?
        .set(0, plan, 0)?;

    let seeds =
        (1..=aya::util::nr_cpus().map_err(|(_, e)| e)? as u64).map(|cpu| [cpu << 40, 0, 0, 0, 0, 0, 0, 0]);
    let mut state =
        PerCpuArray::<_, [u64; 8]>::try_from(feeder.map_mut("HAMMER_STATE").context("HAMMER_STATE")?)?;
    state.set(0, PerCpuValues::try_from(seeds.collect::<Vec<_>>())?, 0)?;

    let program: &mut Xdp = feeder.program_mut("hammer").context("the feeder's program")?.try_into()?;
    program.load().context("load the feeder")?;
    let Some(Map::ProgramArray(target)) = feeder.map("HAMMER_TARGET") else {
        anyhow::bail!("the feeder has no HAMMER_TARGET");
    };
    set_program(target.fd().as_fd(), plane.main_program()?).context("give the feeder its target")
}

/// Puts a program in element 0 of an array of programs; aya takes programs of its own only.
fn set_program(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> std::io::Result<()> {
    #[repr(C)]
    struct Update {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    const MAP_UPDATE_ELEM: u32 = 2;
    let (key, value) = (0u32, program.as_raw_fd() as u32);
    let update = Update {
        map: array.as_raw_fd() as u32,
        pad: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    // SAFETY: this part of `union bpf_attr` is what the command reads; key and value are live numbers of the
    // sizes that an array of programs has.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, MAP_UPDATE_ELEM, &raw const update, size_of::<Update>()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn read(feeder: &Ebpf) -> Result<Seen> {
    let state = PerCpuArray::<_, [u64; 8]>::try_from(feeder.map("HAMMER_STATE").context("HAMMER_STATE")?)?;
    let mut seen = Seen::default();
    for cpu in state.get(&0, 0)?.iter() {
        seen.right += cpu[2];
        seen.wrong += cpu[3];
        seen.nowhere += cpu[4];
        if cpu[3] > 0 {
            seen.last_wrong = (cpu[5], cpu[6]);
        }
    }
    Ok(seen)
}

/// The flows of a run as the feeder wants them.
fn flows(plane: &Dataplane, case: Case) -> Vec<[u32; 4]> {
    let views = plane.views();
    let key = views.secrets.key_v4(u32::from_ne_bytes(VIP.octets()));
    let mut wanted = None;
    let candidates = (0u32..).map(|n| {
        let source = u32::from_ne_bytes((0x0a00_0000 + (n >> 14)).to_be_bytes());
        let ports = ports_word(1024 + (n & 0x3fff) as u16, PORT);
        (source, ports)
    });
    candidates
        .filter(|(source, ports)| {
            let identity = views.secrets.identity_v4(key, tuple_v4(*source, *ports), case.protocol == UDP);
            let tag = tag(views.secrets.first(identity));
            case.flows == Flows::Any || *wanted.get_or_insert(tag) == tag
        })
        // So many tuples of one tag take a while to find: hot flows are what matters.
        .take(if case.flows == Flows::EqualTags { 4 * HOT } else { FLOWS })
        .collect::<Vec<_>>()
        .iter()
        .cycle()
        .take(FLOWS)
        .map(|(source, ports)| {
            let hash = slot_hash([*source as u64, 0], *ports as u16);
            [*source, *ports, slot_of_hash(hash, CLASSES as u32), 0]
        })
        .collect()
}

/// The service's real servers: one of each class at a time.
struct Pool {
    tables: Tables,
    case: Case,
    /// By class: index of its next hop, and of its server how many there were before.
    classes: Vec<(u32, u32)>,
    replaced: u64,
}

const SERVICE: &str = "hammered";

impl Pool {
    fn new(plane: &Dataplane, case: Case) -> Result<Self> {
        let mut tables = plane.tables()?;
        if case.servers == Servers::ReuseIndices {
            tables.disable_quarantine();
        }
        let pool = match case.method {
            Forwarding::FullNat => Some(tables.set_pool("local", &[LOCAL.into()], (1, 1))?),
            _ => None,
        };
        tables.ensure_service(&ServiceSpec {
            name: SERVICE.into(),
            vip: VIP.into(),
            protocol: case.protocol,
            ports: vec![Ports::One(PORT)],
            pick: Pick::HashAddressPort,
            on_unknown_flow: OnUnknownFlow::Adopt,
            mss: 0,
            timeouts: [1; 16],
            pool,
            rules: Rules { counted: case.servers == Servers::StayCounted, ..Rules::default() },
        })?;
        let mut classes = Vec::new();
        for class in 0..CLASSES as u8 {
            let neighbour = IpAddr::from([10, 255, 0, class + 1]);
            // Frames of a test run come in by the loopback interface.
            let key = NextHopKey { neighbour, ifindex: 1, vlans: [0, 0], for_clients: false };
            let record = NextHop {
                destination: NextHop::pack([2, 0, 0, 0, 0, class + 1], 0),
                source: NextHop::pack([2, 0, 0, 0, 1, 0], 0),
                ifindex: 1,
                mtu: 1500,
                ..NextHop::default()
            };
            classes.push((tables.set_next_hop(&key, &record)?, 0));
        }
        let mut this = Self { tables, case, classes, replaced: 0 };
        let slots = (0..CLASSES).map(|class| this.add(class).map(Some)).collect::<Result<Vec<_>>>()?;
        this.tables.set_slots(SERVICE, &slots)?;
        this.tables.bind_ports(SERVICE, &[Ports::One(PORT)])?;
        this.tables.bind_address(SERVICE, Role::Vip, VIP.into())?;
        Ok(this)
    }

    fn key(&self, class: usize) -> DestinationKey {
        let [_, high, middle, low] = self.classes[class].1.to_be_bytes();
        // Never one that was there before: it would get its old index back.
        let address = IpAddr::from([10 + class as u8, high, middle, low]);
        DestinationKey::new(SERVICE, address, 0, self.case.method)
    }

    fn add(&mut self, class: usize) -> Result<u32> {
        let spec = DestinationSpec {
            next_hop: self.classes[class].0,
            mtu: 1500,
            timeout: 1,
            vip_port: 0,
            local: false,
            tunnel: Default::default(),
            standing: Standing::DEFAULT,
        };
        Ok(self.tables.ensure_destination(&self.key(class), &spec)?)
    }

    /// Replaces the server of every class, one after the other: what is free again goes to the next class.
    fn turn_over(&mut self) -> Result<()> {
        if matches!(self.case.servers, Servers::Stay | Servers::StayCounted) {
            return Ok(());
        }
        for class in 0..CLASSES {
            let old = self.key(class);
            self.classes[class].1 += 1;
            self.add(class)?;
            let slots: Vec<_> = (0..CLASSES).map(|class| self.tables.destination(&self.key(class))).collect();
            self.tables.set_slots(SERVICE, &slots)?;
            self.tables.remove_destination(&old)?;
            self.tables.maintain()?;
            self.replaced += 1;
        }
        Ok(())
    }
}

impl Pool {
    /// That each server's counts are those of the flows that name it.
    fn check_counts(&self, plane: &Dataplane) -> Result<()> {
        let views = plane.views();
        let mut flows = std::collections::BTreeMap::new();
        let mut count = |word: Value| {
            let (active, inactive) = flows.entry(word.destination()).or_insert((0, 0));
            match counted(word, false) {
                0 => {}
                ACTIVE => *active += 1,
                _ => *inactive += 1,
            }
        };
        for bucket in 0..views.connections.len() {
            let words = (0..WAYS as u32).map(|way| Value(views.value(bucket, way).load(Relaxed)));
            words
                .filter(|word| !word.is_empty() && word.kind() as u8 == Kind::Flow as u8)
                .for_each(&mut count);
        }
        // A FULLNAT flow is counted by its lease.
        for lease in 0..views.leases.len() {
            let word = Value(views.leases.word(lease, std::mem::offset_of!(Lease, word)).load(Relaxed));
            if !word.is_empty() {
                count(word);
            }
        }
        let mut all = (0, 0);
        for class in 0..CLASSES {
            let destination = self.tables.destination(&self.key(class)).context("a server of each class")?;
            let load = self.tables.load_of(destination).context("its load")?;
            let is = Load::counts_of(views.counts(load).load(Relaxed));
            let expected = flows.get(&destination).copied().unwrap_or((0, 0));
            ensure!(is == expected, "{:?}: counted {is:?}, in the table {expected:?}", self.case);
            all = (all.0 + is.0, all.1 + is.1);
        }
        ensure!(all != (0, 0), "{:?}: nothing was counted", self.case);
        Ok(())
    }
}

/// The tests above rely on it: a plain store's victim is caught by the tag, unless tags are equal.
#[test]
fn flows_of_equal_tags_have_identities_of_their_own() -> Result<()> {
    let objects = Objects::build(&[])?;
    let sizes = Sizes { connections: 14, connections_v6: 0, pool_addresses: 0, ..Sizes::default() };
    let plane = Dataplane::open_for_test(&objects.lb, &sizes)?;
    let flows = flows(
        &plane,
        Case { flows: Flows::EqualTags, servers: Servers::Stay, protocol: TCP, method: Forwarding::Dr },
    );
    let views = plane.views();
    let key = views.secrets.key_v4(u32::from_ne_bytes(VIP.octets()));
    let identity = |flow: &[u32; 4]| views.secrets.identity_v4(key, hash::tuple_v4(flow[0], flow[1]), false);
    let tags: std::collections::BTreeSet<_> =
        flows.iter().map(|flow| tag(views.secrets.first(identity(flow)))).collect();
    let identities: std::collections::BTreeSet<_> = flows.iter().map(identity).collect();
    assert_eq!((tags.len(), identities.len()), (1, 4 * HOT));
    Ok(())
}
