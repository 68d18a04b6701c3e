//! `tunnel` of a service and of a real server, and the Director's `tunnelSources`.

use ipnet::IpNet;

use super::diagnostic::Diagnostic;
use super::objects::Objects;
use super::raw::Raw;
use super::reader::{Faults, Field};
use crate::model::{Encapsulation, Forwarding, RealServer, TunnelSources, TunnelType, VirtualService};

const TYPES: [(&str, TunnelType); 3] =
    [("ipip", TunnelType::Ipip), ("gue", TunnelType::Gue), ("gre", TunnelType::Gre)];

pub fn decode(field: &Field<'_>, faults: &mut Faults) -> Option<Encapsulation> {
    let mut map = field.map("a map like {type: gue, port: 6080}", faults)?;
    let kind = map.require("type", faults).and_then(|field| field.one_of(&TYPES, faults));
    let port = map.get("port");
    let number = port.as_ref().and_then(|port| port.integer(1..=u16::MAX, faults));
    let spread = map.get("spread");
    let spreads = spread.as_ref().and_then(|spread| spread.boolean(faults));
    map.finish(faults);
    let kind = kind?;
    match (kind, &port) {
        (TunnelType::Gue, None) => {
            let fault = faults.add(field.path.as_str(), "gue needs a port");
            fault.help("the UDP port at which real servers unpack: {type: gue, port: 6080}");
            return None;
        }
        (TunnelType::Ipip | TunnelType::Gre, Some(port)) => {
            faults.add(port.path.as_str(), "only gue has a port").at_key(0);
        }
        _ => {}
    }
    if let (TunnelType::Gue, Some(spread)) = (kind, &spread) {
        faults.add(spread.path.as_str(), "gue always spreads, by its source port").at_key(0);
    }
    Some(Encapsulation { kind, port: number.unwrap_or(0), spread: spreads.unwrap_or(false) })
}

pub fn encode(tunnel: Encapsulation) -> Raw {
    Raw::map([
        ("type", Some(super::word(&TYPES, tunnel.kind))),
        ("port", (tunnel.kind == TunnelType::Gue).then(|| Raw::integer(tunnel.port))),
        ("spread", tunnel.spread.then_some(Raw::Bool(true))),
    ])
}

/// A tunnel where nothing is tunnelled.
pub fn check_service(service: &VirtualService, servers: &[(String, RealServer)], faults: &mut Faults) {
    if service.tunnel != Encapsulation::default() && !service.uses(Forwarding::Tun) {
        faults.add("spec.tunnel", "only tun has a tunnel").at_key(0);
    }
    for (path, server) in servers {
        if server.tunnel.is_some() && service.forwarding_of(server) != Forwarding::Tun {
            faults.add(format!("{path}.tunnel"), "only tun has a tunnel").at_key(0);
        }
    }
}

/// The Director's networks.
pub fn sources(field: &Field<'_>, faults: &mut Faults) -> TunnelSources {
    let mut sources = TunnelSources::default();
    let what = "a list of prefixes like [10.200.0.0/16]";
    for item in field.list(what, 2, faults).unwrap_or_default() {
        let Some(net) = item.prefix("a prefix like 10.200.0.0/16", faults) else { continue };
        let path = item.path.as_str();
        if net.max_prefix_len() - net.prefix_len() < 4 || net.prefix_len() == 0 {
            let fault = faults.add(path, format!("{net} is not within /1 and /{}", net.max_prefix_len() - 4));
            fault.help("flows share the addresses: sixteen at least");
            continue;
        }
        let twice = match net {
            IpNet::V4(net) => sources.v4.replace(net).is_some(),
            IpNet::V6(net) => sources.v6.replace(net).is_some(),
        };
        if twice {
            faults.add(path, "a second prefix of this family");
        }
    }
    sources
}

pub fn encode_sources(sources: &TunnelSources) -> Option<Raw> {
    let nets = sources.v4.map(IpNet::from).into_iter().chain(sources.v6.map(IpNet::from));
    let nets: Vec<Raw> = nets.map(Raw::text).collect();
    (!nets.is_empty()).then_some(Raw::List(nets))
}

