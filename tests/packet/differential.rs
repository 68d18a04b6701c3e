//! The data plane beside its reference model (`lb-model`): random packets, changes of the tables and jumps of time
//! through both, and after each packet the same verdict, the same bytes, the same counters, the same connection table
//! and leases, cursors included.
//!
//! `LB_DIFFERENTIAL_PACKETS` sets how many packets, `LB_DIFFERENTIAL_SEED` the seed, which a failure prints,
//! `LB_DIFFERENTIAL_OBJECT` another object than the agent's. `cargo xtask differential` sets them.

#[path = "differential/scene.rs"]
mod scene;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_agent::dataplane::{Action, Counters, Outcome};
use lb_common::{
    connection::{Kind, Value, WAYS},
    scratch::policy,
    verdict::Reason,
};
use lb_model::{Counted, Fate, Model, Oracle, Unmodelled, checksums_hold, traffic::Traffic};
use scene::{Scene, words};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Packets from an empty table to the next one.
const BATCH: u64 = 8_000;
const THREADS: u64 = 2;
const PACKETS: u64 = 2_000_000;
/// Of even and of odd batches.
const POLICIES: [u32; 2] = [
    0,
    policy::ECHO_ANSWER
        | policy::TUNNEL_FRAGMENT
        | policy::UNKNOWN_PASS
        | policy::TINY_PASS
        | policy::OVERLAP_FORWARD,
];
/// Packets between two changes of the tables, and between two jumps of time; in the mean.
const CHANGE: usize = 60;
const JUMP: usize = 80;
/// Packets from one look at the counts to the next.
const LOOK_AT_COUNTS: u64 = 40;
/// An entry's deadline wraps after 2^16 ticks: no more of them in a batch than leave every entry's on its side of now.
const JUMPS_IN_A_BATCH: u32 = 25_000;

#[test]
fn the_data_plane_does_what_the_model_says() -> Result<()> {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    };
    let packets = number("LB_DIFFERENTIAL_PACKETS", PACKETS)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = number("LB_DIFFERENTIAL_SEED", now.as_nanos() as u64)?;
    let object = match std::env::var_os("LB_DIFFERENTIAL_OBJECT") {
        Some(path) => std::fs::read(&path).with_context(|| format!("read {}", path.display()))?,
        None => lb_agent::dataplane::OBJECT.to_vec(),
    };
    println!("LB_DIFFERENTIAL_SEED={seed} LB_DIFFERENTIAL_PACKETS={packets}");
    let began = Instant::now();
    let (compared, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let one = |thread: u64| -> Result<Tally> {
        pin(thread)?;
        // Policies are of a program that is loaded: every other batch has others.
        let mut scene = Scene::new(&object, seed, POLICIES[thread as usize % POLICIES.len()])?;
        let counters = scene.plane.counters()?;
        let mut tally = Tally::default();
        let batches = (thread..packets.div_ceil(BATCH)).step_by(THREADS as usize);
        for batch in batches {
            if stop.load(Relaxed) {
                break;
            }
            let seed = seed.wrapping_add(batch << 32);
            let mut result = one_batch(&mut scene, &counters, seed, BATCH, &mut tally);
            // Rarely enough, or it would be an excuse.
            if matches!(&result, Err(error) if error.is::<TickEnded>())
                && tally.repeated <= compared.load(Relaxed) / 1_000_000
            {
                tally.repeated += 1;
                result = one_batch(&mut scene, &counters, seed, BATCH, &mut tally);
            }
            compared.fetch_add(BATCH, Relaxed);
            if let Err(error) = result {
                stop.store(true, Relaxed);
                let so_far = compared.load(Relaxed);
                return Err(error.context(format!("MISMATCH within {so_far} packets, batch {batch}")));
            }
        }
        Ok(tally)
    };
    let tallies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || one(thread))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<Vec<Tally>>>()
    })
    .with_context(|| format!("LB_DIFFERENTIAL_SEED={seed} LB_DIFFERENTIAL_PACKETS={packets}"))?;
    let mut all = Tally::default();
    tallies.iter().for_each(|tally| all.add(tally));
    println!("{packets} packets in {} s, none differs\n{all}", began.elapsed().as_secs());
    all.proves_something(packets)
}

