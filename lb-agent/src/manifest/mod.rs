//! Manifests: the YAML that an operator writes becomes the checked objects of `model` here and nowhere else,
//! and everything that can be wrong with it is said here, with file, line and column.
//!
//! A document is decoded without types first (`raw`), then read field by field (`reader`), so that one pass
//! finds all that is wrong in all files; serde's derived types would stop at the first mistake. Positions
//! come from a second walk over the same text (`marks`).

mod application;
mod check;
mod check_lease;
mod check_vrrp;
mod diagnostic;
mod director;
mod endpoints;
mod events;
mod flood;
mod health;
mod marks;
mod objects;
mod packets;
mod pool;
pub mod prefix_list;
mod raw;
mod read;
mod reader;
mod real_path;
mod scheduling;
mod service;
mod tunnel;
mod vrrp;
mod vrrp_auth;
mod vrrp_track;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;

pub use check::{HostFacts, HostInterface, check, check_against_host, check_change};
pub use diagnostic::{Diagnostic, Report};
pub use objects::{Entry, Objects};
pub use read::{ReadError, read_file, read_path};
pub use scheduling::WHEN_NO_SERVER;
pub use service::{FORWARDING, PROTOCOLS, SCHEDULERS};
pub use vrrp_auth::parse_key;

use crate::model::{Kind, Name, Object, ObjectId};
use marks::{DEPTH_MAX, Mark, Marks};
use raw::Raw;
use reader::{Faults, Field, nearest};

/// A manifest's text and the name under which diagnostics mention it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub file: String,
    pub text: String,
}

/// What a set of manifests says, whether or not all of it is right.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    /// The objects that are right by themselves.
    pub objects: Objects,
    /// What is wrong with the others.
    pub report: Report,
    broken: BTreeSet<ObjectId>,
}

/// Reads manifests that are meant to be the whole of what there is, and checks it as a whole.
///
/// # Errors
/// Everything that is wrong in any of them.
pub fn load(sources: &[Source]) -> Result<Objects, Report> {
    let Parsed { objects, mut report, broken } = parse(sources);
    report.0.extend(check::check_beside(&objects, &broken, &Objects::default()).0);
    if report.0.is_empty() { Ok(objects) } else { Err(check::sorted(report.0)) }
}

/// Reads manifests whose objects are to be put beside others: what they refer to need not be among them.
/// The caller checks the whole with [`check`].
///
/// Large sets are read by as many threads as there are cores, a file by one of them.
pub fn parse(sources: &[Source]) -> Parsed {
    let size: usize = sources.iter().map(|source| source.text.len()).sum();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = if size < WORTH_A_THREAD { 1 } else { cores.min(sources.len()) };
    let by_thread: Vec<Vec<Parsed>> = std::thread::scope(|scope| {
        let part = |first: usize| {
            move || sources.iter().skip(first).step_by(threads).map(parse_source).collect::<Vec<_>>()
        };
        let others: Vec<_> = (1..threads).map(|first| scope.spawn(part(first))).collect();
        let own = part(0)();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<Parsed>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        std::iter::once(own).chain(others.into_iter().map(join)).collect()
    });
    let mut parsed = Parsed::default();
    let mut by_thread: Vec<_> = by_thread.into_iter().map(Vec::into_iter).collect();
    for number in 0..sources.len() {
        if let Some(one) = by_thread[number % threads].next() {
            parsed.join(one);
        }
    }
    parsed.report = check::sorted(std::mem::take(&mut parsed.report.0));
    parsed
}

impl Parsed {
    /// Puts what another file says behind what is there.
    fn join(&mut self, other: Parsed) {
        self.report.0.extend(other.report.0);
        self.broken.extend(other.broken);
        for (_, entry) in other.objects {
            if let Err(twice) = self.objects.insert(entry) {
                self.report.0.push(*twice);
            }
        }
    }
}

/// An object as one line of JSON, every field written out; [`parse_lines`] reads it again.
pub fn to_line(object: &Object) -> String {
    serde_json::to_string(&encode(object)).expect("texts, numbers, lists and maps with text keys")
}

