//! Live flows as the operator reads them. IPv4 tuples are read back out of the identities, IPv6 ones out of
//! the cold tuples. A dump is no snapshot: each flow is whole, but they are of different moments.

use super::{Clock, Error, Views};
use lb_common::{
    connection::{Entry, FLAG_HASHED, Kind, Value, WAYS},
    destination::{Destination, Forwarding, flags},
    hash::{ports_of_word, tuple_of_identity_v4, tuple_of_sctp_identity_v4},
    lease::PoolAddress,
    sctp,
    state::State,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire},
    },
    time::Duration,
};

/// The transport protocol of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// The state of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowState {
    /// Of TCP or UDP.
    Common(State),
    Sctp(sctp::State),
}

impl FlowState {
    fn of(value: Value) -> Option<FlowState> {
        if value.is_sctp() {
            sctp::State::from_number(value.state()).map(FlowState::Sctp)
        } else {
            State::from_number(value.state()).map(FlowState::Common)
        }
    }

    /// The name that `ipvsadm -Lc` gives it.
    pub fn name(self) -> &'static str {
        match self {
            FlowState::Common(state) => state.name(),
            FlowState::Sctp(state) => state.name(),
        }
    }
}

impl PartialEq<State> for FlowState {
    fn eq(&self, state: &State) -> bool {
        *self == FlowState::Common(*state)
    }
}

impl PartialEq<sctp::State> for FlowState {
    fn eq(&self, state: &sctp::State) -> bool {
        *self == FlowState::Sctp(*state)
    }
}

/// One flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    pub protocol: Protocol,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub real_server: SocketAddr,
    /// FULLNAT: our address and port towards the real server.
    pub local: Option<SocketAddr>,
    pub state: FlowState,
    pub expires_in: Duration,
    pub forwarding: Forwarding,
    /// Index of the service.
    pub service: u32,
    /// Index of the destination.
    pub destination: u32,
}

