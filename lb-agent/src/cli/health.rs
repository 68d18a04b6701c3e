//! Health checks on the command line: orders about real servers, and what `get` and `describe` print of checks.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use comfy_table::{Cell, Color};
use jiff::Timestamp;

use super::arguments::{Format, ServerArgs, ServerName, WeighArgs};
use super::grid::{Grid, Look, Pairs};
use super::table;
use super::terminal;
use super::units::duration;
use crate::control::client::Client;
use crate::control::health::{CheckState, HealthView, Operation, ServerOrder};
use crate::control::views::{RealServerView, ServiceView};

/// `disable` and `enable`.
pub async fn enable(client: &Client, args: ServerArgs, enable: bool) -> Result<()> {
    let operation = if enable { Operation::Enable } else { Operation::Disable };
    operate(client, &args, operation).await
}

/// `weigh`.
pub async fn weigh(client: &Client, args: WeighArgs) -> Result<()> {
    let operation = args.weight.map_or(Operation::ResetWeight, Operation::Weight);
    operate(client, &args.server, operation).await
}

async fn operate(client: &Client, args: &ServerArgs, operation: Operation) -> Result<()> {
    let ServerName { address, port } = args.real_server;
    let order = ServerOrder { service: args.service.to_string(), address, port, order: operation };
    let done = client.operate(&order).await?;
    terminal::print(&match args.output.output {
        Format::Json => terminal::json(&done),
        Format::Yaml => terminal::yaml(&done),
        Format::Table | Format::Wide => done + "\n",
    });
    Ok(())
}

/// `get health`.
pub fn checks(checks: &[HealthView], look: Look, now: Timestamp) -> String {
    if checks.is_empty() {
        return "no health checks\n".into();
    }
    let mut grid = Grid::new(look);
    grid.columns(["SERVICE", "SERVER", "CHECK", "STATE"]);
    grid.numbers(["SINCE", "ROW", "LATENCY", "NEXT"]);
    if look.wide {
        grid.columns(["TARGET", "WEIGHT", "SHARED", "LAST"]);
    }
    for check in checks {
        let mut row = vec![
            Cell::new(&check.service),
            Cell::new(server(check)),
            Cell::new(&check.check),
            Cell::new(check.state.word()).fg(colour(check.state)),
            Cell::new(ago(check.since, now)),
            Cell::new(in_a_row(check)),
            Cell::new(check.latency.map_or("-".into(), milliseconds)),
            Cell::new(check.next_in.map_or("-".into(), |next| milliseconds(next as f64))),
        ];
        if look.wide {
            row.extend([
                Cell::new(&check.target),
                Cell::new(check.weight.as_deref().unwrap_or("-")),
                Cell::new(check.shared_by),
                Cell::new(&check.last),
            ]);
        }
        grid.row(row);
    }
    let failing = checks.iter().filter(|check| check.state != CheckState::Up || check.failed > 0);
    let notes = failing.map(|check| (format!("{} {}", check.service, server(check)), check.last.as_str()));
    grid.finish() + &table::reasons(notes)
}

/// The checks of one real server at length.
pub fn described(checks: &[HealthView], now: Timestamp) -> String {
    let mut text = String::new();
    for check in checks {
        let mut lines = Pairs::default();
        lines.add("check", &check.check);
        lines.add("target", &check.target);
        lines.add("state", &format!("{} for {}", check.state.word(), ago(check.since, now)));
        let when = check.last_at.map_or(String::new(), |at| format!(", {} ago", ago(at, now)));
        lines.add("last outcome", &format!("{}{when}", check.last));
        let row = format!(
            "{} passed (rise {}), {} failed (fall {})",
            check.passed, check.rise, check.failed, check.fall
        );
        lines.add("in a row", if check.fall == 0 { "" } else { &row });
        lines.add("latency", &check.latency.map_or(String::new(), milliseconds));
        lines.add(
            "next probe",
            &check.next_in.map_or(String::new(), |next| format!("in {}", milliseconds(next as f64))),
        );
        if let Some(weight) = &check.weight {
            lines.add("weight", weight);
        }
        if check.shared_by > 1 {
            lines.add("shared by", &format!("{} services", check.shared_by));
        }
        for (index, change) in check.history.iter().rev().enumerate() {
            let name = if index == 0 { "transitions" } else { "" };
            lines.add(
                name,
                &format!("{} {:5} {}", change.at.strftime("%F %TZ"), change.state.word(), change.cause),
            );
        }
        let _ = write!(text, "\n{}", lines.finish());
    }
    if text.is_empty() { "\nno health checks\n".into() } else { text }
}

