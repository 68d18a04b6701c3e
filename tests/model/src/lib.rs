//! The reference model of the data plane: what must become of a frame, of the connection table and of the leases.
//! Written from docs/datapath.md and the rules of IPVS, slices and bounds checks only, one rule after another; the
//! differential test runs it beside the program that the kernel runs. With the data plane it shares the records of
//! `lb-common` (words of entries, destinations, next hops, keyed hashes) and nothing of how they are used.
//!
//! Pure: a frame and the time go in, what must have happened comes out. Where the data plane may choose freely (which
//! local port a FULLNAT flow leases), an [`Oracle`] says what it chose, and the model says whether it might.
//!
//! A rule has one place: `wire` reads frames, `known` is for packets of flows, `begin` for those of none, `rules` chooses
//! servers where slots alone do not, `load` counts flows, `table` places entries, `states` steps them, `rewrite`, `tunnel`
//! and `answer` make frames. [`Unmodelled`] lists what is left out.

mod answer;
mod begin;
mod config;
mod fragment;
mod known;
mod load;
mod related;
mod rewrite;
mod rules;
mod shifted;
mod states;
mod table;
pub mod traffic;
mod tunnel;
mod wire;

pub use config::{Config, Own, Role, ServiceConfig};
pub use load::Load;
pub use rewrite::Link;
pub use shifted::{Extension, Moved};
pub use states::{Direction, step};
pub use table::{Lease, Table};
pub use wire::checksums_hold;

use lb_common::{connection::Value, verdict::Reason};
use std::collections::HashMap;
use wire::{Frame, Inner, Ip};

/// What the model does not speak of. A frame of such a kind is not compared at all; docs/testing.md has the list, and
/// the differential test says how many of each it met.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unmodelled {
    /// SCTP.
    Sctp,
}

impl Unmodelled {
    /// All of them.
    pub const ALL: [Unmodelled; 1] = [Self::Sctp];

    /// As docs/testing.md names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sctp => "SCTP",
        }
    }
}

/// Where a frame is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Counted {
    /// By the number of its reason.
    Reason(u32),
    /// Forwarded to a destination.
    In(u32),
    /// A destination's reply, forwarded to a client.
    Out(u32),
}

/// What must become of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// To the kernel, byte for byte.
    Pass(Reason),
    Drop(Reason),
    /// Back to its sender, as this frame.
    Answer(Reason, Vec<u8>),
    /// On to a server (`Counted::In`) or a client (`Counted::Out`), as this frame.
    Forward(Counted, Vec<u8>),
    /// To the kernel as this frame, and counted as if it had been sent on.
    Kernel(Counted, Vec<u8>),
}

impl Fate {
    /// Where the frame is counted.
    pub fn counted(&self) -> Counted {
        match self {
            Fate::Pass(reason) | Fate::Drop(reason) | Fate::Answer(reason, _) => {
                Counted::Reason(*reason as u32)
            }
            Fate::Forward(counted, _) | Fate::Kernel(counted, _) => *counted,
        }
    }
}

/// What the data plane chose where it may choose.
pub trait Oracle {
    /// The lease that the live FULLNAT entry of this identity names.
    fn lease_of(&self, identity: u64, now: u16) -> Option<u32>;
    /// Whether the frame was refused because no local port was found: asked only when there may or may not have been one.
    fn had_no_local_port(&self) -> bool;
    /// Whether the packet was forwarded by the slots alone since there were too many new flows in this second.
    fn was_flooded(&self) -> bool;
    /// The frame that the data plane made.
    fn sent(&self) -> &[u8];
    /// The word of a lease; asked when a lease was taken and given back.
    fn lease_word(&self, lease: u32) -> Value;
    /// The second in which a service's new flows were counted last, by the clock of the data plane.
    fn second_of_limit(&self, service: usize) -> u64;
    /// The same of a destination's packets.
    fn second_of_rate(&self, destination: u32) -> u64;
}

/// A way out of the rules: the end of a frame.
type Ends<T> = Result<T, End>;

struct End(Fate);

impl From<Fate> for End {
    fn from(fate: Fate) -> Self {
        End(fate)
    }
}

fn passes<T>(reason: Reason) -> Ends<T> {
    Err(Fate::Pass(reason).into())
}

fn drops<T>(reason: Reason) -> Ends<T> {
    Err(Fate::Drop(reason).into())
}

