//! Reading the fields of a document: every accessor returns the value, or notes a fault and returns nothing,
//! so that one pass finds all that is wrong.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use jiff::SignedDuration;
use jiff::fmt::friendly::SpanParser;

use super::marks::Part;
use super::prefix_list;
use super::raw::Raw;
use crate::model::{Name, valid_interface_name};

/// A mistake at a path of a document whose place is not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub path: String,
    pub part: Part,
    pub message: String,
    pub help: Option<String>,
}

/// The faults of one document.
#[derive(Debug, Default)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub fn add(&mut self, path: impl Into<String>, message: impl Into<String>) -> &mut Fault {
        let fault = Fault { path: path.into(), part: Part::Value, message: message.into(), help: None };
        self.0.push(fault);
        self.0.last_mut().expect("one was pushed just now")
    }
}

impl Fault {
    pub fn help(&mut self, help: impl Into<String>) -> &mut Fault {
        self.help = Some(help.into());
        self
    }

    pub fn at_key(&mut self, nth: usize) -> &mut Fault {
        self.part = Part::Key(nth);
        self
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    pub raw: &'a Raw,
    pub path: String,
}

impl<'a> Field<'a> {
    /// A fault saying that this value should be something else.
    pub fn expected<'f>(&self, what: impl Display, faults: &'f mut Faults) -> &'f mut Fault {
        faults.add(self.path.as_str(), format!("{} is not {what}", self.raw))
    }

    pub fn text(&self, what: &str, faults: &mut Faults) -> Option<&'a str> {
        match self.raw {
            Raw::Text(text) => Some(text),
            Raw::Bool(_) | Raw::Integer(_) | Raw::Float(_) => {
                self.expected(what, faults).help("put it between quotes if it is meant as a text");
                None
            }
            _ => {
                self.expected(what, faults);
                None
            }
        }
    }

    pub fn integer<T>(&self, range: RangeInclusive<T>, faults: &mut Faults) -> Option<T>
    where
        T: Copy + Display + Into<i128> + TryFrom<i128>,
    {
        let &Raw::Integer(value) = self.raw else {
            let fault = self.expected("a whole number", faults);
            if matches!(self.raw, Raw::Text(text) if text.parse::<i128>().is_ok()) {
                fault.help("write it without quotes");
            }
            return None;
        };
        let (least, most) = (*range.start(), *range.end());
        if value < least.into() {
            faults.add(self.path.as_str(), format!("{value} is below {least}"));
        } else if value > most.into() {
            faults.add(self.path.as_str(), format!("{value} is above {most}"));
        } else {
            return T::try_from(value).ok();
        }
        None
    }

    /// `true` or `false`.
    pub fn boolean(&self, faults: &mut Faults) -> Option<bool> {
        if let Raw::Bool(value) = self.raw {
            return Some(*value);
        }
        self.expected("true or false", faults);
        None
    }

    /// One of some words.
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)], faults: &mut Faults) -> Option<T> {
        let known: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
        let what = format!("one of {}", known.join(", "));
        let Raw::Text(text) = self.raw else {
            self.expected(what, faults);
            return None;
        };
        let found = words.iter().find(|(word, _)| word == text).map(|&(_, value)| value);
        if found.is_none() {
            let fault = self.expected(what, faults);
            if let Some(near) = nearest(text, known) {
                fault.help(format!("did you mean `{near}`?"));
            }
        }
        found
    }

    pub fn name(&self, faults: &mut Faults) -> Option<Name> {
        let text = self.text("a name", faults)?;
        Name::new(text).map_err(|rule| _ = self.expected("a name", faults).help(rule)).ok()
    }

    pub fn interface_name(&self, faults: &mut Faults) -> Option<String> {
        let text = self.text("the name of an interface", faults)?;
        if !valid_interface_name(text) {
            let fault = self.expected("the name of an interface", faults);
            fault.help("Linux takes 1 to 15 bytes without slash, colon and white space");
            return None;
        }
        Some(text.to_owned())
    }

    /// A unicast address that a packet on the wire can have and that needs no interface to be told apart.
    pub fn unicast(&self, faults: &mut Faults) -> Option<IpAddr> {
        let text = self.text("an IP address", faults)?;
        let Ok(address) = text.parse::<IpAddr>() else {
            let fault = self.expected("an IP address", faults);
            if let Some((address, _)) = text.split_once('/')
                && address.parse::<IpAddr>().is_ok()
            {
                fault.help(format!("write it without the prefix length: {address}"));
            }
            return None;
        };
        match unusable(address) {
            None => Some(address),
            Some(reason) => {
                faults.add(self.path.as_str(), format!("{address} is {reason}"));
                None
            }
        }
    }

    /// A prefix whose bits beyond its length are 0, or a single address.
    pub fn prefix(&self, what: &str, faults: &mut Faults) -> Option<IpNet> {
        match prefix_list::prefix(self.text(what, faults)?) {
            Ok(net) => Some(net),
            Err(prefix_list::Wrong::Syntax) => {
                self.expected(what, faults);
                None
            }
            Err(prefix_list::Wrong::HostBits(net)) => {
                faults.add(self.path.as_str(), prefix_list::message(net)).help(prefix_list::help(net));
                None
            }
        }
    }

    /// A duration in the form `1h 30m`, `5m`, `2s`, `500ms`.
    pub fn duration(&self, range: RangeInclusive<Duration>, faults: &mut Faults) -> Option<Duration> {
        let what = "a duration like 5m or 2s";
        let text = match self.raw {
            Raw::Text(text) => text,
            Raw::Integer(number) => {
                self.expected(what, faults).help(format!("a duration has a unit: {number}s"));
                return None;
            }
            _ => {
                self.expected(what, faults);
                return None;
            }
        };
        let Some(duration) = SpanParser::new()
            .parse_duration(text)
            .ok()
            .and_then(|duration: SignedDuration| Duration::try_from(duration).ok())
        else {
            self.expected(what, faults);
            return None;
        };
        let limits = [
            (range.start(), duration < *range.start(), "below"),
            (range.end(), duration > *range.end(), "above"),
        ];
        for (limit, broken, side) in limits {
            if broken {
                let limit = duration_text(*limit);
                faults.add(self.path.as_str(), format!("{} is {side} {limit}", duration_text(duration)));
                return None;
            }
        }
        Some(duration)
    }

    /// The items of a list of at most `most`. `None` was already noted.
    pub fn list(&self, what: &str, most: usize, faults: &mut Faults) -> Option<Vec<Field<'a>>> {
        let Raw::List(items) = self.raw else {
            self.expected(what, faults);
            return None;
        };
        if items.len() > most {
            faults.add(self.path.as_str(), format!("{} entries are above {most}", items.len()));
            return None;
        }
        let item = |(index, raw)| Field { raw, path: format!("{}[{index}]", self.path) };
        Some(items.iter().enumerate().map(item).collect())
    }

    pub fn map(&self, what: &str, faults: &mut Faults) -> Option<Map<'a>> {
        let Raw::Map(entries) = self.raw else {
            self.expected(what, faults);
            return None;
        };
        Some(Map { path: self.path.clone(), entries, known: Vec::new() })
    }
}

