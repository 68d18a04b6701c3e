//! `track` of a VrrpInstance or VrrpSyncGroup, and the commands that they run.

use std::path::PathBuf;
use std::time::Duration;

use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text};
use crate::model::{
    Track, TrackEffect, TrackFile, TrackFileEffect, TrackInterface, TrackProcess, TrackScript, TrackService,
};

pub fn decode(field: &Field<'_>, faults: &mut Faults) -> Option<Track> {
    let mut map = field.map("a map like {interfaces: [eth1], services: [{service: web}]}", faults)?;
    let mut track = Track::default();
    for item in list(&mut map, "interfaces", "a list of interfaces", faults) {
        let interface = match item.raw {
            Raw::Text(_) => item
                .interface_name(faults)
                .map(|name| TrackInterface { name, effect: TrackEffect::default() }),
            _ => interface(&item, faults),
        };
        let Some(interface) = interface else { continue };
        let twice = track.interfaces.iter().any(|other| other.name == interface.name);
        once(twice, &item, &interface.name, faults);
        track.interfaces.push(interface);
    }
    for item in list(&mut map, "scripts", "a list of scripts", faults) {
        let Some(script) = script(&item, faults) else { continue };
        once(track.scripts.iter().any(|other| other.name == script.name), &item, &script.name, faults);
        track.scripts.push(script);
    }
    for item in list(&mut map, "processes", "a list of processes", faults) {
        let Some(process) = process(&item, faults) else { continue };
        once(track.processes.iter().any(|other| other.name == process.name), &item, &process.name, faults);
        track.processes.push(process);
    }
    for item in list(&mut map, "files", "a list of files", faults) {
        let Some(file) = file(&item, faults) else { continue };
        let twice = track.files.iter().any(|other| other.path == file.path);
        once(twice, &item, &file.path.display().to_string(), faults);
        track.files.push(file);
    }
    for item in list(&mut map, "services", "a list of virtual services", faults) {
        let Some(service) = service(&item, faults) else { continue };
        let twice = track.services.iter().any(|other| other.service == service.service);
        once(twice, &item, &service.service, faults);
        track.services.push(service);
    }
    track.data_plane = map.get("dataPlane").and_then(|field| data_plane(&field, faults));
    map.finish(faults);
    Some(track)
}

fn list<'a>(map: &mut Map<'a>, key: &'static str, what: &str, faults: &mut Faults) -> Vec<Field<'a>> {
    map.get(key).and_then(|field| field.list(what, TRACKED_MAX, faults)).unwrap_or_default()
}

fn once(twice: bool, item: &Field<'_>, name: &str, faults: &mut Faults) {
    if twice {
        faults.add(item.path.as_str(), format!("`{name}` is tracked twice"));
    }
}

/// A weight, or without one a fault.
fn effect(map: &mut Map<'_>, faults: &mut Faults) -> TrackEffect {
    match weight(map, faults) {
        Some(weight) => TrackEffect::Weight(weight),
        None => TrackEffect::Fault,
    }
}

fn weight(map: &mut Map<'_>, faults: &mut Faults) -> Option<i16> {
    let field = map.get("weight")?;
    let weight = field.integer(-WEIGHT_MAX..=WEIGHT_MAX, faults)?;
    if weight == 0 {
        faults.add(field.path, "0 would change nothing").help("leave it out for a fault");
        return None;
    }
    Some(weight)
}

fn interface(item: &Field<'_>, faults: &mut Faults) -> Option<TrackInterface> {
    let mut map = item.map("an interface, or a map like {name: eth1, weight: -50}", faults)?;
    let name = map.require("name", faults).and_then(|field| field.interface_name(faults));
    let effect = effect(&mut map, faults);
    map.finish(faults);
    Some(TrackInterface { name: name?, effect })
}

fn script(item: &Field<'_>, faults: &mut Faults) -> Option<TrackScript> {
    let mut map = item.map("a script like {name: nginx, command: [/usr/local/bin/check]}", faults)?;
    let name = map.require("name", faults).and_then(|field| field.name(faults));
    let command = map.require("command", faults).and_then(|field| command(&field, faults));
    let interval = map.get("interval").and_then(|field| field.duration(SCRIPT_INTERVAL, faults));
    let interval = interval.unwrap_or(Duration::from_secs(1));
    let timeout = map.get("timeout").and_then(|field| field.duration(SCRIPT_INTERVAL, faults));
    let rise = map.get("rise").and_then(|field| field.integer(1..=COUNT_MAX, faults));
    let fall = map.get("fall").and_then(|field| field.integer(1..=COUNT_MAX, faults));
    let user = map.get("user").and_then(|field| field.text("the name of a user", faults).map(str::to_owned));
    let effect = effect(&mut map, faults);
    map.finish(faults);
    Some(TrackScript {
        name: name?,
        command: command?,
        interval,
        timeout: timeout.unwrap_or(interval),
        rise: rise.unwrap_or(1),
        fall: fall.unwrap_or(1),
        user,
        effect,
    })
}

fn process(item: &Field<'_>, faults: &mut Faults) -> Option<TrackProcess> {
    let mut map = item.map("a process like {name: nginx}", faults)?;
    let name = map.require("name", faults).and_then(|field| {
        let text = field.text("the name of a process", faults)?;
        if text.is_empty() || text.len() > COMM_MAX {
            let message = format!("`{}` has not 1 to {COMM_MAX} bytes", text.escape_debug());
            faults.add(field.path, message).help("it is what /proc/PID/comm says");
            return None;
        }
        Some(text.to_owned())
    });
    let quorum = map.get("quorum").and_then(|field| field.integer(1..=COUNT_MAX, faults));
    let delay = map.get("delay").and_then(|field| field.duration(PROCESS_DELAY, faults));
    let effect = effect(&mut map, faults);
    map.finish(faults);
    Some(TrackProcess { name: name?, quorum: quorum.unwrap_or(1), delay: delay.unwrap_or_default(), effect })
}

