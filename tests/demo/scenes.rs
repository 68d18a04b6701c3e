//! The scenes: one forwarding method each, its manifests, and the traffic that shows it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, anyhow, bail, ensure};
use lb_tests::nginx::LARGE;
use lb_tests::{Topology, content, http};

use crate::interrupt;
use crate::table::Table;

/// The director's own document.
pub const DIRECTOR: &str = "\
apiVersion: lb/v1
kind: Director
metadata: {name: director-a}
spec:
  interfaces: [{name: eth0, xdp: native}]
  connections: {max: 65536}
";

/// Requests between two looks at the table.
const BATCH: u16 = 6;

/// One forwarding method on a VIP of its own.
pub struct Scene {
    /// The heading.
    pub name: &'static str,
    /// What to see in it.
    pub explanation: &'static str,
    forwarding: &'static str,
    /// Which of the topology's VIPs.
    vip: u8,
    /// The real servers' port, where the method can translate it.
    port: Option<u16>,
}

/// In the order of appearance.
pub const SCENES: [Scene; 4] = [
    Scene {
        name: "DR",
        explanation: "only the MAC address is rewritten; the real server has the VIP and answers the client directly",
        forwarding: "dr",
        vip: 0,
        port: None,
    },
    Scene {
        name: "TUN",
        explanation: "the packet travels inside another one, so real servers may be in any subnet; the answer goes directly",
        forwarding: "tun",
        vip: 1,
        port: None,
    },
    Scene {
        name: "NAT",
        explanation: "the destination is rewritten, port 80 to 8080; the answer returns through the director and is rewritten back",
        forwarding: "nat",
        vip: 2,
        port: Some(8080),
    },
    Scene {
        name: "FULLNAT",
        explanation: "the source is rewritten as well, to a pool address of the director; real servers need no special route",
        forwarding: "fullnat",
        vip: 3,
        port: Some(8080),
    },
];

/// The VIPs that real servers must have themselves: those of DR and TUN.
pub fn vips_on_real_servers(topology: &Topology) -> Vec<IpAddr> {
    SCENES.iter().filter(|scene| scene.port.is_none()).flat_map(|scene| scene.vips(topology)).collect()
}

impl Scene {
    /// The manifests of this scene: a service for each address family, and the pool for FULLNAT.
    pub fn manifest(&self, topology: &Topology) -> String {
        let services = self.vips(topology).map(|vip| self.service(topology, vip));
        let pool = (self.forwarding == "fullnat").then(|| pool(topology));
        pool.into_iter().chain(services).collect::<Vec<_>>().join("---\n")
    }

    /// The URL of each address family.
    pub fn urls(&self, topology: &Topology) -> [String; 2] {
        self.vips(topology).map(|vip| http::url(SocketAddr::new(vip, 80), "/"))
    }

    /// Sends the requests of both families and one large download each, and checks what comes.
    pub fn play(&self, topology: &Topology, requests: u16, table: &mut Table) -> Result<()> {
        let client = &topology.client().namespace;
        let failed = |error: String| anyhow!("{}: {error}", self.name);
        for url in self.urls(topology) {
            let mut left = requests;
            while left > 0 {
                interrupt::check()?;
                let batch = left.min(BATCH);
                let outcomes = http::get_in_turn(client, &url, batch.into()).map_err(failed)?;
                if let Some(bad) = outcomes.iter().find(|outcome| outcome.status != 200) {
                    bail!("{}: {url} was answered with status {} by {:?}", self.name, bad.status, bad.server);
                }
                table.add(&outcomes);
                left -= batch;
            }
            interrupt::check()?;
            let large = http::get(client, &format!("{url}bytes/{LARGE}")).map_err(failed)?;
            ensure!(large.body.len() == LARGE, "{}: {} of {LARGE} bytes came", self.name, large.body.len());
            content::check(0, &large.body).map_err(failed)?;
            table.add_transfer(large.body.len());
        }
        table.end();
        let idle = table.servers_without_requests();
        ensure!(idle.is_empty(), "{}: no request reached {}", self.name, idle.join(", "));
        Ok(())
    }

    fn vips(&self, topology: &Topology) -> [IpAddr; 2] {
        [topology.vip_v4(self.vip).into(), topology.vip_v6(self.vip).into()]
    }

    fn service(&self, topology: &Topology, vip: IpAddr) -> String {
        let Scene { forwarding, .. } = self;
        let family = if vip.is_ipv4() { "v4" } else { "v6" };
        let pool = if *forwarding == "fullnat" { "\n  localAddresses: pool" } else { "" };
        let port = self.port.map(|port| format!(", port: {port}")).unwrap_or_default();
        let servers: String = topology
            .servers
            .iter()
            .map(|server| format!("    - {{address: \"{}\"{port}}}\n", server.address(vip)))
            .collect();
        format!(
            "apiVersion: lb/v1
kind: VirtualService
metadata: {{name: {forwarding}-{family}}}
spec:
  address: \"{vip}\"
  addressInterface: eth0
  ports: [80]
  protocol: tcp
  forwarding: {forwarding}{pool}
  scheduler: rr
  realServers:
{servers}"
        )
    }
}

fn pool(topology: &Topology) -> String {
    format!(
        "apiVersion: lb/v1
kind: LocalAddressPool
metadata: {{name: pool}}
spec:
  addresses: [\"{}/32\", \"{}/128\"]
  addressInterface: eth0
",
        topology.pool_v4(0),
        topology.pool_v6(0)
    )
}
