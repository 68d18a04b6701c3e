use super::super::{Source, load_text, parse, to_yaml};
use super::*;
use crate::model::Object;
use crate::model::health::{DnsType, Http, StatusRange, Tls};

fn service(fields: &str) -> String {
    let mut text = String::from(
        "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  address: 203.0.113.10\n",
    );
    for (key, default) in [
        ("ports", "[80]"),
        ("protocol", "tcp"),
        ("forwarding", "dr"),
        ("scheduler", "wrr"),
        ("realServers", "[{address: 10.0.0.11}, {address: 10.0.0.12}]"),
    ] {
        if !fields.contains(&format!("{key}: ")) {
            text += &format!("  {key}: {default}\n");
        }
    }
    fields.lines().for_each(|line| text += &format!("  {line}\n"));
    text
}

fn read(fields: &str) -> VirtualService {
    let objects = load_text("m.yaml", &service(fields)).unwrap_or_else(|report| panic!("{report}"));
    objects.services().next().unwrap().0.clone()
}

fn check_of_service(fields: &str) -> Check {
    Check::clone(&read(fields).health.checks[0])
}

#[test]
fn a_check_has_defaults_for_all_it_does_not_say() {
    let check = check_of_service("healthCheck: {http: {path: /healthz}, interval: 2s, rise: 2, fall: 3}");
    let Probe::Http(http) = &check.probe else { panic!("{check:?}") };
    assert_eq!((http.method.as_str(), http.path.as_str(), &http.tls), ("GET", "/healthz", &None));
    assert_eq!(http.statuses, [StatusRange { first: 200, last: 299 }]);
    assert_eq!(check.timing, Timing::default());
    assert_eq!(check_of_service("healthCheck: tcp").probe, Probe::Tcp);
    let slow = check_of_service("healthCheck: {tcp: {}, interval: 1m}").timing;
    assert_eq!((slow.timeout, slow.fast_interval), (Duration::from_secs(5), Duration::from_secs(60)));
    let https = check_of_service("healthCheck: {https: {}}");
    assert!(matches!(
        https.probe,
        Probe::Http(Http { tls: Some(Tls { insecure: false, ca: None, .. }), .. })
    ));
    let dns = check_of_service("protocol: udp\nhealthCheck: {dns: {}}");
    assert!(matches!(&dns.probe, Probe::Dns(dns) if dns.record == DnsType::Soa && dns.name == "."));
}

#[test]
fn a_server_that_waits_for_a_proxy_header_gets_one_from_probes_of_its_own_port() {
    let behind =
        "forwarding: nat\nproxyProtocol: v2\nrealServers: [{address: 10.0.0.11, port: 8080}]\nhealthCheck: ";
    for (check, sent) in [
        ("{http: {}}", Some(true)),
        ("{https: {}, port: 8080}", Some(true)),
        ("{grpc: {}}", Some(true)),
        ("{smtp: {}}", Some(true)),
        ("{dns: {transport: tcp}}", Some(true)),
        ("{http: {}, proxyProtocol: none}", Some(false)),
        ("{http: {}, port: 8081}", None),
        ("{http: {}, port: 8081, proxyProtocol: v2}", Some(true)),
        ("{http: {}, address: 10.0.0.99}", None),
        ("tcp", None),
        ("{icmp: {}}", None),
        ("{agent: {}, port: 8080}", None),
    ] {
        let service = read(&format!("{behind}{check}"));
        let server = &service.real_servers[0];
        assert_eq!(service.health.checks[0].settled(&service, server).proxy_header, sent, "{check}");
    }
    let without = read("healthCheck: {http: {}}");
    assert_eq!(without.health.checks[0].settled(&without, &without.real_servers[0]).proxy_header, None);
}

