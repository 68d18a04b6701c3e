use proptest::prelude::*;

use super::super::{load_text, to_yaml};
use super::*;
use crate::model::Object;

/// Anything that a service could ask for if its scheduler, protocol and forwarding method let it.
#[derive(Debug, Clone)]
pub struct Wish(Scheduling);

impl Wish {
    /// Without what these do not allow.
    pub fn of(self, scheduler: Scheduler, protocol: Protocol, forwarding: Forwarding) -> Scheduling {
        let mut wish = self.0;
        if !scheduler.hashes() {
            wish.fallback = false;
        }
        if !scheduler.hashes() || wish.ipvs_compatible {
            wish.hash_prefix = HashPrefix::default();
        }
        if let Some(persistence) = wish.persistence.as_mut().filter(|_| protocol != Protocol::Udp) {
            persistence.engine = PersistenceEngine::Address;
        }
        // A real server may override the method.
        let _ = forwarding;
        wish
    }
}

prop_compose! {
    fn persistences()(
        seconds in 1u64..7200, prefix_v4 in 1u8..=32, prefix_v6 in 1u8..=128, sip: bool, keep_when_quiesced: bool,
    ) -> Persistence {
        let engine = if sip { PersistenceEngine::Sip } else { PersistenceEngine::Address };
        Persistence { timeout: Duration::from_secs(seconds), prefix_v4, prefix_v6, engine, keep_when_quiesced }
    }
}

prop_compose! {
    pub fn schedulings()(
        ipvs_compatible: bool,
        fallback: bool,
        (v4, v6) in (1u8..=32, 1u8..=128),
        persistence in prop::option::of(persistences()),
        rate in prop::option::of(1..=RATE_MAX),
        allow in prop::collection::btree_set(0u8..8, 0..3),
        deny in prop::collection::btree_set(8u8..16, 0..3),
        files in (prop::option::of("/[a-z]{1,9}"), prop::option::of("/[a-z ]{1,9}x")),
        when_no_server in prop::sample::select(WHEN_NO_SERVER.map(|(_, what)| what).to_vec()),
        drain in prop::option::of((0u64..86_400, any::<bool>())),
        syn_cookies in prop::sample::select(vec![SynCookies::Auto, SynCookies::Off]),
    ) -> Wish {
        let nets = |set: std::collections::BTreeSet<u8>| {
            set.into_iter().map(|third| format!("192.0.{third}.0/24").parse().unwrap()).collect()
        };
        let drain = drain.map_or(DrainPolicy::default(), |(seconds, keep)| DrainPolicy {
            deadline: Some(Duration::from_secs(seconds)),
            on_deadline: if keep { OnDeadline::Keep } else { OnDeadline::Reset },
        });
        Wish(Scheduling {
            ipvs_compatible, fallback, hash_prefix: HashPrefix { v4, v6 }, persistence, one_packet: false, quic: None,
            new_connections_per_second: rate, sources: Sources {
                allow: nets(allow), deny: nets(deny),
                allow_file: files.0.map(PathBuf::from), deny_file: files.1.map(PathBuf::from),
            },
            when_no_server, drain, proxy_protocol: false, toa: false, syn_cookies,
        })
    }
}

/// A udp service by tun with one more field, or one instead of another.
fn service(fields: &str) -> Result<VirtualService, String> {
    let mut lines: Vec<&str> = vec![
        "address: 203.0.113.10",
        "ports: [80]",
        "protocol: udp",
        "forwarding: tun",
        "scheduler: mh",
        "realServers: [{address: 10.0.0.11}, {address: 10.0.0.12}]",
    ];
    let key = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    lines.retain(|line| fields.lines().all(|field| key(field) != key(line)));
    if fields.starts_with("endpoints") {
        lines.retain(|line| !["address", "ports", "protocol"].contains(&key(line).as_str()));
    }
    let spec: String = lines.into_iter().chain(fields.lines()).map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {name}\nspec:\n{spec}",
        name = "{name: web}"
    );
    match load_text("m.yaml", &text) {
        Ok(objects) => {
            let (service, _) = objects.services().next().unwrap();
            // What was understood reads back the same.
            let again = load_text("m.yaml", &to_yaml(&Object::VirtualService(service.clone()))).unwrap();
            assert_eq!(again.services().next().unwrap().0, service);
            Ok(service.clone())
        }
        Err(report) => Err(report.to_string()),
    }
}

