//! Answers as text for people. Pure: views in, lines out. The columns follow ipvsadm's; the default ones fit
//! 80 columns for IPv4, `wide` has all of them and exact numbers.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use comfy_table::{Cell, Color};

pub use super::grid::Look;
use super::grid::{Grid, Pairs, or_dash, paint};
use super::health;
use super::units::{clock, duration, short};
use crate::control::views::{
    ConnectionsView, CountersView, DrainView, EndpointView, LimitsView, ObjectView, Origin, PersistenceView,
    RealServerState, RealServerView, ServiceState, ServiceView, StatusView, VrrpStatus,
};

pub fn services(services: &[ServiceView], look: Look) -> String {
    if services.is_empty() {
        return "no virtual services\n".into();
    }
    let mut grid = Grid::new(look);
    grid.columns(["NAME", "ADDRESS", "SCHED", "METHOD"]);
    grid.numbers(["SERVERS", "ACTIVE", "INACT", "PKTS-IN"]);
    if look.wide {
        grid.numbers(["BYTES-IN", "PKTS-OUT", "BYTES-OUT", "SLOTS"]);
        grid.columns(["STATE", "INTERFACE", "ORIGIN"]);
    }
    for service in services {
        let ServiceView { traffic, .. } = service;
        let up = format!("{}/{}", service.servers_in, service.servers);
        let colour = service_colour(service.state);
        let mut row = vec![
            Cell::new(&service.name),
            Cell::new(endpoint(service)),
            Cell::new(&service.scheduler),
            Cell::new(&service.forwarding),
            Cell::new(up).fg(colour),
            grid.count(service.active),
            grid.count(service.inactive),
            grid.count(traffic.packets_in),
        ];
        if look.wide {
            let slots = if service.exact { "" } else { "~" };
            row.extend([
                grid.count(traffic.bytes_in),
                grid.count(traffic.packets_out),
                grid.count(traffic.bytes_out),
                Cell::new(format!("{slots}{}", service.slots)),
                Cell::new(service_state(service.state)).fg(colour),
                Cell::new(service.address_interface.as_deref().unwrap_or("-")),
                Cell::new(origin(&service.origin)),
            ]);
        }
        let columns = row.len();
        grid.row(row);
        // They share everything that the first line says.
        for other in &service.endpoints {
            let mut row = vec![Cell::new(""); columns];
            row[1] = Cell::new(further(other));
            grid.row(row);
        }
    }
    let notes = services.iter().map(|service| (service.name.clone(), service.reason.as_str()));
    grid.finish() + &reasons(notes)
}

pub fn real_servers(servers: &[RealServerView], look: Look) -> String {
    if servers.is_empty() {
        return "no real servers\n".into();
    }
    let mut grid = Grid::new(look);
    grid.columns(["SERVICE", "ADDRESS"]);
    grid.numbers(["WEIGHT"]);
    grid.columns(["METHOD", "STATE"]);
    grid.numbers(["ACTIVE", "INACT", "PKTS-IN"]);
    if look.wide {
        grid.numbers(["BYTES-IN", "PKTS-OUT", "BYTES-OUT", "PERSIST", "MAX", "RESUME"]);
        grid.columns(["DRAIN"]);
        grid.numbers(["MTU"]);
        grid.columns(["NEXT-HOP"]);
    }
    for server in servers {
        let RealServerView { traffic, .. } = server;
        let mut row = vec![
            Cell::new(&server.service),
            Cell::new(server_address(server)),
            Cell::new(health::weight(server)),
            Cell::new(&server.forwarding),
            Cell::new(server_state(server.state)).fg(server_colour(server.state)),
            grid.count(server.active),
            grid.count(server.inactive),
            grid.count(traffic.packets_in),
        ];
        if look.wide {
            row.extend([
                grid.count(traffic.bytes_in),
                grid.count(traffic.packets_out),
                grid.count(traffic.bytes_out),
                grid.count(server.limits.persistent),
                limit(&server.limits),
                Cell::new(unless_zero(server.limits.connections_resume)),
                Cell::new(server.drain.as_ref().map_or("-".into(), drain)),
                Cell::new(unless_zero(server.mtu)),
                Cell::new(or_dash(&server.next_hop)),
            ]);
        }
        grid.row(row);
    }
    let notes = servers
        .iter()
        .map(|server| (format!("{} {}", server.service, server_address(server)), server.reason.as_str()));
    grid.finish() + &reasons(notes)
}

