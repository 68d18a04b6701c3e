//! The control channel of FTP (RFC 959; RFC 2428 for EPRT and EPSV): which lines say where a data connection will be.
//! A [`Reader`] takes one byte at a time and keeps all it knows in itself, so that the data plane can have it in a map
//! and the verifier need not follow it; [`Reader::read`] is the same for the host.

use crate::address::Address;

/// Bytes of a segment that are read.
pub const SEGMENT: usize = 256;

/// The lowest port that a data connection may have: the ports of services are nobody's to hand out (RFC 2577, section
/// 3).
pub const FIRST_DATA_PORT: u16 = 1024;

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Speaker {
    Client = 0,
    Server = 1,
}

/// What a segment says of a data connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub enum Line {
    /// Nothing.
    #[default]
    Other = 0,
    /// `PORT h1,h2,h3,h4,p1,p2`.
    Port = 1,
    /// `EPRT |1|address|port|`.
    ExtendedPort = 2,
    /// `227 … h1,h2,h3,h4,p1,p2`.
    Passive = 3,
    /// `229 … (|||port|)`.
    ExtendedPassive = 4,
}

/// How far a [`Reader`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Progress {
    /// At the beginning of a line, or in its first word.
    Word = 0,
    /// In a line that says nothing of a data connection.
    Skip = 1,
    /// Before the first number of a host and port.
    Text = 2,
    /// In a host and port.
    Numbers = 3,
    /// Before the delimiter of an extended form.
    Delimiter = 4,
    /// In the protocol number of EPRT, or in the empty fields of 229.
    Family = 5,
    /// In the address of EPRT, IPv4.
    Dotted = 6,
    /// In the address of EPRT, IPv6.
    Colons = 7,
    /// In the port of an extended form.
    PortNumber = 8,
    /// Behind all that counts, before the end of the line.
    Tail = 9,
    /// The line is whole.
    Whole = 10,
    /// The line is one of those that count, and wrong.
    Wrong = 11,
}

/// What was read so far. Zeroed is the beginning.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Reader {
    /// [`Speaker`].
    pub speaker: u32,
    /// [`Progress`].
    pub progress: u32,
    /// [`Line`].
    pub line: u32,
    /// The first word, upper case, last byte lowest.
    word: u32,
    /// Bytes of it.
    letters: u32,
    /// The number being read, its digits, and how many were read before.
    number: u32,
    digits: u32,
    count: u32,
    /// The delimiter of the extended forms.
    delimiter: u32,
    /// IPv6: groups before the `::`, plus one; 0 is none yet.
    gap: u32,
    /// IPv6: the byte before was a colon.
    colon: u32,
    /// Where in the segment the line begins.
    pub start: u32,
    /// Where its first number (host and port), or its address, begins.
    pub first: u32,
    /// Where the last number ends: the byte behind it.
    pub end: u32,
    /// Host and port: the six numbers. IPv4: the first four. IPv6: the groups.
    numbers: [u32; 8],
    /// The port, host order.
    pub port: u32,
    /// 4 or 6: the family of the address; 0 where the line names none.
    pub family: u32,
}

impl Reader {
    /// One that listens to `speaker`.
    pub const fn new(speaker: Speaker) -> Self {
        Self {
            speaker: speaker as u32,
            progress: 0,
            line: 0,
            word: 0,
            letters: 0,
            number: 0,
            digits: 0,
            count: 0,
            delimiter: 0,
            gap: 0,
            colon: 0,
            start: 0,
            first: 0,
            end: 0,
            numbers: [0; 8],
            port: 0,
            family: 0,
        }
    }

    /// Reads a segment's payload, at most [`SEGMENT`] bytes of it.
    pub fn read(speaker: Speaker, payload: &[u8]) -> Self {
        let mut reader = Self::new(speaker);
        for (at, byte) in payload.iter().take(SEGMENT).enumerate() {
            if reader.is_over() {
                break;
            }
            reader.step(*byte, at as u32);
        }
        reader
    }

