//! Quotes of flows with an extension record: whoever sent the quoted packet gets its sequence number back as it counts.
//! Hosts believe an error only about a number that they have sent and that is not acknowledged (RFC 5927, section 4.1;
//! Linux: `tcp_v4_err`), and path-MTU discovery ends where they do not.

use crate::{
    extension::{Held, Shifts},
    packet::{Packet, load8, load16, load32, opaque, store16, store32},
    proxy,
    quote::Quote,
};
use lb_common::{checksum, header::ICMP, state};

/// Whose packet is quoted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The client's, as the server counts.
    Client,
    /// The server's, as the client counts.
    Server,
}

/// Gives the quoted packet the numbers of who sent it, with every checksum that is there. `identity` is that of the
/// client's packets. None when the frame is shorter than its quote was.
#[inline(always)]
pub fn renumber<const V6: bool>(
    packet: &Packet<V6>,
    quote: &Quote,
    identity: u64,
    now: u16,
    by: By,
) -> Option<()> {
    if quote.udp || quote.sctp {
        return Some(());
    }
    let frame = &packet.frame;
    let tcp = frame.at_dynamic(quote.l4, 8)?;
    let old = load32(tcp, 4);
    let sequence = u32::from_be(old);
    // What is acknowledged, if the quote says so.
    let mut heard = 0;
    if quote.l4 + 14 <= quote.end {
        let tcp = frame.at_dynamic(quote.l4, 14)?;
        if load8(tcp, 13) & state::ACK != 0 {
            heard = 1 << 32 | load32(tcp, 8) as u64;
        }
    }
    let heard = opaque(heard);
    let acknowledged = u32::from_be(heard as u32);
    let numbers =
        lb_quoted_numbers(identity, now as u32, sequence as u64 | (acknowledged as u64) << 32, by as u32);
    let mut delta = 0;
    if heard != 0 {
        let tcp = frame.at_dynamic(quote.l4, 14)?;
        let new = ((numbers >> 32) as u32).to_be();
        store32(tcp, 8, new);
        delta = checksum::sub(checksum::add(0, new), heard as u32);
    }
    let tcp = frame.at_dynamic(quote.l4, 8)?;
    let new = (numbers as u32).to_be();
    store32(tcp, 4, new);
    delta = checksum::sub(checksum::add(delta, new), old);
    let mut total = delta;
    if quote.l4 + 18 <= quote.end {
        let tcp = frame.at_dynamic(quote.l4, 18)?;
        let (old, new) = (load16(tcp, 16), checksum::update(load16(tcp, 16), delta));
        store16(tcp, 16, new);
        total += new as u64 + (!old) as u64;
    }
    let icmp = frame.at_dynamic(packet.l4, ICMP)?;
    store16(icmp, 2, checksum::update(load16(icmp, 2), total));
    Some(())
}

/// A router's MTU for a packet of the client's that the PROXY header rode on, less the header: it rides again when the
/// client sends that segment anew. To be asked after [`renumber`].
#[inline(always)]
pub fn leave_room<const V6: bool>(packet: &Packet<V6>, quote: &Quote, identity: u64, now: u16) -> Option<()> {
    if quote.udp || quote.sctp {
        return Some(());
    }
    let tcp = packet.frame.at_dynamic(quote.l4, 8)?;
    if lb_quoted_rides(identity, now as u32, u32::from_be(load32(tcp, 4))) == 0 {
        return Some(());
    }
    // ICMPv6 has 32 bits for it, of which the upper ones are none (RFC 4443, section 3.2).
    let icmp = packet.frame.at_dynamic(packet.l4, ICMP)?;
    let old = load16(icmp, 6);
    let less = proxy::bytes::<V6>();
    let mtu = u16::from_be(old) as u32;
    // A router of before RFC 1191 says 0.
    if mtu > 2 * less {
        let new = ((mtu - less) as u16).to_be();
        store16(icmp, 6, new);
        store16(icmp, 2, checksum::update(load16(icmp, 2), new as u64 + (!old) as u64));
    }
    Some(())
}

#[inline(always)]
fn shifts(identity: u64, now: u32) -> Option<Shifts> {
    Held::of(identity, now as u16)?.shifts(identity)
}

/// Sequence number (lower half) and acknowledgement (upper half) of a quoted packet as its sender counts; as they are
/// where nobody knows. A global function: verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_quoted_numbers(identity: u64, now: u32, numbers: u64, by: u32) -> u64 {
    let Some(shifts) = shifts(identity, now) else { return numbers };
    let (sequence, acknowledged) = (numbers as u32, (numbers >> 32) as u32);
    let (sequence, acknowledged) = if by == By::Server as u32 {
        let acknowledged = shifts.client.forth(shifts.client_base, acknowledged);
        (shifts.server.back(shifts.server_base, sequence), acknowledged)
    } else {
        let acknowledged = shifts.server.forth(shifts.server_base, acknowledged);
        (shifts.client.back(shifts.client_base, sequence), acknowledged)
    };
    sequence as u64 | (acknowledged as u64) << 32
}

/// Whether the PROXY header rides on the client's segment that begins here, as the client counts.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_quoted_rides(identity: u64, now: u32, sequence: u32) -> u32 {
    match shifts(identity, now) {
        Some(shifts) => proxy::rides(&shifts, sequence) as u32,
        None => 0,
    }
}
