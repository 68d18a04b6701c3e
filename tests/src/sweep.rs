//! Clearing away what a killed run left: its namespaces and the programs in them, directories, pins.

use std::fs;
use std::path::Path;
use std::sync::Once;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::BPFFS;
use crate::cgroup;
use crate::namespace::{NAMES, remove};

/// How every name begins that the laboratory gives to something on the host; the pid of its run follows.
pub const PREFIX: &str = "lbt-";

/// Sweeps at the first call in this process. Runs that are alive keep what they have.
pub(crate) fn once() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(dead_runs);
}

/// Removes everything of runs whose process is gone. What cannot be removed is left to the next run: another
/// run may be sweeping at the same time.
pub fn dead_runs() {
    for name in stale(Path::new(NAMES)) {
        for pid in processes_inside(&name) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        remove(&name);
    }
    if let Some(root) = cgroup::root() {
        for name in stale(&root) {
            let _ = fs::remove_dir(root.join(name));
        }
    }
    for root in [std::env::temp_dir().as_path(), Path::new(BPFFS)] {
        for name in stale(root) {
            let _ = fs::remove_dir_all(root.join(name));
        }
    }
}

/// Names in `directory` that a run made which is no longer there.
fn stale(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| maker(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()))
        .collect()
}

/// The pid in a name of ours.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Processes whose network namespace is the one called `name`.
fn processes_inside(name: &str) -> Vec<Pid> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let Some(wanted) = identity(&Path::new(NAMES).join(name)) else { return Vec::new() };
    // A name whose mount is gone is an empty file, which no process's namespace can equal.
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| identity(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(wanted))
        .map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_our_prefix_and_a_pid_are_ours() {
        for (name, expected) in [
            ("lbt-123-0-director", Some(123)),
            ("lbt-123", Some(123)),
            ("lbt--0-director", None),
            ("lbt-x-0", None),
            ("blue", None),
            ("lb-123-0", None),
        ] {
            assert_eq!(maker(name), expected, "{name}");
        }
    }
}