    /// Whether further bytes change nothing.
    #[inline(always)]
    pub const fn is_over(&self) -> bool {
        self.progress >= Progress::Whole as u32
    }

    /// Whether a line that counts is whole.
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.progress == Progress::Whole as u32
    }

    /// Whether a line that counts is there and wrong.
    #[inline(always)]
    pub const fn is_wrong(&self) -> bool {
        self.progress == Progress::Wrong as u32
    }

    /// Whether the segment ends within a line that counts.
    #[inline(always)]
    pub const fn is_cut(&self) -> bool {
        self.line != Line::Other as u32 && self.progress < Progress::Whole as u32
    }

    /// The address of a whole line, in memory order; only where `family` is not 0.
    #[inline(always)]
    pub fn address(&self) -> Address {
        let n = &self.numbers;
        if self.family == 6 {
            let pair = |a: u32, b: u32| ((a & 0xffff) << 16 | (b & 0xffff)).to_be();
            Address::from_words([pair(n[0], n[1]), pair(n[2], n[3]), pair(n[4], n[5]), pair(n[6], n[7])])
        } else {
            let word = (n[0] & 255) << 24 | (n[1] & 255) << 16 | (n[2] & 255) << 8 | (n[3] & 255);
            Address::from_words([word.to_be(), 0, 0, 0])
        }
    }

    /// Takes the next byte; `at` is its place in the segment.
    #[inline(always)]
    pub fn step(&mut self, byte: u8, at: u32) {
        let p = self.progress;
        if byte == b'\n' {
            return self.end_of_line(at);
        }
        if p == Progress::Word as u32 {
            self.in_word(byte, at);
        } else if p == Progress::Text as u32 {
            self.in_text(byte, at);
        } else if p == Progress::Numbers as u32 {
            self.in_numbers(byte, at);
        } else if p == Progress::Delimiter as u32 {
            self.before_delimiter(byte);
        } else if p == Progress::Family as u32 {
            self.in_family(byte, at);
        } else if p == Progress::Dotted as u32 {
            self.in_dotted(byte, at);
        } else if p == Progress::Colons as u32 {
            self.in_colons(byte, at);
        } else if p == Progress::PortNumber as u32 {
            self.in_port(byte, at);
        } else if p == Progress::Tail as u32 {
            self.in_tail(byte);
        }
    }

    #[inline(always)]
    fn wrong(&mut self) {
        self.progress = Progress::Wrong as u32;
    }

    #[inline(always)]
    fn end_of_line(&mut self, at: u32) {
        let numbers = self.progress == Progress::Numbers as u32;
        if self.progress == Progress::Tail as u32 || (numbers && self.finish_numbers(at)) {
            self.progress = Progress::Whole as u32;
        } else if self.line != Line::Other as u32 {
            self.wrong();
        } else {
            self.progress = Progress::Word as u32;
            self.word = 0;
            self.letters = 0;
            self.start = at + 1;
        }
    }

    /// The first word: four letters and a space, or three digits and a space (with a hyphen it is a line of many, RFC
    /// 959, section 4.2).
    #[inline(always)]
    fn in_word(&mut self, byte: u8, at: u32) {
        let (word, letters) = (self.word, self.letters);
        if byte != b' ' {
            let upper = byte.to_ascii_uppercase();
            self.word = word << 8 | upper as u32;
            self.letters = letters + 1;
            if letters >= 4 {
                self.progress = Progress::Skip as u32;
            }
            return;
        }
        let client = self.speaker == Speaker::Client as u32;
        let line = if client && letters == 4 && word == PORT {
            Line::Port as u32
        } else if client && letters == 4 && word == EPRT {
            Line::ExtendedPort as u32
        } else if !client && letters == 3 && word == PASSIVE {
            Line::Passive as u32
        } else if !client && letters == 3 && word == EXTENDED_PASSIVE {
            Line::ExtendedPassive as u32
        } else {
            Line::Other as u32
        };
        self.line = line;
        self.progress = if line == Line::Other as u32 {
            Progress::Skip as u32
        } else if line == Line::Port as u32 || line == Line::Passive as u32 {
            Progress::Text as u32
        } else {
            Progress::Delimiter as u32
        };
        self.first = at + 1;
    }

    /// A reply's host and port begin with its first digit, whatever stands before (RFC 1123, section 4.1.2.6).
    #[inline(always)]
    fn in_text(&mut self, byte: u8, at: u32) {
        if is_digit(byte) {
            self.progress = Progress::Numbers as u32;
            self.first = at;
            self.number = (byte - b'0') as u32;
            self.digits = 1;
        } else if self.line == Line::Port as u32 && byte != b' ' {
            self.wrong();
        }
    }

    #[inline(always)]
    fn in_numbers(&mut self, byte: u8, at: u32) {
        if is_digit(byte) {
            self.number = self.number.wrapping_mul(10).wrapping_add((byte - b'0') as u32);
            self.digits += 1;
            if self.digits > 3 || self.number > 255 {
                self.wrong();
            }
        } else if byte == b',' && self.count < 5 && self.digits != 0 {
            self.numbers[(self.count & 7) as usize] = self.number;
            self.count += 1;
            self.number = 0;
            self.digits = 0;
        } else if self.finish_numbers(at) && (self.line == Line::Passive as u32 || is_blank(byte)) {
            self.progress = Progress::Tail as u32;
        } else {
            self.wrong();
        }
    }

    /// The sixth number ends before `at`.
    #[inline(always)]
    fn finish_numbers(&mut self, at: u32) -> bool {
        if self.count != 5 || self.digits == 0 {
            return false;
        }
        self.port = (self.numbers[4] & 255) << 8 | (self.number & 255);
        self.family = 4;
        self.end = at;
        self.port != 0
    }

    #[inline(always)]
    fn before_delimiter(&mut self, byte: u8) {
        if self.line == Line::ExtendedPassive as u32 && self.delimiter == 0 {
            // The text of 229 ends with the parenthesis.
            if byte == b'(' {
                self.delimiter = 1;
            }
            return;
        }
        if self.line == Line::ExtendedPort as u32 && byte == b' ' {
            return;
        }
        if !(33..=126).contains(&byte) || is_digit(byte) {
            return self.wrong();
        }
        self.delimiter = byte as u32;
        self.progress = Progress::Family as u32;
        self.count = 0;
    }

    #[inline(always)]
    fn in_family(&mut self, byte: u8, at: u32) {
        if self.line == Line::ExtendedPassive as u32 {
            // Protocol and address are left out (RFC 2428, section 3).
            self.count += 1;
            if byte as u32 != self.delimiter {
                self.wrong();
            } else if self.count == 2 {
                self.begin_port();
            }
            return;
        }
        if byte as u32 != self.delimiter {
            if self.count != 0 || (byte != b'1' && byte != b'2') {
                return self.wrong();
            }
            self.family = if byte == b'1' { 4 } else { 6 };
            self.count = 1;
            return;
        }
        if self.count != 1 {
            return self.wrong();
        }
        self.first = at + 1;
        self.number = 0;
        self.digits = 0;
        self.count = 0;
        self.progress = if self.family == 4 { Progress::Dotted as u32 } else { Progress::Colons as u32 };
    }

    #[inline(always)]
    fn begin_port(&mut self) {
        self.progress = Progress::PortNumber as u32;
        self.number = 0;
        self.digits = 0;
    }

    #[inline(always)]
    fn in_dotted(&mut self, byte: u8, _at: u32) {
        if is_digit(byte) {
            self.number = self.number.wrapping_mul(10).wrapping_add((byte - b'0') as u32);
            self.digits += 1;
            if self.digits > 3 || self.number > 255 {
                self.wrong();
            }
            return;
        }
        let last = byte as u32 == self.delimiter;
        let expected = if last { self.count == 3 } else { byte == b'.' && self.count < 3 };
        if !expected || self.digits == 0 {
            return self.wrong();
        }
        self.numbers[(self.count & 7) as usize] = self.number;
        self.count += 1;
        self.number = 0;
        self.digits = 0;
        if last {
            self.begin_port();
        }
    }

    /// Hexadecimal groups with at most one `::` (RFC 4291, section 2.2; not its third form, with dots).
    #[inline(always)]
    fn in_colons(&mut self, byte: u8, _at: u32) {
        let lower = byte | 32;
        if is_digit(byte) || (b'a'..=b'f').contains(&lower) {
            let value = if is_digit(byte) { byte - b'0' } else { lower - b'a' + 10 };
            self.number = self.number << 4 | value as u32;
            self.digits += 1;
            // A colon at the beginning stands there twice.
            let alone = self.colon == 1 && self.count == 0;
            self.colon = 0;
            if self.digits > 4 || self.count > 7 || alone {
                self.wrong();
            }
            return;
        }
        let last = byte as u32 == self.delimiter;
        if !last && byte != b':' {
            return self.wrong();
        }
        if self.digits != 0 {
            self.numbers[(self.count & 7) as usize] = self.number;
            self.count += 1;
            self.number = 0;
            self.digits = 0;
            self.colon = 1;
        } else if self.colon == 1 && !last {
            // The second of two colons.
            if self.gap != 0 {
                return self.wrong();
            }
            self.gap = self.count + 1;
            self.colon = 2;
        } else if self.count == 0 && self.gap == 0 && !last {
            // The address begins with one.
            self.colon = 1;
        } else if !last || self.colon != 2 {
            return self.wrong();
        }
        if last {
            self.finish_colons();
        }
    }

    /// Spreads the groups around the `::`.
    #[inline(always)]
    fn finish_colons(&mut self) {
        let count = self.count;
        if self.gap == 0 {
            if count != 8 {
                return self.wrong();
            }
            return self.begin_port();
        }
        // At least one group is left out.
        if count > 7 {
            return self.wrong();
        }
        let before = self.gap - 1;
        let shift = 8 - count;
        // From the last: groups behind the gap move up, their places become 0.
        let mut to = 7;
        while to > 0 {
            if to >= before + shift {
                self.numbers[(to & 7) as usize] = self.numbers[(to.wrapping_sub(shift) & 7) as usize];
            } else if to >= before {
                self.numbers[(to & 7) as usize] = 0;
            }
            to -= 1;
        }
        if before == 0 {
            self.numbers[0] = 0;
        }
        self.begin_port();
    }

    #[inline(always)]
    fn in_port(&mut self, byte: u8, at: u32) {
        if is_digit(byte) {
            self.number = self.number.wrapping_mul(10).wrapping_add((byte - b'0') as u32);
            self.digits += 1;
            if self.digits > 5 || self.number > 65_535 {
                self.wrong();
            }
            return;
        }
        if byte as u32 != self.delimiter || self.digits == 0 || self.number == 0 {
            return self.wrong();
        }
        self.port = self.number;
        self.end = at;
        self.progress = Progress::Tail as u32;
    }

    /// Commands end here; replies may say more.
    #[inline(always)]
    fn in_tail(&mut self, byte: u8) {
        if self.speaker == Speaker::Client as u32 && !is_blank(byte) {
            self.wrong();
        }
    }
}

