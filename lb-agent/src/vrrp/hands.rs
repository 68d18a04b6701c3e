//! The hands of the VRRP thread: addresses, announcements, routes and rules, done one after the other on a thread of
//! their own, so that a kernel that is slow to add an address delays no advertisement. They also watch interfaces and
//! addresses, tell the driver, and put back what somebody took away.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::model::{Name, VirtualRoute, VirtualRule, VrrpInstance};
use crate::net::virtual_router::{Changes, HostView};
use crate::net::{Net, announce, sysctl};

/// What an instance puts on the host, worked out once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Belongings {
    pub name: Name,
    /// Where each address goes.
    pub addresses: Vec<(String, IpNet)>,
    pub routes: Vec<(VirtualRoute, Option<String>)>,
    pub rules: Vec<VirtualRule>,
    pub vmac: Option<VmacPlan>,
}

/// The virtual router's own interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmacPlan {
    pub interface: String,
    pub base: String,
    pub mac: [u8; 6],
    pub ipv4: bool,
}

impl Belongings {
    pub fn of(instance: &VrrpInstance) -> Belongings {
        let vmac = vmac_of(instance);
        let own = vmac.as_ref().map_or(&instance.interface, |vmac| &vmac.interface);
        let addresses = instance
            .all_addresses()
            .map(|address| (address.interface.clone().unwrap_or_else(|| own.clone()), address.address));
        let routes = instance.routes.iter().map(|route| {
            let default = route.via.is_none().then(|| own.clone());
            (route.clone(), route.interface.clone().or(default))
        });
        Belongings {
            name: instance.name.clone(),
            addresses: addresses.collect(),
            routes: routes.collect(),
            rules: instance.rules.clone(),
            vmac,
        }
    }
}

/// The virtual router's own interface, if it has one.
pub fn vmac_of(instance: &VrrpInstance) -> Option<VmacPlan> {
    Some(VmacPlan {
        interface: instance.vmac.interface_name(instance.vrid, instance.is_ipv4())?,
        base: instance.interface.clone(),
        mac: instance.vrid.mac(instance.is_ipv4()),
        ipv4: instance.is_ipv4(),
    })
}

/// What is to be done, in the order in which it was asked for.
#[derive(Debug)]
pub enum Job {
    /// These instances and no others: what others left on the host goes, virtual interfaces are made.
    Instances(Vec<Arc<Belongings>>),
    Take(Arc<Belongings>),
    Release(Arc<Belongings>),
    Announce {
        of: Arc<Belongings>,
        count: u8,
    },
    /// Answered when everything before it is done.
    Done(std::sync::mpsc::SyncSender<()>),
}

/// What comes back.
#[derive(Debug)]
pub enum News {
    Host(HostView),
    /// What cannot be done for an instance; empty when everything could.
    Trouble {
        name: Name,
        problems: Vec<String>,
    },
    /// Somebody took an address away, and it was put back.
    PutBack {
        name: Name,
        address: IpAddr,
    },
}

/// Runs until the jobs end. `tell` must not wait.
///
/// # Errors
/// Netlink sockets that cannot be opened.
pub async fn run(mut jobs: mpsc::UnboundedReceiver<Job>, tell: impl Fn(News)) -> Result<()> {
    let mut changes = Changes::subscribe()?;
    let net = Net::for_requests()?;
    let view = net.host_view().await?;
    tell(News::Host(view.clone()));
    let mut hands =
        Hands { net, view, tell, all: BTreeMap::new(), held: BTreeMap::new(), trouble: BTreeMap::new() };
    loop {
        tokio::select! {
            biased;
            job = jobs.recv() => match job {
                Some(job) => hands.perform(job).await,
                None => return Ok(()),
            },
            change = changes.next() => {
                if change.is_none() {
                    changes = Changes::subscribe().context("watch addresses again")?;
                }
                // Changes come in bursts; a list that is read a moment later has them all.
                tokio::time::sleep(SETTLE).await;
                hands.look().await;
            }
            () = tokio::time::sleep(AGAIN), if hands.trouble.values().any(|problems| !problems.is_empty()) => {
                hands.look().await;
            }
        }
    }
}

struct Hands<T> {
    net: Net,
    view: HostView,
    tell: T,
    all: BTreeMap<Name, Arc<Belongings>>,
    /// Those that this director is master of.
    held: BTreeMap<Name, Arc<Belongings>>,
    trouble: BTreeMap<Name, Vec<String>>,
}

impl<T: Fn(News)> Hands<T> {
    async fn perform(&mut self, job: Job) {
        match job {
            Job::Instances(instances) => self.set(instances).await,
            Job::Take(of) => {
                if let Some(before) = self.held.insert(of.name.clone(), of.clone())
                    && before != of
                {
                    self.give_up(&before, Some(&of)).await;
                }
                self.ensure(&of, false).await;
            }
            Job::Release(of) => {
                if let Some(held) = self.held.remove(&of.name)
                    && held != of
                {
                    self.give_up(&held, None).await;
                }
                self.give_up(&of, None).await;
            }
            Job::Announce { of, count } => self.announce(&of, count),
            Job::Done(answer) => drop(answer.send(())),
        }
    }

