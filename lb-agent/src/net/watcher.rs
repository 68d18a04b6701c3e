//! The task that follows the kernel's network events and does what the resolver says. All decisions are in
//! `resolver.rs`.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::links::{Link, Links};
use super::requests::Requests;
use super::resolver::{Action, Hop, Neighbour, Resolver, Route, Target};
use super::routes::client_routes;
use super::{Event, messages};
use crate::model::{ClientHop, ClientRoute};

/// The copy of the kernel's state and the connections that keep it true.
pub struct Watcher {
    handle: Requests,
    events: mpsc::UnboundedSender<Event>,
    resolver: Resolver,
    client_routes: Option<Vec<ClientRoute>>,
    reading: Reading,
    kernel: Subscription,
    answers: mpsc::UnboundedReceiver<Answer>,
    answer: mpsc::UnboundedSender<Answer>,
}

/// What requests that run beside the watcher bring back.
enum Answer {
    Routes { number: u64, took: Duration, routes: Vec<(Target, Result<Route, String>)> },
    ClientRoutes(Result<Vec<ClientRoute>>),
    ProbeRefused { hop: Hop, reason: String },
}

/// One reading of the main table at a time, so that an older one never ends after a newer one.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    No,
    Yes,
    /// It changed meanwhile: once more.
    Again,
}

type KernelEvent = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// A netlink socket that hears every change; it closes with the value.
struct Subscription {
    events: BoxStream<'static, KernelEvent>,
    task: JoinHandle<()>,
    /// The connection ends with its last handle.
    _handle: Handle,
}

impl Watcher {
    /// Subscribes, then reads everything once: an event between the two is applied twice, never lost.
    pub async fn start(handle: Requests, events: mpsc::UnboundedSender<Event>) -> Result<Self> {
        let kernel = Subscription::open()?;
        let (answer, answers) = mpsc::unbounded_channel();
        let resolver = Resolver::default();
        let (client_routes, reading) = (None, Reading::No);
        let mut watcher = Self { handle, events, resolver, client_routes, reading, kernel, answers, answer };
        watcher.read_all().await?;
        Ok(watcher)
    }

