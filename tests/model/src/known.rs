//! Packets of flows that are known, both ways.

use crate::{
    Counted, Ends, Fate, Lease, Model, Oracle, Own, answer, drops,
    rewrite::{Edit, Link, behind_ethernet},
    shifted::is_extended,
    states::{self, Direction},
    table::Place,
    wire::Packet,
};
use lb_common::{
    connection::{HOP_ON_LINK, Kind, Value},
    destination::{Destination, Forwarding, NextHop, flags},
    scratch::policy,
    service::Service,
    state::{SYN, State},
    verdict::Reason,
};

/// The largest packet towards a client on an attached segment: its way is not known.
const ANY_LENGTH: usize = 0xffff;

impl Model {
    pub(crate) fn flags(&self, destination: u32) -> u32 {
        Destination::flags_of(self.config.destinations[destination as usize].word)
    }

    pub(crate) fn method(&self, destination: u32) -> Forwarding {
        Destination::forwarding_of(self.flags(destination))
    }

    fn service_record(&self, index: u32) -> Service {
        self.config.services[index as usize].as_ref().map_or_else(Service::default, |s| s.record)
    }

    /// The lease that a FULLNAT entry names, if it is still this flow's.
    pub(crate) fn lease_of(&self, value: Value, owner: u64) -> Option<Lease> {
        let lease = self.leases.get(&value.lease())?;
        (!lease.word.is_empty() && !lease.word.is_expired(self.now) && lease.owner == owner).then_some(*lease)
    }

    pub(crate) fn client_place(&self, packet: &Packet) -> Place {
        let (source, destination) = packet.ports();
        let ip = &packet.ip;
        self.place(ip.v6, packet.transport.udp, (&ip.source, source), (&ip.destination, destination))
    }

    /// A packet with whole headers that is not to a pool address.
    pub(crate) fn of_flow(&mut self, packet: Packet, own: Option<Own>, oracle: &dyn Oracle) -> Ends<Fate> {
        let place = self.client_place(&packet);
        let Some(slot) = self.find(&place) else { return self.begins(packet, own, oracle) };
        let value = self.value(slot);
        let extended = is_extended(value) && !packet.transport.udp;
        if value.kind() == Kind::NatReply {
            if extended {
                self.is_sound(&packet)?;
            }
            return self.nat_reply(packet, slot);
        }
        if packet.flags() & SYN != 0 {
            return self.begins(packet, own, oracle);
        }
        if extended {
            self.is_sound(&packet)?;
        }
        let destination = match value.kind() {
            Kind::FullNat => match self.lease_of(value, place.identity) {
                Some(lease) => lease.word.destination(),
                None => return self.begins(packet, own, oracle),
            },
            _ => value.destination(),
        };
        let flags = self.flags(destination);
        let leaves = flags & flags::REMOVED != 0 && self.can_move(value, packet.transport.udp);
        if flags & (flags::RESET | flags::MOVES) != 0 || leaves {
            return self.begins(packet, own, oracle);
        }
        if !self.packet_fits(destination, oracle) {
            return drops(Reason::PacketsLimited);
        }
        self.send_on(packet, slot, destination)
    }

    /// As [`Self::send_on`], for the packets but SYNs of a flow whose numbers are shifted.
    fn send_on_shifted(&mut self, packet: Packet, slot: usize, destination: u32) -> Ends<Fate> {
        let target = self.config.destinations[destination as usize];
        self.may_serve(Destination::vrrp_of(Destination::flags_of(target.word)) as u8)?;
        let place = self.client_place(&packet);
        let way = (Destination::mtu_of(target.word) as usize, target.vip.v6());
        let (packet, record) = self.as_the_server_counts(&packet, &place, way)?;
        let fate = self.send_on_as_it_is(packet, slot, destination)?;
        self.follow(record, self.value(slot));
        Ok(fate)
    }

    /// Flows whose packets, SYNs apart, leave a removed server: UDP, and those that were taken up without their SYN.
    pub(crate) fn can_move(&self, value: Value, udp: bool) -> bool {
        udp || value.state() == State::Unconfirmed as u8
    }

