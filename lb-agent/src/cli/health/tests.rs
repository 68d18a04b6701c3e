use super::*;
use crate::control::health::TransitionView;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn check(address: &str, state: CheckState, failed: u32) -> HealthView {
    HealthView {
        service: "web".into(),
        address: address.parse().unwrap(),
        port: Some(80),
        check: "http GET /healthz".into(),
        target: format!("{address}:80"),
        state,
        since: "2026-03-01T09:55:00Z".parse().unwrap(),
        last: if failed > 0 { "connection refused".into() } else { "status 200".into() },
        last_at: Some("2026-03-01T11:59:59Z".parse().unwrap()),
        passed: if failed > 0 { 0 } else { 4000 },
        failed,
        rise: 2,
        fall: 3,
        latency: Some(0.4),
        next_in: Some(1200),
        weight: None,
        draining: false,
        shared_by: 1,
        history: vec![TransitionView {
            at: "2026-03-01T09:55:00Z".parse().unwrap(),
            state,
            cause: "connection refused".into(),
        }],
    }
}

#[test]
fn checks_fit_eighty_columns_and_say_below_why_one_is_not_well() {
    let text = checks(
        &[check("10.0.0.11", CheckState::Up, 0), check("10.0.0.12", CheckState::Down, 4)],
        Look::default(),
        now(),
    );
    let expected = "\
SERVICE  SERVER        CHECK              STATE  SINCE    ROW  LATENCY    NEXT
web      10.0.0.11:80  http GET /healthz  up     2h 5m  999/2    0.4ms  1200ms
web      10.0.0.12:80  http GET /healthz  down   2h 5m   -4/3    0.4ms  1200ms

web 10.0.0.12:80: connection refused
";
    assert_eq!(text, expected);
    assert!(text.lines().all(|line| line.len() <= 80));
    assert_eq!(checks(&[], Look::default(), now()), "no health checks\n");
}

#[test]
fn a_long_reason_is_told_in_lines_of_eighty_columns() {
    let mut failing = check("10.0.0.12", CheckState::Down, 4);
    failing.last = "connect to 203.0.113.10:80 on 10.0.0.12: no answer within 1 s (is 203.0.113.10 on lo of \
                    10.0.0.12?) (2 of 3)"
        .into();
    let text = checks(&[failing], Look::default(), now());
    let told = "\n\nweb 10.0.0.12:80: connect to 203.0.113.10:80 on 10.0.0.12: no answer within 1 s\n  (is \
                203.0.113.10 on lo of 10.0.0.12?) (2 of 3)\n";
    assert!(text.ends_with(told), "{text}");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
}

#[test]
fn a_check_at_length_has_its_row_its_next_probe_and_its_past() {
    let text = described(&[check("10.0.0.12", CheckState::Down, 4)], now());
    for line in [
        "state:        down for 2h 5m",
        "last outcome: connection refused, 1s ago",
        "in a row:     0 passed (rise 2), 4 failed (fall 3)",
        "next probe:   in 1200ms",
        "transitions:  2026-03-01 09:55:00Z down  connection refused",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn a_real_server_is_named_by_address_or_address_and_port() {
    for (text, address, port) in
        [("10.0.0.11", "10.0.0.11", None), ("10.0.0.11:80", "10.0.0.11", Some(80)), ("::1", "::1", None)]
    {
        let address = address.parse().unwrap();
        assert_eq!(parse_server(text), Ok(ServerName { address, port }), "{text}");
    }
    assert_eq!(parse_server("[::1]:80").unwrap().port, Some(80));
    assert!(parse_server("web1").is_err());
}
