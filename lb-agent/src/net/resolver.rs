//! From addresses to next hops: which interface, VLAN tags and hardware addresses a frame needs. Pure: give it the
//! kernel's events and `now`, it returns what to ask, what to probe and what changed; `watcher.rs` does it.
//!
//! A watched address has a route (the kernel's answer, so policy rules count) and by it a hop: the gateway, or the
//! address itself, on an interface. Hops are shared by the addresses behind one gateway and are kept confirmed by
//! probing, so that the data plane never waits for ARP and a silent change of a hardware address is noticed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::links::{Link, Links};
use super::{Event, NextHop, Resolution};

/// What is resolved: a watched address, or a gateway on the interface that a client route names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub address: IpAddr,
    /// Given for gateways only: the neighbour is the address itself, on this interface.
    pub interface: Option<u32>,
}

/// One neighbour on one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    pub ifindex: u32,
    pub address: IpAddr,
}

/// The kernel's answer for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub ifindex: u32,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    /// MTU metric of the route, in bytes.
    pub mtu: Option<u32>,
    /// The address is one of this host's: nothing else is known.
    pub local: bool,
}

/// The kernel's entry for one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub state: Reachability,
    pub mac: Option<[u8; 6]>,
}

/// States of RFC 4861 7.3.2, as far as we act differently on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// REACHABLE.
    Confirmed,
    /// PERMANENT or NOARP: never probed.
    Static,
    Stale,
    /// DELAY or PROBE: the old hardware address is being confirmed.
    Probing,
    /// The kernel gave up.
    Failed,
    /// INCOMPLETE (being asked for the first time), or no state.
    Unknown,
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask for these routes and hand the answers to [`Resolver::routes`] with this number.
    AskRoutes { number: u64, targets: Vec<Target> },
    /// Read the main table again; it may have changed.
    ReadClientRoutes,
    /// Make the kernel resolve the neighbour; `confirm`: its entry holds an address that is to be confirmed.
    Probe { hop: Hop, confirm: bool },
    /// Tell the consumer.
    Emit(Event),
}

/// Watched addresses, what is known about the way to each, and when to look again.
#[derive(Default)]
pub struct Resolver {
    links: Links,
    /// Every entry of the kernel, also those that nobody uses yet: a good one gives no event when it is asked for.
    neighbours: HashMap<Hop, Neighbour>,
    watched: BTreeMap<Target, Watched>,
    hops: HashMap<Hop, HopState>,
    /// Times to probe; each hop is in it at most once, with `HopState::probe_at`.
    probes: BTreeSet<(Instant, Hop)>,
    /// Something that routes depend on has changed; ask again then.
    ask_at: Option<Instant>,
    /// The question about everything that is under way.
    asking: Option<u64>,
    not_before: Option<Instant>,
    number: u64,
    links_changed: bool,
    actions: Vec<Action>,
}

#[derive(Default)]
struct Watched {
    /// `None` until the first answer.
    route: Option<Result<Route, String>>,
    /// Number of the last question; earlier answers are out of date.
    asked: u64,
    reported: Option<Resolution>,
}

#[derive(Default)]
struct HopState {
    users: BTreeSet<Target>,
    /// The last hardware address that was good. It outlives the kernel's entry (flushed, collected), until the
    /// kernel finds that nobody answers.
    mac: Option<[u8; 6]>,
    /// Why there is none.
    failed: Option<String>,
    failures: u32,
    probed: Option<Instant>,
    probe_at: Option<Instant>,
}

impl Resolver {
    /// Replaces the set of watched addresses. Costs what differs.
    pub fn watch(&mut self, addresses: &BTreeSet<IpAddr>) {
        let targets = addresses.iter().map(|&address| Target { address, interface: None }).collect();
        self.replace_targets(targets, |target| target.interface.is_none());
    }

    /// Replaces the set of gateways of client routes.
    pub fn watch_gateways(&mut self, gateways: &BTreeSet<(IpAddr, u32)>) {
        let target = |&(address, ifindex)| Target { address, interface: Some(ifindex) };
        self.replace_targets(gateways.iter().map(target).collect(), |target| target.interface.is_some());
    }

