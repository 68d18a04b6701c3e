//! Which server takes a new flow of a service with rules: docs/datapath.md, "Choosing a server", and
//! docs/scheduling.md. In that order: access list, new flows a second, QUIC, persistence, the scheduler.

use crate::{Ends, Model, Oracle, drops, wire::Packet};
use lb_common::{
    address::Address,
    connection::{Kind, Value},
    destination::flags,
    service::{Pick, Service, features},
    state::State,
    verdict::Reason,
};

/// Slots that a new flow tries, and those that a packet tries that begins none.
const SLOT_TRIES: usize = 64;
const SLOT_TRIES_OF_OTHERS: usize = 8;

/// How the list of servers is walked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Lc,
    Wlc,
    Sed,
    Nq,
    Fo,
    Ovf,
    /// Somebody with less than half the active flows of its weight.
    HalfIdle,
}

/// An address of which only so many bits count.
pub(crate) fn cut(address: &[u8; 16], v6: bool, bits: u8) -> [u8; 16] {
    let kept = if v6 { bits.min(128) } else { bits.min(32) } as u32;
    let mask = if kept == 0 { 0 } else { u128::MAX << (128 - kept) };
    (u128::from_be_bytes(*address) & mask).to_be_bytes()
}

impl Model {
    fn features(&self, service: usize) -> u32 {
        self.record(service).features
    }

    /// Whether more than the slots is asked.
    pub(crate) fn has_rules(&self, service: usize) -> bool {
        self.features(service) & features::RARE != 0
    }

    pub(crate) fn is_persistent(&self, service: usize) -> bool {
        self.features(service) & features::PERSISTENT != 0
    }

    /// The server of a new flow; None: nobody. `avoid` cannot take the flow: limits and persistence were asked before.
    pub(crate) fn choose_by_rules(
        &mut self,
        packet: &Packet,
        service: usize,
        avoid: Option<u32>,
        oracle: &dyn Oracle,
    ) -> Ends<Option<u32>> {
        let record = self.record(service);
        let asks = |feature: u32| record.features & feature != 0;
        if avoid.is_none() {
            if asks(features::ACL) {
                let says = self.config.access_of(record.acl, &packet.ip.source, packet.ip.v6);
                if !says.unwrap_or(!asks(features::ACL_REFUSES_OTHERS)) {
                    return drops(Reason::AccessDenied);
                }
            }
            if asks(features::RATE) && !self.new_flow_fits(&record, oracle) {
                return drops(Reason::NewFlowsLimited);
            }
            if asks(features::QUIC)
                && let Some(named) = self.quic_server(packet, service, &record)
                && self.is_open(named)
            {
                return Ok(Some(named));
            }
            if asks(features::PERSISTENT)
                && let Some(kept) = self.kept(packet, service)
            {
                self.event(Reason::FlowSticky);
                return Ok(Some(kept));
            }
        }
        let chosen = self.schedule(packet, service, avoid);
        if let (Some(chosen), true, None) = (chosen, asks(features::PERSISTENT), avoid) {
            self.keep(packet, service, chosen);
        }
        Ok(chosen)
    }

    /// One more new flow in this second, counted at the leader.
    fn new_flow_fits(&mut self, record: &Service, oracle: &dyn Oracle) -> bool {
        let leader = record.leader as usize;
        let second = oracle.second_of_limit(leader);
        in_this_second(self.limits.entry(leader).or_default(), second, record.new_per_second)
    }

    /// One more packet to a destination in this second.
    pub(crate) fn packet_fits(&mut self, destination: u32, oracle: &dyn Oracle) -> bool {
        let Some(limit) = self.config.rates.get(&destination).copied() else { return true };
        let second = oracle.second_of_rate(destination);
        in_this_second(self.rates.entry(destination).or_default(), second, limit)
    }

