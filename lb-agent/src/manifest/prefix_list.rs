//! Lists of prefixes in files: one address or prefix a line, `#` begins a comment. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Diagnostic, Report, Source};
use crate::model::LIST_FILE_MAX;

/// The prefixes of a file, sorted, each once.
///
/// # Errors
/// Everything that is wrong in it, the first [`MISTAKES_MAX`] of them.
pub fn parse(source: &Source) -> Result<Vec<IpNet>, Report> {
    let mut nets = BTreeSet::new();
    let mut report = Report::default();
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    for (number, line) in (1..).zip(text.lines()) {
        let entry = line.split('#').next().unwrap_or_default();
        let word = entry.trim();
        if word.is_empty() {
            continue;
        }
        if report.0.len() == MISTAKES_MAX {
            break;
        }
        let mut wrong = |message: String, help: Option<String>| {
            let before = &entry[..entry.len() - entry.trim_start().len()];
            report.0.push(Diagnostic {
                file: source.file.clone(),
                line: number,
                column: before.chars().count() as u32 + 1,
                width: word.chars().count() as u32,
                path: String::new(),
                message,
                help,
            });
        };
        match prefix(word) {
            Ok(net) if nets.len() == LIST_FILE_MAX && !nets.contains(&net) => {
                wrong(format!("more than {LIST_FILE_MAX} prefixes"), None);
                break;
            }
            Ok(net) => _ = nets.insert(net),
            Err(Wrong::Syntax) => {
                let shown: String = word.chars().take(60).collect();
                let help = "one a line; # begins a comment".to_owned();
                wrong(
                    format!("`{}` is no address or prefix like 192.0.2.0/24", shown.escape_debug()),
                    Some(help),
                );
            }
            Err(Wrong::HostBits(net)) => wrong(message(net), Some(help(net))),
        }
    }
    if report.0.is_empty() { Ok(nets.into_iter().collect()) } else { Err(report) }
}

/// Why a text is no prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    Syntax,
    /// It has bits beyond its length.
    HostBits(IpNet),
}

/// A prefix, or a single address.
///
/// # Errors
/// What is neither.
pub fn prefix(text: &str) -> Result<IpNet, Wrong> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match net {
        Ok(net) if net.trunc() == net => Ok(net),
        Ok(net) => Err(Wrong::HostBits(net)),
        Err(_) => Err(Wrong::Syntax),
    }
}

/// What is wrong with bits beyond the length.
pub fn message(net: IpNet) -> String {
    format!("{net} is not the beginning of a prefix")
}

/// What may have been meant.
pub fn help(net: IpNet) -> String {
    format!("the prefix is {}; the single address is {}", net.trunc(), net.addr())
}

/// So many mistakes of a file are told.
const MISTAKES_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let source = Source { file: "deny.txt".into(), text: text.into() };
        match parse(&source) {
            Ok(nets) => Ok(nets.iter().map(ToString::to_string).collect()),
            Err(report) => Err(report.to_string()),
        }
    }

    #[test]
    fn one_prefix_a_line_with_comments() {
        let text = "\u{feff}# bad people\n\n 192.0.2.0/24\t# a network\r\n2001:db8::/32\n198.51.100.7\n192.0.2.0/24\n#";
        assert_eq!(read(text).unwrap(), ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"]);
        assert_eq!(read("").unwrap(), [""; 0]);
    }

    #[test]
    fn every_mistake_has_its_place() {
        let said = read("10.0.0.0/8\n  10.0.0.1/8 # typo\n\n10.0.0.256\n").unwrap_err();
        assert_eq!(
            said,
            "deny.txt:2:3: 10.0.0.1/8 is not the beginning of a prefix\n  \
             help: the prefix is 10.0.0.0/8; the single address is 10.0.0.1\n\
             deny.txt:4:1: `10.0.0.256` is no address or prefix like 192.0.2.0/24\n  \
             help: one a line; # begins a comment"
        );
        assert_eq!(read(&"x\n".repeat(500)).unwrap_err().matches("no address").count(), MISTAKES_MAX);
    }

    #[test]
    fn a_hundred_thousand_prefixes_are_read_and_too_many_are_refused() {
        let lines = |count: u32| -> String {
            (0..count).map(|n| format!("{}\n", std::net::Ipv4Addr::from(0x0a00_0000 + n))).collect()
        };
        assert_eq!(read(&lines(LIST_FILE_MAX as u32)).unwrap().len(), LIST_FILE_MAX);
        assert!(read(&lines(LIST_FILE_MAX as u32 + 1)).unwrap_err().contains("more than 131072 prefixes"));
    }
}
