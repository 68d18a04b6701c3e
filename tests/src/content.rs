//! Bytes that are known everywhere without being sent along: byte `i` of every transfer depends on `i` alone,
//! so a lost, doubled, swapped or altered byte shows at its offset.

use std::process::Command;

use crate::namespace::run;

/// The bytes from `offset` on, as many as fit.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    let mut position = 0;
    while position < buffer.len() {
        let at = offset + position as u64;
        let word = word(at / 8).to_le_bytes();
        let rest = &word[(at % 8) as usize..];
        let length = rest.len().min(buffer.len() - position);
        buffer[position..position + length].copy_from_slice(&rest[..length]);
        position += length;
    }
}

/// The first `length` bytes.
pub fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill(0, &mut bytes);
    bytes
}

/// Compares `received`, which begins at `offset`, with what it should be; names the first wrong offset.
pub fn check(offset: u64, received: &[u8]) -> Result<(), String> {
    let mut expected = vec![0; received.len()];
    fill(offset, &mut expected);
    match received.iter().zip(&expected).position(|(got, wanted)| got != wanted) {
        None => Ok(()),
        Some(at) => Err(format!(
            "byte {} is {:#04x} instead of {:#04x}",
            offset + at as u64,
            received[at],
            expected[at]
        )),
    }
}

/// SHA-256 in hexadecimal, by coreutils.
pub fn sha256(bytes: &[u8]) -> String {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().expect("make a temporary file");
    file.write_all(bytes).expect("write a temporary file");
    let line = run(Command::new("sha256sum").arg(file.path()), "");
    line.split_whitespace().next().expect("sha256sum prints the sum first").to_owned()
}

/// Word `index` of the stream: splitmix64, which has no short period and no two neighbours alike.
fn word(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_piece_of_the_stream_is_the_same_bytes() {
        let whole = bytes(1000);
        for (offset, length) in [(0, 1), (1, 7), (7, 2), (8, 8), (13, 500), (999, 1)] {
            let mut piece = vec![0; length];
            fill(offset as u64, &mut piece);
            assert_eq!(piece, whole[offset..offset + length], "{length} bytes from {offset}");
            assert_eq!(check(offset as u64, &piece), Ok(()));
        }
    }

    #[test]
    fn a_wrong_or_shifted_byte_is_named() {
        let mut damaged = bytes(64);
        damaged[40] ^= 1;
        assert!(check(0, &damaged).unwrap_err().starts_with("byte 40 is "));
        assert!(check(1, &bytes(64)).unwrap_err().starts_with("byte 1 is "));
    }

    #[test]
    fn the_sum_is_the_published_one() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