#[test]
fn what_is_not_asked_for_is_not_there() {
    assert_eq!(*service("").unwrap().scheduling, Scheduling::default());
    assert_eq!(service("").unwrap().real_servers[0].limits, ServerLimits::default());
}

#[test]
fn every_field_is_understood() {
    let full = "schedulerFlags: [fallback, port]\nhash: {prefix4: 24, prefix6: 56}\nlimits: {newConnectionsPerSecond: 500}\n\
         persistence: {timeout: 2m, prefix: 24, prefix6: 64, engine: sip, keepWhenQuiesced: true}\n\
         quic: {serverIdOffset: 2, serverIdLength: 2}\nsources: {allow: [192.0.2.0/24], deny: [192.0.2.7, 2001:db8::/32], denyFile: /etc/lb/deny.txt}\n\
         whenNoServer: unreachable\ndrain: {deadline: 10m, onDeadline: keep}\nonePacket: true\n\
         realServers: [{address: 10.0.0.11, serverId: \"00ff\", packetsPerSecond: 9, connections: {max: 8, resume: 5}}]";
    let service = service(full).unwrap();
    let Scheduling { persistence, quic, sources, drain, .. } = *service.scheduling.clone();
    assert_eq!(service.hash, FlowHash::AddressPort);
    assert!(service.scheduling.fallback && service.scheduling.one_packet);
    assert_eq!(service.scheduling.hash_prefix, HashPrefix { v4: 24, v6: 56 });
    assert_eq!(service.scheduling.new_connections_per_second, Some(500));
    let persistence = persistence.unwrap();
    assert_eq!((persistence.timeout.as_secs(), persistence.prefix_v4, persistence.prefix_v6), (120, 24, 64));
    assert!(persistence.engine == PersistenceEngine::Sip && persistence.keep_when_quiesced);
    assert_eq!(quic, Some(Quic { server_id_offset: 2, server_id_length: 2 }));
    assert_eq!((sources.allow.len(), sources.deny.len()), (1, 2));
    assert_eq!((sources.allow_file, sources.deny_file), (None, Some("/etc/lb/deny.txt".into())));
    assert_eq!(service.scheduling.when_no_server, WhenNoServer::Unreachable);
    assert_eq!((drain.deadline, drain.on_deadline), (Some(Duration::from_secs(600)), OnDeadline::Keep));
    let limits = &service.real_servers[0].limits;
    assert_eq!(limits.server_id.as_ref().unwrap().bytes(), [0, 255]);
    assert_eq!(limits.packets_per_second, Some(9));
    assert_eq!(limits.connections, Some(Thresholds { max: 8, resume: Some(5) }));
}

#[test]
fn ipvs_compatible_services_have_the_defaults_of_ipvs() {
    let service = service("ipvsCompatible: true\npersistence: {}").unwrap();
    assert_eq!(service.scheduling.when_no_server, WhenNoServer::Unreachable);
    let persistence = service.scheduling.persistence.unwrap();
    assert!(persistence.keep_when_quiesced);
    assert_eq!(persistence.timeout, Duration::from_secs(300));
}

#[test]
fn endpoints_share_a_service() {
    let service = service(
        "endpoints: [{address: 203.0.113.10, ports: [80], protocol: tcp}, {address: 203.0.113.10, ports: [443], protocol: udp}, \
         {address: 203.0.113.11, ports: any, protocol: tcp}]\ntimeouts: {udp: 1m, established: 2m}",
    )
    .unwrap();
    assert_eq!(service.endpoints.len(), 2);
    let names: Vec<String> = service.table_names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["web", "web/udp-203.0.113.10", "web/tcp-203.0.113.11"]);
    let singles = service.singles();
    assert_eq!((singles[1].protocol, singles[1].ports.to_string()), (Protocol::Udp, "443".into()));
    assert!(singles.iter().all(|single| single.is_single() && single.real_servers.len() == 2));
}

#[test]
fn a_service_with_a_proxy_header_never_adopts() {
    let service = service("protocol: tcp\nforwarding: nat\nproxyProtocol: v2").unwrap();
    assert!(service.scheduling.proxy_protocol);
    assert_eq!(service.on_unknown_flow, crate::model::OnUnknownFlow::Reset, "mh adopts otherwise");
}

