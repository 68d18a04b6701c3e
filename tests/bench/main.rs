//! The benchmark of the data plane: what a packet costs on every path, beside what the least program for the
//! same job costs in the same run. `docs/benchmarks.md` says how and why.

mod apply;
mod checks;
mod flood;
mod frames;
mod kernel;
mod rare;
mod report;
mod rows;
mod scale;
mod scene;
mod veth;
mod vrrp;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lb_common::feed::kind;
use serde::Serialize;

use crate::report::{Measured, Report, Samples};
use crate::rows::{CONNECTIONS, MANY, Path, Program, Row};
use crate::scene::{Feeder, Scene, Sums};

#[derive(Parser)]
#[command(name = "bench", about = "Measure what a packet costs lb's data plane (needs root)")]
struct Arguments {
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Few and short rounds: rough numbers in seconds
    #[arg(long)]
    quick: bool,
    /// Rounds over all rows; each row's minimum and median are shown
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Measure only rows whose name contains this (may be given again), with their floors; `veth`, `apply`,
    /// `scale`, `checks`, `flood` and `vrrp` are the parts in network namespaces
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// How long the pair of the part `vrrp` has to bear busy cores, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    busy: u64,
    /// The data plane's object; built from the sources when it is not given
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

/// How long a row is measured in a round.
struct Effort {
    rounds: u32,
    seconds: f64,
    most: u32,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All that was measured, as one document.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    rows: Option<Report>,
    veth: Option<Vec<veth::Throughput>>,
    apply: Option<Vec<apply::Order>>,
    scale: Option<scale::Scale>,
    checks: Option<Vec<checks::Probing>>,
    flood: Option<Vec<flood::Flooded>>,
    vrrp: Option<vrrp::Times>,
}

/// The parts that are not rows.
const PARTS: [&str; 6] = ["veth", "apply", "scale", "checks", "flood", "vrrp"];

fn run(arguments: &Arguments) -> Result<()> {
    let objects = xtask::ebpf::build(&xtask::target_dir().join("ebpf/bench"))?;
    let lb = arguments.object.as_deref().map_or_else(|| objects.path("lb"), Ok)?;
    let object = std::fs::read(lb).with_context(|| format!("read {}", lb.display()))?;
    let programs = std::fs::read(objects.path("bench")?).context("read the benchmark's object")?;
    let (parts, only): (Vec<String>, Vec<String>) =
        arguments.only.iter().cloned().partition(|part| PARTS.contains(&part.as_str()));
    let wanted = |part: &str| arguments.only.is_empty() || parts.iter().any(|wanted| wanted == part);
    let rows = (parts.is_empty() || !only.is_empty())
        .then(|| measure_rows(arguments, &only, &object, &programs))
        .transpose()?;
    let veth = wanted("veth").then(|| veth::run(&programs, progress)).transpose()?;
    let apply = wanted("apply").then(|| apply::run(progress)).transpose()?;
    let scale = wanted("scale").then(|| scale::run(arguments.quick, progress)).transpose()?;
    let checks = wanted("checks").then(|| checks::run(arguments.quick, progress)).transpose()?;
    let flood = wanted("flood").then(|| flood::run(arguments.quick, progress)).transpose()?;
    let busy = std::time::Duration::from_secs(if arguments.quick { 10 } else { arguments.busy });
    let vrrp = wanted("vrrp").then(|| vrrp::run(arguments.quick, busy, progress)).transpose()?;
    let document = Document { rows, veth, apply, scale, checks, flood, vrrp };
    progress("");
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&document)?);
        return judge(&document);
    }
    if let Some(report) = &document.rows {
        print!("{report}");
    }
    if let Some(rows) = &document.veth {
        println!();
        veth::print(rows);
    }
    if let Some(orders) = &document.apply {
        println!();
        apply::print(orders);
    }
    if let Some(scale) = &document.scale {
        println!();
        scale::print(scale);
    }
    if let Some(rows) = &document.checks {
        println!();
        checks::print(rows);
    }
    if let Some(rows) = &document.flood {
        println!();
        flood::print(rows);
    }
    if let Some(times) = &document.vrrp {
        println!();
        vrrp::print(times);
    }
    judge(&document)
}

/// Fails where something was not only slow, but wrong.
fn judge(document: &Document) -> Result<()> {
    document.checks.as_deref().map_or(Ok(()), checks::judge)?;
    document.flood.as_deref().map_or(Ok(()), flood::judge)
}

