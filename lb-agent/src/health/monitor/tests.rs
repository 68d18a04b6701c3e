//! The monitor on loopback: real sockets and threads, and time bounds that a loaded machine keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::health::Outcome;
use crate::model::health::{Check, Http, Probe, Target, Timing};

const LONG: Duration = Duration::from_secs(30);

pub fn check(probe: Probe, interval: Duration) -> Check {
    let timing = Timing { interval, fast_interval: interval, timeout: interval, ..Timing::default() };
    Check::direct(probe, timing)
}

fn assignment(server: SocketAddr, check: &Check) -> Assignment {
    let target = Target::Direct { address: server.ip(), port: server.port() };
    Assignment { id: CheckId::of(&target, check), target, check: Arc::new(check.clone()) }
}

pub fn http() -> Probe {
    Probe::Http(Http::get("/"))
}

/// A listener that nobody accepts from: its kernel does.
fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Takes reports until `done` says so.
fn until(reports: &mut mpsc::Receiver<Vec<Report>>, mut done: impl FnMut(&Report) -> bool) {
    let end = Instant::now() + LONG;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        while Instant::now() < end {
            let batch = tokio::time::timeout(LONG, reports.recv()).await.expect("reports come");
            if batch.expect("the monitor lives").iter().any(&mut done) {
                return;
            }
        }
        panic!("it did not come about");
    });
}

#[test]
fn outcomes_of_open_and_closed_ports_are_told_in_words() {
    let (_open, up) = listening();
    let (closed, down) = listening();
    drop(closed);
    let (monitor, mut reports) = Monitor::start().unwrap();
    let check = check(Probe::Tcp, Duration::from_millis(100));
    let (up, refused) = (assignment(up, &check), assignment(down, &check));
    monitor.set(vec![up.clone(), refused.clone()]);
    let mut seen: BTreeMap<CheckId, Outcome> = BTreeMap::new();
    until(&mut reports, |report| {
        assert!(report.next > report.at);
        seen.insert(report.id, report.outcome.clone());
        seen.len() == 2
    });
    assert_eq!((seen[&up.id].passed, &*seen[&up.id].words), (true, "connected"));
    assert!(seen[&up.id].latency.unwrap() < Duration::from_secs(1));
    let words = format!("connect to {down}: connection refused");
    assert_eq!((seen[&refused.id].passed, &*seen[&refused.id].words), (false, words.as_str()));
    let load = monitor.load();
    assert_eq!((load.checks(), load.stretch(), load.late().count()), (2, 1.0, 0));
}

#[test]
fn a_check_goes_on_every_interval_and_ends_when_it_is_taken_away() {
    let (_open, address) = listening();
    let (monitor, mut reports) = Monitor::start().unwrap();
    let assignment = assignment(address, &check(Probe::Tcp, Duration::from_millis(50)));
    monitor.set(vec![assignment.clone()]);
    let mut times = Vec::new();
    until(&mut reports, |report| {
        times.push(report.at);
        times.len() == 20
    });
    // Setting the same again is no reason to probe earlier or twice.
    monitor.set(vec![assignment.clone(), assignment]);
    let mut more = 0;
    until(&mut reports, |_| {
        more += 1;
        more == 10
    });
    let all = times.last().unwrap().duration_since(times[1]);
    assert!(all >= Duration::from_millis(17 * 50), "18 intervals took {all:?}");
    monitor.set(Vec::new());
    while monitor.load().checks() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    while reports.try_recv().is_ok() {}
    std::thread::sleep(Duration::from_millis(300));
    assert!(reports.try_recv().is_err(), "a check that was taken away was reported");
}

