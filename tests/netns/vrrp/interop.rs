//! An agent and keepalived share a virtual router, in both roles: keepalived is master first, the agent preempts it,
//! hands over, and takes over again when keepalived stops. keepalived never complains.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::{Agent, Keepalived, Topology};

use super::{director, instance, owns, stays_only, two_directors, until_only, until_role};

/// What differs from one form of the protocol to another.
struct Form {
    /// Lines of keepalived's instance.
    keepalived: String,
    /// Lines of ours.
    ours: String,
    /// What keepalived and we call the address, with its prefix length.
    addresses: Vec<String>,
    vip: IpAddr,
}

#[track_caller]
fn tell_the_story(topology: &Topology, form: &Form) {
    let [a, b] = &topology.directors[..] else { panic!("two directors") };
    let vip = form.vip;
    let addresses = form.addresses.join("\n    ");
    let keepalived = Keepalived::start(
        &b.namespace,
        &format!(
            "vrrp_instance edge {{
  state BACKUP
  interface eth0
  virtual_router_id 51
  priority 100
{}
  virtual_ipaddress {{
    {addresses}
  }}
}}
",
            form.keepalived
        ),
    );
    until_only(b, a, vip, || keepalived.log());

    let config = director("[]", 150, &form.addresses.join(", "), &form.ours);
    let agent = Agent::start(&a.namespace, &config);
    let story = || format!("keepalived wrote:\n{}\nthe agent wrote:\n{}", keepalived.log(), agent.log());
    until_role(&agent, "edge", "master");
    until_only(a, b, vip, story);
    keepalived.assert_content();

    let said = agent.cli(&["vrrp", "handover", "edge"]).expect_success();
    assert!(said.contains("is master"), "{said}");
    until_only(b, a, vip, story);
    until_role(&agent, "edge", "backup");
    // Handed over means handed over: a higher priority does not take it back.
    stays_only(b, a, vip, Duration::from_millis(700));
    let backup = instance(&agent, "edge");
    let peer = b.address(vip).to_string();
    if vip.is_ipv4() {
        assert_eq!((&backup["master"], &backup["masterPriority"]), (&peer.into(), &100.into()), "{backup:#}");
    }
    assert!(backup.get("mismatches").is_none(), "{backup:#}");
    keepalived.assert_content();

    let log = keepalived.stop();
    assert!(!owns(b, vip), "{log}");
    until_role(&agent, "edge", "master");
    until_only(a, b, vip, || agent.log());
}

fn v4(topology: &Topology, keepalived: &str, ours: &str) -> Form {
    Form {
        keepalived: keepalived.to_owned(),
        ours: ours.to_owned(),
        addresses: vec![format!("{}/24", topology.vip_v4(0)), format!("{}/24", topology.vip_v4(1))],
        vip: topology.vip_v4(0).into(),
    }
}

#[test]
fn keepalived_and_an_agent_move_a_vip_by_version_2() {
    let topology = two_directors();
    let form = v4(&topology, "  version 2\n  advert_int 1", "  version: 2\n  advertisementInterval: 1s\n");
    tell_the_story(&topology, &form);
}

#[test]
fn keepalived_and_an_agent_move_a_vip_by_version_2_with_a_password() {
    let topology = two_directors();
    let form = v4(
        &topology,
        "  version 2\n  advert_int 1\n  authentication {\n    auth_type PASS\n    auth_pass secret12\n  }",
        "  version: 2\n  authentication: {type: pass, password: secret12}\n",
    );
    tell_the_story(&topology, &form);
}

#[test]
fn keepalived_and_an_agent_move_a_vip_by_version_3_multicast() {
    let topology = two_directors();
    let form = v4(&topology, "  version 3\n  advert_int 0.3", "  advertisementInterval: 300ms\n");
    tell_the_story(&topology, &form);
}

#[test]
fn keepalived_and_an_agent_move_a_vip_by_version_3_unicast() {
    let topology = two_directors();
    let (a, b) = (topology.directors[0].v4(), topology.directors[1].v4());
    let form = v4(
        &topology,
        &format!("  version 3\n  advert_int 0.3\n  unicast_src_ip {b}\n  unicast_peer {{\n    {a}\n  }}"),
        &format!("  advertisementInterval: 300ms\n  unicastPeers: [{b}]\n"),
    );
    tell_the_story(&topology, &form);
}

#[test]
fn keepalived_and_an_agent_move_a_vip_by_ipv6() {
    let topology = two_directors();
    let vip = topology.vip_v6(0);
    let form = Form {
        keepalived: "  version 3\n  advert_int 0.3".to_owned(),
        ours: "  advertisementInterval: 300ms\n".to_owned(),
        addresses: vec!["fe80::5e:100/64".to_owned(), format!("{vip}/64")],
        vip: vip.into(),
    };
    tell_the_story(&topology, &form);
}
