//! Rules, standings and lists of servers in the words of the tables.

use anyhow::{Context, Result};
use ipnet::IpNet;
use lb_common::service::{NoServer, Pick};

use super::{Applier, destination_key};
use crate::dataplane::tables::{self, Access, OnNextPacket};
use crate::model::health::Flows;
use crate::model::{
    Application, Name, Persistence, PersistenceEngine, Scheduler, ServerId, Sources, SynCookies, WhenNoServer,
};
use crate::plan::{Binding, Destination, Lookup, NextPacket, Rules, Service};

impl Applier {
    /// The rules of a service, with the number of its access list; the list is in the tables by then. `spec` makes
    /// the service of rules: one without a list has an index, and the list's number is made from that.
    pub(super) fn set_service_with_rules(
        &mut self,
        name: &Name,
        service: &Service,
        spec: impl Fn(tables::Rules) -> tables::ServiceSpec,
    ) -> Result<()> {
        let rules = &service.rules;
        let mut plain = self.table_rules(rules);
        // All endpoints of a service share the leader's list.
        let owner = rules.leader.as_ref().unwrap_or(name);
        if rules.sources.is_empty() {
            self.tables.ensure_service(&spec(plain))?;
            return self.forget_sources(name);
        }
        // Never without its list, not even for a moment after a restart.
        let found = match owner == name {
            true => self.tables.find_service(&spec(plain.clone())),
            false => self.tables.service(owner),
        };
        let index = match found {
            Some(index) => index,
            None => self.tables.ensure_service(&spec(plain.clone()))?,
        };
        let list = self.tables.access_list_of(index)?;
        if owner == name {
            self.tables.set_access_list(list, &entries(&rules.sources))?;
        }
        let others = if rules.sources.has_allowed() { Access::Deny } else { Access::Allow };
        plain.access = Some((list, others));
        self.tables.ensure_service(&spec(plain))?;
        Ok(())
    }

    /// Removes the access list of a service that has none, or is no more.
    pub(super) fn forget_sources(&mut self, service: &str) -> Result<()> {
        if let Some(index) = self.tables.service(service) {
            self.tables.forget_access_list(index)?;
        }
        Ok(())
    }

    pub(super) fn set_servers(&mut self, service: &Name, servers: &[Option<Binding>]) -> Result<()> {
        let index = |binding: &Binding| self.index_of(service, binding).map(Some);
        let indices: Vec<Option<u32>> =
            servers.iter().map(|place| place.as_ref().map_or(Ok(None), index)).collect::<Result<_>>()?;
        Ok(self.tables.set_servers(service, &indices)?)
    }

    pub(super) fn set_server_ids(&mut self, service: &Name, ids: &[(ServerId, Binding)]) -> Result<()> {
        let id =
            |(id, binding): &(ServerId, Binding)| Ok((id.bytes().to_vec(), self.index_of(service, binding)?));
        let ids: Vec<(Vec<u8>, u32)> = ids.iter().map(id).collect::<Result<_>>()?;
        Ok(self.tables.set_quic_ids(service, &ids)?)
    }

    fn index_of(&self, service: &Name, binding: &Binding) -> Result<u32> {
        let index = self.tables.destination(&destination_key(service, binding));
        index.with_context(|| format!("real server {binding} is not in the tables"))
    }

    fn table_rules(&self, rules: &Rules) -> tables::Rules {
        let persistence = |persistence: Persistence| tables::Persistence {
            timeout: self.ticks(persistence.timeout),
            prefix_v4: persistence.prefix_v4,
            prefix_v6: persistence.prefix_v6,
            despite_weight_zero: persistence.keep_when_quiesced,
            sip: persistence.engine == PersistenceEngine::Sip,
        };
        tables::Rules {
            leader: rules.leader.as_ref().map(ToString::to_string),
            counted: rules.counted,
            checked: rules.checked,
            persistence: rules.persistence.map(persistence),
            access: None,
            new_per_second: rules.new_per_second,
            no_server: match rules.when_no_server {
                WhenNoServer::Reset => NoServer::Reset,
                WhenNoServer::Unreachable => NoServer::Unreachable,
                WhenNoServer::Drop => NoServer::Drop,
            },
            fallback: rules.fallback,
            one_packet: rules.one_packet,
            quic: rules
                .quic
                .map(|quic| tables::Quic { offset: quic.server_id_offset, len: quic.server_id_length }),
            last_first: rules.ipvs,
            rotate: !rules.ipvs,
            hash_prefix: rules.hash_prefix,
            udp_inactive: rules.ipvs,
            ftp: rules.application == Some(Application::Ftp),
            proxy: rules.proxy_protocol,
            toa: rules.toa,
            cookies: match rules.syn_cookies {
                Some(SynCookies::Auto) => tables::Cookies::Above,
                Some(SynCookies::Always) => tables::Cookies::Always,
                Some(SynCookies::Off) | None => tables::Cookies::Never,
            },
        }
    }
}

fn entries(sources: &Sources) -> Vec<(IpNet, Access)> {
    let allow = sources.allow.iter().map(|net| (*net, Access::Allow));
    allow.chain(sources.deny.iter().map(|net| (*net, Access::Deny))).collect()
}

pub(super) fn pick(lookup: Lookup) -> Pick {
    match lookup {
        Lookup::Cursor => Pick::Cursor,
        Lookup::HashAddress => Pick::HashAddress,
        Lookup::HashAddressPort => Pick::HashAddressPort,
        Lookup::HashDestination => Pick::HashDestination,
        Lookup::IpvsSh { port: false } => Pick::IpvsSh,
        Lookup::IpvsSh { port: true } => Pick::IpvsShPort,
        Lookup::IpvsMh { port: false } => Pick::IpvsMh,
        Lookup::IpvsMh { port: true } => Pick::IpvsMhPort,
        Lookup::Walk(scheduler) => match scheduler {
            Scheduler::Lc => Pick::Lc,
            Scheduler::Sed => Pick::Sed,
            Scheduler::Nq => Pick::Nq,
            Scheduler::Fo => Pick::Fo,
            Scheduler::Ovf => Pick::Ovf,
            Scheduler::Twos => Pick::Twos,
            Scheduler::Lblc => Pick::Lblc,
            Scheduler::Lblcr => Pick::Lblcr,
            Scheduler::Wlc
            | Scheduler::Rr
            | Scheduler::Wrr
            | Scheduler::Sh
            | Scheduler::Dh
            | Scheduler::Mh => Pick::Wlc,
        },
    }
}

/// By the drain, and where there is none by what health says of the server's flows.
pub(super) fn standing(destination: &Destination) -> tables::Standing {
    let Destination { standing, flows, .. } = destination;
    tables::Standing {
        weight: standing.weight,
        upper: standing.upper,
        lower: standing.lower,
        draining: standing.draining || *flows != Flows::Stay,
        on_next_packet: match (standing.next_packet, flows) {
            (NextPacket::ResetBothEnds, _) => OnNextPacket::ResetAndTell,
            (NextPacket::Reset, _) | (_, Flows::Reset) => OnNextPacket::Reset,
            (_, Flows::Move) => OnNextPacket::Move,
            (NextPacket::GoesOn, Flows::Stay | Flows::Keep) => OnNextPacket::GoOn,
        },
        packets_per_second: standing.packets_per_second,
        ordinal: standing.ordinal,
        watched: standing.watched,
    }
}