pub fn connections(view: &ConnectionsView, look: Look) -> String {
    if view.connections.is_empty() {
        return "no connections\n".into();
    }
    let mut grid = Grid::new(look);
    grid.columns(["PROTO"]);
    grid.numbers(["EXPIRE"]);
    grid.columns(["STATE", "CLIENT", "VIRTUAL", "SERVER"]);
    if look.wide {
        grid.columns(["LOCAL", "METHOD", "SERVICE"]);
    }
    for flow in &view.connections {
        let mut row = vec![
            Cell::new(&flow.protocol),
            Cell::new(clock(flow.expires_in)),
            Cell::new(&flow.state),
            Cell::new(flow.client),
            Cell::new(flow.virtual_address),
            Cell::new(flow.real_server),
        ];
        if look.wide {
            row.extend([
                Cell::new(flow.local.map_or("-".into(), |local: SocketAddr| local.to_string())),
                Cell::new(&flow.forwarding),
                Cell::new(or_dash(&flow.service)),
            ]);
        }
        grid.row(row);
    }
    let mut text = grid.finish();
    if view.truncated {
        let _ = writeln!(text, "\nonly the first {}; --limit shows more", view.connections.len());
    }
    text
}

pub fn persistence(views: &[PersistenceView], look: Look) -> String {
    if views.is_empty() {
        return "no persistent clients\n".into();
    }
    let mut grid = Grid::new(look);
    grid.columns(["SERVICE", "CLIENT", "SERVER"]);
    grid.numbers(["EXPIRE"]);
    for view in views {
        let client = if view.client.is_empty() { "(a SIP call)" } else { &view.client };
        grid.row(vec![
            Cell::new(or_dash(&view.service)),
            Cell::new(client),
            Cell::new(view.real_server),
            Cell::new(clock(view.expires_in)),
        ]);
    }
    grid.finish()
}

pub fn counters(view: &CountersView, look: Look) -> String {
    let mut grid = Grid::new(look);
    grid.columns(["WHAT", "CLASS"]);
    grid.numbers(["PACKETS", "BYTES"]);
    if look.wide {
        grid.columns(["MEANING"]);
    }
    let forwarded = [
        ("to_real_servers", view.forwarded.packets_in, view.forwarded.bytes_in, "from clients"),
        ("to_clients", view.forwarded.packets_out, view.forwarded.bytes_out, "replies under nat and fullnat"),
        (
            "retired",
            view.retired.packets_in + view.retired.packets_out,
            view.retired.bytes_in + view.retired.bytes_out,
            "to and from real servers that are no more",
        ),
    ];
    let forwarded = forwarded.map(|(name, packets, bytes, text)| (name, "forward", packets, bytes, text));
    let others = view.reasons.iter().map(|reason| {
        (reason.name.as_str(), reason.class.as_str(), reason.packets, reason.bytes, reason.text.as_str())
    });
    let mut hidden = 0;
    for (index, (name, class, packets, bytes, text)) in forwarded.into_iter().chain(others).enumerate() {
        // What forwards is always shown, and what never happened only where everything is.
        if packets == 0 && !look.wide && index >= 2 {
            hidden += 1;
            continue;
        }
        let class = match class {
            "drop" if packets > 0 => Cell::new(class).fg(Color::Red),
            class => Cell::new(class),
        };
        let mut row = vec![Cell::new(name), class, grid.count(packets), grid.count(bytes)];
        if look.wide {
            row.push(Cell::new(text));
        }
        grid.row(row);
    }
    let mut text = grid.finish();
    if hidden > 0 {
        let _ = writeln!(text, "\n{hidden} more never happened; -o wide shows and explains all");
    }
    text
}

