//! VRRP without load balancing: the classic pairs. The manifests are those of `deploy/examples`.

use std::net::IpAddr;

use lb_tests::{Agent, Nginx, http, wait};

use super::{TAKEOVER, example, instance, kinds, owns, two_directors, until_only, until_role};

/// Two nginx proxies share a VIP: nginx dies on the master, and the VIP moves; it comes back, and so does the VIP.
#[test]
fn two_nginx_share_a_vip() {
    let topology = two_directors();
    let vip = IpAddr::from(topology.vip_v4(0));
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let check = |host: &lb_tests::Host| {
        let directory = host.namespace.directory();
        let script = directory.join("check");
        // What the example's script does, in this director's namespace.
        std::fs::write(&script, "#!/bin/sh\nexec curl -sfo /dev/null --max-time 1 http://127.0.0.1/\n")
            .expect("write");
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("chmod");
        script.display().to_string()
    };
    let start = |host: &lb_tests::Host, priority: &str| {
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
