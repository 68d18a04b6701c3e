//! The files that health checks name, looked at before a manifest is taken: authorities that can be read, scripts
//! that nobody but their owner could have changed.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{AccessFlags, User, access, getuid};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::manifest::{Diagnostic, Objects};
use crate::model::health::{Check, Probe, Script, Tls};

/// What is wrong with any of them.
pub fn check(objects: &Objects) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (service, entry) in objects.services() {
        let own = service.real_servers.iter().enumerate().flat_map(|(index, server)| {
            let place = format!("spec.realServers[{index}].healthCheck");
            server.health.checks.iter().flatten().map(move |check| (place.clone(), &**check))
        });
        for (place, check) in service.health.places().chain(own) {
            let mut wrong = |path: String, message: String, help: Option<String>| {
                found.push(entry.diagnostic(&format!("{place}.{path}"), message, help));
            };
            if let Some((path, ca)) = authority(check)
                && let Err(message) = readable_authority(ca)
            {
                wrong(
                    path.to_owned(),
                    message,
                    Some("a PEM file with the certificates of authorities".into()),
                );
            }
            if let Probe::Script(script) = &check.probe {
                if let Err((message, help)) = trusted_script(script) {
                    wrong("script.command".into(), message, Some(help));
                }
                if let Some(user) = &script.user
                    && !matches!(User::from_name(user), Ok(Some(_)))
                {
                    wrong("script.user".into(), format!("there is no user `{user}` on this host"), None);
                }
            }
        }
    }
    found
}

/// The authorities' file of a check, and where it stands in it.
fn authority(check: &Check) -> Option<(&'static str, &Path)> {
    let (path, tls): (_, Option<&Tls>) = match &check.probe {
        Probe::Http(http) => ("https.ca", http.tls.as_ref()),
        Probe::Grpc(grpc) => ("grpc.tls.ca", grpc.tls.as_ref()),
        Probe::Smtp(smtp) => ("smtp.starttls.ca", smtp.starttls.as_ref()),
        _ => ("", None),
    };
    Some((path, tls?.ca.as_deref()?))
}

fn readable_authority(path: &Path) -> Result<(), String> {
    let pem =
        fs::read(path).map_err(|error| format!("{} cannot be read: {}", path.display(), kind(&error)))?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(()),
        _ => Err(format!("{} has no certificate in it", path.display())),
    }
}

/// keepalived's script security: a script that runs with the agent's rights must not be somebody else's to write,
/// nor any directory on its path.
fn trusted_script(script: &Script) -> Result<(), (String, String)> {
    let path = &script.command;
    let shown = path.display();
    let about = |error: io::Error| {
        (format!("{shown}: {}", kind(&error)), "an absolute path to an executable file".to_owned())
    };
    let real = fs::canonicalize(path).map_err(about)?;
    let metadata = fs::metadata(&real).map_err(about)?;
    if !metadata.is_file() {
        return Err((format!("{shown} is no file"), "an absolute path to an executable file".into()));
    }
    if metadata.mode() & 0o111 == 0 || access(&real, AccessFlags::X_OK).is_err() {
        return Err((format!("{shown} is not executable"), format!("chmod +x {shown}")));
    }
    for part in real.ancestors() {
        let metadata = fs::metadata(part).map_err(about)?;
        if let Some(who) = others_write(&metadata) {
            let part = part.display();
            let what =
                if part.to_string() == shown.to_string() { String::new() } else { format!(" ({part})") };
            return Err((format!("{shown} can be changed by {who}{what}"), format!("chmod go-w {part}")));
        }
    }
    Ok(())
}

/// Who but root and the agent's user could change it. A directory with the sticky bit lets nobody replace what is
/// another's.
fn others_write(metadata: &Metadata) -> Option<String> {
    if metadata.is_dir() && metadata.mode() & 0o1000 != 0 {
        return None;
    }
    match metadata.mode() {
        mode if mode & 0o002 != 0 => Some("everybody".into()),
        mode if mode & 0o020 != 0 && metadata.gid() != 0 => Some(format!("group {}", metadata.gid())),
        _ if metadata.uid() != 0 && metadata.uid() != getuid().as_raw() => {
            Some(format!("user {}", metadata.uid()))
        }
        _ => None,
    }
}

fn kind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::manifest::load_text;

    fn said(check: &str) -> String {
        let text = format!(
            "apiVersion: lb/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  address: 192.0.2.1\n  \
             ports: [80]\n  protocol: tcp\n  forwarding: dr\n  scheduler: rr\n  healthCheck: {check}\n"
        );
        let objects = load_text("web.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
        super::check(&objects).iter().map(|diagnostic| format!("{diagnostic}\n")).collect()
    }

    #[test]
    fn an_authority_must_be_a_file_with_certificates() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let check = format!("{{https: {{ca: {}}}}}", path.display());
        let place = "web.yaml:10:29: spec.healthCheck.https.ca: ";
        assert!(
            said(&check).starts_with(&format!("{place}{} cannot be read: there is no such", path.display()))
        );
        fs::write(&path, "nothing").unwrap();
        assert!(said(&check).contains("has no certificate in it"));
        let authority = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        fs::write(&path, authority.cert.pem()).unwrap();
        assert_eq!(said(&check), "");
    }

    #[test]
    fn a_script_must_be_executable_and_nobody_elses_to_write() {
        // The system's temporary directory is writable by all, and sticky.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("check.sh");
        let check = format!("{{script: {{command: {}}}}}", path.display());
        assert!(
            said(&check).starts_with("web.yaml:10:35: spec.healthCheck.script.command: "),
            "{}",
            said(&check)
        );
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for (of, bits, expected) in [
            (&*path, 0o644, "is not executable"),
            (&*path, 0o757, "can be changed by everybody"),
            (&*path, 0o755, ""),
            (directory.path(), 0o777, "can be changed by everybody ("),
            (directory.path(), 0o700, ""),
        ] {
            mode(of, bits);
            let said = said(&check);
            assert!(
                if expected.is_empty() { said.is_empty() } else { said.contains(expected) },
                "{bits:o}: {said}"
            );
        }
        assert!(said("{script: {command: /usr}}").contains("/usr is no file"));
        let nobody = format!("{{script: {{command: {}, user: no-such-user}}}}", path.display());
        assert!(said(&nobody).contains("script.user: there is no user `no-such-user`"));
    }
}
