//! Another version of the agent: the same binary with its BPF programs written in other instructions of the same
//! meaning. The kernel sees other programs, with other tags; a packet sees none.

use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `e_machine` of a BPF object (elf.h, EM_BPF).
const EM_BPF: u16 = 247;
/// The beginning of a little-endian ELF file of 64 bits.
const ELF: &[u8] = b"\x7fELF\x02\x01\x01";
/// `w = immediate`, which sets the upper half of the register to zero.
const MOVE_32: u8 = 0xb4;
/// `r = immediate`, sign-extended: the same for numbers that are not negative.
const MOVE_64: u8 = 0xb7;

/// Writes another version of the agent `binary` to `copy`. Panics when no BPF object is in it.
#[track_caller]
pub fn make(binary: &Path, copy: &Path) {
    let mut bytes =
        std::fs::read(binary).unwrap_or_else(|error| panic!("read {}: {error}", binary.display()));
    let changed = rewrite(&mut bytes);
    assert!(changed > 0, "{} holds no BPF program with an instruction to write anew", binary.display());
    std::fs::write(copy, bytes).unwrap_or_else(|error| panic!("write {}: {error}", copy.display()));
    std::fs::set_permissions(copy, std::fs::Permissions::from_mode(0o755))
        .expect("make a file of ours executable");
}

/// Rewrites the programs of every BPF object found in `bytes`; how many instructions that were.
fn rewrite(bytes: &mut [u8]) -> usize {
    let starts: Vec<usize> =
        (0..bytes.len().saturating_sub(64)).filter(|at| bytes[*at..].starts_with(ELF)).collect();
    let mut changed = 0;
    for start in starts {
        for section in sections(&bytes[start..]).unwrap_or_default() {
            let program = &mut bytes[start + section.start..start + section.end];
            for instruction in program.as_chunks_mut::<8>().0 {
                // The second half of a 16-byte instruction begins with 0 and is never taken for one.
                if instruction[0] == MOVE_32 && instruction[7] < 0x80 {
                    instruction[0] = MOVE_64;
                    changed += 1;
                }
            }
        }
    }
    changed
}

/// Where a BPF object has its executable sections called `xdp` or `xdp.frags`; `None` for anything else.
fn sections(elf: &[u8]) -> Option<Vec<Range<usize>>> {
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?) as usize);
    let long = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?) as usize);
    if half(18)? != EM_BPF {
        return None;
    }
    let (table, size, count, names) = (long(40)?, half(58)?, half(60)?, half(62)?);
    let header = |index: u16| table.checked_add(usize::from(index) * usize::from(size));
    let names = long(header(names)?.checked_add(24)?)?;
    let mut found = Vec::new();
    for index in 0..count {
        let at = header(index)?;
        elf.get(at..at.checked_add(64)?)?;
        let name = elf.get(names.checked_add(word(at)?)?..)?;
        let (start, length) = (long(at + 24)?, long(at + 32)?);
        if (name.starts_with(b"xdp\0") || name.starts_with(b"xdp.frags\0"))
            && start.checked_add(length)? <= elf.len()
        {
            found.push(start..start + length);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object with one section `xdp` of these instructions.
    fn object(instructions: &[[u8; 8]]) -> Vec<u8> {
        let names = b"\0xdp\0\0\0\0";
        let program = instructions.concat();
        let mut elf = vec![0; 64];
        elf[..7].copy_from_slice(ELF);
        elf[18..20].copy_from_slice(&EM_BPF.to_le_bytes());
        let table = (64 + names.len() + program.len()) as u64;
        elf[40..48].copy_from_slice(&table.to_le_bytes());
        for (at, value) in [(58, 64u16), (60, 2), (62, 0)] {
            elf[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        elf.extend_from_slice(names);
        elf.extend_from_slice(&program);
        for (name, start, length) in [(0u32, 64, names.len()), (1, 64 + names.len(), program.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    #[test]
    fn moves_of_numbers_that_are_not_negative_are_written_anew_and_nothing_else() {
        let two = [MOVE_32, 0, 0, 0, 2, 0, 0, 0];
        let minus_one = [MOVE_32, 1, 0, 0, 0xff, 0xff, 0xff, 0xff];
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let mut binary = [b"before ".to_vec(), object(&[two, minus_one, exit]), b" after".to_vec()].concat();
        assert_eq!(rewrite(&mut binary), 1);
        let wanted = object(&[[MOVE_64, 0, 0, 0, 2, 0, 0, 0], minus_one, exit]);
        assert_eq!(binary, [b"before ".to_vec(), wanted, b" after".to_vec()].concat());
        assert_eq!(rewrite(&mut binary), 0);
    }

    #[test]
    fn a_cut_object_is_left_alone() {
        let whole = object(&[[MOVE_32, 0, 0, 0, 2, 0, 0, 0]]);
        for length in 0..whole.len() {
            let mut cut = whole[..length].to_vec();
            rewrite(&mut cut);
            assert_eq!(cut, whole[..length], "cut to {length} bytes");
        }
    }
}
