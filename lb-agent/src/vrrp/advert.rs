//! Advertisements as bytes and as values: VRRPv2 (RFC 3768 section 5) and VRRPv3 (RFC 9568 section 5), IPv4
//! and IPv6. What is checked here holds for every advertisement, whoever is to receive it; what depends on
//! the instance is checked in [`super::wire`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::time::Duration;

use crate::model::{Vrid, VrrpChecksum, VrrpVersion};

/// What an advertisement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    pub version: VrrpVersion,
    pub vrid: Vrid,
    /// 0: the sender stops being master; 255: it owns the addresses.
    pub priority: u8,
    /// v2: whole seconds, at most 255. v3: multiples of 10 ms, at most 40.95 s. Never zero when received.
    pub interval: Duration,
    /// All of the family of the packet.
    pub addresses: Vec<IpAddr>,
    /// v2's simple password, padded with zeros. None: v3, or v2 without authentication.
    pub password: Option<[u8; PASSWORD_LEN]>,
}

/// Where a packet came from and went to, and what the IP header said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    pub source: IpAddr,
    /// The multicast group, or our own address.
    pub destination: IpAddr,
    /// TTL or hop limit on arrival.
    pub ttl: u8,
}

/// An advertisement that is right by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    pub advert: Advert,
    /// The form of the checksum; of v2 and IPv6, which know one form only, what that form covers.
    pub checksum: VrrpChecksum,
    /// How many bytes the advertisement has; what follows is an authentication trailer, or nothing.
    pub length: usize,
    /// The bytes of an authentication trailer ([`super::auth`]), not looked at yet.
    pub trailer: Option<[u8; TRAILER_LEN]>,
}

/// Why bytes are no advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("not an IP packet that carries VRRP")]
    Ip,
    #[error("an advertisement has {needed} bytes, this packet {have}")]
    TooShort { needed: usize, have: usize },
    #[error("the advertisement has {length} bytes, the packet {have}")]
    TooLong { length: usize, have: usize },
    #[error("TTL {0}, not 255: it came from another network")]
    Ttl(u8),
    #[error("version {0}")]
    Version(u8),
    #[error("version 2 over IPv6")]
    VersionOfFamily,
    #[error("type {0}, not 1 (advertisement)")]
    Type(u8),
    #[error("virtual router 0")]
    Vrid,
    #[error("no address")]
    NoAddress,
    #[error("interval 0")]
    Interval,
    #[error("authentication type {0}")]
    AuthenticationType(u8),
    #[error("wrong checksum")]
    Checksum,
}

impl Malformed {
    /// The word under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Malformed::Ip => "ip",
            Malformed::TooShort { .. } => "too_short",
            Malformed::TooLong { .. } => "too_long",
            Malformed::Ttl(_) => "ttl",
            Malformed::Version(_) => "version",
            Malformed::VersionOfFamily => "version_of_family",
            Malformed::Type(_) => "type",
            Malformed::Vrid => "vrid",
            Malformed::NoAddress => "no_address",
            Malformed::Interval => "interval",
            Malformed::AuthenticationType(_) => "authentication_type",
            Malformed::Checksum => "checksum",
        }
    }
}

/// The VRRP message inside an IPv4 packet as a raw socket gives it, and its context. Bytes after the packet's
/// own length (an Ethernet frame's padding) are not part of it.
pub fn from_ipv4(packet: &[u8]) -> Result<(Context, &[u8]), Malformed> {
    let header = packet.get(..IPV4_HEADER_LEN).ok_or(Malformed::Ip)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header[0] >> 4 != 4 || header_len < IPV4_HEADER_LEN || header[9] != PROTOCOL || fragment != 0 {
        return Err(Malformed::Ip);
    }
    let message = packet.get(header_len..total_len).ok_or(Malformed::Ip)?;
    let address = |at: Range<usize>| {
        let bytes: [u8; 4] = header[at].try_into().expect("four bytes of the header");
        IpAddr::V4(Ipv4Addr::from(bytes))
    };
    let context = Context { source: address(12..16), destination: address(16..20), ttl: header[8] };
    Ok((context, message))
}

/// The virtual router that a message is about, before anything else about it is known.
pub fn vrid_of(message: &[u8]) -> Option<Vrid> {
    message.get(VRID).copied().and_then(Vrid::new)
}