const PORT: u32 = u32::from_be_bytes(*b"PORT");
const EPRT: u32 = u32::from_be_bytes(*b"EPRT");
const PASSIVE: u32 = u32::from_be_bytes(*b"\x00227");
const EXTENDED_PASSIVE: u32 = u32::from_be_bytes(*b"\x00229");

#[inline(always)]
const fn is_digit(byte: u8) -> bool {
    byte >= b'0' && byte <= b'9'
}

#[inline(always)]
const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\r'
}

/// What the data plane works with, a CPU's own: the segment as it came, what was read, and what is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub struct Dialog {
    pub reader: Reader,
    /// The payload as it came, as far as it is read; zeroes behind it.
    pub came: [u8; SEGMENT],
    pub draft: Draft,
    /// What an active command is made to name.
    pub local: Address,
    pub local_port: u32,
    /// Bytes of the payload, as far as it is read.
    pub len: u32,
}

/// A payload that is being written: a reply from right to left, a command from left to right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Draft {
    pub bytes: [u8; SEGMENT],
    /// The place of the byte written last (from right to left), or of the next one.
    pub at: u32,
    pub reserved: u32,
}

impl Draft {
    /// A draft of a payload; what is written next ends before `at`.
    pub const fn of(bytes: [u8; SEGMENT], at: u32) -> Self {
        Self { bytes, at, reserved: 0 }
    }

