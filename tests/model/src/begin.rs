//! Packets of no flow, and SYNs: which service, whether a flow begins, which server, and its entries.

use crate::{
    Ends, Fate, Lease, Model, Oracle, Own, answer, drops, passes,
    rewrite::{Edit, Link},
    states::{self, Direction},
    table::Place,
    wire::Packet,
};
use lb_common::{
    connection::{HOP_ON_LINK, Kind, Value},
    destination::{Forwarding, flags},
    hash,
    service::{NoServer, OnUnknownFlow, Pick, features},
    state::{RST, SYN, State},
    verdict::Reason,
};

/// Servers that a NAT flow tries whose reply would be another flow's.
const NAT_TRIES: u32 = 4;

/// What became of a packet whose flow is known.
enum TakenUp {
    Sent(Fate),
    /// The entry was given back: a flow begins, with this event. It had this lease.
    Anew(Reason, Option<u32>),
}

/// A choice of a server.
#[derive(Clone, Copy)]
enum Choice {
    /// A place in the service's slots.
    Slot(usize),
    /// A destination, by the service's rules.
    Server(u32),
}

impl Model {
    /// A packet with whole headers that no flow takes as it is.
    pub(crate) fn begins(&mut self, packet: Packet, own: Option<Own>, oracle: &dyn Oracle) -> Ends<Fate> {
        self.ours(&packet, own)?;
        if !packet.is_honest() {
            return drops(Reason::BadTransport);
        }
        let (udp, flags) = (packet.transport.udp, packet.flags());
        let (_, port) = packet.ports();
        let Some(service) = self.config.service_of(&packet.ip.destination, packet.ip.v6, udp, port) else {
            return passes(Reason::NoService);
        };
        let syn = flags & SYN != 0;
        if !udp && !states::is_sent(flags) {
            return drops(Reason::BadFlags);
        }
        let mut packet = packet;
        if syn {
            let before_data = packet.transport.l4 - packet.ip.l3 + (packet.segment()[12] >> 4) as usize * 4;
            if self.record(service).features & features::PROXY != 0 && packet.ip.length > before_data {
                return drops(Reason::FastOpenRefused);
            }
            packet = self.clamp(packet, service);
        }
        let place = self.client_place(&packet);
        let (mut event, mut before) = (Reason::FlowNew, None);
        if let Some(slot) = self.find(&place) {
            match self.take_up(&mut packet, slot, &place)? {
                TakenUp::Sent(fate) => return Ok(fate),
                TakenUp::Anew(why, lease) => (event, before) = (why, lease),
            }
        } else if !udp && !syn {
            let policy = self.record(service).on_unknown_flow;
            if policy == OnUnknownFlow::Pass as u8 {
                return passes(Reason::UnknownFlowPassed);
            }
            // A RST is never answered, and opens nothing.
            if policy == OnUnknownFlow::Drop as u8 || flags & RST != 0 {
                return drops(Reason::UnknownFlowDropped);
            }
            if policy == OnUnknownFlow::Reset as u8 {
                return Ok(answer::reset(&packet, Reason::UnknownFlowReset));
            }
            event = Reason::FlowAdopted;
        }
        self.place_flow(packet, &place, service, (event, before), oracle)
    }

    pub(crate) fn record(&self, service: usize) -> lb_common::service::Service {
        self.config.services[service].as_ref().map(|s| s.record).unwrap_or_default()
    }

    /// The MSS option of a SYN, if it is above the service's (RFC 9293, section 3.7.1).
    fn clamp(&mut self, packet: Packet, service: usize) -> Packet {
        let most = self.record(service).mss;
        if most == 0 {
            return packet;
        }
        let segment = packet.segment();
        let end = ((segment[12] >> 4) as usize * 4).min(segment.len());
        let mut at = 20;
        while at + 4 <= end {
            match segment[at] {
                0 => break,
                1 => at += 1,
                2 => {
                    let mss = u16::from_be_bytes([segment[at + 2], segment[at + 3]]);
                    if segment[at + 1] != 4 || mss <= most {
                        break;
                    }
                    self.event(Reason::MssClamped);
                    return Edit::new(&packet).transport(at + 2, &most.to_be_bytes()).done();
                }
                _ if segment[at + 1] < 2 => break,
                _ => at += segment[at + 1] as usize,
            }
        }
        packet
    }