/// One CPU a thread: local ports are looked for from a place that depends on it.
fn pin(thread: u64) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut set = nix::sched::CpuSet::new();
    set.set(thread as usize % cpus)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).context("stay on one CPU")
}

/// What was met.
#[derive(Default)]
struct Tally {
    counted: BTreeMap<Counted, u64>,
    events: BTreeMap<u32, u64>,
    unmodelled: BTreeMap<Unmodelled, u64>,
    changes: u64,
    jumps: u64,
    /// Batches that were run again since it cannot be told in which tick a packet ran.
    repeated: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        other.counted.iter().for_each(|(what, n)| *self.counted.entry(*what).or_default() += n);
        other.events.iter().for_each(|(what, n)| *self.events.entry(*what).or_default() += n);
        other.unmodelled.iter().for_each(|(what, n)| *self.unmodelled.entry(*what).or_default() += n);
        self.changes += other.changes;
        self.jumps += other.jumps;
        self.repeated += other.repeated;
    }

    fn forwarded(&self) -> (u64, u64) {
        self.counted.iter().fold((0, 0), |(i, o), (what, n)| match what {
            Counted::In(_) => (i + n, o),
            Counted::Out(_) => (i, o + n),
            Counted::Reason(_) => (i, o),
        })
    }

    /// Nothing was shown by packets that never get anywhere.
    fn proves_something(&self, packets: u64) -> Result<()> {
        let (to_servers, to_clients) = self.forwarded();
        ensure!(
            to_servers > packets / 8 && to_clients > packets / 50,
            "{to_servers} and {to_clients} forwarded"
        );
        if packets < 1_000_000 {
            return Ok(());
        }
        let seen = |reason: &Reason| {
            self.counted.contains_key(&Counted::Reason(*reason as u32))
                || self.events.contains_key(&(*reason as u32))
        };
        let wanted = [
            Reason::NotOurs,
            Reason::NoService,
            Reason::OtherProtocol,
            Reason::ServerTraffic,
            Reason::VrrpBackup,
            Reason::UnknownFlowPassed,
            Reason::BadHeader,
            Reason::TooManyHeaders,
            Reason::BadTransport,
            Reason::BadFlags,
            Reason::NoServer,
            Reason::UnknownFlowDropped,
            Reason::TableFull,
            Reason::NoLocalPort,
            Reason::NoNextHop,
            Reason::TooBig,
            Reason::NoLease,
            Reason::WrongServer,
            Reason::NoClientHop,
            Reason::LeaseExpired,
            Reason::UnknownFlowReset,
            Reason::TimeExceeded,
            Reason::PacketTooBig,
            Reason::NoServerReset,
            Reason::NoServerUnreachable,
            Reason::FlowReset,
            Reason::FlowNew,
            Reason::FlowAdopted,
            Reason::FlowReplaced,
            Reason::FlowMoved,
            Reason::EvictedUnconfirmed,
            Reason::EvictedHalfOpen,
            Reason::EvictedClosing,
            Reason::Stateless,
            Reason::MssClamped,
            Reason::Fragment,
            Reason::FragmentBad,
            Reason::FragmentTiny,
            Reason::FragmentOverlap,
            Reason::FragmentUnknown,
            Reason::FragmentFollowed,
            Reason::IcmpTtlExpired,
            Reason::Icmp,
            Reason::IcmpNoFlow,
            Reason::IcmpToServer,
            Reason::IcmpToClient,
            Reason::ServerUnreachable,
            Reason::TunnelMtu,
            Reason::TunnelMtuTold,
            Reason::ArpBackup,
            Reason::ArpExpired,
            Reason::NdBackup,
            Reason::NdExpired,
            Reason::ServerTold,
            Reason::AccessDenied,
            Reason::NewFlowsLimited,
            Reason::PacketsLimited,
            Reason::FlowSticky,
            Reason::OnePacket,
            Reason::ReplyConflict,
            Reason::HeaderSent,
            Reason::ExtensionLost,
            Reason::NoExtension,
            Reason::FastOpenRefused,
            Reason::NoRoomForHeader,
            Reason::FloodStateless,
            Reason::TunnelFragmented,
            Reason::EchoAnswered,
        ];
        let missing: Vec<_> = wanted.iter().filter(|reason| !seen(reason)).map(|r| r.name()).collect();
        ensure!(missing.is_empty(), "no packet met {missing:?}");
        Ok(())
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (to_servers, to_clients) = self.forwarded();
        writeln!(f, "{to_servers} forwarded to servers, {to_clients} to clients")?;
        writeln!(f, "{} changes of the tables, {} jumps of time", self.changes, self.jumps)?;
        if self.repeated > 0 {
            writeln!(f, "{} batches were run again: a tick ended where none should", self.repeated)?;
        }
        for reason in Reason::ALL {
            let number = *reason as u32;
            let ends = self.counted.get(&Counted::Reason(number)).unwrap_or(&0);
            let n = ends + self.events.get(&number).unwrap_or(&0);
            if n > 0 {
                writeln!(f, "{n:>10} {}", reason.name())?;
            }
        }
        for (what, n) in &self.unmodelled {
            writeln!(f, "{n:>10} not compared: {}", what.name())?;
        }
        Ok(())
    }
}