    /// Puts a byte before what was written.
    #[inline(always)]
    pub fn put(&mut self, byte: u8) {
        // Through memory: in a register the verifier would follow each length that every number before may have had.
        let place = &raw mut self.at;
        // SAFETY: a field of ours.
        let at = unsafe { core::ptr::read_volatile(place) }.wrapping_sub(1);
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(place, at) };
        self.bytes[(at & 255) as usize] = byte;
    }

    /// Puts a byte behind what was written.
    #[inline(always)]
    pub fn push(&mut self, byte: u8) {
        // Through memory, as above.
        let place = &raw mut self.at;
        // SAFETY: a field of ours.
        let at = unsafe { core::ptr::read_volatile(place) };
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(place, at.wrapping_add(1)) };
        self.bytes[(at & 255) as usize] = byte;
    }

    /// Puts a number of at most five digits behind what was written.
    #[inline(always)]
    pub fn push_number(&mut self, number: u32) {
        if number >= 10_000 {
            self.push(b'0' + (number / 10_000 % 10) as u8);
        }
        if number >= 1000 {
            self.push(b'0' + (number / 1000 % 10) as u8);
        }
        if number >= 100 {
            self.push(b'0' + (number / 100 % 10) as u8);
        }
        if number >= 10 {
            self.push(b'0' + (number / 10 % 10) as u8);
        }
        self.push(b'0' + (number % 10) as u8);
    }

    /// Puts a group of an IPv6 address behind what was written, without leading zeroes (RFC 4291, section 2.2, its first
    /// form).
    #[inline(always)]
    pub fn push_group(&mut self, group: u32) {
        if group >= 0x1000 {
            self.push(hexadecimal(group >> 12));
        }
        if group >= 0x100 {
            self.push(hexadecimal(group >> 8));
        }
        if group >= 0x10 {
            self.push(hexadecimal(group >> 4));
        }
        self.push(hexadecimal(group));
    }

    /// Puts a number of at most five digits before what was written.
    #[inline(always)]
    pub fn number(&mut self, number: u32) {
        self.put(b'0' + (number % 10) as u8);
        if number >= 10 {
            self.put(b'0' + (number / 10 % 10) as u8);
        }
        if number >= 100 {
            self.put(b'0' + (number / 100 % 10) as u8);
        }
        if number >= 1000 {
            self.put(b'0' + (number / 1000 % 10) as u8);
        }
        if number >= 10_000 {
            self.put(b'0' + (number / 10_000 % 10) as u8);
        }
    }
}

