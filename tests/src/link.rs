//! Cables and switches: veth pairs, bridges, and the settings of an interface.

use std::net::IpAddr;

use crate::namespace::Namespace;
use crate::xdp_pass::XdpPass;

/// Frames that wait where a ring is full: most of a second of the laboratory's fastest streams.
const QUEUE: &str = "50000";

/// Above it veth wants programs that know frames in several buffers.
const PAGE_MTU: u32 = 3400;

/// One port of a switch and the interface plugged into it.
pub struct Plug<'a> {
    /// The namespace of the bridges.
    pub switch: &'a Namespace,
    /// The bridge, made by [`bridge`].
    pub bridge: &'a str,
    /// Name of the switch's end; at most 15 bytes, unique in the switch.
    pub port: &'a str,
    /// The namespace to be connected.
    pub host: &'a Namespace,
    /// Name of the host's end.
    pub interface: &'a str,
    /// MAC address of the host's end.
    pub mac: [u8; 6],
    /// Addresses of the host's end with their prefix lengths.
    pub addresses: &'a [(IpAddr, u8)],
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

impl Plug<'_> {
    /// Makes the veth pair, gives the host's end its addresses and brings both ends up.
    #[track_caller]
    pub fn connect(&self) {
        let Plug { port, interface, mtu, bridge, .. } = self;
        let mac = format_mac(self.mac);
        let host = self.host.name();
        self.switch.ip(&format!(
            "link add {port} mtu {mtu} type veth peer name {interface} netns {host} mtu {mtu} address {mac}\n\
             link set {port} master {bridge} up\n"
        ));
        let mut lines = String::new();
        for (address, prefix) in self.addresses {
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            lines += &format!("address add {address}/{prefix} dev {interface} {nodad}\n");
        }
        lines += &format!("link set {interface} up\n");
        self.host.ip(&lines);
    }

    /// Makes the switch's end fit for an XDP program at the host's end: frames sent by XDP arrive at a veth
    /// only if it has a program itself, and a frame whose checksum is still to be filled in loses that mark
    /// in XDP, so the last hop before it must fill it in. Keep the returned guard for as long as XDP is used.
    ///
    /// An end whose peer has a program hands frames over in a ring of 256, which overflows when the reader is
    /// off the CPU for 10 ms. With a queue before it the sender waits instead (kernel 6.16 and later).
    #[track_caller]
    pub fn prepare_for_xdp(&self) -> XdpPass {
        self.switch.output("ethtool", &["-K", self.port, "tx", "off"]);
        for (namespace, interface) in [(self.switch, self.port), (self.host, self.interface)] {
            namespace.output("tc", &["qdisc", "replace", "dev", interface, "root", "pfifo", "limit", QUEUE]);
        }
        XdpPass::attach_for(self.switch, self.port, self.mtu > PAGE_MTU)
    }
}

/// Makes a bridge that only forwards: no spanning tree to wait for, no multicast snooping to lose neighbour
/// discovery and VRRP in.
#[track_caller]
pub fn bridge(switch: &Namespace, name: &str, mtu: u32) {
    switch.ip(&format!(
        "link add {name} type bridge stp_state 0 mcast_snooping 0 forward_delay 0\nlink set {name} mtu {mtu} up\n"
    ));
}

/// Changes the MAC address of an interface.
#[track_caller]
pub fn set_mac(namespace: &Namespace, interface: &str, mac: [u8; 6]) {
    namespace.ip(&format!("link set {interface} address {}", format_mac(mac)));
}

/// Changes the MTU of an interface, in bytes.
#[track_caller]
pub fn set_mtu(namespace: &Namespace, interface: &str, mtu: u32) {
    namespace.ip(&format!("link set {interface} mtu {mtu}"));
}

/// A MAC address as `ip` writes it.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
