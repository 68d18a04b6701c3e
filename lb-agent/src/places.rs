//! Where an agent keeps its things, as every command is told: by option, by environment, or by default. So
//! many agents can run on one host.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Directories")]
pub struct Places {
    /// What outlives a reboot: applied objects, what `real-server up` did
    #[arg(long, global = true, env = "LB_STATE_DIR", default_value = "/var/lib/lb", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// The agent's socket
    #[arg(long, global = true, env = "LB_RUNTIME_DIR", default_value = "/run/lb", value_name = "DIR")]
    pub runtime_dir: PathBuf,
    /// On a BPF file system: pinned maps and programs
    #[arg(long, global = true, env = "LB_BPFFS_DIR", default_value = "/sys/fs/bpf/lb", value_name = "DIR")]
    pub bpffs_dir: PathBuf,
}
