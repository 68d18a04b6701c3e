//! `authentication` of a VrrpInstance.

use std::path::PathBuf;
use std::time::Duration;

use super::raw::Raw;
use super::reader::{Faults, Field, Map, duration_text};
use super::word;
use crate::model::{Authentication, HmacAuthentication, HmacKey, HmacMode, KeySource, VrrpVersion};
use crate::vrrp::advert::PASSWORD_LEN;
use crate::vrrp::auth::KEY_LEN;

#[derive(Clone, Copy)]
enum Type {
    None,
    Pass,
    Hmac,
}

pub fn decode(field: &Field<'_>, version: VrrpVersion, faults: &mut Faults) -> Option<Authentication> {
    let mut map = field.map("a map like {type: hmac, keys: [{id: 1, file: /etc/lb/vrrp.key}]}", faults)?;
    let kind = map.require("type", faults).and_then(|field| field.one_of(&TYPES, faults));
    let authentication = match kind {
        None => {
            // What belongs to a type that is not known is not called unknown too.
            for key in ["password", "keys", "activeKey", "mode", "window"] {
                map.get(key);
            }
            None
        }
        Some(Type::None) => Some(Authentication::None),
        Some(Type::Pass) => {
            if version == VrrpVersion::V3 {
                let help = "RFC 5798 took them out; use type hmac, or version 2";
                faults.add(map.path_of("type"), "version 3 has no passwords").help(help);
            }
            let password = map.require("password", faults).and_then(|field| password(&field, faults));
            password.map(|password| Authentication::Pass { password })
        }
        Some(Type::Hmac) => hmac(&mut map, faults).map(Authentication::Hmac),
    };
    map.finish(faults);
    authentication
}

fn password(field: &Field<'_>, faults: &mut Faults) -> Option<String> {
    let text = field.text("a password", faults)?;
    if text.is_empty() || text.len() > PASSWORD_LEN || text.bytes().any(|byte| byte == 0) {
        let message = format!("a password has 1 to {PASSWORD_LEN} bytes, this one {}", text.len());
        faults.add(field.path.as_str(), message);
        return None;
    }
    Some(text.to_owned())
}

fn hmac(map: &mut Map<'_>, faults: &mut Faults) -> Option<HmacAuthentication> {
    let keys_path = map.path_of("keys");
    let active_path = map.path_of("activeKey");
    let keys = map.require("keys", faults).and_then(|field| {
        let items = field.list("a list of keys like [{id: 1, file: /etc/lb/vrrp.key}]", KEYS_MAX, faults)?;
        let mut keys: Vec<HmacKey> = Vec::new();
        let mut complete = !items.is_empty();
        for item in items {
            let Some(key) = key(&item, faults) else {
                complete = false;
                continue;
            };
            if keys.iter().any(|other| other.id == key.id) {
                faults.add(format!("{}.id", item.path), format!("key {} is listed twice", key.id));
            }
            keys.push(key);
        }
        complete.then_some(keys)
    });
    let active = map.get("activeKey").and_then(|field| field.integer(0..=u8::MAX, faults));
    let mode = map.get("mode").and_then(|field| field.one_of(&MODES, faults));
    let window = map.get("window").and_then(|field| match field.raw {
        Raw::Text(text) if text == "off" => Some(None),
        _ => field.duration(WINDOW, faults).map(Some),
    });
    let Some(keys) = keys else {
        if faults.0.iter().all(|fault| !fault.path.starts_with(&keys_path)) {
            faults.add(keys_path, "has no key");
        }
        return None;
    };
    let active_key = match (active, &keys[..]) {
        (Some(active), _) if keys.iter().any(|key| key.id == active) => active,
        (Some(active), _) => {
            let known: Vec<String> = keys.iter().map(|key| key.id.to_string()).collect();
            let fault = faults.add(active_path, format!("there is no key {active}"));
            fault.help(format!("the keys are {}", known.join(", ")));
            return None;
        }
        (None, [only]) => only.id,
        (None, _) => {
            faults.add(active_path, "is required with several keys").help("it signs what is sent");
            return None;
        }
    };
    let mode = mode.unwrap_or(HmacMode::Enforce);
    Some(HmacAuthentication { keys, active_key, mode, window: window.unwrap_or(Some(DEFAULT_WINDOW)) })
}