/// What a packet costs, row by row.
fn measure_rows(arguments: &Arguments, only: &[String], object: &[u8], programs: &[u8]) -> Result<Report> {
    let effort = if arguments.quick {
        Effort { rounds: arguments.rounds.unwrap_or(3), seconds: 0.03, most: 1_000_000 }
    } else {
        Effort { rounds: arguments.rounds.unwrap_or(11), seconds: 0.2, most: 5_000_000 }
    };

    let (rows, plans) = rows::all(only);
    ensure!(!plans.is_empty(), "no row's name contains any of {only:?}");
    let listed = plans.iter().map(scene::Plan::listed).sum();
    let lines = lb_agent::dataplane::Sizes { connections: CONNECTIONS, ..Default::default() }.buckets();
    let mut feeder = Feeder::load(programs, lines, listed)?;
    let mut scenes = Vec::new();
    for (number, plan) in plans.iter().enumerate() {
        progress(&format!("making flows: {} of {} data planes", number + 1, plans.len()));
        scenes.push(
            Scene::build(object, *plan, &mut feeder)
                .with_context(|| format!("make the flows of {plan:?}"))?,
        );
    }
    let mut cases = bases(&rows);
    let first_row = cases.len();
    cases.extend(rows);
    for row in &mut cases {
        if let Program::Scene(scene) = row.program
            && row.feed.kind & kind::LISTED != 0
        {
            row.feed.first = scenes[scene].list;
        }
    }

    let mut gigahertz = 0f64;
    let mut samples = vec![Samples::default(); cases.len()];
    for round in 0..effort.rounds {
        progress(&format!("measuring: round {} of {}", round + 1, effort.rounds));
        gigahertz = gigahertz.max(feeder.meter.gigahertz()?);
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            measure(case, samples, &effort, &feeder, &scenes)
                .with_context(|| format!("measure {:?}", case.name))?;
        }
    }
    progress("");

    let base_of = |row: &Row| cases[..first_row].iter().position(|base| base.same_feed(row));
    let mut measured = Vec::new();
    for (row, of_row) in cases.iter().zip(&samples).skip(first_row) {
        let base = base_of(row).context("every row has a base")?;
        measured.push(Measured::new(row, of_row, &samples[base]));
    }
    let (bases, of_bases) = (&cases[..first_row], &samples[..first_row]);
    Report::new(measured, bases, of_bases, &feeder, &scenes, effort.rounds, gigahertz)
}

/// A row that does nothing for each way of feeding: what is taken off the others.
fn bases(rows: &[Row]) -> Vec<Row> {
    let mut bases: Vec<Row> = Vec::new();
    for row in rows {
        if !bases.iter().any(|base| base.same_feed(row)) {
            bases.push(Row {
                name: "floor_tx".into(),
                program: Program::Floor("floor_tx"),
                path: Path::Tx,
                fresh: false,
                goals: Vec::new(),
                before: None,
                ..row.clone()
            });
        }
    }
    bases
}

/// Says on a terminal how far it is.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:<60}\r");
    }
}

/// Rounds before those that count: every flow once, so that caches, branch predictors and deadlines are as they
/// are in a stream.
const WARM_UP: u32 = 20_000;

fn measure(
    row: &mut Row,
    samples: &mut Samples,
    effort: &Effort,
    feeder: &Feeder,
    scenes: &[Scene],
) -> Result<()> {
    let scene = match row.program {
        Program::Scene(scene) => Some(&scenes[scene]),
        Program::Floor(_) => None,
    };
    let mut warm_up = WARM_UP.max(row.feed.mask as u32 + 1);
    let mut most = effort.most;
    if row.fresh {
        if let Some(scene) = scene {
            scene.wipe();
        }
        // All flows of the round differ, and fill a quarter of the table before and half of it after.
        let flows = row.feed.mask as u32 + 1;
        (warm_up, most) = (flows / 4, flows / 2);
        match scene {
            Some(scene) if row.feed.kind & kind::COOKIE != 0 => scene.bake(feeder)?,
            // Flow numbers that no round had before.
            _ => row.feed.first += MANY as u64,
        }
    }
    match row.program {
        Program::Floor(name) => feeder.test(feeder.program(name)?)?,
        Program::Scene(scene) => feeder.test(scenes[scene].plane.main_program()?)?,
    }
    if let Some(before) = &row.before {
        feeder.run(before, before.mask as u32 + 1)?;
    }
    let cost = feeder.run(&row.feed, warm_up)?;
    let seconds = cost.time.as_secs_f64() / warm_up as f64;
    let packets = ((effort.seconds / seconds) as u32).clamp(most.min(100_000), most);
    let before = scene.map(Scene::sums).transpose()?;
    let cost = feeder.go_on(packets)?;
    let after = scene.map(Scene::sums).transpose()?;
    match (scene, before, after) {
        (Some(scene), Some(before), Some(after)) => check(row.path, packets, &before, &after, scene.refused)?,
        _ => ensure!(cost.action == XDP_TX, "the program returned {}, not XDP_TX", cost.action),
    }
    samples.add(&cost, packets);
    Ok(())
}

const XDP_TX: u32 = 3;

/// That every packet took its path. Flows that found no room when they were made, or that two buckets full of
/// others refuse now, may be missing: one in 25 at most.
fn check(path: Path, packets: u32, before: &Sums, after: &Sums, refused: u64) -> Result<()> {
    let to_servers = after.packets_in - before.packets_in;
    let to_clients = after.packets_out - before.packets_out;
    let event = |reason| after.event(reason) - before.event(reason);
    let took = match path {
        Path::Tx => return Ok(()),
        Path::ToServer => to_servers,
        Path::ToClient => to_clients,
        Path::Reason(reason) => event(reason),
        Path::Event(reason) => to_servers.min(event(reason)),
    } as i64;
    let missing = packets as i64 - took;
    let allowed = if refused > 0 || matches!(path, Path::Event(_)) { packets as i64 / 25 } else { 0 };
    ensure!(
        (0..=allowed).contains(&missing),
        "{took} of {packets} packets took the path {path:?}; to servers {to_servers}, to clients {to_clients}, \
         reasons before {:?}, after {:?}",
        before.reasons,
        after.reasons
    );
    Ok(())
}
