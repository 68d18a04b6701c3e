//! Every kind of probe against real programs: nginx, dnsmasq, aiosmtpd, the kernel's own echo. The programs run in
//! one namespace, the agent's monitor in another. What servers can do wrong is in the unit tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_agent::health::monitor::Monitor;
use lb_agent::health::{Assignment, CheckId, Outcome, Weighing};
use lb_agent::model::health::{
    Check, Dns, DnsTransport, DnsType, Http, HttpVersion, Icmp, Probe, Script, Smtp, StatusRange, Target,
    Timing, Tls,
};
use lb_tests::{Authority, Namespace, Nginx, Process, wait};
use rcgen::{CertificateParams, date_time_ymd};

/// Long enough for a machine that is busy compiling.
const LONG: Duration = Duration::from_secs(30);
/// Where the servers are.
const SERVER: &str = "192.168.64.2";
const SERVER_V6: &str = "2001:db8:64::2";

/// The director's namespace and the servers', on one wire.
fn pair() -> (Namespace, Namespace) {
    let (director, servers) = (Namespace::new("director"), Namespace::new("servers"));
    director.ip(&format!("link add eth0 type veth peer name eth0 netns {}", servers.name()));
    director.ip("addr add 192.168.64.1/24 dev eth0\naddr add 2001:db8:64::1/64 dev eth0\nlink set eth0 up");
    servers.ip("addr add 192.168.64.2/24 dev eth0\naddr add 2001:db8:64::2/64 dev eth0\nlink set eth0 up");
    (director, servers)
}

fn check(probe: Probe) -> Check {
    let timing = Timing { interval: LONG, fast_interval: LONG, timeout: LONG, ..Timing::default() };
    Check::direct(probe, timing)
}

fn get(tls: Option<Tls>, host: Option<&str>) -> Http {
    let statuses = vec![StatusRange { first: 200, last: 200 }];
    Http { host: host.map(Into::into), statuses, matches: Some("^web\n$".into()), tls, ..Http::get("/") }
}