/// The data plane's counters by where a frame is counted, and by event.
fn counted(counters: &Counters) -> Result<(BTreeMap<Counted, u64>, BTreeMap<u32, u64>)> {
    let (mut ends, mut events) = (BTreeMap::new(), BTreeMap::new());
    for (reason, count) in counters.reasons()? {
        if reason.class() == lb_common::verdict::Class::Event {
            events.insert(reason as u32, count.packets);
        } else {
            ends.insert(Counted::Reason(reason as u32), count.packets);
        }
    }
    for (index, traffic) in counters.destinations()? {
        ends.insert(Counted::In(index), traffic.packets_in);
        ends.insert(Counted::Out(index), traffic.packets_out);
    }
    Ok((ends, events))
}

/// Counters against those of a tally since `before`.
fn check_counters(
    counters: &Counters,
    before: &(BTreeMap<Counted, u64>, BTreeMap<u32, u64>),
    tally: &Tally,
) -> Result<()> {
    let after = counted(counters)?;
    let name = |number: u32| Reason::ALL.iter().find(|r| **r as u32 == number).map_or("?", |r| r.name());
    let mut wrong = Vec::new();
    for (what, n) in &after.0 {
        let (grown, wanted) = (n - before.0.get(what).unwrap_or(&0), *tally.counted.get(what).unwrap_or(&0));
        if grown != wanted {
            let what = match what {
                Counted::Reason(number) => name(*number).to_owned(),
                other => format!("{other:?}"),
            };
            wrong.push(format!("{what}: {grown} instead of {wanted}"));
        }
    }
    for (what, n) in &after.1 {
        let (grown, wanted) = (n - before.1.get(what).unwrap_or(&0), *tally.events.get(what).unwrap_or(&0));
        if grown != wanted {
            wrong.push(format!("{}: {grown} instead of {wanted}", name(*what)));
        }
    }
    ensure!(wrong.is_empty(), "counters: {}", wrong.join(", "));
    Ok(())
}

/// One batch, compared packet by packet; counters at its end. Where those differ the batch is run again with a look
/// at them after each packet.
fn one_batch(
    scene: &mut Scene,
    counters: &Counters,
    seed: u64,
    packets: u64,
    tally: &mut Tally,
) -> Result<()> {
    let before = counted(counters)?;
    let mut of_batch = Tally::default();
    let model = run(scene, counters, seed, packets, &mut of_batch, false)?;
    let paths = scene.paths()?;
    if let Err(error) = check_counters(counters, &before, &of_batch) {
        run(scene, counters, seed, packets, &mut Tally::default(), true)?;
        // Every packet did what it should when it was looked at: a flow had ended under one of the others.
        return Err(error.context("not when run again").context(TickEnded));
    }
    ensure!(paths == model.paths, "paths of tunnels are {paths:?} instead of {:?}", model.paths);
    tally.add(&of_batch);
    Ok(())
}

