//! `lb-agent events`: what happened, and with `--follow` what happens.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;

use super::arguments::{EventsArgs, Format};
use super::terminal;
use crate::control::client::Client;
use crate::events::Event;

/// Prints the last events, then, if asked, each as it comes, until Ctrl-C.
pub async fn events(client: &Client, args: EventsArgs) -> Result<()> {
    let format = args.output.output;
    let mut shown = match args.after {
        Some(after) => client.events(Some(after), args.limit, Duration::ZERO).await?,
        None => client.events(None, args.limit, Duration::ZERO).await?,
    };
    if !args.follow {
        terminal::print(&match format {
            Format::Json => terminal::json(&shown),
            Format::Yaml => terminal::yaml(&shown),
            Format::Table | Format::Wide => lines(&shown, format),
        });
        return Ok(());
    }
    terminal::end_with_the_pipe();
    let mut after = args.after.unwrap_or(0);
    loop {
        // One event a line, also in JSON: a stream has no end at which a list could be closed.
        for event in &shown {
            terminal::print(&match format {
                Format::Json => serde_json::to_string(event)? + "\n",
                Format::Yaml => format!("---\n{}", terminal::yaml(event)),
                Format::Table | Format::Wide => lines(std::slice::from_ref(event), format),
            });
        }
        after = shown.last().map_or(after, |last| last.sequence);
        shown = client.events(Some(after), FOLLOW, PATIENCE).await?;
    }
}

/// `12  2026-01-31T12:00:00.123Z  VrrpInstance/edge  master  no advertisement for 3.6 s`.
pub fn lines(events: &[Event], format: Format) -> String {
    let mut text = String::new();
    for event in events {
        let Event { sequence, time, subject, kind, cause, fields } = event;
        let time = time.strftime("%Y-%m-%d %H:%M:%S%.3fZ");
        let _ = write!(text, "{sequence:<5} {time} {subject} {kind}: {cause}");
        if format == Format::Wide {
            fields.iter().for_each(|(name, value)| _ = write!(text, " {name}={value}"));
        }
        text.push('\n');
    }
    text
}

/// How long the agent lets us wait for the next event before it answers with none.
const PATIENCE: Duration = Duration::from_secs(25);
/// Events in one answer while following.
const FOLLOW: usize = 1000;