    /// A client's packet to the server of its flow.
    pub(crate) fn send_on(&mut self, packet: Packet, slot: usize, destination: u32) -> Ends<Fate> {
        if is_extended(self.value(slot)) && !packet.transport.udp && packet.flags() & SYN == 0 {
            return self.send_on_shifted(packet, slot, destination);
        }
        self.send_on_as_it_is(packet, slot, destination)
    }

    fn send_on_as_it_is(&mut self, packet: Packet, slot: usize, destination: u32) -> Ends<Fate> {
        let target = self.config.destinations[destination as usize];
        self.may_serve(Destination::vrrp_of(Destination::flags_of(target.word)) as u8)?;
        self.fits_its_way(&packet, destination)?;
        let method = self.method(destination);
        let direction = match method {
            Forwarding::Dr | Forwarding::Tun => Direction::InputOnly,
            Forwarding::Nat | Forwarding::FullNat => Direction::Input,
        };
        let value = self.value(slot);
        let what = (direction, packet.transport.udp, packet.flags());
        let service = self.service_record(target.service);
        if let Some(new) = states::next(value, what, (&service, target.timeout), self.now) {
            self.set(slot, new);
            match method {
                Forwarding::Nat => {
                    let reply = self.reply_place(&packet, &target);
                    self.step_twin(&reply, new, |twin| twin.destination() == destination);
                }
                Forwarding::FullNat => {
                    self.touched.push(value.lease());
                    if let Some(mut lease) = self.leases.get(&value.lease()).copied() {
                        lease.word = lease.word.with(new.state(), new.deadline());
                        self.set_lease(value.lease(), Some(lease));
                    }
                }
                Forwarding::Dr | Forwarding::Tun => {}
            }
        }
        let lease = (method == Forwarding::FullNat).then(|| value.lease());
        self.send_to_server(&packet, destination, lease)
    }

    /// Whether a packet towards a server fits, or may go to the kernel in its tunnel, which fragments what is outside.
    pub(crate) fn fits_its_way(&mut self, packet: &Packet, destination: u32) -> Ends<()> {
        let target = self.config.destinations[destination as usize];
        let mtu = Destination::mtu_of(target.word) as usize;
        let over_v4 = Destination::flags_of(target.word) & flags::REAL_V6 == 0;
        self.by_kernel = self.config.has_policy(policy::TUNNEL_FRAGMENT)
            && self.method(destination) == Forwarding::Tun
            && over_v4
            && packet.may_fragment()
            && packet.ip.length > mtu;
        answer::fits(packet, if self.by_kernel { usize::MAX } else { mtu }, &target.vip.v6())
    }

    /// A pair has one state and one deadline; what names somebody else is no twin.
    fn step_twin(&mut self, place: &Place, new: Value, is_twin: impl Fn(Value) -> bool) {
        if let Some(slot) = self.find(place) {
            let twin = self.value(slot);
            if is_twin(twin) {
                self.set(slot, twin.with(new.state(), new.deadline()));
            }
        }
    }

    /// The real server's port in a packet to this VIP port.
    pub(crate) fn server_port(target: &Destination, vip_port: u16) -> u16 {
        match u16::from_be(Destination::port_of(target.word)) {
            0 => vip_port,
            port => port,
        }
    }

    /// Where the reply to a client's packet lies (NAT).
    pub(crate) fn reply_place(&self, packet: &Packet, target: &Destination) -> Place {
        let (client_port, vip_port) = packet.ports();
        let server = (&target.address.v6(), Self::server_port(target, vip_port));
        self.place(packet.ip.v6, packet.transport.udp, server, (&packet.ip.source, client_port))
    }

    fn hop(&self, index: u32) -> Option<NextHop> {
        self.config.next_hops.get(index as usize).copied().filter(|hop| hop.ifindex != 0)
    }