fn run(
    scene: &mut Scene,
    counters: &Counters,
    seed: u64,
    packets: u64,
    tally: &mut Tally,
    each: bool,
) -> Result<Model> {
    let mut model = scene.begin()?;
    let mut traffic = Traffic::new(seed, &model.config);
    let favourites = traffic.favourites(&model.config);
    let mut watch = Watch::new(scene)?;
    let mut jumped = 0;
    let mut refused_before = refused(counters)?;
    let mut flooded_before = flooded(counters)?;
    for n in 0..packets {
        if traffic.random().one_in(CHANGE) {
            tally.changes += 1;
            scene.change(traffic.random(), &favourites, &mut model);
        }
        if traffic.random().one_in(JUMP) {
            let ticks = traffic.random().of(&[1u16, 2, 5, 20, 20, 70, 130, 260, 500, 2000]);
            if jumped + u32::from(ticks) < JUMPS_IN_A_BATCH {
                jumped += u32::from(ticks);
                tally.jumps += 1;
                jump(scene, ticks)?;
                model.pass_time(ticks);
            }
            if traffic.random().one_in(4) {
                scene.age_fragments()?;
                model.forget_fragments();
            }
            if traffic.random().one_in(4) {
                let now = watch.now(scene)?;
                sweep(scene, now);
                model.sweep(now);
                scene.write_counts(&model);
            }
        }
        let frame = traffic.next(&model.config);
        if let Some(what) = model.leaves_out(&frame) {
            *tally.unmodelled.entry(what).or_default() += 1;
            continue;
        }
        let before = if each { Some(counted(counters)?) } else { None };
        let mut said = String::new();
        let result = one_packet(
            (scene, counters),
            &mut model,
            &mut watch,
            &frame,
            (refused_before, flooded_before),
            &mut said,
        );
        let fate = result.with_context(|| format!("packet {n} of the batch: {}\n{said}", hex(&frame)))?;
        if each || n % LOOK_AT_COUNTS == 0 {
            compare_counts(scene, &model).with_context(|| {
                format!("packet {n} of the batch or one before: {}\n{fate:?}", hex(&frame))
            })?;
        }
        refused_before += (fate == Fate::Drop(Reason::NoLocalPort)) as u64;
        flooded_before += model.events.contains(&Reason::FloodStateless) as u64;
        traffic.became(&model.config, &fate);
        let mut of_packet = Tally::default();
        *of_packet.counted.entry(fate.counted()).or_default() += 1;
        model.events.iter().for_each(|event| *of_packet.events.entry(*event as u32).or_default() += 1);
        if let Some(before) = before {
            check_counters(counters, &before, &of_packet)
                .with_context(|| format!("packet {n} of the batch: {}\n{fate:?}", hex(&frame)))?;
        }
        tally.add(&of_packet);
    }
    // What a packet does not say it touches must be untouched: leases that nobody has. Which one was taken and given
    // back, where the table was full, is not known; it was free before and is free after.
    scene.same_extensions(&model)?;
    let now = watch.now(scene)?;
    let live = |word: Value| if word.is_empty() || word.is_expired(now) { Value::EMPTY } else { word };
    for lease in scene.ports() {
        let word = Value(scene.views.leases.word(lease, 8).load(Relaxed));
        let wanted = model.leases.get(&lease).map_or(Value::EMPTY, |lease| lease.word);
        ensure!(live(word) == live(wanted), "lease {lease:#x} is {word:?}, not {wanted:?}");
    }
    Ok(model)
}

