use super::*;
use crate::control::vrrp::{LagBucket, MismatchView, PeerView, SchedulingView, VrrpView};

/// The samples of a text: names with labels, and values. What makes a text invalid fails here.
fn samples(text: &str) -> Vec<(String, f64)> {
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let mut samples: Vec<(String, f64)> = Vec::new();
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(family.to_owned()), "family {family} comes twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("lb_"), "{line}");
            assert!(!samples.iter().any(|(other, _)| other == name), "{name} comes twice");
            samples.push((name.into(), value.parse().unwrap()));
        }
    }
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        assert!(line.ends_with('.'), "no sentence: {line}");
    }
    samples
}

fn value(samples: &[(String, f64)], name: &str) -> f64 {
    let found = samples.iter().find(|(other, _)| other == name);
    found.unwrap_or_else(|| panic!("no {name} in {samples:#?}")).1
}

fn server(service: &str, server: &str) -> ServerFacts {
    ServerFacts { service: service.into(), server: server.into(), state: "in", ..ServerFacts::default() }
}

#[test]
fn an_agent_with_nothing_tells_of_itself_and_claims_no_zeros() {
    let samples = samples(&render(Facts::default()));
    assert_eq!(value(&samples, "lb_problems"), 0.0);
    for unknown in ["lb_frames", "lb_connection_table", "lb_vrrp", "lb_real_server", "lb_retired"] {
        assert!(!samples.iter().any(|(name, _)| name.starts_with(unknown)), "{unknown} in {samples:?}");
    }
}

#[test]
fn every_reason_is_told_with_its_class_by_frames_and_bytes() {
    let count = |at: usize| Count { packets: at as u64 + 1, bytes: 100 * at as u64 };
    let reasons: Vec<_> = Reason::ALL.iter().enumerate().map(|(at, reason)| (*reason, count(at))).collect();
    let retired = Traffic { packets_in: 7, bytes_in: 8, packets_out: 9, bytes_out: 10 };
    let frames = Some(Frames { reasons: reasons.clone(), retired });
    let samples = samples(&render(Facts { frames, ..Facts::default() }));
    for (reason, count) in reasons {
        let labels = format!("{{reason=\"{}\",class=\"{}\"}}", reason.name(), class_name(reason.class()));
        assert_eq!(value(&samples, &format!("lb_frames_total{labels}")), count.packets as f64);
        assert_eq!(value(&samples, &format!("lb_frames_bytes_total{labels}")), count.bytes as f64);
    }
    assert_eq!(value(&samples, "lb_retired_packets_total{direction=\"in\"}"), 7.0);
    assert_eq!(value(&samples, "lb_retired_bytes_total{direction=\"out\"}"), 10.0);
}

#[test]
fn a_real_server_is_told_with_its_service() {
    let traffic = Traffic { packets_in: 3, bytes_in: 300, ..Traffic::default() };
    let facts = Facts {
        services: vec![ServiceFacts {
            name: "web".into(),
            servers: 2,
            servers_in: 1,
            quorum: 1,
            ..Default::default()
        }],
        servers: vec![
            ServerFacts {
                weight: 100,
                effective_weight: 12.5,
                takes_new: true,
                active: 4,
                traffic: Some(traffic),
                ..server("web", "10.0.0.11")
            },
            ServerFacts { state: "down", ..server("web", "10.0.0.12") },
        ],
        ..Facts::default()
    };
    let samples = samples(&render(facts));
    let of = |name: &str, server: &str, more: &str| {
        value(&samples, &format!("lb_{name}{{service=\"web\",real_server=\"{server}\"{more}}}"))
    };
    assert_eq!(of("real_server_packets_total", "10.0.0.11", ",direction=\"in\""), 3.0);
    assert_eq!(of("real_server_bytes_total", "10.0.0.11", ",direction=\"in\""), 300.0);
    assert_eq!(of("real_server_effective_weight", "10.0.0.11", ""), 12.5);
    assert_eq!(of("real_server_connections", "10.0.0.11", ",activity=\"active\""), 4.0);
    assert_eq!(of("real_server_in", "10.0.0.12", ""), 0.0);
    assert_eq!(of("real_server_state", "10.0.0.12", ",state=\"down\""), 1.0);
    assert_eq!(value(&samples, "lb_service_real_servers_in{service=\"web\"}"), 1.0);
    // Its counters could not be read: not told as 0.
    let unread =
        |(name, _): &&(String, f64)| name.starts_with("lb_real_server_packets") && name.contains(".12");
    assert_eq!(samples.iter().find(unread), None);
}