    /// Rewrites a client's packet and sends it.
    pub(crate) fn send_to_server(
        &mut self,
        packet: &Packet,
        destination: u32,
        lease: Option<u32>,
    ) -> Ends<Fate> {
        let target = self.config.destinations[destination as usize];
        let Some(hop) = self.hop(target.next_hop) else { return drops(Reason::NoNextHop) };
        let mut link = Link::of(&hop);
        if self.by_kernel {
            // With the frame's own addresses and tags.
            let back = Link::back(&packet.frame, packet.ip.l3);
            link = Link { to: back.from, from: back.to, ..back };
        }
        let edit = Edit::new(packet).less_ttl();
        let (client_port, vip_port) = packet.ports();
        let server = (target.address.v6(), Self::server_port(&target, vip_port));
        let ip = match self.method(destination) {
            Forwarding::Dr => behind_ethernet(&edit.done()).to_vec(),
            Forwarding::Tun => match self.tunnelled(&edit.done(), (destination, &target, &hop), &link) {
                Some(wrapped) => wrapped,
                // A frame that nothing became of: the comparison will say so.
                None => return drops(Reason::Internal),
            },
            Forwarding::Nat => behind_ethernet(
                &edit.source(&packet.ip.source, client_port).destination(&server.0, server.1).done(),
            )
            .to_vec(),
            Forwarding::FullNat => {
                let lease = lease.unwrap_or_default();
                let local = self.config.pool[(lease >> 16) as usize].address.v6();
                let edit = edit.source(&local, lease as u16).destination(&server.0, server.1);
                behind_ethernet(&edit.done()).to_vec()
            }
        };
        let tunnel = self.method(destination) == Forwarding::Tun;
        let v6 = if tunnel { self.flags(destination) & flags::REAL_V6 != 0 } else { packet.ip.v6 };
        let frame = link.frame(v6, &ip);
        if self.by_kernel {
            self.event(Reason::TunnelFragmented);
            return Ok(Fate::Kernel(Counted::In(destination), frame));
        }
        Ok(Fate::Forward(Counted::In(destination), frame))
    }

    /// The link and the largest packet towards a client behind this next hop.
    pub(crate) fn client_hop(&self, index: u32) -> Ends<(Link, usize)> {
        match self.hop(index) {
            Some(hop) => Ok((Link::of(&hop), hop.mtu as usize)),
            None => drops(Reason::NoClientHop),
        }
    }

    /// How a client of NAT is reached.
    pub(crate) fn nat_client(&self, reply: Value, v6: bool, client: &[u8; 16]) -> Ends<(Link, usize)> {
        match reply.hop() {
            HOP_ON_LINK => match self.neighbours.get(&(v6, *client)) {
                Some(link) => Ok((*link, ANY_LENGTH)),
                None => drops(Reason::NoClientHop),
            },
            hop => self.client_hop(hop as u32),
        }
    }

    /// How the client of a lease is reached.
    pub(crate) fn leased_client(&self, lease: &Lease) -> Ends<(Link, usize)> {
        match lease.hop {
            Some(hop) => self.client_hop(hop),
            None => Ok((lease.link, ANY_LENGTH)),
        }
    }

