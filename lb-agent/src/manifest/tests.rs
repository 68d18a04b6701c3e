//! Whole manifests: what is refused, where and why; what comes back; the examples.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::written::{completed, object, report};
use super::*;
use crate::model::*;

const WEB: &str = "\
apiVersion: lb/v1
kind: VirtualService
metadata: {name: web}
spec:
  address: 203.0.113.10
  ports: [80, 443]
  protocol: tcp
  forwarding: dr
  scheduler: wrr
  realServers:
    - {address: 10.0.0.11, weight: 100}
    - address: 10.0.0.12
      weight: 50
";

/// WEB with a line replaced.
fn web(from: &str, to: &str) -> String {
    assert!(WEB.contains(from), "{from}");
    WEB.replace(from, to)
}

/// A service of this name and these fields, realServers last, beside address 203.0.113.10, tcp, dr and rr.
fn service(name: &str, fields: &str) -> String {
    let others = [
        ("address", "203.0.113.10"),
        ("ports", "80"),
        ("protocol", "tcp"),
        ("forwarding", "dr"),
        ("scheduler", "rr"),
    ];
    object("VirtualService", name, &completed(fields, "realServers", &others))
}

fn pool(name: &str, fields: &str) -> String {
    object("LocalAddressPool", name, fields)
}

fn director(name: &str, fields: &str) -> String {
    object("Director", name, fields)
}

fn only_service(text: &str) -> VirtualService {
    let objects = load_text("m.yaml", text).unwrap_or_else(|report| panic!("{report}"));
    objects.services().next().expect("one service").0.clone()
}

#[test]
fn a_manifest_becomes_a_checked_service() {
    let service = only_service(WEB);
    assert_eq!(service.address, IpAddr::from([203, 0, 113, 10]));
    assert_eq!(service.ports.to_string(), "80,443");
    assert_eq!(service.scheduler, Scheduler::Wrr);
    assert_eq!(service.on_unknown_flow, OnUnknownFlow::Reset);
    assert_eq!(service.mss_clamp, MssClamp::Off);
    let servers: Vec<_> = service.real_servers.iter().map(|s| (s.address.to_string(), s.weight)).collect();
    assert_eq!(servers, [("10.0.0.11".to_owned(), 100), ("10.0.0.12".to_owned(), 50)]);
}

#[test]
fn defaults_depend_on_scheduler_and_method() {
    assert_eq!(only_service(&service("a", "scheduler: mh")).on_unknown_flow, OnUnknownFlow::Adopt);
    assert_eq!(only_service(&service("a", "forwarding: tun")).mss_clamp, MssClamp::Auto);
    assert_eq!(only_service(&service("a", "forwarding: tun, protocol: udp")).mss_clamp, MssClamp::Off);
    let overridden = "realServers: [{address: 10.0.0.1, forwarding: tun}]";
    assert_eq!(only_service(&service("a", overridden)).mss_clamp, MssClamp::Auto);
    assert_eq!(only_service(&service("a", "mssClamp: 1400")).mss_clamp, MssClamp::To(1400));
    assert!(only_service(&service("a", "realServers: null")).real_servers.is_empty());
    assert_eq!(only_service(&service("a", "ports: any")).ports, Ports::Any);
    assert_eq!(
        only_service(&service("a", "ports: [443, 8000-8099, 80]")).ports.to_string(),
        "80,443,8000-8099"
    );
}

