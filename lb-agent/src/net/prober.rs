//! The veth pair of probes on the real path (`dataplane::real_path`): made when the first check needs it, gone with
//! the last. Each (VIP, real server) has an address in it, so that probes are ordinary connections of this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{Net, interfaces, sysctl};
use crate::model::{PROBER_LINK, RealPathNetworks};

/// The pair, as it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProberLinks {
    /// Interface indices.
    pub near: u32,
    pub far: u32,
    pub near_mac: [u8; 6],
    pub far_mac: [u8; 6],
    /// Why probes of IPv6 VIPs cannot go there.
    pub without_v6: Option<String>,
}

/// Names of the ends.
pub const NEAR: &str = PROBER_LINK;
pub const FAR: &str = "lb-probe-far";

/// Of the far end, on that link alone.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

impl Net {
    /// Makes the pair; one that an earlier run left goes first.
    ///
    /// # Errors
    /// The kernel's refusal of a step.
    pub async fn make_prober_links(&self, networks: &RealPathNetworks) -> Result<ProberLinks> {
        self.remove_prober_links().await?;
        let message = LinkVeth::new(NEAR, FAR).build();
        self.handle.link().add(message).execute().await.with_context(|| format!("make veth pair {NEAR}"))?;
        let made = self.configure_prober_links(networks).await;
        if made.is_err() {
            let _ = self.remove_prober_links().await;
        }
        made
    }

    /// Removes the pair, if it is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn remove_prober_links(&self) -> Result<()> {
        let links = self.links().await?;
        if let Some(near) = links.iter().find(|link| link.name == NEAR) {
            let removed = self.handle.link().del(near.index).execute().await;
            removed.with_context(|| format!("remove veth pair {NEAR}"))?;
        }
        Ok(())
    }

    async fn configure_prober_links(&self, networks: &RealPathNetworks) -> Result<ProberLinks> {
        let links = self.links().await?;
        let end = |name: &str| {
            let link = links.iter().find(|link| link.name == name)?;
            Some((link.index, link.mac?))
        };
        let (near, near_mac) = end(NEAR).with_context(|| format!("{NEAR} is not there"))?;
        let (far, far_mac) = end(FAR).with_context(|| format!("{FAR} is not there"))?;
        // A redirected frame is finished by nobody: its checksum must be whole when it is sent.
        interfaces::checksum_in_software(NEAR)?;
        // Nobody is to speak there but probes. A kernel without IPv6 has none of these settings.
        let _ = sysctl::write(&format!("net/ipv6/conf/{FAR}/disable_ipv6"), "1");
        for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
            let _ = sysctl::write(&format!("net/ipv6/conf/{NEAR}/{setting}"), value);
        }
        for index in [far, near] {
            let message = LinkUnspec::new_with_index(index).up().build();
            self.handle.link().set(message).execute().await.context("set the prober's veth pair up")?;
        }
        self.queue_before(near).await;
        let (prober, gateway) = (networks.prober_v4().into(), networks.gateway_v4().into());
        let v4 = self.route_probes(near, far_mac, (prober, gateway), networks.targets_v4().into()).await;
        v4.context("route probes of IPv4 VIPs")?;
        let ends = (networks.prober_v6().into(), GATEWAY_V6.into());
        let v6 = self.route_probes(near, far_mac, ends, networks.targets_v6().into()).await;
        let without_v6 = v6.err().map(|error| format!("{error:#}"));
        Ok(ProberLinks { near, far, near_mac, far_mac, without_v6 })
    }

    /// The ring between the ends holds 256 frames, which a burst of probes overruns when its reader waits for the CPU.
    /// With a queue before it the sender waits instead (veth stops its queue, Linux 6.16); an older kernel drops what
    /// finds no room, with the queue as without.
    async fn queue_before(&self, near: u32) {
        let mut queue = TcMessage::with_index(near as i32);
        queue.header.parent = TcHandle::ROOT;
        queue.attributes.push(TcAttribute::Kind("pfifo".into()));
        let message = RouteNetlinkMessage::NewQueueDiscipline(queue);
        if let Err(errno) = self.request(message, NLM_F_CREATE | NLM_F_REPLACE).await {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::debug!("no queue before {NEAR}: {error}");
        }
    }

    /// The prober's address at the near end, and the route to the targets through it.
    async fn route_probes(
        &self,
        near: u32,
        far_mac: [u8; 6],
        (prober, gateway): (IpAddr, IpAddr),
        targets: IpNet,
    ) -> Result<()> {
        let handle: &Handle = &self.handle;
        let mut address = handle.address().add(near, prober, if prober.is_ipv6() { 128 } else { 32 });
        if prober.is_ipv6() {
            address.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        address.execute().await.with_context(|| format!("add {prober}"))?;
        let neighbour = handle.neighbours().add(near, gateway).link_layer_address(&far_mac);
        neighbour.state(NeighbourState::Permanent).execute().await.context("add a neighbour")?;
        let mut route = match (prober, gateway, targets) {
            (IpAddr::V4(prober), IpAddr::V4(gateway), IpNet::V4(targets)) => {
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(targets.network(), targets.prefix_len())
                    .gateway(gateway)
                    .pref_source(prober)
                    .onlink()
                    .output_interface(near)
                    .build()
            }
            (IpAddr::V6(prober), IpAddr::V6(gateway), IpNet::V6(targets)) => {
                RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(targets.network(), targets.prefix_len())
                    .gateway(gateway)
                    .pref_source(prober)
                    .onlink()
                    .output_interface(near)
                    .build()
            }
            _ => anyhow::bail!("{prober} and {gateway} are of different families"),
        };
        // Room for a tunnel's header. Of the route, not of the pair: answers may be as long as the network's.
        route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(MTU)]));
        handle.route().add(route).execute().await.context("add a route")
    }
}

/// What of an Ethernet frame is left by an IPv6 header, and as much again for who has tunnels of their own below.
const MTU: u32 = 1400;