/// A real server at length.
pub fn real_server(server: &RealServerView, checks: &[HealthView], now: Timestamp) -> String {
    let mut lines = Pairs::default();
    lines.add("service", &server.service);
    lines.add("real server", &table::server_address(server));
    let since = server.since.map_or(String::new(), |since| format!(" for {}", ago(since, now)));
    lines.add("state", &format!("{}{since}", table::server_state(server.state)));
    if !server.reason.is_empty() {
        lines.add("reason", &server.reason);
    }
    lines.add("weight", &format!("{} (effective {})", server.weight, server.effective_weight));
    lines.add("method", &server.forwarding);
    lines.add("next hop", &server.next_hop);
    lines.add("connections", &format!("{} active, {} inactive", server.active, server.inactive));
    let traffic = &server.traffic;
    lines.add("in", &format!("{} packets, {} bytes", traffic.packets_in, traffic.bytes_in));
    lines.add("out", &format!("{} packets, {} bytes", traffic.packets_out, traffic.bytes_out));
    lines.finish() + &described(checks, now)
}

/// The configured weight, and the effective one where it is another.
pub fn weight(server: &RealServerView) -> String {
    let configured = f64::from(server.weight);
    let takes_new = server.effective_weight > 0.0;
    if !takes_new || server.sorry || (server.effective_weight - configured).abs() < 0.0005 {
        return server.weight.to_string();
    }
    format!("{}/{}", (server.effective_weight * 10.0).round() / 10.0, server.weight)
}

/// `holds: a weight of 3 is alive, 2 is needed`.
pub fn quorum(service: &ServiceView) -> String {
    let state = if service.sorry { "lost, the sorry server stands in" } else { "holds" };
    let state = if service.live < service.quorum && !service.sorry { "lost" } else { state };
    format!("{state}: a weight of {} is alive, {} is needed", service.live, service.quorum)
}

fn server(check: &HealthView) -> String {
    match check.port {
        Some(port) => SocketAddr::new(check.address, port).to_string(),
        None => check.address.to_string(),
    }
}

/// `3/2`: passed in a row, and how many it takes; `-2/3`: failed.
fn in_a_row(check: &HealthView) -> String {
    match check.failed {
        _ if check.fall == 0 => "-".into(),
        0 => format!("{}/{}", check.passed.min(999), check.rise),
        failed => format!("-{}/{}", failed.min(999), check.fall),
    }
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    duration(u64::try_from(now.as_second() - then.as_second()).unwrap_or(0))
}

fn milliseconds(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.1}ms"),
        value if value < 10_000.0 => format!("{value:.0}ms"),
        value => duration((value / 1000.0) as u64),
    }
}

fn colour(state: CheckState) -> Color {
    match state {
        CheckState::Up => Color::Green,
        CheckState::Down => Color::Red,
        CheckState::Held | CheckState::Unknown | CheckState::Probation => Color::Yellow,
    }
}

/// Reads `10.0.0.11`, `10.0.0.11:80` or `[2001:db8::1]:80`.
pub fn parse_server(text: &str) -> Result<ServerName, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(ServerName { address, port: None });
    }
    let both = text.parse::<SocketAddr>().map_err(|_| "a real server is an address, or address:port")?;
    Ok(ServerName { address: both.ip(), port: Some(both.port()) })
}

#[cfg(test)]
mod tests;
