//! Which interface answers ARP for a VRRP instance's address. Linux answers on any interface for any address of
//! the host (`arp_ignore` 0), and announces them from any (`arp_announce` 0); the lease can keep silent only where
//! the programs are. So with VRRP the kernel answers only on the interface that has the address, which is one of
//! the Director's. The former settings are put back on release.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Agent;
use crate::net::sysctl;

/// Settings and the least value of each. Those of `all` count for every interface, also for ones to come: the
/// kernel takes the greater of `all` and the interface's own (ip-sysctl, Linux 6.1).
const WANTED: [(&str, u32); 2] = [("net/ipv4/conf/all/arp_ignore", 1), ("net/ipv4/conf/all/arp_announce", 2)];

/// Former values by setting.
pub type Former = BTreeMap<String, String>;

/// What is to be written of these present values, and what they were before the agent touched them: `former` if it
/// did so already.
fn raise(present: &Former, former: &Former) -> (Former, Former) {
    let (mut writes, mut remembered) = (Former::new(), former.clone());
    for (setting, least) in WANTED {
        let Some(value) = present.get(setting) else { continue };
        if value.parse::<u32>().is_ok_and(|value| value < least) {
            writes.insert(setting.into(), least.to_string());
            remembered.entry(setting.into()).or_insert_with(|| value.clone());
        }
    }
    (writes, remembered)
}

/// What is to be written to have the former values again. What somebody else has changed since stays.
fn put_back(present: &Former, former: &Former) -> Former {
    let ours = |setting: &str| {
        let least = WANTED.iter().find(|(name, _)| *name == setting).map(|(_, least)| least.to_string());
        present.get(setting) == least.as_ref()
    };
    former.iter().filter(|(setting, _)| ours(setting)).map(|(s, v)| (s.clone(), v.clone())).collect()
}

fn present() -> Result<Former> {
    WANTED.iter().map(|(setting, _)| Ok(((*setting).to_owned(), sysctl::read(setting)?))).collect()
}

fn write(values: &Former) -> Result<()> {
    for (setting, value) in values {
        if sysctl::write(setting, value)? {
            tracing::info!("{} = {value}", setting.replace('/', "."));
        }
    }
    Ok(())
}

impl Agent {
    /// With VRRP and a lease: only the interface of an address answers for it. Without: as it was.
    pub(super) fn settle_arp(&mut self, vrrp: bool) -> Result<()> {
        if self.arp_settled == Some(vrrp) {
            return Ok(());
        }
        let former = self.state.load_kernel_settings()?;
        if vrrp {
            let (writes, remembered) = raise(&present()?, &former);
            // First: a kill between the two must not lose what was.
            if remembered != former {
                self.state.save_kernel_settings(&remembered)?;
            }
            write(&writes)?;
        } else if !former.is_empty() {
            write(&put_back(&present()?, &former))?;
            self.state.save_kernel_settings(&Former::new())?;
        }
        self.arp_settled = Some(vrrp);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(ignore: &str, announce: &str) -> Former {
        [(WANTED[0].0.to_owned(), ignore.to_owned()), (WANTED[1].0.to_owned(), announce.to_owned())].into()
    }

    #[test]
    fn settings_are_raised_never_lowered_and_remembered_once() {
        let (writes, former) = raise(&values("0", "0"), &Former::new());
        assert_eq!((&writes, &former), (&values("1", "2"), &values("0", "0")));
        // A restart finds its own values, or some that an operator has lowered again.
        assert_eq!(raise(&values("1", "2"), &former), (Former::new(), former.clone()));
        assert_eq!(raise(&values("0", "2"), &former).1, former);
        assert_eq!(raise(&values("2", "2"), &Former::new()), (Former::new(), Former::new()));
    }

    #[test]
    fn what_was_is_put_back_unless_somebody_else_set_it() {
        let former = values("0", "1");
        assert_eq!(put_back(&values("1", "2"), &former), former);
        let changed = put_back(&values("2", "2"), &former);
        assert_eq!(changed.into_values().collect::<Vec<_>>(), ["1"]);
        assert!(put_back(&values("1", "2"), &Former::new()).is_empty());
    }
}