/// Reads the VRRP message of a packet. Multicast must arrive with TTL 255 (RFC 9568 section 7.1); what unicast
/// may arrive with is for the instance to say.
pub fn decode(message: &[u8], context: &Context) -> Result<Decoded, Malformed> {
    if context.destination.is_multicast() && context.ttl != TTL {
        return Err(Malformed::Ttl(context.ttl));
    }
    let ipv4 = context.source.is_ipv4();
    let have = message.len();
    let too_short = |needed| Malformed::TooShort { needed, have };
    let Some(header) = message.get(..HEADER_LEN) else { return Err(too_short(HEADER_LEN)) };
    let version = match header[VERSION_AND_TYPE] >> 4 {
        2 if ipv4 => VrrpVersion::V2,
        2 => return Err(Malformed::VersionOfFamily),
        3 => VrrpVersion::V3,
        other => return Err(Malformed::Version(other)),
    };
    let kind = header[VERSION_AND_TYPE] & 0x0f;
    if kind != TYPE_ADVERTISEMENT {
        return Err(Malformed::Type(kind));
    }
    let vrid = Vrid::new(header[VRID]).ok_or(Malformed::Vrid)?;
    let count = usize::from(header[COUNT]);
    let length = length(version, ipv4, count);
    if have < length {
        return Err(too_short(length));
    }
    let trailer = match have - length {
        0 => None,
        TRAILER_LEN => Some(message[length..].try_into().expect("as many bytes as a trailer has")),
        _ => return Err(Malformed::TooLong { length, have }),
    };
    if count == 0 {
        return Err(Malformed::NoAddress);
    }
    let (interval, password) = match version {
        VrrpVersion::V2 => {
            let data = length - PASSWORD_LEN..length;
            let password = match header[V2_AUTHENTICATION] {
                0 => None,
                1 => Some(message[data].try_into().expect("as many bytes as a password has")),
                other => return Err(Malformed::AuthenticationType(other)),
            };
            (Duration::from_secs(header[V2_INTERVAL].into()), password)
        }
        VrrpVersion::V3 => {
            // The four bits above the interval are ignored on receipt (RFC 9568, 5.2.6).
            let centiseconds = u16::from_be_bytes([header[4], header[5]]) & 0x0fff;
            (Duration::from_millis(u64::from(centiseconds) * 10), None)
        }
    };
    if interval.is_zero() {
        return Err(Malformed::Interval);
    }
    let checksum = checksum_form(version, message, length, context).ok_or(Malformed::Checksum)?;
    let addresses = HEADER_LEN..HEADER_LEN + count * address_len(ipv4);
    let addresses = message[addresses].chunks_exact(address_len(ipv4)).map(address).collect();
    let advert = Advert { version, vrid, priority: header[PRIORITY], interval, addresses, password };
    Ok(Decoded { advert, checksum, length, trailer })
}