/// Reads objects that were written by [`to_line`], each on a line of its own, however many there are.
pub fn parse_lines(file: &str, text: &str) -> Parsed {
    let file: Arc<str> = file.into();
    let mut parsed = Parsed::default();
    for (line, text) in (1..).zip(text.lines()) {
        let marks = Marks::line(line);
        match serde_json::from_str(text) {
            Ok(raw) => take_document(&file, &raw, marks, &mut parsed),
            Err(error) => {
                let message = error.to_string();
                parsed.report.0.push(objects::diagnostic(&file, marks.start(), String::new(), message, None));
            }
        }
    }
    parsed
}

/// [`load`] of a single text.
pub fn load_text(file: &str, text: &str) -> Result<Objects, Report> {
    load(&[Source { file: file.to_owned(), text: text.to_owned() }])
}

fn parse_source(source: &Source) -> Parsed {
    let mut parsed = Parsed::default();
    read_source(source, &mut parsed);
    parsed
}

fn read_source(source: &Source, parsed: &mut Parsed) {
    let file: Arc<str> = source.file.as_str().into();
    if source.text.len() > SIZE_MAX {
        let message = format!("larger than {} MiB", SIZE_MAX >> 20);
        let start = Mark { line: 1, column: 1, width: 0 };
        parsed.report.0.push(objects::diagnostic(&file, start, String::new(), message, None));
        return;
    }
    // A byte order mark says nothing in UTF-8, and libyaml takes it for text.
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    let mut marks = match Marks::of(text) {
        Ok(marks) => marks.into_iter(),
        Err(place) => {
            let message = format!("nested more than {DEPTH_MAX} deep");
            parsed.report.0.push(objects::diagnostic(&file, place, String::new(), message, None));
            return;
        }
    };
    for document in serde_yaml::Deserializer::from_str(text) {
        let marks = marks.next().unwrap_or_else(Marks::unknown);
        let raw = match Raw::deserialize(document) {
            Ok(Raw::Null) => continue,
            Ok(raw) => raw,
            Err(error) => {
                // The text is not YAML from here on, and the parser would say so for ever.
                parsed.report.0.push(yaml_error(&file, marks.start(), &error));
                break;
            }
        };
        take_document(&file, &raw, marks, parsed);
    }
}

/// Takes up the object of a document, or what is wrong with it.
fn take_document(file: &Arc<str>, raw: &Raw, marks: Arc<Marks>, parsed: &mut Parsed) {
    let mut faults = Faults::default();
    let (id, object) = document_object(raw, &mut faults);
    if faults.0.len() > MISTAKES_MAX {
        let message =
            format!("{} mistakes in this document, of which {MISTAKES_MAX} are shown", faults.0.len());
        parsed.report.0.push(objects::diagnostic(file, marks.start(), String::new(), message, None));
    }
    for fault in faults.0.iter().take(MISTAKES_MAX) {
        let mark = marks.locate(&fault.path, fault.part);
        let diagnostic =
            objects::diagnostic(file, mark, fault.path.clone(), fault.message.clone(), fault.help.clone());
        parsed.report.0.push(diagnostic);
    }
    match object {
        Some(object) if faults.0.is_empty() => {
            if let Err(twice) = parsed.objects.insert(Entry::new(object, Arc::clone(file), marks)) {
                parsed.report.0.push(*twice);
            }
        }
        _ => parsed.broken.extend(id),
    }
}

/// What is not even YAML.
fn yaml_error(file: &str, start: Mark, error: &serde_yaml::Error) -> Diagnostic {
    let mark = error.location().map_or(start, |location| Mark {
        line: location.line() as u32,
        column: location.column() as u32,
        width: 0,
    });
    let text = error.to_string();
    // The place is said once, in front.
    let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
    objects::diagnostic(file, mark, String::new(), message, None)
}

