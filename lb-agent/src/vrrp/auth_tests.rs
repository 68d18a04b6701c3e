//! Golden frames both ways, every way to be refused, and what a replay can do.

use std::net::IpAddr;

use super::*;
use crate::model::VrrpChecksum;
use crate::vrrp::advert::{self, Advert, Context, decode, encode};

/// The images of the protocol's draft, which keepalived tests itself against: key 00 01 .. 1f, virtual router
/// 51, priority 200, sequence 6800000080000000 (half a second after second 0x68000000).
const V4: &str = "3133c80100644402c0000264 010100006800000080000000 1b84bc4e8e43892dc6d98448f8ee2265";
const V6: &str = "3133c8010064a2e9fe800000000000000000000000000100 010100006800000080000000 \
                  c8c56146ebfd66ee10ec4d8186461b78";
/// Of our own, computed apart from this code: version 2 with a trailer, from 10.77.0.1, same key and sequence.
const V2: &str = "21336401 00017019 0a4d0064 0000000000000000 010100006800000080000000 \
                  633dec0e424669999fee801e68aa2735";

fn then() -> Duration {
    Duration::new(0x6800_0000, 500_000_000)
}

fn keyring(mode: HmacMode) -> Keyring {
    let window = Some(Duration::from_secs(30));
    Keyring { keys: vec![(1, (0..32).collect()), (2, vec![7; 64])], active: 1, mode, window }
}

fn enforcing() -> Authenticator {
    Authenticator::new(keyring(HmacMode::Enforce))
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4) | pair[1]).collect()
}