#[test]
fn a_mistake_is_reported_with_file_line_column_field_and_reason() {
    let mut wrong = Vec::new();
    for (text, expected) in [
        (
            web("weight: 50", "weight: 70000"),
            "m.yaml:13:15: spec.realServers[1].weight: 70000 is above 65535",
        ),
        (web("weight: 50", "weight: -1"), "m.yaml:13:15: spec.realServers[1].weight: -1 is below 0"),
        (
            web("weight: 50", "wieght: 50"),
            "m.yaml:13:7: spec.realServers[1].wieght: unknown field\n  help: did you mean `weight`?",
        ),
        (
            web("  scheduler: wrr\n", "  scheduler: wcl\n  healthPolicy: {tcp: {}}\n"),
            "m.yaml:9:14: spec.scheduler: `wcl` is not one of rr, wrr, lc, wlc, sed, nq, fo, ovf, twos, sh, dh, mh, lblc, lblcr\n  \
             help: did you mean `wlc`?\n\
             m.yaml:10:3: spec.healthPolicy: unknown field",
        ),
        (
            web("kind: VirtualService", "kind: VirtualServce"),
            "m.yaml:2:7: kind: unknown kind `VirtualServce`",
        ),
        (web("kind: VirtualService", "kind: VrrpRouter"), "m.yaml:2:7: kind: unknown kind `VrrpRouter`"),
        (web("lb/v1", "lb/v2"), "m.yaml:1:13: apiVersion: `lb/v2` is not one of lb/v1"),
        (web("{name: web}", "{name: Web}"), "m.yaml:3:18: metadata.name: `Web` is not a name"),
        (web("  protocol: tcp\n", ""), "m.yaml:4:1: spec.protocol: is required"),
        (
            web("203.0.113.10", "203.0.113.300"),
            "m.yaml:5:12: spec.address: `203.0.113.300` is not an IP address",
        ),
        (web("203.0.113.10", "224.0.0.18"), "m.yaml:5:12: spec.address: 224.0.0.18 is a multicast address"),
        (web("203.0.113.10", "127.0.0.1"), "m.yaml:5:12: spec.address: 127.0.0.1 is a loopback address"),
        (web("[80, 443]", "[80, 0]"), "m.yaml:6:15: spec.ports[1]: 0 is below 1"),
        (web("[80, 443]", "[80, 80]"), "m.yaml:6:15: spec.ports[1]: 80 is listed twice"),
        (web("[80, 443]", "[80, 70-90]"), "m.yaml:6:15: spec.ports[1]: 70-90 overlaps 80"),
        (web("[80, 443]", "[90-80]"), "m.yaml:6:11: spec.ports[0]: 90-80 ends before it begins"),
        (web("[80, 443]", "[]"), "m.yaml:6:10: spec.ports: has no port"),
        (
            web("[80, 443]", "[\"80\"]"),
            "m.yaml:6:11: spec.ports[0]: `80` is not a port or a range like 8000-8099",
        ),
        (
            web("scheduler: wrr", "scheduler: wrr\n  hash: address"),
            "m.yaml:10:3: spec.hash: only sh and mh hash",
        ),
        (
            web("10.0.0.12\n", "10.0.0.12\n      port: 8080\n"),
            "m.yaml:13:7: spec.realServers[1].port: dr cannot change the port",
        ),
        (
            web("forwarding: dr", "forwarding: nat").replace("10.0.0.12\n", "10.0.0.12\n      port: 8080\n"),
            "m.yaml:13:7: spec.realServers[1].port: the service does not have exactly one port",
        ),
        (
            web("10.0.0.12", "10.0.0.11"),
            "m.yaml:12:7: spec.realServers[1]: real server 10.0.0.11 is listed twice, first as spec.realServers[0]",
        ),
        (
            web("10.0.0.12", "2001:db8::12"),
            "m.yaml:12:16: spec.realServers[1].address: 2001:db8::12 is an IPv6 address behind an IPv4 one",
        ),
        (
            web("10.0.0.12", "203.0.113.10"),
            "m.yaml:12:16: spec.realServers[1].address: 203.0.113.10 is the address of the service itself",
        ),
        (
            web("forwarding: dr", "forwarding: fullnat"),
            "m.yaml:4:1: spec.localAddresses: is required by fullnat",
        ),
        (
            web("forwarding: dr", "forwarding: dr\n  localAddresses: p"),
            "m.yaml:9:3: spec.localAddresses: only fullnat uses local addresses",
        ),
        (
            web("scheduler: wrr", "scheduler: wrr\n  timeouts: {established: 3h}"),
            "m.yaml:10:27: spec.timeouts.established: 3h is above 2h",
        ),
        (
            web("scheduler: wrr", "scheduler: wrr\n  timeouts: {udp: 5m}"),
            "m.yaml:10:14: spec.timeouts.udp: is of udp, the service is tcp",
        ),
        (
            web("protocol: tcp", "protocol: sctp\n  timeouts: {finWait: 5m}"),
            "spec.timeouts.finWait: is of tcp, the service is sctp",
        ),
        (
            web("protocol: tcp", "protocol: udp\n  timeouts: {established: 5m}"),
            "spec.timeouts.established: is of tcp and sctp, the service is udp",
        ),
        (web("protocol: tcp", "protocol: sctp\n  mssClamp: true"), "spec.mssClamp: only tcp has segments"),
        (web("protocol: tcp", "protocol: dccp"), "spec.protocol: "),
        (
            web("scheduler: wrr", "scheduler: wrr\n  mssClamp: 100"),
            "m.yaml:10:13: spec.mssClamp: 100 is below 536",
        ),
        (
            web("scheduler: wrr", "scheduler: wrr\n  scheduler: rr"),
            "m.yaml:10:3: spec.scheduler: is given twice",
        ),
        (web("ports: [80, 443]", "ports: [80, 443"), "m.yaml:7:"),
        (web("ports: [80, 443]", "\tports: [80, 443]"), "m.yaml:6:"),
        ("- just\n- a list\n".into(), "m.yaml:1:1: a list is not an object with apiVersion"),
        (
            service("a", "forwarding: fullnat, localAddresses: pool-x")
                + &pool("pool-y", "addresses: [10.0.0.1]"),
            "m.yaml:5:45: spec.localAddresses: there is no LocalAddressPool `pool-x`\n  help: did you mean `pool-y`?",
        ),
        (
            service("a", "forwarding: fullnat, localAddresses: p") + &pool("p", "addresses: [2001:db8::1]"),
            "m.yaml:5:45: spec.localAddresses: LocalAddressPool `p` has no IPv4 address",
        ),
        (
            service("a", "") + &service("a", "ports: 81"),
            "m.yaml:9:18: metadata.name: VirtualService `a` is defined twice",
        ),
        (service("a", "") + &service("a", "ports: 81"), "help: it is already defined in m.yaml:2"),
        (
            service("a", "ports: [80, 81]") + &service("b", "ports: [81, 82]"),
            "spec.ports: port 81 of 203.0.113.10 already belongs to VirtualService `a`\n  help: it is defined in m.yaml:2",
        ),
        (
            service("b", "ports: 8000-8099") + &service("a", "ports: 8099-9000"),
            "m.yaml:10:15: spec.ports: 8099-9000 of 203.0.113.10 overlaps 8000-8099 of VirtualService `b`",
        ),
        (
            service("a", "ports: any") + &service("b", "ports: any"),
            "spec.ports: `any` of 203.0.113.10 already belongs to VirtualService `a`",
        ),
        (
            service("a", "addressInterface: eth0") + &service("b", "addressInterface: eth1, ports: 81"),
            "spec.addressInterface: 203.0.113.10 is put on `eth0` by VirtualService `a`",
        ),
        (
            pool("p", "addresses: [10.0.0.201/30]"),
            "m.yaml:5:20: spec.addresses[0]: 10.0.0.201/30 is not the beginning of a prefix",
        ),
        (
            pool("p", "addresses: [10.0.0.0/24]"),
            "spec.addresses[0]: 10.0.0.0/24 has 256 addresses, above 255",
        ),
        (pool("p", "addresses: [\"::/0\"]"), "addresses, above 255"),
        (pool("p", "addresses: [10.0.0.0/30, 10.0.0.2]"), "spec.addresses[1]: 10.0.0.2 overlaps 10.0.0.0/30"),
        (pool("p", "addresses: [10.0.0.0/25, 10.0.0.128/25]"), "spec.addresses: 256 addresses are above 255"),
        (
            pool("p", "addresses: [10.0.0.0/25]") + &pool("q", "addresses: [10.0.0.128/25]"),
            "m.yaml:10:19: spec.addresses: all pools together have 256 addresses, above 255",
        ),
        (pool("p", "addresses: [10.0.0.1], share: {index: 3, of: 2}"), "spec.share.index: 3 is above 2"),
        (
            pool("p", "addresses: [10.0.0.1]") + &pool("q", "addresses: [10.0.0.0/31]"),
            "spec.addresses[0]: 10.0.0.1 of 10.0.0.0/31 is in LocalAddressPool `p` (m.yaml:2)",
        ),
        (
            service("a", "") + &pool("p", "addresses: [203.0.113.8/30]"),
            "spec.addresses[0]: 203.0.113.10 of 203.0.113.8/30 is the address of VirtualService `a` (m.yaml:2)",
        ),
        (
            service("a", "realServers: [{address: 10.0.0.1}]") + &pool("p", "addresses: [10.0.0.1]"),
            "spec.addresses[0]: 10.0.0.1 is a real server of VirtualService `a` (m.yaml:2)",
        ),
        (
            director("d", "interfaces: [{name: eth0, xdp: fast}]"),
            "m.yaml:5:39: spec.interfaces[0].xdp: `fast` is not one of auto, native, generic",
        ),
        (
            director("d", "interfaces: [{name: eth0}, {name: eth0}]"),
            "spec.interfaces[1].name: `eth0` is listed twice",
        ),
        (
            director("d", "interfaces: [{name: eth0}], connections: {max: 15}"),
            "spec.connections.max: 15 is below 16",
        ),
        (
            director("d", "interfaces: [{name: eth0}], connections: {max: 67108865}"),
            "spec.connections.max: 67108865 is above 67108864",
        ),
        (
            director("d", "interfaces: [{name: eth0}], metrics: {listen: 9105}"),
            "spec.metrics.listen: 9105 is not an address and a port like 127.0.0.1:9105 or [::1]:9105",
        ),
        (
            director("d", "interfaces: [{name: eth0}], metrics: {listen: \"127.0.0.1:0\"}"),
            "spec.metrics.listen: port 0 is no port that could be asked\n  help: 9105 would be one",
        ),
        (director("d", "interfaces: [{name: eth0}], metrics: {}"), "spec.metrics.listen: is required"),
        (
            director("d", "interfaces: [{name: eth0}]") + &director("e", "interfaces: [{name: eth0}]"),
            "m.yaml:9:18: metadata.name: a second Director\n  help: the first is `d` in m.yaml:2",
        ),
        (
            director("d", "interfaces: [{name: eth0}], capacity: {services: 1}")
                + &service("a", "")
                + &service("b", "ports: 81"),
            "spec.capacity.services: 1 virtual services, but the manifests have 2",
        ),
        (
            director("d", "interfaces: [{name: eth0}], capacity: {realServers: 1}")
                + &service("a", "realServers: [{address: 10.0.0.1}, {address: 10.0.0.2}]"),
            "spec.capacity.realServers: 1 real servers, but the manifests have 2",
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
fn every_mistake_of_every_file_is_reported_in_order() {
    let sources = [
        ("b.yaml", web("weight: 50", "weight: 70000").replace("tcp", "icmp")),
        ("a.yaml", "kind: x\n".into()),
    ]
    .map(|(file, text)| Source { file: file.into(), text });
    let report = load(&sources).unwrap_err();
    let places: Vec<String> = report.0.iter().map(|d| format!("{}:{} {}", d.file, d.line, d.path)).collect();
    assert_eq!(
        places,
        [
            "a.yaml:1 apiVersion",
            "a.yaml:1 metadata",
            "a.yaml:1 spec",
            "a.yaml:1 kind",
            "b.yaml:7 spec.protocol",
            "b.yaml:13 spec.realServers[1].weight"
        ]
        .map(|place| place.to_owned())
    );
}

/// By several threads, where there are cores for them.
#[test]
fn large_files_are_read_as_if_one_after_the_other() {
    let remarks = "# a remark\n".repeat(WORTH_A_THREAD / 20);
    let texts = [
        service("a", ""),
        service("b", "ports: 81"),
        service("a", "ports: 82"),
        service("c", "schedluer: rr") + &service("d", "ports: 83"),
    ];
    let source = |(number, text)| Source { file: format!("{number}.yaml"), text: format!("{remarks}{text}") };
    let sources: Vec<Source> = (0..).zip(&texts).map(source).collect();
    let parsed = parse(&sources);
    let names: Vec<String> = parsed.objects.services().map(|(service, _)| service.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "d"]);
    let (first, _) = parsed.objects.services().next().expect("a service");
    assert_eq!(first.ports, Ports::List(vec![PortRange { first: 80, last: 80 }]), "the first one stays");
    let told: Vec<(&str, &str)> = parsed.report.0.iter().map(|one| (&*one.file, &*one.message)).collect();
    assert_eq!(
        told,
        [("2.yaml", "VirtualService `a` is defined twice"), ("3.yaml", "unknown field")],
        "{}",
        parsed.report
    );
}

#[test]
fn what_refers_to_a_broken_object_is_not_called_wrong_too() {
    let text = service("a", "forwarding: fullnat, localAddresses: p") + &pool("p", "addresses: [10.0.0.300]");
    assert_eq!(
        report(&text),
        "m.yaml:10:20: spec.addresses[0]: `10.0.0.300` is not an address or a prefix like 10.0.0.200/30"
    );
}

#[test]
fn the_narrower_port_may_lie_in_the_wider() {
    let text =
        service("a", "ports: any") + &service("b", "ports: 8000-8099") + &service("c", "ports: [8080]");
    assert_eq!(report(&text), "");
    let other_protocol =
        service("a", "") + &service("b", "protocol: udp") + &service("c", "address: 203.0.113.11");
    assert_eq!(report(&other_protocol), "");
}

#[test]
fn one_address_and_protocol_has_at_most_16_ranges() {
    let ranges = |from: u32, count: u32| -> String {
        let range = |i: u32| format!("{}-{}", i * 10, i * 10 + 5);
        format!("ports: [{}]", (from..from + count).map(range).collect::<Vec<_>>().join(", "))
    };
    assert_eq!(report(&(service("a", &ranges(1, 8)) + &service("b", &ranges(10, 8)))), "");
    let many = report(&(service("a", &ranges(1, 8)) + &service("b", &ranges(10, 9))));
    assert!(many.contains("203.0.113.10 has more than 16 port ranges"), "{many}");
    assert!(report(&service("a", &ranges(1, 17))).contains("has more than 16 port ranges"));
}

#[test]
fn tun_may_cross_families_and_an_override_counts_per_server() {
    let crossing = "forwarding: tun, realServers: [{address: \"2001:db8::1\"}, {address: 10.0.0.1}]";
    assert_eq!(report(&service("a", crossing)), "");
    let overridden = "forwarding: nat, realServers: [{address: \"2001:db8::1\", forwarding: tun}, {address: 10.0.0.1, port: 81}]";
    assert_eq!(report(&service("a", overridden)), "");
    let not_enough = "forwarding: tun, realServers: [{address: \"2001:db8::1\", forwarding: dr}]";
    assert!(report(&service("a", not_enough)).contains("dr keeps the family"));
    let pool_missing = "forwarding: dr, realServers: [{address: 10.0.0.1, forwarding: fullnat}]";
    assert!(report(&service("a", pool_missing)).contains("spec.localAddresses: is required by fullnat"));
}

#[test]
fn the_host_is_asked_for_interfaces_and_their_addresses() {
    let text = director("d", "interfaces: [{name: eth0}, {name: eht1}]")
        + &service("a", "addressInterface: br0")
        + &pool("p", "addresses: [10.0.0.1, 10.0.0.200/30], addressInterface: eth9");
    let objects = load_text("m.yaml", &text).unwrap();
    let host = |addresses: &[&str]| HostFacts {
        interfaces: vec![
            HostInterface { name: "lo".into(), addresses: vec![], networks: vec![], vlan_of: None },
            HostInterface {
                name: "eth0".into(),
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                networks: Vec::new(),
                vlan_of: None,
            },
        ],
    };
    let report = check_against_host(&objects, &host(&["10.0.0.201", "192.0.2.1"])).to_string();
    assert_eq!(
        report,
        "m.yaml:5:42: spec.interfaces[1].name: interface `eht1` does not exist\n  help: this host has lo, eth0\n\
         m.yaml:10:26: spec.addressInterface: interface `br0` does not exist\n  help: this host has lo, eth0\n\
         m.yaml:15:30: spec.addresses[1]: 10.0.0.201 is an address of interface `eth0` itself\n  \
         help: a pool's address is used for nothing else; take one that nobody has\n\
         m.yaml:15:64: spec.addressInterface: interface `eth9` does not exist\n  help: this host has lo, eth0"
    );
    let fine = load_text("m.yaml", &director("d", "interfaces: [{name: eth0}]")).unwrap();
    assert_eq!(check_against_host(&fine, &host(&[])), Report::default());
}

#[test]
fn anchors_work_and_merge_keys_do_not() {
    let anchored = WEB
        .replace("{address: 10.0.0.11, weight: 100}", "{address: 10.0.0.11, weight: &w 7}")
        .replace("weight: 50", "weight: *w");
    assert_eq!(only_service(&anchored).real_servers[1].weight, 7);
    let merged = WEB.replace("      weight: 50", "      <<: {weight: 50}");
    assert!(report(&merged).contains("spec.realServers[1].<<: unknown field"));
}

#[test]
fn hostile_texts_end_in_a_report() {
    let laughs = (1..40).fold(String::from("a0: &a0 [x, x]\n"), |text, i| {
        text + &format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1)
    });
    for (what, text) in [
        ("nested lists", "[".repeat(100_000)),
        ("nested maps", "{a: ".repeat(50_000)),
        ("nested blocks", (0..3000).map(|i| format!("{}a:\n", " ".repeat(i))).collect()),
        ("billion laughs", laughs),
        ("too large", "#".repeat(SIZE_MAX + 1)),
        ("a tag", "!evil {a: b}".into()),
        ("a thousand mistakes", (0..1000).map(|i| format!("field{i}: x\n")).collect()),
        ("NUL", "a: \0".into()),
        ("a map as a key", "{{a: b}: c}".into()),
    ] {
        assert!(load_text("m.yaml", &text).is_err(), "{what}");
    }
    assert!(load_text("m.yaml", "").unwrap().is_empty());
    assert!(load_text("m.yaml", "# nothing\n---\n---\n").unwrap().is_empty());
}

#[test]
fn lines_count_from_the_beginning_of_the_file_in_every_document() {
    let wrong = web("weight: 50", "weight: 70000");
    for (before, lines) in [
        ("", 0),
        ("# a comment\n\n", 2),
        ("---\n", 1),
        ("# a comment\n---\n---\n# another\n---\n", 5),
        ("\u{feff}---\n", 1),
        ("%YAML 1.2\n---\n", 2),
        (&format!("{}...\n---\n", service("first", "ports: 81")), 7),
        ("# ünï\n---\n", 2),
    ] {
        for line_end in ["\n", "\r\n"] {
            let text = format!("{before}{wrong}").replace('\n', line_end);
            let expected =
                format!("m.yaml:{}:15: spec.realServers[1].weight: 70000 is above 65535", 13 + lines);
            assert_eq!(report(&text), expected, "after {before:?} with {line_end:?}");
        }
    }
}

#[test]
fn json_is_a_manifest_too() {
    let service = only_service(WEB);
    let json = to_manifest(&Object::VirtualService(service.clone())).to_string();
    assert_eq!(only_service(&json), service);
}

#[test]
fn changed_fields_are_named() {
    let old = Object::VirtualService(only_service(WEB));
    let new =
        Object::VirtualService(only_service(&WEB.replace("wrr", "mh").replace("weight: 50", "weight: 51")));
    assert_eq!(
        changed_fields(&old, &new),
        ["spec.scheduler", "spec.hash", "spec.onUnknownFlow", "spec.realServers"]
    );
    assert!(changed_fields(&old, &old).is_empty());
    assert_eq!(
        changed_fields(&new, &old),
        ["spec.scheduler", "spec.onUnknownFlow", "spec.realServers", "spec.hash"]
    );
}

#[test]
fn each_example_loads_and_so_do_all_together() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let sources = read_path(&examples).unwrap();
    assert!(sources.len() >= 6, "{} examples", sources.len());
    for source in &sources {
        let objects = load(std::slice::from_ref(source)).unwrap_or_else(|report| panic!("{report}"));
        assert!(!objects.is_empty(), "{}", source.file);
    }
    load(&sources).unwrap_or_else(|report| panic!("{report}"));
}

