//! The states of a flow and the TCP state step: IPVS's transition tables (Linux 6.1,
//! net/netfilter/ipvs/ip_vs_proto_tcp.c), which infer the state from what passes a director. Numbers fit four bits and are
//! part of the pinned layout.

/// The state of an entry. 0 is never stored: it means an empty slot, and as an input of [`step`] a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait = 4,
    TimeWait = 5,
    Close = 6,
    CloseWait = 7,
    LastAck = 8,
    Listen = 9,
    SynAck = 10,
    /// A UDP flow that has proven itself: a second packet (DR, TUN), or a reply (NAT, FULLNAT).
    Udp = 11,
    /// A flow that has proven nothing yet: the first UDP packet, or a TCP flow that was adopted.
    Unconfirmed = 12,
    /// Not a flow: a CPU is writing the slot.
    Busy = 15,
}

impl State {
    /// The state of a number from a value word.
    pub const fn from_number(number: u8) -> Option<State> {
        Some(match number {
            1 => State::Established,
            2 => State::SynSent,
            3 => State::SynReceived,
            4 => State::FinWait,
            5 => State::TimeWait,
            6 => State::Close,
            7 => State::CloseWait,
            8 => State::LastAck,
            9 => State::Listen,
            10 => State::SynAck,
            11 => State::Udp,
            12 => State::Unconfirmed,
            15 => State::Busy,
            _ => return None,
        })
    }

    /// The name that `ipvsadm -Lc` gives it.
    pub const fn name(self) -> &'static str {
        match self {
            State::Established => "ESTABLISHED",
            State::SynSent => "SYN_SENT",
            State::SynReceived => "SYN_RECV",
            State::FinWait => "FIN_WAIT",
            State::TimeWait => "TIME_WAIT",
            State::Close => "CLOSE",
            State::CloseWait => "CLOSE_WAIT",
            State::LastAck => "LAST_ACK",
            State::Listen => "LISTEN",
            State::SynAck => "SYNACK",
            State::Udp => "UDP",
            State::Unconfirmed => "UNCONFIRMED",
            State::Busy => "BUSY",
        }
    }

    /// The states in which a flow counts as active, a bit for each by its number.
    pub const ACTIVE: u32 = 1 << State::Established as u32
        | 1 << State::SynSent as u32
        | 1 << State::SynReceived as u32
        | 1 << State::SynAck as u32
        | 1 << State::Udp as u32;

    /// Whether a flow in this state counts as active at its server. Unlike IPVS, confirmed UDP counts.
    pub const fn is_active(self) -> bool {
        Self::ACTIVE >> self as u32 & 1 != 0
    }
}

/// Which packets of a flow pass the director, and which way this one goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Direction {
    /// From the client, and replies pass too (NAT, FULLNAT).
    Input = 0,
    /// From the real server (NAT, FULLNAT).
    Output = 1,
    /// From the client, and replies do not pass (DR, TUN).
    InputOnly = 2,
}

/// TCP flags as in byte 13 of the header.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

/// Whether a TCP stack sends a segment with these flags (PSH, ECE and CWR aside): SYN, SYN and ACK, RST, ACK, FIN and
/// ACK, each with URG or without, and RST with ACK. Linux's conntrack has the same list (`tcp_valid_flags`, 6.1).
#[inline(always)]
pub const fn is_possible(flags: u8) -> bool {
    const POSSIBLE: [u8; 9] =
        [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG];
    // A bit for each of the 64 combinations.
    const BITS: u64 = {
        let (mut bits, mut i) = (0, 0);
        while i < POSSIBLE.len() {
            bits |= 1u64 << POSSIBLE[i];
            i += 1;
        }
        bits
    };
    BITS >> (flags & (FIN | SYN | RST | ACK | URG)) & 1 != 0
}

#[cfg(test)]
const NO: u8 = 0;
const ES: u8 = State::Established as u8;
const SS: u8 = State::SynSent as u8;
const SR: u8 = State::SynReceived as u8;
const FW: u8 = State::FinWait as u8;
const TW: u8 = State::TimeWait as u8;
const CL: u8 = State::Close as u8;
const CW: u8 = State::CloseWait as u8;
const LA: u8 = State::LastAck as u8;
const LI: u8 = State::Listen as u8;
#[cfg(test)]
const SA: u8 = State::SynAck as u8;

/// Columns: NO ES SS SR FW TW CL CW LA LI SA, which are the numbers 0 to 10. Rows: syn, fin, ack, rst.
type Table = [[u8; 11]; 4];

