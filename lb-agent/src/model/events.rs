//! Where events go: programs to run, URLs to send to.

use std::fmt;
use std::time::Duration;

/// A program that is run for events, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Program (an absolute path) and arguments.
    pub command: Vec<String>,
    pub on: Selection,
    /// After that it is killed.
    pub timeout: Duration,
}

/// A URL that events are sent to as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    pub url: Url,
    pub on: Selection,
    /// Of one attempt.
    pub timeout: Duration,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Subjects (`VrrpInstance/edge`); one that ends with `*` stands for all that begin so. Empty: all.
    pub subjects: Vec<String>,
    /// Kinds (`master`). Empty: all.
    pub kinds: Vec<String>,
}

impl Selection {
    pub fn takes(&self, subject: &str, kind: &str) -> bool {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => subject.starts_with(beginning),
            None => subject == pattern,
        };
        (self.subjects.is_empty() || self.subjects.iter().any(fits))
            && (self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind))
    }
}

/// `http://host:port/path` or `https://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// Begins with a slash; with the query.
    pub path: String,
}

impl Url {
    /// Fails with the sentence that tells what is wrong.
    pub fn parse(text: &str) -> Result<Url, &'static str> {
        let (tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err("a URL begins with http:// or https://"),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("a URL with a user or a password would show them in status and logs");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or("an IPv6 address in a URL stands between [ and ]")?,
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| "a port is a number up to 65535")?,
            None if port.is_empty() => {
                if tls {
                    443
                } else {
                    80
                }
            }
            None => return Err("behind the host stands a port or a path"),
        };
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !visible(text) {
            return Err("a URL has a host and no spaces");
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Url { tls, host: host.to_owned(), port, path })
    }

    /// Host and port as a `Host` header holds them.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_written_back() {
        for (text, back) in [
            ("http://hooks.example/lb", "http://hooks.example/lb"),
            ("https://hooks.example", "https://hooks.example/"),
            ("http://[2001:db8::1]:8080/a?b=c", "http://[2001:db8::1]:8080/a?b=c"),
            ("http://10.0.0.1:80?x", "http://10.0.0.1/?x"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), back);
        }
        for bad in ["", "ftp://x", "http://", "http://a:b/", "http://a:70000", "http://u:p@a/", "http://a b/"]
        {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_selection_takes_by_subject_and_kind() {
        let on = |subjects: &[&str], kinds: &[&str]| Selection {
            subjects: subjects.iter().map(ToString::to_string).collect(),
            kinds: kinds.iter().map(ToString::to_string).collect(),
        };
        for (selection, takes) in [
            (on(&[], &[]), true),
            (on(&["VrrpInstance/edge"], &[]), true),
            (on(&["VrrpInstance/*"], &["backup", "master"]), true),
            (on(&["VrrpInstance/ed"], &[]), false),
            (on(&["RealServer/*"], &[]), false),
            (on(&[], &["backup"]), false),
        ] {
            assert_eq!(selection.takes("VrrpInstance/edge", "master"), takes, "{selection:?}");
        }
    }
}
