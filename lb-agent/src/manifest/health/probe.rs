//! What a check sends and expects: one map per kind of probe.

use std::path::PathBuf;

use regex::Regex;

use crate::manifest::raw::Raw;
use crate::manifest::reader::{Faults, Field, Map};
use crate::manifest::word;
use crate::model::health::{
    AgentCheck, Digest, Dns, DnsTransport, DnsType, File, Grpc, Http, HttpVersion, Icmp, Probe, Reply,
    Script, Smtp, StatusRange, Tls, Udp,
};

/// A probe that needs no parameters.
pub fn by_word(text: &str) -> Option<Probe> {
    Some(match text {
        "tcp" => Probe::Tcp,
        "http" => Probe::Http(Http::get("/")),
        "https" => Probe::Http(Http { tls: Some(Tls::default()), ..Http::get("/") }),
        "grpc" => Probe::Grpc(Grpc::default()),
        "smtp" => Probe::Smtp(Smtp { helo: None, starttls: None }),
        "icmp" => Probe::Icmp(Icmp { size: ECHO_SIZE }),
        _ => return None,
    })
}

/// The one probe of a check.
pub fn decode(check: &mut Map<'_>, path: &str, faults: &mut Faults) -> Option<Probe> {
    let mut found: Option<(&str, Option<Probe>)> = None;
    for (key, read) in PROBES {
        let Some(field) = check.get(key) else { continue };
        if let Some((first, _)) = &found {
            let fault = faults.add(field.path.as_str(), format!("stands beside `{first}`")).at_key(0);
            fault.help("a check has one probe; several checks are written as `healthChecks`");
            continue;
        }
        found = Some((key, read_map(&field, read, faults)));
    }
    if found.is_none() {
        let words: Vec<&str> = PROBES.iter().map(|(word, _)| *word).collect();
        faults.add(path, "says nothing to probe").help(format!("one of {}", words.join(", ")));
    }
    found.and_then(|(_, probe)| probe)
}

type Read = fn(&mut Map<'_>, &mut Faults) -> Option<Probe>;

const PROBES: [(&str, Read); 11] = [
    ("tcp", |_, _| Some(Probe::Tcp)),
    ("http", |map, faults| http(map, false, faults)),
    ("https", |map, faults| http(map, true, faults)),
    ("grpc", grpc),
    ("smtp", smtp),
    ("dns", dns),
    ("udp", udp),
    ("icmp", icmp),
    ("script", script),
    ("file", file),
    ("agent", agent),
];

fn read_map(field: &Field<'_>, read: Read, faults: &mut Faults) -> Option<Probe> {
    let mut map = field.map("a map, empty where nothing is to be said: {}", faults)?;
    let probe = read(&mut map, faults);
    map.finish(faults);
    probe
}

fn http(map: &mut Map<'_>, tls: bool, faults: &mut Faults) -> Option<Probe> {
    let mut http = Http::get("/");
    if let Some(field) = map.get("version") {
        http.version = version(&field, faults).unwrap_or(http.version);
    }
    if let Some(field) = map.get("method")
        && let Some(text) = field.text("a method like HEAD", faults)
    {
        if !is_token(text) {
            field.expected("a method like HEAD", faults);
        }
        http.method = text.to_owned();
    }
    if let Some(field) = map.get("path")
        && let Some(text) = field.text("a path like /healthz", faults)
    {
        if !text.starts_with('/') || text.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
            field
                .expected("a path like /healthz?full", faults)
                .help("it begins with / and has no space and no #");
        }
        http.path = text.to_owned();
    }
    http.host = map.get("host").and_then(|field| host(&field, faults));
    if let Some(field) = map.get("headers") {
        http.headers = headers(&field, faults);
    }
    http.body = map.get("body").and_then(|field| field.text("a text", faults)).map(str::to_owned);
    if let Some(field) = map.get("status") {
        http.statuses = statuses(&field, faults);
    }
    let head = http.method == "HEAD";
    let mut of_a_body = |key, faults: &mut Faults| {
        let field = map.get(key)?;
        if head {
            faults.add(field.path.as_str(), "the answer to HEAD has no body").at_key(0).help("use GET");
        }
        Some(field)
    };
    http.matches = of_a_body("matches", faults).and_then(|field| pattern(&field, faults));
    http.digest = of_a_body("digest", faults).and_then(|field| digest(&field, faults));
    http.tls = tls.then(|| self::tls(map, faults));
    Some(Probe::Http(http))
}