/// The lowest four bits as a digit.
#[inline(always)]
const fn hexadecimal(number: u32) -> u8 {
    let digit = (number & 15) as u8;
    if digit < 10 { b'0' + digit } else { b'a' - 10 + digit }
}

/// Writes one byte of a segment whose command (PORT, EPRT) is whole: what is neither address nor port is copied, at the
/// first byte of the address the new address and port are written in the form of the command. To be called for each byte
/// in order; `draft` begins empty at 0, and its `at` is the new length at the end, beyond [`SEGMENT`] if it does not fit.
#[inline(always)]
pub fn rewrite_active(
    reader: &Reader,
    came: &[u8; SEGMENT],
    draft: &mut Draft,
    at: u32,
    address: Address,
    port: u16,
) {
    if at == reader.first {
        write_argument(reader, draft, address, port);
    }
    if at < reader.first || at >= reader.end {
        draft.push(came[(at & 255) as usize]);
    }
}

#[inline(always)]
fn write_argument(reader: &Reader, draft: &mut Draft, address: Address, port: u16) {
    let old = reader.line == Line::Port as u32;
    let words = address.words();
    if reader.family == 6 {
        for (n, word) in words.into_iter().enumerate() {
            let pair = u32::from_be(word);
            if n != 0 {
                draft.push(b':');
            }
            draft.push_group(pair >> 16);
            draft.push(b':');
            draft.push_group(pair & 0xffff);
        }
    } else {
        let separator = if old { b',' } else { b'.' };
        let [a, b, c, d] = words[0].to_ne_bytes();
        draft.push_number(a as u32);
        draft.push(separator);
        draft.push_number(b as u32);
        draft.push(separator);
        draft.push_number(c as u32);
        draft.push(separator);
        draft.push_number(d as u32);
    }
    if old {
        draft.push(b',');
        draft.push_number(port as u32 >> 8);
        draft.push(b',');
        draft.push_number(port as u32 & 255);
    } else {
        draft.push(reader.delimiter as u8);
        draft.push_number(port as u32);
    }
}

