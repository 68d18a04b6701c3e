//! The numbered datagram: 19 bytes, integers big-endian: run (8), number (8), flow (2), answer wanted (1). Its
//! answer repeats the 19 bytes and appends the server's name. Anything shorter is a question who is there and is
//! answered with the name alone.

use std::collections::BTreeMap;

/// Length of a numbered datagram, in bytes.
pub(super) const NUMBERED: usize = 19;

pub(super) fn numbered(run: u64, number: u64, flow: u16, answer: bool) -> [u8; NUMBERED] {
    let mut datagram = [0; NUMBERED];
    datagram[..8].copy_from_slice(&run.to_be_bytes());
    datagram[8..16].copy_from_slice(&number.to_be_bytes());
    datagram[16..18].copy_from_slice(&flow.to_be_bytes());
    datagram[18] = answer.into();
    datagram
}

/// Run, number, flow and whether an answer is wanted; `None` for anything that is not a numbered datagram.
pub(super) fn parse(datagram: &[u8]) -> Option<(u64, u64, u16, bool)> {
    let (head, _) = datagram.split_first_chunk::<NUMBERED>()?;
    let word = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    // Numbers index a table: one that no stream of ours can reach is not ours.
    (word(8) < 1 << 32).then(|| (word(0), word(8), u16::from_be_bytes([head[16], head[17]]), head[18] != 0))
}

/// What arrived of one run at one place.
#[derive(Clone, Default)]
pub(super) struct Tally {
    /// How often each number came.
    times: Vec<u8>,
    /// How many datagrams of each flow came.
    pub(super) flows: BTreeMap<u16, u64>,
    pub(super) total: u64,
}

impl Tally {
    pub(super) fn record(&mut self, number: u64, flow: u16) {
        let index = number as usize;
        if self.times.len() <= index {
            self.times.resize((index + 1).next_power_of_two(), 0);
        }
        self.times[index] = self.times[index].saturating_add(1);
        *self.flows.entry(flow).or_default() += 1;
        self.total += 1;
    }

    pub(super) fn times(&self, number: u64) -> u32 {
        self.times.get(number as usize).copied().unwrap_or(0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_reads_back_as_written_and_a_short_one_is_a_question() {
        let datagram = numbered(7, 8, 9, true);
        assert_eq!(parse(&datagram), Some((7, 8, 9, true)));
        assert_eq!(parse(&datagram[..NUMBERED - 1]), None);
        assert_eq!(parse(&numbered(7, 1 << 32, 9, true)), None);
    }
}