fn key(field: &Field<'_>, faults: &mut Faults) -> Option<HmacKey> {
    let mut map = field.map("a key like {id: 1, file: /etc/lb/vrrp.key}", faults)?;
    let id = map.require("id", faults).and_then(|field| field.integer(0..=u8::MAX, faults));
    let (inline, file) = (map.get("key"), map.get("file"));
    map.finish(faults);
    let source = match (inline, file) {
        (Some(_), Some(file)) => {
            faults.add(file.path, "a key is given by `key` or by `file`, not by both").at_key(0);
            None
        }
        (None, None) => {
            let fault = faults.add(field.path.as_str(), "has neither `key` nor `file`");
            fault.help("`head -c 32 /dev/urandom | xxd -p -c 64 > FILE` makes one");
            None
        }
        (None, Some(file)) => {
            let text = file.text("the path of a file", faults)?;
            if !text.starts_with('/') {
                faults.add(file.path.as_str(), format!("`{}` is not an absolute path", text.escape_debug()));
                return None;
            }
            Some(KeySource::File(PathBuf::from(text)))
        }
        (Some(inline), None) => {
            let text = inline.text("hexadecimal digits", faults)?;
            match parse_key(text) {
                Ok(bytes) => Some(KeySource::Inline(bytes)),
                Err(message) => {
                    faults.add(inline.path, message);
                    None
                }
            }
        }
    };
    Some(HmacKey { id: id?, source: source? })
}

/// A key in hexadecimal digits, as it stands in a manifest or a file; white space at its ends does not count.
pub fn parse_key(text: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<u8>> =
        text.trim().chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let (least, most) = (KEY_LEN.start(), KEY_LEN.end());
    let Some(digits) = digits else { return Err("a key consists of hexadecimal digits".to_owned()) };
    if !digits.len().is_multiple_of(2) || !KEY_LEN.contains(&(digits.len() / 2)) {
        let message = format!(
            "a key has {} to {} hexadecimal digits ({least} to {most} bytes), this one {}",
            least * 2,
            most * 2,
            digits.len()
        );
        return Err(message);
    }
    Ok(digits.chunks(2).map(|pair| (pair[0] << 4) | pair[1]).collect())
}

pub fn encode_authentication(authentication: &Authentication) -> Raw {
    let kind = |kind: &str| ("type", Some(Raw::text(kind)));
    match authentication {
        Authentication::None => Raw::map([kind("none")]),
        Authentication::Pass { password } => {
            Raw::map([kind("pass"), ("password", Some(Raw::text(password)))])
        }
        Authentication::Hmac(hmac) => {
            let window = hmac.window.map_or_else(|| "off".to_owned(), duration_text);
            Raw::map([
                kind("hmac"),
                ("keys", Some(Raw::List(hmac.keys.iter().map(encode_key).collect()))),
                ("activeKey", Some(Raw::integer(hmac.active_key))),
                ("mode", Some(word(&MODES, hmac.mode))),
                ("window", Some(Raw::Text(window))),
            ])
        }
    }
}

fn encode_key(key: &HmacKey) -> Raw {
    let id = ("id", Some(Raw::integer(key.id)));
    match &key.source {
        KeySource::Inline(bytes) => {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            Raw::map([id, ("key", Some(Raw::Text(digits)))])
        }
        KeySource::File(path) => Raw::map([id, ("file", Some(Raw::text(path.display())))]),
    }
}

const TYPES: [(&str, Type); 3] = [("none", Type::None), ("pass", Type::Pass), ("hmac", Type::Hmac)];
const MODES: [(&str, HmacMode); 3] = [
    ("receive-only", HmacMode::ReceiveOnly),
    ("permissive", HmacMode::Permissive),
    ("enforce", HmacMode::Enforce),
];
/// keepalived's range.
const WINDOW: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
const DEFAULT_WINDOW: Duration = Duration::from_secs(30);
const KEYS_MAX: usize = 16;