fn version(field: &Field<'_>, faults: &mut Faults) -> Option<HttpVersion> {
    let text = match field.raw {
        Raw::Text(text) => text.clone(),
        other => other.to_string(),
    };
    let found = VERSIONS.iter().find(|(word, _)| *word == text || (text == "1" && *word == "1.0"));
    if found.is_none() {
        field.expected("one of 1.0, 1.1, 2", faults);
    }
    found.map(|(_, version)| *version)
}

fn host(field: &Field<'_>, faults: &mut Faults) -> Option<String> {
    let text = field.text("a host like www.example.com", faults)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]~".contains(&byte);
    if text.is_empty() || !text.bytes().all(fits) {
        field.expected("a host like www.example.com", faults);
        return None;
    }
    Some(text.to_owned())
}

fn headers(field: &Field<'_>, faults: &mut Faults) -> Vec<(String, String)> {
    let Raw::Map(entries) = field.raw else {
        field.expected("a map like {X-Probe: lb}", faults);
        return Vec::new();
    };
    let mut headers = Vec::new();
    for (name, raw) in entries {
        let field = Field { raw, path: format!("{}.{name}", field.path) };
        if !is_token(name) || name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case("content-length")
        {
            let fault = faults.add(field.path.as_str(), format!("{name} cannot be a header here")).at_key(0);
            fault.help("names are tokens; Host is `host`, and Content-Length follows from the body");
        } else if let Some(value) = field.text("a header's value", faults) {
            if value.bytes().any(|byte| !(byte == b'\t' || (b' '..=b'~').contains(&byte))) {
                field.expected("a header's value: printable ASCII", faults);
            } else {
                headers.push((name.clone(), value.to_owned()));
            }
        }
    }
    headers
}

