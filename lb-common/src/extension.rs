//! What is known of a TCP flow beside its entry: how its sequence numbers are shifted, since something was put into
//! or taken out of its stream on the way. A flow with [`crate::connection::FLAG_EXTENSION`] in its words has one
//! record, a line of the array of extensions, that is found by the identity of the client's packets. The records lie
//! in sets of [`WAYS`]; a flow's record is in one of two sets, like its entry in one of two buckets.
//!
//! ```text
//! bytes  0..8   owner: identity of the client's flow
//!        8..16  [atomic] word: state, deadline and tag, as in an entry's value word; 0 is free
//!       16..24  [atomic] client: position 32 | before 16 | after 16
//!       24..32  [atomic] server: the same
//!       32..40  what is added everywhere: to the client's numbers, to the server's
//!       40..48  the server's clock; the client's first sequence number
//!       48..56  [atomic] duties
//!       56..64  memory of whoever has a duty
//! ```
//!
//! Like an entry, a record is free when its deadline has passed; the packets that refresh the flow refresh it. It is
//! claimed by exchanging its word for BUSY. What changes while packets use it is one aligned word each.

/// Records in a set.
pub const WAYS: u32 = 4;
/// The fewest records there may be: two sets.
pub const FEWEST: u32 = 2 * WAYS;

/// A record: one line.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(64))]
pub struct Extension {
    /// Identity of the client's flow.
    pub owner: u64,
    /// \[atomic\] state, deadline and tag ([`crate::connection::Value::flow`] of destination 0); 0 is free.
    pub word: u64,
    /// \[atomic\] the [`Shift`] of the client's sequence numbers.
    pub client: u64,
    /// \[atomic\] the [`Shift`] of the server's sequence numbers.
    pub server: u64,
    /// Added to every sequence number of the client on its way to the server, beside what the shift says.
    pub client_base: u32,
    /// Added to every sequence number of the server on its way to the client.
    pub server_base: u32,
    /// Added to every timestamp of the server on its way to the client (RFC 7323), and taken off its echo.
    pub clock: u32,
    /// The client's initial sequence number, host order.
    pub client_first: u32,
    /// \[atomic\] [`duty`]: what is still to be done with the flow's packets.
    pub duties: u64,
    /// \[atomic\] what somebody with a duty remembers.
    pub note: u64,
}

/// Bits of [`Extension::duties`].
pub mod duty {
    /// The PROXY header rides on the client's segments that begin at its first byte, until the server has it.
    pub const PROXY: u64 = 1;
    /// The TCP option address rides on the client's segments, until the server's connection is established.
    pub const TOA: u64 = 1 << 1;
    /// The flow began with a SYN cookie ([`super::Begun`]).
    pub const COOKIE: u64 = 1 << 2;
    /// And its server has not answered yet.
    pub const WAITS: u64 = 1 << 3;
    /// The flow is a control channel of FTP under FULLNAT, and a command of its client's was rewritten: the note is
    /// [`super::Announced`].
    pub const FTP: u64 = 1 << 4;
}

/// What the record of a control channel of FTP remembers of the command that was rewritten last, so that it is rewritten
/// alike when it is sent again.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Announced {
    /// Where its segment began, as the client counts.
    pub position: u32,
    /// The lease that it was made to name.
    pub lease: u32,
}

impl Announced {
    /// From a note.
    #[inline(always)]
    pub const fn of(note: u64) -> Self {
        Self { position: note as u32, lease: (note >> 32) as u32 }
    }

    /// As a note.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.position as u64 | (self.lease as u64) << 32
    }
}

/// What a flow's SYN said that began with a cookie, and how windows are scaled for the client: bits 32 to 63 of its
/// duties. The cookie (low half) and the timestamp that the client was sent (high half) are in the record's note until
/// the server has answered.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Begun {
    /// The client's MSS, as [`crate::cookie::mss_of`] numbers it.
    pub mss: u8,
    /// The client's window scale; [`crate::cookie::NO_SCALE`] is none.
    pub scale: u8,
    pub sack: bool,
    /// The client uses timestamps.
    pub stamps: bool,
    /// Windows of the server are shifted left so far (right, if negative): its scale less the one that the client was
    /// told.
    pub server_windows: i8,
    /// Windows of the client: its scale where the server has none.
    pub client_windows: i8,
}

impl Begun {
    /// From duties.
    #[inline(always)]
    pub const fn of(duties: u64) -> Self {
        Self {
            mss: (duties >> 32) as u8 & 3,
            scale: (duties >> 34) as u8 & 15,
            sack: duties >> 38 & 1 != 0,
            stamps: duties >> 39 & 1 != 0,
            server_windows: (duties >> 40) as i8,
            client_windows: (duties >> 48) as i8,
        }
    }

    /// As duties.
    #[inline(always)]
    pub const fn duties(self) -> u64 {
        (self.mss as u64 & 3) << 32
            | (self.scale as u64 & 15) << 34
            | (self.sack as u64) << 38
            | (self.stamps as u64) << 39
            | (self.server_windows as u8 as u64) << 40
            | (self.client_windows as u8 as u64) << 48
    }
}

