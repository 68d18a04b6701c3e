//! The live table: one row per forwarding method, the last one redrawn as requests finish.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use lb_tests::http::{self, Outcome};

/// Rows so far; the last is being played.
pub struct Table {
    servers: Vec<String>,
    rows: Vec<Row>,
    live: bool,
}

struct Row {
    method: &'static str,
    shares: BTreeMap<String, usize>,
    times: Vec<Duration>,
    transferred: usize,
}

impl Row {
    fn requests(&self) -> usize {
        self.times.len()
    }

    /// The middle one of the requests' times.
    fn median(&self) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }
}

impl Table {
    /// A table with a column for each of these servers. It is redrawn only on a terminal.
    pub fn new(servers: Vec<&str>) -> Table {
        let servers = servers.into_iter().map(str::to_owned).collect();
        Table { servers, rows: Vec::new(), live: stdout().is_terminal() }
    }

    /// Begins the row of a method.
    pub fn begin(&mut self, method: &'static str) {
        self.rows.push(Row { method, shares: BTreeMap::new(), times: Vec::new(), transferred: 0 });
        anstream::println!("  {}", self.header());
        self.draw();
    }

    /// Adds finished requests to the current row.
    pub fn add(&mut self, outcomes: &[Outcome]) {
        let row = self.rows.last_mut().expect("a row was begun");
        for (server, count) in http::shares(outcomes) {
            *row.shares.entry(server).or_default() += count;
        }
        row.times.extend(outcomes.iter().map(|outcome| outcome.time));
        self.draw();
    }

    /// Adds a large transfer whose every byte was right.
    pub fn add_transfer(&mut self, bytes: usize) {
        self.rows.last_mut().expect("a row was begun").transferred += bytes;
        self.draw();
    }

    /// Ends the current row.
    pub fn end(&self) {
        let row = self.rows.last().expect("a row was begun");
        if self.live {
            anstream::println!();
        } else {
            anstream::println!("  {}", self.line(row));
        }
    }

    /// Servers that the current row does not know.
    pub fn servers_without_requests(&self) -> Vec<String> {
        let row = self.rows.last().expect("a row was begun");
        self.servers.iter().filter(|server| !row.shares.contains_key(*server)).cloned().collect()
    }

    /// All rows and what they come to.
    pub fn summary(&self, took: Duration) -> String {
        let requests: usize = self.rows.iter().map(Row::requests).sum();
        let bytes: usize = self.rows.iter().map(|row| row.transferred).sum();
        let rows: String = self.rows.iter().map(|row| format!("  {}\n", self.line(row))).collect();
        let good = AnsiColor::Green.on_default().bold();
        format!(
            "  {}\n{rows}\n{good}{requests} requests by {} methods over IPv4 and IPv6, every one answered; \
             {} MiB downloaded, every byte checked; {:.1} s in all{good:#}",
            self.header(),
            self.rows.len(),
            bytes >> 20,
            took.as_secs_f64()
        )
    }

    fn draw(&self) {
        let row = self.rows.last().expect("a row was begun");
        if self.live {
            anstream::print!("\r  {}", self.line(row));
            let _ = stdout().flush();
        }
    }

    fn header(&self) -> String {
        let servers: String = self.servers.iter().map(|name| format!("{name:>14}")).collect();
        let style = Style::new().dimmed();
        format!(
            "{style}{:<8}{:>9}{servers}{:>12}{:>10}{style:#}",
            "method", "requests", "median ms", "bulk MiB"
        )
    }

    fn line(&self, row: &Row) -> String {
        let servers: String = self
            .servers
            .iter()
            .map(|name| {
                let count = row.shares.get(name).copied().unwrap_or(0);
                let percent = 100.0 * count as f64 / row.requests().max(1) as f64;
                format!("{:>14}", format!("{count} ({percent:.0} %)"))
            })
            .collect();
        format!(
            "{:<8}{:>9}{servers}{:>12.2}{:>10}",
            row.method,
            row.requests(),
            row.median().as_secs_f64() * 1000.0,
            row.transferred >> 20
        )
    }
}
