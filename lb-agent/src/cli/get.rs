//! `get` and `describe`: ask, then print in the format that was asked for.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use super::arguments::{DescribeArgs, Described, Format, GetArgs, ServerArgs, What};
use super::health;
use super::table::{self, Look};
use super::terminal;
use crate::control::ConnectionFilter;
use crate::control::client::Client;
use crate::control::health::HealthView;
use crate::control::views::{ObjectView, RealServerView, ServiceView};
use crate::model::Name;

/// Prints once, or again and again until something fails or Ctrl-C comes.
pub async fn get(client: &Client, args: GetArgs) -> Result<()> {
    let show = args.what.show();
    if !show.watch {
        terminal::print(&answer(client, &args.what).await?);
        return Ok(());
    }
    let (terminal, format) = (terminal::stdout_is_terminal(), show.output.output);
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    let mut first = true;
    loop {
        tick.tick().await;
        let text = answer(client, &args.what).await?;
        terminal::print(&match format {
            Format::Table | Format::Wide if terminal => format!("{CLEAR}{text}"),
            Format::Table | Format::Wide if !first => format!("\n{text}"),
            Format::Yaml if !first => format!("---\n{text}"),
            _ => text,
        });
        first = false;
    }
}

pub async fn describe(client: &Client, args: DescribeArgs) -> Result<()> {
    let (name, output) = match args.what {
        Described::Service { name, output } => (name, output),
        Described::RealServer(args) => return describe_real_server(client, &args).await,
        Described::Vrrp { name, output } => {
            let overview = client.vrrp().await?;
            let Some(view) = overview.instances.into_iter().find(|view| view.name == name.as_str()) else {
                bail!("there is no VRRP instance `{name}`")
            };
            let scheduling = overview.scheduling;
            terminal::print(&render(&view, output.output, |view| super::vrrp::instance(view, &scheduling)));
            return Ok(());
        }
    };
    let service = one(client.services().await?, &name)?;
    let servers = client.real_servers(Some(&name)).await?;
    let look = look(output.output);
    let described = DescribedService { service, real_servers: servers };
    terminal::print(&render(&described, output.output, |described| {
        table::service(&described.service, &described.real_servers, look)
    }));
    Ok(())
}

async fn describe_real_server(client: &Client, args: &ServerArgs) -> Result<()> {
    let ServerArgs { service, real_server: wanted, output } = args;
    let fits = |address, port: Option<u16>| {
        address == wanted.address && wanted.port.is_none_or(|wanted| port == Some(wanted))
    };
    let mut servers = client.real_servers(Some(service)).await?;
    if servers.is_empty() {
        one(client.services().await?, service)?;
    }
    servers.retain(|server| fits(server.address, server.port));
    let mut checks = client.health(Some(service)).await?;
    checks.retain(|check| fits(check.address, check.port));
    let [server] = &servers[..] else {
        match servers.len() {
            0 => bail!("service `{service}` has no real server {}", wanted.address),
            _ => bail!("service `{service}` has several of that address: say the port as well"),
        }
    };
    let described = DescribedServer { server, checks: &checks };
    let now = jiff::Timestamp::now();
    terminal::print(&render(&described, output.output, |_| health::real_server(server, &checks, now)));
    Ok(())
}

/// A real server and its checks in one object.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedServer<'a> {
    #[serde(flatten)]
    server: &'a RealServerView,
    checks: &'a [HealthView],
}

/// A service and its real servers in one object.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedService {
    #[serde(flatten)]
    service: ServiceView,
    real_servers: Vec<RealServerView>,
}

async fn answer(client: &Client, what: &What) -> Result<String> {
    let format = what.show().output.output;
    let look = look(format);
    Ok(match what {
        What::Services { name, .. } => {
            let mut services = client.services().await?;
            if let Some(name) = name {
                services = vec![one(services, name)?];
            }
            render(&services, format, |services| table::services(services, look))
        }
        What::RealServers { service, .. } => {
            let servers = client.real_servers(service.as_deref()).await?;
            // A service may have none; one that is not there is another matter.
            if let (Some(name), true) = (service, servers.is_empty()) {
                one(client.services().await?, name)?;
            }
            render(&servers, format, |servers| table::real_servers(servers, look))
        }
        What::Health { service, .. } => {
            let checks = client.health(service.as_deref()).await?;
            if let (Some(name), true) = (service, checks.is_empty()) {
                one(client.services().await?, name)?;
            }
            render(&checks, format, |checks| health::checks(checks, look, jiff::Timestamp::now()))
        }
        What::Connections { service, client: from, real_server, state, limit, .. } => {
            let filter = ConnectionFilter {
                service: service.as_ref().map(ToString::to_string),
                client: *from,
                real_server: *real_server,
                state: state.as_ref().map(|state| state.to_ascii_uppercase()),
            };
            let view = client.connections(*limit, &filter).await?;
            render(&view, format, |view| table::connections(view, look))
        }
        What::Persistence { service, limit, .. } => {
            let views = client.persistence(*limit, service.as_deref()).await?;
            render(&views, format, |views| table::persistence(views, look))
        }
        What::Counters { .. } => {
            render(&client.counters().await?, format, |view| table::counters(view, look))
        }
        What::Objects { .. } => match (client.objects().await?, format) {
            (objects, Format::Yaml) => manifests(&objects),
            (objects, format) => render(&objects, format, |objects| table::objects(objects, look)),
        },
        What::Vrrp { name, .. } => {
            let mut overview = client.vrrp().await?;
            if let Some(name) = name {
                overview.instances.retain(|view| view.name == name.as_str());
                if overview.instances.is_empty() {
                    bail!("there is no VRRP instance `{name}`");
                }
            }
            render(&overview, format, |overview| super::vrrp::instances(overview, look))
        }
        What::Status { .. } => render(&client.status().await?, format, |view| table::status(view, look)),
    })
}

fn one(services: Vec<ServiceView>, name: &Name) -> Result<ServiceView> {
    match services.into_iter().find(|service| service.name == name.as_str()) {
        Some(service) => Ok(service),
        None => bail!("there is no virtual service `{name}`"),
    }
}

/// Documents that can be applied again, with their origins as comments.
fn manifests(objects: &[ObjectView]) -> String {
    let mut text = String::new();
    for object in objects {
        let origin = serde_json::to_string(&object.origin).expect("plain data");
        text += &format!("---\n# origin: {origin}\n{}", terminal::yaml(&object.manifest));
    }
    text
}

pub fn look(format: Format) -> Look {
    Look { wide: format == Format::Wide, colour: terminal::colour_on_stdout() }
}

pub fn render<T: Serialize>(value: &T, format: Format, lines: impl FnOnce(&T) -> String) -> String {
    match format {
        Format::Json => terminal::json(value),
        Format::Yaml => terminal::yaml(value),
        Format::Table | Format::Wide => lines(value),
    }
}

const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Cursor home, erase everything behind it and the scrolled-off lines (ECMA-48 CUP, ED; xterm's ED 3).
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";