/// A directory of examples has one file for each director of a pair.
#[test]
fn each_director_of_an_example_pair_loads() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let directories =
        examples.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let mut loaded = 0;
    for source in directories.flat_map(|directory| read_path(&directory).unwrap()) {
        let objects = load(std::slice::from_ref(&source)).unwrap_or_else(|report| panic!("{report}"));
        assert!(objects.director().is_some() && objects.vrrp_instances().next().is_some(), "{}", source.file);
        loaded += 1;
    }
    assert!(loaded >= 2 && loaded % 2 == 0, "{loaded} files");
}

/// Every field that can be written is in the reference, with the path under which diagnostics name it.
#[test]
fn the_reference_has_every_field() {
    let reference = include_str!("../../../docs/manifest.md");
    let mut fields: Vec<String> = Vec::new();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    for (_, entry) in load(&read_path(&examples).unwrap()).unwrap() {
        leaves(&encode(&entry.object), String::new(), &mut fields);
    }
    fields.extend(["spec.realServers[].forwarding".to_owned()]);
    for field in fields {
        // A check is written in three places, and explained once.
        let check = ["spec.healthChecks.checks[]", "spec.realServers[].healthCheck", "spec.healthCheck"];
        let check = check.iter().find_map(|place| field.strip_prefix(&format!("{place}.")));
        let field = check.map_or(field.clone(), |rest| format!("healthCheck.{rest}"));
        assert!(reference.contains(&format!("`{field}`")), "docs/manifest.md does not list {field}");
    }
}