fn subject(source: &str) -> Subject {
    Subject { version: VrrpVersion::V3, vrid: Vrid::new(51).unwrap(), source: source.parse().unwrap() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// (source, destination, image, form of the checksum)
fn images() -> [(&'static str, &'static str, &'static str, VrrpChecksum); 2] {
    [
        ("198.51.100.10", "224.0.0.18", V4, VrrpChecksum::MessageOnly),
        ("fe80::10", "fe80::20", V6, VrrpChecksum::PseudoHeader),
    ]
}

#[test]
fn golden_frames_are_believed() {
    for (source, destination, image, form) in images() {
        let image = hex(image);
        let context = Context { source: ip(source), destination: ip(destination), ttl: 255 };
        let decoded = decode(&image, &context).unwrap();
        assert_eq!((decoded.advert.priority, decoded.checksum), (200, form));
        let message = &image[..decoded.length];
        let verified = enforcing().verify(then(), &subject(source), message, decoded.trailer.as_ref());
        assert_eq!(verified, Ok(()), "{source}");
    }
}

#[test]
fn golden_frames_are_written() {
    for (source, destination, image, form) in images() {
        let address = if ip(source).is_ipv4() { "192.0.2.100" } else { "fe80::100" };
        let advert = Advert {
            version: VrrpVersion::V3,
            vrid: Vrid::new(51).unwrap(),
            priority: 200,
            interval: Duration::from_secs(1),
            addresses: vec![ip(address)],
            password: None,
        };
        let mut authenticator = enforcing();
        let sign = |message: &[u8]| authenticator.sign(then(), &subject(source), message);
        let bytes = encode(&advert, ip(source), ip(destination), form, sign);
        assert_eq!(bytes, hex(image), "{source}");
    }
}

#[test]
fn version_2_carries_a_trailer_as_well() {
    let advert = Advert {
        version: VrrpVersion::V2,
        vrid: Vrid::new(51).unwrap(),
        priority: 100,
        interval: Duration::from_secs(1),
        addresses: vec![ip("10.77.0.100")],
        password: None,
    };
    let subject = Subject { version: VrrpVersion::V2, ..subject("10.77.0.1") };
    let mut authenticator = enforcing();
    let group = ip("224.0.0.18");
    let sign = |message: &[u8]| authenticator.sign(then(), &subject, message);
    let bytes = encode(&advert, ip("10.77.0.1"), group, VrrpChecksum::PseudoHeader, sign);
    assert_eq!(bytes, hex(V2));
    let context = Context { source: ip("10.77.0.1"), destination: group, ttl: 255 };
    let decoded = decode(&bytes, &context).unwrap();
    let message = &bytes[..decoded.length];
    assert_eq!(enforcing().verify(then(), &subject, message, decoded.trailer.as_ref()), Ok(()));
}

/// The IPv4 image with one byte changed.
fn spoilt(at: usize) -> (Vec<u8>, [u8; TRAILER_LEN]) {
    let mut image = hex(V4);
    image[at] ^= 1;
    (image[..12].to_vec(), image[12..].try_into().unwrap())
}

#[test]
fn whatever_is_changed_is_noticed() {
    let mut wrong = Vec::new();
    for at in 0..40 {
        let expected = match at {
            // A kernel may have written the checksum after the signature.
            6 | 7 => Ok(()),
            12 => Err(Unauthentic::Type(0)),
            13 => Err(Unauthentic::UnknownKey(0)),
            14 | 15 => Err(Unauthentic::Reserved),
            16..=18 => Err(Unauthentic::Stale { seconds: 0 }),
            _ => Err(Unauthentic::Signature(1)),
        };
        let (message, trailer) = spoilt(at);
        let mut got = enforcing().verify(then(), &subject("198.51.100.10"), &message, Some(&trailer));
        if let Err(Unauthentic::Stale { seconds }) = &mut got {
            *seconds = 0;
        }
        if got != expected {
            wrong.push((at, got));
        }
    }
    assert_eq!(wrong, []);
}

#[test]
fn a_signature_is_for_one_sender_router_and_version() {
    let (message, trailer) = spoilt(6);
    let right = subject("198.51.100.10");
    for other in [
        Subject { source: ip("198.51.100.11"), ..right },
        Subject { vrid: Vrid::new(52).unwrap(), ..right },
        Subject { version: VrrpVersion::V2, ..right },
    ] {
        let verified = enforcing().verify(then(), &other, &message, Some(&trailer));
        assert_eq!(verified, Err(Unauthentic::Signature(1)), "{other:?}");
    }
    assert_eq!(enforcing().verify(then(), &right, &message, Some(&trailer)), Ok(()));
}

/// What a sender signs at a time, the message being always the same.
fn signed(sender: &mut Authenticator, at: Duration) -> [u8; TRAILER_LEN] {
    sender.sign(at, &subject("10.0.0.1"), &MESSAGE).unwrap()
}

fn heard(receiver: &mut Authenticator, at: Duration, trailer: &[u8; TRAILER_LEN]) -> Result<(), Unauthentic> {
    receiver.verify(at, &subject("10.0.0.1"), &MESSAGE, Some(trailer))
}

const MESSAGE: [u8; 12] = [0x31, 51, 100, 1, 0, 100, 0, 0, 10, 0, 0, 9];

#[test]
fn what_was_heard_is_not_heard_again() {
    let (mut sender, mut receiver) = (enforcing(), enforcing());
    let (first, second) = (signed(&mut sender, then()), signed(&mut sender, then()));
    assert_ne!(first, second, "the sequence grows within one reading of the clock");
    assert_eq!(heard(&mut receiver, then(), &second), Ok(()));
    assert_eq!(heard(&mut receiver, then(), &second), Err(Unauthentic::Replayed));
    assert_eq!(heard(&mut receiver, then(), &first), Err(Unauthentic::Replayed), "overtaken on the way");
    // To another receiver both are new, in order.
    let mut other = enforcing();
    assert_eq!(heard(&mut other, then(), &first), Ok(()));
    assert_eq!(heard(&mut other, then(), &second), Ok(()));
}

#[test]
fn a_forgery_moves_nothing() {
    let (mut sender, mut receiver) = (enforcing(), enforcing());
    let good = signed(&mut sender, then());
    let mut forged = good;
    forged[SEQUENCE.start + 6] = 0xff;
    assert_eq!(heard(&mut receiver, then(), &forged), Err(Unauthentic::Signature(1)));
    assert_eq!(heard(&mut receiver, then(), &good), Ok(()));
}

#[test]
fn clocks_may_differ_by_the_window() {
    let second = Duration::from_secs(1);
    let trailer = signed(&mut enforcing(), then());
    for (off, expected) in [
        (then() + second * 30, Ok(())),
        (then() - second * 30, Ok(())),
        (then() + second * 31, Err(Unauthentic::Stale { seconds: 31 })),
        (then() - second * 31, Err(Unauthentic::Stale { seconds: -31 })),
    ] {
        assert_eq!(heard(&mut enforcing(), off, &trailer), expected);
    }
    let mut without_clock = Authenticator::new(Keyring { window: None, ..keyring(HmacMode::Enforce) });
    assert_eq!(heard(&mut without_clock, Duration::ZERO, &trailer), Ok(()));
    assert_eq!(heard(&mut without_clock, Duration::ZERO, &trailer), Err(Unauthentic::Replayed));
}

#[test]
fn a_clock_that_is_set_back_does_not_silence_its_sender() {
    let (mut sender, mut receiver) = (enforcing(), enforcing());
    let hour = Duration::from_secs(3600);
    // A little: the sequence goes on.
    let first = signed(&mut sender, then());
    let little = signed(&mut sender, then() - Duration::from_secs(5));
    assert_eq!(heard(&mut receiver, then(), &first), Ok(()));
    assert_eq!(heard(&mut receiver, then(), &little), Ok(()));
    // An hour: everybody's clock is an hour earlier now, and what was said in the future is forgotten.
    let back = signed(&mut sender, then() - hour);
    assert_eq!(heard(&mut receiver, then() - hour, &back), Ok(()));
    assert_eq!(heard(&mut receiver, then() - hour, &back), Err(Unauthentic::Replayed));
}

#[test]
fn the_sequence_survives_the_end_of_its_seconds() {
    let (mut sender, mut receiver) = (enforcing(), enforcing());
    let last = Duration::from_secs(u64::from(u32::MAX));
    let before = signed(&mut sender, last);
    let after = signed(&mut sender, last + Duration::from_secs(1));
    assert_eq!(heard(&mut receiver, last, &before), Ok(()));
    assert_eq!(heard(&mut receiver, last + Duration::from_secs(1), &after), Ok(()));
}

#[test]
fn keys_are_changed_without_a_gap() {
    // Both have both keys; one signs with the new one already.
    let mut sender = Authenticator::new(Keyring { active: 2, ..keyring(HmacMode::Enforce) });
    let mut receiver = enforcing();
    let trailer = signed(&mut sender, then());
    assert_eq!(trailer[KEY_ID], 2);
    assert_eq!(heard(&mut receiver, then(), &trailer), Ok(()));
    // The old one goes; what it signed is refused, and a record of the new stays a replay.
    let only_new = Keyring { keys: vec![(2, vec![7; 64])], active: 2, ..keyring(HmacMode::Enforce) };
    receiver.configure(only_new);
    let old = signed(&mut enforcing(), then() + Duration::from_secs(1));
    assert_eq!(heard(&mut receiver, then(), &old), Err(Unauthentic::UnknownKey(1)));
    assert_eq!(heard(&mut receiver, then(), &trailer), Err(Unauthentic::Replayed));
}

#[test]
fn the_modes_let_a_segment_move_step_by_step() {
    use HmacMode::{Enforce, Permissive, ReceiveOnly};
    let sent = |mode| Authenticator::new(keyring(mode)).sign(then(), &subject("10.0.0.1"), &MESSAGE);
    assert_eq!(sent(ReceiveOnly), None);
    // Each step understands its own and the neighbouring ones.
    for (sender, receiver, expected) in [
        (ReceiveOnly, ReceiveOnly, Ok(())),
        (ReceiveOnly, Permissive, Ok(())),
        (Permissive, ReceiveOnly, Ok(())),
        (Permissive, Permissive, Ok(())),
        (Permissive, Enforce, Ok(())),
        (Enforce, Permissive, Ok(())),
        (Enforce, Enforce, Ok(())),
        (ReceiveOnly, Enforce, Err(Unauthentic::Missing)),
    ] {
        let trailer = sent(sender);
        let mut receiver_ = Authenticator::new(keyring(receiver));
        let verified = receiver_.verify(then(), &subject("10.0.0.1"), &MESSAGE, trailer.as_ref());
        assert_eq!(verified, expected, "{sender:?} to {receiver:?}");
    }
    // A wrong signature is worse than none, whatever the mode.
    let mut trailer = sent(Permissive).unwrap();
    trailer[27] ^= 1;
    for mode in [ReceiveOnly, Permissive, Enforce] {
        let verified = heard(&mut Authenticator::new(keyring(mode)), then(), &trailer);
        assert_eq!(verified, Err(Unauthentic::Signature(1)), "{mode:?}");
    }
}

#[test]
fn many_senders_fill_no_memory() {
    let mut receiver = enforcing();
    for n in 0..100u8 {
        let subject = Subject { source: [10, 0, 1, n].into(), ..subject("10.0.0.1") };
        let trailer = enforcing().sign(then(), &subject, &MESSAGE);
        assert_eq!(receiver.verify(then(), &subject, &MESSAGE, trailer.as_ref()), Ok(()));
    }
    assert_eq!(receiver.senders.len(), SENDERS_MAX);
}

#[test]
fn secrets_are_not_printed() {
    let printed = format!("{:?}", enforcing());
    assert!(printed.contains("[1, 2]") && !printed.contains("28, 29, 30"), "{printed}");
    assert_eq!(advert::TRAILER_LEN, HMAC.end);
}