    /// Runs until nobody listens any more.
    pub async fn run(mut self, mut sets: mpsc::UnboundedReceiver<BTreeSet<IpAddr>>) {
        let mut watch_open = true;
        loop {
            self.act();
            if self.events.is_closed() {
                return;
            }
            let deadline = self.resolver.next_deadline();
            let timer = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now).into());
            let closed = self.events.clone();
            tokio::select! {
                set = sets.recv(), if watch_open => match set {
                    Some(addresses) => self.resolver.watch(&addresses),
                    None => watch_open = false,
                },
                event = self.kernel.events.next() => match event {
                    Some((message, _)) => self.kernel_event(message).await,
                    None => self.subscribe_again().await,
                },
                Some(answer) = self.answers.recv() => self.answered(answer),
                () = timer, if deadline.is_some() => self.resolver.tick(Instant::now()),
                () = closed.closed() => return,
            }
        }
    }

    /// Performs what the resolver wants; requests run on their own and come back as [`Answer`].
    fn act(&mut self) {
        for action in self.resolver.take_actions() {
            let (handle, answer) = (self.handle.clone(), self.answer.clone());
            match action {
                Action::Emit(event) => {
                    // A closed channel ends `run`.
                    let _ = self.events.send(event);
                }
                Action::AskRoutes { number, targets } => {
                    tokio::spawn(async move {
                        let start = Instant::now();
                        let routes = ask_routes(&handle, targets).await;
                        let _ = answer.send(Answer::Routes { number, took: start.elapsed(), routes });
                    });
                }
                Action::ReadClientRoutes => self.read_client_routes(),
                Action::Probe { hop, confirm } => {
                    tokio::spawn(async move {
                        if let Err(reason) = probe(&handle, hop, confirm).await {
                            let _ = answer.send(Answer::ProbeRefused { hop, reason });
                        }
                    });
                }
            }
        }
    }

    fn read_client_routes(&mut self) {
        if self.reading != Reading::No {
            self.reading = Reading::Again;
            return;
        }
        self.reading = Reading::Yes;
        let (handle, answer) = (self.handle.clone(), self.answer.clone());
        tokio::spawn(async move {
            let _ = answer.send(Answer::ClientRoutes(read_client_routes(&handle).await));
        });
    }

    fn answered(&mut self, answer: Answer) {
        let now = Instant::now();
        match answer {
            Answer::Routes { number, took, routes } => self.resolver.routes(now, number, took, routes),
            Answer::ProbeRefused { hop, reason } => self.resolver.probe_refused(now, hop, reason),
            Answer::ClientRoutes(routes) => {
                if std::mem::replace(&mut self.reading, Reading::No) == Reading::Again {
                    self.read_client_routes();
                }
                match routes {
                    Ok(routes) => self.client_routes(routes),
                    Err(error) => {
                        tracing::warn!("{error:#}; trying again");
                        self.resolver.routes_changed(now + RETRY);
                    }
                }
            }
        }
    }

    fn client_routes(&mut self, routes: Vec<ClientRoute>) {
        if self.client_routes.as_ref() == Some(&routes) {
            return;
        }
        let gateways = routes.iter().filter_map(|route| match route.via {
            ClientHop::Gateway { address, ifindex } => Some((address, ifindex)),
            ClientHop::OnLink { .. } | ClientHop::Unreachable => None,
        });
        self.resolver.watch_gateways(&gateways.collect());
        let _ = self.events.send(Event::ClientRoutes(routes.clone()));
        self.client_routes = Some(routes);
    }

    async fn kernel_event(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        use RouteNetlinkMessage::*;
        let now = Instant::now();
        match message.payload {
            NetlinkPayload::InnerMessage(message) => match message {
                NewLink(message) => {
                    if let Some(link) = messages::link(&message) {
                        self.resolver.link(now, link);
                    }
                }
                DelLink(message) => {
                    if let Some(link) = messages::link(&message) {
                        self.resolver.link_gone(now, link.index);
                    }
                }
                NewNeighbour(message) => {
                    if let Some((hop, entry)) = messages::neighbour(&message) {
                        self.resolver.neighbour(now, hop, Some(entry));
                    }
                }
                DelNeighbour(message) => {
                    if let Some((hop, _)) = messages::neighbour(&message) {
                        self.resolver.neighbour(now, hop, None);
                    }
                }
                NewRoute(_) | DelRoute(_) | NewRule(_) | DelRule(_) | NewAddress(_) | DelAddress(_) => {
                    self.resolver.routes_changed(now);
                }
                _ => {}
            },
            NetlinkPayload::Overrun(_) => {
                tracing::warn!(
                    "the kernel's network events came too fast and some are lost: reading all again"
                );
                self.read_all_or_later().await;
            }
            _ => {}
        }
    }

    /// The subscription ended (it cannot by itself, but a socket error ends it): open another one.
    async fn subscribe_again(&mut self) {
        tracing::warn!("the subscription to the kernel's network events ended: opening another");
        match Subscription::open() {
            Ok(kernel) => {
                self.kernel = kernel;
                self.read_all_or_later().await;
            }
            Err(error) => {
                tracing::error!("{error:#}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn read_all_or_later(&mut self) {
        while let Err(error) = self.read_all().await {
            tracing::error!("{error:#}; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn read_all(&mut self) -> Result<()> {
        let links = Links::from_iter(read_links(&self.handle).await?);
        let neighbours = read_neighbours(&self.handle).await?;
        let now = Instant::now();
        self.resolver.replace_links(now, links);
        self.resolver.replace_neighbours(now, neighbours);
        self.resolver.routes_changed(now);
        Ok(())
    }
}

impl Subscription {
    fn open() -> Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (mut connection, handle, events) = rtnetlink::new_multicast_connection(&groups)
            .context("subscribe to the kernel's network events")?;
        let socket = connection.socket_mut().socket_mut();
        // Beyond rmem_max only with CAP_NET_ADMIN; with less, bursts are lost earlier and read again.
        if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER)
                .context("enlarge the buffer for network events")?;
        }
        Ok(Self { events: events.boxed(), task: tokio::spawn(connection), _handle: handle })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads all interfaces.
pub async fn read_links(handle: &Requests) -> Result<Vec<Link>> {
    let _turn = handle.turn_to_list().await;
    let messages: Vec<_> = handle.link().get().execute().try_collect().await.context("list interfaces")?;
    Ok(messages.iter().filter_map(messages::link).collect())
}

async fn read_neighbours(handle: &Requests) -> Result<HashMap<Hop, Neighbour>> {
    let _turn = handle.turn_to_list().await;
    let messages: Vec<_> =
        handle.neighbours().get().execute().try_collect().await.context("list neighbours")?;
    Ok(messages.iter().filter_map(messages::neighbour).collect())
}

async fn read_client_routes(handle: &Requests) -> Result<Vec<ClientRoute>> {
    let _turn = handle.turn_to_list().await;
    let mut routes = vec![];
    for family in
        [rtnetlink::packet_route::AddressFamily::Inet, rtnetlink::packet_route::AddressFamily::Inet6]
    {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut answers = handle.route().get(question).execute();
        while let Some(message) = answers.try_next().await.context("list routes")? {
            routes.extend(messages::client_route(&message));
        }
    }
    Ok(client_routes(routes))
}

/// Asks the kernel for the route to each target, some at a time.
async fn ask_routes(handle: &Handle, targets: Vec<Target>) -> Vec<(Target, Result<Route, String>)> {
    let ask = |target| async move { (target, ask_route(handle, target).await) };
    stream::iter(targets).map(ask).buffer_unordered(REQUESTS_AT_ONCE).collect().await
}

async fn ask_route(handle: &Handle, target: Target) -> Result<Route, String> {
    let answer = handle.route().get(messages::route_question(target)).execute().try_next().await;
    match answer {
        Ok(Some(message)) => messages::route_answer(target, &message),
        Ok(None) => Err(format!("no route to {}: the kernel gave no answer", target.address)),
        Err(rtnetlink::Error::NetlinkError(error)) => {
            Err(messages::route_refusal(target, error.raw_code().abs()))
        }
        Err(error) => Err(format!("no route to {}: {error}", target.address)),
    }
}

/// Makes the kernel resolve a neighbour.
async fn probe(handle: &Handle, hop: Hop, confirm: bool) -> Result<(), String> {
    let flags = if confirm { NLM_F_REPLACE } else { NLM_F_CREATE };
    match request_probe(handle, hop, confirm, flags).await {
        // The entry went away, or lost its address, a moment ago.
        Err(libc::ENOENT | libc::EINVAL) if confirm => request_probe(handle, hop, false, NLM_F_CREATE).await,
        result => result,
    }
    .map_err(|errno| match errno {
        libc::ENOBUFS => format!(
            "no room for {} among the kernel's neighbours; raise net.ipv{}.neigh.default.gc_thresh3",
            hop.address,
            if hop.address.is_ipv4() { 4 } else { 6 }
        ),
        errno => {
            format!("resolve {}: {}", hop.address, anyhow!(std::io::Error::from_raw_os_error(errno)))
        }
    })
}

/// One RTM_NEWNEIGH; an error is the kernel's number.
async fn request_probe(handle: &Handle, hop: Hop, confirm: bool, flags: u16) -> Result<(), i32> {
    let message = RouteNetlinkMessage::NewNeighbour(messages::probe(hop, confirm));
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut answers = handle.clone().request(request).map_err(|_| libc::EPIPE)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(error.raw_code().abs());
        }
    }
    Ok(())
}

/// Room for a burst of about 20,000 events.
const RECEIVE_BUFFER: usize = 8 << 20;
const REQUESTS_AT_ONCE: usize = 64;
const RETRY: Duration = Duration::from_secs(1);