fn file(item: &Field<'_>, faults: &mut Faults) -> Option<TrackFile> {
    let mut map = item.map("a file like {path: /run/lb/maintenance, weight: -1}", faults)?;
    let path = map.require("path", faults).and_then(|field| {
        let text = field.text("the path of a file", faults)?;
        if !text.starts_with('/') {
            faults.add(field.path, format!("`{}` is not an absolute path", text.escape_debug()));
            return None;
        }
        Some(PathBuf::from(text))
    });
    let effect = weight(&mut map, faults).map_or(TrackFileEffect::Fault, TrackFileEffect::Weight);
    map.finish(faults);
    Some(TrackFile { path: path?, effect })
}

fn service(item: &Field<'_>, faults: &mut Faults) -> Option<TrackService> {
    let mut map = item.map("a virtual service like {service: web, quorum: 1}", faults)?;
    let service = map.require("service", faults).and_then(|field| field.name(faults));
    let quorum = map.get("quorum").and_then(|field| field.integer(1..=u32::MAX, faults));
    let effect = effect(&mut map, faults);
    map.finish(faults);
    Some(TrackService { service: service?, quorum: quorum.unwrap_or(1), effect })
}

/// `true`, `false` or `{weight: -50}`.
fn data_plane(field: &Field<'_>, faults: &mut Faults) -> Option<TrackEffect> {
    match field.raw {
        Raw::Bool(true) => Some(TrackEffect::Fault),
        Raw::Bool(false) => None,
        Raw::Map(_) => {
            let mut map = field.map("a map like {weight: -50}", faults)?;
            let effect = effect(&mut map, faults);
            map.finish(faults);
            Some(effect)
        }
        _ => {
            field.expected("true, false or a map like {weight: -50}", faults);
            None
        }
    }
}

/// Program and arguments, as a list: no shell takes them apart.
pub fn command(field: &Field<'_>, faults: &mut Faults) -> Option<Vec<String>> {
    let what = "a program and its arguments like [/usr/local/bin/check, --quick]";
    let items = field.list(what, WORDS_MAX, faults)?;
    let mut words = Vec::new();
    for item in &items {
        words.push(item.text("a word of a command", faults)?.to_owned());
    }
    match words.first() {
        Some(program) if program.starts_with('/') => Some(words),
        Some(program) => {
            let message = format!("`{}` is not the absolute path of a program", program.escape_debug());
            faults.add(format!("{}[0]", field.path), message);
            None
        }
        None => {
            faults.add(field.path.as_str(), "has no program");
            None
        }
    }
}

pub fn encode_track(track: &Track) -> Raw {
    let weight = |effect: TrackEffect| match effect {
        TrackEffect::Fault => None,
        TrackEffect::Weight(weight) => Some(Raw::integer(weight)),
    };
    let duration = |duration: Duration| Some(Raw::Text(duration_text(duration)));
    let interfaces = track.interfaces.iter().map(|interface| {
        Raw::map([("name", Some(Raw::text(&interface.name))), ("weight", weight(interface.effect))])
    });
    let scripts = track.scripts.iter().map(|script| {
        Raw::map([
            ("name", Some(Raw::text(&script.name))),
            ("command", Some(Raw::List(script.command.iter().map(Raw::text).collect()))),
            ("interval", duration(script.interval)),
            ("timeout", duration(script.timeout)),
            ("rise", Some(Raw::integer(script.rise))),
            ("fall", Some(Raw::integer(script.fall))),
            ("user", script.user.as_ref().map(Raw::text)),
            ("weight", weight(script.effect)),
        ])
    });
    let processes = track.processes.iter().map(|process| {
        Raw::map([
            ("name", Some(Raw::text(&process.name))),
            ("quorum", Some(Raw::integer(process.quorum))),
            ("delay", duration(process.delay)),
            ("weight", weight(process.effect)),
        ])
    });
    let files = track.files.iter().map(|file| {
        let weight = match file.effect {
            TrackFileEffect::Fault => None,
            TrackFileEffect::Weight(weight) => Some(Raw::integer(weight)),
        };
        Raw::map([("path", Some(Raw::text(file.path.display()))), ("weight", weight)])
    });
    let services = track.services.iter().map(|service| {
        Raw::map([
            ("service", Some(Raw::text(&service.service))),
            ("quorum", Some(Raw::integer(service.quorum))),
            ("weight", weight(service.effect)),
        ])
    });
    let data_plane = match track.data_plane {
        None => Raw::Bool(false),
        Some(TrackEffect::Fault) => Raw::Bool(true),
        Some(TrackEffect::Weight(weight)) => Raw::map([("weight", Some(Raw::integer(weight)))]),
    };
    Raw::map([
        ("interfaces", Some(Raw::List(interfaces.collect()))),
        ("scripts", Some(Raw::List(scripts.collect()))),
        ("processes", Some(Raw::List(processes.collect()))),
        ("files", Some(Raw::List(files.collect()))),
        ("services", Some(Raw::List(services.collect()))),
        ("dataPlane", Some(data_plane)),
    ])
}

const TRACKED_MAX: usize = 64;
/// keepalived's; more than the distance between any two priorities makes no sense.
const WEIGHT_MAX: i16 = 253;
const COUNT_MAX: u32 = 1000;
const WORDS_MAX: usize = 64;
/// TASK_COMM_LEN less its final zero.
const COMM_MAX: usize = 15;
const SCRIPT_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
const PROCESS_DELAY: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