#[test]
fn every_kind_of_check_written_out_reads_back_the_same() {
    for fields in [
        "healthCheck: {tcp: {}, port: 81, source: 10.0.0.1, interface: eth0, mark: 7, path: direct, start: up}",
        "healthCheck: {http: {}, proxyProtocol: v2}",
        "healthCheck: {smtp: {}, proxyProtocol: none}",
        "healthCheck: {tcp: {}, interval: 1s, fastInterval: 200ms, timeout: 500ms, rise: 1, fall: 9}",
        "healthCheck: {tcp: {}, flapDamping: {changes: 5, window: 1m, hold: 30s}}",
        "healthCheck: {http: {method: POST, path: /a?b, host: x.example, headers: {X-A: b, Accept: \"*/*\"}, body: hi, \
         status: [200, 301-302], matches: \"^ok\", version: 1.0}}",
        "healthCheck: {http: {version: 2, digest: {md5: d41d8cd98f00b204e9800998ecf8427e}}}",
        "healthCheck: {https: {serverName: a.example, ca: /etc/lb/ca.pem, status: 204}}",
        "healthCheck: {grpc: {service: a.B, host: b.example, tls: {insecure: true}}}",
        "healthCheck: {grpc: {tls: true}}",
        "healthCheck: {smtp: {helo: lb.example, starttls: {ca: /ca.pem}}}",
        "healthCheck: {dns: {name: example.org, type: MX, transport: tcp}}",
        "protocol: udp\nhealthCheck: {udp: {payload: \"a\\0b\", reply: {hex: \"0a 0B\", mask: fff0}}}",
        "protocol: udp\nhealthCheck: {udp: {payloadHex: 00ff, reply: any}}",
        "protocol: udp\nhealthCheck: {udp: {reply: {matches: \"(?-u)^OK\"}}}",
        "healthCheck: {icmp: {size: 1000}}",
        "healthCheck: {script: {command: /bin/true, arguments: [a, \"b c\"], user: nobody, dynamic: true}}",
        "healthCheck: {file: {path: /run/weight}}",
        "healthCheck: {agent: {send: hello}, port: 9999}",
        "healthChecks: {require: 2, checks: [tcp, icmp, {agent: {}, port: 9999}]}",
        "healthChecks: {require: any, checks: [{tcp: {}}]}",
        "healthCheck: tcp\nonFailure: quiesce",
        "healthCheck: tcp\nonServerDown: reschedule\nquorum: {weight: 2, hysteresis: 0}\nslowStart: 30s\n\
         panicThreshold: 50%\nlatencyWeight: 20",
        "sorryServer: {address: 10.0.0.99}\nquorum: 2",
        "passiveDetection: {}",
        "healthCheck: tcp\npassiveDetection: {window: 1m, failures: 20, share: 30%, probation: 30s, maxShare: 25}",
        "forwarding: nat\nsorryServer: {address: 10.0.0.99, port: 8080}",
        "healthCheck: tcp\nrealServers: [{address: 10.0.0.11, healthCheck: none}, {address: 10.0.0.12, standby: 3, \
         healthCheck: {icmp: {}}}]",
    ] {
        let first = read(fields);
        let written = to_yaml(&Object::VirtualService(first.clone()));
        let parsed = parse(&[Source { file: "m.yaml".into(), text: written.clone() }]);
        assert!(parsed.report.0.is_empty(), "{fields}\n{}\n{written}", parsed.report);
        assert_eq!(parsed.objects.services().next().unwrap().0, &first, "{fields}\n{written}");
    }
}

