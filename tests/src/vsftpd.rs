//! A real vsftpd in a namespace, with a directory of its own: everybody may read and write in its [`PUBLIC`] one.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait;

/// Long enough for a machine that is busy compiling.
const START: Duration = Duration::from_secs(20);

/// Where files are offered and uploaded: vsftpd refuses a root that its user may write in.
pub const PUBLIC: &str = "pub";

/// A running vsftpd; it ends when this is dropped.
pub struct Vsftpd {
    directory: PathBuf,
    _process: Process,
}

impl Vsftpd {
    /// Starts it on port 21 of every address of the namespace, both families, with a banner that says its name, and
    /// returns when it greets. `more` are further lines of its configuration.
    #[track_caller]
    pub fn start(namespace: &Namespace, name: &str, more: &str) -> Vsftpd {
        let prefix = namespace.directory().join(format!("vsftpd-{name}"));
        let directory = prefix.join("files");
        let (public, empty) = (directory.join(PUBLIC), prefix.join("empty"));
        for directory in [&public, &empty] {
            std::fs::create_dir_all(directory).expect("make vsftpd's directories");
        }
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&public, everybody).expect("let everybody write");
        let configuration = prefix.join("vsftpd.conf");
        let text = format!(
            "listen=NO
listen_ipv6=YES
background=NO
ftpd_banner={name}
anonymous_enable=YES
no_anon_password=YES
anon_root={}
anon_upload_enable=YES
anon_other_write_enable=YES
anon_umask=022
allow_writeable_chroot=YES
allow_anon_ssl=NO
write_enable=YES
local_enable=NO
ftp_username=daemon
secure_chroot_dir={}
connect_from_port_20=YES
use_localtime=YES
xferlog_enable=NO
seccomp_sandbox=NO
isolate_network=NO
{more}",
            directory.display(),
            empty.display(),
        );
        std::fs::write(&configuration, text).expect("write vsftpd's configuration");
        let mut command = namespace.command("vsftpd");
        command.arg(&configuration);
        let mut process = namespace.spawn(&format!("vsftpd-{name}"), command);
        wait::until(&format!("vsftpd {name} accepts"), START, || {
            process.assert_running();
            namespace.run(|| std::net::TcpStream::connect(("::1", 21)).is_ok())
        });
        Vsftpd { directory, _process: process }
    }

    /// Puts a file there.
    pub fn offer(&self, name: &str, content: &[u8]) {
        std::fs::write(self.directory.join(PUBLIC).join(name), content).expect("write a file for vsftpd");
    }

    /// A file that was uploaded, if it was here.
    pub fn uploaded(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.directory.join(PUBLIC).join(name)).ok()
    }
}
