//! Certificates: what is right with them, and what is wrong in words.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::model::health::Tls;

/// An authority, its file, and the servers it has signed for.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

static AUTHORITIES: AtomicU32 = AtomicU32::new(0);

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // Two authorities of one name are not told apart by it.
        let name = format!("authority {}", AUTHORITIES.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), directory }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A server that answers 200 in HTTP/1.1 and shows a certificate for these names.
    async fn server(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> SocketAddr {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    let name = stream.get_ref().1.server_name().unwrap_or("nobody").to_owned();
                    let _ = stream.read(&mut [0; 4096]).await?;
                    let length = name.len();
                    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
                    stream.write_all(response.as_bytes()).await?;
                    stream.shutdown().await
                });
            }
        });
        address
    }

    /// A request to `host` under this authority.
    fn https(&self, host: Option<&str>) -> Http {
        let tls = Tls { ca: Some(self.file()), ..Tls::default() };
        Http { host: host.map(Into::into), tls: Some(tls), ..Http::get("/") }
    }
}

async fn ask(http: Http, server: SocketAddr) -> Outcome {
    run(&check(Probe::Http(http)), server).await
}

#[tokio::test]
async fn a_certificate_for_the_host_by_a_trusted_authority_passes() {
    let authority = Authority::new();
    let server = authority.server(&["web.example"], |_| {}).await;
    // The name is sent as SNI.
    let http = Http { matches: Some("^web.example$".into()), ..authority.https(Some("web.example:8443")) };
    passes(&ask(http.clone(), server).await, "status 200");
    // The server name counts more than the host.
    let tls = Tls { server_name: Some("web.example".into()), ca: Some(authority.file()), insecure: false };
    passes(
        &ask(Http { host: Some("other.example".into()), tls: Some(tls), ..http }, server).await,
        "status 200",
    );
    // Without a host the address is looked for, and nothing is sent.
    let server = authority.server(&["127.0.0.1"], |_| {}).await;
    let http = Http { matches: Some("^nobody$".into()), ..authority.https(None) };
    passes(&ask(http, server).await, "status 200");
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said() {
    let authority = Authority::new();
    let server = authority.server(&["a.example", "b.example"], |_| {}).await;
    let outcome = ask(authority.https(Some("web.example")), server).await;
    fails(&outcome, "certificate: made for a.example, b.example, not for web.example");

    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 3);
    };
    let server = authority.server(&["web.example"], expired).await;
    let outcome = ask(authority.https(Some("web.example")), server).await;
    fails(&outcome, "certificate: expired on 2020-02-03 00:00 UTC");

    let early = |params: &mut CertificateParams| params.not_before = date_time_ymd(2090, 1, 1);
    let server = authority.server(&["web.example"], early).await;
    let outcome = ask(authority.https(Some("web.example")), server).await;
    fails(&outcome, "certificate: not valid before 2090-01-01 00:00 UTC");

    let other = Authority::new();
    let server = other.server(&["web.example"], |_| {}).await;
    let outcome = ask(authority.https(Some("web.example")), server).await;
    let words = "certificate: signed by an authority that is not trusted here (name its certificate with ca)";
    fails(&outcome, words);
}

#[tokio::test]
async fn insecure_takes_any_certificate() {
    let server = Authority::new().server(&["a.example"], |p| p.not_after = date_time_ymd(2020, 1, 1)).await;
    let tls = Tls { insecure: true, ..Tls::default() };
    let http = Http { host: Some("web.example".into()), tls: Some(tls), ..Http::get("/") };
    passes(&ask(http, server).await, "status 200");
}

#[tokio::test]
async fn a_server_without_http_2_is_told_by_its_alpn() {
    let authority = Authority::new();
    let server = authority.server(&["web.example"], |_| {}).await;
    let http = Http { version: HttpVersion::Http2, ..authority.https(Some("web.example")) };
    let outcome = ask(http, server).await;
    let refused = format!("TLS handshake with {server}: the server refused it (NoApplicationProtocol)");
    fails(&outcome, &refused);
}

#[tokio::test]
async fn a_file_of_authorities_that_changes_is_read_again() {
    let (old, new) = (Authority::new(), Authority::new());
    let server = new.server(&["web.example"], |_| {}).await;
    let target = Target::Direct { address: server.ip(), port: server.port() };
    let (file, roots) = (old.file(), Roots::default());
    let probe = Arc::new(check(Probe::Http(old.https(Some("web.example")))));
    let prober = Prober::new(probe.clone(), &roots);
    assert!(!prober.run(server, &target).await.passed);
    assert!(!prober.is_stale());
    std::fs::copy(new.file(), &file).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::File::options().append(true).open(&file).unwrap().set_modified(later).unwrap();
    assert!(prober.is_stale());
    let prober = Prober::new(probe.clone(), &roots);
    assert!(prober.run(server, &target).await.passed);
    std::fs::remove_file(&file).unwrap();
    let outcome = Prober::new(probe, &roots).run(server, &target).await;
    fails(&outcome, &format!("{}: no such file or directory", file.display()));
}

#[tokio::test]
async fn a_server_in_the_clear_is_no_tls() {
    let server = answering("HTTP/1.1 400 Bad Request\r\n\r\n");
    let outcome = ask(Authority::new().https(Some("web.example")), server).await;
    assert!(!outcome.passed, "{}", outcome.words);
}
