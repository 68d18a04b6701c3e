//! `spec.flood` of a Director.

use super::raw::Raw;
use super::reader::{Faults, Field};
use crate::model::Flood;

pub fn decode(field: &Field<'_>, faults: &mut Faults) -> Option<Flood> {
    let mut map = field.map("a map like {newFlows: 100000}", faults)?;
    let default = Flood::default();
    let new_flows = map.get("newFlows").and_then(|field| rate(&field, faults));
    map.finish(faults);
    Some(Flood { new_flows: new_flows.unwrap_or(default.new_flows) })
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
    Raw::map([("newFlows", Some(encode_rate(flood.new_flows)))])
}

fn encode_rate(rate: Option<u32>) -> Raw {
    rate.map_or_else(|| Raw::text("off"), Raw::integer)
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
