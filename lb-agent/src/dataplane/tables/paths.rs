//! Path MTUs that routers told of tunnels: how long they hold, and what they make of destinations.

use super::{super::Error, Role, Tables};
use lb_common::destination::{Destination, Forwarding, overhead};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::atomic::Ordering::{Relaxed, Release},
    time::{Duration, Instant},
};

/// How long a path MTU holds before a larger one is tried again (RFC 1191, section 6.3).
const HOLDS: Duration = Duration::from_secs(600);
/// Who has the role of all real servers that tunnels lead to.
const OWNER: &str = "(tunnels)";

/// A path that became narrower than its interface, or has been for long enough to be tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathChange {
    /// The real server.
    pub address: IpAddr,
    /// MTU of the path to it, bytes; none: as the interface has it, again.
    pub mtu: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Learned {
    mtu: u16,
    until: Instant,
}

/// What was learned, by real server.
#[derive(Debug, Default)]
pub(super) struct Paths(BTreeMap<IpAddr, Learned>);

impl Paths {
    /// A router's word. Returns whether it changes anything: a path only becomes narrower by it, and the narrowest
    /// word counts until its time is over.
    fn learn(&mut self, address: IpAddr, mtu: u16, now: Instant) -> bool {
        let new = Learned { mtu, until: now + HOLDS };
        match self.0.get_mut(&address) {
            Some(known) if known.mtu < mtu => false,
            Some(known) => std::mem::replace(known, new).mtu != mtu,
            None => {
                self.0.insert(address, new);
                true
            }
        }
    }

    /// Forgets what has held long enough.
    fn expire(&mut self, now: Instant) -> Vec<IpAddr> {
        let over: Vec<IpAddr> =
            self.0.iter().filter(|(_, learned)| learned.until <= now).map(|(address, _)| *address).collect();
        self.0.retain(|_, learned| learned.until > now);
        over
    }

    /// The largest packet that fits a tunnel to a real server by a destination of these flags, where the interface
    /// alone would let `mtu` through.
    pub(super) fn inner_mtu(&self, address: IpAddr, flags: u32, mtu: u16) -> u16 {
        match self.0.get(&address) {
            Some(learned) if Destination::forwarding_of(flags) == Forwarding::Tun => {
                mtu.min(learned.mtu - overhead(flags))
            }
            _ => mtu,
        }
    }
}

impl Tables {
    /// Takes what the data plane heard of tunnels' paths, lowers their destinations, and raises those whose time is
    /// over. To be called about once a second.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn follow_paths(&mut self, now: Instant) -> Result<Vec<PathChange>, Error> {
        let mut changes = Vec::new();
        for (key, mtu) in self.stores.paths.entries()? {
            self.stores.paths.remove(&key)?;
            let address = key.address.to_ip(key.family == 6);
            // The program believes nothing below 552 bytes.
            let mtu = mtu.clamp(552, u16::MAX.into()) as u16;
            if self.paths.learn(address, mtu, now) {
                changes.push(PathChange { address, mtu: Some(mtu) });
            }
        }
        changes.extend(self.paths.expire(now).into_iter().map(|address| PathChange { address, mtu: None }));
        for change in &changes {
            self.write_path(change.address);
        }
        Ok(changes)
    }

    /// The path MTU that a router told, bytes.
    pub fn path_mtu(&self, address: IpAddr) -> Option<u16> {
        self.paths.0.get(&address).map(|learned| learned.mtu)
    }

    /// Gives every destination behind tunnels to a real server its MTU.
    fn write_path(&mut self, address: IpAddr) {
        for (index, mtu) in self.destinations.mtus_of(address) {
            let word = self.views.destinations.word(index, 0);
            let old = word.load(Relaxed);
            let mtu = self.paths.inner_mtu(address, Destination::flags_of(old), mtu);
            let new = Destination::with_mtu(old, mtu);
            if old != new {
                word.store(new, Release);
                self.writes += 1;
            }
        }
    }

    /// Errors about packets to this address may be about a tunnel of ours.
    pub(super) fn bind_tunnel(&mut self, address: IpAddr) -> Result<(), Error> {
        self.bind_address(OWNER, Role::Tunnel, address)
    }

    /// The reverse, for addresses to which no tunnel leads any more.
    pub(super) fn unbind_tunnels(&mut self) -> Result<(), Error> {
        let in_use = self.real_servers(Forwarding::Tun);
        for (role, address) in self.addresses_of(OWNER) {
            if !in_use.contains(&address) {
                self.unbind_address(OWNER, role, address)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::destination::flags;

    #[test]
    fn the_narrowest_word_counts_until_its_time_is_over() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        let server: IpAddr = "10.0.0.11".parse().unwrap();
        let tun = Forwarding::Tun as u32;
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(paths.inner_mtu(server, tun, 1480), 1480);
        assert!(paths.learn(server, 1400, at(0)));
        assert_eq!(paths.inner_mtu(server, tun, 1480), 1380);
        assert!(!paths.learn(server, 1450, at(1)), "wider");
        assert!(!paths.learn(server, 1400, at(10)), "the same, from now on");
        assert!(paths.learn(server, 1300, at(20)));
        assert_eq!(paths.inner_mtu(server, tun, 1480), 1280);
        assert_eq!(paths.inner_mtu(server, tun, 1000), 1000, "the interface is narrower");
        assert_eq!(paths.inner_mtu(server, Forwarding::Dr as u32, 1500), 1500, "another method's packets");
        assert!(paths.expire(at(619)).is_empty());
        assert_eq!(paths.expire(at(620)), [server]);
        assert_eq!(paths.inner_mtu(server, tun, 1480), 1480);
    }

    #[test]
    fn a_tunnel_over_ipv6_needs_forty_bytes() {
        let mut paths = Paths::default();
        let server: IpAddr = "2001:db8::11".parse().unwrap();
        paths.learn(server, 1400, Instant::now());
        let tun = Forwarding::Tun as u32 | flags::REAL_V6;
        assert_eq!(paths.inner_mtu(server, tun, 1460), 1360);
        assert_eq!(paths.inner_mtu(server, tun | flags::GUE, 1448), 1348, "and GUE its own");
    }
}
