//! What one instance sends, and whom it believes: the receive checks that depend on the instance, in the order
//! version, authentication, peer, addresses, interval, checksum form. What differs between us and a peer is
//! named field by field, for [`super::instance`] to keep account of.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::advert::{self, Advert, Context, Decoded, Malformed, PASSWORD_LEN};
use super::auth::{Authenticator, Keyring, Subject, Unauthentic};
use crate::model::{Authentication, Unicast, VirtualAddress, Vrid, VrrpChecksum, VrrpInstance, VrrpVersion};

/// The sending and receiving end of one instance.
#[derive(Debug)]
pub struct Wire {
    rules: Rules,
    authenticator: Option<Authenticator>,
}

/// What an instance's advertisements are like, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub version: VrrpVersion,
    pub vrid: Vrid,
    pub interval: Duration,
    pub addresses: Vec<IpAddr>,
    pub password: Option<[u8; PASSWORD_LEN]>,
    pub checksum: VrrpChecksum,
    pub checksum_strict: bool,
    pub unicast: Option<Unicast>,
    pub keyring: Option<Keyring>,
}

/// What [`super::instance::Action::SendAdvert`] leaves open is the same in every advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// 0: we stop being master.
    pub priority: u8,
    /// What backups are told; longer than our own before a planned silence.
    pub interval: Duration,
}

/// An advertisement that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    pub source: IpAddr,
    pub priority: u8,
    pub interval: Duration,
    /// In what the peer differs from us, though we believe it.
    pub differences: Vec<Difference>,
}

/// An advertisement that does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub source: IpAddr,
    pub why: Refusal,
    /// In what the peer differs from us; None where it is no peer at all.
    pub difference: Option<Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("another version")]
    Version,
    #[error("another password")]
    Password,
    #[error(transparent)]
    Unauthentic(#[from] Unauthentic),
    #[error("not one of the unicast peers")]
    NotAPeer,
    #[error("multicast, where peers are unicast")]
    Multicast,
    #[error("unicast, where peers are multicast")]
    Unicast,
    #[error("TTL {0}, below the least that peers may have")]
    Ttl(u8),
    #[error("none of its addresses is ours: another virtual router with our identifier")]
    Addresses,
    #[error("another interval, which version 2 does not adopt")]
    Interval,
    #[error("another form of checksum")]
    ChecksumForm,
}

impl Refusal {
    /// The word under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Malformed(malformed) => malformed.name(),
            Refusal::Version => "other_version",
            Refusal::Password => "password",
            Refusal::Unauthentic(unauthentic) => unauthentic.name(),
            Refusal::NotAPeer => "not_a_peer",
            Refusal::Multicast => "multicast",
            Refusal::Unicast => "unicast",
            Refusal::Ttl(_) => "ttl",
            Refusal::Addresses => "addresses",
            Refusal::Interval => "other_interval",
            Refusal::ChecksumForm => "checksum_form",
        }
    }
}

/// One thing in which a peer differs from us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub field: Field,
    pub ours: String,
    pub theirs: String,
}

/// What two directors have to agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    Version,
    Authentication,
    Addresses,
    Interval,
    Checksum,
}

impl Field {
    pub const ALL: [Field; 5] =
        [Field::Version, Field::Authentication, Field::Addresses, Field::Interval, Field::Checksum];