/// A check and where it goes; port 0 where it uses none.
type Asked = (&'static str, u16, Check);

/// Has the monitor in `namespace` make each probe once; the outcomes are in the order of the checks.
fn probe(namespace: &Namespace, asked: &[Asked]) -> Vec<Outcome> {
    namespace.run(|| {
        let (monitor, mut reports) = Monitor::start().expect("the monitor starts");
        let assignments: Vec<Assignment> = asked
            .iter()
            .map(|(address, port, check)| {
                let target = Target::Direct { address: address.parse().unwrap(), port: *port };
                Assignment { id: CheckId::of(&target, check), target, check: Arc::new(check.clone()) }
            })
            .collect();
        monitor.set(assignments.clone());
        let mut outcomes = BTreeMap::new();
        let end = Instant::now() + LONG;
        while outcomes.len() < assignments.len() {
            assert!(Instant::now() < end, "{} of {} were reported", outcomes.len(), assignments.len());
            while let Ok(batch) = reports.try_recv() {
                outcomes.extend(batch.into_iter().map(|report| (report.id, report.outcome)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assignments.iter().map(|assignment| outcomes[&assignment.id].clone()).collect()
    })
}

/// Rows of what is asked and the words, or their beginning, of the outcome; those of a success begin with `+`.
#[track_caller]
fn expect(namespace: &Namespace, rows: Vec<(Asked, &str)>) -> Vec<Outcome> {
    let (asked, words): (Vec<Asked>, Vec<&str>) = rows.into_iter().unzip();
    let outcomes = probe(namespace, &asked);
    for ((asked, words), outcome) in asked.iter().zip(words).zip(&outcomes) {
        let (passes, words) = words.strip_prefix('+').map_or((false, words), |words| (true, words));
        let found = outcome.passed == passes && outcome.words.starts_with(words);
        assert!(found, "{} at {}: {} {}", asked.2.probe, asked.0, outcome.passed, outcome.words);
    }
    outcomes
}

#[test]
fn nginx_is_probed_by_http_and_https_and_its_certificates_are_read() {
    let (director, servers) = pair();
    let authority = Authority::new();
    let ca = authority.write(director.directory());
    let directory = servers.directory();
    let good = authority.sign(directory, "good", &["web.example"], |_| {});
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 3);
    };
    let expired = authority.sign(directory, "expired", &["web.example"], expired);
    let secure = [(443, &good), (444, &expired)];
    let mut nginx = Nginx::start_with_tls(&servers, "web", &[80], &secure);
    let http = |http: Http| check(Probe::Http(http));
    let trusting = |host| get(Some(Tls { ca: Some(ca.clone()), ..Tls::default() }), Some(host));
    let insecure = get(Some(Tls { insecure: true, ..Tls::default() }), None);
    let old = Http { version: HttpVersion::Http10, ..get(None, None) };
    let second = Http { version: HttpVersion::Http2, ..trusting("web.example") };
    let other = Http { matches: Some("^api".into()), ..get(None, None) };
    expect(
        &director,
        vec![
            ((SERVER, 80, http(get(None, None))), "+status 200"),
            ((SERVER_V6, 80, http(get(None, None))), "+status 200"),
            ((SERVER, 80, http(old)), "+status 200"),
            ((SERVER, 80, http(other)), "the body, \"web\", does not match ^api"),
            ((SERVER, 80, check(Probe::Tcp)), "+connected"),
            ((SERVER, 443, http(trusting("web.example"))), "+status 200"),
            ((SERVER_V6, 443, http(second)), "+status 200"),
            (
                (SERVER, 443, http(trusting("shop.example"))),
                "certificate: made for web.example, not for shop.example",
            ),
            ((SERVER, 444, http(trusting("web.example"))), "certificate: expired on 2020-02-03 00:00 UTC"),
            ((SERVER, 444, http(insecure)), "+status 200"),
            (
                (SERVER, 443, http(get(Some(Tls::default()), Some("web.example")))),
                "certificate: signed by an authority",
            ),
            ((SERVER, 443, http(get(None, None))), "status 400, expected 200"),
        ],
    );
    nginx.kill();
    expect(
        &director,
        vec![
            ((SERVER, 80, check(Probe::Tcp)), "connect to 192.168.64.2:80: connection refused"),
            (
                (SERVER_V6, 443, http(trusting("web.example"))),
                "connect to [2001:db8:64::2]:443: connection refused",
            ),
        ],
    );
}

/// Starts dnsmasq for web.example alone, on port 53 of every address.
fn dnsmasq(namespace: &Namespace) -> Process {
    let mut command = namespace.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
    ]);
    command.args(["--pid-file=", "--port=53", "--local=/example/", "--address=/web.example/10.9.8.7"]);
    namespace.spawn("dnsmasq", command)
}

/// Starts an SMTP server that offers STARTTLS.
fn smtp_server(namespace: &Namespace, authority: &Authority) -> Process {
    let identity = authority.sign(namespace.directory(), "mail", &["mail.example"], |_| {});
    let mut command = namespace.command("aiosmtpd");
    command.args(["--nosetuid", "--listen", "0.0.0.0:25", "--no-requiretls", "--tlscert"]);
    command.arg(&identity.certificate).arg("--tlskey").arg(&identity.key);
    namespace.spawn("aiosmtpd", command)
}

#[test]
fn dnsmasq_an_smtp_server_and_the_kernels_echo_are_probed() {
    let (director, servers) = pair();
    let authority = Authority::new();
    let ca = authority.write(director.directory());
    let mut running = [dnsmasq(&servers), smtp_server(&servers, &authority)];
    for port in [53, 25] {
        wait::until(&format!("a server accepts on port {port}"), LONG, || {
            running.iter_mut().for_each(Process::assert_running);
            let address: IpAddr = SERVER.parse().unwrap();
            director.run(|| std::net::TcpStream::connect((address, port)).is_ok())
        });
    }
    let dns =
        |name: &str, transport| check(Probe::Dns(Dns { name: name.into(), record: DnsType::A, transport }));
    let smtp = |tls: Option<&str>| {
        let tls =
            tls.map(|name| Tls { server_name: Some(name.into()), ca: Some(ca.clone()), insecure: false });
        check(Probe::Smtp(Smtp { helo: None, starttls: tls }))
    };
    let ping = |size| check(Probe::Icmp(Icmp { size }));
    let from = |source: &str| Check { source: Some(source.parse().unwrap()), ..ping(56) };
    let by = |interface: &str| Check { interface: Some(interface.into()), ..check(Probe::Tcp) };
    let marked = Check { mark: Some(7), ..check(Probe::Tcp) };
    // What is marked goes nowhere.
    director.ip("rule add fwmark 7 prohibit");
    let impatient = |mut check: Check| {
        check.timing.timeout = Duration::from_millis(500);
        check
    };
    expect(
        &director,
        vec![
            ((SERVER, 53, dns("web.example", DnsTransport::Udp)), "+NOERROR, 1 answers"),
            ((SERVER, 53, dns("web.example.", DnsTransport::Tcp)), "+NOERROR, 1 answers"),
            ((SERVER_V6, 53, dns("web.example", DnsTransport::Udp)), "+NOERROR, 1 answers"),
            (
                (SERVER, 53, dns("other.example", DnsTransport::Udp)),
                "ask for A other.example: the server answers NXDOMAIN",
            ),
            (
                (SERVER, 54, dns("web.example", DnsTransport::Udp)),
                "ask for A web.example: connection refused",
            ),
            ((SERVER, 25, smtp(None)), "+220 "),
            ((SERVER, 25, smtp(Some("mail.example"))), "+220 "),
            (
                (SERVER, 25, smtp(Some("web.example"))),
                "certificate: made for mail.example, not for web.example",
            ),
            ((SERVER, 53, impatient(smtp(None))), "the banner: no answer within 500 ms"),
            ((SERVER, 0, ping(0)), "+answered"),
            ((SERVER, 0, ping(1400)), "+answered"),
            // Longer than a frame: fragments.
            ((SERVER, 0, ping(4000)), "+answered"),
            ((SERVER_V6, 0, ping(56)), "+answered"),
            ((SERVER_V6, 0, ping(4000)), "+answered"),
            ((SERVER, 0, from("192.168.64.1")), "+answered"),
            (("192.168.64.99", 0, impatient(ping(56))), "ping 192.168.64.99: no answer within 500 ms"),
            (("203.0.113.1", 0, ping(0)), "ping 203.0.113.1: network is unreachable"),
            ((SERVER, 53, by("eth0")), "+connected"),
            ((SERVER, 53, impatient(by("lo"))), "connect to 192.168.64.2:53: no answer within 500 ms"),
            ((SERVER, 53, by("eth9")), "bind to interface eth9: no such device"),
            ((SERVER, 53, marked), "connect to 192.168.64.2:53: permission denied"),
        ],
    );
}

#[test]
fn a_script_runs_as_the_user_it_is_to_run_as() {
    let director = Namespace::new("director");
    let script = |user: Option<&str>| Script {
        command: PathBuf::from("/bin/sh"),
        arguments: vec!["-c".into(), "echo $(id -un):$(id -Gn):$HOME; exit 12".into()],
        user: user.map(Into::into),
        dynamic: true,
    };
    let nobody = director.output("id", &["-Gn", "nobody"]);
    let words = format!("+exit code 12, weight 10: \"nobody:{}:/nonexistent\"", nobody.trim());
    let outcomes = expect(
        &director,
        vec![
            ((SERVER, 0, check(Probe::Script(script(None)))), "+exit code 12, weight 10: \"root:"),
            ((SERVER, 0, check(Probe::Script(script(Some("nobody"))))), &words),
        ],
    );
    assert_eq!(outcomes[0].weight, Some(Weighing::Absolute(10)));
}
