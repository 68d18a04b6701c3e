//! A real MariaDB in a namespace, with a data directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait;

/// Long enough for a machine that is busy compiling.
const START: Duration = Duration::from_secs(60);

/// A running server; it is killed when this is dropped.
pub struct MariaDb<'a> {
    namespace: &'a Namespace,
    directory: PathBuf,
    number: u32,
    process: Process,
}

/// Makes the tables that a server starts with, once for all servers of a test.
#[track_caller]
pub fn install(directory: &Path) {
    let mut command = Command::new("mariadb-install-db");
    command.args([
        "--no-defaults",
        "--user=root",
        "--skip-test-db",
        "--auth-root-authentication-method=normal",
    ]);
    command.arg(format!("--datadir={}", directory.display()));
    crate::namespace::run(&mut command, "");
}

impl<'a> MariaDb<'a> {
    /// Starts a server on a copy of what [`install`] made; `number` is its server id.
    #[track_caller]
    pub fn start(namespace: &'a Namespace, installed: &Path, number: u32) -> MariaDb<'a> {
        MariaDb::start_with(namespace, installed, number, &[])
    }

    /// The same with further options.
    #[track_caller]
    pub fn start_with(
        namespace: &'a Namespace,
        installed: &Path,
        number: u32,
        options: &[String],
    ) -> MariaDb<'a> {
        let directory = namespace.directory().join(format!("mariadb-{number}"));
        if !directory.exists() {
            crate::namespace::run(Command::new("cp").arg("-a").arg(installed).arg(&directory), "");
        }
        let mut command = namespace.command("mariadbd");
        command.args(["--no-defaults", "--user=root", "--bind-address=0.0.0.0", "--skip-name-resolve"]);
        command.args([
            "--log-bin=log",
            "--innodb-buffer-pool-size=16M",
            "--innodb-flush-log-at-trx-commit=2",
        ]);
        command.args([
            format!("--datadir={}", directory.display()),
            format!("--socket={}", directory.join("socket").display()),
            format!("--pid-file={}", directory.join("pid").display()),
            format!("--server-id={number}"),
        ]);
        command.args(options);
        let process = namespace.spawn(&format!("mariadb-{number}"), command);
        let mut server = MariaDb { namespace, directory, number, process };
        let ready = wait::holds_within(START, || {
            server.process.assert_running();
            server.try_query("SELECT 1").is_ok()
        });
        assert!(ready, "MariaDB {number} does not answer:\n{}", server.process.output());
        server
    }

    /// Where `mariadb --socket` finds it.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// Runs statements as root; panics with the server's words if they fail.
    #[track_caller]
    pub fn query(&self, sql: &str) -> String {
        self.try_query(sql).unwrap_or_else(|error| panic!("MariaDB {}: {sql}: {error}", self.number))
    }

    fn try_query(&self, sql: &str) -> Result<String, String> {
        let mut command = self.namespace.command("mariadb");
        command.args(["--no-defaults", "-N", "-B", "-u", "root", "-e", sql]);
        command.arg(format!("--socket={}", self.socket().display()));
        outcome(command)
    }

    /// Stops it as a crash would: what was committed is with the kernel.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// Runs statements over the network, as a client of `host`.
pub fn query_from(client: &Namespace, host: std::net::IpAddr, sql: &str) -> Result<String, String> {
    query_within(client, host, sql, 1)
}

/// As [`query_from`], for a connection that may take so many seconds.
pub fn query_within(
    client: &Namespace,
    host: std::net::IpAddr,
    sql: &str,
    seconds: u32,
) -> Result<String, String> {
    let mut command = client.command("mariadb");
    command.args(["--no-defaults", "-N", "-B", "--skip-ssl", "-u", "app", "-papp"]);
    command.arg(format!("--connect-timeout={seconds}"));
    command.args([format!("--host={host}"), "--protocol=tcp".into(), "-e".into(), sql.into()]);
    outcome(command)
}

fn outcome(mut command: Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