    /// As the manifest calls it.
    pub fn name(self) -> &'static str {
        match self {
            Field::Version => "version",
            Field::Authentication => "authentication",
            Field::Addresses => "addresses",
            Field::Interval => "advertisementInterval",
            Field::Checksum => "checksum",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Rules {
    /// The rules of an instance; `keyring` has the secrets of one that authenticates by HMAC.
    pub fn of(instance: &VrrpInstance, keyring: Option<Keyring>) -> Rules {
        let address = |virtual_address: &VirtualAddress| virtual_address.address.addr();
        let password = match &instance.authentication {
            Authentication::Pass { password } => {
                let mut padded = [0; PASSWORD_LEN];
                padded.iter_mut().zip(password.bytes()).for_each(|(to, from)| *to = from);
                Some(padded)
            }
            Authentication::None | Authentication::Hmac(_) => None,
        };
        Rules {
            version: instance.version,
            vrid: instance.vrid,
            interval: instance.interval,
            addresses: instance.addresses.iter().map(address).collect(),
            password,
            checksum: instance.checksum,
            checksum_strict: instance.checksum_strict,
            unicast: instance.unicast.clone(),
            keyring,
        }
    }
}

impl Wire {
    pub fn new(rules: Rules) -> Wire {
        let authenticator = rules.keyring.clone().map(Authenticator::new);
        Wire { rules, authenticator }
    }

    /// Other rules from now on. What the authenticator remembers stays.
    pub fn configure(&mut self, rules: Rules) {
        match (&mut self.authenticator, rules.keyring.clone()) {
            (Some(authenticator), Some(keyring)) => authenticator.configure(keyring),
            (authenticator, keyring) => *authenticator = keyring.map(Authenticator::new),
        }
        self.rules = rules;
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The message of one advertisement to one destination. `clock` is the time since the Unix epoch.
    pub fn encode(
        &mut self,
        outgoing: Outgoing,
        source: IpAddr,
        destination: IpAddr,
        clock: Duration,
    ) -> Vec<u8> {
        let rules = &self.rules;
        let advert = Advert {
            version: rules.version,
            vrid: rules.vrid,
            priority: outgoing.priority,
            interval: outgoing.interval,
            addresses: rules.addresses.clone(),
            password: rules.password,
        };
        let subject = Subject { version: rules.version, vrid: rules.vrid, source };
        advert::encode(&advert, source, destination, rules.checksum, |message| {
            self.authenticator.as_mut()?.sign(clock, &subject, message)
        })
    }

    /// Reads a message for this virtual router (see [`advert::vrid_of`]) and decides whether it counts.
    /// `clock` is the time since the Unix epoch.
    pub fn receive(&mut self, message: &[u8], context: &Context, clock: Duration) -> Result<Heard, Refused> {
        let source = context.source;
        let decoded = advert::decode(message, context).map_err(|malformed| Refused {
            source,
            why: malformed.into(),
            difference: None,
        })?;
        self.check(message, &decoded, context, clock).map_err(|(why, difference)| Refused {
            source,
            why,
            difference,
        })
    }

    fn check(
        &mut self,
        message: &[u8],
        decoded: &Decoded,
        context: &Context,
        clock: Duration,
    ) -> Result<Heard, (Refusal, Option<Difference>)> {
        let rules = &self.rules;
        let advert = &decoded.advert;
        self.check_way(context).map_err(|refusal| (refusal, None))?;
        if advert.version != rules.version {
            let difference = difference(Field::Version, rules.version.number(), advert.version.number());
            return Err((Refusal::Version, Some(difference)));
        }
        if advert.password != rules.password {
            let say = |password: Option<_>| if password.is_some() { "password" } else { "no password" };
            let (ours, mut theirs) = (say(rules.password), say(advert.password));
            if ours == theirs {
                theirs = "another password";
            }
            return Err((Refusal::Password, Some(difference(Field::Authentication, ours, theirs))));
        }
        self.authenticate(message, decoded, context, clock)?;

        let rules = &self.rules;
        let mut differences = Vec::new();
        let ours = |address: &&IpAddr| rules.addresses.contains(address);
        let shared = advert.addresses.iter().filter(ours).count();
        if shared != advert.addresses.len() || advert.addresses.len() != rules.addresses.len() {
            let difference = difference(Field::Addresses, list(&rules.addresses), list(&advert.addresses));
            if shared == 0 {
                return Err((Refusal::Addresses, Some(difference)));
            }
            differences.push(difference);
        }
        if advert.interval != rules.interval {
            let (ours, theirs) = (format!("{:?}", rules.interval), format!("{:?}", advert.interval));
            let difference = difference(Field::Interval, ours, theirs);
            if rules.version == VrrpVersion::V2 {
                return Err((Refusal::Interval, Some(difference)));
            }
            differences.push(difference);
        }
        let one_form = rules.version == VrrpVersion::V2 || context.source.is_ipv6();
        if !one_form && decoded.checksum != rules.checksum {
            let say = |form| match form {
                VrrpChecksum::PseudoHeader => "pseudo header",
                VrrpChecksum::MessageOnly => "message only",
            };
            let difference = difference(Field::Checksum, say(rules.checksum), say(decoded.checksum));
            if rules.checksum_strict {
                return Err((Refusal::ChecksumForm, Some(difference)));
            }
            differences.push(difference);
        }
        let Advert { priority, interval, .. } = *advert;
        Ok(Heard { source: context.source, priority, interval, differences })
    }

    /// Multicast or unicast as configured, from whom and from how far.
    fn check_way(&self, context: &Context) -> Result<(), Refusal> {
        let multicast = context.destination.is_multicast();
        match &self.rules.unicast {
            None if multicast => Ok(()),
            None => Err(Refusal::Unicast),
            Some(_) if multicast => Err(Refusal::Multicast),
            Some(unicast) if !unicast.peers.contains(&context.source) => Err(Refusal::NotAPeer),
            Some(unicast) if context.ttl < unicast.min_ttl => Err(Refusal::Ttl(context.ttl)),
            Some(_) => Ok(()),
        }
    }

    fn authenticate(
        &mut self,
        message: &[u8],
        decoded: &Decoded,
        context: &Context,
        clock: Duration,
    ) -> Result<(), (Refusal, Option<Difference>)> {
        let subject =
            Subject { version: decoded.advert.version, vrid: decoded.advert.vrid, source: context.source };
        let advert = &message[..decoded.length];
        let trailer = decoded.trailer.as_ref();
        match &mut self.authenticator {
            Some(authenticator) => {
                let ours = format!("hmac, key {}", authenticator.keyring().active);
                authenticator.verify(clock, &subject, advert, trailer).map_err(|why| {
                    // A replay says nothing about how its sender is configured.
                    let replayed = why == Unauthentic::Replayed;
                    let theirs = match why {
                        // Without the number, which grows by itself.
                        Unauthentic::Stale { .. } => "a clock outside the window".to_owned(),
                        why => why.to_string(),
                    };
                    let difference = difference(Field::Authentication, ours, theirs);
                    (why.into(), (!replayed).then_some(difference))
                })
            }
            None if trailer.is_some() => {
                let (length, have) = (decoded.length, message.len());
                let difference = difference(Field::Authentication, "no trailer", "a trailer");
                Err((Malformed::TooLong { length, have }.into(), Some(difference)))
            }
            None => Ok(()),
        }
    }
}

fn difference(field: Field, ours: impl fmt::Display, theirs: impl fmt::Display) -> Difference {
    Difference { field, ours: ours.to_string(), theirs: theirs.to_string() }
}

/// `203.0.113.10, 203.0.113.11`, in an order of its own, since the order on the wire does not matter.
fn list(addresses: &[IpAddr]) -> String {
    let mut addresses = addresses.to_vec();
    addresses.sort();
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
