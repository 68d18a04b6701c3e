//! The state directory: what must outlive the agent. The API's objects (`objects.jsonl`, one a line), those of them that no
//! longer fit (`rejected.yaml`), the real servers that leave (`drains.json`), the last manifests that were right
//! (`files.json`) and the last lists of prefixes that were (`lists.json`), for a time at which they are not, and the
//! states of health checks (`health.json`). Every file is replaced as a whole: written beside, synced, renamed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::director::Drains;
use crate::director::drain::SavedDrain;
use crate::manifest::{self, Entry, Objects, Parsed, Report, Source};

/// A lock on a state directory.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// The directory and the names in it.
#[derive(Debug, Clone)]
pub struct StateDirectory {
    path: PathBuf,
}

impl StateDirectory {
    /// Makes it if it is not there.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn open(path: &Path) -> Result<StateDirectory> {
        fs::create_dir_all(path).with_context(|| format!("make the state directory {}", path.display()))?;
        Ok(StateDirectory { path: path.to_owned() })
    }

    /// Keeps other agents off, until the lock is dropped or the process ends, however it does.
    ///
    /// # Errors
    /// Another agent has it.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path.join(LOCK);
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Lock { _file: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!("another agent runs with the state directory {}", self.path.display())
            }
            Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// The API's objects as they were saved; those that cannot be read any more are in the report.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn load_objects(&self) -> Result<Parsed> {
        let path = self.path.join(OBJECTS);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(manifest::parse_lines(&path.display().to_string(), &text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Parsed::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Saves the API's objects.
    ///
    /// # Errors
    /// A full or read-only disk; the file is then as it was.
    pub fn save_objects(&self, objects: &Objects) -> Result<()> {
        let lines = objects.iter().map(|(_, entry)| manifest::to_line(&entry.object) + "\n");
        self.replace(OBJECTS, &lines.collect::<String>())
    }

    /// Puts aside objects that do not fit any more, with the reasons, for the operator.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn save_rejected(&self, rejected: &[(Entry, Report)]) -> Result<()> {
        let mut text = String::new();
        for (entry, report) in rejected {
            for line in report.to_string().lines() {
                text.push_str(&format!("# {line}\n"));
            }
            text.push_str(&yaml(std::iter::once(entry)));
        }
        self.replace(REJECTED, &text)
    }

    /// Keeps manifests that were right.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn save_files(&self, sources: &[Source]) -> Result<()> {
        let text = serde_json::to_string(
            &sources.iter().map(|source| (&source.file, &source.text)).collect::<Vec<_>>(),
        )?;
        if fs::read_to_string(self.path.join(FILES)).is_ok_and(|saved| saved == text) {
            return Ok(());
        }
        self.replace(FILES, &text)
    }

    /// The last manifests that were right; none before the first.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn load_files(&self) -> Result<Option<Vec<Source>>> {
        let path = self.path.join(FILES);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let files: Vec<(String, String)> =
            serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        Ok(Some(files.into_iter().map(|(file, text)| Source { file, text }).collect()))
    }

    /// Keeps the states of health checks.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn save_health(&self, text: &str) -> Result<()> {
        self.replace(HEALTH, text)
    }

    /// The states of health checks as they were saved; none before the first time.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn load_health(&self) -> Result<Option<String>> {
        let path = self.path.join(HEALTH);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Keeps the former values of kernel settings that the agent has changed, by their path below /proc/sys.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn save_kernel_settings(&self, former: &BTreeMap<String, String>) -> Result<()> {
        self.replace(KERNEL_SETTINGS, &serde_json::to_string_pretty(former)?)
    }

    /// What [`StateDirectory::save_kernel_settings`] kept; nothing before the first time.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn load_kernel_settings(&self) -> Result<BTreeMap<String, String>> {
        let path = self.path.join(KERNEL_SETTINGS);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Keeps the drains.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn save_drains(&self, drains: &Drains) -> Result<()> {
        self.replace(DRAINS, &serde_json::to_string(&drains.save())?)
    }

    /// The drains of an earlier run.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn load_drains(&self) -> Result<Drains> {
        let path = self.path.join(DRAINS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Drains::default()),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let saved: Vec<SavedDrain> =
            serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        Ok(Drains::load(&saved))
    }

    /// Keeps the files of prefixes that were right, by their paths.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub fn save_lists(&self, lists: &BTreeMap<&Path, &str>) -> Result<()> {
        let text = serde_json::to_string(lists)?;
        let saved = fs::read_to_string(self.path.join(LISTS));
        if saved.as_ref().map_or(lists.is_empty(), |saved| *saved == text) {
            return Ok(());
        }
        self.replace(LISTS, &text)
    }

    /// The last files of prefixes that were right.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn load_lists(&self) -> Result<BTreeMap<PathBuf, String>> {
        let path = self.path.join(LISTS);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Whoever reads the file sees the old text or the new, also after a power cut (rename(2), fsync(2) of file
    /// and directory).
    fn replace(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        let what = || format!("write {}", path.display());
        let beside = self.path.join(format!(".{name}.new"));
        let mut file = File::create(&beside).with_context(what)?;
        file.write_all(text.as_bytes()).with_context(what)?;
        file.sync_all().with_context(what)?;
        fs::rename(&beside, &path).with_context(what)?;
        File::open(&self.path).and_then(|directory| directory.sync_all()).with_context(what)
    }
}