    /// A packet whose flow is known.
    fn take_up(&mut self, packet: &mut Packet, slot: usize, place: &Place) -> Ends<TakenUp> {
        let (value, udp, syn) = (self.value(slot), packet.transport.udp, packet.flags() & SYN != 0);
        let mut lease = None;
        let destination = if value.kind() == Kind::FullNat {
            match self.lease_of(value, place.identity) {
                Some(found) => {
                    lease = Some(value.lease());
                    found.word.destination()
                }
                None => return Ok(self.give_back(slot, None, Reason::FlowReplaced)),
            }
        } else {
            value.destination()
        };
        let state = value.state();
        let stands = self.flags(destination);
        // docs/datapath.md, "Servers that leave".
        if stands & flags::RESET != 0 {
            if syn || udp {
                return Ok(self.give_back(slot, lease, Reason::FlowMoved));
            }
            // A RST ends the flow by itself.
            if packet.flags() & RST == 0 {
                let open = state != State::Close as u8 && state != State::SynReceived as u8;
                if stands & flags::RESET_TELLS_SERVER == 0 || !open {
                    return Ok(TakenUp::Sent(answer::reset(packet, Reason::FlowReset)));
                }
                let offset = packet.segment()[12] & 0xf0;
                *packet = Edit::new(packet).transport(12, &[offset, RST, 0, 0]).done();
                self.event(Reason::ServerTold);
            }
        } else if stands & flags::MOVES != 0 {
            // A RST opens nothing: it ends the flow where it is.
            if udp || packet.flags() & RST == 0 {
                return Ok(self.give_back(slot, lease, Reason::FlowMoved));
            }
        } else if stands & flags::REMOVED != 0 {
            if syn || self.can_move(value, udp) {
                return Ok(self.give_back(slot, lease, Reason::FlowMoved));
            }
        } else if stands & flags::DRAINING != 0 && syn && state != State::SynReceived as u8 {
            // A SYN sent again must find the server that may have answered the first one.
            return Ok(self.give_back(slot, lease, Reason::FlowMoved));
        }
        let direction = match self.method(destination) {
            Forwarding::Dr | Forwarding::Tun => Direction::InputOnly,
            Forwarding::Nat | Forwarding::FullNat => Direction::Input,
        };
        if syn && states::syn_begins_anew(state, direction) {
            return Ok(self.give_back(slot, lease, Reason::FlowReplaced));
        }
        self.send_on(packet.clone(), slot, destination).map(TakenUp::Sent)
    }

    fn give_back(&mut self, slot: usize, lease: Option<u32>, why: Reason) -> TakenUp {
        self.set(slot, Value::EMPTY);
        if let Some(index) = lease {
            self.touched.push(index);
            self.set_lease(index, None);
        }
        TakenUp::Anew(why, lease)
    }

    /// The server of a new flow. A turn of the cursor is used up whatever becomes of the flow.
    fn choose(&mut self, packet: &Packet, service: usize, oracle: &dyn Oracle) -> Ends<Option<Choice>> {
        if self.has_rules(service) {
            let chosen = self.choose_by_rules(packet, service, None, oracle)?;
            return Ok(chosen.map(Choice::Server));
        }
        let Some(config) = self.config.services[service].as_ref() else { return Ok(None) };
        let len = config.slots.len();
        if len == 0 {
            return Ok(None);
        }
        if config.record.pick == Pick::Cursor as u8 {
            let cursor = &mut self.cursors[service];
            let at = *cursor % len as u64;
            *cursor += 1;
            return Ok(Some(Choice::Slot(at as usize)));
        }
        Ok(self.hash_slot(service, &packet.ip.source, packet.ports().0).map(Choice::Slot))
    }

    /// The slot of a client at a service that chooses by hash.
    pub(crate) fn hash_slot(&self, service: usize, client: &[u8; 16], port: u16) -> Option<usize> {
        let config = self.config.services[service].as_ref()?;
        let pick = config.record.pick;
        if config.slots.is_empty() || !self.is_hash(service) {
            return None;
        }
        if pick == Pick::HashDestination as u8 {
            return Some(0);
        }
        let port = if pick == Pick::HashAddressPort as u8 { port.to_be() } else { 0 };
        let mut client = *client;
        if config.record.features & features::HASH_PREFIX != 0 {
            // Which family it is says the service's VIP.
            let v6 = self.config.is_v6(service);
            let bits = if v6 { config.record.hash_v6 } else { config.record.hash_v4 };
            client = crate::rules::cut(&client, v6, bits);
        }
        let client = lb_common::address::Address::from_v6(client).halves();
        Some(hash::slot_of_hash(hash::slot_hash(client, port), config.slots.len() as u32) as usize)
    }

