//! What an instance believes and what it refuses, by name and with the differing field.

use super::*;
use crate::model::HmacMode;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn rules() -> Rules {
    Rules {
        version: VrrpVersion::V3,
        vrid: Vrid::new(51).unwrap(),
        interval: Duration::from_secs(1),
        addresses: vec![ip("10.77.0.100"), ip("10.77.0.101")],
        password: None,
        checksum: VrrpChecksum::PseudoHeader,
        checksum_strict: false,
        unicast: None,
        keyring: None,
    }
}

fn v2(password: Option<&[u8; 8]>) -> Rules {
    Rules { version: VrrpVersion::V2, password: password.copied(), ..rules() }
}

fn keyring() -> Keyring {
    let keys = vec![(1, vec![1; 32])];
    Keyring { keys, active: 1, mode: HmacMode::Enforce, window: Some(Duration::from_secs(30)) }
}

const NOW: Duration = Duration::from_secs(1_800_000_000);
const PEER: &str = "10.77.0.2";

/// What `receiver` makes of what `sender` sends.
fn send_on(sender: Rules, receiver: Rules, to: &str, ttl: u8) -> Result<Heard, Refused> {
    let outgoing = Outgoing { priority: 100, interval: sender.interval };
    let bytes = Wire::new(sender).encode(outgoing, ip(PEER), ip(to), NOW);
    let context = Context { source: ip(PEER), destination: ip(to), ttl };
    Wire::new(receiver).receive(&bytes, &context, NOW)
}

fn send(sender: Rules, receiver: Rules) -> Result<Heard, Refused> {
    send_on(sender, receiver, "224.0.0.18", 255)
}

#[test]
fn directors_that_agree_understand_each_other() {
    for rules in [
        rules(),
        v2(None),
        v2(Some(b"secret12")),
        Rules { checksum: VrrpChecksum::MessageOnly, checksum_strict: true, ..rules() },
        Rules { keyring: Some(keyring()), ..rules() },
        Rules { keyring: Some(keyring()), ..v2(None) },
    ] {
        let heard = send(rules.clone(), rules.clone()).unwrap_or_else(|refused| panic!("{refused:?}"));
        let interval = rules.interval;
        assert_eq!(heard, Heard { source: ip(PEER), priority: 100, interval, differences: vec![] });
    }
    let backwards = Rules { addresses: vec![ip("10.77.0.101"), ip("10.77.0.100")], ..rules() };
    assert_eq!(send(backwards, rules()).unwrap().differences, vec![], "the order does not matter");
}

fn differing(field: Field, ours: &str, theirs: &str) -> Difference {
    Difference { field, ours: ours.into(), theirs: theirs.into() }
}

#[test]
fn what_differs_is_believed_where_that_leaves_one_master() {
    for (what, sender, expected) in [
        (
            "one address less",
            Rules { addresses: vec![ip("10.77.0.101")], ..rules() },
            differing(Field::Addresses, "10.77.0.100, 10.77.0.101", "10.77.0.101"),
        ),
        (
            "one other address",
            Rules { addresses: vec![ip("10.77.0.101"), ip("10.77.0.102")], ..rules() },
            differing(Field::Addresses, "10.77.0.100, 10.77.0.101", "10.77.0.101, 10.77.0.102"),
        ),
        (
            "another interval",
            Rules { interval: Duration::from_millis(30), ..rules() },
            differing(Field::Interval, "1s", "30ms"),
        ),
        (
            "the other checksum",
            Rules { checksum: VrrpChecksum::MessageOnly, ..rules() },
            differing(Field::Checksum, "pseudo header", "message only"),
        ),
    ] {
        let heard = send(sender, rules()).unwrap_or_else(|refused| panic!("{what}: {refused:?}"));
        assert_eq!(heard.differences, [expected], "{what}");
    }
}

