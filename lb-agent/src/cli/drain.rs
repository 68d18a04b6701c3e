//! `drain` and `undrain`.

use anyhow::Result;

use super::arguments::{DrainArgs, UndrainArgs};
use super::{table, terminal};
use crate::control::client::Client;
use crate::control::views::RealServerView;

pub async fn drain(client: &Client, args: DrainArgs) -> Result<()> {
    let servers = client.drain(&args.service, &args.real_server, args.deadline).await?;
    print(&servers, args.output.output);
    Ok(())
}

pub async fn undrain(client: &Client, args: UndrainArgs) -> Result<()> {
    let servers = client.undrain(&args.service, &args.real_server).await?;
    print(&servers, args.output.output);
    Ok(())
}

fn print(servers: &Vec<RealServerView>, format: super::Format) {
    let look = super::get::look(format);
    terminal::print(&super::get::render(servers, format, |servers| table::real_servers(servers, look)));
}
