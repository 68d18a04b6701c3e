//! `lb-agent doctor`: what this host lacks for a director.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::arguments::{DoctorArgs, Format};
use super::terminal;
use crate::doctor;
use crate::manifest;
use crate::places::Places;

/// Prints a line for each thing that was looked at; exit code 1 if one of them fails.
pub fn doctor(places: &Places, args: &DoctorArgs) -> Result<ExitCode> {
    let interfaces = match &args.config {
        None => args.interfaces.clone(),
        Some(config) => {
            let sources = manifest::read_path(config)?;
            // What else is wrong with it is `validate`'s to say.
            let parsed = manifest::parse(&sources);
            let Some(director) = parsed.objects.director() else {
                bail!("{}: no Director that can be read; see `lb-agent validate`", config.display());
            };
            director.interfaces.iter().map(|interface| interface.name.clone()).collect()
        }
    };
    let report = doctor::examine(&places.bpffs_dir, &interfaces)?;
    terminal::print(&match args.output.output {
        Format::Json => terminal::json(&report),
        Format::Yaml => terminal::yaml(&report),
        Format::Table | Format::Wide => report.lines(),
    });
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
