//! `spec.realPath` of the Director: where probes on the real path begin.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::HostFacts;
use super::diagnostic::Diagnostic;
use super::objects::{Entry, Objects};
use super::raw::Raw;
use super::reader::{Faults, Field};
use crate::model::health::Path;
use crate::model::{RealPathNetworks, VirtualService};

pub fn decode(field: &Field<'_>, faults: &mut Faults) -> Option<RealPathNetworks> {
    let mut map = field.map("a map like {v4: 198.18.0.0/17}", faults)?;
    let default = RealPathNetworks::default();
    let v4 = map.get("v4").and_then(|field| network(&field, default.v4.into(), faults));
    let v6 = map.get("v6").and_then(|field| network(&field, default.v6.into(), faults));
    map.finish(faults);
    let v4 = match v4 {
        Some(IpNet::V4(net)) => net,
        _ => default.v4,
    };
    let v6 = match v6 {
        Some(IpNet::V6(net)) => net,
        _ => default.v6,
    };
    Some(RealPathNetworks { v4, v6 })
}

/// A network of the family of `like`, with room enough.
fn network(field: &Field<'_>, like: IpNet, faults: &mut Faults) -> Option<IpNet> {
    let what = format!("a prefix like {like}");
    let text = field.text(&what, faults)?;
    let parsed = match like {
        IpNet::V4(_) => text.parse::<Ipv4Net>().map(IpNet::from),
        IpNet::V6(_) => text.parse::<Ipv6Net>().map(IpNet::from),
    };
    let Ok(net) = parsed else {
        field.expected(&what, faults);
        return None;
    };
    let path = field.path.as_str();
    if net.trunc() != net {
        let fault = faults.add(path, format!("{net} is not the beginning of a prefix"));
        fault.help(format!("the prefix is {}", net.trunc()));
        return None;
    }
    let longest = if net.addr().is_ipv4() { RealPathNetworks::V4_MAX } else { RealPathNetworks::V6_MAX };
    if net.prefix_len() > longest || net.prefix_len() == 0 {
        let fault = faults.add(path, format!("{net} is not within /1 and /{longest}"));
        fault.help("each real server of each VIP that is probed needs an address");
        return None;
    }
    let unusable = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_multicast() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local() || u128::from(v6) >> 96 == 0,
    };
    if unusable(net.network()) || unusable(net.broadcast()) {
        faults.add(path, format!("{net} holds addresses that are no host's"));
        return None;
    }
    Some(net)
}

pub fn encode(networks: &RealPathNetworks) -> Raw {
    Raw::map([("v4", Some(Raw::text(networks.v4))), ("v6", Some(Raw::text(networks.v6)))])
}

/// Whether a check of the service goes, or may go, the real path.
fn uses(service: &VirtualService) -> bool {
    service.real_servers.iter().any(|server| {
        let method = service.forwarding_of(server);
        let checks = service.health.probation_checks_of(server);
        checks.iter().any(|check| check.path_of(method) == Path::Real)
    })
}

/// What the networks must not hold: addresses of services and of the host.
pub fn check(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let Some((director, entry)) = objects.directors().next() else { return };
    let networks = director.real_path;
    let mut taken = |address: IpAddr, what: String| {
        if networks.contains(address) {
            found.push(collides(entry, address, &format!("{address} is {what}")));
        }
    };
    let servers =
        |service: &VirtualService| service.real_servers.iter().map(|s| s.address).collect::<Vec<_>>();
    let mut used: Vec<&VirtualService> = objects.services().map(|(service, _)| service).collect();
    used.sort_by_key(|service| service.name.clone());
    if !used.iter().any(|service| uses(service)) {
        return;
    }
    for service in used {
        for address in service.addresses() {
            taken(address, format!("the address of service {}", service.name));
        }
        for address in servers(service) {
            taken(address, format!("a real server of service {}", service.name));
        }
    }
}

/// As [`check`], against the host's own networks.
pub fn check_against_host(objects: &Objects, host: &HostFacts, found: &mut Vec<Diagnostic>) {
    let Some((director, entry)) = objects.directors().next() else { return };
    if !objects.services().any(|(service, _)| uses(service)) {
        return;
    }
    let own = |name: &str| name.starts_with(crate::model::PROBER_LINK);
    for interface in host.interfaces.iter().filter(|interface| !own(&interface.name)) {
        for net in &interface.networks {
            let overlaps = director
                .real_path
                .all()
                .into_iter()
                .any(|ours| ours.contains(&net.network()) || net.trunc().contains(&ours.network()));
            // A default route's worth of addresses is no network of anybody's.
            if overlaps && net.prefix_len() > 0 {
                let message = format!("{} is a network of interface `{}`", net.trunc(), interface.name);
                found.push(collides(entry, net.addr(), &message));
            }
        }
    }
}

