//! What is tracked beside interfaces: scripts, processes, files. One task each, which tells the driver what changed;
//! none of them can delay it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, User};
use tokio::process::Command as Program;
use tokio::task::JoinHandle;

use super::driver::{Command, Driver};
use super::tracking::Change;
use crate::model::{Name, Track, TrackFile, TrackFileEffect, TrackProcess, TrackScript};

/// The running tasks. They end when this is dropped.
pub struct Trackers {
    driver: Driver,
    tasks: BTreeMap<(Name, String), (Tracked, JoinHandle<()>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Tracked {
    Script(TrackScript),
    Process(TrackProcess),
    File(TrackFile),
}

impl Trackers {
    pub fn new(driver: Driver) -> Trackers {
        Trackers { driver, tasks: BTreeMap::new() }
    }

    /// Tracks these and no others. A task whose thing stays the same goes on.
    pub fn set<'a>(&mut self, tracks: impl IntoIterator<Item = (&'a Name, &'a Track)>) {
        let mut wanted = BTreeMap::new();
        for (name, track) in tracks {
            let scripts = track
                .scripts
                .iter()
                .map(|script| (format!("script {}", script.name), Tracked::Script(script.clone())));
            let processes = track
                .processes
                .iter()
                .map(|process| (format!("process {}", process.name), Tracked::Process(process.clone())));
            let files = track
                .files
                .iter()
                .map(|file| (format!("file {}", file.path.display()), Tracked::File(file.clone())));
            for (what, tracked) in scripts.chain(processes).chain(files) {
                wanted.insert((name.clone(), what), tracked);
            }
        }
        self.tasks.retain(|key, (tracked, task)| {
            let stays = wanted.get(key) == Some(tracked);
            if !stays {
                task.abort();
            }
            if !wanted.contains_key(key) {
                let change = Change::Gone { what: key.1.clone() };
                self.driver.order(Command::Track { name: key.0.clone(), change });
            }
            stays
        });
        for (key, tracked) in wanted {
            let driver = self.driver.clone();
            self.tasks.entry(key).or_insert_with_key(|key| {
                let task = tokio::spawn(follow(driver, key.clone(), tracked.clone()));
                (tracked, task)
            });
        }
    }
}

impl Drop for Trackers {
    fn drop(&mut self) {
        self.tasks.values().for_each(|(_, task)| task.abort());
    }
}

async fn follow(driver: Driver, (name, what): (Name, String), tracked: Tracked) {
    let tell = |change| driver.order(Command::Track { name: name.clone(), change });
    match tracked {
        Tracked::Script(script) => {
            let mut judge = Judge::new(script.rise, script.fall);
            let mut tick = tokio::time::interval(script.interval);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let result = run(&script).await;
                if let Some(up) = judge.note(result.is_ok()) {
                    if let Err(error) = &result {
                        tracing::warn!("VRRP instance {name}: {what}: {error:#}");
                    }
                    tell(Change::of(&what, script.effect, up));
                }
            }
        }
        Tracked::Process(process) => {
            let (mut last, mut missing_since, mut known) = (None, None, Vec::new());
            loop {
                let (comm, quorum) = (process.name.clone(), process.quorum);
                let look = move || running(Path::new("/proc"), &comm, known, quorum);
                known = tokio::task::spawn_blocking(look).await.unwrap_or_default();
                let enough = known.len() >= process.quorum as usize;
                let since = *missing_since.get_or_insert_with(Instant::now);
                if enough {
                    missing_since = None;
                }
                let up = enough || (last.is_some() && since.elapsed() < process.delay);
                if last.replace(up) != Some(up) {
                    tell(Change::of(&what, process.effect, up));
                }
                tokio::time::sleep(PROCESS_INTERVAL).await;
            }
        }
        Tracked::File(file) => {
            let mut last = None;
            loop {
                let watch = watch(&file.path);
                let now = number(&file.path);
                if last.replace(now) != Some(now) {
                    tell(file_change(&what, file.effect, now));
                }
                match watch {
                    // What came before the watch began was read after it did.
                    Ok(mut changes) => _ = tokio::time::timeout(FILE_INTERVAL, changes.next()).await,
                    // The directory is not there yet.
                    Err(_) => tokio::time::sleep(FILE_RETRY).await,
                }
            }
        }
    }
}

