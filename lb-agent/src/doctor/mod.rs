//! `lb-agent doctor`: what this host lacks for a director. This half looks; [`findings`] judges.

pub mod findings;

use std::fs;
use std::path::Path;

use anyhow::Result;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::net::{interfaces, sysctl};
use crate::real_server::report::Report;
use findings::{Host, Nic, findings};

/// Looks at this host and these interfaces, or where none is named at all that are up, but loopback.
///
/// # Errors
/// The system's refusal to list interfaces.
pub fn examine(bpffs_dir: &Path, named: &[String]) -> Result<Report> {
    let there = interfaces::list()?;
    let all = || there.iter().filter(|interface| !interface.loopback).map(|interface| interface.name.clone());
    let names: Vec<String> = if named.is_empty() { all().collect() } else { named.to_vec() };
    let mut nics: Vec<Nic> = names.into_iter().map(nic).collect();
    if named.is_empty() {
        // Nobody said that those should be used.
        nics.retain(|nic| nic.up != Some(false));
    }
    let host = Host {
        release: sysctl::read("kernel/osrelease").unwrap_or_default(),
        version: sysctl::read("kernel/version").unwrap_or_default(),
        preemption: fs::read_to_string("/sys/kernel/debug/sched/preempt").ok(),
        bpffs_dir: bpffs_dir.display().to_string(),
        bpffs: is_bpffs(bpffs_dir),
        jit: number("net/core/bpf_jit_enable"),
        capabilities: capabilities(),
        real_time_share: number("kernel/sched_rt_runtime_us"),
        cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u32,
        interfaces: nics,
        others: all().collect(),
    };
    Ok(Report::new(findings(&host)))
}

fn nic(name: String) -> Nic {
    let Ok(facts) = interfaces::xdp_facts(&name) else {
        return Nic { name, exists: false, ..Nic::default() };
    };
    let attribute = |attribute: &str| fs::read_to_string(format!("/sys/class/net/{name}/{attribute}")).ok();
    let number = |text: Option<String>| text.and_then(|text| text.trim().parse().ok());
    // IFF_UP.
    let flags = attribute("flags")
        .and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
    Nic {
        exists: true,
        // Not readable where /sys is of another network namespace: then nothing is said of it.
        up: flags.map(|flags| flags & 1 != 0),
        mtu: number(attribute("mtu")),
        facts,
        name,
    }
}

/// The directory itself, or the nearest one above it that is there.
fn is_bpffs(dir: &Path) -> bool {
    let there = dir.ancestors().find(|dir| dir.exists());
    there.and_then(|dir| statfs(dir).ok()).is_some_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

fn number(setting: &str) -> Option<i64> {
    sysctl::read(setting).ok()?.parse().ok()
}

/// Those in effect, a bit each (`CapEff` of proc(5)).
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or_default()
}
