//! What is shown: the table, or JSON.

use std::fmt;
use std::process::Command;

use aya::programs::loaded_programs;
use lb_common::maps::programs;
use serde::Serialize;

use crate::kernel::Cost;
use crate::rows::{Against, Goal, Row};
use crate::scene::{Feeder, Scene};

/// Cost of a packet, round by round.
#[derive(Clone, Default, Debug)]
pub struct Samples {
    nanoseconds: Vec<f64>,
    cycles: Vec<f64>,
    instructions: Vec<f64>,
}

impl Samples {
    /// Adds a round.
    pub fn add(&mut self, cost: &Cost, packets: u32) {
        let packets = packets as f64;
        self.nanoseconds.push(cost.time.as_secs_f64() * 1e9 / packets);
        self.cycles.extend(cost.cycles.map(|n| n as f64 / packets));
        self.instructions.extend(cost.instructions.map(|n| n as f64 / packets));
    }
}

/// Least and middle of some numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
}

impl Spread {
    fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { min: *sorted.first()?, median: sorted[sorted.len() / 2] })
    }

    fn less(numbers: &[f64], base: &[f64]) -> Option<Self> {
        let (this, base) = (Self::of(numbers)?, Self::of(base)?);
        Some(Self { min: this.min - base.min, median: this.median - base.median })
    }
}

/// A row's cost, net of a program that only returns XDP_TX.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub row: String,
    pub nanoseconds: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cycles: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Spread>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub goals: Vec<Held>,
    #[serde(skip)]
    wanted: Vec<Goal>,
}

/// How a row stands against a goal. Of minima.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    pub against: String,
    /// A multiple, or nanoseconds.
    pub ratio: f64,
    pub must: f64,
    pub aim: Option<f64>,
    pub met: &'static str,
}

impl Measured {
    pub fn new(row: &Row, samples: &Samples, base: &Samples) -> Self {
        Self {
            row: row.name.clone(),
            nanoseconds: Spread::less(&samples.nanoseconds, &base.nanoseconds),
            cycles: Spread::less(&samples.cycles, &base.cycles),
            instructions: Spread::less(&samples.instructions, &base.instructions),
            goals: Vec::new(),
            wanted: row.goals.clone(),
        }
    }

    /// What ratios are made of: cycles where they are counted, else time.
    fn value(&self) -> Option<f64> {
        self.cycles.or(self.nanoseconds).map(|spread| spread.min)
    }
}

/// A program's size.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    pub program: String,
    pub verified_instructions: u32,
    pub jit_bytes: u32,
}

/// Bytes of connection table and side arrays per flow that they are sized for.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub flows: String,
    pub bytes: f64,
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    pub cpu: String,
    pub kernel: String,
    pub commit: String,
    pub clock: &'static str,
    pub rounds: u32,
    /// What the core ran at, measured in user space.
    pub gigahertz: f64,
    /// The bare run with the feeder, by how it feeds: not taken off.
    pub floor_tx: Vec<Measured>,
    pub rows: Vec<Measured>,
    pub programs: Vec<Size>,
    pub memory: Vec<Memory>,
}