    /// Whether the slots give the same answer to every packet of a flow.
    fn is_hash(&self, service: usize) -> bool {
        let pick = self.record(service).pick;
        [Pick::HashAddress, Pick::HashAddressPort, Pick::HashDestination].iter().any(|of| *of as u8 == pick)
    }

    fn destination_at(&self, service: usize, choice: Choice) -> Option<u32> {
        match choice {
            Choice::Slot(at) => self.config.services[service].as_ref()?.slots.get(at)?.checked_sub(1),
            Choice::Server(destination) => Some(destination),
        }
    }

    /// There is no server: what the client is told.
    fn nobody(&self, packet: &Packet, service: usize) -> Fate {
        let policy = self.record(service).no_server;
        let tcp = !packet.transport.udp;
        if policy == NoServer::Drop as u8 || (tcp && packet.flags() & RST != 0) {
            return Fate::Drop(Reason::NoServer);
        }
        if policy == NoServer::Reset as u8 && tcp {
            return answer::reset(packet, Reason::NoServerReset);
        }
        answer::unreachable(packet)
    }

    fn place_flow(
        &mut self,
        packet: Packet,
        place: &Place,
        service: usize,
        (event, before): (Reason, Option<u32>),
        oracle: &dyn Oracle,
    ) -> Ends<Fate> {
        let choice = self.choose(&packet, service, oracle)?;
        let Some((choice, destination)) = choice.and_then(|c| Some((c, self.destination_at(service, c)?)))
        else {
            return Ok(self.nobody(&packet, service));
        };
        if self.record(service).features & features::ONE_PACKET != 0 {
            // Nothing is remembered.
            self.fits_its_way(&packet, destination)?;
            self.event(Reason::OnePacket);
            return self.send_to_server(&packet, destination, None);
        }
        match self.method(destination) {
            Forwarding::Dr | Forwarding::Tun => {
                self.direct(packet, place, (service, destination), event, oracle)
            }
            Forwarding::Nat => self.translated(packet, place, service, (choice, event), oracle),
            Forwarding::FullNat => {
                self.leased(packet, place, (service, destination), (event, before), oracle)
            }
        }
    }

    /// State and deadline of a new entry.
    fn beginning(
        &self,
        packet: &Packet,
        service: usize,
        event: Reason,
        direction: Direction,
    ) -> (State, u16) {
        let plain = !packet.transport.udp && event != Reason::FlowAdopted;
        let state = if plain && states::step(direction, 0, packet.flags()) == State::SynReceived as u8 {
            State::SynReceived
        } else {
            State::Unconfirmed
        };
        let timeout = self.record(service).timeouts[state as usize];
        (state, self.now.wrapping_add(timeout).wrapping_add(timeout / 256 + 1))
    }

    fn ports_word(packet: &Packet) -> u32 {
        let (source, destination) = packet.ports();
        hash::ports_word(source, destination)
    }

    /// DR and TUN: one entry. Without room a hash service goes on: its slots give the same answer to the next packet.
    fn direct(
        &mut self,
        packet: Packet,
        place: &Place,
        (service, destination): (usize, u32),
        event: Reason,
        oracle: &dyn Oracle,
    ) -> Ends<Fate> {
        self.fits_its_way(&packet, destination)?;
        let (state, deadline) = self.beginning(&packet, service, event, Direction::InputOnly);
        let value = Value::flow(Kind::Flow, destination, place.first, state, deadline);
        let tuple = (&packet.ip.source, Self::ports_word(&packet));
        let stateless = self.is_hash(service) && !self.is_persistent(service);
        if stateless && self.config.flood && oracle.was_flooded() {
            self.event(Reason::FloodStateless);
        } else if self.insert(place, value, packet.ip.v6, tuple) {
            self.event(event);
        } else if !stateless {
            return drops(Reason::TableFull);
        } else {
            self.event(Reason::Stateless);
        }
        self.send_to_server(&packet, destination, None)
    }

