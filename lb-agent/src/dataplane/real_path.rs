//! Health probes on the real path: the prober's veth pair gets its programs, and each (VIP, real server) an address
//! in it to which the prober connects as to any server. What the pair must be like is said at [`ProberPair`].

use super::{Dataplane, Error, Mapped, bpf, store};
use aya::{maps::DevMapHash, programs::Xdp};
use ipnet::{Ipv4Net, Ipv6Net};
use lb_common::{
    address::Address,
    destination::NextHop,
    maps::{own, pinned, programs},
    probe::{TARGETS, Target, V6, VALID},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering::Release,
};

/// A veth pair in the agent's namespace whose near end has the prober's addresses and the routes to `targets_v4` and
/// `targets_v6`, by permanent neighbours or through one (any MAC does). The near end must complete checksums itself
/// (`ethtool -K NEAR tx off`: a redirected frame is finished by nobody) and have an MTU that leaves room for a
/// tunnel's header. The far end has no address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProberPair {
    /// Interface indices.
    pub near: u32,
    pub far: u32,
    pub near_mac: [u8; 6],
    pub far_mac: [u8; 6],
    /// The near end's addresses, outside the targets' networks.
    pub prober_v4: Ipv4Addr,
    pub prober_v6: Ipv6Addr,
    /// Networks of at least [`TARGETS`] addresses (/18 and /114) that the host uses for nothing else.
    pub targets_v4: Ipv4Net,
    pub targets_v6: Ipv6Net,
}

impl ProberPair {
    /// The address of a target's number.
    fn address(&self, index: u32, v6: bool) -> IpAddr {
        if v6 {
            Ipv6Addr::from(u128::from(self.targets_v6.network()) | u128::from(index)).into()
        } else {
            Ipv4Addr::from(u32::from(self.targets_v4.network()) | index).into()
        }
    }

    fn check(&self) -> Result<(), Error> {
        let bits = TARGETS.ilog2() as u8;
        if self.targets_v4.prefix_len() > 32 - bits || self.targets_v6.prefix_len() > 128 - bits {
            let (v4, v6) = (self.targets_v4, self.targets_v6);
            return Err(Error::Refused(format!(
                "{v4} and {v6} have no room for {TARGETS} probed real servers each"
            )));
        }
        if self.targets_v4.contains(&self.prober_v4) || self.targets_v6.contains(&self.prober_v6) {
            return Err(Error::Refused("the prober's own address is one of its targets'".into()));
        }
        Ok(())
    }
}

/// A real server behind a VIP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Probed {
    pub vip: IpAddr,
    /// The index of its destination (DR or TUN).
    pub destination: u32,
    /// The address of this director, of the VIP's family, that the server answers to: one by which replies come in
    /// on an interface with the program.
    pub source: IpAddr,
}

/// The real path's targets. The pair has its programs as long as this lives.
pub struct RealPath {
    pair: ProberPair,
    targets: Mapped<Target>,
    by_target: BTreeMap<(IpAddr, u32), (u32, IpAddr)>,
    /// Numbers of targets that nobody has.
    free: BTreeSet<u32>,
    /// Links: dropped, they end.
    _links: Vec<OwnedFd>,
}

impl Dataplane {
    /// Gives the prober's pair its programs. `generic`: where an interface of the Director has generic XDP, which
    /// takes redirected frames from generic XDP only.
    pub fn real_path(&mut self, pair: &ProberPair, generic: bool) -> Result<RealPath, Error> {
        pair.check()?;
        let flags = if generic { bpf::XDP_GENERIC } else { bpf::XDP_NATIVE };
        let mut links = Vec::new();
        let pass =
            bpf::load_xdp(&PASS, "lb_pass").map_err(Error::os("load the program of the prober's end"))?;
        let name = programs::PROBE_SENT;
        let sent: &Xdp = self.program(name)?;
        let sent = sent.fd().map_err(|e| Error::Program { name, reason: Box::new(e) })?;
        // A veth takes redirected frames only for a peer that has a program of its own (veth_xdp_xmit, Linux 6.1).
        for (ifindex, program) in [(pair.near, pass.as_fd()), (pair.far, sent.as_fd())] {
            let created = bpf::create_xdp_link(program, ifindex, flags);
            links.push(created.map_err(Error::os("attach XDP to the prober's veth pair"))?);
        }
        let map = self.ebpf.map_mut(pinned::OUTPUTS).ok_or(Error::Missing(pinned::OUTPUTS))?;
        let mut outputs = DevMapHash::try_from(map).map_err(Error::map(pinned::OUTPUTS))?;
        outputs
            .insert(pair.far, pair.far, None, 0)
            .map_err(|error| Error::Refused(format!("table {}: {error}", pinned::OUTPUTS)))?;
        self.targets_of(pair, links)
    }

    /// The targets of a pair that has no programs: for tests that run them on frames.
    pub fn real_path_for_test(&self, pair: &ProberPair) -> Result<RealPath, Error> {
        self.targets_of(pair, Vec::new())
    }

    fn targets_of(&self, pair: &ProberPair, links: Vec<OwnedFd>) -> Result<RealPath, Error> {
        let name = own::PROBE_TARGETS;
        let data = store::data_of(self.map(name)?).ok_or(Error::Missing(name))?;
        let targets = Mapped::of_map(name, data.fd().as_fd(), TARGETS)?;
        Ok(RealPath::new(pair.clone(), targets, links))
    }
}