/// A window as its reader scales it. What is not nothing stays so.
#[inline(always)]
pub const fn scaled(window: u16, by: i8) -> u16 {
    let wide = if by >= 0 {
        (window as u64) << (by as u32 & 15)
    } else {
        let narrow = window as u64 >> ((-by) as u32 & 15);
        if narrow == 0 && window != 0 { 1 } else { narrow }
    };
    if wide > u16::MAX as u64 { u16::MAX } else { wide as u16 }
}

/// How sequence numbers of one direction are shifted: by `before` up to and with `position`, a number as its sender
/// counts, and by `after` beyond it (as IPVS does, `net/netfilter/ipvs/ip_vs_app.c`). So the segment that begins at the
/// position, in which something was put, begins where it did, and all that follow are moved.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Shift {
    pub position: u32,
    pub before: i16,
    pub after: i16,
}

impl Shift {
    /// From its word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { position: word as u32, before: (word >> 32) as i16, after: (word >> 48) as i16 }
    }

    /// As one word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.position as u64 | (self.before as u16 as u64) << 32 | (self.after as u16 as u64) << 48
    }

    /// A sequence number of the sender as the receiver shall see it.
    #[inline(always)]
    pub const fn forth(self, base: u32, sequence: u32) -> u32 {
        let by = if is_after(sequence, self.position) { self.after } else { self.before };
        sequence.wrapping_add(base).wrapping_add(by as u32)
    }

    /// A number that the receiver names (an acknowledgement, an edge of a selective one) as the sender counts. Within
    /// what was put in there is nothing that the sender could name: it becomes the position.
    #[inline(always)]
    pub const fn back(self, base: u32, number: u32) -> u32 {
        let number = number.wrapping_sub(base);
        let early = number.wrapping_sub(self.before as u32);
        if !is_after(early, self.position) {
            return early;
        }
        let late = number.wrapping_sub(self.after as u32);
        if is_after(late, self.position) { late } else { self.position }
    }

    /// Whether segments from before the position may still come.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.before != self.after
    }

    /// What it is when the receiver has acknowledged up to `number`: once that is beyond what was put in, all that
    /// the sender still has is shifted alike, and no position divides it any more. Else a stream of more than 2 GiB
    /// would come before its own beginning.
    #[inline(always)]
    pub const fn acknowledged(self, base: u32, number: u32) -> Self {
        // Of a segment that became shorter, not even its first byte may have arrived.
        let by = if self.after > self.before { self.after as i32 } else { self.before as i32 + 1 };
        let all = self.position.wrapping_add(base).wrapping_add(by as u32);
        if is_after(all, number) { self } else { Self { before: self.after, ..self } }
    }

    /// With `by` bytes more (fewer, if negative) in the segment that begins at `position`. The same again when the
    /// segment is one that was sent before: its bytes are counted. None when the two shifts no longer fit the word.
    #[inline(always)]
    pub const fn then(self, position: u32, by: i16) -> Option<Self> {
        let none = self.before == 0 && self.after == 0;
        if !none && !is_after(position, self.position) {
            return Some(self);
        }
        match self.after.checked_add(by) {
            Some(after) => Some(Self { position, before: self.after, after }),
            None => None,
        }
    }
}

