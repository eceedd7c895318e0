//! Global functions of the eBPF object, for kernels that do not take them.
//!
//! The verifier walks through a global function once, whoever calls it, with arguments of which it knows
//! the types only. Kernels before 5.12 take no addresses among these (`btf_prepare_func_args`,
//! kernel/bpf/btf.c): there all functions are made static, and walked through for each call.

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    elf::{section, u16_at, u32_at},
    features::Features,
};

/// `BTF_KIND_FUNC`, and the other kinds that have more than their head (include/uapi/linux/btf.h).
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// Does the kernel take addresses as arguments of global functions? Its BTF does not say; the helper came
/// one version later.
pub fn takes_globals(features: &Features) -> bool {
    features.has_helper("bpf_for_each_map_elem")
}

/// The object, all of its functions static.
pub fn all_static(object: &[u8]) -> Result<Vec<u8>> {
    let start = section(object, b".BTF").context("the eBPF object has no BTF")?;
    let mut object = object.to_vec();
    let btf = object
        .get_mut(start..)
        .context("the eBPF object is cut off")?;
    // struct btf_header
    ensure!(u16_at(btf, 0) == Some(0xeb9f), "it is no BTF");
    let [head, types, length] = [4, 8, 12].map(|at| u32_at(btf, at));
    let mut at = (head.context(CUT)? + types.context(CUT)?) as usize;
    let end = at + length.context(CUT)? as usize;
    while at < end {
        let info = u32_at(btf, at + 4).context(CUT)?;
        let (kind, members) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        if kind == FUNC {
            let linkage = btf.get_mut(at + 4..at + 6).context(CUT)?;
            linkage.fill(0); // BTF_FUNC_STATIC
        }
        at += 12
            + match kind {
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => 12 * members,
                ENUM | FUNC_PROTO => 8 * members,
                0 | 20.. => bail!("unknown kind {kind} of BTF"),
                _ => 0,
            };
    }
    Ok(object)
}

const CUT: &str = "the BTF is cut off";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::load::OBJECT;

    #[test]
    fn global_functions_become_static_and_nothing_else_changes() {
        let fixed = all_static(OBJECT).unwrap();
        assert_eq!(fixed.len(), OBJECT.len());
        let changed: Vec<(u8, u8)> = OBJECT
            .iter()
            .zip(&fixed)
            .filter(|(before, after)| before != after)
            .map(|(before, after)| (*before, *after))
            .collect();
        // The programs' own functions are global too.
        assert!(changed.len() > 30, "{}", changed.len());
        // BTF_FUNC_GLOBAL, BTF_FUNC_STATIC.
        assert!(
            changed.iter().all(|change| *change == (1, 0)),
            "{changed:?}"
        );
        assert_eq!(all_static(&fixed).unwrap(), fixed);
        aya_obj::Object::parse(&fixed).unwrap();
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for bytes in [&b""[..], &[0; 64], &OBJECT[..OBJECT.len() / 2]] {
            all_static(bytes).unwrap_err();
        }
    }
}