/// Who varies the source of IPIP needs networks for it.
pub fn check(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let Some((director, _)) = objects.directors().next() else { return };
    for (service, entry) in objects.services() {
        let sorry = service.health.sorry_server.as_deref();
        let lacking = service.real_servers.iter().chain(sorry).find(|server| {
            service.encapsulation_of(server).varies_source()
                && !director.tunnel_sources.covers(server.address.is_ipv6())
        });
        if let Some(server) = lacking {
            let family = if server.address.is_ipv6() { "IPv6" } else { "IPv4" };
            let message = format!("the Director has no {family} network in tunnelSources");
            let help = "ipip spreads by its source address, which must be the director's own: `tunnelSources: \
                        [10.200.0.0/16]` at the Director, and `--from` at the real servers";
            let path = match service.real_servers.iter().position(|other| other == server) {
                Some(index) if server.tunnel.is_some() => format!("spec.realServers[{index}].tunnel"),
                _ => "spec.tunnel".to_owned(),
            };
            found.push(entry.diagnostic(&path, message, Some(help.to_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Source, load_text, parse};
    use super::*;

    fn service(fields: &str) -> String {
        format!(
            "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  address: 203.0.113.10\n  \
             ports: [80]\n  protocol: tcp\n  scheduler: rr\n{fields}"
        )
    }

    fn said(text: String) -> String {
        let parsed = parse(&[Source { file: "m.yaml".into(), text }]);
        parsed.report.to_string()
    }

    #[test]
    fn a_tunnel_is_read_and_what_it_cannot_be_is_refused_with_its_place() {
        let server = "  realServers: [{address: 10.0.0.11}]\n";
        for (fields, expected) in [
            ("  forwarding: tun\n  tunnel: {type: gue, port: 6080}\n", ""),
            ("  forwarding: tun\n  tunnel: {type: gre, spread: true}\n", ""),
            ("  forwarding: tun\n  tunnel: {type: ipip}\n", ""),
            ("  forwarding: tun\n  tunnel: {type: gue}\n", "m.yaml:10:11: spec.tunnel: gue needs a port"),
            ("  forwarding: tun\n  tunnel: {type: gre, port: 1}\n", "spec.tunnel.port: only gue has a port"),
            (
                "  forwarding: tun\n  tunnel: {type: gue, port: 1, spread: true}\n",
                "spec.tunnel.spread: gue always spreads",
            ),
            ("  forwarding: tun\n  tunnel: {type: geneve}\n", "is not one of ipip, gue, gre"),
            ("  forwarding: tun\n  tunnel: {port: 6080}\n", "spec.tunnel.type: is required"),
            ("  forwarding: dr\n  tunnel: {type: gre}\n", "spec.tunnel: only tun has a tunnel"),
        ] {
            let said = said(service(&format!("{fields}{server}")));
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{fields}: {said}");
        }
        let own = "  forwarding: dr\n  realServers: [{address: 10.0.0.11, tunnel: {type: gre}}]\n";
        assert!(said(service(own)).contains("spec.realServers[0].tunnel: only tun has a tunnel"));
    }

    #[test]
    fn a_real_servers_tunnel_overrides_its_services() {
        let text = service(
            "  forwarding: tun\n  tunnel: {type: gue, port: 6080}\n  realServers:\n    - {address: 10.0.0.11}\n    - \
             {address: 10.0.0.12, tunnel: {type: gre}}\n",
        );
        let objects = load_text("m.yaml", &text).unwrap();
        let (service, _) = objects.services().next().unwrap();
        let kinds: Vec<_> = service.real_servers.iter().map(|s| service.encapsulation_of(s)).collect();
        assert_eq!((kinds[0].kind, kinds[0].port), (TunnelType::Gue, 6080));
        assert_eq!(kinds[1], Encapsulation { kind: TunnelType::Gre, ..Encapsulation::default() });
    }

    #[test]
    fn a_varying_source_needs_a_network_of_the_directors() {
        let director = |sources: &str| {
            format!(
                "apiVersion: lb/v1\nkind: Director\nmetadata: {{name: d}}\nspec:\n  interfaces: [{{name: eth0}}]\n{sources}---\n"
            )
        };
        let web = service(
            "  forwarding: tun\n  tunnel: {type: ipip, spread: true}\n  realServers: [{address: 10.0.0.11}]\n",
        );
        for (sources, expected) in [
            ("  tunnelSources: [10.200.0.0/16]\n", ""),
            ("", "spec.tunnel: the Director has no IPv4 network in tunnelSources"),
            ("  tunnelSources: [\"fd00:200::/64\"]\n", "has no IPv4 network"),
            ("  tunnelSources: [10.200.0.0/30]\n", "10.200.0.0/30 is not within /1 and /28"),
            ("  tunnelSources: [10.200.0.1/16]\n", "spec.tunnelSources[0]"),
            ("  tunnelSources: [10.200.0.0/16, 10.201.0.0/16]\n", "a second prefix of this family"),
        ] {
            let said = match load_text("m.yaml", &(director(sources) + &web)) {
                Ok(_) => String::new(),
                Err(report) => report.to_string(),
            };
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{sources}: {said}");
        }
    }
}
