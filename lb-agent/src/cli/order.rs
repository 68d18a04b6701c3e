//! `validate`, `plan`, `apply` and `delete`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::arguments::{ApplyArgs, DeleteArgs, Format, PlanArgs, ValidateArgs};
use super::{Refused, outcome, terminal};
use crate::agent::{check_files, host, lists};
use crate::control::Refusal;
use crate::control::client::Client;
use crate::manifest::{self, Source};
use crate::net::Net;

/// Checks manifests as a whole and against this host.
pub async fn validate(args: ValidateArgs) -> Result<()> {
    let sources = read(&args.files.files)?;
    let refused = |report, sources| Refused { refusal: Refusal::Invalid { diagnostics: report }, sources };
    let objects = match manifest::load(&sources) {
        Ok(objects) => objects,
        Err(report) => return Err(refused(report, sources).into()),
    };
    let (net, _events) = Net::start().await?;
    let facts = host::facts(&net.host_facts().await?);
    let mut report = manifest::check_against_host(&objects, &facts);
    report.0.extend(check_files::check(&objects));
    report.0.extend(lists::check(&objects));
    if !report.0.is_empty() {
        return Err(refused(report, sources).into());
    }
    let mut counts: BTreeMap<&str, usize> = sources.iter().map(|source| (source.file.as_str(), 0)).collect();
    for (_, entry) in objects.iter() {
        *counts.entry(&entry.file).or_default() += 1;
    }
    let files = counts.into_iter().map(|(file, objects)| ValidFile { file: file.to_owned(), objects });
    print(&files.collect::<Vec<_>>(), args.output.output, |files| valid_lines(files));
    Ok(())
}

/// A file in which nothing is wrong.
#[derive(Serialize)]
struct ValidFile {
    file: String,
    objects: usize,
}

fn valid_lines(files: &[ValidFile]) -> String {
    let mut text = String::new();
    for ValidFile { file, objects } in files {
        let plural = if *objects == 1 { "object" } else { "objects" };
        let _ = writeln!(text, "{file}: {objects} {plural}, valid");
    }
    if text.is_empty() { "no manifests\n".into() } else { text }
}

pub async fn plan(client: &Client, args: PlanArgs) -> Result<()> {
    let sources = read(&args.files.files)?;
    let done = client.apply(&sources, args.prune, true).await;
    let done = done.map_err(|error| Refused::or_other(error, sources))?;
    print(&done, args.output.output, |done| outcome::lines(done, args.verbose));
    Ok(())
}

pub async fn apply(client: &Client, args: ApplyArgs) -> Result<()> {
    let sources = read(&args.files.files)?;
    let done = client.apply(&sources, args.prune, args.dry_run).await;
    let done = done.map_err(|error| Refused::or_other(error, sources))?;
    print(&done, args.output.output, |done| outcome::lines(done, args.verbose));
    Ok(())
}

pub async fn delete(client: &Client, args: DeleteArgs) -> Result<()> {
    let sources = read(&args.files)?;
    let ids: Vec<_> = args.id().into_iter().collect();
    let done = client.delete(&ids, &sources, args.dry_run).await;
    let done = done.map_err(|error| Refused::or_other(error, sources))?;
    print(&done, args.output.output, |done| outcome::lines(done, args.verbose));
    Ok(())
}

fn read(files: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for file in files {
        sources.extend(manifest::read_path(file)?);
    }
    Ok(sources)
}

fn print<T: Serialize + ?Sized>(value: &T, format: Format, lines: impl FnOnce(&T) -> String) {
    let text = match format {
        Format::Json => terminal::json(&value),
        Format::Yaml => terminal::yaml(&value),
        Format::Table | Format::Wide => lines(value),
    };
    terminal::print(&text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validate_counts_the_objects_of_each_file() {
        let file = |file: &str, objects| ValidFile { file: file.into(), objects };
        assert_eq!(
            valid_lines(&[file("a.yaml", 1), file("web.yaml", 2)]),
            "a.yaml: 1 object, valid\nweb.yaml: 2 objects, valid\n"
        );
        assert_eq!(valid_lines(&[]), "no manifests\n");
    }
}