/// Whether a sequence number is after another (RFC 9293, section 3.4).
#[inline(always)]
pub const fn is_after(number: u32, other: u32) -> bool {
    (other.wrapping_sub(number) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_one_line_and_what_changes_is_an_aligned_word() {
        assert_eq!((size_of::<Extension>(), align_of::<Extension>()), (64, 64));
        assert_eq!(offset_of!(Extension, owner), 0);
        assert_eq!(offset_of!(Extension, word), 8);
        assert_eq!(offset_of!(Extension, client), 16);
        assert_eq!(offset_of!(Extension, server), 24);
        assert_eq!(offset_of!(Extension, client_base), 32);
        assert_eq!(offset_of!(Extension, server_base), 36);
        assert_eq!(offset_of!(Extension, clock), 40);
        assert_eq!(offset_of!(Extension, client_first), 44);
        assert_eq!(offset_of!(Extension, duties), 48);
        assert_eq!(offset_of!(Extension, note), 56);
    }

    #[test]
    fn windows_are_scaled_and_never_closed_by_it() {
        for (window, by, expected) in [
            (0u16, 0i8, 0u16),
            (0, -14, 0),
            (512, 0, 512),
            (65_535, -7, 511),
            (100, -7, 1),
            (1, 14, 16_384),
            (4, 14, 65_535),
            (501, 1, 1002),
        ] {
            assert_eq!(scaled(window, by), expected, "{window} by {by}");
        }
    }

    #[test]
    fn a_header_in_front_of_the_first_byte_moves_all_but_the_segment_that_carries_it() {
        for first in [7u32, u32::MAX, u32::MAX - 20] {
            let shift = Shift { position: first, before: 0, after: 28 };
            assert_eq!(shift.forth(0, first.wrapping_sub(1)), first.wrapping_sub(1), "the SYN");
            assert_eq!(shift.forth(0, first), first, "the first byte's segment");
            assert_eq!(shift.forth(0, first.wrapping_add(100)), first.wrapping_add(128));
            for (acknowledged, seen) in [(0, 0), (1, 0), (27, 0), (28, 0), (29, 1), (128, 100)] {
                assert_eq!(
                    shift.back(0, first.wrapping_add(acknowledged)),
                    first.wrapping_add(seen),
                    "{acknowledged} bytes of header and data"
                );
            }
        }
    }

    #[test]
    fn once_the_receiver_has_what_was_put_in_everything_is_moved() {
        for base in [0, 1 << 31] {
            let shift = Shift { position: 99, before: 0, after: 28 };
            assert_eq!(shift.acknowledged(base, base.wrapping_add(126)), shift);
            let settled = shift.acknowledged(base, base.wrapping_add(127));
            assert_eq!(settled, Shift { before: 28, ..shift });
            assert!(shift.is_open() && !settled.is_open());
            let far = 99u32.wrapping_add(3 << 30);
            for sequence in [98, 99, 1000, far] {
                assert_eq!(settled.forth(base, sequence), sequence.wrapping_add(base).wrapping_add(28));
                assert_eq!(settled.back(base, settled.forth(base, sequence)), sequence);
            }
        }
    }

    #[test]
    fn what_became_shorter_is_settled_only_when_it_was_acknowledged() {
        // Twenty bytes became fourteen.
        let shift = Shift { position: 1000, before: 10, after: 4 };
        assert_eq!(shift.acknowledged(0, 1005), shift);
        assert_eq!(shift.acknowledged(0, 1010), shift, "nothing of the segment yet");
        assert_eq!(shift.acknowledged(0, 1024), Shift { before: 4, ..shift });
        assert_eq!((shift.forth(0, 1000), shift.forth(0, 1020)), (1010, 1024));
        assert_eq!((shift.back(0, 1010), shift.back(0, 1024), shift.back(0, 1030)), (1000, 1020, 1026));
        for number in 1010..1024 {
            assert!((1000..=1020).contains(&shift.back(0, number)), "{number}");
        }
    }

    #[test]
    fn insertions_add_up_and_a_segment_sent_again_is_counted_once() {
        let one = Shift::default().then(1000, 5).unwrap();
        assert_eq!(one, Shift { position: 1000, before: 0, after: 5 });
        assert_eq!(one.then(1000, 5), Some(one), "sent again");
        assert_eq!(one.then(900, 5), Some(one), "from before");
        let settled = one.acknowledged(0, 1100);
        assert_eq!(settled.then(1000, 5), Some(settled), "sent again though it was acknowledged");
        let two = one.then(2000, -3).unwrap();
        assert_eq!(two, Shift { position: 2000, before: 5, after: 2 });
        assert_eq!((two.forth(0, 2000), two.forth(0, 2001)), (2005, 2003));
        assert_eq!(Shift { position: 1, before: 0, after: i16::MAX - 1 }.then(9, 2), None);
        assert_eq!(Shift { position: 1, before: 0, after: i16::MIN }.then(9, -1), None);
    }

    proptest! {
        #[test]
        fn every_word_is_read_back(position: u32, before: i16, after: i16) {
            let shift = Shift { position, before, after };
            prop_assert_eq!(Shift::from_word(shift.word()), shift);
        }

        #[test]
        fn what_was_announced_is_read_back(position: u32, lease in 0u32..1 << 24) {
            let announced = Announced { position, lease };
            prop_assert_eq!(Announced::of(announced.word()), announced);
        }

        #[test]
        fn what_began_with_a_cookie_is_read_back(mss in 0u8..4, scale in 0u8..16, sack: bool, stamps: bool, server in -14i8..15, client in 0i8..15) {
            let begun = Begun { mss, scale, sack, stamps, server_windows: server, client_windows: client };
            prop_assert_eq!(Begun::of(begun.duties() | duty::COOKIE | duty::WAITS | duty::PROXY), begun);
            prop_assert_eq!(begun.duties() & 0xffff_ffff, 0);
        }

        #[test]
        fn what_was_shifted_is_shifted_back(position: u32, before in -9000i16..9000, more in -40i16..9000, base: u32, far in -(1i32 << 30)..1 << 30) {
            let shift = Shift { position, before, after: before + more };
            let sequence = position.wrapping_add(far as u32);
            prop_assert_eq!(shift.back(base, shift.forth(base, sequence)), sequence);
        }

        #[test]
        fn acknowledgements_never_run_backwards(position: u32, before in -9000i16..9000, more in 0i16..9000, base: u32, far in -(1i32 << 29)..1 << 29, on in 0u32..100_000) {
            let shift = Shift { position, before, after: before + more };
            let number = position.wrapping_add(base).wrapping_add(far as u32);
            let (one, other) = (shift.back(base, number), shift.back(base, number.wrapping_add(on)));
            prop_assert!(!is_after(one, other));
        }
    }
}
