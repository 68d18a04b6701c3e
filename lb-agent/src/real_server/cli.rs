//! The arguments of `lb-agent real-server`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Prepare this host as a real server: VIPs on lo, ARP sysctls, unpacking of tunnelled packets.
#[derive(Args, Clone, Debug)]
pub struct RealServerArgs {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Set this host up (again: adds VIPs, repairs what is missing, changes nothing that is right)
    Up(UpArgs),
    /// Look whether everything a real server needs is there; exit code 1 if not
    Check(CheckArgs),
    /// Undo what `up` did, and nothing else
    Down(DownArgs),
}

/// What to set up or to check.
#[derive(Args, Clone, Debug, Default)]
pub struct Wanted {
    /// VIPs that this host serves (added to those already set up)
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub vip: Vec<IpAddr>,
    /// Interface towards the director [default: that of the default route]
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// Directors: addresses or prefixes. tun: the outer sources accepted; nat: the default route must go there
    #[arg(long, value_name = "DIRECTOR", value_delimiter = ',', value_parser = parse_director)]
    pub from: Vec<IpNet>,
    /// UDP ports at which GUE is unpacked, as services name them (added to those already set up)
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub gue_port: Vec<u16>,
    /// Who unpacks tunnelled packets [default: bpf for tun, else none]
    #[arg(long, value_enum)]
    pub tunnel: Option<Tunnel>,
    /// fullnat: pool addresses whose TCP option about the client (TOA) is believed; programs see it as the peer's address
    #[arg(long, value_name = "PREFIX", value_delimiter = ',', value_parser = parse_director)]
    pub toa_from: Vec<IpNet>,
    /// cgroup whose programs see it [default: the root of those of version 2]
    #[arg(long, value_name = "DIR", requires = "toa_from")]
    pub cgroup: Option<PathBuf>,
    /// Forwarding method of the virtual services [default: fullnat with --toa-from, tun with --tunnel or --from, else dr]
    #[arg(long, value_enum)]
    pub method: Option<Method>,
}

#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    #[command(flatten)]
    pub wanted: Wanted,
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Checked in place of what `up` recorded
    #[command(flatten)]
    pub wanted: Wanted,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    /// Only these VIPs; with the last of them everything else goes too
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub vip: Vec<IpAddr>,
}

/// Who unpacks tunnelled packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// lb's own XDP program: needs no kernel module, accepts only from --from
    Bpf,
    /// The kernel's ipip, sit and ip6tnl devices, one per director
    Kernel,
    /// Nobody, or something that was set up by other means
    None,
}

/// How the director forwards to this host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    Dr,
    Tun,
    Nat,
    Fullnat,
}

impl Method {
    /// Packets arrive addressed to the VIP, so it must be an address of this host.
    pub fn keeps_vip(self) -> bool {
        matches!(self, Method::Dr | Method::Tun)
    }

    /// As written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Dr => "dr",
            Method::Tun => "tun",
            Method::Nat => "nat",
            Method::Fullnat => "fullnat",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// One line per item
    Table,
    /// One JSON object
    Json,
}

fn parse_director(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => {
            text.parse::<IpNet>().map_err(|_| "neither an address nor a prefix (10.0.0.0/24)".to_owned())?
        }
    };
    if net.addr() != net.network() {
        return Err(format!("bits behind the prefix: {} or {}?", net.trunc(), IpNet::from(net.addr())));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: RealServerArgs,
    }

    #[test]
    fn lists_are_separated_by_commas_or_repeated() {
        let program = Program::try_parse_from([
            "x",
            "up",
            "--vip",
            "203.0.113.10,2001:db8::1",
            "--vip",
            "203.0.113.11",
            "--from",
            "10.0.0.1,10.1.0.0/16",
            "--method",
            "tun",
        ])
        .unwrap();
        let Command::Up(up) = program.args.command else { panic!("not up") };
        assert_eq!(up.wanted.vip.len(), 3);
        assert_eq!(up.wanted.from, ["10.0.0.1/32".parse::<IpNet>().unwrap(), "10.1.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn a_director_is_an_address_or_a_prefix_without_host_bits() {
        assert!(parse_director("10.0.0.1/24").unwrap_err().contains("10.0.0.0/24"));
        assert!(parse_director("director-a").unwrap_err().contains("neither"));
        assert_eq!(parse_director("2001:db8::1").unwrap().prefix_len(), 128);
    }
}
