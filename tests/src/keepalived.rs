//! A real keepalived in a namespace, as the other director of a virtual router.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::namespace::{Namespace, next_number};
use crate::process::Process;

/// A running keepalived; it ends, and says goodbye, when this is dropped.
pub struct Keepalived {
    process: Process,
}

/// It ends within a second; a busy machine takes longer.
const STOP: Duration = Duration::from_secs(10);
/// What it writes when it does not like what it hears.
const COMPLAINTS: [&str; 3] = ["invalid", "mismatch", "expected"];

impl Keepalived {
    /// Starts it with this configuration, of which the global part is made here.
    #[track_caller]
    pub fn start(namespace: &Namespace, configuration: &str) -> Keepalived {
        let directory = namespace.directory().join(format!("keepalived-{}", next_number()));
        std::fs::create_dir_all(&directory).expect("make keepalived's directory");
        let file = directory.join("keepalived.conf");
        let globals = "global_defs {\n  router_id lab\n  enable_script_security\n  script_user root\n}\n";
        std::fs::write(&file, format!("{globals}{configuration}")).expect("write keepalived's configuration");
        let mut command = namespace.command("keepalived");
        command.args(["-n", "-l", "-D", "-P", "-f"]).arg(&file);
        command.arg("-p").arg(directory.join("pid")).arg("-r").arg(directory.join("vrrp.pid"));
        let process = Process::spawn("keepalived", command, &directory.join("log"));
        Keepalived { process }
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Panics with its words if it does not like what it hears.
    #[track_caller]
    pub fn assert_content(&self) {
        let log = self.log();
        for line in log.lines() {
            let lower = line.to_ascii_lowercase();
            let complains = COMPLAINTS.iter().any(|word| lower.contains(word));
            assert!(!complains, "keepalived complains: {line}\nin all:\n{log}");
        }
    }

    /// Asks it to stop, which it says to the others (priority 0), and waits.
    #[track_caller]
    pub fn stop(mut self) -> String {
        self.process.end_with(Signal::SIGTERM, STOP);
        self.log()
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        // Its children end with it only if it is asked.
        if self.process.exit_status().is_none() {
            self.process.signal(Signal::SIGTERM);
            crate::wait::holds_within(STOP, || self.process.exit_status().is_some());
        }
    }
}
