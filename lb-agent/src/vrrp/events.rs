//! What goes into the election and what comes out of it.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::tracking::Change;
use super::wire::{Field, Heard, Outgoing, Refused};
use crate::model::{Gratuitous, Preempt, VirtualAddress, VrrpInstance, VrrpVersion};

/// What the election has to know of its instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub version: VrrpVersion,
    /// As configured, 1 to 255; what is tracked changes it.
    pub priority: u8,
    pub interval: Duration,
    pub preempt: Preempt,
    pub gratuitous: Gratuitous,
    /// Every address that follows the instance.
    pub addresses: Vec<VirtualAddress>,
    /// Member of a sync group: it asks before it becomes master ([`super::group`]).
    pub grouped: bool,
}

impl Config {
    pub fn of(instance: &VrrpInstance, grouped: bool) -> Config {
        Config {
            version: instance.version,
            priority: instance.priority,
            interval: instance.interval,
            preempt: instance.preempt,
            gratuitous: instance.gratuitous,
            addresses: instance.all_addresses().cloned().collect(),
            grouped,
        }
    }
}

/// What happens to an instance. Whoever has several at once gives advertisements before the timer, so that a
/// late timer does not decide over what was already said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// From Initialize. `lease`: an earlier run was master, and what it said holds until then; while it does,
    /// nobody can have taken over, and this run goes on where that one ended.
    Start {
        lease: Option<Instant>,
    },
    /// To Initialize: others are told, addresses go.
    Stop,
    /// To Initialize for a short time: nothing is released, and backups are asked for so much patience, if the
    /// version can.
    Suspend {
        pause: Duration,
    },
    Advert(Heard),
    Refused(Refused),
    /// [`super::instance::Instance::next_deadline`] has come.
    Timer,
    Track(Change),
    /// Whether this director could serve what it would take over. At first it is not ready.
    Ready(bool),
    Configure(Config),
    /// An operator's order to let another be master.
    Handover,
    Group(Order),
    /// The address that advertisements come from; None: there is none, and no advertisement can be sent.
    PrimaryAddress(Option<IpAddr>),
}

/// What a sync group tells a member ([`super::group`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Every member may be master: be it.
    Promote,
    /// Another member hands over: do so too.
    HandOver,
    /// Another member no longer is master: no longer be it.
    Demote,
    /// Another member is (or no longer is) in fault.
    Fault(bool),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To the multicast group, or to every unicast peer.
    SendAdvert(Outgoing),
    /// The addresses of the configuration, and no others of this instance, are on their interfaces. Done again
    /// it changes nothing.
    TakeAddresses,
    /// None of the instance's addresses is there. Done again it changes nothing.
    ReleaseAddresses,
    /// One burst of so many gratuitous ARPs or unsolicited neighbour advertisements for each address.
    Announce { count: u8 },
    /// What the data plane may do with packets to the addresses, and until when (None: it does not end). Comes
    /// before the addresses go and with every advertisement.
    SetLease { role: Role, until: Option<Instant> },
    /// For logs, hooks and whoever follows the role.
    RoleChanged { from: Role, to: Role, why: Why },
    /// Nobody took over within the time that it takes: this director goes on as master.
    Stayed { after: Duration },
    /// A peer is configured differently. Once, and again when what differs changes.
    Mismatch(Mismatch),
    /// It no longer is, or is no longer heard of.
    MismatchEnded { peer: IpAddr, field: Field },
    /// One more of that kind.
    Count(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Role {
    #[default]
    Initialize,
    Backup,
    Master,
    Fault,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Initialize, Role::Backup, Role::Master, Role::Fault];

    pub fn name(self) -> &'static str {
        match self {
            Role::Initialize => "initialize",
            Role::Backup => "backup",
            Role::Master => "master",
            Role::Fault => "fault",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// In what a peer differs from us. Configured alike, it would not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub peer: IpAddr,
    pub field: Field,
    pub ours: String,
    pub theirs: String,
    /// Whether the peer's advertisements are refused for it, so that both may be master.
    pub refused: bool,
}

/// Why a role changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    Started,
    Stopped,
    /// The owner of the addresses does not wait.
    Owner,
    /// An earlier run was master and its lease had not ended.
    Resumed,
    /// Nothing was heard of a master for so long.
    Silence(Duration),
    /// The master said that it stops.
    MasterLeft(IpAddr),
    /// The master's priority is below ours.
    Preempted {
        master: IpAddr,
        priority: u8,
    },
    /// Another master has the higher priority, or the same and the higher address.
    Outranked {
        master: IpAddr,
        priority: u8,
    },
    /// Another took over as it was asked to.
    HandedOver {
        to: IpAddr,
    },
    /// So long after the last advertisement another may be master.
    Stalled(Duration),
    Fault(String),
    Recovered,
    /// The sync group is, or is not, master together.
    Group,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Started => f.write_str("started"),
            Why::Stopped => f.write_str("stopped"),
            Why::Owner => f.write_str("owner of the addresses"),
            Why::Resumed => f.write_str("it was master before the restart"),
            Why::Silence(silence) => write!(f, "no advertisement for {:.3} s", silence.as_secs_f64()),
            Why::MasterLeft(master) => write!(f, "{master} stopped being master"),
            Why::Preempted { master, priority } => write!(f, "{master} has priority {priority} only"),
            Why::Outranked { master, priority } => write!(f, "{master} is master with priority {priority}"),
            Why::HandedOver { to } => write!(f, "handed over to {to}"),
            Why::Stalled(silence) => {
                write!(f, "no advertisement sent for {:.3} s: another may be master", silence.as_secs_f64())
            }
            Why::Fault(reason) => write!(f, "fault: {reason}"),
            Why::Recovered => f.write_str("no fault left"),
            Why::Group => f.write_str("with its sync group"),
        }
    }
}