    /// An interface appeared or changed.
    pub fn link(&mut self, now: Instant, link: Link) {
        if self.links.insert(link) {
            self.links_differ(now);
        }
    }

    /// An interface is gone.
    pub fn link_gone(&mut self, now: Instant, index: u32) {
        if self.links.remove(index) {
            self.links_differ(now);
        }
    }

    /// All interfaces, read anew.
    pub fn replace_links(&mut self, now: Instant, links: Links) {
        if self.links != links {
            self.links = links;
            self.links_differ(now);
        }
    }

    /// Routes, rules or addresses changed: every route is asked for again, shortly.
    pub fn routes_changed(&mut self, now: Instant) {
        let at = (now + SETTLE).max(self.not_before.unwrap_or(now));
        self.ask_at.get_or_insert(at);
    }

    /// The answers to [`Action::AskRoutes`], and how long they took.
    pub fn routes(
        &mut self,
        now: Instant,
        number: u64,
        took: Duration,
        answers: Vec<(Target, Result<Route, String>)>,
    ) {
        for (target, answer) in answers {
            let Some(watched) = self.watched.get_mut(&target) else { continue };
            if number < watched.asked {
                continue;
            }
            let answer = match target.interface {
                None => answer,
                // The client route decides about the interface. That its gateway has no route of its own
                // (`onlink`) does not matter.
                Some(ifindex) => {
                    let (source, mtu) = answer.map_or((None, None), |route| (route.source, route.mtu));
                    Ok(Route { ifindex, gateway: None, source, mtu, local: false })
                }
            };
            let old = watched.hop(target);
            watched.route = Some(answer);
            let new = watched.hop(target);
            if old != new {
                if let Some(hop) = old {
                    self.leave(target, hop);
                }
                if let Some(hop) = new {
                    self.join(now, target, hop);
                }
            }
            self.report(target);
        }
        if self.asking == Some(number) {
            self.asking = None;
            // Routes that change all the time (a full BGP table) cost half a CPU at most.
            let rest = now + took.min(ASK_AT_MOST);
            self.not_before = Some(rest);
            self.ask_at = self.ask_at.map(|at| at.max(rest));
        }
    }

    /// The kernel's entry for a neighbour changed (`None`: it is gone).
    pub fn neighbour(&mut self, now: Instant, hop: Hop, entry: Option<Neighbour>) {
        match entry {
            Some(entry) => self.neighbours.insert(hop, entry),
            None => self.neighbours.remove(&hop),
        };
        let Some(state) = self.hops.get_mut(&hop) else { return };
        let at = match entry {
            Some(Neighbour { state: reachability, mac: Some(mac) }) if reachability.is_usable() => {
                (state.mac, state.failed, state.failures) = (Some(mac), None, 0);
                match reachability {
                    Reachability::Static => None,
                    Reachability::Stale => Some(now),
                    Reachability::Probing => Some(now + ANSWER),
                    _ => Some(now + refresh(hop)),
                }
            }
            Some(Neighbour { state: Reachability::Failed, .. }) => {
                let reason = no_answer(hop, &self.links);
                let was_good = state.mac.is_some();
                let wait = state.fail(reason);
                // Only the old hardware address was asked (unicast, PROBE): ask everybody before waiting.
                Some(if was_good { now } else { now + wait })
            }
            Some(_) => Some(now + ANSWER),
            // The kernel drops the entries of those who do not answer: not a reason to ask earlier.
            None if state.failed.is_some() => state.probe_at,
            None => Some(now),
        };
        self.schedule(hop, at);
        self.report_users(hop);
    }

    /// All neighbours, read anew.
    pub fn replace_neighbours(&mut self, now: Instant, entries: HashMap<Hop, Neighbour>) {
        let old = std::mem::replace(&mut self.neighbours, entries);
        for hop in self.hops.keys().copied().collect::<Vec<_>>() {
            let entry = self.neighbours.get(&hop).copied();
            if old.get(&hop).copied() != entry {
                self.neighbour(now, hop, entry);
            }
        }
    }

