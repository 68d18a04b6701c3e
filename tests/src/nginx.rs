//! A real nginx in a namespace, with a prefix of its own.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` (any other path too) | the server's name and a newline |
//! | `GET /bytes/N` | N bytes of [`content`](crate::content); N must have been offered |
//! | `GET /slow/RATE/N` | the same at RATE bytes (or `512k`) per second |
//! | `PUT /uploads/NAME` | keeps the body, see [`Nginx::uploaded`] |
//!
//! Each answer names its server in the header `X-Server`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::authority::Identity;
use crate::cgroup::Cgroup;
use crate::content;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait;

/// Long enough for a machine that is busy compiling.
const START: Duration = Duration::from_secs(10);
/// What every server offers under `/bytes` from the start.
pub const LARGE: usize = 8 << 20;

/// A running nginx; it ends when this is dropped.
pub struct Nginx {
    name: String,
    prefix: PathBuf,
    process: Process,
}

impl Nginx {
    /// Starts it on these TCP ports of every address of the namespace, present and future, both families, and
    /// returns when each port accepts. Panics with nginx's own words if it does not start.
    #[track_caller]
    pub fn start(namespace: &Namespace, name: &str, ports: &[u16]) -> Nginx {
        Nginx::start_with_tls(namespace, name, ports, &[])
    }

    /// As [`Nginx::start`], for clients behind a PROXY header: without one nobody is served, and the access log has the
    /// address that it names.
    #[track_caller]
    pub fn start_behind_proxy(namespace: &Namespace, name: &str, ports: &[u16]) -> Nginx {
        let listens = Listens { behind_proxy: true, ..Listens::default() };
        Nginx::start_as(namespace, name, ports, listens, namespace.command("nginx"))
    }

    /// As [`Nginx::start`], in a cgroup, and on further ports with one socket for both families.
    #[track_caller]
    pub fn start_in(
        cgroup: &Cgroup,
        namespace: &Namespace,
        name: &str,
        ports: &[u16],
        dual: &[u16],
    ) -> Nginx {
        let listens = Listens { dual, ..Listens::default() };
        Nginx::start_as(namespace, name, ports, listens, cgroup.command(namespace, "nginx"))
    }

    /// The same, and TLS on further ports, each with a certificate of its own. These offer HTTP/2 as well.
    #[track_caller]
    pub fn start_with_tls(
        namespace: &Namespace,
        name: &str,
        ports: &[u16],
        secure: &[(u16, &Identity)],
    ) -> Nginx {
        let listens = Listens { secure, ..Listens::default() };
        Nginx::start_as(namespace, name, ports, listens, namespace.command("nginx"))
    }

    #[track_caller]
    fn start_as(
        namespace: &Namespace,
        name: &str,
        ports: &[u16],
        listens: Listens<'_>,
        mut command: Command,
    ) -> Nginx {
        let prefix = namespace.directory().join(format!("nginx-{name}"));
        for directory in ["bytes", "uploads", "temp"] {
            std::fs::create_dir_all(prefix.join(directory)).expect("make nginx's directories");
        }
        let configuration = prefix.join("nginx.conf");
        std::fs::write(&configuration, configure(name, ports, listens)).expect("write nginx's configuration");
        command.arg("-e").arg("stderr").arg("-p").arg(&prefix).arg("-c").arg(&configuration);
        let process = namespace.spawn(&format!("nginx-{name}"), command);
        let mut nginx = Nginx { name: name.to_owned(), prefix, process };
        nginx.offer(LARGE);
        let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let secure_ports = listens.secure.iter().map(|(port, _)| port).chain(listens.dual);
        for socket in ports
            .iter()
            .chain(secure_ports)
            .flat_map(|port| addresses.map(|address| SocketAddr::new(address, *port)))
        {
            wait::until(&format!("nginx {name} accepts on {socket}"), START, || {
                nginx.process.assert_running();
                namespace.run(|| TcpStream::connect(socket).is_ok())
            });
        }
        nginx
    }

    /// The name it answers with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes `/bytes/LENGTH` and `/slow/RATE/LENGTH` available.
    pub fn offer(&self, length: usize) {
        let path = self.prefix.join("bytes").join(length.to_string());
        std::fs::write(path, content::bytes(length)).expect("write a file for nginx");
    }

    /// The body of a `PUT /uploads/NAME`, if there was one here.
    pub fn uploaded(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.prefix.join("uploads").join(name)).ok()
    }

    /// The access log: one line per finished request, `CLIENT:PORT STATUS METHOD PATH`. A line may come a
    /// moment after the client has its answer.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.prefix.join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Stops it as a crash would: connections are reset by the kernel, nothing is finished.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to finish what it serves and end; panics if it does not within `deadline`.
    #[track_caller]
    pub fn quit(&mut self, deadline: Duration) {
        self.process.end_with(Signal::SIGQUIT, deadline);
    }
}

/// How it listens beside its plain ports.
#[derive(Clone, Copy, Default)]
struct Listens<'a> {
    secure: &'a [(u16, &'a Identity)],
    /// One socket for both families.
    dual: &'a [u16],
    /// Every plain port wants a PROXY header.
    behind_proxy: bool,
}

/// nginx's configuration, paths relative to its prefix. One process without a master: it is killed by its pid
/// and leaves no worker behind.
fn configure(name: &str, ports: &[u16], listens: Listens<'_>) -> String {
    let Listens { secure, dual, behind_proxy } = listens;
    let (header, real_ip) = if behind_proxy {
        let real_ip =
            "  set_real_ip_from 0.0.0.0/0;\n  set_real_ip_from ::/0;\n  real_ip_header proxy_protocol;\n";
        (" proxy_protocol", real_ip)
    } else {
        ("", "")
    };
    let listen: String = ports
        .iter()
        .map(|port| format!("    listen {port}{header};\n    listen [::]:{port} ipv6only=on{header};\n"))
        .chain(dual.iter().map(|port| format!("    listen [::]:{port} ipv6only=off;\n")))
        .collect();
    let secure: String = secure
        .iter()
        .map(|(port, identity)| {
            let (certificate, key) = (identity.certificate.display(), identity.key.display());
            format!(
                "  server {{
    listen {port} ssl http2;
    listen [::]:{port} ssl http2 ipv6only=on;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    add_header X-Server {name} always;
    location / {{ return 200 \"{name}\\n\"; }}
  }}
"
            )
        })
        .collect();
    format!(
        "daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  log_format lab '$remote_addr:$remote_port $status $request_method $uri';
  access_log access.log lab;
  client_max_body_size 0;
  client_body_temp_path temp/body;
  proxy_temp_path temp/proxy;
  fastcgi_temp_path temp/fastcgi;
  uwsgi_temp_path temp/uwsgi;
  scgi_temp_path temp/scgi;
  default_type application/octet-stream;
  sendfile on;
{real_ip}  server {{
{listen}    add_header X-Server {name} always;
    location / {{ return 200 \"{name}\\n\"; }}
    location /bytes/ {{ root .; }}
    location ~ ^/slow/(?<rate>[0-9]+k?)/(?<length>[0-9]+)$ {{ limit_rate $rate; alias bytes/$length; }}
    location /uploads/ {{ root .; dav_methods PUT; }}
  }}
{secure}}}
"
    )
}
