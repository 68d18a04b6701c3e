//! `spec.packets` of a Director.

use super::raw::Raw;
use super::reader::{Faults, Field};
use super::word;
use crate::model::{Echo, Fragments, LeaveTo, PacketPolicy, TooBigForTunnel};

const ECHO: [(&str, Echo); 3] = [("answer", Echo::Answer), ("pass", Echo::Pass), ("drop", Echo::Drop)];
const TOO_BIG: [(&str, TooBigForTunnel); 2] =
    [("drop", TooBigForTunnel::Drop), ("fragment", TooBigForTunnel::Fragment)];
const LEAVE: [(&str, LeaveTo); 2] = [("drop", LeaveTo::Drop), ("pass", LeaveTo::Pass)];
const OVERLAPPING: [(&str, bool); 2] = [("drop", false), ("forward", true)];

pub fn decode(field: &Field<'_>, faults: &mut Faults) -> Option<PacketPolicy> {
    let mut map = field.map("a map like {echo: answer}", faults)?;
    let echo = map.get("echo").and_then(|field| field.one_of(&ECHO, faults));
    let too_big = map.get("tooBigForTunnel").and_then(|field| field.one_of(&TOO_BIG, faults));
    let fragments = map.get("fragments").and_then(|field| fragments(&field, faults));
    map.finish(faults);
    Some(PacketPolicy {
        echo: echo.unwrap_or_default(),
        too_big_for_tunnel: too_big.unwrap_or_default(),
        fragments: fragments.unwrap_or_default(),
    })
}

fn fragments(field: &Field<'_>, faults: &mut Faults) -> Option<Fragments> {
    let mut map = field.map("a map like {outOfOrder: drop}", faults)?;
    let out_of_order = map.get("outOfOrder").and_then(|field| field.one_of(&LEAVE, faults));
    let tiny = map.get("tiny").and_then(|field| field.one_of(&LEAVE, faults));
    let overlapping = map.get("overlapping").and_then(|field| field.one_of(&OVERLAPPING, faults));
    map.finish(faults);
    Some(Fragments {
        out_of_order: out_of_order.unwrap_or_default(),
        tiny: tiny.unwrap_or_default(),
        forward_overlapping: overlapping.unwrap_or_default(),
    })
}

pub fn encode(policy: &PacketPolicy) -> Raw {
    let Fragments { out_of_order, tiny, forward_overlapping } = policy.fragments;
    let fragments = Raw::map([
        ("outOfOrder", Some(word(&LEAVE, out_of_order))),
        ("tiny", Some(word(&LEAVE, tiny))),
        ("overlapping", Some(word(&OVERLAPPING, forward_overlapping))),
    ]);
    Raw::map([
        ("echo", Some(word(&ECHO, policy.echo))),
        ("tooBigForTunnel", Some(word(&TOO_BIG, policy.too_big_for_tunnel))),
        ("fragments", Some(fragments)),
    ])
}

#[cfg(test)]
mod tests {
    use crate::manifest::{Source, load_text, parse};
    use lb_common::scratch::policy;

    fn director(packets: &str) -> String {
        format!(
            "apiVersion: lb/v1\nkind: Director\nmetadata: {{name: d}}\nspec:\n  interfaces: [{{name: eth0}}]\n  \
             packets: {packets}\n"
        )
    }

    #[test]
    fn every_word_is_a_bit_of_the_programs_and_the_default_none() {
        for (packets, bits) in [
            ("{}", 0),
            ("{echo: answer}", policy::ECHO_ANSWER),
            ("{echo: pass}", 0),
            ("{echo: drop}", policy::ECHO_DROP),
            ("{tooBigForTunnel: fragment}", policy::TUNNEL_FRAGMENT),
            ("{fragments: {outOfOrder: pass}}", policy::UNKNOWN_PASS),
            ("{fragments: {tiny: pass}}", policy::TINY_PASS),
            ("{fragments: {overlapping: forward}}", policy::OVERLAP_FORWARD),
        ] {
            let objects = load_text("m.yaml", &director(packets)).unwrap();
            let (director, _) = objects.directors().next().unwrap();
            assert_eq!(director.packets.bits(), bits, "{packets}");
        }
    }

    #[test]
    fn what_is_no_policy_is_refused_with_its_place() {
        for (packets, expected) in [
            ("{echo: reply}", "m.yaml:6:19: spec.packets.echo: `reply` is not one of answer, pass, drop"),
            ("{tooBigForTunnel: pass}", "spec.packets.tooBigForTunnel: `pass` is not one of drop, fragment"),
            ("{fragments: {overlapping: pass}}", "spec.packets.fragments.overlapping"),
            ("{fragment: {}}", "spec.packets.fragment: unknown field"),
        ] {
            let text = director(packets);
            let said = parse(&[Source { file: "m.yaml".into(), text }]).report.to_string();
            assert!(said.contains(expected), "{packets}: {said}");
        }
    }
}
