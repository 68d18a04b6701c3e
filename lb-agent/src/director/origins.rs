//! Who answers for an object: a file, or the API. A file's object is changed in the file and nowhere else.

use std::collections::BTreeSet;

use crate::manifest::{self, Entry, Objects, Report};
use crate::model::{Kind, ObjectId};

/// Where an object comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(String),
    Api,
}

/// The objects by origin. Files win where both have one of the same kind and name.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Of the configuration file and the manifests directory.
    pub files: Objects,
    /// Applied by the API, kept in the state directory.
    pub api: Objects,
}

/// Why a set of objects was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    Invalid(Report),
    Owned { object: ObjectId, file: String },
    Missing(ObjectId),
}

impl Desired {
    /// All of them.
    pub fn joined(&self) -> Objects {
        let mut all = self.files.clone();
        for (_, entry) in self.api.iter() {
            // The file's stays.
            let _ = all.insert(entry.clone());
        }
        all
    }

    /// Where an object comes from.
    pub fn origin(&self, id: &ObjectId) -> Origin {
        match self.files.get(id) {
            Some(entry) => Origin::File(entry.file.to_string()),
            None => Origin::Api,
        }
    }

    /// What would be after these objects were applied by the API; `prune` takes away those it has that are not
    /// among them.
    ///
    /// # Errors
    /// An object that a file owns.
    pub fn apply(&self, given: Objects, prune: bool) -> Result<Desired, Refused> {
        for (id, _) in given.iter() {
            self.not_a_files(id)?;
        }
        let mut api = if prune { Objects::default() } else { self.api.clone() };
        for (id, entry) in given {
            api.replace(entry.sharing(self.api.get(&id)));
        }
        Ok(Desired { files: self.files.clone(), api })
    }

    /// What would be without these objects.
    ///
    /// # Errors
    /// An object that a file owns, or that is not there.
    pub fn delete(&self, ids: &[ObjectId]) -> Result<Desired, Refused> {
        let mut api = self.api.clone();
        for id in ids.iter().collect::<BTreeSet<_>>() {
            self.not_a_files(id)?;
            api.remove(id).ok_or_else(|| Refused::Missing(id.clone()))?;
        }
        Ok(Desired { files: self.files.clone(), api })
    }

    /// What would be with these files, and the API's objects that now belong to one of them.
    pub fn with_files(&self, files: Objects) -> (Desired, Vec<ObjectId>) {
        let files = files.sharing(&self.files);
        let mut api = self.api.clone();
        let taken: Vec<ObjectId> =
            api.iter().map(|(id, _)| id.clone()).filter(|id| files.contains(id)).collect();
        for id in &taken {
            api.remove(id);
        }
        (Desired { files, api }, taken)
    }

    /// Puts as many of the API's stored objects beside the files' as go together with them, and returns the
    /// others, each with what is wrong with it.
    pub fn restore(files: Objects, stored: Objects) -> (Desired, Vec<(Entry, Report)>) {
        let mut desired = Desired { files, api: Objects::default() };
        let mut left = Vec::new();
        // Pools before the services that name them.
        for kind in Kind::ALL {
            let entries: Vec<Entry> = stored.of_kind(kind).cloned().collect();
            desired.restore_some(&entries, &mut left);
        }
        (desired, left)
    }

    /// All at once where they are all right, else by halves: the wrong ones are few.
    fn restore_some(&mut self, entries: &[Entry], left: &mut Vec<(Entry, Report)>) {
        if entries.is_empty() {
            return;
        }
        let mut api = self.api.clone();
        let mut twice = Report::default();
        for entry in entries {
            if let Some(file) = self.files.get(&entry.object.id()) {
                let message = format!("it is now defined in {}", file.place());
                twice.0.push(entry.diagnostic("metadata.name", message, None));
            }
            api.replace(entry.clone());
        }
        let tried = Desired { files: self.files.clone(), api };
        let report = if twice.0.is_empty() { manifest::check(&tried.joined()) } else { twice };
        if report.0.is_empty() {
            *self = tried;
        } else if let [entry] = entries {
            left.push((entry.clone(), report));
        } else {
            let (first, second) = entries.split_at(entries.len() / 2);
            self.restore_some(first, left);
            self.restore_some(second, left);
        }
    }

    fn not_a_files(&self, id: &ObjectId) -> Result<(), Refused> {
        match self.files.get(id) {
            Some(entry) => Err(Refused::Owned { object: id.clone(), file: entry.file.to_string() }),
            None => Ok(()),
        }
    }
}