    /// The kernel refused to probe.
    pub fn probe_refused(&mut self, now: Instant, hop: Hop, reason: String) {
        let Some(state) = self.hops.get_mut(&hop) else { return };
        let usable = self.neighbours.get(&hop).is_some_and(|entry| entry.state.is_usable());
        // A hardware address that could not be confirmed this time is not a wrong one.
        let wait = if usable { BACKOFF_FIRST } else { state.fail(reason) };
        self.schedule(hop, Some(now + wait));
        self.report_users(hop);
    }

    /// When [`Resolver::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let probe = self.probes.first().map(|(at, _)| *at);
        let ask = self.ask_at.filter(|_| self.asking.is_none());
        [probe, ask].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        while let Some(&(at, hop)) = self.probes.first()
            && at <= now
        {
            self.schedule(hop, None);
            if self.links.output(hop.ifindex).is_err() {
                // Nobody can answer; `links_differ` looks again.
                continue;
            }
            let Some(state) = self.hops.get_mut(&hop) else { continue };
            if let Some(earliest) = state.probed.map(|probed| probed + PROBE_AT_MOST)
                && now < earliest
            {
                self.schedule(hop, Some(earliest));
                continue;
            }
            state.probed = Some(now);
            let entry = self.neighbours.get(&hop);
            let confirm = entry.is_some_and(|entry| entry.state.is_usable() && entry.mac.is_some());
            self.actions.push(Action::Probe { hop, confirm });
            self.schedule(hop, Some(now + ANSWER));
        }
        if let Some(at) = self.ask_at
            && at <= now
            && self.asking.is_none()
        {
            self.ask_at = None;
            self.actions.push(Action::ReadClientRoutes);
            let targets: Vec<Target> = self.watched.keys().copied().collect();
            self.ask(targets);
            self.asking = Some(self.number);
        }
    }

    /// What there is to do since the last call.
    pub fn take_actions(&mut self) -> Vec<Action> {
        if std::mem::take(&mut self.links_changed) {
            let links = self.links.iter().cloned().collect();
            self.actions.push(Action::Emit(Event::Links(links)));
        }
        std::mem::take(&mut self.actions)
    }

    fn replace_targets(&mut self, wanted: BTreeSet<Target>, mine: impl Fn(&Target) -> bool) {
        let gone: Vec<Target> =
            self.watched.keys().filter(|t| mine(t) && !wanted.contains(t)).copied().collect();
        for target in gone {
            if let Some(hop) = self.watched.remove(&target).and_then(|watched| watched.hop(target)) {
                self.leave(target, hop);
            }
        }
        let new: Vec<Target> = wanted.into_iter().filter(|t| !self.watched.contains_key(t)).collect();
        for target in &new {
            self.watched.insert(*target, Watched::default());
            self.report(*target);
        }
        if !new.is_empty() {
            self.ask(new);
        }
    }

    fn ask(&mut self, targets: Vec<Target>) {
        self.number += 1;
        for target in &targets {
            if let Some(watched) = self.watched.get_mut(target) {
                watched.asked = self.number;
            }
        }
        // Asked even when empty: the answer ends `asking`.
        self.actions.push(Action::AskRoutes { number: self.number, targets });
    }

    fn links_differ(&mut self, now: Instant) {
        self.links_changed = true;
        for hop in self.hops.keys().copied().collect::<Vec<_>>() {
            let settled = self.neighbours.get(&hop).is_some_and(|entry| entry.state.is_settled());
            if !settled && self.links.output(hop.ifindex).is_ok() {
                self.schedule(hop, Some(now));
            }
        }
        for target in self.watched.keys().copied().collect::<Vec<_>>() {
            self.report(target);
        }
        // The kernel drops IPv4 routes of an interface that goes down without saying so.
        self.routes_changed(now);
    }

    fn join(&mut self, now: Instant, target: Target, hop: Hop) {
        let state = self.hops.entry(hop).or_default();
        state.users.insert(target);
        if state.users.len() == 1 {
            self.neighbour(now, hop, self.neighbours.get(&hop).copied());
        }
    }

    fn leave(&mut self, target: Target, hop: Hop) {
        let Some(state) = self.hops.get_mut(&hop) else { return };
        state.users.remove(&target);
        if state.users.is_empty() {
            self.schedule(hop, None);
            self.hops.remove(&hop);
        }
    }

    fn schedule(&mut self, hop: Hop, at: Option<Instant>) {
        let Some(state) = self.hops.get_mut(&hop) else { return };
        if let Some(old) = std::mem::replace(&mut state.probe_at, at) {
            self.probes.remove(&(old, hop));
        }
        if let Some(at) = at {
            self.probes.insert((at, hop));
        }
    }

    fn report_users(&mut self, hop: Hop) {
        let Some(state) = self.hops.get(&hop) else { return };
        for target in state.users.iter().copied().collect::<Vec<_>>() {
            self.report(target);
        }
    }

    fn report(&mut self, target: Target) {
        let Some(watched) = self.watched.get(&target) else { return };
        let hop = watched.hop(target).and_then(|hop| self.hops.get(&hop));
        let resolution = resolution(target, watched.route.as_ref(), &self.links, hop);
        if watched.reported.as_ref() == Some(&resolution) {
            return;
        }
        let event = match target.interface {
            None => Event::Resolution { address: target.address, resolution: resolution.clone() },
            Some(ifindex) => {
                Event::Gateway { address: target.address, ifindex, resolution: resolution.clone() }
            }
        };
        self.actions.push(Action::Emit(event));
        if let Some(watched) = self.watched.get_mut(&target) {
            watched.reported = Some(resolution);
        }
    }
}

