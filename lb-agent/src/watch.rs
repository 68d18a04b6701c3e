//! Follows the manifests directory: says that something in it changed, once it has been quiet for a moment.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::Instant;

/// Changes of one directory.
pub struct Watch {
    events: EventStream<[u8; 4096]>,
    /// When the first and the last change came of those not yet reported.
    unrest: Option<(Instant, Instant)>,
}

impl Watch {
    /// Begins to follow `directory`. Needs a tokio runtime.
    ///
    /// # Errors
    /// A directory that is not there; no inotify instances left (`fs.inotify.max_user_instances`).
    pub fn start(directory: &Path) -> Result<Watch> {
        let what = || format!("watch {}", directory.display());
        let inotify = Inotify::init().with_context(what)?;
        // A file is complete when it is closed or moved in, not when it is made.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        inotify.watches().add(directory, mask).with_context(what)?;
        let events = inotify.into_event_stream([0; 4096]).with_context(what)?;
        Ok(Watch { events, unrest: None })
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

    async fn next(&mut self) -> Result<()> {
        match self.events.next().await {
            Some(event) => event.map(drop).context("watch the manifests directory"),
            None => anyhow::bail!("watch the manifests directory: the kernel ended it"),
        }
    }
}

/// An editor or a deployment writes several files in a row.
const QUIET: Duration = Duration::from_millis(100);
/// A directory that never rests is read all the same.
const PATIENCE: Duration = Duration::from_secs(1);