#[test]
fn what_is_refused_is_named_and_says_what_differs() {
    let group = "224.0.0.18";
    let unicast = |min_ttl, peers: &[&str]| {
        let peers = peers.iter().map(|peer| ip(peer)).collect();
        Rules { unicast: Some(Unicast { peers, min_ttl }), ..rules() }
    };
    let strict = Rules { checksum_strict: true, ..rules() };
    let signed = Rules { keyring: Some(keyring()), ..rules() };
    let other_key = Keyring { keys: vec![(1, vec![2; 32])], ..keyring() };
    let key_2 = Keyring { keys: vec![(2, vec![2; 32])], active: 2, ..keyring() };
    let with = |keyring| Rules { keyring: Some(keyring), ..rules() };
    let authentication = |ours, theirs| Some(differing(Field::Authentication, ours, theirs));
    for (sender, receiver, to, ttl, name, difference) in [
        (v2(None), rules(), group, 255, "other_version", Some(differing(Field::Version, "3", "2"))),
        (rules(), v2(None), group, 255, "other_version", Some(differing(Field::Version, "2", "3"))),
        (v2(None), v2(Some(b"secret12")), group, 255, "password", authentication("password", "no password")),
        (v2(Some(b"secret12")), v2(None), group, 255, "password", authentication("no password", "password")),
        (
            v2(Some(b"secret13")),
            v2(Some(b"secret12")),
            group,
            255,
            "password",
            authentication("password", "another password"),
        ),
        (
            Rules { interval: Duration::from_secs(2), ..v2(None) },
            v2(None),
            group,
            255,
            "other_interval",
            Some(differing(Field::Interval, "1s", "2s")),
        ),
        (
            Rules { addresses: vec![ip("10.77.0.200")], ..rules() },
            rules(),
            group,
            255,
            "addresses",
            Some(differing(Field::Addresses, "10.77.0.100, 10.77.0.101", "10.77.0.200")),
        ),
        (
            Rules { checksum: VrrpChecksum::MessageOnly, ..rules() },
            strict,
            group,
            255,
            "checksum_form",
            Some(differing(Field::Checksum, "pseudo header", "message only")),
        ),
        (rules(), signed.clone(), group, 255, "auth_missing", authentication("hmac, key 1", "no trailer")),
        (signed.clone(), rules(), group, 255, "too_long", authentication("no trailer", "a trailer")),
        (
            with(other_key),
            signed.clone(),
            group,
            255,
            "auth_signature",
            authentication("hmac, key 1", "wrong signature for key 1"),
        ),
        (
            with(key_2),
            signed,
            group,
            255,
            "auth_unknown_key",
            authentication("hmac, key 1", "signed with key 2, which we do not have"),
        ),
        (rules(), unicast(255, &["10.77.0.3"]), "10.77.0.1", 255, "not_a_peer", None),
        (rules(), unicast(255, &[PEER]), "10.77.0.1", 254, "ttl", None),
        (rules(), unicast(255, &[PEER]), group, 255, "multicast", None),
        (rules(), rules(), "10.77.0.1", 255, "unicast", None),
        (rules(), rules(), group, 254, "ttl", None),
    ] {
        let refused = send_on(sender, receiver, to, ttl).expect_err(name);
        assert_eq!((refused.why.name(), refused.difference), (name, difference), "{}", refused.why);
        assert_eq!(refused.source, ip(PEER));
    }
    assert!(send_on(rules(), unicast(64, &[PEER]), "10.77.0.1", 64).is_ok());
}

#[test]
fn a_replay_is_no_difference_and_other_clocks_are_one_difference() {
    let signed = Rules { keyring: Some(keyring()), ..rules() };
    let outgoing = Outgoing { priority: 100, interval: Duration::from_secs(1) };
    let group = ip("224.0.0.18");
    let bytes = Wire::new(signed.clone()).encode(outgoing, ip(PEER), group, NOW);
    let context = Context { source: ip(PEER), destination: group, ttl: 255 };
    let mut receiver = Wire::new(signed);
    assert!(receiver.receive(&bytes, &context, NOW).is_ok());
    let again = receiver.receive(&bytes, &context, NOW).unwrap_err();
    assert_eq!((again.why.name(), again.difference), ("auth_replayed", None));
    let said = |seconds| {
        let refused = receiver.receive(&bytes, &context, NOW + Duration::from_secs(seconds)).unwrap_err();
        refused.difference.unwrap().theirs
    };
    let [early, late] = [100, 200].map(said);
    assert_eq!(early, late, "the same difference, however much time goes by");
}

#[test]
fn a_change_of_rules_keeps_what_was_heard() {
    let signed = Rules { keyring: Some(keyring()), ..rules() };
    let outgoing = Outgoing { priority: 100, interval: Duration::from_secs(1) };
    let group = ip("224.0.0.18");
    let bytes = Wire::new(signed.clone()).encode(outgoing, ip(PEER), group, NOW);
    let context = Context { source: ip(PEER), destination: group, ttl: 255 };
    let mut receiver = Wire::new(signed.clone());
    assert!(receiver.receive(&bytes, &context, NOW).is_ok());
    receiver.configure(Rules { interval: Duration::from_secs(2), ..signed });
    assert_eq!(receiver.receive(&bytes, &context, NOW).unwrap_err().why.name(), "auth_replayed");
}

#[test]
fn arbitrary_bytes_are_refused_and_nothing_worse() {
    use proptest::prelude::*;
    let rules = [rules(), v2(Some(b"secret12")), Rules { keyring: Some(keyring()), ..rules() }];
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>(), n in 0usize..3)| {
        let (source, destination) = if v6 { ("fe80::1", "ff02::12") } else { (PEER, "224.0.0.18") };
        let context = Context { source: ip(source), destination: ip(destination), ttl: 255 };
        let _ = Wire::new(rules[n].clone()).receive(&bytes, &context, NOW);
    });
}
