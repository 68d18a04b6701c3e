//! VRRP on the command line: what instances look like, and orders to move them.

use std::fmt::Write;

use anyhow::Result;
use comfy_table::Cell;
use serde::Serialize;

use super::arguments::{Format, VrrpArgs, VrrpOrder};
use super::grid::{Grid, Look, Pairs, or_dash};
use super::terminal;
use crate::control::client::Client;
use crate::control::vrrp::{HandoverView, SchedulingView, VrrpOverview, VrrpView};

mod drill;

pub async fn vrrp(client: &Client, args: VrrpArgs) -> Result<()> {
    let format = args.what.output().output;
    match args.what {
        VrrpOrder::Handover { name, .. } => {
            let handed = client.hand_over(&name).await?;
            print(format, &handed, handover);
        }
        VrrpOrder::Drill { name, canary, flows, .. } => {
            let report = drill::run(client, &name, &canary, flows).await?;
            print(format, &report, |report| report.lines());
        }
    }
    Ok(())
}

fn print<T: Serialize>(format: Format, value: &T, lines: impl FnOnce(&T) -> String) {
    terminal::print(&match format {
        Format::Json => terminal::json(value),
        Format::Yaml => terminal::yaml(value),
        Format::Table | Format::Wide => lines(value),
    });
}

fn handover(handed: &HandoverView) -> String {
    let HandoverView { instance, to, took_ms } = handed;
    format!("{instance}: {to} is master, {took_ms} ms after our goodbye; served here until then\n")
}

/// Every instance in a line.
pub fn instances(overview: &VrrpOverview, look: Look) -> String {
    let mut grid = Grid::new(look);
    grid.columns(["NAME", "ROLE"]);
    grid.numbers(["PRIO", "VRID"]);
    grid.columns(["IFACE", "MASTER", "ADDRESSES"]);
    if look.wide {
        grid.columns(["SINCE", "LEASE", "REASON"]);
    }
    for view in &overview.instances {
        let master = view.master.map(|master| master.to_string()).unwrap_or_default();
        let addresses = match view.addresses.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            _ if look.wide => view.addresses.join(","),
            [first, rest @ ..] => format!("{first} +{}", rest.len()),
        };
        let mut cells = vec![
            Cell::new(&view.name),
            Cell::new(&view.role),
            Cell::new(view.priority),
            Cell::new(view.vrid),
            Cell::new(&view.interface),
            Cell::new(or_dash(&master)),
            Cell::new(addresses),
        ];
        if look.wide {
            cells.extend([Cell::new(&view.since), Cell::new(&view.lease), Cell::new(&view.reason)]);
        }
        grid.row(cells);
    }
    let mut text = grid.finish();
    for view in &overview.instances {
        for problem in view.complaints() {
            let _ = writeln!(text, "\n{}: {problem}", view.name);
        }
    }
    text
}

/// One instance at length.
pub fn instance(view: &VrrpView, scheduling: &SchedulingView) -> String {
    let mut lines = Pairs::default();
    lines.add("name", &view.name);
    lines.add("role", &format!("{} ({})", view.role, view.reason));
    lines.add("since", &format!("{} ({} s)", view.since, view.for_seconds));
    let weights: String = view.weights.iter().map(|(what, delta)| format!(", {delta:+} {what}")).collect();
    lines.add("priority", &format!("{} (base {}{weights})", view.priority, view.base_priority));
    let master = view.master.map(|master| match view.master_priority {
        Some(priority) => format!("{master}, priority {priority}"),
        None => master.to_string(),
    });
    lines.add("master", &master.unwrap_or_default());
    if view.yielded {
        lines.add("", "handed over: not taken back while somebody has it");
    }
    if !view.ready {
        lines.add("", "not ready to serve: takes over only if nobody else does");
    }
    let VrrpView { version, vrid, interface, .. } = view;
    let source = view.source.map_or("no address".to_owned(), |source| format!("from {source}"));
    lines.add("router", &format!("version {version}, VRID {vrid} on {interface}, {source}"));
    lines.add("addresses", &view.addresses.join(", "));
    let interval = match view.interval_ms == view.configured_interval_ms {
        true => format!("{} ms", view.interval_ms),
        false => format!("{} ms (configured {} ms)", view.interval_ms, view.configured_interval_ms),
    };
    let timer = view.timer.as_ref().map(|timer| format!(", {} in {} ms", timer.what, timer.in_ms));
    lines.add("interval", &(interval + &timer.unwrap_or_default()));
    lines.add("lease", &view.lease);
    let microseconds = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
    let class = if scheduling.real_time {
        "real-time".to_owned()
    } else {
        format!("NOT real-time: {}", scheduling.reason)
    };
    lines.add("scheduling", &class);
    let lag = format!(
        "last {}, recently {}, most {}",
        microseconds(scheduling.last_lag_us),
        microseconds(scheduling.recent_lag_us),
        microseconds(scheduling.most_lag_us)
    );
    lines.add("timer lag", &lag);
    for peer in &view.peers {
        let priority = peer.priority.map_or(String::new(), |priority| format!(", priority {priority}"));
        lines.add("peer", &format!("{}{priority}, heard {} ms ago", peer.address, peer.heard_ms));
    }
    for problem in view.complaints().into_iter().chain(scheduling.complaint(view)) {
        lines.add_sentence("!", &problem);
    }
    let mut text = lines.finish();
    if !view.counters.is_empty() {
        text.push('\n');
        for (kind, count) in &view.counters {
            let _ = writeln!(text, "{kind:<24}{count:>10}");
        }
    }
    text
}
