//! What the data plane saw of a real server's first answers to SYNs. Each new connection counts once, where its
//! destination is watched: the passive half of health checks.

/// Counters of one destination, since the program was loaded. Half a line.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C, align(32))]
pub struct Witness {
    /// \[atomic\] connections that the server took: its SYN-ACK was seen (NAT, FULLNAT), or the client's ACK (DR, TUN).
    pub answered: u64,
    /// \[atomic\] connections that it answered with RST (NAT, FULLNAT).
    pub refused: u64,
    /// \[atomic\] connections of which the client had to repeat its SYN, since nothing had come.
    pub silent: u64,
    /// \[atomic\] connections that were answered with an ICMP error instead (NAT, FULLNAT).
    pub unreachable: u64,
}

/// Which counter: the offset of its word.
pub mod answer {
    /// [`super::Witness::answered`].
    pub const ANSWERED: u32 = 0;
    /// [`super::Witness::refused`].
    pub const REFUSED: u32 = 8;
    /// [`super::Witness::silent`].
    pub const SILENT: u32 = 16;
    /// [`super::Witness::unreachable`].
    pub const UNREACHABLE: u32 = 24;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn each_counter_is_where_its_number_says() {
        assert_eq!((size_of::<Witness>(), align_of::<Witness>()), (32, 32));
        for (offset, answer) in [
            (offset_of!(Witness, answered), answer::ANSWERED),
            (offset_of!(Witness, refused), answer::REFUSED),
            (offset_of!(Witness, silent), answer::SILENT),
            (offset_of!(Witness, unreachable), answer::UNREACHABLE),
        ] {
            assert_eq!(offset, answer as usize);
        }
    }
}