    /// NAT: two entries, or none. A server whose reply would be another flow's is passed over for the next slot's.
    fn translated(
        &mut self,
        packet: Packet,
        place: &Place,
        service: usize,
        (mut choice, event): (Choice, Reason),
        oracle: &dyn Oracle,
    ) -> Ends<Fate> {
        let mut found = None;
        for tried in 1..=NAT_TRIES {
            let Some(destination) = self.destination_at(service, choice) else {
                return Ok(self.nobody(&packet, service));
            };
            let target = self.config.destinations[destination as usize];
            let reply = self.reply_place(&packet, &target);
            let other = self.find(&reply);
            let taken = other.is_some_and(|slot| {
                let value = self.value(slot);
                // Another flow's that is over gives way.
                value.kind() != Kind::NatReply
                    || (value.destination() != destination
                        && !states::syn_begins_anew(value.state(), Direction::Input))
            });
            if taken {
                let len = self.config.services[service].as_ref().map_or(1, |s| s.slots.len());
                choice = match choice {
                    Choice::Slot(at) => Choice::Slot((at + 1) % len),
                    Choice::Server(_) if tried == NAT_TRIES => break,
                    Choice::Server(taken) => {
                        match self.choose_by_rules(&packet, service, Some(taken), oracle)? {
                            Some(other) => Choice::Server(other),
                            None => return Ok(self.nobody(&packet, service)),
                        }
                    }
                };
                continue;
            }
            // The same flow's reply, from before, or one that gives way.
            if let Some(slot) = other {
                self.set(slot, Value::EMPTY);
            }
            found = Some((destination, target, reply));
            break;
        }
        let Some((destination, target, reply)) = found else { return drops(Reason::ReplyConflict) };
        self.fits_its_way(&packet, destination)?;
        let (state, deadline) = self.beginning(&packet, service, event, Direction::Input);
        let hop = self.hop_to_client(&packet);
        let extension = self.extend(&packet, place, service, (state, deadline))?;
        let (client_port, vip_port) = packet.ports();
        let v6 = packet.ip.v6;
        let server = (&target.address.v6(), Self::server_port(&target, vip_port));
        let word = Value::nat_reply(destination, hop, reply.first, state, deadline).with_flags(extension);
        // Established until the flow has its place, which is not to be taken from its own reply.
        let held = word.with(State::Established as u8, deadline);
        if !self.insert(&reply, held, v6, (server.0, hash::ports_word(server.1, client_port))) {
            return drops(Reason::TableFull);
        }
        let flow = Value::flow(Kind::Flow, destination, place.first, state, deadline).with_flags(extension);
        let placed = self.insert(place, flow, v6, (&packet.ip.source, Self::ports_word(&packet)));
        if let Some(slot) = self.find(&reply) {
            self.set(slot, if placed { word } else { Value::EMPTY });
        }
        if !placed {
            return drops(Reason::TableFull);
        }
        self.event(event);
        self.send_to_server(&packet, destination, None)
    }

    /// By its route, or, on an attached segment, as its frame shows it.
    fn hop_to_client(&mut self, packet: &Packet) -> u8 {
        match self.config.client_route(&packet.ip.source, packet.ip.v6) {
            Some(hop) if hop != 0 && hop < HOP_ON_LINK as u32 => hop as u8,
            _ => {
                let link = Link::back(&packet.frame, packet.ip.l3);
                self.neighbours.insert((packet.ip.v6, packet.ip.source), link);
                HOP_ON_LINK
            }
        }
    }