/// Digits of a byte in decimal.
#[inline(always)]
pub const fn digits(byte: u8) -> u32 {
    1 + (byte >= 10) as u32 + (byte >= 100) as u32
}

/// Bytes of an IPv4 address and a port as PORT and 227 write them.
#[inline(always)]
pub const fn host_port_len(address: [u8; 4], port: u16) -> u32 {
    let [a, b, c, d] = address;
    let [high, low] = port.to_be_bytes();
    digits(a) + digits(b) + digits(c) + digits(d) + digits(high) + digits(low) + 5
}

/// Bytes of a reply's code and the space behind it.
const CODE: u32 = 4;

/// Where the numbers of a 227 begin if they are `len` bytes and end where they ended: what stood before them
/// (`separator`: a parenthesis, mostly) stands before them still, and the space behind the code is left. None: there
/// is no room.
#[inline(always)]
pub fn passive_begin(reader: &Reader, len: u32, separator: u8) -> Option<u32> {
    let least = reader.start + CODE + (separator != b' ') as u32;
    if reader.end < least + len { None } else { Some(reader.end - len) }
}

/// How many bytes shorter a host and port can become: four numbers of three digits to one digit each.
const SHRINKS: u32 = 8;

/// Writes another address into a whole 227: the line keeps its length, so that no sequence number changes. Numbers that
/// are longer take the end of the text before them, shorter ones leave spaces there; who reads the reply looks for its
/// first digit (RFC 1123, section 4.1.2.6). `draft` holds the payload. False: the text is too short.
#[inline(always)]
pub fn rewrite_passive(reader: &Reader, draft: &mut Draft, address: [u8; 4]) -> bool {
    let port = reader.port as u16;
    let first = reader.first;
    let separator = draft.bytes[(first.wrapping_sub(1) & 255) as usize];
    let Some(begin) = passive_begin(reader, host_port_len(address, port), separator) else { return false };
    draft.at = reader.end;
    let [high, low] = port.to_be_bytes();
    draft.number(low as u32);
    draft.put(b',');
    draft.number(high as u32);
    let [a, b, c, d] = address;
    draft.put(b',');
    draft.number(d as u32);
    draft.put(b',');
    draft.number(c as u32);
    draft.put(b',');
    draft.number(b as u32);
    draft.put(b',');
    draft.number(a as u32);
    if begin != first {
        draft.put(separator);
    }
    for spaces in 0..SHRINKS {
        if first + spaces < begin {
            draft.put(b' ');
        }
    }
    true
}

#[cfg(test)]
mod tests;