/// Time jumps: every deadline is so much nearer. The program cannot tell that from time going by.
fn jump(scene: &Scene, ticks: u16) -> Result<()> {
    let nearer = |word: &AtomicU64| {
        let value = Value(word.load(Relaxed));
        if !value.is_empty() {
            word.store(value.with_deadline(value.deadline().wrapping_sub(ticks)).0, Relaxed);
        }
    };
    for bucket in 0..scene.views.connections.len() {
        (0..WAYS as u32).for_each(|way| nearer(scene.views.value(bucket, way)));
    }
    scene.ports().into_iter().for_each(|lease| nearer(scene.views.leases.word(lease, 8)));
    scene.rewrite_extensions(|word| word.with_deadline(word.deadline().wrapping_sub(ticks)))
}

/// As the agent's sweeper: what is over is freed.
fn sweep(scene: &Scene, now: u16) {
    let free = |word: &AtomicU64| {
        let value = Value(word.load(Relaxed));
        if !value.is_empty() && value.is_expired(now) {
            word.store(0, Relaxed);
        }
    };
    for bucket in 0..scene.views.connections.len() {
        (0..WAYS as u32).for_each(|way| free(scene.views.value(bucket, way)));
    }
    scene.ports().into_iter().for_each(|lease| free(scene.views.leases.word(lease, 8)));
}

/// Knows the tick without asking the kernel for each packet.
struct Watch {
    tick: u16,
    /// Until then the tick is certainly this one.
    until: Instant,
    jiffy: Duration,
}

impl Watch {
    fn new(scene: &Scene) -> Result<Self> {
        let jiffy = Duration::from_secs(1) / scene.plane.clock().hz();
        let mut watch = Self { tick: 0, until: Instant::now(), jiffy };
        watch.look(scene)?;
        Ok(watch)
    }

    fn look(&mut self, scene: &Scene) -> Result<()> {
        let at = Instant::now();
        let jiffies = scene.plane.clock().jiffies()?;
        let shift = scene.views.config.tick_shift;
        self.tick = (jiffies >> shift) as u16;
        let left = (((jiffies >> shift) + 1) << shift) - jiffies - 1;
        // The jiffy that runs may end at once; a jiffy is no shorter than it says, but for a clock being slewed.
        self.until = at + self.jiffy * left as u32 * 15 / 16;
        Ok(())
    }

    /// The tick, which stays for a moment: at its end it is waited for.
    fn now(&mut self, scene: &Scene) -> Result<u16> {
        while Instant::now() >= self.until {
            self.look(scene)?;
        }
        Ok(self.tick)
    }

    fn is_sure(&self) -> bool {
        Instant::now() < self.until
    }
}

/// A packet differs, and the tick that should have stayed is over: a timer interrupt came late and the next in time, as
/// happens to a virtual machine that had to wait for its CPU.
#[derive(Debug)]
struct TickEnded;

impl std::fmt::Display for TickEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a tick ended where none should")
    }
}

/// Runs a packet through both.
fn one_packet(
    (scene, counters): (&Scene, &Counters),
    model: &mut Model,
    watch: &mut Watch,
    frame: &[u8],
    (refused, flooded): (u64, u64),
    said: &mut String,
) -> Result<Fate> {
    let now = watch.now(scene)?;
    let outcome = scene.plane.test_run(frame)?;
    let eyes = Eyes { scene, counters, refused, flooded, sent: &outcome.frame };
    if watch.is_sure() {
        return match model.packet(frame, now, &eyes) {
            Ok(fate) => match same(scene, model, frame, &outcome, &fate, said) {
                Ok(()) => Ok(fate),
                Err(error) => {
                    watch.look(scene)?;
                    Err(if watch.tick == now { error } else { error.context(TickEnded) })
                }
            },
            Err(what) => bail!("{what:?} reached the model"),
        };
    }
    // The tick may have ended meanwhile: it is this one or one of the next.
    watch.look(scene)?;
    let mut tick = now;
    loop {
        let mut candidate = model.clone();
        let result = match candidate.packet(frame, tick, &eyes) {
            Ok(fate) => same(scene, &candidate, frame, &outcome, &fate, said).map(|()| fate),
            Err(what) => Err(anyhow!("{what:?} reached the model")),
        };
        if result.is_ok() || tick == watch.tick {
            *model = candidate;
            return result;
        }
        tick = tick.wrapping_add(1);
    }
}