    /// The server whose id is in a short header's connection id.
    fn quic_server(&self, packet: &Packet, service: usize, record: &Service) -> Option<u32> {
        let datagram = packet.segment().get(8..)?;
        if datagram.first()? & 0x80 != 0 {
            return None;
        }
        let at = 1 + record.quic_offset as usize;
        // A QUIC packet has eight bytes behind the shortest id.
        let id = datagram.get(at..at + 8)?;
        self.config.quic.get(&(service, id[..record.quic_len as usize].to_vec())).copied()
    }

    /// Who belongs here may be sent here.
    fn is_open(&self, destination: u32) -> bool {
        self.flags(destination) & (flags::CLOSED | flags::VALID) == flags::VALID
    }

    fn is_usable(&self, destination: u32) -> bool {
        self.is_open(destination) && self.has_room(destination)
    }

    /// The place of a client's template, with its prefix.
    fn template(&self, packet: &Packet, service: usize) -> (crate::table::Place, [u8; 16]) {
        let (record, v6) = (self.record(service), packet.ip.v6);
        let bits = if v6 { record.persist_v6 } else { record.persist_v4 };
        let prefix = cut(&packet.ip.source, v6, bits);
        let address = Address::from_v6(prefix);
        let secrets = &self.config.secrets;
        let identity = if v6 {
            secrets.template_v6(address.halves(), record.leader)
        } else {
            secrets.template_v4(address.words()[0], record.leader)
        };
        (self.place_of(identity, v6), prefix)
    }

    /// The server that the client's template names. One that is void is freed.
    fn kept(&mut self, packet: &Packet, service: usize) -> Option<u32> {
        let (place, _) = self.template(packet, service);
        let slot = self.find(&place)?;
        let value = self.value(slot);
        let own = self.named_by_template(service, value.destination());
        let Some(own) = own else {
            self.set(slot, Value::EMPTY);
            return None;
        };
        // Used twice it stays; its deadline is that of the first flow.
        if value.state() == State::Unconfirmed as u8 {
            self.set(slot, value.with(State::Established as u8, value.deadline()));
        }
        Some(own)
    }

    /// A template's server as this endpoint of the group has it; thresholds are not asked.
    fn named_by_template(&self, service: usize, named: u32) -> Option<u32> {
        let target = self.config.destinations[named as usize];
        let own = if target.service as usize == service {
            named
        } else {
            (*self.config.services[service].as_ref()?.servers.get(target.ordinal as usize)?)?
        };
        let (.., weight) = self.load_of(own);
        let quiesced = weight == 0 && self.features(service) & features::STICKY_QUIESCED == 0;
        (self.is_open(own) && !quiesced).then_some(own)
    }

    /// Remembers the client's server. Where there is no room it is not remembered.
    fn keep(&mut self, packet: &Packet, service: usize, chosen: u32) {
        let (place, prefix) = self.template(packet, service);
        let record = self.record(service);
        let deadline = self.now.wrapping_add(record.persist_timeout);
        let word = Value::flow(Kind::Template, chosen, place.first, State::Unconfirmed, deadline);
        self.insert(&place, word, packet.ip.v6, (&prefix, record.leader));
    }

    /// The scheduler's choice.
    fn schedule(&mut self, packet: &Packet, service: usize, avoid: Option<u32>) -> Option<u32> {
        let pick = self.record(service).pick;
        let walks = [
            (Pick::Lc, Rule::Lc),
            (Pick::Wlc, Rule::Wlc),
            (Pick::Sed, Rule::Sed),
            (Pick::Nq, Rule::Nq),
            (Pick::Fo, Rule::Fo),
            (Pick::Ovf, Rule::Ovf),
        ];
        if let Some((_, rule)) = walks.iter().find(|(of, _)| *of as u8 == pick) {
            return self.walk(service, *rule, avoid);
        }
        if pick == Pick::Lblc as u8 {
            return self.locality(service, avoid);
        }
        let cursor = pick == Pick::Cursor as u8;
        let tries = if cursor || self.features(service) & features::FALLBACK != 0 { SLOT_TRIES } else { 1 };
        let slots = self.config.services[service].as_ref()?.slots.clone();
        if !slots.is_empty() {
            let first = if cursor {
                self.turn(service, slots.len())
            } else {
                self.hash_slot(service, &packet.ip.source, packet.ports().0)?
            };
            for n in 0..tries {
                let chosen = slots[(first + n) % slots.len()].checked_sub(1);
                if chosen.is_some() && chosen != avoid && chosen.is_some_and(|chosen| self.is_usable(chosen))
                {
                    return chosen;
                }
            }
        }
        if tries > 1 { self.walk(service, Rule::Wlc, avoid) } else { None }
    }

