//! The arguments, and what people see: whole outputs at 80 columns.

use clap::Parser;

use super::table::{self, Look};
use super::*;
use crate::control::views::*;
use crate::control::{Change, Effect, Outcome, Verb};
use crate::model::Kind;

fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(["lb-agent"].iter().chain(arguments))
}

#[test]
fn the_arguments_make_sense_to_clap() {
    Cli::command().debug_assert();
}

#[test]
fn directories_may_stand_before_or_after_the_command() {
    for arguments in [
        ["--runtime-dir", "/x", "get", "services"].as_slice(),
        &["get", "services", "--runtime-dir", "/x"],
        &["get", "--runtime-dir", "/x", "services"],
        &["real-server", "down", "--runtime-dir", "/x"],
        &["run", "--config", "d.yaml", "--runtime-dir", "/x"],
    ] {
        assert_eq!(parse(arguments).unwrap().places.runtime_dir.to_str(), Some("/x"), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        ["apply"].as_slice(),
        &["run"],
        &["get"],
        &["get", "services", "Web"],
        &["get", "connections", "--client", "somebody"],
        &["get", "services", "-o", "xml"],
        &["delete"],
        &["delete", "service"],
        &["delete", "service", "web", "-f", "x.yaml"],
        &["delete", "thing", "web"],
        &["frobnicate"],
    ] {
        assert_eq!(parse(arguments).expect_err(&format!("{arguments:?}")).exit_code(), 2);
    }
}

#[test]
fn an_object_to_delete_is_named_by_its_kind_or_a_short_word() {
    for (kind, means) in [
        ("VirtualService", Kind::VirtualService),
        ("virtualservice", Kind::VirtualService),
        ("service", Kind::VirtualService),
        ("pool", Kind::LocalAddressPool),
        ("LocalAddressPool", Kind::LocalAddressPool),
    ] {
        let Command::Delete(args) = parse(&["delete", kind, "web"]).unwrap().command else { panic!() };
        assert_eq!(args.id().unwrap().kind, means);
    }
}

fn service(name: &str, address: &str, ports: &str) -> ServiceView {
    ServiceView {
        name: name.into(),
        address: address.parse().unwrap(),
        ports: ports.into(),
        protocol: "tcp".into(),
        scheduler: "wrr".into(),
        forwarding: "dr".into(),
        state: ServiceState::Up,
        reason: String::new(),
        servers_in: 3,
        servers: 3,
        active: 1234,
        inactive: 56,
        traffic: TrafficView {
            packets_in: 12_345_678,
            bytes_in: 9_876_543_210,
            packets_out: 0,
            bytes_out: 0,
        },
        slots: 30,
        live: 150,
        quorum: 1,
        sorry: false,
        exact: true,
        address_interface: Some("eth0".into()),
        endpoints: Vec::new(),
        origin: Origin::File("web.yaml".into()),
    }
}

fn down() -> ServiceView {
    ServiceView {
        forwarding: "fullnat".into(),
        scheduler: "mh".into(),
        state: ServiceState::Down,
        reason: "no ARP answer from 10.0.0.12 on eth0".into(),
        servers_in: 0,
        servers: 1,
        active: 0,
        inactive: 0,
        traffic: TrafficView::default(),
        slots: 0,
        address_interface: None,
        origin: Origin::Api,
        ..service("api", "203.0.113.111", "8443")
    }
}

fn server(address: &str, port: Option<u16>, state: RealServerState) -> RealServerView {
    RealServerView {
        service: "web".into(),
        address: address.parse().unwrap(),
        port,
        weight: 100,
        effective_weight: 100.0,
        sorry: false,
        since: None,
        forwarding: "dr".into(),
        state,
        reason: String::new(),
        next_hop: "02:00:00:00:00:0b on eth0".into(),
        mtu: 1500,
        active: 411,
        inactive: 18,
        traffic: TrafficView { packets_in: 4_115_226, bytes_in: 3_292_181_070, packets_out: 0, bytes_out: 0 },
        limits: LimitsView::default(),
        drain: None,
    }
}

#[track_caller]
fn fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
        assert_eq!(line, line.trim_end());
    }
}