fn leaves(raw: &Raw, path: String, found: &mut Vec<String>) {
    match raw {
        Raw::Map(entries) => {
            for (key, value) in entries {
                leaves(value, if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, found);
            }
        }
        Raw::List(items) if matches!(items.first(), Some(Raw::Map(_))) => {
            for item in items {
                leaves(item, format!("{path}[]"), found);
            }
        }
        _ => found.push(path),
    }
}

#[test]
fn ten_thousand_services_load_without_going_over_each_other() {
    let text: String = (0..10_000)
        .map(|i: u32| {
            let address = Ipv4Addr::from(0xcb00_7100 + i);
            let servers: Vec<String> =
                (0..5).map(|j| format!("{{address: 10.1.{}.{}}}", i % 200, j + 1)).collect();
            service(&format!("s{i}"), &format!("address: {address}, realServers: [{}]", servers.join(", ")))
        })
        .collect();
    let began = std::time::Instant::now();
    assert_eq!(load_text("m.yaml", &text).unwrap().len(), 10_000);
    // Each beside each other would be minutes.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

// Objects as `manifest` would have made them.

fn names() -> impl Strategy<Value = Name> {
    "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?".prop_map(|text| Name::new(&text).unwrap())
}

fn interface_names() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9.@_-]{1,15}".prop_filter("not a directory", |name| valid_interface_name(name))
}

fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (1u64..=7200).prop_map(Duration::from_secs),
        (1000u64..=7_200_000).prop_map(Duration::from_millis)
    ]
}

fn ports_() -> impl Strategy<Value = Ports> {
    let bounds = subsequence((1..=65_535u16).step_by(97).collect::<Vec<_>>(), 2..24);
    let list = bounds.prop_map(|bounds| {
        let range = |pair: &[u16]| PortRange { first: pair[0], last: *pair.last().unwrap() };
        Ports::List(bounds.chunks(2).map(range).collect())
    });
    prop_oneof![
        Just(Ports::Any),
        (1..=u16::MAX).prop_map(|p| Ports::List(vec![PortRange { first: p, last: p }])),
        list
    ]
}

prop_compose! {
    fn timeouts_()(
        t in prop::collection::vec(durations(), 7), protocol in select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
    ) -> (Protocol, Timeouts) {
        let unconfirmed = t[6];
        let default = Timeouts { unconfirmed, ..Timeouts::default() };
        let [established, a, b, c, d] = [t[0], t[1], t[2], t[3], t[4]];
        let timeouts = match protocol {
            Protocol::Tcp => {
                Timeouts { established, syn_received: a, fin_wait: b, time_wait: c, close: d, ..default }
            }
            Protocol::Udp => Timeouts { udp: t[5], ..default },
            Protocol::Sctp => {
                Timeouts { established, init1: a, cookie: b, shutdown: c, closed: d, rejected: t[5], ..default }
            }
        };
        (protocol, timeouts)
    }
}

