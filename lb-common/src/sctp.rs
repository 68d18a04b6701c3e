//! SCTP (RFC 9260): chunk types, what they mean to a flow, its states, and the state step: IPVS's transition tables
//! (Linux 6.1, net/netfilter/ipvs/ip_vs_proto_sctp.c). Numbers of states fit four bits and are part of the pinned
//! layout; a value word whose number is one of these carries [`crate::connection::FLAG_SCTP`].

use crate::state::Direction;

/// Length of the common header: ports, verification tag, checksum.
pub const HEADER: usize = 12;
/// Length of a chunk's header: type, flags, length.
pub const CHUNK: usize = 4;
/// In the flags of ABORT and SHUTDOWN COMPLETE: the verification tag is the sender's own, sent back.
pub const T_BIT: u8 = 1;

/// Chunk types (RFC 9260, section 3.2).
pub mod chunk {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const SACK: u8 = 3;
    pub const HEARTBEAT: u8 = 4;
    pub const HEARTBEAT_ACK: u8 = 5;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const ERROR: u8 = 9;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// What a packet means to its flow, by its first chunk: the rows of the tables.
pub mod event {
    /// DATA, SACK, HEARTBEAT and whatever else changes no state.
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const COOKIE_ECHO: u8 = 3;
    pub const COOKIE_ACK: u8 = 4;
    pub const SHUTDOWN: u8 = 5;
    pub const SHUTDOWN_ACK: u8 = 6;
    pub const SHUTDOWN_COMPLETE: u8 = 7;
    pub const ERROR: u8 = 8;
    pub const ABORT: u8 = 9;
    /// How many there are.
    pub const COUNT: usize = 10;
}

/// Events of the chunk types 0 to 14, four bits each.
const EVENTS: u64 = {
    let pairs = [
        (chunk::INIT, event::INIT),
        (chunk::INIT_ACK, event::INIT_ACK),
        (chunk::ABORT, event::ABORT),
        (chunk::SHUTDOWN, event::SHUTDOWN),
        (chunk::SHUTDOWN_ACK, event::SHUTDOWN_ACK),
        (chunk::ERROR, event::ERROR),
        (chunk::COOKIE_ECHO, event::COOKIE_ECHO),
        (chunk::COOKIE_ACK, event::COOKIE_ACK),
        (chunk::SHUTDOWN_COMPLETE, event::SHUTDOWN_COMPLETE),
    ];
    let mut packed = 0u64;
    let mut i = 0;
    while i < pairs.len() {
        packed |= (pairs[i].1 as u64) << (pairs[i].0 * 4);
        i += 1;
    }
    packed
};

/// The event of a first chunk's type. IPVS looks at one more chunk in one case: COOKIE ECHO or COOKIE ACK before an
/// ABORT is an ABORT, which is its caller's to find.
#[inline(always)]
pub const fn event_of(chunk: u8) -> u8 {
    if chunk < 15 { (EVENTS >> (chunk * 4)) as u8 & 15 } else { event::DATA }
}

/// The state of an SCTP flow, as IPVS has it: as seen at the real server. 0 is never stored: an empty slot, and as an
/// input of [`step`] a new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    Established = 1,
    /// The client's first INIT.
    Init1 = 2,
    /// The client's INIT, sent again.
    Init = 3,
    /// The server's INIT ACK.
    CookieSent = 4,
    /// The client's COOKIE ECHO.
    CookieReplied = 5,
    /// The server's INIT.
    CookieWait = 6,
    /// The client's INIT ACK.
    Cookie = 7,
    /// The server's COOKIE ECHO.
    CookieEchoed = 8,
    ShutdownSent = 9,
    ShutdownReceived = 10,
    ShutdownAckSent = 11,
    /// A flow that has proven nothing yet: it was adopted. The same number for every protocol.
    Unconfirmed = 12,
    /// The server's ABORT in answer to an INIT.
    Rejected = 13,
    Closed = 14,
}

impl State {
    /// All states, in the order of their numbers from 1 on.
    pub const ALL: [State; 14] = [
        State::Established,
        State::Init1,
        State::Init,
        State::CookieSent,
        State::CookieReplied,
        State::CookieWait,
        State::Cookie,
        State::CookieEchoed,
        State::ShutdownSent,
        State::ShutdownReceived,
        State::ShutdownAckSent,
        State::Unconfirmed,
        State::Rejected,
        State::Closed,
    ];

