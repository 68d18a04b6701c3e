//! Files of prefixes that services' `sources` name: read when they change, checked, and the last good ones kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Agent, Trouble};
use crate::control::Refusal;
use crate::dataplane::layout::ACCESS_PREFIXES;
use crate::director::{Event, PrefixLists};
use crate::manifest::{self, Diagnostic, Entry, Objects, Report, Source, prefix_list};
use crate::model::VirtualService;

/// The lists in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Lists {
    by_path: BTreeMap<PathBuf, List>,
}

#[derive(Debug, Clone)]
struct List {
    text: String,
    nets: Arc<Vec<IpNet>>,
}

impl Lists {
    /// Those of an earlier run, by path; what cannot be read any more is left out.
    pub(super) fn of_texts(texts: BTreeMap<PathBuf, String>) -> Lists {
        let list = |(path, text): (PathBuf, String)| {
            let source = Source { file: path.display().to_string(), text };
            let nets = Arc::new(prefix_list::parse(&source).ok()?);
            Some((path, List { text: source.text, nets }))
        };
        Lists { by_path: texts.into_iter().filter_map(list).collect() }
    }

    /// For the state directory.
    pub(super) fn texts(&self) -> BTreeMap<&Path, &str> {
        self.by_path.iter().map(|(path, list)| (&**path, &*list.text)).collect()
    }

    /// For the director.
    pub(super) fn prefixes(&self) -> PrefixLists {
        self.by_path.iter().map(|(path, list)| (path.clone(), Arc::clone(&list.nets))).collect()
    }

    /// The files to follow.
    pub(super) fn paths(&self) -> BTreeSet<PathBuf> {
        self.by_path.keys().cloned().collect()
    }
}

/// What reading the lists of some objects came to.
#[derive(Debug, Default)]
pub(crate) struct Read {
    lists: Lists,
    /// What is wrong with lists of which an earlier, good text is used on.
    stale: Report,
    /// What is wrong with lists that were never good.
    refused: Report,
}

/// Everything that is wrong with the lists of these objects.
pub(crate) fn check(objects: &Objects) -> Vec<Diagnostic> {
    read(objects, &Lists::default()).refused.0
}

/// Reads the lists that these objects name. Of one that is wrong its last good text, in `before`, is used on.
fn read(objects: &Objects, before: &Lists) -> Read {
    let mut done = Read::default();
    let mut wrong = BTreeSet::new();
    for (service, entry) in objects.services() {
        let sources = &service.scheduling.sources;
        for (field, path, allows) in [
            ("spec.sources.allowFile", &sources.allow_file, true),
            ("spec.sources.denyFile", &sources.deny_file, false),
        ] {
            let Some(path) = path else { continue };
            // Services share lists: each is read once, and its mistakes are told once.
            let known = done.lists.by_path.get(path).is_some_and(|list| !allows || !list.nets.is_empty());
            if known || wrong.contains(path) {
                continue;
            }
            match read_one(path, field, allows, entry) {
                Ok(list) => _ = done.lists.by_path.insert(path.clone(), list),
                Err(report) => {
                    let last = before.by_path.get(path);
                    wrong.insert(path);
                    let into = if last.is_some() { &mut done.stale } else { &mut done.refused };
                    into.0.extend(report.0);
                    if let Some(last) = last {
                        done.lists.by_path.insert(path.clone(), last.clone());
                    }
                }
            }
        }
    }
    if let Some(diagnostic) = too_many(objects, &done.lists) {
        done.refused.0.push(diagnostic);
    }
    done
}

fn read_one(path: &Path, field: &str, allows: bool, entry: &Entry) -> Result<List, Report> {
    let said = |message: String, help: Option<String>| Report(vec![entry.diagnostic(field, message, help)]);
    let source = manifest::read_file(path).map_err(|error| {
        let help = "a file with one address or prefix a line".to_owned();
        said(format!("{}: {}", path.display(), error.source), Some(help))
    })?;
    let nets = prefix_list::parse(&source)?;
    if allows && nets.is_empty() {
        let message = format!("{} has no prefix in it, and would keep everybody out", path.display());
        return Err(said(message, Some("without a list everybody is taken".into())));
    }
    Ok(List { text: source.text, nets: Arc::new(nets) })
}

