//! The agent's real-server helper in a real server's namespace, with pins of its own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::agent::{self, PinDirectory};
use crate::namespace::Namespace;

/// A real server made ready by `lb-agent real-server up`. What it pinned goes when this is dropped; addresses
/// and sysctls go with the namespace.
pub struct RealServer<'a> {
    namespace: &'a Namespace,
    pins: PinDirectory,
    vips: Vec<IpAddr>,
    directors: Vec<IpAddr>,
    gue_port: Option<u16>,
    /// Whose TOA is believed, and for which cgroup.
    toa: Option<(Vec<IpAddr>, PathBuf)>,
}

impl<'a> RealServer<'a> {
    /// Puts the VIPs on the loopback and, if there are directors, unpacks tunnelled packets that come from
    /// them. Panics with the helper's words if it fails.
    #[track_caller]
    pub fn up(namespace: &'a Namespace, vips: &[IpAddr], directors: &[IpAddr]) -> RealServer<'a> {
        let server = RealServer {
            namespace,
            pins: PinDirectory::new(),
            vips: vips.to_vec(),
            directors: directors.to_vec(),
            gue_port: None,
            toa: None,
        };
        server.must("up");
        server
    }

    /// Reads TOA that comes from these addresses for the programs in a cgroup, and does nothing else. Panics with the
    /// helper's words if it fails.
    #[track_caller]
    pub fn reading_toa(namespace: &'a Namespace, from: &[IpAddr], cgroup: &Path) -> RealServer<'a> {
        let server = RealServer {
            namespace,
            pins: PinDirectory::new(),
            vips: Vec::new(),
            directors: Vec::new(),
            gue_port: None,
            toa: Some((from.to_vec(), cgroup.to_owned())),
        };
        server.must("up");
        server
    }

    /// Believes these instead.
    #[track_caller]
    pub fn toa_from(mut self, from: &[IpAddr]) -> RealServer<'a> {
        if let Some((before, _)) = &mut self.toa {
            *before = from.to_vec();
        }
        self.must("up");
        self
    }

    /// Unpacks GUE at this port too.
    #[track_caller]
    pub fn with_gue(mut self, port: u16) -> RealServer<'a> {
        self.gue_port = Some(port);
        self.must("up");
        self
    }

    /// Repairs what is missing. Panics with the helper's words if it fails.
    #[track_caller]
    pub fn up_again(&self) {
        self.must("up");
    }

    /// Whether `lb-agent real-server check` is content, and what it wrote.
    #[track_caller]
    pub fn check(&self) -> (bool, String) {
        let output = self.run("check");
        (output.status.success(), text(&output))
    }

    /// Takes everything back. Panics with the helper's words if it fails.
    #[track_caller]
    pub fn down(&self) {
        self.must("down");
    }

    /// Where it pins.
    pub fn pins(&self) -> &Path {
        self.pins.path()
    }

    #[track_caller]
    fn must(&self, verb: &str) {
        let output = self.run(verb);
        let name = self.namespace.role();
        assert!(output.status.success(), "`real-server {verb}` failed in {name}:\n{}", text(&output));
    }

    #[track_caller]
    fn run(&self, verb: &str) -> Output {
        let mut command = agent::command(self.namespace, &["real-server", verb]);
        for vip in &self.vips {
            command.arg("--vip").arg(vip.to_string());
        }
        // What was set up where is in its own record; `down` asks no more.
        if verb != "down" {
            command.args(["--interface", "eth0"]);
            for director in &self.directors {
                command.arg("--from").arg(director.to_string());
            }
            if let Some((from, cgroup)) = &self.toa {
                for address in from {
                    command.arg("--toa-from").arg(address.to_string());
                }
                command.arg("--cgroup").arg(cgroup);
            }
            if let Some(port) = self.gue_port {
                command.args(["--gue-port", &port.to_string()]);
            }
        }
        command.env("LB_BPFFS_DIR", self.pins.path()).env("LB_STATE_DIR", self.namespace.directory());
        command.output().unwrap_or_else(|error| panic!("start {}: {error}", agent::binary().display()))
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}