prop_compose! {
    fn packets_()(
        echo in select(vec![Echo::Answer, Echo::Pass, Echo::Drop]),
        fragment in any::<bool>(),
        (late, tiny, forward_overlapping) in any::<(bool, bool, bool)>(),
    ) -> PacketPolicy {
        let leave = |passes| if passes { LeaveTo::Pass } else { LeaveTo::Drop };
        PacketPolicy {
            echo,
            too_big_for_tunnel: if fragment { TooBigForTunnel::Fragment } else { TooBigForTunnel::Drop },
            fragments: Fragments { out_of_order: leave(late), tiny: leave(tiny), forward_overlapping },
        }
    }
}

prop_compose! {
    fn tunnels_()(kind in select(vec![TunnelType::Ipip, TunnelType::Gue, TunnelType::Gre]), port in 1..=u16::MAX, spread in any::<bool>())
        -> Encapsulation {
        let gue = kind == TunnelType::Gue;
        Encapsulation { kind, port: if gue { port } else { 0 }, spread: spread && !gue }
    }
}

prop_compose! {
    fn services_()(
        name in names(),
        v4 in any::<bool>(),
        ports in ports_(),
        (protocol, timeouts) in timeouts_(),
        forwarding in select(FORWARDING.map(|(_, method)| method).to_vec()),
        scheduler in select(SCHEDULERS.map(|(_, scheduler)| scheduler).to_vec()),
        by_port in any::<bool>(),
        pool in names(),
        on_unknown_flow in select(vec![OnUnknownFlow::Adopt, OnUnknownFlow::Reset, OnUnknownFlow::Pass, OnUnknownFlow::Drop]),
        clamp in prop_oneof![Just(MssClamp::Off), Just(MssClamp::Auto), MssClamp::RANGE.prop_map(MssClamp::To)],
        address_interface in prop::option::of(interface_names()),
        scheduling in super::scheduling::tests::schedulings(),
        servers in prop::collection::vec(
            (any::<u16>(), any::<bool>(), prop::option::of(1..=u16::MAX),
             prop::option::of(select(FORWARDING.map(|(_, method)| method).to_vec()))), 0..12),
        tunnel in tunnels_(),
        own_tunnel in prop::option::of(tunnels_()),
    ) -> VirtualService {
        let single = ports.single().is_some();
        let real_servers = servers.into_iter().enumerate().map(|(index, (weight, other_family, port, method))| {
            let effective = method.unwrap_or(forwarding);
            let server_v4 = v4 ^ (other_family && effective == Forwarding::Tun);
            let address = if server_v4 {
                IpAddr::V4(Ipv4Addr::new(10, 0, 0, index as u8 + 1))
            } else {
                IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, index as u16 + 1))
            };
            RealServer {
                address, port: port.filter(|_| single && effective.translates()), weight, forwarding: method,
                tunnel: own_tunnel.filter(|_| effective == Forwarding::Tun),
                limits: Default::default(), health: Default::default(),
            }
        }).collect();
        let mut service = VirtualService {
            name,
            address: if v4 { "203.0.113.10".parse().unwrap() } else { "2001:db8:1::10".parse().unwrap() },
            ports, protocol, forwarding, tunnel: Encapsulation::default(), scheduler,
            hash: if by_port && scheduler.hashes() { FlowHash::AddressPort } else { FlowHash::Address },
            local_addresses: None,
            on_unknown_flow,
            mss_clamp: if protocol == Protocol::Tcp { clamp } else { MssClamp::Off },
            timeouts: Box::new(timeouts), address_interface, real_servers, health: Default::default(),
            application: None,
            scheduling: Box::new(scheduling.of(scheduler, protocol, forwarding)), endpoints: Vec::new(),
        };
        if service.uses(Forwarding::FullNat) {
            service.local_addresses = Some(pool);
        }
        // Where it is allowed at all, as often as not.
        let translated = service.real_servers.iter().all(|s| service.forwarding_of(s).translates() && s.port.is_none());
        if single && protocol == Protocol::Tcp && forwarding.translates() && translated && by_port
            && !service.scheduling.proxy_protocol
        {
            service.application = Some(Application::Ftp);
        }
        if service.uses(Forwarding::Tun) {
            service.tunnel = tunnel;
        }
        service
    }
}