pub fn objects(objects: &[ObjectView], look: Look) -> String {
    if objects.is_empty() {
        return "no objects\n".into();
    }
    let mut grid = Grid::new(look);
    grid.columns(["KIND", "NAME", "ORIGIN"]);
    for object in objects {
        let text = |pointer: &str| {
            object.manifest.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or("-").to_owned()
        };
        grid.row(vec![
            Cell::new(text("/kind")),
            Cell::new(text("/metadata/name")),
            Cell::new(origin(&object.origin)),
        ]);
    }
    grid.finish()
}

pub fn status(view: &StatusView, look: Look) -> String {
    let count = |number| if look.wide { format!("{number}") } else { short(number) };
    let mut lines = Pairs::default();
    lines.add("director", &view.director);
    let agent = format!("lb-agent {}, pid {}, up {}", view.version, view.pid, duration(view.uptime));
    lines.add("agent", &agent);
    lines.add("kernel", &view.kernel);
    for (index, interface) in view.interfaces.iter().enumerate() {
        let name = if index == 0 { "interfaces" } else { "" };
        let reason =
            if interface.reason.is_empty() { String::new() } else { format!(": {}", interface.reason) };
        let mut text = format!("{} (xdp {}){reason}", interface.name, interface.mode);
        if interface.reason.is_empty() {
            let (received, sent) = (interface.received, interface.sent);
            text += &format!(": {} frames in, {} out", count(received.packets), count(sent.packets));
            let lost = received.dropped + sent.dropped + received.errors + sent.errors;
            if lost != 0 {
                text += &format!(", {} lost", count(lost));
            }
        }
        lines.add(name, &text);
    }
    for (index, instance) in view.vrrp.iter().enumerate() {
        let VrrpStatus { name, role, reason, for_seconds } = instance;
        let name_of_line = if index == 0 { "vrrp" } else { "" };
        lines.add(name_of_line, &format!("{name} is {role} for {} ({reason})", duration(*for_seconds)));
    }
    lines.add("services", &count(view.services.into()));
    lines.add("real servers", &format!("{} of {} in", view.real_servers_in, view.real_servers));
    lines.add(
        "connections",
        &format!(
            "{} active, {} inactive, room for {}",
            count(view.active),
            count(view.inactive),
            count(view.connections_max.into())
        ),
    );
    if view.checks.count > 0 {
        let pace = match view.checks.stretch {
            stretch if stretch > 1.05 => format!("intervals up to {stretch:.1} times as long"),
            _ => "all in time".to_owned(),
        };
        lines.add("checks", &format!("{}, {pace}", count(view.checks.count.into())));
    }
    for (index, field) in view.restart_needed.iter().enumerate() {
        lines.add(if index == 0 { "next start" } else { "" }, field);
    }
    let mut text = lines.finish();
    for problem in &view.problems {
        let _ = writeln!(text, "{}", paint(&format!("! {problem}"), Color::Yellow, look.colour));
    }
    text
}

/// A virtual service at length.
pub fn service(service: &ServiceView, servers: &[RealServerView], look: Look) -> String {
    let mut lines = Pairs::default();
    lines.add("name", &service.name);
    lines.add("address", &endpoint(service));
    service.endpoints.iter().for_each(|other| lines.add("", &further(other)));
    let state = match service.reason.as_str() {
        "" => service_state(service.state).to_owned(),
        reason => format!("{} ({reason})", service_state(service.state)),
    };
    lines.add("state", &state);
    let table = match (service.slots, service.exact) {
        (0, _) => "no slots".to_owned(),
        (slots, true) => format!("{slots} slots"),
        (slots, false) => format!("{slots} slots, weights scaled to fit"),
    };
    lines.add("scheduler", &format!("{} ({table})", service.scheduler));
    lines.add("method", &service.forwarding);
    lines.add("put on", service.address_interface.as_deref().unwrap_or("no interface by the agent"));
    lines.add("origin", &origin(&service.origin));
    lines.add("quorum", &health::quorum(service));
    lines.add("connections", &format!("{} active, {} inactive", service.active, service.inactive));
    let traffic = &service.traffic;
    lines.add("in", &format!("{} packets, {} bytes", traffic.packets_in, traffic.bytes_in));
    lines.add("out", &format!("{} packets, {} bytes", traffic.packets_out, traffic.bytes_out));
    lines.finish() + "\n" + &real_servers(servers, look)
}