#[test]
fn targets_that_hang_delay_no_other() {
    let accepted = Arc::new(AtomicUsize::new(0));
    // Accepts, and never says a word.
    let (hanging, hangs) = listening();
    let count = accepted.clone();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hanging.accept() {
            held.push(stream);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (_open, up) = listening();
    let (monitor, mut reports) = Monitor::start().unwrap();
    let mut slow = check(http(), Duration::from_secs(20));
    let mut assignments = Vec::new();
    for path in 0..100 {
        if let Probe::Http(http) = &mut slow.probe {
            http.path = format!("/{path}");
        }
        assignments.push(assignment(hangs, &slow));
    }
    let quick = assignment(up, &check(Probe::Tcp, Duration::from_millis(50)));
    assignments.push(quick.clone());
    monitor.set(assignments);
    let mut passed = 0;
    let began = Instant::now();
    until(&mut reports, |report| {
        assert!(report.id == quick.id && report.outcome.passed, "{}", report.outcome.words);
        passed += 1;
        passed >= 20 && accepted.load(Ordering::Relaxed) == 100
    });
    assert!(began.elapsed() < Duration::from_secs(19), "the hanging targets were waited for");
    // Ending does not wait for them either.
    let began = Instant::now();
    drop(monitor);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_target_that_swallows_packets_fails_by_the_timeout() {
    // A backlog that is full drops SYNs.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let full = Mutex::new(Vec::new());
    for _ in 0..8 {
        if let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            full.lock().unwrap().push(stream);
        }
    }
    let (monitor, mut reports) = Monitor::start().unwrap();
    monitor.set(vec![assignment(address, &check(Probe::Tcp, Duration::from_millis(400)))]);
    until(&mut reports, |report| {
        let words = format!("connect to {address}: no answer within 400 ms");
        assert_eq!((report.outcome.passed, &*report.outcome.words), (false, words.as_str()));
        true
    });
}

#[test]
fn the_pace_decides_between_the_intervals() {
    let (_open, address) = listening();
    let (monitor, mut reports) = Monitor::start().unwrap();
    let mut check = check(Probe::Tcp, Duration::from_secs(3600));
    check.timing.fast_interval = Duration::from_millis(50);
    let assignment = assignment(address, &check);
    monitor.set(vec![assignment.clone()]);
    let mut count = 0;
    until(&mut reports, |_| {
        count += 1;
        count == 5
    });
    monitor.pace(assignment.id, Pace::Normal);
    std::thread::sleep(Duration::from_millis(300));
    while reports.try_recv().is_ok() {}
    std::thread::sleep(Duration::from_millis(300));
    assert!(reports.try_recv().is_err(), "the slow interval is an hour");
    monitor.pace(assignment.id, Pace::Fast);
    until(&mut reports, |_| true);
    monitor.pace(assignment.id, Pace::Normal);
    std::thread::sleep(Duration::from_millis(300));
    while reports.try_recv().is_ok() {}
    monitor.probe_now(assignment.id);
    until(&mut reports, |_| true);
}

#[test]
fn a_thousand_targets_are_all_probed_and_none_twice_at_a_time() {
    let open = TcpListener::bind("0.0.0.0:0").unwrap();
    let address = open.local_addr().unwrap();
    let (monitor, mut reports) = Monitor::start().unwrap();
    let mut check = check(Probe::Tcp, Duration::from_secs(1));
    // A loaded machine may need longer than the interval.
    check.timing.timeout = LONG;
    let target = |number: u32| {
        let number = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + number);
        SocketAddr::new(IpAddr::V4(number), address.port())
    };
    monitor.set((0..1000).map(|number| assignment(target(number), &check)).collect());
    let mut seen = BTreeSet::new();
    until(&mut reports, |report| {
        assert!(report.outcome.passed, "{}", report.outcome.words);
        seen.insert(report.id);
        seen.len() == 1000
    });
}

#[test]
fn what_cannot_be_made_in_time_is_told_by_kind() {
    let well = LaneLoad { checks: 500, running: 0, stretch: 1.04 };
    let mut load = Load { lanes: [well; LANES], probes: 0, crowd: None };
    assert_eq!(load.late().count(), 0);
    load.lanes[Lane::Tls as usize] = LaneLoad { checks: 10_000, running: 16, stretch: 3.25 };
    let said: Vec<String> = load.late().collect();
    let sentence =
        "10000 checks with TLS are more than can be made in time: their intervals are 3.2 times as long";
    assert_eq!(said, [sentence]);
    assert_eq!((load.checks(), load.stretch()), (11_500, 3.25));
    let group = ports::Group { vip: "2001:db8::1".parse().unwrap(), port: 53, udp: true };
    load.crowd = Some(ports::Crowd { group, checks: 1600, stretch: 4.0 });
    let sentence = "1600 checks of [2001:db8::1]:53 on the real path are more than there are ports for: their \
                    intervals are 4.0 times as long";
    assert_eq!((load.late().last().as_deref(), load.stretch()), (Some(sentence), 4.0));
}
