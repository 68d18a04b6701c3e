//! `spec.flood` of a Director.

use std::path::PathBuf;

use super::raw::Raw;
use super::reader::{Faults, Field};
use crate::model::{Flood, SynCookiesAbove};

pub fn decode(field: &Field<'_>, faults: &mut Faults) -> Option<Flood> {
    let mut map = field.map("a map like {newFlows: 100000}", faults)?;
    let default = Flood::default();
    let new_flows = map.get("newFlows").and_then(|field| rate(&field, faults));
    let syn_cookies = map.get("synCookies").and_then(|field| cookies(&field, faults));
    map.finish(faults);
    Some(Flood {
        new_flows: new_flows.unwrap_or(default.new_flows),
        syn_cookies: syn_cookies.unwrap_or(default.syn_cookies),
    })
}

fn cookies(field: &Field<'_>, faults: &mut Faults) -> Option<SynCookiesAbove> {
    let mut map = field.map("a map like {above: 20000}", faults)?;
    let default = Flood::default().syn_cookies;
    let above = map.get("above").and_then(|field| rate(&field, faults));
    let secret_file = map.get("secretFile").and_then(|field| {
        let path = PathBuf::from(field.text("the path of a file", faults)?);
        if path.is_absolute() {
            return Some(path);
        }
        faults.add(field.path.as_str(), "is not an absolute path").help("write it from / on");
        None
    });
    map.finish(faults);
    Some(SynCookiesAbove { above: above.unwrap_or(default.above), secret_file })
}

/// A number a second and CPU, or `off`.
fn rate(field: &Field<'_>, faults: &mut Faults) -> Option<Option<u32>> {
    match field.raw {
        Raw::Text(text) if text == "off" => Some(None),
        Raw::Integer(_) => field.integer(Flood::RATE, faults).map(Some),
        _ => {
            field.expected("a number a second and CPU, or off", faults);
            None
        }
    }
}

pub fn encode(flood: &Flood) -> Raw {
    let rate = |rate: Option<u32>| Some(rate.map_or_else(|| Raw::text("off"), Raw::integer));
    let cookies = &flood.syn_cookies;
    let secret = cookies.secret_file.as_ref().map(|path| Raw::text(path.display()));
    Raw::map([
        ("newFlows", rate(flood.new_flows)),
        ("synCookies", Some(Raw::map([("above", rate(cookies.above)), ("secretFile", secret)]))),
    ])
}

#[cfg(test)]
mod tests {
    use crate::manifest::{Source, parse};

    #[test]
    fn limits_are_read_and_refused_with_their_place() {
        for (field, expected) in [
            ("{newFlows: 1}", ""),
            ("{newFlows: off}", ""),
            ("{}", ""),
            ("{newFlows: 0}", "m.yaml:6:21: spec.flood.newFlows: 0 is below 1"),
            ("{newFlows: some}", "is not a number a second and CPU, or off"),
            ("{synCookies: {above: 5, secretFile: /etc/lb/cookie}}", ""),
            ("{synCookies: {above: off}}", ""),
            ("{synCookies: {above: 0}}", "m.yaml:6:31: spec.flood.synCookies.above: 0 is below 1"),
            ("{synCookies: {secretFile: a}}", "spec.flood.synCookies.secretFile: is not an absolute path"),
            ("{synCookies: off}", "spec.flood.synCookies: `off` is not a map like {above: 20000}"),
            ("{newFlow: 1}", "spec.flood.newFlow: unknown field"),
        ] {
            let text = format!(
                "apiVersion: lb/v1\nkind: Director\nmetadata: {{name: d}}\nspec:\n  \
                 interfaces: [{{name: eth0}}]\n  flood: {field}\n"
            );
            let said = parse(&[Source { file: "m.yaml".into(), text }]).report.to_string();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{field}: {said}");
        }
    }
}