/// A map whose fields are asked for one by one; [`Map::finish`] then knows which were not asked for.
#[derive(Debug)]
pub struct Map<'a> {
    path: String,
    entries: &'a [(String, Raw)],
    known: Vec<&'static str>,
}

impl<'a> Map<'a> {
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The field of that name. A key without a value counts as not given.
    pub fn get(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let (_, raw) = self.entries.iter().find(|(name, raw)| name == key && *raw != Raw::Null)?;
        Some(Field { raw, path: self.path_of(key) })
    }

    pub fn require(&mut self, key: &'static str, faults: &mut Faults) -> Option<Field<'a>> {
        let field = self.get(key);
        if field.is_none() {
            faults.add(self.path_of(key), "is required");
        }
        field
    }

    /// Notes the keys that nobody asked for, and those given twice.
    pub fn finish(self, faults: &mut Faults) {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (key, _) in self.entries {
            let before = seen.entry(key).or_default();
            *before += 1;
            let path = self.path_of(key);
            if *before > 1 {
                faults.add(path, "is given twice").at_key(*before - 1);
            } else if !self.known.contains(&key.as_str()) {
                let help = match nearest(key, self.known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known here: {}", self.known.join(", ")),
                };
                faults.add(path, "unknown field").at_key(0).help(help);
            }
        }
    }
}

/// Why an address cannot be a VIP, a pool address or a real server's, or None.
pub fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("a link-local address, which needs an interface")
        }
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some("an IPv4-mapped address, which no packet may carry; write the IPv4 address")
        }
        _ => None,
    }
}

/// `15m`, `1h 30m`.
pub fn duration_text(duration: Duration) -> String {
    SignedDuration::try_from(duration)
        .map_or_else(|_| format!("{duration:?}"), |signed| format!("{signed:#}"))
}

/// The word nearest to `text`, if it is near enough to have been meant.
pub fn nearest<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let lower = text.to_lowercase();
    let allowed = (text.chars().count() / 3).max(1);
    let distances = words.into_iter().map(|word| (distance(&lower, &word.to_lowercase()), word));
    distances
        .filter(|&(distance, _)| distance <= allowed)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, w)| w)
}

/// How many characters must be inserted, removed, replaced or swapped with their neighbour to turn `a` into
/// `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let words = ["weight", "address", "port", "forwarding"];
        for (text, meant) in [
            ("wieght", Some("weight")),
            ("Weight", Some("weight")),
            ("adress", Some("address")),
            ("prot", Some("port")),
            ("ports", Some("port")),
            ("forward", None),
            ("persistence", None),
        ] {
            assert_eq!(nearest(text, words), meant, "{text}");
        }
    }

    fn duration(raw: &Raw) -> Result<Duration, String> {
        let mut faults = Faults::default();
        let field = Field { raw, path: "timeout".into() };
        let range = Duration::from_secs(1)..=Duration::from_secs(7200);
        field.duration(range, &mut faults).ok_or_else(|| faults.0.remove(0).message)
    }

    #[test]
    fn durations_have_units_and_limits() {
        for (text, seconds) in [("2s", 2), ("5m", 300), ("1h 30m", 5400), ("90 minutes", 5400), ("2h", 7200)]
        {
            assert_eq!(duration(&Raw::text(text)), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for (text, message) in [
            ("500ms", "500ms is below 1s"),
            ("3h", "3h is above 2h"),
            ("-5s", "`-5s` is not a duration like 5m or 2s"),
            ("1d", "`1d` is not a duration like 5m or 2s"),
            ("soon", "`soon` is not a duration like 5m or 2s"),
        ] {
            assert_eq!(duration(&Raw::text(text)), Err(message.into()), "{text}");
        }
        assert_eq!(duration(&Raw::Integer(5)), Err("5 is not a duration like 5m or 2s".into()));
    }

    #[test]
    fn addresses_that_no_server_can_have_are_refused() {
        for (text, usable) in [
            ("203.0.113.10", true),
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("169.254.1.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("127.0.0.2", false),
            ("::1", false),
            ("224.0.0.18", false),
            ("ff02::1", false),
            ("255.255.255.255", false),
            ("fe80::1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(unusable(text.parse().unwrap()).is_none(), usable, "{text}");
        }
    }
}
