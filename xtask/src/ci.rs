//! `cargo xtask ci`: lint, every test, and a look whether they cleaned up.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{output, step};
use crate::{lint, setup, test};

pub fn run() -> Result<()> {
    setup::ensure(setup::LINT)?;
    setup::ensure(setup::TESTS)?;
    let namespaces_before = namespaces()?;
    let tree_before = tree();

    lint::run()?;
    test::run(&test::Args::all())?;

    step("looking for what the tests left behind");
    let left: Vec<String> = namespaces()?.difference(&namespaces_before).cloned().collect();
    ensure!(left.is_empty(), "the tests left network namespaces behind: {}", left.join(" "));
    match (tree_before, tree()) {
        (Ok(before), Ok(after)) => {
            let new: Vec<&String> = after.difference(&before).collect();
            ensure!(new.is_empty(), "the run changed the working tree: {new:?}");
        }
        (Err(error), _) | (_, Err(error)) => step(format!("NOT checked: a clean working tree ({error:#})")),
    }
    step("passed");
    Ok(())
}

/// The namespaces that tests and demo make begin with `lb`.
fn namespaces() -> Result<BTreeSet<String>> {
    let list = output(Command::new("ip").args(["netns", "list"]))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with("lb")).map(str::to_owned).collect())
}

fn tree() -> Result<BTreeSet<String>> {
    let status = output(Command::new("git").args(["status", "--porcelain"]).current_dir(xtask::root()))
        .context("not a git checkout")?;
    Ok(status.lines().map(str::to_owned).collect())
}