/// Packets that found no local port, so far.
fn refused(counters: &Counters) -> Result<u64> {
    let of = counters.reasons()?.into_iter().find(|(reason, _)| *reason == Reason::NoLocalPort);
    Ok(of.map_or(0, |(_, count)| count.packets))
}

/// Packets that went by the slots alone since there were too many, so far.
fn flooded(counters: &Counters) -> Result<u64> {
    let of = counters.reasons()?.into_iter().find(|(reason, _)| *reason == Reason::FloodStateless);
    Ok(of.map_or(0, |(_, count)| count.packets))
}

/// Looks at what the data plane chose.
struct Eyes<'a> {
    scene: &'a Scene,
    counters: &'a Counters,
    /// How many packets were refused for want of a local port, before this one.
    refused: u64,
    /// How many went by the slots alone, before this one.
    flooded: u64,
    /// The frame that came out.
    sent: &'a [u8],
}

impl Eyes<'_> {
    /// A second that it may be by the clock; else none that was.
    fn sane(&self, second: u64) -> u64 {
        let clock = self.scene.plane.clock();
        let is = clock.jiffies().map_or(0, |jiffies| jiffies / clock.hz() as u64);
        if is.wrapping_sub(second) <= 1 { second } else { 0 }
    }
}

impl Oracle for Eyes<'_> {
    fn lease_of(&self, identity: u64, now: u16) -> Option<u32> {
        let entries = words(&self.scene.views.connections).chunks(2);
        let mut of_flow = entries.filter(|entry| entry[0] == identity).map(|entry| Value(entry[1]));
        of_flow
            .find(|value| !value.is_empty() && !value.is_expired(now) && value.kind() == Kind::FullNat)
            .map(Value::lease)
    }

    fn lease_word(&self, lease: u32) -> Value {
        Value(self.scene.views.leases.word(lease, 8).load(Relaxed))
    }

    fn was_flooded(&self) -> bool {
        flooded(self.counters).is_ok_and(|now| now > self.flooded)
    }

    fn sent(&self) -> &[u8] {
        self.sent
    }

    fn second_of_limit(&self, service: usize) -> u64 {
        let mut all = self.scene.remembered();
        all.find(|(of, ..)| *of == service).map_or(0, |(_, limit, _)| self.sane(limit >> 32))
    }

    fn second_of_rate(&self, destination: u32) -> u64 {
        self.scene.rate(destination).map_or(0, |word| self.sane(word >> 32))
    }

    fn had_no_local_port(&self) -> bool {
        refused(self.counters).is_ok_and(|now| now > self.refused)
    }
}

fn same(
    scene: &Scene,
    model: &Model,
    frame: &[u8],
    outcome: &Outcome,
    fate: &Fate,
    said: &mut String,
) -> Result<()> {
    let same = compare(scene, model, frame, outcome, fate);
    if same.is_err() {
        let _ = write!(said, "model: {fate:?} {:?}", model.events);
    }
    same
}

