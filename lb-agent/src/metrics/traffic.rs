//! What the data plane counted: frames by reason, real servers, the connection table.

use std::fmt;

use lb_common::destination::Traffic;
use lb_common::verdict::Class;
use prometheus_client::registry::Unit;

use super::families::{Families, Labels};
use super::{Facts, ServerFacts, TableFacts};

pub fn write(to: &mut Families<'_>, facts: &Facts) -> Result<(), fmt::Error> {
    if let Some(frames) = &facts.frames {
        let reasons = || {
            frames.reasons.iter().map(|(reason, count)| {
                let labels = [("reason", reason.name()), ("class", class_name(reason.class()))];
                (labels, count)
            })
        };
        to.counters(
            "frames",
            "Frames by the reason with which they ended, or (class event) by what happened on the way.",
            None,
            reasons().map(|(labels, count)| (labels, count.packets)),
        )?;
        to.counters(
            "frames",
            "Bytes of these frames.",
            Some(&Unit::Bytes),
            reasons().map(|(labels, count)| (labels, count.bytes)),
        )?;
        let [packets, bytes] = directions(&frames.retired);
        let labelled =
            |values: [(&'static str, u64); 2]| values.map(|(way, value)| ([("direction", way)], value));
        to.counters("retired_packets", "Packets of real servers that are no more.", None, labelled(packets))?;
        to.counters(
            "retired",
            "Bytes of real servers that are no more.",
            Some(&Unit::Bytes),
            labelled(bytes),
        )?;
    }
    let counted = || facts.servers.iter().filter_map(|server| Some((server, server.traffic.as_ref()?)));
    to.counters(
        "real_server_packets",
        "Packets forwarded: in to the real server, out its replies that passed here (nat and fullnat).",
        None,
        counted().flat_map(|(server, traffic)| labelled(server, directions(traffic)[0])),
    )?;
    to.counters(
        "real_server",
        "Bytes of these packets, as frames that were received.",
        Some(&Unit::Bytes),
        counted().flat_map(|(server, traffic)| labelled(server, directions(traffic)[1])),
    )?;
    facts.table.as_ref().map_or(Ok(()), |table| write_table(to, table))
}

fn write_table(to: &mut Families<'_>, table: &TableFacts) -> Result<(), fmt::Error> {
    to.gauge(
        "connection_table_entries",
        "Entries in use, replies and persistence included, at the last sweep.",
        table.entries,
    )?;
    to.gauge("connection_table_capacity", "Entries there is room for.", table.capacity)?;
    to.gauge("persistent_clients", "Clients that keep their real servers.", table.templates)?;
    let leases: Vec<(String, u64)> =
        table.leases.iter().map(|(address, ports)| (address.to_string(), *ports)).collect();
    to.gauges(
        "local_ports_leased",
        "Ports of a local address that fullnat connections have.",
        leases.iter().map(|(address, ports)| ([("address", address.as_str())], *ports)),
    )?;
    to.counter("sweeps", "Walks of the sweeper through the connection table.", table.sweeps)?;
    to.seconds("sweep_duration", "How long the last sweep took.", table.took)?;
    to.seconds("sweep_age", "Since when the last sweep is over.", table.age)?;
    to.gauge("sweep_expired", "Entries that the last sweep freed.", table.expired)
}

/// Packets and bytes, in and out.
fn directions(traffic: &Traffic) -> [[(&'static str, u64); 2]; 2] {
    [
        [("in", traffic.packets_in), ("out", traffic.packets_out)],
        [("in", traffic.bytes_in), ("out", traffic.bytes_out)],
    ]
}

fn labelled<'a>(server: &'a ServerFacts, values: [(&'static str, u64); 2]) -> [(Labels<'a, 3>, u64); 2] {
    let ServerFacts { service, server, .. } = server;
    values.map(|(way, value)| {
        ([("service", service.as_str()), ("real_server", server), ("direction", way)], value)
    })
}

/// As `get counters` calls it.
pub fn class_name(class: Class) -> &'static str {
    match class {
        Class::Pass => "pass",
        Class::Drop => "drop",
        Class::Answer => "answer",
        Class::Divert => "divert",
        Class::Withheld => "withheld",
        Class::Event => "event",
    }
}
