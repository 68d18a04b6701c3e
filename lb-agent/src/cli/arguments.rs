//! The arguments of every command.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::control::{CONNECTIONS_LIMIT, EVENTS_LIMIT};
use crate::model::{DrainPolicy, Kind, Name, ObjectId};
use crate::places::Places;
use crate::real_server::RealServerArgs;

/// The agent of an lb director, and the commands to talk to it
#[derive(Parser, Debug)]
#[command(
    name = "lb-agent",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage.")]
pub struct Cli {
    #[command(flatten)]
    pub places: Places,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Load the data plane, fill its tables and follow the network, until SIGTERM
    Run(RunArgs),
    /// Look whether manifests are right, by themselves and for this host; needs no running agent
    Validate(ValidateArgs),
    /// Say what `apply` would change, and change nothing
    Plan(PlanArgs),
    /// Put the objects of manifests in place, all of them or none
    Apply(ApplyArgs),
    /// Remove objects, all of them or none
    Delete(DeleteArgs),
    /// Give a real server no new connections, and an end to those it has
    Drain(DrainArgs),
    /// Give a real server new connections again
    Undrain(UndrainArgs),
    /// List what runs
    Get(GetArgs),
    /// Everything about one object
    Describe(DescribeArgs),
    /// Give a real server no new connections, whatever its health checks say
    Disable(ServerArgs),
    /// Let a disabled real server take new connections again, if its health checks agree
    Enable(ServerArgs),
    /// Give a real server another weight than its manifest, without editing it
    Weigh(WeighArgs),
    /// What happened, in its order: VRRP roles, health of real servers
    Events(EventsArgs),
    /// Move a VRRP instance to another director
    Vrrp(VrrpArgs),
    RealServer(RealServerArgs),
    /// Look what this host lacks for a director: kernel, settings, interfaces; needs no running agent
    Doctor(DoctorArgs),
    /// Print the completions of a shell: `source <(lb-agent completions bash)`
    Completions {
        /// Whose
        shell: Shell,
    },
}

impl Command {
    /// How the command answers; its errors are written the same way.
    pub fn format(&self) -> Format {
        match self {
            Command::Run(_) | Command::RealServer(_) | Command::Completions { .. } => Format::Table,
            Command::Validate(args) => args.output.output,
            Command::Doctor(args) => args.output.output,
            Command::Plan(args) => args.output.output,
            Command::Apply(args) => args.output.output,
            Command::Delete(args) => args.output.output,
            Command::Drain(args) => args.output.output,
            Command::Undrain(args) => args.output.output,
            Command::Get(args) => args.what.show().output.output,
            Command::Describe(args) => args.what.output().output,
            Command::Events(args) => args.output.output,
            Command::Disable(args) | Command::Enable(args) => args.output.output,
            Command::Weigh(args) => args.server.output.output,
            Command::Vrrp(args) => args.what.output().output,
        }
    }
}

#[derive(Args, Debug)]
pub struct RunArgs {
    /// Manifest with the Director, and any other objects
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Directory of manifests that is watched and kept to
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Where pinned tables have another size or layout than this start needs: make new ones, forgetting all
    /// connections
    #[arg(long)]
    pub recreate_tables: bool,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Manifest with the Director, whose interfaces are looked at
    #[arg(long, value_name = "FILE", conflicts_with = "interfaces")]
    pub config: Option<PathBuf>,
    /// Interface to look at; may be repeated. Without it, all that are up
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Files {
    /// File, directory (its *.yaml and *.yml) or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR|-", required = true)]
    pub files: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Output {
    /// How to print; wide has more columns and exact numbers
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Args, Debug)]
pub struct ValidateArgs {
    #[command(flatten)]
    pub files: Files,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    pub files: Files,
    /// As `apply --prune` would
    #[arg(long)]
    pub prune: bool,
    /// Also the steps of the data plane
    #[arg(short, long)]
    pub verbose: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct ApplyArgs {
    #[command(flatten)]
    pub files: Files,
    /// Also remove what earlier applies put in place and these manifests do not have
    #[arg(long)]
    pub prune: bool,
    /// Change nothing, as `plan`
    #[arg(long)]
    pub dry_run: bool,
    /// Also the steps of the data plane
    #[arg(short, long)]
    pub verbose: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("what").required(true).args(["files", "kind"])))]
