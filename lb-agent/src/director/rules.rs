//! What of a service's manifest new flows meet: its rules, the list of servers that are walked, and how each real
//! server stands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Director;
use super::drain::Leaver;
use super::service::binding_of;
use crate::model::{Forwarding, Protocol, RealServer, SynCookies, VirtualService};
use crate::plan::{Binding, NextPacket, Rules, Standing};
use crate::scheduler::Candidate;

/// The rules of a service with one endpoint.
pub fn rules(director: &Director, service: &VirtualService) -> Rules {
    let scheduling = &service.scheduling;
    let prefix = scheduling.hash_prefix;
    let hashes = service.scheduler.hashes();
    Rules {
        leader: None,
        counted: has_thresholds(service),
        checked: has_thresholds(service),
        persistence: scheduling.persistence,
        sources: Arc::new(
            scheduling.sources.with_files(|file| director.lists.get(file).map(|nets| &nets[..])),
        ),
        new_per_second: scheduling.new_connections_per_second.unwrap_or(0),
        when_no_server: scheduling.when_no_server,
        fallback: scheduling.fallback,
        one_packet: scheduling.one_packet,
        quic: scheduling.quic,
        ipvs: scheduling.ipvs_compatible,
        application: service.application,
        proxy_protocol: scheduling.proxy_protocol,
        toa: scheduling.toa && service.speaks(Protocol::Tcp),
        syn_cookies: Some(scheduling.syn_cookies)
            .filter(|when| *when != SynCookies::Off && may_send_cookies(service)),
        hash_prefix: (hashes && !prefix.is_whole()).then_some((prefix.v4, prefix.v6)),
    }
}

/// Whether what servers answer comes back through the director, so that it can be made to fit the cookie.
fn may_send_cookies(service: &VirtualService) -> bool {
    service.speaks(Protocol::Tcp) && !service.uses(Forwarding::Dr) && !service.uses(Forwarding::Tun)
}

fn has_thresholds(service: &VirtualService) -> bool {
    service.real_servers.iter().any(|server| server.limits.connections.is_some())
}

/// The servers that the data plane may have to walk, in the order of the manifest; none where it never does. A
/// server keeps its place, its ordinal, while the service runs: what is added fills a gap or comes last. The sorry
/// server, when it takes all new flows, stands alone.
pub fn walked(
    director: &Director,
    service: &VirtualService,
    sorry: Option<&RealServer>,
) -> Vec<Option<Binding>> {
    let scheduling = &service.scheduling;
    let walks = service.scheduler.counts()
        || scheduling.fallback
        || scheduling.persistence.is_some()
        || has_thresholds(service);
    if !walks {
        return Vec::new();
    }
    if let Some(sorry) = sorry {
        return vec![Some(binding_of(service, sorry))];
    }
    let new: Vec<Binding> = service.real_servers.iter().map(|server| binding_of(service, server)).collect();
    let listed: HashSet<Binding> = new.iter().copied().collect();
    let before = director.layout.services.get(&service.name).map(|layout| Arc::clone(&layout.servers));
    let mut places: Vec<Option<Binding>> = before
        .iter()
        .flat_map(|before| before.iter())
        .map(|place| place.filter(|binding| listed.contains(binding)))
        .collect();
    let placed: HashSet<Binding> = places.iter().flatten().copied().collect();
    let mut new = new.into_iter().filter(|binding| !placed.contains(binding));
    for place in places.iter_mut().filter(|place| place.is_none()) {
        *place = new.next();
    }
    places.extend(new.map(Some));
    while places.last().is_some_and(Option::is_none) {
        places.pop();
    }
    places
}

/// The places of servers in their list.
pub fn ordinals(walked: &[Option<Binding>]) -> HashMap<Binding, u16> {
    let places = walked.iter().enumerate();
    places.filter_map(|(place, binding)| Some(((*binding)?, place as u16))).collect()
}

/// How a server stands. Who cannot take new flows has no weight, so that a counting scheduler passes it over and the
/// list of servers need not change; `cut_off` says that packets cannot be sent there.
pub fn standing(
    director: &Director,
    server: &RealServer,
    candidate: &Candidate,
    cut_off: bool,
    leaver: Option<&Leaver>,
    ordinal: u16,
) -> Standing {
    let thresholds = server.limits.connections;
    let reset = leaver.is_some_and(|leaver| leaver.reset);
    // Who is dead to us cannot be told.
    let next_packet = match director.open_way(server.address) {
        _ if !reset => NextPacket::GoesOn,
        Some(_) => NextPacket::ResetBothEnds,
        None => NextPacket::Reset,
    };
    Standing {
        weight: if candidate.eligible() { candidate.weight.into() } else { 0 },
        upper: thresholds.map_or(0, |thresholds| thresholds.max),
        lower: thresholds.and_then(|thresholds| thresholds.resume).unwrap_or(0),
        draining: cut_off || leaver.is_some(),
        next_packet,
        packets_per_second: server.limits.packets_per_second.unwrap_or(0),
        ordinal,
        watched: false,
    }
}
