//! A set of objects and where each was written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::marks::{Mark, Marks, Part};
use crate::model::{
    Director, Kind, LocalAddressPool, Name, Object, ObjectId, VirtualService, VrrpInstance, VrrpSyncGroup,
};

/// Objects by (kind, name).
#[derive(Debug, Clone, Default)]
pub struct Objects {
    entries: BTreeMap<ObjectId, Entry>,
}

/// An object and the document it came from.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Shared: a set of objects is copied and compared with each order.
    pub object: Arc<Object>,
    /// The file, as it was named to the reader.
    pub file: Arc<str>,
    marks: Arc<Marks>,
}

impl Entry {
    pub(super) fn new(object: Object, file: Arc<str>, marks: Arc<Marks>) -> Entry {
        Entry { object: Arc::new(object), file, marks }
    }

    /// With the object of `old` where it is the same, so that this is seen later without a look inside.
    pub fn sharing(mut self, old: Option<&Entry>) -> Entry {
        if let Some(old) = old.filter(|old| old.object == self.object) {
            self.object = Arc::clone(&old.object);
        }
        self
    }

    /// The line on which the object's document begins, from 1.
    pub fn line(&self) -> u32 {
        self.marks.start().line
    }

    /// `web.yaml:14`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line())
    }

    /// A mistake in one of the object's fields.
    pub fn diagnostic(&self, path: &str, message: impl Into<String>, help: Option<String>) -> Diagnostic {
        let mark = self.marks.locate(path, Part::Value);
        diagnostic(&self.file, mark, path.to_owned(), message.into(), help)
    }
}

impl Objects {
    /// Adds an object. One with the same kind and name already there stays, and the answer names both places.
    pub fn insert(&mut self, entry: Entry) -> Result<(), Box<Diagnostic>> {
        let id = entry.object.id();
        if let Some(first) = self.entries.get(&id) {
            let message = format!("{} `{}` is defined twice", id.kind, id.name);
            let help = format!("it is already defined in {}", first.place());
            return Err(Box::new(entry.diagnostic("metadata.name", message, Some(help))));
        }
        self.entries.insert(id, entry);
        Ok(())
    }

    /// As [`Entry::sharing`], for each.
    pub fn sharing(self, old: &Objects) -> Objects {
        let share = |(id, entry): (ObjectId, Entry)| {
            let entry = entry.sharing(old.get(&id));
            (id, entry)
        };
        Objects { entries: self.entries.into_iter().map(share).collect() }
    }

    /// Adds an object in place of the one with the same kind and name, which is returned.
    pub fn replace(&mut self, entry: Entry) -> Option<Entry> {
        self.entries.insert(entry.object.id(), entry)
    }

    pub fn remove(&mut self, id: &ObjectId) -> Option<Entry> {
        self.entries.remove(id)
    }

    pub fn get(&self, id: &ObjectId) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub fn contains(&self, id: &ObjectId) -> bool {
        self.entries.contains_key(id)
    }

    /// In the order of kinds, then names.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectId, &Entry)> {
        self.entries.iter()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(move |entry| entry.object.kind() == kind)
    }

    /// The director, of which a checked set has at most one.
    pub fn director(&self) -> Option<&Director> {
        self.directors().next().map(|(director, _)| director)
    }

    pub(super) fn directors(&self) -> impl Iterator<Item = (&Director, &Entry)> {
        self.entries.values().filter_map(|entry| match &*entry.object {
            Object::Director(director) => Some((director, entry)),
            _ => None,
        })
    }

    /// In the order of their names.
    pub fn services(&self) -> impl Iterator<Item = (&VirtualService, &Entry)> {
        self.entries.values().filter_map(|entry| match &*entry.object {
            Object::VirtualService(service) => Some((service, entry)),
            _ => None,
        })
    }

    /// In the order of their names.
    pub fn pools(&self) -> impl Iterator<Item = (&LocalAddressPool, &Entry)> {
        self.entries.values().filter_map(|entry| match &*entry.object {
            Object::LocalAddressPool(pool) => Some((pool, entry)),
            _ => None,
        })
    }

    /// In the order of their names.
    pub fn vrrp_instances(&self) -> impl Iterator<Item = (&VrrpInstance, &Entry)> {
        self.entries.values().filter_map(|entry| match &*entry.object {
            Object::VrrpInstance(instance) => Some((instance.as_ref(), entry)),
            _ => None,
        })
    }

    /// In the order of their names.
    pub fn vrrp_sync_groups(&self) -> impl Iterator<Item = (&VrrpSyncGroup, &Entry)> {
        self.entries.values().filter_map(|entry| match &*entry.object {
            Object::VrrpSyncGroup(group) => Some((group, entry)),
            _ => None,
        })
    }

    /// The VRRP instance that a VIP follows, if any.
    pub fn vrrp_instance_of(&self, address: IpAddr) -> Option<&VrrpInstance> {
        self.vrrp_instances().map(|(instance, _)| instance).find(|instance| instance.has_address(address))
    }

    /// The sync group that a VRRP instance is in, if any.
    pub fn vrrp_sync_group_of(&self, instance: &Name) -> Option<&VrrpSyncGroup> {
        self.vrrp_sync_groups().map(|(group, _)| group).find(|group| group.members.contains(instance))
    }
}

impl IntoIterator for Objects {
    type Item = (ObjectId, Entry);
    type IntoIter = std::collections::btree_map::IntoIter<ObjectId, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

pub fn diagnostic(file: &str, mark: Mark, path: String, message: String, help: Option<String>) -> Diagnostic {
    Diagnostic {
        file: file.to_owned(),
        line: mark.line,
        column: mark.column,
        width: mark.width,
        path,
        message,
        help,
    }
}