/// The object of a document, and its identity as far as it can be told.
fn document_object(raw: &Raw, faults: &mut Faults) -> (Option<ObjectId>, Option<Object>) {
    let root = Field { raw, path: String::new() };
    let Some(mut document) = root.map("an object with apiVersion, kind, metadata and spec", faults) else {
        return (None, None);
    };
    if let Some(version) = document.require("apiVersion", faults) {
        version.one_of(&[(API_VERSION, ())], faults);
    }
    let kind = document.require("kind", faults).and_then(|field| kind(&field, faults));
    let name = document.require("metadata", faults).and_then(|field| {
        let mut metadata = field.map("a map like {name: web}", faults)?;
        let name = metadata.require("name", faults).and_then(|name| name.name(faults));
        metadata.finish(faults);
        name
    });
    let spec = document.require("spec", faults).and_then(|field| field.map("a map", faults));
    document.finish(faults);

    let Some(kind) = kind else { return (None, None) };
    let id = name.clone().map(|name| ObjectId { kind, name });
    let Some(spec) = spec else { return (id, None) };
    // A document without a usable name is read all the same, for what else may be wrong in it.
    let name = name.unwrap_or_else(|| Name::new("unnamed").expect("a valid name"));
    let object = match kind {
        Kind::Director => Some(Object::Director(director::decode(name, spec, faults))),
        Kind::LocalAddressPool => Some(Object::LocalAddressPool(pool::decode(name, spec, faults))),
        Kind::VirtualService => service::decode(name, spec, faults).map(Object::VirtualService),
        Kind::VrrpInstance => vrrp::decode(name, spec, faults).map(Box::new).map(Object::VrrpInstance),
        Kind::VrrpSyncGroup => vrrp::decode_group(name, spec, faults).map(Object::VrrpSyncGroup),
    };
    (id, object)
}

fn kind(field: &Field<'_>, faults: &mut Faults) -> Option<Kind> {
    let text = field.text("a kind of object", faults)?;
    let kind = text.parse().ok();
    if kind.is_none() {
        let known = Kind::ALL.map(Kind::as_str);
        let help = match nearest(text, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the kinds are {}", known.join(", ")),
        };
        faults.add(field.path.as_str(), format!("unknown kind `{}`", text.escape_debug())).help(help);
    }
    kind
}

/// An object as a manifest, every field written out. Reading it again gives the same object.
pub fn to_manifest(object: &Object) -> serde_json::Value {
    serde_json::to_value(encode(object)).expect("texts, numbers, lists and maps with text keys")
}

/// [`to_manifest`] as a YAML document, in the order in which one would write it.
pub fn to_yaml(object: &Object) -> String {
    serde_yaml::to_string(&encode(object)).expect("texts, numbers, lists and maps with text keys")
}

/// The paths of the fields in which two objects of one kind differ, for [`crate::model::field_effect`].
/// Lists that differ are named as a whole.
pub fn changed_fields(old: &Object, new: &Object) -> Vec<String> {
    let mut changed = Vec::new();
    difference(&encode(old), &encode(new), String::new(), &mut changed);
    changed
}

fn difference(old: &Raw, new: &Raw, path: String, changed: &mut Vec<String>) {
    let (Raw::Map(old_entries), Raw::Map(new_entries)) = (old, new) else {
        if old != new {
            changed.push(path);
        }
        return;
    };
    let find = |entries: &'_ [(String, Raw)], key: &str| -> Raw {
        entries.iter().find(|(name, _)| name == key).map_or(Raw::Null, |(_, raw)| raw.clone())
    };
    let gone = old_entries.iter().filter(|(key, _)| !new_entries.iter().any(|(name, _)| name == key));
    for (key, _) in new_entries.iter().chain(gone) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        difference(&find(old_entries, key), &find(new_entries, key), path, changed);
    }
}

fn encode(object: &Object) -> Raw {
    let spec = match object {
        Object::Director(director) => director::encode(director),
        Object::LocalAddressPool(pool) => pool::encode(pool),
        Object::VirtualService(service) => service::encode(service),
        Object::VrrpInstance(instance) => vrrp::encode(instance),
        Object::VrrpSyncGroup(group) => vrrp::encode_group(group),
    };
    Raw::map([
        ("apiVersion", Some(Raw::text(API_VERSION))),
        ("kind", Some(Raw::text(object.kind()))),
        ("metadata", Some(Raw::map([("name", Some(Raw::text(object.name())))]))),
        ("spec", Some(spec)),
    ])
}

/// The word for a value in a table that has all values of its type.
pub fn word_of<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, other)| *other == value).map(|(word, _)| *word).expect("a word for every value")
}

fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> Raw {
    Raw::text(word_of(words, value))
}

/// The only version of the manifests' language so far.
pub const API_VERSION: &str = "lb/v1";
/// How many mistakes of one document are reported one by one.
const MISTAKES_MAX: usize = 100;
/// Manifests of so many bytes altogether are worth the start of threads.
const WORTH_A_THREAD: usize = 256 << 10;
/// The largest manifest, in bytes.
pub const SIZE_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vrrp_tests;
#[cfg(test)]
mod written;