#[test]
fn a_mistake_is_reported_with_its_place_and_the_way_out() {
    let mut wrong = Vec::new();
    for (fields, expected) in [
        ("healthCheck: {}", "11:16: spec.healthCheck: says nothing to probe"),
        ("healthCheck: ping", "11:16: spec.healthCheck: `ping` is not a health check"),
        ("healthCheck: {tpc: {}}", "11:17: spec.healthCheck.tpc: unknown field\n  help: did you mean `tcp`?"),
        (
            "healthCheck: {http: {pth: /}}",
            "11:24: spec.healthCheck.http.pth: unknown field\n  help: did you mean `path`?",
        ),
        ("healthCheck: {tcp: {}, http: {}}", "11:26: spec.healthCheck.http: stands beside `tcp`"),
        ("healthCheck: {http: {path: healthz}}", "spec.healthCheck.http.path: `healthz` is not a path like"),
        ("healthCheck: {http: {status: 99}}", "spec.healthCheck.http.status: 99 is below 100"),
        (
            "healthCheck: {http: {status: [200-100]}}",
            "spec.healthCheck.http.status[0]: `200-100` is not a status",
        ),
        (
            "healthCheck: {http: {matches: \"(\"}}",
            "spec.healthCheck.http.matches: `(` is not a regular expression",
        ),
        ("healthCheck: {http: {method: HEAD, matches: a}}", "matches: the answer to HEAD has no body"),
        ("healthCheck: {http: {version: 3}}", "spec.healthCheck.http.version: 3 is not one of 1.0, 1.1, 2"),
        ("healthCheck: {http: {headers: {\"a b\": c}}}", "headers.a b: a b cannot be a header here"),
        ("healthCheck: {http: {digest: {md5: 12}}}", "digest.md5: 12 is not hexadecimal digits"),
        ("healthCheck: {http: {insecure: true}}", "spec.healthCheck.http.insecure: unknown field"),
        ("healthCheck: {https: {ca: ca.pem}}", "spec.healthCheck.https.ca: `ca.pem` is not an absolute path"),
        (
            "healthCheck: {https: {ca: /c, insecure: true}}",
            "spec.healthCheck.https.insecure: stands beside `ca`",
        ),
        (
            "healthCheck: {tcp: {}, interval: 1s, timeout: 2s}",
            "spec.healthCheck.timeout: 2s is above the interval of 1s",
        ),
        ("healthCheck: {tcp: {}, rise: 0}", "spec.healthCheck.rise: 0 is below 1"),
        (
            "healthCheck: {tcp: {}, flapDamping: {changes: 99, window: 1m, hold: 1m}}",
            "changes: 99 is above 10",
        ),
        (
            "ports: [80, 443]\nhealthCheck: tcp",
            "spec.healthCheck.port: is required: the service has the ports 80,443",
        ),
        (
            "ports: any\nhealthCheck: {http: {}}",
            "spec.healthCheck.port: is required: the service has the ports any",
        ),
        (
            "protocol: udp\nhealthCheck: {http: {}}",
            "11:3: spec.healthCheck.port: is required: the service is udp, and http",
        ),
        ("healthCheck: {udp: {}}", "spec.healthCheck.port: is required: the service is tcp, and udp"),
        (
            "protocol: sctp\nhealthCheck: tcp",
            "spec.healthCheck.port: is required: the service is sctp, and tcp needs a port that answers tcp",
        ),
        (
            "protocol: sctp\nhealthCheck: {udp: {}}",
            "spec.healthCheck.port: is required: the service is sctp, and udp needs a port that answers udp",
        ),
        ("healthCheck: {agent: {}}", "spec.healthCheck.port: is required: the agent has a port of its own"),
        ("healthCheck: {icmp: {}, port: 1}", "spec.healthCheck.port: icmp uses no port"),
        ("healthCheck: {file: {path: /x}, mark: 1}", "spec.healthCheck.mark: file sends nothing by itself"),
        (
            "healthCheck: {tcp: {}, proxyProtocol: v2}",
            "spec.healthCheck.proxyProtocol: tcp says nothing to the service that a header could stand before",
        ),
        (
            "healthCheck: {http: {}, proxyProtocol: v1}",
            "spec.healthCheck.proxyProtocol: `v1` is not one of v2, none",
        ),
        ("healthCheck: {icmp: {}, path: real}", "spec.healthCheck.path: icmp does not go to the VIP"),
        (
            "healthCheck: {tcp: {}, path: real, mark: 1}",
            "spec.healthCheck.path: the real path leaves no choice",
        ),
        ("forwarding: nat\nhealthCheck: {tcp: {}, path: real}", "path: nat servers do not have the VIP"),
        ("healthCheck: {tcp: {}, source: \"2001:db8::1\"}", "source: 2001:db8::1 cannot send to 10.0.0.11"),
        ("healthCheck: tcp\nhealthChecks: {checks: [tcp]}", "spec.healthChecks: stands beside `healthCheck`"),
        ("healthChecks: {checks: []}", "spec.healthChecks.checks: has no check"),
        (
            "healthChecks: {require: 3, checks: [tcp, icmp]}",
            "spec.healthChecks.require: 3 of 2 checks can never pass",
        ),
        (
            "healthChecks: {checks: [tcp, {icmp: {}, port: 2}]}",
            "11:43: spec.healthChecks.checks[1].port: icmp uses no port",
        ),
        ("panicThreshold: 50", "spec.panicThreshold: there is no health check"),
        ("healthCheck: tcp\npanicThreshold: 100%", "spec.panicThreshold: 100% is not within 1% and 99%"),
        (
            "healthCheck: tcp\nonFailure: quiesce\nonServerDown: reset",
            "spec.onServerDown: has no effect beside",
        ),
        (
            "protocol: udp\npassiveDetection: {}",
            "spec.passiveDetection: watches TCP handshakes, and the service has none",
        ),
        (
            "ports: [80, 81]\npassiveDetection: {}",
            "spec.passiveDetection: has no port to probe a server on: the service has the ports 80,81",
        ),
        ("passiveDetection: {share: 0}", "spec.passiveDetection.share: 0 is below 1"),
        ("passiveDetection: {window: 1s}", "spec.passiveDetection.window: 1s is below 2s"),
        (
            "protocol: udp\nhealthCheck: {udp: {}}\nonServerDown: reset",
            "spec.onServerDown: udp flows always move",
        ),
        (
            "protocol: sctp\nhealthCheck: {tcp: {}, port: 80}\nonServerDown: reschedule",
            "12:17: spec.onServerDown: no other server can take an sctp association over",
        ),
        ("quorum: 3", "spec.quorum: 3 can never be reached: all weights together are 2"),
        ("quorum: {weight: 2, hysteresis: 2}", "spec.quorum.hysteresis: 2 is not below the quorum of 2"),
        ("scheduler: rr\nslowStart: 10s", "spec.slowStart: rr knows no weights"),
        (
            "sorryServer: {address: 10.0.0.11}",
            "spec.sorryServer.address: 10.0.0.11:80 is a real server of this service",
        ),
        ("sorryServer: {address: 10.0.0.99, port: 81}", "spec.sorryServer.port: dr cannot change the port"),
        (
            "forwarding: dr\nsorryServer: {address: 10.0.0.99, forwarding: fullnat}",
            "spec.localAddresses: is required by fullnat",
        ),
        (
            "realServers: [{address: 10.0.0.11, healthCheck: {icmp: {}, port: 1}}]",
            "spec.realServers[0].healthCheck.port",
        ),
        (
            "protocol: udp\nhealthCheck: {udp: {reply: {hex: 00, mask: f}}}",
            "mask: `f` is not hexadecimal digits",
        ),
    ] {
        let said = match load_text("m.yaml", &service(fields)) {
            Ok(_) => "nothing".to_owned(),
            Err(report) => report.to_string(),
        };
        if !said.contains(expected) {
            wrong.push(format!("{fields}\n  expected {expected}\n  said     {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
