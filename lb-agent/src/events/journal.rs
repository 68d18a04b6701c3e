//! The journal of events in the state directory, so that numbers go on over restarts and no hook misses an event
//! because the agent was stopped: `events.jsonl`, one event a line, and `events-done.json`, how far each consumer is.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Event;

/// The open journal.
pub struct Journal {
    directory: PathBuf,
    file: File,
    lines: usize,
}

impl Journal {
    /// Opens it and returns what it holds.
    pub fn open(directory: &Path) -> Result<(Journal, Vec<Event>, BTreeMap<String, u64>)> {
        let path = directory.join(EVENTS);
        let mut events: Vec<Event> = Vec::new();
        let mut lines = 0;
        match File::open(&path) {
            Ok(file) => {
                for line in BufReader::new(file).split(b'\n') {
                    let line = line.with_context(|| format!("read {}", path.display()))?;
                    lines += 1;
                    // The last line may be half written; one that is not in order is not ours.
                    let Ok(event) = serde_json::from_slice::<Event>(&line) else { continue };
                    if events.last().is_none_or(|last| last.sequence < event.sequence) {
                        events.push(event);
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        let cursors =
            fs::read(directory.join(DONE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut file = append(&path)?;
        // Ends a half-written line.
        if lines > events.len() {
            file.write_all(b"\n").with_context(|| format!("write {}", path.display()))?;
        }
        let journal = Journal { directory: directory.to_owned(), file, lines };
        Ok((journal, events, cursors.unwrap_or_default()))
    }

    /// Writes the newest of `events`; when the file has grown long, it is replaced by all of `events`.
    pub fn append(&mut self, events: &VecDeque<Event>) -> Result<()> {
        let Some(newest) = events.back() else { return Ok(()) };
        if self.lines > 2 * events.len() + SLACK {
            return self.rewrite(events);
        }
        let mut line = serde_json::to_vec(newest)?;
        line.push(b'\n');
        self.file.write_all(&line).context("write an event")?;
        self.lines += 1;
        Ok(())
    }

    /// Says how far each consumer is. Not synced: after a power cut a hook may run again, which is better than
    /// a disk that decides how fast hooks run.
    pub fn save_cursors(&self, cursors: &BTreeMap<String, u64>) -> Result<()> {
        let beside = self.directory.join(format!(".{DONE}.new"));
        fs::write(&beside, serde_json::to_vec(cursors)?)
            .with_context(|| format!("write {}", beside.display()))?;
        fs::rename(&beside, self.directory.join(DONE)).context("move the consumers' positions into place")
    }

    fn rewrite(&mut self, events: &VecDeque<Event>) -> Result<()> {
        let path = self.directory.join(EVENTS);
        let beside = self.directory.join(format!(".{EVENTS}.new"));
        let file = File::create(&beside).with_context(|| format!("write {}", beside.display()))?;
        let mut writer = BufWriter::new(file);
        for event in events {
            serde_json::to_writer(&mut writer, event)?;
            writer.write_all(b"\n")?;
        }
        writer.flush().with_context(|| format!("write {}", beside.display()))?;
        fs::rename(&beside, &path).context("move the journal into place")?;
        self.file = append(&path)?;
        self.lines = events.len();
        Ok(())
    }
}

fn append(path: &Path) -> Result<File> {
    let open = File::options().create(true).append(true).open(path);
    open.with_context(|| format!("open {}", path.display()))
}

const EVENTS: &str = "events.jsonl";
const DONE: &str = "events-done.json";
/// Lines beyond twice those that are kept before the file is written anew.
const SLACK: usize = 1024;
