//! TLS of probes: the certificate is verified unless the operator says `insecure`, and what is wrong with it is
//! told in words. Sessions are never resumed: a certificate that has expired meanwhile would go unnoticed.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Attempt;
use super::words::{Failure, of_error};
use crate::model::health;

/// The settings of TLS in use, each made once: ten thousand checks share the authorities' certificates.
#[derive(Debug, Default)]
pub struct Roots {
    made: Mutex<HashMap<Key, Made>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    trust: Trust,
    alpn: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Trust {
    System,
    File(PathBuf),
    Anything,
}

#[derive(Debug, Clone)]
struct Made {
    config: Arc<ClientConfig>,
    /// Of the file of authorities, when it was read.
    modified: Option<SystemTime>,
}

/// How one check speaks TLS.
#[derive(Debug)]
pub struct Tls {
    made: Made,
    file: Option<PathBuf>,
    /// None: the address that is connected to.
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// `host` is the check's, which counts where no server name is given; `alpn` is the protocol to be spoken.
    pub fn new(
        tls: &health::Tls,
        host: Option<&str>,
        alpn: Option<&'static str>,
        roots: &Roots,
    ) -> Result<Tls, Failure> {
        let trust = match &tls.ca {
            _ if tls.insecure => Trust::Anything,
            Some(path) => Trust::File(path.clone()),
            None => Trust::System,
        };
        let file = match &trust {
            Trust::File(path) => Some(path.clone()),
            Trust::System | Trust::Anything => None,
        };
        let name = tls.server_name.as_deref().or_else(|| host.map(without_port));
        let name = name.map(|name| {
            ServerName::try_from(name.to_owned())
                .map_err(|_| Failure::new(format!("TLS: {name} is no name of a server")))
        });
        Ok(Tls { made: roots.get(Key { trust, alpn })?, file, name: name.transpose()? })
    }

    /// Whether the file of authorities is another by now.
    pub fn is_stale(&self) -> bool {
        self.file.as_deref().is_some_and(|file| modified(file) != self.made.modified)
    }

    /// The handshake, on a connection that is there.
    pub async fn handshake(
        &self,
        attempt: &Attempt<'_>,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let name = self.name.clone().unwrap_or_else(|| ServerName::from(attempt.target.address()));
        let doing = format!("TLS handshake with {}", attempt.target);
        let connector = TlsConnector::from(self.made.config.clone());
        let result = attempt.within(&doing, connector.connect(name, stream)).await?;
        result.map_err(|error| failure(&doing, &error))
    }
}

impl Roots {
    fn get(&self, key: Key) -> Result<Made, Failure> {
        let now = match &key.trust {
            Trust::File(path) => modified(path),
            Trust::System | Trust::Anything => None,
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.get(&key).filter(|made| made.modified == now) {
            return Ok(made.clone());
        }
        let config = Arc::new(config(&key)?);
        made.insert(key, Made { config: config.clone(), modified: now });
        Ok(Made { config, modified: now })
    }
}

fn config(key: &Key) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match &key.trust {
        Trust::Anything => Arc::new(Anything(provider.clone())),
        Trust::File(path) => verifier(of_file(path)?, &provider)?,
        Trust::System => verifier(of_system()?, &provider)?,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(format!("TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = key.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(config)
}

fn verifier(
    store: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, Failure> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .map_err(|error| Failure::new(format!("TLS: {error}")))
}

fn of_system() -> Result<RootCertStore, Failure> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if store.is_empty() {
        return Err(Failure::new(
            "this system has no certificates of authorities: install ca-certificates, or name a file with ca",
        ));
    }
    Ok(store)
}

/// The authorities of a PEM file.
///
/// # Errors
/// In words, with the file's name: not readable, no certificate in it, one that is none.
pub fn of_file(path: &Path) -> Result<RootCertStore, Failure> {
    let wrong = |why: String| Failure::new(format!("{}: {why}", path.display()));
    let pem = std::fs::read(path).map_err(|error| wrong(of_error(&error)))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| wrong("holds a certificate that is not PEM".into()))?;
        store.add(certificate).map_err(|_| wrong("holds a certificate that cannot be read".into()))?;
    }
    if store.is_empty() {
        return Err(wrong("holds no certificate (PEM is expected)".into()));
    }
    Ok(store)
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// `web.example` of `web.example:8443`; an IPv6 address may stand in brackets.
fn without_port(host: &str) -> &str {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.split(']').next().unwrap_or(inner);
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

/// What rustls, inside the error of the handshake, found wrong.
fn failure(doing: &str, error: &io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(error)) => Failure::new(format!("certificate: {}", wrong(error))),
        Some(Error::NoCertificatesPresented) => Failure::new("certificate: the server shows none"),
        Some(Error::AlertReceived(alert)) => {
            Failure::new(format!("{doing}: the server refused it ({alert:?})"))
        }
        Some(Error::InvalidMessage(_)) => Failure::new(format!("{doing}: the answer is not TLS")),
        Some(error) => Failure::new(format!("{doing}: {error}")),
        None => Failure::io(doing, error),
    }
}

fn wrong(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired => "expired".into(),
        CertificateError::ExpiredContext { not_after, .. } => format!("expired on {}", date(*not_after)),
        CertificateError::NotValidYet => "not valid yet".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("not valid before {}", date(*not_before))
        }
        CertificateError::UnknownIssuer => {
            "signed by an authority that is not trusted here (name its certificate with ca)".into()
        }
        CertificateError::NotValidForName => "made for another name".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let shown = presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", ");
            let shown = if shown.is_empty() { "no name".into() } else { shown };
            format!("made for {shown}, not for {}", expected.to_str())
        }
        CertificateError::Revoked => "revoked".into(),
        CertificateError::BadSignature => "its signature is wrong".into(),
        CertificateError::BadEncoding => "cannot be read".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "not made for servers".into()
        }
        other => other.to_string(),
    }
}

/// `web.example` of webpki's `DnsName("web.example")`.
fn bare(presented: &str) -> &str {
    presented.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")")).unwrap_or(presented)
}

/// The day, in UTC.
fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => "a day that has no number".into(),
    }
}

/// Takes any certificate, but not a server that does not have its key.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// As it stands in a URL.
pub fn authority(host: Option<&str>, address: IpAddr, port: u16, default: u16) -> String {
    match (host, address) {
        (Some(host), _) => host.to_owned(),
        (None, IpAddr::V4(address)) if port == default => address.to_string(),
        (None, IpAddr::V6(address)) if port == default => format!("[{address}]"),
        (None, IpAddr::V4(address)) => format!("{address}:{port}"),
        (None, IpAddr::V6(address)) => format!("[{address}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_name_is_the_host_without_its_port() {
        let rows = [
            ("web.example", "web.example"),
            ("web.example:8443", "web.example"),
            ("10.0.0.1:443", "10.0.0.1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
        ];
        for (host, name) in rows {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let words = |path: &Path| of_file(path).unwrap_err().to_string();
        assert_eq!(words(&path), format!("{}: no such file or directory", path.display()));
        std::fs::write(&path, "hello").unwrap();
        assert_eq!(words(&path), format!("{}: holds no certificate (PEM is expected)", path.display()));
    }
}
