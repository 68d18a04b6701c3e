//! The laboratory: network namespaces wired like a small data centre, real nginx and UDP servers in them,
//! real clients, and the real agent. A laboratory that cannot be set up panics and says why, so that a test
//! reads as its story and not as its error handling; every guard cleans up on the way out of that panic.

pub mod agent;
pub mod authority;
pub mod canary;
pub mod cgroup;
pub mod content;
pub mod flood;
pub mod http;
pub mod keepalived;
pub mod link;
pub mod mariadb;
pub mod namespace;
pub mod nginx;
pub mod process;
pub mod real_server;
pub mod sweep;
pub mod topology;
pub mod udp;
pub mod version;
pub mod vsftpd;
pub mod wait;
pub mod xdp_pass;

pub use agent::Agent;
pub use authority::Authority;
pub use cgroup::Cgroup;
pub use flood::Flood;
pub use keepalived::Keepalived;
pub use namespace::Namespace;
pub use nginx::Nginx;
pub use process::Process;
pub use real_server::RealServer;
pub use topology::{Host, Topology};
pub use udp::UdpServer;
pub use vsftpd::Vsftpd;
