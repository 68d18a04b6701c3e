//! Interfaces as the kernel reports them, and the way a frame leaves through one: a stack of 802.1Q devices is
//! reduced to the parent that carries XDP and the tags to push. Pure.

use std::collections::BTreeMap;
use std::fmt;

use lb_common::destination::OTHER_TAG;

/// One interface of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index, never 0.
    pub index: u32,
    pub name: String,
    /// Kind of a virtual interface as `ip -d link` prints it ("veth", "vlan", "bridge"); `None` for hardware.
    pub kind: Option<String>,
    /// Hardware address; `None` where it is not six bytes long.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// The layer below carries frames (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Frames have an Ethernet header (`ARPHRD_ETHER`); loopback has not.
    pub ethernet: bool,
    /// For an 802.1Q device, the device below it and its tag.
    pub vlan: Option<Vlan>,
    /// Bridge, bond or VRF that this interface belongs to.
    pub controller: Option<u32>,
}

impl Link {
    /// Whether it joins other interfaces (`CONFIG_BONDING`).
    pub fn is_bond(&self) -> bool {
        self.kind.as_deref() == Some("bond")
    }
}

/// What an 802.1Q device adds to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// VLAN identifier, 1 to 4094.
    pub id: u16,
    /// The tag's EtherType is 0x88a8 (802.1ad) and not 0x8100.
    pub service_tag: bool,
    /// Interface index of the device below; `None` if that one lives in another network namespace.
    pub parent: Option<u32>,
}

/// How frames leave through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Interface that carries XDP: the last parent of a stack of VLAN devices.
    pub ifindex: u32,
    /// VLAN identifiers to push, outermost first; 0 = none. The outermost with [`OTHER_TAG`] where it is 802.1ad alone, or
    /// 802.1Q around another.
    pub vlans: [u16; 2],
    /// Hardware address of the interface that the route names (a VLAN device may have its own).
    pub mac: [u8; 6],
    /// MTU in bytes of the interface that the route names.
    pub mtu: u32,
}

/// All interfaces by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<u32, Link>);

impl Links {
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }

    /// Returns whether anything changed.
    pub fn insert(&mut self, link: Link) -> bool {
        if self.0.get(&link.index) == Some(&link) {
            return false;
        }
        self.0.insert(link.index, link);
        true
    }

    /// Returns whether the interface was there.
    pub fn remove(&mut self, index: u32) -> bool {
        self.0.remove(&index).is_some()
    }

    /// The name of an interface, for people.
    pub fn name(&self, index: u32) -> Name<'_> {
        match self.0.get(&index) {
            Some(link) => Name::Known(&link.name),
            None => Name::Unknown(index),
        }
    }

    /// Follows VLAN devices down to the interface that carries XDP.
    ///
    /// # Errors
    /// A sentence for the operator: the interface (or one below it) is missing, down, without carrier or not
    /// Ethernet, or its tags are not what the data plane can push.
    pub fn output(&self, index: u32) -> Result<Output, String> {
        let named = self.0.get(&index).ok_or_else(|| format!("interface {index} does not exist"))?;
        let mut link = named;
        let mut vlans = [0; 2];
        let mut tags = 0;
        let mut outermost_is_service = false;
        loop {
            if !link.up {
                return Err(format!("{} is down", link.name));
            }
            let Some(vlan) = link.vlan else { break };
            if tags == vlans.len() {
                return Err(format!("{} adds more than two VLAN tags", named.name));
            }
            if tags == 1 && outermost_is_service {
                return Err(format!("{} adds an 802.1ad tag inside another", named.name));
            }
            outermost_is_service = vlan.service_tag;
            // Each step down adds a tag outside those found so far.
            vlans = [vlan.id, vlans[0]];
            tags += 1;
            link = vlan.parent.and_then(|parent| self.0.get(&parent)).ok_or_else(|| {
                format!("the interface below {} is not in this network namespace", link.name)
            })?;
        }
        if tags != 0 && outermost_is_service == (tags == 1) {
            vlans[0] |= OTHER_TAG;
        }
        if !link.carrier {
            return Err(format!("{} has no carrier", link.name));
        }
        match named.mac {
            Some(mac) if named.ethernet && link.ethernet => {
                Ok(Output { ifindex: link.index, vlans, mac, mtu: named.mtu })
            }
            _ => Err(format!("{} is not an Ethernet interface", named.name)),
        }
    }
}

