//! The host's network as the agent sees it: interfaces, routes, neighbours and addresses by netlink. The only place
//! that changes addresses.

mod addresses;
pub mod announce;
pub mod interfaces;
mod left_routes;
pub mod link_counters;
mod links;
mod messages;
pub mod prober;
mod qdisc;
mod requests;
mod resolver;
mod routes;
pub mod sysctl;
pub mod virtual_router;
mod watcher;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::TryStreamExt;
use tokio::sync::mpsc;

pub use crate::model::{ClientHop, ClientRoute, NextHop, Resolution};
pub use addresses::{AddOutcome, OwnAddress, RemoveOutcome};
pub use links::{Link, Vlan};
pub use messages::{ADDRESS_PROTOCOL, HostAddress, VRRP_ADDRESS_PROTOCOL};
use requests::Requests;

/// A change in the network. Nothing is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The way to an address of [`Net::watch`].
    Resolution { address: IpAddr, resolution: Resolution },
    /// The way to the gateway of a client route.
    Gateway { address: IpAddr, ifindex: u32, resolution: Resolution },
    /// All routes to clients, in the order of prefixes.
    ClientRoutes(Vec<ClientRoute>),
    /// All interfaces, in the order of their indices.
    Links(Vec<Link>),
}

/// Facts for `validate` and for checks at start-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Kernel release, as `uname -r` prints it.
    pub kernel: String,
    pub links: Vec<Link>,
    pub addresses: Vec<HostAddress>,
    /// `net.ipv4.ip_forward`.
    pub ipv4_forwarding: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub ipv6_forwarding: bool,
}

/// A handle on the network namespace in which [`Net::start`] was called.
///
/// Watching ends when the last clone and the receiver are gone.
#[derive(Clone)]
pub struct Net {
    handle: Requests,
    watched: mpsc::UnboundedSender<BTreeSet<IpAddr>>,
    /// What was sent there last.
    last: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl Net {
    /// Subscribes to the kernel's events and reads the present state. The first events are `Links` and
    /// `ClientRoutes`.
    ///
    /// Needs a tokio runtime; sockets belong to the calling thread's network namespace.
    ///
    /// # Errors
    /// Netlink sockets that cannot be opened or read.
    pub async fn start() -> Result<(Net, mpsc::UnboundedReceiver<Event>)> {
        let handle = Requests::open()?;
        let (events, receiver) = mpsc::unbounded_channel();
        let (watched, sets) = mpsc::unbounded_channel();
        let watcher = watcher::Watcher::start(handle.clone(), events).await?;
        tokio::spawn(watcher.run(sets));
        Ok((Net { handle, watched, last: Arc::default() }, receiver))
    }

    /// Replaces the set of addresses whose way is followed. An address that is new is reported (first as
    /// [`Resolution::Pending`]); one that stays costs nothing.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        // Whoever listens compares all of them with what it knows: not each time that a plan is made.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == addresses {
            return;
        }
        last.clone_from(&addresses);
        // Nobody listens only once the receiver of events is gone, and then nobody wants to know.
        let _ = self.watched.send(addresses);
    }

    /// All interfaces now.
    ///
    /// # Errors
    /// The kernel's refusal to list them.
    pub async fn links(&self) -> Result<Vec<Link>> {
        watcher::read_links(&self.handle).await
    }

    /// All addresses of the host now.
    ///
    /// # Errors
    /// The kernel's refusal to list them.
    pub async fn addresses(&self) -> Result<Vec<HostAddress>> {
        let _turn = self.handle.turn_to_list().await;
        let messages: Vec<_> =
            self.handle.address().get().execute().try_collect().await.context("list addresses")?;
        Ok(messages.iter().filter_map(messages::host_address).collect())
    }

    /// What is worth knowing about the host before traffic is taken.
    ///
    /// # Errors
    /// The kernel's refusal to list interfaces or addresses.
    pub async fn host_facts(&self) -> Result<HostFacts> {
        let forwards = |path: &str| sysctl::read(path).is_ok_and(|value| value != "0");
        Ok(HostFacts {
            kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
            links: self.links().await?,
            addresses: self.addresses().await?,
            ipv4_forwarding: forwards("net/ipv4/ip_forward"),
            ipv6_forwarding: forwards("net/ipv6/conf/all/forwarding"),
        })
    }

    /// Tells everybody on the segment that `address` is at this interface now: a gratuitous ARP request, or an
    /// unsolicited neighbour advertisement. One frame per call.
    ///
    /// # Errors
    /// An interface that is missing or not Ethernet; the kernel's refusal to send.
    pub async fn announce(&self, interface: &str, address: IpAddr) -> Result<()> {
        let link = self.link(interface).await?;
        let mac = match link.mac {
            Some(mac) if link.ethernet => mac,
            _ => bail!("announce {address} on {interface}: not an Ethernet interface"),
        };
        let frame = match address {
            IpAddr::V4(v4) => announce::gratuitous_arp(mac, v4).to_vec(),
            IpAddr::V6(v6) => {
                let router = sysctl::read(&format!("net/ipv6/conf/{interface}/forwarding"));
                announce::unsolicited_advertisement(mac, v6, router.is_ok_and(|value| value != "0")).to_vec()
            }
        };
        announce::send(link.index, &frame).with_context(|| format!("announce {address} on {interface}"))
    }

    /// The interface of that name.
    async fn link(&self, name: &str) -> Result<Link> {
        let links = self.links().await?;
        links
            .into_iter()
            .find(|link| link.name == name)
            .ok_or_else(|| anyhow!("interface {name} does not exist"))
    }
}