/// Calls `each` with every live flow until it says false. `pool` are the local addresses by index. NAT's reply
/// entries and persistence templates are no flows of their own.
pub fn connections(
    views: &Views,
    clock: &Clock,
    pool: &[PoolAddress],
    mut each: impl FnMut(Connection) -> bool,
) -> Result<(), Error> {
    let now = clock.tick()?;
    for bucket in 0..views.connections.len() {
        for way in 0..WAYS as u32 {
            let Some(entry) = stable(views, bucket, way) else { continue };
            if Value(entry.value).is_expired(now) {
                continue;
            }
            if let Some(connection) = read(views, clock, pool, now, bucket, way, entry)
                && !each(connection)
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Ends every live flow that is `doomed`: its entry expires now, and the next packet belongs to no known flow.
/// Returns how many.
pub fn end(views: &Views, clock: &Clock, mut doomed: impl FnMut(&Connection) -> bool) -> Result<u64, Error> {
    let now = clock.tick()?;
    let mut ended = 0;
    for bucket in 0..views.connections.len() {
        for way in 0..WAYS as u32 {
            let Some(entry) = stable(views, bucket, way) else { continue };
            let value = Value(entry.value);
            let doomed = !value.is_expired(now)
                && read(views, clock, &[], now, bucket, way, entry).is_some_and(|flow| doomed(&flow));
            if !doomed {
                continue;
            }
            ended += u64::from(expire(views.value(bucket, way), value, now.wrapping_sub(1)));
            if value.kind() == Kind::FullNat {
                end_lease(views, value.lease(), entry.identity, now.wrapping_sub(1));
            }
        }
    }
    Ok(ended)
}

/// The local port of a FULLNAT flow that has ended is free at once, and its server is counted one less.
fn end_lease(views: &Views, lease: u32, owner: u64, deadline: u16) {
    if lease >= views.leases.len() {
        return;
    }
    let word = views.leases.word(lease, 8);
    let value = Value(word.load(Acquire));
    // Another flow may have it by now.
    if !value.is_empty() && !value.is_busy() && views.leases.word(lease, 0).load(Acquire) == owner {
        expire(word, value, deadline);
    }
}

/// Gives a word, last seen as `value`, another deadline. A packet may refresh it meanwhile: only what it did then is
/// done over.
fn expire(word: &AtomicU64, value: Value, deadline: u16) -> bool {
    let with = |value: Value| {
        word.compare_exchange(value.0, value.with_deadline(deadline).0, AcqRel, Acquire).is_ok()
    };
    if with(value) {
        return true;
    }
    let latest = Value(word.load(Acquire));
    latest.payload() == value.payload() && with(latest)
}

/// Gives every persistence template at most the time that `timeouts` says of its group, by the index of the service
/// that leads it, in ticks. Returns how many had more.
pub fn shorten(views: &Views, clock: &Clock, timeouts: &BTreeMap<u32, u16>) -> Result<u64, Error> {
    let now = clock.tick()?;
    let mut shortened = 0;
    for bucket in 0..views.connections.len() {
        for way in 0..WAYS as u32 {
            let Some(entry) = stable(views, bucket, way) else { continue };
            let value = Value(entry.value);
            if value.kind() != Kind::Template || value.is_expired(now) {
                continue;
            }
            let group = read_template(views, clock, now, bucket, way, entry).map(|template| template.group);
            let Some(timeout) = group.and_then(|group| timeouts.get(&group)) else { continue };
            if value.deadline().wrapping_sub(now) > *timeout {
                let word = views.value(bucket, way);
                shortened += u64::from(expire(word, value, now.wrapping_add(*timeout)));
            }
        }
    }
    Ok(shortened)
}

/// The client of a persistence template.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StickyClient {
    /// The client's address, cut to the service's prefix.
    Prefix(IpAddr),
    /// A SIP call; only the hash of its Call-ID is kept.
    Call,
}

/// A persistence template: where the new flows of a client go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    pub client: StickyClient,
    /// Index of the service that leads the group.
    pub group: u32,
    pub real_server: IpAddr,
    /// Index of the destination that it names: its service may be another endpoint of the group.
    pub destination: u32,
    pub expires_in: Duration,
}

/// Calls `each` with every live persistence template until it says false.
pub fn templates(views: &Views, clock: &Clock, mut each: impl FnMut(Template) -> bool) -> Result<(), Error> {
    let now = clock.tick()?;
    for bucket in 0..views.connections.len() {
        for way in 0..WAYS as u32 {
            let Some(entry) = stable(views, bucket, way) else { continue };
            let value = Value(entry.value);
            if value.kind() != Kind::Template || value.is_expired(now) {
                continue;
            }
            if let Some(template) = read_template(views, clock, now, bucket, way, entry)
                && !each(template)
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn read_template(
    views: &Views,
    clock: &Clock,
    now: u16,
    bucket: u32,
    way: u32,
    entry: Entry,
) -> Option<Template> {
    let value = Value(entry.value);
    let index = value.destination();
    if index >= views.destinations.len() {
        return None;
    }
    let destination = views.destinations.get(index);
    let flags = Destination::flags_of(destination.word);
    if flags & flags::VALID == 0 || destination.service >= views.services.len() {
        return None;
    }
    let client = if value.flags() & FLAG_HASHED != 0 {
        StickyClient::Call
    } else if flags & flags::VIP_V6 != 0 {
        let slot = bucket * WAYS as u32 + way;
        if slot >= views.cold_tuples.len() {
            return None;
        }
        StickyClient::Prefix(views.cold_tuples.get(slot).source.to_ip(true))
    } else {
        let (prefix, _) = views.secrets.client_of_template_v4(entry.identity);
        StickyClient::Prefix(IpAddr::from(prefix.to_ne_bytes()))
    };
    Some(Template {
        client,
        group: views.services.get(destination.service).leader,
        real_server: destination.address.to_ip(flags & flags::REAL_V6 != 0),
        destination: index,
        expires_in: Duration::from_millis(clock.milliseconds(value.deadline().wrapping_sub(now))),
    })
}

/// An entry whose identity did not change while its value was read.
fn stable(views: &Views, bucket: u32, way: u32) -> Option<Entry> {
    let identity = views.identity(bucket, way).load(Acquire);
    let value = Value(views.value(bucket, way).load(Acquire));
    let first = views.secrets.first(identity);
    let whole = !value.is_empty()
        && !value.is_busy()
        && value.has_tag(first)
        && views.identity(bucket, way).load(Acquire) == identity;
    whole.then_some(Entry { identity, value: value.0 })
}

fn read(
    views: &Views,
    clock: &Clock,
    pool: &[PoolAddress],
    now: u16,
    bucket: u32,
    way: u32,
    entry: Entry,
) -> Option<Connection> {
    let value = Value(entry.value);
    let (index, lease) = match value.kind() {
        Kind::Flow => (value.destination(), None),
        Kind::FullNat => {
            let word = views.lease_word(value.lease());
            (word.destination(), (!word.is_empty()).then_some(value.lease()))
        }
        Kind::NatReply | Kind::Template => return None,
    };
    if (value.kind() == Kind::FullNat && lease.is_none()) || index >= views.destinations.len() {
        return None;
    }
    let destination = views.destinations.get(index);
    let flags = Destination::flags_of(destination.word);
    if flags & flags::VALID == 0 {
        return None;
    }
    let v6 = flags & flags::VIP_V6 != 0;
    let protocol = match flags & (flags::UDP | flags::SCTP) {
        flags::UDP => Protocol::Udp,
        flags::SCTP => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    let (client, ports) = if v6 {
        let slot = bucket * WAYS as u32 + way;
        if slot >= views.cold_tuples.len() {
            return None;
        }
        let tuple = views.cold_tuples.get(slot);
        (tuple.source.to_ip(true), tuple.ports)
    } else {
        let key = views.secrets.key_v4(destination.vip.words()[0]);
        let (secrets, identity) = (&views.secrets, entry.identity);
        let (source, ports) = match protocol {
            Protocol::Sctp => tuple_of_sctp_identity_v4(secrets, identity, key),
            other => tuple_of_identity_v4(secrets, identity, key, other == Protocol::Udp),
        };
        (IpAddr::from(source.to_ne_bytes()), ports)
    };
    let (client_port, vip_port) = ports_of_word(ports);
    let method = Destination::forwarding_of(Destination::flags_of(destination.word));
    let real_port = match u16::from_be(Destination::port_of(destination.word)) {
        // TUN keeps the port; it has the tunnel's there.
        port if port != 0 && method != Forwarding::Tun => port,
        _ => vip_port,
    };
    let local = lease.and_then(|lease| {
        let address = pool.get((lease >> 16) as usize).filter(|address| address.family != 0)?;
        Some(SocketAddr::new(address.address.to_ip(address.family == 6), lease as u16))
    });
    Some(Connection {
        protocol,
        client: SocketAddr::new(client, client_port),
        vip: SocketAddr::new(destination.vip.to_ip(v6), vip_port),
        real_server: SocketAddr::new(destination.address.to_ip(flags & flags::REAL_V6 != 0), real_port),
        local,
        state: FlowState::of(value)?,
        expires_in: Duration::from_millis(clock.milliseconds(value.deadline().wrapping_sub(now))),
        forwarding: Destination::forwarding_of(flags),
        service: destination.service,
        destination: index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Sizes;
    use lb_common::{
        address::Address,
        connection::ColdTuple,
        hash::{Secrets, ports_word, tuple_v4},
        lease::lease_index,
    };
    use std::sync::atomic::Ordering::Relaxed;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn views() -> Views {
        let sizes = Sizes {
            connections: 14,
            connections_v6: 14,
            destinations: 8,
            pool_addresses: 1,
            ..Sizes::default()
        };
        let random = std::array::from_fn(|i| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 3));
        Views::in_memory(&sizes, Secrets::from_random(random), sizes.config(250, 1)).unwrap()
    }

    fn destination(views: &Views, index: u32, vip: &str, real: &str, port: u16, extra: u32) {
        let v6 = if ip(vip).is_ipv6() { flags::VIP_V6 | flags::REAL_V6 } else { 0 };
        let record = Destination {
            word: Destination::make_word(port, 1500, flags::VALID | v6 | extra),
            service: 3,
            address: ip(real).into(),
            vip: ip(vip).into(),
            ..Destination::default()
        };
        views.destinations.update(index, &record, 0);
    }

    fn put_v4(
        views: &Views,
        way: u32,
        vip: &str,
        client: &str,
        ports: (u16, u16),
        value: impl Fn(u64) -> Value,
    ) {
        let word = |text: &str| Address::from(ip(text)).words()[0];
        let tuple = tuple_v4(word(client), ports_word(ports.0, ports.1));
        let identity = views.secrets.identity_v4(views.secrets.key_v4(word(vip)), tuple, false);
        views.identity(0, way).store(identity, Relaxed);
        views.value(0, way).store(value(views.secrets.first(identity)).0, Relaxed);
    }

    fn all(views: &Views, pool: &[PoolAddress]) -> Vec<Connection> {
        let mut all = Vec::new();
        let clock = Clock::fixed(0, 250);
        connections(views, &clock, pool, |c| {
            all.push(c);
            true
        })
        .unwrap();
        all
    }

    #[test]
    fn an_ipv4_flow_is_read_back_with_its_ports() {
        let views = views();
        destination(&views, 2, "203.0.113.10", "10.0.0.11", 8080, Forwarding::Nat as u32);
        put_v4(&views, 1, "203.0.113.10", "198.51.100.7", (40_000, 80), |first| {
            Value::flow(Kind::Flow, 2, first, State::Established, 10)
        });
        put_v4(&views, 2, "203.0.113.10", "198.51.100.8", (1, 80), |first| {
            Value::nat_reply(2, 1, first, State::Established, 10)
        });
        put_v4(&views, 3, "203.0.113.10", "198.51.100.9", (1, 80), |first| {
            Value::flow(Kind::Flow, 2, first, State::Established, 0)
        });
        let found = all(&views, &[]);
        assert_eq!(found.len(), 1, "neither the reply entry nor the expired one: {found:?}");
        assert_eq!(found[0].client.to_string(), "198.51.100.7:40000");
        assert_eq!(found[0].vip.to_string(), "203.0.113.10:80");
        assert_eq!(found[0].real_server.to_string(), "10.0.0.11:8080");
        assert_eq!((found[0].forwarding, found[0].service, found[0].local), (Forwarding::Nat, 3, None));
        assert_eq!(found[0].expires_in, Duration::from_millis(10 * 128 * 4));
    }

    #[test]
    fn an_sctp_flow_is_read_back_with_a_state_of_its_own() {
        use lb_common::connection::FLAG_SCTP;
        let views = views();
        destination(&views, 2, "203.0.113.10", "10.0.0.11", 0, flags::SCTP);
        let word = |text: &str| Address::from(ip(text)).words()[0];
        let tuple = tuple_v4(word("198.51.100.7"), ports_word(40_000, 3868));
        let identity = views.secrets.identity_v4_sctp(views.secrets.key_v4(word("203.0.113.10")), tuple);
        let first = views.secrets.first(identity);
        for state in sctp::State::ALL {
            let value = Value::flow(Kind::Flow, 2, first, State::Established, 10).with(state as u8, 10);
            views.identity(0, 1).store(identity, Relaxed);
            views.value(0, 1).store(value.with_flags(FLAG_SCTP).0, Relaxed);
            let found = all(&views, &[]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].protocol, found[0].state.name()), (Protocol::Sctp, state.name()));
            assert_eq!(found[0].client.to_string(), "198.51.100.7:40000");
        }
    }

    #[test]
    fn templates_show_their_client_and_are_no_flows() {
        let views = views();
        destination(&views, 2, "203.0.113.10", "10.0.0.11", 0, 0);
        views.services.update(3, &lb_common::service::Service { leader: 1, ..Default::default() }, 0);
        let prefix = Address::from(ip("198.51.100.0")).words()[0];
        for (way, identity, flags) in [
            (0, views.secrets.template_v4(prefix, 1), 0),
            (1, views.secrets.template_of_call(77, 1), FLAG_HASHED),
        ] {
            let first = views.secrets.first(identity);
            let value = Value::flow(Kind::Template, 2, first, State::Unconfirmed, 10).with_flags(flags);
            views.identity(0, way).store(identity, Relaxed);
            views.value(0, way).store(value.0, Relaxed);
        }
        assert_eq!(all(&views, &[]), []);
        let mut found = Vec::new();
        templates(&views, &Clock::fixed(0, 250), |template| {
            found.push(template);
            true
        })
        .unwrap();
        assert_eq!(found[0].client, StickyClient::Prefix(ip("198.51.100.0")));
        assert_eq!((found[0].group, found[0].destination, found[0].real_server), (1, 2, ip("10.0.0.11")));
        assert_eq!(found[1].client, StickyClient::Call);
    }

    #[test]
    fn a_shorter_persistence_holds_for_clients_that_are_kept_already() {
        let views = views();
        for (index, service) in [(2, 3), (4, 0)] {
            let record = Destination {
                word: Destination::make_word(0, 1500, flags::VALID),
                service,
                ..Destination::default()
            };
            views.destinations.update(index, &record, 0);
        }
        views.services.update(3, &lb_common::service::Service { leader: 1, ..Default::default() }, 0);
        let put = |way: u32, client: &str, destination: u32, deadline: u16| {
            let identity = views.secrets.template_v4(Address::from(ip(client)).words()[0], 1);
            let first = views.secrets.first(identity);
            let value = Value::flow(Kind::Template, destination, first, State::Unconfirmed, deadline);
            views.identity(0, way).store(identity, Relaxed);
            views.value(0, way).store(value.0, Relaxed);
        };
        put(0, "198.51.100.1", 2, 500);
        put(1, "198.51.100.2", 2, 60);
        put(2, "198.51.100.3", 4, 500);
        let clock = Clock::fixed(0, 250);
        let timeouts = BTreeMap::from([(1, 100)]);
        assert_eq!(shorten(&views, &clock, &timeouts).unwrap(), 1);
        let deadline = |way| Value(views.value(0, way).load(Relaxed)).deadline();
        assert_eq!((deadline(0), deadline(1), deadline(2)), (100, 60, 500), "the last is another group's");
        assert_eq!(shorten(&views, &clock, &timeouts).unwrap(), 0, "done once");
    }

    #[test]
    fn a_fullnat_flow_that_is_ended_gives_its_local_port_back() {
        let views = views();
        destination(&views, 4, "203.0.113.10", "10.0.1.21", 9443, Forwarding::FullNat as u32);
        let leases = [lease_index(0, 50_000), lease_index(0, 50_001)];
        for ((way, client), lease) in [(0, "198.51.100.7"), (1, "198.51.100.8")].into_iter().zip(leases) {
            put_v4(&views, way, "203.0.113.10", client, (7, 8443), |first| {
                Value::full_nat(lease, first, State::Established, 10)
            });
            views.leases.word(lease, 0).store(views.identity(0, way).load(Relaxed), Relaxed);
            let word = Value::flow(Kind::FullNat, 4, 0, State::Established, 10);
            views.leases.word(lease, 8).store(word.0, Relaxed);
        }
        let clock = Clock::fixed(0, 250);
        let of_first = |flow: &Connection| flow.client.ip() == ip("198.51.100.7");
        assert_eq!(end(&views, &clock, of_first).unwrap(), 1);
        let expired = |lease| views.lease_word(lease).is_expired(0);
        assert_eq!(leases.map(expired), [true, false]);
        assert!(Value(views.value(0, 0).load(Relaxed)).is_expired(0));
        // A port that another flow has meanwhile is that flow's.
        views.leases.word(leases[1], 0).store(1, Relaxed);
        assert_eq!(end(&views, &clock, |_| true).unwrap(), 1);
        assert!(!expired(leases[1]));
    }

    #[test]
    fn an_ipv6_flow_is_read_from_its_cold_tuple() {
        let views = views();
        destination(&views, 1, "2001:db8::10", "fd00::11", 0, Forwarding::Dr as u32);
        let identity = 0x1234_5678_9abc_def0;
        views.identity(2, 3).store(identity, Relaxed);
        let value = Value::flow(Kind::Flow, 1, views.secrets.first(identity), State::SynReceived, 3);
        views.value(2, 3).store(value.0, Relaxed);
        let tuple =
            ColdTuple { source: ip("2001:db8:1::7").into(), ports: ports_word(5, 443), ..Default::default() };
        views.cold_tuples.update(11, &tuple, 0);
        let found = all(&views, &[]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].client.to_string(), "[2001:db8:1::7]:5");
        assert_eq!(found[0].real_server.to_string(), "[fd00::11]:443", "the port is kept");
    }

    #[test]
    fn a_fullnat_flow_shows_its_local_address() {
        let views = views();
        destination(&views, 4, "203.0.113.10", "10.0.1.21", 9443, Forwarding::FullNat as u32);
        let lease = lease_index(0, 50_000);
        put_v4(&views, 0, "203.0.113.10", "198.51.100.7", (7, 8443), |first| {
            Value::full_nat(lease, first, State::Established, 10)
        });
        assert_eq!(all(&views, &[]), [], "without its lease it is no flow");
        let word = Value::flow(Kind::FullNat, 4, 0, State::Established, 10);
        views.leases.word(lease, 8).store(word.0, Relaxed);
        let pool = [PoolAddress { address: ip("10.0.0.200").into(), family: 4, ..Default::default() }];
        let found = all(&views, &pool);
        assert_eq!(found[0].local.map(|l| l.to_string()), Some("10.0.0.200:50000".into()));
        assert_eq!(found[0].real_server.to_string(), "10.0.1.21:9443");
    }

    #[test]
    fn a_value_of_another_flow_is_not_shown() {
        let views = views();
        destination(&views, 2, "203.0.113.10", "10.0.0.11", 0, 0);
        put_v4(&views, 1, "203.0.113.10", "198.51.100.7", (40_000, 80), |first| {
            Value::flow(Kind::Flow, 2, first ^ 1 << 16, State::Established, 10)
        });
        assert_eq!(all(&views, &[]), []);
    }
}