fn collides(entry: &Entry, address: IpAddr, message: &str) -> Diagnostic {
    let field = if address.is_ipv4() { "spec.realPath.v4" } else { "spec.realPath.v6" };
    let help = "take a network that nobody uses, or `path: direct` in every check";
    entry.diagnostic(field, message.to_owned(), Some(help.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::{HostInterface, Source, load_text, parse};
    use super::*;

    const DIRECTOR: &str =
        "apiVersion: lb/v1\nkind: Director\nmetadata: {name: d}\nspec:\n  interfaces: [{name: eth0}]\n";

    fn service(vip: &str, check: &str) -> String {
        format!(
            "---\napiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec: {{address: {vip}, ports: [80], \
             protocol: tcp, forwarding: dr, scheduler: rr, realServers: [{{address: 10.0.0.11}}]{check}}}\n"
        )
    }

    #[test]
    fn networks_are_read_and_refused_with_their_place() {
        for (field, expected) in [
            ("{v4: 10.64.0.0/16}", ""),
            ("{v6: \"fd00:1::/96\"}", ""),
            ("{v4: 10.64.0.0/18}", "m.yaml:6:18: spec.realPath.v4: 10.64.0.0/18 is not within /1 and /17"),
            ("{v4: 10.64.0.1/16}", "spec.realPath.v4: 10.64.0.1/16 is not the beginning of a prefix"),
            ("{v4: \"fd00::/64\"}", "spec.realPath.v4: `fd00::/64` is not a prefix like 198.18.0.0/17"),
            ("{v6: \"fd00::/112\"}", "spec.realPath.v6: fd00::/112 is not within /1 and /96"),
            ("{v4: 127.0.0.0/16}", "spec.realPath.v4: 127.0.0.0/16 holds addresses that are no host's"),
            ("{v7: 1}", "spec.realPath.v7: unknown field"),
        ] {
            let text = format!("{DIRECTOR}  realPath: {field}\n");
            let parsed = parse(&[Source { file: "m.yaml".into(), text }]);
            let said = parsed.report.to_string();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{field}: {said}");
        }
    }

    #[test]
    fn a_network_that_others_use_is_refused_where_a_check_goes_there() {
        let checked = ", healthCheck: tcp";
        for (vip, check, field, expected) in [
            ("198.18.0.9", checked, "", "spec.realPath.v4: 198.18.0.9 is the address of service web"),
            ("198.18.0.9", ", healthCheck: {tcp: {}, path: direct}", "", ""),
            ("198.18.0.9", checked, "  realPath: {v4: 172.16.0.0/16}\n", ""),
            (
                "203.0.113.9",
                checked,
                "  realPath: {v4: 10.0.0.0/8}\n",
                "10.0.0.11 is a real server of service web",
            ),
        ] {
            let said = match load_text("m.yaml", &format!("{DIRECTOR}{field}{}", service(vip, check))) {
                Ok(_) => String::new(),
                Err(report) => report.to_string(),
            };
            assert!(
                said.contains(expected) && said.is_empty() == expected.is_empty(),
                "{vip}{field}: {said}"
            );
        }
        let objects = load_text("m.yaml", &format!("{DIRECTOR}{}", service("203.0.113.9", checked))).unwrap();
        let interface = |name: &str, net: &str| HostInterface {
            name: name.into(),
            addresses: Vec::new(),
            networks: vec![net.parse().unwrap()],
            vlan_of: None,
        };
        for (name, net, collides) in [
            ("eth0", "198.18.3.4/24", true),
            ("eth0", "198.18.0.1/15", true),
            ("eth0", "198.19.0.1/16", false),
            ("lb-probe", "198.18.64.1/32", false),
        ] {
            let mut found = Vec::new();
            let host = HostFacts { interfaces: vec![interface(name, net)] };
            check_against_host(&objects, &host, &mut found);
            assert_eq!(found.len(), usize::from(collides), "{name} {net}");
        }
    }
}
