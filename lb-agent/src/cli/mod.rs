//! The command line: arguments, and which function answers which command.

mod arguments;
mod doctor;
mod drain;
mod events;
mod get;
mod grid;
mod health;
mod order;
mod outcome;
mod table;
pub mod terminal;
pub(crate) mod units;
mod vrrp;

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;

pub use arguments::{Cli, Command, Format};

use crate::control::client::{Client, Error};
use crate::control::{ErrorBody, Refusal};
use crate::manifest::Source;
use crate::real_server;

/// Runs any command but `run`, and says what went wrong if it did.
pub async fn execute(cli: Cli) -> ExitCode {
    let format = cli.command.format();
    match dispatch(cli).await {
        Ok(code) => code,
        Err(error) => {
            terminal::complain(&explain(
                &error,
                format,
                terminal::stderr_is_terminal(),
                terminal::colour_on_stderr(),
            ));
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    let Cli { places, command } = cli;
    let client = Client::new(&places.runtime_dir);
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run(_) => unreachable!("the agent has a runtime of its own"),
        Command::Validate(args) => order::validate(args).await.map(done),
        Command::Plan(args) => order::plan(&client, args).await.map(done),
        Command::Apply(args) => order::apply(&client, args).await.map(done),
        Command::Delete(args) => order::delete(&client, args).await.map(done),
        Command::Drain(args) => drain::drain(&client, args).await.map(done),
        Command::Undrain(args) => drain::undrain(&client, args).await.map(done),
        Command::Get(args) => get::get(&client, args).await.map(done),
        Command::Disable(args) => health::enable(&client, args, false).await.map(done),
        Command::Enable(args) => health::enable(&client, args, true).await.map(done),
        Command::Weigh(args) => health::weigh(&client, args).await.map(done),
        Command::Describe(args) => get::describe(&client, args).await.map(done),
        Command::Events(args) => events::events(&client, args).await.map(done),
        Command::Vrrp(args) => vrrp::vrrp(&client, args).await.map(done),
        Command::RealServer(args) => {
            terminal::end_with_the_pipe();
            real_server::run(args, &places).await
        }
        Command::Doctor(args) => doctor::doctor(&places, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "lb-agent", &mut script);
            terminal::print(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A refusal, and the manifests it speaks of.
#[derive(Debug, thiserror::Error)]
#[error("{refusal}")]
struct Refused {
    refusal: Refusal,
    sources: Vec<Source>,
}

impl Refused {
    /// Keeps the manifests beside an answer, so that a mistake can be shown in its line.
    fn or_other(error: Error, sources: Vec<Source>) -> anyhow::Error {
        match error {
            Error::Refused(refusal) => Refused { refusal, sources }.into(),
            other => other.into(),
        }
    }
}

/// What is written on standard error: on a terminal each mistake as a picture of its line, elsewhere as
/// `file:line:column: …`; JSON where the answer would have been JSON.
fn explain(error: &anyhow::Error, format: Format, terminal: bool, colour: bool) -> String {
    let refused = error.downcast_ref::<Refused>();
    let refusal = refused.map(|refused| &refused.refusal).or_else(|| match error.downcast_ref::<Error>() {
        Some(Error::Refused(refusal)) => Some(refusal),
        _ => None,
    });
    let body = || ErrorBody { error: causes(error), refusal: refusal.cloned() };
    match format {
        Format::Json => terminal::json(&body()),
        Format::Yaml => terminal::yaml(&body()),
        Format::Table | Format::Wide => match (refusal, refused) {
            (Some(Refusal::Invalid { diagnostics }), Some(refused)) if terminal => {
                diagnostics.render(&refused.sources, colour).trim_end().to_owned() + "\n"
            }
            // Editors and scripts look for file:line:column at the beginning of a line.
            (Some(Refusal::Invalid { diagnostics }), _) => format!("{diagnostics}\n"),
            _ => format!("error: {}\n", causes(error)),
        },
    }
}

/// An error and its causes in one line. Some errors already end with their cause; it is said once.
pub fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests;