fn yaml<'a>(entries: impl Iterator<Item = &'a Entry>) -> String {
    entries.map(|entry| format!("---\n{}", manifest::to_yaml(&entry.object))).collect()
}

const OBJECTS: &str = "objects.jsonl";
const REJECTED: &str = "rejected.yaml";
const FILES: &str = "files.json";
const HEALTH: &str = "health.json";
const KERNEL_SETTINGS: &str = "kernel-settings.json";
const DRAINS: &str = "drains.json";
const LISTS: &str = "lists.json";
const LOCK: &str = "lock";

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {name: web}\nspec: {address: 192.0.2.1, \
                          ports: [80], protocol: tcp, forwarding: dr, scheduler: rr, realServers: []}\n";

    fn directory() -> (tempfile::TempDir, StateDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(&directory.path().join("state")).unwrap();
        (directory, state)
    }

    #[test]
    fn objects_come_back_as_they_were_saved() {
        let (_guard, state) = directory();
        assert!(state.load_objects().unwrap().objects.is_empty());
        let objects = manifest::load_text("web.yaml", OBJECT).unwrap();
        state.save_objects(&objects).unwrap();
        let back = state.load_objects().unwrap();
        assert!(back.report.0.is_empty());
        let values = |objects: &Objects| objects.iter().map(|(_, e)| e.object.clone()).collect::<Vec<_>>();
        assert_eq!(values(&back.objects), values(&objects));
    }

    /// Each is read by itself: no limit of a manifest's size counts for all of them, and one that cannot be read any more
    /// costs no other.
    #[test]
    fn a_line_that_cannot_be_read_costs_its_own_object_alone() {
        let (_guard, state) = directory();
        let other = OBJECT.replace("name: web", "name: other").replace("192.0.2.1", "192.0.2.2");
        let objects = manifest::load_text("web.yaml", &format!("{OBJECT}---\n{other}")).unwrap();
        state.save_objects(&objects).unwrap();
        let path = state.path.join(OBJECTS);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        fs::write(&path, text.replacen("\"rr\"", "\"rrr\"", 1) + "{\n").unwrap();
        let back = state.load_objects().unwrap();
        assert_eq!(back.objects.len(), 1);
        let places: Vec<u32> = back.report.0.iter().map(|diagnostic| diagnostic.line).collect();
        assert_eq!(places, [1, 3], "{}", back.report);
    }

    #[test]
    fn a_half_written_file_beside_the_objects_does_not_count() {
        let (_guard, state) = directory();
        let objects = manifest::load_text("web.yaml", OBJECT).unwrap();
        state.save_objects(&objects).unwrap();
        fs::write(state.path.join(".objects.jsonl.new"), "kind: [").unwrap();
        let back = state.load_objects().unwrap();
        assert_eq!((back.objects.len(), back.report.0.len()), (1, 0));
        state.save_objects(&objects).unwrap();
        assert_eq!(state.load_objects().unwrap().objects.len(), 1);
    }

    #[test]
    fn the_last_good_manifests_come_back() {
        let (_guard, state) = directory();
        assert_eq!(state.load_files().unwrap(), None);
        let sources = vec![Source { file: "a.yaml".into(), text: OBJECT.into() }];
        state.save_files(&sources).unwrap();
        assert_eq!(state.load_files().unwrap(), Some(sources));
    }

    #[test]
    fn a_second_agent_is_kept_off_until_the_first_is_gone() {
        let (_guard, state) = directory();
        let lock = state.lock().unwrap();
        assert!(state.lock().unwrap_err().to_string().contains("another agent"));
        drop(lock);
        state.lock().unwrap();
    }
}
