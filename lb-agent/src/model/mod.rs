//! What an operator's objects mean once they are known to be right. Pure values: `manifest` makes them from
//! YAML and is the only place where a manifest can be wrong; whoever holds one of these need not check again.

mod application;
mod director;
mod effect;
mod endpoint;
mod events;
mod flood;
pub mod health;
mod packets;
mod pool;
mod real_path;
mod scheduling;
mod service;
mod tunnel;
mod vrrp;
mod way;

use std::fmt;
use std::str::FromStr;

pub use application::Application;
pub use director::{
    CONNECTIONS_MAX, Capacity, Director, INTERFACES_MAX, Interface, OnShutdown, REAL_SERVERS_MAX,
    SERVICES_MAX, Shutdown, XdpMode,
};
pub use effect::{Effect, field_effect};
pub use endpoint::{ENDPOINTS_MAX, Endpoint};
pub use events::{Hook, Selection, Url, Webhook};
pub use flood::{Flood, SynCookiesAbove};
pub use packets::{Echo, Fragments, LeaveTo, PacketPolicy, TooBigForTunnel};
pub use pool::{LocalAddressPool, POOL_ADDRESSES_MAX, Share};
pub use real_path::{PROBER_LINK, RealPathNetworks};
pub use scheduling::{
    Admission, DrainPolicy, HashPrefix, LIST_FILE_MAX, OnDeadline, Persistence, PersistenceEngine, Quic,
    SOURCES_MAX, Scheduling, ServerId, ServerLimits, Sources, SynCookies, Thresholds, WALKED_SERVERS_MAX,
    WhenNoServer,
};
pub use service::{
    FlowHash, Forwarding, MssClamp, OnUnknownFlow, PORT_RANGES_MAX, PORTS_MAX, PortRange, Ports, Protocol,
    RealServer, SERVICE_REAL_SERVERS_MAX, Scheduler, ServerKey, Timeouts, VirtualService,
};
pub use tunnel::{Encapsulation, TunnelSources, TunnelType};
pub use vrrp::{
    Authentication, DEFAULT_PRIORITY, Gratuitous, HmacAuthentication, HmacKey, HmacMode, KeySource, Notify,
    OWNER_PRIORITY, Preempt, Track, TrackEffect, TrackFile, TrackFileEffect, TrackInterface, TrackProcess,
    TrackScript, TrackService, Unicast, VirtualAddress, VirtualRoute, VirtualRule, Vmac, Vrid, VrrpChecksum,
    VrrpInstance, VrrpShutdown, VrrpSyncGroup, VrrpVersion,
};
pub use way::{ClientHop, ClientRoute, LinkCounters, LinkTraffic, NextHop, Resolution};

/// One object of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Director(Director),
    LocalAddressPool(LocalAddressPool),
    VirtualService(VirtualService),
    /// Boxed: it has many fields, and there are few of it.
    VrrpInstance(Box<VrrpInstance>),
    VrrpSyncGroup(VrrpSyncGroup),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Director(_) => Kind::Director,
            Object::LocalAddressPool(_) => Kind::LocalAddressPool,
            Object::VirtualService(_) => Kind::VirtualService,
            Object::VrrpInstance(_) => Kind::VrrpInstance,
            Object::VrrpSyncGroup(_) => Kind::VrrpSyncGroup,
        }
    }

    pub fn name(&self) -> &Name {
        match self {
            Object::Director(director) => &director.name,
            Object::LocalAddressPool(pool) => &pool.name,
            Object::VirtualService(service) => &service.name,
            Object::VrrpInstance(instance) => &instance.name,
            Object::VrrpSyncGroup(group) => &group.name,
        }
    }

    pub fn id(&self) -> ObjectId {
        ObjectId { kind: self.kind(), name: self.name().clone() }
    }
}

/// The kinds of objects, in the order in which they are listed and applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Director,
    LocalAddressPool,
    VirtualService,
    VrrpInstance,
    VrrpSyncGroup,
}

impl Kind {
    pub const ALL: [Kind; 5] = [
        Kind::Director,
        Kind::LocalAddressPool,
        Kind::VirtualService,
        Kind::VrrpInstance,
        Kind::VrrpSyncGroup,
    ];

    /// The word that a manifest's `kind:` holds.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Director => "Director",
            Kind::LocalAddressPool => "LocalAddressPool",
            Kind::VirtualService => "VirtualService",
            Kind::VrrpInstance => "VrrpInstance",
            Kind::VrrpSyncGroup => "VrrpSyncGroup",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Kind, ()> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// What makes an object itself: two manifests with the same kind and name describe the same object.
/// Displayed as `VirtualService/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    pub kind: Kind,
    pub name: Name,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// A name: 1 to 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit
/// (a DNS label, RFC 1123 section 2.1), so that it can stand in a file name, a URL path and a metric's label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Fails with the sentence that tells what is wrong.
    pub fn new(text: &str) -> Result<Name, &'static str> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        match text.as_bytes() {
            [] => Err("a name has at least one character"),
            bytes if bytes.len() > 63 => Err("a name has at most 63 characters"),
            bytes if !bytes.iter().all(|&byte| alphanumeric(byte) || byte == b'-') => {
                Err("a name consists of lower-case letters, digits and hyphens")
            }
            [first, .., last] if !alphanumeric(*first) || !alphanumeric(*last) => {
                Err("a name begins and ends with a letter or a digit")
            }
            [b'-'] => Err("a name begins and ends with a letter or a digit"),
            _ => Ok(Name(text.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a further endpoint of the service of this name: one that no object can have.
    pub fn of_endpoint(&self, endpoint: &str) -> Name {
        Name(format!("{}/{endpoint}", self.0))
    }

    /// The service that an endpoint belongs to.
    pub fn of_service(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(service, _)| service)
    }
}

/// Derived comparisons are those of the text, so that a map of names can be asked with one.
impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether Linux would take `text` as the name of an interface (`dev_valid_name`, net/core/dev.c: fewer than
/// IFNAMSIZ = 16 bytes, neither `.` nor `..`, no slash, colon or white space).
pub fn valid_interface_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() < 16
        && text != "."
        && text != ".."
        && !text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_label() {
        for good in ["a", "web", "web-1", "0", "a".repeat(63).as_str()] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "-a", "a-", "Web", "a.b", "a_b", "a b", "ü", "a/b", "a".repeat(64).as_str()] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn interface_names_are_those_linux_accepts() {
        for good in ["eth0", "enp0s31f6", "eth0.100", "br-lan", "fifteen-bytes-x"] {
            assert!(valid_interface_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "eth0:1", "sixteen-bytes-xx"] {
            assert!(!valid_interface_name(bad), "{bad}");
        }
    }

    #[test]
    fn an_object_id_reads_kind_slash_name() {
        let id = ObjectId { kind: Kind::VirtualService, name: Name::new("web").unwrap() };
        assert_eq!(id.to_string(), "VirtualService/web");
        assert_eq!("Director".parse(), Ok(Kind::Director));
        assert_eq!("VrrpRouter".parse::<Kind>(), Err(()));
    }
}