/// The model: what it was told of the world, and what it remembers.
#[derive(Clone)]
pub struct Model {
    pub config: Config,
    pub table: Table,
    /// FULLNAT leases by their index.
    pub leases: HashMap<u32, Lease>,
    /// Addresses of frames by which clients of NAT on an attached segment were last seen.
    neighbours: HashMap<(bool, [u8; 16]), rewrite::Link>,
    /// First fragments.
    pieces: fragment::Firsts,
    /// What routers said of tunnels, by (IPv6, real server).
    pub paths: HashMap<(bool, [u8; 16]), u32>,
    /// Records of flows whose sequence numbers are shifted.
    pub extensions: Vec<Extension>,
    /// Whether the last packet may have written one.
    pub shifted: bool,
    /// What is the flow's own in a tunnel's header, by destination, addresses and ports.
    entropy: HashMap<tunnel::Flow, u32>,
    /// Flows placed by each service: the cursor of rr and wrr.
    pub cursors: Vec<u64>,
    /// What real servers have to do, by the index of their record.
    pub loads: Vec<Load>,
    /// New flows by second, by the service that leads.
    pub limits: HashMap<usize, (u64, u32)>,
    /// Packets by second and destination.
    pub rates: HashMap<u32, (u64, u32)>,
    /// The server, plus one, that lblc used last, by service.
    pub cached: Vec<u64>,
    /// Events of the last packet.
    pub events: Vec<Reason>,
    /// Leases that the last packet may have written.
    pub touched: Vec<u32>,
    /// Ticks.
    now: u16,
    /// The frame that the data plane made of the last packet.
    sent: Vec<u8>,
    /// The flow's ports, where the last packet has none itself.
    flow_ports: Option<(u16, u16)>,
    /// The last packet does not fit its tunnel, and the kernel is to fragment it.
    by_kernel: bool,
}

impl Model {
    /// With an empty table.
    pub fn new(config: Config) -> Self {
        let extensions = (lb_common::extension::WAYS as usize) << (64 - config.sizes.extension_shift);
        Self {
            table: Table::new(&config),
            cursors: vec![0; config.services.len()],
            cached: vec![0; config.services.len()],
            loads: vec![Load::default(); config.loads.len()],
            limits: HashMap::new(),
            rates: HashMap::new(),
            config,
            leases: HashMap::new(),
            neighbours: HashMap::new(),
            pieces: fragment::Firsts::default(),
            paths: HashMap::new(),
            extensions: vec![Extension::default(); extensions],
            shifted: false,
            entropy: HashMap::new(),
            events: Vec::new(),
            touched: Vec::new(),
            now: 0,
            sent: Vec::new(),
            flow_ports: None,
            by_kernel: false,
        }
    }