    /// A turn of the cursor, which is the leader's.
    fn turn(&mut self, service: usize, of: usize) -> usize {
        let leader = self.record(service).leader as usize;
        let at = self.cursors[leader] % of as u64;
        self.cursors[leader] += 1;
        at as usize
    }

    /// The best server of the list. Of equal ones the first, from a start that moves on, or the last.
    fn walk(&mut self, service: usize, rule: Rule, avoid: Option<u32>) -> Option<u32> {
        let servers = self.config.services[service].as_ref()?.servers.clone();
        if servers.is_empty() {
            return None;
        }
        let mut order: Vec<usize> = (0..servers.len()).collect();
        if self.features(service) & features::ROTATE != 0 {
            let start = self.turn(service, servers.len());
            order.rotate_left(start);
        }
        if self.features(service) & features::LAST_FIRST != 0 {
            order.reverse();
        }
        let mut best: Option<(u32, (u64, u64))> = None;
        for at in order {
            let Some(server) = servers[at] else { continue };
            if avoid == Some(server) || !self.has_room(server) {
                continue;
            }
            let (active, inactive, weight) = self.load_of(server);
            let overhead = active * 256 + inactive;
            // What is least is best: a fraction.
            let load = match rule {
                Rule::Lc => (overhead, 1),
                Rule::Wlc => (overhead, weight),
                Rule::Sed => (active + 1, weight),
                Rule::Nq if active == 0 => (0, 1),
                Rule::Nq => (active + 1, weight),
                Rule::Fo => (u64::from(u32::MAX) - weight, 1),
                Rule::Ovf if active > weight => continue,
                Rule::Ovf => (u64::from(u32::MAX) - weight, 1),
                Rule::HalfIdle if active * 2 >= weight => continue,
                Rule::HalfIdle => (0, 1),
            };
            if best.is_none_or(|(_, than)| load.0 * than.1 < than.0 * load.1) {
                best = Some((server, load));
            }
        }
        best.map(|(server, _)| server)
    }

    /// lblc: the server before, unless it has more active flows than its weight and somebody fewer than half of his.
    fn locality(&mut self, service: usize, avoid: Option<u32>) -> Option<u32> {
        if let Some(known) = (self.cached[service] as u32).checked_sub(1)
            && avoid != Some(known)
            && self.is_usable(known)
        {
            let (active, _, weight) = self.load_of(known);
            if active <= weight || self.walk(service, Rule::HalfIdle, avoid).is_none() {
                return Some(known);
            }
        }
        let chosen = self.walk(service, Rule::Wlc, avoid)?;
        self.cached[service] = u64::from(chosen) + 1;
        Some(chosen)
    }

    /// The destination of a flow that nobody remembers, where the slots of a hash service name it.
    pub(crate) fn by_hash(&self, service: usize, client: &[u8; 16], port: u16) -> Option<u32> {
        if self.is_persistent(service) {
            return None;
        }
        let first = self.hash_slot(service, client, port)?;
        let slots = &self.config.services[service].as_ref()?.slots;
        let asked = self.features(service);
        let tries = if asked & features::FALLBACK != 0 { SLOT_TRIES_OF_OTHERS } else { 1 };
        let mut named = (0..tries).filter_map(|n| slots[(first + n) % slots.len()].checked_sub(1));
        named.find(|chosen| asked & features::CHOOSE == 0 || self.is_usable(*chosen))
    }
}

/// Counts one more in a second: whether it is within the limit.
fn in_this_second((known, counted): &mut (u64, u32), second: u64, limit: u32) -> bool {
    if *known != second {
        (*known, *counted) = (second, 0);
    }
    *counted += 1;
    *counted <= limit
}