pub struct DeleteArgs {
    /// Manifests whose objects go: file, directory or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Kind of an object: VirtualService (service), LocalAddressPool (pool)
    #[arg(value_parser = parse_kind, requires = "name")]
    pub kind: Option<Kind>,
    /// Its name
    #[arg(value_parser = parse_name)]
    pub name: Option<Name>,
    /// Change nothing, only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Also the steps of the data plane
    #[arg(short, long)]
    pub verbose: bool,
    #[command(flatten)]
    pub output: Output,
}

impl DeleteArgs {
    /// The object named by its kind.
    pub fn id(&self) -> Option<ObjectId> {
        Some(ObjectId { kind: self.kind?, name: self.name.clone()? })
    }
}

#[derive(Args, Debug)]
pub struct DrainArgs {
    /// The virtual service
    #[arg(value_parser = parse_name)]
    pub service: Name,
    /// Address of the real server, or address:port where the service has several there
    pub real_server: String,
    /// How long its connections may go on (10m, 1h 30m); else what the service's `drain` says
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct UndrainArgs {
    /// The virtual service
    #[arg(value_parser = parse_name)]
    pub service: Name,
    /// Address of the real server, or address:port where the service has several there
    pub real_server: String,
    #[command(flatten)]
    pub output: Output,
}

/// As durations are written in manifests.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = jiff::fmt::friendly::SpanParser::new().parse_duration(text).ok();
    parsed
        .and_then(|duration: jiff::SignedDuration| Duration::try_from(duration).ok())
        .filter(|duration| *duration <= DrainPolicy::MAX)
        .ok_or_else(|| "a duration like 10m or 1h 30m, of at most 720h, is wanted".into())
}

#[derive(Args, Debug)]
pub struct GetArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Subcommand, Debug)]
pub enum What {
    /// Virtual services
    #[command(visible_aliases = ["service", "svc"])]
    Services {
        /// Only this one
        #[arg(value_parser = parse_name)]
        name: Option<Name>,
        #[command(flatten)]
        show: Show,
    },
    /// Real servers, and why one takes no connections
    #[command(visible_aliases = ["real-server", "rs"])]
    RealServers {
        /// Only those of this virtual service
        #[arg(value_parser = parse_name)]
        service: Option<Name>,
        #[command(flatten)]
        show: Show,
    },
    /// Health checks: what is believed, and the last outcomes
    #[command(visible_aliases = ["check", "checks"])]
    Health {
        /// Only those of this virtual service
        #[arg(value_parser = parse_name)]
        service: Option<Name>,
        #[command(flatten)]
        show: Show,
    },
    /// Live connections
    #[command(visible_aliases = ["connection", "conn"])]
    Connections {
        /// Only those of this virtual service
        #[arg(value_parser = parse_name)]
        service: Option<Name>,
        /// Only those of this client
        #[arg(long, value_name = "ADDR")]
        client: Option<IpAddr>,
        /// Only those to this real server
        #[arg(long, value_name = "ADDR")]
        real_server: Option<IpAddr>,
        /// Only those in this state (ESTABLISHED, SYN_RECV, …)
        #[arg(long)]
        state: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = CONNECTIONS_LIMIT, value_name = "N")]
        limit: usize,
        #[command(flatten)]
        show: Show,
    },
    /// Clients that keep their real servers for a time
    Persistence {
        /// Only those of this virtual service
        #[arg(value_parser = parse_name)]
        service: Option<Name>,
        /// How many at most
        #[arg(long, default_value_t = CONNECTIONS_LIMIT, value_name = "N")]
        limit: usize,
        #[command(flatten)]
        show: Show,
    },
    /// Where every frame went
    Counters {
        #[command(flatten)]
        show: Show,
    },
    /// All objects and where they came from; -o yaml prints manifests
    Objects {
        #[command(flatten)]
        show: Show,
    },
    /// VRRP instances: roles, priorities, masters
    Vrrp {
        /// Only this one
        #[arg(value_parser = parse_name)]
        name: Option<Name>,
        #[command(flatten)]
        show: Show,
    },
    /// The agent itself
    Status {
        #[command(flatten)]
        show: Show,
    },
}

impl What {
    pub fn show(&self) -> &Show {
        match self {
            What::Services { show, .. }
            | What::RealServers { show, .. }
            | What::Health { show, .. }
            | What::Connections { show, .. }
            | What::Persistence { show, .. }
            | What::Counters { show }
            | What::Objects { show }
            | What::Vrrp { show, .. }
            | What::Status { show } => show,
        }
    }
}