impl RealPath {
    fn new(pair: ProberPair, targets: Mapped<Target>, links: Vec<OwnedFd>) -> Self {
        // 0 is the network's own address.
        let free = (1..TARGETS - 1).collect();
        Self { pair, targets, by_target: BTreeMap::new(), free, _links: links }
    }

    /// Makes the real server reachable through the pair and returns the address to connect to; the port is the
    /// service's. The same one gets the same address. Its VIP must have the role
    /// [`super::tables::Role::Probed`], or replies go to the kernel.
    pub fn ensure(&mut self, probed: &Probed) -> Result<IpAddr, Error> {
        let v6 = probed.vip.is_ipv6();
        if probed.source.is_ipv6() != v6 {
            let (vip, source) = (probed.vip, probed.source);
            return Err(Error::Refused(format!(
                "a probe of {vip} cannot come from {source}: another family"
            )));
        }
        let key = (probed.vip, probed.destination);
        let index = match self.by_target.get(&key) {
            Some((index, source)) if *source == probed.source => {
                return Ok(self.pair.address(*index, v6));
            }
            Some((index, _)) => *index,
            None => self.free.pop_first().ok_or(Error::Full {
                what: "real server probed on its real path",
                limit: TARGETS - 2,
                hint: "probe some of them directly",
            })?,
        };
        let address = self.pair.address(index, v6);
        let prober = if v6 { IpAddr::from(self.pair.prober_v6) } else { self.pair.prober_v4.into() };
        let record = Target {
            word: VALID | if v6 { V6 } else { 0 } | u64::from(probed.destination),
            prober_mac: NextHop::pack(self.pair.near_mac, 0),
            far_mac: NextHop::pack(self.pair.far_mac, 0),
            ifindex: self.pair.far,
            probe: Address::from(address),
            prober: Address::from(prober),
            vip: Address::from(probed.vip),
            source: Address::from(probed.source),
            ..Target::default()
        };
        // The word is the first, which `update` writes last.
        self.targets.word(index, 0).store(0, Release);
        self.targets.update(index, &record, 0);
        self.by_target.insert(key, (index, probed.source));
        Ok(address)
    }

    /// Forgets the targets of which `keep(vip, destination)` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(IpAddr, u32) -> bool) {
        let (targets, free) = (&self.targets, &mut self.free);
        self.by_target.retain(|(vip, destination), (index, _)| {
            let keep = keep(*vip, *destination);
            if !keep {
                targets.word(*index, 0).store(0, Release);
                free.insert(*index);
            }
            keep
        });
    }
}

impl Drop for RealPath {
    fn drop(&mut self) {
        self.retain(|_, _| false);
    }
}

/// `return XDP_PASS`.
const PASS: [u64; 2] = [0xb7 | 2 << 32, 0x95];

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> RealPath {
        let pair = ProberPair {
            near: 7,
            far: 8,
            near_mac: [2, 0, 0, 0, 0, 7],
            far_mac: [2, 0, 0, 0, 0, 8],
            prober_v4: "198.18.64.1".parse().unwrap(),
            prober_v6: "fd00::1:1".parse().unwrap(),
            targets_v4: "198.18.0.0/18".parse().unwrap(),
            targets_v6: "fd00::/114".parse().unwrap(),
        };
        pair.check().unwrap();
        RealPath::new(pair, Mapped::in_memory(TARGETS).unwrap(), Vec::new())
    }

    fn probed(vip: &str, destination: u32, source: &str) -> Probed {
        Probed { vip: vip.parse().unwrap(), destination, source: source.parse().unwrap() }
    }

    #[test]
    fn a_real_server_keeps_its_address_and_a_free_one_is_used_again() {
        let mut path = path();
        let a = path.ensure(&probed("203.0.113.10", 5, "10.0.0.1")).unwrap();
        let b = path.ensure(&probed("203.0.113.10", 6, "10.0.0.1")).unwrap();
        let c = path.ensure(&probed("2001:db8::10", 6, "2001:db8::1")).unwrap();
        assert_eq!([a, b, c].map(|a| a.to_string()), ["198.18.0.1", "198.18.0.2", "fd00::3"]);
        assert_eq!(path.ensure(&probed("203.0.113.10", 5, "10.0.0.2")).unwrap(), a, "from elsewhere");
        let record = path.targets.get(1);
        assert_eq!(record.source.to_ip(false), IpAddr::from([10, 0, 0, 2]));
        assert_eq!((record.word, record.ifindex), (VALID | 5, 8));
        assert_eq!(path.targets.get(3).word, VALID | V6 | 6);
        path.retain(|_, destination| destination == 6);
        assert_eq!((path.targets.get(1).word, path.targets.get(2).word), (0, VALID | 6));
        assert_eq!(path.ensure(&probed("203.0.113.10", 9, "10.0.0.1")).unwrap(), a);
    }

    #[test]
    fn what_cannot_be_probed_is_refused_with_a_reason() {
        let mut path = path();
        let error = path.ensure(&probed("203.0.113.10", 5, "2001:db8::1")).unwrap_err().to_string();
        assert!(error.contains("another family"), "{error}");
        let narrow = ProberPair { targets_v4: "198.18.0.0/24".parse().unwrap(), ..path.pair.clone() };
        assert!(narrow.check().unwrap_err().to_string().contains("no room"));
        let inside = ProberPair { prober_v4: "198.18.0.1".parse().unwrap(), ..path.pair.clone() };
        assert!(inside.check().is_err());
    }
}
