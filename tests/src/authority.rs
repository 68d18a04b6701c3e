//! A certificate authority of a test: what it signs is trusted by whoever has its file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// An authority with a name of its own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A server's certificate and its key, as PEM files.
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Authority {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let key = KeyPair::generate().expect("make a key");
        let mut params = CertificateParams::new(Vec::new()).expect("an authority has no names");
        let name = format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("sign a certificate");
        Authority { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// Writes the authority's own certificate and returns where.
    pub fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join("ca.pem");
        std::fs::write(&path, &self.pem).expect("write a certificate");
        path
    }

    /// A certificate for these names (or addresses), in files called `name`; `change` may spoil it.
    pub fn sign(
        &self,
        directory: &Path,
        name: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let key = KeyPair::generate().expect("make a key");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("the names are names");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        let identity = Identity {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&identity.certificate, certificate.pem()).expect("write a certificate");
        std::fs::write(&identity.key, key.serialize_pem()).expect("write a key");
        identity
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}
