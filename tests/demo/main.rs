//! The demo: one director, three real nginx and a client in network namespaces, and real HTTP through the XDP
//! program by every forwarding method. It removes everything when it ends, also on Ctrl-C.

mod health;
mod interrupt;
mod scenes;
mod table;
mod takeover;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use lb_tests::{Agent, Nginx, RealServer, Topology, agent};

use crate::interrupt::Interrupted;
use crate::scenes::{SCENES, Scene};
use crate::table::Table;

#[derive(Parser)]
#[command(name = "demo", about = "Watch lb forward real HTTP by DR, TUN, NAT and FULLNAT")]
struct Arguments {
    /// Leave everything up at the end, say how to play in it, and remove it on Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Requests per forwarding method and address family
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(3..))]
    requests: u16,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    interrupt::catch();
    // The laboratory panics where it cannot be set up; unwinding removes what there is.
    std::panic::set_hook(Box::new(|panic| {
        if !interrupt::came() {
            anstream::eprintln!(
                "the demo cannot go on: {}",
                panic.payload_as_str().unwrap_or("no reason given")
            );
        }
    }));
    let outcome = std::panic::catch_unwind(|| run(&arguments));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if !error.is::<Interrupted>() => {
            anstream::eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
        _ if interrupt::came() => {
            anstream::eprintln!("stopped; everything is removed");
            // What a shell expects of a program that Ctrl-C ended: 128 + SIGINT.
            ExitCode::from(130)
        }
        _ => ExitCode::FAILURE,
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    agent::binary();
    say("a switch, a director, three real servers and a client, each in a network namespace");
    let topology = Topology::builder().servers(3).servers_with_xdp().build();
    topology.replies_through_director();
    interrupt::check()?;
    say("real servers: nginx on ports 80 and 8080, VIPs on lo, a BPF decapsulator for TUN");
    let nginx: Vec<Nginx> = topology
        .servers
        .iter()
        .map(|server| Nginx::start(&server.namespace, server.namespace.role(), &[80, 8080]))
        .collect();
    let director = topology.director();
    let vips = scenes::vips_on_real_servers(&topology);
    let _ready: Vec<RealServer> = topology
        .servers
        .iter()
        .map(|server| RealServer::up(&server.namespace, &vips, &[director.v4().into(), director.v6().into()]))
        .collect();
    interrupt::check()?;
    say("the director: lb-agent loads the XDP program on eth0 and answers on its socket");
    let agent = Agent::start(&director.namespace, scenes::DIRECTOR);
    interrupt::check()?;

    let mut table = Table::new(nginx.iter().map(Nginx::name).collect());
    for scene in &SCENES {
        play(scene, &topology, &agent, arguments.requests, &mut table)?;
    }
    anstream::println!("\nWhat the agent says (lb-agent get services):\n");
    anstream::println!("{}", agent.cli(&["get", "services"]).expect_success().trim_end());
    let mut lost = takeover::play()?;
    lost.extend(health::play()?);
    anstream::println!("\n{}", table.summary(start.elapsed()));
    for line in lost {
        anstream::println!("{line}");
    }
    if arguments.keep {
        explain_how_to_play(&topology, &agent);
        while !interrupt::came() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// Applies the scene's manifest and sends its traffic.
fn play(scene: &Scene, topology: &Topology, agent: &Agent, requests: u16, table: &mut Table) -> Result<()> {
    let style = anstyle::Style::new().bold();
    anstream::println!("\n{style}{}{style:#}  {}", scene.name, scene.explanation);
    agent.apply(&scene.manifest(topology));
    table.begin(scene.name);
    scene.play(topology, requests, table)
}

fn say(step: &str) {
    let style = anstyle::Style::new().dimmed();
    anstream::println!("{style}· {step}{style:#}");
}

fn explain_how_to_play(topology: &Topology, agent: &Agent) {
    let client = topology.client().namespace.name();
    let director = topology.director().namespace.name();
    anstream::println!("\nEverything stays up until Ctrl-C. In another terminal, as root:\n");
    for scene in &SCENES {
        anstream::println!(
            "  ip netns exec {client} curl -g {}    # {}",
            scene.urls(topology)[0],
            scene.name
        );
    }
    anstream::println!("  ip netns exec {director} ip -stats link show eth0");
    let environment = agent.environment().map(|(name, path)| format!("{name}={}", path.display())).join(" ");
    anstream::println!("  export {environment}");
    anstream::println!("  {} get connections", agent::binary().display());
}
