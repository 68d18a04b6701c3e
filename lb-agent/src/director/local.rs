//! Real servers that are this director itself: their packets go to its kernel as they came. And which other directors
//! may have chosen it: what they forwarded is not forwarded again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Director;
use crate::model::{Forwarding, RealServer, Resolution, VirtualService};
use crate::plan::{Binding, Destination, Role};

/// What is known of the VIPs of services that have such a server.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// Those that are on no interface of this host.
    absent: BTreeSet<IpAddr>,
    /// Those of which it is not known any more, or not yet, are in neither.
    present: BTreeSet<IpAddr>,
}

/// Why packets of the service are not delivered to this host itself, which is the real server.
pub fn obstacle(director: &Director, service: &VirtualService, server: &RealServer) -> Option<String> {
    let address = server.address;
    if service.forwarding_of(server).translates() {
        // Answers leave by the kernel, and nothing translates them back.
        return Some(format!(
            "{address} is this director, whose own answers are not translated: give it `forwarding: dr`"
        ));
    }
    // What follows a VRRP instance comes and goes with it; a backup delivers whatever it gets.
    let follows =
        director.objects.vrrp_instances().any(|(instance, _)| instance.has_address(service.address));
    (!follows && director.local.absent.contains(&service.address)).then(|| {
        format!(
            "{address} is this director, and {} is none of its addresses: set addressInterface, or add it to lo",
            service.address
        )
    })
}

/// The VIPs of which must be known whether they are this host's.
pub fn asked(director: &Director) -> impl Iterator<Item = IpAddr> {
    let local = director.resolutions.iter().filter(|(_, known)| **known == Resolution::Local);
    let users = local.filter_map(|(address, _)| director.users.get(address)).flatten();
    users.filter_map(|name| Some(director.service(name)?.address))
}

/// Takes note of what is known of an address, if it is such a VIP.
pub fn note(director: &mut Director, address: IpAddr, resolution: &Resolution) {
    if director.users.contains_key(&address) {
        return;
    }
    let services: Vec<_> = director
        .objects
        .services()
        .filter(|(service, _)| service.address == address)
        .map(|(service, _)| service.name.clone())
        .collect();
    if services.is_empty() {
        return;
    }
    let changed = match resolution {
        Resolution::Pending => false,
        Resolution::Local => director.local.present.insert(address) | director.local.absent.remove(&address),
        Resolution::Resolved(_) | Resolution::Failed { .. } => {
            director.local.absent.insert(address) | director.local.present.remove(&address)
        }
    };
    if changed {
        director.stale.extend(services);
    }
}

/// Whether this director is a real server by DR, and somebody else is one too.
pub fn is_peered(destinations: &BTreeMap<Binding, Destination>) -> bool {
    let dr = |local: bool| {
        let mut all = destinations.iter();
        all.any(|(binding, destination)| binding.forwarding == Forwarding::Dr && destination.local == local)
    };
    dr(true) && dr(false)
}

/// The other real servers by DR, (VIP, MAC), of all services of which this director is one too.
pub fn peers(director: &Director) -> BTreeSet<(IpAddr, [u8; 6])> {
    let mut peers = BTreeSet::new();
    for layout in director.layout.services.values() {
        // The roles of a service are few.
        if !layout.roles.contains(&(Role::Peered, layout.service.vip)) {
            continue;
        }
        for (binding, destination) in &layout.destinations {
            if binding.forwarding == Forwarding::Dr
                && !destination.local
                && let Some(way) = director.open_way(binding.address)
            {
                peers.insert((layout.service.vip, way.destination_mac));
            }
        }
    }
    peers
}
