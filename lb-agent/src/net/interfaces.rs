//! Interfaces of the host for `validate` and for messages: names, addresses, and what bears on XDP. A snapshot that
//! needs no privileges; `Net` follows changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use ipnet::IpNet;
use network_interface::{NetworkInterface, NetworkInterfaceConfig};

/// An interface with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// As the system prints it, "02:00:00:00:00:01".
    pub mac: Option<String>,
    /// With their prefix lengths; host bits are kept.
    pub addresses: Vec<IpNet>,
    pub loopback: bool,
}

/// What decides how well XDP works on an interface. `None` where the driver does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpFacts {
    /// Name of the driver, "veth", "ixgbe".
    pub driver: Option<String>,
    /// Large receive offload: most drivers refuse XDP while it is on.
    pub lro: Option<bool>,
    /// The card takes VLAN tags out of frames, where XDP does not see them.
    pub rx_vlan_offload: Option<bool>,
    /// Receive queues (combined ones included).
    pub receive_queues: Option<u32>,
}

/// All interfaces of the calling thread's network namespace, by index.
///
/// # Errors
/// The system's refusal to list them.
pub fn list() -> Result<Vec<Interface>> {
    let mut interfaces: Vec<Interface> =
        NetworkInterface::show().context("list interfaces")?.into_iter().map(interface).collect();
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

/// Asks the driver of an interface (ethtool ioctls).
///
/// # Errors
/// An interface that does not exist.
pub fn xdp_facts(name: &str) -> Result<XdpFacts> {
    let what = || format!("ask the driver of {name}");
    nix::net::if_::if_nametoindex(name).with_context(what)?;
    let socket = control_socket().with_context(what)?;
    let driver = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    let driver = ask(&socket, name, driver).map(|info| {
        let length = info.driver.iter().position(|&byte| byte == 0).unwrap_or(info.driver.len());
        String::from_utf8_lossy(&info.driver[..length]).into_owned()
    });
    let flags = ask(&socket, name, Value { command: ETHTOOL_GFLAGS, data: 0 }).map(|value| value.data);
    let channels = ask(&socket, name, Channels { command: ETHTOOL_GCHANNELS, counts: [0; 8] });
    Ok(XdpFacts {
        driver,
        lro: flags.map(|flags| flags & ETH_FLAG_LRO != 0),
        rx_vlan_offload: flags.map(|flags| flags & ETH_FLAG_RXVLAN != 0),
        // rx and combined of struct ethtool_channels, in their present numbers.
        receive_queues: channels.map(|channels| channels.counts[4] + channels.counts[7]),
    })
}

/// Has the kernel itself write the checksums of what leaves by an interface, and so cut what is longer than a frame.
///
/// # Errors
/// A driver that cannot be told.
pub fn checksum_in_software(name: &str) -> Result<()> {
    let what = || format!("switch off transmit checksums of {name} (ethtool -K {name} tx off)");
    let socket = control_socket().with_context(what)?;
    ask(&socket, name, Value { command: ETHTOOL_STXCSUM, data: 0 }).with_context(what).map(drop)
}

fn interface(found: NetworkInterface) -> Interface {
    let address = |addr: &network_interface::Addr| {
        let ip = addr.ip();
        let full = || IpNet::from(ip);
        addr.netmask()
            .map_or_else(full, |mask: IpAddr| IpNet::with_netmask(ip, mask).unwrap_or_else(|_| full()))
    };
    Interface {
        addresses: found.addr.iter().map(address).collect(),
        index: found.index,
        name: found.name,
        mac: found.mac_addr.filter(|mac| mac != "00:00:00:00:00:00"),
        loopback: found.internal,
    }
}

/// One ethtool ioctl; `None` if the driver does not implement it.
fn ask<T: EthtoolRequest>(socket: &OwnedFd, name: &str, mut data: T) -> Option<T> {
    // SAFETY: all zero bytes are an ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // Shorter than the field, so that a zero byte ends it.
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut data).cast();
    // SAFETY: request and data live during the call, and data is what the kernel reads and writes for its command.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } {
        -1 => None,
        _ => Some(data),
    }
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers; a non-negative result is a descriptor that nobody else owns.
    unsafe {
        match libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// A structure of linux/ethtool.h.
///
/// # Safety
/// It must be laid out as the kernel expects for the command in its first four bytes.
unsafe trait EthtoolRequest {}

/// `struct ethtool_drvinfo`; what is behind the driver's name is not used.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}
// SAFETY: as the struct of that name.
unsafe impl EthtoolRequest for DriverInfo {}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}
// SAFETY: as the struct of that name.
unsafe impl EthtoolRequest for Value {}

/// `struct ethtool_channels`: max and present numbers of rx, tx, other, combined.
#[repr(C)]
struct Channels {
    command: u32,
    counts: [u32; 8],
}
// SAFETY: as the struct of that name.
unsafe impl EthtoolRequest for Channels {}

const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<Channels>() == 36);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_with_its_prefix() {
        let interfaces = list().unwrap();
        let loopback = interfaces.iter().find(|interface| interface.name == "lo").expect("lo is listed");
        assert!(loopback.loopback);
        assert!(loopback.addresses.contains(&"127.0.0.1/8".parse().unwrap()), "{loopback:?}");
    }

    #[test]
    fn an_interface_that_does_not_exist_has_no_facts() {
        let error = xdp_facts("no-such-if").unwrap_err();
        assert_eq!(error.to_string(), "ask the driver of no-such-if");
    }
}