impl Report {
    pub fn new(
        mut rows: Vec<Measured>,
        bases: &[Row],
        base_samples: &[Samples],
        feeder: &Feeder,
        scenes: &[Scene],
        rounds: u32,
        gigahertz: f64,
    ) -> anyhow::Result<Self> {
        for index in 0..rows.len() {
            let held =
                rows[index].wanted.iter().filter_map(|goal| Held::of(goal, &rows[index], &rows)).collect();
            rows[index].goals = held;
        }
        let floor_tx = bases.iter().zip(base_samples).map(|(row, samples)| {
            let kind = row.feed.kind;
            let mut name =
                format!("floor_tx {}", if kind & lb_common::feed::kind::V6 != 0 { "v6" } else { "v4" });
            if kind & lb_common::feed::kind::REPLY != 0 {
                name += " reply";
            }
            if kind & lb_common::feed::kind::LISTED != 0 {
                name += " listed";
            }
            name += &format!(" {} flows", row.feed.mask + 1);
            Measured {
                row: name,
                ..Measured::new(
                    row,
                    samples,
                    &Samples { nanoseconds: vec![0.0], cycles: vec![0.0], instructions: vec![0.0] },
                )
            }
        });
        let mut memory: Vec<Memory> = Vec::new();
        for scene in scenes.iter().filter(|scene| scene.plan.is_usual()) {
            let family = if scene.plan.v6 { "v6" } else { "v4" };
            memory.push(Memory {
                flows: format!("{:?} {family}", scene.plan.forwarding).to_lowercase(),
                bytes: scene.plan.bytes_per_flow(),
            });
        }
        Ok(Self {
            cpu: cpu(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
            commit: commit(),
            clock: if feeder.meter.has_counters() {
                "hardware counters of the thread"
            } else {
                "CPU time of the thread"
            },
            rounds,
            gigahertz,
            floor_tx: floor_tx.collect(),
            rows,
            programs: sizes()?,
            memory,
        })
    }
}

/// Nanoseconds below which a difference of two runs says nothing.
const RESOLVED: f64 = 1.0;

impl Held {
    /// How a row stands against a goal; none where what it is held against was not measured.
    fn of(goal: &Goal, row: &Measured, rows: &[Measured]) -> Option<Self> {
        let other = |name: &str| rows.iter().find(|row| row.row == name);
        let own = row.value()?;
        let least = |row: &Measured| row.nanoseconds.map(|spread| spread.min);
        // Beside the ratio: the least time of what it is a multiple of.
        let (against, ratio, floor) = match &goal.against {
            Against::Row(name) => (name.clone(), own / other(name)?.value()?, least(other(name)?)?),
            Against::Sum([one, two]) => {
                let (first, second) = (other(one)?, other(two)?);
                let short = two.trim_start_matches("floor_");
                (
                    format!("{one}+{short}"),
                    own / (first.value()? + second.value()?),
                    least(first)? + least(second)?,
                )
            }
            Against::LineAbove(name) => {
                let line = other("floor_line")?;
                ("floor_line+hot".into(), (own - other(name)?.value()?) / line.value()?, least(line)?)
            }
            Against::Nanoseconds => ("nanoseconds".into(), least(row)?, f64::INFINITY),
        };
        // A floor of a few cycles vanishes beside the run's own; nothing can be said of its multiples.
        let met = if floor < RESOLVED {
            "unclear"
        } else if ratio > goal.must {
            "MISSED"
        } else if goal.aim.is_some_and(|aim| ratio <= aim) {
            "aim met"
        } else {
            "met"
        };
        Some(Self { against, ratio, must: goal.must, aim: goal.aim, met })
    }
}

/// Verified instructions and machine code of the data plane's programs: the newest of each name.
fn sizes() -> anyhow::Result<Vec<Size>> {
    let mut newest = std::collections::BTreeMap::new();
    for program in loaded_programs() {
        // One that went meanwhile.
        let Ok(program) = program else { continue };
        if let Some(name) = program.name_as_str() {
            newest.insert(name.to_owned(), program);
        }
    }
    let names = std::iter::once(programs::MAIN).chain(programs::TAILS.iter().map(|(name, _)| *name));
    Ok(names
        .filter_map(|name| {
            let info = newest.get(name)?;
            Some(Size {
                program: name.into(),
                verified_instructions: info.verified_instruction_count().unwrap_or(0),
                jit_bytes: info.size_jitted(),
            })
        })
        .collect())
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))
            .and_then(|line| line.split(':').nth(1))
            .map_or("?", str::trim)
            .to_owned()
    };
    format!("{}, family {} model {}", field("model name"), field("cpu family"), field("model"))
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let out = Command::new("git").current_dir(xtask::root()).args(arguments).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|list| !list.is_empty());
    if changed { format!("{commit} and changes") } else { commit }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "CPU     {}\nkernel  {}\ncommit  {}", self.cpu, self.kernel, self.commit)?;
        writeln!(
            f,
            "clock   {}; {} rounds; core at {:.2} GHz; net of floor_tx",
            self.clock, self.rounds, self.gigahertz
        )?;
        let has_cycles = self.rows.iter().any(|row| row.cycles.is_some());
        writeln!(f)?;
        writeln!(
            f,
            "{:<20}{:>7}{:>7}  {:<17}{:>7}{:>5}{:>5}",
            "ns a packet", "min", "median", "held against", "is", "must", "aim"
        )?;
        for row in self.floor_tx.iter().take(1).chain(&self.rows) {
            let Some(ns) = row.nanoseconds else { continue };
            write!(
                f,
                "{:<20}{:>7.1}{:>7.1}",
                row.row.split(" v4 1 fl").next().unwrap_or(&row.row),
                ns.min,
                ns.median
            )?;
            for (number, held) in row.goals.iter().enumerate() {
                if number > 0 {
                    write!(f, "\n{:<34}", "")?;
                }
                let digits = if held.must >= 10.0 { 0 } else { 1 };
                let aim = held.aim.map_or("-".into(), |aim| format!("{aim:.digits$}"));
                let (against, ratio, must, met) = (&held.against, held.ratio, held.must, held.met);
                write!(f, "  {against:<17}{ratio:>7.2}{must:>5.digits$}{aim:>5} {met}")?;
            }
            writeln!(f)?;
        }
        if has_cycles {
            writeln!(f, "\n{:<20}{:>9}{:>9}{:>14}", "a packet", "cycles", "median", "instructions")?;
            for row in &self.rows {
                if let (Some(cycles), Some(instructions)) = (row.cycles, row.instructions) {
                    writeln!(
                        f,
                        "{:<20}{:>9.1}{:>9.1}{:>14.1}",
                        row.row, cycles.min, cycles.median, instructions.median
                    )?;
                }
            }
        }
        writeln!(f, "\n{:<20}{:>12}{:>12}", "program", "verified", "JIT bytes")?;
        for size in &self.programs {
            writeln!(f, "{:<20}{:>12}{:>12}", size.program, size.verified_instructions, size.jit_bytes)?;
        }
        writeln!(f, "\n{:<20}{:>12}", "memory", "bytes a flow")?;
        for memory in &self.memory {
            writeln!(f, "{:<20}{:>12.1}", memory.flows, memory.bytes)?;
        }
        Ok(())
    }
}
