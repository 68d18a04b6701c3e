//! Whether this director forwards, by proof: the program that each interface runs is the one that is loaded, and
//! that program turns a packet to a VIP of its own into one to a real server. Nothing leaves the host: the real
//! server is a made-up MAC behind the loopback interface, as which a test run's frames come in.

use super::{
    Action, Dataplane, Error, Ports, Tables, bpf, pins,
    tables::{DestinationKey, DestinationSpec, NextHopKey, Role, Rules, ServiceSpec, Standing},
};
use lb_common::{
    destination::{Forwarding, NextHop},
    header::protocol,
    maps::programs,
    service::{OnUnknownFlow, Pick},
};
use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
};

/// The IPv4 dummy address (RFC 7600): no host has it, and no router forwards to it.
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 9);
/// discard
const PORT: u16 = 9;
const NAME: &str = "(self-probe)";
const LOOPBACK: u32 = 1;
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];

/// Puts what the probe needs into the tables: one service with one real server, by DR. Again after each start, as
/// with everything that is to stay.
pub fn install(tables: &mut Tables) -> Result<(), Error> {
    let vip = IpAddr::from(VIP);
    let hop = NextHop {
        destination: NextHop::pack(SERVER_MAC, 0),
        source: NextHop::pack(OWN_MAC, 0),
        ifindex: LOOPBACK,
        mtu: 1500,
        ..NextHop::default()
    };
    let key = NextHopKey { neighbour: vip, ifindex: LOOPBACK, vlans: [0, 0], for_clients: false };
    let next_hop = tables.set_next_hop(&key, &hop)?;
    let ports = vec![Ports::One(PORT)];
    tables.ensure_service(&ServiceSpec {
        name: NAME.into(),
        vip,
        protocol: protocol::UDP,
        ports: ports.clone(),
        pick: Pick::HashAddress,
        on_unknown_flow: OnUnknownFlow::Adopt,
        mss: 0,
        // Short: each probe but the first finds its flow, and nobody misses it.
        timeouts: [TIMEOUT; 16],
        pool: None,
        rules: Rules::default(),
    })?;
    let server = DestinationKey::new(NAME, vip, 0, Forwarding::Dr);
    let standing = Standing::default();
    let spec = DestinationSpec {
        next_hop,
        mtu: 1500,
        timeout: TIMEOUT,
        vip_port: 0,
        local: false,
        tunnel: Default::default(),
        standing,
    };
    let destination = tables.ensure_destination(&server, &spec)?;
    tables.set_slots(NAME, &[Some(destination)])?;
    tables.bind_address(NAME, Role::Vip, vip)?;
    tables.bind_ports(NAME, &ports)
}

/// Ticks.
const TIMEOUT: u16 = 20;

impl Dataplane {
    /// Whether frames that come in are forwarded now; the sentence of an error says what is wrong. Takes some
    /// microseconds: two system calls for each interface, and a run of the program on one frame.
    ///
    /// # Errors
    /// No interface has the program; an interface has another one, or is gone; the program does not forward.
    pub fn prove_forwarding(&self) -> Result<(), String> {
        if self.attached().is_empty() {
            return Err("the program is on no interface".into());
        }
        self.prove_attached()?;
        self.prove_program()
    }

    fn prove_attached(&self) -> Result<(), String> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let name = programs::MAIN;
        let program = self.program(name).map_err(|error| error.to_string())?;
        let loaded = program.info().map_err(|error| format!("look at the program {name}: {error}"))?.id();
        for attached in self.attached() {
            let interface = &attached.name;
            let path = pins::path(dir, attached.ifindex, attached.mode);
            let link = bpf::open_pin(&path);
            let link = link.map_err(|error| format!("{interface}: open {}: {error}", path.display()))?;
            let facts = bpf::link_facts(link.as_fd(), bpf::LINK_TYPE_XDP)
                .map_err(|error| format!("{interface}: look at its XDP link: {error}"))?;
            if facts.ifindex != attached.ifindex {
                return Err(format!("{interface} is gone, and its XDP program with it"));
            }
            if facts.program != loaded {
                let other = facts.program;
                return Err(format!("{interface} runs XDP program {other}, not {loaded}, which is loaded"));
            }
        }
        Ok(())
    }

    /// The program alone: for planes that are on no interface.
    pub fn prove_program(&self) -> Result<(), String> {
        let outcome = self.test_run(&frame()).map_err(|error| error.to_string())?;
        if outcome.action != Action::Tx {
            return Err(format!("the program does not forward: a probe ended with {:?}", outcome.action));
        }
        if outcome.frame[..12] != [SERVER_MAC, OWN_MAC].concat() {
            return Err("the program does not forward: a probe went to another real server".into());
        }
        Ok(())
    }
}

/// A datagram to the VIP.
fn frame() -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(OWN_MAC, OWN_MAC)
        .ipv4(CLIENT.octets(), VIP.octets(), 64)
        .udp(PORT, PORT);
    let payload = b"lb self-probe";
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).expect("a buffer takes what is written");
    frame
}