impl FromIterator<Link> for Links {
    fn from_iter<I: IntoIterator<Item = Link>>(links: I) -> Self {
        Self(links.into_iter().map(|link| (link.index, link)).collect())
    }
}

/// An interface's name, or its index where the name is not known (any more).
pub enum Name<'a> {
    Known(&'a str),
    Unknown(u32),
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Known(name) => f.write_str(name),
            Name::Unknown(index) => write!(f, "interface {index}"),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An Ethernet interface that is up, with a hardware address that ends in its index.
    pub fn ethernet(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: None,
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            carrier: true,
            ethernet: true,
            vlan: None,
            controller: None,
        }
    }

    pub fn vlan(index: u32, name: &str, id: u16, parent: u32) -> Link {
        Link {
            kind: Some("vlan".into()),
            vlan: Some(Vlan { id, service_tag: false, parent: Some(parent) }),
            ..ethernet(index, name)
        }
    }

    fn lab() -> Links {
        let service = Vlan { id: 9, service_tag: true, parent: Some(2) };
        let elsewhere = Vlan { id: 9, service_tag: false, parent: None };
        Links::from_iter([
            Link { ethernet: false, ..ethernet(1, "lo") },
            ethernet(2, "eth0"),
            Link { mtu: 1496, ..vlan(3, "eth0.100", 100, 2) },
            vlan(4, "eth0.100.200", 200, 3),
            vlan(5, "too.deep", 300, 4),
            Link { up: false, ..ethernet(6, "eth1") },
            vlan(7, "eth1.5", 5, 6),
            Link { carrier: false, ..ethernet(8, "eth2") },
            Link { vlan: Some(service), ..vlan(9, "qinq", 9, 2) },
            Link { vlan: Some(elsewhere), ..vlan(10, "far", 9, 2) },
            vlan(11, "orphan", 11, 99),
            vlan(12, "qinq.300", 300, 9),
            Link {
                vlan: Some(Vlan { id: 7, service_tag: true, parent: Some(9) }),
                ..vlan(13, "double", 7, 9)
            },
        ])
    }

    #[test]
    fn frames_leave_by_the_parent_with_the_outermost_tag_first() {
        let rows = [
            (2, Ok((2, [0, 0], 2, 1500))),
            (3, Ok((2, [100, 0], 3, 1496))),
            (4, Ok((2, [100 | OTHER_TAG, 200], 4, 1500))),
            (1, Err("lo is not an Ethernet interface")),
            (5, Err("too.deep adds more than two VLAN tags")),
            (6, Err("eth1 is down")),
            (7, Err("eth1 is down")),
            (8, Err("eth2 has no carrier")),
            (9, Ok((2, [9 | OTHER_TAG, 0], 9, 1500))),
            (12, Ok((2, [9, 300], 12, 1500))),
            (13, Err("double adds an 802.1ad tag inside another")),
            (10, Err("the interface below far is not in this network namespace")),
            (11, Err("the interface below orphan is not in this network namespace")),
            (77, Err("interface 77 does not exist")),
        ];
        for (index, expected) in rows {
            let output = lab().output(index).map(|o| (o.ifindex, o.vlans, o.mac[5], o.mtu));
            assert_eq!(output, expected.map_err(String::from), "interface {index}");
        }
    }

    #[test]
    fn only_a_difference_counts_as_a_change() {
        let mut links = lab();
        assert!(!links.insert(ethernet(2, "eth0")));
        assert!(links.insert(Link { mtu: 9000, ..ethernet(2, "eth0") }));
        assert!(links.remove(2));
        assert!(!links.remove(2));
    }
}
