//! The atomic compare-and-exchange of the eBPF object, for kernels that do not have it.
//!
//! The programs take places in a table with it (`tracer-ebpf/src/dns/near.rs`). Kernels before 5.12 do not know the
//! instruction, and arm64 cannot compile it before 5.18 (arch/arm64/net/bpf_jit_comp.c). There it is replaced, so that
//! every attempt to take a place fails: all entries are in the hash maps then, which takes longer and counts the same.

use std::env::consts::ARCH;

use anyhow::{Context as _, Result};

use super::{elf, features::Features, without::is_without};

/// `BPF_STX | BPF_ATOMIC | BPF_DW`, and `BPF_CMPXCHG` in the immediate (include/uapi/linux/bpf.h).
const ATOMIC: u8 = 0xdb;
const EXCHANGE: [u8; 4] = 0xf1_u32.to_le_bytes();
/// `BPF_LD | BPF_IMM | BPF_DW`, which takes two instructions' room.
const LONG: u8 = 0x18;
/// `r0 = 1`: what was there is neither nobody's, nor the mark of one that takes the place.
const ONE_WAS_THERE: [u8; 8] = [0xb7, 0, 0, 0, 1, 0, 0, 0];

/// Does the kernel have it, and the walk through arrays that entries in places need? Its BTF says nothing of
/// instructions; helpers came a version later.
pub fn has_exchange(features: &Features) -> bool {
    let walks = features.has_helper("bpf_for_each_map_elem"); // 5.13
    let compiles = ARCH != "aarch64" || features.has_helper("bpf_kptr_xchg"); // 5.19
    walks && compiles && !is_without("cmpxchg")
}

/// The object without it.
pub fn removed(object: &[u8]) -> Result<Vec<u8>> {
    let code = elf::code(object).context("the eBPF object is cut off")?;
    let mut object = object.to_vec();
    for (start, end) in code {
        let mut instructions = object[start..end].chunks_exact_mut(8);
        while let Some(instruction) = instructions.next() {
            if instruction[0] == LONG {
                instructions.next();
            } else if instruction[0] == ATOMIC && instruction[4..] == EXCHANGE {
                instruction.copy_from_slice(&ONE_WAS_THERE);
            }
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::load::OBJECT;

    fn exchanges(object: &[u8]) -> usize {
        let code = elf::code(object).unwrap();
        code.iter()
            .flat_map(|(start, end)| object[*start..*end].chunks_exact(8))
            .filter(|instruction| instruction[0] == ATOMIC && instruction[4..] == EXCHANGE)
            .count()
    }

    #[test]
    fn every_exchange_goes_and_nothing_else() {
        let found = exchanges(OBJECT);
        assert!(found > 10, "{found}");
        let without = removed(OBJECT).unwrap();
        assert_eq!(exchanges(&without), 0);
        let changed = OBJECT
            .chunks_exact(8)
            .zip(without.chunks_exact(8))
            .filter(|(before, after)| before != after);
        // An instruction may lie across two of these.
        assert!((found..=2 * found).contains(&changed.count()));
        assert_eq!(removed(&without).unwrap(), without);
        aya_obj::Object::parse(&without).unwrap();
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for bytes in [&b""[..], &OBJECT[..OBJECT.len() / 2]] {
            removed(bytes).unwrap_err();
        }
    }
}