#[test]
fn services_fit_a_terminal_and_say_why_one_is_down() {
    let text = table::services(&[service("web", "203.0.113.10", "80,443"), down()], Look::default());
    fits(&text);
    assert_eq!(
        text,
        "\
NAME  ADDRESS                  SCHED  METHOD   SERVERS  ACTIVE  INACT  PKTS-IN
web   203.0.113.10:80,443/tcp  wrr    dr           3/3    1234     56    12.3M
api   203.0.113.111:8443/tcp   mh     fullnat      0/1       0      0        0

api: no ARP answer from 10.0.0.12 on eth0
"
    );
    assert_eq!(table::services(&[], Look::default()), "no virtual services\n");
}

#[test]
fn wide_has_every_column_and_exact_numbers() {
    let scaled = ServiceView { exact: false, ..service("dns", "2001:db8::53", "53") };
    let text = table::services(&[scaled], Look { wide: true, colour: false });
    assert_eq!(
        text,
        "\
NAME  ADDRESS                SCHED  METHOD  SERVERS  ACTIVE  INACT   PKTS-IN    BYTES-IN  PKTS-OUT  BYTES-OUT  SLOTS  STATE  INTERFACE  ORIGIN
dns   [2001:db8::53]:53/tcp  wrr    dr          3/3    1234     56  12345678  9876543210         0          0    ~30  up     eth0       web.yaml
"
    );
}

#[test]
fn colours_are_there_only_when_wanted() {
    let plain = table::services(&[down()], Look::default());
    assert!(!plain.contains('\x1b'), "{plain:?}");
    let coloured = table::services(&[down()], Look { wide: false, colour: true });
    assert!(coloured.contains("\x1b["), "{coloured:?}");
    assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
}

#[test]
fn real_servers_fit_a_terminal_and_say_why_one_is_out() {
    let out = RealServerView {
        reason: "no ARP answer from 10.0.0.12 on eth0".into(),
        ..server("10.0.0.12", Some(8080), RealServerState::Out)
    };
    let text = table::real_servers(&[server("10.0.0.11", None, RealServerState::In), out], Look::default());
    fits(&text);
    assert_eq!(
        text,
        "\
SERVICE  ADDRESS         WEIGHT  METHOD  STATE  ACTIVE  INACT  PKTS-IN
web      10.0.0.11          100  dr      in        411     18    4.12M
web      10.0.0.12:8080     100  dr      out       411     18    4.12M

web 10.0.0.12:8080: no ARP answer from 10.0.0.12 on eth0
"
    );
    assert_eq!(table::real_servers(&[], Look::default()), "no real servers\n");
}

const DRAINS: &str = "429 left, oldest ≥2h 1m, gone in 2m 5s, reset in 9m 12s";

#[test]
fn wide_real_servers_have_thresholds_persistence_and_drain() {
    let limits = LimitsView {
        connections_max: 500,
        connections_resume: 375,
        overloaded: true,
        persistent: 12,
        packets_per_second: 0,
    };
    let drain = DrainView {
        since: 60,
        deadline_in: Some(552),
        on_deadline: "reset".into(),
        remaining: 429,
        oldest: Some(7260),
        oldest_at_least: true,
        eta: Some(125),
        resetting: false,
    };
    let leaving =
        RealServerView { limits, drain: Some(drain), ..server("10.0.0.11", None, RealServerState::Draining) };
    let text = table::real_servers(&[leaving], Look { wide: true, colour: false });
    let (head, row) = text.split_once('\n').unwrap();
    for (column, value) in [("PERSIST", "12"), ("MAX", "500"), ("RESUME", "375"), ("DRAIN", DRAINS)] {
        assert!(head.contains(column) && row.contains(value), "{text}");
    }
}

#[test]
fn every_endpoint_of_a_service_has_a_line() {
    let other = |address: &str, protocol: &str| EndpointView {
        address: address.parse().unwrap(),
        ports: "443".into(),
        protocol: protocol.into(),
    };
    let endpoints = vec![other("203.0.113.10", "udp"), other("2001:db8::10", "tcp")];
    let group = ServiceView { endpoints, ..service("web", "203.0.113.10", "80,443") };
    let text = table::services(&[group.clone(), service("other", "203.0.113.11", "80")], Look::default());
    fits(&text);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..2], ["web", "203.0.113.10:80,443/tcp"], "{text}");
    assert_eq!(lines[2], ["203.0.113.10:443/udp"], "{text}");
    assert_eq!(lines[3], ["[2001:db8::10]:443/tcp"], "{text}");
    assert_eq!(lines[4][0], "other", "{text}");
    let text = table::service(&group, &[], Look::default());
    assert!(text.contains("\n              [2001:db8::10]:443/tcp\n"), "{text}");
}