/// What is known about the way to one target.
fn resolution(
    target: Target,
    route: Option<&Result<Route, String>>,
    links: &Links,
    hop: Option<&HopState>,
) -> Resolution {
    let route = match route {
        None => return Resolution::Pending,
        Some(Err(reason)) => return Resolution::Failed { reason: reason.clone() },
        Some(Ok(route)) if route.local => return Resolution::Local,
        Some(Ok(route)) => route,
    };
    let output = match links.output(route.ifindex) {
        Err(reason) => return Resolution::Failed { reason },
        Ok(output) => output,
    };
    match hop {
        Some(HopState { mac: Some(mac), .. }) => Resolution::Resolved(NextHop {
            ifindex: output.ifindex,
            destination_mac: *mac,
            source_mac: output.mac,
            vlans: output.vlans,
            mtu: route.mtu.map_or(output.mtu, |mtu| mtu.min(output.mtu)),
            source: route.source,
            neighbour: neighbour_of(target, route),
        }),
        Some(HopState { failed: Some(reason), .. }) => Resolution::Failed { reason: reason.clone() },
        _ => Resolution::Pending,
    }
}

fn neighbour_of(target: Target, route: &Route) -> IpAddr {
    match target.interface {
        // A gateway is on the link by definition, whatever route its address has.
        Some(_) => target.address,
        None => route.gateway.unwrap_or(target.address),
    }
}

fn no_answer(hop: Hop, links: &Links) -> String {
    let protocol = if hop.address.is_ipv4() { "ARP answer" } else { "neighbour advertisement" };
    format!("no {protocol} from {} on {}", hop.address, links.name(hop.ifindex))
}

/// 20 to 30 s, differently for each neighbour so that thousands are not probed at once.
fn refresh(hop: Hop) -> Duration {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(hop);
    REFRESH + Duration::from_millis(hash % REFRESH_SPREAD_MS)
}

impl Watched {
    fn hop(&self, target: Target) -> Option<Hop> {
        let Some(Ok(route)) = &self.route else { return None };
        if route.local {
            return None;
        }
        Some(Hop { ifindex: route.ifindex, address: neighbour_of(target, route) })
    }
}

impl HopState {
    /// Notes a failure and returns how long to wait before the next try.
    fn fail(&mut self, reason: String) -> Duration {
        self.mac = None;
        self.failed = Some(reason);
        let wait = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(10)).min(BACKOFF_LAST);
        self.failures += 1;
        wait
    }
}

