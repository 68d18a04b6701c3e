//! Where the kernel could answer for a VRRP instance's address, there must be the program: it alone can keep the
//! address silent when the agent is dead.

use super::Objects;
use super::check::HostFacts;
use super::diagnostic::Diagnostic;

/// An instance's addresses are on interfaces of the Director, or on VLANs above one. A director without interfaces
/// has no lease, and says so in its status.
pub fn check_against_host(objects: &Objects, host: &HostFacts, found: &mut Vec<Diagnostic>) {
    let Some(director) = objects.director() else { return };
    let has_program = |name: &str| director.interfaces.iter().any(|interface| interface.name == name);
    if director.interfaces.is_empty() {
        for (instance, entry) in objects.vrrp_instances().filter(|(instance, _)| !instance.accept) {
            let message =
                "the Director has no interfaces, and so no program that could keep packets from the kernel";
            let help = format!("add {} to spec.interfaces of the Director", instance.interface);
            found.push(entry.diagnostic("spec.accept", message.to_owned(), Some(help)));
        }
        return;
    }
    for (instance, entry) in objects.vrrp_instances() {
        let vmac = instance.vmac.interface_name(instance.vrid, instance.is_ipv4());
        let mut check = |path: String, name: &str| {
            // A virtual MAC's interface stands on the instance's, and frames reach that first.
            let find = |name: &str| host.interfaces.iter().find(|interface| interface.name == name);
            if find(name).is_none() || vmac.as_deref() == Some(name) || name == "lo" {
                return;
            }
            // A VLAN may stand on another (802.1ad), and that on hardware.
            let below = |name: &&str| find(name).and_then(|interface| interface.vlan_of.as_deref());
            let carriers: Vec<&str> = std::iter::successors(Some(name), below).take(4).collect();
            if carriers.iter().any(|name| has_program(name)) {
                return;
            }
            let message = format!(
                "interface `{name}` is none of the Director's: were the agent to die, nothing would keep the \
                 kernel there from answering for the address"
            );
            let help = format!("add {} to spec.interfaces of the Director", carriers[carriers.len() - 1]);
            found.push(entry.diagnostic(&path, message, Some(help)));
        };
        check("spec.interface".into(), &instance.interface);
        for (list, addresses) in
            [("addresses", &instance.addresses), ("excludedAddresses", &instance.excluded_addresses)]
        {
            for (index, address) in addresses.iter().enumerate() {
                if let Some(name) = &address.interface {
                    check(format!("spec.{list}[{index}].interface"), name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::manifest::{HostFacts, HostInterface, check_against_host, load_text};

    fn said(interface: &str, interfaces: &str) -> Vec<String> {
        said_with(interface, interfaces, "")
    }

    fn said_with(interface: &str, interfaces: &str, field: &str) -> Vec<String> {
        let text = format!(
            "apiVersion: lb/v1\nkind: Director\nmetadata: {{name: a}}\nspec: {{interfaces: [{interfaces}]}}\n---\n\
             apiVersion: lb/v1\nkind: VrrpInstance\nmetadata: {{name: edge}}\nspec: {{interface: {interface}, \
             virtualRouterId: 51, addresses: [203.0.113.10/24]{field}}}\n"
        );
        let objects = load_text("test.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
        let own = |name: &str, below: Option<&str>| HostInterface {
            name: name.into(),
            addresses: vec!["203.0.113.1".parse().unwrap()],
            networks: vec!["203.0.113.1/24".parse().unwrap()],
            vlan_of: below.map(str::to_owned),
        };
        let host =
            HostFacts { interfaces: vec![own("eth0", None), own("eth1", None), own("lan", Some("eth0"))] };
        check_against_host(&objects, &host).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_instance_is_on_an_interface_that_has_the_program() {
        assert_eq!(said("eth0", "{name: eth0}, {name: eth1}"), [""; 0]);
        assert_eq!(said("lan", "{name: eth0}"), [""; 0], "its frames come in by eth0");
        assert_eq!(said("eth1", ""), [""; 0], "without any there is no lease to keep");
        for (interface, missing) in [("eth1", "add eth1"), ("lan", "add eth0")] {
            let listed = if missing == "add eth0" { "{name: eth1}" } else { "{name: eth0}" };
            let said = said(interface, listed).join("\n");
            assert!(said.contains(&format!("interface `{interface}` is none of the Director's")), "{said}");
        }
    }

    #[test]
    fn only_the_program_can_refuse_what_the_kernel_would_take() {
        assert_eq!(said_with("eth0", "{name: eth0}", ", accept: false"), [""; 0]);
        assert_eq!(said_with("eth0", "", ", accept: true"), [""; 0]);
        let said = said_with("eth0", "", ", accept: false").join("\n");
        assert!(said.contains("spec.accept: the Director has no interfaces"), "{said}");
        assert!(said.contains("add eth0 to spec.interfaces"), "{said}");
    }
}