fn compare(scene: &Scene, model: &Model, frame: &[u8], outcome: &Outcome, fate: &Fate) -> Result<()> {
    let (action, bytes) = match fate {
        Fate::Pass(_) => (Action::Pass, Some(frame)),
        Fate::Kernel(_, bytes) => (Action::Pass, Some(&bytes[..])),
        Fate::Drop(_) => (Action::Drop, None),
        Fate::Answer(_, bytes) | Fate::Forward(_, bytes) => (Action::Tx, Some(&bytes[..])),
    };
    ensure!(
        outcome.action == action,
        "the action is {:?} ({}), not {action:?}",
        outcome.action,
        hex(&outcome.frame)
    );
    if let Some(bytes) = bytes
        && outcome.frame != bytes
    {
        bail!("the frame out is\n{} instead of\n{}", hex(&outcome.frame), hex(bytes));
    }
    // Never by a rule: the data plane leased what it may not, or refused without a reason.
    ensure!(*fate != Fate::Drop(Reason::Internal), "no such lease, and no want of ports");
    if let Fate::Forward(..) = fate {
        let holds = !checksums_hold(frame) || checksums_hold(&outcome.frame);
        ensure!(holds, "checksums held before and do not after: {}", hex(&outcome.frame));
    }
    // SAFETY: a slot is an identity and a value of 8 bytes each.
    let wanted = unsafe {
        let entries = &model.table.entries;
        std::slice::from_raw_parts(entries.as_ptr().cast::<u64>(), entries.len() * 2)
    };
    let is = words(&scene.views.connections);
    if is != wanted {
        let at = (0..is.len()).find(|i| is[*i] != wanted[*i]).unwrap_or_default();
        let slot = at / 2;
        bail!(
            "slot {slot} of the connection table is {} instead of {}",
            show(is[slot * 2], Value(is[slot * 2 + 1])),
            show(wanted[slot * 2], Value(wanted[slot * 2 + 1]))
        );
    }
    if words(&scene.views.cold_tuples) != cold_words(model) {
        bail!("a cold tuple differs");
    }
    if let Fate::Pass(Reason::TunnelMtu) | Fate::Answer(Reason::TunnelMtuTold, _) = fate {
        let paths = scene.paths()?;
        ensure!(paths == model.paths, "paths of tunnels are {paths:?} instead of {:?}", model.paths);
    }
    for index in &model.touched {
        let record = scene.views.leases.get(*index);
        let Some(lease) = model.leases.get(index) else {
            ensure!(record.word == 0, "lease {index:#x} was not given back: {record:?}");
            continue;
        };
        let same = (record.owner, Value(record.word)) == (lease.owner, lease.word)
            && record.client.v6() == lease.client
            && lb_common::hash::ports_of_word(record.ports) == lease.ports
            && record.hop == lease.hop.unwrap_or(0);
        ensure!(same, "lease {index:#x} is {record:?} instead of {lease:?}");
    }
    if model.shifted {
        scene.same_extensions(model)?;
    }
    for (service, cursor) in scene.cursors() {
        let wanted = model.cursors[service];
        ensure!(cursor == wanted, "the cursor of {} is {cursor}, not {wanted}", scene.name_of(service));
    }
    Ok(())
}

/// What few packets change and takes time to look at: flows by real server, flows by second, lblc's servers.
fn compare_counts(scene: &Scene, model: &Model) -> Result<()> {
    for (service, limit, cached) in scene.remembered() {
        let (second, counted) = model.limits.get(&service).copied().unwrap_or_default();
        let same = (limit >> 32, limit as u32, cached) == (second, counted, model.cached[service]);
        ensure!(same, "{}: {limit:#x} new flows, lblc's is {cached}", scene.name_of(service));
    }
    scene.wrong_count(model).map_or(Ok(()), |wrong| Err(anyhow!(wrong)))
}

fn cold_words(model: &Model) -> &[u64] {
    let cold = &model.table.cold;
    // SAFETY: cold tuples are records of 32 bytes without padding.
    unsafe { std::slice::from_raw_parts(cold.as_ptr().cast(), cold.len() * 4) }
}

fn show(identity: u64, value: Value) -> String {
    if value.is_empty() {
        return format!("empty ({identity:#x})");
    }
    let state = lb_common::state::State::from_number(value.state()).map_or("?", |state| state.name());
    let names = match value.kind() {
        Kind::FullNat => format!("lease {:#x}", value.lease()),
        _ => format!("destination {}", value.destination()),
    };
    format!("{:?} {state} until {} {names} ({identity:#x}, {:#x})", value.kind(), value.deadline(), value.0)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