#[test]
fn a_service_with_toa_may_adopt() {
    let text = |toa: &str| {
        format!(
            "apiVersion: lb/v1\nkind: LocalAddressPool\nmetadata: {{name: pool-a}}\nspec: {{addresses: [10.0.0.200]}}\n---\n\
             apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec: {{address: 203.0.113.10, ports: [80], \
             protocol: tcp, forwarding: fullnat, localAddresses: pool-a, scheduler: mh, toa: {toa}, \
             realServers: [{{address: 10.0.0.11}}]}}\n"
        )
    };
    let of = |toa| load_text("m.yaml", &text(toa)).unwrap().services().next().unwrap().0.clone();
    let told = of("true");
    assert!(told.scheduling.toa && !of("false").scheduling.toa);
    assert_eq!(told.on_unknown_flow, crate::model::OnUnknownFlow::Adopt, "nothing is shifted");
    assert!(to_yaml(&Object::VirtualService(told)).contains("toa: true"));
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (fields, said) in [
        ("toa: true", "spec.toa: only tcp has options"),
        ("protocol: tcp\ntoa: true", "spec.toa: with tun the server sees the client's address by itself"),
        (
            "protocol: tcp\nforwarding: nat\ntoa: true",
            "spec.toa: with nat the server sees the client's address by itself: only fullnat hides it",
        ),
        (
            "protocol: tcp\nforwarding: fullnat\nlocalAddresses: pool-a\ntoa: true\nproxyProtocol: v2",
            "spec.toa: proxyProtocol tells the server the same: one of the two is enough",
        ),
        ("protocol: tcp\nforwarding: fullnat\ntoa: yes please", "spec.toa: "),
        ("proxyProtocol: v2", "spec.proxyProtocol: only tcp has a stream that a header can stand before"),
        ("protocol: tcp\nproxyProtocol: v2", "spec.proxyProtocol: tun leaves the stream as it is"),
        ("protocol: tcp\nforwarding: nat\nproxyProtocol: v1", "spec.proxyProtocol: `v1` is not one of v2"),
        (
            "protocol: tcp\nforwarding: nat\nproxyProtocol: v2\nonUnknownFlow: adopt",
            "spec.onUnknownFlow: a connection that began with a PROXY header cannot be adopted",
        ),
        ("application: ftp", "spec.application: ftp speaks tcp only"),
        ("protocol: tcp\nforwarding: nat\napplication: smtp", "spec.application: `smtp` is not one of ftp"),
        (
            "protocol: tcp\nforwarding: dr\napplication: ftp",
            "spec.application: under dr the replies of ftp do not pass",
        ),
        (
            "protocol: tcp\nforwarding: nat\nports: any\napplication: ftp",
            "spec.application: ftp wants exactly one port at each address",
        ),
        (
            "protocol: tcp\nforwarding: nat\nports: [21]\napplication: ftp\n\
             realServers: [{address: 10.0.0.1}, {address: 10.0.0.2, port: 2121}]",
            "spec.realServers[1].port: ftp keeps the ports",
        ),
        (
            "protocol: tcp\nforwarding: nat\napplication: ftp\nproxyProtocol: v2",
            "spec.application: ftp is not read behind a PROXY header",
        ),
        ("scheduler: wlcc", "spec.scheduler: `wlcc` is not one of rr, wrr, lc, wlc"),
        (
            "schedulerFlags: [falback]",
            "spec.schedulerFlags[0]: `falback` is not one of fallback, port\n  help: did you",
        ),
        ("scheduler: wlc\nschedulerFlags: [port]", "spec.schedulerFlags[0]: wlc has no flag `port`"),
        ("schedulerFlags: [port, port]", "spec.schedulerFlags[1]: `port` is listed twice"),
        ("scheduler: wlc\nhash: address", "spec.hash: only sh and mh hash"),
        ("hash: {on: port}", "spec.hash.on: `port` is not one of address, address-port"),
        ("hash: {prefix4: 33}", "spec.hash.prefix4: 33 is above 32"),
        ("ipvsCompatible: true\nhash: {prefix4: 24}", "spec.hash: ipvsCompatible hashes whole addresses"),
        ("persistence: {timeout: 0s}", "spec.persistence.timeout: 0s is below 1s"),
        ("protocol: tcp\npersistence: {engine: sip}", "spec.persistence.engine: sip is read from udp alone"),
        ("protocol: tcp\nonePacket: true", "spec.onePacket: only udp can be scheduled packet by packet"),
        (
            "forwarding: nat\nonePacket: true",
            "spec.onePacket: nat needs a connection to translate the replies",
        ),
        ("protocol: sctp\nonePacket: true", "spec.onePacket: only udp can be scheduled packet by packet"),
        ("protocol: sctp\npersistence: {engine: sip}", "spec.persistence.engine: sip is read from udp alone"),
        ("protocol: tcp\nquic: {serverIdLength: 1}", "spec.quic: only udp carries QUIC"),
        ("quic: {serverIdOffset: 1}", "spec.quic.serverIdLength: is required"),
        (
            "quic: {serverIdLength: 8, serverIdOffset: 13}",
            "spec.quic: a server id of 8 bytes at 13 is not inside",
        ),
        ("quic: {serverIdLength: 1}", "spec.realServers[0].serverId: is required by quic"),
        (
            "quic: {serverIdLength: 1}\nrealServers: [{address: 10.0.0.1, serverId: \"0a\"}, {address: 10.0.0.2, serverId: \"0A\"}]",
            "spec.realServers[1].serverId: 0a is the server id of spec.realServers[0] too",
        ),
        (
            "quic: {serverIdLength: 2}\nrealServers: [{address: 10.0.0.1, serverId: \"0a\"}]",
            "spec.realServers[0].serverId: 0a has 1 bytes, quic.serverIdLength is 2",
        ),
        (
            "realServers: [{address: 10.0.0.1, serverId: \"0a\"}]",
            "spec.realServers[0].serverId: the service reads no server ids",
        ),
        (
            "realServers: [{address: 10.0.0.1, serverId: abc}]",
            "spec.realServers[0].serverId: `abc` is not a server id",
        ),
        (
            "realServers: [{address: 10.0.0.1, connections: {max: 5, resume: 6}}]",
            "m.yaml:10:67: spec.realServers[0].connections.resume: 6 is above max, which is 5",
        ),
        (
            "realServers: [{address: 10.0.0.1, connections: {resume: 6}}]",
            "spec.realServers[0].connections.max: is required",
        ),
        ("limits: {newConnectionsPerSecond: 0}", "spec.limits.newConnectionsPerSecond: 0 is below 1"),
        (
            "sources: {deny: [192.0.2.1/24]}",
            "spec.sources.deny[0]: 192.0.2.1/24 is not the beginning of a prefix",
        ),
        (
            "sources: {allow: [10.0.0.0/8], deny: [10.0.0.0/8]}",
            "spec.sources.deny[0]: 10.0.0.0/8 is allowed too",
        ),
        ("whenNoServer: ignore", "spec.whenNoServer: `ignore` is not one of reset, unreachable, drop"),
        ("drain: {onDeadline: keep}", "spec.drain.deadline: is required by onDeadline"),
        ("endpoints: []", "spec.endpoints: has no endpoint"),
        (
            "endpoints: [{address: 203.0.113.10, ports: [80], protocol: tcp}, {address: 203.0.113.10, ports: [443], protocol: tcp}]",
            "spec.endpoints[1]: has the address and protocol of spec.endpoints[0]",
        ),
        (
            "endpoints: [{address: 203.0.113.10, ports: [80], protocol: udp}, {address: 2001:db8::1, ports: [80], protocol: udp}]\n\
             forwarding: dr",
            "spec.realServers[0].address: 10.0.0.11 is an IPv4 address behind an IPv6 one",
        ),
    ] {
        let report = service(fields).unwrap_err();
        assert!(report.contains(said), "{fields}\n{report}");
        assert!(report.starts_with("m.yaml:"), "{report}");
    }
}

#[test]
fn ports_of_endpoints_belong_to_one_service() {
    let of = |name: &str, place: &str| {
        format!(
            "---\napiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{{place}, forwarding: dr, scheduler: rr}}\n"
        )
    };
    let text = of("a", "address: 203.0.113.11, ports: [53], protocol: udp")
        + &of(
            "b",
            "endpoints: [{address: 203.0.113.10, ports: [53], protocol: udp}, {address: 203.0.113.11, ports: [53], protocol: udp}]",
        );
    let report = load_text("m.yaml", &text).unwrap_err().to_string();
    assert!(
        report.contains(
            "spec.endpoints[1].ports: port 53 of 203.0.113.11 already belongs to VirtualService `a`"
        ),
        "{report}"
    );
}
