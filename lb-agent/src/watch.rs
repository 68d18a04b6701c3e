//! Follows the manifests directory and the files of prefixes: says that something changed, once it has been quiet for a
//! moment.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt as _;
use inotify::{EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::Instant;

/// Changes of one directory, and of single files in others.
pub struct Watch {
    events: EventStream<[u8; 4096]>,
    /// Of each directory the files that count; None: all.
    names: BTreeMap<i32, Option<BTreeSet<OsString>>>,
    /// When the first and the last change came of those not yet reported.
    unrest: Option<(Instant, Instant)>,
}

impl Watch {
    /// Begins to follow `directory` and `files`; None when there is nothing to follow. Files are followed by their
    /// directories, since most programs replace a file by another. Needs a tokio runtime.
    ///
    /// # Errors
    /// A directory that is not there; no inotify instances left (`fs.inotify.max_user_instances`).
    pub fn start(directory: Option<&Path>, files: &BTreeSet<PathBuf>) -> Result<Option<Watch>> {
        if directory.is_none() && files.is_empty() {
            return Ok(None);
        }
        let inotify = Inotify::init().context("watch files")?;
        // A file is complete when it is closed or moved in, not when it is made.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        let mut names: BTreeMap<i32, Option<BTreeSet<OsString>>> = BTreeMap::new();
        let watch = |directory: &Path| -> Result<WatchDescriptor> {
            let what = || format!("watch {}", directory.display());
            inotify.watches().add(directory, mask).with_context(what)
        };
        for file in files {
            let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { continue };
            match watch(directory) {
                Ok(descriptor) => {
                    let of =
                        names.entry(descriptor.get_watch_descriptor_id()).or_insert(Some(BTreeSet::new()));
                    of.iter_mut().for_each(|names| _ = names.insert(name.to_owned()));
                }
                // Its last good text counts; it is looked for again with the next change.
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        // The same directory has the same descriptor.
        if let Some(directory) = directory {
            names.insert(watch(directory)?.get_watch_descriptor_id(), None);
        }
        let events = inotify.into_event_stream([0; 4096]).context("watch files")?;
        Ok(Some(Watch { events, names, unrest: None }))
    }

    /// Returns when something has changed and then nothing for [`QUIET`], or changes do not end for [`PATIENCE`].
    /// Safe to be dropped and called again, as `select!` does: what was noticed is kept.
    ///
    /// # Errors
    /// The kernel's refusal; there is nothing to wait for any more.
    pub async fn changed(&mut self) -> Result<()> {
        loop {
            let Some((first, last)) = self.unrest else {
                self.next().await?;
                let now = Instant::now();
                self.unrest = Some((now, now));
                continue;
            };
            let due = (last + QUIET).min(first + PATIENCE);
            tokio::select! {
                event = self.next() => {
                    event?;
                    self.unrest = Some((first, Instant::now()));
                }
                () = tokio::time::sleep_until(due) => {
                    self.unrest = None;
                    return Ok(());
                }
            }
        }
    }

    /// Waits for the next event that counts.
    async fn next(&mut self) -> Result<()> {
        loop {
            match self.events.next().await {
                Some(event) => {
                    if self.counts(&event.context("watch files")?) {
                        return Ok(());
                    }
                }
                None => anyhow::bail!("watch files: the kernel ended it"),
            }
        }
    }

    fn counts(&self, event: &EventOwned) -> bool {
        match self.names.get(&event.wd.get_watch_descriptor_id()) {
            Some(Some(names)) => event.name.as_deref().is_none_or(|name: &OsStr| names.contains(name)),
            // All of a directory; or the queue overflowed, and anything may have changed.
            Some(None) | None => true,
        }
    }
}

/// An editor or a deployment writes several files in a row.
const QUIET: Duration = Duration::from_millis(100);
/// A directory that never rests is read all the same.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    async fn changes(watch: &mut Watch, patience: Duration) -> bool {
        tokio::time::timeout(patience, watch.changed()).await.is_ok_and(|result| result.is_ok())
    }

    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn of_a_files_directory_only_the_file_counts_however_it_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (list, other) = (directory.path().join("deny.txt"), directory.path().join("other"));
        std::fs::write(&list, "").unwrap();
        let mut watch = Watch::start(None, &BTreeSet::from([list.clone()])).unwrap().unwrap();
        std::fs::write(&other, "x").unwrap();
        assert!(!changes(&mut watch, Duration::from_millis(400)).await, "another file");
        std::fs::write(&list, "192.0.2.0/24").unwrap();
        assert!(changes(&mut watch, SOON).await, "written");
        std::fs::rename(&other, &list).unwrap();
        assert!(changes(&mut watch, SOON).await, "replaced");
        // Of the manifests directory everything counts, a list beside the manifests included.
        let files = BTreeSet::from([list.clone()]);
        let mut watch = Watch::start(Some(directory.path()), &files).unwrap().unwrap();
        std::fs::write(&other, "x").unwrap();
        assert!(changes(&mut watch, SOON).await, "anything");
        assert!(Watch::start(None, &BTreeSet::new()).unwrap().is_none());
    }
}
