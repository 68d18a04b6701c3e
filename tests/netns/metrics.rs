//! Metrics as a scraper sees them: curl on the control socket and over TCP.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_tests::{Agent, Topology, http, wait};

use crate::site::{Service, director_with, nginx_everywhere, shares, until_all_in};

/// On a machine that is busy compiling.
const PATIENCE: Duration = Duration::from_secs(30);

/// The samples of a text, by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "no whole OpenMetrics text:\n{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    };
    lines.map(sample).collect()
}

/// What `GET /metrics` on the control socket says.
fn on_the_socket(agent: &Agent) -> String {
    let socket = agent.socket();
    let arguments =
        ["-sS", "-i", "--fail", "--unix-socket", socket.to_str().unwrap(), "http://localhost/metrics"];
    let text = String::from_utf8(std::process::Command::new("curl").args(arguments).output().unwrap().stdout)
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer:\n{text}"));
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.to_lowercase().contains(kind), "{head}");
    body.to_owned()
}

#[test]
fn a_scraper_sees_frames_servers_checks_and_roles_and_follows_the_director_to_another_port() {
    let topology = Topology::builder().servers(2).build();
    let _nginx = nginx_everywhere(&topology, &[80]);
    topology.replies_through_director();
    let (host, client) = (topology.director(), topology.client());
    let listen = |port: u16| format!("  metrics: {{listen: \"{}:{port}\"}}\n", host.v4());
    let mut agent = Agent::start(&host.namespace, &director_with(&["eth0"], &listen(9105)));
    let vip = topology.vip_v4(0);
    let mut web = Service::tcp("web", vip.into(), 80, "nat").servers(&topology.servers);
    web.servers.iter_mut().for_each(|server| server.1 = None);
    let vrrp = format!(
        "---\napiVersion: lb/v1\nkind: VrrpInstance\nmetadata: {{name: edge}}\n\
         spec: {{interface: eth0, virtualRouterId: 51, advertisementInterval: 100ms, addresses: [{vip}/24]}}\n"
    );
    // The instance puts the VIP on the interface.
    let service =
        web.with("healthCheck: {tcp: {}, interval: 1s}").yaml().replace("  addressInterface: eth0\n", "");
    agent.apply(&(service + &vrrp));
    until_all_in(&agent);
    let web = Service::tcp("web", vip.into(), 80, "nat");
    wait::until("the VIP is served", PATIENCE, || http::get(&client.namespace, &web.url("/")).is_ok());
    assert_eq!(shares(&client.namespace, &web.url("/"), 20).len(), 2, "both servers answer");

    // The connections table is looked through once a second.
    let url = format!("http://{}:9105/metrics", host.v4());
    let scrape = |url: &str| {
        let answer = http::get(&client.namespace, url).ok()?;
        assert_eq!(answer.status, 200, "{url}");
        Some(String::from_utf8(answer.body).expect("metrics are text"))
    };
    let in_to = |server: &lb_tests::Host| {
        format!(
            "lb_real_server_packets_total{{service=\"web\",real_server=\"{}:80\",direction=\"in\"}}",
            server.v4()
        )
    };
    let mut wanted: Vec<(String, f64)> = topology.servers.iter().map(|server| (in_to(server), 5.0)).collect();
    wanted.extend(
        [
            ("lb_vrrp_role{vrrp_instance=\"edge\",role=\"master\"}", 1.0),
            ("lb_vrrp_adverts_sent_total{vrrp_instance=\"edge\"}", 1.0),
            ("lb_vrrp_timer_lag_seconds_count", 1.0),
            ("lb_service_real_servers_in{service=\"web\"}", 2.0),
            ("lb_check_results_total{result=\"passed\"}", 2.0),
            ("lb_sweeps_total", 1.0),
            ("lb_connection_table_capacity", 65536.0),
        ]
        .map(|(name, least)| (name.to_owned(), least)),
    );
    let mut told = BTreeMap::new();
    let mut missing = Vec::new();
    let all = wait::holds_within(PATIENCE, || {
        told = scrape(&url).map(|text| samples(&text)).unwrap_or_default();
        let is_less = |(name, least): &&(String, f64)| told.get(name).is_none_or(|value| value < least);
        missing = wanted.iter().filter(is_less).map(|(name, _)| name).collect();
        missing.is_empty()
    });
    assert!(all, "{missing:#?} is not told, or is less than it must be, in {told:#?}\n{}", agent.log());
    assert_eq!(told["lb_problems"], 0.0, "{told:#?}");
    let not_ours = "lb_frames_total{reason=\"not_ours\",class=\"pass\"}";
    assert!(told.contains_key(not_ours), "no {not_ours} in {told:#?}");
    // The socket tells the same families, and the TCP port nothing else.
    let on_the_socket = samples(&on_the_socket(&agent));
    let missing: Vec<_> = told.keys().filter(|name| !on_the_socket.contains_key(*name)).collect();
    assert!(missing.is_empty(), "the socket does not tell {missing:?}");
    let other = http::get(&client.namespace, &format!("http://{}:9105/v1/status", host.v4()));
    assert_eq!(other.expect("an answer").status, 404, "the API is open to everybody");

    // Another port, while it runs: the configuration file is read again.
    agent.configure(&director_with(&["eth0"], &listen(9106)));
    agent.process().signal(nix::sys::signal::Signal::SIGHUP);
    let moved = format!("http://{}:9106/metrics", host.v4());
    wait::until("the other port answers", PATIENCE, || scrape(&moved).is_some());
    wait::until("the first does not", PATIENCE, || scrape(&url).is_none());
}
