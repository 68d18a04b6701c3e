//! Manifests for tests, written from the fields that a case is about.

use super::load_text;

/// An object of this name with these fields.
pub fn object(kind: &str, name: &str, fields: &str) -> String {
    format!("---\napiVersion: lb/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{fields}}}\n")
}

/// The fields, and behind them whatever of `others` they lack. What follows `lists` is not looked at: it has fields of
/// its own by these names.
pub fn completed(fields: &str, lists: &str, others: &[(&str, &str)]) -> String {
    let mut spec = String::from(fields);
    let own = fields.split(lists).next().unwrap_or_default();
    for (key, value) in others {
        if !own.starts_with(&format!("{key}:")) && !own.contains(&format!(", {key}:")) {
            spec.push_str(&format!("{}{key}: {value}", if spec.is_empty() { "" } else { ", " }));
        }
    }
    spec
}

/// The lines of the report of loading `text` as `m.yaml`; empty when there is nothing to report.
pub fn report(text: &str) -> String {
    load_text("m.yaml", text).err().map(|report| report.to_string()).unwrap_or_default()
}