    /// A real server's reply (NAT).
    fn nat_reply(&mut self, packet: Packet, slot: usize) -> Ends<Fate> {
        let value = self.value(slot);
        let destination = value.destination();
        let target = self.config.destinations[destination as usize];
        let flags = self.flags(destination);
        self.may_serve(Destination::vrrp_of(flags) as u8)?;
        if flags & flags::RESET != 0 && !packet.transport.udp {
            return Ok(answer::reset(&packet, Reason::FlowReset));
        }
        let (link, mtu) = self.nat_client(value, packet.ip.v6, &packet.ip.destination)?;
        answer::fits(&packet, mtu, &target.vip.v6())?;
        let (server_port, client_port) = packet.ports();
        let vip_port = match u16::from_be(target.vip_port) {
            0 => server_port,
            port => port,
        };
        let mut packet = packet;
        let mut record = None;
        if is_extended(value) && !packet.transport.udp {
            let (client, vip) = (&packet.ip.destination, &target.vip.v6());
            let flow = self.place(packet.ip.v6, false, (client, client_port), (vip, vip_port));
            let (shifted, at) = self.as_the_client_counts(&packet, &flow)?;
            (packet, record) = (shifted, Some(at));
        }
        let what = (Direction::Output, packet.transport.udp, packet.flags());
        let service = self.service_record(target.service);
        if let Some(new) = states::next(value, what, (&service, target.timeout), self.now) {
            self.set(slot, new);
            let (client, vip) = (&packet.ip.destination, &target.vip.v6());
            let flow = self.place(packet.ip.v6, packet.transport.udp, (client, client_port), (vip, vip_port));
            self.step_twin(&flow, new, |twin| {
                twin.kind() != Kind::FullNat && twin.destination() == destination
            });
        }
        if let Some(at) = record {
            self.follow(at, self.value(slot));
        }
        let client = packet.ip.destination;
        let edit = Edit::new(&packet).less_ttl().source(&target.vip.v6(), vip_port);
        let out = edit.destination(&client, client_port).done();
        Ok(Fate::Forward(Counted::Out(destination), link.frame(packet.ip.v6, behind_ethernet(&out))))
    }

    /// A packet to a local address: of the flow that leased the port, or nobody's.
    pub(crate) fn at_local_address(&mut self, packet: Packet, pool: u32) -> Ends<Fate> {
        let (server_port, local_port) = packet.ports();
        let index = pool << 16 | local_port as u32;
        let Some(lease) = self.leases.get(&index).copied() else { return drops(Reason::NoLease) };
        if lease.word.is_empty() || lease.word.is_expired(self.now) {
            return drops(Reason::NoLease);
        }
        let extended = is_extended(lease.word) && !packet.transport.udp;
        if extended {
            self.is_sound(&packet)?;
        }
        let destination = lease.word.destination();
        let target = self.config.destinations[destination as usize];
        let flags = self.flags(destination);
        self.may_serve(Destination::vrrp_of(flags) as u8)?;
        let (link, mtu) = self.leased_client(&lease)?;
        let udp = packet.transport.udp;
        let expected = Self::server_port(&target, lease.ports.1);
        let is_udp = flags & flags::UDP != 0;
        if packet.ip.source != target.address.v6() || server_port != expected || udp != is_udp {
            return drops(Reason::WrongServer);
        }
        answer::fits(&packet, mtu, &target.vip.v6())?;
        if flags & flags::RESET != 0 && !udp {
            return Ok(answer::reset(&packet, Reason::FlowReset));
        }
        let mut packet = packet;
        let mut record = None;
        if extended {
            let (client, vip) = ((&lease.client, lease.ports.0), (&target.vip.v6(), lease.ports.1));
            let flow = self.place(packet.ip.v6, false, client, vip);
            let (shifted, at) = self.as_the_client_counts(&packet, &flow)?;
            (packet, record) = (shifted, Some(at));
        }
        let what = (Direction::Output, udp, packet.flags());
        let service = self.service_record(target.service);
        if let Some(new) = states::next(lease.word, what, (&service, target.timeout), self.now) {
            self.touched.push(index);
            self.set_lease(index, Some(Lease { word: new, ..lease }));
            let (client, vip) = ((&lease.client, lease.ports.0), (&target.vip.v6(), lease.ports.1));
            let flow = self.place(packet.ip.v6, udp, client, vip);
            self.step_twin(&flow, new, |twin| twin.kind() == Kind::FullNat && twin.lease() == index);
        }
        if let Some(at) = record {
            let word = self.leases.get(&index).map_or(Value::EMPTY, |lease| lease.word);
            self.follow(at, word);
        }
        let edit = Edit::new(&packet).less_ttl().source(&target.vip.v6(), lease.ports.1);
        let out = edit.destination(&lease.client, lease.ports.0).done();
        Ok(Fate::Forward(Counted::Out(destination), link.frame(packet.ip.v6, behind_ethernet(&out))))
    }
}