    /// The kind of a frame that the model does not speak of.
    pub fn leaves_out(&self, frame: &[u8]) -> Option<Unmodelled> {
        let (config, read) = (&self.config, wire::read(frame));
        match read {
            Frame::Ip(ip)
                if config.may_be_ours(&ip.destination, ip.v6) || config.may_be_server(&ip.source, ip.v6) =>
            {
                match ip.inner {
                    Inner::Other(132) => Some(Unmodelled::Sctp),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// What must become of a frame that arrives at tick `now`.
    ///
    /// # Errors
    /// When the frame is of a kind that the model does not speak of; then nothing changed.
    pub fn packet(&mut self, frame: &[u8], now: u16, oracle: &dyn Oracle) -> Result<Fate, Unmodelled> {
        self.now = now;
        self.events.clear();
        self.touched.clear();
        self.sent = oracle.sent().to_vec();
        self.flow_ports = None;
        self.shifted = false;
        self.by_kernel = false;
        if let Some(what) = self.leaves_out(frame) {
            return Err(what);
        }
        let (Ok(fate) | Err(End(fate))) = self.run(frame, oracle);
        Ok(fate)
    }

    /// Time jumps by so many ticks: everything ends that much earlier.
    pub fn pass_time(&mut self, ticks: u16) {
        let earlier = |value: &mut Value| {
            if !value.is_empty() {
                *value = value.with_deadline(value.deadline().wrapping_sub(ticks));
            }
        };
        self.table.entries.iter_mut().for_each(|entry| earlier(&mut entry.value));
        self.leases.values_mut().for_each(|lease| earlier(&mut lease.word));
        self.extensions.iter_mut().for_each(|record| earlier(&mut record.word));
    }

    /// The sweeper walks: what is over is empty.
    pub fn sweep(&mut self, now: u16) {
        for slot in 0..self.table.entries.len() {
            let value = self.value(slot);
            if !value.is_empty() && value.is_expired(now) {
                self.set(slot, Value::EMPTY);
            }
        }
        let over: Vec<u32> =
            self.leases.iter().filter(|(_, lease)| lease.word.is_expired(now)).map(|(at, _)| *at).collect();
        over.into_iter().for_each(|lease| self.set_lease(lease, None));
    }

    /// All first fragments came too long ago.
    pub fn forget_fragments(&mut self) {
        self.pieces.clear();
    }

    fn event(&mut self, event: Reason) {
        self.events.push(event);
    }

    /// docs/datapath.md, "The way of a packet".
    fn run(&mut self, frame: &[u8], oracle: &dyn Oracle) -> Ends<Fate> {
        let ip = match wire::read(frame) {
            Frame::NotIp => return passes(Reason::NotIp),
            Frame::Arp(l3) => return self.arp(frame, l3),
            Frame::Cut => return passes(Reason::BadHeader),
            Frame::TooManyTags => return passes(Reason::TooManyHeaders),
            Frame::Ip(ip) => ip,
        };
        // The address filter may take a stranger for one of ours, never the other way round.
        let filter = &self.config;
        if !filter.may_be_ours(&ip.destination, ip.v6) && !filter.may_be_server(&ip.source, ip.v6) {
            return match ip.inner {
                // Routers' errors about what NAT and tunnels sent; extension headers are not walked for strangers.
                Inner::Icmp(l4) if !ip.v6 || l4 == ip.l3 + 40 => self.icmp(frame, ip, l4, Reason::NotOurs),
                // Its number alone says that it is neighbour discovery, whatever version the header has.
                Inner::Bad if ip.v6 && frame[ip.l3 + 6] == 58 => {
                    self.icmp_to_kernel(frame, &ip, ip.l3 + 40, Reason::NotOurs)
                }
                _ => passes(Reason::NotOurs),
            };
        }
        let transport = match ip.inner {
            Inner::Bad if ip.v6 && frame[ip.l3 + 6] == 58 => {
                return self.icmp_to_kernel(frame, &ip, ip.l3 + 40, Reason::BadHeader);
            }
            Inner::Bad => return self.to_kernel(&ip, Reason::BadHeader),
            Inner::TooMany => return self.to_kernel(&ip, Reason::TooManyHeaders),
            // Of these `leaves_out` has said so.
            Inner::Other(_) => return self.to_kernel(&ip, Reason::OtherProtocol),
            Inner::Icmp(l4) => return self.icmp(frame, ip, l4, Reason::Icmp),
            Inner::Fragment(None) => return self.to_kernel(&ip, Reason::Fragment),
            Inner::Fragment(Some(piece)) => return self.fragment(frame, ip, piece, oracle),
            Inner::Transport(transport) => transport,
        };
        let packet = wire::Packet { frame: frame.to_vec(), ip, transport, part: wire::Part::Whole };
        if !packet.is_whole() {
            let own = self.config.own(&packet.ip.destination, packet.ip.v6);
            self.ours(&packet, own)?;
            return drops(Reason::BadTransport);
        }
        self.with_ports(packet, oracle)
    }

    /// A packet whose transport header is there.
    fn with_ports(&mut self, packet: wire::Packet, oracle: &dyn Oracle) -> Ends<Fate> {
        let own = self.config.own(&packet.ip.destination, packet.ip.v6);
        if let Some(Own { pool: Some(pool), .. }) = own {
            return self.at_local_address(packet, pool);
        }
        self.of_flow(packet, own, oracle)
    }

    /// A frame that the kernel gets, unless its address follows a VRRP instance that says otherwise.
    fn to_kernel(&self, ip: &Ip, reason: Reason) -> Ends<Fate> {
        if let Some(own) = self.config.own(&ip.destination, ip.v6) {
            self.may_serve(own.vrrp)?;
        }
        passes(reason)
    }

    /// The packet is to a VIP or a pool address, and this director may speak for it; else it ends.
    fn ours(&self, packet: &wire::Packet, own: Option<Own>) -> Ends<Own> {
        match own {
            Some(own) => {
                self.may_serve(own.vrrp)?;
                self.sender(packet)?;
                Ok(own)
            }
            None if self.config.is_nat_server(&packet.ip.source, packet.ip.v6) => {
                passes(Reason::ServerTraffic)
            }
            None => passes(Reason::NotOurs),
        }
    }

    /// A packet to one of our addresses comes from an address that a host can have, and not from where it goes.
    fn sender(&self, packet: &wire::Packet) -> Ends<()> {
        let (source, v6) = (packet.ip.source, packet.ip.v6);
        if source == packet.ip.destination {
            return drops(Reason::Land);
        }
        let nobody = if v6 {
            let address = std::net::Ipv6Addr::from(source);
            address.is_multicast() || address.is_unspecified() || address.is_loopback()
        } else {
            let address = std::net::Ipv4Addr::new(source[0], source[1], source[2], source[3]);
            address.octets()[0] == 0
                || address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast()
        };
        if nobody { drops(Reason::BadSource) } else { Ok(()) }
    }

    /// docs/datapath.md, "The VRRP role".
    fn may_serve(&self, instance: u8) -> Ends<()> {
        match self.config.role(instance) {
            Role::Master => Ok(()),
            Role::Backup => passes(Reason::VrrpBackup),
            Role::LeaseEnded => drops(Reason::LeaseExpired),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Unmodelled;

    #[test]
    fn the_documentation_lists_what_is_left_out() {
        let page = include_str!("../../../docs/testing.md");
        for what in Unmodelled::ALL {
            assert!(
                page.contains(&format!("\n* {}", what.name())),
                "docs/testing.md lacks: * {}",
                what.name()
            );
        }
    }
}