impl Reachability {
    /// The entry's hardware address can be sent to.
    fn is_usable(self) -> bool {
        matches!(self, Self::Confirmed | Self::Static | Self::Stale | Self::Probing)
    }

    /// Nothing needs to be asked at once.
    fn is_settled(self) -> bool {
        matches!(self, Self::Confirmed | Self::Static)
    }
}

/// Routes come in bursts: wait for the rest before asking.
const SETTLE: Duration = Duration::from_millis(20);
/// The longest rest between two questions about everything.
const ASK_AT_MOST: Duration = Duration::from_secs(5);
/// A confirmed neighbour is confirmed again after this, plus a share of the spread.
const REFRESH: Duration = Duration::from_secs(20);
const REFRESH_SPREAD_MS: u64 = 10_000;
/// The kernel decides within three tries, one second apart (`mcast_solicit`, `ucast_solicit`, `retrans_time_ms`);
/// look again after this if it said nothing.
const ANSWER: Duration = Duration::from_secs(5);
/// One probe per neighbour and second, whatever happens to its entry.
const PROBE_AT_MOST: Duration = Duration::from_secs(1);
/// Waits between tries for a neighbour that does not answer: 1, 2, 4, 8, 10, 10 … s.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_LAST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::links::tests::{ethernet, vlan};

    const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn address(text: &str) -> Target {
        Target { address: ip(text), interface: None }
    }

    fn on_link(ifindex: u32) -> Route {
        Route { ifindex, gateway: None, source: Some(ip("10.0.0.1")), mtu: None, local: false }
    }

    fn hop(text: &str) -> Hop {
        Hop { ifindex: 2, address: ip(text) }
    }

    fn entry(state: Reachability, mac: [u8; 6]) -> Option<Neighbour> {
        Some(Neighbour { state, mac: Some(mac) })
    }

    fn next_hop(mac: [u8; 6]) -> NextHop {
        NextHop {
            ifindex: 2,
            destination_mac: mac,
            source_mac: [2, 0, 0, 0, 0, 2],
            vlans: [0, 0],
            mtu: 1500,
            source: Some(ip("10.0.0.1")),
            neighbour: ip("10.0.0.12"),
        }
    }

    /// A resolver and a clock that the test moves.
    struct Bench {
        resolver: Resolver,
        now: Instant,
        number: u64,
    }

    impl Bench {
        /// eth0 is interface 2.
        fn new() -> Self {
            let mut bench = Self { resolver: Resolver::default(), now: Instant::now(), number: 0 };
            bench.resolver.replace_links(bench.now, Links::from_iter([ethernet(2, "eth0")]));
            bench.pass(Duration::from_secs(1));
            bench.take();
            bench.answer(&[]);
            bench.take();
            bench
        }

        /// Watches 10.0.0.12 and answers its route, once.
        fn watching(route: Result<Route, &str>) -> Self {
            let mut bench = Self::new();
            bench.resolver.watch(&BTreeSet::from([ip("10.0.0.12")]));
            bench.take();
            bench.answer(&[("10.0.0.12", route)]);
            bench
        }

        fn take(&mut self) -> Vec<Action> {
            let actions = self.resolver.take_actions();
            for action in &actions {
                if let Action::AskRoutes { number, .. } = action {
                    self.number = *number;
                }
            }
            actions
        }

        fn answer(&mut self, answers: &[(&str, Result<Route, &str>)]) {
            let answers = answers.iter().map(|(a, r)| (address(a), r.clone().map_err(String::from)));
            self.resolver.routes(self.now, self.number, Duration::from_millis(1), answers.collect());
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.resolver.tick(self.now);
        }

        fn neighbour(&mut self, address: &str, entry: Option<Neighbour>) {
            self.resolver.neighbour(self.now, hop(address), entry);
        }

        /// What was reported about 10.0.0.12 since the last look.
        fn reported(&mut self) -> Vec<Resolution> {
            let emitted = self.take().into_iter().filter_map(|action| match action {
                Action::Emit(Event::Resolution { address, resolution }) if address == ip("10.0.0.12") => {
                    Some(resolution)
                }
                _ => None,
            });
            emitted.collect()
        }

        /// Runs until `end` and returns the times of probes, in seconds from now.
        fn probes_during(&mut self, end: Duration) -> Vec<(f32, bool)> {
            let (start, mut seen) = (self.now, vec![]);
            while let Some(at) = self.resolver.next_deadline().filter(|at| *at <= start + end) {
                self.now = self.now.max(at);
                self.resolver.tick(self.now);
                for action in self.take() {
                    if let Action::Probe { confirm, .. } = action {
                        seen.push(((self.now - start).as_secs_f32(), confirm));
                    }
                }
            }
            self.now = start + end;
            seen
        }
    }

    fn failed(reason: &str) -> Resolution {
        Resolution::Failed { reason: reason.into() }
    }

    #[test]
    fn an_address_is_pending_until_its_neighbour_answers() {
        let mut bench = Bench::new();
        bench.resolver.watch(&BTreeSet::from([ip("10.0.0.12")]));
        let ask = Action::AskRoutes { number: 2, targets: vec![address("10.0.0.12")] };
        let pending = Event::Resolution { address: ip("10.0.0.12"), resolution: Resolution::Pending };
        assert_eq!(bench.take(), [Action::Emit(pending), ask]);
        bench.answer(&[("10.0.0.12", Ok(on_link(2)))]);
        bench.pass(Duration::ZERO);
        assert_eq!(bench.take(), [Action::Probe { hop: hop("10.0.0.12"), confirm: false }]);
        bench.neighbour("10.0.0.12", Some(Neighbour { state: Reachability::Unknown, mac: None }));
        assert_eq!(bench.reported(), []);
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        assert_eq!(bench.reported(), [Resolution::Resolved(next_hop(MAC_A))]);
    }

    #[test]
    fn the_way_to_an_address_follows_route_interface_and_neighbour() {
        let links = Links::from_iter([
            ethernet(2, "eth0"),
            Link { mtu: 1400, ..vlan(3, "eth0.7", 7, 2) },
            Link { up: false, ..ethernet(4, "eth1") },
        ]);
        let mac = HopState { mac: Some(MAC_A), ..HopState::default() };
        let silent =
            HopState { failed: Some("no ARP answer from 10.0.0.12 on eth0".into()), ..HopState::default() };
        let base = next_hop(MAC_A);
        let tagged = NextHop { vlans: [7, 0], mtu: 1400, source_mac: [2, 0, 0, 0, 0, 3], ..next_hop(MAC_A) };
        let routed = NextHop { neighbour: ip("10.0.0.254"), mtu: 1280, ..next_hop(MAC_A) };
        let gateway = Route { gateway: Some(ip("10.0.0.254")), mtu: Some(1280), ..on_link(2) };
        let huge = Route { mtu: Some(9000), ..on_link(2) };
        let rows = [
            (None, None, Resolution::Pending),
            (Some(Ok(on_link(2))), None, Resolution::Pending),
            (Some(Ok(on_link(2))), Some(&mac), Resolution::Resolved(base.clone())),
            (Some(Ok(huge)), Some(&mac), Resolution::Resolved(base)),
            (Some(Ok(on_link(3))), Some(&mac), Resolution::Resolved(tagged)),
            (Some(Ok(gateway)), Some(&mac), Resolution::Resolved(routed)),
            (Some(Ok(on_link(2))), Some(&silent), failed("no ARP answer from 10.0.0.12 on eth0")),
            (Some(Ok(on_link(4))), Some(&mac), failed("eth1 is down")),
            (Some(Ok(on_link(9))), Some(&mac), failed("interface 9 does not exist")),
            (Some(Err("no route to 10.0.0.12".to_owned())), None, failed("no route to 10.0.0.12")),
        ];
        for (route, hop, expected) in rows {
            assert_eq!(resolution(address("10.0.0.12"), route.as_ref(), &links, hop), expected, "{route:?}");
        }
    }

    #[test]
    fn a_neighbour_that_the_kernel_knows_already_is_used_at_once() {
        let mut bench = Bench::new();
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        bench.resolver.watch(&BTreeSet::from([ip("10.0.0.12")]));
        bench.reported();
        bench.answer(&[("10.0.0.12", Ok(on_link(2)))]);
        assert_eq!(bench.reported(), [Resolution::Resolved(next_hop(MAC_A))]);
    }

    #[test]
    fn a_changed_hardware_address_is_reported_and_a_repeated_one_is_not() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        bench.reported();
        bench.neighbour("10.0.0.12", entry(Reachability::Stale, MAC_A));
        bench.neighbour("10.0.0.12", entry(Reachability::Probing, MAC_A));
        assert_eq!(bench.reported(), []);
        bench.neighbour("10.0.0.12", entry(Reachability::Stale, MAC_B));
        assert_eq!(bench.reported(), [Resolution::Resolved(next_hop(MAC_B))]);
    }

    #[test]
    fn a_hop_survives_the_loss_of_its_entry_but_not_silence() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        bench.reported();
        bench.neighbour("10.0.0.12", None);
        assert_eq!(bench.reported(), []);
        bench.neighbour("10.0.0.12", Some(Neighbour { state: Reachability::Failed, mac: None }));
        assert_eq!(bench.reported(), [failed("no ARP answer from 10.0.0.12 on eth0")]);
        bench.neighbour("10.0.0.12", Some(Neighbour { state: Reachability::Unknown, mac: None }));
        bench.neighbour("10.0.0.12", None);
        assert_eq!(bench.reported(), [], "still failed while asked again");
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        assert_eq!(bench.reported(), [Resolution::Resolved(next_hop(MAC_A))]);
    }

    #[test]
    fn a_silent_neighbour_is_asked_less_and_less_often() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.pass(Duration::ZERO);
        bench.take();
        let mut waits = vec![];
        for _ in 0..6 {
            bench.neighbour("10.0.0.12", Some(Neighbour { state: Reachability::Failed, mac: None }));
            let start = bench.now;
            bench.now = bench.resolver.next_deadline().unwrap();
            bench.resolver.tick(bench.now);
            assert!(bench.take().contains(&Action::Probe { hop: hop("10.0.0.12"), confirm: false }));
            waits.push((bench.now - start).as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_neighbour_that_leaves_its_hardware_address_is_asked_for_at_once() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        bench.neighbour("10.0.0.12", Some(Neighbour { state: Reachability::Failed, mac: None }));
        assert_eq!(bench.probes_during(Duration::ZERO), [(0.0, false)]);
    }

    #[test]
    fn a_confirmed_neighbour_is_confirmed_again_within_thirty_seconds() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.pass(Duration::ZERO);
        bench.take();
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        let probes = bench.probes_during(Duration::from_secs(30));
        assert!(probes[0].1 && (20.0..30.0).contains(&probes[0].0), "{probes:?}");
    }

    #[test]
    fn a_stale_neighbour_is_confirmed_at_once_and_a_static_one_never() {
        for (state, expected) in [(Reachability::Stale, 1), (Reachability::Static, 0)] {
            let mut bench = Bench::watching(Ok(on_link(2)));
            bench.pass(Duration::ZERO);
            bench.take();
            bench.now += Duration::from_secs(2);
            bench.neighbour("10.0.0.12", entry(state, MAC_A));
            assert_eq!(bench.probes_during(Duration::from_secs(1)).len(), expected, "{state:?}");
        }
    }

    #[test]
    fn an_entry_that_keeps_vanishing_is_probed_once_a_second() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        let mut probes = 0;
        for _ in 0..100 {
            bench.neighbour("10.0.0.12", None);
            probes += bench.probes_during(Duration::from_millis(50)).len();
        }
        assert_eq!(probes, 6, "at 0, 1, 2, 3, 4 and 5 s");
    }

    #[test]
    fn an_interface_that_goes_down_fails_its_addresses_at_once_and_comes_back_with_them() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        bench.reported();
        bench.resolver.link(bench.now, Link { up: false, ..ethernet(2, "eth0") });
        bench.neighbour("10.0.0.12", None);
        assert_eq!(bench.reported(), [failed("eth0 is down")]);
        assert_eq!(bench.probes_during(Duration::from_secs(60)), []);
        bench.resolver.link(bench.now, ethernet(2, "eth0"));
        assert_eq!(bench.reported(), [Resolution::Resolved(next_hop(MAC_A))]);
        assert_eq!(bench.probes_during(Duration::ZERO), [(0.0, false)]);
    }

    #[test]
    fn changes_of_routes_are_asked_for_together_and_late_answers_are_ignored() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        let first = bench.number;
        bench.reported();
        for _ in 0..10 {
            bench.resolver.routes_changed(bench.now);
        }
        bench.pass(Duration::from_millis(20));
        let asked = bench.take();
        let number = first + 1;
        assert_eq!(
            asked,
            [Action::ReadClientRoutes, Action::AskRoutes { number, targets: vec![address("10.0.0.12")] }]
        );
        let late = vec![(address("10.0.0.12"), Err("no route to 10.0.0.12".to_owned()))];
        bench.resolver.routes(bench.now, first, Duration::ZERO, late);
        assert_eq!(bench.reported(), []);
        bench.answer(&[("10.0.0.12", Err("no route to 10.0.0.12"))]);
        assert_eq!(bench.reported(), [failed("no route to 10.0.0.12")]);
        assert_eq!(bench.probes_during(Duration::from_secs(60)), [], "nobody uses the neighbour any more");
    }

    #[test]
    fn what_is_no_longer_watched_is_neither_probed_nor_reported() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.resolver.watch(&BTreeSet::new());
        bench.neighbour("10.0.0.12", entry(Reachability::Confirmed, MAC_A));
        assert_eq!(bench.reported(), []);
        assert_eq!(bench.probes_during(Duration::from_secs(60)), []);
        bench.resolver.watch(&BTreeSet::from([ip("10.0.0.12")]));
        assert_eq!(bench.reported(), [Resolution::Pending]);
    }

    #[test]
    fn a_gateway_is_resolved_on_the_interface_of_its_route() {
        let mut bench = Bench::new();
        let gateway = Target { address: ip("fe80::1"), interface: Some(2) };
        bench.resolver.watch_gateways(&BTreeSet::from([(ip("fe80::1"), 2)]));
        bench.take();
        let answer = Route { source: None, ..on_link(2) };
        bench.resolver.routes(bench.now, bench.number, Duration::ZERO, vec![(gateway, Ok(answer))]);
        bench.neighbour("fe80::1", Some(Neighbour { state: Reachability::Failed, mac: None }));
        let reason = "no neighbour advertisement from fe80::1 on eth0".to_owned();
        let event = Event::Gateway {
            address: ip("fe80::1"),
            ifindex: 2,
            resolution: Resolution::Failed { reason: reason.clone() },
        };
        assert_eq!(bench.take(), [Action::Emit(event)]);
        bench.resolver.watch(&BTreeSet::new());
        bench.neighbour("fe80::1", entry(Reachability::Confirmed, MAC_A));
        assert!(
            matches!(&bench.take()[..], [Action::Emit(Event::Gateway { resolution: Resolution::Resolved(hop), .. })]
                if hop.neighbour == ip("fe80::1"))
        );
    }

    #[test]
    fn a_refused_probe_fails_the_address_and_is_tried_again() {
        let mut bench = Bench::watching(Ok(on_link(2)));
        bench.pass(Duration::ZERO);
        bench.reported();
        bench.resolver.probe_refused(bench.now, hop("10.0.0.12"), "the neighbour table is full".into());
        assert_eq!(bench.reported(), [failed("the neighbour table is full")]);
        assert_eq!(bench.probes_during(Duration::from_secs(1)).len(), 1);
        bench.neighbour("10.0.0.12", entry(Reachability::Stale, MAC_A));
        assert_eq!(bench.reported(), [Resolution::Resolved(next_hop(MAC_A))]);
        bench.resolver.probe_refused(bench.now, hop("10.0.0.12"), "the socket is gone".into());
        assert_eq!(bench.reported(), []);
    }
}
