//! Bytes as they come from the network, through the decoder and the receive checks of an instance. The first byte
//! chooses family, destination and rules; the rest is the message, or (`PACKET`) a whole IPv4 packet.
//!
//! Beside "no panic, no endless loop": what is read can be written, and reading that gives the same again.

#![no_main]

use std::net::IpAddr;
use std::time::Duration;

use lb_fuzz::model::{HmacMode, Unicast, Vrid, VrrpChecksum, VrrpVersion};
use lb_fuzz::vrrp::advert::{self, Context};
use lb_fuzz::vrrp::auth::Keyring;
use lb_fuzz::vrrp::wire::{Outgoing, Rules, Wire};

/// The bits of the first byte.
const IPV6: u8 = 1;
const UNICAST: u8 = 2;
/// The checksum is put right first: otherwise nearly every input ends there.
const RIGHT_CHECKSUM: u8 = 4;
const VERSION_2: u8 = 8;
const HMAC: u8 = 16;
const PACKET: u8 = 32;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&bits, message)) = input.split_first() else { return };
    let has = |bit: u8| bits & bit != 0;
    if has(PACKET) {
        if let Ok((context, message)) = advert::from_ipv4(message) {
            let _ = advert::decode(message, &context);
        }
        return;
    }
    let [source, group, own]: [IpAddr; 3] = match has(IPV6) {
        true => ["fe80::2", "ff02::12", "fe80::1"].map(|text| text.parse().expect("an address")),
        false => ["10.77.0.2", "224.0.0.18", "10.77.0.1"].map(|text| text.parse().expect("an address")),
    };
    let context = Context { source, destination: if has(UNICAST) { own } else { group }, ttl: 255 };
    let mut message = message.to_vec();
    if has(RIGHT_CHECKSUM) {
        put_checksum_right(&mut message);
    }
    if let Ok(decoded) = advert::decode(&message, &context) {
        let again = advert::encode(&decoded.advert, source, context.destination, decoded.checksum, |_| {
            decoded.trailer
        });
        let twice = advert::decode(&again, &context).expect("what was written can be read");
        assert_eq!(twice.advert, decoded.advert);
        assert_eq!((twice.length, twice.trailer), (decoded.length, decoded.trailer));
        assert_eq!(again.len(), message.len());
    }
    let clock = Duration::new(0x6800_0000, 500_000_000);
    let rules = Rules {
        version: if has(VERSION_2) { VrrpVersion::V2 } else { VrrpVersion::V3 },
        vrid: Vrid::new(51).expect("not 0"),
        interval: Duration::from_secs(1),
        addresses: vec![own],
        password: has(VERSION_2).then_some(*b"secret12"),
        checksum: VrrpChecksum::PseudoHeader,
        checksum_strict: false,
        unicast: has(UNICAST).then(|| Unicast { peers: vec![source], min_ttl: 255 }),
        keyring: has(HMAC).then(|| Keyring {
            keys: vec![(1, (0..32).collect())],
            active: 1,
            mode: HmacMode::Enforce,
            window: Some(Duration::from_secs(30)),
        }),
    };
    let mut wire = Wire::new(rules);
    if wire.receive(&message, &context, clock).is_ok() {
        let outgoing = Outgoing { priority: 1, interval: Duration::from_secs(1) };
        wire.encode(outgoing, own, context.destination, clock);
    }
});

/// Makes the message's own sum right (v2, and v3 over IPv4 in the form of RFC 9568).
fn put_checksum_right(message: &mut [u8]) {
    let Some(field) = message.get_mut(6..8) else { return };
    field.fill(0);
    let covered = match (message[0] >> 4, usize::from(message[3])) {
        (2, count) => 16 + count * 4,
        (_, count) => 8 + count * 4,
    };
    let covered = covered.min(message.len());
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = message[..covered].chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    message[6..8].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