    /// Reads the host again, tells the driver, and puts back what is missing.
    async fn look(&mut self) {
        match self.net.host_view().await {
            Ok(view) if view == self.view && self.trouble.values().all(Vec::is_empty) => return,
            Ok(view) => self.view = view,
            Err(error) => {
                tracing::error!("VRRP: {error:#}");
                return;
            }
        }
        (self.tell)(News::Host(self.view.clone()));
        for of in self.all.values().cloned().collect::<Vec<_>>() {
            self.make_vmac(&of).await;
        }
        for of in self.held.values().cloned().collect::<Vec<_>>() {
            self.ensure(&of, true).await;
        }
    }

    async fn set(&mut self, instances: Vec<Arc<Belongings>>) {
        let gone: Vec<_> = {
            let stays = |name: &Name| instances.iter().any(|of| of.name == *name);
            self.all.values().filter(|of| !stays(&of.name)).cloned().collect()
        };
        for of in gone {
            self.held.remove(&of.name);
            self.give_up(&of, None).await;
            self.trouble.remove(&of.name);
        }
        let vmacs = self.all.values().filter_map(|of| Some((of.name.clone(), of.vmac.clone()?)));
        let unused = |vmac: &VmacPlan| !instances.iter().any(|other| other.vmac.as_ref() == Some(vmac));
        for (name, vmac) in vmacs.filter(|(_, vmac)| unused(vmac)).collect::<Vec<_>>() {
            if let Err(error) = self.net.remove_vmac(&vmac.interface, vmac.mac, &self.view).await {
                tracing::error!("VRRP instance {name}: {error:#}");
            }
        }
        self.all = instances.into_iter().map(|of| (of.name.clone(), of)).collect();
        for of in self.all.values().cloned().collect::<Vec<_>>() {
            self.make_vmac(&of).await;
        }
        self.refresh().await;
        // What an earlier run left, of instances that are no more.
        let wanted = |address: IpAddr| {
            self.all.values().any(|of| of.addresses.iter().any(|(_, wanted)| wanted.addr() == address))
        };
        let orphans: Vec<_> = self
            .view
            .addresses
            .iter()
            .filter(|there| there.vrrp && !link_local(there.address.addr()) && !wanted(there.address.addr()))
            .cloned()
            .collect();
        for orphan in orphans {
            tracing::info!("{} followed a VRRP instance that is no more: removed", orphan.address);
            if let Err(error) = self.net.release(&orphan).await {
                tracing::error!("VRRP: {error:#}");
            }
        }
        self.sweep_routes().await;
        (self.tell)(News::Host(self.view.clone()));
    }

    /// The same of routes and rules. Those of an instance that is there are its own matter, master or not.
    async fn sweep_routes(&self) {
        let index = |name: &String| self.view.link(name).map(|link| link.index);
        let routes: Vec<_> = self
            .all
            .values()
            .flat_map(|of| &of.routes)
            .map(|(route, interface)| (route.clone(), interface.as_ref().and_then(index)))
            .collect();
        match self.net.remove_left_routes(&routes).await {
            Ok(removed) => removed.iter().for_each(|to| {
                tracing::info!("the route to {to} followed a VRRP instance that is no more: removed");
            }),
            Err(error) => tracing::error!("VRRP: {error:#}"),
        }
        let rules: Vec<_> = self.all.values().flat_map(|of| of.rules.clone()).collect();
        match self.net.remove_left_rules(&rules).await {
            Ok(0) => {}
            Ok(removed) => {
                tracing::info!("{removed} routing rules of VRRP instances that are no more: removed")
            }
            Err(error) => tracing::error!("VRRP: {error:#}"),
        }
    }

    async fn make_vmac(&mut self, of: &Belongings) {
        let Some(vmac) = &of.vmac else { return };
        let Some(base) = self.view.link(&vmac.base).cloned() else { return };
        if self.view.link(&vmac.interface).is_some_and(|link| link.mac == Some(vmac.mac) && link.up) {
            return;
        }
        let mut problems = Vec::new();
        if let Err(error) = self.net.make_vmac(&vmac.interface, &base, vmac.mac, &self.view).await {
            problems.push(format!("{error:#}"));
        }
        self.refresh().await;
        // IPv6 advertisements come from a link-local address of the interface they leave by: the host's own, so
        // that directors can be told apart.
        if !vmac.ipv4
            && let (Some(link), Some(own)) =
                (self.view.link(&vmac.interface), self.view.primary(base.index, false))
            && self.view.holds(link.index, own).is_none()
            && let Err(error) = self.net.take(link.index, IpNet::new(own, 64).expect("64 of 128")).await
        {
            problems.push(format!("{error:#}"));
        }
        self.refresh().await;
        if !problems.is_empty() {
            self.note(&of.name, problems);
        }
    }

