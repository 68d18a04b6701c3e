//! Where clients reach a virtual service: `address`, `ports` and `protocol`, or several of these as `endpoints`.

use std::net::IpAddr;

use super::raw::Raw;
use super::reader::{Faults, Field, Map};
use super::service::{PROTOCOLS, encode_ports, ports};
use super::word;
use crate::model::{ENDPOINTS_MAX, Endpoint, Ports, Protocol, VirtualService};

/// The first endpoint, as far as it could be read, and the others.
#[derive(Debug, Default)]
pub struct Where {
    pub address: Option<IpAddr>,
    pub ports: Option<Ports>,
    pub protocol: Option<Protocol>,
    pub others: Vec<Endpoint>,
}

pub fn decode(spec: &mut Map<'_>, faults: &mut Faults) -> Where {
    let Some(field) = spec.get("endpoints") else {
        let (address, ports, protocol) = endpoint(spec, faults);
        return Where { address, ports, protocol, others: Vec::new() };
    };
    for key in ["address", "ports", "protocol"] {
        if let Some(field) = spec.get(key) {
            let fault = faults.add(field.path, "is said by the endpoints").at_key(0);
            fault.help("move it into `endpoints`, as its first entry");
        }
    }
    let what = "a list of endpoints like [{address: 203.0.113.10, ports: [80], protocol: tcp}]";
    let items = field.list(what, ENDPOINTS_MAX, faults).unwrap_or_default();
    if items.is_empty() {
        faults.add(field.path, "has no endpoint");
    }
    let mut all: Vec<(String, Where)> = Vec::new();
    for item in items {
        let Some(mut map) = item.map(what, faults) else { continue };
        let (address, ports, protocol) = endpoint(&mut map, faults);
        map.finish(faults);
        let twin = all.iter().find(|(_, other)| {
            address.is_some() && protocol.is_some() && (other.address, other.protocol) == (address, protocol)
        });
        if let Some((path, _)) = twin {
            let fault = faults.add(item.path.as_str(), format!("has the address and protocol of {path}"));
            fault.help("put all ports of them into one endpoint");
        }
        all.push((item.path, Where { address, ports, protocol, others: Vec::new() }));
    }
    let mut all = all.into_iter().map(|(_, endpoint)| endpoint);
    let mut first = all.next().unwrap_or_default();
    first.others = all
        .filter_map(|Where { address, ports, protocol, .. }| {
            Some(Endpoint { address: address?, ports: ports?, protocol: protocol? })
        })
        .collect();
    first
}

fn endpoint(map: &mut Map<'_>, faults: &mut Faults) -> (Option<IpAddr>, Option<Ports>, Option<Protocol>) {
    (
        map.require("address", faults).and_then(|field: Field<'_>| field.unicast(faults)),
        map.require("ports", faults).and_then(|field| ports(&field, faults)),
        map.require("protocol", faults).and_then(|field| field.one_of(&PROTOCOLS, faults)),
    )
}

pub fn encode(service: &VirtualService) -> Vec<(&'static str, Option<Raw>)> {
    let singles = service.singles();
    let fields = |single: &VirtualService| {
        [
            ("address", Some(Raw::text(single.address))),
            ("ports", Some(encode_ports(&single.ports))),
            ("protocol", Some(word(&PROTOCOLS, single.protocol))),
        ]
    };
    match &singles[..] {
        [only] => fields(only).into(),
        all => {
            let list = all.iter().map(|single| Raw::map(fields(single))).collect();
            vec![("endpoints", Some(Raw::List(list)))]
        }
    }
}
