//! The sysctls of a real server: what each must be and why, what to write, and how to put it back. Reading
//! and writing is at the bottom; everything else is pure.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What a value must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// At least this; higher values are stricter in the same sense.
    AtLeast(u32),
    /// Not 1: strict reverse path filtering looks at the interface that a tunnelled packet came out of, where
    /// no route to the client goes. 0 (off) and 2 (loose) let it pass.
    NotStrict,
}

impl Rule {
    /// What to write over `current`, or `None` where it will do.
    pub fn next(self, current: u32) -> Option<u32> {
        match self {
            Rule::AtLeast(least) => (current < least).then_some(least),
            Rule::NotStrict => (current == 1).then_some(0),
        }
    }
}

/// One setting of an interface's IPv4 configuration. The kernel uses the larger of the interface's value and
/// that of `all` for each of them (Documentation/networking/ip-sysctl.rst).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    pub name: &'static str,
    pub rule: Rule,
    pub why: &'static str,
}

/// What a host needs that has a VIP on lo beside the director on the same segment.
pub const SETTINGS: [Setting; 3] = [
    Setting {
        name: "arp_ignore",
        rule: Rule::AtLeast(1),
        why: "or this host answers ARP for the VIP and clients bypass the director",
    },
    Setting {
        name: "arp_announce",
        rule: Rule::AtLeast(2),
        why: "or this host's ARP requests name the VIP and turn the neighbours' caches to it",
    },
    Setting {
        name: "rp_filter",
        rule: Rule::NotStrict,
        why: "or packets whose way back is another interface are dropped without a trace",
    },
];

/// A value that was changed, with what is needed to put it back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Interface, or `all`.
    pub interface: String,
    pub name: String,
    pub before: u32,
    pub after: u32,
}

impl Change {
    /// The name as `sysctl` takes it; an interface's dots are slashes there.
    pub fn key(&self) -> String {
        key(&self.interface, &self.name)
    }
}

/// `net.ipv4.conf.INTERFACE.NAME`, with the interface's dots written as `sysctl` wants them.
pub fn key(interface: &str, name: &str) -> String {
    format!("net.ipv4.conf.{}.{name}", interface.replace('.', "/"))
}

/// The changes that the settings need on these interfaces, given what is there.
pub fn changes(interfaces: &[&str], read: impl Fn(&str, &str) -> Result<u32>) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for setting in &SETTINGS {
        for &interface in interfaces {
            let before = read(interface, setting.name)?;
            if let Some(after) = setting.rule.next(before) {
                changes.push(Change {
                    interface: interface.into(),
                    name: setting.name.into(),
                    before,
                    after,
                });
            }
        }
    }
    Ok(changes)
}

/// Adds changes to those recorded: a value that was changed before keeps its first `before`, so that `down`
/// brings back what was there at the very beginning.
pub fn remember(recorded: &mut Vec<Change>, new: &[Change]) {
    for change in new {
        match recorded.iter_mut().find(|old| old.interface == change.interface && old.name == change.name) {
            Some(old) => old.after = change.after,
            None => recorded.push(change.clone()),
        }
    }
}

/// What `down` writes: `before`, unless someone has changed the value since; theirs is newer than ours.
pub fn restored(change: &Change, current: u32) -> Option<u32> {
    (current == change.after && current != change.before).then_some(change.before)
}

fn path(interface: &str, name: &str) -> PathBuf {
    // Follows the network namespace of the reading thread, whatever is mounted on /sys.
    PathBuf::from("/proc/sys/net/ipv4/conf").join(interface).join(name)
}

/// Reads one value.
///
/// # Errors
/// No such interface, or a value that is no number.
pub fn read(interface: &str, name: &str) -> Result<u32> {
    let path = path(interface, name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds {:?}", path.display(), text.trim()))
}

/// Writes one value.
///
/// # Errors
/// As the kernel says; without root that it is not permitted.
pub fn write(interface: &str, name: &str, value: u32) -> Result<()> {
    let path = path(interface, name);
    fs::write(&path, format!("{value}\n")).with_context(|| format!("write {value} to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn change(name: &str, before: u32, after: u32) -> Change {
        Change { interface: "eth0".into(), name: name.into(), before, after }
    }

    #[test]
    fn only_values_that_will_not_do_are_changed() {
        for (rule, current, next) in [
            (Rule::AtLeast(1), 0, Some(1)),
            (Rule::AtLeast(1), 1, None),
            (Rule::AtLeast(1), 2, None),
            (Rule::AtLeast(2), 1, Some(2)),
            (Rule::NotStrict, 0, None),
            (Rule::NotStrict, 1, Some(0)),
            (Rule::NotStrict, 2, None),
        ] {
            assert_eq!(rule.next(current), next, "{rule:?} at {current}");
        }
    }

    #[test]
    fn a_host_set_up_rightly_needs_no_change_and_a_fresh_one_all() {
        let values = |good: bool| -> HashMap<&str, u32> {
            if good {
                [("arp_ignore", 1), ("arp_announce", 2), ("rp_filter", 2)].into()
            } else {
                [("arp_ignore", 0), ("arp_announce", 0), ("rp_filter", 1)].into()
            }
        };
        let of = |good| changes(&["all", "eth0"], move |_, name| Ok(values(good)[name])).unwrap();
        assert_eq!(of(true), []);
        assert_eq!(of(false).len(), 6);
    }

    #[test]
    fn a_second_up_keeps_the_first_value_to_go_back_to() {
        let mut recorded = vec![change("rp_filter", 2, 0)];
        remember(&mut recorded, &[change("rp_filter", 1, 0), change("arp_ignore", 0, 1)]);
        assert_eq!(recorded, [change("rp_filter", 2, 0), change("arp_ignore", 0, 1)]);
    }

    #[test]
    fn down_restores_only_what_nobody_has_changed_since() {
        assert_eq!(restored(&change("arp_announce", 0, 2), 2), Some(0));
        assert_eq!(restored(&change("arp_announce", 0, 2), 1), None);
        assert_eq!(restored(&change("arp_announce", 2, 2), 2), None);
    }

    #[test]
    fn an_interfaces_dot_is_a_slash_for_sysctl() {
        assert_eq!(key("eth0.100", "arp_ignore"), "net.ipv4.conf.eth0/100.arp_ignore");
    }
}