/// A token (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// `200`, `200-299`, or a list of both.
fn statuses(field: &Field<'_>, faults: &mut Faults) -> Vec<StatusRange> {
    let items = match field.raw {
        Raw::List(_) => field.list("a list of statuses", 100, faults).unwrap_or_default(),
        _ => vec![field.clone()],
    };
    if items.is_empty() {
        faults.add(field.path.as_str(), "has no status");
    }
    let mut ranges: Vec<StatusRange> = items.iter().filter_map(|item| status(item, faults)).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

fn status(field: &Field<'_>, faults: &mut Faults) -> Option<StatusRange> {
    if matches!(field.raw, Raw::Integer(_)) {
        return field.integer(100..=599, faults).map(|status| StatusRange { first: status, last: status });
    }
    let range = match field.raw {
        Raw::Text(text) => text.split_once('-').and_then(|(first, last)| {
            Some(StatusRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
        }),
        _ => None,
    };
    let range = range.filter(|range| range.first >= 100 && range.first <= range.last && range.last <= 599);
    if range.is_none() {
        field.expected("a status like 200 or a range like 200-299", faults);
    }
    range
}

fn pattern(field: &Field<'_>, faults: &mut Faults) -> Option<String> {
    let text = field.text("a regular expression", faults)?;
    match Regex::new(text) {
        Ok(_) => Some(text.to_owned()),
        Err(error) => {
            // The last line of the error says what; the others draw it.
            let message = error.to_string();
            let last = message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            field.expected("a regular expression", faults).help(last);
            None
        }
    }
}

fn digest(field: &Field<'_>, faults: &mut Faults) -> Option<Digest> {
    let mut map = field.map("a map like {sha256: …}", faults)?;
    let sha256 = map.get("sha256").and_then(|field| hex::<32>(&field, faults)).map(Digest::Sha256);
    let md5 = map.get("md5");
    if let (Some(_), Some(md5)) = (&sha256, &md5) {
        faults.add(md5.path.as_str(), "one digest is enough").at_key(0);
    }
    let md5 = md5.and_then(|field| hex::<16>(&field, faults)).map(Digest::Md5);
    map.finish(faults);
    sha256.or(md5)
}

fn hex<const N: usize>(field: &Field<'_>, faults: &mut Faults) -> Option<[u8; N]> {
    let bytes = hex_bytes(field, faults)?;
    let digest = <[u8; N]>::try_from(bytes).ok();
    if digest.is_none() {
        field.expected(format!("{} hexadecimal digits", N * 2), faults);
    }
    digest
}

fn hex_bytes(field: &Field<'_>, faults: &mut Faults) -> Option<Vec<u8>> {
    let text = field.text("hexadecimal digits", faults)?;
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let even = digits.len().is_multiple_of(2) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !even {
        field.expected("hexadecimal digits, two for each byte", faults);
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

fn hex_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fields that say how a server proves who it is.
fn tls(map: &mut Map<'_>, faults: &mut Faults) -> Tls {
    let server_name = map.get("serverName").and_then(|field| host(&field, faults));
    let ca = map.get("ca").and_then(|field| absolute(&field, faults));
    let insecure = map.get("insecure");
    let given = insecure.as_ref().and_then(|field| boolean(field, faults)).unwrap_or(false);
    if let (Some(field), Some(_), true) = (insecure, &ca, given) {
        let fault = faults.add(field.path.as_str(), "stands beside `ca`");
        fault.help("a certificate is verified against that file, or not at all");
    }
    Tls { server_name, ca, insecure: given }
}

fn tls_in(field: &Field<'_>, faults: &mut Faults) -> Option<Tls> {
    if let Raw::Bool(on) = field.raw {
        return on.then(Tls::default);
    }
    let mut map = field.map("true, or a map like {ca: /etc/lb/ca.pem}", faults)?;
    let tls = tls(&mut map, faults);
    map.finish(faults);
    Some(tls)
}

fn boolean(field: &Field<'_>, faults: &mut Faults) -> Option<bool> {
    match field.raw {
        Raw::Bool(value) => Some(*value),
        _ => {
            field.expected("true or false", faults);
            None
        }
    }
}

pub fn absolute(field: &Field<'_>, faults: &mut Faults) -> Option<PathBuf> {
    let text = field.text("the path of a file", faults)?;
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        field.expected("an absolute path", faults);
        return None;
    }
    Some(path)
}

fn grpc(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let service = map.get("service").and_then(|field| field.text("a gRPC service", faults));
    let host = map.get("host").and_then(|field| host(&field, faults));
    let tls = map.get("tls").and_then(|field| tls_in(&field, faults));
    Some(Probe::Grpc(Grpc { service: service.unwrap_or_default().to_owned(), host, tls }))
}

fn smtp(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let helo = map.get("helo").and_then(|field| host(&field, faults));
    let starttls = map.get("starttls").and_then(|field| tls_in(&field, faults));
    Some(Probe::Smtp(Smtp { helo, starttls }))
}

fn dns(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let name = map.get("name").and_then(|field| domain(&field, faults));
    let record = map.get("type").and_then(|field| field.one_of(&DnsType::ALL, faults));
    let transport = map.get("transport").and_then(|field| field.one_of(&TRANSPORTS, faults));
    Some(Probe::Dns(Dns {
        name: name.unwrap_or_else(|| ".".into()),
        record: record.unwrap_or(DnsType::Soa),
        transport: transport.unwrap_or(DnsTransport::Udp),
    }))
}

/// A domain name: labels of 1 to 63 bytes, 253 in all (RFC 1035, 2.3.4).
fn domain(field: &Field<'_>, faults: &mut Faults) -> Option<String> {
    let text = field.text("a domain name", faults)?;
    let labels = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    if text != "." && (labels.len() > 253 || !labels.split('.').all(label)) {
        field.expected("a domain name", faults);
        return None;
    }
    Some(text.to_owned())
}

fn udp(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let text =
        map.get("payload").and_then(|field| field.text("a text", faults)).map(|t| t.as_bytes().to_vec());
    let hex = map.get("payloadHex");
    if let (Some(_), Some(field)) = (&text, &hex) {
        faults.add(field.path.as_str(), "stands beside `payload`").at_key(0);
    }
    let hex = hex.and_then(|field| hex_bytes(&field, faults));
    let payload = text.or(hex).unwrap_or_default();
    let reply = map.get("reply").and_then(|field| reply(&field, faults));
    Some(Probe::Udp(Udp { payload, reply }))
}

fn reply(field: &Field<'_>, faults: &mut Faults) -> Option<Reply> {
    if matches!(field.raw, Raw::Text(text) if text == "any") {
        return Some(Reply::Any);
    }
    let mut map = field.map("any, or a map like {hex: 0a0b} or {matches: ^OK}", faults)?;
    let bytes = map.get("hex").and_then(|field| hex_bytes(&field, faults));
    let mask = map.get("mask").and_then(|field| Some((hex_bytes(&field, faults)?, field)));
    let matches = map.get("matches");
    let pattern = matches.as_ref().and_then(|field| pattern(field, faults));
    if let (Some(_), Some(field)) = (&bytes, &matches) {
        faults.add(field.path.as_str(), "stands beside `hex`").at_key(0);
    }
    map.finish(faults);
    match (bytes, mask, pattern) {
        (Some(bytes), Some((mask, field)), _) => {
            if mask.len() != bytes.len() {
                let message = format!("has {} bytes, `hex` has {}", mask.len(), bytes.len());
                faults.add(field.path, message);
                return None;
            }
            Some(Reply::Prefix { bytes, mask })
        }
        (Some(bytes), None, _) => Some(Reply::Prefix { mask: vec![0xff; bytes.len()], bytes }),
        (None, Some((_, field)), _) => {
            faults.add(field.path, "there is no `hex` to mask").at_key(0);
            None
        }
        (None, None, Some(pattern)) => Some(Reply::Matches(pattern)),
        (None, None, None) => {
            if matches.is_none() {
                field.expected("any, or a map like {hex: 0a0b} or {matches: ^OK}", faults);
            }
            None
        }
    }
}

fn icmp(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let size = map.get("size").and_then(|field| field.integer(0..=ECHO_SIZE_MAX, faults));
    Some(Probe::Icmp(Icmp { size: size.unwrap_or(ECHO_SIZE) }))
}

fn script(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let command = map.require("command", faults).and_then(|field| absolute(&field, faults));
    let arguments = map.get("arguments").map(|field| {
        let items = field.list("a list of texts", 100, faults).unwrap_or_default();
        items.iter().filter_map(|item| item.text("a text", faults)).map(str::to_owned).collect()
    });
    let user = map.get("user").and_then(|field| field.text("a user's name", faults)).map(str::to_owned);
    let dynamic = map.get("dynamic").and_then(|field| boolean(&field, faults)).unwrap_or(false);
    Some(Probe::Script(Script { command: command?, arguments: arguments.unwrap_or_default(), user, dynamic }))
}

fn file(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let path = map.require("path", faults).and_then(|field| absolute(&field, faults));
    Some(Probe::File(File { path: path? }))
}

fn agent(map: &mut Map<'_>, faults: &mut Faults) -> Option<Probe> {
    let send = map.get("send").and_then(|field| field.text("a text", faults)).map(str::to_owned);
    Some(Probe::Agent(AgentCheck { send }))
}

pub fn encode(probe: &Probe) -> Raw {
    let text = |text: &Option<String>| text.as_ref().map(Raw::text);
    match probe {
        Probe::Tcp => Raw::Map(Vec::new()),
        Probe::Http(http) => encode_http(http),
        Probe::Grpc(grpc) => Raw::map([
            ("service", (!grpc.service.is_empty()).then(|| Raw::text(&grpc.service))),
            ("host", text(&grpc.host)),
            ("tls", grpc.tls.as_ref().map(|tls| Raw::map(encode_tls(tls)))),
        ]),
        Probe::Smtp(smtp) => Raw::map([
            ("helo", text(&smtp.helo)),
            ("starttls", smtp.starttls.as_ref().map(|tls| Raw::map(encode_tls(tls)))),
        ]),
        Probe::Dns(dns) => Raw::map([
            ("name", Some(Raw::text(&dns.name))),
            ("type", Some(word(&DnsType::ALL, dns.record))),
            ("transport", Some(word(&TRANSPORTS, dns.transport))),
        ]),
        Probe::Udp(udp) => {
            let reply = udp.reply.as_ref().map(|reply| match reply {
                Reply::Any => Raw::text("any"),
                Reply::Prefix { bytes, mask } => Raw::map([
                    ("hex", Some(Raw::Text(hex_text(bytes)))),
                    ("mask", Some(Raw::Text(hex_text(mask)))),
                ]),
                Reply::Matches(pattern) => Raw::map([("matches", Some(Raw::text(pattern)))]),
            });
            Raw::map([("payloadHex", Some(Raw::Text(hex_text(&udp.payload)))), ("reply", reply)])
        }
        Probe::Icmp(icmp) => Raw::map([("size", Some(Raw::integer(icmp.size)))]),
        Probe::Script(script) => Raw::map([
            ("command", Some(Raw::text(script.command.display()))),
            ("arguments", Some(Raw::List(script.arguments.iter().map(Raw::text).collect()))),
            ("user", text(&script.user)),
            ("dynamic", Some(Raw::Bool(script.dynamic))),
        ]),
        Probe::File(file) => Raw::map([("path", Some(Raw::text(file.path.display())))]),
        Probe::Agent(agent) => Raw::map([("send", text(&agent.send))]),
    }
}

fn encode_http(http: &Http) -> Raw {
    let headers =
        || Raw::Map(http.headers.iter().map(|(name, value)| (name.clone(), Raw::text(value))).collect());
    let range = |range: &StatusRange| match range.first == range.last {
        true => Raw::integer(range.first),
        false => Raw::text(range),
    };
    let digest = http.digest.as_ref().map(|digest| match digest {
        Digest::Md5(bytes) => Raw::map([("md5", Some(Raw::Text(hex_text(bytes))))]),
        Digest::Sha256(bytes) => Raw::map([("sha256", Some(Raw::Text(hex_text(bytes))))]),
    });
    let version = VERSIONS.iter().find(|(_, version)| *version == http.version).map(|(word, _)| *word);
    let fields = [
        ("version", version.map(Raw::text)),
        ("method", Some(Raw::text(&http.method))),
        ("path", Some(Raw::text(&http.path))),
        ("host", http.host.as_ref().map(Raw::text)),
        ("headers", (!http.headers.is_empty()).then(headers)),
        ("body", http.body.as_ref().map(Raw::text)),
        ("status", Some(Raw::List(http.statuses.iter().map(range).collect()))),
        ("matches", http.matches.as_ref().map(Raw::text)),
        ("digest", digest),
    ];
    Raw::map(fields.into_iter().chain(http.tls.iter().flat_map(encode_tls)))
}

fn encode_tls(tls: &Tls) -> [(&'static str, Option<Raw>); 3] {
    [
        ("serverName", tls.server_name.as_ref().map(Raw::text)),
        ("ca", tls.ca.as_ref().map(|ca| Raw::text(ca.display()))),
        ("insecure", Some(Raw::Bool(tls.insecure))),
    ]
}

const VERSIONS: [(&str, HttpVersion); 3] =
    [("1.0", HttpVersion::Http10), ("1.1", HttpVersion::Http11), ("2", HttpVersion::Http2)];
const TRANSPORTS: [(&str, DnsTransport); 2] = [("udp", DnsTransport::Udp), ("tcp", DnsTransport::Tcp)];
/// As ping(8) sends.
const ECHO_SIZE: u16 = 56;
/// What fits into 1,280 bytes, the least MTU of IPv6 (RFC 8200, 5), behind the headers.
const ECHO_SIZE_MAX: u16 = 1232;
