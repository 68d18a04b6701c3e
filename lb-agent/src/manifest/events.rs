//! Hooks and webhooks as the operator writes them.

use std::time::Duration;

use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text};
use crate::model::{Hook, Selection, Url, Webhook};

/// `events:` of a Director.
pub fn decode(field: &Field<'_>, faults: &mut Faults) -> Option<(Vec<Hook>, Vec<Webhook>)> {
    let mut map = field.map("a map like {hooks: [{command: [/usr/local/bin/told]}]}", faults)?;
    let hooks = items(map.get("hooks"), "a list of hooks", faults, hook);
    let webhooks = items(map.get("webhooks"), "a list of webhooks", faults, webhook);
    map.finish(faults);
    for (nth, webhook) in webhooks.iter().enumerate() {
        if webhooks[..nth].iter().any(|other| other.url == webhook.url) {
            faults.add(
                format!("{}.webhooks[{nth}].url", field.path),
                format!("{} is listed twice", webhook.url),
            );
        }
    }
    Some((hooks, webhooks))
}

pub fn encode(hooks: &[Hook], webhooks: &[Webhook]) -> Option<Raw> {
    if hooks.is_empty() && webhooks.is_empty() {
        return None;
    }
    let hook = |hook: &Hook| {
        Raw::map([
            ("command", Some(texts(&hook.command))),
            ("subjects", list(&hook.on.subjects)),
            ("kinds", list(&hook.on.kinds)),
            ("timeout", Some(Raw::Text(duration_text(hook.timeout)))),
        ])
    };
    let webhook = |webhook: &Webhook| {
        Raw::map([
            ("url", Some(Raw::text(&webhook.url))),
            ("subjects", list(&webhook.on.subjects)),
            ("kinds", list(&webhook.on.kinds)),
            ("timeout", Some(Raw::Text(duration_text(webhook.timeout)))),
        ])
    };
    let hooks = (!hooks.is_empty()).then(|| Raw::List(hooks.iter().map(hook).collect()));
    let webhooks = (!webhooks.is_empty()).then(|| Raw::List(webhooks.iter().map(webhook).collect()));
    Some(Raw::map([("hooks", hooks), ("webhooks", webhooks)]))
}