/// Writes the VRRP message. `sign` gets the advertisement with a checksum of zero and returns the trailer that
/// goes behind it, if any. `form` matters for v3 over IPv4 only.
pub fn encode(
    advert: &Advert,
    source: IpAddr,
    destination: IpAddr,
    form: VrrpChecksum,
    sign: impl FnOnce(&[u8]) -> Option<[u8; TRAILER_LEN]>,
) -> Vec<u8> {
    let ipv4 = source.is_ipv4();
    let length = length(advert.version, ipv4, advert.addresses.len());
    let mut message = Vec::with_capacity(length + TRAILER_LEN);
    let version = advert.version.number() << 4 | TYPE_ADVERTISEMENT;
    message.extend([version, advert.vrid.get(), advert.priority, advert.addresses.len() as u8]);
    match advert.version {
        VrrpVersion::V2 => {
            message.extend([u8::from(advert.password.is_some()), advert.interval.as_secs() as u8]);
        }
        VrrpVersion::V3 => {
            let centiseconds = (advert.interval.as_millis() / 10) as u16;
            message.extend((centiseconds & 0x0fff).to_be_bytes());
        }
    }
    message.extend([0, 0]);
    for address in &advert.addresses {
        match address {
            IpAddr::V4(address) => message.extend(address.octets()),
            IpAddr::V6(address) => message.extend(address.octets()),
        }
    }
    if advert.version == VrrpVersion::V2 {
        message.extend(advert.password.unwrap_or_default());
    }
    message.extend(sign(&message).into_iter().flatten());
    let sum = match (advert.version, ipv4, form) {
        (VrrpVersion::V2, ..) | (_, true, VrrpChecksum::MessageOnly) => checksum(&message[..length], 0),
        (_, true, VrrpChecksum::PseudoHeader) => {
            checksum(&message[..length], pseudo_header(source, destination, length))
        }
        (_, false, _) => checksum(&message, pseudo_header(source, destination, message.len())),
    };
    message[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Which form of checksum the message carries, or None if it is wrong in every form. A trailer is covered by
/// IPv6's checksum, which a kernel may have written over the whole payload, and by none of IPv4's.
fn checksum_form(
    version: VrrpVersion,
    message: &[u8],
    length: usize,
    context: &Context,
) -> Option<VrrpChecksum> {
    let right = |covered: &[u8], pseudo: u32| checksum(covered, pseudo) == 0;
    let advert = &message[..length];
    let pseudo = |length| pseudo_header(context.source, context.destination, length);
    match version {
        VrrpVersion::V2 => right(advert, 0).then_some(VrrpChecksum::MessageOnly),
        VrrpVersion::V3 if context.source.is_ipv6() => {
            right(message, pseudo(message.len())).then_some(VrrpChecksum::PseudoHeader)
        }
        VrrpVersion::V3 if right(advert, pseudo(length)) => Some(VrrpChecksum::PseudoHeader),
        VrrpVersion::V3 => right(advert, 0).then_some(VrrpChecksum::MessageOnly),
    }
}

/// The sum of the pseudo header (RFC 768, RFC 8200 section 8.1), not folded.
fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> u32 {
    let words = |address: IpAddr| match address {
        IpAddr::V4(address) => sum_words(&address.octets()),
        IpAddr::V6(address) => sum_words(&address.octets()),
    };
    words(source) + words(destination) + u32::from(PROTOCOL) + length as u32
}

/// The Internet checksum (RFC 1071) of some bytes behind a pseudo header.
fn checksum(bytes: &[u8], pseudo_header: u32) -> u16 {
    let mut sum = sum_words(bytes) + pseudo_header;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The sum of 16-bit words. A message has at most 8 + 255 × 16 + 28 bytes, so nothing overflows.
fn sum_words(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    bytes.chunks(2).map(word).sum()
}

/// How long an advertisement is, without a trailer.
fn length(version: VrrpVersion, ipv4: bool, count: usize) -> usize {
    let authentication = if version == VrrpVersion::V2 { PASSWORD_LEN } else { 0 };
    HEADER_LEN + count * address_len(ipv4) + authentication
}

fn address_len(ipv4: bool) -> usize {
    if ipv4 { 4 } else { 16 }
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => IpAddr::V6(octets.into()),
        Err(_) => IpAddr::V4(<[u8; 4]>::try_from(bytes).expect("an address has 4 or 16 bytes").into()),
    }
}

/// IANA's protocol number for VRRP.
pub const PROTOCOL: u8 = 112;
/// The TTL or hop limit with which advertisements are sent.
pub const TTL: u8 = 255;
/// The type of service or traffic class with which advertisements are sent: internetwork control.
pub const TOS: u8 = 0xc0;
pub const MULTICAST_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
pub const MULTICAST_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// v2's authentication data.
pub const PASSWORD_LEN: usize = 8;
/// An authentication trailer ([`super::auth`]).
pub const TRAILER_LEN: usize = 28;
/// The longest message: 255 IPv6 addresses and a trailer.
pub const MESSAGE_MAX: usize = HEADER_LEN + 255 * 16 + TRAILER_LEN;

const IPV4_HEADER_LEN: usize = 20;
const HEADER_LEN: usize = 8;
const VERSION_AND_TYPE: usize = 0;
const VRID: usize = 1;
const PRIORITY: usize = 2;
const COUNT: usize = 3;
const V2_AUTHENTICATION: usize = 4;
const V2_INTERVAL: usize = 5;
/// Where the checksum lies; a trailer's HMAC reads it as zero.
pub(super) const CHECKSUM: Range<usize> = 6..8;
const TYPE_ADVERTISEMENT: u8 = 1;

#[cfg(test)]
#[path = "advert_tests.rs"]
mod tests;
