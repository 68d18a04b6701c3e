//! What the kernel must allow where it fragments tunnel packets for the director (`tooBigForTunnel: fragment`): their
//! source is an address of its own, and they are not for it.

use super::{Agent, Trouble};
use crate::model::TooBigForTunnel;
use crate::net::sysctl;

/// The complaints about interfaces whose settings, given by `read`, do not let such packets through. The greater of
/// `all` and the interface's own counts (ip-sysctl, Linux 6.1); forwarding is by interface alone.
fn complaints<'a>(
    interfaces: impl Iterator<Item = &'a str>,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let on = |interface: &str, name: &str| {
        read(&format!("net/ipv4/conf/{interface}/{name}")).is_some_and(|value| value.trim() != "0")
    };
    let mut complaints = Vec::new();
    for interface in interfaces {
        let forwards = on(interface, "forwarding");
        let accepts = on(interface, "accept_local") || on("all", "accept_local");
        let missing: Vec<String> = [("forwarding", forwards), ("accept_local", accepts)]
            .into_iter()
            .filter(|(_, is_on)| !is_on)
            .map(|(name, _)| format!("net/ipv4/conf/{interface}/{name}=1"))
            .collect();
        if !missing.is_empty() {
            complaints.push(format!(
                "interface {interface}: the kernel drops what it should fragment (packets.tooBigForTunnel): sysctl -w {}",
                missing.join(" ")
            ));
        }
    }
    complaints
}

impl Agent {
    /// Looks at the settings and names what is missing.
    pub(super) fn check_forwarding(&mut self) {
        let wanted = self.running.packets.too_big_for_tunnel == TooBigForTunnel::Fragment;
        let interfaces = self.running.interfaces.iter().map(|interface| interface.name.as_str());
        let problems =
            if wanted { complaints(interfaces, |path| sysctl::read(path).ok()) } else { Vec::new() };
        self.trouble(Trouble::Forwarding, problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_out() {
        let said = |on: &[&str]| {
            complaints(["eth0", "eth1.5"].into_iter(), |path| {
                Some(
                    if on.iter().any(|on| path == format!("net/ipv4/conf/{on}")) { "1\n" } else { "0\n" }
                        .into(),
                )
            })
        };
        let all = ["eth0/forwarding", "eth1.5/forwarding", "all/accept_local"];
        assert_eq!(said(&all), Vec::<String>::new());
        assert_eq!(said(&["eth0/forwarding", "eth1.5/forwarding", "eth0/accept_local"]).len(), 1);
        let none = said(&[]);
        assert_eq!(none.len(), 2);
        assert!(
            none[1]
                .ends_with("sysctl -w net/ipv4/conf/eth1.5/forwarding=1 net/ipv4/conf/eth1.5/accept_local=1"),
            "{none:?}"
        );
    }
}
