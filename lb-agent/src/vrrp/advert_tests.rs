//! Golden frames both ways, then what is wrong with a frame.

use super::*;
use VrrpVersion::{V2, V3};

/// A frame from the wire, its meaning, and what its checksum covers.
struct Golden {
    what: &'static str,
    source: &'static str,
    destination: &'static str,
    message: &'static str,
    checksum: VrrpChecksum,
    advert: Advert,
}

fn advert(version: VrrpVersion, vrid: u8, priority: u8, ms: u64, addresses: &[&str]) -> Advert {
    Advert {
        version,
        vrid: Vrid::new(vrid).unwrap(),
        priority,
        interval: Duration::from_millis(ms),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        password: None,
    }
}

const GROUP: &str = "224.0.0.18";
const VIPS: [&str; 2] = ["10.77.0.100", "10.77.0.101"];

/// Sent by keepalived 2.2.7 and FRR 8.4.4, except where it says otherwise.
fn golden() -> Vec<Golden> {
    let frame = |what, source, destination, message, checksum, advert| Golden {
        what,
        source,
        destination,
        message,
        checksum,
        advert,
    };
    use VrrpChecksum::{MessageOnly, PseudoHeader};
    vec![
        frame(
            "v2 with password secret12",
            "10.77.0.1",
            GROUP,
            "21336402 0101f6e7 0a4d0064 0a4d0065 7365637265743132",
            MessageOnly,
            Advert { password: Some(*b"secret12"), ..advert(V2, 51, 100, 1000, &VIPS) },
        ),
        frame(
            "v2 without authentication",
            "10.77.0.1",
            GROUP,
            "21336402 00016566 0a4d0064 0a4d0065 0000000000000000",
            MessageOnly,
            advert(V2, 51, 100, 1000, &VIPS),
        ),
        frame(
            "v3 multicast",
            "10.77.0.1",
            GROUP,
            "31336402 00646a22 0a4d0064 0a4d0065",
            PseudoHeader,
            advert(V3, 51, 100, 1000, &VIPS),
        ),
        frame(
            "v3 multicast, checksum of the message only (computed)",
            "10.77.0.1",
            GROUP,
            "31336402 00645503 0a4d0064 0a4d0065",
            MessageOnly,
            advert(V3, 51, 100, 1000, &VIPS),
        ),
        frame(
            "v3 unicast",
            "10.77.0.1",
            "10.77.0.2",
            "313e6401 000a4ae2 0a4d006e",
            PseudoHeader,
            advert(V3, 62, 100, 100, &["10.77.0.110"]),
        ),
        frame(
            "v3 of FRR",
            "10.77.0.2",
            GROUP,
            "3133c802 00640621 0a4d0064 0a4d0065",
            PseudoHeader,
            advert(V3, 51, 200, 1000, &VIPS),
        ),
        frame(
            "v3 over IPv6",
            "fe80::c88c:ecff:fe24:5acd",
            "ff02::12",
            "313d6402 00322f30 fe800000000000000000000000000100 20010db8007700000000000000000100",
            PseudoHeader,
            advert(V3, 61, 100, 500, &["fe80::100", "2001:db8:77::100"]),
        ),
    ]
}

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn context(golden: &Golden) -> Context {
    Context { source: ip(golden.source), destination: ip(golden.destination), ttl: 255 }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn golden_frames_are_read() {
    for golden in golden() {
        let decoded = decode(&hex(golden.message), &context(&golden));
        let expected = Decoded {
            length: hex(golden.message).len(),
            advert: golden.advert,
            checksum: golden.checksum,
            trailer: None,
        };
        assert_eq!(decoded, Ok(expected), "{}", golden.what);
    }
}

#[test]
fn golden_frames_are_written() {
    for golden in golden() {
        let (source, destination) = (ip(golden.source), ip(golden.destination));
        let bytes = encode(&golden.advert, source, destination, golden.checksum, |_| None);
        assert_eq!(bytes, hex(golden.message), "{}", golden.what);
    }
}

/// keepalived's v2 advertisement with its IP header.
const PACKET: &str =
    "45c0002c00010000ff70d0400a4d0001e0000012 21336402 0101f6e7 0a4d0064 0a4d0065 7365637265743132";

#[test]
fn the_message_is_found_in_an_ip_packet() {
    let packet = hex(PACKET);
    let (context, message) = from_ipv4(&packet).unwrap();
    assert_eq!(context, Context { source: ip("10.77.0.1"), destination: ip(GROUP), ttl: 255 });
    assert_eq!(message, &packet[20..]);
    assert_eq!(vrid_of(message), Vrid::new(51));

    // A frame's padding is not part of the packet; options are part of the header.
    let mut padded = packet.clone();
    padded.extend([0; 2]);
    assert_eq!(from_ipv4(&padded).unwrap().1, &packet[20..]);
    let mut options = packet.clone();
    options.splice(20..20, [1, 1, 1, 1]);
    (options[0], options[3]) = (0x46, 0x30);
    assert_eq!(from_ipv4(&options).unwrap().1, &packet[20..]);
}

#[test]
fn what_is_no_ip_packet_with_vrrp_is_refused() {
    let spoilt = |at: usize, byte: u8| {
        let mut packet = hex(PACKET);
        packet[at] = byte;
        packet
    };
    for (what, packet) in [
        ("nothing", Vec::new()),
        ("half a header", hex(PACKET)[..19].to_vec()),
        ("a packet that ends before its length", hex(PACKET)[..43].to_vec()),
        ("IPv6", spoilt(0, 0x65)),
        ("a header of 16 bytes", spoilt(0, 0x44)),
        ("a header longer than the packet", spoilt(3, 19)),
        ("UDP", spoilt(9, 17)),
        ("a first fragment", spoilt(6, 0x20)),
        ("a later fragment", spoilt(7, 1)),
    ] {
        assert_eq!(from_ipv4(&packet), Err(Malformed::Ip), "{what}");
    }
}

/// A good v3 message with some bytes other than they were, its checksum right again.
fn changed(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut message = hex("31336402 00640000 0a4d0064 0a4d0065");
    for &(at, byte) in changes {
        message[at] = byte;
    }
    let sum = checksum(&message, 0);
    message[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
    message
}

#[test]
fn every_check_has_its_own_answer() {
    let here = Context { source: ip("10.77.0.1"), destination: ip(GROUP), ttl: 255 };
    let v6 = Context { source: ip("fe80::1"), destination: ip("ff02::12"), ttl: 255 };
    let too_long = |have| Malformed::TooLong { length: 16, have };
    let with = |more: usize| {
        let mut message = changed(&[]);
        message.resize(16 + more, 0);
        message
    };
    for (what, message, context, expected) in [
        ("nothing", vec![], here, Malformed::TooShort { needed: 8, have: 0 }),
        (
            "one byte too few for a header",
            changed(&[])[..7].to_vec(),
            here,
            Malformed::TooShort { needed: 8, have: 7 },
        ),
        ("one byte too few", changed(&[])[..15].to_vec(), here, Malformed::TooShort { needed: 16, have: 15 }),
        ("a count that lies", changed(&[(3, 3)]), here, Malformed::TooShort { needed: 20, have: 16 }),
        ("a count that says less", changed(&[(3, 1)]), here, Malformed::TooLong { length: 12, have: 16 }),
        ("one byte too many", with(1), here, too_long(17)),
        ("one byte less than a trailer", with(27), here, too_long(43)),
        ("one byte more than a trailer", with(29), here, too_long(45)),
        (
            "v2 without its authentication data",
            changed(&[(0, 0x21)]),
            here,
            Malformed::TooShort { needed: 24, have: 16 },
        ),
        ("TTL 254", changed(&[]), Context { ttl: 254, ..here }, Malformed::Ttl(254)),
        ("version 1", changed(&[(0, 0x11)]), here, Malformed::Version(1)),
        ("version 4", changed(&[(0, 0x41)]), here, Malformed::Version(4)),
        ("version 2 over IPv6", changed(&[(0, 0x21)]), v6, Malformed::VersionOfFamily),
        ("type 2", changed(&[(0, 0x32)]), here, Malformed::Type(2)),
        ("virtual router 0", changed(&[(1, 0)]), here, Malformed::Vrid),
        ("no address", changed(&[(3, 0)])[..8].to_vec(), here, Malformed::NoAddress),
        ("interval 0", changed(&[(5, 0)]), here, Malformed::Interval),
        ("v2 with interval 0", hex("21336401 00000000 0a4d0064 0000000000000000"), here, Malformed::Interval),
        (
            "IPsec authentication",
            hex("21336401 02010000 0a4d0064 0000000000000000"),
            here,
            Malformed::AuthenticationType(2),
        ),
        (
            "a wrong checksum",
            {
                let mut m = changed(&[]);
                m[7] ^= 1;
                m
            },
            here,
            Malformed::Checksum,
        ),
        (
            "v2 with the sum of a pseudo header",
            hex("21336402 00011d83 0a4d0064 0a4d0065 0000000000000000"),
            here,
            Malformed::Checksum,
        ),
        (
            "IPv6 with the sum of the message only",
            {
                let mut m = hex("313d6401 00320000 fe800000000000000000000000000100");
                let sum = checksum(&m, 0);
                m[CHECKSUM].copy_from_slice(&sum.to_be_bytes());
                m
            },
            v6,
            Malformed::Checksum,
        ),
    ] {
        assert_eq!(decode(&message, &context), Err(expected), "{what}");
    }
}

#[test]
fn what_a_receiver_must_not_mind() {
    let here = Context { source: ip("10.77.0.1"), destination: ip(GROUP), ttl: 255 };
    let decoded = decode(&changed(&[(4, 0xf0)]), &here).unwrap();
    assert_eq!(decoded.advert.interval, Duration::from_secs(1), "reserved bits above the interval");
    let near = Context { destination: ip("10.77.0.2"), ttl: 1, ..here };
    assert!(decode(&changed(&[]), &near).is_ok(), "the TTL of unicast is for the instance to judge");
    assert_eq!(decode(&changed(&[(2, 0)]), &here).unwrap().advert.priority, 0);
}

#[test]
fn reasons_are_counted_under_names_of_their_own() {
    let reasons = [
        Malformed::Ip,
        Malformed::TooShort { needed: 0, have: 0 },
        Malformed::TooLong { length: 0, have: 0 },
        Malformed::Ttl(0),
        Malformed::Version(0),
        Malformed::VersionOfFamily,
        Malformed::Type(0),
        Malformed::Vrid,
        Malformed::NoAddress,
        Malformed::Interval,
        Malformed::AuthenticationType(0),
        Malformed::Checksum,
    ];
    let names: std::collections::BTreeSet<_> = reasons.map(Malformed::name).into_iter().collect();
    assert_eq!(names.len(), reasons.len());
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn any_advert() -> impl Strategy<Value = (Advert, Context, VrrpChecksum)> {
        let v2 = (1u8..=255, any::<u8>(), 1u64..=255, proptest::collection::vec(any::<[u8; 4]>(), 1..=20));
        let v2 = (v2, any::<Option<[u8; 8]>>(), any::<[[u8; 4]; 2]>()).prop_map(|(v2, password, ends)| {
            let (vrid, priority, seconds, addresses) = v2;
            let (vrid, interval) = (Vrid::new(vrid).unwrap(), Duration::from_secs(seconds));
            let addresses = addresses.into_iter().map(IpAddr::from).collect();
            let advert = Advert { version: V2, vrid, priority, interval, addresses, password };
            (advert, ends.map(IpAddr::from), VrrpChecksum::MessageOnly)
        });
        let v3 = (1u8..=255, any::<u8>(), 1u64..=4095, proptest::collection::vec(any::<[u8; 16]>(), 1..=255));
        let v3 = (v3, any::<bool>(), any::<[[u8; 16]; 2]>()).prop_map(|(v3, ipv4, ends)| {
            let (vrid, priority, centiseconds, addresses) = v3;
            let address = |octets: [u8; 16]| match ipv4 {
                true => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
                false => IpAddr::from(octets),
            };
            let (vrid, interval) = (Vrid::new(vrid).unwrap(), Duration::from_millis(centiseconds * 10));
            let addresses = addresses.into_iter().map(address).collect();
            let advert = Advert { version: V3, vrid, priority, interval, addresses, password: None };
            (advert, ends.map(address), VrrpChecksum::PseudoHeader)
        });
        prop_oneof![v2, v3].prop_map(|(advert, [source, destination], form)| {
            (advert, Context { source, destination, ttl: 255 }, form)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read((advert, context, form) in any_advert()) {
            let bytes = encode(&advert, context.source, context.destination, form, |_| None);
            let decoded = decode(&bytes, &context).unwrap();
            prop_assert_eq!(decoded.advert, advert);
            prop_assert_eq!(decoded.checksum, form);
            prop_assert!(bytes.len() <= MESSAGE_MAX);
        }

        #[test]
        fn no_single_changed_byte_goes_unnoticed(
            (advert, context, form) in any_advert(), at in any::<prop::sample::Index>(), flip in 1u8..=255,
        ) {
            let mut bytes = encode(&advert, context.source, context.destination, form, |_| None);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            // The other form's checksum may fit by chance; nothing else may.
            if let Ok(decoded) = decode(&bytes, &context) {
                prop_assert!(decoded.checksum != form, "byte {at} changed by {flip:#x}");
            }
        }
    }
}
