//! Protocols that the data plane reads inside a service's connections.

/// The protocol of a service whose connections announce others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Application {
    /// FTP: replies and commands on the control channel say where data connections will be.
    Ftp,
}
