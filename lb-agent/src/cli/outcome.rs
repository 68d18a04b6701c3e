//! What an order did or would do, as text for people.

use std::fmt::Write;

use crate::control::{Change, Effect, Outcome, Verb};

/// One line per object that changes, with `verbose` one per step, and a last one that sums up.
pub fn lines(outcome: &Outcome, verbose: bool) -> String {
    let mut text = String::new();
    for Change { verb, object, fields, effect } in &outcome.plan {
        let sign = match verb {
            Verb::Add => '+',
            Verb::Change => '~',
            Verb::Remove => '-',
        };
        let _ = write!(text, "{sign} {object}");
        if !fields.is_empty() {
            let _ = write!(text, "  {}", fields.join(", "));
        }
        let _ = match (verb, effect) {
            (_, Effect::Restart) => writeln!(text, " (at the agent's next start)"),
            (Verb::Change, Effect::Live) => writeln!(text, " (live)"),
            _ => writeln!(text),
        };
    }
    if verbose {
        for step in &outcome.steps {
            let _ = writeln!(text, "    {step}");
        }
    }
    for warning in &outcome.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let of = |verb| outcome.plan.iter().filter(|change| change.verb == verb).count();
    let _ = match (outcome.plan.is_empty(), outcome.applied) {
        // The tables may have been repaired all the same.
        (true, true) if outcome.map_writes > 0 => {
            writeln!(text, "nothing to change; {} repaired", plural(outcome.map_writes, "map element"))
        }
        (true, _) => writeln!(text, "nothing to change"),
        (false, true) => writeln!(
            text,
            "done: {} added, {} changed, {} removed; {}",
            of(Verb::Add),
            of(Verb::Change),
            of(Verb::Remove),
            plural(outcome.map_writes, "map write"),
        ),
        (false, false) => writeln!(
            text,
            "would be: {} added, {} changed, {} removed",
            of(Verb::Add),
            of(Verb::Change),
            of(Verb::Remove)
        ),
    };
    text
}

fn plural(count: u64, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}