fn items<T>(
    field: Option<Field<'_>>,
    what: &str,
    faults: &mut Faults,
    read: impl Fn(&Field<'_>, &mut Faults) -> Option<T>,
) -> Vec<T> {
    let items = field.and_then(|field| field.list(what, SINKS_MAX, faults)).unwrap_or_default();
    items.iter().filter_map(|item| read(item, faults)).collect()
}

fn hook(field: &Field<'_>, faults: &mut Faults) -> Option<Hook> {
    let mut map = field.map("a hook like {command: [/usr/local/bin/told], kinds: [master]}", faults)?;
    let command = map.require("command", faults).and_then(|field| command(&field, faults));
    let on = selection(&mut map, faults);
    let timeout = map.get("timeout").and_then(|field| field.duration(HOOK_TIMEOUT, faults));
    map.finish(faults);
    Some(Hook { command: command?, on, timeout: timeout.unwrap_or(HOOK_TIMEOUT_DEFAULT) })
}

/// A program with its arguments, run without a shell.
pub fn command(field: &Field<'_>, faults: &mut Faults) -> Option<Vec<String>> {
    let items = field.list("a list like [/usr/local/bin/told, argument]", COMMAND_MAX, faults)?;
    let words: Vec<Option<String>> =
        items.iter().map(|item| item.text("a text", faults).map(str::to_owned)).collect();
    let words: Vec<String> = words.into_iter().collect::<Option<_>>()?;
    match words.first() {
        None => _ = faults.add(field.path.as_str(), "is empty; it begins with the path of a program"),
        Some(program) if !program.starts_with('/') => {
            let message = format!("`{}` is not an absolute path", program.escape_debug());
            faults.add(format!("{}[0]", field.path), message).help(
                "a program is found by its whole path, whatever PATH the agent has; a script needs /bin/sh",
            );
        }
        Some(_) if words.iter().any(|word| word.contains('\0')) => {
            faults.add(field.path.as_str(), "holds a zero byte, which no program can be given");
        }
        Some(_) => return Some(words),
    }
    None
}

fn webhook(field: &Field<'_>, faults: &mut Faults) -> Option<Webhook> {
    let mut map = field.map("a webhook like {url: \"http://10.0.0.9:8080/lb\"}", faults)?;
    let url = map.require("url", faults).and_then(|field| {
        let text = field.text("a URL", faults)?;
        Url::parse(text).map_err(|rule| _ = field.expected("a URL", faults).help(rule)).ok()
    });
    let on = selection(&mut map, faults);
    let timeout = map.get("timeout").and_then(|field| field.duration(WEBHOOK_TIMEOUT, faults));
    map.finish(faults);
    Some(Webhook { url: url?, on, timeout: timeout.unwrap_or(WEBHOOK_TIMEOUT_DEFAULT) })
}

fn selection(map: &mut Map<'_>, faults: &mut Faults) -> Selection {
    let mut words = |key, what: &str| {
        let items = map.get(key).and_then(|field| field.list(what, SELECTED_MAX, faults)).unwrap_or_default();
        items.iter().filter_map(|item| item.text("a text", faults).map(str::to_owned)).collect()
    };
    Selection {
        subjects: words("subjects", "a list like [VrrpInstance/edge, \"RealServer/*\"]"),
        kinds: words("kinds", "a list like [master, backup, fault]"),
    }
}

fn texts(words: &[String]) -> Raw {
    Raw::List(words.iter().map(Raw::text).collect())
}

fn list(words: &[String]) -> Option<Raw> {
    (!words.is_empty()).then(|| texts(words))
}

const HOOK_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
const HOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const WEBHOOK_TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);
const WEBHOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Hooks, and webhooks: more would be a program's business.
const SINKS_MAX: usize = 64;
const SELECTED_MAX: usize = 64;
const COMMAND_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use crate::manifest::{Source, load_text, parse, to_yaml};
    use crate::model::Object;

    fn director(events: &str) -> String {
        format!(
            "apiVersion: lb/v1\nkind: Director\nmetadata: {{name: d}}\nspec:\n  interfaces: [{{name: eth0}}]\n  events:\n{events}"
        )
    }

    #[test]
    fn hooks_and_webhooks_are_read_and_written_back() {
        let text = director(
            "    hooks:\n      - {command: [/bin/told, a], subjects: [VrrpInstance/edge], kinds: [master, backup], timeout: 5s}\n    \
             webhooks:\n      - {url: \"https://hooks.example/lb\"}\n",
        );
        let objects = load_text("d.yaml", &text).unwrap();
        let director = objects.director().unwrap().clone();
        assert_eq!((director.hooks.len(), director.webhooks.len()), (1, 1));
        assert!(director.hooks[0].on.takes("VrrpInstance/edge", "backup"));
        assert!(!director.hooks[0].on.takes("VrrpInstance/edge", "fault"));
        let back = to_yaml(&Object::Director(director.clone()));
        let parsed = parse(&[Source { file: "d.yaml".into(), text: back }]);
        assert_eq!(parsed.objects.director(), Some(&director));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (events, says) in [
            ("    hooks: [{command: []}]\n", "d.yaml:7:23: spec.events.hooks[0].command: is empty"),
            ("    hooks: [{command: [told]}]\n", "`told` is not an absolute path"),
            ("    hooks: [{command: [/bin/told], timeout: 0s}]\n", "spec.events.hooks[0].timeout"),
            ("    webhooks: [{url: \"ftp://x\"}]\n", "begins with http:// or https://"),
            ("    webhooks: [{url: \"http://x\"}, {url: \"http://x/\"}]\n", "listed twice"),
            ("    mail: []\n", "unknown field"),
        ] {
            let report = load_text("d.yaml", &director(events)).unwrap_err();
            let text = report.to_string() + &report.render(&[], false);
            assert!(text.contains(says), "{events}: {text}");
        }
    }
}
