//! VRRP manifests: what is refused, where and why; what comes back.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;

use super::written::{completed, object, report};
use super::*;
use std::sync::Arc;

use crate::model::*;

/// An instance of this name with these fields, beside interface eth0, virtual router 51 and one address.
fn instance(name: &str, fields: &str) -> String {
    let others = [("interface", "eth0"), ("virtualRouterId", "51"), ("addresses", "[203.0.113.10/24]")];
    object("VrrpInstance", name, &completed(fields, "track:", &others))
}

fn group(name: &str, fields: &str) -> String {
    object("VrrpSyncGroup", name, fields)
}

fn only(text: &str) -> VrrpInstance {
    let objects = load_text("m.yaml", text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    objects.vrrp_instances().next().expect("one instance").0.clone()
}

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

#[test]
fn what_is_left_out_is_as_the_rfc_and_keepalived_have_it() {
    let instance = only(&instance("edge", ""));
    assert_eq!(instance.vrid.get(), 51);
    assert_eq!((instance.priority, instance.interval), (100, Duration::from_secs(1)));
    assert_eq!(instance.version, VrrpVersion::V3);
    assert_eq!(instance.preempt, Preempt::After(Duration::ZERO));
    assert_eq!(instance.unicast, None);
    assert_eq!(instance.authentication, Authentication::None);
    assert_eq!((instance.checksum, instance.checksum_strict), (VrrpChecksum::PseudoHeader, false));
    assert_eq!(instance.gratuitous.count, 5);
    assert_eq!(instance.vmac, Vmac::Off);
    assert!(instance.accept, "as keepalived, unless it is strict");
    assert!(instance.is_ipv4() && !instance.is_owner());
    assert!(instance.has_address("203.0.113.10".parse().unwrap()));
    assert_eq!(instance.addresses[0].address.prefix_len(), 24);
}

#[test]
fn everything_can_be_said() {
    let text = format!(
        "interface: eth0, priority: 150, version: 3, advertisementInterval: 30ms, \
         addresses: [203.0.113.10/24, {{address: 203.0.113.11, interface: eth1}}], \
         excludedAddresses: [\"2001:db8::10/64\"], preempt: true, preemptDelay: 5s, accept: false, \
         unicastPeers: [203.0.113.2, 203.0.113.3], unicastMinTtl: 254, sourceAddress: 203.0.113.1, \
         authentication: {{type: hmac, keys: [{{id: 1, key: {KEY}}}, {{id: 2, file: /etc/lb/k}}], activeKey: 2, \
         mode: permissive, window: off}}, checksum: {{form: message-only, strict: true}}, \
         gratuitous: {{count: 3, delay: 1s, repeat: 2, refresh: off}}, vmac: {{interface: v0}}, \
         track: {{interfaces: [eth1, {{name: eth2, weight: -10}}], \
           scripts: [{{name: nginx, command: [/bin/true, -q], interval: 2s, fall: 2}}], \
           processes: [{{name: nginx, quorum: 2, delay: 1s}}], files: [{{path: /run/m, weight: -1}}], \
           dataPlane: true}}, notify: {{master: [/bin/m], timeout: 5s}}, \
         routes: [{{to: 0.0.0.0/0, via: 203.0.113.254, table: 100}}], \
         rules: [{{from: 203.0.113.10, table: 100}}], shutdown: release"
    );
    let instance = only(&instance("edge", &text));
    assert_eq!(instance.addresses[1].interface.as_deref(), Some("eth1"));
    assert_eq!(instance.addresses[1].address.prefix_len(), 32);
    assert_eq!(instance.preempt, Preempt::After(Duration::from_secs(5)));
    assert!(!instance.accept);
    let Authentication::Hmac(hmac) = &instance.authentication else { panic!("{instance:?}") };
    assert_eq!((hmac.active_key, hmac.mode, hmac.window), (2, HmacMode::Permissive, None));
    assert!(!format!("{instance:?}").contains("29, 30, 31"), "the key is in {instance:?}");
    assert_eq!(instance.gratuitous.refresh, None);
    assert_eq!(instance.track.interfaces[1].effect, TrackEffect::Weight(-10));
    assert_eq!(instance.track.scripts[0].timeout, Duration::from_secs(2), "as the interval");
    assert_eq!(instance.track.data_plane, Some(TrackEffect::Fault));
    assert_eq!(instance.vmac.interface_name(instance.vrid, true).as_deref(), Some("v0"));
}

#[test]
fn mistakes_have_a_place_and_a_reason() {
    let v6 = |more: &str| instance("a", &format!("addresses: [\"2001:db8::1/64\"]{more}"));
    let mut wrong = Vec::new();
    for (text, expected) in [
        // Two virtual routers in one.
        (
            instance("a", "") + &instance("b", "addresses: [203.0.113.11/24]"),
            "m.yaml:10:72: spec.virtualRouterId: 51 on `eth0` already belongs to VrrpInstance `a` (IPv4)\n\
             help: it is defined in m.yaml:2",
        ),
        (
            instance("a", "") + &instance("b", "virtualRouterId: 52"),
            "spec.addresses[0]: 203.0.113.10 already follows VrrpInstance `a`",
        ),
        // Intervals.
        (
            instance("a", "advertisementInterval: 5ms"),
            "m.yaml:5:31: spec.advertisementInterval: 5ms is below 10ms",
        ),
        (instance("a", "advertisementInterval: 41s"), "spec.advertisementInterval: 41s is above 40s 950ms"),
        (instance("a", "advertisementInterval: 15ms"), "15ms is not a multiple of 10ms"),
        (
            instance("a", "version: 2, advertisementInterval: 100ms"),
            "100ms is below 1s\nhelp: version 2 counts",
        ),
        (instance("a", "version: 2, advertisementInterval: 1500ms"), "1s 500ms is not a multiple of 1s"),
        (instance("a", "version: 2, advertisementInterval: 256s"), "spec.advertisementInterval: "),
        (instance("a", "advertisementInterval: 1"), "1 is not a duration"),
        // Numbers.
        (instance("a", "virtualRouterId: 0"), "spec.virtualRouterId: 0 is below 1"),
        (instance("a", "virtualRouterId: 256"), "spec.virtualRouterId: 256 is above 255"),
        (instance("a", "priority: 0"), "spec.priority: 0 is below 1"),
        (instance("a", "version: 4"), "spec.version: 4 is above 3"),
        // Addresses.
        (instance("a", "addresses: []"), "spec.addresses: has no address"),
        (
            instance("a", "addresses: [203.0.113.0/24]"),
            "203.0.113.0 is the network address of 203.0.113.0/24",
        ),
        (instance("a", "addresses: [203.0.113.255/24]"), "203.0.113.255 is the broadcast address"),
        (instance("a", "addresses: [224.0.0.18]"), "spec.addresses[0]: 224.0.0.18 is a multicast address"),
        (
            instance("a", "addresses: [10.0.0.1/24, 10.0.0.1/32]"),
            "spec.addresses[1]: 10.0.0.1 is listed twice",
        ),
        (
            instance("a", "addresses: [10.0.0.1/24], excludedAddresses: [10.0.0.1]"),
            "spec.excludedAddresses[0]: 10.0.0.1 is listed twice",
        ),
        (
            instance("a", "addresses: [10.0.0.1/24, \"2001:db8::1/64\"]"),
            "spec.addresses[1]: 2001:db8::1 is not of the family of 10.0.0.1",
        ),
        (v6(", version: 2"), "version 2 is for IPv4 only, and 2001:db8::1 is IPv6"),
        (instance("a", "addresses: [web]"), "`web` is not an address like 203.0.113.10/24"),
        // Preemption.
        (
            instance("a", "preempt: false, preemptDelay: 5s"),
            "spec.preemptDelay: only an instance that preempts",
        ),
        (instance("a", "preempt: false, priority: 255"), "spec.preempt: priority 255 always preempts"),
        (instance("a", "accept: false, priority: 255"), "spec.accept: priority 255 always accepts"),
        (instance("a", "accept: no-way"), "spec.accept: `no-way` is not true or false"),
        (instance("a", "preemptDelay: 20m"), "spec.preemptDelay: "),
        // Unicast.
        (
            instance("a", "unicastPeers: []"),
            "spec.unicastPeers: has no peer; nobody would hear this director",
        ),
        (instance("a", "unicastPeers: [\"fe80::1\"]"), "spec.unicastPeers[0]: fe80::1 is not of the family"),
        (
            instance("a", "unicastPeers: [10.0.0.2, 10.0.0.2]"),
            "spec.unicastPeers[1]: 10.0.0.2 is listed twice",
        ),
        (instance("a", "unicastMinTtl: 64"), "spec.unicastMinTtl: only unicast peers have a least TTL"),
        (v6(", sourceAddress: 10.0.0.1"), "spec.sourceAddress: 10.0.0.1 is not of the family"),
        // Authentication.
        (
            instance("a", "authentication: {type: pass, password: secret12}"),
            "spec.authentication.type: version 3 has no passwords\nhelp: RFC 5798 took them out",
        ),
        (
            instance("a", "version: 2, authentication: {type: pass, password: secret123}"),
            "spec.authentication.password: a password has 1 to 8 bytes, this one 9",
        ),
        (instance("a", "authentication: {type: ah}"), "`ah` is not one of none, pass, hmac"),
        (instance("a", "authentication: {type: hmac}"), "spec.authentication.keys: is required"),
        (instance("a", "authentication: {type: hmac, keys: []}"), "spec.authentication.keys: has no key"),
        (
            instance("a", "authentication: {type: hmac, keys: [{id: 1}]}"),
            "spec.authentication.keys[0]: has neither `key` nor `file`",
        ),
        (
            instance("a", "authentication: {type: hmac, keys: [{id: 1, key: \"00ff\"}]}"),
            "a key has 64 to 128 hexadecimal digits (32 to 64 bytes), this one 4",
        ),
        (
            instance("a", "authentication: {type: hmac, keys: [{id: 1, key: secret}]}"),
            "spec.authentication.keys[0].key: a key consists of hexadecimal digits",
        ),
        (
            instance("a", "authentication: {type: hmac, keys: [{id: 1, file: k}]}"),
            "spec.authentication.keys[0].file: `k` is not an absolute path",
        ),
        (
            instance(
                "a",
                "authentication: {type: hmac, keys: [{id: 1, file: /k}, {id: 1, file: /l}], activeKey: 1}",
            ),
            "spec.authentication.keys[1].id: key 1 is listed twice",
        ),
        (
            instance("a", "authentication: {type: hmac, keys: [{id: 1, file: /k}, {id: 2, file: /l}]}"),
            "spec.authentication.activeKey: is required with several keys",
        ),
        (
            instance("a", "authentication: {type: hmac, keys: [{id: 1, file: /k}], activeKey: 7}"),
            "spec.authentication.activeKey: there is no key 7\nhelp: the keys are 1",
        ),
        (
            instance("a", "authentication: {type: none, password: x}"),
            "spec.authentication.password: unknown field",
        ),
        (v6(", checksum: {strict: true}"), "spec.checksum: only version 3 over IPv4 has two forms"),
        (
            instance("a", "version: 2, checksum: {form: message-only}"),
            "spec.checksum: only version 3 over IPv4",
        ),
        // What is done beside it.
        (instance("a", "gratuitous: {count: 0}"), "spec.gratuitous.count: 0 is below 1"),
        (instance("a", "vmac: yes-please"), "spec.vmac: `yes-please` is not true, false or a map"),
        (
            instance("a", "notify: {master: on-master}"),
            "spec.notify.master: `on-master` is not a program and",
        ),
        (instance("a", "notify: {master: [on-master]}"), "`on-master` is not the absolute path of a program"),
        (
            instance("a", "track: {interfaces: [eth1, eth1]}"),
            "spec.track.interfaces[1]: `eth1` is tracked twice",
        ),
        (
            instance("a", "track: {interfaces: [{name: eth0, weight: -9}]}"),
            "spec.track.interfaces[0]: `eth0` is the instance's own interface",
        ),
        (instance("a", "track: {interfaces: [{name: eth1, weight: 0}]}"), "0 would change nothing"),
        (instance("a", "track: {interfaces: [{name: eth1, weight: 254}]}"), "weight: 254 is above 253"),
        (instance("a", "track: {processes: [{name: a-very-long-process}]}"), "has not 1 to 15 bytes"),
        (
            instance("a", "track: {script: []}"),
            "spec.track.script: unknown field\nhelp: did you mean `scripts`?",
        ),
        (instance("a", "track: {services: [{service: web}]}"), "there is no VirtualService `web`"),
        (instance("a", "routes: [{to: 10.0.0.1/8}]"), "10.0.0.1/8 is not the beginning of a prefix"),
        (
            instance("a", "routes: [{to: 0.0.0.0/0, via: \"fe80::1\"}]"),
            "spec.routes[0].via: is not of the family",
        ),
        (instance("a", "rules: [{table: 100}]"), "spec.rules[0]: has neither `from` nor `to`"),
        // Between objects.
        (
            instance("a", "vmac: {interface: v}")
                + &instance("b", "virtualRouterId: 52, addresses: [203.0.113.11/24], vmac: {interface: v}"),
            "spec.vmac: `v` is already the VMAC of VrrpInstance `a`",
        ),
        (
            object("LocalAddressPool", "p", "addresses: [10.0.0.1], vrrp: egde") + &instance("edge", ""),
            "spec.vrrp: there is no VrrpInstance `egde`\nhelp: did you mean `edge`?",
        ),
        (
            object("LocalAddressPool", "p", "addresses: [203.0.113.10]") + &instance("edge", ""),
            "spec.addresses[0]: 203.0.113.10 is an address of VrrpInstance `edge`",
        ),
        (
            object(
                "VirtualService",
                "w",
                "address: 203.0.113.10, ports: 80, protocol: tcp, forwarding: dr, scheduler: rr, addressInterface: eth0",
            ) + &instance("edge", ""),
            "spec.addressInterface: 203.0.113.10 follows VrrpInstance `edge`, which puts it there",
        ),
        (group("g", "members: [a]") + &instance("a", ""), "spec.members: a group has at least two members"),
        (group("g", "members: [a, b]") + &instance("a", ""), "spec.members[1]: there is no VrrpInstance `b`"),
        (group("g", "members: [a, a]") + &instance("a", ""), "spec.members[1]: `a` is listed twice"),
        (
            group("g", "members: [a, b]")
                + &group("h", "members: [b, a]")
                + &instance("a", "")
                + &instance("b", "virtualRouterId: 52, addresses: [203.0.113.11/24]"),
            "spec.members[0]: `b` is already in VrrpSyncGroup `g`",
        ),
    ] {
        let report = report(&text);
        let squeezed = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
        if !squeezed(&report).contains(&squeezed(expected)) {
            wrong.push(format!("wanted:\n{expected}\ngot:\n{report}\nin:\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn one_identifier_may_be_used_on_another_interface_and_in_the_other_family() {
    let text = instance("a", "")
        + &instance("b", "interface: eth1, addresses: [203.0.113.11/24]")
        + &instance("c", "addresses: [\"2001:db8::1/64\"]")
        + &group("g", "members: [a, c], sharedWeights: true");
    load_text("m.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn a_service_follows_the_instance_that_has_its_address() {
    let objects = load_text("m.yaml", &instance("edge", "excludedAddresses: [198.51.100.1]")).unwrap();
    let of = |text: &str| objects.vrrp_instance_of(text.parse().unwrap()).map(|i| i.name.as_str().to_owned());
    assert_eq!(of("203.0.113.10").as_deref(), Some("edge"));
    assert_eq!(of("198.51.100.1").as_deref(), Some("edge"));
    assert_eq!(of("203.0.113.11"), None);
}

#[test]
fn the_host_has_the_interface_and_a_network_for_every_advertised_address() {
    let host = |networks: &[&str]| HostFacts {
        interfaces: vec![HostInterface {
            name: "eth0".into(),
            addresses: Vec::new(),
            networks: networks.iter().map(|net| net.parse::<IpNet>().unwrap()).collect(),
            vlan_of: None,
        }],
    };
    for (fields, networks, expected) in [
        ("", &["203.0.113.1/24"][..], ""),
        ("", &[], ""),
        ("", &["2001:db8::1/64"], ""),
        ("addresses: [203.0.113.10/32]", &["203.0.113.1/24"], ""),
        (
            "",
            &["10.0.0.1/24", "10.0.1.1/24"],
            "m.yaml:5:58: spec.addresses[0]: 203.0.113.10 lies in no network of interface `eth0`\n  \
             help: `eth0` has 10.0.0.0/24, 10.0.1.0/24; an address that need not be on the segment goes into \
             excludedAddresses",
        ),
        ("excludedAddresses: [198.51.100.7]", &["203.0.113.1/24"], ""),
        ("addresses: [\"fe80::10/64\", \"2001:db8::10/64\"]", &["2001:db8::1/64"], ""),
        ("interface: eth9", &["203.0.113.1/24"], "interface `eth9` does not exist"),
        ("track: {interfaces: [eth1]}", &["203.0.113.1/24"], "spec.track.interfaces[0]: interface `eth1`"),
        ("vmac: true, track: {interfaces: [vrrp51]}", &["203.0.113.1/24"], ""),
        ("sourceAddress: 203.0.113.2", &["203.0.113.1/24"], "203.0.113.2 is no address of interface `eth0`"),
        ("sourceAddress: 203.0.113.1", &["203.0.113.1/24"], ""),
        (
            "unicastPeers: [203.0.113.2, 203.0.113.1]",
            &["203.0.113.1/24"],
            "spec.unicastPeers[1]: 203.0.113.1 is an address of this host, on interface `eth0`",
        ),
    ] {
        let objects = load_text("m.yaml", &instance("a", fields)).unwrap();
        let report = check_against_host(&objects, &host(networks)).to_string();
        if expected.is_empty() {
            assert_eq!(report, "", "{fields} on {networks:?}");
        } else {
            assert!(report.contains(expected), "wanted {expected}\ngot {report}");
        }
    }
}

fn names() -> impl Strategy<Value = Name> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_map(|text| Name::new(&text).unwrap())
}

fn effects() -> impl Strategy<Value = TrackEffect> {
    prop_oneof![
        Just(TrackEffect::Fault),
        (1i16..=253, any::<bool>()).prop_map(|(w, down)| TrackEffect::Weight(if down { -w } else { w })),
    ]
}

fn commands() -> impl Strategy<Value = Vec<String>> {
    ("/[a-z/]{1,10}", prop::collection::vec("[ -~]{0,8}", 0..3))
        .prop_map(|(program, rest)| [program].into_iter().chain(rest).collect())
}

prop_compose! {
    fn tracks()(
        interfaces in prop::collection::btree_map("[a-z][a-z]{0,9}", effects(), 0..3),
        scripts in prop::collection::btree_map(names(), (commands(), effects(), 1u32..9, 1u32..9), 0..3),
        processes in prop::collection::btree_map("[a-z]{1,15}", (effects(), 1u32..9, 0u64..60), 0..3),
        files in prop::collection::btree_map("/[a-z]{1,12}", prop::option::of(1i16..253), 0..3),
        data_plane in prop::option::of(effects()),
    ) -> Track {
        let ms = Duration::from_millis;
        Track {
            interfaces: interfaces.into_iter().map(|(name, effect)| TrackInterface { name, effect }).collect(),
            scripts: scripts.into_iter().map(|(name, (command, effect, rise, fall))| TrackScript {
                name, command, interval: ms(1500), timeout: ms(700), rise, fall, user: None, effect,
            }).collect(),
            processes: processes.into_iter().map(|(name, (effect, quorum, delay))| TrackProcess {
                name, quorum, delay: Duration::from_secs(delay), effect,
            }).collect(),
            files: files.into_iter().map(|(path, weight)| TrackFile {
                path: PathBuf::from(path),
                effect: weight.map_or(TrackFileEffect::Fault, TrackFileEffect::Weight),
            }).collect(),
            services: Vec::new(),
            data_plane,
        }
    }
}

prop_compose! {
    fn instances()(
        name in names(),
        (ipv4, v2) in (any::<bool>(), any::<bool>()).prop_map(|(ipv4, v2)| (ipv4, ipv4 && v2)),
        vrid in 1u8..=255,
        priority in 1u8..=254,
        step in 1u32..=4095,
        count in 1usize..5,
        preempt in prop_oneof![Just(Preempt::Never), (0u64..1000).prop_map(|s| Preempt::After(Duration::from_secs(s)))],
        peers in prop::option::of((1usize..4, 1u8..=255)),
        hmac in prop::option::of((prop::collection::vec(any::<u8>(), 32..=64), any::<u8>(), prop::option::of(1u64..=300))),
        (message_only, strict, release, refresh) in any::<(bool, bool, bool, bool)>(),
        vmac in prop_oneof![
            Just(Vmac::Off),
            prop::option::of("[a-z]{1,9}").prop_map(|interface| Vmac::On { interface }),
        ],
        track in tracks(),
        notify in (prop::option::of(commands()), prop::option::of(commands())),
    ) -> VrrpInstance {
        let address = |n: usize| if ipv4 { IpAddr::from([10, 0, 0, n as u8]) } else { format!("2001:db8::{n:x}").parse().unwrap() };
        let virtual_address = |n: usize| VirtualAddress {
            address: IpNet::new(address(n), if ipv4 { 24 } else { 64 }).unwrap(),
            interface: n.is_multiple_of(2).then(|| "eth7".to_owned()),
        };
        let interval = if v2 { Duration::from_secs((step % 255 + 1).into()) } else { Duration::from_millis(u64::from(step) * 10) };
        let two_forms = ipv4 && !v2;
        VrrpInstance {
            name,
            interface: "eth0".into(),
            vrid: Vrid::new(vrid).unwrap(),
            priority,
            interval,
            version: if v2 { VrrpVersion::V2 } else { VrrpVersion::V3 },
            addresses: (1..=count).map(virtual_address).collect(),
            excluded_addresses: (11..11 + count / 2).map(virtual_address).collect(),
            preempt,
            accept: !strict,
            unicast: peers.map(|(count, min_ttl)| Unicast { peers: (100..100 + count).map(address).collect(), min_ttl }),
            source_address: release.then(|| address(99)),
            authentication: match hmac {
                Some((key, id, window)) => Authentication::Hmac(HmacAuthentication {
                    keys: vec![HmacKey { id, source: KeySource::Inline(key) }],
                    active_key: id,
                    mode: HmacMode::Permissive,
                    window: window.map(Duration::from_secs),
                }),
                None if v2 => Authentication::Pass { password: "secret12".into() },
                None => Authentication::None,
            },
            checksum: if two_forms && message_only { VrrpChecksum::MessageOnly } else { VrrpChecksum::PseudoHeader },
            checksum_strict: two_forms && strict,
            gratuitous: Gratuitous { refresh: refresh.then_some(Duration::from_secs(90)), ..Gratuitous::default() },
            vmac,
            track,
            notify: Notify { master: notify.0, command: notify.1, ..Notify::default() },
            routes: vec![VirtualRoute {
                destination: "10.9.0.0/16".parse().unwrap(), via: None, interface: Some("eth1".into()),
                source: None, table: Some(7), metric: strict.then_some(9),
            }],
            rules: vec![VirtualRule { from: Some("10.9.0.1/32".parse().unwrap()), to: None, priority: None, table: 7 }],
            shutdown: if release { VrrpShutdown::Release } else { VrrpShutdown::Keep },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_instance_written_out_reads_back_the_same(instance in instances()) {
        let object = Object::VrrpInstance(Box::new(instance));
        for text in [to_yaml(&object), to_manifest(&object).to_string()] {
            let parsed = parse(&[Source { file: "m.yaml".into(), text: text.clone() }]);
            prop_assert!(parsed.report.0.is_empty(), "{}\n{text}", parsed.report);
            let back: Vec<Object> =
                parsed.objects.into_iter().map(|(_, entry)| Object::clone(&entry.object)).collect();
            prop_assert_eq!(&back, std::slice::from_ref(&object), "{}", text);
        }
    }
}

#[test]
fn a_group_written_out_reads_back_the_same() {
    let text = "members: [a, b], sharedWeights: true, track: {interfaces: [eth1], dataPlane: {weight: -9}}, \
                notify: {fault: [/bin/f]}";
    let parsed = parse(&[Source { file: "m.yaml".into(), text: group("g", text) }]);
    let objects: Vec<Arc<Object>> = parsed.objects.into_iter().map(|(_, entry)| entry.object).collect();
    let again = parse(&[Source { file: "m.yaml".into(), text: to_yaml(&objects[0]) }]);
    assert_eq!(again.objects.into_iter().map(|(_, entry)| entry.object).collect::<Vec<_>>(), objects);
}