#[test]
fn a_real_server_that_came_back_by_another_method_is_told_once() {
    let traffic = |packets_in| Some(Traffic { packets_in, ..Traffic::default() });
    let merged = merge(vec![
        ServerFacts { active: 1, traffic: traffic(10), destinations: vec![1], ..server("web", "10.0.0.11") },
        ServerFacts { active: 5, ..server("api", "10.0.0.11") },
        ServerFacts {
            state: "removed",
            active: 2,
            traffic: traffic(20),
            destinations: vec![7],
            ..server("web", "10.0.0.11")
        },
    ]);
    let [web, api] = &merged[..] else { panic!("{merged:?}") };
    assert_eq!((web.state, web.active, &web.destinations[..]), ("in", 3, &[1, 7][..]));
    assert_eq!(web.traffic.unwrap().packets_in, 30);
    assert_eq!(api.active, 5);
    samples(&render(Facts { servers: merged, ..Facts::default() }));
}

#[test]
fn checks_tell_what_is_believed_and_nothing_before_the_first_outcome() {
    let check = |target: &str, up, latency| CheckFacts {
        service: "web".into(),
        server: "10.0.0.11".into(),
        check: "http GET /a\"b\\c\n".into(),
        target: target.into(),
        up,
        latency,
    };
    let facts = Facts {
        probing: Probing {
            lanes: vec![LaneFacts { kind: "tls", checks: 3, running: 0, stretch: 1.5 }],
            passed: 8,
            failed: 2,
            ..Probing::default()
        },
        checks: vec![
            check("10.0.0.11:80", Some(true), Some(0.002)),
            check("10.0.0.11:80", Some(false), None),
            check("10.0.0.11:81", None, None),
        ],
        ..Facts::default()
    };
    let samples = samples(&render(facts));
    let up: Vec<_> = samples.iter().filter(|(name, _)| name.starts_with("lb_check_up")).collect();
    let [(name, 1.0)] = up[..] else { panic!("{up:?}") };
    assert!(name.contains(r#"check="http GET /a\"b\\c\n""#), "{name}");
    assert_eq!(value(&samples, "lb_check_results_total{result=\"failed\"}"), 2.0);
    assert_eq!(value(&samples, "lb_check_stretch{kind=\"tls\"}"), 1.5);
}

fn edge() -> VrrpView {
    let peer = "10.0.0.2".parse().unwrap();
    VrrpView {
        name: "edge".into(),
        role: "master".into(),
        priority: 140,
        base_priority: 150,
        ready: true,
        interval_ms: 30,
        peers: vec![PeerView { address: peer, heard_ms: 12, priority: None }],
        mismatches: vec![MismatchView {
            peer,
            field: "advertisementInterval".into(),
            ours: "1 s".into(),
            theirs: "2 s".into(),
            refused: true,
        }],
        counters: [("sent", 5), ("became_master", 1), ("checksum", 4), ("stalled", 2), ("send_failed", 3)]
            .map(|(kind, count)| (kind.to_owned(), count))
            .into(),
        ..VrrpView::default()
    }
}

#[test]
fn vrrp_tells_roles_transitions_adverts_by_kind_and_in_what_peers_differ() {
    let vrrp = VrrpOverview { instances: vec![edge()], ..VrrpOverview::default() };
    let samples = samples(&render(Facts { vrrp, ..Facts::default() }));
    for (name, expected) in [
        ("role{vrrp_instance=\"edge\",role=\"master\"}", 1.0),
        ("role{vrrp_instance=\"edge\",role=\"backup\"}", 0.0),
        ("priority{vrrp_instance=\"edge\"}", 140.0),
        ("interval_seconds{vrrp_instance=\"edge\"}", 0.03),
        ("transitions_total{vrrp_instance=\"edge\",to=\"master\"}", 1.0),
        ("transitions_total{vrrp_instance=\"edge\",to=\"fault\"}", 0.0),
        ("adverts_sent_total{vrrp_instance=\"edge\"}", 5.0),
        ("adverts_received_total{vrrp_instance=\"edge\"}", 0.0),
        ("adverts_refused_total{vrrp_instance=\"edge\",kind=\"checksum\"}", 4.0),
        ("incidents_total{vrrp_instance=\"edge\",kind=\"stalled\"}", 2.0),
        ("errors_total{vrrp_instance=\"edge\",kind=\"send_failed\"}", 3.0),
        ("peer_heard_seconds{vrrp_instance=\"edge\",peer=\"10.0.0.2\"}", 0.012),
        (
            "peer_mismatch{vrrp_instance=\"edge\",peer=\"10.0.0.2\",field=\"advertisementInterval\",adverts=\"refused\"}",
            1.0,
        ),
    ] {
        assert_eq!(value(&samples, &format!("lb_vrrp_{name}")), expected, "{name}");
    }
}

#[test]
fn how_late_timers_fired_is_a_histogram() {
    let bucket = |up_to_us, timers| LagBucket { up_to_us, timers };
    let scheduling = SchedulingView {
        total_lag_us: 2_500_000,
        recent_lag_us: 40_000,
        lag_buckets: vec![bucket(Some(100), 10), bucket(Some(30_000), 2), bucket(None, 1)],
        ..SchedulingView::default()
    };
    let vrrp = VrrpOverview { instances: vec![edge()], scheduling };
    let samples = samples(&render(Facts { vrrp, ..Facts::default() }));
    for (name, expected) in [
        ("seconds_bucket{le=\"0.0001\"}", 10.0),
        ("seconds_bucket{le=\"0.03\"}", 12.0),
        ("seconds_bucket{le=\"+Inf\"}", 13.0),
        ("seconds_count", 13.0),
        ("seconds_sum", 2.5),
        ("recent_seconds", 0.04),
    ] {
        assert_eq!(value(&samples, &format!("lb_vrrp_timer_lag_{name}")), expected, "{name}");
    }
}

#[test]
fn the_page_on_metrics_names_every_family() {
    let page = include_str!("../../../docs/metrics.md");
    let table = Some(TableFacts { leases: vec![("10.0.0.1".parse().unwrap(), 1)], ..TableFacts::default() });
    let retired = Traffic::default();
    let facts = Facts {
        agent: AgentFacts {
            interfaces: vec![InterfaceFacts {
                name: "eth0".into(),
                mode: "native".into(),
                frames: Some(LinkCounters::default()),
            }],
            ..AgentFacts::default()
        },
        frames: Some(Frames { reasons: vec![(Reason::ALL[0], Count::default())], retired }),
        table,
        services: vec![ServiceFacts::default()],
        servers: vec![ServerFacts { traffic: Some(retired), ..server("web", "10.0.0.11") }],
        checks: vec![CheckFacts { up: Some(true), latency: Some(1.0), ..CheckFacts::default() }],
        probing: Probing { lanes: vec![LaneFacts::default()], ..Probing::default() },
        vrrp: VrrpOverview { instances: vec![edge()], ..VrrpOverview::default() },
    };
    let text = render(facts);
    samples(&text);
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let missing: Vec<&str> = families
        .filter_map(|family| family.split_once(' '))
        .map(|(name, kind)| {
            (name, if kind == "counter" { format!("`{name}_total`") } else { format!("`{name}") })
        })
        .filter(|(_, shown)| !page.contains(shown.as_str()))
        .map(|(name, _)| name)
        .collect();
    assert!(missing.is_empty(), "docs/metrics.md does not name {missing:?}");
}