#[test]
fn persistent_clients_are_listed_with_what_is_left_of_their_time() {
    let view = |client: &str, expires_in| PersistenceView {
        service: "web".into(),
        client: client.into(),
        real_server: "10.0.0.11".parse().unwrap(),
        expires_in,
    };
    let text = table::persistence(&[view("198.51.100.0/24", 272), view("", 9)], Look::default());
    fits(&text);
    assert_eq!(
        text,
        "\
SERVICE  CLIENT           SERVER     EXPIRE
web      198.51.100.0/24  10.0.0.11   04:32
web      (a SIP call)     10.0.0.11   00:09
"
    );
    assert_eq!(table::persistence(&[], Look::default()), "no persistent clients\n");
}

#[test]
fn a_drain_is_ordered_with_a_deadline_as_manifests_write_them() {
    let parsed = |arguments: &[&str]| {
        let all = ["lb-agent", "drain", "web", "10.0.0.11"].iter().chain(arguments);
        match Cli::try_parse_from(all).map(|cli| cli.command) {
            Ok(Command::Drain(args)) => Ok(args.deadline.map(|deadline| deadline.as_secs())),
            Ok(_) => Err("another command".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    assert_eq!(parsed(&[]), Ok(None));
    assert_eq!(parsed(&["--deadline", "1h 30m"]), Ok(Some(5400)));
    for wrong in ["10", "-5m", "1000h", "soon"] {
        let said = parsed(&[&format!("--deadline={wrong}")]).unwrap_err();
        assert!(said.contains("a duration like 10m"), "{wrong}: {said}");
    }
}

#[test]
fn connections_look_like_those_of_ipvsadm() {
    let flow = ConnectionView {
        protocol: "tcp".into(),
        service: "web".into(),
        client: "198.51.100.7:40000".parse().unwrap(),
        virtual_address: "203.0.113.10:80".parse().unwrap(),
        real_server: "10.0.0.11:80".parse().unwrap(),
        local: None,
        forwarding: "dr".into(),
        state: "ESTABLISHED".into(),
        expires_in: 898,
    };
    let view = ConnectionsView { connections: vec![flow], truncated: true };
    let text = table::connections(&view, Look::default());
    fits(&text);
    assert_eq!(
        text,
        "\
PROTO  EXPIRE  STATE        CLIENT              VIRTUAL          SERVER
tcp     14:58  ESTABLISHED  198.51.100.7:40000  203.0.113.10:80  10.0.0.11:80

only the first 1; --limit shows more
"
    );
    assert_eq!(table::connections(&ConnectionsView::default(), Look::default()), "no connections\n");
}

#[test]
fn counters_leave_out_what_never_happened() {
    let reason = |name: &str, class: &str, packets| ReasonView {
        name: name.into(),
        class: class.into(),
        packets,
        bytes: packets * 60,
        text: "a sentence".into(),
    };
    let view = CountersView {
        reasons: vec![reason("not_ours", "pass", 20_000), reason("no_server", "drop", 0)],
        forwarded: TrafficView { packets_in: 5, bytes_in: 300, packets_out: 0, bytes_out: 0 },
        retired: TrafficView::default(),
    };
    let text = table::counters(&view, Look::default());
    fits(&text);
    assert_eq!(
        text,
        "\
WHAT             CLASS    PACKETS  BYTES
to_real_servers  forward        5    300
to_clients       forward        0      0
not_ours         pass       20.0k  1.20M

2 more never happened; -o wide shows and explains all
"
    );
    let wide = table::counters(&view, Look { wide: true, colour: false });
    assert!(wide.contains("no_server        drop           0        0  a sentence\n"), "{wide}");
}

#[test]
fn the_status_names_what_is_not_as_it_should_be() {
    let view = StatusView {
        director: "director-a".into(),
        version: "0.1.0".into(),
        pid: 42,
        uptime: 7500,
        kernel: "6.1.0".into(),
        interfaces: vec![InterfaceView {
            name: "eth0".into(),
            mode: "native".into(),
            reason: String::new(),
            received: FramesView { packets: 1_200_000, bytes: 90_000_000, dropped: 3, errors: 0 },
            sent: FramesView { packets: 1300, bytes: 98_000, dropped: 0, errors: 0 },
        }],
        services: 2,
        real_servers: 4,
        real_servers_in: 3,
        active: 1234,
        inactive: 56,
        vrrp: vec![VrrpStatus {
            name: "edge".into(),
            role: "master".into(),
            reason: "no advertisement for 3.6 s".into(),
            for_seconds: 125,
        }],
        connections_max: 1_000_000,
        checks: ChecksStatus { count: 4, running: 1, probes: 900, stretch: 1.0 },
        restart_needed: vec!["spec.connections.max".into()],
        problems: vec!["real server 10.0.0.12 of api is out".into()],
    };
    let text = table::status(&view, Look::default());
    fits(&text);
    assert_eq!(
        text,
        "\
director:     director-a
agent:        lb-agent 0.1.0, pid 42, up 2h 5m
kernel:       6.1.0
interfaces:   eth0 (xdp native): 1.20M frames in, 1300 out, 3 lost
vrrp:         edge is master for 2m 5s (no advertisement for 3.6 s)
services:     2
real servers: 3 of 4 in
connections:  1234 active, 56 inactive, room for 1.00M
checks:       4, all in time
next start:   spec.connections.max
! real server 10.0.0.12 of api is out
"
    );
}

#[test]
fn a_described_service_shows_how_its_weights_became_slots() {
    let scaled = ServiceView { exact: false, ..service("web", "203.0.113.10", "80,443") };
    let text = table::service(&scaled, &[server("10.0.0.11", None, RealServerState::In)], Look::default());
    fits(&text);
    assert!(text.contains("scheduler:    wrr (30 slots, weights scaled to fit)\n"), "{text}");
    assert!(text.contains("in:           12345678 packets, 9876543210 bytes\n"), "{text}");
    assert!(text.contains("\n\nSERVICE  ADDRESS"), "{text}");
}

fn change(verb: Verb, object: &str, fields: &[&str], effect: Effect) -> Change {
    Change { verb, object: object.into(), fields: fields.iter().map(ToString::to_string).collect(), effect }
}

#[test]
fn a_plan_says_what_changes_and_when_it_counts() {
    let mut outcome = Outcome {
        plan: vec![
            change(Verb::Change, "Director/a", &["spec.connections.max"], Effect::Restart),
            change(Verb::Add, "VirtualService/web", &[], Effect::Live),
            change(Verb::Change, "VirtualService/api", &["spec.scheduler", "spec.realServers"], Effect::Live),
            change(Verb::Remove, "VirtualService/old", &[], Effect::Live),
        ],
        steps: vec!["write destination 3".into()],
        map_writes: 0,
        applied: false,
        warnings: vec!["pool-a has room for 4000 connections only".into()],
    };
    let lines = "\
~ Director/a  spec.connections.max (at the agent's next start)
+ VirtualService/web
~ VirtualService/api  spec.scheduler, spec.realServers (live)
- VirtualService/old
";
    let warning = "warning: pool-a has room for 4000 connections only\n";
    let end = "would be: 1 added, 2 changed, 1 removed\n";
    assert_eq!(outcome::lines(&outcome, false), format!("{lines}{warning}{end}"));
    let step = "    write destination 3\n";
    assert_eq!(outcome::lines(&outcome, true), format!("{lines}{step}{warning}{end}"));
    (outcome.applied, outcome.map_writes) = (true, 1);
    let end = "done: 1 added, 2 changed, 1 removed; 1 map write\n";
    assert_eq!(outcome::lines(&outcome, false), format!("{lines}{warning}{end}"));

    let nothing = Outcome { applied: true, ..Outcome::default() };
    assert_eq!(outcome::lines(&nothing, false), "nothing to change\n");
    let repaired = Outcome { map_writes: 2, ..nothing };
    assert_eq!(outcome::lines(&repaired, false), "nothing to change; 2 map elements repaired\n");
}

#[test]
fn a_mistake_is_a_picture_on_a_terminal_a_line_elsewhere_and_data_as_json() {
    let text = "apiVersion: lb/v1\nkind: Directer\n";
    let sources = vec![Source { file: "d.yaml".into(), text: text.into() }];
    let diagnostics = crate::manifest::load(&sources).unwrap_err();
    let refusal = Refusal::Invalid { diagnostics };
    let error = Refused::or_other(Error::Refused(refusal.clone()), sources);

    let line = explain(&error, Format::Table, false, false);
    assert!(line.lines().any(|line| line.starts_with("d.yaml:2:7: kind: unknown kind `Directer`")), "{line}");
    let picture = explain(&error, Format::Table, true, false);
    assert!(picture.contains("2 | kind: Directer\n"), "{picture}");
    let json: ErrorBody = serde_json::from_str(&explain(&error, Format::Json, true, true)).unwrap();
    assert_eq!(json.refusal, Some(refusal));
}

#[test]
fn any_other_error_is_one_line_with_its_causes() {
    let error = anyhow::anyhow!("no such device").context("attach eth0");
    assert_eq!(explain(&error, Format::Table, true, false), "error: attach eth0: no such device\n");
    let missing = crate::manifest::read_path("missing.yaml".as_ref()).unwrap_err();
    assert_eq!(causes(&missing.into()), "read missing.yaml: No such file or directory (os error 2)");
    let owned = Refusal::Owned { object: "VirtualService/web".into(), file: "web.yaml".into() };
    let error = Refused::or_other(Error::Refused(owned), vec![]);
    assert_eq!(
        explain(&error, Format::Wide, true, false),
        "error: VirtualService/web belongs to the file web.yaml: edit that file, or remove the object from it\n"
    );
}

#[test]
fn a_vrrp_instance_at_length_says_who_is_master_and_what_is_wrong() {
    use crate::control::vrrp::{MismatchView, PeerView, SchedulingView, TimerView, VrrpOverview, VrrpView};
    let view = VrrpView {
        name: "edge".into(),
        role: "backup".into(),
        reason: "10.0.0.2 is master with priority 200".into(),
        since: "2026-01-31T12:00:00.000Z".into(),
        for_seconds: 7,
        interface: "eth0".into(),
        vrid: 51,
        version: 3,
        priority: 80,
        base_priority: 100,
        weights: [("script nginx".to_owned(), -20)].into(),
        ready: true,
        source: Some("10.0.0.1".parse().unwrap()),
        master: Some("10.0.0.2".parse().unwrap()),
        master_priority: Some(200),
        interval_ms: 300,
        configured_interval_ms: 1000,
        timer: Some(TimerView { what: "takes over".into(), in_ms: 812 }),
        addresses: vec!["203.0.113.10/24".into(), "203.0.113.11/24".into()],
        peers: vec![PeerView { address: "10.0.0.2".parse().unwrap(), heard_ms: 88, priority: Some(200) }],
        mismatches: vec![MismatchView {
            peer: "10.0.0.2".parse().unwrap(),
            field: "advertisementInterval".into(),
            ours: "1s".into(),
            theirs: "300ms".into(),
            refused: false,
        }],
        counters: [("received".to_owned(), 1234)].into(),
        lease: "backup".into(),
        ..VrrpView::default()
    };
    let scheduling =
        SchedulingView { real_time: true, last_lag_us: 61, most_lag_us: 1250, ..SchedulingView::default() };
    let text = super::vrrp::instance(&view, &scheduling);
    fits(&text);
    for line in [
        "role:         backup (10.0.0.2 is master with priority 200)\n",
        "priority:     80 (base 100, -20 script nginx)\n",
        "master:       10.0.0.2, priority 200\n",
        "interval:     300 ms (configured 1000 ms), takes over in 812 ms\n",
        "timer lag:    last 0.061 ms, recently 0.000 ms, most 1.250 ms\n",
        "peer:         10.0.0.2, priority 200, heard 88 ms ago\n",
        "!:            peer 10.0.0.2 differs in advertisementInterval: 300ms, ours is 1s\n",
        "\nreceived                      1234\n",
    ] {
        assert!(text.contains(line), "{line}in\n{text}");
    }
    let mut refused = view.clone();
    refused.role = "master".into();
    refused.mismatches[0].refused = true;
    let text = super::vrrp::instance(&refused, &scheduling);
    fits(&text);
    let wrapped = "!:            peer 10.0.0.2 differs in advertisementInterval: 300ms, ours is 1s;\n              \
                   its advertisements are refused, so both may be master\n";
    assert!(text.contains(wrapped), "{wrapped}in\n{text}");
    let overview = VrrpOverview { instances: vec![view], scheduling };
    let table = super::vrrp::instances(&overview, Look::default());
    fits(&table);
    assert_eq!(
        table.lines().take(2).collect::<Vec<_>>(),
        [
            "NAME  ROLE    PRIO  VRID  IFACE  MASTER    ADDRESSES",
            "edge  backup    80    51  eth0   10.0.0.2  203.0.113.10/24 +1",
        ]
    );
}