/// So many in a row before it counts; the first result counts at once.
struct Judge {
    rise: u32,
    fall: u32,
    up: Option<bool>,
    against: u32,
}

impl Judge {
    fn new(rise: u32, fall: u32) -> Judge {
        Judge { rise, fall, up: None, against: 0 }
    }

    /// One more result; what it changes.
    fn note(&mut self, good: bool) -> Option<bool> {
        if self.up == Some(good) {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = match self.up {
            None => 1,
            Some(_) if good => self.rise,
            Some(_) => self.fall,
        };
        if self.against < needed {
            return None;
        }
        (self.up, self.against) = (Some(good), 0);
        self.up
    }
}

/// Runs a script to its end, in a process group of its own, so that what it started can be ended with it.
async fn run(script: &TrackScript) -> Result<()> {
    let program = script.command.first().context("no command")?;
    let mut command = Program::new(program);
    command.args(&script.command[1..]).kill_on_drop(true).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(name) = &script.user {
        let user =
            User::from_name(name).ok().flatten().with_context(|| format!("there is no user {name}"))?;
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let group = child.id().map(|pid| Pid::from_raw(pid as i32));
    match tokio::time::timeout(script.timeout, child.wait()).await {
        Ok(status) => match status? {
            status if status.success() => Ok(()),
            status => bail!("{program} ended with {status}"),
        },
        Err(_) => {
            if let Some(group) = group {
                // Not reaped yet, so the group is still its own.
                let _ = killpg(group, Signal::SIGKILL);
            }
            let _ = child.wait().await;
            bail!("{program} did not end within {:?} and was killed", script.timeout)
        }
    }
}

/// The processes of this name (`comm`, at most 15 bytes), by their directories: those of `known` that still run, where they
/// are enough, else all. So as long as nothing happens it is `quorum` processes that are looked at, and not the host's.
fn running(proc: &Path, comm: &str, known: Vec<OsString>, quorum: u32) -> Vec<OsString> {
    let known: Vec<OsString> = known.into_iter().filter(|process| runs(&proc.join(process), comm)).collect();
    if known.len() >= quorum as usize {
        return known;
    }
    let Ok(entries) = proc.read_dir() else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name());
    let processes = names.filter(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    processes.filter(|process| runs(&proc.join(process), comm)).collect()
}

/// Whether a process has this name and is alive. A zombie has ended.
fn runs(process: &Path, comm: &str) -> bool {
    if !std::fs::read(process.join("comm")).is_ok_and(|found| found.trim_ascii_end() == comm.as_bytes()) {
        return false;
    }
    // The state follows the last bracket: a name may hold brackets itself.
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Changes in the directory of a file: editors replace files.
fn watch(path: &Path) -> Result<inotify::EventStream<[u8; 1024]>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    let inotify = Inotify::init().context("watch files")?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MODIFY
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM;
    inotify.watches().add(directory, mask).with_context(|| format!("watch {}", directory.display()))?;
    inotify.into_event_stream([0; 1024]).context("watch files")
}

/// The number in a file; None: the file is absent, or holds none.
fn number(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

fn file_change(what: &str, effect: TrackFileEffect, number: Option<i32>) -> Change {
    let what = what.to_owned();
    match effect {
        TrackFileEffect::Fault => Change::Fault { what, present: number != Some(0) },
        TrackFileEffect::Weight(weight) => {
            Change::Weight { what, delta: number.unwrap_or(0).saturating_mul(weight.into()) }
        }
    }
}

/// How often processes are counted.
const PROCESS_INTERVAL: Duration = Duration::from_millis(250);
/// How often a file is read when nothing seems to happen to it (network file systems say nothing).
const FILE_INTERVAL: Duration = Duration::from_secs(5);
const FILE_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TrackEffect;

    #[test]
    fn a_script_rises_and_falls_by_so_many_in_a_row() {
        let mut judge = Judge::new(2, 3);
        let said: Vec<_> = [true, false, false, true, false, false, false, true, false, true, true]
            .map(|good| judge.note(good))
            .into();
        let mut expected = vec![None; 11];
        (expected[0], expected[6], expected[10]) = (Some(true), Some(false), Some(true));
        assert_eq!(said, expected);
        assert_eq!(Judge::new(9, 9).note(false), Some(false), "the first counts at once");
    }

    #[test]
    fn a_file_is_a_fault_or_a_weight() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (text, found) in
            [(None, None), (Some("0\n"), Some(0)), (Some(" -7 x"), Some(-7)), (Some("x"), None)]
        {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            assert_eq!(number(&path), found, "{text:?}");
        }
        let fault = |number| file_change("f", TrackFileEffect::Fault, number);
        let present = |present| Change::Fault { what: "f".into(), present };
        assert_eq!(
            [fault(None), fault(Some(0)), fault(Some(1))],
            [present(true), present(false), present(true)]
        );
        let weight = |number| file_change("f", TrackFileEffect::Weight(-3), number);
        let delta = |delta| Change::Weight { what: "f".into(), delta };
        assert_eq!([weight(None), weight(Some(5))], [delta(0), delta(-15)]);
    }

    #[test]
    fn processes_are_counted_by_name_and_zombies_are_not() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, comm, state) in [
            ("1", "nginx", "S"),
            ("20", "nginx", "Z"),
            ("3", "nginx2", "S"),
            ("self", "nginx", "S"),
            ("4", "a) b", "R"),
        ] {
            let directory = proc.path().join(pid);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("comm"), format!("{comm}\n")).unwrap();
            std::fs::write(directory.join("stat"), format!("{pid} ({comm}) {state} 1 1")).unwrap();
        }
        let count = |comm| running(proc.path(), comm, Vec::new(), 1).len();
        assert_eq!((count("nginx"), count("nginx2"), count("a) b"), count("x")), (1, 1, 1, 0));
    }

    #[test]
    fn processes_that_are_known_and_enough_are_not_looked_for() {
        let proc = tempfile::tempdir().unwrap();
        let start = |pid: &str| {
            let directory = proc.path().join(pid);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("comm"), "nginx\n").unwrap();
            std::fs::write(directory.join("stat"), format!("{pid} (nginx) S 1 1")).unwrap();
        };
        let look = |known: &[&str], quorum| {
            let known = known.iter().map(OsString::from).collect();
            let mut found = running(proc.path(), "nginx", known, quorum);
            found.sort();
            found
        };
        start("1");
        start("2");
        assert_eq!(look(&["1"], 1), ["1"]);
        assert_eq!(look(&["1"], 2), ["1", "2"]);
        std::fs::write(proc.path().join("1/comm"), "sh\n").unwrap();
        assert_eq!(look(&["1"], 1), ["2"], "another program has its number now");
        std::fs::remove_dir_all(proc.path().join("2")).unwrap();
        assert!(look(&["2"], 1).is_empty());
    }

    #[tokio::test]
    async fn a_script_that_takes_too_long_is_killed() {
        let script = |command: &str, timeout| TrackScript {
            name: Name::new("s").unwrap(),
            command: ["/bin/sh", "-c", command].map(str::to_owned).into(),
            interval: Duration::from_secs(1),
            timeout,
            rise: 1,
            fall: 1,
            user: None,
            effect: TrackEffect::Fault,
        };
        let long = Duration::from_secs(60);
        run(&script("exit 0", long)).await.unwrap();
        assert!(run(&script("exit 3", long)).await.unwrap_err().to_string().contains("exit status: 3"));
        let began = Instant::now();
        let error = run(&script("sleep 60", Duration::from_millis(100))).await.unwrap_err().to_string();
        assert!(error.contains("killed") && began.elapsed() < Duration::from_secs(30), "{error}");
    }
}