/// The data plane's tables are for so many prefixes of each family.
fn too_many(objects: &Objects, lists: &Lists) -> Option<Diagnostic> {
    let (mut sums, mut services) = ([0; 2], 0);
    for (service, entry) in objects.services().filter(|(service, _)| !service.scheduling.sources.is_empty()) {
        services += 1;
        if services > ACCESS_LISTS {
            let message =
                format!("more than {ACCESS_LISTS} services have sources, and the tables know no more lists");
            return Some(entry.diagnostic("spec.sources", message, None));
        }
        let all = all_of(service, lists);
        for net in all.allow.iter().chain(&all.deny) {
            sums[usize::from(net.addr().is_ipv6())] += 1;
        }
        if let Some(sum) = sums.into_iter().find(|sum| *sum > ACCESS_PREFIXES) {
            let message = format!(
                "all services together have {sum} prefixes of one family here; the tables have room for \
                 {ACCESS_PREFIXES}"
            );
            return Some(entry.diagnostic("spec.sources", message, None));
        }
    }
    None
}

fn all_of(service: &VirtualService, lists: &Lists) -> crate::model::Sources {
    service.scheduling.sources.with_files(|path| lists.by_path.get(path).map(|list| &list.nets[..]))
}

/// A list's number has 16 bits, and 0 is none.
const ACCESS_LISTS: usize = u16::MAX as usize;

impl Agent {
    /// Reads the lists of objects that are to count.
    ///
    /// # Errors
    /// A list that is wrong and never was right.
    pub(super) fn read_lists(&self, objects: &Objects) -> Result<Read, Refusal> {
        let read = read(objects, &self.lists);
        if read.refused.0.is_empty() { Ok(read) } else { Err(read.refused.into()) }
    }

    /// From here on these lists count; what is wrong with their files is for `status` and the log.
    pub(super) fn use_lists(&mut self, read: Read) {
        self.director.handle(Event::Lists(read.lists.prefixes()));
        self.lists = read.lists;
        self.trouble(Trouble::Lists, read.stale.0.iter().map(ToString::to_string).collect());
    }

    /// The lists that counted before.
    pub(super) fn restore_lists(&mut self, lists: Lists) {
        self.director.handle(Event::Lists(lists.prefixes()));
        self.lists = lists;
    }

    pub(super) fn save_lists(&mut self) {
        if let Err(error) = self.state.save_lists(&self.lists.texts()) {
            self.trouble(Trouble::Stored, vec![format!("{error:#}")]);
        }
    }
}

impl Read {
    pub(super) fn prefixes(&self) -> PrefixLists {
        self.lists.prefixes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::load_text;

    fn objects(sources: &str) -> Objects {
        let text = format!(
            "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec: {{address: 192.0.2.1, ports: [80],\n \
             protocol: tcp, forwarding: dr, scheduler: rr, realServers: [],\n sources: {{{sources}}}}}\n"
        );
        load_text("web.yaml", &text).unwrap_or_else(|report| panic!("{report}"))
    }

    #[test]
    fn the_last_good_list_is_used_on_and_the_mistake_is_told_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deny.txt");
        let objects = objects(&format!("denyFile: {}", path.display()));
        let said = |report: &Report| report.to_string();
        let none = read(&objects, &Lists::default());
        assert!(
            said(&none.refused).starts_with("web.yaml:6:22: spec.sources.denyFile: /"),
            "{}",
            none.refused
        );
        assert!(said(&none.refused).contains("No such file"));

        std::fs::write(&path, "192.0.2.0/24\n").unwrap();
        let good = read(&objects, &Lists::default());
        assert!(good.refused.0.is_empty() && good.stale.0.is_empty());
        assert_eq!(good.lists.prefixes()[&path].len(), 1);

        std::fs::write(&path, "192.0.2.0/24\n192.0.2.300\n").unwrap();
        let bad = read(&objects, &good.lists);
        assert!(bad.refused.0.is_empty());
        assert!(
            said(&bad.stale).starts_with(&format!("{}:2:1: `192.0.2.300`", path.display())),
            "{}",
            bad.stale
        );
        assert_eq!(bad.lists.prefixes()[&path].len(), 1, "as it was");
        assert!(!read(&objects, &Lists::default()).refused.0.is_empty(), "never good: refused");

        // It outlives the agent.
        let texts = bad.lists.texts();
        let texts = texts.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
        assert_eq!(Lists::of_texts(texts).prefixes(), bad.lists.prefixes());
    }

    #[test]
    fn an_allow_list_without_prefixes_is_refused_and_a_deny_list_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list.txt");
        std::fs::write(&path, "# nobody\n").unwrap();
        let check = |field: &str| check(&objects(&format!("{field}: {}", path.display())));
        assert_eq!(check("denyFile"), []);
        let said = check("allowFile");
        assert!(said[0].to_string().contains("would keep everybody out"), "{said:?}");
    }
}