    /// FULLNAT: a lease, and the entry that names it.
    fn leased(
        &mut self,
        packet: Packet,
        place: &Place,
        (service, destination): (usize, u32),
        (event, before): (Reason, Option<u32>),
        oracle: &dyn Oracle,
    ) -> Ends<Fate> {
        self.fits_its_way(&packet, destination)?;
        let (state, deadline) = self.beginning(&packet, service, event, Direction::Input);
        let extension = self.extend(&packet, place, service, (state, deadline))?;
        let (all, free) = self.ports_of(service, packet.ip.v6);
        let has_room = self.room(place).is_some();
        let chosen = oracle.lease_of(place.identity, self.now);
        // Sixteen ports are tried: with most of them free one is found.
        let may_fail = free * 2 <= all;
        // Among those tried may be one that is worth less than a new flow.
        let may_evict =
            self.shares(service, packet.ip.v6).any(|share| share.into_iter().any(|l| self.is_unproven(l)));
        if (free == 0 && !may_evict) || (may_fail && chosen.is_none() && oracle.had_no_local_port()) {
            return drops(Reason::NoLocalPort);
        }
        if !has_room {
            // A lease was taken, and given back at once. Had its time been over, it is empty now.
            let over = |lease: &u32| self.is_free(*lease) && oracle.lease_word(*lease).is_empty();
            let taken: Vec<u32> = self.leases.keys().copied().filter(over).collect();
            taken.into_iter().for_each(|lease| self.set_lease(lease, None));
            let word = Value::flow(Kind::FullNat, destination, place.first, state, deadline);
            self.recount(Value::EMPTY, word);
            self.recount(word, Value::EMPTY);
            return drops(Reason::TableFull);
        }
        // A flow that begins anew gets the port that it had.
        let kept =
            before.filter(|index| self.is_free(*index) && self.may_lease(service, *index, packet.ip.v6));
        let may = |index: &u32| self.may_lease(service, *index, packet.ip.v6);
        let Some(index) = chosen.filter(|index| may(index) && kept.is_none_or(|kept| kept == *index)) else {
            // A frame that nothing became of: the comparison will say so.
            return drops(Reason::Internal);
        };
        if !self.is_free(index) {
            let victim = self.leases[&index].word;
            self.evicts(victim);
        }
        let route = self.config.client_route(&packet.ip.source, packet.ip.v6);
        let lease = Lease {
            owner: place.identity,
            word: Value::flow(Kind::FullNat, destination, place.first, state, deadline).with_flags(extension),
            client: packet.ip.source,
            ports: packet.ports(),
            hop: route.filter(|hop| *hop != 0),
            link: Link::back(&packet.frame, packet.ip.l3),
        };
        self.set_lease(index, None);
        self.set_lease(index, Some(lease));
        self.touched.push(index);
        let value = Value::full_nat(index, place.first, state, deadline).with_flags(extension);
        let tuple = (&packet.ip.source, Self::ports_word(&packet));
        if !self.insert(place, value, packet.ip.v6, tuple) {
            return drops(Reason::TableFull);
        }
        self.event(event);
        self.send_to_server(&packet, destination, Some(index))
    }

    /// The leases of a service's pool: (first, after the last) of each address in its share of the ports.
    fn shares(&self, service: usize, v6: bool) -> impl Iterator<Item = std::ops::Range<u32>> + '_ {
        let record = self.record(service);
        let first = record.pool_first as u32;
        (first..first + record.pool_len as u32).filter_map(move |at| {
            let pool = self.config.pool.get(at as usize)?;
            let low = at << 16 | pool.first_port as u32;
            (pool.family == if v6 { 6 } else { 4 }).then(|| low..low + pool.ports as u32)
        })
    }

    fn is_free(&self, lease: u32) -> bool {
        self.leases.get(&lease).is_none_or(|lease| lease.word.is_empty() || lease.word.is_expired(self.now))
    }

    /// Whether another flow holds it that may make room: neither established nor free.
    fn is_unproven(&self, lease: u32) -> bool {
        let live = self.leases.get(&lease).filter(|_| !self.is_free(lease));
        live.is_some_and(|lease| !lease.word.is_settled())
    }

    /// (ports of the service's pool, those that are free).
    fn ports_of(&self, service: usize, v6: bool) -> (usize, usize) {
        let all: usize = self.shares(service, v6).map(|share| share.len()).sum();
        let busy = |share: &std::ops::Range<u32>| {
            self.leases.keys().filter(|lease| share.contains(lease) && !self.is_free(**lease)).count()
        };
        (all, all - self.shares(service, v6).map(|share| busy(&share)).sum::<usize>())
    }

    /// Whether a flow of this service may lease this port now.
    fn may_lease(&self, service: usize, lease: u32, v6: bool) -> bool {
        self.shares(service, v6).any(|share| share.contains(&lease))
            && (self.is_free(lease) || self.is_unproven(lease))
    }
}