prop_compose! {
    fn pools_()(
        name in names(),
        nets in subsequence(vec!["10.9.0.0/28", "10.9.1.1", "10.9.2.4/30", "2001:db8:9::/124", "2001:db8:a::1"], 1..=5),
        (index, of) in (1..=Share::MAX_OF).prop_flat_map(|of| (1..=of, Just(of))),
        address_interface in prop::option::of(interface_names()),
        vrrp in prop::option::of(names()),
    ) -> LocalAddressPool {
        let net = |text: &str| text.parse().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into());
        let addresses = nets.into_iter().map(net).collect();
        LocalAddressPool { name, addresses, share: Share { index, of }, address_interface, vrrp }
    }
}

prop_compose! {
    fn floods()(
        new_flows in prop::option::of(Flood::RATE),
        above in prop::option::of(Flood::RATE),
        secret in any::<bool>(),
    ) -> Flood {
        let secret_file = secret.then(|| "/etc/lb/cookie.secret".into());
        Flood { new_flows, syn_cookies: SynCookiesAbove { above, secret_file } }
    }
}

prop_compose! {
    fn directors_()(
        name in names(),
        interfaces in prop::collection::btree_map(
            interface_names(), select(vec![XdpMode::Auto, XdpMode::Native, XdpMode::Generic]), 1..5),
        connections_max in CONNECTIONS_MAX,
        services in SERVICES_MAX,
        real_servers in REAL_SERVERS_MAX,
        release in any::<bool>(),
        wait in (0u64..=600_000).prop_map(Duration::from_millis),
        packets in packets_(),
        metrics in prop::option::of((any::<std::net::IpAddr>(), 1u16..)),
        sources in select(vec![
            TunnelSources::default(),
            TunnelSources { v4: Some("10.200.0.0/16".parse().unwrap()), v6: None },
            TunnelSources { v4: Some("10.200.0.0/28".parse().unwrap()), v6: Some("fd00:200::/64".parse().unwrap()) },
        ]),
        flood in floods(),
    ) -> Director {
        Director {
            name,
            interfaces: interfaces.into_iter().map(|(name, xdp)| Interface { name, xdp }).collect(),
            connections_max,
            capacity: Capacity { services, real_servers },
            shutdown: Shutdown { traffic: if release { OnShutdown::Release } else { OnShutdown::Keep }, wait },
            real_path: Default::default(),
            tunnel_sources: sources,
            packets,
            flood,
            hooks: Vec::new(),
            webhooks: Vec::new(),
            metrics: metrics.map(Into::into),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_object_written_out_reads_back_the_same(object in prop_oneof![
        services_().prop_map(Object::VirtualService),
        pools_().prop_map(Object::LocalAddressPool),
        directors_().prop_map(Object::Director),
    ]) {
        for text in [to_yaml(&object), to_manifest(&object).to_string()] {
            let parsed = parse(&[Source { file: "m.yaml".into(), text: text.clone() }]);
            prop_assert!(parsed.report.0.is_empty(), "{}\n{text}", parsed.report);
            let back: Vec<Object> = parsed.objects.into_iter().map(|(_, entry)| Object::clone(&entry.object)).collect();
            prop_assert_eq!(&back, std::slice::from_ref(&object), "{}", text);
        }
    }

    /// Whatever the text: a report or objects, never a panic, and every place lies in the file.
    #[test]
    fn mutated_manifests_never_panic(at in 0..WEB.len(), cut in 0usize..12, with in "[\\[\\]{}:,#&*!|>'\"%@` \\-\n\ta0é]{0,6}") {
        let mut text = String::from(&WEB[..at]);
        text.push_str(&with);
        text.push_str(WEB.get(at + cut..).unwrap_or_default());
        if let Err(report) = load_text("m.yaml", &text) {
            prop_assert!(!report.0.is_empty());
            for diagnostic in &report.0 {
                prop_assert!(diagnostic.line >= 1 && diagnostic.line as usize <= text.lines().count() + 1, "{diagnostic}");
                prop_assert!(diagnostic.column >= 1, "{diagnostic}");
            }
            report.render(&[Source { file: "m.yaml".into(), text: text.clone() }], true);
        }
    }
}

#[test]
fn of_two_services_with_one_port_the_one_that_is_new_is_wrong() {
    let running = load_text("m.yaml", &service("web", "")).unwrap();
    let mut next = running.clone();
    for (_, entry) in load_text("new.yaml", &service("a", "")).unwrap() {
        next.replace(entry);
    }
    let said = check_change(&running, &next).to_string();
    assert!(said.starts_with("new.yaml:") && said.contains("belongs to VirtualService `web`"), "{said}");
    // Without a past, files and lines decide.
    assert!(check(&next).to_string().starts_with("new.yaml:"));
    let mut other = load_text("m.yaml", &service("a", "")).unwrap();
    for (_, entry) in running.clone() {
        other.replace(entry);
    }
    assert!(check_change(&running, &other).to_string().contains("belongs to VirtualService `web`"));
}