    /// Everything of an instance is on the host.
    async fn ensure(&mut self, of: &Belongings, again: bool) {
        let mut problems = Vec::new();
        // A route that is there is ours, unless that was doubtful the last time.
        let doubtful = self.trouble.get(&of.name).is_some_and(|problems| !problems.is_empty());
        for (interface, address) in &of.addresses {
            let Some(link) = self.view.link(interface).cloned() else {
                problems.push(format!("interface {interface} does not exist"));
                continue;
            };
            if again && self.view.holds(link.index, address.addr()).is_some() {
                continue;
            }
            match self.net.take(link.index, *address).await {
                Ok(true) if again => {
                    self.announce_one(interface, address.addr());
                    (self.tell)(News::PutBack { name: of.name.clone(), address: address.addr() });
                }
                Ok(_) => {}
                Err(error) => problems.push(format!("{error:#} on {interface}")),
            }
        }
        for (route, interface) in &of.routes {
            let ifindex = interface.as_ref().map(|name| self.view.link(name).map(|link| link.index));
            let result = match ifindex {
                Some(None) => Err(anyhow::anyhow!("a route's interface does not exist")),
                ifindex => self.net.add_route(route, ifindex.flatten(), again && !doubtful).await,
            };
            if let Err(error) = result {
                problems.push(format!("{error:#}"));
            }
        }
        for rule in &of.rules {
            if let Err(error) = self.net.add_rule(rule).await {
                problems.push(format!("{error:#}"));
            }
        }
        if !again {
            self.refresh().await;
            for (interface, address) in &of.addresses {
                let theirs =
                    |link: &crate::net::Link| self.view.holds(link.index, address.addr()) == Some(false);
                if self.view.link(interface).is_some_and(theirs) {
                    problems.push(format!(
                        "{} is on {interface} already, put there by someone else: it stays theirs",
                        address.addr()
                    ));
                }
            }
        }
        self.note(&of.name, problems);
    }

    /// Nothing of an instance is on the host, except what `but` has as well.
    async fn give_up(&mut self, of: &Belongings, but: Option<&Belongings>) {
        let mut problems = Vec::new();
        for rule in of.rules.iter().filter(|rule| but.is_none_or(|but| !but.rules.contains(rule))) {
            if let Err(error) = self.net.remove_rule(rule).await {
                problems.push(format!("{error:#}"));
            }
        }
        for entry in of.routes.iter().filter(|entry| but.is_none_or(|but| !but.routes.contains(entry))) {
            let ifindex = entry.1.as_ref().and_then(|name| self.view.link(name)).map(|link| link.index);
            if let Err(error) = self.net.remove_route(&entry.0, ifindex).await {
                problems.push(format!("{error:#}"));
            }
        }
        self.refresh().await;
        for (interface, address) in &of.addresses {
            if but.is_some_and(|but| but.addresses.contains(&(interface.clone(), *address))) {
                continue;
            }
            let Some(link) = self.view.link(interface) else { continue };
            let there = self.view.addresses.iter().filter(|there| {
                there.vrrp && there.ifindex == link.index && there.address.addr() == address.addr()
            });
            for there in there {
                if let Err(error) = self.net.release(there).await {
                    problems.push(format!("{error:#} from {interface}"));
                }
            }
        }
        self.refresh().await;
        if but.is_none() {
            self.note(&of.name, problems);
        }
    }

    async fn refresh(&mut self) {
        match self.net.host_view().await {
            Ok(view) => self.view = view,
            Err(error) => tracing::error!("VRRP: {error:#}"),
        }
    }

    /// One burst for every address.
    fn announce(&self, of: &Belongings, count: u8) {
        for _ in 0..count {
            for (interface, address) in &of.addresses {
                self.announce_one(interface, address.addr());
            }
        }
    }

    /// What cannot be sent (the interface is down) costs its receivers time, no more.
    fn announce_one(&self, interface: &str, address: IpAddr) {
        let Some(link) = self.view.link(interface) else { return };
        let (Some(mac), true) = (link.mac, link.ethernet) else { return };
        let sent = match address {
            IpAddr::V4(v4) => announce::send(link.index, &announce::gratuitous_arp(mac, v4)),
            IpAddr::V6(v6) => {
                let router = sysctl::read(&format!("net/ipv6/conf/{interface}/forwarding"));
                let router = router.is_ok_and(|value| value != "0");
                announce::send(link.index, &announce::unsolicited_advertisement(mac, v6, router))
            }
        };
        if let Err(error) = sent {
            tracing::debug!("announce {address} on {interface}: {error}");
        }
    }

    fn note(&mut self, name: &Name, problems: Vec<String>) {
        let before = self.trouble.entry(name.clone()).or_default();
        if *before != problems {
            *before = problems.clone();
            (self.tell)(News::Trouble { name: name.clone(), problems });
        }
    }
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// How long after a change the host is looked at.
const SETTLE: Duration = Duration::from_millis(5);
/// How often what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