const INPUT: Table = [
    [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
    [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
];
const OUTPUT: Table = [
    [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
    [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
];
const INPUT_ONLY: Table = [
    [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
    [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

/// A table packed into words: the next state of (column) is four bits of `rows[row]`, so that the program
/// needs two shifts and no memory.
const fn pack(table: &Table) -> [u64; 4] {
    let mut rows = [0u64; 4];
    let mut r = 0;
    while r < 4 {
        let mut c = 0;
        while c < 11 {
            rows[r] |= (table[r][c] as u64) << (c * 4);
            c += 1;
        }
        // Unconfirmed (12) steps as a new flow does; UDP (11) never comes here.
        rows[r] |= (table[r][0] as u64) << (12 * 4);
        r += 1;
    }
    rows
}

const PACKED: [[u64; 4]; 3] = [pack(&INPUT), pack(&OUTPUT), pack(&INPUT_ONLY)];

/// The state after a TCP packet with `flags` (byte 13) in `direction`. `state` is a state's number, 0 for a
/// new flow. Priority is RST, SYN, FIN, ACK as in IPVS; a packet with none of them changes nothing.
#[inline(always)]
pub const fn step(direction: Direction, state: u8, flags: u8) -> u8 {
    let rows = match direction {
        Direction::Input => &PACKED[0],
        Direction::Output => &PACKED[1],
        Direction::InputOnly => &PACKED[2],
    };
    let row = if flags & RST != 0 {
        rows[3]
    } else if flags & SYN != 0 {
        rows[0]
    } else if flags & FIN != 0 {
        rows[1]
    } else if flags & ACK != 0 {
        rows[2]
    } else {
        return state;
    };
    (row >> ((state & 15) * 4)) as u8 & 15
}

/// Whether a SYN on an entry in this state begins another connection on the same ports, which is scheduled
/// anew in the same packet: closing states, and FIN_WAIT where replies are not seen (IPVS's
/// conn_reuse_mode 1 and 2 together, without its delays).
#[inline(always)]
pub const fn syn_starts_anew(state: u8, direction: Direction) -> bool {
    state == TW || state == CL || state == LA || (state == FW && matches!(direction, Direction::InputOnly))
}

/// IPVS's timeouts in seconds, by state number (Linux 6.1); UDP and UNCONFIRMED in their places.
pub const DEFAULT_TIMEOUTS: [u16; 16] = [2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120, 300, 10, 0, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables as IPVS prints them, in its own words.
    fn parse(row: &str) -> Vec<u8> {
        row.split_whitespace()
            .map(|name| match name {
                "NO" => NO,
                "ES" => ES,
                "SS" => SS,
                "SR" => SR,
                "FW" => FW,
                "TW" => TW,
                "CL" => CL,
                "CW" => CW,
                "LA" => LA,
                "LI" => LI,
                "SA" => SA,
                other => panic!("{other}"),
            })
            .collect()
    }

    #[test]
    fn every_state_flag_and_direction_steps_as_ipvs_does() {
        let cases = [
            (Direction::Input, SYN, "SR ES ES SR SR SR SR SR SR SR SR"),
            (Direction::Input, FIN, "CL CW SS TW TW TW CL CW LA LI TW"),
            (Direction::Input, ACK, "ES ES SS ES FW TW CL CW CL LI ES"),
            (Direction::Input, RST, "CL CL CL SR CL CL CL CL LA LI SR"),
            (Direction::Output, SYN, "SS ES SS SR SS SS SS SS SS LI SR"),
            (Direction::Output, FIN, "TW FW SS TW FW TW CL TW LA LI TW"),
            (Direction::Output, ACK, "ES ES SS ES FW TW CL CW LA ES ES"),
            (Direction::Output, RST, "CL CL SS CL CL TW CL CL CL CL CL"),
            (Direction::InputOnly, SYN, "SR ES ES SR SR SR SR SR SR SR SR"),
            (Direction::InputOnly, FIN, "CL FW SS TW FW TW CL CW LA LI TW"),
            (Direction::InputOnly, ACK, "ES ES SS ES FW TW CL CW CL LI ES"),
            (Direction::InputOnly, RST, "CL CL CL SR CL CL CL CL LA LI CL"),
        ];
        for (direction, flag, row) in cases {
            for (state, next) in parse(row).into_iter().enumerate() {
                assert_eq!(step(direction, state as u8, flag), next, "{direction:?} {flag:#x} from {state}");
                // Lower priorities beside it change nothing.
                let all = match flag {
                    RST => RST | SYN | FIN | ACK,
                    SYN => SYN | FIN | ACK,
                    FIN => FIN | ACK,
                    _ => ACK | PSH | URG,
                };
                assert_eq!(step(direction, state as u8, all), next);
            }
        }
    }

    #[test]
    fn an_unconfirmed_flow_steps_like_a_new_one_and_no_flag_is_no_step() {
        for direction in [Direction::Input, Direction::Output, Direction::InputOnly] {
            for flags in [SYN, FIN, ACK, RST] {
                assert_eq!(step(direction, State::Unconfirmed as u8, flags), step(direction, 0, flags));
            }
            assert_eq!(step(direction, ES, PSH), ES);
        }
    }

    #[test]
    fn flags_that_a_stack_sends_are_possible_and_no_others() {
        for flags in 0..=255u8 {
            let (fin, syn, rst, ack, urg) =
                (flags & FIN != 0, flags & SYN != 0, flags & RST != 0, flags & ACK != 0, flags & URG != 0);
            let expected = match (syn, rst, fin) {
                (true, false, false) => !(ack && urg),
                (false, true, false) => !urg,
                (false, false, _) => ack,
                _ => false,
            };
            assert_eq!(is_possible(flags), expected, "{flags:#04x}");
        }
    }

    #[test]
    fn numbers_and_states_agree() {
        for number in 0..16 {
            if let Some(state) = State::from_number(number) {
                assert_eq!(state as u8, number);
            }
        }
        assert_eq!(DEFAULT_TIMEOUTS[State::Established as usize], 900);
        assert_eq!(DEFAULT_TIMEOUTS[State::Udp as usize], 300);
    }
}
