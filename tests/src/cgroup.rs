//! A cgroup of a test's own, for programs that BPF is attached to by cgroup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lb_agent::dataplane::toa_reader::cgroup_root;

use crate::namespace::Namespace;
use crate::sweep::PREFIX;
use crate::wait;

/// A killed process leaves its cgroup a moment after it is reaped.
const PATIENCE: Duration = Duration::from_secs(10);

/// A cgroup of version 2 below the root of those; removed when this is dropped, after whoever is in it.
pub struct Cgroup {
    path: PathBuf,
    /// Where the root was mounted for it, if it had to be.
    mount: Option<PathBuf>,
}

impl Cgroup {
    /// Makes it. Panics where no cgroups of version 2 are mounted and none can be.
    #[track_caller]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Cgroup {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if let Ok(root) = cgroup_root() {
            let path = root.join(&name);
            if fs::create_dir(&path).is_ok() {
                return Cgroup { path, mount: None };
            }
        }
        // A container may have none, or one that it cannot write.
        let mount = std::env::temp_dir().join(format!("{name}-cgroups"));
        fs::create_dir(&mount).unwrap_or_else(|error| panic!("make {}: {error}", mount.display()));
        let output = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&mount).output();
        let output = output.unwrap_or_else(|error| panic!("start mount: {error}"));
        assert!(output.status.success(), "mount cgroups: {}", String::from_utf8_lossy(&output.stderr));
        let path = mount.join(&name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        Cgroup { path, mount: Some(mount) }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As [`Namespace::command`], for a program that is in the cgroup from its beginning.
    pub fn command(&self, namespace: &Namespace, program: &str) -> Command {
        let mut command = namespace.command("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.path.join("cgroup.procs"))
            .arg(program);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What cannot be removed is left to the next run's sweep.
        wait::holds_within(PATIENCE, || fs::remove_dir(&self.path).is_ok());
        if let Some(mount) = &self.mount {
            let _ = Command::new("umount").arg(mount).output();
            let _ = fs::remove_dir(mount);
        }
    }
}

/// The root of cgroups that a sweep looks through.
pub(crate) fn root() -> Option<PathBuf> {
    cgroup_root().ok()
}