    /// The state of a number from a value word.
    pub const fn from_number(number: u8) -> Option<State> {
        if number == 0 || number as usize > Self::ALL.len() {
            return None;
        }
        Some(Self::ALL[number as usize - 1])
    }

    /// The name that `ipvsadm -Lc` gives it.
    pub const fn name(self) -> &'static str {
        match self {
            State::Established => "ESTABLISHED",
            State::Init1 => "INIT1",
            State::Init => "INIT",
            State::CookieSent => "C-SENT",
            State::CookieReplied => "C-REPLIED",
            State::CookieWait => "C-WAIT",
            State::Cookie => "COOKIE",
            State::CookieEchoed => "C-ECHOED",
            State::ShutdownSent => "S-SENT",
            State::ShutdownReceived => "S-RECEIVED",
            State::ShutdownAckSent => "S-ACK-SENT",
            State::Unconfirmed => "UNCONFIRMED",
            State::Rejected => "REJECTED",
            State::Closed => "CLOSED",
        }
    }

    /// The states in which a flow counts as active, a bit for each by its number: as in IPVS, established ones alone.
    pub const ACTIVE: u32 = 1 << State::Established as u32;
    /// The states in which an association is being set up.
    pub const HALF_OPEN: u32 = 1 << State::Init1 as u32
        | 1 << State::Init as u32
        | 1 << State::CookieSent as u32
        | 1 << State::CookieReplied as u32
        | 1 << State::CookieWait as u32
        | 1 << State::Cookie as u32
        | 1 << State::CookieEchoed as u32;
}

/// Whether an association in this state is being set up.
#[inline(always)]
pub const fn is_half_open(state: u8) -> bool {
    State::HALF_OPEN >> (state & 15) & 1 != 0
}

/// Whether an INIT on an entry in this state begins another association on the same ports, which is scheduled anew
/// in the same packet (IPVS: `is_new_conn_expected`).
#[inline(always)]
pub const fn init_starts_anew(state: u8) -> bool {
    state == State::Closed as u8
}

/// IPVS's timeouts in seconds, by state number (Linux 6.1); UNCONFIRMED in its place.
pub const DEFAULT_TIMEOUTS: [u16; 16] = [2, 900, 4, 61, 61, 61, 61, 61, 61, 61, 61, 61, 10, 4, 61, 0];

const NO: u8 = 0;
const ES: u8 = State::Established as u8;
const I1: u8 = State::Init1 as u8;
const IN: u8 = State::Init as u8;
const CS: u8 = State::CookieSent as u8;
const CR: u8 = State::CookieReplied as u8;
const CW: u8 = State::CookieWait as u8;
const CO: u8 = State::Cookie as u8;
const CE: u8 = State::CookieEchoed as u8;
const SS: u8 = State::ShutdownSent as u8;
const SR: u8 = State::ShutdownReceived as u8;
const SA: u8 = State::ShutdownAckSent as u8;
const RJ: u8 = State::Rejected as u8;
const CL: u8 = State::Closed as u8;

/// The states in the order of IPVS's columns.
const COLUMNS: [u8; 14] = [NO, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL];

/// Rows: the events by number; columns: [`COLUMNS`].
type Table = [[u8; 14]; event::COUNT];

