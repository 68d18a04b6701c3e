//! VRRP without load balancing: the classic pairs. The manifests are those of `deploy/examples`.

use std::net::IpAddr;

use lb_tests::mariadb::{self, MariaDb};
use lb_tests::{Agent, Host, Nginx, http, wait};

use super::{TAKEOVER, example, instance, kinds, owns, two_directors, until_only, until_role};

/// Two nginx proxies share a VIP: nginx dies on the master, and the VIP moves; it comes back, and so does the VIP.
#[test]
fn two_nginx_share_a_vip() {
    let topology = two_directors();
    let vip = IpAddr::from(topology.vip_v4(0));
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    // What the example's script does, in this director's namespace.
    let check =
        |host: &Host| script(host, "check", "exec curl -sfo /dev/null --max-time 1 http://127.0.0.1/");
    let start = |host: &Host, priority: &str| {
        example(
            "nginx-pair/a.yaml",
            &[
                ("203.0.113.10/24", &format!("{vip}/24")),
                ("priority: 150", priority),
                ("/usr/local/bin/check-nginx", &check(host)),
            ],
        )
    };
    let mut nginx_a = Nginx::start(&a.namespace, "a", &[80]);
    let _nginx_b = Nginx::start(&b.namespace, "b", &[80]);
    let first = Agent::start(&a.namespace, &start(a, "priority: 150"));
    let second = Agent::start(&b.namespace, &start(b, "priority: 100"));
    until_role(&first, "web", "master");
    until_only(a, b, vip, || second.log());
    let url = http::url((vip, 80).into(), "/");
    let served = |by: &str| {
        wait::until(&format!("nginx {by} answers at the VIP"), TAKEOVER, || {
            http::get(&topology.client().namespace, &url).is_ok_and(|answer| answer.server == by)
        });
    };
    served("a");
    assert_eq!(instance(&first, "web")["lease"], "none", "there is no program, so there is no lease");

    nginx_a.kill();
    until_role(&second, "web", "master");
    until_only(b, a, vip, || first.log());
    until_role(&first, "web", "fault");
    served("b");

    let _nginx_a = Nginx::start(&a.namespace, "a2", &[80]);
    until_role(&first, "web", "master");
    until_only(a, b, vip, || first.log());
    served("a2");
    assert_eq!(kinds(&first, "web").iter().filter(|kind| *kind == "fault").count(), 1);
    assert!(!owns(b, vip));
}

/// A script in the host's directory.
fn script(host: &Host, name: &str, line: &str) -> String {
    let path = host.namespace.directory().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).expect("write a script");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("make it runnable");
    path.display().to_string()
}

/// A primary and a replica of MariaDB: a client that writes through the VIP sees the switch, with all that was
/// replicated; when the old primary is back, nothing moves without the operator.
#[test]
fn a_primary_and_a_replica_of_mariadb_share_a_vip() {
    let topology = two_directors();
    let vip = IpAddr::from(topology.vip_v4(0));
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let installed = a.namespace.directory().join("installed");
    mariadb::install(&installed);
    let mut primary = MariaDb::start(&a.namespace, &installed, 1);
    let replica = MariaDb::start(&b.namespace, &installed, 2);
    // Each on its own, so that what is replicated begins with the first table.
    for server in [&primary, &replica] {
        server.query(
            "SET sql_log_bin = 0; CREATE USER app IDENTIFIED BY 'app'; GRANT ALL ON app.* TO app; \
             CREATE USER repl IDENTIFIED BY 'repl'; GRANT REPLICATION SLAVE ON *.* TO repl",
        );
    }
    replica.query(&format!(
        "CHANGE MASTER TO master_host = '{}', master_user = 'repl', master_password = 'repl', \
         master_use_gtid = slave_pos, master_connect_retry = 1; START SLAVE; SET GLOBAL read_only = 1",
        a.v4()
    ));
    primary.query("CREATE DATABASE app; CREATE TABLE app.t (n INT PRIMARY KEY)");

    let config = |host: &Host, server: &MariaDb<'_>, priority: u8| {
        let socket = server.socket().display().to_string();
        let ping =
            format!("exec mariadb-admin --no-defaults -u root --socket={socket} --connect-timeout=1 ping");
        let promote = format!(
            "exec mariadb --no-defaults -u root --socket={socket} -e \
             'STOP ALL SLAVES; RESET SLAVE ALL; SET GLOBAL read_only = 0'"
        );
        example(
            "mariadb-pair/a.yaml",
            &[
                ("203.0.113.20/24", &format!("{vip}/24")),
                ("priority: 150", &format!("priority: {priority}")),
                ("/usr/local/bin/check-mariadb", &script(host, "check", &ping)),
                ("/usr/local/bin/promote-mariadb", &script(host, "promote", &promote)),
            ],
        )
    };
    let first = Agent::start(&a.namespace, &config(a, &primary, 150));
    until_role(&first, "db", "master");
    let second = Agent::start(&b.namespace, &config(b, &replica, 100));
    until_only(a, b, vip, || second.log());

    let client = &topology.client().namespace;
    let write = |n: u32| mariadb::query_from(client, vip, &format!("INSERT INTO app.t VALUES ({n})"));
    let until_written = |n: u32| {
        let mut last = String::new();
        let written = wait::holds_within(TAKEOVER, || match write(n) {
            Ok(_) => true,
            Err(error) => {
                // Written, and the answer lost on the way.
                let there = error.contains("Duplicate entry");
                last = error;
                there
            }
        });
        assert!(written, "{n} cannot be written: {last}\nfirst:\n{}\nsecond:\n{}", first.log(), second.log());
    };
    until_written(1);
    let rows = |server: &MariaDb<'_>| server.query("SELECT GROUP_CONCAT(n ORDER BY n) FROM app.t");
    wait::until("the replica has the table", TAKEOVER, || {
        replica.query("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'app'") == "1"
    });
    wait::until("the replica has the row", TAKEOVER, || rows(&replica) == "1");

    primary.kill();
    until_written(2);
    until_only(b, a, vip, || first.log());
    assert_eq!(rows(&replica), "1,2", "what the old primary had, and what came after it");

    let returned = MariaDb::start(&a.namespace, &installed, 1);
    until_role(&first, "db", "backup");
    super::stays_only(b, a, vip, std::time::Duration::from_secs(2));
    until_written(3);
    assert_eq!(rows(&returned), "1", "nothing is written to the old primary");
    // The operator decides.
    second.cli(&["vrrp", "handover", "db"]).expect_success();
    until_only(a, b, vip, || first.log());
}