fn endpoint(service: &ServiceView) -> String {
    place(service.address, &service.ports, &service.protocol)
}

fn further(endpoint: &EndpointView) -> String {
    place(endpoint.address, &endpoint.ports, &endpoint.protocol)
}

/// `203.0.113.10:80,443/tcp`.
fn place(address: IpAddr, ports: &str, protocol: &str) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{ports}/{protocol}"),
        IpAddr::V6(address) => format!("[{address}]:{ports}/{protocol}"),
    }
}

pub fn server_address(server: &RealServerView) -> String {
    match server.port {
        Some(port) => SocketAddr::new(server.address, port).to_string(),
        None => server.address.to_string(),
    }
}

fn service_state(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Up => "up",
        ServiceState::Partial => "partial",
        ServiceState::Down => "down",
    }
}

fn service_colour(state: ServiceState) -> Color {
    match state {
        ServiceState::Up => Color::Green,
        ServiceState::Partial => Color::Yellow,
        ServiceState::Down => Color::Red,
    }
}

pub fn server_state(state: RealServerState) -> &'static str {
    state.word()
}

fn server_colour(state: RealServerState) -> Color {
    match state {
        RealServerState::In => Color::Green,
        RealServerState::Out | RealServerState::Down => Color::Red,
        RealServerState::Resolving
        | RealServerState::Draining
        | RealServerState::Removed
        | RealServerState::Checking
        | RealServerState::Probation
        | RealServerState::Disabled
        | RealServerState::Standby => Color::Yellow,
    }
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Api => "api".into(),
        Origin::File(file) => file.clone(),
    }
}

/// A limit that was reached is red.
fn limit(limits: &LimitsView) -> Cell {
    let cell = Cell::new(unless_zero(limits.connections_max));
    if limits.overloaded { cell.fg(Color::Red) } else { cell }
}

/// `3 left, oldest 2h, gone in 5m, reset in 9m 12s`.
fn drain(drain: &DrainView) -> String {
    let mut text = format!("{} left", drain.remaining);
    if let Some(oldest) = drain.oldest {
        let more = if drain.oldest_at_least { "≥" } else { "" };
        let _ = write!(text, ", oldest {more}{}", duration(oldest));
    }
    if let Some(eta) = drain.eta.filter(|eta| *eta > 0 && Some(*eta) != drain.deadline_in) {
        let _ = write!(text, ", gone in {}", duration(eta));
    }
    match drain.deadline_in {
        None => text,
        Some(0) => format!("{text}, {}", drain.on_deadline),
        Some(seconds) => format!("{text}, {} in {}", drain.on_deadline, duration(seconds)),
    }
}

fn unless_zero(number: u32) -> String {
    if number == 0 { "-".into() } else { number.to_string() }
}

/// What is behind a table: why something is not as it should be, one line each.
pub fn reasons<'a>(notes: impl Iterator<Item = (String, &'a str)>) -> String {
    let mut text = String::new();
    for (who, reason) in notes.filter(|(_, reason)| !reason.is_empty()) {
        let _ = writeln!(
            text,
            "{}{}",
            if text.is_empty() { "\n" } else { "" },
            wrapped(&format!("{who}: {reason}"))
        );
    }
    text
}

/// A sentence in lines of 80 columns at most, all but the first indented; a word that is longer stays whole.
fn wrapped(sentence: &str) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for word in sentence.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > 80 {
            text += "\n  ";
            column = 2;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += length;
    }
    text
}
