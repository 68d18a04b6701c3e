//! A packet can be anything: random and mutated frames against a host-side parser. The connection table changes
//! exactly when that parser says that the frame begins or steps a flow, every frame ends as it says, and all
//! else stays byte-identical: strangers' frames and every table but the counters.
//!
//! `LB_RANDOM_FRAMES` sets how many frames, `LB_RANDOM_SEED` the seed, which a failure prints.

pub mod frames;
mod parser;
mod world;

use anyhow::{Context as _, Result, anyhow, ensure};
use frames::{Random, Targets};
use lb_agent::dataplane::{Action, Outcome};
use lb_common::verdict::{Class, Reason};
use parser::{Effect, Expected, Fate, expected};
use std::{collections::BTreeMap, fmt::Write as _};
use world::World;

/// Frames between two looks at everything.
const BATCH: u64 = 20_000;
const THREADS: u64 = 2;

#[test]
fn random_frames_change_the_table_exactly_when_they_are_ours() -> Result<()> {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    };
    let frames = number("LB_RANDOM_FRAMES", 10_000_000)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = number("LB_RANDOM_SEED", now.as_nanos() as u64)?;
    println!("LB_RANDOM_SEED={seed} LB_RANDOM_FRAMES={frames}");
    let dir = tempfile::tempdir()?;
    let object = std::fs::read(xtask::ebpf::build(dir.path())?.path("lb")?)?;
    let tallies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let object = &object;
                scope.spawn(move || one_thread(object, seed ^ thread << 56, frames.div_ceil(THREADS)))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<Vec<Tally>>>()
    })
    .with_context(|| format!("LB_RANDOM_SEED={seed} LB_RANDOM_FRAMES={frames}"))?;
    let mut sum = Tally::default();
    for tally in tallies {
        sum.add(&tally);
    }
    println!("{sum:?}");
    ensure!(sum.received() >= frames);
    // Nothing was proven by frames that never get anywhere.
    for (what, count) in
        [("passed", sum.passed), ("forwarded", sum.forwarded), ("begun", sum.begun), ("stepped", sum.stepped)]
    {
        ensure!(count > frames / 100, "only {count} of {frames} frames were {what}");
    }
    for reason in [
        Reason::BadTransport,
        Reason::BadFlags,
        Reason::NoServer,
        Reason::UnknownFlowDropped,
        Reason::TooBig,
        Reason::NoLease,
        Reason::WrongServer,
        Reason::UnknownFlowReset,
        Reason::TimeExceeded,
        Reason::PacketTooBig,
    ] {
        ensure!(sum.reasons.contains_key(reason.name()), "no frame ended with {}", reason.name());
    }
    Ok(())
}

/// How frames ended, by the parser's word or by the data plane's counters.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Tally {
    passed: u64,
    forwarded: u64,
    begun: u64,
    /// Of a known flow, and with a new state; only the parser's.
    stepped: u64,
    /// Drops and answers by name.
    reasons: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn received(&self) -> u64 {
        self.passed + self.forwarded + self.reasons.values().sum::<u64>()
    }

    fn count(&mut self, world: &World, expected: &Expected) {
        match expected.fate {
            Fate::Passes => self.passed += 1,
            Fate::Forwarded => self.forwarded += 1,
            Fate::Dropped(reason) | Fate::Answered(reason) => {
                *self.reasons.entry(reason.name()).or_default() += 1
            }
        }
        match expected.effect {
            Effect::Nothing => {}
            Effect::Begins { .. } => self.begun += 1,
            Effect::Steps { flow, state } => self.stepped += (world.flows[flow].state != state) as u64,
        }
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.forwarded += other.forwarded;
        self.begun += other.begun;
        self.stepped += other.stepped;
        for (name, count) in &other.reasons {
            *self.reasons.entry(name).or_default() += count;
        }
    }

    fn of_counters(world: &World) -> Result<Self> {
        let counters = world.plane.counters()?;
        let mut tally = Self::default();
        for (reason, count) in counters.reasons()? {
            match reason.class() {
                Class::Pass | Class::Divert => tally.passed += count.packets,
                Class::Event | Class::Withheld => {
                    if matches!(reason, Reason::FlowNew | Reason::FlowAdopted) {
                        tally.begun += count.packets;
                    }
                }
                Class::Drop | Class::Answer if count.packets > 0 => {
                    tally.reasons.insert(reason.name(), count.packets);
                }
                Class::Drop | Class::Answer => {}
            }
        }
        for traffic in counters.destinations()?.values() {
            tally.forwarded += traffic.packets_in + traffic.packets_out;
        }
        Ok(tally)
    }
}

fn one_thread(object: &[u8], seed: u64, frames: u64) -> Result<Tally> {
    let mut world = World::new(object)?;
    let targets = world.targets();
    let before = Tally::of_counters(&world)?;
    let mut all = Tally::default();
    for batch in 0..frames.div_ceil(BATCH) {
        let mut random = Random(seed.wrapping_add(batch << 32));
        let again = random;
        let len = BATCH.min(frames - batch * BATCH);
        let tally = frames_in_a_row(&mut world, &targets, &mut random, len, false)?;
        all.add(&tally);
        if let Err(error) = world.check_rest() {
            // Which frame did it: the same ones again, with a look after each.
            world.reset();
            frames_in_a_row(&mut world, &targets, &mut { again }, len, true)?;
            return Err(error.context(format!("batch {batch}, but not when run again")));
        }
        let mut counted = Tally::of_counters(&world)?;
        let mut wanted = before.clone();
        wanted.add(&all);
        // Counters know no steps.
        (counted.stepped, wanted.stepped) = (0, 0);
        ensure!(counted == wanted, "batch {batch}: counted\n{counted:?}\ninstead of\n{wanted:?}");
    }
    world.check_system_tables()?;
    Ok(all)
}

fn frames_in_a_row(
    world: &mut World,
    targets: &Targets,
    random: &mut Random,
    len: u64,
    look_at_everything: bool,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for _ in 0..len {
        // What becomes of a fragment depends on those before it: they have cases of their own.
        let frame = loop {
            let frame = frames::next(random, targets);
            if !parser::is_fragment(&frame) {
                break frame;
            }
        };
        let wanted = expected(world, &frame);
        let outcome = world.plane.test_run(&frame)?;
        check_fate(&frame, &outcome, &wanted)
            .and_then(|()| world.check_effect(&wanted, parser::client(&frame)))
            .and_then(|()| if look_at_everything { world.check_rest() } else { Ok(()) })
            .with_context(|| {
                format!(
                    "frame {}\nexpected {wanted:?}\nbecame {:?} {}",
                    hex(&frame),
                    outcome.action,
                    hex(&outcome.frame)
                )
            })?;
        tally.count(world, &wanted);
    }
    Ok(tally)
}

fn check_fate(frame: &[u8], outcome: &Outcome, wanted: &Expected) -> Result<()> {
    let action = match wanted.fate {
        Fate::Passes => Action::Pass,
        Fate::Dropped(_) => Action::Drop,
        Fate::Answered(_) | Fate::Forwarded => Action::Tx,
    };
    ensure!(outcome.action == action, "the frame should end with {action:?}");
    if wanted.fate == Fate::Passes {
        ensure!(outcome.frame == frame, "a frame that is not ours was changed");
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