#[derive(Args, Debug)]
pub struct Show {
    #[command(flatten)]
    pub output: Output,
    /// Again every two seconds, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Go on with each event as it comes, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Only those after the one with this number
    #[arg(long, value_name = "N")]
    pub after: Option<u64>,
    /// How many at most
    #[arg(long, default_value_t = EVENTS_LIMIT, value_name = "N")]
    pub limit: usize,
    #[command(flatten)]
    pub output: Output,
}

/// A real server by its address; the port tells two of one address apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerName {
    pub address: IpAddr,
    pub port: Option<u16>,
}

#[derive(Args, Debug)]
pub struct ServerArgs {
    /// The virtual service
    #[arg(value_parser = parse_name)]
    pub service: Name,
    /// Its real server: address or address:port
    #[arg(value_name = "REAL-SERVER", value_parser = super::health::parse_server)]
    pub real_server: ServerName,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("to").required(true).args(["weight", "reset"])))]
pub struct WeighArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// 0 takes no new connections
    pub weight: Option<u16>,
    /// Back to the manifest's
    #[arg(long)]
    pub reset: bool,
}

#[derive(Args, Debug)]
pub struct DescribeArgs {
    #[command(subcommand)]
    pub what: Described,
}

#[derive(Subcommand, Debug)]
pub enum Described {
    /// A VRRP instance: role, priority, peers, timers, counters, lease
    Vrrp {
        /// Its name
        #[arg(value_parser = parse_name)]
        name: Name,
        #[command(flatten)]
        output: Output,
    },
    /// A virtual service and its real servers
    #[command(visible_aliases = ["svc", "virtual-service"])]
    Service {
        /// Its name
        #[arg(value_parser = parse_name)]
        name: Name,
        #[command(flatten)]
        output: Output,
    },
    /// A real server and its health checks
    #[command(visible_alias = "rs")]
    RealServer(ServerArgs),
}

impl Described {
    pub fn output(&self) -> &Output {
        match self {
            Described::Service { output, .. } | Described::Vrrp { output, .. } => output,
            Described::RealServer(args) => &args.output,
        }
    }
}

#[derive(Args, Debug)]
pub struct VrrpArgs {
    #[command(subcommand)]
    pub what: VrrpOrder,
}

#[derive(Subcommand, Debug)]
pub enum VrrpOrder {
    /// Let another director take over, and wait until it has; this one serves until then
    Handover {
        /// The VRRP instance
        #[arg(value_parser = parse_name)]
        name: Name,
        #[command(flatten)]
        output: Output,
    },
    /// Hand over while canary connections from here run through the VIP, and say what became of them
    Drill {
        /// The VRRP instance
        #[arg(value_parser = parse_name)]
        name: Name,
        /// Where canaries connect: a TCP service behind the VIP that keeps a silent connection open
        #[arg(long, required = true, value_name = "ADDR:PORT")]
        canary: Vec<std::net::SocketAddr>,
        /// Connections that are kept open to each
        #[arg(long, default_value_t = 10, value_name = "N")]
        flows: usize,
        #[command(flatten)]
        output: Output,
    },
}

impl VrrpOrder {
    pub fn output(&self) -> &Output {
        match self {
            VrrpOrder::Handover { output, .. } | VrrpOrder::Drill { output, .. } => output,
        }
    }
}

fn parse_name(text: &str) -> Result<Name, &'static str> {
    Name::new(text)
}

/// A kind as manifests write it, in any case, or the short word that `get` uses.
fn parse_kind(text: &str) -> Result<Kind, String> {
    let lower = text.to_ascii_lowercase();
    let short = match lower.as_str() {
        "service" | "services" | "svc" => Some(Kind::VirtualService),
        "pool" | "pools" => Some(Kind::LocalAddressPool),
        "vrrp" | "vrrp-instance" => Some(Kind::VrrpInstance),
        "vrrp-group" | "vrrp-sync-group" => Some(Kind::VrrpSyncGroup),
        _ => None,
    };
    let full = || Kind::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text));
    short.or_else(full).ok_or_else(|| format!("the kinds are {}", Kind::ALL.map(Kind::as_str).join(", ")))
}
