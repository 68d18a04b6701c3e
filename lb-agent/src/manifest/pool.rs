//! `kind: LocalAddressPool` as the operator writes it.

use ipnet::IpNet;

use super::raw::Raw;
use super::reader::{Faults, Field, Map, unusable};
use crate::model::{LocalAddressPool, Name, POOL_ADDRESSES_MAX, Share};

pub fn decode(name: Name, mut spec: Map<'_>, faults: &mut Faults) -> LocalAddressPool {
    let addresses = addresses(&mut spec, faults);
    let share = spec.get("share").and_then(|field| share(&field, faults)).unwrap_or_default();
    let address_interface = spec.get("addressInterface").and_then(|field| field.interface_name(faults));
    let vrrp = spec.get("vrrp").and_then(|field| field.name(faults));
    spec.finish(faults);
    LocalAddressPool { name, addresses, share, address_interface, vrrp }
}

fn addresses(spec: &mut Map<'_>, faults: &mut Faults) -> Vec<IpNet> {
    let Some(field) = spec.require("addresses", faults) else { return Vec::new() };
    let mut nets: Vec<IpNet> = Vec::new();
    let Some(items) = field.list("a list of addresses and prefixes", POOL_ADDRESSES_MAX, faults) else {
        return nets;
    };
    if items.is_empty() {
        faults.add(field.path.as_str(), "has no address");
    }
    for item in items {
        let Some(net) = prefix(&item, faults) else { continue };
        if let Some(other) = nets.iter().find(|other| other.contains(&net) || net.contains(*other)) {
            faults.add(item.path, format!("{} overlaps {}", net_text(&net), net_text(other)));
            continue;
        }
        nets.push(net);
    }
    let total: u128 = nets.iter().map(size).sum();
    if total > POOL_ADDRESSES_MAX as u128 {
        faults.add(field.path, format!("{total} addresses are above {POOL_ADDRESSES_MAX}"));
        nets.clear();
    }
    nets
}

/// `10.0.0.200/30`, `10.0.0.5`, `2001:db8::/124`.
fn prefix(field: &Field<'_>, faults: &mut Faults) -> Option<IpNet> {
    let net = field.prefix("an address or a prefix like 10.0.0.200/30", faults)?;
    if size(&net) > POOL_ADDRESSES_MAX as u128 {
        let message = format!("{net} has {} addresses, above {POOL_ADDRESSES_MAX}", size(&net));
        faults.add(field.path.as_str(), message);
        return None;
    }
    for end in [net.network(), net.broadcast()] {
        if let Some(reason) = unusable(end) {
            faults.add(field.path.as_str(), format!("{end} is {reason}"));
            return None;
        }
    }
    Some(net)
}

fn size(net: &IpNet) -> u128 {
    1u128.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u128::MAX)
}

fn share(field: &Field<'_>, faults: &mut Faults) -> Option<Share> {
    let mut map = field.map("a map like {index: 1, of: 2}", faults)?;
    let of = map.require("of", faults).and_then(|of| of.integer(1..=Share::MAX_OF, faults));
    let index = map.require("index", faults);
    let index = index.and_then(|index| index.integer(1..=of.unwrap_or(Share::MAX_OF), faults));
    map.finish(faults);
    Some(Share { index: index?, of: of? })
}

pub fn encode(pool: &LocalAddressPool) -> Raw {
    Raw::map([
        ("addresses", Some(Raw::List(pool.addresses.iter().map(|net| Raw::Text(net_text(net))).collect()))),
        (
            "share",
            Some(Raw::map([
                ("index", Some(Raw::integer(pool.share.index))),
                ("of", Some(Raw::integer(pool.share.of))),
            ])),
        ),
        ("addressInterface", pool.address_interface.as_ref().map(Raw::text)),
        ("vrrp", pool.vrrp.as_ref().map(Raw::text)),
    ])
}

/// A single address without its prefix length.
pub fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}
