//! The eBPF object's sections, for what is changed in it before it is loaded.

/// Where `struct Elf64_Ehdr` has what is needed (include/uapi/linux/elf.h).
const E_SHOFF: usize = 0x28;
const E_SHENTSIZE: usize = 0x3a;
const E_SHNUM: usize = 0x3c;
const E_SHSTRNDX: usize = 0x3e;

/// `SHT_PROGBITS` and `SHF_EXECINSTR`.
const PROGBITS: u32 = 1;
const EXECUTABLE: u64 = 4;

/// Where a section of an ELF file begins.
pub fn section(file: &[u8], wanted: &[u8]) -> Option<usize> {
    let size = u16_at(file, E_SHENTSIZE)? as usize;
    let header = u64_at(file, E_SHOFF)? as usize + u16_at(file, E_SHSTRNDX)? as usize * size;
    let names = offset(file, header)?;
    headers(file)?
        .find(|header| {
            u32_at(file, *header)
                .and_then(|name| file.get(names + name as usize..))
                .and_then(|name| name.split(|byte| *byte == 0).next())
                == Some(wanted)
        })
        .and_then(|header| offset(file, header))
}

/// Where the sections with instructions begin and end; `None` where the file is cut off.
pub fn code(file: &[u8]) -> Option<Vec<(usize, usize)>> {
    let mut found = Vec::new();
    for header in headers(file)? {
        let (kind, flags) = (u32_at(file, header + 4)?, u64_at(file, header + 8)?);
        if kind == PROGBITS && flags & EXECUTABLE != 0 {
            let start = offset(file, header)?;
            let end = start.checked_add(u64_at(file, header + 0x20)? as usize)?;
            file.get(start..end)?;
            found.push((start, end));
        }
    }
    Some(found)
}

fn headers(file: &[u8]) -> Option<impl Iterator<Item = usize>> {
    let start = u64_at(file, E_SHOFF)? as usize;
    let size = u16_at(file, E_SHENTSIZE)? as usize;
    Some((0..u16_at(file, E_SHNUM)?).map(move |index| start + index as usize * size))
}

fn offset(file: &[u8], header: usize) -> Option<usize> {
    Some(u64_at(file, header + 0x18)? as usize)
}

/// A number in the byte order of the object.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the byte order of the object.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