const INPUT: Table = [
    [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
    [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
    [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
    [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
    [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
    [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
];
const OUTPUT: Table = [
    [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
    [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
    [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
    [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
    [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
    [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
];
const INPUT_ONLY: Table = [
    [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
    [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
    [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
    [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
    [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
    [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
];

/// A table packed into words: the next state of a number is four bits of its event's word. An unconfirmed flow steps
/// as a new one.
const fn pack(table: &Table, into: &mut [u64; 64], at: usize) {
    let mut row = 0;
    while row < event::COUNT {
        let mut column = 0;
        let mut word = (table[row][0] as u64) << (State::Unconfirmed as u32 * 4);
        while column < COLUMNS.len() {
            word |= (table[row][column] as u64) << (COLUMNS[column] * 4);
            column += 1;
        }
        into[at + row] = word;
        row += 1;
    }
}

/// The tables by direction (sixteen words each) and event; a power of two, so that no index lies outside.
static PACKED: [u64; 64] = {
    let mut all = [0; 64];
    pack(&INPUT, &mut all, (Direction::Input as usize) << 4);
    pack(&OUTPUT, &mut all, (Direction::Output as usize) << 4);
    pack(&INPUT_ONLY, &mut all, (Direction::InputOnly as usize) << 4);
    all
};

/// The state after a packet of this event. `state` is a state's number, 0 for a new flow.
#[inline(always)]
pub fn step(direction: Direction, state: u8, event: u8) -> u8 {
    let row = PACKED[(((direction as usize) << 4) | (event as usize & 15)) & 63];
    (row >> ((state & 15) * 4)) as u8 & 15
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "NO I1 IN CS CR CW CO CE ES SS SR SA RJ CL";

    fn number(name: &str) -> u8 {
        let column = NAMES.split(' ').position(|n| n == name).unwrap_or_else(|| panic!("{name}"));
        COLUMNS[column]
    }

    /// (direction, event, the next state of each of IPVS's columns), written in IPVS's own words.
    const CASES: [(Direction, u8, &str); 30] = [
        (Direction::Input, event::DATA, "ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL"),
        (Direction::Input, event::INIT, "I1 IN IN CS CR CW CO CE ES SS SR SA IN IN"),
        (Direction::Input, event::INIT_ACK, "CW CW CW CS CR CO CO CE ES SS SR SA RJ CL"),
        (Direction::Input, event::COOKIE_ECHO, "CR IN IN CR CR CW CO CE ES SS SR SA RJ CL"),
        (Direction::Input, event::COOKIE_ACK, "ES I1 IN CS CR CW CO ES ES SS SR SA RJ CL"),
        (Direction::Input, event::SHUTDOWN, "SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL"),
        (Direction::Input, event::SHUTDOWN_ACK, "CL IN IN CS CR CW CO CE ES CL SR CL RJ CL"),
        (Direction::Input, event::SHUTDOWN_COMPLETE, "CL CL CL CS CR CW CO CE ES SS SR CL RJ CL"),
        (Direction::Input, event::ERROR, "CL I1 IN CS CR CW CO CL ES SS SR SA RJ CL"),
        (Direction::Input, event::ABORT, "CL CL CL CL CL RJ CL CL CL CL CL CL CL CL"),
        (Direction::Output, event::DATA, "ES I1 IN CS CR CW CO CE ES SS SR SA RJ CL"),
        (Direction::Output, event::INIT, "CW CW CW CW CW CW CW CW ES CW CW CW CW CW"),
        (Direction::Output, event::INIT_ACK, "CS CS CS CS CR CW CO CE ES SS SR SA RJ CL"),
        (Direction::Output, event::COOKIE_ECHO, "CE CE CE CE CE CE CE CE ES SS SR SA RJ CL"),
        (Direction::Output, event::COOKIE_ACK, "ES ES ES ES ES ES ES ES ES SS SR SA RJ CL"),
        (Direction::Output, event::SHUTDOWN, "SS SS SS SS SS SS SS SS SS SS SR SA RJ CL"),
        (Direction::Output, event::SHUTDOWN_ACK, "SA SA SA SA SA CW CO CE ES SA SA SA RJ CL"),
        (Direction::Output, event::SHUTDOWN_COMPLETE, "CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL"),
        (Direction::Output, event::ERROR, "CL CL CL CL CL CW CO CE ES SS SR SA RJ CL"),
        (Direction::Output, event::ABORT, "CL RJ CL CL CL CL CL CL CL CL CL CL CL CL"),
        (Direction::InputOnly, event::DATA, "ES I1 IN CS CR ES CO CE ES SS SR SA RJ CL"),
        (Direction::InputOnly, event::INIT, "I1 IN IN IN IN IN CO CE ES SS SR SA IN IN"),
        (Direction::InputOnly, event::INIT_ACK, "CE CE CE CE CE CE CO CE ES SS SR SA RJ CL"),
        (Direction::InputOnly, event::COOKIE_ECHO, "ES ES ES ES ES ES CO CE ES SS SR SA RJ CL"),
        (Direction::InputOnly, event::COOKIE_ACK, "ES I1 IN ES ES CW ES ES ES SS SR SA RJ CL"),
        (Direction::InputOnly, event::SHUTDOWN, "SR I1 IN CS CR CW CO CE SR SS SR SA RJ CL"),
        (Direction::InputOnly, event::SHUTDOWN_ACK, "CL IN IN CS CR CW CO CE CL CL SR CL RJ CL"),
        (Direction::InputOnly, event::SHUTDOWN_COMPLETE, "CL CL CL CL CL CW CO CE ES SS CL CL RJ CL"),
        (Direction::InputOnly, event::ERROR, "CL I1 IN CS CR CW CO CE ES SS SR SA RJ CL"),
        (Direction::InputOnly, event::ABORT, "CL CL CL CL CL RJ CL CL CL CL CL CL CL CL"),
    ];

    #[test]
    fn every_state_chunk_and_direction_steps_as_ipvs_does() {
        for (direction, event, row) in CASES {
            for (from, to) in NAMES.split(' ').zip(row.split(' ')) {
                let next = step(direction, number(from), event);
                assert_eq!(next, number(to), "{direction:?}, event {event}: {from} to {to}");
            }
            let unconfirmed = step(direction, State::Unconfirmed as u8, event);
            assert_eq!(unconfirmed, step(direction, 0, event), "an unconfirmed flow steps as a new one");
        }
    }

    #[test]
    fn every_chunk_type_is_the_event_that_ipvs_reads_in_it() {
        let named = [
            (1, event::INIT),
            (2, event::INIT_ACK),
            (6, event::ABORT),
            (7, event::SHUTDOWN),
            (8, event::SHUTDOWN_ACK),
            (9, event::ERROR),
            (10, event::COOKIE_ECHO),
            (11, event::COOKIE_ACK),
            (14, event::SHUTDOWN_COMPLETE),
        ];
        for chunk in 0..=255 {
            let expected = named.iter().find(|(c, _)| *c == chunk).map_or(event::DATA, |(_, event)| *event);
            assert_eq!(event_of(chunk), expected, "chunk type {chunk}");
        }
    }

    #[test]
    fn numbers_names_and_timeouts_agree() {
        for state in State::ALL {
            assert_eq!(State::from_number(state as u8), Some(state));
        }
        assert_eq!((State::from_number(0), State::from_number(15)), (None, None));
        let mut names: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), State::ALL.len());
        assert_eq!(State::Unconfirmed as u8, crate::state::State::Unconfirmed as u8);
        assert_eq!(State::Established as u8, crate::state::State::Established as u8);
        let seconds = |state: State| DEFAULT_TIMEOUTS[state as usize];
        assert_eq!(
            (seconds(State::Established), seconds(State::Init1), seconds(State::Rejected)),
            (900, 4, 4)
        );
        for state in State::ALL {
            let waits = is_half_open(state as u8) && state != State::Init1;
            let closes = matches!(
                state,
                State::ShutdownSent | State::ShutdownReceived | State::ShutdownAckSent | State::Closed
            );
            assert_eq!(seconds(state) == 61, waits || closes, "{}", state.name());
        }
    }

    #[test]
    fn an_association_is_set_up_and_taken_down_as_both_ends_see_it() {
        use Direction::{Input, InputOnly, Output};
        let walk = |steps: &[(Direction, u8)]| {
            let mut state = 0;
            steps
                .iter()
                .map(|(direction, event)| {
                    state = step(*direction, state, *event);
                    state
                })
                .collect::<Vec<_>>()
        };
        let nat = [
            (Input, event::INIT),
            (Output, event::INIT_ACK),
            (Input, event::COOKIE_ECHO),
            (Output, event::COOKIE_ACK),
            (Input, event::DATA),
            (Input, event::SHUTDOWN),
            (Output, event::SHUTDOWN_ACK),
            (Input, event::SHUTDOWN_COMPLETE),
        ];
        assert_eq!(walk(&nat), [I1, CS, CR, ES, ES, SR, SA, CL]);
        let dr = [
            (InputOnly, event::INIT),
            (InputOnly, event::COOKIE_ECHO),
            (InputOnly, event::DATA),
            (InputOnly, event::SHUTDOWN),
            (InputOnly, event::SHUTDOWN_COMPLETE),
        ];
        assert_eq!(walk(&dr), [I1, ES, ES, SR, CL]);
    }
}
